"""What the load stage does with files: what is loaded, what is quarantined and why, and that the counts add up."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.engines import load
from runner.engines.contracts.contract import Contract, ContractColumn
from runner.engines.contracts.drift import Layout
from runner.engines.files import records
from runner.engines.files.decoding import Utf8Stream
from runner.model.errors import DataError, SchemaError, SpecError
from runner.model.messages import FieldIds
from runner.model.spec import Compression, CsvFormat, SourceFormat
from runner.sandbox.watch import resident_bytes
from tests.support.engine_inputs import LocalInputs
from tests.support.loads import CSV, FOLDER, JSON_LINES, KEY, PARQUET, TRIPS, Place, column

# mtime=0: the time would be part of a test's parameter, and pytest-xdist wants the same ones in each of its workers.
PACKED = gzip.compress(b"id,city,km\n1,Bonn,1\n" * 500, mtime=0)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- the whole ---------------------------------------------------------------------------------------------------


def test_good_rows_are_loaded_typed_and_in_order_and_bad_rows_are_kept_as_they_came(place: Place) -> None:
    loaded = place.load("id,city,km\n3,Bonn,1.5\n1,,007.25\nx,Köln,9\n2,Mainz,\n")
    assert loaded.good == [(3, "Bonn", Decimal("1.50")), (2, "Mainz", None)]
    assert loaded.bad == [(3, ["required(city)"], None), (4, ["type(id: INTEGER)"], None)]
    assert loaded.bad_values == [("1", "", "007.25"), ("x", "Köln", "9")]
    assert loaded.counts == (4, 2, 2)


def test_both_outputs_say_what_they_are(place: Place) -> None:
    table, quarantine = place.load("id,city,km\n1,Bonn,1\n").result.outputs
    assert (table.dataset, table.rows, table.quarantine) == ("staging.trips", 1, False)
    assert [(each.name, each.type) for each in table.columns or ()] == [
        ("id", "int"),
        ("city", "string"),
        ("km", "decimal(6,2)"),
    ]
    assert (quarantine.dataset, quarantine.rows, quarantine.quarantine) == ("failed/staging/trips", 0, True)
    assert [(each.name, each.type) for each in quarantine.columns or ()] == [
        ("_source_file", "string"),
        ("_line", "long"),
        ("_rules", "list<string>"),
        ("_text", "string"),
        ("id", "string"),
        ("city", "string"),
        ("km", "string"),
    ]
    assert table.claimed_inputs == quarantine.claimed_inputs == ("trips",)


def test_every_rule_of_the_contract_is_a_step(place: Place) -> None:
    result = place.load("id,city,km\n1,Bonn,1\n1,Bonn,1\n").result
    assert [(step.name, step.status, step.rows) for step in result.steps] == [
        ("required(id)", "pass", 0),
        ("type(id: INTEGER)", "pass", 0),
        ("required(city)", "pass", 0),
        ("type(city: VARCHAR)", "pass", 0),
        ("type(km: DECIMAL(6,2))", "pass", 0),
        ("unique(id)", "warn", 1),
    ]
    assert {step.kind for step in result.steps} == {"contract"}
    assert sorted(result.packages) == ["duckdb", "open-data-contract-standard"]
    assert result.failure is None


def test_too_many_bad_rows_are_a_finding_and_both_outputs_are_there_still(place: Place) -> None:
    rows = "".join(f"{number},{'' if number < 4 else 'Bonn'},\n" for number in range(100))
    content = f"id,city,km\n{rows}x,Bonn,\n"
    within = place.load(content, max_bad_fraction=0.05)
    assert within.result.failure is None
    assert within.counts == (101, 96, 5)
    past = place.load(content, max_bad_fraction=0.01)
    assert past.result.failure is not None
    assert past.result.failure.category == "data"
    assert past.result.failure.message == (
        "staging.trips: expected at most 1 % bad rows by contracts/trips.odcs.yaml, got 5 of 101 (4.95 %), "
        "most by required(city)"
    )
    assert past.result.failure.subject == "required(city)"
    assert [step.status for step in past.result.steps if step.rows] == ["fail", "fail"]
    assert (past.counts, len(past.good), len(past.bad)) == ((101, 96, 5), 96, 5)


@pytest.mark.parametrize(
    ("format", "content"), [(CSV, b"id,city,km\n"), (CSV, b"id,city,km"), (JSON_LINES, b""), (JSON_LINES, b"\n\n")]
)
def test_no_rows_at_all_are_a_finding(place: Place, format: SourceFormat, content: bytes) -> None:
    loaded = place.load({"a": content, "b": content}, format=format)
    assert loaded.counts == (0, 0, 0)
    assert loaded.result.failure is not None
    assert loaded.result.failure.message == "landing/portal/trips: expected rows, got none in 2 files"
    assert (loaded.good, loaded.bad) == ([], [])


def test_no_files_at_all_are_a_finding_too(place: Place) -> None:
    failure = place.load({}).result.failure
    assert failure is not None
    assert failure.message == "landing/portal/trips: expected rows, got none in 0 files"


def test_the_table_keeps_the_order_of_files_and_lines_whatever_the_threads(place: Place) -> None:
    lines = [f"{number},city {number % 7},1\n" for number in range(60_000)]
    files = {name: ("id,city,km\n" + "".join(lines[first::2])).encode() for name, first in (("b", 0), ("a", 1))}
    loaded = place.load(files, cpu=4096)
    assert [row[0] for row in loaded.good] == [*range(0, 60_000, 2), *range(1, 60_000, 2)]
    assert loaded.inputs.opened == [f"{FOLDER}b", f"{FOLDER}a"]
    assert loaded.inputs.opened_before_primed == []
    assert loaded.inputs.said == [f"{FOLDER}b: 30,000 rows", f"{FOLDER}a: 30,000 rows"]


def test_a_known_column_keeps_its_field_id(place: Place) -> None:
    loaded = place.load("id,city,km\n1,Bonn,1\n", field_ids={"city": FieldIds(id=7), "gone": FieldIds(id=9)})
    schema = pq.read_schema(loaded.out / loaded.result.outputs[0].files[0].path)
    assert [field.metadata[b"PARQUET:field_id"] for field in schema] == [b"10", b"7", b"11"]


def test_half_the_rows_may_be_copies_in_a_small_job(place: Place) -> None:
    lines = "".join(f"{number % 90_000},a city with quite a long name {number},1\n" for number in range(180_000))
    # In a child of 256 MiB, whose interpreter takes 80 of them; this one has whatever other tests have left.
    memory_mib = 176 + resident_bytes(os.getpid()) // 1024**2
    rules = (*TRIPS[:1], column("city", unique=True), TRIPS[2])
    loaded = place.load(f"id,city,km\n{lines}", rules, memory_mib=memory_mib)
    assert loaded.counts == (180_000, 90_000, 90_000)


def test_the_contract_must_be_there(place: Place) -> None:
    job, inputs = place.job({"a": b""}, contract="contracts/none.odcs.yaml")
    with pytest.raises(SpecError, match=r"^contracts/none.odcs.yaml: expected a contract in the logic repository"):
        load.run(job, inputs)


# --- CSV ---------------------------------------------------------------------------------------------------------


def test_columns_go_by_name_not_by_place(place: Place) -> None:
    loaded = place.load({"a": b"km,id,city\n1.5,1,Bonn\n", "b": b"city,km,id\nKiel,2,2\n"})
    assert loaded.good == [(1, "Bonn", Decimal("1.50")), (2, "Kiel", Decimal(2))]


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"id,city\n1,Bonn\n", "got id, city (missing: km)"),
        (b"id,city,km,co2\n1,Bonn,1,2\n", "got id, city, km, co2 (unknown: co2)"),
        (b"id,City,km\n1,Bonn,1\n", "got id, City, km (missing: city; unknown: City)"),
        (b"id,city,km,id\n1,Bonn,1,1\n", "got id, city, km, id (twice: id)"),
        (b"id;city;km\n1;Bonn;1\n", "got id;city;km (missing: id, city, km; unknown: id;city;km)"),
        (b"", "got an empty file"),
        (b"\n\n", "got an empty file"),
        (b'id,"city', "got no CSV: unexpected end of data"),
        (b"id,city\xff,km\n", "got one that is malformed(encoding)"),
    ],
)
def test_another_header_is_refused_with_the_file_and_both_lists(place: Place, content: bytes, got: str) -> None:
    with pytest.raises(SchemaError) as caught:
        place.load({"a": b"id,city,km\n1,Bonn,1\n", "b": content})
    expected = "expected a header of the columns id, city, km, as contracts/trips.odcs.yaml has them"
    assert caught.value.message == f"{FOLDER}b: {expected}, {got}"


def test_malformed_lines_go_to_quarantine_as_they_came_each_with_its_number(place: Place) -> None:
    loaded = place.load(
        b"id,city,km\n"  # 1
        b"1,Bonn,1\n"
        b"2,Bonn\n"
        b"3,Bonn,1,\n"
        b'4,"Bo"nn,1\n'  # 5
        b"5,B\xffnn,1\n"
        b'6,"Bad\nEms",1\n'
        b'7,"Bad\nEms"\n'  # 9
        b"8,Bo\rnn,1\n"
        b'9,Bo"nn,1\n'  # 12
    )
    assert loaded.good == [(1, "Bonn", Decimal(1)), (6, "Bad\nEms", Decimal(1)), (9, 'Bo"nn', Decimal(1))]
    assert loaded.bad == [
        (3, ["malformed(too few fields)"], "2,Bonn"),
        (4, ["malformed(too many fields)"], "3,Bonn,1,"),
        (5, ["malformed(syntax)"], '4,"Bo"nn,1'),
        (6, ["malformed(encoding)"], "5,B\\xffnn,1"),
        (9, ["malformed(too few fields)"], '7,"Bad'),
        (10, ["malformed(too few fields)"], 'Ems"'),
        (11, ["malformed(syntax)"], "8,Bo\rnn,1"),
    ]
    assert loaded.bad_values == [(None, None, None)] * 7
    assert loaded.counts == (10, 3, 7)
    assert loaded.broken == {
        "malformed(too few fields)": 3,
        "malformed(syntax)": 2,
        "malformed(encoding)": 1,
        "malformed(too many fields)": 1,
    }


def test_a_quote_that_never_closes_does_not_pass_for_one_bad_row(place: Place) -> None:
    rest = "".join(f"{number},Bonn,1\n" for number in range(2, 1000))
    loaded = place.load(f'id,city,km\n0,Bonn,1\n1,"Bonn,1\n{rest}', max_bad_fraction=0.01)
    assert loaded.counts == (1000, 1, 999)
    assert loaded.result.failure is not None


def test_a_field_or_line_too_long_is_malformed_and_reading_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 20)
    over_lines = '2,"' + "long\n" * 6
    loaded = place.load(f"id,city,km\n1,{'x' * 50},1\n{over_lines}\n3,{'x' * 16},1\n4,{'x' * 17},1\n")
    assert [row[0] for row in loaded.good] == [3]
    too_long, syntax = ["malformed(line too long)"], ["malformed(syntax)"]
    rest = [(8, ["malformed(too few fields)"]), (11, too_long)]
    assert [(line, rules) for line, rules, _ in loaded.bad] == [
        (2, too_long),
        *((line, syntax) for line in range(3, 8)),
        *rest,
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_ends_blank_lines_and_a_byte_order_mark_are_no_matter(place: Place, end: str, bom: bytes) -> None:
    text = f"id,city,km{end}1,Bonn,1{end}{end}2,Kiel,2{end}{end}3,Mainz,3"
    assert [row[:2] for row in place.load(bom + text.encode()).good] == [(1, "Bonn"), (2, "Kiel"), (3, "Mainz")]


def test_mixed_line_ends_are_no_matter_either(place: Place) -> None:
    assert place.load("id,city,km\r\n1,Bonn,1\n2,Kiel,2\r\n").counts == (2, 2, 0)


def test_nulls_and_delimiter_are_the_works(place: Place) -> None:
    columns = (KEY, column("city"), column("km", "INTEGER"))
    tabs = CsvFormat(type="csv", delimiter="\t", nulls=("NA", "-"))
    assert place.load("id\tcity\tkm\n1\tNA\t-\n2\t\t2\n", columns, format=tabs).good == [(1, None, None), (2, "", 2)]
    no_nulls = CsvFormat(type="csv", nulls=())
    loaded = place.load("id,city,km\n1,,\n2,NA,2\n", columns, format=no_nulls)
    assert (loaded.good, loaded.broken) == ([(2, "NA", 2)], {"type(km: INTEGER)": 1})


def test_packed_files_are_known_by_their_first_bytes_whatever_their_names(place: Place) -> None:
    plain = b"id,city,km\n1,Bonn,1\n"
    zstd = pa.compress(plain.replace(b"1", b"2"), codec="zstd", asbytes=True)
    two = gzip.compress(plain.replace(b"1", b"3")) + gzip.compress(b"4,Kiel,1\n")
    loaded = place.load({"a.csv": gzip.compress(plain), "b.csv": zstd, "c.csv": two, "d.gz": plain.replace(b"1", b"5")})
    assert [row[0] for row in loaded.good] == [1, 2, 3, 4, 5]
    lines = pa.compress(b'{"id": 1, "city": "Bonn"}\n', codec="zstd", asbytes=True)
    assert place.load(lines, format=JSON_LINES).counts == (1, 1, 0)


@pytest.mark.parametrize(
    ("compression", "content"),
    [
        ("auto", PACKED[:-9]),
        ("gzip", PACKED[: len(PACKED) // 2]),
        ("gzip", b"id,city,km\n1,Bonn,1\n"),
        ("zstd", PACKED),
    ],
    ids=["cut", "cut in half", "not packed", "packed otherwise"],
)
def test_a_packed_file_that_is_damaged_is_no_data(place: Place, compression: Compression, content: bytes) -> None:
    codec = "zstd" if compression == "zstd" else "gzip"
    with pytest.raises(DataError, match=rf"^{FOLDER}a.csv: expected a {codec} file, got "):
        place.load({"a.csv": content}, format=CsvFormat(type="csv", compression=compression))


def test_compression_none_takes_the_bytes_as_they_are(place: Place) -> None:
    with pytest.raises(SchemaError, match=r"got one that is malformed\(encoding\)$|got no CSV"):
        place.load(PACKED, format=CsvFormat(type="csv", compression="none"))


def test_a_file_that_the_broker_refuses_is_its_error(place: Place) -> None:
    job, _ = place.job({"a": b""})
    with pytest.raises(DataError, match=r"^s3://lake/.*/a: expected a file of a declared input, got another$"):
        load.run(job, LocalInputs({}))


# --- rules -------------------------------------------------------------------------------------------------------


def test_types_are_kept_exactly(place: Place) -> None:
    columns = [
        column("a", "BOOLEAN"),
        column("b", "BIGINT"),
        column("c", "DOUBLE"),
        column("d", "DATE"),
        column("e", "TIMESTAMP"),
        column("f", "TIMESTAMPTZ"),
    ]
    row = "true,9223372036854775807,0.1,2013-01-01,2013-01-01 10:00:00.000001,2013-01-01T10:00:00+02:00"
    loaded = place.load(f"a,b,c,d,e,f\n{row}\n,,,,,\n2,1.5,1e999,2013-02-30,2013-01-01T10:00:00Z,now\n", columns)
    assert loaded.good == [
        (
            True,
            2**63 - 1,
            0.1,
            date(2013, 1, 1),
            datetime(2013, 1, 1, 10, 0, 0, 1),  # noqa: DTZ001 - a TIMESTAMP has no zone
            datetime(2013, 1, 1, 8, tzinfo=UTC),
        ),
        (None,) * 6,
    ]
    types = {"a": "BOOLEAN", "b": "BIGINT", "c": "DOUBLE", "d": "DATE", "e": "TIMESTAMP", "f": "TIMESTAMPTZ"}
    assert loaded.bad == [(4, [f"type({name}: {kind})" for name, kind in types.items()], None)]


def test_of_rows_with_one_key_the_first_that_is_good_otherwise_stays(place: Place) -> None:
    loaded = place.load(
        {
            "a": b"id,city,km\n1,,1\n1,Bonn,2\n2,Kiel,1\n01,Mainz,3\n",
            "b": b"id,city,km\n2,Kiel,1\n,Kiel,1\n,Kiel,1\n",
        }
    )
    assert loaded.good == [(1, "Bonn", Decimal(2)), (2, "Kiel", Decimal(1))]
    assert [(line, rules) for line, rules, _ in loaded.bad] == [
        (2, ["required(city)"]),
        (5, ["unique(id)"]),
        (2, ["unique(id)"]),
        (3, ["required(id)"]),
        (4, ["required(id)"]),
    ]


def test_a_null_in_a_unique_column_is_like_no_other_and_keys_may_be_of_several_columns(place: Place) -> None:
    columns = [
        column("a", "INTEGER", primaryKey=True, primaryKeyPosition=2),
        column("b", primaryKey=True, primaryKeyPosition=1),
        column("c", "DOUBLE", unique=True),
    ]
    loaded = place.load("a,b,c\n1,x,\n2,x,\n1,y,0.5\n1,x,0.50\n1,x,7\n", columns)
    assert loaded.good == [(1, "x", None), (2, "x", None), (1, "y", 0.5)]
    assert [rules for _, rules, _ in loaded.bad] == [["unique(b, a)", "unique(c)"], ["unique(b, a)"]]
    assert loaded.broken == {"unique(b, a)": 2, "unique(c)": 1}


def test_names_may_be_awkward(place: Place) -> None:
    columns = [column('a "b"', primaryKey=True), column("text_0"), column("select", "INTEGER"), column("it's")]
    loaded = place.load('"a ""b""",text_0,select,it\'s\n1,2,3,4\n1,2,x,4\n', columns)
    assert loaded.good == [("1", "2", 3, "4")]
    assert loaded.bad == [(3, ["type(select: INTEGER)"], None)]
    assert loaded.bad_values == [("1", "2", "x", "4")]


def lines(content: bytes, name: str = "a") -> records.Lines:
    return records.Lines(Utf8Stream(io.BytesIO(content), name, "auto", "utf-8"), "utf-8")


# --- JSON Lines --------------------------------------------------------------------------------------------------


def test_json_lines_are_objects_whose_values_are_judged_as_text(place: Place) -> None:
    columns = (KEY, column("city"), column("km", "DECIMAL(38,20)"), column("ok", "BOOLEAN"))
    content = (
        '{"id": 1, "city": "Bonn", "km": 0.12345678901234567891, "ok": true}\n'
        '{"ok": false, "km": "1", "id": "2", "city": 5.0}\n\n'
        '{"id": 3, "city": null}\r\n'
        '{"id": 4.5, "city": true}'
    )
    loaded = place.load(content, columns, format=JSON_LINES)
    assert loaded.good == [
        (1, "Bonn", Decimal("0.12345678901234567891"), True),
        (2, "5.0", Decimal(1), False),
        (3, None, None, None),
    ]
    assert loaded.bad == [(5, ["type(id: INTEGER)"], None)]
    assert loaded.bad_values == [("4.5", "true", None, None)]


def test_json_that_is_no_row_goes_to_quarantine_as_it_came(place: Place) -> None:
    lines = [
        b'{"id": 1, "city": "Bonn"}',
        b'{"id": 2, "city": "Bonn", "co2": 7, "so2": 1}',
        b'{"id": {"a": 1}, "city": ["Bonn"]}',
        b'{"id": 4, "city": "Bonn"',
        b"[5]",
        b'{"id": 6, "id": 7, "city": "Bonn"}',
        b'{"id": 8, "city": "B\xffnn"}',
        b'{"id": 9, "city": "\\ud800"}',
        b'{"id": 10, "city": "Bonn", "km": NaN}',
        b"[" * 100_000,
        b'{"id": 11, "city": "\\ud83d\\ude80"}',
    ]
    loaded = place.load(b"\n".join(lines), format=JSON_LINES)
    assert loaded.good == [(1, "Bonn", None), (11, "\N{ROCKET}", None)]
    assert [(line, rules) for line, rules, _ in loaded.bad] == [
        (2, ["unknown(co2)", "unknown(so2)"]),
        (3, ["type(id: INTEGER)", "type(city: VARCHAR)"]),
        (4, ["malformed(syntax)"]),
        (5, ["malformed(not an object)"]),
        (6, ["malformed(a key twice)"]),
        (7, ["malformed(encoding)"]),
        (8, ["malformed(encoding)"]),
        (9, ["malformed(syntax)"]),
        (10, ["malformed(syntax)"]),
    ]
    assert [text for _, _, text in loaded.bad] == [line.decode(errors="backslashreplace") for line in lines[1:-1]]
    assert loaded.bad_values[:2] == [("2", "Bonn", None), ('{"a": "1"}', '["Bonn"]', None)]
    assert loaded.counts == (11, 2, 9)


@pytest.mark.parametrize("depth", range(300, 1500, 100))
def test_nesting_of_any_depth_is_one_bad_row(depth: int) -> None:
    line = f'{{"id": {"[" * depth}{"]" * depth}}}'
    contract = Contract(table="t", columns=(ContractColumn(name="id", type="INTEGER", required=False),))
    rows = records.JsonRows(Layout(contract, "c"), ["type(id: INTEGER)"], "a")
    ((_, _, found, _, _),) = records.read_json_lines(lines(line.encode()), rows)
    assert found in (["type(id: INTEGER)"], ["malformed(syntax)"])


def test_an_unknown_key_and_a_broken_rule_are_both_told(place: Place) -> None:
    loaded = place.load('{"id": "x", "co2": 1}\n', format=JSON_LINES)
    assert loaded.bad[0][1] == ["unknown(co2)", "type(id: INTEGER)", "required(city)"]


def test_any_number_of_unknown_keys_makes_no_endless_list_of_steps(place: Place) -> None:
    content = "".join(f'{{"id": {number}, "city": "Bonn", "key {number}": 1}}\n' for number in range(300))
    loaded = place.load(content, format=JSON_LINES)
    assert loaded.counts == (300, 0, 300)
    assert len(loaded.result.steps) == 6 + 100


# --- Parquet -----------------------------------------------------------------------------------------------------


def parquet(**columns: pa.Array) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=2)
    return sink.getvalue()


def test_parquet_is_judged_by_the_same_rules(place: Place) -> None:
    content = parquet(
        km=pa.array([1.5, 2.0, None, 1.234, 1e9]),
        id=pa.array([1.0, 2.0, 3.0, 4.0, 1.0]),
        city=pa.array(["Bonn", None, "Kiel", "Mainz", "Mainz"]).dictionary_encode(),
    )
    loaded = place.load(content, format=PARQUET)
    assert loaded.good == [(1, "Bonn", Decimal("1.50")), (3, "Kiel", None)]
    assert [(line, rules) for line, rules, _ in loaded.bad] == [
        (2, ["required(city)"]),
        (4, ["type(km: DECIMAL(6,2))"]),
        (5, ["type(km: DECIMAL(6,2))"]),
    ]
    assert loaded.bad_values[1] == ("4.0", "Mainz", "1.234")
    assert loaded.counts == (5, 2, 3)


def test_parquet_values_arrive_as_they_are(place: Place) -> None:
    at = datetime(2013, 1, 1, 10, 0, 0, 1, tzinfo=UTC)
    content = parquet(
        single=pa.array([0.1], pa.float32()),
        day=pa.array([at.replace(hour=0, microsecond=0, tzinfo=None)], pa.timestamp("us")),
        at=pa.array([at], pa.timestamp("us", tz="UTC")),
        nanos=pa.array([1], pa.timestamp("ns")),
        big=pa.array([2**63 - 1]),
        flag=pa.array([False]),
        number=pa.array([Decimal("1.50")]),
    )
    columns = [
        column("single", "DOUBLE"),
        column("day", "DATE"),
        column("at", "TIMESTAMPTZ"),
        column("nanos"),
        column("big", "BIGINT"),
        column("flag", "BOOLEAN"),
        column("number"),
    ]
    assert place.load(content, columns, format=PARQUET).good == [
        (0.10000000149011612, date(2013, 1, 1), at, "1970-01-01 00:00:00.000000001", 2**63 - 1, False, "1.50")
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"id": pa.array([1]), "city": pa.array(["a"])},
            "expected the columns id, city, km, got id, city (missing: km)",
        ),
        (
            {"id": pa.array([1]), "city": pa.array([["a"]]), "km": pa.array([1])},
            "column city: expected values for VARCHAR, got the type VARCHAR[]",
        ),
        (
            {"id": pa.array([True]), "city": pa.array(["a"]), "km": pa.array([1])},
            "column id: expected values for INTEGER, got the type BOOLEAN",
        ),
    ],
)
def test_parquet_with_other_columns_is_refused(place: Place, columns: dict[str, pa.Array], message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        place.load(parquet(**columns), format=PARQUET)
    assert caught.value.message == f"{FOLDER}a: {message}"


@pytest.mark.parametrize("content", [b"", b"id,city,km\n1,Bonn,1\n", b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_a_parquet_file_that_is_none_is_no_data(place: Place, content: bytes) -> None:
    with pytest.raises(DataError, match=rf"^{FOLDER}a: expected a Parquet file, got "):
        place.load(content, format=PARQUET)


# --- in general --------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = ["a", "b", "n"]
ANY = [column("a"), column("b"), column("n", "INTEGER")]
NUMBER = st.integers(-(2**31), 2**31 - 1).map(str)
ROW = st.tuples(TEXT, TEXT, st.one_of(NUMBER, NUMBER, TEXT.filter(lambda text: not any(map(str.isdigit, text)))))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(ROW, max_size=12),
    stray=st.lists(st.sampled_from([b"1,2", b"1,2,3,4", b'"x"y,2,3', b"\xff,2,3"]), max_size=4),
    end=st.sampled_from(["\n", "\r\n"]),
    order=st.permutations(NAMES),
)
def test_any_csv_comes_back_equal_and_every_line_is_counted(
    rows: list[tuple[str, str, str]], stray: list[bytes], end: str, order: list[str]
) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, quoting=csv.QUOTE_ALL, lineterminator=end)
    writer.writerow(order)
    writer.writerows([[row[NAMES.index(name)] for name in order] for row in rows])
    content = written.getvalue().encode() + b"".join(line + end.encode() for line in stray)
    with TemporaryDirectory() as folder:
        loaded = Place(Path(folder)).load(content, ANY, format=CsvFormat(type="csv", nulls=()))
        good, bad_values = loaded.good, loaded.bad_values
    fits = [row for row in rows if row[2].removeprefix("-").isdecimal()]
    assert good == [(a, b, int(n)) for a, b, n in fits]
    assert bad_values == [row for row in rows if row not in fits] + [(None, None, None)] * len(stray)
    assert loaded.counts == (len(rows) + len(stray), len(fits), len(rows) - len(fits) + len(stray))


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(ROW, max_size=12), escape=st.booleans())
def test_any_json_lines_come_back_equal(rows: list[tuple[str, str, str]], escape: bool) -> None:
    lines = [json.dumps(dict(zip(NAMES, row, strict=True)), ensure_ascii=escape) for row in rows]
    with TemporaryDirectory() as folder:
        loaded = Place(Path(folder)).load("\n".join(lines), ANY, format=JSON_LINES)
        good, bad_values = loaded.good, loaded.bad_values
    fits = [row for row in rows if row[2].removeprefix("-").isdecimal()]
    assert good == [(a, b, int(n)) for a, b, n in fits]
    assert bad_values == [row for row in rows if row not in fits]
    assert loaded.counts == (len(rows), len(fits), len(rows) - len(fits))
