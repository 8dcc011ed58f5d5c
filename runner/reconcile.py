"""What fell between the services is found and mended: after it every run is queued, at work under a lease, or over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import Literal, Protocol
from uuid import UUID

from runner.flow.record import record
from runner.leftovers import HORIZON, LeftAlone, Leftovers, StandingLedger
from runner.log import logger
from runner.model.errors import ConflictError, RunnerError, SpecError
from runner.model.names import spec_key
from runner.model.spec import JobSpec, Stage, parse_spec
from runner.model.strict import load_json
from runner.ports import DeadLetter, DeadLetters, Delivery, LapsedLease, NoQueue, Ports, Queue, Resend, Standing

RETENTION = timedelta(days=14)
"""SQS keeps no message longer.
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html"""
QUIET = timedelta(seconds=60)
"""What was done within the last minute may still be under way, and SQS's counts lag by about as much."""

_ROUND = 100
"""Runs whose messages are noted as sent before they are: few, since who dies in between leaves them for the next."""
_LETTERS_AT_ONCE = 1000
"""For a worker beside its work; the command looks at all."""
_LARGEST_EXPLAINED_BYTES = 1_000_000
"""A larger body fills its message, and SQS has no room for a reason beside it."""


class Part(StrEnum):
    """What a reconcile can be limited to."""

    MESSAGES = "messages"
    RECORDS = "records"
    LETTERS = "letters"
    FILES = "files"


BESIDE_WORK = frozenset({Part.MESSAGES, Part.RECORDS, Part.LETTERS})
"""What a worker does that has nothing else to do. Files are deleted by nobody who was not told to."""


class Kind(StrEnum):
    LEASE = "lease"
    """Its worker is heard of no more; its message brings the run back."""
    MESSAGE = "message"
    """A run that is to end, and whose message is gone."""
    RECORD = "record"
    """A run that is over, and whose manifest is not in S3."""
    LETTER = "letter"
    """A message that came to the dead-letter queue and should not stay there as it is."""
    FILES = "files"
    """Files of runs that nothing names."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    kind: Kind
    subject: str
    """A run, a message, or a place in the bucket."""
    found: str
    remedy: str | None
    """What mends it; None where it is only said."""
    done: bool = False
    failure: str | None = None
    """Why it could not be mended."""


class ReconciledLedger(StandingLedger, Protocol):
    """`PgLedger` says what each of these does."""

    def take_turn(self, stage: Stage, *, pause: timedelta) -> bool: ...
    def lapsed_leases(self, stage: Stage) -> Sequence[LapsedLease]: ...
    def count_sent(self, stage: Stage, *, before: datetime, quiet: timedelta, besides: Collection[UUID]) -> int: ...
    def to_send(
        self, stage: Stage, *, sent_before: datetime, expired_before: datetime, besides: Collection[UUID]
    ) -> Mapping[UUID, datetime]: ...
    def take_to_send(self, run_ids: Sequence[UUID], *, sent_before: datetime) -> Sequence[Resend]: ...
    def unrecorded(self, stage: Stage, *, decided_before: datetime) -> Mapping[UUID, datetime]: ...


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """A letter, and what is right for it."""

    letter: DeadLetter
    verdict: Literal["send", "remove", "explain", "leave"]
    found: str | None
    """None where there is nothing to say: it waits for a person, as it should."""
    run_id: UUID | None
    """The run that is to end, and whose own message this is."""


@dataclass(frozen=True, kw_only=True)
class Reconcile:
    """Doing it twice, or two doing it at once, is safe: a run whose message is there twice is one run still."""

    ports: Ports
    ledger: ReconciledLedger
    queue: Queue
    letters: DeadLetters
    leftovers: Leftovers
    quiet: timedelta = QUIET

    def run(
        self, *, only: Collection[Part], apply: bool, horizon: timedelta, progress: Callable[[str], None]
    ) -> Iterator[Finding]:
        """Yields what is found, each when it is mended if that is to be done. Raises where a service is away."""
        if horizon < HORIZON:
            raise SpecError(
                f"--horizon: expected at least {HORIZON.days} days, got {horizon.days}",
                hint="until then a message may bring a run back whose files look as if nobody needed them",
            )
        absent = list[NoQueue]()
        for stage in Stage:
            progress(f"{stage.value} …")
            try:
                yield from self._of_stage(stage, only, apply=apply, most_letters=None)
            except NoQueue as without:
                # A stage may not be deployed here, if nobody has asked anything of it; not all of them.
                absent.append(without)
                if self._has_runs_to_end(stage):
                    raise
        if len(absent) == len(Stage):
            raise absent[0]
        if Part.FILES in only:
            yield from self._files(horizon, apply=apply, progress=progress)

    def _has_runs_to_end(self, stage: Stage) -> bool:
        return self.ledger.count_sent(stage, before=self.ledger.now(), quiet=timedelta(), besides=()) > 0

    def quick(self, stage: Stage) -> list[Finding]:
        """For an idle worker: messages, records and letters of one stage, at most once a minute among all workers.

        Never raises: what it meets is logged.
        """
        found: list[Finding] = []
        try:
            if self.ledger.take_turn(stage, pause=self.quiet):
                for finding in self._of_stage(stage, BESIDE_WORK, apply=True, most_letters=_LETTERS_AT_ONCE):
                    found.append(finding)
                    if finding.remedy:
                        logger.warning("%s %s: %s: %s", finding.kind, finding.subject, finding.found, _ended(finding))
        except RunnerError as error:
            logger.warning("what fell between the services was not looked for: %s", error.message)
        except Exception as error:  # noqa: BLE001 - a fault in what is done beside the work must not end the work
            logger.error("unexpected %s", type(error).__name__, exc_info=error)
        return found

    def _of_stage(
        self, stage: Stage, only: Collection[Part], *, apply: bool, most_letters: int | None
    ) -> Iterator[Finding]:
        # In this order: a run that was sent before `now`, and is still to end afterwards, had its message in between.
        now = self.ledger.now()
        depth = self.queue.depth(stage)
        accounted_for = set[UUID]()
        if Part.LETTERS in only or Part.MESSAGES in only:
            for judged in self._judged(stage, most_letters):
                if judged.run_id is not None:
                    accounted_for.add(judged.run_id)
                yield from self._letter(judged, wanted=Part.LETTERS in only, apply=apply)
        if Part.MESSAGES in only:
            yield from self._messages(stage, now, depth, accounted_for, apply=apply)
        if Part.RECORDS in only:
            yield from self._records(stage, now, apply=apply)

    # ------------------------------------------------------------ messages

    def _messages(
        self, stage: Stage, now: datetime, depth: int, accounted_for: Collection[UUID], *, apply: bool
    ) -> Iterator[Finding]:
        """SQS tells how many messages it has, not which: where there are too few, every run that has waited is sent."""
        for lapsed in self.ledger.lapsed_leases(stage):
            yield Finding(
                kind=Kind.LEASE,
                subject=str(lapsed.run_id),
                found=f"worker {lapsed.worker}, attempt {lapsed.attempt}, is heard of no more: its lease ran out at "
                f"{_moment(lapsed.expired_at)}",
                remedy=None,
            )
        expected = self.ledger.count_sent(stage, before=now, quiet=self.quiet, besides=accounted_for)
        expired_before = now - RETENTION
        sent_before = now - self.quiet if depth < expected else expired_before
        due = self.ledger.to_send(stage, sent_before=sent_before, expired_before=expired_before, besides=accounted_for)
        found = {run_id: _gone(run_id, sent_at, expired_before, depth, expected) for run_id, sent_at in due.items()}
        if not apply:
            yield from found.values()
            return
        for run_ids in _rounds(found):
            for resend in self.ledger.take_to_send(run_ids, sent_before=sent_before):
                self._send(stage, resend)
                yield replace(found[resend.run_id], done=True)

    def _send(self, stage: Stage, resend: Resend) -> None:
        if not resend.noted:
            # A submit that was cut short may not have come to keeping the request beside the record either.
            self.ports.objects.put_if_absent(spec_key(resend.run_id), resend.spec.encode())
        self.queue.send(stage, resend.spec)

    # ------------------------------------------------------------ records

    def _records(self, stage: Stage, now: datetime, *, apply: bool) -> Iterator[Finding]:
        for run_id, decided_at in self.ledger.unrecorded(stage, decided_before=now - self.quiet).items():
            finding = Finding(
                kind=Kind.RECORD,
                subject=str(run_id),
                found=f"over since {_moment(decided_at)}, and its manifest is not noted to be in S3",
                remedy="record it",
            )
            yield self._recorded(run_id, finding) if apply else finding

    def _recorded(self, run_id: UUID, finding: Finding) -> Finding:
        try:
            manifest = self.ledger.manifest(run_id)
            if manifest is not None:
                record(manifest, self.ports)
        except (ConflictError, SpecError) as error:
            # Another manifest is there, or this one is another release's: no retry changes that.
            return replace(finding, failure=error.message)
        return replace(finding, done=True)

    # ------------------------------------------------------------ letters

    def _judged(self, stage: Stage, most: int | None) -> list[_Judged]:
        there = self.letters.depth(stage)
        limit = there if most is None else min(there, most)
        letters = self.letters.look(stage, limit=limit) if limit else []
        try:
            read = [_read(letter) for letter in letters]
            named = [
                spec.run_id if spec else _named_run(letter) for letter, (spec, _) in zip(letters, read, strict=True)
            ]
            standings = self.ledger.standings([run_id for run_id in named if run_id is not None])
        except RunnerError:
            self._put_back(letters)
            raise
        return [
            _judge(letter, spec, no_spec, run_id, standings.get(run_id) if run_id else None)
            for letter, (spec, no_spec), run_id in zip(letters, read, named, strict=True)
        ]

    def _put_back(self, letters: Iterable[DeadLetter]) -> None:
        for letter in letters:
            with suppress(RunnerError):  # it comes back by itself within a minute
                self.letters.put_back(letter)

    def _letter(self, judged: _Judged, *, wanted: bool, apply: bool) -> Iterator[Finding]:
        letter = judged.letter
        remedy = _REMEDIES[judged.verdict]
        mended = wanted and apply and remedy is not None
        if mended:
            self._mend(judged)
        else:
            self._put_back([letter])
        if wanted and judged.found is not None:
            subject = str(judged.run_id) if judged.run_id else f"{letter.stage.value} {letter.message_id}"
            yield Finding(kind=Kind.LETTER, subject=subject, found=judged.found, remedy=remedy, done=mended)

    def _mend(self, judged: _Judged) -> None:
        """The letter goes last: dying before leaves a copy, the other order could leave nothing."""
        letter = judged.letter
        if judged.verdict == "send":
            self.queue.send(letter.stage, letter.body)
            if judged.run_id is not None:
                self.ledger.sent([judged.run_id])
        elif judged.verdict == "explain":
            # Buried anew, with the reason. Its receipt is of the dead-letter queue, and nothing in the other's.
            delivery = Delivery(
                stage=letter.stage, body=letter.body, receipt=letter.receipt, message_id=letter.message_id
            )
            self.queue.bury(delivery, reason=judged.found or "")
        self.letters.remove(letter)

    # ------------------------------------------------------------ files

    def _files(self, horizon: timedelta, *, apply: bool, progress: Callable[[str], None]) -> Iterator[Finding]:
        uri = self.ports.objects.uri
        for each in self.leftovers.find(before=self.ledger.now() - horizon, progress=progress):
            if isinstance(each, LeftAlone):
                found = f"{_files(each.files)} left alone: {each.why}"
                yield Finding(kind=Kind.FILES, subject=uri(each.folder), found=found, remedy=None)
                continue
            found = f"{_files(len(each.keys))}, {each.bytes:,} bytes, of run {each.run_id}, that nothing names"
            if apply:
                self.leftovers.delete(each)
            yield Finding(kind=Kind.FILES, subject=uri(each.folder), found=found, remedy="delete them", done=apply)


_REMEDIES: Mapping[str, str | None] = {
    "send": "send it again",
    "remove": "remove it",
    "explain": "give it this reason",
    "leave": None,
}


def _judge(
    letter: DeadLetter, spec: JobSpec | None, no_spec: str, run_id: UUID | None, standing: Standing | None
) -> _Judged:
    its_own = standing is not None and (
        standing.spec == letter.body or (spec is not None and _stored(standing) == spec)
    )
    undecided = run_id if standing is not None and standing.decided_at is None and its_own else None

    def judged(verdict: Literal["send", "remove", "explain", "leave"], found: str | None) -> _Judged:
        return _Judged(letter=letter, verdict=verdict, found=found, run_id=undecided)

    if letter.reason is not None:
        # A person is to judge: a worker has given it up, and would again. Its run is not sent behind their back.
        return judged("leave", f"to end still, and given up: {letter.reason}" if undecided else None)
    refused = no_spec or _refusal(letter, spec, standing is not None and not its_own)
    if refused and len(letter.body.encode()) > _LARGEST_EXPLAINED_BYTES:
        return judged("leave", refused)
    if refused:
        return judged("explain", refused)
    if standing is not None and standing.decided_at is not None:
        return judged("remove", f"SQS gave it up, and run {run_id} is over since {_moment(standing.decided_at)}")
    known = "its run is to end still" if standing else f"the ledger does not know run {run_id} yet"
    return judged("send", f"SQS gave it up, and {known}")


def _refusal(letter: DeadLetter, spec: JobSpec | None, another: bool) -> str:
    """Why a worker would not take it, though it is a spec; empty where it would."""
    if spec is None:
        return ""
    if spec.stage is not letter.stage:
        return f"run {spec.run_id}: expected a spec for stage {letter.stage.value}, got one for {spec.stage.value}"
    return f"run {spec.run_id}: expected the spec that it was submitted with, got another" if another else ""


def _stored(standing: Standing) -> JobSpec | None:
    try:
        return parse_spec(standing.spec)
    except SpecError:
        return None  # another release's


def _read(letter: DeadLetter) -> tuple[JobSpec | None, str]:
    try:
        return parse_spec(letter.body, what=f"letter {letter.message_id}"), ""
    except SpecError as error:
        return None, error.message


def _named_run(letter: DeadLetter) -> UUID | None:
    """The run that a body names which is no spec here: to a later release it may be one."""
    try:
        document = load_json(letter.body, what="letter")
        return UUID(document["run_id"]) if isinstance(document, dict) else None
    except (SpecError, KeyError, ValueError, TypeError, AttributeError):
        return None


def _gone(run_id: UUID, sent_at: datetime, expired_before: datetime, depth: int, expected: int) -> Finding:
    """Why the run's message is taken to be gone."""
    if sent_at < expired_before:
        found = f"last sent at {_moment(sent_at)}: SQS keeps no message for more than {RETENTION.days} days"
    else:
        found = f"last sent at {_moment(sent_at)}: the queue has {depth:,} messages for {expected:,} runs"
    return Finding(kind=Kind.MESSAGE, subject=str(run_id), found=found, remedy="send it again")


def _rounds(run_ids: Iterable[UUID]) -> Iterator[list[UUID]]:
    run_ids = iter(run_ids)
    while batch := list(islice(run_ids, _ROUND)):
        yield batch


def _ended(finding: Finding) -> str:
    return f"{finding.remedy}, {'done' if finding.done else finding.failure}"


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"
