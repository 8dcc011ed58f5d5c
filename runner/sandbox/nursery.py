"""The worker's side of the zygote: starts it, has children forked by it, and sees to their end."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from runner.engines.wire import Wire
from runner.model.errors import InfrastructureError, error_of
from runner.model.manifest import Walls
from runner.model.messages import FROM_ZYGOTE, End, Ended, Failed, Limits, Ready, Start, Started
from runner.model.strict import Strict
from runner.sandbox import walls
from runner.sandbox.accounts import Account

_Message = TypeVar("_Message", bound=Strict)

_WARM_S = 120.0
"""A zygote that is not warm by then never will be: dbt takes 2 s on a quick machine, 20 s on a slow disk."""
_ANSWER_S = 30.0
"""To fork, or to kill and reap, takes milliseconds."""
_GRACE_S = 5.0
"""How long a child that has said its last word may take to end by itself."""


class Nursery:
    """Children for one kind of work, one at a time, in rooms below `scratch`.

    `account` is whom they run as, None for the worker's own user id; `path` is their PATH.
    """

    def __init__(self, kind: str, *, scratch: Path, account: Account | None, path: str) -> None:
        self._kind = kind
        self._scratch = scratch.absolute()
        self._account = account
        self._path = path
        self._zygote: _Zygote | None = None
        self._walls: Walls | None = None

    def prepare(self) -> None:
        """Start a zygote unless one lives; it warms by itself. Raises `InfrastructureError` where walls are lacking."""
        self._living()

    def _living(self) -> _Zygote:
        if self._zygote is not None and self._zygote.lives:
            return self._zygote
        self.close()
        walls.require()
        # Else a child of the worker's own user id could read its memory and its credentials there.
        walls.hide()
        self._scratch.mkdir(parents=True, exist_ok=True)
        if self._account is not None:
            # To pass, and not to list: whatever the umask is, rooms are found by their names alone.
            self._scratch.chmod(0o711)
        own = [str(self._account.uid)] if self._account else []
        self._zygote = _Zygote([self._kind, str(self._scratch), *own], path=self._path)
        return self._zygote

    def ready(self) -> Walls:
        """What keeps children in, once the zygote is warm. Raises `InfrastructureError` where it cannot be."""
        with self._whole() as zygote:
            if self._walls is None:
                self._walls = zygote.expect(Ready, within_s=_WARM_S).walls
        return self._walls

    @contextmanager
    def child(self, room: Path, limits: Limits, secrets: Mapping[str, str]) -> Iterator[Child]:
        """A child that waits for its job, and is gone when this is left. Raises `InfrastructureError` without one."""
        self.ready()
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        told = os.memfd_create("secrets")
        with ours, os.fdopen(reading, "rb") as output, self._whole() as zygote:
            with theirs, os.fdopen(writing, "wb"), os.fdopen(told, "wb", buffering=0) as file:
                file.write(json.dumps(dict(secrets)).encode())
                file.seek(0)
                zygote.owes = True
                zygote.send(Start(room=str(room), limits=limits), descriptors=[theirs.fileno(), writing, told])
                pid = zygote.expect(Started, within_s=_ANSWER_S).pid
            child = Child(zygote, pid, Wire(ours), output)
            try:
                yield child
            except BaseException:  # a signal's too: a job that is handed back leaves no child at work
                child.end()
                raise
            finally:
                child.join()

    def close(self) -> None:
        """End the zygote, and with it a child that it has."""
        zygote, self._zygote, self._walls = self._zygote, None, None
        if zygote is not None:
            zygote.end()

    @contextmanager
    def _whole(self) -> Iterator[_Zygote]:
        """A zygote that did not answer, or whose answer was not waited for, is not asked again."""
        zygote = self._living()
        try:
            yield zygote
        except BaseException as exc:
            if isinstance(exc, _Broken) or zygote.owes:
                self.close()
            raise


class Child:
    """A forked child. `wire` is its socket, `output` what it prints."""

    def __init__(self, zygote: _Zygote, pid: int, wire: Wire, output: IO[bytes]) -> None:
        self.pid = pid
        self.wire = wire
        self.output = output
        self._zygote = zygote
        self._ended: Ended | None = None

    def end(self) -> None:
        """Kill it. For any thread; one that is gone already is no error."""
        with suppress(OSError):
            self._zygote.send(End(pid=self.pid))

    def join(self) -> Ended:
        """How it ended; one that does not end by itself, having said its last word, is killed."""
        if self._ended is None:
            if not self._zygote.heard(within_s=_GRACE_S):
                self.end()
            self._ended = self._zygote.expect(Ended, within_s=_ANSWER_S)
        return self._ended


class _Broken(InfrastructureError):
    """The zygote itself is at fault, or gone."""


class _Zygote:
    """The process and our end of its socket."""

    def __init__(self, arguments: list[str], *, path: str) -> None:
        self.owes = False
        """Whether an answer is on its way that nobody has heard: a signal may come while one waits for it."""
        self._socket, theirs = socket.socketpair()
        self._wire = Wire(self._socket)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-u", "-m", "runner.sandbox.zygote", str(theirs.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # No credential can come to a process by an environment that has none.
                env={"PATH": path, "LANG": "C.UTF-8", "TZ": "UTC", "TMPDIR": arguments[1]},
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the worker, which then hands its job back
            )
        self.end = weakref.finalize(self, _end, self._process, self._socket)

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def send(self, message: Strict, *, descriptors: list[int] | None = None) -> None:
        try:
            self._wire.send(message, descriptors=descriptors or ())
        except OSError as exc:
            raise self._gone() from exc

    def heard(self, *, within_s: float) -> bool:
        """Whether it has said something, or has ended."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(within_s * 1000))

    def expect(self, kind: type[_Message], *, within_s: float) -> _Message:
        self.owes = True
        if not self.heard(within_s=within_s):
            raise _Broken(f"zygote: expected its {kind.__name__} within {within_s:.0f} s, got nothing")
        try:
            raw, _ = self._wire.receive()
        except (EOFError, OSError) as exc:
            raise self._gone() from exc
        self.owes = False
        message: Any = FROM_ZYGOTE.validate_json(raw)
        if isinstance(message, Failed):
            raise error_of(message.failure)
        if not isinstance(message, kind):
            raise _Broken(f"zygote: expected its {kind.__name__}, got {message.type}")
        return message

    def _gone(self) -> _Broken:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_GRACE_S)
        return _Broken(f"zygote: expected a warm process, got its end with code {self._process.poll()}")


def _end(process: subprocess.Popen[bytes], sock: socket.socket) -> None:
    """Its socket's end is its own; a child of it ends by the kernel's word (PR_SET_PDEATHSIG)."""
    sock.close()
    try:
        process.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
