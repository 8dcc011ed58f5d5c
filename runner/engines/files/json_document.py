"""Records of a JSON document that is an array of objects, or has one inside: read element by element, never whole."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence

from runner.engines.files.decoding import Utf8Stream
from runner.engines.files.records import JsonRows, MalformedError, Record
from runner.model.errors import DataError, SchemaError

MAX_VALUE_CHARACTERS = 64 * 1024 * 1024
"""Of one element, or of a value beside the rows: it is held in memory."""

_SPACE = re.compile(r"[ \t\n\r]*")
_MARKED = re.compile("[\udc00-\udcff]")
"""What stands for a byte that is none of the file's encoding."""


def read_json(stream: Utf8Stream, rows: JsonRows, keys: Sequence[str], name: str) -> Iterator[Record]:
    """Records of the array that `keys` lead to; an element that is no object is a bad row.

    Raises `SchemaError` where there is no such array, and `DataError` where the document as such is no JSON: behind
    that place nobody can say what is a row.
    """
    text = _Text(stream, rows.decoder, name)
    for key in keys:
        text.enter(key)
    yield from _elements(text, rows, name, keys)
    for key in reversed(keys):
        text.leave(key)
    text.end()


def _elements(text: _Text, rows: JsonRows, name: str, keys: Sequence[str]) -> Iterator[Record]:
    where = f"an array under {'.'.join(keys)}" if keys else "an array"
    if text.next() != "[":
        raise SchemaError(
            f"{name}: expected {where}, got {text.next()!r} at line {text.line}",
            subject=name,
            hint="format.rows names the keys that lead to the array of rows",
        )
    text.take("[")
    rows.begin()
    if text.next() == "]":
        text.take("]")
        return
    while True:
        text.next()
        line = text.line
        element, came = text.value()
        shown = _MARKED.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", came)
        try:
            if _MARKED.search(came):
                raise MalformedError("malformed(encoding)")
            values, found = rows.record(element, came)
        except MalformedError as exc:
            yield line, (), [exc.rule], shown, False
        else:
            yield line, values, found, shown if found else None, True
        if text.take(",]") == "]":
            return


class _Text:
    """The document from where it is read, as far as it is at hand."""

    def __init__(self, stream: Utf8Stream, decoder: json.JSONDecoder, name: str) -> None:
        self._stream = stream
        self._decoder = decoder
        self._name = name
        self._characters = codecs.getincrementaldecoder("utf-8")("stage-runner-mark")
        self._text = ""
        self._at = 0
        self._is_all = False
        self._lines = 0
        self._counted = 0

    @property
    def line(self) -> int:
        """The number of the line at hand, from 1."""
        self._lines += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._lines + 1

    def next(self) -> str:
        """The next character that is no space; none at the end. It stays where it is."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text) or not self._more(1):
                return self._text[self._at : self._at + 1]

    def take(self, expected: str) -> str:
        """One of the expected characters, taken."""
        came = self.next()
        if not came or came not in expected:
            raise self._refused(f"{' or '.join(expected)}", repr(came) if came else "the end of the file")
        self._at += 1
        return came

    def value(self) -> tuple[object, str]:
        """The next value, and its text."""
        self.next()
        while True:
            problem = "the end of the file"
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._more(1):
                    came = self._text[self._at : end]
                    self._at = end
                    return value, came
            except RecursionError as exc:
                raise self._refused("a value", "one nested too deeply") from exc
            except ValueError as exc:
                problem = str(exc).partition(":")[0]
                if len(self._text) - self._at > MAX_VALUE_CHARACTERS or not self._more(len(self._text) - self._at):
                    raise self._refused("a value", f"no JSON: {problem}") from exc

    def enter(self, key: str) -> None:
        """Go to the value of the key, in an object that begins here."""
        if self.next() != "{":
            raise self._without(key, [f"{self.next()!r}"])
        self.take("{")
        keys: list[str] = []
        while self.next() != "}":
            keys.append(self._key())
            if keys[-1] == key:
                return
            self.value()
            if self.take(",}") == "}":
                break
        raise self._without(key, keys)

    def leave(self, key: str) -> None:
        """Go behind the object in which the key's value was read."""
        while self.take(",}") == ",":
            if self._key() == key:
                raise self._refused(f"the key {key!r} once", "it twice")
            self.value()

    def end(self) -> None:
        if self.next():
            raise self._refused("the end of the document", repr(self.next()))

    def _key(self) -> str:
        if self.next() != '"':
            raise self._refused("a key", repr(self.next()))
        key, _ = self.value()
        self.take(":")
        return str(key)

    def _more(self, size: int) -> bool:
        """Read on, at least `size` characters if there are that many; False where there are none."""
        if self._is_all:
            return False
        self._lines = self.line - 1
        parts, got = [self._text[self._at :]], 0
        while got < size and not self._is_all:
            part = self._stream.read()
            self._is_all = not part
            parts.append(self._characters.decode(part, final=self._is_all))
            got += len(parts[-1])
        self._text, self._at, self._counted = "".join(parts), 0, 0
        return got > 0

    def _without(self, key: str, came: Sequence[str]) -> SchemaError:
        return SchemaError(
            f"{self._name}: expected an object with the key {key!r}, got {', '.join(came)[:200] or 'none'}",
            subject=self._name,
            hint="format.rows names the keys that lead to the array of rows",
        )

    def _refused(self, expected: str, came: str) -> DataError:
        return DataError(
            f"{self._name}: expected {expected} at line {self.line}, got {came}",
            subject=self._name,
            hint="where a document is damaged, nothing behind can be told to be a row; JSON Lines loses one line alone",
        )
