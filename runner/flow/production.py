"""production: only logic that the production ref reaches may publish to other than `dev_` datasets."""

from __future__ import annotations

from runner.model.errors import SpecError
from runner.model.manifest import LogicRecord
from runner.model.names import dev_of, is_dev
from runner.model.spec import JobSpec
from runner.ports import Ports


def prove_production(spec: JobSpec, logic: LogicRecord, ports: Ports) -> LogicRecord:
    """The record with what the repository says of it. Raises `SpecError` where the logic may not publish there."""
    if spec.publishes_to_branch:
        return logic
    published = [each.dataset for each in spec.outputs if not is_dev(each.dataset)]
    if not published:
        return logic
    if not ports.logic.reached(spec.logic.repo, spec.logic.commit, ports.production_ref):
        raise SpecError(
            f"logic.commit: expected a commit that {ports.production_ref} contains, to publish to {published[0]}, "
            f"got {spec.logic.commit[:12]}",
            subject="logic.commit",
            hint=f"merge it to {ports.production_ref}, or publish to {dev_of(published[0])}",
        )
    return logic.model_copy(update={"production": True})
