"""What a failed attempt leads to: back to the queue by the policy's table, or decided failed with what has landed."""

from __future__ import annotations

import random

from runner.flow.commit import Refused
from runner.flow.decide import decide, decide_cancelled, look, upload_log
from runner.flow.fence import fence
from runner.flow.room import Room
from runner.flow.waiting import Waiting
from runner.log import logger
from runner.model.errors import Category, Failure, RunnerError
from runner.model.manifest import Manifest, Pin, Plan, Report
from runner.model.policy import POLICY, back_off_s, may_retry
from runner.model.spec import JobSpec
from runner.ports import Claimed, Ports


def fail(
    spec: JobSpec,
    claimed: Claimed,
    ports: Ports,
    room: Room,
    *,
    pins: tuple[Pin, ...],
    plan: Plan | None,
    report: Report,
    why: Failure | Refused,
) -> Manifest | Waiting:
    """Give the run back where the policy allows another try; else decide it failed, with what has landed.

    A run that is to be cancelled is decided so, whatever it met: being stopped for it, perhaps.
    """
    refused = why if isinstance(why, Refused) else None
    failure = why.failure if isinstance(why, Refused) else why
    alert = POLICY[failure.category].alert
    logger.error("%s: %s", failure.category.value, failure.message, extra={"alert": alert})
    planned = plan is not None
    if not planned and ports.ledger.cancel_wanted(spec.run_id):
        return decide_cancelled(spec, claimed, ports, room, pins=pins, report=report)
    may_try = may_retry(failure, attempt=claimed.tries, max_attempts=spec.max_attempts, planned=planned)
    if may_try or (plan and refused and not fence(spec, claimed, plan, refused, ports)):
        wait_s = back_off_s(failure, attempt=claimed.tries, jitter=random.random)
        logger.warning("attempt %d of %d gives the run back for %.1f s", claimed.tries, spec.max_attempts, wait_s)
        _upload_what_there_is(spec, claimed, ports, room)
        ports.ledger.release(spec.run_id, claimed.attempt, outcome="retry", failure=failure, wait_s=wait_s)
        return Waiting(seconds=wait_s, failure=failure)
    landed = look(spec, plan, ports)
    report = plan.report if plan else report
    return decide(spec, claimed, ports, room, pins=pins, plan=plan, outputs=landed, failure=failure, report=report)


def unheard(spec: JobSpec, claimed: Claimed, ports: Ports, failure: Failure) -> Waiting:
    """Given back without a try spent on it: an outage must not use up runs."""
    wait_s = back_off_s(failure, attempt=claimed.attempt, jitter=random.random)
    logger.warning("the run is given back for %.1f s: %s", wait_s, failure.message)
    ports.ledger.release(spec.run_id, claimed.attempt, outcome="handed back", failure=failure, wait_s=wait_s)
    return Waiting(seconds=wait_s, failure=failure)


def settle(spec: JobSpec, ports: Ports) -> Failure:
    """Why a run whose tries are used up failed: the last one ended without a word, whatever those before it said."""
    said = [each.failure.message for each in ports.ledger.attempts(spec.run_id) if each.failure]
    came = (
        f"the last lost with its worker, and one before it with: {said[-1]}"
        if said
        else "none: each was lost with its worker"
    )
    return Failure(
        category=Category.INFRASTRUCTURE,
        message=f"expected one of {spec.max_attempts} attempts to end, got {came}",
        hint="was the worker killed for its memory? raise resources.memory_mib",
    )


def unexpected(error: Exception) -> Failure:
    """A fault of the product's own, with its traceback in the run's log."""
    logger.error("unexpected %s", type(error).__name__, exc_info=error)
    return Failure(
        category=Category.INFRASTRUCTURE,
        message=f"unexpected {type(error).__name__}: {error}",
        hint="the log has the traceback",
    )


def _upload_what_there_is(spec: JobSpec, claimed: Claimed, ports: Ports, room: Room) -> None:
    try:
        upload_log(spec, claimed.attempt, ports, room)
    except RunnerError as error:
        # S3 may be what is away: giving the run back matters more than its log.
        logger.warning("the log of attempt %d is not kept: %s", claimed.attempt, error.message)
