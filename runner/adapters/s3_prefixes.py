"""Prefixes of files as versioned datasets: each version is one immutable JSON document beside the files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, overload
from uuid import UUID

from pydantic import AwareDatetime

from runner.model.errors import DataError, InfrastructureError, SpecError
from runner.model.manifest import Column, FileRecord, OutputRecord, Pin, SnapshotId
from runner.model.messages import FieldIds
from runner.model.names import DatasetName, rerun_branch, snapshots_prefix
from runner.model.ranges import WHOLE_TABLE
from runner.model.spec import Partition
from runner.model.strict import Strict, parse_json
from runner.ports import Clock, CommitTag, Landed, LostRace, Objects, ServedFile

_DOCUMENT = re.compile(r"(?:(?P<number>[0-9]{8})|(?P<branch>rerun_[0-9a-f]{32}))\.json")
_EARLIER_RUNS = 200
"""How many versions back a document names the runs: 8 KB in each, and a look at 10,000 versions reads 50."""
_DOCUMENTS_KEPT = 256
_READERS = 8


class PrefixSnapshot(Strict):
    """A version of a prefix: the whole list of its files, and who made it."""

    prefix_version: Literal[1] = 1
    dataset: DatasetName
    snapshot: SnapshotId
    parent: SnapshotId | None
    """The newest published version when this one was made."""
    run_id: UUID
    effect: UUID
    plan_id: UUID
    attempt: int
    logical_time: AwareDatetime
    submitted_at: AwareDatetime
    range: str = WHOLE_TABLE
    """Documents of releases that knew no other have none."""
    committed_at: AwareDatetime
    files: tuple[FileRecord, ...]
    rows: int | None
    columns: tuple[Column, ...] | None
    fence: bool = False
    """True for one with the files of the version before: the run has given a plan up."""
    earlier_runs: tuple[UUID, ...] = ()
    """The runs that made the versions just before this one, newest first. A branch names none."""

    @property
    def tag(self) -> CommitTag:
        return CommitTag(
            run_id=self.run_id,
            effect=self.effect,
            plan_id=self.plan_id,
            attempt=self.attempt,
            logical_time=self.logical_time,
            submitted_at=self.submitted_at,
            range=self.range,
        )

    @property
    def landed(self) -> Landed:
        return Landed(snapshot=self.snapshot, tag=self.tag, fence=self.fence)


class S3Prefixes:
    """Implements `Datasets` for prefixes.

    Version N is `<dataset>/_snapshots/<N in 8 digits>.json`; creating it if absent is the compare-and-swap.
    A rerun's own version is `rerun_<run>.json` beside them, and its snapshot id is that name.
    """

    def __init__(self, objects: Objects, clock: Clock) -> None:
        self._objects = objects
        self._clock = clock
        self._documents: dict[str, PrefixSnapshot] = {}

    def pin(self, dataset: str, alias: str, snapshot: str | None) -> Pin:
        """One listing of the versions."""
        there = self._snapshots(dataset)
        if snapshot is None:
            wanted = self._published(dataset, there)
            expected = "at least one version"
        else:
            wanted = snapshot.lstrip("0")  # a spec may say 007
            expected = f"version {wanted}"
        if wanted not in there:
            raise DataError(
                f"input {dataset}: expected {expected}, got {_described(there)}",
                hint=f"a run with {dataset} among its outputs writes it: is there one in `runner runs`?",
                subject=dataset,
            )
        return Pin(as_=alias, dataset=dataset, snapshot=wanted, metadata=self._objects.uri(_key(dataset, wanted)))

    def _published(self, dataset: str, there: frozenset[str]) -> str:
        """The newest version that a run published; "0" where there is none."""
        for number in _numbers(there):
            document = self.read(dataset, str(number))
            if document is None or not document.fence:
                return str(number)
        return "0"

    def state(self, dataset: str, alias: str, snapshot: str | None) -> Pin:
        raise SpecError(
            f"output {dataset}: expected a table to begin from, got a prefix of files, which keeps no state",
            hint="leave state and mode merge to tables `namespace.table`",
            subject=dataset,
        )

    def files(self, pin: Pin) -> Sequence[ServedFile]:
        """The engine gets these by name, so no document needs to be served."""
        document = self.read(pin.dataset, pin.snapshot)
        if document is None:
            raise DataError(
                f"input {pin.dataset}: expected version {pin.snapshot}, got input expired: no {pin.metadata}",
                subject=pin.dataset,
            )
        return [ServedFile(uri=file.uri, bytes=file.bytes, holds_rows=True) for file in document.files]

    def named_files(self, dataset: str) -> frozenset[str]:
        """URIs of what any version that is kept names, reruns' own among them."""
        with ThreadPoolExecutor(_READERS) as readers:
            documents = readers.map(lambda snapshot: self._fetch(dataset, snapshot), self._snapshots(dataset))
            return frozenset(file.uri for document in documents if document for file in document.files)

    def load(self, dataset: str) -> LoadedPrefix:
        return LoadedPrefix(self, dataset, self._snapshots(dataset))

    def read(self, dataset: str, snapshot: str) -> PrefixSnapshot | None:
        """A version's document, or None. A document never changes, so the last ones read or made are kept."""
        key = _key(dataset, snapshot)
        if key not in self._documents:
            document = self._fetch(dataset, snapshot)
            if document is None:
                return None
            self._keep(key, document)
        return self._documents[key]

    def _keep(self, key: str, document: PrefixSnapshot) -> None:
        while len(self._documents) >= _DOCUMENTS_KEPT:
            self._documents.pop(next(iter(self._documents)))
        self._documents[key] = document

    def _fetch(self, dataset: str, snapshot: str) -> PrefixSnapshot | None:
        key = _key(dataset, snapshot)
        raw = self._objects.get(key)
        if raw is None:
            return None
        return parse_json(PrefixSnapshot, raw, what=self._objects.uri(key), error=InfrastructureError)

    def create(
        self,
        dataset: str,
        snapshot: str,
        parent: PrefixSnapshot | None,
        content: OutputRecord | PrefixSnapshot | None,
        tag: CommitTag,
        *,
        fence: bool = False,
    ) -> None:
        """Write the version's document. Raises `LostRace` if there is one already."""
        document = PrefixSnapshot(
            dataset=dataset,
            snapshot=snapshot,
            parent=parent.snapshot if parent else None,
            run_id=tag.run_id,
            effect=tag.effect,
            plan_id=tag.plan_id,
            attempt=tag.attempt,
            logical_time=tag.logical_time,
            submitted_at=tag.submitted_at,
            range=tag.range,
            committed_at=self._clock.now(),
            files=content.files if content else (),
            rows=content.rows if content else None,
            columns=content.columns if content else None,
            fence=fence,
            earlier_runs=(
                (parent.run_id, *parent.earlier_runs)[:_EARLIER_RUNS] if parent and snapshot.isdecimal() else ()
            ),
        )
        key = _key(dataset, snapshot)
        if not self._objects.put_if_absent(key, document.to_json().encode()):
            raise LostRace(f"{dataset}: expected to create version {snapshot}, got one that is there already")
        self._keep(key, document)

    def _snapshots(self, dataset: str) -> frozenset[str]:
        prefix = snapshots_prefix(dataset)
        names = (_DOCUMENT.fullmatch(key.removeprefix(prefix)) for key in self._objects.list(prefix))
        return frozenset(name["branch"] or str(int(name["number"])) for name in names if name)


class LoadedPrefix:
    """Implements `LoadedDataset`: the versions that were listed at one moment."""

    partition_by: Partition | None = None
    column_types: Mapping[str, str] = {}
    field_ids: Mapping[str, FieldIds] = {}
    last_field_id = 0

    def __init__(self, prefixes: S3Prefixes, dataset: str, snapshots: frozenset[str]) -> None:
        self._prefixes = prefixes
        self._dataset = dataset
        self._snapshots = snapshots
        self._newest = _newest(snapshots)

    @property
    def exists(self) -> bool:
        return bool(self._snapshots)

    def head(self, branch: str | None) -> Landed | None:
        document = self._read(branch or str(self._newest))
        return document.landed if document else None

    def landed(self, run_id: UUID) -> Sequence[Landed]:
        """Newest first, and exact: reads one document in 201, and those of the run itself."""
        found = [self._read(rerun_branch(run_id))]
        unread = self._newest
        for number in _numbers(self._snapshots):
            document = self._read(str(number)) if number <= unread else None
            if document is not None:
                runs = (document.run_id, *document.earlier_runs)
                found += [self._read(str(number - back)) for back, run in enumerate(runs) if run == run_id]
                unread = number - len(runs)
        return [each.landed for each in found if each and not each.fence]

    def history(self, branch: str | None) -> Sequence[Landed]:
        """A version's document is read when it is met, so that a look at the newest does not read 10,000."""
        newest, beside = self._newest, list[str]()
        if branch is not None:
            document = self._read(branch)
            newest, beside = (int(document.parent or 0), [branch]) if document else (0, [])
        return _Versions(self._read, [*beside, *(str(each) for each in _numbers(self._snapshots) if each <= newest)])

    def commit(self, output: OutputRecord, tag: CommitTag) -> str:
        """Any other error than `LostRace` leaves open whether it landed: load again and look."""
        snapshot = output.branch or str(self._newest + 1)
        self._prefixes.create(self._dataset, snapshot, self._read(str(self._newest)), output, tag)
        return snapshot

    def fence(self, branch: str | None, tag: CommitTag) -> None:
        """Takes the name that the run's own version would have had: a branch has no other."""
        newest = self._read(str(self._newest))
        self._prefixes.create(self._dataset, branch or str(self._newest + 1), newest, newest, tag, fence=True)

    def _read(self, snapshot: str) -> PrefixSnapshot | None:
        """None for what was not listed: never made, expired, or made after this handle was loaded."""
        return self._prefixes.read(self._dataset, snapshot) if snapshot in self._snapshots else None


class _Versions(Sequence[Landed]):
    """Versions of which each is read when it is asked for."""

    def __init__(self, read: Callable[[str], PrefixSnapshot | None], snapshots: Sequence[str]) -> None:
        self._read = read
        self._snapshots = snapshots

    def __len__(self) -> int:
        return len(self._snapshots)

    @overload
    def __getitem__(self, place: int) -> Landed: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Landed]: ...
    def __getitem__(self, place: int | slice) -> Landed | Sequence[Landed]:
        if isinstance(place, slice):
            return _Versions(self._read, self._snapshots[place])
        snapshot = self._snapshots[place]
        document = self._read(snapshot)
        # One that has expired since it was listed was there, and nobody can say any more whose it was.
        return document.landed if document else Landed(snapshot=snapshot, tag=None)


def _numbers(snapshots: frozenset[str]) -> list[int]:
    """Of the published versions, newest first."""
    return sorted((int(each) for each in snapshots if each.isdecimal()), reverse=True)


def _newest(snapshots: frozenset[str]) -> int:
    return max(_numbers(snapshots), default=0)


def _described(snapshots: frozenset[str]) -> str:
    numbers = _numbers(snapshots)
    return f"versions {numbers[-1]} to {numbers[0]}" if numbers else "none"


def _key(dataset: str, snapshot: str) -> str:
    name = f"{int(snapshot):08d}" if snapshot.isdecimal() else snapshot
    return f"{snapshots_prefix(dataset)}{name}.json"
