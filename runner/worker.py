"""The worker: receive, keep the lease and the message while a job is at work, settle the message by how it ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from types import FrameType

from runner.flow.decide import upload_log
from runner.flow.job import run_job
from runner.flow.room import Room
from runner.flow.waiting import HandedBack, Waiting
from runner.log import logger
from runner.model.errors import ConflictError, Failure, RunnerError, SpecError
from runner.model.manifest import Manifest
from runner.model.policy import HEARTBEATS_A_LEASE
from runner.model.spec import JobSpec, Stage, parse_spec
from runner.ports import LEASE_S, Claimed, Delivery, LostLease, Ports, Queue

OUTAGE_PAUSE_S = 2.0
"""How long a message rests after its worker met a service that is away."""

LONGEST_POLL_S = 20.0
"""SQS's own limit for one receive."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Another attempt has the run: whatever it comes to, it is not ours to tell."""


Outcome = Manifest | Waiting | Lost | Failure
"""How one delivery ended; a bare failure is a message that never became a run."""


class Worker:
    """Takes jobs of one stage, one at a time."""

    def __init__(self, ports: Ports, queue: Queue, *, lease_s: float = LEASE_S) -> None:
        self._ports = ports
        self._queue = queue
        self._lease_s = lease_s
        self.stopping = False
        """True once a signal asked to stop: no further job is taken."""
        self._at_work = False

    @contextmanager
    def stops_on_sigterm(self) -> Iterator[None]:
        """Within: SIGTERM stops taking work, and hands back the job at hand. ECS sends it before it kills."""

        def stop(signum: int, _: FrameType | None) -> None:
            logger.warning("told to stop by %s", signal.Signals(signum).name)
            self.stopping = True
            if self._at_work:
                raise HandedBack

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def work(self, stage: Stage, *, max_jobs: int | None, idle_timeout_s: float | None) -> Iterator[Outcome]:
        """Jobs of `stage` until `max_jobs` have been taken, the queue was empty for so long, or SIGTERM came."""
        taken, idle_s = 0, 0.0
        while not self.stopping and (max_jobs is None or taken < max_jobs):
            wait_s = LONGEST_POLL_S if idle_timeout_s is None else min(LONGEST_POLL_S, idle_timeout_s - idle_s)
            delivery = self._queue.receive(stage, wait_s=max(0.0, wait_s))
            if delivery is None:
                idle_s += wait_s
                if idle_timeout_s is not None and idle_s >= idle_timeout_s:
                    return
                continue
            taken, idle_s = taken + 1, 0.0
            yield self.process(delivery)

    def process(self, delivery: Delivery) -> Outcome:
        """One delivery. The message goes only when its run is decided and recorded, or when it can never become one."""
        try:
            spec = parse_spec(delivery.body, what=f"message {delivery.message_id}")
            _for_stage(spec, delivery.stage)
            ended = self._carry(spec, delivery)
        except HandedBack:
            self._queue.hide(delivery, seconds=0)
            return Waiting(seconds=0, failure=None)
        except (SpecError, ConflictError) as refused:
            # Delivered again it would be refused again: no spec, another run's id, a record that is somebody else's.
            logger.error("%s", refused.message)
            self._queue.bury(delivery, reason=refused.message)
            return refused.failure
        except RunnerError:
            # No record could be made, so the message is all there is of this delivery: it comes back soon.
            with suppress(RunnerError):
                self._queue.hide(delivery, seconds=OUTAGE_PAUSE_S)
            raise
        match ended:
            case Waiting():
                self._queue.hide(delivery, seconds=ended.seconds)
            case Manifest():
                self._queue.delete(delivery)
            case Lost():
                logger.warning("run %s is another attempt's now", spec.run_id)
        return ended

    def _carry(self, spec: JobSpec, delivery: Delivery) -> Manifest | Waiting | Lost:
        """The job itself. Only within does a signal raise `HandedBack`."""
        self._at_work = True
        try:
            if self.stopping:  # told to while it waited for this delivery
                raise HandedBack
            return run_job(spec, self._ports, keep=lambda *job: self._keep(delivery, *job))
        except LostLease:
            return Lost()
        finally:
            self._at_work = False

    @contextmanager
    def _keep(self, delivery: Delivery, spec: JobSpec, claimed: Claimed, room: Room) -> Iterator[None]:
        """One task for both: the lease in the ledger and the message's visibility, and the log as far as it goes."""
        done = Event()
        beat = Thread(target=self._beat, args=(done, delivery, spec, claimed, room), daemon=True)
        beat.start()
        try:
            yield
        finally:
            done.set()
            beat.join()

    def _beat(self, done: Event, delivery: Delivery, spec: JobSpec, claimed: Claimed, room: Room) -> None:
        while not done.wait(self._lease_s / HEARTBEATS_A_LEASE):
            try:
                if self._ports.ledger.heartbeat(spec.run_id, claimed.attempt):
                    self._ports.engine(spec.stage).stop()
                self._queue.hide(delivery, seconds=self._lease_s)
                upload_log(spec, claimed.attempt, self._ports, room)
            except LostLease:
                # The job learns it at its next write to the ledger; until then it harms nobody.
                return
            except RunnerError as error:
                logger.warning("heartbeat: %s", error.message)


def _for_stage(spec: JobSpec, stage: Stage) -> None:
    if spec.stage is not stage:
        raise SpecError(
            f"run {spec.run_id}: expected a spec for stage {stage.value}, got one for {spec.stage.value}",
            subject="stage",
        )
