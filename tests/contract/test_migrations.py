"""Migrations expand, then contract: on the tables of this release the one before goes on working."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString, cast
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Json

from runner.adapters import pg_ledger
from runner.adapters.pg_ledger import PgLedger
from runner.model.manifest import State
from runner.ports import Busy, Claimed, Decided
from tests.support.documents import input_record, job_spec, manifest_of, output_record

PREVIOUS = Path(__file__).with_name("previous_release") / "queries.sql"
RUNNER = Path(sys.executable).with_name("runner")
T0 = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


class PreviousRelease:
    """The release before, as far as the database knows it: its statements, with what it gave them."""

    def __init__(self, url: str) -> None:
        parts = re.split(r"^-- name: (\w+)$", PREVIOUS.read_text("utf-8"), flags=re.MULTILINE)[1:]
        self.statements = dict(zip(parts[::2], parts[1::2], strict=True))
        self.used: set[str] = set()
        self._connection = psycopg.connect(url, autocommit=True, row_factory=dict_row)

    def close(self) -> None:
        self._connection.close()

    def ask(self, statement: str, **given: Any) -> list[DictRow]:
        cursor = self._execute(statement, given)
        return cursor.fetchall()

    def change(self, statement: str, **given: Any) -> int:
        return self._execute(statement, given).rowcount

    def _execute(self, statement: str, given: Mapping[str, Any]) -> psycopg.Cursor[DictRow]:
        self.used.add(statement)
        return self._connection.execute(cast(LiteralString, self.statements[statement]), given)

    def submit(self) -> UUID:
        spec = job_spec("query")
        changed = self.change(
            "submit",
            run_id=spec.run_id,
            effect=spec.effect,
            pipeline=spec.pipeline,
            task=spec.task,
            pipeline_run=None,
            stage=spec.stage.value,
            logic_commit=spec.logic.commit,
            spec=spec.to_json(),
            spec_sha256=spec.digest(),
            logical_time=spec.logical_time,
            max_attempts=spec.max_attempts,
        )
        assert changed == 1
        return spec.run_id

    def claim(self, run_id: UUID) -> int:
        (row,) = self.ask("lock_run", run_id=run_id)
        assert row["state"] in ("queued", "running")
        (taken,) = self.ask("take", run_id=run_id, lease_s=60)
        self.change("lose_earlier_attempts", run_id=run_id)
        self.change("start_attempt", run_id=run_id, attempt=taken["attempt"], worker="previous:1")
        return int(taken["attempt"])

    def decide(self, run_id: UUID, attempt: int, *, snapshot: str) -> None:
        manifest = manifest_of(
            output_record("marts.delays", snapshot=snapshot, claimed_inputs=("staging.flights",)),
            inputs=(input_record("staging.flights", snapshot="7"),),
            spec=job_spec("query", run_id=str(run_id)),
            decided_at=T0,
        )
        changed = self.change(
            "decide",
            run_id=run_id,
            attempt=attempt,
            state="succeeded",
            manifest=manifest.to_json(),
            failure=None,
            rows_out=3,
            decided_at=T0,
        )
        assert changed == 1
        self.change("end_attempt", run_id=run_id, attempt=attempt, outcome="succeeded", failure=None)
        self.change(
            "add_output",
            run_id=run_id,
            dataset="marts.delays",
            snapshot=snapshot,
            branch=None,
            rows_out=3,
            bytes_out=1,
            decided_at=T0,
        )
        self.change(
            "add_edge",
            run_id=run_id,
            output="marts.delays",
            output_snapshot=snapshot,
            input="staging.flights",
            input_snapshot="7",
            claimed=True,
            observed="rows",
            logic_commit="0" * 40,
            rows_out=3,
            decided_at=T0,
        )


def empty(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS ledger, catalog CASCADE")
    return url


@pytest.fixture
def url(ledger_url: str) -> str:
    """A database without any of our tables."""
    return empty(ledger_url)


@pytest.fixture
def ledger(url: str) -> Iterator[PgLedger]:
    made = PgLedger(url)
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def previous(ledger: PgLedger, url: str) -> Iterator[PreviousRelease]:
    made = PreviousRelease(url)
    yield made
    made.close()


# ---------------------------------------------------------------- the previous release on this one's tables


def test_a_runs_whole_life_by_the_statements_of_the_release_before(previous: PreviousRelease) -> None:
    run_id = previous.submit()
    (stored,) = previous.ask("stored_spec", run_id=run_id)
    assert job_spec("query", run_id=str(run_id)).to_json() == stored["spec"]
    attempt = previous.claim(run_id)
    assert attempt == 1
    assert previous.change("heartbeat", run_id=run_id, attempt=attempt, lease_s=60) == 1
    assert previous.change("heartbeat", run_id=run_id, attempt=attempt + 1, lease_s=60) == 0
    assert previous.ask("mark_pinned", run_id=run_id, attempt=attempt) == [{"already": None}]
    previous.change("add_pin", run_id=run_id, alias="f", dataset="staging.flights", snapshot="7", metadata="s3://x/7")
    (pin,) = previous.ask("pins", run_id=run_id)
    assert (pin["alias"], pin["dataset"], pin["snapshot"]) == ("f", "staging.flights", "7")
    failure = Json({"category": "transient", "message": "S3: expected 200, got 503"})
    assert previous.change("release", run_id=run_id, attempt=attempt, wait_s=0) == 1
    assert previous.change("end_attempt", run_id=run_id, attempt=attempt, outcome="retry", failure=failure) == 1
    attempt = previous.claim(run_id)
    assert previous.ask("plan", run_id=run_id, attempt=attempt, plan="{}") == [{"plan": "{}"}]
    previous.decide(run_id, attempt, snapshot="9")
    assert previous.change("mark_recorded", run_id=run_id) == 1
    (row,) = previous.ask("lock_run", run_id=run_id)
    assert (row["state"], row["attempt"], row["recorded"], row["tries"]) == ("succeeded", 2, True, 2)
    assert [each["outcome"] for each in previous.ask("attempts", run_id=run_id)] == ["retry", "succeeded"]
    assert previous.ask("spec", run_id=run_id)[0]["spec"] == stored["spec"]
    assert json.loads(previous.ask("manifest", run_id=run_id)[0]["manifest"])["run_id"] == str(run_id)
    filters = dict.fromkeys(("run_id", "pipeline", "stage", "state", "pipeline_run"))
    assert [each["run_id"] for each in previous.ask("runs", **filters, limit=9)] == [run_id]
    assert previous.ask("find_run", text=str(run_id)[-8:]) == [{"run_id": run_id}]
    assert previous.ask("newest", dataset="marts.delays") == [{"snapshot": "9"}]
    (edge,) = previous.ask("upstream", dataset="marts.delays", snapshot="9")
    assert previous.ask("downstream", dataset="staging.flights", snapshot="7") == [edge]
    assert (edge["run_id"], edge["input"], edge["output"]) == (run_id, "staging.flights", "marts.delays")
    assert set(previous.statements) == previous.used, "every statement of it was tried"


def test_each_release_carries_on_what_the_other_began(previous: PreviousRelease, ledger: PgLedger) -> None:
    """As while workers are replaced one by one."""
    begun = previous.submit()
    assert previous.claim(begun) == 1
    spec = job_spec("query", run_id=str(begun))
    assert isinstance(ledger.claim(spec, worker="new:1"), Busy)
    previous.change("release", run_id=begun, attempt=1, wait_s=0)
    previous.change("end_attempt", run_id=begun, attempt=1, outcome="retry", failure=None)
    claimed = ledger.claim(spec, worker="new:1")
    assert isinstance(claimed, Claimed)
    assert (claimed.attempt, claimed.cancelled, claimed.pins, claimed.plan) == (2, False, None, None)
    # What this release pins, leases and is asked, the one before does not see; it ends the run nevertheless.
    ledger.pin(begun, 2, ())
    assert ledger.lease(begun, 2, shared=("staging.flights",), exclusive=("marts.delays",)) is None
    ledger.release(begun, 2, outcome="handed back", failure=None, wait_s=0)
    assert previous.claim(begun) == 3
    previous.decide(begun, 3, snapshot="9")
    ended = ledger.claim(spec, worker="new:1")
    assert isinstance(ended, Decided)
    assert ended.manifest.run_id == begun
    assert [each.outcome for each in ledger.attempts(begun)] == ["retry", "handed back", "succeeded"]
    # The lease that it left behind is in nobody's way.
    other = job_spec("query")
    assert isinstance(ledger.claim(other, worker="new:1"), Claimed)
    assert ledger.lease(other.run_id, 1, shared=(), exclusive=("marts.delays",)) is None
    assert len(ledger.upstream("marts.delays", "9")) == 1


def test_what_the_release_before_wrote_is_there_after_its_database_was_migrated(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = pg_ledger._migrations()
    monkeypatch.setattr(pg_ledger, "_migrations", lambda: every[:2])
    ledger = PgLedger(url)
    assert ledger.migrate() == [name for name, _ in every[:2]]
    previous = PreviousRelease(url)
    ended, queued = previous.submit(), previous.submit()
    previous.decide(ended, previous.claim(ended), snapshot="9")
    monkeypatch.undo()
    assert ledger.pending_migrations() == [name for name, _ in every[2:]]
    assert ledger.migrate() == [name for name, _ in every[2:]]
    assert {each.run_id: each.state for each in ledger.runs(limit=9)} == {
        ended: State.SUCCEEDED,
        queued: State.QUEUED,
    }
    assert [each.run_id for each in ledger.upstream("marts.delays", "9")] == [ended]
    assert isinstance(ledger.claim(job_spec("query", run_id=str(queued)), worker="new:1"), Claimed)
    previous.close()
    ledger.close()


# ---------------------------------------------------------------- applying them


def applied(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT name FROM ledger.migrations ORDER BY name")]


def migrate(url: str, *arguments: str) -> subprocess.Popen[str]:
    env = {"RUNNER_LEDGER_URL": url, "RUNNER_LOG_FORMAT": "json"}
    return subprocess.Popen(
        [RUNNER, "ledger", "migrate", *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_that_migrate_at_once_apply_each_migration_once(url: str) -> None:
    every = [name for name, _ in pg_ledger._migrations()]
    processes = [migrate(url, "--json") for _ in range(2)]
    told = []
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        told.append(json.loads(out))
    assert sorted(name for each in told for name in each["applied"]) == every
    assert [each["newer"] for each in told] == [[], []]
    assert applied(url) == every
    again, _ = (process := migrate(url)).communicate(timeout=60)
    assert (process.returncode, again) == (0, "the ledger is up to date\n")


def test_a_migration_that_fails_leaves_the_database_as_it_was(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    every = pg_ledger._migrations()
    broken = ("9999_broken.sql", "CREATE TABLE ledger.half (a int); SELECT 1/0;")
    monkeypatch.setattr(pg_ledger, "_migrations", lambda: [*every, broken])
    ledger = PgLedger(url)
    with pytest.raises(psycopg.errors.DivisionByZero):
        ledger.migrate()
    assert ledger.pending_migrations() == [*(name for name, _ in every), "9999_broken.sql"]
    monkeypatch.undo()
    assert ledger.migrate() == [name for name, _ in every]
    ledger.close()


def test_a_database_of_a_later_release_is_left_as_it_is_and_told(ledger: PgLedger, url: str) -> None:
    """An older image is started once more, to go back a release: that must not fail."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO ledger.migrations (name) VALUES ('9001_later.sql')")
    before = applied(url)
    assert (ledger.migrate(), ledger.newer_migrations()) == ([], ["9001_later.sql"])
    process = migrate(url)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.splitlines() == [
        "the ledger is up to date",
        "a later release has applied 9001_later.sql: this one works with that",
    ]
    assert applied(url) == before
    assert ledger.runs(limit=1) == []


def test_migrations_are_numbered_without_gaps_and_their_names_say_what_they_bring() -> None:
    names = [name for name, _ in pg_ledger._migrations()]
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    assert all(re.fullmatch(r"\d{4}_[a-z_]+\.sql", name) for name in names)
