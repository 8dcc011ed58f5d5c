"""The numbered steps of a run: every call that a worker makes on a port, before and after its effect.

Nobody writes them down: one undisturbed run is recorded, and what it came to are the steps.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.model.errors import InfrastructureError, LogicError, TransientError

Deed = Literal["kill", "stop", "term", "logic", "transient", "infrastructure"]
"""What happens at a moment: SIGKILL, SIGSTOP or SIGTERM to the process itself, or the call raises that category."""


@dataclass(frozen=True)
class Act:
    """At this moment (`before-ledger.plan`, `after-tables.commit-2`), that."""

    at: str
    do: Deed


class Tap:
    """What a worker's calls pass through. Only the job's own thread counts: heartbeats come when they come."""

    def __init__(self, script: Iterable[Act], trace: Path) -> None:
        self._script: dict[str, Deed] = {act.at: act.do for act in script}
        self._calls = Counter[str]()
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def call(self, name: str, effect: Callable[[], Any]) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return effect()
        self._calls[name] += 1
        suffix = f"-{self._calls[name]}" if self._calls[name] > 1 else ""
        self._moment(f"before-{name}{suffix}")
        result = effect()
        self._moment(f"after-{name}{suffix}")
        return result

    def _moment(self, at: str) -> None:
        os.write(self._trace, at.encode() + b"\n")
        match self._script.pop(at, None):
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "term":
                os.kill(os.getpid(), signal.SIGTERM)
            case "logic":
                raise LogicError(f"{at}: expected no fault, got one that the test made")
            case "transient":
                raise TransientError(f"{at}: expected an answer, got none, as the test wanted")
            case "infrastructure":
                raise InfrastructureError(f"{at}: expected an answer, got none, as the test wanted")
            case None:
                pass


def trace_of(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def from_receive_on(moments: list[str]) -> list[str]:
    """The steps between receive and acknowledge, and the one after it."""
    first = moments.index("after-queue.receive")
    last = moments.index("after-queue.delete")
    return moments[first : last + 1]


def is_past(moments: list[str], at: str, other: str) -> bool:
    """Whether `other` lies behind, when a worker has come to `at`."""
    return moments.index(at) >= moments.index(other)
