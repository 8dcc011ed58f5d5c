"""What the worker is to an engine, for tests of engines: files by URI from a folder, and jobs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from uuid import UUID

from runner.engines.input_file import InputFile
from runner.model.errors import DataError
from runner.model.messages import Job, JobInput, JobOutput, Stamp
from runner.model.spec import QueryWork, Resources, Work

STAMP = Stamp(logic_commit="a" * 40, run_id=UUID(int=1), processed_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC))


class LocalInputs:
    """`Inputs` without a worker. Like the broker, it opens exactly the files that it was given."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """`files` by URI, as a job names them."""
        self._files = dict(files)
        self.secrets: Mapping[str, str] = {}
        self.opened_before_primed: list[str] = []
        self.opened: list[str] = []
        """URIs in the order in which the logic opened them, each as often as it did."""
        self.said: list[str] = []
        self._is_primed = False

    def open(self, uri: str) -> InputFile:
        (self.opened if self._is_primed else self.opened_before_primed).append(uri)
        if uri not in self._files:
            raise DataError(f"{uri}: expected a file of a declared input, got another", subject=uri)
        path = self._files[uri]
        return InputFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path.stat().st_size)

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


def job_of(
    folder: Path, *, inputs: Sequence[JobInput] = (), outputs: Sequence[JobOutput] = (), work: Work | None = None
) -> Job:
    """A job whose workspace and scratch are in `folder`."""
    for name in ("logic", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return Job(
        work=work or QueryWork(kind="query", file="query.sql"),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        workspace=str(folder / "logic"),
        scratch=str(folder / "scratch"),
        resources=Resources(cpu=1024, memory_mib=1024),
        stamp=STAMP,
    )
