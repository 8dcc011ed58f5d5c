"""The network is ill, and nothing is lost or doubled for it: a sample, all at once. `make faults` has every story."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import TYPE_CHECKING

import boto3
import psycopg
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from runner.model.spec import Stage
from tests.faults import network
from tests.faults.proxies import Way, way
from tests.faults.tally import Found
from tests.faults.yard import Ground, Yard

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

AT_ONCE = 3
SEED = 4
SAMPLE = (
    "network-s3-slow-down",
    "network-uploads-cut",
    "network-downloads-corrupted",
    "network-answers-lost-of-puts",
    "network-answers-lost-3-of-6",
    "network-commits-lost-5-of-12",
    "network-postgres-fails-over",
)


@pytest.fixture(scope="module")
def played(ground: Ground) -> Iterator[Mapping[str, Future[Found]]]:
    stories = {each.name: each for each in network.scenarios()}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        yield {
            # What is random here are no secrets.
            name: threads.submit(stories[name].play, ground, Random(f"{SEED}/{name}"))  # noqa: S311
            for name in SAMPLE
        }


@pytest.mark.parametrize("name", SAMPLE)
def test_nothing_is_lost_and_nothing_is_doubled(played: Mapping[str, Future[Found]], name: str) -> None:
    found = played[name].result()
    assert [str(each) for each in found.violations] == [], f"seed {SEED}"
    assert found.injected > 0
    assert found.runs == 4


def test_the_long_form_has_every_fault_of_a_network() -> None:
    stories = list(network.scenarios())
    assert len({each.name for each in stories}) == len(stories)
    assert {each.fault for each in stories} == {
        "S3 throttles",
        "S3 fails",
        "S3 resets",
        "S3 is slow",
        "S3 and SQS go away",
        "SQS throttles",
        "SQS fails",
        "SQS resets",
        "SQS is slow",
        "answers lost after the effect",
        "connections reset",
        "connections slow",
        "downloads corrupted",
        "downloads cut",
        "uploads corrupted",
        "uploads cut",
        "Postgres refuses",
        "Postgres resets at commit",
        "Postgres fails over",
        "Postgres goes away",
        "Postgres is slow",
    }


# ---------------------------------------------------------------- what stands in between does what it says


@pytest.fixture
def yard(ground: Ground) -> Iterator[Yard]:
    with ground.yard(Stage.QUERY) as made:
        yield made


@pytest.fixture
def between(yard: Yard) -> Iterator[Way]:
    with way(yard.place, log=yard.settings.home / "proxies.log") as made:
        yield made


def once(yard: Yard, between: Way) -> S3Client:
    """A client without botocore's own retries, which would hide what happens."""
    place = yard.place
    client: S3Client = boto3.client(
        "s3",
        region_name=place.region,
        endpoint_url=between.env["AWS_ENDPOINT_URL"],
        aws_access_key_id=place.access_key,
        aws_secret_access_key=place.secret_key,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )
    return client


def put(yard: Yard, between: Way, key: str) -> None:
    client = once(yard, between)
    try:
        client.put_object(Bucket=yard.place.bucket, Key=key, Body=b"content")
    finally:
        client.close()


def keys(yard: Yard) -> list[str]:
    listed = yard.place.s3().list_objects_v2(Bucket=yard.place.bucket)
    return [each["Key"] for each in listed.get("Contents", [])]


def test_a_door_lets_pass_what_it_is_not_asked_to_hurt(yard: Yard, between: Way) -> None:
    put(yard, between, "a")
    with psycopg.connect(between.env["RUNNER_LEDGER_URL"]) as connection:
        assert connection.execute("SELECT 1").fetchall() == [(1,)]
    assert keys(yard) == ["a"]
    assert between.injected == 0
    assert between.postgres.passed == 1


def test_an_answer_is_lost_after_its_request_has_had_its_effect(yard: Yard, between: Way) -> None:
    between.http.lose_answers(lambda number, name: name.startswith("PUT ") and "/lost" in name)
    put(yard, between, "kept")
    with pytest.raises(BotoCoreError):
        put(yard, between, "lost")
    assert keys(yard) == ["kept", "lost"]
    assert between.injected == 1


def test_the_answer_to_a_commit_is_lost_after_it_has_taken_effect(yard: Yard, between: Way) -> None:
    between.postgres.lose_answers(lambda number, name: number == 1)
    url = between.env["RUNNER_LEDGER_URL"]
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE public.written (number int)")
    with pytest.raises(psycopg.OperationalError), psycopg.connect(url) as connection:
        connection.execute("INSERT INTO public.written VALUES (1)")
    assert yard.rows_of("SELECT number FROM public.written") == [{"number": 1}]
    assert between.injected == 1


def test_microburst_cuts_an_answer_after_the_effect_too(yard: Yard, between: Way) -> None:
    rule = {"service": "tcp", "payload": "^PUT .*lost", "cut_reply": {"after_bytes": 30}}
    between.hurt_connections(rule)
    put(yard, between, "kept")
    with pytest.raises(BotoCoreError):
        put(yard, between, "lost")
    assert keys(yard) == ["kept", "lost"]
    assert between.injected == 1


def test_microburst_answers_as_s3_does_when_it_is_ill_and_a_head_passes_it_by(yard: Yard, between: Way) -> None:
    between.hurt_requests({"service": "s3", "error": {"code": "SlowDown", "status": 503}})
    with pytest.raises(ClientError, match="SlowDown"):
        put(yard, between, "refused")
    assert keys(yard) == []
    yard.place.s3().put_object(Bucket=yard.place.bucket, Key="a", Body=b"content")
    client = once(yard, between)
    assert client.head_object(Bucket=yard.place.bucket, Key="a")["ContentLength"] == 7
    client.close()
    assert between.injected == 1


def test_a_server_that_is_gone_comes_back(yard: Yard, between: Way) -> None:
    between.http.go_away(1, for_s=0.2)
    put(yard, between, "a")
    with pytest.raises(BotoCoreError):
        put(yard, between, "b")
    while "c" not in keys(yard):
        try:
            put(yard, between, "c")
        except BotoCoreError:
            continue
    assert keys(yard) == ["a", "c"]
    assert between.injected == 1
