"""decide: one compare-and-set in the ledger ends the run, with its whole manifest."""

from __future__ import annotations

from typing import Literal

from runner.flow.room import Room
from runner.log import logger
from runner.model.errors import Failure
from runner.model.manifest import AttemptRecord, Fingerprint, Manifest, OutputRecord, Pin, Plan, Report, State
from runner.model.names import is_table, log_key, quarantine_of, rerun_branch
from runner.model.ranges import WHOLE_TABLE
from runner.model.spec import JobSpec
from runner.ports import Claimed, Landed, Ports


def decide(
    spec: JobSpec,
    claimed: Claimed,
    ports: Ports,
    room: Room,
    *,
    pins: tuple[Pin, ...],
    plan: Plan | None,
    outputs: tuple[OutputRecord, ...],
    failure: Failure | None,
    report: Report,
    cancelled: bool = False,
) -> Manifest:
    """Raises `LostLease` where the run has become another attempt's: then that one decides."""
    decided_at = ports.ledger.now()
    state: Literal[State.SUCCEEDED, State.FAILED, State.CANCELLED]
    state = State.CANCELLED if cancelled else State.SUCCEEDED if failure is None else State.FAILED
    logger.info("run %s: %s", state.value, failure.message if failure else _rows(outputs))
    log = upload_log(spec, claimed.attempt, ports, room)
    ended = {"outcome": state.value, "failure": failure, "ended_at": decided_at, "log": log}
    attempts = tuple(
        each.model_copy(update=ended) if each.attempt == claimed.attempt else _with_log(spec, each, ports)
        for each in ports.ledger.attempts(spec.run_id)
    )
    manifest = Manifest(
        run_id=spec.run_id,
        effect=spec.effect,
        state=state,
        failure=failure,
        spec=spec,
        spec_sha256=spec.digest(),
        plan_id=plan.plan_id if plan else None,
        attempt=claimed.attempt,
        submitted_at=claimed.submitted_at,
        decided_at=decided_at,
        attempts=attempts,
        pins=pins,
        outputs=outputs,
        report=report,
    )
    ports.ledger.decide(manifest, attempt=claimed.attempt)
    return manifest


def decide_cancelled(
    spec: JobSpec, claimed: Claimed, ports: Ports, room: Room, *, pins: tuple[Pin, ...], report: Report
) -> Manifest:
    """Somebody asked for it before there was a plan. What a forgotten plan may have landed is listed all the same."""
    landed = look(spec, None, ports)
    return decide(
        spec, claimed, ports, room, pins=pins, plan=None, outputs=landed, failure=None, report=report, cancelled=True
    )


def look(spec: JobSpec, plan: Plan | None, ports: Ports) -> tuple[OutputRecord, ...]:
    """What of this run has landed, plan or none: asked before a run is decided failed, so that the record is true."""
    planned = {output.dataset: output for output in plan.outputs} if plan else {}
    declared = [output.dataset for output in spec.outputs]
    found = []
    for name in declared + [quarantine_of(each) for each in declared if is_table(each)]:
        for landed in ports.datasets(name).load(name).landed(spec.run_id):
            if name in planned and landed.tag and plan and landed.tag.plan_id == plan.plan_id:
                found.append(planned[name].model_copy(update={"snapshot": landed.snapshot}))
            else:
                logger.warning("%s: snapshot %s of this run is of no plan that is known", name, landed.snapshot)
                found.append(_of_no_known_plan(spec, name, landed, quarantine=name not in declared))
    return tuple(found)


def _of_no_known_plan(spec: JobSpec, dataset: str, landed: Landed, *, quarantine: bool) -> OutputRecord:
    """What a plan made that the ledger, back from a backup, has forgotten: that it is there is all that is known."""
    declared = next((each for each in spec.outputs if each.dataset == dataset), None)
    return OutputRecord(
        dataset=dataset,
        mode=declared.mode if declared else "replace",
        range=landed.tag.range if landed.tag else WHOLE_TABLE,
        branch=rerun_branch(spec.run_id) if spec.publishes_to_branch else None,
        base=None,
        files=(),
        rows=None,
        columns=None,
        fingerprint=Fingerprint(rows=None, hash="unknown", engine="unknown"),
        claimed_inputs=None,
        quarantine=quarantine,
        snapshot=landed.snapshot,
    )


def upload_log(spec: JobSpec, attempt: int, ports: Ports, room: Room) -> str | None:
    """Put the attempt's log beside the manifest, as far as it goes. Returns where it is now, None if there is none."""
    if not room.log.exists():
        return None
    key = log_key(spec.run_id, attempt)
    ports.objects.put(key, room.log.read_bytes())
    return ports.objects.uri(key)


def _with_log(spec: JobSpec, attempt: AttemptRecord, ports: Ports) -> AttemptRecord:
    key = log_key(spec.run_id, attempt.attempt)
    return attempt.model_copy(update={"log": ports.objects.uri(key) if ports.objects.exists(key) else None})


def _rows(outputs: tuple[OutputRecord, ...]) -> str:
    return ", ".join(f"{each.dataset} {each.rows:,} rows" for each in outputs if each.rows is not None) or "done"
