"""csv-reader: what DuckDB's CSV reader and ours make of the same broken files. docs/decisions/005 draws on it.

Reads four small files with a fault each, then `--files` of 200 lines with up to five faults sown in by a seeded
generator. Of every file it is known how many lines it has, so a reader that loses some shows.
"""

from __future__ import annotations

import argparse
import io
import random
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from runner.engines.contracts.contract import Contract, ContractColumn
from runner.engines.contracts.drift import Layout
from runner.engines.contracts.rules import raw
from runner.engines.files.decoding import Utf8Stream
from runner.engines.files.records import Lines, read_csv

COLUMNS = ("id", "name", "town")
ROWS = 200
NAMED = {
    "a trailing delimiter": "id,name,town\n1,Ada,London\n2,Grace,New York,\n3,Edsger,Nuenen\n",
    "a field too few": "id,name,town\n1,Ada,London\n2,Grace\n3,Edsger,Nuenen\n",
    "a stray quote": 'id,name,town\n1,Ada,London\n2,"Grace,New York\n3,Edsger,Nuenen\n4,Alan,London\n',
    "mixed line ends": "id,name,town\n1,Ada,London\r\n2,Grace,New York\n3,Edsger,Nuenen\r\n",
}

Outcome = tuple[list[tuple[str | None, ...]], int] | str
"""The good rows and the number of bad lines; or why the reader gave up."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=60)
    files = parser.parse_args().files
    print(f"DuckDB {duckdb.__version__}: read_csv with columns given, auto_detect off, store_rejects on\n")
    with TemporaryDirectory(prefix="stage-runner-bench-") as folder:
        path = Path(folder) / "file.csv"
        for name, text in NAMED.items():
            path.write_bytes(text.encode())
            print(f"{name:<24}DuckDB {_words(_by_duckdb(path)):<20}ours {_words(_by_python(path))}")
        verdicts: Counter[str] = Counter()
        for seed in range(files):
            path.write_bytes(_file(random.Random(seed)).encode())  # noqa: S311 - repeatable, no secret
            verdicts[_verdict(_by_duckdb(path), _by_python(path))] += 1
    print(f"\n{files} files of {ROWS} lines: " + ", ".join(f"{verdicts[each]} {each}" for each in sorted(verdicts)))


def _file(chance: random.Random) -> str:
    lines = [f"{number},name {chance.randrange(1000)},town {chance.randrange(1000)}" for number in range(ROWS)]
    for _ in range(chance.randrange(6)):
        at = chance.randrange(ROWS)
        whole = lines[at]
        faults = (f"{whole},", whole.rpartition(",")[0], whole.replace(",", ',"', 1), f"{whole}\r")
        lines[at] = chance.choice(faults)
    return "\n".join([",".join(COLUMNS), *lines, ""])


def _verdict(theirs: Outcome, ours: Outcome) -> str:
    if isinstance(ours, str) or len(ours[0]) + ours[1] != ROWS:
        raise AssertionError(f"expected each of {ROWS} lines to be good or bad by our reader, got {_words(ours)}")
    if theirs == ours:
        return "alike"
    if isinstance(theirs, str):
        return "on which DuckDB gives up"
    return "of which DuckDB loses lines" if len(theirs[0]) + theirs[1] < ROWS else "with other good rows"


def _by_duckdb(path: Path) -> Outcome:
    columns = ", ".join(f"'{name}': 'VARCHAR'" for name in COLUMNS)
    with duckdb.connect() as connection:
        try:
            rows = connection.execute(
                f"SELECT * FROM read_csv('{path}', columns = {{{columns}}}, header = true, auto_detect = false, "
                "delim = ',', quote = '\"', escape = '\"', store_rejects = true)"
            ).fetchall()
        except duckdb.Error as exc:
            return str(exc)
        rejected = connection.execute("SELECT count(DISTINCT line) FROM reject_errors").fetchone()
    return rows, rejected[0] if rejected else 0


def _by_python(path: Path) -> Outcome:
    columns = tuple(ContractColumn(name=name, type="VARCHAR", required=False) for name in COLUMNS)
    layout = Layout(Contract(table="people", columns=columns), "here")
    lines = Lines(Utf8Stream(io.BytesIO(path.read_bytes()), path.name, "none", "utf-8"), "utf-8")
    good: list[tuple[str | None, ...]] = []
    bad = 0
    for batch in read_csv(lines, layout, delimiter=",", name=path.name):
        for row in batch.rows.to_pylist():
            if row["_parsed"]:
                good.append(tuple(row[raw(index)] for index in range(len(COLUMNS))))
            else:
                bad += 1
    return good, bad


def _words(outcome: Outcome) -> str:
    return "gives up" if isinstance(outcome, str) else f"{len(outcome[0])} good, {outcome[1]} bad"


if __name__ == "__main__":
    main()
