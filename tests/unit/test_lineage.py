"""Lineage: which edges a manifest stands for, and how a walk over them is drawn."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.model.lineage import Edge, LineageNode, closure, edges, mermaid, tree
from runner.terminal import lineage_tree
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
    """Each name with what is drawn below it; one whose rest is drawn elsewhere or nowhere says so."""
    name = f"{node.dataset}@{node.snapshot}" if node.snapshot else node.dataset
    return {name: [drawn(child) for child in node.children] if node.below == "here" else node.below}


def size(node: LineageNode) -> int:
    waiting, count = [node], 0
    while waiting:
        waiting.extend(waiting.pop().children)
        count += 1
    return count


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


def test_a_tree_goes_down_to_the_sources_and_draws_what_it_meets_again_once() -> None:
    source: Any = {"landing/p@1": [{"https://portal.example.org/p.csv@abc": []}]}
    assert drawn(tree(WALK, "marts.a", "3", direction="upstream").root) == {
        "marts.a@3": [{"staging.x@2": [source]}, {"staging.y@2": [{"landing/p@1": "elsewhere"}]}]
    }


def test_a_tree_the_other_way_goes_up_to_what_was_made() -> None:
    mart: Any = {"marts.a@3": []}
    assert drawn(tree(WALK, "landing/p", "1", direction="downstream").root) == {
        "landing/p@1": [{"staging.x@2": [mart]}, {"staging.y@2": [mart]}]
    }


def test_a_source_that_is_met_again_hides_nothing_and_does_not_say_so() -> None:
    assert drawn(
        tree(
            [edge("a.b@1", "src"), edge("a.b@1", "a.c@1"), edge("a.c@1", "src")], "a.b", "1", direction="upstream"
        ).root
    ) == {"a.b@1": [{"src": []}, {"a.c@1": [{"src": []}]}]}


def test_what_is_met_again_is_drawn_where_it_is_nearest_to_the_root() -> None:
    longer_way_first = [
        edge("a.top@1", "a.long@1"),
        edge("a.top@1", "a.shared@1"),
        edge("a.long@1", "a.shared@1"),
        edge("a.shared@1", "a.source@1"),
    ]
    assert drawn(tree(longer_way_first, "a.top", "1", direction="upstream").root) == {
        "a.top@1": [{"a.long@1": [{"a.shared@1": "elsewhere"}]}, {"a.shared@1": [{"a.source@1": []}]}]
    }


def test_a_tree_ends_at_its_depth_and_counts_what_is_farther_away() -> None:
    found = tree(WALK, "marts.a", "3", direction="upstream", depth=1)
    assert drawn(found.root) == {"marts.a@3": [{"staging.x@2": "deeper"}, {"staging.y@2": "deeper"}]}
    assert found.hidden == 2


@pytest.mark.parametrize("depth", [3, 4, None])
def test_a_tree_that_is_shallower_than_its_depth_hides_nothing(depth: int | None) -> None:
    found = tree(WALK, "marts.a", "3", direction="upstream", depth=depth)
    assert (found.hidden, size(found.root)) == (0, 6)


def test_layers_of_diamonds_are_drawn_with_a_node_for_each_edge() -> None:
    """Drawn in both places each time, 60 layers of them would be 2 to the 60 nodes."""
    layers = [
        edge(f"l{layer}.{side}@1", f"l{layer - 1}.{other}@1")
        for layer in range(1, 60)
        for side in "ab"
        for other in "ab"
    ]
    found = tree(layers, "l59.a", "1", direction="upstream")
    assert size(found.root) == 1 + len(layers) - 2  # the other side of the top is not above itself


def test_a_chain_of_thousands_is_no_recursion() -> None:
    chain = [edge(f"a.a@{number}", f"a.a@{number - 1}") for number in range(1, 15_000)]
    found = tree(chain, "a.a", "14999", direction="upstream")
    assert (size(found.root), found.hidden) == (15_000, 0)
    shown = tree(chain, "a.a", "14999", direction="upstream", depth=20)
    assert (size(shown.root), shown.hidden) == (21, 14_979)


def test_a_node_knows_the_run_that_made_it() -> None:
    root = tree(WALK, "marts.a", "3", direction="upstream").root
    assert root.made_by is not None
    assert root.made_by.run_id == run_id(3)
    source = root.children[0].children[0].children[0]
    assert (source.dataset, source.made_by) == ("https://portal.example.org/p.csv", None)


def test_a_dataset_that_nothing_is_known_of_is_a_tree_of_one() -> None:
    assert drawn(tree([], "marts.a", "3", direction="upstream").root) == {"marts.a@3": []}


def test_an_output_made_of_nothing_has_no_child() -> None:
    root = tree([edge("marts.calendar@1", None)], "marts.calendar", "1", direction="upstream").root
    assert root.made_by is not None
    assert root.children == ()


def test_a_step_that_is_told_twice_is_drawn_once() -> None:
    assert drawn(tree([WALK[2], WALK[2]], "staging.x", "2", direction="upstream").root) == {
        "staging.x@2": [{"landing/p@1": []}]
    }


def test_a_cycle_ends_where_it_closes() -> None:
    circle = [edge("a.a@1", "a.b@1"), edge("a.b@1", "a.a@1")]
    assert drawn(tree(circle, "a.a", "1", direction="upstream").root) == {
        "a.a@1": [{"a.b@1": [{"a.a@1": "elsewhere"}]}]
    }


def test_what_is_made_of_itself_ends_there() -> None:
    assert drawn(tree([edge("a.a@1", "a.a@1")], "a.a", "1", direction="upstream").root) == {
        "a.a@1": [{"a.a@1": "elsewhere"}]
    }


def test_another_snapshot_of_the_same_dataset_is_another_node() -> None:
    assert drawn(tree([edge("a.a@2", "a.a@1")], "a.a", "2", direction="upstream").root) == {"a.a@2": [{"a.a@1": []}]}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=40),
    st.none() | st.integers(1, 6),
    st.sampled_from(["upstream", "downstream"]),
)
def test_every_snapshot_is_drawn_once_in_full_or_is_counted(
    pairs: list[tuple[int, int]], depth: int | None, direction: Literal["upstream", "downstream"]
) -> None:
    found = tree(
        [edge(f"n{one}@1", f"n{other}@1") for one, other in pairs], "n0", "1", direction=direction, depth=depth
    )
    graph: dict[str, list[str]] = {}
    for one, other in pairs:
        start, end = (one, other) if direction == "upstream" else (other, one)
        graph.setdefault(f"n{start}", []).append(f"n{end}")
    waiting, in_full = [found.root], list[str]()
    while waiting:
        node = waiting.pop()
        waiting.extend(node.children)
        assert {child.dataset for child in node.children} == (
            set(graph.get(node.dataset, ())) if node.below == "here" else set()
        )
        if node.below != "elsewhere" and (node.below == "deeper" or graph.get(node.dataset)):
            in_full.append(node.dataset)
    reached = {name for name in closure(graph, "n0") if graph.get(name)}
    assert len(set(in_full)) == len(in_full)
    assert set(in_full) <= reached
    assert found.hidden >= len(reached) - len(in_full)
    if found.hidden == 0:
        assert set(in_full) == reached


# ---------------------------------------------------------------- as it is printed


def printed(capsys: pytest.CaptureFixture[str], *found: Edge, root: str, depth: int | None = None) -> list[str]:
    dataset, _, snapshot = root.partition("@")
    lineage_tree(tree(found, dataset, snapshot, direction="upstream", depth=depth))
    return capsys.readouterr().out.splitlines()


def test_a_tree_is_printed_a_line_a_snapshot_and_says_where_the_rest_is(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, *WALK, root="marts.a@3")
    assert [line.split("  3 rows")[0] for line in lines] == [
        "marts.a @3",
        "├── staging.x @2",
        "│   └── landing/p @1",
        "│       └── https://portal.example.org/p.csv @abc",
        "└── staging.y @2",
        "    └── landing/p @1",
    ]
    assert [line.endswith("  … as above") for line in lines] == [False, False, False, False, False, True]


def test_what_is_drawn_further_down_is_said_to_be_below(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(
        capsys,
        edge("a.top@1", "a.long@1"),
        edge("a.top@1", "a.shared@1"),
        edge("a.long@1", "a.shared@1"),
        edge("a.shared@1", "a.source@1"),
        root="a.top@1",
    )
    assert lines[2].startswith("│   └── a.shared @1")
    assert lines[2].endswith("… as below")


def test_what_is_too_far_away_to_be_printed_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, *WALK, root="marts.a@3", depth=1)
    assert len(lines) == 4
    assert [line.endswith("  …") for line in lines] == [False, True, True, False]
    assert lines[3] == "… and 2 more, which are farther away: --depth, or --format json for all"


def test_a_name_of_a_hostile_portal_is_printed_without_its_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = printed(capsys, edge("a.a@1", "https://x/\x1b[2J[red]"), root="a.a@1")
    assert len(lines) == 2
    assert "https://x/\\x1b[2J[red]" in lines[1]


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
