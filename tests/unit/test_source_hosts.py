from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.model.errors import SpecError
from runner.model.hosts import HostRules

# Hypothesis draws from the IANA registries' special blocks as often as from everywhere else.
ANY_ADDRESS = st.ip_addresses().filter(lambda address: not carries_ipv4(address))
ANY_V4 = st.ip_addresses(v=4)

SPELLINGS: dict[str, Callable[[IPv4Address], str]] = {
    "one number": lambda address: str(int(address)),
    "one hex number": lambda address: hex(int(address)),
    "hex parts": lambda address: ".".join(hex(part) for part in address.packed),
    "octal parts": lambda address: ".".join(f"0{part:o}" for part in address.packed),
    "padded parts": lambda address: ".".join(f"{part:03}" for part in address.packed),
    "two parts": lambda address: f"{address.packed[0]}.{int(address) & 0xFFFFFF}",
    "three parts": lambda address: f"{address.packed[0]}.{address.packed[1]}.{int(address) & 0xFFFF}",
    "a trailing dot": lambda address: f"{address}.",
    "a hex end": lambda address: f"{address.packed[0]}.{address.packed[1]}.{address.packed[2]}.0x",
}

CARRIERS: dict[str, Callable[[IPv4Address], IPv6Address]] = {
    "IPv4-mapped": lambda address: IPv6Address(0xFFFF << 32 | int(address)),
    "IPv4-compatible": lambda address: IPv6Address(int(address)),
    "NAT64": lambda address: IPv6Address(0x64FF9B << 96 | int(address)),
    "local NAT64": lambda address: IPv6Address(0x64FF9B0001 << 80 | int(address)),
    "6to4": lambda address: IPv6Address(0x2002 << 112 | int(address) << 80 | 1),
    "Teredo": lambda address: IPv6Address(0x20010000 << 96 | ~int(address) & 0xFFFFFFFF),
}


def allows_host(rules: HostRules, host: str, port: int = 443) -> bool:
    try:
        rules.require_host(host, port, what="source flights", subject="flights")
    except SpecError:
        return False
    return True


def allows_address(rules: HostRules, address: object, port: int = 443) -> bool:
    try:
        rules.require_address(str(address), "portal.org", port, what="source flights", subject="flights")
    except SpecError:
        return False
    return True


def carries_ipv4(address: IPv4Address | IPv6Address) -> bool:
    """IPv4-mapped, or NAT64."""
    return address.version == 6 and int(address) >> 32 in (0xFFFF, 0x64FF9B << 64)


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [
        ("data.example.org", "data.example.org", 443),
        ("data.example.org", "data.example.org", 8080),
        ("DATA.example.org", "data.example.org", 443),
        ("localhost", "localhost", 80),
        ("under_score.local", "under_score.local", 80),
        ("*.socrata.com", "data.socrata.com", 443),
        ("*.socrata.com", "a.b.socrata.com", 443),
        ("portal.local:8080", "portal.local", 8080),
        ("*.portal.local:8080", "a.portal.local", 8080),
        ("127.0.0.1", "127.0.0.1", 5000),
        ("127.0.0.1:5000", "127.0.0.1", 5000),
        ("127.0.0.1", "::ffff:127.0.0.1", 80),
        ("10.1.0.0/16", "10.1.2.3", 80),
        ("10.1.0.0/16:81", "10.1.2.3", 81),
        ("::1", "::1", 80),
        ("::1", "0:0:0:0:0:0:0:1", 80),
        ("[::1]", "::1", 80),
        ("[::1]:81", "::1", 81),
        ("[fd00::/8]:81", "fd12::1", 81),
        ("fd00::/8", "fd12::1", 81),
    ],
)
def test_an_entry_allows_what_it_names(entry: str, host: str, port: int) -> None:
    assert allows_host(HostRules.parse([entry]), host, port)


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [
        ("data.example.org", "example.org", 443),
        ("data.example.org", "xdata.example.org", 443),
        ("data.example.org", "data.example.org.evil.org", 443),
        ("data.example.org", "data.example.org.", 443),
        ("data.example.org", "data-example.org", 443),
        ("data.example.org", "", 443),
        ("*.socrata.com", "socrata.com", 443),
        ("*.socrata.com", ".socrata.com", 443),
        ("*.socrata.com", "a..socrata.com", 443),
        ("*.socrata.com", "-.socrata.com", 443),
        ("*.socrata.com", "127.0.0.1%00.socrata.com", 443),
        ("*.socrata.com", "evilsocrata.com", 443),
        ("portal.local:8080", "portal.local", 80),
        ("portal.local", "portal.local", 65536),
        ("127.0.0.1:5000", "127.0.0.1", 5001),
        ("127.0.0.1", "localhost", 80),
        ("localhost", "127.0.0.1", 80),
        ("10.1.0.0/16", "10.2.0.1", 80),
        ("::/0", "127.0.0.1", 80),
        ("::/0", "::ffff:127.0.0.1", 80),
        ("fe80::/10", "fe80::1%25eth0", 80),
        ("data.example.org", "8.8.8.8", 443),
    ],
)
def test_an_entry_allows_nothing_else(entry: str, host: str, port: int) -> None:
    assert not allows_host(HostRules.parse([entry]), host, port)


@pytest.mark.parametrize(
    "entry",
    [
        "", " ", "*", "*.", "*.*.org", "a*.org", "https://data.example.org", "data.example.org/path", "user@host",
        "a b", "-a.org", "a..org", "a.org.", "a.org:", "a.org:0", "a.org:65536", "a.org:http", "a:b:c", "[::1", "[]",
        "10.1.2.3/16", "10.1.0.0/33", "127.1", "0x7f.1", "2130706433", "127.0.0.1.", "*.1", "fe80::1%eth0",
        "münchen.de", "a\n.org", "a.org\n",
    ],
)  # fmt: skip
def test_what_is_no_entry_is_refused_by_name(entry: str) -> None:
    with pytest.raises(SpecError, match="RUNNER_SOURCE_HOSTS: expected a host name") as refused:
        HostRules.parse(["data.example.org", entry])
    assert repr(entry) in refused.value.message


@pytest.mark.parametrize("entry", ["::ffff:127.0.0.1", "::ffff:10.0.0.0/104", "64:ff9b::7f00:1"])
def test_an_entry_for_wrapped_ipv4_is_refused_because_it_would_never_match(entry: str) -> None:
    with pytest.raises(SpecError, match="expected the IPv4 address"):
        HostRules.parse([entry])


def test_a_refusal_names_the_source_what_was_expected_and_what_came() -> None:
    with pytest.raises(SpecError) as refused:
        HostRules.parse(["data.example.org"]).require_host("evil.org", 443, what="source flights", subject="flights")
    assert refused.value.message == (
        "source flights: expected a host that RUNNER_SOURCE_HOSTS allows, got evil.org:443"
    )
    assert refused.value.subject == "flights"


def test_a_refused_address_is_named_with_its_kind() -> None:
    with pytest.raises(SpecError) as refused:
        HostRules().require_address("169.254.169.254", "data.example.org", 80, what="source flights", subject="flights")
    assert refused.value.message == (
        "source flights: expected data.example.org to resolve to public addresses or to ones that "
        "RUNNER_SOURCE_HOSTS names, got 169.254.169.254 (link-local)"
    )


@given(host=st.from_regex(r"[a-z0-9.:-]{1,40}", fullmatch=True) | st.ip_addresses().map(str))
def test_with_nothing_configured_nothing_is_allowed(host: str) -> None:
    assert not allows_host(HostRules(), host)


@given(address=ANY_ADDRESS)
def test_no_address_that_python_finds_special_passes_unnamed(address: IPv4Address | IPv6Address) -> None:
    if allows_address(HostRules(), address):
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "2606:2800:21f:cb07::1", "64:ff9b::808:808"])
def test_public_addresses_pass_unnamed(address: str) -> None:
    assert allows_address(HostRules(), address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104 - nothing binds to it
        "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.254", "127.0.0.1", "127.8.8.8",
        "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.168.1.1", "198.18.0.1", "224.0.0.1",
        "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%1", "fec0::1", "fc00::1",
        "fd00:ec2::254", "ff02::1", "100::1", "2001:db8::1", "3fff::1", "5f00::1",
    ],
)  # fmt: skip
def test_special_addresses_do_not_pass_unnamed(address: str) -> None:
    assert not allows_address(HostRules(), address)


@given(address=ANY_V4, carrier=st.sampled_from(sorted(CARRIERS)))
def test_an_ipv4_address_inside_an_ipv6_one_passes_only_where_it_would_itself(
    address: IPv4Address, carrier: str
) -> None:
    if allows_address(HostRules(), CARRIERS[carrier](address)):
        assert allows_address(HostRules(), address)


@given(address=ANY_V4, spelling=st.sampled_from(sorted(SPELLINGS)))
def test_an_odd_spelling_of_an_address_is_refused_even_where_the_address_is_named(
    address: IPv4Address, spelling: str
) -> None:
    rules = HostRules.parse(["0.0.0.0/0", str(address), "localhost", "*.org"])
    host = SPELLINGS[spelling](address)
    assert allows_host(rules, str(address))
    assert host == str(address) or not allows_host(rules, host)


@given(address=ANY_ADDRESS, prefix=st.integers(0, 32), port=st.sampled_from([80, 443]))
def test_a_named_block_allows_its_addresses_at_its_port(
    address: IPv4Address | IPv6Address, prefix: int, port: int
) -> None:
    block = ip_network((address, prefix), strict=False)
    rules = HostRules.parse([f"[{block}]:443" if block.version == 6 else f"{block}:443"])
    assert allows_host(rules, str(address), port) == (port == 443)
    assert allows_address(rules, address, 443)
    assert allows_address(rules, address, 80) == allows_address(HostRules(), address)
