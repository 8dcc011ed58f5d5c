"""The user ids that a worker gives to its children where it is root: each to one worker of the machine at a time."""

from __future__ import annotations

import grp
import os
import pwd
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import EADDRINUSE
from pathlib import Path
from types import TracebackType

from runner.model.errors import InfrastructureError

UIDS = range(61000, 61100)
"""Of 60706 to 61183, which systemd leaves unused: people have ids below, services above (its docs/UIDS-GIDS.md)."""

_CAPABILITIES = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}
"""By linux/capability.h. Besides becoming another user: give it a room, read what it left there, and end it."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """A user id, and the group of the same number."""

    uid: int
    gid: int


class Accounts:
    """Hands out accounts of a range for as long as this process lives, or until `close`.

    An account is held by a unix socket with an abstract name: it needs no folder that all workers could write to, and
    the kernel frees it with its holder, killed or not. Such names belong to a network namespace, and so to a container:
    two containers may use the same id, as neither sees the other's processes and files. Where they share a home folder,
    each has to have a range of its own.
    """

    def __init__(self, uids: range = UIDS) -> None:
        self._uids = uids
        self._held: list[socket.socket] = []

    def take(self) -> Account | None:
        """One that nobody else has; None where this process is an ordinary user's, whose children are then as well.

        Raises `InfrastructureError` where root lacks what it takes, or all are taken.
        """
        if os.geteuid() != 0:
            return None
        _require_capabilities()
        mapped = [uid for uid in self._uids if _mapped(uid, "uid") and _mapped(uid, "gid")]
        if not mapped:
            raise InfrastructureError(
                f"accounts: expected this user namespace to have ids of {self._range}, got none of them",
                hint="run the worker as a user other than root, or map these ids into the container",
            )
        for uid in mapped:
            lock = _lock(uid)
            if lock is None:
                continue
            # A child of a worker that was killed may take a moment to end, and a machine may have given the id away.
            if _named(uid) or _in_use(uid):
                lock.close()
                continue
            self._held.append(lock)
            return Account(uid=uid, gid=uid)
        raise InfrastructureError(
            f"accounts: expected a free user id of {self._range}, got each taken by a worker, or somebody's",
            hint="give the workers of this machine a wider range of ids that nobody has",
        )

    def close(self) -> None:
        """Free them. What runs under them has to have ended."""
        while self._held:
            self._held.pop().close()

    def __enter__(self) -> Accounts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _range(self) -> str:
        return f"{self._uids.start} to {self._uids.stop - 1}"


def _require_capabilities() -> None:
    """Root in a container may lack any of them."""
    status = Path("/proc/self/status").read_text("utf-8")
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    missing = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        raise InfrastructureError(
            f"accounts: expected root to have {', '.join(_CAPABILITIES)}, got it without {', '.join(missing)}",
            hint=f"run the worker as a user other than root, or give it {' and '.join(missing)}",
        )


def _mapped(number: int, kind: str) -> bool:
    """Whether this user namespace has the id at all."""
    for line in Path(f"/proc/self/{kind}_map").read_text("ascii").splitlines():
        inside, _, count = map(int, line.split())
        if inside <= number < inside + count:
            return True
    return False


def _lock(uid: int) -> socket.socket | None:
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(f"\0stage-runner/account/{uid}")
    except OSError as exc:
        held.close()
        if exc.errno == EADDRINUSE:
            return None
        raise InfrastructureError(f"accounts: expected to take or find taken user id {uid}, got {exc}") from exc
    return held


def _named(uid: int) -> bool:
    """Whether the machine's list of people or groups has it."""
    for look in (pwd.getpwuid, grp.getgrgid):
        try:
            look(uid)
        except KeyError:
            continue
        return True
    return False


def _in_use(uid: int) -> bool:
    return any(uid in (user, group) for user, group in _running())


def _running() -> Iterator[tuple[int, int]]:
    """The user and group ids of all processes that can be seen."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # one that ended meanwhile
            lines = status.read_text("utf-8", errors="replace").splitlines()
            fields = {name: values.split() for name, _, values in (line.partition(":") for line in lines)}
            for user, group in zip(fields["Uid"], fields["Gid"], strict=True):
                yield int(user), int(group)
