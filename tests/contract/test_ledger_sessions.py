"""Sessions that claim, plan and decide at once: whatever they do, it is as if one had come after another.

Histories are drawn by Hypothesis and carried out on a real Postgres. What must come of them is told by
`tests.support.ledger_sessions`: each answer by the protocol in some order, and the tables by laws in SQL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import psycopg
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from runner.adapters.pg_ledger import QUERIES
from runner.model.manifest import State
from tests.support.ledger_sessions import SESSIONS, Door, Kind, Sessions, Step, Wish


@pytest.fixture(scope="module")
def sessions(ledger_url: str) -> Iterator[Sessions]:
    made = Sessions(ledger_url)
    yield made
    made.close()


@pytest.fixture
def sessions_on_postgres_17() -> Iterator[Sessions]:
    """The release that deployments run, from its image; the embedded one is newer."""
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.core.config import testcontainers_config

    # The reaper is an image of its own, which a machine without a registry cannot pull; we remove what we start.
    testcontainers_config.ryuk_disabled = True
    with PostgresContainer("postgres:17", driver=None) as postgres:
        made = Sessions(postgres.get_connection_url())
        yield made
        made.close()


# ---------------------------------------------------------------- what is drawn

# Weighed so that runs are taken, planned and given back a few times before somebody decides them.
KINDS: list[Kind] = [
    "claim", "claim", "claim", "claim", "plan", "plan", "pin", "pin", "lease", "lease", "release", "release",
    "heartbeat", "void", "cancel", "decide", "decide", "record",
]  # fmt: skip
DOORS: list[Door] = ["runs", "runs", "runs", "attempts", "pins", "leases", "outputs", "edges"]
TABLES = st.frozensets(st.integers(0, 2), max_size=2)
WISHES = st.builds(
    Wish,
    kind=st.sampled_from(KINDS),
    run=st.sampled_from([0, 0, 0, 0, 1, 1, 2]),
    behind=st.sampled_from([0, 0, 0, 0, 0, 1, -1]),
    shared=TABLES,
    alone=TABLES,
    handed_back=st.booleans(),
    waits=st.booleans(),
    stale=st.sampled_from([False, False, True]),
    state=st.sampled_from([State.SUCCEEDED, State.FAILED, State.CANCELLED]),
)


def by_each(wish: Wish, number: int) -> tuple[Wish, ...]:
    return (wish,) * number


ALONE = st.tuples(WISHES)
TOGETHER = st.lists(WISHES, min_size=1, max_size=SESSIONS).map(tuple)
THE_SAME = st.builds(by_each, WISHES, st.integers(2, SESSIONS))
NOBODY = st.just(frozenset[int]())
SOMEBODY = st.frozensets(st.integers(0, SESSIONS - 1), min_size=1, max_size=2)
NO_DOOR: st.SearchStrategy[Door | None] = st.none()
A_DOOR: st.SearchStrategy[Door | None] = st.sampled_from(DOORS)


def steps(
    wishes: st.SearchStrategy[tuple[Wish, ...]],
    *,
    door: st.SearchStrategy[Door | None] = NO_DOOR,
    cut: st.SearchStrategy[frozenset[int]] = NOBODY,
) -> st.SearchStrategy[Step]:
    return st.builds(Step, wishes=wishes, leases_end=st.sampled_from([False, False, True]), door=door, cut=cut)


ONE_AFTER_ANOTHER = st.lists(steps(ALONE), min_size=10, max_size=40)
IN_A_QUEUE = st.lists(steps(TOGETHER | THE_SAME, door=A_DOOR), min_size=3, max_size=16)
AT_ONCE = st.lists(steps(TOGETHER | THE_SAME), min_size=3, max_size=16)
WITH_CUTS = st.lists(steps(TOGETHER, door=NO_DOOR | A_DOOR, cut=NOBODY | SOMEBODY), min_size=3, max_size=16)

SAME_EACH_TIME = settings(
    deadline=None,
    derandomize=True,
    # Without the phase that explains a failure: it traces each line of a thousand more histories.
    phases=(Phase.generate, Phase.shrink),
)
# What threads do by chance, a smaller history does not do again.
AS_IT_HAPPENS = settings(SAME_EACH_TIME, phases=(Phase.generate,))


# ---------------------------------------------------------------- what holds


def test_whatever_is_asked_one_after_another_each_is_told_what_the_protocol_says(sessions: Sessions) -> None:
    @settings(SAME_EACH_TIME, max_examples=25)
    @given(ONE_AFTER_ANOTHER)
    def is_as_the_protocol_says(history: Sequence[Step]) -> None:
        sessions.live(history)

    is_as_the_protocol_says()


def test_those_who_wait_for_each_other_are_told_what_one_after_another_would_be(sessions: Sessions) -> None:
    @settings(SAME_EACH_TIME, max_examples=30)
    @given(IN_A_QUEUE)
    def is_as_in_some_order(history: Sequence[Step]) -> None:
        sessions.live(history)

    is_as_in_some_order()


def test_those_who_ask_at_once_are_told_what_one_after_another_would_be(sessions: Sessions) -> None:
    @settings(AS_IT_HAPPENS, max_examples=30)
    @given(AT_ONCE)
    def is_as_in_some_order(history: Sequence[Step]) -> None:
        sessions.live(history)

    is_as_in_some_order()


def test_a_session_that_is_cut_off_has_done_all_or_nothing_and_goes_on(sessions: Sessions) -> None:
    @settings(AS_IT_HAPPENS, max_examples=15)
    @given(WITH_CUTS)
    def is_all_or_nothing(history: Sequence[Step]) -> None:
        sessions.live(history)

    is_all_or_nothing()


@pytest.mark.docker
def test_the_release_of_postgres_that_deployments_run_keeps_them_apart_too(sessions_on_postgres_17: Sessions) -> None:
    @settings(AS_IT_HAPPENS, max_examples=8)
    @given(WITH_CUTS)
    def is_all_or_nothing(history: Sequence[Step]) -> None:
        sessions_on_postgres_17.live(history)

    is_all_or_nothing()


# ---------------------------------------------------------------- the smallest histories of faults there were

CLAIM = Wish(kind="claim")


def test_a_run_that_is_handed_back_while_another_waits_to_claim_it_has_spent_no_try(sessions: Sessions) -> None:
    handed_back = Wish(kind="release", handed_back=True)

    sessions.live([Step(wishes=(CLAIM,)), Step(wishes=(handed_back, CLAIM), door="runs")])


def test_of_two_who_pin_at_once_both_are_told_the_pins_of_the_first(sessions: Sessions) -> None:
    pin = Wish(kind="pin")

    sessions.live([Step(wishes=(CLAIM,)), Step(wishes=(pin, pin), door="runs")])


# ---------------------------------------------------------------- what the checks are worth


@pytest.mark.parametrize("query", ["decide", "plan"])
def test_a_write_that_is_not_bound_to_its_attempt_is_noticed(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    leave_out(monkeypatch, query, "AND attempt = %(attempt)s")

    @settings(AS_IT_HAPPENS, max_examples=100)
    @given(ONE_AFTER_ANOTHER)
    def is_as_the_protocol_says(history: Sequence[Step]) -> None:
        sessions.live(history)

    with pytest.raises(AssertionError, match=rf"{query} \d+ as \d+"):
        is_as_the_protocol_says()


OTHERS_CLAIM = Wish(kind="claim", run=1)
PLAN, VOID, CANCEL = Wish(kind="plan"), Wish(kind="void"), Wish(kind="cancel")
TAKES_ALONE = Wish(kind="lease", alone=frozenset({0}))
OTHER_TAKES_ALONE = Wish(kind="lease", run=1, alone=frozenset({0}))
OTHER_SHARES = Wish(kind="lease", run=1, shared=frozenset({0}))
CONDITIONS = {
    "a decision after the run was given back": (
        ("decide", "AND state = 'running'", ""),
        [Step(wishes=(CLAIM,)), Step(wishes=(Wish(kind="release"),)), Step(wishes=(Wish(kind="decide", stale=True),))],
        "ended as the run did|no order explains",
    ),
    "a plan after a cancel": (
        ("plan", "cancel_asked_at IS NULL", "true"),
        [Step(wishes=(CLAIM,)), Step(wishes=(CANCEL,)), Step(wishes=(PLAN,))],
        "a run that is to be cancelled has no plan",
    ),
    "a table that somebody has alone": (
        ("in_the_way", "l.exclusive OR ", ""),
        [Step(wishes=(CLAIM, OTHERS_CLAIM)), Step(wishes=(TAKES_ALONE,)), Step(wishes=(OTHER_SHARES,))],
        "who has a table alone has it alone",
    ),
    "two claims at once": (
        ("lock_run", "FOR UPDATE OF r", ""),
        [Step(wishes=(CLAIM,)), Step(wishes=(CLAIM, CLAIM), leases_end=True, door="runs")],
        "no order explains|the attempt in force of a running run is at work, and no other",
    ),
    "a claim, and at once a plan is void": (
        ("fence", "FOR UPDATE", ""),
        [Step(wishes=(CLAIM,)), Step(wishes=(PLAN,)), Step(wishes=(CLAIM, VOID), leases_end=True, door="runs")],
        "no order explains",
    ),
    "a plan and a cancel at once": (
        ("lock_for_cancel", "FOR UPDATE", ""),
        [Step(wishes=(CLAIM,)), Step(wishes=(PLAN, CANCEL), door="runs")],
        "a run that is to be cancelled has no plan",
    ),
    "two runs that take a table at once": (
        ("lock_tables", "pg_advisory_xact_lock(key)", "key"),
        [Step(wishes=(CLAIM, OTHERS_CLAIM)), Step(wishes=(TAKES_ALONE, OTHER_TAKES_ALONE), door="leases")],
        "who has a table alone has it alone",
    ),
}


@pytest.mark.parametrize("left_out", CONDITIONS)
def test_a_condition_or_a_lock_that_a_statement_lacks_is_noticed(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    (query, clause, instead), history, noticed = CONDITIONS[left_out]
    sessions.live(history)
    leave_out(monkeypatch, query, clause, instead)

    with pytest.raises(AssertionError, match=noticed):
        sessions.live(history)


def test_what_is_half_done_is_noticed(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    history = [
        Step(wishes=(CLAIM,)),
        Step(wishes=(Wish(kind="release"),), door="attempts", cut=frozenset({0})),
    ]
    sessions.live(history)
    monkeypatch.setattr(psycopg.Connection, "transaction", lambda connection: nullcontext())

    with pytest.raises(AssertionError, match="the attempt in force of a running run is at work, and no other"):
        sessions.live(history)


def leave_out(monkeypatch: pytest.MonkeyPatch, query: str, clause: str, instead: str = "") -> None:
    whole = QUERIES[query]
    assert clause in whole, f"{query}: expected {clause!r} in it, got {whole}"
    monkeypatch.setitem(QUERIES, query, whole.replace(clause, instead))
