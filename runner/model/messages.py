"""What worker and engine say to each other over the child's socket: typed, JSON, versioned by being one release."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, Field, TypeAdapter

from runner.model.errors import Failure
from runner.model.manifest import Column, Fingerprint, Pin, SourceRecord, Step
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
    workspace: str
    """Folder of the logic at its commit, `logic.path` applied."""
    scratch: str
    """Folder for the engine's own files; results go to `<scratch>/out/`."""
    resources: Resources
    publish: Literal["all", "passing"] = "all"
    """Whether a failed test keeps back every output, or those that it guards and what is made of them."""
    stamp: Stamp


class EngineOutput(Strict):
    """One output as the engine left it in scratch."""

    dataset: str
    files: tuple[EngineFile, ...]
    rows: int | None
    columns: tuple[Column, ...] | None
    fingerprint: Fingerprint
    claimed_inputs: tuple[str, ...] | None
    """Aliases of inputs, or names of sources that no input declares; None where the engine cannot tell."""
    quarantine: bool = False


class EngineFile(Strict):
    path: RelativePath
    """Relative to `<scratch>/out/`."""
    rows: int | None = None
    sha256: str | None = None
    source: SourceRecord | None = None


class EngineResult(Strict):
    """What the engine did. An audit in the worker decides what it is worth."""

    outputs: tuple[EngineOutput, ...]
    steps: tuple[Step, ...]
    counts: dict[str, int] = {}
    packages: dict[str, str]
    claims_known: bool = True
    """False where the logic cannot say what it reads."""
    failure: Failure | None = None
    """A finding about the data that the engine's own rules make (too many bad rows)."""
    artifacts: tuple[RelativePath, ...] = ()
    """What the work's own tools say of it: files relative to `<scratch>/artifacts/`, kept beside the record."""


class Open(Strict):
    """engine -> worker: open this URI; answered by `Opened` with a descriptor, or by `Refused`."""

    type: Literal["open"] = "open"
    uri: str


class Opened(Strict):
    type: Literal["opened"] = "opened"
    size: int


class Refused(Strict):
    type: Literal["refused"] = "refused"
    message: str


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
    steps: tuple[Step, ...] = ()


FromEngine = Annotated[Open | Primed | Progress | Done | Failed, Field(discriminator="type")]
ToEngine = Annotated[Job | Opened | Refused, Field(discriminator="type")]

FROM_ENGINE: TypeAdapter[Any] = TypeAdapter(FromEngine)
TO_ENGINE: TypeAdapter[Any] = TypeAdapter(ToEngine)

EngineOutput.model_rebuild()
