"""The ledger made anew of what S3 keeps: ended runs of manifests, queued ones of stored specs, tables of documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from itertools import islice
from typing import Protocol
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from runner.model.errors import ConflictError, DataError, SpecError
from runner.model.manifest import Manifest
from runner.model.names import DatasetName, is_table, manifest_key, spec_key, table_prefix
from runner.model.spec import JobSpec, parse_spec
from runner.model.strict import load_json, parse_json
from runner.model.table_documents import (
    Newest,
    TableDocument,
    Undecided,
    Witnesses,
    is_before,
    is_document,
    newest_document,
    parse_document,
)
from runner.ports import Ledger, Objects, Queue

NOT_RESTORED = (
    "plans: a run that was between plan and decision is queued again, and ends as a conflict where its outputs landed",
    "what was pinned, tried and asked of runs that are queued now, and how long they were still to wait",
    "when an ended run was pinned, when its cancel was asked, and when its manifest was recorded (now is put for that)",
    "tables that were dropped while their files stayed: they are back",
)
"""What S3 does not keep, and nothing can bring back."""

_READERS = 8
_BATCH = 200


class RestorableLedger(Ledger, Protocol):
    """`PgLedger` says what each of these does."""

    def migrate(self) -> list[str]: ...
    def has_runs(self) -> bool: ...
    def at_work(self) -> UUID | None: ...
    def known(self, run_ids: Sequence[UUID]) -> Mapping[UUID, JobSpec | None]: ...
    def restore_decided(self, manifest: Manifest, *, kept: str, spec: str) -> bool: ...
    def restore_queued(self, spec: JobSpec, *, kept: str, submitted_at: datetime) -> bool: ...
    def known_snapshots(self, dataset: str, snapshots: Sequence[str]) -> set[str]: ...
    def read_documents(self, dataset: str, documents: Sequence[str]) -> set[str]: ...
    def listed_document(self, table: str) -> str | None: ...
    def list_table(self, table: str, document: str) -> None: ...


class ListedObjects(Objects, Protocol):
    def folders(self, prefix: str) -> Iterator[str]:
        """The names right below `prefix`, in order, without what is in them."""

    def stored_at(self, key: str) -> datetime | None:
        """When the object was put, by the store's clock; None if there is none."""


@dataclass(frozen=True, kw_only=True)
class TableEntry:
    dataset: str
    document: str
    came_from: str | None
    """The document that was listed before, for a table that was behind."""
    witnessed: bool
    """False where no run's record names its last snapshot: a writer from outside, or a commit that was cut short."""


@dataclass(frozen=True, kw_only=True)
class UndecidedTable:
    dataset: str
    reason: str
    candidates: tuple[str, ...]


@dataclass(kw_only=True)
class Rebuilt:
    """What a rebuild did, and what it left to people."""

    decided: int = 0
    """Terminal runs put back."""
    queued: int = 0
    """Runs put back that are to end still."""
    known: int = 0
    """Runs that the ledger had already."""
    sent: int = 0
    """Runs sent to their queues, whether their messages were there still or not."""
    tables: list[TableEntry] = field(default_factory=list)
    undecided: list[UndecidedTable] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """Objects and folders that are not what their names say, each with the reason."""

    @property
    def complete(self) -> bool:
        return not (self.undecided or self.unreadable)


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """`tables` is false where a catalog of its own lists the tables (Glue): it is not lost with the ledger."""

    ledger: RestorableLedger
    objects: ListedObjects
    queue: Queue
    tables: bool

    def run(self, *, into_existing: bool, chosen: Mapping[str, str], progress: Callable[[str], None]) -> Rebuilt:
        """Put back what is missing; what is there and decided stays as it is, so that it can be done twice.

        `chosen` names the document of tables that were left undecided. Nothing is queued while a table is: a run that
        does not find its table would begin another in its place. Raises `ConflictError` where the ledger has runs and
        `into_existing` was not said, and where a worker is at work.
        """
        for table, document in chosen.items():
            self._require_document(table, document)
        self.ledger.migrate()
        if not into_existing and self.ledger.has_runs():
            raise ConflictError(
                "ledger: expected an empty one to rebuild, got one that has runs",
                hint="--into-existing adds what is missing: after a backup, or a rebuild that was cut short",
            )
        busy = self.ledger.at_work()
        if busy is not None:
            raise ConflictError(
                f"ledger: expected every worker to be stopped, got run {busy} at work",
                hint="stop the workers, and wait a minute for the lease of one that was killed",
            )
        done = Rebuilt()
        to_end = list(self._put_back_decided(done, progress))
        if self.tables:
            self._enter_tables(chosen, done, progress)
        self._put_back_queued(to_end, done, progress)
        return done

    # ------------------------------------------------------------ runs

    def _put_back_decided(self, done: Rebuilt, progress: Callable[[str], None]) -> Iterator[UUID]:
        """Yields the runs that S3 has no manifest of."""
        with ThreadPoolExecutor(_READERS) as readers:
            for run_ids in _batches(self._run_ids(done)):
                known = self.ledger.known(run_ids)
                open_runs = [each for each in run_ids if known.get(each, ...) is not None]
                done.known += len(run_ids) - len(open_runs)
                bodies = readers.map(lambda run_id: self.objects.get(manifest_key(run_id)), open_runs)
                for run_id, body in zip(open_runs, bodies, strict=True):
                    if body is None:
                        yield run_id
                        continue
                    with _noted(done):
                        done.decided += self._put_back(run_id, body, known.get(run_id))
                progress(f"{done.decided:,} terminal runs put back, {done.known:,} were there")

    def _run_ids(self, done: Rebuilt) -> Iterator[UUID]:
        for name in self.objects.folders("runs/"):
            try:
                run_id = UUID(name)
            except ValueError:
                run_id = None
            if run_id is None or str(run_id) != name:
                done.unreadable.append(f"{self.objects.uri(f'runs/{name}/')}: expected a run's id, got {name!r}")
            else:
                yield run_id

    def _put_back(self, run_id: UUID, body: bytes, known: JobSpec | None) -> bool:
        what = self.objects.uri(manifest_key(run_id))
        manifest = parse_json(Manifest, body, what=what, error=DataError)
        if manifest.run_id != run_id or manifest.spec.run_id != run_id:
            raise DataError(f"{what}: expected the manifest of run {run_id}, got {manifest.run_id}'s")
        if known is not None and known != manifest.spec:
            raise ConflictError(f"{what}: expected the spec that the ledger has of run {run_id}, got another")
        return self.ledger.restore_decided(manifest, kept=body.decode(), spec=_spec_as_written(body, manifest))

    def _put_back_queued(self, run_ids: Sequence[UUID], done: Rebuilt, progress: Callable[[str], None]) -> None:
        for run_id in run_ids:
            body = self.objects.get(spec_key(run_id))
            if body is None:
                continue  # never submitted here: what is there of it is a log, and its message, if any, brings it back
            with _noted(done):
                spec = self._stored_spec(run_id, body)
                submitted_at = self.objects.stored_at(spec_key(run_id))
                if submitted_at is None:
                    raise DataError(f"{self.objects.uri(spec_key(run_id))}: expected the spec just read, got none")
                added = self.ledger.restore_queued(spec, kept=body.decode(), submitted_at=submitted_at)
                done.queued += added
                done.known += not added
                if not done.undecided:
                    # Also for one that was there: a rebuild that was cut short may have got no further than that.
                    self.queue.send(spec.stage, spec.to_json())
                    done.sent += 1
            progress(f"{done.queued:,} runs put back that are to end still, {done.sent:,} sent to their queues")

    def _stored_spec(self, run_id: UUID, body: bytes) -> JobSpec:
        what = self.objects.uri(spec_key(run_id))
        try:
            spec = parse_spec(body, what=what)
        except SpecError as error:
            raise DataError(error.message) from error
        if spec.run_id != run_id:
            raise DataError(f"{what}: expected the spec of run {run_id}, got {spec.run_id}'s")
        return spec

    # ------------------------------------------------------------ tables

    def _enter_tables(self, chosen: Mapping[str, str], done: Rebuilt, progress: Callable[[str], None]) -> None:
        for namespace in self.objects.folders("tables/"):
            for name in self.objects.folders(f"tables/{namespace}/"):
                table = f"{namespace}.{name}"
                if not _is_table_name(table):
                    folder = self.objects.uri(f"tables/{namespace}/{name}/")
                    done.unreadable.append(f"{folder}: expected a table's name, got {table!r}")
                    continue
                entry = self._enter(table, chosen.get(table))
                if isinstance(entry, UndecidedTable):
                    done.undecided.append(entry)
                elif entry is not None:
                    done.tables.append(entry)
                progress(f"{len(done.tables):,} tables entered")

    def _enter(self, table: str, chosen: str | None) -> TableEntry | UndecidedTable | None:
        """None where nothing is to be done."""
        listed = self.ledger.listed_document(table)
        try:
            found = self._newest(table, listed) if chosen is None else self._chosen(chosen)
        except DataError as error:
            return UndecidedTable(dataset=table, reason=error.message, candidates=())
        if isinstance(found, Undecided):
            return UndecidedTable(dataset=table, reason=found.reason, candidates=found.candidates)
        if found is None or found.document.uri == listed:
            return None
        document = found.document.uri
        if listed is not None and chosen is None and not is_before(listed, found.document):
            return UndecidedTable(
                dataset=table,
                reason=f"expected the document that is listed to be one of those before {document}, got another",
                candidates=(listed, document),
            )
        self.ledger.list_table(table, document)
        return TableEntry(dataset=table, document=document, came_from=listed, witnessed=found.witnessed)

    def _chosen(self, document: str) -> Newest:
        return Newest(document=self._read_document(document), witnessed=True)

    def _newest(self, table: str, listed: str | None) -> Newest | Undecided | None:
        keys = self.objects.list(f"{table_prefix(table)}metadata/")
        uris = [self.objects.uri(key) for key in keys if is_document(key)]
        if not uris:
            return None  # files of a commit that never came
        witnesses = Witnesses(
            snapshots=lambda snapshots: self.ledger.known_snapshots(table, sorted(snapshots)),
            # What the catalog lists, from a backup or still, was the table at some time.
            documents=lambda documents: (
                self.ledger.read_documents(table, sorted(documents)) | {each for each in documents if each == listed}
            ),
            newest=self.ledger.newest(table),
        )
        return newest_document(uris, cache(self._read_document), witnesses)

    def _require_document(self, table: str, document: str) -> None:
        folder = self.objects.uri(f"{table_prefix(table)}metadata/") if _is_table_name(table) else None
        if folder is None or not document.startswith(folder) or not is_document(document):
            place = folder or "s3://<bucket>/tables/<namespace>/<table>/metadata/"
            raise SpecError(f"--table {table}: expected a metadata document in {place}, got {document!r}")
        if not self.objects.exists(document.removeprefix(self.objects.uri(""))):
            raise SpecError(f"--table {table}: expected a document that is there, got {document}")

    def _read_document(self, uri: str) -> TableDocument:
        body = self.objects.get(uri.removeprefix(self.objects.uri("")))
        if body is None:
            raise DataError(f"{uri}: expected the document that was just listed, got none")
        return parse_document(uri, body)


@contextmanager
def _noted(done: Rebuilt) -> Iterator[None]:
    """One run that cannot be put back is listed, and the others go on. What the services fail at is raised."""
    try:
        yield
    except (DataError, ConflictError) as error:
        done.unreadable.append(error.message)


def _batches(run_ids: Iterable[UUID]) -> Iterator[list[UUID]]:
    run_ids = iter(run_ids)
    while batch := list(islice(run_ids, _BATCH)):
        yield batch


_DATASET = TypeAdapter[str](DatasetName)


def _is_table_name(text: str) -> bool:
    try:
        return is_table(_DATASET.validate_python(text))
    except ValidationError:
        return False


def _spec_as_written(body: bytes, manifest: Manifest) -> str:
    """The spec's own bytes, which `spec_sha256` is of: an older release wrote fewer fields than we would."""
    document = load_json(body, what="manifest")["spec"]
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text if hashlib.sha256(text.encode()).hexdigest() == manifest.spec_sha256 else manifest.spec.to_json()
