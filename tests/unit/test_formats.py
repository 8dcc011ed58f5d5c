"""How files become records: both ways of cutting CSV agree; encodings, JSON documents, columns that drift."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runner.engines.contracts.contract import Contract, ContractColumn
from runner.engines.contracts.drift import MAX_ADDED_COLUMNS, Layout
from runner.engines.files import json_document, records
from runner.engines.files.decoding import Utf8Stream
from runner.model.errors import DataError, SchemaError
from runner.model.spec import CsvFormat, Encoding, JsonFormat, JsonLinesFormat, SourceFormat
from tests.support.loads import CSV, FOLDER, JSON_LINES, KEY, PARQUET, TRIPS, Place, column

JSON = JsonFormat(type="json")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def drift(choice: str) -> dict[str, Any]:
    return {"customProperties": [{"property": "drift", "value": choice}]}


# --- CSV, cut in two ways ----------------------------------------------------------------------------------------


def texts_of(names: Iterable[str]) -> Layout:
    columns = tuple(ContractColumn(name=name, type="VARCHAR", required=False) for name in names)
    return Layout(Contract(table="t", columns=columns), "c")


Found = tuple[int, tuple[str | None, ...], list[str] | None, str | None]


def by_the_engine(content: bytes, width: int, *, delimiter: str = ",", only: list[int] | None = None) -> list[Found]:
    names = tuple(f"c{index}" for index in range(width))
    layout = Layout(
        Contract(table="t", columns=tuple(ContractColumn(name=name, type="VARCHAR", required=False) for name in names)),
        "c",
    )
    lines = records.Lines(Utf8Stream(io.BytesIO(content), "a", "none", "utf-8"), "utf-8")
    found: list[Found] = []
    for batch in records.read_csv(lines, layout, delimiter=delimiter, name="a", header=False, only=only):
        batch.rows.validate(full=True)
        for row in batch.rows.to_pylist():
            values = tuple(row[f"raw_{index}"] for index in range(width))
            found.append((row["_line"], values, row["_found"], row["_text"]))
            assert row["_parsed"] is (row["_found"] is None)
    return found


def by_the_csv_module(content: bytes, width: int, *, delimiter: str = ",") -> list[Found]:
    """Line by line with nothing but Python's parser: what the engine has to agree with, written down again."""
    whole = content.removeprefix(b"\xef\xbb\xbf")
    pieces = [piece + b"\n" for piece in whole.split(b"\n")]
    pieces[-1] = pieces[-1].removesuffix(b"\n")
    taken: list[bytes] = []
    number = 0

    def fed() -> Iterator[str]:
        nonlocal number
        for piece in pieces:
            if piece:
                number += 1
                taken.append(piece)
                yield piece.decode(errors="replace")

    reader = csv.reader(fed(), delimiter=delimiter, strict=True)
    found: list[Found] = []
    while True:
        taken.clear()
        rule = None
        values: list[str] = []
        try:
            values = next(reader)
        except StopIteration:
            return found
        except csv.Error:
            rule = "malformed(syntax)"
        if any(not _is_utf8(piece) for piece in taken):
            rule = "malformed(encoding)"
        if rule is None and len(values) != width and values:
            rule = f"malformed(too {'few' if len(values) < width else 'many'} fields)"
        first = number - len(taken) + 1
        if rule is not None:
            for at, piece in enumerate(taken):
                shown = piece.rstrip(b"\r\n").decode(errors="backslashreplace")
                found.append((first + at, (None,) * width, [rule], shown))
        elif values:
            found.append((first, tuple(values), None, None))


def _is_utf8(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


PIECES = [b"a", b"12", b",", b",", b",", b"\n", b"\n", b"\n", b"\r\n", b"\r", b'"', b'""', b" ", "é".encode(), b"\xff"]
PIECES += [
    b"\xc3",
    b"\x00",
    b"\x0b",
    b"\x1c",
    "\u2028".encode(),
    "\u0085".encode(),
    b"x,y\n",
    b"1,2\r\n",
    b'"q,\n",z\n',
]
CONTENT = st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)


@settings(max_examples=400, deadline=None)
@given(content=CONTENT, width=st.integers(1, 3), block=st.sampled_from([1, 3, 7, 20, 1000]))
@example(content=b"a,b\n\n\r\n,\n" * 3, width=2, block=20)
@example(content=b'a,b\n"', width=2, block=1)
@example(content=b"a,b\rc,d", width=2, block=1000)
@example(content=b"\n", width=1, block=1)
def test_plain_lines_and_odd_ones_are_the_records_that_the_csv_module_has(
    content: bytes, width: int, block: int
) -> None:
    before = records.BLOCK_BYTES
    records.BLOCK_BYTES = block
    try:
        found = by_the_engine(content, width)
        expected = by_the_csv_module(content, width)
        assert found == expected
        some = sorted({each[0] for each in found if each[0] % 2})
        again = by_the_engine(content, width, only=some)
        assert [each for each in again if each[0] % 2] == [each for each in found if each[0] % 2]
    finally:
        records.BLOCK_BYTES = before


@settings(max_examples=100, deadline=None)
@given(content=CONTENT, delimiter=st.sampled_from("·\0"))
def test_a_delimiter_that_arrow_does_not_know_is_read_one_by_one(content: bytes, delimiter: str) -> None:
    content = content.replace(b",", delimiter.encode())
    assert by_the_engine(content, 2, delimiter=delimiter) == by_the_csv_module(content, 2, delimiter=delimiter)


@settings(max_examples=60, deadline=None)
@given(content=CONTENT, longest=st.integers(3, 12), block=st.sampled_from([1, 5, 1000]))
def test_no_line_is_lost_to_one_that_is_too_long(content: bytes, longest: int, block: int) -> None:
    before = records.BLOCK_BYTES, records.MAX_LINE_BYTES
    records.BLOCK_BYTES, records.MAX_LINE_BYTES = block, longest
    try:
        found = by_the_engine(content.replace(b'"', b""), 2)
    finally:
        records.BLOCK_BYTES, records.MAX_LINE_BYTES = before
    lines = content.replace(b'"', b"").split(b"\n")
    long = [number for number, line in enumerate(lines, 1) if len(line) > longest]
    assert [line for line, _, rules, _ in found if rules == ["malformed(line too long)"]] == long
    wanted = [number for number, line in enumerate(lines, 1) if line.strip(b"\r")]
    assert [line for line, *_ in found] == wanted


def test_a_file_without_quotes_is_cut_by_arrow_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Iterator[records.Record]:
        raise AssertionError("expected no line to be read one by one")

    monkeypatch.setattr(records._CsvFile, "_one_by_one", never)
    content = b"".join(b"%d,town %d\r\n" % (number, number) for number in range(5000)) + b"x\n\n1,2,3\n"
    found = by_the_engine(content, 2)
    assert len(found) == 5002
    assert found[4999:] == [
        (5000, ("4999", "town 4999"), None, None),
        (5001, (None, None), ["malformed(too few fields)"], "x"),
        (5003, (None, None), ["malformed(too many fields)"], "1,2,3"),
    ]


def test_copies_are_kept_as_they_came_from_every_kind_of_file(place: Place) -> None:
    lines = b'id,city,km\n1,"Bad\nEms",1.0\n01,Bonn,2.50\nx\n+1,"Bo""nn",03\n'
    loaded = place.load({"a": lines, "b": gzip.compress(lines)}, format=CSV)
    assert loaded.bad_values == [
        ("01", "Bonn", "2.50"),
        (None, None, None),
        ("+1", 'Bo"nn', "03"),
        ("1", "Bad\nEms", "1.0"),
        ("01", "Bonn", "2.50"),
        (None, None, None),
        ("+1", 'Bo"nn', "03"),
    ]
    assert loaded.inputs.opened == [FOLDER + name for name in "abab"]
    documents = [{"id": 1, "city": "a"}, {"id": "01", "city": "b", "km": "1.0"}]
    for format, content in (
        (JSON, json.dumps(documents)),
        (JSON_LINES, "\n".join(map(json.dumps, documents))),
    ):
        assert place.load(content, format=format).bad_values == [("01", "b", "1.0")]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["1", "01"], "city": ["a", "b"], "km": [None, "1.0"]}), sink)
    assert place.load(sink.getvalue().to_pybytes(), format=PARQUET).bad_values == [("01", "b", "1.0")]


def test_a_file_without_a_header_has_the_contracts_columns(place: Place) -> None:
    loaded = place.load("1,Bonn,1\n2,Kiel\n", format=CsvFormat(type="csv", header=False))
    assert [row[:2] for row in loaded.good] == [(1, "Bonn")]
    assert loaded.broken == {"malformed(too few fields)": 1}


# --- encodings ---------------------------------------------------------------------------------------------------

ENCODINGS: list[tuple[Encoding, str]] = [
    ("utf-8", ""),
    ("utf-8", "\ufeff"),
    ("utf-16", ""),  # Python writes the mark itself
    ("utf-16-le", "\ufeff"),
    ("utf-16-be", ""),
    ("iso-8859-1", ""),
    ("iso-8859-15", ""),
    ("windows-1250", ""),
    ("windows-1252", ""),
]


@pytest.mark.parametrize(("encoding", "mark"), ENCODINGS)
@pytest.mark.parametrize("packed", [False, True])
def test_text_is_the_same_in_any_encoding(place: Place, encoding: Encoding, mark: str, packed: bool) -> None:
    euro = "€" if encoding != "iso-8859-1" else "ü"
    text = f'id,city,km\r\n1,Köln {euro},1\r\n2,"Bad\nEms",2\r\n3,Kiel\r\n'
    raw = (mark + text).encode(encoding)
    loaded = place.load(gzip.compress(raw) if packed else raw, format=CsvFormat(type="csv", encoding=encoding))
    assert [row[:2] for row in loaded.good] == [(1, f"Köln {euro}"), (2, "Bad\nEms")]
    assert loaded.bad == [(5, ["malformed(too few fields)"], "3,Kiel")]
    lines = (mark + json.dumps({"id": 1, "city": "Köln"}, ensure_ascii=False) + "\n").encode(encoding)
    assert place.load(lines, format=JsonLinesFormat(type="jsonl", encoding=encoding)).counts == (1, 1, 0)
    document = (mark + json.dumps([{"id": 1, "city": "Köln"}], ensure_ascii=False)).encode(encoding)
    assert place.load(document, format=JsonFormat(type="json", encoding=encoding)).good[0][1] == "Köln"


@pytest.mark.parametrize(
    ("encoding", "bad", "shown"),
    [
        ("utf-8", b"\xed\xb2\x81", r"2,B\xed\xb2\x81nn,1"),
        ("utf-8", b"\xc3", r"2,B\xc3nn,1"),
        ("windows-1252", b"\x81", r"2,B\x81nn,1"),
        ("windows-1252", b"\x8d\x9d", r"2,B\x8d\x9dnn,1"),
    ],
)
def test_a_byte_that_is_none_makes_its_line_malformed_and_no_other(
    place: Place, encoding: Encoding, bad: bytes, shown: str
) -> None:
    content = b"id,city,km\n1,Bonn,1\n2,B" + bad + b"nn,1\n3,Kiel,1\n"
    loaded = place.load(content, format=CsvFormat(type="csv", encoding=encoding))
    assert [row[0] for row in loaded.good] == [1, 3]
    assert loaded.bad == [(3, ["malformed(encoding)"], shown)]


def test_half_a_character_of_utf_16_is_malformed_where_it_is(place: Place) -> None:
    content = "id,city,km\n1,Bonn,1\n2,B".encode("utf-16-le") + b"\x00\xd8" + "nn,1\n3,Kiel,1\n".encode("utf-16-le")
    loaded = place.load(content, format=CsvFormat(type="csv", encoding="utf-16-le"))
    assert [row[0] for row in loaded.good] == [1, 3]
    assert loaded.bad == [(3, ["malformed(encoding)"], r"2,B\x00\xd8nn,1")]


def test_utf_16_needs_its_mark(place: Place) -> None:
    with pytest.raises(DataError, match=r"expected a byte order mark, as encoding is utf-16, got b'i"):
        place.load("id,city,km\n".encode("utf-16-le"), format=CsvFormat(type="csv", encoding="utf-16"))


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30), parts=st.lists(st.integers(1, 5), max_size=20)
)
def test_any_text_comes_through_any_utf(text: str, parts: list[int]) -> None:
    encodings: list[Encoding] = ["utf-8", "utf-16-le", "utf-16-be", "utf-16"]
    for encoding in encodings:
        raw = text.encode(encoding)
        stream = Utf8Stream(io.BytesIO(raw), "a", "none", encoding)
        came = b"".join(iter(stream.read, b"")).decode()
        assert came == text.removeprefix("\ufeff")


# --- JSON documents ----------------------------------------------------------------------------------------------


def test_a_document_is_an_array_of_rows(place: Place) -> None:
    content = """[
      {"id": 1, "city": "Bonn", "km": 0.10},
      {"id": 2, "city": null}, 7,
      {"id": 3, "city": "Kiel", "km": [1]},
      {"id": 4, "id": 5, "city": "Kiel"}, {"id": 6, "city": "K\\ud800"},
      {"id": 12345678901234567890, "city": "x", "km": null}
    ]
    """
    loaded = place.load(content, (column("id", "DECIMAL(20,0)"), *TRIPS[1:]), format=JSON)
    assert [int(row[0]) for row in loaded.good] == [1, 12345678901234567890]
    assert [(line, rules) for line, rules, _ in loaded.bad] == [
        (3, ["required(city)"]),
        (3, ["malformed(not an object)"]),
        (4, ["type(km: DECIMAL(6,2))"]),
        (5, ["malformed(a key twice)"]),
        (5, ["malformed(encoding)"]),
    ]
    assert loaded.counts == (7, 2, 5)


@pytest.mark.parametrize(
    ("rows", "content"),
    [
        (("data",), '{"count": 2, "data": [ROW], "next": null}'),
        (("a", "b c"), '{"z": {"b c": 1}, "a": {"x": [[]], "b c": [ROW]}}'),
        ((), " \n[ROW]\n "),
        (("a",), '{"a": [ROW]}'),
    ],
)
def test_rows_may_lie_under_keys(place: Place, rows: tuple[str, ...], content: str) -> None:
    content = content.replace("ROW", '{"id": 1, "city": "x"}, {"id": 2, "city": "y"}')
    assert [row[0] for row in place.load(content, format=JsonFormat(type="json", rows=rows)).good] == [1, 2]


@pytest.mark.parametrize(
    ("rows", "content", "error", "message"),
    [
        ((), "", SchemaError, "expected an array, got '' at line 1"),
        ((), "{}", SchemaError, "expected an array, got '{' at line 1"),
        (("data",), "[]", SchemaError, "expected an object with the key 'data', got '['"),
        (("data",), '{"a": 1,\n "b": 2}', SchemaError, "expected an object with the key 'data', got a, b"),
        (("data",), '{"data": null}', SchemaError, "expected an array under data, got 'n' at line 1"),
        (("data",), '{"data": [], "data": []}', DataError, "expected the key 'data' once at line 1, got it twice"),
        ((), '[{"id": 1}\n{"id": 2}]', DataError, "expected , or ] at line 2, got '{'"),
        ((), '[{"id": 1},\n]', DataError, "expected a value at line 2, got no JSON: Expecting value"),
        ((), '[{"id": 1}', DataError, "expected , or ] at line 1, got the end of the file"),
        ((), '[{"id": ', DataError, "expected a value at line 1, got no JSON: Expecting value"),
        ((), '[{"id": NaN}]', DataError, "got no JSON: NaN is not JSON"),
        ((), "[] []", DataError, "expected the end of the document at line 1, got '['"),
        ((), "[" * 100_000, DataError, "got one nested too deeply"),
        (("a",), '{"a": [], 1: 2}', DataError, "expected a key at line 1, got '1'"),
    ],
)
def test_a_document_that_is_damaged_is_refused_with_the_line(
    place: Place, rows: tuple[str, ...], content: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        place.load({"a": content.encode()}, format=JsonFormat(type="json", rows=rows))
    assert str(caught.value).startswith(f"{FOLDER}a: ")
    assert message in str(caught.value)


def test_a_byte_that_is_none_makes_one_element_of_a_document_bad(place: Place) -> None:
    loaded = place.load(b'[{"id": 1, "city": "B\xffnn"}, {"id": 2, "city": "Bonn"}]', format=JSON)
    assert [row[0] for row in loaded.good] == [2]
    assert loaded.bad == [(1, ["malformed(encoding)"], '{"id": 1, "city": "B\\xffnn"}')]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.sampled_from("abc"), st.one_of(st.none(), st.integers(), st.text(max_size=5)))),
    indent=st.sampled_from([None, 0, 2]),
    size=st.integers(1, 9),
)
def test_a_document_in_pieces_is_read_as_json_reads_it_whole(
    rows: list[dict[str, Any]], indent: int | None, size: int
) -> None:
    class Dribble(io.BytesIO):
        """Gives a few bytes at a time, so that every value is cut somewhere."""

        def read(self, _: int | None = -1, /) -> bytes:
            return super().read(size)

    layout = Layout(
        Contract(table="t", columns=tuple(ContractColumn(name=name, type="VARCHAR", required=False) for name in "abc")),
        "c",
    )
    text = json.dumps({"x": [1.5, {"y": 2}], "rows": rows, "z": 12}, indent=indent)
    stream = Utf8Stream(Dribble(text.encode()), "f", "none", "utf-8")
    json_rows = records.JsonRows(layout, ["ta", "tb", "tc"], "f")
    found = list(json_document.read_json(stream, json_rows, ["rows"], "f"))
    expected = [[None if each is None else str(each) for each in map(row.get, "abc")] for row in rows]
    assert [list(values) for _, values, _, _, _ in found] == expected


# --- drift -------------------------------------------------------------------------------------------------------


def test_evolve_takes_a_new_column_as_text_and_a_missing_one_as_null(place: Place) -> None:
    loaded = place.load(
        {"a": b"id,city,km\n1,Bonn,1\n", "b": b"co2,id,city\n7.0,2,Kiel\n,x,Kiel\n", "c": b"id,city,km\n3,Ulm,\n"},
        **drift("evolve"),
    )
    (table, quarantine) = loaded.result.outputs
    assert [(each.name, each.type) for each in table.columns or ()][3:] == [("co2", "string")]
    assert [(row[0], row[1], row[3]) for row in loaded.good] == [
        (1, "Bonn", None),
        (2, "Kiel", "7.0"),
        (3, "Ulm", None),
    ]
    assert [each.name for each in quarantine.columns or ()][-1] == "co2"
    assert loaded.bad_values == [("x", "Kiel", None, "")]
    told = {step.name: (step.kind, step.status, step.message) for step in loaded.result.steps if step.kind == "drift"}
    where = f"by drift: evolve, first in {FOLDER}b"
    assert told == {"missing(km)": ("drift", "warn", where), "added(co2)": ("drift", "warn", where)}


def test_discard_drops_a_new_column_and_says_so(place: Place) -> None:
    loaded = place.load("id,co2,city,km\n1,7,Bonn,1\n2,Kiel,1\n", **drift("discard"))
    assert loaded.good[0][:2] == (1, "Bonn")
    assert [each.name for each in loaded.result.outputs[0].columns or ()] == ["id", "city", "km"]
    assert loaded.broken == {"malformed(too few fields)": 1}
    assert [step.name for step in loaded.result.steps if step.kind == "drift"] == ["discarded(co2)"]


@pytest.mark.parametrize("choice", ["freeze", "evolve", "discard"])
def test_a_required_column_has_to_be_there_whatever_the_choice(place: Place, choice: str) -> None:
    with pytest.raises(SchemaError, match=r"got id, km \(missing: city\)$"):
        place.load("id,km\n1,1\n", **drift(choice))


@pytest.mark.parametrize(("format", "end"), [(JSON_LINES, "\n"), (JSON, "]")])
def test_keys_of_json_drift_as_columns_do(place: Place, format: SourceFormat, end: str) -> None:
    rows = [
        '{"id": 1, "city": "a"}',
        '{"id": 2, "city": "b", "x": {"y": 1}, "z": 1.0}',
        '{"z": true, "id": 3, "city": "c"}',
    ]
    content = "\n".join(rows) if end == "\n" else "[" + ",".join(rows) + "]"
    evolved = place.load(content, format=format, **drift("evolve"))
    assert [each.name for each in evolved.result.outputs[0].columns or ()][3:] == ["x", "z"]
    assert [row[3:] for row in evolved.good] == [(None, None), ('{"y": "1"}', "1.0"), (None, "true")]
    dropped = place.load(content, format=format, **drift("discard"))
    assert dropped.counts == (3, 3, 0)
    assert [step.name for step in dropped.result.steps if step.kind == "drift"] == ["discarded(x)", "discarded(z)"]
    frozen = place.load(content, format=format, **drift("freeze"))
    assert frozen.broken == {"unknown(x)": 1, "unknown(z)": 2}


def test_a_column_that_comes_after_thousands_of_rows_is_still_one(place: Place) -> None:
    rows = [{"id": number, "city": "x"} for number in range(5000)] + [{"id": 5000, "city": "y", "late": 1}]
    loaded = place.load("\n".join(map(json.dumps, rows)), format=JSON_LINES, **drift("evolve"))
    assert (loaded.counts, loaded.good[-1][3], loaded.good[0][3]) == ((5001, 5001, 0), "1", None)


def test_parquet_drifts_too(place: Place) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": [1], "city": ["x"], "co2": [1.5]}), sink)
    content = sink.getvalue().to_pybytes()
    assert place.load(content, format=PARQUET, **drift("evolve")).good == [(1, "x", None, "1.5")]
    assert place.load(content, format=PARQUET, **drift("discard")).good == [(1, "x", None)]
    with pytest.raises(SchemaError, match=r"\(missing: km; unknown: co2\)$"):
        place.load(content, format=PARQUET)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("City", "differs from 'city' in more than case, got 'City'"),
        ("_Line", "other than _source_file, _line, _rules, _text, got '_Line'"),
        ("", "of 1 to 255 printable bytes, got ''"),
        ("a\tb", "of 1 to 255 printable bytes, got 'a\\tb'"),
        ("x" * 256, "of 1 to 255 printable bytes, got"),
    ],
)
def test_a_new_column_that_can_be_none_is_refused_and_may_be_dropped(place: Place, name: str, message: str) -> None:
    row = json.dumps({"id": 1, "city": "x", name: 1})
    with pytest.raises(SchemaError) as caught:
        place.load(row, format=JSON_LINES, **drift("evolve"))
    assert message in caught.value.message
    assert place.load(row, format=JSON_LINES, **drift("discard")).counts == (1, 1, 0)


def test_keys_that_are_data_make_no_columns_without_end(place: Place) -> None:
    row = json.dumps({"id": 1, "city": "x", **{f"k{number}": 1 for number in range(MAX_ADDED_COLUMNS + 1)}})
    with pytest.raises(
        SchemaError, match=f"expected at most {MAX_ADDED_COLUMNS} new columns, got 'k{MAX_ADDED_COLUMNS}'"
    ):
        place.load(row, format=JSON_LINES, **drift("evolve"))


def test_the_hint_of_a_frozen_contract_names_the_way_out(place: Place) -> None:
    with pytest.raises(SchemaError) as caught:
        place.load("id,city,km,co2\n", (KEY, *TRIPS[1:]))
    assert (
        caught.value.hint == "the table's custom property drift in contracts/trips.odcs.yaml may say evolve or discard"
    )
