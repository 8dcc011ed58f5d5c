"""The worker: receive, keep the lease and the message while a job is at work, settle the message by how it ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from types import FrameType

from runner.flow.decide import upload_log
from runner.flow.job import run_job
from runner.flow.room import Room, sweep
from runner.flow.waiting import HandedBack, Waiting
from runner.log import logger
from runner.model.errors import ConflictError, Failure, RunnerError, SpecError
from runner.model.manifest import Manifest
from runner.model.policy import HEARTBEATS_A_LEASE, POLICY
from runner.model.spec import JobSpec, Stage, parse_spec
from runner.ports import LEASE_S, Claimed, Delivery, LostLease, Ports, Queue

OUTAGE_PAUSE_S = 2.0
"""How long a message rests after its worker met a service that is away."""

LONGEST_OUTAGE_PAUSE_S = 60.0

LONGEST_POLL_S = 20.0
"""SQS's own limit for one receive."""

STOP_S = 28.0
"""ECS kills 30 s after it asked to stop: what cannot be given back by then is left to the lease."""
EXIT_STOPPED = 75

_OFTEN = 10
"""A message delivered more often than so is a job of many hours, or a copy: it is looked at less and less often."""
_LONGEST_BUSY_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Another attempt has the run: whatever it comes to, it is not ours to tell."""


Outcome = Manifest | Waiting | Lost | Failure
"""How one delivery ended; a bare failure is a message that never became a run."""


class Worker:
    """Takes jobs of one stage, one at a time. `idle` is called with the stage whenever its queue was empty."""

    def __init__(
        self,
        ports: Ports,
        queue: Queue,
        *,
        lease_s: float = LEASE_S,
        idle: Callable[[Stage], object] = lambda _: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ports = ports
        self._queue = queue
        self._lease_s = lease_s
        self._idle = idle
        self._sleep = sleep
        self.stopping = False
        """True once a signal asked to stop: no further job is taken."""
        self._at_work = False

    @contextmanager
    def stops_on_sigterm(self) -> Iterator[None]:
        """Within: SIGTERM stops taking work, and hands back the job at hand. ECS sends it before it kills.

        A process that has not ended `STOP_S` later, for a service that it gives the job back to is away, is ended.
        """

        def stop(_: int, __: FrameType | None) -> None:
            if not self.stopping:
                signal.setitimer(signal.ITIMER_REAL, STOP_S)
            self.stopping = True
            if self._at_work:
                self._at_work = False  # a second signal must not cut off the giving back
                raise HandedBack

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda *_: os._exit(EXIT_STOPPED))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def work(self, stage: Stage, *, max_jobs: int | None, idle_timeout_s: float | None) -> Iterator[Outcome]:
        """Jobs of `stage` until `max_jobs` have been taken, the queue was empty for so long, or SIGTERM came.

        While a service is away no message is taken: the worker waits, longer each time, and goes on when it is back.
        Raises `InfrastructureError` or `TransientError` where the services have not answered once, where one is away
        for all of `idle_timeout_s`, and where the last of `max_jobs` met an outage; and, before any message is taken,
        where jobs of this stage may not run on this machine.
        """
        self._ports.engine(stage).prepare()
        if swept := sweep(self._ports.scratch):
            logger.info("%d folders of workers that were killed are removed", swept)
        taken, idle_s, away_s, well = 0, 0.0, 0.0, False
        while not self.stopping and (max_jobs is None or taken < max_jobs):
            left_s = LONGEST_POLL_S if idle_timeout_s is None else max(0.0, idle_timeout_s - idle_s)
            try:
                self._ports.ledger.now()
                self._ports.objects.check()
                wait_s = min(LONGEST_POLL_S, left_s)
                delivery = self._queue.receive(stage, wait_s=wait_s)
            except RunnerError as away:
                away_s = _longer(away_s)
                if not well or (idle_timeout_s is not None and left_s <= away_s):
                    raise
                logger.error("no job is taken, and again in %.0f s: %s", away_s, away.message)
                self._rest(away_s)
                idle_s += away_s
                continue
            well = True
            if delivery is None:
                away_s, idle_s = 0.0, idle_s + wait_s
                self._idle(stage)
                if idle_timeout_s is not None and idle_s >= idle_timeout_s:
                    return
                continue
            taken, idle_s = taken + 1, 0.0
            try:
                yield self.process(delivery)
                away_s = 0.0
            except RunnerError as away:
                if taken == max_jobs or self.stopping:
                    raise
                away_s = _longer(away_s)
                logger.error("message %s waits for a service that is away: %s", delivery.message_id, away.message)
                self._rest(away_s)

    def _rest(self, seconds: float) -> None:
        """In short pieces, for a signal only sets `stopping`."""
        while seconds > 0 and not self.stopping:
            self._sleep(min(seconds, 0.5))
            seconds -= 0.5

    def process(self, delivery: Delivery) -> Outcome:
        """One delivery. The message goes only when its run is decided and recorded, or when it can never become one."""
        try:
            spec = parse_spec(delivery.body, what=f"message {delivery.message_id}")
            _for_stage(spec, delivery.stage)
            ended = self._carry(spec, delivery)
        except HandedBack:
            logger.warning("told to stop: message %s is handed back", delivery.message_id)
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
                self._queue.hide(delivery, seconds=ended.seconds if ended.failure else _stretched(ended, delivery))
            case Manifest():
                self._acknowledge(ended, delivery)
            case Lost():
                logger.warning("run %s is another attempt's now", spec.run_id)
        return ended

    def _acknowledge(self, ended: Manifest, delivery: Delivery) -> None:
        """A run that is over needs its message no more, unless it failed for what a person can mend and redrive."""
        if ended.failure is not None and POLICY[ended.failure.category].retry:
            self._queue.bury(delivery, reason=f"{ended.failure.category.value}: {ended.failure.message}")
        else:
            self._queue.delete(delivery)

    def _carry(self, spec: JobSpec, delivery: Delivery) -> Manifest | Waiting | Lost:
        if self.stopping:  # told to while it waited for this delivery
            raise HandedBack
        try:
            return run_job(spec, self._ports, keep=lambda *job: self._keep(delivery, *job))
        except LostLease:
            return Lost()

    @contextmanager
    def _keep(self, delivery: Delivery, spec: JobSpec, claimed: Claimed, room: Room) -> Iterator[None]:
        """One task for both: the lease in the ledger and the message's visibility, and the log as far as it goes.

        Only within does a signal raise `HandedBack`.
        """
        done = Event()
        beat = Thread(target=self._beat, args=(done, delivery, spec, claimed, room), daemon=True)
        beat.start()
        try:
            self._at_work = True
            if self.stopping:  # told to while it claimed the run
                raise HandedBack
            yield
        finally:
            self._at_work = False
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


def _longer(away_s: float) -> float:
    """How long to wait for a service after having waited `away_s` for it: 2, 4, 8 … s."""
    return min(max(OUTAGE_PAUSE_S, away_s * 2), LONGEST_OUTAGE_PAUSE_S)


def _stretched(busy: Waiting, delivery: Delivery) -> float:
    """SQS gives a message up after so many deliveries, and a job of two days must not come to that."""
    return min(busy.seconds * max(1.0, delivery.receives / _OFTEN), max(busy.seconds, _LONGEST_BUSY_S))


def _for_stage(spec: JobSpec, stage: Stage) -> None:
    if spec.stage is not stage:
        raise SpecError(
            f"run {spec.run_id}: expected a spec for stage {stage.value}, got one for {spec.stage.value}",
            subject="stage",
        )
