"""Which of a table's metadata documents is the table: what can be known of that when the catalog is lost."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from runner.model.errors import DataError
from runner.model.strict import load_json

_NAME = re.compile(r"v?([0-9]{1,9})(?:-[\w-]+)?(?:\.gz)?\.metadata\.json(?:\.gz)?")
"""As writers call them: `00003-<uuid>.metadata.json`, `v3.metadata.json`, with `.gz` in either place."""
_MAX_DOCUMENT_BYTES = 256 * 1024 * 1024
"""Unpacked. A table of ten thousand snapshots and a thousand columns has a document of a few MB."""


@dataclass(frozen=True, kw_only=True)
class TableDocument:
    """What a metadata document says of itself and of those before it: https://iceberg.apache.org/spec/#table-metadata."""

    uri: str
    table_uuid: str
    updated_ms: int
    before: tuple[str, ...]
    """URIs of the documents that it was made of one after the other, as far back as it remembers."""
    snapshots: frozenset[str]
    last_snapshot: str | None
    """The snapshot that was made last, on any branch."""


@dataclass(frozen=True, kw_only=True)
class Newest:
    document: TableDocument
    witnessed: bool
    """Whether any run's record names its last snapshot, or the document; without that it may never have landed."""


@dataclass(frozen=True, kw_only=True)
class Undecided:
    """Which document is the table cannot be known: somebody has to say."""

    reason: str
    candidates: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Witnesses:
    """What runs have recorded of one table."""

    snapshots: Callable[[Collection[str]], Collection[str]]
    """Those of the snapshots that some run published or read."""
    documents: Callable[[Collection[str]], Collection[str]]
    """Those of the documents that some run, or a catalog from a backup, found as the newest."""
    newest: str | None
    """The snapshot that the run decided last published."""


def is_document(key: str) -> bool:
    return ".metadata.json" in key.rpartition("/")[2]


def newest_document(
    uris: Sequence[str], read: Callable[[str], TableDocument], witnesses: Witnesses
) -> Newest | Undecided:
    """The document of the highest version, unless another one can claim to be the table as well.

    A committer writes its document before it asks the catalog, so a lost race leaves one behind that never was the
    table. Nobody builds on such a document: it is the last of its line. `read` raises `DataError` for one that is none.
    """
    odd = [uri for uri in uris if _version(uri) is None]
    if odd:
        return Undecided(reason=f"expected names that tell a version, got {_file(odd[0])}", candidates=tuple(uris))
    versions = {uri: _version(uri) or 0 for uri in uris}
    highest = max(versions.values())
    rivals = [read(uri) for uri in uris if versions[uri] == highest]
    head = rivals[0]
    if len(rivals) > 1:
        named = [each for each in rivals if _is_named(each, rivals, witnesses)]
        if len(named) != 1:
            count = "several" if named else "none"
            return Undecided(
                reason=f"expected one document of version {highest} that a run's record names, got {count} "
                f"of {len(rivals)}",
                candidates=tuple(each.uri for each in rivals),
            )
        head = named[0]
    if witnesses.newest is not None and witnesses.newest not in head.snapshots:
        return Undecided(
            reason=f"expected snapshot {witnesses.newest} in the newest document, as a run has published it, got none",
            candidates=(head.uri,),
        )
    for uri in _off_the_line(head, versions):
        if uri in {each.uri for each in rivals}:
            continue  # judged above
        other = read(uri)
        if _was_the_table(other, head, witnesses) or (
            other.table_uuid != head.table_uuid and other.updated_ms > head.updated_ms
        ):
            return Undecided(
                reason=f"expected one line of documents, got two: {_file(other.uri)} is not among those before "
                f"{_file(head.uri)}",
                candidates=(head.uri, other.uri),
            )
    last = () if head.last_snapshot is None else (head.last_snapshot,)
    witnessed = not last or bool(witnesses.snapshots(last)) or bool(witnesses.documents((head.uri,)))
    return Newest(document=head, witnessed=witnessed)


def parse_document(uri: str, raw: bytes) -> TableDocument:
    """Raises `DataError` for what is no Iceberg metadata."""
    try:
        text = _unpacked(raw) if raw.startswith(b"\x1f\x8b") else raw
    except (OSError, EOFError, zlib.error) as exc:
        raise DataError(f"{uri}: expected an Iceberg metadata document, got a damaged gzip: {exc}") from exc
    if len(text) > _MAX_DOCUMENT_BYTES:
        raise DataError(f"{uri}: expected at most {_MAX_DOCUMENT_BYTES:,} bytes of metadata, got more")
    document = load_json(text, what=uri, error=DataError)
    try:
        snapshots = document.get("snapshots") or []
        last = max(snapshots, key=lambda each: (each.get("sequence-number", 0), each["timestamp-ms"]), default=None)
        return TableDocument(
            uri=uri,
            table_uuid=str(document["table-uuid"]),
            updated_ms=int(document["last-updated-ms"]),
            before=tuple(str(each["metadata-file"]) for each in document.get("metadata-log") or []),
            snapshots=frozenset(str(each["snapshot-id"]) for each in snapshots),
            last_snapshot=None if last is None else str(last["snapshot-id"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise DataError(f"{uri}: expected an Iceberg metadata document, got one without {exc}") from exc
    except RecursionError as exc:
        raise DataError(f"{uri}: expected an Iceberg metadata document, got one nested too deeply") from exc


def _unpacked(raw: bytes) -> bytes:
    """No more than shows that it is too much: a small file can stand for gigabytes."""
    with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
        return file.read(_MAX_DOCUMENT_BYTES + 1)


def is_before(uri: str, document: TableDocument) -> bool:
    """Whether `document` was made of the one at `uri`, as far back as it remembers."""
    return _path(uri) in {_path(each) for each in document.before}


def _is_named(document: TableDocument, rivals: Sequence[TableDocument], witnesses: Witnesses) -> bool:
    others = frozenset[str]().union(*(each.snapshots for each in rivals if each is not document))
    own = document.snapshots - others
    return bool(own and witnesses.snapshots(own)) or bool(witnesses.documents((document.uri,)))


def _was_the_table(document: TableDocument, head: TableDocument, witnesses: Witnesses) -> bool:
    own = document.snapshots - head.snapshots
    return bool(own and witnesses.snapshots(own)) or bool(witnesses.documents((document.uri,)))


def _off_the_line(head: TableDocument, versions: dict[str, int]) -> list[str]:
    """Documents as young as those that `head` remembers, and not among them: left behind, or of another line."""
    line = {_path(uri) for uri in (head.uri, *head.before)}
    oldest = min((version for uri, version in versions.items() if _path(uri) in line), default=0)
    return [uri for uri, version in versions.items() if version >= oldest and _path(uri) not in line]


def _version(uri: str) -> int | None:
    found = _NAME.fullmatch(_file(uri))
    return int(found[1]) if found else None


def _file(uri: str) -> str:
    return uri.rpartition("/")[2]


def _path(uri: str) -> str:
    """Without its scheme: Spark writes s3a:// where we write s3://."""
    return uri.partition("://")[2]
