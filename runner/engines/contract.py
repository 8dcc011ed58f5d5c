"""A data contract (Open Data Contract Standard 3.1): read, refused where it asks more than is enforced, made rules.

The standard: https://bitol-io.github.io/open-data-contract-standard/v3.1.0/
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from runner.engines.types import literal
from runner.model.errors import SpecError
from runner.model.pipeline import load_yaml

PACKAGE = "open-data-contract-standard"
"""The distribution whose JSON Schema decides what a contract may say."""

RESERVED_COLUMNS = ("_source_file", "_line", "_rules", "_text")
"""Quarantine puts these before the contract's columns."""

ENFORCED = "required, unique, primaryKey, types"

_VERSION = re.compile(r"v3\.1\.[0-9]+")
_DECIMAL = re.compile(r"DECIMAL\( *([0-9]{1,2}) *, *([0-9]{1,2}) *\)")
_PHYSICAL_TYPES = ("BOOLEAN", "INTEGER", "BIGINT", "DOUBLE", "VARCHAR", "DATE", "TIMESTAMP", "TIMESTAMPTZ")
# The logical type is a promise too: dates kept as VARCHAR would be promised and not checked.
_FITTING = {
    "string": {"VARCHAR"},
    "integer": {"INTEGER", "BIGINT", "DECIMAL"},
    "number": {"INTEGER", "BIGINT", "DECIMAL", "DOUBLE"},
    "boolean": {"BOOLEAN"},
    "date": {"DATE"},
    "timestamp": {"TIMESTAMP", "TIMESTAMPTZ"},
}

# What describes and promises nothing about rows. Any other key is a rule: it is enforced, or the contract is refused.
_DESCRIBES = {
    "id", "description", "businessName", "deprecated", "synonyms", "authoritativeDefinitions", "tags",
    "customProperties", "context",
}  # fmt: skip
_DOCUMENT_KEYS = _DESCRIBES | {
    "apiVersion", "kind", "name", "version", "status", "tenant", "servers", "dataProduct", "domain", "schema",
    "support", "price", "team", "roles", "contractCreatedTs",
}  # fmt: skip
_TABLE_KEYS = _DESCRIBES | {"name", "logicalType", "physicalType", "dataGranularityDescription", "properties"}
_COLUMN_KEYS = _DESCRIBES | {
    "name", "logicalType", "physicalType", "required", "unique", "primaryKey", "primaryKeyPosition",
    "classification", "encryptedName", "criticalDataElement", "examples",
    "transformSourceObjects", "transformLogic", "transformDescription",
}  # fmt: skip
# Values that say no more than leaving the key out.
_SAY_NOTHING: dict[str, object] = {"semanticType": "column", "partitionKeyPosition": -1}


@dataclass(frozen=True, kw_only=True)
class ContractColumn:
    name: str
    type: str
    """DuckDB's, as the table keeps it."""
    required: bool

    @property
    def type_rule(self) -> str:
        return f"type({self.name}: {self.type})"


@dataclass(frozen=True, kw_only=True)
class RowRule:
    """A rule that looks at one row. `broken` is SQL, true or false and never null, for a row that breaks it."""

    name: str
    broken: str


@dataclass(frozen=True, kw_only=True)
class UniqueRule:
    """No two rows alike in these columns; a row with a null in one of them is like no other."""

    columns: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"unique({', '.join(self.columns)})"


@dataclass(frozen=True, kw_only=True)
class Contract:
    table: str
    columns: tuple[ContractColumn, ...]
    unique: tuple[UniqueRule, ...]

    def row_rules(self, text: dict[str, str]) -> Iterator[RowRule]:
        """What each row must keep. `text` gives, for each column, the SQL of its text (null for a missing value)."""
        for column in self.columns:
            value = text[column.name]
            if column.required:
                yield RowRule(name=f"required({column.name})", broken=f"{value} IS NULL")
            fits = f"{value} IS NULL OR ({fits_exactly(value, column.type)})"
            yield RowRule(name=column.type_rule, broken=f"NOT ({fits})")


def parse_contract(raw: bytes, *, what: str) -> Contract:
    """Parse a contract of one table. `what` is its path, for messages.

    Raises `SpecError` naming the field: not of the standard's form, a name or type that cannot be, or a rule that is
    not enforced here. A rule is never skipped in silence.
    """
    document = load_yaml(raw, what=what)
    if not isinstance(document, dict):
        raise SpecError(f"{what}: expected a mapping at the top, got {type(document).__name__}")
    version = document.get("apiVersion")
    if not (isinstance(version, str) and _VERSION.fullmatch(version)):
        raise SpecError(f"{what}: apiVersion: expected v3.1.x, got {_short(version)}", subject="apiVersion")
    _check_form(document, what)
    _refuse_others(document, _DOCUMENT_KEYS, "the contract", what)
    tables = document.get("schema", [])
    if len(tables) != 1:
        raise SpecError(f"{what}: schema: expected exactly one object, got {len(tables)}", subject="schema")
    return _table(tables[0], what)


def fits_exactly(text: str, kind: str) -> str:
    """SQL that says whether a text, not null, is a value of the type with nothing lost. Spaces around it do not count.

    DuckDB's casts alone round ('1.5' to INTEGER is 2), drop (the offset in a TIMESTAMP, whatever follows a DATE) and
    let pass (0x1F): the pattern says what may stand there, the cast whether there is such a value.
    """
    cast = f"TRY_CAST({text} AS {kind})"
    if kind == "VARCHAR":
        return "true"
    if kind == "BOOLEAN":
        return f"{cast} IS NOT NULL"
    fits = f"regexp_full_match({text}, {literal(f'[[:space:]]*(?:{_pattern(kind)})[[:space:]]*')})"
    if kind == "DOUBLE":
        # A number too large becomes an infinity; the text of an infinity is one.
        return f"{fits} AND {cast} IS NOT NULL AND NOT (isinf({cast}) AND regexp_matches({text}, '[0-9]'))"
    return f"{fits} AND {cast} IS NOT NULL"


_INTEGER = r"[+-]?[0-9]+(?:\.0*)?"  # 517.0 loses nothing, and is how tools write integers that may be missing
_NUMBER = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:inf|infinity|nan))"
_DAY = r"[0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}"
# Microseconds are what DuckDB and Iceberg keep.
_TIME = r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6}0*)?)?"
_MIDNIGHT = r"00:00(?::00(?:\.0+)?)?"
# Without an offset it is UTC, the standard's defaultTimezone.
_OFFSET = r"Z| ?UTC|[+-](?:0[0-9]|1[0-8])(?::?[0-5][0-9])?"


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


def _table(table: dict[str, Any], what: str) -> Contract:
    name = table["name"]
    _refuse_others(table, _TABLE_KEYS, f"table {name}", what)
    properties = table.get("properties") or []
    if not properties:
        raise SpecError(f"{what}: schema[0].properties: expected at least one column, got none", subject=name)
    columns = tuple(_column(each, f"schema[0].properties[{index}]", what) for index, each in enumerate(properties))
    _own_names(columns, what)
    keys = _primary_key(properties, what)
    groups = [keys] if keys else []
    groups += [(each["name"],) for each in properties if each.get("unique")]
    return Contract(
        table=name,
        columns=columns,
        # A column may be the primary key and unique: that is one rule.
        unique=tuple(UniqueRule(columns=group) for group in dict.fromkeys(groups)),
    )


def _column(column: dict[str, Any], field: str, what: str) -> ContractColumn:
    name = column["name"]
    _refuse_others(column, _COLUMN_KEYS, f"column {name}", what)
    if not name.strip() or not name.isprintable():
        raise SpecError(f"{what}: {field}.name: expected a column's name, got {name!r}", subject=f"{field}.name")
    physical = _physical_type(column.get("physicalType"))
    if physical is None:
        raise SpecError(
            f"{what}: {field}.physicalType: expected one of {', '.join(_PHYSICAL_TYPES)}, DECIMAL(p,s) "
            f"for column {name}, got {_short(column.get('physicalType'))}",
            subject=f"{field}.physicalType",
        )
    logical = column["logicalType"]
    if not _fits_logically(physical, logical):
        fitting = [each for each in _FITTING if _fits_logically(physical, each)]
        raise SpecError(
            f"{what}: {field}.logicalType: expected {' or '.join(fitting)}, as physicalType is {physical}, "
            f"for column {name}, got {logical}",
            subject=f"{field}.logicalType",
        )
    return ContractColumn(name=name, type=physical, required=bool(column.get("required") or column.get("primaryKey")))


def _physical_type(stated: object) -> str | None:
    if not isinstance(stated, str):
        return None
    kind = stated.strip().upper()
    if decimal := _DECIMAL.fullmatch(kind):
        precision, scale = int(decimal[1]), int(decimal[2])
        return f"DECIMAL({precision},{scale})" if 1 <= precision <= 38 and scale <= precision else None
    return kind if kind in _PHYSICAL_TYPES else None


def _fits_logically(physical: str, logical: str) -> bool:
    family, _, rest = physical.partition("(")
    whole = family != "DECIMAL" or rest.endswith(",0)")
    return family in _FITTING.get(logical, ()) and (whole or logical != "integer")


def _own_names(columns: tuple[ContractColumn, ...], what: str) -> None:
    """DuckDB's names and most readers of Iceberg's do not tell upper from lower case."""
    taken: dict[str, str] = {}
    for name in (column.name for column in columns):
        if name.lower() in RESERVED_COLUMNS:
            expected = f"a column's name other than {', '.join(RESERVED_COLUMNS)}"
            raise SpecError(f"{what}: expected {expected}, got {name!r}", subject=name)
        if name.lower() in taken:
            got = f"{taken[name.lower()]!r} and {name!r}"
            raise SpecError(f"{what}: expected column names that differ in more than case, got {got}", subject=name)
        taken[name.lower()] = name


def _primary_key(properties: list[dict[str, Any]], what: str) -> tuple[str, ...]:
    """The key's columns, by position. A key of one column needs no position."""
    keys = [each for each in properties if each.get("primaryKey")]
    positions = [each.get("primaryKeyPosition", -1) for each in keys]
    if len(keys) == 1 and positions[0] in (-1, 1):
        return (keys[0]["name"],)
    if sorted(positions) != list(range(1, len(keys) + 1)):
        names = ", ".join(f"{each['name']}: {position}" for each, position in zip(keys, positions, strict=True))
        raise SpecError(
            f"{what}: primaryKeyPosition: expected the positions 1 to {len(keys)}, each once, got {names}",
            subject="primaryKeyPosition",
        )
    return tuple(each["name"] for _, each in sorted(zip(positions, keys, strict=True), key=lambda pair: pair[0]))


def _refuse_others(element: dict[str, Any], known: set[str], owner: str, what: str) -> None:
    for key, value in element.items():
        # `quality: []` and `partitioned: false` state no rule.
        nothing = value in (None, False, "", [], {}) or _SAY_NOTHING.get(key) == value
        if key in known or nothing or (key == "physicalName" and value == element.get("name")):
            continue
        raise SpecError(
            f"{what}: rule {key} on {owner}: expected one of {ENFORCED}, got {_short(value)}",
            subject=f"{key} on {owner}",
            hint="load enforces no other rule yet and skips none in silence; state it as a dbt test",
        )


def _check_form(document: dict[str, Any], what: str) -> None:
    """Hold the document to the standard's JSON Schema. Unknown keys are refused there."""
    # Imported here: it costs more than the rest of this module, and only this function needs it.
    from jsonschema import Draft201909Validator

    schema = json.loads(resources.files("open_data_contract_standard").joinpath("schema.json").read_bytes())
    try:
        faults = list(Draft201909Validator(schema).iter_errors(document))
    except RecursionError as exc:
        raise SpecError(f"{what}: expected a contract, got one nested too deeply") from exc
    if not faults:
        return
    # A wrong value makes the element around it fail too ("unevaluated"): that is an echo, and comes last.
    fault = min(faults, key=lambda each: (each.validator == "unevaluatedProperties", -len(each.absolute_path)))
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault.absolute_path)
    field = field.removeprefix(".") or "the document"
    got = _short(fault.instance)
    if fault.validator_value == ["map"] and "logicalType" not in fault.instance:
        # Where it is absent, each of the schema's conditions on it holds, the one for maps too.
        field, got = f"{field}.logicalType", f"none on {fault.instance.get('name', 'a column')}"
        raise SpecError(f"{what}: {field}: expected one of {', '.join(_FITTING)}, got {got}", subject=field)
    messages = {
        "type": f"expected {fault.validator_value}, got {got}",
        "enum": f"expected one of {fault.validator_value}, got {got}",
        "required": f"expected every key of {fault.validator_value}, got {got}",
    }
    message = messages.get(str(fault.validator), f"expected what the standard allows, got: {fault.message[:300]}")
    raise SpecError(f"{what}: {field}: {message}", subject=field)


def _short(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "the keys " + (", ".join(map(str, value))[:120] or "none")
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
