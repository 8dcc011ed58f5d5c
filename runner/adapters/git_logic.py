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
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from runner.adapters.git_objects import (
    COMMIT,
    LS_TREE,
    SCHEMES,
    Entry,
    GitCommand,
    LogicArchive,
    archive_commit,
    archive_key,
    check_address,
    disk_faults,
    entries_of,
    lines_for_git,
    production_key,
    short_hash,
)
from runner.model.errors import InfrastructureError, LogicError, RunnerError, SpecError
from runner.ports import Checkout

MAX_FILE_BYTES = 1024 * 1024
"""`read_file` is for pipeline files and contracts; what is larger is neither."""

_REF = re.compile(r"(?!-)[^\x00-\x20\x7f~^:?*\[\\]{1,250}")
"""Roughly what git-check-ref-format(1) allows: enough that a name is never an option or a pattern."""

_WHOLE_COMMIT = ("--quiet", "--depth", "1", "--no-tags", "--no-recurse-submodules")
_HISTORY = ("--quiet", "--filter=tree:0", "--update-shallow", "--no-tags", "--no-recurse-submodules")
"""Commits without their files, where the server can leave them out; one that cannot sends all, with a warning."""


class GitLogic:
    """Reads logic from git repositories, through a bare cache of each, which several processes may share.

    `env` reaches git as it is: PATH (else the system's default one), proxies, certificates. Any git command may
    take `timeout_s`. Raises `SpecError` for an address or a name that is none, `LogicError` where a repository
    answered and has not what was asked for, `RateLimitError` or `InfrastructureError` where a retry may help.
    """

    def __init__(
        self,
        cache: Path,
        archive: LogicArchive,
        *,
        schemes: frozenset[str] = SCHEMES,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        self._cache = cache.absolute()
        self._archive = archive
        self._schemes = schemes
        self._command = GitCommand(
            {
                **(env or {}),
                "HOME": str(self._cache),
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_CONFIG_GLOBAL": os.devnull,
                # Overrules protocol.*.allow, and binds redirects as well.
                "GIT_ALLOW_PROTOCOL": ":".join(sorted(schemes)),
            },
            timeout_s=timeout_s,
        )

    def resolve_ref(self, repo: str, ref: str) -> str:
        """The commit (40 hex digits) that a branch, a tag or these very digits name.

        Raises `SpecError` if a branch and a tag of that name differ, `LogicError` if there is neither.
        """
        if COMMIT.fullmatch(ref):
            store, _ = self._store_with(repo, ref)
            self._commit(store, ref, repo)
            return ref
        check_address(repo, self._schemes)
        if not _REF.fullmatch(ref):
            expected = "a branch, a tag or a commit of 40 hex digits"
            raise SpecError(f"{repo}: expected {expected}, got {ref!r}", subject=ref)
        names = [ref] if ref.startswith("refs/") else [f"refs/heads/{ref}", f"refs/tags/{ref}"]
        about = f"{repo}: expected a branch or tag {ref!r}"
        patterns = [*names, *(f"{name}^{{}}" for name in names)]
        listed = self._git("ls-remote", "--quiet", "--", repo, *patterns, about=about)
        lines = (line.partition("\t") for line in os.fsdecode(listed).splitlines())
        oids = {name: oid for oid, _, name in lines}
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
        self._check(repo, commit)
        remembered = production_key(repo, commit, ref)
        if self._archive.exists(remembered):
            return True
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
        store, _ = self._store_with(repo, commit)
        about = f"{repo}: expected a file {path!r} of at most {MAX_FILE_BYTES:,} bytes in commit {commit}"
        entry = {each.path: each for each in self._entries(store, commit)}.get(str(PurePosixPath(path)))
        if entry is None or entry.kind != "a file":
            raise LogicError(f"{about}, got {entry.kind if entry else 'none'}", subject=path)
        size = int(self._git("cat-file", "-s", entry.oid, store=store))
        if size > MAX_FILE_BYTES:
            raise LogicError(f"{about}, got {size:,}", subject=path)
        _, content = next(self._objects(store, [entry.oid]))
        return content

    def list_files(self, repo: str, commit: str, folder: str) -> list[str]:
        """Paths of all files below a folder of a commit (its root: "."), sorted; none if it is absent."""
        store, _ = self._store_with(repo, commit)
        files = [entry.path for entry in self._entries(store, commit) if entry.kind == "a file"]
        return sorted(path for path in files if PurePosixPath(folder) in PurePosixPath(path).parents)

    def checkout(self, repo: str, commit: str, workspace: Path) -> Checkout:
        """Write a commit's files into `workspace` (empty or absent), verify them, and archive the commit.

        Raises `LogicError` for a submodule, a symlink out of the workspace, a path that no file may have, and
        files that do not hash to the commit's tree; nothing is left of `workspace` then.
        """
        store, origin = self._store_with(repo, commit)
        tree, committed_at = self._commit(store, commit, repo)
        entries = self._entries(store, commit)
        with disk_faults():
            if workspace.exists() and any(workspace.iterdir()):
                raise InfrastructureError(f"{workspace}: expected an empty folder, got one with files in it")
            try:
                self._write(store, entries, workspace, about=f"{repo} at {commit}")
                written = _tree_hash(os.fsencode(workspace)).hex()
                if written != tree:
                    raise LogicError(f"{repo} at {commit}: expected files of tree {tree}, got {written}")
                self._keep(repo, commit, store, [commit, tree, *(entry.oid for entry in entries)])
            except BaseException:  # a signal's too: what is half written must not pass for a checkout
                shutil.rmtree(workspace, ignore_errors=True)
                raise
        return Checkout(commit=commit, tree=tree, origin=origin, committed_at=committed_at)

    # --- the cache, a folder an address: fetched.git, history.git (no files), <commit>.git (out of the archive)

    def _store_with(self, repo: str, commit: str) -> tuple[Path, Literal["repository", "archive"]]:
        """A bare repository with the whole of a commit, fetched if need be, and where it came from."""
        self._check(repo, commit)
        with self._locked(repo) as (folder, lock):
            fetched, restored = folder / "fetched.git", folder / f"{commit}.git"
            if self._has(fetched, commit):
                return fetched, "repository"
            if restored.exists():
                return restored, "archive"
            try:
                about = f"{repo}: expected commit {commit} there or in the archive"
                self._fetch(fetched, repo, commit, lock, *_WHOLE_COMMIT, about=about)
            except RunnerError:
                if not self._restore(restored, repo, commit):
                    raise
                return restored, "archive"
        return fetched, "repository"

    def _ancestors(self, repo: str, tip: str) -> Set[str]:
        """The commits that `tip` contains, itself among them."""
        with self._locked(repo) as (folder, lock):
            history = folder / "history.git"
            if not self._has(history, tip):
                about = f"{repo}: expected the history of commit {tip}"
                self._fetch(history, repo, tip, lock, *_HISTORY, about=about)
            with _dropped_if_damaged(history):
                return set(self._git("rev-list", f"refs/commits/{tip}", store=history).decode().splitlines())

    def _check(self, repo: str, commit: str) -> None:
        check_address(repo, self._schemes)
        if not COMMIT.fullmatch(commit):
            raise SpecError(f"{repo}: expected a commit of 40 hex digits, got {commit!r}", subject=commit)

    @contextmanager
    def _locked(self, repo: str) -> Iterator[tuple[Path, IO[str]]]:
        """The repository's folder in the cache, and the lock on it."""
        folder = self._cache / short_hash(repo)
        with disk_faults():
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield folder, lock

    def _has(self, store: Path, commit: str) -> bool:
        """By the ref that a fetch ends with: the commit alone can be there without its files."""
        try:
            self._git("cat-file", "-e", f"refs/commits/{commit}", store=store)
        except RunnerError:
            if (store / "refs/commits" / commit).exists():
                # The ref without its commit: damaged, and every fetch into it would stumble over that.
                shutil.rmtree(store, ignore_errors=True)
            return False
        return True

    def _fetch(self, store: Path, repo: str, commit: str, lock: IO[str], *options: str, about: str) -> None:
        # git inherits the lock, so it is held for as long as git lives, even if this process is killed. Its
        # holder may clear away lock files and halves of packs, then: the git that they belonged to is dead.
        for left in (*store.rglob("*.lock"), *store.rglob("tmp_*")):
            left.unlink(missing_ok=True)
        self._git("init", "--bare", "--quiet", "--template=", store=store, holding=lock)
        wanted = f"+{commit}:refs/commits/{commit}"
        self._git("fetch", *options, "--", repo, wanted, store=store, holding=lock, about=about)

    def _restore(self, store: Path, repo: str, commit: str) -> bool:
        """False if the archive has no such commit."""
        key = archive_key(repo, commit)
        about = f"{key}: expected all objects of {commit} in the archive"
        with tempfile.TemporaryDirectory(dir=self._cache) as scratch:
            pack, fresh = Path(scratch, "pack"), Path(scratch, "fresh.git")
            try:
                self._archive.get_file(key, pack)
            except FileNotFoundError:
                return False
            self._git("init", "--bare", "--quiet", "--template=", store=fresh)
            with pack.open("rb") as stream:  # index-pack names each object by the hash of what came
                self._git("index-pack", "--stdin", store=fresh, stdin=stream, about=about)
            self._git("rev-list", "--objects", "--quiet", "--no-walk", commit, store=fresh, about=about)
            fresh.rename(store)
        return True

    def _keep(self, repo: str, commit: str, store: Path, oids: Sequence[str]) -> None:
        def git(*arguments: str, stdin: IO[bytes], stdout: IO[bytes]) -> None:
            self._git(*arguments, store=store, stdin=stdin, stdout=stdout)

        archive_commit(self._archive, repo, commit, oids, git=git, scratch=self._cache)

    # --- reading a store

    def _commit(self, store: Path, commit: str, repo: str) -> tuple[str, datetime]:
        """The hash of its tree, and when it was committed."""
        kind, content = next(self._objects(store, [commit]))
        header = content.partition(b"\n\n")[0]
        tree = re.match(rb"tree ([0-9a-f]{40})\n", header)
        committed_s = re.search(rb"\ncommitter [^\n]* ([0-9]{1,11}) [+-][0-9]+(\n|$)", header)
        if kind != "commit" or not tree or not committed_s:
            message = f"{repo}: expected {commit} to be a commit with a tree and a time, got a {kind}"
            raise LogicError(message, subject=commit)
        return tree[1].decode(), datetime.fromtimestamp(int(committed_s[1]), UTC)

    def _entries(self, store: Path, commit: str) -> list[Entry]:
        """Every file and folder of a commit, each folder before what is in it."""
        with _dropped_if_damaged(store):
            return entries_of(self._git(*LS_TREE, commit, store=store))

    def _objects(self, store: Path, oids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Kind and content of each object, proved by its hash. One at a time is in memory."""
        with (
            disk_faults(),
            _dropped_if_damaged(store),
            lines_for_git(oids, self._cache) as wanted,
            tempfile.TemporaryFile(dir=self._cache) as contents,
        ):
            self._git("cat-file", "--batch", "--buffer", store=store, stdin=wanted, stdout=contents)
            contents.seek(0)
            for oid in oids:
                _, kind, *size = contents.readline().decode().split()
                content = contents.read(int(size[0])) if size else b""
                contents.read(1)
                if _object_hash(kind, content).hex() != oid:  # a `kind` "missing" among them
                    raise InfrastructureError(f"{store}: expected {oid} as it was fetched, got another {kind}")
                yield kind, content

    def _write(self, store: Path, entries: Sequence[Entry], workspace: Path, *, about: str) -> None:
        for entry in entries:
            entry.check(about)
        # Symlinks last: then no file can be written through one, whatever a crafted tree holds.
        entries = sorted(entries, key=lambda entry: entry.kind == "a symlink")
        contents = self._objects(store, [entry.oid for entry in entries])
        workspace.mkdir(parents=True, exist_ok=True)
        for entry, (_, content) in zip(entries, contents, strict=True):
            target = workspace / entry.path
            try:
                if entry.kind == "a folder":
                    target.mkdir()
                elif entry.kind == "a symlink":
                    target.symlink_to(os.fsdecode(content))
                else:
                    permissions = int(entry.mode, 8) & 0o777
                    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, permissions)
                    with os.fdopen(descriptor, "wb") as file:
                        file.write(content)
            except (FileExistsError, FileNotFoundError, NotADirectoryError, ValueError) as exc:
                message = f"{about}: expected {entry.path!r} to be {entry.kind} of its own, got {exc}"
                raise LogicError(message, subject=entry.path) from exc
        root = os.path.realpath(workspace)
        for entry in entries:  # not sooner: where one symlink leads may depend on another
            if entry.kind == "a symlink":
                link = workspace / entry.path
                to = link.readlink()
                if to.is_absolute() or not Path(os.path.realpath(link)).is_relative_to(root):
                    expected = "symlinks that stay in the repository"
                    message = f"{about}: expected {expected}, got {entry.path!r} to {str(to)!r}"
                    raise LogicError(message, subject=entry.path)

    def _git(
        self,
        *arguments: str,
        store: Path | None = None,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        holding: IO[str] | None = None,
        about: str | None = None,
    ) -> bytes:
        # Always with a folder: else git looks for one around the current folder, and obeys its configuration.
        about = about or f"{store}: expected git {arguments[0]} to succeed"
        where = f"--git-dir={store or os.devnull}"
        return self._command.run(where, *arguments, about=about, stdin=stdin, stdout=stdout, holding=holding)


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


@contextmanager
def _dropped_if_damaged(store: Path) -> Iterator[None]:
    """A power cut or a full disk can damage a cache. Then it goes, and the next attempt fetches it anew."""
    try:
        yield
    except InfrastructureError:
        shutil.rmtree(store, ignore_errors=True)
        raise
