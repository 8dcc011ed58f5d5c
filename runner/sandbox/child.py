"""The child process: one job, no credentials, one inherited socket. `python -I -m runner.sandbox.child FD`."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable

from runner.engines.inputs import BrokeredInputs, Inputs
from runner.engines.wire import Wire
from runner.model.errors import Category, Failure, RunnerError
from runner.model.messages import TO_ENGINE, Done, EngineResult, Failed, Job

ENGINES = {"load": "runner.engines.load", "dbt": "runner.engines.dbt", "query": "runner.engines.query"}
"""Imported by need: a query never imports dbt."""


_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the kernel sends this process when its parent ends."""


def main() -> None:
    _end_with_the_worker()
    wire = Wire(socket.socket(fileno=int(sys.argv[1])))
    raw, _ = wire.receive()
    job = TO_ENGINE.validate_json(raw)
    if not isinstance(job, Job):
        raise SystemExit(f"expected a job as the first message, got {job.type}")
    try:
        os.chdir(job.workspace)
        run: Callable[[Job, Inputs], EngineResult] = importlib.import_module(ENGINES[job.work.kind]).run
        wire.send(Done(result=run(job, BrokeredInputs(wire))))
    except RunnerError as error:
        wire.send(Failed(failure=error.failure))
    except Exception as error:  # noqa: BLE001 - whatever the analysts' code raises has to arrive as a failure with its reason
        traceback.print_exc()
        wire.send(Failed(failure=Failure(category=Category.LOGIC, message=f"{type(error).__name__}: {error}")))


def _end_with_the_worker() -> None:
    """A worker that is killed cannot end its child. Linux only; elsewhere the child ends at its next word to it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
