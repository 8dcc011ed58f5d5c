"""A commit in one file: its objects, each proved by its hash when it is read, so that no git need be asked again.

The file is what `git cat-file --batch` wrote. Nothing in it is believed: a name is the hash of what it names, and the
commit's own name, which the spec gives, holds all the others.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from os import SEEK_CUR, SEEK_END, fsdecode
from typing import IO

from runner.adapters.git_objects import MAX_PATH_CHARS, WELL_FORMED, Entry, shorten
from runner.model.errors import InfrastructureError, LogicError

MAX_FILES = 50_000
"""Paths of a commit, folders among them. Ten trees of ten times the next one are a kilobyte, and 10^10 paths."""
MAX_BYTES = 1024**3
"""Of all files of a commit together; one that is there under many names counts each time."""

MAX_COMMITS = 500_000
"""Of a branch that production is proved by."""
_MAX_READ_BYTES = 64 * 1024**2
"""Of a commit or a tree, which are in memory as a whole; `MAX_FILES` names of the longest kind are less."""

_CHUNK = 1 << 20
_HEADER = re.compile(rb"([0-9a-f]{40}) (commit|tree|blob|tag) ([0-9]{1,15})\n")
_HEADER_BYTES = 80
_PACKED = {"commit": 1, "tree": 2, "blob": 3, "tag": 4}
"""https://git-scm.com/docs/pack-format: the types of objects that are there whole."""


@dataclass(frozen=True, kw_only=True)
class CommitHead:
    """What a commit says of itself."""

    tree: str
    committed_at: datetime


class Damaged(InfrastructureError):
    """A file does not hold what it should: fetched anew, it will."""


class Snapshot:
    """A file of objects. Raises `Damaged` where an object is not what its name says."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name
        self._places: dict[str, tuple[str, int, int]] = {}
        end = file.seek(0, SEEK_END)
        file.seek(0)
        while line := file.readline(_HEADER_BYTES):
            header = _HEADER.fullmatch(line)
            size = int(header[3]) if header else 0
            if header is None or file.tell() + size > end or len(self._places) > MAX_COMMITS:
                raise Damaged(f"{name}: expected objects as they were fetched, got {line!r:.80}")
            self._places[header[1].decode()] = header[2].decode(), file.tell(), size
            file.seek(size + 1, SEEK_CUR)

    @property
    def oids(self) -> Sequence[str]:
        return list(self._places)

    def chunks(self, oid: str) -> Iterator[bytes]:
        """An object's content; whether it is the right one shows at its end."""
        kind, start, size = self._places.get(oid) or ("missing", 0, 0)
        digest = hashlib.sha1(b"%s %d\0" % (kind.encode(), size), usedforsecurity=False)
        self._file.seek(start)
        while size > 0 and (chunk := self._file.read(min(size, _CHUNK))):
            size -= len(chunk)
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != oid or size != 0:
            raise Damaged(f"{self._name}: expected {oid} as it was fetched, got another {kind}")

    def read(self, oid: str) -> bytes:
        if (size := self.size(oid)) > _MAX_READ_BYTES:
            most = f"{_MAX_READ_BYTES // 1024**2} MiB"
            raise LogicError(
                f"{self._name}: expected a commit or folder of at most {most}, got {oid} of {size:,} bytes"
            )
        return b"".join(self.chunks(oid))

    def prove(self) -> None:
        """Read all there is: each object is what its name says."""
        for oid in self._places:
            for _ in self.chunks(oid):
                pass

    def size(self, oid: str) -> int:
        """Bytes of an object, as the file says; `chunks` finds out whether that is so."""
        return self._places.get(oid, ("missing", 0, 0))[2]

    def head(self, commit: str, repo: str) -> CommitHead:
        """Raises `LogicError` where `commit` is a name of something else."""
        kind = self._places.get(commit, ("missing", 0, 0))[0]
        # The header alone is looked at: the rest is as long as its author liked.
        header = self.read(commit).partition(b"\n\n")[0]
        tree = re.match(rb"tree ([0-9a-f]{40})\n", header)
        at_s = re.search(rb"\ncommitter [^\n]* ([0-9]{1,11}) [+-][0-9]+(\n|$)", header)
        if kind != "commit" or not tree or not at_s:
            message = f"{repo}: expected {commit} to be a commit with a tree and a time, got a {kind}"
            raise LogicError(message, subject=commit)
        return CommitHead(tree=tree[1].decode(), committed_at=datetime.fromtimestamp(int(at_s[1]), UTC))

    def parents(self, commit: str) -> tuple[str, ...]:
        """Of a commit with whatever else in it: old histories have some that no git would make today."""
        found = re.match(rb"tree [0-9a-f]{40}\n((?:parent [0-9a-f]{40}\n)*)", self.read(commit))
        return tuple(found[1].decode().split()[1::2]) if found else ()

    def entries(self, tree: str, about: str) -> list[Entry]:
        """Every file and folder below a tree, each folder before what is in it.

        Raises `LogicError` for a tree of more than `MAX_FILES` paths or `MAX_BYTES`, or paths that are too long.
        """
        trees: dict[str, list[Entry]] = {}
        found: list[Entry] = []
        total = 0
        inside = [("", tree)]
        walks = [iter(self._lines(tree, trees, about))]
        while walks:
            entry = next(walks[-1], None)
            if entry is None:
                walks.pop()
                inside.pop()
                continue
            entry = entry._replace(path=inside[-1][0] + entry.path)
            total += self.size(entry.oid) if entry.mode[:2] == "10" else 0
            if len(entry.path) > MAX_PATH_CHARS:
                path = shorten(entry.path)
                raise LogicError(f"{about}: expected {WELL_FORMED}, got {path!r}", subject=path)
            if len(found) == MAX_FILES or total > MAX_BYTES:
                most = f"{MAX_FILES:,} files and folders of {MAX_BYTES // 1024**2:,} MiB together"
                raise LogicError(f"{about}: expected at most {most}, got more", subject=shorten(entry.path))
            found.append(entry)
            if entry.kind == "a folder":
                inside.append((f"{entry.path}/", entry.oid))
                walks.append(iter(self._lines(entry.oid, trees, about)))
        return found

    def _lines(self, oid: str, known: dict[str, list[Entry]], about: str) -> list[Entry]:
        if oid not in known:
            known[oid] = list(islice(_lines_of(self.read(oid), oid, about), MAX_FILES + 1))
        return known[oid]

    def pack(self, out: IO[bytes]) -> None:
        """Write the objects as a pack, as the archive keeps them."""
        digest = hashlib.sha1(usedforsecurity=False)

        def put(content: bytes) -> None:
            out.write(content)
            digest.update(content)

        put(b"PACK" + struct.pack(">II", 2, len(self._places)))
        for oid, (kind, _, size) in self._places.items():
            head = bytearray([_PACKED[kind] << 4 | size & 15])
            size >>= 4
            while size:
                head[-1] |= 0x80
                head.append(size & 0x7F)
                size >>= 7
            put(bytes(head))
            deflate = zlib.compressobj()
            for chunk in self.chunks(oid):
                put(deflate.compress(chunk))
            put(deflate.flush())
        out.write(digest.digest())


def _lines_of(content: bytes, oid: str, about: str) -> Iterator[Entry]:
    """What a tree's object holds: `<mode> <name>`, a zero byte and 20 bytes of a name, over and over."""
    at = 0
    while at < len(content):
        end = content.find(b"\0", at)
        mode, blank, name = content[at:end].partition(b" ")
        if end < 0 or end + 21 > len(content) or not blank or not re.fullmatch(rb"[0-7]{1,6}", mode):
            raise LogicError(f"{about}: expected {oid} to be a tree, got {content[at : at + 40]!r}")
        yield Entry(mode=f"{int(mode, 8):06o}", oid=content[end + 1 : end + 21].hex(), path=fsdecode(name))
        at = end + 21
