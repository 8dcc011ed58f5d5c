"""An input's file as the worker keeps it and the child reads it: its bytes, and after them which of these are there."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_BYTES = 16 * 1024
"""The unit in which a file's bytes come. DuckDB asks for a column of a row group at a time, which is larger."""

_TRIES = 3
"""A file of which the cache has let go while it was read is opened anew, and that one may be let go of as well."""


def blocks_of(size: int) -> int:
    return -(-size // BLOCK_BYTES)


def stored_bytes(size: int) -> int:
    """Length of the stored file: the content, and a byte for each block of it, which is 1 once the block is there."""
    return size + blocks_of(size)


def size_of(stored: int) -> int | None:
    """The content's size, by the stored file's length; None for a length that no content has."""
    size = stored - -(-stored // (BLOCK_BYTES + 1))
    return size if stored_bytes(size) == stored else None


class InputFile(io.RawIOBase):
    """A declared input's file. What of it has not come yet is asked for when it is read; it is not for two threads."""

    def __init__(
        self,
        descriptor: int,
        size: int,
        *,
        fetch: Callable[[int, int], None] | None = None,
        reopen: Callable[[], int] | None = None,
    ) -> None:
        """Takes over the descriptor. `fetch` has the bytes from the one to the other brought; None where all are there.

        `reopen` gives another descriptor of the same file, for one whose bytes come no more.
        """
        super().__init__()
        self.size = size
        self._descriptor = descriptor
        self._fetch = fetch
        self._reopen = reopen
        self._at = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """All that was asked for, or up to the end. DuckDB looks at no length: less would leave garbage in its rows."""
        end = self.size if size is None or size < 0 else min(self._at + size, self.size)
        if end <= self._at:
            return b""
        self._require(self._at, end)
        data = os.pread(self._descriptor, end - self._at, self._at)
        while self._at + len(data) < end:
            # Linux reads 2 GiB at most at a time.
            more = os.pread(self._descriptor, end - self._at - len(data), self._at + len(data))
            if not more:
                raise OSError(f"input: expected {end - self._at:,} bytes at {self._at:,}, got {len(data):,}")
            data += more
        self._at = end
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        with memoryview(buffer).cast("B") as view:
            data = self.read(len(view))
            view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"input: expected a place in the file, got {base + offset}")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        # DuckDB drops the files of an fsspec file system without closing them: Python calls this then.
        if not self.closed:
            super().close()
            os.close(self._descriptor)

    def _require(self, start: int, end: int) -> None:
        """Raises `OSError` where the bytes do not come, and whatever asking for them raises."""
        first, count = start // BLOCK_BYTES, blocks_of(end) - start // BLOCK_BYTES
        if self._fetch is None or self._has(first, count):
            return
        for _ in range(_TRIES):
            self._fetch(start, end)
            if self._has(first, count):
                return
            if self._reopen is not None:
                os.close(self._descriptor)
                self._descriptor = self._reopen()
        raise OSError(f"input: expected {end - start:,} bytes at {start:,} to come, got none")

    def _has(self, first: int, count: int) -> bool:
        return os.pread(self._descriptor, count, self.size + first) == b"\1" * count
