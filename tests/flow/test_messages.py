"""What becomes of messages: none is lost, and what can never become a run lies in the dead letters with its reason."""

from __future__ import annotations

import json

import pytest

from runner.model.errors import Category, ConflictError, Failure, InfrastructureError, RunnerError, TransientError
from runner.model.manifest import State
from runner.model.names import manifest_key
from runner.model.spec import Stage
from runner.worker import OUTAGE_PAUSE_S, Outcome
from tests.flow.moments import ends_well
from tests.support.documents import spec_document
from tests.support.flow_world import At, Tap, World, assert_once_and_true, transform


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("not json", "expected JSON"),
        ('["a", "list"]', "expected a JSON object, got list"),
        (json.dumps({**spec_document(), "colour": "red"}), "colour: expected no such key"),
        (json.dumps({**spec_document(), "run_id": "seven"}), "run_id: expected"),
        (json.dumps({**spec_document(), "logic": {"repo": "r", "commit": "main"}}), "logic.commit: expected"),
        ('{"run_id": 1, "run_id": 2}', "run_id: expected each key once"),
        (json.dumps({**spec_document(), "params": {"x": "x" * 70_000}}), "expected at most 65,536 bytes"),
    ],
    ids=["no-json", "no-object", "unknown-key", "no-uuid", "a-branch", "twice", "too-big"],
)
def test_a_message_that_is_no_spec_is_buried_with_its_reason(world: World, body: str, reason: str) -> None:
    world.queue.send(Stage.TRANSFORM, body)

    outcome = world.deliver(Stage.TRANSFORM)

    (letter,) = world.queue.dead_letters(Stage.TRANSFORM)
    assert letter.body == body
    assert reason in letter.reason
    assert letter.message_id in letter.reason
    assert isinstance(outcome, Failure)
    assert outcome.category is Category.SPEC
    assert outcome.message == letter.reason
    assert world.queue.depth(Stage.TRANSFORM) == 0
    assert world.ledger.runs(limit=9) == []


def test_a_spec_in_another_stages_queue_is_buried_and_touches_no_run(world: World) -> None:
    spec = transform()
    world.queue.send(Stage.LOAD, spec.to_json())

    world.deliver(Stage.LOAD)

    (letter,) = world.queue.dead_letters(Stage.LOAD)
    assert letter.reason == f"run {spec.run_id}: expected a spec for stage load, got one for transform"
    assert world.queue.depth(Stage.LOAD) == 0
    assert world.ledger.run(spec.run_id) is None


def test_another_spec_under_a_runs_id_is_refused_while_the_run_goes_on(world: World) -> None:
    """It can never become a run, however often it is delivered: so it goes to the dead letters, and the worker on."""
    spec = transform()
    other = transform(run_id=str(spec.run_id), params={"another": "request"})
    world.submit(spec)
    world.queue.send(other.stage, other.to_json())

    ended = world.work_off(spec.stage)

    (row,) = world.ledger.runs(limit=9)
    assert (row.run_id, row.state) == (spec.run_id, State.SUCCEEDED)
    (letter,) = world.queue.dead_letters(spec.stage)
    assert letter.body == other.to_json()
    assert str(spec.run_id) in letter.reason
    assert "expected the spec" in letter.reason
    refused = [each for each in ended if isinstance(each, Failure)]
    assert [each.category for each in refused] == [Category.CONFLICT]
    assert_once_and_true(world, spec)
    assert world.ledger.spec(spec.run_id) == spec
    assert len(world.engine.jobs) == 1


def test_another_spec_under_the_id_of_a_run_at_work_leaves_its_lease_alone(world: World) -> None:
    spec = transform()
    other = transform(run_id=str(spec.run_id), params={"another": "request"})
    world.submit(spec)
    world.queue.send(other.stage, other.to_json())
    refused: list[Outcome | None] = []

    world.run(spec, Tap().pause(At("before", "engine.execute"), lambda: refused.append(world.deliver(spec.stage))))

    assert [type(each) for each in refused] == [Failure]
    assert [each.outcome for each in assert_once_and_true(world, spec).attempts] == ["succeeded"]
    assert len(world.queue.dead_letters(spec.stage)) == 1


def test_a_record_that_somebody_else_wrote_is_kept_and_the_message_buried(world: World) -> None:
    """Nobody can change a record: the ledger's word stands in the ledger, and what S3 has stays for people to judge."""
    spec = transform()
    forged = b'{"not": "ours"}'
    tap = Tap().pause(At("after", "ledger.decide"), lambda: world.objects.put(manifest_key(spec.run_id), forged))

    world.submit(spec)
    ended = world.work_off(spec.stage, tap)

    assert world.manifest(spec).state is State.SUCCEEDED
    assert world.objects.get(manifest_key(spec.run_id)) == forged
    (letter,) = world.queue.dead_letters(spec.stage)
    assert "expected this run's manifest, got another" in letter.reason
    assert [type(each) for each in ended] == [Failure]


def test_the_dead_letter_is_there_before_the_message_goes(world: World) -> None:
    """Should burying fail, the message is as it was."""
    world.queue.send(Stage.TRANSFORM, "not json")

    with pytest.raises(InfrastructureError):
        world.deliver(Stage.TRANSFORM, Tap().fail(At("before", "queue.bury"), InfrastructureError("away")))

    assert world.queue.depth(Stage.TRANSFORM) == 1
    world.work_off(Stage.TRANSFORM)
    assert len(world.queue.dead_letters(Stage.TRANSFORM)) == 1


@pytest.mark.parametrize("error", [InfrastructureError, TransientError])
@pytest.mark.parametrize("call", ["ledger.claim", "objects.put_if_absent", "ledger.mark_recorded"])
def test_where_nothing_can_be_recorded_the_message_rests_a_moment_and_the_worker_says_why(
    world: World, error: type[RunnerError], call: str
) -> None:
    """Before the claim and after the decision there is no attempt that could be given back."""
    spec = world.submit(transform())
    began = world.clock.now()

    with pytest.raises(error, match="away"):
        world.deliver(spec.stage, Tap().fail(At("before", call), error("away")))

    assert world.queue.depth(spec.stage) == 1
    world.deliver(spec.stage)
    assert (world.clock.now() - began).total_seconds() == OUTAGE_PAUSE_S
    ends_well(world, spec)


def test_a_message_that_cannot_even_be_hidden_comes_back_by_itself(world: World) -> None:
    spec = world.submit(transform())

    with pytest.raises(InfrastructureError, match=r"ledger\.claim"):
        world.deliver(spec.stage, Tap().lose(At("before", "ledger.claim"), "ledger", "queue"))

    world.work_off(spec.stage)
    ends_well(world, spec)


def test_a_run_nobody_submitted_to_the_ledger_is_one_all_the_same(world: World) -> None:
    """A message is enough: a queue may outlive a ledger."""
    spec = transform()
    world.queue.send(spec.stage, spec.to_json())

    world.work_off(spec.stage)

    ends_well(world, spec)


@pytest.mark.parametrize("copies", [2, 5])
def test_a_message_sent_twice_is_one_run(world: World, copies: int) -> None:
    spec = transform()
    for _ in range(copies):
        world.queue.send(spec.stage, spec.to_json())

    world.work_off(spec.stage)

    manifest = ends_well(world, spec)
    assert len(world.engine.jobs) == 1
    assert len(manifest.attempts) == 1


def test_conflict_is_an_error_that_never_ends_a_worker(world: World) -> None:
    """Jobs behind the refused one are taken by the same worker."""
    first, second = transform(), transform()
    impostor = transform(run_id=str(first.run_id), params={"another": "request"})
    world.ledger.submit(first)
    for spec in (impostor, second):
        world.queue.send(spec.stage, spec.to_json())

    ended = list(world.worker().work(second.stage, max_jobs=2, idle_timeout_s=10))

    assert [type(each) is Failure for each in ended] == [True, False]
    assert world.manifest(second).state is State.SUCCEEDED
    with pytest.raises(ConflictError):
        world.ledger.submit(impostor)
