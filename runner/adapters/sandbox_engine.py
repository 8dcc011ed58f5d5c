"""Runs an engine in a walled child process of its own, brokers what it reads, and takes over what it leaves."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Thread
from typing import IO

from runner.engines.dbt_parse import MAX_PARSED_BYTES, PARSED, parse_key
from runner.log import printable
from runner.model.errors import InfrastructureError, LogicError, RunnerError, error_of
from runner.model.messages import Done, Ended, EngineResult, Failed, Job, Limits, Parse, Progress
from runner.model.policy import POLICY
from runner.model.redaction import Redaction
from runner.model.spec import Resources
from runner.ports import Execution, Objects, ServedFile
from runner.sandbox.accounts import Account
from runner.sandbox.broker import Broker
from runner.sandbox.handover import give, require_plain
from runner.sandbox.input_cache import InputCache
from runner.sandbox.nursery import Child, Nursery
from runner.sandbox.parse_cache import ParseCache
from runner.sandbox.watch import Bounds, Watch

_LAST_LINES = 20
_LONGEST_LINE_BYTES = 16 * 1024
_MOST_OUTPUT_BYTES = 16 * 1024 * 1024
_GRACE_S = 5.0
_MIB = 1024 * 1024
_CPU_SHARE = 2
"""Of the processors that it was given, for Python's threads beside DuckDB's; wall-clock time is what ends most."""
_OPEN_FILES = 4096
"""More than a partitioned output and a table of many files take; far fewer than would starve the machine."""


class SandboxEngine:
    """`Engine` for stages whose work is analysts' logic: load, transform, query."""

    def __init__(
        self, nursery: Nursery, objects: Objects, *, account: Account | None, cache: Path, max_input_bytes: int
    ) -> None:
        """`cache` is a folder for what survives jobs, of which inputs take up to `max_input_bytes`."""
        self._nursery = nursery
        self._objects = objects
        self._account = account
        self._cache = cache
        self._max_input_bytes = max_input_bytes
        self._inputs: InputCache | None = None
        self._parses = ParseCache(cache / "parsed")
        self._child: Child | None = None
        self._stopped = False

    def prepare(self) -> None:
        self._nursery.prepare()

    def close(self) -> None:
        self._nursery.close()
        inputs, self._inputs = self._inputs, None
        if inputs is not None:
            inputs.close()

    def execute(
        self,
        job: Job,
        *,
        served: Mapping[str, Sequence[ServedFile]],
        secrets: Mapping[str, str],
        say: Callable[[Progress], None],
    ) -> Execution:
        """Raises what a retry may help with: `InfrastructureError` where the child died, or what it said itself."""
        scratch = Path(job.scratch)
        room = scratch.parent
        walls = self._nursery.ready()
        self._stopped = False
        # Who has the worker's user id, and no Landlock, could write to what later jobs get.
        may_keep = walls.account == "own" or walls.landlock is not None
        with self._inputs_for(room, job.resources, may_keep=may_keep) as inputs:
            key = parse_key(job, repo=job.repo, packages=job.packages) if may_keep else None
            parsed = self._parses.get(key) if key else None
            if parsed:
                (scratch / PARSED).write_bytes(parsed)
            give(room, to=self._account)
            if key and parsed is None:
                self._parse(job, key, inputs, say)
            broker = Broker(served, inputs, self._objects)
            ended = self._carry(job, job.resources, room, broker, secrets, say)
        if isinstance(ended, Done):
            named = [scratch / "out" / file.path for output in ended.result.outputs for file in output.files]
            named += [scratch / "artifacts" / name for name in ended.result.artifacts]
            require_plain(scratch, named, of=self._account)
            return Execution(result=_as_known(ended.result), reads=broker.reads, walls=walls)
        if POLICY[ended.failure.category].retry:
            raise error_of(ended.failure)
        # A failure for good still has steps and reads that the record should show.
        result = EngineResult(outputs=(), steps=ended.steps, packages={}, claims_known=False, failure=ended.failure)
        return Execution(result=result, reads=broker.reads, walls=walls)

    def _carry(
        self,
        message: Job | Parse,
        resources: Resources,
        room: Path,
        broker: Broker,
        secrets: Mapping[str, str],
        say: Callable[[Progress], None],
    ) -> Done | Failed:
        """A child from its start to its end."""
        with self._nursery.child(room, _limits(resources), secrets) as child:
            self._child = child
            tail = _Tail(child.output, Redaction(secrets), say)
            watch = Watch(child.pid, (room / "scratch", room / "logic"), _bounds(resources), child.end)
            try:
                child.wire.send(message)
                ended = broker.serve(child.wire, say)
            except (EOFError, BrokenPipeError, ConnectionResetError) as exc:
                if self._stopped:
                    raise InfrastructureError("engine: expected a result, got told to stop") from exc
                ended = Failed(failure=(watch.error or _died(child.join(), tail, resources)).failure)
            finally:
                self._child = None
                watch.stop()
            if left := child.join().left_running:
                say(Progress(level="warning", message=f"{left} processes that the work had left running were killed"))
            tail.join()
        return ended

    @contextmanager
    def _inputs_for(self, room: Path, resources: Resources, *, may_keep: bool) -> Iterator[InputCache]:
        """The cache that all jobs share, or one of the room's own."""
        if may_keep:
            if self._inputs is None:
                self._inputs = InputCache(self._cache / "inputs", max_bytes=self._max_input_bytes)
            yield self._inputs
            return
        inputs = InputCache(room / "inputs", max_bytes=resources.scratch_mib * _MIB)
        try:
            yield inputs
        finally:
            inputs.close()

    def _parse(self, job: Job, key: str, inputs: InputCache, say: Callable[[Progress], None]) -> None:
        """Have the project parsed by a child that does nothing else, and keep what that comes to.

        It stays where the job looks for it. What a job's own child leaves is never kept: code of the job has run in it.
        """
        scratch = Path(job.scratch)
        path = scratch / PARSED
        broker = Broker({}, inputs, self._objects)
        ended = self._carry(Parse(job=job), job.resources, scratch.parent, broker, {}, say)
        if isinstance(ended, Failed):
            say(Progress(level="debug", message=f"what parsing comes to is not kept: {ended.failure.message}"))
            return
        parsed = b""
        if path.exists():
            require_plain(scratch, [path], of=self._account)
            parsed = path.read_bytes() if path.stat().st_size <= MAX_PARSED_BYTES else b""
        self._parses.put(key, parsed)

    def stop(self) -> None:
        child = self._child
        if child is not None:
            # Set first: the end is what wakes the one who looks.
            self._stopped = True
            child.end()


class _Tail:
    """Passes the child's output on to the run's log, line by line, and keeps its end for a child that dies."""

    def __init__(self, output: IO[bytes], secrets: Redaction, say: Callable[[Progress], None]) -> None:
        self.lines: list[str] = []
        self._secrets = secrets
        self._say = say
        self._thread = Thread(target=self._read, args=(output,), daemon=True)
        self._thread.start()

    def _read(self, output: IO[bytes]) -> None:
        told = 0
        # Bounded, for a child that prints a gigabyte, in one line or many; it is read on, or the child would wait.
        for raw in self._pieces(output):
            line = printable(raw.decode(errors="replace").rstrip())
            if not line:
                continue
            self.lines = [*self.lines[-_LAST_LINES:], line]
            if told <= _MOST_OUTPUT_BYTES:
                told += len(raw)
                self._say(Progress(level="debug", message=line))
                if told > _MOST_OUTPUT_BYTES:
                    left_out = f"more than {_MOST_OUTPUT_BYTES:,} bytes of output: the rest is left out"
                    self._say(Progress(level="warning", message=left_out))

    def _pieces(self, output: IO[bytes]) -> Iterator[bytes]:
        """Lines, and pieces of one that is too long. The log takes secrets out, but not one that is cut in two."""
        while piece := output.readline(_LONGEST_LINE_BYTES):
            if piece.endswith(b"\n"):
                yield piece
            else:
                yield from self._secrets.chunks(_of_one_line(piece, output))

    def join(self) -> None:
        self._thread.join(timeout=_GRACE_S)


def _of_one_line(piece: bytes, output: IO[bytes]) -> Iterator[bytes]:
    yield piece
    while not piece.endswith(b"\n") and (piece := output.readline(_LONGEST_LINE_BYTES)):
        yield piece


def _as_known(result: EngineResult) -> EngineResult:
    """Without what a child has no say in: which versions are installed here, and where a file was fetched from."""
    packages = {}
    for name in result.packages:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    outputs = tuple(
        output.model_copy(update={"files": tuple(file.model_copy(update={"source": None}) for file in output.files)})
        for output in result.outputs
    )
    return result.model_copy(update={"packages": packages, "outputs": outputs})


def _limits(resources: Resources) -> Limits:
    return Limits(
        cpu_s=resources.timeout_s * max(1, -(-resources.cpu // 1024)) * _CPU_SHARE,
        data_bytes=resources.memory_mib * _MIB,
        file_bytes=resources.scratch_mib * _MIB,
        open_files=_OPEN_FILES,
    )


def _bounds(resources: Resources) -> Bounds:
    return Bounds(
        seconds=resources.timeout_s,
        resident_bytes=resources.memory_mib * _MIB,
        disk_bytes=resources.scratch_mib * _MIB,
    )


def _died(ended: Ended, tail: _Tail, resources: Resources) -> RunnerError:
    tail.join()
    last = f"; it last said: {tail.lines[-1]}" if tail.lines else ""
    if ended.code >= 0:
        return InfrastructureError(f"engine: expected a result, got its process ended with code {ended.code}{last}")
    number = -ended.code
    if number == signal.SIGXCPU:
        return LogicError(
            f"expected the work to need at most {_limits(resources).cpu_s:,} s of processor time, got more",
            hint="raise resources.timeout_s or resources.cpu",
        )
    if number == signal.SIGSYS:
        return LogicError(f"engine: expected system calls of this machine's own kind, got another{last}")
    name = signal.Signals(number).name
    hint = "out of memory? raise resources.memory_mib" if number == signal.SIGKILL else None
    return InfrastructureError(f"engine: expected a result, got its process killed by {name}{last}", hint=hint)
