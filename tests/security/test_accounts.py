"""Accounts: one worker's at a time, free again whatever ends it, and none for an ordinary user."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from runner.model.errors import InfrastructureError
from runner.sandbox import accounts
from runner.sandbox.accounts import UIDS, Account, Accounts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root has accounts to give")

FIRST = 62000 + os.getpid() % 1000 * 3
RANGE = range(FIRST, FIRST + 3)
"""Apart from the default one, of which other tests take, and from those of other sessions."""
ONE, TWO = (Account(uid=uid, gid=uid) for uid in RANGE[:2])
ALL = f"{FIRST} to {FIRST + 2}"

_WORKER = """
import json, os, sys
from runner.sandbox.accounts import Accounts
held = Accounts(range(*json.loads(sys.argv[1])))
print(held.take().uid, flush=True)
sys.stdin.read()
"""


@contextmanager
def worker(uids: range) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds an account, and which it is."""
    command = [sys.executable, "-I", "-c", _WORKER, json.dumps([uids.start, uids.stop])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


@root_only
def test_an_account_is_a_user_id_and_the_group_of_its_number() -> None:
    with Accounts(RANGE) as held:
        assert held.take() == ONE


@root_only
def test_two_workers_never_have_the_same_one() -> None:
    with worker(RANGE) as (_, one), worker(RANGE) as (_, two), Accounts(RANGE) as held:
        third = held.take()
        assert third is not None
        assert sorted([one, two, third.uid]) == list(RANGE)
        with pytest.raises(InfrastructureError, match=f"expected a free user id of {ALL}, got each taken by a worker"):
            held.take()


@root_only
def test_a_killed_workers_account_comes_free() -> None:
    only = RANGE[:1]
    with worker(only) as (process, _), Accounts(only) as held:
        with pytest.raises(InfrastructureError, match="got each taken by a worker"):
            held.take()
        process.kill()
        process.wait()
        assert held.take() == ONE


@root_only
def test_a_worker_may_have_several_and_gives_them_back() -> None:
    with Accounts(RANGE) as held, Accounts(RANGE) as other:
        assert [taken.uid for taken in (held.take(), held.take()) if taken] == [ONE.uid, TWO.uid]
        held.close()
        assert other.take() == ONE


@root_only
def test_what_a_worker_starts_does_not_hold_its_account() -> None:
    """Else a program that outlives it would keep it taken."""
    with Accounts(RANGE) as held:
        held.take()
        left = subprocess.Popen([sys.executable, "-I", "-c", "input()"], stdin=subprocess.PIPE)
        with left:
            held.close()
            assert held.take() == ONE


@root_only
def test_an_id_under_which_something_runs_is_passed_over() -> None:
    """A child of a worker that was killed has not ended yet, or the machine uses the id for something of its own."""
    with (
        Accounts(RANGE) as held,
        subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, user=FIRST, group=FIRST, extra_groups=[]) as left,
    ):
        assert held.take() == TWO
        held.close()
        left.kill()
        left.wait()
        assert held.take() == ONE


@root_only
def test_an_id_that_is_somebodys_is_never_given() -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    with Accounts(range(nobody, nobody + 1)) as held, pytest.raises(InfrastructureError, match="or somebody's"):
        held.take()


_WITHOUT = """
import os, sys
from runner.model.errors import InfrastructureError
from runner.sandbox import kernel
import ctypes
keep = (1 << 41) - 1
for bit in map(int, sys.argv[2:]):
    keep &= ~(1 << bit)
low, high = keep & 0xFFFFFFFF, keep >> 32
words = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
with open("/proc/self/status") as status:
    own = int(status.read().partition("CapEff:")[2].split()[0], 16)
words = (ctypes.c_uint32 * 6)(*(word & mask for word, mask in zip(words, [own & 0xFFFFFFFF] * 3 + [own >> 32] * 3)))
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
kernel.call("capset", header, words)
from runner.sandbox.accounts import Accounts
try:
    print(Accounts(range(int(sys.argv[1]), int(sys.argv[1]) + 3)).take())
except InfrastructureError as error:
    print(error.message)
    print(error.hint)
"""


@root_only
def test_root_that_may_not_become_another_user_is_told_what_to_do() -> None:
    command = [sys.executable, "-I", "-c", _WITHOUT, str(FIRST), "6", "7"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    needed = "CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_KILL, CAP_SETGID, CAP_SETUID"
    assert said == [
        f"accounts: expected root to have {needed}, got it without CAP_SETGID, CAP_SETUID",
        "run the worker as a user other than root, or give it CAP_SETGID and CAP_SETUID",
    ]


@root_only
def test_root_needs_no_other_capability() -> None:
    needed = set(accounts._CAPABILITIES.values())
    command = [sys.executable, "-I", "-c", _WITHOUT, str(FIRST), *(str(bit) for bit in range(41) if bit not in needed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{ONE}\n"


def test_an_ordinary_user_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with Accounts(RANGE) as held:
        assert held.take() is None


_ROOT_OF_ITS_OWN_NAMESPACE = """
import sys
from pathlib import Path
from runner.model.errors import InfrastructureError
from runner.sandbox import kernel
try:
    kernel.call("unshare", 0x10000000)  # CLONE_NEWUSER
except OSError:
    raise SystemExit("no user namespaces here")
Path("/proc/self/setgroups").write_text("deny")
for kind in ("uid", "gid"):
    Path(f"/proc/self/{kind}_map").write_text("0 0 1")
from runner.sandbox.accounts import Accounts
try:
    print(Accounts(range(int(sys.argv[1]), int(sys.argv[1]) + 3)).take())
except InfrastructureError as error:
    print(error.message)
"""


@root_only
def test_root_of_a_user_namespace_without_these_ids_is_told_so() -> None:
    """As in a rootless container."""
    command = [sys.executable, "-I", "-c", _ROOT_OF_ITS_OWN_NAMESPACE, str(FIRST)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "no user namespaces here" in done.stderr:
        pytest.skip("this machine gives no user namespaces")
    assert done.stdout == (f"accounts: expected this user namespace to have ids of {ALL}, got none of them\n"), (
        done.stderr
    )


def test_the_default_range_is_nobodys() -> None:
    """systemd's docs/UIDS-GIDS.md: 60706 to 61183 are unused."""
    assert len(UIDS) == 100
    assert UIDS.start >= 60706
    assert UIDS.stop - 1 <= 61183
