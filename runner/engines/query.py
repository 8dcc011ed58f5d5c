"""query: one SQL file on DuckDB; its rows are the output."""

from __future__ import annotations

import time
from hashlib import sha256
from pathlib import Path

import duckdb

from runner.engines import scratch
from runner.engines.inputs import Inputs
from runner.model.errors import LogicError
from runner.model.manifest import Step
from runner.model.messages import EngineResult, Job
from runner.model.spec import QueryWork

MAX_SQL_BYTES = 1024 * 1024


def run(job: Job, inputs: Inputs) -> EngineResult:
    """Raises `LogicError` naming the file where it is not one SELECT, or DuckDB refuses it."""
    work = job.work
    if not isinstance(work, QueryWork):
        raise LogicError(f"work.kind: expected 'query', got {work.kind!r}")
    sql = _read(Path(job.workspace) / work.file, work.file)
    connection = scratch.connect(job, inputs)
    scratch.make_views(connection, job)
    inputs.primed()
    inputs.say(f"running {work.file}")
    started = time.monotonic()
    try:
        query = _only_select(connection, sql, work.file)
        claimed = sorted(_name(name) for name in connection.get_table_names(query, qualified=True))
        output = scratch.export(connection, job, job.outputs[0], f"({query}\n)", claimed_inputs=claimed)
    except duckdb.Error as exc:
        raise LogicError(f"{work.file}: {scratch.reason(exc)}", subject=work.file) from exc
    step = Step(
        name=work.file,
        kind="query",
        status="success",
        seconds=round(time.monotonic() - started, 3),
        rows=output.rows,
        compiled_sha256=sha256(query.encode()).hexdigest(),
    )
    return EngineResult(outputs=(output,), steps=(step,), packages={"duckdb": duckdb.__version__})


def _read(path: Path, name: str) -> str:
    if not path.is_file():
        raise LogicError(f"{name}: expected an SQL file in the logic repository, got none", subject=name)
    if path.stat().st_size > MAX_SQL_BYTES:
        raise LogicError(f"{name}: expected at most {MAX_SQL_BYTES:,} bytes, got {path.stat().st_size:,}", subject=name)
    return path.read_text("utf-8")


def _only_select(connection: duckdb.DuckDBPyConnection, sql: str, name: str) -> str:
    statements = connection.extract_statements(sql)
    kinds = [statement.type.name for statement in statements]
    if kinds != ["SELECT"]:
        came = ", ".join(kinds) or "none"
        raise LogicError(f"{name}: expected one SELECT statement, got {came}", subject=name)
    return statements[0].query.rstrip().rstrip(";")


def _name(qualified: str) -> str:
    """DuckDB's `get_table_names` quotes where it must; inputs are named without."""
    return qualified.replace('"', "")
