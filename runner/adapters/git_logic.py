"""The analysts' logic in git: names to commits, and a commit's exact files in a folder, by the `git` command.

Blobs are written by this module, byte for byte. `git checkout` would do as .gitattributes asks (line ends,
filters, ident, encodings), and `git archive` leaves out what is export-ignore: both are for working copies.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from runner.adapters.git_objects import (
    COMMIT,
    Address,
    Entry,
    GitCommand,
    Limits,
    LogicArchive,
    archive_key,
    disk_faults,
    parse_address,
    production_key,
    short_hash,
    too_large,
)
from runner.adapters.git_remote import Given, Remotes
from runner.adapters.git_snapshot import MAX_COMMITS, MAX_FILES, Damaged, Snapshot
from runner.model.errors import InfrastructureError, LogicError, RunnerError, SpecError
from runner.ports import Checkout

MAX_FILE_BYTES = 1024 * 1024
"""`read_file` is for pipeline files and contracts; what is larger is neither."""
CACHE_BYTES = 2048 * 1024**2

_REF = re.compile(r"(?!-)[^\x00-\x20\x7f~^:?*\[\\]{1,250}")
"""Roughly what git-check-ref-format(1) allows: enough that a name is never an option or a pattern."""

_WHOLE_COMMIT = ("--quiet", "--depth", "1", "--no-tags", "--no-recurse-submodules")
_HISTORY = ("--quiet", "--filter=tree:0", "--update-shallow", "--no-tags", "--no-recurse-submodules")
"""Commits without their files, where the server can leave them out; one that cannot sends all, with a warning."""

_OPTIONS = (
    # The list of hosts is for the address that the spec names: whom that one trusts is not asked.
    "-c", "http.followRedirects=false",
    # Passwords come from the configuration's own secrets, and go nowhere else.
    "-c", "credential.helper=",
    # A machine of many cores must not make of a small pack a matter of memory; nor a large file.
    "-c", "pack.threads=2", "-c", "core.bigFileThreshold=32m",
    # What is beside the packs to make them quicker is not proved by any hash.
    "-c", "core.commitGraph=false", "-c", "core.multiPackIndex=false",
)  # fmt: skip
_CONFIG = "[core]\n\trepositoryformatversion = 0\n\tbare = true\n"
_FOLDERS = frozenset({"objects", "refs"})
_FILES = frozenset({"packed-refs", "shallow"})

Origin = Literal["repository", "archive"]
_ORIGINS: tuple[Origin, ...] = ("repository", "archive")


class GitLogic:
    """Reads logic from git repositories, through a cache of each, which several processes may share.

    `env` reaches git as it is: PATH (else the system's default one), proxies, certificates. Any git command may
    take `timeout_s`. Raises `SpecError` for an address or a name that is none or not allowed, `LogicError` where a
    repository answered and has not what was asked for, `RateLimitError` or `InfrastructureError` where a retry may
    help. `remotes` says which repositories may be asked, and how.
    """

    def __init__(
        self,
        cache: Path,
        archive: LogicArchive,
        *,
        remotes: Remotes | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 120.0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._cache = cache.absolute()
        self._archive = archive
        self._remotes = remotes or Remotes(env=env)
        self._cache_bytes = cache_bytes
        # A server's pack that the cache could not hold would only be fetched to be dropped.
        self._limits = Limits(file_bytes=cache_bytes)
        self._archived: set[str] = set()
        self._command = GitCommand(
            {
                **(env or {}),
                "HOME": os.devnull,
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_CONFIG_GLOBAL": os.devnull,
                "GIT_NO_REPLACE_OBJECTS": "1",
                # What a store lacks is not sought by way of what the store itself says.
                "GIT_NO_LAZY_FETCH": "1",
                # Overrules protocol.*.allow, and binds redirects as well.
                "GIT_ALLOW_PROTOCOL": ":".join(sorted(self._remotes.schemes)),
            },
            timeout_s=timeout_s,
            options=_OPTIONS,
        )

    def resolve_ref(self, repo: str, ref: str) -> str:
        """The commit (40 hex digits) that a branch, a tag or these very digits name.

        Raises `SpecError` if a branch and a tag of that name differ, `LogicError` if there is neither.
        """
        if COMMIT.fullmatch(ref):
            with self._snapshot(repo, ref) as (snapshot, _):
                snapshot.head(ref, repo)
            return ref
        address = parse_address(repo)
        if not _REF.fullmatch(ref):
            expected = "a branch, a tag or a commit of 40 hex digits"
            raise SpecError(f"{repo}: expected {expected}, got {ref[:250]!r}", subject=ref[:250])
        names = [ref] if ref.startswith("refs/") else [f"refs/heads/{ref}", f"refs/tags/{ref}"]
        about = f"{repo}: expected a branch or tag {ref!r}"
        patterns = [*names, *(f"{name}^{{}}" for name in names)]
        listed = self._ask(address, "ls-remote", "--quiet", "--", repo, *patterns, about=about)
        lines = (line.partition("\t") for line in os.fsdecode(listed).splitlines())
        oids = {name: oid for oid, _, name in lines if COMMIT.fullmatch(oid)}
        # An annotated tag is an object of its own; `name^{}` is the commit that it stands for.
        commits = {oids.get(f"{name}^{{}}", oids[name]) for name in names if name in oids}
        if not commits:
            raise LogicError(f"{about}, got none", subject=ref, hint="A commit takes all of its 40 digits.")
        if len(commits) > 1:
            hint = f"Write {' or '.join(names)}."
            raise SpecError(f"{about}, got both, at different commits", subject=ref, hint=hint)
        return commits.pop()

    def reached(self, repo: str, commit: str, ref: str) -> bool:
        """Whether the branch or tag `ref` contains the commit, or once did when this was asked.

        A yes is kept in the archive: the branch may be force-pushed, or the repository vanish, before a rerun.
        Raises `LogicError` if there is no such ref, `InfrastructureError` if nobody answers and none is remembered.
        """
        address = self._address(repo, commit)
        remembered = production_key(repo, commit, ref)
        if remembered in self._archived or self._archive.exists(remembered):
            self._archived.add(remembered)
            return True
        if self._remotes.refusal(address):
            return False  # what somebody has in a folder of theirs is production's to nobody else
        try:
            tip = self.resolve_ref(repo, ref)
        except LogicError as error:
            if error.subject != ref:
                raise
            hint = "RUNNER_PRODUCTION_REF names the branch whose commits may publish to other than dev_ datasets"
            raise LogicError(error.message, subject=ref, hint=hint) from error
        if commit != tip and commit not in self._ancestors(repo, tip):
            return False
        self._archive.put_if_absent(remembered, f"{tip}\n".encode())
        return True

    def read_file(self, repo: str, commit: str, path: str) -> bytes:
        """A file of a commit, of at most `MAX_FILE_BYTES`. Raises `LogicError` if there is no such file."""
        about = f"{repo}: expected a file {path!r} of at most {MAX_FILE_BYTES:,} bytes in commit {commit}"
        with self._snapshot(repo, commit) as (snapshot, _):
            entries = {each.path: each for each in self._entries(snapshot, repo, commit)}
            entry = entries.get(str(PurePosixPath(path)))
            if entry is None or entry.kind != "a file":
                raise LogicError(f"{about}, got {entry.kind if entry else 'none'}", subject=path)
            if (size := snapshot.size(entry.oid)) > MAX_FILE_BYTES:
                raise LogicError(f"{about}, got {size:,}", subject=path)
            return snapshot.read(entry.oid)

    def list_files(self, repo: str, commit: str, folder: str) -> list[str]:
        """Paths of all files below a folder of a commit (its root: "."), sorted; none if it is absent."""
        with self._snapshot(repo, commit) as (snapshot, _):
            files = [entry.path for entry in self._entries(snapshot, repo, commit) if entry.kind == "a file"]
        return sorted(path for path in files if PurePosixPath(folder) in PurePosixPath(path).parents)

    def checkout(self, repo: str, commit: str, workspace: Path) -> Checkout:
        """Write a commit's files into `workspace` (empty or absent), verify them, and archive the commit.

        Raises `LogicError` for a submodule, a symlink out of the workspace, a path that no file may have, more files
        or bytes than a commit may have, and files that do not hash to the commit's tree; nothing is left of
        `workspace` then.
        """
        about = f"{repo} at {commit}"
        with self._snapshot(repo, commit) as (snapshot, origin):
            head = snapshot.head(commit, repo)
            entries = snapshot.entries(head.tree, about)
            for entry in entries:
                entry.check(about)
            if workspace.exists() and any(workspace.iterdir()):
                raise InfrastructureError(f"{workspace}: expected an empty folder, got one with files in it")
            try:
                _write(snapshot, entries, workspace, about=about)
                written = _tree_hash(os.fsencode(workspace)).hex()
                if written != head.tree:
                    raise LogicError(f"{about}: expected files of tree {head.tree}, got {written}")
                self._keep(repo, commit, snapshot)
            except BaseException:  # a signal's too: what is half written must not pass for a checkout
                shutil.rmtree(workspace, ignore_errors=True)
                raise
        return Checkout(commit=commit, tree=head.tree, origin=origin, committed_at=head.committed_at)

    def _entries(self, snapshot: Snapshot, repo: str, commit: str) -> list[Entry]:
        return snapshot.entries(snapshot.head(commit, repo).tree, f"{repo} at {commit}")

    def _keep(self, repo: str, commit: str, snapshot: Snapshot) -> None:
        """Put a commit into the archive, unless it is there. It was, if this very process has seen to that."""
        key = archive_key(repo, commit)
        if key in self._archived:
            return
        if not self._archive.exists(key):
            with self._locked(repo) as (folder, _):
                pack = _room(folder) / "pack"
                with pack.open("wb") as out:
                    snapshot.pack(out)
                self._archive.put_file(key, pack)
                pack.unlink()
        self._archived.add(key)

    # --- the cache, a folder and a lock an address. In the folder: <commit>.repository or <commit>.archive, a snapshot
    # --- by where it came from; fetched.git and history.git (no files), for the next fetch; work, for the lock's holder

    @contextmanager
    def _snapshot(self, repo: str, commit: str) -> Iterator[tuple[Snapshot, Origin]]:
        """The whole of a commit, fetched if need be, and where it came from."""
        address = self._address(repo, commit)
        folder = self._cache / short_hash(repo)
        with disk_faults():
            found = _opened(folder, commit)
            if found is None:
                with self._locked(repo) as (_, lock):
                    found = _opened(folder, commit)  # another process had the lock, and may have fetched it
                    if found is None:
                        self._obtain(address, commit, folder, lock)
                        found = _opened(folder, commit)
        if found is None:
            raise InfrastructureError(f"{folder}: expected commit {commit} as it was just written, got none")
        file, origin = found
        path = folder / f"{commit}.{origin}"
        with file, disk_faults(), _dropped_if_damaged(path):
            yield Snapshot(file, str(path)), origin

    def _obtain(self, address: Address, commit: str, folder: Path, lock: int) -> None:
        """Make the commit's snapshot: out of the repository, or out of the archive where that has it no more."""
        repo, room = address.url, _room(folder)
        about = f"{repo}: expected commit {commit} there or in the archive"
        store, origin = folder / "fetched.git", _ORIGINS[0]
        try:
            self._fetch(store, address, commit, lock, *_WHOLE_COMMIT, about=about)
        except RunnerError:
            store, origin = room / "restored.git", _ORIGINS[1]
            about = f"{archive_key(repo, commit)}: expected all objects of {commit} in the archive"
            if not self._restore(store, repo, commit, room, about=about):
                raise
        with _dropped_if_damaged(store, InfrastructureError):
            made = self._objects(store, commit, room, "--objects", "--no-walk", most=MAX_FILES + 2, about=about)
            with made.open("rb") as file:
                Snapshot(file, str(store)).prove()
        kept = folder / f"{commit}.{origin}"
        _drop(kept)
        made.rename(kept)
        shutil.rmtree(room)
        self._make_room(folder, kept)

    def _ancestors(self, repo: str, tip: str) -> Set[str]:
        """The commits that `tip` contains, itself among them: by their own words, proved by their hashes."""
        address = self._address(repo, tip)
        about = f"{repo}: expected the history of commit {tip}"
        with disk_faults(), self._locked(repo) as (folder, lock):
            history, room = folder / "history.git", _room(folder)
            if not self._has(history, tip):
                self._fetch(history, address, tip, lock, *_HISTORY, about=about)
            with _dropped_if_damaged(history, InfrastructureError):
                path = self._objects(history, tip, room, most=MAX_COMMITS, about=about)
                with path.open("rb") as file:
                    snapshot = Snapshot(file, str(history))
                    parents = {oid: snapshot.parents(oid) for oid in snapshot.oids}
            shutil.rmtree(room)
            self._make_room(folder, history)
        found, ahead = {tip}, [tip]
        while ahead:
            # What a commit names and the repository has not is beyond the end of a shallow history.
            new = {each for each in parents[ahead.pop()] if each in parents} - found
            found |= new
            ahead += new
        return found

    def _address(self, repo: str, commit: str) -> Address:
        """Raises `SpecError` for a repository that may not be asked, but one in some other machine's file system: it
        is not asked, and the archive may have what somebody sent from there.
        """
        address = parse_address(repo)
        if not COMMIT.fullmatch(commit):
            raise SpecError(f"{repo}: expected a commit of 40 hex digits, got {commit[:250]!r}", subject=commit[:250])
        refusal = self._remotes.refusal(address)
        if refusal and address.scheme != "file":
            raise refusal
        return address

    @contextmanager
    def _locked(self, repo: str) -> Iterator[tuple[Path, int]]:
        """The repository's folder in the cache, and the lock on it, which lies beside it: the folder may go."""
        folder = self._cache / short_hash(repo)
        with disk_faults():
            self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _lock_beside(folder) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                folder.mkdir(exist_ok=True)
                yield folder, lock.fileno()

    def _has(self, store: Path, commit: str) -> bool:
        """By the ref that a fetch ends with: the commit alone can be there without its parents."""
        if not (store / "refs/commits" / commit).exists():
            return False
        _make_bare(store)
        try:
            self._git(store, "cat-file", "-e", f"refs/commits/{commit}")
        except RunnerError:
            # The ref without its commit: damaged, and every fetch into it would stumble over that.
            shutil.rmtree(store, ignore_errors=True)
            return False
        return True

    def _fetch(self, store: Path, address: Address, commit: str, lock: int, *options: str, about: str) -> None:
        if refusal := self._remotes.refusal(address):
            raise refusal
        _make_bare(store)
        wanted = f"+{commit}:refs/commits/{commit}"
        try:
            # git inherits the lock, so it is held for as long as git lives, even if this process is killed.
            self._ask(address, "fetch", *options, "--", address.url, wanted, store=store, holding=[lock], about=about)
        except InfrastructureError as error:
            if any(each.stat().st_size >= self._limits.file_bytes for each in store.glob("objects/pack/tmp_*")):
                raise too_large(about, self._limits) from error  # git says no more than that its own child has died
            # Who failed, the server or the store? A server that is away costs nobody what is here already.
            with suppress(RunnerError), _dropped_if_damaged(store, InfrastructureError):
                self._git(store, "fsck", "--no-progress", "--no-dangling", "--no-reflogs")
            raise

    def _restore(self, store: Path, repo: str, commit: str, room: Path, *, about: str) -> bool:
        """False if the archive has no such commit."""
        key, pack = archive_key(repo, commit), room / "pack"
        try:
            self._archive.get_file(key, pack)
        except FileNotFoundError:
            return False
        _make_bare(store)
        with pack.open("rb") as stream:  # index-pack names each object by the hash of what came
            self._git(store, "index-pack", "--stdin", stdin=stream, about=about)
        self._archived.add(key)
        return True

    def _objects(self, store: Path, commit: str, room: Path, *walk: str, most: int, about: str) -> Path:
        """A file with the objects that `rev-list` lists, for a `Snapshot`."""
        listed, made = room / "oids", room / "objects"
        with listed.open("wb") as oids:
            names = ["--no-object-names"] if walk else []
            self._git(store, "rev-list", *walk, *names, commit, stdout=oids, about=about)
        with listed.open("rb") as oids:
            if sum(1 for _ in oids) > most:
                what = "files and folders" if walk else "commits"
                raise LogicError(f"{about} with at most {most:,} {what}, got more", subject=commit)
        # From a file: on a pipe, git and this process could come to wait for each other.
        with listed.open("rb") as oids, made.open("wb") as objects:
            self._git(store, "cat-file", "--batch", "--buffer", stdin=oids, stdout=objects)
        return made

    def _make_room(self, here: Path, kept: Path) -> None:
        """Let go what was used least recently until the cache has its size: other repositories, then more of this one.

        One whose lock somebody holds is left alone; so is `kept`, whatever its size.
        """
        held = _bytes_below(self._cache)
        for folder in sorted(
            (each for each in self._cache.iterdir() if _is_folder(each) and each != here), key=_used_at
        ):
            if held <= self._cache_bytes:
                return
            with suppress(BlockingIOError), _lock_beside(folder) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held -= _bytes_below(folder)
                shutil.rmtree(folder, ignore_errors=True)
        for each in sorted((each for each in here.iterdir() if each != kept), key=_used_at):
            if held <= self._cache_bytes:
                return
            held -= _bytes_below(each)
            _drop(each)

    # --- git

    def _ask(
        self, address: Address, *arguments: str, about: str, store: Path | None = None, holding: Sequence[int] = ()
    ) -> bytes:
        """Run git where it talks to a repository, with what it needs for that."""

        def git(given: Given) -> bytes:
            return self._command.run(
                # Always with a folder: else git looks for one around the current one, and obeys its configuration.
                f"--git-dir={store or os.devnull}",
                *given.options,
                *arguments,
                about=about,
                holding=[*holding, *given.descriptors],
                env=given.env,
                limits=self._limits,
                hidden=given.hidden,
            )

        return self._remotes.ask(address, git)

    def _git(
        self,
        store: Path,
        *arguments: str,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        about: str | None = None,
    ) -> None:
        """Run git where it talks to nobody."""
        about = about or f"{store}: expected git {arguments[0]} to succeed"
        where = f"--git-dir={store}"
        self._command.run(where, *arguments, about=about, stdin=stdin, stdout=stdout, limits=self._limits)


# ---------------------------------------------------------------- the cache


def _room(folder: Path) -> Path:
    """An empty folder for the holder of the lock. What is in it was left by somebody who died with the lock."""
    room = folder / "work"
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    return room


def _lock_beside(folder: Path) -> IO[bytes]:
    # To read and write: where somebody put a pipe, this waits for nobody at its other end.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    return os.fdopen(os.open(folder.with_suffix(".lock"), flags, 0o600), "rb", closefd=True)


def _opened(folder: Path, commit: str) -> tuple[IO[bytes], Origin] | None:
    """The commit's snapshot, noted as used now."""
    for origin in _ORIGINS:
        try:
            # Neither a link nor a pipe is one of ours, and a pipe would keep us waiting.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(folder / f"{commit}.{origin}", flags)
        except OSError:
            continue
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            with suppress(OSError):  # another user's: it will do
                os.utime(descriptor)
            return os.fdopen(descriptor, "rb"), origin
        os.close(descriptor)
    return None


def _make_bare(store: Path) -> None:
    """Make of a folder a bare repository with our configuration: of what is there, objects and refs alone are kept.

    Whoever can write there could else have git run programs, ask other servers, or show other objects than there are.
    """
    for part in (store, *(store / name for name in _FOLDERS)):
        if not _is_folder(part):
            _drop(part)
            part.mkdir()
    unwanted = [each for each in store.iterdir() if each.name not in _FOLDERS and not _is_one_of(each, _FILES)]
    # The lock's holder clears away lock files and halves of packs, too: the git that they belonged to is dead.
    for each in (*unwanted, store / "objects/info", *store.glob("refs/**/*.lock"), *store.glob("objects/**/tmp_*")):
        _drop(each)
    (store / "HEAD").write_text("ref: refs/heads/none\n")
    (store / "config").write_text(_CONFIG)


@contextmanager
def _dropped_if_damaged(path: Path, error: type[InfrastructureError] = Damaged) -> Iterator[None]:
    """A power cut or a full disk can damage a cache. Then it goes, and the next attempt fetches it anew."""
    try:
        yield
    except error:
        _drop(path)
        raise


def _is_one_of(path: Path, names: Set[str]) -> bool:
    """Whether it is one of these files, and really a file."""
    return path.name in names and stat.S_ISREG(path.lstat().st_mode)


def _drop(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_folder(path: Path) -> bool:
    """A link to one is none: what is at its other end is not ours to delete or to count."""
    return path.is_dir() and not path.is_symlink()


def _bytes_below(path: Path) -> int:
    """Bytes on disk; of what goes while we look, nothing."""
    try:
        below = sum(_bytes_below(Path(each)) for each in os.scandir(path)) if _is_folder(path) else 0
        return below + path.lstat().st_blocks * 512
    except OSError:
        return 0


def _used_at(path: Path) -> float:
    """When it, or what lies right in it, was last written or used."""
    with suppress(OSError):
        return max([path.lstat().st_mtime, *(each.stat(follow_symlinks=False).st_mtime for each in os.scandir(path))])
    with suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


# ---------------------------------------------------------------- the workspace


def _write(snapshot: Snapshot, entries: Sequence[Entry], workspace: Path, *, about: str) -> None:
    workspace.mkdir(parents=True, exist_ok=True)
    root = os.fspath(workspace)
    # Symlinks last: then no file can be written through one, whatever a crafted tree holds.
    for entry in sorted(entries, key=lambda entry: entry.kind == "a symlink"):
        target = f"{root}/{entry.path}"
        try:
            if entry.kind == "a folder":
                os.mkdir(target)  # noqa: PTH102 - a Path for each file costs more than to write it
            elif entry.kind == "a symlink":
                os.symlink(os.fsdecode(snapshot.read(entry.oid)), target)  # noqa: PTH211
            else:
                permissions = int(entry.mode, 8) & 0o777
                descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, permissions)
                with os.fdopen(descriptor, "wb") as file:
                    for chunk in snapshot.chunks(entry.oid):
                        file.write(chunk)
        except (FileExistsError, FileNotFoundError, NotADirectoryError, ValueError) as exc:
            message = f"{about}: expected {entry.path!r} to be {entry.kind} of its own, got {exc}"
            raise LogicError(message, subject=entry.path) from exc
    inside = os.path.realpath(workspace)
    for entry in entries:  # not sooner: where one symlink leads may depend on another
        if entry.kind == "a symlink":
            link = workspace / entry.path
            to = link.readlink()
            if to.is_absolute() or not Path(os.path.realpath(link)).is_relative_to(inside):
                expected = "symlinks that stay in the repository"
                message = f"{about}: expected {expected}, got {entry.path!r} to {str(to)[:200]!r}"
                raise LogicError(message, subject=entry.path)


def _object_hash(kind: str, content: bytes) -> bytes:
    # How git names an object: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    return hashlib.sha1(b"%s %d\0%s" % (kind.encode(), len(content), content), usedforsecurity=False).digest()


def _tree_hash(folder: bytes) -> bytes:
    """What git would name a folder as it is on disk."""
    lines: dict[bytes, bytes] = {}
    with os.scandir(folder) as found:
        for each in found:
            order = each.name
            if each.is_symlink():
                mode, oid = b"120000", _object_hash("blob", os.readlink(each.path))  # noqa: PTH115 - as bytes
            elif each.is_dir():
                mode, oid, order = b"40000", _tree_hash(each.path), each.name + b"/"  # git sorts folders so
            else:
                mode = b"100755" if each.stat().st_mode & stat.S_IXUSR else b"100644"
                oid = _object_hash("blob", Path(os.fsdecode(each.path)).read_bytes())
            lines[order] = b"%s %s\0%s" % (mode, each.name, oid)
    return _object_hash("tree", b"".join(lines[order] for order in sorted(lines)))
