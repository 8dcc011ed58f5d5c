"""Why a node failed, in one line: what dbt and DuckDB said, and what of the runner's rules was behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from runner.model.spec import DbtWork

FORBIDDEN = re.compile(r"disabled (by|through) configuration|configuration has been locked")
"""How DuckDB says that the lock on its connection is why a statement failed."""
_TRACEBACK = re.compile(r"\n\s*At:\n.*", re.DOTALL)
"""What pybind11 adds to an error of the broker's file system: lines of the runner's own code."""
_NOTHING_IS_FETCHED = "nothing is fetched at run time: name the data as an input, or commit it"
_RULES: Mapping[re.Pattern[str], str] = {
    re.compile(r"requires the extension \w+ to be loaded"): _NOTHING_IS_FETCHED,
    re.compile(r"expected a file of a declared input, got a file of no declared input"): _NOTHING_IS_FETCHED,
    re.compile(r'Catalog "[^"]*" does not exist'): "the database is called {database}: work.database names it",
    re.compile(r"Plugin \w+ not found"): "profiles.yml is not read, and no plugin of dbt-duckdb's is there",
}
_NO_FILES = re.compile(r"No files found that match the pattern")
_BEGIN = "relative paths begin at the folder of dbt_project.yml; work.working_directory can be repository"


def explained(message: str, work: DbtWork) -> str:
    """dbt's message in one line, with the runner's rule that it came of, where it came of one."""
    line = one_line(_TRACEBACK.sub("", message))
    rules = [text.format(database=work.database) for pattern, text in _RULES.items() if pattern.search(line)]
    if work.working_directory == "project" and _NO_FILES.search(line):
        rules.append(_BEGIN)
    return "; ".join([line, *rules])


def one_line(text: str) -> str:
    """In at most 1,000 characters: where a traceback is longer, its end says most."""
    line = " ".join(text.split())
    return line if len(line) <= 1000 else f"{line[:300]} … {line[-690:]}"
