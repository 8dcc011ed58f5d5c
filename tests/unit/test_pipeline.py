"""The pipeline file: the order of its stages, its parameters, its YAML, and the job specs that are made of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runner.model.errors import SpecError
from runner.model.pipeline import PipelineFile, load_yaml, parse_pipeline
from runner.model.spec import DbtWork, ExtractWork, JobSpec, Logic, SecretRef, parse_spec
from runner.model.strict import MAX_DOCUMENT_BYTES
from tests.support.documents import COMMIT, run_id

WHAT = "pipelines/flights.yaml"
NEVER_HANGS = settings(deadline=timedelta(seconds=5), max_examples=200)
LOGIC = Logic(repo="https://git.example.org/logic.git", commit=COMMIT)


def extract(task: str, *outputs: str, url: str = "https://portal.example.org") -> dict[str, Any]:
    sources = [{"name": f"source_{number}", "url": f"{url}/{number}.csv"} for number, _ in enumerate(outputs)]
    return {
        "task": task,
        "stage": "extract",
        "work": {"kind": "extract", "sources": sources},
        "outputs": [{"dataset": each, "from": f"source_{number}"} for number, each in enumerate(outputs)],
    }


def load(task: str, reads: str, writes: str) -> dict[str, Any]:
    return {
        "task": task,
        "stage": "load",
        "work": {"kind": "load", "contract": "contracts/x.odcs.yaml", "format": {"type": "csv"}},
        "inputs": [{"dataset": reads}],
        "outputs": [{"dataset": writes}],
    }


def dbt(task: str, reads: list[str], writes: list[str], **work: Any) -> dict[str, Any]:
    return {
        "task": task,
        "stage": "transform",
        "work": {"kind": "dbt", "steps": [{"command": "build"}], **work},
        "inputs": [{"dataset": each} for each in reads],
        "outputs": [{"dataset": each, "from": f"main.{each.split('.')[1]}"} for each in writes],
    }


def file(*stages: Any, **given: Any) -> bytes:
    return yaml.safe_dump({"pipeline_version": 1, "name": "flights", "stages": list(stages), **given}).encode()


def parse(raw: bytes, **params: str) -> PipelineFile:
    return parse_pipeline(raw, what=WHAT, params=params)[0]


def tasks(raw: bytes) -> list[str]:
    return [stage.task for stage in parse(raw).stages]


def refusal(raw: bytes, **params: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse(raw, **params)
    assert caught.value.message.startswith(f"{WHAT}: ")
    return caught.value.message.removeprefix(f"{WHAT}: ")


def ids() -> Iterator[UUID]:
    return map(run_id, range(1, 1000))


def specs(raw: bytes, **params: str) -> list[JobSpec]:
    pipeline, in_force = parse_pipeline(raw, what=WHAT, params=params)
    return pipeline.specs(
        logic=LOGIC,
        params=in_force,
        logical_time=datetime(2013, 6, 1, tzinfo=UTC),
        pipeline_run=run_id(9999),
        run_ids=ids(),
    )


# ---------------------------------------------------------------- order


def test_writers_come_before_readers_wherever_they_stand_in_the_file() -> None:
    raw = file(
        dbt("marts", ["staging.a", "staging.b"], ["marts.x"]),
        load("load_b", "landing/b", "staging.b"),
        load("load_a", "landing/a", "staging.a"),
        extract("extract", "landing/a", "landing/b"),
    )
    assert tasks(raw) == ["extract", "load_b", "load_a", "marts"]


def test_stages_that_do_not_wait_for_each_other_stay_as_the_file_has_them() -> None:
    raw = file(*(dbt(task, ["raw.x"], [f"marts.{task}"]) for task in ("c", "a", "b")))
    assert tasks(raw) == ["c", "a", "b"]


def test_an_input_that_no_stage_writes_is_somebody_elses() -> None:
    assert tasks(file(dbt("marts", ["other.table"], ["marts.x"]))) == ["marts"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20), st.permutations(range(10)))
def test_any_stages_without_a_cycle_come_out_in_an_order_in_which_each_finds_its_inputs(
    pairs: list[tuple[int, int]], order: list[int]
) -> None:
    reads: dict[int, set[int]] = {number: set() for number in range(10)}
    for one, other in pairs:
        if one != other:
            reads[max(one, other)].add(min(one, other))
    stages = {
        number: dbt(f"t{number}", [f"a.d{each}" for each in sorted(reads[number])], [f"a.d{number}"])
        for number in reads
    }
    placed: set[str] = set()
    for stage in parse(file(*(stages[number] for number in order))).stages:
        assert {each.dataset for each in stage.inputs} <= placed
        placed |= {each.dataset for each in stage.outputs}
    assert len(placed) == 10


def test_a_cycle_is_refused_with_the_tasks_on_it() -> None:
    message = refusal(file(dbt("a", ["x.b"], ["x.a"]), dbt("b", ["x.a"], ["x.b"])))
    assert message.startswith("stages: expected no cycle of datasets, got ")
    assert "a -> b -> a" in message or "b -> a -> b" in message


def test_a_stage_that_reads_what_it_writes_is_a_cycle() -> None:
    assert "a -> a" in refusal(file(dbt("a", ["x.a"], ["x.a"])))


def test_two_writers_of_one_dataset_are_refused() -> None:
    message = refusal(file(dbt("a", [], ["x.a"]), dbt("b", [], ["x.a"])))
    assert message == "stages: expected one writer of x.a, got 'a' and 'b'"


def test_a_task_stands_once() -> None:
    message = refusal(file(dbt("a", [], ["x.a"]), dbt("a", [], ["x.b"])))
    assert message == "stages: expected each task once, got 'a' 2 times"


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "expected a mapping at the top, got NoneType"),
        (b"- a", "expected a mapping at the top, got list"),
        (b"name: flights", "pipeline_version: expected a value, got none (and 1 more)"),
        (file(), "stages: expected at least 1 item"),
        (file(dbt("a", [], ["x.a"]), colour="red"), "colour: expected no such key, got 'red'"),
        (file(dbt("a", [], ["x.a"]), pipeline_version=2), "pipeline_version: expected 1, got 2"),
        (file(dbt("a", [], ["x.a"]), name="My Flights"), "name: expected an identifier"),
        (file(dbt("a", [], ["x.a"], threads=4)), "stages[0].work.threads: expected no such key, got 4"),
        (file(dbt("a", [], ["x.a"], vars={"x": []})), "stages[0].work.vars.x: expected a valid string, got list"),
        (file(dbt("a", [], ["x.a"], vars={"x": float("inf")})), "expected plain JSON values, got "),
        (file({"task": "a", "stage": "load", "work": {"kind": "spark"}}), "stages[0].work.kind: expected one of"),
        (file("marts"), "stages[0]: expected an object, got 'marts'"),
        (file(dbt("a", [], ["x.a"]), params=["x"]), "params: expected an object, got list"),
        (file(dbt("a", [], ["x.a"]), params={"x": 1}), "params.x: expected a valid string, got 1"),
        (file(dbt("a", [], ["x.a"]), params={"My X": "1"}), "params.My X: expected an identifier"),
    ],
)
def test_a_file_that_is_not_exact_is_refused_by_its_field(raw: bytes, message: str) -> None:
    assert refusal(raw).startswith(message)


def test_a_stage_whose_work_does_not_suit_it_is_refused_by_task_and_field() -> None:
    raw = file(dbt("a", [], ["x.a"]), load("b", "x.a", "x.b"))
    with pytest.raises(SpecError) as caught:
        specs(raw)
    assert caught.value.message == (
        "pipeline flights, task b: inputs: expected exactly one prefix dataset for load, got x.a"
    )


def test_a_stage_whose_spec_would_be_too_long_is_refused_before_anything_is_queued() -> None:
    raw = file(
        dbt("a", [], ["x.a"], vars={str(number): "${long}" for number in range(10)}), params={"long": "x" * 9000}
    )
    with pytest.raises(SpecError, match=r"^pipeline flights, task a: expected at most 65,536 bytes, got "):
        specs(raw)


# ---------------------------------------------------------------- parameters


def test_a_parameter_stands_for_its_default_or_for_what_was_given() -> None:
    raw = file(extract("a", "landing/a", url="${portal}/${year}"), params={"portal": "https://x.org", "year": "2013"})

    def url(spec: JobSpec) -> str:
        assert isinstance(spec.work, ExtractWork)
        return spec.work.sources[0].url

    (default,) = specs(raw)
    assert url(default) == "https://x.org/2013/0.csv"
    assert default.params == {"portal": "https://x.org", "year": "2013"}
    (given_,) = specs(raw, year="2014")
    assert url(given_) == "https://x.org/2014/0.csv"
    assert given_.params == {"portal": "https://x.org", "year": "2014"}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("${x}", "1"),
        ("a${x}b${x}c", "a1b1c"),
        ("$${x}", "${x}"),
        ("$$$$", "$$"),
        ("$$${x}", "$1"),
        ("cost: 5$", "cost: 5$"),
        ("$x", "$x"),
        ("{x}", "{x}"),
        ("${x", "${x"),
        ("${dollar}", "${x}"),
    ],
)
def test_a_dollar_sign_means_a_parameter_only_before_a_brace(text: str, filled: str) -> None:
    raw = file(dbt("a", [], ["x.a"], vars={"text": text}), params={"x": "1", "dollar": "${x}"})
    work = parse(raw).stages[0].work
    assert isinstance(work, DbtWork)
    assert work.vars == {"text": filled}


def test_parameters_are_filled_into_stages_only() -> None:
    pipeline = parse(file(dbt("a", [], ["x.a"]), description="costs ${x}", params={"x": "${x}"}))
    assert pipeline.description == "costs ${x}"
    assert pipeline.params == {"x": "${x}"}


@pytest.mark.parametrize("name", ["y", "X", "my-param", "", "x "])
def test_a_parameter_without_a_value_is_refused(name: str) -> None:
    raw = file(dbt("a", [], ["x.a"], vars={"text": f"${{{name}}}"}), params={"x": "1"})
    assert refusal(raw) == f"expected a value in params for '${{{name}}}', got none"


def test_a_parameter_that_the_file_does_not_know_is_refused_with_those_it_knows() -> None:
    stage = dbt("a", [], ["x.a"])
    assert refusal(file(stage, params={"b": "1", "a": "2"}), z="3") == "params: expected one of a, b, got 'z'"
    assert refusal(file(stage), z="3") == "params: expected no parameter, got 'z'"


def test_a_short_file_cannot_stand_for_gigabytes() -> None:
    variables = {str(number): "${long}" for number in range(2000)}
    raw = file(dbt("a", [], ["x.a"], vars=variables), params={"long": "x" * 20_000})
    assert refusal(raw) == "expected at most 1,048,576 characters from params, got more"


# ---------------------------------------------------------------- parameters that are secrets

SECRET = {"token": {"secret": "api/token"}, "year": "2013"}


def test_a_secret_takes_the_place_of_a_whole_value_in_env_and_vars() -> None:
    given_ = {"env": {"TOKEN": "${token}", "YEAR": "${year}"}, "vars": {"a.b": "${token}", "c": "$${token}"}}
    (spec,) = specs(file(dbt("a", [], ["x.a"], **given_), params=SECRET))
    assert isinstance(spec.work, DbtWork)
    assert spec.work.env == {"TOKEN": SecretRef(secret="api/token"), "YEAR": "2013"}
    assert spec.work.vars == {"a.b": SecretRef(secret="api/token"), "c": "${token}"}
    assert spec.params == {"token": SecretRef(secret="api/token"), "year": "2013"}
    assert spec.secrets == ("api/token",)
    assert parse_spec(spec.to_json()) == spec


def test_a_secret_may_be_named_where_it_is_given_and_its_name_be_made_of_parameters() -> None:
    work = {"env": {"TOKEN": {"secret": "${team}/token"}}}
    (spec,) = specs(file(dbt("a", [], ["x.a"], **work), params={"team": "ops"}), team="dev")
    assert spec.secrets == ("dev/token",)


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        (dbt("a", [], ["x.a"], env={"URL": "https://x/?k=${token}"}), "stages[0].work.env.URL"),
        (dbt("a", [], ["x.a"], vars={"t": "${year}${token}"}), "stages[0].work.vars.t"),
        (dbt("a", [], ["x.a"], env={"T": {"secret": "${token}"}}), "stages[0].work.env.T.secret"),
        (dbt("a", [], ["x.a"], target="${token}"), "stages[0].work.target"),
        (
            dbt("a", [], ["x.a"], steps=[{"command": "build", "select": ["${token}"]}]),
            "stages[0].work.steps[0].select[0]",
        ),
        ({**dbt("a", [], ["x.a"]), "labels": {"t": "${token}"}}, "stages[0].labels.t"),
        ({**dbt("a", [], ["x.a"]), "env": {"t": "${token}"}}, "stages[0].env.t"),
        (dbt("${token}", [], ["x.a"]), "stages[0].task"),
        (extract("a", "landing/a", url="https://x/${token}"), "stages[0].work.sources[0].url"),
        ("${token}", "stages[0]"),
    ],
)
def test_a_secret_stands_nowhere_else(stage: Any, field: str) -> None:
    assert refusal(file(stage, params=SECRET)) == f"{field}: expected a text without secrets, got '${{token}}'"


def test_no_text_takes_a_secrets_place_where_a_pipeline_is_launched() -> None:
    raw = file(dbt("a", [], ["x.a"], env={"TOKEN": "${token}"}), params=SECRET)
    assert refusal(raw, token="hunter2hunter2") == (
        "params.token: expected the file's own value, as that is a secret, got a text"
    )


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ({"secret": "../x"}, "params.token.secret: expected a secret's name "),
        ({"secret": 1}, "params.token.secret: expected a valid string, got 1"),
        ({"secrets": "x"}, "params.token.secret: expected a value, got none"),
        ({}, "params.token.secret: expected a value, got none"),
        ({"secret": "x", "version": "2"}, "params.token.version: expected no such key, got '2'"),
    ],
)
def test_a_reference_that_is_not_exact_is_refused_by_its_field(param: Any, message: str) -> None:
    assert refusal(file(dbt("a", [], ["x.a"]), params={"token": param})).startswith(message)


# ---------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a: &x [1]\nb: *x", "expected YAML, got an alias, which is not allowed at line 2 column 4"),
        (b"a: 1\na: 2", "expected YAML, got the key 'a' twice at line 2 column 1"),
        (b"a: {b: 1, 'b': 2}", "expected YAML, got the key 'b' twice at line 1 column 11"),
        (b"a: {<<: {b: 1}}", "expected YAML, got "),
        (b"1: a", "expected YAML, got the key 1, which is not text at line 1 column 1"),
        (b"on: a", "expected YAML, got the key True, which is not text at line 1 column 1"),
        (b"? [a]\n: b", "expected YAML, got the key ['a'], which is not text at line 1 column 3"),
        (
            b"a: !!python/object/apply:os.system [id]",
            "expected YAML, got the tag 'tag:yaml.org,2002:python/object/apply:",
        ),
        (
            b"a: !!set {b}",
            "expected YAML, got the tag 'tag:yaml.org,2002:set', which is not allowed at line 1 column 4",
        ),
        (
            b"a: !!bool x",
            "expected YAML, got the tag 'tag:yaml.org,2002:bool', which is not allowed at line 1 column 4",
        ),
        (b"a: 0b_", "expected YAML, got '0b_', which is not the number it looks like at line 1 column 4"),
        (b"a: " + b"9" * 5000, "expected YAML, got '9999999999"),
        (b"a: [1", "expected YAML, got expected ',' or ']', but got '<stream end>' at line 1 column 6"),
        (b"a: 1\n---\nb: 2", "expected YAML, got "),
        (b"a: \0", "expected YAML, got unacceptable character #x0000"),
        (b"a: \xff", "expected YAML, got "),
        (b"[" * 60_000, "expected YAML, got one nested too deeply"),
        (b"- " * 30_000, "expected YAML, got one nested too deeply"),
        (b" " * 65_537, "expected at most 65,536 bytes, got 65,537"),
    ],
)
def test_yaml_that_json_could_not_say_is_refused(raw: bytes, message: str) -> None:
    assert refusal(raw).startswith(message)


def test_a_date_is_text_as_in_json() -> None:
    assert load_yaml(b"a: 2013-06-01\nb: 2013-99-99\nc: 2013-06-01 10:00:00", what=WHAT) == {
        "a": "2013-06-01",
        "b": "2013-99-99",
        "c": "2013-06-01 10:00:00",
    }


def test_a_refusal_of_something_long_is_short() -> None:
    for raw in (b"!" * 60_000, b"a: !" + b"x" * 60_000, b'? "' + b"k" * 20_000 + b'"\n: 1\n' + b"k" * 20_000 + b": 1"):
        assert len(refusal(raw)) < 300


# YAML 1.1 takes 1e-05 for text: a number with an exponent needs a dot there.
FLOATS = st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda each: "e" not in repr(each) or "." in repr(each)
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@NEVER_HANGS
@given(PLAIN)
def test_what_json_can_say_is_read_as_json_says_it(value: Any) -> None:
    assert load_yaml(json.dumps(value).encode(), what=WHAT) == value or "\\u" in json.dumps(value)
    assert load_yaml(yaml.safe_dump(value).encode(), what=WHAT) == value


PIECES = r"""a|:|-|?|[|]|{|}|,|&x|*x|!!int|!t|>|'|"|#|<<|=|0x|0b_|1_0|.inf|1:30|2013-99-99|~|---|...|${x}|$$"""
YAML_LIKE = st.lists(st.sampled_from([*PIECES.split("|"), "|", " ", "\n", "\t", "%YAML 1.1\n"]), max_size=40).map(
    "".join
)


def whatever(raw: bytes) -> None:
    """Read it every way there is: nothing but a `SpecError` may come of it."""
    refusals = []
    for read in (
        lambda: load_yaml(raw, what=WHAT),
        lambda: parse_pipeline(raw, what=WHAT, params={}),
        lambda: parse_pipeline(raw, what=WHAT, params={"x": "1"}),
    ):
        try:
            read()
        except SpecError as error:
            refusals.append(error.message)
    assert all(message.startswith(f"{WHAT}: ") and "\n" not in message for message in refusals), refusals


@NEVER_HANGS
@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode) | YAML_LIKE.map(str.encode))
@example(b"params: {1: a, b: c}")
@example(b"params: {null: a}\nstages: ['${null}']")
@example(b"? {a: b}\n: c")
@example(b"\xff\xfea\x00")
def test_whatever_bytes_come_are_a_pipeline_or_a_refusal(raw: bytes) -> None:
    whatever(raw)


@settings(deadline=timedelta(seconds=5), max_examples=100)
@given(PLAIN, st.sampled_from(["stages", "params", "name", "owner", "description", "pipeline_version"]))
def test_a_pipeline_with_anything_in_a_fields_place_is_a_pipeline_or_a_refusal(value: Any, field: str) -> None:
    whatever(file(dbt("a", [], ["x.a"]), **{field: value}))
    whatever(file(dbt("a", [], ["x.a"]), {**dbt("b", [], ["x.b"]), "work": value}))


@pytest.mark.parametrize(
    "raw",
    [
        *(b"- :" * 20_000, b"? " * 30_000, b"!" * 60_000, b"a:\n" * 20_000, b"{a: " * 15_000, b"'" * 60_000),
        *(b"a: |\n" + b" " * 60_000, b"".join(b"%x: 1\n" % number for number in range(8_000)), b"&a " * 20_000),
    ],
    ids=lambda raw: repr(raw[:6]),
)
def test_the_worst_that_64_kib_can_be_takes_seconds_at_most(raw: bytes) -> None:
    assert len(raw) <= MAX_DOCUMENT_BYTES
    begun = datetime.now(UTC)
    whatever(raw)
    assert datetime.now(UTC) - begun < timedelta(seconds=20)


# ---------------------------------------------------------------- job specs


def test_specs_are_a_launch_of_the_file() -> None:
    raw = file(
        {**dbt("marts", ["staging.a"], ["marts.x"]), "labels": {"team": "ops"}, "max_attempts": 5},
        {**load("load_a", "landing/a", "staging.a"), "resources": {"cpu": 256}},
    )
    first, second = specs(raw)
    assert [first.task, second.task] == ["load_a", "marts"]
    assert [first.run_id, second.run_id] == [run_id(1), run_id(2)]
    assert first.pipeline_run == second.pipeline_run == run_id(9999)
    assert {(each.pipeline, each.logic, each.logical_time) for each in (first, second)} == {
        ("flights", LOGIC, datetime(2013, 6, 1, tzinfo=UTC))
    }
    assert (first.resources.cpu, second.labels, second.max_attempts) == (256, {"team": "ops"}, 5)
    assert all(parse_spec(each.to_json()) == each for each in (first, second))


def test_the_sample_pipeline_becomes_specs() -> None:
    path = Path(__file__).parents[2] / "dbt" / "pipelines" / "flights.yaml"
    made = specs(path.read_bytes(), portal="http://127.0.0.1:8080/nycflights13")
    assert made[0].task == "extract"
    assert made[-1].task == "worst_routes"
    assert isinstance(made[0].work, ExtractWork)
    assert made[0].work.sources[0].url == "http://127.0.0.1:8080/nycflights13/flights.csv"
