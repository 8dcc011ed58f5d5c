"""A whole installation for one test module: real services, a portal, a logic repository, and the product on top."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runner.app import App
from runner.config import Settings, load_settings
from runner.embedded.portal import Portal
from runner.flow.waiting import Waiting
from runner.model.manifest import Manifest
from runner.model.spec import JobSpec
from runner.worker import Outcome
from tests.support.git_server import File, Repository

RUNNER = Path(sys.executable).with_name("runner")


@dataclass
class Site:
    """`env` is all that makes it this site: the same variables serve the App here and `runner` as a process."""

    folder: Path
    env: dict[str, str]
    settings: Settings
    portal: Portal

    @cached_property
    def app(self) -> App:
        return App(self.settings)

    @cached_property
    def repository(self) -> Repository:
        return Repository(self.folder / "git" / "logic.git")

    @property
    def repo_url(self) -> str:
        return f"{self.portal.url}/git/logic.git"

    def commit(self, files: Mapping[str, str | bytes]) -> str:
        contents: dict[str, File] = {
            path: text.encode() if isinstance(text, str) else text for path, text in files.items()
        }
        return self.repository.commit(contents)

    def serve(self, name: str, content: str | bytes) -> str:
        """Put a file at the portal; returns its URL."""
        path = self.folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return f"{self.portal.url}/{name}"

    def spec(self, commit: str, stage: str, work: Mapping[str, Any], **given: Any) -> JobSpec:
        """A job spec from what a test cares about."""
        document: dict[str, Any] = {
            "spec_version": 1,
            "pipeline": "tests",
            "task": "task",
            "stage": stage,
            "logic": {"repo": self.repo_url, "commit": commit},
            "work": work,
            **given,
        }
        return self.app.client.read_spec(json.dumps(document).encode(), what="spec")

    def carry(self, spec: JobSpec) -> Outcome:
        """Submit a spec, take one message of its stage's queue, and run it."""
        self.app.client.submit(spec)
        (outcome,) = self.app.worker().work(spec.stage, max_jobs=1, idle_timeout_s=5)
        return outcome

    def end(self, spec: JobSpec) -> Manifest:
        """Like `carry`, for a run that is expected to end."""
        outcome = self.carry(spec)
        assert isinstance(outcome, Manifest), outcome
        return outcome

    def wait(self, spec: JobSpec) -> Waiting:
        """Like `carry`, for a run that is expected to be tried again."""
        outcome = self.carry(spec)
        assert isinstance(outcome, Waiting), outcome
        return outcome

    def run(self, *arguments: str, check: bool = True, **more_env: str) -> subprocess.CompletedProcess[str]:
        """`runner …` as a process."""
        done = subprocess.run(
            [RUNNER, *arguments], env=self.env | more_env, cwd=self.folder, capture_output=True, text=True, timeout=300
        )
        if check and done.returncode != 0:
            raise AssertionError(f"runner {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def rows(self, table: str, columns: str = "*", *, branch: str | None = None) -> list[tuple[Any, ...]]:
        """A published table's rows, read by pyiceberg: nothing of the runner's reading comes into it."""
        loaded = self.app.tables._catalog.load_table(table)
        snapshot = loaded.metadata.snapshot_by_name(branch or "main")
        if snapshot is None:
            return []
        arrow = loaded.scan(snapshot_id=snapshot.snapshot_id).to_arrow()
        names = arrow.column_names if columns == "*" else [name.strip() for name in columns.split(",")]
        return list(zip(*(arrow[name].to_pylist() for name in names), strict=True))


def make_site(folder: Path, *, ledger_url: str, aws_endpoint_url: str, name: str) -> Site:
    """Everything of its own: database, bucket, queues, portal, folder."""
    for part in ("data", "git"):
        (folder / part).mkdir(parents=True)
    portal = Portal(folder / "data", folder / "git")
    address = portal.start().removeprefix("http://")
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "RUNNER_HOME": str(folder / "home"),
        "RUNNER_LEDGER_URL": ledger_url,
        "RUNNER_BUCKET": f"lake-{name}",
        "RUNNER_QUEUE_PREFIX": f"{name}-",
        "RUNNER_SOURCE_HOSTS": address,
        "RUNNER_LOGIC_HOSTS": "127.0.0.1",
        "RUNNER_LOGIC_SCHEMES": "http",
        "RUNNER_PACKAGE_HUB": f"http://{address}",
        "RUNNER_PACKAGE_HOSTS": address,
        "AWS_ENDPOINT_URL": aws_endpoint_url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    site = Site(folder=folder, env=env, settings=_settings(env), portal=portal)
    site.app.prepare()
    return site


def _settings(env: Mapping[str, str]) -> Settings:
    before = dict(os.environ)
    os.environ.update(env)
    try:
        return load_settings()
    finally:
        for name in env:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
        # botocore finds the emulator's keys where it finds anybody's.
        os.environ.update({name: env[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")})
