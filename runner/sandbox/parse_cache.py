"""What parsing dbt projects came to, on the worker's disk, by exact keys: made by children that did nothing else."""

from __future__ import annotations

from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

MAX_BYTES = 256 * 1024 * 1024
"""Some 500 projects of a hundred models."""
_DIGEST_BYTES = sha256().digest_size


class ParseCache:
    """Workers of one machine may share a folder. What the disk does not let be kept is made again."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def get(self, key: str) -> bytes | None:
        """What parsing came to; empty where that is not to be kept, None where nobody has parsed under this key."""
        path = self._folder / key
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        digest, parsed = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        # A power cut can leave a file with holes.
        if sha256(parsed).digest() != digest:
            return None
        with suppress(OSError):
            path.touch()  # what is used last goes last
        return parsed

    def put(self, key: str, parsed: bytes) -> None:
        new = self._folder / f"{key}.{uuid4().hex}"
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                new.touch(mode=0o600)
                new.write_bytes(sha256(parsed).digest() + parsed)
                new.rename(self._folder / key)
            finally:
                new.unlink(missing_ok=True)
            self._remove_older()

    def _remove_older(self) -> None:
        by_age = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        too_much = sum(path.stat().st_size for path in by_age) - self._max_bytes
        for path in by_age:
            if too_much <= 0:
                break
            too_much -= path.stat().st_size
            path.unlink(missing_ok=True)
