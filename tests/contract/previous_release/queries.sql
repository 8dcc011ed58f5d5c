-- name: submit
-- The same spec again changes nothing; what is stored is returned, so that another spec shows.
INSERT INTO ledger.runs (run_id, effect, pipeline, task, pipeline_run, stage, logic_commit, spec, spec_sha256,
                         logical_time, max_attempts)
VALUES (%(run_id)s, %(effect)s, %(pipeline)s, %(task)s, %(pipeline_run)s, %(stage)s, %(logic_commit)s, %(spec)s,
        %(spec_sha256)s, %(logical_time)s, %(max_attempts)s)
ON CONFLICT (run_id) DO NOTHING;

-- name: stored_spec
SELECT spec, spec_sha256, submitted_at FROM ledger.runs WHERE run_id = %(run_id)s;

-- name: lock_run
-- tries leaves out attempts that were handed back: a stopped worker spends none.
SELECT r.spec_sha256, r.state, r.attempt, r.max_attempts, r.submitted_at, r.plan, r.manifest,
       r.recorded_at IS NOT NULL AS recorded, r.pinned_at IS NOT NULL AS pinned,
       extract(epoch FROM greatest(r.lease_expires_at, r.not_before) - clock_timestamp())::float8 AS busy_s,
       (SELECT count(*) FROM ledger.attempts a WHERE a.run_id = r.run_id AND a.outcome <> 'handed back') AS tries
FROM ledger.runs r
WHERE r.run_id = %(run_id)s
FOR UPDATE OF r;

-- name: take
UPDATE ledger.runs
SET state = 'running', attempt = attempt + 1, not_before = NULL,
    lease_expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s),
    started_at = coalesce(started_at, clock_timestamp())
WHERE run_id = %(run_id)s
RETURNING attempt;

-- name: lose_earlier_attempts
UPDATE ledger.attempts SET outcome = 'lost', ended_at = clock_timestamp()
WHERE run_id = %(run_id)s AND outcome = 'running';

-- name: start_attempt
INSERT INTO ledger.attempts (run_id, attempt, worker) VALUES (%(run_id)s, %(attempt)s, %(worker)s);

-- name: heartbeat
UPDATE ledger.runs SET lease_expires_at = clock_timestamp() + make_interval(secs => %(lease_s)s)
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND state = 'running';

-- name: mark_pinned
UPDATE ledger.runs SET pinned_at = coalesce(pinned_at, clock_timestamp())
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND state = 'running'
RETURNING pinned_at = (SELECT r.pinned_at FROM ledger.runs r WHERE r.run_id = %(run_id)s) AS already;

-- name: add_pin
INSERT INTO ledger.pins (run_id, alias, dataset, snapshot, metadata)
VALUES (%(run_id)s, %(alias)s, %(dataset)s, %(snapshot)s, %(metadata)s);

-- name: pins
SELECT alias, dataset, snapshot, metadata FROM ledger.pins WHERE run_id = %(run_id)s ORDER BY alias;

-- name: plan
-- The first plan stays; whoever comes later gets it back.
UPDATE ledger.runs SET plan = coalesce(plan, %(plan)s)
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND state = 'running'
RETURNING plan;

-- name: release
UPDATE ledger.runs
SET state = 'queued', lease_expires_at = NULL, not_before = clock_timestamp() + make_interval(secs => %(wait_s)s)
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND state = 'running';

-- name: end_attempt
UPDATE ledger.attempts SET outcome = %(outcome)s, failure = %(failure)s, ended_at = clock_timestamp()
WHERE run_id = %(run_id)s AND attempt = %(attempt)s;

-- name: attempts
SELECT attempt, worker, started_at, ended_at, outcome, failure
FROM ledger.attempts WHERE run_id = %(run_id)s ORDER BY attempt;

-- name: decide
UPDATE ledger.runs
SET state = %(state)s, manifest = %(manifest)s, failure = %(failure)s, rows_out = %(rows_out)s,
    decided_at = %(decided_at)s, lease_expires_at = NULL, not_before = NULL
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND state = 'running';

-- name: add_output
INSERT INTO ledger.outputs (run_id, dataset, snapshot, branch, rows_out, bytes_out, decided_at)
VALUES (%(run_id)s, %(dataset)s, %(snapshot)s, %(branch)s, %(rows_out)s, %(bytes_out)s, %(decided_at)s);

-- name: add_edge
INSERT INTO ledger.edges (run_id, output, output_snapshot, input, input_snapshot, claimed, observed, logic_commit,
                          rows_out, decided_at)
VALUES (%(run_id)s, %(output)s, %(output_snapshot)s, %(input)s, %(input_snapshot)s, %(claimed)s, %(observed)s,
        %(logic_commit)s, %(rows_out)s, %(decided_at)s);

-- name: mark_recorded
UPDATE ledger.runs SET recorded_at = coalesce(recorded_at, clock_timestamp()) WHERE run_id = %(run_id)s;

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
WITH RECURSIVE walk AS (
    SELECT e.* FROM ledger.edges e WHERE e.output = %(dataset)s AND e.output_snapshot = %(snapshot)s
    UNION
    SELECT e.* FROM ledger.edges e JOIN walk w ON e.output = w.input AND e.output_snapshot = w.input_snapshot
)
SELECT * FROM walk;

-- name: downstream
WITH RECURSIVE walk AS (
    SELECT e.* FROM ledger.edges e WHERE e.input = %(dataset)s AND e.input_snapshot = %(snapshot)s
    UNION
    SELECT e.* FROM ledger.edges e JOIN walk w ON e.input = w.output AND e.input_snapshot = w.output_snapshot
)
SELECT * FROM walk;
