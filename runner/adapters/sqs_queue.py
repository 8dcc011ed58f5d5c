"""A queue a stage, on SQS."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from runner.adapters.sqs import QueueUrls, dead_letters_name, queue_name, sqs_errors, stale_receipts_accepted
from runner.model.spec import Stage
from runner.ports import LEASE_S, Delivery

if TYPE_CHECKING:
    from types_boto3_sqs.client import SQSClient
    from types_boto3_sqs.type_defs import MessageAttributeValueTypeDef

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
LONGEST_POLL_S = 20
LONGEST_HIDE_S = 12 * 60 * 60
LONGEST_RETENTION_S = 14 * 24 * 60 * 60
LARGEST_MESSAGE_BYTES = 1024 * 1024

MAX_RECEIVES = 1000
"""Attempts are counted in the ledger: SQS counts deliveries, of which an outage of the ledger makes many.
This limit only ends a message that nobody could ever judge."""
_REASON_CHARS = 512
_ATTRIBUTES_BYTES = 4096
"""Room kept for a buried message's attributes, which count towards its size; 4 bytes a character at most."""


class SqsQueue:
    """Implements `Queue`: the queues `<prefix><stage>` and `<prefix><stage>-dlq`."""

    def __init__(self, client: SQSClient, prefix: str, *, lease_s: float = LEASE_S) -> None:
        self._client = client
        self._prefix = prefix
        self._lease_s = _whole_seconds(lease_s, LONGEST_HIDE_S)
        self._urls = QueueUrls(client)

    def create(self, stage: Stage) -> None:
        """Make the stage's queue and its dead-letter queue; one that is there gets its attributes again."""
        name, dead = queue_name(self._prefix, stage), dead_letters_name(self._prefix, stage)
        # Attributes are set in a second call: CreateQueue refuses a queue that is there with other ones.
        with sqs_errors(self._client, dead):
            dead_url = self._client.create_queue(QueueName=dead)["QueueUrl"]
            self._client.set_queue_attributes(
                QueueUrl=dead_url, Attributes={"MessageRetentionPeriod": str(LONGEST_RETENTION_S)}
            )
            arn = self._client.get_queue_attributes(QueueUrl=dead_url, AttributeNames=["QueueArn"])["Attributes"][
                "QueueArn"
            ]
        with sqs_errors(self._client, name):
            self._client.set_queue_attributes(
                QueueUrl=self._client.create_queue(QueueName=name)["QueueUrl"],
                Attributes={
                    "VisibilityTimeout": str(self._lease_s),
                    "MessageRetentionPeriod": str(LONGEST_RETENTION_S),
                    "ReceiveMessageWaitTimeSeconds": str(LONGEST_POLL_S),
                    "RedrivePolicy": json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": str(MAX_RECEIVES)}),
                },
            )

    def depth(self, stage: Stage) -> int:
        """About how many messages wait, visible or not: SQS does not promise to be exact."""
        name = queue_name(self._prefix, stage)
        names: Sequence[Literal["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]]
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        with sqs_errors(self._client, name):
            found = self._client.get_queue_attributes(QueueUrl=self._urls.of(name), AttributeNames=names)["Attributes"]
        return sum(int(found[each]) for each in names)

    def send(self, stage: Stage, body: str) -> None:
        name = queue_name(self._prefix, stage)
        with sqs_errors(self._client, name):
            self._client.send_message(QueueUrl=self._urls.of(name), MessageBody=body)

    def receive(self, stage: Stage, *, wait_s: float) -> Delivery | None:
        name = queue_name(self._prefix, stage)
        with sqs_errors(self._client, name):
            answer = self._client.receive_message(
                QueueUrl=self._urls.of(name),
                MaxNumberOfMessages=1,
                VisibilityTimeout=self._lease_s,
                MessageSystemAttributeNames=["ApproximateReceiveCount"],
                WaitTimeSeconds=_whole_seconds(wait_s, LONGEST_POLL_S),
            )
        for message in answer.get("Messages", []):
            return Delivery(
                stage=stage,
                body=message["Body"],
                receipt=message["ReceiptHandle"],
                message_id=message["MessageId"],
                receives=int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1)),
            )
        return None

    def hide(self, delivery: Delivery, *, seconds: float) -> None:
        """SQS hides a delivery for 12 hours at most; the next delivery then finds the run claimed."""
        name = queue_name(self._prefix, delivery.stage)
        with sqs_errors(self._client, name), stale_receipts_accepted():
            self._client.change_message_visibility(
                QueueUrl=self._urls.of(name),
                ReceiptHandle=delivery.receipt,
                VisibilityTimeout=_whole_seconds(seconds, LONGEST_HIDE_S),
            )

    def delete(self, delivery: Delivery) -> None:
        name = queue_name(self._prefix, delivery.stage)
        with sqs_errors(self._client, name), stale_receipts_accepted():
            self._client.delete_message(QueueUrl=self._urls.of(name), ReceiptHandle=delivery.receipt)

    def bury(self, delivery: Delivery, *, reason: str) -> None:
        dead = dead_letters_name(self._prefix, delivery.stage)
        attributes: dict[str, MessageAttributeValueTypeDef] = {
            "reason": {"DataType": "String", "StringValue": _attribute(reason)},
            "message_id": {"DataType": "String", "StringValue": delivery.message_id},
        }
        if len(delivery.body.encode()) + _ATTRIBUTES_BYTES > LARGEST_MESSAGE_BYTES:
            attributes = {}  # a body that fills the message leaves no room; the log has the reason
        with sqs_errors(self._client, dead):
            self._client.send_message(
                QueueUrl=self._urls.of(dead), MessageBody=delivery.body, MessageAttributes=attributes
            )
        # Only now: dying in between leaves the message twice, the other order could leave it nowhere.
        self.delete(delivery)


def _whole_seconds(seconds: float, longest: int) -> int:
    return min(max(math.ceil(seconds), 0), longest)


def _attribute(text: str) -> str:
    """`text` as SQS takes it: not empty, no control characters, no lone surrogates."""
    kept = "".join(char if char.isprintable() else " " for char in text[:_REASON_CHARS])
    return kept.strip() or "not given"
