"""Answers that are cut off: whatever botocore makes of them, nobody takes one for an empty list or a missing object."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from runner.adapters.aws import Aws
from runner.adapters.s3_objects import S3Objects
from runner.adapters.sqs_dead_letters import SqsDeadLetters
from runner.adapters.sqs_queue import SqsQueue
from runner.model.errors import InfrastructureError, TransientError
from runner.model.spec import Stage
from runner.ports import Delivery

CUTS = {
    "in the headers": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "in the body": b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: 500\r\n\r\n<?xml version=",
    "in an error's body": b"HTTP/1.1 500 Oops\r\nContent-Length: 500\r\n\r\n<Error><Code>Inter",
    "in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n<?xml",
}


@pytest.fixture(params=CUTS.values(), ids=list(CUTS))
def aws(request: pytest.FixtureRequest) -> Iterator[Aws]:
    """A server that cuts every answer off in the same place."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):  # it was closed: the test is over
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(request.param)

        Thread(target=answer, daemon=True).start()
        port = server.getsockname()[1]
        yield Aws(
            region="us-east-1",
            endpoint_url=f"http://127.0.0.1:{port}",
            access_key_id="test",
            secret_access_key="test",
        )
        server.shutdown(socket.SHUT_RDWR)


S3: dict[str, Callable[[S3Objects, Path], object]] = {
    "list": lambda objects, _: objects.list("a/"),
    "folders": lambda objects, _: list(objects.folders("a/")),
    "entries": lambda objects, _: list(objects.entries("a/")),
    "get of a size": lambda objects, _: objects.get("a", at_most=500),
    "get_range": lambda objects, _: objects.get_range("a", 0, 9),
    "get_file": lambda objects, folder: objects.get_file("a", folder / "file"),
}


def test_a_cut_object_is_an_error_or_empty_which_no_document_is(aws: Aws) -> None:
    client = aws.s3()
    try:
        with suppress(TransientError, InfrastructureError):
            assert S3Objects(client, "lake").get("a") == b""
    finally:
        client.close()


@pytest.mark.parametrize("ask", S3.values(), ids=S3)
def test_a_cut_answer_of_s3_is_an_error(aws: Aws, tmp_path: Path, ask: Callable[[S3Objects, Path], object]) -> None:
    client = aws.s3()
    try:
        with pytest.raises((TransientError, InfrastructureError)):
            ask(S3Objects(client, "lake"), tmp_path)
    finally:
        client.close()


def test_a_cut_answer_of_sqs_is_an_error_or_no_message(aws: Aws) -> None:
    client = aws.sqs()
    try:
        queue = SqsQueue(client, "t-")
        delivery = Delivery(stage=Stage.QUERY, body="{}", receipt="r", message_id="m")
        asked: list[Callable[[], object]] = [
            lambda: queue.receive(Stage.QUERY, wait_s=0),
            lambda: queue.depth(Stage.QUERY),
            lambda: queue.hide(delivery, seconds=1),
            lambda: queue.delete(delivery),
            lambda: queue.send(Stage.QUERY, "{}"),
            lambda: SqsDeadLetters(client, "t-").look(Stage.QUERY, limit=1),
        ]
        for ask in asked:
            with pytest.raises((TransientError, InfrastructureError)):
                ask()
    finally:
        client.close()
