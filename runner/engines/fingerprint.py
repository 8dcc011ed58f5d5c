"""Fingerprints: what of an output's rows is compared with a rerun's, in one pass and in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import duckdb

from runner.engines.types import ColumnType, free_name, quote
from runner.model.manifest import Fingerprint

ENGINE = f"duckdb {duckdb.__version__}"
PER_RUN_COLUMNS = ("_run_id", "_processed_at")
"""Columns that differ between a run and its rerun by their nature; fingerprints leave them out."""

_COLUMN_DIGITS = 16


def fingerprint(connection: duckdb.DuckDBPyConnection, rows: str, columns: Mapping[str, ColumnType]) -> Fingerprint:
    """Of `rows`, SQL that can stand after FROM, as what was published; `columns` in the types the logic gave them.

    A table may keep a column in a wider type than the logic's: the same rows have the same fingerprint all the same.
    """
    kept = {name: each for name, each in columns.items() if name not in PER_RUN_COLUMNS}
    names = ", ".join(f"CAST({quote(name)} AS {each.sql}) AS {quote(name)}" for name, each in kept.items()) or "NULL"
    whole = free_name("t", kept)  # or hash() would be of the column of that name alone
    # The upper half of each hash: sums of numbers that small are cheap, and they only say where two tables differ.
    halves = "".join(f", coalesce(sum((hash({quote(name)}) >> 32)::UINTEGER), 0)" for name in kept)
    row = connection.execute(
        f"SELECT count(*), coalesce(sum(hash({whole})), 0){halves} FROM (SELECT {names} FROM {rows}) {whole}"
    ).fetchone()
    count, total, *sums = row or (0, 0, *(0 for _ in kept))
    shape = ";".join(f"{name} {each.iceberg}" for name, each in kept.items())
    return Fingerprint(
        rows=count,
        hash=_digest(f"{shape}|{total}"),
        engine=ENGINE,
        columns={
            name: _digest(f"{name} {each.iceberg}|{one}")[:_COLUMN_DIGITS]
            for (name, each), one in zip(kept.items(), sums, strict=True)
        },
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
