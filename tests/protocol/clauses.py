"""What the machine is searched for: the scenarios, and each clause of the protocol with what goes wrong without it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from tests.protocol.invariants import find
from tests.protocol.model import EVENTS, TOTALS, Budget, Output, Scenario
from tests.protocol.search import Violation

_EVENTS_WITH_STATE, _TOTALS_WITHOUT = Output(0, has_state=True), Output(1, has_state=False)

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="one crash", runs=((EVENTS,),), budget=Budget(crashes=1)),
        Scenario(name="one table", runs=((EVENTS,),), budget=Budget(crashes=1, pauses=1)),
        Scenario(name="three workers", workers=3, budget=Budget(crashes=1, pauses=2)),
        Scenario(name="one try", max_attempts=1, budget=Budget(crashes=1, pauses=1, duplicates=1, stops=1)),
        Scenario(name="bad data", workers=3, max_attempts=2, budget=Budget(crashes=1, pauses=2, bad_data=1)),
        Scenario(name="cancel", max_attempts=2, budget=Budget(crashes=1, pauses=1, bad_data=1, cancels=1)),
        Scenario(name="writer", budget=Budget(crashes=1, pauses=1, outside=1)),
        Scenario(name="writers, one try", max_attempts=1, budget=Budget(pauses=1, outside=2)),
        Scenario(name="two states", runs=((_EVENTS_WITH_STATE, TOTALS),), budget=Budget(pauses=1, outside=1)),
        Scenario(name="refusal", budget=Budget(crashes=1, pauses=1, refusals=1)),
        Scenario(name="refusal, writer", budget=Budget(pauses=1, refusals=1, outside=1)),
        Scenario(name="refusal, new table", new_tables=(EVENTS.table,), budget=Budget(pauses=1, refusals=1)),
        Scenario(name="backup, writer", budget=Budget(crashes=1, backups=1, outside=1)),
        Scenario(name="backup, refusal", budget=Budget(backups=1, pauses=1, refusals=1)),
        Scenario(name="backup, cancel", budget=Budget(crashes=1, backups=1, cancels=1)),
        Scenario(
            name="two runs",
            runs=((EVENTS, TOTALS), (TOTALS,)),
            max_attempts=2,
            budget=Budget(crashes=1, waits=1),
        ),
        Scenario(
            name="two runs, one without state",
            runs=((EVENTS, TOTALS), (EVENTS, _TOTALS_WITHOUT)),
            max_attempts=2,
            budget=Budget(pauses=1, waits=1),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Clause:
    says: str
    without_it: str
    breaks: str
    """The invariant."""
    scenario: str
    """The one that shows it best."""
    behind: str | None = None
    """Of a second lock: the clause without which alone it is needed."""


CLAUSES = {
    "acknowledge_last": Clause(
        says="The message is deleted only when the run is recorded.",
        without_it="A worker dies after it has deleted the message; nobody comes again.",
        breaks="I4",
        scenario="one crash",
    ),
    "fenced_writes": Clause(
        says="Every write to the ledger requires that the attempt has the run, and that the run is undecided.",
        without_it="A paused worker's late plan is stored and lands; the next attempt has never seen it, and decides "
        "the run failed without a plan.",
        breaks="I3",
        scenario="bad data",
    ),
    "recall": Clause(
        says="After the claim S3 is asked for a manifest, for the ledger may have come back from a backup.",
        without_it="A run that is over and recorded is executed again, because the restored ledger does not know.",
        breaks="I5",
        scenario="backup, writer",
    ),
    "table_leases": Clause(
        says="A run has the tables whose state it begins from for itself, from before its pins to its decision.",
        without_it="Two runs pin the same state; the first to commit takes it from the other, whose work is void.",
        breaks="I6",
        scenario="two runs",
    ),
    "same_pins": Clause(
        says="Every attempt uses the pins that are stored.",
        without_it="A later attempt pins the table anew and publishes that; the ledger keeps the first attempt's pins.",
        breaks="I3",
        scenario="writer",
    ),
    "no_plan_after_cancel": Clause(
        says="No plan is stored once a cancel was promised.",
        without_it="A run succeeds of which somebody was told that it will be cancelled.",
        breaks="I1",
        scenario="cancel",
    ),
    "cancel_before_plan_only": Clause(
        says="A cancel that comes after the plan is too late.",
        without_it="It is promised, and outputs have landed: the run succeeds all the same, or is cancelled half done.",
        breaks="I1",
        scenario="cancel",
    ),
    "plan_rolled_forward": Clause(
        says="An attempt that finds a plan carries it out, and executes nothing.",
        without_it="A later attempt executes anew, meets bad data and decides the run failed, though a plan is in "
        "force, half of it has landed, and a paused worker is about to land the rest.",
        breaks="I3",
        scenario="bad data",
    ),
    "first_plan_wins": Clause(
        says="The first plan stays; who stores a second one gets the first.",
        without_it="After a crash between landing and decision the second plan finds the first one's snapshot: a "
        "conflict, in a manifest of a plan that nothing was published by.",
        breaks="I3",
        scenario="one crash",
        behind="plan_rolled_forward",
    ),
    "state_first": Clause(
        says="Outputs with state are committed first.",
        without_it="The table with state has moved, nothing has landed and all could begin anew: but the other output "
        "lands, and the run ends half published.",
        breaks="I6",
        scenario="writer",
    ),
    "adopt_own": Clause(
        says="Look first: a snapshot of the own plan is adopted.",
        without_it="A worker commits and is paused; the next commits the same rows again.",
        breaks="I2",
        scenario="one table",
    ),
    "refuse_other_plan": Clause(
        says="A snapshot of this run by another plan is a conflict.",
        without_it="A restored ledger has forgotten the plan that landed in one table; the run executes again, adopts "
        "that snapshot and adds its own to the other table.",
        breaks="I2",
        scenario="backup, writer",
    ),
    "plan_id": Clause(
        says="A plan is known by a random id, not by its attempt's number.",
        without_it="After a restored ledger numbers are given out again; an attempt takes the forgotten plan's "
        "snapshot for its own and adds its own to the other table.",
        breaks="I2",
        scenario="backup, writer",
    ),
    "state_checked": Clause(
        says="A table with state must still be at its pin.",
        without_it="Somebody else has added rows since the pin; the commit replaces the table by one that lacks them.",
        breaks="I6",
        scenario="writer",
    ),
    "compare_and_swap": Clause(
        says="A commit lands only on the snapshot that was loaded.",
        without_it="A worker is paused between look and commit; the next commits the plan, then the first does so too.",
        breaks="I2",
        scenario="one table",
    ),
    "void_only_if_nothing_landed": Clause(
        says="A plan becomes void only where nothing of it has landed.",
        without_it="One table has landed, the other moved. The run executes again over its own output, meets its first "
        "snapshot as another plan's, and the manifest names a plan that published nothing.",
        breaks="I3",
        scenario="two states",
    ),
    "look_before_failed": Clause(
        says="Before failed or cancelled, each output is looked at, and the manifest lists what landed.",
        without_it="One output has landed, the other is refused: the manifest of the failed run lists nothing.",
        breaks="I3",
        scenario="refusal",
    ),
    "fence_when_plan_cannot_land": Clause(
        says="Before a plan is given up for another reason than a conflict, what has not landed is fenced.",
        without_it="A table refuses the plan and is looked at; it becomes as it was, without a new snapshot, and a "
        "paused worker's commit on what it had loaded lands in a run that is decided failed.",
        breaks="I3",
        scenario="refusal",
    ),
    "given_back_if_landed_after_all": Clause(
        says="Where the refused output turns out to have landed, the plan is not given up: the run is given back.",
        without_it="A paused worker lands it first and goes on to a table that is not made yet, which took no fence: "
        "that lands after the run has looked at it.",
        breaks="I3",
        scenario="refusal, new table",
    ),
    "record_by_whoever_comes": Clause(
        says="Whoever finds a run decided and not recorded, records it.",
        without_it="A worker dies after the decision; the next delivery finds the run over and deletes the message.",
        breaks="I1",
        scenario="one crash",
    ),
    "record_once": Clause(
        says="The manifest is written with If-None-Match.",
        without_it="A run that was recorded is decided again, and its manifest in S3 becomes another.",
        breaks="I7",
        scenario="backup, writer",
        behind="recall",
    ),
    "stop_workers_before_restore": Clause(
        says="Workers are stopped before the ledger is restored.",
        without_it="An attempt that the ledger has forgotten lands its plan after the run was looked at and decided.",
        breaks="I3",
        scenario="backup, cancel",
    ),
}
"""In the order in which a job meets them."""


@cache
def without(name: str) -> Violation | None:
    """What goes wrong in its scenario where this clause is left out; and, of a second lock, the first one too."""
    clause = CLAUSES[name]
    left_out = frozenset({name, clause.behind} if clause.behind else {name})
    return find(replace(SCENARIOS[clause.scenario], without=left_out), clause.breaks).violation


def story(name: str) -> str:
    """The shortest way to what goes wrong without this clause, a step a line."""
    clause = CLAUSES[name]
    title = f"without {name}" + (f" and {clause.behind}" if clause.behind else "")
    return f"{title}: {clause.without_it}\n{without(name)}"
