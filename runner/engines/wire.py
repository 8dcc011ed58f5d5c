"""Frames on a socket between two of our processes: four bytes of length, JSON, and a few descriptors."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock

from runner.model.strict import Strict

_HEADER = struct.Struct("!I")
MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A job with 100,000 files stays far below; above it the other side is not one of ours."""
MAX_RESULT_BYTES = 16 * 1024 * 1024
"""Of what a job's child says. A result of 1,000 models stays below; what is none takes 40 times its size to parse."""
_MOST_DESCRIPTORS = 3


class FrameTooLarge(EOFError):
    """The other side says more at a time than any of ours; what comes after it cannot be made out."""


class Wire:
    """One end of the socket. `send` may be called from any thread, `receive` from one at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = Lock()

    def send(self, message: Strict, *, descriptors: Sequence[int] = ()) -> None:
        """Raises `OSError` where the other side is gone."""
        body = message.to_json().encode()
        header = _HEADER.pack(len(body))
        with self._sending:
            if descriptors:
                # They ride on the header, where `receive` looks for them.
                socket.send_fds(self._socket, [header], list(descriptors))
                self._socket.sendall(body)
            else:
                self._socket.sendall(header + body)

    def receive(self, *, most_bytes: int = MAX_FRAME_BYTES) -> tuple[bytes, tuple[int, ...]]:
        """The next frame's JSON and the descriptors it brought. Raises `EOFError` where the other side ended."""
        descriptors: list[int] = []
        try:
            return self._frame(descriptors, most_bytes), tuple(descriptors)
        except BaseException:  # a signal's too: whoever gets no frame cannot close what came with it
            for each in descriptors:
                os.close(each)
            raise

    def _frame(self, descriptors: list[int], most_bytes: int) -> bytes:
        header = b""
        while len(header) < _HEADER.size:
            part, received, _, _ = socket.recv_fds(self._socket, _HEADER.size - len(header), _MOST_DESCRIPTORS)
            descriptors += received
            if not part:
                raise EOFError("the other side closed the socket")
            header += part
        (length,) = _HEADER.unpack(header)
        if length > most_bytes:
            raise FrameTooLarge(f"expected a frame of at most {most_bytes:,} bytes, got one of {length:,}")
        body = bytearray()
        while len(body) < length:
            part = self._socket.recv(min(length - len(body), 1 << 20))
            if not part:
                raise EOFError("the other side closed the socket in mid-frame")
            body += part
        return bytes(body)

    def shut(self) -> None:
        """End it for both sides; who waits in `receive` gets `EOFError`, or what had come before. For any thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
