"""Text from outside, as people are shown it: short, and of characters that steer nothing."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.model.errors import Category, DataError, Failure, error_of
from runner.model.text import MAX_TOLD_CHARS, printable, printable_json, told

ANY_TEXT = st.text(st.characters(exclude_categories=()))
"""Halves of surrogate pairs among it, as names of files have them."""


@given(ANY_TEXT)
def test_what_is_printable_has_no_character_that_is_not_but_line_ends(text: str) -> None:
    assert all(char.isprintable() or char == "\n" for char in printable(text))


@given(ANY_TEXT.filter(str.isprintable))
def test_what_is_printable_already_stays(text: str) -> None:
    assert printable(text) == text
    assert printable_json(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\x1b[31m", r"\x1b[31m"), ("\x9b", r"\x9b"), ("a\tb", r"a\tb"), ("\u202e", r"\u202e"), ("\ud800", r"\ud800")],
)
def test_a_character_that_is_none_to_be_shown_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(max_size=3000) | st.sampled_from(("\0" * 999, "a" * 1_000_000, "\x1b" * 5000, "é\n" * 700)))
def test_what_is_told_is_short_and_stays_as_it_is_when_it_is_told_again(text: str) -> None:
    line = told(text)
    assert len(line) <= MAX_TOLD_CHARS
    assert told(line) == line == printable(line)


def test_of_a_long_text_both_ends_are_told() -> None:
    line = told("expected " + "x" * 5000 + ", got y")
    assert line.startswith("expected xxx")
    assert line.endswith("xxx, got y")
    assert " … " in line


# Two halves that meet are one character to JSON.
NO_PAIRS = ANY_TEXT.filter(lambda text: not re.search("[\ud800-\udbff][\udc00-\udfff]", text))


@given(st.dictionaries(NO_PAIRS, NO_PAIRS | st.lists(NO_PAIRS)))
def test_json_made_printable_says_the_same(document: dict[str, str]) -> None:
    text = printable_json(json.dumps(document, ensure_ascii=False, indent=2))
    assert json.loads(text) == document
    assert all(char.isprintable() or char == "\n" for char in text)
    text.encode()


@given(ANY_TEXT)
def test_a_failure_can_be_shown_and_stored_whatever_it_quotes(text: str) -> None:
    failure = DataError(text, hint=text, subject=text).failure
    assert failure == Failure(category=Category.DATA, message=text, hint=text, subject=text)
    assert error_of(failure).failure == failure
    # PostgreSQL's jsonb, in which the ledger has it, knows no NUL.
    assert "\\u0000" not in failure.model_dump_json()
    assert Failure.model_validate_json(failure.model_dump_json()) == failure
