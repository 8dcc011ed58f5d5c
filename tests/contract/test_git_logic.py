"""The logic source against real git, over HTTP and from the file system."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runner.adapters.git_logic import MAX_FILE_BYTES, GitLogic
from runner.adapters.git_objects import archive_key, production_key, short_hash
from runner.adapters.git_remote import Remotes
from runner.model.errors import InfrastructureError, LogicError, RateLimitError, RunnerError, SpecError
from tests.support.git_server import GIT_ENV, Cut, FolderArchive, GitServer, Repository

ABSENT = "0123456789012345678901234567890123456789"
ENV = {"PATH": GIT_ENV["PATH"]}
CHECKOUT = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
from runner.adapters.git_logic import GitLogic
from tests.support.git_server import FolderArchive, GIT_ENV
cache, archive, repo, commit, workspace = sys.argv[2:]
logic = GitLogic(Path(cache), FolderArchive(Path(archive)), env={"PATH": GIT_ENV["PATH"]})
print(logic.checkout(repo, commit, Path(workspace)).tree)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    root = tmp_path / "served"
    root.mkdir()
    with GitServer(root) as server:
        yield server


@pytest.fixture
def archive(tmp_path: Path) -> FolderArchive:
    return FolderArchive(tmp_path / "archive")


@pytest.fixture
def logic(tmp_path: Path, archive: FolderArchive) -> GitLogic:
    return GitLogic(tmp_path / "cache", archive, env=ENV)


@pytest.fixture
def newcomer(tmp_path: Path, archive: FolderArchive) -> GitLogic:
    """Another machine: the same archive, an empty cache."""
    return GitLogic(tmp_path / "another cache", archive, env=ENV)


@pytest.fixture
def process(tmp_path: Path) -> Callable[[str, str, str], subprocess.Popen[bytes]]:
    """Starts a checkout by another process with the cache of `logic`; its gits note their ids in `pids`."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    real = shutil.which("git")
    (bin_ / "git").write_text(f'#!/bin/sh\necho $$ >>"{tmp_path}/pids"\nexec "{real}" "$@"\n')
    (bin_ / "git").chmod(0o755)

    def start(repo: str, commit: str, workspace: str) -> subprocess.Popen[bytes]:
        root = Path(__file__).parents[2]
        folders = [root, tmp_path / "cache", tmp_path / "archive"]
        arguments = [*map(str, folders), repo, commit, str(tmp_path / workspace)]
        env = {**os.environ, "PATH": f"{bin_}{os.pathsep}{GIT_ENV['PATH']}"}
        return subprocess.Popen([sys.executable, "-c", CHECKOUT, *arguments], stdout=subprocess.PIPE, env=env)

    return start


# ---------------------------------------------------------------- names to commits


def test_a_branch_a_tag_an_annotated_tag_and_a_commit_resolve_to_the_commit(server: GitServer, logic: GitLogic) -> None:
    repository = server.repository()
    commit = repository.commit({"a": b"1"})
    repository.git("tag", "light", commit)
    tag = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "tag", "-m", "first")
    repository.git(*tag, "v1.0", commit)
    repository.git(*tag, "of-a-tag", "v1.0")
    repository.commit({"a": b"2"}, branch="work/main")

    names = ["main", "light", "v1.0", "of-a-tag", "refs/heads/main", "refs/tags/v1.0", commit]
    assert {logic.resolve_ref(server.url(), name) for name in names} == {commit}


def test_a_branch_and_a_tag_of_one_name_must_agree(server: GitServer, logic: GitLogic) -> None:
    repository = server.repository()
    tagged = repository.commit({"a": b"1"})
    repository.git("tag", "main", tagged)
    assert logic.resolve_ref(server.url(), "main") == tagged

    newer = repository.commit({"a": b"2"})
    with pytest.raises(SpecError, match="'main', got both") as refused:
        logic.resolve_ref(server.url(), "main")
    assert refused.value.hint == "Write refs/heads/main or refs/tags/main."
    assert logic.resolve_ref(server.url(), "refs/heads/main") == newer
    assert logic.resolve_ref(server.url(), "refs/tags/main") == tagged


def test_a_name_that_the_repository_does_not_have_is_the_logics_fault(server: GitServer, logic: GitLogic) -> None:
    commit = server.repository().commit({"a": b"1"})
    for name in ("nowhere", commit[:12], "ain", "refs/heads/ain"):
        with pytest.raises(LogicError, match=rf"{server.url()}: expected a branch or tag '{name}', got none"):
            logic.resolve_ref(server.url(), name)
    with pytest.raises(LogicError, match=rf"expected commit {ABSENT} there or in the archive, got .*not our ref"):
        logic.resolve_ref(server.url(), ABSENT)


@pytest.mark.parametrize("name", ["", "--upload-pack=touch x", "ma*n", "a b", "a\nb", "main^", "HEAD~1", "x" * 300])
def test_a_name_that_can_be_none_is_refused(server: GitServer, logic: GitLogic, name: str) -> None:
    with pytest.raises(SpecError, match="expected a branch, a tag or a commit of 40 hex digits, got"):
        logic.resolve_ref(server.url(), name)


def test_a_hash_that_is_not_a_commits_is_refused(server: GitServer, logic: GitLogic, tmp_path: Path) -> None:
    repository = server.repository()
    tree = repository.git("rev-parse", repository.commit({"a": b"1"}) + "^{tree}")
    with pytest.raises(LogicError, match=rf"expected {tree} to be a commit .*, got a tree"):
        logic.resolve_ref(server.url(), tree)
    with pytest.raises(SpecError, match="expected a commit of 40 hex digits, got 'main'"):
        logic.checkout(server.url(), "main", tmp_path / "workspace")


# ---------------------------------------------------------------- repositories that fail


def test_a_repository_that_is_not_there_is_the_logics_fault(server: GitServer, logic: GitLogic, tmp_path: Path) -> None:
    for ask in (
        lambda: logic.resolve_ref(server.url("gone"), "main"),
        lambda: logic.checkout(server.url("gone"), ABSENT, tmp_path / "workspace"),
    ):
        with pytest.raises(LogicError, match=r"gone.git: expected .*, got repository '.*' not found"):
            ask()
    for path in (str(tmp_path / "gone"), f"file://{tmp_path}/gone"):
        with pytest.raises(LogicError, match=r"got '.*' does not appear to be a git repository"):
            logic.resolve_ref(path, "main")


def test_a_server_that_is_down_may_be_tried_again(server: GitServer, logic: GitLogic, tmp_path: Path) -> None:
    commit = server.repository().commit({"a": b"1"})
    server.stop()
    with pytest.raises(InfrastructureError, match=r"expected a branch or tag 'main', got .*Failed to connect"):
        logic.resolve_ref(server.url(), "main")
    with pytest.raises(InfrastructureError, match=rf"expected commit {commit} .*Failed to connect"):
        logic.checkout(server.url(), commit, tmp_path / "workspace")
    with pytest.raises(InfrastructureError, match="Could not resolve host"):
        logic.resolve_ref("http://logic.invalid/x.git", "main")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (500, InfrastructureError),
        (503, InfrastructureError),
        (408, InfrastructureError),
        (429, RateLimitError),
        (401, LogicError),
        (403, LogicError),
        (404, LogicError),
        (410, LogicError),
    ],
)
def test_an_http_status_says_whether_to_try_again(
    server: GitServer, logic: GitLogic, status: int, error: type[RunnerError]
) -> None:
    server.status = status
    with pytest.raises(error) as failed:
        logic.resolve_ref(server.url(), "main")
    assert type(failed.value) is error
    assert "\n" not in failed.value.message


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, archive: FolderArchive) -> None:
    impatient = GitLogic(tmp_path / "cache", archive, env=ENV, timeout_s=0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        repo = f"http://127.0.0.1:{silent.getsockname()[1]}/x.git"
        with pytest.raises(InfrastructureError, match=r"got no answer within 0.3 s"):
            impatient.resolve_ref(repo, "main")


def test_a_machine_without_git_is_told_so(tmp_path: Path, archive: FolderArchive) -> None:
    bare = GitLogic(tmp_path / "cache", archive, env={"PATH": str(tmp_path)})
    with pytest.raises(InfrastructureError, match="git: expected the command in"):
        bare.resolve_ref("http://127.0.0.1/x.git", "main")


@pytest.mark.parametrize(
    "repo",
    [
        "--upload-pack=touch pwned",
        "-u/x",
        "ext::sh -c touch% pwned",
        "ext::sh -c 'touch pwned' //x",
        "fd::17/x",
        "http::http://127.0.0.1/x.git",
        "https://ada:secret@example.org/x.git",
        "https://secret@example.org/x.git",
        "ada:secret@example.org:x.git",
        "ssh://git@example.org/x.git",
        "ssh://example.org/x.git",
        "git@example.org:x.git",
        "http:///x.git",
        "http://example.org",
        "HTTP://example.org/x.git",
        "file://elsewhere/x.git",
        "http://example.org/x.git\n",
        "http://example.org/\x1b[31m.git",
        "relative/x.git",
        "../x.git",
        "",
    ],
)
def test_an_address_that_git_may_not_be_given_is_refused_before_git_is_run(
    tmp_path: Path, archive: FolderArchive, repo: str
) -> None:
    without_git = GitLogic(tmp_path / "cache", archive, env={"PATH": str(tmp_path)})
    for ask in (
        lambda: without_git.resolve_ref(repo, "main"),
        lambda: without_git.resolve_ref(repo, ABSENT),
        lambda: without_git.read_file(repo, ABSENT, "a"),
        lambda: without_git.list_files(repo, ABSENT, "."),
        lambda: without_git.checkout(repo, ABSENT, tmp_path / "workspace"),
    ):
        with pytest.raises(SpecError, match=r"logic.repo: expected a URL") as refused:
            ask()
        assert "secret" not in refused.value.message
    assert not (tmp_path / "cache").exists()


def test_a_scheme_that_was_not_allowed_is_refused(server: GitServer, archive: FolderArchive, tmp_path: Path) -> None:
    repository = server.repository()
    commit = repository.commit({"a": b"1"})
    logic = GitLogic(tmp_path / "cache", archive, env=ENV, remotes=Remotes(schemes=frozenset({"https"})))
    for repo in (server.url(), str(repository.path), f"file://{repository.path}"):
        for ask in (
            lambda repo=repo: logic.resolve_ref(repo, "main"),
            lambda repo=repo: logic.checkout(repo, commit, tmp_path / "workspace"),
        ):
            with pytest.raises(SpecError, match=r"expected a repository by https, got '.*' by (http|file)") as refused:
                ask()
            assert refused.value.hint == "RUNNER_LOGIC_SCHEMES names the ways that are allowed"
    assert server.fetches == 0


# ---------------------------------------------------------------- single files


def test_one_file_of_a_commit_is_read_as_it_is_there(server: GitServer, logic: GitLogic) -> None:
    repository = server.repository()
    old = repository.commit({"pipelines/flights.yaml": b"name: old\r\n", ".gitattributes": b"* text eol=lf\n"})
    repository.commit({"pipelines/flights.yaml": b"name: new\n"})
    assert logic.read_file(server.url(), old, "./pipelines/flights.yaml") == b"name: old\r\n"


def test_a_file_that_is_not_there_or_not_one_is_the_logics_fault(server: GitServer, logic: GitLogic) -> None:
    commit = server.repository().commit(
        {"d/a": b"1", "link": ("120000", b"d/a"), "big": b"x" * (MAX_FILE_BYTES + 1), "full": b"x" * MAX_FILE_BYTES}
    )
    for path, came in {"b": "none", "../d/a": "none", "d": "a folder", "link": "a symlink", "big": "1,048,577"}.items():
        with pytest.raises(LogicError, match=rf"expected a file '{path}' .* in commit {commit}, got {came}"):
            logic.read_file(server.url(), commit, path)
    assert len(logic.read_file(server.url(), commit, "full")) == MAX_FILE_BYTES


def test_files_are_listed_below_a_folder(server: GitServer, logic: GitLogic) -> None:
    commit = server.repository().commit(
        {"p/b.yaml": b"", "p/a.yaml": b"", "p/q/c.yaml": b"", "pp/d.yaml": b"", "e": b""}
    )
    assert logic.list_files(server.url(), commit, "p") == ["p/a.yaml", "p/b.yaml", "p/q/c.yaml"]
    assert logic.list_files(server.url(), commit, "p/") == ["p/a.yaml", "p/b.yaml", "p/q/c.yaml"]
    assert logic.list_files(server.url(), commit, ".") == ["e", "p/a.yaml", "p/b.yaml", "p/q/c.yaml", "pp/d.yaml"]
    assert logic.list_files(server.url(), commit, "nowhere") == []


# ---------------------------------------------------------------- checkouts


def test_a_checkout_has_every_byte_whatever_the_attributes_ask_for(
    server: GitServer, logic: GitLogic, tmp_path: Path
) -> None:
    attributes = b"""
*.sql text eol=crlf
*.csv filter=lfs diff=lfs merge=lfs -text
*.txt ident
utf16 working-tree-encoding=UTF-16
hidden export-ignore
stamp export-subst
"""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    files: dict[str, bytes | tuple[str, bytes]] = {
        ".gitattributes": attributes,
        ".gitignore": b"*\n",
        "unix.sql": b"select 1\nfrom t\n",
        "dos.sql": b"select 1\r\nfrom t\r\n",
        "seed.csv": pointer,
        "id.txt": b"$Id$\n",
        "utf16": "größer\n".encode(),
        "hidden": b"kept",
        "stamp": b"$Format:%H$\n",
        "empty": b"",
        "bytes": bytes(range(256)) * 3,
        "ü mlaut/with space": b"1",
        "a/b.sql": b"1",
        "a.b": b"2",
        "a0": b"3",
        "run.sh": ("100755", b"#!/bin/sh\n"),
        "link": ("120000", b"a/b.sql"),
        "a/up": ("120000", b"../run.sh"),
        "dangling": ("120000", b"not/here"),
        "loop": ("120000", b"./pool"),
        "pool": ("120000", b"loop"),
    }
    repository = server.repository()
    commit = repository.commit(files, committed_at_s=1_370_044_800)

    checkout = logic.checkout(server.url(), commit, tmp_path / "workspace")

    assert checkout.commit == commit
    assert checkout.tree == repository.git("rev-parse", f"{commit}^{{tree}}")
    assert checkout.origin == "repository"
    assert checkout.committed_at == datetime(2013, 6, 1, tzinfo=UTC)
    found = {
        str(path.relative_to(tmp_path / "workspace")): _content(path)
        for path in (tmp_path / "workspace").rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    assert found == {path: file if isinstance(file, bytes) else file[1] for path, file in files.items()}
    assert os.access(tmp_path / "workspace/run.sh", os.X_OK)
    assert not (tmp_path / "workspace/unix.sql").stat().st_mode & 0o111


def _content(path: Path) -> bytes:
    return os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()  # noqa: PTH115 - exact


def test_the_second_checkout_asks_the_repository_for_nothing(
    server: GitServer, logic: GitLogic, tmp_path: Path
) -> None:
    commit = server.repository().commit({"a": b"1"})
    first = logic.checkout(server.url(), commit, tmp_path / "first")
    server.stop()
    assert logic.checkout(server.url(), commit, tmp_path / "second") == first
    assert logic.read_file(server.url(), commit, "a") == b"1"
    assert logic.resolve_ref(server.url(), commit) == commit
    assert server.fetches == 1


def test_commits_that_share_files_are_each_checked_out_whole(
    server: GitServer, logic: GitLogic, newcomer: GitLogic, tmp_path: Path
) -> None:
    repository = server.repository()
    commits = [repository.commit({"same": b"s" * 999, "n": b"%d" % number}) for number in range(3)]
    for number, commit in enumerate(commits):
        logic.checkout(server.url(), commit, tmp_path / f"w{number}")
    server.stop()
    for number, commit in enumerate(commits):
        again = tmp_path / f"again{number}"
        assert newcomer.checkout(server.url(), commit, again).origin == "archive"
        assert (again / "n").read_bytes() == b"%d" % number


def test_an_older_commit_is_checked_out_after_a_newer_one(server: GitServer, logic: GitLogic, tmp_path: Path) -> None:
    repository = server.repository()
    oldest = repository.commit({"a": b"1"})
    older = repository.commit({"a": b"2"}, parent=oldest)
    newest = repository.commit({"a": b"3"}, parent=older)
    for commit, content in {newest: b"3", oldest: b"1", older: b"2"}.items():
        logic.checkout(server.url(), commit, tmp_path / commit)
        assert (tmp_path / commit / "a").read_bytes() == content


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_repository_in_the_file_system_serves_as_well(
    server: GitServer, logic: GitLogic, tmp_path: Path, form: str
) -> None:
    repository = server.repository("with space")
    commit = repository.commit({"a": b"1"})
    repo = form.format(repository.path)
    assert logic.resolve_ref(repo, "main") == commit
    assert logic.checkout(repo, commit, tmp_path / "workspace").origin == "repository"
    assert (tmp_path / "workspace/a").read_bytes() == b"1"


def test_a_configuration_of_a_repository_around_the_current_folder_is_not_obeyed(
    server: GitServer, logic: GitLogic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = server.repository().commit({"a": b"1"})
    around = tmp_path / "around"
    subprocess.run(["git", "init", "--quiet", str(around)], env=GIT_ENV, check=True)
    with (around / ".git/config").open("a") as config:
        config.write('[url "http://elsewhere.invalid/"]\n\tinsteadOf = http://127.0.0.1\n')
    monkeypatch.chdir(around)
    assert logic.resolve_ref(server.url(), "main") == commit


def test_a_folder_with_files_is_not_checked_out_into(server: GitServer, logic: GitLogic, tmp_path: Path) -> None:
    commit = server.repository().commit({"a": b"1"})
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace/mine").touch()
    with pytest.raises(InfrastructureError, match="expected an empty folder, got one with files"):
        logic.checkout(server.url(), commit, tmp_path / "workspace")
    assert [path.name for path in (tmp_path / "workspace").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "files",
    [
        {"evil": ("120000", b"/etc/passwd")},
        {"evil": ("120000", b"../secret")},
        {"d/evil": ("120000", b"../../secret")},
        {"a/sub": ("120000", b"../b"), "b/x": b"", "evil": ("120000", b"a/sub/../../secret")},
        {"evil": ("120000", b"not/here/../../../secret")},
    ],
)
def test_a_symlink_that_leaves_the_workspace_is_refused(
    server: GitServer, logic: GitLogic, tmp_path: Path, files: dict[str, bytes | tuple[str, bytes]]
) -> None:
    commit = server.repository().commit(files)
    with pytest.raises(LogicError, match=r"expected symlinks that stay in the repository, got '(d/)?evil' to"):
        logic.checkout(server.url(), commit, tmp_path / "workspace")
    assert not (tmp_path / "workspace").exists()


def test_a_submodule_is_refused_by_its_path(server: GitServer, logic: GitLogic, tmp_path: Path) -> None:
    commit = server.repository().commit({"a": b"1", "packages/utils": ("160000", ABSENT.encode())})
    with pytest.raises(LogicError, match="got a submodule at 'packages/utils'"):
        logic.checkout(server.url(), commit, tmp_path / "workspace")
    assert logic.read_file(server.url(), commit, "a") == b"1"


@pytest.mark.parametrize("name", [b"..", b".git", b".GIT", b"a/../../b", b"/b", b"x" * 1001])
def test_a_path_that_no_working_copy_may_have_is_refused(
    server: GitServer, logic: GitLogic, tmp_path: Path, name: bytes
) -> None:
    repository = server.repository()
    commit = repository.commit_tree(b"100644 %s\0%s" % (name, repository.blob(b"x")))
    repository.git("update-ref", "refs/heads/main", commit)
    with pytest.raises(LogicError, match=r"without '\.\.' or '\.git' or control characters, got"):
        logic.checkout(server.url(), commit, tmp_path / "workspace")
    assert not (tmp_path / "workspace").exists()
    assert not (tmp_path / "b").exists()


def test_a_crafted_tree_cannot_write_through_its_own_symlink(
    server: GitServer, logic: GitLogic, tmp_path: Path
) -> None:
    repository = server.repository()
    (tmp_path / "outside").mkdir()
    folder = bytes.fromhex(
        repository.git("mktree", stdin=b"100644 blob %s\tx\n" % repository.blob(b"x").hex().encode())
    )
    link = repository.blob(os.fsencode(tmp_path / "outside"))
    commit = repository.commit_tree(b"120000 d\0" + link, b"40000 d\0" + folder)
    repository.git("update-ref", "refs/heads/main", commit)
    with pytest.raises(LogicError, match="expected 'd' to be a symlink of its own"):
        logic.checkout(server.url(), commit, tmp_path / "workspace")
    assert list((tmp_path / "outside").iterdir()) == []


def test_files_that_do_not_hash_to_the_commits_tree_are_refused(
    server: GitServer, logic: GitLogic, tmp_path: Path
) -> None:
    repository = server.repository()
    blob = repository.blob(b"x")
    commit = repository.commit_tree(b"100644 b\0" + blob, b"100644 a\0" + blob)  # in an order that git never writes
    repository.git("update-ref", "refs/heads/main", commit)
    tree = repository.git("rev-parse", f"{commit}^{{tree}}")
    with pytest.raises(LogicError, match=rf"expected files of tree {tree}, got"):
        logic.checkout(server.url(), commit, tmp_path / "workspace")
    assert not (tmp_path / "workspace").exists()


# ---------------------------------------------------------------- the archive


def test_a_commit_that_was_force_pushed_away_comes_from_the_archive(
    server: GitServer, logic: GitLogic, newcomer: GitLogic, tmp_path: Path
) -> None:
    repository = server.repository()
    lost = repository.commit({"a": b"1", "d/run.sh": ("100755", b"2"), "l": ("120000", b"a")})
    first = logic.checkout(server.url(), lost, tmp_path / "first")
    repository.commit({"a": b"other"})
    repository.forget()

    second = newcomer.checkout(server.url(), lost, tmp_path / "second")

    assert second.origin == "archive"
    assert (second.tree, second.committed_at) == (first.tree, first.committed_at)
    assert (tmp_path / "second/d/run.sh").read_bytes() == b"2"
    assert newcomer.checkout(server.url(), lost, tmp_path / "third") == second
    assert newcomer.resolve_ref(server.url(), lost) == lost


def test_a_repository_that_is_gone_is_replaced_by_the_archive(
    server: GitServer, logic: GitLogic, newcomer: GitLogic, tmp_path: Path
) -> None:
    repository = server.repository()
    commit = repository.commit({"a": b"1"})
    logic.checkout(server.url(), commit, tmp_path / "first")
    shutil.rmtree(repository.path)
    assert newcomer.checkout(server.url(), commit, tmp_path / "second").origin == "archive"
    assert newcomer.read_file(server.url(), commit, "a") == b"1"


def test_a_damaged_archive_is_refused(
    server: GitServer, logic: GitLogic, newcomer: GitLogic, archive: FolderArchive, tmp_path: Path
) -> None:
    repository = server.repository()
    commit = repository.commit({"a": b"1" * 999})
    logic.checkout(server.url(), commit, tmp_path / "first")
    pack = archive.folder / archive_key(server.url(), commit)
    whole = pack.read_bytes()
    repository.commit({"a": b"other"})
    repository.forget()

    for damage in (whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], whole[:-30], b"", b"no pack"):
        pack.write_bytes(damage)
        with pytest.raises(InfrastructureError, match=rf"expected all objects of {commit} in the archive"):
            newcomer.checkout(server.url(), commit, tmp_path / "second")
    pack.write_bytes(whole)
    assert newcomer.checkout(server.url(), commit, tmp_path / "second").origin == "archive"


def test_an_archive_that_was_forged_is_refused(
    server: GitServer, logic: GitLogic, newcomer: GitLogic, archive: FolderArchive, tmp_path: Path
) -> None:
    repository = server.repository()
    commit = repository.commit({"a": b"harmless"})
    logic.checkout(server.url(), commit, tmp_path / "first")
    forged = repository.commit({"a": b"harmful"})
    logic.checkout(server.url(), forged, tmp_path / "forged")
    repository.forget()

    forgery = (archive.folder / archive_key(server.url(), forged)).read_bytes()  # a pack in good order, of other files
    (archive.folder / archive_key(server.url(), commit)).write_bytes(forgery)
    with pytest.raises(InfrastructureError, match=rf"expected all objects of {commit} in the archive, got"):
        newcomer.checkout(server.url(), commit, tmp_path / "second")


def test_an_archive_without_some_of_the_files_is_refused(
    server: GitServer, logic: GitLogic, newcomer: GitLogic, archive: FolderArchive, tmp_path: Path
) -> None:
    repository = server.repository()
    commit = repository.commit({"a": b"1", "b": b"2"})
    logic.checkout(server.url(), commit, tmp_path / "first")
    objects = repository.git("rev-list", "--objects", "--no-object-names", commit).splitlines()
    (archive.folder / archive_key(server.url(), commit)).write_bytes(_pack(repository, objects[:-1]))
    repository.commit({"a": b"other"})
    repository.forget()
    with pytest.raises(InfrastructureError, match=rf"expected all objects of {commit} in the archive, got missing"):
        newcomer.checkout(server.url(), commit, tmp_path / "second")


def _pack(repository: Repository, oids: list[str]) -> bytes:
    command = ["git", f"--git-dir={repository.path}", "pack-objects", "--quiet", "--stdout"]
    names = "".join(f"{oid}\n" for oid in oids).encode()
    return subprocess.run(command, input=names, env=GIT_ENV, check=True, capture_output=True).stdout


# ---------------------------------------------------------------- what production contains


def chain(repository: Repository, *contents: bytes, branch: str = "main") -> list[str]:
    """Commits one upon the other."""
    commits: list[str] = []
    for content in contents:
        commits.append(repository.commit({"a": content}, branch=branch, parent=commits[-1] if commits else None))
    return commits


def test_a_branch_reaches_its_commits_and_no_others(server: GitServer, logic: GitLogic) -> None:
    repository = server.repository()
    oldest, older, newest = chain(repository, b"1", b"2", b"3")
    ahead = repository.commit({"a": b"4"}, branch="work", parent=newest)
    unrelated = repository.commit({"a": b"5"}, branch="other")
    repository.git("-c", "user.name=Ada", "-c", "user.email=ada@example.org", "tag", "-m", "one", "v1", older)

    def reached(ref: str) -> list[bool]:
        return [logic.reached(server.url(), commit, ref) for commit in (oldest, older, newest, ahead, unrelated)]

    assert reached("main") == [True, True, True, False, False]
    assert reached("refs/heads/work") == [True, True, True, True, False]
    assert reached("v1") == [True, True, False, False, False]
    assert not logic.reached(server.url(), ABSENT, "main")


def test_history_is_fetched_once_for_a_tip_and_without_files_where_the_server_can(
    server: GitServer, logic: GitLogic, tmp_path: Path
) -> None:
    repository = server.repository()
    repository.git("config", "uploadpack.allowFilter", "true")
    first, second, _ = chain(repository, b"1", b"2", b"3")
    unmerged = repository.commit({"a": b"4"}, branch="work", parent=second)
    for _ in range(2):
        assert logic.reached(server.url(), first, "main")
        assert logic.reached(server.url(), second, "main")
        assert not logic.reached(server.url(), unmerged, "main")
    assert server.fetches == 1
    (store,) = (tmp_path / "cache").glob("*/history.git")
    kinds = repository.git(f"--git-dir={store}", "cat-file", "--batch-all-objects", "--batch-check=%(objecttype)")
    assert kinds.split() == ["commit"] * 3

    newest = repository.commit({"a": b"5"}, parent=unmerged)
    assert logic.reached(server.url(), unmerged, "main")
    assert logic.reached(server.url(), newest, "main")
    assert server.fetches == 2


def test_a_server_that_cannot_leave_out_files_serves_as_well(server: GitServer, logic: GitLogic) -> None:
    repository = server.repository()
    repository.git("config", "uploadpack.allowFilter", "false")
    first, _ = chain(repository, b"1", b"2")
    assert logic.reached(server.url(), first, "main")
    assert not logic.reached(server.url(), ABSENT, "main")


def test_what_production_contained_once_it_contains_though_the_branch_was_force_pushed_or_the_repository_is_gone(
    server: GitServer, logic: GitLogic, newcomer: GitLogic
) -> None:
    repository = server.repository()
    first, second = chain(repository, b"1", b"2")
    assert logic.reached(server.url(), first, "main")
    repository.commit({"a": b"other"})
    repository.forget()
    assert newcomer.reached(server.url(), first, "main")
    assert not newcomer.reached(server.url(), second, "main"), "nobody asked while it was there"

    shutil.rmtree(repository.path)
    asked = server.fetches
    assert newcomer.reached(server.url(), first, "main")
    assert server.fetches == asked
    with pytest.raises(LogicError, match="not found"):
        newcomer.reached(server.url(), second, "main")


def test_what_one_ref_contained_is_not_said_of_another(
    server: GitServer, logic: GitLogic, archive: FolderArchive
) -> None:
    repository = server.repository()
    commit = repository.commit({"a": b"1"})
    repository.commit({"a": b"2"}, branch="release")
    assert logic.reached(server.url(), commit, "main")
    assert archive.exists(production_key(server.url(), commit, "main"))
    assert not logic.reached(server.url(), commit, "release")


def test_a_no_is_asked_again(server: GitServer, logic: GitLogic) -> None:
    repository = server.repository()
    (first,) = chain(repository, b"1")
    ahead = repository.commit({"a": b"2"}, branch="work", parent=first)
    assert not logic.reached(server.url(), ahead, "main")
    repository.git("update-ref", "refs/heads/main", ahead)
    assert logic.reached(server.url(), ahead, "main")


def test_a_production_ref_that_is_missing_is_named_with_its_setting(server: GitServer, logic: GitLogic) -> None:
    commit = server.repository().commit({"a": b"1"})
    with pytest.raises(LogicError, match="expected a branch or tag 'live', got none") as missing:
        logic.reached(server.url(), commit, "live")
    assert missing.value.hint is not None
    assert missing.value.hint.startswith("RUNNER_PRODUCTION_REF names")


def test_a_repository_that_gives_no_answer_may_be_asked_again(server: GitServer, logic: GitLogic) -> None:
    commit = server.repository().commit({"a": b"1"})
    server.stop()
    with pytest.raises(InfrastructureError, match="Failed to connect"):
        logic.reached(server.url(), commit, "main")


def test_a_history_with_a_commit_that_no_git_would_make_today_is_read(server: GitServer, logic: GitLogic) -> None:
    repository = server.repository()
    oldest = repository.commit({"a": b"1"})
    tree = repository.git("rev-parse", f"{oldest}^{{tree}}")
    crooked = f"tree {tree}\nparent {oldest}\nauthor nobody\ncommitter nobody at no time\n\nlost\n".encode()
    odd = repository.git("hash-object", "-t", "commit", "-w", "--stdin", "--literally", stdin=crooked)
    newest = repository.commit({"a": b"3"}, parent=odd)
    assert logic.resolve_ref(server.url(), "main") == newest
    assert logic.reached(server.url(), oldest, "main")
    assert logic.reached(server.url(), odd, "main")


@pytest.mark.parametrize("ref", ["--upload-pack=touch x", "ma*n", "", "a b", "main^"])
def test_a_production_ref_that_can_be_none_is_refused(server: GitServer, logic: GitLogic, ref: str) -> None:
    commit = server.repository().commit({"a": b"1"})
    with pytest.raises(SpecError, match="expected a branch, a tag or a commit"):
        logic.reached(server.url(), commit, ref)


@pytest.mark.parametrize("store", ["history.git", "fetched.git"])
def test_a_cache_that_git_cannot_open_is_fetched_anew(
    server: GitServer, logic: GitLogic, tmp_path: Path, store: str
) -> None:
    first, second, third = chain(server.repository(), b"1", b"2", b"3")
    assert logic.reached(server.url(), first, "main")
    logic.checkout(server.url(), third, tmp_path / "one")
    (pack,) = (tmp_path / "cache").glob(f"*/{store}/objects/pack/*.pack")
    pack.chmod(0o600)
    pack.write_bytes(b"PACK" + bytes(200))
    assert logic.reached(server.url(), second, "main")
    assert logic.checkout(server.url(), third, tmp_path / "two").origin == "repository"


def test_history_that_the_repository_itself_lacks_is_not_reached(
    server: GitServer, logic: GitLogic, tmp_path: Path
) -> None:
    first, second = chain(server.repository(), b"1", b"2")
    shallow = tmp_path / "shallow.git"
    clone = ["git", "clone", "--quiet", "--bare", "--depth", "1", server.url(), str(shallow)]
    subprocess.run(clone, env=GIT_ENV, check=True, capture_output=True)
    assert logic.reached(str(shallow), second, "main")
    assert not logic.reached(str(shallow), first, "main")


# ---------------------------------------------------------------- the cache


def test_two_processes_check_out_at_once_and_fetch_once(
    server: GitServer,
    process: Callable[[str, str, str], subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    repository = server.repository()
    commit = repository.commit({"big": os.urandom(1_000_000)})
    with process(server.url(), commit, "one") as one, process(server.url(), commit, "two") as two:
        trees = {one.communicate()[0], two.communicate()[0]}
    assert trees == {repository.git("rev-parse", f"{commit}^{{tree}}").encode() + b"\n"}
    assert (tmp_path / "one/big").read_bytes() == (tmp_path / "two/big").read_bytes()
    assert server.fetches == 1


def test_a_fetch_that_was_killed_with_its_git_leaves_a_cache_that_works(
    server: GitServer,
    logic: GitLogic,
    process: Callable[[str, str, str], subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    commit = server.repository().commit({"big": os.urandom(1_000_000)})
    server.cut = Cut()
    with process(server.url(), commit, "one") as killed:
        assert server.cut.reached.wait(60)
        give_up_at_s = time.monotonic() + 60
        while not list((tmp_path / "cache").rglob("tmp_pack_*")):  # half the pack is sent; now it is being unpacked
            assert time.monotonic() < give_up_at_s
        killed.kill()
        fetch = int((tmp_path / "pids").read_text().split()[-1])
        os.killpg(fetch, signal.SIGKILL)  # it leads a group of its own: what unpacks is in it too
    assert list((tmp_path / "cache").rglob("shallow.lock"))
    assert list((tmp_path / "cache").rglob("tmp_pack_*"))
    server.cut.release.set()
    server.cut = None

    assert logic.checkout(server.url(), commit, tmp_path / "two").origin == "repository"
    assert list((tmp_path / "cache").rglob("tmp_*")) == []


def test_a_worker_killed_alone_leaves_the_lock_to_its_git(
    server: GitServer,
    logic: GitLogic,
    process: Callable[[str, str, str], subprocess.Popen[bytes]],
    tmp_path: Path,
) -> None:
    commit = server.repository().commit({"big": os.urandom(1_000_000)})
    cut = server.cut = Cut()
    with process(server.url(), commit, "one") as killed:
        assert cut.reached.wait(60)
        killed.kill()
    (lock,) = (tmp_path / "cache").glob("*.lock")
    with lock.open() as held, pytest.raises(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    server.cut = None
    cut.release.set()
    assert logic.checkout(server.url(), commit, tmp_path / "two").origin == "repository"


def test_what_a_dead_git_left_locked_is_cleared_away(server: GitServer, logic: GitLogic, tmp_path: Path) -> None:
    repository = server.repository()
    logic.checkout(server.url(), repository.commit({"a": b"1"}), tmp_path / "first")
    (store,) = (tmp_path / "cache").glob("*/fetched.git")
    commit = repository.commit({"a": b"2"})
    for left in ("shallow.lock", "config.lock", "HEAD.lock", f"refs/commits/{commit}.lock", "objects/pack/tmp_pack_x"):
        (store / left).touch()
    assert logic.checkout(server.url(), commit, tmp_path / "second").origin == "repository"


def test_a_commit_without_its_files_in_the_cache_is_fetched_again(
    server: GitServer, logic: GitLogic, tmp_path: Path
) -> None:
    repository = server.repository()
    logic.checkout(server.url(), repository.commit({"a": b"1"}), tmp_path / "first")
    (store,) = (tmp_path / "cache").glob("*/fetched.git")
    commit = repository.commit({"a": b"2"})
    content = repository.git("cat-file", "commit", commit).encode()
    put = ["git", f"--git-dir={store}", "hash-object", "-t", "commit", "-w", "--stdin"]
    done = subprocess.run(put, input=content, env=GIT_ENV, check=True, capture_output=True)
    assert done.stdout.decode().strip() == commit
    assert logic.checkout(server.url(), commit, tmp_path / "second").origin == "repository"
    assert (tmp_path / "second/a").read_bytes() == b"2"


def test_a_damaged_cache_fails_once_and_is_fetched_anew(server: GitServer, logic: GitLogic, tmp_path: Path) -> None:
    commit = server.repository().commit({"a": os.urandom(9999)})
    first = logic.checkout(server.url(), commit, tmp_path / "first")
    (snapshot,) = (tmp_path / "cache").glob("*/*.repository")
    (pack,) = (tmp_path / "cache").glob("*/fetched.git/objects/pack/*.pack")
    for damaged in (snapshot, pack):
        content = bytearray(damaged.read_bytes())
        content[5000] ^= 1
        damaged.chmod(0o600)
        damaged.write_bytes(content)
    for _ in range(2):  # the one, and then what it was made of
        with pytest.raises(InfrastructureError):
            logic.checkout(server.url(), commit, tmp_path / "second")
        assert not (tmp_path / "second").exists()
    assert logic.checkout(server.url(), commit, tmp_path / "third") == first


@pytest.mark.parametrize("left", [0, 1, 60, 300, 9000])
def test_a_snapshot_that_was_cut_off_is_fetched_anew(
    server: GitServer, logic: GitLogic, tmp_path: Path, left: int
) -> None:
    commit = server.repository().commit({"a": os.urandom(9999)})
    first = logic.checkout(server.url(), commit, tmp_path / "first")
    (snapshot,) = (tmp_path / "cache").glob("*/*.repository")
    os.truncate(snapshot, left)
    with pytest.raises(InfrastructureError, match=r"expected .* as (it was|they were) fetched, got"):
        logic.checkout(server.url(), commit, tmp_path / "second")
    assert logic.checkout(server.url(), commit, tmp_path / "third") == first


@pytest.mark.parametrize("where", ["snapshot", "repository"])
def test_an_object_changed_in_the_cache_is_not_taken_for_the_real_one(
    server: GitServer, logic: GitLogic, tmp_path: Path, where: str
) -> None:
    repository = server.repository()
    commit = repository.commit({"a": b"harmless"})
    first = logic.checkout(server.url(), commit, tmp_path / "first")
    (snapshot,) = (tmp_path / "cache").glob("*/*.repository")
    (store,) = (tmp_path / "cache").glob("*/fetched.git")
    blob = repository.blob(b"harmless").hex()
    if where == "snapshot":
        snapshot.write_bytes(snapshot.read_bytes().replace(b"harmless", b"harmful!"))
    else:
        snapshot.unlink()
        for pack in (store / "objects/pack").iterdir():
            pack.unlink()
        objects = _pack(repository, [commit, first.tree, blob])
        repository.git(f"--git-dir={store}", "unpack-objects", "-q", stdin=objects)
        changed = store / "objects" / blob[:2] / blob[2:]
        changed.chmod(0o600)
        changed.write_bytes(zlib.compress(b"blob 7\0harmful"))
    with pytest.raises(InfrastructureError, match=f"expected {blob} as it was fetched, got another blob"):
        logic.checkout(server.url(), commit, tmp_path / "second")
    assert logic.checkout(server.url(), commit, tmp_path / "third") == first


def test_a_cache_that_cannot_be_written_says_so(server: GitServer, archive: FolderArchive, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    logic = GitLogic(tmp_path / "file/cache", archive, env=ENV)
    with pytest.raises(
        InfrastructureError, match=r"file/cache.*: expected to read and write there, got Not a directory"
    ):
        logic.checkout(server.url(), ABSENT, tmp_path / "workspace")


# ---------------------------------------------------------------- the cache's size

MIB = 2**20


def bytes_on_disk(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


@pytest.fixture
def three(server: GitServer) -> dict[str, str]:
    """Three repositories, each with a commit that takes two MiB of a cache: packed, and as a snapshot."""
    return {name: server.repository(name).commit({"big": os.urandom(MIB)}) for name in ("a", "b", "c")}


def age(folder: Path) -> None:
    """Make it a minute later: the file system's clock moves in steps that a checkout can be quicker than."""
    for path in folder.rglob("*"):
        at_s = path.lstat().st_mtime - 60
        os.utime(path, (at_s, at_s), follow_symlinks=False)


def cached_names(server: GitServer, cache: Path) -> set[str]:
    return {name for name in ("a", "b", "c") if list((cache / short_hash(server.url(name))).glob("*.repository"))}


def test_the_repository_that_was_used_least_recently_goes_when_the_cache_is_full(
    server: GitServer, archive: FolderArchive, tmp_path: Path, three: dict[str, str]
) -> None:
    cache = tmp_path / "cache"
    logic = GitLogic(cache, archive, env=ENV, cache_bytes=5 * MIB)
    for number, name in enumerate("abac"):
        logic.checkout(server.url(name), three[name], tmp_path / f"w{number}")
        age(cache)
    assert cached_names(server, cache) == {"a", "c"}
    assert bytes_on_disk(cache) <= 5 * MIB

    fetches = server.fetches
    assert logic.checkout(server.url("b"), three["b"], tmp_path / "again").origin == "repository"
    assert server.fetches == fetches + 1
    assert cached_names(server, cache) == {"b", "c"}


def test_a_cache_that_is_large_enough_keeps_all(
    server: GitServer, archive: FolderArchive, tmp_path: Path, three: dict[str, str]
) -> None:
    logic = GitLogic(tmp_path / "cache", archive, env=ENV, cache_bytes=8 * MIB)
    for name, commit in three.items():
        logic.checkout(server.url(name), commit, tmp_path / name)
    assert cached_names(server, tmp_path / "cache") == {"a", "b", "c"}


def test_a_repository_that_somebody_is_at_work_on_stays(
    server: GitServer, archive: FolderArchive, tmp_path: Path, three: dict[str, str]
) -> None:
    cache = tmp_path / "cache"
    logic = GitLogic(cache, archive, env=ENV, cache_bytes=5 * MIB)
    for name in "ab":
        logic.checkout(server.url(name), three[name], tmp_path / name)
        age(cache)
    with (cache / f"{short_hash(server.url('a'))}.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        logic.checkout(server.url("c"), three["c"], tmp_path / "c")
    assert cached_names(server, cache) == {"a", "c"}


def test_of_one_repository_that_fills_the_cache_alone_the_newest_commit_stays(
    server: GitServer, archive: FolderArchive, tmp_path: Path
) -> None:
    cache, repository = tmp_path / "cache", server.repository()
    logic = GitLogic(cache, archive, env=ENV, cache_bytes=3 * MIB)
    commits = [repository.commit({"big": os.urandom(MIB)}, branch=f"b{number}") for number in range(5)]
    for number, commit in enumerate(commits):
        logic.checkout(server.url(), commit, tmp_path / f"w{number}")
        assert bytes_on_disk(cache) <= 3 * MIB
        assert (cache / short_hash(server.url()) / f"{commit}.repository").exists()
    server.stop()
    logic.checkout(server.url(), commits[-1], tmp_path / "again")


def test_a_commit_that_the_cache_cannot_hold_beside_its_pack_is_archived_all_the_same(
    server: GitServer, archive: FolderArchive, newcomer: GitLogic, tmp_path: Path
) -> None:
    commit = server.repository().commit({"big": os.urandom(MIB), "run.sh": ("100755", b"x"), "l": ("120000", b"big")})
    small = GitLogic(tmp_path / "cache", archive, env=ENV, cache_bytes=MIB * 5 // 4)
    first = small.checkout(server.url(), commit, tmp_path / "first")
    server.stop()
    second = newcomer.checkout(server.url(), commit, tmp_path / "second")
    assert (second.origin, second.tree) == ("archive", first.tree)


def test_what_an_earlier_release_left_in_the_cache_goes_like_the_rest(
    server: GitServer, archive: FolderArchive, tmp_path: Path, three: dict[str, str]
) -> None:
    cache = tmp_path / "cache"
    old = cache / "0123456789abcdef"
    (old / "fetched.git/objects").mkdir(parents=True)
    (old / "lock").touch()
    (old / "fetched.git/objects/pack").write_bytes(bytes(4 * MIB))
    GitLogic(cache, archive, env=ENV, cache_bytes=5 * MIB).checkout(server.url("a"), three["a"], tmp_path / "a")
    assert not old.exists()


# ---------------------------------------------------------------- the hot path


def test_a_commit_that_is_cached_and_archived_costs_neither_git_nor_a_request(
    server: GitServer, archive: FolderArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = server.repository().commit({f"models/{number}.sql": b"SELECT 1" for number in range(10)})
    logic = GitLogic(tmp_path / "cache", archive, env=ENV)
    first = logic.checkout(server.url(), commit, tmp_path / "first")
    asked = len(server.asked)

    def none(*given: object, **named: object) -> None:
        raise AssertionError("nobody is to be asked")

    monkeypatch.setattr(subprocess, "Popen", none)
    monkeypatch.setattr(archive, "exists", none)
    assert logic.checkout(server.url(), commit, tmp_path / "second") == first
    assert logic.read_file(server.url(), commit, "models/3.sql") == b"SELECT 1"
    assert len(logic.list_files(server.url(), commit, "models")) == 10
    assert len(server.asked) == asked


def test_each_worker_looks_once_whether_a_commit_is_archived(
    server: GitServer, logic: GitLogic, archive: FolderArchive, tmp_path: Path
) -> None:
    commit = server.repository().commit({"a": b"1"})
    logic.checkout(server.url(), commit, tmp_path / "first")
    shutil.rmtree(archive.folder)
    logic.checkout(server.url(), commit, tmp_path / "second")
    assert not archive.exists(archive_key(server.url(), commit))
    later = GitLogic(tmp_path / "cache", archive, env=ENV)
    later.checkout(server.url(), commit, tmp_path / "third")
    assert archive.exists(archive_key(server.url(), commit))


def test_gits_own_tools_read_what_is_archived(
    server: GitServer, logic: GitLogic, archive: FolderArchive, tmp_path: Path
) -> None:
    files: dict[str, bytes | tuple[str, bytes]] = {
        "empty": b"",
        "small": b"x" * 15,
        "sixteen": b"x" * 16,
        "large": os.urandom(3 * MIB),
        "d/run.sh": ("100755", b"1"),
        "d/link": ("120000", b"run.sh"),
    }
    repository = server.repository()
    commit = repository.commit(files)
    tree = logic.checkout(server.url(), commit, tmp_path / "workspace").tree
    elsewhere = Repository(tmp_path / "elsewhere.git")
    pack = (archive.folder / archive_key(server.url(), commit)).read_bytes()
    elsewhere.git("index-pack", "--stdin", "--strict", stdin=pack)
    listed = elsewhere.git("ls-tree", "-r", "-t", tree)
    assert listed == repository.git("ls-tree", "-r", "-t", commit)
    for path, file in files.items():
        content = subprocess.run(
            ["git", f"--git-dir={elsewhere.path}", "cat-file", "blob", f"{tree}:{path}"],
            env=GIT_ENV,
            check=True,
            capture_output=True,
        ).stdout
        assert content == (file if isinstance(file, bytes) else file[1])
