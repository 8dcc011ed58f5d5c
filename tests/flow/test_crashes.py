"""A worker may die, or a service go away, between any two calls: the next delivery finds what is left and ends it.

The moments are not written down here: they are those of an undisturbed run, before and after the effect of every call.
"""

from __future__ import annotations

import pytest

from runner.flow.waiting import Waiting
from runner.model.errors import InfrastructureError, TransientError
from runner.ports import LEASE_S
from runner.worker import OUTAGE_PAUSE_S, Lost
from tests.flow.moments import (
    CASES,
    CLAIMED,
    DECIDED,
    EXECUTED,
    MOMENTS,
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


@pytest.mark.parametrize("at", MOMENTS["transform"], ids=str)
def test_two_crashes_at_the_same_point_are_made_good(world: World, at: At) -> None:
    """If the second worker's way leads there."""
    spec = transform()

    world.run(spec, Tap().crash(at), Tap().crash(at))

    manifest = ends_well(world, spec)
    assert len(manifest.attempts) <= 3
    assert len(world.engine.jobs) <= 3


@pytest.mark.parametrize(
    "second", ["queue.receive", "tables.load", "tables.commit", "ledger.decide", "objects.put_if_absent"]
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


def test_an_outage_of_the_queue_leaves_the_message_where_it_is(world: World) -> None:
    """The run ends all the same. The message comes back by itself, finds it over, and goes."""
    spec = world.submit(transform())

    with pytest.raises(InfrastructureError, match=r"queue\.delete"):
        world.deliver(spec.stage, Tap(away={"queue.hide", "queue.delete"}))
    assert world.recorded(spec) == world.manifest(spec)
    assert world.queue.depth(spec.stage) == 1

    world.work_off(spec.stage)
    assert [each.outcome for each in ends_well(world, spec).attempts] == ["succeeded"]


@pytest.mark.parametrize("service", OUTAGES)
@pytest.mark.parametrize("at", PLANNED_ON, ids=str)
def test_once_planned_a_run_outlasts_any_outage_however_many_workers_meet_it(
    world: World, at: At, service: str
) -> None:
    spec = transform(max_attempts=1)

    world.run(spec, *[Tap().lose(at, *OUTAGES[service]) for _ in range(4)])

    ends_well(world, spec)
    assert len(world.engine.jobs) == 1


# ---------------------------------------------------------------- Postgres away at the one moment that decides


def test_postgres_away_at_decide_leaves_all_to_the_next_attempt_which_executes_nothing(world: World) -> None:
    """Both tables are published, nothing is decided, and the message is the only one who knows: so it stays."""
    spec = world.submit(transform(max_attempts=1))
    began = world.clock.now()

    with pytest.raises(InfrastructureError, match=r"ledger\.release"):  # to give the run back needs the ledger too
        world.deliver(spec.stage, Tap().lose(At("before", "ledger.decide"), "ledger"))

    assert len(world.landings(spec)) == 2
    assert world.outcomes(spec) == ["running"]
    assert world.recorded(spec) is None

    with pytest.raises(InfrastructureError, match=r"ledger\.now"):
        world.deliver(spec.stage, Tap(away={"ledger"}))
    assert world.clock.now() == began, "no message is taken while the ledger is away"

    back = world.deliver(spec.stage)
    assert back == Waiting(seconds=LEASE_S - OUTAGE_PAUSE_S, failure=None), "the first attempt's lease still holds"

    world.deliver(spec.stage)
    assert (world.clock.now() - began).total_seconds() == LEASE_S
    assert [each.outcome for each in ends_well(world, spec).attempts] == ["lost", "succeeded"]
    assert {each.tag.attempt for each in world.landings(spec)} == {1}
    assert len(world.engine.jobs) == 1


def test_postgres_away_right_after_it_decided_leaves_the_record_to_the_next_delivery(world: World) -> None:
    """The answer was lost, the decision was not: it is found, recorded, and nothing is tried again."""
    spec = world.submit(transform())

    with pytest.raises(InfrastructureError, match=r"ledger\.decide|ledger\.release"):
        world.deliver(spec.stage, Tap().lose(At("after", "ledger.decide"), "ledger"))
    decided = world.manifest(spec)
    assert world.recorded(spec) is None

    world.work_off(spec.stage)
    assert ends_well(world, spec) == decided
    assert world.outcomes(spec) == ["succeeded"]


def test_a_decision_whose_answer_alone_was_lost_is_never_taken_back(world: World) -> None:
    """The worker takes it for a failure and gives the run back; the ledger knows better."""
    spec = world.submit(transform())

    told = world.deliver(spec.stage, Tap().fail(At("after", "ledger.decide"), TransientError("no answer")))

    assert isinstance(told, Lost)
    assert world.queue.depth(spec.stage) == 1
    world.work_off(spec.stage)
    assert [each.outcome for each in ends_well(world, spec).attempts] == ["succeeded"]
