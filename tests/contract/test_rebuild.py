"""The ledger rebuilt: on Postgres, of objects in S3, with tables that pyiceberg made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID, uuid4

import psycopg
import pytest

from runner.adapters.aws import Aws
from runner.adapters.pg_ledger import PgLedger
from runner.adapters.s3_objects import S3Objects
from runner.model.errors import ConflictError, InfrastructureError, SpecError
from runner.model.manifest import AttemptRecord, Manifest, Pin, State
from runner.model.names import manifest_key, spec_key
from runner.model.spec import JobSpec, Stage
from runner.ports import Claimed, Decided, Edge
from runner.rebuild import Rebuild, Rebuilt
from tests.support.documents import input_record, job_spec, manifest_of, output_record
from tests.support.twins import MemoryQueue, TestClock

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from types_boto3_s3.client import S3Client

T0 = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
TABLES = ("runs", "attempts", "pins", "outputs", "edges", "leases")


class Place:
    """A ledger, a bucket and queues, and what rebuilds the first of the second."""

    def __init__(self, url: str, objects: S3Objects, catalog: Catalog, bucket: str) -> None:
        self.url = url
        self.objects = objects
        self.catalog = catalog
        self.bucket = bucket
        self.ledger = PgLedger(url)
        self.queue = MemoryQueue(TestClock())

    def rebuild(
        self, *, into_existing: bool = False, chosen: dict[str, str] | None = None, tables: bool = True
    ) -> Rebuilt:
        rebuild = Rebuild(ledger=self.ledger, objects=self.objects, queue=self.queue, tables=tables)
        return rebuild.run(into_existing=into_existing, chosen=chosen or {}, progress=lambda _: None)

    def lose(self) -> None:
        """The database is empty, as a new one is."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS ledger, catalog CASCADE")

    def rows(self, *, but: tuple[str, ...] = ()) -> dict[str, list[str]]:
        """All that the ledger's tables hold, without some columns."""
        found = {}
        with psycopg.connect(self.url) as connection:
            for table in TABLES:
                query = f"SELECT (to_jsonb(t) - %s::text[])::text FROM ledger.{table} t ORDER BY 1"
                found[table] = [row[0] for row in connection.execute(query, (list(but),))]
        return found

    def submit(self, spec: JobSpec) -> JobSpec:
        """As the client does it, but for the queue."""
        self.ledger.submit(spec)
        self.objects.put(spec_key(spec.run_id), spec.to_json().encode())
        return spec

    def claim(self, spec: JobSpec) -> Claimed:
        claimed = self.ledger.claim(spec, worker="host:1")
        assert isinstance(claimed, Claimed)
        return claimed

    def end(self, spec: JobSpec, **given: Any) -> Manifest:
        """As the flow does it: claimed, decided, recorded."""
        claimed = self.claim(spec)
        state = given.get("state", State.SUCCEEDED)
        attempts = tuple(
            each.model_copy(update={"outcome": state.value, "ended_at": T0, "failure": given.get("failure")})
            for each in self.ledger.attempts(spec.run_id)
        )
        manifest = manifest_of(
            output_record("marts.delays", snapshot=str(uuid4().int >> 65), claimed_inputs=("staging.flights",)),
            inputs=(input_record("staging.flights", snapshot="7"),),
            spec=spec,
            **{
                "attempt": claimed.attempt,
                "submitted_at": claimed.submitted_at,
                "decided_at": T0,
                "attempts": attempts,
                **given,
            },
        )
        self.ledger.decide(manifest, attempt=claimed.attempt)
        self.objects.put(manifest_key(spec.run_id), manifest.to_json().encode())
        self.ledger.mark_recorded(spec.run_id)
        return manifest

    # ------------------------------------------------------------ tables

    def table(self, name: str, *, commits: int = 1) -> Any:
        """A table in the place where the runner keeps its tables, with so many snapshots of a row each."""
        import pyarrow as pa

        rows = pa.table({"id": pa.array([1], pa.int32())})
        namespace, _, table = name.partition(".")
        self.catalog.create_namespace_if_not_exists(namespace)
        made = self.catalog.create_table(
            name, schema=rows.schema, location=f"s3://{self.bucket}/tables/{namespace}/{table}"
        )
        for _ in range(commits):
            made.append(rows)
        return made

    def leave_behind(self, table: str, *, after: str, name: str) -> str:
        """The document of a commit on top of the one at `after` that lost its race."""
        raw = self.objects.get(self.key(after))
        assert raw is not None
        document = json.loads(raw)
        document["metadata-log"] = [*document.get("metadata-log", []), {"metadata-file": after, "timestamp-ms": 1}]
        document["snapshots"][-1]["snapshot-id"] += 1
        document["last-updated-ms"] += 1
        folder = after.rpartition("/")[0]
        uri = f"{folder}/{name}-{uuid4()}.metadata.json"
        self.objects.put(self.key(uri), json.dumps(document).encode())
        return uri

    def key(self, uri: str) -> str:
        return uri.removeprefix(self.objects.uri(""))

    def listed(self) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute("SELECT * FROM catalog.iceberg_tables ORDER BY 2, 3").fetchall()

    def list(self, table: str, document: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(
                "UPDATE catalog.iceberg_tables SET metadata_location = %s WHERE table_name = %s",
                (document, table.partition(".")[2]),
            )


@pytest.fixture
def place(ledger_url: str, s3_client: S3Client, bucket: str, aws: Aws) -> Iterator[Place]:
    from runner.adapters.iceberg_tables import sql_catalog

    made = Place(
        ledger_url, S3Objects(s3_client, bucket), sql_catalog(ledger_url, bucket=bucket, aws=aws.properties), bucket
    )
    made.lose()
    made.ledger.migrate()
    yield made
    made.ledger.close()
    made.catalog.close()


FAILED = {"state": State.FAILED, "failure": SpecError("spec: expected x, got y", hint="z").failure}


# ---------------------------------------------------------------- runs


def test_ended_runs_are_put_back_as_their_manifests_have_them(place: Place) -> None:
    pins = (Pin(as_="f", dataset="staging.flights", snapshot="7", metadata="s3://lake/7.metadata.json"),)
    ended = [place.end(place.submit(job_spec("transform")), pins=pins) for _ in range(3)]
    ended.append(place.end(place.submit(job_spec("query")), **FAILED, outputs=()))
    unknown = ("pinned_at", "recorded_at", "started_at", "ended_at", "plan")
    before, edges = place.rows(but=unknown), place.ledger.upstream("marts.delays", ended[0].outputs[0].snapshot or "")
    assert len(before["edges"]) == 3
    place.lose()
    done = place.rebuild()
    assert (done.decided, done.queued, done.known, done.sent, done.complete) == (4, 0, 0, 0, True)
    after = place.rows(but=unknown)
    # Pins are the manifest's: these were never in the ledger that was lost.
    assert len(after.pop("pins")) == 3
    before.pop("pins")
    assert after == before
    assert [place.ledger.manifest(each.run_id) for each in ended] == ended
    assert place.ledger.upstream("marts.delays", ended[0].outputs[0].snapshot or "") == edges
    assert {each.run_id for each in edges} == {ended[0].run_id}


def test_what_is_not_known_any_more_is_left_open_and_nothing_else(place: Place) -> None:
    place.end(place.submit(job_spec("transform")))
    before = json.loads(place.rows()["runs"][0])
    place.lose()
    place.rebuild()
    after = json.loads(place.rows()["runs"][0])
    assert {name for name in before if before[name] != after[name]} <= {"started_at", "recorded_at"}
    assert (after["pinned_at"], after["plan"]) == (None, None)
    assert after["recorded_at"] is not None
    assert abs(datetime.fromisoformat(after["started_at"]) - datetime.fromisoformat(before["started_at"])) < timedelta(
        seconds=1
    )


def test_a_run_without_a_manifest_is_queued_again_and_sent(place: Place) -> None:
    spec = place.submit(job_spec("query"))
    place.claim(spec)
    stored_at = place.objects.stored_at(spec_key(spec.run_id))
    place.lose()
    done = place.rebuild()
    assert (done.decided, done.queued, done.sent) == (0, 1, 1)
    row = place.ledger.run(spec.run_id)
    assert row is not None
    assert (row.state, row.attempt, row.submitted_at) == (State.QUEUED, 0, stored_at)
    assert place.ledger.spec(spec.run_id) == spec
    delivery = place.queue.receive(Stage.QUERY, wait_s=0)
    assert delivery is not None
    assert delivery.body == spec.to_json()
    assert place.claim(spec).attempt == 1


def test_a_second_rebuild_changes_nothing(place: Place) -> None:
    for number in range(5):
        place.end(place.submit(job_spec("transform")), **(FAILED if number % 2 else {}))
    queued = place.submit(job_spec("query"))
    place.table("marts.routes")
    place.ledger.close()
    place.lose()
    place.rebuild()
    before, listed = place.rows(), place.listed()
    done = place.rebuild(into_existing=True)
    assert (done.decided, done.queued, done.known, done.tables) == (0, 0, 6, [])
    assert (place.rows(), place.listed()) == (before, listed)
    # Sent once more, since a rebuild that was cut short may not have come to it: twice is safe.
    assert done.sent == 1
    assert place.ledger.spec(queued.run_id) == queued


def test_a_ledger_that_has_runs_is_left_alone_unless_told(place: Place) -> None:
    lost = place.end(place.submit(job_spec("query")))
    place.lose()
    place.ledger.migrate()
    place.ledger.submit(job_spec("query"))
    before = place.rows()
    with pytest.raises(ConflictError, match="expected an empty one to rebuild, got one that has runs") as error:
        place.rebuild()
    assert "--into-existing" in (error.value.hint or "")
    assert place.rows() == before
    assert place.rebuild(into_existing=True).decided == 1
    assert place.ledger.manifest(lost.run_id) == lost


def test_nothing_is_rebuilt_while_a_worker_is_at_work(place: Place) -> None:
    spec = place.submit(job_spec("query"))
    place.claim(spec)
    before = place.rows()
    with pytest.raises(ConflictError, match=f"expected every worker to be stopped, got run {spec.run_id} at work"):
        place.rebuild(into_existing=True)
    assert place.rows() == before


def test_a_run_that_ended_after_the_backup_is_ended_in_the_ledger_too(place: Place) -> None:
    """The ledger came back from a backup: it has the run at work under a plan, S3 has how it ended."""
    spec = place.submit(job_spec("transform"))
    soon_over = PgLedger(place.url, lease_s=0)
    claimed = soon_over.claim(spec, worker="host:1")
    assert isinstance(claimed, Claimed)
    soon_over.lease(spec.run_id, claimed.attempt, shared=(), exclusive=("marts.delays",))
    soon_over.pin(spec.run_id, claimed.attempt, (Pin(as_="x", dataset="a.x", snapshot="1", metadata="s3://lake/1"),))
    soon_over.close()
    pins = (Pin(as_="y", dataset="a.y", snapshot="2", metadata="s3://lake/2"),)
    outcomes: tuple[tuple[int, Literal["lost", "succeeded"]], ...] = ((1, "lost"), (2, "succeeded"))
    attempts = tuple(
        AttemptRecord(attempt=number, worker="host:2", started_at=T0, ended_at=T0, outcome=outcome)
        for number, outcome in outcomes
    )
    manifest = manifest_of(
        output_record("marts.delays", snapshot="5", claimed_inputs=()),
        spec=spec,
        pins=pins,
        attempts=attempts,
        attempt=2,
        submitted_at=claimed.submitted_at,
    )
    place.objects.put(manifest_key(spec.run_id), manifest.to_json().encode())
    done = place.rebuild(into_existing=True)
    assert (done.decided, done.sent) == (1, 0)
    assert place.ledger.manifest(spec.run_id) == manifest
    assert place.ledger.attempts(spec.run_id) == attempts
    rows = place.rows()
    assert [json.loads(row)["dataset"] for row in rows["pins"]] == ["a.y"]
    assert rows["leases"] == []
    assert place.ledger.newest("marts.delays") == "5"
    assert isinstance(place.ledger.claim(spec, worker="host:3"), Decided)


def test_a_run_that_is_decided_and_not_recorded_keeps_its_decision(place: Place) -> None:
    spec = place.submit(job_spec("query"))
    manifest = manifest_of(spec=spec, attempt=place.claim(spec).attempt)
    place.ledger.decide(manifest, attempt=1)
    before = place.rows()
    done = place.rebuild(into_existing=True)
    assert (done.known, done.sent) == (1, 0)
    assert place.rows() == before


def test_a_spec_that_another_release_wrote_keeps_its_bytes(place: Place) -> None:
    spec = job_spec("query")
    older = json.loads(spec.to_json())
    del older["max_attempts"], older["labels"]  # as if they had come with this release
    text = json.dumps(older, sort_keys=True, separators=(",", ":"))
    document = json.loads(manifest_of(spec=spec).to_json())
    document |= {"spec": older, "spec_sha256": sha256(text.encode()).hexdigest()}
    body = json.dumps(document, sort_keys=True, separators=(",", ":"))
    place.objects.put(manifest_key(spec.run_id), body.encode())
    assert place.rebuild().decided == 1
    row = json.loads(place.rows()["runs"][0])
    assert (row["spec"], row["spec_sha256"], row["manifest"]) == (text, document["spec_sha256"], body)


def test_what_cannot_be_read_is_listed_and_the_rest_is_put_back(place: Place) -> None:
    good = place.end(place.submit(job_spec("query")))
    cut, other, newer = (place.submit(job_spec("query")) for _ in range(3))
    place.objects.put(manifest_key(cut.run_id), good.to_json().encode()[:-20])
    place.objects.put(manifest_key(other.run_id), good.to_json().encode())
    document = json.loads(manifest_of(spec=newer).to_json()) | {"of_a_later_release": 1}
    place.objects.put(manifest_key(newer.run_id), json.dumps(document).encode())
    not_a_spec = uuid4()
    place.objects.put(spec_key(not_a_spec), b"{}")
    place.objects.put(spec_key(of_another := uuid4()), good.spec.to_json().encode())
    place.objects.put("runs/latest/manifest.json", good.to_json().encode())
    place.objects.put(f"runs/{str(uuid4()).upper()}/manifest.json", good.to_json().encode())
    place.objects.put(f"runs/{uuid4()}/log.1.jsonl", b"{}")
    place.lose()
    done = place.rebuild()
    assert (done.decided, done.queued, done.sent, done.complete) == (1, 0, 0, False)
    told = "\n".join(done.unreadable)
    for run_id in (cut.run_id, other.run_id, newer.run_id):
        assert place.objects.uri(manifest_key(run_id)) in told
        assert place.ledger.run(run_id) is None, "a run that has ended must not be queued again"
    for run_id in (not_a_spec, of_another):
        assert place.objects.uri(spec_key(run_id)) in told
    assert "expected a run's id, got 'latest'" in told
    assert len(done.unreadable) == 7


def test_a_manifest_of_another_spec_than_the_ledgers_is_listed(place: Place) -> None:
    spec = place.submit(job_spec("query"))
    changed = spec.model_copy(update={"labels": {"a": "b"}})
    place.objects.put(manifest_key(spec.run_id), manifest_of(spec=changed).to_json().encode())
    done = place.rebuild(into_existing=True)
    assert done.decided == 0
    assert "expected the spec that the ledger has" in done.unreadable[0]
    row = place.ledger.run(spec.run_id)
    assert row is not None
    assert row.state is State.QUEUED


def test_a_rebuild_that_was_cut_short_is_finished_by_the_next(place: Place) -> None:
    ended = [place.end(place.submit(job_spec("query"))) for _ in range(3)]
    queued = [place.submit(job_spec("query")) for _ in range(3)]
    place.lose()

    class Away(MemoryQueue):
        def send(self, stage: Stage, body: str) -> None:
            if self.depth(stage):
                raise InfrastructureError("queue: expected an answer, got none")
            super().send(stage, body)

    place.queue = Away(TestClock())
    with pytest.raises(InfrastructureError):
        place.rebuild()
    place.queue = MemoryQueue(TestClock())
    done = place.rebuild(into_existing=True)
    assert done.sent == 3
    assert place.queue.depth(Stage.QUERY) == 3
    assert all(place.ledger.run(each.run_id) for each in queued)
    assert [place.ledger.manifest(each.run_id) for each in ended] == ended


def test_more_runs_than_one_page_and_one_batch_hold_are_all_put_back(place: Place) -> None:
    """S3 lists a thousand at a time."""
    manifests = [manifest_of(spec=job_spec("query")) for _ in range(1_030)]
    for each in manifests:
        place.objects.put(manifest_key(each.run_id), each.to_json().encode())
    done = place.rebuild()
    assert (done.decided, done.complete) == (1_030, True)
    assert {row.run_id for row in place.ledger.runs(limit=2_000)} == {each.run_id for each in manifests}


# ---------------------------------------------------------------- tables


def read(place: Place, table: str) -> int:
    return int(place.catalog.load_table(table).scan().to_arrow().num_rows)


def test_tables_are_listed_again_by_their_newest_documents(place: Place) -> None:
    for name, commits in (("marts.delays", 12), ("marts.routes", 1), ("staging.empty", 0)):
        place.table(name, commits=commits)
    place.objects.put("tables/marts/never/data/x/part.parquet", b"of a commit that never came")
    before = [row[:4] for row in place.listed()]
    place.lose()
    done = place.rebuild()
    assert [row[:4] for row in place.listed()] == before
    assert [(each.dataset, each.came_from) for each in done.tables] == [
        ("marts.delays", None),
        ("marts.routes", None),
        ("staging.empty", None),
    ]
    assert [read(place, each.dataset) for each in done.tables] == [12, 1, 0]
    # No run made them: that is told.
    assert [each.witnessed for each in done.tables] == [False, False, True]
    place.catalog.load_table("marts.delays").append(place.catalog.load_table("marts.routes").scan().to_arrow())
    assert read(place, "marts.delays") == 13


def test_the_document_of_a_lost_race_does_not_become_the_table(place: Place) -> None:
    table = place.table("marts.delays", commits=3)
    before = table.metadata.metadata_log[-1].metadata_file
    place.leave_behind("marts.delays", after=before, name="00003")
    snapshot = str(table.metadata.current_snapshot_id)
    spec = place.submit(job_spec("transform"))
    place.objects.put(
        manifest_key(spec.run_id),
        manifest_of(output_record("marts.delays", snapshot=snapshot), spec=spec).to_json().encode(),
    )
    place.lose()
    done = place.rebuild()
    assert [(each.dataset, each.document, each.witnessed) for each in done.tables] == [
        ("marts.delays", table.metadata_location, True)
    ]
    assert read(place, "marts.delays") == 3


def test_a_table_that_cannot_be_decided_is_left_out_and_nothing_is_queued_until_it_is(place: Place) -> None:
    """A run that did not find its table would begin another one in the same place."""
    table = place.table("marts.delays", commits=2)
    rival = place.leave_behind("marts.delays", after=table.metadata.metadata_log[-1].metadata_file, name="00002")
    spec = place.submit(job_spec("query"))
    place.lose()
    done = place.rebuild()
    assert [(each.dataset, set(each.candidates)) for each in done.undecided] == [
        ("marts.delays", {table.metadata_location, rival})
    ]
    assert (done.tables, done.queued, done.sent, done.complete) == ([], 1, 0, False)
    assert (place.queue.depth(Stage.QUERY), place.listed()) == (0, [])
    done = place.rebuild(into_existing=True, chosen={"marts.delays": table.metadata_location})
    assert [(each.dataset, each.document) for each in done.tables] == [("marts.delays", table.metadata_location)]
    assert (done.sent, done.complete) == (1, True)
    assert place.queue.depth(Stage.QUERY) == 1
    assert place.ledger.spec(spec.run_id) == spec
    assert read(place, "marts.delays") == 2
    # What was chosen stays chosen, though the documents say no more than before.
    again = place.rebuild(into_existing=True, chosen={"marts.delays": table.metadata_location})
    assert (again.tables, again.complete) == ([], True)


def test_a_catalog_that_came_from_a_backup_is_moved_on(place: Place) -> None:
    table = place.table("marts.delays", commits=4)
    backup = table.metadata.metadata_log[1].metadata_file
    place.list("marts.delays", backup)
    done = place.rebuild(into_existing=True)
    assert [(each.document, each.came_from) for each in done.tables] == [(table.metadata_location, backup)]
    ((*_, document, previous, kind),) = place.listed()
    assert (document, previous, kind) == (table.metadata_location, backup, "TABLE")
    assert read(place, "marts.delays") == 4


def test_what_the_catalog_lists_still_needs_no_other_witness(place: Place) -> None:
    table = place.table("marts.delays", commits=2)
    place.leave_behind("marts.delays", after=table.metadata.metadata_log[-1].metadata_file, name="00002")
    before = place.listed()
    done = place.rebuild(into_existing=True)
    assert (done.tables, done.undecided, place.listed()) == ([], [], before)


def test_a_table_that_went_on_from_a_backup_is_not_moved(place: Place) -> None:
    """Two lines of documents: which one people read from is not for us to say."""
    table = place.table("marts.delays", commits=4)
    ours = place.leave_behind("marts.delays", after=table.metadata.metadata_log[1].metadata_file, name="00002")
    place.list("marts.delays", ours)
    before = place.listed()
    done = place.rebuild(into_existing=True)
    assert [set(each.candidates) for each in done.undecided] == [{ours, table.metadata_location}]
    assert place.listed() == before


def test_a_damaged_document_leaves_its_table_undecided(place: Place) -> None:
    table = place.table("marts.delays", commits=1)
    place.objects.put(place.key(table.metadata_location), b"{")
    place.lose()
    done = place.rebuild()
    assert [each.dataset for each in done.undecided] == ["marts.delays"]
    assert table.metadata_location in done.undecided[0].reason


def test_folders_that_are_no_tables_are_listed(place: Place) -> None:
    place.objects.put("tables/Marts/delays/metadata/00000-a.metadata.json", b"{}")
    done = place.rebuild()
    assert done.unreadable == [
        f"{place.objects.uri('tables/Marts/delays/')}: expected a table's name, got 'Marts.delays'"
    ]


def test_where_a_catalog_of_its_own_lists_the_tables_they_are_left_to_it(place: Place) -> None:
    place.table("marts.delays")
    place.lose()
    done = place.rebuild(tables=False)
    assert (done.tables, done.undecided, place.listed()) == ([], [], [])


@pytest.mark.parametrize(
    ("table", "document"),
    [
        ("marts.delays", "s3://elsewhere/tables/marts/delays/metadata/00000-a.metadata.json"),
        ("marts.delays", "{bucket}tables/marts/routes/metadata/00000-a.metadata.json"),
        ("marts.delays", "{bucket}tables/marts/delays/metadata/snap-1.avro"),
        ("marts.delays", "{bucket}tables/marts/delays/metadata/00000-a.metadata.json"),
        ("../delays", "{bucket}tables/../delays/metadata/00000-a.metadata.json"),
        ("landing/x", "{bucket}landing/x/metadata/00000-a.metadata.json"),
    ],
)
def test_a_document_that_is_none_of_the_tables_cannot_be_chosen(place: Place, table: str, document: str) -> None:
    place.end(place.submit(job_spec("query")))
    place.lose()
    with pytest.raises(SpecError, match=f"^--table {table}: expected "):
        place.rebuild(chosen={table: document.format(bucket=place.objects.uri(""))})
    with psycopg.connect(place.url) as connection:
        (there,) = connection.execute("SELECT to_regclass('ledger.runs') IS NOT NULL").fetchone() or (True,)
    assert there is False, "it was refused before anything was done"


def test_lineage_is_answered_as_before(place: Place) -> None:
    first = place.end(place.submit(job_spec("transform")))
    snapshot = first.outputs[0].snapshot or ""

    def answers() -> tuple[list[Edge], list[Edge], str | None]:
        ledger = place.ledger
        return (
            ledger.upstream("marts.delays", snapshot),
            ledger.downstream("staging.flights", "7"),
            ledger.newest("marts.delays"),
        )

    before = answers()
    assert all(before)
    place.lose()
    place.rebuild()
    assert answers() == before


def test_ids_of_runs_are_uuids_in_the_one_spelling_that_the_product_writes(place: Place) -> None:
    odd = uuid4()
    place.objects.put(f"runs/{odd.hex}/manifest.json", b"{}")
    assert UUID(odd.hex) == odd
    assert place.rebuild().unreadable == [
        f"{place.objects.uri(f'runs/{odd.hex}/')}: expected a run's id, got {odd.hex!r}"
    ]


# ---------------------------------------------------------------- what it asks of S3


def test_folders_are_told_by_name_without_what_is_in_them(place: Place) -> None:
    for key in ("runs/a/1", "runs/a/2", "runs/b/c/3", "runs/file", "runsx/d/4"):
        place.objects.put(key, b"x")
    assert list(place.objects.folders("runs/")) == ["a", "b"]
    assert list(place.objects.folders("none/")) == []


def test_an_object_says_when_it_was_stored_and_one_that_is_not_there_says_nothing(place: Place) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    place.objects.put("runs/a", b"x")
    stored_at = place.objects.stored_at("runs/a")
    assert stored_at is not None
    assert before < stored_at < datetime.now(UTC) + timedelta(seconds=2)
    assert place.objects.stored_at("runs/b") is None
    gone = S3Objects(place.objects._client, f"gone-{uuid4().hex}")
    with pytest.raises(InfrastructureError, match="does not exist"):
        gone.stored_at("runs/a")
    with pytest.raises(InfrastructureError, match="does not exist"):
        list(gone.folders("runs/"))
