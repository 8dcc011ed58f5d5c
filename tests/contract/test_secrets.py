"""What a store of secrets does, told of the twin and of Secrets Manager alike; then what is Secrets Manager's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from runner.adapters.aws import Aws
from runner.adapters.secrets_manager import HELD_S, SecretsManager
from runner.config import load_settings
from runner.model.errors import InfrastructureError, RunnerError, SpecError, TransientError
from runner.ports import Secrets
from tests.support.twins import MemorySecrets

Put = Callable[[str, str], None]


@pytest.fixture(scope="module")
def client(aws: Aws) -> Iterator[Any]:
    client = aws.secretsmanager()
    yield client
    client.close()


@pytest.fixture
def prefix() -> str:
    """For secrets of the test's own."""
    return f"test-{uuid4().hex}/"


@pytest.fixture(params=["memory", "secrets manager"])
def store(request: pytest.FixtureRequest) -> tuple[Secrets, Put]:
    """The port, and a way to put a secret in."""
    if request.param == "memory":
        memory = MemorySecrets()
        return memory, memory.put
    client, prefix = request.getfixturevalue("client"), request.getfixturevalue("prefix")

    def put(name: str, text: str) -> None:
        client.create_secret(Name=prefix + name, SecretString=text)

    return SecretsManager(client, prefix=prefix), put


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("text", ["s3cr3t", "two\nlines\n", " größer ", "x" * 50_000, '{"user": "ada"}'])
def test_a_secret_is_the_text_that_was_put(store: tuple[Secrets, Put], text: str) -> None:
    secrets, put = store
    put("github-token", text)
    assert secrets.get("github-token") == text
    assert secrets.get("github-token") == text


@pytest.mark.parametrize("name", ["a", "team/github.token", "A_b-c+d=e@f.g"])
def test_each_name_has_a_text_of_its_own(store: tuple[Secrets, Put], name: str) -> None:
    secrets, put = store
    put(name, "mine")
    put(f"{name}2", "another's")
    assert secrets.get(name) == "mine"
    assert secrets.get(f"{name}2") == "another's"


@pytest.mark.parametrize(
    "name",
    [
        "nothing",
        "",
        "../stage-runner/x",
        "*",
        "a b",
        "a\nb",
        "a\0",
        "größe",
        "x" * 3000,
        "arn:aws:secretsmanager:us-east-1:000000000000:secret:x-AbCdEf",
    ],
)
def test_a_secret_that_is_not_there_is_the_specs_fault(store: tuple[Secrets, Put], name: str) -> None:
    secrets, put = store
    put("something", "s3cr3t")
    with pytest.raises(SpecError, match=r"^secret .*: expected .*, got") as missing:
        secrets.get(name)
    assert missing.value.subject is not None
    assert len(missing.value.message) < 300
    assert missing.value.message.isprintable()


# ---------------------------------------------------------------- Secrets Manager alone


def test_a_name_never_reaches_a_secret_outside_of_the_prefix(client: Any, prefix: str) -> None:
    arn = client.create_secret(Name=f"{prefix}outside", SecretString="another's")["ARN"]
    assert SecretsManager(client, prefix=prefix).get("outside") == "another's"
    inside = SecretsManager(client, prefix=f"{prefix}inside/")
    for name in ("outside", "../outside", f"/{prefix}outside", f"{prefix}outside", arn):
        with pytest.raises(SpecError):
            inside.get(name)


def test_the_configured_prefix_may_not_be_left_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().secret_prefix == "stage-runner/"
    for wrong in ("", "arn:aws:", "a b"):
        monkeypatch.setenv("RUNNER_SECRET_PREFIX", wrong)
        with pytest.raises(SpecError, match="RUNNER_SECRET_PREFIX"):
            load_settings()


def test_a_value_is_held_for_minutes_and_asked_for_again_when_it_was_refused(client: Any, prefix: str) -> None:
    now = [1000.0]
    secrets = SecretsManager(client, prefix=prefix, clock_s=lambda: now[0])
    client.create_secret(Name=f"{prefix}token", SecretString="old")
    assert secrets.get("token") == "old"

    client.put_secret_value(SecretId=f"{prefix}token", SecretString="new")
    now[0] += HELD_S - 1
    assert secrets.get("token") == "old"
    assert secrets.get("token", fresh=True) == "new"

    client.put_secret_value(SecretId=f"{prefix}token", SecretString="newer")
    now[0] += HELD_S + 1
    assert secrets.get("token") == "newer"


def test_a_secret_that_was_deleted_is_gone_as_soon_as_it_is_asked_for(client: Any, prefix: str) -> None:
    secrets = SecretsManager(client, prefix=prefix)
    client.create_secret(Name=f"{prefix}token", SecretString="old")
    assert secrets.get("token") == "old"
    client.delete_secret(SecretId=f"{prefix}token", RecoveryWindowInDays=7)
    with pytest.raises(SpecError, match="got InvalidRequestException"):
        secrets.get("token", fresh=True)
    with pytest.raises(SpecError):
        secrets.get("token")


def test_a_binary_secret_is_refused(client: Any, prefix: str) -> None:
    client.create_secret(Name=f"{prefix}key", SecretBinary=b"\x00\xff")
    with pytest.raises(SpecError, match="expected a text, got a binary secret"):
        SecretsManager(client, prefix=prefix).get("key")


@pytest.fixture
def nobody_listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client whose endpoint refuses: what is asked of it must come from a stub."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    aws = Aws(region="us-east-1", endpoint_url="http://127.0.0.1:9", access_key_id="a", secret_access_key="b")
    client = aws.secretsmanager()
    yield client
    client.close()


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("ResourceNotFoundException", 400, SpecError),
        ("AccessDeniedException", 400, SpecError),
        ("InvalidRequestException", 400, SpecError),
        ("DecryptionFailure", 400, InfrastructureError),
        ("UnrecognizedClientException", 400, InfrastructureError),
        ("ExpiredTokenException", 400, InfrastructureError),
        ("ThrottlingException", 400, TransientError),
        ("InternalServiceError", 500, TransientError),
    ],
)
def test_what_the_store_answers_becomes_an_error_that_names_the_secret(
    nobody_listening: Any, code: str, status: int, error: type[RunnerError]
) -> None:
    from botocore.stub import Stubber

    with Stubber(nobody_listening) as stub:
        stub.add_client_error("get_secret_value", code, http_status_code=status)
        with pytest.raises(error, match=rf"^secret lake/token: .*{code}") as failed:
            SecretsManager(nobody_listening, prefix="lake/").get("token")
    assert type(failed.value) is error


def test_a_store_that_is_away_is_no_answer(nobody_listening: Any) -> None:
    with pytest.raises(InfrastructureError, match=r"secret lake/token: .*Secrets Manager at http://127\.0\.0\.1:9"):
        SecretsManager(nobody_listening, prefix="lake/").get("token")


def test_an_answer_without_its_text_was_cut_off(nobody_listening: Any) -> None:
    from botocore.stub import Stubber

    with Stubber(nobody_listening) as stub:
        stub.add_response("get_secret_value", {"Name": "lake/token"})
        with pytest.raises(TransientError, match="secret lake/token: expected a whole answer"):
            SecretsManager(nobody_listening, prefix="lake/").get("token")


def test_no_error_and_no_repr_has_the_text_in_it(client: Any, prefix: str) -> None:
    secrets = SecretsManager(client, prefix=prefix)
    client.create_secret(Name=f"{prefix}token", SecretString="s3cr3t-value")
    secrets.get("token")
    assert "s3cr3t-value" not in f"{secrets!r} {secrets}"
