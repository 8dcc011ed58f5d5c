"""What tests share: one emulator and one Postgres a session, started when the first test asks for them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from runner.adapters.aws import Aws
from runner.adapters.s3_objects import S3Objects
from runner.config import load_settings
from runner.embedded.services import Endpoints, down, up

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_sqs.client import SQSClient

    from tests.support.site import Site

_HOME = pytest.StashKey[Path]()
_EMULATOR = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)  # pytest-xdist's, in its workers only
    if worker is not None:
        config.stash[_HOME], config.stash[_EMULATOR] = Path(worker["home"]), Path(worker["emulator"])
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or a cancelled run would leave the services behind
    config.stash[_HOME] = Path(tempfile.mkdtemp(prefix="stage-runner-tests-"))
    config.stash[_EMULATOR] = config.rootpath / load_settings().emulator
    _forget_the_callers_settings()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """pytest-xdist's: what each worker is told."""
    node.workerinput["home"] = str(node.config.stash[_HOME])
    node.workerinput["emulator"] = str(node.config.stash[_EMULATOR])


def pytest_unconfigure(config: pytest.Config) -> None:
    """The first process outlives its workers, however they end, so it is the one that cleans up."""
    if not hasattr(config, "workerinput") and _HOME in config.stash:
        down(config.stash[_HOME], purge=True)
        shutil.rmtree(config.stash[_HOME], ignore_errors=True)


def _forget_the_callers_settings() -> None:
    """No test sees somebody's real account or ledger; workers inherit this environment."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "RUNNER_")) and not name.startswith("RUNNER_TEST_"):
            del os.environ[name]
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("docker") is not None:
        _require_docker()


@pytest.fixture(scope="session")
def needs_docker() -> None:
    """For fixtures; a test says `@pytest.mark.docker`."""
    _require_docker()


def _require_docker() -> None:
    problem = _docker_problem()
    if problem and os.environ.get("RUNNER_TEST_DOCKER") == "required":
        pytest.fail(f"RUNNER_TEST_DOCKER=required, but {problem}", pytrace=False)
    if problem:
        pytest.skip(problem)


@cache
def _docker_problem() -> str | None:
    asked = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"no Docker engine answers: {exc}"
    return None if answer.returncode == 0 else f"no Docker engine answers: {answer.stderr.strip()}"


# ---------------------------------------------------------------- services


@pytest.fixture(scope="session")
def services(pytestconfig: pytest.Config) -> Endpoints:
    """The embedded services, shared by all workers: whoever asks first starts them."""
    home, emulator = pytestconfig.stash[_HOME], pytestconfig.stash[_EMULATOR]
    return up(home, emulator_bin=emulator, progress=lambda line: None, durable=False)


@pytest.fixture(scope="session")
def aws(services: Endpoints) -> Aws:
    return Aws(
        region=services.aws_region,
        endpoint_url=services.aws_endpoint_url,
        access_key_id=services.aws_access_key_id,
        secret_access_key=services.aws_secret_access_key,
    )


@pytest.fixture(scope="session")
def s3_client(aws: Aws) -> Iterator[S3Client]:
    client = aws.s3()
    yield client
    client.close()


@pytest.fixture(scope="session")
def sqs_client(aws: Aws) -> Iterator[SQSClient]:
    client = aws.sqs()
    yield client
    client.close()


@pytest.fixture
def bucket(s3_client: S3Client) -> str:
    """A bucket of the test's own."""
    name = f"test-{uuid4().hex}"
    S3Objects(s3_client, name).create_bucket()
    return name


@pytest.fixture
def queue_prefix() -> str:
    """For queues of the test's own; it makes those it needs."""
    return f"test-{uuid4().hex[:12]}-"


@pytest.fixture(scope="module")
def ledger_url(services: Endpoints) -> Iterator[str]:
    """A database of the module's own, empty: no migration has run."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.sql import SQL, Identifier

    server = services.ledger_url.get_secret_value()
    name = f"test_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        at = conninfo_to_dict(server)
        yield f"postgresql://{at['user']}:{at['password']}@{at['host']}:{at['port']}/{name}"
        connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


@pytest.fixture(scope="module")
def site(services: Endpoints, ledger_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A whole installation of the module's own, on the session's services."""
    from tests.support.site import make_site

    made = make_site(
        tmp_path_factory.mktemp("site"),
        ledger_url=ledger_url,
        aws_endpoint_url=services.aws_endpoint_url,
        name=f"t{uuid4().hex[:10]}",
    )
    yield made
    made.app.close()
    made.portal.stop()
