"""The world of a job's flow, in memory: twins for the services, a scripted engine, faults between any two calls."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any, Literal, cast
from uuid import UUID, uuid4

from runner.adapters.s3_prefixes import S3Prefixes
from runner.model.errors import Failure, InfrastructureError, LogicError, RunnerError
from runner.model.manifest import (
    NO_SNAPSHOT,
    Column,
    FileRecord,
    Fingerprint,
    Manifest,
    OutputRecord,
    Software,
    State,
    Step,
)
from runner.model.messages import EngineFile, EngineOutput, EngineResult, Job, Progress
from runner.model.names import is_table, manifest_key, quarantine_of, rerun_branch
from runner.model.ranges import WHOLE_TABLE
from runner.model.spec import JobSpec, Stage, parse_spec
from runner.model.strict import parse_json
from runner.ports import (
    LEASE_S,
    Checkout,
    CommitTag,
    Datasets,
    Delivery,
    Engine,
    Execution,
    Ledger,
    LogicSource,
    Objects,
    Ports,
    Queue,
    Read,
    ServedFile,
)
from runner.worker import Outcome, Worker
from tests.support.documents import COMMIT, job_spec
from tests.support.packages import NoPackages
from tests.support.tapped import Tapped
from tests.support.twins import MemoryLedger, MemoryObjects, MemoryQueue, MemorySecrets, MemoryTables, TestClock

FAR_FROM_ANY_BEAT_S = 3600.0
"""Heartbeats run on the machine's time, the tests on their own: unless a test is about them, none comes."""
MOST_DELIVERIES = 30
"""A run that is not over after so many deliveries goes round in a circle."""

PRODUCTION = "main"

When = Literal["before", "after"]


# ---------------------------------------------------------------- faults


class Crash(BaseException):
    """The worker is killed here. No error, so nothing in the product takes it for one."""


@dataclass(frozen=True)
class At:
    """A moment in a worker's life: before or after the effect of its n-th call (from 1) of that name."""

    when: When
    call: str
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.when}-{self.call}" + (f"-{self.nth}" if self.nth > 1 else "")


@dataclass
class Tap:
    """What one worker's calls pass through: it keeps their order, and does at a moment what a test wants done then."""

    faults: dict[At, Callable[[], object]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    refusals: list[tuple[str, type[BaseException]]] = field(default_factory=list)
    """Calls that the services themselves answered with an error, and with which."""
    away: set[str] = field(default_factory=set)
    """Services that answer no call: the name of a port, or of one of its calls."""
    _killed: bool = False

    def crash(self, at: At) -> Tap:
        self.faults[at] = self.kill
        return self

    def kill(self) -> None:
        self._killed = True
        raise Crash

    def lose(self, at: At, *services: str) -> Tap:
        """From then on these services are away for this worker; the call at hand fails too."""

        def fault() -> None:
            self.away |= set(services or (at.call,))
            _out_of_reach(at.call)

        self.faults[at] = fault
        return self

    def fail(self, at: At, error: RunnerError) -> Tap:
        def fault() -> None:
            raise error

        self.faults[at] = fault
        return self

    def pause(self, at: At, meanwhile: Callable[[], object]) -> Tap:
        self.faults[at] = meanwhile
        return self

    def call(self, name: str, effect: Callable[[], Any]) -> Any:
        self._reach(name)
        self.calls.append(name)
        nth = self.calls.count(name)
        self._moment(At("before", name, nth))
        try:
            result = effect()
        except BaseException as refusal:
            self.refusals.append((name, type(refusal)))
            raise
        self._moment(At("after", name, nth))
        return result

    def _reach(self, name: str) -> None:
        if self._killed:
            raise Crash  # a dead process cleans nothing up
        if self.away & {name, name.split(".")[0]}:
            _out_of_reach(name)

    def _moment(self, at: At) -> None:
        fault = self.faults.pop(at, None)
        if fault:
            fault()

    def moments(self) -> list[At]:
        """Every moment of what has been called so far."""
        seen = Counter[str]()
        found = []
        for name in self.calls:
            seen[name] += 1
            found += [At("before", name, seen[name]), At("after", name, seen[name])]
        return found


def _out_of_reach(call: str) -> None:
    raise InfrastructureError(f"{call}: expected an answer, got none")


# ---------------------------------------------------------------- logic and engine


class FakeLogic:
    """`LogicSource` with its commits as folders of files."""

    def __init__(self, commits: Mapping[str, Mapping[str, str]]) -> None:
        self.commits = commits
        self.unreached: set[str] = set()
        """Commits that the production ref does not contain."""

    def resolve_ref(self, repo: str, ref: str) -> str:
        if ref not in self.commits:
            raise LogicError(f"{repo}: expected a commit, branch or tag {ref!r}, got none", subject="logic.commit")
        return ref

    def read_file(self, repo: str, commit: str, path: str) -> bytes:
        return self.commits[self.resolve_ref(repo, commit)][path].encode()

    def reached(self, repo: str, commit: str, ref: str) -> bool:
        return ref == PRODUCTION and commit not in self.unreached

    def checkout(self, repo: str, commit: str, workspace: Path) -> Checkout:
        files = self.commits[self.resolve_ref(repo, commit)]
        workspace.mkdir()
        for path, text in files.items():
            (workspace / path).parent.mkdir(parents=True, exist_ok=True)
            (workspace / path).write_text(text)
        tree = hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()
        return Checkout(commit=commit, tree=tree, origin="repository", committed_at=datetime(2025, 1, 1, tzinfo=UTC))


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the engine does when it is asked once; left alone, it makes every output."""

    content: str | None = None
    """What the rows say. Without it every execution makes other rows, as a query with `random()` would."""
    raises: BaseException | None = None
    meanwhile: Callable[[], object] | None = None
    """What happens elsewhere while the engine is at work."""
    steps: tuple[Step, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    failure: Failure | None = None
    until_stopped: bool = False
    """Whether it goes on until it is told to stop."""
    quarantined: int = 0
    leaves_out: frozenset[str] = frozenset()
    adds: tuple[str, ...] = ()
    """Datasets that it makes though nobody declared them."""
    engine: str = "scripted 1"
    claims: tuple[str, ...] | None = ()
    reads: Mapping[str, Read] | None = None


class ScriptedEngine:
    """`Engine` that takes its turns from a script, then goes on with plain ones. Writes real files into scratch."""

    def __init__(self) -> None:
        self.script: list[Turn] = []
        self.jobs: list[Job] = []
        """What it was asked to do, execution after execution."""
        self.secrets: Mapping[str, str] = {}
        """What the last execution was given."""
        self.prepared = False
        self._stopped = Event()

    def stop(self) -> None:
        self._stopped.set()

    def prepare(self) -> None:
        self.prepared = True

    def close(self) -> None:
        self.prepared = False

    def execute(
        self,
        job: Job,
        *,
        served: Mapping[str, Sequence[ServedFile]],
        secrets: Mapping[str, str],
        say: Callable[[Progress], None],
    ) -> Execution:
        self.jobs.append(job)
        self.secrets = secrets
        turn = self.script.pop(0) if self.script else Turn()
        say(Progress(message=f"execution {len(self.jobs)}"))
        content = turn.content or f"execution {len(self.jobs)}"
        made = [
            self._made(job, each.output.dataset, content, turn, rows=len(self.jobs))
            for each in job.outputs
            if each.output.dataset not in turn.leaves_out
        ]
        made += [self._made(job, dataset, content, turn, rows=1) for dataset in turn.adds]
        if turn.quarantined:
            bad = quarantine_of(job.outputs[0].output.dataset)
            made.append(self._made(job, bad, content, turn, rows=turn.quarantined, quarantine=True))
        if turn.meanwhile:
            turn.meanwhile()
        if turn.until_stopped:
            assert self._stopped.wait(timeout=30), "nobody said stop"
            raise InfrastructureError("engine: expected a result, got told to stop")
        if turn.raises:
            raise turn.raises
        result = EngineResult(
            outputs=tuple(made),
            steps=turn.steps,
            counts=dict(turn.counts),
            packages={"scripted": "1"},
            failure=turn.failure,
        )
        return Execution(result=result, reads=turn.reads)

    def _made(
        self, job: Job, dataset: str, content: str, turn: Turn, *, rows: int, quarantine: bool = False
    ) -> EngineOutput:
        name = dataset.replace(".", "/").split("/")[-1]
        path = Path(job.scratch) / "out" / dataset.replace("/", "-") / f"{name}.parquet"
        path.parent.mkdir()
        body = f"{dataset} by {content}".encode()
        path.write_bytes(body)
        sha256 = hashlib.sha256(body).hexdigest()
        return EngineOutput(
            dataset=dataset,
            files=(EngineFile(path=f"{path.parent.name}/{path.name}", rows=rows, sha256=sha256),),
            rows=rows,
            columns=(Column(name="id", type="int"),),
            fingerprint=Fingerprint(rows=None, hash=hashlib.sha256(content.encode()).hexdigest(), engine=turn.engine),
            claimed_inputs=turn.claims,
            quarantine=quarantine,
        )


# ---------------------------------------------------------------- the world


@dataclass(frozen=True, kw_only=True)
class Landing:
    """A snapshot that a run has made, with what its files hold now."""

    dataset: str
    snapshot: str
    tag: CommitTag
    contents: tuple[str, ...]


class CarefulQueue(MemoryQueue):
    """Fails the test that loses a message: one goes only when its run is on record, or it lies in the dead letters."""

    def __init__(self, clock: TestClock, objects: Objects) -> None:
        super().__init__(clock)
        self._objects = objects

    def delete(self, delivery: Delivery) -> None:
        if not any(each.message_id == delivery.message_id for each in self.dead_letters(delivery.stage)):
            spec = parse_spec(delivery.body)
            assert self._objects.exists(manifest_key(spec.run_id)), "the message went before its run was on record"
        super().delete(delivery)


class World:
    """Services that outlive every worker, and workers made over them, each through a tap of its own."""

    def __init__(self, scratch: Path) -> None:
        self.clock = TestClock()
        self.objects = MemoryObjects()
        self.queue = CarefulQueue(self.clock, self.objects)
        self.tables = MemoryTables()
        self.ledger = MemoryLedger(self.clock)
        self.logic = FakeLogic({COMMIT: {"dbt_project.yml": "name: flights"}})
        self.engine = ScriptedEngine()
        self.packages = NoPackages()
        self.secrets = MemorySecrets()
        self._scratch = scratch
        self._workers = 0
        self.publish("staging.flights")
        landing = self.datasets("landing/portal/flights").load("landing/portal/flights")
        landing.commit(_published("landing/portal/flights"), tag_of())

    def datasets(self, name: str) -> Datasets:
        return self.tables if is_table(name) else S3Prefixes(self.objects, self.clock)

    def worker(
        self,
        tap: Tap | None = None,
        *,
        lease_s: float = FAR_FROM_ANY_BEAT_S,
        sleep: Callable[[float], None] | None = None,
        idle: Callable[[Stage], object] = lambda _: None,
    ) -> Worker:
        """A process of its own, with its own scratch; `tap` sees and disturbs what this one does."""
        tap = tap or Tap()
        self._workers += 1
        objects = cast(Objects, Tapped(tap, "objects", self.objects))
        tables = cast(Datasets, Tapped(tap, "tables", self.tables))
        engine = cast(Engine, Tapped(tap, "engine", self.engine))
        ports = Ports(
            ledger=cast(Ledger, Tapped(tap, "ledger", self.ledger)),
            objects=objects,
            logic=cast(LogicSource, Tapped(tap, "logic", self.logic)),
            packages=self.packages,
            secrets=self.secrets,
            datasets=lambda name: tables if is_table(name) else S3Prefixes(objects, self.clock),
            engine=lambda stage: engine,
            production_ref=PRODUCTION,
            software=Software(runner="0.0", python="3.11", packages={"core": "1"}),
            scratch=self._scratch / str(self._workers),
            worker=f"worker-{self._workers}",
        )
        queue = cast(Queue, Tapped(tap, "queue", self.queue))
        return Worker(ports, queue, lease_s=lease_s, sleep=sleep or self.clock.advance, idle=idle)

    # ------------------------------------------------------------ runs and their deliveries

    def submit(self, spec: JobSpec) -> JobSpec:
        self.ledger.submit(spec)
        self.queue.send(spec.stage, spec.to_json())
        return spec

    def deliver(self, stage: Stage, tap: Tap | None = None) -> Outcome | None:
        """One delivery to a worker of its own, as soon as a message shows; None where none does in an hour."""
        return next(self.worker(tap).work(stage, max_jobs=1, idle_timeout_s=3600), None)

    def receive(self, stage: Stage) -> Delivery:
        """The next message, for a worker that a test makes itself."""
        delivery = self.queue.receive(stage, wait_s=0)
        assert delivery is not None
        return delivery

    def work_off(self, stage: Stage, *taps: Tap) -> list[Outcome | type[BaseException]]:
        """Deliveries until the queue is empty, the first of them through `taps`; a worker that ends is followed."""
        waiting = list(taps)
        ended: list[Outcome | type[BaseException]] = []
        while self.queue.depth(stage):
            assert len(ended) < MOST_DELIVERIES, f"still not over after {ended}"
            try:
                outcome = self.deliver(stage, waiting.pop(0) if waiting else None)
            except (Crash, RunnerError) as end:
                ended.append(type(end))
                continue
            if outcome is not None:
                ended.append(outcome)
        return ended

    def run(self, spec: JobSpec, *taps: Tap) -> Manifest:
        """Submit it, and work until it is over."""
        self.submit(spec)
        self.work_off(spec.stage, *taps)
        return self.manifest(spec)

    def lease_runs_out(self) -> None:
        self.clock.advance(LEASE_S + 1)

    def elsewhere(self, stage: Stage) -> Callable[[], object]:
        """What makes a zombie of the worker that is paused: its lease runs out, and others do all the work."""

        def carry_on() -> None:
            self.lease_runs_out()
            self.work_off(stage)

        return carry_on

    # ------------------------------------------------------------ the ledger's backups

    def backup(self) -> MemoryLedger:
        copy = MemoryLedger(self.clock)
        copy._runs = deepcopy(self.ledger._runs)
        return copy

    def restore(self, backup: MemoryLedger) -> None:
        """The runbook's way: no worker is alive, and no request of one is under way."""
        self.ledger = backup

    # ------------------------------------------------------------ what there is

    def manifest(self, spec: JobSpec) -> Manifest:
        """The ledger's. Fails the test where the run is not decided."""
        manifest = self.ledger.manifest(spec.run_id)
        assert manifest is not None, f"run {spec.run_id} is not decided"
        return manifest

    def recorded(self, spec: JobSpec) -> Manifest | None:
        """S3's."""
        raw = self.objects.get(manifest_key(spec.run_id))
        return None if raw is None else parse_json(Manifest, raw, what="manifest in S3")

    def outcomes(self, spec: JobSpec) -> list[str]:
        """How each attempt ended, by the ledger."""
        return [each.outcome for each in self.ledger.attempts(spec.run_id)]

    def landings(self, spec: JobSpec) -> list[Landing]:
        """Every snapshot that the run has made, in any dataset it may write, with the content it has today."""
        names = [output.dataset for output in spec.outputs]
        names += [quarantine_of(name) for name in names if is_table(name)]
        return [
            Landing(
                dataset=name,
                snapshot=landed.snapshot,
                tag=landed.tag,
                contents=tuple(self.contents(name, landed.snapshot, of=spec.run_id)),
            )
            for name in names
            for landed in self.datasets(name).load(name).landed(spec.run_id)
            if landed.tag is not None
        ]

    def contents(self, dataset: str, snapshot: str, *, of: UUID | None = None) -> list[str]:
        """What the snapshot's files (or those that one run has written) hold now, each checked against its size."""
        datasets = self.datasets(dataset)
        found = []
        for file in datasets.files(datasets.pin(dataset, "x", snapshot)):
            if file.holds_rows and f"/{of or ''}" in file.uri:
                body = self.objects.get(file.uri.removeprefix(self.objects.uri("")))
                assert body is not None, f"{file.uri}: a snapshot's file is gone"
                assert len(body) == file.bytes, f"{file.uri}: a snapshot's file is another now: {body!r}"
                found.append(body.decode())
        return found

    def head(self, dataset: str) -> UUID | None:
        """The run that made what is published now."""
        head = self.datasets(dataset).load(dataset).head(None)
        return head.tag.run_id if head and head.tag else None

    def publish(
        self,
        table: str,
        *,
        run_id: UUID | None = None,
        logical_time: datetime | None = None,
        submitted_at: datetime | None = None,
        bytes_each: int = 1,
    ) -> UUID:
        """Another run's snapshot of `table`."""
        tag = tag_of(logical_time, submitted_at, run_id=run_id)
        self.tables.load(table).commit(_published(table, bytes_each), tag)
        return tag.run_id

    def publish_from_outside(self, table: str) -> None:
        """Somebody's who is no run of ours, and leaves no tag."""
        self.tables.commit(table, self.tables.load(table)._table, _published(table), None)

    def scratch_left(self) -> list[str]:
        """Rooms that no worker has tidied up."""
        return [path.name for path in self._scratch.glob("*/*")]


def tag_of(
    logical_time: datetime | None = None, submitted_at: datetime | None = None, *, run_id: UUID | None = None
) -> CommitTag:
    """The tag of a run that no test submits; from long ago, unless told otherwise."""
    run_id = run_id or uuid4()
    long_ago = datetime(2000, 1, 1, tzinfo=UTC)
    return CommitTag(
        run_id=run_id,
        effect=run_id,
        plan_id=uuid4(),
        attempt=1,
        logical_time=logical_time or long_ago,
        submitted_at=submitted_at or long_ago,
        range=WHOLE_TABLE,
    )


def _what_it_followed(world: World, output: OutputRecord) -> str | None:
    """What was published before the output; None where its own effect made that, of which a rerun takes the place."""
    every = world.datasets(output.dataset).load(output.dataset).history(None)
    history = [each for each in every if not each.fence]  # which changes nothing
    places = [place for place, each in enumerate(history) if each.snapshot == output.snapshot]
    if not places:
        return output.state
    (place,) = places
    if place + 1 == len(history):
        return NO_SNAPSHOT
    before, own = history[place + 1], history[place]
    same_effect = before.tag is not None and own.tag is not None and before.tag.effect == own.tag.effect
    return None if same_effect else before.snapshot


def _published(dataset: str, bytes_each: int = 1) -> OutputRecord:
    return OutputRecord(
        dataset=dataset,
        mode="replace",
        branch=None,
        base=None,
        files=(FileRecord(uri=f"s3://lake/seed/{uuid4()}", bytes=bytes_each, rows=1),),
        rows=1,
        columns=(Column(name="id", type="int"),),
        fingerprint=Fingerprint(rows=1, hash="1", engine="scripted 1"),
        claimed_inputs=None,
    )


# ---------------------------------------------------------------- specs

DELAYS, ROUTES = "marts.delays", "marts.routes"


def transform(**given: Any) -> JobSpec:
    """A dbt job with two tables to make: several tables are not one transaction."""
    outputs = [{"dataset": DELAYS, "from": "main.delays"}, {"dataset": ROUTES, "from": "main.routes"}]
    return job_spec("transform", **{"outputs": outputs, **given})


def incremental(**given: Any) -> JobSpec:
    """A dbt job that goes on from one table's state, and appends to another."""
    outputs = [
        {"dataset": DELAYS, "from": "main.delays", "state": "restore"},
        {"dataset": ROUTES, "from": "main.routes", "mode": "append"},
    ]
    return job_spec("transform", **{"outputs": outputs, **given})


def load(**given: Any) -> JobSpec:
    """A load job: one table, and a prefix for its bad rows where the engine finds some."""
    return job_spec("load", **given)


# ---------------------------------------------------------------- what has to hold, whatever happened


def assert_once_and_true(world: World, spec: JobSpec) -> Manifest:
    """A run that is over: its effects are there once, of one execution, and both records say exactly that."""
    manifest = world.manifest(spec)
    landings = world.landings(spec)
    by_dataset = {each.dataset: each for each in landings}
    assert len(by_dataset) == len(landings), f"a dataset has two snapshots of one run: {landings}"
    assert {each.dataset: each.snapshot for each in manifest.outputs} == {
        each.dataset: each.snapshot for each in landings
    }, "the manifest lists exactly what landed"
    assert len({each.tag.plan_id for each in landings}) <= 1, "one plan"
    assert len({content.split(" by ")[1] for each in landings for content in each.contents}) <= 1, "one execution"
    if manifest.state is State.SUCCEEDED:
        assert set(by_dataset) >= {output.dataset for output in spec.outputs}
        assert {each.tag.plan_id for each in landings} == {manifest.plan_id}
        assert manifest.failure is None
    else:
        assert (manifest.failure is not None) is (manifest.state is State.FAILED)
    for output in manifest.outputs:
        branch = rerun_branch(spec.run_id) if spec.publishes_to_branch else None
        assert output.branch == branch
        if output.state is not None and branch is None:
            assert _what_it_followed(world, output) in (output.state, None), "nobody came between state and commit"
    assert world.recorded(spec) == manifest, "S3 and the ledger keep the same manifest"
    assert manifest.spec == spec
    row = world.ledger.run(spec.run_id)
    assert row is not None
    assert row.state is manifest.state
    assert world.queue.depth(spec.stage) == 0, "the message is gone"
    return manifest
