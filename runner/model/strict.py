"""The base of every model that crosses a boundary, and the one door through which JSON and YAML become models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, Never, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from runner.model.errors import RunnerError, SpecError

MAX_DOCUMENT_BYTES = 64 * 1024
"""A job spec above this is refused: SQS's limit is 1 MiB, and a spec is a request, not a carrier of data."""


class Strict(BaseModel):
    """Frozen, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)

    def to_json(self) -> str:
        """Canonical JSON: aliases, sorted keys, no spaces. Equal models give equal bytes."""
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
    text = raw.encode() if isinstance(raw, str) else raw
    if max_bytes is not None and len(text) > max_bytes:
        raise error(f"{what}: expected at most {max_bytes:,} bytes, got {len(text):,}")
    document = load_json(text, what=what, error=error)
    if not isinstance(document, dict):
        raise error(f"{what}: expected a JSON object, got {type(document).__name__}")
    try:
        return model.model_validate_json(text)
    except ValidationError as exc:
        raise error(f"{what}: {explain(exc)}", subject=_field(exc)) from exc


def parse_document(model: type[Model], document: object, *, what: str, error: type[RunnerError] = SpecError) -> Model:
    """Like `parse_json`, for a document that another parser (YAML) has read already."""
    try:
        return parse_json(model, json.dumps(document, allow_nan=False), what=what, error=error)
    except (TypeError, ValueError) as exc:
        raise error(f"{what}: expected plain JSON values, got {exc}") from exc


def load_json(raw: bytes | str, *, what: str, error: type[RunnerError] = SpecError) -> Any:
    """`json.loads` that refuses duplicate keys and numbers that are none; raises `error`."""
    try:
        return json.loads(raw, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
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
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice}: expected each key once, got it {keys.count(twice)} times")
    return document


def _no_constant(name: str) -> Never:
    raise ValueError(f"expected a finite number, got {name}")


def explain(exc: ValidationError) -> str:
    """The first fault as `field: expected …, got …`, and how many more there are."""
    faults = exc.errors(include_url=False)
    fault = faults[0]
    line = f"{_field(exc) or 'the document'}: {_expected(fault)}"
    return line if len(faults) == 1 else f"{line} (and {len(faults) - 1} more)"


def _field(exc: ValidationError) -> str | None:
    path = ""
    for part in exc.errors(include_url=False)[0]["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path or None


def _expected(fault: Any) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    came = _short(fault.get("input"))
    rules: dict[str, Callable[[], str]] = {
        "extra_forbidden": lambda: f"expected no such key, got {came}",
        "missing": lambda: "expected a value, got none",
        "value_error": lambda: str(context.get("error", fault["msg"])),
        "string_pattern_mismatch": lambda: f"expected {context.get('pattern')}, got {came}",
        "literal_error": lambda: f"expected {context.get('expected')}, got {came}",
        "union_tag_invalid": lambda: (
            f"{context.get('discriminator')}: expected one of {context.get('expected_tags')}, got {context.get('tag')!r}"
        ),
        "union_tag_not_found": lambda: f"{context.get('discriminator')}: expected a value, got none",
    }
    if kind in rules:
        return rules[kind]()
    message = str(fault["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    return f"expected {message}, got {came}"


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."
