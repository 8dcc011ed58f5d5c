"""Text from outside, as people may be shown it: whoever wrote it chose its length and what it does to a terminal."""

from __future__ import annotations

import json
import re

MAX_TOLD_CHARS = 1000
"""Of a message, with all that it quotes."""

_HEAD = 700
_TAIL = MAX_TOLD_CHARS - _HEAD - len(" … ")

_PERHAPS_UNPRINTABLE = re.compile(r"[^\n\x20-\x7e]")


def printable(text: str) -> str:
    """`text` without control characters: names and messages come from repositories that nobody here wrote."""
    return _PERHAPS_UNPRINTABLE.sub(lambda found: _escaped(found[0]), text)


def _escaped(char: str) -> str:
    return char if char.isprintable() else repr(char)[1:-1]


def told(text: str) -> str:
    """`text` as a message may be: printable, and of one that is longer than `MAX_TOLD_CHARS` its two ends."""
    short = text if len(text) <= MAX_TOLD_CHARS else f"{text[:_HEAD]} … {text[-_TAIL:]}"
    text = printable(short)
    return text if len(text) <= MAX_TOLD_CHARS else f"{text[:_HEAD]} … {text[-_TAIL:]}"


def printable_json(document: str) -> str:
    """A JSON text with all escaped that is no plain character: JSON itself asks that of the first 32 alone."""
    return _PERHAPS_UNPRINTABLE.sub(lambda found: _escaped_in_json(found[0]), document)


def _escaped_in_json(char: str) -> str:
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else json.dumps(char)[1:-1]
