"""What a job costs beside its work, in a worker that has run others: from its message received to its message deleted.

warm-dbt-job: four small dbt models and their tests, over a cold `dbt build` of the same project by dbt's own command.
warm-dbt-job-invoke: the same jobs, over what `dbtRunner().invoke()` itself took inside their child.
warm-dbt-job-heavy: a dbt project whose SQL takes seconds, over that SQL in bare DuckDB.
runner-overhead: a query that writes a small file, the time of its SQL taken off, over the four calls that no runner of
this kind can do without: receive a message, put an object, insert a row, delete the message.
worker-memory-50: the worker's resident memory after 50 jobs, over what it was after the first.

All with git's commit, the parse of the project and connections as an earlier job left them. Postgres, S3 and SQS are
the embedded ones.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from uuid import uuid4

import duckdb
import psycopg

from benchmarks.harness import REPETITIONS, save, services
from runner.app import App
from runner.config import Settings
from runner.embedded.services import Endpoints
from runner.model.manifest import Manifest, State
from runner.model.names import log_key
from runner.model.spec import JobSpec, Stage
from runner.ports import Delivery
from runner.sandbox.watch import resident_bytes
from runner.worker import Worker

SMALL = {
    "models/numbers.sql": "SELECT range AS id, range % 7 AS kind FROM range(1000)",
    "models/kinds.sql": "SELECT kind, count(*) AS rows FROM {{ ref('numbers') }} GROUP BY kind",
    "models/even.sql": "SELECT id FROM {{ ref('numbers') }} WHERE id % 2 = 0",
    "models/both.sql": "SELECT kind, rows FROM {{ ref('kinds') }} WHERE kind IN (SELECT id FROM {{ ref('even') }})",
    "models/models.yml": """
models:
  - name: numbers
    columns: [{name: id, data_tests: [unique, not_null]}]
  - name: kinds
    columns: [{name: kind, data_tests: [unique]}]
""",
}
HEAVY_ROWS = 30_000_000
HEAVY = {
    "numbers": f"SELECT range AS id, hash(range) % 1000003 AS kind FROM range({HEAVY_ROWS})",
    "kinds": "SELECT kind, count(*) AS rows, min(id) AS first, max(id) AS last FROM {numbers} GROUP BY kind",
    "pairs": "SELECT rows, count(DISTINCT kind) AS kinds FROM {numbers} JOIN {kinds} USING (kind) GROUP BY rows",
}
"""Each statement by the relation that it makes; names in braces are those before it."""
CPU = 2048
JOBS = 50


def project(name: str, files: Mapping[str, str]) -> dict[str, str]:
    head = f"name: {name}\nprofile: {name}\nversion: 1.0.0\nmodels: {{+materialized: table}}\n"
    return {"dbt_project.yml": head, **files}


class Bench:
    """A worker on the embedded services, and a repository at their portal."""

    def __init__(self, endpoints: Endpoints, folder: Path) -> None:
        self.folder = folder
        self.app = App(Settings(home=folder / "home"))
        self.app.prepare()
        self._git = endpoints.portal_git / "bench.git"
        self._url = f"{endpoints.portal_url}/git/bench.git"
        self.worker: Worker = self.app.worker()

    def commit(self, files: Mapping[str, str]) -> tuple[Path, str]:
        """A working tree of these files, and its commit at the portal."""
        tree = self.folder / f"tree-{uuid4().hex[:8]}"
        for path, text in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text, "utf-8")
        run = _git(tree)
        run("init", "--quiet", "--initial-branch=main")
        run("add", "--all")
        run("commit", "--quiet", "--message", "the project")
        if not self._git.exists():
            run("init", "--quiet", "--bare", "--initial-branch=main", str(self._git))
        branch = tree.name
        run("push", "--quiet", str(self._git), f"HEAD:refs/heads/{branch}", "+HEAD:refs/heads/main")
        return tree, run("rev-parse", "HEAD").strip()

    def spec(self, commit: str, stage: Stage, work: Mapping[str, Any], outputs: list[dict[str, Any]]) -> JobSpec:
        document = {
            "spec_version": 1,
            "pipeline": "bench",
            "task": "job",
            "stage": stage.value,
            "logic": {"repo": self._url, "commit": commit},
            "work": work,
            "outputs": outputs,
            "resources": {"cpu": CPU},
        }
        return self.app.client.read_spec(json.dumps(document).encode(), what="spec")

    def submitted(self, spec: JobSpec) -> JobSpec:
        fresh = spec.model_copy(update={"run_id": uuid4()})
        self.app.client.submit(fresh)
        return fresh

    def received(self, stage: Stage) -> Delivery:
        delivery = self.app.queue.receive(stage, wait_s=5)
        if delivery is None:
            raise SystemExit("expected the job's message, got none")
        return delivery

    def carried(self, delivery: Delivery) -> Manifest:
        ended = self.worker.process(delivery)
        if not isinstance(ended, Manifest) or ended.state is not State.SUCCEEDED:
            raise SystemExit(f"expected the job to succeed, got {ended}")
        return ended

    def job(self, spec: JobSpec) -> tuple[float, Manifest]:
        """Seconds from its message received to its message deleted."""
        self.submitted(spec)
        delivery = self.received(spec.stage)
        started = time.perf_counter()
        ended = self.carried(delivery)
        return time.perf_counter() - started, ended


def main() -> int:
    folder = Path(mkdtemp(prefix="stage-runner-bench-"))
    try:
        with services(folder / "home") as endpoints:
            bench = Bench(endpoints, folder)
            try:
                met = [_small(bench), _heavy(bench), _overhead(bench, endpoints), _memory(bench)]
            finally:
                bench.app.close()
        return 0 if all(met) else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _small(bench: Bench) -> bool:
    tree, commit = bench.commit(project("small", SMALL))
    work = {"kind": "dbt", "steps": [{"command": "build"}]}
    outputs = [{"dataset": "bench.both", "from": "main.both"}]
    spec = bench.spec(commit, Stage.TRANSFORM, work, outputs)
    ours, cold, invoked = [], [], []
    for turn in range(REPETITIONS + 1):
        taken = _timed(lambda: _dbt_build(tree, bench.folder))
        seconds, ended = bench.job(spec)
        if turn:
            cold.append(taken)
            ours.append(seconds)
            invoked.append(_invoked(bench, ended))
    job, build, invoke = map(statistics.median, (ours, cold, invoked))
    about = f"medians job {job:.2f} s, cold dbt build {build:.2f} s, invoke in the child {invoke:.2f} s"
    first = save("warm-dbt-job", job / build, goal=0.30, unit="x of a cold `dbt build`", about=about)
    second = save("warm-dbt-job-invoke", job / invoke, goal=1.3, unit="x of `invoke()` in its child", about=about)
    return first.met and second.met


def _heavy(bench: Bench) -> bool:
    refs = {name: f"{{{{ ref('{name}') }}}}" for name in HEAVY}
    _, commit = bench.commit(
        project("heavy", {f"models/{name}.sql": sql.format(**refs) for name, sql in HEAVY.items()})
    )
    work = {"kind": "dbt", "steps": [{"command": "build"}]}
    spec = bench.spec(commit, Stage.TRANSFORM, work, [{"dataset": "bench.pairs", "from": "main.pairs"}])
    ours, base = [], []
    for turn in range(REPETITIONS + 1):
        bare = _timed(lambda: _bare(bench.folder / "bare.duckdb"))
        seconds, _ = bench.job(spec)
        if turn:
            base.append(bare)
            ours.append(seconds)
    job, sql = statistics.median(ours), statistics.median(base)
    if sql < 2.0:
        raise SystemExit(f"expected SQL of 2 s or more in bare DuckDB, got {sql:.2f} s: raise HEAVY_ROWS")
    about = f"medians job {job:.2f} s, bare DuckDB {sql:.2f} s"
    return save("warm-dbt-job-heavy", job / sql, goal=2.5, unit="x of the SQL in bare DuckDB", about=about).met


def _overhead(bench: Bench, endpoints: Endpoints) -> bool:
    _, commit = bench.commit({"one.sql": "SELECT 1 AS one"})
    work = {"kind": "query", "file": "one.sql"}
    spec = bench.spec(commit, Stage.QUERY, work, [{"dataset": "bench/one", "format": "parquet"}])
    floor = _Floor(bench, endpoints)
    ours, base = [], []
    for turn in range(5 * REPETITIONS + 1):
        bench.submitted(spec)
        started = time.perf_counter()
        ended = bench.carried(bench.received(Stage.QUERY))
        taken = time.perf_counter() - started - sum(step.seconds or 0.0 for step in ended.report.steps)
        bare = floor.seconds()
        if turn:
            ours.append(taken)
            base.append(bare)
    job, calls = statistics.median(ours), statistics.median(base)
    about = f"medians job without its SQL {job * 1000:.0f} ms, the four calls {calls * 1000:.0f} ms"
    return save("runner-overhead", job / calls, goal=3.0, unit="x of the four calls", about=about).met


def _memory(bench: Bench) -> bool:
    """In a worker that has run nothing else: a process of its own."""
    command = [sys.executable, "-m", "benchmarks.warm_jobs", "--memory", str(bench.folder / "home")]
    _, commit = bench.commit(project("memory", SMALL))
    work = {"kind": "dbt", "steps": [{"command": "build"}]}
    spec = bench.spec(commit, Stage.TRANSFORM, work, [{"dataset": "bench.memory", "from": "main.both"}])
    for _ in range(JOBS):
        bench.submitted(spec)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    first, last = json.loads(done.stdout)
    about = f"{first / 2**20:.0f} MiB after the first job, {last / 2**20:.0f} MiB after {JOBS}"
    return save("worker-memory-50", last / first, goal=1.2, unit="x of its memory after one job", about=about).met


def carry_and_weigh(home: Path) -> tuple[int, int]:
    """Resident bytes of this process after the first of the jobs that wait, and after the last."""
    import os

    app = App(Settings(home=home))
    weights = []
    for ended in app.worker().work(Stage.TRANSFORM, max_jobs=JOBS, idle_timeout_s=30):
        if not isinstance(ended, Manifest) or ended.state is not State.SUCCEEDED:
            raise SystemExit(f"expected the job to succeed, got {ended}")
        weights.append(resident_bytes(os.getpid()))
    app.close()
    return weights[0], weights[-1]


class _Floor:
    """The four calls, on a queue, an object and a table of their own."""

    def __init__(self, bench: Bench, endpoints: Endpoints) -> None:
        self._sqs = bench.app.aws.sqs()
        self._s3 = bench.app.aws.s3()
        self._bucket = bench.app.settings.bucket
        self._queue = self._sqs.create_queue(QueueName="bench-floor")["QueueUrl"]
        self._connection = psycopg.connect(endpoints.ledger_url.get_secret_value(), autocommit=True)
        self._connection.execute("CREATE TABLE bench_floor (id uuid PRIMARY KEY, body jsonb NOT NULL)")

    def seconds(self) -> float:
        body = json.dumps({"run": str(uuid4()), "text": "x" * 1000})
        self._sqs.send_message(QueueUrl=self._queue, MessageBody=body)
        started = time.perf_counter()
        (message,) = self._sqs.receive_message(QueueUrl=self._queue, WaitTimeSeconds=5)["Messages"]
        self._s3.put_object(Bucket=self._bucket, Key=f"floor/{uuid4()}", Body=body.encode())
        self._connection.execute("INSERT INTO bench_floor VALUES (%s, %s)", (uuid4(), body))
        self._sqs.delete_message(QueueUrl=self._queue, ReceiptHandle=message["ReceiptHandle"])
        return time.perf_counter() - started


def _dbt_build(tree: Path, folder: Path) -> None:
    profiles = folder / "profiles"
    profiles.mkdir(exist_ok=True)
    database = folder / "cold.duckdb"
    database.unlink(missing_ok=True)
    output = {"type": "duckdb", "path": str(database), "threads": CPU // 1024}
    (profiles / "profiles.yml").write_text(json.dumps({"small": {"target": "prod", "outputs": {"prod": output}}}))
    shutil.rmtree(tree / "target", ignore_errors=True)
    command = [str(Path(sys.executable).with_name("dbt")), "build", "--no-send-anonymous-usage-stats"]
    command += ["--project-dir", str(tree), "--profiles-dir", str(profiles)]
    subprocess.run(command, check=True, capture_output=True, cwd=tree)


def _bare(database: Path) -> None:
    database.unlink(missing_ok=True)
    with duckdb.connect(str(database), config={"threads": CPU // 1024}) as connection:
        names = {name: name for name in HEAVY}
        for name, sql in HEAVY.items():
            connection.execute(f"CREATE TABLE {name} AS {sql.format(**names)}")


def _invoked(bench: Bench, ended: Manifest) -> float:
    """What the run's own log says that dbt took."""
    log = bench.app.objects.get(log_key(ended.run_id, ended.attempt)) or b""
    found = re.search(rb"dbt build took ([0-9.]+) s", log)
    if found is None:
        raise SystemExit("expected the run's log to say how long dbt took, got a log without")
    return float(found[1])


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _git(tree: Path) -> Callable[..., str]:
    who = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")

    def run(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(tree), *who, *arguments], check=True, capture_output=True, text=True)
        return done.stdout

    return run


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print(json.dumps(carry_and_weigh(Path(sys.argv[2]))))
        sys.exit(0)
    sys.exit(main())
