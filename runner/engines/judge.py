"""The one pass over all rows: each is read as the contract's types, held to its rules, and kept with those it broke.

Rows stream in as text and are stored once, with their values and the names of the rules that they broke alone. What
takes several rows to tell (copies, foreign keys) is asked of that table afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import duckdb
import pyarrow as pa

from runner.engines.contracts.contract import RESERVED_COLUMNS, Contract
from runner.engines.contracts.drift import Layout
from runner.engines.contracts.rules import Bound, ForeignKey, RowRule, UniqueRule, raw, text, value
from runner.engines.files.records import Batch, schema_of
from runner.engines.scratch import reason
from runner.engines.types import literal, literals, quote, quote_relation
from runner.model.errors import LogicError, SchemaError, SpecError

_FAMILIES = {
    "VARCHAR": {"varchar", "enum"},
    "BOOLEAN": {"boolean"},
    "DATE": {"date"},
    "TIMESTAMP": {"timestamp"},
    "TIMESTAMPTZ": {"timestamp with time zone"},
}
_NUMBERS = {"integer", "bigint", "decimal", "double", "float"}
"""Types of another table's columns that a number here can equal; Iceberg has no others."""


_INCOMING = "incoming"
"""What batches are called while a statement takes them."""


@dataclass(frozen=True, kw_only=True)
class Tolerated:
    """How many rows broke a rule that some may break, of how many that are to be loaded."""

    name: str
    bound: Bound
    rows: int
    of: int

    @property
    def holds(self) -> bool:
        return self.bound.holds(self.rows, of=self.of)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of it, by rule."""

    broken: dict[str, int]
    """How many rows break each rule that makes a row bad."""
    tolerated: tuple[Tolerated, ...]


@dataclass(frozen=True, kw_only=True)
class SqlRows:
    """Rows that DuckDB reads itself: an SQL source with a column `_line`, and SQL of the layout's columns as text."""

    source: str
    texts: Sequence[str]
    native: frozenset[int]
    """Columns whose text DuckDB wrote: a contract's format of times says nothing of those."""

    @property
    def incoming(self) -> str:
        columns = ", ".join(f"{sql} AS {raw(index)}" for index, sql in enumerate(self.texts))
        return (
            "(SELECT _line, CAST(NULL AS VARCHAR[]) AS _found, CAST(NULL AS VARCHAR) AS _text, true AS _parsed, "
            f"{columns} FROM {self.source})"
        )


class Rows:
    """The rows of all files, judged. Positions of rows are their `rowid`: DuckDB keeps the order they came in."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        contract: Contract,
        layout: Layout,
        nulls: Sequence[str],
        *,
        tables: Sequence[str] = (),
    ) -> None:
        """`tables` are the views that foreign keys may refer to. Raises `SpecError` where one is missing."""
        self._connection = connection
        self._contract = contract
        self._layout = layout
        self._nulls = ", ".join(map(literal, nulls))
        self._tables = {key: _table_of(key, tables) for key in contract.foreign_keys}
        self._clean = True
        self.loaded = 0
        """How many rows are good. Known when settled."""
        self._files = 0
        self._width = layout.width
        self._rules = [rule for rule in contract.row_rules if rule.broken != "false"]
        values = ", ".join(f"{value(index)} {column.type}" for index, column in enumerate(contract.columns))
        # Texts are kept of bad rows alone: of all they would cost more than all rules.
        connection.execute(
            "CREATE TABLE records (_file INTEGER, _line BIGINT, _rules VARCHAR[], _tolerated VARCHAR[], _text VARCHAR, "
            f"_came VARCHAR[], {values})"
        )
        connection.execute("CREATE TABLE later (_at BIGINT, position INTEGER)")
        connection.execute("CREATE TABLE came (_at BIGINT, texts VARCHAR[])")

    def add(self, rows: Iterator[Batch] | SqlRows, *, keep_texts: bool = False) -> int:
        """Judge and keep the next file's records; returns how many there were.

        `keep_texts` keeps the texts of good rows too, where lines would not tell the rows apart in `recall`.
        """
        begin = self._count("SELECT count(*) FROM records")
        if isinstance(rows, SqlRows):
            self._insert(rows.incoming, width=len(rows.texts), native=rows.native)
            count = self._count("SELECT count(*) FROM records") - begin
        else:
            count = 0
            for width, some in _alike(rows):
                insert = partial(self._insert, width=width, keep_texts=keep_texts)
                count += self._stream(some, schema_of(width), insert)
        self._files += 1
        return count

    def lines_to_recall(self, file: int) -> Sequence[int]:
        """Lines of a file, by its number, whose texts are wanted again. Known when settled."""
        found = self._connection.execute(self._wanted("_line", file) + " ORDER BY ALL").fetchall()
        return [int(line) for (line,) in found]

    def recall(self, rows: Iterator[Batch] | SqlRows, *, file: int) -> None:
        """Keep the texts of rows that turned out bad only when all rows were there, of a file that is read again."""
        texts = f"[{', '.join(map(raw, range(self._width)))}]"
        wanted = self._wanted("rowid AS _at, _line", file)

        def insert(incoming: str) -> None:
            self._connection.execute(
                f"INSERT INTO came SELECT _at, {texts} FROM {incoming} JOIN ({wanted}) USING (_line)"
            )

        if isinstance(rows, SqlRows):
            insert(rows.incoming)
        else:
            self._stream((batch.rows for batch in rows), schema_of(self._width), insert)

    def _wanted(self, columns: str, file: int) -> str:
        return (
            f"SELECT {columns} FROM records WHERE _file = {file} AND _came IS NULL AND rowid IN (SELECT _at FROM later)"
        )

    def _stream(self, batches: Iterator[pa.RecordBatch], schema: pa.Schema, run: Callable[[str], object]) -> int:
        """Run a statement over batches, by the name it is given; returns how many rows there were."""
        count = 0
        raised: list[BaseException] = []

        def counted() -> Iterator[pa.RecordBatch]:
            nonlocal count
            try:
                for batch in batches:
                    count += batch.num_rows
                    yield batch
            except BaseException as exc:  # noqa: BLE001 - DuckDB would make text of it; it is raised again below
                raised.append(exc)

        self._connection.register(_INCOMING, pa.RecordBatchReader.from_batches(schema, counted()))
        try:
            run(_INCOMING)
        finally:
            self._connection.unregister(_INCOMING)
        if raised:
            raise raised[0]
        return count

    def _insert(
        self, incoming: str, *, width: int, native: frozenset[int] = frozenset(), keep_texts: bool = False
    ) -> None:
        for index in range(self._width, width):
            self._connection.execute(f"ALTER TABLE records ADD COLUMN {value(index)} VARCHAR")
        self._width = max(self._width, width)
        columns = ["_file", "_line", "_rules", "_tolerated", "_text", "_came", *map(value, range(width))]
        query = self._judged(incoming, width, native, keep_texts=keep_texts)
        try:
            self._connection.execute(f"INSERT INTO records ({', '.join(columns)}) {query}")
        except (duckdb.ConversionException, duckdb.OutOfRangeException, duckdb.InvalidInputException) as exc:
            sql = [rule.name for rule in self._rules if rule.is_sql]
            # Of rows that DuckDB reads itself it can be the file that is invalid.
            if not sql or (incoming != _INCOMING and isinstance(exc, duckdb.InvalidInputException)):
                raise
            raise LogicError(
                f"rule {' or '.join(sql)}: expected true or false for every row, got: {reason(exc)}",
                subject=sql[0],
                hint="SQL judges rows that break other rules too: guard it (CASE WHEN, TRY_CAST, TRY)",
            ) from exc

    def _judged(self, incoming: str, width: int, native: frozenset[int], *, keep_texts: bool) -> str:
        contract, rules = self._contract, self._rules
        texts, casts, values = [], [], []
        for index in range(width):
            texts.append(f"{_without(raw(index), self._nulls)} AS {text(index)}")
            column = contract.columns[index] if index < len(contract.columns) else None
            if column is None or column.type == "VARCHAR":
                values.append(f"{text(index)} AS {value(index)}")
                continue
            if index in native:
                column = replace(column, form=None)
            casts.append(f"{column.cast(text(index))} AS cast_{index}")
            exact = column.is_exact(text(index), f"cast_{index}")
            values.append(f"CASE WHEN {exact} THEN cast_{index} END AS {value(index)}")
        flags = [f"{rule.broken} AS broken_{at}" for at, rule in enumerate(rules)]
        strict = [at for at, rule in enumerate(rules) if rule.bound is None]
        tolerant = [at for at, rule in enumerate(rules) if rule.bound is not None]
        # A null of a rule is neither true nor false, and CASE and OR take it for the latter.
        bad = " OR ".join(f"broken_{at}" for at in strict) or "false"
        some = " OR ".join(f"broken_{at}" for at in tolerant) or "false"
        # One step builds on the other: DuckDB computes what is named in a subquery once.
        source = incoming
        for step in (texts, casts, values, flags, [f"coalesce(_parsed AND ({bad}), false) AS _bad"]):
            source = f"(SELECT *, {', '.join(step)} FROM {source})" if step else source
        found = "coalesce(_found, [])"
        named = f"list_filter({self._named(strict)}, lambda rule: NOT list_contains({found}, rule))"
        came = "_parsed" if keep_texts else "_bad OR (_found IS NOT NULL AND _parsed)"
        kept = [
            str(self._files),
            "_line",
            f"CASE WHEN _bad THEN {found} || {named} ELSE _found END",
            f"CASE WHEN _parsed AND ({some}) THEN {self._named(tolerant)} END" if tolerant else "NULL",
            "_text",
            f"CASE WHEN {came} THEN [{', '.join(map(raw, range(width)))}] END",
            *map(value, range(width)),
        ]
        return f"SELECT {', '.join(kept)} FROM {source}"

    def _named(self, places: Sequence[int]) -> str:
        if not places:
            return "CAST([] AS VARCHAR[])"
        names = ", ".join(f"CASE WHEN broken_{at} THEN {literal(self._rules[at].name)} END" for at in places)
        return f"list_filter([{names}], lambda rule: rule IS NOT NULL)"

    # --- what takes several rows -----------------------------------------------------------------------------

    def settle(self) -> Verdict:
        """Find copies and references to nothing among all rows, and count. Once, after the last row."""
        contract = self._contract
        for position, key in enumerate(contract.foreign_keys):
            self._find_orphans(position, key)
        copies = [rule for rule in contract.unique if rule.bound is None]
        orphans = self._count("SELECT count(*) FROM later")
        sound = "_rules IS NULL" + (" AND rowid NOT IN (SELECT _at FROM later)" if orphans else "")
        # Of all unique rules at once: a row that breaks one still counts as first for another.
        found = [self._copies(rule, sound) for rule in copies]
        for position, query in enumerate(found, len(contract.foreign_keys)):
            self._connection.execute(f"CREATE TABLE copies_{position} AS {query}")
        for position in range(len(contract.foreign_keys), len(contract.foreign_keys) + len(found)):
            self._connection.execute(f"INSERT INTO later SELECT _at, {position} FROM copies_{position}")
            self._connection.execute(f"DROP TABLE copies_{position}")
        self._clean = not self._count("SELECT count(*) FROM later")
        self.loaded = self._count(f"SELECT count(*) FROM records WHERE {self._good}")
        return Verdict(broken=self._broken(), tolerated=tuple(self._tolerated()))

    def _find_orphans(self, position: int, key: ForeignKey) -> None:
        places = [self._layout.places[name] for name in key.columns]
        values = [value(place) for place in places]
        relation = quote_relation(self._tables[key])
        described = self._connection.sql(f"FROM {relation}")
        kinds = dict(zip([name.lower() for name in described.columns], described.types, strict=True))
        for name, there in zip(key.columns, key.keys, strict=True):
            kind = kinds.get(there.lower())
            ours = next(column.type for column in self._contract.columns if column.name == name)
            family = _FAMILIES.get(ours, _NUMBERS)
            if kind is None or kind.id not in family:
                raise SchemaError(
                    f"{key.name}: expected a column {there} of {key.table} that {name} ({ours}) can equal, "
                    f"got {'none' if kind is None else kind}",
                    subject=key.name,
                )
        equal = " AND ".join(f"{mine} = theirs.{quote(there)}" for mine, there in zip(values, key.keys, strict=True))
        present = " AND ".join(f"{mine} IS NOT NULL" for mine in values)
        self._connection.execute(
            f"INSERT INTO later SELECT rowid, {position} FROM records WHERE {present} "
            f"AND NOT EXISTS (SELECT 1 FROM {relation} theirs WHERE {equal})"
        )

    def referred(self) -> Sequence[str]:
        """The views that foreign keys refer to."""
        return list(dict.fromkeys(self._tables.values()))

    def _copies(self, rule: UniqueRule, among: str) -> str:
        """SQL of the positions of rows that are like an earlier one in the rule's columns."""
        values = [value(self._layout.places[name]) for name in rule.columns]
        keys = [f"key_{index}" for index in range(len(values))]
        named = ", ".join(f"{mine} AS {key}" for mine, key in zip(values, keys, strict=True))
        present = " AND ".join(f"{mine} IS NOT NULL" for mine in values)
        # Twice over the rows rather than a window over all of them: few have copies, and a group can spill to disk.
        sound = f"SELECT rowid AS _at, {named} FROM records WHERE {among} AND {present}"
        return (
            f"WITH firsts AS (SELECT {', '.join(keys)}, min(_at) AS first FROM ({sound}) GROUP BY ALL "
            f"HAVING count(*) > 1) SELECT _at FROM ({sound}) JOIN firsts USING ({', '.join(keys)}) WHERE _at > first"
        )

    def _broken(self) -> dict[str, int]:
        rows = self._connection.execute(
            "SELECT rule, count(*) FROM (SELECT unnest(_rules) AS rule FROM records WHERE _rules IS NOT NULL) "
            "GROUP BY ALL"
        ).fetchall()
        broken = Counter({str(rule): int(count) for rule, count in rows})
        late = self._late_names()
        for position, count in self._connection.execute("SELECT position, count(*) FROM later GROUP BY ALL").fetchall():
            broken[late[position]] += count
        return dict(broken)

    def _late_names(self) -> list[str]:
        copies = [rule.name for rule in self._contract.unique if rule.bound is None]
        return [key.name for key in self._contract.foreign_keys] + copies

    def _tolerated(self) -> Iterator[Tolerated]:
        good, of = self._good, self.loaded
        counted: dict[str, int] = {}
        if any(rule.bound is not None for rule in self._rules):
            counted = dict(
                self._connection.execute(
                    "SELECT rule, count(*) FROM (SELECT unnest(_tolerated) AS rule FROM records "
                    f"WHERE _tolerated IS NOT NULL AND {good}) GROUP BY ALL"
                ).fetchall()
            )
        several: list[RowRule | UniqueRule] = [*self._contract.values, *self._contract.unique]
        for rule in several:
            if rule.bound is None:
                continue
            if isinstance(rule, RowRule):
                rows = counted.get(rule.name, 0)
            else:
                rows = self._count(f"SELECT count(*) FROM ({self._copies(rule, good)})")
            yield Tolerated(name=rule.name, bound=rule.bound, rows=rows, of=of)
        for row_count in self._contract.row_counts:
            yield Tolerated(name=row_count.name, bound=row_count.bound, rows=of, of=of)

    # --- what is published -----------------------------------------------------------------------------------

    @property
    def _good(self) -> str:
        return "_rules IS NULL" + ("" if self._clean else " AND rowid NOT IN (SELECT _at FROM later)")

    @property
    def good(self) -> str:
        """SQL of the rows that are to be loaded, in the order they came in."""
        columns = ", ".join(f"{value(index)} AS {quote(name)}" for index, name in enumerate(self._layout.names))
        # Without a join DuckDB keeps the order as it is, and to sort a million rows costs more than all rules.
        return f"(SELECT {columns} FROM records WHERE {self._good}{'' if self._clean else ' ORDER BY rowid'})"

    def bad(self, files: Sequence[str]) -> str:
        """SQL of the rows that go to quarantine, as they came, with the rules they broke."""
        texts, names, source, where = "_came", "_rules", "records", "_rules IS NOT NULL"
        if not self._clean:
            late = ", ".join(
                f"CASE WHEN bool_or(position = {position}) THEN {literal(name)} END"
                for position, name in enumerate(self._late_names())
            )
            # Not list(name), which cannot spill to disk: in a file loaded twice half the rows are copies.
            source = (
                "records LEFT JOIN (SELECT _at, list_filter([" + late + "], lambda rule: rule IS NOT NULL) AS late "
                "FROM later GROUP BY _at) AS later ON later._at = records.rowid "
                "LEFT JOIN came ON came._at = records.rowid"
            )
            texts, names = "coalesce(_came, texts)", "coalesce(_rules, []) || coalesce(late, [])"
            where += " OR late IS NOT NULL"
        source_file, line, rules, came = RESERVED_COLUMNS
        columns = ", ".join(f"_texts[{index + 1}] AS {quote(name)}" for index, name in enumerate(self._layout.names))
        return (
            # The cast is for a list without files, which has no type.
            f"(SELECT CAST({literals(files)}[_file + 1] AS VARCHAR) AS {source_file}, _line AS {line}, "
            f"_names AS {rules}, _text AS {came}, {columns} FROM (SELECT _file, _line, _text, records.rowid AS _at, "
            f"{names} AS _names, {texts} AS _texts FROM {source} WHERE {where}) ORDER BY _at)"
        )

    def _count(self, query: str) -> int:
        row = self._connection.execute(query).fetchone()
        return int(row[0]) if row else 0


def _alike(batches: Iterator[Batch]) -> Iterator[tuple[int, Iterator[pa.RecordBatch]]]:
    """Batches of one width at a time: the table has to be altered before wider ones."""
    following = next(batches, None)

    def of_width(first: Batch) -> Iterator[pa.RecordBatch]:
        nonlocal following
        batch: Batch | None = first
        while batch is not None and batch.width == first.width:
            yield batch.rows
            batch = next(batches, None)
        following = batch

    while following is not None:
        yield following.width, of_width(following)


def _without(text: str, nulls: str) -> str:
    return f"CASE WHEN {text} NOT IN ({nulls}) THEN {text} END" if nulls else text


def _table_of(key: ForeignKey, tables: Sequence[str]) -> str:
    found = [name for name in tables if name == key.table]
    found = found or [name for name in tables if name.rpartition(".")[2] == key.table]
    if len(found) != 1:
        raise SpecError(
            f"{key.name}: expected exactly one input that is called {key.table}, got {', '.join(found) or 'none'}",
            subject=key.name,
            hint="give the table among the job's inputs; the contract calls it by its `as`, or the last part of that",
        )
    return found[0]
