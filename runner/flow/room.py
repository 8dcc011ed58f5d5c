"""The folder that one attempt works in: workspace, scratch, log. It is gone when the attempt ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from runner.model.errors import InfrastructureError
from runner.model.spec import JobSpec
from runner.ports import Ports

_LOCK = "lock"


@dataclass(frozen=True)
class Room:
    folder: Path

    @property
    def workspace(self) -> Path:
        """The logic's files at their commit."""
        return self.folder / "logic"

    @property
    def scratch(self) -> Path:
        """The engine's own; results are in `scratch/out`."""
        return self.folder / "scratch"

    @property
    def out(self) -> Path:
        return self.scratch / "out"

    @property
    def artifacts(self) -> Path:
        """What the engine's own tools say of the work."""
        return self.scratch / "artifacts"

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"


@contextmanager
def room(spec: JobSpec, ports: Ports) -> Iterator[Room]:
    """Made before the claim, so that a full disk costs no attempt. Raises `InfrastructureError` where it cannot be."""
    made = Room((ports.scratch / f"{spec.run_id}.{uuid4().hex[:8]}").absolute())
    try:
        made.out.mkdir(parents=True)
        unlocked = made.folder / "lock.new"
        lock = unlocked.open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX)
        unlocked.rename(made.folder / _LOCK)  # under this name only when it is held
    except OSError as exc:
        raise InfrastructureError(f"scratch {made.folder}: expected a folder to write to, got {exc.strerror}") from exc
    try:
        yield made
    finally:
        _remove(made.folder)
        lock.close()


def sweep(scratch: Path) -> int:
    """Remove the rooms of workers that were killed: the kernel let go of their locks. Returns how many."""
    swept = 0
    for lock in scratch.glob(f"*/{_LOCK}"):
        with suppress(OSError), lock.open("rb") as held:  # another worker may be sweeping too
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(lock.parent)
            swept += 1
    return swept


def _remove(folder: Path) -> None:
    """With all that a job's code has left there, locked or so deep that no path leads to it: what is in a folder comes
    to the top before that folder goes. Where the disk does not let something go, it stays, as `sweep` finds it.
    """
    moved, waiting = 0, [folder]
    while waiting:
        each = waiting.pop()
        with suppress(OSError):
            each.chmod(0o700)
            for entry in list(each.iterdir()):
                if entry.is_symlink() or not entry.is_dir():
                    entry.unlink()
                    continue
                moved += 1
                entry.chmod(0o700)
                waiting.append(entry.rename(folder / f"{moved}.removed"))
            if each != folder:
                each.rmdir()
    with suppress(OSError):
        folder.rmdir()
