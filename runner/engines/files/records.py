"""Records of text files, each with the line it came from: nothing is converted here, and no line is lost.

Lines that nobody can read in two ways (no quote, a line end at their end alone, as many delimiters as the header) are
cut by Arrow, many at a time. All others are read by Python's own parsers, one by one: DuckDB's readers count lines
wrongly where many are rejected, let a trailing delimiter pass, stop at mixed line ends, take all after a stray quote
for one line, and round JSON's numbers.
"""

from __future__ import annotations

import csv
import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv

from runner.engines.contracts.drift import Layout
from runner.engines.contracts.rules import raw
from runner.engines.files.decoding import Utf8Stream, as_it_came
from runner.model.errors import SchemaError
from runner.model.spec import Encoding

MAX_LINE_BYTES = 2 * 1024 * 1024
"""A line, or a quoted field over several lines, above this is malformed: else one stray quote would fill memory."""

BLOCK_BYTES = 1024 * 1024
"""How much is looked through, and cut by Arrow, at a time: what fits a processor's cache is faster."""

BATCH_RECORDS = 2048
"""DuckDB's vector size. Larger batches of Python's records were slower: its garbage collector walks each of them."""

# A plain tuple, because there is one for each row and a class costs more than the parsing:
# - line: where the record begins in its file, from 1
# - values: a text for each column of the layout, in its order; None is null
# - found: the rules that reading alone shows broken
# - text: the line as it came, where something was found
# - parsed: False for a malformed line, which has no values
Record = tuple[int, Sequence[str | None], list[str] | None, str | None, bool]


@dataclass(frozen=True)
class Batch:
    """Records as columns: `_line`, `_found`, `_text`, `_parsed`, then texts of the layout's first `width` columns."""

    rows: pa.RecordBatch
    width: int


def schema_of(width: int) -> pa.Schema:
    return pa.schema(
        [
            ("_line", pa.int64()),
            ("_found", pa.list_(pa.string())),
            ("_text", pa.string()),
            ("_parsed", pa.bool_()),
            *((raw(index), pa.string()) for index in range(width)),
        ]
    )


def batch_of(records: Sequence[Record], width: int) -> Batch:
    """Records whose layout may have grown meanwhile: the shorter ones have nulls at their end."""
    schema = schema_of(width)
    lines, values, found, texts, parsed = zip(*records, strict=True)
    grown = [each if len(each) == width else [*each, *[None] * (width - len(each))] for each in values]
    columns = [lines, found, texts, parsed, *zip(*grown, strict=True)]
    arrays = [pa.array(column, each.type) for column, each in zip(columns, schema, strict=True)]
    return Batch(pa.RecordBatch.from_arrays(arrays, schema=schema), width)


def batches_of(records: Iterator[Record], layout: Layout) -> Iterator[Batch]:
    while some := list(islice(records, BATCH_RECORDS)):
        yield batch_of(some, layout.width)


class Lines:
    """The lines of a file; keeps those of the record at hand as bytes."""

    def __init__(self, stream: Utf8Stream, encoding: Encoding) -> None:
        self._stream = stream
        self._encoding = encoding
        self._buffer = b""
        self._at = 0
        self._dropped = 0
        self._at_end = False
        self._ended = 0
        self.taken: list[bytes] = []
        """The lines since `begin`."""
        self.fault: str | None = None
        """What is wrong with one of them, whatever they are to mean."""

    @property
    def first(self) -> int:
        """The number of the first line taken, from 1."""
        return self._ended - len(self.taken) + 1

    @property
    def next(self) -> int:
        """The number of the next line, from 1."""
        return self._ended + 1

    @property
    def position(self) -> int:
        """How many bytes have been gone over."""
        return self._dropped + self._at

    def begin(self) -> None:
        """The next line begins a record."""
        self.taken.clear()
        self.fault = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Raises `DataError` where the file cannot be unpacked."""
        line = self._read()
        if not line:
            raise StopIteration
        self._ended += 1
        self.taken.append(line)
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.fault = self.fault or "malformed(encoding)"
            return line.decode(errors="replace")

    def block(self) -> bytes:
        """What comes next, in whole lines, as much as is at hand; none at the end. It stays where it is."""
        while not self._at_end and len(self._buffer) - self._at < BLOCK_BYTES:
            self._fill()
        end = len(self._buffer) if self._at_end else self._buffer.rfind(b"\n") + 1
        # A line without an end in sight is too long, which whoever reads it finds.
        return self._buffer[self._at : end if end > self._at else None]

    def skip(self, size: int, lines: int) -> None:
        """Go on after `size` bytes, which are that many lines."""
        self._at += size
        self._ended += lines

    def _fill(self) -> None:
        self._dropped += self._at
        parts = [self._buffer[self._at :]]
        got = 0
        # More than a block at a time, so that what is left over is not copied again for each.
        while not self._at_end and got < 2 * BLOCK_BYTES:
            part = self._stream.read()
            self._at_end = not part
            parts.append(part)
            got += len(part)
        self._buffer, self._at = b"".join(parts), 0

    def _read(self) -> bytes:
        end = self._line_end()
        while end is None and len(self._buffer) - self._at <= MAX_LINE_BYTES:
            self._fill()
            end = self._line_end()
        if (
            end is None
            or end - self._at > MAX_LINE_BYTES + 1
            or (end - self._at == MAX_LINE_BYTES + 1 and self._buffer[end - 1 : end] != b"\n")
        ):
            return self._cut()
        line = self._buffer[self._at : end]
        self._at = end
        return line

    def _line_end(self) -> int | None:
        """Where the next line ends, behind its end; None where that is not at hand."""
        found = self._buffer.find(b"\n", self._at) + 1
        return found or (len(self._buffer) if self._at_end else None)

    def _cut(self) -> bytes:
        """The beginning of a line that is too long; the rest of it is passed over."""
        self.fault = "malformed(line too long)"
        line = self._buffer[self._at : self._at + MAX_LINE_BYTES + 1]
        while (end := self._line_end()) is None:
            self._at = len(self._buffer)
            self._fill()
        self._at = end
        return line

    def show(self, line: bytes) -> str:
        return as_it_came(line, self._encoding)

    def malformed(self, rule: str) -> Iterator[Record]:
        """The lines taken, each as a record of its own: a quote that never closes must not pass for one bad row."""
        for number, line in enumerate(self.taken, self.first):
            yield number, (), [rule], self.show(line), False


# --- CSV ---------------------------------------------------------------------------------------------------------


def read_csv(
    lines: Lines,
    layout: Layout,
    *,
    delimiter: str,
    name: str,
    header: bool = True,
    only: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Records of a CSV file by RFC 4180, whose header names the columns in any order. A blank line is no record.

    With `only`, numbers of lines in ascending order, others may be left out.
    Raises `SchemaError` where the header is another than the layout takes.
    """
    # The module's limit is in characters, and for the whole process; the process is this job's own.
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    places: list[int | None] = list(range(layout.width))
    expected = f"{name}: expected a header of the columns {', '.join(layout.names)}, as {layout.contract} has them"
    if header:
        places = layout.adopt(_header(reader, lines, expected, name), expected=expected, subject=name)
    yield from _CsvFile(lines, reader, places, layout.width, delimiter, only).batches()


def _header(reader: Iterator[list[str]], lines: Lines, expected: str, name: str) -> list[str]:
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
    return header


class _CsvFile:
    """The lines after the header: `places` says, for each field of a line, which column of the layout it fills."""

    def __init__(
        self,
        lines: Lines,
        reader: Iterator[list[str]],
        places: Sequence[int | None],
        width: int,
        delimiter: str,
        only: Sequence[int] | None,
    ) -> None:
        self._lines = lines
        self._reader = reader
        self._fields = len(places)
        self._width = width
        field_of = {place: index for index, place in enumerate(places) if place is not None}
        self._order = [field_of.get(place) for place in range(width)]
        self._as_it_is = self._order == list(range(self._fields))
        self._delimiter = delimiter
        self._only = only

    def batches(self) -> Iterator[Batch]:
        plain, numbers, odd = list[bytes](), list[range](), list[Record]()
        while block := self._lines.block():
            begin, at = self._lines.position, 0
            for start in self._odd_lines(block):
                if start < at:
                    continue  # the record before went on over it
                self._pass_over(block[at:start], plain, numbers)
                odd += self._one_by_one()
                at = self._lines.position - begin
                if len(odd) >= BATCH_RECORDS:
                    yield from self._joined(plain, numbers, odd)
                    plain, numbers, odd = [], [], []
            # A record may have ended behind the block.
            self._pass_over(block[at:], plain, numbers)
            # Of lines that are chosen, a block has a few only.
            if self._only is None or len(numbers) >= BATCH_RECORDS:
                yield from self._joined(plain, numbers, odd)
                plain, numbers, odd = [], [], []
        yield from self._joined(plain, numbers, odd)

    def _odd_lines(self, block: bytes) -> Iterator[int]:
        """Where lines begin that Arrow could take otherwise than the `csv` module, or than RFC 4180 has it."""
        returns = block.count(b"\r")
        parts = []
        if b'"' in block:
            parts.append(rb'"')
        if returns and returns != block.count(b"\r\n"):
            parts.append(rb"\r(?!\n)")
        # Arrow cuts at a byte, and takes a NUL for none.
        every = not self._delimiter.isascii() or self._delimiter == "\0"
        if every or not _is_utf8(block) or _has_long_line(block):
            return _odd_one_by_one(block, every=every)
        if not parts:
            return iter(())
        found = re.finditer(b"|".join(parts), block)
        return (block.rfind(b"\n", 0, each.start()) + 1 for each in found)

    def _pass_over(self, plain: bytes, into: list[bytes], numbers: list[range]) -> None:
        if not plain:
            return
        first, count = self._lines.next, plain.count(b"\n") + (not plain.endswith(b"\n"))
        self._lines.skip(len(plain), count)
        if self._only is None:
            numbers.append(range(first, first + count))
            into.append(plain)
            return
        wanted = self._only[bisect_left(self._only, first) : bisect_left(self._only, first + count)]
        if wanted:
            each = plain.split(b"\n")
            numbers += (range(number, number + 1) for number in wanted)
            into += (each[number - first] + b"\n" for number in wanted)

    def _one_by_one(self) -> Iterator[Record]:
        """The next record, by the `csv` module; more than one where its lines are malformed, none for a blank line."""
        lines = self._lines
        lines.begin()
        try:
            values = next(self._reader)
        except StopIteration:
            return
        except csv.Error:
            yield from lines.malformed(lines.fault or "malformed(syntax)")
            return
        if lines.fault:
            yield from lines.malformed(lines.fault)
        elif len(values) == self._fields:
            in_order: Sequence[str | None] = values
            if not self._as_it_is:
                in_order = [None if at is None else values[at] for at in self._order]
            yield lines.first, in_order, None, None, True
        elif values:
            yield from lines.malformed(_wrong_width(len(values), self._fields))

    def _joined(self, plain: list[bytes], numbers: list[range], odd: list[Record]) -> Iterator[Batch]:
        """Both kinds of lines in the order of the file."""
        if not plain:
            if odd:
                yield batch_of(odd, self._width)
            return
        cut, malformed = self._cut(b"".join(plain), numbers)
        if not odd and not malformed:
            yield Batch(cut, self._width)
            return
        others = batch_of([*odd, *malformed], self._width).rows
        table = pa.Table.from_batches([cut, others]).sort_by("_line").combine_chunks()
        yield from (Batch(each, self._width) for each in table.to_batches())

    def _cut(self, plain: bytes, numbers: list[range]) -> tuple[pa.RecordBatch, list[Record]]:
        """Plain lines by Arrow, and those of them with too few or too many fields."""
        wrong: dict[int, tuple[int, str]] = {}

        def skip(row: arrow_csv.InvalidRow) -> str:
            wrong[row.number - 1] = (row.actual_columns, row.text)
            return "skip"

        names = [f"field_{index}" for index in range(self._fields)]
        table = arrow_csv.read_csv(
            pa.BufferReader(plain),
            # One block: so the rows' numbers are known.
            read_options=arrow_csv.ReadOptions(column_names=names, use_threads=False, block_size=len(plain) + 1),
            parse_options=arrow_csv.ParseOptions(
                delimiter=self._delimiter,
                quote_char=False,
                double_quote=False,
                escape_char=False,
                newlines_in_values=False,
                invalid_row_handler=skip,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, check_utf8=False
            ),
        )
        size = table.num_rows
        line_of: Sequence[int] = numbers[0]
        if len(numbers) > 1 or size + len(wrong) != len(line_of):
            line_of = _line_numbers(plain, numbers)
        malformed: list[Record] = [
            (line_of[row], (), [_wrong_width(fields, self._fields)], text.rstrip("\r\n"), False)
            for row, (fields, text) in wrong.items()
        ]
        if wrong:
            line_of = [number for row, number in enumerate(line_of) if row not in wrong]
        in_a_row = isinstance(line_of, range)
        lines = pa.arange(line_of[0], line_of[0] + size) if in_a_row and size else pa.array(line_of, pa.int64())
        schema = schema_of(self._width)
        nothing = pa.nulls(size, pa.string())
        columns = [nothing if at is None else _one_chunk(table.column(at)) for at in self._order]
        parsed = pa.repeat(pa.scalar(value=True), size)
        rows = [lines, pa.nulls(size, schema.field("_found").type), nothing, parsed, *columns]
        return pa.RecordBatch.from_arrays(rows, schema=schema), malformed


def _line_numbers(plain: bytes, numbers: list[range]) -> list[int]:
    """Of each line that Arrow takes for a row, which a blank one is not."""
    each = (number for some in numbers for number in some)
    return [number for number, line in zip(each, plain.split(b"\n"), strict=False) if line not in (b"", b"\r")]


def _is_utf8(block: bytes) -> bool:
    if block.isascii():
        return True
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


def _has_long_line(block: bytes) -> bool:
    at = 0
    while len(block) - at > MAX_LINE_BYTES:
        at = block.rfind(b"\n", at, at + MAX_LINE_BYTES + 1) + 1
        if not at:
            return True
    return False


def _odd_one_by_one(block: bytes, *, every: bool) -> Iterator[int]:
    """As `_odd_lines`, for a block in which each line has to be looked at, or each is odd."""
    at = 0
    for line in block.removesuffix(b"\n").split(b"\n"):
        plain = line.removesuffix(b"\r")
        if every or b'"' in plain or b"\r" in plain or len(line) > MAX_LINE_BYTES or not _is_utf8(line):
            yield at
        at += len(line) + 1


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _wrong_width(fields: int, expected: int) -> str:
    return f"malformed({'too few fields' if fields < expected else 'too many fields'})"


# --- JSON Lines --------------------------------------------------------------------------------------------------


def read_json_lines(lines: Lines, rows: JsonRows) -> Iterator[Record]:
    """Records of a JSON Lines file: an object a line, a key that is not there is null. A blank line is no record.

    Numbers stay the text that they are in the file.
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
                raise MalformedError(lines.fault)
            values, found = rows.record(rows.decoded(line), line)
        except MalformedError as exc:
            yield from lines.malformed(exc.rule)
        else:
            yield lines.first, values, found, lines.show(lines.taken[0]) if found else None, True


class MalformedError(Exception):
    """What cannot be a row, by the rule that says why."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


class JsonRows:
    """Makes the values of rows out of JSON's objects."""

    def __init__(self, layout: Layout, type_rules: Sequence[str], file: str) -> None:
        """`type_rules` are the names of the contract's columns' rules: a nested value is of none of the types."""
        self._layout = layout
        self._type_rules = type_rules
        self._file = file
        self._twice = False
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self._pairs, parse_float=str, parse_int=str, parse_constant=_no_constant
        )

    def begin(self) -> None:
        """What was decoded until now is of no row."""
        self._twice = False

    def decoded(self, text: str) -> object:
        """Raises `MalformedError` for what is no JSON."""
        try:
            return self.decoder.decode(text)
        except (ValueError, RecursionError) as exc:
            raise MalformedError("malformed(syntax)") from exc

    def record(self, document: object, text: str) -> tuple[list[str | None], list[str] | None]:
        """The values of what was decoded last, and the rules that they break by being nested or without a column.

        Raises `MalformedError` for what is no row, and `SchemaError` for a key that cannot be a new column.
        """
        layout, twice = self._layout, self._twice
        self._twice = False
        if twice:
            raise MalformedError("malformed(a key twice)")
        if type(document) is not dict:
            raise MalformedError("malformed(not an object)")
        try:
            if "\\u" in text:
                # JSON can escape half a surrogate pair, which is no character.
                json.dumps(document, ensure_ascii=False).encode()
            found: list[str] = []
            if not document.keys() <= layout.places.keys():
                found = self._unknown([key for key in document if key not in layout.places])
            values: list[Any] = [document.get(column) for column in layout.names]
            nested: list[str] = []
            for index, value in enumerate(values):
                if value is not None and type(value) is not str:
                    values[index] = json.dumps(value)
                    if type(value) is not bool:
                        # A new column is whatever text it is.
                        nested += self._type_rules[index : index + 1]
        except UnicodeEncodeError as exc:
            raise MalformedError("malformed(encoding)") from exc
        except RecursionError as exc:
            raise MalformedError("malformed(syntax)") from exc
        return values, (nested + found) or None

    def _unknown(self, keys: Sequence[str]) -> list[str]:
        if self._layout.drift == "freeze":
            return list(dict.fromkeys(f"unknown({key[:100]})" for key in keys))
        for key in keys:
            self._layout.place(key, self._file)
        return []

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) != len(pairs):
            # Parsers disagree on which of the two values counts.
            self._twice = True
        return document


def _no_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
