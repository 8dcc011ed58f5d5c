"""Prefixes of files as versioned datasets: the contract of all datasets, then what is theirs alone."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest

from runner.adapters.s3_objects import S3Objects
from runner.adapters.s3_prefixes import PrefixSnapshot, S3Prefixes
from runner.model.errors import DataError, InfrastructureError, SpecError
from runner.model.manifest import FileRecord
from runner.model.names import rerun_branch
from runner.model.ranges import WHOLE_TABLE
from runner.model.strict import parse_json
from runner.ports import CommitTag, LostRace, Objects
from tests.support.datasets import DatasetsContract, Rig, tag_of
from tests.support.twins import MemoryObjects, TestClock

NAME = "landing/portal/flights"


@pytest.fixture(params=["memory", "s3"])
def objects(request: pytest.FixtureRequest) -> Objects:
    if request.param == "memory":
        return MemoryObjects()
    return S3Objects(request.getfixturevalue("s3_client"), request.getfixturevalue("bucket"))


@pytest.fixture
def rig(objects: Objects) -> Rig:
    return rig_on(objects)


def rig_on(objects: Objects) -> Rig:
    def file() -> FileRecord:
        return FileRecord(uri=objects.uri(f"{NAME}/{uuid4()}.csv"), bytes=12)

    return Rig(S3Prefixes(objects, TestClock()), NAME, file)


class TestPrefixes(DatasetsContract):
    """A prefix is held to what every dataset is held to."""


def test_versions_are_numbered_from_1(rig: Rig) -> None:
    assert [rig.publish(), rig.publish(), rig.publish()] == ["1", "2", "3"]


def test_a_version_is_a_document_beside_the_files(rig: Rig, objects: Objects) -> None:
    tag = tag_of(uuid4())
    rig.publish()
    output = rig.output()
    rig.load().commit(output, tag)

    raw = objects.get(f"{NAME}/_snapshots/00000002.json")

    assert raw is not None
    document = parse_json(PrefixSnapshot, raw, what="document")
    assert (document.snapshot, document.parent, document.tag) == ("2", "1", tag)
    assert (document.files, document.rows, document.columns) == (output.files, output.rows, output.columns)
    assert document.committed_at == TestClock().now()
    assert rig.datasets.pin(NAME, "x", None).metadata == objects.uri(f"{NAME}/_snapshots/00000002.json")


def test_a_reruns_version_goes_by_the_name_of_its_run(rig: Rig, objects: Objects) -> None:
    rig.publish()
    run_id = UUID("0198a0b0-0000-7000-8000-0000000000ff")

    snapshot = rig.publish(tag_of(run_id), rerun_branch(run_id))

    assert snapshot == "rerun_0198a0b00000700080000000000000ff"
    assert objects.exists(f"{NAME}/_snapshots/{snapshot}.json")


def test_a_document_of_a_release_that_knew_no_ranges_is_of_the_whole_prefix(rig: Rig, objects: Objects) -> None:
    tag = tag_of(uuid4())
    rig.publish(tag_of(uuid4()))
    rig.load().commit(rig.output(), tag)
    key = f"{NAME}/_snapshots/00000002.json"
    document = json.loads(objects.get(key) or b"")
    assert document.pop("range") == WHOLE_TABLE
    objects.put(key, json.dumps(document).encode())

    head = S3Prefixes(objects, TestClock()).load(NAME).head(None)

    assert head is not None
    assert head.tag == tag


@pytest.mark.parametrize("snapshot", [None, "none", "1"])
def test_a_prefix_has_no_state_to_begin_from(rig: Rig, snapshot: str | None) -> None:
    rig.publish()

    with pytest.raises(SpecError, match=f"^output {NAME}: expected a table to begin from") as error:
        rig.datasets.state(NAME, "state:x", snapshot)

    assert error.value.subject == NAME


def test_a_branch_can_be_the_first_of_a_prefix_and_publishes_nothing(rig: Rig) -> None:
    run_id = uuid4()

    rig.publish(tag_of(run_id), rerun_branch(run_id))

    assert rig.load().head(None) is None
    with pytest.raises(DataError):
        rig.datasets.pin(NAME, "x", None)


def test_of_many_writers_each_version_is_one_of_theirs(rig: Rig) -> None:
    def write(run_id: UUID) -> str:
        while True:
            try:
                return rig.publish(tag_of(run_id))
            except LostRace:
                continue

    runs = [uuid4() for _ in range(6)]
    with ThreadPoolExecutor(max_workers=6) as threads:
        snapshots = list(threads.map(write, runs))

    assert sorted(snapshots) == ["1", "2", "3", "4", "5", "6"]
    for run_id, snapshot in zip(runs, snapshots, strict=True):
        assert [each.snapshot for each in rig.load().landed(run_id)] == [snapshot]


def test_a_write_whose_answer_was_lost_is_found_to_be_ones_own(rig: Rig) -> None:
    # What botocore does on its own: the same request a second time.
    dataset, output, tag = rig.load(), rig.output(), tag_of(uuid4())

    assert dataset.commit(output, tag) == dataset.commit(output, tag) == "1"
    assert len(rig.load().landed(tag.run_id)) == 1


def test_a_prefix_without_versions_says_what_would_write_one(rig: Rig) -> None:
    with pytest.raises(DataError, match=f"^input {NAME}: expected at least one version, got none$") as error:
        rig.datasets.pin(NAME, "x", None)

    assert NAME in (error.value.hint or "")


def test_a_version_that_is_not_there_is_told_beside_those_that_are(rig: Rig) -> None:
    rig.publish()
    rig.publish()

    with pytest.raises(DataError, match=f"^input {NAME}: expected version 7, got versions 1 to 2$"):
        rig.datasets.pin(NAME, "x", "7")


def test_a_versions_number_may_be_written_with_zeros_and_may_be_absurd(rig: Rig) -> None:
    rig.publish()

    assert rig.datasets.pin(NAME, "x", "0001").snapshot == "1"
    with pytest.raises(DataError, match="expected version 9"):
        rig.datasets.pin(NAME, "x", "9" * 5000)
    with pytest.raises(DataError, match="expected version"):
        rig.datasets.pin(NAME, "x", "0")


def test_a_pinned_version_that_has_expired_is_a_data_error(rig: Rig, objects: Objects) -> None:
    rig.publish()
    pin = rig.datasets.pin(NAME, "x", None).model_copy(update={"snapshot": "9"})

    with pytest.raises(DataError, match="input expired"):
        rig.datasets.files(pin)


def test_a_document_that_is_broken_names_itself(rig: Rig, objects: Objects) -> None:
    rig.publish()
    objects.put(f"{NAME}/_snapshots/00000002.json", json.dumps({"dataset": NAME}).encode())

    with pytest.raises(InfrastructureError, match=f"{NAME}/_snapshots/00000002.json: "):
        rig.load().head(None)


def test_other_datasets_and_strange_objects_below_the_prefix_are_not_its_versions(rig: Rig, objects: Objects) -> None:
    rig.publish()
    for key in ("_snapshots/00000009.json.tmp", "_snapshots/9.json", "_snapshots/x/00000009.json", "00000009.json"):
        objects.put(f"{NAME}/{key}", b"{}")
    objects.put(f"{NAME}_2/_snapshots/00000009.json", b"{}")
    objects.put(f"{NAME}/more/_snapshots/00000009.json", b"{}")

    assert rig.publish() == "2"


class CountingObjects(MemoryObjects):
    """Counts what a reader would pay for."""

    reads = 0

    def get(self, key: str, *, at_most: int | None = None) -> bytes | None:
        self.reads += 1
        return super().get(key, at_most=at_most)


def test_looking_for_a_run_in_a_long_history_reads_few_documents() -> None:
    objects = CountingObjects()
    rig = rig_on(objects)
    tags: list[CommitTag] = [tag_of(uuid4()) for _ in range(1000)]
    for tag in tags:
        rig.publish(tag)
    dataset = rig_on(objects).load()
    objects.reads = 0

    assert dataset.landed(uuid4()) == []
    assert objects.reads <= 6
    for number in (1, 2, 199, 200, 201, 202, 400, 402, 403, 999, 1000):
        assert [(each.snapshot, each.tag) for each in dataset.landed(tags[number - 1].run_id)] == [
            (str(number), tags[number - 1])
        ]


def test_a_look_at_the_newest_of_a_long_history_reads_one_document() -> None:
    objects = CountingObjects()
    rig = rig_on(objects)
    for _ in range(300):
        rig.publish()
    dataset = rig_on(objects).load()
    objects.reads = 0

    newest = next(iter(dataset.history(None)))

    assert (newest.snapshot, objects.reads) == ("300", 1)
    assert len(dataset.history(None)) == 300


def test_who_made_the_newest_version_need_not_read_it() -> None:
    objects = CountingObjects()
    rig = rig_on(objects)
    rig.publish(tag := tag_of(uuid4()))
    objects.reads = 0

    (newest,) = rig.load().history(None)
    rig.publish()

    assert (newest.snapshot, newest.tag, objects.reads) == ("1", tag, 0)


def test_a_version_that_expires_while_the_history_is_read_has_no_tag_any_more() -> None:
    objects = MemoryObjects()
    rig = rig_on(objects)
    for _ in range(3):
        rig.publish()
    history = rig_on(objects).load().history(None)
    objects._objects.pop(f"{NAME}/_snapshots/00000002.json")

    assert [(each.snapshot, each.tag is None) for each in history] == [("3", False), ("2", True), ("1", False)]


def test_a_history_of_which_parts_have_expired_is_searched_to_its_end() -> None:
    objects = MemoryObjects()
    rig = rig_on(objects)
    tags = [tag_of(uuid4()) for _ in range(450)]
    for tag in tags:
        rig.publish(tag)
    for number in (*range(2, 100), *range(200, 300)):
        objects._objects.pop(f"{NAME}/_snapshots/{number:08d}.json")

    dataset = rig_on(objects).load()

    for number in (1, 100, 150, 199, 300, 450):
        assert [each.snapshot for each in dataset.landed(tags[number - 1].run_id)] == [str(number)]
    for number in (2, 99, 200, 250):
        assert dataset.landed(tags[number - 1].run_id) == []
    assert dataset.commit(rig.output(), tag_of(uuid4())) == "451"
