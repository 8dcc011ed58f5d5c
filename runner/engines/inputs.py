"""The broker's other side: an engine opens its inputs here, by asking the worker, and in no other way."""

from __future__ import annotations

import io
import os
from datetime import UTC, datetime
from threading import Lock
from typing import Any, Literal, Protocol

from fsspec import AbstractFileSystem

from runner.engines.wire import Wire
from runner.model.errors import DataError
from runner.model.messages import TO_ENGINE, Open, Opened, Primed, Progress, Refused


class Inputs(Protocol):
    """What an engine may ask of the worker while it works."""

    def open(self, uri: str) -> io.FileIO:
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


class _InputFile(io.FileIO):
    """DuckDB drops the files of an fsspec file system without closing them, which Python would warn of."""

    def __del__(self) -> None:
        self.close()


class BrokeredInputs:
    """`Inputs` over the socket that the child inherited."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        # DuckDB opens files from several threads; question and answer must stay together.
        self._asking = Lock()

    def open(self, uri: str) -> io.FileIO:
        with self._asking:
            self._wire.send(Open(uri=uri))
            raw, descriptor = self._wire.receive()
        answer = TO_ENGINE.validate_json(raw)
        if isinstance(answer, Opened) and descriptor is not None:
            return _InputFile(descriptor, "rb")
        reason = answer.message if isinstance(answer, Refused) else f"an answer of type {answer.type}"
        raise DataError(f"{uri}: expected a file of a declared input, got {reason}", subject=uri)

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

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.FileIO:
        if mode != "rb":
            raise PermissionError(f"{path}: expected mode rb, got {mode}")
        file = self._inputs.open(self._uri(path))
        self._sizes[self._uri(path)] = os.fstat(file.fileno()).st_size
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
