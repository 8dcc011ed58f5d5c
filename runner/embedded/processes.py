"""Processes that outlive the command that started them, and are told apart from strangers that got their pid later."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runner.model.strict import Strict

_POLL_S = 0.02


class ProcessIdentity(Strict):
    """One process, and never another one with the same pid."""

    pid: int
    started: str
    """The boot's id and the clock ticks since then (Linux), or the start as `ps` prints it (macOS)."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """Another user of the machine, as whom root runs what refuses root."""

    name: str
    uid: int
    gid: int


def spawn(
    argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, account: Account | None = None
) -> ProcessIdentity:
    """Start a process in a session of its own, its output in `log`; the log of the last one is kept as `<log>.1`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))
    # Through a shell that exits at once: the process becomes init's child, so nobody has to wait for it here. What the
    # shell is told is constant; the arguments reach the program as they are.
    with log.open("ab") as output:
        shell = subprocess.run(
            ["/bin/sh", "-c", 'exec "$@" </dev/null >&2 & echo $!', "sh", *argv],
            stdout=subprocess.PIPE,
            stderr=output,
            check=True,
            cwd="/",
            env=None if env is None else dict(env),
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    pid = int(shell.stdout)
    return identify(pid) or ProcessIdentity(pid=pid, started="ended at once")


def identify(pid: int) -> ProcessIdentity | None:
    """The process that has this pid now, or None. A zombie is none: it has ended already.

    But a killed process shows as one as soon as its first thread is gone, while the others still hold its sockets.
    """
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # proc(5): the program's name is in parentheses and may hold anything; state, threads and start are fields 3, 20
        # and 22.
        fields = stat[stat.rindex(b")") + 2 :].split()
        state, threads, started = fields[0].decode(), int(fields[17]), f"{boot} {fields[19].decode()}"
        if state == "Z" and threads > 1:
            return ProcessIdentity(pid=pid, started=started)
    else:
        state, _, started = _ps(pid, "state=", "lstart=").partition(" ")
    return None if state[:1] in ("", "Z", "X") else ProcessIdentity(pid=pid, started=started.strip())


def program(pid: int) -> str:
    """The name of the program that runs under this pid, empty if none does."""
    if identify(pid) is None:
        return ""
    if Path("/proc/self/comm").exists():
        with suppress(FileNotFoundError, ProcessLookupError):
            return Path(f"/proc/{pid}/comm").read_text().strip()
        return ""
    return Path(_ps(pid, "comm=")).name


def is_alive(process: ProcessIdentity) -> bool:
    return identify(process.pid) == process


def has_ended(process: ProcessIdentity) -> bool:
    return not is_alive(process)


def send_signal(process: ProcessIdentity, number: signal.Signals) -> None:
    """Signal the process, if it is still the one that we know."""
    if is_alive(process):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def wait_until(condition: Callable[[], bool], *, within_s: float) -> bool:
    """True as soon as `condition` holds, False if it does not within `within_s`."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def last_lines(log: Path, count: int = 3) -> str:
    """The end of a log as one line, for an error's message."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return " | ".join([line.strip() for line in lines if line.strip()][-count:]) or "(an empty log)"


def _ps(pid: int, *columns: str) -> str:
    command = ["ps", "-p", str(pid), *(part for column in columns for part in ("-o", column))]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={"LC_ALL": "C", "PATH": os.defpath}
    ).stdout.strip()
