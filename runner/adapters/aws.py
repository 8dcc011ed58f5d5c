"""boto3: the clients, and the one place where botocore's errors become the product's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from runner import __version__
from runner.model.errors import InfrastructureError, RunnerError, TransientError

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError
    from types_boto3_s3.client import S3Client
    from types_boto3_sqs.client import SQSClient

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
"""Above SQS's longest poll of 20 s, so that a quiet queue is no timeout."""
TRIES = 4
"""One try and three retries, in botocore's standard mode: with back-off, jitter and a quota of retries."""

_GONE_BY_ITSELF = frozenset(
    # https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html, and SQS's common errors.
    {
        "OperationAborted",
        "RequestThrottled",
        "RequestTimeout",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
    }
)
_SERVICES_HINT = "`runner up` starts the embedded services, `runner doctor` says what is missing"


class Aws:
    """Makes clients, all of one configuration. What is not given, botocore finds: a role, a profile."""

    def __init__(
        self,
        *,
        region: str,
        endpoint_url: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
    ) -> None:
        self._region = region
        self._endpoint_url = endpoint_url
        self._access_key_id = access_key_id
        self._secret_access_key = secret_access_key

    @property
    def properties(self) -> dict[str, str]:
        """The same configuration as pyiceberg names it, without the `s3.` or `glue.` before each."""
        named = {
            "region": self._region,
            "endpoint": self._endpoint_url,
            "access-key-id": self._access_key_id,
            "secret-access-key": self._secret_access_key,
        }
        return {name: value for name, value in named.items() if value is not None}

    def s3(self) -> S3Client:
        client: S3Client = self._client("s3")
        return client

    def sqs(self) -> SQSClient:
        client: SQSClient = self._client("sqs")
        return client

    def secretsmanager(self) -> Any:
        """Untyped: the stubs of this service are not among those installed."""
        return self._client("secretsmanager")

    def _client(self, service: Literal["s3", "sqs", "secretsmanager"]) -> Any:
        import botocore.session
        from boto3.session import Session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
        from botocore.handlers import add_expect_header

        # An emulator answers at one host name; `<bucket>.<that name>` resolves nowhere.
        addressing: Literal["path", "auto"] = "path" if self._endpoint_url else "auto"
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": TRIES},
            s3={"addressing_style": addressing},
            # Else botocore would put its own together anew for each request.
            user_agent=f"stage-runner/{__version__} botocore/{botocore.__version__}",
        )
        session = botocore.session.get_session()
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
        try:
            client = Session(region_name=self._region, botocore_session=session).client(
                service,
                endpoint_url=self._endpoint_url,
                aws_access_key_id=self._access_key_id,
                aws_secret_access_key=self._secret_access_key,
                config=config,
            )
            # To ask S3 whether it wants a body before that is sent is a round trip for each.
            client.meta.events.unregister("before-call.s3", add_expect_header)
            return client
        except (BotoCoreError, ValueError) as exc:
            # ValueError is how botocore refuses an endpoint that is no URL.
            raise InfrastructureError(
                f"{service.upper()}: expected a usable AWS configuration, got {exc}", hint=_SERVICES_HINT
            ) from exc


def _time(value: Any) -> datetime:
    """Listings have one for each key, and most answers one. botocore tries all ways in which people write times."""
    from botocore.utils import parse_timestamp

    if isinstance(value, str) and value[4:5] == "-":
        return datetime.fromisoformat(value)
    if isinstance(value, str) and value.endswith(" GMT"):
        return parsedate_to_datetime(value)
    parsed: datetime = parse_timestamp(value)
    return parsed


@contextmanager
def aws_errors(client: BaseClient, thing: str) -> Iterator[None]:
    """Within: what botocore raises about `thing` becomes `TransientError` or `InfrastructureError`.

    Neither says that a write did not land: an answer can be lost on any try.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError, HTTPError) as exc:
        raise _translated(exc, client, thing) from exc
    except KeyError as exc:
        # An answer that was cut off in its headers is a success without any field, as botocore reads it.
        raise TransientError(f"{thing}: expected a whole answer, got one without {exc}") from exc


def error_code(exc: Exception) -> str:
    """The code that the service answered with, in an `S3UploadFailedError` too; "" if it did not answer."""
    answer = _answer(exc)
    # SQS's older codes carry a prefix: `AWS.SimpleQueueService.NonExistentQueue`.
    return str(answer.response.get("Error", {}).get("Code", "")).rpartition(".")[2] if answer else ""


def _answer(exc: Exception) -> ClientError | None:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import ClientError

    # `upload_file` raises its own kind while it handles the answer, and tells no more of it than its text.
    cause = exc.__context__ if isinstance(exc, Boto3Error) else exc
    return cause if isinstance(cause, ClientError) else None


def _translated(exc: Exception, client: BaseClient, thing: str) -> RunnerError:
    from botocore import exceptions as botocore
    from urllib3.exceptions import HTTPError

    place = f"{client.meta.service_model.service_id} at {client.meta.endpoint_url}"
    came = " ".join(str(exc).split())
    answer, code = _answer(exc), error_code(exc)
    status = int(answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if answer else 0
    keyless = (
        botocore.NoCredentialsError,
        botocore.PartialCredentialsError,
        botocore.CredentialRetrievalError,
    )
    cut_off = (
        botocore.ReadTimeoutError,
        botocore.ConnectionClosedError,
        botocore.ResponseStreamingError,
        botocore.IncompleteReadError,
        botocore.FlexibleChecksumError,
        HTTPError,  # an answer's body that was cut off comes through botocore as urllib3 has it
    )
    if isinstance(exc, keyless) or status in (401, 403) or code == "ExpiredToken":
        return InfrastructureError(
            f"{thing}: expected to be let in by {place}, got {came}",
            hint="check the credentials, and what their policy allows",
        )
    if isinstance(exc, cut_off) or code in _GONE_BY_ITSELF or status == 429 or status >= 500:
        return TransientError(f"{thing}: expected a whole answer from {place}, got {came}")
    return InfrastructureError(
        f"{thing}: expected {place} to do as asked, got {came}", hint=None if answer else _SERVICES_HINT
    )
