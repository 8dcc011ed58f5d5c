"""publish-iceberg: rows from a query to a committed Iceberg snapshot, over DuckDB's bare COPY of them to the same S3.

TPC-H's lineitem at `--scale` (6 million rows at scale 1). Ours casts, writes Parquet with field ids, fingerprints what
was written, hashes the file, uploads it and commits; the base only writes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from uuid import UUID, uuid4

import duckdb

from benchmarks.harness import ratio, services
from runner.adapters.aws import Aws
from runner.adapters.iceberg_tables import IcebergTables, sql_catalog
from runner.adapters.pg_ledger import PgLedger
from runner.adapters.s3_objects import S3Objects
from runner.embedded.services import Endpoints
from runner.engines import scratch
from runner.model.manifest import FileRecord, OutputRecord
from runner.model.messages import Job, JobOutput
from runner.model.names import data_prefix
from runner.model.spec import Output, QueryWork, Resources
from runner.ports import CommitTag

TABLE = "marts.lineitem"
BUCKET = "bench-lake"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    scale = parser.parse_args().scale
    folder = Path(mkdtemp(prefix="stage-runner-bench-"))
    try:
        with services() as endpoints:
            return 0 if _measure(endpoints, folder, scale) else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(endpoints: Endpoints, folder: Path, scale: float) -> bool:
    connection = duckdb.connect(config={"threads": "2", "temp_directory": str(folder / "spill")})
    for name in ("tpch", "httpfs"):
        connection.execute(f"LOAD '{_extension(name)}'")
    connection.execute(f"CALL dbgen(sf = {scale})")
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

    def base() -> None:
        connection.execute(f"COPY lineitem TO 's3://{BUCKET}/bare/{next(turns)}.parquet' (FORMAT parquet)")

    def ours() -> None:
        _publish(connection, objects, tables, folder)

    name = "publish-iceberg" if scale == 1 else f"publish-iceberg-sf{scale:g}"
    return ratio(name, ours=ours, base=base, goal=1.3, unit="x of DuckDB's bare COPY to the same S3").met


def _publish(connection: duckdb.DuckDBPyConnection, objects: S3Objects, tables: IcebergTables, folder: Path) -> None:
    run_id = uuid4()
    table = tables.load(TABLE)
    output = JobOutput(output=Output(dataset=TABLE), field_ids=dict(table.field_ids), last_field_id=table.last_field_id)
    place = folder / str(run_id)
    (place / "out").mkdir(parents=True)
    made = scratch.export(connection, _job(place, output), output, "lineitem", claimed_inputs=None)
    (file,) = made.files
    path = place / "out" / file.path
    key = data_prefix(TABLE, run_id, 1, datetime.now(UTC)) + path.name
    objects.put_file(key, path)
    record = OutputRecord(
        dataset=TABLE,
        mode="replace",
        branch=None,
        base=None,
        files=(FileRecord(uri=objects.uri(key), bytes=path.stat().st_size, rows=made.rows, sha256=file.sha256),),
        rows=made.rows,
        columns=made.columns,
        fingerprint=made.fingerprint,
        claimed_inputs=None,
    )
    tables.load(TABLE).replace(record, _tag(run_id))
    shutil.rmtree(place)


def _job(place: Path, output: JobOutput) -> Job:
    work = QueryWork(kind="query", file="lineitem.sql")
    return Job(
        work=work, inputs=(), outputs=(output,), workspace=str(place), scratch=str(place), resources=Resources(cpu=2048)
    )


def _tag(run_id: UUID) -> CommitTag:
    now = datetime.now(UTC)
    return CommitTag(run_id=run_id, effect=run_id, plan_id=uuid4(), attempt=1, logical_time=now, submitted_at=now)


def _extension(name: str) -> Path:
    spec = find_spec(f"duckdb_extension_{name}")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"expected the package duckdb-extension-{name}, got none: make bench installs it")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return folder / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"


if __name__ == "__main__":
    sys.exit(main())
