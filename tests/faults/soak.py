"""Everything at once, for a while: small jobs of all kinds, four workers, and whatever can happen to them."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random

from runner.model.spec import JobSpec, Stage
from tests.faults.invariants import Expected
from tests.faults.proxies import Way, way
from tests.faults.stories import carried
from tests.faults.tally import Found, Scenario, Story
from tests.faults.yard import BAD_ROWS, POLL_S, ROWS, Ground, Yard
from tests.faults.zygote import Worker

STAGES = (Stage.QUERY, Stage.EXTRACT, Stage.LOAD, Stage.TRANSFORM)
WORKERS = 4
JOBS = 200
WITHIN_S = 900.0
"""What the long form takes at most; a third of it, when nothing else is at work on two cores."""

_TRIES = 10
"""The most that a spec may have: a worker is killed so often here that three might not do."""
_HURT_EVERY_S = (2.0, 8.0)
_OTHERS_HURT = 5
"""How many times likelier than one that runs dbt."""
_FROZEN_LEASES = (0.5, 2.5)
_BATCH = 10
_TWICE = 0.15
"""How many messages are doubled."""
_CANCELLED = 0.05
_EVERY_COMMIT = 41
"""Of so many, the answer to one is lost."""

_SUCCEEDED = frozenset({"succeeded"})
_OLDER = frozenset({"succeeded", "failed"})
"""Of two that write a whole table at once, the one that was submitted earlier is refused where it comes second."""


# ---------------------------------------------------------------- jobs


def _append(yard: Yard, chance: Random, number: int) -> tuple[JobSpec, Expected]:
    table = f"marts.drawn{chance.randrange(3)}"
    return yard.query(table, mode="append", max_attempts=_TRIES), Expected(rows={table: ROWS})


def _merge(yard: Yard, chance: Random, number: int) -> tuple[JobSpec, Expected]:
    table = f"marts.merged{chance.randrange(3)}"
    spec = yard.query(table, mode="merge", max_attempts=_TRIES)
    return spec, Expected(rows={table: ROWS}, states=_OLDER)


def _replace(yard: Yard, chance: Random, number: int) -> tuple[JobSpec, Expected]:
    table = f"marts.replaced{chance.randrange(3)}"
    spec = yard.query(table, mode="replace", max_attempts=_TRIES)
    return spec, Expected(rows={table: ROWS}, states=_OLDER)


def _broken(yard: Yard, chance: Random, number: int) -> tuple[JobSpec, Expected]:
    """Its logic is not there, and no retry helps."""
    spec = yard.query("marts.broken", file="no_such_file", max_attempts=_TRIES)
    return spec, Expected(states=frozenset({"failed"}), rows={"marts.broken": 0})


def _extract(yard: Yard, chance: Random, number: int) -> tuple[JobSpec, Expected]:
    prefix = f"landing/people{chance.randrange(3)}"
    return yard.extract(prefix, max_attempts=_TRIES), Expected(rows={prefix: 1}, states=_OLDER)


def _load(yard: Yard, chance: Random, number: int) -> tuple[JobSpec, Expected]:
    table = f"staging.people{chance.randrange(3)}"
    rows = {table: ROWS, "failed/" + table.replace(".", "/"): BAD_ROWS}
    return yard.load(table=table, max_attempts=_TRIES), Expected(rows=rows, states=_OLDER)


def _dbt(yard: Yard, chance: Random, number: int) -> tuple[JobSpec, Expected]:
    one, two = f"marts.one{number}", f"marts.two{number}"
    outputs = [{"dataset": one, "from": "main.one"}, {"dataset": two, "from": "main.two", "mode": "append"}]
    return yard.dbt(outputs=outputs, max_attempts=_TRIES), Expected(rows={one: ROWS, two: ROWS})


_KINDS = {_append: 45, _merge: 12, _replace: 12, _broken: 4, _extract: 12, _load: 11, _dbt: 4}
"""Of a hundred jobs, about so many are of each kind."""


# ---------------------------------------------------------------- the soak


@dataclass
class Soak:
    """One of them, from its first job to its last."""

    yard: Yard
    way: Way
    chance: Random
    to_submit: int
    workers: list[Worker] = field(default_factory=list)
    frozen: dict[int, tuple[Worker, float]] = field(default_factory=dict)
    """Those that SIGSTOP has stopped, and when each wakes up."""
    hurts_at_s: float = 0.0

    def go_on(self, until_s: float) -> None:
        """Until every job is over, or that time has come."""
        while time.monotonic() < until_s and (self.to_submit or not self.yard.is_over()):
            self._submit_some()
            self._wake()
            self._man()
            if self.to_submit or len(self.frozen) < WORKERS:
                self._hurt()
            time.sleep(POLL_S)

    def end(self, within_s: float) -> None:
        """Nobody is hurt any more: what is left is carried to its end."""
        for worker, _ in self.frozen.values():
            worker.resume()
        give_up_at_s = time.monotonic() + within_s
        self.way.env = {}
        while time.monotonic() < give_up_at_s and not self.yard.is_over():
            self._man()
            time.sleep(POLL_S)

    def _submit_some(self) -> None:
        """A few more, when there is little left to do: what was submitted later is to meet what was earlier."""
        if not self.to_submit or self.yard.depth() > 2 * _BATCH:
            return
        for _ in range(min(_BATCH, self.to_submit)):
            make = self.chance.choices(list(_KINDS), list(_KINDS.values()))[0]
            spec, expected = make(self.yard, self.chance, self.to_submit)
            cancelled = self.chance.random() < _CANCELLED
            if cancelled:
                states = expected.states | {"cancelled"}
                expected = Expected(states=states, rows=expected.rows, cancel_asked=True)
            self.yard.submit(spec, expected)
            self.to_submit -= 1
            if self.chance.random() < _TWICE:
                self.yard.send_again(spec)
                self.yard.injected()
            if cancelled:
                self.yard.app.client.cancel(spec.run_id)

    def _man(self) -> None:
        """Four workers, frozen ones aside, each for a stage that has something to do."""
        self.workers = [each for each in self.workers if not each.ended and each.pid not in self.frozen]
        depths = {stage: self.yard.app.queue.depth(stage) for stage in STAGES}
        while len(self.workers) < WORKERS and any(depths.values()):
            stage = self.chance.choices(STAGES, [depths[each] for each in STAGES])[0]
            jobs, env = self.chance.randint(1, 8), self.way.env
            self.workers.append(self.yard.worker(stage, max_jobs=jobs, idle_timeout_s=1, env=env))

    def _hurt(self) -> None:
        if time.monotonic() < self.hurts_at_s:
            return
        self.hurts_at_s = time.monotonic() + self.chance.uniform(*_HURT_EVERY_S)
        alive = [each for each in self.workers if not each.ended]
        if not alive:
            return
        # dbt takes so much longer than the others that it would be hurt at every one of its tries.
        weights = [1 if each.order.argv[1] == Stage.TRANSFORM else _OTHERS_HURT for each in alive]
        (worker,) = self.chance.choices(alive, weights)
        deed = self.chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM))
        worker.signal(deed)
        self.yard.injected()
        if deed == signal.SIGSTOP:
            for_s = self.yard.lease_s * self.chance.uniform(*_FROZEN_LEASES)
            self.frozen[worker.pid] = (worker, time.monotonic() + for_s)

    def _wake(self) -> None:
        for pid, (worker, at_s) in list(self.frozen.items()):
            if worker.ended or time.monotonic() >= at_s:
                del self.frozen[pid]
                worker.resume()
                self.workers.append(worker)


def soaked(jobs: int, within_s: float, ground: Ground, chance: Random) -> Found:
    """So many jobs, for so long at most."""
    until_s = time.monotonic() + within_s
    with ground.yard(*STAGES) as yard, way(yard.place, log=yard.settings.home / "proxies.log") as between:
        carried(yard, yard.extract(), Expected(rows={"landing/people": 1}))
        between.hurt_connections(
            {"service": "tcp", "probability": 0.01, "reset": True},
            {"service": "tcp", "probability": 0.01, "payload": "^PUT ", "cut_reply": {"after_bytes": 30}},
            {"service": "tcp", "probability": 0.02, "latency": {"min": 100, "max": 3000}},
        )
        between.postgres.lose_answers(lambda number, _: number % _EVERY_COMMIT == _EVERY_COMMIT - 1)
        soak = Soak(yard, between, chance, jobs)
        soak.go_on(until_s - within_s / 3)
        soak.end(within_s / 3)
        yard.injected(between.injected)
        yard.tables |= _totals(yard)
        return yard.found()


def _totals(yard: Yard) -> dict[str, int]:
    """Of tables that are appended to: the rows of the runs that say that they have."""
    totals: dict[str, int] = {}
    for run_id, expected in yard.expected.items():
        (row,) = yard.rows_of("SELECT state FROM ledger.runs WHERE run_id = %(run_id)s", run_id=run_id)
        for table, rows in expected.rows.items():
            if table.startswith("marts.drawn") and row["state"] == "succeeded":
                totals[table] = totals.get(table, 0) + rows
    return totals


def scenarios() -> Iterator[Scenario]:
    """The long form."""
    yield Story(name="soak", fault="everything at once", tell=partial(soaked, JOBS, WITHIN_S))
