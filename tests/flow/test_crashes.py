"""A worker may die, or a service go away, between any two calls: the next delivery finds what is left and ends it.

The moments are not written down here: they are those of an undisturbed run, before and after the effect of every call.
"""

from __future__ import annotations

import pytest

from runner.model.errors import TransientError
from tests.flow.moments import (
    CASES,
    CLAIMED,
    DECIDED,
    EXECUTED,
    PLANNED,
    PLANNED_ON,
    ends_well,
    is_past,
    scripted,
)
from tests.support.flow_world import At, Crash, Tap, World, transform


@pytest.mark.parametrize(("stage", "at"), CASES)
def test_a_crash_at_any_moment_is_made_good_by_the_next_delivery(world: World, stage: str, at: At) -> None:
    spec = scripted(world, stage)

    world.submit(spec)
    ended = world.work_off(spec.stage, Tap().crash(at))

    manifest = ends_well(world, spec)
    assert ended[0] is Crash
    claimed = is_past(at, CLAIMED, stage)
    decided = is_past(at, DECIDED, stage)
    assert [each.outcome for each in manifest.attempts] == ["lost"] * (claimed and not decided) + ["succeeded"]
    assert world.outcomes(spec) == [each.outcome for each in manifest.attempts]
    executed_before = is_past(at, EXECUTED, stage)
    planned = is_past(at, PLANNED, stage)
    assert len(world.engine.jobs) == 1 + (executed_before and not planned), "a planned run is not executed again"
    made_by = 1 if planned or not claimed else 2
    assert {landing.tag.attempt for landing in world.landings(spec)} == {made_by}


@pytest.mark.parametrize(("stage", "at"), CASES)
def test_two_crashes_one_after_the_other_are_made_good(world: World, stage: str, at: At) -> None:
    """The second one dies at the same point of its own way, if its way leads there."""
    spec = scripted(world, stage)

    world.run(spec, Tap().crash(at), Tap().crash(at))

    manifest = ends_well(world, spec)
    assert len(manifest.attempts) <= 3
    assert len(world.engine.jobs) <= 3


@pytest.mark.parametrize(
    "second", ["queue.receive", "tables.load", "tables.replace", "ledger.decide", "objects.put_if_absent"]
)
@pytest.mark.parametrize("at", PLANNED_ON, ids=str)
def test_whoever_rolls_a_plan_forward_may_die_of_it_too(world: World, at: At, second: str) -> None:
    spec = transform()

    world.run(spec, Tap().crash(at), Tap().crash(At("after", second)), Tap().crash(At("before", second)))

    ends_well(world, spec)
    assert len(world.engine.jobs) == 1


# ---------------------------------------------------------------- a call that fails, answered or not


@pytest.mark.parametrize(("stage", "at"), CASES)
def test_any_call_may_fail_once_with_its_effect_or_without(world: World, stage: str, at: At) -> None:
    """`after` is an answer that got lost: the effect is there, and nobody was told."""
    spec = scripted(world, stage)

    world.run(spec, Tap().fail(at, TransientError(f"{at}: expected a whole answer, got half of one")))

    manifest = ends_well(world, spec)
    assert len(manifest.attempts) <= 2
    assert len(world.engine.jobs) <= 2


OUTAGES = {
    "postgres": ("ledger", "tables"),  # the catalog lives in it too
    "s3": ("objects", "tables"),
    "sqs": ("queue",),
}


@pytest.mark.parametrize("service", OUTAGES)
@pytest.mark.parametrize(("stage", "at"), CASES)
def test_an_outage_that_begins_at_any_moment_costs_no_message_and_doubles_nothing(
    world: World, stage: str, at: At, service: str
) -> None:
    """It lasts for the worker that meets it; its successor finds the service back."""
    spec = scripted(world, stage)

    world.run(spec, Tap().lose(at, *OUTAGES[service]))

    manifest = ends_well(world, spec)
    assert len(manifest.attempts) <= 2
    assert len(world.engine.jobs) <= 2


@pytest.mark.parametrize("service", ["postgres", "s3"])
@pytest.mark.parametrize("at", PLANNED_ON, ids=str)
def test_once_planned_a_run_outlasts_any_outage_however_many_workers_meet_it(
    world: World, at: At, service: str
) -> None:
    spec = transform(max_attempts=1)

    world.run(spec, *[Tap().lose(at, *OUTAGES[service]) for _ in range(4)])

    ends_well(world, spec)
    assert len(world.engine.jobs) == 1
