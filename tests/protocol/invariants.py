"""What has to hold in every state of the protocol's machine, whatever the world does."""

from __future__ import annotations

from collections.abc import Iterator

from tests.protocol.model import (
    NO_MANIFEST,
    STATELESS,
    TABLES,
    Manifest,
    Output,
    Row,
    Scenario,
    Snapshot,
    State,
    landed,
    newest,
)
from tests.protocol.search import Broken, Searched, Step, search

INVARIANTS = {
    "I1": "a state is true: what succeeded has published all outputs and its manifest comes to S3, what was cancelled "
    "has published nothing, and what was promised to be cancelled does not succeed",
    "I2": "a run has one snapshot in a table, and all of its snapshots are of one execution",
    "I3": "manifest, ledger and tables say the same of a run, from its decision on for ever",
    "I4": "from every state the end of every run can be reached",
    "I5": "attempts only grow, and what is over is not executed again",
    "I6": "no row is lost or there twice; what was made from a state is published over that state, and nothing of a "
    "plan once its state is gone; and only a writer from outside can take a state away",
    "I7": "a manifest never changes",
}

MOST_STATES = 150_000


def find(scenario: Scenario, *invariants: str) -> Searched[State]:
    """Search the scenario for a violation: of these invariants, or of any."""
    watched = frozenset(invariants or INVARIANTS)

    def check(before: State, step: Step, after: State) -> Broken | None:
        return next((each for each in broken(scenario, before, step, after) if each.invariant in watched), None)

    def stuck(now: State) -> Broken | None:
        says = _never_ends(now)
        return says if says.invariant in watched else None

    first = scenario.first()
    return search(first, steps=scenario.steps, check=check, is_end=is_end, stuck=stuck, most=MOST_STATES)


def is_end(now: State) -> bool:
    """Every run is over, and its record is where it belongs."""
    return all(row.recorded for row in now.rows) and NO_MANIFEST not in now.kept


def _never_ends(now: State) -> Broken:
    for row, kept in zip(now.rows, now.kept, strict=True):
        if row.decided and kept == NO_MANIFEST:
            return Broken("I1", f"the run is decided ({row.state}), and its manifest never comes to S3")
    return Broken("I4", "a run is not over, and nobody comes to end it")


def broken(scenario: Scenario, before: State, step: Step, after: State) -> Iterator[Broken]:
    """The invariants that this step breaks."""
    if after.tables is not before.tables:
        yield from _of_tables(scenario, before, after)
    for run in range(len(after.rows)):
        yield from _of_run(scenario, before, step, after, run)
    if any(worker.late and worker.next == "plan" for worker in after.workers):
        yield Broken("I5", "a run is executed again of which S3 has the manifest")
    if not after.workers and not any(map(sum, after.messages)) and not is_end(after):
        yield _never_ends(after)


def _of_run(scenario: Scenario, before: State, step: Step, after: State, run: int) -> Iterator[Broken]:
    was, row, kept_before, kept = before.rows[run], after.rows[run], before.kept[run], after.kept[run]
    if row is not was and step.name != "restore":
        if row.attempt < was.attempt:
            yield Broken("I5", f"attempt {row.attempt} comes after attempt {was.attempt}")
        if was.decided and row.manifest != was.manifest:
            yield Broken("I7", f"the ledger had the run {was.state}, and has another manifest now")
    if kept_before not in (NO_MANIFEST, kept):
        yield Broken("I7", f"S3 had the run {kept_before.state}, and has another manifest now")
    if kept != NO_MANIFEST:
        yield from _of_manifest(scenario, after, run, "S3", kept)
    if row.decided:
        yield from _of_manifest(scenario, after, run, "the ledger", row.manifest)
        if kept not in (NO_MANIFEST, row.manifest):
            yield Broken("I3", f"the ledger has the run {row.state}, S3 another manifest of it")
        if after.epoch == 0:
            yield from _of_decided(row)


def _of_decided(row: Row) -> Iterator[Broken]:
    """Of a ledger that has forgotten nothing."""
    if row.state == "succeeded" and row.cancel:
        yield Broken("I1", "the run succeeded, though its cancel had been promised")
    if any(row.manifest.landed) and row.pins != row.manifest.pins:
        yield Broken("I3", f"the ledger has {_pins(row.pins)}, the manifest {_pins(row.manifest.pins)}")


def _pins(pins: tuple[int, ...]) -> str:
    return " and ".join(f"{TABLES[place]} pinned at {pin}" for place, pin in enumerate(pins) if pin != STATELESS)


def _of_manifest(scenario: Scenario, now: State, run: int, where: str, manifest: Manifest) -> Iterator[Broken]:
    """Whether it says what is in the tables."""
    listed = tuple((number,) if number else () for number in manifest.landed)
    there = tuple(landed(table, run) for table in now.tables)
    if there != listed:
        yield Broken("I3", f"the manifest in {where} lists {_snapshots(listed)}, the run has {_snapshots(there)}")
        return
    if manifest.state == "succeeded" and not all(there[output.table] for output in scenario.runs[run]):
        yield Broken("I1", "the run succeeded, and not all of its outputs have landed")
    # Back from a backup, a ledger may have forgotten the plan.
    if now.epoch:
        return
    if manifest.state == "cancelled" and any(there):
        yield Broken("I1", f"the run is cancelled, and has published {_snapshots(there)}")
    for place, number in enumerate(manifest.landed):
        if not number:
            continue
        snapshot = now.tables[place][number - 1]
        if snapshot.made_by != manifest.made_by:
            plan = f"plan {manifest.made_by}" if manifest.made_by else "no plan"
            yield Broken("I3", f"the manifest names {plan}, and lists a snapshot of plan {snapshot.made_by}")
        elif snapshot.over not in (STATELESS, manifest.pins[place]):
            yield Broken("I3", f"the manifest has {_pins(manifest.pins)}, {TABLES[place]} began from {snapshot.over}")


def _snapshots(numbers: tuple[tuple[int, ...], ...]) -> str:
    each = (f"{TABLES[place]} {number}" for place, found in enumerate(numbers) for number in found)
    return " and ".join(each) or "nothing"


def _of_tables(scenario: Scenario, before: State, after: State) -> Iterator[Broken]:
    for run, outputs in enumerate(scenario.runs):
        there = [landed(table, run) for table in after.tables]
        most = max(map(len, there))
        if most > 1:
            yield Broken("I2", f"a run has {most} snapshots in one table")
        if (
            len({table[number - 1].made_by for table, own in zip(after.tables, there, strict=True) for number in own})
            > 1
        ):
            yield Broken("I2", "a run has published outputs of two executions")
        yield from _of_pins(after, run, outputs)
    for place, table in enumerate(after.tables):
        if table is before.tables[place]:
            continue
        rows = _rows(table)
        if len(rows) != len(set(rows)):
            yield Broken("I6", f"{TABLES[place]} has rows twice")
        if len(rows) < sum(each.by != "fence" for each in table):
            yield Broken("I6", f"{TABLES[place]} has lost rows")
        gone = _state_gone(after, table[-1])
        if gone:
            yield Broken("I6", f"{TABLES[place]} has part of a plan that is void: {gone} had moved before")


def _of_pins(now: State, run: int, outputs: tuple[Output, ...]) -> Iterator[Broken]:
    row = now.rows[run]
    if not row.pins or row.decided:
        return
    for place in (output.table for output in outputs if output.has_state):
        if any(each.by == "run" and each.run != run for each in now.tables[place][row.pins[place] :]):
            yield Broken("I6", f"another run of ours has moved {TABLES[place]} from a run's pin")


def _rows(table: tuple[Snapshot, ...]) -> tuple[tuple[str, int, int], ...]:
    """Whose rows a reader sees."""
    seen: list[tuple[tuple[str, int, int], ...]] = [()]
    for number, each in enumerate(table, 1):
        base = seen[-1 if each.over == STATELESS else each.over]
        came = (each.by, each.run, number if each.by == "outside" else each.made_by)
        seen.append(base if each.by == "fence" else (*base, came))
    return seen[-1]


def _state_gone(now: State, snapshot: Snapshot) -> str:
    """The table whose state this snapshot's plan was made from, where that has moved and no snapshot of ours is why."""
    if snapshot.by != "run" or snapshot.over != STATELESS:
        return ""
    plans = [now.rows[snapshot.run].plan, *(each.plan for each in now.workers if each.run == snapshot.run)]
    states = next((plan.states for plan in plans if plan.made_by == snapshot.made_by), ())
    for place, state in enumerate(states):
        table = now.tables[place]
        if state != STATELESS and not landed(table, snapshot.run) and newest(table) != state:
            return TABLES[place]
    return ""
