"""The contract of `Datasets`: what tables and prefixes have in common, in memory and for real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from runner.model.errors import DataError
from runner.model.manifest import Column, FileRecord, Fingerprint, OutputRecord
from runner.model.names import rerun_branch
from runner.model.ranges import WHOLE_TABLE
from runner.ports import CommitTag, Datasets, LoadedDataset, LostRace


@dataclass(frozen=True)
class Rig:
    """A dataset that does not exist yet; `file` makes a file that can become part of it."""

    datasets: Datasets
    name: str
    file: Callable[[], FileRecord]

    def load(self) -> LoadedDataset:
        return self.datasets.load(self.name)

    def output(self, branch: str | None = None, *, files: int = 1) -> OutputRecord:
        return OutputRecord(
            dataset=self.name,
            mode="replace",
            branch=branch,
            base=None,
            files=tuple(self.file() for _ in range(files)),
            rows=3 * files,
            columns=(Column(name="id", type="int"), Column(name="name", type="string")),
            fingerprint=Fingerprint(rows=3 * files, hash="1", engine="duckdb 1.5.5"),
            claimed_inputs=None,
        )

    def publish(self, tag: CommitTag | None = None, branch: str | None = None) -> str:
        return self.load().commit(self.output(branch), tag or tag_of(uuid4()))


def tag_of(
    run_id: UUID,
    *,
    attempt: int = 1,
    plan_id: UUID | None = None,
    effect: UUID | None = None,
    range: str = WHOLE_TABLE,
) -> CommitTag:
    return CommitTag(
        run_id=run_id,
        effect=effect or run_id,
        plan_id=plan_id or uuid4(),
        attempt=attempt,
        logical_time=datetime(2013, 6, 1, tzinfo=UTC),
        submitted_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        range=range,
    )


class DatasetsContract:
    """Subclass it with a fixture `rig`, and every way to keep datasets is held to it."""

    def test_a_dataset_that_does_not_exist_is_empty(self, rig: Rig) -> None:
        dataset = rig.load()

        assert not dataset.exists
        assert dataset.partition_by is None
        assert dataset.head(None) is None
        assert list(dataset.history(None)) == []
        assert dataset.landed(uuid4()) == []
        assert dict(dataset.field_ids) == {}
        assert dataset.last_field_id == 0

    def test_a_dataset_that_does_not_exist_cannot_be_pinned(self, rig: Rig) -> None:
        with pytest.raises(DataError, match=f"input {rig.name}: expected .*, got ") as error:
            rig.datasets.pin(rig.name, "x", None)

        assert error.value.subject == rig.name

    def test_a_replace_makes_a_snapshot_that_says_who_made_it(self, rig: Rig) -> None:
        tag = tag_of(uuid4())

        snapshot = rig.publish(tag)

        head = rig.load().head(None)
        assert head is not None
        assert (head.snapshot, head.tag) == (snapshot, tag)

    def test_a_snapshot_says_what_of_the_dataset_it_is_all_of(self, rig: Rig) -> None:
        tag = tag_of(uuid4(), range="day(flown_on) = 2013-06-01")

        rig.publish(tag)

        assert [each.tag for each in rig.load().history(None)] == [tag]

    def test_a_dataset_exists_as_soon_as_something_landed(self, rig: Rig) -> None:
        rig.publish()

        assert rig.load().exists

    def test_the_history_of_what_is_published_is_newest_first_and_knows_no_branch(self, rig: Rig) -> None:
        first = rig.publish()
        rig.publish(tag_of(run_id := uuid4()), rerun_branch(run_id))
        others = [rig.publish() for _ in range(2)]

        history = rig.load().history(None)

        assert [each.snapshot for each in history] == [*reversed(others), first]
        assert len(history) == 3
        assert [each.snapshot for each in history[1:]] == [others[0], first]

    def test_the_history_of_a_branch_begins_beside_what_was_published(self, rig: Rig) -> None:
        published = [rig.publish() for _ in range(2)]
        run_id = uuid4()
        branch = rerun_branch(run_id)
        beside = rig.publish(tag_of(run_id), branch)
        rig.publish()

        assert [each.snapshot for each in rig.load().history(branch)] == [beside, *reversed(published)]
        assert list(rig.load().history(rerun_branch(uuid4()))) == []

    def test_the_newest_snapshot_is_the_head(self, rig: Rig) -> None:
        snapshots = [rig.publish() for _ in range(3)]

        head = rig.load().head(None)
        assert head is not None
        assert head.snapshot == snapshots[-1]
        assert len(set(snapshots)) == 3

    def test_of_two_who_loaded_the_same_state_the_second_lands_nothing(self, rig: Rig) -> None:
        rig.publish()
        first, second = rig.load(), rig.load()
        loser = uuid4()

        snapshot = first.commit(rig.output(), tag_of(uuid4()))
        with pytest.raises(LostRace):
            second.commit(rig.output(), tag_of(loser))

        head = rig.load().head(None)
        assert head is not None
        assert head.snapshot == snapshot
        assert rig.load().landed(loser) == []

    def test_of_two_who_make_a_dataset_the_second_lands_nothing(self, rig: Rig) -> None:
        first, second = rig.load(), rig.load()
        loser = uuid4()

        first.commit(rig.output(), tag_of(uuid4()))
        with pytest.raises(LostRace):
            second.commit(rig.output(), tag_of(loser))

        assert rig.load().landed(loser) == []

    def test_a_handle_is_spent_by_its_own_commit(self, rig: Rig) -> None:
        rig.publish()
        dataset = rig.load()
        dataset.commit(rig.output(), tag_of(uuid4()))

        with pytest.raises(LostRace):
            dataset.commit(rig.output(), tag_of(uuid4()))

    def test_a_handle_shows_what_it_loaded(self, rig: Rig) -> None:
        snapshot = rig.publish()
        dataset = rig.load()
        later = uuid4()
        rig.publish(tag_of(later))

        head = dataset.head(None)
        assert head is not None
        assert head.snapshot == snapshot
        assert dataset.landed(later) == []

    def test_what_a_run_has_made_is_found_beneath_what_others_made_since(self, rig: Rig) -> None:
        run_id = uuid4()
        rig.publish()
        tag = tag_of(run_id, attempt=2)
        snapshot = rig.publish(tag)
        for _ in range(3):
            rig.publish()

        landed = rig.load().landed(run_id)

        assert [(each.snapshot, each.tag) for each in landed] == [(snapshot, tag)]

    def test_everything_that_a_run_has_made_is_found_on_any_branch(self, rig: Rig) -> None:
        run_id = uuid4()
        branch = rerun_branch(run_id)
        rig.publish()
        made = {rig.publish(tag_of(run_id)), rig.publish(tag_of(run_id)), rig.publish(tag_of(run_id), branch)}

        assert {each.snapshot for each in rig.load().landed(run_id)} == made

    def test_a_branch_leaves_what_is_published_alone(self, rig: Rig) -> None:
        published = rig.publish()
        run_id = uuid4()
        branch = rerun_branch(run_id)

        beside = rig.publish(tag_of(run_id), branch)

        head, other = rig.load().head(None), rig.load().head(branch)
        assert head is not None
        assert other is not None
        assert (head.snapshot, other.snapshot) == (published, beside)
        assert rig.datasets.pin(rig.name, "x", None).snapshot == published
        assert rig.load().head(rerun_branch(uuid4())) is None

    def test_a_branch_is_held_by_compare_and_swap_too(self, rig: Rig) -> None:
        run_id = uuid4()
        branch = rerun_branch(run_id)
        rig.publish()
        first, second = rig.load(), rig.load()

        first.commit(rig.output(branch), tag_of(run_id))
        with pytest.raises(LostRace):
            second.commit(rig.output(branch), tag_of(run_id))

        assert len(rig.load().landed(run_id)) == 1

    def test_a_pin_is_the_newest_snapshot_unless_one_is_named(self, rig: Rig) -> None:
        older, newer = rig.publish(), rig.publish()

        newest = rig.datasets.pin(rig.name, "some.alias", None)
        named = rig.datasets.pin(rig.name, "some.alias", older)

        assert (newest.snapshot, named.snapshot) == (newer, older)
        assert (newest.as_, newest.dataset) == ("some.alias", rig.name)
        assert newest.metadata.startswith("s3://")

    def test_a_snapshot_that_does_not_exist_cannot_be_pinned(self, rig: Rig) -> None:
        rig.publish()

        with pytest.raises(DataError, match=f"input {rig.name}: expected .* 4711, got"):
            rig.datasets.pin(rig.name, "x", "4711")

    def test_a_pin_serves_exactly_the_files_of_its_snapshot_whatever_came_since(self, rig: Rig) -> None:
        output = rig.output(files=3)
        rig.load().commit(output, tag_of(uuid4()))
        pin = rig.datasets.pin(rig.name, "x", None)
        rig.publish()
        rig.publish(tag_of(run_id := uuid4()), rerun_branch(run_id))

        served = rig.datasets.files(pin)

        rows = {(each.uri, each.bytes) for each in served if each.holds_rows}
        assert rows == {(file.uri, file.bytes) for file in output.files}
        assert len({each.uri for each in served}) == len(served)

    def test_a_branchs_snapshot_can_be_pinned_by_its_id(self, rig: Rig) -> None:
        rig.publish()
        run_id = uuid4()
        output = rig.output(rerun_branch(run_id))
        snapshot = rig.load().commit(output, tag_of(run_id))

        pin = rig.datasets.pin(rig.name, "x", snapshot)

        assert pin.snapshot == snapshot
        assert [each.uri for each in rig.datasets.files(pin) if each.holds_rows] == [output.files[0].uri]

    # ------------------------------------------------------------ fences

    def test_a_fence_changes_nothing_that_a_reader_sees(self, rig: Rig) -> None:
        snapshot = rig.publish()
        before = rig.datasets.pin(rig.name, "x", None)
        served = [each.uri for each in rig.datasets.files(before) if each.holds_rows]

        rig.load().fence(None, tag_of(uuid4()))

        pin = rig.datasets.pin(rig.name, "x", None)
        assert pin.snapshot == before.snapshot == snapshot
        assert [each.uri for each in rig.datasets.files(pin) if each.holds_rows] == served

    def test_a_fence_says_whose_it_is_and_is_nothing_that_the_run_published(self, rig: Rig) -> None:
        snapshot = rig.publish()
        tag = tag_of(uuid4())

        rig.load().fence(None, tag)

        dataset = rig.load()
        head = dataset.head(None)
        assert head is not None
        assert (head.tag, head.fence) == (tag, True)
        assert [(each.snapshot, each.fence) for each in dataset.history(None)][1:] == [(snapshot, False)]
        assert list(dataset.landed(tag.run_id)) == []

    def test_who_loaded_before_a_fence_lands_nothing(self, rig: Rig) -> None:
        rig.publish()
        stale, tag = rig.load(), tag_of(uuid4())
        rig.load().fence(None, tag)

        with pytest.raises(LostRace):
            stale.commit(rig.output(), tag)

        assert list(rig.load().landed(tag.run_id)) == []

    def test_who_loaded_before_a_commit_fences_nothing(self, rig: Rig) -> None:
        rig.publish()
        stale, tag = rig.load(), tag_of(uuid4())
        rig.publish(tag)

        with pytest.raises(LostRace):
            stale.fence(None, tag)

        assert len(rig.load().landed(tag.run_id)) == 1
        assert not any(each.fence for each in rig.load().history(None))

    def test_a_fence_of_a_rerun_keeps_it_from_the_branch_that_it_was_to_make(self, rig: Rig) -> None:
        rig.publish()
        tag = tag_of(uuid4())
        branch = rerun_branch(tag.run_id)
        stale = rig.load()
        rig.load().fence(branch, tag)

        with pytest.raises(LostRace):
            stale.commit(rig.output(branch), tag)

        assert list(rig.load().landed(tag.run_id)) == []

    def test_what_is_published_over_a_fence_is_published(self, rig: Rig) -> None:
        rig.publish()
        rig.load().fence(None, tag_of(uuid4()))

        snapshot = rig.publish()

        assert rig.datasets.pin(rig.name, "x", None).snapshot == snapshot
        assert [each.fence for each in rig.load().history(None)] == [False, True, False]
