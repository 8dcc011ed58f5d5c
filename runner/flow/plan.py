"""plan: the files go up, and what will be committed is written down once. From here on nothing is executed again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from uuid import UUID, uuid4

from runner.flow.audit import Audited
from runner.flow.room import Room
from runner.log import logger
from runner.model.manifest import NO_SNAPSHOT, FileRecord, Manifest, OutputRecord, Pin, Plan
from runner.model.messages import EngineOutput
from runner.model.names import artifacts_prefix, data_prefix, rerun_branch
from runner.model.ranges import range_of
from runner.model.spec import JobSpec, Output
from runner.ports import Claimed, LoadedDataset, Ports


def plan(
    spec: JobSpec, claimed: Claimed, pins: tuple[Pin, ...], audited: Audited, ports: Ports, room: Room
) -> tuple[Plan, Mapping[str, LoadedDataset]]:
    """Upload the outputs and store the plan; the plan in force comes back, which may be an earlier attempt's.

    With it what each output is to be committed to, as it was when the plan was made. Raises `CancelWanted` where
    somebody asked for that first.
    """
    repeated = ports.ledger.manifest(spec.rerun.of) if spec.rerun else None
    plan_id = uuid4()
    states = {pin.dataset: pin.snapshot for pin in pins if pin.state}
    loaded: dict[str, LoadedDataset] = {}
    made = Plan(
        plan_id=plan_id,
        run_id=spec.run_id,
        attempt=claimed.attempt,
        outputs=tuple(
            _beside(
                _record(spec, claimed, plan_id, output, states.get(output.dataset), ports, room, loaded),
                _of(repeated, output),
            )
            for output in audited.outputs
        ),
        report=audited.report.model_copy(update={"artifacts": _kept(spec, plan_id, audited, ports, room)}),
        failure=audited.failure,
    )
    return ports.ledger.plan(spec.run_id, claimed.attempt, made), loaded


def _kept(spec: JobSpec, plan_id: UUID, audited: Audited, ports: Ports, room: Room) -> tuple[FileRecord, ...]:
    kept = []
    for name in audited.artifacts:
        path, key = room.artifacts / name, artifacts_prefix(spec.run_id, plan_id) + name
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        ports.objects.put_file(key, path)
        kept.append(FileRecord(uri=ports.objects.uri(key), bytes=path.stat().st_size, sha256=digest))
    return tuple(kept)


def _record(
    spec: JobSpec,
    claimed: Claimed,
    plan_id: UUID,
    output: EngineOutput,
    state: str | None,
    ports: Ports,
    room: Room,
    loaded: dict[str, LoadedDataset],
) -> OutputRecord:
    prefix = data_prefix(
        output.dataset,
        effect=spec.effect,
        run_id=spec.run_id,
        attempt=claimed.attempt,
        plan_id=plan_id,
        written_at=claimed.submitted_at,
    )
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
    dataset = loaded[output.dataset] = ports.datasets(output.dataset).load(output.dataset)
    head = dataset.head(branch) or dataset.head(None)
    logger.info("%s: %s staged", output.dataset, _size(output, files))
    declared = next((each for each in spec.outputs if each.dataset == output.dataset), _QUARANTINE)
    return OutputRecord(
        dataset=output.dataset,
        from_=declared.from_,
        mode=declared.mode,
        partition_by=declared.partition_by,
        range=range_of(declared, effect=spec.effect, logical_time=spec.logical_time),
        key=declared.key,
        state=state,
        branch=branch,
        base=head.snapshot if head else None,
        files=tuple(files),
        rows=output.rows,
        columns=output.columns,
        fingerprint=output.fingerprint,
        claimed_inputs=_datasets(spec, output, state),
        quarantine=output.quarantine,
    )


_QUARANTINE = Output(dataset="failed/rows")
"""How a dataset is published that no spec declares: as a prefix of files."""


def _of(repeated: Manifest | None, output: EngineOutput) -> OutputRecord | None:
    found = (each for each in repeated.outputs if each.dataset == output.dataset) if repeated else iter(())
    return next(found, None)


def _beside(made: OutputRecord, before: OutputRecord | None) -> OutputRecord:
    """What came of a rerun, with how it compares with the run that it repeats."""
    if before is None:
        return made
    comparison = before.fingerprint.compare(made.fingerprint)
    different = before.fingerprint.different_columns(made.fingerprint) if comparison == "different" else ()
    # A stored fingerprint has forgotten their order; the table has not.
    places = {column.name: place for place, column in enumerate((*(before.columns or ()), *(made.columns or ())))}
    different = tuple(sorted(different, key=lambda name: places.get(name, len(places))))
    return made.model_copy(
        update={"comparison": comparison, "different_columns": different, "repeated_rows": before.rows}
    )


def _datasets(spec: JobSpec, output: EngineOutput, state: str | None) -> tuple[str, ...] | None:
    """The engine knows inputs by their aliases; the record knows them by their datasets."""
    if output.claimed_inputs is None:
        return None
    by_alias = {each.alias.lower(): each.dataset for each in spec.inputs}
    own = (output.dataset,) if state not in (None, NO_SNAPSHOT) else ()
    return tuple(by_alias.get(name.lower(), name) for name in output.claimed_inputs) + own


def _size(output: EngineOutput, files: list[FileRecord]) -> str:
    rows = "" if output.rows is None else f"{output.rows:,} rows, "
    return f"{rows}{len(files)} file{'s' if len(files) != 1 else ''}, {sum(file.bytes for file in files):,} bytes"
