"""publish-iceberg: rows from a query to a committed Iceberg snapshot, over DuckDB's bare COPY of them to the same S3.

TPC-H's lineitem at scale 1: 6 million rows. Ours casts, writes Parquet with field ids, fingerprints what was written,
hashes the file, uploads it and commits; the base only writes.

publish-iceberg-growth: what a row costs at a scale, over what it costs at the next smaller one (0.1, 1 and 3); the
larger of the two steps. At most 1 means that the cost grows no faster than the rows.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import count, pairwise
from pathlib import Path
from tempfile import mkdtemp
from uuid import UUID, uuid4

import duckdb

from benchmarks.harness import REPETITIONS, ratio, save, services
from runner.adapters.aws import Aws
from runner.adapters.iceberg_tables import IcebergTables, sql_catalog
from runner.adapters.pg_ledger import PgLedger
from runner.adapters.s3_objects import S3Objects
from runner.embedded.services import Endpoints
from runner.engines.export import export
from runner.model.manifest import FileRecord, OutputRecord
from runner.model.messages import Job, JobOutput, Stamp
from runner.model.names import data_prefix
from runner.model.ranges import WHOLE_TABLE
from runner.model.spec import Output, QueryWork, Resources
from runner.ports import CommitTag

BUCKET = "bench-lake"
SCALES = (0.1, 1.0, 3.0)
ONE = SCALES.index(1.0)


def main() -> int:
    folder = Path(mkdtemp(prefix="stage-runner-bench-"))
    try:
        with services() as endpoints:
            return 0 if all(_measure(endpoints, folder)) else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(endpoints: Endpoints, folder: Path) -> list[bool]:
    connection = duckdb.connect(
        str(folder / "tpch.duckdb"), config={"threads": "2", "temp_directory": str(folder / "spill")}
    )
    for name in ("tpch", "httpfs"):
        connection.execute(f"LOAD '{extension(name)}'")
    for place, scale in enumerate(SCALES):
        connection.execute(f"CREATE SCHEMA {_schema(place)}")
        connection.execute(f"CALL dbgen(sf = {scale}, schema = '{_schema(place)}')")
    connection.execute(
        f"CREATE SECRET (TYPE s3, KEY_ID 'test', SECRET 'test', REGION 'us-east-1', URL_STYLE 'path', USE_SSL false, "
        f"ENDPOINT '{endpoints.aws_endpoint_url.removeprefix('http://')}')"
    )
    aws = Aws(
        region=endpoints.aws_region,
        endpoint_url=endpoints.aws_endpoint_url,
        access_key_id=endpoints.aws_access_key_id,
        secret_access_key=endpoints.aws_secret_access_key,
    )
    objects = S3Objects(aws.s3(), BUCKET)
    objects.create_bucket()
    url = endpoints.ledger_url.get_secret_value()
    PgLedger(url).migrate()
    tables = IcebergTables(sql_catalog(url, bucket=BUCKET, aws=aws.properties), bucket=BUCKET)
    turns = count()

    def bare(place: int) -> None:
        target = f"s3://{BUCKET}/bare/{next(turns)}.parquet"
        connection.execute(f"COPY {_schema(place)}.lineitem TO '{target}' (FORMAT parquet)")

    def publish(place: int) -> None:
        _publish(connection, _schema(place), objects, tables, folder)

    unit = "x of DuckDB's bare COPY to the same S3"
    met = ratio("publish-iceberg", ours=lambda: publish(ONE), base=lambda: bare(ONE), goal=1.3, unit=unit).met
    return [met, _growth(connection, publish, bare, forget=lambda: _remove_files(aws))]


def _growth(
    connection: duckdb.DuckDBPyConnection,
    publish: Callable[[int], None],
    bare: Callable[[int], None],
    *,
    forget: Callable[[], None],
) -> bool:
    """Scales by turns, ours and the bare COPY; the first turn warms up and does not count."""
    rows = [connection.sql(f"FROM {_schema(place)}.lineitem").shape[0] for place in range(len(SCALES))]
    times: dict[Callable[[int], None], list[list[float]]] = {call: [[] for _ in SCALES] for call in (publish, bare)}
    for turn in range(REPETITIONS + 1):
        forget()
        for place in range(len(SCALES)):
            for call in (publish, bare):
                started = time.perf_counter()
                call(place)
                if turn:
                    times[call][place].append(time.perf_counter() - started)
    ours, base = (
        [statistics.median(each) / count for each, count in zip(times[call], rows, strict=True)]
        for call in (publish, bare)
    )
    about = ", ".join(
        f"scale {scale:g}: {count:,} rows, {mine * 1e6:.2f} µs a row (bare COPY {theirs * 1e6:.2f})"
        for scale, count, mine, theirs in zip(SCALES, rows, ours, base, strict=True)
    )
    growth = max(larger / smaller for smaller, larger in pairwise(ours))
    unit = "x of a row's cost at the next smaller scale"
    return save("publish-iceberg-growth", growth, goal=1.0, unit=unit, about=about).met


def _remove_files(aws: Aws) -> None:
    """The emulator keeps objects in memory, and the old snapshots' files are of no more use."""
    s3 = aws.s3()
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for each in page.get("Contents", ()):
            if each["Key"].endswith(".parquet"):
                s3.delete_object(Bucket=BUCKET, Key=each["Key"])


def _schema(place: int) -> str:
    return f"scale_{place}"


def _publish(
    connection: duckdb.DuckDBPyConnection, schema: str, objects: S3Objects, tables: IcebergTables, folder: Path
) -> None:
    run_id, plan_id = uuid4(), uuid4()
    dataset = f"marts.{schema}"
    table = tables.load(dataset)
    output = JobOutput(
        output=Output(dataset=dataset), field_ids=dict(table.field_ids), last_field_id=table.last_field_id
    )
    place = folder / str(run_id)
    (place / "out").mkdir(parents=True)
    made = export(connection, _job(place, output), output, f"{schema}.lineitem", claimed_inputs=None)
    (file,) = made.files
    path = place / "out" / file.path
    folder_of_plan = data_prefix(
        dataset, effect=run_id, run_id=run_id, attempt=1, plan_id=plan_id, written_at=datetime.now(UTC)
    )
    key = folder_of_plan + path.name
    objects.put_file(key, path)
    record = OutputRecord(
        dataset=dataset,
        mode="replace",
        branch=None,
        base=None,
        files=(FileRecord(uri=objects.uri(key), bytes=path.stat().st_size, rows=made.rows, sha256=file.sha256),),
        rows=made.rows,
        columns=made.columns,
        fingerprint=made.fingerprint,
        claimed_inputs=None,
    )
    tables.load(dataset).commit(record, _tag(run_id, plan_id))
    shutil.rmtree(place)


def _job(place: Path, output: JobOutput) -> Job:
    work = QueryWork(kind="query", file="lineitem.sql")
    return Job(
        work=work,
        inputs=(),
        outputs=(output,),
        workspace=str(place),
        scratch=str(place),
        resources=Resources(cpu=2048),
        stamp=Stamp(logic_commit="0" * 40, run_id=uuid4(), processed_at=datetime.now(UTC)),
    )


def _tag(run_id: UUID, plan_id: UUID) -> CommitTag:
    now = datetime.now(UTC)
    return CommitTag(
        run_id=run_id,
        effect=run_id,
        plan_id=plan_id,
        attempt=1,
        logical_time=now,
        submitted_at=now,
        range=WHOLE_TABLE,
    )


def extension(name: str) -> Path:
    spec = find_spec(f"duckdb_extension_{name}")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"expected the package duckdb-extension-{name}, got none: make bench installs it")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return folder / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"


if __name__ == "__main__":
    sys.exit(main())
