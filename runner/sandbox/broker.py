"""The broker: serves the engine exactly the files of its pinned inputs, by descriptor, and notes what was read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import BoundedSemaphore

from pydantic import ValidationError

from runner.engines.wire import MAX_RESULT_BYTES, FrameTooLarge, Wire
from runner.model.errors import DataError, InfrastructureError, LogicError
from runner.model.messages import FROM_ENGINE, Done, Failed, Fetch, Fetched, Open, Opened, Primed, Progress, Refused
from runner.ports import Objects, Read, ServedFile
from runner.sandbox.input_cache import InputCache

_ANSWERS = 16
"""Questions that are answered at a time; with as many open, the next is not read from the socket."""
_AHEAD_BYTES = 64 * 1024 * 1024
"""Rows that are brought before anybody asks, all small files together. Metadata is, however much: views need it."""
_LONGEST_MESSAGE = 16 * 1024


@dataclass
class _Noted:
    """What was seen of one input since its view was made: URIs, so that a file opened twice counts once."""

    used: bool
    rows: dict[str, int]


class Broker:
    """One job's broker."""

    def __init__(self, served: Mapping[str, Sequence[ServedFile]], cache: InputCache, objects: Objects) -> None:
        self._cache = cache
        self._objects = objects
        self._files = {file.uri: file for files in served.values() for file in files}
        # Snapshots of one table share files: which of two inputs a shared one was opened for, nobody can tell.
        self._aliases: dict[str, list[str]] = {}
        for alias, files in served.items():
            for uri in dict.fromkeys(file.uri for file in files):
                self._aliases.setdefault(uri, []).append(alias)
        self._noted = {alias: _Noted(used=False, rows={}) for alias in served}
        self._primed = False
        self._free = BoundedSemaphore(_ANSWERS)
        self._error: BaseException | None = None

    @property
    def reads(self) -> Mapping[str, Read]:
        """By alias. `used` is true once a statement touched the input, even if its rows were never opened."""
        return {
            alias: Read(used=noted.used, files=len(noted.rows), bytes=sum(noted.rows.values()))
            for alias, noted in self._noted.items()
        }

    def serve(self, wire: Wire, say: Callable[[Progress], None]) -> Done | Failed:
        """Answer the engine until it is done.

        Raises `EOFError` where it ended without a word, `LogicError` where what it says is none of its messages, and
        what kept an input from being read.
        """
        threads = ThreadPoolExecutor(_ANSWERS, thread_name_prefix="broker")
        ahead = self._cache.prefetch(self._wanted_ahead(), self._objects)
        try:
            ended = self._listen(wire, say, threads)
        except FrameTooLarge as exc:
            raise LogicError(f"engine: {exc}") from exc
        except (EOFError, OSError) as exc:
            if self._error is not None:
                raise self._error from exc
            raise
        finally:
            for each in ahead:
                each.cancel()
            # Not waited for: a store that does not answer may not hold up the end of the job.
            threads.shutdown(wait=False, cancel_futures=True)
        if self._error is not None:
            raise self._error  # the engine's own failure is a consequence of it
        return ended

    def _wanted_ahead(self) -> list[ServedFile]:
        budget, wanted = _AHEAD_BYTES, []
        for file in self._files.values():
            budget -= file.bytes if file.holds_rows else 0
            if budget >= 0 or not file.holds_rows:
                wanted.append(file)
        return wanted

    def _listen(self, wire: Wire, say: Callable[[Progress], None], threads: ThreadPoolExecutor) -> Done | Failed:
        while True:
            raw, descriptors = wire.receive(most_bytes=MAX_RESULT_BYTES)
            for each in descriptors:
                os.close(each)  # nobody asked for any
            try:
                message = FROM_ENGINE.validate_json(raw)
            except ValidationError as exc:
                raise LogicError(f"engine: expected one of its messages, got {raw[:80]!r}") from exc
            match message:
                case Open() | Fetch():
                    if message.uri not in self._files:
                        wire.send(Refused(ask=message.ask, message="a file of no declared input"))
                        continue
                    if isinstance(message, Open):
                        self._note(self._files[message.uri])
                    self._free.acquire()
                    threads.submit(self._answer, wire, message)
                case Primed():
                    self._primed = True
                case Progress():
                    say(message.model_copy(update={"message": message.message[:_LONGEST_MESSAGE]}))
                case Done() | Failed():
                    return message

    def _note(self, file: ServedFile) -> None:
        if self._primed:
            for alias in self._aliases[file.uri]:
                self._noted[alias].used = True
                if file.holds_rows:
                    self._noted[alias].rows[file.uri] = file.bytes

    def _answer(self, wire: Wire, question: Open | Fetch) -> None:
        """In a thread of its own. What goes wrong ends the job: the engine is not to make something of it."""
        try:
            if isinstance(question, Open):
                self._open(wire, question)
            else:
                self._fetch(wire, question)
        except FileNotFoundError as exc:
            alias = self._aliases[question.uri][0]
            came = f"input {alias}: expected {question.uri}, got none: input expired"
            self._end(wire, DataError(came, subject=alias), exc)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the engine has ended, which whoever listens to it finds
        except OSError as exc:
            self._end(wire, InfrastructureError(f"engine: expected to give it {question.uri}, got {exc}"), exc)
        except BaseException as exc:  # noqa: BLE001 - raised where the job is, whatever it is
            self._end(wire, exc, None)
        finally:
            self._free.release()

    def _open(self, wire: Wire, question: Open) -> None:
        file = self._cache.open(self._files[question.uri], self._objects)
        try:
            wire.send(Opened(ask=question.ask, size=file.size, whole=file.whole), descriptors=[file.descriptor])
        finally:
            os.close(file.descriptor)

    def _fetch(self, wire: Wire, question: Fetch) -> None:
        file = self._files[question.uri]
        if not 0 <= question.start < question.end <= file.bytes:
            came = f"bytes {question.start:,} to {question.end:,} of {file.bytes:,}"
            wire.send(Refused(ask=question.ask, message=came))
            return
        self._cache.fetch(file, question.start, question.end, self._objects)
        wire.send(Fetched(ask=question.ask))

    def _end(self, wire: Wire, error: BaseException, cause: BaseException | None) -> None:
        # Set first: the shut socket is what wakes the one who looks.
        error.__cause__ = cause
        self._error = self._error or error
        wire.shut()
