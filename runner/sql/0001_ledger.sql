-- The ledger: runs, their attempts, pins and lineage. Leases and back-offs run on the database's clock, never a host's.
CREATE TABLE ledger.runs (
    run_id           uuid PRIMARY KEY,
    effect           uuid NOT NULL,
    pipeline         text NOT NULL,
    task             text NOT NULL,
    pipeline_run     uuid,
    stage            text NOT NULL,
    logic_commit     text NOT NULL,
    spec             text NOT NULL, -- canonical JSON; text, since jsonb would not give the hashed bytes back
    spec_sha256      text NOT NULL,
    logical_time     timestamptz NOT NULL,
    state            text NOT NULL DEFAULT 'queued'
                     CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    attempt          integer NOT NULL DEFAULT 0,
    max_attempts     integer NOT NULL,
    lease_expires_at timestamptz,
    not_before       timestamptz,
    submitted_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at       timestamptz,
    pinned_at        timestamptz,
    plan             text,
    manifest         text,
    failure          jsonb,
    rows_out         bigint,
    decided_at       timestamptz,
    recorded_at      timestamptz,
    CHECK ((manifest IS NULL) = (decided_at IS NULL)),
    CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (decided_at IS NOT NULL))
);
CREATE INDEX runs_by_submission ON ledger.runs (submitted_at DESC);
CREATE INDEX runs_by_id_text ON ledger.runs ((run_id::text) text_pattern_ops);
CREATE INDEX runs_by_short_id ON ledger.runs ((right(run_id::text, 8)));
CREATE INDEX runs_by_pipeline ON ledger.runs (pipeline, submitted_at DESC);
CREATE INDEX runs_by_pipeline_run ON ledger.runs (pipeline_run) WHERE pipeline_run IS NOT NULL;
CREATE INDEX runs_undecided ON ledger.runs (submitted_at) WHERE decided_at IS NULL;

CREATE TABLE ledger.attempts (
    run_id     uuid NOT NULL REFERENCES ledger.runs,
    attempt    integer NOT NULL,
    worker     text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at   timestamptz,
    outcome    text NOT NULL DEFAULT 'running',
    failure    jsonb,
    PRIMARY KEY (run_id, attempt)
);

CREATE TABLE ledger.pins (
    run_id   uuid NOT NULL REFERENCES ledger.runs,
    alias    text NOT NULL,
    dataset  text NOT NULL,
    snapshot text NOT NULL,
    metadata text NOT NULL,
    PRIMARY KEY (run_id, alias)
);
CREATE INDEX pins_by_dataset ON ledger.pins (dataset, snapshot);

CREATE TABLE ledger.outputs (
    run_id     uuid NOT NULL REFERENCES ledger.runs,
    dataset    text NOT NULL,
    snapshot   text NOT NULL,
    branch     text,
    rows_out   bigint,
    bytes_out  bigint NOT NULL,
    decided_at timestamptz NOT NULL,
    PRIMARY KEY (run_id, dataset)
);
CREATE INDEX outputs_by_dataset ON ledger.outputs (dataset, decided_at DESC) WHERE branch IS NULL;

CREATE TABLE ledger.edges (
    run_id          uuid NOT NULL REFERENCES ledger.runs,
    output          text NOT NULL,
    output_snapshot text NOT NULL,
    input           text,
    input_snapshot  text,
    claimed         boolean,
    observed        text,
    logic_commit    text NOT NULL,
    rows_out        bigint,
    decided_at      timestamptz NOT NULL
);
CREATE INDEX edges_by_output ON ledger.edges (output, output_snapshot);
CREATE INDEX edges_by_input ON ledger.edges (input, input_snapshot);
