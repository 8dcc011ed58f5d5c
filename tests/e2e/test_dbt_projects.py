"""dbt projects that nobody here wrote: each feature works unmodified, or is refused by a line that names it.

What can live together does: the job that builds a project is made once, and each test looks at its own part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pytest

from runner.model.errors import Category, Failure
from runner.model.manifest import Manifest, Step
from tests.support.site import Site

CONTRACT = """
apiVersion: v3.1.0
kind: DataContract
id: people
version: 1.0.0
status: active
schema:
  - name: people
    logicalType: object
    properties:
      - {name: id, logicalType: integer, physicalType: INTEGER, required: true}
      - {name: name, logicalType: string, physicalType: VARCHAR}
"""
PROJECT = "name: small\nprofile: small\nversion: 1.0.0\n"
SOURCES = "sources: [{name: staging, schema: staging, tables: [{name: people}]}]\n"
PEOPLE = "{{ source('staging', 'people') }}"


@pytest.fixture(scope="module", autouse=True)
def people(site: Site) -> None:
    """`staging.people` with Ada and Grace."""
    commit = site.commit({"people.odcs.yaml": CONTRACT})
    url = site.serve("people.csv", "id,name\n1,Ada\n2,Grace\n")
    fetched = site.spec(
        commit,
        "extract",
        {"kind": "extract", "sources": [{"name": "people", "url": url}]},
        outputs=[{"dataset": "landing/people", "from": "people"}],
    )
    loaded = site.spec(
        commit,
        "load",
        {"kind": "load", "contract": "people.odcs.yaml", "format": {"type": "csv"}},
        inputs=[{"dataset": "landing/people"}],
        outputs=[{"dataset": "staging.people"}],
    )
    assert site.end(fetched).failure is None
    assert site.end(loaded).failure is None


def run(
    site: Site,
    files: Mapping[str, str],
    outputs: Mapping[str, str],
    *,
    inputs: bool = True,
    path: str = ".",
    steps: list[dict[str, Any]] | None = None,
    **work: Any,
) -> Manifest:
    """Run a project; `outputs` are tables by the relation that each takes."""
    spec = site.spec(
        site.commit(files),
        "transform",
        {"kind": "dbt", "steps": steps or [{"command": "build"}], **work},
        inputs=[{"dataset": "staging.people"}] if inputs else [],
        outputs=[{"dataset": dataset, "from": relation} for dataset, relation in outputs.items()],
    )
    spec = spec.model_copy(update={"logic": spec.logic.model_copy(update={"path": path})})
    return site.end(spec)


def step(manifest: Manifest, name: str) -> Step:
    """The last step of this node."""
    found = [each for each in manifest.report.steps if each.name == name or each.name.startswith(f"{name}.")]
    assert found, [each.name for each in manifest.report.steps]
    return found[-1]


def claimed(manifest: Manifest, dataset: str) -> tuple[str, ...] | None:
    (output,) = [each for each in manifest.outputs if each.dataset == dataset]
    return output.claimed_inputs


def failure_of(manifest: Manifest) -> Failure:
    assert manifest.failure is not None
    assert not [output for output in manifest.outputs if output.snapshot is not None]
    return manifest.failure


EVERYTHING = {
    "teams/people/dbt_project.yml": PROJECT
    + """
flags: {send_anonymous_usage_stats: true, partial_parse: true, fail_fast: true, write_json: false, use_colors: true}
on-run-start: ["CREATE TABLE {{ target.schema }}.hook_log AS SELECT 'began' AS event"]
on-run-end: ["INSERT INTO {{ target.schema }}.hook_log VALUES ('ended')"]
""",
    # Neither of these may reach the run.
    "teams/people/profiles.yml": "small: {target: theirs, outputs: {theirs: {type: duckdb, path: theirs.duckdb}}}",
    "teams/people/.env": "DBT_TARGET=theirs\nFROM_DOTENV=theirs\n",
    "teams/people/macros/names.sql": """
{% macro shout(column) %}upper({{ column }}) || '{{ var("mark") }}'{% endmacro %}
{% macro generate_schema_name(custom, node) %}{{ custom or target.schema }}{% endmacro %}
""",
    "teams/people/models/sources.yml": SOURCES,
    "teams/people/models/stg.sql": f"{{{{ config(materialized='ephemeral') }}}} SELECT id, name FROM {PEOPLE}",
    "teams/people/models/adults.sql": "{{ config(materialized='table') }} "
    "SELECT id, {{ shout('name') }} AS name FROM {{ ref('stg') }}",
    "teams/people/models/settings.sql": """{{ config(materialized='table') }} SELECT
  '{{ target.name }}' AS target, '{{ target.schema }}' AS schema, '{{ target.database }}' AS database,
  '{{ target.profile_name }}' AS profile, '{{ env_var("GIVEN") }}' AS given,
  '{{ env_var("DBT_TARGET", "unset") }}' AS of_spec, '{{ env_var("FROM_DOTENV", "unset") }}' AS dotenv,
  '{{ env_var("STRAY", "unset") }}' AS stray, '{{ env_var("DBT_STRAY", "unset") }}' AS dbt_stray""",
    "teams/people/models/hooked.sql": "SELECT event FROM {{ target.schema }}.hook_log",
    "teams/people/models/grown.sql": "{{ config(materialized='incremental', unique_key='id') }} "
    "SELECT id, name FROM {{ ref('adults') }} {% if is_incremental() %}WHERE false{% endif %}",
    "teams/people/models/gold.sql": "{{ config(schema='best') }} "
    "SELECT count(*)::INTEGER AS n FROM {{ ref('adults') }}",
    "teams/people/models/outside.sql": "{{ config(materialized='external') }} SELECT id FROM {{ ref('adults') }}",
    "teams/people/models/later.py": "def model(dbt, session):\n"
    "    dbt.config(materialized='table')\n"
    "    return dbt.ref('adults').filter('id > 1')\n",
    "teams/people/models/pets_v1.sql": "SELECT 1 AS legs",
    "teams/people/models/pets_v2.sql": "SELECT 4 AS legs, 'cat' AS name",
    "teams/people/models/models.yml": """
models:
  - name: adults
    columns:
      - {name: name, data_tests: [{accepted_values: {arguments: {values: [nobody]}, config: {severity: warn}}}]}
  - name: pets
    latest_version: 2
    versions: [{v: 1}, {v: 2}]
unit_tests:
  - name: gold_counts
    model: gold
    given: [{input: ref('adults'), rows: [{id: 7, name: x}, {id: 8, name: y}, {id: 9, name: z}]}]
    expect: {rows: [{n: 3}]}
""",
    "teams/people/snapshots/history.yml": """
snapshots:
  - {name: history, relation: ref('adults'), config: {unique_key: id, strategy: check, check_cols: all}}
""",
}
OUTPUTS = {
    "all.adults": "dev_ada.adults",
    "all.settings": "dev_ada.settings",
    "all.hooked": "dev_ada.hooked",
    "all.grown": "dev_ada.grown",
    "all.gold": "best.gold",
    "all.outside": "dev_ada.outside",
    "all.later": "dev_ada.later",
    "all.pets": "dev_ada.pets_v2",
    "all.history": "dev_ada.history",
}
ADULTS = [(1, "ADA!"), (2, "GRACE!")]


@pytest.fixture(scope="module")
def everything(site: Site) -> Manifest:
    """One project of all that needs no job of its own, in a sub-folder, beside a worker's own `DBT_*`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DBT_TARGET", "DBT_PROFILE", "DBT_FAIL_FAST", "DBT_STRAY", "STRAY", "DBT_ENGINE_TARGET"):
            patch.setenv(name, "stray")
        manifest = run(
            site,
            EVERYTHING,
            OUTPUTS,
            path="teams/people",
            steps=[{"command": "compile"}, {"command": "docs"}, {"command": "build", "full_refresh": True}],
            vars={"mark": "!"},
            # dbt would take its target, and its way of failing, from these.
            env={"GIVEN": "given", "DBT_TARGET": "of the spec", "DBT_EMPTY": "1"},
            target="night",
            schema="dev_ada",
            database="people_db",
        )
    assert manifest.failure is None, manifest.failure
    return manifest


class TestEverything:
    def test_target_schema_database_and_profile_are_the_specs_and_nothing_else_reaches_the_project(
        self, site: Site, everything: Manifest
    ) -> None:
        assert site.rows("all.settings") == [
            ("night", "dev_ada", "people_db", "small", "given", "of the spec", "unset", "unset", "unset")
        ]

    def test_macros_vars_and_an_ephemeral_model_in_the_chain(self, site: Site, everything: Manifest) -> None:
        assert sorted(site.rows("all.adults")) == ADULTS
        assert claimed(everything, "all.adults") == ("staging.people",)
        assert step(everything, "model.small.adults").rows == 2

    def test_hooks_run_before_and_after(self, site: Site, everything: Manifest) -> None:
        # A view is read when it is published, which is after the end.
        assert sorted(site.rows("all.hooked")) == [("began",), ("ended",)]
        assert claimed(everything, "all.hooked") == ()
        assert [each.status for each in everything.report.steps if each.kind == "operation"] == ["success"] * 2

    def test_an_incremental_model_is_built_in_full_the_first_time(self, site: Site, everything: Manifest) -> None:
        assert sorted(site.rows("all.grown")) == ADULTS
        assert step(everything, "model.small.grown").rows == 2

    def test_a_custom_schema_by_the_projects_own_macro(self, site: Site, everything: Manifest) -> None:
        assert site.rows("all.gold") == [(2,)]
        assert claimed(everything, "all.gold") == ("staging.people",)

    def test_an_external_model_is_published_as_the_rows_of_its_file(self, site: Site, everything: Manifest) -> None:
        assert sorted(site.rows("all.outside")) == [(1,), (2,)]

    def test_a_python_model(self, site: Site, everything: Manifest) -> None:
        assert site.rows("all.later") == [(2, "GRACE!")]
        assert claimed(everything, "all.later") == ("staging.people",)

    def test_versions_of_a_model_are_relations_of_their_own(self, site: Site, everything: Manifest) -> None:
        assert site.rows("all.pets") == [(4, "cat")]
        assert claimed(everything, "all.pets") == ()

    def test_a_snapshot_begins_its_history(self, site: Site, everything: Manifest) -> None:
        assert sorted(site.rows("all.history", "id, name, dbt_valid_to")) == [(*row, None) for row in ADULTS]
        assert step(everything, "snapshot.small.history").rows == 2

    def test_a_unit_test_is_a_step(self, everything: Manifest) -> None:
        assert step(everything, "unit_test.small.gold.gold_counts").status == "pass"

    def test_a_test_of_severity_warn_is_told_and_stops_nothing(self, everything: Manifest) -> None:
        warned = step(everything, "test.small.accepted_values_adults_name__nobody")
        assert (warned.status, warned.rows) == ("warn", 2)

    def test_compile_and_docs_are_steps_too(self, everything: Manifest) -> None:
        assert everything.report.steps[0].kind == "compile"
        assert step(everything, "docs").status == "success"

    def test_what_dbt_says_of_its_work_is_kept_beside_the_record(self, site: Site, everything: Manifest) -> None:
        kept = {each.uri.rpartition("/")[2]: each for each in everything.report.artifacts}
        results = {f"run_results.{number}.json" for number, _ in enumerate(everything.spec.work.steps, start=1)}  # type: ignore[union-attr]
        assert set(kept) == {"manifest.json", "catalog.json", "index.html", *results}
        for each in kept.values():
            body = site.app.objects.get(each.uri.removeprefix(site.app.objects.uri("")))
            assert body is not None
            assert (len(body), hashlib.sha256(body).hexdigest()) == (each.bytes, each.sha256)


def test_seeds_as_sources_and_packages_of_the_repository(site: Site) -> None:
    """`seed` comes before `build`; a package is committed where .gitignore hides it, another is a folder above."""
    manifest = run(
        site,
        {
            ".gitignore": "dbt_packages/\ntarget/\n",
            "shared/dbt_project.yml": "name: shared\nversion: 1.0.0\n",
            "shared/packages.yml": "packages: [{local: ../shared/deeper}]",
            "shared/deeper/dbt_project.yml": "name: deeper\nversion: 1.0.0\n",
            "shared/deeper/macros/two.sql": "{% macro two() %}2{% endmacro %}",
            "shared/macros/twice.sql": "{% macro twice(x) %}{{ deeper.two() }} * {{ x }}{% endmacro %}",
            "dbt/dbt_project.yml": "name: small\nprofile: \"{{ env_var('PROFILE') }}\"\nversion: 1.0.0\n",
            "dbt/packages.yml": "packages: [{local: ../shared}, {package: them/vendored, version: 1.0.0}]",
            "dbt/dbt_packages/vendored/dbt_project.yml": "name: vendored\nversion: 1.0.0\n",
            "dbt/dbt_packages/vendored/macros/plus.sql": "{% macro plus(x, y) %}{{ x }} + {{ y }}{% endmacro %}",
            "data/colours.csv": "colour\nred\n",
            "dbt/models/colours.sql": "SELECT colour FROM read_csv('../data/colours.csv')",
            "dbt/seeds/raw_pets.csv": "id,legs\n1,4\n2,2\n",
            "dbt/models/sources.yml": """
sources:
  - {name: raw, schema: main, tables: [{name: raw_pets}]}
  - {name: files, config: {meta: {external_location: "../data/{name}.csv"}}, tables: [{name: colours}]}
""",
            "dbt/models/painted.sql": "SELECT colour FROM {{ source('files', 'colours') }}",
            "dbt/models/pets.sql": "SELECT id, {{ vendored.plus(shared.twice('legs'), 1) }} AS n "
            "FROM {{ source('raw', 'raw_pets') }}",
        },
        {
            "seeds.pets": "main.pets",
            "seeds.raw_pets": "main.raw_pets",
            "seeds.colours": "main.colours",
            "seeds.painted": "main.painted",
        },
        inputs=False,
        path="dbt",
        env={"PROFILE": "theirs"},
        steps=[
            {"command": "snapshot", "allow_empty": True},
            {"command": "seed"},
            {"command": "build", "exclude": ["resource_type:seed"]},
        ],
    )
    assert manifest.failure is None, manifest.failure
    assert sorted(site.rows("seeds.pets")) == [(1, 9), (2, 5)]
    assert site.rows("seeds.colours") == [("red",)]
    assert [(each.name, each.status, each.rows) for each in manifest.report.steps] == [
        ("seed.small.raw_pets", "success", 2),
        ("model.small.colours", "success", None),
        ("model.small.painted", "success", None),
        ("model.small.pets", "success", None),
    ]
    assert site.rows("seeds.painted") == [("red",)]
    # The project's own seed and file are no inputs, though the project calls them sources.
    assert claimed(manifest, "seeds.pets") == ()
    assert claimed(manifest, "seeds.painted") == ()
    assert manifest.report.inputs == ()


def test_a_second_step_finds_what_the_first_one_made_and_full_refresh_makes_it_anew(site: Site) -> None:
    """Each way that dbt-duckdb has of changing a table works on the locked connection."""
    again = "{{ 2 if is_incremental() else 1 }} AS pass"
    models = {
        "kept": "{{ config(materialized='incremental') }} SELECT " + again,
        "fresh": "{{ config(materialized='incremental') }} SELECT " + again,
        "merged": "{{ config(materialized='incremental', unique_key='id', incremental_strategy='merge') }} "
        f"SELECT 7 AS id, {again}",
        "swapped": "{{ config(materialized='incremental', unique_key='id', incremental_strategy='delete+insert') }} "
        f"SELECT 7 AS id, {again}",
        "promised": "{{ config(materialized='table', contract={'enforced': true}, persist_docs={'relation': true}) }} "
        "SELECT 1 AS id",
    }
    manifest = run(
        site,
        {
            "dbt_project.yml": PROJECT,
            "packages.yml": "# none yet\n",
            "models/models.yml": """
models:
  - name: promised
    description: It's promised
    columns: [{name: id, data_type: integer, constraints: [{type: not_null}]}]
  - name: merged
    columns:
      - name: pass
        data_tests:
          - accepted_values: {arguments: {values: [9]}, config: {severity: warn, store_failures: true}}
snapshots:
  - {name: seen, relation: ref('merged'), config: {unique_key: id, strategy: check, check_cols: [pass]}}
""",
            **{f"models/{name}.sql": sql for name, sql in models.items()},
        },
        {f"passes.{name}": f"main.{name}" for name in (*models, "seen")},
        inputs=False,
        steps=[
            {"command": "build"},
            {"command": "build", "exclude": ["fresh"]},
            {"command": "run", "select": ["fresh"], "full_refresh": True},
        ],
    )
    assert manifest.failure is None, manifest.failure
    assert sorted(site.rows("passes.kept")) == [(1,), (2,)]
    assert site.rows("passes.fresh") == [(1,)]
    assert site.rows("passes.merged") == [(7, 2)]
    assert site.rows("passes.swapped") == [(7, 2)]
    assert site.rows("passes.promised") == [(1,)]
    assert sorted((of, until is None) for of, until in site.rows("passes.seen", "pass, dbt_valid_to")) == [
        (1, False),
        (2, True),
    ]


def test_an_ephemeral_output_is_refused(site: Site) -> None:
    files = {"dbt_project.yml": PROJECT, "models/two.sql": "SELECT * FROM {{ ref('one') }}"}
    files["models/one.sql"] = "{{ config(materialized='ephemeral') }} SELECT 1 AS one"
    failure = failure_of(run(site, files, {"none.one": "main.one"}, inputs=False))
    assert failure.category is Category.LOGIC
    assert failure.subject == "model.small.one"
    assert "expected a relation, got the ephemeral model" in failure.message


def test_a_python_model_that_needs_what_the_image_lacks_is_told_so(site: Site) -> None:
    model = "def model(dbt, session):\n    import pandas_of_theirs\n    return None\n"
    manifest = run(
        site,
        {
            "dbt_project.yml": PROJECT + "flags: {fail_fast: true}\n",
            "models/a.py": model,
            "models/b.sql": "SELECT 1 AS b",
        },
        {"none.b": "main.b"},
        inputs=False,
    )
    assert failure_of(manifest).category is Category.LOGIC
    message = step(manifest, "model.small.a").message
    assert message is not None
    assert "No module named 'pandas_of_theirs'" in message


def test_a_test_of_severity_error_and_a_unit_test_that_fails_publish_nothing(site: Site) -> None:
    manifest = run(
        site,
        {
            "dbt_project.yml": PROJECT,
            "models/sources.yml": SOURCES,
            "models/adults.sql": f"SELECT id, name FROM {PEOPLE}",
            "models/twice.sql": "SELECT 2 * id AS id FROM {{ ref('adults') }}",
            "models/models.yml": """
models: [{name: adults, columns: [{name: name, data_tests: [{accepted_values: {arguments: {values: [Ada]}}}]}]}]
unit_tests:
  - name: wrong
    model: adults
    given: [{input: "source('staging', 'people')", rows: [{id: 1, name: x}]}]
    expect: {rows: [{id: 2, name: x}]}
""",
        },
        {"guarded.adults": "main.adults"},
        steps=[
            {"command": "run"},
            {"command": "test", "select": ["accepted_values*", "test_type:unit"]},
            {"command": "build"},
        ],
    )
    assert failure_of(manifest).category is Category.DATA
    assert step(manifest, "test.small.accepted_values_adults_name__Ada").rows == 1
    assert step(manifest, "unit_test.small.adults.wrong").status == "fail"
    # The step after the one that failed was not begun.
    assert len(manifest.report.steps) == 4


def test_a_step_that_selects_nothing_is_refused(site: Site) -> None:
    files = {"dbt_project.yml": PROJECT, "models/one.sql": "SELECT 1 AS one"}
    manifest = run(
        site, files, {"none.one": "main.one"}, inputs=False, steps=[{"command": "run", "select": ["nothing"]}]
    )
    failure = failure_of(manifest)
    assert failure.category is Category.LOGIC
    assert "dbt run: expected the step to select a node, got none" in failure.message


FORBIDDEN = {
    "installs": ("pre_hook", "INSTALL spatial"),
    "attaches": ("pre_hook", "ATTACH ''/etc/other.duckdb'' AS other"),
    "sets": ("pre_hook", "SET threads = 8"),
    "unlocks": ("pre_hook", "SET enable_external_access = true"),
    "loads": ("pre_hook", "LOAD httpfs"),
    "reads": ("pre_hook", "CREATE TABLE passwd AS FROM read_csv(''/etc/passwd'')"),
    "writes": ("location", "../../outside.parquet"),
}


def test_what_a_project_may_not_do_is_named_with_its_statement(site: Site) -> None:
    files = {"dbt_project.yml": PROJECT + "on-run-end: [\"PRAGMA memory_limit = '1TB'\"]\n"}
    for name, (key, value) in FORBIDDEN.items():
        kind = "external" if key == "location" else "table"
        quoted = value.replace("''", "\\'")
        files[f"models/{name}.sql"] = f"{{{{ config(materialized='{kind}', {key}='{quoted}') }}}} SELECT 1 AS one"
    manifest = run(site, files, {"none.forbidden": "main.sets"}, inputs=False)
    assert failure_of(manifest).category is Category.LOGIC
    for name, (_, value) in FORBIDDEN.items():
        failed = step(manifest, f"model.small.{name}")
        assert failed.status == "error"
        assert failed.message is not None
        assert value.replace("''", "'") in failed.message, failed.message
    (hook,) = [each for each in manifest.report.steps if each.kind == "operation"]
    assert hook.message is not None
    assert "PRAGMA memory_limit = '1TB'" in hook.message
