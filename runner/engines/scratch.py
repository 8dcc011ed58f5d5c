"""The engine's scratch database: inputs come in as views, outputs leave as Parquet with Iceberg's field ids."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import duckdb

from runner.engines.inputs import BrokeredS3, Inputs
from runner.engines.types import (
    ColumnType,
    cast_columns,
    column_types,
    field_ids,
    field_ids_sql,
    leaves,
    literal,
    quote,
    quote_relation,
)
from runner.model.errors import InfrastructureError, SchemaError
from runner.model.manifest import Column, Fingerprint
from runner.model.messages import EngineFile, EngineOutput, Job, JobOutput
from runner.model.names import is_table

ENGINE = f"duckdb {duckdb.__version__}"
PER_RUN_COLUMNS = ("_run_id", "_processed_at")
"""Columns that differ between a run and its rerun by their nature; fingerprints leave them out."""

_EXTENSIONS = ("avro", "iceberg")
_MEMORY_SHARE = 0.7
"""DuckDB's part of the job's memory: Python, Arrow buffers and the operating system need the rest."""


def settings(job: Job) -> dict[str, str | bool | int | float | list[str]]:
    """DuckDB's configuration for a job: nothing from outside is fetched, and time is UTC."""
    return {
        "threads": str(max(1, job.resources.cpu // 1024)),
        "memory_limit": f"{int(job.resources.memory_mib * _MEMORY_SHARE)}MiB",
        "temp_directory": str(Path(job.scratch) / "spill"),
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
    }


def configure(connection: duckdb.DuckDBPyConnection, inputs: Inputs, *, iceberg: bool = True) -> None:
    """Give a connection Iceberg, the broker as its only `s3://`, and UTC."""
    for name in _EXTENSIONS if iceberg else ():
        connection.execute(f"LOAD {literal(str(_extension(name)))}")
    if "s3" not in connection.list_filesystems():
        connection.register_filesystem(BrokeredS3(inputs))
    connection.execute("SET TimeZone = 'UTC'")


def connect(job: Job, inputs: Inputs, database: str = ":memory:") -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(database, config=settings(job))
    configure(connection, inputs, iceberg=any(is_table(each.pin.dataset) for each in job.inputs))
    return connection


def make_views(connection: duckdb.DuckDBPyConnection, job: Job) -> None:
    """A view for each table input, named by its `as`, over exactly the pinned snapshot."""
    for each in job.inputs:
        if not is_table(each.pin.dataset):
            continue
        schema, _, _ = each.pin.as_.rpartition(".")
        if schema:
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quote(schema)}")
        connection.execute(
            f"CREATE OR REPLACE VIEW {quote_relation(each.pin.as_)} AS SELECT * FROM "
            f"iceberg_scan({literal(each.pin.metadata)}, snapshot_from_id = {int(each.pin.snapshot)})"
        )


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
    """Write `relation` (a quoted name, or a query in parentheses) as the output's file in scratch.

    Columns are cast to types that Iceberg has, without loss. Raises `SchemaError` where a type, a name or a value of
    one cannot be kept.
    """
    dataset = dataset or output.output.dataset
    # A query is described as it is: around it, SELECT * would give the second of two equal names another.
    described = connection.sql(relation if relation.startswith("(") else f"FROM {relation}")
    columns = column_types(described.columns, described.types, relation=dataset)
    kind = "csv" if output.output.format == "csv" else "parquet"
    parts = dataset.replace(".", "/").split("/")
    name = f"{'-'.join(parts)}/{parts[-1]}.{kind}"
    path = Path(job.scratch) / "out" / name
    path.parent.mkdir(parents=True)
    try:
        rows = _copy(connection, relation, columns, path, kind, output if is_table(dataset) else None)
    except (duckdb.ConversionException, duckdb.OutOfRangeException) as exc:
        changed = {
            name: each.sql
            for (name, each), came in zip(columns.items(), described.types, strict=True)
            if str(came) != each.sql
        }
        _blame(connection, relation, changed, dataset, exc)
        raise  # the logic's own arithmetic, not our casts
    if kind == "parquet":
        _check_times(connection, path, columns, dataset)
    return EngineOutput(
        dataset=dataset,
        files=(EngineFile(path=name, rows=rows, sha256=_sha256(path)),),
        rows=rows,
        columns=tuple(Column(name=name, type=each.iceberg) for name, each in columns.items()),
        fingerprint=_fingerprint(connection, path, kind, columns),
        claimed_inputs=None if claimed_inputs is None else tuple(claimed_inputs),
        quarantine=quarantine,
    )


def _copy(
    connection: duckdb.DuckDBPyConnection,
    relation: str,
    columns: dict[str, ColumnType],
    path: Path,
    kind: str,
    table: JobOutput | None,
) -> int:
    options = "FORMAT csv, HEADER" if kind == "csv" else "FORMAT parquet, COMPRESSION zstd"
    if table:
        ids = field_ids(columns, table.field_ids, table.last_field_id, relation=table.output.dataset)
        options += f", FIELD_IDS {field_ids_sql(ids)}"
    query = f"COPY (SELECT {cast_columns(columns)} FROM {relation}) TO {literal(str(path))} ({options})"
    row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


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
    connection: duckdb.DuckDBPyConnection, path: Path, columns: dict[str, ColumnType], dataset: str
) -> None:
    """Raises `SchemaError` for what only DuckDB reads back: infinite times, years outside 1 to 9999, and 24:00:00.

    Other readers take DuckDB's infinity for a day in the year 5,881,580, or fail. The file's statistics tell, so that
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
        f"SELECT column_id, stats_min_value, stats_max_value FROM parquet_metadata({literal(str(path))}) "
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


def _fingerprint(
    connection: duckdb.DuckDBPyConnection, path: Path, kind: str, columns: dict[str, ColumnType]
) -> Fingerprint:
    """Of the file as written, so that a view with `random()` in it is not computed twice."""
    kept = {name: each for name, each in columns.items() if name not in PER_RUN_COLUMNS}
    reader = "read_csv" if kind == "csv" else "read_parquet"
    options = ", header = true, all_varchar = true" if kind == "csv" else ""
    names = ", ".join(quote(name) for name in kept) or "NULL"
    whole = "t"
    while whole in {name.lower() for name in kept}:
        whole += "_"  # or hash() would be of the column of that name alone
    row = connection.execute(
        f"SELECT count(*), coalesce(sum(hash({whole})), 0) FROM "
        f"(SELECT {names} FROM {reader}({literal(str(path))}{options})) {whole}"
    ).fetchone()
    rows, total = row or (0, 0)
    shape = ";".join(f"{name} {each.iceberg}" for name, each in kept.items())
    return Fingerprint(rows=rows, hash=hashlib.sha256(f"{shape}|{total}".encode()).hexdigest(), engine=ENGINE)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extension(name: str) -> Path:
    """The extension's file in its wheel, so that nothing is downloaded at run time."""
    package = f"duckdb_extension_{name}"
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InfrastructureError(
            f"DuckDB extension {name}: expected the package {package}, got none",
            hint="install stage-runner with the stage's extra, for example stage-runner[query]",
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "extensions" / f"v{duckdb.__version__}"
    return folder / f"{name}.duckdb_extension"


def reason(exc: duckdb.Error) -> str:
    """DuckDB's message in one line, without its drawing of the statement."""
    text = str(exc).split("\n\nLINE ")[0]
    return " ".join(text.split())
