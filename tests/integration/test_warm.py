"""A load and a query in a child of a warm process find there all that they would import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runner.model.manifest import Pin
from runner.model.messages import Job, JobInput, JobOutput
from runner.model.spec import CsvFormat, LoadWork, Output, QueryWork
from tests.support.documents import PEOPLE_CONTRACT
from tests.support.engine_inputs import job_of

_ROOT = Path(__file__).parents[2]
_URI = "s3://lake/landing/people/people.csv"
# The root is last, for it has a folder `dbt`.
_PROGRAM = f"""
import importlib, json, os, sys
from pathlib import Path
sys.path.append({str(_ROOT)!r})
from runner.model.messages import Job
from tests.support.engine_inputs import LocalInputs
engine = importlib.import_module(sys.argv[1])
before = len(os.listdir("/proc/self/task")), set(os.listdir("/proc/self/fd"))
for _ in engine.warm():
    pass
assert (len(os.listdir("/proc/self/task")), set(os.listdir("/proc/self/fd"))) == before
job, data, imported = Job.model_validate_json(Path(sys.argv[2]).read_text()), Path(sys.argv[3]), set(sys.modules)
if os.fork() == 0:
    result = engine.run(job, LocalInputs({{{_URI!r}: data}}))
    rows = [output.rows for output in result.outputs]
    print(json.dumps([rows, sorted(set(sys.modules) - imported)]), flush=True)
    os._exit(0)
os.wait()
"""


def _load(folder: Path) -> Job:
    made = job_of(
        folder,
        work=LoadWork(kind="load", contract="people.yaml", format=CsvFormat(type="csv")),
        inputs=[JobInput(pin=Pin(as_="people", dataset="landing/people", snapshot="1", metadata=""), files=(_URI,))],
        outputs=[JobOutput(output=Output(dataset="staging.people"))],
    )
    Path(made.workspace, "people.yaml").write_text(PEOPLE_CONTRACT)
    return made


def _query(folder: Path) -> Job:
    made = job_of(
        folder,
        work=QueryWork(kind="query", file="q.sql"),
        outputs=[JobOutput(output=Output(dataset="marts.one"))],
    )
    Path(made.workspace, "q.sql").write_text("SELECT 1 AS one")
    return made


@pytest.mark.parametrize(("kind", "rows"), [("load", [2, 0]), ("query", [1])])
def test_a_child_of_a_warm_process_imports_nothing(kind: str, rows: list[int], tmp_path: Path) -> None:
    data, order = tmp_path / "people.csv", tmp_path / "job.json"
    data.write_text("id,name\n1,Ada\n2,Grace\n")
    order.write_text((_load if kind == "load" else _query)(tmp_path).to_json())
    done = subprocess.run(
        [sys.executable, "-I", "-c", _PROGRAM, f"runner.engines.{kind}", str(order), str(data)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found, imported = json.loads(done.stdout)
    # Python's own, for the names of file systems.
    assert (found, set(imported) - {"encodings.ascii"}) == (rows, set())
