"""The delivery protocol as a machine: what a worker does next, what the world may do to it meanwhile.

A step is one call to one service, so that anything can come between two of them. A worker's steps have the names of
what they model in `runner/flow/` and `runner/worker.py`. What decides only what a plan holds (audit, production, the
branches of reruns) is left out, and so is what is tried again on the spot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from tests.protocol.search import Step

# ---------------------------------------------------------------- the state


class Plan(NamedTuple):
    made_by: int
    """The execution whose files it names: the attempt's number, and EPOCH for each time the ledger was restored."""
    states: tuple[int, ...]
    """For each table the snapshot that the output was computed from; STATELESS where it began from none."""
    bases: tuple[int, ...]
    """For each table its newest snapshot when the plan was made."""


class Manifest(NamedTuple):
    state: str
    made_by: int
    """Of its plan; 0 without one."""
    pins: tuple[int, ...]
    landed: tuple[int, ...]
    """For each table the number of the run's snapshot; 0 for none."""


class Snapshot(NamedTuple):
    """Its number is its place in the table's history, from 1; 0 is the table with nothing in it."""

    by: str
    """"run"; "fence", an empty one of a run; or "outside"."""
    run: int
    made_by: int
    over: int
    """The snapshot that it is, with rows added; STATELESS where rows are added to whatever is there."""


TABLES = ("events", "totals")
NONE_LANDED = (0,) * len(TABLES)
EPOCH = 100
STATELESS = -1
NOT_LOADED = -1
NONE_LOADED = (NOT_LOADED,) * len(TABLES)
NO_PLAN = Plan(0, (), ())
NO_MANIFEST = Manifest("", 0, (), ())


class Row(NamedTuple):
    """A run in the ledger."""

    state: str = "queued"
    attempt: int = 0
    tries: int = 0
    lease: bool = False
    cancel: bool = False
    tables: bool = False
    """Whether it has taken the tables that it is to publish."""
    pins: tuple[int, ...] = ()
    plan: Plan = NO_PLAN
    manifest: Manifest = NO_MANIFEST
    recorded: bool = False

    @property
    def decided(self) -> bool:
        return self.manifest != NO_MANIFEST


class Worker(NamedTuple):
    """One that has a message. Those that wait for one have nothing to remember."""

    run: int
    next: str
    """The step that it takes next."""
    attempt: int = 0
    epoch: int = 0
    """How often the ledger had been restored when it claimed."""
    late: bool = False
    """Whether S3 had the run's manifest when it claimed."""
    settling: bool = False
    pins: tuple[int, ...] = ()
    plan: Plan = NO_PLAN
    looked: tuple[int, ...] = NONE_LOADED
    """For each table the newest snapshot in the handle that it loaded for its plan, where it has that one still."""
    output: int = 0
    """The place of the output that it is at."""
    seen: int = NOT_LOADED
    """The newest snapshot in the handle that it has loaded of that output's table."""
    landed: tuple[int, ...] = NONE_LANDED
    why: str = ""
    """What ends the run otherwise than well, as far as it knows."""
    manifest: Manifest = NO_MANIFEST


class Budget(NamedTuple):
    """What the world may still do."""

    crashes: int = 0
    pauses: int = 0
    """Leases that run out while their worker lives: it goes on later, from where it was."""
    duplicates: int = 0
    """Messages that show again while their worker is well."""
    stops: int = 0
    outside: int = 0
    refusals: int = 0
    """Tables that take no plan any more, for as long as that lasts."""
    bad_data: int = 0
    """Executions that fail for good."""
    cancels: int = 0
    backups: int = 0
    waits: int = 0
    """Deliveries that find a table taken. In truth any number, each with an attempt of its own."""


class State(NamedTuple):
    rows: tuple[Row, ...]
    messages: tuple[tuple[int, int], ...]
    """Of each run: visible, hidden."""
    tables: tuple[tuple[Snapshot, ...], ...]
    refusing: tuple[bool, ...]
    """Tables whose columns, say, have become others. That leaves no snapshot, and neither does its end."""
    kept: tuple[Manifest, ...]
    """The manifests in S3."""
    workers: tuple[Worker, ...]
    left: Budget
    backup: tuple[Row, ...] = ()
    epoch: int = 0


class Output(NamedTuple):
    table: int
    has_state: bool


EVENTS, TOTALS = Output(0, has_state=False), Output(1, has_state=True)
"""One adds rows to its table; the other is made from what its table held, with rows added."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The runs, the workers, what may go wrong, and which clauses of the protocol are left out."""

    name: str
    budget: Budget
    workers: int = 2
    max_attempts: int = 3
    runs: tuple[tuple[Output, ...], ...] = ((EVENTS, TOTALS),)
    """The outputs of each, in the order of its spec."""
    new_tables: tuple[int, ...] = ()
    """Those that the first who commits to them makes."""
    without: frozenset[str] = frozenset()

    def has(self, clause: str) -> bool:
        return clause not in self.without

    def first(self) -> State:
        """All submitted, none begun."""
        count = len(self.runs)
        return State(
            rows=(Row(),) * count,
            messages=((1, 0),) * count,
            tables=((),) * len(TABLES),
            refusing=(False,) * len(TABLES),
            kept=(NO_MANIFEST,) * count,
            workers=(),
            left=self.budget,
        )

    def steps(self, now: State) -> Iterator[tuple[Step, State]]:
        """All that can happen next."""
        if len(now.workers) < self.workers:
            for run, (visible, hidden) in enumerate(now.messages):
                if visible:
                    yield _receive(self, now, run, visible, hidden)
        for worker in dict.fromkeys(now.workers):
            yield from STEPS[worker.next](self, now, worker)
        yield from _world(self, now)


Steps = Iterator[tuple[Step, State]]
T = TypeVar("T")


def _placed(items: tuple[T, ...], place: int, item: T) -> tuple[T, ...]:
    return (*items[:place], item, *items[place + 1 :])


def _after(now: State, worker: Worker, then: Worker | None, row: Row | None = None, **parts: Any) -> State:
    """What comes of a worker's step; `then` is None where it is done with its message."""
    workers = list(now.workers)
    workers.remove(worker)
    if then:
        workers.append(then)
    if row:
        parts["rows"] = _placed(now.rows, worker.run, row)
    # Workers are alike: kept in order, so that states which differ in nothing else are one.
    return now._replace(workers=tuple(sorted(workers)), **parts)


def _shown(now: State, run: int) -> tuple[tuple[int, int], ...]:
    visible, hidden = now.messages[run]
    return _placed(now.messages, run, (visible + 1, hidden - 1)) if hidden else now.messages


def _deleted(now: State, run: int) -> tuple[tuple[int, int], ...]:
    """Even where it shows again: a queue may take an old receipt or not, and this is the worse."""
    visible, hidden = now.messages[run]
    return _placed(now.messages, run, (visible, hidden - 1) if hidden else (max(0, visible - 1), 0))


def newest(table: tuple[Snapshot, ...]) -> int:
    """The number of the newest snapshot that is no fence."""
    return max((number for number, each in enumerate(table, 1) if each.by != "fence"), default=0)


def landed(table: tuple[Snapshot, ...], run: int) -> tuple[int, ...]:
    """The numbers of the run's snapshots."""
    return tuple(number for number, each in enumerate(table, 1) if each.by == "run" and each.run == run)


def _first_landed(table: tuple[Snapshot, ...], run: int) -> int:
    return next(iter(landed(table, run)), 0)


# ---------------------------------------------------------------- what workers do


def _of_run(scenario: Scenario, run: int) -> str:
    return f" of run {run + 1}" if len(scenario.runs) > 1 else ""


def _who(scenario: Scenario, worker: Worker) -> str:
    """After a restored ledger with a dash, for its numbers are given out again."""
    dashes = "'" * worker.epoch
    return f"attempt {worker.attempt}{dashes}{_of_run(scenario, worker.run)}"


def _is_mine(scenario: Scenario, now: State, worker: Worker) -> bool:
    row = now.rows[worker.run]
    return not scenario.has("fenced_writes") or (row.attempt == worker.attempt and row.state == "running")


def _lost(scenario: Scenario, now: State, worker: Worker, name: str) -> tuple[Step, State]:
    """The message is left as it is: it is another attempt's now."""
    return Step(name, f"{_who(scenario, worker)} is refused by the ledger, and stops"), _after(now, worker, None)


def _receive(scenario: Scenario, now: State, run: int, visible: int, hidden: int) -> tuple[Step, State]:
    kept = scenario.has("acknowledge_last")
    says = f"a worker takes the message{_of_run(scenario, run)}" + ("" if kept else " and deletes it")
    messages = _placed(now.messages, run, (visible - 1, hidden + kept))
    workers = tuple(sorted((*now.workers, Worker(run, "claim"))))
    return Step("receive", says), now._replace(messages=messages, workers=workers)


def _claim(scenario: Scenario, now: State, worker: Worker) -> Steps:
    row = now.rows[worker.run]
    if row.decided:
        is_owed = not row.recorded and scenario.has("record_by_whoever_comes")
        then = worker._replace(next="record" if is_owed else "acknowledge", manifest=row.manifest)
        yield Step("claim", "the run is over" + (", and its record owed" if is_owed else "")), _after(now, worker, then)
        return
    if row.lease:
        yield Step("claim", "the run is another's"), _after(now, worker, None, messages=_shown(now, worker.run))
        return
    is_too_late = bool(row.plan.made_by) and scenario.has("cancel_before_plan_only")
    then = worker._replace(
        attempt=row.attempt + 1,
        epoch=now.epoch,
        late=now.kept[worker.run] != NO_MANIFEST,
        settling=row.tries >= scenario.max_attempts,
        pins=row.pins,
        plan=row.plan if scenario.has("plan_rolled_forward") else NO_PLAN,
        why="cancelled" if row.cancel and not is_too_late else "",
    )
    then = then._replace(next="recall" if scenario.has("recall") else _first_step(then))
    row = row._replace(state="running", attempt=then.attempt, tries=row.tries + 1, lease=True)
    says = f"{_who(scenario, then)} has the run" + (", and finds a plan" if then.plan.made_by else "")
    yield Step("claim", says), _after(now, worker, then, row)


def _first_step(claimed: Worker) -> str:
    if claimed.why == "cancelled":
        return "look"
    if claimed.plan.made_by:
        return "commit"
    return "settle" if claimed.settling else "lease"


def _recall(scenario: Scenario, now: State, worker: Worker) -> Steps:
    kept, who = now.kept[worker.run], _who(scenario, worker)
    if kept == NO_MANIFEST:
        then = worker._replace(next=_first_step(worker))
        yield Step("recall", f"{who} finds no manifest in S3"), _after(now, worker, then)
    elif not _is_mine(scenario, now, worker):
        yield _lost(scenario, now, worker, "recall")
    else:
        then, row = worker._replace(next="record", manifest=kept), _decided(now.rows[worker.run], kept)
        yield Step("recall", f"{who} finds a manifest in S3 and puts it back"), _after(now, worker, then, row)


def _lease(scenario: Scenario, now: State, worker: Worker) -> Steps:
    row, who = now.rows[worker.run], _who(scenario, worker)
    if not _is_mine(scenario, now, worker):
        yield _lost(scenario, now, worker, "lease")
    elif not scenario.has("table_leases") or not _is_taken(scenario, now, worker.run):
        then, row = worker._replace(next="resolve"), row._replace(tables=True)
        yield Step("lease", f"{who} has its tables"), _after(now, worker, then, row)
    elif now.left.waits:
        row = row._replace(state="queued", lease=False, tries=row.tries - 1)
        messages, left = _shown(now, worker.run), now.left._replace(waits=now.left.waits - 1)
        says = f"{who} finds a table taken, and gives the run back"
        yield Step("lease", says), _after(now, worker, None, row, messages=messages, left=left)


def _is_taken(scenario: Scenario, now: State, run: int) -> bool:
    return any(
        mine.table == theirs.table and (mine.has_state or theirs.has_state)
        for other, row in enumerate(now.rows)
        if other != run and row.tables
        for mine in scenario.runs[run]
        for theirs in scenario.runs[other]
    )


def _resolve(scenario: Scenario, now: State, worker: Worker) -> Steps:
    row, who = now.rows[worker.run], _who(scenario, worker)
    if worker.pins and scenario.has("same_pins"):
        yield Step("resolve", f"{who} has the run's pins"), _after(now, worker, worker._replace(next="execute"))
        return
    if not _is_mine(scenario, now, worker):
        yield _lost(scenario, now, worker, "resolve")
        return
    with_state = {output.table for output in scenario.runs[worker.run] if output.has_state}
    found = tuple(newest(each) if place in with_state else STATELESS for place, each in enumerate(now.tables))
    row = row._replace(pins=row.pins or found)
    pins = row.pins if scenario.has("same_pins") else found
    says = " and ".join(f"{TABLES[place]} at {pins[place]}" for place in sorted(with_state)) or "nothing"
    yield Step("resolve", f"{who} pins {says}"), _after(now, worker, worker._replace(next="execute", pins=pins), row)


def _execute(scenario: Scenario, now: State, worker: Worker) -> Steps:
    who = _who(scenario, worker)
    yield Step("execute", f"{who} makes rows of its own"), _after(now, worker, worker._replace(next="plan"))
    if now.left.bad_data:
        then, left = worker._replace(next="fail", why="data"), now.left._replace(bad_data=now.left.bad_data - 1)
        yield Step("execute", f"{who} meets bad data"), _after(now, worker, then, left=left)


def _plan(scenario: Scenario, now: State, worker: Worker) -> Steps:
    row, who = now.rows[worker.run], _who(scenario, worker)
    if worker.looked == NONE_LOADED:
        then = worker._replace(looked=tuple(len(each) for each in now.tables))
        yield Step("plan", f"{who} has loaded what it is to commit to"), _after(now, worker, then)
        return
    if not _is_mine(scenario, now, worker):
        yield _lost(scenario, now, worker, "plan")
        return
    if row.cancel and not row.plan.made_by and scenario.has("no_plan_after_cancel"):
        then = worker._replace(next="look", why="cancelled")
        yield Step("plan", f"{who} hears that the run is to be cancelled"), _after(now, worker, then)
        return
    made = Plan(worker.epoch * EPOCH + worker.attempt, worker.pins, worker.looked)
    in_force = row.plan if row.plan.made_by and scenario.has("first_plan_wins") else made
    says = (
        f"{who} stores its plan" if in_force is made else f"{who} gets the plan of attempt {in_force.made_by % EPOCH}"
    )
    then = worker._replace(next="commit", plan=in_force)
    yield Step("plan", says), _after(now, worker, then, row._replace(plan=in_force))


def _commit(scenario: Scenario, now: State, worker: Worker) -> Steps:
    """Two steps for each output: the look at the table, loaded now or for the plan, and the commit to what it was."""
    outputs = _in_order(scenario, worker.run)
    output, plan, who = outputs[worker.output], worker.plan, _who(scenario, worker)
    place = output.table
    table, name = now.tables[place], TABLES[place]

    def so(says: str, then: Worker, **parts: Any) -> tuple[Step, State]:
        return Step("commit", f"{who} {says}"), _after(now, worker, then, **parts)

    def failed(why: str) -> Worker:
        return worker._replace(next="fail", why=why, output=0, seen=NOT_LOADED)

    def with_snapshot(number: int) -> Worker:
        there = worker._replace(landed=_placed(worker.landed, place, number))
        return _past(there, outputs, "commit", then="decide")

    if worker.seen == NOT_LOADED:
        if worker.looked[place] != NOT_LOADED:
            table = table[: worker.looked[place]]
        own = _first_landed(table, worker.run)
        is_own_plans = bool(own) and _is_of_plan(scenario, table[own - 1], plan)
        if own and (scenario.has("adopt_own") if is_own_plans else not scenario.has("refuse_other_plan")):
            yield so(f"finds its snapshot of {name} there", with_snapshot(own))
        elif own and not is_own_plans:
            yield so(f"finds another plan's snapshot of {name}", failed("conflict"))
        elif scenario.has("fence_when_plan_cannot_land") and _is_fenced(table, worker.run, plan.bases[place]):
            yield so(f"finds a fence in {name}", failed("conflict"))
        elif output.has_state and scenario.has("state_checked") and newest(table) != plan.states[place]:
            any_landed = any(landed(now.tables[each.table], worker.run) for each in outputs)
            if any_landed and scenario.has("void_only_if_nothing_landed"):
                yield so(f"finds {name} moved from its pin, after another output landed", failed("conflict"))
            else:
                yield so(f"finds {name} moved from its pin", worker._replace(next="void", output=0))
        else:
            yield so(f"has loaded {name} at {len(table)}", worker._replace(seen=len(table)))
    elif now.refusing[place]:
        yield so(f"is refused by {name}", failed("refused")._replace(output=worker.output))
    elif scenario.has("compare_and_swap") and worker.seen != len(table):
        anew = worker._replace(seen=NOT_LOADED, looked=_placed(worker.looked, place, NOT_LOADED))
        yield so(f"loses the race for {name}", anew)
    else:
        snapshot = Snapshot("run", worker.run, plan.made_by, plan.states[place])
        number, tables = len(table) + 1, _placed(now.tables, place, (*table, snapshot))
        whose = "" if plan.made_by % EPOCH == worker.attempt else f", of attempt {plan.made_by % EPOCH}'s plan"
        yield so(f"commits snapshot {number} of {name}{whose}", with_snapshot(number), tables=tables)


def _in_order(scenario: Scenario, run: int) -> tuple[Output, ...]:
    """In which outputs are committed, by every attempt alike."""
    outputs = scenario.runs[run]
    return tuple(sorted(outputs, key=lambda output: not output.has_state)) if scenario.has("state_first") else outputs


def _is_of_plan(scenario: Scenario, snapshot: Snapshot, plan: Plan) -> bool:
    if scenario.has("plan_id"):
        return snapshot.made_by == plan.made_by
    return snapshot.made_by % EPOCH == plan.made_by % EPOCH


def _is_fenced(table: tuple[Snapshot, ...], run: int, base: int) -> bool:
    return any(each.by == "fence" and each.run == run for each in table[base:])


def _past(worker: Worker, outputs: tuple[Output, ...], step: str, *, then: str) -> Worker:
    """At the next output; or, after the last, at the next step."""
    is_over = worker.output + 1 == len(outputs)
    return worker._replace(next=then if is_over else step, output=0 if is_over else worker.output + 1, seen=NOT_LOADED)


def _void(scenario: Scenario, now: State, worker: Worker) -> Steps:
    if not _is_mine(scenario, now, worker):
        yield _lost(scenario, now, worker, "commit")
        return
    then = worker._replace(next="fail", why="moved", plan=NO_PLAN, pins=())
    row = now.rows[worker.run]._replace(plan=NO_PLAN, pins=())
    yield Step("commit", f"{_who(scenario, worker)} makes the plan void"), _after(now, worker, then, row)


def _settle(scenario: Scenario, now: State, worker: Worker) -> Steps:
    says = f"{_who(scenario, worker)} finds the tries used up"
    yield Step("settle", says), _after(now, worker, worker._replace(next="fail", why="used up"))


def _fail(scenario: Scenario, now: State, worker: Worker) -> Steps:
    row, who = now.rows[worker.run], _who(scenario, worker)
    cannot_land = worker.why == "refused" and scenario.has("fence_when_plan_cannot_land")
    then = worker._replace(landed=NONE_LANDED, next="fence") if cannot_land else _looking(worker)
    if not worker.plan.made_by and row.cancel and not row.plan.made_by and not row.decided:
        says = f"{who} hears that the run is to be cancelled"
        yield Step("fail", says), _after(now, worker, then._replace(why="cancelled"))
    elif worker.why != "moved" or row.tries >= scenario.max_attempts:
        yield Step("fail", f"{who} is to decide that the run failed"), _after(now, worker, then)
    else:
        yield _given_back(scenario, now, worker, "fail")


def _looking(worker: Worker) -> Worker:
    return worker._replace(next="look", landed=NONE_LANDED, output=0, seen=NOT_LOADED)


def _given_back(scenario: Scenario, now: State, worker: Worker, name: str) -> tuple[Step, State]:
    if not _is_mine(scenario, now, worker):
        return _lost(scenario, now, worker, name)
    row, messages = now.rows[worker.run]._replace(state="queued", lease=False), _shown(now, worker.run)
    return Step(name, f"{_who(scenario, worker)} gives the run back"), _after(now, worker, None, row, messages=messages)


def _fence(scenario: Scenario, now: State, worker: Worker) -> Steps:
    """From the output that was refused on: those before it have landed."""
    outputs, who = _in_order(scenario, worker.run), _who(scenario, worker)
    place = outputs[worker.output].table
    table, name = now.tables[place], TABLES[place]
    over = _past(worker._replace(why="fencing"), outputs, "fence", then="look")
    if worker.seen == NOT_LOADED and landed(table, worker.run):
        if worker.why == "refused" and scenario.has("given_back_if_landed_after_all"):
            yield _given_back(scenario, now, worker, "fence")
        else:
            yield Step("fence", f"{who} finds {name} landed after all"), _after(now, worker, over)
    elif worker.seen == NOT_LOADED and not _exists(scenario, now, place):
        yield Step("fence", f"{who} finds no {name} to fence"), _after(now, worker, over)
    elif worker.seen == NOT_LOADED:
        then = worker._replace(seen=len(table))
        yield Step("fence", f"{who} has loaded {name} at {len(table)}"), _after(now, worker, then)
    elif worker.seen != len(table):
        yield Step("fence", f"{who} loses the race for {name}"), _after(now, worker, worker._replace(seen=NOT_LOADED))
    else:
        tables = _placed(now.tables, place, (*table, Snapshot("fence", worker.run, 0, STATELESS)))
        yield Step("fence", f"{who} commits a fence to {name}"), _after(now, worker, over, tables=tables)


def _exists(scenario: Scenario, now: State, place: int) -> bool:
    return bool(now.tables[place]) or place not in scenario.new_tables


def _look(scenario: Scenario, now: State, worker: Worker) -> Steps:
    outputs, who = scenario.runs[worker.run], _who(scenario, worker)
    place = outputs[worker.output].table
    own = _first_landed(now.tables[place], worker.run) if scenario.has("look_before_failed") else 0
    then = _past(worker._replace(landed=_placed(worker.landed, place, own)), outputs, "look", then="decide")
    says = f"{who} finds snapshot {own} of {TABLES[place]}" if own else f"{who} lists nothing of {TABLES[place]}"
    yield Step("look", says), _after(now, worker, then)


def _decide(scenario: Scenario, now: State, worker: Worker) -> Steps:
    if not _is_mine(scenario, now, worker):
        yield _lost(scenario, now, worker, "decide")
        return
    state = {"": "succeeded", "cancelled": "cancelled"}.get(worker.why, "failed")
    manifest = Manifest(state, worker.plan.made_by, worker.pins, worker.landed)
    # From here on nothing but the manifest matters.
    then = Worker(worker.run, "record", worker.attempt, worker.epoch, manifest=manifest)
    row = _decided(now.rows[worker.run], manifest)
    yield Step("decide", f"{_who(scenario, worker)} decides: {state}"), _after(now, worker, then, row)


def _decided(row: Row, manifest: Manifest) -> Row:
    return row._replace(state=manifest.state, manifest=manifest, lease=False, tables=False)


def _record(scenario: Scenario, now: State, worker: Worker) -> Steps:
    kept, run = now.kept[worker.run], worker.run
    if kept not in (NO_MANIFEST, worker.manifest) and scenario.has("record_once"):
        says = "another manifest is there: the message goes to the dead letters"
        yield Step("record", says), _after(now, worker, None, messages=_deleted(now, run))
        return
    then, kept_then = worker._replace(next="note"), _placed(now.kept, run, worker.manifest)
    yield Step("record", f"the manifest{_of_run(scenario, run)} is in S3"), _after(now, worker, then, kept=kept_then)


def _note(scenario: Scenario, now: State, worker: Worker) -> Steps:
    then, row = worker._replace(next="acknowledge"), now.rows[worker.run]._replace(recorded=True)
    yield Step("record", "the ledger notes that it is recorded"), _after(now, worker, then, row)


def _acknowledge(scenario: Scenario, now: State, worker: Worker) -> Steps:
    says = f"the message{_of_run(scenario, worker.run)} is deleted"
    yield Step("acknowledge", says), _after(now, worker, None, messages=_deleted(now, worker.run))


STEPS: dict[str, Callable[[Scenario, State, Worker], Steps]] = {
    "claim": _claim,
    "recall": _recall,
    "lease": _lease,
    "resolve": _resolve,
    "execute": _execute,
    "plan": _plan,
    "commit": _commit,
    "void": _void,
    "settle": _settle,
    "fail": _fail,
    "fence": _fence,
    "look": _look,
    "decide": _decide,
    "record": _record,
    "note": _note,
    "acknowledge": _acknowledge,
}


# ---------------------------------------------------------------- what the world does

WORLD = ("crash", "stop", "lease ends", "delivery", "cancel", "outside", "refuse", "allow", "backup", "restore")
"""The names of its steps."""


def _world(scenario: Scenario, now: State) -> Steps:
    for worker in dict.fromkeys(now.workers):
        yield from _worker_ends(scenario, now, worker)
    for run, row in enumerate(now.rows):
        yield from _time_passes(scenario, now, run, row)
        yield from _somebody_cancels(scenario, now, run, row)
    if not all(row.decided for row in now.rows):
        for place in sorted({output.table for outputs in scenario.runs for output in outputs}):
            yield from _table_changes(scenario, now, place)
    yield from _ledger_is_restored(scenario, now)


def _worker_ends(scenario: Scenario, now: State, worker: Worker) -> Steps:
    left = now.left
    who = _who(scenario, worker) if worker.attempt else "a worker"
    if left.crashes:
        after = _after(now, worker, None, left=left._replace(crashes=left.crashes - 1))
        yield Step("crash", f"{who} dies before its next step, {worker.next}"), after
    if left.stops and _is_under_lease(worker) and _is_mine(scenario, now, worker):
        row = now.rows[worker.run]
        row = row._replace(state="queued", lease=False, tries=row.tries - 1)
        messages, left_then = _shown(now, worker.run), left._replace(stops=left.stops - 1)
        says = f"{who} is told to stop, and gives the run back"
        yield Step("stop", says), _after(now, worker, None, row, messages=messages, left=left_then)


def _is_under_lease(worker: Worker) -> bool:
    return worker.next not in ("claim", "record", "note", "acknowledge")


def _time_passes(scenario: Scenario, now: State, run: int, row: Row) -> Steps:
    """A lease or a message's rest ends: by itself where its worker is dead, else as often as the budget has it."""
    left, of_run = now.left, _of_run(scenario, run)
    workers = [worker for worker in now.workers if worker.run == run]
    if row.lease:
        lives = any((worker.attempt, worker.epoch) == (row.attempt, now.epoch) for worker in workers)
        if left.pauses or not lives:
            after = now._replace(
                rows=_placed(now.rows, run, row._replace(lease=False)), left=left._replace(pauses=left.pauses - lives)
            )
            yield Step("lease ends", f"attempt {row.attempt}{of_run} is {'paused' if lives else 'dead'}"), after
    hidden = now.messages[run][1]
    if hidden:
        well = sum(not _is_under_lease(each) or (each.attempt == row.attempt and row.lease) for each in workers)
        is_kept = well >= hidden
        if left.duplicates or not is_kept:
            after = now._replace(messages=_shown(now, run), left=left._replace(duplicates=left.duplicates - is_kept))
            says = f"the message{of_run} shows again" + (", though its worker is well" if is_kept else "")
            yield Step("delivery", says), after


def _somebody_cancels(scenario: Scenario, now: State, run: int, row: Row) -> Steps:
    is_too_late = bool(row.plan.made_by) and scenario.has("cancel_before_plan_only")
    if now.left.cancels and not row.cancel and not row.decided and not is_too_late:
        rows = _placed(now.rows, run, row._replace(cancel=True))
        after = now._replace(rows=rows, left=now.left._replace(cancels=now.left.cancels - 1))
        yield Step("cancel", f"somebody asks for it{_of_run(scenario, run)}, and is told that it will be"), after


def _table_changes(scenario: Scenario, now: State, place: int) -> Steps:
    left, table, name = now.left, now.tables[place], TABLES[place]
    if left.outside:
        tables = _placed(now.tables, place, (*table, Snapshot("outside", 0, 0, STATELESS)))
        after = now._replace(tables=tables, left=left._replace(outside=left.outside - 1))
        yield Step("outside", f"somebody else adds rows to {name}"), after
    if now.refusing[place]:
        yield Step("allow", f"{name} is as it was"), now._replace(refusing=_placed(now.refusing, place, False))
    elif left.refusals and _exists(scenario, now, place):
        after = now._replace(
            refusing=_placed(now.refusing, place, True), left=left._replace(refusals=left.refusals - 1)
        )
        yield Step("refuse", f"{name} becomes one that the plan cannot land in"), after


def _ledger_is_restored(scenario: Scenario, now: State) -> Steps:
    """As the runbook has it: workers are stopped first, and runs that are not over are sent again."""
    if now.left.backups:
        after = now._replace(backup=now.rows, left=now.left._replace(backups=now.left.backups - 1))
        yield Step("backup", "the ledger is backed up"), after
    if now.backup and now.backup != now.rows:
        after = now._replace(
            rows=tuple(row._replace(lease=False) for row in now.backup),
            backup=(),
            epoch=now.epoch + 1,
            messages=tuple((visible, hidden) if visible + hidden else (1, 0) for visible, hidden in now.messages),
            workers=() if scenario.has("stop_workers_before_restore") else now.workers,
        )
        yield Step("restore", "the ledger comes back from the backup"), after
