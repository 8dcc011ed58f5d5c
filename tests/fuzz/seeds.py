"""Good documents of each kind, which hostile ones are made of: the repository's own, and small ones of everything."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from runner.model.errors import Category, Failure
from runner.model.manifest import AttemptRecord, Column, Fingerprint, Manifest, Pin, Report, Software, State, Step
from runner.model.messages import (
    Done,
    Ended,
    EngineFile,
    EngineOutput,
    EngineResult,
    Failed,
    FieldIds,
    Job,
    JobInput,
    JobOutput,
    Limits,
    Open,
    Progress,
    Start,
)
from runner.model.spec import Resources, Stage
from runner.model.strict import Strict
from tests.support.documents import COMMIT, DECIDED_AT, input_record, manifest_of, output_record, spec_document
from tests.support.engine_inputs import STAMP
from tests.support.packages import archive, lock, package

_ROOT = Path(__file__).parents[2]
_RUN = str(UUID(int=1))


def _json(document: object) -> bytes:
    return json.dumps(document).encode()


def _files(pattern: str) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted((_ROOT / "dbt").glob(pattern)))


# ---------------------------------------------------------------- specs and pipelines


def _specs() -> tuple[bytes, ...]:
    merge = {"dataset": "marts.delays", "from": "main.delays", "mode": "merge", "key": ["id"], "lineage_columns": True}
    step = {"command": "build", "select": ["marts"], "exclude": ["x"], "full_refresh": True}
    work = {"kind": "dbt", "steps": [step], "vars": {"since": "2013-01-01", "n": 1}, "env": {"MY_NAME": "x"}}
    rerun = {"of": _RUN, "effect": _RUN, "publish": True}
    return (
        *(_json(spec_document(stage, run_id=_RUN)) for stage in Stage),
        _json(spec_document("transform", run_id=_RUN, work=work, outputs=[merge], rerun=rerun)),
    )


SPECS = _specs()

_PIPELINE = _json(
    {
        "pipeline_version": 1,
        "name": "flights",
        "params": {"portal": "https://portal.example.org"},
        "stages": [
            {
                "task": "extract",
                "stage": "extract",
                "work": {"kind": "extract", "sources": [{"name": "a", "url": "${portal}/a.csv"}]},
                "outputs": [{"dataset": "landing/a", "from": "a"}],
            },
            {
                "task": "worst",
                "stage": "query",
                "work": {"kind": "query", "file": "queries/worst.sql"},
                "inputs": [{"dataset": "marts.delays"}],
                "outputs": [{"dataset": "exports/worst", "format": "csv"}],
            },
        ],
    }
)
PIPELINES = (_PIPELINE, *_files("pipelines/*.yaml"))
LAUNCHES = tuple(
    _json({"file": raw.decode(), "params": {"portal": "https://mirror.example.org"}})
    for raw in (_PIPELINE, _json({"params": {"portal": "x" * 1000}, "stages": ["${portal}" * 90] * 9}))
)


# ---------------------------------------------------------------- contracts


def contract_of(*columns: Mapping[str, Any], **table: Any) -> bytes:
    head = {"apiVersion": "v3.2.0", "kind": "DataContract", "id": "trips", "version": "1", "status": "active"}
    return _json({**head, "schema": [{"name": "trips", "properties": columns, **table}]})


def column(name: str, physical: str = "VARCHAR", logical: str = "string", **more: Any) -> dict[str, Any]:
    return {"name": name, "physicalType": physical, "logicalType": logical, **more}


CONTRACTS = (
    contract_of(
        column("id", "INTEGER", "integer", primaryKey=True, logicalTypeOptions={"minimum": 1, "format": "u8"}),
        column("km", "DECIMAL(6,2)", "number", logicalTypeOptions={"multipleOf": 0.5, "maximum": 10}),
        column("far", "DOUBLE", "number", logicalTypeOptions={"exclusiveMinimum": 0.1}),
        customProperties=[{"property": "drift", "value": "evolve"}],
    ),
    contract_of(
        column("city", logicalTypeOptions={"pattern": "^[A-Z]+$", "maxLength": 9}),
        column("code", enum=[{"value": "a"}, {"value": "b"}], unique=True),
        column("mail", logicalTypeOptions={"format": "email"}),
        quality=[{"metric": "rowCount", "mustBeBetween": [1, 10]}],
    ),
    contract_of(
        column("at", "TIMESTAMPTZ", "timestamp", logicalTypeOptions={"format": "yyyy-MM-dd HH:mm:ssX"}),
        column("on", "DATE", "date", logicalTypeOptions={"minimum": "2013-01-01"}),
        column("to", relationships=[{"to": "airports.faa"}]),
        quality=[{"type": "sql", "query": 'SELECT count(*) FROM {object} WHERE "on" IS NULL', "mustBe": 0}],
    ),
    contract_of(
        column(
            "n",
            "BIGINT",
            "integer",
            quality=[
                {"metric": "missingValues", "arguments": {"missingValues": [None, "", -1]}, "mustBe": 0},
                {"metric": "invalidValues", "arguments": {"validValues": [1, 2]}, "mustBeLessThan": 5},
                {"metric": "nullValues", "mustBeLessThan": 5, "unit": "percent", "severity": "warning"},
            ],
        ),
        quality=[{"metric": "duplicateValues", "arguments": {"properties": ["n"]}, "mustBe": 0}],
    ),
    *_files("contracts/*.yaml"),
)


# ---------------------------------------------------------------- the record, and messages


def _manifests() -> tuple[Manifest, ...]:
    failure = Failure(category=Category.DATA, message="rows: expected some, got none", hint="look", subject="x")
    attempt = AttemptRecord(attempt=1, worker="host-1", started_at=DECIDED_AT, outcome="failed", failure=failure)
    report = Report(
        software=Software(runner="1", python="3.11", packages={"duckdb": "1.5.5"}),
        inputs=(input_record("staging.flights"),),
        steps=(Step(name="model.x", kind="model", status="error", seconds=0.5, rows=1, message="it broke"),),
        counts={"rows_read": 3, "rows_loaded": 2, "rows_quarantined": 1},
    )
    return (
        manifest_of(output_record("marts.delays"), inputs=(input_record("staging.flights"),)),
        manifest_of(state=State.FAILED, failure=failure, attempts=(attempt,), report=report),
    )


_SUCCEEDED, _FAILED = _manifests()
MANIFESTS = tuple(each.to_json().encode() for each in (_SUCCEEDED, _FAILED))
LOG_LINES = (
    _json({"at": DECIDED_AT.isoformat(), "level": "info", "attempt": 1, "message": "a line", "traceback": "File …"}),
)


def _said() -> tuple[Strict, ...]:
    spec, steps = _FAILED.spec, _FAILED.report.steps
    job = Job(
        work=spec.work,
        inputs=(JobInput(pin=Pin(as_="a", dataset="staging.a", snapshot="1", metadata="s3://lake/m.json")),),
        outputs=(JobOutput(output=spec.outputs[0], field_ids={"a": FieldIds(id=1, children={"b": FieldIds(id=2)})}),),
        workspace="/logic",
        scratch="/scratch",
        resources=Resources(),
        stamp=STAMP,
    )
    output = EngineOutput(
        dataset="marts.delays",
        files=(EngineFile(path="marts.delays/1.parquet", rows=3, sha256="0" * 64),),
        rows=3,
        columns=(Column(name="a", type="int"),),
        fingerprint=Fingerprint(rows=3, hash="1", engine="duckdb 1.5.5"),
        claimed_inputs=("staging.flights",),
    )
    result = EngineResult(outputs=(output,), steps=steps, counts={"rows_read": 3}, packages={"dbt-core": "1.11"})
    return (
        Open(uri="s3://lake/a"),
        Progress(message="a line", done=1, total=2),
        Done(result=result),
        Failed(failure=Failure(category=Category.RATE_LIMIT, message="wait", retry_after_s=3.0), steps=steps),
        job,
        Start(room="/room", limits=Limits(cpu_s=1, data_bytes=1, file_bytes=1, open_files=1)),
        Ended(code=-9, left_running=0),
    )


MESSAGES = tuple(each.to_json().encode() for each in _said())
FRAMES = (
    b"".join(len(each).to_bytes(4, "big") + each for each in MESSAGES),
    len(MESSAGES[0]).to_bytes(4, "big") + MESSAGES[0],
)

_TABLE = _json(
    {
        "format-version": 2,
        "table-uuid": _RUN,
        "last-updated-ms": 1,
        "metadata-log": [{"metadata-file": "s3://lake/0.metadata.json", "timestamp-ms": 1}],
        "snapshots": [{"snapshot-id": 1, "sequence-number": 1, "timestamp-ms": 1}],
    }
)
TABLES = (_TABLE, gzip.compress(_TABLE, mtime=0))


# ---------------------------------------------------------------- names, hosts, addresses

NAMES = (
    _json(
        {
            "identifier": "flights",
            "dataset": "landing/portal/flights",
            "commit": COMMIT,
            "path": "a/b.sql",
            "relation": "main.delays",
            "column": "carrier",
        }
    ),
)
HOSTS = tuple(
    _json({"entries": entries, "host": host, "port": 443})
    for entries, host in (
        (["portal.example.org", "*.suffix.example", "10.0.0.0/8"], "a.suffix.example"),
        (["[fd00::1]:443", "fd00::/8", "127.0.0.1:80"], "fd00::1"),
    )
)
ADDRESSES = (b"https://git.example.org/logic.git", b"file:///srv/logic.git", b"/srv/logic.git", b"ssh://git@host/x.git")


# ---------------------------------------------------------------- dbt's files

DBT_PROJECTS = (
    b"name: small\nmodels: &m {+materialized: table}\nseeds: *m\nvars: {since: 2013-01-01, n: 0x1f}\n",
    *_files("dbt_project.yml"),
)
_LISTED = (
    {"package": "acme/tools", "version": "1.0.0"},
    {"git": "https://git.example.org/a.git", "revision": COMMIT, "subdirectory": "x"},
    {"tarball": "https://host.example.org/b.tar.gz", "name": "b"},
    {"local": "sub"},
)
DBT_PACKAGES = tuple(
    _json(
        {
            "dbt_project.yml": json.dumps({"name": "small", "packages-install-path": "dbt_packages"}),
            "packages.yml": json.dumps({"packages": listed}),
            "package-lock.yml": lock(listed, [each for each in listed if "local" not in each]),
            "sub/dbt_project.yml": "name: sub\n",
        }
    )
    for listed in (_LISTED[:1], _LISTED[1:2], _LISTED)
)
_TOOLS = {
    "tools-1.0/dbt_project.yml": ["0", "name: tools"],
    "tools-1.0/macros": ["5"],
    "tools-1.0/link": ["2", "macros"],
}
ARCHIVES = (
    _json(_TOOLS),
    _json({"../x": ["0", "a"], "/x": ["0", "a"], "t/a": ["2", "../../outside"], "t/a/b": ["0", "a"]}),
    archive(package("tools", "{% macro a() %}{% endmacro %}")),
)


# ---------------------------------------------------------------- data files: four bytes say how they are read

CSV_FILES = (
    b'\0\0\0\0id,city\n1,a\n"2","b ""c"""\r\n3,\n',
    b"\1\0\0\0id,city\n1,a\n2,b,c\n\n" + "3,é\n".encode(),
    b"\1\0\0\0" + gzip.compress(b"id,city\n1,a\n", mtime=0),
)
_ROWS = b'{"id": 1, "city": "a"}\n{"id": 2.50, "city": null, "more": [1]}\n'
JSON_LINES_FILES = (b"\0\0\0\0" + _ROWS, b"\1\0\0\0" + _ROWS)
JSON_FILES = (
    b'\1\0\0\2{"data": {"rows": [{"id": 1, "city": "a"}, {"id": "x", "new": {"a": 1}}]}, "n": [1, {"a": []}]}',
    b'\2\0\0\0[{"id": 1}, {"id": 2}]',
)
