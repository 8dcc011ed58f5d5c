"""No parser of what comes from outside crashes or hangs: it takes an input, or says in a typed error why not.

The short form; `make fuzz` looks for as long as it is told, led by what the parsers do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.model.errors import SpecError
from tests.fuzz.targets import CONTROL, SECRET, TARGETS, Finding, Target, ended

ROOT = Path(__file__).parents[2]
SLOW = {"contract": 40, "pipeline": 60, "params": 60, "letter": 60, "dbt archive": 60}
"""By target: how many inputs, where one takes more than a few milliseconds."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_ENVIRONMENT", SECRET)


def made(target: Target, number: int) -> bytes:
    random = Random(number)  # noqa: S311 - to be drawn again
    return target.mutated(random.choice(target.seeds), random)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_good_document_with_something_wrong_in_it_is_taken_or_refused(target: Target) -> None:
    @settings(max_examples=SLOW.get(target.name, 200), derandomize=True, deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def check(number: int) -> None:
        data = made(target, number)
        with ended():
            try:
                target.hold(data)
            except Finding as found:
                found.add_note(f"the input: {data[:2000]!r}")
                raise

    check()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_any_bytes_are_taken_or_refused(target: Target) -> None:
    @settings(max_examples=40, derandomize=True, deadline=None)
    @given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
    def check(data: bytes) -> None:
        with ended():
            target.hold(data)

    check()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_good_documents_are_good(target: Target) -> None:
    said = [target.hold(each) for each in target.seeds]
    # A stream ends; a host that has no packages is told of by an error as well.
    assert None in said or target.name in {"frame", "dbt packages"}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_what_is_made_of_them_is_not_all_refused_nor_all_taken(target: Target) -> None:
    said = [target.hold(made(target, number)) is None for number in range(SLOW.get(target.name, 200))]
    assert any(said) or target.name == "frame"
    assert not all(said) or target.name == "letter"


# ---------------------------------------------------------------- controls


def refusing(error: Exception) -> Target:
    def read(data: bytes) -> None:
        raise error

    return replace(CONTROL, read=read)


def spin() -> None:
    while True:
        pass


def changed(error: SpecError, **attributes: str) -> SpecError:
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(KeyError("x"), "expected a typed error, got KeyError", id="another error"),
        pytest.param(RecursionError(), "expected a typed error, got RecursionError", id="a recursion"),
        pytest.param(changed(SpecError("x"), message="x" * 1001), "expected at most 1,000", id="a long one"),
        pytest.param(changed(SpecError("x"), hint="\x1b[2J"), "expected a printable message", id="a steering one"),
        pytest.param(SpecError(f"x: got {SECRET}"), "expected nothing of the environment", id="one that tells"),
        pytest.param(SpecError(""), "expected a failure that can be stored", id="an empty one"),
    ],
)
def test_what_is_no_typed_error_to_be_shown_is_found(error: Exception, message: str) -> None:
    with pytest.raises(Finding, match=message):
        refusing(error).hold(b"")


def test_a_hang_is_found() -> None:
    with pytest.raises(Finding, match="expected an end"), ended(within_s=0.05):
        spin()


def test_a_fault_of_a_parser_is_found_among_what_is_made() -> None:
    found = 0
    for number in range(200):
        try:
            CONTROL.hold(made(CONTROL, number))
        except Finding:
            found += 1
    assert found > 0


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has wheels for Linux on x86-64 alone")
def test_the_long_form_ends_with_1_and_keeps_and_shows_the_input_of_a_fault(tmp_path: Path) -> None:
    asked = ["--only", "control", "--seconds", "60", "--seed", "1", "--keep", str(tmp_path)]
    ran = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "fuzz" / "run.py"), *asked],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    (kept,) = (tmp_path / "found").iterdir()
    assert json.loads(kept.read_bytes()) == []
    assert f"{kept}: {kept.read_bytes()!r}" in ran.stderr
    assert "Finding: control: expected a typed error, got IndexError" in ran.stderr
    assert [line.split()[-1] for line in ran.stdout.splitlines()[1:]] == ["1", "1"]
