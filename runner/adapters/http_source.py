"""The extract stage's engine: fetches files over HTTP(S) as they are, from the hosts that are allowed.

No job code runs in it, so it works in the worker itself. The one module that knows httpx, httpcore and
stamina: import it where an extract runs.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import ssl
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import httpcore
import httpx
import stamina
import stamina.instrumentation

from runner import __version__
from runner.adapters.http_network import CheckedNetwork, Deadline, Resolve, Transport, resolve_host, source_error
from runner.model.errors import (
    DataError,
    InfrastructureError,
    RateLimitError,
    SpecError,
    TransientError,
)
from runner.model.hosts import HostRules
from runner.model.manifest import Fingerprint, SourceRecord, Step
from runner.model.messages import EngineFile, EngineOutput, EngineResult, Job, Progress
from runner.model.spec import ExtractWork, Source
from runner.ports import Clock, Execution, ServedFile

MAX_FILE_BYTES: Final = 10 * 1024**3
MAX_REDIRECTS: Final = 5
LONGEST_WAIT_S: Final = 60.0
"""The longest Retry-After that is waited out here; for a longer one the run goes back to the queue."""
LONGEST_RETRY_AFTER_S: Final = 86_400.0
"""A server that asks for more (or for the year 9999) is asked again after a day."""
TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)
"""Seconds to connect, and seconds without a byte."""
RETRYING: Final = stamina.RetryingCaller(attempts=4, timeout=None, wait_initial=1.0, wait_max=10.0, wait_jitter=1.0)

_HEADERS = {"User-Agent": f"stage-runner/{__version__}", "Accept-Encoding": "identity"}
_PAGE_TYPES = ("text/html", "application/xhtml+xml")
_NO_PAGES = (".csv", ".json", ".jsonl", ".parquet", ".gz")
_HINTS = {
    401: "the server asks who is there; sources are fetched without credentials",
    403: "the server asks who is there, or refuses this machine; sources are fetched without credentials",
    404: "has the file moved? its url is in the pipeline file, under work.sources",
    410: "the server says that it is gone for good; its url is in the pipeline file, under work.sources",
}

Say = Callable[[Progress], None]

# Every failed try is a line of the run's log already; stamina's own would go to standard error beside it.
stamina.instrumentation.set_on_retry_hooks(())


class HttpExtract:
    """The Engine port for `ExtractWork`. A file is whole, or it is not there.

    Its bytes are kept as they come. The one exception: where a server compresses what was asked for plain
    (Content-Encoding: gzip, and a name that does not end in .gz itself), the file is what was compressed.
    """

    def __init__(
        self,
        allowed: HostRules,
        *,
        clock: Clock,
        max_bytes: int = MAX_FILE_BYTES,
        timeout: httpx.Timeout = TIMEOUT,
        retrying: stamina.RetryingCaller = RETRYING,
        progress_every_s: float = 2.0,
        tls: ssl.SSLContext | None = None,
        resolve: Resolve = resolve_host,
        network: httpcore.NetworkBackend | None = None,
    ) -> None:
        """`tls` is by default certifi's roots, or SSL_CERT_FILE's; `network` gets checked addresses only."""
        self._allowed = allowed
        self._clock = clock
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._retrying = retrying
        self._progress_every_s = progress_every_s
        self._tls = tls or httpx.create_ssl_context()
        self._resolve = resolve
        self._network = network or httpcore.SyncBackend()
        self._deadline: Deadline | None = None

    def prepare(self) -> None:
        """Nothing: no job code runs here."""

    def close(self) -> None:
        """Nothing is kept between jobs."""

    def execute(
        self, job: Job, *, served: Mapping[str, Sequence[ServedFile]], secrets: Mapping[str, str], say: Say
    ) -> Execution:
        """Fetch every source to `<scratch>/out/<source>/<file name>`.

        Raises `SpecError` for a host that is not allowed, `DataError` for an answer that is not the file,
        `RateLimitError` or `TransientError` once the tries of this attempt are used up.
        """
        if not isinstance(job.work, ExtractWork):
            raise SpecError(f"work.kind: expected 'extract', got {job.work.kind!r}", subject="work.kind")
        sources = job.work.sources
        for source in sources:  # all of them, before the first byte of any
            self._require_allowed(_url(source), source)
        deadline = self._deadline = Deadline(job.resources.timeout_s)
        fetched = [self._fetch(source, Path(job.scratch), deadline, say) for source in sources]
        datasets = {each.output.from_: each.output.dataset for each in job.outputs}
        result = EngineResult(
            outputs=tuple(each.output(datasets[each.source.name]) for each in fetched),
            steps=tuple(each.step for each in fetched),
            counts={"bytes_fetched": sum(each.bytes for each in fetched), "files": len(fetched)},
            packages={"httpx": httpx.__version__},
        )
        return Execution(result=result, reads=None)

    def fetch(self, source: Source, scratch: Path, *, timeout_s: float, say: Say) -> Path:
        """One file to `<scratch>/out/…`, by the same rules. Raises as `execute` does."""
        self._require_allowed(_url(source), source)
        return scratch / "out" / self._fetch(source, scratch, Deadline(timeout_s), say).path

    def stop(self) -> None:
        """The transfer at hand ends with its next byte, or when the server has said nothing for its time limit."""
        if self._deadline:
            self._deadline.stop()

    def _fetch(self, source: Source, scratch: Path, deadline: Deadline, say: Say) -> _Fetched:
        """One source, in as many tries as it takes and is allowed."""
        part = scratch / f"{source.name}.part"
        tries = itertools.count(1)

        def try_once() -> _Fetched:
            number = next(tries)
            try:
                with _as_our_errors(source, deadline), _removed_unless_moved(part):
                    return self._fetch_once(source, part, scratch / "out", deadline, say)
            except (TransientError, RateLimitError) as exc:
                say(Progress(level="warning", message=f"{exc.message} (try {number})"))
                raise

        def wait_s(exc: Exception) -> bool | float:
            """What stamina asks: False to give up, True for its own back-off, or the seconds to wait."""
            if not isinstance(exc, TransientError | RateLimitError) or deadline.passed:
                return False
            asked_s = exc.retry_after_s
            if asked_s is None:
                return True
            return asked_s if asked_s <= min(LONGEST_WAIT_S, deadline.remaining_s) else False

        fetched = self._retrying(wait_s, try_once)
        say(Progress(message=f"source {source.name}: {fetched.step.message}", done=fetched.bytes))
        return fetched

    def _fetch_once(self, source: Source, part: Path, out: Path, deadline: Deadline, say: Say) -> _Fetched:
        started = time.monotonic()
        url = _url(source)
        with self._client(source, deadline) as client, closing(self._open(client, url, source)) as response:
            self._require_file(response, source, url)
            saved = self._save(response, source, url, part, say)
        path = f"{source.name}/{_file_name(url.path) or source.name}"
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        part.replace(out / path)
        return _Fetched(
            source=source,
            path=path,
            bytes=saved.bytes,
            sha256=saved.sha256,
            record=SourceRecord(
                url=source.url,  # as the spec has it: where redirects end may hold a signature
                etag=response.headers.get("etag"),
                last_modified=response.headers.get("last-modified"),
                content_type=response.headers.get("content-type"),
                fetched_at=self._clock.now(),
            ),
            step=Step(
                name=source.name,
                kind="source",
                status="success",
                seconds=round(time.monotonic() - started, 3),
                message=f"{saved.bytes:,} bytes from {response.url.host}{saved.remark}",
            ),
        )

    def _client(self, source: Source, deadline: Deadline) -> httpx.Client:
        """One for each try: the addresses, connections and cookies that it comes to know end with it."""
        network = CheckedNetwork(self._network, self._allowed, self._resolve, source, deadline)
        transport = Transport(network, self._tls)
        return httpx.Client(transport=transport, headers=_HEADERS, timeout=self._timeout, trust_env=False)

    def _open(self, client: httpx.Client, url: httpx.URL, source: Source) -> httpx.Response:
        """The answer that redirects end at. httpx's own way would read their bodies, and follow anywhere."""
        request, redirected_by = client.build_request("GET", url), None
        for _ in range(MAX_REDIRECTS + 1):
            self._require_allowed(request.url, source, redirected_by)
            response = client.send(request, stream=True)
            if response.next_request is None:
                return response
            response.close()
            request, redirected_by = response.next_request, request.url
        raise source_error(DataError, source, f"expected at most {MAX_REDIRECTS} redirects from {source.url}, got more")

    def _require_allowed(self, url: httpx.URL, source: Source, redirected_by: httpx.URL | None = None) -> None:
        by = f", redirected by {redirected_by.host}" if redirected_by else ""
        schemes = ("https",) if redirected_by and redirected_by.scheme == "https" else ("http", "https")
        if url.scheme not in schemes:
            raise source_error(SpecError, source, f"expected {' or '.join(schemes)}, got {url.scheme}{by}")
        if url.userinfo:  # the URL itself stays out of the message, and so out of log and manifest
            raise source_error(SpecError, source, f"expected a URL without user and password, got one with them{by}")
        what = f"source {source.name}{by}"
        self._allowed.require_host(url.raw_host.decode(), _port(url), what=what, subject=source.name)

    def _require_file(self, response: httpx.Response, source: Source, url: httpx.URL) -> None:
        """Raise unless the answer is 200 and may be the file."""
        status = response.status_code
        if status != 200:
            got = f"{status} {httpx.codes.get_reason_phrase(status)}".strip()
            by = "" if response.url.host == url.host else f" from {response.url.host}, by redirect"
            message = f"expected 200 from {source.url}, got {got}{by}"
            wait_s = _retry_after_s(response.headers.get("retry-after"), self._clock.now())
            if status == httpx.codes.TOO_MANY_REQUESTS:
                raise source_error(RateLimitError, source, message, retry_after_s=wait_s)
            if status >= 500 or status == httpx.codes.REQUEST_TIMEOUT:
                raise source_error(TransientError, source, message, retry_after_s=wait_s)
            raise source_error(DataError, source, message, hint=_HINTS.get(status))
        kind = response.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() in _PAGE_TYPES and url.path.lower().endswith(_NO_PAGES):
            raise source_error(
                DataError,
                source,
                f"expected a file from {source.url}, got a web page (content-type {kind})",
                hint="open the URL in a browser: it may ask for a log-in, or tell where the file is now",
            )
        announced = _announced(response)
        if announced is not None and announced > self._max_bytes:
            raise self._too_large(source, f"{announced:,}")

    def _save(self, response: httpx.Response, source: Source, url: httpx.URL, part: Path, say: Say) -> _Saved:
        """Write the body to `part`, counting and hashing on the way.

        That it is whole is h11's rule: it raises unless Content-Length, or the last chunk's end, is reached.
        """
        chunks: Iterable[bytes] = response.iter_raw()
        announced = _announced(response)
        remark = ""
        if announced is None and "transfer-encoding" not in response.headers:
            remark = ", of a length that the server did not tell"
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip", "x-gzip"):
            message = f"expected content-encoding identity or gzip from {source.url}, got {coding}"
            raise source_error(DataError, source, message)
        if coding != "identity" and not url.path.lower().endswith(".gz"):
            chunks, announced = _gunzip(chunks, source), None
            remark += ", unpacked from gzip"
        digest, size, said_at = hashlib.sha256(), 0, time.monotonic()
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            for chunk in chunks:
                size += len(chunk)
                if size > self._max_bytes:
                    raise self._too_large(source, "more")
                digest.update(chunk)
                file.write(chunk)
                if time.monotonic() - said_at >= self._progress_every_s:
                    said_at = time.monotonic()
                    of = "" if announced is None else f" of {announced:,}"
                    message = f"source {source.name}: {size:,}{of} bytes"
                    say(Progress(message=message, done=size, total=announced))
        if size == 0:
            raise source_error(DataError, source, f"expected data from {source.url}, got 0 bytes")
        return _Saved(bytes=size, sha256=digest.hexdigest(), remark=remark)

    def _too_large(self, source: Source, got: str) -> DataError:
        return source_error(
            DataError, source, f"expected at most {self._max_bytes:,} bytes from {source.url}, got {got}"
        )


# ---------------------------------------------------------------- what was fetched


@dataclass(frozen=True, kw_only=True)
class _Saved:
    bytes: int
    sha256: str
    remark: str


@dataclass(frozen=True, kw_only=True)
class _Fetched:
    source: Source
    path: str
    """Relative to `out/`."""
    bytes: int
    sha256: str
    record: SourceRecord
    step: Step

    def output(self, dataset: str) -> EngineOutput:
        return EngineOutput(
            dataset=dataset,
            files=(EngineFile(path=self.path, sha256=self.sha256, source=self.record),),
            rows=None,
            columns=None,
            fingerprint=Fingerprint(rows=None, hash=self.sha256, engine="sha256"),
            claimed_inputs=(self.source.url,),
        )


@contextmanager
def _removed_unless_moved(part: Path) -> Iterator[None]:
    try:
        yield
    finally:
        part.unlink(missing_ok=True)


# ---------------------------------------------------------------- errors


@contextmanager
def _as_our_errors(source: Source, deadline: Deadline) -> Iterator[None]:
    try:
        yield
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as exc:
        if deadline.stopped:
            raise source_error(InfrastructureError, source, "expected its end, got told to stop") from exc
        if deadline.passed:
            message = f"expected all of {source.url} in {deadline.seconds} s (resources.timeout_s), got no end"
            raise source_error(TransientError, source, message) from exc
        # httpcore keeps the cause as its argument only; it clears __cause__.
        if exc.args and isinstance(exc.args[0], ssl.SSLCertVerificationError):
            message = f"expected a valid certificate from {source.url}, got: {exc.args[0].verify_message}"
            raise source_error(DataError, source, message) from exc
        raise source_error(TransientError, source, f"expected all of {source.url}, got: {exc}") from exc
    except httpx.RemoteProtocolError as exc:
        raise source_error(DataError, source, f"expected a redirect to a URL, got: {exc}") from exc
    except OSError as exc:  # the network's are httpcore's by now, so this one is the disk's
        message = f"expected to write it to scratch, got: {exc.strerror or exc}"
        raise source_error(InfrastructureError, source, message) from exc


# ---------------------------------------------------------------- what specs and servers say


def _url(source: Source) -> httpx.URL:
    try:
        return httpx.URL(source.url)
    except httpx.InvalidURL as exc:
        raise source_error(SpecError, source, f"expected a URL, got: {exc}") from exc


def _port(url: httpx.URL) -> int:
    return url.port or {"http": 80, "https": 443}[url.scheme]


def _file_name(path: str) -> str:
    """The last part of a URL's path as a name that is plain everywhere; empty if nothing is left of it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", path.rpartition("/")[2])[-120:].lstrip("._-")


def _announced(response: httpx.Response) -> int | None:
    length = response.headers.get("content-length")
    return None if length is None else int(length)


def _retry_after_s(value: str | None, now: datetime) -> float | None:
    """Retry-After in seconds from `now`: a number or an HTTP date (RFC 9110, 10.2.3), None for all else."""
    if value is None:
        return None
    try:
        if value.isdecimal():
            seconds = float(value)
        else:
            at = parsedate_to_datetime(value)
            seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds()
    except ValueError:
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)


def _gunzip(chunks: Iterable[bytes], source: Source) -> Iterator[bytes]:
    """Unpack gzip to its very end; httpx drops all members but the first, and lets a cut one pass."""
    member = zlib.decompressobj(wbits=31)
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                if member.eof:
                    member = zlib.decompressobj(wbits=31)
                yield member.decompress(rest)
                rest = member.unused_data
    except zlib.error as exc:
        raise source_error(DataError, source, f"expected gzip, as content-encoding says, got: {exc}") from exc
    if not member.eof:
        raise source_error(DataError, source, "expected gzip to its end, got one that is cut off")
