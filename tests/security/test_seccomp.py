"""The filter on a child's calls: both architectures' programs interpreted, and this machine's tried call by call."""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Callable, Iterator
from errno import EPERM
from pathlib import Path

import pytest

from runner.model.errors import InfrastructureError
from runner.sandbox import kernel
from runner.sandbox.seccomp import ARM64, HIGHEST, REFUSED, X86_64, Architecture, architecture, program, require
from tests.support.walled import KINDS, Yard, open_yard

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")


BOTH = [pytest.param(X86_64, id="x86-64"), pytest.param(ARM64, id="arm64")]
PID = 4242
ALLOWED, KILLED = "allowed", "killed"
_ENOSYS, _SIGSYS = 38, 31


def interpret(of: Architecture, number: int, arguments: tuple[int, ...], *, audit: int | None = None) -> str | int:
    """What the program answers to a call, by running it as the kernel would: an errno, or `allowed` or `killed`."""
    words = [argument & 0xFFFFFFFFFFFFFFFF for argument in (*arguments, *(0,) * 6)[:6]]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, of.audit if audit is None else audit, 0, *words)
    code = program(of, PID)
    at, accumulator = 0, 0
    while True:
        operation, jump_true, jump_false, operand = code[at]
        at += 1
        match operation:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                accumulator = struct.unpack_from("<I", data, operand)[0]
            case 0x54:  # BPF_ALU | BPF_AND | BPF_K
                accumulator &= operand
            case 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
                at += jump_true if accumulator == operand else jump_false
            case 0x25:  # BPF_JMP | BPF_JGT | BPF_K
                at += jump_true if accumulator > operand else jump_false
            case 0x35:  # BPF_JMP | BPF_JGE | BPF_K
                at += jump_true if accumulator >= operand else jump_false
            case 0x06:  # BPF_RET | BPF_K
                action = operand & 0xFFFF0000
                assert action in (0x7FFF0000, 0x00050000, 0x80000000), hex(operand)
                answers: dict[int, str | int] = {0x7FFF0000: ALLOWED, 0x80000000: KILLED}
                return answers.get(action, operand & 0xFFFF)
            case _:
                raise AssertionError(f"an instruction that the filter has no need of: {operation:#x}")


def number_of(of: Architecture, name: str) -> int:
    refusal = REFUSED[name]
    number = refusal.x86_64 if of is X86_64 else refusal.arm64
    assert number is not None
    return number


# ---------------------------------------------------------------- the programs, interpreted


@pytest.mark.parametrize("of", BOTH)
def test_a_program_is_one_that_the_kernel_takes(of: Architecture) -> None:
    """At most 4,096 instructions, each jump to one that is there, and a return at the end (bpf_check_classic)."""
    code = program(of, PID)
    assert len(code) <= 4096
    assert code[-1].code == 0x06
    for at, instruction in enumerate(code):
        assert all(0 <= jump <= 255 for jump in instruction[1:3])
        if instruction.code in (0x15, 0x25, 0x35):
            assert at + 1 + max(instruction[1:3]) < len(code)
        if instruction.code == 0x20:
            assert instruction.operand in range(0, 64, 4)


@pytest.mark.parametrize("of", BOTH)
def test_each_call_that_is_refused_whatever_it_asks_answers_its_errno(of: Architecture) -> None:
    always = {number: refusal.errno for number, refusal in of.refusals() if not refusal.unless}
    assert len(always) > 100
    for number, errno in always.items():
        for arguments in ((0,) * 6, (-1,) * 6, (PID,) * 6, (1,) * 6):
            assert interpret(of, number, arguments) == errno


@pytest.mark.parametrize("of", BOTH)
def test_each_call_that_is_not_named_is_allowed_up_to_the_highest_and_unknown_above(of: Architecture) -> None:
    named = {number for number, _ in of.refusals()}
    assert {interpret(of, number, (-1,) * 6) for number in set(range(HIGHEST + 1)) - named} == {ALLOWED}
    assert {interpret(of, number, (0,) * 6) for number in (*range(HIGHEST + 1, 1024), 2**30 - 1)} == {_ENOSYS}


@pytest.mark.parametrize("of", BOTH)
@pytest.mark.parametrize("audit", [0xC000003E, 0x40000003, 0xC00000B7, 0x40000028, 0xC00000F3, 0])
def test_another_architectures_call_kills_the_process(of: Architecture, audit: int) -> None:
    """x86-64, i386 (`int 0x80`), arm64, 32-bit arm, riscv64, and none that there is."""
    for number in (0, 1, 41, 59, 198, HIGHEST):
        own = audit == of.audit
        assert (interpret(of, number, (), audit=audit) == KILLED) is not own


def test_x32_kills_the_process() -> None:
    """Its numbers have a bit set, and reach the same calls under the same architecture's name."""
    assert {interpret(X86_64, 0x40000000 | number, ()) for number in (0, 1, 41, 59, 547)} == {KILLED}
    assert interpret(X86_64, -1, ()) == KILLED
    assert interpret(ARM64, -1, ()) == _ENOSYS


THREAD = 0x003D0F00
"""What glibc and musl start a thread with: CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS and the tids."""
HIGH = 0xDEADBEEF00000000
"""What the kernel does not look at."""

CONDITIONS: list[tuple[str, tuple[int, ...], bool]] = [
    # a pair of connected streams, and no other
    ("socketpair", (1, 1, 0), True),
    ("socketpair", (1, 1 | 0o2000000 | 0o4000, 0), True),
    ("socketpair", (HIGH | 1, HIGH | 1, 0), True),
    ("socketpair", (1, 2, 0), False),
    ("socketpair", (1, 5, 0), False),
    ("socketpair", (2, 1, 0), False),
    ("socketpair", (0, 0, 0), False),
    ("socketpair", (1, 3, 0), False),
    ("socketpair", (1, 0x11, 0), True),
    # threads, and no process, in no other namespace
    ("clone", (THREAD,), True),
    ("clone", (HIGH | THREAD,), True),
    ("clone", (17,), False),
    ("clone", (0x01200011,), False),
    ("clone", (0x4111,), False),
    ("clone", (0,), False),
    ("clone", (THREAD & ~0x10000,), False),
    ("clone", (THREAD & ~0x10000 | 0x10000 << 32,), False),
    *(("clone", (THREAD | new,), False) for new in (0x20000, *(1 << bit for bit in range(25, 31)))),
    # signals to this process
    *(
        (name, (pid, 9), pid in (PID, HIGH | PID))
        for name in ("kill", "tkill", "tgkill")
        for pid in (PID, HIGH | PID, PID + 1, 1, 0, -1, -PID, PID << 32)
    ),
    # this process, by its id or as 0
    *(
        (name, (pid, 1, 1), pid in (PID, 0, HIGH | PID, HIGH))
        for name in (
            "prlimit64",
            "sched_setaffinity",
            "sched_setattr",
            "sched_setparam",
            "sched_setscheduler",
            "migrate_pages",
            "move_pages",
            "get_robust_list",
        )
        for pid in (PID, 0, HIGH | PID, HIGH, 1, PID + 1, -1, 2**31)
    ),
    ("setpriority", (0, 0, 5), True),
    ("setpriority", (0, PID, 5), True),
    ("setpriority", (0, 1, 5), False),
    ("setpriority", (1, 0, 5), False),
    ("setpriority", (2, PID, 5), False),
    ("ioprio_set", (1, 0, 5), True),
    ("ioprio_set", (1, PID, 5), True),
    ("ioprio_set", (1, 1, 5), False),
    ("ioprio_set", (2, 0, 5), False),
    ("ioprio_set", (3, PID, 5), False),
    # the parent's end ends this process
    ("prctl", (1, 0), False),
    ("prctl", (HIGH | 1, 0), False),
    ("prctl", (1 << 32, 0), True),
    ("prctl", (15, 1), True),
    ("prctl", (22, 2), True),
    # no signal owed by a descriptor
    *(("fcntl", (3, command, 1), False) for command in (8, 10, 15, 1024, 1026, HIGH | 8)),
    *(("fcntl", (3, command, 1), True) for command in (0, 1, 2, 3, 4, 5, 6, 7, 9, 16, 37, 1030, 1031, 1032, 8 << 32)),
    *(("ioctl", (3, command, 1), False) for command in (0x8901, 0x8902, 0x5412, 0x541C, HIGH | 0x5412)),
    *(("ioctl", (3, command, 1), True) for command in (0x5401, 0x5413, 0x541B, 0x5421, 0x5451, 0x8903)),
    # a reader that truncates
    *(("openat", (-100, 8, flags), False) for flags in (0o1000, 0o1003, 0o2001000, 0o1100, HIGH | 0o1000)),
    *(("openat", (-100, 8, flags), True) for flags in (0, 0o1001, 0o1002, 0o1101, 0o2000000, 0o3, 0o1000 << 32)),
]


@pytest.mark.parametrize("of", BOTH)
def test_a_call_that_is_refused_for_what_it_asks_is_allowed_for_all_else(of: Architecture) -> None:
    wrong = [
        (name, [hex(argument) for argument in arguments], answered)
        for name, arguments, allowed in CONDITIONS
        if (answered := interpret(of, number_of(of, name), arguments)) != (ALLOWED if allowed else EPERM)
    ]
    assert not wrong
    tried = {name for name, _, _ in CONDITIONS} | {"open"}
    assert tried == {name for name, refusal in REFUSED.items() if refusal.unless}


def test_the_older_open_is_looked_at_as_well() -> None:
    assert interpret(X86_64, 2, (8, 0o1000)) == EPERM
    assert interpret(X86_64, 2, (8, 0o1003)) == EPERM
    assert interpret(X86_64, 2, (8, 0o1101)) == ALLOWED


MUST_BE_REFUSED = frozenset(
    """
    socket bind connect listen accept accept4 fork vfork clone3 execve execveat rt_sigqueueinfo rt_tgsigqueueinfo
    pidfd_send_signal pidfd_open pidfd_getfd ptrace process_vm_readv process_vm_writev process_madvise kcmp
    perf_event_open bpf userfaultfd io_uring_setup io_uring_enter io_uring_register add_key request_key keyctl mount
    umount2 move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr unshare setns chroot pivot_root
    init_module finit_module delete_module kexec_load kexec_file_load open_by_handle_at name_to_handle_at quotactl
    quotactl_fd swapon swapoff reboot settimeofday clock_settime clock_adjtime adjtimex personality shmget shmat shmctl
    semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedreceive truncate
    memfd_create mknodat setpgid setsid
    """.split()  # noqa: SIM905 - a list of a hundred names reads better so
)


def test_what_must_be_refused_always_has_no_condition() -> None:
    assert [name for name in MUST_BE_REFUSED if name not in REFUSED or REFUSED[name].unless] == []
    assert {name for name, refusal in REFUSED.items() if refusal.errno == _ENOSYS} == {"clone3", "openat2"}


# ---------------------------------------------------------------- the numbers


def defined(header: Path) -> dict[str, int]:
    """The calls that a kernel's header names."""
    lines = re.finditer(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text("utf-8"), re.MULTILINE)
    return {each[1]: int(each[2]) for each in lines}


@pytest.mark.parametrize(
    ("of", "place"),
    [
        (X86_64, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        (ARM64, "/usr/include/asm-generic/unistd.h"),
        (ARM64, "/usr/include/aarch64-linux-gnu/asm/unistd_64.h"),
    ],
)
def test_the_numbers_are_those_of_the_kernels_headers(of: Architecture, place: str) -> None:
    header = Path(place)
    if not header.exists():
        pytest.skip(f"no {header}")
    known = defined(header)
    assert known["read"] == (0 if of is X86_64 else 63)
    own = {name: refusal.x86_64 if of is X86_64 else refusal.arm64 for name, refusal in REFUSED.items()}
    assert {name: number for name, number in own.items() if name in known and number != known[name]} == {}
    newest = max(known.values())
    assert {
        name for name, number in own.items() if number is not None and number <= newest and name not in known
    } == set()
    assert {name for name, number in own.items() if number is None and name in known} == set()


@pytest.mark.parametrize("of", BOTH)
def test_no_number_is_named_twice(of: Architecture) -> None:
    numbers = [number for number, _ in of.refusals()]
    assert len(numbers) == len(set(numbers))


# ---------------------------------------------------------------- this machine's, tried


@pytest.fixture(scope="module", params=KINDS)
def yard(request: pytest.FixtureRequest) -> Iterator[Yard]:
    with open_yard(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def ordinary() -> Iterator[Yard]:
    """An ordinary user's, whose children could do all to it that one user's processes may."""
    with open_yard("worker") as made:
        (made.room / "scratch" / "file").write_text("text")
        (made.room / "scratch" / "file").chmod(0o666)
        yield made


UNMET = {
    "socketpair": (1, 2, 0, 0),
    "clone": (17, 0, 0, 0, 0),
    "kill": (1, 0),
    "tkill": (1, 0),
    "tgkill": (1, 1, 0),
    "prctl": (1, 0, 0, 0, 0),
    "fcntl": (0, 8, 1),
    "ioctl": (0, 0x5412, 0),
    "get_robust_list": (1, 0, 0),
    "move_pages": (1, 0, 0, 0, 0, 0),
    "migrate_pages": (1, 0, 0, 0),
    "prlimit64": (1, 7, 0, 0),
    "setpriority": (0, 1, 0),
    "ioprio_set": (1, 1, 0),
    "sched_setaffinity": (1, 0, 0),
    "sched_setattr": (1, 0, 0),
    "sched_setparam": (1, 0),
    "sched_setscheduler": (1, 0, 0),
    "open": (0, 0o1000, 0),
    "openat": (-100, 0, 0o1000, 0),
}
"""What to ask of a call that is refused for what it asks."""


def made_each(calls: dict[str, list[int]]) -> dict[str, int]:
    """Make each call by its number; the errno of each, 0 where it succeeded."""
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    pid, answers = os.getpid(), {}
    for name, (number, *arguments) in calls.items():
        ctypes.set_errno(0)
        answer = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
        if os.getpid() != pid:
            os._exit(1)  # a process that should not be
        answers[name] = ctypes.get_errno() if answer == -1 else 0
    return answers


def test_each_refused_call_answers_its_errno_behind_walls(yard: Yard) -> None:
    """By number, on the real kernel. What is asked for would do nothing if it were let through."""
    own = architecture()
    calls = {}
    for name, refusal in REFUSED.items():
        number = refusal.x86_64 if own is X86_64 else refusal.arm64
        if number is not None:
            calls[name] = [number, *UNMET.get(name, (-1,) * 6)]
    outcome = yard.attempt(made_each, calls)
    assert outcome.error is None, outcome
    assert outcome.value == {name: REFUSED[name].errno for name in calls}


def test_a_call_that_is_not_known_yet_answers_that_there_is_none(yard: Yard) -> None:
    calls = {"next": [HIGHEST + 1, 0], "far": [4000, 0]}
    assert yard.attempt(made_each, calls).value == {"next": _ENOSYS, "far": _ENOSYS}


def internet_socket() -> None:
    import socket

    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()


def unix_socket() -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind("\0a name of its own")


def datagram_pair() -> None:
    import socket

    for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
        each.close()


def fork() -> None:
    import os

    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def run_a_program() -> None:
    import subprocess

    subprocess.run(["/bin/true"], check=True)


def become_a_program() -> None:
    import os

    os.execv("/bin/true", ["true"])  # noqa: S606


def signal_the_parent() -> None:
    import os

    os.kill(os.getppid(), 0)


def signal_the_group() -> None:
    import os

    os.kill(0, 0)


def signal_a_thread_of_the_parent() -> None:
    import os

    from runner.sandbox import kernel
    from runner.sandbox.seccomp import REFUSED, X86_64, architecture

    of = REFUSED["tkill"]
    kernel.syscall((of.x86_64 if architecture() is X86_64 else of.arm64) or 0, os.getppid(), 0)


def hold_the_parent() -> None:
    import os

    os.close(os.pidfd_open(os.getppid()))


def have_a_descriptor_signal_the_parent() -> None:
    import fcntl
    import os

    reading, _ = os.pipe()
    fcntl.fcntl(reading, fcntl.F_SETOWN, os.getppid())


def hold_others_up_by_a_lease() -> None:
    import fcntl
    from pathlib import Path

    Path("scratch/own").write_text("text")
    with Path("scratch/own").open("rb") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)


def be_traced() -> None:
    from runner.sandbox import kernel

    kernel.call("ptrace", 0, 0, 0, 0)


def limit_the_parent() -> None:
    import os
    import resource

    resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)


def slow_the_parent() -> None:
    import os

    os.setpriority(os.PRIO_PROCESS, os.getppid(), os.getpriority(os.PRIO_PROCESS, os.getppid()))


def move_the_parent() -> None:
    import os

    os.sched_setaffinity(os.getppid(), os.sched_getaffinity(os.getppid()))


def shared_memory() -> None:
    from runner.sandbox import kernel

    kernel.call("shmctl", kernel.call("shmget", 0, 4096, 0o600), 0, None)


def semaphores() -> None:
    from runner.sandbox import kernel

    kernel.call("semctl", kernel.call("semget", 0, 1, 0o600), 0, 0)


def messages() -> None:
    from runner.sandbox import kernel

    kernel.call("msgctl", kernel.call("msgget", 0, 0o600), 0, None)


def unnamed_file() -> None:
    import os

    os.close(os.memfd_create("memory"))


def watch_a_folder() -> None:
    import os

    from runner.sandbox import kernel

    os.close(kernel.call("inotify_init1", 0))


def cut_off_by_path() -> None:
    import os

    os.truncate("scratch/file", 4)


def cut_off_by_reading() -> None:
    import os

    os.close(os.open("scratch/file", os.O_RDONLY | os.O_TRUNC))


def named_pipe() -> None:
    import os

    os.mkfifo(f"scratch/pipe-{os.getpid()}")


def change_an_owner() -> None:
    import os

    os.chown("scratch/", -1, -1)


def leave_the_session() -> None:
    import os

    os.setsid()


def leave_the_group() -> None:
    import os

    os.setpgid(0, 0)


def outlive_the_parent() -> None:
    from runner.sandbox import kernel

    kernel.prctl(1, 0)


ATTEMPTS: list[Callable[[], None]] = [
    internet_socket,
    unix_socket,
    datagram_pair,
    fork,
    run_a_program,
    become_a_program,
    signal_the_parent,
    signal_the_group,
    signal_a_thread_of_the_parent,
    hold_the_parent,
    have_a_descriptor_signal_the_parent,
    hold_others_up_by_a_lease,
    be_traced,
    limit_the_parent,
    slow_the_parent,
    move_the_parent,
    shared_memory,
    semaphores,
    messages,
    unnamed_file,
    watch_a_folder,
    cut_off_by_path,
    cut_off_by_reading,
    named_pipe,
    change_an_owner,
    leave_the_session,
    leave_the_group,
    outlive_the_parent,
]


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.__name__)
def test_what_the_filter_alone_refuses_and_nothing_else_did(ordinary: Yard, attempt: Callable[[], None]) -> None:
    free = ordinary.attempt(attempt, behind="nothing")
    assert (free.error, free.ended) == (None, 0)
    assert ordinary.attempt(attempt, behind="filter").errno == EPERM
    assert ordinary.attempt(attempt, behind="walls").errno == EPERM


def work_with_threads() -> list[int]:
    import threading
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        squares = list(pool.map(lambda n: n * n, range(20)))
    assert threading.active_count() == 1
    return squares


def work_with_files() -> list[str]:
    import os
    import shutil
    import tempfile
    from pathlib import Path

    made = Path(tempfile.mkdtemp(dir="scratch"))
    (made / "a").mkdir()
    (made / "a" / "text").write_text("one two")
    (made / "a" / "text").chmod(0o640)
    os.utime(made / "a" / "text", (1, 1))
    shutil.copytree(made / "a", made / "b")
    (made / "b" / "link").symlink_to("text")
    os.link(made / "b" / "text", made / "b" / "same")
    with (made / "b" / "text").open("r+") as file:
        file.truncate(3)
    (made / "b").rename(made / "c")
    (made / "a" / "text").write_text("")
    found = [f"{path.name} {path.stat().st_size}" for path in sorted((made / "c").iterdir())]
    shutil.rmtree(made)
    return found


def work_with_a_loop() -> str:
    import asyncio

    async def said() -> str:
        await asyncio.sleep(0)
        return await asyncio.to_thread(str.upper, "done")

    return asyncio.run(said())


def work_with_itself() -> int:
    import fcntl
    import os
    import resource
    import signal
    import threading
    from pathlib import Path

    came: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: came.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR1)
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    resource.prlimit(0, resource.RLIMIT_NOFILE)
    resource.prlimit(os.getpid(), resource.RLIMIT_NOFILE, (64, 64))
    os.setpriority(os.PRIO_PROCESS, 0, 5)
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    with Path("scratch/file-of-its-own").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL))
        assert not file.isatty()
    return len(came)


@pytest.mark.parametrize(
    ("work", "made"),
    [
        (work_with_threads, [n * n for n in range(20)]),
        (work_with_files, ["link 3", "same 3", "text 3"]),
        (work_with_a_loop, "DONE"),
        (work_with_itself, 3),
    ],
)
def test_what_a_job_needs_goes_on_working(yard: Yard, work: Callable[[], object], made: object) -> None:
    outcome = yard.attempt(work)
    assert outcome.error is None, outcome
    assert outcome.value == made


def call_by_another_architectures_door() -> int:
    """getpid by `int 0x80`, where numbers are i386's."""
    import ctypes
    import mmap

    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b814000000 cd80 c3"))
    place = ctypes.addressof(ctypes.c_char.from_buffer(code))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(place)())


def call_by_x32() -> None:
    from runner.sandbox import kernel

    kernel.syscall(0x40000000 | 39)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="arm64 has one door for 64-bit programs")
def test_another_door_into_the_kernel_is_the_end_of_the_process(ordinary: Yard) -> None:
    assert ordinary.attempt(call_by_x32, behind="nothing").errno in (None, _ENOSYS)
    assert ordinary.attempt(call_by_x32, behind="filter").ended == -_SIGSYS
    free = ordinary.attempt(call_by_another_architectures_door, behind="nothing")
    if free.ended != 0:
        pytest.skip("this kernel has no i386 calls")
    assert ordinary.attempt(call_by_another_architectures_door, behind="filter").ended == -_SIGSYS


def filter_a_thread_that_was_there_before() -> str:
    import socket
    import threading

    from runner.sandbox import kernel, seccomp

    filtered, ended = threading.Event(), []

    def attempt() -> None:
        filtered.wait()
        try:
            socket.socket()
        except PermissionError as exc:
            ended.append(type(exc).__name__)

    thread = threading.Thread(target=attempt)
    thread.start()
    kernel.prctl(38, 1)
    seccomp.install()
    filtered.set()
    thread.join()
    return ",".join(ended)


def test_the_filter_holds_for_threads_that_were_there_before(ordinary: Yard) -> None:
    outcome = ordinary.attempt(filter_a_thread_that_was_there_before, behind="nothing")
    assert outcome.value == "PermissionError", outcome


def filter_without_giving_up_rights() -> None:
    from runner.sandbox import seccomp

    seccomp.install()


def test_a_filter_that_the_kernel_does_not_take_is_an_error(ordinary: Yard) -> None:
    outcome = ordinary.attempt(filter_without_giving_up_rights, behind="nothing")
    assert outcome.error is not None
    assert outcome.error.startswith("InfrastructureError: seccomp: expected the kernel to take the filter, got ")


def test_a_machine_without_a_filter_for_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(InfrastructureError, match=r"expected 64-bit Python on x86-64 or arm64, got .* on riscv64"):
        require()


def test_a_kernel_without_filters_is_an_error_that_says_what_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int, *arguments: object) -> int:
        raise OSError(_ENOSYS, "syscall: Function not implemented")

    monkeypatch.setattr(kernel, "syscall", refuse)
    with pytest.raises(InfrastructureError, match="expected a kernel that takes filters") as raised:
        require()
    assert "Docker" in str(raised.value.hint)
