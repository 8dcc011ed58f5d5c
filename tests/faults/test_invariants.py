"""The checker finds each of I1 to I9: a place is broken by hand, and it has to say so, and of which run."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier
from pyiceberg.catalog.sql import SqlCatalog

from runner.embedded.services import Endpoints
from runner.model.manifest import Manifest
from tests.faults import invariants
from tests.faults.invariants import INVARIANTS, WAITING, Expected, Place, Violation, check, look, watch
from tests.support.site import Site

CONTRACT = """
apiVersion: v3.1.0
kind: DataContract
id: people
version: 1.0.0
status: active
schema:
  - name: people
    logicalType: object
    properties:
      - {name: id, logicalType: integer, physicalType: INTEGER, required: true}
"""
LOGIC = {
    "people.odcs.yaml": CONTRACT,
    "three.sql": "SELECT range AS id FROM range(3)",
    "broken.sql": "SELECT no_such_column",
}


@dataclass
class Made:
    """A place with nothing wrong, and what is known of it from outside."""

    place: Place
    expected: dict[str, Expected]
    first: str
    """A run that appended 3 rows to marts.visits."""
    second: str
    """Another that did."""
    loaded: str
    """One that published a table and the rows that broke its contract."""
    failed: str
    server: str


@pytest.fixture(scope="module")
def made(site: Site, services: Endpoints) -> Made:
    commit = site.commit(LOGIC)

    def query(file: str) -> Manifest:
        work = {"kind": "query", "file": file}
        return site.end(site.spec(commit, "query", work, outputs=[{"dataset": "marts.visits", "mode": "append"}]))

    url = site.serve("people.csv", "id\n1\n2\nx\n")
    sources = [{"name": "people", "url": url}]
    outputs = [{"dataset": "landing/people", "from": "people"}]
    extracted = site.end(site.spec(commit, "extract", {"kind": "extract", "sources": sources}, outputs=outputs))
    work = {"kind": "load", "contract": "people.odcs.yaml", "format": {"type": "csv"}, "max_bad_fraction": 0.5}
    loaded = site.end(
        site.spec(commit, "load", work, inputs=[{"dataset": "landing/people"}], outputs=[{"dataset": "staging.people"}])
    )
    first, second, failed = (query(file) for file in ("three.sql", "three.sql", "broken.sql"))
    site.app.close()  # databases are copied here, and one that is open cannot be
    return Made(
        place=place_of(site),
        expected={
            str(extracted.run_id): Expected(rows={"landing/people": 1}),
            str(loaded.run_id): Expected(rows={"staging.people": 2, "failed/staging/people": 1}),
            str(first.run_id): Expected(rows={"marts.visits": 3}),
            str(second.run_id): Expected(rows={"marts.visits": 3}),
            str(failed.run_id): Expected(states=frozenset({"failed"})),
        },
        first=str(first.run_id),
        second=str(second.run_id),
        loaded=str(loaded.run_id),
        failed=str(failed.run_id),
        server=services.ledger_url.get_secret_value(),
    )


def place_of(site: Site) -> Place:
    env = site.env
    return Place(
        ledger_url=env["RUNNER_LEDGER_URL"],
        endpoint_url=env["AWS_ENDPOINT_URL"],
        access_key=env["AWS_ACCESS_KEY_ID"],
        secret_key=env["AWS_SECRET_ACCESS_KEY"],
        region=env["AWS_REGION"],
        bucket=env["RUNNER_BUCKET"],
        queue_prefix=env["RUNNER_QUEUE_PREFIX"],
    )


class Broken:
    """The place; what is done to its bucket and queues is undone at the end, and to its ledger, on a copy."""

    def __init__(self, made: Made, undo: ExitStack) -> None:
        self.made = made
        self.place = made.place
        self._undo = undo
        self._s3 = made.place.s3()
        self._sqs = made.place.sqs()

    def copy_ledger(self) -> None:
        """From now on a copy is looked at; nothing where one is already."""
        if self.place is not self.made.place:
            return
        copy = f"copy_{uuid4().hex}"
        name = str(conninfo_to_dict(self.place.ledger_url)["dbname"])
        server = self._undo.enter_context(psycopg.connect(self.made.server, autocommit=True))
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        server.execute(SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(copy), Identifier(name)))
        self._undo.callback(server.execute, SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(copy)))
        self.place = replace(self.place, ledger_url=self.place.ledger_url.replace(name, copy))

    def sql(self, text: str, **given: Any) -> None:
        self.copy_ledger()
        with psycopg.connect(self.place.ledger_url) as connection:
            assert connection.execute(text, given).rowcount != 0

    def get(self, key: str) -> bytes:
        return self._s3.get_object(Bucket=self.place.bucket, Key=key)["Body"].read()

    def put(self, key: str, body: bytes) -> None:
        """A new version; at the end it goes."""
        version = self._s3.put_object(Bucket=self.place.bucket, Key=key, Body=body)["VersionId"]
        self._undo.callback(self._s3.delete_object, Bucket=self.place.bucket, Key=key, VersionId=version)

    def delete(self, key: str) -> None:
        """As somebody does who lists nothing but the newest: the versions stay."""
        version = self._s3.delete_object(Bucket=self.place.bucket, Key=key)["VersionId"]
        self._undo.callback(self._s3.delete_object, Bucket=self.place.bucket, Key=key, VersionId=version)

    def wipe(self, key: str) -> None:
        """As if it had never been."""
        body = self.get(key)
        for version in look(self.place).versions[key]:
            self._s3.delete_object(Bucket=self.place.bucket, Key=key, VersionId=version.version_id)
        self._undo.callback(self._s3.put_object, Bucket=self.place.bucket, Key=key, Body=body)

    def send(self, queue: str, body: str, *, hidden: bool = False) -> None:
        url = self._sqs.get_queue_url(QueueName=f"{self.place.queue_prefix}{queue}")["QueueUrl"]
        self._sqs.send_message(QueueUrl=url, MessageBody=body)
        self._undo.callback(self._sqs.purge_queue, QueueUrl=url)
        if hidden:
            self._sqs.receive_message(QueueUrl=url, VisibilityTimeout=60)

    def catalog(self) -> SqlCatalog:
        self.copy_ledger()
        place = self.place
        catalog = SqlCatalog(
            "lake",
            **{
                "uri": place.ledger_url.replace("postgresql://", "postgresql+psycopg://")
                + "?options=-csearch_path%3Dcatalog",
                "init_catalog_tables": "false",
                "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO",
                "s3.endpoint": place.endpoint_url,
                "s3.region": place.region,
                "s3.access-key-id": place.access_key,
                "s3.secret-access-key": place.secret_key,
            },
        )
        self._undo.callback(catalog.engine.dispose)
        return catalog

    def append(self, table: str, files: list[str], summary: dict[str, str]) -> None:
        """Another snapshot of a table, with what its summary is to say."""
        catalog = self.catalog()
        uris = [f"s3://{self.place.bucket}/{key}" for key in files]
        catalog.load_table(table).add_files(uris, snapshot_properties=summary, check_duplicate_files=False)

    def summary(self, run_id: str, table: str = "marts.visits") -> dict[str, str]:
        metadata = self.catalog().load_table(table).metadata
        summaries = [each.summary.additional_properties for each in metadata.snapshots if each.summary]
        return next(
            {name: text for name, text in each.items() if name.startswith("stage-runner.")}
            for each in summaries
            if each.get("stage-runner.run-id") == run_id
        )

    def files(self, run_id: str, table: str = "marts.visits") -> list[str]:
        return [
            key for landing in look(self.place).landings[table] if landing.run_id == run_id for key in landing.files
        ]

    def found(self, **given: Any) -> list[Violation]:
        return check(self.place, self.made.expected, **given)


@pytest.fixture
def broken(made: Made) -> Iterator[Broken]:
    with ExitStack() as undo:
        yield Broken(made, undo)


# ---------------------------------------------------------------- the breaks


def the_manifest_of_a_succeeded_run_is_gone(at: Broken) -> str:
    at.wipe(f"runs/{at.made.first}/manifest.json")
    return at.made.first


def a_second_snapshot_of_a_run(at: Broken) -> str:
    """As a zombie makes it that does not look first: its own attempt's files, committed after its heir's."""
    run_id, plan_id = at.made.first, str(uuid4())
    (key,) = at.files(run_id)
    folder, _, file = key.rpartition("/")
    again = f"{folder.rsplit('/', 2)[0]}/2/{plan_id}/{file}"
    at.put(again, at.get(key))
    at.append(
        "marts.visits", [again], {**at.summary(run_id), "stage-runner.attempt": "2", "stage-runner.plan-id": plan_id}
    )
    return run_id


def a_snapshot_with_another_plans_files(at: Broken) -> str:
    """As whoever adopts any plan's snapshot makes it."""
    run_id = at.made.first
    plan_id = at.summary(run_id)["stage-runner.plan-id"]
    key = at.catalog().load_table("marts.visits").metadata_location.removeprefix(f"s3://{at.place.bucket}/")
    document = json.loads(at.get(key))
    for snapshot in document["snapshots"]:
        if snapshot["summary"]["stage-runner.plan-id"] == plan_id:
            snapshot["summary"]["stage-runner.plan-id"] = str(uuid4())
    at.put(key, json.dumps(document).encode())
    return run_id


def outputs_of_two_plans(at: Broken) -> str:
    """One output of the run is one attempt's, the other one another's."""
    run_id = at.made.loaded
    key = "failed/staging/people/_snapshots/00000001.json"
    at.put(
        key,
        at.get(key).replace(
            at.summary(run_id, "staging.people")["stage-runner.plan-id"].encode(), str(uuid4()).encode()
        ),
    )
    return run_id


def other_bytes_in_the_ledger(at: Broken) -> str:
    at.sql("UPDATE ledger.runs SET manifest = manifest || ' ' WHERE run_id = %(run)s", run=at.made.first)
    return at.made.first


def an_output_that_the_ledger_does_not_list(at: Broken) -> str:
    at.sql("DELETE FROM ledger.outputs WHERE run_id = %(run)s", run=at.made.first)
    return at.made.first


def a_snapshot_that_no_manifest_lists(at: Broken) -> str:
    """A plan that lands after its run was decided failed."""
    run_id = at.made.failed
    (key,) = at.files(at.made.first)
    tag = {**at.summary(at.made.first), "stage-runner.run-id": run_id, "stage-runner.effect": run_id}
    own = f"tables/marts/visits/data/{run_id}/{run_id}/1/{tag['stage-runner.plan-id']}/late.parquet"
    at.put(own, at.get(key))
    tag["stage-runner.range"] = f"effect {run_id}"
    at.append("marts.visits", [own], tag)
    return run_id


def a_published_file_with_other_bytes(at: Broken) -> str:
    (key,) = at.files(at.made.first)
    at.put(key, at.get(key)[:-1])
    return at.made.first


def a_succeeded_run_that_the_ledger_takes_up_again(at: Broken) -> str:
    at.sql(
        "UPDATE ledger.runs SET state = 'queued', manifest = NULL, decided_at = NULL WHERE run_id = %(run)s",
        run=at.made.first,
    )
    return at.made.first


def a_failed_run_without_a_manifest(at: Broken) -> str:
    at.wipe(f"runs/{at.made.failed}/manifest.json")
    return at.made.failed


def a_run_that_was_submitted_and_is_nowhere(at: Broken) -> str:
    run_id = str(uuid4())
    at.made.expected[run_id] = Expected()
    at._undo.callback(at.made.expected.pop, run_id)
    return run_id


def a_run_that_failed_for_no_reason(at: Broken) -> str:
    run_id = at.made.failed
    at._undo.callback(at.made.expected.update, {run_id: at.made.expected[run_id]})
    at.made.expected[run_id] = Expected()
    return run_id


def an_attempt_is_missing(at: Broken) -> str:
    at.sql("UPDATE ledger.attempts SET attempt = 2 WHERE run_id = %(run)s", run=at.made.first)
    at.sql("UPDATE ledger.runs SET attempt = 2 WHERE run_id = %(run)s", run=at.made.first)
    return at.made.first


def two_attempts_ended_the_run(at: Broken) -> str:
    at.sql(
        "INSERT INTO ledger.attempts (run_id, attempt, worker, outcome) VALUES (%(run)s, 2, 'host:2', 'succeeded')",
        run=at.made.first,
    )
    at.sql("UPDATE ledger.runs SET attempt = 2 WHERE run_id = %(run)s", run=at.made.first)
    return at.made.first


def an_attempt_of_an_ended_run_is_under_way(at: Broken) -> str:
    at.sql("UPDATE ledger.attempts SET outcome = 'running' WHERE run_id = %(run)s", run=at.made.first)
    return at.made.first


def a_file_that_is_listed_twice(at: Broken) -> str:
    """One snapshot a run, and its rows doubled all the same."""
    at.append("marts.visits", at.files(at.made.first), {**at.summary(at.made.second), "stage-runner.fence": "yes"})
    return at.made.first


def an_append_that_was_overwritten(at: Broken) -> str:
    """A commit on top of a table as it was before: the snapshot between is lost."""
    at.sql(
        "UPDATE catalog.iceberg_tables SET metadata_location = previous_metadata_location WHERE table_name = 'visits'"
    )
    return at.made.second


def a_snapshot_that_took_away_more_than_its_own(at: Broken) -> str:
    """The rows of the first append go with the second."""
    catalog, at_once = at.catalog(), at.files(at.made.first)
    table = catalog.load_table("marts.visits")
    table.delete(snapshot_properties={**at.summary(at.made.second), "stage-runner.fence": "yes"})
    assert at_once
    return at.made.first


def more_rows_than_expected(at: Broken) -> str:
    run_id = at.made.first
    at._undo.callback(at.made.expected.update, {run_id: at.made.expected[run_id]})
    at.made.expected[run_id] = Expected(rows={"marts.visits": 2})
    return run_id


def a_second_version_of_a_manifest(at: Broken) -> str:
    key = f"runs/{at.made.first}/manifest.json"
    at.put(key, at.get(key))
    return at.made.first


def a_manifest_that_was_deleted(at: Broken) -> str:
    at.delete(f"runs/{at.made.failed}/manifest.json")
    return at.made.failed


def a_message_of_an_ended_run(at: Broken) -> str:
    at.send("query", json.dumps({"run_id": at.made.first}))
    return at.made.first


def a_hidden_message(at: Broken) -> None:
    at.send("query", "whatever", hidden=True)


def an_object_outside_of_all_prefixes(at: Broken) -> None:
    at.put("elsewhere/data.parquet", b"")


def a_file_of_a_dataset_that_its_run_did_not_declare(at: Broken) -> str:
    run_id = at.made.first
    at.put(f"tables/marts/other/data/{run_id}/{run_id}/1/{uuid4()}/0.parquet", b"")
    return run_id


def an_object_of_a_run_that_nobody_knows(at: Broken) -> str:
    run_id = str(uuid4())
    at.put(f"runs/{run_id}/spec.json", b"{}")
    return run_id


def a_file_that_was_overwritten(at: Broken) -> str:
    (key,) = at.files(at.made.first)
    at.put(key, b"other rows")
    return at.made.first


def a_file_that_was_deleted(at: Broken) -> str:
    (key,) = at.files(at.made.first)
    at.delete(key)
    return at.made.first


def metadata_that_a_snapshot_needs_was_deleted(at: Broken) -> None:
    """As of a commit that was taken for lost, and had landed."""
    metadata = at.catalog().load_table("marts.visits").metadata
    (first, *_) = metadata.snapshots
    at.delete(first.manifest_list.removeprefix(f"s3://{at.place.bucket}/"))


BREAKS: list[tuple[str, Callable[[Broken], str | None]]] = [
    ("I1", the_manifest_of_a_succeeded_run_is_gone),
    ("I2", a_second_snapshot_of_a_run),
    ("I2", a_snapshot_with_another_plans_files),
    ("I2", outputs_of_two_plans),
    ("I3", other_bytes_in_the_ledger),
    ("I3", an_output_that_the_ledger_does_not_list),
    ("I3", a_snapshot_that_no_manifest_lists),
    ("I3", a_published_file_with_other_bytes),
    ("I3", a_second_snapshot_of_a_run),
    ("I3", a_succeeded_run_that_the_ledger_takes_up_again),
    ("I4", a_succeeded_run_that_the_ledger_takes_up_again),
    ("I4", a_failed_run_without_a_manifest),
    ("I4", a_run_that_was_submitted_and_is_nowhere),
    ("I4", a_run_that_failed_for_no_reason),
    ("I5", an_attempt_is_missing),
    ("I5", two_attempts_ended_the_run),
    ("I5", an_attempt_of_an_ended_run_is_under_way),
    ("I6", a_second_snapshot_of_a_run),
    ("I6", a_file_that_is_listed_twice),
    ("I6", an_append_that_was_overwritten),
    ("I6", a_snapshot_that_took_away_more_than_its_own),
    ("I6", more_rows_than_expected),
    ("I6", metadata_that_a_snapshot_needs_was_deleted),
    ("I7", a_second_version_of_a_manifest),
    ("I7", a_manifest_that_was_deleted),
    ("I8", a_message_of_an_ended_run),
    ("I8", a_hidden_message),
    ("I9", an_object_outside_of_all_prefixes),
    ("I9", a_file_of_a_dataset_that_its_run_did_not_declare),
    ("I9", an_object_of_a_run_that_nobody_knows),
    ("I9", a_file_that_was_overwritten),
    ("I9", a_file_that_was_deleted),
    ("I9", metadata_that_a_snapshot_needs_was_deleted),
]


# ---------------------------------------------------------------- the tests


def test_a_place_with_nothing_wrong_has_no_violation(made: Made) -> None:
    tables = {"marts.visits": 6, "staging.people": 2}
    assert check(made.place, made.expected, tables=tables) == []


@pytest.mark.parametrize(("invariant", "break_it"), BREAKS, ids=[f"{name}-{each.__name__}" for name, each in BREAKS])
def test_it_finds(invariant: str, break_it: Callable[[Broken], str | None], broken: Broken) -> None:
    run_id = break_it(broken)
    found = broken.found()
    assert (invariant, run_id) in {(each.invariant, each.run_id) for each in found}, [str(each) for each in found]


def test_each_invariant_is_broken_above() -> None:
    assert {name for name, _ in BREAKS} == set(INVARIANTS)


def test_it_counts_the_rows_that_a_table_has_in_the_end(broken: Broken) -> None:
    (found,) = broken.found(tables={"marts.visits": 7})
    assert (found.invariant, found.said) == ("I6", "marts.visits: expected 7 rows in the end, got 6 in 2 files")


def test_metadata_that_no_snapshot_has_may_be_deleted(broken: Broken) -> None:
    """A committer that lost its race takes back what it wrote."""
    key = "tables/marts/visits/metadata/00000000-0000-4000-8000-000000000000-m0.avro"
    broken.put(key, b"")
    broken.delete(key)
    assert broken.found() == []


@pytest.mark.parametrize("queue", ["query", "query-dlq"])
def test_a_run_that_may_wait_is_found_where_it_waits(broken: Broken, queue: str) -> None:
    run_id = a_run_that_was_submitted_and_is_nowhere(broken)
    broken.send(queue, json.dumps({"run_id": run_id}))
    assert [each.run_id for each in broken.found() if each.invariant == "I4"] == [run_id]
    broken.made.expected[run_id] = Expected(states=frozenset({WAITING}))
    assert broken.found() == []
    assert broken.found() == [], "a look takes no message away"


def test_a_watch_sees_what_goes_back_and_is_right_again_at_the_end(broken: Broken) -> None:
    run_id = broken.made.first
    broken.copy_ledger()
    with watch(broken.place, every_s=60) as watching:
        watching.sample()
        broken.sql("UPDATE ledger.runs SET attempt = 3 WHERE run_id = %(run)s", run=run_id)
        watching.sample()
        broken.sql("UPDATE ledger.runs SET attempt = 1, state = 'failed' WHERE run_id = %(run)s", run=run_id)
        broken.sql("UPDATE ledger.runs SET manifest = manifest || ' ' WHERE run_id = %(run)s", run=run_id)
        broken.sql("UPDATE ledger.attempts SET outcome = 'lost' WHERE run_id = %(run)s", run=run_id)
    assert watching.samples == 3
    assert {each.run_id for each in watching.violations} == {run_id}
    assert [(each.invariant, each.said) for each in watching.violations] == [
        ("I5", "attempt 3 was followed by 1"),
        ("I5", "it was succeeded, and is failed"),
        ("I5", "attempt 1 had ended succeeded, and is lost"),
        ("I7", "its decided manifest is another now"),
    ]


def test_a_watch_of_a_place_where_nothing_happens_sees_nothing(made: Made) -> None:
    with watch(made.place, every_s=0.01) as watching:
        while watching.samples < 3:
            pass
    assert watching.violations == []


def test_the_checker_shares_nothing_with_the_product() -> None:
    tree = ast.parse(Path(invariants.__file__).read_text())
    named = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert named.isdisjoint({"runner", "tests"})
    asked = "import sys, importlib.util as u; s = u.spec_from_file_location('checker', sys.argv[1])\n"
    asked += "m = u.module_from_spec(s); sys.modules['checker'] = m; s.loader.exec_module(m)\n"
    asked += "print(sorted(n for n in sys.modules if n.split('.')[0] in ('runner', 'tests')))"
    done = subprocess.run(
        [sys.executable, "-c", asked, invariants.__file__], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
