"""Documents made to do harm: each is refused by a typed error, at once, and nothing that it says steers a terminal."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from runner import terminal
from runner.adapters.dbt_packages import DbtPackages
from runner.adapters.git_objects import check_address
from runner.engines.contracts.contract import parse_contract
from runner.engines.dbt_files import link_packages, read_yaml
from runner.engines.wire import Wire
from runner.log import JsonLines, PlainText
from runner.model import table_documents
from runner.model.difference import Difference
from runner.model.errors import Category, DataError, Failure, LogicError, RunnerError, SpecError
from runner.model.hosts import HostRules
from runner.model.lineage import Edge, tree
from runner.model.manifest import (
    AttemptRecord,
    Column,
    LogicRecord,
    Manifest,
    PackageRecord,
    Pin,
    Report,
    Software,
    State,
    Step,
)
from runner.model.messages import FROM_ENGINE
from runner.model.pipeline import load_yaml, parse_pipeline
from runner.model.policy import LONGEST_TOLD_S, back_off_s
from runner.model.spec import parse_spec
from runner.model.strict import load_json, parse_json
from runner.ports import RunRow
from tests.fuzz.seeds import MESSAGES, column, contract_of
from tests.fuzz.targets import TARGETS, ended, require_harmless, screen
from tests.support.documents import (
    COMMIT,
    DECIDED_AT,
    input_record,
    job_spec,
    manifest_of,
    output_record,
    spec_document,
)
from tests.support.packages import lock
from tests.support.twins import MemoryObjects

WHAT = "pipelines/x.yaml"
DEEP = 30_000
"""Brackets: as many as a document of 64 KiB can open and close."""


def refusal(parse: Callable[[], object], error: type[RunnerError] = SpecError) -> str:
    with pytest.raises(error) as caught:
        parse()
    assert len(caught.value.message) <= 1000
    return caught.value.message


def spec_of(*stage: str, **given: Any) -> Callable[[], object]:
    return lambda: parse_spec(json.dumps(spec_document(*stage, **given)))


def pipeline_of(raw: bytes, **params: str) -> Callable[[], object]:
    return lambda: parse_pipeline(raw, what=WHAT, params=params)


# ---------------------------------------------------------------- addresses of logic


@pytest.mark.parametrize(
    "repo",
    [
        "--upload-pack=touch owned",
        "-oProxyCommand=id",
        "--template=x",
        "ext::sh -c id",
        "ext::https://git.example.org/logic.git",
        "fd::17",
        "file://git.example.org/logic.git",
        "file:logic.git",
        "git@git.example.org:logic.git",
        "user@host",
        "user:password@git.example.org/logic.git",
        "https://user@git.example.org/logic.git",
        "https://user:password@git.example.org/logic.git",
        "https://git.example.org@evil.example.org/logic.git",
        "https://git.example.org\\@evil.example.org/logic.git",
        "https://git.example.org\n@evil.example.org/logic.git",
        "https:///logic.git",
        "git://git.example.org/logic.git",
        "HTTPS://git.example.org/logic.git",
        "javascript://git.example.org/logic.git",
        "logic.git",
        "../logic.git",
        "~/logic.git",
        "C:\\logic",
        "\x1b[2J/logic",
        "/srv/logic\x1b[2J",
        "/srv/logic\0.git",
        "/srv/logic\ud800",
        "https://git.example.org/logic.git\r\nHost: evil.example.org",
    ],
)
def test_an_address_that_is_a_command_or_somebody_elses_is_refused(repo: str) -> None:
    def ask() -> None:
        spec = parse_spec(json.dumps(spec_document(logic={"repo": repo, "commit": COMMIT})))
        check_address(spec.logic.repo)

    message = refusal(ask)
    assert "expected" in message
    assert "password@" not in message
    require_harmless(message)


def test_a_password_in_an_address_is_not_told_however_it_is_hidden() -> None:
    for repo in (
        "https://u:tea-at-four@h/x",
        "https://u:tea-at-four\n@h/x",
        "u:tea-at-four@h:x",
        "ftp://u:tea-at-four@h/x",
    ):
        assert "tea" not in refusal(lambda repo=repo: check_address(repo)), repo  # type: ignore[misc]


# ---------------------------------------------------------------- paths that climb out

CLIMBING = (
    "..",
    "../x",
    "a/../../x",
    "a/..",
    "/etc/passwd",
    "\\\\host\\x",
    "a\\..\\x",
    "a\0b",
    "a\nb",
    "",
    "a/\x1b[2J",
)


@pytest.mark.parametrize("path", [*CLIMBING, "a" * 256, "a/" * 501])
@pytest.mark.parametrize(
    ("stage", "field"), [("transform", "logic.path"), ("load", "work.load.contract"), ("query", "work.query.file")]
)
def test_a_path_that_leads_out_or_nowhere_is_refused_in_every_field(stage: str, field: str, path: str) -> None:
    document = spec_document(stage)
    *way, last = [part for part in field.split(".") if part not in ("load", "query")]
    node = document[way[0]] if way else document
    node = dict(node, **{last: path})
    message = refusal(spec_of(stage, **{way[0]: node}))
    assert message.startswith(f"job spec: {way[0]}.{last}: expected a path "), message


@pytest.mark.parametrize(
    "name", ["../x", "a/..", "a/../b", "..", "a..b", "./a", "a//b", "/a/b", "a/b/", "a/b.c", "a.b.c"]
)
@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_a_dataset_that_leads_out_is_none(field: str, name: str) -> None:
    message = refusal(spec_of("transform", **{field: [{"dataset": name, "from": "main.x", "as": "x"}]}))
    assert message.startswith(f"job spec: {field}[0]")


@pytest.mark.parametrize("field", ["pipeline", "task"])
@pytest.mark.parametrize("name", ["../x", "..", "a/b", "a.b", "\x1b[2J", "", "A", "a" * 129])
def test_a_name_that_becomes_a_path_holds_no_part_of_one(field: str, name: str) -> None:
    assert refusal(spec_of("transform", **{field: name})).startswith(f"job spec: {field}: expected an identifier")


@pytest.mark.parametrize("path", [*CLIMBING, "a" * 256])
def test_a_child_names_no_file_outside_of_its_scratch(path: str) -> None:
    for field, value in (("outputs__0__files__0__path", path), ("artifacts", [path])):
        with pytest.raises(ValidationError, match="expected a path "):
            FROM_ENGINE.validate_json(hostile_result(**{field: value}))


# ---------------------------------------------------------------- large, and deep


def test_a_spec_of_a_megabyte_is_refused_by_its_size() -> None:
    raw = json.dumps(spec_document(labels={"note": "x" * 1024 * 1024}))
    assert refusal(lambda: parse_spec(raw)) == f"job spec: expected at most 65,536 bytes, got {len(raw):,}"
    letter = TARGETS["letter"]
    assert letter.hold(raw.encode()) is None  # it is listed and shown, as what it is


@pytest.mark.parametrize("opened", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("closed", [True, False])
def test_a_document_of_a_hundred_thousand_brackets_is_refused(opened: str, closed: bool) -> None:
    close = {"[": "]", '{"a":': "}", '[{"a":': "}]"}[opened]
    for count in (100_000, DEEP // len(opened)):
        raw = opened * count + ("1" + close * count if closed else "")
        for message in (
            refusal(lambda raw=raw: parse_spec(raw)),  # type: ignore[misc]
            refusal(pipeline_of(raw.encode())),
            refusal(lambda raw=raw: parse_contract(raw.encode(), what="x.odcs.yaml")),  # type: ignore[misc]
            refusal(lambda raw=raw: load_json(raw, what="manifest"), SpecError),  # type: ignore[misc]
        ):
            assert re.search("expected at most 65,536 bytes|nested too deeply", message), message


def test_a_value_deep_in_a_spec_is_refused_where_it_is() -> None:
    raw = json.dumps(spec_document()).replace('"flights"', "[" * 900 + "]" * 900, 1)
    assert "nested" in refusal(lambda: parse_spec(raw)) or "recursion" in refusal(lambda: parse_spec(raw))


# ---------------------------------------------------------------- YAML

LAUGHS = b"\n".join(
    [b"a0: &a0 [x, x]", *(b"a%d: &a%d [%s]" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 9))]
)


def test_a_bomb_of_aliases_is_no_pipeline_and_no_contract() -> None:
    for parse in (pipeline_of(LAUGHS), lambda: parse_contract(LAUGHS, what=WHAT)):
        assert refusal(parse) == f"{WHAT}: expected YAML, got an alias, which is not allowed at line 2 column 10"


def test_a_bomb_of_parameters_is_refused_at_a_megabyte() -> None:
    raw = json.dumps({"params": {"a": "x" * 30_000}, "stages": ["${a}" * 1000]}).encode()
    assert refusal(pipeline_of(raw)) == f"{WHAT}: expected at most 1,048,576 characters from params, got more"


def test_what_a_parameter_says_is_not_read_for_parameters_again() -> None:
    params = {"a": "${b}", "b": "${a}"}
    raw = json.dumps({"pipeline_version": 1, "name": "x", "params": params, "stages": "${a}"}).encode()
    assert refusal(pipeline_of(raw)).endswith("got '${b}'")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param('"\\UFFFFFFFF"', id="no character"),
        pytest.param('"\\U00110000"', id="no character of Unicode"),
        pytest.param('"\\ud800"', id="half a pair"),
        pytest.param("0x" + "f" * 5000, id="a number that cannot be written"),
        pytest.param("0b" + "1" * 20000, id="a binary one"),
        pytest.param("9" * 5000, id="a number that cannot be read"),
        pytest.param("1" + ":59" * 10000, id="a number in sixties"),
        pytest.param("1" + ":59" * 300 + ":00.0", id="a fraction in sixties"),
        pytest.param(".inf", id="infinity"),
        pytest.param(".nan", id="not a number"),
        pytest.param("!!python/object/apply:os.system [id]", id="a call"),
        pytest.param("!!python/name:os.system", id="a name"),
        pytest.param("!!binary x", id="a tag"),
        pytest.param("! x", id="no tag"),
        pytest.param("&a [*a]", id="itself"),
        pytest.param("{<<: {b: 1}}", id="a merge"),
        pytest.param("{b: 1, b: 2}", id="a key twice"),
        pytest.param("{1: 2}", id="a key that is a number"),
        pytest.param("{[a]: 2}", id="a key that is a list"),
        pytest.param('"\0"', id="NUL"),
        pytest.param("[" * DEEP, id="brackets"),
        pytest.param("- " * DEEP, id="dashes"),
        pytest.param("? " * DEEP, id="question marks"),
    ],
)
def test_what_yaml_can_say_and_json_cannot_is_refused(value: str) -> None:
    raw = f"name: {value}\nstages: []\n".encode()
    assert refusal(pipeline_of(raw)).startswith(f"{WHAT}: ")
    contract = contract_of(column("a")).replace(b'"trips"', value.encode(), 1)
    assert refusal(lambda: parse_contract(contract, what=WHAT)).startswith(f"{WHAT}: ")


def test_a_directive_of_a_number_that_cannot_be_read_is_refused() -> None:
    assert refusal(pipeline_of(b"%YAML 1." + b"9" * 5000 + b"\n---\na: 1")).startswith(f"{WHAT}: expected YAML, got ")


def test_a_date_that_there_is_not_is_text_as_every_date_is() -> None:
    assert load_yaml(b"a: 9999-99-99\nb: 2013-06-01", what=WHAT) == {"a": "9999-99-99", "b": "2013-06-01"}


def test_a_launch_quotes_neither_a_long_file_nor_a_long_parameter() -> None:
    raw = json.dumps({"params": {f"p{n}": "" for n in range(2000)}, "stages": []}).encode()
    name = "\x1b[2J" + "x" * 1_000_000
    message = refusal(pipeline_of(raw, **{name: ""}))
    require_harmless(message)


# ---------------------------------------------------------------- contracts


def test_columns_in_columns_are_refused_before_their_form_takes_hours_to_check() -> None:
    inner = column("a")
    for _ in range(40):
        inner = column("a", "STRUCT", "object", properties=[inner])
    with ended():
        message = refusal(lambda: parse_contract(contract_of(inner), what=WHAT))
    assert message.startswith(f"{WHAT}: rule properties on column a: expected one of ")


@pytest.mark.parametrize("items", [[{}] * 10_000, [1] * 10_000])
@pytest.mark.parametrize("key", ["properties", "quality", "servers", "team"])
def test_thousands_of_faults_take_no_longer_than_one(key: str, items: list[Any]) -> None:
    document = json.loads(contract_of(column("a")))
    at = {"properties": document["schema"][0], "quality": document["schema"][0]["properties"][0]}.get(key, document)
    at[key] = items
    assert refusal(lambda: parse_contract(json.dumps(document).encode(), what=WHAT)).startswith(f"{WHAT}: ")


def test_a_thousand_values_that_are_allowed_are_compared_at_once_and_none_is_there_twice() -> None:
    entries = [{"value": str(number)} for number in range(1500)]
    assert parse_contract(contract_of(column("a", enum=entries)), what=WHAT).values[0].name == "enum(a)"
    twice = contract_of(column("a", enum=[*entries, entries[0]]))
    assert "non-unique" in refusal(lambda: parse_contract(twice, what=WHAT))


@pytest.mark.parametrize(
    "condition",
    [
        pytest.param("NOT " * 12_000 + "true", id="more than DuckDB reads"),
        pytest.param("NOT " * 900 + "true", id="more than Python reads"),
        pytest.param("1" + " + 1" * 400 + " > 0", id="a long sum"),
        pytest.param("abs(" * 300 + "1" + ")" * 300 + " > 0", id="calls in calls"),
        pytest.param("CASE WHEN true THEN " * 200 + "true" + " END" * 200, id="cases in cases"),
    ],
)
def test_sql_in_a_rule_that_is_nested_without_end_is_refused(condition: str) -> None:
    check = {"type": "sql", "query": f"SELECT count(*) FROM {{object}} WHERE {condition}", "mustBe": 0}
    message = refusal(lambda: parse_contract(contract_of(column("a"), quality=[check]), what=WHAT))
    assert message.startswith(f"{WHAT}: schema[0].quality[0].query: expected ")


def test_many_conditions_side_by_side_are_not_deep() -> None:
    condition = " AND ".join(f"a <> '{number}'" for number in range(1000))
    check = {"type": "sql", "name": "n", "query": f"SELECT count(*) FROM {{object}} WHERE {condition}", "mustBe": 0}
    contract = parse_contract(contract_of(column("a"), quality=[check]), what=WHAT)
    assert [rule.name for rule in contract.values] == ["n"]


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "^(([a-z])+.)+[A-Z]([a-z])+$", "(x+x+)+y"])
def test_a_pattern_that_backtracks_for_ever_elsewhere_is_judged_by_an_engine_that_does_not(pattern: str) -> None:
    import duckdb

    contract = parse_contract(contract_of(column("a", logicalTypeOptions={"pattern": pattern})), what=WHAT)
    (rule,) = contract.values
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE x AS SELECT repeat('a', 1000000) || '!' AS value_0")
        assert connection.execute(f"SELECT {rule.broken} FROM x").fetchall() == [(True,)]


def test_a_number_that_is_none_of_the_columns_type_is_refused_and_not_tried_on_rows() -> None:
    far = column("far", "DOUBLE", "number", logicalTypeOptions={"minimum": 10**400})
    assert "expected a value of DOUBLE" in refusal(lambda: parse_contract(contract_of(far), what=WHAT))


# ---------------------------------------------------------------- dbt's files, which the worker reads


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "dbt_project.yml").write_text("name: small\n")
    return tmp_path


def install(project: Path, **files: str) -> Callable[[], object]:
    for name, text in files.items():
        (project / f"{name}.yml").write_text(text)

    def fetch(*_: object) -> Path:
        raise AssertionError("nothing may be fetched")

    packages = DbtPackages(
        MemoryObjects(),
        None,  # type: ignore[arg-type]  # nothing is asked of git either
        hub="https://hub.example.org",
        allowed=HostRules.parse(["*.example.org"]),
        fetch=fetch,
    )
    return lambda: packages.install(project, clone=project, scratch=project / "scratch")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(LAUGHS.decode(), id="a bomb of aliases"),
        pytest.param("a: &a [*a]", id="itself"),
        pytest.param("a: &a {b: *a}", id="itself in a mapping"),
        pytest.param("a: &a " + "x" * 500_000 + "\nb: [" + "*a, " * 100 + "]", id="a long text many times"),
        pytest.param('a: "\\0"', id="NUL"),
        pytest.param('a: "\\ud800"', id="half a pair"),
        pytest.param('a: "\\UFFFFFFFF"', id="no character"),
        pytest.param("a: 0x" + "f" * 5000, id="a number that cannot be written"),
        pytest.param("a: 1" + ":59" * 300 + ":00.0", id="a fraction in sixties"),
        pytest.param("a: 9999-99-99", id="no date"),
        pytest.param("a: !!bool x", id="no truth"),
        pytest.param("a: !!int ''", id="no number"),
        pytest.param("a: !!timestamp x", id="no time"),
        pytest.param("a: !!python/object/apply:os.system [id]", id="a call"),
        pytest.param("{[a]: 1}", id="a key that is a list"),
        pytest.param("[" * 100_000, id="brackets"),
        pytest.param("a: !" + "x" * 100_000 + " b", id="a long tag"),
    ],
)
def test_a_file_of_a_dbt_project_that_is_made_to_do_harm_is_refused(project: Path, text: str) -> None:
    (project / "x.yml").write_text(text)
    assert refusal(lambda: read_yaml(project / "x.yml"), LogicError).startswith("x.yml: expected YAML, got ")
    message = refusal(install(project, packages="packages: [{package: a/b, version: 1.0.0}]\n" + text), LogicError)
    assert message.startswith("packages.yml: expected YAML, got ")


def test_anchors_and_aliases_of_people_who_mean_well_are_read(project: Path) -> None:
    (project / "x.yml").write_text("a: &a {b: [1, 2013-06-01]}\nc: {<<: *a, d: *a}\n")
    read = read_yaml(project / "x.yml")
    assert read["c"] == {"b": read["a"]["b"], "d": read["a"]}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"git": "https://[::1", "revision": COMMIT}, "expected an http(s) address, got https://[::1"),
        ({"git": "https://h.example.org:99999/x", "revision": COMMIT}, "expected an http(s) address, got"),
        ({"git": "ext::sh -c id", "revision": COMMIT}, "expected an http(s) address without user and password"),
        ({"git": "--upload-pack=id", "revision": COMMIT}, "expected an http(s) address without user and password"),
        ({"git": "https://u:p@h.example.org/x", "revision": COMMIT}, "expected an http(s) address without user"),
        ({"git": "https://169.254.170.2/x", "revision": COMMIT}, "expected a host that RUNNER_SOURCE_HOSTS allows"),
        ({"git": "https://h.example.org/x", "revision": "--all"}, "expected a commit of 40 hex digits"),
        ({"package": "../../x", "version": "1"}, "expected `namespace/name` and one version"),
        ({"package": "a/b", "version": "../../x"}, "expected `namespace/name` and one version"),
        ({"tarball": "file:///etc/passwd", "name": "x"}, "expected an http(s) URL"),
    ],
)
def test_a_package_from_where_none_may_come_is_refused(project: Path, entry: Mapping[str, str], message: str) -> None:
    asked = install(project, **{"packages": json.dumps({"packages": [entry]}), "package-lock": lock([entry], [entry])})
    assert message in refusal(asked, LogicError)


@pytest.mark.parametrize("keys", ["{git: x, 1: 2}", "{git: x, 2013-06-01: 2}", "{git: x, {a: b}: 1}"])
def test_a_list_of_packages_with_keys_that_are_no_text_is_refused(project: Path, keys: str) -> None:
    asked = install(project, **{"packages": f"packages: [{keys}]", "package-lock": "packages: [{git: x}]"})
    refusal(asked, LogicError)


def test_packages_go_to_no_place_that_cannot_be(project: Path) -> None:
    entry = {"package": "a/b", "version": "1.0.0"}
    files = {"packages": json.dumps({"packages": [entry]}), "package-lock": lock([entry], [entry])}
    for place in ("../out", "/tmp/out", "x" * 300, "a/../../out"):
        (project / "dbt_project.yml").write_text(json.dumps({"name": "small", "packages-install-path": place}))
        assert "expected a folder of the repository" in refusal(install(project, **files), LogicError)


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "a/b", ".", "", "x" * 300, "a b"])
def test_a_local_package_is_linked_by_a_name_that_leads_nowhere_else(project: Path, name: str) -> None:
    (project / "sub").mkdir()
    (project / "sub" / "dbt_project.yml").write_text(json.dumps({"name": name}))
    (project / "packages.yml").write_text("packages: [{local: sub}]")
    message = refusal(lambda: link_packages(project, project / "dbt_packages", clone=project), LogicError)
    assert message.startswith("sub/dbt_project.yml: name: expected letters, digits and underscores, got ")
    assert not (project / "dbt_packages").exists()


def test_a_local_package_behind_links_that_go_round_in_a_circle_is_none(project: Path) -> None:
    (project / "a").symlink_to(project / "b")
    (project / "b").symlink_to(project / "a")
    for named in ("a", "a/x", "x" * 300, "x/" * 2000):
        (project / "packages.yml").write_text(json.dumps({"packages": [{"local": named}]}))
        message = refusal(install(project), LogicError)
        assert message.startswith("packages.yml: local: expected a folder of the repository with a dbt_project.yml")


# ---------------------------------------------------------------- what a job's own code sends to its worker


def hostile_result(**change: Any) -> bytes:
    done = json.loads(next(each for each in MESSAGES if b'"type":"done"' in each))
    for path, value in change.items():
        *way, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        node = done["result"]
        for part in way:
            node = node[part]
        node[last] = value
    return json.dumps(done).encode()


def test_the_result_that_the_hostile_ones_are_made_of_is_taken() -> None:
    assert FROM_ENGINE.validate_json(hostile_result()).type == "done"


@pytest.mark.parametrize("field", ["steps", "outputs", "artifacts", "outputs__0__files", "outputs__0__columns"])
def test_a_hundred_thousand_things_that_are_none_are_refused_at_the_first(field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        FROM_ENGINE.validate_json(hostile_result(**{field: [{}] * 100_000}))
    assert caught.value.error_count() < 10


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("outputs__0__rows", 2**63),
        ("outputs__0__rows", -1),
        ("outputs__0__rows", 10**400),
        ("outputs__0__claimed_inputs", ["a\0b"]),
        ("outputs__0__files__0__sha256", "x\0"),
        ("steps__0__seconds", float("inf")),
        ("steps__0__seconds", float("nan")),
        ("steps__0__name", "\ud800"),
    ],
)
def test_what_the_ledger_could_not_hold_is_no_result(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        FROM_ENGINE.validate_json(hostile_result(**{field: value}))


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_beyond_all_is_no_result(number: str) -> None:
    raw = hostile_result(steps__0__seconds=0.123456).replace(b"0.123456", number.encode())
    with pytest.raises(ValidationError):
        FROM_ENGINE.validate_json(raw)


def test_a_failure_that_a_child_reports_is_short_and_printable_and_holds_nobody_for_ever() -> None:
    told = {"category": "rate_limit", "message": "\x1b[2J\0" * 1_000_000, "hint": "x" * 10**6, "retry_after_s": 1e300}
    failed = FROM_ENGINE.validate_json(json.dumps({"type": "failed", "failure": told}))
    assert len(failed.failure.message) <= 1000
    assert len(failed.failure.hint) <= 1000
    require_harmless(failed.failure.message)
    assert back_off_s(failed.failure, attempt=1, jitter=lambda: 0.0) == LONGEST_TOLD_S
    assert back_off_s(failed.failure.model_copy(update={"retry_after_s": -5.0}), attempt=1, jitter=lambda: 0.0) == 0


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as few objects as can be


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize(
    "sent", [b"\0\0", b"\0\0\0\x05ab", b"\xff\xff\xff\xff", b"\0\0\x10\0"], ids=["header", "body", "size", "limit"]
)
def test_descriptors_of_a_frame_that_is_none_are_closed(sent: bytes) -> None:
    before = open_descriptors()
    for _ in range(20):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            socket.send_fds(theirs, [sent], [theirs.fileno()] * 3)
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(EOFError):
                Wire(ours).receive(most_bytes=1024)
    assert open_descriptors() == before


# ---------------------------------------------------------------- documents of tables


def test_a_small_table_document_that_stands_for_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_documents, "_MAX_DOCUMENT_BYTES", 1024 * 1024)
    for size in (2 * 1024 * 1024, 64 * 1024 * 1024):
        raw = gzip.compress(b" " * size)
        message = refusal(lambda raw=raw: table_documents.parse_document("s3://lake/x", raw), DataError)  # type: ignore[misc]
        assert message == "s3://lake/x: expected at most 1,048,576 bytes of metadata, got more"


# ---------------------------------------------------------------- what reaches a terminal

STEERING = "\x1b[2J\x1b]0;owned\x07\x9b31m\x7f\x85\u202e\r\b"
MARKUP = "[bold][link=https://evil.example.org]here[/link][/x] :skull:"


def full_manifest() -> Manifest:
    output = output_record(
        "marts.delays",
        columns=(Column(name="carrier", type="string"),),
        different_columns=("carrier",),
        comparison="different",
        repeated_rows=2,
        claimed_inputs=("staging.flights",),
    )
    failure = Failure(category=Category.DATA, message="model x failed", hint="look at it", subject="x")
    attempt = AttemptRecord(
        attempt=1, worker="host-1", started_at=DECIDED_AT, outcome="failed", failure=failure, log="s3://lake/log"
    )
    logic = LogicRecord(
        repo="https://git.example.org/logic.git",
        commit=COMMIT,
        path=".",
        tree=COMMIT,
        origin="repository",
        committed_at=DECIDED_AT,
        packages=(PackageRecord(name="tools", version="1.0", source="https://hub.example.org", sha256="0" * 64),),
    )
    report = Report(
        logic=logic,
        software=Software(runner="1", python="3.11", packages={"duckdb": "1.5.5"}, image="sha256:0"),
        inputs=(input_record("staging.flights", as_="staging.flights"),),
        steps=(Step(name="model.x", kind="model", status="error", message="it broke"),),
        counts={"rows_found": 1},
    )
    spec = job_spec(
        "transform",
        params={"month": "2013-01"},
        labels={"team": "delays"},
        rerun={"of": str(UUID(int=1)), "effect": str(UUID(int=1))},
    )
    pin = Pin(as_="staging.flights", dataset="staging.flights", snapshot="1", metadata="s3://lake/m.json")
    values: dict[str, Any] = {
        "state": State.FAILED,
        "failure": failure,
        "attempts": (attempt,),
        "pins": (pin,),
        "report": report,
    }
    return manifest_of(output, spec=spec, **values)


def texts_in(node: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where a text stands in a document."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from texts_in(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from texts_in(value, (*path, index))
    elif isinstance(node, str):
        yield path


def with_text(document: Any, path: tuple[str | int, ...], text: str) -> Any:
    copy = json.loads(json.dumps(document))
    node = copy
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = text
    return copy


def shown_of(manifest: Manifest) -> str:
    row = RunRow(
        **{name: getattr(manifest.spec, name) for name in ("run_id", "effect", "pipeline", "task", "stage")},
        state=manifest.state,
        attempt=1,
        max_attempts=3,
        logical_time=manifest.spec.logical_time,
        submitted_at=manifest.submitted_at,
        started_at=None,
        decided_at=manifest.decided_at,
        failure=manifest.failure,
        rows=manifest.rows,
        commit=manifest.spec.logic.commit,
        pipeline_run=None,
    )
    with screen() as shown:
        terminal.show_manifest(manifest)
        terminal.run_line(manifest)
        terminal.runs_table([row])
        terminal.print_json(manifest)
        terminal.print_json(manifest.spec)
        terminal.print_json(asdict(row))
        for output in manifest.outputs:
            terminal.comparison_line(output, output)
        if manifest.failure:
            terminal.print_failure(manifest.failure)
    return shown.getvalue()


def test_whatever_text_a_manifest_holds_steers_no_terminal() -> None:
    document = json.loads(full_manifest().to_json())
    paths = list(texts_in(document))
    taken = []
    for path in paths:
        for text in (STEERING, MARKUP, f"{STEERING}.{STEERING}"):
            try:
                manifest = parse_json(Manifest, json.dumps(with_text(document, path, text)), what="manifest")
            except SpecError as refused:
                require_harmless(refused.message)
                continue
            require_harmless(shown_of(manifest))
            taken.append(path)
    names = {".".join(str(part) for part in path if isinstance(part, str)) for path in taken}
    # Where a repository or a child decides what is said, and nobody before the terminal looks at it.
    assert names >= {
        "failure.message",
        "report.steps.name",
        "report.steps.message",
        "report.software.packages.duckdb",
        "report.inputs.dataset",
        "report.logic.packages.name",
        "outputs.columns.name",
        "outputs.fingerprint.hash",
        "attempts.worker",
        "spec.params.month",
        "spec.labels.team",
    }
    # And where it cannot be said at all.
    assert names.isdisjoint(
        {"spec.pipeline", "spec.task", "spec.outputs.dataset", "outputs.dataset", "spec.outputs.from"}
    )


@pytest.mark.parametrize("place", ["packages", "counts"])
def test_a_key_steers_no_terminal(place: str) -> None:
    document = json.loads(full_manifest().to_json())
    report = document["report"]
    (report["software"] if place == "packages" else report)[place] = {STEERING: "1" if place == "packages" else 1}
    shown = shown_of(parse_json(Manifest, json.dumps(document), what="manifest"))
    require_harmless(shown)
    assert r"\x1b[2J" in shown


def test_markup_is_shown_as_it_stands() -> None:
    document = json.loads(full_manifest().to_json())
    document["report"]["software"]["packages"] = {"evil": MARKUP}
    shown = shown_of(parse_json(Manifest, json.dumps(document), what="manifest"))
    assert f"evil {MARKUP}" in shown


def test_lines_of_a_log_steer_no_terminal() -> None:
    line = {"at": STEERING * 9, "level": STEERING, "attempt": [STEERING], "message": STEERING, "traceback": STEERING}
    with screen() as shown:
        terminal.print_log_line(line)
        terminal.print_json(line)
    require_harmless(shown.getvalue())
    record = logging.LogRecord("runner", logging.INFO, "x.py", 1, STEERING + "\ud800", None, None)
    for formatter in (PlainText(), JsonLines()):
        require_harmless(formatter.format(record))


def test_lineage_and_differences_steer_no_terminal() -> None:
    edge = Edge(
        run_id=UUID(int=1),
        output=STEERING,
        output_snapshot=STEERING,
        input=f"{STEERING}2",
        input_snapshot=STEERING,
        claimed=None,
        observed=STEERING,
        commit=STEERING,
        rows=1,
        decided_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    with screen() as shown:
        terminal.lineage_tree(tree([edge], STEERING, STEERING, direction="upstream"))
        terminal.differences_table([Difference(fact=STEERING, left=STEERING, right=None)], STEERING, STEERING)
        terminal.warn(STEERING)
    require_harmless(shown.getvalue())
    assert r"\x1b[2J" in shown.getvalue()


def test_json_for_machines_says_the_same_and_steers_no_terminal() -> None:
    with screen() as shown:
        terminal.print_json({STEERING: f"é{STEERING}\ud800"})
    require_harmless(shown.getvalue())
    assert json.loads(shown.getvalue()) == {STEERING: f"é{STEERING}\ud800"}
    assert "é" in shown.getvalue()


@pytest.mark.parametrize("field", ["pipeline", "task", "outputs", "params"])
def test_a_refusal_shows_what_came_without_what_would_steer(field: str) -> None:
    given: Any = {"outputs": [{"dataset": STEERING, "from": "main.x"}], "params": {STEERING: "x"}}.get(field, STEERING)
    require_harmless(refusal(spec_of("transform", **{field: given})))
