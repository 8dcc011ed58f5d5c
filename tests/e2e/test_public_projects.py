"""What public dbt-duckdb projects do that gave trouble: each thing in a small project of its own, run as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from runner.model.errors import Category
from runner.model.manifest import Manifest, Step
from tests.support.site import Site

PROJECT = "name: small\nprofile: small\nversion: 1.0.0\n"
SEED_FIRST: list[dict[str, Any]] = [{"command": "seed"}, {"command": "build", "exclude": ["resource_type:seed"]}]


def run(
    site: Site,
    files: Mapping[str, str],
    outputs: Mapping[str, str],
    *,
    inputs: Mapping[str, str] | None = None,
    path: str = ".",
    steps: list[dict[str, Any]] | None = None,
    **work: Any,
) -> Manifest:
    """`outputs` are tables by the relation that each takes, `inputs` tables by the name that each is given."""
    spec = site.spec(
        site.commit(files),
        "transform",
        {"kind": "dbt", "steps": steps or [{"command": "build"}], **work},
        inputs=[{"dataset": dataset, "as": name} for dataset, name in (inputs or {}).items()],
        outputs=[{"dataset": dataset, "from": relation} for dataset, relation in outputs.items()],
    )
    return site.end(spec.model_copy(update={"logic": spec.logic.model_copy(update={"path": path})}))


def step(manifest: Manifest, name: str) -> Step:
    (found,) = [each for each in manifest.report.steps if each.name == name]
    return found


def refused(manifest: Manifest) -> str:
    """The failure's line. Fails the test where something was published."""
    assert manifest.failure is not None
    assert manifest.failure.category is Category.LOGIC
    assert not [each for each in manifest.outputs if each.snapshot is not None]
    return manifest.failure.message


DATA_BESIDE = {
    "transform/dbt_project.yml": PROJECT,
    "transform/models/sources.yml": """
sources:
  - name: files
    tables:
      - name: returns
        meta:
          external_location: "read_csv('data/returns.csv', columns={'id': 'integer', 'day': 'date'}, header=true)"
          formatter: oldstyle
      - name: products
        meta:
          external_location: "read_json('data/products/*.json', columns={id: 'integer', sku: 'varchar'})"
          formatter: oldstyle
""",
    "transform/models/raw/returns.sql": "SELECT * FROM {{ source('files', 'returns') }}",
    "transform/models/raw/products.sql": "{{ config(materialized='table') }} "
    "SELECT * FROM {{ source('files', 'products') }}",
    "data/returns.csv": "id,day\n1,2023-01-02\n",
    "data/products/one.json": '[{"id": 1, "sku": "a"}]',
    "data/products/more.json": '[{"id": 2, "sku": "b"}, {"id": 3, "sku": "c"}]',
}


def test_a_project_whose_paths_begin_at_the_repositorys_root(site: Site) -> None:
    """A view among them, which is read when it is published."""
    outputs = {"beside.returns": "main.returns", "beside.products": "main.products"}
    manifest = run(site, DATA_BESIDE, outputs, path="transform", working_directory="repository")
    assert manifest.failure is None, manifest.failure
    assert [row[0] for row in site.rows("beside.returns")] == [1]
    assert sorted(site.rows("beside.products")) == [(1, "a"), (2, "b"), (3, "c")]
    assert [each.claimed_inputs for each in manifest.outputs] == [(), ()]


def test_such_a_project_without_it_is_told_of_it(site: Site) -> None:
    message = refused(run(site, DATA_BESIDE, {"beside.none": "main.returns"}, path="transform"))
    assert "No files found that match the pattern" in message
    assert "work.working_directory can be repository" in message


def test_a_project_whose_seeds_are_sources_in_a_schema_of_their_own(site: Site) -> None:
    files = {
        "dbt_project.yml": PROJECT + "seeds: {+schema: raw, +full_refresh: true, small: {+delimiter: '|'}}\n",
        "seeds/orders.csv": 'id|note|loaded_at\n1|"a|b"|2025-01-01 09:00:00\n2|c|2025-01-02 09:00:00\n',
        "models/sources.yml": "sources: [{name: raw, schema: main_raw, tables: [{name: orders}]}]\n",
        "models/orders_grown.sql": """{{ config(materialized='incremental', unique_key='id') }}
SELECT id, note, loaded_at FROM {{ source('raw', 'orders') }}
{% if is_incremental() %}
WHERE loaded_at > (SELECT coalesce(max(loaded_at), '1900-01-01') FROM {{ this }})
{% endif %}""",
    }
    manifest = run(site, files, {"seeded.orders": "main.orders_grown"}, steps=SEED_FIRST)
    assert manifest.failure is None, manifest.failure
    assert sorted(site.rows("seeded.orders", "id, note")) == [(1, "a|b"), (2, "c")]
    at_once = run(site, files, {"seeded.none": "main.orders_grown"})
    assert "Table with name orders does not exist" in refused(at_once), "dbt knows no edge from a seed to a source"


NAMES_ITS_DATABASE = {
    "dbt_project.yml": PROJECT + "models: {small: {+schema: staging}}\n",
    "seeds/category.csv": "id,name\n1,Sports\n",
    "models/sources.yml": "sources: [{name: shop, schema: raw, database: Shop_db, tables: [{name: category}]}]\n",
    "models/categories.sql": "SELECT id, name FROM {{ source('shop', 'category') }}",
}


def test_a_project_whose_sources_name_the_database_and_the_schema_of_its_profile(site: Site) -> None:
    manifest = run(
        site,
        NAMES_ITS_DATABASE,
        {"named.categories": "raw_staging.categories"},
        steps=SEED_FIRST,
        database="shop_db",
        schema="raw",
    )
    assert manifest.failure is None, manifest.failure
    assert site.rows("named.categories") == [(1, "Sports")]


def test_such_a_project_under_another_name_is_told_which_setting_names_it(site: Site) -> None:
    manifest = run(site, NAMES_ITS_DATABASE, {"named.none": "main_staging.categories"}, steps=SEED_FIRST)
    message = refused(manifest)
    assert 'Catalog "Shop_db" does not exist' in message
    assert "the database is called warehouse: work.database names it" in message


def test_a_project_whose_tables_somebody_loads_by_hand_gets_them_as_inputs(site: Site) -> None:
    """It calls them sources of the target's own schema; there an input stands beside what the project makes."""
    loaded = site.spec(
        site.commit({"raw.sql": "SELECT 'C1' AS customer_id, 5.5::DOUBLE AS amount"}),
        "query",
        {"kind": "query", "file": "raw.sql"},
        outputs=[{"dataset": "lake.orders"}],
    )
    assert site.end(loaded).failure is None
    manifest = run(
        site,
        {
            "dbt_project.yml": PROJECT,
            "models/sources.yml": "sources: [{name: raw, schema: main, tables: [{name: raw_orders}]}]\n",
            "models/revenue.sql": "SELECT customer_id, sum(amount) AS revenue FROM {{ source('raw', 'raw_orders') }} "
            "GROUP BY customer_id",
        },
        {"by_hand.revenue": "main.revenue"},
        inputs={"lake.orders": "main.raw_orders"},
    )
    assert manifest.failure is None, manifest.failure
    assert site.rows("by_hand.revenue") == [("C1", 5.5)]
    assert manifest.outputs[0].claimed_inputs == ("lake.orders",)


def test_a_project_whose_hooks_set_options_of_duckdbs(site: Site) -> None:
    """Those that say how its SQL is read hold for a view too, which runs when it is published."""
    options = ["SET preserve_insertion_order = false", "SET default_null_order = 'nulls_first'"]
    files = {
        "dbt_project.yml": PROJECT + f"on-run-start: {options!r}\n",
        "models/first.sql": "SELECT x FROM (VALUES (1), (NULL)) t(x) ORDER BY x LIMIT 1",
        "models/options.sql": "{{ config(materialized='table', pre_hook='SET pivot_limit = 7') }} "
        "SELECT current_setting('pivot_limit')::INTEGER AS n",
    }
    manifest = run(site, files, {"options.first": "main.first", "options.options": "main.options"})
    assert manifest.failure is None, manifest.failure
    assert site.rows("options.first") == [(None,)]
    assert site.rows("options.options") == [(7,)]


def test_a_project_whose_last_hook_keeps_the_results_in_a_table(site: Site) -> None:
    files = {
        "dbt_project.yml": PROJECT
        + 'on-run-start: "CREATE TABLE {{ target.schema }}.results (name VARCHAR, status VARCHAR)"\n'
        + 'on-run-end: "{{ keep(results) }}"\n',
        "macros/keep.sql": "{% macro keep(results) %}{% for each in results %}INSERT INTO {{ target.schema }}.results "
        "VALUES ('{{ each.node.name }}', '{{ each.status }}');{% endfor %}{% endmacro %}",
        "models/one.sql": "SELECT 1 AS one",
        "models/told.sql": "SELECT name, status FROM {{ target.schema }}.results",
    }
    manifest = run(site, files, {"hooks.told": "main.told"})
    assert manifest.failure is None, manifest.failure
    assert set(site.rows("hooks.told")) >= {("one", "success"), ("told", "success")}


ELSEWHERE = {
    "a bucket": ("s3://open-data.example.org/{name}.parquet", "expected a file of a declared input"),
    "a web server": ("read_parquet('https://data.example.org/hits.parquet')", "requires the extension httpfs"),
    "another cloud": ("read_parquet('azure://container/*.parquet')", "requires the extension azure"),
}


@pytest.mark.parametrize(("location", "reason"), ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_a_project_whose_sources_are_elsewhere_is_refused_with_the_reason(
    site: Site, location: str, reason: str
) -> None:
    files = {
        "dbt_project.yml": PROJECT,
        "models/sources.yml": "sources:\n  - name: out\n    tables:\n      - name: hits\n        meta:\n"
        f'          external_location: "{location}"\n',
        "models/hits.sql": "SELECT * FROM {{ source('out', 'hits') }}",
    }
    message = refused(run(site, files, {"elsewhere.hits": "main.hits"}))
    assert reason in message
    assert "nothing is fetched at run time: name the data as an input, or commit it" in message
    assert "runner/engines" not in message, "no traceback of ours"


def test_a_project_that_needs_a_plugin_of_its_profile_is_refused_with_the_reason(site: Site) -> None:
    files = {
        "dbt_project.yml": PROJECT,
        "models/sources.yml": "sources: [{name: out, config: {plugin: delta}, tables: [{name: hits}]}]\n",
        "models/hits.sql": "SELECT * FROM {{ source('out', 'hits') }}",
    }
    message = refused(run(site, files, {"plugins.hits": "main.hits"}))
    assert "Plugin delta not found" in message
    assert "profiles.yml is not read" in message
