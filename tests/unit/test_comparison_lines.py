"""What a rerun says of each output: which columns differ, which engines cannot be compared, and what is not known."""

from __future__ import annotations

import pytest

from runner import terminal
from runner.model.manifest import Column, Fingerprint, OutputRecord
from tests.support.documents import output_record


def made(engine: str = "duckdb 1.5.5", rows: int = 3, /, **columns: str) -> OutputRecord:
    fingerprint = Fingerprint(rows=rows, hash=str(sorted(columns.items())), engine=engine, columns=columns)
    return output_record(
        "marts.delays",
        fingerprint=fingerprint,
        rows=rows,
        columns=tuple(Column(name=name, type="int") for name in columns),
    )


def beside(now: OutputRecord, then: OutputRecord) -> OutputRecord:
    """As the worker records it."""
    return now.model_copy(
        update={
            "comparison": then.fingerprint.compare(now.fingerprint),
            "different_columns": tuple(sorted(then.fingerprint.different_columns(now.fingerprint))),
            "repeated_rows": then.rows,
        }
    )


def line(now: OutputRecord, then: OutputRecord | None, capsys: pytest.CaptureFixture[str]) -> str:
    terminal.comparison_line(now, then)
    return capsys.readouterr().out.rstrip("\n")


THEN = made(late="1", carrier="2")


@pytest.mark.parametrize(
    ("now", "then", "said"),
    [
        (made(late="1", carrier="2"), THEN, "identical"),
        (made("duckdb 1.5.5", 1004, late="9", carrier="2"), THEN, "different in late; 3 rows then, 1,004 rows now"),
        (made(late="1", carrier="2", age="3"), THEN, "different in age; 3 rows then, 3 rows now"),
        (
            made("duckdb 1.6.0", late="9", carrier="2"),
            THEN,
            "not comparable: by duckdb 1.5.5 then, by duckdb 1.6.0 now",
        ),
        (
            made(**dict.fromkeys("hgfedcba", "2")),
            made(**dict.fromkeys("hgfedcba", "1")),
            "different in h, g, f, e, d and 3 more columns; 3 rows then, 3 rows now",
        ),
    ],
)
def test_an_output_is_told_in_one_line(
    now: OutputRecord, then: OutputRecord, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line(beside(now, then), then, capsys) == f"marts.delays: {said}"


def test_the_same_columns_put_together_in_other_rows_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    now = made(late="1", carrier="2")
    now = now.model_copy(update={"fingerprint": now.fingerprint.model_copy(update={"hash": "other"})})
    said = "different only in which values stand together; 3 rows then, 3 rows now"
    assert line(beside(now, THEN), THEN, capsys) == f"marts.delays: {said}"


def test_no_columns_are_named_where_the_run_of_then_did_not_record_them(capsys: pytest.CaptureFixture[str]) -> None:
    then = output_record("marts.delays", rows=1, fingerprint=Fingerprint(rows=1, hash="x", engine="duckdb 1.5.5"))
    now = made(late="1", carrier="2")
    assert line(beside(now, then), then, capsys) == "marts.delays: different; 1 row then, 3 rows now"


def test_files_as_they_came_have_no_rows_to_count(capsys: pytest.CaptureFixture[str]) -> None:
    then, now = (
        output_record("landing/flights", rows=None, fingerprint=Fingerprint(rows=None, hash=each, engine="sha256"))
        for each in ("x", "y")
    )
    assert line(beside(now, then), then, capsys) == "landing/flights: different"


def test_an_output_that_the_run_of_then_did_not_make_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert line(made(late="1"), None, capsys) == "marts.delays: not made by the run it repeats"
