"""Iceberg tables by pyiceberg: pins, the files of a pin, and one compare-and-swap commit an output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any
from uuid import UUID

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    CommitStateUnknownException,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.io import load_file_io
from pyiceberg.schema import Schema
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.types import IcebergType, ListType, MapType, NestedField, StructType

from runner.model.errors import DataError, InfrastructureError, SchemaError, TransientError
from runner.model.manifest import OutputRecord, Pin
from runner.model.messages import FieldIds
from runner.model.names import table_prefix
from runner.ports import CommitTag, Landed, LostRace, ServedFile

_MAIN = "main"
_TAG = "stage-runner."
_PROPERTIES = {
    "format-version": "2",
    # pyiceberg would retry a lost race by itself, and with it a zombie's commit: the flow looks first instead.
    "commit.retry.num-retries": "0",
}


def sql_catalog(ledger_url: str, *, bucket: str, aws: Mapping[str, str]) -> Catalog:
    """pyiceberg's catalog in the ledger's Postgres, whose tables the ledger's migrations make."""
    from pyiceberg.catalog.sql import SqlCatalog
    from sqlalchemy.engine import make_url

    url = make_url(ledger_url).set(drivername="postgresql+psycopg")
    url = url.update_query_dict({"options": "-csearch_path=catalog", "connect_timeout": "5"})
    return SqlCatalog(
        "lake",
        **_storage(bucket, aws),
        uri=url.render_as_string(hide_password=False),
        init_catalog_tables="false",
        pool_pre_ping="true",
    )


def glue_catalog(*, bucket: str, aws: Mapping[str, str]) -> Catalog:
    """AWS Glue as the catalog, so that Athena and others see the tables."""
    from pyiceberg.catalog.glue import GlueCatalog

    return GlueCatalog("lake", **_storage(bucket, aws), **{f"glue.{name}": value for name, value in aws.items()})


def _storage(bucket: str, aws: Mapping[str, str]) -> dict[str, str]:
    return {
        "warehouse": f"s3://{bucket}/tables",
        "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO",
        **{f"s3.{name}": value for name, value in aws.items()},
    }


class IcebergTables:
    """`Datasets` for tables `namespace.table` of one catalog and one bucket."""

    def __init__(self, catalog: Catalog, *, bucket: str) -> None:
        self._catalog = catalog
        self._bucket = bucket

    def pin(self, dataset: str, alias: str, snapshot: str | None) -> Pin:
        with _translated(dataset):
            table = self._load(dataset)
            if table is None or table.metadata.current_snapshot() is None:
                came = "no such table" if table is None else "a table without a snapshot"
                raise DataError(
                    f"input {dataset}: expected a published table, got {came}",
                    subject=dataset,
                    hint=f"run what writes {dataset} first; runner runs shows what has run",
                )
            pinned = table.metadata.snapshot_by_id(int(snapshot)) if snapshot else table.metadata.current_snapshot()
            if pinned is None:
                raise DataError(
                    f"input {dataset}: expected snapshot {snapshot}, got none: input expired", subject=dataset
                )
            return Pin(as_=alias, dataset=dataset, snapshot=str(pinned.snapshot_id), metadata=table.metadata_location)

    def files(self, pin: Pin) -> Sequence[ServedFile]:
        with _translated(pin.dataset):
            io = load_file_io(self._catalog.properties, pin.metadata)
            document = io.new_input(pin.metadata)
            if not document.exists():
                raise DataError(f"input {pin.dataset}: expected {pin.metadata}, got none: input expired")
            metadata = FromInputFile.table_metadata(document)
            return [
                ServedFile(uri=pin.metadata, bytes=len(document), holds_rows=False),
                *self._snapshot_files(metadata, pin, io),
            ]

    def _snapshot_files(self, metadata: TableMetadata, pin: Pin, io: Any) -> Iterator[ServedFile]:
        snapshot = metadata.snapshot_by_id(int(pin.snapshot))
        if snapshot is None:
            raise DataError(f"input {pin.dataset}: expected snapshot {pin.snapshot}, got none: input expired")
        yield ServedFile(uri=snapshot.manifest_list, bytes=0, holds_rows=False)
        for manifest in snapshot.manifests(io):
            yield ServedFile(uri=manifest.manifest_path, bytes=manifest.manifest_length, holds_rows=False)
            for entry in manifest.fetch_manifest_entry(io):
                yield ServedFile(
                    uri=entry.data_file.file_path, bytes=entry.data_file.file_size_in_bytes, holds_rows=True
                )

    def load(self, dataset: str) -> LoadedTable:
        with _translated(dataset):
            location = f"s3://{self._bucket}/{table_prefix(dataset)}"
            return LoadedTable(self._catalog, dataset, self._load(dataset), location)

    def _load(self, dataset: str) -> Table | None:
        try:
            return self._catalog.load_table(dataset)
        except NoSuchTableError:
            return None


class LoadedTable:
    """A table as it was when it was loaded; `None` inside stands for one that does not exist yet."""

    def __init__(self, catalog: Catalog, dataset: str, table: Table | None, location: str) -> None:
        self._catalog = catalog
        self._dataset = dataset
        self._table = table
        self._location = location.rstrip("/")
        self._spent = False
        self._io = load_file_io(catalog.properties, self._location)

    @property
    def field_ids(self) -> Mapping[str, FieldIds]:
        return {} if self._table is None else _ids_of(self._table.schema().fields)

    @property
    def last_field_id(self) -> int:
        return 0 if self._table is None else self._table.metadata.last_column_id

    def head(self, branch: str | None) -> Landed | None:
        snapshot = None if self._table is None else self._table.metadata.snapshot_by_name(branch or _MAIN)
        return None if snapshot is None else _landed(snapshot)

    def landed(self, run_id: UUID) -> Sequence[Landed]:
        snapshots = [] if self._table is None else self._table.metadata.snapshots
        found = [_landed(snapshot) for snapshot in snapshots]
        return [each for each in found if each.tag is not None and each.tag.run_id == run_id]

    def replace(self, output: OutputRecord, tag: CommitTag) -> str:
        with _translated(self._dataset):
            try:
                return self._replace(output, tag)
            except (CommitFailedException, TableAlreadyExistsError) as exc:
                raise LostRace(str(exc)) from exc
            except CommitStateUnknownException as exc:
                raise TransientError(f"{self._dataset}: it is not known whether the commit landed: {exc}") from exc

    def _replace(self, output: OutputRecord, tag: CommitTag) -> str:
        from pyiceberg.io.pyarrow import parquet_files_to_data_files

        branch = output.branch or _MAIN
        if output.branch and self.head(None) is None:
            raise DataError(
                f"{self._dataset}: expected a published table for {branch} to lie beside, got none",
                hint="rerun with --publish",
                subject=self._dataset,
            )
        if self._spent:
            raise LostRace(f"{self._dataset}: this handle has committed")
        uris = [file.uri for file in output.files]
        schema = self._schema_of(uris[0])
        transaction = self._begin(schema, evolve=output.branch is None)
        _check_ids(self._dataset, schema, transaction.table_metadata.schema())
        update = transaction.update_snapshot(snapshot_properties=_summary(tag), branch=branch)
        # One overwrite snapshot, old files out and new ones in: no reader ever sees the table empty in between.
        with update.overwrite() as overwrite:
            for file in self._live_files(branch):
                overwrite.delete_data_file(file)
            for file in parquet_files_to_data_files(self._io, transaction.table_metadata, iter(uris)):
                if file.record_count:
                    overwrite.append_data_file(file)
        table = transaction.commit_transaction()
        self._spent = True  # pyiceberg has moved the table in our hands on to the new state
        snapshot = table.metadata.snapshot_by_name(branch)
        if snapshot is None:
            raise TransientError(f"{self._dataset}: expected a snapshot on {branch} after the commit, got none")
        return str(snapshot.snapshot_id)

    def _begin(self, schema: Schema, *, evolve: bool) -> Transaction:
        if self._table is None:
            namespace = self._dataset.split(".")[0]
            with suppress(NamespaceAlreadyExistsError):
                self._catalog.create_namespace(namespace)
            return self._catalog.create_table_transaction(
                self._dataset, schema=schema, location=self._location, properties=_PROPERTIES
            )
        transaction = self._table.transaction()
        if evolve:
            _evolve(self._dataset, transaction, schema)
        return transaction

    def _live_files(self, branch: str) -> Iterator[Any]:
        snapshot = None if self._table is None else self._table.metadata.snapshot_by_name(branch)
        if self._table is None or snapshot is None:
            return
        for task in self._table.scan(snapshot_id=snapshot.snapshot_id).plan_files():
            yield task.file

    def _schema_of(self, uri: str) -> Schema:
        """The Iceberg schema that a Parquet file's own field ids spell out."""
        from pyarrow import parquet
        from pyiceberg.io.pyarrow import pyarrow_to_schema

        with self._io.new_input(uri).open() as file:
            return pyarrow_to_schema(parquet.read_schema(file))


def _evolve(dataset: str, transaction: Transaction, wanted: Schema) -> None:
    """Make the table's columns those of `wanted`: new ones added, gone ones dropped, types only ever widened."""
    current = transaction.table_metadata.schema()
    if current.as_struct() == wanted.as_struct():
        return
    try:
        with transaction.update_schema() as update:
            # Paths are tuples: pyiceberg would take a dot in a text for a step into a struct.
            names = {field.name for field in wanted.fields}
            for field in current.fields:
                if field.name not in names:
                    update.delete_column((field.name,))
            for field in wanted.fields:
                known = next((each for each in current.fields if each.name == field.name), None)
                if known is None:
                    update.add_column((field.name,), field.field_type)
                elif known.field_type != field.field_type:
                    update.update_column((field.name,), field_type=field.field_type)
    except Exception as exc:  # pyiceberg raises many kinds here, and each means that the columns do not fit
        raise SchemaError(
            f"{dataset}: expected columns that the table can take on, got {_difference(current, wanted)}: {exc}",
            subject=dataset,
            hint="Iceberg widens int to long, float to double and decimals; publish another change under a new name",
        ) from exc


def _check_ids(dataset: str, written: Schema, table: Schema) -> None:
    """The ids in the files must be the table's, or readers would take one column for another."""
    ids = _ids_of(table.fields)
    for name, each in _ids_of(written.fields).items():
        if ids.get(name) != each:
            raise SchemaError(
                f"{dataset}.{name}: expected field ids {ids.get(name)}, got {each} in the files",
                subject=f"{dataset}.{name}",
                hint="the table's columns changed while this run was at work, or a nested column has other fields now",
            )


def _difference(current: Schema, wanted: Schema) -> str:
    types = {field.name: str(field.field_type) for field in current.fields}
    changed = [
        f"{field.name} {types[field.name]} -> {field.field_type}"
        for field in wanted.fields
        if types.get(field.name, str(field.field_type)) != str(field.field_type)
    ]
    return ", ".join(changed) or "other columns"


def _ids_of(fields: Sequence[NestedField]) -> dict[str, FieldIds]:
    return {field.name: FieldIds(id=field.field_id, children=_inside(field.field_type)) for field in fields}


def _inside(kind: IcebergType) -> dict[str, FieldIds]:
    if isinstance(kind, StructType):
        return _ids_of(kind.fields)
    if isinstance(kind, ListType):
        return _ids_of([kind.element_field])
    if isinstance(kind, MapType):
        return _ids_of([kind.key_field, kind.value_field])
    return {}


def _summary(tag: CommitTag) -> dict[str, str]:
    return {
        f"{_TAG}run-id": str(tag.run_id),
        f"{_TAG}effect": str(tag.effect),
        f"{_TAG}plan-id": str(tag.plan_id),
        f"{_TAG}attempt": str(tag.attempt),
        f"{_TAG}logical-time": tag.logical_time.isoformat(),
        f"{_TAG}submitted-at": tag.submitted_at.isoformat(),
    }


def _landed(snapshot: Snapshot) -> Landed:
    summary = snapshot.summary.additional_properties if snapshot.summary else {}
    tag = None
    if f"{_TAG}run-id" in summary:
        tag = CommitTag(
            run_id=UUID(summary[f"{_TAG}run-id"]),
            effect=UUID(summary[f"{_TAG}effect"]),
            plan_id=UUID(summary[f"{_TAG}plan-id"]),
            attempt=int(summary[f"{_TAG}attempt"]),
            logical_time=datetime.fromisoformat(summary[f"{_TAG}logical-time"]),
            submitted_at=datetime.fromisoformat(summary[f"{_TAG}submitted-at"]),
        )
    return Landed(snapshot=str(snapshot.snapshot_id), tag=tag)


@contextmanager
def _translated(dataset: str) -> Iterator[None]:
    """What pyiceberg lets through of its catalog's database and of S3 becomes an error of ours, once, here."""
    from botocore.exceptions import BotoCoreError, ClientError
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except OperationalError as exc:
        reason = " ".join(str(exc.orig).split())
        raise InfrastructureError(f"catalog of {dataset}: its database did not answer: {reason}") from exc
    except (BotoCoreError, ClientError, ConnectionError, OSError) as exc:
        raise InfrastructureError(f"{dataset}: S3 did not give or take a file of the table: {exc}") from exc
