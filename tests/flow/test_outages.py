"""A service that is away: no message is taken, none is spent, and the worker goes on by itself when it is back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.flow.room import sweep
from runner.model.errors import Category, InfrastructureError, TransientError
from runner.model.manifest import State
from runner.ports import LEASE_S
from runner.worker import LONGEST_OUTAGE_PAUSE_S, STOP_S, Lost
from tests.flow.moments import ends_well
from tests.support.flow_world import At, Tap, Turn, World, assert_once_and_true, transform

SERVICES = ["ledger", "objects", "queue"]


def comes_back(world: World, tap: Tap, *, after_s: float) -> tuple[Callable[[float], None], list[float]]:
    """A sleep that lets the test's clock pass, and what services are away be back when so much of it has."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        world.clock.advance(seconds)
        if sum(slept) >= after_s:
            tap.away.clear()

    return sleep, slept


@pytest.mark.parametrize("service", SERVICES)
def test_a_worker_waits_for_a_service_and_takes_up_its_work_again(world: World, service: str) -> None:
    """An hour away between two jobs: not one attempt, not one delivery of the second is spent on it."""
    first, second = world.submit(transform()), transform()
    tap = Tap()
    sleep, slept = comes_back(world, tap, after_s=3600)
    jobs = world.worker(tap, sleep=sleep).work(first.stage, max_jobs=2, idle_timeout_s=None)

    next(jobs)
    world.submit(second)
    tap.away.add(service)
    next(jobs)

    ends_well(world, first)
    ends_well(world, second)
    assert world.outcomes(second) == ["succeeded"]
    assert 3600 <= sum(slept) < 3600 + LONGEST_OUTAGE_PAUSE_S
    assert tap.calls.count("queue.receive") == 2, "nothing is received while a service is away"


@pytest.mark.parametrize("service", SERVICES)
def test_a_worker_that_never_had_its_services_says_so_and_ends(world: World, service: str) -> None:
    spec = world.submit(transform())

    with pytest.raises(InfrastructureError, match=rf"^{service}\."):
        world.deliver(spec.stage, Tap(away={service}))

    assert world.ledger.attempts(spec.run_id) == ()
    began = world.clock.now()
    world.deliver(spec.stage)
    assert world.clock.now() == began, "the message was never taken"
    ends_well(world, spec)


def test_an_outage_counts_as_idle_time(world: World) -> None:
    tap = Tap()
    worker = world.worker(tap, sleep=world.clock.advance, idle=lambda _: tap.away.add("ledger"))

    with pytest.raises(InfrastructureError, match=r"^ledger\."):
        list(worker.work(transform().stage, max_jobs=None, idle_timeout_s=120))

    assert tap.calls.count("queue.receive") == 1


def test_an_outage_in_the_middle_of_a_job_costs_that_one_try(world: World) -> None:
    """The attempt at hand is lost with the ledger; the next worker that has one carries the plan out."""
    spec = world.submit(transform())
    tap = Tap().lose(At("after", "ledger.plan"), "ledger", "tables", "objects")
    sleep, _ = comes_back(world, tap, after_s=600)

    ended = list(world.worker(tap, sleep=sleep).work(spec.stage, max_jobs=2, idle_timeout_s=None))

    manifest = ends_well(world, spec)
    assert ended == [manifest]
    assert world.outcomes(spec) == ["lost", "succeeded"]
    assert len(world.engine.jobs) == 1


def test_a_run_whose_record_cannot_be_asked_for_spends_no_try(world: World) -> None:
    """S3 might say that it is over: the last try, too, is not used up, and nothing is decided, before it has."""
    spec = world.submit(transform(max_attempts=1))
    for _ in range(5):
        world.deliver(
            spec.stage, Tap().fail(At("before", "objects.get"), TransientError("expected an answer, got none"))
        )

    world.work_off(spec.stage)

    ends_well(world, spec)
    assert world.outcomes(spec) == [*["handed back"] * 5, "succeeded"]


def test_the_idle_worker_is_told_which_queue_was_empty(world: World) -> None:
    told = list[object]()

    list(world.worker(idle=told.append).work(transform().stage, max_jobs=None, idle_timeout_s=60))

    assert told == [transform().stage] * 3


# ---------------------------------------------------------------- when the tries are used up


@pytest.mark.parametrize("category", list(Category))
def test_the_message_of_a_run_that_failed_is_kept_where_a_person_may_mend_the_cause(
    world: World, category: Category
) -> None:
    from runner.model.errors import ERRORS
    from runner.model.policy import POLICY

    spec = world.submit(transform(max_attempts=2))
    world.engine.script = [Turn(raises=ERRORS[category]("it said no"))] * 2

    world.work_off(spec.stage)

    assert assert_once_and_true(world, spec).state is State.FAILED
    kept = [(each.body, each.reason) for each in world.queue.dead_letters(spec.stage)]
    assert kept == ([(spec.to_json(), f"{category.value}: it said no")] if POLICY[category].retry else [])
    assert world.queue.depth(spec.stage) == 0


def test_dying_between_the_record_and_the_dead_letter_keeps_it(world: World) -> None:
    spec = world.submit(transform(max_attempts=1))
    world.engine.script = [Turn(raises=InfrastructureError("no disk"))]

    world.work_off(spec.stage, Tap().crash(At("before", "queue.bury")))

    assert assert_once_and_true(world, spec).state is State.FAILED
    assert [each.body for each in world.queue.dead_letters(spec.stage)] == [spec.to_json()]


# ---------------------------------------------------------------- long jobs


def test_a_copy_of_a_long_jobs_message_is_looked_at_less_and_less_often(world: World) -> None:
    """SQS hides a message for 12 hours at most and counts how often it is delivered; the lease knows no such limits."""
    spec = world.submit(transform())
    deliveries = 0

    def days_go_by() -> None:
        nonlocal deliveries
        began = world.clock.now()
        attempt = 1
        while (world.clock.now() - began).total_seconds() < 3 * 24 * 3600:
            world.ledger.heartbeat(spec.run_id, attempt)
            other = world.worker()
            for _ in other.work(spec.stage, max_jobs=1, idle_timeout_s=LEASE_S / 4):
                deliveries += 1

    zombie = world.deliver(spec.stage, Tap().pause(At("after", "engine.execute"), days_go_by))
    world.work_off(spec.stage)

    ends_well(world, spec)
    assert not isinstance(zombie, Lost)
    assert 10 < deliveries < 500, "SQS gives a message up after 1,000"


# ---------------------------------------------------------------- what a killed worker leaves


def test_the_next_worker_removes_the_folders_of_one_that_was_killed_and_no_others(tmp_path: Path) -> None:
    """A real process, killed for real: the kernel lets go of its lock, and of nobody else's."""
    script = (
        "import sys, time, types, pathlib, uuid\n"
        "from runner.flow.room import room\n"
        "ports = types.SimpleNamespace(scratch=pathlib.Path(sys.argv[1]))\n"
        "with room(types.SimpleNamespace(run_id=uuid.uuid4()), ports) as made:\n"
        "    print(made.folder, flush=True)\n"
        "    time.sleep(600)\n"
    )
    asked = [sys.executable, "-c", script, str(tmp_path)]
    with (
        subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as killed,
        subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as alive,
    ):
        try:
            folders = [Path(each.stdout.readline().strip()) for each in (killed, alive) if each.stdout]
            assert all(each.is_dir() for each in folders)
            killed.kill()
            killed.wait()

            swept = sweep(tmp_path)

            assert swept == 1
            assert [each.is_dir() for each in folders] == [False, True]
        finally:
            killed.kill()
            alive.kill()


def test_a_worker_that_cannot_give_its_job_back_in_time_is_ended_all_the_same(tmp_path: Path) -> None:
    """A service that it asks does not answer: what is not given back is the lease's to give back."""
    script = (
        "import os, signal, time\n"
        "from runner import worker\n"
        "worker.STOP_S = 0.2\n"
        "with worker.Worker(None, None).stops_on_sigterm():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    while True:\n"
        "        time.sleep(600)\n"
    )

    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, timeout=60)

    assert ended.returncode == 75
    assert STOP_S < 30, "ECS kills after 30 seconds"
