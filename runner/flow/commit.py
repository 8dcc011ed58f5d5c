"""commit: each planned output becomes one snapshot, once, whoever carries the plan out and however often."""

from __future__ import annotations

from runner.log import logger
from runner.model.errors import ConflictError
from runner.model.manifest import OutputRecord, Plan
from runner.model.spec import JobSpec
from runner.ports import Claimed, CommitTag, Landed, LoadedDataset, LostRace, Ports


def commit(spec: JobSpec, claimed: Claimed, plan: Plan, ports: Ports) -> tuple[OutputRecord, ...]:
    """Returns the outputs with their snapshots.

    Raises `ConflictError` where another plan of this run has landed, or a newer run has written the same table.
    Several outputs are not one transaction: what landed before an error stays, and is found by the next attempt.
    """
    tag = CommitTag(
        run_id=spec.run_id,
        effect=spec.effect,
        plan_id=plan.plan_id,
        attempt=plan.attempt,
        logical_time=spec.logical_time,
        submitted_at=claimed.submitted_at,
    )
    return tuple(_commit_one(output, tag, ports) for output in plan.outputs)


def _commit_one(output: OutputRecord, tag: CommitTag, ports: Ports) -> OutputRecord:
    while True:
        dataset = ports.datasets(output.dataset).load(output.dataset)
        snapshot = _adopt(output, tag, dataset)
        if snapshot is None:
            _refuse_if_older(output, tag, dataset.head(output.branch))
            try:
                snapshot = dataset.replace(output, tag)
            except LostRace:
                # Somebody committed since the look: look again. Each turn of the loop is another writer's success.
                continue
            logger.info("%s: snapshot %s committed", output.dataset, snapshot)
        return output.model_copy(update={"snapshot": snapshot})


def _adopt(output: OutputRecord, tag: CommitTag, dataset: LoadedDataset) -> str | None:
    """Look first: our own plan's snapshot is what an earlier attempt (or a lost answer) left, and is ours."""
    for landed in dataset.landed(tag.run_id):
        if landed.tag is not None and landed.tag.plan_id == tag.plan_id:
            logger.info("%s: snapshot %s was there already", output.dataset, landed.snapshot)
            return landed.snapshot
        raise ConflictError(
            f"{output.dataset}: expected snapshots of plan {tag.plan_id} only, got {landed.snapshot} of another plan "
            f"of run {tag.run_id}",
            subject=output.dataset,
        )
    return None


def _refuse_if_older(output: OutputRecord, tag: CommitTag, head: Landed | None) -> None:
    """Of two runs that write the same table the later logical_time wins, then the later submission."""
    if head is None or head.tag is None or output.quarantine:
        return
    theirs, ours = (head.tag.logical_time, head.tag.submitted_at), (tag.logical_time, tag.submitted_at)
    if theirs > ours:
        raise ConflictError(
            f"{output.dataset}: expected no newer run's data, got snapshot {head.snapshot} of run {head.tag.run_id} "
            f"for {theirs[0].isoformat()}, submitted {theirs[1].isoformat()}",
            subject=output.dataset,
            hint="this run is older than what is published; nothing was overwritten",
        )
