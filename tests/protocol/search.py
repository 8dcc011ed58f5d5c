"""The search: every state that steps can lead to, breadth first, so that what is found wrong has no shorter history."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S", bound=Hashable)


class Step(NamedTuple):
    """One thing that happens at once."""

    name: str
    says: str


class Broken(NamedTuple):
    """An invariant that does not hold, and how that shows."""

    invariant: str
    says: str


@dataclass(frozen=True)
class Violation:
    broken: Broken
    trace: tuple[Step, ...]
    """The steps that lead there from the beginning; there is no shorter way."""

    def __str__(self) -> str:
        lines = [f"{number:>3}  {step.name:<12} {step.says}" for number, step in enumerate(self.trace, 1)]
        return "\n".join([*lines, f"  => {self.broken.invariant}: {self.broken.says}"])


@dataclass(frozen=True)
class Searched(Generic[S]):
    states: int
    names: frozenset[str]
    """Of the steps that were taken."""
    violation: Violation | None


class TooManyStates(Exception):
    """The model is not as small as it was meant to be."""


def search(
    first: S,
    *,
    steps: Callable[[S], Iterable[tuple[Step, S]]],
    check: Callable[[S, Step, S], Broken | None],
    is_end: Callable[[S], bool],
    stuck: Callable[[S], Broken | None],
    most: int,
) -> Searched[S]:
    """Look at every step from every state, then whether an end can still be reached from each.

    `check` judges a step by the states before and after it, `stuck` a state from which no end can be reached; None from
    either lets it pass. Raises `TooManyStates` over `most`.
    """
    number_of = {first: 0}
    states = [first]
    came_by: list[tuple[int, Step]] = []  # of state 1 and the following: the first way to each
    before: list[list[int]] = [[]]  # of each state: all states that lead to it
    names: set[str] = set()

    def way_to(number: int) -> tuple[Step, ...]:
        way = []
        while number:
            number, step = came_by[number - 1]
            way.append(step)
        return tuple(reversed(way))

    def found(broken: Broken, *trace: Step) -> Searched[S]:
        return Searched(len(states), frozenset(names), Violation(broken, trace))

    for here, state in enumerate(states):  # grows while it is walked
        for step, after in steps(state):
            names.add(step.name)
            if broken := check(state, step, after):
                return found(broken, *way_to(here), step)
            number = number_of.setdefault(after, len(states))
            if number == len(states):
                if number >= most:
                    raise TooManyStates(f"search: expected at most {most:,} states, got more")
                states.append(after)
                came_by.append((here, step))
                before.append([])
            before[number].append(here)

    ends_well = bytearray(len(states))
    to_do = [number for number, state in enumerate(states) if is_end(state)]
    for number in to_do:
        ends_well[number] = 1
    while to_do:
        for number in before[to_do.pop()]:
            if not ends_well[number]:
                ends_well[number] = 1
                to_do.append(number)
    lost = ends_well.find(0)
    while lost >= 0:
        if broken := stuck(states[lost]):
            return found(broken, *way_to(lost))
        lost = ends_well.find(0, lost + 1)
    return Searched(len(states), frozenset(names), None)
