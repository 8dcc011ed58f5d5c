"""The table of all results in docs/benchmarks.md, made of benchmarks/results: `python -m benchmarks.table`."""

from __future__ import annotations

import json
import sys

from benchmarks.harness import RESULTS, ROOT, Result

PAGE = ROOT / "docs" / "benchmarks.md"
_BEGIN, _END = "<!-- results -->\n", "<!-- end of results -->"
_HEAD = "| benchmark | value | goal | unit | met | commit | machine | date |\n|---|---|---|---|---|---|---|---|\n"


def main() -> int:
    PAGE.write_text(with_results(PAGE.read_text("utf-8"), read()), "utf-8")
    return 0


def read() -> list[Result]:
    """All results, by name."""
    return [Result(**json.loads(path.read_text("utf-8"))) for path in sorted(RESULTS.glob("*.json"))]


def with_results(page: str, results: list[Result]) -> str:
    """The page with these results in the place of those that it has."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name}: expected a place between {_BEGIN.strip()} and {_END}, got none")
    return before + begin + _HEAD + "".join(map(_row, results)) + end + after


def _row(result: Result) -> str:
    met = "yes" if result.met else "**no**"
    cells = (
        f"`{result.name}`",
        f"{result.value:g}",
        f"{result.goal:g}",
        result.unit,
        met,
        f"`{result.commit}`",
        result.machine,
        result.date,
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.exit(main())
