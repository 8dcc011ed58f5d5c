"""Modes and state, from a dbt project to the rows that others read: each also again, as a rerun."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from runner.model.errors import Category
from runner.model.manifest import Manifest, State
from runner.model.spec import JobSpec
from tests.support.site import Site

FILES = {
    "dbt_project.yml": "name: modes\nprofile: modes\nversion: 1.0.0\n",
    # What a run makes is what its vars say: ids [low, high), each with who made it.
    "models/numbers.sql": """
SELECT range AS id, '{{ var("by") }}' AS made_by FROM range({{ var("low") }}, {{ var("high") }})
""",
    "models/seen.sql": """
{{ config(materialized='incremental', unique_key='id') }}
SELECT *, {{ 'true' if is_incremental() else 'false' }} AS grew FROM {{ ref('numbers') }}
""",
    "snapshots/history.sql": """
{% snapshot history %}
{{ config(target_schema='main', unique_key='id', strategy='check', check_cols=['made_by']) }}
SELECT id, made_by FROM {{ ref('numbers') }}
{% endsnapshot %}
""",
}


@pytest.fixture(scope="module")
def commit(site: Site) -> str:
    return site.commit(FILES)


def numbers(site: Site, commit: str, low: int, high: int, *, by: str = "a", **output: Any) -> JobSpec:
    """A dbt job for what `from` names."""
    return site.spec(
        commit,
        "transform",
        {"kind": "dbt", "steps": [{"command": "build"}], "vars": {"low": low, "high": high, "by": by}},
        outputs=[output],
        logical_time="2013-06-01T12:00:00Z",
    )


def query(site: Site, low: int, high: int, *, by: str = "a", day: str = "2013-06-01", **output: Any) -> JobSpec:
    """A query job that makes the same rows, each with its day: modes are the same for every stage."""
    sql = f"SELECT range AS id, '{by}' AS made_by, DATE '{day}' AS day FROM range({low}, {high})"
    return site.spec(
        site.commit({"numbers.sql": sql}),
        "query",
        {"kind": "query", "file": "numbers.sql"},
        outputs=[output],
        logical_time=f"{day}T12:00:00Z",
    )


def succeeded(site: Site, spec: JobSpec) -> Manifest:
    manifest = site.end(spec)
    assert manifest.failure is None, manifest.failure
    assert manifest.state is State.SUCCEEDED
    return manifest


def again(site: Site, manifest: Manifest, *, publish: bool) -> Manifest:
    return succeeded(site, site.app.client.rerun(manifest.run_id, publish=publish, latest_inputs=False))


def ids(site: Site, table: str, *, branch: str | None = None) -> list[tuple[Any, ...]]:
    return sorted(site.rows(table, "id, made_by", branch=branch))


# ---------------------------------------------------------------- state


def test_an_incremental_model_goes_on_from_what_was_published(site: Site, commit: str) -> None:
    output: dict[str, Any] = {"dataset": "marts.seen", "from": "main.seen", "state": "restore"}
    succeeded(site, numbers(site, commit, 0, 3, by="a", **output))

    second = succeeded(site, numbers(site, commit, 2, 5, by="b", **output))

    assert ids(site, "marts.seen") == [(0, "a"), (1, "a"), (2, "b"), (3, "b"), (4, "b")]
    assert sorted(site.rows("marts.seen", "id, grew")) == [(0, False), (1, False), (2, True), (3, True), (4, True)]
    (state,) = [pin for pin in second.pins if pin.state]
    assert second.outputs[0].state == state.snapshot
    (own,) = [each for each in second.report.inputs if each.dataset == "marts.seen"]
    assert (own.claimed, own.observed) == (True, "rows")
    tree = site.run("lineage", "marts.seen").stdout
    assert f"@{state.snapshot}" in tree, "the new snapshot is made of the old one"


def test_a_rerun_begins_from_the_same_state_though_the_table_has_grown(site: Site, commit: str) -> None:
    output: dict[str, Any] = {"dataset": "marts.grown", "from": "main.seen", "state": "restore"}
    first = succeeded(site, numbers(site, commit, 0, 2, by="a", **output))
    second = succeeded(site, numbers(site, commit, 2, 4, by="b", **output))
    third = succeeded(site, numbers(site, commit, 4, 6, by="c", **output))

    reruns = [again(site, each, publish=False) for each in (first, second, third)]

    assert [each.outputs[0].comparison for each in reruns] == ["identical"] * 3
    assert [each.outputs[0].rows for each in reruns] == [2, 4, 6]
    assert len(ids(site, "marts.grown")) == 6
    (latest,) = again(site, third, publish=True).outputs
    assert latest.comparison == "identical"
    assert len(ids(site, "marts.grown")) == 6


def test_a_rerun_is_not_published_over_what_others_have_added_since(site: Site, commit: str) -> None:
    output: dict[str, Any] = {"dataset": "marts.kept", "from": "main.seen", "state": "restore"}
    first = succeeded(site, numbers(site, commit, 0, 2, by="a", **output))
    succeeded(site, numbers(site, commit, 2, 4, by="b", **output))
    spec = site.app.client.rerun(first.run_id, publish=True, latest_inputs=False)

    outcome = site.carry(spec.model_copy(update={"max_attempts": 1}))

    assert isinstance(outcome, Manifest)
    assert outcome.failure is not None
    assert "marts.kept: expected it at snapshot none" in outcome.failure.message
    assert len(ids(site, "marts.kept")) == 4


def test_a_snapshot_goes_on_with_its_history(site: Site, commit: str) -> None:
    output: dict[str, Any] = {"dataset": "marts.history", "from": "main.history", "state": "restore"}
    succeeded(site, numbers(site, commit, 0, 2, by="a", **output))

    succeeded(site, numbers(site, commit, 1, 3, by="b", **output))

    rows = site.rows("marts.history", "id, made_by, dbt_valid_to")
    assert sorted((number, by, valid_to is None) for number, by, valid_to in rows) == [
        (0, "a", True),
        (1, "a", False),
        (1, "b", True),
        (2, "b", True),
    ]


# ---------------------------------------------------------------- modes


def test_appended_rows_come_to_those_that_are_there_and_a_rerun_takes_the_place_of_its_own(site: Site) -> None:
    output: dict[str, Any] = {"dataset": "marts.appended", "mode": "append"}
    first = succeeded(site, query(site, 0, 2, by="a", **output))
    succeeded(site, query(site, 2, 4, by="b", **output))
    all_four = [(0, "a"), (1, "a"), (2, "b"), (3, "b")]
    assert ids(site, "marts.appended") == all_four

    beside = again(site, first, publish=False)
    published = again(site, first, publish=True)
    once_more = again(site, published, publish=True)

    assert [each.outputs[0].comparison for each in (beside, published, once_more)] == ["identical"] * 3
    assert ids(site, "marts.appended") == all_four, "no row came twice"
    assert ids(site, "marts.appended", branch=beside.outputs[0].branch) == all_four, "what publishing would give"
    assert once_more.effect == first.run_id


def test_replace_where_replaces_the_day_of_its_logical_time_and_no_other(site: Site) -> None:
    output: dict[str, Any] = {
        "dataset": "marts.by_day",
        "mode": "replace_where",
        "partition_by": {"column": "day", "unit": "day"},
    }
    first = succeeded(site, query(site, 0, 2, by="a", day="2013-06-01", **output))
    succeeded(site, query(site, 5, 7, by="b", day="2013-06-02", **output))

    succeeded(site, query(site, 1, 4, by="c", day="2013-06-01", **output))

    assert ids(site, "marts.by_day") == [(1, "c"), (2, "c"), (3, "c"), (5, "b"), (6, "b")]
    assert {day for (day,) in site.rows("marts.by_day", "day")} == {date(2013, 6, 1), date(2013, 6, 2)}
    assert first.outputs[0].range == "day(day) = 2013-06-01"
    beside = again(site, first, publish=False)
    assert beside.outputs[0].comparison == "identical"
    assert ids(site, "marts.by_day", branch=beside.outputs[0].branch) == [(0, "a"), (1, "a"), (5, "b"), (6, "b")]


def test_replace_where_by_value(site: Site) -> None:
    output: dict[str, Any] = {
        "dataset": "marts.by_maker",
        "mode": "replace_where",
        "partition_by": {"column": "made_by"},
    }
    succeeded(site, query(site, 0, 2, by="a", where="a", **output))
    succeeded(site, query(site, 0, 2, by="b", where="b", **output))

    succeeded(site, query(site, 7, 8, by="a", where="a", **output))

    assert ids(site, "marts.by_maker") == [(0, "b"), (1, "b"), (7, "a")]


def test_a_row_of_another_partition_publishes_nothing(site: Site) -> None:
    output: dict[str, Any] = {"dataset": "marts.strict", "mode": "replace_where", "partition_by": {"column": "made_by"}}

    manifest = site.end(query(site, 0, 2, by="a", where="b", **output))

    assert manifest.failure is not None
    assert manifest.failure.category is Category.DATA
    assert manifest.outputs == ()


def test_merged_rows_take_the_place_of_those_with_their_key(site: Site) -> None:
    output: dict[str, Any] = {"dataset": "marts.merged", "mode": "merge", "key": ["id"], "lineage_columns": True}
    first = succeeded(site, query(site, 0, 3, by="a", **output))

    second = succeeded(site, query(site, 2, 5, by="b", **output))

    assert ids(site, "marts.merged") == [(0, "a"), (1, "a"), (2, "b"), (3, "b"), (4, "b")]
    runs = dict(site.rows("marts.merged", "id, _run_id"))
    assert [runs[number] for number in range(5)] == [str(first.run_id)] * 2 + [str(second.run_id)] * 3
    commits = {first.spec.logic.commit, second.spec.logic.commit}
    assert {each for (each,) in site.rows("marts.merged", "_logic_commit")} == commits
    assert again(site, second, publish=False).outputs[0].comparison == "identical"
    assert again(site, second, publish=True).outputs[0].comparison == "identical"
    assert len(ids(site, "marts.merged")) == 5


def test_an_older_run_does_not_overwrite_the_same_partition_but_may_write_another(site: Site) -> None:
    output: dict[str, Any] = {"dataset": "marts.ranges", "mode": "replace_where", "partition_by": {"column": "made_by"}}
    newer = succeeded(site, query(site, 0, 2, by="a", day="2013-06-02", where="a", **output))

    older = site.end(query(site, 5, 6, by="a", day="2013-06-01", where="a", **output))
    succeeded(site, query(site, 7, 8, by="b", day="2013-06-01", where="b", **output))

    assert older.failure is not None
    assert older.failure.category is Category.CONFLICT
    assert str(newer.run_id) in older.failure.message
    assert ids(site, "marts.ranges") == [(0, "a"), (1, "a"), (7, "b")]


def test_a_table_partitioned_otherwise_is_refused_before_anything_runs(site: Site) -> None:
    succeeded(site, query(site, 0, 2, dataset="marts.whole"))

    output: dict[str, Any] = {"dataset": "marts.whole", "mode": "append", "partition_by": {"column": "made_by"}}
    manifest = site.end(query(site, 2, 4, **output))

    assert manifest.failure is not None
    assert manifest.failure.category is Category.SCHEMA
    assert "expected partition_by none, as the table is, got made_by" in manifest.failure.message
    assert manifest.report.steps == ()
