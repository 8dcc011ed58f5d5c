"""The filter on a child's system calls: which it may not make, for x86-64 and arm64, as a program for the kernel."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from errno import EFAULT, ENOSYS, EPERM
from typing import NamedTuple

from runner.model.errors import InfrastructureError
from runner.sandbox import kernel

# ---------------------------------------------------------------- what is refused


@dataclass(frozen=True)
class Condition:
    """On the low 32 bits of an argument, which are all that the kernel takes of those looked at here."""

    argument: int
    values: tuple[int | None, ...]
    """None stands for the child's own process id."""
    mask: int = 0xFFFFFFFF
    among: bool = True
    """False turns it round: met where the argument is none of the values."""


@dataclass(frozen=True)
class Refusal:
    """One system call: it answers `errno`, unless it has conditions and meets all of them."""

    x86_64: int | None
    arm64: int | None
    errno: int = EPERM
    unless: tuple[Condition, ...] = ()


def _own(argument: int) -> Condition:
    """The process itself, as its id or as 0."""
    return Condition(argument, (0, None))


_AF_UNIX = 1
_SOCK_STREAM, _SOCK_TYPE_MASK = 1, 0xF
_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_PRIO_PROCESS, _IOPRIO_WHO_PROCESS = 0, 1
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_SETLEASE, _F_NOTIFY = 8, 10, 15, 1024, 1026
_FIOSETOWN, _SIOCSPGRP = 0x8901, 0x8902
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_PR_SET_PDEATHSIG = 1
_O_TRUNC, _O_ACCMODE = 0o1000, 0o3


def _no_reader_that_truncates(flags: int) -> Condition:
    """O_TRUNC with O_RDONLY, or with the odd mode 3: the file is cut off, and Landlock is not asked for writing."""
    return Condition(flags, (_O_TRUNC, _O_TRUNC | _O_ACCMODE), mask=_O_TRUNC | _O_ACCMODE, among=False)


REFUSED: Mapping[str, Refusal] = {
    # No network, and no name by which another process could be met. A pair of connected streams leads nowhere else, and
    # asyncio makes one for every loop, which dbt-duckdb makes for every Python model; a datagram pair could be written
    # to any address.
    "socket": Refusal(41, 198),
    "socketpair": Refusal(
        53, 199, unless=(Condition(0, (_AF_UNIX,)), Condition(1, (_SOCK_STREAM,), mask=_SOCK_TYPE_MASK))
    ),
    "bind": Refusal(49, 200),
    "connect": Refusal(42, 203),
    "listen": Refusal(50, 201),
    "accept": Refusal(43, 202),
    "accept4": Refusal(288, 242),
    # No process but this one: threads alone. libc falls back from clone3, whose flags lie in memory where no filter
    # sees them, to clone.
    "clone": Refusal(56, 220, unless=(Condition(0, (_CLONE_THREAD,), mask=_CLONE_THREAD | _CLONE_NAMESPACES),)),
    "clone3": Refusal(435, 435, ENOSYS),
    "fork": Refusal(57, None),
    "vfork": Refusal(58, None),
    "execve": Refusal(59, 221),
    "execveat": Refusal(322, 281),
    "uselib": Refusal(134, None),
    # The worker ends the child by its group, and the kernel ends it with its parent.
    "setpgid": Refusal(109, 154),
    "setsid": Refusal(112, 157),
    "prctl": Refusal(157, 167, unless=(Condition(0, (_PR_SET_PDEATHSIG,), among=False),)),
    # No signal to others: neither sent, nor owed to them by a descriptor, nor by a lease on a file that was handed in.
    "kill": Refusal(62, 129, unless=(Condition(0, (None,)),)),
    "tkill": Refusal(200, 130, unless=(Condition(0, (None,)),)),
    "tgkill": Refusal(234, 131, unless=(Condition(0, (None,)),)),
    "rt_sigqueueinfo": Refusal(129, 138),
    "rt_tgsigqueueinfo": Refusal(297, 240),
    "pidfd_send_signal": Refusal(424, 424),
    "pidfd_open": Refusal(434, 434),
    "pidfd_getfd": Refusal(438, 438),
    "fcntl": Refusal(
        72, 25, unless=(Condition(1, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_SETLEASE, _F_NOTIFY), among=False),)
    ),
    # Nor keys into another's terminal.
    "ioctl": Refusal(16, 29, unless=(Condition(1, (_FIOSETOWN, _SIOCSPGRP, _TIOCSTI, _TIOCLINUX), among=False),)),
    # Nothing done to other processes, and nothing learned of them.
    "ptrace": Refusal(101, 117),
    "process_vm_readv": Refusal(310, 270),
    "process_vm_writev": Refusal(311, 271),
    "process_madvise": Refusal(440, 440),
    "process_mrelease": Refusal(448, 448),
    "kcmp": Refusal(312, 272),
    "get_robust_list": Refusal(274, 100, unless=(_own(0),)),
    "move_pages": Refusal(279, 239, unless=(_own(0),)),
    "migrate_pages": Refusal(256, 238, unless=(_own(0),)),
    "prlimit64": Refusal(302, 261, unless=(_own(0),)),
    "setpriority": Refusal(141, 140, unless=(Condition(0, (_PRIO_PROCESS,)), _own(1))),
    "ioprio_set": Refusal(251, 30, unless=(Condition(0, (_IOPRIO_WHO_PROCESS,)), _own(1))),
    "sched_setaffinity": Refusal(203, 122, unless=(_own(0),)),
    "sched_setattr": Refusal(314, 274, unless=(_own(0),)),
    "sched_setparam": Refusal(142, 118, unless=(_own(0),)),
    "sched_setscheduler": Refusal(144, 119, unless=(_own(0),)),
    # Nowhere to meet another process of the same user, now or in a later job: shared memory, queues, keyrings.
    "shmget": Refusal(29, 194),
    "shmat": Refusal(30, 196),
    "shmctl": Refusal(31, 195),
    "shmdt": Refusal(67, 197),
    "semget": Refusal(64, 190),
    "semop": Refusal(65, 193),
    "semtimedop": Refusal(220, 192),
    "semctl": Refusal(66, 191),
    "msgget": Refusal(68, 186),
    "msgsnd": Refusal(69, 189),
    "msgrcv": Refusal(70, 188),
    "msgctl": Refusal(71, 187),
    "mq_open": Refusal(240, 180),
    "mq_unlink": Refusal(241, 181),
    "mq_timedsend": Refusal(242, 182),
    "mq_timedreceive": Refusal(243, 183),
    "mq_notify": Refusal(244, 184),
    "mq_getsetattr": Refusal(245, 185),
    "add_key": Refusal(248, 217),
    "request_key": Refusal(249, 218),
    "keyctl": Refusal(250, 219),
    # Files, where Landlock does not look. Below ABI 3 it lets be cut off what may only be read: by path, or by opening
    # it for anything but writing (openat2 has its flags in memory, where no filter sees them).
    "truncate": Refusal(76, 45),
    "open": Refusal(2, None, unless=(_no_reader_that_truncates(1),)),
    "openat": Refusal(257, 56, unless=(_no_reader_that_truncates(2),)),
    "openat2": Refusal(437, 437, ENOSYS),
    # At no ABI does it look at watching, at opening without a path, at owners and attributes. shutil passes over an
    # attribute that may not be set.
    "inotify_init": Refusal(253, None),
    "inotify_init1": Refusal(294, 26),
    "inotify_add_watch": Refusal(254, 27),
    "fanotify_init": Refusal(300, 262),
    "fanotify_mark": Refusal(301, 263),
    "name_to_handle_at": Refusal(303, 264),
    "open_by_handle_at": Refusal(304, 265),
    "chown": Refusal(92, None),
    "fchown": Refusal(93, 55),
    "lchown": Refusal(94, None),
    "fchownat": Refusal(260, 54),
    "setxattr": Refusal(188, 5),
    "lsetxattr": Refusal(189, 6),
    "fsetxattr": Refusal(190, 7),
    "setxattrat": Refusal(463, 463),
    "removexattr": Refusal(197, 14),
    "lremovexattr": Refusal(198, 15),
    "fremovexattr": Refusal(199, 16),
    "removexattrat": Refusal(466, 466),
    "file_setattr": Refusal(469, 469),
    "quotactl": Refusal(179, 60),
    "quotactl_fd": Refusal(443, 443),
    # Whoever opens what looks like an output must not wait for ever: no pipes by name, and no devices.
    "mknod": Refusal(133, None),
    "mknodat": Refusal(259, 33),
    # Memory that no limit of the process counts.
    "memfd_create": Refusal(319, 279),
    "memfd_secret": Refusal(447, 447),
    # The kernel's wide and little-used doors. io_uring would go round this filter.
    "io_uring_setup": Refusal(425, 425),
    "io_uring_enter": Refusal(426, 426),
    "io_uring_register": Refusal(427, 427),
    "bpf": Refusal(321, 280),
    "perf_event_open": Refusal(298, 241),
    "userfaultfd": Refusal(323, 282),
    "modify_ldt": Refusal(154, None),
    "personality": Refusal(135, 92),
    "vmsplice": Refusal(278, 75),
    # Mounts and namespaces.
    "mount": Refusal(165, 40),
    "umount2": Refusal(166, 39),
    "move_mount": Refusal(429, 429),
    "open_tree": Refusal(428, 428),
    "open_tree_attr": Refusal(467, 467),
    "fsopen": Refusal(430, 430),
    "fsconfig": Refusal(431, 431),
    "fsmount": Refusal(432, 432),
    "fspick": Refusal(433, 433),
    "mount_setattr": Refusal(442, 442),
    "statmount": Refusal(457, 457),
    "listmount": Refusal(458, 458),
    "unshare": Refusal(272, 97),
    "setns": Refusal(308, 268),
    "chroot": Refusal(161, 51),
    "pivot_root": Refusal(155, 41),
    # The machine: only root may, and the child never is.
    "init_module": Refusal(175, 105),
    "finit_module": Refusal(313, 273),
    "delete_module": Refusal(176, 106),
    "kexec_load": Refusal(246, 104),
    "kexec_file_load": Refusal(320, 294),
    "swapon": Refusal(167, 224),
    "swapoff": Refusal(168, 225),
    "reboot": Refusal(169, 142),
    "acct": Refusal(163, 89),
    "syslog": Refusal(103, 116),
    "vhangup": Refusal(153, 58),
    "iopl": Refusal(172, None),
    "ioperm": Refusal(173, None),
    "sethostname": Refusal(170, 161),
    "setdomainname": Refusal(171, 162),
    "settimeofday": Refusal(164, 170),
    "clock_settime": Refusal(227, 112),
    "clock_adjtime": Refusal(305, 266),
    "adjtimex": Refusal(159, 171),
}
"""By name. Numbers: the kernel's arch/x86/entry/syscalls/syscall_64.tbl, and scripts/syscall.tbl for arm64."""

HIGHEST = 469
"""file_setattr, of Linux 6.17: what is above was not known when this was written, and answers ENOSYS as on a kernel
that does not have it. Both architectures number new calls alike."""

# ---------------------------------------------------------------- the program


class Instruction(NamedTuple):
    """The kernel's `struct sock_filter`: classic BPF. Jumps count the instructions that are passed over."""

    code: int
    jump_true: int
    jump_false: int
    operand: int


LOAD, AND, JUMP_IF_EQUAL, JUMP_IF_ABOVE, JUMP_IF_AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x25, 0x35, 0x06
NUMBER_AT, ARCHITECTURE_AT = 0, 4
ARGUMENTS_AT = 16
"""Offsets in `struct seccomp_data`. Each argument takes 8 bytes, its low half first."""
ALLOW, FAIL, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_X32_BIT = 0x40000000


@dataclass(frozen=True)
class Architecture:
    name: str
    audit: int
    """How the kernel names it to a filter: AUDIT_ARCH_* in linux/audit.h."""
    seccomp: int
    """The number of seccomp(2)."""

    def refusals(self) -> Iterator[tuple[int, Refusal]]:
        """By number, those that the architecture has."""
        for refusal in REFUSED.values():
            number = refusal.x86_64 if self is X86_64 else refusal.arm64
            if number is not None:
                yield number, refusal


X86_64 = Architecture("x86-64", 0xC000003E, 317)
ARM64 = Architecture("arm64", 0xC00000B7, 277)
_MACHINES = {"x86_64": X86_64, "aarch64": ARM64}


def architecture() -> Architecture:
    """This machine's. Raises `InfrastructureError` where there is no filter for it."""
    machine = platform.machine()
    found = _MACHINES.get(machine) if sys.maxsize > 2**32 else None
    if found is None:
        bits = sys.maxsize.bit_length() + 1
        raise InfrastructureError(
            f"processor: expected 64-bit Python on x86-64 or arm64, got {bits}-bit Python on {machine}",
            hint="run the stage on a machine of one of these",
        )
    return found


def program(of: Architecture, pid: int) -> list[Instruction]:
    """The filter for the process `pid`.

    A call of another architecture (`int 0x80`, x32) kills the process: its numbers mean other calls.
    """
    made = [
        Instruction(LOAD, 0, 0, ARCHITECTURE_AT),
        Instruction(JUMP_IF_EQUAL, 1, 0, of.audit),
        Instruction(RETURN, 0, 0, KILL_PROCESS),
        Instruction(LOAD, 0, 0, NUMBER_AT),
    ]
    if of is X86_64:
        made += [Instruction(JUMP_IF_AT_LEAST, 0, 1, _X32_BIT), Instruction(RETURN, 0, 0, KILL_PROCESS)]
    made += [Instruction(JUMP_IF_ABOVE, 0, 1, HIGHEST), Instruction(RETURN, 0, 0, FAIL | ENOSYS)]
    for number, refusal in of.refusals():
        answer = _answer(refusal, pid)
        made += [Instruction(JUMP_IF_EQUAL, 0, len(answer), number), *answer]
    return [*made, Instruction(RETURN, 0, 0, ALLOW)]


def _answer(refusal: Refusal, pid: int) -> list[Instruction]:
    """What follows on a call's number; it ends in every case."""
    made = [Instruction(RETURN, 0, 0, FAIL | refusal.errno)]
    if refusal.unless:
        made.insert(0, Instruction(RETURN, 0, 0, ALLOW))
    # From the last condition to the first, since each passes over those after it to the refusal, which stands last.
    for condition in reversed(refusal.unless):
        on, out = 0, len(made) - 1
        found, other = (on, out) if condition.among else (out, on)
        last = len(condition.values) - 1
        made = [
            Instruction(LOAD, 0, 0, ARGUMENTS_AT + 8 * condition.argument),
            Instruction(AND, 0, 0, condition.mask),
            *(
                Instruction(
                    JUMP_IF_EQUAL, found + last - place, other if place == last else 0, pid if value is None else value
                )
                for place, value in enumerate(condition.values)
            ),
            *made,
        ]
    return made


# ---------------------------------------------------------------- the kernel

_SET_MODE_FILTER, _TSYNC = 1, 1


class _Program(ctypes.Structure):
    """The kernel's `struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def require() -> Architecture:
    """This machine's architecture. Raises `InfrastructureError` where its kernel takes no filters."""
    found = architecture()
    try:
        kernel.syscall(found.seccomp, _SET_MODE_FILTER, _TSYNC, None)
    except OSError as exc:
        # It looks for the program last: one that is not there is all that is wrong.
        if exc.errno == EFAULT:
            return found
        raise InfrastructureError(
            f"seccomp: expected a kernel that takes filters for all threads, got {exc}",
            hint="Linux 3.17 or newer, and a container's own profile that permits seccomp(2) as Docker's default does",
        ) from exc
    raise InfrastructureError("seccomp: expected the kernel to refuse a filter that is not there, got it accepted")


def install() -> None:
    """Put the filter on this process, for good: on all its threads, and on what they start.

    Needs no_new_privs or CAP_SYS_ADMIN. Raises `InfrastructureError` where the kernel refuses it, or where a thread
    has another filter already.
    """
    found = architecture()
    made = b"".join(struct.pack("=HBBI", *each) for each in program(found, os.getpid()))
    held = ctypes.create_string_buffer(made, len(made))
    whole = _Program(len(made) // 8, ctypes.addressof(held))
    try:
        thread = kernel.syscall(found.seccomp, _SET_MODE_FILTER, _TSYNC, whole)
    except OSError as exc:
        raise InfrastructureError(f"seccomp: expected the kernel to take the filter, got {exc}") from exc
    if thread:
        raise InfrastructureError(f"seccomp: expected all threads to take the filter, got thread {thread} with its own")
