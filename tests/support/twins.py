"""In-memory twins of the ports. `tests/contract` holds each to the same behaviour as the real thing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Literal
from uuid import UUID, uuid4

from runner.model.errors import ConflictError, DataError, Failure, InfrastructureError, SchemaError, SpecError
from runner.model.lineage import Edge, edges
from runner.model.manifest import (
    NO_SNAPSHOT,
    AttemptRecord,
    FileRecord,
    Manifest,
    OutputRecord,
    Pin,
    Plan,
    State,
)
from runner.model.messages import FieldIds
from runner.model.names import table_prefix
from runner.model.ranges import partition_name
from runner.model.spec import JobSpec, Partition, Stage, parse_spec
from runner.model.strict import parse_json
from runner.ports import (
    LEASE_S,
    Busy,
    CancelWanted,
    Claimed,
    Clock,
    CommitTag,
    DeadLetter,
    Decided,
    Delivery,
    Landed,
    LostLease,
    LostRace,
    RunRow,
    ServedFile,
)


class TestClock:
    """A clock that moves only when it is told to."""

    __test__ = False  # not a class of tests, whatever its name says to pytest

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = start

    def now(self) -> datetime:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)


# ---------------------------------------------------------------- queue


@dataclass
class _Message:
    wire: bytes
    message_id: str
    sent_at: datetime
    visible_at: datetime
    receipt: str | None = None
    receives: int = 0


@dataclass(frozen=True, kw_only=True)
class Buried:
    """What a dead-letter queue holds."""

    body: str
    reason: str
    message_id: str


class MemoryQueue:
    """`Queue` in memory. Waiting moves the test clock on, until a message shows or the wait is over."""

    def __init__(self, clock: TestClock) -> None:
        self._clock = clock
        self._messages: dict[Stage, list[_Message]] = {stage: [] for stage in Stage}
        self._dead: dict[Stage, list[_Message]] = {stage: [] for stage in Stage}

    def send(self, stage: Stage, body: str) -> None:
        if not body or any(ord(char) < 0x20 and char not in "\t\n\r" for char in body):
            raise InfrastructureError(f"queue {stage.value}: expected a body that SQS takes, got {body[:40]!r}")
        self._messages[stage].append(self._message({"body": body}))

    def _message(self, document: Mapping[str, str]) -> _Message:
        return _Message(json.dumps(document).encode(), str(uuid4()), self._clock.now(), self._clock.now())

    def receive(self, stage: Stage, *, wait_s: float) -> Delivery | None:
        give_up_at = self._clock.now() + timedelta(seconds=min(wait_s, 20))
        message = min(self._messages[stage], key=lambda each: each.visible_at, default=None)
        if message is None or message.visible_at > give_up_at:
            self._clock.advance((give_up_at - self._clock.now()).total_seconds())
            return None
        self._clock.advance(max((message.visible_at - self._clock.now()).total_seconds(), 0))
        message.receipt = str(uuid4())
        message.receives += 1
        message.visible_at = self._clock.now() + timedelta(seconds=LEASE_S)
        return Delivery(
            stage=stage,
            body=json.loads(message.wire)["body"],
            receipt=message.receipt,
            message_id=message.message_id,
            receives=message.receives,
        )

    def hide(self, delivery: Delivery, *, seconds: float) -> None:
        message = self._find(delivery)
        if message is not None:
            message.visible_at = self._clock.now() + timedelta(seconds=seconds)

    def delete(self, delivery: Delivery) -> None:
        message = self._find(delivery)
        if message is not None:
            self._messages[delivery.stage].remove(message)

    def bury(self, delivery: Delivery, *, reason: str) -> None:
        letter = {"body": delivery.body, "reason": reason, "message_id": delivery.message_id}
        self._dead[delivery.stage].append(self._message(letter))
        self.delete(delivery)

    def give_up(self, delivery: Delivery) -> None:
        """What SQS does by itself to a message that was delivered too often: it stays the message that it was."""
        message = self._find(delivery)
        if message is not None:
            self._messages[delivery.stage].remove(message)
            message.visible_at = self._clock.now()
            self._dead[delivery.stage].append(message)

    def dead_letters(self, stage: Stage) -> list[Buried]:
        letters = [(each.message_id, json.loads(each.wire)) for each in self._dead[stage]]
        return [Buried(**{"reason": "", "message_id": message_id, **letter}) for message_id, letter in letters]

    def depth(self, stage: Stage) -> int:
        return len(self._messages[stage])

    def _find(self, delivery: Delivery) -> _Message | None:
        for message in self._messages[delivery.stage]:
            if message.receipt == delivery.receipt:
                return message
        return None


class MemoryDeadLetters:
    """`DeadLetters` in memory: what the queue has buried."""

    def __init__(self, queue: MemoryQueue, clock: Clock) -> None:
        self._letters = queue._dead
        self._clock = clock

    def look(self, stage: Stage, *, limit: int) -> Sequence[DeadLetter]:
        seen = [each for each in self._letters[stage] if each.visible_at <= self._clock.now()][:limit]
        for message in seen:
            message.receipt = str(uuid4())
            message.receives += 1
            message.visible_at = self._clock.now() + timedelta(seconds=60)
        return [_dead_letter(stage, each) for each in seen]

    def put_back(self, letter: DeadLetter) -> None:
        message = self._find(letter)
        if message is not None:
            message.visible_at = self._clock.now()

    def remove(self, letter: DeadLetter) -> None:
        message = self._find(letter)
        if message is not None:
            self._letters[letter.stage].remove(message)

    def depth(self, stage: Stage) -> int:
        return len(self._letters[stage])

    def _find(self, letter: DeadLetter) -> _Message | None:
        return next((each for each in self._letters[letter.stage] if each.receipt == letter.receipt), None)


def _dead_letter(stage: Stage, message: _Message) -> DeadLetter:
    document = json.loads(message.wire)
    return DeadLetter(
        stage=stage,
        body=document["body"],
        receipt=message.receipt or "",
        message_id=message.message_id,
        reason=document.get("reason"),
        sent_at=message.sent_at,
        receives=message.receives,
    )


# ---------------------------------------------------------------- objects


class MemoryObjects:
    """`Objects` in memory."""

    def __init__(self, bucket: str = "lake") -> None:
        self._bucket = bucket
        self._objects: dict[str, bytes] = {}

    def uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def check(self) -> None:
        """It always answers."""

    def get(self, key: str, *, at_most: int | None = None) -> bytes | None:
        body = self._objects.get(key)
        if body is not None and at_most is not None and len(body) > at_most:
            raise DataError(f"object {self.uri(key)}: expected at most {at_most:,} bytes, got {len(body):,}")
        return body

    def get_range(self, key: str, start: int, end: int) -> bytes | None:
        body = self._objects.get(key)
        return None if body is None else body[start:end]

    def put(self, key: str, body: bytes) -> None:
        self._objects[key] = bytes(body)

    def put_if_absent(self, key: str, body: bytes) -> bool:
        return self._objects.setdefault(key, bytes(body)) == body

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self._objects if key.startswith(prefix))

    def exists(self, key: str) -> bool:
        return key in self._objects

    def put_file(self, key: str, path: Path) -> None:
        self._objects[key] = path.read_bytes()

    def get_file(self, key: str, path: Path) -> None:
        if key not in self._objects:
            raise FileNotFoundError(self.uri(key))
        path.write_bytes(self._objects[key])


# ---------------------------------------------------------------- secrets


class MemorySecrets:
    """`Secrets` in memory. What is put counts at once: it holds no values back as the adapter may."""

    def __init__(self, texts: Mapping[str, str] | None = None) -> None:
        self._texts = dict(texts or {})

    def put(self, name: str, text: str) -> None:
        self._texts[name] = text

    def get(self, name: str, *, fresh: bool = False) -> str:
        if name not in self._texts:
            raise SpecError(f"secret {name[:60]!r}: expected one of that name, got none", subject=name[:60])
        return self._texts[name]


# ---------------------------------------------------------------- tables


PartitionOf = Callable[[FileRecord, Partition], object]
"""The partition of a file's rows, as `runner.model.ranges` writes its value; None for rows that have NULL there."""


@dataclass(frozen=True)
class _Snapshot:
    landed: Landed
    parent: str | None
    files: Mapping[FileRecord, tuple[UUID | None, object]]
    """Each with the effect that it was written for, and its partition."""
    metadata: str


@dataclass(frozen=True)
class _Table:
    """A table's state: immutable, so that a handle keeps what it loaded."""

    refs: Mapping[str | None, str] = field(default_factory=dict)
    snapshots: Mapping[str, _Snapshot] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    field_ids: Mapping[str, FieldIds] = field(default_factory=dict)
    last_field_id: int = 0
    partition_by: Partition | None = None

    def newest(self, branch: str | None) -> _Snapshot | None:
        snapshot = self.refs.get(branch)
        return self.snapshots[snapshot] if snapshot else None

    def published(self) -> str | None:
        """The newest snapshot that is no fence."""
        snapshot = self.newest(None)
        while snapshot is not None and snapshot.landed.fence:
            snapshot = self.snapshots.get(snapshot.parent or "")
        return snapshot.landed.snapshot if snapshot else None


class MemoryTables:
    """`Datasets` for tables, in memory. Gives field ids to columns, not to what is nested in them.

    Without `partition_of`, which looks into files, one is of the partition that it is published to.
    """

    def __init__(self, partition_of: PartitionOf | None = None) -> None:
        self._tables: dict[str, _Table] = {}
        self._last_snapshot = 1_000_000_000_000_000_000  # as long as Iceberg's, which no double holds exactly
        self._partition_of = partition_of

    def pin(self, dataset: str, alias: str, snapshot: str | None) -> Pin:
        table = self._tables.get(dataset, _Table())
        wanted = snapshot or table.published()
        if wanted is None or wanted not in table.snapshots:
            raise DataError(
                f"input {dataset}: expected {f'snapshot {snapshot}' if snapshot else 'a snapshot'}, got none",
                subject=dataset,
            )
        return Pin(as_=alias, dataset=dataset, snapshot=wanted, metadata=table.snapshots[wanted].metadata)

    def state(self, dataset: str, alias: str, snapshot: str | None) -> Pin:
        table = self._tables.get(dataset, _Table())
        wanted = snapshot or table.published() or NO_SNAPSHOT
        if wanted == NO_SNAPSHOT:
            return Pin(as_=alias, dataset=dataset, snapshot=NO_SNAPSHOT, metadata="", state=True)
        if wanted not in table.snapshots:
            raise DataError(
                f"state of {dataset}: expected snapshot {snapshot}, got none: input expired", subject=dataset
            )
        metadata = table.snapshots[wanted].metadata
        return Pin(as_=alias, dataset=dataset, snapshot=wanted, metadata=metadata, state=True)

    def files(self, pin: Pin) -> Sequence[ServedFile]:
        if pin.snapshot == NO_SNAPSHOT:
            return []
        snapshot = self._tables.get(pin.dataset, _Table()).snapshots.get(pin.snapshot)
        if snapshot is None:
            raise DataError(
                f"input {pin.dataset}: expected snapshot {pin.snapshot}, got none: input expired",
                subject=pin.dataset,
            )
        rows = [ServedFile(uri=each.uri, bytes=each.bytes, holds_rows=True) for each in snapshot.files]
        return [ServedFile(uri=snapshot.metadata, bytes=1, holds_rows=False), *rows]

    def load(self, dataset: str) -> LoadedMemoryTable:
        return LoadedMemoryTable(self, dataset, self._tables.get(dataset, _Table()))

    def expire(self, dataset: str, snapshot: str) -> None:
        """What maintenance does one day to every snapshot."""
        table = self._tables[dataset]
        kept = {name: each for name, each in table.snapshots.items() if name != snapshot}
        self._tables[dataset] = replace(table, snapshots=kept)

    def commit(self, dataset: str, based_on: _Table, output: OutputRecord, tag: CommitTag | None) -> str:
        """Compare-and-swap of the table. Without a tag it is a writer from outside."""
        now = self._tables.get(dataset, _Table())
        if output.branch and None not in based_on.refs:
            raise DataError(
                f"{dataset}: expected a published table for {output.branch} to lie beside, got none",
                hint="rerun with --publish",
                subject=dataset,
            )
        if now.refs != based_on.refs:
            raise LostRace(f"{dataset}: another commit came first")
        table = _evolved(dataset, now, output)
        base = now.newest(output.branch) or now.newest(None)
        return self._add(dataset, table, output.branch, base, self._content(dataset, base, output, tag), tag)

    def fence(self, dataset: str, based_on: _Table, branch: str | None, tag: CommitTag) -> None:
        now = self._tables.get(dataset, _Table())
        if now.refs != based_on.refs:
            raise LostRace(f"{dataset}: another commit came first")
        branch = branch if branch in now.refs else None
        base = now.newest(branch)
        self._add(dataset, now, branch, base, base.files if base else {}, tag, fence=True)

    def _add(
        self,
        dataset: str,
        table: _Table,
        branch: str | None,
        base: _Snapshot | None,
        files: Mapping[FileRecord, tuple[UUID | None, object]],
        tag: CommitTag | None,
        *,
        fence: bool = False,
    ) -> str:
        self._last_snapshot += 1
        snapshot = str(self._last_snapshot)
        metadata = f"s3://lake/{table_prefix(dataset)}metadata/{snapshot}.metadata.json"
        parent = base.landed.snapshot if base else None
        made = _Snapshot(Landed(snapshot=snapshot, tag=tag, fence=fence), parent, files, metadata)
        self._tables[dataset] = replace(
            table, refs={**table.refs, branch: snapshot}, snapshots={**table.snapshots, snapshot: made}
        )
        return snapshot

    def _content(
        self, dataset: str, base: _Snapshot | None, output: OutputRecord, tag: CommitTag | None
    ) -> dict[FileRecord, tuple[UUID | None, object]]:
        """The files that the new snapshot has, by the output's mode."""
        effect = tag.effect if tag else None
        come = {each: (effect, self._partition(each, output)) for each in output.files if each.rows != 0}
        there = dict(base.files) if base else {}
        if output.mode == "append":
            return {each: known for each, known in there.items() if known[0] != effect} | come
        if output.mode == "replace_where" and output.partition_by:
            value = output.range.removeprefix(f"{partition_name(output.partition_by)} = ")
            if any(partition != value for _, partition in come.values()):
                raise SchemaError(f"{dataset}: expected rows of {output.range} only, got others", subject=dataset)
            return {each: known for each, known in there.items() if known[1] != value} | come
        return come

    def _partition(self, file: FileRecord, output: OutputRecord) -> object:
        if output.partition_by is None:
            return None
        if self._partition_of is None:
            return output.range.removeprefix(f"{partition_name(output.partition_by)} = ")
        return self._partition_of(file, output.partition_by)


class LoadedMemoryTable:
    def __init__(self, tables: MemoryTables, dataset: str, table: _Table) -> None:
        self._tables = tables
        self._dataset = dataset
        self._table = table

    @property
    def exists(self) -> bool:
        return bool(self._table.refs)

    @property
    def partition_by(self) -> Partition | None:
        return self._table.partition_by

    @property
    def column_types(self) -> Mapping[str, str]:
        return self._table.columns

    @property
    def field_ids(self) -> Mapping[str, FieldIds]:
        return self._table.field_ids

    @property
    def last_field_id(self) -> int:
        return self._table.last_field_id

    def head(self, branch: str | None) -> Landed | None:
        newest = self._table.newest(branch)
        return newest.landed if newest else None

    def landed(self, run_id: UUID) -> Sequence[Landed]:
        made = (each.landed for each in self._table.snapshots.values())
        return [each for each in made if each.tag is not None and each.tag.run_id == run_id and not each.fence]

    def history(self, branch: str | None) -> Sequence[Landed]:
        found, snapshot = list[Landed](), self._table.newest(branch)
        while snapshot is not None:
            found.append(snapshot.landed)
            snapshot = self._table.snapshots.get(snapshot.parent or "")
        return found

    def commit(self, output: OutputRecord, tag: CommitTag) -> str:
        return self._tables.commit(self._dataset, self._table, output, tag)

    def fence(self, branch: str | None, tag: CommitTag) -> None:
        self._tables.fence(self._dataset, self._table, branch, tag)


def _evolved(dataset: str, table: _Table, output: OutputRecord) -> _Table:
    """The table with the output's columns: new ones added, gone ones dropped. A branch cannot change them."""
    wanted = {column.name: column.type for column in output.columns or ()}
    partition_by = output.partition_by
    if table.refs and table.partition_by != partition_by:
        there, came = (partition_name(each) if each else "none" for each in (table.partition_by, partition_by))
        raise SchemaError(f"{dataset}: expected partition_by {there}, as the table is, got {came}", subject=dataset)
    if partition_by and wanted and partition_by.column not in wanted:
        column = f"{dataset}.{partition_by.column}"
        raise SchemaError(f"{column}: expected the column that the table is partitioned by, got none", subject=column)
    for name, kind in wanted.items():
        old = table.columns.get(name)
        if (old is None and output.branch and table.columns) or (old and (old, kind) not in _WIDENINGS | {(old, old)}):
            raise SchemaError(f"{dataset}.{name}: expected {old or 'no such column'}, got {kind}", subject=dataset)
    if output.branch and table.columns:
        return table
    if output.mode in ("append", "replace_where"):
        wanted = {**table.columns, **wanted}
    ids, last = dict[str, FieldIds](), table.last_field_id
    for name in wanted:
        known = table.field_ids.get(name)
        last += known is None
        ids[name] = known or FieldIds(id=last)
    return replace(table, columns=wanted, field_ids=ids, last_field_id=last, partition_by=partition_by)


_WIDENINGS = {("int", "long"), ("float", "double")}
"""Iceberg's promotions, but for decimals: https://iceberg.apache.org/spec/#schema-evolution."""


# ---------------------------------------------------------------- ledger


@dataclass
class _Run:
    """A run's row. Documents are kept as JSON, so that one that does not survive the way shows."""

    spec: str
    spec_sha256: str
    submitted_at: datetime
    state: State = State.QUEUED
    attempt: int = 0
    free_at: datetime | None = None
    started_at: datetime | None = None
    pins: list[str] | None = None
    plan: str | None = None
    attempts: list[AttemptRecord] = field(default_factory=list)
    manifest: str | None = None
    recorded: bool = False
    cancel_asked_at: datetime | None = None
    sent_at: datetime | None = None
    leases: dict[str, bool] = field(default_factory=dict)
    """Tables that it holds, with whether it has them alone."""

    @property
    def cancel_wanted(self) -> bool:
        return self.cancel_asked_at is not None and self.plan is None and self.manifest is None


class MemoryLedger:
    """`Ledger` in memory; thread-safe, like the real one."""

    def __init__(self, clock: Clock, *, lease_s: float = LEASE_S) -> None:
        self._clock = clock
        self._lease = timedelta(seconds=lease_s)
        self._runs: dict[UUID, _Run] = {}
        self._using = Lock()

    def submit(self, spec: JobSpec) -> datetime:
        with self._using:
            return self._submit(spec).submitted_at

    def _submit(self, spec: JobSpec) -> _Run:
        # No two are submitted in the same microsecond, though the test's clock stands.
        submitted_at = self._clock.now() + timedelta(microseconds=len(self._runs))
        run = self._runs.setdefault(spec.run_id, _Run(spec.to_json(), spec.digest(), submitted_at))
        if run.spec_sha256 != spec.digest():
            raise ConflictError(f"run {spec.run_id}: expected the spec it was submitted with, got another")
        return run

    def sent(self, run_ids: Sequence[UUID]) -> None:
        with self._using:
            for run_id in run_ids:
                if run_id in self._runs and self._runs[run_id].manifest is None:
                    self._runs[run_id].sent_at = self._clock.now()

    def claim(self, spec: JobSpec, *, worker: str) -> Claimed | Busy | Decided:
        with self._using:
            run, now = self._submit(spec), self._clock.now()
            if run.manifest is not None:
                return Decided(manifest=_manifest(run.manifest), recorded=run.recorded)
            if run.free_at is not None and run.free_at > now:
                return Busy(seconds=(run.free_at - now).total_seconds())
            tries = sum(each.outcome != "handed back" for each in run.attempts)
            run.attempts = [
                each.model_copy(update={"outcome": "lost", "ended_at": now}) if each.outcome == "running" else each
                for each in run.attempts
            ]
            run.attempt += 1
            run.attempts.append(AttemptRecord(attempt=run.attempt, worker=worker, started_at=now, outcome="running"))
            run.state, run.free_at, run.started_at = State.RUNNING, now + self._lease, run.started_at or now
            return Claimed(
                attempt=run.attempt,
                tries=tries + 1,
                settling=tries >= spec.max_attempts,
                submitted_at=run.submitted_at,
                pins=None if run.pins is None else _pins(run.pins),
                plan=None if run.plan is None else parse_json(Plan, run.plan, what="plan"),
                cancelled=run.cancel_wanted,
            )

    def heartbeat(self, run_id: UUID, attempt: int) -> bool:
        with self._using:
            run = self._mine(run_id, attempt)
            run.free_at = self._clock.now() + self._lease
            return run.cancel_wanted

    def lease(self, run_id: UUID, attempt: int, *, shared: Sequence[str], exclusive: Sequence[str]) -> UUID | None:
        with self._using:
            run = self._mine(run_id, attempt)
            in_the_way = [
                other_id
                for other_id, other in self._runs.items()
                if other is not run
                for dataset, alone in other.leases.items()
                if dataset in exclusive or (dataset in shared and alone)
            ]
            if in_the_way:
                return min(in_the_way)
            run.leases = dict.fromkeys(shared, False) | run.leases | dict.fromkeys(exclusive, True)
            return None

    def pin(self, run_id: UUID, attempt: int, pins: Sequence[Pin]) -> tuple[Pin, ...]:
        with self._using:
            run = self._mine(run_id, attempt)
            if run.pins is None:
                run.pins = [pin.to_json() for pin in pins]
            return _pins(run.pins)

    def plan(self, run_id: UUID, attempt: int, plan: Plan) -> Plan:
        with self._using:
            run = self._mine(run_id, attempt)
            if run.cancel_wanted:
                raise CancelWanted(f"run {run_id}: a cancel was asked before there was a plan")
            run.plan = run.plan or plan.to_json()
            return parse_json(Plan, run.plan, what="plan")

    def void(self, run_id: UUID, attempt: int, plan_id: UUID) -> None:
        with self._using:
            run = self._mine(run_id, attempt)
            if run.plan is not None and parse_json(Plan, run.plan, what="plan").plan_id == plan_id:
                run.plan = run.pins = None

    def cancel(self, run_id: UUID) -> Literal["asked", "too late", "over"]:
        with self._using:
            run = self._runs.get(run_id)
            if run is None:
                raise SpecError(
                    f"run {run_id}: expected a run that was submitted, got none", hint="runner runs lists them"
                )
            if run.manifest is not None:
                return "over"
            if run.plan is not None:
                return "too late"
            run.cancel_asked_at = run.cancel_asked_at or self._clock.now()
            if run.state is State.QUEUED:
                run.free_at = None
            return "asked"

    def cancel_wanted(self, run_id: UUID) -> bool:
        with self._using:
            return run_id in self._runs and self._runs[run_id].cancel_wanted

    def release(
        self,
        run_id: UUID,
        attempt: int,
        *,
        outcome: Literal["retry", "handed back"],
        failure: Failure | None,
        wait_s: float,
    ) -> None:
        with self._using:
            run = self._mine(run_id, attempt)
            run.state = State.QUEUED
            run.free_at = None if run.cancel_wanted else self._clock.now() + timedelta(seconds=wait_s)
            self._end_attempt(run, attempt, outcome, failure)

    def attempts(self, run_id: UUID) -> tuple[AttemptRecord, ...]:
        with self._using:
            return tuple(self._runs[run_id].attempts) if run_id in self._runs else ()

    def plan_of(self, run_id: UUID) -> Plan:
        """For tests: the plan in force."""
        raw = self._runs[run_id].plan
        assert raw is not None, f"run {run_id} has no plan"
        return parse_json(Plan, raw, what="plan")

    def now(self) -> datetime:
        return self._clock.now()

    def decide(self, manifest: Manifest, *, attempt: int) -> None:
        with self._using:
            run = self._mine(manifest.run_id, attempt)
            run.state, run.free_at, run.manifest = manifest.state, None, manifest.to_json()
            run.leases = {}
            self._end_attempt(run, attempt, manifest.state.value, manifest.failure)

    def mark_recorded(self, run_id: UUID) -> None:
        with self._using:
            if run_id in self._runs:
                self._runs[run_id].recorded = True

    def spec(self, run_id: UUID) -> JobSpec | None:
        with self._using:
            return parse_spec(self._runs[run_id].spec) if run_id in self._runs else None

    def manifest(self, run_id: UUID) -> Manifest | None:
        with self._using:
            raw = self._runs[run_id].manifest if run_id in self._runs else None
            return None if raw is None else _manifest(raw)

    def run(self, run_id: UUID) -> RunRow | None:
        with self._using:
            return _row(self._runs[run_id]) if run_id in self._runs else None

    def runs(
        self,
        *,
        limit: int,
        pipeline: str | None = None,
        stage: Stage | None = None,
        state: State | None = None,
        pipeline_run: UUID | None = None,
    ) -> list[RunRow]:
        with self._using:
            rows = [
                row
                for row in map(_row, self._runs.values())
                if pipeline in (None, row.pipeline)
                and stage in (None, row.stage)
                and state in (None, row.state)
                and pipeline_run in (None, row.pipeline_run)
            ]
        return sorted(rows, key=lambda row: (row.submitted_at, row.run_id), reverse=True)[:limit]

    def newest(self, dataset: str) -> str | None:
        published = [
            (manifest.decided_at, manifest.run_id, output.snapshot)
            for manifest in self._manifests()
            for output in manifest.outputs
            if output.dataset == dataset and output.branch is None and output.snapshot is not None
        ]
        return max(published)[2] if published else None

    def upstream(self, dataset: str, snapshot: str) -> list[Edge]:
        return self._walk((dataset, snapshot), _made, _read)

    def downstream(self, dataset: str, snapshot: str) -> list[Edge]:
        return self._walk((dataset, snapshot), _read, _made)

    def _walk(self, start: _End, here: Callable[[Edge], _End], there: Callable[[Edge], _End]) -> list[Edge]:
        known = [edge for manifest in self._manifests() for edge in edges(manifest)]
        found = dict[Edge, None]()
        waiting = [start]
        while waiting:
            end = waiting.pop()
            fresh = [edge for edge in known if here(edge) == end and edge not in found]
            found |= dict.fromkeys(fresh)
            waiting += [there(edge) for edge in fresh]
        return list(found)

    def _manifests(self) -> list[Manifest]:
        with self._using:
            return [_manifest(run.manifest) for run in self._runs.values() if run.manifest is not None]

    def _mine(self, run_id: UUID, attempt: int) -> _Run:
        run = self._runs.get(run_id)
        if run is None or run.attempt != attempt or run.state is not State.RUNNING:
            raise LostLease(f"run {run_id}: attempt {attempt} is not the one in force")
        return run

    def _end_attempt(self, run: _Run, attempt: int, outcome: str, failure: Failure | None) -> None:
        ended = {"outcome": outcome, "failure": failure, "ended_at": self._clock.now()}
        run.attempts = [each.model_copy(update=ended) if each.attempt == attempt else each for each in run.attempts]


_End = tuple[str | None, str | None]


def _made(edge: Edge) -> _End:
    return edge.output, edge.output_snapshot


def _read(edge: Edge) -> _End:
    return edge.input, edge.input_snapshot


def _manifest(raw: str) -> Manifest:
    return parse_json(Manifest, raw, what="manifest")


def _pins(raw: Sequence[str]) -> tuple[Pin, ...]:
    return tuple(parse_json(Pin, each, what="pin") for each in raw)


def _row(run: _Run) -> RunRow:
    spec = parse_spec(run.spec)
    manifest = None if run.manifest is None else _manifest(run.manifest)
    return RunRow(
        run_id=spec.run_id,
        effect=spec.effect,
        pipeline=spec.pipeline,
        task=spec.task,
        stage=spec.stage,
        state=run.state,
        attempt=run.attempt,
        max_attempts=spec.max_attempts,
        logical_time=spec.logical_time,
        submitted_at=run.submitted_at,
        started_at=run.started_at,
        decided_at=manifest.decided_at if manifest else None,
        failure=manifest.failure if manifest else None,
        rows=manifest.rows if manifest else None,
        commit=spec.logic.commit,
        pipeline_run=spec.pipeline_run,
    )
