"""The way to folders below closed ones: mounts that a process of root's has for itself and its children alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.walled import Outcome, Yard, open_yard

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root's children have another user id"
)


@pytest.fixture
def yard() -> Iterator[Yard]:
    with open_yard("own") as made:
        yield made


@pytest.fixture
def mounting(yard: Yard) -> Yard:
    probe = yard.attempt(move_apart, behind="the yard's rights")
    if probe.error is not None:
        pytest.skip(f"root may make no mounts here: {probe.error}")
    return yard


def move_apart() -> None:
    from runner.sandbox import mounts

    mounts._move_apart()


def reach_and_look(account: int, reached: list[str], looked_at: list[str], umask: int = 0o022) -> dict[str, Any]:
    """What a child of the account sees of each path, by path: before, and after `reach`."""
    import json
    import os
    from pathlib import Path

    from runner.sandbox import mounts
    from runner.sandbox.accounts import Account

    def names(folder: Path) -> list[str]:
        return [path.name for path in folder.iterdir()]

    def seen() -> dict[str, str]:
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.setgroups([])
            os.setresgid(account, account, account)
            os.setresuid(account, account, account)
            found = {}
            for each in looked_at:
                path = Path(each)
                try:
                    found[each] = ",".join(sorted(names(path))) if path.is_dir() else path.read_text()
                except OSError as exc:
                    found[each] = type(exc).__name__
            os.write(writing, json.dumps(found).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as told:
            return dict(json.load(told))

    os.umask(umask)
    place = Path("/proc/self/ns/mnt").readlink()
    before = seen()
    mounts.reach([Path(each) for each in reached], Account(uid=account, gid=account))
    assert os.umask(umask) == umask
    assert (os.geteuid(), os.getegid()) == (0, 0)
    return {"before": before, "after": seen(), "apart": Path("/proc/self/ns/mnt").readlink() != place}


def look(yard: Yard, reached: list[Path], looked_at: list[Path], umask: int = 0o022) -> Outcome:
    return yard.attempt(
        reach_and_look,
        yard.account,
        [str(each) for each in reached],
        [str(each) for each in looked_at],
        umask,
        behind="the yard's rights",
    )


def closed_home(room: Path) -> Path:
    """As root's is: nobody else passes it."""
    home = room / "home"
    for name in ("versions/lib", "project/runner", "project/scratch", "secret"):
        (home / name).mkdir(parents=True)
        (home / name / "file").write_text(name)
    for name in (".", "versions", "project"):
        (home / name).chmod(0o700)
    return home


def test_folders_below_a_closed_one_are_reached_by_their_own_paths_and_nothing_else_is(mounting: Yard) -> None:
    home = closed_home(mounting.room)
    reached = [home / "versions" / "lib", home / "project" / "runner", home / "project" / "scratch"]
    files = [each / "file" for each in reached]
    outcome = look(mounting, reached, [home, home / "project", *files, home / "secret" / "file"])
    assert outcome.error is None, outcome
    assert set(outcome.value["before"].values()) == {"PermissionError"}
    assert outcome.value["apart"] is True
    assert list(outcome.value["after"].values()) == [
        "project,versions",
        "runner,scratch",
        "versions/lib",
        "project/runner",
        "project/scratch",
        "FileNotFoundError",
    ]


def test_outside_nothing_has_changed(mounting: Yard) -> None:
    home = closed_home(mounting.room)
    mounted = Path("/proc/self/mountinfo").read_text()
    assert look(mounting, [home / "versions" / "lib"], [home]).value["after"] == {str(home): "versions"}
    assert Path("/proc/self/mountinfo").read_text() == mounted
    assert sorted(path.name for path in home.iterdir()) == ["project", "secret", "versions"]
    assert home.stat().st_mode & 0o777 == 0o700
    assert look(mounting, [], [home]).value["after"] == {str(home): "PermissionError"}


def make_a_room_later(account: int, scratch: str) -> list[str]:
    """By a process that is not in those mounts, as the worker is not; it sees what the child writes there."""
    import os
    from pathlib import Path

    from runner.sandbox import mounts
    from runner.sandbox.accounts import Account

    go, gone = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.read(go[0], 1)
        room = Path(scratch, "room")
        room.mkdir(mode=0o700)
        (room / "job").write_text("made outside")
        os.chown(room, account, account)
        os.write(gone[1], b"!")
        os.read(go[0], 1)
        os.write(gone[1], (room / "result").read_bytes())
        os._exit(0)
    mounts.reach([Path(scratch)], Account(uid=account, gid=account))
    os.write(go[1], b"!")
    os.read(gone[0], 1)
    os.setgroups([])
    os.setresgid(account, account, account)
    os.setresuid(account, account, account)
    read = Path(scratch, "room", "job").read_text()
    Path(scratch, "room", "result").write_text("made inside")
    os.write(go[1], b"!")
    return [read, os.read(gone[0], 20).decode()]


def test_a_room_that_the_worker_makes_later_is_there_and_what_is_written_in_it_is_the_workers_to_read(
    mounting: Yard,
) -> None:
    scratch = closed_home(mounting.room) / "project" / "scratch"
    outcome = mounting.attempt(make_a_room_later, mounting.account, str(scratch), behind="the yard's rights")
    assert outcome.value == ["made outside", "made inside"], outcome


def test_links_on_the_way_lead_where_they_led(mounting: Yard) -> None:
    """As a virtual environment's interpreter does, and a version that is called by another name."""
    home = closed_home(mounting.room)
    (home / "current").symlink_to("versions")
    (home / "absolute").symlink_to(home / "project" / "runner")
    (home / "twice").symlink_to("current/lib")
    (mounting.room / "from-outside").symlink_to("home/twice")
    (home / "project" / "up").symlink_to("../versions/lib")
    paths = [home / "current" / "lib", home / "absolute", mounting.room / "from-outside", home / "project" / "up"]
    outcome = look(mounting, paths, [each / "file" for each in paths])
    assert outcome.error is None, outcome
    assert set(outcome.value["before"].values()) == {"PermissionError"}
    assert list(outcome.value["after"].values()) == ["versions/lib", "project/runner", "versions/lib", "versions/lib"]


def test_a_folder_in_another_that_is_needed_is_reached_through_closed_ones_between(mounting: Yard) -> None:
    home = closed_home(mounting.room)
    deep = home / "project" / "runner" / "private" / "deep"
    deep.mkdir(parents=True)
    (deep / "file").write_text("deep")
    deep.parent.chmod(0o700)
    for reached in ([home / "project" / "runner", deep], [deep, home / "project" / "runner"]):
        outcome = look(mounting, reached, [deep / "file", home / "project" / "runner" / "file"])
        assert list(outcome.value["after"].values()) == ["deep", "project/runner"], outcome


def test_a_single_file_is_reached(mounting: Yard) -> None:
    home = closed_home(mounting.room)
    file = home / "secret" / "file"
    outcome = look(mounting, [file], [file, home / "secret"])
    assert list(outcome.value["after"].values()) == ["secret", "file"], outcome


def test_the_way_is_passable_whatever_this_process_makes_its_files_like(mounting: Yard) -> None:
    home = closed_home(mounting.room)
    outcome = look(mounting, [home / "versions" / "lib"], [home / "versions" / "lib" / "file"], umask=0o077)
    assert list(outcome.value["after"].values()) == ["versions/lib"], outcome


def test_where_all_is_passable_nothing_is_mounted(yard: Yard) -> None:
    (yard.room / "open").mkdir()
    outcome = look(yard, [yard.room / "open", yard.room / "not-there", Path("/usr/lib")], [yard.room / "open"])
    assert outcome.value["apart"] is False, outcome


def test_a_folder_that_is_closed_itself_is_an_error_that_names_it(yard: Yard) -> None:
    """What is in it would be as closed: no mount helps."""
    closed = closed_home(yard.room) / "project"
    (closed.parent).chmod(0o755)
    outcome = look(yard, [closed], [])
    assert outcome.error == (
        f"InfrastructureError: {closed}: expected a folder that user {yard.account} may pass to {closed}, got mode 0700"
    )


def reach_without_mounts(account: int, folder: str) -> list[str | None]:
    """As root of a container that has not CAP_SYS_ADMIN, which is bit 21."""
    import ctypes
    from pathlib import Path

    from runner.model.errors import InfrastructureError
    from runner.sandbox import kernel, mounts
    from runner.sandbox.accounts import Account

    effective = int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16) & ~(1 << 21)
    low, high = effective & 0xFFFFFFFF, effective >> 32
    kernel.call("capset", (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))
    try:
        mounts.reach([Path(folder)], Account(uid=account, gid=account))
    except InfrastructureError as error:
        return [error.message, error.hint, error.subject]
    return []


def test_where_no_mounts_may_be_made_the_error_says_which_folder_to_open(yard: Yard) -> None:
    home = closed_home(yard.room)
    lib = home / "versions" / "lib"
    outcome = yard.attempt(reach_without_mounts, yard.account, str(lib), behind="the yard's rights")
    wanted = f"expected a folder that user {yard.account} may pass to {lib}"
    assert outcome.value == [
        f"{home}: {wanted}, got mode 0700, and no mounts of its own: [Errno 1] unshare: Operation not permitted",
        f"chmod o+x {home}, or have the runner, its Python and RUNNER_HOME where every user may go",
        str(home),
    ]
