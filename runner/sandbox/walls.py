"""The walls round a child: limits, another user, no new rights, Landlock and a filter on its calls, raised for good."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import runner
from runner.model.errors import InfrastructureError
from runner.sandbox import kernel, landlock, seccomp
from runner.sandbox.accounts import Account

if TYPE_CHECKING:
    from runner.model.messages import Limits

# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 1, 3, 4
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 38, 39
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

_THREADS = 1024
"""Of a child with a user id of its own; without, the limit would count all that the user runs."""

_SYSTEM = (
    # Shared libraries, which Python's packages load when they are first used, and libc's character sets beside them.
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    # For Python's zoneinfo, and libc.
    "/usr/share/zoneinfo",
    # libstdc++ opens it where the processor has no random numbers.
    "/dev/urandom",
    # DuckDB aborts the process where it cannot find its cgroup, and read how much memory and time that leaves it.
    "/proc/self",
    "/sys/fs/cgroup",
    # How many processors there are.
    "/sys/devices/system/cpu",
    # Memory allocators choose by these how they work.
    "/proc/sys/vm/overcommit_memory",
    "/sys/kernel/mm/transparent_hugepage",
)
"""What is read outside of Python's own folders, found by trying DuckDB and dbt without each."""
_SINK = Path("/dev/null")


@dataclass(frozen=True, kw_only=True)
class Support:
    """What this machine has to build walls of."""

    landlock: int | None
    """Its version (ABI), or None."""
    architecture: str


def require() -> Support:
    """Raises `InfrastructureError` where a child could not be kept in at all, and says what to do."""
    if sys.platform != "linux":
        raise InfrastructureError(
            f"walls: expected Linux, got {platform.system()}: the analysts' logic runs behind the Linux kernel's walls",
            hint="run the stage in its Docker image",
        )
    try:
        kernel.prctl(_PR_GET_NO_NEW_PRIVS)
    except OSError as exc:
        raise InfrastructureError(
            f"walls: expected a kernel with no_new_privs, got {exc}", hint="Linux 3.17 or newer"
        ) from exc
    return Support(landlock=landlock.abi(), architecture=seccomp.require().name)


def hide() -> None:
    """Keep this process's memory, environment and descriptors from others of its user id; what it forks is as hidden.

    Root sees them all the same. What it executes is not hidden. Raises `InfrastructureError` where the kernel does not.
    """
    try:
        kernel.prctl(_PR_SET_DUMPABLE, 0)
        dumpable = kernel.prctl(_PR_GET_DUMPABLE)
    except OSError as exc:
        raise InfrastructureError(f"process: expected it to be hidden from others, got {exc}") from exc
    if dumpable:
        raise InfrastructureError(f"process: expected it to be hidden from others, got dumpable={dumpable}")


def adopt_orphans() -> None:
    """Become the parent of what a child leaves running, instead of the machine's first process."""
    kernel.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def needed_folders() -> tuple[Path, ...]:
    """What the interpreter and its libraries read in a child: the list that Landlock gets as readable.

    `/etc/passwd` is none of it, nor is another process's folder in /proc.
    """
    package = Path(runner.__file__).parent
    interpreter = {sys.prefix, sys.base_prefix, *map(os.path.abspath, filter(os.path.isdir, sys.path))}
    if (package.parent / "pyproject.toml").exists():
        # A checkout that is on the path as a whole would show more than the package: the runner's home may lie in it.
        interpreter.discard(str(package.parent))
    return tuple(map(Path, dict.fromkeys((*sorted(interpreter), str(package), *_SYSTEM))))


def raise_walls(*, readable: Iterable[Path], writable: Iterable[Path], limits: Limits, account: Account | None) -> None:
    """Shut this process in, for good: it is a freshly forked child that has one thread, and no code of a job has run.

    What it has open stays open, so the caller closes what is not the job's. `account` may be None where this process is
    an ordinary user's. Raises `InfrastructureError`; the child must then end.
    """
    parent = os.getppid()
    _require_one_thread()
    if account is None and 0 in os.getresuid():
        raise InfrastructureError("walls: expected a user id for the child of a worker that is root, got none")
    try:
        _limit(limits, account)
        _drop_rights(account)
        kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)
        hide()
        # A change of the user id clears it, so it comes after.
        kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except OSError as exc:
        raise InfrastructureError(f"walls: expected the kernel to raise them, got {exc}") from exc
    if os.getppid() != parent:
        raise InfrastructureError("walls: expected the zygote to live, got a child whose parent has ended")
    version = landlock.abi()
    if version is not None:
        landlock.restrict(version, readable=readable, writable=(*writable, _SINK))
    seccomp.install()
    _verify(account, version)


def _require_one_thread() -> None:
    """Landlock holds for the thread that asks, and what it starts."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise InfrastructureError(f"walls: expected a child of one thread, got {threads}")


def _limit(limits: Limits, account: Account | None) -> None:
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: limits.cpu_s,
        resource.RLIMIT_DATA: _data_bytes() + limits.data_bytes,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.open_files,
    }
    if account is not None:
        bounds[resource.RLIMIT_NPROC] = _THREADS
    for what, bound in bounds.items():
        _, highest = resource.getrlimit(what)
        if highest != resource.RLIM_INFINITY:
            bound = min(bound, highest)
        # SIGXCPU at the one and SIGKILL at the other, for a job that passes over the first.
        hard = bound + 1 if what == resource.RLIMIT_CPU and bound != highest else bound
        resource.setrlimit(what, (bound, hard))


def _data_bytes() -> int:
    """What this process has of the memory that RLIMIT_DATA counts: as a fork, all that the zygote had."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[5])
    return pages * resource.getpagesize()


class _CapabilityHeader(ctypes.Structure):
    """The kernel's `struct __user_cap_header_struct`."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


_CAPABILITY_VERSION = 0x20080522
"""The third, of 64 capabilities: two of `struct __user_cap_data_struct`, of 3 words each."""


def _drop_rights(account: Account | None) -> None:
    """Groups, user and capabilities, in the order in which each still permits the next."""
    kernel.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    with suppress(OSError):
        # Past the last one the kernel says EINVAL; without CAP_SETPCAP EPERM, and then it does not matter: nothing can
        # be executed, which is how capabilities of the bounding set would be had.
        for capability in range(64):
            kernel.prctl(_PR_CAPBSET_DROP, capability)
    if account is not None:
        os.setgroups([])
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    kernel.call("capset", ctypes.byref(_CapabilityHeader(_CAPABILITY_VERSION, 0)), (ctypes.c_uint32 * 6)())


def _verify(account: Account | None, version: int | None) -> None:
    """What can be told from inside at no cost; the tests try the rest."""
    holds = {
        "no way back to root": _refused(lambda: os.setresuid(0, 0, 0)),
        "no socket": _refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)),
        "an end with its parent": _refused(lambda: kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)),
        "no new rights": kernel.prctl(_PR_GET_NO_NEW_PRIVS) == 1,
        "to be hidden": kernel.prctl(_PR_GET_DUMPABLE) == 0,
        "the root folder closed": version is None or _refused(lambda: os.open("/", os.O_RDONLY)),
        "the account's ids alone": account is None
        or (set(os.getresuid()), set(os.getresgid()), os.getgroups()) == ({account.uid}, {account.gid}, []),
    }
    missing = [name for name, held in holds.items() if not held]
    if missing:
        raise InfrastructureError(f"walls: expected {', '.join(missing)}; got a child without")


def _refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except PermissionError:
        return True
    return False
