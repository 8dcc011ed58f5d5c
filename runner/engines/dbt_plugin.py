"""The plugin by which dbt-duckdb's own connection gets what every connection of a job gets."""

from __future__ import annotations

from dbt.adapters.duckdb.plugins import BasePlugin
from duckdb import DuckDBPyConnection

from runner.engines import scratch
from runner.engines.inputs import Inputs

_inputs: list[Inputs] = []


def serve(inputs: Inputs) -> None:
    """dbt makes the plugin by its module's name, so what it needs waits here."""
    _inputs[:] = [inputs]


class Plugin(BasePlugin):
    def configure_connection(self, conn: DuckDBPyConnection) -> None:
        scratch.configure(conn, _inputs[0])
