"""What each rule of a contract calls a bad row, what a null means to it, and which statements are refused by name."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.engines.contracts.contract import Contract, parse_contract
from runner.engines.contracts.drift import Layout
from runner.engines.contracts.exact_types import exact_value
from runner.engines.contracts.patterns import TEXT_FORMATS, UnknownPatternError, of_format, re2_of, time_form
from runner.engines.contracts.rules import Bound, Operator
from runner.engines.judge import Rows, SqlRows
from runner.model.errors import DataError, LogicError, SchemaError, SpecError
from tests.support.loads import JSON_LINES, PARQUET, Loaded, Place, column

ID = column("id", "INTEGER", unique=True)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def judged(place: Place, rows: list[Any], physical: str = "VARCHAR", **stated: Any) -> tuple[list[Any], dict[str, int]]:
    """The values that are loaded of one column, and how many rows broke which rule. Rows come as JSON: null is null."""
    content = "".join(json.dumps({"it": each}) + "\n" for each in rows)
    table = stated.pop("table", {})
    loaded = place.load(content, (column("it", physical, **stated),), format=JSON_LINES, **table)
    return [row[0] for row in loaded.good], {name: rows or 0 for name, rows in loaded.broken.items()}


def refusal(*columns: dict[str, Any], **table: Any) -> str:
    with pytest.raises(SpecError) as caught:
        contract(*columns, **table)
    return caught.value.message.removeprefix("c: ")


def contract(*columns: dict[str, Any], **table: Any) -> Contract:
    head = {"apiVersion": "v3.2.0", "kind": "DataContract", "id": "c", "version": "1"}
    stated = {**head, "schema": [{"name": "trips", "properties": list(columns), **table}]}
    return parse_contract(json.dumps(stated).encode(), what="c")


# --- options of types --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("physical", "options", "good", "bad"),
    [
        ("INTEGER", {"minimum": 1}, ["1", "2", None], ["0", "-5"]),
        ("INTEGER", {"maximum": 2.5}, ["2", None], ["3"]),
        ("INTEGER", {"exclusiveMinimum": 1}, ["2"], ["1", "0"]),
        ("BIGINT", {"exclusiveMaximum": 9223372036854775807}, ["9223372036854775806"], ["9223372036854775807"]),
        ("DECIMAL(6,2)", {"minimum": 0.1, "maximum": 0.3}, ["0.10", "0.3", None], ["0.09", "0.31"]),
        ("DOUBLE", {"maximum": 1}, ["1", "-inf", None], ["1.0000001", "inf", "nan"]),
        ("DOUBLE", {"minimum": 0}, ["0.5", "inf"], ["-0.1", "nan"]),
        (
            "DATE",
            {"minimum": "2013-01-01", "exclusiveMaximum": "2014-01-01"},
            ["2013-01-01", "2013-12-31"],
            ["2014-01-01"],
        ),
        (
            "TIMESTAMPTZ",
            {"maximum": "2013-01-01T00:00:00Z"},
            ["2013-01-01T01:00:00+01:00"],
            ["2013-01-01T00:00:00-01:00"],
        ),
        ("INTEGER", {"multipleOf": 5}, ["0", "-10", None], ["3"]),
        ("DECIMAL(6,2)", {"multipleOf": 0.05}, ["0.35", "1.00"], ["0.36"]),
        ("VARCHAR", {"minLength": 2, "maxLength": 3}, ["ab", "äöü", None], ["", "a", "abcd"]),
        ("VARCHAR", {"pattern": "^N[0-9]+$"}, ["N1", None], ["1", "N", "N1\n"]),
        ("VARCHAR", {"pattern": "b"}, ["abc"], ["ac", ""]),
        ("INTEGER", {"format": "u8"}, ["0", "255", None], ["-1", "256"]),
        ("BIGINT", {"format": "i64"}, ["9223372036854775807"], []),
        ("DECIMAL(38,0)", {"format": "u64"}, ["18446744073709551615"], ["18446744073709551616", "-1"]),
        ("DOUBLE", {"format": "f32"}, ["0.1", "inf", None], ["1e300"]),
        ("DOUBLE", {"format": "f64"}, ["1e300"], []),
    ],
    ids=str,
)
def test_an_option_is_kept_by_values_and_broken_by_none_that_is_null(
    place: Place, physical: str, options: dict[str, Any], good: list[str | None], bad: list[str]
) -> None:
    logical = {"logicalType": "integer"} if physical == "DECIMAL(38,0)" else {}
    loaded, broken = judged(place, [*good, *bad], physical, logicalTypeOptions=options, **logical)
    assert len(loaded) == len(good)
    assert sum(broken.values()) == len(bad)
    assert all(name.partition("(")[0] in options for name in broken)


def test_a_row_is_told_every_rule_that_it_broke(place: Place) -> None:
    columns = (
        ID,
        column("town", logicalTypeOptions={"minLength": 3, "pattern": "^[A-Z]"}, enum=[{"value": "Bonn"}]),
        column("km", "INTEGER", logicalTypeOptions={"minimum": 1, "multipleOf": 2}),
    )
    loaded = place.load("id,town,km\n1,Bonn,2\n2,xy,-1\n3,,\n4,Bonn,x\n", columns)
    assert [rules for _, rules, _ in loaded.bad] == [
        ["minLength(town: 3)", "pattern(town: ^[A-Z])", "enum(town)", "minimum(km: 1)", "multipleOf(km: 2)"],
        ["type(km: INTEGER)"],
    ]
    assert [row[0] for row in loaded.good] == [1, 3]


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (
            column("a", "DOUBLE", logicalTypeOptions={"multipleOf": 0.1}),
            "multipleOf: expected no such option on a DOUBLE",
        ),
        (column("a", logicalTypeOptions={"format": "password"}), "format: expected one of byte, date, "),
        (
            column("a", "DATE", logicalTypeOptions={"minimum": "2013-02-30"}),
            "expected a value of DATE, got '2013-02-30'",
        ),
        (column("a", "DECIMAL(38,0)", logicalTypeOptions={"minimum": 0.5}), "a value of DECIMAL(38,0), got 0.5"),
        (column("a", "BOOLEAN", logicalTypeOptions={"minimum": 1}), "minimum: expected no such option on a BOOLEAN"),
        (column("a", "DATE", logicalTypeOptions={"format": "dd.MMM.yyyy"}), "got 'MMM', in 'dd.MMM.yyyy'"),
        (column("a", "DATE", logicalTypeOptions={"format": "yyyy-MM-dd HH"}), "year, month, day and nothing finer"),
        (column("a", "DATE", logicalTypeOptions={"format": "MM/yyyy"}), "got year, month, in 'MM/yyyy'"),
        (
            column("a", "TIMESTAMP", logicalTypeOptions={"timezone": True}),
            "expected False, as physicalType is TIMESTAMP",
        ),
        (column("a", "TIMESTAMPTZ", logicalTypeOptions={"defaultTimezone": "Europe/Berlin"}), "UTC or Etc/UTC, got"),
        (column("a", logicalTypeOptions={"pattern": "(?=x)"}), "expected what RE2 has, got a lookahead, in '(?=x)'"),
        (column("a", logicalTypeOptions={"pattern": "a{2,5000}"}), "invalid repetition size"),
        (column("a", enum=[{"value": 1}]), "properties[0].enum[0]: expected a text, got 1"),
        (column("a", "INTEGER", enum=[{"value": True}]), "expected a value of INTEGER, got True"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_kept_exactly_is_refused(stated: dict[str, Any], message: str) -> None:
    assert message in refusal(stated)


@pytest.mark.parametrize(
    "stated",
    [
        {"enum": [{"value": "a\0b"}]},
        {"logicalTypeOptions": {"pattern": "\0"}},
        {"quality": [{"metric": "missingValues", "arguments": {"missingValues": ["\0"]}, "mustBe": 0}]},
        {"quality": [{"metric": "invalidValues", "arguments": {"validValues": ["\0"]}, "mustBe": 0}]},
    ],
)
def test_a_text_that_ends_sql_is_refused(stated: dict[str, Any]) -> None:
    assert "expected a text without a NUL, got " in refusal(column("a", **stated))


def test_a_bound_may_lie_outside_of_the_type(place: Place) -> None:
    options = {"minimum": -(10**30), "exclusiveMaximum": 10**30}
    assert judged(place, ["1", "-9223372036854775808"], "BIGINT", logicalTypeOptions=options)[1] == {}


def test_rules_say_where_they_stand_when_refused() -> None:
    assert refusal(column("a", logicalTypeOptions={"format": "color"})).startswith(
        "schema[0].properties[0].logicalTypeOptions.format: "
    )


FORMATS = {
    "byte": (["", "YQ==", "YWI=", "YWJj"], ["YQ", "YQ=", "Y!==", "=YQ="]),
    "date": (["2012-02-29", "2013-12-31"], ["2013-02-29", "2013-1-1", "13-01-01", "2013-01-01T00:00:00Z"]),
    "date-time": (
        ["2013-01-01T10:00:00Z", "2013-01-01t10:00:00.5+02:00"],
        ["2013-01-01 10:00:00Z", "2013-01-01T10:00:00", "2013-02-30T10:00:00Z", "2013-01-01T24:00:00Z"],
    ),
    "email": (["ada@example.org", "a.b+c@x", "o'hara@x.y"], ["ada", "@x", "a@", "a b@x", "a@-x", "a@x..y", "a@x\n"]),
    "hostname": (["x", "a-b.example.org"], ["", "-a", "a_b", "a..b", "a." + "b" * 64, ".".join(["a" * 60] * 5)]),
    "ipv4": (["1.0.0.0", "255.255.255.255"], ["1.2.3", "1.2.3.256", "01.2.3.4", "1.2.3.4.5"]),
    "ipv6": (
        ["::", "::1", "2001:db8::1", "1:2:3:4:5:6:7:8", "::ffff:1.2.3.4", "1::", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8"],
        ["", ":", "1:2:3:4:5:6:7", "1::2::3", "12345::", "1:2:3:4:5:6:7:8:9", ":::", "::1.2.3", "g::"],
    ),
    "time": (["10:00:00Z", "23:59:59.123-05:30"], ["10:00Z", "24:00:00Z", "10:00:00"]),
    "uri": (
        ["https://example.org/a?b=c#d", "urn:isbn:0451450523", "mailto:a@b", "http://[::1]:80/", "a:", "file:///x%20y"],
        ["", "example.org", "//x/y", "http://a b", "http://x/%zz", "1a:b", "http://[::1", "http://x/é"],
    ),
    "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000", "{}", "g" * 36]),
}


@pytest.mark.parametrize("format", TEXT_FORMATS)
def test_a_text_is_of_a_format_or_not(format: str) -> None:
    good, bad = FORMATS[format]
    with duckdb.connect() as connection:

        def fits(text: str) -> bool:
            row = connection.execute(f"SELECT {of_format('t', format)} FROM (SELECT ? AS t)", [text]).fetchone()
            return bool(row and row[0])

        assert [text for text in good if not fits(text)] == []
        assert [text for text in bad if fits(text)] == []


# --- patterns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ecma", "matching", "other"),
    [
        (r"^\d{3}$", ["123"], ["12", "1234", "123\n"]),
        (r"^a.b$", ["axb", "a\N{ROCKET}b"], ["a\nb", "a\rb", "a\u2028b"]),
        (r"^\s$", [" ", "\u00a0", "\u3000", "\v", "\ufeff"], ["x", "\u200b"]),
        (r"^[\s]$", ["\u2003"], ["s"]),
        (r"^\S+$", ["ab"], ["a\u00a0b"]),
        (r"^[[:alpha:]]+$", [":]", "a]", "[]"], ["a", "b]c"]),
        (r"^\u0041\x42\cJ$", ["AB\n"], ["AB"]),
        (r"^[\b]$", ["\b"], ["b"]),
        (r"\bx\b", ["a x b"], ["axb"]),
        (r"^(?<year>\d{4})$", ["2013"], ["13"]),
        (r"^\/\-\.$", ["/-."], ["x"]),
        (r"^[^a]$", ["b", "\n"], ["a"]),
        (r"^(?:ab|cd)*?$", ["", "abcd"], ["a"]),
        (r"^\$\{x\}$", ["${x}"], ["x"]),
    ],
)
def test_a_pattern_means_what_ecma_has_it_mean(ecma: str, matching: list[str], other: list[str]) -> None:
    with duckdb.connect() as connection:

        def matches(text: str) -> bool:
            row = connection.execute("SELECT regexp_matches(?, ?)", [text, re2_of(ecma)]).fetchone()
            return bool(row and row[0])

        assert [text for text in matching if not matches(text)] == []
        assert [text for text in other if matches(text)] == []


@pytest.mark.parametrize(
    ("ecma", "problem"),
    [
        ("(?=a)", "a lookahead"),
        ("(?!a)", "a lookahead"),
        ("(?<=a)b", "a lookbehind"),
        ("(?<!a)b", "a lookbehind"),
        (r"(a)\1", r"a reference back (\1)"),
        (r"(?<x>a)\k<x>", r"a reference back (\k)"),
        ("(?i)a", "(?i"),
        (r"\Aa\z", r"\A"),
        (r"\pL", r"\p"),
        (r"\Qa\E", r"\Q"),
        ("[]", "an empty one"),
        ("[^]", "an empty one"),
        ("a\\", "got none"),
    ],
)
def test_a_pattern_that_re2_has_not_is_refused_by_what_it_lacks(ecma: str, problem: str) -> None:
    with pytest.raises(UnknownPatternError) as caught:
        re2_of(ecma)
    assert problem in str(caught.value)


# --- formats of times --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "format", "values", "bad"),
    [
        ("DATE", "dd.MM.yyyy", {"21.11.2026": "2026-11-21"}, ["2026-11-21", "31.02.2026", "1.1.2026", "21.11.2026 "]),
        ("DATE", "d/M/uuuu", {"1/2/2026": "2026-02-01", "21/11/2026": "2026-11-21"}, ["1-2-2026"]),
        ("DATE", "'on' yyyyMMdd", {"on 20261121": "2026-11-21"}, ["20261121"]),
        ("TIMESTAMP", "dd.MM.yyyy HH:mm", {"21.11.2026 09:30": "2026-11-21 09:30:00"}, ["21.11.2026 25:00"]),
        ("TIMESTAMP", "yyyyMMddHHmmssSSS", {"20261121093001250": "2026-11-21 09:30:01.25"}, ["20261121093001"]),
        ("TIMESTAMPTZ", "yyyy-MM-dd'T'HHXXX", {"2026-11-21T09+02:00": "2026-11-21 07:00:00+00"}, ["2026-11-21T09"]),
        ("TIMESTAMPTZ", "yyyy-MM-dd HH''mm X", {"2026-11-21 09'30 Z": "2026-11-21 09:30:00+00"}, ["2026-11-21 09"]),
    ],
)  # fmt: skip
def test_times_are_read_in_the_form_that_the_contract_states(
    kind: str, format: str, values: dict[str, str], bad: list[str]
) -> None:
    value = exact_value("t", kind, form=time_form(format, kind))
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")

        def read(text: str) -> str | None:
            row = connection.execute(f"SELECT CAST({value} AS VARCHAR) FROM (SELECT ? AS t)", [text]).fetchone()
            return row[0] if row else None

        assert {text: read(text) for text in values} == values
        assert [text for text in bad if read(text) is not None] == []


def test_an_offset_may_be_asked_for(place: Place) -> None:
    options = {"timezone": True}
    _, broken = judged(
        place, ["2026-11-21T09:30:00Z", "2026-11-21T09:30:00"], "TIMESTAMPTZ", logicalTypeOptions=options
    )
    assert broken == {"type(it: TIMESTAMPTZ)": 1}


def test_a_date_in_parquet_has_no_form(place: Place) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"it": pa.array([date(2026, 11, 21)]), "text": pa.array(["21.11.2026"])}), sink)
    options = {"format": "dd.MM.yyyy"}
    columns = [column(name, "DATE", logicalTypeOptions=options) for name in ("it", "text")]
    loaded = place.load(sink.getvalue().to_pybytes(), columns, format=PARQUET)
    assert loaded.good == [(date(2026, 11, 21), date(2026, 11, 21))]


# --- quality -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"metric": "nullValues", "mustBe": 0}, ["a", ""], [None]),
        (
            {"metric": "missingValues", "arguments": {"missingValues": [None, "", "N/A"]}, "mustBe": 0},
            ["a"],
            [None, "", "N/A"],
        ),
        ({"metric": "invalidValues", "arguments": {"validValues": ["kg", "lb"]}, "mustBe": 0}, ["kg", None], ["t", ""]),
        ({"metric": "invalidValues", "arguments": {"pattern": "^k"}, "mustBeLessThan": 1}, ["kg", None], ["t"]),
        ({"metric": "duplicateValues", "mustBe": 0}, ["a", "b", None, None], ["a", "a"]),
        (
            {"type": "sql", "query": "SELECT count(*) FROM {object} WHERE {property} = 'x'", "mustBe": 0},
            ["a", None],
            ["x"],
        ),
    ],
    ids=str,
)
def test_a_metric_that_has_to_be_nothing_sends_its_rows_to_quarantine(
    place: Place, check: dict[str, Any], good: list[str | None], bad: list[str | None]
) -> None:
    loaded, broken = judged(place, [*good, *bad], quality=[{**check, "name": "it is"}])
    assert loaded == good
    assert broken == {"it is": len(bad)}


def test_what_the_contract_bears_is_loaded_and_counted(place: Place) -> None:
    check = {"metric": "nullValues", "mustBeLessThan": 50, "unit": "percent"}
    loaded = _with(place, [None, "a", "b"], check)
    assert loaded.counts == (3, 3, 0)
    assert loaded.result.failure is None
    (step,) = [step for step in loaded.result.steps if step.name == "nullValues(it)"]
    assert (step.status, step.rows, step.message) == ("pass", 1, "mustBeLessThan 50 percent, of 3 rows to be loaded")


@pytest.mark.parametrize(("severity", "status"), [("error", "fail"), ("warning", "warn")])
def test_a_breach_keeps_the_table_back_unless_it_is_a_warning(place: Place, severity: str, status: str) -> None:
    check = {"metric": "nullValues", "mustBeLessThan": 50, "unit": "percent", "severity": severity}
    loaded = _with(place, [None, None, "b"], check)
    assert loaded.counts == (3, 3, 0)
    assert [step.status for step in loaded.result.steps if step.name == "nullValues(it)"] == [status]
    failure = loaded.result.failure
    if severity == "warning":
        assert failure is None
    else:
        assert failure is not None
        assert failure.message == (
            "staging.trips: nullValues(it): expected mustBeLessThan 50 percent by contracts/trips.odcs.yaml, "
            "got 2 of 3 (66.67 %)"
        )
        assert failure.subject == "nullValues(it)"


def test_a_warning_takes_no_row_away(place: Place) -> None:
    check = {"metric": "duplicateValues", "mustBe": 0, "severity": "warning"}
    loaded = _with(place, ["a", "a", "b"], check)
    assert [row[0] for row in loaded.good] == ["a", "a", "b"]
    assert [(step.status, step.rows) for step in loaded.result.steps if step.name == "duplicateValues(it)"] == [
        ("warn", 1)
    ]


@pytest.mark.parametrize(("between", "kept"), [([1, 3], True), ([4, 9], False)])
def test_the_number_of_rows_is_a_rule_of_the_table(place: Place, between: list[int], kept: bool) -> None:
    content = "".join(json.dumps({"it": each}) + "\n" for each in ["a", "b", "x", 7])
    columns = (column("it", enum=[{"value": each} for each in "abx"]),)
    loaded = place.load(content, columns, format=JSON_LINES, quality=[{"metric": "rowCount", "mustBeBetween": between}])
    assert loaded.counts == (4, 3, 1)
    assert (loaded.result.failure is None) is kept
    if loaded.result.failure is not None:
        assert "rowCount(mustBeBetween 4 and 9): expected mustBeBetween 4 and 9 rows" in loaded.result.failure.message


def test_what_is_counted_are_rows_that_would_be_loaded(place: Place) -> None:
    content = "id,town\n1,\nx,\n2,Bonn\n"
    columns = (ID, column("town", quality=[{"metric": "nullValues", "mustBeLessOrEqualTo": 1}]))
    loaded = place.load(content, columns)
    assert loaded.result.failure is None
    assert [step.rows for step in loaded.result.steps if step.name == "nullValues(town)"] == [1]


@pytest.mark.parametrize(
    ("operator", "numbers", "holding"),
    [
        ("mustBe", (2,), {2}),
        ("mustNotBe", (2,), {0, 1, 3, 4}),
        ("mustBeGreaterThan", (2,), {3, 4}),
        ("mustBeGreaterOrEqualTo", (2,), {2, 3, 4}),
        ("mustBeLessThan", (2,), {0, 1}),
        ("mustBeLessOrEqualTo", (2,), {0, 1, 2}),
        ("mustBeBetween", (1, 3), {1, 2, 3}),
        ("mustNotBeBetween", (1, 3), {0, 4}),
    ],
)
def test_each_operator_compares_as_the_standard_says(
    operator: Operator, numbers: tuple[float, ...], holding: set[int]
) -> None:
    assert {rows for rows in range(5) if Bound(operator=operator, numbers=numbers).holds(rows, of=4)} == holding


def test_percents_are_exact() -> None:
    assert Bound(operator="mustBe", numbers=(0.1,), unit="percent").holds(1, of=1000)
    assert not Bound(operator="mustBeLessThan", numbers=(0.1,), unit="percent").holds(1, of=1000)
    assert Bound(operator="mustBe", numbers=(0,), unit="percent").holds(0, of=0)


def test_text_is_for_people(place: Place) -> None:
    loaded, broken = judged(place, ["a"], quality=[{"type": "text", "description": "Checked by hand."}])
    assert (loaded, broken) == (["a"], {})


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            {"type": "custom", "engine": "soda", "implementation": "x"},
            "quality[0].engine: expected no engine but this one",
        ),
        ({"metric": "rowCount", "mustBe": 1}, "metric: expected one of nullValues, missingValues, invalidValues, dup"),
        (
            {"metric": "nullValues", "mustBe": 0, "schedule": "0 20 * * *"},
            "schedule: expected no such key, got '0 20 * * *'",
        ),
        ({"metric": "nullValues", "mustBe": "0"}, "mustBe: expected a number of rows or percent, got '0'"),
        ({"metric": "nullValues", "mustBe": True}, "mustBe: expected a number of rows or percent, got True"),
        ({"metric": "nullValues", "mustBe": 0, "unit": "apples"}, "unit: expected rows or percent, got 'apples'"),
        ({"metric": "nullValues", "mustBe": 0, "severity": "info"}, "severity: expected error or warning, got 'info'"),
        ({"metric": "nullValues", "mustBe": 0, "arguments": {"x": 1}}, "arguments.x: expected no such argument"),
        ({"metric": "missingValues", "mustBe": 0}, "missingValues: expected a list of values, got none"),
        ({"metric": "invalidValues", "mustBe": 0}, "expected validValues or pattern for invalidValues, got neither"),
        ({"metric": "nullValues", "mustBeBetween": [3, 1]}, "expected the smaller number first, got [3, 1]"),
        ({"metric": "nullValues", "mustBe": 0, "name": "a\nb"}, "name: expected a name of 1 to 200 printable"),
        ({"metric": "nullValues"}, "expected"),
        ({"metric": "medianValues", "mustBe": 0}, "medianValues"),
        ({"mustBe": 0}, "expected"),
    ],
    ids=str,
)
def test_a_check_that_is_not_enforced_is_refused_with_its_place(check: dict[str, Any], message: str) -> None:
    assert message in refusal(column("it", quality=[check]))


def test_two_rules_of_one_name_are_refused() -> None:
    check = {"metric": "nullValues", "mustBe": 0}
    assert refusal(column("it", quality=[check, check])) == "expected each rule once, got nullValues(it) twice"


def test_values_that_are_unique_together(place: Place) -> None:
    columns = (column("a"), column("b"))
    check = {"metric": "duplicateValues", "mustBe": 0, "arguments": {"properties": ["b", "a"]}}
    loaded = place.load("a,b\n1,2\n1,2\n2,1\n,2\n,2\n", columns, quality=[check])
    assert loaded.broken == {"duplicateValues(b, a)": 1}
    check["arguments"] = {"properties": ["b", "c"]}
    assert "arguments.properties: expected columns of trips, each once, got ['b', 'c']" in refusal(
        *columns, quality=[check]
    )


# --- SQL ---------------------------------------------------------------------------------------------------------

TOWNS = (column("id", "INTEGER"), column("Town"), column("km", "DECIMAL(6,2)"))


def sql(query: str, **more: Any) -> dict[str, Any]:
    return {"type": "sql", "query": query, "mustBe": 0, **more}


@pytest.mark.parametrize(
    "condition",
    [
        "km < 0",
        "KM < 0 AND town IS NOT NULL",
        "trips.km < 0",
        "(CASE WHEN town = 'Bonn' THEN km END) < 0",
        "km NOT BETWEEN 0 AND 9999",
        "sign(km) = -1 OR lower(town) IN ('x''y', 'z')",
        "TRY_CAST(town AS INTEGER) + km < 0 OR km < 0.0",
        "regexp_matches(town, '^-') OR km::DOUBLE < 0",
        "town LIKE '-%' OR km < 0 -- a comment",
    ],
)
def test_a_rule_in_sql_sees_the_row_as_the_contract_has_it(place: Place, condition: str) -> None:
    for form in (
        "SELECT count(*) FROM {object} WHERE ",
        "select COUNT( * ) from ${table} where ",
        "SELECT count(*) FROM trips WHERE ",
    ):
        loaded = place.load(
            "id,Town,km\n1,Bonn,-1\n2,Kiel,1\n3,,\n", TOWNS, quality=[sql(form + condition, name="sound")]
        )
        assert [row[0] for row in loaded.good] == [2, 3]
        assert loaded.broken == {"sound": 1}


def test_a_rule_in_sql_may_bear_some_and_is_named_by_its_condition(place: Place) -> None:
    check = sql("SELECT count(*) FROM {object} WHERE km < 0")
    check = {**{key: value for key, value in check.items() if key != "mustBe"}, "mustBeLessThan": 2}
    loaded = place.load("id,Town,km\n1,Bonn,-1\n2,Kiel,1\n", TOWNS, quality=[check])
    assert loaded.counts == (2, 2, 0)
    assert [(step.name, step.rows) for step in loaded.result.steps if step.name.startswith("sql")] == [
        ("sql((km < 0))", 1)
    ]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT 1", "expected SELECT count(*) FROM {object} WHERE …, got another query"),
        ("SELECT count(*) FROM {object}", "got another query"),
        ("SELECT count(id) FROM {object} WHERE id > 1", "got another query"),
        ("SELECT count(*) FROM {object} WHERE id > 1 GROUP BY id", "got another query (with group_expressions)"),
        ("SELECT count(*) FROM {object} WHERE id > 1 LIMIT 1", "got another query (with modifiers)"),
        ("WITH x AS (SELECT 1) SELECT count(*) FROM {object} WHERE id > 1", "got another query (with WITH)"),
        ("SELECT count(*) FROM {object} WHERE id > 1; DROP TABLE x", "expected SELECT count(*)"),
        ("DELETE FROM {object}", "expected SELECT count(*)"),
        ("SELECT count(*) FROM other WHERE id > 1", "expected FROM {object} and nothing else, got other"),
        (
            "SELECT count(*) FROM read_csv('/etc/passwd') WHERE true",
            "expected FROM {object} and nothing else, got another",
        ),
        ("SELECT count(*) FROM {object}, {object} b WHERE id > 1", "expected FROM {object} and nothing else"),
        ("SELECT count(*) FROM x.{object} WHERE id > 1", "expected FROM {object} and nothing else"),
        ("SELECT count(*) FROM {object} WHERE id IN (SELECT 1)", "expected a condition on one row, got subquery"),
        ("SELECT count(*) FROM {object} WHERE EXISTS (FROM read_text('/etc/passwd'))", "got subquery"),
        ("SELECT count(*) FROM {object} WHERE row_number() OVER () > 1", "expected a condition on one row, got window"),
        ("SELECT count(*) FROM {object} WHERE sum(id) > 1", "follows from the row alone, got sum()"),
        ("SELECT count(*) FROM {object} WHERE random() > 0.5", "follows from the row alone, got random()"),
        ("SELECT count(*) FROM {object} WHERE now() > '2020-01-01'", "follows from the row alone, got now()"),
        (
            "SELECT count(*) FROM {object} WHERE current_date > '2020-01-01'",
            "expected columns of trips, got current_date",
        ),
        ("SELECT count(*) FROM {object} WHERE getvariable('x') > 1", "got getvariable()"),
        ("SELECT count(*) FROM {object} WHERE current_setting('threads') > 1", "got current_setting()"),
        ("SELECT count(*) FROM {object} WHERE id > $1", "got parameter"),
        ("SELECT count(*) FROM {object} WHERE nope > 1", "expected columns of trips, got nope"),
        ("SELECT count(*) FROM {object} WHERE other.id > 1", "expected columns of trips, got other.id"),
        ("SELECT count(*) FROM {object} WHERE value_0 > 1", "expected columns of trips, got value_0"),
        ("SELECT count(*) FROM {object} WHERE id", "expected a condition, true or false, got a value of type INTEGER"),
        ("SELECT count(*) FROM {object} WHERE Town + 1 > id", "expected a condition that DuckDB takes, got: "),
        ("SELECT count(*) FROM {object} WHERE {property} > 1", "expected {property} only in a rule on a column"),
        ("SELECT count(*) FROM {object} WHERE list_filter([1], lambda x: x > id) <> []", "got lambda"),
        ("SELECT count(*) FROM {object} WHERE COLUMNS(*) IS NULL", "got star"),
        ("SELECT", "expected SELECT count(*)"),
        ("", "expected SELECT count(*)"),
    ],
)
def test_sql_that_is_no_condition_on_the_row_is_refused(query: str, message: str) -> None:
    refused = refusal(*TOWNS, quality=[sql(query)])
    assert refused.startswith("schema[0].quality[0].query: ")
    assert message in refused


def test_sql_that_fails_on_a_row_is_named(place: Place) -> None:
    check = sql("SELECT count(*) FROM {object} WHERE CAST(Town AS INTEGER) > 1", name="town is a number")
    with pytest.raises(LogicError, match=r"^rule town is a number: expected true or false for every row, got: Conv"):
        place.load("id,Town,km\n1,Bonn,-1\n", TOWNS, quality=[check])


def test_a_damaged_parquet_file_is_not_taken_for_a_rule_that_fails(place: Place) -> None:
    with pytest.raises(DataError, match="expected a Parquet file, got"):
        place.load(
            b"PAR1" + b"\0" * 40 + b"PAR1",
            TOWNS,
            format=PARQUET,
            quality=[sql("SELECT count(*) FROM {object} WHERE km < 0")],
        )


# --- foreign keys ------------------------------------------------------------------------------------------------

CITIES = (column("id", "INTEGER"), column("city", relationships=[{"to": "cities.name"}]))


def with_table(
    stated: Contract, texts: list[list[str | None]], *, table: str = "CREATE TABLE cities AS SELECT 'Bonn' AS name"
) -> Rows:
    """Rows judged beside another table; no service is needed to keep that."""
    connection = duckdb.connect()
    connection.execute(table)
    layout = Layout(stated, "c")
    rows = Rows(connection, stated, layout, (), tables=["cities"])
    columns = ", ".join(f"c{index}" for index in range(layout.width))
    connection.execute(f"CREATE TABLE source ({', '.join(f'c{index} VARCHAR' for index in range(layout.width))})")
    connection.executemany(f"INSERT INTO source VALUES ({', '.join('?' * layout.width)})", texts)
    source = f"(SELECT rowid + 1 AS _line, {columns} FROM source)"
    rows.add(SqlRows(source=source, texts=[f"c{index}" for index in range(layout.width)], native=frozenset()))
    return rows


def test_a_reference_to_nothing_breaks_the_foreign_key_and_a_null_refers_to_nothing() -> None:
    rows = with_table(contract(*CITIES), [["1", "Bonn"], ["2", "Kiel"], ["3", None], ["x", "Kiel"]])
    verdict = rows.settle()
    assert verdict.broken == {"foreignKey(city -> cities.name)": 2, "type(id: INTEGER)": 1}
    assert rows.loaded == 2
    assert rows.referred() == ["cities"]


def test_a_foreign_key_may_be_of_several_columns_and_its_nulls_are_no_match() -> None:
    key = {"from": ["trips.a", "trips.b"], "to": ["cities.x", "cities.y"]}
    stated = contract(column("a"), column("b", "INTEGER"), relationships=[key])
    table = "CREATE TABLE cities AS FROM (VALUES ('p', 1), ('q', 2), (NULL, 3)) AS t(x, y)"
    rows = with_table(stated, [["p", "1"], ["p", "2"], ["q", None], ["r", "3"]], table=table)
    assert rows.settle().broken == {"foreignKey(a, b -> cities.x, y)": 2}


def test_a_row_without_its_reference_is_no_first_of_its_key() -> None:
    stated = contract(column("id", "INTEGER", unique=True), CITIES[1])
    rows = with_table(stated, [["1", "Kiel"], ["1", "Bonn"], ["1", "Bonn"]])
    assert rows.settle().broken == {"foreignKey(city -> cities.name)": 1, "unique(id)": 1}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "CREATE TABLE cities AS SELECT 1 AS name",
            "expected a column name of cities that city (VARCHAR) can equal, got INT",
        ),
        ("CREATE TABLE cities AS SELECT 'x' AS id", "that city (VARCHAR) can equal, got none"),
    ],
)
def test_a_column_that_cannot_be_equal_is_no_key(table: str, message: str) -> None:
    rows = with_table(contract(*CITIES), [["1", "Bonn"]], table=table)
    with pytest.raises(SchemaError) as caught:
        rows.settle()
    assert message in caught.value.message


@pytest.mark.parametrize("tables", [(), ("other",), ("a.cities", "b.cities")])
def test_the_table_of_a_foreign_key_has_to_be_an_input(tables: tuple[str, ...]) -> None:
    stated = contract(*CITIES)
    with (
        duckdb.connect() as connection,
        pytest.raises(SpecError, match="expected exactly one input that is called cities"),
    ):
        Rows(connection, stated, Layout(stated, "c"), (), tables=tables)


def test_an_input_is_called_by_its_name_or_the_last_part_of_it() -> None:
    stated = contract(*CITIES)
    with duckdb.connect() as connection:
        assert Rows(connection, stated, Layout(stated, "c"), (), tables=["staging.cities"]).referred() == [
            "staging.cities"
        ]
    full = contract(column("city", relationships=[{"to": "staging.cities.name"}]))
    with duckdb.connect() as connection:
        tables = ["staging.cities", "other.cities"]
        assert Rows(connection, full, Layout(full, "c"), (), tables=tables).referred() == ["staging.cities"]


@pytest.mark.parametrize(
    ("relationship", "message"),
    [
        ({"to": "/schema/cities/properties/name"}, "to: expected table.column, got '/schema/cities/properties/name'"),
        ({"to": "other.odcs.yaml#/schema/x/properties/y"}, "to: expected table.column, got 'other"),
        ({"to": "trips.id"}, "to: expected another table, got trips itself"),
        ({"to": ["cities.a", "cities.b"]}, "to: expected 1 of one table's columns, got cities.a, cities.b"),
    ],
)
def test_a_relationship_that_is_none_here_is_refused(relationship: dict[str, Any], message: str) -> None:
    assert message in refusal(ID, column("city", relationships=[relationship]))


@pytest.mark.parametrize(
    ("relationship", "message"),
    [
        ({"from": "other.id", "to": "cities.a"}, "from: expected columns of trips, got 'other.id'"),
        ({"from": "trips.nope", "to": "cities.a"}, "from: expected columns of trips, each once, got ['nope']"),
        ({"from": ["trips.id", "trips.city"], "to": ["cities.a", "towns.b"]}, "expected 2 of one table's columns"),
        ({"from": ["trips.id", "trips.city"], "to": ["cities.a", "cities.A"]}, "expected each column once, got a, A"),
    ],
)
def test_a_relationship_of_the_table_names_its_own_columns(relationship: dict[str, Any], message: str) -> None:
    assert message in refusal(ID, column("city"), relationships=[relationship])


# --- in general --------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.one_of(st.none(), st.integers(-20, 20)), min_size=1, max_size=30))
def test_rules_agree_with_plain_python(values: list[int | None]) -> None:
    stated = column(
        "it", "INTEGER", required=True, unique=True, logicalTypeOptions={"minimum": -10, "maximum": 10, "multipleOf": 2}
    )
    content = "".join(json.dumps({"it": each}) + "\n" for each in values)
    expected_bad = []
    seen = set[int]()
    for each in values:
        broken = ["required(it)"] if each is None else []
        if each is not None:
            broken += ["maximum(it: 10)"] if each > 10 else []
            broken += ["minimum(it: -10)"] if each < -10 else []
            broken += ["multipleOf(it: 2)"] if each % 2 else []
            if not broken and each in seen:
                broken.append("unique(it)")
            elif not broken:
                seen.add(each)
        expected_bad += [sorted(broken)] if broken else []
    with TemporaryDirectory() as folder:
        loaded = Place(Path(folder)).load(content, (stated,), format=JSON_LINES)
        assert [sorted(rules) for _, rules, _ in loaded.bad] == expected_bad
        assert sorted(row[0] for row in loaded.good) == sorted(seen)


def _with(place: Place, rows: list[Any], check: dict[str, Any]) -> Loaded:
    content = "".join(json.dumps({"it": each}) + "\n" for each in rows)
    return place.load(content, (column("it", quality=[check]),), format=JSON_LINES)
