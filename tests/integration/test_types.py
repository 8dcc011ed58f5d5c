"""Every DuckDB type and name, published to a real Iceberg table and read back by DuckDB and by pyiceberg."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from runner.adapters.aws import Aws
from runner.adapters.iceberg_tables import IcebergTables, sql_catalog
from runner.adapters.pg_ledger import PgLedger
from runner.adapters.s3_objects import S3Objects
from runner.engines import scratch
from runner.engines.export import export
from runner.engines.fingerprint import ENGINE
from runner.engines.types import quote
from runner.model.errors import SchemaError
from runner.model.manifest import FileRecord, OutputRecord
from runner.model.messages import EngineOutput, FieldIds, JobInput, JobOutput
from runner.model.names import data_prefix
from runner.model.spec import Output
from tests.support.datasets import tag_of
from tests.support.engine_inputs import LocalInputs, job_of

PAGE = Path(__file__).parents[2] / "docs" / "types.md"
WRITE_PAGE = "RUNNER_TEST_WRITE_TYPES"


@dataclass
class Lake:
    """Tables of a catalog, a bucket, and a folder for engines' scratch."""

    tables: IcebergTables
    objects: S3Objects
    s3: Any
    bucket: str
    folder: Path
    catalog: Any
    name: str = field(default_factory=lambda: f"types.t{uuid4().hex}")

    def fresh(self) -> Lake:
        return Lake(self.tables, self.objects, self.s3, self.bucket, self.folder, self.catalog)

    def export(self, connection: duckdb.DuckDBPyConnection, relation: str) -> tuple[EngineOutput, Path]:
        table = self.tables.load(self.name)
        wanted = JobOutput(
            output=Output(dataset=self.name), field_ids=dict(table.field_ids), last_field_id=table.last_field_id
        )
        job = job_of(self.folder / str(uuid4()), outputs=[wanted])
        made = export(connection, job, wanted, relation, claimed_inputs=None)
        return made, Path(job.scratch) / "out" / made.files[0].path

    def publish(self, connection: duckdb.DuckDBPyConnection, relation: str) -> EngineOutput:
        made, path = self.export(connection, relation)
        run_id = uuid4()
        prefix = data_prefix(
            self.name, effect=run_id, run_id=run_id, attempt=1, plan_id=uuid4(), written_at=datetime.now(UTC)
        )
        key = prefix + path.name
        self.objects.put_file(key, path)
        file = FileRecord(
            uri=self.objects.uri(key), bytes=path.stat().st_size, rows=made.rows, sha256=made.files[0].sha256
        )
        record = OutputRecord(
            dataset=self.name,
            mode="replace",
            branch=None,
            base=None,
            files=(file,),
            rows=made.rows,
            columns=made.columns,
            fingerprint=made.fingerprint,
            claimed_inputs=None,
        )
        self.tables.load(self.name).commit(record, tag_of(run_id))
        return made

    def view(self, connection: duckdb.DuckDBPyConnection) -> None:
        """The published table as an engine sees it: `lake.published`, through a broker of exactly its files."""
        pin = self.tables.pin(self.name, "lake.published", None)
        files = {}
        for each in self.tables.files(pin):
            files[each.uri] = self.folder / str(uuid4())
            self.s3.download_file(self.bucket, each.uri.removeprefix(f"s3://{self.bucket}/"), str(files[each.uri]))
        if "s3" in connection.list_filesystems():
            connection.unregister_filesystem("s3")
        scratch.configure(connection, LocalInputs(files))
        scratch.make_views(connection, job_of(self.folder / str(uuid4()), inputs=[JobInput(pin=pin)]))

    def arrow(self) -> Any:
        return self.catalog.load_table(self.name).scan().to_arrow()

    def files_as_arrow(self) -> Any:
        """The published files as pyarrow reads them: pyiceberg 0.12 reads a NULL list of structs as an empty one."""
        import pyarrow as pa
        from pyarrow import parquet

        table = self.catalog.load_table(self.name)
        tables = []
        for task in table.scan().plan_files():
            with table.io.new_input(task.file.file_path).open() as file:
                tables.append(parquet.read_table(io.BytesIO(file.read())))
        return pa.concat_tables(tables) if tables else self.arrow()


@pytest.fixture(scope="module")
def module_lake(aws: Aws, s3_client: Any, ledger_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    ledger = PgLedger(ledger_url)
    ledger.migrate()
    ledger.close()
    bucket = f"test-{uuid4().hex}"
    objects = S3Objects(s3_client, bucket)
    objects.create_bucket()
    catalog = sql_catalog(ledger_url, bucket=bucket, aws=aws.properties)
    folder = tmp_path_factory.mktemp("types")
    yield Lake(IcebergTables(catalog, bucket=bucket), objects, s3_client, bucket, folder, catalog)
    catalog.close()
    shutil.rmtree(folder)


@pytest.fixture
def lake(module_lake: Lake) -> Lake:
    return module_lake.fresh()


@pytest.fixture
def duck() -> Iterator[duckdb.DuckDBPyConnection]:
    with _connected() as connection:
        yield connection


def _connected() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"threads": "1", "autoload_known_extensions": "false"})
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _assert_reads_back(lake: Lake, duck: duckdb.DuckDBPyConnection, made: EngineOutput, source: str) -> None:
    """By DuckDB and by pyiceberg each row equals the source's, once cast to the source's types; and the fingerprint."""
    lake.view(duck)
    rows = duck.sql(f"FROM {source}")
    names = ", ".join(quote(name) for name in rows.columns)
    casts = ", ".join(f"CAST({quote(n)} AS {t})" for n, t in zip(rows.columns, rows.types, strict=True))
    duck.register("arrow_rows", lake.files_as_arrow())
    for back in ("lake.published", "arrow_rows"):
        for left, right in (
            (f"SELECT {names} FROM {source}", f"SELECT {casts} FROM {back}"),
            (f"SELECT {casts} FROM {back}", f"SELECT {names} FROM {source}"),
        ):
            assert duck.sql(f"{left} EXCEPT ALL {right}").fetchall() == [], back
    duck.unregister("arrow_rows")
    _assert_has_the_fingerprint(duck, made)


def _assert_has_the_fingerprint(duck: duckdb.DuckDBPyConnection, made: EngineOutput) -> None:
    """Computed here once more, from what was published."""
    import hashlib

    columns = made.columns or ()
    names = ", ".join(quote(each.name) for each in columns)
    row = duck.sql(
        f"SELECT count(*), coalesce(sum(hash(whole_row)), 0) FROM (SELECT {names} FROM lake.published) whole_row"
    ).fetchone()
    rows, total = row or (0, 0)
    shape = ";".join(f"{each.name} {each.type}" for each in columns)
    assert made.fingerprint.rows == rows
    assert made.fingerprint.hash == hashlib.sha256(f"{shape}|{total}".encode()).hexdigest()
    assert made.fingerprint.engine == ENGINE
    assert list(made.fingerprint.columns) == [each.name for each in columns]


# ---------------------------------------------------------------- the page of types

TYPES = {
    "BOOLEAN": "true",
    "TINYINT": "-128",
    "SMALLINT": "-32768",
    "INTEGER": "-2147483648",
    "BIGINT": "-9223372036854775808",
    "HUGEINT": "-99999999999999999999999999999999999999",
    "UTINYINT": "255",
    "USMALLINT": "65535",
    "UINTEGER": "4294967295",
    "UBIGINT": "18446744073709551615",
    "UHUGEINT": "99999999999999999999999999999999999999",
    "BIGNUM": "1",
    "FLOAT": "'-0.0'",
    "DOUBLE": "'nan'",
    "DECIMAL(9,2)": "'-1234567.89'",
    "DECIMAL(38,0)": "'99999999999999999999999999999999999999'",
    "DECIMAL(38,38)": "'0.99999999999999999999999999999999999999'",
    "VARCHAR": "'naïve 🦆'",
    "JSON": "'{\"a\": [1, null]}'",
    "ENUM('a', 'b')": "'a'",
    "BLOB": "'\\x00\\xFF'",
    "BIT": "'101'",
    "UUID": "'4ac7a9e9-607c-4c8a-84f3-843f0191e3fd'",
    "DATE": "'0001-01-01'",
    "TIME": "'23:59:59.999999'",
    "TIME_NS": "'12:00:00'",
    "TIME WITH TIME ZONE": "'12:00:00+02'",
    "TIMESTAMP_S": "'2000-01-01 00:00:01'",
    "TIMESTAMP_MS": "'2000-01-01 00:00:00.001'",
    "TIMESTAMP": "'9999-12-31 23:59:59.999999'",
    "TIMESTAMP_NS": "'2000-01-01 00:00:00.000000001'",
    "TIMESTAMP WITH TIME ZONE": "'2000-01-01 00:00:00+02'",
    "INTERVAL": "'1 month'",
    "INTEGER[]": "[1, NULL]",
    "INTEGER[2]": "[1, NULL]",
    'STRUCT("a b" INTEGER, c VARCHAR)': "{'a b': 1, 'c': NULL}",
    "MAP(VARCHAR, INTEGER)": "MAP {'a': NULL}",
    "STRUCT(m MAP(VARCHAR, HUGEINT[]))[]": "[{'m': MAP {'x': [1, NULL]}}, NULL]",
    "UNION(num INTEGER, str VARCHAR)": "1",
    "GEOMETRY": "'POINT(1 2)'",
    "VARIANT": "1",
}


def _page(lake: Lake, duck: duckdb.DuckDBPyConnection) -> str:
    """docs/types.md: what became of a value of each type."""
    lines = [
        "# Types and names",
        "",
        "Made by `tests/integration/test_types.py`, which publishes a value of each type and reads it back.",
        f"Write it anew with `{WRITE_PAGE}=1 make test PYTEST_ARGS='-k page_of_types'`.",
        "",
        "| DuckDB | Iceberg | read by DuckDB | read by pyiceberg (Arrow) |",
        "|---|---|---|---|",
    ]
    for kind, value in TYPES.items():
        duck.execute(f"CREATE OR REPLACE TABLE src AS SELECT CAST({value} AS {kind}) AS x")
        try:
            lake.export(duck, "src")
        except SchemaError as exc:
            lines.append(f"| `{kind}` | refused: {exc.hint} | | |")
            continue
        table = lake.fresh()
        made = table.publish(duck, "src")
        _assert_reads_back(table, duck, made, "src")
        (column,) = made.columns or ()
        (read,) = duck.sql("FROM lake.published").types
        lines.append(f"| `{kind}` | `{column.type}` | `{read}` | `{table.arrow().schema.field(0).type}` |")
    return "\n".join(lines) + "\n" + RULES


RULES = """
What the table does not say:

- Nothing is rounded or made text unasked. A HUGEINT or UHUGEINT of more than 38 digits fails the run with its column.
- A fixed-size array is published as a list: all its values, not the rule that they are so many.
- JSON is text to DuckDB too, and is published as its text. A bare NULL column is an INTEGER, as DuckDB makes it.
- NaN, infinities and -0.0 of FLOAT and DOUBLE are kept. Infinite dates and timestamps, years outside 1 to 9999 and the
  time 24:00:00 are refused: other readers would take them for something else.
- A table's columns may be added and dropped, and widened (int to long, float to double, decimal to more digits). Any
  other change of type, and any change of the fields inside a column, is refused before anything is uploaded. A column
  that comes narrower than the table's is published in the table's type.
- A refused type inside a list, a struct or a map is refused with the cast of the whole column.
- CSV files of a prefix are held to the same times as tables.

## Partitions

- `partition_by` a column's values: BOOLEAN, integers, DECIMAL, VARCHAR, DATE, TIMESTAMP and TIMESTAMPTZ. By `day`,
  `month` or `year`: DATE, TIMESTAMP and TIMESTAMPTZ; by `hour`: the last two. Times are cut in UTC. NULL is a
  partition.
- Each file is wholly of one partition: `part-00000.parquet` and so on, in the order of the partitions, their rows in
  the order of the relation. Texts are told apart by their bytes, whatever the collation.
- Refused: any other type; a text of more than 256 bytes, which the statistics in a file would cut; more than 5,000
  partitions in one run; with `replace_where`, a row of another partition, NULL among them.
- `where` is written as DuckDB writes the value: `2013-06-01`, `true`, `1.50`, `2013-06-01 00:00:00+00`.

## Keys

- With mode `merge`, two keys are the same where SQL's `=` says so: NaN equals NaN, 0.0 equals -0.0, 1.5 equals 1.50.
  Texts are the same where their bytes are.
- A new row with a NULL in its key, or a key that is there twice among the new rows, fails the run. Published rows
  without a key stay, and no new row takes their place. Lists, structs and maps cannot be keys.
- A column that only the table has stays, and is NULL in new rows. Types meet in the wider one, or are refused.

## Names

- Names of columns and of fields in structs keep their case, spaces, dots, quotes and any script.
- Refused: an empty name; control characters and line breaks; more than 255 bytes in UTF-8 (AWS Glue's limit);
  `__duckdb_field_id`; two names of one table or struct that differ in case only; two columns whose full names (joined
  by dots) are one, as `"a.b"` beside a struct `a` with a field `b`.
"""


def test_the_page_of_types_says_what_happens(lake: Lake, duck: duckdb.DuckDBPyConnection) -> None:
    page = _page(lake, duck)

    if os.environ.get(WRITE_PAGE):
        PAGE.write_text(page, "utf-8")
    assert PAGE.read_text("utf-8") == page


# ---------------------------------------------------------------- values that do not fit


@pytest.mark.parametrize(
    "value",
    [
        "170141183460469231731687303715884105727::HUGEINT",
        "[{'n': 340282366920938463463374607431768211455::UHUGEINT}]",
        "'infinity'::DATE",
        "'-infinity'::TIMESTAMP",
        "[{'a': '10000-01-01'::TIMESTAMPTZ}]",
        "'0001-01-01 (BC)'::DATE",
        "'24:00:00'::TIME",
    ],
)
def test_a_value_that_iceberg_cannot_hold_names_its_column(
    lake: Lake, duck: duckdb.DuckDBPyConnection, value: str
) -> None:
    with pytest.raises(SchemaError, match=rf"^{lake.name}\.bad") as error:
        lake.export(duck, f"(SELECT 1::HUGEINT AS good, '2000-01-01'::DATE AS d, {value} AS bad)")

    assert 'CAST("bad" AS VARCHAR)' in (error.value.hint or "")


def test_the_logics_own_failing_cast_is_not_taken_for_ours(lake: Lake, duck: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.ConversionException):
        lake.export(duck, "(SELECT v::INTEGER AS bad, 1::HUGEINT AS sum FROM (VALUES ('x')) t(v))")


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1 AS a, 2 AS a",
        'SELECT 1 AS "ä", 2 AS "Ä"',
        "SELECT {'ä': 1, 'Ä': 2} AS s",
        "SELECT row(1, 2) AS s",
        'SELECT 1 AS "a\tb"',
        f'SELECT 1 AS "{"é" * 128}"',
        'SELECT 1 AS "__duckdb_field_id"',
        "SELECT 1 AS \"s.a\", {'a': 1} AS s",
    ],
)
def test_a_name_that_would_not_come_back_is_refused(lake: Lake, duck: duckdb.DuckDBPyConnection, query: str) -> None:
    with pytest.raises(SchemaError, match=rf"^{lake.name}.*: expected .*, got ") as error:
        lake.export(duck, f"({query})")

    assert error.value.hint


NAMES = [
    "a b",
    "a.b",
    'q"q',
    "it's",
    "Größe",
    "SELECT",
    "🦆",
    "1st",
    "_run",
    "filename",
    "_pos",
    "element",
    "t",
    " x ",
    "a,b",
]


def test_a_column_called_like_the_fingerprints_row_does_not_hide_the_others(
    lake: Lake, duck: duckdb.DuckDBPyConnection
) -> None:
    one, _ = lake.export(duck, "(SELECT 1 AS t, 2 AS u)")
    other, _ = lake.export(duck, "(SELECT 1 AS t, 3 AS u)")

    assert one.fingerprint != other.fingerprint


# ---------------------------------------------------------------- tables


def test_a_view_of_300_columns_is_materialized(lake: Lake, duck: duckdb.DuckDBPyConnection) -> None:
    duck.execute(
        "CREATE VIEW wide AS SELECT " + ", ".join(f"i + {n} AS c{n}" for n in range(300)) + " FROM range(3) r(i)"
    )

    _assert_reads_back(lake, duck, lake.publish(duck, "wide"), "wide")


def test_no_rows_are_a_table_with_its_columns(lake: Lake, duck: duckdb.DuckDBPyConnection) -> None:
    duck.execute("CREATE TABLE src AS SELECT 1::HUGEINT AS n, {'a': [1]} AS s WHERE false")

    _assert_reads_back(lake, duck, lake.publish(duck, "src"), "src")

    assert lake.arrow().schema.names == ["n", "s"]


def test_columns_come_go_and_widen_and_keep_their_ids(lake: Lake, duck: duckdb.DuckDBPyConnection) -> None:
    duck.execute("CREATE TABLE one AS SELECT 1 AS id, {'a': [{'b': 1}], 'c': MAP {'k': [1]}} AS s, 'x' AS gone")
    duck.execute("""CREATE TABLE two AS SELECT 1::BIGINT AS id, {'a': [{'b': 1}], 'c': MAP {'k': [1]}} AS s,
        {'m': MAP {{'k': 1}: [{'v': 2}]}, 'z': 3} AS "new.nested", 4 AS last""")
    _assert_reads_back(lake, duck, lake.publish(duck, "one"), "one")
    before = lake.tables.load(lake.name).field_ids

    _assert_reads_back(lake, duck, lake.publish(duck, "two"), "two")

    after = lake.tables.load(lake.name)
    assert (after.field_ids["id"], after.field_ids["s"]) == (before["id"], before["s"])
    assert "gone" not in after.field_ids
    assert min(_ids(after.field_ids["new.nested"])) > max(i for each in before.values() for i in _ids(each))
    assert after.last_field_id == max(i for each in after.field_ids.values() for i in _ids(each))


def _ids(each: FieldIds) -> list[int]:
    return [each.id, *(i for child in each.children.values() for i in _ids(child))]


@pytest.mark.parametrize("query", ["SELECT 'x' AS n, {'a': 1} AS s", "SELECT 1 AS n, {'a': 1, 'b': 2} AS s"])
def test_another_kind_of_column_is_refused(lake: Lake, duck: duckdb.DuckDBPyConnection, query: str) -> None:
    lake.publish(duck, "(SELECT 1 AS n, {'a': 1} AS s)")

    with pytest.raises(SchemaError, match=rf"^{lake.name}\b.*expected .*, got ") as error:
        lake.publish(duck, f"({query})")

    assert "new name" in (error.value.hint or "")


# ---------------------------------------------------------------- any table

_PUBLISHED = {
    kind: value
    for kind, value in TYPES.items()
    if not kind.startswith(("BIGNUM", "ENUM", "BIT", "TIME_NS", "TIME WITH", "TIMESTAMP_NS", "INTERVAL", "UNION"))
    and kind not in ("GEOMETRY", "VARIANT", "JSON")  # JSON reports as VARCHAR, whose any text it refuses
}
names = st.sampled_from(NAMES) | st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp", "Cn")), min_size=1, max_size=12
)


def _structs(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    fields = st.lists(st.tuples(names, inner), min_size=1, max_size=3, unique_by=lambda each: each[0].lower())
    return fields.map(lambda each: "STRUCT(" + ", ".join(f"{quote(n)} {kind}" for n, kind in each) + ")")


kinds = st.recursive(
    st.sampled_from(sorted(_PUBLISHED)),
    lambda inner: (
        inner.map("{}[]".format) | _structs(inner) | st.tuples(inner, inner).map(lambda kv: f"MAP({kv[0]}, {kv[1]})")
    ),
    max_leaves=4,
)
tables = st.lists(st.tuples(names, kinds), min_size=1, max_size=5, unique_by=lambda each: each[0].lower())


def _value(dtype: Any, data: st.DataObject, *, null: bool = True) -> str:
    if null and data.draw(st.integers(0, 3)) == 0:
        return "NULL"
    children = dict(dtype.children) if dtype.id in ("list", "struct", "map", "array") else {}
    if dtype.id == "list":
        inside = [_value(children["child"], data) for _ in range(data.draw(st.integers(0, 2)))]
        return f"CAST([{', '.join(inside)}] AS {dtype})"
    if dtype.id == "struct":
        return f"CAST(row({', '.join(_value(child, data) for child in children.values())}) AS {dtype})"
    if dtype.id == "map":
        key, value = _value(children["key"], data, null=False), _value(children["value"], data)
        return f"CAST(MAP([{key}], [{value}]) AS {dtype})"
    if dtype.id == "varchar":
        return f"CAST({_text(data.draw(names))} AS {dtype})"
    if dtype.id in ("bigint", "double", "integer"):
        return f"CAST({data.draw(st.integers(-(2**31), 2**31 - 1))} AS {dtype})"
    known = _PUBLISHED.get(str(dtype))
    return f"CAST({known} AS {dtype})" if known else "NULL"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


@settings(
    max_examples=25,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(columns=tables, data=st.data())
def test_any_table_reads_back_equal(module_lake: Lake, columns: list[tuple[str, str]], data: st.DataObject) -> None:
    table = module_lake.fresh()
    with _connected() as duck:
        made_of = ", ".join(f"{quote(name)} {kind}" for name, kind in columns)
        duck.execute(f"CREATE TABLE src ({made_of})")
        types = duck.sql("FROM src").types
        for _ in range(data.draw(st.integers(0, 4))):
            duck.execute(f"INSERT INTO src VALUES ({', '.join(_value(kind, data) for kind in types)})")

        made = table.publish(duck, "src")

        _assert_reads_back(table, duck, made, "src")
