"""git's objects: how the command is run, what may be in a commit, and where commits are kept for good."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from runner.model.errors import InfrastructureError, LogicError, RateLimitError, RunnerError, SpecError

MAX_PATH_CHARS = 1000
"""Of a path in a commit. It bounds the depth of folders too, which a tree's hash descends."""

COMMIT = re.compile(r"[0-9a-f]{40}")
SCHEMES = frozenset({"https", "http", "file"})

_ADDRESS = re.compile(r"(?:(?P<scheme>[a-z]+)://(?P<host>[A-Za-z0-9_.:\[\]-]*))?/.+")
"""No user or password: addresses are recorded. No `-…` and no `name::…`: git takes them for commands."""

_ANSWER = re.compile(
    r"not our ref|unadvertised object|repository '.*' not found|does not appear to be a git repository"
    r"|is this a git repository|could not read (Username|Password)|Authentication failed|dubious ownership"
    r"|returned error: 4(?!07|08)\d\d"
)
"""git exits with 128 whatever happened, so its words (English, by LC_ALL) must say who failed. These mean
that the repository was reached and would say the same again; all others that it was not."""


# ---------------------------------------------------------------- addresses


def check_address(repo: str, schemes: frozenset[str] = SCHEMES) -> None:
    """Raise `SpecError` unless `repo` is an absolute path or a URL of an allowed scheme, with no password."""
    address = _ADDRESS.fullmatch(repo)
    scheme, host = (address["scheme"] or "file", address["host"]) if address else ("", "")
    if scheme not in schemes or (scheme == "file") is bool(host) or not repo.isprintable():
        expected = f"a URL ({', '.join(sorted(schemes))}) without user and password, or an absolute path"
        shown = re.sub(r"^([a-z]+://)?.*@", r"\1…@", repo)
        raise SpecError(f"logic.repo: expected {expected}, got {shown!r}", subject="logic.repo")


def short_hash(repo: str) -> str:
    """What a repository's cache and archive are called."""
    return hashlib.sha256(repo.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- the archive


class LogicArchive(Protocol):
    """Keeps the packed objects of every commit checked out, for the day when its repository has lost them."""

    def exists(self, key: str) -> bool: ...

    def put_if_absent(self, key: str, body: bytes) -> bool:
        """False if another body is there."""

    def put_file(self, key: str, path: Path) -> None: ...

    def get_file(self, key: str, path: Path) -> None:
        """Raises `FileNotFoundError` if there is no such key."""


def archive_key(repo: str, commit: str) -> str:
    """Where the archive keeps a commit's objects."""
    return f"logic/{short_hash(repo)}/{commit}.pack"


def production_key(repo: str, commit: str, ref: str) -> str:
    """Where the archive remembers that the production ref `ref` has contained a commit."""
    return f"logic/{short_hash(repo)}/{commit}.production/{ref}"


class _Packs(Protocol):
    """git in the store that has the objects."""

    def __call__(self, *arguments: str, stdin: IO[bytes], stdout: IO[bytes]) -> None: ...


def archive_commit(
    archive: LogicArchive, repo: str, commit: str, oids: Sequence[str], *, git: _Packs, scratch: Path
) -> None:
    """Put a commit into the archive, unless it is there: `oids` are the commit, its trees and its files."""
    key = archive_key(repo, commit)
    if archive.exists(key):
        return
    with tempfile.TemporaryDirectory(dir=scratch) as folder, lines_for_git(oids, scratch) as wanted:
        pack = Path(folder, "pack")
        with pack.open("wb") as out:
            git("pack-objects", "--quiet", "--stdout", stdin=wanted, stdout=out)
        archive.put_file(key, pack)


# ---------------------------------------------------------------- the command


class GitCommand:
    """The command `git` with this environment, and no other. Any one run of it may take `timeout_s`."""

    OPTIONS = (
        # Few objects would be unpacked one by one: killed midway, a commit is there without its files.
        "-c", "fetch.unpackLimit=1",
        # Nothing may be at work in a store in the background, without our lock.
        "-c", "gc.auto=0", "-c", "maintenance.auto=false",
        # A fetch that outlives a killed worker holds its lock: one that hangs has to end by itself.
        "-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=60",
        # A repository's own programs are for people at work in it.
        "-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false",
    )  # fmt: skip

    def __init__(self, env: Mapping[str, str], *, timeout_s: float) -> None:
        self.env = {"PATH": os.defpath, **env, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
        self.timeout_s = timeout_s

    def run(
        self,
        *arguments: str,
        about: str,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        holding: IO[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> bytes:
        """Run it for its output. `about` begins the message if it fails; `holding` stays open in git too."""
        try:
            git = subprocess.Popen(
                ["git", *self.OPTIONS, *arguments],
                stdin=stdin or subprocess.DEVNULL,
                stdout=stdout or subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**self.env, **(env or {})},
                cwd="/",
                pass_fds=[holding.fileno()] if holding else [],
                start_new_session=True,  # so that its children can be ended with it
            )
        except FileNotFoundError as exc:
            raise InfrastructureError(f"git: expected the command in {self.env['PATH']}, got none") from exc
        try:
            output, words = git.communicate(timeout=self.timeout_s)
        except BaseException as exc:  # Ctrl-C too, which does not reach another session
            with suppress(ProcessLookupError):
                os.killpg(git.pid, signal.SIGKILL)
            git.communicate()
            if isinstance(exc, subprocess.TimeoutExpired):
                raise InfrastructureError(f"{about}, got no answer within {self.timeout_s:g} s") from exc
            raise
        if git.returncode != 0:
            raise _failure(about, words.decode(errors="replace"))
        return output or b""


def _failure(about: str, words: str) -> RunnerError:
    lines = ["".join(each if each.isprintable() else " " for each in line)[:300] for line in words.splitlines()]
    # The first one: what follows ("Could not read from remote repository.") only comes of it.
    reason = next((line for line in lines if line.startswith(("fatal: ", "error: "))), "a failure without words")
    hint = next((line for line in reversed(lines) if line.startswith("remote: ")), None)
    error: type[RunnerError] = LogicError if _ANSWER.search(reason) else InfrastructureError
    if "returned error: 429" in reason:
        error = RateLimitError
    return error(f"{about}, got {reason.removeprefix('fatal: ')}", hint=hint)


@contextmanager
def lines_for_git(oids: Sequence[str], scratch: Path) -> Iterator[IO[bytes]]:
    """A file for git to read: on a pipe, git and this process could come to wait for each other."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        file.writelines(f"{oid}\n".encode() for oid in oids)
        file.seek(0)
        yield file


# ---------------------------------------------------------------- what is in a commit

_KINDS = {
    "100644": "a file",
    "100755": "a file",
    "120000": "a symlink",
    "040000": "a folder",
    "160000": "a submodule",
}


class Entry(NamedTuple):
    """A path of a commit."""

    mode: str
    oid: str
    path: str

    @property
    def kind(self) -> str:
        return _KINDS.get(self.mode, f"mode {self.mode}")

    def check(self, about: str) -> None:
        """Raise `LogicError` for what no workspace may hold."""
        names = self.path.split("/")
        if self.kind not in ("a file", "a symlink", "a folder"):
            message = f"{about}: expected only files, folders and symlinks, got {self.kind} at {self.path!r}"
            raise LogicError(message, subject=self.path)
        if len(self.path) > MAX_PATH_CHARS or any(name.lower() in ("", ".", "..", ".git") for name in names):
            expected = f"paths of at most {MAX_PATH_CHARS} characters without '..' or '.git'"
            raise LogicError(f"{about}: expected {expected}, got {self.path!r}", subject=self.path)


LS_TREE = ("ls-tree", "-r", "-t", "-z", "--full-tree")
"""Lists what `entries_of` reads."""


def entries_of(listed: bytes) -> list[Entry]:
    """Every file and folder of a commit, each folder before what is in it."""
    lines = (line.partition("\t") for line in os.fsdecode(listed).split("\0")[:-1])
    return [Entry(mode=head[:6], oid=head[-40:], path=path) for head, _, path in lines]


@contextmanager
def disk_faults() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise InfrastructureError(f"{exc.filename}: expected to read and write there, got {exc.strerror}") from exc
