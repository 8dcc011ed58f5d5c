"""What can go wrong: one small tree of errors, each with the category that decides what happens next."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from runner.model.text import told


class Category(StrEnum):
    """Why an attempt failed. The rule for each is a row of `runner.model.policy.POLICY`."""

    TRANSIENT = "transient"
    RATE_LIMIT = "rate_limit"
    INFRASTRUCTURE = "infrastructure"
    DATA = "data"
    SCHEMA = "schema"
    LOGIC = "logic"
    SPEC = "spec"
    CONFLICT = "conflict"


_Told = Annotated[str, AfterValidator(told)]
"""What it quotes comes from outside, a whole failure from a child process."""


class Failure(BaseModel):
    """A failure as the manifest, the ledger and the terminal show it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    category: Category
    message: _Told
    """One line: the thing, what was expected, what came."""
    hint: _Told | None = None
    """What to do next, where the program knows."""
    subject: _Told | None = None
    """The dbt node, contract rule, file, dataset or spec field that failed."""
    retry_after_s: float | None = None


class RunnerError(Exception):
    """The root. Raise a subclass; each is one category."""

    category: Category

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        subject: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.message = told(message)
        self.hint = hint if hint is None else told(hint)
        self.subject = subject if subject is None else told(subject)
        super().__init__(self.message)
        self.retry_after_s = retry_after_s

    @property
    def failure(self) -> Failure:
        return Failure(
            category=self.category,
            message=self.message,
            hint=self.hint,
            subject=self.subject,
            retry_after_s=self.retry_after_s,
        )


class TransientError(RunnerError):
    """Gone by itself if tried again: a reset connection, a 5xx, a lost race for a bare cache."""

    category = Category.TRANSIENT


class RateLimitError(RunnerError):
    """The other side said to wait; `retry_after_s` is its own figure where it gave one."""

    category = Category.RATE_LIMIT


class InfrastructureError(RunnerError):
    """A service of the platform is away or not set up: Postgres, S3, SQS, a bucket, a disk."""

    category = Category.INFRASTRUCTURE


class DataError(RunnerError):
    """The data is not as promised: a failing test, an empty source, an input that is not there."""

    category = Category.DATA


class SchemaError(RunnerError):
    """Columns or types are not as promised, or cannot be published as they are."""

    category = Category.SCHEMA


class LogicError(RunnerError):
    """The analysts' repository does not do what the spec asks: no such commit, SQL that fails."""

    category = Category.LOGIC


class SpecError(RunnerError):
    """The request itself is wrong: a field, a file, a name. Nothing was started."""

    category = Category.SPEC


class ConflictError(RunnerError):
    """Somebody else got there, and going on would double or mix: another spec, another plan, a newer run."""

    category = Category.CONFLICT


ERRORS: dict[Category, type[RunnerError]] = {
    error.category: error
    for error in (
        TransientError,
        RateLimitError,
        InfrastructureError,
        DataError,
        SchemaError,
        LogicError,
        SpecError,
        ConflictError,
    )
}


def error_of(failure: Failure) -> RunnerError:
    """The error that `failure` records: what a child process reported is an error here too."""
    return ERRORS[failure.category](
        failure.message,
        hint=failure.hint,
        subject=failure.subject,
        retry_after_s=failure.retry_after_s,
    )
