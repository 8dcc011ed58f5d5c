-- For reading at scale: the runs that ended badly, and who published a snapshot. Indexes only: the release before
-- neither sees nor needs them.
CREATE INDEX runs_ended_badly ON ledger.runs (submitted_at DESC) WHERE state IN ('failed', 'cancelled');
CREATE INDEX outputs_by_snapshot ON ledger.outputs (dataset, snapshot);
