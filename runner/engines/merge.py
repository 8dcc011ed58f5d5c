"""merge: new rows take the place of the published rows with their key, and the rest stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import duckdb

from runner.engines.scratch import snapshot_rows
from runner.engines.types import ColumnType, cast_columns, check_names, check_paths, column_types, fit_columns, quote
from runner.model.errors import DataError, SchemaError
from runner.model.manifest import NO_SNAPSHOT
from runner.model.messages import JobOutput

_NEW_ROWS = "__stage_runner_new_rows"
_NESTED = ("struct<", "list<", "map<")


@contextmanager
def merged(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    columns: Mapping[str, ColumnType],
    output: JobOutput,
    *,
    last: Sequence[str],
) -> Iterator[tuple[str, dict[str, ColumnType]]]:
    """The whole new content as a query, and its columns; the rows of `query` are computed once.

    Keys are the same where SQL's `=` says so (NaN equals NaN, 0.0 equals -0.0), and texts where their bytes are.
    Columns that only the table has stay, and are NULL in new rows; the columns of `last` come last.
    Raises `SchemaError` where a key column is missing or the types have no wider one in common, `DataError` where a
    key is NULL or there twice.
    """
    dataset, key = output.output.dataset, output.output.key
    _check_key(columns, key, dataset)
    try:
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {_NEW_ROWS} AS {query}")
        same = {name: _comparable(name, columns[name]) for name in key}
        _refuse_nulls(connection, key, dataset)
        _refuse_copies(connection, same, dataset)
        if output.state is None or output.state.snapshot == NO_SNAPSHOT:
            yield f"SELECT * FROM {_NEW_ROWS}", dict(columns)
            return
        old_rows = snapshot_rows(output.state)
        described = connection.sql(f"FROM {old_rows}")
        old = column_types(described.columns, described.types, relation=dataset)
        _check_key(old, key, dataset, of="the published table")
        whole = _whole(old, columns, dataset, last)
        matches = " AND ".join(f"{same[name].format('published')} = {same[name].format('fresh')}" for name in key)
        kept = f"SELECT {_cast(whole, old)} FROM {old_rows} published ANTI JOIN {_NEW_ROWS} fresh ON {matches}"
        yield f"{kept} UNION ALL SELECT {_cast(whole, columns)} FROM {_NEW_ROWS}", whole
    finally:
        connection.execute(f"DROP TABLE IF EXISTS {_NEW_ROWS}")


def _check_key(columns: Mapping[str, ColumnType], key: Sequence[str], dataset: str, of: str = "the new rows") -> None:
    for name in key:
        if name not in columns:
            raise SchemaError(
                f"{dataset}: expected the key column {name} in {of}, got {', '.join(columns)}",
                subject=f"{dataset}.{name}",
                hint="names are compared in their own case",
            )
        if columns[name].iceberg.startswith(_NESTED):
            raise SchemaError(
                f"{dataset}.{name}: expected a key column of plain values in {of}, got {columns[name].iceberg}",
                subject=f"{dataset}.{name}",
                hint="take a field of it as a column of its own for the key",
            )


def _comparable(name: str, column: ColumnType) -> str:
    """SQL with a place for the table's alias. Bytes of texts: a column, or the project, may have a collation."""
    place = "{}." + quote(name).replace("{", "{{").replace("}", "}}")
    return f"encode({place})" if column.iceberg == "string" else place


def _refuse_nulls(connection: duckdb.DuckDBPyConnection, key: Sequence[str], dataset: str) -> None:
    missing = " OR ".join(f"{quote(name)} IS NULL" for name in key)
    rows, example = connection.execute(
        f"SELECT count(*), any_value({_shown(key)}) FROM {_NEW_ROWS} WHERE {missing}"
    ).fetchone() or (0, None)
    if rows:
        raise DataError(
            f"{dataset}: expected a value in each column of the key ({', '.join(key)}), got {rows:,} rows without, "
            f"for example {example}",
            subject=dataset,
            hint="leave these rows out in the model, or give them a key",
        )


def _refuse_copies(connection: duckdb.DuckDBPyConnection, same: Mapping[str, str], dataset: str) -> None:
    parts = ", ".join(each.format(_NEW_ROWS) for each in same.values())
    keys, rows, example = connection.execute(
        f"SELECT count(*), sum(rows), any_value(example) FROM (SELECT count(*) AS rows, "
        f"any_value({_shown(list(same))}) AS example FROM {_NEW_ROWS} GROUP BY {parts} HAVING count(*) > 1)"
    ).fetchone() or (0, 0, None)
    if keys:
        raise DataError(
            f"{dataset}: expected each key ({', '.join(same)}) once, got {keys:,} keys in {rows:,} rows, "
            f"for example {example}",
            subject=dataset,
            hint="keep one row a key in the model, for example with QUALIFY row_number() OVER (PARTITION BY …) = 1",
        )


def _shown(key: Sequence[str]) -> str:
    """SQL for a row's key as people read it."""
    parts = ", ".join(f"coalesce(CAST({quote(name)} AS VARCHAR), 'NULL')" for name in key)
    return f"left(concat_ws(', ', {parts}), 200)"


def _whole(
    old: Mapping[str, ColumnType], new: Mapping[str, ColumnType], dataset: str, last: Sequence[str]
) -> dict[str, ColumnType]:
    fitted = fit_columns(new, {name: each.iceberg for name, each in old.items()}, relation=dataset)
    whole = {**old, **fitted}
    for name in last:
        whole[name] = whole.pop(name)
    check_names(whole, of=dataset)
    check_paths(whole, of=dataset)
    return whole


def _cast(whole: Mapping[str, ColumnType], there: Mapping[str, ColumnType]) -> str:
    return ", ".join(
        cast_columns({name: each}) if name in there else f"CAST(NULL AS {each.sql}) AS {quote(name)}"
        for name, each in whole.items()
    )
