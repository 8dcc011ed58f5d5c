"""The lock on a connection that runs analysts' SQL: no file but those of some folders, and no option but some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from duckdb import DuckDBPyConnection

from runner.engines.types import literal

FREE_OPTIONS = (
    "arrow_large_buffer_size",
    "default_null_order",
    "default_order",
    "enable_progress_bar",
    "ieee_floating_point_ops",
    "integer_division",
    "lambda_syntax",
    "old_implicit_casting",
    "order_by_non_integer_literal",
    "ordered_aggregate_threshold",
    "partitioned_write_flush_threshold",
    "partitioned_write_max_open_files",
    "perfect_ht_threshold",
    "pivot_filter_threshold",
    "pivot_limit",
    "preserve_insertion_order",
    "scalar_subquery_error_on_multiple_rows",
)
"""What a project may SET: how its SQL is read and how fast it runs, and nothing that lets it out or takes more room.

Not `default_collation`: views are published under these options too, and partitions and keys compare by bytes.
"""


def lock(connection: DuckDBPyConnection, folders: Iterable[Path]) -> None:
    """Lock a connection for good. SQL reads and writes files of `folders` only; `s3://` is the broker, which checks."""
    allowed = ", ".join(literal(each) for each in ("s3://", *map(str, folders)))
    connection.execute(f"SET allowed_directories = [{allowed}]")
    connection.execute("SET enable_external_access = false")
    connection.execute(f"SET allowed_configs = [{', '.join(map(literal, FREE_OPTIONS))}]")
    connection.execute("SET lock_configuration = true")


def free_options(connection: DuckDBPyConnection) -> dict[str, str]:
    """The free options as they are set now."""
    names = ", ".join(map(literal, FREE_OPTIONS))
    return dict(connection.execute(f"SELECT name, value FROM duckdb_settings() WHERE name IN ({names})").fetchall())


def set_free_options(connection: DuckDBPyConnection, values: Mapping[str, str]) -> None:
    """Set those that differ from what they are."""
    now = free_options(connection)
    for name, value in values.items():
        if now.get(name) != value:
            connection.execute(f"SET {name} = {literal(value)}")
