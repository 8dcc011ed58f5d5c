"""A working tree as a commit: what somebody is at work on, put into the archive, where workers find it.

Neither the repository nor its index is touched: new objects go to a folder of their own, which is packed and deleted.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from runner.adapters.git_objects import (
    COMMIT,
    LS_TREE,
    GitCommand,
    LogicArchive,
    archive_commit,
    check_address,
    disk_faults,
    entries_of,
)
from runner.model.errors import InfrastructureError, LogicError, SpecError
from runner.model.spec import Logic
from runner.model.strict import parse_document

MAX_CHANGED_MIB = 256
"""Of files that the index does not have as they are: a database that nobody ignored would be uploaded whole."""

_IDENTITY = {"NAME": "stage-runner working tree", "EMAIL": "working-tree@localhost"}
_OPTIONS = (
    # What a person's configuration says of the files' content is obeyed; these would change the commit or stop it.
    "-c", "core.safecrlf=false",
    # Half of a split index would be written into the repository.
    "-c", "core.splitIndex=false",
    "-c", "i18n.commitEncoding=UTF-8",
    "-c", "log.showSignature=false",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Tree:
    top: Path
    path: str
    """The folder that was asked for, below `top`."""
    head: str
    index: Path
    objects: Path
    address: str


class WorkingTrees:
    """Makes commits of working trees. The same files on the same HEAD are the same commit, so nothing is kept twice.

    `env` is the person's: which files are ignored, and what git does to line ends, is as in their own commits.
    `besides` is a folder of ours that is left out where it lies in the tree. Raises `SpecError` for what is none.
    """

    def __init__(
        self,
        archive: LogicArchive,
        *,
        scratch: Path,
        besides: Path,
        env: Mapping[str, str],
        timeout_s: float = 120.0,
    ) -> None:
        self._archive = archive
        self._scratch = scratch.absolute()
        self._besides = besides
        # A replaced object would be archived under the name of the one that it stands for.
        self._command = GitCommand({**env, "GIT_NO_REPLACE_OBJECTS": "1"}, timeout_s=timeout_s)

    def commit(self, folder: Path) -> Logic:
        """The commit of what is there, ignored files aside; HEAD itself where that is what is there."""
        with disk_faults():
            self._scratch.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._scratch) as scratch:
                return self._commit(folder, Path(scratch))

    def _commit(self, folder: Path, scratch: Path) -> Logic:
        with _as_request():
            tree = self._locate(folder)
            env = self._store(tree, scratch)
            self._add(tree, env)
            made = self._ask(tree.top, "write-tree", env=env)
            dirty = made != self._ask(tree.top, "rev-parse", f"{tree.head}^{{tree}}")
            commit = self._write_commit(tree, made, env) if dirty else tree.head
            entries = entries_of(self._git(tree.top, *LS_TREE, commit, env=env))
        for entry in entries:
            entry.check(f"working tree {tree.top}")

        def git(*arguments: str, stdin: IO[bytes], stdout: IO[bytes]) -> None:
            self._git(tree.top, *arguments, env=env, stdin=stdin, stdout=stdout)

        oids = [commit, made, *(entry.oid for entry in entries)]
        archive_commit(self._archive, tree.address, commit, oids, git=git, scratch=scratch)
        logic = {"repo": tree.address, "commit": commit, "path": tree.path, "dirty": dirty}
        return parse_document(Logic, logic, what=f"working tree {tree.top}")

    def _locate(self, folder: Path) -> _Tree:
        about = f"working tree {folder.absolute()}: expected a folder of a git repository with files checked out"
        top = Path(self._ask(folder, "rev-parse", "--show-toplevel", about=about))
        about = f"working tree {top}: expected a commit to begin from, which git commit makes"
        head = self._ask(top, "rev-parse", "--verify", "HEAD^{commit}", about=about)
        if not COMMIT.fullmatch(head):
            raise SpecError(f"working tree {top}: expected commits of 40 hex digits (SHA-1), got {head}")
        index, objects = (
            Path(self._ask(top, "rev-parse", "--path-format=absolute", "--git-path", name))
            for name in ("index", "objects")
        )
        return _Tree(
            top=top,
            path=self._ask(folder, "rev-parse", "--show-prefix").rstrip("/") or ".",
            head=head,
            index=index,
            objects=objects,
            address=_address(self._ask(top, "config", "--default", "", "--get", "remote.origin.url"), top),
        )

    def _store(self, tree: _Tree, scratch: Path) -> dict[str, str]:
        """An index and a folder for objects of our own, as git's environment names them."""
        (scratch / "objects/info").mkdir(parents=True)
        (scratch / "objects/info/alternates").write_bytes(os.fsencode(tree.objects) + b"\n")
        env = {"GIT_INDEX_FILE": str(scratch / "index"), "GIT_OBJECT_DIRECTORY": str(scratch / "objects")}
        if tree.index.exists():
            # With its time: git looks again at files that are not older than their index. Made anew, the index would
            # lack the marks on files that git is to leave alone, and every file would have to be read.
            shutil.copy2(tree.index, scratch / "index")
        else:
            self._git(tree.top, "read-tree", tree.head, env=env)
        return env

    def _add(self, tree: _Tree, env: Mapping[str, str]) -> None:
        paths = ["--", "."]
        ours = self._besides.resolve()
        if ours != tree.top and ours.is_relative_to(tree.top):
            paths.append(f":(top,exclude,literal){ours.relative_to(tree.top)}")
        listed = self._git(tree.top, "ls-files", "-z", "--others", "--modified", "--exclude-standard", *paths, env=env)
        sizes = {}
        for name in set(os.fsdecode(listed).split("\0")) - {""}:
            file = tree.top / name
            if file.is_symlink() or file.is_file():  # what is modified may be gone
                sizes[name] = file.lstat().st_size
        if sum(sizes.values()) > MAX_CHANGED_MIB * 2**20:
            largest = max(sizes, key=sizes.__getitem__)
            raise SpecError(
                f"working tree {tree.top}: expected at most {MAX_CHANGED_MIB} MiB of files that are not committed, "
                f"got {math.ceil(sum(sizes.values()) / 2**20):,} MiB",
                hint=f"the largest is {largest!r}: does it belong into .gitignore?",
                subject=largest,
            )
        self._git(tree.top, "add", "--all", *paths, env=env)

    def _write_commit(self, tree: _Tree, made: str, env: Mapping[str, str]) -> str:
        # HEAD's time, for no other is the same for the same files.
        at = f"@{self._ask(tree.top, 'show', '--no-patch', '--format=%ct', tree.head)} +0000"
        identity = {f"GIT_{role}_{key}": text for role in ("AUTHOR", "COMMITTER") for key, text in _IDENTITY.items()}
        dates = {"GIT_AUTHOR_DATE": at, "GIT_COMMITTER_DATE": at}
        arguments = ("commit-tree", "-p", tree.head, "-m", "working tree", made)
        return self._ask(tree.top, *arguments, env={**env, **identity, **dates})

    def _ask(self, folder: Path, *arguments: str, env: Mapping[str, str] | None = None, about: str = "") -> str:
        """git's answer of one line."""
        return os.fsdecode(self._git(folder, *arguments, env=env, about=about)).rstrip("\n")

    def _git(
        self,
        folder: Path,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        about: str = "",
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
    ) -> bytes:
        about = about or f"working tree {folder}: expected git {arguments[0]} to succeed"
        where = ("-C", str(folder.absolute()))
        return self._command.run(*where, *_OPTIONS, *arguments, about=about, stdin=stdin, stdout=stdout, env=env)


def _address(origin: str, top: Path) -> str:
    """Where the record says that it comes from: `origin`, or this very folder where a worker could not read that."""
    if re.match(r"https?://[^/]*@", origin):
        check_address(origin)  # a token or a password: refused, or it would be recorded
    try:
        check_address(origin)
    except SpecError:
        return top.as_uri()
    return origin


@contextmanager
def _as_request() -> Iterator[None]:
    """What git cannot do here it could not do again: the fault is the request's."""
    try:
        yield
    except (InfrastructureError, LogicError) as error:
        raise SpecError(error.message, hint=error.hint, subject=error.subject) from error
