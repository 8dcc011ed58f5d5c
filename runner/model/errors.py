"""What can go wrong: one small tree of errors, each with the category that decides what happens next."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


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


class Failure(BaseModel):
    """A failure as the manifest, the ledger and the terminal show it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    category: Category
    message: str
    """One line: the thing, what was expected, what came."""
    hint: str | None = None
    """What to do next, where the program knows."""
    subject: str | None = None
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
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.subject = subject
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
