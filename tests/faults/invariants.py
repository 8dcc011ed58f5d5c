"""The checker: looks at ledger, bucket, tables and queues, and says which of I1 to I9 does not hold, of which run.

It shares nothing with the product, not a name and not a line: a fault of the product's reading cannot hide one of its
writing. A test holds its imports to that.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Literal

import boto3
import psycopg
import pyarrow.parquet as pq
from botocore.config import Config
from psycopg.rows import dict_row
from pyiceberg.io import load_file_io
from pyiceberg.manifest import ManifestEntryStatus, read_manifest_list

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_sqs.client import SQSClient

Invariant = Literal["I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9"]

INVARIANTS: Mapping[Invariant, str] = {
    "I1": "succeeded implies a manifest",
    "I2": "one snapshot a run and table, all of one attempt's files",
    "I3": "manifest, ledger and snapshots tell the same",
    "I4": "every run has ended as it may, with a manifest, or waits in a queue",
    "I5": "attempts only grow",
    "I6": "row counts are exact",
    "I7": "a decided manifest never changes",
    "I8": "the queue drains",
    "I9": "nobody writes outside of their own prefixes",
}
LOST: frozenset[Invariant] = frozenset({"I1", "I4", "I8"})
"""What a run that breaks one of these is counted as."""
DOUBLED: frozenset[Invariant] = frozenset({"I2", "I6"})

WAITING = "waiting"
"""Among the states that a run may end in: it may still wait in a queue or a dead-letter queue."""

_TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
_PAGE = 10
"""SQS's own limit of messages for one receive."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One installation: all that the checker has to know to look at it."""

    ledger_url: str
    endpoint_url: str
    access_key: str
    secret_key: str
    region: str
    bucket: str
    queue_prefix: str

    def s3(self) -> S3Client:
        client: S3Client = self._client("s3")
        return client

    def sqs(self) -> SQSClient:
        client: SQSClient = self._client("sqs")
        return client

    def _client(self, service: Literal["s3", "sqs"]) -> Any:
        return boto3.client(
            service,
            region_name=self.region,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}),
        )


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a test knows of a run that it submitted, without having asked the product."""

    states: frozenset[str] = frozenset({"succeeded"})
    """Where it may end; `waiting` is one of them."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """By dataset, the rows of the snapshot that it publishes; of files that nobody counts rows in, the files."""
    cancel_asked: bool = False


@dataclass(frozen=True, kw_only=True)
class Violation:
    invariant: Invariant
    run_id: str | None
    """None where it is no one run's."""
    said: str

    def __str__(self) -> str:
        return f"{self.invariant} ({INVARIANTS[self.invariant]}), run {self.run_id}: {self.said}"


def lost(violations: Iterable[Violation]) -> set[str | None]:
    """The runs that count as lost."""
    return {each.run_id for each in violations if each.invariant in LOST}


def doubled(violations: Iterable[Violation]) -> set[str | None]:
    """The runs that count as doubled."""
    return {each.run_id for each in violations if each.invariant in DOUBLED}


def check(
    place: Place,
    expected: Mapping[str, Expected],
    *,
    tables: Mapping[str, int] | None = None,
    restored: bool = False,
) -> list[Violation]:
    """What does not hold at a place where no worker is at work any more, by run ids as text.

    `tables` are rows that tables are to have in the end. `restored` says that the ledger came back from a backup: the
    attempts and pins that it alone knew are not asked for then.
    """
    sight = look(place)
    return [
        *_manifests_and_ledger(sight, restored=restored),
        *_snapshots(sight),
        *_ends(sight, expected),
        *_attempts(sight),
        *_rows(sight, expected, tables or {}),
        *_versions(sight),
        *_queues(sight, expected),
        *_keys(sight),
    ]


# ---------------------------------------------------------------- what is there


@dataclass(frozen=True, kw_only=True)
class Version:
    key: str
    version_id: str
    etag: str
    deleted: bool
    """True for a delete marker."""


@dataclass(frozen=True, kw_only=True)
class Landing:
    """One snapshot of a table, or one version of a prefix, and who says to have made it."""

    dataset: str
    snapshot: str
    run_id: str | None
    """None for a writer from outside."""
    effect: str | None
    plan_id: str | None
    attempt: str | None
    range: str
    fence: bool
    files: tuple[str, ...]
    """Keys of the files that came with it."""
    live: tuple[str, ...]
    """Keys of all files that the dataset had then, as often as they are listed."""
    rows: int


@dataclass(kw_only=True)
class Sight:
    """All that can be seen of a place."""

    place: Place
    runs: dict[str, dict[str, Any]]
    attempts: dict[str, list[dict[str, Any]]]
    pins: dict[str, list[dict[str, Any]]]
    outputs: dict[str, list[dict[str, Any]]]
    versions: dict[str, list[Version]]
    landings: dict[str, list[Landing]]
    """By dataset, oldest first."""
    published: dict[str, list[str]]
    """By table, the snapshots of its published branch, oldest first."""
    depths: dict[str, int]
    """Messages of each queue, hidden ones too."""
    messages: dict[str, list[str]]
    """Of each queue, the run of each message that can be seen; the text itself of one that is none."""
    named: set[str] = field(default_factory=set)
    """Keys of all metadata that a snapshot has."""
    unreadable: list[str] = field(default_factory=list)
    """Tables that could not be read to the end, with why."""

    def body(self, key: str) -> bytes | None:
        """The object as it is now; None where there is none."""
        if not any(not each.deleted for each in self.versions.get(key, [])[:1]):
            return None
        if key not in self._bodies:
            self._bodies[key] = self._s3.get_object(Bucket=self.place.bucket, Key=key)["Body"].read()
        return self._bodies[key]

    @cached_property
    def manifests(self) -> dict[str, dict[str, Any]]:
        """Of S3, by run."""
        found = ((run_id, self.body(f"runs/{run_id}/manifest.json")) for run_id in self.runs)
        return {run_id: json.loads(body) for run_id, body in found if body is not None}

    def rows_in(self, key: str) -> int:
        """Counted by reading all of the file, so that one whose bytes are broken shows."""
        if key not in self._rows:
            body = self.body(key)
            self._rows[key] = -1 if body is None else _parquet_rows(body)
        return self._rows[key]

    @cached_property
    def _s3(self) -> S3Client:
        return self.place.s3()

    @cached_property
    def _bodies(self) -> dict[str, bytes]:
        return {}

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {}


def _parquet_rows(body: bytes) -> int:
    try:
        return int(pq.read_table(io.BytesIO(body)).num_rows)
    except Exception:  # noqa: BLE001 - pyarrow raises many kinds for bytes that are no Parquet; all mean no rows
        return -1


def look(place: Place) -> Sight:
    """Read everything, once."""
    with psycopg.connect(place.ledger_url, row_factory=dict_row) as connection:
        runs = {str(row["run_id"]): row for row in connection.execute("SELECT * FROM ledger.runs")}
        of_runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for table, order in (("attempts", "attempt"), ("pins", "alias"), ("outputs", "dataset")):
            grouped = of_runs[table] = defaultdict(list)
            for row in connection.execute(f"SELECT * FROM ledger.{table} ORDER BY {order}"):
                grouped[str(row["run_id"])].append(row)
        listed = connection.execute(
            "SELECT table_namespace || '.' || table_name AS dataset, metadata_location FROM catalog.iceberg_tables"
        ).fetchall()
    sight = Sight(
        place=place,
        runs=runs,
        attempts=of_runs["attempts"],
        pins=of_runs["pins"],
        outputs=of_runs["outputs"],
        versions=_all_versions(place),
        landings={},
        published={},
        depths={},
        messages={},
    )
    for row in listed:
        try:
            _look_at_table(sight, row["dataset"], row["metadata_location"])
        except Exception as error:  # noqa: BLE001 - whatever stands in the way of reading a table is a finding
            sight.unreadable.append(f"{row['dataset']}: {type(error).__name__}: {error}")
    _look_at_prefixes(sight)
    _look_at_queues(sight)
    return sight


def _all_versions(place: Place) -> dict[str, list[Version]]:
    """Of each key, newest first."""
    found: dict[str, list[Version]] = defaultdict(list)
    for page in place.s3().get_paginator("list_object_versions").paginate(Bucket=place.bucket):
        entries = [(each, False) for each in page.get("Versions", [])]
        for entry, deleted in [*entries, *((each, True) for each in page.get("DeleteMarkers", []))]:
            version = Version(
                key=entry["Key"],
                version_id=entry["VersionId"],
                etag=str(entry.get("ETag", "")),
                deleted=deleted,
            )
            latest = entry["IsLatest"]
            found[entry["Key"]].insert(0 if latest else len(found[entry["Key"]]), version)
    return found


_SUMMARY = "stage-runner."


def _look_at_table(sight: Sight, dataset: str, location: str) -> None:
    place = sight.place
    files = load_file_io(
        {
            "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO",
            "s3.endpoint": place.endpoint_url,
            "s3.region": place.region,
            "s3.access-key-id": place.access_key,
            "s3.secret-access-key": place.secret_key,
        },
        location,
    )
    with files.new_input(location).open() as stream:
        metadata = json.loads(stream.read())
    snapshots = {each["snapshot-id"]: each for each in metadata["snapshots"]}
    for number, snapshot in sorted(snapshots.items(), key=lambda each: each[1]["sequence-number"]):
        summary = snapshot["summary"]
        come, live = list[str](), list[str]()
        sight.named.add(_key(sight, snapshot["manifest-list"]))
        for manifest in read_manifest_list(files.new_input(snapshot["manifest-list"])):
            sight.named.add(_key(sight, manifest.manifest_path))
            for entry in manifest.fetch_manifest_entry(files, discard_deleted=False):
                if entry.status == ManifestEntryStatus.DELETED:
                    continue
                key = _key(sight, entry.data_file.file_path)
                live.append(key)
                if entry.status == ManifestEntryStatus.ADDED and entry.snapshot_id == number:
                    come.append(key)
        sight.landings.setdefault(dataset, []).append(
            Landing(
                dataset=dataset,
                snapshot=str(number),
                run_id=summary.get(f"{_SUMMARY}run-id"),
                effect=summary.get(f"{_SUMMARY}effect"),
                plan_id=summary.get(f"{_SUMMARY}plan-id"),
                attempt=summary.get(f"{_SUMMARY}attempt"),
                range=summary.get(f"{_SUMMARY}range", "table"),
                fence=f"{_SUMMARY}fence" in summary,
                files=tuple(come),
                live=tuple(live),
                rows=sum(sight.rows_in(key) for key in come),
            )
        )
    line = list[str]()
    at = metadata.get("refs", {}).get("main", {}).get("snapshot-id")
    while at is not None and at in snapshots:
        line.insert(0, str(at))
        at = snapshots[at].get("parent-snapshot-id")
    sight.published[dataset] = line


def _look_at_prefixes(sight: Sight) -> None:
    for key in sorted(sight.versions):
        dataset, found, _ = key.partition("/_snapshots/")
        body = sight.body(key) if found else None
        if body is None:
            continue
        document = json.loads(body)
        files = tuple(_key(sight, each["uri"]) for each in document["files"])
        counted = document["rows"]
        sight.landings.setdefault(dataset, []).append(
            Landing(
                dataset=dataset,
                snapshot=str(document["snapshot"]),
                run_id=document["run_id"],
                effect=document["effect"],
                plan_id=document["plan_id"],
                attempt=str(document["attempt"]),
                range=document.get("range", "table"),
                fence=bool(document.get("fence")),
                files=files,
                live=files,
                rows=len(files) if counted is None else int(counted),
            )
        )


def _look_at_queues(sight: Sight) -> None:
    sqs = sight.place.sqs()
    urls = sqs.list_queues(QueueNamePrefix=sight.place.queue_prefix).get("QueueUrls", [])
    for url in urls:
        name = url.rsplit("/", 1)[-1].removeprefix(sight.place.queue_prefix)
        attributes = sqs.get_queue_attributes(
            QueueUrl=url,
            AttributeNames=[
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesNotVisible",
                "ApproximateNumberOfMessagesDelayed",
            ],
        )["Attributes"]
        sight.depths[name] = sum(int(each) for each in attributes.values())
        sight.messages[name] = list(_peek(sqs, url)) if sight.depths[name] else []


def _peek(sqs: SQSClient, url: str) -> Iterator[str]:
    """Each message that can be seen, once; all are put back."""
    seen: dict[str, str] = {}
    try:
        while batch := sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=_PAGE, VisibilityTimeout=60, WaitTimeSeconds=0
        ).get("Messages", []):
            for message in batch:
                seen[message["ReceiptHandle"]] = message["Body"]
    finally:
        for receipt in seen:
            sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=receipt, VisibilityTimeout=0)
    for body in seen.values():
        run_id = None
        with suppress(ValueError, TypeError, KeyError):
            run_id = json.loads(body)["run_id"]
        yield str(run_id or body)


def _key(sight: Sight, uri: str) -> str:
    return uri.removeprefix(f"s3://{sight.place.bucket}/")


# ---------------------------------------------------------------- I1, I3: the records


def _manifests_and_ledger(sight: Sight, *, restored: bool) -> Iterator[Violation]:
    for run_id, row in sight.runs.items():
        manifest = sight.manifests.get(run_id)
        state, kept = row["state"], row["manifest"]
        if state == "succeeded" and (manifest is None or kept is None):
            where = "S3" if manifest is None else "the ledger"
            yield Violation(invariant="I1", run_id=run_id, said=f"succeeded, and {where} has no manifest")
        if manifest is not None and state not in _TERMINAL:
            yield Violation(invariant="I3", run_id=run_id, said=f"S3 has a manifest, the ledger says {state}")
        if manifest is None or kept is None:
            continue
        if (sight.body(f"runs/{run_id}/manifest.json") or b"").decode() != kept:
            yield Violation(invariant="I3", run_id=run_id, said="the manifest in S3 is other bytes than the ledger's")
        for what, theirs, ours in _facts(sight, run_id, manifest, restored=restored):
            if theirs != ours:
                said = f"{what}: the manifest says {theirs}, the ledger or the table {ours}"
                yield Violation(invariant="I3", run_id=run_id, said=said)
        yield from _files_are_there(sight, run_id, manifest)


def _facts(
    sight: Sight, run_id: str, manifest: Mapping[str, Any], *, restored: bool
) -> Iterator[tuple[str, object, object]]:
    row = sight.runs[run_id]
    yield "run_id", manifest["run_id"], run_id
    yield "state", manifest["state"], row["state"]
    yield "spec", manifest["spec"]["run_id"], run_id
    yield "spec_sha256", manifest["spec_sha256"], row["spec_sha256"]
    landed = [each for each in manifest["outputs"] if each["snapshot"] is not None]
    yield (
        "outputs",
        sorted((each["dataset"], each["snapshot"], each["branch"], each["rows"]) for each in landed),
        sorted(
            (each["dataset"], each["snapshot"], each["branch"], each["rows_out"])
            for each in sight.outputs.get(run_id, [])
        ),
    )
    yield (
        "snapshots",
        sorted((each["dataset"], each["snapshot"]) for each in landed),
        sorted(
            (landing.dataset, landing.snapshot)
            for landings in sight.landings.values()
            for landing in landings
            if landing.run_id == run_id and not landing.fence
        ),
    )
    plan_id = manifest.get("plan_id")
    for each in landed:
        landing = next(
            (one for one in sight.landings.get(each["dataset"], []) if one.snapshot == each["snapshot"]), None
        )
        if landing is None or not each["files"]:
            continue  # the first shows above; a file list is empty where the ledger had forgotten the plan
        of = f"{each['dataset']}@{each['snapshot']}"
        yield f"plan of {of}", plan_id, landing.plan_id
        yield f"files of {of}", sorted(_key(sight, file["uri"]) for file in each["files"]), sorted(landing.files)
        if each["rows"] is not None:
            yield f"rows of {of}", each["rows"], landing.rows
    if not restored:
        yield (
            "attempts",
            [(each["attempt"], each["worker"], each["outcome"]) for each in manifest["attempts"]],
            [(each["attempt"], each["worker"], each["outcome"]) for each in sight.attempts.get(run_id, [])],
        )
        yield (
            "pins",
            sorted((each["as"], each["dataset"], each["snapshot"]) for each in manifest["pins"]),
            sorted((each["alias"], each["dataset"], each["snapshot"]) for each in sight.pins.get(run_id, [])),
        )


def _files_are_there(sight: Sight, run_id: str, manifest: Mapping[str, Any]) -> Iterator[Violation]:
    for output in manifest["outputs"]:
        for file in output["files"]:
            if output["snapshot"] is None:
                continue
            body = sight.body(_key(sight, file["uri"]))
            if body is None:
                said = f"{file['uri']}: published, and there is no such object"
            elif len(body) != file["bytes"]:
                said = f"{file['uri']}: expected {file['bytes']} bytes, got {len(body)}"
            elif file["sha256"] and hashlib.sha256(body).hexdigest() != file["sha256"]:
                said = f"{file['uri']}: expected other bytes by its hash"
            else:
                continue
            yield Violation(invariant="I3", run_id=run_id, said=said)


# ---------------------------------------------------------------- I2, I3: the snapshots


def _snapshots(sight: Sight) -> Iterator[Violation]:
    sets: dict[str, set[tuple[str | None, str | None]]] = defaultdict(set)
    for dataset, landings in sight.landings.items():
        of_run = Counter(each.run_id for each in landings if each.run_id and not each.fence)
        for run_id, times in of_run.items():
            if times > 1:
                said = f"{dataset}: expected one snapshot of the run, got {times}"
                yield Violation(invariant="I2", run_id=run_id, said=said)
        for each in landings:
            if each.run_id is None or each.fence:
                continue
            if each.run_id not in sight.runs:
                said = f"{dataset}: snapshot {each.snapshot} is of a run that the ledger does not know"
                yield Violation(invariant="I3", run_id=each.run_id, said=said)
            sets[each.run_id].add((each.attempt, each.plan_id))
            own = f"/{each.run_id}/{each.attempt}/{each.plan_id}/"
            for key in each.files:
                if own not in key:
                    said = f"{dataset}: snapshot {each.snapshot} of attempt {each.attempt} has a file of another: {key}"
                    yield Violation(invariant="I2", run_id=each.run_id, said=said)
    for run_id, made in sets.items():
        if len(made) > 1:
            said = f"outputs of {len(made)} plans are published: {sorted(map(str, made))}"
            yield Violation(invariant="I2", run_id=run_id, said=said)


# ---------------------------------------------------------------- I4, I8: how runs end


def _ends(sight: Sight, expected: Mapping[str, Expected]) -> Iterator[Violation]:
    waiting = {run_id for found in sight.messages.values() for run_id in found}
    for run_id, wanted in expected.items():
        row = sight.runs.get(run_id)
        state = row["state"] if row else None
        said = None
        if state not in _TERMINAL:
            if run_id not in waiting:
                said = f"it has not ended (the ledger says {state}), and no queue has a message of it"
            elif WAITING not in wanted.states:
                said = f"it has not ended (the ledger says {state}), and waits in a queue"
        elif state not in wanted.states:
            why = (row["failure"] or {}).get("message") if row else None
            said = f"expected it to end {' or '.join(sorted(wanted.states))}, got {state}: {why}"
        elif state == "cancelled" and not wanted.cancel_asked:
            said = "cancelled, which nobody had asked for"
        elif state != "succeeded" and run_id not in sight.manifests:
            said = f"{state}, and S3 has no manifest"
        if said:
            yield Violation(invariant="I4", run_id=run_id, said=said)


def _queues(sight: Sight, expected: Mapping[str, Expected]) -> Iterator[Violation]:
    may_wait = {run_id for run_id, wanted in expected.items() if WAITING in wanted.states}
    for name, depth in sight.depths.items():
        if name.endswith("-dlq"):
            continue
        left = [run_id for run_id in sight.messages[name] if run_id not in may_wait]
        for run_id in left:
            yield Violation(invariant="I8", run_id=run_id, said=f"queue {name} has a message of it still")
        hidden = depth - len(sight.messages[name])
        if hidden > 0:
            yield Violation(invariant="I8", run_id=None, said=f"queue {name} has {hidden} hidden messages still")


# ---------------------------------------------------------------- I5: attempts


def _attempts(sight: Sight) -> Iterator[Violation]:
    for run_id, row in sight.runs.items():
        attempts = sight.attempts.get(run_id, [])
        numbers = [each["attempt"] for each in attempts]
        if numbers != list(range(1, row["attempt"] + 1)):
            said = f"expected attempts 1 to {row['attempt']}, got {numbers}"
            yield Violation(invariant="I5", run_id=run_id, said=said)
        final = [each["outcome"] for each in attempts if each["outcome"] in _TERMINAL]
        if len(final) > 1 or (final and final != [row["state"]]):
            said = f"expected one attempt to end the run {row['state']}, got {final}"
            yield Violation(invariant="I5", run_id=run_id, said=said)
        open_ones = [each["attempt"] for each in attempts if each["outcome"] == "running"]
        if open_ones and (row["state"] in _TERMINAL or open_ones != numbers[-1:]):
            said = f"expected no attempt under way but the last of an open run, got {open_ones}"
            yield Violation(invariant="I5", run_id=run_id, said=said)


_SAMPLE = """
SELECT r.run_id::text, r.state, r.attempt, md5(r.manifest) AS manifest,
       coalesce((SELECT jsonb_object_agg(a.attempt, a.outcome) FROM ledger.attempts a WHERE a.run_id = r.run_id), '{}')
           AS outcomes
FROM ledger.runs r
"""


@dataclass
class Watch:
    """Looks at a ledger again and again: what may only grow, or never change, is seen to do otherwise."""

    place: Place
    every_s: float
    samples: int = 0
    _seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    _found: dict[tuple[str, str], Violation] = field(default_factory=dict)
    _looking: Lock = field(default_factory=Lock)
    _connection: psycopg.Connection[dict[str, Any]] | None = None

    @property
    def violations(self) -> list[Violation]:
        return list(self._found.values())

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """Within, the ledger may come back from a backup: what was seen of the one before is forgotten."""
        with self._looking:
            yield
            self._seen.clear()

    def sample(self) -> None:
        """One look."""
        with self._looking:
            self._sample()

    def _sample(self) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.place.ledger_url, autocommit=True, row_factory=dict_row)
        for row in self._connection.execute(_SAMPLE).fetchall():
            before = self._seen.get(row["run_id"])
            if before is not None:
                self._compare(row["run_id"], before, row)
            self._seen[row["run_id"]] = row
        self.samples += 1

    def _compare(self, run_id: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        if now["attempt"] < before["attempt"]:
            self._note("I5", run_id, f"attempt {before['attempt']} was followed by {now['attempt']}")
        if before["state"] in _TERMINAL and now["state"] != before["state"]:
            self._note("I5", run_id, f"it was {before['state']}, and is {now['state']}")
        for attempt, outcome in before["outcomes"].items():
            came = now["outcomes"].get(attempt)
            if outcome not in ("running", came):
                self._note("I5", run_id, f"attempt {attempt} had ended {outcome}, and is {came}")
        if before["manifest"] is not None and now["manifest"] != before["manifest"]:
            self._note("I7", run_id, "its decided manifest is another now")

    def _note(self, invariant: Invariant, run_id: str, said: str) -> None:
        self._found[run_id, said] = Violation(invariant=invariant, run_id=run_id, said=said)

    def close(self) -> None:
        """Look once more, and no more."""
        with suppress(psycopg.OperationalError):  # the connection may have been cut since the last look
            self.sample()
        if self._connection is not None:
            self._connection.close()

    def _go_on(self, done: Event) -> None:
        while not done.wait(self.every_s):
            with suppress(psycopg.OperationalError):  # a ledger that is away for the moment shows nothing
                self.sample()


@contextmanager
def watch(place: Place, *, every_s: float = 0.25) -> Iterator[Watch]:
    """Within: the ledger is looked at all the time, and at the end once more."""
    watching, done = Watch(place, every_s), Event()
    thread = Thread(target=watching._go_on, args=(done,), daemon=True)
    thread.start()
    try:
        yield watching
    finally:
        done.set()
        thread.join()
        watching.close()


# ---------------------------------------------------------------- I6: rows


def _rows(sight: Sight, expected: Mapping[str, Expected], tables: Mapping[str, int]) -> Iterator[Violation]:
    for said in sight.unreadable:
        yield Violation(invariant="I6", run_id=None, said=f"it cannot be read: {said}")
    for dataset, line in sight.published.items():
        yield from _content(sight, dataset, line)
    for run_id, wanted in expected.items():
        row = sight.runs.get(run_id)
        for dataset, rows in wanted.rows.items():
            landed = [each for each in sight.landings.get(dataset, []) if each.run_id == run_id and not each.fence]
            came = sum(each.rows for each in landed)
            if (landed or (row and row["state"] == "succeeded")) and came != rows:
                said = f"{dataset}: expected {rows} rows of the run, got {came} in {len(landed)} snapshots"
                yield Violation(invariant="I6", run_id=run_id, said=said)
    for dataset, rows in tables.items():
        live = _live(sight, dataset)
        came = sum(sight.rows_in(key) for key in live)
        if came != rows:
            said = f"{dataset}: expected {rows} rows in the end, got {came} in {len(live)} files"
            yield Violation(invariant="I6", run_id=None, said=said)


def _live(sight: Sight, dataset: str) -> Sequence[str]:
    line = sight.published.get(dataset, [])
    return next((each.live for each in sight.landings.get(dataset, []) if line and each.snapshot == line[-1]), ())


def _content(sight: Sight, dataset: str, line: Sequence[str]) -> Iterator[Violation]:
    """What a table has is what its snapshots one after the other make of it, by their ranges: nothing more or less."""
    by_id = {each.snapshot: each for each in sight.landings.get(dataset, [])}
    content: dict[str, str] = {}
    """Each file's range."""
    for each in (by_id[snapshot] for snapshot in line):
        if each.run_id is None and not each.fence:
            content = dict.fromkeys(each.live, "table")  # somebody from outside: as it is, so be it
            continue
        if not each.fence:
            kept = {} if each.range == "table" else {key: of for key, of in content.items() if of != each.range}
            content = kept | dict.fromkeys(each.files, each.range)
        listed = Counter(each.live)
        for key in sorted(set(content) | set(listed)):
            if listed[key] == int(key in content):
                continue
            said = f"{dataset}: snapshot {each.snapshot} has {key} {listed[key]} times, expected {int(key in content)}"
            yield Violation(invariant="I6", run_id=_run_of_key(key) or each.run_id, said=said)
        content = {key: content.get(key, each.range) for key in listed}  # one fault is told of once


# ---------------------------------------------------------------- I7, I9: objects


_ONCE = re.compile(r"runs/[^/]+/(manifest|spec)\.json|.*/_snapshots/[^/]+\.json")
"""Made with If-None-Match: a second version, be it of the same bytes, is a second write."""
_MANY = re.compile(r"runs/[^/]+/log\.\d+\.jsonl")
"""Written again and again while its attempt goes on."""


def _versions(sight: Sight) -> Iterator[Violation]:
    for key, versions in sight.versions.items():
        run_id = _run_of_key(key)
        invariant: Invariant = "I7" if key.endswith("/manifest.json") and key.startswith("runs/") else "I9"
        if any(each.deleted for each in versions):
            if key.endswith(".avro") and _TABLE_METADATA.fullmatch(key) and key not in sight.named:
                continue  # pyiceberg takes back what it wrote for a commit that lost its race
            yield Violation(invariant=invariant, run_id=run_id, said=f"{key}: somebody deleted it")
        elif _ONCE.fullmatch(key) and len(versions) != 1:
            yield Violation(invariant=invariant, run_id=run_id, said=f"{key}: expected 1 version, got {len(versions)}")
        elif not _MANY.fullmatch(key) and len({each.etag for each in versions}) > 1:
            # The same bytes twice is a request that was repeated because its answer was lost.
            said = f"{key}: expected no other bytes to come in its place, got {len(versions)} versions"
            yield Violation(invariant=invariant, run_id=run_id, said=said)


_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_OF_RUN = re.compile(rf"runs/(?P<run>{_UUID})/(spec\.json|manifest\.json|log\.\d+\.jsonl|artifacts/{_UUID}/.+)")
_TABLE_FILE = re.compile(
    rf"tables/(?P<namespace>[^/]+)/(?P<table>[^/]+)/data/(?P<effect>{_UUID})/(?P<run>{_UUID})/\d+/{_UUID}/[^/]+"
)
_PREFIX_FILE = re.compile(rf"(?P<prefix>.+)/ingested_on=\d{{4}}-\d\d-\d\d/(?P<run>{_UUID})/\d+/{_UUID}/[^/]+")
_TABLE_METADATA = re.compile(r"tables/(?P<namespace>[^/]+)/(?P<table>[^/]+)/metadata/[^/]+\.(metadata\.json|avro)")
_PREFIX_VERSION = re.compile(r"(?P<prefix>.+)/_snapshots/(\d{8}|rerun_[0-9a-f]{32})\.json")
_SHARED = re.compile(
    r"logic/[0-9a-f]+/[0-9a-f]{40}(\.pack|\.production/.+)|"
    r"packages/([0-9a-f]{64}\.tar\.gz|hub/[^/]+/[^/]+/[^/]+\.json|tarball/[0-9a-f]{64}\.json)"
)


def _keys(sight: Sight) -> Iterator[Violation]:
    declared = {run_id: _datasets(json.loads(row["spec"])) for run_id, row in sight.runs.items()}
    anybodys = {name for names in declared.values() for name in names} | set(sight.published)
    for key in sight.versions:
        run_id, said = _run_of_key(key), None
        if _SHARED.fullmatch(key):
            continue
        if found := _OF_RUN.fullmatch(key):
            said = None if found["run"] in sight.runs else "it is of a run that the ledger does not know"
        elif found := _TABLE_FILE.fullmatch(key):
            row = sight.runs.get(found["run"])
            dataset = f"{found['namespace']}.{found['table']}"
            if row is None or dataset not in declared[found["run"]]:
                said = f"expected a file of a run that has {dataset} among its outputs"
            elif str(row["effect"]) != found["effect"]:
                said = f"expected effect {row['effect']}, which the run has"
        elif found := _PREFIX_FILE.fullmatch(key):
            if found["prefix"] not in declared.get(found["run"], ()):
                said = f"expected a file of a run that has {found['prefix']} among its outputs"
        elif found := _TABLE_METADATA.fullmatch(key):
            if f"{found['namespace']}.{found['table']}" not in anybodys:
                said = "expected metadata of a table that a run has among its outputs"
        elif found := _PREFIX_VERSION.fullmatch(key):
            if found["prefix"] not in anybodys:
                said = "expected a version of a prefix that a run has among its outputs"
        else:
            said = "nobody is to write there"
        if said:
            yield Violation(invariant="I9", run_id=run_id, said=f"{key}: {said}")


def _datasets(spec: Mapping[str, Any]) -> set[str]:
    """The outputs, and where the bad rows of each table go."""
    names = {each["dataset"] for each in spec["outputs"]}
    return names | {"failed/" + name.replace(".", "/") for name in names if "/" not in name}


def _run_of_key(key: str) -> str | None:
    for pattern in (_OF_RUN, _TABLE_FILE, _PREFIX_FILE):
        if found := pattern.fullmatch(key):
            return found["run"]
    return None
