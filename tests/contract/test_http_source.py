"""What extract does with a portal's answers, good and bad: over real sockets, with nothing of HTTP made up."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
import stamina

from runner.adapters.http_source import HttpExtract
from runner.model.errors import DataError, InfrastructureError, RateLimitError, SpecError, TransientError
from runner.model.hosts import HostRules
from runner.model.messages import EngineFile, Job, JobOutput, Progress
from runner.model.spec import ExtractWork, Output, QueryWork, Resources, Source
from runner.ports import Execution
from tests.support.engine_inputs import STAMP
from tests.support.portal_server import PortalServer, Reply
from tests.support.twins import TestClock

BODY = b"year,month,carrier\n2013,1,UA\n2013,1,AA\n"
AT_ONCE = stamina.RetryingCaller(attempts=4, timeout=None, wait_initial=0, wait_max=0, wait_jitter=0)


class Rig:
    """Runs extract jobs against one portal, and keeps what they said."""

    def __init__(self, portal: PortalServer, scratch: Path) -> None:
        self.portal = portal
        self.scratch = scratch
        self.clock = TestClock()
        self.said: list[Progress] = []

    def fetch(
        self,
        *urls: str,
        allowed: Sequence[str] = ("127.0.0.1",),
        timeout_s: int = 30,
        retrying: stamina.RetryingCaller = AT_ONCE,
        **options: Any,
    ) -> Execution:
        """Sources flights, flights_2 …, each from its URL; a path is the portal's."""
        names = ["flights", *(f"flights_{number}" for number in range(2, len(urls) + 1))]
        sources = tuple(
            Source(name=name, url=self.portal.url(url) if url.startswith("/") else url)
            for name, url in zip(names, urls, strict=True)
        )
        job = Job(
            work=ExtractWork(kind="extract", sources=sources),
            inputs=(),
            outputs=tuple(JobOutput(output=Output(dataset=f"landing/{name}", from_=name)) for name in reversed(names)),
            workspace="",
            scratch=str(self.scratch),
            resources=Resources(timeout_s=timeout_s),
            stamp=STAMP,
        )
        extract = HttpExtract(HostRules.parse(allowed), clock=self.clock, retrying=retrying, **options)
        return extract.execute(job, served={}, secrets={}, say=self.said.append)

    def fetched_file(self, execution: Execution) -> EngineFile:
        return execution.result.outputs[0].files[0]

    def fetched_bytes(self, execution: Execution) -> bytes:
        return (self.scratch / "out" / self.fetched_file(execution).path).read_bytes()

    def files_left(self) -> list[Path]:
        return [path for path in self.scratch.rglob("*") if path.is_file()]


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer() as server:
        yield server


@pytest.fixture
def rig(portal: PortalServer, tmp_path: Path) -> Rig:
    return Rig(portal, tmp_path / "scratch")


def resolving(*answers: Sequence[str]) -> Callable[[str, int], Sequence[str]]:
    """A resolver that gives these answers in turn, and then fails the test."""
    left = iter(answers)
    return lambda host, port: next(left)


class Rerouted(httpcore.SyncBackend):
    """Connects to loopback instead of the address that it was given, and keeps that."""

    def __init__(self) -> None:
        self.connected_to: list[str] = []

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        self.connected_to.append(host)
        return super().connect_tcp("127.0.0.1", port, timeout, local_address, socket_options)


# ---------------------------------------------------------------- a good file


def test_a_file_lands_byte_for_byte_with_what_its_server_said_of_it(rig: Rig) -> None:
    headers = {
        "ETag": '"abc"',
        "Last-Modified": "Wed, 02 Jan 2013 00:00:00 GMT",
        "Content-Type": "text/csv; charset=utf-8",
    }
    rig.portal.answer("/data/flights.csv?v=1", Reply(body=BODY, headers=headers))

    execution = rig.fetch("/data/flights.csv?v=1")

    url, sha256 = rig.portal.url("/data/flights.csv?v=1"), hashlib.sha256(BODY).hexdigest()
    assert execution.reads is None
    (output,) = execution.result.outputs
    assert (output.dataset, output.rows, output.columns) == ("landing/flights", None, None)
    assert output.fingerprint.model_dump() == {"rows": None, "hash": sha256, "engine": "sha256", "columns": {}}
    assert output.claimed_inputs == (url,)
    (file,) = output.files
    assert (file.path, file.rows, file.sha256) == ("flights/flights.csv", None, sha256)
    assert file.source is not None
    assert file.source.model_dump() == {
        "url": url,
        "etag": '"abc"',
        "last_modified": "Wed, 02 Jan 2013 00:00:00 GMT",
        "content_type": "text/csv; charset=utf-8",
        "fetched_at": rig.clock.now(),
    }
    assert rig.fetched_bytes(execution) == BODY
    (step,) = execution.result.steps
    assert (step.name, step.kind, step.status) == ("flights", "source", "success")
    assert step.message == f"{len(BODY)} bytes from 127.0.0.1"
    assert execution.result.counts == {"bytes_fetched": len(BODY), "files": 1}
    assert execution.result.packages == {"httpx": httpx.__version__}
    assert rig.said[-1].message == f"source flights: {len(BODY)} bytes from 127.0.0.1"


def test_the_portal_is_told_who_asks_and_is_asked_for_plain_bytes(rig: Rig) -> None:
    rig.portal.answer("/flights.csv", Reply(body=BODY))
    rig.fetch("/flights.csv")
    headers = rig.portal.asked[0].headers
    assert headers["User-Agent"].startswith("stage-runner/")
    assert headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in headers
    assert "Authorization" not in headers


def test_each_source_goes_to_the_output_that_takes_it(rig: Rig) -> None:
    rig.portal.answer("/a.csv", Reply(body=b"a"))
    rig.portal.answer("/b.csv", Reply(body=b"bb"))
    result = rig.fetch("/a.csv", "/b.csv").result
    assert [(each.dataset, each.files[0].path) for each in result.outputs] == [
        ("landing/flights", "flights/a.csv"),
        ("landing/flights_2", "flights_2/b.csv"),
    ]
    assert result.counts == {"bytes_fetched": 3, "files": 2}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/flights.csv", "flights.csv"),
        ("/download?format=csv", "download"),
        ("/", "flights"),
        ("/%2e%2e%2f.hidden%20(1).csv", "hidden_1_.csv"),
        ("/..%5c..%5cflights.csv", "flights.csv"),
        ("/Fl%C3%BCge.CSV", "Fl_ge.CSV"),
        ("/" + "a" * 200 + ".csv", "a" * 116 + ".csv"),
    ],
)
def test_a_file_takes_the_last_part_of_its_path_as_a_plain_name(rig: Rig, path: str, name: str) -> None:
    rig.portal.answer(path, Reply(body=BODY))
    execution = rig.fetch(path)
    assert rig.fetched_file(execution).path == f"flights/{name}"
    assert rig.fetched_bytes(execution) == BODY


@pytest.mark.parametrize("length", ["chunked", "unknown"])
def test_a_body_without_announced_length_is_taken_to_its_end(rig: Rig, length: Any) -> None:
    rig.portal.answer("/flights.csv", Reply(body=BODY, length=length))
    execution = rig.fetch("/flights.csv")
    assert rig.fetched_bytes(execution) == BODY
    assert execution.result.steps[0].message is not None
    assert ("did not tell" in execution.result.steps[0].message) == (length == "unknown")


def test_a_long_download_says_how_far_it_is(rig: Rig) -> None:
    body = bytes(1_000_000)
    rig.portal.answer("/flights.csv", Reply(body=body))
    rig.fetch("/flights.csv", progress_every_s=0)
    halfway = [each for each in rig.said if each.total is not None]
    assert len(halfway) > 1
    assert halfway[-1].message == "source flights: 1,000,000 of 1,000,000 bytes"
    assert (halfway[-1].done, halfway[-1].total) == (1_000_000, 1_000_000)


def test_other_work_is_refused(rig: Rig) -> None:
    job = Job(
        work=QueryWork(kind="query", file="a.sql"),
        inputs=(),
        outputs=(),
        workspace="",
        scratch=str(rig.scratch),
        resources=Resources(),
        stamp=STAMP,
    )
    with pytest.raises(SpecError, match="expected 'extract', got 'query'"):
        HttpExtract(HostRules(), clock=rig.clock).execute(job, served={}, secrets={}, say=rig.said.append)


# ---------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        ((), "http://data.example.org/flights.csv"),
        ((), "http://127.0.0.1:{port}/flights.csv"),
        (("localhost",), "http://127.0.0.1:{port}/flights.csv"),
        (("127.0.0.1",), "http://localhost:{port}/flights.csv"),
        (("127.0.0.1:1",), "http://127.0.0.1:{port}/flights.csv"),
        (("127.0.0.1",), "http://127.1:{port}/flights.csv"),
        (("127.0.0.1",), "http://2130706433:{port}/flights.csv"),
        (("127.0.0.1",), "http://0x7f.1:{port}/flights.csv"),
        (("127.0.0.1",), "http://127.0.0.1.:{port}/flights.csv"),
        (("127.0.0.1",), "http://[::1]:{port}/flights.csv"),
        (("127.0.0.1",), "http://127.0.0.1:{port}@169.254.169.254/flights.csv"),
        (("127.0.0.1",), "http://127.0.0.1:99999/flights.csv"),
        (("127.0.0.1",), "http://[127.0.0.1/flights.csv"),
        (("127.0.0.1",), "http:///flights.csv"),
    ],
)
def test_a_url_of_a_host_that_is_not_allowed_is_never_asked(rig: Rig, allowed: tuple[str, ...], url: str) -> None:
    rig.portal.answer("/flights.csv", Reply(body=BODY))
    with pytest.raises(SpecError, match=r"source flights: expected .*, got") as refused:
        rig.fetch(url.format(port=rig.portal.port), allowed=allowed)
    assert refused.value.subject == "flights"
    assert rig.portal.asked == []


def test_credentials_in_a_url_are_refused_and_not_repeated(rig: Rig) -> None:
    with pytest.raises(SpecError, match="expected a URL without user and password") as refused:
        rig.fetch(f"http://ann:s3cret@127.0.0.1:{rig.portal.port}/flights.csv")
    assert "s3cret" not in refused.value.message


def test_one_refused_host_stops_all_sources_before_the_first_byte(rig: Rig) -> None:
    rig.portal.answer("/flights.csv", Reply(body=BODY))
    with pytest.raises(SpecError, match=r"source flights_2: .* got evil.example.org:80"):
        rig.fetch("/flights.csv", "http://evil.example.org/flights.csv")
    assert rig.portal.asked == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["fe80::1%1"],
        ["100.64.0.1"],
        ["93.184.215.14", "127.0.0.1"],
    ],
)
def test_an_allowed_name_with_any_address_that_is_not_public_is_refused(rig: Rig, addresses: list[str]) -> None:
    rig.portal.answer("/flights.csv", Reply(body=BODY))
    with pytest.raises(SpecError, match=r"expected data.example.org to resolve to public addresses") as refused:
        rig.fetch(
            rig.portal.url("/flights.csv", host="data.example.org"),
            allowed=["data.example.org"],
            resolve=resolving(addresses),
        )
    assert f"got {addresses[-1]} (" in refused.value.message
    assert rig.portal.asked == []


def test_a_name_on_loopback_needs_both_the_name_and_the_address(rig: Rig) -> None:
    rig.portal.answer("/flights.csv", Reply(body=BODY))
    url = rig.portal.url("/flights.csv", host="localhost")
    with pytest.raises(SpecError, match=r"got (127\.0\.0\.1|::1) \(loopback\)"):
        rig.fetch(url, allowed=["localhost"])
    assert rig.fetched_bytes(rig.fetch(url, allowed=["localhost", "127.0.0.1", "::1"])) == BODY


def test_the_address_that_was_checked_is_the_one_connected_to(rig: Rig) -> None:
    """DNS rebinding: the second answer would be the metadata service, and is never asked for."""
    rig.portal.answer("/flights.csv", Reply(body=BODY))
    network = Rerouted()
    answers = iter([["93.184.215.14"], ["169.254.169.254"]])
    execution = rig.fetch(
        rig.portal.url("/flights.csv", host="data.example.org"),
        allowed=["data.example.org"],
        resolve=lambda host, port: next(answers),
        network=network,
    )
    assert rig.fetched_bytes(execution) == BODY
    assert network.connected_to == ["93.184.215.14"]
    assert list(answers) == [["169.254.169.254"]]
    assert rig.portal.asked[0].headers["Host"] == f"data.example.org:{rig.portal.port}"


def test_a_second_try_checks_what_the_name_resolves_to_by_then(rig: Rig) -> None:
    rig.portal.answer("/flights.csv", Reply(status=500))
    with pytest.raises(SpecError, match=r"got 169.254.169.254"):
        rig.fetch(
            rig.portal.url("/flights.csv", host="data.example.org"),
            allowed=["data.example.org"],
            resolve=resolving(["93.184.215.14"], ["169.254.169.254"]),
            network=Rerouted(),
        )


def test_the_next_address_is_tried_where_one_does_not_answer(rig: Rig) -> None:
    rig.portal.answer("/flights.csv", Reply(body=BODY))
    execution = rig.fetch(
        rig.portal.url("/flights.csv", host="data.example.org"),
        allowed=["data.example.org", "127.0.0.0/8"],
        resolve=resolving(["127.0.0.2", "127.0.0.1"]),
    )
    assert rig.fetched_bytes(execution) == BODY


def test_a_name_that_does_not_resolve_may_resolve_later(rig: Rig) -> None:
    def unknown(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with pytest.raises(TransientError, match=r"no address for data\.example\.org: Temporary failure"):
        rig.fetch("http://data.example.org/flights.csv", allowed=["data.example.org"], resolve=unknown)


def test_proxies_of_the_environment_are_not_used(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.portal.answer("/flights.csv", Reply(body=BODY))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert rig.fetched_bytes(rig.fetch("/flights.csv")) == BODY


# ---------------------------------------------------------------- redirects


def test_redirects_are_followed_and_the_record_keeps_the_url_of_the_spec(rig: Rig) -> None:
    localhost = rig.portal.url("/c.bin", host="localhost")
    rig.portal.answer("/a.csv", Reply(status=302, headers={"Location": "/b?x=1"}, body=b"<html>"))
    rig.portal.answer("/b?x=1", Reply(status=307, headers={"Location": localhost}))
    rig.portal.answer("/c.bin", Reply(body=BODY))
    execution = rig.fetch("/a.csv", allowed=["127.0.0.1", "localhost"], resolve=lambda host, port: ["127.0.0.1"])
    assert rig.fetched_bytes(execution) == BODY
    file = rig.fetched_file(execution)
    assert file.path == "flights/a.csv"
    assert file.source is not None
    assert file.source.url == rig.portal.url("/a.csv")
    assert execution.result.steps[0].message == f"{len(BODY)} bytes from localhost"


@pytest.mark.parametrize(
    ("location", "complaint"),
    [
        ("http://evil.example.org/x", "expected a host that RUNNER_SOURCE_HOSTS allows, got evil.example.org:80"),
        ("//169.254.169.254/latest/meta-data/", "got 169.254.169.254:80"),
        ("http://169.254.169.254/latest/meta-data/", "got 169.254.169.254:80"),
        ("http://[::ffff:169.254.169.254]/", "got [::ffff:169.254.169.254]:80"),
        ("http://ann:s3cret@127.0.0.1/", "expected a URL without user and password"),
        ("file:///etc/passwd", "expected http or https, got file"),
        ("ftp://127.0.0.1/x", "expected http or https, got ftp"),
    ],
)
def test_a_redirect_goes_through_the_same_checks(rig: Rig, location: str, complaint: str) -> None:
    rig.portal.answer("/flights.csv", Reply(status=302, headers={"Location": location}))
    with pytest.raises(SpecError, match=r"source flights.*redirected by 127.0.0.1") as refused:
        rig.fetch("/flights.csv")
    assert complaint in refused.value.message
    assert "s3cret" not in refused.value.message
    assert rig.files_left() == []


def test_the_host_of_a_redirect_is_resolved_and_checked_too(rig: Rig) -> None:
    location = rig.portal.url("/secret", host="internal.example.org")
    rig.portal.answer("/flights.csv", Reply(status=302, headers={"Location": location}))
    with pytest.raises(SpecError, match=r"expected internal\.example\.org to resolve to public .* got 10\.0\.0\.7"):
        rig.fetch("/flights.csv", allowed=["127.0.0.1", "*.example.org"], resolve=resolving(["10.0.0.7"]))
    assert rig.portal.times_asked("/secret") == 0


def test_five_redirects_are_followed_and_a_sixth_is_not(rig: Rig) -> None:
    for number in range(5):
        rig.portal.answer(f"/{number}", Reply(status=301, headers={"Location": f"/{number + 1}"}))
    rig.portal.answer("/5", Reply(body=BODY))
    assert rig.fetched_bytes(rig.fetch("/0")) == BODY

    rig.portal.answer("/loop", Reply(status=301, headers={"Location": "/loop"}))
    with pytest.raises(DataError, match=r"source flights: expected at most 5 redirects from .*/loop, got more"):
        rig.fetch("/loop")
    assert rig.portal.times_asked("/loop") == 6


def test_a_redirect_to_no_url_is_the_data_s_fault(rig: Rig) -> None:
    rig.portal.answer("/flights.csv", Reply(status=302, headers={"Location": "http://[::1/"}))
    with pytest.raises(DataError, match="expected a redirect to a URL"):
        rig.fetch("/flights.csv")


# ---------------------------------------------------------------- answers that are not the file


@pytest.mark.parametrize(
    ("status", "phrase"),
    [
        (204, "204 No Content"),
        (206, "206 Partial Content"),
        (302, "302 Found"),  # to nowhere
        (400, "400 Bad Request"),
        (401, "401 Unauthorized"),
        (403, "403 Forbidden"),
        (404, "404 Not Found"),
        (410, "410 Gone"),
        (499, "499"),
    ],
)
def test_another_status_than_200_is_the_data_s_fault_and_asked_once(rig: Rig, status: int, phrase: str) -> None:
    rig.portal.answer("/flights.csv", Reply(status=status))
    with pytest.raises(DataError) as failed:
        rig.fetch("/flights.csv")
    url = rig.portal.url("/flights.csv")
    assert failed.value.message == f"source flights: expected 200 from {url}, got {phrase}"
    assert failed.value.subject == "flights"
    assert (failed.value.hint is not None) == (status in (401, 403, 404, 410))
    assert rig.portal.times_asked("/flights.csv") == 1
    assert rig.files_left() == []


@pytest.mark.parametrize("length", ["announced", "unknown"])
def test_an_empty_body_is_no_file(rig: Rig, length: Any) -> None:
    rig.portal.answer("/flights.csv", Reply(length=length))
    with pytest.raises(DataError, match=r"source flights: expected data from http://.*/flights\.csv, got 0 bytes"):
        rig.fetch("/flights.csv")
    assert rig.files_left() == []


@pytest.mark.parametrize("path", ["/a.csv", "/a.JSON", "/a.jsonl", "/a.parquet?x=1", "/a.csv.gz"])
def test_a_web_page_in_place_of_a_file_is_refused(rig: Rig, path: str) -> None:
    rig.portal.answer(path, Reply(body=b"<html>", headers={"Content-Type": "Text/HTML; charset=utf-8"}))
    with pytest.raises(DataError, match=r"expected a file from .*, got a web page"):
        rig.fetch(path)
    assert rig.files_left() == []


def test_a_web_page_is_fetched_where_the_url_may_be_one(rig: Rig) -> None:
    rig.portal.answer("/table", Reply(body=b"<html>", headers={"Content-Type": "text/html"}))
    assert rig.fetched_bytes(rig.fetch("/table")) == b"<html>"


@pytest.mark.parametrize(("length", "got"), [("announced", "11"), ("chunked", "more"), ("unknown", "more")])
def test_a_file_above_the_limit_is_refused(rig: Rig, length: Any, got: str) -> None:
    rig.portal.answer("/flights.csv", Reply(body=b"x" * 11, length=length))
    with pytest.raises(DataError, match=rf"source flights: expected at most 10 bytes from .*, got {got}$"):
        rig.fetch("/flights.csv", max_bytes=10)
    assert rig.files_left() == []
    rig.portal.answer("/flights.csv", Reply(body=b"x" * 10, length=length))
    assert rig.fetched_bytes(rig.fetch("/flights.csv", max_bytes=10)) == b"x" * 10


# ---------------------------------------------------------------- content-encoding


def test_gzip_that_nobody_asked_for_is_unpacked(rig: Rig) -> None:
    packed = gzip.compress(BODY[:20]) + gzip.compress(BODY[20:])  # two members are one file
    rig.portal.answer("/flights.csv", Reply(body=packed, headers={"Content-Encoding": "gzip"}))
    execution = rig.fetch("/flights.csv")
    assert rig.fetched_bytes(execution) == BODY
    assert rig.fetched_file(execution).sha256 == hashlib.sha256(BODY).hexdigest()
    assert execution.result.steps[0].message == f"{len(BODY)} bytes from 127.0.0.1, unpacked from gzip"


def test_a_gz_file_stays_packed_whatever_its_server_calls_the_packing(rig: Rig) -> None:
    packed = gzip.compress(BODY)
    rig.portal.answer("/flights.csv.gz", Reply(body=packed, headers={"Content-Encoding": "x-gzip"}))
    assert rig.fetched_bytes(rig.fetch("/flights.csv.gz")) == packed


@pytest.mark.parametrize(
    "body",
    [gzip.compress(BODY, mtime=0)[:-4], BODY, gzip.compress(BODY, mtime=0) + b"trailing"],
    ids=["cut off", "not packed", "with a tail"],
)
def test_gzip_that_is_none_or_cut_off_is_refused(rig: Rig, body: bytes) -> None:
    rig.portal.answer("/flights.csv", Reply(body=body, headers={"Content-Encoding": "gzip"}))
    with pytest.raises(DataError, match="source flights: expected gzip"):
        rig.fetch("/flights.csv")
    assert rig.files_left() == []


def test_what_gzip_unpacks_to_counts_against_the_limit(rig: Rig) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    rig.portal.answer("/flights.csv", Reply(body=bomb, headers={"Content-Encoding": "gzip"}))
    with pytest.raises(DataError, match="expected at most 1,000,000 bytes"):
        rig.fetch("/flights.csv", max_bytes=1_000_000)
    assert rig.files_left() == []


def test_an_encoding_that_cannot_be_undone_is_refused(rig: Rig) -> None:
    rig.portal.answer("/flights.csv", Reply(body=BODY, headers={"Content-Encoding": "br"}))
    with pytest.raises(DataError, match=r"expected content-encoding identity or gzip from .*, got br"):
        rig.fetch("/flights.csv")


# ---------------------------------------------------------------- faults that pass


@pytest.mark.parametrize(
    "fault",
    [
        Reply(body=BODY, cut_at=10),
        Reply(body=BODY, cut_at=10, length="chunked"),
        Reply(body=BODY, cut_at=0),
        Reply(reset=True),
        Reply(status=500),
        Reply(status=503),
        Reply(status=408),
        Reply(status=429),
        Reply(status=429, headers={"Retry-After": "0"}),
        Reply(status=503, headers={"Retry-After": "0"}),
        Reply(status=429, headers={"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}),
    ],
    ids=repr,
)
def test_a_fault_that_passes_costs_a_try_and_no_more(rig: Rig, fault: Reply) -> None:
    rig.portal.answer("/flights.csv", fault, fault, Reply(body=BODY))
    assert rig.fetched_bytes(rig.fetch("/flights.csv")) == BODY
    assert rig.portal.times_asked("/flights.csv") == 3
    assert [each.level for each in rig.said] == ["warning", "warning", "info"]
    assert [each.message[-7:] for each in rig.said[:2]] == ["(try 1)", "(try 2)"]


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (Reply(body=BODY, cut_at=10), rf"got: .*received 10 bytes, expected {len(BODY)}"),
        (Reply(body=BODY, cut_at=10, length="chunked"), "got: .*incomplete chunked read"),
        (Reply(reset=True), "got: .*reset"),
        (Reply(status=500), "expected 200 from .*, got 500 Internal Server Error"),
    ],
    ids=repr,
)
def test_a_fault_that_stays_is_transient_and_leaves_nothing(rig: Rig, fault: Reply, complaint: str) -> None:
    rig.portal.answer("/flights.csv", fault)
    with pytest.raises(TransientError, match=f"source flights: .*{complaint}") as failed:
        rig.fetch("/flights.csv")
    assert failed.value.subject == "flights"
    assert rig.portal.times_asked("/flights.csv") == 4
    assert rig.files_left() == []


def test_a_portal_that_is_down_is_transient(rig: Rig) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refuses, and nobody else takes it
        with pytest.raises(TransientError, match="refused"):
            rig.fetch(f"http://127.0.0.1:{unused.getsockname()[1]}/flights.csv")


def test_a_failing_source_leaves_no_part_of_itself_beside_whole_ones(rig: Rig) -> None:
    rig.portal.answer("/a.csv", Reply(body=BODY))
    rig.portal.answer("/b.csv", Reply(body=BODY, cut_at=10))
    with pytest.raises(TransientError, match="source flights_2"):
        rig.fetch("/a.csv", "/b.csv")
    assert rig.files_left() == [rig.scratch / "out/flights/a.csv"]


# ---------------------------------------------------------------- waiting as told


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        ("Thu, 01 Jan 2026 00:10:00 GMT", 600.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400.0),
        ("9" * 400, 86_400.0),
    ],
)
def test_a_long_retry_after_sends_the_run_back_to_the_queue_at_once(rig: Rig, header: str, seconds: float) -> None:
    rig.portal.answer("/flights.csv", Reply(status=429, headers={"Retry-After": header}))
    with pytest.raises(RateLimitError, match="got 429 Too Many Requests") as limited:
        rig.fetch("/flights.csv", timeout_s=172_800)
    assert limited.value.retry_after_s == seconds
    assert rig.portal.times_asked("/flights.csv") == 1


def test_a_retry_after_longer_than_the_job_has_left_is_not_waited_out(rig: Rig) -> None:
    rig.portal.answer("/flights.csv", Reply(status=503, headers={"Retry-After": "40"}))
    with pytest.raises(TransientError) as failed:
        rig.fetch("/flights.csv", timeout_s=30)
    assert failed.value.retry_after_s == 40
    assert rig.portal.times_asked("/flights.csv") == 1


def test_a_short_retry_after_is_waited_out(rig: Rig) -> None:
    wait = Reply(status=429, headers={"Retry-After": "1"})
    rig.portal.answer("/flights.csv", wait, Reply(body=BODY))
    started = stopwatch()
    rig.fetch("/flights.csv")
    assert 1 <= started() < 5


@pytest.mark.parametrize("header", ["soon", "-1", "", "Thu, 99 Jan 2026 00:00:00 GMT"])
def test_a_retry_after_that_says_nothing_is_no_wait(rig: Rig, header: str) -> None:
    rig.portal.answer("/flights.csv", Reply(status=429, headers={"Retry-After": header}))
    with pytest.raises(RateLimitError) as limited:
        rig.fetch("/flights.csv")
    assert limited.value.retry_after_s is None
    assert rig.portal.times_asked("/flights.csv") == 4


# ---------------------------------------------------------------- time


def stopwatch() -> Callable[[], float]:
    started = time.monotonic()
    return lambda: time.monotonic() - started


def test_a_silent_portal_is_given_up_after_the_read_timeout(rig: Rig) -> None:
    rig.portal.answer("/flights.csv", Reply(silent_s=30), Reply(body=BODY))
    started = stopwatch()
    assert rig.fetched_bytes(rig.fetch("/flights.csv", timeout=httpx.Timeout(0.2))) == BODY
    assert started() < 5
    assert "timed out" in rig.said[0].message


@pytest.mark.parametrize("slow", [Reply(silent_s=30), Reply(body=BODY, drip_s=0.2)], ids=["silent", "dripping"])
def test_the_job_s_time_is_the_limit_however_the_bytes_come(rig: Rig, slow: Reply) -> None:
    rig.portal.answer("/flights.csv", slow)
    started = stopwatch()
    with pytest.raises(TransientError, match=r"expected all of .* in 1 s \(resources.timeout_s\), got no end"):
        rig.fetch("/flights.csv", timeout_s=1)
    assert started() < 5
    assert rig.portal.times_asked("/flights.csv") == 1
    assert len(rig.said) == 1
    assert rig.files_left() == []


# ---------------------------------------------------------------- disk


def test_a_disk_that_does_not_take_the_file_is_infrastructure(rig: Rig) -> None:
    rig.portal.answer("/flights.csv", Reply(body=BODY))
    rig.scratch.write_bytes(b"a file where the folder should be")
    with pytest.raises(InfrastructureError, match="source flights: expected to write it to scratch, got: "):
        rig.fetch("/flights.csv")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_infrastructure(rig: Rig) -> None:
    rig.portal.answer("/flights.csv", Reply(body=BODY))
    rig.scratch.mkdir()
    (rig.scratch / "flights.part").symlink_to("/dev/full")
    with pytest.raises(InfrastructureError, match="got: No space left on device"):
        rig.fetch("/flights.csv")
    assert list(rig.scratch.iterdir()) == []


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of portal.example.org, its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command, to make a certificate")
    pem = tmp_path_factory.mktemp("tls") / "portal.pem"
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -batch"
    names = ["-subj", "/CN=portal.example.org", "-addext", "subjectAltName=DNS:portal.example.org"]
    subprocess.run(
        ["openssl", *request.split(), *names, "-keyout", str(pem), "-out", str(pem.with_suffix(".crt"))],
        check=True,
        capture_output=True,
    )
    pem.write_bytes(pem.read_bytes() + pem.with_suffix(".crt").read_bytes())
    return pem


@pytest.fixture
def tls_rig(certificate: Path, tmp_path: Path) -> Iterator[Rig]:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate)
    with PortalServer(tls=server_side) as portal:
        portal.answer("/flights.csv", Reply(body=BODY))
        yield Rig(portal, tmp_path / "scratch")


def fetch_by_tls(rig: Rig, host: str, certificate: Path | None, path: str = "/flights.csv") -> Execution:
    return rig.fetch(
        rig.portal.url(path, host=host),
        allowed=["*.example.org", "127.0.0.1"],
        resolve=lambda name, port: ["127.0.0.1"],
        tls=ssl.create_default_context(cafile=certificate) if certificate else None,
    )


def test_tls_asks_for_the_name_and_not_the_address(tls_rig: Rig, certificate: Path) -> None:
    execution = fetch_by_tls(tls_rig, "portal.example.org", certificate)
    assert tls_rig.fetched_bytes(execution) == BODY
    assert tls_rig.portal.server_names == ["portal.example.org"]


def test_a_certificate_of_another_name_is_refused(tls_rig: Rig, certificate: Path) -> None:
    with pytest.raises(DataError, match=r"expected a valid certificate from .*, got: Hostname mismatch"):
        fetch_by_tls(tls_rig, "other.example.org", certificate)
    assert tls_rig.portal.asked == []


def test_a_certificate_of_an_unknown_authority_is_refused(tls_rig: Rig) -> None:
    with pytest.raises(DataError, match=r"expected a valid certificate from .*, got: self.signed certificate"):
        fetch_by_tls(tls_rig, "portal.example.org", None)
    assert tls_rig.portal.asked == []


def test_a_redirect_from_https_to_http_is_refused(tls_rig: Rig, certificate: Path) -> None:
    tls_rig.portal.answer("/old.csv", Reply(status=302, headers={"Location": "http://portal.example.org/"}))
    with pytest.raises(SpecError, match=r"expected https, got http, redirected by portal.example.org"):
        fetch_by_tls(tls_rig, "portal.example.org", certificate, "/old.csv")
