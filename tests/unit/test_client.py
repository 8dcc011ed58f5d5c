"""What people and orchestrators do with runs: submit, find, read and rerun them, over the ports' twins."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from runner.client import Client
from runner.model.errors import ConflictError, LogicError, SpecError
from runner.model.manifest import Pin
from runner.model.names import log_key, spec_key
from runner.model.spec import JobSpec, Logic, Stage, parse_spec
from runner.ports import Checkout
from tests.support.documents import COMMIT, job_spec, manifest_of, output_record, run_id, spec_document
from tests.support.twins import MemoryLedger, MemoryObjects, MemoryQueue, TestClock

REPO = "https://git.example.org/logic.git"
OTHER_COMMIT = "f" * 40
PIPELINE = b"""
pipeline_version: 1
name: flights
params: {portal: "https://portal.example.org"}
stages:
  - task: load_flights
    stage: load
    work: {kind: load, contract: contracts/flights.odcs.yaml, format: {type: csv}}
    inputs: [{dataset: landing/flights}]
    outputs: [{dataset: staging.flights}]
  - task: extract
    stage: extract
    work: {kind: extract, sources: [{name: flights, url: "${portal}/flights.csv"}]}
    outputs: [{dataset: landing/flights, from: flights}]
"""
THREE_STAGES = b"""
pipeline_version: 1
name: marts
stages:
  - task: clean
    stage: transform
    work: {kind: dbt, steps: [{command: build}]}
    inputs: [{dataset: staging.flights}]
    outputs: [{dataset: clean.flights, from: main.flights}]
  - task: delays
    stage: transform
    work: {kind: dbt, steps: [{command: build}]}
    inputs: [{dataset: clean.flights}, {dataset: staging.planes, as: planes}]
    outputs: [{dataset: marts.delays, from: main.delays, state: restore}, {dataset: dev_marts.trial, from: main.trial}]
  - task: worst
    stage: query
    work: {kind: query, file: worst.sql}
    inputs: [{dataset: marts.delays, as: delays}]
    outputs: [{dataset: exports/worst, format: csv}]
"""


class FakeLogic:
    """`LogicSource` with branches and files at hand; nobody here checks anything out."""

    def __init__(self) -> None:
        self.refs = {"main": COMMIT, "v1": OTHER_COMMIT}
        self.files = {
            (COMMIT, "pipelines/flights.yaml"): PIPELINE,
            (COMMIT, "sub/pipelines/flights.yaml"): PIPELINE,
            (COMMIT, "pipelines/marts.yaml"): THREE_STAGES,
            (OTHER_COMMIT, "pipelines/marts.yaml"): THREE_STAGES,
        }
        self.production = {COMMIT}
        self.asked: list[str] = []

    def resolve_ref(self, repo: str, ref: str) -> str:
        commit = ref if len(ref) == 40 else self.refs.get(ref)
        if repo != REPO or commit is None:
            raise LogicError(f"{repo}: expected a branch, tag or commit, got {ref!r}", hint="git ls-remote lists them")
        return commit

    def read_file(self, repo: str, commit: str, path: str) -> bytes:
        if (commit, path) not in self.files:
            raise LogicError(f"{repo} at {commit[:12]}: expected {path}, got none")
        return self.files[commit, path]

    def reached(self, repo: str, commit: str, ref: str) -> bool:
        self.asked.append(commit)
        if ref not in self.refs:
            raise LogicError(f"{repo}: expected a branch or tag {ref!r}, got none", hint="RUNNER_PRODUCTION_REF")
        return ref == "main" and commit in self.production

    def checkout(self, repo: str, commit: str, workspace: Path) -> Checkout:
        raise AssertionError("a client runs nothing")


class FakeWorkingTrees:
    """`WorkingTrees` with one tree, whose root or folder `sub` is asked for."""

    def __init__(self) -> None:
        self.dirty = True

    def commit(self, folder: Path) -> Logic:
        if folder.name not in ("tree", "sub"):
            raise LogicError(f"working tree {folder}: expected only files, got a submodule", subject="packages")
        return Logic(repo=REPO, commit=OTHER_COMMIT, path="sub" if folder.name == "sub" else ".", dirty=self.dirty)


class SearchableMemoryLedger(MemoryLedger):
    def find_run(self, text: str) -> list[UUID]:
        """As the ledger's query: by the beginning of the id, or by its end."""
        ids = [str(row.run_id) for row in self.runs(limit=1000)]
        return [UUID(each) for each in ids if each.startswith(text) or each.endswith(text)][:2]


@pytest.fixture
def clock() -> TestClock:
    return TestClock(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


@pytest.fixture
def client(clock: TestClock) -> Client:
    drawn = map(run_id, range(1, 1000))
    return Client(
        ledger=SearchableMemoryLedger(clock),
        objects=MemoryObjects(),
        queue=MemoryQueue(clock),
        logic=FakeLogic(),
        working_trees=FakeWorkingTrees(),
        clock=clock,
        new_run_id=lambda: next(drawn),
        production_ref="main",
    )


def written(**given: Any) -> bytes:
    """A spec as a person writes it: without an id and a time."""
    document = spec_document(**given)
    return json.dumps(
        {key: value for key, value in document.items() if key not in {"run_id", "logical_time"} - set(given)}
    ).encode()


def end(client: Client, spec: JobSpec, **given: Any) -> None:
    """Let a worker carry the run to its end."""
    client.ledger.claim(spec, worker="host:1")
    client.ledger.decide(manifest_of(output_record("marts.delays"), spec=spec, **given), attempt=1)


# ---------------------------------------------------------------- submitting


def test_a_spec_is_in_the_ledger_and_beside_the_record_before_it_is_queued(client: Client) -> None:
    spec = client.submit(job_spec())
    assert client.ledger.spec(spec.run_id) == spec
    stored = client.objects.get(spec_key(spec.run_id))
    assert stored is not None
    assert parse_spec(stored) == spec
    delivery = client.queue.receive(Stage.TRANSFORM, wait_s=0)
    assert delivery is not None
    assert parse_spec(delivery.body) == spec


def test_submitting_twice_is_one_run(client: Client) -> None:
    spec = job_spec()
    client.submit(spec)
    client.submit(spec)
    assert [row.run_id for row in client.ledger.runs(limit=10)] == [spec.run_id]


def test_another_spec_under_the_same_id_is_refused_and_not_queued(client: Client) -> None:
    spec = client.submit(job_spec())
    with pytest.raises(ConflictError):
        client.submit(job_spec("query", run_id=str(spec.run_id)))
    assert client.queue.receive(Stage.QUERY, wait_s=0) is None


# ---------------------------------------------------------------- a spec as a person writes it


def test_an_id_and_a_time_are_drawn_where_none_is_given(client: Client, clock: TestClock) -> None:
    spec = client.read_spec(written(), what="spec.json")
    assert (spec.run_id, spec.logical_time) == (run_id(1), clock.now())


def test_an_id_and_a_time_that_are_given_stay(client: Client) -> None:
    given = {"run_id": str(run_id(77)), "logical_time": "2013-06-01T00:00:00Z"}
    spec = client.read_spec(written(**given), what="spec.json")
    assert (spec.run_id, spec.logical_time) == (run_id(77), datetime(2013, 6, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("logic", "commit"),
    [
        ({"commit": "main"}, COMMIT),
        ({"ref": "v1"}, OTHER_COMMIT),
        ({"commit": OTHER_COMMIT}, OTHER_COMMIT),
        ({"ref": "main", "commit": OTHER_COMMIT}, COMMIT),
    ],
)
def test_a_branch_or_tag_is_resolved_to_a_commit_once(client: Client, logic: dict[str, str], commit: str) -> None:
    spec = client.read_spec(written(logic={"repo": REPO, **logic}), what="spec.json")
    assert spec.logic.commit == commit


def test_a_ref_that_is_not_there_is_a_fault_of_the_request(client: Client) -> None:
    with pytest.raises(SpecError, match="expected a branch, tag or commit, got 'nowhere'") as caught:
        client.read_spec(written(logic={"repo": REPO, "ref": "nowhere"}), what="spec.json")
    assert (caught.value.subject, caught.value.hint) == ("logic.commit", "git ls-remote lists them")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "spec.json: expected JSON, got expecting value"),
        (b"[]", "spec.json: expected a JSON object, got list"),
        (b"{}", "spec.json: spec_version: expected a value, got none"),
        (b'{"a": 1, "a": 2}', "spec.json: a: expected each key once"),
        (b'{"a": 1e999}', "spec.json: expected a finite number, got 1e999"),
        (b" " * 65_537, "spec.json: expected at most 65,536 bytes, got 65,537"),
        (written(color="red"), "spec.json: color: expected no such key, got 'red'"),
        (written(logic="main"), "spec.json: logic: expected an object, got 'main'"),
        (written(logic={"commit": "main"}), "spec.json: logic.repo: expected a value, got none"),
        (written(run_id=None), "spec.json: run_id: expected "),
        (b"\xff", "spec.json: expected UTF-8, got byte 0xff at 0"),
        (b"[" * 60_000, "spec.json: expected JSON, got one nested too deeply"),
    ],
)
def test_what_is_no_spec_is_refused_by_its_file_and_field(client: Client, raw: bytes, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        client.read_spec(raw, what="spec.json")
    assert caught.value.message.startswith(message)


# ---------------------------------------------------------------- pipelines


def test_a_pipeline_becomes_specs_of_one_launch_in_order(client: Client, clock: TestClock) -> None:
    specs = client.pipeline_specs("flights", repo=REPO, ref="main", params={"portal": "http://127.0.0.1:1"})
    assert [spec.task for spec in specs] == ["extract", "load_flights"]
    assert {spec.pipeline_run for spec in specs} == {run_id(1)}
    assert [spec.run_id for spec in specs] == [run_id(2), run_id(3)]
    assert {(spec.logic.commit, spec.logic.path, spec.logical_time) for spec in specs} == {(COMMIT, ".", clock.now())}
    assert all(spec.params == {"portal": "http://127.0.0.1:1"} for spec in specs)


def test_a_pipeline_may_lie_in_a_folder_of_its_repository(client: Client) -> None:
    specs = client.pipeline_specs("flights", repo=REPO, ref="main", path="sub", params={})
    assert {spec.logic.path for spec in specs} == {"sub"}


@pytest.mark.parametrize(
    ("name", "ref", "params", "message"),
    [
        ("flights", "nowhere", {}, "expected a branch, tag or commit, got 'nowhere'"),
        ("trains", "main", {}, "expected pipelines/trains.yaml, got none"),
        (
            "flights",
            "main",
            {"portla": "x"},
            f"pipelines/flights.yaml at {COMMIT[:12]}: params: expected one of portal",
        ),
    ],
)
def test_a_pipeline_that_is_not_there_is_a_fault_of_the_request(
    client: Client, name: str, ref: str, params: dict[str, str], message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        client.pipeline_specs(name, repo=REPO, ref=ref, params=params)
    assert message in caught.value.message


def test_a_pipeline_has_the_name_of_its_file(client: Client) -> None:
    assert isinstance(client.logic, FakeLogic)
    client.logic.files[COMMIT, "pipelines/trains.yaml"] = PIPELINE
    with pytest.raises(SpecError, match="name: expected 'trains', as the file is called, got 'flights'"):
        client.pipeline_specs("trains", repo=REPO, ref="main", params={})


# ---------------------------------------------------------------- development


def launched(client: Client, commit: str, **given: Any) -> list[tuple[list[tuple[str, str]], list[str]]]:
    """For each spec of the pipeline `marts`: its inputs, dataset and alias, and its outputs."""
    launch = client.launch("marts", client.logic_at(repo=REPO, ref=commit), params={}, **given)
    return [
        ([(each.dataset, each.alias) for each in spec.inputs], [each.dataset for each in spec.outputs])
        for spec in launch.specs
    ]


DEVELOPED = [
    ([("staging.flights", "staging.flights")], ["dev_clean.flights"]),
    ([("dev_clean.flights", "clean.flights"), ("staging.planes", "planes")], ["dev_marts.delays", "dev_marts.trial"]),
    ([("dev_marts.delays", "delays")], ["dev_exports/worst"]),
]


def test_a_commit_that_production_contains_publishes_where_its_pipeline_says(client: Client) -> None:
    assert launched(client, COMMIT) == [
        ([("staging.flights", "staging.flights")], ["clean.flights"]),
        ([("clean.flights", "clean.flights"), ("staging.planes", "planes")], ["marts.delays", "dev_marts.trial"]),
        ([("marts.delays", "delays")], ["exports/worst"]),
    ]


def test_another_commit_makes_dev_datasets_and_reads_those_that_its_pipeline_makes(client: Client) -> None:
    """Other inputs are the published ones; each has the name by which the logic knows it; all else is as written."""
    assert launched(client, OTHER_COMMIT) == DEVELOPED
    launch = client.launch("marts", client.logic_at(repo=REPO, ref=OTHER_COMMIT), params={})
    assert launch.development == f"main does not contain {OTHER_COMMIT[:12]}"
    state = launch.specs[1].outputs[0]
    assert (state.from_, state.state) == ("main.delays", "restore")
    assert {spec.logic.dirty for spec in launch.specs} == {False}


def test_a_working_tree_is_for_development_even_where_production_contains_it(client: Client) -> None:
    assert launched(client, COMMIT, development="it is a working tree") == DEVELOPED


@pytest.mark.parametrize("dirty", [True, False])
def test_specs_of_a_working_tree_say_whether_it_was_dirty(client: Client, dirty: bool) -> None:
    assert isinstance(client.working_trees, FakeWorkingTrees)
    client.working_trees.dirty = dirty
    logic = client.logic_in(Path("tree"))
    launch = client.launch("marts", logic, params={}, development="it is a working tree")
    assert {spec.logic for spec in launch.specs} == {Logic(repo=REPO, commit=OTHER_COMMIT, dirty=dirty)}


@pytest.mark.parametrize(
    ("folder", "path", "found"),
    [("tree", ".", "."), ("sub", ".", "sub"), ("tree", "a/b", "a/b"), ("sub", "a", "sub/a")],
)
def test_a_folder_of_a_working_tree_is_where_the_logic_is(client: Client, folder: str, path: str, found: str) -> None:
    assert client.logic_in(Path(folder), path=path).path == found


def test_a_working_tree_that_cannot_be_a_commit_is_a_fault_of_the_request(client: Client) -> None:
    with pytest.raises(SpecError, match="expected only files, got a submodule"):
        client.logic_in(Path("elsewhere"))


def test_a_dataset_that_is_there_under_its_dev_name_already_is_not_written_twice(client: Client) -> None:
    assert isinstance(client.logic, FakeLogic)
    clash = THREE_STAGES.replace(b"dataset: exports/worst", b"dataset: dev_marts.delays").replace(b"format: csv", b"")
    client.logic.files[OTHER_COMMIT, "pipelines/marts.yaml"] = clash
    with pytest.raises(SpecError, match=r"one writer of 'dev_marts\.delays', got 'marts\.delays' under"):
        launched(client, OTHER_COMMIT)


def test_a_spec_that_the_worker_would_refuse_is_refused_at_the_door(client: Client) -> None:
    spec = job_spec(logic={"repo": REPO, "commit": OTHER_COMMIT})
    with pytest.raises(SpecError) as refused:
        client.require_production(spec)
    assert refused.value.message == (
        f"outputs: expected dev_ datasets only, as main does not contain {OTHER_COMMIT[:12]}, got 'marts.delays'"
    )
    assert refused.value.hint == "name it 'dev_marts.delays', or merge the commit into main first"


@pytest.mark.parametrize(
    ("commit", "given"),
    [
        (COMMIT, {}),
        (OTHER_COMMIT, {"outputs": [{"dataset": "dev_marts.delays", "from": "main.delays"}]}),
        (OTHER_COMMIT, {"rerun": {"of": str(run_id(1)), "effect": str(run_id(1))}}),
    ],
)
def test_a_spec_that_the_worker_would_take_passes(client: Client, commit: str, given: dict[str, Any]) -> None:
    assert isinstance(client.logic, FakeLogic)
    client.require_production(job_spec(logic={"repo": REPO, "commit": commit}, **given))
    assert client.logic.asked == ([] if given else [COMMIT]), "nobody is asked where it does not matter"


def test_a_production_ref_that_is_missing_is_a_fault_of_the_request(client: Client) -> None:
    with pytest.raises(SpecError, match="expected a branch or tag 'live', got none") as refused:
        launched(replace(client, production_ref="live"), OTHER_COMMIT)
    assert refused.value.hint == "RUNNER_PRODUCTION_REF"


# ---------------------------------------------------------------- reruns


def rerun_of(client: Client, first: JobSpec, **how: bool) -> JobSpec:
    return client.rerun(first.run_id, **how)


@pytest.fixture
def ended(client: Client) -> JobSpec:
    """A run that read a snapshot which its spec left open."""
    spec = client.submit(job_spec(inputs=[{"dataset": "staging.flights", "as": "f"}, {"dataset": "staging.planes"}]))
    pins = (
        Pin(as_="f", dataset="staging.flights", snapshot="7", metadata="s3://lake/7"),
        Pin(as_="staging.planes", dataset="staging.planes", snapshot="8", metadata="s3://lake/8"),
    )
    end(client, spec, pins=pins)
    return spec


def test_a_rerun_is_the_stored_spec_pinned_to_what_the_run_read(client: Client, ended: JobSpec) -> None:
    again = rerun_of(client, ended)
    assert [(each.alias, each.snapshot) for each in again.inputs] == [("f", "7"), ("staging.planes", "8")]
    assert again.run_id != ended.run_id
    assert (again.logic, again.work, again.logical_time) == (ended.logic, ended.work, ended.logical_time)
    assert again.rerun is not None
    assert (again.rerun.of, again.rerun.effect, again.publishes_to_branch) == (ended.run_id, ended.run_id, True)


def test_a_rerun_reads_the_newest_or_publishes_only_if_told_to(client: Client, ended: JobSpec) -> None:
    again = rerun_of(client, ended, publish=True, latest_inputs=True)
    assert [each.snapshot for each in again.inputs] == [None, None]
    assert not again.publishes_to_branch


def state_of(client: Client, snapshot: str | None, **how: bool) -> list[str | None]:
    """What a rerun begins from: one run with a restored output, a merged one, and one that has no state."""
    outputs = [
        {"dataset": "marts.delays", "from": "main.delays", "state": "restore"},
        {"dataset": "marts.planes", "from": "main.planes", "mode": "merge", "key": ["id"], "snapshot": "3"},
        {"dataset": "marts.routes", "from": "main.routes"},
    ]
    spec = client.submit(job_spec(outputs=outputs))
    pins = [
        Pin(as_=f"state:marts.{name}", dataset=f"marts.{name}", snapshot=snapshot, metadata="", state=True)
        for name in ("delays", "planes")
        if snapshot is not None
    ]
    end(client, spec, pins=tuple(pins))
    return [each.snapshot for each in rerun_of(client, spec, **how).outputs]


@pytest.mark.parametrize(
    ("snapshot", "how", "again"),
    [
        ("7", {}, ["7", "7", None]),
        ("none", {}, ["none", "none", None]),
        ("7", {"publish": True}, ["7", "7", None]),
        ("7", {"latest_inputs": True}, [None, None, None]),
        (None, {}, [None, "3", None]),
    ],
)
def test_a_rerun_begins_from_the_state_that_the_run_began_from(
    client: Client, snapshot: str | None, how: dict[str, bool], again: list[str | None]
) -> None:
    """A run that ended before it had pins is repeated as it was asked for."""
    assert state_of(client, snapshot, **how) == again


def test_a_rerun_runs_productions_branch_as_it_is_now_only_if_told_to(client: Client) -> None:
    dirty = {"repo": REPO, "commit": OTHER_COMMIT, "path": "sub", "dirty": True}
    spec = client.submit(job_spec(logic=dirty, outputs=[{"dataset": "dev_marts.delays", "from": "main.delays"}]))
    end(client, spec)
    assert rerun_of(client, spec).logic == spec.logic
    latest = rerun_of(client, spec, latest_logic=True)
    assert latest.logic == Logic(repo=REPO, commit=COMMIT, path="sub", dirty=False)
    assert latest.publishes_to_branch
    assert [each.dataset for each in latest.outputs] == ["dev_marts.delays"]


def test_the_latest_logic_of_a_repository_that_is_gone_is_a_fault_of_the_request(client: Client) -> None:
    spec = client.submit(job_spec(logic={"repo": f"{REPO}/gone", "commit": COMMIT}))
    end(client, spec)
    assert rerun_of(client, spec).logic == spec.logic
    with pytest.raises(SpecError, match="expected a branch, tag or commit, got 'main'"):
        rerun_of(client, spec, latest_logic=True)


def test_a_rerun_of_a_rerun_has_the_effect_of_the_first_run(client: Client, ended: JobSpec) -> None:
    second = client.submit(rerun_of(client, ended))
    end(client, second)
    third = rerun_of(client, second)
    assert third.rerun is not None
    assert (third.rerun.of, third.effect) == (second.run_id, ended.run_id)


def test_a_run_that_is_not_over_cannot_be_rerun(client: Client) -> None:
    spec = client.submit(job_spec())
    with pytest.raises(ConflictError, match="expected one that is over"):
        rerun_of(client, spec)


# ---------------------------------------------------------------- finding and reading

FOUND = "0197a5d0-1111-7000-8000-00000000abcd"


@pytest.mark.parametrize("text", [FOUND, FOUND.upper(), FOUND[:8], FOUND[-8:], "0197"])
def test_a_run_is_found_by_its_id_its_beginning_or_its_end(client: Client, text: str) -> None:
    client.submit(job_spec(run_id=FOUND))
    client.submit(job_spec(run_id="ffffffff-1111-7000-8000-00000000ffff"))
    assert client.find(text) == UUID(FOUND)


@pytest.mark.parametrize(
    ("text", "came"),
    [("0197a5d0", "several"), ("deadbeef", "none"), ("019", "none"), ("", "none"), ("%", "none"), ("x" * 40, "none")],
)
def test_a_text_that_names_no_run_or_several_is_refused(client: Client, text: str, came: str) -> None:
    client.submit(job_spec(run_id=FOUND))
    client.submit(job_spec(run_id="0197a5d0-2222-7000-8000-00000000ffff"))
    with pytest.raises(SpecError) as caught:
        client.find(text)
    assert caught.value.message == f"run {text!r}: expected one run of that id, got {came}"


def test_a_log_is_read_attempt_after_attempt_as_far_as_it_was_kept(client: Client, clock: TestClock) -> None:
    spec = client.submit(job_spec())
    for attempt in (1, 2, 3):
        client.ledger.claim(spec, worker="host:1")
        clock.advance(1000)
        if attempt != 2:
            lines = [json.dumps({"attempt": attempt, "message": text}) for text in ("one\u2028", "two")]
            client.objects.put(log_key(spec.run_id, attempt), "\n".join(lines).encode())
    assert [(line["attempt"], line["message"]) for line in client.log(spec.run_id)] == [
        (1, "one\u2028"),
        (1, "two"),
        (3, "one\u2028"),
        (3, "two"),
    ]


def test_a_run_that_has_not_begun_has_no_log(client: Client) -> None:
    spec = client.submit(job_spec())
    assert list(client.log(spec.run_id)) == []
    assert list(client.log(run_id(12345))) == []
