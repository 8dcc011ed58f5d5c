"""lineage-1m-p50: what a snapshot with 30 in its closure comes from, asked of a ledger that has 1,000,000 runs.

Ten pipelines of 30 datasets each have been run over and over; a run made one snapshot of one dataset, out of one or two
that were made just before: chains and diamonds, 30 snapshots and 57 edges to a closure. The rows are made by SQL, in
the order in which ten pipelines side by side would have written them. Asked is `PgLedger.upstream`, as
`runner lineage` does, of closures drawn at random, by turns with the same ledger of 10,000 runs:

- lineage-1m-p50: the median, in milliseconds, at 1,000,000 runs.
- lineage-growth: that median over the one at 10,000 runs.
- lineage-15k: the median for a closure of 15,000 snapshots with the runs that made them, in milliseconds; the larger of
  two shapes: one chain, as a table that is made of its own last snapshot is, and layers of 30 with two inputs each.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier, Literal

from benchmarks.harness import REPETITIONS, save, services
from runner.adapters.pg_ledger import PgLedger
from runner.ports import Edge

NODES = 30
PIPELINES = 10
QUESTIONS = 1_000
SIZES = {"10,000": 10_000, "1,000,000": 1_000_000}
LARGE = 15_000
SHAPES = {"chain": (LARGE, 1), "layers": (LARGE // 30 + 15, 30)}
"""Layers, and how many snapshots wide. The closure of one snapshot widens for 30 layers before it has all of one."""

# A snapshot's id is as long as Iceberg's are, and as little in order.
LAUNCHES = """
CREATE TEMPORARY TABLE made AS
SELECT md5('run' || l || '.' || n)::uuid AS run_id,
       'pipeline_' || l % {pipelines} AS pipeline,
       'pipeline_' || l % {pipelines} || '.table_' || n AS output,
       (('x' || md5('snapshot' || l || '.' || n))::bit(60)::bigint)::text AS output_snapshot,
       'pipeline_' || l % {pipelines} || '.table_' || i AS input,
       (('x' || md5('snapshot' || l || '.' || i))::bit(60)::bigint)::text AS input_snapshot,
       timestamptz '2024-01-01' + l * interval '1 minute' + n * interval '10 seconds' AS decided_at,
       ARRAY[l / {pipelines}, n, l % {pipelines}] AS written
FROM generate_series(0, {launches} - 1) AS l, generate_series(0, {nodes} - 1) AS n,
     LATERAL (SELECT NULL::integer AS i WHERE n = 0
              UNION SELECT n - 1 WHERE n > 0
              UNION SELECT n / 2 - n % 2 WHERE n > 1) AS inputs
"""
LAYERS = """
CREATE TEMPORARY TABLE made AS
SELECT md5({shape} || l || '.' || n)::uuid AS run_id,
       {shape} AS pipeline,
       {shape} || '.table_' || n AS output,
       (1000000000000000000 + l)::text AS output_snapshot,
       CASE WHEN l > 0 THEN {shape} || '.table_' || (n + k) % {width} END AS input,
       CASE WHEN l > 0 THEN (1000000000000000000 + l - 1)::text END AS input_snapshot,
       timestamptz '2024-01-01' + l * interval '1 hour' AS decided_at,
       ARRAY[l, n] AS written
FROM generate_series(0, {layers} - 1) AS l, generate_series(0, {width} - 1) AS n,
     generate_series(0, CASE WHEN l = 0 OR {width} = 1 THEN 0 ELSE 1 END) AS k
"""
FILL = """
INSERT INTO ledger.runs (run_id, effect, pipeline, task, stage, logic_commit, spec, spec_sha256, logical_time, state,
                         attempt, max_attempts, submitted_at, manifest, rows_out, decided_at, recorded_at)
SELECT DISTINCT ON (written) run_id, run_id, pipeline, 'task', 'transform', repeat('a', 40), repeat('{}', 500),
       repeat('b', 64), decided_at, 'succeeded', 1, 3, decided_at, repeat('{}', 500), 1000, decided_at, decided_at
FROM made ORDER BY written;
INSERT INTO ledger.outputs (run_id, dataset, snapshot, rows_out, bytes_out, decided_at)
SELECT DISTINCT ON (written) run_id, output, output_snapshot, 1000, 100000, decided_at FROM made ORDER BY written;
INSERT INTO ledger.edges (run_id, output, output_snapshot, input, input_snapshot, claimed, observed, logic_commit,
                          rows_out, decided_at)
SELECT run_id, output, output_snapshot, input, input_snapshot, true, 'rows', repeat('a', 40), 1000, decided_at
FROM made ORDER BY written;
DROP TABLE made
"""


def main() -> int:
    with services() as endpoints:
        server = endpoints.ledger_url.get_secret_value()
        with filled(server, "small", SIZES["10,000"]) as small, filled(server, "large", SIZES["1,000,000"]) as large:
            return 0 if all([*_closures(small, large), _large_closures(large)]) else 1


def _closures(small: PgLedger, large: PgLedger) -> Iterator[bool]:
    """Each ledger is asked in turn; the first tenth of the questions warms up and does not count."""
    draw = random.Random(7)  # noqa: S311 - the same draw each time, on purpose
    times: dict[str, list[float]] = {name: [] for name in SIZES}
    for turn in range(QUESTIONS + QUESTIONS // 10):
        for (name, runs), ledger in zip(SIZES.items(), (small, large), strict=True):
            dataset, snapshot = _newest_of(ledger, draw.randrange(runs // NODES))
            started = time.perf_counter()
            edges = ledger.upstream(dataset, snapshot)
            seconds = time.perf_counter() - started
            if len({(edge.output, edge.output_snapshot) for edge in edges}) != NODES:
                raise AssertionError(f"expected a closure of {NODES} snapshots, got {len(edges)} edges")
            if turn >= QUESTIONS // 10:
                times[name].append(seconds)
    p50 = {name: statistics.median(each) * 1e3 for name, each in times.items()}
    about = ", ".join(
        f"at {name} runs {p50[name]:.2f} ms, 95th percentile {statistics.quantiles(each, n=20)[-1] * 1e3:.2f} ms"
        for name, each in times.items()
    )
    few, many = SIZES
    yield save("lineage-1m-p50", p50[many], goal=2, unit="ms, the median of 1,000", about=about).met
    yield save("lineage-growth", p50[many] / p50[few], goal=2, unit="x of the time at 10,000 runs", about=about).met


def _newest_of(ledger: PgLedger, launch: int) -> tuple[str, str]:
    """What the launch made last; outside of the time that is measured."""
    with ledger._transaction() as connection:
        row = connection.execute(
            "SELECT (('x' || md5('snapshot' || %(launch)s::int || '.' || %(last)s::int))::bit(60)::bigint)::text AS it",
            {"launch": launch, "last": NODES - 1},
        ).fetchone()
    if row is None:
        raise AssertionError("expected a snapshot's id, got none")
    return f"pipeline_{launch % PIPELINES}.table_{NODES - 1}", row["it"]


def _large_closures(ledger: PgLedger) -> bool:
    medians, about = [], []
    for shape, (layers, _) in SHAPES.items():
        times, edges = [], list[Edge]()
        for turn in range(REPETITIONS + 1):
            started = time.perf_counter()
            edges = ledger.upstream(f"{shape}.table_0", str(10**18 + layers - 1))
            if turn:
                times.append(time.perf_counter() - started)
        found = len({(edge.output, edge.output_snapshot, edge.run_id) for edge in edges})
        if found < LARGE:
            raise AssertionError(f"expected a closure of at least {LARGE:,} snapshots, got {found:,}")
        medians.append(statistics.median(times) * 1e3)
        about.append(f"{shape}: {found:,} snapshots, {len(edges):,} edges, {medians[-1]:.0f} ms")
    unit = f"ms, the median of {REPETITIONS}"
    return save("lineage-15k", max(medians), goal=400, unit=unit, about=", ".join(about)).met


@contextmanager
def filled(server: str, name: str, runs: int) -> Iterator[PgLedger]:
    """A ledger of its own with so many runs, and the large closures besides."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
    url = make_conninfo(server, dbname=name)
    ledger = PgLedger(url)
    ledger.migrate()
    print(f"filling a ledger with {runs:,} runs")
    with psycopg.connect(url, autocommit=True) as connection:
        launches = SQL(LAUNCHES).format(
            launches=Literal(runs // NODES), nodes=Literal(NODES), pipelines=Literal(PIPELINES)
        )
        connection.execute(launches)
        connection.execute(FILL)
        if name == "large":
            for shape, (layers, width) in SHAPES.items():
                connection.execute(
                    SQL(LAYERS).format(shape=Literal(shape), layers=Literal(layers), width=Literal(width))
                )
                connection.execute(FILL)
        connection.execute("VACUUM ANALYZE")
    yield ledger
    ledger.close()


if __name__ == "__main__":
    sys.exit(main())
