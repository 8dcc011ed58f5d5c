"""A plan that can never land is given up for good: no paused worker lands it later, whatever the table does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from runner.flow import commit
from runner.flow.waiting import Waiting
from runner.model.errors import Category, SchemaError
from runner.model.manifest import Manifest, State
from runner.model.spec import JobSpec
from runner.ports import Busy, Claimed
from runner.worker import Lost
from tests.flow.moments import PLANNED, PLANNED_ON, ends_well, is_past
from tests.support.flow_world import (
    DELAYS,
    ROUTES,
    At,
    Crash,
    Tap,
    World,
    assert_once_and_true,
    incremental,
    transform,
)

REFUSED = SchemaError(f"{DELAYS}.minutes: expected int, got string", subject=DELAYS)
FIRST_COMMIT = At("before", "tables.commit", 1)


def heir_gives_up(world: World, spec: JobSpec, tap: Tap | None = None) -> Callable[[], None]:
    """The table refuses the plan while the heir tries, and takes it again afterwards, without a new snapshot."""

    def meanwhile() -> None:
        world.lease_runs_out()
        with suppress(Crash):
            world.deliver(spec.stage, (tap or Tap()).fail(FIRST_COMMIT, REFUSED))

    return meanwhile


def failed(world: World, spec: JobSpec) -> Manifest:
    manifest = assert_once_and_true(world, spec)
    assert manifest.state is State.FAILED
    assert manifest.failure is not None
    return manifest


def fences(world: World, table: str) -> int:
    return sum(each.fence for each in world.datasets(table).load(table).history(None))


BETWEEN_PLAN_AND_FIRST_COMMIT = [at for at in PLANNED_ON if not is_past(at, At("after", "tables.commit"), "transform")]


@pytest.mark.parametrize("at", BETWEEN_PLAN_AND_FIRST_COMMIT, ids=str)
def test_a_paused_worker_lands_nothing_of_a_plan_that_its_heir_gave_up(world: World, at: At) -> None:
    world.publish(DELAYS)
    world.publish(ROUTES)
    spec = world.submit(transform())

    zombie = world.deliver(spec.stage, Tap().pause(at, heir_gives_up(world, spec)))

    manifest = failed(world, spec)
    assert manifest.failure is not None
    assert manifest.failure.category is Category.SCHEMA
    assert world.landings(spec) == []
    assert isinstance(zombie, Lost)
    assert (fences(world, DELAYS), fences(world, ROUTES)) == (1, 1)


def test_without_the_fence_the_paused_worker_would_land_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above would see, were they blind."""
    monkeypatch.setattr("runner.flow.fail.fence", lambda *_: True)
    world.publish(DELAYS)
    world.publish(ROUTES)
    spec = world.submit(transform())

    world.deliver(spec.stage, Tap().pause(FIRST_COMMIT, heir_gives_up(world, spec)))

    assert world.manifest(spec).state is State.FAILED
    assert world.manifest(spec).outputs == ()
    assert len(world.landings(spec)) == 2


def test_what_had_landed_before_the_plan_was_given_up_is_listed_and_stays(world: World) -> None:
    world.publish(DELAYS)
    world.publish(ROUTES)
    spec = world.submit(transform())
    at = At("before", "tables.commit", 2)

    world.deliver(spec.stage, Tap().pause(at, heir_gives_up(world, spec)))

    manifest = failed(world, spec)
    assert [each.dataset for each in manifest.outputs] == [DELAYS]
    assert [each.dataset for each in world.landings(spec)] == [DELAYS]
    assert (fences(world, DELAYS), fences(world, ROUTES)) == (0, 1)


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_whoever_dies_at_a_fence_is_followed_by_one_who_decides(world: World, when: str, nth: int) -> None:
    world.publish(DELAYS)
    world.publish(ROUTES)
    spec = world.submit(transform())
    at = At("before" if when == "before" else "after", "tables.fence", nth)

    with suppress(Crash):
        world.deliver(spec.stage, Tap().fail(FIRST_COMMIT, REFUSED).crash(at))
    fenced = fences(world, DELAYS)
    world.work_off(spec.stage)

    if fenced:
        assert failed(world, spec).outputs == ()
        assert fences(world, DELAYS) == 1
    else:  # nobody had given it up, and the table takes it now
        ends_well(world, spec)


def test_a_fence_is_no_other_state_and_a_run_from_state_goes_on_over_it(world: World) -> None:
    first = incremental()
    world.run(first)
    world.clock.advance(1)
    given_up = world.submit(incremental())
    world.deliver(given_up.stage, Tap().fail(FIRST_COMMIT, REFUSED))
    assert failed(world, given_up).outputs == ()
    began_before = world.submit(incremental())

    world.work_off(began_before.stage)

    manifest = ends_well(world, began_before)
    assert fences(world, DELAYS) == 1
    (state,) = [each.snapshot for each in manifest.pins if each.state]
    assert state == world.manifest(first).outputs[0].snapshot, "a fence is never read: it is nobody's work"


def test_a_run_that_began_before_a_fence_of_another_is_not_void(world: World) -> None:
    """Between its pins and its commit another's fence comes: the rows are the same."""
    world.run(incremental())
    world.clock.advance(1)
    spec = incremental()

    def fence() -> None:
        from tests.support.flow_world import tag_of

        world.tables.load(DELAYS).fence(None, tag_of())

    world.run(spec, Tap().pause(At("before", "tables.commit"), fence))

    ends_well(world, spec)
    assert world.outcomes(spec) == ["succeeded"]


def test_a_conflict_leaves_no_fence(world: World) -> None:
    """What is in the way is a snapshot, and stays there."""
    spec = transform()
    world.publish(DELAYS, logical_time=spec.logical_time.replace(year=2030))

    world.run(spec)

    failure = failed(world, spec).failure
    assert failure is not None
    assert failure.category is Category.CONFLICT
    assert fences(world, DELAYS) == 0


def test_a_plan_that_a_paused_worker_landed_meanwhile_is_not_given_up(world: World) -> None:
    """The second table is not there yet, so it cannot be fenced: the paused worker would make it after the look."""
    world.publish(DELAYS)
    spec = world.submit(transform())
    with suppress(Crash):
        world.deliver(spec.stage, Tap().crash(PLANNED))
    world.lease_runs_out()

    landed: list[str] = []

    def the_first_lands_and_the_heir_is_refused() -> None:
        claimed = world.ledger.claim(spec, worker="reads the plan")
        assert isinstance(claimed, Busy), "the heir has it"
        planned = world.ledger.plan_of(spec.run_id)
        output = next(each for each in planned.outputs if each.dataset == DELAYS)
        by = Claimed(
            attempt=1,
            tries=1,
            settling=False,
            submitted_at=world.ledger.submit(spec),
            pins=None,
            plan=planned,
            cancelled=False,
        )
        landed.append(world.tables.load(DELAYS).commit(output, commit.tag_of(output, spec, by, planned)))
        raise REFUSED

    heir = world.deliver(spec.stage, Tap().pause(FIRST_COMMIT, the_first_lands_and_the_heir_is_refused))
    world.work_off(spec.stage)

    assert isinstance(heir, Waiting)
    assert heir.failure == REFUSED.failure
    assert landed == [each.snapshot for each in world.manifest(spec).outputs if each.dataset == DELAYS]
    manifest = ends_well(world, spec)
    assert [each.outcome for each in manifest.attempts] == ["lost", "retry", "succeeded"]
    assert len(world.engine.jobs) == 1
    assert fences(world, DELAYS) == 0
