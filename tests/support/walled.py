"""A stand-in for the zygote: forks a child for each attempt, raises walls round it or not, and tells what came of it.

The tests' side is `Yard`. The other is this file run as a program, so that what forks has one thread.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from runner.model.errors import RunnerError
from runner.model.messages import Limits
from runner.sandbox import kernel, landlock, mounts, seccomp, walls
from runner.sandbox.accounts import Account, Accounts

LIMITS = Limits(cpu_s=60, data_bytes=2 << 30, file_bytes=1 << 30, open_files=512)
_PR_SET_NO_NEW_PRIVS = 38


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one attempt went."""

    value: Any = None
    """What it returned, as JSON brings it."""
    errno: int | None = None
    """Of the `OSError` that it ended with."""
    error: str | None = None
    """The exception that it ended with: its type and message."""
    ended: int
    """The child's exit code, negative for a signal."""


class Yard:
    """`uid` is what the yard itself runs as, None for the caller's; `account` is what its children run as, if another.

    Attempts are functions of the test's module that import what they use; they run in the folder `room`, of which
    `logic` and `scratch` may be written behind walls.
    """

    def __init__(
        self, room: Path, *, uid: int | None = None, account: int | None = None, warm: Sequence[str] = ()
    ) -> None:
        for folder in (room, room / "logic", room / "scratch"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
            if uid is not None or account is not None:
                os.chown(folder, account or uid or 0, account or uid or 0)
        self.room = room
        self.account = account or 0
        setup = {"room": str(room), "uid": uid, "account": account, "warm": list(warm)}
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, json.dumps(setup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", "TZ": "UTC", "LANG": "C.UTF-8", "SECRET": "of the yard"},
            text=True,
        )
        ready = self._answer()
        assert "pid" in ready, f"the yard did not come up: {ready}"
        self.pid: int = ready["pid"]

    def attempt(
        self,
        function: Callable[..., object],
        *arguments: object,
        behind: str = "walls",
        limits: Limits = LIMITS,
    ) -> Outcome:
        """Try it in a fresh child. Behind `nothing` it has the same user id and no wall: the control."""
        self.begin(function, *arguments, behind=behind, limits=limits)
        return Outcome(**self._answer())

    def begin(
        self, function: Callable[..., object], *arguments: object, behind: str = "walls", limits: Limits = LIMITS
    ) -> None:
        """As `attempt`, and does not wait for what comes of it."""
        source = textwrap.dedent(inspect.getsource(function))
        asked = {
            "source": source,
            "name": function.__name__,
            "arguments": arguments,
            "behind": behind,
            "limits": limits.model_dump(),
        }
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()

    def _answer(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        assert line, f"the yard ended: {self._process.wait(timeout=10)}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Yard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


KINDS = ("own", "worker")
"""Children with a user id of their own, which takes root; and with that of an ordinary user's worker."""


@contextmanager
def open_yard(kind: str, *, warm: Sequence[str] = ()) -> Iterator[Yard]:
    """Skips the test where only root could have one of that kind."""
    root = os.geteuid() == 0
    if kind == "own" and not root:
        pytest.skip("only root may give a child another user id")
    folder = Path(tempfile.mkdtemp(prefix="stage-runner-yard-"))
    folder.chmod(0o755)
    try:
        with Accounts() as accounts:
            taken = accounts.take()
            uid = taken.uid if taken else None
            given = {"account": uid} if kind == "own" else {"uid": uid}
            with Yard(folder, **given, warm=warm) as yard:
                yield yard
    finally:
        shutil.rmtree(folder)


# ---------------------------------------------------------------- the program


def main() -> None:
    setup = json.loads(sys.argv[1])
    room, uid, account = Path(setup["room"]), setup["uid"], setup["account"]
    walls.adopt_orphans()
    own = Account(uid=account, gid=account) if account is not None else None
    for each in {account, uid} - {None}:
        mounts.reach((room, *walls.needed_folders()), Account(uid=each, gid=each))
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    for name in setup["warm"]:
        __import__(name)
    walls.hide()
    _say({"pid": os.getpid()})
    for line in sys.stdin:
        _say(_fork(json.loads(line), room, own))


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _fork(asked: dict[str, Any], room: Path, account: Account | None) -> dict[str, Any]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Whatever comes, it must not go on as a second yard.
        try:
            os.close(reading)
            told = _try(asked, room, account)
            with os.fdopen(writing, "w", encoding="utf-8") as out:
                json.dump(told, out)
            os._exit(0)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(99)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as answer:
        said = answer.read()
    _, status = os.waitpid(pid, 0)
    ended = os.waitstatus_to_exitcode(status)
    return {**(json.loads(said) if said and ended == 0 else {}), "ended": ended}


def _try(asked: dict[str, Any], room: Path, account: Account | None) -> dict[str, Any]:
    pid = os.getpid()
    try:
        os.chdir(room)
        _raise(asked["behind"], room, account, Limits(**asked["limits"]))
        scope: dict[str, Any] = {}
        exec(asked["source"], scope)  # noqa: S102 - a test's own function
        value = scope[asked["name"]](*asked["arguments"])
    except OSError as error:
        return {"errno": error.errno, "error": f"{type(error).__name__}: {error}"}
    except RunnerError as error:
        return {"error": f"{type(error).__name__}: {error.message}"}
    except Exception as error:  # noqa: BLE001 - what an attempt raises is what came of it
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        if os.getpid() != pid:
            os._exit(0)  # an attempt that forked, and is not for telling so twice
    return {"value": value}


def _raise(behind: str, room: Path, account: Account | None, limits: Limits) -> None:
    """`walls`: all of them; `filter` or `landlock:VERSION[:READABLE]`: that one alone; `nothing`: the user id.

    `the yard's rights`: not even that, so as root where the yard is.
    """
    if behind == "the yard's rights":
        return
    writable = [room / "logic", room / "scratch"]
    if behind == "walls":
        walls.raise_walls(readable=walls.needed_folders(), writable=writable, limits=limits, account=account)
        return
    if account is not None:
        os.setgroups([])
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    if behind == "nothing":
        return
    kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if behind == "filter":
        seccomp.install()
        return
    _, version, *more = behind.split(":")
    readable = (*walls.needed_folders(), *(room / each for each in more))
    landlock.restrict(int(version), readable=readable, writable=(*writable, Path(os.devnull)))


if __name__ == "__main__":
    main()
