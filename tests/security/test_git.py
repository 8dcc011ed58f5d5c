"""Hostile addresses, trees, servers and caches: each attempt ends in an error that says so, or has no effect.

Where an attempt could fail for another reason than our walls, git alone is shown to fall for it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from runner.adapters import git_logic, git_snapshot
from runner.adapters.git_logic import GitLogic
from runner.adapters.git_objects import MAX_PATH_CHARS, archive_key, production_key
from runner.adapters.git_remote import Remotes, parse_tokens
from runner.app import App
from runner.config import Settings, load_settings, process_environment
from runner.embedded.services import Endpoints
from runner.model.errors import InfrastructureError, LogicError, RunnerError, SpecError
from runner.model.hosts import HostRules
from tests.support.git_server import GIT_ENV, FolderArchive, GitServer, Repository
from tests.support.twins import MemorySecrets

ABSENT = "0123456789012345678901234567890123456789"
ENV = {"PATH": GIT_ENV["PATH"]}
TOKEN = "ghp_S3cr3tS3cr3tS3cr3t"
Make = Callable[..., GitLogic]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    (tmp_path / "served").mkdir()
    with GitServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
def other(tmp_path: Path) -> Iterator[GitServer]:
    (tmp_path / "elsewhere").mkdir()
    with GitServer(tmp_path / "elsewhere") as server:
        yield server


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A worker's git, with the same cache each time."""

    def logic(**given: Any) -> GitLogic:
        return GitLogic(tmp_path / "cache", FolderArchive(tmp_path / "archive"), **{"env": ENV, **given})

    return logic


def only(*hosts: str, schemes: Sequence[str] = ("https", "http"), **given: Any) -> Remotes:
    rules = HostRules.parse(hosts, setting="RUNNER_LOGIC_HOSTS")
    return Remotes(schemes=frozenset(schemes), hosts=rules, **given)


def plain_git(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """git with none of our options: the control of an attempt."""
    return subprocess.run(["git", *arguments], env=env or GIT_ENV, capture_output=True, timeout=60)


# ---------------------------------------------------------------- addresses

ADDRESSES = [
    # commands
    "--upload-pack=touch pwned",
    "-oProxyCommand=touch pwned",
    "ssh://-oProxyCommand=touch%20pwned/x",
    "ext::sh -c touch% pwned",
    "ext::sh -c 'touch pwned' https://github.com/x",
    "fd::17/x",
    "http::https://github.com/x.git",
    "https://github.com::x",
    # passwords, and hosts that are not what they seem
    "https://ada@github.com/x.git",
    "https://ada:s3cr3t@github.com/x.git",
    "https://ada%3As3cr3t@github.com/x.git",
    "https://:s3cr3t@github.com/x.git",
    "https://github.com\\@evil.example/x.git",
    "https://github.com%2f@evil.example/x.git",
    "https://github.com%40evil.example/x.git",
    "https://github.com#@evil.example/x.git",
    "https://github.com?@evil.example/x.git",
    "https://github.com/x.git?token=s3cr3t",
    "https://github.com/x.git#s3cr3t",
    "https://github.com:443:80/x.git",
    "https://github.com:99999/x.git",
    "https://github.com:/x.git",
    "https://github.com:s3cr3t/x.git",
    "https://[::1/x.git",
    "https://[::1%25eth0]/x.git",
    "https:///github.com/x.git",
    "https://github.com//x.git",
    "https:/github.com/x.git",
    "https:github.com/x.git",
    "HTTPS://github.com/x.git",
    "https://g\u0131thub.com/x.git",
    "https://\uff47ithub.com/x.git",
    "https://github。com/x.git",
    "https://xn--github/\u202ex.git",
    # other ways
    "ssh://github.com/x.git",
    "ssh://git@github.com/x.git",
    "git@github.com:x.git",
    "git://github.com/x.git",
    "ftp://github.com/x.git",
    "ftps://github.com/x.git",
    "git+https://github.com/x.git",
    "javascript:alert(1)",
    # file systems
    "file://fileserver/share/x.git",
    "file://localhost/srv/x.git",
    "file:////fileserver/share/x.git",
    "//fileserver/share/x.git",
    "\\\\fileserver\\share\\x.git",
    "file:///srv/../etc",
    "file:///srv/%2e%2e/etc",
    "file:///srv/.%2E/etc",
    "/srv/git/../../etc",
    "/srv/git/..",
    "/srv/./git",
    "../x.git",
    "x.git",
    "",
    "C:\\x.git",
    # what is not seen
    "https://github.com/x.git\n",
    "https://github.com/x.git\nhost=evil.example",
    "https://github.com/x%0ahost=evil.example",
    "https://github.com/x%00.git",
    "https://github.com/x\0.git",
    "https://github.com/\x1b[31mx.git",
    "https://github.com/a/%2e%2e/%2e%2e/x.git",
    "https://github.com/a/..\\x.git",
    "\nhttps://github.com/x.git",
    " https://github.com/x.git",
]


@pytest.mark.parametrize("repo", ADDRESSES)
def test_an_address_is_refused_before_git_or_the_network_hear_of_it(tmp_path: Path, make: Make, repo: str) -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["8.8.8.8"]

    remotes = only("github.com", "evil.example", schemes=("https", "http", "file"), resolve=resolve)
    logic = make(env={"PATH": str(tmp_path)}, remotes=remotes)
    for ask in (
        lambda: logic.resolve_ref(repo, "main"),
        lambda: logic.resolve_ref(repo, ABSENT),
        lambda: logic.checkout(repo, ABSENT, tmp_path / "workspace"),
        lambda: logic.reached(repo, ABSENT, "main"),
        lambda: logic.read_file(repo, ABSENT, "a"),
    ):
        with pytest.raises(SpecError, match=r"^logic.repo: expected a URL") as refused:
            ask()
        assert refused.value.message.isprintable()
        assert "s3cr3t" not in refused.value.message
    assert asked == []
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_a_password_in_an_address_is_not_repeated(make: Make) -> None:
    with pytest.raises(SpecError) as refused:
        make().resolve_ref("https://ada:s3cr3t@github.com/x.git", "main")
    assert "'https://…@github.com/x.git'" in refused.value.message
    assert "s3cr3t" not in f"{refused.value.message} {refused.value.hint}"


def test_a_long_address_is_cut_in_messages(make: Make) -> None:
    with pytest.raises(SpecError) as refused:
        make().resolve_ref("ext::" + "x" * 100_000, "main")
    assert len(refused.value.message) < 500


@pytest.mark.parametrize(
    "repo",
    [
        "https://evil.example/x.git",
        "https://github.com.evil.example/x.git",
        "https://evilgithub.com/x.git",
        "https://github.com./x.git",
        "https://github.com:8443/x.git",
        "http://github.com/x.git",
        "https://0x7f.1/x.git",
        "https://2130706433/x.git",
        "https://127.1/x.git",
        "https://[::ffff:127.0.0.1]/x.git",
        "https://169.254.169.254/x.git",
        "https://-oProxyCommand=x/x.git".replace("=", "-"),
    ],
)
def test_a_host_that_is_not_on_the_list_is_not_asked(tmp_path: Path, make: Make, repo: str) -> None:
    resolved: list[str] = []

    def resolve(host: str, port: int) -> Sequence[str]:
        resolved.append(host)
        return ["8.8.8.8"]

    logic = make(env={"PATH": str(tmp_path)}, remotes=only("github.com:443", resolve=resolve))
    for ask in (lambda: logic.resolve_ref(repo, "main"), lambda: logic.checkout(repo, ABSENT, tmp_path / "workspace")):
        with pytest.raises(SpecError, match=r"expected a host that RUNNER_LOGIC_HOSTS allows, got"):
            ask()
    assert resolved == []


def test_a_host_that_is_on_the_list_is_asked_in_any_case(make: Make) -> None:
    """The control of the one before: the list lets its own through, to the resolver at least."""

    def resolve(host: str, port: int) -> Sequence[str]:
        raise OSError(f"asked for {host}:{port}")

    logic = make(remotes=only("github.com:443", resolve=resolve))
    with pytest.raises(InfrastructureError, match=r"asked for github\.com:443"):
        logic.resolve_ref("https://GitHub.com/x.git", "main")


def test_a_name_that_resolves_to_a_private_address_is_refused(make: Make, server: GitServer) -> None:
    server.repository().commit({"a": b"1"})
    port = server.address.rpartition(":")[2]
    repo = f"http://git.example.org:{port}/logic.git"
    for address in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1", "::ffff:127.0.0.1"):
        logic = make(remotes=only("git.example.org", resolve=lambda host, port, address=address: ["8.8.8.8", address]))
        with pytest.raises(SpecError, match=r"expected git\.example\.org to resolve to public addresses"):
            logic.resolve_ref(repo, "main")
    assert server.asked == []


def test_git_connects_to_the_address_that_was_checked_and_looks_up_no_other(make: Make, server: GitServer) -> None:
    commit = server.repository().commit({"a": b"1"})
    port = server.address.rpartition(":")[2]
    repo = f"http://git.example.org:{port}/logic.git"  # a name that no resolver knows
    looked_up: list[str] = []

    def resolve(host: str, port: int) -> Sequence[str]:
        looked_up.append(host)
        return ["127.0.0.1"]

    logic = make(remotes=only("git.example.org", "127.0.0.1", resolve=resolve))
    assert logic.resolve_ref(repo, "main") == commit
    assert looked_up == ["git.example.org"]
    with pytest.raises(InfrastructureError, match="Could not resolve host"):
        make().resolve_ref(repo, "main")


def test_a_proxy_gets_the_name_and_a_host_that_needs_none_is_checked(make: Make, server: GitServer) -> None:
    commit = server.repository().commit({"a": b"1"})
    port = server.address.rpartition(":")[2]
    env = {**ENV, "http_proxy": f"http://{server.address}"}  # which answers as the repository itself would

    def resolve(host: str, port: int) -> Sequence[str]:
        raise OSError("asked the resolver")

    def ask(host: str, **more: str) -> str:
        remotes = only("git.example.org", "127.0.0.1", resolve=resolve, env={**env, **more})
        return make(env={**env, **more}, remotes=remotes).resolve_ref(f"http://{host}:{port}/logic.git", "main")

    server.instead = lambda request: request.send_error(418)
    with pytest.raises(LogicError, match="418"):
        ask("git.example.org")
    assert [path.partition("/info")[0] for path, _ in server.asked] == [f"http://git.example.org:{port}/logic.git"]
    with pytest.raises(SpecError, match=r"RUNNER_LOGIC_HOSTS allows, got evil\.example"):
        ask("evil.example")
    with pytest.raises(InfrastructureError, match="asked the resolver"):
        ask("git.example.org", no_proxy="example.org")
    server.instead = None
    for exception in ("127.0.0.1", server.address):  # the second is one that curl alone does not know for one
        server.asked.clear()
        assert ask("127.0.0.1", no_proxy=exception) == commit
        assert {path.partition("/info")[0].partition("/git-")[0] for path, _ in server.asked} == {"/logic.git"}

    # And one that curl alone knows: it would go there itself, to whatever address it finds.
    server.asked.clear()
    server.instead = lambda request: request.send_error(418)
    with pytest.raises(LogicError, match="418"):
        ask("127.0.0.1", no_proxy="127.0.0.0/8")
    assert [path.partition("/info")[0] for path, _ in server.asked] == [f"http://{server.address}/logic.git"]


def test_a_repository_of_this_machine_is_read_only_where_files_are_configured(
    tmp_path: Path, make: Make, server: GitServer
) -> None:
    repository = server.repository()
    commit = repository.commit({"a": b"1"})
    closed, open_ = make(remotes=only()), make(remotes=only(schemes=("file",)))
    for repo in (str(repository.path), f"file://{repository.path}"):
        for ask in (
            lambda repo=repo: closed.resolve_ref(repo, "main"),
            lambda repo=repo: closed.checkout(repo, commit, tmp_path / "workspace"),
        ):
            with pytest.raises(SpecError, match="by file") as refused:
                ask()
            assert refused.value.hint == "RUNNER_LOGIC_SCHEMES names the ways that are allowed"
        assert open_.resolve_ref(repo, "main") == commit


def test_what_somebody_sent_from_another_machines_files_comes_from_the_archive_alone(
    tmp_path: Path, make: Make, server: GitServer
) -> None:
    repository = server.repository()
    commit = repository.commit({"a": b"sent"})
    make(remotes=only(schemes=("file",))).checkout(f"file://{repository.path}", commit, tmp_path / "sent")
    shutil.rmtree(tmp_path / "cache")
    later = repository.commit({"a": b"there, and not sent"})

    worker = make(remotes=only())
    assert worker.checkout(f"file://{repository.path}", commit, tmp_path / "workspace").origin == "archive"
    with pytest.raises(SpecError, match="by file"):
        worker.checkout(f"file://{repository.path}", later, tmp_path / "later")
    assert not worker.reached(f"file://{repository.path}", commit, "main"), "its main is nobody's production"


# ---------------------------------------------------------------- what a deployment allows


def deployment(home: Path, **given: object) -> App:
    settings = {"home": home, "ledger_url": SecretStr("postgresql://127.0.0.1:9/ledger"), **given}
    app = App(Settings.model_validate({**settings, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}))
    app.__dict__["objects"] = FolderArchive(home / "archive")
    return app


def test_a_deployment_that_names_no_hosts_asks_none(tmp_path: Path, server: GitServer) -> None:
    commit = server.repository().commit({"a": b"1"})
    for repo in ("https://github.com/x.git", server.url().replace("http", "https")):
        with pytest.raises(SpecError, match="RUNNER_LOGIC_HOSTS allows, which is empty, got"):
            deployment(tmp_path).logic.resolve_ref(repo, "main")
    for repo in (server.url(), str(server.root / "logic.git")):
        with pytest.raises(SpecError, match="expected a repository by https, got"):
            deployment(tmp_path).logic.resolve_ref(repo, "main")
    assert server.asked == []

    named = deployment(tmp_path, logic_hosts=(server.address,), logic_schemes=("http",))
    assert named.logic.resolve_ref(server.url(), "main") == commit


def test_with_nothing_set_a_laptop_reads_its_portal_its_own_files_and_any_host(
    tmp_path: Path, services: Endpoints, server: GitServer
) -> None:
    repository = server.repository()
    commit = repository.commit({"a": b"1"})
    app = App(Settings.model_validate({"home": tmp_path}))
    app.__dict__["embedded"] = services
    for repo in (server.url(), str(repository.path), f"file://{repository.path}"):
        assert app.logic.resolve_ref(repo, "main") == commit


def test_a_laptop_that_names_hosts_is_as_closed_and_keeps_its_portal(
    tmp_path: Path, services: Endpoints, server: GitServer
) -> None:
    server.repository().commit({"a": b"1"})
    app = App(Settings.model_validate({"home": tmp_path, "logic_hosts": ("github.com",)}))
    app.__dict__["embedded"] = services
    with pytest.raises(SpecError, match="RUNNER_LOGIC_HOSTS allows, got"):
        app.logic.resolve_ref(server.url(), "main")
    with pytest.raises(LogicError, match="not found"):
        app.logic.resolve_ref(f"{services.portal_url}/git/none.git", "main")


def test_packages_go_by_the_hosts_of_packages_and_logic_by_its_own(tmp_path: Path, server: GitServer) -> None:
    commit = server.repository().commit({"a": b"1"})
    app = deployment(tmp_path, package_hosts=(server.address,), logic_schemes=("http",))
    assert app.packages._logic.resolve_ref(server.url(), "main") == commit
    with pytest.raises(SpecError, match="RUNNER_LOGIC_HOSTS"):
        app.logic.resolve_ref(server.url(), "main")
    other = deployment(tmp_path, logic_hosts=(server.address,), logic_schemes=("http",), package_hosts=())
    assert other.logic.resolve_ref(server.url(), "main") == commit
    with pytest.raises(SpecError, match="RUNNER_PACKAGE_HOSTS"):
        other.packages._logic.resolve_ref(server.url(), "main")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RUNNER_LOGIC_SCHEMES", "https,ssh"),
        ("RUNNER_LOGIC_SCHEMES", "ext"),
        ("RUNNER_GIT_CACHE_MIB", "0"),
    ],
)
def test_a_setting_that_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SpecError, match=f"environment: {name}"):
        load_settings()


@pytest.mark.parametrize(
    "given",
    [
        {"logic_hosts": ("https://github.com",)},
        {"logic_hosts": ("github.com/x",)},
        {"logic_tokens": ("github.com",)},
        {"logic_tokens": ("github.com=a", "github.com:443=b")},
    ],
)
def test_a_worker_does_not_start_with_hosts_or_tokens_that_are_none(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="RUNNER_LOGIC_"):
        _ = deployment(tmp_path, **given).ports


def test_settings_are_read_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_LOGIC_HOSTS", "github.com, *.example.org:8443 ,10.0.0.0/8")
    monkeypatch.setenv("RUNNER_LOGIC_SCHEMES", "https, file")
    monkeypatch.setenv("RUNNER_LOGIC_TOKENS", "github.com=github-token, git.example.org:8443=oauth2:team/other")
    settings = load_settings()
    assert settings.logic_hosts == ("github.com", "*.example.org:8443", "10.0.0.0/8")
    assert settings.logic_schemes == ("https", "file")
    tokens = parse_tokens(settings.logic_tokens)
    assert {host: (token.user, token.secret) for host, token in tokens.items()} == {
        ("github.com", 443): ("x-access-token", "github-token"),
        ("git.example.org", 8443): ("oauth2", "team/other"),
    }
    monkeypatch.setenv("RUNNER_LOGIC_HOSTS", "")
    assert load_settings().logic_hosts == ()


# ---------------------------------------------------------------- tokens


@pytest.fixture
def private(server: GitServer) -> tuple[GitServer, str]:
    """A server that wants the token, and the commit on its main."""
    commit = server.repository().commit({"a": b"1"})
    server.password = TOKEN
    return server, commit


def holding(server: GitServer, secrets: MemorySecrets, *entries: str) -> Remotes:
    return Remotes(tokens=parse_tokens([f"{server.address}=github-token", *entries]), secrets=secrets)


def test_a_private_repository_is_read_with_its_hosts_token(
    tmp_path: Path, make: Make, private: tuple[GitServer, str]
) -> None:
    server, commit = private
    logic = make(remotes=holding(server, MemorySecrets({"github-token": f"{TOKEN}\n"})))
    assert logic.resolve_ref(server.url(), "main") == commit
    assert logic.checkout(server.url(), commit, tmp_path / "workspace").origin == "repository"
    assert set(server.passwords()) == {f"x-access-token:{TOKEN}"}
    assert server.asked[0][1] is None, "nobody is told who did not ask"


def test_a_private_repository_without_a_token_names_the_setting(make: Make, private: tuple[GitServer, str]) -> None:
    server, _ = private
    with pytest.raises(LogicError, match="could not read Username") as failed:
        make().resolve_ref(server.url(), "main")
    assert failed.value.hint is not None
    assert failed.value.hint.startswith("RUNNER_LOGIC_TOKENS names a secret for each host")


def test_the_user_beside_a_token_may_be_configured(make: Make, private: tuple[GitServer, str]) -> None:
    server, commit = private
    tokens = parse_tokens([f"{server.address}=oauth2:team/token"])
    logic = make(remotes=Remotes(tokens=tokens, secrets=MemorySecrets({"team/token": TOKEN})))
    assert logic.resolve_ref(server.url(), "main") == commit
    assert set(server.passwords()) == {f"oauth2:{TOKEN}"}


def test_a_token_that_is_refused_is_told_by_its_secrets_name(make: Make, private: tuple[GitServer, str]) -> None:
    server, _ = private
    logic = make(remotes=holding(server, MemorySecrets({"github-token": "ghp_expired"})))
    with pytest.raises(InfrastructureError, match=r"Authentication failed .* with the token of secret") as failed:
        logic.resolve_ref(server.url(), "main")
    assert failed.value.subject == "github-token"
    assert "ghp_expired" not in f"{failed.value.message} {failed.value.hint}"
    assert len(server.passwords()) == 1, "the same token is not tried again"


class Rotated(MemorySecrets):
    """A store whose value was held for too long."""

    def __init__(self, held: str, kept: str) -> None:
        super().__init__({"github-token": held})
        self.asked: list[bool] = []
        self._kept = kept

    def get(self, name: str, *, fresh: bool = False) -> str:
        self.asked.append(fresh)
        if fresh:
            self.put(name, self._kept)
        return super().get(name)


def test_a_token_that_was_rotated_is_fetched_again_once(
    tmp_path: Path, make: Make, private: tuple[GitServer, str]
) -> None:
    server, commit = private
    secrets = Rotated("ghp_old", TOKEN)
    logic = make(remotes=holding(server, secrets))
    assert logic.checkout(server.url(), commit, tmp_path / "workspace").origin == "repository"
    assert secrets.asked == [False, True]

    secrets = Rotated("ghp_old", "ghp_as_bad")
    with pytest.raises(InfrastructureError, match="Authentication failed"):
        make(remotes=holding(server, secrets)).resolve_ref(server.url(), "main")
    assert secrets.asked == [False, True]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "RUNNER_LOGIC_TOKENS: expected a token for 127.0.0.1, got none: secret 'github-token'"),
        ({"github-token": ""}, "expected secret 'github-token' to be a token of one line without blanks, got 0"),
        ({"github-token": '{"token": "x"}'}, "without blanks, got 14 characters"),
        ({"github-token": "a\nhost=evil.example"}, "without blanks"),
        ({"github-token": "a\0b"}, "without blanks"),
        ({"github-token": "x" * 5000}, "got 5,000 characters"),
    ],
)
def test_a_secret_that_is_no_token_is_the_configurations_fault(
    make: Make, private: tuple[GitServer, str], texts: dict[str, str], message: str
) -> None:
    server, _ = private
    with pytest.raises(InfrastructureError) as failed:
        make(remotes=holding(server, MemorySecrets(texts))).resolve_ref(server.url(), "main")
    assert message in failed.value.message
    assert server.passwords() == []


@pytest.mark.parametrize(
    "entry",
    [
        "github.com",
        "=x",
        "github.com=",
        "github.com:0=x",
        "github.com:99999=x",
        "https://github.com=x",
        f"github.com=user@host:{TOKEN}",
        f"github.com={TOKEN}:{TOKEN}:x",
        "github.com=a b",
    ],
)
def test_an_entry_that_is_none_is_told_without_what_may_be_a_token(entry: str) -> None:
    with pytest.raises(SpecError, match="RUNNER_LOGIC_TOKENS: expected host=secret") as refused:
        parse_tokens([entry])
    assert TOKEN not in f"{refused.value.message} {refused.value.hint}"


def test_a_token_is_not_sent_where_it_could_be_read_on_the_way(make: Make) -> None:
    tokens = parse_tokens(["git.example.org:80=github-token"])
    logic = make(remotes=Remotes(tokens=tokens, secrets=MemorySecrets({"github-token": TOKEN})))
    with pytest.raises(
        SpecError, match=r"expected https for git\.example\.org, as its token may not be read on the way"
    ):
        logic.resolve_ref("http://git.example.org/x.git", "main")


def test_a_token_goes_to_its_own_host_and_port_alone(
    make: Make, private: tuple[GitServer, str], other: GitServer
) -> None:
    server, commit = private
    other.repository().commit({"a": b"1"})
    other.password = TOKEN
    logic = make(remotes=holding(server, MemorySecrets({"github-token": TOKEN})))
    with pytest.raises(LogicError, match="could not read Username"):
        logic.resolve_ref(other.url(), "main")
    assert [header for _, header in other.asked] == [None]
    assert logic.resolve_ref(server.url(), "main") == commit


def test_a_server_that_redirects_to_another_does_not_get_it_the_token(
    make: Make, private: tuple[GitServer, str], other: GitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = private
    other.repository().commit({"a": b"1"})
    other.password = TOKEN
    server.redirect = f"http://{other.address}"
    remotes = holding(server, MemorySecrets({"github-token": TOKEN}))
    with pytest.raises(LogicError, match="302") as failed:
        make(remotes=remotes).resolve_ref(server.url(), "main")
    assert failed.value.hint == "redirects are not followed: name the address that this one leads to"
    assert other.asked == []

    # The second wall, with the first one taken down: git gets there, and asks for a password, and is given none.
    following = [option.replace("followRedirects=false", "followRedirects=true") for option in git_logic._OPTIONS]
    monkeypatch.setattr(git_logic, "_OPTIONS", tuple(following))
    with pytest.raises(InfrastructureError, match="unable to read askpass response"):
        make(remotes=remotes).resolve_ref(server.url(), "main")
    assert [header for _, header in other.asked] == [None]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Password for 'https://x-access-token@github.com': ", b"s3cr3t\n"),
        ("Password for 'https://x-access-token@github.com.evil.example': ", b""),
        ("Password for 'https://x-access-token@evil.example': ", b""),
        ("Password for 'https://x-access-token@github.com:8443': ", b""),
        ("Password for 'http://x-access-token@github.com': ", b""),
        ("Username for 'https://github.com': ", b""),
        ("Username for 'Password for 'https://x-access-token@github.com'': ", b""),
        ("", b""),
    ],
)
def test_the_askpass_program_answers_one_question_and_no_other(question: str, answer: bytes) -> None:
    read, write = os.pipe()
    os.write(write, b"s3cr3t\n")
    os.close(write)
    env = {"STAGE_RUNNER_ASKPASS_FOR": "https://x-access-token@github.com", "STAGE_RUNNER_ASKPASS_FD": str(read)}
    program = Path(git_logic.__file__).with_name("git_askpass.sh")
    done = subprocess.run([program, question], env=env, pass_fds=[read], capture_output=True)
    os.close(read)
    assert (done.stdout, done.returncode) == (answer, 0 if answer else 1)


def test_a_token_is_in_no_argument_no_environment_no_file_and_no_message(
    tmp_path: Path, make: Make, private: tuple[GitServer, str], caplog: pytest.LogCaptureFixture
) -> None:
    server, commit = private
    caplog.set_level(0)
    seen: list[str] = []

    def look(request: BaseHTTPRequestHandler) -> None:
        """Answers the request that has brought the token, when every git has had to do with it."""
        for process in Path("/proc").glob("[0-9]*"):
            for part in ("cmdline", "environ"):
                try:
                    seen.append((process / part).read_bytes().decode(errors="replace"))
                except OSError:
                    continue
        request.send_error(403, request.headers["Authorization"])

    server.instead = look
    logic = make(remotes=holding(server, MemorySecrets({"github-token": TOKEN})))
    with pytest.raises(LogicError, match="403") as failed:
        logic.resolve_ref(server.url(), "main")
    assert any("STAGE_RUNNER_ASKPASS_FOR" in each for each in seen), "git was looked at"
    assert [each for each in seen if TOKEN in each] == []
    server.instead = None
    logic.checkout(server.url(), commit, tmp_path / "workspace")
    told = f"{failed.value.message} {failed.value.hint} {caplog.text}"
    assert TOKEN not in told
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_a_server_that_repeats_the_token_does_not_get_it_into_a_message(
    make: Make, private: tuple[GitServer, str]
) -> None:
    server, _ = private

    def repeat(request: BaseHTTPRequestHandler) -> None:
        body = f"your token is {TOKEN}, or {request.headers['Authorization'].removeprefix('Basic ')}\n".encode()
        request.send_response(403)
        request.send_header("Content-Type", "text/plain; charset=utf-8")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    server.instead = repeat
    logic = make(remotes=holding(server, MemorySecrets({"github-token": TOKEN})))
    with pytest.raises(LogicError, match="403") as failed:
        logic.resolve_ref(server.url(), "main")
    assert failed.value.hint == "remote: your token is …, or …"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of git.example.org, its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command, to make a certificate")
    pem = tmp_path_factory.mktemp("tls") / "git.pem"
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -batch"
    names = ["-subj", "/CN=git.example.org", "-addext", "subjectAltName=DNS:git.example.org"]
    files = ["-keyout", str(pem), "-out", str(pem.with_suffix(".crt"))]
    subprocess.run(["openssl", *request.split(), *names, *files], check=True, capture_output=True)
    pem.write_bytes(pem.read_bytes() + pem.with_suffix(".crt").read_bytes())
    return pem


def test_by_https_the_token_goes_to_the_host_whose_certificate_it_is(
    tmp_path: Path, make: Make, certificate: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    (tmp_path / "tls").mkdir()
    with GitServer(tmp_path / "tls", tls=context) as server:
        commit = server.repository().commit({"a": b"1"})
        server.password = TOKEN
        port = server.address.rpartition(":")[2]
        trusting = {**ENV, "GIT_SSL_CAINFO": str(certificate.with_suffix(".crt"))}

        def ask(host: str, env: dict[str, str]) -> str:
            remotes = only(
                "*.example.org",
                "127.0.0.1",
                resolve=lambda host, port: ["127.0.0.1"],
                tokens=parse_tokens([f"{host}:{port}=github-token"]),
                secrets=MemorySecrets({"github-token": TOKEN}),
                schemes=("https",),
            )
            return make(env=env, remotes=remotes).resolve_ref(f"https://{host}:{port}/logic.git", "main")

        for host, env in (("other.example.org", trusting), ("git.example.org", ENV)):
            with pytest.raises(InfrastructureError, match=r"SSL|certificate"):
                ask(host, env)
        assert server.asked == []
        assert ask("git.example.org", trusting) == commit
        assert set(server.passwords()) == {f"x-access-token:{TOKEN}"}


# ---------------------------------------------------------------- trees


@pytest.mark.parametrize(
    "files",
    [
        {"evil": ("120000", b"/")},
        {"evil": ("120000", b"..")},
        {"d/evil": ("120000", b"../..")},
        {"d/evil": ("120000", b"../../../../../../../../etc/passwd")},
        {"evil": ("120000", b"/proc/self/environ")},
        {"up": ("120000", b"."), "evil": ("120000", b"up/up/up/..")},
        {"a": ("120000", b"b"), "b": ("120000", b"c"), "c": ("120000", b"d/.."), "evil": ("120000", b"a/../..")},
        {"d/here": b"", "one": ("120000", b"d"), "evil": ("120000", b"one/../../x")},
        {"evil": ("120000", b"d\\..\\..\\x/../../y")},
    ],
)
def test_a_symlink_that_leads_out_is_refused(
    tmp_path: Path, make: Make, server: GitServer, files: dict[str, bytes | tuple[str, bytes]]
) -> None:
    commit = server.repository().commit(files)
    with pytest.raises(LogicError, match=r"expected symlinks that stay in the repository, got '.*' to"):
        make().checkout(server.url(), commit, tmp_path / "workspace")
    assert not (tmp_path / "workspace").exists()


CROOKED = [
    b".git",
    b".GIT",
    b".gIt",
    ".g\u200cit".encode(),
    ".\u200dgi\ufefft".encode(),
    b"git~1",
    b"GIT~22",
    b".git.",
    b".git ",
    b".git . .",
    b".git::$INDEX_ALLOCATION",
    b"..",
    b".",
    b"a/../../x",
    b"/etc/passwd",
    b"a\nb",
    b"a\rb",
    b"\x1b[31mred",
    b"a\x07",
    b"\x7f",
    "\x9b31m".encode(),
    b"x" * 256,
    b"x" * 2**20,
]


@pytest.mark.parametrize("name", CROOKED, ids=lambda name: ascii(name[:20]))
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_name_that_means_something_to_git_or_to_a_terminal_is_refused(
    tmp_path: Path, make: Make, server: GitServer, name: bytes, kind: str
) -> None:
    repository = server.repository()
    file = b"100644 %s\0%s" % (name if kind == "file" else b"config", repository.blob(b"x"))
    if kind == "folder":
        inside = repository.git("hash-object", "-t", "tree", "-w", "--stdin", "--literally", stdin=file)
        file = b"40000 %s\0%s" % (name, bytes.fromhex(inside))
    commit = repository.commit_tree(file)
    with pytest.raises(LogicError, match=rf"expected paths of at most {MAX_PATH_CHARS} characters .*, got") as refused:
        make().checkout(served(repository, commit, server), commit, tmp_path / "workspace")
    assert not (tmp_path / "workspace").exists()
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 1500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "served"]


def served(repository: Repository, commit: str, server: GitServer) -> str:
    """The address at which a commit on no branch can be had."""
    repository.git("update-ref", "refs/heads/main", commit)
    return server.url()


@pytest.mark.parametrize(
    "name", [".gitignore", ".github/x", "gitx~1", "a.git", "..a", "...", "größe", "日本/語", "x" * 255]
)
def test_a_name_that_only_looks_like_one_is_not(tmp_path: Path, make: Make, server: GitServer, name: str) -> None:
    commit = server.repository().commit({name: b"1"})
    make().checkout(server.url(), commit, tmp_path / "workspace")
    assert (tmp_path / "workspace" / name).read_bytes() == b"1"


def test_a_tree_is_no_program(tmp_path: Path, make: Make, server: GitServer) -> None:
    """Attributes, filters, hooks and a .gitmodules of a commit are files like others."""
    files = {
        ".gitattributes": b"* filter=evil diff=evil merge=evil\n",
        ".gitconfig": b'[filter "evil"]\n\tsmudge = touch pwned\n\trequired = true\n',
        ".gitmodules": b'[submodule "x"]\n\tpath = x\n\turl = --upload-pack=touch pwned\n',
        "hooks/post-checkout": b"#!/bin/sh\ntouch pwned\n",
        "a.sql": b"SELECT 1\r\n",
    }
    commit = server.repository().commit({**files, "hooks/post-checkout": ("100755", files["hooks/post-checkout"])})
    make().checkout(server.url(), commit, tmp_path / "workspace")
    found = {
        str(path.relative_to(tmp_path / "workspace")): path.read_bytes()
        for path in (tmp_path / "workspace").rglob("*")
        if path.is_file()
    }
    assert found == files


def test_a_submodule_is_refused_and_never_asked(
    tmp_path: Path, make: Make, server: GitServer, other: GitServer
) -> None:
    modules = f'[submodule "x"]\n\tpath = x\n\turl = {other.url()}\n'.encode()
    commit = server.repository().commit({".gitmodules": modules, "x": ("160000", ABSENT.encode())})
    with pytest.raises(LogicError, match="got a submodule at 'x'"):
        make().checkout(server.url(), commit, tmp_path / "workspace")
    assert other.asked == []


def bomb(repository: Repository, *, depth: int, width: int, leaf: bytes) -> str:
    """A commit of `width` to the power of `depth` files, in as many objects as it is deep."""
    line, kind = b"100644 %d\0" + repository.blob(leaf), "100644"
    for _ in range(depth):
        lines = b"".join(line.replace(b"%d", b"%06d" % number, 1) for number in range(width))
        tree = repository.git("hash-object", "-t", "tree", "-w", "--stdin", stdin=lines)
        line, kind = b"40000 %d\0" + bytes.fromhex(tree), tree
    who = b"Eve <eve@example.org> 1 +0000\n"
    commit = b"tree " + kind.encode() + b"\nauthor " + who + b"committer " + who + b"\nbomb\n"
    made = repository.git("hash-object", "-t", "commit", "-w", "--stdin", stdin=commit)
    repository.git("update-ref", "refs/heads/main", made)
    return made


@pytest.mark.parametrize(("depth", "width"), [(1, 100_000), (10, 10), (2, 300)])
def test_a_tree_of_too_many_files_is_refused_before_one_is_written(
    tmp_path: Path, make: Make, server: GitServer, depth: int, width: int
) -> None:
    commit = bomb(server.repository(), depth=depth, width=width, leaf=b"equal")
    for ask in (
        lambda: make().checkout(server.url(), commit, tmp_path / "workspace"),
        lambda: make().list_files(server.url(), commit, "."),
    ):
        with pytest.raises(
            LogicError, match="expected at most 50,000 files and folders of 1,024 MiB together, got more"
        ):
            ask()
    assert not (tmp_path / "workspace").exists()


def test_a_tree_of_too_many_bytes_is_refused_before_one_is_written(
    tmp_path: Path, make: Make, server: GitServer
) -> None:
    commit = bomb(server.repository(), depth=1, width=300, leaf=bytes(4 * 2**20))
    with pytest.raises(LogicError, match="expected at most 50,000 files and folders of 1,024 MiB together, got more"):
        make().checkout(server.url(), commit, tmp_path / "workspace")
    assert not (tmp_path / "workspace").exists()


def test_a_tree_without_end_in_depth_is_refused(tmp_path: Path, make: Make, server: GitServer) -> None:
    commit = bomb(server.repository(), depth=400, width=1, leaf=b"deep")
    for ask in (
        lambda: make().checkout(server.url(), commit, tmp_path / "workspace"),
        lambda: make().list_files(server.url(), commit, "."),
    ):
        with pytest.raises(LogicError, match=rf"expected paths of at most {MAX_PATH_CHARS} characters"):
            ask()


def test_more_objects_than_files_are_allowed_are_not_even_read(
    make: Make, server: GitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_logic, "MAX_FILES", 20)
    commit = server.repository().commit({f"f{number}": b"%d" % number for number in range(30)})
    with pytest.raises(LogicError, match="with at most 22 files and folders, got more"):
        make().read_file(server.url(), commit, "f1")


def test_a_commit_or_a_tree_of_a_size_that_none_has_is_not_read_into_memory(
    make: Make, server: GitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_snapshot, "_MAX_READ_BYTES", 100)
    commit = server.repository().commit({"a": b"x" * 5000})
    with pytest.raises(LogicError, match=r"expected a commit or folder of at most .* of 1\d\d bytes"):
        make().list_files(server.url(), commit, ".")


# ---------------------------------------------------------------- servers


def test_a_redirect_is_not_followed_wherever_it_leads(
    tmp_path: Path, make: Make, server: GitServer, other: GitServer
) -> None:
    commit = other.repository().commit({"a": b"1"})
    server.repository().commit({"a": b"2"})
    for to in (f"http://{other.address}", f"file://{other.root}", "http://169.254.169.254", "gopher://127.0.0.1:1"):
        server.redirect = to
        for ask in (
            lambda: make().resolve_ref(server.url(), "main"),
            lambda: make().checkout(server.url(), commit, tmp_path / "workspace"),
        ):
            with pytest.raises(LogicError, match="302") as failed:
                ask()
            assert failed.value.hint is not None
            assert failed.value.hint.startswith("redirects are not followed")
    assert other.asked == []

    server.redirect = f"http://{other.address}"
    assert commit in plain_git("ls-remote", server.url()).stdout.decode(), "git alone follows"


def test_alternates_that_a_server_names_are_not_asked(make: Make, server: GitServer, other: GitServer) -> None:
    """The old protocol, in which a server may send git on to others for objects."""
    repository = server.repository()
    commit = repository.commit({"a": b"1"})
    other.repository().commit({"a": b"1"})

    def dumb(request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        body = {
            "/logic.git/info/refs": f"{commit}\trefs/heads/main\n",
            "/logic.git/HEAD": "ref: refs/heads/main\n",
            "/logic.git/objects/info/http-alternates": f"{other.url()}/objects\n",
        }.get(path)
        request.send_response(404 if body is None else 200)
        request.end_headers()
        request.wfile.write((body or "").encode())

    server.instead = dumb
    with pytest.raises(LogicError, match="dumb http transport"):
        make().read_file(server.url(), commit, "a")
    assert other.asked == []


def advertised(line: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """A server that lists refs and does not stop."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/x-git-upload-pack-advertisement")
        request.end_headers()
        request.wfile.write(b"001e# service=git-upload-pack\n0000")
        while True:
            request.wfile.write(line * 1000)

    return answer


def test_a_list_of_refs_without_end_is_given_up_by_its_size(make: Make, server: GitServer) -> None:
    logic = make()
    assert logic._limits.memory_bytes == 1024**3
    logic._limits = replace(logic._limits, memory_bytes=128 * 1024**2)  # which is as good, and sooner
    server.instead = advertised(b"003f" + ABSENT.encode() + b" refs/heads/aaaaaa\n")
    with pytest.raises(LogicError, match="got more than git can hold in 128 MiB of memory"):
        logic.resolve_ref(server.url(), "main")


def test_words_without_end_are_not_kept(tmp_path: Path, make: Make) -> None:
    """A git that talks and talks, as one does that passes on what a server says."""
    (tmp_path / "bin").mkdir()
    git = tmp_path / "bin/git"
    git.write_text("#!/bin/sh\nyes 'remote: blah blah blah blah' >&2 &\nexec yes 0123456789abcdef\n")
    git.chmod(0o755)
    logic = make(env={"PATH": f"{git.parent}:{GIT_ENV['PATH']}"})
    with pytest.raises(LogicError, match="got an answer of more than 64 MiB"):
        logic.resolve_ref("https://git.invalid/x.git", "main")
    git.write_text("#!/bin/sh\nyes 'remote: blah blah blah blah' | head -c 50000000 >&2\nexit 128\n")
    with pytest.raises(InfrastructureError, match="a failure without words") as failed:
        logic.resolve_ref("https://git.invalid/x.git", "main")
    assert failed.value.hint == "remote: blah blah blah blah"


def test_a_pack_that_grows_beyond_the_cache_is_stopped(tmp_path: Path, make: Make, server: GitServer) -> None:
    commit = server.repository().commit({"big": os.urandom(3 * 2**20)})
    small = make(cache_bytes=2 * 2**20)
    with pytest.raises(LogicError, match="got more than 2 MiB") as failed:
        small.checkout(server.url(), commit, tmp_path / "workspace")
    assert failed.value.hint is not None
    assert "RUNNER_GIT_CACHE_MIB" in failed.value.hint
    assert make(cache_bytes=64 * 2**20).checkout(server.url(), commit, tmp_path / "workspace").commit == commit


def test_a_blob_that_unpacks_to_more_than_the_cache_is_stopped(tmp_path: Path, make: Make, server: GitServer) -> None:
    commit = server.repository().commit({"zeros": bytes(9 * 2**20)})
    small = make(cache_bytes=8 * 2**20)
    with pytest.raises(LogicError, match="got more than 8 MiB"):
        small.checkout(server.url(), commit, tmp_path / "workspace")
    assert not (tmp_path / "workspace").exists()


def test_a_server_that_drips_is_given_up(make: Make) -> None:
    """One byte now and then is no silence: what ends it is the time that a whole answer may take."""
    hung_up = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n\r\n")
            try:
                while not hung_up.wait(0.05):
                    connection.sendall(b"0")
            except OSError:
                hung_up.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        repo = f"http://127.0.0.1:{listener.getsockname()[1]}/x.git"
        with pytest.raises(InfrastructureError, match=r"got no answer within 1 s"):
            make(timeout_s=1).resolve_ref(repo, "main")
        assert hung_up.wait(30), "git and what it had started are gone"
        thread.join()


# ---------------------------------------------------------------- the cache, written by somebody


@pytest.fixture
def cached(tmp_path: Path, make: Make, server: GitServer) -> tuple[Repository, str, Path]:
    """A repository of which one commit is in the cache, the next commit, and the cache's bare repository."""
    repository = server.repository()
    first = repository.commit({"a": b"1"})
    make().checkout(server.url(), first, tmp_path / "first")
    (store,) = (tmp_path / "cache").glob("*/fetched.git")
    return repository, repository.commit({"a": b"2"}, parent=first), store


def fetch_plainly(store: Path, url: str, commit: str) -> None:
    """The control: git, with no care taken, in the same folder."""
    plain_git(f"--git-dir={store}", "fetch", "--quiet", "--depth", "1", url, f"+{commit}:refs/commits/{commit}")


def test_hooks_in_the_cache_do_not_run(
    tmp_path: Path, make: Make, server: GitServer, cached: tuple[Repository, str, Path]
) -> None:
    _, commit, store = cached
    marker = tmp_path / "pwned"

    def plant() -> None:
        for name in ("reference-transaction", "post-checkout", "pre-auto-gc", "fsmonitor-watchman"):
            hook = store / "hooks" / name
            hook.parent.mkdir(exist_ok=True)
            hook.write_text(f"#!/bin/sh\ntouch {marker}\n")
            hook.chmod(0o755)

    plant()
    make().checkout(server.url(), commit, tmp_path / "workspace")
    assert not marker.exists()
    plant()
    plain_git(f"--git-dir={store}", "update-ref", "refs/heads/x", commit)
    assert marker.exists(), "git alone runs it"


CONFIGS = {
    "insteadOf": '[url "{evil}"]\n\tinsteadOf = {url}\n',
    "pushInsteadOf and include": "[include]\n\tpath = {folder}/included\n",
    "proxy": "[http]\n\tproxy = {evil}\n",
    "fsmonitor": "[core]\n\tfsmonitor = touch {marker}\n",
    "sshCommand": "[core]\n\tsshCommand = touch {marker}\n\tgitProxy = touch {marker}\n",
    "packObjectsHook": "[uploadpack]\n\tpackObjectsHook = touch {marker}\n",
    "alternateRefsCommand": "[core]\n\talternateRefsCommand = touch {marker}\n",
    "askPass": "[core]\n\taskPass = {folder}/askpass\n",
    "credential helper": '[credential]\n\thelper = "!touch {marker};"\n',
    "hooksPath": "[core]\n\thooksPath = {folder}/hooks\n",
    "promisor": (
        "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tpartialClone = evil\n"
        '[remote "evil"]\n\turl = {other}\n\tpromisor = true\n\tuploadpack = "touch {marker};"\n'
    ),
    "nonsense": "[core\n",
    "worktreeConfig": "[extensions]\n\tworktreeConfig = true\n[core]\n\trepositoryformatversion = 1\n",
    "objectFormat": "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tobjectFormat = sha256\n",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_in_the_cache_is_not_obeyed(
    tmp_path: Path,
    make: Make,
    server: GitServer,
    other: GitServer,
    cached: tuple[Repository, str, Path],
    name: str,
) -> None:
    _, commit, store = cached
    marker = tmp_path / "pwned"
    for program in (tmp_path / "planted/askpass", tmp_path / "planted/hooks/reference-transaction"):
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\ntouch {marker}\necho x\n")
        program.chmod(0o755)
    (tmp_path / "planted/included").write_text(f'[url "{other.url()}"]\n\tinsteadOf = {server.url()}\n')
    text = CONFIGS[name].format(
        evil=other.url(), url=server.url(), folder=tmp_path / "planted", marker=marker, other=other.root / "x.git"
    )
    for file in ("config", "config.worktree"):
        (store / file).write_text(text)
    (store / "objects/info").mkdir(exist_ok=True)
    (store / "objects/info/alternates").write_text(f"{server.root}/logic.git/objects\n")
    server.password = TOKEN
    logic = make(remotes=holding(server, MemorySecrets({"github-token": TOKEN})))

    assert logic.checkout(server.url(), commit, tmp_path / "workspace").origin == "repository"
    assert not marker.exists()
    assert other.asked == []
    assert (store / "config").read_text() != text


def test_the_planted_configurations_would_be_obeyed_by_git_alone(
    tmp_path: Path, server: GitServer, other: GitServer, cached: tuple[Repository, str, Path]
) -> None:
    """The control of the one before, for two that send git elsewhere and two that run a program."""
    _, commit, store = cached
    marker, original = tmp_path / "pwned", (store / "config").read_text()
    for name in ("insteadOf", "proxy"):
        text = CONFIGS[name].format(evil=f"http://{other.address}", url=f"http://{server.address}")
        (store / "config").write_text(original + text)
        asked = len(other.asked)
        fetch_plainly(store, server.url(), commit)
        assert len(other.asked) > asked, name

    hooks = tmp_path / "planted/hooks"
    hooks.mkdir(parents=True)
    (hooks / "reference-transaction").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (hooks / "reference-transaction").chmod(0o755)
    (store / "config").write_text(original + CONFIGS["hooksPath"].format(folder=tmp_path / "planted"))
    fetch_plainly(store, server.url(), commit)
    assert marker.exists()

    marker.unlink()
    server.password = TOKEN
    (store / "config").write_text(original + CONFIGS["credential helper"].format(marker=marker))
    fetch_plainly(store, server.url(), commit)
    assert marker.exists()


def planted_link(at: Path, to: Path) -> None:
    if at.is_dir() and not at.is_symlink():
        shutil.rmtree(at)
    else:
        at.unlink(missing_ok=True)
    at.symlink_to(to)


@pytest.mark.parametrize("part", ["", "objects", "refs", "config", "HEAD"])
def test_links_in_the_cache_lead_no_write_out_of_it(
    tmp_path: Path, make: Make, server: GitServer, cached: tuple[Repository, str, Path], part: str
) -> None:
    _, commit, store = cached
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "tmp_mine").write_text("mine")
    planted_link(store / part if part else store, outside / "tmp_mine" if part in ("config", "HEAD") else outside)
    make().checkout(server.url(), commit, tmp_path / "workspace")
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("tmp_mine", "mine")]


@pytest.mark.parametrize("planted", ["link", "pipe", "folder", "device"])
def test_what_is_no_snapshot_is_not_opened_as_one(
    tmp_path: Path, make: Make, server: GitServer, cached: tuple[Repository, str, Path], planted: str
) -> None:
    _, commit, store = cached
    at = store.parent / f"{commit}.repository"
    if planted == "link":
        (tmp_path / "elsewhere").write_bytes(b"x")
        at.symlink_to(tmp_path / "elsewhere")
    elif planted == "device":
        at.symlink_to("/dev/zero")
    elif planted == "pipe":
        os.mkfifo(at)
    else:
        (at / "x").mkdir(parents=True)
    assert make().checkout(server.url(), commit, tmp_path / "workspace").commit == commit
    assert (tmp_path / "workspace/a").read_bytes() == b"2"


@pytest.mark.parametrize("part", ["lock", "shallow", "packed-refs", "config", "HEAD", "refs", "objects", "hooks"])
def test_a_pipe_in_the_cache_keeps_nobody_waiting(
    tmp_path: Path, make: Make, server: GitServer, cached: tuple[Repository, str, Path], part: str
) -> None:
    _, commit, store = cached
    at = store.parent.with_suffix(".lock") if part == "lock" else store / part
    if at.is_dir():
        shutil.rmtree(at)
    at.unlink(missing_ok=True)
    os.mkfifo(at)
    assert make(timeout_s=20).checkout(server.url(), commit, tmp_path / "workspace").origin == "repository"


FORGERIES: dict[str, Callable[[bytes], bytes]] = {
    "another file": lambda raw: raw.replace(b"blob 1\n1\n", b"blob 1\n9\n"),
    "another size": lambda raw: raw.replace(b"blob 1\n1\n", b"blob 2\n1\n\n"),
    "a negative size": lambda raw: raw.replace(b"blob 1\n", b"blob -9\n"),
    "a huge size": lambda raw: raw.replace(b"blob 1\n", b"blob 999999999999999\n"),
    "another kind": lambda raw: raw.replace(b" tree ", b" blob "),
    "nothing": lambda raw: b"",
    "an object less": lambda raw: raw[: raw.rindex(b" blob") - 40],
    "words": lambda raw: b"hello\n" * 1000,
    "one long line": lambda raw: b"x" * 10**7,
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_snapshot_that_somebody_changed_is_not_taken_for_the_commit(
    tmp_path: Path, make: Make, server: GitServer, name: str
) -> None:
    commit = server.repository().commit({"a": b"1"})
    first = make().checkout(server.url(), commit, tmp_path / "first")
    (snapshot,) = (tmp_path / "cache").glob("*/*.repository")
    snapshot.write_bytes(FORGERIES[name](snapshot.read_bytes()))
    with pytest.raises(InfrastructureError, match=r"expected .* as (it was|they were) fetched, got"):
        make().checkout(server.url(), commit, tmp_path / "second")
    assert not (tmp_path / "second").exists()
    assert make().checkout(server.url(), commit, tmp_path / "third") == first
    assert (tmp_path / "third/a").read_bytes() == b"1"


def test_another_commits_snapshot_is_not_taken_for_the_commit(tmp_path: Path, make: Make, server: GitServer) -> None:
    repository = server.repository()
    harmless, harmful = repository.commit({"a": b"1"}), repository.commit({"a": b"2"}, branch="evil")
    for commit in (harmless, harmful):
        make().checkout(server.url(), commit, tmp_path / commit)
    (store,) = (tmp_path / "cache").glob("*/fetched.git")
    shutil.copy(store.parent / f"{harmful}.repository", store.parent / f"{harmless}.repository")
    with pytest.raises(InfrastructureError, match=f"expected {harmless} as it was fetched, got another missing"):
        make().checkout(server.url(), harmless, tmp_path / "workspace")


def test_objects_that_stand_in_the_way_of_the_real_ones_cost_one_attempt(
    tmp_path: Path, make: Make, server: GitServer, cached: tuple[Repository, str, Path]
) -> None:
    """Somebody who knows what comes next puts other bytes where it will lie: git refuses to have both."""
    repository, commit, store = cached
    blob = repository.blob(b"2").hex()
    lie = store / "objects" / blob[:2] / blob[2:]
    lie.parent.mkdir(exist_ok=True)
    lie.write_bytes(zlib.compress(b"blob 1\0" + b"9"))
    with pytest.raises(InfrastructureError, match="expected commit"):
        make().checkout(server.url(), commit, tmp_path / "second")
    make().checkout(server.url(), commit, tmp_path / "third")
    assert (tmp_path / "third/a").read_bytes() == b"2"


def forged_commit(repository: Repository, store: Path, oid: str, parent: str) -> None:
    """Put under the name of a commit one that has another parent."""
    words = repository.git("cat-file", "commit", oid).split("\n")
    lines = [words[0], f"parent {parent}", *(word for word in words[1:] if not word.startswith("parent"))]
    changed = "\n".join(lines)
    place = store / "objects" / oid[:2] / oid[2:]
    place.parent.mkdir(exist_ok=True, parents=True)
    place.unlink(missing_ok=True)
    content = b"commit %d\0%s" % (len(changed), changed.encode())
    assert hashlib.sha1(content, usedforsecurity=False).hexdigest() != oid
    place.write_bytes(zlib.compress(content))


def forge_replacement(repository: Repository, store: Path, oid: str, parent: str) -> None:
    plain_git(f"--git-dir={store}", "replace", "--graft", oid, parent)


def forge_graft(repository: Repository, store: Path, oid: str, parent: str) -> None:
    (store / "info").mkdir(exist_ok=True)
    (store / "info/grafts").write_text(f"{oid} {parent}\n")


@pytest.mark.parametrize("forge", [forged_commit, forge_replacement, forge_graft])
def test_a_commit_is_not_smuggled_into_production_by_way_of_the_cache(
    tmp_path: Path,
    make: Make,
    server: GitServer,
    forge: Callable[[Repository, Path, str, str], None],
) -> None:
    repository = server.repository()
    old = repository.commit({"a": b"1"})
    tip = repository.commit({"a": b"2"}, parent=old)
    evil = repository.commit({"a": b"3"}, branch="evil", parent=old)
    logic = make()
    assert not logic.reached(server.url(), evil, "main")
    (history,) = (tmp_path / "cache").glob("*/history.git")
    plain_git(f"--git-dir={history}", "fetch", "--quiet", server.url(), evil)
    for pack in sorted((history / "objects/pack").iterdir()):  # loose, so that one can be changed
        if pack.suffix == ".pack":
            moved = pack.rename(tmp_path / pack.name)
            with moved.open("rb") as stream:
                unpack = ["git", f"--git-dir={history}", "unpack-objects", "-q"]
                subprocess.run(unpack, stdin=stream, env=GIT_ENV, check=True)
        else:
            pack.unlink()
    forge(repository, history, tip, evil)
    listed = plain_git(f"--git-dir={history}", "rev-list", tip).stdout.decode().split()
    assert evil in listed, "git alone believes it"

    if forge is forged_commit:
        with pytest.raises(InfrastructureError, match=f"expected {tip} as it was fetched"):
            logic.reached(server.url(), evil, "main")
    assert not logic.reached(server.url(), evil, "main")
    assert logic.reached(server.url(), old, "main")
    assert not FolderArchive(tmp_path / "archive").exists(production_key(server.url(), evil, "main"))


def test_the_cache_is_its_owners_alone(tmp_path: Path, make: Make, server: GitServer) -> None:
    commit = server.repository().commit({"a": b"1"})
    make().checkout(server.url(), commit, tmp_path / "workspace")
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


# ---------------------------------------------------------------- the archive


def test_a_bomb_in_the_archive_is_stopped(tmp_path: Path, make: Make, server: GitServer) -> None:
    repository = server.repository()
    commit = repository.commit({"zeros": bytes(9 * 2**20)})
    command = ["git", f"--git-dir={repository.path}", "pack-objects", "--quiet", "--stdout", "--revs"]
    pack = subprocess.run(command, input=b"main\n", env=GIT_ENV, check=True, capture_output=True).stdout
    place = tmp_path / "archive" / archive_key(server.url(), commit)
    place.parent.mkdir(parents=True)
    place.write_bytes(pack)
    shutil.rmtree(repository.path)
    assert len(pack) < 2**20
    with pytest.raises(LogicError, match="got more than 8 MiB"):
        make(cache_bytes=8 * 2**20).checkout(server.url(), commit, tmp_path / "workspace")


# ---------------------------------------------------------------- the worker's environment


def test_gits_own_variables_do_not_reach_it(
    tmp_path: Path, server: GitServer, other: GitServer, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    commit = server.repository().commit({"a": b"1"})
    marker = tmp_path / "pwned"
    planted = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.http://{other.address}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"http://{server.address}",
        "GIT_CONFIG_PARAMETERS": f"'http.proxy'='http://{other.address}'",
        "GIT_DIR": str(tmp_path / "elsewhere.git"),
        "GIT_EXEC_PATH": str(tmp_path / "programs"),
        "GIT_ASKPASS": str(tmp_path / "askpass"),
        "GIT_SSH_COMMAND": f"touch {marker}",
        "GIT_PROXY_COMMAND": f"touch {marker}",
        "GIT_EXTERNAL_DIFF": f"touch {marker}",
        "GIT_TRACE": str(tmp_path / "trace"),
        "GIT_TRACE_CURL": str(tmp_path / "trace"),
        "GIT_SSL_NO_VERIFY": "1",
        "GIT_OBJECT_DIRECTORY": str(tmp_path / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(tmp_path / "objects"),
        "GIT_ALLOW_PROTOCOL": "ext",
        "GIT_PROTOCOL_FROM_USER": "0",
        "ALL_PROXY": f"http://{other.address}",
        "all_proxy": f"http://{other.address}",
    }
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    made = make(env=process_environment()).checkout(server.url(), commit, tmp_path / "workspace")
    assert made.origin == "repository"
    assert other.asked == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "cache", "elsewhere", "served", "workspace"]

    for name in ("GIT_EXEC_PATH", "GIT_DIR", "GIT_ALLOW_PROTOCOL"):
        monkeypatch.delenv(name)
    plain_git("ls-remote", server.url(), env=dict(os.environ))
    assert (tmp_path / "trace").exists(), "git alone obeys"
    assert len(other.asked) > 0


# ---------------------------------------------------------------- one refusal does not spoil the next


def test_after_all_of_that_an_honest_commit_is_checked_out(tmp_path: Path, make: Make, server: GitServer) -> None:
    repository = server.repository()
    logic = make()
    for hostile in ({"evil": ("120000", b"/")}, {"x": ("160000", ABSENT.encode())}, {"bad\x1bname": b""}):
        commit = repository.commit(hostile)
        with pytest.raises(RunnerError):
            logic.checkout(server.url(), commit, tmp_path / "workspace")
    honest = repository.commit({"a": b"1"})
    assert logic.checkout(server.url(), honest, tmp_path / "workspace").commit == honest
