"""What the ledger promises, told of the twin and of Postgres alike; then what is Postgres's own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import combinations
from random import Random
from threading import Barrier, Event
from typing import Any, Literal, LiteralString, Protocol
from uuid import UUID, uuid4

import pytest

from runner.adapters.pg_ledger import QUERIES, PgLedger
from runner.model.errors import Category, ConflictError, Failure, InfrastructureError, SpecError
from runner.model.lineage import Edge
from runner.model.manifest import (
    NO_SNAPSHOT,
    AttemptRecord,
    FileRecord,
    Fingerprint,
    InputRecord,
    LogicRecord,
    Manifest,
    OutputRecord,
    Pin,
    Plan,
    Report,
    SourceRecord,
    State,
    Step,
)
from runner.model.names import rerun_branch
from runner.model.spec import (
    DbtStep,
    DbtWork,
    ExtractWork,
    Input,
    JobSpec,
    Logic,
    Output,
    Rerun,
    Source,
    Stage,
)
from runner.ports import LEASE_S, Busy, CancelWanted, Claimed, Decided, Ledger, LostLease
from tests.support.twins import MemoryLedger, TestClock

COMMIT = "0123456789abcdef0123456789abcdef01234567"
T0 = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
"""When runs here are decided, with the microseconds that Postgres keeps."""
FAILURE = Failure(
    category=Category.RATE_LIMIT,
    message="portal: expected 200, got 429 “slow down”",
    hint="wait",
    subject="flights",
    retry_after_s=1.5,
)


class Rig(Protocol):
    ledger: Ledger

    def another(self) -> Ledger:
        """The same ledger, as another worker holds it."""

    def claim_and_die(self, spec: JobSpec) -> Claimed:
        """A worker takes the run, and its lease runs out."""

    def wait(self, seconds: float) -> None: ...


class MemoryRig:
    def __init__(self) -> None:
        self._clock = TestClock()
        self.ledger: Ledger = MemoryLedger(self._clock)

    def another(self) -> Ledger:
        return self.ledger

    def claim_and_die(self, spec: JobSpec) -> Claimed:
        claimed = claim(self.ledger, spec)
        self._clock.advance(LEASE_S)
        return claimed

    def wait(self, seconds: float) -> None:
        self._clock.advance(seconds)


class PgRig:
    """Leases run by the database's clock, which no test can set: one that is to run out is a short one."""

    short_lease_s = 0.05

    def __init__(self, url: str) -> None:
        self._url = url
        self._open: list[PgLedger] = []
        self.ledger: Ledger = self.another()

    def another(self, *, lease_s: float = LEASE_S) -> Ledger:
        ledger = PgLedger(self._url, lease_s=lease_s)
        self._open.append(ledger)
        return ledger

    def claim_and_die(self, spec: JobSpec) -> Claimed:
        claimed = claim(self.another(lease_s=self.short_lease_s), spec)
        self.wait(self.short_lease_s)
        return claimed

    def wait(self, seconds: float) -> None:
        time.sleep(seconds + 0.01)

    def close(self) -> None:
        for ledger in self._open:
            ledger.close()


@pytest.fixture(scope="module")
def embedded_url(ledger_url: str) -> str:
    return _migrated(ledger_url)


@pytest.fixture(scope="module")
def postgres_17_url() -> Iterator[str]:
    """The release that deployments run, from its image; the embedded one is newer."""
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.core.config import testcontainers_config

    # The reaper is an image of its own, which a machine without a registry cannot pull; we remove what we start.
    testcontainers_config.ryuk_disabled = True
    with PostgresContainer("postgres:17", driver=None) as postgres:
        yield _migrated(postgres.get_connection_url())


def _migrated(url: str) -> str:
    ledger = PgLedger(url)
    ledger.migrate()
    assert ledger.pending_migrations() == []
    ledger.close()
    return url


@pytest.fixture(
    params=[
        "memory",
        "embedded",
        pytest.param("postgres_17", marks=pytest.mark.docker),
    ]
)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if request.param == "memory":
        yield MemoryRig()
        return
    made = PgRig(request.getfixturevalue(f"{request.param}_url"))
    yield made
    made.close()


@pytest.fixture
def ledger(rig: Rig) -> Ledger:
    return rig.ledger


# ---------------------------------------------------------------- what the tests are about


def spec_of(
    *inputs: str,
    output: str = "marts.delays",
    run_id: UUID | None = None,
    pipeline: str = "flights",
    max_attempts: int = 3,
    pipeline_run: UUID | None = None,
    rerun: Rerun | None = None,
) -> JobSpec:
    return JobSpec(
        spec_version=1,
        run_id=run_id or uuid4(),
        pipeline=pipeline,
        task="marts",
        pipeline_run=pipeline_run,
        stage=Stage.TRANSFORM,
        logic=Logic(repo="https://example.org/logic.git", commit=COMMIT),
        work=DbtWork(kind="dbt", steps=(DbtStep(command="build"),), vars={"größe": 1.5}),
        inputs=tuple(Input(dataset=name) for name in inputs),
        outputs=(Output(dataset=output, from_="main.delays"),),
        logical_time=datetime(2013, 6, 1, tzinfo=UTC),
        max_attempts=max_attempts,
        rerun=rerun,
    )


def extract_spec(**fields: UUID | None) -> JobSpec:
    return JobSpec(
        spec_version=1,
        run_id=fields.get("run_id") or uuid4(),
        pipeline="flights",
        task="extract",
        pipeline_run=fields.get("pipeline_run"),
        stage=Stage.EXTRACT,
        logic=Logic(repo="https://example.org/logic.git", commit=COMMIT),
        work=ExtractWork(kind="extract", sources=(Source(name="flights", url="https://example.org/f.csv"),)),
        outputs=(Output(dataset="landing/flights", from_="flights"),),
        logical_time=datetime(2013, 6, 1, tzinfo=UTC),
    )


def pin_of(dataset: str, snapshot: str) -> Pin:
    return Pin(as_=dataset, dataset=dataset, snapshot=snapshot, metadata=f"s3://lake/{dataset}/{snapshot}.json")


def output_of(
    dataset: str,
    snapshot: str | None,
    *,
    claimed: Sequence[str] | None = (),
    branch: str | None = None,
    quarantine: bool = False,
    rows: int = 10,
) -> OutputRecord:
    source = SourceRecord(
        url="https://example.org/f.csv", etag='"x"', last_modified=None, content_type="text/csv", fetched_at=T0
    )
    return OutputRecord(
        dataset=dataset,
        from_="main.delays",
        mode="replace",
        branch=branch,
        base=None,
        files=(FileRecord(uri=f"s3://lake/{dataset}/a.parquet", bytes=2**40, rows=rows, sha256="ab", source=source),),
        rows=rows,
        columns=None,
        fingerprint=Fingerprint(rows=rows, hash="340282366920938463463374607431768211455", engine="duckdb 1.5.5"),
        claimed_inputs=None if claimed is None else tuple(claimed),
        quarantine=quarantine,
        snapshot=snapshot,
    )


def plan_of(spec: JobSpec, *, attempt: int = 1) -> Plan:
    return Plan(
        plan_id=uuid4(),
        run_id=spec.run_id,
        attempt=attempt,
        outputs=(output_of("marts.delays", None, claimed=None),),
        report=Report(
            logic=LogicRecord(
                repo=spec.logic.repo, commit=COMMIT, path=".", tree=COMMIT, origin="repository", committed_at=T0
            ),
            steps=(Step(name="model.flights.delays", kind="model", status="success", seconds=0.1, rows=10),),
            counts={"rows_read": 10},
        ),
        failure=FAILURE,
    )


def manifest_of(
    spec: JobSpec,
    *outputs: OutputRecord,
    inputs: Sequence[InputRecord] = (),
    state: Literal[State.SUCCEEDED, State.FAILED, State.CANCELLED] = State.SUCCEEDED,
    failure: Failure | None = None,
    attempt: int = 1,
    attempts: tuple[AttemptRecord, ...] = (),
    decided_at: datetime = T0,
) -> Manifest:
    return Manifest(
        run_id=spec.run_id,
        effect=spec.effect,
        state=state,
        failure=failure,
        spec=spec,
        spec_sha256=spec.digest(),
        plan_id=uuid4(),
        attempt=attempt,
        submitted_at=T0 - timedelta(minutes=5),
        decided_at=decided_at,
        attempts=attempts,
        pins=tuple(pin_of(each.dataset, each.snapshot) for each in inputs if each.snapshot),
        outputs=outputs,
        report=Report(inputs=tuple(inputs)),
    )


def read(dataset: str, snapshot: str | None, *, claimed: bool | None = True, declared: bool = True) -> InputRecord:
    return InputRecord(
        dataset=dataset, as_=dataset, snapshot=snapshot, declared=declared, claimed=claimed, observed="rows"
    )


def claim(ledger: Ledger, spec: JobSpec, worker: str = "host:1") -> Claimed:
    claimed = ledger.claim(spec, worker=worker)
    assert isinstance(claimed, Claimed), f"expected the run to be free, got {claimed}"
    return claimed


def decided(ledger: Ledger, spec: JobSpec, *outputs: OutputRecord, **fields: object) -> Manifest:
    """A run that came to its end."""
    attempt = claim(ledger, spec).attempt
    manifest = manifest_of(spec, *outputs, **fields)  # type: ignore[arg-type]  # as given to manifest_of
    ledger.decide(manifest, attempt=attempt)
    return manifest


# ---------------------------------------------------------------- submit


def test_a_submitted_run_is_queued(ledger: Ledger) -> None:
    spec = spec_of("staging.flights", max_attempts=2, pipeline_run=uuid4())

    submitted_at = ledger.submit(spec)

    row = ledger.run(spec.run_id)
    assert row is not None
    assert (row.state, row.attempt, row.max_attempts) == (State.QUEUED, 0, 2)
    assert (row.started_at, row.decided_at, row.failure, row.rows) == (None, None, None, None)
    assert (row.submitted_at, row.logical_time) == (submitted_at, spec.logical_time)
    assert (row.effect, row.pipeline_run, row.commit) == (spec.run_id, spec.pipeline_run, COMMIT)
    assert (row.pipeline, row.task, row.stage) == ("flights", "marts", Stage.TRANSFORM)
    assert ledger.spec(spec.run_id) == spec


def test_the_same_spec_again_changes_nothing(rig: Rig) -> None:
    spec = spec_of()
    first = rig.ledger.submit(spec)
    rig.wait(0.01)

    assert rig.ledger.submit(spec) == first
    assert len(rig.ledger.attempts(spec.run_id)) == 0


def test_another_spec_under_the_same_run_id_is_refused(ledger: Ledger) -> None:
    spec = spec_of()
    ledger.submit(spec)
    other = spec_of("staging.flights", run_id=spec.run_id)

    with pytest.raises(ConflictError, match=str(spec.run_id)):
        ledger.submit(other)
    with pytest.raises(ConflictError, match=str(spec.run_id)):
        ledger.claim(other, worker="host:1")

    assert ledger.spec(spec.run_id) == spec


def test_the_same_spec_from_another_release_is_the_same(embedded_url: str) -> None:
    """A release that knows more fields writes a spec with another digest; what it says is what counts."""
    import psycopg

    spec, ledger = spec_of(), PgLedger(embedded_url)
    ledger.submit(spec)
    with psycopg.connect(embedded_url, autocommit=True) as connection:
        connection.execute("UPDATE ledger.runs SET spec_sha256 = 'older' WHERE run_id = %s", (spec.run_id,))

    ledger.submit(spec)
    assert isinstance(ledger.claim(spec, worker="host:1"), Claimed)
    ledger.close()


def test_what_nobody_submitted_is_not_there(ledger: Ledger) -> None:
    unknown = uuid4()

    assert ledger.spec(unknown) is None
    assert ledger.run(unknown) is None
    assert ledger.manifest(unknown) is None
    assert ledger.attempts(unknown) == ()


# ---------------------------------------------------------------- claim


def test_a_claim_takes_the_run(ledger: Ledger) -> None:
    spec = spec_of()
    submitted_at = ledger.submit(spec)

    claimed = ledger.claim(spec, worker="host:7")

    assert claimed == Claimed(
        attempt=1, tries=1, settling=False, submitted_at=submitted_at, pins=None, plan=None, cancelled=False
    )
    row = ledger.run(spec.run_id)
    assert row is not None
    assert (row.state, row.attempt) == (State.RUNNING, 1)
    (attempt,) = ledger.attempts(spec.run_id)
    assert (attempt.attempt, attempt.worker, attempt.outcome) == (1, "host:7", "running")
    assert (attempt.ended_at, attempt.failure) == (None, None)
    assert row.started_at is not None
    assert row.started_at >= submitted_at


def test_a_claim_of_a_run_that_nobody_submitted_submits_it(ledger: Ledger) -> None:
    spec = spec_of("staging.flights")

    assert claim(ledger, spec).attempt == 1
    assert ledger.spec(spec.run_id) == spec


def test_a_claimed_run_is_busy_for_as_long_as_its_lease(rig: Rig) -> None:
    spec = spec_of()
    claim(rig.ledger, spec)

    answer = rig.another().claim(spec, worker="host:2")

    assert isinstance(answer, Busy)
    assert LEASE_S - 30 < answer.seconds <= LEASE_S
    assert len(rig.ledger.attempts(spec.run_id)) == 1


def test_a_heartbeat_renews_the_lease(rig: Rig) -> None:
    spec = spec_of()
    claimed = claim(rig.ledger, spec)
    rig.wait(0.2)

    for _ in range(20):
        before = rig.ledger.claim(spec, worker="host:2")
        rig.ledger.heartbeat(spec.run_id, claimed.attempt)
        after = rig.ledger.claim(spec, worker="host:2")
        assert isinstance(before, Busy)
        assert isinstance(after, Busy)
        if after.seconds > before.seconds:
            return
        rig.wait(0.2)  # the machine took longer for the asking than the wait was
    pytest.fail("no heartbeat renewed the lease")


def test_a_run_whose_lease_ran_out_is_the_next_attempts(rig: Rig) -> None:
    spec = spec_of()
    rig.claim_and_die(spec)

    claimed = claim(rig.ledger, spec, worker="host:2")

    assert (claimed.attempt, claimed.tries, claimed.settling) == (2, 2, False)
    lost, running = rig.ledger.attempts(spec.run_id)
    assert (lost.attempt, lost.outcome) == (1, "lost")
    assert lost.ended_at is not None
    assert (running.attempt, running.outcome, running.worker) == (2, "running", "host:2")


def test_a_lease_that_ran_out_is_still_its_holders_until_somebody_claims(rig: Rig) -> None:
    spec = spec_of()
    claimed = rig.claim_and_die(spec)

    rig.ledger.heartbeat(spec.run_id, claimed.attempt)

    assert isinstance(rig.ledger.claim(spec, worker="host:2"), Busy)


def test_a_run_started_when_it_was_first_claimed(rig: Rig) -> None:
    spec = spec_of()
    rig.claim_and_die(spec)
    first = rig.ledger.run(spec.run_id)
    claim(rig.ledger, spec)
    second = rig.ledger.run(spec.run_id)

    assert first is not None
    assert second is not None
    assert first.started_at == second.started_at


def test_of_many_workers_that_claim_at_once_one_gets_the_run(rig: Rig) -> None:
    spec = spec_of()
    workers = [rig.another() for _ in range(6)]
    with ThreadPoolExecutor(max_workers=6) as threads:
        answers = list(threads.map(lambda ledger: ledger.claim(spec, worker="host:1"), workers))

    assert sorted(type(each).__name__ for each in answers) == ["Busy"] * 5 + ["Claimed"]


def test_the_delivery_that_finds_the_tries_used_up_takes_one_more_number_to_settle(rig: Rig) -> None:
    spec = spec_of(max_attempts=2)
    rig.claim_and_die(spec)
    assert not rig.claim_and_die(spec).settling

    settling = rig.claim_and_die(spec)
    again = claim(rig.ledger, spec)

    assert (settling.attempt, settling.settling) == (3, True)
    # Somebody must settle it: a settling attempt that dies too is followed by another.
    assert (again.attempt, again.settling) == (4, True)


# ---------------------------------------------------------------- pins and plan


def test_pins_are_in_force_for_every_later_attempt(rig: Rig) -> None:
    spec = spec_of("staging.flights", "staging.planes")
    pins = (pin_of("staging.flights", "9007199254740993"), pin_of("staging.planes", "2"))
    first = rig.claim_and_die(spec)
    assert rig.ledger.pin(spec.run_id, first.attempt, pins) == pins

    second = claim(rig.ledger, spec)

    assert second.pins == pins
    assert rig.ledger.pin(spec.run_id, second.attempt, [pin_of("staging.flights", "4")]) == pins


def test_pinning_nothing_is_remembered_as_that(rig: Rig) -> None:
    spec = spec_of()
    first = rig.claim_and_die(spec)

    assert rig.ledger.pin(spec.run_id, first.attempt, ()) == ()
    second = claim(rig.ledger, spec)

    assert second.pins == ()
    assert rig.ledger.pin(spec.run_id, second.attempt, [pin_of("staging.flights", "4")]) == ()


def test_an_outputs_state_is_pinned_as_such_and_as_nothing_where_there_was_nothing(rig: Rig) -> None:
    spec = spec_of("staging.flights")
    nothing = Pin(as_="state:marts.delays", dataset="marts.delays", snapshot=NO_SNAPSHOT, metadata="", state=True)
    something = pin_of("marts.planes", "7").model_copy(update={"as_": "state:marts.planes", "state": True})
    pins = (pin_of("marts.planes", "6"), nothing, something)
    first = rig.claim_and_die(spec)
    assert rig.ledger.pin(spec.run_id, first.attempt, pins) == pins

    second = claim(rig.ledger, spec)

    assert second.pins == pins
    assert [each.state for each in second.pins] == [False, True, True]


def test_the_first_plan_stays_in_force(rig: Rig) -> None:
    spec = spec_of()
    first = rig.claim_and_die(spec)
    plan = plan_of(spec)
    assert rig.ledger.plan(spec.run_id, first.attempt, plan) == plan

    second = claim(rig.ledger, spec)

    assert second.plan == plan
    assert rig.ledger.plan(spec.run_id, second.attempt, plan_of(spec, attempt=2)) == plan


# ---------------------------------------------------------------- release


def test_a_run_released_for_a_retry_waits_and_then_is_the_next_attempts(rig: Rig) -> None:
    spec = spec_of()
    claimed = claim(rig.ledger, spec)

    rig.ledger.release(spec.run_id, claimed.attempt, outcome="retry", failure=FAILURE, wait_s=30)

    answer = rig.ledger.claim(spec, worker="host:2")
    assert isinstance(answer, Busy)
    assert 0 < answer.seconds <= 30
    row = rig.ledger.run(spec.run_id)
    assert row is not None
    assert (row.state, row.attempt) == (State.QUEUED, 1)
    (attempt,) = rig.ledger.attempts(spec.run_id)
    assert (attempt.outcome, attempt.failure) == ("retry", FAILURE)
    assert attempt.ended_at is not None


def test_when_the_wait_is_over_a_released_run_can_be_claimed(rig: Rig) -> None:
    spec = spec_of()
    claimed = claim(rig.ledger, spec)
    rig.ledger.release(spec.run_id, claimed.attempt, outcome="retry", failure=FAILURE, wait_s=0.05)
    rig.wait(0.05)

    again = claim(rig.ledger, spec)

    assert (again.attempt, again.tries) == (2, 2)
    assert [each.outcome for each in rig.ledger.attempts(spec.run_id)] == ["retry", "running"]


def test_a_run_that_was_handed_back_does_not_wait_and_spends_no_try(ledger: Ledger) -> None:
    spec = spec_of(max_attempts=1)
    for number in range(1, 4):
        claimed = claim(ledger, spec)
        assert (claimed.attempt, claimed.tries, claimed.settling) == (number, 1, False)
        ledger.release(spec.run_id, claimed.attempt, outcome="handed back", failure=None, wait_s=0)

    assert [each.outcome for each in ledger.attempts(spec.run_id)] == ["handed back"] * 3


# ---------------------------------------------------------------- cancel


def test_a_queued_run_that_is_to_be_cancelled_tells_whoever_claims_it(ledger: Ledger) -> None:
    spec = spec_of()
    ledger.submit(spec)
    assert not ledger.cancel_wanted(spec.run_id)

    assert [ledger.cancel(spec.run_id), ledger.cancel(spec.run_id)] == ["asked", "asked"]

    assert ledger.cancel_wanted(spec.run_id)
    assert claim(ledger, spec).cancelled


def test_a_running_attempt_hears_of_a_cancel_by_its_heartbeat_and_keeps_its_lease(rig: Rig) -> None:
    spec = spec_of()
    claimed = claim(rig.ledger, spec)
    assert not claimed.cancelled
    assert rig.ledger.heartbeat(spec.run_id, claimed.attempt) is False

    assert rig.another().cancel(spec.run_id) == "asked"

    assert rig.ledger.heartbeat(spec.run_id, claimed.attempt) is True
    busy = rig.ledger.claim(spec, worker="host:2")
    assert isinstance(busy, Busy)
    assert busy.seconds > LEASE_S - 30


def test_after_a_cancel_there_is_no_plan(rig: Rig) -> None:
    spec = spec_of()
    first = rig.claim_and_die(spec)
    rig.ledger.cancel(spec.run_id)

    for _ in range(2):
        with pytest.raises(CancelWanted, match=str(spec.run_id)):
            rig.ledger.plan(spec.run_id, first.attempt, plan_of(spec))

    second = claim(rig.ledger, spec)
    assert (second.plan, second.cancelled) == (None, True)


def test_a_cancel_after_the_plan_is_too_late_and_is_not_heard_of(rig: Rig) -> None:
    spec = spec_of()
    first = rig.claim_and_die(spec)
    plan = rig.ledger.plan(spec.run_id, first.attempt, plan_of(spec))

    assert [rig.ledger.cancel(spec.run_id), rig.ledger.cancel(spec.run_id)] == ["too late", "too late"]

    assert not rig.ledger.cancel_wanted(spec.run_id)
    assert rig.ledger.heartbeat(spec.run_id, first.attempt) is False
    assert rig.ledger.plan(spec.run_id, first.attempt, plan_of(spec)) == plan
    rig.wait(LEASE_S if isinstance(rig, MemoryRig) else PgRig.short_lease_s)
    rig.ledger.release(spec.run_id, first.attempt, outcome="retry", failure=FAILURE, wait_s=0)
    second = claim(rig.ledger, spec)
    assert (second.plan, second.cancelled) == (plan, False)


def test_of_a_cancel_and_a_plan_at_once_whichever_comes_first_wins(rig: Rig) -> None:
    canceller, worker = rig.another(), rig.another()
    specs = [spec_of() for _ in range(25)]
    attempts = {spec.run_id: claim(rig.ledger, spec).attempt for spec in specs}
    together = Barrier(2)

    def cancel(spec: JobSpec) -> str:
        together.wait()
        return canceller.cancel(spec.run_id)

    def plan(spec: JobSpec) -> str:
        together.wait()
        try:
            worker.plan(spec.run_id, attempts[spec.run_id], plan_of(spec))
        except CancelWanted:
            return "cancelled"
        return "planned"

    with ThreadPoolExecutor(max_workers=2) as threads:
        both = [(threads.submit(cancel, spec), threads.submit(plan, spec)) for spec in specs]
        answers = [(one.result(), other.result()) for one, other in both]

    assert set(answers) <= {("asked", "cancelled"), ("too late", "planned")}
    wanted = [rig.ledger.cancel_wanted(spec.run_id) for spec in specs]
    assert wanted == [answer == ("asked", "cancelled") for answer in answers]


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_a_decided_run_is_over(ledger: Ledger, state: Literal[State.SUCCEEDED, State.FAILED, State.CANCELLED]) -> None:
    spec = spec_of()
    manifest = decided(ledger, spec, state=state)

    assert ledger.cancel(spec.run_id) == "over"

    assert not ledger.cancel_wanted(spec.run_id)
    assert ledger.claim(spec, worker="host:2") == Decided(manifest=manifest, recorded=False)


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_a_run_that_is_to_be_cancelled_can_be_decided_so_or_have_failed_before(
    ledger: Ledger, state: Literal[State.FAILED, State.CANCELLED]
) -> None:
    spec = spec_of()
    ledger.submit(spec)
    ledger.cancel(spec.run_id)

    manifest = decided(ledger, spec, state=state)

    assert ledger.manifest(spec.run_id) == manifest
    row = ledger.run(spec.run_id)
    assert row is not None
    assert row.state is state
    (record,) = ledger.attempts(spec.run_id)
    assert (record.outcome, record.failure) == (state.value, None)
    assert not ledger.cancel_wanted(spec.run_id)
    assert ledger.cancel(spec.run_id) == "over"


def test_a_run_that_nobody_submitted_cannot_be_cancelled(ledger: Ledger) -> None:
    unknown = uuid4()

    with pytest.raises(SpecError, match=str(unknown)) as error:
        ledger.cancel(unknown)

    assert error.value.hint == "runner runs lists them"
    assert not ledger.cancel_wanted(unknown)


def test_a_cancel_ends_a_back_off(ledger: Ledger) -> None:
    spec = spec_of()
    claimed = claim(ledger, spec)
    ledger.release(spec.run_id, claimed.attempt, outcome="retry", failure=FAILURE, wait_s=300)
    assert isinstance(ledger.claim(spec, worker="host:2"), Busy)

    ledger.cancel(spec.run_id)

    assert claim(ledger, spec).cancelled


def test_a_run_that_is_given_back_after_a_cancel_does_not_wait(ledger: Ledger) -> None:
    spec = spec_of()
    claimed = claim(ledger, spec)
    ledger.cancel(spec.run_id)

    ledger.release(spec.run_id, claimed.attempt, outcome="retry", failure=FAILURE, wait_s=300)

    assert claim(ledger, spec).cancelled


def test_a_cancel_that_came_too_late_ends_no_back_off(ledger: Ledger) -> None:
    spec = spec_of()
    claimed = claim(ledger, spec)
    ledger.plan(spec.run_id, claimed.attempt, plan_of(spec))
    ledger.release(spec.run_id, claimed.attempt, outcome="retry", failure=FAILURE, wait_s=300)

    assert ledger.cancel(spec.run_id) == "too late"

    assert isinstance(ledger.claim(spec, worker="host:2"), Busy)


# ---------------------------------------------------------------- void


def test_a_voided_plan_is_gone_with_its_pins_and_both_are_found_anew(rig: Rig) -> None:
    spec = spec_of("staging.flights")
    first = rig.claim_and_die(spec)
    rig.ledger.pin(spec.run_id, first.attempt, [pin_of("staging.flights", "1")])
    plan = rig.ledger.plan(spec.run_id, first.attempt, plan_of(spec))

    rig.ledger.void(spec.run_id, first.attempt, plan.plan_id)

    second = rig.claim_and_die(spec)
    assert (second.pins, second.plan, second.tries) == (None, None, 2)
    pins = (pin_of("staging.flights", "2"),)
    assert rig.ledger.pin(spec.run_id, second.attempt, pins) == pins
    another = plan_of(spec, attempt=2)
    assert rig.ledger.plan(spec.run_id, second.attempt, another) == another
    third = claim(rig.ledger, spec)
    assert (third.pins, third.plan) == (pins, another)


def test_voiding_again_changes_nothing_that_came_since(rig: Rig) -> None:
    spec = spec_of("staging.flights")
    attempt = rig.claim_and_die(spec).attempt
    old = rig.ledger.plan(spec.run_id, attempt, plan_of(spec))
    rig.ledger.void(spec.run_id, attempt, old.plan_id)
    rig.ledger.void(spec.run_id, attempt, old.plan_id)
    pins = rig.ledger.pin(spec.run_id, attempt, [pin_of("staging.flights", "2")])
    rig.ledger.void(spec.run_id, attempt, old.plan_id)
    new = rig.ledger.plan(spec.run_id, attempt, plan_of(spec))

    rig.ledger.void(spec.run_id, attempt, old.plan_id)

    claimed = claim(rig.ledger, spec)
    assert (claimed.pins, claimed.plan) == (pins, new)


def test_a_plan_that_is_void_no_longer_stands_against_a_cancel(ledger: Ledger) -> None:
    spec = spec_of()
    attempt = claim(ledger, spec).attempt
    plan = ledger.plan(spec.run_id, attempt, plan_of(spec))
    assert ledger.cancel(spec.run_id) == "too late"

    ledger.void(spec.run_id, attempt, plan.plan_id)

    # Whoever was told "too late" was told so for good: the run goes on until somebody asks again.
    assert not ledger.cancel_wanted(spec.run_id)
    assert ledger.cancel(spec.run_id) == "asked"
    with pytest.raises(CancelWanted):
        ledger.plan(spec.run_id, attempt, plan_of(spec))


# ---------------------------------------------------------------- leases of tables


class Holder:
    """A run at work, which asks for tables."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.spec = spec_of()
        self.run_id = self.spec.run_id
        self.attempt = claim(ledger, self.spec).attempt

    def asks(self, *, shared: Sequence[str] = (), exclusive: Sequence[str] = ()) -> UUID | None:
        return self.ledger.lease(self.run_id, self.attempt, shared=shared, exclusive=exclusive)

    def ends(self, state: Literal[State.SUCCEEDED, State.FAILED, State.CANCELLED] = State.SUCCEEDED) -> None:
        self.ledger.decide(manifest_of(self.spec, state=state), attempt=self.attempt)


def test_any_number_of_runs_share_a_table(ledger: Ledger, names: dict[str, str]) -> None:
    holders = [Holder(ledger) for _ in range(5)]

    assert [each.asks(shared=[names["marts"]]) for each in holders] == [None] * 5


def test_who_has_a_table_alone_stands_in_everybodys_way(ledger: Ledger, names: dict[str, str]) -> None:
    alone, other = Holder(ledger), Holder(ledger)
    assert alone.asks(exclusive=[names["marts"]]) is None

    assert other.asks(exclusive=[names["marts"]]) == alone.run_id
    assert other.asks(shared=[names["marts"]]) == alone.run_id
    assert other.asks(exclusive=[names["staging"]]) is None


def test_nobody_gets_a_table_alone_that_others_share(ledger: Ledger, names: dict[str, str]) -> None:
    sharing = [Holder(ledger), Holder(ledger)]
    for each in sharing:
        each.asks(shared=[names["marts"]])
    alone = Holder(ledger)

    assert alone.asks(exclusive=[names["marts"]]) == min(each.run_id for each in sharing)
    sharing[0].ends()
    assert alone.asks(exclusive=[names["marts"]]) == sharing[1].run_id
    sharing[1].ends()
    assert alone.asks(exclusive=[names["marts"]]) is None


def test_a_run_gets_all_the_tables_it_asks_for_or_none(ledger: Ledger, names: dict[str, str]) -> None:
    first, second, third = Holder(ledger), Holder(ledger), Holder(ledger)
    first.asks(exclusive=[names["marts"]])

    assert second.asks(shared=[names["staging"]], exclusive=[names["planes"], names["marts"]]) == first.run_id

    assert third.asks(exclusive=[names["staging"], names["planes"]]) is None


def test_a_runs_own_tables_never_stand_in_its_way(ledger: Ledger, names: dict[str, str]) -> None:
    run, other = Holder(ledger), Holder(ledger)

    for _ in range(2):
        assert run.asks(shared=[names["staging"]], exclusive=[names["marts"]]) is None

    assert run.asks(shared=[names["planes"]], exclusive=[names["staging"]]) is None
    assert other.asks(shared=[names["staging"]]) == run.run_id


def test_what_a_run_has_alone_it_does_not_lose_by_asking_for_less(ledger: Ledger, names: dict[str, str]) -> None:
    run, other = Holder(ledger), Holder(ledger)
    run.asks(exclusive=[names["marts"]])

    assert run.asks(shared=[names["marts"]]) is None
    assert run.asks() is None

    assert other.asks(shared=[names["marts"]]) == run.run_id


def test_a_run_that_cannot_have_a_table_alone_goes_on_sharing_it(ledger: Ledger, names: dict[str, str]) -> None:
    run, other, third = Holder(ledger), Holder(ledger), Holder(ledger)
    run.asks(shared=[names["marts"]])
    other.asks(shared=[names["marts"]])

    assert run.asks(exclusive=[names["marts"]]) == other.run_id

    other.ends()
    assert third.asks(exclusive=[names["marts"]]) == run.run_id
    assert third.asks(shared=[names["marts"]]) is None


def test_a_table_that_is_named_twice_is_taken_once_and_alone_if_either_says_so(
    ledger: Ledger, names: dict[str, str]
) -> None:
    run, other = Holder(ledger), Holder(ledger)

    assert run.asks(shared=[names["marts"], names["marts"]], exclusive=[names["marts"], names["marts"]]) is None

    assert other.asks(shared=[names["marts"]]) == run.run_id


def test_names_that_differ_in_anything_are_different_tables(ledger: Ledger, names: dict[str, str]) -> None:
    name = names["marts"]
    odd = [name, name.upper(), f"{name} ", f"{name}'; --", f"{name}%", f"{name}{{a,b}}", f"{name}é", f"{name}e\u0301"]

    assert [Holder(ledger).asks(exclusive=[each]) for each in odd] == [None] * len(odd)


@pytest.mark.parametrize("outcome", ["retry", "handed back"])
def test_a_run_that_is_given_back_keeps_its_tables(
    ledger: Ledger, names: dict[str, str], outcome: Literal["retry", "handed back"]
) -> None:
    run, other = Holder(ledger), Holder(ledger)
    run.asks(exclusive=[names["marts"]])

    ledger.release(run.run_id, run.attempt, outcome=outcome, failure=None, wait_s=0)

    assert other.asks(exclusive=[names["marts"]]) == run.run_id
    next_attempt = claim(ledger, run.spec).attempt
    assert ledger.lease(run.run_id, next_attempt, shared=[], exclusive=[names["marts"]]) is None


def test_tables_of_an_attempt_that_died_are_its_runs(rig: Rig, names: dict[str, str]) -> None:
    spec, other = spec_of(), Holder(rig.ledger)
    first = rig.claim_and_die(spec)
    rig.ledger.lease(spec.run_id, first.attempt, shared=[], exclusive=[names["marts"]])

    assert other.asks(shared=[names["marts"]]) == spec.run_id
    second = claim(rig.ledger, spec)
    assert rig.ledger.lease(spec.run_id, second.attempt, shared=[], exclusive=[names["marts"]]) is None
    assert other.asks(shared=[names["marts"]]) == spec.run_id


def test_a_run_whose_plan_is_void_keeps_its_tables(ledger: Ledger, names: dict[str, str]) -> None:
    run, other = Holder(ledger), Holder(ledger)
    run.asks(exclusive=[names["marts"]])
    plan = ledger.plan(run.run_id, run.attempt, plan_of(run.spec))

    ledger.void(run.run_id, run.attempt, plan.plan_id)

    assert other.asks(shared=[names["marts"]]) == run.run_id


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_a_decided_run_holds_no_table(
    ledger: Ledger, names: dict[str, str], state: Literal[State.SUCCEEDED, State.FAILED, State.CANCELLED]
) -> None:
    run, other = Holder(ledger), Holder(ledger)
    run.asks(shared=[names["staging"]], exclusive=[names["marts"]])

    run.ends(state)

    assert other.asks(exclusive=[names["staging"], names["marts"]]) is None
    with pytest.raises(LostLease):
        run.asks(shared=[names["planes"]])
    assert other.asks(exclusive=[names["planes"]]) is None


def test_a_run_whose_manifest_was_put_back_holds_no_table(ledger: Ledger, names: dict[str, str]) -> None:
    run, other = Holder(ledger), Holder(ledger)
    run.asks(exclusive=[names["marts"]])

    ledger.decide(manifest_of(run.spec, attempt=5), attempt=run.attempt)

    assert other.asks(exclusive=[names["marts"]]) is None


def test_of_many_runs_that_ask_for_a_table_alone_at_once_one_gets_it(rig: Rig, names: dict[str, str]) -> None:
    holders = [Holder(rig.another()) for _ in range(8)]
    together = Barrier(8)

    def ask(holder: Holder) -> UUID | None:
        together.wait()
        return holder.asks(exclusive=[names["marts"]])

    with ThreadPoolExecutor(max_workers=8) as threads:
        answers = list(threads.map(ask, holders))

    (winner,) = [holder for holder, answer in zip(holders, answers, strict=True) if answer is None]
    assert [answer for answer in answers if answer is not None] == [winner.run_id] * 7


def test_runs_that_ask_for_many_tables_in_any_order_at_once_neither_overlap_nor_deadlock(rig: Rig) -> None:
    draw = Random(7)  # noqa: S311 - the same draw each time, on purpose
    workers = [rig.another() for _ in range(6)]
    for _ in range(10):
        tables = [f"marts.t_{uuid4().hex[:8]}" for _ in range(6)]
        holders = [Holder(worker) for worker in workers]
        asked = []
        for _ in holders:
            some = draw.sample(tables, 4)
            cut = draw.randint(0, 2)
            asked.append((some[cut:], some[:cut]))
        together = Barrier(len(holders))

        def ask(holder: Holder, tables: tuple[list[str], list[str]], together: Barrier = together) -> UUID | None:
            together.wait()
            return holder.asks(shared=tables[0], exclusive=tables[1])

        with ThreadPoolExecutor(max_workers=len(holders)) as threads:
            answers = list(threads.map(ask, holders, asked))

        won = {each.run_id: want for each, want, no in zip(holders, asked, answers, strict=True) if no is None}
        assert won
        for one, other in combinations(won.values(), 2):
            assert not clash(one, other)
        for want, in_the_way in zip(asked, answers, strict=True):
            assert in_the_way is None or clash(want, won[in_the_way])


def clash(one: tuple[list[str], list[str]], other: tuple[list[str], list[str]]) -> bool:
    """Whether one wants alone what the other wants too. Each is what it shares, and what it wants alone."""
    return bool({*one[1]} & {*other[0], *other[1]} or {*other[1]} & {*one[0]})


# ---------------------------------------------------------------- the fence


@pytest.fixture(params=["claimed by another", "released", "decided", "never claimed"])
def fenced(request: pytest.FixtureRequest, rig: Rig) -> JobSpec:
    """A run of which attempt 1 is not in force (any more)."""
    spec = spec_of()
    match request.param:
        case "claimed by another":
            rig.claim_and_die(spec)
            claim(rig.ledger, spec)
        case "released":
            claim(rig.ledger, spec)
            rig.ledger.release(spec.run_id, 1, outcome="handed back", failure=None, wait_s=0)
        case "decided":
            decided(rig.ledger, spec)
        case "never claimed":
            rig.ledger.submit(spec)
    return spec


def test_every_write_of_an_attempt_that_is_not_in_force_is_refused(ledger: Ledger, fenced: JobSpec) -> None:
    before = (ledger.run(fenced.run_id), ledger.attempts(fenced.run_id), ledger.manifest(fenced.run_id))

    with pytest.raises(LostLease):
        ledger.heartbeat(fenced.run_id, 1)
    with pytest.raises(LostLease):
        ledger.pin(fenced.run_id, 1, [pin_of("staging.flights", "1")])
    with pytest.raises(LostLease):
        ledger.plan(fenced.run_id, 1, plan_of(fenced))
    with pytest.raises(LostLease):
        ledger.lease(fenced.run_id, 1, shared=[], exclusive=["marts.delays"])
    with pytest.raises(LostLease):
        ledger.void(fenced.run_id, 1, uuid4())
    with pytest.raises(LostLease):
        ledger.release(fenced.run_id, 1, outcome="retry", failure=FAILURE, wait_s=60)
    with pytest.raises(LostLease):
        ledger.decide(manifest_of(fenced, output_of("marts.delays", "9")), attempt=1)

    after = (ledger.run(fenced.run_id), ledger.attempts(fenced.run_id), ledger.manifest(fenced.run_id))
    assert after == before
    assert ledger.upstream("marts.delays", "9") == []


def test_what_a_fenced_attempt_tried_to_write_is_not_found_by_the_next(rig: Rig) -> None:
    spec = spec_of()
    rig.claim_and_die(spec)
    rig.claim_and_die(spec)
    with pytest.raises(LostLease):
        rig.ledger.pin(spec.run_id, 1, [pin_of("staging.flights", "1")])
    with pytest.raises(LostLease):
        rig.ledger.plan(spec.run_id, 1, plan_of(spec))

    claimed = claim(rig.ledger, spec)

    assert (claimed.pins, claimed.plan) == (None, None)


def test_an_attempt_that_is_not_in_force_can_neither_take_tables_nor_void_nor_hear_of_a_cancel(
    rig: Rig, names: dict[str, str]
) -> None:
    spec, other = spec_of("staging.flights"), Holder(rig.ledger)
    first = rig.claim_and_die(spec)
    pins = rig.ledger.pin(spec.run_id, first.attempt, [pin_of("staging.flights", "1")])
    plan = rig.ledger.plan(spec.run_id, first.attempt, plan_of(spec))
    rig.claim_and_die(spec)
    with pytest.raises(LostLease):
        rig.ledger.lease(spec.run_id, first.attempt, shared=[], exclusive=[names["marts"]])
    with pytest.raises(LostLease):
        rig.ledger.void(spec.run_id, first.attempt, plan.plan_id)

    assert other.asks(exclusive=[names["marts"]]) is None
    third = claim(rig.ledger, spec)
    assert (third.pins, third.plan) == (pins, plan)

    rig.ledger.void(spec.run_id, third.attempt, plan.plan_id)
    rig.ledger.cancel(spec.run_id)
    with pytest.raises(LostLease):
        rig.ledger.plan(spec.run_id, first.attempt, plan_of(spec))
    with pytest.raises(LostLease):
        rig.ledger.heartbeat(spec.run_id, first.attempt)


# ---------------------------------------------------------------- decide and record


def test_a_decided_run_answers_with_its_manifest(ledger: Ledger) -> None:
    spec = spec_of("staging.flights", rerun=Rerun(of=uuid4(), effect=uuid4()))
    attempt = claim(ledger, spec).attempt
    ledger.pin(spec.run_id, attempt, [pin_of("staging.flights", "1")])
    attempts = ledger.attempts(spec.run_id)
    manifest = manifest_of(
        spec,
        output_of("marts.delays", "7", rows=20),
        output_of("failed/x/y", "1", quarantine=True, rows=3),
        output_of("marts.unlanded", None, rows=5),
        inputs=[read("staging.flights", "1")],
        attempts=attempts,
    )

    ledger.decide(manifest, attempt=attempt)

    assert ledger.manifest(spec.run_id) == manifest
    assert ledger.claim(spec, worker="host:2") == Decided(manifest=manifest, recorded=False)
    row = ledger.run(spec.run_id)
    assert row is not None
    assert (row.state, row.decided_at, row.failure) == (State.SUCCEEDED, T0, None)
    assert row.rows == 20  # what was published: neither the quarantine, nor what did not land
    assert (row.run_id, row.effect) == (spec.run_id, spec.effect)
    assert row.effect != row.run_id
    (record,) = ledger.attempts(spec.run_id)
    assert record.outcome == "succeeded"
    assert record.ended_at is not None


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_a_run_that_ended_badly_says_why(ledger: Ledger, state: Literal[State.FAILED, State.CANCELLED]) -> None:
    spec = spec_of()

    manifest = decided(ledger, spec, state=state, failure=FAILURE)

    row = ledger.run(spec.run_id)
    assert row is not None
    assert (row.state, row.failure) == (state, FAILURE)
    (record,) = ledger.attempts(spec.run_id)
    assert (record.outcome, record.failure) == (state.value, FAILURE)
    assert ledger.manifest(spec.run_id) == manifest


def test_a_run_is_decided_once(rig: Rig) -> None:
    spec = spec_of()
    attempt = claim(rig.ledger, spec).attempt
    manifests = [manifest_of(spec, output_of("marts.delays", str(number))) for number in range(1, 5)]

    def decide(manifest: Manifest) -> bool:
        try:
            rig.another().decide(manifest, attempt=attempt)
        except LostLease:
            return False
        return True

    with ThreadPoolExecutor(max_workers=4) as threads:
        won = list(threads.map(decide, manifests))

    assert [each for each, did in zip(manifests, won, strict=True) if did] == [rig.ledger.manifest(spec.run_id)]


def test_a_manifest_of_an_attempt_that_the_ledger_forgot_can_be_put_back(ledger: Ledger) -> None:
    spec = spec_of()
    attempt = claim(ledger, spec).attempt
    manifest = manifest_of(spec, attempt=5)

    ledger.decide(manifest, attempt=attempt)

    assert ledger.manifest(spec.run_id) == manifest


def test_a_decided_run_can_be_submitted_again_without_effect(ledger: Ledger) -> None:
    spec = spec_of()
    manifest = decided(ledger, spec)

    ledger.submit(spec)

    assert ledger.claim(spec, worker="host:2") == Decided(manifest=manifest, recorded=False)


def test_a_recorded_run_says_so(ledger: Ledger) -> None:
    spec = spec_of()
    manifest = decided(ledger, spec)

    ledger.mark_recorded(spec.run_id)
    ledger.mark_recorded(spec.run_id)

    assert ledger.claim(spec, worker="host:2") == Decided(manifest=manifest, recorded=True)


# ---------------------------------------------------------------- lists


def test_runs_are_listed_newest_first(rig: Rig) -> None:
    pipeline = f"p_{uuid4().hex}"
    specs = [spec_of(pipeline=pipeline) for _ in range(4)]
    for spec in specs:
        rig.ledger.submit(spec)
        rig.wait(0.001)

    ids = [row.run_id for row in rig.ledger.runs(limit=100, pipeline=pipeline)]
    newest = [row.run_id for row in rig.ledger.runs(limit=2, pipeline=pipeline)]

    assert ids == [spec.run_id for spec in reversed(specs)]
    assert newest == ids[:2]


def test_runs_are_listed_by_pipeline_stage_state_and_launch(ledger: Ledger) -> None:
    launch = uuid4()
    queued = spec_of(pipeline_run=launch)
    running = extract_spec(pipeline_run=launch)
    done = spec_of(pipeline_run=launch)
    other = spec_of(pipeline="other", pipeline_run=launch)
    for spec in (queued, other):
        ledger.submit(spec)
    claim(ledger, running)
    decided(ledger, done)

    def listed(pipeline: str | None = None, stage: Stage | None = None, state: State | None = None) -> set[UUID]:
        rows = ledger.runs(limit=100, pipeline=pipeline, stage=stage, state=state, pipeline_run=launch)
        return {row.run_id for row in rows}

    assert listed() == {each.run_id for each in (queued, running, done, other)}
    assert listed(pipeline="flights") == {each.run_id for each in (queued, running, done)}
    assert listed(stage=Stage.EXTRACT) == {running.run_id}
    assert listed(state=State.RUNNING) == {running.run_id}
    assert listed(state=State.QUEUED) == {queued.run_id, other.run_id}
    assert listed(state=State.SUCCEEDED, pipeline="flights") == {done.run_id}
    assert listed(state=State.FAILED) == set()
    assert ledger.runs(limit=100, pipeline_run=uuid4()) == []


# ---------------------------------------------------------------- lineage


@pytest.fixture
def names() -> dict[str, str]:
    """Datasets of the test's own: the ledger is the module's."""
    mark = uuid4().hex[:8]
    kinds = {"landing": f"landing/f_{mark}", "quarantine": f"failed/staging/f_{mark}"}
    return kinds | {name: f"{name}.f_{mark}" for name in ("staging", "planes", "marts", "top")}


def pairs(edges: Sequence[Edge]) -> set[tuple[str | None, str | None, str, str]]:
    return {(edge.input, edge.input_snapshot, edge.output, edge.output_snapshot) for edge in edges}


def test_an_edge_says_what_was_made_of_what_by_whom(ledger: Ledger, names: dict[str, str]) -> None:
    spec = spec_of(names["staging"], names["planes"], output=names["marts"])
    decided(
        ledger,
        spec,
        output_of(names["marts"], "7", claimed=[names["staging"]], rows=12),
        inputs=[read(names["staging"], "3"), read(names["planes"], "4", claimed=False)],
    )

    edge = Edge(
        run_id=spec.run_id,
        output=names["marts"],
        output_snapshot="7",
        input=names["staging"],
        input_snapshot="3",
        claimed=True,
        observed="rows",
        commit=COMMIT,
        rows=12,
        decided_at=T0,
    )
    assert ledger.upstream(names["marts"], "7") == [edge]
    assert ledger.downstream(names["staging"], "3") == [edge]
    assert ledger.downstream(names["planes"], "4") == []


def test_where_the_logic_cannot_tell_every_declared_input_is_an_edge_that_says_so(
    ledger: Ledger, names: dict[str, str]
) -> None:
    decided(
        ledger,
        spec_of(names["staging"], names["planes"], output=names["marts"]),
        output_of(names["marts"], "7", claimed=None),
        inputs=[read(names["staging"], "3", claimed=None), read(names["planes"], "4", claimed=None)],
    )

    edges = ledger.upstream(names["marts"], "7")

    assert pairs(edges) == {
        (names["staging"], "3", names["marts"], "7"),
        (names["planes"], "4", names["marts"], "7"),
    }
    assert {edge.claimed for edge in edges} == {None}


def test_an_output_without_inputs_has_an_edge_from_nothing(ledger: Ledger, names: dict[str, str]) -> None:
    decided(ledger, spec_of(output=names["marts"]), output_of(names["marts"], "7"))

    assert pairs(ledger.upstream(names["marts"], "7")) == {(None, None, names["marts"], "7")}


def test_an_output_that_did_not_land_has_no_edges(ledger: Ledger, names: dict[str, str]) -> None:
    decided(
        ledger,
        spec_of(names["staging"], output=names["marts"]),
        output_of(names["marts"], None, claimed=[names["staging"]]),
        inputs=[read(names["staging"], "3")],
        state=State.FAILED,
        failure=FAILURE,
    )

    assert ledger.downstream(names["staging"], "3") == []
    assert ledger.newest(names["marts"]) is None


@pytest.fixture
def chain(ledger: Ledger, names: dict[str, str]) -> dict[str, str]:
    """landing -> staging and its quarantine -> marts (of staging and planes) -> top, once, at snapshot 1."""
    decided(
        ledger,
        spec_of(output=names["staging"]),
        output_of(names["staging"], "1", claimed=[names["landing"]]),
        output_of(names["quarantine"], "1", claimed=[names["landing"]], quarantine=True),
        inputs=[read(names["landing"], "1")],
    )
    decided(
        ledger,
        spec_of(output=names["marts"]),
        output_of(names["marts"], "1", claimed=[names["staging"], names["planes"]]),
        inputs=[read(names["staging"], "1"), read(names["planes"], "1")],
    )
    decided(
        ledger,
        spec_of(output=names["top"]),
        output_of(names["top"], "1", claimed=[names["marts"]]),
        inputs=[read(names["marts"], "1")],
    )
    return names


def test_upstream_goes_all_the_way_up(ledger: Ledger, chain: dict[str, str]) -> None:
    assert pairs(ledger.upstream(chain["top"], "1")) == {
        (chain["landing"], "1", chain["staging"], "1"),
        (chain["staging"], "1", chain["marts"], "1"),
        (chain["planes"], "1", chain["marts"], "1"),
        (chain["marts"], "1", chain["top"], "1"),
    }


def test_downstream_goes_all_the_way_down_quarantine_included(ledger: Ledger, chain: dict[str, str]) -> None:
    assert pairs(ledger.downstream(chain["landing"], "1")) == {
        (chain["landing"], "1", chain["staging"], "1"),
        (chain["landing"], "1", chain["quarantine"], "1"),
        (chain["staging"], "1", chain["marts"], "1"),
        (chain["marts"], "1", chain["top"], "1"),
    }


def test_each_edge_is_told_once_whatever_paths_lead_to_it(ledger: Ledger, chain: dict[str, str]) -> None:
    decided(
        ledger,
        spec_of(output=chain["top"]),
        output_of(chain["top"], "2", claimed=[chain["marts"], chain["staging"]]),
        inputs=[read(chain["marts"], "1"), read(chain["staging"], "1")],
    )

    edges = ledger.upstream(chain["top"], "2")

    assert len(edges) == len(pairs(edges)) == 5


def test_lineage_is_a_snapshots_and_not_a_names(ledger: Ledger, chain: dict[str, str]) -> None:
    decided(
        ledger,
        spec_of(output=chain["marts"]),
        output_of(chain["marts"], "2", claimed=[chain["planes"]]),
        inputs=[read(chain["planes"], "9")],
    )

    assert pairs(ledger.upstream(chain["marts"], "2")) == {(chain["planes"], "9", chain["marts"], "2")}
    assert (chain["planes"], "9", chain["marts"], "2") not in pairs(ledger.upstream(chain["top"], "1"))
    assert ledger.upstream(chain["marts"], "3") == []
    assert ledger.downstream(chain["landing"], "2") == []


def test_a_table_that_is_made_of_its_own_last_snapshot_is_followed_to_the_first(
    ledger: Ledger, names: dict[str, str]
) -> None:
    for number in range(1, 4):
        decided(
            ledger,
            spec_of(output=names["marts"]),
            output_of(names["marts"], str(number), claimed=[names["marts"]]),
            inputs=[read(names["marts"], str(number - 1))],
        )

    assert len(ledger.upstream(names["marts"], "3")) == 3
    assert len(ledger.downstream(names["marts"], "0")) == 3


def test_the_newest_snapshot_is_what_the_run_decided_last_published(ledger: Ledger, names: dict[str, str]) -> None:
    marts = names["marts"]
    decided(ledger, spec_of(output=marts), output_of(marts, "2"), decided_at=T0 + timedelta(seconds=2))
    decided(ledger, spec_of(output=marts), output_of(marts, "1"), decided_at=T0 + timedelta(seconds=1))

    assert ledger.newest(marts) == "2"
    assert ledger.newest(names["top"]) is None


def test_what_a_rerun_put_on_a_branch_is_found_by_its_snapshot_and_is_never_the_newest(
    ledger: Ledger, names: dict[str, str]
) -> None:
    marts, staging = names["marts"], names["staging"]
    first = spec_of(staging, output=marts)
    decided(ledger, first, output_of(marts, "1", claimed=[staging]), inputs=[read(staging, "3")])
    rerun = spec_of(staging, output=marts, rerun=Rerun(of=first.run_id, effect=first.run_id))
    decided(
        ledger,
        rerun,
        output_of(marts, "2", claimed=[staging], branch=rerun_branch(rerun.run_id)),
        inputs=[read(staging, "3")],
        decided_at=T0 + timedelta(days=1),
    )

    assert ledger.newest(marts) == "1"
    assert pairs(ledger.upstream(marts, "2")) == {(staging, "3", marts, "2")}


# ---------------------------------------------------------------- Postgres alone


def test_when_a_cancel_was_asked_is_told_by_the_databases_clock(embedded_url: str) -> None:
    import psycopg

    ledger, spec = PgLedger(embedded_url), spec_of()
    ledger.submit(spec)
    with psycopg.connect(embedded_url, autocommit=True) as connection:

        def told(what: LiteralString) -> datetime:
            row = connection.execute(what, {"run_id": spec.run_id}).fetchone()
            assert row is not None
            assert isinstance(row[0], datetime)
            return row[0]

        before = told("SELECT clock_timestamp()")
        ledger.cancel(spec.run_id)
        asked_at = told("SELECT cancel_asked_at FROM ledger.runs WHERE run_id = %(run_id)s")
        after = told("SELECT clock_timestamp()")
        ledger.cancel(spec.run_id)
        still = told("SELECT cancel_asked_at FROM ledger.runs WHERE run_id = %(run_id)s")
    ledger.close()

    assert before <= asked_at <= after
    assert still == asked_at


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_a_run_that_waited_for_another_to_take_a_table_sees_that_it_did(
    embedded_url: str, names: dict[str, str], isolation: str
) -> None:
    """Whatever isolation the database's owner has made the default."""
    import psycopg
    from psycopg.conninfo import make_conninfo

    escaped = isolation.replace(" ", r"\ ")
    first = PgLedger(embedded_url)
    second = PgLedger(make_conninfo(embedded_url, options=f"-c default_transaction_isolation={escaped}"))
    holder, waiting = Holder(first), Holder(second)
    asked = {"run_id": holder.run_id, "datasets": [names["marts"]], "exclusive": [names["marts"]]}
    with ThreadPoolExecutor(max_workers=1) as threads, psycopg.connect(embedded_url) as connection:
        connection.execute(QUERIES["lock_tables"], asked)
        answer = threads.submit(waiting.asks, shared=[names["marts"]])
        somebody_waits_for_a_table(embedded_url)
        connection.execute(QUERIES["take_tables"], asked)
        connection.commit()
        assert answer.result() == holder.run_id
    first.close()
    second.close()


def somebody_waits_for_a_table(url: str) -> None:
    import psycopg

    give_up_at = time.monotonic() + 20
    with psycopg.connect(url, autocommit=True) as connection:
        while time.monotonic() < give_up_at:
            row = connection.execute(
                "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
                "WHERE l.locktype = 'advisory' AND NOT l.granted AND d.datname = current_database()"
            ).fetchone()
            if row and row[0]:
                return
    pytest.fail("nobody waits")


def test_a_worker_that_freezes_while_it_takes_tables_does_not_keep_others_from_them(
    embedded_url: str, names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg
    from psycopg.conninfo import make_conninfo

    monkeypatch.setitem(QUERIES, "begin_lease", QUERIES["begin_lease"].replace("'10s'", "'100ms'"))
    frozen, thawed = Event(), Event()
    real = psycopg.Connection.execute

    def execute(self: Any, query: Any, *given: Any) -> Any:
        if query is QUERIES["in_the_way"] and not frozen.is_set():
            frozen.set()
            thawed.wait()
        return real(self, query, *given)

    monkeypatch.setattr(psycopg.Connection, "execute", execute)
    waits_so_long = make_conninfo(embedded_url, options="-c lock_timeout=20s")
    ledgers = PgLedger(embedded_url), PgLedger(waits_so_long)
    freezing, other = map(Holder, ledgers)
    with ThreadPoolExecutor(max_workers=1) as threads:
        answer = threads.submit(freezing.asks, exclusive=[names["marts"]])
        try:
            assert frozen.wait(20)
            assert other.asks(exclusive=[names["marts"]]) is None
        finally:
            thawed.set()
        with pytest.raises(InfrastructureError, match="idle-in-transaction"):
            answer.result()
    assert freezing.asks(exclusive=[names["marts"]]) == other.run_id
    for each in ledgers:
        each.close()


def test_what_a_run_held_is_forgotten_when_it_is_decided(embedded_url: str, names: dict[str, str]) -> None:
    import psycopg

    ledger = PgLedger(embedded_url)
    run, other = Holder(ledger), Holder(ledger)
    run.asks(shared=[names["staging"]], exclusive=[names["marts"]])
    other.asks(shared=[names["staging"]])
    run.ends()
    with psycopg.connect(embedded_url, autocommit=True) as connection:
        ids = [run.run_id, other.run_id]
        rows = connection.execute("SELECT run_id, dataset FROM ledger.leases WHERE run_id = ANY(%s)", (ids,)).fetchall()
    ledger.close()

    assert rows == [(other.run_id, names["staging"])]


def test_a_plan_that_the_release_before_stored_prevails_over_the_cancel_that_it_did_not_hear(
    embedded_url: str,
) -> None:
    import psycopg

    ledger, spec = PgLedger(embedded_url), spec_of()
    attempt = claim(ledger, spec).attempt
    ledger.cancel(spec.run_id)
    plan = plan_of(spec)
    with psycopg.connect(embedded_url, autocommit=True) as connection:
        stored = {"plan": plan.to_json(), "run_id": spec.run_id}
        connection.execute("UPDATE ledger.runs SET plan = %(plan)s WHERE run_id = %(run_id)s", stored)

    assert ledger.heartbeat(spec.run_id, attempt) is False
    assert not ledger.cancel_wanted(spec.run_id)
    assert ledger.cancel(spec.run_id) == "too late"
    assert ledger.plan(spec.run_id, attempt, plan_of(spec)) == plan
    ledger.release(spec.run_id, attempt, outcome="retry", failure=FAILURE, wait_s=60)
    assert isinstance(ledger.claim(spec, worker="host:2"), Busy)
    with psycopg.connect(embedded_url, autocommit=True) as connection:
        connection.execute("UPDATE ledger.runs SET not_before = NULL WHERE run_id = %s", (spec.run_id,))
    claimed = claim(ledger, spec)
    assert (claimed.plan, claimed.cancelled) == (plan, False)
    ledger.close()


def test_a_run_that_the_release_before_decided_holds_no_table(embedded_url: str, names: dict[str, str]) -> None:
    """That release decides by the same statement, and knows of no leases that it were to give back."""
    import psycopg

    ledger = PgLedger(embedded_url)
    run, other = Holder(ledger), Holder(ledger)
    run.asks(exclusive=[names["marts"]])
    row = {"run_id": run.run_id, "attempt": run.attempt, "state": "succeeded", "decided_at": T0}
    row |= {"manifest": manifest_of(run.spec).to_json(), "failure": None, "rows_out": None}
    with psycopg.connect(embedded_url, autocommit=True) as connection:
        connection.execute(QUERIES["decide"], row)

    assert other.asks(exclusive=[names["marts"]]) is None
    ledger.close()


def test_migrations_are_applied_once_by_however_many_at_once(ledger_url: str, embedded_url: str) -> None:
    import psycopg
    from psycopg.conninfo import make_conninfo

    with psycopg.connect(ledger_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE several_migrate_at_once")
        url = make_conninfo(ledger_url, dbname="several_migrate_at_once")
        ledgers = [PgLedger(url) for _ in range(4)]
        with ThreadPoolExecutor(max_workers=4) as threads:
            applied = list(threads.map(lambda ledger: ledger.migrate(), ledgers))
        pending = ledgers[0].pending_migrations()
        for ledger in ledgers:
            ledger.close()
        connection.execute("DROP DATABASE several_migrate_at_once")

    assert len([names for names in applied if names]) == 1
    assert pending == []


def test_a_ledger_without_its_tables_says_what_to_do(ledger_url: str) -> None:
    import psycopg
    from psycopg.conninfo import make_conninfo

    with psycopg.connect(ledger_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE without_tables")
        ledger = PgLedger(make_conninfo(ledger_url, dbname="without_tables"))
        with pytest.raises(InfrastructureError) as error:
            ledger.submit(spec_of())
        ledger.close()
        connection.execute("DROP DATABASE without_tables")

    assert "runner ledger migrate" in (error.value.hint or "")


def test_a_database_that_is_away_is_named_without_its_password() -> None:
    ledger = PgLedger("postgresql://somebody:s3cret@127.0.0.1:9/ledger")

    with pytest.raises(InfrastructureError, match=r"127\.0\.0\.1:9") as error:
        ledger.submit(spec_of())

    assert "s3cret" not in error.value.message
    assert "\n" not in error.value.message


def test_a_connection_that_was_cut_is_made_again(embedded_url: str) -> None:
    import psycopg

    ledger = PgLedger(embedded_url)
    spec = spec_of()
    ledger.submit(spec)
    with psycopg.connect(embedded_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    with pytest.raises(InfrastructureError, match="Postgres"):
        ledger.submit(spec)
    assert ledger.spec(spec.run_id) == spec
    ledger.close()
