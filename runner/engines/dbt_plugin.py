"""The plugin by which dbt-duckdb's own connection gets what every connection of a job gets, and is locked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dbt.adapters.duckdb.plugins import BasePlugin
from duckdb import DuckDBPyConnection

from runner.engines import scratch
from runner.engines.inputs import Inputs
from runner.engines.lock import lock

_serving: list[tuple[Inputs, Sequence[Path]]] = []


def serve(inputs: Inputs, *, allowed: Sequence[Path]) -> None:
    """dbt makes the plugin by its module's name, so what it needs waits here: `allowed` are folders SQL may use."""
    _serving[:] = [(inputs, allowed)]


class Plugin(BasePlugin):
    def configure_connection(self, conn: DuckDBPyConnection) -> None:
        inputs, allowed = _serving[0]
        scratch.configure(conn, inputs)
        lock(conn, allowed)
