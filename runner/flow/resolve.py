"""resolve: the exact commit as files, the exact snapshots as pins, and the engine's job made of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runner.flow.room import Room
from runner.log import logger
from runner.model.errors import LogicError
from runner.model.manifest import LogicRecord, Pin
from runner.model.messages import Job, JobInput, JobOutput
from runner.model.names import is_table
from runner.model.spec import JobSpec, Output
from runner.ports import Claimed, Ports, ServedFile


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """All that the engine gets, and all that it may read."""

    logic: LogicRecord
    pins: tuple[Pin, ...]
    served: Mapping[str, Sequence[ServedFile]]
    job: Job


def check_out(spec: JobSpec, ports: Ports, room: Room) -> LogicRecord:
    """The named commit's files in the workspace. Raises `LogicError` where it has no folder `logic.path`."""
    asked = spec.logic
    checkout = ports.logic.checkout(asked.repo, asked.commit, room.workspace)
    if not (room.workspace / asked.path).is_dir():
        raise LogicError(
            f"logic.path: expected a folder {asked.path!r} in {asked.repo} at {asked.commit[:12]}, got none",
            subject="logic.path",
        )
    logger.info("logic is %s at %s (tree %s, from the %s)", asked.repo, checkout.commit, checkout.tree, checkout.origin)
    return LogicRecord(
        repo=asked.repo,
        commit=checkout.commit,
        path=asked.path,
        tree=checkout.tree,
        origin=checkout.origin,
        committed_at=checkout.committed_at,
    )


def pin(spec: JobSpec, claimed: Claimed, ports: Ports) -> tuple[Pin, ...]:
    """Pins are in the ledger before anything runs, and every attempt of the run uses the same ones."""
    pins = claimed.pins
    if pins is None:
        found = [ports.datasets(each.dataset).pin(each.dataset, each.alias, each.snapshot) for each in spec.inputs]
        pins = ports.ledger.pin(spec.run_id, claimed.attempt, found)
    for each in pins:
        logger.info("input %s is %s at snapshot %s", each.as_, each.dataset, each.snapshot)
    return pins


def resolve(spec: JobSpec, logic: LogicRecord, pins: tuple[Pin, ...], ports: Ports, room: Room) -> Resolved:
    """The engine's job, made of both."""
    served = {pin.as_: ports.datasets(pin.dataset).files(pin) for pin in pins}
    job = Job(
        work=spec.work,
        inputs=tuple(
            JobInput(pin=pin, files=() if is_table(pin.dataset) else tuple(file.uri for file in served[pin.as_]))
            for pin in pins
        ),
        outputs=tuple(_output(each, ports) for each in spec.outputs),
        workspace=str(room.workspace / spec.logic.path),
        scratch=str(room.scratch),
        resources=spec.resources,
    )
    return Resolved(logic=logic, pins=pins, served=served, job=job)


def _output(output: Output, ports: Ports) -> JobOutput:
    if not is_table(output.dataset):
        return JobOutput(output=output)
    table = ports.datasets(output.dataset).load(output.dataset)
    return JobOutput(output=output, field_ids=dict(table.field_ids), last_field_id=table.last_field_id)
