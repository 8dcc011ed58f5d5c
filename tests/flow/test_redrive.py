"""What redriving dead letters makes of the runs that they ask for: each is carried on, once, whoever dies meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from runner.client import Client, WorkingTrees
from runner.model.errors import Category, InfrastructureError, LogicError, SchemaError, SpecError, TransientError
from runner.model.manifest import State
from runner.model.names import manifest_key, rerun_branch, spec_key
from runner.model.spec import JobSpec, Stage, parse_spec
from runner.ports import DeadLetter, DeadLetters, Ledger, Queue
from runner.redrive import Action, Redrive, Redriven, Runs, redriven_run_id
from tests.flow.moments import ends_well
from tests.support.flow_world import (
    DELAYS,
    PRODUCTION,
    ROUTES,
    At,
    Crash,
    Tap,
    Turn,
    World,
    assert_once_and_true,
    incremental,
    transform,
)
from tests.support.tapped import Tapped
from tests.support.twins import MemoryDeadLetters, MemoryLedger, MemoryQueue

STAGE = Stage.TRANSFORM
AWAY = TransientError("source: expected an answer, got none")


def redrive_of(world: World, tap: Tap | None = None, *, letters: DeadLetters | None = None) -> Redrive:
    """As one command makes it; `tap` sees and disturbs what it does."""
    tap = tap or Tap()
    ledger: Any = Tapped(tap, "ledger", world.ledger)
    queue = cast(Queue, Tapped(tap, "queue", world.queue))
    client = Client(
        ledger=ledger,
        objects=cast(Any, Tapped(tap, "objects", world.objects)),
        queue=queue,
        logic=world.logic,
        working_trees=cast(WorkingTrees, None),
        clock=world.clock,
        new_run_id=uuid4,
        production_ref=PRODUCTION,
    )
    given = letters or MemoryDeadLetters(world.queue, world.clock)
    return Redrive(letters=cast(DeadLetters, Tapped(tap, "letters", given)), ledger=ledger, queue=queue, runs=client)


def all_of(world: World, stage: Stage = STAGE, **how: Any) -> list[Redriven]:
    return redrive_of(world).redrive_all(stage, dry_run=False, told=lambda _: None, **how)


def one(done: list[Redriven]) -> Redriven:
    (redriven,) = done
    return redriven


def actions(done: list[Redriven]) -> list[str]:
    return sorted(each.remedy.action.value for each in done)


def fails(world: World, spec: JobSpec | None = None) -> JobSpec:
    """A run that used up its one try on what a retry may help with."""
    spec = spec or transform(max_attempts=1)
    world.engine.script = [Turn(raises=AWAY) for _ in range(spec.max_attempts)]
    assert world.run(spec).state is State.FAILED
    return spec


def bury(world: World, body: str, stage: Stage = STAGE, reason: str = "somebody buried it") -> None:
    other = MemoryQueue(world.clock)  # the world's own has messages of its own, and this is none that it may lose
    other.send(stage, body)
    delivery = other.receive(stage, wait_s=0)
    assert delivery is not None
    world.queue.bury(delivery, reason=reason)


def waiting(world: World, stage: Stage = STAGE) -> list[str]:
    """The bodies of all letters, which nobody may hide."""
    letters = MemoryDeadLetters(world.queue, world.clock)
    seen = letters.look(stage, limit=1000)
    for each in seen:
        letters.put_back(each)
    assert len(seen) == letters.depth(stage), "a letter was left hidden"
    return [each.body for each in seen]


def queued(world: World, stage: Stage = STAGE) -> list[UUID]:
    return [parse_spec(_body(each.wire)).run_id for each in world.queue._messages[stage]]


def _body(wire: bytes) -> str:
    return str(json.loads(wire)["body"])


def appends() -> JobSpec:
    outputs = [
        {"dataset": DELAYS, "from": "main.delays", "mode": "append"},
        {"dataset": ROUTES, "from": "main.routes", "mode": "append"},
    ]
    return transform(outputs=outputs)


# ---------------------------------------------------------------- what becomes of which letter


def test_a_failed_run_is_repeated_by_a_new_one_that_publishes_on_the_same_pins(world: World) -> None:
    dead = fails(world)
    world.publish("staging.flights")

    redriven = one(all_of(world))

    assert redriven.remedy.action is Action.SUBMIT
    assert waiting(world) == []
    assert queued(world) == [redriven_run_id(dead.run_id)]
    world.work_off(STAGE)
    again = world.ledger.spec(redriven_run_id(dead.run_id))
    assert again is not None
    assert ends_well(world, again) is not None
    assert again.rerun is not None
    assert (again.rerun.of, again.rerun.effect, again.rerun.publish) == (dead.run_id, dead.run_id, True)
    assert world.manifest(again).pins == world.manifest(dead).pins, "newer data has come since"
    assert world.head(DELAYS) == again.run_id
    assert world.manifest(dead).state is State.FAILED
    assert world.objects.exists(spec_key(again.run_id)), "it can be restored, as any run"


def test_a_cancelled_run_is_repeated_too(world: World) -> None:
    spec = world.submit(transform())
    world.ledger.cancel(spec.run_id)
    world.work_off(STAGE)
    assert world.manifest(spec).state is State.CANCELLED
    bury(world, spec.to_json())

    redriven = one(all_of(world))

    assert redriven.remedy.because == f"run {spec.run_id} was cancelled"
    world.work_off(STAGE)
    again = world.ledger.spec(redriven_run_id(spec.run_id))
    assert again is not None
    ends_well(world, again)


def test_a_run_that_is_still_to_end_is_sent_again_and_is_the_same_run(world: World) -> None:
    spec = transform()
    world.ledger.submit(spec)
    bury(world, spec.to_json())

    redriven = one(all_of(world))

    assert (redriven.remedy.action, redriven.remedy.because) == (Action.SEND, f"run {spec.run_id} is queued")
    assert waiting(world) == []
    assert queued(world) == [spec.run_id]
    world.work_off(STAGE)
    ends_well(world, spec)
    assert [row.run_id for row in world.ledger.runs(limit=9)] == [spec.run_id]


def test_a_run_that_succeeded_is_left_alone_and_its_letter_goes(world: World) -> None:
    spec = transform()
    before = world.run(spec)
    bury(world, spec.to_json())

    redriven = one(all_of(world))

    assert redriven.remedy.because == f"run {spec.run_id} succeeded already"
    assert (waiting(world), queued(world)) == ([], [])
    assert world.manifest(spec) == before


def test_a_run_that_the_ledger_has_forgotten_is_sent_as_it_is(world: World) -> None:
    spec = transform()
    bury(world, spec.to_json())

    redriven = one(all_of(world))

    assert redriven.remedy.because == f"the ledger does not know run {spec.run_id}"
    assert queued(world) == [spec.run_id]
    world.work_off(STAGE)
    ends_well(world, spec)


def test_what_is_no_spec_stays_with_the_reason_and_keeps_nothing_else(world: World) -> None:
    bury(world, "not json")
    dead = fails(world)
    bury(world, "[1]")

    done = all_of(world)

    assert actions(done) == ["stay", "stay", "submit"]
    stays = {each.entry.letter.body: each.remedy.because for each in done if each.remedy.action is Action.STAY}
    assert "expected JSON, got" in stays["not json"]
    assert "expected a JSON object, got list" in stays["[1]"]
    assert waiting(world) == ["not json", "[1]"]
    assert queued(world) == [redriven_run_id(dead.run_id)]


def test_another_spec_under_a_runs_id_stays(world: World) -> None:
    """Sent again it would be buried again; submitted, it would be another run than the one it is called after."""
    spec = transform()
    world.run(spec)
    other = transform(run_id=str(spec.run_id), params={"another": "request"})
    bury(world, other.to_json())

    redriven = one(all_of(world))

    assert redriven.remedy.action is Action.STAY
    assert redriven.remedy.because == (f"run {spec.run_id}: expected the spec that it was submitted with, got another")
    assert waiting(world) == [other.to_json()]


def test_work_of_another_stage_goes_to_its_own_queue(world: World) -> None:
    spec = transform()
    world.queue.send(Stage.LOAD, spec.to_json())
    world.deliver(Stage.LOAD)

    one(all_of(world, Stage.LOAD))

    assert waiting(world, Stage.LOAD) == []
    assert (queued(world, Stage.LOAD), queued(world)) == ([], [spec.run_id])
    world.work_off(STAGE)
    ends_well(world, spec)


def test_a_rerun_that_was_only_to_be_compared_is_not_published_because_it_died(world: World) -> None:
    first = transform()
    world.run(first)
    compared = redrive_of(world).runs.rerun(first.run_id).model_copy(update={"max_attempts": 1})
    fails(world, compared)

    one(all_of(world))
    world.work_off(STAGE)

    again = world.ledger.spec(redriven_run_id(compared.run_id))
    assert again is not None
    manifest = assert_once_and_true(world, again)
    assert {each.branch for each in manifest.outputs} == {rerun_branch(again.run_id)}
    assert world.head(DELAYS) == first.run_id


@pytest.mark.parametrize("made", [appends, incremental])
def test_what_a_dead_run_had_published_is_there_once_after_its_repetition(
    world: World, made: Callable[[], JobSpec]
) -> None:
    """Its first table has its rows, the second refused them: the repetition's take the place of what is there."""
    dead = world.submit(made())
    refused = SchemaError("marts.routes: expected columns that the table can take on, got others")
    world.work_off(STAGE, Tap().fail(At("before", "tables.commit", 2), refused))
    assert [each.dataset for each in world.manifest(dead).outputs] == [DELAYS]
    bury(world, dead.to_json())
    world.clock.advance(1)  # of two submissions the later one wins

    one(all_of(world))
    world.work_off(STAGE)

    again = world.ledger.spec(redriven_run_id(dead.run_id))
    assert again is not None
    ends_well(world, again)
    for dataset in (DELAYS, ROUTES):
        snapshot = world.tables.pin(dataset, "x", None).snapshot
        assert world.contents(dataset, snapshot) == [f"{dataset} by execution 2"]


def test_a_repetition_whose_pinned_state_has_moved_on_is_a_conflict_and_leaves_no_letter(world: World) -> None:
    fails(world, incremental(max_attempts=1))
    other = world.publish(DELAYS)

    redriven = one(all_of(world))
    world.work_off(STAGE)

    assert redriven.remedy.spec is not None
    failure = world.manifest(redriven.remedy.spec).failure
    assert failure is not None
    assert failure.category is Category.CONFLICT
    assert "--latest-inputs" in (failure.hint or "")
    assert world.head(DELAYS) == other
    assert waiting(world) == []


def test_a_repetition_of_an_older_run_than_what_is_published_is_a_conflict_and_leaves_no_letter(world: World) -> None:
    dead = fails(world)
    later = world.publish(DELAYS, logical_time=dead.logical_time + timedelta(days=1))

    redriven = one(all_of(world))
    world.work_off(STAGE)

    assert redriven.remedy.spec is not None
    failure = world.manifest(redriven.remedy.spec).failure
    assert failure is not None
    assert failure.category is Category.CONFLICT
    assert world.head(DELAYS) == later
    assert waiting(world) == []


# ---------------------------------------------------------------- once


def test_two_letters_of_a_run_make_one_run(world: World) -> None:
    dead = fails(world)
    world.queue.send(STAGE, dead.to_json())
    world.work_off(STAGE)
    assert len(waiting(world)) == 2

    done = all_of(world)
    world.work_off(STAGE)

    assert actions(done) == ["submit", "submit"]
    assert {row.run_id for row in world.ledger.runs(limit=9)} == {dead.run_id, redriven_run_id(dead.run_id)}
    assert len(world.engine.jobs) == 2
    again = world.ledger.spec(redriven_run_id(dead.run_id))
    assert again is not None
    ends_well(world, again)


def test_redriven_again_after_its_repetition_is_over_it_only_goes(world: World) -> None:
    dead = fails(world)
    all_of(world)
    world.work_off(STAGE)
    bury(world, dead.to_json())

    redriven = one(all_of(world))

    again = redriven_run_id(dead.run_id)
    assert redriven.remedy.because == f"run {dead.run_id} is redriven already, by run {again}, which succeeded"
    assert (waiting(world), queued(world)) == ([], [])
    assert len(world.ledger.runs(limit=9)) == 2


def test_a_repetition_that_failed_is_repeated_by_its_own_letter(world: World) -> None:
    dead = fails(world)
    all_of(world)
    world.engine.script = [Turn(raises=AWAY)]
    world.work_off(STAGE)
    bury(world, dead.to_json())  # a copy of the first one's, which came late
    second = redriven_run_id(dead.run_id)

    done = all_of(world)
    world.work_off(STAGE)

    assert actions(done) == ["remove", "submit"]
    third = world.ledger.spec(redriven_run_id(second))
    assert third is not None
    assert third.rerun is not None
    assert (third.rerun.of, third.rerun.effect) == (second, dead.run_id)
    ends_well(world, third)
    assert len(world.ledger.runs(limit=9)) == 3


def test_killed_at_any_moment_and_done_again_it_is_one_run(tmp_path: Path) -> None:
    def world_of(name: str) -> tuple[World, JobSpec]:
        (tmp_path / name).mkdir()
        world = World(tmp_path / name)
        return world, fails(world)

    whole = Tap()
    world, _ = world_of("whole")
    redrive_of(world, whole).redrive_all(STAGE, dry_run=False, told=lambda _: None)
    moments = whole.moments()
    assert {at.call for at in moments} >= {"letters.look", "ledger.submit", "queue.send", "letters.remove"}
    for at in moments:
        world, dead = world_of(str(at))
        with pytest.raises(Crash):
            redrive_of(world, Tap().crash(at)).redrive_all(STAGE, dry_run=False, told=lambda _: None)
        world.work_off(STAGE)  # what the killed one has sent
        world.clock.advance(61)  # and what it hid

        all_of(world)
        world.work_off(STAGE)

        assert waiting(world) == [], at
        again = world.ledger.spec(redriven_run_id(dead.run_id))
        assert again is not None, at
        ends_well(world, again)
        assert len(world.ledger.runs(limit=9)) == 2, at
        assert len(world.engine.jobs) == 2, at


class _NeverRemoves(MemoryDeadLetters):
    def remove(self, letter: DeadLetter) -> None:
        raise InfrastructureError("queue transform-dlq: expected an answer, got none")


def test_a_letter_that_cannot_be_removed_is_seen_again_and_is_still_one_run(world: World) -> None:
    dead = fails(world)
    for _ in range(3):
        with pytest.raises(InfrastructureError):
            all_of_with(world, _NeverRemoves(world.queue, world.clock))
    assert waiting(world) == [dead.to_json()]
    world.work_off(STAGE)

    assert one(all_of(world)).remedy.action is Action.REMOVE
    assert len(world.ledger.runs(limit=9)) == 2
    assert len(world.engine.jobs) == 2


def all_of_with(world: World, letters: DeadLetters) -> list[Redriven]:
    return redrive_of(world, letters=letters).redrive_all(STAGE, dry_run=False, told=lambda _: None)


def test_a_repetition_that_was_stored_and_never_sent_is_sent_as_it_was_stored(world: World) -> None:
    """Whoever redrove it died in between; another release would make another spec of the same run."""
    dead = fails(world)
    by_another_release = redrive_of(world).runs.rerun(dead.run_id, publish=True)
    changed = {"run_id": redriven_run_id(dead.run_id), "labels": {"release": "another"}}
    stored = by_another_release.model_copy(update=changed)
    world.ledger.submit(stored)

    assert one(all_of(world)).remedy.spec == stored

    world.work_off(STAGE)
    ends_well(world, stored)


# ---------------------------------------------------------------- every letter


def test_all_of_them_are_more_than_one_look(world: World) -> None:
    specs = [transform() for _ in range(230)]
    for spec in specs:
        bury(world, spec.to_json())

    done = all_of(world)

    assert len(done) == 230
    assert waiting(world) == []
    assert sorted(queued(world)) == sorted(spec.run_id for spec in specs)


def test_what_comes_back_while_it_is_at_work_is_not_redriven_for_ever(world: World) -> None:
    """The cause is still there: each repetition fails at once, and its letter comes while others are redriven."""
    fails(world)
    rounds: list[Redriven] = []

    def carried_out(redriven: Redriven) -> None:
        rounds.append(redriven)
        assert len(rounds) < 5, "it goes round in a circle"
        world.engine.script = [Turn(raises=AWAY)]
        world.work_off(STAGE)

    done = redrive_of(world).redrive_all(STAGE, dry_run=False, told=carried_out)

    assert [each.remedy.action for each in done] == [Action.SUBMIT, Action.STAY]
    assert "it has come back" in done[1].remedy.because
    assert len(world.ledger.runs(limit=9)) == 2
    assert len(waiting(world)) == 1


class _KeptOnce(MemoryDeadLetters):
    """SQS keeps a letter whose receipt has run out, and shows it again."""

    kept = False

    def remove(self, letter: DeadLetter) -> None:
        if self.kept:
            super().remove(letter)
        else:
            self.kept = True
            self.put_back(letter)


def test_a_letter_that_sqs_kept_is_removed_when_it_is_seen_again(world: World) -> None:
    fails(world)

    done = all_of_with(world, _KeptOnce(world.queue, world.clock))

    assert actions(done) == ["submit"]
    assert waiting(world) == []
    assert len(queued(world)) == 1


def test_a_dry_run_says_the_same_and_does_nothing(world: World) -> None:
    dead = fails(world)
    bury(world, "not json")
    letters = waiting(world)

    would = redrive_of(world).redrive_all(STAGE, dry_run=True, told=lambda _: None)

    assert waiting(world) == letters
    assert queued(world) == []
    assert world.ledger.run(redriven_run_id(dead.run_id)) is None
    assert [each.remedy for each in all_of(world)] == [each.remedy for each in would]


# ---------------------------------------------------------------- by name


def ids(world: World) -> dict[str, str]:
    """Of each letter, by its body."""
    return {_body(each.wire): each.message_id for each in world.queue._dead[STAGE]}


def by_name(world: World, *names: str) -> list[Redriven]:
    return redrive_of(world).redrive(STAGE, names, dry_run=False, told=lambda _: None)


@pytest.mark.parametrize(
    "name",
    [
        lambda message_id, _: message_id,
        lambda message_id, _: message_id[:8].upper(),
        lambda _, run_id: run_id,
        lambda _, run_id: run_id[:13],
        lambda _, run_id: run_id[-8:],
    ],
    ids=["message", "beginning-of-message", "run", "beginning-of-run", "end-of-run"],
)
def test_a_letter_is_named_by_its_message_or_its_run(world: World, name: Callable[[str, str], str]) -> None:
    wanted, other = transform(), transform()
    bury(world, wanted.to_json())
    bury(world, other.to_json())

    one(by_name(world, name(ids(world)[wanted.to_json()], str(wanted.run_id))))

    assert queued(world) == [wanted.run_id]
    assert waiting(world) == [other.to_json()]


def test_named_twice_it_is_redriven_once(world: World) -> None:
    spec = transform()
    bury(world, spec.to_json())

    one(by_name(world, str(spec.run_id), ids(world)[spec.to_json()]))

    assert queued(world) == [spec.run_id]


@pytest.mark.parametrize("name", ["ffffffff", "5b1e096", "", "e", "not a name", "*", "%"])
def test_where_a_name_is_nobodys_nothing_is_redriven(world: World, name: str) -> None:
    spec = transform(run_id="01a1fead-4b95-761f-842c-c09535b1e096")
    bury(world, spec.to_json())

    with pytest.raises(SpecError, match="expected one that is called so, got none") as error:
        by_name(world, str(spec.run_id), name)

    assert repr(name) in error.value.message
    assert "runner dlq list transform" in (error.value.hint or "")
    assert queued(world) == []
    assert waiting(world) == [spec.to_json()]


def test_a_name_of_several_is_refused(world: World) -> None:
    for end in ("1", "2"):
        bury(world, transform(run_id=f"01a1fead-4b95-761f-842c-c09535b1e09{end}").to_json())

    with pytest.raises(SpecError, match="got several"):
        by_name(world, "01a1fead")

    assert len(waiting(world)) == 2


def test_a_letter_is_shown_with_its_runs_history_and_what_would_be_done(world: World) -> None:
    dead = fails(world)
    bury(world, "not json")

    (shown,) = redrive_of(world).examine(STAGE, str(dead.run_id))

    assert shown.entry.spec == dead
    assert shown.entry.letter.reason == f"transient: {AWAY.message}"
    assert [(each.attempt, each.outcome) for each in shown.attempts] == [(1, "failed")]
    assert shown.entry.row is not None
    assert shown.entry.row.failure == AWAY.failure
    assert shown.remedy.spec is not None
    assert shown.remedy.spec.run_id == redriven_run_id(dead.run_id)
    assert len(waiting(world)) == 2


# ---------------------------------------------------------------- looking


def test_the_list_is_the_oldest_first_stage_by_stage_and_says_when_there_is_more(world: World) -> None:
    for stage, body in ((STAGE, "b"), (Stage.LOAD, "a"), (STAGE, "c")):
        bury(world, body, stage)
        world.clock.advance(1)
    redrive = redrive_of(world)

    def bodies(limit: int) -> tuple[list[str], bool]:
        listed = redrive.listed([Stage.LOAD, STAGE], limit=limit)
        return [each.letter.body for each in listed.entries], listed.more

    assert bodies(100) == (["a", "b", "c"], False)
    assert bodies(3) == (["a", "b", "c"], False)
    assert bodies(2) == (["a", "b"], True)
    assert bodies(1) == (["a"], True)
    assert redrive.listed([STAGE], limit=1).entries[0].letter.body == "b"
    assert redrive.listed([STAGE], limit=1).hidden == 0, "there is one more, and nobody hides it"


def test_the_list_says_what_the_ledger_knows(world: World) -> None:
    dead, unknown = fails(world), transform()
    bury(world, unknown.to_json())
    bury(world, "{")

    listed = redrive_of(world).listed([STAGE], limit=10)

    states = {each.letter.body: each.row and each.row.state for each in listed.entries}
    assert states == {dead.to_json(): State.FAILED, unknown.to_json(): None, "{": None}
    assert [each.no_spec.partition(": ")[2][:13] for each in listed.entries if each.no_spec] == ["expected JSON"]


def test_what_somebody_else_looks_at_is_counted(world: World) -> None:
    bury(world, "a")
    bury(world, "b")
    MemoryDeadLetters(world.queue, world.clock).look(STAGE, limit=1)

    listed = redrive_of(world).listed([STAGE], limit=10)

    assert (len(listed.entries), listed.more, listed.hidden) == (1, False, 1)


@pytest.mark.parametrize("error", [InfrastructureError("ledger: away"), KeyboardInterrupt()])
def test_whatever_ends_a_look_the_letters_are_put_back(world: World, error: BaseException) -> None:
    class Away(MemoryLedger):
        def run(self, run_id: UUID) -> Any:
            raise error

    spec = transform()
    bury(world, spec.to_json())
    whole = redrive_of(world)
    redrive = Redrive(letters=whole.letters, ledger=cast(Ledger, Away(world.clock)), queue=whole.queue, runs=whole.runs)

    uses: list[Callable[[], object]] = [
        lambda: redrive.listed([STAGE], limit=10),
        lambda: redrive.examine(STAGE, str(spec.run_id)),
        lambda: redrive.redrive(STAGE, [str(spec.run_id)], dry_run=False, told=lambda _: None),
        lambda: redrive.redrive_all(STAGE, dry_run=False, told=lambda _: None),
    ]
    for use in uses:
        with pytest.raises(type(error)):
            use()
        assert waiting(world) == [spec.to_json()]


def test_a_rerun_that_this_release_refuses_stays_and_the_others_go_on(world: World) -> None:
    first, second = fails(world), fails(world)

    class Picky:
        def __init__(self, runs: Runs) -> None:
            self._runs = runs

        def rerun(self, run_id: UUID, *, publish: bool = False) -> JobSpec:
            if run_id == first.run_id:
                raise SpecError("rerun: expected what this release has, got what it has not")
            return self._runs.rerun(run_id, publish=publish)

        def submit(self, spec: JobSpec) -> JobSpec:
            return self._runs.submit(spec)

    whole = redrive_of(world)
    redrive = Redrive(letters=whole.letters, ledger=whole.ledger, queue=whole.queue, runs=Picky(whole.runs))

    done = redrive.redrive_all(STAGE, dry_run=False, told=lambda _: None)

    assert actions(done) == ["stay", "submit"]
    assert waiting(world) == [first.to_json()]
    assert queued(world) == [redriven_run_id(second.run_id)]


def test_what_a_retry_does_not_help_leaves_no_letter(world: World) -> None:
    world.engine.script = [Turn(raises=LogicError("no good"))]
    spec = transform()
    world.run(spec)

    assert waiting(world) == []
    assert world.objects.exists(manifest_key(spec.run_id))
