"""What the flow needs of the world, as protocols. Adapters implement them; in-memory twins pass the same tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol
from uuid import UUID

from runner.model.errors import Failure, InfrastructureError
from runner.model.lineage import Edge as Edge
from runner.model.manifest import (
    AttemptRecord,
    Manifest,
    OutputRecord,
    PackageRecord,
    Pin,
    Plan,
    Software,
    State,
    Walls,
)
from runner.model.messages import EngineResult, FieldIds, Job, Progress
from runner.model.policy import LEASE_S as LEASE_S
from runner.model.spec import JobSpec, Partition, Stage

SHORT_ID_CHARACTERS = 8
"""A run may be named by the last so many characters of its id; the ledger has an index for it."""


class Clock(Protocol):
    def now(self) -> datetime:
        """The time, with its zone."""


# ---------------------------------------------------------------- queue


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One delivery of one message. `receipt` is good for this delivery only."""

    stage: Stage
    body: str
    receipt: str
    message_id: str
    receives: int = 1
    """How often the message has been delivered by now, about."""


class NoQueue(InfrastructureError):
    """The stage has no queue here: it is not deployed, or queues go by another name."""


class Queue(Protocol):
    """A queue a stage, at least once, with a dead-letter queue beside it.

    Raises `InfrastructureError`, and of that `NoQueue` where there is none.
    """

    def send(self, stage: Stage, body: str) -> None: ...

    def receive(self, stage: Stage, *, wait_s: float) -> Delivery | None:
        """One message, hidden from others for a lease, or None after `wait_s` (at most 20, SQS's longest poll)."""

    def hide(self, delivery: Delivery, *, seconds: float) -> None:
        """Keep the message from others for `seconds` from now; 0 hands it back at once. A gone message is no error."""

    def delete(self, delivery: Delivery) -> None:
        """Acknowledge. A message that is gone already is no error."""

    def bury(self, delivery: Delivery, *, reason: str) -> None:
        """Move a message to the dead-letter queue, with the reason beside it."""

    def depth(self, stage: Stage) -> int:
        """About how many messages there are, hidden ones too."""


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A message in a stage's dead-letter queue. `receipt` is good for this look only."""

    stage: Stage
    body: str
    receipt: str
    message_id: str
    reason: str | None
    """None where nobody gave one: the queue itself moved it, after too many deliveries."""
    sent_at: datetime
    """When it came here; what the queue itself moved keeps the time at which it was first sent."""
    receives: int = 1
    """How often it has been received by now, looks among them, about."""


class DeadLetters(Protocol):
    """A queue a stage, of messages that wait for a person. Raises `InfrastructureError`."""

    def look(self, stage: Stage, *, limit: int) -> Sequence[DeadLetter]:
        """Up to `limit` messages, each once, hidden from others for 60 seconds: put back or remove them before."""

    def put_back(self, letter: DeadLetter) -> None:
        """Let others see it at once."""

    def remove(self, letter: DeadLetter) -> None:
        """A message that is gone already is no error."""

    def depth(self, stage: Stage) -> int:
        """About how many there are, hidden ones too."""


# ---------------------------------------------------------------- objects


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object as a listing has it."""

    key: str
    bytes: int
    stored_at: datetime
    """By the store's clock."""


class Objects(Protocol):
    """The lake's bucket. Keys are relative to it. Raises `InfrastructureError`."""

    def check(self) -> None:
        """One small request. Raises `InfrastructureError` or `TransientError` where the bucket does not answer."""

    def uri(self, key: str) -> str: ...

    def get(self, key: str, *, at_most: int | None = None) -> bytes | None:
        """The object, or None if there is none. Raises `DataError` for one of more than `at_most` bytes."""

    def get_range(self, key: str, start: int, end: int) -> bytes | None:
        """Its bytes from `start` to before `end`, fewer where it ends before; None if there is no object."""

    def put(self, key: str, body: bytes) -> None: ...

    def put_if_absent(self, key: str, body: bytes) -> bool:
        """Create the object unless one is there (If-None-Match). True if these bytes are what is there now."""

    def list(self, prefix: str) -> list[str]:
        """Keys below `prefix`, sorted."""

    def exists(self, key: str) -> bool: ...

    def put_file(self, key: str, path: Path) -> None: ...

    def get_file(self, key: str, path: Path) -> None:
        """Download to `path`, which appears only when whole. Raises `FileNotFoundError` if there is no object."""


# ---------------------------------------------------------------- datasets


@dataclass(frozen=True, kw_only=True)
class CommitTag:
    """Who made a snapshot, kept in its summary: what `look first` looks for."""

    run_id: UUID
    effect: UUID
    plan_id: UUID
    attempt: int
    logical_time: datetime
    submitted_at: datetime
    range: str
    """What of the table it wrote, as `runner.model.ranges` names it."""


@dataclass(frozen=True, kw_only=True)
class Landed:
    """A snapshot, and who made it; no tag means a writer from outside."""

    snapshot: str
    tag: CommitTag | None
    fence: bool = False
    """True for one that changes nothing: its run gave a plan up, and nothing built before it may land any more."""


class LostRace(Exception):
    """Somebody's snapshot came between load and commit: nothing of ours landed. Load again and look."""


class LoadedDataset(Protocol):
    """A dataset as it was at one moment. `commit` lands only if nobody has committed since."""

    @property
    def exists(self) -> bool:
        """Whether there is a table already; it may have no snapshot yet. For a prefix, whether anything landed."""

    @property
    def partition_by(self) -> Partition | None:
        """As the table is partitioned now; None if it is not, or is not there."""

    @property
    def column_types(self) -> Mapping[str, str]:
        """The table's columns that have nothing inside them, each with its type as Iceberg writes it."""

    @property
    def field_ids(self) -> Mapping[str, FieldIds]: ...

    @property
    def last_field_id(self) -> int: ...

    def head(self, branch: str | None) -> Landed | None: ...

    def landed(self, run_id: UUID) -> Sequence[Landed]:
        """Every snapshot that this run has published here, on any branch; its fences are none."""

    def history(self, branch: str | None) -> Sequence[Landed]:
        """The branch's snapshots as far back as they are kept, newest first. Each may cost a request when it is met."""

    def commit(self, output: OutputRecord, tag: CommitTag) -> str:
        """Publish `output.files` to its branch by its mode, in one snapshot; returns its id.

        `replace` and `merge`: they become the whole content. `replace_where`: they take the place of the partition
        `output.range`, whose old files go. `append`: they come to what is there, and take the place of files of the
        same effect. A branch that is not there yet begins with what is published.
        Raises `LostRace` if it did not land because another commit came first, `SchemaError` if the columns or the
        partitions cannot become the table's, and `TransientError` if it is not known whether it landed.
        """

    def fence(self, branch: str | None, tag: CommitTag) -> None:
        """Add a snapshot that changes nothing and says that `tag`'s run gave its plan up. Raises as `commit`.

        Whoever loaded the dataset before loses the race then, and finds it when loading again: on the branch, or,
        for a table that has no such branch yet, on what is published.
        """


@dataclass(frozen=True, kw_only=True)
class ServedFile:
    """A file that the broker may hand to the engine."""

    uri: str
    bytes: int
    holds_rows: bool
    """False for metadata: reading it alone is no reading of rows."""


class Datasets(Protocol):
    """Tables, or prefixes of files: versioned datasets. Raises `InfrastructureError`."""

    def pin(self, dataset: str, alias: str, snapshot: str | None) -> Pin:
        """The named snapshot, or the newest one. Raises `DataError` if there is none."""

    def state(self, dataset: str, alias: str, snapshot: str | None) -> Pin:
        """What an output begins from: the named snapshot, the newest one, or `none` where nothing is published.

        Raises `DataError` where the named one has expired, and `SpecError` for a prefix, which keeps no state.
        """

    def files(self, pin: Pin) -> Sequence[ServedFile]:
        """Exactly the files of the pinned snapshot; none for `none`. Raises `DataError` if it has expired."""

    def load(self, dataset: str) -> LoadedDataset:
        """The dataset as it is now; one that does not exist yet is empty."""


# ---------------------------------------------------------------- logic


@dataclass(frozen=True)
class Checkout:
    """A commit's tree as files, verified: `tree` was recomputed from them."""

    commit: str
    tree: str
    origin: Literal["repository", "archive"]
    committed_at: datetime


class LogicSource(Protocol):
    """git. Raises `LogicError`, `InfrastructureError`, and `SpecError` for an address that is not allowed."""

    def resolve_ref(self, repo: str, ref: str) -> str: ...

    def read_file(self, repo: str, commit: str, path: str) -> bytes: ...

    def reached(self, repo: str, commit: str, ref: str) -> bool:
        """Whether the branch or tag `ref` contains the commit, or once did when this was asked."""

    def checkout(self, repo: str, commit: str, workspace: Path) -> Checkout: ...


# ---------------------------------------------------------------- packages


class Packages(Protocol):
    """dbt packages that a project names and its commit does not hold."""

    def install(self, project: Path, *, clone: Path, scratch: Path) -> tuple[PackageRecord, ...]:
        """Put those that the project's lock names where dbt looks for them; `clone` is the commit's whole tree.

        Raises `LogicError` where there is no lock, where it is of other packages, or where a package may not be
        fetched or is not what it was; `RateLimitError`, `TransientError` or `InfrastructureError` where a retry may
        help.
        """


# ---------------------------------------------------------------- secrets


class Secrets(Protocol):
    def get(self, name: str) -> str:
        """The secret's text. Raises `SpecError` where there is none of that name (or no right to read it),
        `InfrastructureError` or `TransientError` where the store does not answer.
        """


# ---------------------------------------------------------------- engine


@dataclass(frozen=True, kw_only=True)
class Read:
    """What the broker saw the engine do with one input."""

    used: bool
    files: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The engine's own account, and the broker's; `reads` is None where no broker watched."""

    result: EngineResult
    reads: Mapping[str, Read] | None
    walls: Walls | None = None
    """What kept the job's code in; None where no job code ran."""


class Engine(Protocol):
    """Does the work of a job in its scratch. Raises the category of error that the work ended with."""

    def prepare(self) -> None:
        """Begin to get ready for a first job. Raises `InfrastructureError` where none may run on this machine."""

    def execute(
        self,
        job: Job,
        *,
        served: Mapping[str, Sequence[ServedFile]],
        secrets: Mapping[str, str],
        say: Callable[[Progress], None],
    ) -> Execution:
        """`served` maps each input's alias to the files that may be opened for it, `secrets` names to texts."""

    def stop(self) -> None:
        """End the execution at hand, if there is one, which then raises `InfrastructureError`. For another thread."""

    def close(self) -> None:
        """End what was made ready; what is executed afterwards is made ready again."""


# ---------------------------------------------------------------- ledger


class LostLease(Exception):
    """The run is another attempt's now, or decided. Stop, touch nothing, say nothing to the queue."""


class CancelWanted(Exception):
    """Somebody asked to cancel the run, and it has no plan yet: it is to be decided cancelled."""


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """The run is this attempt's. With a plan, roll it forward; `settling` means that no try is left to execute."""

    attempt: int
    tries: int
    """How many attempts have been spent, this one included; one that was handed back is not."""
    settling: bool
    submitted_at: datetime
    pins: tuple[Pin, ...] | None
    plan: Plan | None
    cancelled: bool
    """Whether somebody asked to cancel it, which a run with a plan does not hear."""


@dataclass(frozen=True, kw_only=True)
class Busy:
    """Another attempt holds the lease for so much longer, or a back-off runs."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Decided:
    manifest: Manifest
    recorded: bool


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run as the ledger lists it."""

    run_id: UUID
    effect: UUID
    pipeline: str
    task: str
    stage: Stage
    state: State
    attempt: int
    max_attempts: int
    logical_time: datetime
    submitted_at: datetime
    started_at: datetime | None
    decided_at: datetime | None
    failure: Failure | None
    rows: int | None
    commit: str
    pipeline_run: UUID | None


@dataclass(frozen=True, kw_only=True)
class LapsedLease:
    """A run whose worker is heard of no more, and that nobody has taken since."""

    run_id: UUID
    attempt: int
    worker: str
    expired_at: datetime


@dataclass(frozen=True, kw_only=True)
class Resend:
    """A run whose message is to be sent now, by whoever got this."""

    run_id: UUID
    spec: str
    """As it was stored, whichever release wrote it."""
    noted: bool
    """Whether anybody noted that it was sent before: else its submit may have been cut short."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the ledger knows of a run that something was found of."""

    spec: str
    decided_at: datetime | None


class Ledger(Protocol):
    """Postgres. Every write of an attempt requires that the run is still that attempt's and undecided.

    Raises `LostLease` where it is not, and `InfrastructureError` where the ledger cannot be reached.
    """

    def submit(self, spec: JobSpec) -> datetime:
        """Store the spec; the same spec again is no error, another under the same run_id is a `ConflictError`."""

    def sent(self, run_ids: Sequence[UUID]) -> None:
        """Note that messages of these runs have just been queued."""

    def claim(self, spec: JobSpec, *, worker: str) -> Claimed | Busy | Decided:
        """Take the run for a lease, under the next attempt number. `ConflictError` as for `submit`."""

    def heartbeat(self, run_id: UUID, attempt: int) -> bool:
        """Renew the lease; returns whether somebody asked to cancel the run and it has no plan yet."""

    def lease(self, run_id: UUID, attempt: int, *, shared: Sequence[str], exclusive: Sequence[str]) -> UUID | None:
        """Take these tables for the run until it is decided, all or none; returns a run that is in the way, if one is.

        Any number of runs may share a table; who has it exclusively has it alone. What the run holds already it keeps.
        """

    def pin(self, run_id: UUID, attempt: int, pins: Sequence[Pin]) -> tuple[Pin, ...]:
        """Store the pins unless an earlier attempt did; returns those in force."""

    def plan(self, run_id: UUID, attempt: int, plan: Plan) -> Plan:
        """Store the plan unless an earlier attempt did; returns the one in force. From here on a cancel is too late.

        Raises `CancelWanted` where one came before.
        """

    def void(self, run_id: UUID, attempt: int, plan_id: UUID) -> None:
        """Take back a plan of which nothing has landed, and the pins it was made from: they are to be found anew."""

    def cancel(self, run_id: UUID) -> Literal["asked", "too late", "over"]:
        """Ask that the run be cancelled. `too late` where it has a plan, `over` where it is decided.

        Raises `SpecError` where there is no such run.
        """

    def cancel_wanted(self, run_id: UUID) -> bool:
        """Whether somebody asked to cancel the run and it has no plan yet."""

    def release(
        self,
        run_id: UUID,
        attempt: int,
        *,
        outcome: Literal["retry", "handed back"],
        failure: Failure | None,
        wait_s: float,
    ) -> None:
        """Give the run back to the queue; nobody may claim it for `wait_s`."""

    def attempts(self, run_id: UUID) -> tuple[AttemptRecord, ...]: ...

    def now(self) -> datetime:
        """The ledger's own time, in UTC: hosts' clocks differ."""

    def decide(self, manifest: Manifest, *, attempt: int) -> None:
        """The one compare-and-set that ends a run: terminal state, whole manifest, lineage, in one transaction.

        `attempt` is the claim it is made under: another's where a manifest that S3 kept is put back.
        """

    def mark_recorded(self, run_id: UUID) -> None: ...

    def spec(self, run_id: UUID) -> JobSpec | None: ...

    def manifest(self, run_id: UUID) -> Manifest | None: ...

    def run(self, run_id: UUID) -> RunRow | None: ...

    def runs(
        self,
        *,
        limit: int,
        pipeline: str | None = None,
        stage: Stage | None = None,
        state: State | None = None,
        pipeline_run: UUID | None = None,
    ) -> list[RunRow]:
        """Newest first."""

    def newest(self, dataset: str) -> str | None:
        """The snapshot that the latest decided run published of a dataset; None if no run did."""

    def upstream(self, dataset: str, snapshot: str) -> list[Edge]:
        """The closure of what a dataset's snapshot was made of."""

    def downstream(self, dataset: str, snapshot: str) -> list[Edge]:
        """The closure of what was made of a dataset's snapshot."""


# ---------------------------------------------------------------- all together


@dataclass(frozen=True, kw_only=True)
class Ports:
    """All that a job's flow reaches the world by."""

    ledger: Ledger
    objects: Objects
    logic: LogicSource
    packages: Packages
    secrets: Secrets
    datasets: Callable[[str], Datasets]
    """The adapter that keeps a dataset, by the dataset's name: tables are kept otherwise than prefixes."""
    engine: Callable[[Stage], Engine]
    production_ref: str
    """The branch of a logic repository whose commits may publish to other than `dev_` datasets."""
    software: Software
    scratch: Path
    """Folder below which each attempt gets one of its own, deleted when it ends."""
    worker: str
    """Who we are, for the record: host and process."""
