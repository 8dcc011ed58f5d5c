"""Landlock: the folders that a child may read and write, held by the kernel where it has that; all else is refused."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from errno import ENOSYS, EOPNOTSUPP, EPERM
from pathlib import Path

from runner.model.errors import InfrastructureError
from runner.sandbox import kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""The calls' numbers, the same on all architectures."""
_VERSION = 1
_PATH_BENEATH = 1

# linux/landlock.h: rights on files and folders, in the order of their bits.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_CHAR, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = (1 << bit for bit in range(6, 13))
_REFER, _TRUNCATE, _IOCTL_DEV = (1 << bit for bit in range(13, 16))

_READ = _READ_FILE | _READ_DIR
_WRITE = _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER | _TRUNCATE
"""Not: devices, sockets, and pipes by name. Nothing may be executed anywhere; loading a library is reading."""
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
"""All that can be said of what is no folder."""


_PROC = Path("/proc")
_ALL_TCP = 0b11
"""Binding and connecting."""
_ALL_SCOPES = 0b11
"""Abstract unix sockets, and signals."""


class _Ruleset(ctypes.Structure):
    """The kernel's `struct landlock_ruleset_attr`."""

    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    """The kernel's `struct landlock_path_beneath_attr`, which is packed: the same up to its last byte."""

    _fields_ = (("rights", ctypes.c_uint64), ("path", ctypes.c_int32))


def abi() -> int | None:
    """The kernel's version of Landlock; None where it has none, has it switched off, or a container hides it."""
    try:
        return kernel.syscall(_CREATE_RULESET, None, 0, _VERSION)
    except OSError as exc:
        if exc.errno in (ENOSYS, EOPNOTSUPP, EPERM):
            return None
        raise InfrastructureError(f"landlock: expected the kernel to tell its version, got {exc}") from exc


def restrict(version: int, *, readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Let this thread, and what it starts, read only `readable` and `writable`, write only `writable`, for good.

    No TCP either, nor signals and abstract sockets to the outside, as far as the ABI `version` has them. A path that is
    readable and not there is passed over. Needs no_new_privs or CAP_SYS_ADMIN. Raises `InfrastructureError`.
    """
    every = _every_right(version)
    try:
        ruleset = _create(version, every)
        try:
            for path in readable:
                # What the child's user cannot come to, it cannot read either.
                with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                    _allow(ruleset, path, _READ & every)
            for path in writable:
                _allow(ruleset, path, (_READ | _WRITE) & every)
            kernel.syscall(_RESTRICT_SELF, ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as exc:
        raise InfrastructureError(f"landlock: expected the kernel to take the rules, got {exc}") from exc


def _every_right(version: int) -> int:
    """All rights on files that the ABI knows: what a ruleset handles and no rule gives is refused."""
    count = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    return (1 << count) - 1


def _create(version: int, every: int) -> int:
    made = _Ruleset(every, _ALL_TCP if version >= 4 else 0, _ALL_SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    return kernel.syscall(_CREATE_RULESET, made, size, 0)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            rights &= _OF_FILES
        kernel.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, _PathBeneath(rights, opened), 0)
    finally:
        # A rule is on an inode. /proc drops one that nobody has open when memory is short, and makes another for the
        # same path, of which the rule knows nothing: there it stays open for as long as the process lives.
        if _PROC not in path.parents:
            os.close(opened)
