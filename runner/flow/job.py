"""One delivery of one run, from claim to record: the house's main corridor, a door a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress

from runner.flow.audit import audit
from runner.flow.claim import Unheard, claim, recall
from runner.flow.commit import Refused, StateMoved, commit
from runner.flow.decide import decide, decide_cancelled
from runner.flow.execute import execute, secrets_of
from runner.flow.fail import fail, settle, unexpected, unheard
from runner.flow.lease import lease
from runner.flow.plan import plan
from runner.flow.production import prove_production
from runner.flow.record import record
from runner.flow.resolve import check_out, pin, resolve
from runner.flow.room import Room, room
from runner.flow.waiting import HandedBack, Waiting
from runner.log import bound_to_run, hide
from runner.model.errors import Failure, RunnerError
from runner.model.manifest import Manifest, Report
from runner.model.redaction import Redaction
from runner.model.spec import JobSpec
from runner.ports import Busy, CancelWanted, Claimed, Decided, LoadedDataset, LostLease, Ports

Keep = Callable[[JobSpec, Claimed, Room], AbstractContextManager[None]]
"""Keeps the lease and hides the message while the job is at work."""


def run_job(spec: JobSpec, ports: Ports, *, keep: Keep) -> Manifest | Waiting:
    """Carry the run as far as it goes. Raises `LostLease`, or `InfrastructureError` where nothing can be recorded."""
    with room(spec, ports) as here:
        claimed = claim(spec, ports)
        if isinstance(claimed, Busy):
            return Waiting(seconds=claimed.seconds, failure=None)
        if isinstance(claimed, Decided):
            return claimed.manifest if claimed.recorded else record(claimed.manifest, ports)
        fields = {"run_id": str(spec.run_id), "attempt": claimed.attempt, "pipeline": spec.pipeline, "task": spec.task}
        try:
            with bound_to_run(here.log, **fields), keep(spec, claimed, here):
                ended = _attempt(spec, claimed, ports, here)
        except HandedBack:
            with suppress(LostLease):  # decided already, or another's
                ports.ledger.release(spec.run_id, claimed.attempt, outcome="handed back", failure=None, wait_s=0)
            raise
        return ended if isinstance(ended, Waiting) else record(ended, ports)


def _attempt(spec: JobSpec, claimed: Claimed, ports: Ports, here: Room) -> Manifest | Waiting:
    planned, pins, report, secrets = claimed.plan, claimed.pins or (), Report(), Redaction({})
    loaded: Mapping[str, LoadedDataset] = {}

    def failed(why: Failure | Refused) -> Manifest | Waiting:
        told = secrets.model(why.failure if isinstance(why, Refused) else why)
        why = Refused(why.output, told) if isinstance(why, Refused) else told
        return fail(spec, claimed, ports, here, pins=pins, plan=planned, report=report, why=why)

    try:
        if recalled := recall(spec, claimed, ports):
            return recalled
        if claimed.cancelled:
            return decide_cancelled(spec, claimed, ports, here, pins=pins, report=report)
        if planned is None and claimed.settling:
            return failed(settle(spec, ports))
        if planned is None:
            if waiting := lease(spec, claimed, ports):
                return waiting
            logic = prove_production(spec, check_out(spec, ports, here), ports)
            report = Report(logic=logic, software=ports.software)
            pins = pin(spec, claimed, ports)
            resolved = resolve(spec, logic, pins, ports, here)
            secrets = secrets_of(spec, ports)
            hide(secrets)
            audited = audit(spec, resolved, execute(spec, resolved, secrets, ports, here), ports.software)
            planned, loaded = plan(spec, claimed, pins, audited, ports, here)
        outputs, failure, report = commit(spec, claimed, planned, ports, loaded), planned.failure, planned.report
        return decide(
            spec, claimed, ports, here, pins=pins, plan=planned, outputs=outputs, failure=failure, report=report
        )
    except LostLease:
        raise
    except Unheard as away:
        return unheard(spec, claimed, ports, away.failure)
    except CancelWanted:
        return decide_cancelled(spec, claimed, ports, here, pins=pins, report=report)
    except StateMoved as moved:
        ports.ledger.void(spec.run_id, claimed.attempt, moved.plan_id)
        planned, pins = None, ()
        return failed(moved.failure)
    except Refused as refused:
        return failed(refused)
    except RunnerError as error:
        return failed(error.failure)
    except Exception as error:  # noqa: BLE001 - a fault of ours must not take the worker down, nor the run out of the record
        return failed(unexpected(error))
