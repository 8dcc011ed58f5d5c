"""dbt in children of a warm process, as a worker has it run but without walls; and of a cold one, to compare with."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import synchronize
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

from runner.engines import dbt
from runner.model.errors import RunnerError
from runner.model.messages import EngineResult, Job
from tests.support.engine_inputs import LocalInputs

_ROOT = Path(__file__).parents[2]
# At the end, for the root has a folder `dbt`. A warm-up that hangs is to show where.
_SERVE = (
    "import faulthandler, sys; faulthandler.dump_traceback_later(300, exit=True); "
    f"sys.path.append({str(_ROOT)!r}); from tests.support.warm_dbt import serve; serve(warm='warm' in sys.argv)"
)


@dataclass(frozen=True)
class State:
    """What a process has beside its modules."""

    threads: int
    """The kernel's count; DuckDB's memory allocator has one of its own, which knows about forks."""
    files: tuple[str, ...]
    folder: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    code: int
    """The child's exit status: 0 unless it died."""
    said: tuple[str, ...] = ()
    printed: str = ""
    result: EngineResult | None = None
    failure: str | None = None
    kept: str | None = None
    """The file that a parse left."""


class Children:
    """One process, that each order is done in a fork of."""

    def __init__(self, *, warm: bool) -> None:
        environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "TZ": "UTC"}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _SERVE, *(["warm"] if warm else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        try:
            self.before, self.after = (State(**each) for each in self._hear())
        except BaseException:
            self.close()
            raise
        """What the process had once everything was imported that is not dbt's, and once it was warm."""

    def run(self, job: Job, files: Mapping[str, Path] | None = None) -> Answer:
        return self._order("run", job, files or {})

    def parse(self, job: Job) -> Answer:
        return self._order("parse", job, {})

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def _order(self, do: Literal["run", "parse"], job: Job, files: Mapping[str, Path]) -> Answer:
        assert self._process.stdin is not None
        named = {uri: str(path) for uri, path in files.items()}
        print(json.dumps([do, job.to_json(), named]), file=self._process.stdin, flush=True)
        answer = self._hear()
        result = answer.pop("result", None)
        return Answer(**answer, result=EngineResult.model_validate_json(json.dumps(result)) if result else None)

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the process ended with {self._process.wait()}"
        return json.loads(line)


def serve(*, warm: bool) -> None:
    before = _state()
    if warm:
        # A child has no /dev/shm and may start no process: nobody is to want a lock that works between processes.
        synchronize.SemLock.__init__ = _refused  # type: ignore[method-assign]
        for _ in dbt.warm():
            pass
        gc.collect()
        gc.freeze()
    print(json.dumps([before, _state()]), flush=True)
    for line in sys.stdin:
        do, job, files = json.loads(line)
        reading, writing = os.pipe()
        printed = os.memfd_create("printed")
        pid = os.fork()
        if pid == 0:
            os.dup2(printed, 1)
            _live(do, Job.model_validate_json(job), files, os.fdopen(writing, "w"))
        os.close(writing)
        with os.fdopen(reading) as told:
            answer = json.loads(told.read() or "{}")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        text = os.pread(printed, 1 << 20, 0).decode()
        os.close(printed)
        print(json.dumps({**answer, "code": code, "printed": text}), flush=True)


def _refused(*_: object, **__: object) -> None:
    raise AssertionError("expected no lock between processes, got one")


def _live(do: str, job: Job, files: Mapping[str, str], told: IO[str]) -> NoReturn:
    code = 1
    try:
        os.environ["HOME"] = job.scratch
        inputs = LocalInputs({uri: Path(path) for uri, path in files.items()})
        answer: dict[str, Any] = {}
        try:
            if do == "run":
                answer["result"] = json.loads(dbt.run(job, inputs).to_json())
            else:
                path = dbt.parse(job, inputs)
                answer["kept"] = str(path) if path else None
        except RunnerError as error:
            answer["failure"] = error.failure.message
        told.write(json.dumps({**answer, "said": inputs.said}))
        told.flush()
        code = 0
    except BaseException:  # noqa: BLE001 - a fork must not go on with its parent's work, whatever it met
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _state() -> dict[str, Any]:
    files = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir() if each.exists()]
    return {
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "files": sorted(each for each in files if not each.startswith("/proc/")),
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
    }
