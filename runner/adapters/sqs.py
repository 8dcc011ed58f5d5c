"""What the adapters of SQS share: how queues are called, where they are, and what SQS's errors mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runner.adapters.aws import aws_errors, error_code
from runner.model.spec import Stage
from runner.ports import NoQueue

if TYPE_CHECKING:
    from types_boto3_sqs.client import SQSClient


def queue_name(prefix: str, stage: Stage) -> str:
    return f"{prefix}{stage.value}"


def dead_letters_name(prefix: str, stage: Stage) -> str:
    return f"{queue_name(prefix, stage)}-dlq"


class QueueUrls:
    """The address of each queue, asked for once."""

    def __init__(self, client: SQSClient) -> None:
        self._client = client
        self._urls: dict[str, str] = {}

    def of(self, name: str) -> str:
        if name not in self._urls:
            self._urls[name] = self._client.get_queue_url(QueueName=name)["QueueUrl"]
        return self._urls[name]


@contextmanager
def sqs_errors(client: SQSClient, name: str) -> Iterator[None]:
    """Within: what SQS answers about the queue `name` becomes one of our errors, `NoQueue` where there is none."""
    from botocore.exceptions import ClientError

    with aws_errors(client, f"queue {name}"):
        try:
            yield
        except ClientError as exc:
            if error_code(exc) not in {"NonExistentQueue", "QueueDoesNotExist"}:
                raise
            raise NoQueue(
                f"queue {name} does not exist at {client.meta.endpoint_url}",
                hint="RUNNER_QUEUE_PREFIX names the queues; `runner up` makes the embedded services' own",
            ) from exc


@contextmanager
def stale_receipts_accepted() -> Iterator[None]:
    """A message that is gone, or another's by now, is no error: AWS lets a delete succeed and do nothing.

    InvalidParameterValue is how SQS says that a message is no longer in flight, or 12 hours are over.
    """
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as exc:
        if error_code(exc) not in {"ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue"}:
            raise
