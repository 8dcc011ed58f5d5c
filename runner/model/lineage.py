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
    """A dataset's snapshot in the tree that `runner lineage` prints."""

    dataset: str
    snapshot: str | None
    made_by: Edge | None
    """The run that made it, by one of its edges; None for what no run made."""
    children: tuple[LineageNode, ...]
    below: Literal["here", "elsewhere", "deeper"] = "here"
    """Where its children are drawn: below it, at another place no farther from the root, or nowhere."""


@dataclass(frozen=True, kw_only=True)
class LineageTree:
    root: LineageNode
    hidden: int
    """How many snapshots are farther from the root than was asked for."""


def tree(
    found: Iterable[Edge],
    dataset: str,
    snapshot: str,
    *,
    direction: Literal["upstream", "downstream"],
    depth: int | None = None,
) -> LineageTree:
    """A walk's edges as a tree rooted at `dataset`, at most `depth` steps deep.

    What is below a snapshot is drawn once, where that is nearest to the root: a few layers of diamonds have more ways
    through them than anybody could print.
    """
    made_by: dict[_Key, Edge] = {}
    next_of: dict[_Key, dict[_Key, None]] = {}
    for edge in found:
        output, source = (edge.output, edge.output_snapshot), (edge.input or "", edge.input_snapshot)
        made_by.setdefault(output, edge)
        if edge.input is not None:
            start, end = (output, source) if direction == "upstream" else (source, output)
            next_of.setdefault(start, {})[end] = None

    def node(key: _Key, children: Iterable[LineageNode], below: Literal["here", "elsewhere", "deeper"]) -> LineageNode:
        return LineageNode(
            dataset=key[0],
            snapshot=key[1],
            made_by=made_by.get(key),
            children=tuple(children),
            below=below if key in next_of else "here",
        )

    root: _Key = (dataset, snapshot)
    layers, drawn_by = _layers(root, next_of)
    shown = layers if depth is None else layers[: depth + 1]
    drawn: dict[_Key, LineageNode] = {}
    # From the farthest layer inwards: a chain may be longer than Python recurses.
    for steps in reversed(range(len(shown))):
        for key in shown[steps]:
            if steps == depth:
                drawn[key] = node(key, (), "deeper")
                continue
            children = [
                drawn[each] if drawn_by[each] == key else node(each, (), "elsewhere") for each in next_of.get(key, ())
            ]
            drawn[key] = node(key, children, "here")
    return LineageTree(root=drawn[root], hidden=sum(map(len, layers[len(shown) :])))


_Key = tuple[str, str | None]


def _layers(root: _Key, next_of: Mapping[_Key, Iterable[_Key]]) -> tuple[list[list[_Key]], dict[_Key, _Key | None]]:
    """What is 0, 1, 2 … steps from the root; and for each the one by which it was reached first."""
    reached_by: dict[_Key, _Key | None] = {root: None}
    layers = [[root]]
    while layers[-1]:
        farther = []
        for key in layers[-1]:
            for each in next_of.get(key, ()):
                if each not in reached_by:
                    reached_by[each] = key
                    farther.append(each)
        layers.append(farther)
    return layers[:-1], reached_by


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
