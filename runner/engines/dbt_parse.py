"""What parsing a project came to, to be kept for its next runs: the key that it holds for, and the child that makes it.

The key is exact: all that parsing can depend on is in it, or was asked for and is found out (`dbt_moment`).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import __version__
from runner.engines.dbt_call import call
from runner.engines.dbt_moment import noted
from runner.engines.dbt_project import PARSED as PARSED
from runner.engines.dbt_project import Project
from runner.engines.dbt_reasons import one_line
from runner.model.errors import LogicError
from runner.model.manifest import PackageRecord
from runner.model.messages import Job
from runner.model.spec import DbtWork, SecretRef

if TYPE_CHECKING:
    from dbt.cli.main import dbtRunnerResult

    from runner.engines.inputs import Inputs

MAX_PARSED_BYTES = 64 * 1024 * 1024
"""1,000 short models come to 2.4 MB. What is larger is parsed each time."""

_PARSERS = ("dbt-core", "dbt-adapters", "dbt-common", "dbt-duckdb", "dbt-extractor", "duckdb", "jinja2", "pyyaml")


def parse_key(job: Job, *, repo: str, packages: Sequence[PackageRecord]) -> str | None:
    """What parsing depends on, hashed; None for a job that parses nothing, or nothing that may be kept.

    `packages` are those fetched for the job, others are part of its commit. dbt is not imported.
    """
    work = job.work
    if not isinstance(work, DbtWork) or _is_given_secrets(work):
        return None
    project = Project(job, work)
    parts = {
        "repo": repo,
        "commit": job.stamp.logic_commit,
        "path": str(project.root.relative_to(project.clone)),
        "working_directory": work.working_directory,
        "packages": [package.model_dump(mode="json") for package in packages],
        "profile": project.output(),
        "target": work.target,
        "vars": work.vars,
        "env": work.env,
        "versions": _versions(),
    }
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _is_given_secrets(work: DbtWork) -> bool:
    """dbt would write them into what parsing came to."""
    return any(isinstance(value, SecretRef) for value in (*work.vars.values(), *work.env.values()))


@cache
def _versions() -> dict[str, str]:
    ours = {"python": platform.python_version(), "machine": platform.machine(), "runner": __version__}
    return ours | {name: version(name) for name in _PARSERS}


def parse(job: Job, inputs: Inputs) -> Path | None:
    """Parse a job's project, and leave what it came to as `<scratch>/PARSED` and nothing else there.

    None, and no file, where it holds for this run alone or dbt cannot parse: the job itself then says why.
    """
    work = job.work
    if not isinstance(work, DbtWork) or _is_given_secrets(work):
        raise LogicError(f"work: expected one that has a parse key, got none for {work.kind!r}")
    project = Project(job, work)
    project.enter()
    try:
        project.prepare()
        warnings: list[str] = []
        with noted() as asked:
            arguments = ["--log-level", "none", *project.arguments(["parse"], partial_parse=False)]
            result = call(arguments, lambda event: warnings.extend(_warning(event)))
        reason = next(_reasons(project, work, asked, result), None)
        if reason is None:
            for warning in warnings:
                inputs.say(warning, level="warning")
            project.leave_parsed()
            return project.parsed
        inputs.say(f"what parsing comes to is not kept: {reason}", level="debug")
        return None
    finally:
        project.clear()


def _warning(event: Any) -> Iterator[str]:
    """Runs that need not parse do not give it again."""
    if event.info.level == "warn":
        yield one_line(event.info.msg)


def _reasons(project: Project, work: DbtWork, asked: Sequence[str], result: dbtRunnerResult) -> Iterator[str]:
    """Why what came of it may not be kept."""
    from dbt.constants import DEFAULT_ENV_PLACEHOLDER

    if asked:
        yield f"the project asked for {asked[0]} while it was parsed"
    if result.exception is not None or not result.success:
        yield f"dbt: {one_line(str(result.exception))}"
        return
    manifest: Any = result.result
    # Of the environment only `work.env` is in the key: HOME, for example, lies elsewhere in each run.
    found = {name for name, value in manifest.env_vars.items() if value != DEFAULT_ENV_PLACEHOLDER}
    if others := sorted(found - work.env.keys()):
        yield f"the project asked for the environment's {others[0]} while it was parsed"
    if (size := project.partial_parse.stat().st_size) > MAX_PARSED_BYTES:
        yield f"expected at most {MAX_PARSED_BYTES:,} bytes, got {size:,}"
