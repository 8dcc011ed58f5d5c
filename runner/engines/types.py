"""DuckDB's types as Iceberg's, without loss or not at all; and the field ids that Parquet files carry for Iceberg."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from duckdb.sqltypes import DuckDBPyType

from runner.model.errors import SchemaError
from runner.model.messages import FieldIds

_SAME = {
    "boolean": ("BOOLEAN", "boolean"),
    "integer": ("INTEGER", "int"),
    "bigint": ("BIGINT", "long"),
    "float": ("FLOAT", "float"),
    "double": ("DOUBLE", "double"),
    "varchar": ("VARCHAR", "string"),
    "blob": ("BLOB", "binary"),
    "date": ("DATE", "date"),
    "time": ("TIME", "time"),
    "timestamp": ("TIMESTAMP", "timestamp"),
    "timestamp with time zone": ("TIMESTAMPTZ", "timestamptz"),
    "uuid": ("UUID", "uuid"),
}
_WIDENED = {
    # Every value of the left type is a value of the right one.
    "tinyint": ("INTEGER", "int"),
    "smallint": ("INTEGER", "int"),
    "utinyint": ("INTEGER", "int"),
    "usmallint": ("INTEGER", "int"),
    "uinteger": ("BIGINT", "long"),
    "ubigint": ("DECIMAL(20,0)", "decimal(20,0)"),
    "timestamp_s": ("TIMESTAMP", "timestamp"),
    "timestamp_ms": ("TIMESTAMP", "timestamp"),
    # 38 digits hold all but the outermost values; the cast fails on those, so nothing is rounded.
    "hugeint": ("DECIMAL(38,0)", "decimal(38,0)"),
    "uhugeint": ("DECIMAL(38,0)", "decimal(38,0)"),
}
_SCALARS = {**_SAME, **_WIDENED}
_CASTS = {
    # Each of these loses something, or makes text of it: the model's author is the one to say so.
    "timestamp_ns": "CAST({} AS TIMESTAMP), which drops what is finer than a microsecond",
    "time_ns": "CAST({} AS TIME), which drops what is finer than a microsecond",
    "time with time zone": "CAST({} AS TIME), which drops the offset, or CAST({} AS VARCHAR)",
    "bignum": "CAST({} AS DECIMAL(38,0)), which fails on more digits, or CAST({} AS VARCHAR)",
    "union": "union_extract({}, 'a_member') for each member, or CAST({} AS VARCHAR)",
    "geometry": "ST_AsWKB({}) or ST_AsText({})",
    "variant": "CAST({} AS JSON)",
}
_CASTS_INSIDE = {
    # What a field inside a column is cast to, as part of the whole column's type; text if it is not here.
    "timestamp_ns": "TIMESTAMP",
    "time_ns": "TIME",
    "time with time zone": "TIME",
    "bignum": "DECIMAL(38,0)",
    "variant": "JSON",
}
_LOSSES_INSIDE = {
    "timestamp_ns": "drops what is finer than a microsecond",
    "time_ns": "drops what is finer than a microsecond",
    "time with time zone": "drops the offset",
    "bignum": "fails on more than 38 digits",
}
MAX_NAME_BYTES = 255
"""AWS Glue's limit for a column's name: https://docs.aws.amazon.com/glue/latest/webapi/API_Column.html."""

_RESERVED = ("__duckdb_field_id",)
"""What DuckDB's FIELD_IDS option takes for itself."""


@dataclass(frozen=True, kw_only=True)
class ColumnType:
    """A column as it is published: the SQL type to cast to, Iceberg's name for it, and what is nested inside."""

    sql: str
    iceberg: str
    children: Mapping[str, ColumnType] = field(default_factory=dict)


def column_types(names: Sequence[str], types: Sequence[DuckDBPyType], *, relation: str) -> dict[str, ColumnType]:
    """How a relation's columns are published. Raises `SchemaError` for a name or a type that Iceberg cannot keep."""
    check_names(names, of=relation)
    columns = {
        name: column_type(dtype, relation=relation, column=name) for name, dtype in zip(names, types, strict=True)
    }
    check_paths(columns, of=relation)
    return columns


def check_paths(columns: Mapping[str, ColumnType], *, of: str) -> None:
    """Raises `SchemaError` for two columns or fields of one full name."""
    seen: set[str] = set()
    for path in _paths("", columns):
        # Iceberg's libraries find a field by its names joined with dots.
        if path in seen:
            raise SchemaError(
                f"{of}.{path}: expected one column of this full name, got two: one has a dot in its name",
                subject=f"{of}.{path}",
                hint="write another name without a dot (AS ...)",
            )
        seen.add(path)


def check_names(names: Iterable[str], *, of: str) -> None:
    """Raises `SchemaError` for a name that is empty, too long or unprintable, and for two that fold into one."""
    folded: dict[str, str] = {}
    for name in names:
        problem = _problem(name)
        if problem:
            raise SchemaError(
                f"{of}: expected a column's or a field's name {problem}, got {name!r}",
                subject=of,
                hint="write another name (AS ...); for a struct, {'name': value}",
            )
        other = folded.get(name.lower())
        folded[name.lower()] = name
        if other is not None:
            raise SchemaError(
                f"{of}: expected names that differ in more than case, got {other!r} and {name!r}",
                subject=of,
                hint="write another name for one of them (AS ...): DuckDB and Athena take both for one",
            )


def _problem(name: str) -> str | None:
    if not name:
        return "of at least one character"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"of at most {MAX_NAME_BYTES} bytes in UTF-8"
    if any(unicodedata.category(each) in ("Cc", "Zl", "Zp") for each in name):
        return "without control characters or line breaks"
    if name.lower() in _RESERVED:
        return "that DuckDB does not keep for itself"
    return None


def _paths(prefix: str, columns: Mapping[str, ColumnType]) -> Iterator[str]:
    for name, each in columns.items():
        yield prefix + name
        yield from _paths(f"{prefix}{name}.", each.children)


def _known_paths(prefix: str, ids: Mapping[str, FieldIds]) -> Iterator[str]:
    for name, each in ids.items():
        yield prefix + name
        yield from _known_paths(f"{prefix}{name}.", each.children)


def leaves(columns: Mapping[str, ColumnType], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Full name and Iceberg type of each column of a Parquet file, in the file's order."""
    for name, each in columns.items():
        if each.children:
            yield from leaves(each.children, f"{prefix}{name}.")
        else:
            yield prefix + name, each.iceberg


def column_type(dtype: DuckDBPyType, *, relation: str, column: str) -> ColumnType:
    """How a DuckDB column is published. Raises `SchemaError` naming relation, column and the cast to write."""

    def refused(inside: DuckDBPyType, path: str) -> SchemaError:
        if path == column:
            cast = _CASTS.get(inside.id, "CAST({} AS VARCHAR)").replace("{}", quote(column))
        else:
            # One cast of the whole column: SQL has none for a field in its place.
            cast = f"CAST({quote(column)} AS {_castable(dtype)})"
            losses = sorted({_LOSSES_INSIDE[each] for each in _kinds(dtype) if each in _LOSSES_INSIDE})
            cast += f", which {' and '.join(losses)}" if losses else ""
        return SchemaError(
            f"{relation}.{path}: expected a type that Iceberg has, got {inside}",
            subject=f"{relation}.{path}",
            hint=f"cast it in the model, for example {cast}",
        )

    return _column_type(dtype, relation, column, refused)


def _column_type(
    dtype: DuckDBPyType, relation: str, path: str, refused: Callable[[DuckDBPyType, str], SchemaError]
) -> ColumnType:
    kind = dtype.id
    if kind in _SCALARS:
        sql, iceberg = _SCALARS[kind]
        return ColumnType(sql=sql, iceberg=iceberg)
    if kind == "decimal":
        parts = dict(dtype.children)
        return _decimal(int(str(parts["precision"])), int(str(parts["scale"])))
    if kind not in _NESTED:
        raise refused(dtype, path)
    inside = _fields(dtype)
    if kind == "struct":
        check_names(inside, of=f"{relation}.{path}")
    return _nested(
        kind, {name: _column_type(child, relation, f"{path}.{name}", refused) for name, child in inside.items()}
    )


def _decimal(precision: int, scale: int) -> ColumnType:
    return ColumnType(sql=f"DECIMAL({precision},{scale})", iceberg=f"decimal({precision},{scale})")


_NESTED = {"list": ("element",), "array": ("element",), "map": ("key", "value"), "struct": None}
"""The names that Iceberg has for what is inside; a struct's fields have their own."""


def _fields(dtype: DuckDBPyType) -> dict[str, DuckDBPyType]:
    # An array's size is told among its children, and is a rule for its values rather than one of them.
    inside = [(name, child) for name, child in dtype.children if isinstance(child, DuckDBPyType)]
    names = _NESTED[dtype.id] or [name for name, _ in inside]
    return {name: child for name, (_, child) in zip(names, inside, strict=True)}


def _kinds(dtype: DuckDBPyType) -> Iterator[str]:
    if dtype.id not in _NESTED:
        yield dtype.id
        return
    for child in _fields(dtype).values():
        yield from _kinds(child)


def _castable(dtype: DuckDBPyType) -> str:
    """The SQL type next to `dtype` that can be published."""
    kind = dtype.id
    if kind in _SCALARS or kind == "decimal":
        return str(dtype)
    if kind not in _NESTED:
        return _CASTS_INSIDE.get(kind, "VARCHAR")
    inside = {name: _castable(child) for name, child in _fields(dtype).items()}
    if kind == "struct":
        return "STRUCT(" + ", ".join(f"{quote(name)} {child}" for name, child in inside.items()) + ")"
    return f"MAP({inside['key']}, {inside['value']})" if kind == "map" else f"{inside['element']}[]"


def _nested(kind: str, children: dict[str, ColumnType]) -> ColumnType:
    types = list(children.values())
    if kind in ("list", "array"):
        return ColumnType(sql=f"{types[0].sql}[]", iceberg=f"list<{types[0].iceberg}>", children=children)
    if kind == "map":
        return ColumnType(
            sql=f"MAP({types[0].sql}, {types[1].sql})",
            iceberg=f"map<{types[0].iceberg}, {types[1].iceberg}>",
            children=children,
        )
    return ColumnType(
        sql="STRUCT(" + ", ".join(f"{quote(name)} {child.sql}" for name, child in children.items()) + ")",
        iceberg="struct<" + ", ".join(f"{name}: {child.iceberg}" for name, child in children.items()) + ">",
        children=children,
    )


_WIDER = {("int", "long"), ("float", "double")}
"""Iceberg's promotions: https://iceberg.apache.org/spec/#schema-evolution. Decimals may get more digits besides."""
_DECIMAL = re.compile(r"decimal\((\d+), ?(\d+)\)")


def fit(column: ColumnType, known: str) -> ColumnType | None:
    """The wider of a column and the Iceberg type that its table has for it; None where neither can become the other."""
    known = known.replace(", ", ",") if _DECIMAL.fullmatch(known) else known
    if known == column.iceberg or _widens(known, column.iceberg):
        return column
    if not _widens(column.iceberg, known):
        return None
    decimal = _DECIMAL.fullmatch(known)
    if decimal:
        return _decimal(int(decimal[1]), int(decimal[2]))
    return next(ColumnType(sql=sql, iceberg=iceberg) for sql, iceberg in _SAME.values() if iceberg == known)


def _widens(narrow: str, wide: str) -> bool:
    one, other = _DECIMAL.fullmatch(narrow), _DECIMAL.fullmatch(wide)
    if one and other:
        return one[2] == other[2] and int(one[1]) <= int(other[1])
    return (narrow, wide) in _WIDER


def fit_columns(columns: Mapping[str, ColumnType], known: Mapping[str, str], *, relation: str) -> dict[str, ColumnType]:
    """Each column in the wider of its own type and its table's. Raises `SchemaError` where there is none."""
    fitted = {}
    for name, column in columns.items():
        wider = fit(column, known[name]) if name in known else column
        if wider is None:
            raise SchemaError(
                f"{relation}.{name}: expected the table's type {known[name]}, or one that Iceberg widens to or from "
                f"it, got {column.iceberg}",
                subject=f"{relation}.{name}",
                hint=f"cast it in the model to what the table has, or publish it under a new name ({quote(name)} AS "
                "...): Iceberg widens int to long, float to double and decimals of one scale",
            )
        fitted[name] = wider
    return fitted


def field_ids(
    columns: Mapping[str, ColumnType], known: Mapping[str, FieldIds], last_field_id: int, *, relation: str
) -> dict[str, FieldIds]:
    """Ids for `columns`: a known column keeps its own; new ones get the next, as pyiceberg will give them out.

    pyiceberg numbers a new table level by level, and a column added to a table together with what is nested in it.
    Raises `SchemaError` where a known column has other fields inside now.
    """
    for name in columns.keys() & known.keys():
        came, expected = list(_paths("", columns[name].children)), list(_known_paths("", known[name].children))
        if set(came) != set(expected):
            raise SchemaError(
                f"{relation}.{name}: expected the fields {expected} that the table has inside, got {came}",
                subject=f"{relation}.{name}",
                hint="publish a column of other fields under a new name: no old row could be read as the new kind",
            )
    fresh = iter(range(last_field_id + 1, 2**31))
    if not known:
        return _level(columns, fresh)
    return {name: known[name] if name in known else _level({name: kind}, fresh)[name] for name, kind in columns.items()}


def _level(columns: Mapping[str, ColumnType], fresh: Iterator[int]) -> dict[str, FieldIds]:
    own = {name: next(fresh) for name in columns}
    return {name: FieldIds(id=own[name], children=_level(kind.children, fresh)) for name, kind in columns.items()}


def field_ids_sql(ids: Mapping[str, FieldIds]) -> str:
    """The value of COPY's FIELD_IDS option: https://duckdb.org/docs/stable/data/parquet/tips."""
    return "{" + ", ".join(f"{_literal(name)}: {_ids_sql(each)}" for name, each in ids.items()) + "}"


def _ids_sql(ids: FieldIds) -> str:
    if not ids.children:
        return str(ids.id)
    inside = [f"__duckdb_field_id: {ids.id}"]
    inside += [f"{_literal(name)}: {_ids_sql(child)}" for name, child in ids.children.items()]
    return "{" + ", ".join(inside) + "}"


def cast_columns(columns: Mapping[str, ColumnType]) -> str:
    """The columns in the types that they are published in, for a SELECT."""
    return ", ".join(f"CAST({quote(name)} AS {kind.sql}) AS {quote(name)}" for name, kind in columns.items())


def free_name(name: str, taken: Iterable[str]) -> str:
    """`name`, made longer until no name of `taken` is the same to DuckDB."""
    folded = {each.lower() for each in taken}
    while name in folded:
        name += "_"
    return name


def quote(identifier: str) -> str:
    """An SQL identifier, quoted."""
    return '"' + identifier.replace('"', '""') + '"'


def quote_relation(relation: str) -> str:
    """`schema.name` with each part quoted."""
    return ".".join(quote(part) for part in relation.split("."))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def literal(text: str) -> str:
    """An SQL string literal."""
    return _literal(text)


def literals(texts: Sequence[str]) -> str:
    """An SQL list of string literals."""
    return "[" + ", ".join(_literal(text) for text in texts) + "]"
