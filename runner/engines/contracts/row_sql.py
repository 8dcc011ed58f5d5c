"""A contract's rules in SQL: `SELECT count(*) FROM {object} WHERE …`, whose condition is judged row by row.

DuckDB's own parse tree says what is in the condition, and the SQL that runs is written anew from it: columns of the
contract, constants, operators, and functions that look at nothing but their arguments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from runner.engines.contracts.rules import value
from runner.engines.types import quote

FORM = "SELECT count(*) FROM {object} WHERE …"
_OBJECT = re.compile(r"\$?\{object\}|\$\{table\}")
_PROPERTY = re.compile(r"\$?\{property\}|\$\{column\}")
_CLASSES = {"CONJUNCTION", "COMPARISON", "OPERATOR", "FUNCTION", "COLUMN_REF", "CONSTANT", "BETWEEN", "CASE", "CAST"}
_OF_THE_SESSION = {"current_setting", "getvariable", "version", "current_user", "current_role"}
"""What DuckDB calls consistent, and depends on more than the row."""
_DEEPEST = 100
"""Expressions in expressions. DuckDB takes seconds for some hundreds, and Python cannot read its tree of a thousand."""


class UnknownSqlError(Exception):
    """The text says what was expected and what came."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    sql: str
    """Over `value(…)` of the contract's columns; a null counts as not so."""
    words: str
    """As the contract says it, in one line."""


def row_condition(
    connection: duckdb.DuckDBPyConnection, query: str, *, table: str, columns: Sequence[tuple[str, str]], of: str | None
) -> Condition:
    """The condition of a rule's query, checked. `columns` are names and types, `of` the column that the rule is on.

    Raises `UnknownSqlError` for any other form, another table or column, and what is not the row's own.
    """
    if of is None and _PROPERTY.search(query):
        raise UnknownSqlError("expected {property} only in a rule on a column, got it on the table")
    # A function, because a replacement's backslashes would be read.
    sql = _PROPERTY.sub(lambda _: quote(of or ""), _OBJECT.sub(lambda _: quote(table), query))
    node = _select(connection, sql)
    owner = _owner(node, table)
    condition = node["where_clause"]
    nodes = list(_nodes(condition))
    functions = _functions(connection)
    places = {name.lower(): index for index, (name, _) in enumerate(columns)}
    words = _written(connection, condition)
    for each in nodes:
        _check(each, functions)
        if each["class"] == "COLUMN_REF":
            names = each["column_names"]
            known = names[-1].lower() in places and (
                len(names) == 1 or [part.lower() for part in names[:-1]] == [owner]
            )
            if not known:
                raise UnknownSqlError(f"expected columns of {table}, got {'.'.join(names)}")
            each["column_names"] = [value(places[names[-1].lower()])]
    written = _written(connection, condition)
    typed = ", ".join(f"CAST(NULL AS {kind}) AS {value(index)}" for index, (_, kind) in enumerate(columns))
    try:
        described = connection.execute(f"SELECT typeof({written}) FROM (SELECT {typed})").fetchone()
    except duckdb.Error as exc:
        raise UnknownSqlError(f"expected a condition that DuckDB takes, got: {_first_line(exc)}") from exc
    if described is None or described[0] != "BOOLEAN":
        raise UnknownSqlError(f"expected a condition, true or false, got a value of type {(described or ['none'])[0]}")
    return Condition(sql=written, words=words)


def _select(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    try:
        row = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
        tree = json.loads(row[0]) if row else {"error": True}
    except duckdb.Error as exc:
        raise UnknownSqlError(f"expected {FORM}, got: {_first_line(exc)}") from exc
    except RecursionError as exc:
        raise _too_deep() from exc
    if tree.get("error"):
        raise UnknownSqlError(f"expected {FORM}, got: {tree.get('error_message', 'no SELECT')}")
    statements = tree["statements"]
    if len(statements) != 1:
        raise UnknownSqlError(f"expected {FORM}, got {len(statements)} statements")
    node: dict[str, Any] = statements[0]["node"]
    counts = [(each.get("function_name"), each.get("filter")) for each in node.get("select_list", ())]
    besides = [
        key for key in ("modifiers", "group_expressions", "group_sets", "having", "sample", "qualify") if node.get(key)
    ] + (["WITH"] if node.get("cte_map", {}).get("map") else [])
    if node["type"] != "SELECT_NODE" or counts != [("count_star", None)] or not node["where_clause"] or besides:
        raise UnknownSqlError(f"expected {FORM}, got another query{f' (with {besides[0]})' if besides else ''}")
    return node


def _owner(node: dict[str, Any], table: str) -> str:
    """What the query calls the table, in lower case."""
    source = node["from_table"]
    plain = source["type"] == "BASE_TABLE" and not source["schema_name"] and not source["catalog_name"]
    if not plain or source["table_name"].lower() != table.lower() or source["sample"] or source["column_name_alias"]:
        raise UnknownSqlError(f"expected FROM {{object}} and nothing else, got {source.get('table_name') or 'another'}")
    return str(source["alias"] or source["table_name"]).lower()


def _check(node: dict[str, Any], functions: frozenset[str]) -> None:
    if node["class"] not in _CLASSES:
        raise UnknownSqlError(f"expected a condition on one row, got {node['class'].lower()}")
    if node["class"] == "FUNCTION" and not node["is_operator"]:
        name = node["function_name"].lower()
        if node["schema"] not in ("", "main") or node["catalog"] or name not in functions:
            raise UnknownSqlError(f"expected functions whose result follows from the row alone, got {name}()")


def _functions(connection: duckdb.DuckDBPyConnection) -> frozenset[str]:
    """Scalar functions that give the same for the same arguments, today and on a rerun."""
    rows = connection.execute(
        "SELECT function_name FROM duckdb_functions() WHERE function_type = 'scalar' "
        "GROUP BY function_name HAVING bool_and(stability = 'CONSISTENT')"
    ).fetchall()
    return frozenset(name for (name,) in rows) - _OF_THE_SESSION


def _written(connection: duckdb.DuckDBPyConnection, condition: dict[str, Any]) -> str:
    """SQL of a parse tree: `SELECT <condition>`, without its SELECT."""
    node: dict[str, Any] = {
        "type": "SELECT_NODE", "modifiers": [], "cte_map": {"map": []}, "select_list": [condition],
        "from_table": {"type": "EMPTY", "alias": "", "sample": None}, "where_clause": None, "group_expressions": [],
        "group_sets": [], "aggregate_handling": "STANDARD_HANDLING", "having": None, "sample": None, "qualify": None,
    }  # fmt: skip
    tree = {"error": False, "statements": [{"node": node, "named_param_map": []}]}
    row = connection.execute("SELECT json_deserialize_sql(?)", [json.dumps(tree)]).fetchone()
    return str(row[0]).removeprefix("SELECT ") if row else ""


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    """The expressions of a tree, each before those in it. Raises `UnknownSqlError` where it is too deep."""
    waiting = [(tree, 0)]
    while waiting:
        each, depth = waiting.pop()
        if isinstance(each, dict):
            if "class" in each:
                depth += 1
                if depth > _DEEPEST:
                    raise _too_deep()
                yield each
            waiting += [(part, depth) for part in reversed(each.values())]
        elif isinstance(each, list):
            waiting += [(part, depth) for part in reversed(each)]


def _too_deep() -> UnknownSqlError:
    return UnknownSqlError(f"expected at most {_DEEPEST} expressions in each other, got more")


def _first_line(exc: duckdb.Error) -> str:
    return " ".join(str(exc).split("\n\n")[0].split())[:300]
