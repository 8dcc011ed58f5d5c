"""How two runs differ: what they ran, on what, and what came of it, fact by fact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from runner.model.manifest import Manifest, OutputRecord


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A fact that is not the same in both; None where a run has no such thing."""

    fact: str
    left: str | None
    right: str | None


def differences(left: Manifest, right: Manifest) -> list[Difference]:
    """Empty where both ran the same logic on the same inputs with the same software and made the same."""
    pairs = [(_facts(left), _facts(right)), (_outputs(left), _outputs(right)), _values(left, right)]
    return [each for one, other in pairs for each in _unequal(one, other)]


def same_outputs(left: Manifest, right: Manifest) -> bool:
    """True where both made the same datasets with fingerprints that compare, and are equal."""
    ours, theirs = ({each.dataset: each for each in run.outputs} for run in (left, right))
    return ours.keys() == theirs.keys() and all(
        each.fingerprint.compare(theirs[name].fingerprint) == "identical" for name, each in ours.items()
    )


def _facts(run: Manifest) -> dict[str, str]:
    spec, report = run.spec, run.report
    facts = {
        "state": run.state.value,
        "stage": spec.stage.value,
        "task": f"{spec.pipeline}/{spec.task}",
        "logical time": spec.logical_time.isoformat(),
        "logic repo": spec.logic.repo,
        "logic commit": spec.logic.commit,
        "logic path": spec.logic.path,
        "logic dirty": "yes" if spec.logic.dirty else "no",
        "work": spec.work.model_dump_json(by_alias=True),
    }
    facts |= {f"input {pin.as_}": f"{pin.dataset}@{pin.snapshot}" for pin in run.pins}
    facts |= {f"count {name}": f"{count:,}" for name, count in report.counts.items()}
    if report.software:
        facts |= {"runner": report.software.runner, "python": report.software.python}
        facts |= {f"package {name}": version for name, version in report.software.packages.items()}
    if run.failure:
        facts["failure"] = f"{run.failure.category.value}: {run.failure.message}"
    return facts


def _outputs(run: Manifest) -> dict[str, str]:
    facts: dict[str, str] = {}
    for output in run.outputs:
        facts |= _output(output)
    return facts


def _output(output: OutputRecord) -> dict[str, str]:
    name = f"output {output.dataset}"
    facts = {f"{name} fingerprint": f"{output.fingerprint.hash[:16]} by {output.fingerprint.engine}"}
    if output.rows is not None:
        facts[f"{name} rows"] = f"{output.rows:,}"
    for column in output.columns or ():
        facts[f"{name} column {column.name}"] = column.type
    return facts


def _values(left: Manifest, right: Manifest) -> tuple[dict[str, str], dict[str, str]]:
    """What each column holds, by its fingerprint; only of columns that both have, as the same engine saw them."""
    ours, theirs = ({each.dataset: each.fingerprint for each in run.outputs} for run in (left, right))
    facts: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for dataset in (each for each in ours if each in theirs):
        one, other = ours[dataset], theirs[dataset]
        if one.compare(other) == "not comparable":
            continue
        for column in (each for each in one.columns if each in other.columns):
            for found, fingerprint in zip(facts, (one, other), strict=True):
                found[f"output {dataset} values of {column}"] = fingerprint.columns[column][:16]
    return facts


def _unequal(left: Mapping[str, str], right: Mapping[str, str]) -> Iterator[Difference]:
    for fact in [*left, *(each for each in right if each not in left)]:
        if left.get(fact) != right.get(fact):
            yield Difference(fact=fact, left=left.get(fact), right=right.get(fact))
