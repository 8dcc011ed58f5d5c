"""The broker and its cache, asked over a real socket as an engine asks: what is read, what is brought, what is kept."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import duckdb
import pytest

from runner.adapters.s3_objects import S3Objects
from runner.engines import scratch
from runner.engines.export import export
from runner.engines.input_file import BLOCK_BYTES, size_of, stored_bytes
from runner.model.errors import DataError, InfrastructureError, RunnerError, TransientError
from runner.ports import Objects, Read, ServedFile
from runner.sandbox import input_cache
from runner.sandbox.broker import Broker
from runner.sandbox.input_cache import WHOLE_BYTES, InputCache
from tests.support.brokered import SOON_S, CountedObjects, engine_of
from tests.support.engine_inputs import job_of
from tests.support.folder_lake import folder_lake, path_in

MIB = 1024 * 1024
LARGE = random.Random(1).randbytes(24 * MIB + 12_345)  # noqa: S311 - repeatable, no secret
SMALL = b"id,name\n1,Ada\n"


@pytest.fixture
def lake() -> CountedObjects:
    return CountedObjects()


@pytest.fixture
def cache(tmp_path: Path) -> InputCache:
    return InputCache(tmp_path / "cache", max_bytes=256 * MIB)


def broker_of(cache: InputCache, lake: Objects, *files: ServedFile) -> Broker:
    return Broker({"input": files}, cache, lake)


def on_disk(folder: Path) -> int:
    """Bytes that the files below take."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def read(cache: InputCache, lake: Objects, file: ServedFile, *ranges: tuple[int, int]) -> list[bytes]:
    """Ranges of a file as another job reads them; all of it where none is given."""
    with engine_of(broker_of(cache, lake, file)) as engine, engine.inputs.open(file.uri) as opened:
        found = []
        for start, end in ranges or [(0, file.bytes)]:
            opened.seek(start)
            found.append(opened.read(end - start))
        return found


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, WHOLE_BYTES, WHOLE_BYTES + 1, len(LARGE)])
def test_a_file_is_read_as_it_lies_in_the_lake(cache: InputCache, lake: CountedObjects, size: int) -> None:
    file = lake.keep("a", LARGE[:size])
    with engine_of(broker_of(cache, lake, file)) as engine, engine.inputs.open(file.uri) as opened:
        assert opened.size == size
        assert opened.read() == LARGE[:size]
        assert opened.read(1) == b""


def test_any_range_is_read_as_it_lies_in_the_lake(cache: InputCache, lake: CountedObjects) -> None:
    file = lake.keep("a", LARGE)
    chance = random.Random(2)  # noqa: S311
    ranges = []
    for _ in range(200):
        start = chance.randrange(len(LARGE))
        ranges.append((start, min(len(LARGE), start + chance.randrange(1, 1 << chance.randrange(1, 22)))))
    assert read(cache, lake, file, *ranges) == [LARGE[start:end] for start, end in ranges]


def test_a_read_beyond_the_end_is_what_there_is(cache: InputCache, lake: CountedObjects) -> None:
    file = lake.keep("a", LARGE)
    assert read(cache, lake, file, (len(LARGE) - 5, len(LARGE) + 5), (len(LARGE) + 5, len(LARGE) + 9)) == [
        LARGE[-5:],
        b"",
    ]


def test_a_real_lake_serves_whole_files_and_ranges(
    cache: InputCache, s3_client: Any, bucket: str, tmp_path: Path
) -> None:
    lake = S3Objects(s3_client, bucket)
    lake.put("a b/large+ü", LARGE)
    lake.put("small", SMALL)
    large = ServedFile(uri=lake.uri("a b/large+ü"), bytes=len(LARGE), holds_rows=True)
    small = ServedFile(uri=lake.uri("small"), bytes=len(SMALL), holds_rows=True)
    assert read(cache, lake, large, (5 * MIB, 6 * MIB), (0, len(LARGE))) == [LARGE[5 * MIB : 6 * MIB], LARGE]
    assert read(cache, lake, small) == [SMALL]


def test_duckdb_reads_a_table_of_large_files_by_several_threads(tmp_path: Path) -> None:
    """Through `iceberg_scan`, which opens each file in each thread; what it finds is what was published."""
    with folder_lake(tmp_path) as published, duckdb.connect(config={"threads": 1}) as source:
        output = published.wanted()
        source.execute("SELECT setseed(0.5)")
        source.execute("CREATE TABLE t AS SELECT i, random() AS r, md5(i::VARCHAR) AS s FROM range(600_000) n(i)")
        job = job_of(tmp_path / "job", outputs=[output])
        published.commit(export(source, job, output, "t", claimed_inputs=None), job)
        expected = source.sql("SELECT count(*), sum(hash(t)) FROM t").fetchone()
        pin = published.tables.pin(published.table, "t", None)
        files = published.tables.files(pin)
    objects = CountedObjects()
    for file in files:
        objects.put(file.uri.removeprefix("s3://lake/"), path_in(tmp_path, file.uri).read_bytes())
    (rows,) = [file for file in files if file.holds_rows]
    assert rows.bytes > 2 * WHOLE_BYTES, "it should be large enough to be read by ranges"
    cache = InputCache(tmp_path / "cache", max_bytes=256 * MIB)
    broker = Broker({"t": files}, cache, objects)
    with engine_of(broker) as engine, duckdb.connect(config={"threads": 4}) as connection:
        scratch.configure(connection, engine.inputs)
        connection.execute(f"CREATE VIEW t AS FROM {scratch.snapshot_rows(pin)}")
        engine.inputs.primed()
        assert connection.sql("SELECT max(i) FROM t").fetchone() == (599_999,)
        narrow = on_disk(tmp_path / "cache")
        assert connection.sql("SELECT count(*), sum(hash(t)) FROM t").fetchone() == expected
    assert narrow < rows.bytes / 2, "a column was asked for, and more than half of the file came"
    assert broker.reads == {"t": Read(used=True, files=1, bytes=rows.bytes)}


# ---------------------------------------------------------------- what is noted


def test_what_the_logic_opens_is_noted_once_and_with_its_size(cache: InputCache, lake: CountedObjects) -> None:
    meta = lake.keep("a/meta", b"{}", holds_rows=False)
    rows, more = lake.keep("a/rows", SMALL), lake.keep("a/more", LARGE)
    broker = Broker({"a": [meta, rows, more], "b": [lake.keep("b/rows", SMALL)]}, cache, lake)
    unused = Read(used=False, files=0, bytes=0)
    with engine_of(broker) as engine:
        engine.inputs.open(meta.uri).close()
        engine.inputs.open(rows.uri).close()
        assert broker.reads == {"a": unused, "b": unused}
        engine.inputs.primed()
        engine.inputs.open(meta.uri).close()
        assert broker.reads == {"a": Read(used=True, files=0, bytes=0), "b": unused}
        for _ in range(2):
            engine.inputs.open(rows.uri).close()
        engine.inputs.open(more.uri).close()
    assert broker.reads == {"a": Read(used=True, files=2, bytes=len(SMALL) + len(LARGE)), "b": unused}


def test_a_file_of_two_inputs_is_noted_for_both(cache: InputCache, lake: CountedObjects) -> None:
    """Two snapshots of a table share files, and nobody can tell through which of them one was opened."""
    shared, own = lake.keep("shared", SMALL), lake.keep("own", SMALL)
    broker = Broker({"now": [shared, own], "before": [shared]}, cache, lake)
    with engine_of(broker) as engine:
        engine.inputs.primed()
        engine.inputs.open(shared.uri).close()
    assert broker.reads == {name: Read(used=True, files=1, bytes=len(SMALL)) for name in ("now", "before")}


def test_what_is_brought_ahead_is_not_noted(cache: InputCache, lake: CountedObjects, tmp_path: Path) -> None:
    files = [lake.keep(f"rows/{number}", SMALL) for number in range(3)]
    broker = broker_of(cache, lake, *files)
    with engine_of(broker) as engine:
        engine.inputs.primed()
        wait_until(lambda: len(list((tmp_path / "cache").glob("*/*"))) == 3)
    assert broker.reads == {"input": Read(used=False, files=0, bytes=0)}


# ---------------------------------------------------------------- what is brought


def test_of_a_large_file_only_what_is_read_is_brought(cache: InputCache, lake: CountedObjects, tmp_path: Path) -> None:
    file = lake.keep("a", LARGE)
    read(cache, lake, file, (10 * MIB, 10 * MIB + 100), (20 * MIB, 20 * MIB + 100))
    assert lake.asked == [("a", start, start + BLOCK_BYTES) for start in (10 * MIB, 20 * MIB)]
    assert on_disk(tmp_path / "cache") < MIB


def test_who_reads_on_and_on_asks_the_lake_less_and_less(cache: InputCache, lake: CountedObjects) -> None:
    file = lake.keep("a", LARGE)
    steps = [(start, min(start + 64 * 1024, len(LARGE))) for start in range(0, len(LARGE), 64 * 1024)]
    assert b"".join(read(cache, lake, file, *steps)) == LARGE
    assert len(lake.asked) < len(steps) / 10
    brought = sorted((start, end) for _, start, end in lake.asked)
    assert [start for start, _ in brought[1:]] == [end for _, end in brought[:-1]], "each byte once"


def test_a_large_range_is_brought_in_parts(cache: InputCache, lake: CountedObjects) -> None:
    file = lake.keep("a", LARGE)
    assert read(cache, lake, file) == [LARGE]
    assert max(end - start for _, start, end in lake.asked) == 4 * MIB
    assert sum(end - start for _, start, end in lake.asked) == len(LARGE)


def test_small_files_and_all_metadata_come_before_anybody_asks(
    cache: InputCache, lake: CountedObjects, tmp_path: Path
) -> None:
    small, meta, large = lake.keep("s", SMALL), lake.keep("m", SMALL, holds_rows=False), lake.keep("l", LARGE)
    with engine_of(broker_of(cache, lake, small, meta, large)):
        wait_until(lambda: len(list((tmp_path / "cache").glob("*/*"))) == 2)
    assert sorted(lake.asked) == [("m", 0, -1), ("s", 0, -1)]


def test_rows_are_brought_ahead_up_to_a_bound(cache: InputCache, lake: CountedObjects) -> None:
    files = [lake.keep(f"{number:02}", bytes(WHOLE_BYTES)) for number in range(20)]
    meta = lake.keep("meta", b"{}", holds_rows=False)
    with engine_of(broker_of(cache, lake, *files, meta)) as engine:
        engine.inputs.open(meta.uri).close()
        wait_until(lambda: len(lake.asked) == 17)
    assert len(lake.asked) == 17, "the metadata, and 64 MiB of rows"


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("body", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_a_later_worker_finds_what_was_brought(lake: CountedObjects, tmp_path: Path, body: bytes) -> None:
    file = lake.keep("a", body)
    assert read(InputCache(tmp_path, max_bytes=256 * MIB), lake, file) == [body]
    lake.asked.clear()
    assert read(InputCache(tmp_path, max_bytes=256 * MIB), lake, file) == [body]
    assert lake.asked == []


def test_a_later_worker_brings_what_is_missing(lake: CountedObjects, tmp_path: Path) -> None:
    file = lake.keep("a", LARGE)
    read(InputCache(tmp_path, max_bytes=256 * MIB), lake, file, (0, 8 * MIB))
    lake.asked.clear()
    assert read(InputCache(tmp_path, max_bytes=256 * MIB), lake, file) == [LARGE]
    assert sum(end - start for _, start, end in lake.asked) == len(LARGE) - 8 * MIB


def test_metadata_of_unrecorded_size_is_kept_like_any_other(cache: InputCache, lake: CountedObjects) -> None:
    """Iceberg records no size of a manifest list."""
    lake.put("list", SMALL)
    file = ServedFile(uri=lake.uri("list"), bytes=0, holds_rows=False)
    for _ in range(2):
        with engine_of(broker_of(cache, lake, file)) as engine:
            assert engine.inputs.open(file.uri).read() == SMALL
    assert lake.asked == [("list", 0, -1)]


def test_after_a_power_cut_nothing_is_trusted(
    lake: CountedObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = lake.keep("a", LARGE)
    read(InputCache(tmp_path, max_bytes=256 * MIB), lake, file)
    (stored,) = tmp_path.glob("*/*")
    stored.write_bytes(bytes(len(LARGE)) + stored.read_bytes()[len(LARGE) :])  # as a cut may leave it
    monkeypatch.setattr(input_cache, "_boot", lambda: "another")
    assert read(InputCache(tmp_path, max_bytes=256 * MIB), lake, file) == [LARGE]
    assert [path.parent.name for path in tmp_path.glob("*/*")] == ["boot-another"]


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "damage",
    {
        "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
        "emptied": lambda path: os.truncate(path, 0),
        "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
        "a link": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        "gone": lambda path: path.unlink(),
        "the folder gone": lambda path: (path.unlink(), path.parent.rmdir()),
    }.items(),
    ids=lambda damage: damage[0],
)
def test_a_damaged_file_is_brought_anew(
    lake: CountedObjects, tmp_path: Path, body: bytes, damage: tuple[str, Callable[[Path], object]]
) -> None:
    cache = InputCache(tmp_path, max_bytes=32 * MIB)  # so small that it is looked through
    file = lake.keep("a", body)
    assert read(cache, lake, file) == [body]
    (stored,) = tmp_path.glob("*/*")
    damage[1](stored)
    assert read(cache, lake, file) == [body]


def test_cached_files_are_the_workers_alone(cache: InputCache, lake: CountedObjects, tmp_path: Path) -> None:
    read(cache, lake, lake.keep("a", SMALL))
    read(cache, lake, lake.keep("b", LARGE))
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600, 0o600]


def test_the_file_that_was_not_used_for_longest_makes_room(lake: CountedObjects, tmp_path: Path) -> None:
    cache = InputCache(tmp_path, max_bytes=10 * MIB)
    files = [lake.keep(name, os.urandom(2 * MIB)) for name in "abcdef"]
    for file in files[:4]:
        read(cache, lake, file)
    read(cache, lake, files[0])
    for file in files[4:]:
        read(cache, lake, file)
    assert on_disk(tmp_path) <= 11 * MIB
    lake.asked.clear()
    read(cache, lake, files[0])
    assert lake.asked == []
    read(cache, lake, files[1])
    assert lake.asked == [("b", 0, -1)]


def test_workers_that_share_a_cache_share_its_size(lake: CountedObjects, tmp_path: Path) -> None:
    caches = [InputCache(tmp_path, max_bytes=20 * MIB) for _ in range(2)]
    for number in range(20):
        read(caches[number % 2], lake, lake.keep(f"{number}", os.urandom(2 * MIB)))
    assert on_disk(tmp_path) <= 24 * MIB, "each may go over by a tenth"


def test_a_file_larger_than_the_cache_is_read_all_the_same(lake: CountedObjects, tmp_path: Path) -> None:
    cache = InputCache(tmp_path, max_bytes=2 * MIB)
    large, small = lake.keep("large", LARGE), lake.keep("small", os.urandom(3 * MIB))
    assert read(cache, lake, large) == [LARGE]
    assert read(cache, lake, small) == [lake.get("small")]
    assert on_disk(tmp_path) <= 4 * MIB, "it made room for the next"


def test_a_file_that_has_to_go_while_it_is_read_is_read_on(lake: CountedObjects, tmp_path: Path) -> None:
    """The engine holds a file that is filled no more, and is given the one that took its place."""
    cache = InputCache(tmp_path, max_bytes=10 * MIB)
    file, other = lake.keep("a", LARGE), lake.keep("b", LARGE[::-1])
    with engine_of(broker_of(cache, lake, file, other)) as engine:
        opened = [engine.inputs.open(each.uri) for each in (file, other)]
        for start in range(0, len(LARGE), 3 * MIB):
            for each, content in zip(opened, (LARGE, LARGE[::-1]), strict=True):
                each.seek(start)
                assert each.read(3 * MIB) == content[start : start + 3 * MIB]
            for stored in tmp_path.glob("*/*"):
                stored.unlink()
        for each in opened:
            each.close()


class SmallDisk:
    """`os.pwrite` of a disk that is full with what lies in a folder."""

    def __init__(self, folder: Path, holds: int) -> None:
        self._folder = folder
        self._holds = holds
        self._write = os.pwrite

    def __call__(self, descriptor: int, data: memoryview, at: int) -> int:
        if on_disk(self._folder) + len(data) > self._holds:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(descriptor, data, at)


def test_a_full_disk_takes_what_may_go(lake: CountedObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = InputCache(tmp_path, max_bytes=256 * MIB)
    monkeypatch.setattr(os, "pwrite", SmallDisk(tmp_path, 7 * MIB))
    bodies = [os.urandom(3 * MIB) for _ in range(4)]
    for number, body in enumerate(bodies):
        assert read(cache, lake, lake.keep(f"{number}", body)) == [body]
    assert read(cache, lake, lake.keep("large", LARGE), (0, 5 * MIB)) == [LARGE[: 5 * MIB]]


@pytest.mark.parametrize("body", [bytes(WHOLE_BYTES), LARGE], ids=["small", "large"])
def test_a_disk_that_is_full_of_other_things_is_said(
    lake: CountedObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    file = lake.keep("a", body)
    monkeypatch.setattr(os, "pwrite", SmallDisk(tmp_path, MIB))
    cache = InputCache(tmp_path, max_bytes=256 * MIB)
    error = failed_reading(broker_of(cache, lake, file), file)
    assert isinstance(error, InfrastructureError)
    assert f"expected room for {file.uri} of {len(body):,} bytes, got No space left on device" in error.message
    assert error.hint is not None
    assert on_disk(tmp_path) < MIB
    monkeypatch.undo()
    assert read(cache, lake, file) == [body], "and nothing of it stays once there is room"


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InfrastructureError, match="expected a folder to write to, got Not a directory"):
        InputCache(tmp_path / "file", max_bytes=MIB)


# ---------------------------------------------------------------- at the same time


class SlowObjects(CountedObjects):
    """Answers about one key only when it is told to."""

    def __init__(self, slow: str) -> None:
        super().__init__()
        self._slow = slow
        self.asked_for_it = Event()
        self.answer = Event()

    def get(self, key: str, *, at_most: int | None = None) -> bytes | None:
        self._wait(key)
        return super().get(key, at_most=at_most)

    def get_range(self, key: str, start: int, end: int) -> bytes | None:
        self._wait(key)
        return super().get_range(key, start, end)

    def _wait(self, key: str) -> None:
        if key == self._slow:
            self.asked_for_it.set()
            assert self.answer.wait(SOON_S)


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
def test_a_slow_file_holds_up_no_other(cache: InputCache, body: bytes) -> None:
    lake = SlowObjects("slow")
    slow, quick = lake.keep("slow", body), lake.keep("quick", body[::-1])
    with engine_of(broker_of(cache, lake, slow, quick)) as engine, ThreadPoolExecutor(1) as thread:
        coming = thread.submit(lambda: engine.inputs.open(slow.uri).read(100))
        assert lake.asked_for_it.wait(SOON_S)
        assert engine.inputs.open(quick.uri).read(100) == body[::-1][:100]
        assert not coming.done()
        lake.answer.set()
        assert coming.result(SOON_S) == body[:100]


def test_threads_get_each_its_own_answer(cache: InputCache, lake: CountedObjects) -> None:
    bodies = [LARGE[number : WHOLE_BYTES + 2 * number] for number in range(1, 9)]
    files = [lake.keep(f"{number}", body) for number, body in enumerate(bodies)]
    together = Barrier(8)

    def work(number: int) -> None:
        chance = random.Random(number)  # noqa: S311
        together.wait(SOON_S)
        for _ in range(50):
            each = chance.randrange(8)
            start = chance.randrange(WHOLE_BYTES)
            with engine.inputs.open(files[each].uri) as opened:
                opened.seek(start)
                assert opened.read(1000) == bodies[each][start : start + 1000]

    with engine_of(broker_of(cache, lake, *files)) as engine, ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))


@pytest.mark.parametrize("body", [SMALL, LARGE[: 5 * MIB]], ids=["small", "large"])
def test_what_several_threads_want_is_brought_once(cache: InputCache, body: bytes) -> None:
    lake = SlowObjects("a")
    file = lake.keep("a", body)
    with engine_of(broker_of(cache, lake, file)) as engine, ThreadPoolExecutor(4) as threads:
        coming = [threads.submit(lambda: engine.inputs.open(file.uri).read(100)) for _ in range(4)]
        assert lake.asked_for_it.wait(SOON_S)
        lake.answer.set()
        assert [each.result(SOON_S) for each in coming] == [body[:100]] * 4
    assert len(lake.asked) == 1


# ---------------------------------------------------------------- what goes wrong


def failed_reading(broker: Broker, file: ServedFile) -> BaseException:
    with engine_of(broker) as engine:
        with pytest.raises((EOFError, OSError)):
            engine.inputs.open(file.uri).read()
        return engine.error()


@pytest.mark.parametrize("size", [len(SMALL), len(LARGE)])
def test_an_input_that_is_gone_has_expired(cache: InputCache, lake: CountedObjects, size: int) -> None:
    file = ServedFile(uri=lake.uri("gone"), bytes=size, holds_rows=True)
    error = failed_reading(broker_of(cache, lake, file), file)
    assert isinstance(error, DataError)
    assert error.message == "input input: expected s3://lake/gone, got none: input expired"


@pytest.mark.parametrize(("recorded", "there"), [(5, 6), (6, 5), (0, 5), (len(LARGE), 5), (len(LARGE), 20 * MIB)])
def test_a_file_of_another_size_than_was_recorded_is_refused(
    cache: InputCache, lake: CountedObjects, recorded: int, there: int
) -> None:
    lake.put("a", LARGE[:there])
    file = ServedFile(uri=lake.uri("a"), bytes=recorded, holds_rows=True)
    error = failed_reading(broker_of(cache, lake, file), file)
    assert isinstance(error, DataError)
    assert f"{recorded:,} bytes" in error.message


class FailingObjects(CountedObjects):
    """Fails so many times before it answers."""

    def __init__(self, error: RunnerError, times: int) -> None:
        super().__init__()
        self._error = error
        self._left = times

    def get(self, key: str, *, at_most: int | None = None) -> bytes | None:
        self._fail()
        return super().get(key, at_most=at_most)

    def get_range(self, key: str, start: int, end: int) -> bytes | None:
        self._fail()
        return super().get_range(key, start, end)

    def _fail(self) -> None:
        self._left -= 1
        if self._left >= 0:
            raise self._error


@pytest.mark.parametrize("body", [SMALL, LARGE[: 5 * MIB]], ids=["small", "large"])
def test_an_answer_that_is_cut_off_is_asked_for_again(cache: InputCache, body: bytes) -> None:
    lake = FailingObjects(TransientError("cut off"), 2)
    assert read(cache, lake, lake.keep("a", body)) == [body]


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("error", [TransientError("cut off"), InfrastructureError("no right to read")])
def test_a_lake_that_does_not_answer_ends_the_job_and_says_so(
    cache: InputCache, body: bytes, error: RunnerError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_cache, "_PAUSE_S", 0)
    lake = FailingObjects(error, 1000)
    file = lake.keep("a", body)
    assert failed_reading(broker_of(cache, lake, file), file) is error


def test_a_job_that_ends_waits_for_no_store(cache: InputCache) -> None:
    lake = SlowObjects("slow")
    small, large = lake.keep("slow", SMALL), lake.keep("quick", LARGE)
    with engine_of(broker_of(cache, lake, small, large)) as engine:
        assert lake.asked_for_it.wait(SOON_S)
        engine.inputs.open(large.uri).close()
    assert not lake.answer.is_set()
    lake.answer.set()


def test_the_files_length_tells_its_size() -> None:
    for size in [*range(3 * BLOCK_BYTES), 10**9, 10**12 + 1]:
        assert size_of(stored_bytes(size)) == size
    lengths = {stored_bytes(size) for size in range(3 * BLOCK_BYTES)}
    for length in range(3 * BLOCK_BYTES):
        assert (size_of(length) is not None) is (length in lengths)


def wait_until(true: Callable[[], bool]) -> None:
    waiting = Event()
    for _ in range(SOON_S * 100):
        if true():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not come about")
