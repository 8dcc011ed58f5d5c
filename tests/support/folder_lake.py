"""A lake of real Iceberg tables in a folder: published by the runner's own adapter, read back through a broker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from shutil import copyfile
from typing import Any
from uuid import uuid4

import duckdb
from pyarrow.fs import LocalFileSystem
from pyiceberg.io import FileIO, InputFile, OutputFile
from pyiceberg.io.pyarrow import PyArrowFile

from runner.adapters.iceberg_tables import IcebergTables
from runner.engines import scratch
from runner.model.manifest import FileRecord, OutputRecord, Pin
from runner.model.messages import EngineOutput, Job, JobOutput
from runner.model.names import data_prefix
from runner.model.ranges import partition_value, range_of
from runner.model.spec import Output
from runner.ports import CommitTag
from tests.support.engine_inputs import LocalInputs


class FolderIO(FileIO):
    """pyiceberg's files of `s3://lake/` in a folder: the tables are real, S3 is not needed for them."""

    _disk = LocalFileSystem()

    def new_input(self, location: str) -> InputFile:
        return PyArrowFile(location, str(self._path(location)), self._disk)

    def new_output(self, location: str) -> OutputFile:
        # Under its name in the lake: that is what the tables' own files call it.
        path = self._path(location)
        path.parent.mkdir(parents=True, exist_ok=True)
        return PyArrowFile(location, str(path), self._disk)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        self._path(location if isinstance(location, str) else location.location).unlink()

    def _path(self, location: str) -> Path:
        return path_in(Path(self.properties["folder"]), location)


def path_in(folder: Path, uri: str) -> Path:
    return folder / uri.removeprefix("s3://lake/")


@dataclass
class FolderLake:
    """One table of a catalog in a folder, published by the runner's own adapter, read back through a broker."""

    folder: Path
    tables: IcebergTables
    catalog: Any
    table: str = field(default_factory=lambda: f"marts.t{uuid4().hex}")

    def wanted(self, *, day: datetime | None = None, **given: Any) -> JobOutput:
        """The output as a job would have it now: with ids, types and state of what is published."""
        output = Output.model_validate_json(json.dumps({"dataset": self.table, **given}))
        loaded = self.tables.load(self.table)
        state = None
        if output.begins_from_state:
            state = self.tables.state(self.table, output.state_alias, output.snapshot)
        return JobOutput(
            output=output,
            partition=partition_value(output, day or datetime(2013, 6, 1, tzinfo=UTC)),
            state=state,
            field_ids=dict(loaded.field_ids),
            last_field_id=loaded.last_field_id,
            column_types=self.columns() if loaded.exists else {},
        )

    def commit(self, made: EngineOutput, job: Job, *, day: datetime | None = None) -> str:
        """Publish what an engine left in the job's scratch; returns the snapshot."""
        (wanted,) = [each for each in job.outputs if each.output.dataset == made.dataset]
        run_id, plan_id, time = uuid4(), uuid4(), day or datetime(2013, 6, 1, tzinfo=UTC)
        prefix = data_prefix(self.table, effect=run_id, run_id=run_id, attempt=1, plan_id=plan_id, written_at=time)
        files = []
        for file in made.files:
            path, uri = Path(job.scratch) / "out" / file.path, f"s3://lake/{prefix}{Path(file.path).name}"
            path_in(self.folder, uri).parent.mkdir(parents=True, exist_ok=True)
            copyfile(path, path_in(self.folder, uri))
            files.append(FileRecord(uri=uri, bytes=path.stat().st_size, rows=file.rows, sha256=file.sha256))
        asked = wanted.output
        record = OutputRecord(
            dataset=self.table,
            mode=asked.mode,
            partition_by=asked.partition_by,
            range=range_of(asked, effect=run_id, logical_time=time),
            key=asked.key,
            branch=None,
            base=None,
            state=wanted.state.snapshot if wanted.state else None,
            files=tuple(files),
            rows=made.rows,
            columns=made.columns,
            fingerprint=made.fingerprint,
            claimed_inputs=None,
        )
        tag = CommitTag(
            run_id=run_id,
            effect=run_id,
            plan_id=plan_id,
            attempt=1,
            logical_time=time,
            submitted_at=time,
            range=record.range,
        )
        return self.tables.load(self.table).commit(record, tag)

    def inputs(self, *pins: Pin | None) -> LocalInputs:
        """A broker of exactly the files of these pins."""
        found = [each for pin in pins if pin is not None for each in self.tables.files(pin)]
        return LocalInputs({each.uri: path_in(self.folder, each.uri) for each in found})

    def rows(self, order_by: str = "ALL") -> list[tuple[Any, ...]]:
        """What is published now, read by DuckDB."""
        pin = self.tables.pin(self.table, "published", None)
        with duckdb.connect() as connection:
            scratch.configure(connection, self.inputs(pin))
            return connection.sql(f"FROM {scratch.snapshot_rows(pin)} ORDER BY {order_by}").fetchall()

    def columns(self) -> dict[str, str]:
        """Of the published table, by Iceberg's names of their types; those that hold others are left out."""
        fields = self.catalog.load_table(self.table).schema().fields
        return {each.name: str(each.field_type) for each in fields if each.field_type.is_primitive}


@contextmanager
def folder_lake(folder: Path) -> Iterator[FolderLake]:
    """A lake of its own in `folder`."""
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog(
        "lake",
        uri=f"sqlite:///{folder / 'catalog.db'}",
        warehouse="s3://lake/tables",
        **{"py-io-impl": f"{FolderIO.__module__}.{FolderIO.__name__}", "folder": str(folder)},
    )
    yield FolderLake(folder, IcebergTables(catalog, bucket="lake"), catalog)
    catalog.close()
