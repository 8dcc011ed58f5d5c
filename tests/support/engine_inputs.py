"""What the worker's broker is to an engine, for tests of engines: files by URI from a folder, and what was asked."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from runner.model.errors import DataError


class _File(io.FileIO):
    def __del__(self) -> None:
        """DuckDB drops files without closing them, of which Python would warn."""
        self.close()


class LocalInputs:
    """`Inputs` without a worker. Like the broker, it opens exactly the files that it was given."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """`files` by URI, as a job names them."""
        self._files = dict(files)
        self.opened_before_primed: list[str] = []
        self.opened: list[str] = []
        """URIs in the order in which the logic opened them, each as often as it did."""
        self.said: list[str] = []
        self._is_primed = False

    def open(self, uri: str) -> io.FileIO:
        (self.opened if self._is_primed else self.opened_before_primed).append(uri)
        if uri not in self._files:
            raise DataError(f"{uri}: expected a file of a declared input, got another", subject=uri)
        return _File(self._files[uri], "rb")

    def primed(self) -> None:
        self._is_primed = True

    def say(
        self,
        message: str,
        *,
        level: Literal["debug", "info", "warning", "error"] = "info",
        done: int | None = None,
        total: int | None = None,
    ) -> None:
        self.said.append(message)
