"""Ending a run that somebody asked to cancel: at once where nobody is at work on it, and never by doing its work."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.cli.cancelling import end_cancelled
from runner.model.manifest import State
from runner.model.spec import JobSpec
from runner.ports import LEASE_S, Claimed, Ports
from tests.support.flow_world import World, assert_once_and_true, transform


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def ports(world: World) -> Ports:
    return world.worker()._ports


@pytest.fixture
def spec(world: World) -> JobSpec:
    return world.submit(transform())


def test_a_queued_run_ends_at_once_and_its_message_goes_with_the_worker_that_meets_it(
    world: World, ports: Ports, spec: JobSpec
) -> None:
    world.ledger.cancel(spec.run_id)
    manifest = end_cancelled(spec, ports, patience_s=0)
    assert manifest is not None
    assert manifest.state is State.CANCELLED
    assert world.queue.depth(spec.stage) == 1

    assert world.work_off(spec.stage) == [manifest]
    assert assert_once_and_true(world, spec) == manifest
    assert world.engine.jobs == []


def test_a_run_that_a_worker_has_is_left_to_it_until_its_lease_is_over(
    world: World, ports: Ports, spec: JobSpec
) -> None:
    assert isinstance(world.ledger.claim(spec, worker="another"), Claimed)
    world.ledger.cancel(spec.run_id)
    world.clock.advance(LEASE_S / 2)
    assert end_cancelled(spec, ports, patience_s=0) is None
    assert world.outcomes(spec) == ["running"]

    world.clock.advance(LEASE_S)
    manifest = end_cancelled(spec, ports, patience_s=0)
    assert manifest is not None
    assert manifest.state is State.CANCELLED
    assert [each.outcome for each in manifest.attempts] == ["lost", "cancelled"]
    assert world.engine.jobs == []


def test_a_run_that_nobody_wants_cancelled_is_not_touched(world: World, ports: Ports, spec: JobSpec) -> None:
    assert end_cancelled(spec, ports, patience_s=0) is None
    assert (world.outcomes(spec), world.engine.jobs) == ([], [])


def test_a_run_that_is_over_stays_as_it_ended(world: World, ports: Ports, spec: JobSpec) -> None:
    world.work_off(spec.stage)
    assert world.ledger.cancel(spec.run_id) == "over"
    ended = end_cancelled(spec, ports, patience_s=0)
    assert ended == world.manifest(spec)
    assert ended.state is State.SUCCEEDED
