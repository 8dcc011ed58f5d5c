"""What of a table one output is all of: the whole, one partition, or what one effect appended."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from runner.model.errors import SchemaError
from runner.model.spec import Output, Partition

WHOLE_TABLE = "table"

_UNITS = {"hour": "%Y-%m-%d-%H", "day": "%Y-%m-%d", "month": "%Y-%m", "year": "%Y"}
"""As Iceberg writes the partitions of these transforms: https://iceberg.apache.org/spec/#partition-transforms."""


def partition_value(output: Output, logical_time: datetime) -> str | int | None:
    """The partition that `replace_where` replaces: `2013-06-01` by day; None for any other mode."""
    if output.mode != "replace_where" or output.partition_by is None:
        return None
    if output.partition_by.unit == "value":
        return output.where
    return logical_time.astimezone(UTC).strftime(_UNITS[output.partition_by.unit])


def range_of(output: Output, *, effect: UUID, logical_time: datetime) -> str:
    """The range as the record and the snapshot's summary name it."""
    if output.mode == "append":
        return f"effect {effect}"
    value = partition_value(output, logical_time)
    if value is None or output.partition_by is None:
        return WHOLE_TABLE
    return f"{partition_name(output.partition_by)} = {value}"


def partition_name(partition: Partition) -> str:
    """`day(flown_on)`, or the column alone."""
    return partition.column if partition.unit == "value" else f"{partition.unit}({partition.column})"


def require_partitions(dataset: str, *, there: Partition | None, asked: Partition | None) -> None:
    """Raises `SchemaError` unless an output asks for the partitions that its table has."""
    if there != asked:
        has, came = (partition_name(each) if each else "none" for each in (there, asked))
        raise SchemaError(
            f"{dataset}: expected partition_by {has}, as the table is, got {came}",
            subject=dataset,
            hint="say what the table has, or publish under a new name: a table's partitions stay as they are",
        )


def overlap(one: str, other: str) -> bool:
    """Whether two ranges of one table have rows in common: the whole has with each, others with themselves."""
    return WHOLE_TABLE in (one, other) or one == other
