"""Working trees against real git: a commit of exactly what is there, nothing of the person's own touched."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.adapters import working_tree
from runner.adapters.git_logic import GitLogic
from runner.adapters.working_tree import WorkingTrees
from runner.model.errors import LogicError, SpecError
from runner.model.spec import Logic
from tests.support.git_server import GIT_ENV, FolderArchive, GitServer

ENV = {"PATH": GIT_ENV["PATH"]}
ADA = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")


class Tree:
    """A clone with a working tree, as an analyst has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.folder), *ADA, *arguments]
        done = subprocess.run(command, env=GIT_ENV, check=True, capture_output=True)
        return done.stdout.decode().strip()

    def write(self, files: dict[str, str | None]) -> None:
        """`None` deletes."""
        for path, text in files.items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink() if text is None else file.write_text(text)

    def untouched(self) -> dict[str, bytes]:
        """All that git keeps, times aside."""
        found = (path for path in (self.folder / ".git").rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in found}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    root = tmp_path / "served"
    root.mkdir()
    with GitServer(root) as server:
        yield server


@pytest.fixture
def tree(server: GitServer, tmp_path: Path) -> Tree:
    server.repository().commit(
        {"a.sql": b"SELECT 1", "b.sql": b"SELECT 2", "d/c.sql": b"SELECT 3", ".gitignore": b"*.db"}
    )
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", server.url(), str(folder)], env=GIT_ENV, check=True)
    return Tree(folder)


@pytest.fixture
def archive(tmp_path: Path) -> FolderArchive:
    return FolderArchive(tmp_path / "archive")


@pytest.fixture
def trees(tmp_path: Path, archive: FolderArchive) -> WorkingTrees:
    env = {**ENV, "HOME": str(tmp_path / "home")}
    return WorkingTrees(archive, scratch=tmp_path / "scratch", besides=tmp_path / "clone/.runner", env=env)


def checked_out(logic: Logic, archive: FolderArchive, folder: Path) -> dict[str, str]:
    """What a worker elsewhere makes of it."""
    worker = GitLogic(folder / "cache", archive, env=ENV)
    made = worker.checkout(logic.repo, logic.commit, folder / "workspace")
    assert made.origin == ("archive" if logic.dirty else "repository")
    files = (path for path in (folder / "workspace").rglob("*") if path.is_file())
    return {str(path.relative_to(folder / "workspace")): path.read_text() for path in files}


HEAD = {"a.sql": "SELECT 1", "b.sql": "SELECT 2", "d/c.sql": "SELECT 3", ".gitignore": "*.db"}


def test_what_is_there_is_the_commit_staged_or_not_tracked_or_not_ignored_files_aside(
    tree: Tree, trees: WorkingTrees, archive: FolderArchive, tmp_path: Path
) -> None:
    tree.write(
        {"a.sql": "SELECT 10", "b.sql": None, "new.sql": "SELECT 4", "staged.sql": "SELECT 5", "x.db": "ignored"}
    )
    tree.git("add", "staged.sql")
    tree.write({"staged.sql": "SELECT 6"})
    before = tree.untouched()

    logic = trees.commit(tree.folder)

    assert logic.dirty
    assert logic.path == "."
    assert logic.repo == tree.git("remote", "get-url", "origin")
    assert checked_out(logic, archive, tmp_path) == {
        "a.sql": "SELECT 10",
        "d/c.sql": "SELECT 3",
        ".gitignore": "*.db",
        "new.sql": "SELECT 4",
        "staged.sql": "SELECT 6",
    }
    assert tree.untouched() == before
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_commit_lies_on_head_by_no_persons_name(
    tree: Tree, trees: WorkingTrees, archive: FolderArchive, tmp_path: Path
) -> None:
    tree.write({"a.sql": "SELECT 10"})
    logic = trees.commit(tree.folder)
    (pack,) = archive.folder.rglob("*.pack")
    with pack.open("rb") as stream:
        subprocess.run(["git", "-C", str(tree.folder), "unpack-objects", "-q"], stdin=stream, env=GIT_ENV, check=True)
    written = tree.git("cat-file", "commit", logic.commit)
    who = "stage-runner working tree <working-tree@localhost> 1700000000 +0000"
    assert written.splitlines()[1:] == [
        f"parent {tree.git('rev-parse', 'HEAD')}",
        f"author {who}",
        f"committer {who}",
        "",
        "working tree",
    ]


def test_the_same_files_on_the_same_commit_are_one_commit_kept_once(
    tree: Tree, trees: WorkingTrees, archive: FolderArchive
) -> None:
    tree.write({"a.sql": "SELECT 10"})
    first = trees.commit(tree.folder)
    (pack,) = archive.folder.rglob("*.pack")
    kept = pack.stat().st_mtime_ns
    tree.write({"a.sql": "SELECT 11"})
    other = trees.commit(tree.folder)
    tree.write({"a.sql": "SELECT 10"})
    assert trees.commit(tree.folder) == first != other
    assert pack.stat().st_mtime_ns == kept
    assert len(list(archive.folder.rglob("*.pack"))) == 2


def test_a_change_that_its_file_does_not_show_by_size_or_time_is_found(tree: Tree, trees: WorkingTrees) -> None:
    """git tells such a change by its index being no newer than the file: a copied index keeps its time."""
    file = tree.folder / "a.sql"
    at = file.stat().st_mtime_ns
    tree.git("config", "core.trustctime", "false")
    tree.git("update-index", "--refresh")
    os.utime(tree.folder / ".git/index", ns=(at, at))
    file.write_text("SELECT 9")
    os.utime(file, ns=(at, at))
    assert trees.commit(tree.folder).dirty


def test_a_tree_with_nothing_changed_is_head_and_not_dirty_but_archived(
    server: GitServer, tree: Tree, trees: WorkingTrees, archive: FolderArchive, tmp_path: Path
) -> None:
    tree.write({"x.db": "ignored"})
    logic = trees.commit(tree.folder)
    assert (logic.commit, logic.dirty) == (tree.git("rev-parse", "HEAD"), False)
    assert checked_out(logic, archive, tmp_path / "one") == HEAD

    tree.write({"a.sql": "SELECT 10"})
    tree.git("commit", "--quiet", "--all", "--message=not pushed")
    unpushed = trees.commit(tree.folder)
    assert (unpushed.commit, unpushed.dirty) == (tree.git("rev-parse", "HEAD"), False)
    worker = GitLogic(tmp_path / "cache", archive, env=ENV)
    assert worker.checkout(unpushed.repo, unpushed.commit, tmp_path / "two").origin == "archive"
    assert (tmp_path / "two/a.sql").read_text() == "SELECT 10"


def test_a_folder_below_is_the_logics_path_and_the_whole_tree_is_taken(
    tree: Tree, trees: WorkingTrees, archive: FolderArchive, tmp_path: Path
) -> None:
    tree.write({"new.sql": "SELECT 4"})
    logic = trees.commit(tree.folder / "d")
    assert logic.path == "d"
    assert checked_out(logic, archive, tmp_path) == HEAD | {"new.sql": "SELECT 4"}


def test_our_own_folder_in_the_tree_is_left_out(tree: Tree, trees: WorkingTrees) -> None:
    tree.write({".runner/postgres/data": "state", ".runner/cache/x": "state"})
    assert not trees.commit(tree.folder).dirty


def test_what_the_person_ignores_everywhere_is_ignored(tree: Tree, trees: WorkingTrees, tmp_path: Path) -> None:
    (tmp_path / "home/.config/git").mkdir(parents=True)
    (tmp_path / "home/.config/git/ignore").write_text(".DS_Store\n")
    tree.write({".DS_Store": "x"})
    assert not trees.commit(tree.folder).dirty


def test_line_ends_are_committed_as_the_persons_own_commit_would_have_them(tree: Tree, trees: WorkingTrees) -> None:
    tree.git("config", "core.autocrlf", "input")
    tree.git("config", "core.safecrlf", "true")
    (tree.folder / "a.sql").write_bytes(b"SELECT 1\r\n")
    first = trees.commit(tree.folder)
    (tree.folder / "a.sql").write_bytes(b"SELECT 1\n")
    assert trees.commit(tree.folder) == first


def test_files_that_a_filter_keeps_elsewhere_are_the_pointers_that_it_gives_a_commit(
    tree: Tree, trees: WorkingTrees, archive: FolderArchive, tmp_path: Path
) -> None:
    """As Git LFS does; where its filter is not set up, a commit has the files."""
    tree.write({".gitattributes": "*.csv filter=lfs", "seed.csv": "1,Ada"})
    without = checked_out(trees.commit(tree.folder), archive, tmp_path / "without")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.gitconfig").write_text('[filter "lfs"]\n\tclean = "wc -c"\n')
    os.utime(tree.folder / "seed.csv")
    with_it = checked_out(trees.commit(tree.folder), archive, tmp_path / "with")
    assert (without["seed.csv"], with_it["seed.csv"].strip()) == ("1,Ada", "5")


def test_no_program_of_the_repositorys_is_run(tree: Tree, trees: WorkingTrees, tmp_path: Path) -> None:
    hook = tree.folder / ".git/hooks/post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    hook.chmod(0o755)
    monitor = tmp_path / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    monitor.chmod(0o755)
    tree.git("config", "core.fsmonitor", str(monitor))
    tree.write({"a.sql": "SELECT 10"})
    assert trees.commit(tree.folder).dirty
    assert not (tmp_path / "ran").exists()


def test_a_sparse_checkout_does_not_delete_what_it_leaves_out(
    tree: Tree, trees: WorkingTrees, archive: FolderArchive, tmp_path: Path
) -> None:
    tree.git("sparse-checkout", "set", "--no-cone", "/*", "!/d/")
    assert not (tree.folder / "d").exists()
    assert not trees.commit(tree.folder).dirty
    tree.write({"a.sql": "SELECT 10"})
    assert checked_out(trees.commit(tree.folder), archive, tmp_path) == HEAD | {"a.sql": "SELECT 10"}


def test_a_file_that_git_was_told_to_leave_alone_is_as_it_was_committed(tree: Tree, trees: WorkingTrees) -> None:
    tree.git("update-index", "--skip-worktree", "a.sql")
    tree.write({"a.sql": "SELECT 'of my machine'"})
    assert not trees.commit(tree.folder).dirty


def test_a_second_working_tree_of_a_repository_is_one_too(
    tree: Tree, trees: WorkingTrees, archive: FolderArchive, tmp_path: Path
) -> None:
    tree.git("worktree", "add", "--quiet", "-b", "work", str(tmp_path / "second: tree"))
    second = Tree(tmp_path / "second: tree")
    second.write({"a.sql": "SELECT 10"})
    assert checked_out(trees.commit(second.folder), archive, tmp_path) == HEAD | {"a.sql": "SELECT 10"}
    assert not trees.commit(tree.folder).dirty


def test_a_file_that_was_removed_from_the_index_alone_is_still_there(tree: Tree, trees: WorkingTrees) -> None:
    (tree.folder / ".git/index").unlink()
    assert not trees.commit(tree.folder).dirty


def test_symlinks_and_executables_stay_what_they_are(
    tree: Tree, trees: WorkingTrees, archive: FolderArchive, tmp_path: Path
) -> None:
    (tree.folder / "link").symlink_to("a.sql")
    (tree.folder / "a.sql").chmod(0o755)
    checked_out(trees.commit(tree.folder), archive, tmp_path)
    assert (tmp_path / "workspace/link").readlink() == Path("a.sql")
    assert os.access(tmp_path / "workspace/a.sql", os.X_OK)


# ---------------------------------------------------------------- where it comes from


@pytest.mark.parametrize(
    ("origin", "recorded"),
    [
        ("https://git.example.org/logic.git", "https://git.example.org/logic.git"),
        ("/srv/git/logic.git", "/srv/git/logic.git"),
        ("git@git.example.org:logic.git", "file://{}"),
        ("ssh://git@git.example.org/logic.git", "file://{}"),
        ("../logic.git", "file://{}"),
        (None, "file://{}"),
    ],
)
def test_the_record_names_the_origin_or_the_folder_where_workers_could_not_read_that(
    tree: Tree, trees: WorkingTrees, origin: str | None, recorded: str
) -> None:
    tree.git("remote", "remove", "origin")
    if origin is not None:
        tree.git("remote", "add", "origin", origin)
    assert trees.commit(tree.folder).repo == recorded.format(tree.folder)


@pytest.mark.parametrize("secret", ["ada:hunter2@", "hunter2@"])
def test_an_origin_with_a_password_is_refused_and_not_repeated(tree: Tree, trees: WorkingTrees, secret: str) -> None:
    tree.git("remote", "set-url", "origin", f"https://{secret}git.example.org/logic.git")
    with pytest.raises(SpecError, match="without user and password") as refused:
        trees.commit(tree.folder)
    assert "hunter2" not in refused.value.message


def test_a_tree_without_an_origin_is_found_by_its_folders_address(
    tree: Tree, trees: WorkingTrees, archive: FolderArchive, tmp_path: Path
) -> None:
    tree.git("remote", "remove", "origin")
    odd = tmp_path / "größer & 100%25 #1"
    tree.folder.rename(odd)
    assert checked_out(trees.commit(odd), archive, tmp_path / "clean") == HEAD
    (odd / "a.sql").write_text("SELECT 10")
    assert checked_out(trees.commit(odd), archive, tmp_path / "dirty") == HEAD | {"a.sql": "SELECT 10"}


# ---------------------------------------------------------------- what is refused


def test_what_is_no_working_tree_is_refused(server: GitServer, tree: Tree, trees: WorkingTrees, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    bare = server.root / "logic.git"
    for folder in (tmp_path / "plain", tmp_path / "nowhere", tree.folder / "a.sql", tree.folder / ".git", bare):
        with pytest.raises(SpecError, match="expected a folder of a git repository with files checked out, got"):
            trees.commit(folder)


def test_a_repository_without_a_commit_is_refused(trees: WorkingTrees, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path / "new")], env=GIT_ENV, check=True)
    (tmp_path / "new/a.sql").write_text("SELECT 1")
    with pytest.raises(SpecError, match="expected a commit to begin from, which git commit makes"):
        trees.commit(tmp_path / "new")


def test_a_repository_of_longer_names_is_refused(trees: WorkingTrees, tmp_path: Path) -> None:
    folder = Tree(tmp_path / "new")
    subprocess.run(["git", "init", "--quiet", "--object-format=sha256", str(folder.folder)], env=GIT_ENV, check=True)
    folder.git("commit", "--quiet", "--allow-empty", "--message=first")
    with pytest.raises(SpecError, match=r"expected commits of 40 hex digits \(SHA-1\), got [0-9a-f]{64}"):
        trees.commit(folder.folder)


def test_a_repository_in_the_repository_is_refused_by_its_path(tree: Tree, trees: WorkingTrees) -> None:
    """A submodule, or a clone that lies there: git would take the name of its commit, and none of its files."""
    packages = Tree(tree.folder / "packages/utils")
    subprocess.run(["git", "init", "--quiet", str(packages.folder)], env=GIT_ENV, check=True)
    packages.git("commit", "--quiet", "--allow-empty", "--message=first")
    with pytest.raises(LogicError, match="got a submodule at 'packages/utils'"):
        trees.commit(tree.folder)
    (tree.folder / ".git/info/exclude").write_text("packages/\n")
    assert not trees.commit(tree.folder).dirty


def test_more_than_a_commit_should_hold_is_refused_by_its_largest_file(
    tree: Tree, trees: WorkingTrees, archive: FolderArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working_tree, "MAX_CHANGED_MIB", 1)
    tree.write({"dev.duckdb": "x" * 1_000_000, "small.sql": "x" * 100_000, "x.db": "x" * 9_000_000})
    with pytest.raises(SpecError, match="expected at most 1 MiB of files that are not committed, got 2 MiB") as refused:
        trees.commit(tree.folder)
    assert refused.value.hint == "the largest is 'dev.duckdb': does it belong into .gitignore?"
    assert not archive.folder.exists()
    tree.write({"dev.duckdb": None})
    assert trees.commit(tree.folder).dirty


def test_a_tree_whose_files_are_all_deleted_is_a_commit_as_well(
    tree: Tree, trees: WorkingTrees, archive: FolderArchive, tmp_path: Path
) -> None:
    tree.write(dict.fromkeys(HEAD))
    assert checked_out(trees.commit(tree.folder), archive, tmp_path) == {}
