"""The rules of a contract as the load stage judges them: what each looks at, and how many rows may break it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Operator = Literal[
    "mustBe",
    "mustNotBe",
    "mustBeGreaterThan",
    "mustBeGreaterOrEqualTo",
    "mustBeLessThan",
    "mustBeLessOrEqualTo",
    "mustBeBetween",
    "mustNotBeBetween",
]


def raw(index: int) -> str:
    """SQL of a column's text as it came. Columns go by number: their own names could be ours."""
    return f"raw_{index}"


def text(index: int) -> str:
    """SQL of a column's text, null where the format says that it is."""
    return f"text_{index}"


def value(index: int) -> str:
    """SQL of a column's value, null where there is none or the text is no value of the type."""
    return f"value_{index}"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How many rows may break a rule, as the standard's operators say it. The rows are counted among those loaded."""

    operator: Operator
    numbers: tuple[float, ...]
    unit: Literal["rows", "percent"] = "rows"
    severity: Literal["error", "warning"] = "error"
    """Whether a breach keeps the table back, or is told only."""

    @property
    def is_none_at_all(self) -> bool:
        """Whether not one row may break it, so that each that does is a bad row."""
        return self.severity == "error" and (
            (self.operator in ("mustBe", "mustBeLessOrEqualTo") and self.numbers == (0,))
            or (self.operator == "mustBeLessThan" and self.unit == "rows" and 0 < self.numbers[0] <= 1)
        )

    def holds(self, rows: int, *, of: int) -> bool:
        # Fractions: 0.1 percent of 1,000 rows is exactly 1.
        share = Fraction(of, 100) if self.unit == "percent" else 1
        count, first, last = rows, *(Fraction(repr(each)) * share for each in (self.numbers[0], self.numbers[-1]))
        return {
            "mustBe": count == first,
            "mustNotBe": count != first,
            "mustBeGreaterThan": count > first,
            "mustBeGreaterOrEqualTo": count >= first,
            "mustBeLessThan": count < first,
            "mustBeLessOrEqualTo": count <= first,
            "mustBeBetween": first <= count <= last,
            "mustNotBeBetween": not first <= count <= last,
        }[self.operator]

    def __str__(self) -> str:
        numbers = " and ".join(f"{number:g}" for number in self.numbers)
        return f"{self.operator} {numbers} {self.unit}"


@dataclass(frozen=True, kw_only=True)
class RowRule:
    """A rule that looks at one row. `broken` is SQL over `raw`, `text` and `value`; a null of it breaks nothing."""

    name: str
    broken: str
    bound: Bound | None = None
    """None where each row that breaks it goes to quarantine."""
    is_sql: bool = False
    """Whether the contract's own SQL is in it, which may fail on a row."""


@dataclass(frozen=True, kw_only=True)
class UniqueRule:
    """No two rows alike in these columns; a row with a null in one of them is like no other."""

    columns: tuple[str, ...]
    stated: str = "unique"
    named: str | None = None
    bound: Bound | None = None
    """None where each row but the first goes to quarantine."""

    @property
    def name(self) -> str:
        return self.named or f"{self.stated}({', '.join(self.columns)})"


@dataclass(frozen=True, kw_only=True)
class ForeignKey:
    """What these columns hold together is held by a row of another table; a null in one of them refers to nothing."""

    columns: tuple[str, ...]
    table: str
    """As the contract calls it: an input's `as`, or the last part of one."""
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"foreignKey({', '.join(self.columns)} -> {self.table}.{', '.join(self.keys)})"


@dataclass(frozen=True, kw_only=True)
class RowCount:
    """How many rows the table may have."""

    name: str
    bound: Bound
