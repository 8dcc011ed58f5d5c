"""The walls as a whole, round children of both kinds: what holds afterwards, and what goes on working."""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
from collections.abc import Iterator
from errno import EACCES, EFBIG, EMFILE, EPERM
from pathlib import Path

import pytest

from runner.model.errors import InfrastructureError
from runner.model.messages import Limits
from runner.sandbox import walls
from tests.support.walled import KINDS, LIMITS, Yard, open_yard

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")


@pytest.fixture(scope="module", params=KINDS)
def yard(request: pytest.FixtureRequest) -> Iterator[Yard]:
    with open_yard(request.param, warm=["duckdb"]) as made:
        yield made


@pytest.fixture(scope="module")
def ordinary() -> Iterator[Yard]:
    with open_yard("worker") as made:
        yield made


@pytest.fixture(scope="module")
def roots() -> Iterator[Yard]:
    with open_yard("own") as made:
        yield made


def limits(**changed: int) -> Limits:
    return LIMITS.model_copy(update=changed)


# ---------------------------------------------------------------- who the child is


def status() -> dict[str, str]:
    """The kernel's word on this process."""
    from pathlib import Path

    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_the_child_has_no_right_but_its_own(yard: Yard) -> None:
    own = yard.attempt(status).value
    assert own["NoNewPrivs"] == "1"
    assert own["Seccomp"] == "2"
    assert {own[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    before = yard.attempt(status, behind="nothing").value
    assert before["NoNewPrivs"] == "0"
    # A container has a filter of its own.
    assert int(own["Seccomp_filters"]) == int(before["Seccomp_filters"]) + 1


def test_a_child_of_root_is_another_user_in_no_group_and_can_never_be_root_again(roots: Yard) -> None:
    own = roots.attempt(status).value
    uid = str(roots.account)
    assert own["Uid"].split() == own["Gid"].split() == [uid] * 4
    assert own["Groups"] == ""
    assert own["CapBnd"] == "0" * 16
    assert roots.attempt(become_root).errno == EPERM
    assert roots.attempt(become_root, behind="the yard's rights").error is None


def become_root() -> None:
    import os

    os.setresuid(0, 0, 0)


def raise_them_without_an_account() -> None:
    from pathlib import Path

    from runner.model.messages import Limits
    from runner.sandbox import walls

    limits = Limits(cpu_s=1, data_bytes=1, file_bytes=1, open_files=9)
    walls.raise_walls(readable=[], writable=[Path("scratch")], limits=limits, account=None)


def test_a_child_that_would_stay_root_gets_none(roots: Yard) -> None:
    outcome = roots.attempt(raise_them_without_an_account, behind="the yard's rights")
    assert outcome.error == (
        "InfrastructureError: walls: expected a user id for the child of a worker that is root, got none"
    )


def raise_them_beside_another_thread() -> None:
    import threading
    from pathlib import Path

    from runner.model.messages import Limits
    from runner.sandbox import walls

    over = threading.Event()
    threading.Thread(target=over.wait).start()
    try:
        limits = Limits(cpu_s=1, data_bytes=1 << 30, file_bytes=1, open_files=99)
        walls.raise_walls(readable=[], writable=[Path("scratch")], limits=limits, account=None)
    finally:
        over.set()


def test_a_child_of_two_threads_gets_none(ordinary: Yard) -> None:
    """Landlock would hold for one of them."""
    outcome = ordinary.attempt(raise_them_beside_another_thread, behind="nothing")
    assert outcome.error == "InfrastructureError: walls: expected a child of one thread, got 2"


def raise_them_without_the_filter() -> None:
    from pathlib import Path

    from runner.model.messages import Limits
    from runner.sandbox import seccomp, walls

    seccomp.install = lambda: None
    limits = Limits(cpu_s=9, data_bytes=1 << 30, file_bytes=1, open_files=99)
    walls.raise_walls(readable=[], writable=[Path("scratch")], limits=limits, account=None)


def test_a_wall_that_does_not_stand_is_found_missing(ordinary: Yard) -> None:
    outcome = ordinary.attempt(raise_them_without_the_filter, behind="nothing")
    assert (
        outcome.error == "InfrastructureError: walls: expected no socket, an end with its parent; got a child without"
    )


def raise_them_where_there_is_no_landlock(outside: str) -> list[object]:
    from pathlib import Path

    from runner.model.messages import Limits
    from runner.sandbox import landlock, walls

    landlock.abi = lambda: None
    limits = Limits(cpu_s=9, data_bytes=1 << 30, file_bytes=1 << 20, open_files=99)
    walls.raise_walls(readable=[], writable=[Path("scratch")], limits=limits, account=None)
    status = Path("/proc/self/status").read_text()
    return ["NoNewPrivs:\t1" in status, "Seccomp:\t2" in status, Path(outside).read_text()]


def test_where_there_is_no_landlock_the_other_walls_stand_and_files_are_those_of_the_user(ordinary: Yard) -> None:
    outside = ordinary.room / "outside"
    outside.write_text("readable by its user")
    outcome = ordinary.attempt(raise_them_where_there_is_no_landlock, str(outside), behind="nothing")
    assert outcome.value == [True, True, "readable by its user"], outcome


# ---------------------------------------------------------------- what it cannot come to


def read_a_file(path: str) -> int:
    from pathlib import Path

    return len(Path(path).read_bytes())


def list_a_folder(path: str) -> int:
    from pathlib import Path

    return len(list(Path(path).iterdir()))


def test_it_reads_nothing_of_the_process_that_forked_it(yard: Yard) -> None:
    """Its memory is tried by opening it: what is closed there is closed for good."""
    for name in ("environ", "mem", "maps", "auxv"):
        assert yard.attempt(read_a_file, f"/proc/{yard.pid}/{name}").errno in (EACCES, EPERM)
    for name in ("fd", "fdinfo", "map_files", "task"):
        outcome = yard.attempt(list_a_folder, f"/proc/{yard.pid}/{name}")
        assert outcome.errno in (EACCES, EPERM) or (name == "task" and walls.require().landlock is None), outcome


def look_into_another(hidden: bool) -> dict[str, str]:
    """Of the same user: what of another process can be had."""
    import os
    import signal
    from collections.abc import Callable
    from pathlib import Path

    from runner.sandbox import kernel, walls

    reading, writing = os.pipe()
    other = os.fork()
    if other == 0:
        kernel.prctl(4, 1)  # it would be hidden as its parent is
        if hidden:
            walls.hide()
        os.write(writing, b"!")
        signal.pause()
    os.read(reading, 1)
    found = {}
    ways: dict[str, Callable[[], object]] = {
        "environment": lambda: Path(f"/proc/{other}/environ").read_bytes(),
        "memory": lambda: os.open(f"/proc/{other}/mem", os.O_RDONLY),
        "descriptors": lambda: list(Path(f"/proc/{other}/fd").iterdir()),
        "a descriptor": lambda: os.open(f"/proc/{other}/fd/{writing}", os.O_WRONLY),
        "its folder": lambda: list(Path(f"/proc/{other}/cwd/").iterdir()),
        "trace": lambda: kernel.call("ptrace", 16, other, 0, 0),
    }
    for name, look in ways.items():
        try:
            look()
            found[name] = "had"
        except PermissionError:
            found[name] = "refused"
    os.kill(other, signal.SIGKILL)
    return found


def test_a_hidden_process_shows_nothing_to_others_of_its_user(ordinary: Yard) -> None:
    names = ("environment", "memory", "descriptors", "a descriptor", "its folder", "trace")
    assert ordinary.attempt(look_into_another, False, behind="nothing").value == dict.fromkeys(names, "had")
    assert ordinary.attempt(look_into_another, True, behind="nothing").value == dict.fromkeys(names, "refused")


def hide_and_fork() -> list[int]:
    import os

    from runner.sandbox import kernel, walls

    kernel.prctl(4, 1)
    walls.hide()
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, bytes([kernel.prctl(3)]))
        os._exit(0)
    return [kernel.prctl(3), os.read(reading, 1)[0]]


def test_what_a_hidden_process_forks_is_hidden_from_its_first_moment(ordinary: Yard) -> None:
    assert ordinary.attempt(hide_and_fork, behind="nothing").value == [0, 0]


@pytest.mark.skipif(sys.platform != "linux" or walls.require().landlock is None, reason="this kernel has no Landlock")
@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/hostname", "/proc/1/status", "/proc/version", "/proc/meminfo"])
def test_where_there_is_landlock_it_reads_no_file_that_it_does_not_need(yard: Yard, path: str) -> None:
    assert yard.attempt(read_a_file, path, behind="nothing").error is None
    assert yard.attempt(read_a_file, path).errno == EACCES


def test_another_users_room_is_closed_to_a_child_with_a_user_of_its_own(roots: Yard) -> None:
    """Without Landlock too, so the filter stands alone here."""
    other = roots.room / "another"
    other.mkdir()
    (other / "file").write_text("of another run")
    os.chown(other, roots.account + 1, roots.account + 1)
    other.chmod(0o700)
    assert roots.attempt(read_a_file, "another/file", behind="filter").errno == EACCES
    assert roots.attempt(read_a_file, "another/file", behind="the yard's rights").value == 14
    other.chmod(0o755)
    assert roots.attempt(read_a_file, "another/file", behind="filter").value == 14


def test_the_list_of_what_is_needed_holds_nothing_of_the_machines_people_or_other_processes() -> None:
    needed = walls.needed_folders()
    assert len(needed) == len(set(needed))
    assert all(path.is_absolute() for path in needed)
    assert Path(walls.__file__).parents[1] in needed
    assert Path(sys.base_prefix) in needed
    wide = {Path(each) for each in ("/", "/etc", "/proc", "/sys", "/dev", "/home", "/var", "/run")}
    wide |= {Path.home(), Path(tempfile.gettempdir())}
    assert not wide & set(needed)
    below_etc = [path for path in needed if Path("/etc") in path.parents]
    below_proc = [path for path in needed if Path("/proc") in path.parents]
    assert below_etc == [Path("/etc/ld.so.cache")]
    assert below_proc == [Path("/proc/self"), Path("/proc/sys/vm/overcommit_memory")]


def test_a_checkout_on_pythons_path_shows_the_package_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(walls.__file__).parents[1]
    monkeypatch.setattr("sys.path", [*sys.path, str(package.parent), "/no/such/folder", __file__, ""])
    needed = walls.needed_folders()
    assert package in needed
    assert not {package.parent, Path("/no/such/folder"), Path(__file__), Path.cwd()} & set(needed)


# ---------------------------------------------------------------- its limits


def use_the_processor() -> None:
    import signal

    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    while True:
        pass


def use_the_processor_and_pass_over_the_signal() -> None:
    import signal

    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    while True:
        pass


def test_processor_time_ends_by_a_signal_and_a_second_later_by_one_that_cannot_be_passed_over(ordinary: Yard) -> None:
    assert ordinary.attempt(use_the_processor, limits=limits(cpu_s=1)).ended == -signal.SIGXCPU
    outcome = ordinary.attempt(use_the_processor_and_pass_over_the_signal, limits=limits(cpu_s=1))
    assert outcome.ended == -signal.SIGKILL


def use_memory(mib: int) -> int:
    return len(bytearray(mib << 20)) >> 20


def test_memory_ends_at_its_limit_which_comes_on_top_of_what_the_zygote_has(yard: Yard) -> None:
    """The yard has DuckDB loaded, which takes more than is allowed here."""
    tight = limits(data_bytes=48 << 20)
    assert yard.attempt(use_memory, 24, limits=tight).value == 24
    assert yard.attempt(use_memory, 64, limits=tight).error == "MemoryError: "
    assert yard.attempt(use_memory, 64).value == 64


def write_bytes(count: int) -> int:
    from pathlib import Path

    path = Path("scratch/large")
    path.unlink(missing_ok=True)
    try:
        return path.write_bytes(b"x" * count)
    finally:
        path.unlink()


def test_a_file_ends_at_its_limit(yard: Yard) -> None:
    assert yard.attempt(write_bytes, 4096, limits=limits(file_bytes=4096)).value == 4096
    assert yard.attempt(write_bytes, 4097, limits=limits(file_bytes=4096)).errno == EFBIG


def open_files(count: int) -> int:
    import os

    return len([os.open(os.devnull, os.O_RDONLY) for _ in range(count)])


def test_open_files_end_at_their_limit(yard: Yard) -> None:
    assert yard.attempt(open_files, 20, limits=limits(open_files=64)).value == 20
    assert yard.attempt(open_files, 64, limits=limits(open_files=64)).errno == EMFILE


def start_threads(count: int) -> int:
    import threading

    threading.stack_size(64 * 1024)
    over, started = threading.Event(), 0
    try:
        for _ in range(count):
            threading.Thread(target=over.wait, daemon=True).start()
            started += 1
    except RuntimeError:
        return -started
    finally:
        over.set()
    return started


def test_threads_of_a_user_of_their_own_end_at_a_thousand(roots: Yard) -> None:
    """Of another user's child they are counted with all that this user runs, and so are not limited by number."""
    assert roots.attempt(start_threads, 500).value == 500
    assert -1024 <= roots.attempt(start_threads, 1200).value < -500


def raise_a_limit(name: str) -> None:
    import resource

    what = getattr(resource, name)
    _, highest = resource.getrlimit(what)
    resource.setrlimit(what, (highest + 1, highest + 1))


@pytest.mark.parametrize("name", ["RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE"])
def test_no_limit_is_ever_raised_again(yard: Yard, name: str) -> None:
    outcome = yard.attempt(raise_a_limit, name)
    assert outcome.error == "ValueError: not allowed to raise maximum limit"


def limits_in_force() -> list[list[int]]:
    import resource

    names = ("CORE", "CPU", "FSIZE", "NOFILE")
    return [list(resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))) for name in names]


def test_the_limits_are_those_that_were_asked_for_and_no_core_is_dumped(yard: Yard) -> None:
    asked = limits(cpu_s=7, file_bytes=8192, open_files=77)
    assert yard.attempt(limits_in_force, limits=asked).value == [[0, 0], [7, 8], [8192, 8192], [77, 77]]


def take_what_is_left() -> list[list[int]]:
    """Under a limit that is lower already, as a container's may be."""
    import resource
    from pathlib import Path

    from runner.model.messages import Limits
    from runner.sandbox import walls

    resource.setrlimit(resource.RLIMIT_NOFILE, (50, 60))
    resource.setrlimit(resource.RLIMIT_CPU, (30, 40))
    limits = Limits(cpu_s=100, data_bytes=1 << 30, file_bytes=1 << 20, open_files=1000)
    walls.raise_walls(readable=walls.needed_folders(), writable=[Path("scratch")], limits=limits, account=None)
    return [list(resource.getrlimit(each)) for each in (resource.RLIMIT_NOFILE, resource.RLIMIT_CPU)]


def test_a_limit_that_is_lower_already_stays(ordinary: Yard) -> None:
    outcome = ordinary.attempt(take_what_is_left, behind="nothing")
    assert outcome.value == [[60, 60], [40, 40]], outcome


# ---------------------------------------------------------------- its end


def say_who_and_wait() -> None:
    import os
    import signal
    from pathlib import Path

    Path("scratch/who.part").write_text(str(os.getpid()))
    Path("scratch/who.part").rename("scratch/who")
    signal.pause()


@pytest.mark.parametrize("kind", KINDS)
def test_it_ends_with_the_process_that_forked_it(kind: str) -> None:
    with open_yard(kind) as yard:
        yard.begin(say_who_and_wait)
        who = yard.room / "scratch" / "who"
        while not who.exists():
            assert yard.lives
            select.select([], [], [], 0.01)
        child = os.pidfd_open(int(who.read_text()))
        try:
            ended = select.poll()
            ended.register(child, select.POLLIN)
            assert ended.poll(0) == []
            yard.kill()
            assert ended.poll(10_000) != []
        finally:
            os.close(child)


def adopt() -> bool:
    """A grandchild whose parent has ended is this process's to reap."""
    import os

    from runner.sandbox import walls

    walls.adopt_orphans()
    reading, writing = os.pipe()
    if os.fork() == 0:
        grandchild = os.fork()
        if grandchild:
            os.write(writing, str(grandchild).encode())
        os._exit(0)
    reaped = {os.waitpid(-1, 0)[0] for _ in range(2)}
    return int(os.read(reading, 20)) in reaped


def test_orphans_below_become_its_own(ordinary: Yard) -> None:
    assert ordinary.attempt(adopt, behind="nothing").value is True


# ---------------------------------------------------------------- what it is for


def work_with_duckdb() -> list[object]:
    """With threads, more rows than memory, Parquet out, and a second database."""
    from pathlib import Path

    import duckdb

    scratch = Path("scratch").absolute()
    connection = duckdb.connect(str(scratch / "one.duckdb"))
    connection.execute("SET threads = 4")
    connection.execute("SET memory_limit = '64MB'")
    connection.execute(f"SET temp_directory = '{scratch}/spill'")
    long = "hash(i)::VARCHAR || repeat('x', 100)"
    connection.execute(f"SELECT {long} FROM range(1000000) r(i) ORDER BY ALL OFFSET 999990").fetchall()
    spilled = (scratch / "spill").exists()
    connection.execute("SET memory_limit = '512MB'")
    connection.execute(f"CREATE TABLE t AS SELECT i, {long} AS s FROM range(200000) r(i)")
    connection.execute(f"COPY t TO '{scratch}/out.parquet'")
    counted = connection.execute(f"SELECT count(*) FROM '{scratch}/out.parquet'").fetchall()
    connection.execute(f"ATTACH '{scratch}/two.duckdb' AS two")
    connection.execute("CREATE TABLE two.t AS FROM t LIMIT 10")
    connection.execute("DETACH two")
    connection.execute("DROP TABLE t")
    connection.execute("CHECKPOINT")
    connection.close()
    return [counted, spilled, sorted(path.name for path in scratch.glob("*.*"))]


def test_duckdb_works_with_threads_spills_writes_parquet_and_attaches(yard: Yard) -> None:
    outcome = yard.attempt(work_with_duckdb)
    assert outcome.error is None, outcome
    assert outcome.ended == 0
    assert outcome.value == [[[200000]], True, ["one.duckdb", "out.parquet", "two.duckdb"]]


def load_what_is_new() -> list[str]:
    """Modules that the zygote did not have, with libraries of the system; a time zone; random numbers."""
    import sqlite3
    import ssl
    import zoneinfo
    from datetime import datetime
    from uuid import uuid4

    hour = datetime(2026, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")).utcoffset()
    return [
        sqlite3.connect(":memory:").execute("SELECT 'sql'").fetchone()[0],
        str(hour),
        str(len(str(uuid4()))),
        ssl.__name__,
    ]


def test_python_imports_what_it_has_not_yet(yard: Yard) -> None:
    outcome = yard.attempt(load_what_is_new)
    assert outcome.value == ["sql", "2:00:00", "36", "ssl"], outcome


# ---------------------------------------------------------------- what a machine has to have


def test_this_machine_has_what_it_takes() -> None:
    support = walls.require()
    assert support.architecture in ("x86-64", "arm64")
    assert support.landlock is None or support.landlock >= 1


def test_a_mac_is_told_to_run_the_stage_in_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(InfrastructureError, match="walls: expected Linux") as raised:
        walls.require()
    assert raised.value.hint == "run the stage in its Docker image"
