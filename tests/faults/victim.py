"""The worker that is hurt: the product's own command in a forked process, each of its ports behind a tap."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

# Imported here, so that the zygote has them before it forks.
import boto3.session
import botocore.loaders
import pyiceberg.catalog.sql
import pyiceberg.io.fsspec
import pyiceberg.io.pyarrow
import s3fs
import sqlalchemy.dialects.postgresql.psycopg

import runner.adapters.http_source
import runner.adapters.sandbox_engine
import runner.cli
import runner.cli.options
import runner.flow.commit
from runner.adapters import pg_ledger
from runner.adapters.dbt_packages import DbtPackages
from runner.adapters.git_logic import GitLogic
from runner.adapters.iceberg_tables import IcebergTables
from runner.adapters.pg_ledger import PgLedger
from runner.adapters.s3_objects import S3Objects
from runner.adapters.sqs_queue import SqsQueue
from runner.app import App
from runner.clock import SystemClock
from runner.config import Settings
from runner.model.manifest import OutputRecord
from runner.model.spec import Stage
from runner.ports import CommitTag, Delivery, Engine, LoadedDataset
from tests.faults.points import Tap
from tests.support.tapped import Tapped

if TYPE_CHECKING:
    from tests.faults.zygote import Order

WARM = (
    pyiceberg.catalog.sql,
    pyiceberg.io.fsspec,
    pyiceberg.io.pyarrow,
    s3fs,
    sqlalchemy.dialects.postgresql.psycopg,
    runner.adapters.http_source,
    runner.adapters.sandbox_engine,
)


def warm_up() -> None:
    """Before any fork: what the first client of a process reads from its library's files is read once for all."""
    loader = botocore.loaders.JSONFileLoader
    load = cache(partial(loader.load_file, loader()))

    def load_file(self: botocore.loaders.JSONFileLoader, file_path: str) -> Any:
        return load(file_path)

    loader.load_file = load_file  # type: ignore[method-assign]
    for service in ("s3", "sqs"):
        boto3.session.Session(region_name="us-east-1").client(service, endpoint_url="http://127.0.0.1:1")


def live(order: Order) -> None:
    """`runner <argv>`, until it ends or is ended."""
    os.environ.clear()
    os.environ.update(order.env)
    logging.raiseExceptions = False
    if order.clock_s:
        _shift_clock(order.clock_s)
    if order.broken:
        BROKEN[order.broken]()
    tap = Tap(order.script, Path(order.trace))

    def app(settings: Settings) -> App:
        return TappedApp(settings, tap)

    vars(runner.cli.options)["App"] = app
    sys.argv = ["runner", *order.argv]
    runner.cli.main()


class TappedApp(App):
    """The product's own wiring; whatever is made of a port is made of the tapped one."""

    def __init__(self, settings: Settings, tap: Tap) -> None:
        super().__init__(settings)
        self._tap = tap

    @cached_property
    def ledger(self) -> PgLedger:
        return cast(PgLedger, Tapped(self._tap, "ledger", super().ledger))

    @cached_property
    def queue(self) -> SqsQueue:
        return cast(SqsQueue, Tapped(self._tap, "queue", super().queue))

    @cached_property
    def objects(self) -> S3Objects:
        return cast(S3Objects, Tapped(self._tap, "objects", super().objects))

    @cached_property
    def logic(self) -> GitLogic:
        return cast(GitLogic, Tapped(self._tap, "logic", super().logic))

    @cached_property
    def packages(self) -> DbtPackages:
        return cast(DbtPackages, Tapped(self._tap, "packages", super().packages))

    @cached_property
    def tables(self) -> IcebergTables:
        tables = super().tables
        catalog = tables._catalog
        # Within one commit: its document lies in the bucket, and the catalog does not name it yet.
        for call in ("create_namespace", "commit_table", "_write_metadata"):
            setattr(catalog, call, self._tapped_call(f"catalog.{call.lstrip('_')}", getattr(catalog, call)))
        return cast(IcebergTables, Tapped(self._tap, "tables", tables))

    def _tapped_call(self, name: str, effect: Callable[..., object]) -> Callable[..., object]:
        return lambda *given, **named: self._tap.call(name, lambda: effect(*given, **named))

    def _engine(self, stage: Stage) -> Engine:
        return cast(Engine, Tapped(self._tap, "engine", super()._engine(stage)))


def _shift_clock(seconds: float) -> None:
    right_now, right_time = SystemClock.now, time.time

    def now(self: SystemClock) -> datetime:
        return right_now(self) + timedelta(seconds=seconds)

    SystemClock.now = now  # type: ignore[method-assign]
    time.time = lambda: right_time() + seconds


# ---------------------------------------------------------------- clauses taken out


def _adopt_nothing() -> None:
    """A commit does not look first whether its plan has landed already."""
    vars(runner.flow.commit)["_adopt"] = lambda output, tag, dataset: None


def _adopt_any_plan() -> None:
    """A commit takes whatever its run has landed for its own, of whichever plan that is."""

    def adopt(output: OutputRecord, tag: CommitTag, dataset: LoadedDataset) -> str | None:
        return next((landed.snapshot for landed in dataset.landed(tag.run_id)), None)

    vars(runner.flow.commit)["_adopt"] = adopt


def _delete_first() -> None:
    """A message is acknowledged when it comes, as consumers often do."""
    receive = SqsQueue.receive

    def receive_and_delete(self: SqsQueue, stage: Stage, *, wait_s: float) -> Delivery | None:
        delivery = receive(self, stage, wait_s=wait_s)
        if delivery is not None:
            self.delete(delivery)
        return delivery

    SqsQueue.receive = receive_and_delete  # type: ignore[method-assign]


def _write_for_any_attempt() -> None:
    """What an attempt writes to the ledger is taken, whether the run is still that attempt's or not."""
    bound = " AND attempt = %(attempt)s AND state = 'running'"
    for name, query in pg_ledger.QUERIES.items():
        pg_ledger.QUERIES[name] = query.replace(bound, "")


BROKEN: Mapping[str, Callable[[], None]] = {
    "adopts nothing": _adopt_nothing,
    "adopts any plan": _adopt_any_plan,
    "deletes first": _delete_first,
    "writes for any attempt": _write_for_any_attempt,
}
"""Clauses of the product that a negative control takes out, in this process only."""
