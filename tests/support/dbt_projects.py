"""A dbt project of everything, jobs on it, and what of dbt's own account of it differs between any two runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.engines.dbt_project import PARSED
from runner.model.messages import Job, JobInput, JobOutput
from runner.model.spec import DbtStep, DbtWork, Output
from tests.support.engine_inputs import job_of

EVERYTHING: dict[str, str] = {
    "teams/people/dbt_project.yml": """
name: small
profile: "{{ env_var('PROFILE') }}"
version: 1.0.0
vars: {mark: "!", suffix: "{{ env_var('SUFFIX', 'none') }}"}
models: {small: {+meta: {owner: "{{ env_var('OWNER') }}"}}}
on-run-start: ["CREATE TABLE {{ target.schema }}.hook_log AS SELECT 'began' AS event"]
on-run-end: ["INSERT INTO {{ target.schema }}.hook_log VALUES ('ended')"]
""",
    "teams/people/packages.yml": "packages: [{local: ../../shared}, {package: them/vendored, version: 1.0.0}]",
    "teams/people/dbt_packages/vendored/dbt_project.yml": "name: vendored\nversion: 1.0.0\n",
    "teams/people/dbt_packages/vendored/macros/plus.sql": "{% macro plus(x, y) %}{{ x }} + {{ y }}{% endmacro %}",
    "teams/people/dbt_packages/vendored/models/theirs.sql": "SELECT 1 AS one",
    "teams/people/dbt_packages/vendored/seeds/their_seed.csv": "id\n1\n",
    "shared/dbt_project.yml": "name: shared\nversion: 1.0.0\n",
    "shared/macros/twice.sql": "{% macro twice(x) %}2 * {{ x }}{% endmacro %}",
    "data/colours.csv": "colour\nred\n",
    "teams/people/macros/names.sql": """
{% macro shout(column) %}upper({{ column }}) || '{{ var("mark") }}'{% endmacro %}
{% macro generate_schema_name(custom, node) %}{{ custom or target.schema }}{% endmacro %}
{% macro generate_alias_name(custom, node) -%}
{{ custom or node.name ~ ('_v' ~ node.version if node.version else '') }}
{%- endmacro %}
{% test positive(model, column_name) %}SELECT * FROM {{ model }} WHERE {{ column_name }} <= 0{% endtest %}
""",
    "teams/people/seeds/raw_pets.csv": "id,legs\n1,4\n2,2\n",
    "teams/people/models/sources.yml": """
sources:
  - {name: staging, schema: staging, tables: [{name: people, loaded_at_field: id}]}
  - {name: files, config: {meta: {external_location: "../../data/{name}.csv"}}, tables: [{name: colours}]}
""",
    "teams/people/models/stg.sql": "{{ config(materialized='ephemeral') }} "
    "SELECT id, name FROM {{ source('staging', 'people') }}",
    "teams/people/models/adults.sql": "{{ config(materialized='table', tags=['t', var('mark')]) }} "
    "SELECT id, {{ shout('name') }} AS name FROM {{ ref('stg') }}",
    "teams/people/models/painted.sql": "SELECT colour, '{{ target.path }}' AS place "
    "FROM {{ source('files', 'colours') }}",
    "teams/people/models/legs.sql": "{{ config(materialized='table') }} "
    "SELECT id, {{ vendored.plus(shared.twice('legs'), 1) }} AS n FROM {{ ref('raw_pets') }}",
    "teams/people/models/grown.sql": "{{ config(materialized='incremental', unique_key='id') }} "
    "SELECT id, name FROM {{ ref('adults') }} {% if is_incremental() %}WHERE false{% endif %}",
    "teams/people/models/gold.sql": "{{ config(schema='best', alias='golden_' ~ var('suffix')) }} "
    "SELECT count(*)::INTEGER AS n FROM {{ ref('adults') }}",
    "teams/people/models/later.py": "import os\n\n"
    "def model(dbt, session):\n"
    "    os.chdir('/')\n"
    "    dbt.config(materialized='table')\n"
    "    return dbt.ref('adults').filter('id > 1')\n",
    "teams/people/models/pets_v1.sql": "SELECT 1 AS legs",
    "teams/people/models/pets_v2.sql": "SELECT 4 AS legs, 'cat' AS name",
    "teams/people/models/docs.md": "{% docs adults %}People of *all* kinds.{% enddocs %}",
    "teams/people/models/models.yml": """
models:
  - name: adults
    description: "{{ doc('adults') }}"
    columns:
      - {name: id, data_tests: [unique, positive]}
      - {name: name, data_tests: [{accepted_values: {arguments: {values: [nobody]}, config: {severity: warn}}}]}
  - name: pets
    latest_version: 2
    versions: [{v: 1}, {v: 2}]
unit_tests:
  - name: gold_counts
    model: gold
    given: [{input: ref('adults'), rows: [{id: 7, name: x}, {id: 8, name: y}]}]
    expect: {rows: [{n: 2}]}
exposures:
  - {name: board, type: dashboard, owner: {name: them, email: them@example.org}, depends_on: [ref('gold')]}
""",
    "teams/people/snapshots/history.yml": """
snapshots:
  - {name: history, relation: ref('adults'), config: {unique_key: id, strategy: check, check_cols: all}}
""",
    "teams/people/snapshots/older.sql": "{% snapshot older %}{{ config(unique_key='id', strategy='check', "
    "check_cols=['n']) }} SELECT * FROM {{ ref('legs') }}{% endsnapshot %}",
    "teams/people/tests/two_people.sql": "SELECT count(*) AS n FROM {{ ref('adults') }} HAVING n <> 2",
    "teams/people/analyses/some.sql": "SELECT * FROM {{ ref('adults') }}",
}
OUTPUTS = ("adults", "painted", "legs", "grown", "later", "pets_v2", "history", "hook_log_seen")
EVERYTHING["teams/people/models/hook_log_seen.sql"] = "SELECT event FROM {{ target.schema }}.hook_log"
WORK = DbtWork(
    kind="dbt",
    steps=(DbtStep(command="compile"), DbtStep(command="build", full_refresh=True), DbtStep(command="docs")),
    vars={"mark": "?"},
    env={"PROFILE": "small", "OWNER": "them"},
    target="night",
    schema_="dev_ada",
    database="people_db",
)


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """A commit's files as `<folder>/logic`, and an empty scratch beside them."""
    for name, text in files.items():
        path = folder / "logic" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    for name in ("logic", "scratch/out", "scratch/tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


def job(
    room: Path,
    *,
    path: str = ".",
    work: DbtWork | None = None,
    inputs: tuple[JobInput, ...] = (),
    outputs: Mapping[str, str] | None = None,
) -> Job:
    """`outputs` are tables by the relation that each takes."""
    wanted = [JobOutput(output=Output(dataset=name, from_=relation)) for name, relation in (outputs or {}).items()]
    made = job_of(
        room, work=work or DbtWork(kind="dbt", steps=(DbtStep(command="build"),)), inputs=inputs, outputs=wanted
    )
    return made.model_copy(update={"workspace": str(room / "logic" / path)})


def everything(room: Path, people: JobInput, *, work: DbtWork = WORK) -> Job:
    """A job on the project of everything, whose files are in `room`; with outputs if something is built."""
    builds = any(step.command == "build" for step in work.steps)
    outputs = {f"all.{name}": f"dev_ada.{name}" for name in OUTPUTS if builds}
    return job(room, path="teams/people", work=work, inputs=(people,), outputs=outputs)


def hand_on(parsed: Path, room: Path) -> None:
    """What a worker does with what a parse left: another room gets a copy."""
    shutil.copyfile(parsed, room / "scratch" / PARSED)


def manifest_of(room: Path) -> Any:
    """dbt's manifest of a run, without what is the invocation's own."""
    found = json.loads((room / "scratch/artifacts/manifest.json").read_bytes())
    for name in ("generated_at", "invocation_id", "invocation_started_at", "run_started_at"):
        del found["metadata"][name]
    return without_times(found)


def without_times(value: Any) -> Any:
    """When dbt first saw a node is in each node."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key != "created_at"}
    return [without_times(each) for each in value] if isinstance(value, list) else value
