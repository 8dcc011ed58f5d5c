"""resolve: the exact commit as files, the exact snapshots as pins, and the engine's job made of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runner.flow.room import Room
from runner.log import logger
from runner.model.errors import DataError, LogicError
from runner.model.manifest import LogicRecord, PackageRecord, Pin
from runner.model.messages import Job, JobInput, JobOutput, Stamp
from runner.model.names import is_table
from runner.model.ranges import partition_value, require_partitions
from runner.model.spec import DbtWork, JobSpec, Output
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
    packages: tuple[PackageRecord, ...] = ()
    if isinstance(spec.work, DbtWork):
        project = room.workspace / asked.path
        packages = ports.packages.install(project, clone=room.workspace, scratch=room.folder / "packages")
    return LogicRecord(
        repo=asked.repo,
        commit=checkout.commit,
        path=asked.path,
        tree=checkout.tree,
        origin=checkout.origin,
        committed_at=checkout.committed_at,
        dirty=asked.dirty,
        packages=packages,
    )


def pin(spec: JobSpec, claimed: Claimed, ports: Ports) -> tuple[Pin, ...]:
    """Pins are in the ledger before anything runs, and every attempt of the run uses the same ones."""
    pins = claimed.pins
    if pins is None:
        found = [ports.datasets(each.dataset).pin(each.dataset, each.alias, each.snapshot) for each in spec.inputs]
        found += [
            ports.datasets(each.dataset).state(each.dataset, each.state_alias, each.snapshot)
            for each in spec.outputs
            if each.begins_from_state
        ]
        # A spec that leaves nothing to pin leaves nothing to every attempt.
        pins = ports.ledger.pin(spec.run_id, claimed.attempt, found) if found else ()
    for each in pins:
        logger.info(
            "%s %s is %s at snapshot %s", "state" if each.state else "input", each.as_, each.dataset, each.snapshot
        )
    return pins


def resolve(spec: JobSpec, logic: LogicRecord, pins: tuple[Pin, ...], ports: Ports, room: Room) -> Resolved:
    """The engine's job, made of both."""
    served = {pin.as_: ports.datasets(pin.dataset).files(pin) for pin in pins}
    states = {pin.dataset: pin for pin in pins if pin.state}
    for state in states.values():
        _refuse_too_large(state, served[state.as_], limit_mib=spec.resources.state_mib)
    job = Job(
        work=spec.work,
        inputs=tuple(
            JobInput(pin=pin, files=() if is_table(pin.dataset) else tuple(file.uri for file in served[pin.as_]))
            for pin in pins
            if not pin.state
        ),
        outputs=tuple(_output(each, states.get(each.dataset), spec, ports) for each in spec.outputs),
        repo=logic.repo,
        packages=logic.packages,
        workspace=str(room.workspace / spec.logic.path),
        scratch=str(room.scratch),
        resources=spec.resources,
        publish=spec.publish,
        stamp=Stamp(logic_commit=spec.logic.commit, run_id=spec.run_id, processed_at=ports.ledger.now()),
    )
    return Resolved(logic=logic, pins=pins, served=served, job=job)


def _refuse_too_large(state: Pin, files: Sequence[ServedFile], *, limit_mib: int) -> None:
    size = sum(file.bytes for file in files if file.holds_rows)
    if size > limit_mib * 1024 * 1024:
        raise DataError(
            f"{state.dataset}: expected a state of at most {limit_mib:,} MiB, got {size / 1024 / 1024:,.1f} MiB",
            subject=state.dataset,
            hint="raise resources.state_mib, or publish with mode append or replace_where, which read no state",
        )


def _output(output: Output, state: Pin | None, spec: JobSpec, ports: Ports) -> JobOutput:
    if not is_table(output.dataset):
        return JobOutput(output=output)
    table = ports.datasets(output.dataset).load(output.dataset)
    if table.exists:
        require_partitions(output.dataset, there=table.partition_by, asked=output.partition_by)
    return JobOutput(
        output=output,
        partition=partition_value(output, spec.logical_time),
        state=state,
        column_types=dict(table.column_types),
        field_ids=dict(table.field_ids),
        last_field_id=table.last_field_id,
    )
