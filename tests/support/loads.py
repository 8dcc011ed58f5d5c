"""Loads without services: a contract and files in a folder, the engine on them, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from runner.engines import load
from runner.model.manifest import Pin
from runner.model.messages import EngineResult, FieldIds, Job, JobInput, JobOutput
from runner.model.spec import CsvFormat, JsonLinesFormat, LoadWork, Output, ParquetFormat, Resources, SourceFormat
from tests.support.engine_inputs import STAMP, LocalInputs

CSV = CsvFormat(type="csv")
JSON_LINES = JsonLinesFormat(type="jsonl")
PARQUET = ParquetFormat(type="parquet")
FOLDER = "s3://lake/landing/portal/trips/ingested_on=2026-11-21/"
LOGICAL = {
    "VARCHAR": "string",
    "INTEGER": "integer",
    "BIGINT": "integer",
    "DOUBLE": "number",
    "BOOLEAN": "boolean",
    "DATE": "date",
}


def column(name: str, physical: str = "VARCHAR", **more: Any) -> dict[str, Any]:
    logical = "timestamp" if physical.startswith("TIMESTAMP") else LOGICAL.get(physical, "number")
    return {"name": name, "logicalType": logical, "physicalType": physical, **more}


KEY = column("id", "INTEGER", primaryKey=True)
TRIPS = (KEY, column("city", required=True), column("km", "DECIMAL(6,2)"))


@dataclass(frozen=True)
class Loaded:
    result: EngineResult
    inputs: LocalInputs
    out: Path

    @property
    def good(self) -> list[tuple[Any, ...]]:
        return self._rows(0)

    @property
    def bad(self) -> list[tuple[int, list[str], str | None]]:
        """Line, rules and text of each row in quarantine."""
        return [(row[1], row[2], row[3]) for row in self._rows(1)]

    @property
    def bad_values(self) -> list[tuple[Any, ...]]:
        return [row[4:] for row in self._rows(1)]

    @property
    def counts(self) -> tuple[int, int, int]:
        counts = self.result.counts
        assert sorted(counts) == ["rows_loaded", "rows_quarantined", "rows_read"]
        return counts["rows_read"], counts["rows_loaded"], counts["rows_quarantined"]

    @property
    def broken(self) -> dict[str, int | None]:
        return {step.name: step.rows for step in self.result.steps if step.rows}

    def _rows(self, output: int) -> list[tuple[Any, ...]]:
        (file,) = self.result.outputs[output].files
        with duckdb.connect(config={"threads": 1}) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            return connection.execute(f"FROM read_parquet('{self.out / file.path}')").fetchall()


class Place:
    """A folder in which jobs are made and run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs = 0

    def job(
        self,
        files: dict[str, bytes],
        columns: Sequence[dict[str, Any]] = TRIPS,
        *,
        format: SourceFormat = CSV,
        max_bad_fraction: float = 1.0,
        contract: str = "contracts/trips.odcs.yaml",
        field_ids: dict[str, FieldIds] | None = None,
        cpu: int = 1024,
        memory_mib: int = 1024,
        **table: Any,
    ) -> tuple[Job, LocalInputs]:
        """A job that loads `files` by name, by a contract of `columns`; `table` are more keys of its object."""
        self._jobs += 1
        here = self._path / str(self._jobs)
        (here / "logic" / "contracts").mkdir(parents=True)
        (here / "scratch").mkdir()
        head = {"apiVersion": "v3.2.0", "kind": "DataContract", "id": "trips", "version": "1", "status": "active"}
        stated = {**head, "schema": [{"name": "trips", "properties": list(columns), **table}]}
        (here / "logic" / "contracts" / "trips.odcs.yaml").write_text(json.dumps(stated))
        for name, content in files.items():
            (here / name).write_bytes(content)
        pin = Pin(as_="trips", dataset="landing/portal/trips", snapshot="1", metadata=f"{FOLDER}1.json")
        job = Job(
            work=LoadWork(kind="load", contract=contract, format=format, max_bad_fraction=max_bad_fraction),
            inputs=(JobInput(pin=pin, files=tuple(FOLDER + name for name in files)),),
            outputs=(
                JobOutput(
                    output=Output(dataset="staging.trips"),
                    field_ids=field_ids or {},
                    last_field_id=max((each.id for each in (field_ids or {}).values()), default=0),
                ),
            ),
            workspace=str(here / "logic"),
            scratch=str(here / "scratch"),
            resources=Resources(cpu=cpu, memory_mib=memory_mib),
            stamp=STAMP,
        )
        return job, LocalInputs({FOLDER + name: here / name for name in files})

    def load(
        self, content: bytes | str | dict[str, bytes], columns: Sequence[dict[str, Any]] = TRIPS, **more: Any
    ) -> Loaded:
        if isinstance(content, str):
            content = content.encode()
        job, inputs = self.job({"a": content} if isinstance(content, bytes) else content, columns, **more)
        return Loaded(load.run(job, inputs), inputs, Path(job.scratch) / "out")
