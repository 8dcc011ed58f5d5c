"""plan: the files go up, and what will be committed is written down once. From here on nothing is executed again."""

from __future__ import annotations

from uuid import UUID, uuid4

from runner.flow.audit import Audited
from runner.flow.room import Room
from runner.log import logger
from runner.model.manifest import FileRecord, Manifest, OutputRecord, Plan
from runner.model.messages import EngineOutput
from runner.model.names import data_prefix, rerun_branch
from runner.model.spec import JobSpec
from runner.ports import Claimed, Ports


def plan(spec: JobSpec, claimed: Claimed, audited: Audited, ports: Ports, room: Room) -> Plan:
    """Upload the outputs and store the plan; the plan in force comes back, which may be an earlier attempt's."""
    repeated = ports.ledger.manifest(spec.rerun.of) if spec.rerun else None
    plan_id = uuid4()
    made = Plan(
        plan_id=plan_id,
        run_id=spec.run_id,
        attempt=claimed.attempt,
        outputs=tuple(_record(spec, claimed, plan_id, output, repeated, ports, room) for output in audited.outputs),
        report=audited.report,
        failure=audited.failure,
    )
    return ports.ledger.plan(spec.run_id, claimed.attempt, made)


def _record(
    spec: JobSpec,
    claimed: Claimed,
    plan_id: UUID,
    output: EngineOutput,
    repeated: Manifest | None,
    ports: Ports,
    room: Room,
) -> OutputRecord:
    # A ledger that comes back from a backup gives attempt numbers out again: only the plan's id is never drawn twice.
    prefix = f"{data_prefix(output.dataset, spec.run_id, claimed.attempt, claimed.submitted_at)}{plan_id}/"
    files = []
    for file in output.files:
        path = room.out / file.path
        key = prefix + path.name
        ports.objects.put_file(key, path)
        files.append(
            FileRecord(
                uri=ports.objects.uri(key),
                bytes=path.stat().st_size,
                rows=file.rows,
                sha256=file.sha256,
                source=file.source,
            )
        )
    branch = rerun_branch(spec.run_id) if spec.publishes_to_branch else None
    head = ports.datasets(output.dataset).load(output.dataset).head(branch)
    logger.info("%s: %s staged", output.dataset, _size(output, files))
    before = next((each for each in repeated.outputs if each.dataset == output.dataset), None) if repeated else None
    return OutputRecord(
        dataset=output.dataset,
        from_=next((each.from_ for each in spec.outputs if each.dataset == output.dataset), None),
        mode="replace",
        branch=branch,
        base=head.snapshot if head else None,
        files=tuple(files),
        rows=output.rows,
        columns=output.columns,
        fingerprint=output.fingerprint,
        claimed_inputs=_datasets(spec, output),
        quarantine=output.quarantine,
        comparison=before.fingerprint.compare(output.fingerprint) if before else None,
    )


def _datasets(spec: JobSpec, output: EngineOutput) -> tuple[str, ...] | None:
    """The engine knows inputs by their aliases; the record knows them by their datasets."""
    if output.claimed_inputs is None:
        return None
    by_alias = {each.alias.lower(): each.dataset for each in spec.inputs}
    return tuple(by_alias.get(name.lower(), name) for name in output.claimed_inputs)


def _size(output: EngineOutput, files: list[FileRecord]) -> str:
    rows = "" if output.rows is None else f"{output.rows:,} rows, "
    return f"{rows}{len(files)} file{'s' if len(files) != 1 else ''}, {sum(file.bytes for file in files):,} bytes"
