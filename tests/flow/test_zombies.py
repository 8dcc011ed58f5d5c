"""A worker that was thought dead wakes up, at any moment, when others have carried its run to the end: it harms nobody.

Where it is paused, its lease runs out and the message shows again; only when everything is over does it go on.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from uuid import uuid4

import pytest

from runner.model.errors import Category, Failure
from runner.model.manifest import Manifest, Plan, Report, State
from runner.ports import LostLease, LostRace
from runner.worker import Lost, Outcome
from tests.flow.moments import (
    BEFORE_THE_PLAN,
    CASES,
    CLAIMED,
    DECIDED,
    EXECUTED,
    PINNED,
    PLANNED_ON,
    ends_well,
    is_past,
    scripted,
)
from tests.support.flow_world import (
    DELAYS,
    ROUTES,
    At,
    Crash,
    Tap,
    Turn,
    World,
    assert_once_and_true,
    transform,
)


@pytest.mark.parametrize(("stage", "at"), CASES)
def test_a_worker_that_wakes_up_after_the_end_changes_nothing(world: World, stage: str, at: At) -> None:
    spec = scripted(world, stage)
    over: list[object] = []

    def meanwhile() -> None:
        world.elsewhere(spec.stage)()
        over.extend(
            [
                world.manifest(spec),
                world.recorded(spec),
                world.landings(spec),
                world.head(spec.outputs[0].dataset),
            ]
        )

    world.submit(spec)
    zombie = world.deliver(spec.stage, Tap().pause(at, meanwhile))

    ends_well(world, spec)
    assert [
        world.manifest(spec),
        world.recorded(spec),
        world.landings(spec),
        world.head(spec.outputs[0].dataset),
    ] == over
    claimed, wrote = is_past(at, CLAIMED, stage), is_past(at, DECIDED, stage)
    if claimed and not wrote:
        assert isinstance(zombie, Lost)
    else:  # it had not begun, or was through: what it tells is the record's own word
        assert zombie == world.manifest(spec)


@pytest.mark.parametrize("at", PLANNED_ON, ids=str)
@pytest.mark.parametrize("died", ["before-tables.commit", "after-tables.commit", "after-tables.commit-2", "none"])
def test_a_plan_is_carried_out_once_by_a_zombie_and_its_heirs_together(world: World, at: At, died: str) -> None:
    """The heir dies half way, the zombie goes on, and a third comes: three workers, one plan, one set of snapshots."""
    spec = transform()
    when, _, call = died.partition("-")
    call, _, nth = call.partition("-")
    heir = Tap() if died == "none" else Tap().crash(At("before" if when == "before" else "after", call, int(nth or 1)))

    def half_way() -> None:
        world.lease_runs_out()
        with suppress(Crash):
            world.deliver(spec.stage, heir)

    world.run(spec, Tap().pause(at, half_way))

    ends_well(world, spec)
    assert len(world.engine.jobs) == 1


@pytest.mark.parametrize("at", BEFORE_THE_PLAN, ids=str)
def test_before_the_plan_each_executes_for_itself_and_one_result_is_published(world: World, at: At) -> None:
    spec = transform()

    world.run(spec, Tap().pause(at, world.elsewhere(spec.stage)))

    manifest = ends_well(world, spec)
    contents = {content.split(" by ")[1] for each in world.landings(spec) for content in each.contents}
    claimed, pinned, ran_first = (is_past(at, point, "transform") for point in (CLAIMED, PINNED, EXECUTED))
    assert contents == {"execution 2" if ran_first else "execution 1"}
    assert {each.tag.attempt for each in world.landings(spec)} == {manifest.attempt} == {2 if claimed else 1}
    assert len(world.engine.jobs) == 1 + pinned, "past its last write, it computes in vain until the next"


def test_an_attempts_late_plan_is_refused_and_its_files_are_nobodys(world: World) -> None:
    spec = transform()
    world.engine.script = [
        Turn(content="the zombie", meanwhile=world.elsewhere(spec.stage)),
        Turn(content="its heir"),
    ]

    world.submit(spec)
    zombie = world.deliver(spec.stage)

    assert isinstance(zombie, Lost)
    ends_well(world, spec)
    assert [each.contents for each in world.landings(spec)] == [
        (f"{DELAYS} by its heir",),
        (f"{ROUTES} by its heir",),
    ]
    uploaded = [world.objects.get(key) for key in world.objects.list("tables/marts/")]
    assert uploaded.count(f"{DELAYS} by the zombie".encode()) == 1, "uploaded beside the heir's files, not over them"
    assert world.outcomes(spec) == ["lost", "succeeded"]


def test_the_plan_that_the_ledger_has_is_the_one_carried_out(world: World) -> None:
    """A plan is stored once: where a request was sent twice, the first to arrive counts, whatever the second says."""
    spec = world.submit(transform())
    said = Failure(category=Category.DATA, message="the first to arrive")
    first = Plan(plan_id=uuid4(), run_id=spec.run_id, attempt=1, outputs=(), report=Report(), failure=said)
    tap = Tap().pause(At("before", "ledger.plan"), lambda: world.ledger.plan(spec.run_id, 1, first))

    world.deliver(spec.stage, tap)

    manifest = assert_once_and_true(world, spec)
    assert (manifest.plan_id, manifest.failure, manifest.outputs) == (first.plan_id, said, ())


def test_a_zombies_commit_on_what_it_loaded_before_its_heirs_lands_nothing(world: World) -> None:
    """It had looked, and seen nothing of its run. The compare-and-swap tells it to look again, and it adopts."""
    spec = transform()
    tap = Tap().pause(At("before", "tables.commit"), world.elsewhere(spec.stage))

    world.submit(spec)
    zombie = world.deliver(spec.stage, tap)

    # Both tables were loaded when it made its plan.
    assert tap.refusals == [*[("tables.commit", LostRace)] * 2, ("ledger.decide", LostLease)]
    assert isinstance(zombie, Lost)
    ends_well(world, spec)


def test_a_zombie_finds_its_plans_snapshots_beneath_a_newer_runs(world: World) -> None:
    spec = transform()

    def meanwhile() -> None:
        world.elsewhere(spec.stage)()
        for table in (DELAYS, ROUTES):
            world.publish(table, logical_time=spec.logical_time + timedelta(days=1))

    world.submit(spec)
    world.deliver(spec.stage, Tap().pause(At("after", "ledger.plan"), meanwhile))

    assert len(world.landings(spec)) == 2
    assert world.head(DELAYS) != spec.run_id
    ends_well(world, spec)


def test_a_run_that_was_decided_failed_is_not_published_by_its_zombie(world: World) -> None:
    """The heir met a newer run's data and gave up; the zombie meets it too."""
    spec = transform()
    ended: list[Outcome | type[BaseException]] = []

    def meanwhile() -> None:
        world.publish(DELAYS, logical_time=spec.logical_time + timedelta(days=1))
        world.lease_runs_out()
        ended.extend(world.work_off(spec.stage))

    world.submit(spec)
    zombie = world.deliver(spec.stage, Tap().pause(At("before", "tables.commit"), meanwhile))

    manifest = assert_once_and_true(world, spec)
    assert isinstance(zombie, Lost)
    assert manifest.state is State.FAILED
    assert manifest.failure is not None
    assert manifest.failure.category is Category.CONFLICT
    assert world.landings(spec) == []
    assert isinstance(ended[-1], Manifest)


def test_a_zombies_failure_does_not_become_the_runs(world: World) -> None:
    spec = transform()
    world.engine.script = [Turn(meanwhile=world.elsewhere(spec.stage), raises=RuntimeError("the disk is full"))]

    world.submit(spec)
    zombie = world.deliver(spec.stage)

    assert isinstance(zombie, Lost)
    assert ends_well(world, spec).attempts[0].outcome == "lost"
    assert world.outcomes(spec) == ["lost", "succeeded"]
