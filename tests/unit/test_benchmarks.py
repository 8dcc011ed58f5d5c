"""Results are what the harness writes, and the page has all of them and no other."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from runner.rebuild import NOT_RESTORED

ROOT = Path(__file__).parents[2]


def _imported(name: str) -> ModuleType:
    """The root is not on the path, and comes last: it holds folders that are named like packages."""
    sys.path.append(str(ROOT))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(ROOT))


if TYPE_CHECKING:
    from benchmarks import harness, table
else:
    harness, table = _imported("benchmarks.harness"), _imported("benchmarks.table")

FIELDS = [field.name for field in fields(harness.Result)]
FILES = sorted(harness.RESULTS.glob("*.json"))
RESULT = harness.Result(
    name="speed", value=1.5, goal=2, met=True, unit="x", commit="abc", machine="m", date="2026-01-02"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_result_is_an_object_of_eight_facts_that_agree(path: Path) -> None:
    document = json.loads(path.read_text("utf-8"))
    assert list(document) == FIELDS
    result = harness.Result(**document)
    assert result.name == path.stem
    assert result.met is (result.value <= result.goal)


def test_the_page_has_every_result_as_its_file_has_it() -> None:
    page = table.PAGE.read_text("utf-8")
    assert table.with_results(page, table.read()) == page, "python -m benchmarks.table makes it anew"
    assert [f"`{path.stem}`" in page for path in FILES] == [True] * len(FILES)


def test_a_result_that_changed_shows() -> None:
    page = "before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n"
    missed = harness.Result(**asdict(RESULT) | {"name": "size", "value": 3, "met": False})
    made = table.with_results(page, [RESULT, missed])
    assert made.splitlines() == [
        "before",
        "<!-- results -->",
        "| benchmark | value | goal | unit | met | commit | machine | date |",
        "|---|---|---|---|---|---|---|---|",
        "| `speed` | 1.5 | 2 | x | yes | `abc` | m | 2026-01-02 |",
        "| `size` | 3 | 2 | x | **no** | `abc` | m | 2026-01-02 |",
        "<!-- end of results -->",
        "after",
    ]
    assert table.with_results(made, [RESULT, missed]) == made


def test_a_page_without_a_place_for_results_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a place between"):
        table.with_results("no place", [RESULT])


def test_what_a_rebuild_does_not_restore_is_on_the_ledgers_page() -> None:
    page = table.PAGE.with_name("ledger.md").read_text("utf-8")
    assert [each for each in NOT_RESTORED if f"\n- {each}\n" not in page] == []
