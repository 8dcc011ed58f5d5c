"""The suite finds what it is for: with one clause of the product taken out, the checker names the invariant it breaks.

Each story is told twice, the second time with nothing taken out: then it must find nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from runner.model.spec import Stage
from tests.faults.invariants import Expected, Violation
from tests.faults.points import Act
from tests.faults.stories import KINDS, carried
from tests.faults.yard import ROWS, Ground, Yard

Control = Callable[[Yard, str | None], None]
"""Told in a yard; with the name of a clause that its workers do without, or None."""


def dies_after_its_commit(yard: Yard, broken: str | None) -> None:
    """A snapshot has landed and nobody knows: the heir has to find it."""
    spec = yard.submit(yard.query(mode="append"), Expected(rows={"marts.drawn": ROWS}))
    victim = yard.worker(spec.stage, Act("after-tables.commit", "kill"), broken=broken)
    assert victim.wait() == -signal.SIGKILL
    yard.heir(spec.stage, broken=broken)
    yard.settle()


def dies_at_work(yard: Yard, broken: str | None) -> None:
    """All that is left of the run is its message."""
    spec = yard.submit(yard.query(mode="append"), Expected(rows={"marts.drawn": ROWS}))
    victim = yard.worker(spec.stage, Act("before-engine.execute", "kill"), broken=broken)
    assert victim.wait() == -signal.SIGKILL
    yard.heir(spec.stage, broken=broken)
    yard.settle()


def plans_too_late(yard: Yard, broken: str | None) -> None:
    """Its only try was taken for lost and the run decided failed, when it comes with its plan after all."""
    expected = Expected(states=frozenset({"failed"}), rows={"marts.drawn": ROWS})
    carried(yard, yard.query(mode="append"), Expected(rows={"marts.drawn": ROWS}))
    spec = yard.submit(yard.query(mode="append", max_attempts=1), expected)
    zombie = yard.worker(spec.stage, Act("before-ledger.plan", "stop"), broken=broken)
    assert zombie.wait_until_stopped()
    yard.heir(spec.stage)
    yard.settle()
    assert yard.run_row(spec.run_id)["state"] == "failed"
    zombie.resume()
    zombie.wait()


def plans_twice(yard: Yard, broken: str | None) -> None:
    """A table has landed, its bad rows not yet, by a plan that the ledger, back from a backup, has forgotten."""
    kind = KINDS["load"]
    expected = Expected(states=frozenset({"failed"}))
    spec = yard.submit(kind.begin(yard), expected)
    victim = yard.worker(spec.stage, Act("after-tables.commit", "kill"), broken=broken)
    assert victim.wait() == -signal.SIGKILL
    of_it = "WHERE run_id = %(run_id)s RETURNING run_id"
    for forgotten in (
        "UPDATE ledger.runs SET plan = NULL, pinned_at = NULL, attempt = 0, state = 'queued', lease_expires_at = NULL",
        "DELETE FROM ledger.pins",
        "DELETE FROM ledger.attempts",
    ):
        assert yard.rows_of(f"{forgotten} {of_it}", run_id=spec.run_id)
    yard.heir(spec.stage, broken=broken)
    yard.settle()


CONTROLS: dict[str, tuple[Control, tuple[Stage, ...], set[str]]] = {
    "adopts nothing": (dies_after_its_commit, (Stage.QUERY,), {"I2"}),
    "deletes first": (dies_at_work, (Stage.QUERY,), {"I4"}),
    "writes for any attempt": (plans_too_late, (Stage.QUERY,), {"I3"}),
    "adopts any plan": (plans_twice, (Stage.LOAD, Stage.EXTRACT), {"I2", "I3"}),
}
"""By the clause taken out: the story, its queues, and the invariants of which the checker has to name one at least."""


def told(ground: Ground, clause: str, *, broken: bool) -> list[Violation]:
    control, stages, _ = CONTROLS[clause]
    with ground.yard(*stages) as yard:
        control(yard, clause if broken else None)
        found = yard.found(restored=control is plans_twice)
        print(yard.told())
        return list(found.violations)


Telling = dict[tuple[str, bool], Future[list[Violation]]]


@pytest.fixture(scope="module")
def telling(ground: Ground) -> Iterator[Telling]:
    """Every story with and without its clause, all side by side."""
    with ThreadPoolExecutor(4) as threads:
        yield {
            (clause, broken): threads.submit(told, ground, clause, broken=broken)
            for clause in CONTROLS
            for broken in (True, False)
        }


@pytest.mark.parametrize("clause", CONTROLS)
def test_a_product_without_the_clause_is_found_out(telling: Telling, clause: str) -> None:
    _, _, broken_by_it = CONTROLS[clause]
    violations = telling[clause, True].result()
    assert {each.invariant for each in violations} & broken_by_it, [str(each) for each in violations]


@pytest.mark.parametrize("clause", CONTROLS)
def test_the_same_story_finds_nothing_in_the_product_as_it_is(telling: Telling, clause: str) -> None:
    assert [str(each) for each in telling[clause, False].result()] == []
