"""What worker, zygote and engine say to each other over sockets: typed, JSON, versioned by being one release."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, Field, TypeAdapter

from runner.model.errors import Failure
from runner.model.manifest import Column, Fingerprint, PackageRecord, Pin, SourceRecord, Step, Walls
from runner.model.names import RelativePath
from runner.model.spec import Output, Resources, Work
from runner.model.strict import Strict


class JobInput(Strict):
    """An input as the engine gets it: a pinned table by its metadata document, or a prefix by its files."""

    pin: Pin
    files: tuple[str, ...] = ()
    """URIs, for a prefix; a table's files are found through its metadata."""


class FieldIds(Strict):
    """Iceberg field ids of a column: its own, and those inside it by name (`element`, `key`, `value`, or a field's)."""

    id: int
    children: dict[str, FieldIds] = {}


class JobOutput(Strict):
    """An output as the engine gets it, with the field ids that its table has given out so far."""

    output: Output
    partition: str | int | None = None
    """The partition that all rows have to be of, as `runner.model.ranges` writes it; None for no such rule."""
    state: Pin | None = None
    """What is published now: to be restored as the relation `from`, or to be merged into."""
    field_ids: dict[str, FieldIds] = {}
    last_field_id: int = 0
    column_types: dict[str, str] = {}
    """The table's own, as `Column.type` writes them; a column that is not here is not held to one."""


class Stamp(Strict):
    """What `_logic_commit`, `_run_id` and `_processed_at` are to say."""

    logic_commit: str
    run_id: UUID
    processed_at: AwareDatetime


class Job(Strict):
    """worker -> engine: the work, and everything that the engine may know."""

    type: Literal["job"] = "job"
    work: Work
    inputs: tuple[JobInput, ...]
    outputs: tuple[JobOutput, ...]
    repo: str = ""
    """Whose logic it is: with the stamp's commit, the name of what may be kept for its next runs."""
    packages: tuple[PackageRecord, ...] = ()
    """What was fetched for it; packages that the commit itself holds are not among them."""
    workspace: str
    """Folder of the logic at its commit, `logic.path` applied."""
    scratch: str
    """Folder for the engine's own files; results go to `<scratch>/out/`."""
    resources: Resources
    publish: Literal["all", "passing"] = "all"
    """Whether a failed test keeps back every output, or those that it guards and what is made of them."""
    stamp: Stamp


_FIRST_FAULT = Field(fail_fast=True)
"""A child that means harm sends millions of items that are none; to note each fault would take 500 times their size."""


class Parse(Strict):
    """worker -> engine, in a job's place: make what parsing its project comes to, and nothing else."""

    type: Literal["parse"] = "parse"
    job: Job


class EngineOutput(Strict):
    """One output as the engine left it in scratch."""

    dataset: str
    files: Annotated[tuple[EngineFile, ...], _FIRST_FAULT]
    rows: Annotated[int, Field(ge=0, lt=2**63)] | None
    columns: Annotated[tuple[Column, ...], _FIRST_FAULT] | None
    fingerprint: Fingerprint
    claimed_inputs: Annotated[tuple[Annotated[str, Field(pattern=r"^[^\x00]*$")], ...], _FIRST_FAULT] | None
    """Aliases of inputs, or names of sources that no input declares; None where the engine cannot tell."""
    quarantine: bool = False


class EngineFile(Strict):
    path: RelativePath
    """Relative to `<scratch>/out/`."""
    rows: int | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    source: SourceRecord | None = None


class EngineResult(Strict):
    """What the engine did. An audit in the worker decides what it is worth."""

    outputs: Annotated[tuple[EngineOutput, ...], _FIRST_FAULT]
    steps: Annotated[tuple[Step, ...], _FIRST_FAULT]
    counts: dict[str, int] = {}
    packages: dict[str, str]
    claims_known: bool = True
    """False where the logic cannot say what it reads."""
    failure: Failure | None = None
    """A finding about the data that the engine's own rules make (too many bad rows)."""
    artifacts: Annotated[tuple[RelativePath, ...], _FIRST_FAULT] = ()
    """What the work's own tools say of it: files relative to `<scratch>/artifacts/`, kept beside the record."""


class Open(Strict):
    """engine -> worker: open this URI; answered by `Opened` with a descriptor, or by `Refused`."""

    type: Literal["open"] = "open"
    uri: str
    ask: int = 0
    """The answer has the same number: threads of the engine ask at the same time."""


class Opened(Strict):
    type: Literal["opened"] = "opened"
    size: int
    whole: bool
    """False where the bytes of the file have to be fetched before they are read."""
    ask: int = 0


class Fetch(Strict):
    """engine -> worker: have these bytes of a file brought; answered by `Fetched` or by `Refused`."""

    type: Literal["fetch"] = "fetch"
    uri: str
    start: int
    end: int
    ask: int = 0


class Fetched(Strict):
    type: Literal["fetched"] = "fetched"
    ask: int = 0


class Refused(Strict):
    type: Literal["refused"] = "refused"
    message: str
    ask: int = 0


class Primed(Strict):
    """engine -> worker: the inputs' views are made; what is opened from now on is opened by the logic."""

    type: Literal["primed"] = "primed"


class Progress(Strict):
    """engine -> worker: a line for the run's log."""

    type: Literal["progress"] = "progress"
    level: Literal["debug", "info", "warning", "error"] = "info"
    message: str
    done: int | None = None
    total: int | None = None


class Done(Strict):
    type: Literal["done"] = "done"
    result: EngineResult


class Failed(Strict):
    """engine -> worker: it ended without a result; the steps it got through, and why it stopped."""

    type: Literal["failed"] = "failed"
    failure: Failure
    steps: Annotated[tuple[Step, ...], _FIRST_FAULT] = ()


class Limits(Strict):
    """What the kernel holds a child to (setrlimit(2)), in its units."""

    cpu_s: int
    data_bytes: int
    """Memory of its own, beyond what it shares with the zygote."""
    file_bytes: int
    open_files: int


class Start(Strict):
    """worker -> zygote: fork a child. Brings three descriptors: its socket, its output, and a file of its secrets."""

    type: Literal["start"] = "start"
    room: str
    """Its working folder; it may write to the folders in it that its user id may, and to nothing else."""
    limits: Limits


class End(Strict):
    """worker -> zygote: kill this child, if it is the one that runs; `Ended` follows as of any child."""

    type: Literal["end"] = "end"
    pid: int


class Ready(Strict):
    """zygote -> worker: warm, once; a `Failed` in its place says why no child can be had here."""

    type: Literal["ready"] = "ready"
    walls: Walls


class Started(Strict):
    type: Literal["started"] = "started"
    pid: int


class Ended(Strict):
    """zygote -> worker: the child is gone, and all that it left running with it."""

    type: Literal["ended"] = "ended"
    code: int
    """As `os.waitstatus_to_exitcode` has it: below zero it is the signal that killed it."""
    left_running: int
    """Processes of its making that had to be killed."""


FromZygote = Annotated[Ready | Started | Ended | Failed, Field(discriminator="type")]
ToZygote = Annotated[Start | End, Field(discriminator="type")]

FromEngine = Annotated[Open | Fetch | Primed | Progress | Done | Failed, Field(discriminator="type")]
ToEngine = Annotated[Job | Parse | Opened | Fetched | Refused, Field(discriminator="type")]

FROM_ZYGOTE: TypeAdapter[Any] = TypeAdapter(FromZygote)
TO_ZYGOTE: TypeAdapter[Any] = TypeAdapter(ToZygote)
FROM_ENGINE: TypeAdapter[Any] = TypeAdapter(FromEngine)
TO_ENGINE: TypeAdapter[Any] = TypeAdapter(ToEngine)

EngineOutput.model_rebuild()
