"""The zygote: a warm process without credentials that forks a child for each job.

`python -I -m runner.sandbox.zygote SOCKET KIND SCRATCH [UID]`, with an environment that holds no secret. To import dbt
and let it come up takes longer than most jobs do; a fork has all that already.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.engines.wire import Wire
from runner.model.errors import RunnerError
from runner.model.manifest import Walls
from runner.model.messages import TO_ZYGOTE, End, Ended, Failed, Ready, Started
from runner.sandbox import child, mounts, walls
from runner.sandbox.accounts import Account

ENGINES = {"load": "runner.engines.load", "dbt": "runner.engines.dbt", "query": "runner.engines.query"}
"""By kind of work. Imported by need: a query never imports dbt."""


def main() -> None:
    fd, kind, scratch, *uid = sys.argv[1:]
    account = Account(uid=int(uid[0]), gid=int(uid[0])) if uid else None
    wire = Wire(socket.socket(fileno=int(fd)))
    try:
        support = _prepare(Path(scratch), account)
        engine = importlib.import_module(ENGINES[kind])
        steps: Iterator[None] = engine.warm()
        next(steps, None)
        _keep()
        wire.send(Ready(walls=Walls(landlock=support.landlock, account="own" if account else "worker")))
        # The worker's end is the zygote's.
        with suppress(EOFError, OSError):
            # A job that waits is served first; the rest of the steps makes those quicker that come later.
            for _ in steps:
                while _asked(int(fd)):
                    _serve(wire, int(fd), engine, account)
            _keep()
            while True:
                _serve(wire, int(fd), engine, account)
    except RunnerError as error:
        wire.send(Failed(failure=error.failure))
    # What is warm has nothing to say at its end, and would take a while to.
    os._exit(0)


def _prepare(scratch: Path, account: Account | None) -> walls.Support:
    """What has to be before any child is."""
    walls.hide()
    walls.adopt_orphans()
    support = walls.require()
    if account is not None:
        mounts.reach((scratch, *walls.needed_folders()), account)
    return support


def _keep() -> None:
    """What is warm stays: a child that collected it would copy every page of it."""
    gc.collect()
    gc.freeze()


def _asked(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _serve(wire: Wire, fd: int, engine: Any, account: Account | None) -> None:
    """One child from start to end. Raises `EOFError` or `OSError` where the worker is gone."""
    raw, descriptors = wire.receive()
    message = TO_ZYGOTE.validate_json(raw)
    if isinstance(message, End):
        return  # it crossed with the child's own end
    own = os.getpid()
    pid = os.fork()
    if pid == 0:
        child.live(message, engine, account, own, *descriptors)
    for each in descriptors:
        os.close(each)
    ended = False
    try:
        wire.send(Started(pid=pid))
        code = _watch(wire, fd, pid)
        ended = True
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
        left = _end_orphans()
    wire.send(Ended(code=code, left_running=left))


def _watch(wire: Wire, fd: int, pid: int) -> int:
    """How the child ended; kills it where the worker says so."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if pidfd in ready:
                _, status = os.waitpid(pid, 0)
                return os.waitstatus_to_exitcode(status)
            raw, _ = wire.receive()
            if TO_ZYGOTE.validate_json(raw) == End(pid=pid):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def _end_orphans() -> int:
    """Kill and reap whatever is left below this process: what a child started became ours when the child ended."""
    ended = 0
    while True:
        try:
            reaped, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if reaped:
            continue
        for pid in _children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                ended += 1
            os.waitpid(pid, 0)


def _children() -> list[int]:
    """This process's own children, by the kernel's list of all processes."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # one that ended meanwhile
            # The name in parentheses may hold anything, parentheses too.
            parent = stat.read_text("utf-8", errors="replace").rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    main()
