"""Which metadata document is the table when its catalog is gone: decided by what is known, or not at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest

from runner.model.errors import DataError
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

FOLDER = "s3://lake/tables/marts/delays/metadata/"


class Folder:
    """Documents as committers leave them behind, and what runs have recorded."""

    def __init__(self) -> None:
        self.documents: dict[str, TableDocument] = {}
        self.published: set[str] = set()
        self.pinned: set[str] = set()
        self.newest: str | None = None
        self.read: list[str] = []

    def write(
        self, name: str, *, after: str | None = None, adds: str | None = None, uuid: str | None = None, ms: int = 0
    ) -> str:
        """A document made of the one at `after`, with one more snapshot."""
        base = self.documents[after] if after else None
        uri = f"{FOLDER}{name}.metadata.json"
        self.documents[uri] = TableDocument(
            uri=uri,
            table_uuid=uuid or (base.table_uuid if base else "one"),
            updated_ms=ms or (base.updated_ms + 1 if base else 1),
            before=(*base.before, base.uri) if base else (),
            snapshots=(base.snapshots if base else frozenset()) | ({adds} if adds else set()),
            last_snapshot=adds or (base.last_snapshot if base else None),
        )
        return uri

    def chain(self, *snapshots: str) -> str:
        uri = None
        for number, snapshot in enumerate(snapshots):
            uri = self.write(f"{number:05}-a", after=uri, adds=snapshot)
        assert uri is not None
        return uri

    def choose(self) -> Newest | Undecided:
        return newest_document(sorted(self.documents), self._read, self.witnesses())

    def witnesses(self) -> Witnesses:
        return Witnesses(snapshots=_those_in(self.published), documents=_those_in(self.pinned), newest=self.newest)

    def _read(self, uri: str) -> TableDocument:
        self.read.append(uri)
        return self.documents[uri]


def _those_in(known: set[str]) -> Callable[[Collection[str]], Collection[str]]:
    return lambda asked: known & set(asked)


@pytest.fixture
def folder() -> Folder:
    return Folder()


def chosen(found: Newest | Undecided) -> str:
    assert isinstance(found, Newest), found
    return found.document.uri


def test_of_one_line_the_highest_version_is_the_table(folder: Folder) -> None:
    head = folder.chain(*"1234567")
    folder.published = set("1234567")
    folder.newest = "7"
    found = folder.choose()
    assert chosen(found) == head
    assert isinstance(found, Newest)
    assert found.witnessed
    assert folder.read == [head], "the newest document names all others, so that they need not be read"


def test_versions_are_numbers_and_not_text(folder: Folder) -> None:
    first = folder.write("v9", adds="1")
    head = folder.write("v10", after=first, adds="2")
    assert chosen(folder.choose()) == head


def test_a_last_snapshot_that_nobody_recorded_is_taken_and_said_to_be_so(folder: Folder) -> None:
    head = folder.chain("1", "2")
    folder.published, folder.newest = {"1"}, "1"
    found = folder.choose()
    assert chosen(found) == head
    assert isinstance(found, Newest)
    assert not found.witnessed


def test_a_table_without_a_snapshot_needs_no_witness(folder: Folder) -> None:
    folder.write("00000-a")
    found = folder.choose()
    assert isinstance(found, Newest)
    assert found.witnessed


def test_of_two_at_the_top_the_one_whose_snapshot_a_run_published_is_the_table(folder: Folder) -> None:
    base = folder.chain("1")
    folder.write("00001-lost", after=base, adds="lost")
    won = folder.write("00001-won", after=base, adds="won")
    folder.published, folder.newest = {"1", "won"}, "won"
    assert chosen(folder.choose()) == won


def test_of_two_at_the_top_the_one_that_a_run_has_read_is_the_table(folder: Folder) -> None:
    base = folder.chain("1")
    folder.write("00001-lost", after=base, adds="lost")
    won = folder.write("00001-won", after=base)
    folder.pinned = {won}
    assert chosen(folder.choose()) == won


@pytest.mark.parametrize(("published", "count"), [(set[str](), "none"), ({"x", "y"}, "several")])
def test_two_at_the_top_that_nobody_or_everybody_names_are_not_decided(
    folder: Folder, published: set[str], count: str
) -> None:
    base = folder.chain("1")
    rivals = [folder.write(f"00001-{snapshot}", after=base, adds=snapshot) for snapshot in "xy"]
    folder.published = {"1"} | published
    found = folder.choose()
    assert isinstance(found, Undecided)
    assert found.candidates == tuple(rivals)
    assert f"got {count} of 2" in found.reason


def test_a_snapshot_that_both_have_speaks_for_neither(folder: Folder) -> None:
    base = folder.chain("1")
    for name in "xy":
        folder.write(f"00001-{name}", after=base, adds="same")
    folder.published = {"1", "same"}
    assert isinstance(folder.choose(), Undecided)


def test_what_a_lost_race_left_further_down_is_left_alone(folder: Folder) -> None:
    base = folder.chain("1")
    folder.write("00001-lost", after=base, adds="lost")
    won = folder.write("00001-won", after=base, adds="won")
    head = folder.write("00002-a", after=won, adds="3")
    folder.published, folder.newest = {"1", "won", "3"}, "3"
    assert chosen(folder.choose()) == head


def test_the_document_of_a_lost_race_to_create_the_table_is_left_alone(folder: Folder) -> None:
    folder.write("00000-lost", adds="lost", uuid="other", ms=2)
    won = folder.write("00000-won", adds="won", ms=1)
    head = folder.write("00001-a", after=won, adds="2", ms=3)
    folder.published = {"won", "2"}
    assert chosen(folder.choose()) == head


def test_two_lines_that_runs_have_published_are_not_decided(folder: Folder) -> None:
    """The catalog was set back to a backup once, and commits went on from there."""
    base = folder.chain("1")
    forgotten = folder.write("00001-forgotten", after=base, adds="forgotten")
    head = folder.write("00002-b", after=folder.write("00001-b", after=base, adds="b"), adds="c")
    folder.published, folder.newest = {"1", "forgotten", "b", "c"}, "c"
    found = folder.choose()
    assert isinstance(found, Undecided)
    assert found.candidates == (head, forgotten)


def test_a_table_that_was_dropped_and_made_anew_is_not_decided(folder: Folder) -> None:
    head = folder.chain("1", "2", "3")
    anew = folder.write("00000-anew", adds="9", uuid="other", ms=99)
    found = folder.choose()
    assert isinstance(found, Undecided)
    assert found.candidates == (head, anew)


def test_documents_from_before_what_the_newest_remembers_are_not_read(folder: Folder) -> None:
    """Iceberg keeps a hundred of them in a document; snapshots that old may have expired as well."""
    folder.write("00001-a", adds="old")
    middle = folder.write("00007-a", adds="7")
    head = folder.write("00008-a", after=middle, adds="8")
    folder.published, folder.newest = {"old", "7", "8"}, "8"
    assert chosen(folder.choose()) == head
    assert folder.read == [head]


def test_a_newest_document_without_what_was_published_last_is_not_decided(folder: Folder) -> None:
    head = folder.chain("1", "2")
    folder.published, folder.newest = {"1", "2", "gone"}, "gone"
    found = folder.choose()
    assert isinstance(found, Undecided)
    assert found.candidates == (head,)
    assert "snapshot gone" in found.reason


def test_a_name_that_tells_no_version_is_not_guessed_at(folder: Folder) -> None:
    folder.chain("1")
    folder.write("copy-of-00003")
    found = folder.choose()
    assert isinstance(found, Undecided)
    assert "copy-of-00003.metadata.json" in found.reason


def test_another_scheme_of_the_same_place_is_the_same_document(folder: Folder) -> None:
    head = folder.documents[folder.chain("1", "2")]
    assert is_before(f"{FOLDER}00000-a.metadata.json".replace("s3://", "s3a://"), head)
    assert not is_before(f"{FOLDER}00000-b.metadata.json", head)


@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("00001-0f.metadata.json", True),
        ("v3.gz.metadata.json", True),
        ("v3.metadata.json.gz", True),
        ("snap-1.avro", False),
        ("version-hint.text", False),
    ],
)
def test_documents_are_told_from_other_files_by_their_names(name: str, one: bool) -> None:
    assert is_document(f"tables/a/b/metadata/{name}") is one


# ---------------------------------------------------------------- reading one


def document(**given: Any) -> bytes:
    fields: dict[str, Any] = {
        "table-uuid": "one",
        "last-updated-ms": 5,
        "metadata-log": [{"metadata-file": "s3://lake/0", "timestamp-ms": 1}],
        "snapshots": [
            {"snapshot-id": 2**63 - 1, "sequence-number": 2, "timestamp-ms": 1},
            {"snapshot-id": 4, "sequence-number": 1, "timestamp-ms": 9},
        ],
        **given,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def test_a_document_tells_its_table_its_past_and_its_snapshots() -> None:
    assert parse_document("s3://lake/1", document()) == TableDocument(
        uri="s3://lake/1",
        table_uuid="one",
        updated_ms=5,
        before=("s3://lake/0",),
        snapshots=frozenset({str(2**63 - 1), "4"}),
        last_snapshot=str(2**63 - 1),
    )
    assert parse_document("s3://lake/1", gzip.compress(document())).table_uuid == "one"


@pytest.mark.parametrize("absent", [{"snapshots": None}, {"snapshots": []}])
def test_a_document_may_have_no_snapshot_yet(absent: dict[str, Any]) -> None:
    found = parse_document("s3://lake/1", document(**absent, **{"metadata-log": None}))
    assert (found.snapshots, found.last_snapshot, found.before) == (frozenset(), None, ())


def test_a_version_1_table_is_told_by_its_times() -> None:
    snapshots = [{"snapshot-id": 1, "timestamp-ms": 9}, {"snapshot-id": 2, "timestamp-ms": 3}]
    assert parse_document("s3://lake/1", document(snapshots=snapshots)).last_snapshot == "1"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b'{"a": 1}',
        b"\x1f\x8bnot gzip",
        gzip.compress(document(), mtime=0)[:-9],
        document(snapshots=[{}]),
        document(snapshots={"snapshot-id": 1}),
        document(**{"table-uuid": None}),
        document(**{"last-updated-ms": "soon"}),
        document(**{"metadata-log": ["s3://lake/0"]}),
        document()[:-5],
    ],
    ids=repr,
)
def test_what_is_no_document_is_named(raw: bytes) -> None:
    with pytest.raises(DataError, match=r"^s3://lake/1: expected "):
        parse_document("s3://lake/1", raw)


def test_a_document_that_cannot_be_read_is_no_reason_to_take_another() -> None:
    def read(uri: str) -> TableDocument:
        return parse_document(uri, b"")

    uris: Sequence[str] = [f"{FOLDER}00000-a.metadata.json"]
    with pytest.raises(DataError):
        newest_document(uris, read, Folder().witnesses())
