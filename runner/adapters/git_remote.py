"""Which repositories git may ask, and what it is given for the way: addresses that were checked, and a token."""

from __future__ import annotations

import base64
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # the stubs leave it out

from runner.adapters.git_objects import PORTS, SCHEMES, Address, Unauthorized
from runner.model.errors import InfrastructureError, LogicError, SpecError
from runner.model.hosts import HostRules, literal

TOKENS = "RUNNER_LOGIC_TOKENS"
USER = "x-access-token"
"""Who a token is said to be of where nothing else is configured: the hosts that care for it at all take this one."""

_SHOWN = 80
_TOKEN = re.compile(r"[!-~]{1,4096}")
_TOKEN_ENTRY = re.compile(
    r"(?P<host>[^\s=:\[\]]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?="
    r"(?:(?P<user>[A-Za-z0-9_.-]+):)?(?P<secret>[A-Za-z0-9/_+=.@-]+)"
)
_ASKPASS = Path(__file__).with_name("git_askpass.sh")

Resolve = Callable[[str, int], Sequence[str]]


class Tokens(Protocol):
    """`Secrets`, where a value that was refused can be asked for anew."""

    def get(self, name: str, *, fresh: bool = False) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Token:
    """The secret that opens a host's private repositories, by its name."""

    secret: str
    user: str = USER


def parse_tokens(entries: Iterable[str]) -> dict[tuple[str, int], Token]:
    """Read `host=secret`, `host:port=secret` and `host=user:secret`. Raises `SpecError` naming the setting."""
    tokens: dict[tuple[str, int], Token] = {}
    for entry in entries:
        found = _TOKEN_ENTRY.fullmatch(entry)
        port = int(found["port"] or PORTS["https"]) if found else 0
        if found is None or not 0 < port < 65536:
            # What stands after a colon may be a token that somebody took for its name.
            expected = "host=secret, host:port=secret or host=user:secret, where the secret is named and not told"
            shown = entry.partition("=")[0][:_SHOWN]
            raise SpecError(f"{TOKENS}: expected {expected}, got another entry for {shown!r}", subject=TOKENS)
        host = found["host"].strip("[]").lower()
        if (host, port) in tokens:
            raise SpecError(f"{TOKENS}: expected one entry a host, got another for {host}:{port}", subject=TOKENS)
        tokens[host, port] = Token(secret=found["secret"], user=found["user"] or USER)
    return tokens


def system_resolve(host: str, port: int) -> Sequence[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@dataclass(frozen=True, kw_only=True)
class Given:
    """What one run of git gets for its way to a repository."""

    options: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()
    hidden: tuple[str, ...] = ()


class Remotes:
    """The repositories that the configuration allows. `hosts` of None is every host: a laptop with nothing set.

    `env` is git's: behind a proxy that it names, it is the proxy that knows addresses, and only names are judged.
    """

    def __init__(
        self,
        *,
        schemes: frozenset[str] = SCHEMES,
        hosts: HostRules | None = None,
        tokens: Mapping[tuple[str, int], Token] | None = None,
        secrets: Tokens | None = None,
        env: Mapping[str, str] | None = None,
        resolve: Resolve = system_resolve,
    ) -> None:
        self.schemes = schemes
        self._hosts = hosts
        self._tokens = tokens or {}
        self._secrets = secrets
        self._env = env or {}
        self._resolve = resolve

    def refusal(self, address: Address) -> SpecError | None:
        """Why this repository may not be asked, where it may not."""
        if address.scheme not in self.schemes:
            allowed = ", ".join(sorted(self.schemes)) or "none"
            return SpecError(
                f"logic.repo: expected a repository by {allowed}, got {address.url[:_SHOWN]!r} by {address.scheme}",
                hint="RUNNER_LOGIC_SCHEMES names the ways that are allowed",
                subject="logic.repo",
            )
        if address.scheme == "file" or self._hosts is None:
            return None
        try:
            self._hosts.require_host(address.host.lower(), address.port, what="logic.repo", subject="logic.repo")
        except SpecError as error:
            return error
        return None

    def token(self, address: Address) -> Token | None:
        return self._tokens.get((address.host.lower(), address.port)) if address.host else None

    def ask(self, address: Address, git: Callable[[Given], bytes]) -> bytes:
        """What `git` answers, given what it needs; asked once more where its token was refused and another is kept.

        Raises `SpecError` where this repository may not be asked, `InfrastructureError` for a token that is no good.
        """
        with self._way(address) as given:
            try:
                return git(given)
            except Unauthorized as error:
                refused = error
        if given.hidden:
            with self._way(address, fresh=True) as again:
                if again.hidden != given.hidden:
                    try:
                        return git(again)
                    except Unauthorized as error:
                        refused = error
        raise self._unauthorized(address, refused) from refused

    @contextmanager
    def _way(self, address: Address, *, fresh: bool = False) -> Iterator[Given]:
        if refusal := self.refusal(address):
            raise refusal
        options, env = self._pinned(address)
        token = self._token(address)
        if token is None:
            yield Given(options=options, env=env)
            return
        if address.scheme != "https" and not _is_here(address.host):
            raise SpecError(
                f"logic.repo: expected https for {address.host}, as its token may not be read on the way, "
                f"got {address.scheme}",
                hint=f"{TOKENS} has a token for it",
                subject="logic.repo",
            )
        text = self._text(token, address, fresh=fresh)
        origin = address.url[: address.url.index("/", len(f"{address.scheme}://"))]
        with _piped(text) as descriptor:
            yield Given(
                options=(*options, "-c", f"credential.username={token.user}"),
                env={
                    **env,
                    "GIT_ASKPASS": str(_ASKPASS),
                    "STAGE_RUNNER_ASKPASS_FOR": origin.replace("://", f"://{token.user}@", 1),
                    "STAGE_RUNNER_ASKPASS_FD": str(descriptor),
                },
                descriptors=(descriptor,),
                hidden=(text, base64.b64encode(f"{token.user}:{text}".encode()).decode()),
            )

    def _token(self, address: Address) -> Token | None:
        return self._tokens.get((address.host.lower(), address.port)) if address.host else None

    def _unauthorized(self, address: Address, error: Unauthorized) -> LogicError | InfrastructureError:
        token = self._token(address)
        if token is None:
            hint = f"{TOKENS} names a secret for each host whose repositories are private; {address.host} has none"
            return LogicError(error.message, subject="logic.repo", hint=hint)
        # It is mended where the token is kept, and then the same run will do.
        return InfrastructureError(
            f"{error.message}, with the token of secret {token.secret!r}",
            hint=f"has it expired, or been revoked? {TOKENS} names it for {address.host}",
            subject=token.secret,
        )

    def _text(self, token: Token, address: Address, *, fresh: bool = False) -> str:
        try:
            text = self._secrets.get(token.secret, fresh=fresh).strip() if self._secrets else ""
        except SpecError as error:
            # Not the spec's fault: it is the configuration that names it.
            message = f"{TOKENS}: expected a token for {address.host}, got none: {error.message}"
            raise InfrastructureError(message, hint=error.hint, subject=token.secret) from error
        if not _TOKEN.fullmatch(text):
            raise InfrastructureError(
                f"{TOKENS}: expected secret {token.secret!r} to be a token of one line without blanks, "
                f"got {len(text):,} characters",
                hint="a secret of keys and values is none; store the token alone, as plain text",
                subject=token.secret,
            )
        return text

    def _pinned(self, address: Address) -> tuple[tuple[str, ...], dict[str, str]]:
        """Options and environment by which git connects to addresses that were checked, and looks up no others."""
        if address.scheme == "file" or self._hosts is None:
            return (), {}
        if self._is_proxied(address):
            return (), {"NO_PROXY": "", "no_proxy": ""}  # curl might read it otherwise, and go there itself
        host, port = address.host.lower(), address.port
        direct = ("-c", "http.proxy=")
        if literal(host):
            self._hosts.require_address(host, host, port, what="logic.repo", subject="logic.repo")
            return direct, {}
        try:
            found = list(dict.fromkeys(self._resolve(host, port)))
        except OSError as exc:
            message = f"logic.repo: expected an address for {host}, got {exc.strerror or exc}"
            raise InfrastructureError(message, subject="logic.repo") from exc
        for each in found:
            self._hosts.require_address(each, host, port, what="logic.repo", subject="logic.repo")
        addresses = ",".join(f"[{each}]" if ":" in each else each for each in found)
        return (*direct, "-c", f"http.curloptResolve={host}:{port}:{addresses}"), {}

    def _is_proxied(self, address: Address) -> bool:
        """As git has it: an `HTTP_PROXY` in capitals is not for http, for a web server could be made to set it."""
        names = ["https_proxy", "HTTPS_PROXY"] if address.scheme == "https" else ["http_proxy"]
        besides = self._env.get("no_proxy") or self._env.get("NO_PROXY") or ""
        if not any(self._env.get(name) for name in names):
            return False
        return not proxy_bypass_environment(f"{address.host}:{address.port}", {"no": besides})


def _is_here(host: str) -> bool:
    """Whether it is this very machine, by its address."""
    found = literal(host)
    return found is not None and found.is_loopback


@contextmanager
def _piped(text: str) -> Iterator[int]:
    """A descriptor from which the text can be read once."""
    if not os.access(_ASKPASS, os.X_OK):
        raise InfrastructureError(f"{_ASKPASS}: expected it to be executable, got a file that is not")
    read, write = os.pipe()
    try:
        os.write(write, f"{text}\n".encode())
        os.close(write)
        yield read
    finally:
        os.close(read)
