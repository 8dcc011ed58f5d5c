"""A port with a tap on it: every call can be seen, and disturbed, before and after its effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

_ANSWERED_AT_HOME = frozenset({"uri", "head", "landed", "history", "close", "stop"})
"""Calls that reach no service: a loaded dataset has what they ask for."""


class Tap(Protocol):
    def call(self, name: str, effect: Callable[[], Any]) -> Any: ...


class Tapped:
    """A port whose every call goes through the tap. What `load` returns is tapped too: its `commit` is a call."""

    def __init__(self, tap: Tap, name: str, port: object) -> None:
        self._tap = tap
        self._name = name
        self._port = port

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._port, attribute)
        if not callable(found) or attribute in _ANSWERED_AT_HOME:
            return found

        def call(*given: Any, **named: Any) -> Any:
            result = self._tap.call(f"{self._name}.{attribute}", lambda: found(*given, **named))
            return Tapped(self._tap, self._name, result) if attribute == "load" else result

        return call
