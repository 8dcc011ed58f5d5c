"""A file's bytes as UTF-8: unpacked by what they begin with, and out of the encodings that a format may state."""

from __future__ import annotations

import codecs
import io
import re
from typing import Any

import pyarrow as pa

from runner.model.errors import DataError
from runner.model.spec import Compression, Encoding

_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_READ_BYTES = 1024 * 1024
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_MARK = 0xDC00
"""Bytes that are none of the encoding become surrogates from here on, which no UTF-8 has: the lines with them show."""


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(_MARK + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error("stage-runner-mark", _mark)


class Utf8Stream:
    """A file as UTF-8, read in parts. What is none of its encoding stays in it as bytes that are no UTF-8."""

    def __init__(
        self, file: io.RawIOBase | io.BytesIO, name: str, compression: Compression, encoding: Encoding
    ) -> None:
        """Raises `DataError` where a file of utf-16 does not begin with a byte order mark."""
        self._name = name
        begin = _first_bytes(file)
        found = next((codec for codec, magic in _MAGIC.items() if begin.startswith(magic)), "none")
        self._codec = found if compression == "auto" else compression
        self._file: Any = file
        if self._codec != "none":
            self._file = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), self._codec)
        self._decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)("stage-runner-mark")
        self._begun = False
        self._ended = False
        self._encoding = encoding

    def read(self) -> bytes:
        """The next part, of any size; none at the end. Raises `DataError` where the file cannot be unpacked."""
        while not self._ended:
            part = self._unpacked()
            self._ended = not part
            if not self._begun:
                part = self._without_mark(part)
                self._begun = True
            if self._decoder is not None:
                text = self._decoder.decode(part, final=self._ended)
                part = text.encode("utf-8", "surrogatepass")
            if part:
                return part
        return b""

    def _unpacked(self) -> bytes:
        try:
            return bytes(self._file.read(_READ_BYTES))
        except OSError as exc:
            if self._codec == "none":
                raise
            raise DataError(f"{self._name}: expected a {self._codec} file, got {exc}", subject=self._name) from exc

    def _without_mark(self, part: bytes) -> bytes:
        if self._encoding == "utf-8":
            return part.removeprefix(_UTF8_BOM)
        if self._encoding == "utf-16" and part and not part.startswith(_UTF16_BOMS):
            # Python would guess the machine's own byte order.
            raise DataError(
                f"{self._name}: expected a byte order mark, as encoding is utf-16, got {part[:2]!r}",
                subject=self._name,
                hint="state encoding: utf-16-le or utf-16-be",
            )
        if self._encoding in ("utf-16-le", "utf-16-be"):
            return part.removeprefix(_UTF16_BOMS[self._encoding == "utf-16-be"])
        return part


def _first_bytes(file: io.RawIOBase | io.BytesIO) -> bytes:
    begin = file.read(4) or b""
    file.seek(0)
    return begin


def as_it_came(line: bytes, encoding: Encoding) -> str:
    """A line of the stream to show: bytes that are none of the encoding as `\\xff`."""
    line = line.rstrip(b"\r\n")
    if encoding == "utf-8":
        return line.decode(errors="backslashreplace")
    text = line.decode("utf-8", "surrogatepass")
    return re.sub("[\udc00-\udcff]", lambda found: f"\\x{ord(found[0]) - _MARK:02x}", text)
