"""A data contract (Open Data Contract Standard 3.1 and 3.2): read, refused where it asks more than is enforced.

The standard: https://bitol-io.github.io/open-data-contract-standard/v3.2.0/
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import islice
from typing import Any, Literal, cast

import duckdb

from runner.engines.contracts.exact_types import (
    LOGICAL_TYPES,
    PHYSICAL_TYPES,
    TimeForm,
    cast_of,
    fits_logically,
    is_exact,
    physical_type,
)
from runner.engines.contracts.quality import (
    ColumnRead,
    Reading,
    Rule,
    enum_rule,
    foreign_keys,
    option_rules,
    quality_rules,
    times_of,
)
from runner.engines.contracts.rules import ForeignKey, RowCount, RowRule, UniqueRule, text, value
from runner.model.errors import SpecError
from runner.model.pipeline import load_yaml

PACKAGE = "open-data-contract-standard"
"""The distribution whose JSON Schema decides what a contract may say."""

RESERVED_COLUMNS = ("_source_file", "_line", "_rules", "_text")
"""Quarantine puts these before the contract's columns."""

ENFORCED = "required, unique, primaryKey, types, logicalTypeOptions, enum, quality (library, sql, text), relationships"

Drift = Literal["freeze", "evolve", "discard"]
DRIFT: tuple[Drift, ...] = ("freeze", "evolve", "discard")
"""What becomes of columns that a file has and the contract has not, by the table's custom property `drift`."""

_VERSION = re.compile(r"v3\.([12])\.[0-9]+")

# What describes and promises nothing about rows. Any other key is a rule: it is enforced, or the contract is refused.
_DESCRIBES = {
    "id", "description", "businessName", "deprecated", "synonyms", "authoritativeDefinitions", "tags",
    "customProperties", "context",
}  # fmt: skip
_DOCUMENT_KEYS = _DESCRIBES | {
    "apiVersion", "kind", "name", "version", "status", "tenant", "servers", "dataProduct", "domain", "schema",
    "support", "price", "team", "roles", "contractCreatedTs",
}  # fmt: skip
_TABLE_KEYS = _DESCRIBES | {
    "name", "logicalType", "physicalType", "dataGranularityDescription", "properties", "quality", "relationships",
}  # fmt: skip
_COLUMN_KEYS = _DESCRIBES | {
    "name", "logicalType", "physicalType", "required", "unique", "primaryKey", "primaryKeyPosition",
    "classification", "encryptedName", "criticalDataElement", "examples",
    "transformSourceObjects", "transformLogic", "transformDescription",
    "logicalTypeOptions", "enum", "quality", "relationships",
}  # fmt: skip
_HOLD_COLUMNS = ("properties", "items", "map")
_FAULTS_COMPARED = 100
"""Of a document that has thousands, which take a minute to find: one is told."""

# Values that say no more than leaving the key out.
_SAY_NOTHING: dict[str, object] = {"semanticType": "column", "partitionKeyPosition": -1}
# The package has one schema for all versions, 3.2's: what 3.1 had not is told apart here.
_NEW_IN_3_2 = {"enum", "map", "semanticType", "synonyms", "deprecated", "context"}


@dataclass(frozen=True, kw_only=True)
class ContractColumn:
    name: str
    type: str
    """DuckDB's, as the table keeps it."""
    required: bool
    form: TimeForm | None = None
    """How a text writes its time, where the contract has a format for it."""
    zoned: bool = False
    """Whether a text has to state its offset."""

    @property
    def type_rule(self) -> str:
        return f"type({self.name}: {self.type})"

    def cast(self, text: str) -> str:
        """SQL of what DuckDB's cast makes of a text, which may have lost something."""
        return cast_of(text, self.type, form=self.form)

    def is_exact(self, text: str, cast: str) -> str:
        """SQL that says whether the cast lost nothing."""
        return is_exact(text, cast, self.type, form=self.form, zoned=self.zoned)


@dataclass(frozen=True, kw_only=True)
class Contract:
    table: str
    columns: tuple[ContractColumn, ...]
    unique: tuple[UniqueRule, ...] = ()
    values: tuple[RowRule, ...] = field(default=())
    """Rules of rows beyond `required` and the types."""
    foreign_keys: tuple[ForeignKey, ...] = ()
    row_counts: tuple[RowCount, ...] = ()
    drift: Drift = "freeze"

    @property
    def row_rules(self) -> tuple[RowRule, ...]:
        """What each row is judged by, alone: `required` and type of each column, then the rules of its values."""
        return (*_of_types(self.columns), *self.values)


def _of_types(columns: Sequence[ContractColumn]) -> Iterator[RowRule]:
    for index, column in enumerate(columns):
        if column.required:
            yield RowRule(name=f"required({column.name})", broken=f"{text(index)} IS NULL")
        broken = f"{text(index)} IS NOT NULL AND {value(index)} IS NULL" if column.type != "VARCHAR" else "false"
        yield RowRule(name=column.type_rule, broken=broken)


def parse_contract(raw: bytes, *, what: str) -> Contract:
    """Parse a contract of one table. `what` is its path, for messages.

    Raises `SpecError` naming the field: not of the standard's form, a name or type that cannot be, or a rule that is
    not enforced here. A rule is never skipped in silence.
    """
    document = load_yaml(raw, what=what)
    if not isinstance(document, dict):
        raise SpecError(f"{what}: expected a mapping at the top, got {type(document).__name__}")
    version = document.get("apiVersion")
    known = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if known is None:
        raise SpecError(f"{what}: apiVersion: expected v3.1.x or v3.2.x, got {_short(version)}", subject="apiVersion")
    new = _NEW_IN_3_2 if known[1] == "1" else set[str]()
    _refuse_nested(document, what, new)
    _check_form(document, what)
    _refuse_others(document, _DOCUMENT_KEYS, "the contract", what, new)
    for each in document.get("customProperties", []):
        if each["property"] == "drift":
            raise SpecError(
                f"{what}: customProperties: expected drift on the table, got it on the contract", subject="drift"
            )
    tables = document.get("schema", [])
    if len(tables) != 1:
        raise SpecError(f"{what}: schema: expected exactly one object, got {len(tables)}", subject="schema")
    return _table(tables[0], what, new)


def _table(table: dict[str, Any], what: str, new: set[str]) -> Contract:
    name = table["name"]
    _refuse_others(table, _TABLE_KEYS, f"table {name}", what, new)
    properties = table.get("properties") or []
    if not properties:
        raise SpecError(f"{what}: schema[0].properties: expected at least one column, got none", subject=name)
    read = [_column(each, index, what, new) for index, each in enumerate(properties)]
    _own_names(read, what)
    keys = _primary_key(properties, what)
    groups = [keys] if keys else []
    groups += [(each["name"],) for each in properties if each.get("unique")]
    # The rules' own SQL is tried here, where nothing is in reach.
    with duckdb.connect(config={"enable_external_access": "false"}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        reading = Reading(what=what, table=name, columns=read, connection=connection)
        columns = tuple(_with_times(each, column, reading) for each, column in zip(properties, read, strict=True))
        rules = [rule for each, column in zip(properties, read, strict=True) for rule in _values(each, column, reading)]
        rules += quality_rules(table.get("quality") or [], None, reading, field="schema[0].quality")
        keys_to = [
            key
            for each, column in [*zip(properties, read, strict=True), (table, None)]
            for key in foreign_keys(
                each.get("relationships") or [],
                column,
                reading,
                field=f"{column.field if column else 'schema[0]'}.relationships",
            )
        ]
    contract = Contract(
        table=name,
        columns=columns,
        # A column may be the primary key and unique: that is one rule.
        unique=(
            *(UniqueRule(columns=group) for group in dict.fromkeys(groups)),
            *(rule for rule in rules if isinstance(rule, UniqueRule)),
        ),
        values=tuple(rule for rule in rules if isinstance(rule, RowRule)),
        foreign_keys=tuple(dict.fromkeys(keys_to)),
        row_counts=tuple(rule for rule in rules if isinstance(rule, RowCount)),
        drift=_drift(table, what),
    )
    _each_once(contract, what)
    return contract


def _with_times(stated: dict[str, Any], column: ColumnRead, reading: Reading) -> ContractColumn:
    form, zoned = times_of(column, stated.get("logicalTypeOptions") or {}, reading)
    required = bool(stated.get("required") or stated.get("primaryKey"))
    return ContractColumn(name=column.name, type=column.type, required=required, form=form, zoned=zoned)


def _values(stated: dict[str, Any], column: ColumnRead, reading: Reading) -> Iterator[Rule]:
    yield from option_rules(column, stated.get("logicalTypeOptions") or {}, reading)
    if stated.get("enum"):
        yield enum_rule(column, stated["enum"], reading)
    yield from quality_rules(stated.get("quality") or [], column, reading, field=f"{column.field}.quality")


def _each_once(contract: Contract, what: str) -> None:
    """Quarantine names rules, and steps count by name."""
    rules: list[RowRule | UniqueRule | ForeignKey | RowCount] = [*contract.row_rules, *contract.unique]
    rules += [*contract.foreign_keys, *contract.row_counts]
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(
                f"{what}: expected each rule once, got {name} twice", subject=name, hint="give each a `name` of its own"
            )


def _drift(table: dict[str, Any], what: str) -> Drift:
    stated = [each["value"] for each in table.get("customProperties") or [] if each["property"] == "drift"]
    if not stated:
        return "freeze"
    if len(stated) > 1 or stated[0] not in DRIFT:
        came = ", ".join(map(_short, stated))
        raise SpecError(
            f"{what}: schema[0].customProperties: expected drift once, as one of {', '.join(DRIFT)}, got {came}",
            subject="drift",
        )
    return cast("Drift", stated[0])


def _column(column: dict[str, Any], index: int, what: str, new: set[str]) -> ColumnRead:
    name, field = column["name"], f"schema[0].properties[{index}]"
    _refuse_others(column, _COLUMN_KEYS, f"column {name}", what, new)
    if not name.strip() or not name.isprintable():
        raise SpecError(f"{what}: {field}.name: expected a column's name, got {name!r}", subject=f"{field}.name")
    physical = physical_type(column.get("physicalType"))
    if physical is None:
        raise SpecError(
            f"{what}: {field}.physicalType: expected one of {', '.join(PHYSICAL_TYPES)}, DECIMAL(p,s) "
            f"for column {name}, got {_short(column.get('physicalType'))}",
            subject=f"{field}.physicalType",
        )
    logical = column["logicalType"]
    if not fits_logically(physical, logical):
        fitting = [each for each in LOGICAL_TYPES if fits_logically(physical, each)]
        raise SpecError(
            f"{what}: {field}.logicalType: expected {' or '.join(fitting)}, as physicalType is {physical}, "
            f"for column {name}, got {logical}",
            subject=f"{field}.logicalType",
        )
    return ColumnRead(index=index, name=name, type=physical, field=field, logical=logical)


def _own_names(columns: Sequence[ColumnRead], what: str) -> None:
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


def _refuse_others(element: dict[str, Any], known: set[str], owner: str, what: str, new: set[str]) -> None:
    for key, stated in element.items():
        if key in new:
            raise SpecError(
                f"{what}: {key} on {owner}: expected a key of v3.1, got one that v3.2 brought",
                subject=f"{key} on {owner}",
                hint="state apiVersion: v3.2.0",
            )
        # `quality: []` and `partitioned: false` state no rule.
        nothing = stated in (None, False, "", [], {}) or _SAY_NOTHING.get(key) == stated
        if key in known or nothing or (key == "physicalName" and stated == element.get("name")):
            continue
        raise SpecError(
            f"{what}: rule {key} on {owner}: expected one of {ENFORCED}, got {_short(stated)}",
            subject=f"{key} on {owner}",
            hint="load enforces no other rule and skips none in silence; state it as a dbt test",
        )


def _refuse_nested(document: dict[str, Any], what: str, new: set[str]) -> None:
    """Columns in columns, which no type here has: to check their form takes thrice as long with each level."""
    tables = document.get("schema")
    for table in tables if isinstance(tables, list) else ():
        columns = table.get("properties") if isinstance(table, dict) else None
        for column in columns if isinstance(columns, list) else ():
            if isinstance(column, dict):
                nested = {key: column[key] for key in _HOLD_COLUMNS if column.get(key)}
                _refuse_others(nested, set(), f"column {column.get('name')}", what, new)


def _check_form(document: dict[str, Any], what: str) -> None:
    """Hold the document to the standard's JSON Schema. Unknown keys are refused there."""
    # Imported here: it costs more than the rest of this module, and only this function needs it.
    from jsonschema import Draft201909Validator
    from jsonschema.validators import extend

    schema = json.loads(resources.files("open_data_contract_standard").joinpath("schema.json").read_bytes())
    held_to = extend(Draft201909Validator, {"uniqueItems": _items_once})  # type: ignore[no-untyped-call]
    try:
        faults = list(islice(held_to(schema).iter_errors(document), _FAULTS_COMPARED))
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
        raise SpecError(f"{what}: {field}: expected one of {', '.join(LOGICAL_TYPES)}, got {got}", subject=field)
    messages = {
        "type": f"expected {fault.validator_value}, got {got}",
        "enum": f"expected one of {fault.validator_value}, got {got}",
        "required": f"expected every key of {fault.validator_value}, got {got}",
    }
    message = messages.get(str(fault.validator), f"expected what the standard allows, got: {fault.message[:300]}")
    raise SpecError(f"{what}: {field}: {message}", subject=field)


def _items_once(_validator: object, asked: bool, items: object, _schema: object) -> Iterator[Any]:
    """As jsonschema's own, which compares each item with each other: seconds for an enum of a thousand values."""
    from jsonschema import ValidationError

    if asked and isinstance(items, list) and len({json.dumps(each, sort_keys=True) for each in items}) < len(items):
        yield ValidationError(f"{_short(items)} has non-unique elements")


def _short(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "the keys " + (", ".join(map(str, value))[:120] or "none")
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
