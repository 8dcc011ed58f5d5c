"""The ground that a module's scenarios stand on, on the session's services."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from runner.embedded.services import Endpoints
from tests.faults.yard import Ground


@pytest.fixture(scope="module")
def ground(services: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    if sys.platform != "linux":
        pytest.skip("workers are watched through /proc, and end with their parent by prctl: Linux only")
    made = Ground(services, tmp_path_factory.mktemp("faults") / "ground")
    try:
        yield made
    finally:
        made.close()
