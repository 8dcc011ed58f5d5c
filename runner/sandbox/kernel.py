"""How the kernel is called where Python has no function for it: libc by ctypes, refusals as `OSError`. Linux only."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: Any) -> int:
    """A function of libc that answers -1 and sets errno where it fails; then raises that as `OSError`.

    Every argument is passed as ctypes passes it: a number for more than 32 bits has to be a ctypes type.
    """
    answer = int(getattr(_libc, function)(*arguments))
    if answer == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")
    return answer


def prctl(option: int, value: int = 0) -> int:
    """prctl(2) with one value; those after it, where the kernel looks at them, must be 0."""
    zero = ctypes.c_ulong(0)
    return call("prctl", option, ctypes.c_ulong(value), zero, zero, zero)


def syscall(number: int, *arguments: int | ctypes.Array[Any] | ctypes.Structure | None) -> int:
    """A call by its number. Numbers go as 64 bits; buffers and structures by their address."""
    return call("syscall", ctypes.c_long(number), *map(_word, arguments))


def _word(argument: int | ctypes.Array[Any] | ctypes.Structure | None) -> Any:
    if argument is None or isinstance(argument, int):
        return ctypes.c_long(argument or 0)
    return ctypes.byref(argument)
