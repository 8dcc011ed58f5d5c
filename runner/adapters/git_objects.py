"""git's objects: how the command is run, what may be in a commit, and where commits are kept for good."""

from __future__ import annotations

import hashlib
import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, Protocol
from urllib.parse import unquote

from runner.model.errors import InfrastructureError, LogicError, RateLimitError, RunnerError, SpecError

MAX_PATH_CHARS = 1000
"""Of a path in a commit. It bounds the depth of folders too, which a tree's hash descends."""

MAX_ANSWER_BYTES = 64 * 1024**2
"""Of what git says where it is not written to a file: the other side decides how much that is."""
_KEPT_WORDS_BYTES = 64 * 1024

COMMIT = re.compile(r"[0-9a-f]{40}")
PORTS = {"https": 443, "http": 80}
SCHEMES = frozenset({*PORTS, "file"})

_ADDRESS = re.compile(
    r"(?:(?P<scheme>[a-z]+)://(?P<host>[A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?)?(?P<path>/.+)"
)
"""No user or password: addresses are recorded. No `-…` and no `name::…`: git takes them for commands."""

_UNAUTHORIZED = re.compile(r"could not read (Username|Password)|unable to read askpass|Authentication failed")
_REDIRECTED = re.compile(r"returned error: 3\d\d")
_FULL = re.compile(r"[Oo]ut of memory|unable to create thread")
_ANSWER = re.compile(
    r"not our ref|unadvertised object|repository '.*' not found|does not appear to be a git repository"
    r"|is this a git repository|dubious ownership|dumb http transport"
    r"|returned error: 4(?!07|08)\d\d"
)
"""git exits with 128 whatever happened, so its words (English, by LC_ALL) must say who failed. These mean
that the repository was reached and would say the same again; all others that it was not."""


# ---------------------------------------------------------------- addresses


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a repository is. `host` is as it was written, without the brackets of IPv6; "" for the file system."""

    url: str
    scheme: str
    host: str
    port: int


def parse_address(repo: str, schemes: frozenset[str] = SCHEMES) -> Address:
    """Raise `SpecError` unless `repo` is an absolute path or a URL of these schemes, and nothing hides in it."""
    found = _ADDRESS.fullmatch(repo)
    if found and repo.isprintable():
        scheme, host, path = found["scheme"] or "file", found["host"] or "", found["path"]
        if scheme in schemes and _is_plain(scheme, path) and (scheme == "file") is not bool(host):
            port = int(found["port"] or PORTS.get(scheme, 0))
            if port < 65536 and not (scheme == "file" and found["port"]):
                return Address(url=repo, scheme=scheme, host=host.strip("[]"), port=port)
    expected = (
        f"a URL ({', '.join(sorted(schemes))}) without user and password, without query and '..', or an absolute path"
    )
    raise SpecError(f"logic.repo: expected {expected}, got {_shown(repo[:200])!r}", subject="logic.repo")


def _shown(repo: str) -> str:
    """Without what may be a password: before an @, in place of a port, or after the path."""
    for secret, blank in ((r"^([a-z]+://)?.*@", r"\1…@"), (r"^([a-z]+://[^/:]*:)[^/]*", r"\1…"), (r"([?#]).*", r"\1…")):
        repo = re.sub(secret, blank, repo, flags=re.DOTALL)
    return repo


def _is_plain(scheme: str, path: str) -> bool:
    """Whether it means the same to git, to curl, to a server and to a reader: `%2e%2e` is `..` to some of them."""
    decoded = unquote(path)
    climbs = any(part in (".", "..") for part in re.split(r"[/\\]", decoded))
    # `//host/share` is another machine to some systems, and a second host to a hasty reader of a URL.
    crooked = path.startswith("//") or (scheme != "file" and re.search(r"[?#\\]", path))
    return not (climbs or crooked) and decoded.isprintable()


def check_address(repo: str, schemes: frozenset[str] = SCHEMES) -> None:
    """Raise `SpecError` unless `repo` is an address that may be recorded."""
    parse_address(repo, schemes)


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


class Unauthorized(LogicError):
    """The server wants to know who asks, or did not believe it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a git that talks to a server may take: a server can send without end."""

    file_bytes: int
    """Of any one file that it writes."""
    memory_bytes: int = 1024**3


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

    def __init__(self, env: Mapping[str, str], *, timeout_s: float, options: Sequence[str] = ()) -> None:
        self.env = {"PATH": os.defpath, **env, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
        self.timeout_s = timeout_s
        self._options = (*self.OPTIONS, *options)

    def run(
        self,
        *arguments: str,
        about: str,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        holding: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        hidden: Sequence[str] = (),
    ) -> bytes:
        """Run it for its output. `about` begins the message if it fails; the descriptors `holding` stay open in git
        too; what is `hidden` is in no message, whoever repeats it.
        """
        try:
            git = subprocess.Popen(
                [*_under(limits), *self._options, *arguments],
                stdin=stdin or subprocess.DEVNULL,
                stdout=stdout or subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**self.env, **(env or {})},
                cwd="/",
                pass_fds=holding,
                start_new_session=True,  # so that its children can be ended with it
            )
        except FileNotFoundError as exc:
            raise self._no_git() from exc
        try:
            output, words = _drained(git, time.monotonic() + self.timeout_s)
        except BaseException as exc:  # Ctrl-C too, which does not reach another session
            with suppress(ProcessLookupError):
                os.killpg(git.pid, signal.SIGKILL)
            git.communicate()
            if isinstance(exc, TimeoutError):
                raise InfrastructureError(f"{about}, got no answer within {self.timeout_s:g} s") from exc
            if isinstance(exc, _TooMuch):
                message = f"{about}, got an answer of more than {MAX_ANSWER_BYTES // 1024**2} MiB"
                raise LogicError(message) from exc
            raise
        if git.returncode == _NOT_FOUND and limits:
            raise self._no_git()
        if git.returncode != 0:
            said = words.decode(errors="replace")
            if len(words) >= _KEPT_WORDS_BYTES:  # the last line was cut, and what is hidden may have been cut with it
                said = said.rpartition("\n")[0]
            for secret in hidden:
                said = said.replace(secret, "…")
            if git.returncode == -signal.SIGXFSZ and limits:
                raise too_large(about, limits)
            raise _failure(about, said, limits)
        return output

    def _no_git(self) -> InfrastructureError:
        return InfrastructureError(f"git: expected the command in {self.env['PATH']}, got none")


_NOT_FOUND = 127
_LIMITED = 'ulimit -f "$0" 2>/dev/null; ulimit -d "$1" 2>/dev/null; shift; exec git "$@"'


def _under(limits: Limits | None) -> list[str]:
    # By a shell, since Python can set limits only between fork and exec, where a thread's lock may be held for ever.
    # POSIX counts files in blocks of 512 bytes; where a limit cannot be set (or is lower already) git runs without.
    if limits is None:
        return ["git"]
    return ["/bin/sh", "-c", _LIMITED, str(limits.file_bytes // 512), str(limits.memory_bytes // 1024)]


class _TooMuch(Exception):
    """More output than is kept."""


def _drained(git: subprocess.Popen[bytes], ends_at_s: float) -> tuple[bytes, bytes]:
    """What it wrote, when it is over: of its words no more than anybody would read. Raises `TimeoutError`."""
    kept: dict[int, bytearray] = {}
    with selectors.DefaultSelector() as open_:
        pipes = [pipe for pipe in (git.stdout, git.stderr) if pipe]
        for pipe in pipes:
            open_.register(pipe, selectors.EVENT_READ)
            kept[pipe.fileno()] = bytearray()
        words = pipes[-1].fileno()
        while open_.get_map():
            left_s = ends_at_s - time.monotonic()
            ready = open_.select(left_s) if left_s > 0 else []
            if not ready and time.monotonic() >= ends_at_s:
                raise TimeoutError
            for key, _ in ready:
                if not (chunk := os.read(key.fd, 1 << 16)):
                    open_.unregister(key.fileobj)
                elif key.fd != words:
                    kept[key.fd] += chunk
                elif len(kept[words]) < _KEPT_WORDS_BYTES:
                    kept[words] += chunk
                if key.fd != words and len(kept[key.fd]) > MAX_ANSWER_BYTES:
                    raise _TooMuch
    try:
        git.wait(max(ends_at_s - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired as exc:
        raise TimeoutError from exc
    said = bytes(kept.pop(words))
    for pipe in pipes:
        pipe.close()
    return bytes(next(iter(kept.values()), b"")), said


def too_large(about: str, limits: Limits) -> LogicError:
    message = f"{about}, got more than {limits.file_bytes // 1024**2:,} MiB"
    return LogicError(message, hint="RUNNER_GIT_CACHE_MIB is what the cache may hold, and so one fetch")


def _failure(about: str, words: str, limits: Limits | None) -> RunnerError:
    lines = ["".join(each if each.isprintable() else " " for each in line)[:300] for line in words.splitlines()]
    # The first one: what follows ("Could not read from remote repository.") only comes of it.
    reason = next((line for line in lines if line.startswith(("fatal: ", "error: "))), "a failure without words")
    hint = next((line for line in reversed(lines) if line.startswith("remote: ")), None)
    message = f"{about}, got {reason.removeprefix('fatal: ')}"
    if limits and _FULL.search(reason):
        return LogicError(f"{about}, got more than git can hold in {limits.memory_bytes // 1024**2:,} MiB of memory")
    if "returned error: 429" in reason:
        return RateLimitError(message, hint=hint)
    if _UNAUTHORIZED.search(reason):
        return Unauthorized(message, hint=hint)
    if _REDIRECTED.search(reason):
        return LogicError(message, hint="redirects are not followed: name the address that this one leads to")
    error: type[RunnerError] = LogicError if _ANSWER.search(reason) else InfrastructureError
    return error(message, hint=hint)


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
_MAX_NAME_BYTES = 255
"""https://man7.org/linux/man-pages/man0/limits.h.0p.html: NAME_MAX, of file systems at large."""
WELL_FORMED = (
    f"paths of at most {MAX_PATH_CHARS} characters and names of at most {_MAX_NAME_BYTES} bytes, "
    "without '..' or '.git' or control characters"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# What HFS+ leaves out of names (git's own list, in utf8.c): there, `.g<one of these>it` is `.git`.
_IGNORED_BY_HFS = dict.fromkeys(
    [*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF], None
)  # fmt: skip
_GIT_ELSEWHERE = re.compile(r"(\.git|git~[0-9]+)[. ]*(:.*)?", re.DOTALL)
"""How `.git` may be written on NTFS: by its short name, with dots, blanks or a stream after it."""


class Entry(NamedTuple):
    """A path of a commit."""

    mode: str
    oid: str
    path: str

    @property
    def kind(self) -> str:
        return _KINDS.get(self.mode, f"mode {self.mode}")

    def check(self, about: str) -> None:
        """Raise `LogicError` for what no workspace may hold, on this system or on another."""
        shown = shorten(self.path)
        if self.kind not in ("a file", "a symlink", "a folder"):
            message = f"{about}: expected only files, folders and symlinks, got {self.kind} at {shown!r}"
            raise LogicError(message, subject=shown)
        if len(self.path) > MAX_PATH_CHARS or any(_is_crooked(name) for name in self.path.split("/")):
            raise LogicError(f"{about}: expected {WELL_FORMED}, got {shown!r}", subject=shown)


def _is_crooked(name: str) -> bool:
    plain = name.translate(_IGNORED_BY_HFS).casefold()
    too_long = len(os.fsencode(name)) > _MAX_NAME_BYTES
    return too_long or name in ("", ".", "..") or bool(_CONTROL.search(name) or _GIT_ELSEWHERE.fullmatch(plain))


def shorten(path: str) -> str:
    """A path as messages show it: whoever made it chose its length."""
    return path if len(path) <= 200 else f"{path[:200]}…"


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
