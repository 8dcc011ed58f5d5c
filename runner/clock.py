"""The host's clock. Nothing that has to be right depends on it: leases run on the ledger's."""

from __future__ import annotations

from datetime import UTC, datetime


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)
