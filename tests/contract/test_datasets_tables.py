"""Tables as versioned datasets: the contract of all datasets, of the twin and of Iceberg, then what is theirs."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import duckdb
import pytest

from runner.adapters.aws import Aws
from runner.adapters.pg_ledger import PgLedger
from runner.adapters.s3_objects import S3Objects
from runner.engines.types import column_types, field_ids, field_ids_sql
from runner.model.errors import DataError, SchemaError
from runner.model.manifest import NO_SNAPSHOT, Column, FileRecord, OutputRecord
from runner.model.messages import FieldIds
from runner.model.names import effect_prefix, rerun_branch, table_prefix
from runner.model.ranges import WHOLE_TABLE, range_of
from runner.model.spec import Output, Partition
from runner.ports import LostRace, Objects
from tests.support.datasets import DatasetsContract, Rig, tag_of
from tests.support.twins import MemoryObjects, MemoryTables

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

NAME = "staging.flights"
COLUMNS = {"id": "int", "name": "string"}
BY_CARRIER: dict[str, Any] = {"mode": "replace_where", "partition_by": {"column": "carrier"}}
BY_DAY: dict[str, Any] = {"mode": "replace_where", "partition_by": {"column": "at", "unit": "day"}}
LOGICAL_TIME = datetime(2013, 6, 1, tzinfo=UTC)

Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class TableRig(Rig):
    """`file_of` makes a Parquet file of columns (name: type) under the field ids that they are to have.

    `written` makes one as the engine does, of a query's rows, below the files of an effect. `rows` are those of a
    snapshot, in the order of their text.
    """

    file_of: Callable[[dict[str, str], dict[str, int], int], FileRecord]
    written: Callable[[str, str, UUID], FileRecord]
    rows: Callable[[str], Rows]

    def output_of(self, columns: dict[str, str], branch: str | None = None, *, rows: int = 3) -> OutputRecord:
        """What an engine makes of `columns`: a known one keeps its field id, a new one gets the next."""
        table = self.load()
        ids, last = {name: each.id for name, each in table.field_ids.items()}, table.last_field_id
        for name in columns:
            if name not in ids:
                last += 1
                ids[name] = last
        file = self.file_of(columns, {name: ids[name] for name in columns}, rows)
        return self.output(branch).model_copy(
            update={
                "files": (file,),
                "columns": tuple(Column(name=name, type=kind) for name, kind in columns.items()),
            }
        )

    def publish_columns(self, columns: dict[str, str], branch: str | None = None) -> str:
        return self.load().commit(self.output_of(columns, branch), tag_of(uuid4()))

    def made(
        self, queries: Sequence[str], *, effect: UUID | None = None, branch: str | None = None, **declared: Any
    ) -> OutputRecord:
        """What a run publishes: a file of each query's rows. `declared` is what the spec says of the output."""
        output = Output.model_validate({"dataset": NAME, **declared})
        table, described = self.load(), duckdb.sql(queries[0])
        columns = column_types(described.columns, described.types, relation=NAME)
        ids = field_ids_sql(field_ids(columns, table.field_ids, table.last_field_id, relation=NAME))
        effect = effect or uuid4()
        return self.output(branch).model_copy(
            update={
                "mode": output.mode,
                "partition_by": output.partition_by,
                "range": range_of(output, effect=effect, logical_time=LOGICAL_TIME),
                "key": output.key,
                "files": tuple(self.written(query, ids, effect) for query in queries),
                "columns": tuple(Column(name=name, type=each.iceberg) for name, each in columns.items()),
            }
        )

    def publish_rows(
        self, *queries: str, effect: UUID | None = None, branch: str | None = None, **declared: Any
    ) -> str:
        effect = effect or uuid4()
        output = self.made(queries, effect=effect, branch=branch, **declared)
        return self.load().commit(output, tag_of(uuid4(), effect=effect, range=output.range))

    @property
    def published(self) -> Rows:
        return self.rows(self.datasets.pin(NAME, "x", None).snapshot)


def values(*rows: str) -> str:
    """`(1, 'UA')`, … as a query of the columns id and carrier."""
    return f"SELECT * FROM (VALUES {', '.join(rows)}) _(id, carrier)"


def days(*rows: str) -> str:
    """`(1, '2013-06-01 10:00')`, … as a query of the columns id and at."""
    return f"SELECT id, moment::TIMESTAMP AS at FROM (VALUES {', '.join(rows)}) _(id, moment)"


NOTHING = "SELECT 1 AS id, 'UA' AS carrier WHERE false"


def rig_of(
    rig: Callable[[Callable[[], FileRecord]], Rig], objects: Objects, folder: Path, rows: Callable[[str], Rows]
) -> TableRig:
    def file_of(columns: dict[str, str], ids: dict[str, int], rows: int) -> FileRecord:
        key = f"{table_prefix(NAME)}data/{uuid4()}/1/part.parquet"
        body = parquet(columns, ids, rows)
        objects.put(key, body)
        return FileRecord(uri=objects.uri(key), bytes=len(body), rows=rows)

    def written(query: str, ids: str, effect: UUID) -> FileRecord:
        path = folder / f"{uuid4()}.parquet"
        counted = duckdb.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet, COMPRESSION zstd, FIELD_IDS {ids})")
        ((count,),) = counted.fetchall()
        key = f"{effect_prefix(NAME, effect)}{uuid4()}/1/{uuid4()}/{path.name}"
        objects.put_file(key, path)
        return FileRecord(uri=objects.uri(key), bytes=path.stat().st_size, rows=count)

    base = rig(lambda: file_of(COLUMNS, {"id": 1, "name": 2}, 3))
    return TableRig(base.datasets, base.name, base.file, file_of, written, rows)


def in_order(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> Rows:
    return sorted((tuple(row.get(name) for name in columns) for row in rows), key=str)


def parquet(columns: dict[str, str], ids: dict[str, int], rows: int) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet as writer

    kinds = {"int": pa.int32(), "long": pa.int64(), "string": pa.string()}
    schema = pa.schema(
        [
            pa.field(name, kinds[kind], metadata={b"PARQUET:field_id": str(ids[name]).encode()})
            for name, kind in columns.items()
        ]
    )
    values = {name: [None if kind == "string" else 1] * rows for name, kind in columns.items()}
    sink = io.BytesIO()
    writer.write_table(pa.table(values, schema=schema), sink)
    return sink.getvalue()


@pytest.fixture(scope="module")
def migrated_url(ledger_url: str) -> str:
    ledger = PgLedger(ledger_url)
    ledger.migrate()
    ledger.close()
    return ledger_url


@pytest.fixture
def sql(aws: Aws, migrated_url: str, bucket: str) -> Iterator[Catalog]:
    from runner.adapters.iceberg_tables import sql_catalog

    with _emptied(sql_catalog(migrated_url, bucket=bucket, aws=aws.properties)) as made:
        yield made


@pytest.fixture
def glue(aws: Aws, bucket: str) -> Iterator[Catalog]:
    """The emulator's Glue, which is one for the account: tests with it stay in this file, and so in one process."""
    from runner.adapters.iceberg_tables import glue_catalog

    with _emptied(glue_catalog(bucket=bucket, aws=aws.properties)) as made:
        yield made


@contextmanager
def _emptied(catalog: Catalog) -> Iterator[Catalog]:
    yield catalog
    for table in catalog.list_tables("staging") if catalog.namespace_exists("staging") else []:
        catalog.drop_table(table)  # the catalog outlives the test, whose own the bucket is
    catalog.close()


@pytest.fixture(params=["memory", "sql", "glue"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> TableRig:
    if request.param == "memory":
        return _in_memory(tmp_path)
    return _in_iceberg(request, request.getfixturevalue(request.param), tmp_path)


@pytest.fixture(params=["memory", "sql"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> TableRig:
    """For what a catalog has no part in: the twin and one of them."""
    return (
        _in_memory(tmp_path)
        if request.param == "memory"
        else _in_iceberg(request, request.getfixturevalue("sql"), tmp_path)
    )


@pytest.fixture(params=["sql", "glue"])
def iceberg(request: pytest.FixtureRequest, tmp_path: Path) -> TableRig:
    """For what no twin has: Iceberg's own files."""
    return _in_iceberg(request, request.getfixturevalue(request.param), tmp_path)


@pytest.fixture
def one(request: pytest.FixtureRequest, sql: Catalog, tmp_path: Path) -> TableRig:
    """For what is the same whatever the catalog: what is done to and told by files."""
    return _in_iceberg(request, sql, tmp_path)


def _in_memory(folder: Path) -> TableRig:
    objects = MemoryObjects()

    def read(uri: str) -> Any:
        from pyarrow import parquet as reader

        return reader.read_table(io.BytesIO(objects.get(uri.removeprefix(objects.uri(""))) or b""))

    def partition_of(file: FileRecord, by: Partition) -> str | None:
        forms = {"hour": "%Y-%m-%d-%H", "day": "%Y-%m-%d", "month": "%Y-%m", "year": "%Y"}
        found = {
            each if each is None else f"{each:{forms[by.unit]}}" if by.unit in forms else str(each)
            for each in read(file.uri).column(by.column).to_pylist()
        }
        if len(found) != 1:
            raise SchemaError(f"{NAME}.{by.column}: expected files that are each of one partition, got {len(found)}")
        return found.pop()

    tables = MemoryTables(partition_of)

    def rows(snapshot: str) -> Rows:
        pin = tables.pin(NAME, "x", snapshot)
        found = [row for each in tables.files(pin) if each.holds_rows for row in read(each.uri).to_pylist()]
        return in_order(list(tables.load(NAME).field_ids), found)

    return rig_of(lambda file: Rig(tables, NAME, file), objects, folder, rows)


def _in_iceberg(request: pytest.FixtureRequest, catalog: Catalog, folder: Path) -> TableRig:
    from runner.adapters.iceberg_tables import IcebergTables

    bucket: str = request.getfixturevalue("bucket")
    tables = IcebergTables(catalog, bucket=bucket)
    objects = S3Objects(request.getfixturevalue("s3_client"), bucket)
    reader: duckdb.DuckDBPyConnection = request.getfixturevalue("reader")

    def rows(snapshot: str) -> Rows:
        """As DuckDB and pyiceberg read them, which has to be the same, column by column."""
        table = catalog.load_table(NAME)
        scan = f"iceberg_scan('{table.metadata_location}', snapshot_from_id = {snapshot})"
        theirs = reader.execute(f"SELECT * FROM {scan}").to_arrow_table()
        ours = table.scan(snapshot_id=int(snapshot)).to_arrow()
        assert theirs.column_names == ours.column_names
        assert in_order(theirs.column_names, theirs.to_pylist()) == in_order(ours.column_names, ours.to_pylist())
        return in_order(ours.column_names, ours.to_pylist())

    return rig_of(lambda file: Rig(tables, NAME, file), objects, folder, rows)


@pytest.fixture(scope="module")
def reader(aws: Aws) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB as anybody would read the lake with it: its own S3, no broker."""
    from runner.engines.scratch import _extension

    with duckdb.connect(config={"autoinstall_known_extensions": "false"}) as connection:
        for name in ("httpfs", "avro", "iceberg"):
            connection.execute(f"LOAD '{_extension(name)}'")
        connection.execute("SET TimeZone = 'UTC'")
        endpoint = aws.properties["endpoint"].removeprefix("http://")
        connection.execute(
            f"CREATE SECRET (TYPE s3, KEY_ID 'test', SECRET 'test', REGION 'us-east-1', URL_STYLE 'path', "
            f"USE_SSL false, ENDPOINT '{endpoint}')"
        )
        yield connection


class TestTables(DatasetsContract):
    """A table is held to what every dataset is held to."""


def test_a_snapshots_id_is_a_number_as_text(rig: TableRig) -> None:
    assert rig.publish().isdecimal()


def test_what_is_served_says_which_files_hold_rows(rig: TableRig) -> None:
    rig.publish()
    pin = rig.datasets.pin(NAME, "x", None)

    served = rig.datasets.files(pin)

    assert pin.metadata in {each.uri for each in served if not each.holds_rows}
    assert len([each for each in served if each.holds_rows]) == 1


def test_a_table_tells_the_field_ids_that_it_has_given_out(rig: TableRig) -> None:
    rig.publish_columns({"id": "int", "name": "string"})

    dataset = rig.load()

    assert dict(dataset.field_ids) == {"id": FieldIds(id=1), "name": FieldIds(id=2)}
    assert dataset.last_field_id == 2


def test_a_new_column_gets_a_new_id_and_a_dropped_ones_id_is_not_given_out_again(rig: TableRig) -> None:
    rig.publish_columns({"id": "int", "name": "string"})
    rig.publish_columns({"id": "int", "city": "string"})
    rig.publish_columns({"id": "int", "name": "string", "city": "string"})

    dataset = rig.load()

    assert dict(dataset.field_ids) == {"id": FieldIds(id=1), "city": FieldIds(id=3), "name": FieldIds(id=4)}
    assert dataset.last_field_id == 4


def test_a_column_can_widen(rig: TableRig) -> None:
    rig.publish_columns({"id": "int"})
    snapshot = rig.publish_columns({"id": "long"})

    assert rig.datasets.pin(NAME, "x", None).snapshot == snapshot


@pytest.mark.parametrize("kind", ["string", "int"])
def test_a_column_cannot_become_something_else(rig: TableRig, kind: str) -> None:
    snapshot = rig.publish_columns({"id": "long"})

    with pytest.raises(SchemaError, match=rf"^{NAME}\b.*id"):
        rig.publish_columns({"id": kind})

    assert rig.datasets.pin(NAME, "x", None).snapshot == snapshot


def test_a_branch_does_not_change_a_tables_columns(rig: TableRig) -> None:
    rig.publish_columns({"id": "int"})

    with pytest.raises(SchemaError, match=rf"^{NAME}\b.*city"):
        rig.publish_columns({"id": "int", "city": "string"}, rerun_branch(uuid4()))

    assert set(rig.load().field_ids) == {"id"}


def test_a_branch_needs_something_published_to_lie_beside(rig: TableRig) -> None:
    run_id = uuid4()

    with pytest.raises(DataError, match=rf"^{NAME}: expected a published table") as error:
        rig.publish(tag_of(run_id), rerun_branch(run_id))

    assert "--publish" in (error.value.hint or "")
    assert rig.load().landed(run_id) == []


def test_an_output_without_rows_empties_the_table_and_keeps_its_columns(rig: TableRig) -> None:
    rig.publish_columns(COLUMNS)
    output = rig.output_of(COLUMNS, rows=0)

    snapshot = rig.load().commit(output, tag_of(uuid4()))

    pin = rig.datasets.pin(NAME, "x", None)
    assert pin.snapshot == snapshot
    assert [each for each in rig.datasets.files(pin) if each.holds_rows] == []
    assert set(rig.load().field_ids) == set(COLUMNS)


def test_a_table_can_begin_without_rows(rig: TableRig) -> None:
    snapshot = rig.load().commit(rig.output_of(COLUMNS, rows=0), tag_of(uuid4()))

    assert rig.datasets.pin(NAME, "x", None).snapshot == snapshot
    assert set(rig.load().field_ids) == set(COLUMNS)


# ---------------------------------------------------------------- append


def test_an_append_comes_to_what_is_there(either: TableRig) -> None:
    first = either.publish_rows(values("(1, 'UA')", "(2, 'DL')"), mode="append")
    second = either.publish_rows(values("(3, 'UA')"), mode="append")

    assert either.rows(first) == [(1, "UA"), (2, "DL")]
    assert either.rows(second) == [(1, "UA"), (2, "DL"), (3, "UA")]
    assert [each.snapshot for each in either.load().history(None)] == [second, first]


def test_an_append_of_several_files_is_one_snapshot(either: TableRig) -> None:
    snapshot = either.publish_rows(values("(1, 'UA')"), values("(2, 'DL')"), values("(3, 'UA')"), mode="append")

    assert either.rows(snapshot) == [(1, "UA"), (2, "DL"), (3, "UA")]
    assert len(either.load().history(None)) == 1


def test_an_append_takes_the_place_of_what_its_effect_appended_before(rig: TableRig) -> None:
    effect = uuid4()
    rig.publish_rows(values("(1, 'UA')"), mode="append")
    repeated = rig.publish_rows(values("(2, 'DL')"), values("(3, 'DL')"), mode="append", effect=effect)
    rig.publish_rows(values("(4, 'AA')"), mode="append")

    again = rig.publish_rows(values("(5, 'DL')"), mode="append", effect=effect)

    assert rig.published == [(1, "UA"), (4, "AA"), (5, "DL")]
    assert rig.rows(repeated) == [(1, "UA"), (2, "DL"), (3, "DL")]
    assert rig.load().history(None)[0].snapshot == again
    assert len(rig.load().history(None)) == 4


def test_an_effect_is_found_again_after_others_have_rewritten_the_lists_that_name_it(either: TableRig) -> None:
    one, other = uuid4(), uuid4()
    for turn in range(2):
        either.publish_rows(values(f"({turn}, 'one')"), mode="append", effect=one)
        either.publish_rows(values(f"({turn}, 'other')"), values(f"({turn}, 'more')"), mode="append", effect=other)

    either.publish_rows(values("(2, 'one')"), mode="append", effect=one)

    assert either.published == [(1, "more"), (1, "other"), (2, "one")]


def test_an_append_without_rows_is_a_snapshot_that_adds_none(either: TableRig) -> None:
    either.publish_rows(values("(1, 'UA')"), mode="append")

    snapshot = either.publish_rows(NOTHING, mode="append")

    assert either.rows(snapshot) == [(1, "UA")]
    assert len(either.load().history(None)) == 2


def test_an_append_repeated_without_rows_takes_its_own_away(either: TableRig) -> None:
    effect = uuid4()
    either.publish_rows(values("(1, 'UA')"), mode="append")
    either.publish_rows(values("(2, 'DL')"), mode="append", effect=effect)

    either.publish_rows(NOTHING, mode="append", effect=effect)

    assert either.published == [(1, "UA")]


def test_a_column_that_an_append_lacks_stays_and_reads_null_in_its_rows(either: TableRig) -> None:
    either.publish_rows(values("(1, 'UA')"), mode="append")

    either.publish_rows("SELECT 2 AS id", mode="append")

    assert either.published == [(1, "UA"), (2, None)]
    assert set(either.load().field_ids) == {"id", "carrier"}


def test_a_column_that_an_append_brings_reads_null_in_the_rows_before(rig: TableRig) -> None:
    rig.publish_rows(values("(1, 'UA')"), mode="append")

    rig.publish_rows("SELECT 2 AS id, 'DL' AS carrier, 7 AS delay", mode="append")

    assert rig.published == [(1, "UA", None), (2, "DL", 7)]


def test_an_appends_column_can_widen_and_old_rows_keep_their_values(either: TableRig) -> None:
    either.publish_rows("SELECT 1 AS id", mode="append")

    either.publish_rows("SELECT 5000000000 AS id", mode="append")

    assert either.published == [(1,), (5_000_000_000,)]


def test_an_appends_column_cannot_become_another(either: TableRig) -> None:
    snapshot = either.publish_rows("SELECT 1 AS id", mode="append")

    with pytest.raises(SchemaError, match=rf"^{NAME}\b.*id"):
        either.publish_rows("SELECT 'one' AS id", mode="append")

    assert either.datasets.pin(NAME, "x", None).snapshot == snapshot


# ---------------------------------------------------------------- replace and merge


@pytest.mark.parametrize("declared", [{"mode": "replace"}, {"mode": "merge", "key": ("id",)}])
def test_a_replace_and_a_merge_are_the_whole_content(rig: TableRig, declared: dict[str, Any]) -> None:
    rig.publish_rows(values("(1, 'UA')"), values("(2, 'DL')"), mode="append")

    snapshot = rig.publish_rows(values("(2, 'AA')", "(3, 'AA')"), **declared)

    assert rig.published == [(2, "AA"), (3, "AA")]
    assert rig.load().history(None)[0].snapshot == snapshot
    assert len(rig.load().history(None)) == 2


def test_a_replace_drops_a_column_that_it_lacks(either: TableRig) -> None:
    either.publish_rows(values("(1, 'UA')"), mode="append")

    either.publish_rows("SELECT 2 AS id", mode="replace")

    assert either.published == [(2,)]


# ---------------------------------------------------------------- partitions


@pytest.mark.parametrize("mode", ["replace", "append", "merge", "replace_where"])
def test_whatever_mode_makes_a_table_splits_it_as_it_says(rig: TableRig, mode: str) -> None:
    more: dict[str, Any] = {"key": ("id",)} if mode == "merge" else {"where": "UA"} if mode == "replace_where" else {}

    rig.publish_rows(values("(1, 'UA')"), mode=mode, partition_by={"column": "carrier"}, **more)

    assert rig.load().partition_by == Partition(column="carrier")
    assert rig.published == [(1, "UA")]


@pytest.mark.parametrize("unit", ["hour", "day", "month", "year"])
def test_a_table_tells_the_unit_of_time_that_it_is_split_by(either: TableRig, unit: str) -> None:
    by = {"column": "at", "unit": unit}

    either.publish_rows(days("(1, '2013-06-01 00:10')"), mode="replace_where", partition_by=by)

    assert either.load().partition_by == Partition.model_validate(by)
    assert [row[0] for row in either.published] == [1]


def test_a_partition_takes_the_place_of_the_one_of_its_value_alone(rig: TableRig) -> None:
    rig.publish_rows(values("(1, 'UA')"), values("(2, 'DL')"), mode="replace", partition_by={"column": "carrier"})
    rig.publish_rows(values("(3, 'UA')"), mode="append", partition_by={"column": "carrier"})

    snapshot = rig.publish_rows(values("(4, 'UA')"), values("(5, 'UA')"), **BY_CARRIER, where="UA")

    assert rig.rows(snapshot) == [(2, "DL"), (4, "UA"), (5, "UA")]
    assert len(rig.load().history(None)) == 3


def test_the_day_of_logical_time_takes_the_place_of_that_day_alone(rig: TableRig) -> None:
    the_day = "(2, '2013-06-01 00:00:00')", "(3, '2013-06-01 23:59:59.999999')"
    rig.publish_rows(
        days("(1, '2013-05-31 23:59:59.999999')"),
        days(*the_day),
        days("(4, '2013-06-02 00:00')"),
        mode="replace",
        partition_by=BY_DAY["partition_by"],
    )

    rig.publish_rows(days("(5, '2013-06-01 12:00')"), **BY_DAY)

    assert [row[0] for row in rig.published] == [1, 4, 5]


def test_a_partition_that_is_not_there_yet_comes_to_the_others(either: TableRig) -> None:
    either.publish_rows(values("(1, 'UA')"), **BY_CARRIER, where="UA")

    either.publish_rows(values("(2, 'DL')"), **BY_CARRIER, where="DL")

    assert either.published == [(1, "UA"), (2, "DL")]


def test_a_partition_without_rows_empties_that_partition(either: TableRig) -> None:
    either.publish_rows(values("(1, 'UA')"), values("(2, 'DL')"), mode="replace", partition_by={"column": "carrier"})

    either.publish_rows(NOTHING, **BY_CARRIER, where="UA")

    assert either.published == [(2, "DL")]


def test_a_partitioned_table_can_begin_without_rows(either: TableRig) -> None:
    snapshot = either.publish_rows(NOTHING, **BY_CARRIER, where="UA")

    assert either.rows(snapshot) == []
    assert either.load().partition_by == Partition(column="carrier")


def test_rows_without_a_value_are_a_partition_that_no_other_replaces(either: TableRig) -> None:
    by = {"column": "carrier"}
    either.publish_rows(values("(1, NULL::VARCHAR)"), values("(2, 'UA')"), mode="replace", partition_by=by)
    either.publish_rows(values("(3, NULL::VARCHAR)"), mode="append", partition_by=by)

    either.publish_rows(values("(4, 'UA')"), **BY_CARRIER, where="UA")

    assert either.published == [(1, None), (3, None), (4, "UA")]


@pytest.mark.parametrize(
    ("rows", "declared"),
    [
        (values("(1, 'UA')"), {"where": "DL"}),
        (values("(1, 'UA')", "(2, 'DL')"), {"where": "UA"}),
        (values("(1, 'UA')", "(2, NULL)"), {"where": "UA"}),
        (values("(1, NULL::VARCHAR)"), {"where": "UA"}),
        (values("(1, 'UA')", "(2, 'DL')"), {"mode": "append"}),
        (values("(1, NULL)", "(2, 'DL')"), {"mode": "replace"}),
    ],
)
def test_a_file_that_is_not_wholly_of_one_partition_and_the_right_one_is_refused(
    either: TableRig, rows: str, declared: dict[str, Any]
) -> None:
    either.publish_rows(values("(1, 'UA')"), **BY_CARRIER, where="UA")

    with pytest.raises(SchemaError, match=rf"^{NAME}\b.*: expected "):
        either.publish_rows(values("(7, 'UA')") if "where" in declared else NOTHING, rows, **{**BY_CARRIER, **declared})

    assert either.published == [(1, "UA")]
    assert len(either.load().history(None)) == 1


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        (None, {"column": "carrier"}),
        ({"column": "carrier"}, None),
        ({"column": "carrier"}, {"column": "id"}),
        ({"column": "at", "unit": "day"}, {"column": "at", "unit": "hour"}),
    ],
)
def test_a_table_keeps_the_partitions_that_it_was_made_with(
    either: TableRig, there: dict[str, str] | None, asked: dict[str, str] | None
) -> None:
    query = "SELECT 1 AS id, 'UA' AS carrier, TIMESTAMP '2013-06-01 10:00' AS at"
    snapshot = either.publish_rows(query, mode="replace", partition_by=there)

    with pytest.raises(SchemaError, match=rf"^{NAME}: expected partition_by .*, as the table is, got "):
        either.publish_rows(query, mode="append", partition_by=asked)

    assert either.datasets.pin(NAME, "x", None).snapshot == snapshot
    assert either.load().partition_by == (Partition.model_validate(there) if there else None)


@pytest.mark.parametrize(
    "declared", [{"mode": "replace"}, {"mode": "append"}, {"mode": "replace_where", "where": "UA"}]
)
def test_the_column_that_a_table_is_split_by_can_neither_go_nor_be_renamed(
    either: TableRig, declared: dict[str, Any]
) -> None:
    snapshot = either.publish_rows(values("(1, 'UA')"), **BY_CARRIER, where="UA")

    with pytest.raises(SchemaError, match=rf"^{NAME}.carrier: expected the column that the table is partitioned by"):
        either.publish_rows("SELECT 1 AS id, 'UA' AS airline", partition_by={"column": "carrier"}, **declared)

    assert either.datasets.pin(NAME, "x", None).snapshot == snapshot


def test_a_column_that_a_partition_lacks_stays_for_the_other_partitions(either: TableRig) -> None:
    either.publish_rows("SELECT 1 AS id, 'UA' AS carrier, 7 AS delay", **BY_CARRIER, where="UA")

    either.publish_rows(values("(2, 'DL')"), **BY_CARRIER, where="DL")

    assert either.published == [(1, "UA", 7), (2, "DL", None)]


# ---------------------------------------------------------------- branches and races

EACH_MODE = pytest.mark.parametrize(
    ("declared", "shown"),
    [
        ({"mode": "replace"}, [(9, "UA")]),
        ({"mode": "merge", "key": ("id",)}, [(9, "UA")]),
        ({"mode": "append"}, [(1, "UA"), (2, "DL"), (9, "UA")]),
        ({"mode": "replace_where", "where": "UA"}, [(2, "DL"), (9, "UA")]),
    ],
)


@EACH_MODE
def test_a_branch_shows_what_publishing_would_give_and_publishes_nothing(
    rig: TableRig, declared: dict[str, Any], shown: Rows
) -> None:
    by = {"column": "carrier"}
    published = rig.publish_rows(values("(1, 'UA')"), values("(2, 'DL')"), mode="replace", partition_by=by)
    branch = rerun_branch(uuid4())

    beside = rig.publish_rows(values("(9, 'UA')"), branch=branch, partition_by=by, **declared)

    assert rig.rows(beside) == shown
    assert rig.datasets.pin(NAME, "x", None).snapshot == published
    assert rig.published == [(1, "UA"), (2, "DL")]
    assert [each.snapshot for each in rig.load().history(branch)] == [beside, published]
    assert [each.snapshot for each in rig.load().history(None)] == [published]


@EACH_MODE
def test_publishing_gives_what_the_branch_has_shown(either: TableRig, declared: dict[str, Any], shown: Rows) -> None:
    by = {"column": "carrier"}
    either.publish_rows(values("(1, 'UA')"), values("(2, 'DL')"), mode="replace", partition_by=by)
    either.publish_rows(values("(9, 'UA')"), branch=rerun_branch(uuid4()), partition_by=by, **declared)

    either.publish_rows(values("(9, 'UA')"), partition_by=by, **declared)

    assert either.published == shown


def test_a_branch_of_a_repeated_append_shows_it_in_the_place_of_the_effects_own_rows(either: TableRig) -> None:
    effect = uuid4()
    either.publish_rows(values("(1, 'UA')"), mode="append")
    either.publish_rows(values("(2, 'DL')"), mode="append", effect=effect)

    beside = either.publish_rows(values("(3, 'DL')"), mode="append", effect=effect, branch=rerun_branch(uuid4()))

    assert either.rows(beside) == [(1, "UA"), (3, "DL")]
    assert either.published == [(1, "UA"), (2, "DL")]


def test_a_branch_goes_on_from_what_it_has_whatever_is_published_since(either: TableRig) -> None:
    branch = rerun_branch(uuid4())
    either.publish_rows(values("(1, 'UA')"), mode="append")
    either.publish_rows(values("(2, 'UA')"), mode="append", branch=branch)
    either.publish_rows(values("(3, 'UA')"), mode="append")

    second = either.publish_rows(values("(4, 'UA')"), mode="append", branch=branch)

    assert either.rows(second) == [(1, "UA"), (2, "UA"), (4, "UA")]
    assert either.published == [(1, "UA"), (3, "UA")]


@EACH_MODE
def test_of_two_who_loaded_the_same_state_one_lands_in_every_mode(
    rig: TableRig, declared: dict[str, Any], shown: Rows
) -> None:
    by = {"column": "carrier"}
    rig.publish_rows(values("(1, 'UA')"), values("(2, 'DL')"), mode="replace", partition_by=by)
    first, second, loser = rig.load(), rig.load(), uuid4()
    mine = rig.made([values("(9, 'UA')")], partition_by=by, **declared)
    theirs = rig.made([values("(8, 'UA')")], partition_by=by, **declared)

    first.commit(mine, tag_of(uuid4(), range=mine.range))
    with pytest.raises(LostRace):
        second.commit(theirs, tag_of(loser, range=theirs.range))

    assert rig.published == shown
    assert rig.load().landed(loser) == []


@pytest.mark.parametrize("ours", ["published", "branch"])
def test_a_snapshot_on_another_branch_is_a_lost_race_too(rig: TableRig, ours: str) -> None:
    """Snapshots of a table are numbered in one row, whatever the branch."""
    rig.publish_rows(values("(1, 'UA')"), mode="append")
    mine, theirs = (None, rerun_branch(uuid4())) if ours == "published" else (rerun_branch(uuid4()), None)
    handle, run_id = rig.load(), uuid4()
    rig.publish_rows(values("(2, 'UA')"), mode="append", branch=theirs)
    output = rig.made([values("(3, 'UA')")], mode="append", branch=mine)

    with pytest.raises(LostRace):
        handle.commit(output, tag_of(run_id, range=output.range))

    assert rig.load().landed(run_id) == []
    again = rig.load().commit(output, tag_of(run_id, range=output.range))
    assert [each.snapshot for each in rig.load().landed(run_id)] == [again]
    assert (3, "UA") in rig.rows(again)


# ---------------------------------------------------------------- state


def test_the_state_of_what_was_never_published_is_none_and_holds_no_files(either: TableRig) -> None:
    pin = either.datasets.state(NAME, "state:x", None)

    assert (pin.as_, pin.dataset, pin.snapshot, pin.metadata, pin.state) == ("state:x", NAME, NO_SNAPSHOT, "", True)
    assert either.datasets.files(pin) == []


def test_the_state_is_the_newest_snapshot_unless_one_is_named(rig: TableRig) -> None:
    older, newer = rig.publish(), rig.publish()

    newest = rig.datasets.state(NAME, "x", None)
    named = rig.datasets.state(NAME, "x", older)

    assert (newest.snapshot, newest.state) == (newer, True)
    assert (named.snapshot, named.state) == (older, True)
    assert len([each for each in rig.datasets.files(named) if each.holds_rows]) == 1


def test_no_state_may_be_asked_for_of_a_table_that_has_some(either: TableRig) -> None:
    either.publish()

    assert either.datasets.state(NAME, "x", NO_SNAPSHOT).snapshot == NO_SNAPSHOT


@pytest.mark.parametrize("published", [False, True])
def test_a_state_that_is_named_and_not_there_has_expired(either: TableRig, published: bool) -> None:
    if published:
        either.publish()

    with pytest.raises(DataError, match=rf"^state of {NAME}: expected snapshot 4711, got none: input expired") as error:
        either.datasets.state(NAME, "x", "4711")

    assert error.value.subject == NAME


# ---------------------------------------------------------------- Iceberg alone


def table_of(rig: TableRig) -> Table:
    from runner.adapters.iceberg_tables import IcebergTables

    assert isinstance(rig.datasets, IcebergTables)
    return rig.datasets._catalog.load_table(NAME)


@pytest.mark.parametrize(
    ("kind", "value", "where", "other"),
    [
        ("VARCHAR", "'UA'", "UA", "'ua'"),
        ("VARCHAR", "''", "", "' '"),
        ("VARCHAR", "'it''s = 5/ü' || chr(0) || '😀 %2F'", "it's = 5/ü\x00😀 %2F", "'it'"),
        ("VARCHAR", "repeat('a', 300)", "a" * 300, "repeat('a', 299)"),
        ("VARCHAR", "repeat('ä', 5000)", "ä" * 5000, "repeat('ä', 4999) || 'a'"),
        ("VARCHAR", "repeat('a', 63)", "a" * 63, "repeat('a', 64)"),
        ("INTEGER", "-7", -7, "7"),
        ("BIGINT", "-9223372036854775807 - 1", -(2**63), "9223372036854775807"),
        ("BOOLEAN", "true", "true", "false"),
        ("DATE", "'1960-02-29'", "1960-02-29", "'1970-01-01'"),
        ("DATE", "'0001-01-01'", "0001-01-01", "'9999-12-31'"),
        ("TIMESTAMP", "'1969-12-31 23:59:59.999999'", "1969-12-31 23:59:59.999999", "'1970-01-01'"),
        ("TIMESTAMPTZ", "'2013-06-01 10:00:00+02'", "2013-06-01 10:00:00+02:00", "'2013-06-01 10:00:00+00'"),
        ("DECIMAL(4,2)", "'-1.50'", "-1.5", "'1.50'"),
        ("DECIMAL(18,3)", "'123456789012345.678'", "123456789012345.678", "0"),
        ("DECIMAL(38,2)", "'-123456789012345678901234567890.12'", "-123456789012345678901234567890.12", "0"),
    ],
)
def test_a_partition_by_value_is_exact_for_every_type_and_for_its_ends(
    one: TableRig, reader: duckdb.DuckDBPyConnection, kind: str, value: str, where: str | int, other: str
) -> None:
    by = {"column": "c"}
    row = f"SELECT {{}} AS id, CAST({{}} AS {kind}) AS c"
    one.publish_rows(row.format(1, value), row.format(2, other), row.format(3, "NULL"), mode="replace", partition_by=by)

    one.publish_rows(row.format(4, value), mode="replace_where", partition_by=by, where=where)

    assert [each[0] for each in one.published] == [2, 3, 4]
    scan = f"iceberg_scan('{table_of(one).metadata_location}')"
    asked = reader.execute(f"SELECT list(id) FROM {scan} WHERE c = CAST({value} AS {kind})").fetchone()
    assert asked == ([4],)
    assert reader.execute(f"SELECT list(id) FROM {scan} WHERE c IS NULL").fetchone() == ([3],)
    assert reader.execute(f"SELECT list(id) FROM {scan} WHERE c = CAST({other} AS {kind})").fetchone() == ([2],)


@pytest.mark.parametrize("kind", ["DATE", "TIMESTAMP", "TIMESTAMPTZ"])
@pytest.mark.parametrize("unit", ["hour", "day", "month", "year"])
def test_a_partition_of_time_is_exact_before_1970_too(one: TableRig, kind: str, unit: str) -> None:
    if (kind, unit) == ("DATE", "hour"):
        with pytest.raises(SchemaError, match=rf"^{NAME}.at: expected a column of a type that hour\(at\) can split by"):
            one.publish_rows(
                "SELECT DATE '2013-06-01' AS at", mode="append", partition_by={"column": "at", "unit": unit}
            )
        return
    by = {"column": "at", "unit": unit}
    moments = {
        "hour": (
            "1960-02-29 09:59:59.999999",
            "1960-02-29 10:00:00",
            "1960-02-29 10:59:59.999999",
            "1960-02-29 11:00:00",
        ),
        "day": (
            "1960-02-28 23:59:59.999999",
            "1960-02-29 00:00:00",
            "1960-02-29 23:59:59.999999",
            "1960-03-01 00:00:00",
        ),
        "month": (
            "1960-01-31 23:59:59.999999",
            "1960-02-01 00:00:00",
            "1960-02-29 23:59:59.999999",
            "1960-03-01 00:00:00",
        ),
        "year": (
            "1959-12-31 23:59:59.999999",
            "1960-01-01 00:00:00",
            "1960-12-31 23:59:59.999999",
            "1961-01-01 00:00:00",
        ),
    }[unit]
    zone = "+00" if kind == "TIMESTAMPTZ" else ""
    row = f"SELECT {{}} AS id, CAST('{{}}{zone}' AS {kind}) AS at"
    before, low, high, after = (row.format(number, moment) for number, moment in enumerate(moments))
    named = {"hour": "1960-02-29-10", "day": "1960-02-29", "month": "1960-02", "year": "1960"}[unit]
    one.publish_rows(before, f"{low} UNION ALL {high}", after, mode="replace", partition_by=by)
    output = one.made([high], mode="replace_where", partition_by=by)
    output = output.model_copy(update={"range": f"{unit}(at) = {named}"})

    one.load().commit(output, tag_of(uuid4(), range=output.range))

    assert [each[0] for each in one.published] == [0, 2, 3]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("DOUBLE", "'nan'"),
        ("FLOAT", "1"),
        ("BLOB", "'x'"),
        ("TIME", "'10:00'"),
        ("UUID", "'0f6e2efc-806c-48b0-b6de-ed3f41073644'"),
        ("INT[]", "[1]"),
    ],
)
def test_a_column_whose_equal_values_are_no_partition_cannot_split_a_table(
    one: TableRig, kind: str, value: str
) -> None:
    query = f"SELECT CAST({value} AS {kind}) AS c"

    with pytest.raises(SchemaError, match=rf"^{NAME}.c: expected a column of a type that c can split by \(boolean, "):
        one.publish_rows(query, mode="append", partition_by={"column": "c"})
    with pytest.raises(SchemaError, match=rf"^{NAME}.gone: expected a column .*, got none"):
        one.publish_rows(query, mode="append", partition_by={"column": "gone"})

    assert not one.load().exists


@pytest.mark.parametrize(
    ("kind", "value", "where"),
    [
        ("INTEGER", "1", "1.0"),
        ("INTEGER", "1", "one"),
        ("INTEGER", "1", "1_0"),
        ("DATE", "'2013-06-01'", "June"),
        ("DATE", "'2013-06-01'", "2013-06-31"),
        ("DECIMAL(4,2)", "1", "much"),
        ("BOOLEAN", "true", "1"),
        ("TIMESTAMP", "'2013-06-01'", "2013-06-01T00:00:00Z"),
    ],
)
def test_a_value_that_is_none_of_the_partitions_type_is_refused(
    one: TableRig, kind: str, value: str, where: str
) -> None:
    by = {"column": "c"}
    query = f"SELECT CAST({value} AS {kind}) AS c"
    one.publish_rows(query, mode="append", partition_by=by)

    with pytest.raises(SchemaError, match=rf"^{NAME}.c: expected a partition of \w+.*, got 'c = {where}'") as error:
        one.publish_rows(f"{query} WHERE false", mode="replace_where", partition_by=by, where=where)

    assert error.value.hint is not None
    assert len(one.published) == 1


@pytest.mark.parametrize(
    "named", ["table", "day(at) = 2013-06", "day(at) = 2013-02-30", "day(at) = x", "hour(at) = 2013"]
)
def test_a_range_that_is_none_of_the_tables_partitions_is_refused(one: TableRig, named: str) -> None:
    one.publish_rows(days("(1, '2013-06-01 10:00')"), **BY_DAY)
    output = one.made([days("(2, '2013-06-01 10:00')")], **BY_DAY).model_copy(update={"range": named})

    with pytest.raises(SchemaError, match=rf"^{NAME}.at: expected a partition of timestamp, got"):
        one.load().commit(output, tag_of(uuid4(), range=named))

    assert [row[0] for row in one.published] == [1]


def test_what_only_other_writers_split_by_is_said_to_be_unknown(one: TableRig) -> None:
    from pyiceberg.transforms import BucketTransform, YearTransform

    one.publish_rows("SELECT 1 AS id, DATE '2013-06-01' AS at, 'UA' AS carrier", mode="replace")
    with table_of(one).update_spec() as update:
        update.add_field("id", BucketTransform(16), "bucket")
    with pytest.raises(SchemaError, match=rf"^{NAME}: expected partitions by one column.*, got bucket\[16\]"):
        one.load().partition_by  # noqa: B018
    with table_of(one).update_spec() as update:
        update.remove_field("bucket")
        update.add_field("at", YearTransform(), "y")
        update.add_identity("carrier")

    with pytest.raises(SchemaError, match=rf"^{NAME}: expected partitions by one column.*, got year .*, identity "):
        one.publish_rows("SELECT 1 AS id, DATE '2013-06-01' AS at, 'UA' AS carrier", mode="append")


def test_files_of_partitions_that_the_table_had_before_are_replaced_as_a_whole_only(one: TableRig) -> None:
    one.publish_rows(values("(1, 'UA')", "(2, 'DL')"), mode="replace")
    with table_of(one).update_spec() as update:
        update.add_identity("carrier")
    assert one.load().partition_by == Partition(column="carrier")

    with pytest.raises(SchemaError, match=rf"^{NAME}: expected files of the partitions that the table has now"):
        one.publish_rows(values("(3, 'UA')"), **BY_CARRIER, where="UA")
    one.publish_rows(values("(3, 'UA')"), values("(4, 'DL')"), mode="replace", partition_by={"column": "carrier"})
    one.publish_rows(values("(5, 'UA')"), **BY_CARRIER, where="UA")

    assert one.published == [(4, "DL"), (5, "UA")]


def test_columns_and_partitions_of_one_name_do_not_meet(one: TableRig) -> None:
    query = "SELECT {} AS id, TIMESTAMP '2013-06-01 10:00' AS at, 'x' AS at_day"
    one.publish_rows(query.format(1), **BY_DAY)

    one.publish_rows(query.format(2), **BY_DAY)

    assert [row[0] for row in one.published] == [2]
    assert one.load().partition_by == Partition(column="at", unit="day")


def test_a_new_column_cannot_take_a_partitions_name(one: TableRig) -> None:
    one.publish_rows(days("(1, '2013-06-01 10:00')"), **BY_DAY)

    with pytest.raises(SchemaError, match=rf"^{NAME}: expected columns that the table can take on.*at_day"):
        one.publish_rows("SELECT 2 AS id, TIMESTAMP '2013-06-01 10:00' AS at, 'x' AS at_day", **BY_DAY)

    assert [row[0] for row in one.published] == [1]


@pytest.mark.parametrize("column", ["a.b", "with space", 'quo"te', "ünï", "UPPER"])
def test_a_partitions_column_may_have_any_name(one: TableRig, column: str) -> None:
    quoted = '"' + column.replace('"', '""') + '"'
    query = f"SELECT {{}} AS id, '{{}}' AS {quoted}"
    by = {"column": column}
    one.publish_rows(query.format(1, "UA"), query.format(2, "DL"), mode="replace", partition_by=by)

    one.publish_rows(query.format(3, "UA"), mode="replace_where", partition_by=by, where="UA")

    assert one.published == [(2, "DL"), (3, "UA")]
    assert one.load().partition_by == Partition(column=column)


def test_a_partitions_column_can_widen(one: TableRig) -> None:
    by = {"column": "c"}
    one.publish_rows("SELECT 1 AS c", "SELECT 2 AS c", mode="replace", partition_by=by)

    one.publish_rows("SELECT 5000000000 AS c", mode="append", partition_by=by)
    one.publish_rows("SELECT 1::BIGINT AS c FROM range(2)", mode="replace_where", partition_by=by, where=1)

    assert one.published == [(1,), (1,), (2,), (5_000_000_000,)]


def test_a_file_of_many_row_groups_is_of_one_partition_if_all_of_them_are(one: TableRig) -> None:
    by = {"column": "carrier"}
    query = "SELECT i::INTEGER AS id, {} AS carrier FROM range(300000) _(i)"
    one.publish_rows(query.format("repeat('a', 300)"), mode="append", partition_by=by)

    with pytest.raises(SchemaError, match=rf"^{NAME}.carrier: expected files that are each of one partition"):
        one.publish_rows(query.format("repeat('a', 300) || (i // 299999)"), mode="append", partition_by=by)

    assert table_of(one).scan().count() == 300_000


def test_an_effect_is_found_long_after_its_snapshots_have_expired(iceberg: TableRig) -> None:
    effect = uuid4()
    old = [
        iceberg.publish_rows(values("(1, 'UA')"), mode="append"),
        iceberg.publish_rows(values("(2, 'DL')"), mode="append", effect=effect),
    ]
    iceberg.publish_rows(values("(3, 'AA')"), mode="append")
    for snapshot in old:
        table_of(iceberg).maintenance.expire_snapshots().by_id(int(snapshot)).commit()
    assert len(iceberg.load().history(None)) == 1

    iceberg.publish_rows(values("(4, 'DL')"), mode="append", effect=effect)

    assert iceberg.published == [(1, "UA"), (3, "AA"), (4, "DL")]
    with pytest.raises(DataError, match="input expired"):
        iceberg.datasets.state(NAME, "x", old[1])


@pytest.fixture
def lists_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lists of files that were read, as they are read."""
    from pyiceberg.manifest import ManifestEntry, ManifestFile

    read, fetch = list[str](), ManifestFile.fetch_manifest_entry

    def noted(manifest: ManifestFile, io: Any, discard_deleted: bool = True) -> list[ManifestEntry]:
        read.append(manifest.manifest_path)
        return fetch(manifest, io, discard_deleted)

    monkeypatch.setattr(ManifestFile, "fetch_manifest_entry", noted)
    return read


def test_an_append_reads_no_list_of_files_that_cannot_name_its_own(one: TableRig, lists_read: list[str]) -> None:
    effect = uuid4()
    one.publish_rows(values("(0, 'UA')"), mode="append", effect=effect)
    for number in range(1, 4):
        one.publish_rows(values(f"({number}, 'UA')"), mode="append")
    assert lists_read == []

    one.publish_rows(values("(9, 'UA')"), mode="append", effect=effect)

    assert len(lists_read) == 1
    assert [row[0] for row in one.published] == [1, 2, 3, 9]


def test_a_partition_reads_no_list_of_files_of_others(one: TableRig, lists_read: list[str]) -> None:
    for carrier in ("AA", "DL", "UA", "WN"):
        one.publish_rows(values(f"(1, '{carrier}')"), **BY_CARRIER, where=carrier)
    one.publish_rows(values("(1, NULL::VARCHAR)"), mode="append", partition_by=BY_CARRIER["partition_by"])
    assert lists_read == []

    one.publish_rows(values("(2, 'UA')"), **BY_CARRIER, where="UA")

    assert len(lists_read) == 1
    assert one.published == [(1, "AA"), (1, "DL"), (1, "WN"), (1, None), (2, "UA")]


@pytest.mark.parametrize("declared", [{"mode": "replace"}, {"mode": "replace_where", "where": "UA"}])
def test_lists_of_removed_files_do_not_pile_up(one: TableRig, declared: dict[str, Any]) -> None:
    by = {"column": "carrier"}
    for number in range(6):
        one.publish_rows(values(f"({number}, 'UA')"), partition_by=by, **declared)

    table = table_of(one)

    snapshot = table.current_snapshot()
    assert snapshot is not None
    assert len(snapshot.manifests(table.io)) == 2, "what came, and what went"
    assert one.published == [(5, "UA")]


def test_a_snapshots_totals_are_those_of_its_files(iceberg: TableRig) -> None:
    by = {"column": "carrier"}
    first = values("(1, 'UA')", "(2, 'UA')"), values("(3, 'DL')")
    iceberg.publish_rows(*first, mode="replace", partition_by=by)
    iceberg.publish_rows(values("(4, 'UA')"), **BY_CARRIER, where="UA")

    table = table_of(iceberg)

    (made, replaced) = (each.summary for each in table.metadata.snapshots)
    assert made is not None
    assert replaced is not None
    assert (made.operation.value, made["total-records"], made["total-data-files"]) == ("append", "3", "2")
    assert (replaced.operation.value, replaced["deleted-records"], replaced["added-records"]) == (
        "overwrite",
        "2",
        "1",
    )
    assert (replaced["total-records"], replaced["total-data-files"]) == ("2", "2")
    rows = table.inspect.partitions().select(["partition", "record_count"]).to_pylist()
    assert sorted((row["partition"]["carrier"], row["record_count"]) for row in rows) == [("DL", 1), ("UA", 1)]


def test_another_writers_table_is_committed_to_once_too(iceberg: TableRig) -> None:
    """Its property may tell pyiceberg to repeat a commit that lost the race, as no zombie's may be."""
    iceberg.publish_rows(values("(1, 'UA')"), mode="append")
    with table_of(iceberg).transaction() as transaction:
        transaction.set_properties({"commit.retry.num-retries": "4"})
    handle, run_id = iceberg.load(), uuid4()
    iceberg.publish_rows(values("(2, 'UA')"), mode="append")
    output = iceberg.made([values("(3, 'UA')")], mode="append")

    with pytest.raises(LostRace):
        handle.commit(output, tag_of(run_id, range=output.range))

    assert iceberg.load().landed(run_id) == []
    assert table_of(iceberg).properties["commit.retry.num-retries"] == "4"


def test_a_snapshot_of_a_release_that_knew_no_ranges_is_of_the_whole_table(one: TableRig) -> None:
    one.publish_rows(values("(1, 'UA')"), mode="append")
    summary = table_of(one).metadata.snapshots[0].summary
    assert summary is not None
    told = {key: value for key, value in summary.additional_properties.items() if key.startswith("stage-runner.")}
    assert told.pop("stage-runner.range").startswith("effect ")
    table = table_of(one)
    with table.transaction() as transaction, transaction.update_snapshot(told).fast_append():
        pass

    old, new = one.load().history(None)

    assert old.tag is not None
    assert new.tag is not None
    assert old.tag == replace(new.tag, range=WHOLE_TABLE)


def test_an_output_without_a_file_has_no_columns_to_publish(one: TableRig) -> None:
    output = one.made([NOTHING], mode="append").model_copy(update={"files": ()})

    with pytest.raises(SchemaError, match=f"^{NAME}: expected a file that tells the columns"):
        one.load().commit(output, tag_of(uuid4(), range=output.range))

    assert not one.load().exists


def test_of_many_who_append_at_once_each_lands_once(iceberg: TableRig) -> None:
    iceberg.publish_rows(values("(0, 'UA')"), mode="append")
    outputs = [iceberg.made([values(f"({number}, 'UA')")], mode="append") for number in range(1, 6)]

    def land(output: OutputRecord) -> str:
        while True:
            try:
                return iceberg.load().commit(output, tag_of(uuid4(), range=output.range))
            except LostRace:
                continue

    with ThreadPoolExecutor(max_workers=5) as threads:
        snapshots = set(threads.map(land, outputs))

    assert [row[0] for row in iceberg.published] == [0, 1, 2, 3, 4, 5]
    assert {each.snapshot for each in iceberg.load().history(None)[:5]} == snapshots


def test_a_column_that_another_writer_requires_cannot_be_left_out(one: TableRig) -> None:
    from pyiceberg.schema import Schema
    from pyiceberg.types import IntegerType, NestedField, StringType

    tables = one.datasets
    from runner.adapters.iceberg_tables import IcebergTables

    assert isinstance(tables, IcebergTables)
    tables._catalog.create_namespace_if_not_exists("staging")
    tables._catalog.create_table(
        NAME, Schema(NestedField(1, "id", IntegerType(), required=True), NestedField(2, "name", StringType()))
    )
    assert one.load().exists
    assert one.load().head(None) is None

    with pytest.raises(SchemaError, match=rf"^{NAME}.id: expected the column, which the table requires, got none"):
        one.publish_rows("SELECT 'x' AS name", mode="append")

    assert one.load().head(None) is None


def test_a_branch_takes_no_other_types_than_the_tables(iceberg: TableRig) -> None:
    iceberg.publish_rows("SELECT 1 AS id", mode="append")
    branch = rerun_branch(uuid4())

    with pytest.raises(SchemaError, match=rf"^{NAME}\b.*"):
        iceberg.publish_rows("SELECT 'x' AS id", mode="append", branch=branch)

    assert iceberg.load().head(branch) is None


def test_every_file_is_held_to_the_tables_columns(one: TableRig) -> None:
    one.publish_rows(values("(1, 'UA')"), mode="append")
    good = one.made([values("(2, 'DL')")], mode="append")
    stray = one.written("SELECT 3 AS id, 'x' AS city", "{id: 1, city: 9}", uuid4())
    output = good.model_copy(update={"files": (*good.files, stray)})

    with pytest.raises(SchemaError, match=rf"^{NAME}.city: expected field ids"):
        one.load().commit(output, tag_of(uuid4(), range=output.range))

    assert one.published == [(1, "UA")]


def test_many_partitions_are_one_commit_and_one_of_them_is_replaced_alone(iceberg: TableRig) -> None:
    by = {"column": "c"}
    queries = [f"SELECT {number} AS c, 'x' AS v" for number in range(120)]
    iceberg.publish_rows(*queries, mode="replace", partition_by=by)

    iceberg.publish_rows("SELECT 77 AS c, 'y' AS v", mode="replace_where", partition_by=by, where=77)

    assert iceberg.published == sorted(((n, "y" if n == 77 else "x") for n in range(120)), key=str)
    assert len(iceberg.load().history(None)) == 2
