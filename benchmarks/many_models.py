"""A dbt project of 1,000 models in one job: seconds and memory of the child that runs it, on this machine.

Ten layers of 100 models, each made of two of the layer before; every tenth is a table, the others are views, and each
of the last layer has a test. The ten tables of the last layer are exported. `python -m benchmarks.many_models`;
docs/dbt.md states the figures.
"""

from __future__ import annotations

import os
import resource
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from runner.adapters.sandbox_engine import SandboxEngine
from runner.model.messages import Job, JobOutput, Stamp
from runner.model.spec import DbtStep, DbtWork, Output, Resources
from runner.sandbox.accounts import Accounts
from runner.sandbox.nursery import Nursery
from tests.support.twins import MemoryObjects

LAYERS, WIDTH = 10, 100
CPU, MEMORY_MIB = 2048, 4096


def project(root: Path) -> None:
    (root / "models").mkdir(parents=True)
    (root / "dbt_project.yml").write_text("name: many\nprofile: many\nversion: 1.0.0\n")
    for layer in range(LAYERS):
        for place in range(WIDTH):
            config = "{{ config(materialized='table') }} " if place % 10 == 0 else ""
            above = (f"l{layer - 1}_{place}", f"l{layer - 1}_{(place + 1) % WIDTH}")
            sql = " UNION ALL ".join(f"SELECT id FROM {{{{ ref('{name}') }}}}" for name in above)
            sql = f"SELECT id FROM ({sql}) WHERE id < 10" if layer else f"SELECT {place} AS id"
            (root / f"models/l{layer}_{place}.sql").write_text(config + sql)
    tests = "".join(
        f"  - {{name: l{LAYERS - 1}_{place}, columns: [{{name: id, data_tests: [not_null]}}]}}\n"
        for place in range(WIDTH)
    )
    (root / "models/models.yml").write_text(f"models:\n{tests}")


def main() -> None:
    with TemporaryDirectory(prefix="stage-runner-bench-") as folder:
        root, scratch = Path(folder, "room", "logic"), Path(folder, "room", "scratch")
        project(root)
        (scratch / "out").mkdir(parents=True)
        names = [f"l{LAYERS - 1}_{place}" for place in range(0, WIDTH, 10)]
        job = Job(
            work=DbtWork(kind="dbt", steps=(DbtStep(command="build"),)),
            inputs=(),
            outputs=tuple(JobOutput(output=Output(dataset=f"many.{name}", from_=f"main.{name}")) for name in names),
            workspace=str(root),
            scratch=str(scratch),
            resources=Resources(cpu=CPU, memory_mib=MEMORY_MIB),
            stamp=Stamp(logic_commit="0" * 40, run_id=uuid4(), processed_at=datetime.now(UTC)),
        )
        account = Accounts().take()
        nursery = Nursery("dbt", scratch=Path(folder), account=account, path=os.defpath)
        cache = Path(folder, "cache")
        engine = SandboxEngine(nursery, MemoryObjects(), account=account, cache=cache, max_input_bytes=0)
        nursery.ready()
        started = time.perf_counter()
        result = engine.execute(job, served={}, secrets={}, say=lambda _: None).result
        seconds = time.perf_counter() - started
        engine.close()  # or what it had forked would not be counted below
    done = sum(step.status in ("success", "pass") for step in result.steps)
    if (done, len(result.outputs)) != (LAYERS * WIDTH + WIDTH, len(names)):
        raise SystemExit(f"expected all done and {len(names)} outputs, got {done} steps and {len(result.outputs)}")
    # Of all children that have ended: there was one. Linux counts in KiB.
    memory_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    used = f"{seconds:.0f} s, {memory_mib:,.0f} MiB at most, {os.cpu_count()} cores"
    print(f"{LAYERS * WIDTH:,} models and {WIDTH} tests: {used}")


if __name__ == "__main__":
    main()
