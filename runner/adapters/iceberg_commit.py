"""One snapshot of an Iceberg table: some files go, others come, and the columns become the output's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

from pyiceberg.conversions import from_bytes
from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFile, ManifestContent, ManifestEntry, ManifestEntryStatus, ManifestFile
from pyiceberg.schema import Schema
from pyiceberg.table import Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation, Snapshot
from pyiceberg.table.update.snapshot import _SnapshotProducer
from pyiceberg.types import PrimitiveType

from runner.adapters.iceberg_files import missing_partition_column
from runner.model.errors import SchemaError

READERS = 8
"""Footers and manifests read at a time: each waits for S3 for most of its time."""


# ---------------------------------------------------------------- which files go


@dataclass(frozen=True)
class Split:
    """A snapshot's files, as a commit on top of it leaves them."""

    untouched: tuple[ManifestFile, ...]
    staying: tuple[tuple[int, tuple[ManifestEntry, ...]], ...]
    """The other files of manifests that lose some, each with its partition spec."""
    going: tuple[ManifestEntry, ...]


def split(
    io: FileIO,
    base: Snapshot | None,
    *,
    goes: Callable[[DataFile], bool],
    may_hold: Callable[[ManifestFile], bool],
) -> Split:
    """Which files of `base` a commit removes. Only manifests that `may_hold` one are read."""
    # A manifest that lists nothing but removed files has done its work: kept, there would be one more each commit.
    alive = [
        each for each in (base.manifests(io) if base else ()) if each.has_added_files() or each.has_existing_files()
    ]
    untouched, asked = list[ManifestFile](), list[ManifestFile]()
    for manifest in alive:
        (asked if manifest.content == ManifestContent.DATA and may_hold(manifest) else untouched).append(manifest)
    staying, going = list[tuple[int, tuple[ManifestEntry, ...]]](), list[ManifestEntry]()
    with ThreadPoolExecutor(READERS) as threads:
        for manifest, entries in zip(
            asked, threads.map(lambda each: each.fetch_manifest_entry(io), asked), strict=True
        ):
            gone, rest = list[ManifestEntry](), list[ManifestEntry]()
            for entry in entries:
                (gone if goes(entry.data_file) else rest).append(entry)
            going += gone
            if not gone:
                untouched.append(manifest)
            elif rest:
                staying.append((manifest.partition_spec_id, tuple(rest)))
    return Split(tuple(untouched), tuple(staying), tuple(going))


def any_of(_: DataFile | ManifestFile) -> bool:
    """For a commit that replaces all."""
    return True


def none_of(_: DataFile | ManifestFile) -> bool:
    """For a commit that changes nothing."""
    return False


def may_hold_effect(manifest: ManifestFile, effects: Mapping[int | None, object], effect: object) -> bool:
    """Whether files of `effect` can be listed: what another effect's snapshot added is that effect's alone.

    `effects` are those of the snapshots that are kept, by id.
    """
    added_by = manifest.added_snapshot_id
    # A count that is not told is None, and is not 0 either.
    return manifest.existing_files_count != 0 or added_by not in effects or effects[added_by] == effect


def may_hold_partition(manifest: ManifestFile, metadata: TableMetadata, value: Any) -> bool:
    """Whether files of the partition can be listed, by the bounds that the list of manifests tells."""
    if manifest.partition_spec_id != metadata.default_spec_id or not manifest.partitions:
        return True
    bounds = manifest.partitions[0]
    if bounds.lower_bound is None or bounds.upper_bound is None:
        return False  # its files are all of the partition NULL, which no range is
    kind = metadata.spec().partition_type(metadata.schema()).fields[0].field_type
    low, high = (from_bytes(cast(PrimitiveType, kind), each) for each in (bounds.lower_bound, bounds.upper_bound))
    return bool(low <= value <= high)


# ---------------------------------------------------------------- the snapshot


class Publication(_SnapshotProducer["Publication"]):
    """The new snapshot of a branch, on top of `base`, which is the published one where the branch is new.

    pyiceberg's own overwrite cannot begin a branch with what another has, and keeps every list of removed files.
    """

    def __init__(
        self,
        transaction: Transaction,
        io: FileIO,
        *,
        base: Snapshot | None,
        branch: str,
        found: Split,
        come: Sequence[DataFile],
        summary: Mapping[str, str],
    ) -> None:
        self._base = base
        self._found = found
        super().__init__(
            operation=Operation.OVERWRITE if found.going else Operation.APPEND,
            transaction=transaction,
            io=io,
            branch=branch,
            snapshot_properties=dict(summary),
        )
        for entry in found.going:
            self.delete_data_file(entry.data_file)
        for file in come:
            self.append_data_file(file)

    def _current_branch_head_id(self) -> int | None:
        return self._base.snapshot_id if self._base else None

    def _build_delete_files_partition_predicate(self) -> None:
        """What goes was found already; with 5,000 partitions the predicate would take longer than all else."""

    def _deleted_entries(self) -> list[ManifestEntry]:
        return [_again(each, ManifestEntryStatus.DELETED, self.snapshot_id) for each in self._found.going]

    def _existing_manifests(self) -> list[ManifestFile]:
        kept = list(self._found.untouched)
        for spec_id, entries in self._found.staying:
            with self.new_manifest_writer(self.spec(spec_id)) as writer:
                for each in entries:
                    writer.add_entry(_again(each, ManifestEntryStatus.EXISTING, each.snapshot_id))
            kept.append(writer.to_manifest_file())
        return kept


def _again(entry: ManifestEntry, status: ManifestEntryStatus, snapshot_id: int | None) -> ManifestEntry:
    return ManifestEntry.from_args(
        status=status,
        snapshot_id=snapshot_id,
        sequence_number=entry.sequence_number,
        file_sequence_number=entry.file_sequence_number,
        data_file=entry.data_file,
    )


# ---------------------------------------------------------------- the columns


def evolve(dataset: str, transaction: Transaction, wanted: Schema, *, drop: bool) -> None:
    """Make the table's columns those of `wanted`: new ones added, types only ever widened, gone ones dropped.

    Without `drop` a gone column stays, for the rows that keep values in it. Raises `SchemaError`.
    """
    current = transaction.table_metadata.schema()
    if current.as_struct() == wanted.as_struct():
        return
    names = {field.name for field in wanted.fields}
    for partition in transaction.table_metadata.spec().fields:
        column = current.find_field(partition.source_id).name
        if column not in names:
            raise missing_partition_column(dataset, column)
    for field in current.fields:
        if field.name not in names and field.required and not drop:
            raise SchemaError(
                f"{dataset}.{field.name}: expected the column, which the table requires, got none",
                subject=f"{dataset}.{field.name}",
                hint="add it to the model: rows that are there keep their values, and new ones need some",
            )
    try:
        with transaction.update_schema() as update:
            # Paths are tuples: pyiceberg would take a dot in a text for a step into a struct.
            for field in current.fields:
                if field.name not in names and drop:
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


def _difference(current: Schema, wanted: Schema) -> str:
    types = {field.name: str(field.field_type) for field in current.fields}
    changed = [
        f"{field.name} {types[field.name]} -> {field.field_type}"
        for field in wanted.fields
        if types.get(field.name, str(field.field_type)) != str(field.field_type)
    ]
    return ", ".join(changed) or "other columns"
