"""What each category of failure leads to: one pure table, and the back-off it asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runner.model.errors import Category, Failure
from runner.model.manifest import State

LEASE_S = 60.0
"""How long a claim holds without a heartbeat: the time after which a dead worker's run goes on elsewhere."""
HEARTBEATS_A_LEASE = 4

BACK_OFF_FIRST_S = 1.0
BACK_OFF_LONGEST_S = 300.0
LONGEST_TOLD_S = 24 * 60 * 60.0
"""Of the waits that others ask for. A child may ask for any, in a rate limit's name."""
_DOUBLINGS = 10
"""More than it takes to reach the longest; a run that waits for its ledger for days must not overflow a float."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    retry: bool
    alert: bool


POLICY: dict[Category, Policy] = {
    Category.TRANSIENT: Policy(retry=True, alert=False),
    Category.RATE_LIMIT: Policy(retry=True, alert=False),
    Category.INFRASTRUCTURE: Policy(retry=True, alert=True),
    Category.DATA: Policy(retry=False, alert=False),
    Category.SCHEMA: Policy(retry=False, alert=True),
    Category.LOGIC: Policy(retry=False, alert=False),
    Category.SPEC: Policy(retry=False, alert=False),
    Category.CONFLICT: Policy(retry=False, alert=False),
}


def may_retry(failure: Failure, *, attempt: int, max_attempts: int, planned: bool = False) -> bool:
    """While tries are left; and for as long as it takes once a plan is in force, for part of it may have landed."""
    return POLICY[failure.category].retry and (planned or attempt < max_attempts)


def back_off_s(failure: Failure, *, attempt: int, jitter: Callable[[], float]) -> float:
    """Seconds to wait after attempt number `attempt`: 1, 2, 4 … with jitter, or as a rate limit said.

    `jitter` returns a number in [0, 1); the wait is spread over the upper half of its step, so that workers
    that failed together do not come back together.
    """
    if failure.retry_after_s is not None:
        return min(max(failure.retry_after_s, 0.0), LONGEST_TOLD_S)
    step = min(BACK_OFF_FIRST_S * 2.0 ** min(attempt - 1, _DOUBLINGS), BACK_OFF_LONGEST_S)
    return step * (0.5 + jitter() / 2)


def exit_code(failure: Failure | None, state: State = State.SUCCEEDED) -> int:
    """0 succeeded, 1 failed for good or cancelled, 2 bad usage or spec, 75 (EX_TEMPFAIL of sysexits.h) may be retried.

    `state` is the run's, where there was one.
    """
    if failure is None:
        return 1 if state is State.CANCELLED else 0
    if failure.category is Category.SPEC:
        return 2
    return 75 if POLICY[failure.category].retry else 1
