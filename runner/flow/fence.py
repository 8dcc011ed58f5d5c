"""fence: where a plan is given up for good, nothing that was built from it may land any more."""

from __future__ import annotations

from runner.flow.commit import Refused, in_order, tag_of
from runner.log import logger
from runner.model.errors import Category
from runner.model.manifest import OutputRecord, Plan
from runner.model.spec import JobSpec
from runner.ports import Claimed, LostRace, Ports


def fence(spec: JobSpec, claimed: Claimed, plan: Plan, refused: Refused, ports: Ports) -> bool:
    """Before a run with a plan is decided failed: a paused worker that carries the plan too loses its race, and stops.

    False where the output that was refused has landed after all, by such a worker: the plan is not to be given up.
    A conflict needs no fence: what is in the way is a snapshot, and stays. A table that is not there cannot take one.
    """
    if refused.failure.category is Category.CONFLICT:
        return True
    ordered = in_order(plan)
    for output in ordered[ordered.index(refused.output) :]:  # those before have landed
        if not _fence_one(output, spec, claimed, plan, ports) and output == refused.output:
            return False
    return True


def _fence_one(output: OutputRecord, spec: JobSpec, claimed: Claimed, plan: Plan, ports: Ports) -> bool:
    """False where the output has landed."""
    while True:
        dataset = ports.datasets(output.dataset).load(output.dataset)
        if dataset.landed(spec.run_id):
            return False
        if not dataset.exists:
            return True
        try:
            dataset.fence(output.branch, tag_of(output, spec, claimed, plan))
        except LostRace:
            continue  # what came first may have been the plan itself: look again
        logger.info("%s: fenced, no part of plan %s can land any more", output.dataset, plan.plan_id)
        return True
