"""Files that runs left in the bucket and that nothing names: found by listing, deleted when told to, by nobody else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby, islice
from typing import Protocol
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from runner.model.errors import InfrastructureError, SpecError
from runner.model.manifest import Manifest
from runner.model.names import DatasetName, is_table, table_prefix
from runner.ports import Ledger, Objects, Standing, StoredObject

HORIZON = timedelta(days=14)
"""For so long after a run is over nothing of it is touched: SQS keeps a message no longer, so no worker hears of it."""

_BATCH = 200
_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_PLAN = rf"(?P<run>{_UUID})/[0-9]+/(?P<plan>{_UUID})"
_OF_TABLE = re.compile(rf"(?P<folder>{_UUID}/{_PLAN}/)[^/]+")
_OF_PREFIX = re.compile(rf"(?P<folder>ingested_on=[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}/{_PLAN}/)[^/]+")
_ARTIFACT = re.compile(rf"(?P<folder>(?P<run>{_UUID})/artifacts/(?P<plan>{_UUID})/).+")


class StandingLedger(Ledger, Protocol):
    def standings(self, run_ids: Sequence[UUID]) -> Mapping[UUID, Standing]: ...


class ClearedObjects(Objects, Protocol):
    """`S3Objects` says what each of these does."""

    def folders(self, prefix: str) -> Iterator[str]: ...
    def entries(self, prefix: str) -> Iterator[StoredObject]: ...
    def delete(self, keys: Sequence[str]) -> None: ...


class NamingDatasets(Protocol):
    def named_files(self, dataset: str) -> frozenset[str] | None:
        """URIs of what any snapshot that is kept names, on whatever branch; None where there is no such dataset."""


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """What one plan of one run staged and nothing names."""

    folder: str
    """The key that all of them begin with."""
    run_id: UUID
    keys: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class LeftAlone:
    """Old files that nobody can judge."""

    folder: str
    files: int
    why: str


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A part of the bucket where runs put files, and how the keys in it are made."""

    prefix: str
    """Every key begins with it; `pattern` is of the rest."""
    listed: str
    """The part of it that has them."""
    pattern: re.Pattern[str]
    dataset: str | None
    """None for what is kept with the runs themselves."""


@dataclass(frozen=True, kw_only=True)
class _Staged:
    key: str
    bytes: int
    folder: str
    run_id: UUID
    plan_id: UUID


@dataclass(kw_only=True)
class _Unknown:
    """Old files of runs that the ledger does not know."""

    files: int = 0
    runs: set[UUID] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Leftovers:
    ledger: StandingLedger
    objects: ClearedObjects
    datasets: Callable[[str], NamingDatasets]

    def find(self, *, before: datetime, progress: Callable[[str], None]) -> Iterator[Leftover | LeftAlone]:
        """Files stored `before`, of runs that were over by then, that no snapshot and no manifest names.

        A place is listed first and its snapshots are read after: what was published in between is named by then.
        """
        for place in self._places():
            progress(f"{place.prefix} …")
            yield from self._in_place(place, before)

    def delete(self, leftover: Leftover) -> None:
        self.objects.delete(leftover.keys)

    # ------------------------------------------------------------ where to look

    def _places(self) -> Iterator[_Place]:
        for namespace in self.objects.folders("tables/"):
            for name in self.objects.folders(f"tables/{namespace}/"):
                table = f"{namespace}.{name}"
                if _is_dataset(table) and is_table(table):
                    data = f"{table_prefix(table)}data/"
                    yield _Place(prefix=data, listed=data, pattern=_OF_TABLE, dataset=table)
        for layer in self.objects.folders(""):
            yield from self._prefixes(layer)
        yield _Place(prefix="runs/", listed="runs/", pattern=_ARTIFACT, dataset=None)

    def _prefixes(self, folder: str) -> Iterator[_Place]:
        """Prefix datasets may lie in each other. The product's own folders are no layer, and no name has them in it."""
        has_files = False
        for name in self.objects.folders(f"{folder}/"):
            if name.startswith("ingested_on="):
                has_files = True
            elif _is_dataset(below := f"{folder}/{name}"):
                yield from self._prefixes(below)
        if has_files and _is_dataset(folder):
            listed = f"{folder}/ingested_on="
            yield _Place(prefix=f"{folder}/", listed=listed, pattern=_OF_PREFIX, dataset=folder)

    # ------------------------------------------------------------ what is there

    def _in_place(self, place: _Place, before: datetime) -> Iterator[Leftover | LeftAlone]:
        unknown, staged = _Unknown(), list[_Staged]()
        for batch in _batches(self._old(place, before)):
            staged += self._over(batch, before, unknown)
        if unknown.runs:
            runs = len(unknown.runs)
            why = f"of {runs:,} run{'' if runs == 1 else 's'} that the ledger does not know"
            yield LeftAlone(folder=place.prefix, files=unknown.files, why=why)
        if staged:
            yield from self._unnamed(place, staged)

    def _old(self, place: _Place, before: datetime) -> Iterator[tuple[UUID, list[_Staged]]]:
        """Run by run, as the listing has them. What is not where a run puts its files is somebody else's."""

        def staged() -> Iterator[_Staged]:
            for entry in self.objects.entries(place.listed):
                found = place.pattern.fullmatch(entry.key.removeprefix(place.prefix))
                if found and entry.stored_at < before:
                    yield _Staged(
                        key=entry.key,
                        bytes=entry.bytes,
                        folder=place.prefix + found["folder"],
                        run_id=UUID(found["run"]),
                        plan_id=UUID(found["plan"]),
                    )

        for run_id, files in groupby(staged(), key=lambda each: each.run_id):
            yield run_id, list(files)

    def _over(
        self, batch: Sequence[tuple[UUID, list[_Staged]]], before: datetime, unknown: _Unknown
    ) -> Iterator[_Staged]:
        """Those of runs that have been over for long enough."""
        standings = self.ledger.standings([run_id for run_id, _ in batch])
        for run_id, files in batch:
            standing = standings.get(run_id)
            if standing is None:
                unknown.runs.add(run_id)
                unknown.files += len(files)
            elif standing.decided_at is not None and standing.decided_at < before:
                yield from files

    # ------------------------------------------------------------ what nothing names

    def _unnamed(self, place: _Place, staged: Sequence[_Staged]) -> Iterator[Leftover | LeftAlone]:
        try:
            named = self._named(place)
        except InfrastructureError as error:
            # One table that cannot be read must not keep the others from being looked at.
            yield LeftAlone(folder=place.prefix, files=len(staged), why=error.message)
            return
        if named is None:
            why = f"the catalog lists no table {place.dataset}: dropped, or not put back yet"
            yield LeftAlone(folder=place.prefix, files=len(staged), why=why)
            return
        by_folder: dict[tuple[UUID, UUID, str], list[_Staged]] = {}
        for each in staged:
            if each.key not in named:
                by_folder.setdefault((each.run_id, each.plan_id, each.folder), []).append(each)
        for (run_id, plan_id, folder), files in by_folder.items():
            try:
                manifest = self.ledger.manifest(run_id)
            except SpecError as error:
                yield LeftAlone(folder=folder, files=len(files), why=error.message)
                continue
            if manifest is None or _is_recorded(manifest, plan_id, place.dataset):
                # Published once: what has expired since is not for us to judge.
                continue
            keys = tuple(each.key for each in files)
            yield Leftover(folder=folder, run_id=run_id, keys=keys, bytes=sum(each.bytes for each in files))

    def _named(self, place: _Place) -> frozenset[str] | None:
        """Keys: another engine that has rewritten the table's lists may write its addresses in another way."""
        if place.dataset is None:
            return frozenset()
        named = self.datasets(place.dataset).named_files(place.dataset)
        return None if named is None else frozenset(map(_path, named))


def _is_recorded(manifest: Manifest, plan_id: UUID, dataset: str | None) -> bool:
    """Whether the manifest says of this plan that it is the run's, and that its output landed there.

    Where something landed of a plan that nobody knows, any may be the one.
    """
    if dataset is None:
        return manifest.plan_id == plan_id
    landed = any(each.dataset == dataset and each.snapshot is not None for each in manifest.outputs)
    return landed and manifest.plan_id in (None, plan_id)


def _path(uri: str) -> str:
    """The key in `s3://bucket/key`, whatever the scheme and the bucket are called."""
    return uri.partition("://")[2].partition("/")[2] or uri


_DATASET = TypeAdapter[str](DatasetName)


def _is_dataset(text: str) -> bool:
    try:
        _DATASET.validate_python(text)
    except ValidationError:
        return False
    return True


def _batches(runs: Iterable[tuple[UUID, list[_Staged]]]) -> Iterator[list[tuple[UUID, list[_Staged]]]]:
    runs = iter(runs)
    while batch := list(islice(runs, _BATCH)):
        yield batch
