"""The job spec: what is refused at the door, what fits together, and its canonical form."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.model.errors import Category, SpecError
from runner.model.spec import WORK_OF_STAGE, DbtWork, JobSpec, SecretRef, Stage, parse_spec
from runner.model.strict import MAX_DOCUMENT_BYTES
from tests.support.documents import job_spec, job_specs, spec_document, spec_documents

PATIENT = settings(deadline=None)


def refusal(stage: str = "transform", /, **given: Any) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse_spec(json.dumps(spec_document(stage, **given)))
    assert caught.value.category is Category.SPEC
    assert caught.value.message.startswith("job spec: ")
    return caught.value


def spec_or_refusal(raw: bytes | str) -> JobSpec | str:
    try:
        return parse_spec(raw)
    except SpecError as error:
        return error.message


def logic(**given: Any) -> dict[str, Any]:
    return {"repo": "https://git.example.org/logic.git", "commit": "a" * 40, **given}


def dbt(**given: Any) -> dict[str, Any]:
    return {"kind": "dbt", "steps": [{"command": "build"}], **given}


def load(**given: Any) -> dict[str, Any]:
    return {"kind": "load", "contract": "contracts/x.odcs.yaml", "format": {"type": "csv"}, **given}


def extract(*urls: str) -> dict[str, Any]:
    return {"kind": "extract", "sources": [{"name": f"source_{n}", "url": url} for n, url in enumerate(urls)]}


IDENTIFIER = "expected an identifier ([a-z_][a-z0-9_]{0,127})"
INSIDE = "expected a path inside the logic repository"
DATASET = "expected a table `namespace.table` or a prefix `layer/name`"


@pytest.mark.parametrize("stage", [stage.value for stage in Stage])
def test_a_spec_of_each_stage_is_accepted(stage: str) -> None:
    spec = job_spec(stage)
    assert spec.stage.value == stage
    assert spec.max_attempts == 3
    assert (spec.resources.cpu, spec.resources.memory_mib, spec.resources.timeout_s) == (1024, 4096, 3600)
    assert spec.logic.path == "."


def test_every_stage_has_its_kind_of_work() -> None:
    assert set(WORK_OF_STAGE) == set(Stage)
    assert len(set(WORK_OF_STAGE.values())) == len(Stage)


# ---------------------------------------------------------------- one field


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        # unknown keys, at every depth
        ({"color": "red"}, "color", "expected no such key, got 'red'"),
        ({"logic": logic(branch="main")}, "logic.branch", "expected no such key, got 'main'"),
        ({"work": dbt(threads=4)}, "work.threads", "expected no such key, got 4"),
        ({"resources": {"gpu": 1}}, "resources.gpu", "expected no such key, got 1"),
        (
            {"outputs": [{"dataset": "a.b", "from_": "main.b"}]},
            "outputs[0].from_",
            "expected no such key, got 'main.b'",
        ),
        ({"inputs": [{"dataset": "a.b", "as_": "b"}]}, "inputs[0].as_", "expected no such key, got 'b'"),
        # a branch, a tag, a short hash, a hash in capitals where a commit belongs
        ({"logic": logic(commit="main")}, "logic.commit", "expected a commit of 40 hex digits, got 'main'"),
        ({"logic": logic(commit="v1.0")}, "logic.commit", "expected a commit of 40 hex digits, got 'v1.0'"),
        ({"logic": logic(commit="a" * 12)}, "logic.commit", f"expected a commit of 40 hex digits, got '{'a' * 12}'"),
        ({"logic": logic(commit="A" * 40)}, "logic.commit", f"expected a commit of 40 hex digits, got '{'A' * 40}'"),
        ({"logic": logic(commit="a" * 40 + "\n")}, "logic.commit", "expected a commit of 40 hex digits, got 'aaaa"),
        ({"logic": logic(repo="")}, "logic.repo", "expected at least 1 character, got ''"),
        # a path that climbs out, or is none
        ({"logic": logic(path="..")}, "logic.path", f"{INSIDE}, got '..'"),
        ({"logic": logic(path="a/../../b")}, "logic.path", f"{INSIDE}, got 'a/../../b'"),
        ({"logic": logic(path="/etc")}, "logic.path", f"{INSIDE}, got '/etc'"),
        ({"logic": logic(path="")}, "logic.path", f"{INSIDE}, got ''"),
        ({"logic": logic(path="a\\..\\b")}, "logic.path", f"{INSIDE}, got 'a\\\\..\\\\b'"),
        ({"logic": logic(path="a\0")}, "logic.path", f"{INSIDE}, got 'a\\x00'"),
        # an identifier that is none
        ({"pipeline": "Flights"}, "pipeline", f"{IDENTIFIER}, got 'Flights'"),
        ({"pipeline": "flights-1"}, "pipeline", f"{IDENTIFIER}, got 'flights-1'"),
        ({"pipeline": "a" * 129}, "pipeline", f"{IDENTIFIER}, got 'aaa"),
        ({"pipeline": "flights\n"}, "pipeline", f"{IDENTIFIER}, got 'flights\\n'"),
        ({"task": "1st"}, "task", f"{IDENTIFIER}, got '1st'"),
        ({"labels": {"Team": "x"}}, "labels.Team", f"{IDENTIFIER}, got 'Team'"),
        ({"params": {"my-param": "x"}}, "params.my-param", f"{IDENTIFIER}, got 'my-param'"),
        ({"work": dbt(target="prod!")}, "work.target", f"{IDENTIFIER}, got 'prod!'"),
        # datasets and relations
        ({"outputs": [{"dataset": "delays"}]}, "outputs[0].dataset", DATASET),
        ({"inputs": [{"dataset": "a.b.c"}]}, "inputs[0].dataset", DATASET),
        ({"inputs": [{"dataset": "a/"}]}, "inputs[0].dataset", DATASET),
        (
            {"inputs": [{"dataset": "a.b", "as": "x.y.z"}]},
            "inputs[0].as",
            "expected `name` or `schema.relation`, got 'x.y.z'",
        ),
        ({"inputs": [{"dataset": "a.b", "as": ""}]}, "inputs[0].as", "expected `name` or `schema.relation`, got ''"),
        (
            {"inputs": [{"dataset": "a.b", "snapshot": "latest"}]},
            "inputs[0].snapshot",
            "expected ^[0-9]+$, got 'latest'",
        ),
        ({"inputs": [{"dataset": "a.b", "snapshot": 7}]}, "inputs[0].snapshot", "expected a valid string, got 7"),
        # values of another type or outside their range
        ({"spec_version": 2}, "spec_version", "expected 1, got 2"),
        ({"run_id": "today"}, "run_id", "expected a valid UUID"),
        ({"stage": "Load"}, "stage", "expected 'extract', 'load', 'transform' or 'query', got 'Load'"),
        ({"logical_time": "2013-06-01T00:00:00"}, "logical_time", "expected timezone info, got '2013-06-01T00:00:00'"),
        ({"logical_time": 1370044800}, "logical_time", "expected a valid datetime, got 1370044800"),
        ({"max_attempts": 0}, "max_attempts", "expected greater than or equal to 1, got 0"),
        ({"max_attempts": 11}, "max_attempts", "expected less than or equal to 10, got 11"),
        ({"max_attempts": "3"}, "max_attempts", "expected a valid integer, got '3'"),
        ({"resources": {"memory_mib": 1}}, "resources.memory_mib", "expected greater than or equal to 256, got 1"),
        ({"params": {"x": 1}}, "params.x", "expected a valid string, got 1"),
        ({"rerun": {"of": str(uuid4())}}, "rerun.effect", "expected a value, got none"),
        # the work
        ({"work": None}, "work", "expected an object, got NoneType"),
        ({"work": {"kind": "spark"}}, "work.kind", "expected one of 'extract', 'load', 'dbt', 'query', got 'spark'"),
        ({"work": {"steps": []}}, "work.kind", "expected a value, got none"),
        ({"work": dbt(steps=[])}, "work.steps", "expected at least 1 item"),
        (
            {"work": dbt(steps=[{"command": "deps"}])},
            "work.steps[0].command",
            "expected 'build', 'run', 'test', 'seed', 'snapshot', 'compile' or 'docs'",
        ),
        (
            {"work": dbt(steps=[{"command": "test", "full_refresh": True}])},
            "work.steps[0]",
            "full_refresh: expected it with build, run, seed or compile, got 'test'",
        ),
        (
            {"work": dbt(steps=[{"command": "run", "select": ["--target", "x"]}])},
            "work.steps[0].select[0]",
            "expected ^[^-], got '--target'",
        ),
        ({"work": dbt(schema="a-b")}, "work.schema", f"{IDENTIFIER}, got 'a-b'"),
        ({"work": dbt(database="a.b")}, "work.database", f"{IDENTIFIER}, got 'a.b'"),
        (
            {"work": dbt(database="temp")},
            "work.database",
            "expected a name that DuckDB does not use itself, got 'temp'",
        ),
        ({"work": dbt(env={"A B": "x"})}, "work.env.A B", "expected ^[A-Za-z_][A-Za-z0-9_]*$, got 'A B'"),
        ({"work": dbt(vars={"x": None})}, "work.vars.x", "expected a valid string, got NoneType"),
        ({"work": load(contract="../x.yaml")}, "work.contract", f"{INSIDE}, got '../x.yaml'"),
        (
            {"work": load(format={"type": "xls"})},
            "work.format.type",
            "expected one of 'csv', 'jsonl', 'json', 'parquet', got 'xls'",
        ),
        ({"work": load(format={"type": "csv", "delimiter": "::"})}, "work.format.delimiter", "expected "),
        ({"work": load(max_bad_fraction=1.5)}, "work.max_bad_fraction", "expected less than or equal to 1, got 1.5"),
        ({"work": extract()}, "work.sources", "expected at least 1 item"),
        (
            {"work": extract("file:///etc/passwd")},
            "work.sources[0].url",
            "expected ^https?://[^\\s]+$, got 'file:///etc/passwd'",
        ),
        ({"work": extract("https://x y")}, "work.sources[0].url", "expected ^https?://[^\\s]+$, got 'https://x y'"),
    ],
)
def test_a_field_that_is_not_exact_is_refused_by_its_name(given: dict[str, Any], field: str, message: str) -> None:
    refused = refusal(**given)
    assert refused.message.startswith(f"job spec: {field}: {message}")
    assert refused.subject == field


@pytest.mark.parametrize(
    "field", ["spec_version", "run_id", "pipeline", "task", "stage", "logic", "work", "outputs", "logical_time"]
)
def test_a_field_that_is_missing_is_refused_by_its_name(field: str) -> None:
    document = spec_document()
    del document[field]
    with pytest.raises(SpecError, match=f"^job spec: {field}: expected a value, got none") as caught:
        parse_spec(json.dumps(document))
    assert caught.value.subject == field


def test_duplicate_keys_and_numbers_that_are_none_are_refused() -> None:
    raw = json.dumps(spec_document())
    with pytest.raises(SpecError, match=r"^job spec: stage: expected each key once, got it 2 times$"):
        parse_spec(raw[:-1] + ', "stage": "load"}')
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        with pytest.raises(SpecError, match=f"^job spec: expected a finite number, got {number}$"):
            parse_spec(json.dumps(spec_document(work=dbt(vars={"x": 0.5}))).replace("0.5", number))


def test_the_name_of_the_file_leads_the_message() -> None:
    with pytest.raises(SpecError, match=r"^specs/x\.json: expected a JSON object, got list$"):
        parse_spec("[]", what="specs/x.json")


def test_64_kib_are_accepted_and_one_byte_more_is_refused() -> None:
    stored = len(job_spec(params={"x": ""}).to_json().encode())
    just = job_spec(params={"x": "x" * (MAX_DOCUMENT_BYTES - stored)})
    assert len(just.to_json().encode()) == MAX_DOCUMENT_BYTES
    assert parse_spec(just.to_json()) == just
    with pytest.raises(SpecError, match=r"^job spec: expected at most 65,536 bytes, got 65,537$"):
        parse_spec(just.to_json() + " ")


def test_a_spec_that_would_be_too_long_once_stored_is_refused_at_the_door() -> None:
    """Else it would be queued, and refused by the worker."""
    raw = json.dumps(spec_document(params={"x": ""}), separators=(",", ":"))
    raw = raw.replace('"x":""', '"x":"' + "x" * (MAX_DOCUMENT_BYTES - len(raw)) + '"')
    assert len(raw) == MAX_DOCUMENT_BYTES
    with pytest.raises(SpecError, match=r"^job spec: expected at most 65,536 bytes with its defaults, got 6[56],"):
        parse_spec(raw)


# ---------------------------------------------------------------- fields that have to fit each other

MARTS: dict[str, Any] = {"dataset": "marts.delays", "from": "main.delays"}
LANDING: dict[str, Any] = {"dataset": "landing/portal/flights"}


@pytest.mark.parametrize("stage", [stage.value for stage in Stage])
@pytest.mark.parametrize("other", [stage.value for stage in Stage])
def test_the_work_has_to_be_the_stages_own(stage: str, other: str) -> None:
    if stage == other:
        return
    expected, came = WORK_OF_STAGE[Stage(stage)], WORK_OF_STAGE[Stage(other)]
    refused = refusal(stage, work=spec_document(other)["work"])
    assert refused.message == f"job spec: work.kind: expected '{expected}' for stage {stage}, got '{came}'"


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        ("transform", {"outputs": []}, "outputs: expected at least 1 item"),
        (
            "transform",
            {"outputs": [MARTS, MARTS]},
            "outputs: expected an output's dataset to be given once, got 'marts.delays' 2 times",
        ),
        (
            "transform",
            {"inputs": [{"dataset": "a.b"}, {"dataset": "c.d", "as": "A.B"}]},
            "inputs: expected an input's `as` to be given once, got 'a.b' 2 times",
        ),
        (
            "transform",
            {"inputs": [LANDING]},
            "inputs[0].dataset: expected a table `namespace.table`, got 'landing/portal/",
        ),
        (
            "transform",
            {"outputs": [MARTS, LANDING]},
            "outputs[1].dataset: expected a table `namespace.table`, got 'landing",
        ),
        ("transform", {"outputs": [{"dataset": "a.b"}]}, "outputs[0].from: expected `schema.relation`, got None"),
        (
            "transform",
            {"outputs": [{"dataset": "a.b", "from": "b"}]},
            "outputs[0].from: expected `schema.relation`, got 'b'",
        ),
        ("extract", {"inputs": [LANDING]}, "inputs: expected none for extract, got 1"),
        (
            "extract",
            {"outputs": [{"dataset": "staging.flights", "from": "flights"}]},
            "outputs[0].dataset: expected a prefix `layer/name`, got 'staging.flights'",
        ),
        ("extract", {"outputs": [LANDING]}, "outputs: expected one `from` each source (flights), got "),
        (
            "extract",
            {"outputs": [{**LANDING, "from": "flights"}, {"dataset": "landing/x", "from": "flights"}]},
            "outputs: expected one `from` each source (flights), got flights, flights",
        ),
        (
            "extract",
            {"work": {"kind": "extract", "sources": [{"name": "a", "url": "https://x"}] * 2}},
            "expected a source's name to be given once, got 'a' 2 times",
        ),
        ("load", {"inputs": []}, "inputs: expected exactly one prefix dataset for load, got none"),
        ("load", {"inputs": [{"dataset": "a.b"}]}, "inputs: expected exactly one prefix dataset for load, got a.b"),
        (
            "load",
            {"inputs": [LANDING, {"dataset": "landing/x"}]},
            "inputs: expected exactly one prefix dataset for load, got landing/portal/flights, landing/x",
        ),
        ("load", {"outputs": [LANDING]}, "outputs: expected exactly one table for load, got landing/portal/flights"),
        (
            "load",
            {"outputs": [MARTS, {"dataset": "a.b"}]},
            "outputs: expected exactly one table for load, got marts.delays, a.b",
        ),
        (
            "query",
            {"inputs": [LANDING]},
            "inputs[0].dataset: expected a table `namespace.table`, got 'landing/portal/flights'",
        ),
        ("query", {"outputs": [MARTS, {"dataset": "a.b"}]}, "outputs: expected exactly one for query, got 2"),
        (
            "query",
            {"outputs": [{"dataset": "a/b"}]},
            "outputs[0].format: expected 'csv' or 'parquet' for a prefix, got none",
        ),
    ],
)
def test_inputs_and_outputs_have_to_suit_the_work(stage: str, given: dict[str, Any], message: str) -> None:
    assert refusal(stage, **given).message.startswith(f"job spec: {message}")


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "HOME",
        "TMPDIR",
        "TZ",
        "LC_ALL",
        "LD_PRELOAD",
        "PYTHONPATH",
        "DBT_ENGINE_TARGET",
        "DBT_RECORDER_MODE",
    ],
)
def test_a_variable_that_steers_the_process_is_refused(name: str) -> None:
    message = refusal(work=dbt(env={name: "x"})).message
    assert message == (
        f"job spec: work.env: expected a variable that the project reads, got {name}, which steers the process"
    )


def test_a_projects_own_variables_are_taken_with_dbts_prefix_too() -> None:
    env = {"DBT_TARGET": "x", "DBT_ENV_CUSTOM_ENV_A": "x", "COUNTRY": "x", "PATHS": "x"}
    work = job_spec(work=dbt(env=env)).work
    assert isinstance(work, DbtWork)
    assert work.env == env


def test_a_database_named_as_a_schema_is_refused() -> None:
    # DuckDB calls `staging.flights` ambiguous where there is both.
    for document in (
        {"work": dbt(database="lake", schema="lake")},
        {"work": dbt(database="staging"), "inputs": [{"dataset": "staging.flights"}]},
    ):
        assert "work.database: expected a name that no schema has, got" in refusal("transform", **document).message


def test_one_dataset_may_be_read_at_two_snapshots_under_two_names() -> None:
    spec = job_spec(
        inputs=[
            {"dataset": "staging.flights", "snapshot": "2"},
            {"dataset": "staging.flights", "as": "before.flights", "snapshot": "1"},
        ]
    )
    assert [each.alias for each in spec.inputs] == ["staging.flights", "before.flights"]


DAILY: dict[str, Any] = {"partition_by": {"column": "day", "unit": "day"}}


@pytest.mark.parametrize(
    "given",
    [
        {"mode": "append"},
        {"mode": "append", **DAILY, "lineage_columns": True},
        {"mode": "merge", "key": ["id", "Day of Week"]},
        {"mode": "merge", "key": ["id"], "snapshot": "7"},
        {"mode": "replace_where", **DAILY},
        {"mode": "replace_where", "partition_by": {"column": "region"}, "where": "north"},
        {"mode": "replace_where", "partition_by": {"column": "region"}, "where": 7},
        {"state": "restore", "snapshot": "none"},
    ],
    ids=str,
)
def test_modes_and_states_that_fit_are_kept_as_they_are(given: dict[str, Any]) -> None:
    (output,) = job_spec(outputs=[{**MARTS, **given}]).outputs
    told = output.model_dump(mode="json", by_alias=True)
    assert told | given | {"partition_by": told["partition_by"]} == told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "upsert"}, "mode: expected 'replace', 'replace_where', 'append' or 'merge', got 'upsert'"),
        ({"mode": "replace_where"}, "partition_by: expected the table's partitions for mode replace_where, got none"),
        ({"mode": "replace_where", "partition_by": {"column": "region"}}, "where: expected it with mode replace_where"),
        ({"mode": "replace_where", **DAILY, "where": "2013-06-01"}, "where: expected it with mode replace_where by"),
        ({"where": "north"}, "where: expected it with mode replace_where by value, and only then, got 'north'"),
        ({"mode": "merge"}, "key: expected it with mode merge, and only then, got none"),
        ({"key": ["id"]}, "key: expected it with mode merge, and only then, got id"),
        ({"mode": "merge", "key": ["id", "ID"]}, "expected a column of key to be given once, got 'id' 2 times"),
        ({"mode": "append", "state": "restore"}, "state: expected it with mode replace, got append"),
        ({"snapshot": "7"}, "snapshot: expected it with state or mode merge, got it without"),
        ({"state": "restore", "snapshot": "newest"}, "snapshot: expected ^([0-9]+|none)$"),
        ({"partition_by": {"column": "day", "unit": "week"}}, "partition_by.unit: expected"),
    ],
    ids=str,
)
def test_modes_and_states_that_do_not_fit_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    assert message in refusal(outputs=[{**MARTS, **given}]).message


@pytest.mark.parametrize("given", [{"mode": "append"}, DAILY, {"state": "restore"}, {"lineage_columns": True}], ids=str)
def test_a_prefix_of_files_knows_no_mode_but_replace(given: dict[str, Any]) -> None:
    refused = refusal("query", outputs=[{"dataset": "exports/worst", "format": "csv", **given}])
    assert "expected nothing but mode replace for a prefix of files" in refused.message


def test_only_a_dbt_job_can_publish_what_passed() -> None:
    assert job_spec(publish="passing").publish == "passing"
    assert "publish: expected 'all' for stage load" in refusal("load", publish="passing").message


def test_no_input_can_be_called_as_a_state_is() -> None:
    inputs = [{"dataset": "staging.flights", "as": "state:marts.delays"}]
    assert "expected none that names a state" in refusal(inputs=inputs).message


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize("name", ["a", "A", "0", "_", "api/token", "team.a/b-c_d.e", "a.b", "x" * 200])
def test_a_secret_is_named_in_params_env_and_vars(name: str) -> None:
    secret = {"secret": name}
    spec = job_spec(params={"token": secret, "b": "x"}, work=dbt(env={"T": secret, "U": "x"}, vars={"v": secret}))
    assert isinstance(spec.work, DbtWork)
    assert spec.params["token"] == spec.work.env["T"] == spec.work.vars["v"] == SecretRef(secret=name)
    assert spec.secrets == (name,)
    assert json.loads(spec.to_json())["work"]["env"] == {"T": secret, "U": "x"}


def test_the_secrets_of_a_spec_are_those_that_its_work_is_given_each_once() -> None:
    assert job_spec(params={"token": {"secret": "unused"}}).secrets == ()
    assert job_spec("query").secrets == ()
    given = {"env": {"A": {"secret": "b"}, "B": {"secret": "a"}}, "vars": {"c": {"secret": "b"}, "d": "c", "e": 1}}
    assert job_spec(work=dbt(**given)).secrets == ("a", "b")


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "a\n", "/a", "a/", "a//b", "../a", "a/../b", "a..b", ".a", "-a", "a/.b", "a:b", "é", "x" * 201],
)
def test_a_secret_of_another_name_is_refused(name: str) -> None:
    error = refusal(work=dbt(env={"T": {"secret": name}}))
    assert error.message.startswith("job spec: work.env.T.secret: expected a secret's name (")
    assert error.subject == "work.env.T.secret"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"params": {"t": {"secret": 1}}}, "params.t.secret: expected a valid string, got 1"),
        ({"params": {"t": {}}}, "params.t.secret: expected a value, got none"),
        ({"params": {"t": {"secret": "a", "key": "b"}}}, "params.t.key: expected no such key, got 'b'"),
        ({"params": {"t": 1}}, "params.t: expected a valid string, got 1"),
        ({"labels": {"t": {"secret": "a"}}}, "labels.t: expected a valid string, got dict"),
        ({"work": dbt(env={"T": {"Secret": "a"}})}, "work.env.T.secret: expected a value, got none (and 1 more)"),
        ({"work": dbt(env={"T": ["a"]})}, "work.env.T: expected a valid string, got list"),
        (
            {"work": dbt(env={"PATH": {"secret": "a"}})},
            "work.env: expected a variable that the project reads, got PATH",
        ),
        ({"work": dbt(vars={"t": {"secret": None}})}, "work.vars.t.secret: expected a valid string, got NoneType"),
        ({"work": dbt(target={"secret": "a"})}, "work.target: expected a valid string, got dict"),
    ],
)
def test_a_secret_that_is_not_exact_or_stands_elsewhere_is_refused_by_its_field(
    given: dict[str, Any], message: str
) -> None:
    assert refusal(**given).message.startswith(f"job spec: {message}")


# ---------------------------------------------------------------- reruns


def test_a_first_run_is_its_own_effect_and_publishes() -> None:
    spec = job_spec()
    assert spec.effect == spec.run_id
    assert not spec.publishes_to_branch


def test_a_rerun_has_the_effect_of_the_first_run_and_publishes_only_if_told_to() -> None:
    first, second = uuid4(), uuid4()
    rerun = {"of": str(second), "effect": str(first)}
    assert job_spec(rerun=rerun).effect == first
    assert job_spec(rerun=rerun).publishes_to_branch
    assert not job_spec(rerun={**rerun, "publish": True}).publishes_to_branch


# ---------------------------------------------------------------- the canonical form


@PATIENT
@given(job_specs())
def test_a_spec_survives_its_canonical_form(spec: JobSpec) -> None:
    again = parse_spec(spec.to_json())
    assert again == spec
    assert again.to_json() == spec.to_json()
    assert again.digest() == spec.digest()


@PATIENT
@given(spec_documents(), st.randoms())
def test_the_order_of_keys_and_the_spaces_between_them_change_nothing(document: dict[str, Any], random: Any) -> None:
    def shuffled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: shuffled(node[key]) for key in random.sample(list(node), len(node))}
        return [shuffled(each) for each in node] if isinstance(node, list) else node

    one = parse_spec(json.dumps(document, separators=(",", ":"), ensure_ascii=False))
    other = parse_spec(json.dumps(shuffled(document), indent=2))
    assert one.to_json() == other.to_json()
    assert one.digest() == other.digest()


def test_a_default_written_out_is_the_default_left_out() -> None:
    document = spec_document()
    explicit: dict[str, Any] = {
        "params": {},
        "labels": {},
        "rerun": None,
        "pipeline_run": None,
        "max_attempts": 3,
        "resources": {},
    }
    assert parse_spec(json.dumps(document)).digest() == parse_spec(json.dumps(document | explicit)).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "00000000-0000-7000-8000-000000000002"},
        {"labels": {"a": "b"}},
        {"max_attempts": 4},
        {"logic": logic(commit="b" * 40)},
        {"logical_time": "2013-06-01T00:00:01Z"},
        {"work": dbt(vars={"x": 1})},
    ],
)
def test_another_request_has_another_digest(change: dict[str, Any]) -> None:
    document = spec_document(run_id="00000000-0000-7000-8000-000000000001")
    assert parse_spec(json.dumps(document)).digest() != parse_spec(json.dumps(document | change)).digest()


def test_values_that_python_takes_for_equal_are_different_requests() -> None:
    values = (1, 1.0, True, "1", {"secret": "1"})
    assert len({job_spec(work=dbt(vars={"x": x})).work.digest() for x in values}) == 5


@settings(deadline=None, max_examples=300)
@given(spec_documents(), st.data())
def test_a_valid_spec_with_one_thing_out_of_place_is_refused_or_stays_a_spec(
    document: dict[str, Any], data: st.DataObject
) -> None:
    """One value anywhere in the document replaced by any other: nothing but a `SpecError` comes of it."""
    node: Any = document
    while True:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
        if not (isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans())):
            break
        node = node[key]
    node[key] = data.draw(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just([]) | st.just({})
    )
    spec = spec_or_refusal(json.dumps(document))
    if isinstance(spec, JobSpec):
        assert parse_spec(spec.to_json()).to_json() == spec.to_json()
    else:
        assert spec.startswith("job spec: ")
        assert "\n" not in spec
        assert len(spec) < 1000


@settings(deadline=timedelta(seconds=5))
@given(st.binary(max_size=300) | st.text(st.characters(exclude_categories=()), max_size=300))
def test_whatever_comes_from_a_queue_is_a_spec_or_a_refusal(raw: bytes | str) -> None:
    spec = spec_or_refusal(raw)
    assert isinstance(spec, str)
    assert spec.startswith("job spec: ")
