"""record: the decided manifest goes to S3, once and for good. Whoever comes can do it; nobody can change it."""

from __future__ import annotations

from runner.model.errors import ConflictError
from runner.model.manifest import Manifest
from runner.model.names import manifest_key
from runner.ports import Ports


def record(manifest: Manifest, ports: Ports) -> Manifest:
    """Raises `ConflictError` where another manifest of this run is there already."""
    key = manifest_key(manifest.run_id)
    if not ports.objects.put_if_absent(key, manifest.to_json().encode()):
        raise ConflictError(
            f"{ports.objects.uri(key)}: expected this run's manifest, got another that is there already"
        )
    ports.ledger.mark_recorded(manifest.run_id)
    return manifest
