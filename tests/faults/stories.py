"""What happens to workers: each story is one job, one fault at one step, and the end that it must come to."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from random import Random
from threading import Lock

from runner.model.spec import JobSpec, Stage
from tests.faults.invariants import Expected, Violation
from tests.faults.points import Act, from_receive_on, is_past
from tests.faults.tally import Found, Scenario, Story
from tests.faults.yard import BAD_ROWS, ROWS, Ground, Yard
from tests.faults.zygote import Worker

GRACE_S = 30.0
"""How long ECS waits between SIGTERM and SIGKILL."""


# ---------------------------------------------------------------- jobs


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A job that stories are told of, and what is there before it."""

    name: str
    stages: tuple[Stage, ...]
    """The queues that it needs, its own first."""
    begin: Callable[[Yard], JobSpec]
    """Make what it reads, and return its spec, which is not submitted yet."""
    expected: Expected


def carried(yard: Yard, spec: JobSpec, expected: Expected) -> JobSpec:
    """Submit it, and have it carried to its end by a worker that meets no fault."""
    yard.submit(spec, expected)
    worker = yard.worker(spec.stage)
    assert worker.wait() == 0, worker.told()
    return spec


def _after_another(make: Callable[[Yard], JobSpec], expected: Expected, yard: Yard) -> JobSpec:
    """The table is there already, with another run's rows."""
    carried(yard, make(yard), expected)
    return make(yard)


def _after_extract(yard: Yard) -> JobSpec:
    carried(yard, yard.extract(), Expected(rows={"landing/people": 1}))
    return yard.load()


_DRAWN = Expected(rows={"marts.drawn": ROWS})
_GROWN = Expected(rows={"marts.grown": ROWS})

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(name="query", stages=(Stage.QUERY,), begin=lambda yard: yard.query(mode="replace"), expected=_DRAWN),
        Kind(
            name="append",
            stages=(Stage.QUERY,),
            begin=partial(_after_another, lambda yard: yard.query(mode="append"), _DRAWN),
            expected=_DRAWN,
        ),
        Kind(
            name="merge",
            stages=(Stage.QUERY,),
            begin=partial(_after_another, lambda yard: yard.query(mode="merge"), _DRAWN),
            expected=_DRAWN,
        ),
        Kind(
            name="extract",
            stages=(Stage.EXTRACT,),
            begin=lambda yard: yard.extract(),
            expected=Expected(rows={"landing/people": 1}),
        ),
        Kind(
            name="load",
            stages=(Stage.LOAD, Stage.EXTRACT),
            begin=_after_extract,
            expected=Expected(rows={"staging.people": ROWS, "failed/staging/people": BAD_ROWS}),
        ),
        Kind(
            name="dbt",
            stages=(Stage.TRANSFORM,),
            begin=lambda yard: yard.dbt(),
            expected=Expected(rows={"marts.one": ROWS, "marts.two": ROWS}),
        ),
        Kind(
            name="incremental",
            stages=(Stage.TRANSFORM,),
            begin=partial(_after_another, lambda yard: yard.grown(), _GROWN),
            expected=Expected(rows={"marts.grown": 2 * ROWS}),
        ),
    )
}


class Steps:
    """The numbered steps of each kind of job, recorded from one undisturbed run the first time they are asked for."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._known: dict[str, list[str]] = {}
        self._locks = {name: Lock() for name in KINDS}

    def of(self, kind: Kind) -> list[str]:
        """From receive to acknowledge."""
        with self._locks[kind.name]:
            if kind.name not in self._known:
                self._known[kind.name] = from_receive_on(self._record(kind))
            return self._known[kind.name]

    def _record(self, kind: Kind) -> list[str]:
        with self._ground.yard(*kind.stages) as yard:
            spec = yard.submit(kind.begin(yard), kind.expected)
            worker = yard.worker(spec.stage)
            assert worker.wait() == 0, worker.told()
            assert yard.settle(), yard.told()
            found = yard.found()
            assert not found.violations, [str(each) for each in found.violations]
            return worker.moments


@cache
def steps_on(ground: Ground) -> Steps:
    return Steps(ground)


# ---------------------------------------------------------------- kill -9


def killed(kind: Kind, at: str, ground: Ground, _: Random) -> Found:
    """The worker is killed there; another one comes."""
    with ground.yard(*kind.stages) as yard:
        spec = yard.submit(kind.begin(yard), kind.expected)
        victim = yard.worker(spec.stage, Act(at, "kill"))
        assert victim.wait() == -signal.SIGKILL, f"it never came to {at}\n{victim.told()}"
        yard.injected()
        yard.heir(spec.stage)
        yard.settle()
        return yard.found()


# ---------------------------------------------------------------- zombies


def woken(kind: Kind, at: str, ground: Ground, _: Random) -> Found:
    """The worker freezes there past its lease; its heir ends the run; then it wakes up and goes on."""
    with ground.yard(*kind.stages) as yard:
        spec = yard.submit(kind.begin(yard), kind.expected)
        return _freeze_and_wake(yard, spec, (Act(at, "stop"),), ())


def woken_to_fail(kind: Kind, at: str, ground: Ground, _: Random) -> Found:
    """Like `woken`; what it comes to next fails for good, where its heir has succeeded."""
    steps = steps_on(ground).of(kind)
    later = (each for each in _FAILING if each in steps and not is_past(steps, at, each))
    with ground.yard(*kind.stages) as yard:
        spec = yard.submit(kind.begin(yard), kind.expected)
        return _freeze_and_wake(yard, spec, (Act(at, "stop"), Act(next(later), "logic")), ())


def woken_to_succeed(kind: Kind, at: str, ground: Ground, _: Random) -> Found:
    """Like `woken`; the heir has failed for good, and what the other would publish comes too late."""
    steps = steps_on(ground).of(kind)
    planned, landed = (is_past(steps, at, each) for each in ("after-ledger.plan", "after-catalog.commit_table"))
    failing = "before-ledger.decide" if landed else "before-tables.commit" if planned else "after-engine.execute"
    with ground.yard(*kind.stages) as yard:
        expected = Expected(states=frozenset({"succeeded", "failed"}), rows=kind.expected.rows)
        spec = yard.submit(kind.begin(yard), expected)
        found = _freeze_and_wake(yard, spec, (Act(at, "stop"),), (Act(failing, "logic"),))
        state = yard.run_row(spec.run_id)["state"]
        decided = is_past(steps, at, "after-ledger.decide")
        assert state == ("succeeded" if decided else "failed"), f"{state}\n{yard.told()}"
        return found


_FAILING = ("after-engine.execute", "before-tables.commit", "before-ledger.decide")
"""Calls that can fail for good, in their order: the engine, a commit, a decision."""


def _freeze_and_wake(yard: Yard, spec: JobSpec, zombie: Sequence[Act], heir: Sequence[Act]) -> Found:
    victim = yard.worker(spec.stage, *zombie, idle_timeout_s=1)
    assert victim.wait_until_stopped(), f"it never came to {zombie[0].at}\n{victim.told()}"
    yard.injected()
    yard.heir(spec.stage, *heir)
    yard.settle()
    victim.resume()
    victim.wait()
    yard.settle()
    return yard.found()


# ---------------------------------------------------------------- more than one


def killed_again(kind: Kind, ground: Ground, chance: Random) -> Found:
    """One worker dies at some step, and its heir at another: the third ends the run."""
    first, second = (chance.choice(steps_on(ground).of(kind)) for _ in range(2))
    with ground.yard(*kind.stages) as yard:
        spec = yard.submit(kind.begin(yard), kind.expected)
        victim = yard.worker(spec.stage, Act(first, "kill"))
        assert victim.wait() == -signal.SIGKILL, f"it never came to {first}\n{victim.told()}"
        yard.injected()
        _dies_or_ends(yard, yard.heir(spec.stage, Act(second, "kill")))
        yard.heir(spec.stage)
        yard.settle()
        return yard.found()


def woken_among_the_dead(kind: Kind, ground: Ground, chance: Random) -> Found:
    """One worker freezes at some step, its heir dies at another, the third ends the run, and the first wakes up."""
    first, second = (chance.choice(steps_on(ground).of(kind)) for _ in range(2))
    with ground.yard(*kind.stages) as yard:
        spec = yard.submit(kind.begin(yard), kind.expected)
        zombie = yard.worker(spec.stage, Act(first, "stop"), idle_timeout_s=1)
        assert zombie.wait_until_stopped(), f"it never came to {first}\n{zombie.told()}"
        yard.injected()
        _dies_or_ends(yard, yard.heir(spec.stage, Act(second, "kill")))
        yard.heir(spec.stage)
        yard.settle()
        zombie.resume()
        zombie.wait()
        yard.settle()
        return yard.found()


def woken_beside_its_heir(kind: Kind, ground: Ground, chance: Random) -> Found:
    """One worker freezes at some step, its heir at another, and then both go on at once."""
    first, second = (chance.choice(steps_on(ground).of(kind)) for _ in range(2))
    with ground.yard(*kind.stages) as yard:
        spec = yard.submit(kind.begin(yard), kind.expected)
        zombie = yard.worker(spec.stage, Act(first, "stop"), idle_timeout_s=1)
        assert zombie.wait_until_stopped(), f"it never came to {first}\n{zombie.told()}"
        yard.injected()
        heir = yard.heir(spec.stage, Act(second, "stop"))
        yard.wait(lambda: heir.ended or heir.is_frozen() or yard.is_over())
        yard.injected(int(heir.is_frozen()))
        for worker in chance.sample([zombie, heir], 2):
            worker.resume()
        zombie.wait()
        yard.settle()
        return yard.found()


def _dies_or_ends(yard: Yard, heir: Worker) -> None:
    """What was done before it came may have left it nothing to do at the step that it was to die at."""
    yard.wait(lambda: heir.ended or yard.is_over())
    if not heir.ended:
        heir.kill()
        return
    assert heir.wait() == -signal.SIGKILL, f"the heir ended by itself\n{heir.told()}"
    yard.injected()


# ---------------------------------------------------------------- SIGTERM


def stopped(kind: Kind, at: str, ground: Ground, _: Random) -> Found:
    """ECS asks the worker to stop there: it hands the run back, which costs no try, and ends in time."""
    with ground.yard(*kind.stages) as yard:
        spec = yard.submit(kind.begin(yard), kind.expected)
        victim = yard.worker(spec.stage, Act(at, "term"))
        code = victim.wait(GRACE_S)
        yard.injected()
        decided = yard.run_row(spec.run_id)["decided_at"] is not None
        assert code == 75 or (decided and code == 0), f"exit code {code}\n{victim.told()}"
        yard.heir(spec.stage)
        yard.settle()
        attempts = yard.rows_of("SELECT outcome FROM ledger.attempts WHERE run_id = %(run_id)s", run_id=spec.run_id)
        lost = [each for each in attempts if each["outcome"] == "lost"]
        assert not lost, f"a worker that was asked to stop spent a try: {attempts}\n{yard.told()}"
        return yard.found()


# ---------------------------------------------------------------- duplicates


def doubled(kind: Kind, at: str, ground: Ground, _: Random) -> Found:
    """The message is there twice, and two workers take one each; one of them is killed."""
    with ground.yard(*kind.stages) as yard:
        spec = yard.submit(kind.begin(yard), kind.expected)
        yard.send_again(spec)
        workers = [yard.worker(spec.stage, Act(at, "kill")), yard.worker(spec.stage)]
        yard.injected()
        for worker in workers:
            # Which of them gets the run is chance; the other one finds it taken, and never comes to that step.
            yard.injected(int(worker.wait() == -signal.SIGKILL))
        yard.heir(spec.stage)
        yard.settle()
        return yard.found()


# ---------------------------------------------------------------- what moves meanwhile


def moved(at: str, ground: Ground, _: Random) -> Found:
    """The input is published anew between two attempts: the second reads what the first has pinned."""
    with ground.yard(Stage.QUERY) as yard:
        source = Expected(rows={"staging.source": ROWS})
        carried(yard, yard.query("staging.source", mode="replace"), source)
        before = _column(yard, "staging.source", "drawn")
        copy = yard.query("marts.copied", mode="replace", file="copied", inputs=[{"dataset": "staging.source"}])
        yard.submit(copy, Expected(rows={"marts.copied": ROWS}))
        victim = yard.worker(Stage.QUERY, Act(at, "kill"))
        assert victim.wait() == -signal.SIGKILL, f"it never came to {at}\n{victim.told()}"
        yard.injected(2)
        pinned = yard.run_row(copy.run_id)["pinned_at"] is not None
        yard.submit(yard.query("staging.source", mode="replace"), source)
        # Of the two messages, that of the new input is the one that shows.
        yard.heir(Stage.QUERY)
        yard.settle()
        found = yard.found()
        read, now = _column(yard, "marts.copied", "drawn"), _column(yard, "staging.source", "drawn")
        assert before != now
        pins = yard.rows_of("SELECT snapshot FROM ledger.pins WHERE run_id = %(run_id)s", run_id=copy.run_id)
        if pinned and read != before:
            said = f"it published other rows than those of its pin {pins}"
            return _with(found, Violation(invariant="I3", run_id=str(copy.run_id), said=said))
        assert read in (before, now)
        return found


def torn(at: str, ground: Ground, _: Random) -> Found:
    """A model with uuid() fills two tables, and the worker dies between them: both are of one execution."""
    kind = KINDS["dbt"]
    with ground.yard(*kind.stages) as yard:
        spec = yard.submit(kind.begin(yard), kind.expected)
        victim = yard.worker(spec.stage, Act(at, "kill"))
        assert victim.wait() == -signal.SIGKILL, f"it never came to {at}\n{victim.told()}"
        yard.injected()
        yard.heir(spec.stage)
        yard.settle()
        found = yard.found()
        if _column(yard, "marts.one", "drawn") != _column(yard, "marts.two", "drawn"):
            said = "the rows of its two tables are of two executions"
            return _with(found, Violation(invariant="I2", run_id=str(spec.run_id), said=said))
        return found


def grown_twice(at: str, ground: Ground, _: Random) -> Found:
    """Two runs begin from one table's state at once, one of them dies: no rows of either are lost to the other."""
    kind = KINDS["incremental"]
    with ground.yard(*kind.stages) as yard:
        carried(yard, yard.grown(), _GROWN)
        either = Expected(states=frozenset({"succeeded", "failed"}))
        specs = [yard.submit(yard.grown(), either) for _ in range(2)]
        workers = [yard.worker(kind.stages[0], Act(at, "kill")), yard.worker(kind.stages[0])]
        for worker in workers:
            yard.injected(int(worker.wait() == -signal.SIGKILL))
        yard.heir(kind.stages[0])
        yard.settle()
        states = [yard.run_row(spec.run_id)["state"] for spec in specs]
        # Of one logical_time the later submission wins: the earlier one is refused where it comes second.
        assert states[1] == "succeeded", f"{states}\n{yard.told()}"
        yard.tables["marts.grown"] = ROWS * (1 + states.count("succeeded"))
        return yard.found()


# ---------------------------------------------------------------- clocks


def misdated(kind: Kind, off_s: float, at: str, ground: Ground, _: Random) -> Found:
    """The host of the worker that dies has a wrong clock, and so has another that comes after its heir."""
    with ground.yard(*kind.stages) as yard:
        spec = yard.submit(kind.begin(yard), kind.expected)
        victim = yard.worker(spec.stage, Act(at, "kill"), clock_s=off_s)
        assert victim.wait() == -signal.SIGKILL, f"it never came to {at}\n{victim.told()}"
        yard.injected(2)
        heir = yard.heir(spec.stage)
        yard.settle()
        heir.kill()
        again = yard.submit(kind.begin(yard), kind.expected)
        late = yard.worker(again.stage, clock_s=-off_s)
        assert late.wait() == 0, late.told()
        yard.injected()
        yard.settle()
        return yard.found()


# ---------------------------------------------------------------- all together


def _with(found: Found, violation: Violation) -> Found:
    return replace(found, violations=(*found.violations, violation))


def _column(yard: Yard, table: str, column: str) -> list[object]:
    """A published table's values, sorted, read by pyiceberg."""
    arrow = yard.app.tables._catalog.load_table(table).scan(selected_fields=(column,)).to_arrow()
    values: list[object] = sorted(arrow[column].to_pylist())
    return values


AtStep = Callable[[Kind, str, Ground, Random], Found]


def at_steps(fault: str, told: AtStep, kind: Kind, steps: Sequence[str]) -> Iterator[Scenario]:
    """The story at each of these steps of that kind of job."""
    for at in steps:
        yield Story(name=f"{fault}/{kind.name}/{at}", fault=fault, tell=partial(told, kind, at))


def everywhere(ground: Ground) -> Iterator[Scenario]:
    """The long form: every fault at every step of the jobs that it is told of.

    A job of dbt takes ten times as long as another: of those, the steps that no other kind has.
    """
    with ThreadPoolExecutor() as threads:
        steps = dict(zip(KINDS, threads.map(steps_on(ground).of, KINDS.values()), strict=True))
    planned = {name: each[each.index("after-ledger.plan") :] for name, each in steps.items()}
    for name in ("query", "extract", "load", "merge"):
        yield from at_steps("kill -9", killed, KINDS[name], steps[name])
    yield from at_steps("kill -9", killed, KINDS["append"], planned["append"])
    yield from at_steps("kill -9", killed, KINDS["incremental"], planned["incremental"][::4])
    for name in ("query", "load"):
        yield from at_steps("zombie", woken, KINDS[name], steps[name])
    yield from at_steps("zombie", woken, KINDS["merge"], planned["merge"])
    yield from at_steps("zombie", woken, KINDS["dbt"], between_two_tables(steps["dbt"]))
    append = KINDS["append"]
    fails = steps["append"][: steps["append"].index("before-ledger.decide")]
    yield from at_steps("zombie that fails", woken_to_fail, append, fails[::2])
    yield from at_steps("zombie of a failed run", woken_to_succeed, append, steps["append"])
    for told, fault in (
        (killed_again, "kill -9 of the heir too"),
        (woken_among_the_dead, "zombie, and its heir killed"),
        (woken_beside_its_heir, "zombie, and its heir too"),
    ):
        for name in ("load", "merge"):
            for number in range(1, 13):
                yield Story(name=f"{fault}/{name}/{number}", fault=fault, tell=partial(told, KINDS[name]))
    yield from at_steps("SIGTERM", stopped, KINDS["load"], steps["load"])
    yield from at_steps("duplicated message", doubled, append, steps["append"][::2])
    for at in steps["append"][::4]:  # after another run, as this one is: a first one also archives the logic
        yield Story(name=f"moved input/{at}", fault="moved input", tell=partial(moved, at))
    for at in between_two_tables(steps["dbt"]):
        yield Story(name=f"two tables/{at}", fault="killed between two tables", tell=partial(torn, at))
    for at in steps["incremental"][::8]:
        yield Story(name=f"one state/{at}", fault="two runs from one state", tell=partial(grown_twice, at))
    for off_s in (-3600.0, 3600.0):
        for at in steps["append"][::5]:
            name = f"clock {off_s:+.0f} s/{at}"
            yield Story(name=name, fault="clock an hour wrong", tell=partial(misdated, append, off_s, at))


def between_two_tables(steps: Sequence[str]) -> Sequence[str]:
    """From the first table's snapshot to the second one's."""
    return steps[steps.index("after-tables.commit") : steps.index("after-tables.commit-2") + 1]
