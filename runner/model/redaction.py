"""Taking secrets out of what leaves a job: by their exact text, and by the encodings that text is commonly put into.

It is there for what happens by itself: SQL that is logged, an error that quotes it. Logic that means to give a secret
away has more encodings to choose from than can be listed.
"""

from __future__ import annotations

import html
import json
import re
import string
from base64 import b64encode, encodebytes, urlsafe_b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel

from runner.model.text import printable

SHORTEST_SECRET = 8
"""In characters. What is shorter stands in many a text by chance, and taking it out would leave none of them whole."""

LONGEST_SECRET = 16 * 1024
"""In characters; the longer it is, and the more lines it has, the longer takes each line of a log."""

_CONTEXT_BYTES = 64
"""How far beside an encoded secret may lie what is taken out with it."""
_SHORTEST_PIECE = 4
"""Bytes of a secret that somebody's ellipsis has cut, above which it is known as one."""
_SHORTEST_CORE = 4
_ELLIPSES = (re.compile(rb"\.\.\.+"), re.compile("…".encode()))
_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_")
_PLAIN_RUN = re.compile(rb"[A-Za-z0-9]+")
"""What no encoding of text changes."""
_FRAME_LINE = re.compile(r"-----(BEGIN|END) [A-Z0-9 ]+-----")
_MOST_CHECKS = 10_000_000
"""Seconds. A text that takes more is made of pieces of secrets, by somebody who would have the worker stand still."""
_HEX_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}|\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})")

Model = TypeVar("Model", bound=BaseModel)


class Redaction:
    """Puts `[secret NAME]` where a secret stands, as it is or encoded. `secrets` are texts by their names."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self.secrets = dict(secrets)
        found = {form for name, value in self.secrets.items() if value for form in _forms(name, value)}
        # The longest first, also in each group: of two secrets that begin alike the one that is there gives its name.
        self._forms = sorted(found, key=lambda form: (-len(form.text), form.text, form.name))
        self._longest = max((len(form.text) for form in found), default=0)
        self._by_core = _grouped(self._forms, lambda form: form.core)
        in_words = [form for form in self._forms if form.encoding == "text"]
        self._by_head = _grouped(in_words, lambda form: form.text[:_SHORTEST_PIECE])
        self._by_tail = _grouped(in_words, lambda form: form.text[-_SHORTEST_PIECE:])

    def text(self, text: str) -> str:
        """`text` without the secrets."""
        # What was cut out of bytes that are no UTF-8 (half a surrogate pair) comes out as it went in.
        return self.data(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def data(self, data: bytes) -> bytes:
        """UTF-8 or ASCII without the secrets; of anything else what is written as in these."""
        spans = self._spans(data)
        return _replaced(data, spans) if spans else data

    def model(self, model: Model, *, public: Collection[str] = ()) -> Model:
        """`model` without the secrets in its texts and keys; a text that is one of `public` stays as it is."""

        def redacted(node: Any) -> Any:
            match node:
                case str():
                    return node if node in public else self.text(node)
                case dict():
                    return {redacted(key): redacted(value) for key, value in node.items()}
                case list():
                    return [redacted(each) for each in node]
            return node

        if not self._forms:
            return model
        document = model.model_dump(mode="json", by_alias=True)
        changed = redacted(document)
        return model if changed == document else type(model).model_validate_json(json.dumps(changed))

    def chunks(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same as `data` makes of all of them together, with little more than one of them held at a time."""
        held = b""
        for chunk in chunks:
            held += chunk
            spans = self._spans(held)
            # A secret that begins before here is all there. And not between backslashes: their number has a meaning.
            safe = max(0, len(held) - self._longest - _CONTEXT_BYTES)
            safe -= _backslashes_before(held, safe)
            if safe and spans and spans[0].end - spans[0].start == len(held):
                safe = len(held)  # out of patience, or else it would all be held
            safe = next((span.start for span in spans if span.start < safe < span.end), safe)
            yield _replaced(held[:safe], [span for span in spans if span.end <= safe])
            held = held[safe:]
        yield self.data(held)

    def _spans(self, data: bytes) -> list[_Span]:
        """Where secrets stand, in order, none within another."""
        patience = _Patience()
        try:
            found = [*self._standing(data, patience), *self._cut(data, patience)]
        except _OutOfPatience:
            return [_Span(0, len(data), self._forms[0].name)]
        found.sort(key=lambda span: (span.start, -span.end, span.name))
        merged: list[_Span] = []
        for span in found:
            if merged and span.start < merged[-1].end:
                last = merged.pop()
                span = _Span(last.start, max(last.end, span.end), last.name)
            merged.append(span)
        return merged

    def _standing(self, data: bytes, patience: _Patience) -> Iterator[_Span]:
        for core, forms in self._by_core.items():
            for at in _places(data, core):
                patience.spend(len(forms))
                for form in forms:
                    start = at - form.before_core
                    if start >= 0 and data.startswith(form.text, start):
                        yield _with_what_belongs_to_it(data, start, start + len(form.text), form)

    def _cut(self, data: bytes, patience: _Patience) -> Iterator[_Span]:
        """Beginnings of secrets before an ellipsis, and ends after one: DuckDB and others show lines so."""
        for start, end in (found.span() for ellipsis in _ELLIPSES for found in ellipsis.finditer(data)):
            patience.spend(len(self._by_head) + len(self._by_tail))
            last = start - (data[start - 1 : start] == b" ")
            first = end + (data[end : end + 1] == b" ")
            for head, forms in self._by_head.items():
                for at in _places(data, head, max(0, last - len(forms[0].text)), last):
                    patience.spend(len(forms))
                    piece = data[at:last]
                    yield from (_Span(at, end, form.name) for form in forms if form.text.startswith(piece))
            for tail, forms in self._by_tail.items():
                for at in _places(data, tail, first, first + len(forms[0].text)):
                    patience.spend(len(forms))
                    piece = data[first : at + len(tail)]
                    yield from (_Span(start, at + len(tail), form.name) for form in forms if form.text.endswith(piece))


# ---------------------------------------------------------------- where secrets stand


@dataclass(frozen=True)
class _Span:
    start: int
    end: int
    name: str


@dataclass(frozen=True)
class _Form:
    """A secret as it may stand in a text."""

    name: str
    text: bytes
    encoding: Literal["text", "base64", "hex"]
    core: bytes
    """A part of it that is searched for: many forms have the same."""
    before_core: int


def _grouped(forms: Iterable[_Form], key: Callable[[_Form], bytes]) -> dict[bytes, list[_Form]]:
    groups: dict[bytes, list[_Form]] = {}
    for form in forms:
        groups.setdefault(key(form), []).append(form)
    return groups


def _places(data: bytes, wanted: bytes, start: int = 0, end: int | None = None) -> Iterator[int]:
    at = data.find(wanted, start, end)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1, end)


class _OutOfPatience(Exception):
    pass


class _Patience:
    """How many more times it may be looked whether a secret stands at a place of one text."""

    def __init__(self) -> None:
        self._left = _MOST_CHECKS

    def spend(self, checks: int) -> None:
        self._left -= checks
        if self._left < 0:
            raise _OutOfPatience


def _with_what_belongs_to_it(data: bytes, start: int, end: int, form: _Form) -> _Span:
    if form.encoding == "base64":  # the digits beside it may hold some of its bits
        start -= start > 0 and data[start - 1] in _BASE64
        end += end < len(data) and data[end] in _BASE64
    # A backslash that escaped the first character would escape the bracket, which JSON does not know.
    return _Span(start - _backslashes_before(data, start) % 2, end, form.name)


def _backslashes_before(data: bytes, at: int) -> int:
    """How many, as far as that matters."""
    before = data[max(0, at - _CONTEXT_BYTES) : at]
    return len(before) - len(before.rstrip(b"\\"))


def _replaced(data: bytes, spans: Iterable[_Span]) -> bytes:
    parts, done = [], 0
    for span in spans:
        parts += [data[done : span.start], f"[secret {span.name}]".encode()]
        done = span.end
    return b"".join([*parts, data[done:]])


# ---------------------------------------------------------------- how secrets are written


def _forms(name: str, value: str) -> Iterator[_Form]:
    """The value as it is, and all that is commonly made of it, twice over: SQL in JSON, base64 in a URL."""
    wholes = {value, value.strip(), *_texts_within(value)} - {""}
    for part in wholes | _lines(value):
        core = max(_PLAIN_RUN.findall(_bytes(part)), key=len, default=b"")
        written = {part} | _written(part)
        # Of lines there may be hundreds.
        again = _written if part in wholes else _written_as_json
        for text in written.union(*map(again, written)):
            if len(text) >= min(len(part), SHORTEST_SECRET):
                yield _form(name, text, "text", core)
    for part in wholes:
        for text in {part, _json(part), _json_ascii(part)}:
            for digits, encoding in _encoded(_bytes(text)):
                for each in {digits} | _written(digits):
                    if len(each) >= SHORTEST_SECRET:
                        yield _form(name, each, encoding)


def _form(name: str, written: str, encoding: Literal["text", "base64", "hex"], core: bytes = b"") -> _Form:
    text = _bytes(written)
    if len(core) < _SHORTEST_CORE or core not in text:
        core = max(_PLAIN_RUN.findall(text), key=len, default=b"")
    core = core if len(core) >= _SHORTEST_CORE else text  # a short one would be met everywhere
    return _Form(name, text, encoding, core, text.find(core))


def _lines(value: str) -> set[str]:
    """The long ones, as of a key in PEM; its frame is no secret."""
    lines = (line for line in map(str.strip, value.splitlines()) if not _FRAME_LINE.fullmatch(line))
    return {line for line in lines if len(line) >= SHORTEST_SECRET}


def _texts_within(value: str) -> set[str]:
    """The long ones in JSON, as secrets of databases are: who uses such a one takes it apart."""
    with suppress(ValueError, RecursionError):
        return {text for text in _texts(json.loads(value)) if len(text) >= SHORTEST_SECRET}
    return set()


def _texts(document: Any) -> Iterator[str]:
    match document:
        case str():
            yield document
        case dict():
            for value in document.values():
                yield from _texts(value)
        case list():
            for value in document:
                yield from _texts(value)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _encoded(raw: bytes) -> Iterator[tuple[str, Literal["base64", "hex"]]]:
    """In base64 and hex.

    Base64 of a longer text shows a part of it in one of three ways, as it begins at the first, second or third byte of
    a group of three; the digits that depend on what stands before and after it are left off.
    """
    for before in range(3):
        least, most = (0, 2, 3)[before], (before + len(raw)) * 8 // 6
        for encode in (b64encode, urlsafe_b64encode):
            yield encode(b"\0" * before + raw).decode()[least:most], "base64"
    yield encodebytes(raw).decode().rstrip("=\n"), "base64"
    wrapped = b64encode(raw).decode().rstrip("=")
    yield "\n".join(wrapped[at : at + 64] for at in range(0, len(wrapped), 64)), "base64"
    yield raw.hex(), "hex"
    yield raw.hex().upper(), "hex"


def _written(text: str) -> set[str]:
    return {write(text) for write in _WRITINGS}


def _written_as_json(text: str) -> set[str]:
    return {_json(text), _json_ascii(text)}


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _json_ascii(text: str) -> str:
    return json.dumps(text)[1:-1]


def _json_in_html(text: str) -> str:
    return re.sub("[<>&'\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", _json(text))


def _upper(text: str) -> str:
    return _HEX_ESCAPE.sub(lambda escape: escape[0][:2] + escape[0][2:].upper(), text)


def _lower(text: str) -> str:
    return _HEX_ESCAPE.sub(lambda escape: escape[0].lower() if escape[0][0] == "%" else escape[0], text)


def _url(text: str, safe: str) -> str:
    kept = f"{string.ascii_letters}{string.digits}_.-~{safe}"
    return "".join(char if (char := chr(byte)) in kept else f"%{byte:02X}" for byte in _bytes(text))


def _form_field(text: str) -> str:
    return _url(text, " ").replace(" ", "+")


def _yaml(text: str, *, allow_unicode: bool) -> str:
    """Within double quotes; within single ones it is as in SQL."""
    if text.isascii() and text.isprintable():
        return _json(text)  # the same, and PyYAML takes long
    dumped: str = yaml.safe_dump(text, default_style='"', width=10**9, allow_unicode=allow_unicode)
    return dumped.strip()[1:-1]


def _xml(text: str, double: str, single: str) -> str:
    return html.escape(text, quote=False).replace('"', double).replace("'", single)


def _ascii_xml(text: str) -> str:
    return html.escape(text).encode("ascii", "xmlcharrefreplace").decode()


_WRITINGS: tuple[Callable[[str], str], ...] = (
    _json,
    _json_ascii,
    _json_in_html,
    lambda text: _upper(_json_ascii(text)),
    lambda text: _json(text).replace("/", "\\/"),
    lambda text: _json_ascii(text).replace("/", "\\/"),
    # SQL and YAML; CSV and quoted identifiers.
    lambda text: text.replace("'", "''"),
    lambda text: text.replace('"', '""'),
    # A literal of Python's has its quotes by what else is in it: the other kind makes it choose.
    lambda text: repr(text)[1:-1],
    lambda text: repr('"' + text)[2:-1],
    lambda text: ascii(text)[1:-1],
    lambda text: ascii('"' + text)[2:-1],
    lambda text: repr(_bytes(text))[2:-1],
    lambda text: repr(b'"' + _bytes(text))[3:-1],
    lambda text: _upper(repr(_bytes(text))[2:-1]),
    printable,
    # RFC 3986, with and without its slashes; encodeURIComponent, encodeURI; forms.
    lambda text: _url(text, ""),
    lambda text: _url(text, "/"),
    lambda text: _url(text, "!'()*"),
    lambda text: _url(text, ";/?:@&=+$,#!'()*"),
    _form_field,
    lambda text: _lower(_url(text, "")),
    lambda text: _lower(_url(text, "/")),
    lambda text: _lower(_url(text, "!'()*")),
    lambda text: _lower(_form_field(text)),
    # HTML by Python, by Jinja, and XML.
    lambda text: _xml(text, '"', "'"),
    lambda text: _xml(text, "&quot;", "&#x27;"),
    lambda text: _xml(text, "&quot;", "&#39;"),
    lambda text: _xml(text, "&#34;", "&#39;"),
    lambda text: _xml(text, "&quot;", "&apos;"),
    _ascii_xml,
    lambda text: _yaml(text, allow_unicode=True),
    lambda text: _yaml(text, allow_unicode=False),
    # A shell's quotes: single ones by Python and by hand, double ones, none.
    lambda text: text.replace("'", "'\"'\"'"),
    lambda text: text.replace("'", "'\\''"),
    lambda text: re.sub(r'([\\"$`])', r"\\\1", text),
    lambda text: re.sub(r"([^A-Za-z0-9_@%+=:,./-])", r"\\\1", text),
    lambda text: " ".join(text.split()),
)
