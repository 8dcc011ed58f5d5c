"""Outputs leave the engine: rows as files in scratch, cast without loss, with Iceberg's field ids and a fingerprint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import duckdb

from runner.engines.fingerprint import fingerprint
from runner.engines.merge import merged
from runner.engines.partitions import Pieces, split
from runner.engines.scratch import LINEAGE_COLUMNS, reason
from runner.engines.types import (
    ColumnType,
    cast_columns,
    column_types,
    field_ids,
    field_ids_sql,
    fit_columns,
    leaves,
    literal,
    literals,
    quote,
)
from runner.model.errors import SchemaError
from runner.model.manifest import Column
from runner.model.messages import EngineFile, EngineOutput, Job, JobOutput, Stamp
from runner.model.names import is_table


def export(
    connection: duckdb.DuckDBPyConnection,
    job: Job,
    output: JobOutput,
    relation: str,
    *,
    claimed_inputs: Sequence[str] | None,
    dataset: str | None = None,
    quarantine: bool = False,
) -> EngineOutput:
    """Write `relation` (a quoted name, or a query in parentheses) as the output's files in scratch.

    Columns are cast to types that Iceberg has, without loss. Raises `SchemaError` where a type, a name or a value of
    one cannot be kept, or is not what the table can take; `DataError` where rows break the rules of a key or a
    partition.
    """
    dataset = dataset or output.output.dataset
    table = output if is_table(dataset) else None
    # A query is described as it is: around it, SELECT * would give the second of two equal names another.
    described = connection.sql(relation if relation.startswith("(") else f"FROM {relation}")
    own = column_types(described.columns, described.types, relation=dataset)
    changed = {
        name: each.sql for (name, each), came in zip(own.items(), described.types, strict=True) if str(came) != each.sql
    }
    folder = Path(job.scratch) / "out" / "-".join(dataset.replace(".", "/").split("/"))
    folder.mkdir(parents=True)
    try:
        made = _write(connection, job.stamp, table, relation, own, dataset, folder, output.output.format)
    except (duckdb.ConversionException, duckdb.OutOfRangeException) as exc:
        _blame(connection, relation, changed, dataset, exc)
        raise  # the logic's own arithmetic, not our casts
    return made.model_copy(
        update={
            "claimed_inputs": None if claimed_inputs is None else tuple(claimed_inputs),
            "quarantine": quarantine,
        }
    )


def _write(
    connection: duckdb.DuckDBPyConnection,
    stamp: Stamp,
    table: JobOutput | None,
    relation: str,
    own: dict[str, ColumnType],
    dataset: str,
    folder: Path,
    format: str | None,
) -> EngineOutput:
    """By the output's own rules where it is a table; `own` are the columns in the types that the logic gave them."""
    with ExitStack() as tables:
        # zstd's first level is much quicker to write than its default, and hardly larger.
        published, options = own, "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1"
        query = f"SELECT {cast_columns(own)} FROM {relation}"
        pieces = None
        if table is not None:
            if table.output.lineage_columns:
                query, own = _stamped(query, own, stamp, dataset)
            if table.output.mode == "merge":
                last = LINEAGE_COLUMNS if table.output.lineage_columns else ()
                query, own = tables.enter_context(merged(connection, query, own, table, last=last))
            published = fit_columns(own, table.column_types, relation=dataset)
            if published != own:
                query = f"SELECT {cast_columns(published)} FROM ({query})"
            ids = field_ids(published, table.field_ids, table.last_field_id, relation=dataset)
            options += f", FIELD_IDS {field_ids_sql(ids)}"
            if table.output.partition_by is not None:
                pieces = tables.enter_context(split(connection, query, published, table, table.output.partition_by))
        if pieces is None:
            paths = {folder / f"{folder.name.rpartition('-')[2]}.parquet": query}
        else:
            paths = _pieces(pieces, published, folder)
        rows = {path: _copy(connection, each, path, options) for path, each in paths.items()}
        _check_times(connection, list(rows), published, dataset)
        source = f"read_parquet({literals([str(path) for path in rows])})" if pieces is None else pieces.rows
        print_ = fingerprint(connection, source, own)
        if format == "csv" and table is None:
            rows = {_as_csv(connection, path): count for path, count in rows.items()}
    return EngineOutput(
        dataset=dataset,
        files=tuple(
            EngineFile(path=f"{folder.name}/{path.name}", rows=count, sha256=_sha256(path))
            for path, count in rows.items()
        ),
        rows=sum(rows.values()),
        columns=tuple(Column(name=name, type=each.iceberg) for name, each in published.items()),
        fingerprint=print_,
        claimed_inputs=None,
    )


def _stamped(
    query: str, columns: dict[str, ColumnType], stamp: Stamp, dataset: str
) -> tuple[str, dict[str, ColumnType]]:
    for name in columns:
        if name.lower() in LINEAGE_COLUMNS:
            raise SchemaError(
                f"{dataset}: expected no column {name}, as lineage_columns adds it, got one",
                subject=f"{dataset}.{name}",
                hint="write another name in the model (AS ...), or leave lineage_columns out of the spec",
            )
    text, time = ColumnType(sql="VARCHAR", iceberg="string"), ColumnType(sql="TIMESTAMPTZ", iceberg="timestamptz")
    added = dict(zip(LINEAGE_COLUMNS, (text, text, time), strict=True))
    values = (stamp.logic_commit, str(stamp.run_id), stamp.processed_at.isoformat())
    stamps = ", ".join(
        f"CAST({literal(value)} AS {each.sql}) AS {quote(name)}"
        for value, (name, each) in zip(values, added.items(), strict=True)
    )
    return f"SELECT *, {stamps} FROM ({query})", {**columns, **added}


def _pieces(pieces: Pieces, columns: Mapping[str, ColumnType], folder: Path) -> dict[Path, str]:
    """By file, the query for its rows. No value comes into a file's name."""
    names = ", ".join(map(quote, columns))
    return {
        folder / f"part-{number:05}.parquet": f"SELECT {names} FROM {pieces.rows} WHERE {pieces.number} = {number}"
        for number in range(pieces.count)
    }


def _copy(connection: duckdb.DuckDBPyConnection, query: str, path: Path, options: str) -> int:
    row = connection.execute(f"COPY ({query}) TO {literal(str(path))} ({options})").fetchone()
    return int(row[0]) if row else 0


def _as_csv(connection: duckdb.DuckDBPyConnection, path: Path) -> Path:
    """Of the Parquet file, so that what a CSV file may hold is checked by the same statistics."""
    csv = path.with_suffix(".csv")
    _copy(connection, f"FROM read_parquet({literals([str(path)])})", csv, "FORMAT csv, HEADER")
    path.unlink()
    return csv


def _blame(
    connection: duckdb.DuckDBPyConnection, relation: str, changed: dict[str, str], dataset: str, exc: duckdb.Error
) -> None:
    """DuckDB does not say which column a failed cast was of: raise `SchemaError` for the one whose cast fails alone."""
    for name, sql in changed.items():
        column = quote(name)
        try:
            connection.execute(f"SELECT max(hash({column})) FROM {relation}").fetchall()
        except duckdb.Error:
            continue
        try:
            connection.execute(f"SELECT max(hash(CAST({column} AS {sql}))) FROM {relation}").fetchall()
        except (duckdb.ConversionException, duckdb.OutOfRangeException) as again:
            raise SchemaError(
                f"{dataset}.{name}: expected values that fit {sql}, the widest that Iceberg has: {reason(again)}",
                subject=f"{dataset}.{name}",
                hint=f"cast it in the model: CAST({column} AS DOUBLE) rounds, CAST({column} AS VARCHAR) keeps all",
            ) from exc


def _check_times(
    connection: duckdb.DuckDBPyConnection, paths: Sequence[Path], columns: Mapping[str, ColumnType], dataset: str
) -> None:
    """Raises `SchemaError` for what only DuckDB reads back: infinite times, years outside 1 to 9999, and 24:00:00.

    Other readers take DuckDB's infinity for a day in the year 5,881,580, or fail. The files' statistics tell, so that
    no value is looked at twice.
    """
    timed = {
        place: (name, kind)
        for place, (name, kind) in enumerate(leaves(columns))
        if kind in ("date", "time", "timestamp", "timestamptz")
    }
    if not timed:
        return
    found = connection.execute(
        f"SELECT column_id, stats_min_value, stats_max_value FROM parquet_metadata({literals([*map(str, paths)])}) "
        f"WHERE column_id IN ({', '.join(map(str, timed))})"
    ).fetchall()
    for place, *bounds in found:
        name, kind = timed[place]
        allowed = _TIMES if kind == "time" else _DATES
        for value in bounds:
            if value is not None and not allowed.fullmatch(value):
                column = quote(next(each for each in columns if f"{name}.".startswith(f"{each}.")))
                raise SchemaError(
                    f"{dataset}.{name}: expected a {kind} {_RANGE[kind == 'time']}, got {value}",
                    subject=f"{dataset}.{name}",
                    hint=f"in the model, make it NULL, or cast it: CAST({column} AS VARCHAR)",
                )


_DATES = re.compile(r"\d{4}-\d\d-\d\d(?!.*BC).*")
_TIMES = re.compile(r"([01]\d|2[0-3]):.*")
_RANGE = ("of the years 1 to 9999", "before 24:00:00")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
