"""What cannot be resolved is never executed, and the record of the failed run says what was known by then."""

from __future__ import annotations

from typing import Any

import pytest

from runner.model.errors import Category
from tests.support.documents import COMMIT
from tests.support.flow_world import World, assert_once_and_true, transform

LOGIC = {"repo": "https://git.example.org/logic.git", "commit": COMMIT}
ABSENT = "f" * 40


@pytest.mark.parametrize(
    ("given", "category", "message", "logic_known", "pins"),
    [
        ({"logic": {**LOGIC, "commit": ABSENT}}, Category.LOGIC, "expected a commit", False, 0),
        ({"logic": {**LOGIC, "path": "dbt"}}, Category.LOGIC, "logic.path: expected a folder 'dbt'", False, 0),
        ({"inputs": [{"dataset": "staging.none"}]}, Category.DATA, "input staging.none: expected a snapshot", True, 0),
        ({"inputs": [{"dataset": "staging.flights", "snapshot": "7"}]}, Category.DATA, "expected snapshot 7", True, 0),
        (
            {"inputs": [{"dataset": "staging.flights"}, {"dataset": "staging.none"}]},
            Category.DATA,
            "input staging.none: expected a snapshot",
            True,
            0,
        ),
    ],
    ids=["no-commit", "no-folder", "no-table", "no-snapshot", "one-of-two"],
)
def test_what_cannot_be_resolved_fails_once_and_names_it(
    world: World, given: dict[str, Any], category: Category, message: str, logic_known: bool, pins: int
) -> None:
    spec = transform(**given)

    manifest = world.run(spec)

    assert_once_and_true(world, spec)
    assert manifest.failure is not None
    assert manifest.failure.category is category
    assert message in manifest.failure.message
    assert (manifest.report.logic is not None) is logic_known
    assert len(manifest.pins) == pins, "either all inputs are pinned or none is"
    assert world.engine.jobs == []
    assert len(manifest.attempts) == 1


def test_logic_below_the_repositorys_root_is_where_the_engine_works(world: World) -> None:
    world.logic.commits = {COMMIT: {"warehouse/dbt_project.yml": "name: flights"}}
    spec = transform(logic={**LOGIC, "path": "warehouse"})

    manifest = world.run(spec)

    (job,) = world.engine.jobs
    assert job.workspace.endswith("/logic/warehouse")
    assert manifest.report.logic is not None
    assert manifest.report.logic.path == "warehouse"


def test_a_run_without_inputs_pins_nothing_and_its_attempts_know_that(world: World) -> None:
    spec = transform(inputs=[])

    manifest = world.run(spec)

    assert manifest.pins == ()
    assert_once_and_true(world, spec)
