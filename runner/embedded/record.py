"""What is known of the embedded services from one command to the next: `<home>/services.json`."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field

from runner.embedded.processes import ProcessIdentity, is_alive
from runner.model.errors import InfrastructureError
from runner.model.strict import Strict, parse_json

ServiceName = Literal["postgres", "emulator", "portal"]


class ServiceRecord(Strict):
    """A service's port, kept when it stops, and its process."""

    port: int
    process: ProcessIdentity | None = None


class ServicesRecord(Strict):
    """The content of services.json."""

    record_version: Literal[1] = 1
    home: str
    postgres_folder: str | None = None
    """The folder with the cluster's data and password."""
    postgres_outside: str | None = None
    """A folder beyond `home` that PostgreSQL needed, for `down` to purge."""
    services: dict[ServiceName, ServiceRecord] = Field(default={})

    def process(self, name: ServiceName) -> ProcessIdentity | None:
        """The service's process, if it is alive."""
        service = self.services.get(name)
        return service.process if service and service.process and is_alive(service.process) else None


@contextmanager
def exclusive(home: Path, progress: Callable[[str], None]) -> Iterator[Path]:
    """Within: no other `up` or `down` is at work on `home`, which is made if it is not there.

    Yields its resolved path. Raises `InfrastructureError` if the system refuses a file, there or within.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / "services.lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("waiting for another `runner up` or `runner down` to end")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield home.resolve()
    except OSError as exc:
        raise InfrastructureError(
            f"embedded services: expected to keep their state in {home}, got {exc}",
            hint="mend the folder's permissions or space, or set RUNNER_HOME to another",
        ) from exc


def read(home: Path) -> ServicesRecord | None:
    """The record, or None if there is none. Raises `InfrastructureError` if it is another user's, or cannot be read."""
    path = _path(home)
    try:
        owner, raw = path.stat().st_uid, b""
        if owner == os.geteuid():
            raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except PermissionError as exc:
        raise InfrastructureError(
            f"embedded services: expected to read {path}, got {exc.strerror}",
            hint="run as the folder's owner, or set RUNNER_HOME to a folder of your own",
        ) from exc
    if owner != os.geteuid():
        # It names processes to signal and folders to remove: root must not do to them what another user wrote down.
        raise InfrastructureError(
            f"embedded services: expected {path} to belong to user {os.geteuid()}, got one of user {owner}",
            hint="run as that user, or set RUNNER_HOME to a folder of your own",
        )
    record = parse_json(ServicesRecord, raw, what=str(path), error=InfrastructureError)
    # A folder that was copied has a record of the original's processes; one that was moved has its own.
    copied = record.home != str(home) and _path(Path(record.home)).exists()
    return None if copied else record.model_copy(update={"home": str(home)})


def write(record: ServicesRecord) -> None:
    """Replace the record, whole or not at all, readable for its owner only."""
    home = Path(record.home)
    # mkstemp makes it 0600, under a name that nobody could have prepared.
    descriptor, name = tempfile.mkstemp(prefix="services.", suffix=".json", dir=home)
    with os.fdopen(descriptor, "w") as file:
        file.write(record.to_json())
    Path(name).replace(_path(home))


def remove(home: Path) -> None:
    _path(home).unlink(missing_ok=True)


def _path(home: Path) -> Path:
    return home / "services.json"
