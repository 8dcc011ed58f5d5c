"""`publish: passing`: what a failed node or test guards is kept back, all else published, and the run is failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from runner.model.errors import Category
from runner.model.manifest import Manifest
from tests.support.site import Site

PROJECT = "name: small\nprofile: small\nversion: 1.0.0\n"
GOOD = {
    "models/good.sql": "SELECT 1 AS id",
    "models/related.sql": "{{ config(materialized='table') }} SELECT id FROM {{ ref('good') }}",
    "models/warned.sql": "SELECT 3 AS id",
}
FILES = {
    **GOOD,
    "dbt_project.yml": PROJECT,
    "seeds/raw.csv": "id\n1\n1\n",
    "models/crashes.sql": "{{ config(materialized='table') }} SELECT error('no') AS id",
    "models/twins.sql": "SELECT 1 AS id UNION ALL SELECT 1",
    "models/below_twins.sql": "SELECT id FROM {{ ref('twins') }}",
    "models/fleeting.sql": "{{ config(materialized='ephemeral') }} SELECT 3 AS id",
    "models/below_fleeting.sql": "SELECT id FROM {{ ref('fleeting') }}",
    "models/of_source.sql": "SELECT id FROM {{ source('raw', 'raw') }}",
    "models/half_checked.sql": "SELECT 7 AS id",
    "models/wrong_unit.sql": "SELECT id + 1 AS id FROM {{ ref('good') }}",
    "models/models.yml": """
sources: [{name: raw, schema: main, tables: [{name: raw, columns: [{name: id, data_tests: [unique]}]}]}]
models:
  - {name: good, columns: [{name: id, data_tests: [unique]}]}
  - name: warned
    columns: [{name: id, data_tests: [{accepted_values: {arguments: {values: [9]}, config: {severity: warn}}}]}]
  - {name: twins, columns: [{name: id, data_tests: [unique]}]}
  - {name: fleeting, columns: [{name: id, data_tests: [{accepted_values: {arguments: {values: [9]}}}]}]}
  - name: half_checked
    columns: [{name: id, data_tests: [{relationships: {arguments: {to: ref('crashes'), field: id}}}]}]
unit_tests:
  - {name: wrong, model: wrong_unit, given: [{input: ref('good'), rows: [{id: 1}]}], expect: {rows: [{id: 9}]}}
""",
}
BAD = ("crashes", "twins", "below_twins", "below_fleeting", "of_source", "half_checked", "wrong_unit")
BUILD: list[dict[str, Any]] = [{"command": "seed"}, {"command": "build", "exclude": ["resource_type:seed"]}]
RUN_AND_TEST: list[dict[str, Any]] = [{"command": "seed"}, {"command": "run"}, {"command": "test"}]


def run(
    site: Site,
    files: Mapping[str, str],
    namespace: str,
    *names: str,
    publish: str = "passing",
    steps: list[dict[str, Any]] | None = None,
) -> Manifest:
    spec = site.spec(
        site.commit(files),
        "transform",
        {"kind": "dbt", "steps": steps or [{"command": "build"}]},
        outputs=[{"dataset": f"{namespace}.{name}", "from": f"main.{name}"} for name in names],
        publish=publish,
    )
    return site.end(spec)


def landed(manifest: Manifest) -> list[str]:
    return sorted(each.dataset for each in manifest.outputs if each.snapshot is not None)


@pytest.mark.parametrize("steps", [BUILD, RUN_AND_TEST], ids=["build", "run and test"])
def test_what_passed_is_published_and_listed_and_the_run_is_failed(site: Site, steps: list[dict[str, Any]]) -> None:
    """Also where the tests are a step after the one in which a model failed: that step is begun all the same."""
    namespace = f"passing_{len(steps)}"
    manifest = run(site, FILES, namespace, *(name.split("/")[1][:-4] for name in GOOD), *BAD, steps=steps)
    assert landed(manifest) == [f"{namespace}.good", f"{namespace}.related", f"{namespace}.warned"]
    assert manifest.failure is not None
    assert manifest.failure.category is Category.LOGIC
    assert "model.small.crashes" in manifest.failure.message
    assert site.rows(f"{namespace}.related") == [(1,)]
    assert {each.status for each in manifest.report.steps} >= {"success", "error", "fail", "warn", "pass"}


def test_without_it_the_same_project_publishes_nothing(site: Site) -> None:
    manifest = run(site, FILES, "all_or_none", "good", publish="all", steps=BUILD)
    assert manifest.failure is not None
    assert landed(manifest) == []


def test_a_run_of_which_all_passed_succeeds_as_ever(site: Site) -> None:
    manifest = run(site, {"dbt_project.yml": PROJECT, **GOOD}, "passed", "good", "related", "warned")
    assert manifest.failure is None
    assert landed(manifest) == ["passed.good", "passed.related", "passed.warned"]


def test_a_relation_that_a_later_step_failed_to_rebuild_is_not_published(site: Site) -> None:
    files = {
        "dbt_project.yml": PROJECT,
        "models/once.sql": "{{ config(materialized='incremental') }} "
        "SELECT {% if is_incremental() %}error('no'){% else %}1{% endif %} AS id",
        "models/other.sql": "SELECT 2 AS id",
    }
    manifest = run(site, files, "rebuilt", "once", "other", steps=[{"command": "run"}, {"command": "run"}])
    assert [each.status for each in manifest.report.steps] == ["success", "success", "error", "success"]
    assert landed(manifest) == ["rebuilt.other"]


def test_where_a_hook_failed_nothing_is_published(site: Site) -> None:
    """It can have been to change any relation."""
    project = PROJECT + "on-run-end: [\"SELECT error('no')\"]\n"
    manifest = run(site, {"dbt_project.yml": project, **GOOD}, "hooked", "good")
    assert manifest.failure is not None
    assert landed(manifest) == []


def test_where_the_first_failure_ends_a_step_what_was_not_run_is_not_published(site: Site) -> None:
    files = {
        "dbt_project.yml": PROJECT + "flags: {fail_fast: true}\n",
        "models/a.sql": "{{ config(materialized='table') }} SELECT error('no') AS id",
        "models/z.sql": "SELECT 1 AS id",
        "models/models.yml": "models: [{name: z, columns: [{name: id, data_tests: [not_null]}]}]\n",
    }
    manifest = run(site, files, "fast", "a", "z")
    assert manifest.failure is not None
    assert landed(manifest) == []


def test_an_output_that_cannot_be_published_at_all_keeps_all_back_and_the_steps_are_told(site: Site) -> None:
    files = {
        "dbt_project.yml": PROJECT,
        "models/good.sql": "SELECT 1 AS id",
        "models/bad.sql": "SELECT 170141183460469231731687303715884105727::HUGEINT AS id",
    }
    manifest = run(site, files, "typed", "good", "bad", publish="all")
    assert manifest.failure is not None
    assert manifest.failure.category is Category.SCHEMA
    assert landed(manifest) == []
    assert [each.status for each in manifest.report.steps] == ["success", "success"]
