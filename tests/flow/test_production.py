"""Only what the production ref reaches is published to other than `dev_` datasets."""

from __future__ import annotations

import pytest

from runner.model.errors import Category, SpecError
from runner.model.manifest import State
from tests.flow.moments import ends_well
from tests.support.documents import COMMIT
from tests.support.flow_world import World, assert_once_and_true, transform

LOGIC = {"repo": "https://git.example.org/logic.git", "commit": COMMIT}
DEV = [{"dataset": "dev_marts.delays", "from": "main.delays"}]


def test_a_commit_that_production_reaches_publishes_and_the_record_says_so(world: World) -> None:
    spec = transform()

    world.run(spec)

    logic = ends_well(world, spec).report.logic
    assert logic is not None
    assert (logic.production, logic.dirty) == (True, False)


def test_a_commit_that_it_does_not_reach_is_refused_before_anything_runs(world: World) -> None:
    world.logic.unreached = {COMMIT}
    spec = transform()

    manifest = world.run(spec)

    assert_once_and_true(world, spec)
    assert manifest.state is State.FAILED
    assert manifest.failure is not None
    assert manifest.failure.category is Category.SPEC
    assert "expected a commit that main contains, to publish to marts.delays" in manifest.failure.message
    assert "dev_marts.delays" in (manifest.failure.hint or "")
    assert world.engine.jobs == []


def test_it_may_publish_to_dev_datasets(world: World) -> None:
    world.logic.unreached = {COMMIT}
    spec = transform(outputs=DEV)

    world.run(spec)

    logic = ends_well(world, spec).report.logic
    assert logic is not None
    assert logic.production is None, "nobody had to ask"


def test_a_rerun_to_a_branch_may_run_any_commit(world: World) -> None:
    first = transform()
    world.run(first)
    world.logic.unreached = {COMMIT}
    again = transform(rerun={"of": str(first.run_id), "effect": str(first.run_id)})

    world.run(again)

    ends_well(world, again)


def test_a_dirty_commit_is_marked_in_the_record_and_may_name_no_other_dataset(world: World) -> None:
    spec = transform(logic={**LOGIC, "dirty": True}, outputs=DEV)

    world.run(spec)

    logic = ends_well(world, spec).report.logic
    assert logic is not None
    assert logic.dirty
    with pytest.raises(SpecError, match="expected dev_ datasets only"):
        transform(logic={**LOGIC, "dirty": True})
