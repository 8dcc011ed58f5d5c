"""dbt: an unmodified project on a scratch DuckDB database, its inputs there as views, its artifacts read as lineage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb

from runner.engines import scratch
from runner.engines.inputs import Inputs
from runner.engines.types import quote, quote_relation
from runner.model.errors import LogicError
from runner.model.lineage import closure
from runner.model.manifest import Step
from runner.model.messages import EngineOutput, EngineResult, Job
from runner.model.spec import DbtStep, DbtWork

if TYPE_CHECKING:
    from dbt.cli.main import dbtRunnerResult
    from dbt_artifacts_parser.parsers.manifest.manifest_v12 import ManifestV12

DATABASE = "warehouse"
SCHEMA = "main"
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
    project.write_profile()
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
        claims_known=True,
    )


class _Project:
    """One project's folders and dbt's entry point."""

    def __init__(self, job: Job, work: DbtWork) -> None:
        self._job = job
        self._work = work
        self._root = Path(job.workspace)
        folder = Path(job.scratch)
        self.database = folder / f"{DATABASE}.duckdb"
        self._profiles = folder / "profiles"
        self._target = folder / "target"
        self._logs = folder / "logs"

    def write_profile(self) -> None:
        """The project's profile by its own name; a profiles.yml of the project's is ignored."""
        import yaml

        path = self._root / "dbt_project.yml"
        if not path.is_file():
            raise LogicError(
                "dbt_project.yml: expected a dbt project at logic.path, got none", subject="dbt_project.yml"
            )
        try:
            project = yaml.safe_load(path.read_bytes())
        except yaml.YAMLError as exc:
            raise LogicError(f"dbt_project.yml: expected YAML, got {_one_line(str(exc))}") from exc
        name = project.get("profile") if isinstance(project, dict) else None
        if not isinstance(name, str):
            raise LogicError(f"dbt_project.yml: profile: expected a name, got {name!r}", subject="dbt_project.yml")
        output = {
            "type": "duckdb",
            "path": str(self.database),
            "schema": SCHEMA,
            "threads": max(1, self._job.resources.cpu // 1024),
            "config_options": scratch.settings(self._job),
            "plugins": [{"module": "runner.engines.dbt_plugin"}],
        }
        profile = {name: {"target": self._work.target, "outputs": {self._work.target: output}}}
        self._profiles.mkdir()
        (self._profiles / "profiles.yml").write_text(json.dumps(profile), "utf-8")

    def invoke(self, step: DbtStep, inputs: Inputs) -> Iterator[Step]:
        from dbt.adapters.duckdb.connections import DuckDBConnectionManager
        from dbt.cli.main import dbtRunner

        from runner.engines import dbt_plugin

        dbt_plugin.serve(inputs)
        inputs.say(f"dbt {step.command} {' '.join(step.select)}".rstrip())
        result = dbtRunner(callbacks=[_Listener(inputs)]).invoke(self._arguments(step))
        # dbt-duckdb keeps the file open after the runner returned; an open file hides what was written.
        DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]  # dbt-duckdb has no types
        yield from _steps(result)

    def _arguments(self, step: DbtStep) -> list[str]:
        arguments = ["--no-use-colors", "--quiet", "--log-level-file", "none", "--no-send-anonymous-usage-stats"]
        arguments += ["--no-version-check", "--no-partial-parse", step.command]
        arguments += ["--project-dir", str(self._root), "--profiles-dir", str(self._profiles)]
        arguments += ["--target-path", str(self._target), "--log-path", str(self._logs)]
        arguments += ["--target", self._work.target, "--vars", json.dumps(self._work.vars)]
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
        self._inputs = inputs
        self._done = 0

    def __call__(self, event: Any) -> None:
        if event.info.name == "NodeFinished":
            self._done += 1
            node = event.data.node_info
            self._inputs.say(f"{node.resource_type} {node.node_name}: {node.node_status}", done=self._done)
        elif event.info.level in ("warn", "error"):
            level: Literal["warning", "error"] = "warning" if event.info.level == "warn" else "error"
            self._inputs.say(_one_line(event.info.msg), level=level)


def _steps(result: dbtRunnerResult) -> Iterator[Step]:
    """dbt's run results as steps. Raises `LogicError` where dbt came to no results at all."""
    if result.exception is not None:
        raise LogicError(f"dbt: {_one_line(str(result.exception))}", subject="dbt_project.yml") from result.exception
    results = getattr(result.result, "results", None)
    if not results:
        raise LogicError("dbt: expected the step to select a node, got none", hint="look at the step's select")
    for each in results:
        compiled = getattr(each.node, "compiled_code", None)
        yield Step(
            name=each.node.unique_id,
            kind=str(each.node.resource_type),
            status=_STATUS[str(each.status)],
            seconds=round(each.execution_time, 3),
            rows=each.failures,
            message=_one_line(each.message) if each.message and str(each.status) != "success" else None,
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
    for unique_id, source in manifest.sources.items():
        relations[unique_id] = f"{source.schema_}.{source.identifier}"
    return _Graph(relations, materialized, depends_on, frozenset(manifest.sources))


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
    if step.status != "success" or graph.materialized.get(step.name) not in (
        "table",
        "incremental",
        "seed",
        "snapshot",
    ):
        return step
    schema, _, name = graph.relations[step.name].partition(".")
    row = connection.execute(f"SELECT count(*) FROM {quote(schema)}.{quote(name)}").fetchone()
    return step.model_copy(update={"rows": row[0] if row else None})


def _one_line(text: str) -> str:
    return " ".join(text.split())[:1000]
