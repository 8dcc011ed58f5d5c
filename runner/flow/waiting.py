"""How a delivery can end without the run being over."""

from __future__ import annotations

from dataclasses import dataclass

from runner.model.errors import Failure


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """The message is to come back in `seconds`; `failure` is what this attempt met, if it was one."""

    seconds: float
    failure: Failure | None


class HandedBack(BaseException):
    """Raised into a job at work when its worker is told to stop; no error, so nothing below takes it for one."""
