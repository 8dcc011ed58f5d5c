"""A service that is away is a clear line and exit code 75; the message stays, and the run goes on when it is back."""

from __future__ import annotations

import socket

import pytest

from runner.model.manifest import State
from runner.model.spec import JobSpec
from tests.support.site import Site

SQL = {"queries/one.sql": "SELECT 1 AS one"}


def query(site: Site, table: str = "marts.one") -> JobSpec:
    work = {"kind": "query", "file": "queries/one.sql"}
    return site.spec(site.commit(SQL), "query", work, outputs=[{"dataset": table}])


@pytest.fixture
def dead_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def test_postgres_down(site: Site, dead_port: int) -> None:
    url = f"postgresql://nobody:secret@127.0.0.1:{dead_port}/ledger"
    site.app.client.submit(query(site))
    done = site.run("work", "query", "--max-jobs", "1", check=False, RUNNER_LEDGER_URL=url)
    assert done.returncode == 75
    assert f"127.0.0.1:{dead_port}" in done.stderr
    assert "secret" not in done.stderr + done.stdout


def test_the_message_of_a_worker_without_a_ledger_is_not_lost(site: Site, dead_port: int) -> None:
    url = f"postgresql://nobody:secret@127.0.0.1:{dead_port}/ledger"
    spec = query(site, "marts.kept")
    site.app.client.submit(spec)
    done = site.run("work", "query", "--max-jobs", "1", check=False, RUNNER_LEDGER_URL=url)
    assert done.returncode == 75
    _work_until_over(site, spec)
    manifest = site.app.client.manifest(spec.run_id)
    assert manifest is not None
    assert manifest.state is State.SUCCEEDED
    assert site.rows("marts.kept") == [(1,)]


def test_s3_and_sqs_down(site: Site, dead_port: int) -> None:
    done = site.run("work", "query", "--max-jobs", "1", check=False, AWS_ENDPOINT_URL=f"http://127.0.0.1:{dead_port}")
    assert done.returncode == 75
    assert f"127.0.0.1:{dead_port}" in done.stderr


def test_the_bucket_gone_costs_a_try_and_no_run(site: Site) -> None:
    """A worker whose bucket is wrong gives the run back; one whose bucket is right ends it."""
    spec = query(site, "marts.later")
    site.app.client.submit(spec)
    done = site.run("work", "query", "--max-jobs", "1", check=False, RUNNER_BUCKET="no-such-bucket-here")
    assert done.returncode == 75
    assert "no-such-bucket-here" in done.stderr
    _work_until_over(site, spec)
    manifest = site.app.client.manifest(spec.run_id)
    assert manifest is not None
    assert manifest.state is State.SUCCEEDED


def test_no_queue_is_named_with_what_to_do(site: Site) -> None:
    done = site.run("work", "query", "--max-jobs", "1", check=False, RUNNER_QUEUE_PREFIX="nothing-")
    assert done.returncode == 75
    assert "nothing-query" in done.stderr


def test_a_ledger_without_tables_says_how_to_make_them(site: Site, services_ledger_without_tables: str) -> None:
    done = site.run("runs", check=False, RUNNER_LEDGER_URL=services_ledger_without_tables)
    assert done.returncode == 75
    assert "runner ledger migrate" in done.stderr


@pytest.fixture
def services_ledger_without_tables(ledger_url: str) -> str:
    """The server's own database, in which no migration has run."""
    return ledger_url.rsplit("/", 1)[0] + "/postgres"


def _work_until_over(site: Site, spec: JobSpec) -> None:
    """The message comes back when its visibility runs out; other messages that wait are worked on, too."""
    worker = site.app.worker()
    for _ in range(40):
        for _ in worker.work(spec.stage, max_jobs=1, idle_timeout_s=5):
            pass
        if site.app.client.manifest(spec.run_id) is not None:
            return
    raise AssertionError(f"run {spec.run_id} did not end")
