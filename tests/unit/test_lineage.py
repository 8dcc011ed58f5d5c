"""Lineage: which edges a manifest stands for, and how a walk over them is drawn."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.model.lineage import Edge, LineageNode, closure, edges, mermaid, tree
from tests.support.documents import COMMIT, DECIDED_AT, input_record, manifest_of, output_record, run_id


def edge(output: str, made_of: str | None, *, number: int = 1, claimed: bool | None = True) -> Edge:
    """`name@snapshot` for both ends; a name without one is a source."""
    to, _, to_snapshot = output.partition("@")
    source, _, source_snapshot = (made_of or "").partition("@")
    return Edge(
        run_id=run_id(number),
        output=to,
        output_snapshot=to_snapshot,
        input=source or None,
        input_snapshot=source_snapshot or None,
        claimed=claimed,
        observed="rows",
        commit=COMMIT,
        rows=3,
        decided_at=DECIDED_AT,
    )


def drawn(node: LineageNode) -> Any:
    name = f"{node.dataset}@{node.snapshot}" if node.snapshot else node.dataset
    return {name: [drawn(child) for child in node.children]}


def ends(manifest_edges: list[Edge]) -> list[tuple[str, str | None, bool | None]]:
    return [
        (each.output, each.input and f"{each.input}@{each.input_snapshot}", each.claimed) for each in manifest_edges
    ]


# ---------------------------------------------------------------- edges


def test_an_output_has_an_edge_from_each_input_that_it_claims_and_from_no_other() -> None:
    manifest = manifest_of(
        output_record("marts.a", claimed_inputs=("staging.x", "staging.y")),
        output_record("marts.b", claimed_inputs=("staging.y",)),
        inputs=(
            input_record("staging.x", snapshot="7"),
            input_record("staging.y", snapshot="8"),
            input_record("staging.z", snapshot="9", claimed=False, observed="none"),
        ),
    )
    assert ends(list(edges(manifest))) == [
        ("marts.a", "staging.x@7", True),
        ("marts.a", "staging.y@8", True),
        ("marts.b", "staging.y@8", True),
    ]


def test_an_edge_says_who_made_what_at_which_commit() -> None:
    manifest = manifest_of(
        output_record("marts.a", snapshot="5", rows=42, claimed_inputs=("staging.x",)),
        inputs=(input_record("staging.x", snapshot="7", observed="metadata"),),
    )
    (found,) = edges(manifest)
    assert found == Edge(
        run_id=manifest.run_id,
        output="marts.a",
        output_snapshot="5",
        input="staging.x",
        input_snapshot="7",
        claimed=True,
        observed="metadata",
        commit=manifest.spec.logic.commit,
        rows=42,
        decided_at=DECIDED_AT,
    )


def test_an_output_that_cannot_tell_has_an_edge_from_every_declared_input_and_says_unknown() -> None:
    manifest = manifest_of(
        output_record("marts.a", claimed_inputs=None),
        inputs=(
            input_record("staging.x", claimed=None),
            input_record("staging.y", claimed=None, observed="none"),
            input_record("raw.z", declared=False, snapshot=None, observed=None),
        ),
    )
    assert ends(list(edges(manifest))) == [("marts.a", "staging.x@1", None), ("marts.a", "staging.y@1", None)]


def test_what_was_claimed_and_never_declared_is_an_edge_from_an_unknown_snapshot() -> None:
    manifest = manifest_of(
        output_record("marts.a", claimed_inputs=("raw.z",)),
        inputs=(input_record("raw.z", declared=False, snapshot=None, observed=None),),
    )
    assert ends(list(edges(manifest))) == [("marts.a", "raw.z@None", True)]


@pytest.mark.parametrize("claimed_inputs", [(), None])
def test_an_output_made_of_nothing_is_an_edge_without_an_input(claimed_inputs: tuple[str, ...] | None) -> None:
    (found,) = edges(manifest_of(output_record("marts.calendar", claimed_inputs=claimed_inputs)))
    assert (found.output, found.input, found.input_snapshot, found.observed) == ("marts.calendar", None, None, None)


def test_an_output_that_did_not_land_has_no_edge() -> None:
    manifest = manifest_of(
        output_record("marts.a", snapshot=None, claimed_inputs=("staging.x",)), inputs=(input_record("staging.x"),)
    )
    assert list(edges(manifest)) == []


def test_a_quarantine_is_made_of_the_same_input_as_the_table() -> None:
    manifest = manifest_of(
        output_record("staging.x", claimed_inputs=("landing/x",)),
        output_record("failed/staging/x", quarantine=True, claimed_inputs=("landing/x",)),
        inputs=(input_record("landing/x", snapshot="3"),),
    )
    assert ends(list(edges(manifest))) == [
        ("staging.x", "landing/x@3", True),
        ("failed/staging/x", "landing/x@3", True),
    ]


def test_a_rerun_on_a_branch_has_edges_to_its_own_snapshot() -> None:
    manifest = manifest_of(
        output_record("marts.a", snapshot="6", branch="rerun_" + "0" * 32, claimed_inputs=("staging.x",)),
        inputs=(input_record("staging.x"),),
    )
    assert [each.output_snapshot for each in edges(manifest)] == ["6"]


def test_a_dataset_read_at_two_snapshots_is_an_edge_from_each() -> None:
    manifest = manifest_of(
        output_record("marts.change", claimed_inputs=("staging.x", "staging.x")),
        inputs=(
            input_record("staging.x", snapshot="8", as_="now"),
            input_record("staging.x", snapshot="7", as_="before"),
        ),
    )
    assert ends(list(edges(manifest))) == [("marts.change", "staging.x@8", True), ("marts.change", "staging.x@7", True)]


def test_of_two_snapshots_of_a_dataset_the_one_that_nothing_claims_is_no_edge() -> None:
    manifest = manifest_of(
        output_record("marts.a", claimed_inputs=("staging.x",)),
        inputs=(
            input_record("staging.x", snapshot="8", as_="now"),
            input_record("staging.x", snapshot="7", as_="before", claimed=False),
        ),
    )
    assert ends(list(edges(manifest))) == [("marts.a", "staging.x@8", True)]


# ---------------------------------------------------------------- closure

GRAPH = {"d": ["b", "c"], "b": ["a"], "c": ["a", "c"], "x": ["y"], "y": ["x"]}


@pytest.mark.parametrize(
    ("start", "found"), [("d", "abcd"), ("a", "a"), ("c", "ac"), ("x", "xy"), ("nowhere else", ["nowhere else"])]
)
def test_the_closure_holds_all_that_a_node_depends_on_and_the_node(start: str, found: str) -> None:
    assert closure(GRAPH, start) == set(found)


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 9).map(str), st.lists(st.integers(0, 9).map(str), max_size=4)))
def test_a_closure_is_closed_and_reachable(graph: dict[str, list[str]]) -> None:
    found = closure(graph, "0")
    assert "0" in found
    assert all(set(graph.get(node, ())) <= found for node in found)
    assert all(any(node in graph.get(other, ()) for other in found) for node in found - {"0"})


# ---------------------------------------------------------------- tree

WALK = [
    edge("marts.a@3", "staging.x@2", number=3),
    edge("marts.a@3", "staging.y@2", number=3),
    edge("staging.x@2", "landing/p@1", number=2),
    edge("staging.y@2", "landing/p@1", number=4),
    edge("landing/p@1", "https://portal.example.org/p.csv@abc", number=1),
]


def test_a_tree_goes_down_to_the_sources() -> None:
    source: Any = {"landing/p@1": [{"https://portal.example.org/p.csv@abc": []}]}
    assert drawn(tree(WALK, "marts.a", "3", direction="upstream")) == {
        "marts.a@3": [{"staging.x@2": [source]}, {"staging.y@2": [source]}]
    }


def test_a_tree_the_other_way_goes_up_to_what_was_made() -> None:
    assert drawn(tree(WALK, "landing/p", "1", direction="downstream")) == {
        "landing/p@1": [{"staging.x@2": [{"marts.a@3": []}]}, {"staging.y@2": [{"marts.a@3": []}]}]
    }


def test_a_node_knows_the_run_that_made_it() -> None:
    root = tree(WALK, "marts.a", "3", direction="upstream")
    assert root.made_by is not None
    assert root.made_by.run_id == run_id(3)
    source = root.children[0].children[0].children[0]
    assert (source.dataset, source.made_by) == ("https://portal.example.org/p.csv", None)


def test_a_dataset_that_nothing_is_known_of_is_a_tree_of_one() -> None:
    assert drawn(tree([], "marts.a", "3", direction="upstream")) == {"marts.a@3": []}


def test_an_output_made_of_nothing_has_no_child() -> None:
    root = tree([edge("marts.calendar@1", None)], "marts.calendar", "1", direction="upstream")
    assert root.made_by is not None
    assert root.children == ()


def test_a_step_that_is_told_twice_is_drawn_once() -> None:
    assert drawn(tree([WALK[2], WALK[2]], "staging.x", "2", direction="upstream")) == {
        "staging.x@2": [{"landing/p@1": []}]
    }


def test_a_cycle_ends_where_it_closes() -> None:
    circle = [edge("a.a@1", "a.b@1"), edge("a.b@1", "a.a@1")]
    assert drawn(tree(circle, "a.a", "1", direction="upstream")) == {"a.a@1": [{"a.b@1": [{"a.a@1": []}]}]}


def test_another_snapshot_of_the_same_dataset_is_another_node() -> None:
    assert drawn(tree([edge("a.a@2", "a.a@1")], "a.a", "2", direction="upstream")) == {"a.a@2": [{"a.a@1": []}]}


# ---------------------------------------------------------------- mermaid


def test_a_chart_names_each_snapshot_once_and_each_step_by_its_commit() -> None:
    assert mermaid(WALK[:3]).splitlines() == [
        "flowchart LR",
        '    d0["staging.x<br/>2"]',
        '    d1["marts.a<br/>3"]',
        f"    d0 -->|{COMMIT[:8]}| d1",
        '    d2["staging.y<br/>2"]',
        f"    d2 -->|{COMMIT[:8]}| d1",
        '    d3["landing/p<br/>1"]',
        f"    d3 -->|{COMMIT[:8]}| d0",
    ]


def test_a_step_that_cannot_tell_is_dotted() -> None:
    assert f"d0 -.->|{COMMIT[:8]}| d1" in mermaid([edge("marts.a@3", "staging.x@2", claimed=None)])


def test_a_step_without_an_input_is_not_drawn() -> None:
    assert mermaid([edge("marts.calendar@1", None)]) == "flowchart LR"


def test_a_quote_in_a_name_does_not_end_the_label() -> None:
    assert '    d0["raw.o\'clock"]' in mermaid([edge("marts.a@3", 'raw.o"clock')]).splitlines()
