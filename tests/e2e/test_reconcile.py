"""`runner reconcile` on real runs: messages are lost, workers die, and everything comes to its end once."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest

from runner.adapters.pg_ledger import PgLedger
from runner.adapters.sqs_queue import SqsQueue
from runner.leftovers import HORIZON
from runner.model.manifest import State
from runner.model.names import manifest_key
from runner.model.spec import JobSpec, Stage
from runner.ports import Ledger, Objects, Ports
from runner.reconcile import Finding, Part
from runner.worker import Worker
from tests.support.site import Site

SQL = {"one.sql": "SELECT 1 AS one", "next.sql": "SELECT one + 1 AS one FROM before"}


class Dies:
    """A port whose worker is killed at one call: by no error, so that nothing in the flow takes it for one."""

    def __init__(self, port: object, call: str, *, key: str = "") -> None:
        self._port, self._call, self._key = port, call, key

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._port, name)

        def call(*arguments: Any, **given: Any) -> Any:
            if name == self._call and (not self._key or arguments[0] == self._key):
                raise KeyboardInterrupt
            return asked(*arguments, **given)

        return call


class LaterLedger(PgLedger):
    """Asked a day after the horizon."""

    def now(self) -> Any:
        return super().now() + HORIZON + timedelta(days=1)


def append(site: Site, table: str) -> JobSpec:
    work = {"kind": "query", "file": "one.sql"}
    return site.spec(site.commit(SQL), "query", work, outputs=[{"dataset": table, "mode": "append"}])


def submit(site: Site, *specs: JobSpec) -> list[JobSpec]:
    for spec in specs:
        site.app.client.submit(spec)
    return list(specs)


def drain(site: Site, *, at_most: int | None = None) -> list[UUID]:
    """Messages are lost: so many, or all that can be received. Returns their runs."""
    found: list[UUID] = []
    while at_most is None or len(found) < at_most:
        delivery = site.app.queue.receive(Stage.QUERY, wait_s=0)
        if delivery is None:
            break
        site.app.queue.delete(delivery)
        found.append(UUID(json.loads(delivery.body)["run_id"]))
    return found


def sql(site: Site, statement: str, *given: Any) -> list[Any]:
    with psycopg.connect(site.app.ledger_url, autocommit=True) as connection:
        cursor = connection.execute(cast(Any, statement), given)
        return cursor.fetchall() if cursor.description else []


def five_minutes_pass(site: Site) -> None:
    """What was just done is left alone; and a worker that was killed holds its lease for a minute."""
    sql(
        site,
        "UPDATE ledger.runs SET submitted_at = submitted_at - interval '5 minutes', "
        "sent_at = sent_at - interval '5 minutes', decided_at = decided_at - interval '5 minutes', "
        "lease_expires_at = lease_expires_at - interval '5 minutes'",
    )


def killed_at(site: Site, spec: JobSpec, ports: Ports) -> None:
    """Its message is in the queue again at once, as it would be a minute later."""
    submit(site, spec)
    sqs = site.app.aws.sqs()
    queue = SqsQueue(sqs, site.settings.queue_prefix, lease_s=0)
    with pytest.raises(KeyboardInterrupt):
        list(Worker(ports, queue).work(Stage.QUERY, max_jobs=1, idle_timeout_s=5))
    sqs.close()
    five_minutes_pass(site)


@pytest.fixture(autouse=True)
def _messages_of_the_test_before_are_gone(site: Site) -> None:
    drain(site)


def work(site: Site) -> None:
    site.run("work", "query", "--idle-timeout", "2")


def require_all_over(site: Site) -> None:
    """Every run ever submitted is queued, running under a live lease, or terminal; here the queue is empty."""
    assert site.app.queue.depth(Stage.QUERY) == 0
    not_over = (
        "SELECT run_id, state FROM ledger.runs WHERE state NOT IN ('succeeded', 'failed', 'cancelled') "
        "AND NOT (state = 'running' AND lease_expires_at > clock_timestamp())"
    )
    assert sql(site, not_over) == []


def reconcile_later(site: Site) -> list[Finding]:
    ledger = LaterLedger(site.app.ledger_url)
    leftovers = replace(site.app.reconcile.leftovers, ledger=ledger)
    later = replace(site.app.reconcile, ledger=ledger, leftovers=leftovers)
    found = list(later.run(only=(Part.FILES,), apply=True, horizon=HORIZON, progress=lambda _: None))
    ledger.close()
    return found


def test_a_lost_message_comes_back_and_its_copies_double_no_row(site: Site) -> None:
    specs = submit(site, *(append(site, "marts.appended") for _ in range(3)))
    (lost,) = drain(site, at_most=1)
    assert lost in {spec.run_id for spec in specs}
    five_minutes_pass(site)

    dry = site.run("reconcile")
    assert dry.stdout.splitlines()[-1] == "dry run, nothing was changed: 3 to do, by runner reconcile --apply"
    assert "the queue has 2 messages for 3 runs" in " ".join(dry.stdout.split())
    assert site.app.queue.depth(Stage.QUERY) == 2

    done = site.run("reconcile", "--apply")
    assert done.stdout.splitlines()[-1] == "3 done"
    assert site.app.queue.depth(Stage.QUERY) == 5, "nobody knows which was lost: each was sent once more"
    told = site.json("reconcile", "--apply")
    assert (told["findings"], told["done"], told["to_do"], told["complete"]) == ([], 0, 0, True)
    assert site.run("reconcile", "--apply").stdout == "nothing was to be done\n"

    work(site)
    assert site.rows("marts.appended") == [(1,)] * 3
    assert [row.state for spec in specs if (row := site.app.ledger.run(spec.run_id))] == [State.SUCCEEDED] * 3
    assert site.json("reconcile")["findings"] == []
    require_all_over(site)


def test_a_run_whose_worker_died_and_whose_message_is_gone_goes_on(site: Site) -> None:
    spec = append(site, "marts.died")
    died = replace(site.app.ports, ledger=cast(Ledger, Dies(site.app.ledger, "lease")), worker="host:9")
    killed_at(site, spec, died)
    assert drain(site) == [spec.run_id]
    told = site.json("reconcile", "--apply", "--only", "messages")
    assert [(each["kind"], each["subject"], each["done"]) for each in told["findings"]] == [
        ("lease", str(spec.run_id), False),
        ("message", str(spec.run_id), True),
    ]
    assert "worker host:9, attempt 1, is heard of no more" in told["findings"][0]["found"]
    work(site)
    assert site.rows("marts.died") == [(1,)]
    manifest = site.app.client.manifest(spec.run_id)
    assert manifest is not None
    assert [each.outcome for each in manifest.attempts] == ["lost", "succeeded"]
    require_all_over(site)


def test_a_manifest_that_a_killed_worker_owes_is_recorded(site: Site) -> None:
    spec = append(site, "marts.owed")
    key = manifest_key(spec.run_id)
    ports = replace(site.app.ports, objects=cast(Objects, Dies(site.app.objects, "put_if_absent", key=key)))
    killed_at(site, spec, ports)
    assert not site.app.objects.exists(key)
    told = site.json("reconcile", "--apply", "--only", "records", "--only", "letters")
    assert [(each["kind"], each["subject"], each["done"]) for each in told["findings"]] == [
        ("record", str(spec.run_id), True)
    ]
    manifest = site.app.client.manifest(spec.run_id)
    assert manifest is not None
    assert site.app.objects.get(key) == manifest.to_json().encode()
    assert site.json("reconcile", "--only", "records")["findings"] == []
    drain(site)
    require_all_over(site)


def test_a_letter_that_nobody_gave_a_reason_for_is_run(site: Site) -> None:
    spec = append(site, "marts.letter")
    submit(site, spec)
    assert drain(site) == [spec.run_id]
    sqs = site.app.aws.sqs()
    url = sqs.get_queue_url(QueueName=f"{site.settings.queue_prefix}query-dlq")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody=spec.to_json())
    sqs.send_message(QueueUrl=url, MessageBody="[bold]no spec[/]")
    done = site.run("reconcile", "--apply", "--only", "letters")
    assert done.stdout.splitlines()[-1] == "2 done"
    assert "send it again" in done.stdout
    work(site)
    assert site.rows("marts.letter") == [(1,)]
    left = site.json("dlq", "list", "query")["letters"]
    assert [(each["body"], "expected JSON" in each["reason"]) for each in left] == [("[bold]no spec[/]", True)]
    assert site.json("reconcile", "--only", "letters")["findings"] == []
    require_all_over(site)
    sqs.close()


def test_files_of_an_attempt_that_died_before_its_plan_go_and_what_is_published_stays(site: Site) -> None:
    spec = append(site, "marts.staged")
    died = replace(site.app.ports, ledger=cast(Ledger, Dies(site.app.ledger, "plan")))
    killed_at(site, spec, died)
    folder = f"tables/marts/staged/data/{spec.effect}/{spec.run_id}/"
    (left,) = site.app.objects.list(folder)
    drain(site)
    manifest = site.end(spec)
    assert manifest.attempt == 2
    work = {"kind": "query", "file": "next.sql"}
    read = {"dataset": "marts.staged", "as": "before"}
    onto = site.spec(spec.logic.commit, "query", work, inputs=[read], outputs=[{"dataset": "marts.staged"}])
    assert site.end(onto).rows == 1
    rerun = site.end(site.app.client.rerun(onto.run_id))
    before = site.app.objects.list("tables/marts/staged/data/")
    assert len(before) == 4

    told = site.json("reconcile", "--apply", "--only", "files")
    assert told["findings"] == [], "nothing is old enough"
    (done,) = reconcile_later(site)
    assert done.subject == site.app.objects.uri(left.rpartition("/")[0] + "/")
    assert done.done
    assert site.app.objects.list("tables/marts/staged/data/") == [key for key in before if key != left]
    assert reconcile_later(site) == []

    assert site.rows("marts.staged") == [(2,)]
    assert site.rows("marts.staged", branch=rerun.outputs[0].branch) == [(2,)]
    again = site.end(site.app.client.rerun(onto.run_id))
    assert again.outputs[0].comparison == "identical", "what the run read is there, though it was replaced since"
    require_all_over(site)


def test_files_are_not_deleted_before_their_time(site: Site) -> None:
    refused = site.run("reconcile", "--apply", "--horizon", "13", check=False)
    assert refused.returncode == 2
    assert "--horizon: expected at least 14 days, got 13" in refused.stderr


def test_what_cannot_be_mended_is_said_with_exit_code_1(site: Site) -> None:
    spec = append(site, "marts.taken")
    key = manifest_key(spec.run_id)
    ports = replace(site.app.ports, objects=cast(Objects, Dies(site.app.objects, "put_if_absent", key=key)))
    killed_at(site, spec, ports)
    site.app.objects.put(key, b"{}")
    done = site.run("reconcile", "--apply", "--only", "records", check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "0 done, 1 could not be done"
    assert "got another that is there already" in " ".join(done.stdout.split())
    sql(site, "UPDATE ledger.runs SET recorded_at = decided_at WHERE run_id = %s", spec.run_id)


def test_a_service_that_is_away_is_exit_code_75(site: Site) -> None:
    done = site.run("reconcile", "--json", check=False, RUNNER_QUEUE_PREFIX="nothing-")
    assert done.returncode == 75
    assert "nothing-extract" in done.stderr
    assert json.loads(done.stdout) == {
        "applied": False,
        "to_do": 0,
        "done": 0,
        "failed": 0,
        "complete": False,
        "findings": [],
    }
