"""Landlock alone: what may be read and written, at this kernel's version of it and at each that came before."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from errno import EACCES, EIO, ENOSYS, EOPNOTSUPP, EPERM, EXDEV
from pathlib import Path

import pytest

from runner.model.errors import InfrastructureError
from runner.sandbox import kernel, landlock
from tests.support.walled import Yard, open_yard

NEWEST = landlock.abi() if sys.platform == "linux" else None
pytestmark = pytest.mark.skipif(NEWEST is None, reason="this kernel has no Landlock")
VERSIONS = range(1, (NEWEST or 0) + 1)


@pytest.fixture(scope="module")
def yard() -> Iterator[Yard]:
    """An ordinary user's, who owns all that is tried here: what is refused, Landlock refuses."""
    with open_yard("worker") as made:
        (made.room / "closed").mkdir()
        (made.room / "closed" / "file").write_text("a secret")
        for each in (made.room / "closed", made.room / "closed" / "file"):
            each.chmod(0o777)
        yield made


def read_a_file(path: str) -> str:
    from pathlib import Path

    return Path(path).read_text()[:8]


def list_a_folder(path: str) -> bool:
    from pathlib import Path

    return len(list(Path(path).iterdir())) > 0


def write_a_file(path: str) -> int:
    from pathlib import Path

    return Path(path).write_text("written")


def make_a_folder(path: str) -> None:
    from pathlib import Path

    Path(path).mkdir(exist_ok=True)


def remove_a_file(path: str) -> None:
    from pathlib import Path

    Path(path).unlink()


def link_out(path: str) -> str:
    """By a symbolic link in a folder of its own, which is followed to where it leads."""
    from pathlib import Path

    link = Path("scratch/link-out")
    link.unlink(missing_ok=True)
    link.symlink_to(Path(path).absolute())
    return link.read_text()[:8]


def read_around_a_corner(path: str) -> str:
    from pathlib import Path

    return Path("scratch", "..", path).read_text()[:8]


def read_from_a_descriptor_of_the_root() -> str:
    import os

    root = os.open("/", os.O_PATH)
    return os.read(os.open("etc/passwd", os.O_RDONLY, dir_fd=root), 4).decode()


BESIDE = Path(tempfile.gettempdir(), f"stage-runner-test-of-landlock-{os.getpid()}")

OUTSIDE: list[tuple[Callable[..., object], tuple[str, ...]]] = [
    (read_a_file, ("closed/file",)),
    (read_a_file, ("/etc/passwd",)),
    (read_a_file, ("/proc/1/status",)),
    (read_a_file, ("/proc/version",)),
    (list_a_folder, ("closed",)),
    (list_a_folder, ("/",)),
    (list_a_folder, ("/etc",)),
    (list_a_folder, ("/proc",)),
    (list_a_folder, (tempfile.gettempdir(),)),
    (write_a_file, ("closed/file",)),
    (write_a_file, ("closed/new",)),
    (write_a_file, (str(BESIDE),)),
    (make_a_folder, ("closed/folder",)),
    (link_out, ("closed/file",)),
    (link_out, ("/etc/passwd",)),
    (read_around_a_corner, ("closed/file",)),
    (read_from_a_descriptor_of_the_root, ()),
    (remove_a_file, ("closed/file",)),
]


@pytest.mark.parametrize("version", VERSIONS)
def test_at_each_version_what_is_outside_is_neither_read_nor_written(yard: Yard, version: int) -> None:
    for attempt, arguments in OUTSIDE:
        outcome = yard.attempt(attempt, *arguments, behind=f"landlock:{version}")
        assert outcome.errno == EACCES, (attempt.__name__, arguments, outcome)


def test_without_it_all_that_goes(yard: Yard) -> None:
    """The control, in the same order; the last removes what the others use."""
    for attempt, arguments in OUTSIDE:
        outcome = yard.attempt(attempt, *arguments, behind="nothing")
        assert (outcome.error, outcome.ended) == (None, 0), (attempt.__name__, arguments, outcome)
    (yard.room / "closed" / "file").write_text("a secret")
    (yard.room / "closed" / "file").chmod(0o777)
    BESIDE.unlink()


def work_in_its_folders() -> list[str]:
    import shutil
    from pathlib import Path

    made = Path("scratch/work")
    made.mkdir()
    (made / "one").write_text("one")
    (made / "one").rename(made / "two")
    (made / "two").write_text("cut")
    (made / "link").symlink_to("two")
    (made / "hard").hardlink_to(made / "two")
    with (made / "two").open("r+") as file:
        file.truncate(1)
    shutil.move(made / "two", "logic/three")
    Path("/dev/null").write_text("away")
    found = [Path("logic/three").read_text(), *sorted(path.name for path in made.iterdir())]
    shutil.rmtree(made)
    Path("logic/three").unlink()
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_at_each_version_work_in_its_own_folders_goes_on(yard: Yard, version: int) -> None:
    outcome = yard.attempt(work_in_its_folders, behind=f"landlock:{version}")
    assert outcome.error is None, outcome
    assert outcome.value == ["c", "hard", "link"]


def rename_from_folder_to_folder() -> None:
    from pathlib import Path

    Path("scratch/here").write_text("moved")
    try:
        Path("scratch/here").rename("logic/there")
    finally:
        Path("scratch/here").unlink(missing_ok=True)
        Path("logic/there").unlink(missing_ok=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_rename_between_its_folders_takes_version_2(yard: Yard, version: int) -> None:
    """Version 1 refuses all such renames, and shutil.move copies instead."""
    expected = EXDEV if version == 1 else None
    assert yard.attempt(rename_from_folder_to_folder, behind=f"landlock:{version}").errno == expected


def rename_out() -> None:
    from pathlib import Path

    Path("scratch/out").write_text("moved")
    Path("scratch/out").rename("closed/out")


def link_a_closed_file_in() -> None:
    """A second name, in a folder where it could be written by."""
    import os
    from pathlib import Path

    Path("scratch/in").unlink(missing_ok=True)
    os.link("closed/file", "scratch/in")


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_moved_out_or_given_a_name_inside(yard: Yard, version: int) -> None:
    for attempt in (rename_out, link_a_closed_file_in):
        assert yard.attempt(attempt, behind="nothing").errno is None
        (yard.room / "closed" / "out").unlink(missing_ok=True)
        (yard.room / "scratch" / "in").unlink(missing_ok=True)
        assert yard.attempt(attempt, behind=f"landlock:{version}").errno in (EACCES, EXDEV)


def cut_off_what_may_be_read(path: str, by: str) -> int:
    """On a file that the child may read and not write."""
    import os
    from pathlib import Path

    if by == "path":
        os.truncate(path, 0)
    else:
        os.close(os.open(path, os.O_RDONLY | os.O_TRUNC))
    return Path(path).stat().st_size


@pytest.mark.parametrize("by", ["path", "reading"])
@pytest.mark.parametrize("version", VERSIONS)
def test_before_version_3_it_lets_a_file_be_cut_off_which_the_filter_refuses(yard: Yard, version: int, by: str) -> None:
    """Why the filter has a rule for these. `closed` is opened for reading here, for the one attempt."""
    path = yard.room / "closed" / "long"
    path.write_text("a long text")
    path.chmod(0o666)
    outcome = yard.attempt(cut_off_what_may_be_read, str(path), by, behind=f"landlock:{version}:closed")
    if version < 3:
        assert outcome.value == 0, outcome
    else:
        assert outcome.errno == EACCES
        assert path.read_text() == "a long text"
    assert yard.attempt(cut_off_what_may_be_read, str(path), by, behind="filter").errno == EPERM


def make_a_special_file(kind: str) -> None:
    import os
    import socket
    from pathlib import Path

    path = Path(f"scratch/{kind}")
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    path.unlink()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_no_pipe_or_socket_is_made_even_in_its_folders(yard: Yard, kind: str) -> None:
    assert yard.attempt(make_a_special_file, kind, behind="nothing").error is None
    assert yard.attempt(make_a_special_file, kind, behind="landlock:1").errno == EACCES


def run_a_program() -> None:
    import subprocess

    subprocess.run(["/bin/true"], check=True)


def test_no_program_is_run_even_from_a_folder_that_is_read(yard: Yard) -> None:
    assert yard.attempt(run_a_program, behind="nothing").error is None
    assert yard.attempt(run_a_program, behind="landlock:1").errno == EACCES


def listen_on_tcp() -> None:
    import socket

    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))


def connect_by_tcp(port: int) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize("version", VERSIONS)
def test_from_version_4_there_is_no_tcp(yard: Yard, version: int) -> None:
    import socket

    refused = EACCES if version >= 4 else None
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert yard.attempt(listen_on_tcp, behind=f"landlock:{version}").errno == refused
        assert yard.attempt(connect_by_tcp, port, behind=f"landlock:{version}").errno == refused


def signal_the_parent() -> None:
    import os

    os.kill(os.getppid(), 0)


def connect_to_an_abstract_name(name: str) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as made:
        made.connect(f"\0{name}")


@pytest.mark.parametrize("version", VERSIONS)
def test_from_version_6_there_is_no_signal_and_no_abstract_name_outside(yard: Yard, version: int) -> None:
    import socket

    refused = EPERM if version >= 6 else None
    name = f"stage-runner-test/{yard.pid}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        assert yard.attempt(signal_the_parent, behind=f"landlock:{version}").errno == refused
        assert yard.attempt(connect_to_an_abstract_name, name, behind=f"landlock:{version}").errno == refused


def descriptors_into_proc() -> list[str]:
    import os
    from pathlib import Path

    leads_to = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [place.replace(str(os.getpid()), "self") for place in leads_to if place.startswith("/proc/")]


def test_what_is_read_in_proc_is_held_open(yard: Yard) -> None:
    """Else the rule on it goes when the kernel is short of memory, and DuckDB aborts for want of its cgroup.

    To see it: write 2 to /proc/sys/vm/drop_caches some times while a child without these descriptors waits.
    """
    held = yard.attempt(descriptors_into_proc, behind="landlock:1").value
    assert {"/proc/self", "/proc/sys/vm/overcommit_memory"} <= set(held)


def restrict(readable: list[str], writable: list[str]) -> str:
    from pathlib import Path

    from runner.sandbox import kernel, landlock

    kernel.prctl(38, 1)
    landlock.restrict(1, readable=map(Path, readable), writable=map(Path, writable))
    return Path("closed/file").read_text()


def test_what_is_to_be_read_and_is_not_there_is_passed_over(yard: Yard) -> None:
    readable = ["/no/such/folder", "closed/file/below-a-file", "closed"]
    assert yard.attempt(restrict, readable, ["scratch"], behind="nothing").value == "a secret"


def test_what_is_to_be_written_has_to_be_there(yard: Yard) -> None:
    outcome = yard.attempt(restrict, ["closed"], ["/no/such/folder"], behind="nothing")
    assert outcome.error is not None
    assert outcome.error.startswith("InfrastructureError: landlock: expected the kernel to take the rules, got ")


def _refusing(monkeypatch: pytest.MonkeyPatch, errno: int) -> None:
    def refuse(number: int, *arguments: object) -> int:
        raise OSError(errno, "syscall")

    monkeypatch.setattr(kernel, "syscall", refuse)


@pytest.mark.parametrize("errno", [ENOSYS, EOPNOTSUPP, EPERM])
def test_a_kernel_without_it_has_no_version(monkeypatch: pytest.MonkeyPatch, errno: int) -> None:
    """It is not built in, it is switched off, or a container's profile refuses the call."""
    _refusing(monkeypatch, errno)
    assert landlock.abi() is None


def test_a_kernel_that_will_not_tell_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _refusing(monkeypatch, EIO)
    with pytest.raises(InfrastructureError, match="expected the kernel to tell its version"):
        landlock.abi()
