"""The way of a child with another user id to its folders, where one above them is closed to it: mounts of its own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from runner.model.errors import InfrastructureError
from runner.sandbox import kernel
from runner.sandbox.accounts import Account

# linux/mount.h and linux/sched.h
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_CLONE_NEWNS = 0x20000
_MOST_LINKS = 40
"""As many as the kernel follows (path_resolution(7))."""


@dataclass(frozen=True)
class _Place:
    """A path with no link on the way to it: a folder or file to reach, or a link that leads to one."""

    path: Path
    link_to: str | None = None
    is_folder: bool = False

    @property
    def passes(self) -> list[Path]:
        """The folders that have to be passed, topmost first."""
        itself = [self.path] if self.is_folder else []
        return [*reversed(self.path.parents), *itself]


def reach(folders: Iterable[Path], account: Account) -> None:
    """Let `account` come to these folders and files by their own paths, from this process and what it forks.

    Where a folder above one is closed to it (a clone below a home of mode 0700), this process, which is root's and has
    one thread, moves into mounts of its own: there an empty folder stands in for the closed one, with nothing in it but
    the way to what is needed. What is made below those folders later, or outside, shows as well. What is not there is
    passed over. Raises `InfrastructureError` naming the closed folder, where that cannot be done.
    """
    places = list(dict.fromkeys(place for folder in folders for place in _places(folder)))
    apart = False
    while (found := _obstacle(places, account)) is not None:
        closed, place = found
        if closed == place.path or closed == Path("/"):
            raise _shut(closed, place, account)
        try:
            if not apart:
                _move_apart()
                apart = True
            _stand_in(closed, [each for each in places if closed in each.path.parents])
        except OSError as exc:
            raise _shut(closed, place, account, instead=str(exc)) from exc


def _places(folder: Path) -> Iterator[_Place]:
    """What `folder` is, and each link that its path goes through: the path has to stay as it is."""
    at, ahead, links = Path("/"), list(folder.absolute().parts[1:]), 0
    while ahead:
        part = ahead.pop(0)
        if part == "..":
            at = at.parent
        elif (at / part).is_symlink() and links < _MOST_LINKS:
            target = str((at / part).readlink())
            yield _Place(at / part, target)
            ahead = [*Path(target).parts, *ahead]
            links += 1
            if ahead[0] == "/":
                at = Path(ahead.pop(0))
        else:
            at /= part
    if at.exists():
        yield _Place(at, is_folder=at.is_dir())


def _obstacle(places: Iterable[_Place], account: Account) -> tuple[Path, _Place] | None:
    """The topmost folder that the account cannot pass on the way to one of the places, and that place."""
    with _as(account):
        for place in places:
            for folder in place.passes:
                try:
                    # By trying: permissions alone would not tell of access lists and odd mounts.
                    os.close(os.open(f"{folder}/.", os.O_PATH))
                except FileNotFoundError:
                    break  # gone meanwhile
                except PermissionError:
                    return folder, place
    return None


@contextmanager
def _as(account: Account) -> Iterator[None]:
    """Look with the account's eyes for a while, its groups aside: it has none but its own."""
    user, group, groups = os.geteuid(), os.getegid(), os.getgroups()
    os.setgroups([])
    os.setegid(account.gid)
    os.seteuid(account.uid)
    try:
        yield
    finally:
        os.seteuid(user)
        os.setegid(group)
        os.setgroups(groups)


def _move_apart() -> None:
    """Into mounts that nobody outside sees change, and that do not change with those outside."""
    kernel.call("unshare", _CLONE_NEWNS)
    _mount("none", Path("/"), None, _MS_REC | _MS_PRIVATE)


def _stand_in(closed: Path, places: Sequence[_Place]) -> None:
    """An empty folder in place of `closed`, with nothing in it but the way to the places, and these."""
    with ExitStack() as opened:
        # While they can still be found: afterwards only their descriptors lead there.
        found = {each: os.open(each.path, os.O_PATH | os.O_CLOEXEC) for each in places if each.link_to is None}
        for descriptor in found.values():
            opened.callback(os.close, descriptor)
        opened.callback(os.umask, os.umask(0o022))
        _mount("tmpfs", closed, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m")
        # From the top, so that what lies in another place is there with it.
        for each in sorted(places, key=lambda place: len(place.path.parts)):
            if os.path.lexists(each.path):
                continue
            each.path.parent.mkdir(parents=True, exist_ok=True)
            if each.link_to is not None:
                each.path.symlink_to(each.link_to)
                continue
            if each.is_folder:
                each.path.mkdir()
            else:
                each.path.touch()
            _mount(f"/proc/self/fd/{found[each]}", each.path, None, _MS_BIND | _MS_REC)


def _mount(source: str, target: Path, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, str(target), kind, options)]
    kernel.call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def _shut(closed: Path, place: _Place, account: Account, *, instead: str = "") -> InfrastructureError:
    mode = closed.stat().st_mode & 0o7777
    refused = f", and no mounts of its own: {instead}" if instead else ""
    return InfrastructureError(
        f"{closed}: expected a folder that user {account.uid} may pass to {place.path}, got mode {mode:04o}{refused}",
        hint=f"chmod o+x {closed}, or have the runner, its Python and RUNNER_HOME where every user may go",
        subject=str(closed),
    )
