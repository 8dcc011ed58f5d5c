"""An open-data portal on loopback that answers as it is told to, well or badly."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer, by default a good one."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: Literal["announced", "chunked", "unknown"] = "announced"
    cut_at: int | None = None
    """Close the connection after so many bytes of the body."""
    reset: bool = False
    """Reset the connection in place of an answer."""
    drip_s: float = 0.0
    """Seconds before each byte of the body."""
    silent_s: float = 0.0
    """Seconds before the answer begins."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request as the portal got it."""

    path: str
    headers: Mapping[str, str]


class PortalServer:
    """Serves on 127.0.0.1, at a free port, within a `with` block. What no reply is known for is a 404."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        self.server_names: list[str | None] = []
        """What each TLS client said it was looking for (SNI)."""
        self._replies: dict[str, list[Reply]] = {}
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _answering(self))
        self._tls = tls
        if tls is not None:
            tls.sni_callback = lambda _socket, name, _context: self.server_names.append(name)
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    def answer(self, path: str, *replies: Reply) -> None:
        """Answer requests for `path` with these in turn, the last of them for ever."""
        self._replies[path] = list(replies)

    def times_asked(self, path: str) -> int:
        return sum(1 for each in self.asked if each.path == path)

    def next_reply(self, path: str) -> Reply:
        replies = self._replies.get(path, [Reply(status=404, body=b"no such file")])
        return replies.pop(0) if len(replies) > 1 else replies[0]

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than the server is open."""
        self._closing.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing the server waits for its threads, and no test leaks one

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up, or refuse the certificate, are what these tests are about."""


def _answering(portal: PortalServer) -> type[BaseHTTPRequestHandler]:
    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            portal.asked.append(Asked(path=self.path, headers=dict(self.headers)))
            reply = portal.next_reply(self.path)
            self.close_connection = True
            portal.pause(reply.silent_s)
            if reply.reset:
                # Linger for 0 s: the kernel sends a reset, and no end of stream.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            if reply.length == "announced":
                self.send_header("Content-Length", str(len(reply.body)))
            elif reply.length == "chunked":
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client has read enough
                self._send_body(reply)

        def _send_body(self, reply: Reply) -> None:
            body = reply.body[: reply.cut_at]
            if reply.drip_s:
                for byte in body:
                    portal.pause(reply.drip_s)
                    self.wfile.write(bytes([byte]))
            elif reply.length == "chunked":
                self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
                if reply.cut_at is None:
                    self.wfile.write(b"0\r\n\r\n")
            else:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """The tests read `portal.asked`."""

    return Answering
