"""The dead-letter queue beside each stage's queue, on SQS: looked into, and emptied letter by letter."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from runner.adapters.sqs import QueueUrls, dead_letters_name, sqs_errors, stale_receipts_accepted
from runner.model.errors import RunnerError
from runner.model.spec import Stage
from runner.ports import DeadLetter

if TYPE_CHECKING:
    from types_boto3_sqs.client import SQSClient
    from types_boto3_sqs.type_defs import MessageTypeDef

LOOK_S = 60
"""How long a letter that somebody looks at is hidden from others."""
_LARGEST_RECEIVE = 10  # https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
_POLL_S = 1
"""Not 0: a short poll asks some of SQS's servers only, and finds nothing where there is something."""


class SqsDeadLetters:
    """Implements `DeadLetters`: the queues `<prefix><stage>-dlq`."""

    def __init__(self, client: SQSClient, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._urls = QueueUrls(client)

    def look(self, stage: Stage, *, limit: int) -> Sequence[DeadLetter]:
        found: dict[str, DeadLetter] = {}
        try:
            while len(found) < limit:
                batch = self._receive(stage, at_most=min(limit - len(found), _LARGEST_RECEIVE))
                known = len(found)
                # At least once means that one may come twice; the newer receipt is the one that is good.
                found |= {each.message_id: each for each in batch}
                if len(found) == known:
                    break
        except BaseException:  # Ctrl-C too: nobody else will put these back
            for letter in found.values():
                with suppress(RunnerError):
                    self.put_back(letter)
            raise
        return list(found.values())

    def _receive(self, stage: Stage, *, at_most: int) -> list[DeadLetter]:
        name = dead_letters_name(self._prefix, stage)
        with sqs_errors(self._client, name):
            answer = self._client.receive_message(
                QueueUrl=self._urls.of(name),
                MaxNumberOfMessages=at_most,
                VisibilityTimeout=LOOK_S,
                WaitTimeSeconds=_POLL_S,
                MessageSystemAttributeNames=["SentTimestamp", "ApproximateReceiveCount"],
                MessageAttributeNames=["reason"],
            )
        return [_letter(stage, message) for message in answer.get("Messages", [])]

    def put_back(self, letter: DeadLetter) -> None:
        name = dead_letters_name(self._prefix, letter.stage)
        with sqs_errors(self._client, name), stale_receipts_accepted():
            self._client.change_message_visibility(
                QueueUrl=self._urls.of(name), ReceiptHandle=letter.receipt, VisibilityTimeout=0
            )

    def remove(self, letter: DeadLetter) -> None:
        name = dead_letters_name(self._prefix, letter.stage)
        with sqs_errors(self._client, name), stale_receipts_accepted():
            self._client.delete_message(QueueUrl=self._urls.of(name), ReceiptHandle=letter.receipt)

    def depth(self, stage: Stage) -> int:
        """Those that are hidden count too. SQS does not promise to be exact."""
        name = dead_letters_name(self._prefix, stage)
        names: Sequence[Literal["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]]
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        with sqs_errors(self._client, name):
            found = self._client.get_queue_attributes(QueueUrl=self._urls.of(name), AttributeNames=names)["Attributes"]
        return sum(int(found[each]) for each in names)


def _letter(stage: Stage, message: MessageTypeDef) -> DeadLetter:
    system, given = message.get("Attributes", {}), message.get("MessageAttributes", {})
    return DeadLetter(
        stage=stage,
        body=message["Body"],
        receipt=message["ReceiptHandle"],
        message_id=message["MessageId"],
        reason=given["reason"].get("StringValue") if "reason" in given else None,
        sent_at=datetime.fromtimestamp(int(system["SentTimestamp"]) / 1000, UTC),
        receives=int(system.get("ApproximateReceiveCount", 1)),
    )
