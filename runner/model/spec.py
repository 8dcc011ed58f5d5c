"""The job spec: the request, immutable, refused at the door where it is not exact."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from runner.model.errors import SpecError
from runner.model.names import (
    ColumnName,
    Commit,
    DatasetName,
    Identifier,
    RelationName,
    RelativePath,
    is_dev,
    is_table,
)
from runner.model.strict import MAX_DOCUMENT_BYTES, Strict, parse_json

_ENV_OF_THE_PROCESS = ("PYTHON", "LD_", "DYLD_", "LC_", "GLIBC_", "MALLOC_", "DBT_ENGINE_", "DBT_RECORDER_")
_ENV_NAMES_OF_THE_PROCESS = {"PATH", "HOME", "TMPDIR", "TMP", "TEMP", "TZ", "LANG", "LANGUAGE", "SHELL", "BASH_ENV"}
"""What the child's interpreter, its libraries or dbt's own insides would obey, whatever the project says."""


_SECRET_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_MAX_SECRET_NAME_CHARACTERS = 200


class Stage(StrEnum):
    """The stages that exist, each with a queue (and an image) of its own."""

    EXTRACT = "extract"
    LOAD = "load"
    TRANSFORM = "transform"
    QUERY = "query"


def _secret_name(value: str) -> str:
    if not _SECRET_NAME.fullmatch(value) or ".." in value or len(value) > _MAX_SECRET_NAME_CHARACTERS:
        raise ValueError(
            f"expected a secret's name ({_SECRET_NAME.pattern}, without `..`, "
            f"at most {_MAX_SECRET_NAME_CHARACTERS} characters), got {value!r}"
        )
    return value


SecretName = Annotated[
    str,
    AfterValidator(_secret_name),
    WithJsonSchema(
        {"type": "string", "pattern": f"^{_SECRET_NAME.pattern}$", "maxLength": _MAX_SECRET_NAME_CHARACTERS}
    ),
]


class SecretRef(Strict):
    """A secret by its name: all that spec, ledger and manifest hold of it. The worker reads the text when it runs."""

    secret: SecretName


def _kind_of_value(value: object) -> str:
    return "a reference" if isinstance(value, dict | SecretRef) else "a value"


_Secret = Annotated[SecretRef, Tag("a reference")]
_BY_KIND = Discriminator(_kind_of_value)
"""So that what is wrong with a value is said of the kind that it was meant to be."""

TextOrSecret = Annotated[Annotated[str, Tag("a value")] | _Secret, _BY_KIND]
ValueOrSecret = Annotated[Annotated[str | int | float | bool, Tag("a value")] | _Secret, _BY_KIND]


class Logic(Strict):
    """Whose logic runs: never a branch, always the commit."""

    repo: Annotated[str, Field(min_length=1, max_length=2048)]
    commit: Commit
    path: RelativePath = "."
    dirty: bool = False
    """True where the commit was made of a working tree that its author had not committed."""


class Source(Strict):
    """One file to fetch: where it is, and the name an output takes it by."""

    name: Identifier
    url: Annotated[str, Field(pattern=r"^https?://[^\s]+$", max_length=2048)]


class ExtractWork(Strict):
    """Fetch files over HTTP(S) as they are."""

    kind: Literal["extract"]
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]


Compression = Literal["auto", "none", "gzip", "zstd"]
"""`auto` goes by a file's first bytes, never by its name."""

Encoding = Literal[
    "utf-8",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "iso-8859-1",
    "iso-8859-15",
    "windows-1250",
    "windows-1252",
]
"""As Python's codecs name and read them. A byte order mark may stand first in a UTF; `utf-16` needs one."""


class CsvFormat(Strict):
    type: Literal["csv"]
    delimiter: Annotated[str, Field(pattern=r'^[^"\r\n]$')] = ","
    header: bool = True
    """False where the first line is a row already: the columns are the contract's, in its order."""
    nulls: tuple[Annotated[str, Field(pattern=r"^[^\x00]*$")], ...] = ("",)
    compression: Compression = "auto"
    encoding: Encoding = "utf-8"


class JsonLinesFormat(Strict):
    type: Literal["jsonl"]
    compression: Compression = "auto"
    encoding: Encoding = "utf-8"


class JsonFormat(Strict):
    """One document a file: an array of objects, or objects in objects down to one."""

    type: Literal["json"]
    rows: tuple[str, ...] = ()
    """The keys that lead to the array; none where the document is the array."""
    compression: Compression = "auto"
    encoding: Encoding = "utf-8"


class ParquetFormat(Strict):
    type: Literal["parquet"]


SourceFormat = Annotated[CsvFormat | JsonLinesFormat | JsonFormat | ParquetFormat, Field(discriminator="type")]


class LoadWork(Strict):
    """Files of a prefix into one table, each row held to a contract; rows that break it go to quarantine."""

    kind: Literal["load"]
    contract: RelativePath
    format: SourceFormat
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Above this share of bad rows nothing is published but the quarantine, and the run fails."""


_Selector = Annotated[str, Field(pattern=r"^[^-]")]
"""As dbt's `--select` takes it; what begins with a dash would be another option."""


class DbtStep(Strict):
    command: Literal["build", "run", "test", "seed", "snapshot", "compile", "docs"]
    """`docs` is dbt's `docs generate`."""
    select: tuple[_Selector, ...] = ()
    exclude: tuple[_Selector, ...] = ()
    full_refresh: bool = False
    allow_empty: bool = False
    """Whether it is fine that the step selects no node."""

    @model_validator(mode="after")
    def _refreshes(self) -> Self:
        if self.full_refresh and self.command not in ("build", "run", "seed", "compile"):
            raise ValueError(f"full_refresh: expected it with build, run, seed or compile, got {self.command!r}")
        return self


class DbtWork(Strict):
    """dbt commands in order, on one scratch database."""

    kind: Literal["dbt"]
    steps: Annotated[tuple[DbtStep, ...], Field(min_length=1)]
    vars: dict[str, ValueOrSecret] = {}
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], TextOrSecret] = {}
    target: Identifier = "prod"
    schema_: Annotated[Identifier, Field(alias="schema")] = "main"
    """The target's schema: where a model lands that names none."""
    database: Identifier = "warehouse"
    """What dbt and DuckDB call the scratch database."""
    working_directory: Literal["project", "repository"] = "project"
    """Where paths in SQL begin that are relative: the folder of `dbt_project.yml`, or the repository's root."""

    @field_validator("env")
    @classmethod
    def _env_is_the_projects(cls, env: dict[str, TextOrSecret]) -> dict[str, TextOrSecret]:
        for name, value in env.items():
            if name.startswith(_ENV_OF_THE_PROCESS) or name in _ENV_NAMES_OF_THE_PROCESS:
                raise ValueError(f"expected a variable that the project reads, got {name}, which steers the process")
            if isinstance(value, str) and "\0" in value:
                raise ValueError(f"{name}: expected text that an environment can hold, got a NUL in it")
        return env

    @field_validator("database")
    @classmethod
    def _database_is_free(cls, name: str) -> str:
        if name in ("main", "system", "temp", "memory"):
            raise ValueError(f"expected a name that DuckDB does not use itself, got {name!r}")
        return name


class QueryWork(Strict):
    """One SQL file; its rows are the output."""

    kind: Literal["query"]
    file: RelativePath


Work = Annotated[ExtractWork | LoadWork | DbtWork | QueryWork, Field(discriminator="kind")]

WORK_OF_STAGE: dict[Stage, str] = {
    Stage.EXTRACT: "extract",
    Stage.LOAD: "load",
    Stage.TRANSFORM: "dbt",
    Stage.QUERY: "query",
}


class Input(Strict):
    dataset: DatasetName
    as_: Annotated[RelationName | None, Field(alias="as")] = None
    """The view's name in the engine's database; a table's own name if not given."""
    snapshot: Annotated[str, Field(pattern=r"^[0-9]+$")] | None = None
    """The version to read; the newest at the first attempt if not given."""

    @property
    def alias(self) -> str:
        return self.as_ or self.dataset


Mode = Literal["replace", "replace_where", "append", "merge"]


class Partition(Strict):
    """How a table's files are split: by a column's values, or by the hour, day, month or year (UTC) of its times."""

    column: ColumnName
    unit: Literal["value", "hour", "day", "month", "year"] = "value"


class Output(Strict):
    dataset: DatasetName
    from_: Annotated[RelationName | None, Field(alias="from")] = None
    """What the work calls it: a source's name, or `schema.relation` in dbt's database."""
    mode: Mode = "replace"
    """`replace` the table, `replace_where` one partition of it, `append` rows, or `merge` them by `key`."""
    partition_by: Partition | None = None
    """As the table is, or is to be, partitioned. `replace_where` needs one."""
    where: str | int | None = None
    """For `replace_where` by values: the partition's. By time it is the one that `logical_time` falls in."""
    key: tuple[ColumnName, ...] = ()
    """For `merge`: the columns that say which row of the table a new row takes the place of."""
    state: Literal["restore"] | None = None
    """Whether the work finds the relation `from` as it was last published: incremental models and snapshots."""
    snapshot: Annotated[str, Field(pattern=r"^([0-9]+|none)$")] | None = None
    """The state to begin from, restored or merged into; the newest at the first attempt if not given."""
    lineage_columns: bool = False
    """Whether each row says what made it, in `_logic_commit`, `_run_id` and `_processed_at`."""
    format: Literal["csv", "parquet"] | None = None
    """For a prefix that a query fills; a table needs none."""

    @property
    def begins_from_state(self) -> bool:
        """Whether what is published depends on what was published before."""
        return self.state is not None or self.mode == "merge"

    @property
    def state_alias(self) -> str:
        """What pins and the broker call its state; no input can be called so."""
        return f"state:{self.dataset}"

    @model_validator(mode="after")
    def _mode_fits(self) -> Self:
        if not is_table(self.dataset):
            told = [name for name in ("partition_by", "where", "key", "state", "snapshot") if getattr(self, name)]
            if self.mode != "replace" or told or self.lineage_columns:
                came = self.mode if self.mode != "replace" else (told or ["lineage_columns"])[0]
                raise ValueError(f"expected nothing but mode replace for a prefix of files, got {came}")
            return self
        by_value = self.partition_by is not None and self.partition_by.unit == "value"
        if self.mode == "replace_where" and self.partition_by is None:
            raise ValueError("partition_by: expected the table's partitions for mode replace_where, got none")
        if (self.where is not None) != (self.mode == "replace_where" and by_value):
            came = "none" if self.where is None else repr(self.where)
            raise ValueError(f"where: expected it with mode replace_where by value, and only then, got {came}")
        if bool(self.key) != (self.mode == "merge"):
            raise ValueError(f"key: expected it with mode merge, and only then, got {', '.join(self.key) or 'none'}")
        _once([each.lower() for each in self.key], "a column of key")
        if self.state is not None and self.mode != "replace":
            # What was restored is in the relation, so its rows would be published twice.
            raise ValueError(f"state: expected it with mode replace, got {self.mode}")
        if self.snapshot is not None and not self.begins_from_state:
            raise ValueError("snapshot: expected it with state or mode merge, got it without")
        return self


class Resources(Strict):
    """Sizes as ECS states them: CPU units (1024 = one core), MiB, and seconds of wall-clock time."""

    cpu: Annotated[int, Field(ge=128, le=65536)] = 1024
    memory_mib: Annotated[int, Field(ge=256, le=524288)] = 4096
    timeout_s: Annotated[int, Field(ge=1, le=172800)] = 3600
    scratch_mib: Annotated[int, Field(ge=64, le=204800)] = 20480
    """Disk, for the logic's files, what the work writes and what it spills; Fargate gives 20 GiB if not told, at most
    200."""
    state_mib: Annotated[int, Field(ge=1, le=524288)] = 2048
    """How much of previous state, as its files are stored, may be restored or merged into; more is refused."""


class Rerun(Strict):
    """Says that this run repeats another: `effect` is the first of the chain, `of` the one it was made from."""

    of: UUID
    effect: UUID
    publish: bool = False


class JobSpec(Strict):
    """One request to run one stage. Its JSON Schema is `schemas/spec.json`."""

    spec_version: Literal[1]
    run_id: UUID
    pipeline: Identifier
    task: Identifier
    """The pipeline file's name for this step."""
    pipeline_run: UUID | None = None
    """Shared by the runs that one launch of a pipeline made."""
    stage: Stage
    logic: Logic
    work: Work
    inputs: tuple[Input, ...] = ()
    outputs: Annotated[tuple[Output, ...], Field(min_length=1)]
    logical_time: AwareDatetime
    params: dict[Identifier, TextOrSecret] = {}
    """The pipeline's parameters as they were when this spec was made from it."""
    labels: dict[Identifier, str] = {}
    resources: Resources = Resources()
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    publish: Literal["all", "passing"] = "all"
    """Whether a failed test keeps all outputs back, or only those that it guards and what is made of them."""
    rerun: Rerun | None = None

    @property
    def effect(self) -> UUID:
        """The first run of the chain of reruns that this one belongs to; its own id if it is the first."""
        return self.rerun.effect if self.rerun else self.run_id

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secrets that the work is given, sorted."""
        given = (*self.work.vars.values(), *self.work.env.values()) if isinstance(self.work, DbtWork) else ()
        return tuple(sorted({value.secret for value in given if isinstance(value, SecretRef)}))

    @property
    def publishes_to_branch(self) -> bool:
        """A rerun never changes a published table unless it was told to."""
        return self.rerun is not None and not self.rerun.publish

    @field_validator("inputs")
    @classmethod
    def _inputs_unique(cls, inputs: tuple[Input, ...]) -> tuple[Input, ...]:
        _once([each.alias.lower() for each in inputs], "an input's `as`")
        return inputs

    @field_validator("outputs")
    @classmethod
    def _outputs_unique(cls, outputs: tuple[Output, ...]) -> tuple[Output, ...]:
        _once([each.dataset for each in outputs], "an output's dataset")
        return outputs

    @model_validator(mode="after")
    def _names_are_apart(self) -> Self:
        """A state's name, and what the logic may publish to."""
        taken = {each.alias for each in self.inputs}
        for output in self.outputs:
            if output.state_alias in taken:
                raise ValueError(f"an input's `as`: expected none that names a state, got {output.state_alias!r}")
            if self.logic.dirty and not is_dev(output.dataset) and not self.publishes_to_branch:
                raise ValueError(
                    f"outputs: expected dev_ datasets only, as logic.dirty is true, got {output.dataset!r}"
                )
        if self.publish == "passing" and self.stage is not Stage.TRANSFORM:
            raise ValueError(f"publish: expected 'all' for stage {self.stage.value}, got 'passing'")
        return self

    @model_validator(mode="after")
    def _work_fits(self) -> Self:
        expected = WORK_OF_STAGE[self.stage]
        if self.work.kind != expected:
            raise ValueError(f"work.kind: expected {expected!r} for stage {self.stage.value}, got {self.work.kind!r}")
        match self.work:
            case ExtractWork():
                self._fits_extract(self.work)
            case LoadWork():
                self._fits_load()
            case DbtWork():
                self._fits_dbt(self.work)
            case QueryWork():
                self._fits_query()
        return self

    def _fits_extract(self, work: ExtractWork) -> None:
        names = [source.name for source in work.sources]
        _once(names, "a source's name")
        if self.inputs:
            raise ValueError(f"inputs: expected none for extract, got {len(self.inputs)}")
        _prefixes_only(self.outputs)
        taken = [output.from_ or "" for output in self.outputs]
        if sorted(taken) != sorted(names):
            raise ValueError(f"outputs: expected one `from` each source ({', '.join(names)}), got {', '.join(taken)}")

    def _fits_load(self) -> None:
        prefixes = [each.dataset for each in self.inputs if not is_table(each.dataset)]
        if len(prefixes) != 1:
            # Tables come beside it: those that the contract's foreign keys refer to.
            came = ", ".join(prefixes or [each.dataset for each in self.inputs]) or "none"
            raise ValueError(f"inputs: expected exactly one prefix dataset for load, got {came}")
        if len(self.outputs) != 1 or not is_table(self.outputs[0].dataset):
            came = ", ".join(each.dataset for each in self.outputs)
            raise ValueError(f"outputs: expected exactly one table for load, got {came}")

    def _fits_dbt(self, work: DbtWork) -> None:
        _tables_only([each.dataset for each in self.inputs], "inputs")
        _tables_only([each.dataset for each in self.outputs], "outputs")
        for index, output in enumerate(self.outputs):
            if output.from_ is None or "." not in output.from_:
                raise ValueError(f"outputs[{index}].from: expected `schema.relation`, got {output.from_!r}")
        schemas = {work.schema_, *(each.alias.rpartition(".")[0].lower() for each in self.inputs)}
        if work.database in schemas:
            # DuckDB calls a name of two parts ambiguous where its first is a database and a schema.
            raise ValueError(f"work.database: expected a name that no schema has, got {work.database!r}")

    def _fits_query(self) -> None:
        _tables_only([each.dataset for each in self.inputs], "inputs")
        if len(self.outputs) != 1:
            raise ValueError(f"outputs: expected exactly one for query, got {len(self.outputs)}")
        output = self.outputs[0]
        if not is_table(output.dataset) and output.format is None:
            raise ValueError("outputs[0].format: expected 'csv' or 'parquet' for a prefix, got none")


def parse_spec(raw: bytes | str, *, what: str = "job spec") -> JobSpec:
    """Parse a job spec; raises `SpecError` naming the field, what was expected and what came.

    A spec is stored and sent in its canonical form, so that has to fit too: else the worker, which parses it again,
    would refuse what was accepted here.
    """
    spec = parse_json(JobSpec, raw, what=what, max_bytes=MAX_DOCUMENT_BYTES)
    stored = len(spec.to_json().encode())
    if stored > MAX_DOCUMENT_BYTES:
        raise SpecError(f"{what}: expected at most {MAX_DOCUMENT_BYTES:,} bytes with its defaults, got {stored:,}")
    return spec


def _once(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"expected {what} to be given once, got {name!r} {names.count(name)} times")


def _tables_only(datasets: list[str], field: str) -> None:
    for index, dataset in enumerate(datasets):
        if not is_table(dataset):
            raise ValueError(f"{field}[{index}].dataset: expected a table `namespace.table`, got {dataset!r}")


def _prefixes_only(outputs: tuple[Output, ...]) -> None:
    for index, output in enumerate(outputs):
        if is_table(output.dataset):
            raise ValueError(f"outputs[{index}].dataset: expected a prefix `layer/name`, got {output.dataset!r}")
