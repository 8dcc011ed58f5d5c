"""The child: one job, behind walls, with one socket. It is forked by the zygote and ends with its job."""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from runner.engines.inputs import BrokeredInputs
from runner.engines.wire import Wire
from runner.model.errors import Category, Failure, RunnerError
from runner.model.messages import TO_ENGINE, Done, EngineResult, Failed, Job, Parse, Start
from runner.sandbox import walls
from runner.sandbox.accounts import Account

_SOCKET, _SECRETS = 3, 4
"""Where a child finds its descriptors, so that all others can be closed."""


def live(start: Start, engine: ModuleType, account: Account | None, zygote: int, *descriptors: int) -> NoReturn:
    """All of a child's life. It never returns into the zygote's code, whatever happens."""
    code = 1
    try:
        _take_over(*descriptors)
        _move_in(start, account)
        if os.getppid() != zygote:
            raise SystemExit("expected a zygote that lives, got one that ended before it would have ended this child")
        _work(engine)
        code = 0
    except BaseException:  # noqa: BLE001 - the worker sees a child that ended without a result, and what it said last
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _take_over(channel: int, output: int, secrets: int) -> None:
    """Of what the zygote has open, only these are the child's."""
    os.setsid()
    high = [fcntl.fcntl(each, fcntl.F_DUPFD, 2 * _SECRETS) for each in (channel, output, secrets)]
    silence = os.open(os.devnull, os.O_RDONLY)
    for source, target in zip((silence, high[1], high[1], high[0], high[2]), range(5), strict=True):
        os.dup2(source, target, inheritable=False)
    os.closerange(_SECRETS + 1, os.sysconf("SC_OPEN_MAX"))


def _move_in(start: Start, account: Account | None) -> None:
    room = Path(start.room)
    os.chdir(room)
    scratch = room / "scratch"
    temporary = scratch / "tmp"
    os.environ |= {"HOME": str(scratch), "TMPDIR": str(temporary)}
    tempfile.tempdir = None  # the zygote's own is remembered there
    random.seed()
    if "numpy" in sys.modules:
        # It would draw the same numbers in every child.
        sys.modules["numpy"].random.seed()
    walls.raise_walls(
        writable=(scratch, room / "logic"),
        readable=walls.needed_folders(),
        limits=start.limits,
        account=account,
    )
    temporary.mkdir(exist_ok=True)


def _work(engine: ModuleType) -> None:
    wire = Wire(socket.socket(fileno=_SOCKET))
    with open(_SECRETS, "rb") as file:
        secrets: dict[str, str] = json.load(file)
    raw, _ = wire.receive()
    asked = TO_ENGINE.validate_json(raw)
    if not isinstance(asked, Job | Parse):
        raise SystemExit(f"expected a job as the first message, got {asked.type}")
    inputs = BrokeredInputs(wire, secrets)
    try:
        if isinstance(asked, Parse):
            os.chdir(asked.job.workspace)
            engine.parse(asked.job, inputs)
            result = EngineResult(outputs=(), steps=(), packages={})
        else:
            os.chdir(asked.workspace)
            result = engine.run(asked, inputs)
        wire.send(Done(result=result))
    except RunnerError as error:
        wire.send(Failed(failure=error.failure))
    except MemoryError:
        message = "expected the work to be content with its memory, got none left"
        wire.send(Failed(failure=Failure(category=Category.LOGIC, message=message, hint="raise resources.memory_mib")))
    except Exception as error:  # noqa: BLE001 - whatever the analysts' code raises has to arrive as a failure with its reason
        traceback.print_exc()
        wire.send(Failed(failure=Failure(category=Category.LOGIC, message=f"{type(error).__name__}: {error}")))
