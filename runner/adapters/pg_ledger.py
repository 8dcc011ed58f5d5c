"""The ledger in Postgres. Each method is one transaction; every write of an attempt is bound to its number."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.resources import files
from threading import Lock
from typing import Any, Literal, LiteralString, cast
from uuid import UUID

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Json

from runner.model.errors import ConflictError, Failure, InfrastructureError, TransientError
from runner.model.lineage import edges
from runner.model.manifest import TERMINAL, AttemptRecord, Manifest, Pin, Plan, State
from runner.model.spec import JobSpec, Stage, parse_spec
from runner.model.strict import parse_json
from runner.ports import LEASE_S, Busy, Claimed, Decided, Edge, LostLease, RunRow

_MIGRATION_LOCK = 0x57A6E
"""Key of the advisory lock under which migrations run; any number that nobody else in this database uses."""
_CONNECT_TIMEOUT_S = 5
_HINT = "runner up starts the embedded services; RUNNER_LEDGER_URL names another Postgres"


def _named_queries() -> dict[str, LiteralString]:
    # psycopg takes literal strings only, so that no value is ever pasted into SQL; these come with the package.
    text = files("runner").joinpath("sql/queries.sql").read_text("utf-8")
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)[1:]
    return {name: cast(LiteralString, query) for name, query in zip(parts[::2], parts[1::2], strict=True)}


QUERIES = _named_queries()


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
        with self._transaction() as connection:
            row = connection.execute("SELECT to_regclass('ledger.migrations') IS NOT NULL AS there").fetchone()
            done = set[str]()
            if row and row["there"]:
                done = {each["name"] for each in connection.execute("SELECT name FROM ledger.migrations")}
        return [name for name, _ in _migrations() if name not in done]

    # ------------------------------------------------------------ a run's life

    def submit(self, spec: JobSpec) -> datetime:
        with self._transaction() as connection:
            return self._submit(connection, spec)

    def _submit(self, connection: psycopg.Connection[DictRow], spec: JobSpec) -> datetime:
        connection.execute(
            QUERIES["submit"],
            {
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
            },
        )
        row = _one(connection.execute(QUERIES["stored_spec"], {"run_id": spec.run_id}))
        # Another release may write the same spec with more fields and another digest: what it says is what counts.
        if row["spec_sha256"] != spec.digest() and parse_spec(row["spec"]) != spec:
            raise ConflictError(
                f"run {spec.run_id}: expected the spec that it was submitted with "
                f"(sha256 {row['spec_sha256'][:12]}), got another (sha256 {spec.digest()[:12]})",
                hint="a new request needs a run_id of its own",
            )
        return _aware(row["submitted_at"])

    def claim(self, spec: JobSpec, *, worker: str) -> Claimed | Busy | Decided:
        at = {"run_id": spec.run_id}
        with self._transaction() as connection:
            self._submit(connection, spec)
            row = _one(connection.execute(QUERIES["lock_run"], at))
            if row["state"] in TERMINAL:
                return Decided(manifest=_manifest(row["manifest"]), recorded=row["recorded"])
            if row["busy_s"] is not None and row["busy_s"] > 0:
                return Busy(seconds=row["busy_s"])
            attempt = _one(connection.execute(QUERIES["take"], {**at, "lease_s": self._lease_s}))["attempt"]
            connection.execute(QUERIES["lose_earlier_attempts"], at)
            connection.execute(QUERIES["start_attempt"], {**at, "attempt": attempt, "worker": worker})
            return Claimed(
                attempt=attempt,
                tries=row["tries"] + 1,
                settling=row["tries"] >= row["max_attempts"],
                submitted_at=_aware(row["submitted_at"]),
                pins=self._pins(connection, spec.run_id) if row["pinned"] else None,
                plan=None if row["plan"] is None else parse_json(Plan, row["plan"], what=f"plan of {spec.run_id}"),
            )

    def heartbeat(self, run_id: UUID, attempt: int) -> None:
        with self._transaction() as connection:
            _mine(connection.execute(QUERIES["heartbeat"], {**_key(run_id, attempt), "lease_s": self._lease_s}))

    def pin(self, run_id: UUID, attempt: int, pins: Sequence[Pin]) -> tuple[Pin, ...]:
        with self._transaction() as connection:
            row = connection.execute(QUERIES["mark_pinned"], _key(run_id, attempt)).fetchone()
            if row is None:
                raise LostLease(f"run {run_id}: attempt {attempt} is not the one in force")
            if not row["already"]:
                for pin in pins:
                    connection.execute(
                        QUERIES["add_pin"],
                        {
                            "run_id": run_id,
                            "alias": pin.as_,
                            "dataset": pin.dataset,
                            "snapshot": pin.snapshot,
                            "metadata": pin.metadata,
                        },
                    )
            return self._pins(connection, run_id)

    def _pins(self, connection: psycopg.Connection[DictRow], run_id: UUID) -> tuple[Pin, ...]:
        return tuple(
            Pin(as_=row["alias"], dataset=row["dataset"], snapshot=row["snapshot"], metadata=row["metadata"])
            for row in connection.execute(QUERIES["pins"], {"run_id": run_id})
        )

    def plan(self, run_id: UUID, attempt: int, plan: Plan) -> Plan:
        with self._transaction() as connection:
            cursor = connection.execute(QUERIES["plan"], {**_key(run_id, attempt), "plan": plan.to_json()})
            row = cursor.fetchone()
            if row is None:
                raise LostLease(f"run {run_id}: attempt {attempt} is not the one in force")
            return parse_json(Plan, row["plan"], what=f"plan of {run_id}")

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
            _mine(connection.execute(QUERIES["release"], {**_key(run_id, attempt), "wait_s": wait_s}))
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
        with self._transaction() as connection:
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

    def decide(self, manifest: Manifest, *, attempt: int) -> None:
        run_id = manifest.run_id
        published = [output for output in manifest.outputs if output.snapshot is not None]
        with self._transaction() as connection:
            _mine(
                connection.execute(
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
            )
            self._end_attempt(connection, run_id, attempt, manifest.state.value, manifest.failure)
            for output in published:
                connection.execute(
                    QUERIES["add_output"],
                    {
                        "run_id": run_id,
                        "dataset": output.dataset,
                        "snapshot": output.snapshot,
                        "branch": output.branch,
                        "rows_out": output.rows,
                        "bytes_out": output.bytes,
                        "decided_at": manifest.decided_at,
                    },
                )
            for edge in edges(manifest):
                row = {name: getattr(edge, name) for name in ("run_id", "output", "output_snapshot", "input")}
                row |= {name: getattr(edge, name) for name in ("input_snapshot", "claimed", "observed", "decided_at")}
                connection.execute(QUERIES["add_edge"], {**row, "logic_commit": edge.commit, "rows_out": edge.rows})

    def mark_recorded(self, run_id: UUID) -> None:
        with self._transaction() as connection:
            connection.execute(QUERIES["mark_recorded"], {"run_id": run_id})

    # ------------------------------------------------------------ reading

    def spec(self, run_id: UUID) -> JobSpec | None:
        with self._transaction() as connection:
            row = connection.execute(QUERIES["spec"], {"run_id": run_id}).fetchone()
        return None if row is None else parse_spec(row["spec"], what=f"spec of {run_id}")

    def manifest(self, run_id: UUID) -> Manifest | None:
        with self._transaction() as connection:
            row = connection.execute(QUERIES["manifest"], {"run_id": run_id}).fetchone()
        return None if row is None or row["manifest"] is None else _manifest(row["manifest"])

    def run(self, run_id: UUID) -> RunRow | None:
        found = self._runs(limit=1, run_id=run_id)
        return found[0] if found else None

    def find_run(self, text: str) -> list[UUID]:
        """Runs whose id begins with `text`, or ends with it where it has 8 characters: none, the one, or two."""
        with self._transaction() as connection:
            return [row["run_id"] for row in connection.execute(QUERIES["find_run"], {"text": text})]

    def runs(
        self,
        *,
        limit: int,
        pipeline: str | None = None,
        stage: Stage | None = None,
        state: State | None = None,
        pipeline_run: UUID | None = None,
    ) -> list[RunRow]:
        return self._runs(
            limit=limit,
            pipeline=pipeline,
            stage=stage and stage.value,
            state=state and state.value,
            pipeline_run=pipeline_run,
        )

    def _runs(self, **given: Any) -> list[RunRow]:
        wanted = dict.fromkeys(("run_id", "pipeline", "stage", "state", "pipeline_run")) | given
        with self._transaction() as connection:
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
        with self._transaction() as connection:
            row = connection.execute(QUERIES["newest"], {"dataset": dataset}).fetchone()
        return None if row is None else str(row["snapshot"])

    def upstream(self, dataset: str, snapshot: str) -> list[Edge]:
        return self._walk("upstream", dataset, snapshot)

    def downstream(self, dataset: str, snapshot: str) -> list[Edge]:
        return self._walk("downstream", dataset, snapshot)

    def _walk(self, direction: str, dataset: str, snapshot: str) -> list[Edge]:
        with self._transaction() as connection:
            return [
                Edge(
                    run_id=row["run_id"],
                    output=row["output"],
                    output_snapshot=row["output_snapshot"],
                    input=row["input"],
                    input_snapshot=row["input_snapshot"],
                    claimed=row["claimed"],
                    observed=row["observed"],
                    commit=row["logic_commit"],
                    rows=row["rows_out"],
                    decided_at=_aware(row["decided_at"]),
                )
                for row in connection.execute(QUERIES[direction], {"dataset": dataset, "snapshot": snapshot})
            ]

    # ------------------------------------------------------------ the connection

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[DictRow]]:
        """One transaction on the one connection, made again where it broke. psycopg's errors end here."""
        with self._using:
            try:
                connection = self._connected()
                with connection.transaction():
                    yield connection
            except psycopg.OperationalError as exc:
                self.close()
                raise InfrastructureError(
                    f"ledger: Postgres at {self._where()} did not answer: {_line(exc)}", hint=_HINT
                ) from exc
            except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected) as exc:
                raise TransientError(f"ledger: Postgres at {self._where()} asks to try again: {_line(exc)}") from exc
            except psycopg.errors.UndefinedTable as exc:
                raise InfrastructureError(
                    f"ledger: expected its tables at {self._where()}, got: {_line(exc)}", hint="runner ledger migrate"
                ) from exc

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


def _key(run_id: UUID, attempt: int) -> dict[str, Any]:
    return {"run_id": run_id, "attempt": attempt}


def _mine(cursor: psycopg.Cursor[DictRow]) -> None:
    if cursor.rowcount != 1:
        raise LostLease("the run is another attempt's, or decided")


def _one(cursor: psycopg.Cursor[DictRow]) -> DictRow:
    row = cursor.fetchone()
    if row is None:
        raise InfrastructureError("ledger: expected a row that was just written, got none")
    return row


def _aware(value: datetime) -> datetime:
    return value.astimezone(UTC)


def _manifest(raw: str) -> Manifest:
    return parse_json(Manifest, raw, what="manifest in the ledger")


def _failure(raw: dict[str, Any] | None) -> Failure | None:
    return None if raw is None else Failure.model_validate(raw, strict=False)


def _failure_json(failure: Failure | None) -> Json | None:
    return None if failure is None else Json(failure.model_dump(mode="json"))


def _line(exc: Exception) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__
