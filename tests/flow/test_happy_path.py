"""A run that nothing disturbs: the order of its steps, as the services see it, and what its record says."""

from __future__ import annotations

import pytest

from runner.model.manifest import State
from runner.model.names import is_table, log_key, manifest_key
from runner.ports import Read
from tests.flow.moments import ends_well
from tests.support.documents import COMMIT, job_spec
from tests.support.flow_world import DELAYS, ROUTES, Tap, Turn, World, load, transform


def test_the_steps_come_in_the_order_of_the_protocol(world: World) -> None:
    tap = Tap()

    world.run(transform(), tap)

    steps = [
        "queue.receive",
        "ledger.claim",
        "objects.get",
        "logic.checkout",
        "ledger.pin",
        "engine.execute",
        "objects.put_file",
        "ledger.plan",
        "tables.commit",
        "ledger.decide",
        "objects.put_if_absent",
        "ledger.mark_recorded",
        "queue.delete",
    ]
    assert [call for call in dict.fromkeys(tap.calls) if call in steps] == steps
    assert tap.calls[-1] == "queue.delete"
    assert {call: tap.calls.count(call) for call in steps} == dict.fromkeys(steps, 1) | {
        "objects.put_file": 2,
        "tables.commit": 2,
    }


def test_what_a_plan_is_made_for_is_loaded_once_for_plan_and_commit(world: World) -> None:
    tap = Tap()

    world.run(transform(), tap)

    since = tap.calls[tap.calls.index("engine.execute") :]
    assert [call for call in since if call.startswith("tables.")] == ["tables.load"] * 2 + ["tables.commit"] * 2
    assert since.index("tables.load") < since.index("ledger.plan") < since.index("tables.commit")


def test_a_run_asks_for_nothing_that_it_has_no_use_for(world: World) -> None:
    """Without a table to publish it takes none, without an input it pins none, and where its own log is it knows."""
    tap, spec = Tap(), job_spec("extract")

    manifest = world.run(spec, tap)

    assert not {"ledger.lease", "ledger.pin", "objects.exists"} & set(tap.calls)
    assert [each.log for each in manifest.attempts] == [world.objects.uri(log_key(spec.run_id, 1))]
    assert world.objects.exists(log_key(spec.run_id, 1))
    assert ends_well(world, spec).pins == ()


def test_all_files_are_up_before_the_plan_and_nothing_is_committed_before_it(world: World) -> None:
    tap = Tap()

    world.run(transform(), tap)

    last_upload = len(tap.calls) - tap.calls[::-1].index("objects.put_file")
    assert last_upload <= tap.calls.index("ledger.plan") < tap.calls.index("tables.commit")


def test_a_run_is_one_attempt_one_execution_and_a_snapshot_for_each_output(world: World) -> None:
    spec = transform()

    manifest = world.run(spec)

    ends_well(world, spec)
    assert len(world.engine.jobs) == 1
    assert [(each.dataset, each.contents) for each in world.landings(spec)] == [
        (DELAYS, (f"{DELAYS} by execution 1",)),
        (ROUTES, (f"{ROUTES} by execution 1",)),
    ]
    assert [(each.attempt, each.outcome, each.worker) for each in manifest.attempts] == [(1, "succeeded", "worker-1")]
    row = world.ledger.run(spec.run_id)
    assert row is not None
    assert (row.state, row.attempt, row.rows) == (State.SUCCEEDED, 1, 2)


def test_the_manifest_says_what_ran_on_what(world: World) -> None:
    spec = transform()
    world.engine.script = [
        Turn(
            claims=("staging.flights",),
            reads={"staging.flights": Read(used=True, files=1, bytes=7)},
            counts={"nodes": 2},
        )
    ]

    manifest = world.run(spec)

    assert (manifest.spec, manifest.spec_sha256) == (spec, spec.digest())
    logic = manifest.report.logic
    assert logic is not None
    assert (logic.commit, logic.origin, logic.path) == (COMMIT, "repository", ".")
    (pin,) = manifest.pins
    assert (pin.as_, pin.dataset, pin.snapshot) == ("staging.flights", "staging.flights", "1000000000000000001")
    (read,) = manifest.report.inputs
    assert (read.dataset, read.snapshot, read.declared, read.claimed, read.observed, read.bytes) == (
        "staging.flights",
        pin.snapshot,
        True,
        True,
        "rows",
        7,
    )
    assert manifest.report.counts == {"nodes": 2}
    software = manifest.report.software
    assert software is not None
    assert software.packages == {"core": "1", "scripted": "1"}


def test_the_engine_gets_the_logics_files_and_exactly_the_pinned_snapshot(world: World) -> None:
    spec = transform(inputs=[{"dataset": "staging.flights", "as": "raw.flights"}])
    seen: list[str] = []

    def look_around() -> None:
        from pathlib import Path

        seen.extend(path.name for path in Path(world.engine.jobs[0].workspace).iterdir())

    world.engine.script = [Turn(meanwhile=look_around)]

    world.run(spec)

    ends_well(world, spec)
    (job,) = world.engine.jobs
    assert seen == ["dbt_project.yml"]
    assert [(each.pin.as_, each.pin.snapshot, each.files) for each in job.inputs] == [
        ("raw.flights", "1000000000000000001", ())
    ]


def test_a_named_snapshot_is_read_though_a_newer_one_is_there(world: World) -> None:
    world.publish("staging.flights")
    spec = transform(inputs=[{"dataset": "staging.flights", "snapshot": "1000000000000000001"}])

    manifest = world.run(spec)

    assert manifest.pins[0].snapshot == "1000000000000000001"


def test_a_prefix_is_given_to_the_engine_by_its_files(world: World) -> None:
    spec = load()

    world.run(spec)

    ends_well(world, spec)
    (job,) = world.engine.jobs
    (given,) = job.inputs
    assert given.pin.dataset == "landing/portal/flights"
    assert len(given.files) == 1
    assert given.files[0].startswith("s3://lake/seed/")


def test_files_lie_where_the_run_and_its_attempt_say(world: World) -> None:
    spec = load()
    world.engine.script = [Turn(quarantined=2)]

    manifest = world.run(spec)

    ends_well(world, spec)
    made = {each.dataset: [file.uri for file in each.files] for each in manifest.outputs}
    day = "2026-01-01"  # of submission: a later attempt finds the same place
    assert made == {
        "staging.flights": [
            f"s3://lake/tables/staging/flights/data/{spec.effect}/{spec.run_id}/1/{manifest.plan_id}/flights.parquet"
        ],
        "failed/staging/flights": [
            f"s3://lake/failed/staging/flights/ingested_on={day}/{spec.run_id}/1/{manifest.plan_id}/flights.parquet"
        ],
    }


@pytest.mark.parametrize("make", [transform, load])
def test_every_output_of_a_succeeded_run_is_recorded_with_what_it_was_made_upon(world: World, make: type) -> None:
    first, second = make(), make()
    world.run(first)
    before = {output.dataset: output.snapshot for output in world.manifest(first).outputs}

    manifest = world.run(second)

    ends_well(world, second)
    assert {output.dataset: output.base for output in manifest.outputs} == before
    for output in manifest.outputs:
        assert is_table(output.dataset)
        assert output.snapshot != output.base


def test_what_s3_keeps_is_the_ledgers_manifest_to_the_byte(world: World) -> None:
    spec = transform()

    manifest = world.run(spec)

    assert world.objects.get(manifest_key(spec.run_id)) == manifest.to_json().encode()
