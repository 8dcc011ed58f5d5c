"""What does not pass its audit is not published; the rows that were put aside are, and the failure names its cause."""

from __future__ import annotations

import pytest

from runner.model.errors import Category, Failure
from runner.model.manifest import Step
from tests.flow.moments import ends_well
from tests.support.flow_world import DELAYS, ROUTES, At, Tap, Turn, World, assert_once_and_true, load, transform

PASSED = Step(name="not_null_delays_id", kind="test", status="pass")
WARNED = Step(name="few_rows", kind="test", status="warn", rows=3)
SKIPPED = Step(name="routes", kind="model", status="skipped")
FAILED = Step(name="unique_delays_id", kind="test", status="fail", rows=1_234)
BROKEN = Step(name="delays", kind="model", status="error", message="no such column: carrrier")
TOO_MANY = Failure(
    category=Category.DATA,
    message="rows: expected at most 1% bad (max_bad_fraction), got 2.00%",
    subject="carrier: required",
)


def published(world: World) -> dict[str, object]:
    return {table: world.head(table) for table in (DELAYS, ROUTES)}


@pytest.mark.parametrize(
    ("steps", "category", "message", "subject"),
    [
        (
            (PASSED, FAILED),
            Category.DATA,
            "test unique_delays_id: expected no row that breaks it, got 1,234 rows",
            "unique_delays_id",
        ),
        (
            (BROKEN, SKIPPED),
            Category.LOGIC,
            "model delays failed: no such column: carrrier",
            "delays",
        ),
        (
            (FAILED, BROKEN, BROKEN),
            Category.LOGIC,
            "model delays failed: no such column: carrrier (and 1 more)",
            "delays",
        ),
        (
            (Step(name="x", kind="test", status="fail"), FAILED),
            Category.DATA,
            "test x: expected no row that breaks it, got rows (and 1 more)",
            "x",
        ),
        (
            (Step(name="x", kind="seed", status="error"),),
            Category.LOGIC,
            "seed x failed: it gave no reason",
            "x",
        ),
    ],
    ids=["a-test-fails", "a-model-breaks", "both", "two-tests", "no-reason"],
)
def test_a_step_that_fails_publishes_no_output_and_is_named(
    world: World, steps: tuple[Step, ...], category: Category, message: str, subject: str
) -> None:
    spec = transform()
    before = published(world)
    world.engine.script = [Turn(steps=steps)]

    manifest = world.run(spec)

    assert_once_and_true(world, spec)
    assert manifest.failure is not None
    assert (manifest.failure.category, manifest.failure.message) == (category, message)
    assert manifest.failure.subject == subject
    assert published(world) == before
    assert manifest.outputs == ()
    assert manifest.report.steps == steps
    assert [each.outcome for each in manifest.attempts] == ["failed"], "data and logic are not tried again"


def test_passed_warned_and_skipped_steps_stop_nothing(world: World) -> None:
    spec = transform()
    world.engine.script = [Turn(steps=(PASSED, WARNED, SKIPPED))]

    manifest = world.run(spec)

    ends_well(world, spec)
    assert manifest.report.steps == (PASSED, WARNED, SKIPPED)


def test_rows_in_quarantine_are_published_beside_the_good_ones(world: World) -> None:
    spec = load()
    world.engine.script = [Turn(quarantined=2, counts={"rows_read": 100, "rows_loaded": 98, "rows_quarantined": 2})]

    manifest = world.run(spec)

    ends_well(world, spec)
    assert [(each.dataset, each.rows, each.quarantine) for each in manifest.outputs] == [
        ("staging.flights", 1, False),
        ("failed/staging/flights", 2, True),
    ]
    assert manifest.rows == 1


@pytest.mark.parametrize(
    "turn",
    [
        Turn(quarantined=2, failure=TOO_MANY),
        Turn(quarantined=2, steps=(FAILED,)),
        Turn(quarantined=2, counts={"rows_read": 100, "rows_loaded": 97, "rows_quarantined": 2}),
    ],
    ids=["max_bad_fraction", "a-test", "a-lost-row"],
)
def test_a_load_that_fails_its_audit_publishes_its_quarantine_and_nothing_else(world: World, turn: Turn) -> None:
    spec = load()
    before = world.head("staging.flights")
    world.engine.script = [turn]

    manifest = world.run(spec)

    assert_once_and_true(world, spec)
    assert manifest.failure is not None
    assert manifest.failure.category is Category.DATA
    assert [(each.dataset, each.quarantine) for each in manifest.outputs] == [("failed/staging/flights", True)]
    assert world.head("staging.flights") == before
    assert world.head("failed/staging/flights") == spec.run_id
    assert not [key for key in world.objects.list("tables/") if str(spec.run_id) in key], "not even uploaded"


def test_too_many_bad_rows_fail_with_the_engines_own_words(world: World) -> None:
    spec = load()
    world.engine.script = [Turn(quarantined=2, failure=TOO_MANY)]

    assert world.run(spec).failure == TOO_MANY


def test_counts_that_do_not_add_up_are_told(world: World) -> None:
    spec = load()
    world.engine.script = [Turn(counts={"rows_read": 336_776, "rows_loaded": 336_775})]

    failure = world.run(spec).failure

    assert failure is not None
    assert failure.message == "rows: expected 336,776 loaded or in quarantine, got 336,775"


def test_an_output_that_was_not_made_publishes_none_of_the_others(world: World) -> None:
    spec = transform()
    world.engine.script = [Turn(leaves_out=frozenset({ROUTES}))]

    manifest = world.run(spec)

    assert_once_and_true(world, spec)
    assert manifest.failure is not None
    assert manifest.failure.category is Category.LOGIC
    assert manifest.failure.message == f"output {ROUTES}: expected it made, got {DELAYS}"
    assert world.landings(spec) == []


@pytest.mark.parametrize("at", ["ledger.plan", "objects.list", "objects.put_if_absent", "ledger.decide"])
def test_a_failed_audits_verdict_outlives_its_worker(world: World, at: str) -> None:
    """It is in the plan: whoever rolls that forward lands the quarantine and decides failed, executing nothing."""
    spec = load()
    world.engine.script = [Turn(quarantined=2, failure=TOO_MANY)]

    world.run(spec, Tap().crash(At("after", at)))

    manifest = assert_once_and_true(world, spec)
    assert manifest.failure == TOO_MANY
    assert [each.dataset for each in manifest.outputs] == ["failed/staging/flights"]
    assert len(world.engine.jobs) == 1


def test_an_older_runs_quarantine_is_kept_beside_a_newer_ones(world: World) -> None:
    """Bad rows overwrite nobody's, each run's are a version of their own: so age is no reason to refuse them."""
    newer, older = load(logical_time="2013-06-02T00:00:00Z"), load(logical_time="2013-06-01T00:00:00Z")
    world.engine.script = [Turn(quarantined=1), Turn(quarantined=2, failure=TOO_MANY)]
    world.run(newer)

    manifest = world.run(older)

    assert_once_and_true(world, older)
    assert manifest.failure == TOO_MANY
    assert [each.dataset for each in world.landings(older)] == ["failed/staging/flights"]
    assert world.head("staging.flights") == newer.run_id


def test_an_output_that_the_spec_does_not_declare_is_not_published(world: World) -> None:
    """The engine runs logic that nobody here wrote: were its word enough, it could write any table."""
    world.engine.script.append(Turn(adds=("marts.salaries",)))
    manifest = world.run(transform())
    assert manifest.failure is not None
    assert manifest.failure.category is Category.LOGIC
    assert "marts.salaries" in manifest.failure.message
    assert manifest.outputs == ()
    assert world.head("marts.salaries") is None
    assert published(world) == {DELAYS: None, ROUTES: None}
