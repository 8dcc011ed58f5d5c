"""commit: each planned output becomes one snapshot, once, whoever carries the plan out and however often."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from runner.log import logger
from runner.model.errors import Category, ConflictError, Failure, RunnerError
from runner.model.manifest import NO_SNAPSHOT, OutputRecord, Plan
from runner.model.ranges import WHOLE_TABLE, overlap
from runner.model.spec import JobSpec
from runner.ports import Claimed, CommitTag, LoadedDataset, LostRace, Ports


class StateMoved(Exception):
    """A table is not where this plan began from, and nothing of the plan has landed: it is void."""

    def __init__(self, failure: Failure, plan_id: UUID) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.plan_id = plan_id


class Refused(Exception):
    """An output of the plan was not committed, and why; those before it, in the order of commits, have landed."""

    def __init__(self, output: OutputRecord, failure: Failure) -> None:
        super().__init__(failure.message)
        self.output = output
        self.failure = failure


def commit(
    spec: JobSpec, claimed: Claimed, plan: Plan, ports: Ports, loaded: Mapping[str, LoadedDataset]
) -> tuple[OutputRecord, ...]:
    """Returns the outputs with their snapshots. `loaded` are those that were looked at by now: older does no harm, as
    a commit to what is not the newest any more is lost.

    Raises `Refused`, of category `conflict` where another plan of this run has landed, or a newer run has written the
    same range, and `StateMoved` where the plan is void. Several outputs are not one transaction: what landed before an
    error stays, and is found by the next attempt. Those that began from a state go first: only they can make a plan
    void.
    """
    landed = dict[str, OutputRecord]()
    for output in in_order(plan):
        try:
            landed[output.dataset] = _commit_one(output, spec, claimed, plan, ports, loaded.get(output.dataset))
        except RunnerError as error:
            raise Refused(output, error.failure) from error
    return tuple(landed[output.dataset] for output in plan.outputs)


def in_order(plan: Plan) -> list[OutputRecord]:
    """As every worker commits them: so none gets past an output that is fenced."""
    return sorted(plan.outputs, key=lambda output: output.state is None)


def tag_of(output: OutputRecord, spec: JobSpec, claimed: Claimed, plan: Plan) -> CommitTag:
    """What an output's snapshot says of who made it."""
    return CommitTag(
        run_id=spec.run_id,
        effect=spec.effect,
        plan_id=plan.plan_id,
        attempt=plan.attempt,
        logical_time=spec.logical_time,
        submitted_at=claimed.submitted_at,
        range=output.range,
    )


def _commit_one(
    output: OutputRecord, spec: JobSpec, claimed: Claimed, plan: Plan, ports: Ports, loaded: LoadedDataset | None
) -> OutputRecord:
    tag = tag_of(output, spec, claimed, plan)
    while True:
        dataset = loaded or ports.datasets(output.dataset).load(output.dataset)
        snapshot = _adopt(output, tag, dataset)
        if snapshot is None:
            _refuse_if_older(output, tag, dataset)
            _refuse_if_taken_up(output, tag, dataset)
            _refuse_if_fenced(output, tag, dataset)
            if not _is_where_it_began(output, tag, dataset):
                raise _moved(output, spec, plan, dataset, ports)
            try:
                snapshot = dataset.commit(output, tag)
            except LostRace:
                # Somebody committed since the look: look again. Each turn of the loop is another writer's success.
                loaded = None
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


def _refuse_if_older(output: OutputRecord, tag: CommitTag, dataset: LoadedDataset) -> None:
    """Of two runs that write the same range the later logical_time wins, then the later submission."""
    if output.quarantine or output.branch is not None:
        return
    for landed in dataset.history(None):
        if landed.tag is None or landed.fence or not overlap(landed.tag.range, tag.range):
            continue
        theirs, ours = _precedence(landed.tag), _precedence(tag)
        if theirs > ours:
            raise ConflictError(
                f"{output.dataset}: expected no newer run's data, got snapshot {landed.snapshot} of run "
                f"{landed.tag.run_id} for {theirs[0].isoformat()}, submitted {theirs[1].isoformat()}",
                subject=output.dataset,
                hint="this run is older than what is published; nothing was overwritten",
            )
        if landed.tag.range in (WHOLE_TABLE, tag.range):
            return  # what is before it and has rows of ours is older than it, or it would not have landed


def _precedence(tag: CommitTag) -> tuple[datetime, datetime, UUID]:
    """Of two that are submitted in the same microsecond one has to win, whichever commits first."""
    return tag.logical_time, tag.submitted_at, tag.run_id


def _refuse_if_taken_up(output: OutputRecord, tag: CommitTag, dataset: LoadedDataset) -> None:
    """A rerun of an append takes its effect's files out; rows that have become part of others it would double."""
    if output.mode != "append" or output.branch is not None or tag.effect == tag.run_id:
        return
    taken_up_by = None
    for landed in dataset.history(None):
        if landed.tag is None or landed.fence:
            continue
        if landed.tag.effect == tag.effect:
            break
        if landed.tag.range == WHOLE_TABLE:
            taken_up_by = landed.tag.run_id
    else:
        return
    if taken_up_by is not None:
        raise ConflictError(
            f"{output.dataset}: expected the rows of run {tag.effect} in files of their own, got the whole table "
            f"written anew by run {taken_up_by} since",
            subject=output.dataset,
            hint="rerun without --publish to compare; the rows that it appended are part of that run's output now",
        )


def _refuse_if_fenced(output: OutputRecord, tag: CommitTag, dataset: LoadedDataset) -> None:
    """An attempt of this run has given the plan up; one that was planned after that may land."""
    branch = output.branch if dataset.head(output.branch) else None
    for landed in dataset.history(branch):
        if landed.snapshot == output.base:
            return
        if landed.fence and landed.tag is not None and landed.tag.run_id == tag.run_id:
            raise ConflictError(
                f"{output.dataset}: expected nobody to have given plan {tag.plan_id} up, got fence {landed.snapshot}",
                subject=output.dataset,
            )


def _is_where_it_began(output: OutputRecord, tag: CommitTag, dataset: LoadedDataset) -> bool:
    """Whether the table still has the state that this output was computed from.

    What its own effect published since is no stranger: a rerun takes the place of it.
    """
    if output.state is None or output.branch is not None:
        return True
    head = next((each for each in dataset.history(None) if not each.fence), None)  # a fence changes nothing
    if head is None or head.snapshot == output.state:
        return (head.snapshot if head else NO_SNAPSHOT) == output.state
    return head.tag is not None and head.tag.effect == tag.effect


def _moved(
    output: OutputRecord, spec: JobSpec, plan: Plan, dataset: LoadedDataset, ports: Ports
) -> StateMoved | ConflictError:
    head = dataset.head(None)
    message = (
        f"{output.dataset}: expected it at snapshot {output.state}, which this run began from, "
        f"got {head.snapshot if head else NO_SNAPSHOT}"
    )
    if any(ports.datasets(each.dataset).load(each.dataset).landed(plan.run_id) for each in plan.outputs):
        return ConflictError(f"{message}, after other outputs of it had landed", subject=output.dataset)
    if any(each.dataset == output.dataset and each.snapshot for each in spec.outputs):
        # The spec names the state, as a rerun's does: begun anew it would begin from the same.
        hint = "rerun with --latest-inputs to begin from what is published now, or without --publish to compare"
        return ConflictError(message, subject=output.dataset, hint=hint)
    hint = "somebody else wrote the table meanwhile; the run begins anew from what is there now"
    return StateMoved(
        Failure(category=Category.TRANSIENT, message=message, subject=output.dataset, hint=hint), plan.plan_id
    )
