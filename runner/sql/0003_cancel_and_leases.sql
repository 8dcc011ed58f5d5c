-- What a run is asked and what it holds until it is decided. Expand only: the release before goes on working here.
ALTER TABLE ledger.runs ADD COLUMN cancel_asked_at timestamptz;
ALTER TABLE ledger.pins ADD COLUMN state boolean NOT NULL DEFAULT false;

CREATE TABLE ledger.leases (
    dataset   text NOT NULL,
    run_id    uuid NOT NULL REFERENCES ledger.runs,
    exclusive boolean NOT NULL,
    PRIMARY KEY (dataset, run_id)
);
CREATE INDEX leases_by_run ON ledger.leases (run_id);
