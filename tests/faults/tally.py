"""What was injected and what came of it: a scenario, what it found, and the table over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Protocol

from tests.faults.invariants import Violation, doubled, lost

if TYPE_CHECKING:
    from tests.faults.yard import Ground


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one scenario came to."""

    injected: int
    """Faults that really happened: a process that was killed, an answer that was lost."""
    runs: int
    attempts: int
    violations: tuple[Violation, ...] = ()


class Scenario(Protocol):
    """One story: jobs, faults, and what has to hold in the end."""

    @property
    def name(self) -> str:
        """Unique: `--only` names scenarios by a part of it, and a failure is told with it."""

    @property
    def fault(self) -> str:
        """The row of the table that it counts in."""

    def play(self, ground: Ground, chance: Random) -> Found:
        """Play it in a yard of its own; whatever is random comes from `chance`. Scenarios are played side by side."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """A scenario from a function; one need not be a class of its own."""

    name: str
    fault: str
    tell: Callable[[Ground, Random], Found]

    def play(self, ground: Ground, chance: Random) -> Found:
        return self.tell(ground, chance)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: all scenarios of one fault."""

    fault: str
    injected: int
    runs: int
    attempts: int
    lost: int
    doubled: int
    violations: int
    """Of any invariant, those that make the two columns before among them."""


def row(fault: str, found: Iterable[Found]) -> Row:
    found = tuple(found)
    return Row(
        fault=fault,
        injected=sum(each.injected for each in found),
        runs=sum(each.runs for each in found),
        attempts=sum(each.attempts for each in found),
        # Each was played in a yard of its own: the runs of two have no id in common.
        lost=sum(len(lost(each.violations)) for each in found),
        doubled=sum(len(doubled(each.violations)) for each in found),
        violations=sum(len(each.violations) for each in found),
    )


def total(rows: Iterable[Row]) -> Row:
    rows = tuple(rows)
    return Row(
        fault="all",
        injected=sum(each.injected for each in rows),
        runs=sum(each.runs for each in rows),
        attempts=sum(each.attempts for each in rows),
        lost=sum(each.lost for each in rows),
        doubled=sum(each.doubled for each in rows),
        violations=sum(each.violations for each in rows),
    )


def last_line(whole: Row) -> str:
    """What the suite's output ends with."""
    return f"faults: {whole.injected} injected, {whole.runs} runs, {whole.lost} lost, {whole.doubled} doubled"
