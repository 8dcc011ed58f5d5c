"""The watch on a child: its time, its memory and its disk, which no limit of the kernel's bounds as a whole."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from runner.model.errors import InfrastructureError, LogicError, RunnerError

_EVERY_S = 0.1
_WALK_SHARE = 0.05
"""How much of the time may go into walking through the folders."""
_RESERVE_BYTES = 128 * 1024 * 1024
"""Below so much free space on its disk a child is ended: the worker has its own records to write there."""
_BLOCK = 512
"""The unit of `st_blocks`, whatever a file system's blocks are (stat(2))."""
_SMALLEST_BYTES = 4096
"""What an entry counts for at least, so that countless empty files are an end too."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    seconds: float
    resident_bytes: int
    disk_bytes: int


class Watch:
    """Calls `end` once, when the child is out of its bounds; `error` then says of which."""

    def __init__(self, pid: int, folders: Sequence[Path], bounds: Bounds, end: Callable[[], object]) -> None:
        self.error: RunnerError | None = None
        self._pid = pid
        self._folders = folders
        self._bounds = bounds
        self._end = end
        self._over = Event()
        self._thread = Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        began = time.monotonic()
        next_walk = began
        while not self._over.wait(_EVERY_S):
            now = time.monotonic()
            found = self._time(now - began) or self._memory()
            if found is None and now >= next_walk:
                found = self._space()
                took = time.monotonic() - now
                next_walk = now + max(_EVERY_S, took / _WALK_SHARE)
            if found is not None:
                # Set first: the end is what wakes the one who looks.
                self.error = found
                self._end()
                return

    def _time(self, seconds: float) -> RunnerError | None:
        if seconds < self._bounds.seconds:
            return None
        return LogicError(
            f"expected the work to end within {self._bounds.seconds:,.0f} s, got no end",
            hint="raise resources.timeout_s",
        )

    def _memory(self) -> RunnerError | None:
        resident = resident_bytes(self._pid)
        if resident <= self._bounds.resident_bytes:
            return None
        return LogicError(
            f"expected the work to need at most {_mib(self._bounds.resident_bytes)} of memory, got {_mib(resident)}",
            hint="raise resources.memory_mib",
        )

    def _space(self) -> RunnerError | None:
        used = disk_bytes(self._folders, enough=self._bounds.disk_bytes)
        if used > self._bounds.disk_bytes:
            return LogicError(
                f"expected the work to need at most {_mib(self._bounds.disk_bytes)} of scratch, got more",
                hint="raise resources.scratch_mib",
            )
        free = shutil.disk_usage(self._folders[0]).free
        if free < _RESERVE_BYTES:
            return InfrastructureError(
                f"scratch: expected at least {_mib(_RESERVE_BYTES)} free on its disk, got {_mib(free)}",
                hint="give workers a larger disk, or fewer of them",
            )
        return None


def resident_bytes(pid: int) -> int:
    """A process's memory as the kernel counts it, pages shared with its zygote among it; 0 for one that is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def disk_bytes(folders: Sequence[Path], *, enough: int) -> int:
    """What folders take on disk with all in them; no link is followed. Stops counting above `enough`."""
    used, waiting = 0, [str(folder) for folder in folders]
    longest = os.pathconf(folders[0], "PC_PATH_MAX") - os.pathconf(folders[0], "PC_NAME_MAX")
    while waiting and used <= enough:
        # A child at work, perhaps a hostile one, moves things about meanwhile.
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    used += max(found.st_blocks * _BLOCK, _SMALLEST_BYTES)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                        if len(entry.path) > longest:
                            return enough + 1  # deeper than any path leads, so that nobody could count it
                if used > enough:
                    break
    return used


def _mib(count: int) -> str:
    return f"{count / 1024 / 1024:,.0f} MiB"
