"""A place of its own for each scenario: bucket, queues, database; the ground that all of them stand on is shared."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import UUID

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier
from pydantic import SecretStr

from runner.app import App, new_run_id
from runner.config import Settings
from runner.embedded.portal import Portal
from runner.embedded.services import Endpoints
from runner.model.spec import JobSpec, Stage, parse_spec
from tests.faults.invariants import Expected, Place, Violation, Watch, check, watch
from tests.faults.points import Act
from tests.faults.tally import Found
from tests.faults.zygote import PATIENCE_S, Order, Worker, Zygote
from tests.support.documents import PEOPLE_CONTRACT
from tests.support.git_server import File, Repository

LEASE_S = 2.0
POLL_S = 0.1

ROWS = 40
"""What every sample job makes for its table."""
BAD_ROWS = 3
"""What the sample load puts in quarantine."""

LOGIC: Mapping[str, str] = {
    "contracts/people.odcs.yaml": PEOPLE_CONTRACT,
    # Every execution makes other rows: two that were mixed would show.
    "queries/drawn.sql": f"SELECT i::INTEGER AS id, uuid()::VARCHAR AS drawn, random() AS r FROM range({ROWS}) t(i)",
    "queries/copied.sql": "SELECT id, drawn FROM staging.source",
    "dbt_project.yml": "name: small\nprofile: small\nversion: 1.0.0\nmodel-paths: [models]\n",
    "models/one.sql": "{{ config(materialized='table') }} "
    f"SELECT i::INTEGER AS id, uuid()::VARCHAR AS drawn FROM range({ROWS}) t(i)",
    "models/two.sql": "{{ config(materialized='table') }} SELECT id, drawn FROM {{ ref('one') }}",
    "models/grown.sql": "{{ config(materialized='incremental') }} "
    f"SELECT i::INTEGER AS id, uuid()::VARCHAR AS drawn FROM range({ROWS}) t(i)",
}
"""The sample repository that all sample jobs run."""
PEOPLE = "id,name\n" + "".join(f"{i},name {i}\n" for i in range(ROWS)) + "x,bad\n" * BAD_ROWS


class Ground:
    """What the scenarios of one process share: services, a portal with a repository, a zygote, a migrated database."""

    def __init__(self, endpoints: Endpoints, folder: Path) -> None:
        self.endpoints = endpoints
        self.folder = folder
        self.zygote = Zygote()
        self._numbers = count(1)
        self._name = f"f{new_run_id().hex[-10:]}"
        self._committing, self._copying = Lock(), Lock()
        for part in ("data", "git"):
            (folder / part).mkdir(parents=True)
        self.portal = Portal(folder / "data", folder / "git")
        self.address = self.portal.start().removeprefix("http://")
        self.repository = Repository(folder / "git" / "logic.git")
        self.commit = self.repository.commit(_encoded(LOGIC))
        self.serve("people.csv", PEOPLE)
        self._template = f"{self._name}_template"
        self._sql("CREATE DATABASE {}", self._template)
        # botocore finds the emulator's keys where it finds anybody's.
        os.environ["AWS_ACCESS_KEY_ID"] = endpoints.aws_access_key_id
        os.environ["AWS_SECRET_ACCESS_KEY"] = endpoints.aws_secret_access_key
        app = App(self._settings(self._name, self._template, folder / "home"))
        app.ledger.migrate()
        app.ledger.close()

    def close(self) -> None:
        self.zygote.close()
        self.portal.stop()
        self._sql("DROP DATABASE {} WITH (FORCE)", self._template)

    def serve(self, name: str, content: str) -> str:
        """Put a file at the portal; returns its URL."""
        (self.folder / "data" / name).write_text(content)
        return f"http://{self.address}/{name}"

    def add_commit(self, files: Mapping[str, str]) -> str:
        """The sample repository with these files besides, on its main branch, where all that was before stays."""
        with self._committing:
            self.commit = self.repository.commit(_encoded({**LOGIC, **files}), parent=self.commit)
            return self.commit

    @contextmanager
    def yard(self, *stages: Stage, lease_s: float = LEASE_S) -> Iterator[Yard]:
        """Queues for `stages`, a bucket that keeps versions, a database; every worker in it is ended with it."""
        name = f"{self._name}-{next(self._numbers)}"
        database = name.replace("-", "_")
        with self._copying:
            self._sql("CREATE DATABASE {} TEMPLATE {}", database, self._template)
        with ExitStack() as stack:
            stack.callback(self._sql, "DROP DATABASE {} WITH (FORCE)", database)
            yard = Yard(self, stages, self._settings(name, database, self.folder / name), lease_s=lease_s)
            stack.callback(yard.close)
            yard.prepare()
            with watch(yard.place) as watching:
                yard.watching = watching
                yield yard

    def ledger_url(self, database: str) -> str:
        at = conninfo_to_dict(self.endpoints.ledger_url.get_secret_value())
        return f"postgresql://{at['user']}:{at['password']}@{at['host']}:{at['port']}/{database}"

    def _sql(self, statement: str, *names: str) -> None:
        with psycopg.connect(self.endpoints.ledger_url.get_secret_value(), autocommit=True) as connection:
            connection.execute(SQL(statement).format(*map(Identifier, names)))

    def _settings(self, name: str, database: str, home: Path) -> Settings:
        return Settings.model_validate(
            {
                "home": home,
                "ledger_url": SecretStr(self.ledger_url(database)),
                "bucket": f"lake-{name}",
                "queue_prefix": f"{name}-",
                "source_hosts": (self.address,),
                "logic_hosts": (self.address,),
                "logic_schemes": ("http",),
                "AWS_ENDPOINT_URL": self.endpoints.aws_endpoint_url,
                "AWS_REGION": self.endpoints.aws_region,
            }
        )


@dataclass
class Yard:
    """One scenario's place, its runs with what is expected of each, and its workers."""

    ground: Ground
    stages: tuple[Stage, ...]
    settings: Settings
    lease_s: float = LEASE_S
    expected: dict[str, Expected] = field(default_factory=dict)
    """By run id, as the checker has it."""
    tables: dict[str, int] = field(default_factory=dict)
    """Rows that tables are to have in the end."""
    watching: Watch | None = None
    _workers: list[Worker] = field(default_factory=list)
    _injected: int = 0

    @cached_property
    def app(self) -> App:
        """The product for the test's own use: to submit. It meets no fault."""
        return App(self.settings)

    @cached_property
    def place(self) -> Place:
        at = self.ground.endpoints
        return Place(
            ledger_url=self._ledger_url,
            endpoint_url=at.aws_endpoint_url,
            access_key=at.aws_access_key_id,
            secret_key=at.aws_secret_access_key,
            region=at.aws_region,
            bucket=self.settings.bucket,
            queue_prefix=self.settings.queue_prefix,
        )

    @property
    def _ledger_url(self) -> str:
        return self.settings.ledger_url.get_secret_value() if self.settings.ledger_url else ""

    @cached_property
    def env(self) -> dict[str, str]:
        """All that makes a worker one of this yard."""
        at = self.ground.endpoints
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.settings.home),
            "RUNNER_HOME": str(self.settings.home),
            "RUNNER_LEDGER_URL": self._ledger_url,
            "RUNNER_BUCKET": self.settings.bucket,
            "RUNNER_QUEUE_PREFIX": self.settings.queue_prefix,
            "RUNNER_SOURCE_HOSTS": self.ground.address,
            "RUNNER_LOGIC_HOSTS": self.ground.address,
            "RUNNER_LOGIC_SCHEMES": "http",
            "RUNNER_LEASE_S": str(self.lease_s),
            "AWS_ENDPOINT_URL": at.aws_endpoint_url,
            "AWS_ACCESS_KEY_ID": at.aws_access_key_id,
            "AWS_SECRET_ACCESS_KEY": at.aws_secret_access_key,
            "AWS_REGION": at.aws_region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def prepare(self) -> None:
        """Make the bucket and the queues; the database is there."""
        self.settings.home.mkdir()
        self.app.objects.create_bucket()
        self.place.s3().put_bucket_versioning(
            Bucket=self.settings.bucket, VersioningConfiguration={"Status": "Enabled"}
        )
        for stage in self.stages:
            self.app.queue.create(stage)

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        self.app.ledger.close()
        if "_connection" in vars(self):
            self._connection.close()
        if "tables" in vars(self.app):
            self.app.tables._catalog.close()

    # ------------------------------------------------------------ jobs

    def spec(self, stage: Stage, work: Mapping[str, Any], *, commit: str | None = None, **given: Any) -> JobSpec:
        """A job spec from what a scenario cares about."""
        document = {
            "spec_version": 1,
            "run_id": str(new_run_id()),
            "pipeline": "faults",
            "task": "task",
            "stage": stage.value,
            "logic": {"repo": f"http://{self.ground.address}/git/logic.git", "commit": commit or self.ground.commit},
            "work": dict(work),
            "logical_time": datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
            **given,
        }
        return parse_spec(json.dumps(document))

    def query(self, table: str = "marts.drawn", *, mode: str = "append", file: str = "drawn", **given: Any) -> JobSpec:
        """Makes `ROWS` rows of one table, others at each execution."""
        work = {"kind": "query", "file": f"queries/{file}.sql"}
        output: dict[str, Any] = {"dataset": table, "mode": mode}
        if mode == "merge":
            output["key"] = ["id"]
        return self.spec(Stage.QUERY, work, **{"outputs": [output], **given})

    def extract(self, dataset: str = "landing/people", **given: Any) -> JobSpec:
        """Makes one file of a prefix."""
        work = {
            "kind": "extract",
            "sources": [{"name": "people", "url": f"http://{self.ground.address}/people.csv"}],
        }
        return self.spec(Stage.EXTRACT, work, outputs=[{"dataset": dataset, "from": "people"}], **given)

    def load(self, dataset: str = "landing/people", table: str = "staging.people", **given: Any) -> JobSpec:
        """Makes `ROWS` rows of a table, and a prefix with `BAD_ROWS` more; reads what `extract` makes."""
        work = {
            "kind": "load",
            "contract": "contracts/people.odcs.yaml",
            "format": {"type": "csv"},
            "max_bad_fraction": 0.5,
        }
        return self.spec(Stage.LOAD, work, inputs=[{"dataset": dataset}], outputs=[{"dataset": table}], **given)

    def dbt(self, **given: Any) -> JobSpec:
        """Makes `ROWS` rows of each of two tables, the same ones in both."""
        work = {"kind": "dbt", "steps": [{"command": "build", "select": ["one", "two"]}]}
        outputs = [
            {"dataset": "marts.one", "from": "main.one"},
            {"dataset": "marts.two", "from": "main.two", "mode": "append"},
        ]
        return self.spec(Stage.TRANSFORM, work, **{"outputs": outputs, **given})

    def grown(self, **given: Any) -> JobSpec:
        """Adds `ROWS` rows to a table whose state it begins from, by an incremental model."""
        work = {"kind": "dbt", "steps": [{"command": "build", "select": ["grown"]}]}
        outputs = [{"dataset": "marts.grown", "from": "main.grown", "state": "restore"}]
        return self.spec(Stage.TRANSFORM, work, **{"outputs": outputs, **given})

    def submit(self, spec: JobSpec, expected: Expected) -> JobSpec:
        """Submit it, and remember what is expected of it."""
        self.expected[str(spec.run_id)] = expected
        return self.app.client.submit(spec)

    def send_again(self, spec: JobSpec) -> None:
        """The run's message once more: SQS delivers at least once."""
        self.app.queue.send(spec.stage, spec.to_json())

    # ------------------------------------------------------------ workers

    def worker(
        self,
        stage: Stage,
        *script: Act,
        max_jobs: int | None = 1,
        idle_timeout_s: float | None = None,
        env: Mapping[str, str] | None = None,
        broken: str | None = None,
        clock_s: float = 0.0,
    ) -> Worker:
        """A process that runs `runner work <stage>`, and does to itself what `script` says."""
        number = len(self._workers) + 1
        argv = ["work", stage.value]
        if max_jobs is not None:
            argv += ["--max-jobs", str(max_jobs)]
        if idle_timeout_s is not None:
            argv += ["--idle-timeout", str(idle_timeout_s)]
        order = Order(
            argv=tuple(argv),
            env={**self.env, **(env or {})},
            log=str(self.settings.home / f"worker-{number}.log"),
            trace=str(self.settings.home / f"worker-{number}.trace"),
            script=script,
            broken=broken,
            clock_s=clock_s,
        )
        worker = self.ground.zygote.fork(order)
        self._workers.append(worker)
        return worker

    def heir(self, stage: Stage, *script: Act, **given: Any) -> Worker:
        """A worker that takes whatever comes, until the yard is closed or it is ended."""
        return self.worker(stage, *script, max_jobs=None, **given)

    def injected(self, faults: int = 1) -> None:
        """Note that so many faults have really happened."""
        self._injected += faults

    # ------------------------------------------------------------ waiting and looking

    def rows_of(self, query: str, **given: Any) -> list[dict[str, Any]]:
        """Rows of the yard's database."""
        return self._connection.execute(query, given).fetchall()

    @cached_property
    def _connection(self) -> psycopg.Connection[dict[str, Any]]:
        """One for all that is asked here: polls would else be most of what the server does."""
        return psycopg.connect(self._ledger_url, autocommit=True, row_factory=dict_row)

    def run_row(self, run_id: UUID) -> dict[str, Any]:
        (found,) = self.rows_of("SELECT * FROM ledger.runs WHERE run_id = %(run_id)s", run_id=run_id)
        return found

    def is_over(self) -> bool:
        """Whether all that was submitted is decided and recorded, and no queue has a message."""
        return self._count("recorded_at IS NULL") == 0 and self.depth() == 0

    def is_stuck(self) -> bool:
        """Whether nothing can come any more: no message anywhere, and no lease that somebody may hold."""
        return self._count("lease_expires_at > clock_timestamp()") == 0 and self.depth() == 0

    def _count(self, condition: str) -> int:
        (row,) = self.rows_of(f"SELECT count(*)::int AS n FROM ledger.runs WHERE {condition}")
        return int(row["n"])

    def depth(self) -> int:
        """Messages of the yard's queues, hidden ones too; dead letters are none."""
        return sum(self.app.queue.depth(stage) for stage in self.stages)

    def settle(self, within_s: float = PATIENCE_S) -> bool:
        """Wait until everything is over; False where nothing will come any more, or the time is up."""
        self.wait(self._nothing_comes, within_s=within_s)
        return self.is_over()

    def _nothing_comes(self) -> bool:
        return self.is_over() or self.is_stuck() or all(worker.ended for worker in self._workers)

    def wait(self, condition: Callable[[], bool], *, within_s: float = PATIENCE_S) -> bool:
        """Until it holds; False where the time is up."""
        give_up_at_s = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > give_up_at_s:
                return False
            time.sleep(POLL_S)
        return True

    def end_workers(self) -> None:
        """Kill those that are left: the checker looks at a place where nobody is at work."""
        for worker in self._workers:
            worker.kill()

    def violations(self, *, restored: bool = False) -> list[Violation]:
        """What the checker finds, after the end; a ledger that came back from a backup was seen to go back, too."""
        seen = self.watching.violations if self.watching and not restored else []
        return [*seen, *check(self.place, self.expected, tables=self.tables, restored=restored)]

    def found(self, *, restored: bool = False) -> Found:
        """End the workers, check, and sum up."""
        self.end_workers()
        (attempts,) = self.rows_of("SELECT count(*) AS n FROM ledger.attempts")
        return Found(
            injected=self._injected,
            runs=len(self.expected),
            attempts=attempts["n"],
            violations=tuple(self.violations(restored=restored)),
        )

    def told(self) -> str:
        """Every worker's log, for the message of a failed test."""
        return "\n".join(worker.told() for worker in self._workers)


def _encoded(files: Mapping[str, str]) -> dict[str, File]:
    return {path: text.encode() for path, text in files.items()}
