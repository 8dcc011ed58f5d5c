"""Bad input gets one line that names the thing, what was expected and what came; the right code; and loses nothing."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from runner.model.errors import Category, Failure
from runner.model.manifest import Manifest, State
from runner.model.policy import exit_code
from runner.model.spec import JobSpec, Stage
from tests.support.documents import PEOPLE_CONTRACT
from tests.support.site import Site

PROJECT = "name: small\nprofile: small\nversion: 1.0.0\nmodel-paths: [models]\n"
ADULTS = "{{ config(materialized='table') }} SELECT id, name FROM {{ source('staging', 'people') }}"
SOURCES = """
version: 2
sources:
  - name: staging
    schema: staging
    tables: [{name: people}]
"""


@pytest.fixture(scope="module")
def good_commit(site: Site) -> str:
    """Logic that works, and `staging.people` with two rows made by it."""
    commit = site.commit(
        {
            "contracts/people.odcs.yaml": PEOPLE_CONTRACT,
            "queries/count.sql": "SELECT count(*)::BIGINT AS people FROM staging.people",
            "dbt_project.yml": PROJECT,
            "models/sources.yml": SOURCES,
            "models/adults.sql": ADULTS,
        }
    )
    assert site.end(extract(site, commit, site.serve("people.csv", "id,name\n1,Ada\n2,Grace\n"))).failure is None
    assert site.end(load(site, commit)).failure is None
    return commit


def extract(site: Site, commit: str, url: str, dataset: str = "landing/people") -> JobSpec:
    work = {"kind": "extract", "sources": [{"name": "people", "url": url}]}
    return site.spec(commit, "extract", work, outputs=[{"dataset": dataset, "from": "people"}])


def load(site: Site, commit: str, dataset: str = "landing/people", table: str = "staging.people") -> JobSpec:
    work = {
        "kind": "load",
        "contract": "contracts/people.odcs.yaml",
        "format": {"type": "csv"},
        "max_bad_fraction": 0.5,
    }
    return site.spec(commit, "load", work, inputs=[{"dataset": dataset}], outputs=[{"dataset": table}])


def query(site: Site, commit: str, file: str = "queries/count.sql", table: str = "staging.people") -> JobSpec:
    work = {"kind": "query", "file": file}
    inputs = [{"dataset": table, "as": "staging.people"}]
    return site.spec(commit, "query", work, inputs=inputs, outputs=[{"dataset": "marts.people_count"}])


def dbt(site: Site, commit: str, relation: str = "main.adults") -> JobSpec:
    work = {"kind": "dbt", "steps": [{"command": "build"}]}
    outputs = [{"dataset": f"marts.{relation.split('.')[1]}", "from": relation}]
    return site.spec(commit, "transform", work, inputs=[{"dataset": "staging.people"}], outputs=outputs)


def elsewhere(spec: JobSpec, **logic: str) -> JobSpec:
    """A spec that came past the door, where a person's commit is looked up."""
    return spec.model_copy(update={"logic": spec.logic.model_copy(update=logic)})


def failed(manifest: Manifest, category: Category, *words: str) -> None:
    """Failed for good, with this category, one line that has all these words, and no output published."""
    assert manifest.state is State.FAILED
    assert manifest.failure is not None
    assert manifest.failure.category is category, manifest.failure
    for word in words:
        assert word in manifest.failure.message
    assert "\n" not in manifest.failure.message
    assert exit_code(manifest.failure) == 1
    assert [output.dataset for output in manifest.outputs if not output.quarantine] == []


class TestAtTheDoor:
    """Refused before anything is stored: exit code 2."""

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{", "expected JSON, got"),
            ("[1]", "expected a JSON object, got list"),
            ('{"spec_version": 1, "colour": "red"}', "expected"),
        ],
    )
    def test_what_is_no_spec_is_refused_with_the_reason(self, site: Site, text: str, words: str) -> None:
        (site.folder / "bad.json").write_text(text)
        done = site.run("submit", "bad.json", check=False)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stdout == ""

    def test_an_unknown_key_is_named(self, site: Site, good_commit: str) -> None:
        document = json.loads(query(site, good_commit).to_json()) | {"priority": 3}
        (site.folder / "bad.json").write_text(json.dumps(document))
        done = site.run("submit", "bad.json", check=False)
        assert done.returncode == 2
        assert "priority: expected no such key, got 3" in done.stderr

    def test_a_branch_is_resolved_and_a_missing_one_is_named(self, site: Site, good_commit: str) -> None:
        document = json.loads(query(site, good_commit).to_json())
        document["run_id"] = str(uuid4())
        document["logic"]["commit"] = "nowhere"
        (site.folder / "bad.json").write_text(json.dumps(document))
        done = site.run("submit", "bad.json", check=False)
        assert done.returncode == 2
        assert "nowhere" in done.stderr
        document["logic"]["commit"] = "main"
        (site.folder / "good.json").write_text(json.dumps(document))
        submitted = site.json("submit", "good.json")
        assert submitted["commit"] == good_commit
        assert site.run("work", "query", "--max-jobs", "1").returncode == 0

    def test_a_file_that_is_not_there_is_named(self, site: Site) -> None:
        done = site.run("submit", "nothing.json", check=False)
        assert done.returncode == 2
        assert "nothing.json" in done.stderr

    def test_a_message_that_is_no_spec_goes_to_the_dead_letter_queue_with_its_reason(self, site: Site) -> None:
        site.app.queue.send(Stage.QUERY, "not a spec")
        (outcome,) = site.app.worker().work(Stage.QUERY, max_jobs=1, idle_timeout_s=5)
        assert isinstance(outcome, Failure)
        assert outcome.category is Category.SPEC
        sqs = site.app.aws.sqs()
        url = sqs.get_queue_url(QueueName=f"{site.settings.queue_prefix}query-dlq")["QueueUrl"]
        (message,) = sqs.receive_message(QueueUrl=url, MessageAttributeNames=["All"], WaitTimeSeconds=5)["Messages"]
        assert message["Body"] == "not a spec"
        assert "expected JSON" in message["MessageAttributes"]["reason"]["StringValue"]


class TestLogic:
    def test_a_commit_that_is_not_there(self, site: Site, good_commit: str) -> None:
        failed(site.end(elsewhere(query(site, good_commit), commit="f" * 40)), Category.LOGIC, "f" * 40, site.repo_url)

    def test_a_repository_that_is_not_there(self, site: Site, good_commit: str) -> None:
        missing = f"{site.portal.url}/git/nothing.git"
        spec = elsewhere(query(site, good_commit), repo=missing, commit="e" * 40)
        failed(site.end(spec), Category.LOGIC, missing)

    def test_an_sql_file_that_is_not_there(self, site: Site, good_commit: str) -> None:
        failed(site.end(query(site, good_commit, file="queries/none.sql")), Category.LOGIC, "queries/none.sql")

    def test_sql_that_fails(self, site: Site, good_commit: str) -> None:
        commit = site.commit({"queries/count.sql": "SELECT nope FROM staging.people"})
        failed(site.end(query(site, commit)), Category.LOGIC, "queries/count.sql", "nope")

    def test_two_statements(self, site: Site, good_commit: str) -> None:
        commit = site.commit({"queries/count.sql": "SELECT 1 AS a; SELECT 2 AS b"})
        failed(site.end(query(site, commit)), Category.LOGIC, "expected one SELECT statement, got SELECT, SELECT")

    def test_a_dbt_project_that_does_not_parse(self, site: Site, good_commit: str) -> None:
        commit = site.commit({"dbt_project.yml": PROJECT, "models/adults.sql": "SELECT * FROM {{ ref('nobody') }}"})
        failed(site.end(dbt(site, commit)), Category.LOGIC, "nobody")

    def test_no_dbt_project(self, site: Site, good_commit: str) -> None:
        commit = site.commit({"readme": "nothing here"})
        failed(site.end(dbt(site, commit)), Category.LOGIC, "dbt_project.yml")

    def test_a_model_that_fails_is_named(self, site: Site, good_commit: str) -> None:
        model = "SELECT id / 'x' AS half FROM {{ source('staging', 'people') }}"
        commit = site.commit({"dbt_project.yml": PROJECT, "models/sources.yml": SOURCES, "models/adults.sql": model})
        manifest = site.end(dbt(site, commit))
        failed(manifest, Category.LOGIC, "model.small.adults")
        assert manifest.failure is not None
        assert manifest.failure.subject == "model.small.adults"

    def test_an_output_that_no_model_makes(self, site: Site, good_commit: str) -> None:
        failed(site.end(dbt(site, good_commit, "main.children")), Category.LOGIC, "main.children", "main.adults")


class TestData:
    def test_a_test_that_fails_stops_the_table(self, site: Site, good_commit: str) -> None:
        before = site.end(dbt(site, good_commit)).outputs[0].snapshot
        commit = site.commit(
            {
                "dbt_project.yml": PROJECT,
                "models/sources.yml": SOURCES,
                "models/adults.sql": ADULTS,
                "models/adults.yml": "models: [{name: adults, columns: [{name: name, data_tests: "
                "[{accepted_values: {arguments: {values: [Ada]}}}]}]}]",
            }
        )
        manifest = site.end(dbt(site, commit))
        failed(manifest, Category.DATA, "accepted_values_adults_name__Ada", "got 1 rows")
        head = site.app.tables.load("marts.adults").head(None)
        assert head is not None
        assert head.snapshot == before

    def test_a_missing_input_table(self, site: Site, good_commit: str) -> None:
        failed(
            site.end(query(site, good_commit, table="staging.nobody")), Category.DATA, "staging.nobody", "no such table"
        )

    def test_a_missing_input_prefix(self, site: Site, good_commit: str) -> None:
        failed(site.end(load(site, good_commit, "landing/nothing")), Category.DATA, "landing/nothing")

    def test_an_empty_source(self, site: Site, good_commit: str) -> None:
        url = site.serve("empty.csv", "")
        failed(site.end(extract(site, good_commit, url, "landing/empty")), Category.DATA, "people", "0 bytes")

    def test_a_source_with_a_header_and_no_rows(self, site: Site, good_commit: str) -> None:
        url = site.serve("header.csv", "id,name\n")
        assert site.end(extract(site, good_commit, url, "landing/header")).failure is None
        failed(site.end(load(site, good_commit, "landing/header", "staging.header")), Category.DATA, "landing/header")

    def test_a_404_from_the_portal(self, site: Site, good_commit: str) -> None:
        url = f"{site.portal.url}/nothing.csv"
        failed(site.end(extract(site, good_commit, url, "landing/none")), Category.DATA, url, "404")

    def test_a_host_that_is_not_allowed_is_refused(self, site: Site, good_commit: str) -> None:
        manifest = site.end(extract(site, good_commit, "http://169.254.169.254/latest", "landing/meta"))
        assert manifest.failure is not None
        assert manifest.failure.category is Category.SPEC
        assert "169.254.169.254" in manifest.failure.message

    def test_a_column_that_the_contract_does_not_have(self, site: Site, good_commit: str) -> None:
        url = site.serve("wide.csv", "id,name,age\n1,Ada,36\n")
        assert site.end(extract(site, good_commit, url, "landing/wide")).failure is None
        failed(site.end(load(site, good_commit, "landing/wide", "staging.wide")), Category.SCHEMA, "age")

    def test_bad_rows_go_to_quarantine_with_the_rule_they_broke(self, site: Site, good_commit: str) -> None:
        url = site.serve("mixed.csv", "id,name\n1,Ada\n1,Ada again\nx,nobody\n2,Grace\n3,Edsger\n")
        assert site.end(extract(site, good_commit, url, "landing/mixed")).failure is None
        manifest = site.end(load(site, good_commit, "landing/mixed", "staging.mixed"))
        assert manifest.failure is None
        assert manifest.report.counts == {"rows_read": 5, "rows_loaded": 3, "rows_quarantined": 2}
        assert site.rows("staging.mixed", "id, name") == [(1, "Ada"), (2, "Grace"), (3, "Edsger")]
        (quarantine,) = [output for output in manifest.outputs if output.quarantine]
        assert (quarantine.dataset, quarantine.rows) == ("failed/staging/mixed", 2)


def test_show_explains_a_failure_without_opening_s3(site: Site, good_commit: str) -> None:
    commit = site.commit({"queries/count.sql": "SELECT nope FROM staging.people"})
    manifest = site.end(query(site, commit))
    done = site.run("show", str(manifest.run_id)[-8:])
    assert "[logic]" in done.stderr
    assert "queries/count.sql" in done.stderr
    assert "running queries/count.sql" in done.stdout
    assert site.json("show", str(manifest.run_id))["failure"]["category"] == "logic"
