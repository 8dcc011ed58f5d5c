"""What the command line asks of the ledger besides the port: filters of runs, and lineage of odd and large shapes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from runner.adapters.pg_ledger import QUERIES, PgLedger
from runner.cli.looking import _since
from runner.model.errors import SpecError
from runner.model.lineage import tree
from runner.model.manifest import Pin, State
from runner.ports import Claimed
from tests.support.documents import input_record, job_spec, manifest_of, output_record

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def migrated(ledger_url: str) -> str:
    ledger = PgLedger(ledger_url)
    ledger.migrate()
    ledger.close()
    return ledger_url


@pytest.fixture
def ledger(migrated: str) -> Iterator[PgLedger]:
    made = PgLedger(migrated)
    yield made
    made.close()


def ended(ledger: PgLedger, to: str, *read: tuple[str, str, str | None], state: State = State.SUCCEEDED) -> UUID:
    """A run that made `to` (dataset@snapshot) of what it read: (dataset, snapshot, alias)."""
    spec = job_spec("query")
    claimed = ledger.claim(spec, worker="host:1")
    assert isinstance(claimed, Claimed)
    dataset, _, snapshot = to.partition("@")
    ledger.pin(
        spec.run_id,
        claimed.attempt,
        [Pin(as_=alias or name, dataset=name, snapshot=at, metadata=f"s3://lake/{at}") for name, at, alias in read],
    )
    manifest = manifest_of(
        output_record(dataset, snapshot=snapshot or None, claimed_inputs=tuple(name for name, *_ in read)),
        inputs=tuple(input_record(name, snapshot=at, as_=alias) for name, at, alias in read),
        spec=spec,
        state=state,
        failure=None if state is State.SUCCEEDED else SpecError("x: expected y, got z").failure,
    )
    ledger.decide(manifest, attempt=claimed.attempt)
    return spec.run_id


# ---------------------------------------------------------------- runs


def test_runs_of_a_dataset_are_those_that_published_it_and_those_that_read_it(ledger: PgLedger) -> None:
    wrote = ended(ledger, "filters.a@1")
    read = ended(ledger, "filters.b@1", ("filters.a", "1", None))
    did_both = ended(ledger, "filters.a@2", ("filters.a", "1", None))
    failed = ended(ledger, "filters.c", ("filters.a", "2", None), state=State.FAILED)
    ended(ledger, "filters.b@2", ("filters.b", "1", None))
    assert [row.run_id for row in ledger.runs(limit=10, dataset="filters.a")] == [failed, did_both, read, wrote]
    assert [row.run_id for row in ledger.runs(limit=10, dataset="filters.a", state=State.FAILED)] == [failed]
    assert [row.run_id for row in ledger.runs(limit=2, dataset="filters.a")] == [failed, did_both]
    assert ledger.runs(limit=10, dataset="filters.none") == []


def test_runs_since_a_moment_were_submitted_then_or_later(ledger: PgLedger, migrated: str) -> None:
    early, late = ended(ledger, "since.a@1"), ended(ledger, "since.a@2")
    with psycopg.connect(migrated, autocommit=True) as connection:
        for run_id, moment in ((early, NOW - timedelta(hours=2)), (late, NOW)):
            connection.execute("UPDATE ledger.runs SET submitted_at = %s WHERE run_id = %s", (moment, run_id))

    def since(moment: datetime) -> list[UUID]:
        return [row.run_id for row in ledger.runs(limit=10, dataset="since.a", since=moment)]

    assert since(NOW - timedelta(hours=2)) == [late, early]
    assert since(NOW - timedelta(hours=1)) == since(NOW) == [late]
    assert since(NOW + timedelta(microseconds=1)) == []


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90m", NOW - timedelta(minutes=90)),
        ("24h", NOW - timedelta(hours=24)),
        ("7d", NOW - timedelta(days=7)),
        ("0h", NOW),
        ("2026-11-20", datetime(2026, 11, 20, tzinfo=UTC)),
        ("2026-11-20T06:30", datetime(2026, 11, 20, 6, 30, tzinfo=UTC)),
        ("2026-11-20T06:30+02:00", datetime(2026, 11, 20, 4, 30, tzinfo=UTC)),
        ("2026-11-20T06:30:00Z", datetime(2026, 11, 20, 6, 30, tzinfo=UTC)),
    ],
)
def test_a_moment_is_said_as_people_say_it(text: str, moment: datetime) -> None:
    assert _since(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "7w", "-1d", "1.5h", "999999d", "2026-13-01", "٣d", "7d "])
def test_a_moment_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"^--since: expected 90m, 24h, 7d or a date"):
        _since(text, NOW)


# ---------------------------------------------------------------- lineage


def test_a_dataset_that_was_read_under_two_names_is_told_once(ledger: PgLedger) -> None:
    ended(ledger, "twice.b@1", ("twice.a", "1", "now"), ("twice.a", "1", "before"))
    assert [(edge.input, edge.input_snapshot) for edge in ledger.upstream("twice.b", "1")] == [("twice.a", "1")]
    assert len(ledger.downstream("twice.a", "1")) == 1


def test_the_walk_ends_where_snapshots_are_made_of_each_other(ledger: PgLedger) -> None:
    """No run of ours does that; what a ledger holds must not hang the one who asks."""
    ended(ledger, "circle.a@1", ("circle.b", "1", None))
    ended(ledger, "circle.b@1", ("circle.a", "1", None))
    for asked in (ledger.upstream, ledger.downstream):
        assert {(edge.output, edge.input) for edge in asked("circle.a", "1")} == {
            ("circle.a", "circle.b"),
            ("circle.b", "circle.a"),
        }


def test_what_has_no_known_snapshot_is_told_and_not_followed(ledger: PgLedger) -> None:
    """A URL, or a table that was read and never declared: whoever made that, it was not this snapshot of it."""
    ended(ledger, "unknown.a@1")
    spec = job_spec("query")
    claimed = ledger.claim(spec, worker="host:1")
    assert isinstance(claimed, Claimed)
    ledger.decide(
        manifest_of(
            output_record("unknown.b", snapshot="1", claimed_inputs=("unknown.a",)),
            inputs=(input_record("unknown.a", snapshot=None, declared=False, observed=None),),
            spec=spec,
        ),
        attempt=claimed.attempt,
    )
    assert [(edge.output, edge.input, edge.input_snapshot) for edge in ledger.upstream("unknown.b", "1")] == [
        ("unknown.b", "unknown.a", None)
    ]


def test_a_lattice_of_thousands_is_walked_both_ways_and_drawn(ledger: PgLedger, migrated: str) -> None:
    """60 layers, 20 wide, two inputs each: 2 to the 60 ways through 1,200 snapshots."""
    layers, width = 60, 20
    with psycopg.connect(migrated, autocommit=True) as connection:
        run_id = ended(ledger, "lattice.start@0")
        connection.execute(
            """
            INSERT INTO ledger.edges (run_id, output, output_snapshot, input, input_snapshot, logic_commit, decided_at)
            SELECT %(run_id)s, 'lattice.t' || n, l::text, 'lattice.t' || (n + k) %% %(width)s, (l - 1)::text,
                   repeat('a', 40), now()
            FROM generate_series(1, %(layers)s - 1) l, generate_series(0, %(width)s - 1) n, generate_series(0, 1) k
            """,
            {"run_id": run_id, "layers": layers, "width": width},
        )
    found = ledger.upstream("lattice.t0", str(layers - 1))
    # The closure widens by one a layer until it is as wide as the lattice.
    wide = [min(steps + 1, width) for steps in range(layers)]
    assert len({(edge.output, edge.output_snapshot) for edge in found}) == sum(wide[:-1])
    assert len(found) == 2 * sum(wide[:-1])
    # And the same the other way round: what is made of one snapshot widens as well.
    made = ledger.downstream("lattice.t0", "0")
    assert len({(edge.output, edge.output_snapshot) for edge in made}) == sum(wide[1:])
    drawn = tree(found, "lattice.t0", str(layers - 1), direction="upstream", depth=100)
    assert drawn.hidden == 0
    assert tree(found, "lattice.t0", str(layers - 1), direction="upstream", depth=5).hidden == sum(wide[6:])


@pytest.mark.parametrize("direction", ["upstream", "downstream"])
def test_each_step_of_a_walk_goes_by_an_index(ledger: PgLedger, direction: str) -> None:
    """Whatever the planner finds best for a small table: a scan of all edges a step would be the end of large ones."""
    with ledger._transaction() as connection:
        connection.execute("SET LOCAL enable_seqscan = off")
        rows = connection.execute(
            "EXPLAIN " + QUERIES[direction],
            {"dataset": "lattice.t0", "snapshot": "1"},
        ).fetchall()
    plan = "\n".join(row["QUERY PLAN"] for row in rows)
    assert plan.count("edges_by_output" if direction == "upstream" else "edges_by_input") == 2, plan
    assert "Seq Scan" not in plan


# ---------------------------------------------------------------- what witnesses know


def test_a_snapshot_is_known_that_a_run_published_or_read(ledger: PgLedger) -> None:
    ended(ledger, "known.b@5", ("known.a", "4", None))
    assert ledger.known_snapshots("known.b", ["4", "5"]) == {"5"}
    assert ledger.known_snapshots("known.a", ["4", "5"]) == {"4"}
    assert ledger.known_snapshots("known.a", []) == set()
    assert ledger.read_documents("known.a", ["s3://lake/4", "s3://lake/5"]) == {"s3://lake/4"}
    assert ledger.read_documents("known.b", ["s3://lake/4"]) == set()
