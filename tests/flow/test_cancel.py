"""Cancelling: before the plan it ends the run, after it it comes too late; nobody is left in doubt."""

from __future__ import annotations

import pytest

from runner.model.errors import LogicError, TransientError
from runner.model.manifest import State
from runner.model.policy import exit_code
from tests.flow.moments import (
    BEFORE_THE_PLAN,
    CLAIMED,
    EXECUTED,
    PLANNED,
    PLANNED_ON,
    ends_well,
)
from tests.support.flow_world import At, Crash, Tap, Turn, World, assert_once_and_true, incremental, transform


def test_a_queued_run_is_decided_cancelled_by_whoever_takes_its_message(world: World) -> None:
    spec = world.submit(transform())

    assert world.ledger.cancel(spec.run_id) == "asked"
    world.work_off(spec.stage)

    manifest = assert_once_and_true(world, spec)
    assert manifest.state is State.CANCELLED
    assert manifest.failure is None
    assert [each.outcome for each in manifest.attempts] == ["cancelled"]
    assert world.engine.jobs == []
    assert exit_code(manifest.failure, manifest.state) == 1, "its work was not done"


@pytest.mark.parametrize("at", [at for at in BEFORE_THE_PLAN if at.call.split(".")[0] != "queue"], ids=str)
def test_before_the_plan_a_cancel_ends_the_run_and_nothing_is_published(world: World, at: At) -> None:
    spec = world.submit(transform())
    said: list[str] = []

    world.work_off(spec.stage, Tap().pause(at, lambda: said.append(world.ledger.cancel(spec.run_id))))

    assert said == ["asked"]
    manifest = assert_once_and_true(world, spec)
    assert manifest.state is State.CANCELLED
    assert world.landings(spec) == []


@pytest.mark.parametrize("at", [at for at in PLANNED_ON if at.call.split(".")[0] != "queue"], ids=str)
def test_from_the_plan_on_a_cancel_comes_too_late(world: World, at: At) -> None:
    spec = world.submit(transform())
    said: list[str] = []

    world.work_off(spec.stage, Tap().pause(at, lambda: said.append(world.ledger.cancel(spec.run_id))))

    assert said in (["too late"], ["over"])
    ends_well(world, spec)


def test_a_run_that_fails_while_it_is_to_be_cancelled_is_cancelled(world: World) -> None:
    """Being stopped for it looks like a failure to whoever is at work."""
    for error in (LogicError("no such column"), TransientError("killed")):
        spec = world.submit(transform())
        cancel = spec.run_id
        world.engine.script = [Turn(raises=error, meanwhile=lambda cancel=cancel: world.ledger.cancel(cancel))]  # type: ignore[misc]

        world.work_off(spec.stage)

        manifest = assert_once_and_true(world, spec)
        assert manifest.state is State.CANCELLED
        assert len(manifest.attempts) == 1


def test_a_back_off_is_no_reason_to_wait_with_it(world: World) -> None:
    spec = world.submit(transform())
    world.engine.script = [Turn(raises=TransientError("not now"))]
    world.deliver(spec.stage)

    world.ledger.cancel(spec.run_id)
    ended = world.ledger.claim(spec, worker="w")

    assert getattr(ended, "cancelled", None) is True


def test_a_crash_on_the_way_does_not_bring_the_run_back(world: World) -> None:
    spec = world.submit(transform())

    world.work_off(
        spec.stage, Tap().pause(EXECUTED, lambda: world.ledger.cancel(spec.run_id)).crash(At("before", "ledger.decide"))
    )

    assert assert_once_and_true(world, spec).state is State.CANCELLED
    assert len(world.engine.jobs) == 1


def test_the_worker_learns_of_it_by_its_heartbeat_and_stops_the_engine(world: World) -> None:
    spec = world.submit(transform())
    world.engine.script = [Turn(until_stopped=True, meanwhile=lambda: world.ledger.cancel(spec.run_id))]

    world.worker(lease_s=0.04).process(world.receive(spec.stage))

    assert assert_once_and_true(world, spec).state is State.CANCELLED


def test_a_cancelled_run_frees_its_tables(world: World) -> None:
    first, other = world.submit(incremental()), incremental()

    world.work_off(first.stage, Tap().pause(EXECUTED, lambda: world.ledger.cancel(first.run_id)))
    world.run(other)

    ends_well(world, other)
    assert world.outcomes(other) == ["succeeded"]


def test_a_run_that_is_over_cannot_be_cancelled(world: World) -> None:
    spec = transform()
    world.run(spec)

    assert world.ledger.cancel(spec.run_id) == "over"
    ends_well(world, spec)


def test_a_dead_workers_run_with_a_plan_is_rolled_forward_all_the_same(world: World) -> None:
    spec = world.submit(transform())

    with pytest.raises(Crash):
        world.deliver(spec.stage, Tap().crash(PLANNED))
    said = world.ledger.cancel(spec.run_id)
    world.work_off(spec.stage)

    assert said == "too late"
    ends_well(world, spec)


def test_a_dead_workers_run_without_a_plan_is_cancelled_by_the_next(world: World) -> None:
    spec = world.submit(transform())

    with pytest.raises(Crash):
        world.deliver(spec.stage, Tap().crash(CLAIMED))
    said = world.ledger.cancel(spec.run_id)
    world.work_off(spec.stage)

    assert said == "asked"
    assert assert_once_and_true(world, spec).state is State.CANCELLED
