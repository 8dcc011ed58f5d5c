"""One dbt project as a job has it: its folders, its profile, and what dbt is told on its command line.

Every path that dbt is told is relative to where it works, and the same in each run of a project: what parsing came to
in one run holds in the next, and no record tells of this run's folders.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.engines.dbt_files import install_path, link_packages, read_yaml
from runner.model.errors import LogicError
from runner.model.messages import Job
from runner.model.spec import DbtStep, DbtWork

PARSED = "parsed.msgpack"
"""Where in scratch what an earlier parse came to waits for dbt, or is left by one."""
_KEPT = ("manifest.json", "catalog.json", "index.html", "run_results.json")


class Project:
    """Made where the job's workspace and scratch are there; nothing is written before `prepare`."""

    def __init__(self, job: Job, work: DbtWork) -> None:
        self._job = job
        self._work = work
        workspace = Path(job.workspace)
        room = Path(os.path.commonpath([workspace, job.scratch]))
        # Resolved: the kernel takes `..` from where a link leads to.
        self.root = workspace.resolve()
        self._scratch = Path(job.scratch).resolve()
        self.clone = (room / workspace.relative_to(room).parts[0]).resolve()
        """The commit's whole tree, of which the project may be a sub-folder."""
        if not self.root.is_relative_to(self.clone):
            raise LogicError(
                f"logic.path: expected a folder of the repository, got a link to {self.root}", subject="logic.path"
            )
        self.begin = self.clone if work.working_directory == "repository" else self.root
        """Where relative paths begin."""
        self.database = self._scratch / f"{work.database}.duckdb"
        self.target = self._scratch / "target"
        self.parsed = self._scratch / PARSED
        self.partial_parse = self.target / "partial_parse.msgpack"
        """What dbt leaves of it, and looks for."""
        self._profiles = self._scratch / "profiles"
        self._logs = self._scratch / "logs"
        self._external = self._scratch / "external"
        self._artifacts = self._scratch / "artifacts"
        self.folders = (self.clone, self._external)
        """What SQL may read and write besides its inputs."""
        self._profile = ""

    def output(self) -> dict[str, Any]:
        """The profile's target, all of which a project can ask for.

        Nothing of it is this run's own: DuckDB's settings come by the plugin.
        """
        return {
            "type": "duckdb",
            "path": self._inside(self.database),
            "schema": self._work.schema_,
            "threads": max(1, self._job.resources.cpu // 1024),
            "external_root": self._inside(self._external),
            "plugins": [{"module": "runner.engines.dbt_plugin"}],
        }

    def prepare(self) -> None:
        """The project's profile by its own name, its local packages where dbt looks for them."""
        path = self.root / "dbt_project.yml"
        if not path.is_file():
            raise LogicError(
                "dbt_project.yml: expected a dbt project at logic.path, got none", subject="dbt_project.yml"
            )
        project = read_yaml(path)
        # What takes its name from Jinja, or has none, is run under the project's name; `--profile` says so to dbt.
        named = isinstance(project.get("profile"), str) and "{{" not in project["profile"]
        self._profile = str(project["profile"] if named else project.get("name"))
        profile = {self._profile: {"target": self._work.target, "outputs": {self._work.target: self.output()}}}
        self.clear()  # a parse that was killed has left its own
        self._profiles.mkdir()
        (self._profiles / "profiles.yml").write_text(json.dumps(profile), "utf-8")
        self._external.mkdir()
        link_packages(self.root, install_path(self.root), clone=self.clone)

    def clear(self) -> None:
        """Remove what `prepare` and dbt make, but for what parsing came to and what is handed over."""
        for each in (self._profiles, self._logs, self._external, self.target):
            shutil.rmtree(each, ignore_errors=True)

    def enter(self) -> None:
        """Stand where relative paths begin, among the variables that `env_var` finds."""
        os.chdir(self.begin)
        os.environ |= {name: str(text) for name, text in self._work.env.items()}

    def take_parsed(self) -> bool:
        """Put what an earlier parse came to where dbt looks for it; False where there is none.

        For each step anew: dbt may write another in its place, and parsing can depend on the step.
        """
        if not self.parsed.is_file():
            return False
        self.target.mkdir(exist_ok=True)
        shutil.copyfile(self.parsed, self.partial_parse)
        return True

    def leave_parsed(self) -> None:
        """Keep what parsing came to, for `take_parsed` in another run's scratch."""
        self.partial_parse.rename(self.parsed)

    def arguments(self, command: Sequence[str], *, partial_parse: bool) -> list[str]:
        """What dbt's command line says of all commands alike, to be called where paths begin."""
        # Flags win over `flags:` of dbt_project.yml; those that only say how tests are judged stay the project's.
        return [
            *("--no-use-colors", "--quiet", "--log-level-file", "none", "--no-send-anonymous-usage-stats"),
            *("--no-version-check", "--write-json", "--partial-parse" if partial_parse else "--no-partial-parse"),
            *command,
            *("--project-dir", self._inside(self.root), "--profiles-dir", self._inside(self._profiles)),
            # Of all paths this one begins at the project.
            *("--target-path", os.path.relpath(self.target, self.root), "--log-path", self._inside(self._logs)),
            *("--profile", self._profile, "--target", self._work.target, "--vars", json.dumps(self._work.vars)),
        ]

    def step_arguments(self, step: DbtStep, *, partial_parse: bool) -> list[str]:
        """The same with what a step says."""
        command = ("docs", "generate") if step.command == "docs" else (step.command,)
        arguments = self.arguments(command, partial_parse=partial_parse)
        arguments += ["--full-refresh"] if step.full_refresh else []
        for flag, names in (("--select", step.select), ("--exclude", step.exclude)):
            if names:
                arguments += [flag, *names]
        return arguments

    def keep_artifacts(self, step: int) -> None:
        """What dbt has written of the step: each step writes its results anew, the others only where they changed."""
        self._artifacts.mkdir(exist_ok=True)
        for name in _KEPT:
            made = self.target / name
            kept = f"run_results.{step}.json" if name == "run_results.json" else name
            if made.is_file():
                # Results are moved: a step that writes none would seem to have those of the one before it.
                (shutil.move if name == "run_results.json" else shutil.copyfile)(made, self._artifacts / kept)

    @property
    def artifacts(self) -> tuple[str, ...]:
        return tuple(sorted(path.name for path in self._artifacts.glob("*")))

    def _inside(self, path: Path) -> str:
        return os.path.relpath(path, self.begin)
