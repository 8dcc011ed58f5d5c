"""Workers die, freeze and are stopped: a sample of every step, so that each kind of step is hurt once.

The long form, every fault at every step, is `make faults`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import Random

import pytest

from tests.faults import stories
from tests.faults.stories import KINDS, Kind, at_steps, steps_on
from tests.faults.tally import Found, Scenario, Story
from tests.faults.yard import Ground

AT_ONCE = 4
SEED = 4


def play(ground: Ground, scenarios: Sequence[Scenario]) -> list[Found]:
    """All of them side by side; the test fails with all that they found."""
    assert scenarios
    with ThreadPoolExecutor(AT_ONCE) as threads:
        # What is random here are no secrets.
        found = list(threads.map(lambda each: each.play(ground, Random(SEED)), scenarios))  # noqa: S311
    said = [
        f"{scenario.name}: {violation}"
        for scenario, each in zip(scenarios, found, strict=True)
        for violation in each.violations
    ]
    assert said == []
    assert all(each.injected for each in found)
    return found


def some(ground: Ground, kind: Kind, *, first: int, every: int) -> Sequence[str]:
    return steps_on(ground).of(kind)[first::every]


def test_the_steps_are_those_of_the_design(ground: Ground) -> None:
    steps = steps_on(ground).of(KINDS["load"])  # it has an input to pin
    order = (
        "after-queue.receive",
        "after-ledger.claim",
        "after-ledger.lease",
        "after-logic.checkout",
        "after-ledger.pin",
        "after-engine.execute",
        "after-ledger.plan",
        "after-catalog.write_metadata",
        "after-catalog.commit_table",
        "after-ledger.decide",
        "after-ledger.mark_recorded",
        "after-queue.delete",
    )
    assert [each for each in steps if each in order] == list(order)
    assert len(steps) > 40


# Three times the same steps, each time others of them: together they are hurt at all.
@pytest.mark.parametrize(("told", "first"), [("killed", 0), ("woken", 3), ("stopped", 6)])
def test_a_run_ends_once_whatever_happens_to_its_worker(ground: Ground, told: str, first: int) -> None:
    kind = KINDS["query"]
    play(ground, list(at_steps(told, getattr(stories, told), kind, some(ground, kind, first=first, every=9))))


@pytest.mark.parametrize(("name", "at"), [("load", "after-tables.commit"), ("merge", "after-catalog.write_metadata")])
def test_in_the_midst_of_a_commit(ground: Ground, name: str, at: str) -> None:
    kind = KINDS[name]
    play(ground, [*at_steps("killed", stories.killed, kind, [at]), *at_steps("woken", stories.woken, kind, [at])])


def test_a_zombie_that_fails_and_one_whose_heir_has_failed(ground: Ground) -> None:
    kind = KINDS["append"]
    steps = ("before-ledger.plan", "before-tables.commit")
    play(
        ground,
        [
            *at_steps("zombie that fails", stories.woken_to_fail, kind, ["after-ledger.plan"]),
            *at_steps("zombie of a failed run", stories.woken_to_succeed, kind, steps),
        ],
    )


def test_two_tables_of_a_model_that_draws_its_rows(ground: Ground) -> None:
    at = "after-tables.commit"
    play(ground, [Story(name=f"two tables/{at}", fault="killed between two tables", tell=partial(stories.torn, at))])


def test_what_else_happens_at_once(ground: Ground) -> None:
    append, query = KINDS["append"], KINDS["query"]
    play(
        ground,
        [
            *at_steps("duplicated message", stories.doubled, query, ["before-tables.commit"]),
            Story(name="moved input", fault="moved input", tell=partial(stories.moved, "before-engine.execute")),
            Story(
                name="clock",
                fault="clock an hour wrong",
                tell=partial(stories.misdated, append, 3600.0, "after-catalog.commit_table"),
            ),
        ],
    )
