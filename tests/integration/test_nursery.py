"""The zygote and its children as processes: what they are started with and survive, and that nothing is left."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.adapters.sandbox_engine import SandboxEngine
from runner.engines.wire import Wire
from runner.model.errors import InfrastructureError
from runner.model.messages import Job, JobOutput, Limits, Stamp
from runner.model.spec import Output, QueryWork, Resources
from runner.sandbox import walls, zygote
from runner.sandbox.accounts import Accounts
from runner.sandbox.handover import give
from runner.sandbox.nursery import Nursery
from tests.support.engine_inputs import STAMP
from tests.support.twins import MemoryObjects

LIMITS = Limits(cpu_s=60, data_bytes=1 << 30, file_bytes=1 << 30, open_files=256)
PATIENCE_S = 60


@pytest.fixture
def accounts() -> Iterator[Accounts]:
    with Accounts() as made:
        yield made


@pytest.fixture
def nursery(tmp_path: Path, accounts: Accounts) -> Iterator[Nursery]:
    made = Nursery("query", scratch=tmp_path / "scratch", account=accounts.take(), path=os.defpath)
    yield made
    made.close()


@pytest.fixture
def engine(nursery: Nursery, tmp_path: Path) -> SandboxEngine:
    return SandboxEngine(
        nursery, MemoryObjects(), account=nursery._account, cache=tmp_path / "cache", max_input_bytes=1 << 20
    )


def room(nursery: Nursery, name: str = "room") -> Path:
    made = nursery._scratch / name
    for part in ("logic", "scratch/out"):
        (made / part).mkdir(parents=True)
    give(made, to=nursery._account)
    return made


def job(at: Path, sql: str, stamp: Stamp = STAMP) -> Job:
    (at / "logic/q.sql").write_text(sql)
    return Job(
        work=QueryWork(kind="query", file="q.sql"),
        inputs=(),
        outputs=(JobOutput(output=Output(dataset="marts.one")),),
        workspace=str(at / "logic"),
        scratch=str(at / "scratch"),
        resources=Resources(memory_mib=1024),
        stamp=stamp,
    )


def rows(engine: SandboxEngine, at: Path, sql: str = "SELECT 1 AS one") -> int | None:
    result = engine.execute(job(at, sql), served={}, secrets={}, say=lambda _: None).result
    assert result.failure is None, result.failure
    return result.outputs[0].rows


def gone(pid: int) -> None:
    """Waits for a process that is not ours to wait for."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(PATIENCE_S * 1000), f"process {pid} goes on"
    finally:
        os.close(descriptor)


def pid_of(nursery: Nursery) -> int:
    assert nursery._zygote is not None
    return nursery._zygote._process.pid


def test_one_zygote_forks_child_after_child(nursery: Nursery, engine: SandboxEngine) -> None:
    assert [rows(engine, room(nursery, str(number))) for number in range(5)] == [1] * 5
    first = pid_of(nursery)
    assert rows(engine, room(nursery, "last")) == 1
    assert pid_of(nursery) == first


def test_it_is_started_without_anything_of_the_workers_environment(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    nursery.ready()
    environment = subprocess.run(
        ["cat", f"/proc/{pid_of(nursery)}/environ"], capture_output=True, check=os.geteuid() == 0
    ).stdout
    # An ordinary user may not even look, for it is hidden.
    names = {entry.partition(b"=")[0] for entry in environment.split(b"\0") if entry}
    assert names == ({b"PATH", b"LANG", b"TZ", b"TMPDIR"} if os.geteuid() == 0 else set())


def test_a_zygote_that_was_killed_is_followed_by_another(nursery: Nursery, engine: SandboxEngine) -> None:
    assert rows(engine, room(nursery, "before")) == 1
    killed = pid_of(nursery)
    os.kill(killed, signal.SIGKILL)
    gone(killed)
    assert rows(engine, room(nursery, "after")) == 1
    assert pid_of(nursery) != killed


def test_a_child_whose_zygote_is_killed_ends_and_the_job_may_be_tried_again(nursery: Nursery) -> None:
    def killed() -> None:
        with nursery.child(room(nursery), LIMITS, {}) as child:
            os.kill(pid_of(nursery), signal.SIGKILL)
            gone(child.pid)
            seen.append("gone")

    seen: list[str] = []
    with pytest.raises(InfrastructureError, match="zygote: expected"):
        killed()
    assert seen == ["gone"]


def test_a_child_that_is_ended_by_another_thread_leaves_the_zygote_for_the_next(
    nursery: Nursery, engine: SandboxEngine
) -> None:
    with nursery.child(room(nursery, "ended"), LIMITS, {}) as child:
        child.end()
        assert child.join().code == -signal.SIGKILL
        child.end()  # late: it must not hit the next one
    assert rows(engine, room(nursery, "next")) == 1


def test_a_worker_that_is_interrupted_while_it_asks_gets_another_zygote(
    nursery: Nursery, engine: SandboxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal may come between the question and its answer, which then waits in the socket for whoever asks next."""
    assert rows(engine, room(nursery, "before")) == 1
    interrupted = pid_of(nursery)
    receive = Wire.receive

    def stopped(self: Wire, *arguments: int, **given: int) -> tuple[bytes, tuple[int, ...]]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Wire, "receive", stopped)
    with pytest.raises(KeyboardInterrupt):
        rows(engine, room(nursery, "interrupted"))
    monkeypatch.setattr(Wire, "receive", receive)
    gone(interrupted)
    assert rows(engine, room(nursery, "after")) == 1


WORKER = """
import json, os, sys
from pathlib import Path
from runner.model.messages import Limits
from runner.sandbox.accounts import Accounts
from runner.sandbox.handover import give
from runner.sandbox.nursery import Nursery
scratch = Path(sys.argv[1])
account = Accounts().take()
nursery = Nursery("query", scratch=scratch, account=account, path=os.defpath)
room = scratch / "room"
for part in ("logic", "scratch"):
    (room / part).mkdir(parents=True)
give(room, to=account)
limits = Limits(cpu_s=60, data_bytes=1 << 30, file_bytes=1 << 30, open_files=256)
with nursery.child(room, limits, {}) as child:
    print(json.dumps([nursery._zygote._process.pid, child.pid]), flush=True)
    input()
"""


def test_zygote_and_child_end_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    command = [sys.executable, "-c", WORKER, str(tmp_path / "scratch")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        pids = json.loads(worker.stdout.readline())
        worker.kill()
    for pid in pids:
        gone(pid)


def test_what_a_child_left_running_is_killed_though_it_is_a_daemon() -> None:
    """No walled child can start one: here it is started by a process that has the zygote's part."""
    (began, begins), (told, tells) = os.pipe(), os.pipe()
    adopter = os.fork()
    if adopter == 0:
        walls.adopt_orphans()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(tells, str(os.getpid()).encode())
                os.write(begins, b"!")
                while True:
                    signal.pause()
            os._exit(0)
        os.wait()
        os.read(began, 1)
        ended = zygote._end_orphans()
        os.write(tells, f" {ended}".encode())
        os._exit(0)
    os.close(tells)
    os.waitpid(adopter, 0)
    with os.fdopen(told) as words:
        daemon, killed = words.read().split()
    for descriptor in (began, begins):
        os.close(descriptor)
    assert killed == "1"
    with pytest.raises(ProcessLookupError):
        os.kill(int(daemon), 0)
