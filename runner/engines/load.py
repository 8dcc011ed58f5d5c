"""The load stage: files of a prefix into one table, each row held to a contract; rows that break it to quarantine.

Every format comes in as text and one set of rules judges it, in DuckDB. What a contract's rules mean here:

- A null is what the format's `nulls` name (CSV), `null` or an absent key (JSON Lines), a null (Parquet). It breaks
  `required(column)` and nothing else.
- A text that is not exactly a value of the column's type breaks `type(column: TYPE)`; nothing is rounded or cut.
- Rows that keep these are compared with each other: of rows alike in the columns of `unique(columns)` the first, by
  file and line, keeps it and each later one breaks it. Rows with a null there are like no other. A row that breaks
  one unique rule still counts as first for another.
- What cannot be a row breaks `malformed(…)`, line by line; a JSON object's key without a column, `unknown(key)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa
from duckdb.sqltypes import DuckDBPyType

from runner.engines import scratch
from runner.engines.contract import PACKAGE, RESERVED_COLUMNS, Contract, ContractColumn, parse_contract
from runner.engines.inputs import Inputs
from runner.engines.records import Lines, Record, difference, read_csv, read_json_lines
from runner.engines.types import literal, literals, quote
from runner.model.errors import Category, DataError, Failure, SchemaError, SpecError
from runner.model.manifest import Step
from runner.model.messages import EngineOutput, EngineResult, Job
from runner.model.names import quarantine_of
from runner.model.spec import CsvFormat, JsonLinesFormat, LoadWork

_BATCH_RECORDS = 2048
"""DuckDB's vector size. Larger batches were slower: Python's garbage collector walks every record in them."""

_ROWS_BETWEEN_REPORTS = 512 * _BATCH_RECORDS

_MAX_FOUND_STEPS = 100
"""Steps for rules that are not the contract's: each unknown key is one, and a file may hold any number."""


def run(job: Job, inputs: Inputs) -> EngineResult:
    """Load the files of the job's input. Both outputs are made whatever the findings; the table, then its quarantine.

    Raises `SpecError` for a contract that cannot be enforced, `SchemaError` where a file has other columns, `DataError`
    where one cannot be read. No rows at all, or too many bad ones, are the result's failure.
    """
    work = job.work
    if not isinstance(work, LoadWork):
        raise SpecError(f"work.kind: expected 'load', got {work.kind!r}", subject="work.kind")
    table = job.outputs[0].output.dataset
    contract = _contract(job, work)
    with scratch.connect(job, inputs) as connection:
        inputs.primed()
        rows_read = _read_files(connection, job, inputs, work, contract)
        broken = _judge(connection, work, contract)
        good, bad = _export(connection, job, work, contract)
    counts = {"rows_read": rows_read, "rows_loaded": good.rows or 0, "rows_quarantined": bad.rows or 0}
    if counts["rows_read"] != counts["rows_loaded"] + counts["rows_quarantined"]:
        # The reader counted on its own: this is a fault of the engine, and nothing may be published on it.
        raise RuntimeError(f"{table}: expected every row to be loaded or quarantined, got {counts}")
    failure = _finding(counts, broken, job, work)
    return EngineResult(
        outputs=(good, bad),
        steps=tuple(_steps(contract, broken, "warn" if failure is None else "fail")),
        counts=counts,
        packages={"duckdb": duckdb.__version__, PACKAGE: version(PACKAGE)},
        failure=failure,
    )


def _export(
    connection: duckdb.DuckDBPyConnection, job: Job, work: LoadWork, contract: Contract
) -> tuple[EngineOutput, EngineOutput]:
    output, claimed = job.outputs[0], [job.inputs[0].pin.as_]
    quarantine = quarantine_of(output.output.dataset)
    good, bad = _good_rows(work, contract), _bad_rows(contract, job.inputs[0].files)
    return (
        scratch.export(connection, job, output, good, claimed_inputs=claimed),
        scratch.export(connection, job, output, bad, claimed_inputs=claimed, dataset=quarantine, quarantine=True),
    )


def _contract(job: Job, work: LoadWork) -> Contract:
    path = Path(job.workspace) / work.contract
    if not path.is_file():
        raise SpecError(
            f"{work.contract}: expected a contract in the logic repository, got no such file", subject=work.contract
        )
    return parse_contract(path.read_bytes(), what=work.contract)


# --- reading -----------------------------------------------------------------------------------------------------


def _read_files(
    connection: duckdb.DuckDBPyConnection, job: Job, inputs: Inputs, work: LoadWork, contract: Contract
) -> int:
    """Fill the table `records` in the order of files and lines; returns how many the files hold, counted here."""
    texts = ", ".join(f"{_text_column(index)} VARCHAR" for index in range(len(contract.columns)))
    connection.execute(
        "CREATE TABLE records "
        f"(_row BIGINT, _file INTEGER, _line BIGINT, _found VARCHAR[], _text VARCHAR, _parsed BOOLEAN, {texts})"
    )
    files = job.inputs[0].files
    rows = 0
    for index, uri in enumerate(files):
        if isinstance(work.format, CsvFormat | JsonLinesFormat):
            records = _records(inputs, uri, work, contract)
            found = _insert(connection, records, inputs, uri, file=index, after=rows, width=len(contract.columns))
        else:
            found = _insert_parquet(connection, uri, contract, file=index, after=rows)
        rows += found
        inputs.say(f"{uri}: {found:,} rows", done=index + 1, total=len(files))
    return rows


def _records(inputs: Inputs, uri: str, work: LoadWork, contract: Contract) -> Iterator[Record]:
    with inputs.open(uri) as file:
        lines = Lines(file, uri)
        names = [column.name for column in contract.columns]
        if isinstance(work.format, CsvFormat):
            delimiter = work.format.delimiter
            yield from read_csv(lines, names, delimiter=delimiter, name=uri, contract=work.contract)
        else:
            yield from read_json_lines(lines, {column.name: column.type_rule for column in contract.columns})


def _insert(
    connection: duckdb.DuckDBPyConnection,
    records: Iterator[Record],
    inputs: Inputs,
    uri: str,
    *,
    file: int,
    after: int,
    width: int,
) -> int:
    """Stream records into DuckDB; returns how many there were."""
    schema = pa.schema(
        [
            ("_row", pa.int64()),
            ("_file", pa.int32()),
            ("_line", pa.int64()),
            ("_found", pa.list_(pa.string())),
            ("_text", pa.string()),
            ("_parsed", pa.bool_()),
            *((_text_column(index), pa.string()) for index in range(width)),
        ]
    )
    count = 0
    raised: list[BaseException] = []

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal count
        try:
            while batch := list(islice(records, _BATCH_RECORDS)):
                size = len(batch)
                lines, values, found, texts, parsed = zip(*batch, strict=True)
                first = after + count
                columns = [range(first, first + size), [file] * size, lines, found, texts, parsed]
                columns += zip(*values, strict=True)
                count += size
                arrays = [pa.array(column, each.type) for column, each in zip(columns, schema, strict=True)]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
                if count % _ROWS_BETWEEN_REPORTS == 0:
                    inputs.say(f"{uri}: {count:,} rows so far")
        except BaseException as exc:  # noqa: BLE001 - DuckDB would make text of it; it is raised again below
            raised.append(exc)

    incoming = pa.RecordBatchReader.from_batches(schema, batches())
    connection.register("incoming", incoming)
    connection.execute("INSERT INTO records SELECT * FROM incoming")
    connection.unregister("incoming")
    if raised:
        raise raised[0]
    return count


def _insert_parquet(
    connection: duckdb.DuckDBPyConnection, uri: str, contract: Contract, *, file: int, after: int
) -> int:
    """The rows of a Parquet file as text; returns how many its footer says there are."""
    # Folders named key=value are part of the file's place, not columns of it.
    source = f"read_parquet({literal(uri)}, hive_partitioning = false, file_row_number = true)"
    try:
        described = connection.sql(f"SELECT * EXCLUDE file_row_number FROM {source} LIMIT 0")
        texts = _texts_of(described.columns, described.types, uri, contract)
        connection.execute(
            f"INSERT INTO records SELECT {after} + file_row_number, {file}, file_row_number + 1, NULL, NULL, true, "
            f"{', '.join(texts)} FROM {source}"
        )
        row = connection.execute(f"SELECT num_rows FROM parquet_file_metadata({literal(uri)})").fetchone()
    except (duckdb.InvalidInputException, duckdb.IOException, duckdb.SerializationException) as exc:
        first_line = str(exc).splitlines()[0]
        raise DataError(f"{uri}: expected a Parquet file, got {first_line}", subject=uri) from exc
    return int(row[0]) if row else 0


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


def _texts_of(names: Sequence[str], types: Sequence[DuckDBPyType], uri: str, contract: Contract) -> Iterator[str]:
    """For each column of the contract, the SQL of its text. Raises `SchemaError` for other columns, or other kinds."""
    expected = [column.name for column in contract.columns]
    if sorted(names) != sorted(expected):
        raise SchemaError(
            f"{uri}: expected the columns {', '.join(expected)}, {difference(names, expected)}", subject=uri
        )
    by_name = dict(zip(names, types, strict=True))
    for column in contract.columns:
        kind = by_name[column.name]
        if kind.id not in _CONVERTIBLE[column.type.partition("(")[0]]:
            raise SchemaError(
                f"{uri}: column {column.name}: expected values for {column.type}, got the type {kind}",
                subject=column.name,
            )
        # A float's shortest text is another double.
        name = f"CAST({quote(column.name)} AS DOUBLE)" if kind.id == "float" else quote(column.name)
        yield f"CAST({name} AS VARCHAR)"


# --- judging -----------------------------------------------------------------------------------------------------


def _text_column(index: int) -> str:
    """Of the contract's column: its own name could be one of ours."""
    return f"text_{index}"


def _texts(work: LoadWork, contract: Contract) -> dict[str, str]:
    """For each column, the SQL of its text as the rules see it: null where the format says that it is."""
    columns = {column.name: _text_column(index) for index, column in enumerate(contract.columns)}
    if not isinstance(work.format, CsvFormat) or not work.format.nulls:
        return columns
    nulls = ", ".join(literal(null) for null in work.format.nulls)
    return {name: f"CASE WHEN {text} NOT IN ({nulls}) THEN {text} END" for name, text in columns.items()}


def _value(texts: dict[str, str], column: ContractColumn) -> str:
    # Of rows that keep the type rule, so nothing becomes null. A plain CAST would fail where DuckDB chooses to convert
    # before it has left the other rows out.
    return f"TRY_CAST({texts[column.name]} AS {column.type})"


def _judge(connection: duckdb.DuckDBPyConnection, work: LoadWork, contract: Contract) -> dict[str, int]:
    """Fill the table `broken` with the rules that each bad row breaks; returns how many rows break each rule."""
    texts = _texts(work, contract)
    rules = list(contract.row_rules(texts))
    names = ", ".join(f"CASE WHEN {rule.broken} THEN {literal(rule.name)} END" for rule in rules)
    found = "coalesce(_found, [])"
    connection.execute(
        f"CREATE TABLE broken AS SELECT _row, {found} || CASE WHEN _parsed THEN list_filter([{names}], "
        f"lambda rule: rule IS NOT NULL AND NOT list_contains({found}, rule)) ELSE [] END AS rules "
        f"FROM records WHERE _found IS NOT NULL OR {' OR '.join(f'({rule.broken})' for rule in rules)}"
    )
    _find_copies(connection, texts, contract)
    counted = connection.execute(
        "SELECT rule, count(*) FROM (SELECT unnest(rules) AS rule FROM broken) GROUP BY rule ORDER BY ALL"
    ).fetchall()
    return {str(rule): int(rows) for rule, rows in counted}


def _find_copies(connection: duckdb.DuckDBPyConnection, texts: dict[str, str], contract: Contract) -> None:
    if not contract.unique:
        return
    by_name = {column.name: column for column in contract.columns}
    connection.execute("CREATE TABLE copies (_row BIGINT, position INTEGER)")
    for position, rule in enumerate(contract.unique):
        keys = [f"key_{index}" for index in range(len(rule.columns))]
        named = zip(rule.columns, keys, strict=True)
        values = ", ".join(f"{_value(texts, by_name[name])} AS {key}" for name, key in named)
        present = " AND ".join(f"{texts[name]} IS NOT NULL" for name in rule.columns)
        connection.execute(
            f"WITH sound AS (SELECT _row, {values} FROM records ANTI JOIN broken USING (_row) WHERE {present}), "
            f"firsts AS (SELECT {', '.join(keys)}, min(_row) AS first FROM sound GROUP BY ALL HAVING count(*) > 1) "
            f"INSERT INTO copies SELECT _row, {position} "
            f"FROM sound JOIN firsts USING ({', '.join(keys)}) WHERE _row > first"
        )
    # Not list(rule), which cannot spill to disk: in a file loaded twice half the rows are copies.
    rules = ", ".join(
        f"CASE WHEN bool_or(position = {position}) THEN {literal(rule.name)} END"
        for position, rule in enumerate(contract.unique)
    )
    connection.execute(
        f"INSERT INTO broken SELECT _row, list_filter([{rules}], lambda rule: rule IS NOT NULL) "
        "FROM copies GROUP BY _row"
    )


def _good_rows(work: LoadWork, contract: Contract) -> str:
    texts = _texts(work, contract)
    columns = ", ".join(f"{_value(texts, column)} AS {quote(column.name)}" for column in contract.columns)
    return f"(SELECT {columns} FROM records ANTI JOIN broken USING (_row) ORDER BY _row)"


def _bad_rows(contract: Contract, files: Sequence[str]) -> str:
    columns = ", ".join(
        f"{_text_column(index)} AS {quote(column.name)}" for index, column in enumerate(contract.columns)
    )
    source_file, line, rules, text = RESERVED_COLUMNS
    return (
        # The cast is for a list without files, which has no type.
        f"(SELECT CAST({literals(files)}[_file + 1] AS VARCHAR) AS {source_file}, _line AS {line}, rules AS {rules}, "
        f"_text AS {text}, {columns} FROM records JOIN broken USING (_row) ORDER BY _row)"
    )


# --- reporting ---------------------------------------------------------------------------------------------------


def _steps(contract: Contract, broken: dict[str, int], status: Literal["warn", "fail"]) -> Iterator[Step]:
    """One for each rule of the contract, and for what reading found besides, the most frequent first."""
    rules = [rule.name for rule in contract.row_rules({column.name: "" for column in contract.columns})]
    rules += [rule.name for rule in contract.unique]
    found = sorted(broken.keys() - set(rules), key=lambda rule: (-broken[rule], rule))
    for name in rules + found[:_MAX_FOUND_STEPS]:
        rows = broken.get(name, 0)
        yield Step(kind="contract", name=name, status=status if rows else "pass", rows=rows)


def _finding(counts: dict[str, int], broken: dict[str, int], job: Job, work: LoadWork) -> Failure | None:
    rows, bad = counts["rows_read"], counts["rows_quarantined"]
    if not rows:
        dataset, files = job.inputs[0].pin.dataset, len(job.inputs[0].files)
        return Failure(
            category=Category.DATA,
            message=f"{dataset}: expected rows, got none in {files:,} file{'' if files == 1 else 's'}",
            subject=dataset,
        )
    if bad / rows <= work.max_bad_fraction:
        return None
    worst = max(sorted(broken), key=lambda rule: broken[rule])
    return Failure(
        category=Category.DATA,
        message=f"{job.outputs[0].output.dataset}: expected at most {work.max_bad_fraction * 100:g} % bad rows by "
        f"{work.contract}, got {bad:,} of {rows:,} ({bad / rows * 100:.2f} %), most by {worst}",
        subject=worst,
    )
