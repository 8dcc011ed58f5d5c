"""Rows that say what made them, and a query that reads what it may not: through the whole product."""

from __future__ import annotations

from typing import Any

from runner.model.errors import Category
from runner.model.manifest import Manifest
from tests.support.site import Site

DBT_PROJECT = "name: shop\nprofile: shop\nmodel-paths: [models]\n"
DAILY = """{{ config(materialized='incremental', unique_key='id') }}
select id, sum(n) as total, count(*) as rows_seen
from (select %d as id, 170141183460469231731::hugeint as n)
group by id
{%% if is_incremental() %%}
union all by name select max(id) + 100 as id, null as total, count(*) as rows_seen from {{ this }}
{%% endif %%}
"""


def _query(site: Site, sql: str, table: str, **output: Any) -> Manifest:
    commit = site.commit({"answer.sql": sql})
    return site.end(
        site.spec(
            commit,
            "query",
            {"kind": "query", "file": "answer.sql"},
            outputs=[{"dataset": table, **output}],
        )
    )


def _transform(site: Site, number: int, table: str) -> Manifest:
    commit = site.commit({"dbt_project.yml": DBT_PROJECT, "models/daily.sql": DAILY % number})
    output = {"dataset": table, "from": "main.daily", "state": "restore", "lineage_columns": True}
    return site.end(site.spec(commit, "transform", {"kind": "dbt", "steps": [{"command": "build"}]}, outputs=[output]))


def test_an_incremental_model_with_types_that_iceberg_lacks_goes_on_with_rows_that_say_what_made_them(
    site: Site,
) -> None:
    first = _transform(site, 1, "dev_shop.daily")
    second = _transform(site, 2, "dev_shop.daily")

    assert [first.failure, second.failure] == [None, None]
    rows = site.rows("dev_shop.daily", "id, rows_seen, _run_id, _logic_commit")
    assert sorted(row[:2] for row in rows) == [(1, 1), (2, 1), (101, 1)]
    assert {row[2] for row in rows} == {str(second.run_id)}
    assert {row[3] for row in rows} == {second.spec.logic.commit}
    (output,) = second.outputs
    assert output.state == first.outputs[0].snapshot
    assert set(output.fingerprint.columns) == {"id", "total", "rows_seen", "_logic_commit"}


def test_merged_rows_keep_the_stamp_of_the_run_that_made_them(site: Site) -> None:
    by_key: dict[str, Any] = {"mode": "merge", "key": ["id"], "lineage_columns": True}
    first = _query(site, "SELECT * FROM (VALUES (1, 'a'), (2, 'b')) t(id, v)", "dev_shop.orders", **by_key)
    second = _query(site, "SELECT 2 AS id, 'B' AS v, 9 AS extra", "dev_shop.orders", **by_key)

    assert [first.failure, second.failure] == [None, None]
    assert sorted(site.rows("dev_shop.orders", "id, v, extra, _run_id"), key=str) == [
        (1, "a", None, str(first.run_id)),
        (2, "B", 9, str(second.run_id)),
    ]


def test_a_query_that_reads_outside_of_its_commit_is_the_logics_fault(site: Site) -> None:
    done = _query(site, "SELECT * FROM read_csv('/etc/passwd')", "dev_shop.passwd")

    assert done.failure is not None
    assert done.failure.category is Category.LOGIC
    assert "disabled by configuration" in done.failure.message
