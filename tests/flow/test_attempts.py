"""How often a run is tried, how long it rests in between, who may try, and what is said when no try is left."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from runner.flow.waiting import Waiting
from runner.model.errors import (
    Category,
    ConflictError,
    DataError,
    InfrastructureError,
    LogicError,
    RateLimitError,
    RunnerError,
    SchemaError,
    SpecError,
    TransientError,
)
from runner.model.manifest import Manifest, State
from runner.ports import LEASE_S, LostLease
from runner.worker import Lost, Outcome
from tests.flow.moments import BEFORE_A_JOB, CLAIMED, PLANNED, ends_well
from tests.support.flow_world import At, Crash, Tap, Turn, World, assert_once_and_true, load, transform


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-offs at the upper end of their spread, all but."""
    monkeypatch.setattr(random, "random", lambda: 1.0)


def seconds(ended: list[Outcome | type[BaseException]]) -> list[float]:
    return [each.seconds for each in ended if isinstance(each, Waiting)]


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("error", [TransientError, InfrastructureError, RateLimitError])
def test_what_may_go_by_itself_is_tried_again(world: World, error: type[RunnerError]) -> None:
    spec = transform()
    world.engine.script = [Turn(raises=error("not now"))]

    manifest = world.run(spec)

    ends_well(world, spec)
    assert [each.outcome for each in manifest.attempts] == ["retry", "succeeded"]
    said = manifest.attempts[0].failure
    assert said is not None
    assert (said.category, said.message) == (error.category, "not now")


@pytest.mark.parametrize("error", [DataError, SchemaError, LogicError, SpecError, ConflictError])
def test_what_would_fail_again_is_not_tried_again(world: World, error: type[RunnerError]) -> None:
    spec = transform()
    world.engine.script = [Turn(raises=error("no good", subject="main.delays", hint="mend it"))]

    manifest = world.run(spec)

    assert_once_and_true(world, spec)
    assert len(world.engine.jobs) == 1
    assert manifest.failure == error("no good", subject="main.delays", hint="mend it").failure
    assert [(each.outcome, each.failure) for each in manifest.attempts] == [("failed", manifest.failure)]


def test_a_fault_of_the_products_own_is_infrastructure_and_tried_again(world: World) -> None:
    spec = transform()
    world.engine.script = [Turn(raises=ZeroDivisionError("division by zero"))]

    manifest = world.run(spec)

    ends_well(world, spec)
    said = manifest.attempts[0].failure
    assert said is not None
    assert said.category is Category.INFRASTRUCTURE
    assert said.message == "unexpected ZeroDivisionError: division by zero"


def test_a_run_fails_with_its_last_attempts_words_when_its_tries_are_used_up(world: World, no_jitter: None) -> None:
    spec = transform(max_attempts=3)
    world.engine.script = [Turn(raises=TransientError(f"try {number}")) for number in (1, 2, 3)]

    world.submit(spec)
    ended = world.work_off(spec.stage)

    manifest = assert_once_and_true(world, spec)
    assert manifest.state is State.FAILED
    assert manifest.failure is not None
    assert manifest.failure.message == "try 3"
    assert [each.outcome for each in manifest.attempts] == ["retry", "retry", "failed"]
    assert [each.failure.message for each in manifest.attempts if each.failure] == ["try 1", "try 2", "try 3"]
    assert seconds(ended) == [1, 2]
    assert len(world.engine.jobs) == 3


def test_a_run_with_one_try_fails_with_it(world: World) -> None:
    spec = transform(max_attempts=1)
    world.engine.script = [Turn(raises=TransientError("once"))]

    manifest = world.run(spec)

    assert_once_and_true(world, spec)
    assert [each.outcome for each in manifest.attempts] == ["failed"]


def test_the_message_comes_back_when_the_back_off_is_over_and_not_before(world: World, no_jitter: None) -> None:
    spec = world.submit(transform(max_attempts=6))
    world.engine.script = [Turn(raises=TransientError("not now"))] * 5
    waited = []
    for _ in range(6):
        began = world.clock.now()
        world.deliver(spec.stage)
        waited.append((world.clock.now() - began).total_seconds())

    assert waited == [0, 1, 2, 4, 8, 16]
    ends_well(world, spec)


def test_jitter_spreads_a_back_off_over_the_upper_half_of_its_step(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.0)
    spec = world.submit(transform(max_attempts=4))
    world.engine.script = [Turn(raises=TransientError("not now"))] * 3

    assert seconds(world.work_off(spec.stage)) == [0.5, 1, 2]


def test_a_rate_limits_own_figure_is_kept(world: World) -> None:
    spec = world.submit(transform())
    world.engine.script = [Turn(raises=RateLimitError("slow down", retry_after_s=137))]
    began = world.clock.now()

    ended = world.work_off(spec.stage)

    assert seconds(ended) == [137]
    assert (world.clock.now() - began).total_seconds() == 137
    ends_well(world, spec)


def test_nobody_takes_a_run_while_it_rests(world: World) -> None:
    """A second message of the same run is no way around the back-off."""
    spec = world.submit(transform())
    world.engine.script = [Turn(raises=RateLimitError("slow down", retry_after_s=100))]
    world.deliver(spec.stage)
    world.clock.advance(30)
    world.queue.send(spec.stage, spec.to_json())

    early = world.deliver(spec.stage)

    assert early == Waiting(seconds=70, failure=None)
    assert len(world.engine.jobs) == 1
    world.work_off(spec.stage)
    ends_well(world, spec)
    assert len(world.engine.jobs) == 2


# ---------------------------------------------------------------- duplicates of what is at work, or over


def test_a_duplicate_of_a_run_at_work_waits_as_long_as_its_lease_and_changes_nothing(world: World) -> None:
    spec = world.submit(transform())
    seen: list[Outcome | None] = []

    def meanwhile() -> None:
        world.clock.advance(20)
        world.queue.send(spec.stage, spec.to_json())
        before = world.ledger.attempts(spec.run_id)
        seen.append(world.deliver(spec.stage))
        assert world.ledger.attempts(spec.run_id) == before

    world.engine.script = [Turn(meanwhile=meanwhile)]
    world.deliver(spec.stage)

    assert seen == [Waiting(seconds=LEASE_S - 20, failure=None)]
    assert world.queue.depth(spec.stage) == 1, "the duplicate, hidden"
    world.work_off(spec.stage)
    ends_well(world, spec)
    assert len(world.engine.jobs) == 1


def test_a_duplicate_of_a_run_that_is_over_executes_nothing_and_goes(world: World) -> None:
    spec = transform()
    over = world.run(spec)
    world.queue.send(spec.stage, spec.to_json())
    tap = Tap()

    again = world.deliver(spec.stage, tap)

    assert again == over
    assert tap.calls == [*BEFORE_A_JOB, "ledger.claim", "queue.delete"]
    ends_well(world, spec)


def test_a_duplicate_records_what_is_decided_and_not_yet_recorded(world: World) -> None:
    spec = world.submit(transform())
    with pytest.raises(Crash):
        world.deliver(spec.stage, Tap().crash(At("after", "ledger.decide")))
    decided = world.manifest(spec)
    assert world.recorded(spec) is None
    tap = Tap()

    recorded = world.deliver(spec.stage, tap)

    assert recorded == decided
    assert [call for call in tap.calls if call not in BEFORE_A_JOB] == [
        "ledger.claim",
        "objects.put_if_absent",
        "ledger.mark_recorded",
        "queue.delete",
    ]
    ends_well(world, spec)


def test_a_failed_run_is_over_too(world: World) -> None:
    spec = transform()
    world.engine.script = [Turn(raises=LogicError("no good"))]
    world.run(spec)
    world.queue.send(spec.stage, spec.to_json())

    world.deliver(spec.stage)

    assert_once_and_true(world, spec)
    assert len(world.engine.jobs) == 1


# ---------------------------------------------------------------- lost workers


def test_workers_lost_without_a_word_use_the_tries_up_and_a_settling_attempt_says_so(world: World) -> None:
    spec = transform(max_attempts=3)

    world.run(spec, *[Tap().crash(At("after", "engine.execute")) for _ in range(3)])

    manifest = assert_once_and_true(world, spec)
    assert manifest.state is State.FAILED
    assert [each.outcome for each in manifest.attempts] == ["lost", "lost", "lost", "failed"]
    assert len(world.engine.jobs) == 3, "settling executes nothing"
    assert manifest.failure is not None
    assert manifest.failure.category is Category.INFRASTRUCTURE
    assert "expected one of 3 attempts to end, got none" in manifest.failure.message
    assert manifest.failure.hint == "was the worker killed for its memory? raise resources.memory_mib"


def test_a_settling_attempt_repeats_what_an_earlier_one_said_and_does_not_call_it_lost(world: World) -> None:
    """Two said why they failed, the last was lost: `got none` would not be true."""
    spec = transform(max_attempts=3)
    world.engine.script = [Turn(raises=TransientError("the portal hung up"))] * 2

    world.run(spec, Tap(), Tap(), Tap().crash(CLAIMED))

    manifest = assert_once_and_true(world, spec)
    assert [each.outcome for each in manifest.attempts] == ["retry", "retry", "lost", "failed"]
    assert manifest.failure is not None
    assert manifest.failure.category is Category.INFRASTRUCTURE
    assert "got none" not in manifest.failure.message
    assert "the portal hung up" in manifest.failure.message


@pytest.mark.parametrize("max_attempts", [1, 2, 3])
def test_a_settling_attempt_rolls_a_plan_forward(world: World, max_attempts: int) -> None:
    spec = transform(max_attempts=max_attempts)
    lost = [Tap().crash(At("after", "engine.execute")) for _ in range(max_attempts - 1)]

    world.run(spec, *lost, Tap().crash(PLANNED))

    manifest = ends_well(world, spec)
    assert [each.outcome for each in manifest.attempts] == ["lost"] * max_attempts + ["succeeded"]
    assert {each.tag.attempt for each in world.landings(spec)} == {max_attempts}
    assert len(world.engine.jobs) == max_attempts


def test_a_settling_attempt_may_be_lost_too(world: World) -> None:
    spec = transform(max_attempts=1)

    world.run(spec, Tap().crash(CLAIMED), Tap().crash(CLAIMED), Tap().crash(At("before", "ledger.decide")))

    manifest = assert_once_and_true(world, spec)
    assert [each.outcome for each in manifest.attempts] == ["lost", "lost", "lost", "failed"]
    assert world.engine.jobs == []


def test_a_plan_is_rolled_forward_for_as_long_as_it_takes(world: World, no_jitter: None) -> None:
    """It may have landed: giving up for want of tries could leave a table changed by a failed run."""
    spec = transform(max_attempts=1)
    away = [Tap().fail(At("before", "tables.commit", 1), TransientError("the catalog is away")) for _ in range(12)]

    world.submit(spec)
    ended = world.work_off(spec.stage, *away)

    manifest = ends_well(world, spec)
    assert [each.outcome for each in manifest.attempts] == ["retry"] * 12 + ["succeeded"]
    assert seconds(ended) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert len(world.engine.jobs) == 1


# ---------------------------------------------------------------- pins


def test_every_attempt_reads_the_snapshots_of_the_first(world: World) -> None:
    spec = world.submit(transform())
    world.engine.script = [Turn(raises=TransientError("not now"))] * 2
    for _ in range(2):
        world.deliver(spec.stage)
        world.publish("staging.flights")

    world.work_off(spec.stage)

    manifest = ends_well(world, spec)
    read = [[each.pin for each in job.inputs] for job in world.engine.jobs]
    assert len(read) == 3
    assert read == [list(manifest.pins)] * 3


def test_pins_are_kept_by_a_crash_too(world: World) -> None:
    spec = world.submit(transform())
    with pytest.raises(Crash):
        world.deliver(spec.stage, Tap().crash(At("after", "ledger.pin")))
    world.publish("staging.flights")
    tap = Tap()

    world.work_off(spec.stage, tap)

    (pin,) = ends_well(world, spec).pins
    assert pin.snapshot == "1000000000000000001"
    assert "tables.pin" not in tap.calls, "nobody asks what is newest now"


def test_the_pins_that_the_ledger_has_are_the_ones_read(world: World) -> None:
    """As with the plan: where a request was sent twice, the first to arrive counts."""
    spec = world.submit(transform())
    first = world.tables.pin("staging.flights", "staging.flights", None)
    world.publish("staging.flights")
    tap = Tap().pause(At("before", "ledger.pin"), lambda: world.ledger.pin(spec.run_id, 1, [first]))

    world.deliver(spec.stage, tap)

    assert ends_well(world, spec).pins == (first,)
    assert [each.pin for each in world.engine.jobs[0].inputs] == [first]


@pytest.mark.parametrize(
    "ending",
    [Turn(raises=DataError("empty")), Turn(raises=LogicError("no such column"))],
    ids=["data", "logic"],
)
@pytest.mark.parametrize("before", [0, 1])
def test_a_failed_run_says_what_it_read(world: World, ending: Turn, before: int) -> None:
    """Or its rerun would read something else."""
    spec = transform()
    world.engine.script = [*[Turn(raises=TransientError("not now"))] * before, ending]

    manifest = world.run(spec)

    assert_once_and_true(world, spec)
    assert manifest.state is State.FAILED
    assert [(each.dataset, each.snapshot) for each in manifest.pins] == [("staging.flights", "1000000000000000001")]


def test_a_run_that_finds_a_pinned_input_expired_fails_and_reads_no_other(world: World) -> None:
    spec = world.submit(transform())
    with pytest.raises(Crash):
        world.deliver(spec.stage, Tap().crash(At("after", "ledger.pin")))
    world.publish("staging.flights")
    world.tables.expire("staging.flights", "1000000000000000001")

    world.work_off(spec.stage)

    manifest = assert_once_and_true(world, spec)
    assert manifest.failure is not None
    assert manifest.failure.category is Category.DATA
    assert "expired" in manifest.failure.message
    assert manifest.pins[0].snapshot == "1000000000000000001"
    assert world.engine.jobs == []


# ---------------------------------------------------------------- told to stop


def sigterm() -> None:
    signal.raise_signal(signal.SIGTERM)


def test_a_worker_that_is_told_to_stop_hands_its_job_back_and_that_spends_no_try(world: World) -> None:
    spec = world.submit(transform(max_attempts=1))
    world.engine.script = [Turn(meanwhile=sigterm)]
    worker = world.worker()
    began = world.clock.now()

    with worker.stops_on_sigterm():
        ended = list(worker.work(spec.stage, max_jobs=None, idle_timeout_s=None))

    assert ended == [Waiting(seconds=0, failure=None)]
    assert worker.stopping
    world.deliver(spec.stage)
    assert world.clock.now() == began, "the next worker has it at once"
    manifest = ends_well(world, spec)
    assert [each.outcome for each in manifest.attempts] == ["handed back", "succeeded"]


def test_a_run_may_be_handed_back_any_number_of_times(world: World, no_jitter: None) -> None:
    spec = world.submit(transform(max_attempts=2))
    world.engine.script = [Turn(meanwhile=sigterm)] * 5 + [Turn(raises=TransientError("not now"))]
    outcomes = []
    for _ in range(6):
        worker = world.worker()
        with worker.stops_on_sigterm():
            outcomes += list(worker.work(spec.stage, max_jobs=1, idle_timeout_s=None))

    assert [each.seconds for each in outcomes if isinstance(each, Waiting)] == [0, 0, 0, 0, 0, 1]
    world.work_off(spec.stage)
    ends_well(world, spec)
    assert world.outcomes(spec) == ["handed back"] * 5 + ["retry", "succeeded"]


@pytest.mark.parametrize(
    "at",
    [
        At("before", "logic.checkout"),
        At("after", "ledger.pin"),
        At("after", "ledger.plan"),
        At("before", "tables.commit"),
        At("after", "tables.commit"),
        At("before", "ledger.decide"),
        At("after", "ledger.decide"),
        At("before", "objects.put_if_absent"),
        At("after", "ledger.mark_recorded"),
        At("before", "ledger.claim"),
        At("after", "ledger.claim"),
    ],
    ids=str,
)
def test_a_job_may_be_stopped_anywhere(world: World, at: At) -> None:
    spec = world.submit(transform(max_attempts=1 if at != CLAIMED else 2))
    worker = world.worker(Tap().pause(at, sigterm))

    with worker.stops_on_sigterm():
        list(worker.work(spec.stage, max_jobs=None, idle_timeout_s=None))

    world.work_off(spec.stage)
    ends_well(world, spec)


def test_a_worker_that_is_told_to_stop_while_it_waits_takes_no_job(world: World) -> None:
    """The signal comes during the long poll, which then brings a message all the same."""
    spec = world.submit(transform())
    worker = world.worker(Tap().pause(At("after", "queue.receive"), sigterm))

    with worker.stops_on_sigterm():
        ended = list(worker.work(spec.stage, max_jobs=None, idle_timeout_s=None))

    assert ended == [Waiting(seconds=0, failure=None)]
    assert world.ledger.attempts(spec.run_id) == ()
    assert world.engine.jobs == []
    began = world.clock.now()
    world.deliver(spec.stage)
    assert world.clock.now() == began, "nobody has to wait for it to be visible"
    ends_well(world, spec)


def test_the_signals_handlers_are_put_back(world: World) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    with world.worker().stops_on_sigterm():
        assert signal.getsignal(signal.SIGTERM) != before[0]

    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# ---------------------------------------------------------------- heartbeats


def until(seen: Callable[[], bool]) -> Callable[[], None]:
    """Goes on as soon as it is so; fails the test if it never is."""

    def wait() -> None:
        give_up = time.monotonic() + 10
        while not seen():
            assert time.monotonic() < give_up, "it never came"

    return wait


def test_a_heartbeat_keeps_the_lease_and_the_message_for_as_long_as_the_work_takes(world: World) -> None:
    spec = world.submit(transform())
    kept = Event()
    tap = Tap()
    hide = world.queue.hide

    def slow() -> None:
        for _ in range(3):
            world.clock.advance(LEASE_S - 1)
            kept.clear()
            assert kept.wait(10), "no heartbeat came"
        world.queue.send(spec.stage, spec.to_json())
        duplicate = world.deliver(spec.stage)
        assert isinstance(duplicate, Waiting)
        assert 0 < duplicate.seconds <= LEASE_S

    def noticed(delivery: object, *, seconds: float) -> None:
        hide(delivery, seconds=seconds)  # type: ignore[arg-type]
        kept.set()

    world.queue.hide = noticed  # type: ignore[method-assign]
    world.engine.script = [Turn(meanwhile=slow)]
    list(world.worker(tap, lease_s=0.008).work(spec.stage, max_jobs=1, idle_timeout_s=None))
    world.work_off(spec.stage)

    assert tap.calls.count("ledger.heartbeat") >= 3
    assert ends_well(world, spec).attempts[0].outcome == "succeeded"
    assert len(world.engine.jobs) == 1


def test_a_heartbeat_that_fails_is_made_good_by_the_next(world: World) -> None:
    spec = world.submit(transform())
    tap = Tap().fail(At("before", "ledger.heartbeat"), TransientError("no answer"))
    world.engine.script = [Turn(meanwhile=until(lambda: "queue.hide" in tap.calls))]

    list(world.worker(tap, lease_s=0.008).work(spec.stage, max_jobs=1, idle_timeout_s=None))

    assert tap.calls.index("queue.hide") > tap.calls.index("ledger.heartbeat")
    ends_well(world, spec)


def test_a_heartbeat_that_finds_the_lease_lost_lets_the_message_go(world: World) -> None:
    """It is the heir's now; and the job learns by itself, at its next write to the ledger."""
    spec = world.submit(transform())
    tap = Tap()

    def meanwhile() -> None:
        world.elsewhere(spec.stage)()
        until(lambda: ("ledger.heartbeat", LostLease) in tap.refusals)()

    world.engine.script = [Turn(meanwhile=meanwhile)]
    zombie = list(world.worker(tap, lease_s=0.008).work(spec.stage, max_jobs=1, idle_timeout_s=None))

    assert zombie == [Lost()]
    assert tap.refusals.count(("ledger.heartbeat", LostLease)) == 1, "it does not go on"
    ends_well(world, spec)


def test_a_log_can_be_read_while_the_work_goes_on(world: World) -> None:
    spec = world.submit(transform())
    key = f"runs/{spec.run_id}/log.1.jsonl"
    world.engine.script = [Turn(meanwhile=until(lambda: b"execution 1" in (world.objects.get(key) or b"")))]

    list(world.worker(lease_s=0.008).work(spec.stage, max_jobs=1, idle_timeout_s=None))

    ends_well(world, spec)


# ---------------------------------------------------------------- the room


def test_a_worker_without_scratch_says_so_and_spends_no_try(world: World, tmp_path: Path) -> None:
    (tmp_path / "1").write_text("a file where the first worker's folder should be")
    spec = world.submit(transform())

    with pytest.raises(InfrastructureError, match=r"scratch .*: expected a folder to write to"):
        world.deliver(spec.stage)

    world.work_off(spec.stage)
    ends_well(world, spec)
    assert world.outcomes(spec) == ["succeeded"]


@pytest.mark.parametrize("turn", [Turn(), Turn(raises=TransientError("not now")), Turn(raises=LogicError("no good"))])
def test_an_attempts_room_is_gone_when_it_ends(world: World, turn: Turn) -> None:
    spec = world.submit(transform())
    world.engine.script = [turn]

    world.deliver(spec.stage)

    assert world.scratch_left() == []


def test_each_attempt_leaves_its_log_beside_the_manifest(world: World) -> None:
    spec = load()
    world.engine.script = [Turn(raises=TransientError("the portal hung up"))]

    manifest = world.run(spec)

    logs = [each.log for each in manifest.attempts]
    assert logs == [f"s3://lake/runs/{spec.run_id}/log.{number}.jsonl" for number in (1, 2)]
    first, second = (world.objects.get(f"runs/{spec.run_id}/log.{number}.jsonl") or b"" for number in (1, 2))
    assert b"transient: the portal hung up" in first
    assert b"run succeeded" in second
    assert b"hung up" not in second


def test_a_log_that_cannot_be_kept_keeps_no_attempt_from_being_given_back(world: World) -> None:
    spec = world.submit(transform())
    world.engine.script = [Turn(raises=TransientError("not now"))]

    first = world.deliver(spec.stage, Tap().fail(At("before", "objects.put"), TransientError("S3: 503")))

    assert isinstance(first, Waiting)
    assert first.failure is not None
    assert first.failure.message == "not now"
    manifest = world.work_off(spec.stage)[-1]
    assert isinstance(manifest, Manifest)
    assert [each.log is None for each in manifest.attempts] == [True, False]
    ends_well(world, spec)
