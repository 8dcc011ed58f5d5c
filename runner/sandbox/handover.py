"""What passes between worker and child by files: a room is given, and what the child left there is taken."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from runner.model.errors import LogicError
from runner.sandbox.accounts import Account


def give(room: Path, *, to: Account | None) -> None:
    """Let the child, and nobody else but the worker, come to `logic` and `scratch` of a room, and to nothing beside."""
    room.chmod(0o711 if to else 0o700)
    for folder in (room / "logic", room / "scratch"):
        folder.chmod(0o700)
        if to is not None:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, to.uid, to.gid, follow_symlinks=False)


def require_plain(scratch: Path, named: Iterable[Path], *, of: Account | None) -> None:
    """Raises `LogicError` unless these, all below scratch, are files of the child's own that no link leads to.

    For after the child's end, when nothing moves any more: the worker would follow a link with its own rights.
    """
    for path in named:
        steps = [path, *path.parents]
        for each in steps[: steps.index(scratch)]:
            try:
                found = each.lstat()
            except OSError as exc:
                raise LogicError(f"{path.relative_to(scratch)}: expected a file there, got {exc.strerror}") from exc
            fits = stat.S_ISREG(found.st_mode) if each == path else stat.S_ISDIR(found.st_mode)
            own = of is None or found.st_uid == of.uid or (each != path and found.st_uid == os.getuid())
            if not fits or not own:
                came = "a link or another kind of file" if own else f"one of user {found.st_uid}"
                raise LogicError(f"{path.relative_to(scratch)}: expected a file of the job's own, got {came}")
