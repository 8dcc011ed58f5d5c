"""What a contract says of values beyond their type, as rules: options, enum, quality and relationships."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from runner.engines.contracts.exact_types import TimeForm, exact_value, family, number_literal
from runner.engines.contracts.patterns import TEXT_FORMATS, UnknownPatternError, of_format, re2_of, time_form
from runner.engines.contracts.row_sql import UnknownSqlError, row_condition
from runner.engines.contracts.rules import Bound, ForeignKey, Operator, RowCount, RowRule, UniqueRule, raw, text, value
from runner.engines.types import literal
from runner.model.errors import SpecError

_NUMBERS = {"INTEGER", "BIGINT", "DECIMAL", "DOUBLE"}
_TIMES = {"DATE", "TIMESTAMP", "TIMESTAMPTZ"}
_BITS = {f"{sign}{bits}": (sign, bits) for sign in "iu" for bits in (8, 16, 32, 64, 128)}
_COMPARED = {
    "minimum": "<",
    "maximum": ">",
    "exclusiveMinimum": "<=",
    "exclusiveMaximum": ">=",
}
"""By option: how a value that breaks it compares with the bound."""

_ONE_NUMBER: tuple[Operator, ...] = (
    "mustBe", "mustNotBe", "mustBeGreaterThan", "mustBeGreaterOrEqualTo", "mustBeLessThan", "mustBeLessOrEqualTo",
)  # fmt: skip
_TWO_NUMBERS: tuple[Operator, ...] = ("mustBeBetween", "mustNotBeBetween")
_DESCRIBES_QUALITY = {
    "id", "name", "description", "dimension", "tags", "authoritativeDefinitions", "businessImpact", "customProperties",
    "type", "severity", "unit", "metric", "arguments", "query", *_ONE_NUMBER, *_TWO_NUMBERS,
}  # fmt: skip
_METRICS_OF_COLUMN = ("nullValues", "missingValues", "invalidValues", "duplicateValues")
_METRICS_OF_TABLE = ("duplicateValues", "rowCount")


@dataclass(frozen=True, kw_only=True)
class ColumnRead:
    """A column as far as it is read: what its other rules are made with."""

    index: int
    name: str
    type: str
    field: str
    """Where the contract states it, for messages."""
    logical: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The contract at hand: `what` is its path, `connection` an empty DuckDB that says which values there are."""

    what: str
    table: str
    columns: Sequence[ColumnRead]
    connection: duckdb.DuckDBPyConnection

    def refuse(self, field: str, problem: str, *, hint: str | None = None) -> SpecError:
        return SpecError(f"{self.what}: {field}: {problem}", subject=field, hint=hint)

    def literal(self, stated: object, column: ColumnRead, field: str) -> str:
        """SQL of a value of the column's type, as the contract writes it."""
        expected = {"VARCHAR": "a text", "BOOLEAN": "true or false"}.get(column.type, f"a value of {column.type}")
        refused = self.refuse(field, f"expected {expected}, got {_short(stated)}")
        if family(column.type) in _NUMBERS:
            number = number_literal(stated, column.type)
            if number is None:
                raise refused
            return number
        if column.type == "BOOLEAN":
            if not isinstance(stated, bool):
                raise refused
            return str(stated).lower()
        if not isinstance(stated, str):
            raise refused
        if column.type == "VARCHAR":
            return self.text(stated, field)
        known = self.connection.execute(f"SELECT {exact_value(literal(stated), column.type)} IS NOT NULL").fetchone()
        if not (known and known[0]):
            raise refused
        return f"CAST({literal(stated)} AS {column.type})"

    def text(self, stated: str, field: str) -> str:
        """SQL of a text. DuckDB's SQL ends at a NUL."""
        if "\0" in stated:
            raise self.refuse(field, f"expected a text without a NUL, got {_short(stated)}")
        return literal(stated)

    def pattern(self, stated: object, field: str) -> str:
        """A pattern as RE2's, tried."""
        if not isinstance(stated, str):
            raise self.refuse(field, f"expected a pattern, got {_short(stated)}")
        self.text(stated, field)
        try:
            pattern = re2_of(stated)
            self.connection.execute("SELECT regexp_matches('', ?)", [pattern])
        except UnknownPatternError as exc:
            raise self.refuse(field, f"{exc}, in {stated!r}", hint=_RE2_HINT) from exc
        except duckdb.Error as exc:
            raise self.refuse(field, f"expected what RE2 has, got {exc} in {stated!r}", hint=_RE2_HINT) from exc
        return pattern


_RE2_HINT = "RE2 has no lookahead, lookbehind or reference back: state the rule in SQL under quality"


# --- logicalTypeOptions and enum ---------------------------------------------------------------------------------


def times_of(column: ColumnRead, options: dict[str, Any], reading: Reading) -> tuple[TimeForm | None, bool]:
    """How a column of times is written: its format, and whether each value states its offset."""
    field = f"{column.field}.logicalTypeOptions"
    if column.type not in _TIMES:
        return None, False
    zone = options.get("defaultTimezone", "UTC")
    if zone not in ("UTC", "Etc/UTC"):
        raise reading.refuse(f"{field}.defaultTimezone", f"expected UTC or Etc/UTC, got {_short(zone)}")
    zoned = options.get("timezone")
    expected = {True: "TIMESTAMPTZ", False: "TIMESTAMP"}.get(zoned) if isinstance(zoned, bool) else column.type
    if expected != column.type:
        raise reading.refuse(
            f"{field}.timezone", f"expected {column.type == 'TIMESTAMPTZ'}, as physicalType is {column.type}"
        )
    format = options.get("format")
    if format is None:
        return None, bool(zoned)
    reading.text(str(format), f"{field}.format")
    try:
        form = time_form(str(format), column.type)
    except UnknownPatternError as exc:
        raise reading.refuse(f"{field}.format", f"{exc}, in {format!r}") from exc
    if zoned and "offset" not in str(format) and "X" not in str(format):
        raise reading.refuse(f"{field}.format", f"expected an offset in it, as timezone is true, got {format!r}")
    return form, False


def option_rules(column: ColumnRead, options: dict[str, Any], reading: Reading) -> Iterator[RowRule]:
    """The rules of `logicalTypeOptions`; `format` and zone of a time belong to its type."""
    for option, stated in options.items():
        field = f"{column.field}.logicalTypeOptions.{option}"
        it = value(column.index)
        if column.type in _TIMES and option in ("format", "timezone", "defaultTimezone"):
            continue
        if option in _COMPARED and column.type != "VARCHAR" and column.type != "BOOLEAN":
            bound = reading.literal(stated, column, field)
            broken = f"{it} {_COMPARED[option]} {bound}"
            # DuckDB sorts NaN above all numbers; it lies in no range.
            broken = f"isnan({it}) OR {broken}" if column.type == "DOUBLE" else broken
            yield RowRule(name=f"{option}({column.name}: {stated})", broken=broken)
        elif option == "multipleOf" and family(column.type) in _NUMBERS - {"DOUBLE"}:
            yield RowRule(
                name=f"multipleOf({column.name}: {stated})",
                broken=f"{it} % {reading.literal(stated, column, field)} <> 0",
            )
        elif option in ("minLength", "maxLength") and column.type == "VARCHAR":
            less = "<" if option == "minLength" else ">"
            yield RowRule(name=f"{option}({column.name}: {stated})", broken=f"length({it}) {less} {int(stated)}")
        elif option == "pattern" and column.type == "VARCHAR":
            pattern = literal(reading.pattern(stated, field))
            name = f"pattern({column.name}: {_cut(str(stated))})"
            yield RowRule(name=name, broken=f"NOT regexp_matches({it}, {pattern})")
        elif option == "format":
            yield RowRule(name=f"format({column.name}: {stated})", broken=_not_of_format(column, stated, reading))
        else:
            hint = "a DOUBLE has no exact multiples: make the column a DECIMAL" if option == "multipleOf" else None
            raise reading.refuse(field, f"expected no such option on a {column.type}, got {_short(stated)}", hint=hint)


def _not_of_format(column: ColumnRead, stated: object, reading: Reading) -> str:
    it, field = value(column.index), f"{column.field}.logicalTypeOptions.format"
    if column.type == "VARCHAR":
        if stated not in TEXT_FORMATS:
            raise reading.refuse(field, f"expected one of {', '.join(TEXT_FORMATS)}, got {_short(stated)}")
        return f"NOT ({of_format(it, str(stated))})"
    if stated in _BITS and column.logical == "integer":
        sign, bits = _BITS[str(stated)]
        least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if sign == "i" else (0, 2**bits - 1)
        # HUGEINT holds what any integer column can hold, and its own bounds cut nothing off.
        least, most = max(least, -(10**38) + 1), min(most, 10**38 - 1)
        return f"CAST({it} AS HUGEINT) NOT BETWEEN CAST('{least}' AS HUGEINT) AND CAST('{most}' AS HUGEINT)"
    if stated == "f64":
        return "false"
    if stated == "f32":
        return f"isinf(coalesce(TRY_CAST({it} AS FLOAT), CAST('inf' AS FLOAT))) AND NOT isinf(CAST({it} AS DOUBLE))"
    raise reading.refuse(field, f"expected a format of {column.logical} as the standard lists, got {_short(stated)}")


def enum_rule(column: ColumnRead, entries: list[dict[str, Any]], reading: Reading) -> RowRule:
    """A null entry allows nothing more: a null breaks `required` alone."""
    stated = [entry["value"] for entry in entries]
    return RowRule(
        name=f"enum({column.name})", broken=_not_among(column, stated, reading, field=f"{column.field}.enum")
    )


def _not_among(column: ColumnRead, stated: Sequence[object], reading: Reading, *, field: str) -> str:
    allowed = [
        reading.literal(each, column, f"{field}[{index}]") for index, each in enumerate(stated) if each is not None
    ]
    it = value(column.index)
    # Where only nulls are allowed, any value is one too many.
    return f"{it} NOT IN ({', '.join(allowed)})" if allowed else f"{it} IS NOT NULL"


# --- quality -----------------------------------------------------------------------------------------------------

Rule = RowRule | UniqueRule | RowCount


def quality_rules(
    stated: Sequence[dict[str, Any]], column: ColumnRead | None, reading: Reading, *, field: str
) -> Iterator[Rule]:
    """The rules of a column's `quality`, or of the table's where `column` is None. Text is for people only."""
    for index, check in enumerate(stated):
        here = f"{field}[{index}]"
        kind = check.get("type", "library")
        if kind == "text":
            continue
        if kind == "custom":
            raise reading.refuse(
                f"{here}.engine", f"expected no engine but this one (library, sql), got {_short(check.get('engine'))}"
            )
        for key in check:
            if key not in _DESCRIBES_QUALITY:
                raise reading.refuse(
                    f"{here}.{key}", f"expected no such key, got {_short(check[key])}", hint=_UNUSED.get(key)
                )
        name = check.get("name")
        if name is not None and (not name.strip() or not name.isprintable() or len(name) > 200):
            raise reading.refuse(f"{here}.name", f"expected a name of 1 to 200 printable characters, got {name!r}")
        bound = _bound(check, reading, here)
        if kind == "sql":
            yield _sql_rule(check, column, reading, here, bound)
        else:
            yield _library_rule(check, column, reading, here, bound)


_UNUSED = {
    "schedule": "load judges every row of every run: leave it out",
    "scheduler": "load judges every row of every run: leave it out",
    "rule": "the standard has `metric` in its place",
}


def _bound(check: dict[str, Any], reading: Reading, here: str) -> Bound:
    operator: Operator | None = next((key for key in (*_ONE_NUMBER, *_TWO_NUMBERS) if key in check), None)
    if operator is None:
        raise reading.refuse(here, f"expected one of {', '.join((*_ONE_NUMBER, *_TWO_NUMBERS))}, got none")
    numbers = check[operator] if operator in _TWO_NUMBERS else [check[operator]]
    for each in numbers:
        if isinstance(each, bool) or not isinstance(each, int | float) or not abs(each) <= 10**15:
            raise reading.refuse(f"{here}.{operator}", f"expected a number of rows or percent, got {_short(each)}")
    if list(numbers) != sorted(numbers):
        raise reading.refuse(f"{here}.{operator}", f"expected the smaller number first, got {_short(numbers)}")
    unit, severity = check.get("unit", "rows"), check.get("severity", "error")
    if unit not in ("rows", "percent"):
        raise reading.refuse(f"{here}.unit", f"expected rows or percent, got {_short(unit)}")
    if severity not in ("error", "warning"):
        raise reading.refuse(f"{here}.severity", f"expected error or warning, got {_short(severity)}")
    return Bound(operator=operator, numbers=tuple(numbers), unit=unit, severity=severity)


def _library_rule(check: dict[str, Any], column: ColumnRead | None, reading: Reading, here: str, bound: Bound) -> Rule:
    metric, arguments, name = check["metric"], dict(check.get("arguments") or {}), check.get("name")
    metrics = _METRICS_OF_TABLE if column is None else _METRICS_OF_COLUMN
    if metric not in metrics:
        owner = "the table" if column is None else f"column {column.name}"
        raise reading.refuse(f"{here}.metric", f"expected one of {', '.join(metrics)} on {owner}, got {metric}")
    tolerated = None if bound.is_none_at_all else bound
    rule: Rule
    if column is None and metric == "rowCount":
        if bound.unit != "rows":
            raise reading.refuse(f"{here}.unit", "expected rows for rowCount, got percent")
        rule = RowCount(name=name or f"rowCount({str(bound).removesuffix(' rows')})", bound=bound)
    elif column is None or metric == "duplicateValues":
        columns = (column.name,) if column else _named_columns(arguments.pop("properties", None), reading, here)
        rule = UniqueRule(columns=columns, stated="duplicateValues", named=name, bound=tolerated)
    else:
        match metric:
            case "nullValues":
                broken = f"{text(column.index)} IS NULL"
            case "missingValues":
                broken = _is_missing(column, arguments, reading, f"{here}.arguments")
            case _:
                broken = _is_invalid(column, arguments, reading, f"{here}.arguments")
        rule = RowRule(name=name or f"{metric}({column.name})", broken=broken, bound=tolerated)
    if arguments:
        key = next(iter(arguments))
        raise reading.refuse(f"{here}.arguments.{key}", f"expected no such argument of {metric}, got it")
    return rule


def _is_missing(column: ColumnRead, arguments: dict[str, Any], reading: Reading, field: str) -> str:
    """Texts are compared with what came, before the format's `nulls` make nulls of some of it; numbers with values."""
    stated = arguments.pop("missingValues", None)
    if not isinstance(stated, list) or not stated:
        raise reading.refuse(f"{field}.missingValues", f"expected a list of values, got {_short(stated)}")
    parts = []
    for index, each in enumerate(stated):
        if each is None:
            parts.append(f"{text(column.index)} IS NULL")
        elif isinstance(each, str):
            parts.append(f"{raw(column.index)} = {reading.text(each, f'{field}.missingValues[{index}]')}")
        else:
            parts.append(f"{value(column.index)} = {reading.literal(each, column, f'{field}.missingValues[{index}]')}")
    # One comparison with a null must not hide that another holds.
    return " OR ".join(f"coalesce({part}, false)" for part in parts)


def _is_invalid(column: ColumnRead, arguments: dict[str, Any], reading: Reading, field: str) -> str:
    parts = []
    if "validValues" in arguments:
        stated = arguments.pop("validValues")
        if not isinstance(stated, list) or not stated:
            raise reading.refuse(f"{field}.validValues", f"expected a list of values, got {_short(stated)}")
        parts.append(_not_among(column, stated, reading, field=f"{field}.validValues"))
    if "pattern" in arguments:
        if column.type != "VARCHAR":
            raise reading.refuse(f"{field}.pattern", f"expected it on a VARCHAR, got it on a {column.type}")
        pattern = reading.pattern(arguments.pop("pattern"), f"{field}.pattern")
        parts.append(f"NOT regexp_matches({value(column.index)}, {literal(pattern)})")
    if not parts:
        raise reading.refuse(field, "expected validValues or pattern for invalidValues, got neither")
    return " OR ".join(f"coalesce({part}, false)" for part in parts)


def _sql_rule(check: dict[str, Any], column: ColumnRead | None, reading: Reading, here: str, bound: Bound) -> RowRule:
    columns = [(each.name, each.type) for each in reading.columns]
    try:
        condition = row_condition(
            reading.connection,
            check["query"],
            table=reading.table,
            columns=columns,
            of=column.name if column else None,
        )
    except UnknownSqlError as exc:
        hint = "a rule in SQL counts the rows that break it, by their own columns; state the rest as a dbt test"
        raise reading.refuse(f"{here}.query", str(exc), hint=hint) from exc
    return RowRule(
        name=check.get("name") or f"sql({_cut(condition.words)})",
        broken=condition.sql,
        bound=None if bound.is_none_at_all else bound,
        is_sql=True,
    )


# --- relationships -----------------------------------------------------------------------------------------------


def foreign_keys(
    stated: Sequence[dict[str, Any]], column: ColumnRead | None, reading: Reading, *, field: str
) -> Iterator[ForeignKey]:
    """Relationships of a column, or of the table where `column` is None. Both ends in the short form, by names."""
    for index, each in enumerate(stated):
        here = f"{field}[{index}]"
        ends = {"to": _as_list(each["to"]), "from": _as_list(each["from"]) if column is None else []}
        for end, references in ends.items():
            for reference in references:
                if "/" in reference or "#" in reference:
                    raise reading.refuse(f"{here}.{end}", f"expected table.column, got {reference!r}")
        to = [reference.rpartition(".") for reference in ends["to"]]
        if column is None:
            own = [reference.rpartition(".") for reference in ends["from"]]
            for reference, (table, _, _) in zip(ends["from"], own, strict=True):
                if table != reading.table:
                    raise reading.refuse(f"{here}.from", f"expected columns of {reading.table}, got {reference!r}")
            columns = _named_columns([name for _, _, name in own], reading, here, key="from")
        else:
            columns = (column.name,)
        tables = {table for table, _, _ in to}
        if len(tables) != 1 or len(to) != len(columns):
            came = ", ".join(ends["to"])
            raise reading.refuse(f"{here}.to", f"expected {len(columns)} of one table's columns, got {came}")
        (table,) = tables
        if table == reading.table:
            raise reading.refuse(
                f"{here}.to",
                f"expected another table, got {table} itself",
                hint="a parent may be a bad row, and its children with it: state it as a dbt test",
            )
        keys = tuple(key for _, _, key in to)
        if len({key.lower() for key in keys}) != len(keys):
            raise reading.refuse(f"{here}.to", f"expected each column once, got {', '.join(keys)}")
        yield ForeignKey(columns=columns, table=table, keys=keys)


def _as_list(stated: object) -> list[str]:
    return list(stated) if isinstance(stated, list) else [str(stated)]


def _named_columns(
    stated: object, reading: Reading, here: str, *, key: str = "arguments.properties"
) -> tuple[str, ...]:
    names = {column.name for column in reading.columns}
    if not isinstance(stated, list) or not stated or not names.issuperset(stated) or len(set(stated)) != len(stated):
        expected = f"columns of {reading.table}, each once"
        raise reading.refuse(f"{here}.{key}", f"expected {expected}, got {_short(stated)}")
    return tuple(stated)


def _cut(words: str) -> str:
    return words if len(words) <= 100 else words[:97] + "..."


def _short(stated: object) -> str:
    if stated is None:
        return "none"
    words = repr(stated)
    return words if len(words) <= 80 else words[:77] + "..."
