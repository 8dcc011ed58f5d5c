"""Partitions: rows split so that each file is wholly of one partition of its table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb

from runner.engines.types import ColumnType, free_name, literal, quote
from runner.model.errors import DataError, SchemaError, SpecError
from runner.model.messages import JobOutput
from runner.model.ranges import partition_name
from runner.model.spec import Partition

MAX_PARTITIONS = 5_000
"""Of one run. Each is a file, an object in S3 and an entry of a manifest: 5,000 files of 600 rows take 8 s to write."""

MAX_TEXT_BYTES = 256
"""DuckDB cuts what its files' statistics say of longer texts, and the statistics are what tells a file's partition."""

_ROWS = "__stage_runner_rows"
_PIECES = "__stage_runner_pieces"

_VALUES = ("boolean", "int", "long", "decimal", "string", "date", "timestamp", "timestamptz")
_TIMES = {
    "hour": ("timestamp", "timestamptz"),
    "day": ("date", "timestamp", "timestamptz"),
    "month": ("date", "timestamp", "timestamptz"),
    "year": ("date", "timestamp", "timestamptz"),
}
"""The Iceberg types that a column may have for each unit: https://iceberg.apache.org/spec/#partition-transforms."""

_TEXT_OF_UNIT = {"hour": "%Y-%m-%d-%H", "day": "%Y-%m-%d", "month": "%Y-%m", "year": "%Y"}


@dataclass(frozen=True)
class Pieces:
    """Rows in the order of their partitions: `count` of them, one at least."""

    rows: str
    """The table that holds all."""
    number: str
    """Its column that says which piece a row is of, quoted; from 0."""
    count: int


@contextmanager
def split(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    columns: Mapping[str, ColumnType],
    output: JobOutput,
    by: Partition,
) -> Iterator[Pieces]:
    """The rows of `query`, computed once, in pieces; NULL is a partition as well, the last.

    Raises `SchemaError` for a column that cannot be partitioned by, `DataError` for rows of another partition than
    asked, for too many partitions, and for a value that is too long to tell a file's partition.
    """
    dataset = output.output.dataset
    kind = _kind(columns, by, dataset)
    names = ("key", "position", "piece", "value")
    key, position, number, value = (quote(free_name(name, columns)) for name in names)
    try:
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {_ROWS} AS "
            f"SELECT *, {_key(by, kind)} AS {key}, row_number() OVER () AS {position} FROM ({query})"
        )
        if output.partition is not None:
            _check_partition(connection, output.partition, key, by, kind, columns[by.column], dataset)
        if kind == "string":
            _check_length(connection, key, by, dataset)
        found = _scalar(connection, f"SELECT count(*) FROM (SELECT DISTINCT {key} FROM {_ROWS})")
        if found > MAX_PARTITIONS:
            raise DataError(
                f"{dataset}: expected at most {MAX_PARTITIONS:,} partitions {partition_name(by)}, got {found:,}",
                subject=f"{dataset}.{by.column}",
                hint="partition by a coarser unit or a column of fewer values, or publish the rows in several runs",
            )
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {_PIECES} AS SELECT {_ROWS}.*, {number} FROM {_ROWS} JOIN "
            f"(SELECT {key} AS {value}, row_number() OVER (ORDER BY {key} ASC NULLS LAST) - 1 AS {number} "
            f"FROM (SELECT DISTINCT {key} FROM {_ROWS})) ON {key} IS NOT DISTINCT FROM {value} "
            f"ORDER BY {number} ASC, {position} ASC"
        )
        connection.execute(f"DROP TABLE {_ROWS}")
        yield Pieces(rows=_PIECES, number=number, count=max(found, 1))
    finally:
        for table in (_ROWS, _PIECES):
            connection.execute(f"DROP TABLE IF EXISTS {table}")


def _kind(columns: Mapping[str, ColumnType], by: Partition, dataset: str) -> str:
    """The Iceberg type of the partitions' column, a decimal's digits aside."""
    if by.column not in columns:
        raise SchemaError(
            f"{dataset}: expected a column {by.column}, which the table is partitioned by, got {', '.join(columns)}",
            subject=f"{dataset}.{by.column}",
            hint="names are compared in their own case",
        )
    kind = columns[by.column].iceberg.partition("(")[0]
    allowed = _VALUES if by.unit == "value" else _TIMES[by.unit]
    if kind not in allowed:
        came = columns[by.column].iceberg
        raise SchemaError(
            f"{dataset}.{by.column}: expected a type to partition by {by.unit} ({', '.join(allowed)}), got {came}",
            subject=f"{dataset}.{by.column}",
            hint="partition by another column, or cast this one in the model",
        )
    return kind


def _key(by: Partition, kind: str) -> str:
    """SQL for what rows of one partition have in common."""
    column = quote(by.column)
    if by.unit == "value":
        # Bytes: a column, or the project, may have a collation to which other texts are the same.
        return f"encode({column})" if kind == "string" else column
    time = f"make_timestamp(epoch_us({column}))" if kind == "timestamptz" else f"CAST({column} AS TIMESTAMP)"
    return f"date_trunc({literal(by.unit)}, {time})"


def _check_partition(
    connection: duckdb.DuckDBPyConnection,
    wanted: str | int,
    key: str,
    by: Partition,
    kind: str,
    column: ColumnType,
    dataset: str,
) -> None:
    if by.unit == "value":
        text = _exact(connection, str(wanted), by, column)
        same = f"encode({literal(text)})" if kind == "string" else f"CAST({literal(text)} AS {column.sql})"
        value = key
    else:
        same, value = literal(str(wanted)), f"strftime({key}, {literal(_TEXT_OF_UNIT[by.unit])})"
    others, example = connection.execute(
        f"SELECT count(*), min(CAST({quote(by.column)} AS VARCHAR)) FROM {_ROWS} WHERE {value} IS DISTINCT FROM {same}"
    ).fetchone() or (0, None)
    if others:
        came = "NULL" if example is None else example[:200]
        raise DataError(
            f"{dataset}: expected rows of the partition {partition_name(by)} = {wanted} only, got {others:,} of "
            f"others, for example {by.column} = {came}",
            subject=f"{dataset}.{by.column}",
            hint="select the partition's rows in the model; mode replace_where takes the place of one partition",
        )


def _exact(connection: duckdb.DuckDBPyConnection, wanted: str, by: Partition, column: ColumnType) -> str:
    """`wanted` as the column's type writes it: one partition must not have two names."""
    row = connection.execute(f"SELECT CAST(TRY_CAST({literal(wanted)} AS {column.sql}) AS VARCHAR)").fetchone()
    text = row[0] if row else None
    if text != wanted:
        expected = f"a value of {by.column}, which is {column.iceberg}" if text is None else repr(text)
        raise SpecError(f"where: expected {expected}, got {wanted!r}", subject="where")
    return wanted


def _check_length(connection: duckdb.DuckDBPyConnection, key: str, by: Partition, dataset: str) -> None:
    too_long, longest = connection.execute(
        f"SELECT count(*), max(octet_length({key})) FROM {_ROWS} WHERE octet_length({key}) > {MAX_TEXT_BYTES}"
    ).fetchone() or (0, 0)
    if too_long:
        raise DataError(
            f"{dataset}.{by.column}: expected texts of at most {MAX_TEXT_BYTES} bytes in a column to partition by, "
            f"got {too_long:,} longer, up to {longest:,} bytes",
            subject=f"{dataset}.{by.column}",
            hint="partition by another column, or by a shorter text made of this one",
        )


def _scalar(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0
