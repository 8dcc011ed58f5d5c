"""Columns that files have and the contract has not, and the other way round: what becomes of them, by its choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runner.engines.contracts.contract import RESERVED_COLUMNS, Contract
from runner.engines.types import MAX_NAME_BYTES
from runner.model.errors import SchemaError
from runner.model.manifest import Step

MAX_ADDED_COLUMNS = 100
"""In one load. Keys that are data (`{"2026-11-21": 7}`) would be columns without end."""


class Layout:
    """The columns that rows are read into: the contract's in its order, then those that files brought."""

    def __init__(self, contract: Contract, what: str) -> None:
        """`what` is the contract's path, for messages."""
        self.contract = what
        self.drift = contract.drift
        self.names = [column.name for column in contract.columns]
        self._required = {column.name for column in contract.columns if column.required}
        self._stated = len(self.names)
        self._folded = {name.lower(): name for name in self.names}
        self.places = {name: index for index, name in enumerate(self.names)}
        self._told: dict[tuple[str, str], str] = {}

    @property
    def width(self) -> int:
        return len(self.names)

    @property
    def added(self) -> Sequence[str]:
        """What files brought, as VARCHAR, in the order in which it came."""
        return self.names[self._stated :]

    def adopt(self, present: Sequence[str], *, expected: str, subject: str) -> list[int | None]:
        """For each column of a file, its place among the names; None for one that is dropped.

        Raises `SchemaError`, which begins with `expected`, where the contract's choice does not take them.
        """
        stated = self.names[: self._stated]
        missing = [name for name in stated if name not in present]
        unknown = [name for name in present if name not in self.places]
        refused = len(set(present)) != len(present) or any(name in self._required for name in missing)
        if refused or (self.drift == "freeze" and (missing or unknown)):
            raise SchemaError(f"{expected}, {difference(present, stated)}", subject=subject, hint=self._hint(missing))
        for name in missing:
            self._tell("missing", name, subject)
        return [self.place(name, subject) for name in present]

    def place(self, name: str, file: str) -> int | None:
        """A column's place among the names; None for one that is dropped. Only for a drift that is not `freeze`.

        Raises `SchemaError` for a new one that cannot be a column.
        """
        known = self.places.get(name)
        if known is not None:
            return known
        if self.drift == "discard":
            self._tell("discarded", name[:100], file)
            return None
        self._add(name, file)
        return self.places[name]

    def steps(self) -> Iterator[Step]:
        """What was done about columns, for the manifest."""
        for (done, name), file in self._told.items():
            message = f"by drift: {self.drift}, first in {file}"
            yield Step(kind="drift", name=f"{done}({name})", status="warn", message=message)

    def _add(self, name: str, file: str) -> None:
        other = self._folded.get(name.lower())
        expected = None
        if not name.strip() or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
            expected = f"a new column's name of 1 to {MAX_NAME_BYTES} printable bytes"
        elif name.lower() in RESERVED_COLUMNS:
            expected = f"a new column's name other than {', '.join(RESERVED_COLUMNS)}"
        elif other is not None:
            expected = f"a new column's name that differs from {other!r} in more than case"
        elif len(self.added) >= MAX_ADDED_COLUMNS:
            expected = f"at most {MAX_ADDED_COLUMNS} new columns"
        if expected is not None:
            raise SchemaError(
                f"{file}: expected {expected}, got {name[:100]!r}",
                subject=file,
                hint=f"name the column in {self.contract}, or state drift: discard there",
            )
        self.places[name] = len(self.names)
        self.names.append(name)
        self._folded[name.lower()] = name
        self._tell("added", name, file)

    def _tell(self, done: str, name: str, file: str) -> None:
        if len(self._told) < MAX_ADDED_COLUMNS:
            self._told.setdefault((done, name), file)

    def _hint(self, missing: Sequence[str]) -> str:
        if any(name in self._required for name in missing):
            return "a required column has to be in every file"
        return f"the table's custom property drift in {self.contract} may say evolve or discard"


def difference(got: Sequence[str], expected: Sequence[str]) -> str:
    """`got …`, and what is missing, unknown or twice in it."""
    parts = {
        "missing": [column for column in expected if column not in got],
        "unknown": [column for column in got if column not in expected],
        "twice": sorted({column for column in got if got.count(column) > 1}),
    }
    details = "; ".join(f"{part}: {', '.join(names)[:200]}" for part, names in parts.items() if names)
    return f"got {', '.join(got)[:300]} ({details})"
