"""A broker at work, with this process as its engine: over a real socket, in threads."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from runner.engines.inputs import BrokeredInputs
from runner.engines.wire import Wire
from runner.model.messages import Done, EngineResult, Failed, Progress
from runner.ports import ServedFile
from runner.sandbox.broker import Broker
from tests.support.twins import MemoryObjects

NOTHING = Done(result=EngineResult(outputs=(), steps=(), packages={}))
SOON_S = 30


@dataclass
class Engine:
    """The engine's side of a broker."""

    socket: socket.socket
    wire: Wire
    inputs: BrokeredInputs
    ended: Future[Done | Failed]
    """What the broker returns or raises."""
    said: list[Progress] = field(default_factory=list)

    def error(self) -> BaseException:
        """What the broker raised, however its engine was ended by it."""
        error = self.ended.exception(timeout=SOON_S)
        assert error is not None, "the broker ended in peace"
        return error


@contextmanager
def engine_of(broker: Broker) -> Iterator[Engine]:
    """Ends it in the end, unless the test did, and requires that it ends."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as thread:
        said: list[Progress] = []
        ended = thread.submit(broker.serve, Wire(ours), said.append)
        wire = Wire(theirs)
        try:
            yield Engine(theirs, wire, BrokeredInputs(wire, {}), ended, said)
        finally:
            if not ended.done():
                wire.send(NOTHING)
            try:
                ended.exception(timeout=SOON_S)
            finally:
                theirs.close()


class CountedObjects(MemoryObjects):
    """The lake, with what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int, int]] = []
        """Key and range of each request; to -1 where it was for all of an object."""

    def get(self, key: str, *, at_most: int | None = None) -> bytes | None:
        self.asked.append((key, 0, -1))
        return super().get(key, at_most=at_most)

    def get_range(self, key: str, start: int, end: int) -> bytes | None:
        self.asked.append((key, start, end))
        return super().get_range(key, start, end)

    def keep(self, key: str, body: bytes, *, holds_rows: bool = True) -> ServedFile:
        """Put an object, as a file that may be served."""
        self.put(key, body)
        return ServedFile(uri=self.uri(key), bytes=len(body), holds_rows=holds_rows)
