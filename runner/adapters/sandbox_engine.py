"""Runs an engine in a child process of its own, without credentials, and brokers what it reads."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread, Timer
from typing import IO

from runner.engines.wire import Wire
from runner.log import printable
from runner.model.errors import InfrastructureError, LogicError, error_of
from runner.model.messages import EngineResult, Failed, Job, Progress
from runner.model.policy import POLICY
from runner.model.spec import DbtWork
from runner.ports import Execution, Objects, ServedFile
from runner.sandbox.broker import Broker

_LAST_LINES = 20
_GRACE_S = 5.0


class SandboxEngine:
    """`Engine` for stages whose work is analysts' logic: load, transform, query."""

    def __init__(self, objects: Objects, *, path: str) -> None:
        self._objects = objects
        self._path = path
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def execute(
        self, job: Job, *, served: Mapping[str, Sequence[ServedFile]], say: Callable[[Progress], None]
    ) -> Execution:
        """Raises `InfrastructureError` where the child died, `LogicError` where its time ran out."""
        scratch = Path(job.scratch)
        broker = Broker(served, lambda uri: self._fetch(uri, scratch.parent / "inputs"))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._stopped = False
            child = self._child = self._start(job, scratch, theirs)
            theirs.close()
            tail = _Tail(child, say)
            limit = _TimeLimit(child, job.resources.timeout_s)
            try:
                wire = Wire(ours)
                wire.send(job)
                ended = broker.serve(wire, say)
            except (EOFError, BrokenPipeError, ConnectionResetError) as exc:
                if self._stopped:
                    raise InfrastructureError("engine: expected a result, got told to stop") from exc
                raise limit.error() if limit.passed else _died(child, tail) from exc
            finally:
                self._child = None
                limit.cancel()
                _end(child)
                tail.join()
        if not isinstance(ended, Failed):
            return Execution(result=ended.result, reads=broker.reads)
        if POLICY[ended.failure.category].retry:
            raise error_of(ended.failure)
        # A failure for good still has steps and reads that the record should show.
        result = EngineResult(outputs=(), steps=ended.steps, packages={}, claims_known=False, failure=ended.failure)
        return Execution(result=result, reads=broker.reads)

    def stop(self) -> None:
        child = self._child
        if child is not None:
            # Set first: the kill is what wakes the one who looks.
            self._stopped = True
            _kill(child)

    def _start(self, job: Job, scratch: Path, theirs: socket.socket) -> subprocess.Popen[bytes]:
        temporary = scratch / "tmp"
        temporary.mkdir(exist_ok=True)
        environment = {
            "PATH": self._path,
            "HOME": str(scratch),
            "TMPDIR": str(temporary),
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "PYTHONUNBUFFERED": "1",
        }
        if isinstance(job.work, DbtWork):
            environment |= job.work.env
        return subprocess.Popen(
            [sys.executable, "-I", "-m", "runner.sandbox.child", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=scratch,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )

    def _fetch(self, uri: str, cache: Path) -> Path:
        """Each file is immutable, so its URI is its version."""
        cache.mkdir(exist_ok=True)
        path = cache / hashlib.sha256(uri.encode()).hexdigest()
        if not path.exists():
            self._objects.get_file(uri.removeprefix(self._objects.uri("")), path)
        return path


class _TimeLimit:
    """Kills the child when its wall-clock time is up."""

    def __init__(self, child: subprocess.Popen[bytes], seconds: int) -> None:
        self.passed = False
        self._child = child
        self._seconds = seconds
        self._timer = Timer(seconds, self._end)
        self._timer.start()

    def _end(self) -> None:
        # Set first: the kill is what wakes the one who looks.
        self.passed = True
        _kill(self._child)

    def cancel(self) -> None:
        self._timer.cancel()

    def error(self) -> LogicError:
        return LogicError(
            f"expected the work to end within {self._seconds:,} s, got no end", hint="raise resources.timeout_s"
        )


class _Tail:
    """Passes the child's output on to the run's log, line by line, and keeps its end for a child that dies."""

    def __init__(self, child: subprocess.Popen[bytes], say: Callable[[Progress], None]) -> None:
        self.lines: list[str] = []
        self._say = say
        self._thread = Thread(target=self._read, args=(child.stdout,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                line = printable(raw.decode(errors="replace").rstrip())
                if line:
                    self.lines = [*self.lines[-_LAST_LINES:], line]
                    self._say(Progress(level="debug", message=line))

    def join(self) -> None:
        self._thread.join(timeout=_GRACE_S)


def _end(child: subprocess.Popen[bytes]) -> None:
    """The child ends with the job, and its process group with it."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(timeout=_GRACE_S)
    _kill(child)
    child.wait()


def _kill(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _died(child: subprocess.Popen[bytes], tail: _Tail) -> InfrastructureError:
    code = child.wait(timeout=_GRACE_S)
    tail.join()
    last = f"; it last said: {tail.lines[-1]}" if tail.lines else ""
    if code < 0:
        name = signal.Signals(-code).name
        hint = "out of memory? raise resources.memory_mib" if -code == signal.SIGKILL else None
        return InfrastructureError(f"engine: expected a result, got its process killed by {name}{last}", hint=hint)
    return InfrastructureError(f"engine: expected a result, got its process ended with code {code}{last}")
