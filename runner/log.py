"""Logs: one JSON object a line, bound to the run at hand; plain text for a person at a terminal."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from runner.model.redaction import Redaction
from runner.model.text import printable as printable  # who logs shows the same way what is not logged
from runner.model.text import printable_json

_RUN: ContextVar[dict[str, object]] = ContextVar("run", default={})  # noqa: B039 - never mutated, only replaced

logger = logging.getLogger("runner")
# A run's log has everything; what a terminal shows of it is that handler's own affair.
logger.setLevel(logging.DEBUG)


class JsonLines(logging.Formatter):
    """`{"at", "level", "message", run_id, attempt, …}`, one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **_RUN.get(),
            "message": record.getMessage(),
        }
        if getattr(record, "alert", False):
            line["alert"] = True  # what a person should hear of: a metric filter counts these
        if traceback := _traceback(record):
            line["traceback"] = traceback
        return printable_json(json.dumps(line, ensure_ascii=False, default=str))


class PlainText(logging.Formatter):
    """`12:00:01 load_flights  message`, for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        task = str(_RUN.get().get("task", "runner"))
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        line = f"{at}  {task:<16} {mark}{printable(record.getMessage())}"
        return f"{line}\n{printable(traceback)}" if (traceback := _traceback(record)) else line


def _traceback(record: logging.LogRecord) -> str | None:
    """With `exc_text`, which is logging's own place for one that is text already."""
    return logging.Formatter().formatException(record.exc_info) if record.exc_info else record.exc_text


class _Redacting(logging.Filter):
    """Takes secrets out of lines before any handler sees them, whatever it does with them."""

    def __init__(self, redaction: Redaction) -> None:
        super().__init__()
        self._redaction = redaction

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._redaction.text(record.getMessage()), ()
        if traceback := _traceback(record):
            record.exc_info, record.exc_text = None, self._redaction.text(traceback)
        return True


def configure(log_format: Literal["auto", "json", "text"], *, level: int = logging.INFO) -> None:
    """Send the product's log to standard error, which leaves standard output to `--json`."""
    stream = logging.StreamHandler(sys.stderr)
    plain = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    stream.setFormatter(PlainText() if plain else JsonLines())
    logger.handlers[:] = [stream]
    stream.setLevel(level)
    logger.propagate = False


@contextmanager
def bound_to_run(path: Path, **fields: object) -> Iterator[None]:
    """Within: every line carries `fields`, and goes to the run's own log at `path` too. It ends what `hide` began."""
    # What UTF-8 cannot hold (half a surrogate pair, from a file's name) is written as JSON would escape it.
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(JsonLines())
    token = _RUN.set(fields)
    # The worker runs one job at a time, so the run's log may listen to the whole product.
    logger.addHandler(handler)
    filters = list(logger.filters)
    try:
        yield
    finally:
        logger.filters[:] = filters
        logger.removeHandler(handler)
        handler.close()
        _RUN.reset(token)


def hide(redaction: Redaction) -> None:
    """From here to the end of the run that the log is bound to: no line has the secrets in it, nor has its traceback.

    For lines of all threads, and all that listens: the run's log, standard error, a terminal.
    """
    if redaction.secrets:
        logger.addFilter(_Redacting(redaction))
