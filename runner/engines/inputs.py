"""The broker's other side: an engine opens its inputs here, by asking the worker, and in no other way."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import count
from threading import Condition
from typing import Any, Literal, Protocol

from fsspec import AbstractFileSystem

from runner.engines.input_file import InputFile
from runner.engines.wire import Wire
from runner.model.errors import DataError
from runner.model.messages import TO_ENGINE, Fetch, Fetched, Open, Opened, Primed, Progress, Refused


class Inputs(Protocol):
    """What an engine may ask of the worker while it works."""

    @property
    def secrets(self) -> Mapping[str, str]:
        """The texts of the secrets that the work refers to, by their names."""

    def open(self, uri: str) -> InputFile:
        """A declared input's file. Raises `DataError` for any other URI."""

    def primed(self) -> None:
        """Say that the views over the inputs stand: from here on, what is opened counts as read by the logic."""

    def say(
        self,
        message: str,
        *,
        level: Literal["debug", "info", "warning", "error"] = "info",
        done: int | None = None,
        total: int | None = None,
    ) -> None:
        """A line for the run's log."""


class BrokeredInputs:
    """`Inputs` over the socket that the child inherited. Threads may ask at the same time."""

    def __init__(self, wire: Wire, secrets: Mapping[str, str]) -> None:
        self._wire = wire
        self.secrets = secrets
        self._asks = count(1)
        self._turn = Condition()
        self._one_listens = False
        self._answers: dict[int, tuple[_Answer, tuple[int, ...]]] = {}

    def open(self, uri: str) -> InputFile:
        opened, descriptor = self._open(uri)
        if opened.whole:
            return InputFile(descriptor, opened.size)

        def fetch(start: int, end: int) -> None:
            answer, _ = self._ask(Fetch(uri=uri, start=start, end=end, ask=next(self._asks)))
            if not isinstance(answer, Fetched):
                raise _refused(uri, answer)

        return InputFile(descriptor, opened.size, fetch=fetch, reopen=lambda: self._open(uri)[1])

    def _open(self, uri: str) -> tuple[Opened, int]:
        answer, descriptors = self._ask(Open(uri=uri, ask=next(self._asks)))
        if not isinstance(answer, Opened) or not descriptors:
            raise _refused(uri, answer)
        return answer, descriptors[0]

    def _ask(self, question: Open | Fetch) -> tuple[_Answer, tuple[int, ...]]:
        """One of those who wait listens, for all of them. Raises `EOFError` or `OSError` where the worker is gone."""
        self._wire.send(question)
        with self._turn:
            while question.ask not in self._answers:
                if self._one_listens:
                    self._turn.wait()
                else:
                    self._listen()
            return self._answers.pop(question.ask)

    def _listen(self) -> None:
        self._one_listens = True
        self._turn.release()
        try:
            raw, descriptors = self._wire.receive()
            answer = TO_ENGINE.validate_json(raw)
        finally:
            self._turn.acquire()
            self._one_listens = False
            self._turn.notify_all()
        self._answers[answer.ask] = answer, descriptors

    def primed(self) -> None:
        self._wire.send(Primed())

    def say(
        self,
        message: str,
        *,
        level: Literal["debug", "info", "warning", "error"] = "info",
        done: int | None = None,
        total: int | None = None,
    ) -> None:
        self._wire.send(Progress(level=level, message=message, done=done, total=total))


_Answer = Opened | Fetched | Refused


def _refused(uri: str, answer: _Answer) -> DataError:
    reason = answer.message if isinstance(answer, Refused) else f"an answer of type {answer.type}"
    return DataError(f"{uri}: expected a file of a declared input, got {reason}", subject=uri)


class BrokeredS3(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """An fsspec file system for `s3://` that holds no credentials and opens no socket: DuckDB reads through it."""

    protocol = "s3"
    cachable = False
    # Iceberg files never change once written, so any constant tells DuckDB's caches the truth.
    _WRITTEN = datetime(2000, 1, 1, tzinfo=UTC)

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self._inputs = inputs
        self._sizes: dict[str, int] = {}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> InputFile:
        if mode != "rb":
            raise PermissionError(f"{path}: expected mode rb, got {mode}")
        file = self._inputs.open(self._uri(path))
        self._sizes[self._uri(path)] = file.size
        return file

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        uri = self._uri(path)
        if uri not in self._sizes:
            self._open(path).close()
        return {"name": path, "size": self._sizes[uri], "type": "file"}

    def exists(self, path: str, **_: Any) -> bool:
        try:
            self.info(path)
        except DataError:
            return False
        return True

    def modified(self, path: str) -> datetime:
        return self._WRITTEN

    def glob(self, path: str, **_: Any) -> list[str]:
        """No listing: an input's files are named one by one, and opening another says why it is refused."""
        return [path]

    @staticmethod
    def _uri(path: str) -> str:
        return path if path.startswith("s3://") else f"s3://{path}"
