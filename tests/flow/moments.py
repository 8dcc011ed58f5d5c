"""Every moment of an undisturbed run, before and after the effect of each call: nobody has to write them down."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from runner.model.manifest import Manifest, State
from runner.model.spec import JobSpec
from tests.support.flow_world import At, Tap, Turn, World, assert_once_and_true, incremental, load, transform

BEFORE_A_JOB = ("engine.prepare", "ledger.now", "objects.check", "queue.receive")
"""No message is taken where no job could run, nor while a service is away."""
RECEIVED = At("after", "queue.receive")
CLAIMED = At("after", "ledger.claim")
PINNED = At("after", "ledger.pin")
EXECUTED = At("after", "engine.execute")
PLANNED = At("after", "ledger.plan")
DECIDED = At("after", "ledger.decide")


def scripted(world: World, stage: str) -> JobSpec:
    """Two tables for transform and incremental, one of which begins from its state; for load a table and a prefix.

    Each execution makes other rows than the one before.
    """
    if stage == "load":
        world.engine.script = [Turn(quarantined=2), Turn(quarantined=3), Turn(quarantined=4)]
    return {"transform": transform, "load": load, "incremental": incremental}[stage]()


def undisturbed(stage: str) -> list[At]:
    with tempfile.TemporaryDirectory() as folder:
        world, tap = World(Path(folder)), Tap()
        world.run(scripted(world, stage), tap)
    moments = tap.moments()
    return moments[moments.index(RECEIVED) :]


MOMENTS = {stage: undisturbed(stage) for stage in ("transform", "load", "incremental")}
CASES = [pytest.param(stage, at, id=f"{stage}-{at}") for stage, moments in MOMENTS.items() for at in moments]


BEFORE_THE_PLAN, PLANNED_ON = (
    [
        at
        for at in MOMENTS["transform"]
        if (MOMENTS["transform"].index(at) >= MOMENTS["transform"].index(PLANNED)) is past
    ]
    for past in (False, True)
)


def is_past(at: At, other: At, stage: str) -> bool:
    """Whether `other` lies behind, when a run of this stage has come to `at`."""
    return MOMENTS[stage].index(at) >= MOMENTS[stage].index(other)


def ends_well(world: World, spec: JobSpec) -> Manifest:
    """Succeeded, once and truly."""
    manifest = assert_once_and_true(world, spec)
    assert manifest.state is State.SUCCEEDED
    assert not [each for each in world.queue.dead_letters(spec.stage) if each.body == spec.to_json()]
    return manifest
