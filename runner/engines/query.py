"""query: one SQL file on DuckDB; its rows are the output."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb

from runner.engines import scratch
from runner.engines.export import export
from runner.engines.inputs import Inputs
from runner.engines.lock import lock
from runner.model.errors import LogicError
from runner.model.manifest import Step
from runner.model.messages import EngineResult, Job
from runner.model.spec import QueryWork

MAX_SQL_BYTES = 1024 * 1024


def warm() -> Iterator[None]:
    """All that a query would import and build, in the process that the jobs are forked from, in one step."""
    scratch.warm()
    yield


def run(job: Job, inputs: Inputs) -> EngineResult:
    """Raises `LogicError` naming the file where it is not one SELECT, or DuckDB refuses it."""
    work = job.work
    if not isinstance(work, QueryWork):
        raise LogicError(f"work.kind: expected 'query', got {work.kind!r}")
    sql = _read(Path(job.workspace) / work.file, work.file)
    connection = scratch.connect(job, inputs)
    scratch.make_views(connection, job)
    # SQL may read files of its commit, as a dbt project may.
    lock(connection, (Path(job.workspace), Path(job.scratch) / "out"))
    inputs.primed()
    inputs.say(f"running {work.file}")
    started = time.monotonic()
    try:
        query = _only_select(connection, sql, work.file)
        claimed = _named_tables(connection, query)
        output = export(connection, job, job.outputs[0], f"({query}\n)", claimed_inputs=claimed)
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


def _named_tables(connection: duckdb.DuckDBPyConnection, query: str) -> list[str] | None:
    """The tables that the query names, by DuckDB's own parse tree; None where it gives none (PIVOT, for example).

    `get_table_names` would look through the views to the functions below them, and binds what it cannot know.
    """
    row = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchone()
    tree = json.loads(row[0]) if row else {"error": True}
    if tree.get("error"):
        return None
    nodes = list(_nodes(tree))
    with_names = {entry["key"] for node in nodes for entry in (node.get("cte_map") or {}).get("map", [])}
    tables = [node for node in nodes if node.get("type") == "BASE_TABLE"]
    names = {".".join(part for part in (node["schema_name"], node["table_name"]) if part) for node in tables}
    return sorted(names - with_names)


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)
