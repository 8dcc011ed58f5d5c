"""What can be done with dead letters, told of the twin and of SQS alike; then what is SQS's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from runner.adapters.aws import Aws
from runner.adapters.sqs_dead_letters import SqsDeadLetters
from runner.adapters.sqs_queue import LARGEST_MESSAGE_BYTES, SqsQueue
from runner.model.errors import InfrastructureError
from runner.model.spec import Stage
from runner.ports import DeadLetter, DeadLetters, Delivery, Queue
from tests.support.twins import MemoryDeadLetters, MemoryQueue, TestClock

if TYPE_CHECKING:
    from types_boto3_sqs.client import SQSClient

STAGE = Stage.QUERY


@dataclass(frozen=True)
class Rig:
    queue: Queue
    letters: DeadLetters
    give_up: Callable[[Delivery], None]
    """What the queue itself does with a message that is delivered too often."""

    def received(self, body: str) -> Delivery:
        self.queue.send(STAGE, body)
        delivery = self.queue.receive(STAGE, wait_s=1)
        assert delivery is not None, "expected a message"
        return delivery

    def bury(self, *bodies: str, reason: str = "no job spec") -> None:
        for body in bodies:
            self.queue.bury(self.received(body), reason=reason)

    def seen(self) -> list[str]:
        return sorted(each.body for each in self.letters.look(STAGE, limit=1000))


@pytest.fixture(params=["memory", "sqs"])
def rig(request: pytest.FixtureRequest) -> Rig:
    if request.param == "memory":
        clock = TestClock()
        memory = MemoryQueue(clock)
        return Rig(memory, MemoryDeadLetters(memory, clock), memory.give_up)
    client: SQSClient = request.getfixturevalue("sqs_client")
    prefix: str = request.getfixturevalue("queue_prefix")
    queue = SqsQueue(client, prefix)
    queue.create(STAGE)
    return Rig(queue, SqsDeadLetters(client, prefix), lambda delivery: given_up(client, queue, prefix, delivery))


def given_up(client: SQSClient, queue: SqsQueue, prefix: str, delivery: Delivery) -> None:
    """Not imitated: SQS is told to move a message at its second delivery, and delivers it."""
    url = client.get_queue_url(QueueName=f"{prefix}{STAGE.value}")["QueueUrl"]
    policy = client.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])["Attributes"]["RedrivePolicy"]
    at_once = json.dumps({**json.loads(policy), "maxReceiveCount": "1"})
    client.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": at_once})
    queue.hide(delivery, seconds=0)
    assert queue.receive(STAGE, wait_s=0) is None, "expected it to be moved"
    client.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": policy})


def only(rig: Rig) -> DeadLetter:
    (letter,) = rig.letters.look(STAGE, limit=10)
    return letter


def test_where_nothing_was_buried_nothing_is_seen(rig: Rig) -> None:
    assert rig.seen() == []
    assert rig.letters.depth(STAGE) == 0


@pytest.mark.parametrize("body", ["{}", '{"name": "Zürich 東京 🛫"}', "a\tb\r\nc", "<a>&amp;</a>", "x" * 65536])
def test_a_buried_message_is_seen_as_it_was_with_the_reason(rig: Rig, body: str) -> None:
    rig.bury(body, reason="transient: expected 200, got 503")

    letter = only(rig)

    assert (letter.stage, letter.body, letter.reason) == (STAGE, body, "transient: expected 200, got 503")
    assert letter.sent_at.utcoffset() == timedelta(0)


def test_a_message_that_the_queue_itself_gave_up_has_no_reason(rig: Rig) -> None:
    delivery = rig.received("{}")

    rig.give_up(delivery)

    letter = only(rig)
    assert (letter.body, letter.reason, letter.message_id) == ("{}", None, delivery.message_id)
    assert rig.queue.depth(STAGE) == 0


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (10, 10), (12, 12), (25, 23)])
def test_as_many_are_seen_as_are_asked_for_each_once(rig: Rig, limit: int, expected: int) -> None:
    rig.bury(*(f"letter {number}" for number in range(23)))

    letters = rig.letters.look(STAGE, limit=limit)

    assert len(letters) == expected
    assert len({each.message_id for each in letters}) == expected
    assert rig.letters.depth(STAGE) == 23


def test_what_somebody_looks_at_is_hidden_from_others_and_counted(rig: Rig) -> None:
    rig.bury("a", "b", "c")

    first = rig.letters.look(STAGE, limit=2)

    assert sorted([*(each.body for each in first), *rig.seen()]) == ["a", "b", "c"]
    assert rig.seen() == []
    assert rig.letters.depth(STAGE) == 3


def test_a_letter_put_back_is_seen_at_once_under_a_new_receipt_and_counts_its_looks(rig: Rig) -> None:
    rig.bury("{}")
    first = only(rig)

    rig.letters.put_back(first)
    second = only(rig)

    assert second.message_id == first.message_id
    assert second.receipt != first.receipt
    assert second.receives == first.receives + 1
    assert second.sent_at == first.sent_at


def test_a_removed_letter_is_gone_and_the_others_stay(rig: Rig) -> None:
    rig.bury("a", "b")
    for letter in rig.letters.look(STAGE, limit=10):
        if letter.body == "a":
            rig.letters.remove(letter)
        else:
            rig.letters.put_back(letter)

    assert rig.seen() == ["b"]
    assert rig.letters.depth(STAGE) == 1


def test_what_is_done_to_a_letter_that_is_gone_is_no_error(rig: Rig) -> None:
    rig.bury("{}")
    letter = only(rig)
    rig.letters.remove(letter)

    rig.letters.remove(letter)
    rig.letters.put_back(letter)

    assert rig.seen() == []


def test_what_is_done_with_an_older_looks_receipt_is_no_error(rig: Rig) -> None:
    rig.bury("{}")
    first = only(rig)
    rig.letters.put_back(first)
    rig.letters.look(STAGE, limit=1)

    rig.letters.put_back(first)
    rig.letters.remove(first)


def test_stages_share_no_letters(rig: Rig) -> None:
    if isinstance(rig.queue, SqsQueue):
        rig.queue.create(Stage.LOAD)
    rig.bury("{}")

    assert rig.letters.look(Stage.LOAD, limit=10) == []
    assert rig.seen() == ["{}"]


# ---------------------------------------------------------------- SQS alone


@pytest.fixture
def sqs(sqs_client: SQSClient, queue_prefix: str) -> SqsDeadLetters:
    SqsQueue(sqs_client, queue_prefix).create(STAGE)
    return SqsDeadLetters(sqs_client, queue_prefix)


def url_of(client: SQSClient, prefix: str) -> str:
    return client.get_queue_url(QueueName=f"{prefix}{STAGE.value}-dlq")["QueueUrl"]


def test_what_others_have_put_there_is_seen_whatever_its_attributes(
    sqs: SqsDeadLetters, sqs_client: SQSClient, queue_prefix: str
) -> None:
    url = url_of(sqs_client, queue_prefix)
    binary: Any = {"reason": {"DataType": "Binary", "BinaryValue": b"\x00"}}
    number: Any = {
        "reason": {"DataType": "Number", "StringValue": "7"},
        "colour": {"DataType": "String", "StringValue": "x"},
    }
    sqs_client.send_message(QueueUrl=url, MessageBody="binary", MessageAttributes=binary)
    sqs_client.send_message(QueueUrl=url, MessageBody="number", MessageAttributes=number)

    assert {each.body: each.reason for each in sqs.look(STAGE, limit=9)} == {"binary": None, "number": "7"}


def test_the_largest_letter_is_seen_though_it_has_no_room_for_a_reason(
    sqs: SqsDeadLetters, sqs_client: SQSClient, queue_prefix: str
) -> None:
    queue, body = SqsQueue(sqs_client, queue_prefix), "x" * LARGEST_MESSAGE_BYTES
    queue.send(STAGE, body)
    delivery = queue.receive(STAGE, wait_s=1)
    assert delivery is not None
    queue.bury(delivery, reason="too large")

    (letter,) = sqs.look(STAGE, limit=9)

    assert (letter.body, letter.reason) == (body, None)


class _Interrupted:
    """A client whose second request for messages meets Ctrl-C."""

    def __init__(self, client: SQSClient) -> None:
        self._client = client
        self._receives = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def receive_message(self, **request: Any) -> Any:
        self._receives += 1
        if self._receives == 2:
            raise KeyboardInterrupt
        return self._client.receive_message(**request)


def test_a_look_that_is_interrupted_puts_back_what_it_has_seen(
    sqs: SqsDeadLetters, sqs_client: SQSClient, queue_prefix: str
) -> None:
    url = url_of(sqs_client, queue_prefix)
    for number in range(12):
        sqs_client.send_message(QueueUrl=url, MessageBody=f"letter {number}")
    interrupted: Any = _Interrupted(sqs_client)

    with pytest.raises(KeyboardInterrupt):
        SqsDeadLetters(interrupted, queue_prefix).look(STAGE, limit=100)

    assert len(sqs.look(STAGE, limit=100)) == 12


def test_a_missing_queue_is_named_with_what_to_do(sqs_client: SQSClient, queue_prefix: str) -> None:
    letters = SqsDeadLetters(sqs_client, queue_prefix)

    for use in (lambda: letters.look(STAGE, limit=1), lambda: letters.depth(STAGE)):
        with pytest.raises(InfrastructureError, match=f"queue {queue_prefix}query-dlq does not exist at http") as error:
            use()
        assert "runner up" in (error.value.hint or "")


def test_a_queue_that_was_deleted_under_us_is_named_too(
    sqs: SqsDeadLetters, sqs_client: SQSClient, queue_prefix: str
) -> None:
    url = url_of(sqs_client, queue_prefix)
    sqs_client.send_message(QueueUrl=url, MessageBody="{}")
    (letter,) = sqs.look(STAGE, limit=1)
    sqs_client.delete_queue(QueueUrl=url)

    uses: list[Callable[[], object]] = [
        lambda: sqs.look(STAGE, limit=1),
        lambda: sqs.put_back(letter),
        lambda: sqs.remove(letter),
        lambda: sqs.depth(STAGE),
    ]
    for use in uses:
        with pytest.raises(InfrastructureError, match=f"queue {queue_prefix}query-dlq does not exist"):
            use()


@pytest.fixture
def nobody_listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[SQSClient]:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    client = Aws(region="us-east-1", endpoint_url="http://127.0.0.1:9", access_key_id="a", secret_access_key="b").sqs()
    yield client
    client.close()


def test_a_service_that_is_away_is_named_with_its_address_in_one_line(nobody_listening: SQSClient) -> None:
    with pytest.raises(InfrastructureError) as error:
        SqsDeadLetters(nobody_listening, "some-").look(STAGE, limit=1)

    assert "queue some-query-dlq" in error.value.message
    assert "SQS at http://127.0.0.1:9" in error.value.message
    assert "\n" not in error.value.message
