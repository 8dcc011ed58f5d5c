"""The broker: serves the engine exactly the files of its pinned inputs, by descriptor, and notes what was read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from runner.engines.wire import Wire
from runner.model.errors import DataError, LogicError
from runner.model.messages import FROM_ENGINE, Done, Failed, Open, Opened, Primed, Progress, Refused
from runner.ports import Read, ServedFile


@dataclass
class _Noted:
    """What was seen of one input since its view was made: URIs, so that a file opened twice counts once."""

    used: bool
    rows: dict[str, int]


class Broker:
    """One job's broker. `fetch` brings a file of the lake to a local path; it is called once a file."""

    def __init__(self, served: Mapping[str, Sequence[ServedFile]], fetch: Callable[[str], Path]) -> None:
        self._fetch = fetch
        self._files = {file.uri: (alias, file) for alias, files in served.items() for file in files}
        self._local: dict[str, Path] = {}
        self._noted = {alias: _Noted(used=False, rows={}) for alias in served}
        self._primed = False

    @property
    def reads(self) -> Mapping[str, Read]:
        """By alias. `used` is true once a statement touched the input, even if its rows were never opened."""
        return {
            alias: Read(used=noted.used, files=len(noted.rows), bytes=sum(noted.rows.values()))
            for alias, noted in self._noted.items()
        }

    def serve(self, wire: Wire, say: Callable[[Progress], None]) -> Done | Failed:
        """Answer the engine until it is done. Raises `EOFError` where it ended without a word."""
        while True:
            raw, _ = wire.receive()
            try:
                message = FROM_ENGINE.validate_json(raw)
            except ValidationError as exc:
                raise LogicError(f"engine: expected one of its messages, got {raw[:80]!r}") from exc
            match message:
                case Open(uri=uri):
                    self._open(wire, uri)
                case Primed():
                    self._primed = True
                case Progress():
                    say(message)
                case Done() | Failed():
                    return message

    def _open(self, wire: Wire, uri: str) -> None:
        if uri not in self._files:
            wire.send(Refused(message="a file of no declared input"))
            return
        alias, file = self._files[uri]
        try:
            path = self._local.get(uri) or self._fetch(uri)
        except FileNotFoundError as exc:
            raise DataError(f"input {alias}: expected {uri}, got none: input expired", subject=alias) from exc
        self._local[uri] = path
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            wire.send(Opened(size=path.stat().st_size), descriptor=descriptor)
        finally:
            os.close(descriptor)
        if self._primed:
            self._noted[alias].used = True
            if file.holds_rows:
                self._noted[alias].rows[uri] = path.stat().st_size
