"""The engine's scratch database: its connection, inputs in it as views, and outputs' previous state as tables."""

from __future__ import annotations

import os
import resource
import sys
from importlib.util import find_spec
from pathlib import Path

import duckdb

from runner.engines.inputs import BrokeredS3, Inputs
from runner.engines.types import literal, quote, quote_relation
from runner.model.errors import InfrastructureError, SpecError
from runner.model.manifest import NO_SNAPSHOT, Pin
from runner.model.messages import Job, JobOutput
from runner.model.names import is_table

LINEAGE_COLUMNS = ("_logic_commit", "_run_id", "_processed_at")
"""What each row says of the run that made it, where the spec asks for that."""

_EXTENSIONS = ("avro", "iceberg")
_MEMORY_SHARE = 0.7
"""DuckDB's part of the job's memory, beside what this process has by now: Python, Arrow buffers, Parquet's writers."""
_LEAST_MEMORY_MIB = 48
"""For each thread: with less it cannot sort at all, since its buffers have to fit before anything is spilled."""


def settings(job: Job) -> dict[str, str | bool | int | float | list[str]]:
    """DuckDB's configuration for a job: nothing from outside is fetched, and time is UTC."""
    threads = max(1, job.resources.cpu // 1024)
    left_mib = job.resources.memory_mib - _resident_mib()
    return {
        "threads": str(threads),
        "memory_limit": f"{max(_LEAST_MEMORY_MIB * threads, int(left_mib * _MEMORY_SHARE))}MiB",
        "temp_directory": str(Path(job.scratch) / "spill"),
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        # To check a signature is to read 60 MB each time; `warm` has done it. Once locked, a connection loads none.
        "allow_unsigned_extensions": "true",
    }


def _resident_mib() -> int:
    """The memory that this process has now, what it shares with the one it was forked from among it."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:  # no Linux: the most that it had, in bytes there
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "darwin" else 1024) // 1024
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024**2


def warm() -> None:
    """Bring DuckDB's extensions into this process, which is to be forked, and have their signatures checked."""
    # With one thread no other is started.
    with duckdb.connect(config={"threads": "1", "autoinstall_known_extensions": "false"}) as connection:
        _load_extensions(connection)


def configure(connection: duckdb.DuckDBPyConnection, inputs: Inputs, *, iceberg: bool = True) -> None:
    """Give a connection Iceberg, the broker as its only `s3://`, and UTC."""
    if iceberg:
        _load_extensions(connection)
    if "s3" not in connection.list_filesystems():
        connection.register_filesystem(BrokeredS3(inputs))
    connection.execute("SET TimeZone = 'UTC'")


def bound_spill(connection: duckdb.DuckDBPyConnection, job: Job) -> None:
    """By the job's disk. Of an open connection: what comes with its other settings is shown, and not held to (1.5)."""
    connection.execute(f"SET max_temp_directory_size = '{job.resources.scratch_mib}MiB'")


def connect(job: Job, inputs: Inputs, database: str = ":memory:") -> duckdb.DuckDBPyConnection:
    """A connection that has what the job's inputs and outputs need. It is not locked: see `runner.engines.lock`."""
    connection = duckdb.connect(database, config=settings(job))
    configure(connection, inputs, iceberg=reads_tables(job))
    bound_spill(connection, job)
    return connection


def reads_tables(job: Job) -> bool:
    """Whether anything of the job is in an Iceberg table."""
    return any(is_table(each.pin.dataset) for each in job.inputs) or any(each.state for each in job.outputs)


def make_views(connection: duckdb.DuckDBPyConnection, job: Job) -> None:
    """A view for each table input, named by its `as`, over exactly the pinned snapshot."""
    for each in job.inputs:
        if not is_table(each.pin.dataset):
            continue
        schema, _, _ = each.pin.as_.rpartition(".")
        if schema:
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quote(schema)}")
        connection.execute(
            f"CREATE OR REPLACE VIEW {quote_relation(each.pin.as_)} AS SELECT * FROM {snapshot_rows(each.pin)}"
        )


def restore(connection: duckdb.DuckDBPyConnection, job: Job) -> None:
    """A table for each output that asks for its state, as the relation that the logic makes, with the pinned rows.

    Columns that the runner adds to each row are left out, since the logic does not make them. Raises `SpecError` where
    an input has the relation's name.
    """
    for each in job.outputs:
        if each.output.state is None or each.state is None or each.state.snapshot == NO_SNAPSHOT:
            continue
        relation = each.output.from_ or each.output.dataset
        schema, _, _ = relation.rpartition(".")
        if schema:
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quote(schema)}")
        try:
            connection.execute(
                f"CREATE TABLE {quote_relation(relation)} AS SELECT {_made_columns(connection, each, each.state)} "
                f"FROM {snapshot_rows(each.state)}"
            )
        except duckdb.CatalogException as exc:
            raise SpecError(
                f"output {each.output.dataset}: expected no input called {relation}, which its state is restored as, "
                "got one",
                subject=relation,
                hint="give the input another name (`as`), or leave state out: the input has the published rows too",
            ) from exc


def _made_columns(connection: duckdb.DuckDBPyConnection, output: JobOutput, state: Pin) -> str:
    """The columns that the logic itself made."""
    added = LINEAGE_COLUMNS if output.output.lineage_columns else ()
    names = [name for name in connection.sql(f"FROM {snapshot_rows(state)}").columns if name not in added]
    return ", ".join(map(quote, names))


def snapshot_rows(pin: Pin) -> str:
    """SQL for the rows of exactly the pinned snapshot, to stand after FROM."""
    return f"iceberg_scan({literal(pin.metadata)}, snapshot_from_id = {int(pin.snapshot)})"


def _load_extensions(connection: duckdb.DuckDBPyConnection) -> None:
    for name in _EXTENSIONS:
        connection.execute(f"LOAD {literal(str(_extension(name)))}")


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
