"""DuckDB's types as Iceberg's, without loss or not at all; and the field ids that Parquet files carry for Iceberg."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    # 38 digits hold all but the outermost HUGEINTs; the cast fails on those, so nothing is rounded.
    "hugeint": ("DECIMAL(38,0)", "decimal(38,0)"),
}
_SCALARS = {**_SAME, **_WIDENED}


@dataclass(frozen=True, kw_only=True)
class ColumnType:
    """A column as it is published: the SQL type to cast to, Iceberg's name for it, and what is nested inside."""

    sql: str
    iceberg: str
    children: Mapping[str, ColumnType] = field(default_factory=dict)


def column_type(dtype: DuckDBPyType, *, relation: str, column: str) -> ColumnType:
    """How a DuckDB column is published. Raises `SchemaError` naming relation, column and the cast to write."""
    kind = dtype.id
    if kind in _SCALARS:
        sql, iceberg = _SCALARS[kind]
        return ColumnType(sql=sql, iceberg=iceberg)
    if kind == "decimal":
        parts = dict(dtype.children)
        return ColumnType(
            sql=f"DECIMAL({parts['precision']},{parts['scale']})",
            iceberg=f"decimal({parts['precision']},{parts['scale']})",
        )
    if kind in ("list", "struct", "map"):
        names = {"list": ["element"], "map": ["key", "value"]}.get(kind) or [name for name, _ in dtype.children]
        children = {
            name: column_type(child, relation=relation, column=f"{column}.{name}")
            for name, (_, child) in zip(names, dtype.children, strict=True)
            if isinstance(child, DuckDBPyType)
        }
        return _nested(kind, children)
    raise SchemaError(
        f"{relation}.{column}: expected a type that Iceberg has, got {dtype}",
        subject=f"{relation}.{column}",
        hint=f"cast it in the model, for example CAST({quote(column)} AS VARCHAR)",
    )


def _nested(kind: str, children: dict[str, ColumnType]) -> ColumnType:
    types = list(children.values())
    if kind == "list":
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


def field_ids(
    columns: Mapping[str, ColumnType], known: Mapping[str, FieldIds], last_field_id: int
) -> dict[str, FieldIds]:
    """Ids for `columns`: a known column keeps its own; new ones get the next, as pyiceberg will give them out.

    pyiceberg numbers a new table level by level, and a column added to a table together with what is nested in it.
    """
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
    return ", ".join(f"CAST({quote(name)} AS {kind.sql}) AS {quote(name)}" for name, kind in columns.items())


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
