"""Records of text files, each with the line it came from: nothing is converted here, and no line is lost.

CSV and JSON Lines are read by Python's own parsers. DuckDB's readers count lines wrongly where many are rejected, let a
trailing delimiter pass, stop at mixed line ends, take all after a stray quote for one line, and round JSON's numbers.
In small batches that stream into DuckDB, Python costs about the same.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import IO, Any

import pyarrow as pa

from runner.model.errors import DataError, SchemaError

MAX_LINE_BYTES = 2 * 1024 * 1024
"""A line, or a quoted field over several lines, above this is malformed: else one stray quote would fill memory."""

_CODECS = {".gz": "gzip", ".zst": "zstd"}
_BUFFER_BYTES = 1024 * 1024
_BOM = b"\xef\xbb\xbf"

# A plain tuple, because there is one for each row and a class costs more than the parsing:
# - line: where the record begins in its file, from 1
# - values: a text for each column of the contract, in the contract's order; None is null
# - found: the rules that reading alone shows broken
# - text: the line as it came, where something was found
# - parsed: False for a malformed line, which has no values
Record = tuple[int, Sequence[str | None], list[str] | None, str | None, bool]


class Lines:
    """The lines of a file, decompressed by its extension and decoded; keeps those of the record at hand as bytes."""

    def __init__(self, file: io.RawIOBase | io.BytesIO, name: str) -> None:
        self._name = name
        self._codec = next((codec for extension, codec in _CODECS.items() if name.endswith(extension)), None)
        stream: Any = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), self._codec) if self._codec else file
        self._file: IO[bytes] = io.BufferedReader(stream, _BUFFER_BYTES)
        self._ended = 0
        self.taken: list[bytes] = []
        """The lines since `begin`."""
        self.fault: str | None = None
        """What is wrong with one of them, whatever they are to mean."""

    @property
    def first(self) -> int:
        """The number of the first line taken, from 1."""
        return self._ended - len(self.taken) + 1

    def begin(self) -> None:
        """The next line begins a record."""
        self.taken.clear()
        self.fault = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Raises `DataError` where the file cannot be decompressed."""
        try:
            line = self._read()
        except OSError as exc:
            if self._codec is None:
                raise
            raise DataError(f"{self._name}: expected a {self._codec} file, got {exc}", subject=self._name) from exc
        if not line:
            raise StopIteration
        self._ended += 1
        if self._ended == 1:
            line = line.removeprefix(_BOM)
        self.taken.append(line)
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.fault = self.fault or "malformed(encoding)"
            return line.decode(errors="replace")

    def _read(self) -> bytes:
        line = self._file.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            self.fault = "malformed(line too long)"
            while (rest := self._file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
        return line

    def malformed(self, rule: str, width: int) -> Iterator[Record]:
        """The lines taken, each as a record of its own: a quote that never closes must not pass for one bad row."""
        for number, line in enumerate(self.taken, self.first):
            yield number, (None,) * width, [rule], _text(line), False


def read_csv(lines: Lines, columns: Sequence[str], *, delimiter: str, name: str, contract: str) -> Iterator[Record]:
    """Records of a CSV file by RFC 4180, whose header names `columns` in any order. A blank line is no record.

    Raises `SchemaError` where the header is another.
    """
    # The module's limit is in characters, and for the whole process; the process is this job's own.
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = _header(reader, lines, columns, name, contract)
    width = len(columns)
    in_order = header == list(columns)
    reorder = itemgetter(*(header.index(column) for column in columns)) if not in_order else None
    while True:
        lines.begin()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield from lines.malformed(lines.fault or "malformed(syntax)", width)
            continue
        if lines.fault:
            yield from lines.malformed(lines.fault, width)
        elif len(values) == width:
            yield lines.first, reorder(values) if reorder else values, None, None, True
        elif values:
            fault = "too few fields" if len(values) < width else "too many fields"
            yield from lines.malformed(f"malformed({fault})", width)


def read_json_lines(lines: Lines, columns: dict[str, str]) -> Iterator[Record]:
    """Records of a JSON Lines file: an object a line, a key that is not there is null. A blank line is no record.

    `columns` gives each column's type rule. Numbers stay the text that they are in the file.
    """
    while True:
        lines.begin()
        line = next(lines, None)
        if line is None:
            return
        if not lines.fault and not line.strip():
            continue
        try:
            if lines.fault:
                raise _MalformedError(lines.fault)
            values, found = _json_row(line, columns)
        except _MalformedError as exc:
            yield from lines.malformed(exc.rule, len(columns))
        else:
            yield lines.first, values, found, _text(lines.taken[0]) if found else None, True


class _MalformedError(Exception):
    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


def _json_row(line: str, columns: dict[str, str]) -> tuple[list[str | None], list[str] | None]:
    """The values, and the rules that they break by being nested or without a column. Raises `_MalformedError`."""
    try:
        document = _DECODER.decode(line)
        if "\\u" in line:
            # JSON can escape half a surrogate pair, which is no character.
            json.dumps(document, ensure_ascii=False).encode()
        if type(document) is not dict:
            raise _MalformedError("malformed(not an object)")
        values = [document.get(column) for column in columns]
        found: list[str] = []
        for index, rule in enumerate(columns.values()):
            value = values[index]
            if value is not None and type(value) is not str:
                values[index] = json.dumps(value)
                if type(value) is not bool:
                    found.append(rule)
    except UnicodeEncodeError as exc:
        raise _MalformedError("malformed(encoding)") from exc
    except (ValueError, RecursionError) as exc:
        raise _MalformedError("malformed(syntax)") from exc
    if not columns.keys() >= document.keys():
        found += dict.fromkeys(f"unknown({key[:100]})" for key in document if key not in columns)
    return values, found or None


def _header(reader: Iterator[list[str]], lines: Lines, columns: Sequence[str], name: str, contract: str) -> list[str]:
    expected = f"{name}: expected a header of the columns {', '.join(columns)}, as {contract} has them"
    header: list[str] = []
    while not header:
        lines.begin()
        try:
            header = next(reader)
        except StopIteration:
            raise SchemaError(f"{expected}, got an empty file", subject=name) from None
        except csv.Error as exc:
            raise SchemaError(f"{expected}, got no CSV: {exc}", subject=name) from exc
    if lines.fault:
        raise SchemaError(f"{expected}, got one that is {lines.fault}", subject=name)
    if sorted(header) != sorted(columns):
        raise SchemaError(f"{expected}, {difference(header, columns)}", subject=name)
    return header


def difference(got: Sequence[str], expected: Sequence[str]) -> str:
    """`got …`, and what is missing, unknown or twice in it."""
    parts = {
        "missing": [column for column in expected if column not in got],
        "unknown": [column for column in got if column not in expected],
        "twice": sorted({column for column in got if got.count(column) > 1}),
    }
    details = "; ".join(f"{part}: {', '.join(names)[:200]}" for part, names in parts.items() if names)
    return f"got {', '.join(got)[:300]} ({details})"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        # Parsers disagree on which of the two values counts.
        raise _MalformedError("malformed(a key twice)")
    return document


def _no_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_float=str, parse_int=str, parse_constant=_no_constant
)


def _text(line: bytes) -> str:
    """A line as it came; bytes that are no UTF-8 as `\\xff`."""
    return line.rstrip(b"\r\n").decode(errors="backslashreplace")
