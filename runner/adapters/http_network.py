"""The network as extract may use it: only addresses that the rules allow, and only as long as the job has time."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import httpcore
import httpx

from runner.model.errors import RunnerError
from runner.model.hosts import HostRules, literal
from runner.model.spec import Source

Resolve = Callable[[str, int], Sequence[str]]
Error = TypeVar("Error", bound=RunnerError)


def resolve_host(host: str, port: int) -> Sequence[str]:
    """Every address of `host`, in the system's order of preference. Raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


class Deadline:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.stopped = False
        """Whether somebody did not want to wait for its end."""
        self._ends_at = time.monotonic() + seconds

    @property
    def remaining_s(self) -> float:
        return max(0.0, self._ends_at - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.remaining_s == 0

    def stop(self) -> None:
        """The time is over now, also for a transfer that is under way in another thread."""
        self.stopped = True
        self._ends_at = time.monotonic()

    def cap(self, timeout: float | None) -> float:
        """`timeout`, or what is left if that is less. Raises `httpcore.ReadTimeout` if nothing is."""
        remaining_s = self.remaining_s
        if remaining_s == 0:
            raise httpcore.ReadTimeout("no time left")
        return remaining_s if timeout is None else min(timeout, remaining_s)


class CheckedNetwork(httpcore.NetworkBackend):
    """Resolves a host, checks every address, and connects to one of these: no second answer can slip in.

    The system's resolver has time limits of its own, which no parameter here can change.
    """

    def __init__(
        self,
        network: httpcore.NetworkBackend,
        allowed: HostRules,
        resolve: Resolve,
        source: Source,
        deadline: Deadline,
    ) -> None:
        self._network = network
        self._allowed = allowed
        self._resolve = resolve
        self._source = source
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = [host] if literal(host) else self._addresses(host, port)
        name = self._source.name
        for address in addresses:
            self._allowed.require_address(address, host, port, what=f"source {name}", subject=name)
        failure: Exception = httpcore.ConnectError(f"no address for {host}")
        for address in addresses:
            cap_s = self._deadline.cap(timeout)
            try:
                stream = self._network.connect_tcp(address, port, cap_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
            else:
                return _TimedStream(stream, self._deadline)
        raise failure

    def _addresses(self, host: str, port: int) -> Sequence[str]:
        try:
            return self._resolve(host, port)
        except OSError as exc:
            raise httpcore.ConnectError(f"no address for {host}: {exc.strerror or exc}") from exc


class _TimedStream(httpcore.NetworkStream):
    """A stream that ends with the job's time, however slowly its bytes drip."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.cap(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.cap(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.cap(timeout))
        return _TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Transport(httpx.BaseTransport):
    """httpx on a network of ours, for which its own transport has no parameter. It knows no proxies."""

    def __init__(self, network: httpcore.NetworkBackend, tls: ssl.SSLContext) -> None:
        self._pool = httpcore.ConnectionPool(ssl_context=tls, network_backend=network)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        response = self._pool.handle_request(
            httpcore.Request(request.method, url, headers=request.headers.raw, extensions=request.extensions)
        )
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(response), extensions=response.extensions
        )

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


def source_error(
    kind: type[Error],
    source: Source,
    message: str,
    *,
    hint: str | None = None,
    retry_after_s: float | None = None,
) -> Error:
    return kind(f"source {source.name}: {message}", hint=hint, subject=source.name, retry_after_s=retry_after_s)
