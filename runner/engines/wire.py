"""Frames on the socket between worker and engine: four bytes of length, JSON, and at most one descriptor."""

from __future__ import annotations

import os
import socket
import struct
from threading import Lock

from runner.model.strict import Strict

_HEADER = struct.Struct("!I")
MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A result of 1,000 models stays far below; above it the other side is not one of ours."""


class Wire:
    """One end of the socket. `send` may be called from any thread, `receive` from one at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = Lock()

    def send(self, message: Strict, *, descriptor: int | None = None) -> None:
        """Raises `OSError` where the other side is gone."""
        body = message.to_json().encode()
        header = _HEADER.pack(len(body))
        with self._sending:
            if descriptor is None:
                self._socket.sendall(header + body)
            else:
                # The descriptor rides on the header, where `receive` looks for it.
                socket.send_fds(self._socket, [header], [descriptor])
                self._socket.sendall(body)

    def receive(self) -> tuple[bytes, int | None]:
        """The next frame's JSON, and its descriptor if it brought one. Raises `EOFError` where the other side ended."""
        header, descriptors = b"", []
        while len(header) < _HEADER.size:
            part, received, _, _ = socket.recv_fds(self._socket, _HEADER.size - len(header), 1)
            descriptors += received
            if not part:
                raise EOFError("the other side closed the socket")
            header += part
        (length,) = _HEADER.unpack(header)
        if length > MAX_FRAME_BYTES:
            raise EOFError(f"expected a frame of at most {MAX_FRAME_BYTES:,} bytes, got one of {length:,}")
        body = bytearray()
        while len(body) < length:
            part = self._socket.recv(min(length - len(body), 1 << 20))
            if not part:
                raise EOFError("the other side closed the socket in mid-frame")
            body += part
        for extra in descriptors[1:]:
            os.close(extra)
        return bytes(body), descriptors[0] if descriptors else None

    def close(self) -> None:
        self._socket.close()
