"""Tables as versioned datasets: the contract of all datasets, of the twin and of Iceberg, then what is theirs."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from runner.adapters.aws import Aws
from runner.adapters.pg_ledger import PgLedger
from runner.adapters.s3_objects import S3Objects
from runner.model.errors import DataError, SchemaError
from runner.model.manifest import Column, FileRecord, OutputRecord
from runner.model.messages import FieldIds
from runner.model.names import rerun_branch, table_prefix
from runner.ports import Objects
from tests.support.datasets import DatasetsContract, Rig, tag_of
from tests.support.twins import MemoryObjects, MemoryTables

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

NAME = "staging.flights"
COLUMNS = {"id": "int", "name": "string"}


@dataclass(frozen=True)
class TableRig(Rig):
    """`file_of` makes a Parquet file of columns (name: type) under the field ids that they are to have."""

    file_of: Callable[[dict[str, str], dict[str, int], int], FileRecord]

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
        return self.load().replace(self.output_of(columns, branch), tag_of(uuid4()))


def rig_of(rig: Callable[[Callable[[], FileRecord]], Rig], objects: Objects) -> TableRig:
    def file_of(columns: dict[str, str], ids: dict[str, int], rows: int) -> FileRecord:
        key = f"{table_prefix(NAME)}data/{uuid4()}/1/part.parquet"
        body = parquet(columns, ids, rows)
        objects.put(key, body)
        return FileRecord(uri=objects.uri(key), bytes=len(body), rows=rows)

    base = rig(lambda: file_of(COLUMNS, {"id": 1, "name": 2}, 3))
    return TableRig(base.datasets, base.name, base.file, file_of)


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
def rig(request: pytest.FixtureRequest) -> TableRig:
    if request.param == "memory":
        return rig_of(lambda file: Rig(MemoryTables(), NAME, file), MemoryObjects())
    from runner.adapters.iceberg_tables import IcebergTables

    bucket: str = request.getfixturevalue("bucket")
    tables = IcebergTables(request.getfixturevalue(request.param), bucket=bucket)
    objects = S3Objects(request.getfixturevalue("s3_client"), bucket)
    return rig_of(lambda file: Rig(tables, NAME, file), objects)


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

    snapshot = rig.load().replace(output, tag_of(uuid4()))

    pin = rig.datasets.pin(NAME, "x", None)
    assert pin.snapshot == snapshot
    assert [each for each in rig.datasets.files(pin) if each.holds_rows] == []
    assert set(rig.load().field_ids) == set(COLUMNS)


def test_a_table_can_begin_without_rows(rig: TableRig) -> None:
    snapshot = rig.load().replace(rig.output_of(COLUMNS, rows=0), tag_of(uuid4()))

    assert rig.datasets.pin(NAME, "x", None).snapshot == snapshot
    assert set(rig.load().field_ids) == set(COLUMNS)
