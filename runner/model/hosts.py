"""Which hosts the worker may talk to for a job: pure rules on a URL's host and on every address behind it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self

from runner.model.errors import SpecError

SETTING = "RUNNER_SOURCE_HOSTS"

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
# https://url.spec.whatwg.org/#ends-in-a-number-checker: resolvers take such a "name" (0x7f.1) for an address.
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_ENTRY = re.compile(r"(?:\[(?P<bracketed>[^\]]*)\]|(?P<plain>[^:\[\]]*))(?::(?P<port>[0-9]{1,5}))?")

# https://www.iana.org/assignments/iana-ipv4-special-registry. `ipaddress.is_global` is no rule to build on:
# it takes multicast for global, and has changed between releases of Python.
_SPECIAL_V4 = {
    IPv4Network("0.0.0.0/8"): "unspecified",
    IPv4Network("10.0.0.0/8"): "private",
    IPv4Network("100.64.0.0/10"): "shared, behind a carrier's NAT",
    IPv4Network("127.0.0.0/8"): "loopback",
    IPv4Network("169.254.0.0/16"): "link-local",
    IPv4Network("172.16.0.0/12"): "private",
    IPv4Network("192.0.0.0/24"): "reserved",
    IPv4Network("192.0.2.0/24"): "for documentation",
    IPv4Network("192.88.99.0/24"): "6to4",
    IPv4Network("192.168.0.0/16"): "private",
    IPv4Network("198.18.0.0/15"): "for benchmarks",
    IPv4Network("198.51.100.0/24"): "for documentation",
    IPv4Network("203.0.113.0/24"): "for documentation",
    IPv4Network("224.0.0.0/4"): "multicast",
    IPv4Network("240.0.0.0/4"): "reserved",
}
# https://www.iana.org/assignments/iana-ipv6-special-registry; all else outside of 2000::/3 is reserved.
_SPECIAL_V6 = {
    IPv6Network("::/128"): "unspecified",
    IPv6Network("::1/128"): "loopback",
    IPv6Network("2001::/23"): "reserved",  # Teredo among them
    IPv6Network("2001:db8::/32"): "for documentation",
    IPv6Network("2002::/16"): "6to4",
    IPv6Network("3fff::/20"): "for documentation",
    IPv6Network("fc00::/7"): "private",
    IPv6Network("fe80::/10"): "link-local",
    IPv6Network("ff00::/8"): "multicast",
}
_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")
_CARRIERS_OF_V4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
"""IPv4-mapped addresses, and NAT64 (the way to public hosts where there is no IPv4): the IPv4 part counts."""


@dataclass(frozen=True)
class HostRules:
    """The hosts that the configuration allows; none, if it names none. A port of None stands for any port."""

    names: tuple[tuple[str, int | None], ...] = ()
    """Host names, lower case; one that begins with a dot stands for every name below it."""
    blocks: tuple[tuple[Network, int | None], ...] = ()
    setting: str = SETTING
    """Where they are configured, for messages."""

    @classmethod
    def parse(cls, entries: Iterable[str], *, setting: str = SETTING) -> Self:
        """Read names, `*.suffix`, addresses and CIDR blocks, with `:port` (then IPv6 in brackets) or without.

        Raises `SpecError` naming the entry.
        """
        names: list[tuple[str, int | None]] = []
        blocks: list[tuple[Network, int | None]] = []
        for entry in entries:
            host, port = _split(entry, setting)
            name = host.lower()
            if _is_name(name.removeprefix("*.")):
                names.append((name.removeprefix("*"), port))
            else:
                blocks.append((_block(host, entry, setting), port))
        return cls(names=tuple(names), blocks=tuple(blocks), setting=setting)

    def require_host(self, host: str, port: int, *, what: str, subject: str) -> None:
        """Raise `SpecError` unless a URL may name `host`; `require_address` judges what it resolves to.

        A name must match a name's entry, an address an address's or a block's. An odd spelling of an address
        (0x7f.1, 2130706433, a trailing dot) is neither, and so matches nothing.
        """
        address = literal(host)
        named = self._names_address(address, port) if address else self._names_host(host, port)
        if named and port < 65536:
            return
        empty = "" if self.names or self.blocks else ", which is empty"
        raise SpecError(
            f"{what}: expected a host that {self.setting} allows{empty}, got {_shown(host, port)}",
            hint=f"{self.setting} lists names, *.suffixes, addresses and CIDR blocks, with commas between them",
            subject=subject,
        )

    def require_address(self, address: str, host: str, port: int, *, what: str, subject: str) -> None:
        """Raise `SpecError` unless `address`, which `host` resolved to, is public or lies in an entry."""
        parsed = _carried(ip_address(address))
        kind = _special(parsed)
        if kind is None or self._names_address(parsed, port):
            return
        raise SpecError(
            f"{what}: expected {host} to resolve to public addresses or to ones that {self.setting} names, "
            f"got {address} ({kind})",
            hint=f"if {host} is meant to be there, add {parsed} to {self.setting}",
            subject=subject,
        )

    def _names_host(self, host: str, port: int) -> bool:
        return _is_name(host) and any(
            (host.endswith(name) if name.startswith(".") else host == name) and only in (None, port)
            for name, only in self.names
        )

    def _names_address(self, address: Address, port: int) -> bool:
        return any(address in block and only in (None, port) for block, only in self.blocks)


def literal(host: str) -> Address | None:
    """`host` as an address, if it is one in the usual spelling; what IPv6 wraps around IPv4 is taken off."""
    try:
        return None if "%" in host else _carried(ip_address(host))
    except ValueError:
        return None


def _carried(address: Address) -> Address:
    if isinstance(address, IPv6Address) and any(address in block for block in _CARRIERS_OF_V4):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _special(address: Address) -> str | None:
    """What makes an address other than global unicast; None for one that is."""
    if isinstance(address, IPv4Address):
        return next((kind for block, kind in _SPECIAL_V4.items() if address in block), None)
    kind = next((kind for block, kind in _SPECIAL_V6.items() if address in block), None)
    return kind or (None if address in _GLOBAL_UNICAST_V6 else "reserved")


def _is_name(host: str) -> bool:
    return bool(_NAME.fullmatch(host)) and not _ENDS_IN_NUMBER.fullmatch(host)


def _split(entry: str, setting: str) -> tuple[str, int | None]:
    """`[fd00::1]:80`, `fd00::1`, `name:80` and `name` as host and port."""
    if entry.count(":") > 1 and not entry.startswith("["):
        return entry, None
    parts = _ENTRY.fullmatch(entry)
    if parts is None or (parts["port"] and not 0 < int(parts["port"]) < 65536):
        raise _not_an_entry(entry, setting)
    return parts["bracketed"] or parts["plain"] or "", int(parts["port"]) if parts["port"] else None


def _block(host: str, entry: str, setting: str) -> Network:
    if "%" in host:  # an interface of one machine
        raise _not_an_entry(entry, setting)
    try:
        block = ip_network(host)
    except ValueError as exc:
        raise _not_an_entry(entry, setting) from exc
    if isinstance(block, IPv6Network) and any(block.subnet_of(carrier) for carrier in _CARRIERS_OF_V4):
        raise SpecError(f"{setting}: expected the IPv4 address that counts, got {entry!r}", subject=setting)
    return block


def _not_an_entry(entry: str, setting: str) -> SpecError:
    return SpecError(
        f"{setting}: expected a host name, *.suffix, address or CIDR block, with :port or without, got {entry!r}",
        subject=setting,
    )


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
