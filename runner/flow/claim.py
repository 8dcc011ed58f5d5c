"""claim: the run becomes this attempt's, or it turns out to be somebody else's, or over."""

from __future__ import annotations

from runner.model.manifest import Manifest
from runner.model.names import manifest_key
from runner.model.spec import JobSpec
from runner.model.strict import parse_json
from runner.ports import Busy, Claimed, Decided, Ports


def claim(spec: JobSpec, ports: Ports) -> Claimed | Busy | Decided:
    """Take the run under the next attempt number.

    A ledger that came back from a backup may have forgotten how the run ended, so S3's manifest is asked too, and
    put back where it is found. Raises `ConflictError` for another spec under the same run_id.
    """
    claimed = ports.ledger.claim(spec, worker=ports.worker)
    if not isinstance(claimed, Claimed):
        return claimed
    kept = ports.objects.get(manifest_key(spec.run_id))
    if kept is None:
        return claimed
    manifest = parse_json(Manifest, kept, what=ports.objects.uri(manifest_key(spec.run_id)))
    ports.ledger.decide(manifest, attempt=claimed.attempt)
    return Decided(manifest=manifest, recorded=False)
