"""dbt: an unmodified project on a scratch DuckDB database, its inputs there as views, its artifacts read as lineage."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb

from runner.engines import scratch
from runner.engines.dbt_call import call
from runner.engines.dbt_graph import Graph, graph_of
from runner.engines.dbt_parse import parse as parse
from runner.engines.dbt_project import Project
from runner.engines.dbt_reasons import FORBIDDEN, explained, one_line
from runner.engines.dbt_warm import warm as warm
from runner.engines.export import export
from runner.engines.inputs import Inputs
from runner.engines.lock import free_options, lock, set_free_options
from runner.engines.types import quote, quote_relation
from runner.model.errors import DataError, Failure, LogicError, SchemaError
from runner.model.manifest import Step
from runner.model.messages import EngineOutput, EngineResult, Job, JobOutput
from runner.model.redaction import Redaction
from runner.model.spec import DbtStep, DbtWork, SecretRef

if TYPE_CHECKING:
    from dbt.cli.main import dbtRunnerResult

_COMMENT = re.compile(r"\s*/\*.*?\*/", re.DOTALL)
_STATUS: Mapping[str, Literal["success", "pass", "warn", "fail", "error", "skipped"]] = {
    "success": "success",
    "pass": "pass",
    "warn": "warn",
    "fail": "fail",
    "error": "error",
    "runtime error": "error",
    "partial success": "error",
    "skipped": "skipped",
    "no-op": "skipped",
}
_UNREAD = ("macros", "docs", "disabled", "parent_map", "child_map")
"""Of dbt's manifest, what no graph is made of."""
_OF_PARSING = ("UnableToPartialParse", "ParsedFileLoadFailed", "PartialParsingSkipParsing", "PartialParsingEnabled")
"""The events by which dbt tells what it made of an earlier parse."""


def run(job: Job, inputs: Inputs) -> EngineResult:
    """Run the steps in order until one fails. Raises `LogicError` where the project does not parse."""
    work = job.work
    if not isinstance(work, DbtWork):
        raise LogicError(f"work.kind: expected 'dbt', got {work.kind!r}")
    work = _with_texts(work, inputs.secrets)
    project = Project(job, work)
    project.prepare()
    project.enter()
    if scratch.reads_tables(job):
        with scratch.connect(job, inputs, str(project.database)) as connection:
            scratch.make_views(connection, job)
            inputs.primed()
            # After it, so that the record shows the state as read: its rows are in what is published.
            scratch.restore(connection, job)
    else:
        inputs.primed()
    calls = _Calls(job, work, project, inputs)
    steps: list[Step] = []
    for number, step in enumerate(work.steps, start=1):
        found = list(calls.of(step))
        project.keep_artifacts(number)
        steps += found
        # Where what passed is published, a later step may still test it.
        if _failed(found) and job.publish == "all":
            break
    graph = _graph(project.target / "manifest.json")
    connection = scratch.connect(job, inputs, str(project.database))
    # A view runs when it is published: it reads what dbt's own connection could, as its hooks had set that up.
    set_free_options(connection, calls.options)
    lock(connection, (*project.folders, Path(job.scratch) / "out"))
    outputs, failure = _outputs(job, graph, steps, connection, inputs)
    return EngineResult(
        outputs=outputs,
        steps=tuple(_with_rows(step, graph, connection) for step in steps),
        packages={name: version(name) for name in ("dbt-core", "dbt-duckdb", "duckdb")},
        claims_known=not _failed(steps),
        failure=failure,
        artifacts=project.artifacts,
    )


def _with_texts(work: DbtWork, secrets: Mapping[str, str]) -> DbtWork:
    """The work as dbt is told it: with texts where the spec refers to secrets."""

    def text(value: object) -> object:
        return secrets[value.secret] if isinstance(value, SecretRef) else value

    given = {
        "vars": {name: text(value) for name, value in work.vars.items()},
        "env": {name: text(value) for name, value in work.env.items()},
    }
    return work.model_copy(update=given)


def _failed(steps: Iterable[Step]) -> bool:
    return any(step.status in ("error", "fail") for step in steps)


class _Calls:
    """dbt called step by step on one project."""

    def __init__(self, job: Job, work: DbtWork, project: Project, inputs: Inputs) -> None:
        self._job = job
        self._work = work
        self._project = project
        self._inputs = inputs
        self._secrets = Redaction(inputs.secrets)
        self.options: Mapping[str, str] = {}
        """What SQL had set on the latest connection, of the options that it may set."""

    def of(self, step: DbtStep) -> Iterator[Step]:
        from dbt.adapters.duckdb.connections import DuckDBConnectionManager

        from runner.engines import dbt_plugin

        dbt_plugin.serve(self._job, self._inputs, allowed=self._project.folders)
        self._inputs.say(f"dbt {step.command} {' '.join(step.select)}".rstrip())
        listener = _Listener(self._project, self._inputs, self._secrets)
        arguments = self._project.step_arguments(step, partial_parse=self._project.take_parsed())
        started = time.monotonic()
        result = call(arguments, listener)
        self._inputs.say(f"dbt {step.command} took {time.monotonic() - started:.3f} s", level="debug")
        # `env()` raises where dbt came to no connection, which is no fault here.
        connection = getattr(getattr(DuckDBConnectionManager, "_ENV", None), "conn", None)
        # One that a fault has made unusable tells nothing; dbt's own results do.
        with suppress(duckdb.Error):
            self.options = free_options(connection) if connection is not None else {}
        # dbt-duckdb keeps the file open after the runner returned; an open file hides what was written.
        DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]  # dbt-duckdb has no types
        yield from _steps(step, result, listener.statements, self._work, self._secrets)


def _graph(manifest: Path) -> Graph:
    from dbt_artifacts_parser.parsers.manifest.manifest_v12 import ManifestV12

    document = json.loads(manifest.read_bytes())
    for node in document["nodes"].values():
        # Of a test whose macro is not there dbt writes null among them, which its own schema does not know.
        node.get("depends_on", {}).pop("macros", None)
    # dbt's own 500 macros are most of it, and tell nothing of a graph.
    return graph_of(ManifestV12(**document | {name: {} for name in _UNREAD}))


class _Listener:
    """Passes dbt's events on as progress.

    The worker takes the secrets out, too; here it is done before a text is cut, and a part of one could stay.
    """

    def __init__(self, project: Project, inputs: Inputs, secrets: Redaction) -> None:
        self.statements: dict[str, str] = {}
        """Each node's latest statement: of one that failed, the one that did."""
        self._project = project
        self._inputs = inputs
        self._secrets = secrets
        self._done = 0

    def __call__(self, event: Any) -> None:
        if event.info.name == "NodeFinished":
            # A Python model may have gone elsewhere, and what dbt and SQL do next is relative to here.
            os.chdir(self._project.begin)
            self._done += 1
            node = event.data.node_info
            self._inputs.say(f"{node.resource_type} {node.node_name}: {node.node_status}", done=self._done)
        elif event.info.name == "SQLQuery":
            self.statements[event.data.node_info.unique_id] = self._one_line(_COMMENT.sub("", event.data.sql))
        elif event.info.name in _OF_PARSING:
            self._inputs.say(self._one_line(event.info.msg), level="debug")
        elif event.info.level in ("warn", "error"):
            level: Literal["warning", "error"] = "warning" if event.info.level == "warn" else "error"
            self._inputs.say(self._one_line(event.info.msg), level=level)

    def _one_line(self, text: str) -> str:
        return one_line(self._secrets.text(text))


def _steps(
    step: DbtStep, result: dbtRunnerResult, statements: Mapping[str, str], work: DbtWork, secrets: Redaction
) -> Iterator[Step]:
    """dbt's run results as steps. Raises `LogicError` where dbt came to no results at all."""
    if result.exception is not None:
        reason = explained(secrets.text(str(result.exception)), work)
        raise LogicError(f"dbt: {reason}", subject="dbt_project.yml") from result.exception
    if step.command == "docs":
        yield Step(name="docs", kind="docs", status="success" if result.success else "error")
        return
    results = getattr(result.result, "results", None)
    if not results and not step.allow_empty:
        raise LogicError(
            f"dbt {step.command}: expected the step to select a node, got none",
            hint="look at the step's select and exclude, or give it allow_empty: true",
        )
    for each in results or ():
        said = each.message if each.message and str(each.status) != "success" else None
        message = explained(secrets.text(said), work) if said else None
        statement = statements.get(each.node.unique_id)
        if message and statement and FORBIDDEN.search(message):
            message = f"{message[:600]}; the statement was: {statement[:300]}"
        compiled = getattr(each.node, "compiled_code", None)
        yield Step(
            name=each.node.unique_id,
            kind="compile" if step.command == "compile" else str(each.node.resource_type),
            status=_STATUS[str(each.status)],
            seconds=round(each.execution_time, 3),
            rows=each.failures,
            message=message,
            # Without the secrets: who knows the rest of the text could try out which one makes the hash.
            compiled_sha256=sha256(secrets.text(compiled).encode()).hexdigest() if compiled else None,
        )


def _outputs(
    job: Job, graph: Graph, steps: Sequence[Step], connection: duckdb.DuckDBPyConnection, inputs: Inputs
) -> tuple[tuple[EngineOutput, ...], Failure | None]:
    """What may be published; or none, and what is wrong with one of them though its checks passed."""
    made: list[EngineOutput] = []
    failed = _failed(steps)
    if failed and job.publish == "all":
        return (), None
    try:
        for output in job.outputs:
            node = _node_of(output, graph)
            obstacle = graph.obstacle(node, steps) if failed else None
            if obstacle:
                inputs.say(f"output {output.output.dataset} is not published: {obstacle}", level="warning")
            else:
                made.append(_export(job, output, node, graph, connection))
    except (DataError, LogicError, SchemaError) as exc:
        # As a failure of the result, not as an error: the manifest then tells the steps too.
        return (), exc.failure
    return tuple(made), None


def _node_of(output: JobOutput, graph: Graph) -> str:
    """Raises `LogicError` where no node of the project leaves the relation that the output takes."""
    relation = output.output.from_ or output.output.dataset
    node = graph.node_of(relation)
    if node is None or node in graph.sources:
        made = ", ".join(sorted(name for each, name in graph.relations.items() if each not in graph.sources))
        raise LogicError(
            f"output {output.output.dataset}: expected a model that makes {relation}, got {made or 'none'}",
            subject=relation,
        )
    if graph.materialized[node] == "ephemeral":
        raise LogicError(
            f"output {output.output.dataset}: expected a relation, got the ephemeral model {node}",
            subject=node,
            hint="an ephemeral model leaves nothing behind; materialize it as a view or a table",
        )
    return node


def _export(
    job: Job, output: JobOutput, node: str, graph: Graph, connection: duckdb.DuckDBPyConnection
) -> EngineOutput:
    relation = quote_relation(output.output.from_ or output.output.dataset)
    try:
        return export(connection, job, output, relation, claimed_inputs=graph.claimed(node))
    except duckdb.Error as exc:
        raise LogicError(f"{node}, output {output.output.dataset}: {scratch.reason(exc)}", subject=node) from exc


def _with_rows(step: Step, graph: Graph, connection: duckdb.DuckDBPyConnection) -> Step:
    """The rows that a node left in a table of its own; dbt-duckdb does not report them."""
    left_rows = step.status == "success" and step.kind != "compile"
    if not left_rows or graph.materialized.get(step.name) not in ("table", "incremental", "seed", "snapshot"):
        return step
    schema, _, name = graph.relations[step.name].partition(".")
    try:
        row = connection.execute(f"SELECT count(*) FROM {quote(schema)}.{quote(name)}").fetchone()
    except duckdb.Error:  # a hook may have dropped what the node made; what cannot be counted has no count
        return step
    return step.model_copy(update={"rows": row[0] if row else None})
