"""What hostile job code would try, each attempt a function that returns what it got, or raises where it was stopped.

The text of this file is made into a dbt Python model, and run as a plain program beside: without walls each succeeds.
It imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

ATTEMPTS: dict[str, Callable[[Mapping[str, str]], object]] = {}
_libc = ctypes.CDLL(None, use_errno=True)
_X86 = os.uname().machine == "x86_64"


def attempt(call: Callable[[Mapping[str, str]], object]) -> Callable[[Mapping[str, str]], object]:
    ATTEMPTS[call.__name__.lstrip("_").replace("_", " ")] = call
    return call


def _done(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# ---------------------------------------------------------------- what is to be read


@attempt
def _find_a_credential_in_its_own_environment(facts: Mapping[str, str]) -> object:
    # As it is now, and as it was when the process began.
    began = [entry.partition(b"=")[0].decode() for entry in Path("/proc/self/environ").read_bytes().split(b"\0")]
    found = [name for name in (*os.environ, *began) if "SECRET" in name or "RUNNER" in name]
    if not found:
        raise PermissionError(errno.EPERM, "there is none")
    return found


@attempt
def _read_the_workers_environment(facts: Mapping[str, str]) -> object:
    return Path(f"/proc/{facts['worker']}/environ").read_bytes()


@attempt
def _read_the_workers_memory(facts: Mapping[str, str]) -> object:
    first = Path(f"/proc/{facts['worker']}/maps").read_text().split("-")[0]
    with Path(f"/proc/{facts['worker']}/mem").open("rb") as memory:
        memory.seek(int(first, 16))
        return memory.read(16)


@attempt
def _list_the_workers_descriptors(facts: Mapping[str, str]) -> object:
    return list(Path(f"/proc/{facts['worker']}/fd").iterdir())


@attempt
def _enter_the_workers_root(facts: Mapping[str, str]) -> object:
    return list(Path(f"/proc/{facts['worker']}/root/").iterdir())


@attempt
def _write_to_the_parents_memory(facts: Mapping[str, str]) -> object:
    with Path(f"/proc/{os.getppid()}/mem").open("r+b") as memory:
        return memory.fileno()


@attempt
def _read_the_users_of_the_machine(facts: Mapping[str, str]) -> object:
    return Path("/etc/passwd").read_text()


@attempt
def _read_a_file_of_the_workers(facts: Mapping[str, str]) -> object:
    return Path(facts["file_of_the_worker"]).read_text()


@attempt
def _read_another_runs_scratch(facts: Mapping[str, str]) -> object:
    return Path(facts["file_of_another_run"]).read_text()


@attempt
def _read_the_log_of_its_own_run(facts: Mapping[str, str]) -> object:
    room = Path(os.environ["HOME"]).parent if facts["walled"] else Path(facts["file_of_the_worker"]).parent
    return next(path.read_text() for path in room.iterdir() if path.is_file())


# ---------------------------------------------------------------- what is to be changed


@attempt
def _write_to_a_file_of_the_workers(facts: Mapping[str, str]) -> object:
    with Path(facts["file_of_the_worker"]).open("a") as file:
        return file.write("changed")


@attempt
def _truncate_a_file_of_the_workers_by_its_path(facts: Mapping[str, str]) -> None:
    os.truncate(facts["file_of_the_worker"], 1)


@attempt
def _write_to_another_runs_scratch(facts: Mapping[str, str]) -> object:
    with Path(facts["file_of_another_run"]).open("a") as file:
        return file.write("changed")


@attempt
def _write_to_a_common_folder(facts: Mapping[str, str]) -> object:
    path = Path(facts["common_folder"], f"left-{os.getpid()}")
    path.write_text("left")
    return path


@attempt
def _write_to_shared_memory(facts: Mapping[str, str]) -> object:
    path = Path(f"/dev/shm/left-{os.getpid()}")
    path.write_text("left")
    path.unlink()
    return path


@attempt
def _write_to_an_installed_package(facts: Mapping[str, str]) -> object:
    with Path(facts["file_of_a_package"]).open("a") as file:
        return file.fileno()


@attempt
def _link_a_file_of_the_workers_into_its_own_folder(facts: Mapping[str, str]) -> object:
    target = Path(facts["common_folder"] if not facts["walled"] else os.environ["HOME"], f"linked-{os.getpid()}")
    os.link(facts["file_of_the_worker"], target)
    return target


# ---------------------------------------------------------------- other processes


@attempt
def _signal_the_worker(facts: Mapping[str, str]) -> None:
    os.kill(int(facts["worker"]), 0)


@attempt
def _signal_the_parent(facts: Mapping[str, str]) -> None:
    os.kill(os.getppid(), 0)


@attempt
def _signal_by_descriptor(facts: Mapping[str, str]) -> object:
    return os.pidfd_open(int(facts["worker"]))


@attempt
def _trace_the_worker(facts: Mapping[str, str]) -> object:
    seize, detach = 0x4206, 17
    got = _done(_libc.ptrace(seize, int(facts["worker"]), None, None))
    _libc.ptrace(detach, int(facts["worker"]), None, None)
    return got


@attempt
def _read_the_workers_memory_by_system_call(facts: Mapping[str, str]) -> object:
    number = 310 if _X86 else 270
    # Of no length: only whether it may is asked.
    return _done(_libc.syscall(number, int(facts["worker"]), None, 0, None, 0, 0))


@attempt
def _change_the_limits_of_the_worker(facts: Mapping[str, str]) -> object:
    import resource

    return resource.prlimit(int(facts["worker"]), resource.RLIMIT_NOFILE)


@attempt
def _start_a_process(facts: Mapping[str, str]) -> object:
    import subprocess

    return subprocess.run([sys.executable, "-c", ""], check=True).returncode


@attempt
def _fork(facts: Mapping[str, str]) -> object:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)


@attempt
def _start_a_daemon(facts: Mapping[str, str]) -> object:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            os.close(0)
        os._exit(0)
    return os.waitpid(pid, 0)


@attempt
def _become_another_program(facts: Mapping[str, str]) -> object:
    # Of a path that is not there, so that one that may goes on: EPERM comes before ENOENT.
    try:
        os.execv("/nowhere/at/all", ["nothing"])  # noqa: S606 - that is the attempt
    except FileNotFoundError:
        return "only the program was missing"


# ---------------------------------------------------------------- the network


@attempt
def _reach_the_credentials_of_the_task(facts: Mapping[str, str]) -> object:
    # Where ECS gives them. That nobody answers here is no wall, so it is the socket itself that counts.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        return sock.connect_ex(("169.254.170.2", 80))


@attempt
def _reach_the_ledger(facts: Mapping[str, str]) -> object:
    with socket.create_connection(("127.0.0.1", int(facts["port"])), timeout=5) as connection:
        return connection.getpeername()


@attempt
def _reach_a_name_server(facts: Mapping[str, str]) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return sock.sendto(b"?", ("127.0.0.1", 53))


@attempt
def _open_a_socket_of_its_own_machine(facts: Mapping[str, str]) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0left-{os.getpid()}")


@attempt
def _open_a_ring_of_the_kernels(facts: Mapping[str, str]) -> object:
    # Without its parameters: one that may is told that they are missing.
    try:
        return _done(_libc.syscall(425, 1, None))
    except OSError as error:
        if error.errno == errno.EFAULT:
            return "only the parameters were missing"
        raise


# ---------------------------------------------------------------- rights


@attempt
def _make_a_namespace(facts: Mapping[str, str]) -> object:
    return _done(_libc.unshare(0x00020000 if os.getuid() == 0 else 0x10000000))


@attempt
def _leave_for_another_root(facts: Mapping[str, str]) -> None:
    if not facts["walled"] and os.getuid() != 0:
        return  # of no use as a control: that takes root
    os.chroot("/")


@attempt
def _become_root(facts: Mapping[str, str]) -> None:
    if not facts["walled"] and os.getuid() != 0:
        return  # of no use as a control: that takes root
    os.setuid(0)


def try_all(facts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each attempt with `got …` or `refused …`. In a thread beside, as a model's own threads are."""
    found: list[tuple[str, str]] = []

    def run() -> None:
        for name, call in ATTEMPTS.items():
            try:
                found.append((name, f"got {str(call(facts))[:80]}"))
            except OSError as error:
                found.append((name, f"refused: {error.strerror or error}"))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found


if __name__ == "__main__":
    print(json.dumps(try_all(json.loads(sys.argv[1]))))
