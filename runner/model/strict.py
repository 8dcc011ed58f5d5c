"""The base of every model that crosses a boundary, and the one door through which JSON and YAML become models."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Never, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from runner.model.errors import RunnerError, SpecError

MAX_DOCUMENT_BYTES = 64 * 1024
"""A job spec above this is refused: SQS's limit is 1 MiB, and a spec is a request, not a carrier of data."""


class Strict(BaseModel):
    """Frozen, no unknown keys, no silent conversion of types, no number that JSON cannot write."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True, allow_inf_nan=False)

    def to_json(self) -> str:
        """Canonical JSON: aliases, sorted keys, defaults written out, no spaces. Parsed again, it gives these bytes."""
        return json.dumps(
            self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, as 64 hex digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


Model = TypeVar("Model", bound=Strict)


def parse_json(
    model: type[Model],
    raw: bytes | str,
    *,
    what: str,
    max_bytes: int | None = None,
    error: type[RunnerError] = SpecError,
) -> Model:
    """Parse `raw` as `model`, or raise `error` naming the field of `what`, what was expected and what came.

    Duplicate keys, NaN and Infinity are refused: JSON parsers disagree on what they mean.
    """
    try:
        text = raw.encode() if isinstance(raw, str) else raw
    except UnicodeEncodeError as exc:
        raise error(f"{what}: expected Unicode text, got half a surrogate pair at {exc.start}") from exc
    if max_bytes is not None and len(text) > max_bytes:
        raise error(f"{what}: expected at most {max_bytes:,} bytes, got {len(text):,}")
    document = load_json(text, what=what, error=error)
    if not isinstance(document, dict):
        raise error(f"{what}: expected a JSON object, got {type(document).__name__}")
    try:
        # by_name is for Python's own callers; a document has one spelling, `as`, and `as_` is an unknown key.
        return model.model_validate_json(text, by_alias=True, by_name=False)
    except ValidationError as exc:
        field = _field(exc.errors(include_url=False)[0], document)
        raise error(f"{what}: {explain(exc, document)}", subject=field) from exc


def parse_document(model: type[Model], document: object, *, what: str, error: type[RunnerError] = SpecError) -> Model:
    """Like `parse_json`, for a document that another parser (YAML) has read already."""
    try:
        return parse_json(model, json.dumps(document, allow_nan=False), what=what, error=error)
    except (TypeError, ValueError) as exc:
        raise error(f"{what}: expected plain JSON values, got {exc}") from exc


def load_json(raw: bytes | str, *, what: str, error: type[RunnerError] = SpecError) -> Any:
    """`json.loads` for UTF-8 that refuses duplicate keys and numbers that are none; raises `error`."""
    try:
        text = raw if isinstance(raw, str) else raw.decode()  # json.loads would take UTF-16, pydantic does not
        return json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except RecursionError as exc:
        raise error(f"{what}: expected JSON, got one nested too deeply") from exc
    except UnicodeDecodeError as exc:
        raise error(f"{what}: expected UTF-8, got byte {exc.object[exc.start]:#04x} at {exc.start}") from exc
    except json.JSONDecodeError as exc:
        raise error(f"{what}: expected JSON, got {exc.msg.lower()} at line {exc.lineno} column {exc.colno}") from exc
    except ValueError as exc:
        raise error(f"{what}: {exc}") from exc


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        ((twice, times),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{shown(twice)}: expected each key once, got it {times} times")
    return document


def _no_constant(name: str) -> Never:
    raise ValueError(f"expected a finite number, got {name}")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # 1e999 is well-formed, and what it became could not be written as JSON again
        raise ValueError(f"expected a finite number, got {_cut(text)}")
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as exc:  # sys.get_int_max_str_digits(): Python refuses numbers whose reading takes too long
        raise ValueError(f"expected a whole number of at most 4,300 digits, got {len(text):,}") from exc


def explain(exc: ValidationError, document: object = None) -> str:
    """The first fault as `field: expected …, got …`, and how many more fields have one; a line, however long the input.

    With the `document` that was parsed, the field is a path in it, without the marks that pydantic adds for unions.
    """
    faults = exc.errors(include_url=False)
    fault = faults[0]
    field, expected = _field(fault, document), _expected(fault)
    # A rule over several fields names them itself.
    line = expected if field is None and fault["type"] == "value_error" else f"{field or 'the document'}: {expected}"
    # A union reports a field once for each member, and a list that loses a bad item may be reported as too short.
    others = {_field(each, document) for each in faults if each["loc"] != fault["loc"][: len(each["loc"])]} - {field}
    return f"{line} (and {len(others)} more)" if others else line


def _field(fault: Any, document: object) -> str | None:
    path, node, parts = "", document, list(fault["loc"])
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        parts.append(fault["ctx"]["discriminator"].strip("'"))
    for index, part in enumerate(parts):
        there = part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int)
        last = index == len(parts) - 1 and fault["type"] in ("missing", "union_tag_invalid", "union_tag_not_found")
        if document is not None and not there and not last:
            continue
        node = node[part] if isinstance(node, dict | list) and there else None
        path += f"[{part}]" if isinstance(part, int) else f".{shown(part)}" if path else shown(part)
    return path or None


def _expected(fault: Any) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    came = _short(fault.get("input"))
    rules: dict[str, Callable[[], str]] = {
        "extra_forbidden": lambda: f"expected no such key, got {came}",
        "missing": lambda: "expected a value, got none",
        "json_invalid": lambda: f"expected JSON, got {context.get('error')}",
        "value_error": lambda: _cut(str(context.get("error", fault["msg"])), 300),
        "string_pattern_mismatch": lambda: f"expected {context.get('pattern')}, got {came}",
        "literal_error": lambda: f"expected {context.get('expected')}, got {came}",
        "union_tag_invalid": lambda: (
            f"expected one of {context.get('expected_tags')}, got {_short(context.get('tag'))}"
        ),
        "union_tag_not_found": lambda: "expected a value, got none",
    }
    if kind in rules:
        return rules[kind]()
    message = re.sub(r"^\w+ should (be |have |match )?", "", str(fault["msg"]))
    return f"expected {message}, got {came}"


def _short(value: object) -> str:
    return _cut(repr(value) if isinstance(value, str | int | float | bool) else type(value).__name__)


def shown(key: str) -> str:
    """A key or name as a message may hold it: on one line, and short. People who mean harm write keys, too."""
    return _cut(key if key.isprintable() else repr(key))


def _cut(text: str, longest: int = 80) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."
