"""Outputs that begin from their own state: pinned, kept from others, and never published over what they did not see."""

from __future__ import annotations

from typing import Any

import pytest

from runner.flow.waiting import Waiting
from runner.model.errors import Category, TransientError
from runner.model.manifest import NO_SNAPSHOT, State
from runner.model.spec import JobSpec
from tests.flow.moments import CLAIMED, EXECUTED, PINNED, PLANNED, ends_well
from tests.support.flow_world import (
    DELAYS,
    ROUTES,
    At,
    Tap,
    Turn,
    World,
    assert_once_and_true,
    incremental,
    transform,
)

BEFORE_THE_COMMIT = At("before", "tables.commit")


def states(world: World, spec: JobSpec) -> list[tuple[str, str]]:
    return [(pin.dataset, pin.snapshot) for pin in world.manifest(spec).pins if pin.state]


def head_of(world: World, dataset: str) -> str:
    head = world.datasets(dataset).load(dataset).head(None)
    return head.snapshot if head else NO_SNAPSHOT


def test_the_first_run_begins_from_nothing_and_the_next_from_what_it_left(world: World) -> None:
    first, second = incremental(), incremental()
    world.run(first)
    left = head_of(world, DELAYS)

    world.run(second)

    ends_well(world, first)
    manifest = ends_well(world, second)
    assert states(world, first) == [(DELAYS, NO_SNAPSHOT)]
    assert states(world, second) == [(DELAYS, left)]
    begun = [job.outputs[0].state for job in world.engine.jobs]
    assert [state.snapshot for state in begun if state] == [NO_SNAPSHOT, left]
    assert {each.pin.as_ for each in world.engine.jobs[1].inputs} == {"staging.flights"}, "a state is no input"
    (own,) = [each for each in manifest.report.inputs if each.dataset == DELAYS]
    assert (own.snapshot, own.declared, own.claimed) == (left, True, True)
    assert manifest.outputs[0].claimed_inputs == (DELAYS,)


def test_every_attempt_begins_from_the_same_state_though_the_table_has_moved(world: World) -> None:
    world.publish(DELAYS)
    pinned = head_of(world, DELAYS)
    spec = world.submit(incremental())
    world.engine.script = [Turn(raises=TransientError("not now"), meanwhile=lambda: world.publish_from_outside(DELAYS))]

    world.deliver(spec.stage)
    world.clock.advance(60)
    world.deliver(spec.stage)

    assert [job.outputs[0].state.snapshot for job in world.engine.jobs if job.outputs[0].state] == [pinned, pinned]


def test_a_plan_whose_table_somebody_else_has_written_is_void_and_the_run_begins_anew(world: World) -> None:
    world.publish(DELAYS)
    spec = incremental()

    manifest = world.run(spec, Tap().pause(PLANNED, lambda: world.publish_from_outside(DELAYS)))

    ends_well(world, spec)
    assert len(world.engine.jobs) == 2, "what was made of the old state is made again of the new"
    outside = world.datasets(DELAYS).load(DELAYS).history(None)[1]
    assert outside.tag is None
    assert states(world, spec) == [(DELAYS, outside.snapshot)]
    assert [each.outcome for each in manifest.attempts] == ["retry", "succeeded"]
    assert manifest.attempts[0].failure is not None
    assert f"{DELAYS}: expected it at snapshot" in manifest.attempts[0].failure.message


def test_a_table_that_is_never_left_alone_fails_the_run_once_its_tries_are_used_up(world: World) -> None:
    spec = incremental(max_attempts=2)
    taps = [Tap().pause(PLANNED, lambda: world.publish_from_outside(DELAYS)) for _ in range(2)]

    manifest = world.run(spec, *taps)

    assert_once_and_true(world, spec)
    assert manifest.state is State.FAILED
    assert manifest.failure is not None
    assert manifest.failure.category is Category.TRANSIENT
    assert world.landings(spec) == []
    assert manifest.plan_id is None, "nothing can be carried out any more"


def test_a_table_that_moves_after_another_has_landed_is_a_conflict_and_what_landed_is_listed(world: World) -> None:
    """Two tables are not one transaction, and this is the one case where it shows."""
    outputs = [
        {"dataset": DELAYS, "from": "main.delays", "state": "restore"},
        {"dataset": ROUTES, "from": "main.routes", "state": "restore"},
    ]
    spec = transform(outputs=outputs)

    manifest = world.run(spec, Tap().pause(At("after", "tables.commit"), lambda: world.publish_from_outside(ROUTES)))

    assert_once_and_true(world, spec)
    assert manifest.failure is not None
    assert manifest.failure.category is Category.CONFLICT
    assert "after other outputs of it had landed" in manifest.failure.message
    assert [each.dataset for each in manifest.outputs] == [DELAYS]


def test_outputs_that_begin_from_a_state_are_committed_first(world: World) -> None:
    """Only they can make a plan void, which has to be known before anything lands."""
    outputs = [
        {"dataset": ROUTES, "from": "main.routes"},
        {"dataset": DELAYS, "from": "main.delays", "state": "restore"},
    ]
    spec = transform(outputs=outputs)

    manifest = world.run(spec, Tap().crash(At("after", "tables.commit")))

    landed = {each.dataset: int(each.snapshot or 0) for each in manifest.outputs}
    assert landed[DELAYS] < landed[ROUTES]
    assert [each.dataset for each in manifest.outputs] == [ROUTES, DELAYS], "listed as the spec has them"
    ends_well(world, spec)


@pytest.mark.parametrize("at", [PINNED, EXECUTED, PLANNED, BEFORE_THE_COMMIT], ids=str)
@pytest.mark.parametrize("second", ["alone", "shared"])
def test_who_writes_a_table_waits_for_the_run_that_began_from_its_state(world: World, at: At, second: str) -> None:
    """From its pins to its end no run of ours comes between; to wait costs no try."""
    first = world.submit(incremental())
    other = incremental(max_attempts=1) if second == "alone" else transform(max_attempts=1)
    waited: list[object] = []

    def meanwhile() -> None:
        world.submit(other)
        waited.append(world.deliver(other.stage))

    world.deliver(first.stage, Tap().pause(at, meanwhile))
    world.work_off(first.stage)

    (outcome,) = waited
    assert isinstance(outcome, Waiting)
    ends_well(world, first)
    manifest = ends_well(world, other)
    assert manifest.attempts[0].outcome == "handed back"
    assert len(world.engine.jobs) == 2, "nothing was computed in vain"
    history = [each.tag.run_id for each in world.datasets(DELAYS).load(DELAYS).history(None) if each.tag]
    assert history == [other.run_id, first.run_id]


def test_a_run_that_begins_from_a_state_waits_for_those_who_write_the_table(world: World) -> None:
    first, second = world.submit(transform()), incremental()
    waited: list[object] = []

    def meanwhile() -> None:
        world.submit(second)
        waited.append(world.deliver(second.stage))

    world.deliver(first.stage, Tap().pause(EXECUTED, meanwhile))
    published = head_of(world, DELAYS)
    world.work_off(first.stage)

    assert isinstance(waited[0], Waiting)
    ends_well(world, second)
    assert states(world, second) == [(DELAYS, published)]


def test_runs_that_begin_from_no_state_do_not_wait_for_each_other(world: World) -> None:
    first, second = world.submit(transform()), transform()
    ended: list[object] = []

    def meanwhile() -> None:
        world.submit(second)
        ended.append(world.deliver(second.stage))

    world.deliver(first.stage, Tap().pause(EXECUTED, meanwhile))

    assert ended == [world.manifest(second)]


def test_the_tables_are_free_again_when_the_run_has_failed(world: World) -> None:
    first, second = incremental(max_attempts=1), incremental()
    world.engine.script = [Turn(raises=TransientError("not now"))]
    world.run(first)

    world.run(second)

    ends_well(world, second)
    assert world.outcomes(second) == ["succeeded"]


def test_a_dead_run_keeps_its_tables_until_it_is_over(world: World) -> None:
    """Its plan may yet be carried out: whoever came between would be lost, or the plan void."""
    first = world.submit(incremental())
    other = incremental()

    world.work_off(first.stage, Tap().crash(PLANNED), *[Tap()] * 0)
    world.run(other)

    ends_well(world, first)
    ends_well(world, other)


def test_a_rerun_begins_from_the_same_state_and_needs_no_table_for_itself(world: World) -> None:
    world.publish(DELAYS)
    first = incremental()
    began = head_of(world, DELAYS)
    world.run(first)
    published = head_of(world, DELAYS)
    holder = world.submit(incremental())
    ended: list[JobSpec] = []

    def meanwhile() -> None:
        outputs = [
            {"dataset": DELAYS, "from": "main.delays", "state": "restore", "snapshot": began},
            {"dataset": ROUTES, "from": "main.routes", "mode": "append"},
        ]
        again = incremental(outputs=outputs, rerun={"of": str(first.run_id), "effect": str(first.run_id)})
        world.submit(again)
        world.deliver(again.stage)
        assert world.manifest(again).state is State.SUCCEEDED
        ended.append(again)

    world.deliver(holder.stage, Tap().pause(EXECUTED, meanwhile))

    (again,) = ended
    ends_well(world, again)
    assert states(world, again) == [(DELAYS, began)]
    ends_well(world, holder)
    assert states(world, holder) == [(DELAYS, published)], "the rerun's branch has changed nothing"


def test_publishing_a_rerun_takes_the_place_of_its_own_effect_and_of_no_other(world: World) -> None:
    first = incremental()
    world.run(first)
    world.clock.advance(1)

    def again() -> JobSpec:
        outputs: list[dict[str, Any]] = [
            {"dataset": DELAYS, "from": "main.delays", "state": "restore", "snapshot": "none"},
            {"dataset": ROUTES, "from": "main.routes", "mode": "append"},
        ]
        rerun = {"of": str(first.run_id), "effect": str(first.run_id), "publish": True}
        return incremental(outputs=outputs, rerun=rerun, max_attempts=1)

    at_once, later = again(), again()
    world.run(at_once)
    world.clock.advance(1)
    world.run(incremental())
    world.run(later)

    ends_well(world, at_once)
    manifest = assert_once_and_true(world, later)
    assert manifest.state is State.FAILED
    assert manifest.failure is not None
    assert "expected it at snapshot none" in manifest.failure.message


def test_an_append_published_again_takes_the_place_of_the_first(world: World) -> None:
    first = incremental()
    world.run(first)
    world.clock.advance(1)
    other = incremental()
    world.run(other)
    world.clock.advance(1)
    outputs = [{"dataset": ROUTES, "from": "main.routes", "mode": "append"}]
    rerun = {"of": str(first.run_id), "effect": str(first.run_id), "publish": True}
    again = incremental(outputs=outputs, rerun=rerun)

    world.run(again)

    ends_well(world, again)
    assert sorted(world.contents(ROUTES, head_of(world, ROUTES))) == [
        f"{ROUTES} by execution 2",
        f"{ROUTES} by execution 3",
    ]


def test_a_state_over_its_limit_is_refused_with_its_size(world: World) -> None:
    world.publish(DELAYS, bytes_each=3 * 1024 * 1024)
    spec = incremental(resources={"state_mib": 2})

    manifest = world.run(spec)

    assert_once_and_true(world, spec)
    assert manifest.failure is not None
    assert manifest.failure.category is Category.DATA
    assert f"{DELAYS}: expected a state of at most 2 MiB, got 3.0 MiB" in manifest.failure.message
    assert world.engine.jobs == []


def test_a_worker_that_died_before_it_took_the_tables_leaves_them_to_others(world: World) -> None:
    first, other = world.submit(incremental()), incremental()

    world.work_off(first.stage, Tap().crash(CLAIMED))
    world.run(other)

    ends_well(world, first)
    ends_well(world, other)


def test_a_rerun_of_an_append_whose_rows_have_become_part_of_another_runs_is_refused(world: World) -> None:
    """Its files are gone, so nothing of it could be taken out: its rows would be there twice."""
    first = incremental()
    world.run(first)
    world.clock.advance(1)
    whole = transform(outputs=[{"dataset": ROUTES, "from": "main.routes"}])
    world.run(whole)
    world.clock.advance(1)
    outputs = [{"dataset": ROUTES, "from": "main.routes", "mode": "append"}]
    rerun = {"of": str(first.run_id), "effect": str(first.run_id), "publish": True}
    again = incremental(outputs=outputs, rerun=rerun)

    manifest = world.run(again)

    assert_once_and_true(world, again)
    assert manifest.failure is not None
    assert manifest.failure.category is Category.CONFLICT
    assert str(whole.run_id) in manifest.failure.message
    assert world.contents(ROUTES, head_of(world, ROUTES)) == [f"{ROUTES} by execution 2"]
