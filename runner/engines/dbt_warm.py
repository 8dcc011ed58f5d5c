"""Warming dbt: all that a job would import, build and remember, done once in the process that the jobs are forked from.

That process stays without threads, open files and databases: none of them survives a fork.
"""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.context
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

from runner.engines import scratch
from runner.engines.dbt_call import call
from runner.engines.dbt_project import Project
from runner.model.errors import InfrastructureError
from runner.model.messages import Job, Stamp
from runner.model.spec import DbtStep, DbtWork, Resources

_FILES = {
    "dbt_project.yml": "name: warm\nprofile: warm\nversion: 1.0.0\n",
    "seeds/a.csv": "id,name\n1,one\n",
    "models/b.sql": "{{ config(materialized='table') }} SELECT id, name FROM {{ ref('a') }} {{ target.name }}",
    "snapshots/c.sql": "{% snapshot c %}{{ config(unique_key='id', strategy='check', check_cols='all') }} "
    "SELECT * FROM {{ ref('b') }}{% endsnapshot %}",
    "models/models.yml": """
sources: [{name: s, tables: [{name: t}]}]
models: [{name: b, description: of a, columns: [{name: id, data_tests: [unique]}]}]
unit_tests: [{name: d, model: b, given: [], expect: {rows: [{id: 1}]}}]
""",
}
"""One of each kind: what dbt keeps of a kind, it builds when it first meets one."""

_LATE = (
    "dbt.adapters.duckdb.environments.local",
    "dbt.task.build",
    "dbt.task.compile",
    "dbt.task.docs.generate",
    "dbt.task.run",
    "dbt.task.seed",
    "dbt.task.snapshot",
    "dbt.task.test",
    "dbt_artifacts_parser.parsers.manifest.manifest_v12",
    "runner.engines.dbt_plugin",
)
"""What dbt, or the engine, imports when it first needs it."""

_MACROS_A_STEP = 50
"""Of some 500, which take about as long as all else together."""


def warm() -> Iterator[None]:
    """To be called once, before anything imports dbt, in a process with one thread and nothing to hide.

    In steps, the first of which is what takes longest to have: between any two of them a child may be forked.
    """
    _use_locks_of_threads()
    from dbt_common.clients.agate_helper import table_from_rows
    from dbt_common.clients.jinja import template_cache
    from dbt_common.tests import enable_test_caching

    for name in _LATE:
        importlib.import_module(name)
    scratch.warm()
    yield
    # By a name that says less than it does: dbt then remembers what it read in a text, for the same text.
    enable_test_caching()
    with TemporaryDirectory() as folder, _standing_where_it_stood():
        project = _project(Path(folder))
        project.prepare()
        # A fork has no threads, and the static parser's would be waited for.
        manifest = _require(["--no-static-parser", *project.arguments(["parse"], partial_parse=False)])
        step = DbtStep(command="build", select=("none",), allow_empty=True)
        _require(["--no-static-parser", *project.step_arguments(step, partial_parse=True)])
    table_from_rows([[1]], ["a"])
    _forget()
    yield
    for number, macro in enumerate(manifest.macros.values()):
        template_cache.get_node_template(macro)
        if number % _MACROS_A_STEP == 0:
            yield


def _use_locks_of_threads() -> None:
    """dbt takes locks that work between processes, and works in one: they want /dev/shm, and a process beside."""
    for name, lock in (("Lock", threading.Lock), ("RLock", threading.RLock)):
        setattr(multiprocessing, name, lock)
        setattr(multiprocessing.context.BaseContext, name, lambda _, lock=lock: lock())


def _project(folder: Path) -> Project:
    for name, text in _FILES.items():
        path = folder / "logic" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    (folder / "scratch").mkdir()
    work = DbtWork(kind="dbt", steps=(DbtStep(command="build"),))
    job = Job(
        work=work,
        inputs=(),
        outputs=(),
        workspace=str(folder / "logic"),
        scratch=str(folder / "scratch"),
        resources=Resources(),
        stamp=Stamp(logic_commit="0" * 40, run_id=UUID(int=0), processed_at=datetime.now(UTC)),
    )
    project = Project(job, work)
    project.enter()
    return project


def _require(arguments: list[str]) -> Any:
    """What dbt came to. Raises `InfrastructureError` where it is not installed as it should be."""
    result = call(arguments, lambda _: None)
    if not result.success:
        raise InfrastructureError(
            f"dbt {' '.join(arguments)}: expected it to work here, got {result.exception}",
            hint="install stage-runner with the stage's extra, stage-runner[transform]",
        ) from result.exception
    return result.result


def _forget() -> None:
    """Take from dbt's modules what is this project's and would not be replaced by the next one's."""
    from dbt.adapters.factory import reset_adapters
    from dbt.utils.artifact_upload import PRODUCED_ARTIFACTS_PATHS
    from dbt_common.events.event_manager_client import cleanup_event_logger

    from dbt import deprecations

    reset_adapters()  # type: ignore[no-untyped-call]  # dbt has no types here
    cleanup_event_logger()
    deprecations.reset_deprecations()  # type: ignore[no-untyped-call]
    PRODUCED_ARTIFACTS_PATHS.clear()


@contextmanager
def _standing_where_it_stood() -> Iterator[None]:
    before = Path.cwd()
    try:
        yield
    finally:
        os.chdir(before)
