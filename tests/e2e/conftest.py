"""A site a module, on the session's services."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from runner.embedded.services import Endpoints
from tests.support.site import Site, make_site


@pytest.fixture(scope="module")
def site(services: Endpoints, ledger_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = make_site(
        tmp_path_factory.mktemp("site"),
        ledger_url=ledger_url,
        aws_endpoint_url=services.aws_endpoint_url,
        name=f"t{uuid4().hex[:10]}",
    )
    yield made
    made.app.ledger.close()
    made.portal.stop()
