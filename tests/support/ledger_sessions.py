"""What several sessions may ask of the ledger at once, what each has to be told, and how to ask it of a real Postgres.

`answer` tells the ledger's protocol once more, and the tables are read by SQL of this file alone: nothing here is
shared with the ledger that is judged by it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import count, permutations
from threading import Barrier
from typing import Any, Literal, LiteralString
from uuid import UUID

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from runner.adapters.pg_ledger import PgLedger
from runner.model.errors import Category, Failure, InfrastructureError, SpecError, TransientError
from runner.model.manifest import Manifest, Pin, Plan, Report, State
from runner.model.spec import JobSpec
from runner.ports import Busy, CancelWanted, Claimed, Decided, LostLease
from tests.support.documents import input_record, job_spec, manifest_of, output_record, run_id

Kind = Literal["claim", "heartbeat", "lease", "pin", "plan", "void", "release", "cancel", "decide", "record"]
Ended = Literal[State.SUCCEEDED, State.FAILED, State.CANCELLED]
Door = Literal["runs", "attempts", "pins", "leases", "outputs", "edges"]
"""What nobody gets past while it is shut: the rows of `runs`, or any write to one of the other tables."""

_UNBOUND: tuple[Kind, ...] = ("claim", "cancel", "record")
"""What is asked by whoever comes, not by an attempt."""
TRIES = (2, 1, 3)
"""How often each run of a history may be tried, by its number."""
SESSIONS = 4
CUT_OFF = "cut off"
_NEVER_OVER_S = 3600.0
_GIVE_UP_S = 60.0
"""After which a test that would hang fails; whoever waits is seen in milliseconds."""
_FAILURE = Failure(category=Category.TRANSIENT, message="portal: expected 200, got 503")


# ---------------------------------------------------------------- histories


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What one session is to ask, told by where the run is when it asks."""

    kind: Kind
    run: int = 0
    behind: int = 0
    """By how much the attempt that it asks as is older than the one in force; -1: one that nobody was given yet."""
    shared: frozenset[int] = frozenset()
    alone: frozenset[int] = frozenset()
    handed_back: bool = False
    waits: bool = False
    stale: bool = False
    """Whether it asks as an attempt even where none is at work, and voids another plan than the one in force."""
    state: Ended = State.SUCCEEDED

    def __repr__(self) -> str:
        return _told_apart(self)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is asked at the same time, each wish by a session of its own."""

    wishes: tuple[Wish, ...]
    leases_end: bool = False
    """Whether, before, every lease runs out and every wait is over."""
    door: Door | None = None
    """None: all begin at once. Else they come one after another before a shut door, which then is opened."""
    cut: frozenset[int] = frozenset()
    """The sessions whose connection Postgres ends while they ask; before a door, while they wait."""

    def __repr__(self) -> str:
        return _told_apart(self)


def _told_apart(made: Wish | Step) -> str:
    """As it would be written by hand: a history that fails is read by people."""
    given = {each.name: getattr(made, each.name) for each in fields(made) if getattr(made, each.name) != each.default}
    return f"{type(made).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A wish, come to the point: what exactly is asked of the ledger."""

    kind: Kind
    spec: JobSpec
    worker: str
    attempt: int
    serial: int
    """Tells what this operation writes from what others do: its pins, its plan, its manifest."""
    shared: tuple[str, ...]
    alone: tuple[str, ...]
    outcome: Literal["retry", "handed back"]
    wait_s: float
    voids: UUID
    state: Ended

    def __repr__(self) -> str:
        told: dict[Kind, object] = {
            "claim": self.worker,
            "lease": f"shared {list(self.shared)} alone {list(self.alone)}",
            "pin": self.serial,
            "plan": self.serial,
            "void": self.voids.int,
            "release": f"{self.outcome} wait {self.wait_s}",
            "decide": f"{self.state.value} {self.serial}",
        }
        bound = "" if self.kind in _UNBOUND else f" as {self.attempt}"
        return f"{self.kind} {self.spec.run_id.int}{bound}: {told.get(self.kind, '')}"

    @property
    def pins(self) -> tuple[Pin, ...]:
        """None at all for some: to have pinned nothing is to be remembered too."""
        names = ("staging.flights", "staging.planes") if self.serial % 4 else ()
        return tuple(Pin(as_=name, dataset=name, snapshot=str(self.serial), metadata="m.json") for name in names)

    @property
    def plan(self) -> Plan:
        return Plan(
            plan_id=UUID(int=self.serial),
            run_id=self.spec.run_id,
            attempt=self.attempt,
            outputs=(output_record("marts.delays", snapshot=None),),
            report=Report(),
        )

    @property
    def manifest(self) -> Manifest:
        return manifest_of(
            output_record("marts.delays", snapshot=str(self.serial), claimed_inputs=("staging.flights",)),
            output_record("marts.unlanded", snapshot=None),
            inputs=(input_record("staging.flights"),),
            spec=self.spec,
            state=self.state,
            failure=_FAILURE if self.state is State.FAILED else None,
            plan_id=UUID(int=self.serial),
            attempt=self.attempt,
        )


# ---------------------------------------------------------------- what has to be answered


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as the tables hold it, of times only whether they are over; plans and manifests by their serials."""

    tries: int
    state: str = "queued"
    attempt: int = 0
    leased: bool = False
    waiting: bool = False
    cancel_asked: bool = False
    pins: tuple[str, ...] | None = None
    plan: int | None = None
    attempts: tuple[tuple[str, str], ...] = ()
    """Who made each, and how it ended, in the order of their numbers."""
    tables: tuple[tuple[str, bool], ...] = ()
    """What it holds, and whether alone."""
    manifest: int | None = None
    outputs: tuple[str, ...] = ()
    recorded: bool = False

    @property
    def cancel_wanted(self) -> bool:
        return self.cancel_asked and self.plan is None

    def ends(self, outcome: str) -> tuple[tuple[str, str], ...]:
        return (*self.attempts[:-1], (self.attempts[-1][0], outcome))


World = Mapping[UUID, Run]
"""The runs that the ledger knows."""
Answer = object
"""Compared, and shown where it is not the one expected."""


def answer(world: World, asked: Operation) -> tuple[Answer, World]:
    """What a session that is alone with the ledger has to be told, and how the ledger is to be then."""
    run_id = asked.spec.run_id
    run = world.get(run_id)
    bound = asked.kind not in _UNBOUND
    if bound and (run is None or run.state != "running" or run.attempt != asked.attempt):
        return "lost", world
    if run is None:
        if asked.kind == "cancel":
            return "no such run", world
        run = Run(tries=asked.spec.max_attempts)
    told, then = _alone(world, run, asked)
    return told, {**world, run_id: then}


def _alone(world: World, run: Run, asked: Operation) -> tuple[Answer, Run]:
    match asked.kind:
        case "claim":
            if run.manifest is not None:
                return ("decided", run.manifest, run.recorded), run
            if run.leased or run.waiting:
                return "busy", run
            spent = sum(outcome != "handed back" for _, outcome in run.attempts)
            lost = tuple((who, "lost" if outcome == "running" else outcome) for who, outcome in run.attempts)
            taken = replace(
                run,
                state="running",
                attempt=run.attempt + 1,
                leased=True,
                waiting=False,
                attempts=(*lost, (asked.worker, "running")),
            )
            settling = spent >= run.tries
            return ("claimed", taken.attempt, spent + 1, settling, run.pins, run.plan, run.cancel_wanted), taken
        case "heartbeat":
            return run.cancel_wanted, replace(run, leased=True)
        case "lease":
            in_the_way = [
                other_id
                for other_id, other in world.items()
                if other_id != asked.spec.run_id
                for name, alone in other.tables
                if name in asked.alone or (name in asked.shared and alone)
            ]
            if in_the_way:
                return min(in_the_way), run
            held = dict.fromkeys(asked.shared, False) | dict(run.tables) | dict.fromkeys(asked.alone, True)
            return None, replace(run, tables=tuple(sorted(held.items())))
        case "pin":
            pinned = replace(run, pins=_written(asked.pins) if run.pins is None else run.pins)
            return pinned.pins, pinned
        case "plan":
            if run.cancel_wanted:
                return "cancel wanted", run
            planned = replace(run, plan=asked.serial if run.plan is None else run.plan)
            return planned.plan, planned
        case "void":
            return None, replace(run, plan=None, pins=None) if run.plan == asked.voids.int else run
        case "release":
            waiting = asked.wait_s > 0 and not run.cancel_wanted
            return None, replace(run, state="queued", leased=False, waiting=waiting, attempts=run.ends(asked.outcome))
        case "cancel":
            if run.manifest is not None:
                return "over", run
            if run.plan is not None:
                return "too late", run
            return "asked", replace(run, cancel_asked=True, waiting=False)
        case "decide":
            return None, replace(
                run,
                state=asked.state.value,
                leased=False,
                waiting=False,
                attempts=run.ends(asked.state.value),
                tables=(),
                manifest=asked.serial,
                outputs=(str(asked.serial),),
            )
        case "record":
            return None, replace(run, recorded=True)


def explains(world: World, told: Sequence[tuple[Operation, Answer]], then: World) -> bool:
    """Whether there is an order in which one after another is told just this, and leaves the ledger so.

    Of one that was cut off nobody knows whether it was done, but it was or it was not.
    """

    def leads_there(order: Sequence[tuple[Operation, Answer]], now: World) -> bool:
        if not order:
            return now == then
        (asked, came), *rest = order
        expected, after = answer(now, asked)
        if came == CUT_OFF:
            return leads_there(rest, after) or leads_there(rest, now)
        return came == expected and leads_there(rest, after)

    return any(leads_there(order, world) for order in permutations(told))


def _written(pins: Sequence[Pin]) -> tuple[str, ...]:
    return tuple(f"{pin.as_} {pin.snapshot}" for pin in pins)


def _ask(ledger: PgLedger, asked: Operation) -> Answer:
    """The same question to the real ledger, its answer as `answer` tells it."""
    key = asked.spec.run_id, asked.attempt
    try:
        match asked.kind:
            case "claim":
                return _told(ledger.claim(asked.spec, worker=asked.worker))
            case "heartbeat":
                return ledger.heartbeat(*key)
            case "lease":
                return ledger.lease(*key, shared=asked.shared, exclusive=asked.alone)
            case "pin":
                return _written(ledger.pin(*key, asked.pins))
            case "plan":
                return ledger.plan(*key, asked.plan).plan_id.int
            case "void":
                ledger.void(*key, asked.voids)
            case "release":
                failure = _FAILURE if asked.outcome == "retry" else None
                ledger.release(*key, outcome=asked.outcome, failure=failure, wait_s=asked.wait_s)
            case "cancel":
                return ledger.cancel(asked.spec.run_id)
            case "decide":
                ledger.decide(asked.manifest, attempt=asked.attempt)
            case "record":
                ledger.mark_recorded(asked.spec.run_id)
    except LostLease:
        return "lost"
    except CancelWanted:
        return "cancel wanted"
    except SpecError:
        return "no such run"
    return None


def _told(claim: Claimed | Busy | Decided) -> Answer:
    match claim:
        case Claimed():
            pins = None if claim.pins is None else _written(claim.pins)
            plan = None if claim.plan is None else claim.plan.plan_id.int
            return "claimed", claim.attempt, claim.tries, claim.settling, pins, plan, claim.cancelled
        case Busy():
            assert claim.seconds > 0
            return "busy"
        case Decided():
            assert claim.manifest.plan_id is not None
            return "decided", claim.manifest.plan_id.int, claim.recorded


# ---------------------------------------------------------------- what the tables hold

_RUNS: LiteralString = """
SELECT r.run_id, r.max_attempts AS tries, r.state, r.attempt, r.cancel_asked_at IS NOT NULL AS cancel_asked,
       coalesce(r.lease_expires_at > clock_timestamp(), false) AS leased,
       coalesce(r.not_before > clock_timestamp(), false) AS waiting,
       r.plan::json ->> 'plan_id' AS plan, r.manifest::json ->> 'plan_id' AS manifest,
       r.recorded_at IS NOT NULL AS recorded, r.pinned_at IS NOT NULL AS pinned,
       to_jsonb(r) AS row,
       ARRAY(SELECT to_jsonb(a) FROM ledger.attempts a WHERE a.run_id = r.run_id ORDER BY attempt) AS attempts,
       ARRAY(SELECT to_jsonb(p) FROM ledger.pins p WHERE p.run_id = r.run_id ORDER BY alias) AS pins,
       ARRAY(SELECT to_jsonb(l) FROM ledger.leases l WHERE l.run_id = r.run_id ORDER BY dataset) AS tables,
       ARRAY(SELECT to_jsonb(o) FROM ledger.outputs o WHERE o.run_id = r.run_id ORDER BY dataset) AS outputs,
       ARRAY(SELECT to_jsonb(e) FROM ledger.edges e WHERE e.run_id = r.run_id ORDER BY output, input) AS edges
FROM ledger.runs r WHERE r.run_id = ANY(%(runs)s)
"""

_BROKEN: LiteralString = """
WITH runs AS (SELECT * FROM ledger.runs WHERE run_id = ANY(%(runs)s)),
     attempts AS (SELECT * FROM ledger.attempts WHERE run_id = ANY(%(runs)s))
SELECT 'attempts are numbered from 1 to the one in force, none left out' AS law, run_id FROM runs r
WHERE ARRAY(SELECT a.attempt FROM attempts a WHERE a.run_id = r.run_id ORDER BY 1)
      <> ARRAY(SELECT generate_series(1, r.attempt))
UNION ALL
SELECT 'the attempt in force of a running run is at work, and no other', run_id FROM runs r
WHERE ARRAY(SELECT a.attempt FROM attempts a WHERE a.run_id = r.run_id AND a.outcome = 'running')
      <> CASE WHEN r.state = 'running' THEN ARRAY[r.attempt] ELSE ARRAY[]::integer[] END
UNION ALL
SELECT 'an attempt that has ended says when, and only that one', run_id FROM attempts
WHERE (ended_at IS NULL) <> (outcome = 'running')
UNION ALL
SELECT 'only a running run has a lease', run_id FROM runs WHERE (lease_expires_at IS NULL) = (state = 'running')
UNION ALL
SELECT 'a run that is to be cancelled has no plan', run_id FROM runs
WHERE (cancel_asked_at IS NOT NULL OR state = 'cancelled') AND plan IS NOT NULL
UNION ALL
SELECT 'only a run that was pinned has pins', run_id FROM runs r
WHERE pinned_at IS NULL AND EXISTS (SELECT FROM ledger.pins p WHERE p.run_id = r.run_id)
UNION ALL
SELECT 'who has a table alone has it alone', l.run_id
FROM ledger.leases l JOIN ledger.leases other ON other.dataset = l.dataset AND other.run_id <> l.run_id
WHERE l.run_id = ANY(%(runs)s) AND l.exclusive
UNION ALL
SELECT 'a decided run holds no table', run_id FROM runs r
WHERE decided_at IS NOT NULL AND EXISTS (SELECT FROM ledger.leases l WHERE l.run_id = r.run_id)
UNION ALL
SELECT 'a decided run is what its manifest says', r.run_id FROM runs r
WHERE r.manifest IS NOT NULL
  AND (r.state, r.run_id::text, r.decided_at, r.failure ->> 'message', r.rows_out, r.attempt)
      IS DISTINCT FROM
      (r.manifest::json ->> 'state', r.manifest::json ->> 'run_id', (r.manifest::json ->> 'decided_at')::timestamptz,
       r.manifest::json #>> '{failure,message}', (r.manifest::json #>> '{outputs,0,rows}')::bigint,
       (r.manifest::json ->> 'attempt')::integer)
UNION ALL
SELECT 'the last attempt of a decided run ended as the run did', r.run_id
FROM runs r LEFT JOIN attempts a ON a.run_id = r.run_id AND a.attempt = r.attempt
WHERE r.manifest IS NOT NULL
  AND (a.outcome, a.failure ->> 'message') IS DISTINCT FROM (r.state, r.failure ->> 'message')
UNION ALL
SELECT 'the outputs of a run are those of its manifest that landed', run_id FROM runs r
WHERE ARRAY(SELECT o.dataset || ' ' || o.snapshot FROM ledger.outputs o WHERE o.run_id = r.run_id ORDER BY 1)
      <> ARRAY(SELECT (o ->> 'dataset') || ' ' || (o ->> 'snapshot')
               FROM json_array_elements(r.manifest::json -> 'outputs') o WHERE o ->> 'snapshot' IS NOT NULL ORDER BY 1)
UNION ALL
SELECT 'the lineage of a run is that of its manifest', run_id FROM runs r
WHERE ARRAY(SELECT e.output || ' ' || e.output_snapshot || ' ' || e.input FROM ledger.edges e WHERE e.run_id = r.run_id)
      <> ARRAY(SELECT (o ->> 'dataset') || ' ' || (o ->> 'snapshot') || ' staging.flights'
               FROM json_array_elements(r.manifest::json -> 'outputs') o WHERE o ->> 'snapshot' IS NOT NULL)
"""
"""What holds whatever was asked and in whatever order. What a run without a manifest has is compared with nothing."""

_LEASES_END: LiteralString = """
UPDATE ledger.runs
SET lease_expires_at = lease_expires_at - interval '1 day', not_before = not_before - interval '1 day'
WHERE run_id = ANY(%(runs)s) AND greatest(lease_expires_at, not_before) > clock_timestamp()
"""

_WAITING: LiteralString = """
SELECT application_name FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""

_CUT: LiteralString = """
SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = ANY(%(names)s)
"""

_STILL_THERE: LiteralString = "SELECT FROM pg_stat_activity WHERE pid = ANY(%(ended)s)"

_SHUT: dict[Door, LiteralString] = {
    "runs": "SELECT FROM ledger.runs WHERE run_id = ANY(%(runs)s) ORDER BY run_id FOR UPDATE",
    "attempts": "LOCK TABLE ledger.attempts IN SHARE MODE",
    "pins": "LOCK TABLE ledger.pins IN SHARE MODE",
    "leases": "LOCK TABLE ledger.leases IN SHARE MODE",
    "outputs": "LOCK TABLE ledger.outputs IN SHARE MODE",
    "edges": "LOCK TABLE ledger.edges IN SHARE MODE",
}


# ---------------------------------------------------------------- the sessions


class Sessions:
    """Ledgers on one Postgres, each with a connection of its own, and what their answers must agree with."""

    def __init__(self, url: str) -> None:
        self._names = [f"ledger session {number}" for number in range(SESSIONS)]
        self._ledgers = [PgLedger(make_conninfo(url, application_name=name)) for name in self._names]
        self._ledgers[0].migrate()
        self._watch = psycopg.connect(url, autocommit=True, row_factory=dict_row)
        self._door = psycopg.connect(url)
        self._threads = ThreadPoolExecutor(max_workers=SESSIONS)
        self._histories = count(1)
        self._serials = count(1)

    def close(self) -> None:
        self._threads.shutdown()
        for ledger in self._ledgers:
            ledger.close()
        self._watch.close()
        self._door.close()

    def live(self, history: Sequence[Step]) -> None:
        """Carry a history out; raises AssertionError at the first answer or row that no order accounts for."""
        number = next(self._histories)
        specs = [
            job_spec(run_id=str(run_id(number * len(TRIES) + each)), max_attempts=tries)
            for each, tries in enumerate(TRIES)
        ]
        so_far = _SoFar(number=number, specs=specs, runs={"runs": [spec.run_id for spec in specs]})
        seen = _Seen(world={}, rows={})
        for step in history:
            if step.leases_end:
                self._watch.execute(_LEASES_END, so_far.runs)
                seen = self._look(so_far)
            seen = self._take(step, seen, so_far)

    def _take(self, step: Step, seen: _Seen, so_far: _SoFar) -> _Seen:
        asked = [
            operation
            for worker, wish in zip(self._names, step.wishes, strict=False)
            if (operation := self._operation(wish, worker, seen.world, so_far)) is not None
        ]
        told = list(zip(asked, self._answers(asked, step, so_far.runs), strict=True))
        then = self._look(so_far)
        broken = self._watch.execute(_BROKEN, so_far.runs).fetchall()
        assert not broken, f"{broken} broken by {told}"
        so_far.note(told, seen.rows, then.rows)
        explained = explains(seen.world, told, then.world)
        assert explained, f"no order explains {told}\nfrom {seen.world}\nto {then.world}"
        return then

    def _operation(self, wish: Wish, worker: str, world: World, so_far: _SoFar) -> Operation | None:
        """None where nobody asks this: that something is recorded that is not decided.

        Most of what an attempt may ask becomes a claim where no attempt is at work, or little would come of a history.
        """
        spec = so_far.specs[wish.run]
        run = world.get(spec.run_id, Run(tries=spec.max_attempts))
        kind, state = wish.kind, wish.state
        if kind == "record" and run.manifest is None:
            return None
        if kind not in _UNBOUND and run.state == "queued" and not wish.stale:
            kind = "claim"
        if state is State.CANCELLED and not run.cancel_wanted:
            state = State.FAILED
        return Operation(
            kind=kind,
            spec=spec,
            worker=worker,
            attempt=run.attempt - wish.behind,
            serial=next(self._serials),
            shared=so_far.tables(wish.shared),
            alone=so_far.tables(wish.alone),
            outcome="handed back" if wish.handed_back else "retry",
            wait_s=_NEVER_OVER_S if wish.waits else 0,
            voids=UUID(int=0 if wish.stale or run.plan is None else run.plan),
            state=state,
        )

    # ------------------------------------------------------------ asking

    def _answers(self, asked: Sequence[Operation], step: Step, runs: Mapping[str, Any]) -> list[Answer]:
        cut = [number for number in range(len(asked)) if number in step.cut]
        if len(asked) == 1 and not cut:
            return [_ask(self._ledgers[0], asked[0])]
        if step.door is None:
            answers = self._at_once(asked, cut)
        else:
            answers = self._before_the_door(asked, cut, _SHUT[step.door], runs)
        for number in cut:
            self._works(number, was_cut=answers[number] == CUT_OFF, run=asked[number].spec.run_id)
        return answers

    def _at_once(self, asked: Sequence[Operation], cut: Collection[int]) -> list[Answer]:
        together = Barrier(len(asked) + 1)
        with self._begun() as begin:
            begun = [begin(number, operation, together, number in cut) for number, operation in enumerate(asked)]
            together.wait()
            if cut:
                self._cut(cut)
        return [each.result() for each in begun]

    def _before_the_door(
        self, asked: Sequence[Operation], cut: Collection[int], shut: LiteralString, runs: Mapping[str, Any]
    ) -> list[Answer]:
        with self._begun() as begin:
            try:
                self._door.execute(shut, runs)
                begun = []
                for number, operation in enumerate(asked):
                    begun.append(begin(number, operation, None, number in cut))
                    self._until_it_waits(number, begun[-1])
                self._cut([number for number in cut if not begun[number].done()])
            finally:
                self._door.rollback()
        return [each.result() for each in begun]

    @contextmanager
    def _begun(self) -> Iterator[Callable[[int, Operation, Barrier | None, bool], Future[Answer]]]:
        """Nobody still asks when this ends, whatever came of it: the next history finds all sessions free."""
        begun: list[Future[Answer]] = []

        def begin(number: int, operation: Operation, together: Barrier | None, may_be_cut: bool) -> Future[Answer]:
            def ask() -> Answer:
                if together is not None:
                    together.wait()
                try:
                    return _ask(self._ledgers[number], operation)
                except (InfrastructureError, TransientError):
                    if not may_be_cut:
                        raise
                    return CUT_OFF

            begun.append(self._threads.submit(ask))
            return begun[-1]

        try:
            yield begin
        finally:
            for each in begun:
                each.exception()

    def _until_it_waits(self, number: int, asking: Future[Answer]) -> None:
        give_up_at = time.monotonic() + _GIVE_UP_S
        while not asking.done():
            assert time.monotonic() < give_up_at, f"{self._names[number]}: expected it to end or to wait for a lock"
            if any(row["application_name"] == self._names[number] for row in self._watch.execute(_WAITING)):
                return

    def _cut(self, cut: Collection[int]) -> None:
        names = {"names": [self._names[number] for number in cut]}
        ended = [row["pid"] for row in self._watch.execute(_CUT, names)]
        give_up_at = time.monotonic() + _GIVE_UP_S
        while self._watch.execute(_STILL_THERE, {"ended": ended}).fetchone():
            assert time.monotonic() < give_up_at, f"backends {ended}: expected them to end"

    def _works(self, number: int, *, was_cut: bool, run: UUID) -> None:
        """Whoever met the cut goes on at once; who was answered before it meets it now, once."""
        try:
            self._ledgers[number].cancel_wanted(run)
        except InfrastructureError:
            assert not was_cut, f"{self._names[number]}: expected it to work again after it was cut off once"
            self._ledgers[number].cancel_wanted(run)

    # ------------------------------------------------------------ looking

    def _look(self, so_far: _SoFar) -> _Seen:
        world: dict[UUID, Run] = {}
        rows: dict[UUID, Mapping[str, Any]] = {}
        for row in self._watch.execute(_RUNS, so_far.runs):
            run_id = row["run_id"]
            world[run_id] = Run(
                **{name: row[name] for name in ("tries", "state", "attempt", "leased", "waiting", "cancel_asked")},
                pins=tuple(f"{pin['alias']} {pin['snapshot']}" for pin in row["pins"]) if row["pinned"] else None,
                plan=row["plan"] and UUID(row["plan"]).int,
                attempts=tuple((each["worker"], each["outcome"]) for each in row["attempts"]),
                tables=tuple((each["dataset"], each["exclusive"]) for each in row["tables"]),
                manifest=row["manifest"] and UUID(row["manifest"]).int,
                outputs=tuple(each["snapshot"] for each in row["outputs"]),
                recorded=row["recorded"],
            )
            whole = {name: row[name] for name in ("attempts", "pins", "tables", "outputs", "edges")}
            rows[run_id] = {**row["row"], **whole}
        return _Seen(world=world, rows=rows)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the tables held at one time: as the model tells it, and every column of every row."""

    world: World
    rows: Mapping[UUID, Mapping[str, Any]]


def _serial_of(document: str) -> int:
    """Of a plan or a manifest as it is stored."""
    return UUID(json.loads(document)["plan_id"]).int


_CHANGES_NOTHING = ("lost", "busy", "cancel wanted", "no such run", "too late", "over")


@dataclass
class _SoFar:
    """What a history has shown, held against what holds in any order: no model of the ledger is asked here."""

    number: int
    specs: Sequence[JobSpec]
    runs: Mapping[str, Any]

    def __post_init__(self) -> None:
        self._claimed: set[tuple[UUID, int]] = set()
        self._decided: set[UUID] = set()

    def tables(self, numbers: Collection[int]) -> tuple[str, ...]:
        return tuple(f"marts.table_{self.number}_{each}" for each in sorted(numbers))

    def note(
        self,
        told: Sequence[tuple[Operation, Answer]],
        before: Mapping[UUID, Mapping[str, Any]],
        after: Mapping[UUID, Mapping[str, Any]],
    ) -> None:
        assert before.keys() <= after.keys(), f"runs are gone after {told}"
        for run in after:
            of_run = [(asked, came) for asked, came in told if asked.spec.run_id == run]
            was, is_now = before.get(run), after[run]
            self._note_claims(run, of_run, was["attempt"] if was else 0, is_now["attempt"])
            self._note_plans(of_run, was, is_now)
            self._note_decisions(run, of_run, was, is_now)
            if all(came in _CHANGES_NOTHING for _, came in of_run):
                assert was == is_now, f"run {run.int} was changed by {of_run}: {was} -> {is_now}"

    def _note_claims(self, run: UUID, told: Sequence[tuple[Operation, Answer]], was: int, is_now: int) -> None:
        assert was <= is_now, f"run {run.int}: attempt {was} became {is_now} by {told}"
        for asked, came in told:
            if asked.kind == "claim" and isinstance(came, tuple) and came[0] == "claimed":
                assert (run, came[1]) not in self._claimed, (
                    f"attempt {came[1]} of run {run.int} was given twice: {told}"
                )
                self._claimed.add((run, came[1]))
            elif asked.kind not in _UNBOUND and not was <= asked.attempt <= is_now:
                assert came in ("lost", CUT_OFF), f"an attempt that is not in force was heard: {asked} got {came}"

    def _note_plans(
        self, told: Sequence[tuple[Operation, Answer]], was: Mapping[str, Any] | None, is_now: Mapping[str, Any]
    ) -> None:
        if any(asked.kind == "void" and came in (None, CUT_OFF) for asked, came in told):
            return
        given = {came for asked, came in told if asked.kind == "plan" and isinstance(came, int)}
        given |= {_serial_of(row["plan"]) for row in (was, is_now) if row is not None and row["plan"]}
        assert len(given) <= 1, f"{given} were plans in force of {told}"
        assert not given or is_now["plan"], f"the plan {given} is gone after {told}"

    def _note_decisions(
        self,
        run: UUID,
        told: Sequence[tuple[Operation, Answer]],
        was: Mapping[str, Any] | None,
        is_now: Mapping[str, Any],
    ) -> None:
        won = [asked.serial for asked, came in told if asked.kind == "decide" and came is None]
        maybe = [asked.serial for asked, came in told if asked.kind == "decide" and came == CUT_OFF]
        assert len(won) + (run in self._decided) <= 1, f"run {run.int} was decided more than once: {told}"
        if run in self._decided:
            assert was is not None
            changed = [name for name in is_now if name != "recorded_at" and was[name] != is_now[name]]
            assert not changed, f"decided run {run.int}: {changed} changed by {told}"
            assert was["recorded_at"] in (None, is_now["recorded_at"]), f"run {run.int} was recorded anew by {told}"
        elif is_now["manifest"] is not None:
            assert _serial_of(is_now["manifest"]) in (won or maybe), f"run {run.int} has nobody's manifest: {told}"
            self._decided.add(run)
        else:
            assert not won, f"run {run.int} is not decided: {told}"
