"""A short soak: everything at once. `make faults` has the long one."""

from __future__ import annotations

from random import Random, SystemRandom

from tests.faults.soak import scenarios, soaked
from tests.faults.yard import Ground

JOBS = 20
WITHIN_S = 240.0
SEED = SystemRandom().randrange(2**31)
"""Another one each time, and a failure says which. What is hurt is of the seed; when it is, is the machine's doing."""


def test_small_jobs_of_all_kinds_end_once_whatever_happens(ground: Ground) -> None:
    found = soaked(JOBS, WITHIN_S, ground, Random(SEED))  # noqa: S311 - faults are no secrets
    assert [str(each) for each in found.violations] == [], f"seed {SEED}"
    assert found.runs == JOBS + 1, f"seed {SEED}"
    assert found.injected > 0


def test_the_long_form_is_one_soak_of_its_own() -> None:
    assert [each.name for each in scenarios()] == ["soak"]
