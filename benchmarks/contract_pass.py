"""contract-pass: 1,000,000 rows of CSV held to a contract of 22 rules, against DuckDB's bare read of the same file.

`base` is the bare read: DuckDB's own reader on the whole file, with the columns' types given and nothing to detect,
into a table in memory. `ours` is the load stage's pass: the same file read exactly, each value read as its type, each
row held to 22 rules, and all kept in a table in memory: the good rows typed, the bad ones marked; and of the bad ones a
table as they came with the name of each rule that they broke. One row in 500 is bad, some of them copies, for whose
texts the file is read a second time. Both get one thread, which is what a job gets that says nothing of `cpu`, and the
same file from the page cache. Writing Parquet is in neither.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import yaml

from benchmarks import harness
from runner.engines.contracts.contract import Contract, parse_contract
from runner.engines.contracts.drift import Layout
from runner.engines.files.decoding import Utf8Stream
from runner.engines.files.records import Batch, Lines, read_csv
from runner.engines.judge import Rows

ROWS = 1_000_000
RULES = 22
BAD_EVERY = 500
GOAL = 3.0

_INTEGER = {"logicalType": "integer", "physicalType": "INTEGER"}
_TEXT = {"logicalType": "string", "physicalType": "VARCHAR"}
COLUMNS: list[dict[str, Any]] = [
    {"name": "order_id", **_INTEGER, "primaryKey": True},
    {"name": "customer_id", **_INTEGER, "required": True, "logicalTypeOptions": {"minimum": 0}},
    {"name": "placed_on", "logicalType": "date", "physicalType": "DATE", "required": True},
    {"name": "placed_at", "logicalType": "timestamp", "physicalType": "TIMESTAMPTZ"},
    {"name": "status", **_TEXT, "enum": [{"value": each} for each in ("open", "paid", "sent", "back")]},
    {"name": "country", **_TEXT, "logicalTypeOptions": {"minLength": 2, "maxLength": 2}},
    {"name": "quantity", **_INTEGER, "logicalTypeOptions": {"minimum": 1, "maximum": 100}},
    {
        "name": "unit_price",
        "logicalType": "number",
        "physicalType": "DECIMAL(10,2)",
        "logicalTypeOptions": {"exclusiveMinimum": 0},
    },
    {"name": "discount", "logicalType": "number", "physicalType": "DOUBLE", "logicalTypeOptions": {"maximum": 1}},
    {"name": "email", **_TEXT, "logicalTypeOptions": {"format": "email"}},
    {"name": "tracking", **_TEXT, "logicalTypeOptions": {"pattern": "^TR[0-9]{8}$"}},
]
SPANNING = [
    {
        "type": "sql",
        "name": "no discount on what comes back",
        "query": "SELECT count(*) FROM {object} WHERE status = 'back' AND discount > 0.99 AND quantity > 49",
        "mustBe": 0,
    }
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    contract = _contract()
    with TemporaryDirectory(prefix="stage-runner-bench-") as folder:
        path = Path(folder) / "orders.csv"
        _write(path, given.rows)
        base = _bare(path, contract, given.threads)
        good, bad = _pass(path, contract, given.threads)
        if (base, good + bad, bad) != (given.rows, given.rows, given.rows // BAD_EVERY):
            raise AssertionError(f"expected {given.rows} rows, every {BAD_EVERY}th bad, got {base}, {good} and {bad}")
        result = harness.ratio(
            "contract-pass" if given.threads == 1 else f"contract-pass-{given.threads}-threads",
            ours=lambda: _pass(path, contract, given.threads),
            base=lambda: _bare(path, contract, given.threads),
            goal=GOAL,
            unit="x a bare read of the file",
        )
    print(f"peak memory of the whole process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")
    return 0 if result.met else 1


def _contract() -> Contract:
    document = {
        "apiVersion": "v3.2.0",
        "kind": "DataContract",
        "id": "orders",
        "version": "1.0.0",
        "schema": [{"name": "orders", "properties": COLUMNS, "quality": SPANNING}],
    }
    contract = parse_contract(yaml.safe_dump(document).encode(), what="orders.odcs.yaml")
    # A VARCHAR's type asks for nothing of text, so it is none of the rules that are counted.
    judged = [rule for rule in contract.row_rules if rule.broken != "false"]
    rules = len(judged) + len(contract.unique)
    if rules != RULES:
        raise AssertionError(f"expected a contract of {RULES} rules, got {rules}")
    return contract


def _write(path: Path, rows: int) -> None:
    """The same file each time: rows of about 105 bytes, every 500th with one fault out of five kinds."""
    chance = random.Random(7)  # noqa: S311 - repeatable, no secret
    with path.open("w", encoding="utf-8") as file:
        file.write(",".join(str(column["name"]) for column in COLUMNS) + "\n")
        for number in range(1, rows + 1):
            month, day = chance.randrange(1, 13), chance.randrange(1, 29)
            clock = f"{chance.randrange(24):02}:{chance.randrange(60):02}:{chance.randrange(60):02}"
            fields = [
                str(number),
                str(chance.randrange(200_000)),
                f"2026-{month:02}-{day:02}",
                f"2026-{month:02}-{day:02}T{clock}Z",
                chance.choice(("open", "paid", "sent", "back")),
                chance.choice(("DE", "FR", "US", "NL", "PL")),
                str(chance.randrange(1, 50)),
                f"{chance.randrange(1, 100_000) / 100:.2f}",
                f"{chance.random():.4f}",
                f"customer{number}@example.org",
                f"TR{chance.randrange(10**8):08}",
            ]
            if number % BAD_EVERY == 0:
                place, fault = chance.choice(((0, "1"), (2, "2026-02-30"), (4, "lost"), (6, "0"), (10, "TR12")))
                fields[place] = fault
            file.write(",".join(fields) + "\n")


def _connect(threads: int) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"threads": str(threads)})
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _bare(path: Path, contract: Contract, threads: int) -> int:
    """Types as the contract has them, but where a fault would end the read: those columns are read as text."""
    faulty = ("placed_on",)
    types = {column.name: "VARCHAR" if column.name in faulty else column.type for column in contract.columns}
    columns = ", ".join(f"'{name}': '{kind}'" for name, kind in types.items())
    with _connect(threads) as connection:
        connection.execute(
            f"CREATE TABLE orders AS SELECT * FROM read_csv('{path}', columns = {{{columns}}}, header = true, "
            "auto_detect = false, delim = ',', quote = '\"', escape = '\"')"
        )
        return _rows(connection, "orders")


def _pass(path: Path, contract: Contract, threads: int) -> tuple[int, int]:
    layout = Layout(contract, "orders.odcs.yaml")
    with _connect(threads) as connection:
        rows = Rows(connection, contract, layout, nulls=("",))
        with path.open("rb", buffering=0) as file:
            rows.add(_batches(file, layout))
        rows.settle()
        lines = rows.lines_to_recall(0)
        with path.open("rb", buffering=0) as file:
            rows.recall(_batches(file, layout, only=lines), file=0)
        connection.execute(f"CREATE TABLE bad AS {rows.bad([path.name])}")
        return rows.loaded, _rows(connection, "bad")


def _batches(file: io.RawIOBase, layout: Layout, only: Sequence[int] | None = None) -> Iterator[Batch]:
    lines = Lines(Utf8Stream(file, "orders.csv", "auto", "utf-8"), "utf-8")
    return read_csv(lines, layout, delimiter=",", name="orders.csv", only=only)


def _rows(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(row[0]) if row else 0


if __name__ == "__main__":
    sys.exit(main())
