"""The program of tests/security/test_broker.py: gets files from the broker, raises walls, and tries to change them.

Its arguments are the socket's descriptor and what is asked, as JSON; it prints what came of each attempt.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from runner.engines.inputs import BrokeredInputs
from runner.engines.wire import Wire
from runner.model.messages import Limits
from runner.sandbox import mounts, walls
from runner.sandbox.accounts import Account

LIMITS = Limits(cpu_s=60, data_bytes=1 << 30, file_bytes=1 << 30, open_files=512)
NEW = b"forged"
_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _AT_SYMLINK_FOLLOW = -100, 0x400

Attempt = Callable[[int, str], object]


def write(descriptor: int, link: str) -> object:
    return os.pwrite(descriptor, NEW, 0)


def truncate(descriptor: int, link: str) -> object:
    os.ftruncate(descriptor, 0)
    return True


def map_it(descriptor: int, link: str) -> object:
    with mmap.mmap(descriptor, len(NEW), mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        mapped[:] = NEW
    return True


def map_it_and_protect(descriptor: int, link: str) -> object:
    """mprotect(2) of a mapping that was made for reading."""
    mapped = mmap.mmap(descriptor, len(NEW), mmap.MAP_SHARED, mmap.PROT_READ)
    _libc.mmap.restype = ctypes.c_void_p
    address = _libc.mmap(None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED, descriptor, ctypes.c_long(0))
    mapped.close()
    if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "mprotect")
    ctypes.memmove(address, NEW, len(NEW))
    return True


def set_flags(descriptor: int, link: str) -> object:
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_RDWR | os.O_APPEND)
    return os.write(descriptor, NEW)


def punch_a_hole(descriptor: int, link: str) -> object:
    """fallocate(2), to free the blocks that are there: they would read as zeros."""
    if _libc.fallocate(descriptor, 3, ctypes.c_long(0), ctypes.c_long(16 * 1024)):
        raise OSError(ctypes.get_errno(), "fallocate")
    return True


def change_its_mode(descriptor: int, link: str) -> object:
    """No change of what is in it, so it counts only if it can be written then."""
    os.fchmod(descriptor, 0o666)
    return _write_to(link)


def write_through_proc(descriptor: int, link: str) -> object:
    return _write_to(link)


def truncate_through_proc(descriptor: int, link: str) -> object:
    os.truncate(link, 0)
    return True


def map_it_through_proc(descriptor: int, link: str) -> object:
    again = os.open(link, os.O_RDWR)
    try:
        return map_it(again, link)
    finally:
        os.close(again)


def link_it(descriptor: int, link: str) -> object:
    """To a name of one's own, to be opened by that. `os.link` would link the link."""
    own = f"scratch/linked-{descriptor}"
    if _libc.linkat(_AT_FDCWD, link.encode(), _AT_FDCWD, own.encode(), _AT_SYMLINK_FOLLOW):
        raise OSError(ctypes.get_errno(), "linkat")
    return _write_to(own)


def write_by_its_path(descriptor: int, link: str) -> object:
    return _write_to(str(Path(link).readlink()))


def _write_to(path: str) -> int:
    again = os.open(path, os.O_WRONLY)
    try:
        return os.pwrite(again, NEW, 0)
    finally:
        os.close(again)


ATTEMPTS: dict[str, Attempt] = {
    "write": write,
    "truncate": truncate,
    "map it": map_it,
    "map it and protect": map_it_and_protect,
    "set flags": set_flags,
    "punch a hole": punch_a_hole,
    "change its mode": change_its_mode,
    "write through /proc": write_through_proc,
    "map it through /proc": map_it_through_proc,
    "link it": link_it,
    "write by its path": write_by_its_path,
    "truncate through /proc": truncate_through_proc,
}


def main() -> None:
    asked = json.loads(sys.argv[2])
    room, account = Path(asked["room"]), Account(uid=asked["uid"], gid=asked["uid"])
    inputs = BrokeredInputs(Wire(socket.socket(fileno=int(sys.argv[1]))), {})
    if asked["walls"]:
        mounts.reach((room, *walls.needed_folders()), account)
        writable = (room / "scratch", room / "logic")
        walls.raise_walls(readable=walls.needed_folders(), writable=writable, limits=LIMITS, account=account)
    else:
        os.setgroups([])
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    os.chdir(room)
    found = {}
    for uri in asked["uris"]:
        with inputs.open(uri) as file:
            found[f"read {uri}"] = "got it all" if len(file.read()) == file.size else "got less"
            for name, attempt in ATTEMPTS.items():
                found[f"{name} {uri}"] = _told(attempt, file.fileno())
    print(json.dumps(found))


def _told(attempt: Attempt, descriptor: int) -> str:
    try:
        return f"changed: {attempt(descriptor, f'/proc/self/fd/{descriptor}')}"
    except OSError as exc:
        return f"refused: {exc}"


if __name__ == "__main__":
    main()
