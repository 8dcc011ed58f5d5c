"""The load stage: files of a prefix into one table, each row held to a contract; rows that break it to quarantine.

Every format comes in as text and one set of rules judges it, in DuckDB. What a contract's rules mean here, and what a
null means to each, is written down in docs/contracts.md.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import duckdb
from duckdb.sqltypes import DuckDBPyType

from runner.engines import scratch
from runner.engines.contracts.contract import PACKAGE, Contract, parse_contract
from runner.engines.contracts.drift import Layout
from runner.engines.contracts.exact_types import family
from runner.engines.export import export
from runner.engines.files.decoding import Utf8Stream
from runner.engines.files.json_document import read_json
from runner.engines.files.records import Batch, JsonRows, Lines, batches_of, read_csv, read_json_lines
from runner.engines.inputs import Inputs
from runner.engines.judge import Rows, SqlRows, Tolerated, Verdict
from runner.engines.lock import lock
from runner.engines.types import literal, quote
from runner.model.errors import Category, DataError, Failure, SchemaError, SpecError
from runner.model.manifest import Step
from runner.model.messages import EngineOutput, EngineResult, Job, JobInput
from runner.model.names import is_table, quarantine_of
from runner.model.spec import CsvFormat, JsonFormat, JsonLinesFormat, LoadWork, ParquetFormat

_ROWS_BETWEEN_REPORTS = 1_000_000

_MAX_FOUND_STEPS = 100
"""Steps for rules that are not the contract's: each unknown key is one, and a file may hold any number."""

_SMALLEST_CONTRACT = b"""
{apiVersion: v3.1.0, kind: DataContract, id: a, version: 1.0.0, status: active,
 schema: [{name: a, logicalType: object, properties: [{name: a, logicalType: string, physicalType: VARCHAR}]}]}
"""


def warm() -> Iterator[None]:
    """All that a load would import and build, in the process that the jobs are forked from, in one step."""
    importlib.import_module("pyarrow.dataset")  # DuckDB imports it where it is given rows
    parse_contract(_SMALLEST_CONTRACT, what="the smallest contract")
    scratch.warm()
    yield


def run(job: Job, inputs: Inputs) -> EngineResult:
    """Load the files of the job's prefix. Both outputs are made whatever the findings; the table, then its quarantine.

    Raises `SpecError` for a contract that cannot be enforced, `SchemaError` where a file has other columns, `DataError`
    where one cannot be read. No rows at all, or more bad ones than the contract bears, are the result's failure.
    """
    work = job.work
    if not isinstance(work, LoadWork):
        raise SpecError(f"work.kind: expected 'load', got {work.kind!r}", subject="work.kind")
    table = job.outputs[0].output.dataset
    contract = _contract(job, work)
    source = next(each for each in job.inputs if not is_table(each.pin.dataset))
    with scratch.connect(job, inputs) as connection:
        scratch.make_views(connection, job)
        lock(connection, (Path(job.scratch) / "out",))
        inputs.primed()
        layout = Layout(contract, work.contract)
        nulls = work.format.nulls if isinstance(work.format, CsvFormat) else ()
        tables = [each.pin.as_ for each in job.inputs if each != source]
        rows = Rows(connection, contract, layout, nulls, tables=tables)
        files = _Files(connection, inputs, work, contract, layout)
        rows_read = _read(files, source, inputs, rows)
        verdict = rows.settle()
        for number, uri in enumerate(source.files):
            if lines := rows.lines_to_recall(number):
                inputs.say(f"{uri}: read again, rows that break a rule of the whole table: {len(lines):,}")
                with files.reading(uri, only=lines) as again:
                    rows.recall(again, file=number)
        good, bad = _export(connection, job, source, rows)
    counts = {"rows_read": rows_read, "rows_loaded": rows.loaded, "rows_quarantined": bad.rows or 0}
    if counts["rows_read"] != counts["rows_loaded"] + counts["rows_quarantined"]:
        # The reader counted on its own: this is a fault of the engine, and nothing may be published on it.
        raise RuntimeError(f"{table}: expected every row to be loaded or quarantined, got {counts}")
    failure = _finding(counts, verdict, job, work, source)
    return EngineResult(
        outputs=(good, bad),
        steps=(*_steps(contract, verdict, failed=failure is not None), *layout.steps()),
        counts=counts,
        packages={"duckdb": duckdb.__version__, PACKAGE: version(PACKAGE)},
        failure=failure,
    )


def _export(
    connection: duckdb.DuckDBPyConnection, job: Job, source: JobInput, rows: Rows
) -> tuple[EngineOutput, EngineOutput]:
    output = job.outputs[0]
    claimed = [source.pin.as_, *rows.referred()]
    quarantine = quarantine_of(output.output.dataset)
    bad = rows.bad(source.files)
    return (
        export(connection, job, output, rows.good, claimed_inputs=claimed),
        export(connection, job, output, bad, claimed_inputs=claimed, dataset=quarantine, quarantine=True),
    )


def _contract(job: Job, work: LoadWork) -> Contract:
    path = Path(job.workspace) / work.contract
    if not path.is_file():
        raise SpecError(
            f"{work.contract}: expected a contract in the logic repository, got no such file", subject=work.contract
        )
    return parse_contract(path.read_bytes(), what=work.contract)


# --- reading -----------------------------------------------------------------------------------------------------


def _read(files: _Files, source: JobInput, inputs: Inputs, rows: Rows) -> int:
    """Read and judge the files one after the other; returns how many rows they hold, as they say themselves."""
    total = 0
    for number, uri in enumerate(source.files):
        with files.reading(uri) as incoming:
            count = rows.add(
                incoming if isinstance(incoming, SqlRows) else _told(incoming, inputs, uri), keep_texts=files.keep_texts
            )
        count = files.stated_rows(uri, count)
        total += count
        inputs.say(f"{uri}: {count:,} rows", done=number + 1, total=len(source.files))
    return total


def _told(batches: Iterator[Batch], inputs: Inputs, uri: str) -> Iterator[Batch]:
    """The same, with a word to the log now and then."""
    count = 0
    for batch in batches:
        before, count = count, count + batch.rows.num_rows
        if before // _ROWS_BETWEEN_REPORTS < count // _ROWS_BETWEEN_REPORTS:
            inputs.say(f"{uri}: {count:,} rows so far")
        yield batch


@dataclass(frozen=True)
class _Files:
    """How a file of the work's format is read into the layout. It may be read more than once."""

    connection: duckdb.DuckDBPyConnection
    inputs: Inputs
    work: LoadWork
    contract: Contract
    layout: Layout

    @property
    def keep_texts(self) -> bool:
        """Whether lines do not tell rows apart: a JSON document may be one long line."""
        return isinstance(self.work.format, JsonFormat)

    @contextmanager
    def reading(self, uri: str, *, only: Sequence[int] | None = None) -> Iterator[Iterator[Batch] | SqlRows]:
        """Records of a file; `only` those lines at least, where it can be chosen.

        Raises `DataError` where the file is none of its format, also while its rows are taken.
        """
        format = self.work.format
        if isinstance(format, ParquetFormat):
            with _parquet_errors(uri):
                yield self._parquet(uri)
            return
        with self.inputs.open(uri) as file:
            yield self._batches(file, uri, format, only)

    def stated_rows(self, uri: str, counted: int) -> int:
        """How many rows the file says that it has, where it does: who reads is not who counts."""
        if not isinstance(self.work.format, ParquetFormat):
            return counted
        row = self.connection.execute(f"SELECT num_rows FROM parquet_file_metadata({literal(uri)})").fetchone()
        return int(row[0]) if row else 0

    def _batches(
        self,
        file: io.RawIOBase,
        uri: str,
        format: CsvFormat | JsonLinesFormat | JsonFormat,
        only: Sequence[int] | None,
    ) -> Iterator[Batch]:
        stream = Utf8Stream(file, uri, format.compression, format.encoding)
        if isinstance(format, CsvFormat):
            lines = Lines(stream, format.encoding)
            delimiter, header = format.delimiter, format.header
            yield from read_csv(lines, self.layout, delimiter=delimiter, name=uri, header=header, only=only)
            return
        json_rows = JsonRows(self.layout, [column.type_rule for column in self.contract.columns], uri)
        if isinstance(format, JsonLinesFormat):
            records = read_json_lines(Lines(stream, format.encoding), json_rows)
        else:
            records = read_json(stream, json_rows, format.rows, uri)
        yield from batches_of(records, self.layout)

    def _parquet(self, uri: str) -> SqlRows:
        # Folders named key=value are part of the file's place, not columns of it.
        source = f"read_parquet({literal(uri)}, hive_partitioning = false, file_row_number = true)"
        described = self.connection.sql(f"SELECT * EXCLUDE file_row_number FROM {source} LIMIT 0")
        expected = f"{uri}: expected the columns {', '.join(self.layout.names)}"
        places = self.layout.adopt(described.columns, expected=expected, subject=uri)
        texts = ["NULL"] * self.layout.width
        native = set[int]()
        for name, kind, place in zip(described.columns, described.types, places, strict=True):
            if place is not None:
                texts[place] = _text_of(name, kind, uri, self.contract, place)
                native |= set() if kind.id == "varchar" else {place}
        numbered = f"(SELECT *, file_row_number + 1 AS _line FROM {source})"
        return SqlRows(source=numbered, texts=texts, native=frozenset(native))


@contextmanager
def _parquet_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (duckdb.InvalidInputException, duckdb.IOException, duckdb.SerializationException) as exc:
        first_line = str(exc).splitlines()[0]
        raise DataError(f"{uri}: expected a Parquet file, got {first_line}", subject=uri) from exc


# By the names that DuckDB's Python types have.
_INTEGERS = {"tinyint", "smallint", "integer", "bigint", "hugeint", "utinyint", "usmallint", "uinteger", "ubigint"}
_NUMBERS = _INTEGERS | {"uhugeint", "float", "double", "decimal", "varchar"}
_TIMES = {"date", "timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns", "varchar"}
_INSTANTS = _TIMES | {"timestamp with time zone"}
_CONVERTIBLE = {
    "BOOLEAN": {"boolean", "varchar"},
    "INTEGER": _NUMBERS,
    "BIGINT": _NUMBERS,
    "DOUBLE": _NUMBERS,
    "DECIMAL": _NUMBERS,
    "DATE": _TIMES,
    "TIMESTAMP": _TIMES,
    "TIMESTAMPTZ": _INSTANTS,
    "VARCHAR": _NUMBERS | _INSTANTS | {"boolean", "enum", "time", "uuid"},
}
"""For each family of contract types, the Parquet columns whose values may be of it: each value decides for itself."""


def _text_of(name: str, kind: DuckDBPyType, uri: str, contract: Contract, place: int) -> str:
    """SQL of a column's text. Raises `SchemaError` for a kind whose values cannot be of the contract's type."""
    stated = contract.columns[place].type if place < len(contract.columns) else "VARCHAR"
    if kind.id not in _CONVERTIBLE[family(stated)]:
        raise SchemaError(f"{uri}: column {name}: expected values for {stated}, got the type {kind}", subject=name)
    # A float's shortest text is another double.
    column = f"CAST({quote(name)} AS DOUBLE)" if kind.id == "float" else quote(name)
    return f"CAST({column} AS VARCHAR)"


# --- reporting ---------------------------------------------------------------------------------------------------


def _steps(contract: Contract, verdict: Verdict, *, failed: bool) -> Iterator[Step]:
    """One for each rule of the contract, and for what reading found besides, the most frequent first."""
    rules = [rule.name for rule in contract.row_rules if rule.bound is None]
    rules += [key.name for key in contract.foreign_keys]
    rules += [rule.name for rule in contract.unique if rule.bound is None]
    broken = verdict.broken
    found = sorted(broken.keys() - set(rules), key=lambda rule: (-broken[rule], rule))
    bad: Literal["fail", "warn"] = "fail" if failed else "warn"
    for name in rules + found[:_MAX_FOUND_STEPS]:
        rows = broken.get(name, 0)
        yield Step(kind="contract", name=name, status=bad if rows else "pass", rows=rows)
    for each in verdict.tolerated:
        breach: Literal["fail", "warn"] = "fail" if each.bound.severity == "error" else "warn"
        yield Step(
            kind="contract",
            name=each.name,
            status="pass" if each.holds else breach,
            rows=each.rows,
            message=f"{each.bound}, of {each.of:,} rows to be loaded",
        )


def _finding(counts: dict[str, int], verdict: Verdict, job: Job, work: LoadWork, source: JobInput) -> Failure | None:
    rows, bad = counts["rows_read"], counts["rows_quarantined"]
    dataset, table = source.pin.dataset, job.outputs[0].output.dataset
    if not rows:
        files = len(source.files)
        return Failure(
            category=Category.DATA,
            message=f"{dataset}: expected rows, got none in {files:,} file{'' if files == 1 else 's'}",
            subject=dataset,
        )
    if bad / rows > work.max_bad_fraction:
        broken = verdict.broken
        worst = max(sorted(broken), key=lambda rule: broken[rule])
        return Failure(
            category=Category.DATA,
            message=f"{table}: expected at most {work.max_bad_fraction * 100:g} % bad rows by {work.contract}, "
            f"got {bad:,} of {rows:,} ({bad / rows * 100:.2f} %), most by {worst}",
            subject=worst,
        )
    breached = [each for each in verdict.tolerated if not each.holds and each.bound.severity == "error"]
    return _breach(breached[0], table, work) if breached else None


def _breach(rule: Tolerated, table: str, work: LoadWork) -> Failure:
    share = f" ({rule.rows / rule.of * 100:.2f} %)" if rule.bound.unit == "percent" and rule.of else ""
    return Failure(
        category=Category.DATA,
        message=f"{table}: {rule.name}: expected {rule.bound} by {work.contract}, "
        f"got {rule.rows:,} of {rule.of:,}{share}",
        subject=rule.name,
    )
