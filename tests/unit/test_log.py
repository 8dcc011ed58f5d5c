"""The log: JSON lines bound to the run at hand, and nothing in them that writes to a terminal."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.log import JsonLines, PlainText, bound_to_run, configure, hide, logger, printable
from runner.model.redaction import Redaction
from tests.support.documents import run_id


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = list(logger.handlers), list(logger.filters), logger.level, logger.propagate
    logger.propagate = False
    yield
    logger.handlers[:], logger.filters[:], logger.level, logger.propagate = before


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def record(message: str, *, level: int = logging.INFO, error: Exception | None = None) -> logging.LogRecord:
    cause = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("runner", level, __file__, 1, message, None, cause)


def raised(message: str) -> Exception:
    try:
        raise ValueError(message)
    except ValueError as error:
        return error


# ---------------------------------------------------------------- bound to the run


def test_within_a_run_every_line_says_whose_it_is(path: Path) -> None:
    with bound_to_run(path, run_id=str(run_id(1)), attempt=2, task="marts"):
        logger.info("%s: %d rows", "staging.flights", 3)
        logger.warning("slow")
    (first, second) = lines(path)
    assert (first["run_id"], first["attempt"], first["task"]) == (str(run_id(1)), 2, "marts")
    assert (first["level"], first["message"]) == ("info", "staging.flights: 3 rows")
    assert first["at"].endswith("+00:00")
    assert second["level"] == "warning"


def test_after_a_run_nothing_more_goes_to_its_log_and_no_line_is_its(path: Path, tmp_path: Path) -> None:
    with bound_to_run(path, run_id="one"):
        logger.info("in one")
    logger.info("in none")
    with bound_to_run(tmp_path / "two.jsonl", attempt=1):
        logger.info("in two")
    assert [line["message"] for line in lines(path)] == ["in one"]
    (second,) = lines(tmp_path / "two.jsonl")
    assert "run_id" not in second


def test_a_run_that_ends_in_an_error_leaves_no_handler_behind(path: Path) -> None:
    before = list(logger.handlers)
    with pytest.raises(ValueError, match="stop"), bound_to_run(path):
        raise ValueError("stop")
    assert logger.handlers == before


def test_the_runs_own_log_has_what_the_terminal_is_spared(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure("text", level=logging.WARNING)
    with bound_to_run(path):
        logger.debug("what the engine says")
    assert [line["message"] for line in lines(path)] == ["what the engine says"]
    assert capsys.readouterr().err == ""


def test_a_traceback_is_part_of_its_line(path: Path) -> None:
    with bound_to_run(path):
        logger.error("it broke", exc_info=raised("because"))
    (line,) = lines(path)
    assert line["message"] == "it broke"
    assert line["traceback"].endswith("ValueError: because")


def test_a_value_that_json_has_no_word_for_is_written_as_text(path: Path) -> None:
    with bound_to_run(path, run_id=run_id(1), folder=Path("a")):
        logger.info("x")
    (line,) = lines(path)
    assert (line["run_id"], line["folder"]) == (str(run_id(1)), "a")


@pytest.mark.parametrize("message", ["a\nb", "a\r\nb", "\x1b[2J", "\x00", '"}\n{"level": "error"}', "\u2028", "\udcff"])
def test_a_message_is_one_line_whatever_is_in_it(path: Path, message: str) -> None:
    logger.handlers.clear()  # pytest's: it would put the message into its report, and xdist cannot send half a pair
    with bound_to_run(path):
        logger.info("%s", message)
    assert [line["message"] for line in lines(path)] == [message]


@given(st.text(st.characters(exclude_categories=()), max_size=50))
def test_any_message_is_one_json_object_on_one_line(message: str) -> None:
    line = JsonLines().format(logging.LogRecord("runner", logging.INFO, "x", 1, "%s", (message,), None))
    assert len(line.encode(errors="backslashreplace").splitlines()) == 1
    assert json.loads(line)["message"] == message
    assert not any(ord(char) < 0x20 for char in line)


# ---------------------------------------------------------------- secrets

TOKEN = "hunter2\thunter2"
SECRETS = Redaction({"api/token": TOKEN})


class _Status(logging.Handler):
    """Like a terminal's: it takes the message, and no formatter comes in between."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_from_hiding_on_no_handler_gets_a_secret(
    path: Path, log_format: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(log_format)
    status = _Status()
    logger.addHandler(status)
    with bound_to_run(path, task="marts"):
        hide(SECRETS)
        logger.info("SELECT '%s' of %d", TOKEN, 3)
        logger.error("failed with %r", TOKEN, exc_info=raised(f"no column {TOKEN}"))
    assert status.said == ["SELECT '[secret api/token]' of 3", "failed with '[secret api/token]'"]
    (first, second) = lines(path)
    assert (first["message"], first["task"]) == ("SELECT '[secret api/token]' of 3", "marts")
    assert second["traceback"].startswith("Traceback (most recent call last):")
    assert second["traceback"].endswith("ValueError: no column [secret api/token]")
    terminal = capsys.readouterr().err
    assert terminal.count("[secret api/token]") == 3
    assert "hunter2" not in terminal + path.read_text()


def test_other_threads_say_no_secret_either(path: Path) -> None:
    with bound_to_run(path):
        hide(SECRETS)
        thread = Thread(target=lambda: logger.warning("heartbeat: %s", TOKEN))
        thread.start()
        thread.join()
    assert [line["message"] for line in lines(path)] == ["heartbeat: [secret api/token]"]


def test_what_one_run_hides_the_next_one_may_say(path: Path, tmp_path: Path) -> None:
    with suppress(ValueError), bound_to_run(path):
        hide(SECRETS)
        raise ValueError
    with bound_to_run(tmp_path / "two.jsonl"):
        hide(Redaction({"other": "something else"}))
        logger.info("%s", TOKEN)
    assert [line["message"] for line in lines(tmp_path / "two.jsonl")] == [TOKEN]


# ---------------------------------------------------------------- for people


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é ✓", "plain é ✓"),
        ("two\nlines", "two\nlines"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b31mred", r"\x9b31mred"),
        ("back\rover", r"back\rover"),
        ("bell\a nul\0 tab\t", r"bell\x07 nul\x00 tab\t"),
        ("\u202eright to left", r"\u202eright to left"),
        ("\udcff", r"\udcff"),
    ],
)
def test_control_characters_are_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=()), max_size=50))
def test_whatever_comes_is_printable(text: str) -> None:
    shown = printable(text)
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert printable(shown) == shown


def test_plain_text_says_when_which_task_and_what(path: Path) -> None:
    plain = PlainText()
    at, _, rest = plain.format(record("started")).partition("  ")
    assert len(at) == len("12:00:01")
    assert rest == f"{'runner':<16} started"
    with bound_to_run(path, task="load_flights"):
        assert "  load_flights     warning: slow" in plain.format(record("slow", level=logging.WARNING))


def test_plain_text_obeys_no_control_character_of_a_message_or_a_traceback() -> None:
    text = PlainText().format(record("\x1b[31m", level=logging.ERROR, error=raised("\x1b[2J")))
    assert r"error: \x1b[31m" in text
    assert text.endswith(r"ValueError: \x1b[2J")
    assert "\x1b" not in text


# ---------------------------------------------------------------- where it goes


@pytest.mark.parametrize(
    ("log_format", "terminal", "plain"),
    [
        ("json", False, False),
        ("json", True, False),
        ("text", False, True),
        ("auto", True, True),
        ("auto", False, False),
    ],
)
def test_the_log_goes_to_standard_error_as_the_settings_say(
    log_format: Any, terminal: bool, plain: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    configure(log_format)
    logger.info("hello")
    logger.debug("too quiet to hear")
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith('{"at":') is not plain


def test_configuring_twice_does_not_say_everything_twice(capsys: pytest.CaptureFixture[str]) -> None:
    configure("text")
    configure("text")
    logger.info("once")
    assert capsys.readouterr().err.count("once") == 1
