"""An engine of hostile intent at the other end of the broker's socket, and with the descriptors that it is given."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest

from runner.engines import query
from runner.engines.wire import MAX_RESULT_BYTES
from runner.model.errors import LogicError
from runner.model.messages import TO_ENGINE, EngineResult, Fetch, JobOutput, Open, Progress, Refused
from runner.model.spec import Output
from runner.ports import Read, ServedFile
from runner.sandbox import landlock
from runner.sandbox.accounts import Accounts
from runner.sandbox.broker import Broker
from runner.sandbox.input_cache import WHOLE_BYTES, InputCache
from tests.support.brokered import NOTHING, SOON_S, CountedObjects, Engine, engine_of
from tests.support.engine_inputs import LocalInputs, job_of

MIB = 1024 * 1024
ROWS = b"the rows of another job's input"
LARGE_BYTES = WHOLE_BYTES + 5
UNREAD_FRAMES = 512
"""More than the kernel keeps for a reader who does not come."""


@pytest.fixture
def lake() -> CountedObjects:
    made = CountedObjects()
    made.put("secret", b"no input of this job")
    return made


@pytest.fixture
def rows(lake: CountedObjects) -> ServedFile:
    return lake.keep("rows", ROWS)


@pytest.fixture
def large(lake: CountedObjects) -> ServedFile:
    return lake.keep("large", bytes(LARGE_BYTES))


@pytest.fixture
def broker(lake: CountedObjects, rows: ServedFile, large: ServedFile, tmp_path: Path) -> Broker:
    return Broker({"input": [rows, large]}, InputCache(tmp_path / "cache", max_bytes=64 * MIB), lake)


@pytest.fixture
def engine(broker: Broker) -> Iterator[Engine]:
    with engine_of(broker) as made:
        yield made


def frame(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


def descriptors_of_this_process() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_mib() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // MIB


# ---------------------------------------------------------------- what it says


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"null",
        b"not JSON",
        b"\xff\xfe{",
        b'{"type": "open"}',
        b'{"type": "open", "uri": 1}',
        b'{"type": "open", "uri": "s3://lake/rows", "mode": "wb"}',
        b'{"type": "fetch", "uri": "s3://lake/large", "start": 0.5, "end": 1}',
        b'{"type": "fetch", "uri": "s3://lake/large", "start": NaN, "end": 1}',
        b'{"type": "job"}',
        b'{"type": "opened", "size": 1, "whole": true}',
        b'{"type": "done"}',
        b'{"type": "done", "result": {"outputs": [], "steps": [], "packages": {}, "reads": {}}}',
        b"[" * MIB,
        b'{"type":' * (MIB // 8),
        b'{"type": "open", "uri": "' + b"x" * (MAX_RESULT_BYTES - 100),
        b" " * MAX_RESULT_BYTES,
    ],
    ids=lambda body: repr(body[:40]),
)
def test_what_is_none_of_its_messages_ends_the_job(engine: Engine, body: bytes) -> None:
    with ThreadPoolExecutor(1) as thread:
        # Else who sends and who should read would wait for each other.
        sending = thread.submit(engine.socket.sendall, frame(body))
        error = engine.error()
        engine.socket.shutdown(socket.SHUT_RDWR)
        sending.exception(SOON_S)
    assert isinstance(error, LogicError)
    assert error.message.startswith("engine: expected one of its messages, got ")
    assert len(error.message) < 1000


@pytest.mark.parametrize("length", [MAX_RESULT_BYTES + 1, 2**31, 2**32 - 1])
def test_a_frame_that_is_too_large_ends_the_job_before_it_is_read(engine: Engine, length: int) -> None:
    engine.socket.sendall(struct.pack("!I", length))
    error = engine.error()
    assert isinstance(error, LogicError)
    assert f"expected a frame of at most {MAX_RESULT_BYTES:,} bytes, got one of {length:,}" in error.message


@pytest.mark.parametrize("said", [b"", b"\x00\x00", struct.pack("!I", 10) + b"{"], ids=["nothing", "half", "no end"])
def test_an_engine_that_falls_silent_for_good_is_seen_to_end(engine: Engine, said: bytes) -> None:
    engine.socket.sendall(said)
    engine.socket.shutdown(socket.SHUT_RDWR)
    assert isinstance(engine.error(), EOFError)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/etc/passwd",
        "file:///etc/passwd",
        "/proc/self/environ",
        "s3://lake",
        "s3://lake/",
        "s3://lake/secret",
        "s3://lake/rows/../secret",
        "s3://lake/./rows",
        "s3://lake//rows",
        "s3://lake/rows/",
        "S3://lake/rows",
        "s3://LAKE/rows",
        "s3://other/rows",
        "s3://lake/rows?s3_endpoint=127.0.0.1:9",
        "s3://lake/rows?versionId=1",
        "s3://lake/rows#",
        "s3://lake/ro%77s",
        "s3://lake/rows\x00",
        "s3://lake/rows\n",
        " s3://lake/rows",
        "s3://lake/*",
        "s3://lake/\uff52ows",
        "s3://user@lake/rows",
        "rows",
        "x" * MIB,
        "../" * 100_000,
    ],
    ids=lambda uri: repr(uri[:40]),
)
def test_nothing_but_the_exact_files_of_its_inputs_is_given(
    engine: Engine, broker: Broker, lake: CountedObjects, rows: ServedFile, uri: str
) -> None:
    engine.inputs.primed()
    for question in (Open(uri=uri, ask=7), Fetch(uri=uri, start=0, end=1, ask=7)):
        engine.wire.send(question)
        raw, descriptors = engine.wire.receive()
        assert TO_ENGINE.validate_json(raw) == Refused(ask=7, message="a file of no declared input")
        assert descriptors == ()
    assert broker.reads == {"input": Read(used=False, files=0, bytes=0)}
    assert engine.inputs.open(rows.uri).read() == ROWS, "and it goes on"
    assert {key for key, _, _ in lake.asked} == {"rows"}


@pytest.mark.parametrize(
    ("start", "end"),
    [(-1, 1), (0, 0), (5, 4), (0, LARGE_BYTES + 1), (LARGE_BYTES, LARGE_BYTES + 1), (0, 10**30), (-(10**30), 1)],
)
def test_no_range_beyond_the_file_is_fetched(
    engine: Engine, lake: CountedObjects, large: ServedFile, start: int, end: int
) -> None:
    engine.wire.send(Fetch(uri=large.uri, start=start, end=end, ask=1))
    raw, _ = engine.wire.receive()
    assert isinstance(TO_ENGINE.validate_json(raw), Refused)
    assert [asked for asked in lake.asked if asked[0] == "large"] == []


def test_metadata_of_unrecorded_size_is_not_made_empty_by_fetching_it(lake: CountedObjects, tmp_path: Path) -> None:
    """A manifest list without any files would be a table without any rows, for every later job."""
    lake.put("list", ROWS)
    file = ServedFile(uri=lake.uri("list"), bytes=0, holds_rows=False)
    with engine_of(Broker({"t": [file]}, InputCache(tmp_path, max_bytes=MIB), lake)) as engine:
        for start, end in ((0, 0), (0, 1)):
            engine.wire.send(Fetch(uri=file.uri, start=start, end=end))
            raw, _ = engine.wire.receive()
            assert isinstance(TO_ENGINE.validate_json(raw), Refused)
        assert engine.inputs.open(file.uri).read() == ROWS


def test_descriptors_that_it_sends_are_closed(engine: Engine, rows: ServedFile) -> None:
    before = descriptors_of_this_process()
    body = Open(uri=rows.uri).to_json().encode()
    with Path(os.devnull).open() as given:
        for _ in range(50):
            socket.send_fds(engine.socket, [struct.pack("!I", len(body))], [given.fileno()] * 3)
            engine.socket.sendall(body)
            _, descriptors = engine.wire.receive()
            for each in descriptors:
                os.close(each)
    assert descriptors_of_this_process() <= before + 2


def test_words_without_end_are_cut(engine: Engine) -> None:
    engine.wire.send(Progress(message="x" * (8 * MIB)))
    engine.wire.send(NOTHING)
    assert engine.ended.result(SOON_S) == NOTHING
    assert [len(each.message) for each in engine.said] == [16 * 1024]


# ---------------------------------------------------------------- how often it asks


def test_questions_without_end_take_neither_memory_nor_descriptors_nor_log(
    engine: Engine, lake: CountedObjects, rows: ServedFile
) -> None:
    def ask(count: int) -> None:
        for number in range(count):
            uri = (rows.uri, "s3://lake/secret", f"s3://lake/{number}")[number % 3]
            engine.wire.send(Open(uri=uri, ask=number))
            for each in engine.wire.receive()[1]:
                os.close(each)

    ask(300)
    memory, descriptors = resident_mib(), descriptors_of_this_process()
    ask(9_000)
    assert resident_mib() <= memory + 8
    assert descriptors_of_this_process() <= descriptors + 1
    assert engine.said == []
    assert lake.asked == [("rows", 0, -1)]


def test_answers_that_it_never_reads_hold_up_nobody_else(broker: Broker, rows: ServedFile) -> None:
    """The kernel keeps some, then each thread that answers waits; nothing is heaped up, and its end sets all free."""
    memory, descriptors = resident_mib(), descriptors_of_this_process()
    with ThreadPoolExecutor(1) as thread, engine_of(broker) as engine:
        question = frame(Open(uri=rows.uri).to_json().encode())
        flood = thread.submit(engine.socket.sendall, question * (100 * UNREAD_FRAMES))
        with pytest.raises(TimeoutError):
            flood.result(0.5)
        assert descriptors_of_this_process() <= descriptors + 2 + 2 * 16
        assert resident_mib() <= memory + 32
        engine.socket.shutdown(socket.SHUT_RDWR)
        assert isinstance(engine.error(), EOFError | BrokenPipeError | ConnectionResetError)
        assert isinstance(flood.exception(SOON_S), OSError)


def test_large_ranges_without_end_are_brought_once_and_held_to_their_size(
    engine: Engine, lake: CountedObjects, large: ServedFile
) -> None:
    for ask in range(500):
        engine.wire.send(Fetch(uri=large.uri, start=0, end=LARGE_BYTES, ask=ask))
        engine.wire.receive()
    assert sum(end - start for key, start, end in lake.asked if key == "large") == LARGE_BYTES


# ---------------------------------------------------------------- what is in a file

EXPANDED_BYTES = 3_000_000 * 1000


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Parquet file of 3 GB: a thousand letters, again and again."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.parquet"
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute(
            f"COPY (SELECT repeat('x', 1000) AS s FROM range({EXPANDED_BYTES // 1000})) TO '{path}' "
            "(FORMAT parquet, ROW_GROUP_SIZE 3_000_000)"
        )
    assert path.stat().st_size < EXPANDED_BYTES / 10_000
    return path


@pytest.mark.parametrize(
    "kept",
    ["list(s)", "string_agg(s)"],
)
def test_a_file_that_unpacks_to_more_than_there_is_memory_fails_the_job_and_says_why(
    bomb: Path, tmp_path: Path, kept: str
) -> None:
    with pytest.raises(LogicError, match=r"^query.sql: Out of Memory Error: failed to allocate data of size") as error:
        unpack(bomb, tmp_path, kept)
    assert "MiB used" in error.value.message
    assert list((tmp_path / "scratch").rglob("*.parquet")) == []


def test_a_file_that_unpacks_without_end_is_read_in_little_memory(bomb: Path, tmp_path: Path) -> None:
    before = resident_mib()
    assert unpack(bomb, tmp_path, "sum(length(s))").outputs[0].rows == 1
    assert resident_mib() < before + EXPANDED_BYTES // MIB // 5


def unpack(bomb: Path, folder: Path, kept: str) -> EngineResult:
    """Run a query that keeps this of the rows."""
    job = job_of(folder, outputs=[JobOutput(output=Output(dataset="attack.bomb"))])
    (Path(job.workspace) / "query.sql").write_text(f"SELECT {kept} AS kept FROM read_parquet('s3://lake/bomb')")
    return query.run(job, LocalInputs({"s3://lake/bomb": bomb}))


# ---------------------------------------------------------------- what it does with a descriptor

ATTEMPTS = 12
KINDS = ("another user", "the worker's user, behind Landlock")


def outcomes(broker: Broker, room: Path, uid: int, uris: list[str], *, walls: bool) -> dict[str, str]:
    """What came of each attempt of a process with this user id, which gets its descriptors from the broker."""
    asked = {"room": str(room), "uid": uid, "uris": uris, "walls": walls}
    program = Path(__file__).with_name("descriptors.py")
    with engine_of(broker) as engine:
        done = subprocess.run(
            [sys.executable, "-I", program, str(engine.socket.fileno()), json.dumps(asked)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            pass_fds=[engine.socket.fileno()],
            timeout=SOON_S,
        )
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture
def place() -> Iterator[Path]:
    """With a cache and a job's room in it, to which any user may come: pytest's own folders are closed."""
    made = Path(tempfile.mkdtemp(prefix="stage-runner-descriptors-"))
    made.chmod(0o755)
    for each in ("room", "room/scratch", "room/logic"):
        (made / each).mkdir()
    yield made
    shutil.rmtree(made)


@pytest.fixture
def uid() -> Iterator[int]:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    with Accounts() as accounts:
        account = accounts.take()
        assert account is not None
        yield account.uid


def _cached(lake: CountedObjects, place: Path, *files: ServedFile) -> Broker:
    """A broker of these files, which an earlier job has read."""
    made = Broker({"input": files}, InputCache(place / "cache", max_bytes=64 * MIB), lake)
    with engine_of(made) as engine:
        for file in files:
            engine.inputs.open(file.uri).read()
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_descriptor_is_for_reading_alone(
    lake: CountedObjects, rows: ServedFile, large: ServedFile, place: Path, uid: int, kind: str
) -> None:
    broker = _cached(lake, place, rows, large)
    _own(place / "room", uid)
    if kind == KINDS[1]:
        if landlock.abi() is None:
            pytest.skip("this kernel has no Landlock")
        _own(place / "cache", uid)
    before = {path: path.read_bytes() for path in (place / "cache").glob("*/*")}
    found = outcomes(broker, place / "room", uid, [rows.uri, large.uri], walls=True)
    assert {name: told for name, told in found.items() if told.startswith("changed")} == {}
    assert len(found) == 2 * ATTEMPTS + 2
    assert [found[f"read {uri}"] for uri in (rows.uri, large.uri)] == ["got it all"] * 2
    assert {path: path.read_bytes() for path in before} == before
    with engine_of(_cached(lake, place, rows, large)) as later:
        assert later.inputs.open(rows.uri).read() == ROWS
        assert later.inputs.open(large.uri).read() == bytes(LARGE_BYTES)


def test_without_walls_the_workers_user_could_change_it(
    lake: CountedObjects, rows: ServedFile, place: Path, uid: int
) -> None:
    """The control, and why jobs share a cache only where children have another user id or Landlock."""
    broker = _cached(lake, place, rows)
    _own(place, uid)
    found = outcomes(broker, place / "room", uid, [rows.uri], walls=False)
    changed = {name.removesuffix(f" {rows.uri}") for name, told in found.items() if told.startswith("changed")}
    assert changed == {
        "change its mode",
        "link it",
        "map it through /proc",
        "truncate through /proc",
        "write by its path",
        "write through /proc",
    }


def test_a_lease_on_a_cached_file_holds_nobody_up(
    lake: CountedObjects, rows: ServedFile, large: ServedFile, place: Path
) -> None:
    """Who may read a file of its own user id can have the kernel make others wait for it, for 45 s each time."""
    broker = _cached(lake, place, rows, large)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    held = [os.open(path, os.O_RDONLY) for path in (place / "cache").glob("*/*")]
    try:
        for each in held:
            fcntl.fcntl(each, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with engine_of(broker) as engine:
            assert engine.inputs.open(rows.uri).read() == ROWS
            assert engine.inputs.open(large.uri).read() == bytes(LARGE_BYTES)
    finally:
        for each in held:
            os.close(each)
        signal.signal(signal.SIGIO, before)


def _own(folder: Path, uid: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, uid)
