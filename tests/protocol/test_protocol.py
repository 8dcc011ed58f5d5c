"""The protocol holds in every state of its model, and each of its clauses is there for a reason that shows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.protocol import model
from tests.protocol.clauses import CLAUSES, SCENARIOS, story, without
from tests.protocol.invariants import INVARIANTS, find
from tests.protocol.model import STEPS, WORLD, Budget, Scenario, State
from tests.protocol.search import Broken, Searched, Step, TooManyStates, search

ROOT = Path(__file__).parents[2]

WORKERS_STEPS = {"receive"} | STEPS.keys() - {"void", "note"}
"""Those two go by the names of commit and record."""

NOT_MODELLED = {
    "audit": "decides what a plan holds, not how it is carried out",
    "production": "refuses a run before it executes, like any failure of resolve",
    "job": "the order of the others",
    "room": "a folder of the attempt's own",
    "waiting": "how a delivery can end",
}
SECOND_LOCKS = {name for name, clause in CLAUSES.items() if clause.behind}


@cache
def searched(scenario: Scenario) -> Searched[State]:
    return find(scenario)


# ---------------------------------------------------------------- the protocol


@pytest.mark.parametrize("name", SCENARIOS)
def test_whatever_the_world_does_no_invariant_breaks_and_the_end_can_be_reached(name: str) -> None:
    scenario = SCENARIOS[name]
    found = searched(scenario)

    assert found.violation is None, f"\n{found.violation}"
    # Each disturbance can come in any state of a run that nothing disturbs, and leads to states of its own.
    undisturbed = searched(replace(scenario, budget=Budget()))
    assert undisturbed.names == WORKERS_STEPS - {"settle", "fail", "fence", "look"}
    assert undisturbed.states > len(undisturbed.names)
    assert found.states > undisturbed.states * (1 + sum(scenario.budget))


def test_every_step_of_a_worker_and_of_the_world_is_taken() -> None:
    taken = {name for scenario in SCENARIOS.values() for name in searched(scenario).names}

    assert taken == WORKERS_STEPS | set(WORLD)


@pytest.mark.parametrize("name", CLAUSES)
def test_without_a_clause_an_invariant_breaks(name: str) -> None:
    violation = without(name)

    assert violation is not None
    assert violation.broken.invariant == CLAUSES[name].breaks
    assert violation.trace[0].name == "receive"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_without_the_second_locks_alone_nothing_breaks(scenario: str) -> None:
    """Should this fail, the clause that they stand behind has got a hole, or they have become first locks."""
    found = searched(replace(SCENARIOS[scenario], without=frozenset(SECOND_LOCKS)))

    assert found.violation is None, f"\n{found.violation}"


@pytest.mark.parametrize("name", sorted(SECOND_LOCKS))
def test_a_second_lock_holds_where_the_first_is_left_out(name: str) -> None:
    clause = CLAUSES[name]
    assert clause.behind is not None

    found = find(replace(SCENARIOS[clause.scenario], without=frozenset({clause.behind})), clause.breaks)

    assert found.violation is None, f"\n{found.violation}"


def test_every_invariant_is_broken_by_leaving_some_clause_out() -> None:
    assert {clause.breaks for clause in CLAUSES.values()} == INVARIANTS.keys()


def test_every_clause_that_the_model_asks_for_is_listed_and_no_other() -> None:
    asked = re.findall(r'\.has\("(\w+)"\)', Path(model.__file__).read_text())

    assert set(asked) == CLAUSES.keys()


@pytest.mark.parametrize("name", ["acknowledge_last", "first_plan_wins"])
def test_a_story_is_told_step_by_step(name: str) -> None:
    violation = without(name)
    assert violation is not None

    title, *lines, broken = story(name).splitlines()

    assert title.startswith(f"without {name}")
    assert [line.split()[0] for line in lines] == [str(number) for number in range(1, len(violation.trace) + 1)]
    assert all(step.says in line for step, line in zip(violation.trace, lines, strict=True))
    assert broken == f"  => {violation.broken.invariant}: {violation.broken.says}"


# ---------------------------------------------------------------- the model and the code


def flow_names() -> Iterator[str]:
    for path in (ROOT / "runner" / "flow").glob("[!_]*.py"):
        yield path.stem
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield node.name


def test_the_models_steps_have_the_names_of_the_flows_and_the_workers() -> None:
    worker = (ROOT / "runner" / "worker.py").read_text()

    assert "queue.receive(" in worker
    assert "queue.delete(" in worker
    assert set(flow_names()) >= WORKERS_STEPS - {"receive", "acknowledge"}


def test_every_file_of_the_flow_is_modelled_or_left_out_for_a_reason() -> None:
    files = {path.stem for path in (ROOT / "runner" / "flow").glob("[!_]*.py")}

    assert files - WORKERS_STEPS == NOT_MODELLED.keys()


# ---------------------------------------------------------------- the search itself


def counting(
    limit: int, *, wrong: int | None = None, ends: frozenset[int] = frozenset(), most: int = 100
) -> Searched[int]:
    """A machine that adds one or two, up to a limit."""

    def steps(now: int) -> Iterator[tuple[Step, int]]:
        return ((Step(f"add {more}", ""), now + more) for more in (1, 2) if now + more <= limit)

    def check(before: int, step: Step, after: int) -> Broken | None:
        return Broken("wrong", f"{before} became {after}") if after == wrong else None

    return search(
        0,
        steps=steps,
        check=check,
        is_end=lambda now: now in ends,
        stuck=lambda now: Broken("stuck", f"at {now}"),
        most=most,
    )


def test_the_search_visits_each_state_once_and_finds_the_shortest_way() -> None:
    whole, found = counting(9, ends=frozenset({9})), counting(9, wrong=5).violation

    assert whole == Searched(10, frozenset({"add 1", "add 2"}), None)
    assert found is not None
    assert found.broken == Broken("wrong", "3 became 5")
    assert [step.name for step in found.trace] == ["add 1", "add 2", "add 2"]


def test_the_search_finds_the_nearest_state_that_no_end_can_be_reached_from() -> None:
    found = counting(9, ends=frozenset({6})).violation

    assert found is not None
    assert found.broken == Broken("stuck", "at 7")
    assert len(found.trace) == 4


def test_the_search_refuses_a_machine_that_is_larger_than_it_should_be() -> None:
    assert counting(9, ends=frozenset({9}), most=10).states == 10
    with pytest.raises(TooManyStates, match="at most 9 states"):
        counting(9, ends=frozenset({9}), most=9)


def test_the_protocols_document_has_every_clause_as_it_is_here() -> None:
    page = (Path(__file__).parents[2] / "docs/decisions/012-delivery-protocol.md").read_text("utf-8")
    told = [line for line in page.splitlines() if line.startswith("| `")]

    assert told == [f"| `{name}` | {each.says} | {each.without_it} | {each.breaks} |" for name, each in CLAUSES.items()]
