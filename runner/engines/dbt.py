"""dbt: an unmodified project on a scratch DuckDB database, its inputs there as views, its artifacts read as lineage."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb

from runner.engines import scratch
from runner.engines.dbt_files import install_path, link_packages, read_yaml
from runner.engines.dbt_graph import Graph, graph_of
from runner.engines.dbt_reasons import FORBIDDEN, explained, one_line
from runner.engines.export import export
from runner.engines.inputs import Inputs
from runner.engines.lock import free_options, lock, set_free_options
from runner.engines.types import quote, quote_relation
from runner.model.errors import DataError, Failure, LogicError, SchemaError
from runner.model.manifest import Step
from runner.model.messages import EngineOutput, EngineResult, Job, JobOutput
from runner.model.spec import DbtStep, DbtWork

if TYPE_CHECKING:
    from click import Command
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


def run(job: Job, inputs: Inputs) -> EngineResult:
    """Run the steps in order until one fails. Raises `LogicError` where the project does not parse."""
    work = job.work
    if not isinstance(work, DbtWork):
        raise LogicError(f"work.kind: expected 'dbt', got {work.kind!r}")
    project = _Project(job, work)
    project.prepare()
    connection = scratch.connect(job, inputs, str(project.database))
    scratch.make_views(connection, job)
    inputs.primed()
    # After it, so that the record shows the state as read: its rows are in what is published.
    scratch.restore(connection, job)
    connection.close()
    steps: list[Step] = []
    for number, step in enumerate(work.steps, start=1):
        found = list(project.invoke(step, inputs))
        project.keep_artifacts(number)
        steps += found
        # Where what passed is published, a later step may still test it.
        if _failed(found) and job.publish == "all":
            break
    graph = project.graph()
    connection = scratch.connect(job, inputs, str(project.database))
    project.lock(connection)
    outputs, failure = _outputs(job, graph, steps, connection, inputs)
    return EngineResult(
        outputs=outputs,
        steps=tuple(_with_rows(step, graph, connection) for step in steps),
        packages={name: version(name) for name in ("dbt-core", "dbt-duckdb", "duckdb")},
        claims_known=not _failed(steps),
        failure=failure,
        artifacts=project.artifacts,
    )


def _failed(steps: Iterable[Step]) -> bool:
    return any(step.status in ("error", "fail") for step in steps)


class _Project:
    """One project's folders and dbt's entry point."""

    def __init__(self, job: Job, work: DbtWork) -> None:
        self._job = job
        self._work = work
        self._root = Path(job.workspace)
        folder = Path(job.scratch)
        self.database = folder / f"{work.database}.duckdb"
        self._profiles = folder / "profiles"
        self._target = folder / "target"
        self._logs = folder / "logs"
        self._external = folder / "external"
        self._out = folder / "out"
        self._profile = ""
        self._options: dict[str, str] = {}
        self._artifacts = folder / "artifacts"
        self._folders = (self._clone, self._external)
        """What SQL may read and write besides its inputs."""

    @property
    def artifacts(self) -> tuple[str, ...]:
        return tuple(sorted(path.name for path in self._artifacts.glob("*")))

    def keep_artifacts(self, step: int) -> None:
        """What dbt has written of the step: each step writes its results anew, the others only where they changed."""
        self._artifacts.mkdir(exist_ok=True)
        for name in ("manifest.json", "catalog.json", "index.html", "run_results.json"):
            made = self._target / name
            kept = f"run_results.{step}.json" if name == "run_results.json" else name
            if made.is_file():
                # Results are moved: a step that writes none would seem to have those of the one before it.
                (shutil.move if name == "run_results.json" else shutil.copyfile)(made, self._artifacts / kept)

    def prepare(self) -> None:
        """The project's profile by its own name, its local packages where dbt looks for them."""
        path = self._root / "dbt_project.yml"
        if not path.is_file():
            raise LogicError(
                "dbt_project.yml: expected a dbt project at logic.path, got none", subject="dbt_project.yml"
            )
        project = read_yaml(path)
        # What takes its name from Jinja, or has none, is run under the project's name; `--profile` says so to dbt.
        named = isinstance(project.get("profile"), str) and "{{" not in project["profile"]
        self._profile = str(project["profile"] if named else project.get("name"))
        output = {
            "type": "duckdb",
            "path": str(self.database),
            "schema": self._work.schema_,
            "threads": max(1, self._job.resources.cpu // 1024),
            "external_root": str(self._external),
            "config_options": scratch.settings(self._job),
            "plugins": [{"module": "runner.engines.dbt_plugin"}],
        }
        profile = {self._profile: {"target": self._work.target, "outputs": {self._work.target: output}}}
        self._profiles.mkdir()
        (self._profiles / "profiles.yml").write_text(json.dumps(profile), "utf-8")
        self._external.mkdir()
        if self._work.working_directory == "repository":
            os.chdir(self._clone)
        link_packages(self._root, install_path(self._root), clone=self._clone)

    def invoke(self, step: DbtStep, inputs: Inputs) -> Iterator[Step]:
        from dbt.adapters.duckdb.connections import DuckDBConnectionManager
        from dbt.cli.main import cli, dbtRunner

        from runner.engines import dbt_plugin

        _ignore_environment(cli)
        dbt_plugin.serve(inputs, allowed=self._folders)
        inputs.say(f"dbt {step.command} {' '.join(step.select)}".rstrip())
        listener = _Listener(inputs)
        result = dbtRunner(callbacks=[listener]).invoke(self._arguments(step))
        # `env()` raises where dbt came to no connection, which is no fault here.
        connection = getattr(getattr(DuckDBConnectionManager, "_ENV", None), "conn", None)
        # One that a fault has made unusable tells nothing; dbt's own results do.
        with suppress(duckdb.Error):
            self._options = free_options(connection) if connection is not None else {}
        # dbt-duckdb keeps the file open after the runner returned; an open file hides what was written.
        DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]  # dbt-duckdb has no types
        yield from _steps(step, result, listener.statements, self._work)

    def lock(self, connection: duckdb.DuckDBPyConnection) -> None:
        """A view runs when it is published: it reads what dbt's own connection could, as its hooks had set that up."""
        set_free_options(connection, self._options)
        lock(connection, (*self._folders, self._out))

    @property
    def _clone(self) -> Path:
        """The commit's whole tree, of which the project may be a sub-folder."""
        room = Path(os.path.commonpath([self._root, self._job.scratch]))
        return room / self._root.relative_to(room).parts[0]

    def _arguments(self, step: DbtStep) -> list[str]:
        # Flags win over `flags:` of dbt_project.yml; those that only say how tests are judged stay the project's.
        arguments = ["--no-use-colors", "--quiet", "--log-level-file", "none", "--no-send-anonymous-usage-stats"]
        arguments += ["--no-version-check", "--no-partial-parse", "--write-json"]
        arguments += ["docs", "generate"] if step.command == "docs" else [step.command]
        arguments += ["--project-dir", str(self._root), "--profiles-dir", str(self._profiles)]
        arguments += ["--target-path", str(self._target), "--log-path", str(self._logs)]
        arguments += ["--profile", self._profile, "--target", self._work.target]
        arguments += ["--vars", json.dumps(self._work.vars)]
        arguments += ["--full-refresh"] if step.full_refresh else []
        for flag, names in (("--select", step.select), ("--exclude", step.exclude)):
            if names:
                arguments += [flag, *names]
        return arguments

    def graph(self) -> Graph:
        from dbt_artifacts_parser.parsers.manifest.manifest_v12 import ManifestV12

        document = json.loads((self._target / "manifest.json").read_bytes())
        return graph_of(ManifestV12(**document))


class _Listener:
    """Passes dbt's events on as progress."""

    def __init__(self, inputs: Inputs) -> None:
        self.statements: dict[str, str] = {}
        """Each node's latest statement: of one that failed, the one that did."""
        self._inputs = inputs
        self._done = 0

    def __call__(self, event: Any) -> None:
        if event.info.name == "NodeFinished":
            self._done += 1
            node = event.data.node_info
            self._inputs.say(f"{node.resource_type} {node.node_name}: {node.node_status}", done=self._done)
        elif event.info.name == "SQLQuery":
            self.statements[event.data.node_info.unique_id] = one_line(_COMMENT.sub("", event.data.sql))
        elif event.info.level in ("warn", "error"):
            level: Literal["warning", "error"] = "warning" if event.info.level == "warn" else "error"
            self._inputs.say(one_line(event.info.msg), level=level)


def _ignore_environment(command: Command) -> None:
    """Take from dbt's options their environment variables: `env` is the project's, options are the spec's."""
    for option in command.params:
        option.envvar = None
    for each in getattr(command, "commands", {}).values():
        _ignore_environment(each)


def _steps(step: DbtStep, result: dbtRunnerResult, statements: Mapping[str, str], work: DbtWork) -> Iterator[Step]:
    """dbt's run results as steps. Raises `LogicError` where dbt came to no results at all."""
    if result.exception is not None:
        reason = explained(str(result.exception), work)
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
        message = explained(each.message, work) if each.message and str(each.status) != "success" else None
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
            compiled_sha256=sha256(compiled.encode()).hexdigest() if compiled else None,
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
