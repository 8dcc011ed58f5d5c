"""Several runs write one table: which of them wins, and what is said to the others. Reruns write beside it."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from runner.model.errors import Category, RateLimitError, SchemaError, TransientError
from runner.model.manifest import State
from runner.model.names import rerun_branch
from runner.model.spec import JobSpec
from tests.flow.moments import ends_well
from tests.support.flow_world import DELAYS, ROUTES, At, Tap, Turn, World, assert_once_and_true, transform

JUNE_1, JUNE_2 = "2013-06-01T00:00:00Z", "2013-06-02T00:00:00Z"


def refused(world: World, spec: JobSpec) -> str:
    manifest = assert_once_and_true(world, spec)
    assert manifest.state is State.FAILED
    assert manifest.failure is not None
    assert manifest.failure.category is Category.CONFLICT
    return manifest.failure.message


# ---------------------------------------------------------------- who wins


def test_the_later_logical_time_wins_over_the_older_that_came_first(world: World) -> None:
    older, newer = transform(logical_time=JUNE_1), transform(logical_time=JUNE_2)
    world.run(older)

    world.run(newer)

    ends_well(world, newer)
    assert world.head(DELAYS) == world.head(ROUTES) == newer.run_id


def test_an_older_logical_time_is_refused_and_says_by_whom(world: World) -> None:
    older, newer = transform(logical_time=JUNE_1), transform(logical_time=JUNE_2)
    world.run(newer)

    manifest = world.run(older)

    message = refused(world, older)
    assert f"{DELAYS}: expected no newer run's data" in message
    assert str(newer.run_id) in message
    assert "2013-06-02" in message
    assert manifest.failure is not None
    assert manifest.failure.subject == DELAYS
    assert len(manifest.attempts) == 1, "it would be refused again"
    assert world.landings(older) == []
    assert world.head(DELAYS) == world.head(ROUTES) == newer.run_id


def test_of_the_same_logical_time_the_later_submission_wins(world: World) -> None:
    first = world.submit(transform(logical_time=JUNE_1))
    world.clock.advance(1)
    second = transform(logical_time=JUNE_1)
    world.run(second)  # takes the first's delivery on its way

    ends_well(world, first)
    ends_well(world, second)
    assert world.head(DELAYS) == second.run_id


def test_an_earlier_submission_that_comes_last_is_refused(world: World) -> None:
    """Held up by its back-off, it finds the same day done by a younger request."""
    first = world.submit(transform(logical_time=JUNE_1))
    world.engine.script = [Turn(raises=RateLimitError("slow down", retry_after_s=60))]
    world.deliver(first.stage)
    world.clock.advance(1)
    second = world.submit(transform(logical_time=JUNE_1))
    world.deliver(second.stage)

    world.work_off(first.stage)

    ends_well(world, second)
    assert str(second.run_id) in refused(world, first)
    assert world.head(DELAYS) == second.run_id


@pytest.mark.parametrize("rival", [UUID(int=0), UUID(int=2**128 - 1)], ids=["lower", "higher"])
def test_a_tie_to_the_moment_is_won_by_the_higher_id_whoever_commits_last(world: World, rival: UUID) -> None:
    """Ids are drawn in order of time, so the higher one was drawn later; and one of the two has to win."""
    spec = world.submit(transform(logical_time=JUNE_1))
    submitted_at = world.ledger.submit(spec)
    world.publish(DELAYS, run_id=rival, logical_time=spec.logical_time, submitted_at=submitted_at)

    world.work_off(spec.stage)

    manifest = assert_once_and_true(world, spec)
    assert manifest.submitted_at == submitted_at
    assert manifest.state is (State.SUCCEEDED if rival < spec.run_id else State.FAILED)
    assert world.head(DELAYS) == max(rival, spec.run_id)


def test_a_writer_from_outside_is_no_run_and_is_overwritten(world: World) -> None:
    """Nothing is known of its age. What it wrote stays in the table's history."""
    spec = transform()
    world.publish_from_outside(DELAYS)

    manifest = world.run(spec)

    ends_well(world, spec)
    assert world.head(DELAYS) == spec.run_id
    assert manifest.outputs[0].base is not None


def test_commits_of_others_in_between_are_no_reason_to_give_up(world: World) -> None:
    """Every lost race is looked at again: older data is overwritten, however often somebody comes first."""
    spec = transform()
    tap = Tap()
    for nth in range(1, 6):
        tap.pause(At("before", "tables.commit", nth), lambda: world.publish(DELAYS))

    world.run(spec, tap)

    ends_well(world, spec)
    assert [call for call, _ in tap.refusals] == ["tables.commit"] * 5
    assert world.head(DELAYS) == spec.run_id


def test_a_newer_run_that_comes_between_look_and_commit_is_not_overwritten(world: World) -> None:
    spec = transform()
    newer = spec.logical_time + timedelta(days=1)
    tap = Tap().pause(At("before", "tables.commit"), lambda: world.publish(DELAYS, logical_time=newer))

    world.run(spec, tap)

    refused(world, spec)
    assert world.landings(spec) == []


# ---------------------------------------------------------------- look before failed


def test_what_landed_before_a_run_failed_is_listed_in_its_record(world: World) -> None:
    """Several tables are not one transaction: the first is there, and the record says so."""
    spec = transform()
    world.publish(ROUTES, logical_time=spec.logical_time + timedelta(days=1))

    manifest = world.run(spec)

    refused(world, spec)
    (landed,) = world.landings(spec)
    assert [(each.dataset, each.snapshot, each.rows) for each in manifest.outputs] == [(DELAYS, landed.snapshot, 1)]
    assert manifest.rows == 1
    assert manifest.plan_id == landed.tag.plan_id
    assert world.head(DELAYS) == spec.run_id


def test_a_run_that_fails_in_its_heirs_hands_still_says_what_was_executed(world: World) -> None:
    """Who rolls a plan forward has executed nothing, but the plan has the report of who did."""
    spec = transform()
    world.engine.script = [Turn(counts={"nodes": 2})]
    world.publish(ROUTES, logical_time=spec.logical_time + timedelta(days=1))

    manifest = world.run(spec, Tap().crash(At("after", "ledger.plan")))

    refused(world, spec)
    assert manifest.report.counts == {"nodes": 2}
    assert manifest.report.logic is not None
    assert len(manifest.pins) == 1
    assert [each.outcome for each in manifest.attempts] == ["lost", "failed"]


def test_columns_that_do_not_fit_fail_the_run_and_what_landed_before_is_listed(world: World) -> None:
    spec = transform()
    tap = Tap().fail(At("before", "tables.commit", 2), SchemaError("id: expected int, got string", subject=ROUTES))

    manifest = world.run(spec, tap)

    assert_once_and_true(world, spec)
    assert manifest.failure is not None
    assert manifest.failure.category is Category.SCHEMA
    assert [each.dataset for each in manifest.outputs] == [DELAYS]


def test_a_commit_whose_answer_was_lost_on_the_last_try_is_found(world: World) -> None:
    """Once planned, a transient failure is never the end: the next attempt looks, finds it landed and adopts it."""
    spec = transform(max_attempts=1)
    tap = Tap().fail(At("after", "tables.commit"), TransientError("it is not known whether the commit landed"))

    manifest = world.run(spec, tap)

    ends_well(world, spec)
    assert [each.outcome for each in manifest.attempts] == ["retry", "succeeded"]


# ---------------------------------------------------------------- reruns


def rerun_of(spec: JobSpec, **given: Any) -> JobSpec:
    rerun = {"of": str(spec.run_id), "effect": str(spec.effect), **given}
    return transform(rerun=rerun, logical_time=spec.logical_time.isoformat())


def test_a_rerun_goes_to_a_branch_and_leaves_what_is_published_alone(world: World) -> None:
    spec = transform()
    world.run(spec)

    again = rerun_of(spec)
    manifest = world.run(again)

    ends_well(world, again)
    assert world.head(DELAYS) == world.head(ROUTES) == spec.run_id
    assert [each.branch for each in manifest.outputs] == [rerun_branch(again.run_id)] * 2
    for landing in world.landings(again):
        head = world.tables.load(landing.dataset).head(rerun_branch(again.run_id))
        assert head is not None
        assert head.snapshot == landing.snapshot
        assert landing.tag.effect == spec.run_id


@pytest.mark.parametrize(("content", "comparison"), [("the same", "identical"), ("other rows", "different")])
def test_a_rerun_is_compared_output_by_output(world: World, content: str, comparison: str) -> None:
    spec = transform()
    world.engine.script = [Turn(content="the same"), Turn(content=content)]
    world.run(spec)

    manifest = world.run(rerun_of(spec))

    assert [each.comparison for each in manifest.outputs] == [comparison] * 2


def test_fingerprints_of_two_engines_are_not_compared(world: World) -> None:
    spec = transform()
    world.engine.script = [Turn(content="the same"), Turn(content="the same", engine="scripted 2")]
    world.run(spec)

    manifest = world.run(rerun_of(spec))

    assert [each.comparison for each in manifest.outputs] == ["not comparable"] * 2


def test_a_rerun_of_what_the_ledger_does_not_know_is_compared_with_nothing(world: World) -> None:
    world.run(transform())
    unknown = transform()

    manifest = world.run(rerun_of(unknown))

    assert [each.comparison for each in manifest.outputs] == [None, None]


def test_an_output_that_the_first_run_did_not_publish_is_compared_with_nothing(world: World) -> None:
    spec = transform()
    for table in (DELAYS, ROUTES):
        world.publish(table)
    world.engine.script = [Turn(leaves_out=frozenset({ROUTES}))]
    world.run(spec)

    manifest = world.run(rerun_of(spec))

    assert [each.comparison for each in manifest.outputs] == [None, None]


def test_a_rerun_is_not_refused_for_its_age(world: World) -> None:
    """It lies beside the table, so it has no rival there."""
    spec = transform(logical_time=JUNE_1)
    world.run(spec)
    newer = transform(logical_time=JUNE_2)
    world.run(newer)

    again = rerun_of(spec)
    world.run(again)

    ends_well(world, again)
    assert world.head(DELAYS) == newer.run_id


def test_a_rerun_that_publishes_replaces_what_it_repeats(world: World) -> None:
    spec = transform()
    world.engine.script = [Turn(content="the same"), Turn(content="the same")]
    world.run(spec)
    world.clock.advance(1)

    again = rerun_of(spec, publish=True)
    manifest = world.run(again)

    ends_well(world, again)
    assert world.head(DELAYS) == again.run_id
    assert [(each.branch, each.comparison) for each in manifest.outputs] == [(None, "identical")] * 2


def test_a_rerun_that_publishes_is_refused_over_newer_data(world: World) -> None:
    spec = transform(logical_time=JUNE_1)
    world.run(spec)
    newer = transform(logical_time=JUNE_2)
    world.run(newer)

    again = rerun_of(spec, publish=True)
    world.run(again)

    assert str(newer.run_id) in refused(world, again)
    assert world.head(DELAYS) == newer.run_id


@pytest.mark.parametrize("at", [At("after", "ledger.plan"), At("after", "tables.commit")], ids=str)
def test_a_reruns_branch_is_written_once_too(world: World, at: At) -> None:
    spec = transform()
    world.run(spec)
    again = rerun_of(spec)

    world.run(again, Tap().crash(at))

    ends_well(world, again)
    assert hashlib.sha256(b"execution 2").hexdigest() == world.manifest(again).outputs[0].fingerprint.hash
