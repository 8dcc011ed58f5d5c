"""Which texts are values of a contract's type with nothing lost: the types, the SQL that reads them, and literals."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from runner.engines.types import literal

PHYSICAL_TYPES = ("BOOLEAN", "INTEGER", "BIGINT", "DOUBLE", "VARCHAR", "DATE", "TIMESTAMP", "TIMESTAMPTZ")

_DECIMAL = re.compile(r"DECIMAL\( *([0-9]{1,2}) *, *([0-9]{1,2}) *\)")
# The logical type is a promise too: dates kept as VARCHAR would be promised and not checked.
LOGICAL_TYPES = {
    "string": {"VARCHAR"},
    "integer": {"INTEGER", "BIGINT", "DECIMAL"},
    "number": {"INTEGER", "BIGINT", "DECIMAL", "DOUBLE"},
    "boolean": {"BOOLEAN"},
    "date": {"DATE"},
    "timestamp": {"TIMESTAMP", "TIMESTAMPTZ"},
}
_INTEGER_DIGITS = {"INTEGER": 10, "BIGINT": 19}
_MOST_DIGITS = 38
"""DuckDB's and Iceberg's for a DECIMAL."""


@dataclass(frozen=True, kw_only=True)
class TimeForm:
    """How a file writes a time: RE2's pattern of such a text, and the replacement that makes ISO 8601 of it."""

    pattern: str
    iso: str


def physical_type(stated: object) -> str | None:
    """The type as DuckDB writes it; None where it is none that a contract's column can have."""
    if not isinstance(stated, str):
        return None
    kind = stated.strip().upper()
    if decimal := _DECIMAL.fullmatch(kind):
        precision, scale = int(decimal[1]), int(decimal[2])
        return f"DECIMAL({precision},{scale})" if 1 <= precision <= _MOST_DIGITS and scale <= precision else None
    return kind if kind in PHYSICAL_TYPES else None


def fits_logically(physical: str, logical: str) -> bool:
    whole = family(physical) != "DECIMAL" or physical.endswith(",0)")
    return family(physical) in LOGICAL_TYPES.get(logical, ()) and (whole or logical != "integer")


def family(kind: str) -> str:
    """The type without its size."""
    return kind.partition("(")[0]


def exact_value(text: str, kind: str, *, form: TimeForm | None = None, zoned: bool = False) -> str:
    """SQL of the value that a text stands for, null where it is none with nothing lost. Spaces around do not count."""
    if kind == "VARCHAR":
        return text
    cast = cast_of(text, kind, form=form)
    return f"CASE WHEN {is_exact(text, cast, kind, form=form, zoned=zoned)} THEN {cast} END"


def cast_of(text: str, kind: str, *, form: TimeForm | None = None) -> str:
    """SQL of what DuckDB's cast makes of a text, which may have lost something."""
    if form is not None:
        text = f"regexp_replace({text}, {literal(form.pattern)}, {literal(form.iso)})"
    return f"TRY_CAST({text} AS {kind})"


def is_exact(text: str, cast: str, kind: str, *, form: TimeForm | None = None, zoned: bool = False) -> str:
    """SQL that says whether the cast of a text lost nothing. It need not be true where the cast is null.

    DuckDB's casts alone round ('1.5' to INTEGER is 2), drop (the offset in a TIMESTAMP, whatever follows a DATE) and
    let pass (0x1F): the pattern says what may stand there, the cast whether there is such a value.
    `zoned` asks for an offset in a TIMESTAMPTZ.
    """
    if kind == "BOOLEAN":
        return "true"
    if form is not None:
        return f"regexp_full_match({text}, {literal(form.pattern)})"
    pattern = _ZONED if zoned and kind == "TIMESTAMPTZ" else _pattern(kind)
    fits = f"regexp_full_match({text}, {literal(f'[[:space:]]*(?:{pattern})[[:space:]]*')})"
    if kind == "DOUBLE":
        # A number too large becomes an infinity; the text of an infinity is one.
        # OR rather than NOT (… AND …), of which DuckDB would judge both sides for every row.
        return f"{fits} AND (NOT isinf({cast}) OR NOT regexp_matches({text}, '[0-9]'))"
    if family(kind) in ("INTEGER", "BIGINT", "DECIMAL"):
        # What DuckDB writes itself has lost nothing, and to compare is faster than the pattern.
        return f"{text} = CAST({cast} AS VARCHAR) OR {fits}"
    if kind == "DATE":
        # Ten characters, so neither an infinity nor a year before Christ.
        return f"({text} = CAST({cast} AS VARCHAR) AND strlen({text}) = 10) OR {fits}"
    return fits


_INTEGER = r"[+-]?[0-9]+(?:\.0*)?"  # 517.0 loses nothing, and is how tools write integers that may be missing
_NUMBER = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:inf|infinity|nan))"
_DAY = r"[0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}"
# Microseconds are what DuckDB and Iceberg keep.
_TIME = r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6}0*)?)?"
_MIDNIGHT = r"00:00(?::00(?:\.0+)?)?"
# Without an offset it is UTC, the standard's defaultTimezone.
_OFFSET = r"Z| ?UTC|[+-](?:0[0-9]|1[0-8])(?::?[0-5][0-9])?"
_ZONED = rf"{_DAY}[T ]{_TIME}(?:{_OFFSET})"


def _pattern(kind: str) -> str:
    """RE2's regular expression for a text that the cast to `kind` keeps whole."""
    patterns = {
        "INTEGER": _INTEGER,
        "BIGINT": _INTEGER,
        "DOUBLE": _NUMBER,
        "DATE": rf"{_DAY}(?:[T ]{_MIDNIGHT})?",
        "TIMESTAMP": rf"{_DAY}(?:[T ]{_TIME})?",
        "TIMESTAMPTZ": rf"{_DAY}(?:[T ]{_TIME}(?:{_OFFSET})?)?",
    }
    if kind in patterns:
        return patterns[kind]
    scale = int(kind.rstrip(")").split(",")[1])
    return rf"[+-]?(?:[0-9]+(?:\.[0-9]{{0,{scale}}}0*)?|\.[0-9]{{1,{scale}}}0*)" if scale else _INTEGER


def number_literal(stated: object, kind: str) -> str | None:
    """SQL of a number to compare values of `kind` with, exactly; None where it is none or cannot be.

    It may lie outside of the type: `minimum: 0.5` on an INTEGER says something.
    """
    if isinstance(stated, bool) or not isinstance(stated, int | float):
        return None
    try:
        number = Decimal(repr(stated))
    except InvalidOperation:
        return None
    if not number.is_finite():
        return None
    if kind == "DOUBLE":
        return f"CAST({literal(repr(stated))} AS DOUBLE)" if abs(number) <= Decimal(sys.float_info.max) else None
    text = f"{number:f}"
    before, _, after = text.lstrip("-").partition(".")
    after = after.rstrip("0")
    whole, scale = _digits(kind)
    # DuckDB compares two decimals as one that has room for both, and fails on a row where there is none.
    if max(len(before), whole) + max(len(after), scale) > _MOST_DIGITS:
        return None
    return f"CAST({literal(text)} AS DECIMAL({max(1, len(before) + len(after))},{len(after)}))"


def _digits(kind: str) -> tuple[int, int]:
    """How many digits values of an exact type have before and after the point."""
    if kind in _INTEGER_DIGITS:
        return _INTEGER_DIGITS[kind], 0
    precision, scale = kind.removeprefix("DECIMAL(").rstrip(")").split(",")
    return int(precision) - int(scale), int(scale)
