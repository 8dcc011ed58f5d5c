"""The run manifest: the record of a terminal run, and the parts of it that plan, ledger and snapshots share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import AwareDatetime, Field

from runner.model.errors import Failure
from runner.model.names import Commit, DatasetName
from runner.model.ranges import WHOLE_TABLE
from runner.model.spec import JobSpec, Mode, Partition
from runner.model.strict import Strict


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = (State.SUCCEEDED, State.FAILED, State.CANCELLED)

SnapshotId = Annotated[str, Field(pattern=r"^([0-9]+|none|rerun_[0-9a-f]{32})$")]
"""An Iceberg snapshot id, or a prefix's version. Text, because JSON readers round integers above 2**53."""

NO_SNAPSHOT = "none"
"""The state of a table that had nothing published."""


class Column(Strict):
    name: str
    type: str
    """As Iceberg writes it: `int`, `decimal(12,2)`, `list<string>`."""


class Fingerprint(Strict):
    """Equal for equal rows in any order; leaves out `_run_id` and `_processed_at`.

    `hash` is DuckDB's `sum(hash(row))`, or the SHA-256 of a file that is kept as it came. DuckDB's `hash()` has
    changed between releases, so two fingerprints compare only where `engine` is the same.
    """

    rows: int | None
    hash: str
    engine: str
    columns: dict[str, str] = {}
    """The same of each column alone, so that two that differ show where."""

    def compare(self, other: Self) -> Literal["identical", "different", "not comparable"]:
        if self.engine != other.engine:
            return "not comparable"
        return "identical" if (self.rows, self.hash) == (other.rows, other.hash) else "different"

    def different_columns(self, other: Self) -> tuple[str, ...]:
        """Columns whose values are others, or that only one of the two has; none where one does not tell of columns."""
        if not self.columns or not other.columns:
            return ()
        names = [*self.columns, *(name for name in other.columns if name not in self.columns)]
        return tuple(name for name in names if self.columns.get(name) != other.columns.get(name))


class SourceRecord(Strict):
    """Where a landed file came from, as its server described it."""

    url: str
    etag: str | None
    last_modified: str | None
    content_type: str | None
    fetched_at: AwareDatetime


class FileRecord(Strict):
    """One immutable file of a dataset."""

    uri: str
    bytes: int
    rows: int | None = None
    sha256: str | None = None
    source: SourceRecord | None = None


class Step(Strict):
    """One thing the engine did or checked: a dbt node, a contract rule, a fetched source."""

    name: str
    kind: str
    status: Literal["success", "pass", "warn", "fail", "error", "skipped"]
    seconds: float | None = None
    rows: int | None = None
    """Rows written by a model or seed; rows that break a test or rule."""
    message: str | None = None
    compiled_sha256: str | None = None


class Pin(Strict):
    """The snapshot of an input, or of an output's own state, that every attempt of this run reads."""

    as_: Annotated[str, Field(alias="as")]
    dataset: DatasetName
    snapshot: SnapshotId
    metadata: str
    """URI of the document that lists the snapshot's files; empty where there is no snapshot."""
    state: bool = False
    """True for an output's state: `snapshot` is `none` where the table had nothing published yet."""


class InputRecord(Strict):
    """One input, as three witnesses tell it: the spec declared it, the logic claims it, the broker saw it read."""

    dataset: str
    as_: Annotated[str | None, Field(alias="as")] = None
    snapshot: str | None = None
    declared: bool
    claimed: bool | None
    """None where the logic cannot tell."""
    observed: Literal["rows", "metadata", "none"] | None
    """`rows`: data files were opened; `metadata`: a statement used it without any (a count); None: not watched."""
    files: int = 0
    bytes: int = 0


class OutputRecord(Strict):
    """One output: what was planned, and the snapshot it became."""

    dataset: DatasetName
    from_: Annotated[str | None, Field(alias="from")] = None
    mode: Mode
    partition_by: Partition | None = None
    range: str = WHOLE_TABLE
    """What of the table this is all of: of two runs that write the same range the later wins."""
    key: tuple[str, ...] = ()
    branch: str | None
    """None is the published table; a rerun's own branch otherwise."""
    base: SnapshotId | None
    """What was published when this was planned."""
    state: SnapshotId | None = None
    """The snapshot that this was computed from, `none` among them: the table has to be there still."""
    files: tuple[FileRecord, ...]
    rows: int | None
    columns: tuple[Column, ...] | None
    """None for files that are kept as they came."""
    fingerprint: Fingerprint
    claimed_inputs: tuple[str, ...] | None
    """The datasets that the logic says this output is made of; None where it cannot tell."""
    quarantine: bool = False
    snapshot: SnapshotId | None = None
    """None until it has landed."""
    comparison: Literal["identical", "different", "not comparable"] | None = None
    """For a rerun: this output beside the one of the run it repeats."""
    different_columns: tuple[str, ...] = ()
    """For a rerun that came out different: the columns that hold other values."""
    repeated_rows: int | None = None
    """For a rerun: how many rows the run it repeats had made."""

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


class PackageRecord(Strict):
    """A dbt package that was fetched for the run, as the project's lock names it."""

    name: str
    version: str
    """The hub's version, git's commit, or `tarball`."""
    source: str
    """Its page on the hub, the git repository (`#` and the folder in it), or the tarball's address."""
    sha256: str | None
    """Of the archive; None for a git commit, which is a hash of what it holds itself."""


class LogicRecord(Strict):
    """The logic that ran: the tree was recomputed from the files that the engine was given."""

    repo: str
    commit: Commit
    path: str
    tree: Commit
    origin: Literal["repository", "archive"]
    committed_at: AwareDatetime
    production: bool | None = None
    """Whether the production ref reaches the commit; None where nobody had to ask."""
    dirty: bool = False
    """True where the commit was made of a working tree that its author had not committed."""
    packages: tuple[PackageRecord, ...] = ()
    """What was fetched; packages that the commit itself holds are part of its tree."""


class Walls(Strict):
    """What kept the job's code in. A seccomp filter and no_new_privs are always among it: without, no job runs."""

    landlock: int | None
    """The version of the kernel's Landlock that was used; None where the kernel has none."""
    account: Literal["own", "worker"]
    """Whether the code ran under a user id of its own, or the worker's."""

    def __str__(self) -> str:
        landlock = f"Landlock {self.landlock}" if self.landlock else "no Landlock"
        account = "a user id of its own" if self.account == "own" else "the worker's user id"
        return f"seccomp, {landlock}, {account}"


class Software(Strict):
    runner: str
    python: str
    packages: dict[str, str]
    image: str | None = None
    """The image's digest where the platform tells it."""
    walls: Walls | None = None
    """None where no job code ran."""


class Report(Strict):
    """What one attempt found out, up to the plan: all that the manifest says besides states and snapshots."""

    logic: LogicRecord | None = None
    software: Software | None = None
    inputs: tuple[InputRecord, ...] = ()
    steps: tuple[Step, ...] = ()
    counts: dict[str, int] = {}
    """Named numbers that must add up: `rows_read` = `rows_loaded` + `rows_quarantined`."""
    artifacts: tuple[FileRecord, ...] = ()
    """What the work's own tools say of it: dbt's manifest, run results, catalog and documentation page."""


class Plan(Strict):
    """What will be committed, decided once per run: whoever finds it carries it out and executes nothing."""

    plan_id: UUID
    run_id: UUID
    attempt: int
    outputs: tuple[OutputRecord, ...]
    report: Report
    failure: Failure | None = None
    """A run that fails its audit may still land its quarantine."""


class AttemptRecord(Strict):
    attempt: int
    worker: str
    started_at: AwareDatetime
    ended_at: AwareDatetime | None = None
    outcome: Literal["running", "succeeded", "failed", "cancelled", "retry", "lost", "handed back"]
    failure: Failure | None = None
    log: str | None = None


class Manifest(Strict):
    """The record of a terminal run: decided once in the ledger, then written beside the data, never changed."""

    manifest_version: Literal[1] = 1
    run_id: UUID
    effect: UUID
    state: Literal[State.SUCCEEDED, State.FAILED, State.CANCELLED]
    failure: Failure | None = None
    spec: JobSpec
    spec_sha256: str
    plan_id: UUID | None = None
    attempt: int
    """The attempt that decided; each output's files say which attempt made them."""
    submitted_at: AwareDatetime
    decided_at: AwareDatetime
    attempts: tuple[AttemptRecord, ...]
    pins: tuple[Pin, ...] = ()
    outputs: tuple[OutputRecord, ...] = ()
    report: Report = Report()

    @property
    def rows(self) -> int | None:
        """Rows that landed, quarantine aside; None where nothing that has rows did (files kept as they came)."""
        counted = [each.rows for each in self.outputs if each.snapshot is not None and not each.quarantine]
        return sum(rows for rows in counted if rows is not None) if any(rows is not None for rows in counted) else None
