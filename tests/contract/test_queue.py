"""What a queue does, told of the twin and of SQS alike; then what is SQS's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from runner.adapters.aws import Aws
from runner.adapters.sqs_queue import LARGEST_MESSAGE_BYTES, SqsQueue
from runner.model.errors import InfrastructureError
from runner.model.spec import Stage
from runner.ports import Delivery, Queue
from tests.support.twins import Buried, MemoryQueue, TestClock

if TYPE_CHECKING:
    from types_boto3_sqs.client import SQSClient
    from types_boto3_sqs.type_defs import MessageTypeDef

STAGE = Stage.QUERY


@dataclass(frozen=True)
class Rig:
    queue: Queue
    dead_letters: Callable[[], list[Buried]]

    def received(self, *, wait_s: float = 1) -> Delivery:
        delivery = self.queue.receive(STAGE, wait_s=wait_s)
        assert delivery is not None, "expected a message"
        return delivery

    def is_empty(self) -> bool:
        return self.queue.receive(STAGE, wait_s=0) is None


@pytest.fixture(params=["memory", "sqs"])
def rig(request: pytest.FixtureRequest) -> Rig:
    if request.param == "memory":
        memory = MemoryQueue(TestClock())
        return Rig(memory, lambda: memory.dead_letters(STAGE))
    client: SQSClient = request.getfixturevalue("sqs_client")
    prefix: str = request.getfixturevalue("queue_prefix")
    queue = SqsQueue(client, prefix)
    queue.create(STAGE)
    return Rig(queue, lambda: dead_letters(client, f"{prefix}{STAGE.value}-dlq"))


def dead_letters(client: SQSClient, name: str) -> list[Buried]:
    url = client.get_queue_url(QueueName=name)["QueueUrl"]
    messages = client.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"])
    return [buried(each) for each in messages.get("Messages", [])]


def buried(message: MessageTypeDef) -> Buried:
    attributes = message.get("MessageAttributes")
    return Buried(
        body=message["Body"],
        reason=attributes["reason"]["StringValue"] if attributes else "",
        message_id=attributes["message_id"]["StringValue"] if attributes else "",
    )


@pytest.mark.parametrize("body", ["{}", '{"name": "Zürich \\u00fc 東京 🛫"}', "a\tb\r\nc", "<a>&amp;</a>", "x" * 65536])
def test_a_message_arrives_as_it_was_sent(rig: Rig, body: str) -> None:
    rig.queue.send(STAGE, body)

    delivery = rig.received()

    assert delivery.body == body
    assert delivery.stage is STAGE


@pytest.mark.parametrize("body", ["", "a\x00b"])
def test_a_body_that_no_queue_carries_is_refused(rig: Rig, body: str) -> None:
    with pytest.raises(InfrastructureError, match="queue"):
        rig.queue.send(STAGE, body)


def test_an_empty_queue_gives_nothing_when_the_wait_is_over(rig: Rig) -> None:
    assert rig.queue.receive(STAGE, wait_s=0.5) is None


def test_a_received_message_is_hidden_from_others(rig: Rig) -> None:
    rig.queue.send(STAGE, "{}")
    rig.received()

    assert rig.is_empty()


def test_two_messages_are_two_deliveries(rig: Rig) -> None:
    rig.queue.send(STAGE, "a")
    rig.queue.send(STAGE, "b")

    assert {rig.received().body, rig.received().body} == {"a", "b"}


def test_stages_share_no_messages(rig: Rig) -> None:
    if isinstance(rig.queue, SqsQueue):
        rig.queue.create(Stage.LOAD)
    rig.queue.send(Stage.LOAD, "for load")

    assert rig.is_empty()


def test_a_message_handed_back_is_there_at_once_under_a_new_receipt(rig: Rig) -> None:
    rig.queue.send(STAGE, "{}")
    first = rig.received()

    rig.queue.hide(first, seconds=0)
    second = rig.received()

    assert second.message_id == first.message_id
    assert second.receipt != first.receipt


def test_a_hidden_message_comes_back_when_its_time_is_over(rig: Rig) -> None:
    rig.queue.send(STAGE, "{}")
    rig.queue.hide(rig.received(), seconds=1)

    assert rig.is_empty()
    assert rig.received(wait_s=5).body == "{}"


def test_a_message_can_be_hidden_for_longer_than_any_queue_can_hide_it(rig: Rig) -> None:
    rig.queue.send(STAGE, "{}")

    rig.queue.hide(rig.received(), seconds=1_000_000)

    assert rig.is_empty()


def test_a_deleted_message_does_not_come_back(rig: Rig) -> None:
    rig.queue.send(STAGE, "{}")
    delivery = rig.received()
    rig.queue.hide(delivery, seconds=1)

    rig.queue.delete(delivery)

    assert rig.queue.receive(STAGE, wait_s=2) is None


def test_what_is_done_to_a_message_that_is_gone_is_no_error(rig: Rig) -> None:
    rig.queue.send(STAGE, "{}")
    delivery = rig.received()
    rig.queue.delete(delivery)

    rig.queue.delete(delivery)
    rig.queue.hide(delivery, seconds=0)
    rig.queue.hide(delivery, seconds=60)

    assert rig.is_empty()


def test_what_is_done_with_an_older_deliverys_receipt_is_no_error(rig: Rig) -> None:
    rig.queue.send(STAGE, "{}")
    first = rig.received()
    rig.queue.hide(first, seconds=0)
    rig.received()

    rig.queue.hide(first, seconds=60)
    rig.queue.delete(first)


def test_a_buried_message_is_in_the_dead_letter_queue_with_the_reason_and_nowhere_else(rig: Rig) -> None:
    rig.queue.send(STAGE, "no job spec")
    delivery = rig.received()

    rig.queue.bury(delivery, reason="job spec: expected JSON, got 'n'")

    assert rig.is_empty()
    assert rig.dead_letters() == [
        Buried(body="no job spec", reason="job spec: expected JSON, got 'n'", message_id=delivery.message_id)
    ]


# ---------------------------------------------------------------- SQS alone


@pytest.fixture
def sqs(sqs_client: SQSClient, queue_prefix: str) -> SqsQueue:
    queue = SqsQueue(sqs_client, queue_prefix)
    queue.create(STAGE)
    return queue


@pytest.mark.parametrize("reason", ["\x1b[31m\x00red\ud800", "x" * 400_000, "🛫" * 4000, "", "\n"])
def test_any_reason_can_be_given_to_a_buried_message(
    sqs: SqsQueue, sqs_client: SQSClient, queue_prefix: str, reason: str
) -> None:
    sqs.send(STAGE, "{}")
    delivery = sqs.receive(STAGE, wait_s=1)
    assert delivery is not None

    sqs.bury(delivery, reason=reason)

    (letter,) = dead_letters(sqs_client, f"{queue_prefix}{STAGE.value}-dlq")
    assert letter.reason
    assert letter.reason.isprintable()
    assert len(letter.reason) <= 512


def test_the_largest_message_can_be_buried(sqs: SqsQueue, sqs_client: SQSClient, queue_prefix: str) -> None:
    body = "x" * LARGEST_MESSAGE_BYTES
    sqs.send(STAGE, body)
    delivery = sqs.receive(STAGE, wait_s=1)
    assert delivery is not None

    sqs.bury(delivery, reason="too large")

    (letter,) = dead_letters(sqs_client, f"{queue_prefix}{STAGE.value}-dlq")
    assert letter.body == body
    assert sqs.receive(STAGE, wait_s=0) is None


class DiesBeforeItDeletes(SqsQueue):
    def delete(self, delivery: Delivery) -> None:
        raise KeyboardInterrupt


def test_a_worker_that_dies_while_it_buries_leaves_the_message_twice_and_not_nowhere(
    sqs: SqsQueue, sqs_client: SQSClient, queue_prefix: str
) -> None:
    sqs.send(STAGE, "{}")
    delivery = sqs.receive(STAGE, wait_s=1)
    assert delivery is not None

    with pytest.raises(KeyboardInterrupt):
        DiesBeforeItDeletes(sqs_client, queue_prefix).bury(delivery, reason="no job spec")

    sqs.hide(delivery, seconds=0)
    assert sqs.receive(STAGE, wait_s=1) is not None
    assert len(dead_letters(sqs_client, f"{queue_prefix}{STAGE.value}-dlq")) == 1


def test_queues_can_be_made_again_and_keep_their_messages(sqs: SqsQueue) -> None:
    sqs.send(STAGE, "{}")

    sqs.create(STAGE)

    assert sqs.receive(STAGE, wait_s=1) is not None


def test_a_queue_made_by_others_gets_the_attributes_that_a_worker_relies_on(
    sqs_client: SQSClient, queue_prefix: str
) -> None:
    name = f"{queue_prefix}{STAGE.value}"
    url = sqs_client.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "7"})["QueueUrl"]

    SqsQueue(sqs_client, queue_prefix).create(STAGE)

    attributes = sqs_client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert attributes["VisibilityTimeout"] == "60"
    assert f"{name}-dlq" in attributes["RedrivePolicy"]
    assert '"maxReceiveCount": "1000"' in attributes["RedrivePolicy"]


def test_a_missing_queue_is_named_with_what_to_do(sqs_client: SQSClient, queue_prefix: str) -> None:
    queue = SqsQueue(sqs_client, queue_prefix)

    with pytest.raises(InfrastructureError, match=f"queue {queue_prefix}query does not exist at http") as error:
        queue.send(STAGE, "{}")

    assert "runner up" in (error.value.hint or "")


def test_a_queue_that_was_deleted_under_us_is_named_too(
    sqs: SqsQueue, sqs_client: SQSClient, queue_prefix: str
) -> None:
    sqs.send(STAGE, "{}")
    delivery = sqs.receive(STAGE, wait_s=1)
    assert delivery is not None
    name = f"{queue_prefix}{STAGE.value}"
    sqs_client.delete_queue(QueueUrl=sqs_client.get_queue_url(QueueName=name)["QueueUrl"])

    uses: list[Callable[[], object]] = [
        lambda: sqs.receive(STAGE, wait_s=0),
        lambda: sqs.hide(delivery, seconds=1),
        lambda: sqs.delete(delivery),
    ]
    for use in uses:
        with pytest.raises(InfrastructureError, match=f"queue {name} does not exist"):
            use()


@pytest.fixture
def nobody_listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[SQSClient]:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    client = Aws(region="us-east-1", endpoint_url="http://127.0.0.1:9", access_key_id="a", secret_access_key="b").sqs()
    yield client
    client.close()


def test_a_service_that_is_away_is_named_with_its_address_in_one_line(nobody_listening: SQSClient) -> None:
    queue = SqsQueue(nobody_listening, "some-")

    with pytest.raises(InfrastructureError) as error:
        queue.receive(STAGE, wait_s=0)

    assert "queue some-query" in error.value.message
    assert "SQS at http://127.0.0.1:9" in error.value.message
    assert "\n" not in error.value.message
    assert "runner up" in (error.value.hint or "")
