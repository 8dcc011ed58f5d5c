-- name: submit
-- The same spec again changes nothing; what is stored is returned, so that another spec shows.
INSERT INTO ledger.runs (run_id, effect, pipeline, task, pipeline_run, stage, logic_commit, spec, spec_sha256,
                         logical_time, max_attempts)
VALUES (%(run_id)s, %(effect)s, %(pipeline)s, %(task)s, %(pipeline_run)s, %(stage)s, %(logic_commit)s, %(spec)s,
        %(spec_sha256)s, %(logical_time)s, %(max_attempts)s)
ON CONFLICT (run_id) DO NOTHING;

-- name: sent
-- A run that is over by now needs no message.
UPDATE ledger.runs SET sent_at = clock_timestamp() WHERE run_id = ANY(%(run_ids)s) AND decided_at IS NULL;

-- name: stored_spec
SELECT spec, spec_sha256, submitted_at FROM ledger.runs WHERE run_id = %(run_id)s;

-- name: lock_run
SELECT r.spec, r.spec_sha256, r.state, r.attempt, r.max_attempts, r.submitted_at, r.plan, r.manifest,
       r.recorded_at IS NOT NULL AS recorded, r.pinned_at IS NOT NULL AS pinned,
       r.cancel_asked_at IS NOT NULL AND r.plan IS NULL AS cancelled,
       extract(epoch FROM greatest(r.lease_expires_at, r.not_before) - clock_timestamp())::float8 AS busy_s
FROM ledger.runs r
WHERE r.run_id = %(run_id)s
FOR UPDATE OF r;

-- name: tries
-- Attempts that were handed back are left out: a stopped worker spends none. Asked when the row is locked, by a
-- statement of its own: one that has waited for the lock still sees the other tables as they were before.
SELECT count(*) AS tries FROM ledger.attempts WHERE run_id = %(run_id)s AND outcome <> 'handed back';

-- name: lose_earlier_attempts
UPDATE ledger.attempts SET outcome = 'lost', ended_at = clock_timestamp()
WHERE run_id = %(run_id)s AND outcome = 'running';

-- name: take
WITH taken AS (
    UPDATE ledger.runs
    SET state = 'running', attempt = attempt + 1, not_before = NULL,
        lease_expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s),
        started_at = coalesce(started_at, clock_timestamp())
    WHERE run_id = %(run_id)s
    RETURNING run_id, attempt)
INSERT INTO ledger.attempts (run_id, attempt, worker) SELECT run_id, attempt, %(worker)s FROM taken
RETURNING attempt;

-- name: heartbeat
UPDATE ledger.runs SET lease_expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND state = 'running'
RETURNING cancel_asked_at IS NOT NULL AND plan IS NULL AS cancel_wanted;

-- name: fence
SELECT plan, pinned_at IS NOT NULL AS pinned FROM ledger.runs
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND state = 'running'
FOR UPDATE;

-- name: begin_lease
-- in_the_way has to see what was committed while lock_tables waited, whatever this database's default is; and a worker
-- that freezes in between must not keep all others from its tables for ever.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = '10s';

-- name: lock_tables
-- Of two that ask at once one comes first. Ordered by the key itself, so that no two wait for each other, not even where
-- two names fall on one key.
SELECT pg_advisory_xact_lock(key)
FROM (SELECT DISTINCT hashtextextended(name, 0) AS key FROM unnest(%(datasets)s::text[]) AS name ORDER BY key) AS keys;

-- name: in_the_way
-- Rows of a decided run hold nothing: the release before decides without deleting them.
SELECT l.run_id
FROM ledger.leases l JOIN ledger.runs r ON r.run_id = l.run_id
WHERE l.dataset = ANY(%(datasets)s) AND l.run_id <> %(run_id)s AND r.decided_at IS NULL
  AND (l.exclusive OR l.dataset = ANY(%(exclusive)s))
ORDER BY l.run_id
LIMIT 1;

-- name: take_tables
INSERT INTO ledger.leases (dataset, run_id, exclusive)
SELECT name, %(run_id)s, name = ANY(%(exclusive)s) FROM unnest(%(datasets)s::text[]) AS name
ON CONFLICT (dataset, run_id) DO UPDATE SET exclusive = leases.exclusive OR excluded.exclusive;

-- name: mark_pinned
UPDATE ledger.runs SET pinned_at = clock_timestamp() WHERE run_id = %(run_id)s;

-- name: add_pin
INSERT INTO ledger.pins (run_id, alias, dataset, snapshot, metadata, state)
VALUES (%(run_id)s, %(alias)s, %(dataset)s, %(snapshot)s, %(metadata)s, %(state)s);

-- name: pins
SELECT alias, dataset, snapshot, metadata, state FROM ledger.pins WHERE run_id = %(run_id)s ORDER BY alias;

-- name: plan
-- The first plan stays; whoever comes later gets it back. None comes back where a cancel was asked before: both write
-- this row, so that one of them is first.
UPDATE ledger.runs SET plan = CASE WHEN cancel_asked_at IS NULL THEN coalesce(plan, %(plan)s) ELSE plan END
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND state = 'running'
RETURNING plan;

-- name: void
UPDATE ledger.runs SET plan = NULL, pinned_at = NULL WHERE run_id = %(run_id)s;

-- name: remove_pins
DELETE FROM ledger.pins WHERE run_id = %(run_id)s;

-- name: lock_for_cancel
SELECT plan IS NOT NULL AS planned, decided_at IS NOT NULL AS decided
FROM ledger.runs
WHERE run_id = %(run_id)s
FOR UPDATE;

-- name: ask_cancel
UPDATE ledger.runs SET cancel_asked_at = coalesce(cancel_asked_at, clock_timestamp()), not_before = NULL
WHERE run_id = %(run_id)s;

-- name: cancel_wanted
SELECT cancel_asked_at IS NOT NULL AND plan IS NULL AND decided_at IS NULL AS cancel_wanted
FROM ledger.runs
WHERE run_id = %(run_id)s;

-- name: release
-- A run that is to be cancelled does not wait, whether the asking came before this or after.
UPDATE ledger.runs
SET state = 'queued', lease_expires_at = NULL,
    not_before = CASE WHEN cancel_asked_at IS NULL OR plan IS NOT NULL
                      THEN clock_timestamp() + make_interval(secs => %(wait_s)s) END
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND state = 'running'
RETURNING attempt;

-- name: end_attempt
UPDATE ledger.attempts SET outcome = %(outcome)s, failure = %(failure)s, ended_at = clock_timestamp()
WHERE run_id = %(run_id)s AND attempt = %(attempt)s;

-- name: attempts
SELECT attempt, worker, started_at, ended_at, outcome, failure
FROM ledger.attempts WHERE run_id = %(run_id)s ORDER BY attempt;

-- name: now
SELECT clock_timestamp() AS now;

-- name: decide
UPDATE ledger.runs
SET state = %(state)s, manifest = %(manifest)s, failure = %(failure)s, rows_out = %(rows_out)s,
    decided_at = %(decided_at)s, lease_expires_at = NULL, not_before = NULL, sent_at = NULL
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND state = 'running'
RETURNING attempt;

-- name: give_back_tables
DELETE FROM ledger.leases WHERE run_id = %(run_id)s;

-- name: add_output
INSERT INTO ledger.outputs (run_id, dataset, snapshot, branch, rows_out, bytes_out, decided_at)
VALUES (%(run_id)s, %(dataset)s, %(snapshot)s, %(branch)s, %(rows_out)s, %(bytes_out)s, %(decided_at)s);

-- name: add_edge
INSERT INTO ledger.edges (run_id, output, output_snapshot, input, input_snapshot, claimed, observed, logic_commit,
                          rows_out, decided_at)
VALUES (%(run_id)s, %(output)s, %(output_snapshot)s, %(input)s, %(input_snapshot)s, %(claimed)s, %(observed)s,
        %(logic_commit)s, %(rows_out)s, %(decided_at)s);

-- name: mark_recorded
UPDATE ledger.runs SET recorded_at = coalesce(recorded_at, clock_timestamp())
WHERE run_id = %(run_id)s AND decided_at IS NOT NULL;

-- name: spec
SELECT spec FROM ledger.runs WHERE run_id = %(run_id)s;

-- name: manifest
SELECT manifest FROM ledger.runs WHERE run_id = %(run_id)s;

-- name: runs
SELECT run_id, effect, pipeline, task, stage, state, attempt, max_attempts, logical_time, submitted_at, started_at,
       decided_at, failure, rows_out, logic_commit, pipeline_run
FROM ledger.runs
WHERE (%(run_id)s::uuid IS NULL OR run_id = %(run_id)s)
  AND (%(pipeline)s::text IS NULL OR pipeline = %(pipeline)s)
  AND (%(stage)s::text IS NULL OR stage = %(stage)s)
  AND (%(state)s::text IS NULL OR state = %(state)s)
  AND (%(pipeline_run)s::uuid IS NULL OR pipeline_run = %(pipeline_run)s)
  AND (%(since)s::timestamptz IS NULL OR submitted_at >= %(since)s)
  AND (%(dataset)s::text IS NULL OR run_id IN (
          SELECT o.run_id FROM ledger.outputs o WHERE o.dataset = %(dataset)s
          UNION ALL
          SELECT p.run_id FROM ledger.pins p WHERE p.dataset = %(dataset)s))
ORDER BY submitted_at DESC, run_id DESC
LIMIT %(limit)s;

-- name: find_run
-- A run by what people type of its id: the beginning, or the last 8 characters.
SELECT run_id FROM ledger.runs
WHERE run_id::text LIKE %(text)s || '%%' OR right(run_id::text, 8) = %(text)s
ORDER BY submitted_at DESC
LIMIT 2;

-- name: newest
SELECT snapshot FROM ledger.outputs
WHERE dataset = %(dataset)s AND branch IS NULL
ORDER BY decided_at DESC, run_id DESC
LIMIT 1;

-- name: upstream
-- The walk remembers snapshots, not whole edges: what it has seen it compares with at every step.
WITH RECURSIVE walk (dataset, snapshot) AS (
    VALUES (%(dataset)s::text, %(snapshot)s::text)
    UNION
    SELECT e.input, e.input_snapshot
    FROM walk w JOIN ledger.edges e ON e.output = w.dataset AND e.output_snapshot = w.snapshot
    WHERE e.input IS NOT NULL
)
SELECT e.run_id, e.output, e.output_snapshot, e.input, e.input_snapshot, e.claimed, e.observed,
       e.logic_commit, e.rows_out, e.decided_at
FROM walk w JOIN ledger.edges e ON e.output = w.dataset AND e.output_snapshot = w.snapshot;

-- name: downstream
WITH RECURSIVE walk (dataset, snapshot) AS (
    VALUES (%(dataset)s::text, %(snapshot)s::text)
    UNION
    SELECT e.output, e.output_snapshot
    FROM walk w JOIN ledger.edges e ON e.input = w.dataset AND e.input_snapshot = w.snapshot
)
SELECT e.run_id, e.output, e.output_snapshot, e.input, e.input_snapshot, e.claimed, e.observed,
       e.logic_commit, e.rows_out, e.decided_at
FROM walk w JOIN ledger.edges e ON e.input = w.dataset AND e.input_snapshot = w.snapshot;

-- name: has_runs
SELECT EXISTS (SELECT FROM ledger.runs) AS has_runs;

-- name: at_work
SELECT run_id FROM ledger.runs WHERE decided_at IS NULL AND lease_expires_at > clock_timestamp() LIMIT 1;

-- name: known_runs
SELECT run_id, spec, decided_at IS NOT NULL AS decided FROM ledger.runs WHERE run_id = ANY(%(run_ids)s);

-- name: restore_decided
-- A row that is decided already stays as it is. Of one that is not, the ledger came back from a backup.
INSERT INTO ledger.runs (run_id, effect, pipeline, task, pipeline_run, stage, logic_commit, spec, spec_sha256,
                         logical_time, state, attempt, max_attempts, submitted_at, started_at, manifest, failure,
                         rows_out, decided_at, recorded_at)
VALUES (%(run_id)s, %(effect)s, %(pipeline)s, %(task)s, %(pipeline_run)s, %(stage)s, %(logic_commit)s, %(spec)s,
        %(spec_sha256)s, %(logical_time)s, %(state)s, %(attempt)s, %(max_attempts)s, %(submitted_at)s, %(started_at)s,
        %(manifest)s, %(failure)s, %(rows_out)s, %(decided_at)s, clock_timestamp())
ON CONFLICT (run_id) DO UPDATE
SET state = excluded.state, attempt = greatest(runs.attempt, excluded.attempt),
    submitted_at = excluded.submitted_at, started_at = coalesce(runs.started_at, excluded.started_at),
    manifest = excluded.manifest, failure = excluded.failure, rows_out = excluded.rows_out,
    decided_at = excluded.decided_at, recorded_at = excluded.recorded_at, lease_expires_at = NULL, not_before = NULL
WHERE runs.decided_at IS NULL
RETURNING run_id;

-- name: restore_attempt
INSERT INTO ledger.attempts (run_id, attempt, worker, started_at, ended_at, outcome, failure)
VALUES (%(run_id)s, %(attempt)s, %(worker)s, %(started_at)s, %(ended_at)s, %(outcome)s, %(failure)s)
ON CONFLICT (run_id, attempt) DO UPDATE
SET worker = excluded.worker, started_at = excluded.started_at, ended_at = excluded.ended_at,
    outcome = excluded.outcome, failure = excluded.failure;

-- name: restore_queued
INSERT INTO ledger.runs (run_id, effect, pipeline, task, pipeline_run, stage, logic_commit, spec, spec_sha256,
                         logical_time, max_attempts, submitted_at)
VALUES (%(run_id)s, %(effect)s, %(pipeline)s, %(task)s, %(pipeline_run)s, %(stage)s, %(logic_commit)s, %(spec)s,
        %(spec_sha256)s, %(logical_time)s, %(max_attempts)s, %(submitted_at)s)
ON CONFLICT (run_id) DO NOTHING
RETURNING run_id;

-- name: known_snapshots
SELECT o.snapshot FROM ledger.outputs o WHERE o.dataset = %(dataset)s AND o.snapshot = ANY(%(snapshots)s)
UNION
SELECT p.snapshot FROM ledger.pins p WHERE p.dataset = %(dataset)s AND p.snapshot = ANY(%(snapshots)s);

-- name: read_documents
SELECT DISTINCT metadata FROM ledger.pins WHERE dataset = %(dataset)s AND metadata = ANY(%(documents)s);

-- name: listed_document
SELECT metadata_location FROM catalog.iceberg_tables
WHERE catalog_name = %(catalog)s AND table_namespace = %(namespace)s AND table_name = %(table)s;

-- name: list_namespace
INSERT INTO catalog.iceberg_namespace_properties (catalog_name, namespace, property_key, property_value)
VALUES (%(catalog)s, %(namespace)s, 'exists', 'true')
ON CONFLICT DO NOTHING;

-- name: list_table
INSERT INTO catalog.iceberg_tables (catalog_name, table_namespace, table_name, metadata_location, iceberg_type)
VALUES (%(catalog)s, %(namespace)s, %(table)s, %(document)s, 'TABLE')
ON CONFLICT (catalog_name, table_namespace, table_name) DO UPDATE
SET previous_metadata_location = iceberg_tables.metadata_location, metadata_location = excluded.metadata_location;

-- name: take_turn
-- One at a time: of several that ask at once the first makes or moves the row, and the others then find it moved.
INSERT INTO ledger.reconciled (stage, at) VALUES (%(stage)s, clock_timestamp())
ON CONFLICT (stage) DO UPDATE SET at = clock_timestamp() WHERE reconciled.at < clock_timestamp() - %(pause)s::interval
RETURNING stage;

-- name: lapsed_leases
SELECT r.run_id, r.attempt, r.lease_expires_at, a.worker
FROM ledger.runs r JOIN ledger.attempts a ON a.run_id = r.run_id AND a.attempt = r.attempt
WHERE r.decided_at IS NULL AND r.stage = %(stage)s AND r.state = 'running' AND r.lease_expires_at <= clock_timestamp()
ORDER BY r.lease_expires_at, r.run_id;

-- name: count_sent
-- Where nobody noted the sending, a submit may still be between the ledger and the queue for a while.
SELECT count(*) AS runs FROM ledger.runs
WHERE decided_at IS NULL AND stage = %(stage)s AND coalesce(sent_at, submitted_at + %(quiet)s::interval) < %(before)s
  AND run_id <> ALL(%(besides)s::uuid[]);

-- name: to_send
SELECT run_id, coalesce(sent_at, submitted_at) AS sent_at FROM ledger.runs
WHERE decided_at IS NULL AND stage = %(stage)s AND coalesce(sent_at, submitted_at) < %(sent_before)s
  AND (lease_expires_at IS NULL OR lease_expires_at <= clock_timestamp()
       OR coalesce(sent_at, submitted_at) < %(expired_before)s)
  AND run_id <> ALL(%(besides)s::uuid[])
ORDER BY submitted_at, run_id;

-- name: take_to_send
-- Noted before it is done: of two that reconcile at once one sends. Who dies in between is found out by the next.
UPDATE ledger.runs r SET sent_at = clock_timestamp()
FROM (SELECT run_id, sent_at FROM ledger.runs
      WHERE run_id = ANY(%(run_ids)s) AND decided_at IS NULL AND coalesce(sent_at, submitted_at) < %(sent_before)s
      ORDER BY run_id FOR UPDATE) AS due
WHERE r.run_id = due.run_id
RETURNING r.run_id, r.spec, due.sent_at IS NOT NULL AS noted;

-- name: unrecorded
SELECT run_id, decided_at FROM ledger.runs
WHERE decided_at < %(decided_before)s AND recorded_at IS NULL AND stage = %(stage)s
ORDER BY decided_at, run_id;

-- name: standings
SELECT run_id, spec, decided_at FROM ledger.runs WHERE run_id = ANY(%(run_ids)s);
