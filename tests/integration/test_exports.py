"""What leaves the engine and what comes back to it: modes, partitions, lineage columns, state, fingerprints, limits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import chdir
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import pyarrow.parquet as pq
import pytest

from runner.engines import partitions, query, scratch
from runner.engines.export import export
from runner.engines.fingerprint import fingerprint
from runner.engines.types import column_types
from runner.model.errors import DataError, LogicError, RunnerError, SchemaError, SpecError
from runner.model.messages import EngineOutput, FieldIds, Job, JobInput, JobOutput
from runner.model.spec import Output, QueryWork
from tests.support.engine_inputs import STAMP, LocalInputs, job_of
from tests.support.folder_lake import FolderLake, folder_lake


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[FolderLake]:
    with folder_lake(tmp_path) as made:
        yield made


def _export(lake: FolderLake, relation: str, **given: Any) -> tuple[EngineOutput, Job]:
    """One run's output of `relation`, a query in parentheses, made from what is published."""
    day, types = given.pop("day", None), given.pop("column_types", None)
    wanted = lake.wanted(day=day, **given)
    wanted = wanted.model_copy(update={"column_types": types or wanted.column_types})
    job = job_of(lake.folder / str(uuid4()), outputs=[wanted])
    with scratch.connect(job, lake.inputs(wanted.state)) as connection:
        return export(connection, job, wanted, relation, claimed_inputs=None), job


def _publish(lake: FolderLake, relation: str, **given: Any) -> EngineOutput:
    made, job = _export(lake, relation, **given)
    lake.commit(made, job, day=given.get("day"))
    return made


def _files(made: EngineOutput, job: Job) -> list[list[tuple[Any, ...]]]:
    """The rows of each file, in the files' order."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        paths = [Path(job.scratch) / "out" / each.path for each in made.files]
        return [connection.read_parquet(str(path), hive_partitioning=False).fetchall() for path in paths]


# ---------------------------------------------------------------- merge


def test_merge_puts_new_rows_in_the_place_of_those_with_their_key(lake: FolderLake) -> None:
    _publish(lake, "(SELECT * FROM (VALUES (1, 'a'), (2, 'b'), (NULL, 'n')) t(id, v))")

    made = _publish(lake, "(SELECT * FROM (VALUES (2, 'B'), (3, 'c')) t(id, v))", mode="merge", key=["id"])

    assert lake.rows() == [(1, "a"), (2, "B"), (3, "c"), (None, "n")]
    assert made.rows == made.fingerprint.rows == 4


def test_merge_into_nothing_publishes_the_new_rows(lake: FolderLake) -> None:
    _publish(lake, "(SELECT 1 AS id, 'a' AS v)", mode="merge", key=["id"])

    assert lake.rows() == [(1, "a")]


def test_merge_twice_is_merge_once(lake: FolderLake) -> None:
    _publish(lake, "(SELECT i AS id, i * 2 AS v FROM range(1000) r(i))")
    first = _publish(lake, "(SELECT i AS id, -1 AS v FROM range(500, 1500) r(i))", mode="merge", key=["id"])

    again = _publish(lake, "(SELECT i AS id, -1 AS v FROM range(500, 1500) r(i))", mode="merge", key=["id"])

    assert again.fingerprint == first.fingerprint
    assert len(lake.rows()) == 1500


def test_merge_keeps_columns_that_only_the_table_has_and_adds_those_that_only_the_new_rows_have(
    lake: FolderLake,
) -> None:
    _publish(lake, "(SELECT * FROM (VALUES (1, 'a', 1.5), (2, 'b', 2.5)) t(id, old, shared))")

    _publish(lake, "(SELECT 2 AS id, 9.5 AS shared, true AS fresh)", mode="merge", key=["id"])

    assert list(lake.columns()) == ["id", "old", "shared", "fresh"]
    assert lake.rows("id") == [(1, "a", Decimal("1.5"), None), (2, None, Decimal("9.5"), True)]


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("1::INTEGER", "2::BIGINT", "long"),
        ("1::BIGINT", "2::INTEGER", "long"),
        ("1::FLOAT", "2::DOUBLE", "double"),
        ("1.5::DECIMAL(9,2)", "2.5::DECIMAL(20,2)", "decimal(20, 2)"),
        ("1.5::DECIMAL(20,2)", "2.5::DECIMAL(9,2)", "decimal(20, 2)"),
        ("1::UTINYINT", "2::USMALLINT", "int"),
    ],
)
def test_merge_takes_the_wider_of_two_types(lake: FolderLake, old: str, new: str, kind: str) -> None:
    _publish(lake, f"(SELECT 1 AS id, {old} AS v)")

    _publish(lake, f"(SELECT 2 AS id, {new} AS v)", mode="merge", key=["id"])

    assert lake.columns()["v"] == kind
    assert [int(value) for _, value in lake.rows("id")] == [1, 2]


@pytest.mark.parametrize(
    ("old", "new"),
    [("1", "'x'"), ("1.5::DECIMAL(9,2)", "1.5::DECIMAL(9,1)"), ("1::BIGINT", "1::DOUBLE"), ("[1]", "[1::BIGINT]")],
)
def test_merge_refuses_types_that_have_no_wider_one_in_common(lake: FolderLake, old: str, new: str) -> None:
    _publish(lake, f"(SELECT 1 AS id, {old} AS v)")

    with pytest.raises(SchemaError, match=rf"^{lake.table}\.v: expected the table's type .*, got ") as error:
        _export(lake, f"(SELECT 1 AS id, {new} AS v)", mode="merge", key=["id"])

    assert "new name" in (error.value.hint or "")


def test_merge_refuses_rows_without_a_key(lake: FolderLake) -> None:
    with pytest.raises(DataError, match=r"got 2 rows without, for example 7, NULL$"):
        _export(
            lake,
            "(SELECT * FROM (VALUES (7, NULL), (7, NULL), (8, 'x')) t(id, part))",
            mode="merge",
            key=["id", "part"],
        )


def test_merge_refuses_a_key_that_is_there_twice(lake: FolderLake) -> None:
    with pytest.raises(DataError, match=r"expected each key \(id\) once, got 1 keys in 3 rows, for example 5$"):
        _export(lake, "(SELECT * FROM (VALUES (5), (5), (5), (6)) t(id))", mode="merge", key=["id"])


@pytest.mark.parametrize("relation", ["(SELECT 1 AS other)", "(SELECT 1 AS ID)", "(SELECT [1] AS id)"])
def test_merge_refuses_a_key_column_that_is_missing_or_nested(lake: FolderLake, relation: str) -> None:
    with pytest.raises(SchemaError, match=rf"^{lake.table}.*expected .*key column.*, got "):
        _export(lake, relation, mode="merge", key=["id"])


def test_merge_refuses_a_table_without_the_key_column(lake: FolderLake) -> None:
    _publish(lake, "(SELECT 1 AS other)")

    with pytest.raises(SchemaError, match="expected the key column id in the published table, got other"):
        _export(lake, "(SELECT 1 AS id)", mode="merge", key=["id"])


def test_merge_refuses_a_column_that_differs_from_the_tables_in_case_only(lake: FolderLake) -> None:
    _publish(lake, "(SELECT 1 AS id, 2 AS Total)")

    with pytest.raises(SchemaError, match="expected names that differ in more than case, got 'Total' and 'total'"):
        _export(lake, "(SELECT 1 AS id, 2 AS total)", mode="merge", key=["id"])


@pytest.mark.parametrize(
    ("kind", "published", "new"),
    [
        ("DOUBLE", "'nan'", "'nan'"),
        ("DOUBLE", "'-0.0'", "'0.0'"),
        ("DECIMAL(9,2)", "1.5", "1.50"),
        ("BLOB", "''", "''"),
    ],
)
def test_keys_are_the_same_where_sql_says_so(lake: FolderLake, kind: str, published: str, new: str) -> None:
    _publish(lake, f"(SELECT {published}::{kind} AS id, 'old' AS v)")

    _publish(lake, f"(SELECT {new}::{kind} AS id, 'new' AS v)", mode="merge", key=["id"])

    assert [v for _, v in lake.rows()] == ["new"]


def test_texts_are_compared_as_bytes_whatever_the_collation(lake: FolderLake) -> None:
    _publish(lake, "(SELECT 'a' AS id, 1 AS v)")
    relation = "(SELECT x COLLATE NOCASE AS id, 2 AS v FROM (VALUES ('A'), ('ä'), ('Ä')) t(x))"

    _publish(lake, relation, mode="merge", key=["id"])

    assert lake.rows() == [("A", 2), ("a", 1), ("Ä", 2), ("ä", 2)]


def test_names_that_need_quoting_can_be_keys(lake: FolderLake) -> None:
    name = 'a "b" {c} it\'s.d'
    quoted = '"' + name.replace('"', '""') + '"'
    _publish(lake, f"(SELECT 1 AS {quoted}, 'old' AS v)")

    _publish(lake, f"(SELECT 1 AS {quoted}, 'new' AS v)", mode="merge", key=[name])

    assert lake.rows() == [(1, "new")]


def test_a_merge_of_a_relation_that_changes_when_it_is_read_again_reads_it_once(lake: FolderLake) -> None:
    made, job = _export(lake, "(SELECT random() AS r, i AS id FROM range(100) t(i))", mode="merge", key=["id"])

    with duckdb.connect() as connection:
        path = Path(job.scratch) / "out" / made.files[0].path
        types = column_types(["r", "id"], connection.read_parquet(str(path)).types, relation="t")
        assert fingerprint(connection, f"read_parquet('{path}')", types) == made.fingerprint


# ---------------------------------------------------------------- lineage columns


def test_rows_say_what_made_them(lake: FolderLake) -> None:
    made = _publish(lake, "(SELECT 1 AS id)", lineage_columns=True)

    assert lake.rows() == [(1, STAMP.logic_commit, str(STAMP.run_id), STAMP.processed_at)]
    assert lake.columns() == {
        "id": "int",
        "_logic_commit": "string",
        "_run_id": "string",
        "_processed_at": "timestamptz",
    }
    assert list(made.fingerprint.columns) == ["id", "_logic_commit"]


def test_merge_leaves_old_rows_the_stamp_of_the_run_that_made_them(lake: FolderLake) -> None:
    _publish(lake, "(SELECT 1 AS id UNION ALL SELECT 2)", lineage_columns=True)
    wanted = lake.wanted(mode="merge", key=["id"], lineage_columns=True)
    stamp = STAMP.model_copy(update={"logic_commit": "b" * 40, "run_id": uuid4()})
    job = job_of(lake.folder / "second", outputs=[wanted]).model_copy(update={"stamp": stamp})

    with scratch.connect(job, lake.inputs(wanted.state)) as connection:
        made = export(connection, job, wanted, "(SELECT 2 AS id, 'new' AS v)", claimed_inputs=None)
    lake.commit(made, job)

    columns = made.columns or ()
    assert [each.name for each in columns] == ["id", "v", "_logic_commit", "_run_id", "_processed_at"]
    with_names = [dict(zip(lake.columns(), row, strict=True)) for row in lake.rows("id")]
    assert [(row["id"], row["_logic_commit"][0], row["_run_id"]) for row in with_names] == [
        (1, "a", str(STAMP.run_id)),
        (2, "b", str(stamp.run_id)),
    ]


def test_a_relation_that_has_a_lineage_column_itself_is_refused(lake: FolderLake) -> None:
    with pytest.raises(SchemaError, match="expected no column _RUN_ID, as lineage_columns adds it, got one"):
        _export(lake, "(SELECT 1 AS id, 'x' AS _RUN_ID)", lineage_columns=True)


def test_the_runs_own_columns_are_not_in_the_fingerprint(lake: FolderLake) -> None:
    plain, _ = _export(lake, "(SELECT 1 AS id)", lineage_columns=True)
    wanted = lake.wanted(lineage_columns=True)
    later = STAMP.model_copy(update={"run_id": uuid4(), "processed_at": datetime(2030, 1, 1, tzinfo=UTC)})
    job = job_of(lake.folder / "later", outputs=[wanted]).model_copy(update={"stamp": later})

    with scratch.connect(job, LocalInputs({})) as connection:
        again = export(connection, job, wanted, "(SELECT 1 AS id)", claimed_inputs=None)

    assert again.files[0].sha256 != plain.files[0].sha256
    assert again.fingerprint == plain.fingerprint


def test_a_quarantine_gets_no_lineage_columns_no_partitions_and_no_key(lake: FolderLake) -> None:
    wanted = lake.wanted(mode="merge", key=["id"], lineage_columns=True, partition_by={"column": "id"})
    job = job_of(lake.folder / "q", outputs=[wanted])

    with scratch.connect(job, LocalInputs({})) as connection:
        relation = "(SELECT NULL AS id UNION ALL SELECT NULL)"
        made = export(
            connection, job, wanted, relation, claimed_inputs=["x"], dataset="failed/marts/t", quarantine=True
        )

    assert [each.path for each in made.files] == ["failed-marts-t/t.parquet"]
    assert ([each.name for each in made.columns or ()], made.rows, made.quarantine) == (["id"], 2, True)


# ---------------------------------------------------------------- partitions


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("BOOLEAN", ["true", "false", None]),
        ("INTEGER", ["-2147483648", "7", None]),
        ("BIGINT", ["-9223372036854775808", "0"]),
        ("DECIMAL(9,2)", ["-1.50", "1.50", None]),
        ("DECIMAL(38,0)", ["99999999999999999999999999999999999999", "-5", None]),
        ("VARCHAR", ["", " ", "a/b=c", "ä" * 128, "🦆", "\\N", "NULL", "x'y", None]),
        ("DATE", ["0001-01-01", "1969-12-31", "9999-12-31", None]),
        ("TIMESTAMP", ["1960-01-01 00:00:00.000001", "9999-12-31 23:59:59.999999", None]),
        ("TIMESTAMPTZ", ["1960-01-01 00:00:00+00", "2024-02-29 12:00:00+00", None]),
    ],
)
def test_each_value_is_a_file_whose_statistics_tell_it(lake: FolderLake, kind: str, values: list[str | None]) -> None:
    literals = ["NULL" if value is None else "'" + value.replace("'", "''") + "'" for value in values]
    rows = ", ".join(f"({value}, {n})" for n in range(3) for value in literals)
    relation = f"(SELECT p::{kind} AS p, n FROM (VALUES {rows}) t(p, n))"

    made, job = _export(lake, relation, partition_by={"column": "p"})
    lake.commit(made, job)

    assert [Path(each.path).name for each in made.files] == [f"part-{n:05}.parquet" for n in range(len(values))]
    for number, file in enumerate(_files(made, job)):
        assert len({value for value, _ in file}) == 1
        assert [n for _, n in file] == [0, 1, 2], "in the relation's order"
        path = Path(job.scratch) / "out" / made.files[number].path
        statistics = pq.read_metadata(path).row_group(0).column(0).statistics
        assert statistics.null_count == (3 if file[0][0] is None else 0)
        assert statistics.has_min_max is (file[0][0] is not None)
        if statistics.has_min_max:
            assert statistics.min == statistics.max
    assert len(lake.rows()) == 3 * len(values) == made.rows == made.fingerprint.rows
    assert len(lake.catalog.load_table(lake.table).inspect.partitions().to_pylist()) == len(values)


@pytest.mark.parametrize(
    ("kind", "unit", "values", "files"),
    [
        ("DATE", "day", ["1969-12-31", "1970-01-01"], 2),
        ("DATE", "month", ["1969-12-01", "1969-12-31", "1970-01-01"], 2),
        ("DATE", "year", ["0001-01-01", "0001-12-31", "2000-01-01"], 2),
        ("TIMESTAMP", "hour", ["1969-12-31 23:59:59.999999", "1969-12-31 23:00:00", "1970-01-01 00:00:00"], 2),
        ("TIMESTAMP", "day", ["2024-02-29 00:00:00", "2024-02-29 23:59:59.999999", "2024-03-01 00:00:00"], 2),
        ("TIMESTAMPTZ", "day", ["2024-01-01 01:00:00+02", "2023-12-31 23:00:00+00", "2024-01-01 00:00:00+00"], 2),
        ("TIMESTAMPTZ", "hour", ["2024-01-01 01:30:00+02", "2023-12-31 23:45:00+00", "2024-01-01 05:30:00+05:30"], 2),
        ("TIMESTAMPTZ", "year", ["2024-01-01 01:00:00+02", "2024-01-01 01:00:00+00"], 2),
    ],
)
def test_times_are_split_by_their_unit_in_utc(
    lake: FolderLake, kind: str, unit: str, values: list[str], files: int
) -> None:
    rows = ", ".join(f"('{value}')" for value in values)

    made, job = _export(
        lake, f"(SELECT v::{kind} AS at FROM (VALUES {rows}, (NULL)) t(v))", partition_by={"column": "at", "unit": unit}
    )
    lake.commit(made, job)

    assert len(made.files) == files + 1
    assert len(lake.rows()) == len(values) + 1
    assert len(lake.catalog.load_table(lake.table).inspect.partitions().to_pylist()) == files + 1


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        ("1.5::FLOAT", "value"),
        ("1.5::DOUBLE", "value"),
        ("[1]", "value"),
        ("{'a': 1}", "value"),
        ("uuid()", "value"),
        ("''::BLOB", "value"),
        ("TIME '12:00:00'", "value"),
        ("1", "day"),
        ("'2000-01-01'", "day"),
        ("TIME '12:00:00'", "hour"),
        ("DATE '2000-01-01'", "hour"),
    ],
)
def test_a_column_that_cannot_be_partitioned_by_is_refused(lake: FolderLake, value: str, unit: str) -> None:
    with pytest.raises(SchemaError, match=rf"^{lake.table}\.p: expected a type to partition by {unit} \(.*\), got "):
        _export(lake, f"(SELECT {value} AS p)", partition_by={"column": "p", "unit": unit})


def test_a_partition_column_that_is_missing_is_refused(lake: FolderLake) -> None:
    with pytest.raises(SchemaError, match=r"expected a column p, which the table is partitioned by, got P, q$"):
        _export(lake, "(SELECT 1 AS P, 2 AS q)", partition_by={"column": "p"})


def test_no_rows_of_a_partitioned_table_are_a_file_with_its_columns(lake: FolderLake) -> None:
    made, job = _export(lake, "(SELECT 1 AS p WHERE false)", partition_by={"column": "p"})
    lake.commit(made, job)

    assert [(Path(each.path).name, each.rows) for each in made.files] == [("part-00000.parquet", 0)]
    assert (lake.rows(), lake.columns()) == ([], {"p": "int"})


def test_a_text_that_statistics_would_cut_is_refused_as_a_partition(lake: FolderLake) -> None:
    with pytest.raises(DataError, match=r"expected texts of at most 256 bytes .*, got 2 longer, up to 300 bytes"):
        _export(
            lake,
            "(SELECT repeat('x', n) AS p FROM (VALUES (256), (257), (300)) t(n))",
            partition_by={"column": "p"},
        )


def test_texts_that_a_collation_takes_for_one_are_partitions_of_their_own(lake: FolderLake) -> None:
    made, job = _export(
        lake, "(SELECT x COLLATE NOCASE AS p FROM (VALUES ('a'), ('A'), ('a')) t(x))", partition_by={"column": "p"}
    )

    assert _files(made, job) == [[("A",)], [("a",), ("a",)]]


def test_5000_partitions_are_5000_files_and_one_more_is_refused(lake: FolderLake) -> None:
    made, job = _export(lake, f"(SELECT i % {partitions.MAX_PARTITIONS} AS p, i FROM range(10000) t(i))", **BY_P)

    assert [each.rows for each in made.files] == [2] * partitions.MAX_PARTITIONS
    assert _files(made.model_copy(update={"files": made.files[4998:]}), job) == [
        [(4998, 4998), (4998, 9998)],
        [(4999, 4999), (4999, 9999)],
    ]
    with pytest.raises(DataError, match="expected at most 5,000 partitions p, got 5,001"):
        _export(lake, f"(SELECT i AS p FROM range({partitions.MAX_PARTITIONS + 1}) t(i))", **BY_P)


BY_P: dict[str, Any] = {"partition_by": {"column": "p"}}


def test_files_and_rows_come_in_the_same_order_each_time(lake: FolderLake) -> None:
    relation = "(SELECT hash(i) % 50 AS p, i, hash(i) AS h FROM range(200000) t(i))"

    one, _ = _export(lake, relation, **BY_P)
    other, _ = _export(lake, relation, **BY_P)

    assert [each.sha256 for each in one.files] == [each.sha256 for each in other.files]


def test_options_that_a_project_may_set_change_no_file(lake: FolderLake) -> None:
    relation = "(SELECT chr((i % 3)::INTEGER + 65 + 32 * (i % 2)::INTEGER) AS p, i FROM range(12) t(i))"
    plain, _ = _export(lake, relation, **BY_P)
    wanted = lake.wanted(**BY_P)
    job = job_of(lake.folder / "options", outputs=[wanted])

    with scratch.connect(job, LocalInputs({})) as connection:
        connection.execute(
            "SET default_collation = 'nocase'; SET default_order = 'DESC'; SET default_null_order = 'first'"
        )
        made = export(connection, job, wanted, relation, claimed_inputs=None)

    assert [each.sha256 for each in made.files] == [each.sha256 for each in plain.files]
    assert len(made.files) == 6


def test_columns_may_be_called_as_the_engine_calls_its_own(lake: FolderLake) -> None:
    relation = "(SELECT 1 AS p, 2 AS key, 3 AS piece, 4 AS position, 5 AS value, 6 AS t, 7 AS published, 8 AS fresh)"
    _publish(lake, relation, **BY_P)

    _publish(lake, relation, mode="merge", key=["key", "value", "t"], **BY_P)

    assert lake.rows() == [(1, 2, 3, 4, 5, 6, 7, 8)]


def test_a_merge_into_a_partitioned_table_writes_whole_partitions(lake: FolderLake) -> None:
    _publish(lake, "(SELECT i % 3 AS p, i AS id, 'old' AS v FROM range(9) t(i))", **BY_P)

    made = _publish(lake, "(SELECT 5 AS p, 4 AS id, 'new' AS v)", mode="merge", key=["id"], **BY_P)

    assert [each.rows for each in made.files] == [3, 2, 3, 1]
    assert [row for row in lake.rows() if row[2] == "new"] == [(5, 4, "new")]


# ---------------------------------------------------------------- replace_where


def test_replace_where_publishes_the_rows_of_its_partition(lake: FolderLake) -> None:
    by_day: dict[str, Any] = {"mode": "replace_where", "partition_by": {"column": "at", "unit": "day"}}
    first, second = datetime(2013, 6, 1, tzinfo=UTC), datetime(2013, 6, 2, tzinfo=UTC)
    _publish(lake, "(SELECT TIMESTAMP '2013-06-01 10:00:00' AS at, 1 AS n)", day=first, **by_day)
    _publish(lake, "(SELECT TIMESTAMP '2013-06-02 10:00:00' AS at, 2 AS n)", day=second, **by_day)

    _publish(lake, "(SELECT TIMESTAMP '2013-06-01 23:59:59' AS at, 3 AS n)", day=first, **by_day)

    assert [n for _, n in lake.rows("n")] == [2, 3]


@pytest.mark.parametrize(
    ("unit", "row"),
    [("hour", "2013-06-01 01:00:00"), ("day", "2013-06-02"), ("month", "2013-07-01"), ("year", "2012-12-31 23:59:59")],
)
def test_a_row_of_another_time_is_refused(lake: FolderLake, unit: str, row: str) -> None:
    relation = f"(SELECT v::TIMESTAMP AS at FROM (VALUES ('2013-06-01 00:30:00'), ('{row}')) t(v))"

    with pytest.raises(
        DataError, match=rf"rows of the partition {unit}\(at\) = .* only, got 1 of others, .* at = {row}"
    ):
        _export(lake, relation, mode="replace_where", partition_by={"column": "at", "unit": unit})


@pytest.mark.parametrize(
    ("kind", "where", "row"),
    [
        ("VARCHAR", "EU", "'eu'"),
        ("VARCHAR", "EU", "NULL"),
        ("INTEGER", 7, "8"),
        ("BIGINT", "7", "8"),
        ("DATE", "2013-06-01", "'2013-06-02'"),
        ("BOOLEAN", "true", "false"),
        ("DECIMAL(9,2)", "1.50", "1.51"),
        ("TIMESTAMPTZ", "2013-06-01 00:00:00+00", "'2013-06-01 00:00:01+00'"),
    ],
)
def test_a_row_of_another_value_is_refused(lake: FolderLake, kind: str, where: str | int, row: str) -> None:
    only = {"mode": "replace_where", "where": where, "partition_by": {"column": "p"}}
    _publish(lake, f"(SELECT '{where}'::{kind} AS p, 1 AS n UNION ALL SELECT '{where}'::{kind}, 2)", **only)
    assert len(lake.rows()) == 2

    with pytest.raises(DataError, match=rf"expected rows of the partition p = {re.escape(str(where))} only, got 1 of"):
        _export(lake, f"(SELECT '{where}'::{kind} AS p UNION ALL SELECT {row}::{kind})", **only)


@pytest.mark.parametrize(
    ("kind", "where", "expected"),
    [
        ("DATE", "2013-6-1", "expected '2013-06-01', got '2013-6-1'"),
        ("INTEGER", " 7", "expected '7', got ' 7'"),
        ("INTEGER", "x", "expected a value of p, which is int, got 'x'"),
        ("BOOLEAN", "1", "expected 'true', got '1'"),
        ("DECIMAL(9,2)", "1.5", "expected '1.50', got '1.5'"),
    ],
)
def test_a_partition_has_one_name(lake: FolderLake, kind: str, where: str, expected: str) -> None:
    with pytest.raises(SpecError, match=rf"^where: {re.escape(expected)}$"):
        _export(
            lake,
            f"(SELECT NULL::{kind} AS p WHERE false)",
            mode="replace_where",
            where=where,
            partition_by={"column": "p"},
        )


# ---------------------------------------------------------------- the table's types


@pytest.mark.parametrize(
    ("value", "known", "becomes"),
    [
        ("1::TINYINT", "long", "long"),
        ("1::BIGINT", "int", "long"),
        ("1.5::FLOAT", "double", "double"),
        ("1.5::DOUBLE", "float", "double"),
        ("1.5::DECIMAL(9,2)", "decimal(38,2)", "decimal(38,2)"),
        ("1.5::DECIMAL(9,2)", "decimal(12, 2)", "decimal(12,2)"),
        ("1::HUGEINT", "decimal(20,0)", "decimal(38,0)"),
        ("{'a': [1]}", "struct<a: list<int>>", "struct<a: list<int>>"),
    ],
)
def test_a_column_is_published_in_the_wider_of_its_type_and_the_tables(
    lake: FolderLake, value: str, known: str, becomes: str
) -> None:
    alone, _ = _export(lake, f"(SELECT {value} AS v)")

    made, _ = _export(lake, f"(SELECT {value} AS v)", column_types={"v": known, "gone": "string"})

    assert [each.type for each in made.columns or ()] == [becomes]
    assert made.fingerprint == alone.fingerprint, "the rows are the same, however wide the table keeps them"


@pytest.mark.parametrize(
    ("value", "known"),
    [("1", "string"), ("'x'", "int"), ("1::BIGINT", "double"), ("1.5::DECIMAL(9,1)", "decimal(9,2)"), ("[1]", "int")],
)
def test_a_column_that_the_table_cannot_take_is_refused_before_it_is_written(
    lake: FolderLake, value: str, known: str
) -> None:
    with pytest.raises(SchemaError, match=rf"^{lake.table}\.v: expected the table's type {re.escape(known)}.*, got "):
        _export(lake, f"(SELECT {value} AS v)", column_types={"v": known})


@pytest.mark.parametrize(
    "kind", ["TIME_NS", "TIMESTAMP_NS", "TIMETZ", "BIT", "INTERVAL", "VARIANT", "UNION(a INTEGER)"]
)
@pytest.mark.parametrize("shape", ["{}", "{}[]", 'STRUCT(a INTEGER, "b c" {})', "MAP(VARCHAR, STRUCT(x {})[])"])
def test_the_cast_that_a_refusal_names_runs_and_is_published(lake: FolderLake, kind: str, shape: str) -> None:
    source = f'(SELECT CAST(NULL AS {shape.format(kind)}) AS "o\'r ""x")'
    with pytest.raises(SchemaError, match="expected a type that Iceberg has, got ") as error:
        _export(lake, source)
    hint = error.value.hint or ""
    for cast in re.split(r", or | or (?=ST_)", hint.removeprefix("cast it in the model, for example ")):
        if "union_extract" in cast:
            continue  # it names a member that only the author knows

        made, _ = _export(lake, f"(SELECT {re.sub(r', which .*', '', cast)} AS x FROM {source})")

        assert made.rows == 1


# ---------------------------------------------------------------- restored state


AS_DAILY: dict[str, Any] = {"from": "main.daily"}


def _restored(lake: FolderLake, **given: Any) -> duckdb.DuckDBPyConnection:
    wanted = lake.wanted(state="restore", **given)
    job = job_of(lake.folder / str(uuid4()), outputs=[wanted])
    connection = scratch.connect(job, lake.inputs(wanted.state))
    scratch.restore(connection, job)
    return connection


def test_a_state_is_restored_as_a_table_of_exactly_the_pinned_rows(lake: FolderLake) -> None:
    _publish(lake, "(SELECT i AS id, 'v' || i AS v FROM range(3) t(i))")
    pinned = lake.tables.state(lake.table, "state", None).snapshot
    _publish(lake, "(SELECT 99 AS id, 'later' AS v)")

    given: dict[str, Any] = {"snapshot": pinned, "from": "some schema.some table"}
    with _restored(lake, **given) as connection:
        assert connection.sql('FROM "some schema"."some table" ORDER BY ALL').fetchall() == [
            (0, "v0"),
            (1, "v1"),
            (2, "v2"),
        ]
        connection.execute('INSERT INTO "some schema"."some table" VALUES (3, NULL)')


def test_a_state_of_nothing_restores_nothing(lake: FolderLake) -> None:
    with _restored(lake, **AS_DAILY) as connection:
        assert connection.sql("SHOW ALL TABLES").fetchall() == []


def test_a_restored_state_has_no_lineage_columns(lake: FolderLake) -> None:
    _publish(lake, "(SELECT 1 AS id)", lineage_columns=True)

    with _restored(lake, lineage_columns=True, **AS_DAILY) as connection:
        assert connection.sql("FROM main.daily").columns == ["id"]
    with _restored(lake, **AS_DAILY) as connection:
        assert connection.sql("FROM main.daily").columns == ["id", "_logic_commit", "_run_id", "_processed_at"]


def test_a_state_that_would_take_an_inputs_name_is_refused(lake: FolderLake) -> None:
    _publish(lake, "(SELECT 1 AS id)")
    wanted = lake.wanted(state="restore", **AS_DAILY)
    pin = lake.tables.pin(lake.table, "main.daily", None)
    job = job_of(lake.folder / "clash", inputs=[JobInput(pin=pin)], outputs=[wanted])

    with scratch.connect(job, lake.inputs(wanted.state, pin)) as connection:
        scratch.make_views(connection, job)
        with pytest.raises(SpecError, match=r"expected no input called main\.daily, which its state is restored as"):
            scratch.restore(connection, job)


def test_what_a_type_became_takes_the_logics_own_type_again(lake: FolderLake) -> None:
    relation = """(SELECT 1::HUGEINT AS huge, 2::UINTEGER AS u, 3::TINYINT AS tiny, uuid() AS id,
        TIMESTAMP_S '2000-01-01 00:00:01' AS s, TIME '12:00:00' AS t, 'a'::ENUM('a', 'b')::VARCHAR AS e,
        {'n': [4::HUGEINT], 'm': MAP {'k': 5::UTINYINT}} AS nested, 6::UBIGINT AS big, [7, 8]::SMALLINT[2] AS fixed)"""
    _publish(lake, relation)

    with _restored(lake, **AS_DAILY) as connection:
        connection.execute(f"INSERT INTO main.daily BY NAME SELECT * FROM {relation}")

        assert (
            connection.sql("SELECT huge, u, tiny, s::VARCHAR, e, nested, big, fixed FROM main.daily").fetchall()
            == [(1, 2, 3, "2000-01-01 00:00:01", "a", {"n": [4], "m": {"k": 5}}, 6, [7, 8])] * 2
        )


# ---------------------------------------------------------------- fingerprints


def test_fingerprints_are_of_rows_in_any_order_and_of_each_column(lake: FolderLake) -> None:
    one, _ = _export(lake, "(SELECT i AS a, i % 2 AS b, NULL AS c FROM range(1000) t(i))")
    other, _ = _export(lake, "(SELECT i AS a, i % 2 AS b, NULL AS c FROM range(1000) t(i) ORDER BY i DESC)")
    third, _ = _export(lake, "(SELECT i AS a, (i + 1) % 2 AS b, NULL AS c FROM range(1000) t(i))")
    fourth, _ = _export(lake, "(SELECT i AS a, i % 2 AS b, if(i = 500, 1, NULL) AS c FROM range(1000) t(i))")

    assert one.fingerprint == other.fingerprint
    assert one.fingerprint.compare(third.fingerprint) == "different"
    assert one.fingerprint.different_columns(third.fingerprint) == (), "each column alone has the same values"
    assert one.fingerprint.different_columns(fourth.fingerprint) == ("c",)


def test_a_value_that_is_there_more_often_is_seen(lake: FolderLake) -> None:
    one, _ = _export(lake, "(SELECT 1 AS a UNION ALL SELECT 1)")
    other, _ = _export(lake, "(SELECT 1 AS a UNION ALL SELECT 1 UNION ALL SELECT 1 UNION ALL SELECT 1)")

    assert one.fingerprint.different_columns(other.fingerprint) == ("a",)


def test_columns_of_equal_values_have_fingerprints_by_their_names_and_types(lake: FolderLake) -> None:
    made, _ = _export(lake, "(SELECT 1 AS a, 1 AS b, 1::BIGINT AS c)")

    assert len(set(made.fingerprint.columns.values())) == 3


# ---------------------------------------------------------------- files of a prefix


@pytest.mark.parametrize("format", ["csv", "parquet"])
@pytest.mark.parametrize(
    "value", ["'infinity'::DATE", "'24:00:00'::TIME", "['-infinity'::TIMESTAMP]", "'10000-01-01'::TIMESTAMPTZ"]
)
def test_files_hold_no_time_that_only_duckdb_reads(tmp_path: Path, format: str, value: str) -> None:
    with pytest.raises(SchemaError, match=r"^exports/days\.bad.*: expected a .*, got "):
        _to_prefix(tmp_path, f"(SELECT 1 AS id, {value} AS bad)", format)


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_prefix_gets_one_file_of_its_format(tmp_path: Path, format: str) -> None:
    made, job = _to_prefix(tmp_path, "(SELECT 'a;b' AS \"x,y\", NULL AS n, DATE '2000-01-01' AS d)", format)

    path = Path(job.scratch) / "out" / f"exports-days/days.{format}"
    assert [each.path for each in made.files] == [f"exports-days/days.{format}"]
    assert list(path.parent.iterdir()) == [path]
    if format == "csv":
        assert path.read_text() == '"x,y",n,d\na;b,,2000-01-01\n'


def test_a_fingerprint_is_of_the_rows_not_of_their_format(tmp_path: Path) -> None:
    csv, _ = _to_prefix(tmp_path, "(SELECT 'a;b' AS x, 1.50 AS y, NULL AS z)", "csv")
    parquet, _ = _to_prefix(tmp_path, "(SELECT 'a;b' AS x, 1.50 AS y, NULL AS z)", "parquet")

    assert csv.fingerprint == parquet.fingerprint


def _to_prefix(folder: Path, relation: str, format: str) -> tuple[EngineOutput, Job]:
    wanted = JobOutput(output=Output.model_validate({"dataset": "exports/days", "format": format}))
    job = job_of(folder / str(uuid4()), outputs=[wanted])
    with scratch.connect(job, LocalInputs({})) as connection:
        return export(connection, job, wanted, relation, claimed_inputs=None), job


# ---------------------------------------------------------------- a query sees its inputs and its commit, no more


def _query(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """The rows of one SQL file, run where the child runs it."""
    wanted = JobOutput(output=Output.model_validate({"dataset": "exports/answer", "format": "parquet"}))
    job = job_of(folder / str(uuid4()), outputs=[wanted], work=QueryWork(kind="query", file="answer.sql"))
    (Path(job.workspace) / "answer.sql").write_text(sql)
    (Path(job.workspace) / "names.csv").write_text("id,name\n1,one\n")
    with chdir(job.workspace):
        made = query.run(job, LocalInputs({}))
    return _files(made.outputs[0], job)[0]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "FROM '/etc/passwd.csv'",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM read_csv('https://example.org/x.csv')",
        "SELECT * FROM read_parquet('{folder}/outside.parquet')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
    ],
)
def test_a_query_cannot_read_outside_of_its_commit(tmp_path: Path, sql: str) -> None:
    (tmp_path / "outside.parquet").write_bytes(b"PAR1")

    with pytest.raises(
        LogicError, match=r"^answer\.sql: .*(disabled by configuration|No files found|requires the extension)"
    ):
        _query(tmp_path, sql.format(folder=tmp_path))


def test_a_query_may_read_a_file_of_its_commit(tmp_path: Path) -> None:
    assert _query(tmp_path, "SELECT id + 1 AS id, name FROM read_csv('names.csv')") == [(2, "one")]


def test_ids_of_known_columns_stay_when_files_are_split(lake: FolderLake) -> None:
    ids = {"p": FieldIds(id=4), "n": FieldIds(id=9)}
    wanted = lake.wanted(**BY_P).model_copy(update={"field_ids": ids, "last_field_id": 9})
    job = job_of(lake.folder / "ids", outputs=[wanted])

    with scratch.connect(job, LocalInputs({})) as connection:
        made = export(connection, job, wanted, "(SELECT 1 AS n, 2 AS p, 3 AS fresh)", claimed_inputs=None)

    schema = pq.read_schema(Path(job.scratch) / "out" / made.files[0].path)
    assert {name: int(schema.field(name).metadata[b"PARQUET:field_id"]) for name in schema.names} == {
        "n": 9,
        "p": 4,
        "fresh": 10,
    }


def test_a_failing_cast_of_ours_names_its_column_in_every_mode(lake: FolderLake) -> None:
    relation = "(SELECT 1 AS p, 170141183460469231731687303715884105727::HUGEINT AS bad)"

    for given in ({"mode": "merge", "key": ["p"]}, {"partition_by": {"column": "p"}}, {"lineage_columns": True}):
        with pytest.raises(SchemaError, match=rf"^{lake.table}\.bad: expected values that fit DECIMAL\(38,0\)"):
            _export(lake, relation, **given)


def test_nothing_of_a_merge_or_a_split_stays_in_the_database(lake: FolderLake) -> None:
    wanted = lake.wanted(mode="merge", key=["p"], **BY_P)
    job = job_of(lake.folder / "twice", outputs=[wanted])

    with scratch.connect(job, LocalInputs({})) as connection:
        with pytest.raises(RunnerError):
            export(connection, job, wanted, "(SELECT NULL::INTEGER AS p)", claimed_inputs=None)

        assert connection.sql("SHOW ALL TABLES").fetchall() == []
