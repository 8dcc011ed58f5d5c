"""The plugin by which dbt-duckdb's own connection gets what every connection of a job gets, and is locked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dbt.adapters.duckdb.credentials import DuckDBCredentials
from dbt.adapters.duckdb.plugins import BasePlugin
from duckdb import DuckDBPyConnection

from runner.engines import scratch
from runner.engines.inputs import Inputs
from runner.engines.lock import lock
from runner.model.messages import Job

_serving: list[tuple[Job, Inputs, Sequence[Path]]] = []


def serve(job: Job, inputs: Inputs, *, allowed: Sequence[Path]) -> None:
    """dbt makes the plugin by its module's name, so what it needs waits here: `allowed` are folders SQL may use."""
    _serving[:] = [(job, inputs, allowed)]


class Plugin(BasePlugin):
    def update_connection_config(self, creds: DuckDBCredentials, config: dict[str, Any]) -> None:
        # Not by the profile, which a project can read: what is measured, and where things lie, differs between runs.
        config.update(scratch.settings(_serving[0][0]))

    def configure_connection(self, conn: DuckDBPyConnection) -> None:
        job, inputs, allowed = _serving[0]
        scratch.configure(conn, inputs, iceberg=scratch.reads_tables(job))
        scratch.bound_spill(conn, job)
        lock(conn, allowed)
