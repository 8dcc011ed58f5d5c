"""Secrets, in AWS Secrets Manager: texts by name, below a prefix, kept in this process's memory for minutes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from runner.adapters.aws import aws_errors, error_code
from runner.model.errors import SpecError

if TYPE_CHECKING:
    from botocore.client import BaseClient

HELD_S = 180.0
"""How long a value is used before it is asked for again. A worker that runs for weeks has to notice a new one."""

_NAME = re.compile(r"[A-Za-z0-9/_+=.@-]{1,400}")
"""Of the letters that a name may have; no colon, so it is never an ARN, which could be another account's.
https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_CreateSecret.html"""

_NOT_TO_BE_HAD = frozenset({"ResourceNotFoundException", "AccessDeniedException", "InvalidRequestException"})
"""Nothing of that name; no right to it; marked for deletion."""


class _Client(Protocol):
    def get_secret_value(self, *, SecretId: str) -> Mapping[str, Any]: ...  # noqa: N803 - boto3's name


class SecretsManager:
    """Implements `Secrets`. A name is looked up as `<prefix><name>`: what a spec names is never another's secret."""

    def __init__(self, client: _Client, *, prefix: str, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._prefix = prefix
        self._clock_s = clock_s
        self._held: dict[str, tuple[str, float]] = {}

    def get(self, name: str, *, fresh: bool = False) -> str:
        """`fresh` asks the store whatever is held: a secret that is refused may have been rotated since."""
        about = f"secret {self._prefix}{name}" if _NAME.fullmatch(name) else f"secret {name[:60]!r}"
        if not _NAME.fullmatch(name):
            expected = "a name of letters, digits and /_+=.@-"
            raise SpecError(f"{about}: expected {expected}, got another", subject=name[:60])
        held = self._held.get(name)
        if held and not fresh and self._clock_s() < held[1]:
            return held[0]
        self._held.pop(name, None)
        text = self._ask(name, about)
        self._held[name] = text, self._clock_s() + HELD_S
        return text

    def _ask(self, name: str, about: str) -> str:
        from botocore.exceptions import ClientError

        with aws_errors(cast("BaseClient", self._client), about):
            try:
                answer = self._client.get_secret_value(SecretId=self._prefix + name)
            except ClientError as exc:
                if (code := error_code(exc)) not in _NOT_TO_BE_HAD:
                    raise
                raise SpecError(
                    f"{about}: expected one that the worker may read, got {code}",
                    hint="RUNNER_SECRET_PREFIX is put before each name; the worker's policy says what it may read",
                    subject=name,
                ) from exc
            if "SecretBinary" in answer and "SecretString" not in answer:
                raise SpecError(f"{about}: expected a text, got a binary secret", subject=name)
            return str(answer["SecretString"])  # not there: the answer was cut off
