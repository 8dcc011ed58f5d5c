"""The one door for JSON: what it refuses, how it says so, and what comes back out."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Annotated, Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime, Field

from runner.model.errors import InfrastructureError, SpecError
from runner.model.strict import MAX_DOCUMENT_BYTES, Strict, load_json, parse_document, parse_json

# Far above what a refusal takes, far below what people wait for.
NEVER_HANGS = settings(deadline=timedelta(seconds=5), max_examples=200)


class Cat(Strict):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=0, le=9)] = 9


class Dog(Strict):
    kind: Literal["dog"]


class House(Strict):
    number: int
    as_: Annotated[str | None, Field(alias="as")] = None
    built: AwareDatetime | None = None
    size: float = 1.0
    pets: tuple[Annotated[Cat | Dog, Field(discriminator="kind")], ...] = ()
    notes: Annotated[dict[str, str | int], Field(default_factory=dict)]


def parse(raw: str | bytes) -> House:
    return parse_json(House, raw, what="house", max_bytes=MAX_DOCUMENT_BYTES)


def refusal(raw: str | bytes) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse(raw)
    return caught.value


def house_or_refusal(raw: str | bytes) -> House | str:
    try:
        return parse(raw)
    except SpecError as error:
        return error.message


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param("", "house: expected JSON, got expecting value at line 1 column 1", id="nothing"),
        pytest.param(
            "{'number': 1}", "house: expected JSON, got expecting property name enclosed in", id="single quotes"
        ),
        pytest.param('{"number": 1} x', "house: expected JSON, got extra data at line 1 column 15", id="more after it"),
        pytest.param("[1]", "house: expected a JSON object, got list", id="a list"),
        pytest.param("null", "house: expected a JSON object, got NoneType", id="null"),
        pytest.param(b'{"number": \xff}', "house: expected UTF-8, got byte 0xff at 11", id="not UTF-8"),
        pytest.param('{"number": 1}'.encode("utf-16"), "house: expected UTF-8, got byte 0xff at 0", id="UTF-16"),
        pytest.param('\ufeff{"number": 1}', "house: expected JSON, got unexpected utf-8 bom", id="a byte order mark"),
        pytest.param('"\ud800"', "house: expected Unicode text, got half a surrogate pair at 1", id="half a pair"),
        pytest.param(
            r'{"number": 1, "as": "\ud800"}', "house: the document: expected JSON, got", id="half a pair, escaped"
        ),
        pytest.param('{"number": 1, "number": 2}', "house: number: expected each key once, got it 2 times", id="twice"),
        pytest.param(
            '{"pets": [{"a": 1, "a": 1, "a": 1}]}', "house: a: expected each key once, got it 3 times", id="deep"
        ),
        pytest.param('{"size": NaN}', "house: expected a finite number, got NaN", id="NaN"),
        pytest.param('{"size": -Infinity}', "house: expected a finite number, got -Infinity", id="infinity"),
        pytest.param('{"size": 1e999}', "house: expected a finite number, got 1e999", id="infinity in disguise"),
        pytest.param(
            '{"number": ' + "9" * 5000 + "}", "house: expected a whole number of at most", id="endless digits"
        ),
        pytest.param("[" * 60_000, "house: expected JSON, got one nested too deeply", id="deeper than Python goes"),
        pytest.param(
            '{"a":' * 300 + "1" + "}" * 300, "house: the document: expected JSON, got recursion limit", id="deep"
        ),
        pytest.param(" " * 65_537, "house: expected at most 65,536 bytes, got 65,537", id="too long"),
        pytest.param("{}", "house: number: expected a value, got none", id="a field is missing"),
        pytest.param('{"number": "1"}', "house: number: expected a valid integer, got '1'", id="a number as text"),
        pytest.param('{"number": 1.0}', "house: number: expected a valid integer, got 1.0", id="a float for an int"),
        pytest.param('{"number": true}', "house: number: expected a valid integer, got True", id="a bool for an int"),
        pytest.param('{"number": 1, "colour": 2}', "house: colour: expected no such key, got 2", id="an unknown key"),
        pytest.param(
            '{"number": 1, "as_": "x"}', "house: as_: expected no such key, got 'x'", id="Python's name for a key"
        ),
        pytest.param(
            '{"number": 1, "built": "2013-06-01T00:00:00"}',
            "house: built: expected timezone info, got '2013-06-01T00:00:00'",
            id="a time without a zone",
        ),
        pytest.param(
            '{"number": 1, "pets": [{"kind": "dog"}, {"kind": "cow"}]}',
            "house: pets[1].kind: expected one of 'cat', 'dog', got 'cow'",
            id="a kind that is none",
        ),
        pytest.param('{"number": 1, "pets": [{}]}', "house: pets[0].kind: expected a value, got none", id="no kind"),
        pytest.param(
            '{"number": 1, "pets": [{"kind": "cat", "lives": 10}]}',
            "house: pets[0].lives: expected less than or equal to 9, got 10",
            id="a field of a kind, by its path in the document",
        ),
        pytest.param(
            '{"number": 1, "pets": [{"kind": "cat", "lives": 10}], "colour": 1, "size": "big"}',
            "house: size: expected a valid number, got 'big' (and 2 more)",
            id="the first of several",
        ),
        pytest.param(
            '{"number": 1, "notes": {"x": []}}',
            "house: notes.x: expected a valid string, got list",
            id="a union",
        ),
    ],
)
def test_a_refusal_names_what_was_expected_and_what_came(raw: str | bytes, message: str) -> None:
    assert refusal(raw).message.startswith(message)


def test_a_refusal_carries_the_field_as_its_subject() -> None:
    assert refusal('{"number": 1, "pets": [{"kind": "cat", "lives": 10}]}').subject == "pets[0].lives"
    assert refusal('{"number": 1, "pets": [{"kind": "cow"}]}').subject == "pets[0].kind"
    assert refusal("[").subject is None


def test_a_refusal_comes_from_its_cause() -> None:
    assert refusal("{}").__cause__ is not None
    assert refusal("[").__cause__ is not None


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps({"number": 1, "k" * 60_000: 1}),
        json.dumps({"number": "n" * 60_000}),
        json.dumps({"number": 1, "pets": [{"kind": "k" * 60_000}]}),
        '{"' + "k" * 20_000 + '": 1, "' + "k" * 20_000 + '": 1}',
        '{"size": 1' + "0" * 60_000 + ".0}",
    ],
    ids=["a key", "a value", "a kind", "a key twice", "a number"],
)
def test_a_refusal_of_something_long_is_short(raw: str) -> None:
    assert len(refusal(raw).message) < 300


def test_a_key_cannot_write_to_the_terminal() -> None:
    assert (
        refusal('{"number": 1, "a\\n\\u001b[31m": 1}').message == r"house: 'a\n\x1b[31m': expected no such key, got 1"
    )
    assert refusal(r'{"a\n": 1, "a\n": 1}').message == r"house: 'a\n': expected each key once, got it 2 times"


def test_a_document_full_of_faults_is_refused_as_fast_as_one() -> None:
    keys = ",".join(f'"{number:04x}":1' for number in range(6000))
    assert refusal(f"{{{keys}}}").message.endswith("(and 6000 more)")
    assert refusal(f'{{{keys},"0001":1}}').message == "house: 0001: expected each key once, got it 2 times"


def test_what_the_product_wrote_itself_is_refused_as_the_error_that_the_caller_names() -> None:
    with pytest.raises(InfrastructureError, match="manifest: number: expected a value, got none"):
        parse_json(House, "{}", what="manifest", error=InfrastructureError)


def test_without_a_limit_a_document_may_be_long() -> None:
    long = json.dumps({"number": 1, "as": "x" * MAX_DOCUMENT_BYTES})
    assert parse_json(House, long, what="house").number == 1


def test_the_limit_is_in_bytes_not_in_characters() -> None:
    raw = json.dumps({"number": 1, "as": "é" * 40_000}, ensure_ascii=False)
    assert len(raw) < MAX_DOCUMENT_BYTES
    assert refusal(raw).message == "house: expected at most 65,536 bytes, got 80,023"


@pytest.mark.parametrize(
    "value", [{1, 2}, b"x", float("nan"), {("a", "b"): 1}], ids=["a set", "bytes", "NaN", "a key that is no text"]
)
def test_a_document_from_another_parser_holds_plain_values_only(value: object) -> None:
    with pytest.raises(SpecError, match="house: expected plain JSON values, got "):
        parse_document(House, {"number": value}, what="house")


# ---------------------------------------------------------------- and out again


def test_canonical_json_has_sorted_keys_aliases_defaults_and_no_spaces() -> None:
    house = parse('{"pets": [{"kind": "cat"}], "as": "é", "number": 1}')
    assert house.to_json() == (
        '{"as":"é","built":null,"notes":{},"number":1,"pets":[{"kind":"cat","lives":9}],"size":1.0}'
    )
    assert len(house.digest()) == 64


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@NEVER_HANGS
@given(JSON_VALUES)
def test_plain_json_is_read_as_python_reads_it(value: Any) -> None:
    raw = json.dumps(value)
    if "NaN" not in raw and "Infinity" not in raw:
        assert load_json(raw, what="value") == value
        assert load_json(raw.encode(), what="value") == value


@NEVER_HANGS
@given(JSON_VALUES, st.text(st.characters(exclude_categories=()), max_size=40))
def test_whatever_comes_is_a_house_or_a_refusal(value: Any, text: str) -> None:
    for raw in (json.dumps(value), json.dumps({"number": value}), text, f'{{"number": 1, "as": "{text}"}}'):
        house = house_or_refusal(raw)
        if isinstance(house, House):
            assert parse(house.to_json()) == house
        else:
            assert house.startswith("house: ")
            assert "\n" not in house


@NEVER_HANGS
@given(st.binary(max_size=200))
@example(b"\xef\xbb\xbf{}")
@example(b"\xff\xfe{\x00}\x00")
@example(b"\x00")
def test_whatever_bytes_come_are_a_house_or_a_refusal(raw: bytes) -> None:
    for each in (raw, b'{"number": 1, "as": "' + raw + b'"}'):
        house = house_or_refusal(each)
        assert isinstance(house, House) or house.startswith("house: ")
