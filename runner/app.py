"""The composition root: settings in, the adapters wired together out. Each is made when it is first asked for."""

from __future__ import annotations

import atexit
import os
import platform
import socket
import weakref
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar
from uuid import UUID

from runner import __version__
from runner.adapters.aws import Aws
from runner.adapters.dbt_packages import FETCH_S, MAX_ARCHIVE_BYTES, DbtPackages
from runner.adapters.git_logic import GitLogic
from runner.adapters.git_objects import SCHEMES
from runner.adapters.git_remote import Remotes, parse_tokens
from runner.adapters.pg_ledger import PgLedger
from runner.adapters.s3_objects import S3Objects
from runner.adapters.s3_prefixes import S3Prefixes
from runner.adapters.secrets_manager import SecretsManager
from runner.adapters.sqs_dead_letters import SqsDeadLetters
from runner.adapters.sqs_queue import SqsQueue
from runner.adapters.working_tree import WorkingTrees
from runner.client import Client
from runner.clock import SystemClock
from runner.config import Settings, home_environment, process_environment
from runner.embedded.services import Endpoints, endpoints
from runner.leftovers import Leftovers
from runner.log import logger
from runner.model.errors import InfrastructureError
from runner.model.hosts import HostRules
from runner.model.manifest import Software, Walls
from runner.model.names import is_table
from runner.model.spec import WORK_OF_STAGE, Source, Stage
from runner.ports import Engine, Ports
from runner.rebuild import Rebuild
from runner.reconcile import Reconcile
from runner.redrive import Redrive
from runner.sandbox.accounts import Account, Accounts
from runner.worker import Worker

if TYPE_CHECKING:
    from runner.adapters.iceberg_tables import IcebergTables


class _Closes(Protocol):
    def close(self) -> None: ...


_Closed = TypeVar("_Closed", bound=_Closes)


class App:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self._engines: dict[Stage, Engine] = {}
        self._closes: list[Callable[[], object]] = []

    def close(self) -> None:
        """End the processes that were made ready for jobs, and connections; the end of this process is theirs too."""
        for engine in self._engines.values():
            engine.close()
        for close in self._closes:
            close()

    def _closing(self, made: _Closed) -> _Closed:
        """Its connections end with `close`, or with this App."""
        self._closes.append(made.close)
        weakref.finalize(self, made.close)
        return made

    # ------------------------------------------------------------ where the services are

    @cached_property
    def embedded(self) -> Endpoints | None:
        """The embedded services' addresses; None where the settings name others.

        Raises `InfrastructureError` where the embedded ones are wanted and not up.
        """
        if not self.settings.embedded:
            return None
        found = endpoints(self.settings.home)
        if found is None:
            raise InfrastructureError(
                f"embedded services: expected them up in {self.settings.home}, got none",
                hint="runner up starts them; RUNNER_LEDGER_URL and AWS_ENDPOINT_URL name others",
            )
        return found

    @cached_property
    def ledger_url(self) -> str:
        if self.embedded:
            return self.embedded.ledger_url.get_secret_value()
        # `embedded` is None only where a ledger is configured.
        return self.settings.ledger_url.get_secret_value() if self.settings.ledger_url else ""

    @cached_property
    def aws(self) -> Aws:
        if self.embedded:
            return Aws(
                region=self.embedded.aws_region,
                endpoint_url=self.settings.aws_endpoint_url or self.embedded.aws_endpoint_url,
                access_key_id=self.embedded.aws_access_key_id,
                secret_access_key=self.embedded.aws_secret_access_key,
            )
        return Aws(region=self.settings.aws_region, endpoint_url=self.settings.aws_endpoint_url)

    # ------------------------------------------------------------ adapters

    @cached_property
    def ledger(self) -> PgLedger:
        return self._closing(PgLedger(self.ledger_url, lease_s=self.settings.lease_s))

    @cached_property
    def queue(self) -> SqsQueue:
        return SqsQueue(self.aws.sqs(), self.settings.queue_prefix, lease_s=self.settings.lease_s)

    @cached_property
    def objects(self) -> S3Objects:
        return S3Objects(self.aws.s3(), self.settings.bucket)

    @cached_property
    def secrets(self) -> SecretsManager:
        return SecretsManager(self.aws.secretsmanager(), prefix=self.settings.secret_prefix)

    @cached_property
    def logic(self) -> GitLogic:
        """With the embedded services and nothing said of hosts, any: the laptop's user is the platform's owner."""
        hosts, schemes = self.settings.logic_hosts, self.settings.logic_schemes
        if self.embedded:
            rules = None if hosts is None else HostRules.parse(hosts + self._portal, setting="RUNNER_LOGIC_HOSTS")
            return self._git(rules, frozenset(SCHEMES if schemes is None else schemes))
        rules = HostRules.parse(hosts or (), setting="RUNNER_LOGIC_HOSTS")
        return self._git(rules, frozenset(("https",) if schemes is None else schemes))

    def _git(self, hosts: HostRules | None, schemes: frozenset[str]) -> GitLogic:
        env, tokens = process_environment(), parse_tokens(self.settings.logic_tokens)
        secrets = self.secrets if tokens else None
        return GitLogic(
            self.settings.cache / "git",
            self.objects,
            remotes=Remotes(schemes=schemes, hosts=hosts, tokens=tokens, secrets=secrets, env=env),
            env=env,
            cache_bytes=self.settings.git_cache_mib * 1024**2,
        )

    @cached_property
    def packages(self) -> DbtPackages:
        hosts = HostRules.parse(self.package_hosts, setting="RUNNER_PACKAGE_HOSTS")
        git = self._git(hosts, frozenset({"https", "http"}))
        return DbtPackages(self.objects, git, hub=self.settings.package_hub, allowed=hosts, fetch=self._fetch_package)

    def _fetch_package(self, source: Source, scratch: Path) -> Path:
        from runner.adapters.http_source import HttpExtract

        hosts = HostRules.parse(self.package_hosts, setting="RUNNER_PACKAGE_HOSTS")
        extract = HttpExtract(hosts, clock=self.clock, max_bytes=MAX_ARCHIVE_BYTES)
        return extract.fetch(source, scratch, timeout_s=FETCH_S, say=lambda told: logger.debug("%s", told.message))

    @cached_property
    def tables(self) -> IcebergTables:
        from runner.adapters.iceberg_tables import IcebergTables, glue_catalog, sql_catalog

        bucket = self.settings.bucket
        if self.settings.catalog == "glue":
            return IcebergTables(glue_catalog(bucket=bucket, aws=self.aws.properties), bucket=bucket)
        catalog = sql_catalog(self.ledger_url, bucket=bucket, aws=self.aws.properties)
        return self._closing(IcebergTables(catalog, bucket=bucket))

    @cached_property
    def client(self) -> Client:
        return Client(
            ledger=self.ledger,
            objects=self.objects,
            queue=self.queue,
            logic=self.logic,
            working_trees=WorkingTrees(
                self.objects,
                scratch=self.settings.cache,
                besides=self.settings.home,
                env=process_environment() | home_environment(),
            ),
            clock=self.clock,
            new_run_id=new_run_id,
            production_ref=self.settings.production_ref,
        )

    @cached_property
    def rebuild(self) -> Rebuild:
        return Rebuild(
            ledger=self.ledger, objects=self.objects, queue=self.queue, tables=self.settings.catalog == "sql"
        )

    @cached_property
    def letters(self) -> SqsDeadLetters:
        return SqsDeadLetters(self.aws.sqs(), self.settings.queue_prefix)

    @cached_property
    def redrive(self) -> Redrive:
        return Redrive(letters=self.letters, ledger=self.ledger, queue=self.queue, runs=self.client)

    @cached_property
    def reconcile(self) -> Reconcile:
        return Reconcile(
            ports=self.ports,
            ledger=self.ledger,
            queue=self.queue,
            letters=self.letters,
            leftovers=Leftovers(ledger=self.ledger, objects=self.objects, datasets=self.datasets),
        )

    # ------------------------------------------------------------ the worker

    def worker(self) -> Worker:
        """Raises `SpecError` for settings that no job could run with, before the first one is taken."""
        HostRules.parse(self.source_hosts)
        return Worker(self.ports, self.queue, lease_s=self.settings.lease_s, idle=self.reconcile.quick)

    @cached_property
    def ports(self) -> Ports:
        return Ports(
            ledger=self.ledger,
            objects=self.objects,
            logic=self.logic,
            packages=self.packages,
            secrets=self.secrets,
            datasets=self.datasets,
            engine=self.engine,
            production_ref=self.settings.production_ref,
            software=Software(runner=__version__, python=platform.python_version(), packages={}),
            scratch=self.settings.home / "scratch",
            worker=f"{socket.gethostname()}:{os.getpid()}",
        )

    def datasets(self, dataset: str) -> IcebergTables | S3Prefixes:
        return self.tables if is_table(dataset) else self.prefixes

    @cached_property
    def prefixes(self) -> S3Prefixes:
        return S3Prefixes(self.objects, self.clock)

    def engine(self, stage: Stage) -> Engine:
        """Extract is declarative and talks to its hosts itself; analysts' logic gets a child process."""
        if stage not in self._engines:
            self._engines[stage] = self._engine(stage)
        return self._engines[stage]

    def _engine(self, stage: Stage) -> Engine:
        if stage is Stage.EXTRACT:
            from runner.adapters.http_source import HttpExtract

            return HttpExtract(HostRules.parse(self.source_hosts), clock=self.clock)
        from runner.adapters.sandbox_engine import SandboxEngine
        from runner.sandbox.nursery import Nursery

        account = _account(self.settings.child_uids)
        path = process_environment().get("PATH", os.defpath)
        nursery = Nursery(WORK_OF_STAGE[stage], scratch=self.ports.scratch, account=account, path=path)
        return SandboxEngine(
            nursery,
            self.objects,
            account=account,
            cache=self.settings.cache,
            max_input_bytes=self.settings.input_cache_mib * 1024**2,
        )

    @property
    def walls(self) -> Walls:
        """What would keep a job's code in here. Raises `InfrastructureError` where nothing would."""
        from runner.sandbox.walls import require

        support = require()
        account = _account(self.settings.child_uids)
        return Walls(landlock=support.landlock, account="own" if account else "worker")

    @cached_property
    def source_hosts(self) -> tuple[str, ...]:
        """The configured hosts; and the embedded portal, by its address and port and no other."""
        return self.settings.source_hosts + self._portal

    @cached_property
    def package_hosts(self) -> tuple[str, ...]:
        return self.settings.package_hosts + self._portal

    @cached_property
    def _portal(self) -> tuple[str, ...]:
        return (self.embedded.portal_url.removeprefix("http://"),) if self.embedded else ()

    def prepare(self) -> list[str]:
        """Make what the embedded services need once: the ledger's tables, the bucket, the queues.

        On AWS the bucket and queues are the deployment's, and the ledger's tables are `runner ledger migrate`'s.
        """
        applied = self.ledger.migrate()
        self.objects.create_bucket()
        for stage in Stage:
            self.queue.create(stage)
        return applied


@cache
def _account(uids: str) -> Account | None:
    """Whom this process's jobs run as, for as long as it lives: they run one after the other."""
    first, last = map(int, uids.split("-"))
    accounts = Accounts(range(first, last + 1))
    atexit.register(accounts.close)
    return accounts.take()


def new_run_id() -> UUID:
    """UUIDv7 (RFC 9562): the first 48 bits are the time, so ids sort as they were drawn."""
    import uuid_utils

    return UUID(bytes=uuid_utils.uuid7().bytes)
