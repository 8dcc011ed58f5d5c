"""What each category of failure leads to, and the errors that carry them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.model import errors
from runner.model.errors import ERRORS, Category, Failure, RateLimitError, RunnerError, error_of
from runner.model.policy import BACK_OFF_LONGEST_S, POLICY, back_off_s, exit_code, may_retry


def failure(category: Category = Category.TRANSIENT, *, retry_after_s: float | None = None) -> Failure:
    return Failure(category=category, message="it broke", retry_after_s=retry_after_s)


RULES = {
    #                        retry, alert, exit code
    Category.TRANSIENT: (True, False, 75),
    Category.RATE_LIMIT: (True, False, 75),
    Category.INFRASTRUCTURE: (True, True, 75),
    Category.DATA: (False, False, 1),
    Category.SCHEMA: (False, True, 1),
    Category.LOGIC: (False, False, 1),
    Category.SPEC: (False, False, 2),
    Category.CONFLICT: (False, False, 1),
}


@pytest.mark.parametrize("category", Category)
def test_every_category_has_its_rule(category: Category) -> None:
    retry, alert, code = RULES[category]
    assert (POLICY[category].retry, POLICY[category].alert) == (retry, alert)
    assert exit_code(failure(category)) == code
    assert may_retry(failure(category), attempt=1, max_attempts=3) is retry


def test_success_is_zero() -> None:
    assert exit_code(None) == 0


def test_the_last_attempt_is_not_retried() -> None:
    assert may_retry(failure(), attempt=2, max_attempts=3)
    assert not may_retry(failure(), attempt=3, max_attempts=3)
    assert not may_retry(failure(), attempt=1, max_attempts=1)


# ---------------------------------------------------------------- back-off


@pytest.mark.parametrize(("attempt", "step"), [(1, 1), (2, 2), (3, 4), (4, 8), (9, 256), (10, 300), (11, 300)])
def test_the_wait_doubles_from_one_second_to_five_minutes(attempt: int, step: float) -> None:
    assert back_off_s(failure(), attempt=attempt, jitter=lambda: 0.0) == step / 2
    assert back_off_s(failure(), attempt=attempt, jitter=lambda: 1.0) == step


@given(st.integers(1, 100_000), st.floats(0, 1, exclude_max=True))
def test_jitter_spreads_the_wait_over_the_upper_half_of_its_step(attempt: int, drawn: float) -> None:
    step = min(2 ** (attempt - 1), BACK_OFF_LONGEST_S)
    assert step / 2 <= back_off_s(failure(), attempt=attempt, jitter=lambda: drawn) <= step


@pytest.mark.parametrize("wait_s", [0.0, 0.5, 17.0, 3600.0])
def test_a_rate_limit_waits_as_it_was_told(wait_s: float) -> None:
    told = failure(Category.RATE_LIMIT, retry_after_s=wait_s)
    assert back_off_s(told, attempt=7, jitter=lambda: 0.9) == wait_s


def test_a_rate_limit_that_gave_no_figure_backs_off_like_the_rest() -> None:
    assert back_off_s(failure(Category.RATE_LIMIT), attempt=3, jitter=lambda: 0.0) == 2.0


# ---------------------------------------------------------------- errors


def test_each_error_is_one_category_and_each_category_one_error() -> None:
    there = {
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, RunnerError) and each is not RunnerError
    }
    assert set(ERRORS) == set(Category)
    assert set(ERRORS.values()) == there
    assert all(error.category is category for category, error in ERRORS.items())


@pytest.mark.parametrize("category", Category)
def test_an_error_survives_the_way_through_its_failure(category: Category) -> None:
    told = Failure(category=category, message="it broke", hint="mend it", subject="model x", retry_after_s=1.5)
    error = error_of(told)
    assert type(error) is ERRORS[category]
    assert error.failure == told
    assert Failure.model_validate_json(told.model_dump_json()) == told


def test_an_error_says_its_message_and_nothing_else() -> None:
    assert str(RateLimitError("portal: expected 200, got 429", hint="wait", retry_after_s=3)) == (
        "portal: expected 200, got 429"
    )
