"""The ledger comes back from a backup, and knows less than S3 and the tables do: nothing is done twice for that.

As the runbook has it, no worker is alive when it is restored. Attempt numbers are then given out again.
"""

from __future__ import annotations

import pytest

from runner.model.errors import Category, Failure
from runner.model.manifest import State
from runner.model.names import manifest_key
from runner.model.spec import JobSpec
from tests.flow.moments import (
    BEFORE_A_JOB,
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
from tests.support.flow_world import DELAYS, ROUTES, At, Crash, Tap, World, assert_once_and_true, transform
from tests.support.twins import MemoryLedger

COMMITTED = At("after", "tables.commit")


def deliver_again(world: World, spec: JobSpec) -> None:
    """The message may be gone with the run; orchestrators and `ledger rebuild` send the stored spec again."""
    if not world.queue.depth(spec.stage):
        world.queue.send(spec.stage, spec.to_json())
    world.work_off(spec.stage)


@pytest.mark.parametrize(("stage", "at"), CASES)
def test_a_run_that_s3_knows_to_be_over_is_put_back_whatever_the_ledger_forgot(
    world: World, stage: str, at: At
) -> None:
    spec = scripted(world, stage)
    backups: list[MemoryLedger] = []
    over = world.run(spec, Tap().pause(at, lambda: backups.append(world.backup())))
    executed, landed = len(world.engine.jobs), world.landings(spec)

    world.restore(backups[0])
    deliver_again(world, spec)

    assert ends_well(world, spec) == over
    assert len(world.engine.jobs) == executed, "nothing executes"
    assert world.landings(spec) == landed


def test_a_ledger_that_lost_everything_gets_the_record_back(world: World) -> None:
    spec = transform()
    over = world.run(spec)
    world.restore(MemoryLedger(world.clock))
    tap = Tap()

    world.queue.send(spec.stage, spec.to_json())
    world.work_off(spec.stage, tap)

    assert ends_well(world, spec) == over
    assert tap.calls == [
        *BEFORE_A_JOB,
        "ledger.claim",
        "objects.get",
        "ledger.decide",
        "objects.put_if_absent",
        "ledger.mark_recorded",
        "queue.delete",
    ]


def test_a_failed_run_is_put_back_too(world: World) -> None:
    spec = transform()
    world.publish(ROUTES, logical_time=spec.logical_time.replace(year=2020))
    over = world.run(spec)
    assert over.state is State.FAILED

    world.restore(MemoryLedger(world.clock))
    deliver_again(world, spec)

    assert assert_once_and_true(world, spec) == over


@pytest.mark.parametrize("forgotten_since", [CLAIMED, PINNED, EXECUTED], ids=str)
@pytest.mark.parametrize(
    "died", [at for at in PLANNED_ON if not is_past(at, At("after", "objects.put_if_absent"), "transform")], ids=str
)
def test_a_forgotten_plan_that_has_landed_is_a_conflict_and_is_told(
    world: World, died: At, forgotten_since: At
) -> None:
    """Its worker died undecided, and the ledger does not know the plan: the run executes again, and must not mix."""
    spec = transform()
    backups: list[MemoryLedger] = []
    tap = Tap().pause(forgotten_since, lambda: backups.append(world.backup())).crash(died)
    world.submit(spec)
    with pytest.raises(Crash):
        world.deliver(spec.stage, tap)
    landed = world.landings(spec)

    world.restore(backups[0])
    world.lease_runs_out()
    deliver_again(world, spec)

    manifest = assert_once_and_true(world, spec)
    if not landed:
        assert manifest.state is State.SUCCEEDED
        return
    assert manifest.failure is not None
    assert manifest.failure.category is Category.CONFLICT
    assert "of another plan" in manifest.failure.message
    assert world.landings(spec) == landed, "nothing more landed, and what did is as it was"
    assert [each.dataset for each in manifest.outputs] == [each.dataset for each in landed]
    assert [(each.rows, each.files, each.fingerprint.engine) for each in manifest.outputs] == [
        (None, (), "unknown") for _ in landed
    ], "of what the forgotten plan made, nothing is known but that it is there"


def test_files_of_a_forgotten_attempt_are_not_overwritten_by_the_next_of_its_number(world: World) -> None:
    """The same run, the same attempt number, the same file's name: the published table must not change under them."""
    spec = transform()
    world.submit(spec)
    empty = world.backup()
    with pytest.raises(Crash):
        world.deliver(spec.stage, Tap().crash(COMMITTED))

    world.restore(empty)
    deliver_again(world, spec)

    manifest = assert_once_and_true(world, spec)
    (landing,) = world.landings(spec)
    assert landing.tag.attempt == manifest.attempt == 1
    assert landing.contents == (f"{DELAYS} by execution 1",)
    assert len(world.engine.jobs) == 2


@pytest.mark.parametrize(
    ("stage", "datasets"),
    [("transform", [DELAYS, ROUTES]), ("load", ["staging.flights", "failed/staging/flights"])],
)
def test_a_forgotten_decision_that_was_not_recorded_is_a_conflict(
    world: World, stage: str, datasets: list[str]
) -> None:
    """Nobody can tell any more what was decided; the datasets have it all, and the record says that much."""
    spec = scripted(world, stage)
    world.submit(spec)
    empty = world.backup()
    with pytest.raises(Crash):
        world.deliver(spec.stage, Tap().crash(DECIDED))

    world.restore(empty)
    deliver_again(world, spec)

    manifest = assert_once_and_true(world, spec)
    assert manifest.state is State.FAILED
    assert [each.dataset for each in manifest.outputs] == datasets
    assert [each.quarantine for each in manifest.outputs] == [each.startswith("failed/") for each in datasets]
    assert world.head(datasets[0]) == spec.run_id


def test_another_spec_under_a_forgotten_runs_id_is_refused(world: World) -> None:
    """The ledger would take it for new; S3 remembers whose id it is, and keeps that record."""
    spec = transform()
    over = world.run(spec)
    world.restore(MemoryLedger(world.clock))
    other = transform(run_id=str(spec.run_id), params={"another": "request"})

    world.submit(other)
    world.work_off(other.stage)

    assert world.recorded(spec) == over
    assert len(world.engine.jobs) == 1
    assert {each.tag.plan_id for each in world.landings(spec)} == {over.plan_id}
    (letter,) = world.queue.dead_letters(spec.stage)
    assert letter.body == other.to_json()
    failure = world.manifest(other).failure
    assert failure is not None
    assert failure.category is Category.CONFLICT


@pytest.mark.parametrize("body", [b"", b'{"manifest_version": 1, "run_id"', b"\xff\xfe"], ids=["empty", "cut", "noise"])
def test_a_record_that_comes_damaged_is_asked_for_again(world: World, body: bytes) -> None:
    """An answer cut off on its way must not decide a run."""
    spec = transform()
    over = world.run(spec)
    whole = over.to_json().encode()
    world.restore(MemoryLedger(world.clock))
    key = manifest_key(spec.run_id)
    world.queue.send(spec.stage, spec.to_json())

    world.objects.put(key, body)
    world.deliver(spec.stage)
    world.objects.put(key, whole)
    world.work_off(spec.stage)

    assert ends_well(world, spec) == over
    assert world.outcomes(spec) == ["retry", "succeeded"]
    assert len(world.engine.jobs) == 1


def test_a_record_that_stays_damaged_is_not_overwritten(world: World) -> None:
    spec = transform()
    world.run(spec)
    world.restore(MemoryLedger(world.clock))
    world.objects.put(manifest_key(spec.run_id), b"{")
    world.queue.send(spec.stage, spec.to_json())

    ended = world.work_off(spec.stage)

    assert isinstance(ended[-1], Failure)
    assert world.objects.get(manifest_key(spec.run_id)) == b"{"
    (letter,) = world.queue.dead_letters(spec.stage)
    assert "another that is there already" in letter.reason
    assert len(world.engine.jobs) == 1
