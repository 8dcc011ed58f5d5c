"""Inputs' files on the worker's disk: brought from the lake once, whole or by range, and kept for later jobs."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from errno import EACCES, EDQUOT, ELOOP, ENOSPC, EPERM, EWOULDBLOCK
from pathlib import Path
from shutil import rmtree
from threading import RLock
from uuid import uuid4

from runner.engines.input_file import BLOCK_BYTES, blocks_of, size_of, stored_bytes
from runner.model.errors import DataError, InfrastructureError, TransientError
from runner.ports import Objects, ServedFile

WHOLE_BYTES = 4 * 1024 * 1024
"""Files up to this size are brought whole: S3 sends about as much in the time of a request that this saves."""
_PART_BLOCKS = 4 * 1024 * 1024 // BLOCK_BYTES
"""The most that is asked for at a time, and that a thread holds in memory."""
_AHEAD_BLOCKS = 16 * 1024 * 1024 // BLOCK_BYTES
_THREADS = 8
"""One connection to S3 fills no network: https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-design-patterns.html"""
_TRIES = 4
_PAUSE_S = 0.1
_KEPT_SHARE = 0.9
"""How full the cache still is when files had to go."""
_LOOK_SHARE = 0.1
"""What one worker may bring of `max_bytes` before it looks again how much all of them have brought."""
_BOOTS = "boot-"
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SPOILT = (EACCES, EPERM, ELOOP, EWOULDBLOCK)
"""A job of the worker's own user id can change a file's mode, or take a lease on it that others wait for (fcntl(2))."""


@dataclass(frozen=True, kw_only=True)
class CachedFile:
    """A descriptor to read the file by, the caller's to close, in the form that `InputFile` reads."""

    descriptor: int
    size: int
    whole: bool
    """False where bytes have to be fetched before they are read."""


@dataclass(frozen=True)
class _Part:
    """Blocks that are on their way, from `first` to before `last`."""

    first: int
    last: int
    coming: Future[None]


@dataclass
class _Filling:
    """A file of which parts come; it is open for writing as long as somebody waits for some."""

    file: ServedFile
    path: Path
    descriptor: int
    users: int = 0
    parts: list[_Part] = field(default_factory=list)


class InputCache:
    """Files by their URI, which is their version too: no file of the lake is written twice.

    Workers of one machine may share a folder; `max_bytes` is for all of them, and each may go over it by a tenth before
    it notices. What is there is trusted for as long as the machine is up: a power cut may leave files with holes.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder / f"{_BOOTS}{_boot()}"
        self._max_bytes = max_bytes
        self._may_bring = 0
        self._lock = RLock()  # a part that is brought at once is taken off the list by who put it there
        self._fillings: dict[Path, _Filling] = {}
        self._coming: dict[Path, Future[None]] = {}
        self._new: set[Path] = set()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="inputs")
        with self._disk():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in folder.glob(f"{_BOOTS}*"):
            if old != self._folder:
                rmtree(old, ignore_errors=True)

    def open(self, file: ServedFile, objects: Objects) -> CachedFile:
        """The file to read. A small one is brought first, of a larger one nothing.

        Raises `FileNotFoundError` where the lake has none, `DataError` where it has one of another size, and
        `InfrastructureError` where the disk is full even without what may go.
        """
        path = self._path(file)
        for _ in range(_TRIES):
            found = self._found(path, file)
            if found is not None:
                return found
            if file.bytes > WHOLE_BYTES:
                with self._filling(file):
                    pass
            else:
                self._bring_whole_once(path, file, objects)
        raise InfrastructureError(f"input cache {self._folder}: expected to keep {file.uri}, got it removed each time")

    def fetch(self, file: ServedFile, start: int, end: int, objects: Objects) -> None:
        """Bring the bytes from `start` to before `end` that are not there. Raises as `open` does."""
        if not 0 <= start < end <= file.bytes:
            raise ValueError(f"{file.uri}: expected a range of its {file.bytes:,} bytes, got {start:,} to {end:,}")
        with self._filling(file) as filling:
            for coming in self._begin(filling, start, end, objects):
                coming.result()

    def prefetch(self, files: Iterable[ServedFile], objects: Objects) -> list[Future[None]]:
        """Begin to bring small files. What goes wrong shows when they are opened."""
        missing = (file for file in files if file.bytes <= WHOLE_BYTES and not self._path(file).exists())
        return [self._threads.submit(self._bring_ahead, file, objects) for file in missing]

    def close(self) -> None:
        """Begin nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ whole files

    def _found(self, path: Path, file: ServedFile) -> CachedFile | None:
        with self._disk(file):
            descriptor = self._reopened(path, os.O_RDONLY)
            if descriptor is None:
                return None
            size = size_of(os.fstat(descriptor).st_size)
            if size is None or not _fits(file, size):
                os.close(descriptor)
                self._remove(path)
                return None
            with suppress(OSError):
                os.utime(descriptor)  # what is used last goes last
            blocks = blocks_of(size)
            whole = os.pread(descriptor, blocks, size) == b"\1" * blocks
            return CachedFile(descriptor=descriptor, size=size, whole=whole)

    def _bring_ahead(self, file: ServedFile, objects: Objects) -> None:
        self._bring_whole_once(self._path(file), file, objects)

    def _bring_whole_once(self, path: Path, file: ServedFile, objects: Objects) -> None:
        """Bring a file, or wait for another thread that does."""
        mine: Future[None] = Future()
        with self._lock:
            coming = self._coming.setdefault(path, mine)
        if coming is not mine:
            return coming.result()
        try:
            if not path.exists():  # another thread may have come to the end of it just before
                self._bring_whole(path, file, objects)
        except BaseException as exc:
            mine.set_exception(exc)
            raise
        else:
            mine.set_result(None)
        finally:
            with self._lock:
                del self._coming[path]

    def _bring_whole(self, path: Path, file: ServedFile, objects: Objects) -> None:
        body = _asked(lambda: _whole(file, objects))
        if body is None:
            raise FileNotFoundError(file.uri)
        blocks = b"\1" * blocks_of(len(body))
        self._make_room(len(body), path)
        new = path.with_name(f"{path.name}.{uuid4().hex}")
        self._new.add(new)
        with self._disk(file):
            descriptor = self._create(new)
            try:
                self._write(descriptor, body + blocks, 0)
                # Under its name only when all of it is there. Another worker may have needed the room.
                with suppress(FileNotFoundError):
                    new.rename(path)
            except BaseException:
                self._remove(new)
                raise
            finally:
                os.close(descriptor)
                self._new.discard(new)

    # ------------------------------------------------------------ ranges of large files

    @contextmanager
    def _filling(self, file: ServedFile) -> Iterator[_Filling]:
        path = self._path(file)
        with self._lock:
            filling = self._fillings.get(path)
            # One that had to go meanwhile is filled no more: who opens the file from now on has another.
            if filling is None or os.fstat(filling.descriptor).st_nlink == 0:
                filling = self._fillings[path] = _Filling(file, path, self._open_to_fill(path, file))
            filling.users += 1
        try:
            yield filling
        finally:
            self._leave(filling)

    def _leave(self, filling: _Filling) -> None:
        with self._lock:
            filling.users -= 1
            if filling.users == 0:
                os.close(filling.descriptor)
                if self._fillings.get(filling.path) is filling:
                    del self._fillings[filling.path]

    def _open_to_fill(self, path: Path, file: ServedFile) -> int:
        with self._disk(file):
            descriptor = self._reopened(path, os.O_RDWR)
            if descriptor is not None:
                if os.fstat(descriptor).st_size == stored_bytes(file.bytes):
                    return descriptor
                os.close(descriptor)
                self._remove(path)
            descriptor = self._create(path)
            os.ftruncate(descriptor, stored_bytes(file.bytes))
            return descriptor

    def _begin(self, filling: _Filling, start: int, end: int, objects: Objects) -> list[Future[None]]:
        """What is to be waited for, so that the bytes are there. More than these is begun for who reads on and on."""
        first, last = start // BLOCK_BYTES, blocks_of(end)
        with self._lock:
            wanted = self._begin_blocks(filling, first, last, objects)
            if len(filling.parts) < _THREADS:
                until = min(last + self._run_before(filling, first), blocks_of(filling.file.bytes))
                self._begin_blocks(filling, last, until, objects)
            return wanted

    def _begin_blocks(self, filling: _Filling, first: int, last: int, objects: Objects) -> list[Future[None]]:
        there = bytearray(os.pread(filling.descriptor, max(0, last - first), filling.file.bytes + first))
        on_its_way = [part for part in filling.parts if part.first < last and first < part.last]
        for part in on_its_way:
            begin, end = max(part.first, first) - first, min(part.last, last) - first
            there[begin:end] = b"\1" * (end - begin)
        wanted = [part.coming for part in on_its_way]
        begin = there.find(0)
        while begin >= 0:
            end = there.find(1, begin)
            end = min(begin + _PART_BLOCKS, len(there) if end < 0 else end)
            wanted.append(self._begin_part(filling, first + begin, first + end, objects))
            begin = there.find(0, end)
        return wanted

    def _run_before(self, filling: _Filling, first: int) -> int:
        """How many blocks in a row are there right before this one: who read those will read on."""
        count = min(first, _AHEAD_BLOCKS)
        before = os.pread(filling.descriptor, count, filling.file.bytes + first - count)
        return count - (before.rfind(b"\0") + 1)

    def _begin_part(self, filling: _Filling, first: int, last: int, objects: Objects) -> Future[None]:
        coming = self._threads.submit(self._bring_part, filling, first, last, objects)
        part = _Part(first, last, coming)
        filling.parts.append(part)
        filling.users += 1

        def over(_: Future[None]) -> None:
            with self._lock:
                filling.parts.remove(part)
                self._leave(filling)

        coming.add_done_callback(over)
        return coming

    def _bring_part(self, filling: _Filling, first: int, last: int, objects: Objects) -> None:
        file = filling.file
        start, end = first * BLOCK_BYTES, min(last * BLOCK_BYTES, file.bytes)
        body = _asked(lambda: objects.get_range(_key(file, objects), start, end))
        if body is None:
            raise FileNotFoundError(file.uri)
        if len(body) != end - start:
            raise _another_size(file)
        self._make_room(len(body), filling.path)
        with self._disk(file):
            self._write(filling.descriptor, body, start)
            # Last: whoever sees these reads the bytes that they stand for.
            self._write(filling.descriptor, b"\1" * (last - first), file.bytes + first)

    # ------------------------------------------------------------ the disk

    def _path(self, file: ServedFile) -> Path:
        return self._folder / hashlib.sha256(file.uri.encode()).hexdigest()

    def _reopened(self, path: Path, mode: int) -> int | None:
        """A descriptor of a file that is there; None for none, and for one of no use any more, which is removed."""
        try:
            return os.open(path, mode | _OPEN)
        except FileNotFoundError:
            return None
        except OSError as exc:
            if exc.errno not in _SPOILT:
                raise
            self._remove(path)
            return None

    def _create(self, path: Path) -> int:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have cleared the caches
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def _write(self, descriptor: int, data: bytes, at: int) -> None:
        rest, tried = memoryview(data), False
        while rest:
            try:
                written = os.pwrite(descriptor, rest, at)
            except OSError as exc:
                # Once more even where nothing was left to remove: another thread may just have done it.
                if exc.errno not in (ENOSPC, EDQUOT) or not (self._remove_older() or not tried):
                    raise
                tried = True
                continue
            rest, at = rest[written:], at + written

    def _make_room(self, count: int, path: Path) -> None:
        with self._lock:
            self._may_bring -= count
            if self._may_bring < 0:
                used = self._used_after_removing(count, path)
                self._may_bring = max(0, min(self._max_bytes - used - count, int(self._max_bytes * _LOOK_SHARE)))

    def _used_after_removing(self, count: int, path: Path) -> int:
        """Bytes on disk, once the files that were not used for longest have made room for so many more."""
        files = self._files()
        used = sum(size for _, size, _ in files)
        if used + count <= self._max_bytes:
            return used
        for _, size, each in files:
            if used + count <= self._max_bytes * _KEPT_SHARE:
                break
            if each != path and not self._is_filled(each):
                self._remove(each)
                used -= size
        return used

    def _remove_older(self) -> bool:
        """Remove all that is not being filled; whether there was any."""
        with self._lock:
            older = [path for _, _, path in self._files() if not self._is_filled(path)]
            for path in older:
                self._remove(path)
            return bool(older)

    def _is_filled(self, path: Path) -> bool:
        return path in self._fillings or path in self._new

    def _files(self) -> list[tuple[int, int, Path]]:
        """When it was last used, bytes on disk, and path of each file, the one that was not used for longest first."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another worker removes files as well
                    seen = entry.stat(follow_symlinks=False)
                    found.append((seen.st_mtime_ns, seen.st_blocks * 512, Path(entry.path)))
        return sorted(found)

    def _remove(self, path: Path) -> None:
        """Who has it open reads on."""
        path.unlink(missing_ok=True)

    @contextmanager
    def _disk(self, file: ServedFile | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            wanted = f"room for {file.uri} of {file.bytes:,} bytes" if file else "a folder to write to"
            raise InfrastructureError(
                f"input cache {self._folder}: expected {wanted}, got {exc.strerror or exc}",
                hint="give workers a larger disk, or their cache of inputs a smaller part of it",
            ) from exc


def _boot() -> str:
    """What names the time since this machine was started; where the kernel does not say, nothing of before is kept."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return uuid4().hex


def _fits(file: ServedFile, size: int) -> bool:
    """Whether the record gives the file this size. Of metadata it may give none, as Iceberg does of manifest lists."""
    return size == file.bytes if file.bytes or file.holds_rows else size > 0


def _whole(file: ServedFile, objects: Objects) -> bytes | None:
    # Metadata of unknown size is no larger than what the worker has read of it itself.
    body = objects.get(_key(file, objects), at_most=file.bytes or None)
    if body is not None and not _fits(file, len(body)):
        if not file.bytes and not file.holds_rows:
            raise TransientError(f"{file.uri}: expected a document, got nothing")
        raise _another_size(file)
    return body


def _another_size(file: ServedFile) -> DataError:
    return DataError(
        f"{file.uri}: expected the {file.bytes:,} bytes that the snapshot records, got an object of another size",
        subject=file.uri,
    )


def _key(file: ServedFile, objects: Objects) -> str:
    return file.uri.removeprefix(objects.uri(""))


def _asked(ask: Callable[[], bytes | None]) -> bytes | None:
    """The answer, of a few tries: botocore repeats requests, and not the reading of an answer that is cut off."""
    for tried in range(_TRIES - 1):
        try:
            return ask()
        except TransientError:
            time.sleep(_PAUSE_S * 2**tried)
    return ask()
