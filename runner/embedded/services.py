"""`runner up` and `runner down`: the services that a laptop needs, as processes whose state stays under one folder.

Everything listens on 127.0.0.1. Ports are kept from one `up` to the next while they are free. Where one has been taken
another is found, and `endpoints` tells the new address: of what they store themselves nothing holds a port, so
it is only what their users wrote down (a spec's URL of the portal or of a repository there) that names the old one.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from runner.embedded import emulator, portal, postgres, record
from runner.embedded.processes import ProcessIdentity, has_ended, last_lines, send_signal, spawn, wait_until
from runner.embedded.record import ServiceName, ServiceRecord, ServicesRecord
from runner.model.errors import InfrastructureError

READY_WITHIN_S = 60.0
"""Long enough for PostgreSQL to recover after a power cut."""
STOP_WITHIN_S = 30.0
"""The emulator waits some seconds for open requests, then saves its state."""

_NAMES: tuple[ServiceName, ...] = ("emulator", "portal", "postgres")
_STOP_SIGNALS: Mapping[ServiceName, signal.Signals] = {
    "portal": signal.SIGTERM,
    "emulator": signal.SIGTERM,
    "postgres": postgres.STOP_SIGNAL,
}
_PAUSES_S = (0.0, 0.1, 0.2, 0.4, 0.8)
"""Before each launch of a service that ends at once: a killed PostgreSQL's children go on until their queries end."""
_PORTS = range(20_000, 30_000)
"""Below the ports that systems give to outgoing connections, which could take one while the services are down."""


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Where the embedded services are, and the keys to them."""

    ledger_url: SecretStr
    aws_endpoint_url: str
    aws_region: str
    aws_access_key_id: str
    aws_secret_access_key: str
    portal_url: str
    portal_data: Path
    """What is in here the portal serves at `portal_url`/."""
    portal_git: Path
    """A bare repository here is served at `portal_url`/git/<name>.git."""


@dataclass(frozen=True, kw_only=True)
class ServiceStatus:
    """A service as `runner doctor` shows it."""

    name: ServiceName
    state: Literal["running", "silent", "stopped"]
    """silent: its process is there and does not answer."""
    pid: int | None
    url: str | None
    """Without user and password; None if it has never run."""
    log: Path


def up(home: Path, *, emulator_bin: Path, progress: Callable[[str], None], durable: bool = True) -> Endpoints:
    """Start what does not run, wait until all of it answers, and say where it is.

    Safe to call at any time, and from several processes at once. `durable=False` lets PostgreSQL lose data in a power
    cut, for tests. Raises `InfrastructureError` naming the service, the end of its log, and what to do.
    """
    with record.exclusive(home, progress) as home:
        _Startup(home, emulator_bin.absolute(), progress, durable).run()
        found = endpoints(home)
    if found is None:
        raise InfrastructureError(
            f"embedded services: expected all of them to stay up, got the end of one; their logs are in {_logs(home)}",
            hint="`runner up` starts it again",
        )
    return found


def down(home: Path, *, purge: bool = False) -> None:
    """Stop what runs, and wait until it has saved its state. `purge` removes data, logs and record as well.

    Raises `InfrastructureError` if a service does not stop.
    """
    if not home.exists():
        return
    with record.exclusive(home, lambda _: None) as home:
        known = record.read(home)
        if known is not None:
            _stop(home, known)
        if purge:
            _purge(home, known)


def status(home: Path) -> list[ServiceStatus]:
    """Each service: whether it runs and answers, where it is, and where its log is."""
    home = home.resolve()
    known = record.read(home) or ServicesRecord(home=str(home))
    return [_status(home, known, name) for name in _NAMES]


def endpoints(home: Path) -> Endpoints | None:
    """Where the services are, or None unless all of them run."""
    home = home.resolve()
    known = record.read(home)
    if known is None or known.postgres_folder is None or not all(map(known.process, _NAMES)):
        return None
    return Endpoints(
        ledger_url=postgres.url(Path(known.postgres_folder), port=known.services["postgres"].port),
        aws_endpoint_url=_http(known.services["emulator"].port),
        aws_region=emulator.REGION,
        aws_access_key_id=emulator.ACCESS_KEY_ID,
        aws_secret_access_key=emulator.SECRET_ACCESS_KEY,
        portal_url=_http(known.services["portal"].port),
        portal_data=_portal_data(home),
        portal_git=_portal_git(home),
    )


class _Startup:
    """One `up`. The record is written after each step, so that whatever cuts it short leaves no process unknown."""

    def __init__(self, home: Path, emulator_bin: Path, progress: Callable[[str], None], durable: bool) -> None:
        self._home = home
        self._emulator_bin = emulator_bin
        self._progress = progress
        self._durable = durable
        self._known = record.read(home) or ServicesRecord(home=str(home))

    def run(self) -> None:
        for folder in (_portal_data(self._home), _portal_git(self._home)):
            folder.mkdir(parents=True, exist_ok=True)
        # All are started before the first is waited for.
        for name in _NAMES:
            if self._known.process(name) is None:
                self._launch(name)
        for name in _NAMES:
            self._await(name)

    def _launch(self, name: ServiceName) -> None:
        before = self._known.services.get(name)
        if before and before.process:
            kept = " (queues and settings of buckets are those of its last orderly stop)" if name == "emulator" else ""
            self._progress(f"{name} had ended by itself{kept}")
        port = before.port if before and _is_free(before.port) else _free_port(self._home, name)
        launchers = {"emulator": self._emulator, "portal": self._portal, "postgres": self._postgres}
        launched = ServiceRecord(port=port, process=launchers[name](port))
        self._note(services={**self._known.services, name: launched})

    def _await(self, name: ServiceName) -> None:
        for pause_s in _PAUSES_S:
            if self._known.process(name) is None:
                time.sleep(pause_s)
                self._launch(name)
            wait_until(partial(self._settled, name), within_s=READY_WITHIN_S)
            if _answers(self._home, self._known, name):
                return
            if self._known.process(name):
                break
        log, port = _log(self._home, name), self._known.services[name].port
        came = "silence" if self._known.process(name) else "its end"
        raise InfrastructureError(
            f"{name}: expected an answer on 127.0.0.1:{port} within {READY_WITHIN_S:.0f} s, got {came}; "
            f"its log ends: {last_lines(log)}",
            hint=f"the whole log is {log}; `runner down`, then `runner up`, starts anew",
        )

    def _settled(self, name: ServiceName) -> bool:
        return self._known.process(name) is None or _answers(self._home, self._known, name)

    def _emulator(self, port: int) -> ProcessIdentity:
        self._progress("starting the AWS emulator")
        folder, log = _emulator_folder(self._home), _log(self._home, "emulator")
        return emulator.start(folder, program=self._emulator_bin, port=port, log=log)

    def _portal(self, port: int) -> ProcessIdentity:
        self._progress("starting the data portal")
        log = _log(self._home, "portal")
        folders = ["--root", str(_portal_data(self._home)), "--git", str(_portal_git(self._home))]
        # -P: the folder that a command was started in must not come before the installed packages.
        argv = [sys.executable, "-P", "-m", portal.__name__, *folders, "--port", str(port), "--log", str(log)]
        return spawn(argv, log=log)

    def _postgres(self, port: int) -> ProcessIdentity:
        outside = self._known.postgres_outside
        cluster = postgres.settle(self._home, recorded=Path(outside) if outside else None)
        outside = str(cluster.outside) if cluster.outside else None
        self._note(postgres_folder=str(cluster.folder), postgres_outside=outside)
        first = "" if cluster.data.exists() else " for the first time: creating its data"
        self._progress(f"starting PostgreSQL{first}")
        postgres.initialise(cluster, durable=self._durable)
        return postgres.start(cluster, port=port, log=_log(self._home, "postgres"), durable=self._durable)

    def _note(self, **facts: object) -> None:
        self._known = self._known.model_copy(update=facts)
        record.write(self._known)


def _stop(home: Path, known: ServicesRecord) -> None:
    running = {name: process for name in _STOP_SIGNALS if (process := known.process(name))}
    for name, process in running.items():
        send_signal(process, _STOP_SIGNALS[name])
    for name, process in running.items():
        if not wait_until(partial(has_ended, process), within_s=STOP_WITHIN_S):
            raise InfrastructureError(
                f"{name}: expected process {process.pid} to stop within {STOP_WITHIN_S:.0f} s, got it running still",
                hint=f"read {_log(home, name)}; `kill -9 {process.pid}` ends it, without saving its state",
            )
    stopped = {name: ServiceRecord(port=service.port) for name, service in known.services.items()}
    record.write(known.model_copy(update={"services": stopped}))


def _purge(home: Path, known: ServicesRecord | None) -> None:
    recorded = Path(known.postgres_outside) if known and known.postgres_outside else None
    outside = postgres.find_outside(home, recorded=recorded)
    folders = [home / "postgres", _emulator_folder(home), home / "portal", _logs(home), *([outside] if outside else [])]
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
    record.remove(home)


def _status(home: Path, known: ServicesRecord, name: ServiceName) -> ServiceStatus:
    service, process = known.services.get(name), known.process(name)
    scheme = "postgresql" if name == "postgres" else "http"
    return ServiceStatus(
        name=name,
        state="stopped" if not process else "running" if _answers(home, known, name) else "silent",
        pid=process.pid if process else None,
        url=f"{scheme}://127.0.0.1:{service.port}" if service else None,
        log=_log(home, name),
    )


def _answers(home: Path, known: ServicesRecord, name: ServiceName) -> bool:
    process = known.process(name)
    if process is None:
        return False
    port = known.services[name].port
    match name:
        case "postgres":
            return postgres.answers(Path(known.postgres_folder or ""), process)
        case "emulator":
            return emulator.answers(_emulator_folder(home), port=port)
        case "portal":
            return portal.answers(port, pid=process.pid)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the services do: or a port would look taken for a minute after its last connection was closed.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port(home: Path, name: ServiceName) -> int:
    """The same one for the same folder, if it is free: addresses outlive even a lost record."""
    first = zlib.crc32(os.fsencode(home / name))
    for offset in range(len(_PORTS)):
        port = _PORTS[(first + offset) % len(_PORTS)]
        if _is_free(port):
            return port
    raise InfrastructureError(
        f"{name}: expected a free port from {_PORTS[0]} to {_PORTS[-1]} on 127.0.0.1, got none",
        hint="stop programs that listen there",
    )


def _http(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _logs(home: Path) -> Path:
    return home / "logs"


def _log(home: Path, name: ServiceName) -> Path:
    return _logs(home) / f"{name}.log"


def _emulator_folder(home: Path) -> Path:
    return home / "emulator"


def _portal_data(home: Path) -> Path:
    return home / "portal" / "data"


def _portal_git(home: Path) -> Path:
    return home / "portal" / "git"
