"""Dead letters: what each asks for, what became of the run that it names, and how that is carried on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from uuid import UUID, uuid5

from runner.model.errors import ConflictError, RunnerError, SpecError
from runner.model.manifest import TERMINAL, AttemptRecord, State
from runner.model.spec import JobSpec, Stage, parse_spec
from runner.ports import SHORT_ID_CHARACTERS, DeadLetter, DeadLetters, Ledger, Queue, RunRow

SEARCHED = 10_000
"""Among so many letters one is looked for by its name: all can be read before others see the first again."""
SHORTEST_NAME = 4
_ROUND = 100
"""Letters that are redriven while others cannot see them: few enough to be done in less than a minute."""


class Runs(Protocol):
    """`Client` says what each of these does."""

    def rerun(self, run_id: UUID, *, publish: bool = False) -> JobSpec: ...
    def submit(self, spec: JobSpec) -> JobSpec: ...


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A letter with what the ledger knows of it."""

    letter: DeadLetter
    spec: JobSpec | None
    no_spec: str
    """Why the body is none; empty where it is one."""
    row: RunRow | None
    """None where the ledger does not know the run."""


class Action(StrEnum):
    SUBMIT = "submit"
    """A new run that repeats the one that is over."""
    SEND = "send"
    """The same message again: its run is still to end."""
    REMOVE = "remove"
    """Nothing is left to be done."""
    STAY = "stay"
    """Only a person can say what is to be done."""


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """What redriving a letter does."""

    action: Action
    because: str
    spec: JobSpec | None = None
    """The new run's, for `submit`."""


@dataclass(frozen=True, kw_only=True)
class Examined:
    entry: Entry
    remedy: Remedy
    attempts: tuple[AttemptRecord, ...]


@dataclass(frozen=True, kw_only=True)
class Redriven:
    entry: Entry
    remedy: Remedy


@dataclass(frozen=True, kw_only=True)
class Listed:
    entries: tuple[Entry, ...]
    more: bool
    """Whether there are others beyond the limit."""
    hidden: int
    """About how many could not be seen, as somebody else looks at them."""


def redriven_run_id(dead: UUID) -> UUID:
    """The run that takes a dead run's place: always the same, so that redriving twice is one run."""
    return uuid5(dead, "redrive")


@dataclass(frozen=True, kw_only=True)
class Redrive:
    """Raises `InfrastructureError` where a service is away; what was looked at is put back first."""

    letters: DeadLetters
    ledger: Ledger
    queue: Queue
    runs: Runs

    # ------------------------------------------------------------ looking

    def listed(self, stages: Iterable[Stage], *, limit: int) -> Listed:
        """Up to `limit` letters, stage by stage, the oldest first."""
        stages = tuple(stages)
        with self._held() as held:
            for stage in stages:
                # One more than is shown, to know whether there are more.
                held |= _by_id(self.letters.look(stage, limit=limit + 1 - len(held)))
                if len(held) > limit:
                    break
            place = {stage: number for number, stage in enumerate(stages)}
            found = sorted(held.values(), key=lambda each: (place[each.stage], each.sent_at, each.message_id))
            more = len(found) > limit
            hidden = 0 if more else max(0, sum(map(self.letters.depth, stages)) - len(found))
            return Listed(entries=tuple(map(self._entry, found[:limit])), more=more, hidden=hidden)

    def examine(self, stage: Stage, name: str) -> list[Examined]:
        """The letter of that name, with its run's history and what redriving it would do.

        A name is a message's id, a run's, the beginning of either, or the last 8 characters of a run's; by a run's
        there may be several letters. Raises `SpecError` where it is nobody's, or means several.
        """
        with self._held() as held:
            entries = self._search(stage, held)
            return [self._examined(each) for each in self._named(entries, name, stage)]

    def _examined(self, entry: Entry) -> Examined:
        attempts = self.ledger.attempts(entry.row.run_id) if entry.row else ()
        return Examined(entry=entry, remedy=self._remedy(entry), attempts=attempts)

    @contextmanager
    def _held(self) -> Iterator[dict[str, DeadLetter]]:
        """What is in it at the end, however that comes about, is put back."""
        held: dict[str, DeadLetter] = {}
        try:
            yield held
        finally:
            for letter in held.values():
                with suppress(RunnerError):  # it comes back by itself within a minute
                    self.letters.put_back(letter)

    def _search(self, stage: Stage, held: dict[str, DeadLetter]) -> list[tuple[DeadLetter, UUID | None]]:
        """All letters of the stage, each with the run that its body asks for."""
        held |= _by_id(self.letters.look(stage, limit=SEARCHED))
        return [(letter, spec.run_id if (spec := _read(letter)[0]) else None) for letter in held.values()]

    def _named(self, letters: Sequence[tuple[DeadLetter, UUID | None]], name: str, stage: Stage) -> list[Entry]:
        wanted = name.lower()
        found = set[tuple[str, ...]]()
        if len(wanted) >= SHORTEST_NAME:
            found |= {(letter.message_id,) for letter, _ in letters if letter.message_id.lower().startswith(wanted)}
            runs = {run_id for _, run_id in letters if run_id is not None and _is_called(run_id, wanted)}
            found |= {tuple(letter.message_id for letter, run_id in letters if run_id == each) for each in runs}
        if len(found) != 1:
            came = "several" if found else "none"
            among = f" among the first {SEARCHED:,}" if len(letters) >= SEARCHED else ""
            raise SpecError(
                f"letter {name!r} of {stage.value}: expected one that is called so, got {came}{among}",
                hint=f"runner dlq list {stage.value} lists them; one that somebody looks at is hidden for a minute",
            )
        (ids,) = found
        return [self._entry(letter) for letter, _ in letters if letter.message_id in ids]

    def _entry(self, letter: DeadLetter) -> Entry:
        spec, no_spec = _read(letter)
        return Entry(letter=letter, spec=spec, no_spec=no_spec, row=self.ledger.run(spec.run_id) if spec else None)

    # ------------------------------------------------------------ judging

    def _remedy(self, entry: Entry) -> Remedy:
        spec, row = entry.spec, entry.row
        if spec is None:
            return Remedy(action=Action.STAY, because=entry.no_spec)
        if row is None:
            return Remedy(action=Action.SEND, because=f"the ledger does not know run {spec.run_id}")
        try:
            if self.ledger.spec(spec.run_id) != spec:
                raise ConflictError(f"run {spec.run_id}: expected the spec that it was submitted with, got another")
            if row.state is State.SUCCEEDED:
                return Remedy(action=Action.REMOVE, because=f"run {spec.run_id} succeeded already")
            if row.state not in TERMINAL:
                return Remedy(action=Action.SEND, because=f"run {spec.run_id} is {row.state.value}")
            return self._again(spec, row.state)
        except (SpecError, ConflictError) as refused:
            return Remedy(action=Action.STAY, because=refused.message)

    def _again(self, dead: JobSpec, state: State) -> Remedy:
        run_id = redriven_run_id(dead.run_id)
        row = self.ledger.run(run_id)
        if row is not None and row.state in TERMINAL:
            because = f"run {dead.run_id} is redriven already, by run {run_id}, which {_ended(row.state)}"
            return Remedy(action=Action.REMOVE, because=because)
        # One that is there was submitted, and perhaps not sent: whoever did it may have died in between.
        spec = self.ledger.spec(run_id)
        if spec is None:
            # A rerun that was only to be compared is not published because it died.
            spec = self.runs.rerun(dead.run_id, publish=not dead.publishes_to_branch)
            spec = spec.model_copy(update={"run_id": run_id})
        return Remedy(action=Action.SUBMIT, because=f"run {dead.run_id} {_ended(state)}", spec=spec)

    # ------------------------------------------------------------ redriving

    def redrive(
        self, stage: Stage, names: Sequence[str], *, dry_run: bool, told: Callable[[Redriven], None]
    ) -> list[Redriven]:
        """Carry on what these letters ask for; `told` hears of each when it is done. Names are as for `examine`.

        Nothing is done where one of the names is nobody's.
        """
        with self._held() as held:
            letters = self._search(stage, held)
            entries = {each.letter.message_id: each for name in names for each in self._named(letters, name, stage)}
            done = []
            for entry in entries.values():
                done.append(self._carry_on(entry, held, dry_run=dry_run))
                told(done[-1])
            return done

    def redrive_all(self, stage: Stage, *, dry_run: bool, told: Callable[[Redriven], None]) -> list[Redriven]:
        """The same for every letter that is there now; not for one that comes of what is redriven."""
        done: list[Redriven] = []
        gone, runs = set[str](), set[UUID]()
        with self._held() as held:
            while letters := self._unseen(stage, held, gone):
                runs_before = frozenset(runs)
                for letter in letters:
                    entry = self._entry(letter)
                    back = entry.spec is not None and entry.spec.run_id in runs_before
                    done.append(_came_back(entry) if back else self._carry_on(entry, held, dry_run=dry_run))
                    told(done[-1])
                    if letter.message_id not in held:
                        gone.add(letter.message_id)
                        carried = done[-1].remedy.spec or entry.spec
                        runs |= {carried.run_id} if carried else set()
        return done

    def _unseen(self, stage: Stage, held: dict[str, DeadLetter], gone: set[str]) -> list[DeadLetter]:
        seen = frozenset(held)
        for letter in self.letters.look(stage, limit=_ROUND):
            held[letter.message_id] = letter
        for message_id in gone & held.keys():
            # Its receipt had run out when it was removed, and SQS kept it.
            self.letters.remove(held.pop(message_id))
        return [letter for message_id, letter in held.items() if message_id not in seen]

    def _carry_on(self, entry: Entry, held: dict[str, DeadLetter], *, dry_run: bool) -> Redriven:
        """The letter goes last: dying before leaves it, and the same again is the same run."""
        remedy = self._remedy(entry)
        if dry_run or remedy.action is Action.STAY:
            return Redriven(entry=entry, remedy=remedy)
        try:
            if remedy.action is Action.SUBMIT and remedy.spec is not None:
                self.runs.submit(remedy.spec)
            elif remedy.action is Action.SEND and entry.spec is not None:
                self.queue.send(entry.spec.stage, entry.letter.body)
        except ConflictError as refused:
            return Redriven(entry=entry, remedy=Remedy(action=Action.STAY, because=refused.message))
        self.letters.remove(entry.letter)
        del held[entry.letter.message_id]
        return Redriven(entry=entry, remedy=remedy)


def _read(letter: DeadLetter) -> tuple[JobSpec | None, str]:
    try:
        return parse_spec(letter.body, what=f"letter {letter.message_id}"), ""
    except SpecError as error:
        return None, error.message


def _came_back(entry: Entry) -> Redriven:
    run_id = entry.spec.run_id if entry.spec else None
    because = f"run {run_id} was sent to its queue by this command: it has come back, or it had two letters"
    return Redriven(entry=entry, remedy=Remedy(action=Action.STAY, because=because))


def _by_id(letters: Iterable[DeadLetter]) -> dict[str, DeadLetter]:
    return {each.message_id: each for each in letters}


def _is_called(run_id: UUID, text: str) -> bool:
    """As people name a run: by the beginning of its id, or by the end that they are shown."""
    whole = str(run_id)
    return whole.startswith(text) or (len(text) == SHORT_ID_CHARACTERS and whole.endswith(text))


def _ended(state: State) -> str:
    return "was cancelled" if state is State.CANCELLED else state.value
