"""What Iceberg is to know of a Parquet file: columns, statistics, and the partition that all its rows are of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PARTITION_FIELD_ID_START, PartitionField, PartitionSpec, partition_record_value
from pyiceberg.schema import Schema
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.transforms import (
    DayTransform,
    HourTransform,
    IdentityTransform,
    MonthTransform,
    Transform,
    YearTransform,
)
from pyiceberg.typedef import Record
from pyiceberg.types import (
    BooleanType,
    DateType,
    DecimalType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    MapType,
    NestedField,
    StringType,
    StructType,
    TimestampType,
    TimestamptzType,
)

from runner.model.errors import SchemaError
from runner.model.manifest import FileRecord
from runner.model.messages import FieldIds
from runner.model.ranges import partition_name
from runner.model.spec import Partition

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData, ParquetFile

_UNITS: dict[str, type[Transform[Any, Any]]] = {
    "value": IdentityTransform,
    "hour": HourTransform,
    "day": DayTransform,
    "month": MonthTransform,
    "year": YearTransform,
}
_WITH_HOURS = (TimestampType, TimestamptzType)
_BY_VALUE = (BooleanType, IntegerType, LongType, DecimalType, DateType, *_WITH_HOURS, StringType)
"""Types whose equal values are one partition to every reader: of floats, NaN and -0.0 are not."""
_WHOLE_TEXT_BYTES = 64
"""A text as long as this may be cut short in a file's statistics; DuckDB cuts at 256 bytes, others at 64."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# ---------------------------------------------------------------- how a table is partitioned


def partition_of_table(dataset: str, metadata: TableMetadata) -> Partition | None:
    """As the table is partitioned. Raises `SchemaError` for what only other writers make: two fields, or buckets."""
    fields = metadata.spec().fields
    if not fields:
        return None
    source = next((each for each in metadata.schema().fields if each.field_id == fields[0].source_id), None)
    unit = next((unit for unit, kind in _UNITS.items() if isinstance(fields[0].transform, kind)), None)
    if len(fields) > 1 or source is None or unit is None:
        came = ", ".join(f"{field.transform} of column {field.source_id} as {field.name}" for field in fields)
        raise SchemaError(
            f"{dataset}: expected partitions by one column's values, hours, days, months or years, got {came}",
            subject=dataset,
            hint="another writer partitioned the table: publish under a new name",
        )
    return Partition.model_validate({"column": source.name, "unit": unit})


def spec_of(dataset: str, partition_by: Partition | None, schema: Schema) -> PartitionSpec:
    """The spec of a table that is to be made. Raises `SchemaError` for a column that cannot split it."""
    if partition_by is None:
        return PartitionSpec()
    field = next((each for each in schema.fields if each.name == partition_by.column), None)
    transform = _UNITS[partition_by.unit]()
    allowed = {"value": _BY_VALUE, "hour": _WITH_HOURS}.get(partition_by.unit, (DateType, *_WITH_HOURS))
    if field is None or not isinstance(field.field_type, allowed):
        names = ", ".join(each.__name__.removesuffix("Type").lower() for each in allowed)
        raise SchemaError(
            f"{dataset}.{partition_by.column}: expected a column of a type that {partition_name(partition_by)} can "
            f"split by ({names}), got {'none' if field is None else field.field_type}",
            subject=f"{dataset}.{partition_by.column}",
            hint="name such a column in partition_by, or cast it in the model",
        )
    # Readers make an Avro name of it: DuckDB 1.5 ends the process over one with a dot.
    name = re.sub(r"^(?=[0-9])|[^A-Za-z0-9_]", "_", field.name)
    name += "" if partition_by.unit == "value" else f"_{partition_by.unit}"
    taken = {each.name.lower() for each in schema.fields if each is not field}
    while name.lower() in taken:
        name += "_"  # in Iceberg, a partition may not be called like another column
    return PartitionSpec(
        PartitionField(source_id=field.field_id, field_id=PARTITION_FIELD_ID_START, transform=transform, name=name)
    )


def value_of_range(dataset: str, named: str, partition_by: Partition, schema: Schema) -> Any:
    """What Iceberg keeps for the partition that `runner.model.ranges` names. Raises `SchemaError` if it is none."""
    field = schema.find_field(partition_by.column)
    prefix = f"{partition_name(partition_by)} = "
    try:
        if not named.startswith(prefix):
            raise ValueError(f"no range of {partition_name(partition_by)}")
        text = named.removeprefix(prefix)
        if partition_by.unit == "value":
            return _identity(field.field_type, text)
        return _since_epoch(partition_by.unit, text)
    except (ValueError, InvalidOperation) as exc:
        raise SchemaError(
            f"{dataset}.{partition_by.column}: expected a partition of {field.field_type}, got {named!r:.200}: {exc}",
            subject=f"{dataset}.{partition_by.column}",
            hint="`where` is the partition's value as text: 2013-06-01 for a date, true for a boolean",
        ) from exc


def _since_epoch(unit: str, text: str) -> int:
    """Hours, days, months or years since 1970: https://iceberg.apache.org/spec/#partition-transforms."""
    parts = [int(each) for each in text.split("-")]
    if len(parts) != ("year", "month", "day", "hour").index(unit) + 1:
        raise ValueError(f"not of the form of {unit}s")
    year, month, day, hour = (*parts, *(1, 1, 1, 0)[len(parts) :])
    begin = datetime(year, month, day, hour, tzinfo=UTC)
    if unit in ("hour", "day"):
        return (begin - _EPOCH) // timedelta(**{f"{unit}s": 1})
    years = begin.year - _EPOCH.year
    return years if unit == "year" else years * 12 + begin.month - 1


def _identity(kind: IcebergType, text: str) -> Any:
    if isinstance(kind, StringType):
        return text
    if isinstance(kind, BooleanType):
        if text.lower() not in ("true", "false"):
            raise ValueError("neither true nor false")
        return text.lower() == "true"
    if isinstance(kind, IntegerType | LongType):
        if not re.fullmatch(r"-?[0-9]{1,19}", text):
            raise ValueError("no whole number")
        return int(text)
    if isinstance(kind, DecimalType):
        return Decimal(text)
    if isinstance(kind, DateType):
        return date.fromisoformat(text).toordinal() - _EPOCH.toordinal()
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is not None and isinstance(kind, TimestampType):
        raise ValueError("a time with a zone")
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1)


# ---------------------------------------------------------------- what a file is of


class Columns:
    """A table as its files are checked against it and described; what they share is worked out once."""

    def __init__(self, dataset: str, metadata: TableMetadata) -> None:
        from pyiceberg.io.pyarrow import compute_statistics_plan, parquet_path_to_id_mapping

        self._dataset = dataset
        self._metadata = metadata
        self._schema = metadata.schema()
        self._plan = compute_statistics_plan(self._schema, metadata.properties)
        self._paths = parquet_path_to_id_mapping(self._schema)
        self._fitting: set[bytes] = set()

    def data_file(self, io: FileIO, file: FileRecord) -> DataFile | None:
        """What a manifest says of the file; None if it has no rows. Raises `SchemaError` if it is not the table's."""
        from pyarrow import parquet

        with io.new_input(file.uri).open() as stream:
            opened = parquet.ParquetFile(stream)
            self._check(opened)
            if opened.metadata.num_rows == 0:
                return None
            partition = [self._partition(field, opened, file.uri) for field in self._metadata.spec().fields]
            return self._described(opened.metadata, file, Record(*partition))

    def _described(self, footer: FileMetaData, file: FileRecord, partition: Record) -> DataFile:
        from pyiceberg.io.pyarrow import data_file_statistics_from_parquet_metadata

        statistics = data_file_statistics_from_parquet_metadata(
            parquet_metadata=footer, stats_columns=self._plan, parquet_column_mapping=self._paths
        )
        return DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=file.uri,
            file_format=FileFormat.PARQUET,
            partition=partition,
            file_size_in_bytes=file.bytes,
            sort_order_id=None,
            spec_id=self._metadata.default_spec_id,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )

    def _check(self, opened: ParquetFile) -> None:
        from pyiceberg.io.pyarrow import _check_pyarrow_schema_compatible, pyarrow_to_schema

        arrow = opened.schema_arrow
        key = arrow.serialize().to_pybytes()
        if key in self._fitting:
            return
        check_ids(self._dataset, pyarrow_to_schema(arrow), self._schema)
        try:
            _check_pyarrow_schema_compatible(self._schema, arrow, format_version=self._metadata.format_version)
        except ValueError as exc:
            reason = " ".join(str(exc).split())
            raise SchemaError(
                f"{self._dataset}: expected files of the table's columns, got others: {reason}",
                subject=self._dataset,
                hint="a branch and an append take the table's columns as they are; publish other types with replace",
            ) from exc
        self._fitting.add(key)

    def _partition(self, field: PartitionField, opened: ParquetFile, uri: str) -> Any:
        source = self._schema.find_field(field.source_id)
        if source.name not in opened.schema_arrow.names:
            raise missing_partition_column(self._dataset, source.name)
        rows = opened.metadata.num_rows
        bounds = _bounds_of_footer(opened.metadata, source.name) or _bounds_of_values(opened, source.name)
        if bounds.nulls == rows:
            return None
        transform: Callable[[Any], Any] = field.transform.transform(source.field_type)
        lowest, highest = (
            transform(partition_record_value(field, each, self._schema)) for each in (bounds.low, bounds.high)
        )
        if bounds.nulls or lowest != highest:
            came = (
                f"{bounds.nulls} NULL of {rows} rows" if bounds.nulls else f"{bounds.low!s:.40} to {bounds.high!s:.40}"
            )
            raise SchemaError(
                f"{self._dataset}.{source.name}: expected files that are each of one partition of "
                f"{_name_of(field, source)}, got {came} in {uri.rsplit('/', 1)[-1]}",
                subject=f"{self._dataset}.{source.name}",
                hint="the engine splits its files by partition_by, which has to be the table's",
            )
        return lowest


def _name_of(field: PartitionField, source: NestedField) -> str:
    unit = next((unit for unit, kind in _UNITS.items() if isinstance(field.transform, kind)), str(field.transform))
    return source.name if unit == "value" else f"{unit}({source.name})"


def missing_partition_column(dataset: str, column: str) -> SchemaError:
    return SchemaError(
        f"{dataset}.{column}: expected the column that the table is partitioned by, got none",
        subject=f"{dataset}.{column}",
        hint="keep the column in the model under this name, or publish under a new name of the table",
    )


@dataclass(frozen=True)
class _Bounds:
    nulls: int
    low: Any
    high: Any


def _bounds_of_footer(footer: FileMetaData, column: str) -> _Bounds | None:
    """Of the statistics, where these are exact; None where they are cut short, or not there."""
    place = next(number for number in range(footer.num_columns) if footer.schema.column(number).path == column)
    found = [footer.row_group(number).column(place) for number in range(footer.num_row_groups)]
    nulls, values = 0, []
    for each in found:
        statistics = each.statistics if each.is_stats_set else None
        if statistics is None or not statistics.has_null_count:
            return None
        nulls += statistics.null_count
        if statistics.null_count == each.num_values:
            continue
        if not statistics.has_min_max:
            return None
        low, high = statistics.min, statistics.max
        if any(isinstance(value, str) and len(value.encode()) >= _WHOLE_TEXT_BYTES for value in (low, high)):
            return None
        values += [low, high]
    return _Bounds(nulls, min(values, default=None), max(values, default=None))


def _bounds_of_values(opened: ParquetFile, column: str) -> _Bounds:
    """Of the column itself, which is little to read: one value, over and over."""
    import pyarrow.compute as pc

    nulls, values = 0, []
    for batch in opened.iter_batches(columns=[column]):
        array = batch.column(0)
        nulls += array.null_count
        if array.null_count < len(array):
            found = pc.min_max(array).as_py()
            values += [found["min"], found["max"]]
    return _Bounds(nulls, min(values, default=None), max(values, default=None))


# ---------------------------------------------------------------- columns


def schema_of_file(io: FileIO, uri: str) -> Schema:
    """The Iceberg schema that a Parquet file's own field ids spell out."""
    from pyarrow import parquet
    from pyiceberg.io.pyarrow import pyarrow_to_schema

    with io.new_input(uri).open() as file:
        return pyarrow_to_schema(parquet.read_schema(file))


def check_ids(dataset: str, written: Schema, table: Schema) -> None:
    """Raises `SchemaError` unless the ids in the files are the table's: readers would take one column for another."""
    ids = ids_of(table.fields)
    for name, each in ids_of(written.fields).items():
        if ids.get(name) != each:
            raise SchemaError(
                f"{dataset}.{name}: expected field ids {ids.get(name)}, got {each} in the files",
                subject=f"{dataset}.{name}",
                hint="the table's columns changed while this run was at work, or a nested column has other fields now",
            )


def ids_of(fields: Sequence[NestedField]) -> dict[str, FieldIds]:
    return {field.name: FieldIds(id=field.field_id, children=_inside(field.field_type)) for field in fields}


def _inside(kind: IcebergType) -> dict[str, FieldIds]:
    if isinstance(kind, StructType):
        return ids_of(kind.fields)
    if isinstance(kind, ListType):
        return ids_of([kind.element_field])
    if isinstance(kind, MapType):
        return ids_of([kind.key_field, kind.value_field])
    return {}
