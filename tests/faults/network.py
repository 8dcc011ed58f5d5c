"""What happens on the way to the services: each story is a few jobs, one fault of the network, and their end.

The faults come from microburst (as S3, SQS and Postgres answer when they are ill, and as connections die), and from
doors of our own where an answer is to be lost after its effect, one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from random import Random

from runner.model.spec import JobSpec, Stage
from tests.faults.invariants import Expected
from tests.faults.proxies import Rule, Way, way
from tests.faults.tally import Found, Scenario, Story
from tests.faults.yard import ROWS, Ground, Yard

TRIES = 10
"""More than any of these stories takes: a network that gets well again must not cost a run."""


EX_TEMPFAIL = 75
_SETTLES_WITHIN_S = 180.0
_LOOKS_EVERY_S = 1.0

# ---------------------------------------------------------------- jobs


def _append(yard: Yard) -> tuple[JobSpec, Expected]:
    return yard.query(mode="append", max_attempts=TRIES), Expected(rows={"marts.drawn": ROWS})


def _merge(yard: Yard) -> tuple[JobSpec, Expected]:
    return yard.query("marts.merged", mode="merge", max_attempts=TRIES), Expected(rows={"marts.merged": ROWS})


def _extract(yard: Yard) -> tuple[JobSpec, Expected]:
    return yard.extract(max_attempts=TRIES), Expected(rows={"landing/people": 1})


Hurt = Callable[[Way, Random], None]


def _behind(hurt: Hurt, ground: Ground, chance: Random) -> Found:
    """Two jobs append to one table, one merges into another, one extracts: their workers have a way that is hurt."""
    with (
        ground.yard(Stage.QUERY, Stage.EXTRACT) as yard,
        way(yard.place, log=yard.settings.home / "proxies.log") as between,
    ):
        hurt(between, chance)
        for make in (_append, _merge, _append, _extract):
            yard.submit(*make(yard))
        yard.tables |= {"marts.drawn": 2 * ROWS, "marts.merged": ROWS}
        settle(yard, (Stage.QUERY, Stage.EXTRACT), env=between.env)
        yard.injected(between.injected)
        return yard.found()


def settle(yard: Yard, stages: Sequence[Stage], *, env: Mapping[str, str]) -> None:
    """Workers of these stages go on until all is over; one that ends is started again, as a cluster does."""
    workers = [yard.heir(stage, env=env) for stage in stages]
    give_up_at_s = time.monotonic() + _SETTLES_WITHIN_S
    while time.monotonic() < give_up_at_s and not yard.settle(_LOOKS_EVERY_S) and not yard.is_stuck():
        for number, worker in enumerate(workers):
            if worker.ended:
                assert worker.wait() == EX_TEMPFAIL, worker.told()
                workers[number] = yard.heir(stages[number], env=env)


# ---------------------------------------------------------------- S3 and SQS that are ill

_TIMES = 12
"""How often a rule hits before its service is well again."""


def _rule(service: str, probability: float, times: int = _TIMES, **what: object) -> Rule:
    return {"service": service, "probability": probability, "times": times, **what}


ILL: Sequence[tuple[str, str, Sequence[Rule]]] = (
    ("S3 throttles", "s3-slow-down", [_rule("s3", 0.3, error={"code": "SlowDown", "status": 503})]),
    ("S3 fails", "s3-internal-error", [_rule("s3", 0.3, error={"code": "InternalError", "status": 500})]),
    ("S3 resets", "s3-reset", [_rule("s3", 0.3, reset=True)]),
    ("S3 is slow", "s3-slow", [_rule("s3", 0.4, times=20, latency={"min": 200, "max": 2500})]),
    ("SQS throttles", "sqs-throttled", [_rule("sqs", 0.4, error={"code": "ThrottlingException", "status": 400})]),
    ("SQS fails", "sqs-unavailable", [_rule("sqs", 0.4, error={"code": "ServiceUnavailable", "status": 503})]),
    ("SQS resets", "sqs-reset", [_rule("sqs", 0.4, reset=True)]),
    ("SQS is slow", "sqs-slow", [_rule("sqs", 0.5, times=8, latency={"min": 1500, "max": 3500})]),
    (
        "uploads cut",
        "uploads-cut",
        [_rule("s3", 0.5, operation="PutObject", request={"cut_upload": {"after_bytes": 64}})],
    ),
    (
        "downloads corrupted",
        "downloads-corrupted",
        [_rule("s3", 0.4, operation="GetObject", response={"corrupt_bytes": 8})],
    ),
    ("downloads cut", "downloads-cut", [_rule("s3", 0.4, operation="GetObject", response={"abort_frac": 0.5})]),
    ("downloads cut", "downloads-short", [_rule("s3", 0.4, operation="GetObject", response={"truncate_frac": 0.5})]),
)


def _ill(rules: Sequence[Rule], between: Way, _: Random) -> None:
    between.hurt_requests(*rules)


# ---------------------------------------------------------------- connections that die, with Iceberg's among them

DYING: Sequence[tuple[str, str, Sequence[Rule]]] = (
    ("connections reset", "connections-reset", [_rule("tcp", 0.15, times=20, reset=True)]),
    ("connections slow", "connections-slow", [_rule("tcp", 0.3, times=30, latency={"min": 100, "max": 1500})]),
    (
        "answers lost after the effect",
        "answers-lost-of-puts",
        [_rule("tcp", 0.4, payload="^PUT ", cut_reply={"after_bytes": 30})],
    ),
    (
        "answers lost after the effect",
        "answers-lost-of-sqs",
        [_rule("tcp", 0.4, payload="AmazonSQS", cut_reply={"after_bytes": 30})],
    ),
    (
        "uploads cut",
        "uploads-cut-mid-way",
        [_rule("tcp", 0.5, payload="^PUT ", cut_upload={"after_bytes": 1500})],
    ),
    (
        "uploads corrupted",
        "uploads-corrupted",
        [_rule("tcp", 0.5, times=_TIMES // 2, payload="^PUT .*parquet", corrupt={"at_bytes": 1400})],
    ),
)


def _dying(rules: Sequence[Rule], between: Way, _: Random) -> None:
    between.hurt_connections(*rules)


# ---------------------------------------------------------------- Postgres

_FATAL = {"severity": "FATAL"}

POSTGRES: Sequence[tuple[str, str, Sequence[Rule]]] = (
    (
        "Postgres refuses",
        "postgres-refuses",
        [
            {
                "service": "postgres",
                "operation": "startup",
                "sequence": {"fail": 2, "pass": 1},  # a worker makes few connections: chance might hit none
                "times": 6,
                "error": {**_FATAL, "sqlstate": "53300", "message": "sorry, too many clients already"},
            }
        ],
    ),
    (
        "Postgres resets at commit",
        "postgres-resets-before-commit",
        [_rule("postgres", 0.15, operation="commit", reset=True)],
    ),
    ("Postgres is slow", "postgres-slow", [_rule("postgres", 0.2, times=20, latency={"min": 200, "max": 2500})]),
)


def _ill_postgres(rules: Sequence[Rule], between: Way, _: Random) -> None:
    between.hurt_statements(*rules)


def _fails_over(between: Way, _: Random) -> None:
    """The server ends each session as it stops, its successor says that it starts, then all is well; and again."""
    ends = {**_FATAL, "sqlstate": "57P01", "message": "terminating connection due to administrator command"}
    starts = {**_FATAL, "sqlstate": "57P03", "message": "the database system is starting up"}
    between.hurt_statements(
        {
            "service": "postgres",
            "operation": "startup",
            "sequence": {"fail": 3, "pass": 9},
            "times": 9,
            "error": starts,
        },
        {"service": "postgres", "probability": 0.25, "times": 9, "error": ends},
    )


# ---------------------------------------------------------------- one answer after the other, and nobody there

_EVERY_REQUEST = 6
_EVERY_COMMIT = 12


def _loses_answers(beginning: int, between: Way, _: Random) -> None:
    between.http.lose_answers(lambda number, _: number % _EVERY_REQUEST == beginning)


def _loses_commits(beginning: int, between: Way, _: Random) -> None:
    between.postgres.lose_answers(lambda number, _: number % _EVERY_COMMIT == beginning)


def _postgres_goes_away(between: Way, chance: Random) -> None:
    """For longer than a lease, while jobs are at work."""
    between.postgres.go_away(chance.randint(4, 25), for_s=chance.uniform(1, 6))


def _aws_goes_away(between: Way, chance: Random) -> None:
    between.http.go_away(chance.randint(20, 90), for_s=chance.uniform(1, 6))


# ---------------------------------------------------------------- all of them


def _story(name: str, fault: str, hurt: Hurt) -> Story:
    return Story(name=f"network-{name}", fault=fault, tell=partial(_behind, hurt))


def scenarios() -> Iterator[Scenario]:
    """The long form."""
    for fault, name, rules in ILL:
        yield _story(name, fault, partial(_ill, rules))
    for fault, name, rules in DYING:
        yield _story(name, fault, partial(_dying, rules))
    for fault, name, rules in POSTGRES:
        yield _story(name, fault, partial(_ill_postgres, rules))
    yield _story("postgres-fails-over", "Postgres fails over", _fails_over)
    for beginning in range(_EVERY_REQUEST):
        name = f"answers-lost-{beginning + 1}-of-{_EVERY_REQUEST}"
        yield _story(name, "answers lost after the effect", partial(_loses_answers, beginning))
    for beginning in range(_EVERY_COMMIT):
        name = f"commits-lost-{beginning + 1}-of-{_EVERY_COMMIT}"
        yield _story(name, "Postgres resets at commit", partial(_loses_commits, beginning))
    for number in range(3):
        yield _story(f"postgres-away-{number + 1}", "Postgres goes away", _postgres_goes_away)
        yield _story(f"aws-away-{number + 1}", "S3 and SQS go away", _aws_goes_away)
