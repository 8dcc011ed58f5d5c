"""Iceberg tables by pyiceberg: pins, the files of a pin, and one compare-and-swap commit an output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
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
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot, ancestors_of

from runner.adapters.iceberg_commit import (
    READERS,
    Publication,
    Split,
    any_of,
    evolve,
    may_hold_effect,
    may_hold_partition,
    none_of,
    split,
)
from runner.adapters.iceberg_files import (
    Columns,
    check_ids,
    ids_of,
    partition_of_table,
    schema_of_file,
    spec_of,
    value_of_range,
)
from runner.model.errors import DataError, InfrastructureError, SchemaError, TransientError
from runner.model.manifest import NO_SNAPSHOT, OutputRecord, Pin
from runner.model.messages import FieldIds
from runner.model.names import effect_prefix, table_prefix
from runner.model.ranges import WHOLE_TABLE, require_partitions
from runner.model.spec import Partition
from runner.ports import CommitTag, Landed, LostRace, ServedFile

_MAIN = "main"
_TAG = "stage-runner."
_FENCE = f"{_TAG}fence"
_NO_RETRIES = {"commit.retry.num-retries": "0"}
"""pyiceberg would retry a lost race by itself, and with it a zombie's commit: the flow looks first instead."""
_PROPERTIES = {"format-version": "2", **_NO_RETRIES}


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

    def close(self) -> None:
        """Let go of the catalog's connections; what is asked afterwards makes new ones."""
        self._catalog.close()

    def pin(self, dataset: str, alias: str, snapshot: str | None) -> Pin:
        with _translated(dataset):
            table = self._load(dataset)
            if table is None or _snapshot(table.metadata, None) is None:
                came = "no such table" if table is None else "a table without a snapshot"
                raise DataError(
                    f"input {dataset}: expected a published table, got {came}",
                    subject=dataset,
                    hint=f"run what writes {dataset} first; runner runs shows what has run",
                )
            pinned = _snapshot(table.metadata, snapshot)
            if pinned is None:
                raise DataError(
                    f"input {dataset}: expected snapshot {snapshot}, got none: input expired", subject=dataset
                )
            return Pin(as_=alias, dataset=dataset, snapshot=str(pinned.snapshot_id), metadata=table.metadata_location)

    def state(self, dataset: str, alias: str, snapshot: str | None) -> Pin:
        with _translated(dataset):
            table = None if snapshot == NO_SNAPSHOT else self._load(dataset)
            pinned = _snapshot(table.metadata, snapshot) if table else None
            if table is not None and pinned is not None:
                pinned_id, metadata = str(pinned.snapshot_id), table.metadata_location
                return Pin(as_=alias, dataset=dataset, snapshot=pinned_id, metadata=metadata, state=True)
            if snapshot not in (None, NO_SNAPSHOT):
                raise DataError(
                    f"state of {dataset}: expected snapshot {snapshot}, got none: input expired",
                    subject=dataset,
                    hint="a rerun with --latest-inputs begins from what is published now",
                )
            return Pin(as_=alias, dataset=dataset, snapshot=NO_SNAPSHOT, metadata="", state=True)

    def files(self, pin: Pin) -> Sequence[ServedFile]:
        if pin.snapshot == NO_SNAPSHOT:
            return []
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

    def named_files(self, dataset: str) -> frozenset[str] | None:
        """URIs of what any snapshot that is kept names, on whatever branch; None where there is no such table."""
        with _translated(dataset):
            table = self._load(dataset)
            if table is None:
                return None
            io = table.io
            lists = {each.manifest_path: each for made in table.metadata.snapshots for each in made.manifests(io)}
            with ThreadPoolExecutor(READERS) as threads:
                # Entries of what a snapshot took out are named as well: this says what may not be deleted.
                entries = threads.map(lambda each: each.fetch_manifest_entry(io, discard_deleted=False), lists.values())
                return frozenset(entry.data_file.file_path for found in entries for entry in found)

    def load(self, dataset: str) -> LoadedTable:
        with _translated(dataset):
            return LoadedTable(self._catalog, dataset, self._load(dataset), bucket=self._bucket)

    def _load(self, dataset: str) -> Table | None:
        try:
            return self._catalog.load_table(dataset)
        except NoSuchTableError:
            return None


def _snapshot(metadata: TableMetadata, snapshot: str | None) -> Snapshot | None:
    """The named snapshot, or the newest that a run or somebody else published: a fence is no version of the data."""
    if snapshot is None:
        published = ancestors_of(metadata.current_snapshot(), metadata)
        return next((each for each in published if not _landed(each).fence), None)
    return metadata.snapshot_by_id(int(snapshot)) if snapshot.isdecimal() else None


class LoadedTable:
    """A table as it was when it was loaded; `None` inside stands for one that does not exist yet."""

    def __init__(self, catalog: Catalog, dataset: str, table: Table | None, *, bucket: str) -> None:
        self._catalog = catalog
        self._dataset = dataset
        self._table = table
        self._lake = f"s3://{bucket}/"
        self._spent = False
        self._io = load_file_io(catalog.properties, self._lake)
        if table is not None:
            # Another writer's table may lack it; only the copy in our hands is changed.
            table.metadata.properties.update(_NO_RETRIES)

    @property
    def exists(self) -> bool:
        return self._table is not None

    @property
    def partition_by(self) -> Partition | None:
        return None if self._table is None else partition_of_table(self._dataset, self._table.metadata)

    @property
    def column_types(self) -> Mapping[str, str]:
        fields = () if self._table is None else self._table.schema().fields
        return {field.name: str(field.field_type) for field in fields if field.field_type.is_primitive}

    @property
    def field_ids(self) -> Mapping[str, FieldIds]:
        return {} if self._table is None else ids_of(self._table.schema().fields)

    @property
    def last_field_id(self) -> int:
        return 0 if self._table is None else self._table.metadata.last_column_id

    def head(self, branch: str | None) -> Landed | None:
        snapshot = self._head(branch)
        return None if snapshot is None else _landed(snapshot)

    def landed(self, run_id: UUID) -> Sequence[Landed]:
        made = self._made.values()
        return [each for each in made if each.tag is not None and each.tag.run_id == run_id and not each.fence]

    def history(self, branch: str | None) -> Sequence[Landed]:
        if self._table is None:
            return []
        return [self._made[each.snapshot_id] for each in ancestors_of(self._head(branch), self._table.metadata)]

    @cached_property
    def _made(self) -> Mapping[int, Landed]:
        """Every snapshot that is kept, on any branch."""
        snapshots = [] if self._table is None else self._table.metadata.snapshots
        return {each.snapshot_id: _landed(each) for each in snapshots}

    def _head(self, branch: str | None) -> Snapshot | None:
        return None if self._table is None else self._table.metadata.snapshot_by_name(branch or _MAIN)

    def commit(self, output: OutputRecord, tag: CommitTag) -> str:
        with self._committing():
            return self._commit(output, tag)

    def fence(self, branch: str | None, tag: CommitTag) -> None:
        with self._committing():
            self._fence(branch if branch and self._head(branch) else None, tag)

    @contextmanager
    def _committing(self) -> Iterator[None]:
        with _translated(self._dataset):
            if self._spent:
                raise LostRace(f"{self._dataset}: this handle has committed")
            try:
                yield
            except (CommitFailedException, TableAlreadyExistsError) as exc:
                raise LostRace(str(exc)) from exc
            except CommitStateUnknownException as exc:
                raise TransientError(f"{self._dataset}: it is not known whether the commit landed: {exc}") from exc
            except ValueError as exc:
                # So pyiceberg says that another branch got a snapshot, and with it the number that ours was to have.
                if self._moved():
                    raise LostRace(f"{self._dataset}: another commit came first: {exc}") from exc
                raise

    def _moved(self) -> bool:
        if self._table is None:
            return False
        now = self._catalog.load_table(self._dataset)
        return bool(now.metadata_location != self._table.metadata_location)

    def _commit(self, output: OutputRecord, tag: CommitTag) -> str:
        branch = output.branch or _MAIN
        if output.branch and self._head(None) is None:
            raise DataError(
                f"{self._dataset}: expected a published table for {branch} to lie beside, got none",
                hint="rerun with --publish",
                subject=self._dataset,
            )
        if self._table is not None:
            require_partitions(self._dataset, there=self.partition_by, asked=output.partition_by)
        if not output.files:
            raise SchemaError(
                f"{self._dataset}: expected a file that tells the columns, with or without rows, got none",
                subject=self._dataset,
            )
        schema = schema_of_file(self._io, output.files[0].uri)
        transaction = self._begin(schema, output)
        check_ids(self._dataset, schema, transaction.table_metadata.schema())
        columns = Columns(self._dataset, transaction.table_metadata)
        with ThreadPoolExecutor(READERS) as threads:
            made = threads.map(lambda each: columns.data_file(self._io, each), output.files)
            come = [each for each in made if each is not None]
        # A branch that is not there yet begins with what is published: it shows what publishing would give.
        base = self._head(output.branch) or self._head(None)
        publication = Publication(
            transaction,
            self._io,
            base=base,
            branch=branch,
            found=self._found(base, output, tag, come, transaction.table_metadata),
            come=come,
            summary=_summary(tag),
        )
        publication.commit()
        transaction.commit_transaction()
        self._spent = True  # pyiceberg has moved the table in our hands on to the new state
        return str(publication.snapshot_id)

    def _fence(self, branch: str | None, tag: CommitTag) -> None:
        if self._table is None:
            raise InfrastructureError(f"{self._dataset}: expected a table to put a fence on, got none")
        transaction, base = self._table.transaction(), self._head(branch)
        publication = Publication(
            transaction,
            self._io,
            base=base,
            branch=branch or _MAIN,
            found=split(self._io, base, goes=none_of, may_hold=none_of),
            come=(),
            summary=_summary(tag) | {_FENCE: "true"},
        )
        publication.commit()
        transaction.commit_transaction()
        self._spent = True

    def _begin(self, schema: Schema, output: OutputRecord) -> Transaction:
        if self._table is None:
            namespace = self._dataset.split(".")[0]
            spec = spec_of(self._dataset, output.partition_by, schema)
            with suppress(NamespaceAlreadyExistsError):
                self._catalog.create_namespace(namespace)
            return self._catalog.create_table_transaction(
                self._dataset,
                schema=schema,
                location=f"{self._lake}{table_prefix(self._dataset)}".rstrip("/"),
                partition_spec=spec,
                properties=_PROPERTIES,
            )
        transaction = self._table.transaction()
        if output.branch is None:
            evolve(self._dataset, transaction, schema, drop=output.mode in ("replace", "merge"))
        return transaction

    def _found(
        self,
        base: Snapshot | None,
        output: OutputRecord,
        tag: CommitTag,
        come: Sequence[DataFile],
        metadata: TableMetadata,
    ) -> Split:
        """What of the base goes and what stays, by the output's mode."""
        if output.mode == "append":
            prefix = f"{self._lake}{effect_prefix(self._dataset, tag.effect)}"
            effects: dict[int | None, UUID | None]
            effects = {number: each.tag.effect if each.tag else None for number, each in self._made.items()}
            return split(
                self._io,
                base,
                goes=lambda file: file.file_path.startswith(prefix),
                may_hold=lambda manifest: may_hold_effect(manifest, effects, tag.effect),
            )
        if output.mode == "replace_where" and output.partition_by is not None:
            value = value_of_range(self._dataset, output.range, output.partition_by, metadata.schema())
            self._check_one_partition(output, come, value)
            return split(
                self._io,
                base,
                goes=lambda file: self._is_of(file, value, metadata),
                may_hold=lambda manifest: may_hold_partition(manifest, metadata, value),
            )
        return split(self._io, base, goes=any_of, may_hold=any_of)

    def _check_one_partition(self, output: OutputRecord, come: Sequence[DataFile], value: Any) -> None:
        stray = next((file for file in come if file.partition[0] != value), None)
        if stray is not None:
            raise SchemaError(
                f"{self._dataset}: expected rows of {output.range:.200} only, got a file of {stray.partition[0]!s:.40} "
                f"where {value!s:.40} was to be",
                subject=self._dataset,
                hint="filter the model by the partition that the run is for, or publish with mode replace",
            )

    def _is_of(self, file: DataFile, value: Any, metadata: TableMetadata) -> bool:
        if file.spec_id != metadata.default_spec_id:
            raise SchemaError(
                f"{self._dataset}: expected files of the partitions that the table has now, got {file.file_path}, "
                "which was written under others",
                subject=self._dataset,
                hint="publish the whole table once with mode replace",
            )
        return bool(file.partition[0] == value)


def _summary(tag: CommitTag) -> dict[str, str]:
    return {
        f"{_TAG}run-id": str(tag.run_id),
        f"{_TAG}effect": str(tag.effect),
        f"{_TAG}plan-id": str(tag.plan_id),
        f"{_TAG}attempt": str(tag.attempt),
        f"{_TAG}logical-time": tag.logical_time.isoformat(),
        f"{_TAG}submitted-at": tag.submitted_at.isoformat(),
        f"{_TAG}range": tag.range,
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
            # Releases before it was written knew no other range.
            range=summary.get(f"{_TAG}range", WHOLE_TABLE),
        )
    return Landed(snapshot=str(snapshot.snapshot_id), tag=tag, fence=_FENCE in summary)


@contextmanager
def _translated(dataset: str) -> Iterator[None]:
    """What pyiceberg lets through of its catalog's database and of S3 becomes an error of ours, once, here."""
    from botocore.exceptions import BotoCoreError, ClientError
    from pyarrow import ArrowInvalid
    from pydantic import ValidationError
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except OperationalError as exc:
        reason = " ".join(str(exc.orig).split())
        raise InfrastructureError(f"catalog of {dataset}: its database did not answer: {reason}") from exc
    except (ArrowInvalid, UnicodeDecodeError, ValidationError) as exc:
        raise TransientError(
            f"{dataset}: a file of the table came damaged: {' '.join(str(exc).split())[:200]}"
        ) from exc
    except (BotoCoreError, ClientError, ConnectionError, OSError) as exc:
        raise InfrastructureError(f"{dataset}: S3 did not give or take a file of the table: {exc}") from exc
