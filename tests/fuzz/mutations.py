"""Hostile documents, made of good ones: a parser that refuses the first character shows nothing of what is behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import yaml

Form = Literal["json", "lines of json", "yaml", "bytes"]


@dataclass(frozen=True)
class _Raw:
    """Stands in a document as it is, whether that is well-formed or not."""

    text: str


class _Pairs(list[tuple[Any, Any]]):
    """An object whose keys may come twice."""


_NUMBERS: tuple[Any, ...] = (
    0, -1, 1.5, -0.0, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**400, 1e308, 5e-324,
    *map(_Raw, ("1e999", "-1e999", "NaN", "Infinity", ".inf", ".nan", "1E400", "00", "0x" + "f" * 5000, "9" * 5000)),
    *map(_Raw, ("1:59:59", "1" + ":59" * 300 + ":00.0", "0b1_0", "1_000", "0o17", "+1", "1.", ".5")),
)  # fmt: skip
_TEXTS = (
    "", " ", "\0", "a\0b", "\x1b[31mred\x1b[0m", "\x9b31m", "\x1b]0;title\x07", "\r\nforged line", "\u202egpj.exe",
    "\u2028", "\x7f", "\ufeff", "\ud800", "\udfff\ud800", "é", "é", "ß", "İ", "𝒳", "a" * 300, "a" * 5000,  # noqa: RUF001
    "..", "../..", "a/../../b", "/etc/passwd", "a//b", ".", "~", "-", "--upload-pack=touch x", "ext::sh -c id",
    "file:///etc/passwd", "user:password@host", "https://user@host/x", "https://[::1", "https://h:99999999/", "//h/x",
    "9999-99-99", "2013-06-01T00:00:00", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59",
    "{{ env_var('HOME') }}", "${x}", "$${", "${${x}}", "${" + "a" * 200 + "}", "';--", '"', "\\", "a.b.c",
    "_snapshots/x", "runs/x", "tables/x", "(a+)+$", "(?=x)", "[[:alpha:]]", "SELECT count(*) FROM {object} WHERE true",
    "1; DROP TABLE x", "None", "null", "true",
)  # fmt: skip
_SYNTAX = tuple(
    map(
        _Raw,
        (
            "[" * 200 + "]" * 200, "[" * 3000, '{"a":' * 200 + "1" + "}" * 200, '{"a":' * 3000, "*a", "&a [*a]",
            "&a {b: &b [*a, *a, *a, *a]}", "!!python/object/apply:os.system [id]", "!!python/name:os.system", "!!int x",
            "!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "!!binary x", "!!set {a}", "!!omap [a: 1]", "!x y",
            "<<: {a: 1}", "? [a]", '"\\UFFFFFFFF"', '"\\ud800"', '"\\x00"', "|\n a\n", "'", '"', "}", "]", ":", "- a",
            "%YAML 1.9", "2013-06-01", "9999-99-99", "0000-00-00", "~", "yes", "=", "<<", "", "\t", "#",
        ),
    )
)  # fmt: skip
_KEYS = (
    "",
    "a" * 5000,
    "\x1b[31m",
    "\0",
    "\ud800",
    "__proto__",
    "as_",
    "from_",
    "schema_",
    "extra",
    "<<",
    "=",
    "1",
    "~",
)


def mutated(document: bytes, form: Form, random: Random) -> bytes:
    """`document` with a few things about it changed, in its tree if it has one. The same for the same `random`."""
    if form == "lines of json":
        lines = document.split(b"\n")
        index = random.randrange(len(lines))
        lines[index] = mutated(lines[index], "json", random).replace(b"\n", b"")
        return b"\n".join(lines)
    tree = _tree(document, form)
    if tree is None or random.random() < 0.1:
        return _scratched(document, random)
    for _ in range(1 + int(random.expovariate(0.7))):
        tree = _changed(tree, random)
    text = _written(tree, block=form == "yaml" and random.random() < 0.5)
    raw = text.encode("utf-8", "surrogatepass")
    if form == "yaml" and random.random() < 0.05:
        raw = text.encode(random.choice(("utf-16", "utf-16-be", "utf-32")), "surrogatepass")
    return _scratched(raw, random) if random.random() < 0.05 else raw


def _tree(document: bytes, form: Form) -> Any:
    if form == "bytes" or (b"&" in document and b"*" in document):
        return None  # aliases may stand for gigabytes
    try:
        if form == "yaml":
            return _paired(yaml.safe_load(document))
        return json.loads(document, object_pairs_hook=_Pairs)
    except Exception:  # noqa: BLE001 - whatever a parser that is not ours says of it: then it is bytes
        return None


_MOST_BITS = 14_000
"""Of a number that Python writes in decimals: it stops at 4,300 digits."""


def _paired(node: Any) -> Any:
    if isinstance(node, dict):
        return _Pairs((key, _paired(value)) for key, value in node.items())
    if isinstance(node, int) and node.bit_length() > _MOST_BITS:
        return _Raw(hex(node))
    return [_paired(each) for each in node] if isinstance(node, list) else node


# ---------------------------------------------------------------- changing


def _changed(tree: Any, random: Random) -> Any:
    """One change, at a place anywhere in it."""
    path = _somewhere(tree, random)
    changes: Sequence[Callable[[Any], Any]] = (
        lambda node: _odd(random),
        lambda node: _odd(random),
        lambda node: _odd_of_its_kind(node, random),
        lambda node: _odd_of_its_kind(node, random),
        lambda node: _at(tree, _somewhere(tree, random)),
        lambda node: [node],
        lambda node: _Pairs([(random.choice(_KEYS), node)]),
        lambda node: _unwrapped(node, random),
        lambda node: _without_one(node, random),
        lambda node: _with_one_twice(node, random),
        lambda node: _with_another_key(node, random),
        lambda node: _many(node, random),
        lambda node: str(node)[:100],
    )
    return _replaced(tree, path, random.choice(changes))


def _somewhere(tree: Any, random: Random) -> tuple[int, ...]:
    path: list[int] = []
    node = tree
    while isinstance(node, list) and node and random.random() < 0.85:
        path.append(random.randrange(len(node)))
        node = _child(node, path[-1])
    return tuple(path)


def _child(node: list[Any], index: int) -> Any:
    return node[index][1] if isinstance(node, _Pairs) else node[index]


def _at(tree: Any, path: tuple[int, ...]) -> Any:
    for index in path:
        tree = _child(tree, index)
    return tree


def _replaced(node: Any, path: tuple[int, ...], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(node)
    copy = type(node)(node)
    index = path[0]
    new = _replaced(_child(node, index), path[1:], change)
    copy[index] = (node[index][0], new) if isinstance(node, _Pairs) else new
    return copy


def _odd(random: Random) -> Any:
    return random.choice(random.choice((_NUMBERS, _TEXTS, _SYNTAX, (None, True, False, [], _Pairs()))))


def _odd_of_its_kind(node: Any, random: Random) -> Any:
    match node:
        case str():
            return random.choice(
                (random.choice(_TEXTS), node + random.choice(_TEXTS), node[: len(node) // 2], node * 50)
            )
        case bool() | None:
            return random.choice((True, False, None))
        case int() | float():
            return random.choice(_NUMBERS)
    return _odd(random)


def _unwrapped(node: Any, random: Random) -> Any:
    return _child(node, random.randrange(len(node))) if isinstance(node, list) and node else _odd(random)


def _without_one(node: Any, random: Random) -> Any:
    if not isinstance(node, list) or not node:
        return None
    index = random.randrange(len(node))
    return type(node)(node[:index] + node[index + 1 :])


def _with_one_twice(node: Any, random: Random) -> Any:
    if not isinstance(node, list) or not node:
        return [node, node]
    return type(node)([*node, random.choice(node)])


def _with_another_key(node: Any, random: Random) -> Any:
    if not isinstance(node, _Pairs) or not node:
        return node
    index = random.randrange(len(node))
    key, value = node[index]
    if random.random() < 0.5:
        return _Pairs([*node, (random.choice(_KEYS), value)])
    copy = _Pairs(node)
    copy[index] = (random.choice((*_KEYS, key.upper() if isinstance(key, str) else key, 1, None)), value)
    return copy


def _many(node: Any, random: Random) -> Any:
    if isinstance(node, list) and not isinstance(node, _Pairs):
        return node * random.choice((2, 20, 200)) if len(node) < 20 else node
    return [node] * random.choice((2, 20, 200))


def _scratched(document: bytes, random: Random) -> bytes:
    """Bytes cut, doubled, turned, or with a piece of hostile syntax in them."""
    raw = bytearray(document)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(raw) + 1)
        end = min(len(raw), at + random.choice((1, 2, 16, 256)))
        match random.randrange(6):
            case 0:
                del raw[at:end]
            case 1:
                raw[at:at] = raw[at:end] * random.choice((1, 2, 50))
            case 2:
                raw[at:end] = random.randbytes(end - at)
            case 3:
                raw[at:at] = random.choice(_SYNTAX).text.encode()
            case 4:
                raw[at:at] = random.choice(_TEXTS).encode("utf-8", "surrogatepass")
            case _ if at < len(raw):
                raw[at] ^= 1 << random.randrange(8)
    return bytes(raw)


# ---------------------------------------------------------------- writing


def _written(node: Any, *, block: bool = False, indent: str = "") -> str:
    """As JSON, or YAML in block style with JSON's scalars; what is raw stands in it as it is."""
    match node:
        case _Raw():
            return node.text
        case _Pairs() if block and node:
            lines = (f"{indent}{_key(key)}: {_written(each, block=True, indent=indent + '  ')}" for key, each in node)
            return "\n" + "\n".join(lines)
        case _Pairs():
            return "{" + ", ".join(f"{_key(key)}: {_written(each)}" for key, each in node) + "}"
        case list() if block and node:
            return "\n" + "\n".join(f"{indent}- {_written(each, block=True, indent=indent + '  ')}" for each in node)
        case list():
            return "[" + ", ".join(map(_written, node)) + "]"
        case str() | int() | float() | None:
            return json.dumps(node, ensure_ascii=False)
    return json.dumps(str(node))


def _key(key: Any) -> str:
    return json.dumps(key if isinstance(key, str) else str(key), ensure_ascii=False) if key is not None else "null"
