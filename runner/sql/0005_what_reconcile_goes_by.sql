-- When a run's message was last sent, which manifests are owed, and when somebody last looked. Expand only: the release
-- before goes on working here, and a run that it queues counts as sent when it was submitted.
ALTER TABLE ledger.runs ADD COLUMN sent_at timestamptz;
CREATE INDEX runs_unrecorded ON ledger.runs (decided_at) WHERE decided_at IS NOT NULL AND recorded_at IS NULL;

CREATE TABLE ledger.reconciled (
    stage text PRIMARY KEY,
    at    timestamptz NOT NULL
);
