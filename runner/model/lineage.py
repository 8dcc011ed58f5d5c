"""Lineage: what a run made of what, told by three witnesses that are never merged into one guess."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from runner.model.manifest import InputRecord, Manifest, OutputRecord


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One step: a run made `output` at `output_snapshot` from `input` at `input_snapshot`."""

    run_id: UUID
    output: str
    output_snapshot: str
    input: str | None
    """None where the run had no input."""
    input_snapshot: str | None
    claimed: bool | None
    """None where the logic cannot tell what this output is made of: then every declared input is listed."""
    observed: str | None
    commit: str
    rows: int | None
    decided_at: datetime


def closure(depends_on: Mapping[str, Sequence[str]], start: str) -> set[str]:
    """Everything that `start` depends on, itself included; cycles are no matter."""
    found, waiting = set(), [start]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(depends_on.get(node, ()))
    return found


def edges(manifest: Manifest) -> Iterator[Edge]:
    """The edges that a manifest stands for: each landed output with each input that it is said to be made of."""
    for output in manifest.outputs:
        if output.snapshot is None:
            continue
        for record in _made_of(output, manifest.report.inputs) or (None,):
            yield Edge(
                run_id=manifest.run_id,
                output=output.dataset,
                output_snapshot=output.snapshot,
                input=record.dataset if record else None,
                input_snapshot=record.snapshot if record else None,
                claimed=None if output.claimed_inputs is None else True,
                observed=record.observed if record else None,
                commit=manifest.spec.logic.commit,
                rows=output.rows,
                decided_at=manifest.decided_at,
            )


def _made_of(output: OutputRecord, inputs: Sequence[InputRecord]) -> tuple[InputRecord, ...]:
    """One dataset may be read at two snapshots, under two names: each is an edge of its own."""
    if output.claimed_inputs is None:
        return tuple(record for record in inputs if record.declared)
    return tuple(record for record in inputs if record.dataset in output.claimed_inputs and record.claimed is not False)


@dataclass(frozen=True, kw_only=True)
class LineageNode:
    """A dataset's snapshot in the tree that `runner lineage` prints; `edge` is how it was reached."""

    dataset: str
    snapshot: str | None
    made_by: Edge | None
    children: tuple[LineageNode, ...]


def tree(
    found: Iterable[Edge], dataset: str, snapshot: str, *, direction: Literal["upstream", "downstream"]
) -> LineageNode:
    """A walk's edges as a tree rooted at `dataset`; a snapshot that stands in two places is drawn in both."""
    made_by: dict[_Key, Edge] = {}
    next_of: dict[_Key, dict[_Key, None]] = {}
    for edge in found:
        output, source = (edge.output, edge.output_snapshot), (edge.input or "", edge.input_snapshot)
        made_by.setdefault(output, edge)
        if edge.input is not None:
            start, end = (output, source) if direction == "upstream" else (source, output)
            next_of.setdefault(start, {})[end] = None
    return _node((dataset, snapshot), made_by, next_of, frozenset())


_Key = tuple[str, str | None]


def _node(
    key: _Key, made_by: Mapping[_Key, Edge], next_of: Mapping[_Key, Iterable[_Key]], above: frozenset[_Key]
) -> LineageNode:
    nearest = () if key in above else next_of.get(key, ())
    return LineageNode(
        dataset=key[0],
        snapshot=key[1],
        made_by=made_by.get(key),
        children=tuple(_node(each, made_by, next_of, above | {key}) for each in nearest),
    )


def mermaid(found: Iterable[Edge]) -> str:
    """The edges as a Mermaid flow chart: https://mermaid.js.org/syntax/flowchart.html."""
    lines, ids = ["flowchart LR"], dict[tuple[str, str | None], str]()

    def box(dataset: str, snapshot: str | None) -> str:
        key = (dataset, snapshot)
        if key not in ids:
            ids[key] = f"d{len(ids)}"
            label = dataset.replace('"', "'") + (f"<br/>{snapshot[:20]}" if snapshot else "")
            lines.append(f'    {ids[key]}["{label}"]')
        return ids[key]

    for edge in found:
        if edge.input is None:
            continue
        arrow = "-.->" if edge.claimed is None else "-->"
        lines.append(
            f"    {box(edge.input, edge.input_snapshot)} {arrow}|{edge.commit[:8]}| "
            f"{box(edge.output, edge.output_snapshot)}"
        )
    return "\n".join(lines)
