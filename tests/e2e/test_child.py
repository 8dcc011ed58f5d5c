"""The engine's child process: no credentials, no sockets of its own, its inputs by the broker and in no other way."""

from __future__ import annotations

import os

from runner.model.errors import Category
from runner.model.manifest import State, Walls
from runner.model.spec import Resources
from runner.sandbox import landlock
from tests.e2e.test_bad_input import ADULTS, PROJECT, SOURCES, dbt, extract, failed, load, query
from tests.support.documents import PEOPLE_CONTRACT
from tests.support.site import Site


def test_every_engine_works_behind_the_walls_and_the_record_says_behind_which(site: Site) -> None:
    commit = site.commit(
        {
            "contracts/people.odcs.yaml": PEOPLE_CONTRACT,
            "queries/count.sql": "SELECT count(*)::BIGINT AS people FROM staging.people",
            "dbt_project.yml": PROJECT,
            "models/sources.yml": SOURCES,
            "models/adults.sql": ADULTS,
        }
    )
    expected = Walls(landlock=landlock.abi(), account="own" if os.geteuid() == 0 else "worker")
    for spec, walls in (
        (extract(site, commit, site.serve("people.csv", "id,name\n1,Ada\n2,Grace\n")), None),
        (load(site, commit), expected),
        (dbt(site, commit), expected),
        (query(site, commit), expected),
    ):
        manifest = site.end(spec)
        assert manifest.state is State.SUCCEEDED, manifest.failure
        assert manifest.report.software is not None
        assert manifest.report.software.walls == walls
    assert site.rows("marts.adults") == [(1, "Ada"), (2, "Grace")]
    assert site.rows("marts.people_count") == [(2,)]


def test_the_child_has_no_credential_in_its_environment(site: Site) -> None:
    """SQL can read the environment: DuckDB's getenv works in the CLI only, so a dbt macro looks instead."""
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "test"
    model = "{{ config(materialized='table') }} SELECT '{{ env_var('AWS_SECRET_ACCESS_KEY', 'none') }}' AS secret"
    commit = site.commit({"dbt_project.yml": PROJECT, "models/adults.sql": model})
    spec = dbt(site, commit).model_copy(update={"inputs": ()})
    manifest = site.end(spec)
    assert manifest.state is State.SUCCEEDED, manifest.failure
    assert site.rows("marts.adults") == [("none",)]


def test_a_file_of_no_declared_input_is_refused_though_it_is_in_the_lake(site: Site) -> None:
    commit = site.commit({"contracts/people.odcs.yaml": PEOPLE_CONTRACT})
    assert site.end(extract(site, commit, site.serve("people.csv", "id,name\n1,Ada\n"))).failure is None
    landed = site.end(load(site, commit)).outputs[0].files[0].uri
    sneaking = site.commit({"queries/count.sql": f"SELECT * FROM read_parquet('{landed}')"})
    spec = query(site, sneaking).model_copy(update={"inputs": ()})
    failed(site.end(spec), Category.LOGIC, "a file of no declared input")


def test_a_child_that_is_killed_costs_an_attempt_and_is_named(site: Site) -> None:
    """A Python model that kills its own process, as the kernel does when memory runs out."""
    model = (
        "import os, signal\n\n"
        "def model(dbt, session):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return session.table('x')\n"
    )
    commit = site.commit({"dbt_project.yml": PROJECT, "models/adults.py": model})
    manifest = site.end(dbt(site, commit).model_copy(update={"inputs": (), "max_attempts": 1}))
    assert manifest.failure is not None
    assert manifest.failure.category is Category.INFRASTRUCTURE
    assert "SIGKILL" in manifest.failure.message
    assert manifest.outputs == ()


def test_work_that_does_not_end_is_ended(site: Site) -> None:
    commit = site.commit(
        {"queries/count.sql": "SELECT count(*)::BIGINT AS n FROM range(10000000000000) a(i) WHERE i % 7 = 3"}
    )
    resources = Resources(timeout_s=3)
    spec = query(site, commit).model_copy(update={"inputs": (), "resources": resources})
    failed(site.end(spec), Category.LOGIC, "expected the work to end within 3 s")
