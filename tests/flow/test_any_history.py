"""Any mixture of crashes, outages, zombies, stops, rivals and failures, as Hypothesis draws it, ends once and truly."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from runner.flow.waiting import HandedBack
from runner.model.errors import Category, LogicError, RunnerError, TransientError
from runner.model.manifest import State, Step
from runner.model.policy import POLICY
from runner.model.spec import JobSpec
from tests.flow.moments import MOMENTS
from tests.support.flow_world import (
    DELAYS,
    ROUTES,
    At,
    Crash,
    Tap,
    Turn,
    World,
    assert_once_and_true,
    incremental,
    load,
    transform,
)

Trouble = Literal["crash", "no answer", "postgres", "s3", "sqs", "zombie", "stop", "rival", "newer rival", "duplicate"]


@dataclass(frozen=True)
class Mishap:
    """What befalls one worker, and when."""

    at: At
    trouble: Trouble

    def __repr__(self) -> str:
        return f"{self.trouble} {self.at}"


TROUBLES: list[Trouble] = [
    "crash", "no answer", "postgres", "s3", "sqs", "zombie", "stop", "rival", "newer rival", "duplicate",
]  # fmt: skip
TURNS = {
    "plain": Turn(),
    "with bad rows": Turn(quarantined=2),
    "transient": Turn(raises=TransientError("not now")),
    "logic": Turn(raises=LogicError("no such column")),
    "a fault of ours": Turn(raises=KeyError("x")),
    "a failing test": Turn(quarantined=1, steps=(Step(name="t", kind="test", status="fail", rows=1),)),
}


def mishaps(stage: str) -> st.SearchStrategy[list[Mishap]]:
    return st.lists(st.builds(Mishap, st.sampled_from(MOMENTS[stage]), st.sampled_from(TROUBLES)), max_size=6)


def suffer(world: World, spec: JobSpec, left: Iterator[Mishap]) -> None:
    """A delivery for each mishap. While a worker is paused, the next ones befall its successors."""
    for mishap in left:
        with suppress(Crash, RunnerError):
            world.deliver(spec.stage, tapped(world, spec, mishap, left))
        if not world.queue.depth(spec.stage):
            return


def tapped(world: World, spec: JobSpec, mishap: Mishap, left: Iterator[Mishap]) -> Tap:
    tap, at = Tap(), mishap.at
    table = spec.outputs[-1].dataset

    def half_dead() -> None:
        world.lease_runs_out()
        suffer(world, spec, left)

    def stop() -> None:
        # Elsewhere a signal only says that no further job is to be taken.
        if not at.call.startswith("queue.") and at.call not in ("objects.check", "ledger.now", "ledger.claim"):
            raise HandedBack

    troubles: dict[Trouble, Callable[[], object]] = {
        "zombie": half_dead,
        "stop": stop,
        "rival": lambda: world.publish(table),
        "newer rival": lambda: world.publish(table, logical_time=spec.logical_time + timedelta(days=1)),
        "duplicate": lambda: world.queue.send(spec.stage, spec.to_json()),
    }
    match mishap.trouble:
        case "crash":
            return tap.crash(at)
        case "no answer":
            return tap.fail(at, TransientError("expected a whole answer, got half of one"))
        case "postgres":
            return tap.lose(at, "ledger", "tables")
        case "s3":
            return tap.lose(at, "objects", "tables")
        case "sqs":
            return tap.lose(at, "queue")
        case other:
            return tap.pause(at, troubles[other])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from(["transform", "load", "incremental"]), st.integers(1, 3), st.booleans())
def test_whatever_happens_a_run_ends_once_and_its_record_is_true(
    data: st.DataObject, stage: str, max_attempts: int, is_rerun: bool
) -> None:
    make = {"transform": transform, "load": load, "incremental": incremental}[stage]
    befalls = data.draw(mishaps(stage))
    turns = data.draw(st.lists(st.sampled_from(sorted(TURNS)), max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        first = make()
        for table in (DELAYS, ROUTES):
            world.publish(table)
        spec = make(
            max_attempts=max_attempts,
            rerun={"of": str(first.run_id), "effect": str(first.run_id)} if is_rerun else None,
        )
        world.engine.script = [TURNS[name] for name in turns]

        world.submit(spec)
        suffer(world, spec, iter(befalls))
        world.work_off(spec.stage)

        manifest = assert_once_and_true(world, spec)
        used_up = manifest.failure is not None and POLICY[manifest.failure.category].retry
        assert bool(world.queue.dead_letters(spec.stage)) is used_up
        numbers = [each.attempt for each in world.ledger.attempts(spec.run_id)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert world.outcomes(spec)[-1] == manifest.state.value
        spent = [each for each in manifest.attempts if each.outcome != "handed back"]
        planned = manifest.plan_id is not None
        assert planned or len(spent) <= max_attempts + len(befalls) + 1
        met = {each.trouble for each in befalls}
        if manifest.state is State.SUCCEEDED and not met & {"rival", "newer rival"}:
            published = world.head(spec.outputs[0].dataset) == spec.run_id
            assert published is not is_rerun
        if manifest.failure and manifest.failure.category is Category.CONFLICT:
            assert "newer rival" in met
