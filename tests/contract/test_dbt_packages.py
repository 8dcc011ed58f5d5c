"""What the worker fetches for a dbt project, and what it does not: over real HTTP and real git, nothing made up."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import stamina
import yaml

from runner.adapters import dbt_packages
from runner.adapters.dbt_packages import DbtPackages, sha1_hash
from runner.adapters.git_logic import GitLogic
from runner.adapters.http_source import HttpExtract
from runner.model.errors import InfrastructureError, LogicError, RunnerError, TransientError
from runner.model.hosts import HostRules
from runner.model.manifest import PackageRecord
from runner.model.names import hub_package_key, package_archive_key
from runner.model.spec import Source
from tests.support.git_server import GitServer
from tests.support.packages import archive, hub_index, lock, package
from tests.support.portal_server import PortalServer, Reply
from tests.support.twins import MemoryObjects, TestClock

TOOLS = {"package": "acme/tools", "version": "1.0.0"}
TOOLS_ARCHIVE = archive(package("tools", "{% macro one() %}1{% endmacro %}"))
TOOLS_SHA256 = hashlib.sha256(TOOLS_ARCHIVE).hexdigest()
NAMED = {**TOOLS, "name": "tools"}


class Rig:
    """A project's folder in its clone, a hub beside it, and workers that all share one lake."""

    def __init__(self, folder: Path, hub: PortalServer, git: GitServer) -> None:
        self.hub = hub
        self.git = git
        self.objects = MemoryObjects()
        self.clone = folder / "clone"
        self.project = self.clone / "dbt"
        self._folder = folder
        self._attempts = 0
        self.write({"dbt_project.yml": "name: small\nversion: 1.0.0\n"})

    def write(self, files: Mapping[str, str | bytes]) -> None:
        for path, content in files.items():
            target = self.project / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)

    def list(self, *entries: Mapping[str, Any], locked: Sequence[Mapping[str, Any]] | None = None) -> None:
        """packages.yml and its lock, of the same entries unless `locked` are others."""
        self.write({"packages.yml": yaml.safe_dump({"packages": list(entries)})})
        self.write({"package-lock.yml": lock(entries, entries if locked is None else locked)})

    def serve_tools(self, body: bytes = TOOLS_ARCHIVE) -> None:
        self.hub.answer("/api/v1/acme/tools.json", Reply(body=hub_index("tools", v1_0_0=self.hub.url("/t")).encode()))
        self.hub.answer("/t", Reply(body=body))

    def install(self, *, allowed: Sequence[str] = ("127.0.0.1",)) -> tuple[PackageRecord, ...]:
        """As a worker does that has just checked the clone out."""
        self._attempts += 1
        scratch = self._folder / f"scratch-{self._attempts}"
        rules = HostRules.parse(allowed, setting="RUNNER_PACKAGE_HOSTS")
        at_once = stamina.RetryingCaller(attempts=2, timeout=None, wait_initial=0, wait_max=0, wait_jitter=0)
        extract = HttpExtract(rules, clock=TestClock(), retrying=at_once, max_bytes=1_000_000)

        def fetch(source: Source, folder: Path) -> Path:
            return extract.fetch(source, folder, timeout_s=30, say=lambda told: None)

        env = {"PATH": os.environ["PATH"]}
        logic = GitLogic(self._folder / f"cache-{self._attempts}", self.objects, env=env)
        packages = DbtPackages(self.objects, logic, hub=self.hub.url("/")[:-1], allowed=rules, fetch=fetch)
        return packages.install(self.project, clone=self.clone, scratch=scratch)

    def refuses(self, *, allowed: Sequence[str] = ("127.0.0.1",), error: type[RunnerError] = LogicError) -> RunnerError:
        with pytest.raises(error) as caught:
            self.install(allowed=allowed)
        return caught.value

    @property
    def installed(self) -> Path:
        return self.project / "dbt_packages"

    def macro(self, name: str) -> str:
        return (self.installed / name / "macros/all.sql").read_text()

    def forget(self) -> None:
        """A fresh clone, as the next attempt's."""
        shutil.rmtree(self.installed)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    (tmp_path / "git").mkdir()
    with PortalServer() as hub, GitServer(tmp_path / "git") as git:
        yield Rig(tmp_path, hub, git)


# ---------------------------------------------------------------- what works


def test_a_hubs_package_is_installed_recorded_and_kept(rig: Rig) -> None:
    rig.serve_tools()
    rig.list(NAMED)
    (record,) = rig.install()
    assert record == PackageRecord(
        name="tools", version="1.0.0", source=rig.hub.url("/acme/tools"), sha256=TOOLS_SHA256
    )
    assert rig.macro("tools") == "{% macro one() %}1{% endmacro %}"
    assert rig.objects.get(package_archive_key(TOOLS_SHA256)) == TOOLS_ARCHIVE
    assert json.loads(rig.objects.get(hub_package_key("acme/tools", "1.0.0")) or b"") == {"sha256": TOOLS_SHA256}


def test_a_later_run_gets_the_same_bytes_though_the_hub_has_lost_or_changed_them(rig: Rig) -> None:
    rig.serve_tools()
    rig.list(TOOLS)  # as dbt before 1.10 locks it: without the project's name
    first = rig.install()
    rig.forget()
    rig.hub.answer("/api/v1/acme/tools.json", Reply(status=404))
    rig.hub.answer("/t", Reply(body=archive(package("tools", "changed"))))
    asked = len(rig.hub.asked)
    assert rig.install() == first
    assert rig.macro("tools") == "{% macro one() %}1{% endmacro %}"
    assert len(rig.hub.asked) == asked, "the hub was not asked"


def test_where_the_lake_has_lost_an_archive_only_the_same_bytes_will_do(rig: Rig) -> None:
    rig.serve_tools()
    rig.list(TOOLS)
    rig.install()
    rig.forget()
    del rig.objects._objects[package_archive_key(TOOLS_SHA256)]
    other = archive(package("tools", "changed"))
    rig.hub.answer("/t", Reply(body=other))
    refused = rig.refuses()
    assert TOOLS_SHA256 in refused.message
    assert hashlib.sha256(other).hexdigest() in refused.message
    rig.hub.answer("/t", Reply(body=TOOLS_ARCHIVE))
    (record,) = rig.install()
    assert record.sha256 == TOOLS_SHA256
    assert rig.objects.get(package_archive_key(TOOLS_SHA256)) == TOOLS_ARCHIVE


def test_of_two_workers_at_once_the_first_to_write_it_down_decides(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.serve_tools(archive(package("tools", "second")))
    rig.list(TOOLS)
    real = rig.objects.put_if_absent

    def after_another(key: str, body: bytes) -> bool:
        rig.objects.put(package_archive_key(TOOLS_SHA256), TOOLS_ARCHIVE)
        real(key, json.dumps({"sha256": TOOLS_SHA256}).encode())
        return real(key, body)

    monkeypatch.setattr(rig.objects, "put_if_absent", after_another)
    (record,) = rig.install()
    assert record.sha256 == TOOLS_SHA256
    assert rig.macro("tools") == "{% macro one() %}1{% endmacro %}"


def test_an_archive_in_the_lake_that_is_another_is_not_used(rig: Rig) -> None:
    rig.serve_tools()
    rig.list(TOOLS)
    rig.install()
    rig.forget()
    rig.objects.put(package_archive_key(TOOLS_SHA256), archive(package("tools", "tampered")))
    assert TOOLS_SHA256 in rig.refuses(error=InfrastructureError).message


def test_a_git_package_is_checked_out_at_its_commit_and_found_again_when_its_repository_is_gone(rig: Rig) -> None:
    repository = rig.git.repository("tools")
    commit = repository.commit({f"sub/{path}": str(text).encode() for path, text in package("tools", "x").items()})
    listed = {"git": rig.git.url("tools"), "revision": "main", "subdirectory": "sub"}
    rig.list(listed, locked=[{**listed, "revision": commit, "name": "tools"}])
    expected = PackageRecord(name="tools", version=commit, source=f"{rig.git.url('tools')}#sub", sha256=None)
    assert rig.install() == (expected,)
    assert rig.macro("tools") == "x"
    rig.forget()
    rig.git.status = 404
    assert rig.install() == (expected,)


def test_a_tarball_package_may_be_packed_or_plain(rig: Rig) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for path, text in package("plain").items():
            member = tarfile.TarInfo(f"any/{path}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(str(text).encode()))
    rig.hub.answer("/tools.tar.gz", Reply(body=TOOLS_ARCHIVE))
    rig.hub.answer("/plain.tar", Reply(body=plain.getvalue()))
    rig.list(
        {"tarball": rig.hub.url("/tools.tar.gz"), "name": "tools"}, {"tarball": rig.hub.url("/plain.tar"), "name": "p"}
    )
    records = rig.install()
    assert [(each.name, each.version, each.source) for each in records] == [
        ("tools", "tarball", rig.hub.url("/tools.tar.gz")),
        ("plain", "tarball", rig.hub.url("/plain.tar")),
    ]
    assert records[0].sha256 == TOOLS_SHA256


def test_a_project_without_packages_asks_for_nothing(rig: Rig) -> None:
    assert rig.install() == ()
    rig.write({"packages.yml": "packages:\n", "package-lock.yml": "packages: []\nsha1_hash: x\n"})
    assert rig.install() == ()
    assert rig.hub.asked == []


def test_packages_of_the_commit_go_on_working_without_a_lock(rig: Rig) -> None:
    rig.write({"packages.yml": yaml.safe_dump({"packages": [TOOLS]})})
    rig.write({f"dbt_packages/tools/{path}": text for path, text in package("tools", "vendored").items()})
    assert rig.install() == ()
    assert rig.macro("tools") == "vendored"


def test_a_package_of_the_commit_is_not_fetched_over_and_the_missing_one_is(rig: Rig) -> None:
    rig.serve_tools()
    other = {"package": "acme/other", "version": "2.0.0"}
    rig.list(TOOLS, other, locked=[{**other, "name": "other"}, TOOLS])
    rig.write({f"dbt_packages/other/{path}": text for path, text in package("other", "vendored").items()})
    assert [each.name for each in rig.install()] == ["tools"]
    assert rig.macro("other") == "vendored"
    # A lock that tells no name: what it is shows when it is there.
    rig.list(TOOLS, other)
    rig.write({f"dbt_packages/tools/{path}": text for path, text in package("tools", "mine").items()})
    assert rig.install() == ()
    assert rig.macro("tools") == "mine"


def test_a_local_packages_own_list_counts_and_its_lock_is_the_projects(rig: Rig) -> None:
    rig.serve_tools()
    local = {"local": "../shared"}
    rig.write(
        {"../shared/dbt_project.yml": "name: shared\n", "../shared/packages.yml": f"packages: [{json.dumps(TOOLS)}]"}
    )
    rig.write({"packages.yml": yaml.safe_dump({"packages": [local]})})
    assert "acme/tools" in rig.refuses().message
    rig.list(local, locked=[local, NAMED])
    assert [each.name for each in rig.install()] == ["tools"]


def test_packages_go_where_the_project_says(rig: Rig) -> None:
    rig.serve_tools()
    rig.list(NAMED)
    rig.write({"dbt_project.yml": "name: small\npackages-install-path: ../modules/here\n"})
    rig.install()
    assert (rig.clone / "modules/here/tools/dbt_project.yml").is_file()


def test_dependencies_yml_is_read_as_well(rig: Rig) -> None:
    rig.serve_tools()
    rig.write({"dependencies.yml": yaml.safe_dump({"packages": [TOOLS]}), "package-lock.yml": lock([TOOLS], [NAMED])})
    assert [each.name for each in rig.install()] == ["tools"]


# ---------------------------------------------------------------- dbt's own hash


LISTS = [
    "packages: [{package: a/b, version: 1.3.0}]",
    "packages: [{package: a/b, version: ['>=1.0.0', '<2.0.0']}, {package: a/a, version: 1.0}]",
    "packages: [{package: a/b, version: 0.1.0, install_prerelease: true}, {local: ../x}]",
    "packages: [{git: 'https://x.example.org/y.git', revision: v1}, {git: 'https://x.example.org/z.git'}]",
    "packages: [{git: 'https://x.example.org/y.git', revision: 1.0, warn-unpinned: false, subdirectory: s}]",
    "packages: [{tarball: 'https://x.example.org/y.tgz', name: y}, {package: é/b, version: 1.3.0}]",
    "packages: [{private: a/b, provider: github}, {package: a/b, version: [1.0, 2.5], name: b}]",
]


@pytest.mark.parametrize("text", LISTS)
def test_the_hash_of_a_list_is_the_one_that_dbt_writes(text: str) -> None:
    from dbt.config.project import package_config_from_data
    from dbt.task.deps import _create_sha1_hash

    document = yaml.safe_load(text)
    config = package_config_from_data(copy.deepcopy(document), copy.deepcopy(document))
    assert sha1_hash(document["packages"]) == _create_sha1_hash(config.packages)


# ---------------------------------------------------------------- what is refused


def test_packages_without_a_lock_are_refused_with_what_to_do(rig: Rig) -> None:
    rig.write({"packages.yml": yaml.safe_dump({"packages": [TOOLS]})})
    refused = rig.refuses()
    assert refused.message == "package-lock.yml: expected it beside the list of acme/tools, got none"
    assert "`dbt deps`" in str(refused.hint)


def test_a_package_that_a_local_one_lists_too_is_vendored_once(rig: Rig) -> None:
    listed = f"packages: [{json.dumps(TOOLS)}]"
    rig.write({"../shared/dbt_project.yml": "name: shared\n", "../shared/packages.yml": listed})
    rig.write({"packages.yml": yaml.safe_dump({"packages": [TOOLS, {"local": "../shared"}]})})
    rig.write({f"dbt_packages/tools/{path}": text for path, text in package("tools", "vendored").items()})
    assert rig.install() == ()


def test_two_packages_of_one_name_are_refused(rig: Rig) -> None:
    rig.serve_tools()
    rig.hub.answer("/other.tgz", Reply(body=TOOLS_ARCHIVE))
    rig.list(TOOLS, {"tarball": rig.hub.url("/other.tgz"), "name": "other"})
    assert "expected a project of its own name, got another 'tools'" in rig.refuses().message


def test_a_lock_that_locks_nothing_is_no_lock_of_what_is_listed(rig: Rig) -> None:
    rig.list(TOOLS)
    rig.write({"package-lock.yml": "packages: []\nsha1_hash: x\n"})
    assert sha1_hash([TOOLS]) in rig.refuses().message


def test_a_lock_of_other_packages_is_refused_with_both_hashes(rig: Rig) -> None:
    rig.serve_tools()
    rig.list(NAMED)
    rig.write({"packages.yml": yaml.safe_dump({"packages": [{**TOOLS, "version": "1.1.0"}]})})
    refused = rig.refuses()
    assert sha1_hash([NAMED]) in refused.message
    assert sha1_hash([{**TOOLS, "version": "1.1.0"}]) in refused.message
    assert rig.hub.asked == []


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"private": "acme/tools"}, "private: acme/tools"),
        ({"package": "acme/tools", "version": "{{ var('x') }}"}, "expected packages named without Jinja"),
        ({"git": "https://{{ env_var('TOKEN') }}@x.example.org/y.git", "revision": "0" * 40}, "without Jinja"),
        ({"git": "git@x.example.org:acme/tools.git", "revision": "0" * 40}, "expected an http(s) address"),
        ({"git": "ssh://x.example.org/tools.git", "revision": "0" * 40}, "expected an http(s) address"),
        ({"git": "file:///srv/tools.git", "revision": "0" * 40}, "expected an http(s) address"),
        ({"git": "/srv/tools.git", "revision": "0" * 40}, "expected an http(s) address"),
        ({"git": "https://user:secret@x.example.org/y.git", "revision": "0" * 40}, "without user and password"),
        ({"git": "https://x.example.org/y.git", "revision": "0" * 40}, "RUNNER_PACKAGE_HOSTS allows"),
        ({"git": "http://127.0.0.1/y.git", "revision": "v1.0"}, "expected a commit of 40 hex digits"),
        ({"tarball": "https://x.example.org/y.tgz", "name": "y"}, "RUNNER_PACKAGE_HOSTS allows"),
        ({"tarball": "http://169.254.169.254/latest", "name": "y"}, "RUNNER_PACKAGE_HOSTS allows"),
        ({"tarball": "file:///etc/passwd", "name": "y"}, "expected an http(s) URL"),
        ({"package": "../../runs/x", "version": "1.0.0"}, "expected `namespace/name` and one version"),
        ({"package": "acme/tools", "version": "../1"}, "expected `namespace/name` and one version"),
        ({"package": "acme/tools", "version": [">=1.0.0"]}, "expected `namespace/name` and one version"),
        ({"name": "nothing"}, "expected one of package, git, tarball, local, private"),
        ({"package": "acme/tools", "git": "x"}, "expected one of package, git, tarball, local, private"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_may_not_be_fetched_is_refused_with_the_reason(rig: Rig, entry: dict[str, Any], reason: str) -> None:
    listed = entry if "private" in entry or "Jinja" in reason else TOOLS
    rig.list(listed, locked=[entry])
    refused = rig.refuses()
    assert reason in refused.message
    assert "secret" not in refused.message
    assert rig.hub.asked == []


def test_where_the_hub_sends_one_has_to_be_allowed_too(rig: Rig) -> None:
    index = hub_index("tools", v1_0_0="https://elsewhere.example.org/t.tar.gz")
    rig.hub.answer("/api/v1/acme/tools.json", Reply(body=index.encode()))
    rig.list(TOOLS)
    refused = rig.refuses()
    assert refused.message.startswith("package acme/tools 1.0.0: expected a host that RUNNER_PACKAGE_HOSTS allows")
    assert "elsewhere.example.org" in refused.message


@pytest.mark.parametrize(
    ("reply", "error", "reason"),
    [
        (Reply(status=404), LogicError, "got 404"),
        (Reply(status=503), TransientError, "got 503"),
        (Reply(body=b"{}"), LogicError, "expected version 1.0.0 with a tarball"),
        (Reply(body=b"[" * 100_000), LogicError, "expected version 1.0.0 with a tarball"),
        (Reply(body=b'{"versions": {"1.0.0": {"downloads": 3}}}'), LogicError, "expected version 1.0.0 with a tarball"),
        (Reply(body=hub_index("tools", v2_0_0="http://127.0.0.1/").encode()), LogicError, "expected version 1.0.0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_hub_that_has_it_not_or_is_away(rig: Rig, reply: Reply, error: type[RunnerError], reason: str) -> None:
    rig.hub.answer("/api/v1/acme/tools.json", reply)
    rig.list(TOOLS)
    refused = rig.refuses(error=error)
    assert refused.message.startswith("package acme/tools 1.0.0: ")
    assert reason in refused.message


def entry(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def vast(name: str, size: int) -> bytes:
    """An archive whose header promises a file of `size` zeros, and has them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = size
        tar.addfile(member, io.BytesIO(bytes(size)))
    return out.getvalue()


HOSTILE = {
    "a symlink out": archive(package("tools"), entry("pkg-1.0.0/out", tarfile.SYMTYPE, "../../../../../../etc")),
    "an absolute symlink": archive(package("tools"), entry("pkg-1.0.0/out", tarfile.SYMTYPE, "/etc/passwd")),
    "a symlink out by way of another": archive(
        package("tools"),
        entry("pkg-1.0.0/here", tarfile.SYMTYPE, "."),
        entry("pkg-1.0.0/a/b/c/up", tarfile.SYMTYPE, "../../../here/../.."),
    ),
    "a symlink through a symlink": archive(
        package("tools"),
        entry("pkg-1.0.0/m", tarfile.SYMTYPE, "macros"),
        entry("pkg-1.0.0/m/x", tarfile.SYMTYPE, "all.sql"),
    ),
    "a symlink that takes a file's place": archive(
        package("tools"), entry("pkg-1.0.0/dbt_project.yml", tarfile.SYMTYPE, "macros/all.sql")
    ),
    "a hard link": archive(package("tools"), entry("pkg-1.0.0/hard", tarfile.LNKTYPE, "pkg-1.0.0/dbt_project.yml")),
    "a device": archive(package("tools"), entry("pkg-1.0.0/null", tarfile.CHRTYPE)),
    "a pipe": archive(package("tools"), entry("pkg-1.0.0/pipe", tarfile.FIFOTYPE)),
    "a path that climbs": archive(package("tools"), entry("../climbed", tarfile.DIRTYPE)),
    "a path of great length": archive(package("tools"), entry("pkg-1.0.0/" + "d/" * 600, tarfile.DIRTYPE)),
    "two folders": archive({**{f"a/{k}": v for k, v in package("tools").items()}, "b/x": ""}, folder=""),
    "no folder": archive(package("tools"), folder=""),
    "nothing": archive({}),
    "no project": archive({"macros/all.sql": ""}),
    "a name that climbs": archive({"dbt_project.yml": "name: ../../x\n"}),
    "a name of no kind": archive({"dbt_project.yml": "name: [a]\n"}),
    "a project that is no YAML": archive({"dbt_project.yml": "name: [\n"}),
    "no archive": b"<html>404</html>",
    "an archive that is cut off": TOOLS_ARCHIVE[: len(TOOLS_ARCHIVE) // 2],
    "more bytes than a package has": vast("pkg-1.0.0/zeros", dbt_packages.MAX_UNPACKED_BYTES + 1),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_archive_that_no_package_is_leaves_nothing_behind(rig: Rig, body: bytes) -> None:
    rig.serve_tools(body)
    rig.list(TOOLS)
    before = sorted(path for path in rig.clone.rglob("*"))
    refused = rig.refuses()
    assert refused.message.startswith("package acme/tools 1.0.0: ")
    assert sorted(path for path in rig.clone.rglob("*")) in (before, sorted([*before, rig.installed]))
    assert not list(rig.clone.parent.rglob("climbed"))


def test_a_symlink_within_the_package_is_kept(rig: Rig) -> None:
    rig.serve_tools(
        archive(package("tools", "m"), entry("pkg-1.0.0/more/link.sql", tarfile.SYMTYPE, "../macros/all.sql"))
    )
    rig.list(TOOLS)
    rig.install()
    assert (rig.installed / "tools/more/link.sql").readlink() == Path("../macros/all.sql")
    assert (rig.installed / "tools/more/link.sql").read_text() == "m"


def test_more_files_than_a_package_has_are_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbt_packages, "MAX_FILES", 3)
    rig.serve_tools(archive({**package("tools"), "a": "", "b": ""}))
    rig.list(TOOLS)
    assert "expected at most 3 files" in rig.refuses().message


@pytest.mark.parametrize("path", ["../../outside", "/outside", "{{ env_var('X') }}"])
def test_a_place_for_packages_outside_of_the_repository_is_refused(rig: Rig, path: str) -> None:
    rig.serve_tools()
    rig.list(TOOLS)
    rig.write({"dbt_project.yml": f'name: small\npackages-install-path: "{path}"\n'})
    with pytest.raises(LogicError):
        rig.install()
    assert not (rig.clone.parent / "outside").exists()


def test_a_local_package_outside_of_the_repository_is_refused(rig: Rig) -> None:
    outside = rig.clone.parent / "outside"
    outside.mkdir()
    (outside / "dbt_project.yml").write_text("name: outside\n")
    rig.list({"local": "../../outside"})
    assert "expected a folder of the repository" in rig.refuses().message


@pytest.mark.parametrize(
    "text", ["packages: [", "- a\n", "[" * 5_000, "packages: 3\n", "a: " + "x" * 1_100_000], ids=lambda text: text[:12]
)
def test_a_lock_that_is_none_is_refused(rig: Rig, text: str) -> None:
    rig.write({"packages.yml": yaml.safe_dump({"packages": [TOOLS]}), "package-lock.yml": text})
    assert rig.refuses().message.startswith("package-lock.yml: ")
