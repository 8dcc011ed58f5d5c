"""What fell between the services, found and mended: on Postgres, SQS and S3, with a table that pyiceberg made."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from botocore.stub import Stubber

from runner.adapters import s3_objects
from runner.adapters.aws import Aws
from runner.adapters.pg_ledger import QUERIES, PgLedger
from runner.adapters.s3_objects import S3Objects
from runner.adapters.s3_prefixes import S3Prefixes
from runner.adapters.sqs_dead_letters import SqsDeadLetters
from runner.adapters.sqs_queue import SqsQueue
from runner.client import Client
from runner.clock import SystemClock
from runner.leftovers import HORIZON, Leftovers
from runner.log import logger
from runner.model.errors import InfrastructureError, SpecError
from runner.model.manifest import FileRecord, Manifest, State
from runner.model.names import artifacts_prefix, data_prefix, is_table, log_key, manifest_key, rerun_branch, spec_key
from runner.model.spec import JobSpec, Stage
from runner.ports import Claimed, CommitTag, Delivery, NoQueue, Ports
from runner.reconcile import RETENTION, Finding, Kind, Part, Reconcile
from tests.support.documents import job_spec, manifest_of, output_record

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from types_boto3_s3.client import S3Client
    from types_boto3_sqs.client import SQSClient

LONG_AGO = timedelta(minutes=5)
"""Longer than what was just done is left alone for."""
TABLE = "marts.delays"
PREFIX = "landing/portal/flights"


class ShiftedLedger(PgLedger):
    """Its clock is ahead: what is an hour old to S3 and the ledger is `ahead` older to whoever asks the time."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead


class Place:
    """A ledger, queues and a bucket, and what reconciles them."""

    def __init__(self, url: str, objects: S3Objects, sqs: SQSClient, prefix: str, catalog: Catalog) -> None:
        from runner.adapters.iceberg_tables import IcebergTables

        self.url = url
        self.objects = objects
        self.sqs = sqs
        self.prefix = prefix
        self.catalog = catalog
        self.ledger = ShiftedLedger(url)
        self.queue = SqsQueue(sqs, prefix)
        self.letters = SqsDeadLetters(sqs, prefix)
        self.tables = IcebergTables(catalog, bucket=objects.uri("").removeprefix("s3://").rstrip("/"))
        self.prefixes = S3Prefixes(objects, SystemClock())
        self.reconcile = self.with_ledger(self.ledger)

    def with_ledger(self, ledger: PgLedger) -> Reconcile:
        # What records a manifest needs no more of a worker's ports than these two.
        ports = cast(Ports, SimpleNamespace(ledger=ledger, objects=self.objects))
        leftovers = Leftovers(
            ledger=ledger, objects=self.objects, datasets=lambda name: self.tables if is_table(name) else self.prefixes
        )
        return Reconcile(ports=ports, ledger=ledger, queue=self.queue, letters=self.letters, leftovers=leftovers)

    def look(self, *only: Part, apply: bool = False, horizon: timedelta = HORIZON) -> list[Finding]:
        """Besides files, unless they are asked for."""
        parts = only or (Part.MESSAGES, Part.RECORDS, Part.LETTERS)
        return list(self.reconcile.run(only=parts, apply=apply, horizon=horizon, progress=lambda _: None))

    def mend(self, *only: Part, horizon: timedelta = HORIZON) -> list[Finding]:
        return self.look(*only, apply=True, horizon=horizon)

    # ------------------------------------------------------------ runs

    def submit(self, stage: str = "query", **given: Any) -> JobSpec:
        """As the client does it."""
        spec = job_spec(stage, **given)
        self.ledger.submit(spec)
        self.objects.put(spec_key(spec.run_id), spec.to_json().encode())
        self.queue.send(spec.stage, spec.to_json())
        self.ledger.sent([spec.run_id])
        return spec

    def claim(self, spec: JobSpec, *, lease_s: float = 3600) -> Claimed:
        ledger = PgLedger(self.url, lease_s=lease_s)
        claimed = ledger.claim(spec, worker="host:7")
        ledger.close()
        assert isinstance(claimed, Claimed)
        return claimed

    def end(self, spec: JobSpec, *outputs: Any, recorded: bool = True, **given: Any) -> Manifest:
        attempt = self.claim(spec).attempt
        manifest = manifest_of(*outputs, spec=spec, attempt=attempt, **{"decided_at": self.ledger.now(), **given})
        self.ledger.decide(manifest, attempt=attempt)
        if recorded:
            self.objects.put(manifest_key(spec.run_id), manifest.to_json().encode())
            self.ledger.mark_recorded(spec.run_id)
        return manifest

    def sql(self, statement: str, *given: Any) -> list[Any]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(cast(Any, statement), given)
            return cursor.fetchall() if cursor.description else []

    def age(self, by: timedelta = LONG_AGO, *specs: JobSpec) -> None:
        """All that happened to these runs, or to all, happened so much earlier."""
        wanted = [spec.run_id for spec in specs] or [row[0] for row in self.sql("SELECT run_id FROM ledger.runs")]
        for column in ("submitted_at", "sent_at", "decided_at"):
            self.sql(f"UPDATE ledger.runs SET {column} = {column} - %s WHERE run_id = ANY(%s)", by, wanted)

    # ------------------------------------------------------------ queues

    def lose_messages(self, stage: Stage = Stage.QUERY) -> None:
        self.drain(stage)

    def take(self, stage: Stage = Stage.QUERY) -> Delivery:
        delivery = self.queue.receive(stage, wait_s=1)
        assert delivery is not None
        return delivery

    def drain(self, stage: Stage = Stage.QUERY) -> Counter[UUID]:
        """The runs of all messages that can be received, each with how often it is there; they are gone then."""
        found = Counter[UUID]()
        while (delivery := self.queue.receive(stage, wait_s=0)) is not None:
            self.queue.delete(delivery)
            found[UUID(json.loads(delivery.body)["run_id"])] += 1
        return found

    def dead_url(self, stage: Stage = Stage.QUERY) -> str:
        return self.sqs.get_queue_url(QueueName=f"{self.prefix}{stage.value}-dlq")["QueueUrl"]

    def give_up(self, body: str, stage: Stage = Stage.QUERY) -> None:
        """As SQS itself does it: no reason stands beside the message."""
        self.sqs.send_message(QueueUrl=self.dead_url(stage), MessageBody=body)

    def bury(self, body: str, reason: str, stage: Stage = Stage.QUERY) -> None:
        """As a worker does it."""
        self.queue.send(stage, body)
        self.queue.bury(self.take(stage), reason=reason)

    def dead(self, stage: Stage = Stage.QUERY) -> list[tuple[str, str | None]]:
        """The bodies of all that can be seen, with their reasons."""
        letters = self.letters.look(stage, limit=self.letters.depth(stage))
        for letter in letters:
            self.letters.put_back(letter)
        return sorted((letter.body, letter.reason) for letter in letters)

    # ------------------------------------------------------------ the promise

    def require_nothing_lost(self) -> None:
        """Every run ever submitted is queued, running under a live lease, or terminal; it empties the queues."""
        queued = [run_id for stage in Stage for run_id in self.drain(stage)]
        lost = self.sql(
            "SELECT run_id, state FROM ledger.runs WHERE state NOT IN ('succeeded', 'failed', 'cancelled') "
            "AND NOT (state = 'running' AND lease_expires_at > clock_timestamp()) AND run_id <> ALL(%s)",
            queued,
        )
        assert lost == []

    # ------------------------------------------------------------ files

    def put(self, key: str) -> str:
        self.objects.put(key, b"rows")
        return key

    def staged(self, spec: JobSpec, dataset: str, *, plan_id: UUID | None = None, name: str = "part.parquet") -> str:
        """The key of a file as a run uploads it."""
        folder = data_prefix(
            dataset,
            effect=spec.effect,
            run_id=spec.run_id,
            attempt=1,
            plan_id=plan_id or uuid4(),
            written_at=datetime(2026, 1, 2, tzinfo=UTC),
        )
        return folder + name

    def publish(self, key: str, *, branch: str | None = None, scheme: str = "s3") -> str:
        """A snapshot of the table, made by pyiceberg alone, that has the file of this key and no other."""
        import pyarrow as pa
        from pyarrow import parquet
        from pyiceberg.expressions import AlwaysTrue

        rows = pa.table({"id": pa.array([1], pa.int32())})
        sink = io.BytesIO()
        parquet.write_table(rows, sink)
        self.objects.put(key, sink.getvalue())
        namespace, _, name = TABLE.partition(".")
        self.catalog.create_namespace_if_not_exists(namespace)
        if not self.catalog.table_exists(TABLE):
            where = self.objects.uri(f"tables/{namespace}/{name}")
            self.catalog.create_table(TABLE, schema=rows.schema, location=where)
        table = self.catalog.load_table(TABLE)
        if branch is not None:
            head = table.metadata.current_snapshot()
            assert head is not None
            table.manage_snapshots().create_branch(head.snapshot_id, branch).commit()
        with table.transaction() as transaction:
            on = branch or "main"
            if table.metadata.current_snapshot() is not None:
                transaction.delete(AlwaysTrue(), branch=on)
            uri = self.objects.uri(key).replace("s3://", f"{scheme}://")
            transaction.add_files([uri], check_duplicate_files=False, branch=on)
        return key

    def keys(self, *of: str) -> set[str]:
        """Those that are there still."""
        return {key for key in of if self.objects.exists(key)}


@pytest.fixture
def place(
    ledger_url: str, s3_client: S3Client, bucket: str, aws: Aws, sqs_client: SQSClient, queue_prefix: str
) -> Iterator[Place]:
    from runner.adapters.iceberg_tables import sql_catalog

    with psycopg.connect(ledger_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS ledger, catalog CASCADE")
    catalog = sql_catalog(ledger_url, bucket=bucket, aws=aws.properties)
    made = Place(ledger_url, S3Objects(s3_client, bucket), sqs_client, queue_prefix, catalog)
    made.ledger.migrate()
    for stage in Stage:
        made.queue.create(stage)
    yield made
    made.ledger.close()
    made.catalog.close()


def kinds(found: Collection[Finding]) -> list[tuple[Kind, str]]:
    return sorted((each.kind, each.subject) for each in found)


def messages(*specs: JobSpec) -> list[tuple[Kind, str]]:
    return sorted((Kind.MESSAGE, str(spec.run_id)) for spec in specs)


def once(*specs: JobSpec) -> Counter[UUID]:
    return Counter(spec.run_id for spec in specs)


# ---------------------------------------------------------------- messages


def test_runs_whose_messages_are_gone_are_sent_again_once_and_then_nothing_is_left_to_do(place: Place) -> None:
    specs = [place.submit() for _ in range(3)]
    place.lose_messages()
    place.age()
    said = place.look()
    assert kinds(said) == messages(*specs)
    assert {(each.remedy, each.done) for each in said} == {("send it again", False)}
    assert "the queue has 0 messages for 3 runs" in said[0].found
    assert place.queue.depth(Stage.QUERY) == 0, "to say it changes nothing"
    done = place.mend()
    assert kinds(done) == messages(*specs)
    assert all(each.done for each in done)
    assert place.look() == place.mend() == []
    place.age()
    assert place.look() == []
    deliveries = [place.take() for _ in specs]
    assert sorted(each.body for each in deliveries) == sorted(spec.to_json() for spec in specs)
    for delivery in deliveries:
        place.queue.hide(delivery, seconds=0)
    assert place.drain() == once(*specs)
    place.mend()


def test_of_five_of_which_one_is_gone_nobody_can_say_which_and_all_are_sent(place: Place) -> None:
    specs = [place.submit() for _ in range(5)]
    gone = place.take()
    place.queue.delete(gone)
    place.age()
    assert kinds(place.mend()) == messages(*specs)
    assert place.mend() == []
    there = place.drain()
    assert there == once(*specs, *(spec for spec in specs if spec.to_json() != gone.body))


def test_a_stage_is_judged_by_its_own_queue(place: Place) -> None:
    lost = place.submit("query")
    place.submit("load")
    place.lose_messages(Stage.QUERY)
    place.age()
    assert kinds(place.mend()) == messages(lost)
    place.require_nothing_lost()


def test_what_was_sent_within_the_last_minute_is_left_alone(place: Place) -> None:
    old, young = place.submit(), place.submit()
    place.lose_messages()
    place.age(LONG_AGO, old)
    assert kinds(place.mend()) == messages(old)
    assert place.mend() == []
    place.age(LONG_AGO, young)
    assert kinds(place.mend()) == messages(young), "the other one was sent just now"
    place.require_nothing_lost()


def test_a_submit_between_the_ledger_and_the_queue_makes_nobody_send(place: Place) -> None:
    others = [place.submit() for _ in range(3)]
    place.age()
    halfway = job_spec("query")
    place.ledger.submit(halfway)
    assert place.look() == []
    place.age(LONG_AGO, halfway)
    assert kinds(place.mend()) == messages(halfway, *others), "by now its submit was cut short"
    assert place.objects.get(spec_key(halfway.run_id)) == halfway.to_json().encode(), "kept beside the record too"
    place.require_nothing_lost()


def test_what_the_release_before_queued_counts_as_sent_when_it_was_submitted(place: Place) -> None:
    spec = place.submit()
    place.sql("UPDATE ledger.runs SET sent_at = NULL")
    place.age()
    assert place.look() == []
    place.lose_messages()
    assert kinds(place.mend()) == messages(spec)
    place.require_nothing_lost()


def test_a_message_at_work_and_one_that_waits_hidden_are_there(place: Place) -> None:
    at_work, backing_off = place.submit(), place.submit()
    for _ in range(2):
        place.queue.hide(place.take(), seconds=60)
    place.claim(at_work)
    place.ledger.claim(backing_off, worker="host:1")
    place.ledger.release(backing_off.run_id, 1, outcome="retry", failure=None, wait_s=600)
    place.age()
    assert place.look() == []


def test_a_run_under_a_live_lease_is_not_sent_while_others_are(place: Place) -> None:
    waiting, at_work = place.submit(), place.submit()
    place.claim(at_work)
    place.lose_messages()
    place.age()
    assert kinds(place.mend()) == messages(waiting)
    assert place.drain() == once(waiting)


def test_a_lease_that_ran_out_is_said_and_its_message_brings_the_run_back(place: Place) -> None:
    spec = place.submit()
    place.claim(spec, lease_s=0)
    place.age()
    (said,) = place.mend()
    assert (said.kind, said.subject, said.remedy, said.done) == (Kind.LEASE, str(spec.run_id), None, False)
    assert "worker host:7, attempt 1, is heard of no more" in said.found
    assert place.drain() == once(spec)
    assert [each.kind for each in place.mend()] == [Kind.LEASE, Kind.MESSAGE], "the message was gone this time"
    place.require_nothing_lost()


def test_a_message_that_sqs_has_kept_as_long_as_it_can_is_sent_again_however_many_there_are(place: Place) -> None:
    old, leased, young = (place.submit() for _ in range(3))
    place.claim(leased)
    for _ in range(5):
        place.queue.send(Stage.QUERY, young.to_json())
    place.age(RETENTION + timedelta(hours=1), old, leased)
    place.age(RETENTION - timedelta(hours=1), young)
    found = place.mend()
    assert kinds(found) == messages(old, leased)
    assert all("SQS keeps no message for more than 14 days" in each.found for each in found)
    assert place.mend() == []
    place.require_nothing_lost()


def test_a_copy_hides_a_missing_message_until_it_is_gone(place: Place) -> None:
    """As docs/operations.md says: the next reconcile finds it."""
    there, lost = place.submit(), place.submit()
    place.lose_messages()
    for _ in range(2):
        place.queue.send(Stage.QUERY, there.to_json())
    place.age()
    assert place.mend() == []
    place.queue.delete(place.take())
    assert kinds(place.mend()) == messages(there, lost)
    place.require_nothing_lost()


def test_a_run_that_is_over_is_not_sent(place: Place) -> None:
    place.end(place.submit())
    place.lose_messages()
    place.age()
    assert place.mend() == []
    assert place.queue.depth(Stage.QUERY) == 0
    place.require_nothing_lost()


def test_of_two_who_reconcile_at_once_one_sends_each_run(place: Place) -> None:
    specs = [place.submit() for _ in range(30)]
    place.lose_messages()
    place.age()
    ledgers = [PgLedger(place.url) for _ in range(4)]

    def mend(ledger: PgLedger) -> list[Finding]:
        only = (Part.MESSAGES,)
        run = place.with_ledger(ledger).run(only=only, apply=True, horizon=HORIZON, progress=lambda _: None)
        return list(run)

    with ThreadPoolExecutor(len(ledgers)) as threads:
        done = [finding for found in threads.map(mend, ledgers) for finding in found]
    for ledger in ledgers:
        ledger.close()
    assert kinds(done) == messages(*specs)
    assert place.drain() == once(*specs)


def test_a_run_that_another_release_stored_is_sent_as_it_was_stored(place: Place) -> None:
    spec = place.submit()
    place.lose_messages()
    body = json.dumps(json.loads(spec.to_json()) | {"of_a_later_release": 1})
    place.sql("UPDATE ledger.runs SET spec = %s", body)
    place.age()
    assert kinds(place.mend()) == messages(spec)
    assert place.take().body == body


def client(place: Place, ledger: PgLedger) -> Client:
    anything = cast(Any, None)  # to submit needs none of it
    return Client(
        ledger=ledger,
        objects=place.objects,
        queue=place.queue,
        logic=anything,
        working_trees=anything,
        clock=SystemClock(),
        new_run_id=uuid4,
        production_ref="main",
    )


def test_a_submit_notes_that_the_run_was_sent_and_submitting_it_again_that_it_was_again(place: Place) -> None:
    spec = client(place, place.ledger).submit(job_spec("query"))
    ((submitted_at, sent_at),) = place.sql("SELECT submitted_at, sent_at FROM ledger.runs")
    assert sent_at > submitted_at
    client(place, place.ledger).submit(spec)
    ((_, again),) = place.sql("SELECT submitted_at, sent_at FROM ledger.runs")
    assert again > sent_at
    place.end(spec)
    client(place, place.ledger).submit(spec)
    assert place.sql("SELECT sent_at FROM ledger.runs") == [(None,)], "a run that is over needs no message"


class AwayForNotes(PgLedger):
    def sent(self, run_ids: Sequence[UUID]) -> None:
        raise InfrastructureError("ledger: Postgres did not answer")


def test_a_submit_whose_note_fails_has_queued_the_run_all_the_same(place: Place) -> None:
    """Said to have failed, it would be made again, under another id."""
    ledger = AwayForNotes(place.url)
    spec = client(place, ledger).submit(job_spec("query"))
    ledger.close()
    assert place.drain() == once(spec)


# ---------------------------------------------------------------- records


def test_a_manifest_that_is_owed_is_recorded(place: Place) -> None:
    manifest = place.end(place.submit(), recorded=False)
    place.lose_messages()
    assert place.look() == [], "whoever decided it just now is about to"
    place.age()
    (said,) = place.look()
    assert (said.kind, said.subject, said.remedy) == (Kind.RECORD, str(manifest.run_id), "record it")
    assert place.objects.get(manifest_key(manifest.run_id)) is None
    assert [each.done for each in place.mend()] == [True]
    kept = place.objects.get(manifest_key(manifest.run_id))
    assert kept == place.sql("SELECT manifest FROM ledger.runs")[0][0].encode()
    assert place.sql("SELECT recorded_at IS NOT NULL FROM ledger.runs") == [(True,)]
    assert place.mend() == []
    place.require_nothing_lost()


def test_a_manifest_that_is_there_already_is_noted(place: Place) -> None:
    manifest = place.end(place.submit(), recorded=False)
    place.objects.put(manifest_key(manifest.run_id), manifest.to_json().encode())
    place.age()
    assert [each.done for each in place.mend(Part.RECORDS)] == [True]
    assert place.mend(Part.RECORDS) == []


def test_another_manifest_in_its_place_is_said_and_the_next_is_recorded(place: Place) -> None:
    taken, owed = (place.end(place.submit(), recorded=False) for _ in range(2))
    place.objects.put(manifest_key(taken.run_id), b"{}")
    place.age()
    found = {each.subject: each for each in place.mend(Part.RECORDS)}
    assert found[str(owed.run_id)].done
    assert not found[str(taken.run_id)].done
    assert "expected this run's manifest, got another that is there already" in (found[str(taken.run_id)].failure or "")
    assert place.objects.get(manifest_key(taken.run_id)) == b"{}"


# ---------------------------------------------------------------- letters


def test_a_letter_that_sqs_gave_up_goes_back_to_its_run_once(place: Place) -> None:
    spec = place.submit()
    place.lose_messages()
    place.give_up(spec.to_json())
    place.age()
    (said,) = place.look()
    assert (said.kind, said.subject, said.remedy, said.done) == (
        Kind.LETTER,
        str(spec.run_id),
        "send it again",
        False,
    )
    assert place.dead() == [(spec.to_json(), None)], "to say it changes nothing, and it is there for others"
    assert [each.done for each in place.mend()] == [True]
    assert (place.letters.depth(Stage.QUERY), place.mend()) == (0, [])
    assert place.drain() == once(spec)


def test_a_letter_of_a_run_that_is_over_is_removed(place: Place) -> None:
    spec = place.submit()
    place.end(spec)
    place.lose_messages()
    place.give_up(spec.to_json())
    (done,) = place.mend()
    assert (done.kind, done.remedy, done.done) == (Kind.LETTER, "remove it", True)
    assert place.letters.depth(Stage.QUERY) == 0
    assert place.queue.depth(Stage.QUERY) == 0
    place.require_nothing_lost()


def test_a_letter_of_a_run_that_the_ledger_does_not_know_is_sent(place: Place) -> None:
    """Somebody put it into the queue, and no worker could ever reach the ledger: the claim makes the run."""
    spec = job_spec("query")
    place.give_up(spec.to_json())
    assert [each.remedy for each in place.mend()] == ["send it again"]
    assert place.letters.depth(Stage.QUERY) == 0
    assert place.drain() == once(spec)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{}", "expected"),
        ("no JSON", "expected JSON"),
        ("[" * 5000, "nested too deeply"),
        ('{"run_id": 7}', "expected"),
        (job_spec("load").to_json(), "expected a spec for stage query, got one for load"),
    ],
    ids=["empty", "text", "deep", "a number for an id", "another stage"],
)
def test_a_letter_that_no_worker_would_take_gets_its_reason_and_waits_for_a_person(
    place: Place, body: str, reason: str
) -> None:
    place.give_up(body)
    (said,) = place.look()
    assert (said.kind, said.remedy) == (Kind.LETTER, "give it this reason")
    assert place.dead() == [(body, None)]
    assert [each.done for each in place.mend()] == [True]
    ((kept, told),) = place.dead()
    assert kept == body
    assert reason in (told or "")
    assert place.letters.depth(Stage.QUERY) == 1
    assert place.mend() == []
    assert place.queue.depth(Stage.QUERY) == 0


def test_a_letter_with_another_spec_under_a_runs_id_is_no_message_of_it(place: Place) -> None:
    spec = place.submit()
    place.give_up(job_spec("query", run_id=str(spec.run_id), labels={"x": "1"}).to_json())
    place.mend()
    ((_, reason),) = place.dead()
    assert reason == f"run {spec.run_id}: expected the spec that it was submitted with, got another"
    assert place.drain() == once(spec)


def test_a_letter_too_large_for_a_reason_is_said_and_left(place: Place) -> None:
    body = "x" * (1024 * 1024)
    place.give_up(body)
    (said,) = place.mend()
    assert (said.remedy, said.done) == (None, False)
    assert place.dead() == [(body, None)]


def test_a_run_that_was_given_up_for_a_reason_waits_for_a_person(place: Place) -> None:
    """Sent again it would be buried again, and there would be a letter more each time."""
    spec, other = place.submit(), place.submit()
    body = json.dumps(json.loads(spec.to_json()) | {"of_a_later_release": 1})
    place.sql("UPDATE ledger.runs SET spec = %s WHERE run_id = %s", body, spec.run_id)
    place.lose_messages()
    place.bury(body, "spec: of_a_later_release: expected no such field, got one")
    place.age()
    found = {each.subject: each for each in place.mend()}
    assert (found[str(spec.run_id)].kind, found[str(spec.run_id)].remedy) == (Kind.LETTER, None)
    assert "of_a_later_release" in found[str(spec.run_id)].found
    assert found[str(other.run_id)].done
    assert place.drain() == once(other)
    assert [reason for _, reason in place.dead()] == ["spec: of_a_later_release: expected no such field, got one"]


def test_a_letter_with_a_reason_whose_run_is_over_is_nobodys_business(place: Place) -> None:
    spec = place.submit()
    place.end(spec, state=State.FAILED, failure=SpecError("x: expected y, got z").failure)
    place.lose_messages()
    place.bury(spec.to_json(), "infrastructure: it was away")
    assert place.mend() == []
    assert place.dead() == [(spec.to_json(), "infrastructure: it was away")]


def test_without_letters_they_are_left_and_their_runs_are_not_sent_twice(place: Place) -> None:
    spec = place.submit()
    place.lose_messages()
    place.give_up(spec.to_json())
    place.age()
    assert place.mend(Part.MESSAGES) == []
    assert place.dead() == [(spec.to_json(), None)]
    assert kinds(place.mend(Part.LETTERS)) == [(Kind.LETTER, str(spec.run_id))]
    place.require_nothing_lost()


# ---------------------------------------------------------------- beside the work


def test_an_idle_worker_mends_its_stage_once_a_minute(place: Place) -> None:
    spec, manifest = place.submit(), place.end(place.submit(), recorded=False)
    letter, elsewhere = place.submit(), place.submit("load")
    place.lose_messages()
    place.lose_messages(Stage.LOAD)
    place.give_up(letter.to_json())
    place.age()
    done = place.reconcile.quick(Stage.QUERY)
    assert Counter(each.kind for each in done if each.done) == {Kind.MESSAGE: 1, Kind.LETTER: 1, Kind.RECORD: 1}
    assert place.objects.exists(manifest_key(manifest.run_id))
    assert place.drain() == once(spec, letter)
    place.age()
    assert place.reconcile.quick(Stage.QUERY) == [], "not again within the minute, whatever there is to do"
    assert kinds(place.reconcile.quick(Stage.LOAD)) == messages(elsewhere)
    place.sql("UPDATE ledger.reconciled SET at = at - interval '61 seconds' WHERE stage = 'query'")
    assert kinds(place.reconcile.quick(Stage.QUERY)) == messages(spec, letter)
    place.require_nothing_lost()


def test_of_many_idle_workers_one_has_the_turn(place: Place) -> None:
    ledgers = [PgLedger(place.url) for _ in range(8)]
    with ThreadPoolExecutor(len(ledgers)) as threads:
        for _ in range(3):
            turns = list(threads.map(lambda each: each.take_turn(Stage.QUERY, pause=timedelta(minutes=1)), ledgers))
            assert turns.count(True) == 1
            place.sql("UPDATE ledger.reconciled SET at = at - interval '2 minutes'")
    for ledger in ledgers:
        ledger.close()


def test_an_idle_worker_deletes_no_file(place: Place) -> None:
    spec = place.submit()
    left = place.put(place.staged(spec, PREFIX))
    place.end(spec)
    place.ledger.ahead = timedelta(days=100)
    place.reconcile.quick(Stage.QUERY)
    assert place.keys(left) == {left}


class Broken(PgLedger):
    def lapsed_leases(self, stage: Stage) -> Any:
        raise RuntimeError("a fault of ours")


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def heard() -> Iterator[list[str]]:
    handler = Heard()
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


def test_what_an_idle_worker_meets_is_logged_and_does_not_end_it(place: Place, heard: list[str]) -> None:
    away = PgLedger("postgresql://nobody@127.0.0.1:1/none")
    assert place.with_ledger(away).quick(Stage.QUERY) == []
    assert "what fell between the services was not looked for: ledger: Postgres at 127.0.0.1:1" in heard[0]
    broken = Broken(place.url)
    assert place.with_ledger(broken).quick(Stage.QUERY) == []
    assert heard[1:] == ["unexpected RuntimeError"]
    broken.close()


def test_an_idle_worker_says_what_it_has_mended(place: Place, heard: list[str]) -> None:
    spec = place.submit()
    place.lose_messages()
    place.age()
    place.reconcile.quick(Stage.QUERY)
    (line,) = heard
    assert line.startswith(f"message {spec.run_id}: last sent at ")
    assert line.endswith("the queue has 0 messages for 1 runs: send it again, done")


def test_each_look_reads_the_runs_that_are_to_end_and_not_all_that_ever_were(place: Place) -> None:
    place.sql(
        "INSERT INTO ledger.runs (run_id, effect, pipeline, task, stage, logic_commit, spec, spec_sha256, "
        "logical_time, max_attempts, state, manifest, decided_at, recorded_at) "
        "SELECT gen_random_uuid(), gen_random_uuid(), 'p', 't', 'query', '', '', '', now(), 3, 'succeeded', '', now(), "
        "now() FROM generate_series(1, 20000)"
    )
    place.submit()
    place.sql("ANALYZE ledger.runs")
    now = datetime.now(UTC)
    given: dict[str, dict[str, Any]] = {
        "lapsed_leases": {"stage": "query"},
        "count_sent": {"stage": "query", "before": now, "quiet": LONG_AGO, "besides": []},
        "to_send": {"stage": "query", "sent_before": now, "expired_before": now, "besides": []},
        "take_to_send": {"run_ids": [uuid4()], "sent_before": now},
        "unrecorded": {"stage": "query", "decided_before": now},
        "standings": {"run_ids": [uuid4()]},
    }
    with psycopg.connect(place.url) as connection:
        for name, values in given.items():
            plan = "\n".join(row[0] for row in connection.execute(cast(Any, "EXPLAIN " + QUERIES[name]), values))
            assert "Seq Scan on runs" not in plan, f"{name}:\n{plan}"
            assert "Index" in plan, f"{name}:\n{plan}"


# ---------------------------------------------------------------- files


def old(place: Place) -> None:
    """More than the horizon has passed since all that is there was made."""
    place.ledger.ahead = HORIZON + timedelta(days=1)


def deleted(found: Sequence[Finding]) -> list[str]:
    return sorted(each.subject for each in found if each.remedy)


def folder_of(place: Place, key: str) -> str:
    return place.objects.uri(key.rpartition("/")[0] + "/")


@pytest.mark.parametrize("dataset", [TABLE, PREFIX, "failed/marts/delays"])
def test_files_that_no_snapshot_names_go_once_their_run_is_long_over(place: Place, dataset: str) -> None:
    spec = place.submit()
    plan_id = uuid4()
    left = [place.put(place.staged(spec, dataset, plan_id=plan_id, name=name)) for name in ("a.parquet", "b.parquet")]
    if dataset == TABLE:
        place.publish(place.staged(place.submit(), TABLE))
    place.end(spec)
    assert place.look(Part.FILES) == [], "the run is just over"
    old(place)
    (said,) = place.look(Part.FILES)
    assert (said.kind, said.subject, said.done) == (Kind.FILES, folder_of(place, left[0]), False)
    assert said.found == f"2 files, 8 bytes, of run {spec.run_id}, that nothing names"
    assert place.keys(*left) == set(left)
    assert [each.done for each in place.mend(Part.FILES)] == [True]
    assert place.keys(*left) == set()
    assert place.mend(Part.FILES) == []


def test_both_the_run_and_the_file_have_to_be_that_old(place: Place) -> None:
    long_over, just_over = place.submit(), place.submit()
    left = [place.put(place.staged(each, PREFIX)) for each in (long_over, just_over)]
    for each in (long_over, just_over):
        place.end(each)
    place.age(timedelta(days=30), long_over)
    assert place.mend(Part.FILES) == [], "the file came a moment ago: a worker that nobody heard of is at it still"
    old(place)
    place.age(timedelta(days=-2), just_over)
    assert deleted(place.mend(Part.FILES)) == [folder_of(place, left[0])]
    assert place.keys(*left) == {left[1]}
    place.ledger.ahead = timedelta(days=19)
    assert deleted(place.mend(Part.FILES, horizon=timedelta(days=20))) == [], "a longer horizon holds as well"


def test_a_horizon_below_that_of_the_queues_is_refused(place: Place) -> None:
    with pytest.raises(SpecError, match="--horizon: expected at least 14 days, got 13"):
        place.look(Part.FILES, horizon=timedelta(days=13))


def test_what_any_snapshot_that_is_kept_names_stays(place: Place) -> None:
    specs = [place.submit() for _ in range(4)]
    replaced, head, beside, foreign = (place.staged(spec, TABLE) for spec in specs)
    place.publish(replaced)
    place.publish(foreign, scheme="s3a")
    place.publish(head)
    place.publish(beside, branch=rerun_branch(specs[2].run_id))
    left = place.put(place.staged(specs[0], TABLE))
    for spec in specs:
        place.end(spec)
    old(place)
    assert deleted(place.mend(Part.FILES)) == [folder_of(place, left)]
    kept = (replaced, head, beside, foreign)
    assert place.keys(*kept, left) == set(kept)
    scanned = place.catalog.load_table(TABLE).scan().to_arrow()
    assert scanned.num_rows == 1


def test_what_any_version_of_a_prefix_names_stays(place: Place) -> None:
    specs = [place.submit() for _ in range(3)]
    keys = [place.put(place.staged(spec, PREFIX)) for spec in specs]
    for spec, key, branch in zip(specs, keys, (None, None, rerun_branch(specs[2].run_id)), strict=True):
        tag = CommitTag(
            run_id=spec.run_id,
            effect=spec.effect,
            plan_id=uuid4(),
            attempt=1,
            logical_time=spec.logical_time,
            submitted_at=spec.logical_time,
            range="all",
        )
        files = (FileRecord(uri=place.objects.uri(key), bytes=4, rows=1),)
        place.prefixes.load(PREFIX).commit(output_record(PREFIX, snapshot=None, branch=branch, files=files), tag)
        place.end(spec)
    left = place.put(place.staged(specs[0], PREFIX))
    nested = place.put(place.staged(specs[0], f"{PREFIX}/by_day"))
    old(place)
    assert deleted(place.mend(Part.FILES)) == sorted([folder_of(place, left), folder_of(place, nested)])
    assert place.keys(*keys, left, nested) == set(keys)


def test_files_of_a_run_that_is_to_end_stay_however_old_they_are(place: Place) -> None:
    queued, running, lapsed = (place.submit() for _ in range(3))
    place.claim(running)
    place.claim(lapsed, lease_s=0)
    keys = [place.put(place.staged(spec, PREFIX)) for spec in (queued, running, lapsed)]
    place.age(timedelta(days=60))
    old(place)
    assert place.mend(Part.FILES) == []
    assert place.keys(*keys) == set(keys)


def test_files_of_runs_that_the_ledger_does_not_know_are_counted_and_left(place: Place) -> None:
    unknown = [job_spec("query") for _ in range(2)]
    keys = [place.put(place.staged(spec, PREFIX, name=name)) for spec in unknown for name in ("a", "b")]
    keys.append(place.put(artifacts_prefix(unknown[0].run_id, uuid4()) + "manifest.json"))
    old(place)
    found = place.mend(Part.FILES)
    assert [(each.subject, each.found, each.remedy) for each in found] == [
        (place.objects.uri(f"{PREFIX}/"), "4 files left alone: of 2 runs that the ledger does not know", None),
        (place.objects.uri("runs/"), "1 file left alone: of 1 run that the ledger does not know", None),
    ]
    assert place.keys(*keys) == set(keys)


def test_files_of_a_table_that_is_not_listed_are_left(place: Place) -> None:
    """The list of tables may not have been put back yet; and nobody can say what the table named."""
    spec = place.submit()
    key = place.put(place.staged(spec, TABLE))
    place.end(spec)
    old(place)
    (said,) = place.mend(Part.FILES)
    assert said.remedy is None
    assert "1 file left alone: the catalog lists no table marts.delays" in said.found
    assert place.keys(key) == {key}


def test_files_of_a_table_that_cannot_be_read_are_left_and_the_next_place_is_looked_at(place: Place) -> None:
    spec = place.submit()
    published = place.publish(place.staged(place.submit(), TABLE))
    left, beside = place.put(place.staged(spec, TABLE)), place.put(place.staged(spec, PREFIX))
    place.end(spec)
    lists = [key for key in place.objects.list("tables/marts/delays/metadata/") if "/snap-" in key]
    place.objects.delete(lists)
    old(place)
    found = place.mend(Part.FILES)
    assert deleted(found) == [folder_of(place, beside)]
    (alone,) = (each for each in found if not each.remedy)
    assert "S3 did not give or take a file of the table" in alone.found
    assert place.keys(published, left, beside) == {published, left}


def test_what_a_manifest_says_has_landed_stays_though_its_snapshot_has_expired(place: Place) -> None:
    """To expire is maintenance's, and so is what goes with it. A list of tables that was set back looks the same."""
    spec, forgotten = place.submit(), place.submit()
    plan_id = uuid4()
    place.publish(place.staged(place.submit(), TABLE))
    landed = place.put(place.staged(spec, TABLE, plan_id=plan_id))
    not_landed = place.put(place.staged(spec, TABLE))
    of_no_known_plan = place.put(place.staged(forgotten, TABLE))
    place.end(spec, output_record(TABLE), plan_id=plan_id)
    place.end(forgotten, output_record(TABLE), state=State.FAILED, failure=SpecError("x: expected y, got z").failure)
    old(place)
    assert deleted(place.mend(Part.FILES)) == [folder_of(place, not_landed)]
    assert place.keys(landed, not_landed, of_no_known_plan) == {landed, of_no_known_plan}


def test_planned_files_of_a_run_that_failed_before_they_landed_go(place: Place) -> None:
    spec, plan_id = place.submit(), uuid4()
    place.publish(place.staged(place.submit(), TABLE))
    key = place.put(place.staged(spec, TABLE, plan_id=plan_id))
    place.end(spec, plan_id=plan_id, state=State.FAILED, failure=SpecError("x: expected y, got z").failure)
    old(place)
    assert deleted(place.mend(Part.FILES)) == [folder_of(place, key)]
    assert place.keys(key) == set()


def test_artifacts_of_plans_that_are_not_the_manifests_go_and_nothing_else_of_a_run(place: Place) -> None:
    spec, plan_id, other = place.submit(), uuid4(), uuid4()
    kept = [
        place.put(artifacts_prefix(spec.run_id, plan_id) + "manifest.json"),
        place.put(log_key(spec.run_id, 1)),
        spec_key(spec.run_id),
        manifest_key(spec.run_id),
    ]
    left = [place.put(artifacts_prefix(spec.run_id, other) + name) for name in ("manifest.json", "target/index.html")]
    place.end(spec, plan_id=plan_id)
    old(place)
    (done,) = place.mend(Part.FILES)
    assert done.subject == place.objects.uri(artifacts_prefix(spec.run_id, other))
    assert place.keys(*left) == set()
    assert place.keys(*kept) == set(kept)


@pytest.mark.parametrize(
    "key",
    [
        "tables/marts/delays/data/part.parquet",
        "tables/marts/delays/data/{run}/{run}/1/{run}/below/part.parquet",
        "tables/marts/delays/data/{run}/{run}/one/{run}/part.parquet",
        "tables/marts/delays/metadata/{run}/{run}/1/{run}/part.parquet",
        "tables/Marts/delays/data/{run}/{run}/1/{run}/part.parquet",
        "tables/marts/data/{run}/{run}/1/{run}/part.parquet",
        "landing/ingested_on=2026-01-02/{run}/1/{run}/part.csv",
        "landing/flights/ingested_on=today/{run}/1/{run}/part.csv",
        "landing/flights/{run}/1/{run}/part.csv",
        "landing/Flights/ingested_on=2026-01-02/{run}/1/{run}/part.csv",
        "landing/_snapshots/ingested_on=2026-01-02/{run}/1/{run}/part.csv",
        "runs/{run}/artifacts/part.json",
        "runs/{run}/artifacts/latest/part.json",
        "packages/artifacts/ingested_on=2026-01-02/{run}/1/{run}/part.csv",
        "logic/artifacts/ingested_on=2026-01-02/{run}/1/{run}/part.csv",
        "{run}/artifacts/{run}/part.json",
        "//{run}/artifacts/{run}/part.json",
    ],
)
def test_what_is_not_where_a_run_puts_its_files_is_nobodys_to_delete(place: Place, key: str) -> None:
    spec = place.submit()
    place.publish(place.staged(place.submit(), TABLE))
    put = place.put(key.format(run=spec.run_id))
    place.end(spec)
    old(place)
    assert deleted(place.mend(Part.FILES)) == []
    assert place.keys(put) == {put}


def test_many_leftovers_go_in_as_many_requests_as_it_takes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_objects, "_LARGEST_DELETE", 2)
    spec, plan_id = place.submit(), uuid4()
    for number in range(5):
        place.put(place.staged(spec, PREFIX, plan_id=plan_id, name=f"{number}.csv"))
    place.end(spec)
    old(place)
    (done,) = place.mend(Part.FILES)
    assert done.found.startswith("5 files, 20 bytes")
    assert place.objects.list(f"{PREFIX}/") == []


def test_what_s3_does_not_let_us_delete_is_said(s3_client: S3Client) -> None:
    with Stubber(s3_client) as answers:
        answers.add_response(
            "delete_objects", {"Errors": [{"Key": "a/b", "Code": "AccessDenied", "Message": "Access Denied"}]}
        )
        with pytest.raises(
            InfrastructureError, match="object s3://lake/a/b: expected S3 to delete it, got AccessDenied"
        ):
            S3Objects(s3_client, "lake").delete(["a/b", "a/c"])


# ---------------------------------------------------------------- stages that are not deployed


def test_a_stage_that_is_not_deployed_is_none_that_something_is_missing_from(place: Place) -> None:
    _undeploy(place, Stage.EXTRACT)

    assert place.look() == []


def test_runs_of_a_stage_without_a_queue_are_said(place: Place) -> None:
    place.submit("extract")
    _undeploy(place, Stage.EXTRACT)

    with pytest.raises(NoQueue, match=r"extract does not exist"):
        place.look()


def _undeploy(place: Place, stage: Stage) -> None:
    for name in (f"{place.prefix}{stage.value}", f"{place.prefix}{stage.value}-dlq"):
        place.sqs.delete_queue(QueueUrl=place.sqs.get_queue_url(QueueName=name)["QueueUrl"])
    place.queue = SqsQueue(place.sqs, place.prefix)
    place.letters = SqsDeadLetters(place.sqs, place.prefix)
    place.reconcile = place.with_ledger(place.ledger)
