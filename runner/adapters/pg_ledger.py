"""The ledger in Postgres. Each method is one transaction; every write of an attempt is bound to its number."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from threading import Lock
from typing import Any, Literal, LiteralString, cast
from uuid import UUID

import psycopg
from psycopg.rows import DictRow, dict_row, tuple_row
from psycopg.types.json import Json

from runner.model.errors import ConflictError, Failure, InfrastructureError, SpecError, TransientError
from runner.model.lineage import edges
from runner.model.manifest import TERMINAL, AttemptRecord, Manifest, Pin, Plan, State
from runner.model.spec import JobSpec, Stage, parse_spec
from runner.model.strict import parse_json
from runner.ports import (
    LEASE_S,
    Busy,
    CancelWanted,
    Claimed,
    Decided,
    Edge,
    LapsedLease,
    LostLease,
    Resend,
    RunRow,
    Standing,
)

_MIGRATION_LOCK = 0x57A6E
"""Key of the advisory lock under which migrations run; any number that nobody else in this database uses."""
_CONNECT_TIMEOUT_S = 5
_CATALOG = "lake"
"""The name under which `IcebergTables` has its tables listed in the schema `catalog`."""
_HINT = "runner up starts the embedded services; RUNNER_LEDGER_URL names another Postgres"


def _named_queries() -> dict[str, LiteralString]:
    # psycopg takes literal strings only, so that no value is ever pasted into SQL; these come with the package.
    text = files("runner").joinpath("sql/queries.sql").read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)[1:]
    return {name: cast(LiteralString, query) for name, query in zip(parts[::2], parts[1::2], strict=True)}


QUERIES = _named_queries()


_EDGE = tuple(field.name for field in fields(Edge))
"""As `upstream` and `downstream` select them."""
_FILTERS = ("run_id", "pipeline", "stage", "state", "pipeline_run", "dataset", "since")


class PgLedger:
    """`Ledger` on Postgres 14 or later. Thread-safe: the heartbeat shares it with the job."""

    def __init__(self, url: str, *, lease_s: float = LEASE_S) -> None:
        self._url = url
        self._lease_s = lease_s
        self._connection: psycopg.Connection[DictRow] | None = None
        self._using = Lock()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ------------------------------------------------------------ migrations

    def migrate(self) -> list[str]:
        """Apply the migrations that are missing, under an advisory lock; returns their names."""
        applied = []
        with self._transaction() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
            connection.execute("CREATE SCHEMA IF NOT EXISTS ledger")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS ledger.migrations "
                "(name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
            )
            done = {row["name"] for row in connection.execute("SELECT name FROM ledger.migrations")}
            for name, sql in _migrations():
                if name not in done:
                    connection.execute(sql)
                    connection.execute("INSERT INTO ledger.migrations (name) VALUES (%s)", (name,))
                    applied.append(name)
        return applied

    def pending_migrations(self) -> list[str]:
        done = self._applied_migrations()
        return [name for name, _ in _migrations() if name not in done]

    def newer_migrations(self) -> list[str]:
        """Migrations that a later release has applied. They only expand, so that this one goes on working."""
        return sorted(self._applied_migrations() - {name for name, _ in _migrations()})

    def _applied_migrations(self) -> set[str]:
        with self._transaction() as connection:
            row = connection.execute("SELECT to_regclass('ledger.migrations') IS NOT NULL AS there").fetchone()
            if not (row and row["there"]):
                return set()
            return {each["name"] for each in connection.execute("SELECT name FROM ledger.migrations")}

    # ------------------------------------------------------------ a run's life

    def submit(self, spec: JobSpec) -> datetime:
        with self._transaction() as connection:
            connection.execute(QUERIES["submit"], _spec_columns(spec))
            row = _one(connection.execute(QUERIES["stored_spec"], {"run_id": spec.run_id}))
            _require_same_spec(spec, row)
            return _aware(row["submitted_at"])

    def sent(self, run_ids: Sequence[UUID]) -> None:
        with self._transaction() as connection:
            connection.execute(QUERIES["sent"], {"run_ids": list(run_ids)})

    def claim(self, spec: JobSpec, *, worker: str) -> Claimed | Busy | Decided:
        at = {"run_id": spec.run_id}
        with self._transaction() as connection:
            row = connection.execute(QUERIES["lock_run"], at).fetchone()
            if row is None:
                connection.execute(QUERIES["submit"], _spec_columns(spec))
                row = _one(connection.execute(QUERIES["lock_run"], at))
            _require_same_spec(spec, row)
            if row["state"] in TERMINAL:
                return Decided(manifest=_manifest(row["manifest"]), recorded=row["recorded"])
            if row["busy_s"] is not None and row["busy_s"] > 0:
                return Busy(seconds=row["busy_s"])
            tries = 0
            if row["attempt"] > 0:
                tries = _one(connection.execute(QUERIES["tries"], at))["tries"]
                connection.execute(QUERIES["lose_earlier_attempts"], at)
            taken = _one(connection.execute(QUERIES["take"], {**at, "lease_s": self._lease_s, "worker": worker}))
            return Claimed(
                attempt=taken["attempt"],
                tries=tries + 1,
                settling=tries >= row["max_attempts"],
                submitted_at=_aware(row["submitted_at"]),
                pins=self._pins(connection, spec.run_id) if row["pinned"] else None,
                plan=_plan(row["plan"], spec.run_id),
                cancelled=row["cancelled"],
            )

    def heartbeat(self, run_id: UUID, attempt: int) -> bool:
        with self._transaction() as connection:
            cursor = connection.execute(QUERIES["heartbeat"], {**_key(run_id, attempt), "lease_s": self._lease_s})
            return bool(_mine(cursor, run_id, attempt)["cancel_wanted"])

    def lease(self, run_id: UUID, attempt: int, *, shared: Sequence[str], exclusive: Sequence[str]) -> UUID | None:
        asked = {"run_id": run_id, "datasets": sorted({*shared, *exclusive}), "exclusive": list(exclusive)}
        with self._transaction() as connection:
            connection.execute(QUERIES["begin_lease"])
            _mine(connection.execute(QUERIES["fence"], _key(run_id, attempt)), run_id, attempt)
            connection.execute(QUERIES["lock_tables"], asked)
            in_the_way = connection.execute(QUERIES["in_the_way"], asked).fetchone()
            if in_the_way is not None:
                return cast(UUID, in_the_way["run_id"])
            connection.execute(QUERIES["take_tables"], asked)
            return None

    def pin(self, run_id: UUID, attempt: int, pins: Sequence[Pin]) -> tuple[Pin, ...]:
        with self._transaction() as connection:
            row = _mine(connection.execute(QUERIES["fence"], _key(run_id, attempt)), run_id, attempt)
            if not row["pinned"]:
                connection.execute(QUERIES["mark_pinned"], {"run_id": run_id})
                for pin in pins:
                    connection.execute(QUERIES["add_pin"], _pin_columns(run_id, pin))
            return self._pins(connection, run_id)

    def _pins(self, connection: psycopg.Connection[DictRow], run_id: UUID) -> tuple[Pin, ...]:
        return tuple(
            Pin(
                as_=row["alias"],
                dataset=row["dataset"],
                snapshot=row["snapshot"],
                metadata=row["metadata"],
                state=row["state"],
            )
            for row in connection.execute(QUERIES["pins"], {"run_id": run_id})
        )

    def plan(self, run_id: UUID, attempt: int, plan: Plan) -> Plan:
        with self._transaction() as connection:
            cursor = connection.execute(QUERIES["plan"], {**_key(run_id, attempt), "plan": plan.to_json()})
            in_force = _plan(_mine(cursor, run_id, attempt)["plan"], run_id)
            if in_force is None:
                raise CancelWanted(f"run {run_id}: a cancel was asked before there was a plan")
            return in_force

    def void(self, run_id: UUID, attempt: int, plan_id: UUID) -> None:
        with self._transaction() as connection:
            row = _mine(connection.execute(QUERIES["fence"], _key(run_id, attempt)), run_id, attempt)
            in_force = _plan(row["plan"], run_id)
            if in_force is not None and in_force.plan_id == plan_id:
                connection.execute(QUERIES["void"], {"run_id": run_id})
                connection.execute(QUERIES["remove_pins"], {"run_id": run_id})

    def cancel(self, run_id: UUID) -> Literal["asked", "too late", "over"]:
        with self._transaction() as connection:
            row = connection.execute(QUERIES["lock_for_cancel"], {"run_id": run_id}).fetchone()
            if row is None:
                raise SpecError(
                    f"run {run_id}: expected a run that was submitted, got none", hint="runner runs lists them"
                )
            if row["decided"]:
                return "over"
            if row["planned"]:
                return "too late"
            connection.execute(QUERIES["ask_cancel"], {"run_id": run_id})
            return "asked"

    def cancel_wanted(self, run_id: UUID) -> bool:
        with self._session() as connection:
            row = connection.execute(QUERIES["cancel_wanted"], {"run_id": run_id}).fetchone()
        return row is not None and bool(row["cancel_wanted"])

    def release(
        self,
        run_id: UUID,
        attempt: int,
        *,
        outcome: Literal["retry", "handed back"],
        failure: Failure | None,
        wait_s: float,
    ) -> None:
        with self._transaction() as connection:
            cursor = connection.execute(QUERIES["release"], {**_key(run_id, attempt), "wait_s": wait_s})
            _mine(cursor, run_id, attempt)
            self._end_attempt(connection, run_id, attempt, outcome, failure)

    def _end_attempt(
        self,
        connection: psycopg.Connection[DictRow],
        run_id: UUID,
        attempt: int,
        outcome: str,
        failure: Failure | None,
    ) -> None:
        connection.execute(
            QUERIES["end_attempt"], {**_key(run_id, attempt), "outcome": outcome, "failure": _failure_json(failure)}
        )

    def attempts(self, run_id: UUID) -> tuple[AttemptRecord, ...]:
        with self._session() as connection:
            return tuple(
                AttemptRecord(
                    attempt=row["attempt"],
                    worker=row["worker"],
                    started_at=_aware(row["started_at"]),
                    ended_at=row["ended_at"] and _aware(row["ended_at"]),
                    outcome=row["outcome"],
                    failure=_failure(row["failure"]),
                )
                for row in connection.execute(QUERIES["attempts"], {"run_id": run_id})
            )

    def now(self) -> datetime:
        with self._session() as connection:
            return _aware(_one(connection.execute(QUERIES["now"]))["now"])

    def decide(self, manifest: Manifest, *, attempt: int) -> None:
        run_id = manifest.run_id
        with self._transaction() as connection:
            # Any state is taken, a cancel asked or not. Without a plan no run succeeds, and `plan` refuses one after a
            # cancel (a manifest put back had its plan in the ledger that was lost); it may fail before it hears of it.
            cursor = connection.execute(
                QUERIES["decide"],
                {
                    **_key(run_id, attempt),
                    "state": manifest.state.value,
                    "manifest": manifest.to_json(),
                    "failure": _failure_json(manifest.failure),
                    "rows_out": manifest.rows,
                    "decided_at": manifest.decided_at,
                },
            )
            _mine(cursor, run_id, attempt)
            with connection.pipeline():
                self._end_attempt(connection, run_id, attempt, manifest.state.value, manifest.failure)
                connection.execute(QUERIES["give_back_tables"], {"run_id": run_id})
                _add_what_landed(connection, manifest)

    def mark_recorded(self, run_id: UUID) -> None:
        with self._transaction() as connection:
            connection.execute(QUERIES["mark_recorded"], {"run_id": run_id})

    # ------------------------------------------------------------ reading

    def spec(self, run_id: UUID) -> JobSpec | None:
        with self._session() as connection:
            row = connection.execute(QUERIES["spec"], {"run_id": run_id}).fetchone()
        return None if row is None else parse_spec(row["spec"], what=f"spec of {run_id}")

    def manifest(self, run_id: UUID) -> Manifest | None:
        with self._session() as connection:
            row = connection.execute(QUERIES["manifest"], {"run_id": run_id}).fetchone()
        return None if row is None or row["manifest"] is None else _manifest(row["manifest"])

    def run(self, run_id: UUID) -> RunRow | None:
        found = self._runs(limit=1, run_id=run_id)
        return found[0] if found else None

    def find_run(self, text: str) -> list[UUID]:
        """Runs whose id begins with `text`, or ends with it where it has 8 characters: none, the one, or two."""
        with self._session() as connection:
            return [row["run_id"] for row in connection.execute(QUERIES["find_run"], {"text": text})]

    def runs(
        self,
        *,
        limit: int,
        pipeline: str | None = None,
        stage: Stage | None = None,
        state: State | None = None,
        pipeline_run: UUID | None = None,
        dataset: str | None = None,
        since: datetime | None = None,
    ) -> list[RunRow]:
        """Newest first; `dataset` keeps those that published it or pinned it, `since` those submitted from then on."""
        return self._runs(
            limit=limit,
            pipeline=pipeline,
            stage=stage and stage.value,
            state=state and state.value,
            pipeline_run=pipeline_run,
            dataset=dataset,
            since=since,
        )

    def _runs(self, **given: Any) -> list[RunRow]:
        wanted = dict.fromkeys(_FILTERS) | given
        with self._session() as connection:
            return [
                RunRow(
                    run_id=row["run_id"],
                    effect=row["effect"],
                    pipeline=row["pipeline"],
                    task=row["task"],
                    stage=Stage(row["stage"]),
                    state=State(row["state"]),
                    attempt=row["attempt"],
                    max_attempts=row["max_attempts"],
                    logical_time=_aware(row["logical_time"]),
                    submitted_at=_aware(row["submitted_at"]),
                    started_at=row["started_at"] and _aware(row["started_at"]),
                    decided_at=row["decided_at"] and _aware(row["decided_at"]),
                    failure=_failure(row["failure"]),
                    rows=row["rows_out"],
                    commit=row["logic_commit"],
                    pipeline_run=row["pipeline_run"],
                )
                for row in connection.execute(QUERIES["runs"], wanted)
            ]

    def newest(self, dataset: str) -> str | None:
        with self._session() as connection:
            row = connection.execute(QUERIES["newest"], {"dataset": dataset}).fetchone()
        return None if row is None else str(row["snapshot"])

    def upstream(self, dataset: str, snapshot: str) -> list[Edge]:
        return self._walk("upstream", dataset, snapshot)

    def downstream(self, dataset: str, snapshot: str) -> list[Edge]:
        return self._walk("downstream", dataset, snapshot)

    def _walk(self, direction: str, dataset: str, snapshot: str) -> list[Edge]:
        with self._session() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            rows = cursor.execute(QUERIES[direction], {"dataset": dataset, "snapshot": snapshot}).fetchall()
        # A dataset that is read under two names is one edge, though the run has written two.
        return [Edge(**dict(zip(_EDGE, row, strict=True))) for row in dict.fromkeys(rows)]

    # ------------------------------------------------------------ restoring

    def has_runs(self) -> bool:
        with self._session() as connection:
            return bool(_one(connection.execute(QUERIES["has_runs"]))["has_runs"])

    def at_work(self) -> UUID | None:
        """A run that a worker holds the lease of, if there is one."""
        with self._session() as connection:
            row = connection.execute(QUERIES["at_work"]).fetchone()
        return None if row is None else cast(UUID, row["run_id"])

    def known(self, run_ids: Sequence[UUID]) -> dict[UUID, JobSpec | None]:
        """Those of the runs that are here: the spec of one that is to end still, None for one that is decided."""
        with self._session() as connection:
            rows = connection.execute(QUERIES["known_runs"], {"run_ids": list(run_ids)}).fetchall()
        return {row["run_id"]: None if row["decided"] else parse_spec(row["spec"]) for row in rows}

    def restore_decided(self, manifest: Manifest, *, kept: str, spec: str) -> bool:
        """Put a run back as its manifest has it; False where it is decided here already.

        `kept` is the manifest and `spec` the spec as they were written, whichever release wrote them. Not known any
        more are the plan, when the run was pinned, and when the manifest was recorded: now is put for that.
        """
        run_id = manifest.run_id
        with self._transaction() as connection, connection.pipeline():
            restored = connection.execute(
                QUERIES["restore_decided"],
                {
                    **_spec_columns(manifest.spec),
                    "spec": spec,
                    "spec_sha256": manifest.spec_sha256,
                    "state": manifest.state.value,
                    "attempt": max((manifest.attempt, *(each.attempt for each in manifest.attempts))),
                    "submitted_at": manifest.submitted_at,
                    "started_at": manifest.attempts[0].started_at if manifest.attempts else None,
                    "manifest": kept,
                    "failure": _failure_json(manifest.failure),
                    "rows_out": manifest.rows,
                    "decided_at": manifest.decided_at,
                },
            )
            if restored.fetchone() is None:
                return False
            connection.execute(QUERIES["lose_earlier_attempts"], {"run_id": run_id})
            for attempt in manifest.attempts:
                row = attempt.model_dump(include={"attempt", "worker", "started_at", "ended_at", "outcome"})
                failure = _failure_json(attempt.failure)
                connection.execute(QUERIES["restore_attempt"], {**row, "run_id": run_id, "failure": failure})
            connection.execute(QUERIES["remove_pins"], {"run_id": run_id})
            connection.execute(QUERIES["give_back_tables"], {"run_id": run_id})
            for pin in manifest.pins:
                connection.execute(QUERIES["add_pin"], _pin_columns(run_id, pin))
            _add_what_landed(connection, manifest)
        return True

    def restore_queued(self, spec: JobSpec, *, kept: str, submitted_at: datetime) -> bool:
        """Put a run back that is to end still, as nobody had tried it yet; False where it is here already."""
        with self._transaction() as connection:
            columns = {**_spec_columns(spec), "spec": kept, "submitted_at": submitted_at}
            return connection.execute(QUERIES["restore_queued"], columns).fetchone() is not None

    def known_snapshots(self, dataset: str, snapshots: Sequence[str]) -> set[str]:
        """Those that a decided run published, or any run read."""
        with self._session() as connection:
            rows = connection.execute(QUERIES["known_snapshots"], {"dataset": dataset, "snapshots": list(snapshots)})
            return {row["snapshot"] for row in rows}

    def read_documents(self, dataset: str, documents: Sequence[str]) -> set[str]:
        """Those of a table's metadata documents that were the newest when some run pinned the table."""
        with self._session() as connection:
            rows = connection.execute(QUERIES["read_documents"], {"dataset": dataset, "documents": list(documents)})
            return {row["metadata"] for row in rows}

    def listed_document(self, table: str) -> str | None:
        """The metadata document that the catalog beside the ledger has for a table; None if it lists no such table."""
        with self._session() as connection:
            row = connection.execute(QUERIES["listed_document"], _table_key(table)).fetchone()
        return None if row is None else str(row["metadata_location"])

    def list_table(self, table: str, document: str) -> None:
        """Enter the table into that catalog, or move its entry to another document."""
        with self._transaction() as connection:
            connection.execute(QUERIES["list_namespace"], _table_key(table))
            connection.execute(QUERIES["list_table"], {**_table_key(table), "document": document})

    # ------------------------------------------------------------ reconciling

    def take_turn(self, stage: Stage, *, pause: timedelta) -> bool:
        """Whether the stage is the caller's to look after: nobody else's turn began within `pause`."""
        with self._transaction() as connection:
            cursor = connection.execute(QUERIES["take_turn"], {"stage": stage.value, "pause": pause})
            return cursor.fetchone() is not None

    def lapsed_leases(self, stage: Stage) -> list[LapsedLease]:
        with self._session() as connection:
            return [
                LapsedLease(
                    run_id=row["run_id"],
                    attempt=row["attempt"],
                    worker=row["worker"],
                    expired_at=_aware(row["lease_expires_at"]),
                )
                for row in connection.execute(QUERIES["lapsed_leases"], {"stage": stage.value})
            ]

    def count_sent(self, stage: Stage, *, before: datetime, quiet: timedelta, besides: Collection[UUID]) -> int:
        """How many undecided runs were sent before; one whose sending nobody noted, `quiet` after it was submitted."""
        given = {"stage": stage.value, "before": before, "quiet": quiet, "besides": list(besides)}
        with self._session() as connection:
            return int(_one(connection.execute(QUERIES["count_sent"], given))["runs"])

    def to_send(
        self, stage: Stage, *, sent_before: datetime, expired_before: datetime, besides: Collection[UUID]
    ) -> dict[UUID, datetime]:
        """Undecided runs, each with when it was last sent: those without a live lease, and any sent so long ago."""
        given = {"stage": stage.value, "sent_before": sent_before, "expired_before": expired_before}
        with self._session() as connection:
            rows = connection.execute(QUERIES["to_send"], {**given, "besides": list(besides)})
            return {row["run_id"]: _aware(row["sent_at"]) for row in rows}

    def take_to_send(self, run_ids: Sequence[UUID], *, sent_before: datetime) -> list[Resend]:
        """Note as sent now those that are not decided and that nobody else has sent since; send them."""
        given = {"run_ids": list(run_ids), "sent_before": sent_before}
        with self._transaction() as connection:
            rows = connection.execute(QUERIES["take_to_send"], given)
            return [Resend(run_id=row["run_id"], spec=row["spec"], noted=row["noted"]) for row in rows]

    def unrecorded(self, stage: Stage, *, decided_before: datetime) -> dict[UUID, datetime]:
        """Decided runs whose manifest nobody has noted to be in S3, each with when it was decided."""
        given = {"stage": stage.value, "decided_before": decided_before}
        with self._session() as connection:
            return {
                row["run_id"]: _aware(row["decided_at"]) for row in connection.execute(QUERIES["unrecorded"], given)
            }

    def standings(self, run_ids: Sequence[UUID]) -> dict[UUID, Standing]:
        """Those of the runs that are here."""
        with self._session() as connection:
            rows = connection.execute(QUERIES["standings"], {"run_ids": list(run_ids)})
            return {
                row["run_id"]: Standing(spec=row["spec"], decided_at=row["decided_at"] and _aware(row["decided_at"]))
                for row in rows
            }

    # ------------------------------------------------------------ the connection

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[DictRow]]:
        with self._session() as connection, connection.transaction():
            yield connection

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection[DictRow]]:
        """The one connection, made again where it broke. psycopg's errors end here.

        Each statement is a transaction of its own: for one that only reads, BEGIN and COMMIT are two round trips more.
        """
        with self._using:
            try:
                yield self._connected()
            except (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout) as exc:
                self.close()
                raise InfrastructureError(
                    f"ledger: Postgres at {self._where()} did not answer: {_line(exc)}", hint=_HINT
                ) from exc
            except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected) as exc:
                raise TransientError(f"ledger: Postgres at {self._where()} asks to try again: {_line(exc)}") from exc
            except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as exc:
                raise InfrastructureError(
                    f"ledger: expected its tables at {self._where()}, got: {_line(exc)}", hint="runner ledger migrate"
                ) from exc
            except BaseException as exc:
                if not isinstance(exc, Exception):
                    # A signal cut it off, perhaps within a statement: the next transaction needs another connection.
                    self.close()
                raise

    def _connected(self) -> psycopg.Connection[DictRow]:
        if self._connection is None or self._connection.closed or self._connection.broken:
            self._connection = psycopg.connect(
                self._url, autocommit=True, row_factory=dict_row, connect_timeout=_CONNECT_TIMEOUT_S
            )
            self._connection.execute("SET TIME ZONE 'UTC'")
        return self._connection

    def _where(self) -> str:
        try:
            parts = psycopg.conninfo.conninfo_to_dict(self._url)
        except psycopg.ProgrammingError:
            return "an address that is no connection string"
        return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}"


def _migrations() -> list[tuple[str, LiteralString]]:
    folder = files("runner").joinpath("sql")
    names = sorted(each.name for each in folder.iterdir() if re.match(r"\d{4}_", each.name))
    return [(name, folder.joinpath(name).read_text("utf-8")) for name in names]


def _spec_columns(spec: JobSpec) -> dict[str, Any]:
    return {
        "run_id": spec.run_id,
        "effect": spec.effect,
        "pipeline": spec.pipeline,
        "task": spec.task,
        "pipeline_run": spec.pipeline_run,
        "stage": spec.stage.value,
        "logic_commit": spec.logic.commit,
        "spec": spec.to_json(),
        "spec_sha256": spec.digest(),
        "logical_time": spec.logical_time,
        "max_attempts": spec.max_attempts,
    }


def _require_same_spec(spec: JobSpec, row: DictRow) -> None:
    # Another release may write the same spec with more fields and another digest: what it says is what counts.
    if row["spec_sha256"] != spec.digest() and parse_spec(row["spec"]) != spec:
        raise ConflictError(
            f"run {spec.run_id}: expected the spec that it was submitted with "
            f"(sha256 {row['spec_sha256'][:12]}), got another (sha256 {spec.digest()[:12]})",
            hint="a new request needs a run_id of its own",
        )


def _pin_columns(run_id: UUID, pin: Pin) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "alias": pin.as_,
        "dataset": pin.dataset,
        "snapshot": pin.snapshot,
        "metadata": pin.metadata,
        "state": pin.state,
    }


def _table_key(table: str) -> dict[str, Any]:
    namespace, _, name = table.partition(".")
    return {"catalog": _CATALOG, "namespace": namespace, "table": name}


def _add_what_landed(connection: psycopg.Connection[DictRow], manifest: Manifest) -> None:
    for output in manifest.outputs:
        if output.snapshot is None:
            continue
        connection.execute(
            QUERIES["add_output"],
            {
                "run_id": manifest.run_id,
                "dataset": output.dataset,
                "snapshot": output.snapshot,
                "branch": output.branch,
                "rows_out": output.rows,
                "bytes_out": output.bytes,
                "decided_at": manifest.decided_at,
            },
        )
    for edge in edges(manifest):
        row = {name: getattr(edge, name) for name in _EDGE}
        connection.execute(QUERIES["add_edge"], {**row, "logic_commit": edge.commit, "rows_out": edge.rows})


def _key(run_id: UUID, attempt: int) -> dict[str, Any]:
    return {"run_id": run_id, "attempt": attempt}


def _mine(cursor: psycopg.Cursor[DictRow], run_id: UUID, attempt: int) -> DictRow:
    row = cursor.fetchone()
    if row is None:
        raise LostLease(f"run {run_id}: attempt {attempt} is not the one in force")
    return row


def _one(cursor: psycopg.Cursor[DictRow]) -> DictRow:
    row = cursor.fetchone()
    if row is None:
        raise InfrastructureError("ledger: expected a row that was just written, got none")
    return row


def _aware(value: datetime) -> datetime:
    return value.astimezone(UTC)


def _manifest(raw: str) -> Manifest:
    return parse_json(Manifest, raw, what="manifest in the ledger")


def _plan(raw: str | None, run_id: UUID) -> Plan | None:
    return None if raw is None else parse_json(Plan, raw, what=f"plan of {run_id}")


def _failure(raw: dict[str, Any] | None) -> Failure | None:
    return None if raw is None else Failure.model_validate(raw, strict=False)


def _failure_json(failure: Failure | None) -> Json | None:
    return None if failure is None else Json(failure.model_dump(mode="json"))


def _line(exc: Exception) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__
