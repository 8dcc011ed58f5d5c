"""dbt: an unmodified project on a scratch DuckDB database, its inputs there as views, its artifacts read as lineage."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb

from runner.engines import scratch
from runner.engines.dbt_files import link_packages, read_yaml
from runner.engines.inputs import Inputs
from runner.engines.types import quote, quote_relation
from runner.model.errors import LogicError
from runner.model.lineage import closure
from runner.model.manifest import Step
from runner.model.messages import EngineOutput, EngineResult, Job
from runner.model.spec import DbtStep, DbtWork

if TYPE_CHECKING:
    from click import Command
    from dbt.cli.main import dbtRunnerResult
    from dbt_artifacts_parser.parsers.manifest.manifest_v12 import ManifestV12

_COMMENT = re.compile(r"\s*/\*.*?\*/", re.DOTALL)
_FORBIDDEN = re.compile(r"disabled (by|through) configuration|configuration has been locked")
"""How DuckDB says that the lock on its connection is why a statement failed."""
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
    connection.close()
    inputs.primed()
    steps: list[Step] = []
    for step in work.steps:
        found = list(project.invoke(step, inputs))
        steps += found
        if any(each.status in ("error", "fail") for each in found):
            break
    graph = project.graph()
    connection = scratch.connect(job, inputs, str(project.database))
    healthy = not any(step.status in ("error", "fail") for step in steps)
    return EngineResult(
        outputs=tuple(_outputs(job, graph, connection)) if healthy else (),
        steps=tuple(_with_rows(step, graph, connection) for step in steps),
        packages={name: version(name) for name in ("dbt-core", "dbt-duckdb", "duckdb")},
        claims_known=healthy,
    )


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
        self._profile = ""

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
        link_packages(self._root, self._root / str(project.get("packages-install-path", "dbt_packages")))

    def invoke(self, step: DbtStep, inputs: Inputs) -> Iterator[Step]:
        from dbt.adapters.duckdb.connections import DuckDBConnectionManager
        from dbt.cli.main import cli, dbtRunner

        from runner.engines import dbt_plugin

        _ignore_environment(cli)
        dbt_plugin.serve(inputs, allowed=(self._clone(), self._external))
        inputs.say(f"dbt {step.command} {' '.join(step.select)}".rstrip())
        listener = _Listener(inputs)
        result = dbtRunner(callbacks=[listener]).invoke(self._arguments(step))
        # dbt-duckdb keeps the file open after the runner returned; an open file hides what was written.
        DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]  # dbt-duckdb has no types
        yield from _steps(step, result, listener.statements)

    def _clone(self) -> Path:
        """The commit's whole tree, of which the project may be a sub-folder: what SQL may read besides its inputs."""
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

    def graph(self) -> _Graph:
        from dbt_artifacts_parser.parsers.manifest.manifest_v12 import ManifestV12

        document = json.loads((self._target / "manifest.json").read_bytes())
        return _graph(ManifestV12(**document))


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
            self.statements[event.data.node_info.unique_id] = _one_line(_COMMENT.sub("", event.data.sql))
        elif event.info.level in ("warn", "error"):
            level: Literal["warning", "error"] = "warning" if event.info.level == "warn" else "error"
            self._inputs.say(_one_line(event.info.msg), level=level)


def _ignore_environment(command: Command) -> None:
    """Take from dbt's options their environment variables: `env` is the project's, options are the spec's."""
    for option in command.params:
        option.envvar = None
    for each in getattr(command, "commands", {}).values():
        _ignore_environment(each)


def _steps(step: DbtStep, result: dbtRunnerResult, statements: Mapping[str, str]) -> Iterator[Step]:
    """dbt's run results as steps. Raises `LogicError` where dbt came to no results at all."""
    if result.exception is not None:
        raise LogicError(f"dbt: {_one_line(str(result.exception))}", subject="dbt_project.yml") from result.exception
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
        message = _one_line(each.message) if each.message and str(each.status) != "success" else None
        statement = statements.get(each.node.unique_id)
        if message and statement and _FORBIDDEN.search(message):
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


@dataclass(frozen=True)
class _Graph:
    """dbt's own account of its project: `relations` are what nodes and sources are called in the database."""

    relations: Mapping[str, str]
    """unique_id -> `schema.name`."""
    materialized: Mapping[str, str]
    depends_on: Mapping[str, list[str]]
    sources: frozenset[str]

    def node_of(self, relation: str) -> str | None:
        wanted = relation.lower()
        return next((node for node, name in self.relations.items() if name.lower() == wanted), None)

    def claimed(self, node: str) -> list[str]:
        """The sources that a node is made of, as `schema.name`."""
        return sorted(self.relations[each] for each in closure(self.depends_on, node) if each in self.sources)


def _graph(manifest: ManifestV12) -> _Graph:
    relations: dict[str, str] = {}
    materialized: dict[str, str] = {}
    depends_on: dict[str, list[str]] = {}
    for unique_id, node in manifest.nodes.items():
        if str(getattr(node, "resource_type", "")) in ("model", "seed", "snapshot"):
            relations[unique_id] = f"{node.schema_}.{node.alias}"
            config = getattr(node, "config", None)
            materialized[unique_id] = str(getattr(config, "materialized", None) or "table")
        depends = getattr(getattr(node, "depends_on", None), "nodes", None)
        depends_on[unique_id] = list(depends or [])
    made = {name.lower(): unique_id for unique_id, name in relations.items()}
    sources: set[str] = set()
    for unique_id, source in manifest.sources.items():
        relations[unique_id] = f"{source.schema_}.{source.identifier}"
        maker = made.get(relations[unique_id].lower())
        # A source that the project's own seed makes is no input: what that seed is made of is.
        if maker is not None:
            depends_on[unique_id] = [maker]
        # One with a location of its own is a file of the commit: SQL can open no other.
        elif not any("external_location" in (each or {}) for each in (source.meta, source.source_meta)):
            sources.add(unique_id)
    return _Graph(relations, materialized, depends_on, frozenset(sources))


def _outputs(job: Job, graph: _Graph, connection: duckdb.DuckDBPyConnection) -> Iterator[EngineOutput]:
    for output in job.outputs:
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
        try:
            yield scratch.export(connection, job, output, quote_relation(relation), claimed_inputs=graph.claimed(node))
        except duckdb.Error as exc:
            raise LogicError(f"{node}, output {output.output.dataset}: {scratch.reason(exc)}", subject=node) from exc


def _with_rows(step: Step, graph: _Graph, connection: duckdb.DuckDBPyConnection) -> Step:
    """The rows that a node left in a table of its own; dbt-duckdb does not report them."""
    left_rows = step.status == "success" and step.kind != "compile"
    if not left_rows or graph.materialized.get(step.name) not in ("table", "incremental", "seed", "snapshot"):
        return step
    schema, _, name = graph.relations[step.name].partition(".")
    try:
        row = connection.execute(f"SELECT count(*) FROM {quote(schema)}.{quote(name)}").fetchone()
    except duckdb.CatalogException:  # a hook may have dropped what the node made
        return step
    return step.model_copy(update={"rows": row[0] if row else None})


def _one_line(text: str) -> str:
    """In at most 1,000 characters: where a traceback is longer, its end says most."""
    line = " ".join(text.split())
    return line if len(line) <= 1000 else f"{line[:300]} … {line[-690:]}"
