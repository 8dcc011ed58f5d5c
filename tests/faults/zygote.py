"""A process that has imported everything and forks workers: each is a real process, and there in no time."""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, NoReturn

from tests.faults.points import Act, trace_of

ROOT = Path(__file__).parents[2]
PATIENCE_S = 90.0
"""Far above what anything here takes on two busy cores: what is not there by then does not come."""
_POLL_S = 0.02
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Order:
    """A worker to be forked: `runner <argv>` in this environment, hurt as `script` says."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: str
    trace: str
    """The file that it writes each moment to that it comes to."""
    script: tuple[Act, ...] = ()
    broken: str | None = None
    """A clause of the product that this worker does without: see `victim.BROKEN`."""
    clock_s: float = 0.0
    """How far its host's clock is off."""


@dataclass
class Worker:
    """A forked worker, as the test that asked for it sees it."""

    pid: int
    order: Order
    _ended: Event = field(default_factory=Event)
    _code: int = 0

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def wait(self, within_s: float = PATIENCE_S) -> int:
        """Its exit code; minus the signal's number where one ended it."""
        if not self._ended.wait(within_s):
            raise AssertionError(f"worker {self.pid}: expected its end within {within_s:.0f} s\n{self.told()}")
        return self._code

    def wait_until_stopped(self, within_s: float = PATIENCE_S) -> bool:
        """Until SIGSTOP has frozen every thread of it; False where it ended instead."""
        give_up_at_s = time.monotonic() + within_s
        while not self.ended:
            if self.is_frozen():
                return True
            if time.monotonic() > give_up_at_s:
                raise AssertionError(f"worker {self.pid}: expected it stopped within {within_s:.0f} s\n{self.told()}")
            time.sleep(_POLL_S)
        return False

    def is_frozen(self) -> bool:
        """Whether SIGSTOP has stopped every thread of it."""
        try:
            stats = [(task / "stat").read_text() for task in Path(f"/proc/{self.pid}/task").iterdir()]
        except OSError:
            return False
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    def signal(self, number: signal.Signals) -> None:
        """Nothing where it is known to have ended."""
        if not self.ended:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> int:
        self.signal(signal.SIGKILL)
        return self.wait()

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    @property
    def moments(self) -> list[str]:
        """Every moment that it has come to, in order."""
        return trace_of(Path(self.order.trace))

    def told(self) -> str:
        """Its log and its way, for the message of a failed test."""
        log = Path(self.order.log)
        text = log.read_text(errors="replace") if log.exists() else "(no log)"
        return f"--- {' '.join(self.order.argv)}, moments: {' '.join(self.moments[-6:])}\n{text[-6000:]}"


class Zygote:
    """The handle on it. Thread-safe: scenarios are played side by side."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "tests.faults.zygote"]
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C.UTF-8",
            "JE_ARROW_MALLOC_CONF": "background_thread:false",  # a thread would not survive a fork
        }
        self._process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._workers: dict[int, Worker] = {}
        self._forked: SimpleQueue[int] = SimpleQueue()
        self._asking, self._noting = Lock(), Lock()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def fork(self, order: Order) -> Worker:
        with self._asking:
            assert self._process.stdin is not None
            document = asdict(order)
            self._process.stdin.write(json.dumps(document).encode() + b"\n")
            self._process.stdin.flush()
            pid = self._forked.get(timeout=PATIENCE_S)
            with self._noting:
                worker = self._workers.setdefault(pid, Worker(pid, order))
                worker.order = order
                if worker.ended:
                    self._workers.pop(pid)
                return worker

    def close(self) -> None:
        """End it, and with it every worker that is still alive."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "forked" in told:
                self._forked.put(told["forked"])
                continue
            with self._noting:
                pid = told["ended"]
                # It may have ended before its asker has noted it.
                worker = self._workers.pop(pid, None)
                if worker is None:
                    worker = self._workers[pid] = Worker(pid, _NO_ORDER)
                worker._code = told["code"]
                worker._ended.set()


_NO_ORDER = Order(argv=(), env={}, log="", trace="")


# ---------------------------------------------------------------- the other side


def main() -> None:
    """Read orders from standard input, a line each; tell of forks and ends on standard output."""
    from tests.faults import victim

    victim.warm_up()
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork takes one thread along, and locks of all"
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a person's ^C ends the test, whose end closes our input
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    alive: set[int] = set()
    rest = b""
    while True:
        ready = {key.fd for key, _ in selector.select()}
        if 0 in ready:
            read = os.read(0, 1 << 16)
            if not read:
                break
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                pid = _fork(json.loads(line), victim.live)
                alive.add(pid)
                _tell({"forked": pid})
        if woken in ready:
            os.read(woken, 1 << 16)
            _reap(alive)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    for pid in alive:
        os.waitpid(pid, 0)


def _reap(alive: set[int]) -> None:
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        alive.discard(pid)
        _tell({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _tell(what: Mapping[str, int]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _fork(order: dict[str, Any], live: Any) -> int:
    pid = os.fork()
    if pid == 0:
        _become(order, live)
    return pid


def _become(order: dict[str, Any], live: Any) -> NoReturn:
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        nothing, log = os.open(os.devnull, os.O_RDONLY), os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        acts = tuple(Act(**each) for each in order.pop("script"))
        live(Order(**{**order, "argv": tuple(order["argv"]), "script": acts}))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter itself would end, with whatever it was
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
