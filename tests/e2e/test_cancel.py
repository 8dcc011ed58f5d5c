"""`runner cancel`, as an operator meets it: queued, at work, too late, over, and unknown."""

from __future__ import annotations

import json
import time
from threading import Thread
from uuid import uuid4

from runner.model.manifest import Manifest, Plan, Report, State
from runner.model.spec import JobSpec, Stage
from runner.ports import Claimed
from runner.worker import Outcome, Worker
from tests.support.site import Site

LONG = "SELECT count(*) AS n FROM range(1000000000000) a(i) WHERE hash(i) = 0"
PATIENCE_S = 60.0


def query(site: Site, name: str, sql: str = "SELECT 1 AS one") -> JobSpec:
    commit = site.commit({f"{name}.sql": sql})
    work = {"kind": "query", "file": f"{name}.sql"}
    return site.spec(commit, "query", work, outputs=[{"dataset": f"marts.{name}"}])


def manifest_of(site: Site, spec: JobSpec) -> Manifest:
    manifest = site.app.client.manifest(spec.run_id)
    assert manifest is not None
    return manifest


def test_a_queued_run_is_cancelled_at_once_and_its_message_is_acknowledged(site: Site) -> None:
    spec = site.app.client.submit(query(site, "queued"))
    done = site.run("cancel", str(spec.run_id))
    assert done.stdout == f"{spec.run_id}  cancelled, nothing was published\n"
    assert site.app.tables.load("marts.queued").head(None) is None
    assert [row["run_id"] for row in site.json("runs", "--state", "cancelled")] == [str(spec.run_id)]

    worked = site.run("work", "query", "--max-jobs", "1", "--idle-timeout", "5", check=False)
    assert worked.returncode == 1, "its work was not done"
    assert list(site.app.worker().work(Stage.QUERY, max_jobs=1, idle_timeout_s=0)) == []
    assert manifest_of(site, spec).state is State.CANCELLED

    assert site.json("cancel", str(spec.run_id)) == {
        "run_id": str(spec.run_id),
        "answer": "over",
        "state": "cancelled",
    }


def test_a_run_at_work_is_ended_by_its_worker_within_a_heartbeat(site: Site) -> None:
    spec = site.app.client.submit(query(site, "at_work", LONG))
    worker = Worker(site.app.ports, site.app.queue, lease_s=0.8)
    ended: list[Outcome] = []
    thread = Thread(target=lambda: ended.extend(worker.work(Stage.QUERY, max_jobs=1, idle_timeout_s=5)))
    thread.start()
    try:
        give_up_at_s = time.monotonic() + PATIENCE_S
        while "running at_work.sql" not in [line["message"] for line in site.app.client.log(spec.run_id)]:
            assert time.monotonic() < give_up_at_s, "nobody took it"
            time.sleep(0.05)
        assert site.json("cancel", str(spec.run_id))["state"] == "cancelled"
    finally:
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert ended == [manifest_of(site, spec)]
    assert manifest_of(site, spec).state is State.CANCELLED
    assert site.app.tables.load("marts.at_work").head(None) is None


def test_a_run_that_a_worker_has_is_asked_for_without_waiting(site: Site) -> None:
    spec = query(site, "held")
    assert isinstance(site.app.ledger.claim(spec, worker="another:1"), Claimed)
    done = site.run("cancel", str(spec.run_id), "--no-wait")
    assert "asked to be cancelled" in done.stdout
    assert site.app.ledger.cancel_wanted(spec.run_id)
    assert site.app.client.manifest(spec.run_id) is None


def test_from_the_plan_on_it_is_too_late(site: Site) -> None:
    spec = query(site, "planned")
    claimed = site.app.ledger.claim(spec, worker="another:1")
    assert isinstance(claimed, Claimed)
    plan = Plan(plan_id=uuid4(), run_id=spec.run_id, attempt=claimed.attempt, outputs=(), report=Report())
    site.app.ledger.plan(spec.run_id, claimed.attempt, plan)
    done = site.run("cancel", str(spec.run_id), check=False)
    assert (done.returncode, done.stdout) == (1, f"{spec.run_id}  too late to cancel: it publishes already\n")


def test_a_run_that_is_over_says_how_it_ended(site: Site) -> None:
    manifest = site.end(query(site, "over"))
    done = site.run("cancel", str(manifest.run_id), "--json", check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["state"] == "succeeded"


def test_a_run_that_nobody_knows_is_bad_usage(site: Site) -> None:
    done = site.run("cancel", str(uuid4()), check=False)
    assert done.returncode == 2
    assert "expected one run of that id, got none" in done.stderr
