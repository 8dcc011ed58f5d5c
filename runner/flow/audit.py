"""audit: is what the engine left fit to be published? Nothing reaches a table that did not pass here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from runner.flow.resolve import Resolved
from runner.model.errors import Category, Failure
from runner.model.manifest import NO_SNAPSHOT, InputRecord, Report, Software, Step
from runner.model.messages import EngineOutput, EngineResult
from runner.model.names import quarantine_of
from runner.model.spec import JobSpec
from runner.ports import Execution


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What may be published, and why not the rest."""

    outputs: tuple[EngineOutput, ...]
    failure: Failure | None
    report: Report
    artifacts: tuple[str, ...] = ()
    """Files in the room, kept whatever the audit says: most of all of a run that failed."""


def audit(spec: JobSpec, resolved: Resolved, execution: Execution, software: Software) -> Audited:
    """A failed audit publishes no output; the quarantine is published all the same, so that no bad row is lost.

    With `publish: passing` a failed step keeps back only what the engine did not hand over because of it.
    """
    result = execution.result
    unfit = _undeclared_output(spec, result) or result.failure
    failed_step = _failed_step(result.steps)
    failure = unfit or failed_step or _missing_output(spec, result) or _sums(result)
    passing = spec.publish == "passing" and unfit is None and failed_step is not None
    return Audited(
        outputs=tuple(
            each
            for each in result.outputs
            if failure is None or passing or (each.quarantine and _is_declared(spec, each))
        ),
        failure=failure,
        artifacts=result.artifacts,
        report=Report(
            logic=resolved.logic,
            software=software.model_copy(
                update={"packages": {**software.packages, **result.packages}, "walls": execution.walls}
            ),
            inputs=tuple(_witnesses(spec, resolved, execution)),
            steps=result.steps,
            counts=result.counts,
        ),
    )


def _failed_step(steps: Iterable[Step]) -> Failure | None:
    steps = list(steps)
    broken = [step for step in steps if step.status == "error"] or [step for step in steps if step.status == "fail"]
    if not broken:
        return None
    first = broken[0]
    others = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
    if first.status == "error":
        message = f"{first.kind} {first.name} failed: {first.message or 'it gave no reason'}{others}"
        return Failure(category=Category.LOGIC, message=message, subject=first.name)
    rows = "rows" if first.rows is None else f"{first.rows:,} rows"
    message = f"{first.kind} {first.name}: expected no row that breaks it, got {rows}{others}"
    return Failure(category=Category.DATA, message=message, subject=first.name)


def _is_declared(spec: JobSpec, output: EngineOutput) -> bool:
    names = [each.dataset for each in spec.outputs]
    return output.dataset in ([quarantine_of(name) for name in names] if output.quarantine else names)


def _undeclared_output(spec: JobSpec, result: EngineResult) -> Failure | None:
    """The engine runs logic that nobody here wrote: it publishes what the spec declares, and nothing else."""
    for output in result.outputs:
        if not _is_declared(spec, output):
            return Failure(
                category=Category.LOGIC,
                message=f"output {output.dataset}: expected only outputs that the spec declares",
                subject=output.dataset,
            )
    return None


def _missing_output(spec: JobSpec, result: EngineResult) -> Failure | None:
    made = {output.dataset for output in result.outputs}
    for output in spec.outputs:
        if output.dataset not in made:
            return Failure(
                category=Category.LOGIC,
                message=f"output {output.dataset}: expected it made, got {', '.join(sorted(made)) or 'none'}",
                subject=output.dataset,
            )
    return None


def _sums(result: EngineResult) -> Failure | None:
    """Rows in are rows out: the engine counts them apart, so a lost row shows here."""
    counts = result.counts
    if "rows_read" not in counts:
        return None
    kept = counts.get("rows_loaded", 0) + counts.get("rows_quarantined", 0)
    if kept == counts["rows_read"]:
        return None
    return Failure(
        category=Category.DATA,
        message=f"rows: expected {counts['rows_read']:,} loaded or in quarantine, got {kept:,}",
        subject="rows_read",
    )


def _witnesses(spec: JobSpec, resolved: Resolved, execution: Execution) -> Iterator[InputRecord]:
    """Each input as declared, claimed and observed; then what was claimed or fetched and never declared."""
    claims = [output.claimed_inputs for output in execution.result.outputs if not output.quarantine]
    unknown = any(claimed is None for claimed in claims) or not execution.result.claims_known
    claimed = {name.lower() for each in claims for name in each or ()}
    for pin in (each for each in resolved.pins if each.snapshot != NO_SNAPSHOT):
        read = execution.reads.get(pin.as_) if execution.reads is not None else None
        yield InputRecord(
            dataset=pin.dataset,
            as_=pin.as_,
            snapshot=pin.snapshot,
            declared=True,
            # That an output begins from its own state is the platform's doing: no logic has to claim it.
            claimed=True if pin.state or pin.as_.lower() in claimed else None if unknown else False,
            observed=None if read is None else "rows" if read.files else "metadata" if read.used else "none",
            files=read.files if read else 0,
            bytes=read.bytes if read else 0,
        )
    declared = {each.alias.lower() for each in spec.inputs}
    fetched = {file.source.url: file for output in execution.result.outputs for file in output.files if file.source}
    for name in sorted({name for each in claims for name in each or () if name.lower() not in declared}):
        file = fetched.get(name)
        yield InputRecord(
            dataset=name,
            snapshot=file.sha256 if file else None,
            declared=file is not None,
            claimed=True,
            observed="rows" if file else None,
            files=1 if file else 0,
        )
