"""claim: the run becomes this attempt's, or it turns out to be somebody else's, or over."""

from __future__ import annotations

from runner.model.errors import ConflictError, Failure, InfrastructureError, RunnerError
from runner.model.manifest import Manifest
from runner.model.names import manifest_key
from runner.model.spec import JobSpec
from runner.model.strict import parse_json
from runner.ports import Busy, Claimed, Decided, Ports


class Unheard(Exception):
    """Whether the run is over already could not be asked, so nothing may be decided about it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def claim(spec: JobSpec, ports: Ports) -> Claimed | Busy | Decided:
    """Take the run under the next attempt number. Raises `ConflictError` for another spec under the same run_id."""
    return ports.ledger.claim(spec, worker=ports.worker)


def recall(spec: JobSpec, claimed: Claimed, ports: Ports) -> Manifest | None:
    """The manifest that S3 keeps of a run that the ledger, back from a backup, does not know to be over; put back.

    Raises `ConflictError` where it is of another spec: the ledger has forgotten that this run_id was taken; and
    `Unheard` where S3 does not answer.
    """
    key = manifest_key(spec.run_id)
    try:
        kept = ports.objects.get(key)
    except RunnerError as away:
        raise Unheard(away.failure) from away
    if kept is None:
        return None
    # A body cut off on its way is no reason to decide anything: hence not the `SpecError` of a request.
    manifest = parse_json(Manifest, kept, what=ports.objects.uri(key), error=InfrastructureError)
    if manifest.spec != spec:
        raise ConflictError(f"run {spec.run_id}: expected the spec that {ports.objects.uri(key)} has, got another")
    ports.ledger.decide(manifest, attempt=claimed.attempt)
    return manifest
