"""Patterns and formats that a contract states in other languages, as RE2's: exactly, or refused by what RE2 lacks."""

from __future__ import annotations

import re
from itertools import groupby

from runner.engines.contracts.exact_types import TimeForm
from runner.engines.types import literal


class UnknownPatternError(Exception):
    """The text says what was expected and what came."""


# --- regular expressions -----------------------------------------------------------------------------------------

# ECMA-262's classes, where RE2's of that name are smaller: https://262.ecma-international.org/5.1/#sec-15.10.2
_SPACE = r"\t\n\v\f\r \x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}\x{FEFF}"
_LINE_ENDS = r"\n\r\x{2028}\x{2029}"
_ALIKE = frozenset("dDwWtnrfv") | frozenset(r"^$\.*+?()[]{}|/-!\"#%&',:;<=>@_`~")
_ESCAPE = re.compile(r"x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|c[A-Za-z]|.", re.DOTALL)
_GROUPS = {
    "(?=": "a lookahead",
    "(?!": "a lookahead",
    "(?<=": "a lookbehind",
    "(?<!": "a lookbehind",
}


def re2_of(ecma: str) -> str:
    """An ECMA-262 regular expression as RE2's. Raises `UnknownPatternError` naming what RE2 has not.

    Characters are code points. What RE2 alone would read in another way (`\\A`, `[[:alpha:]]`, `(?i)`) is refused, or
    written so that it keeps ECMA's meaning.
    """
    parts: list[str] = []
    at, in_class = 0, False
    while at < len(ecma):
        each = ecma[at]
        if each == "\\":
            escape = _ESCAPE.match(ecma, at + 1)
            if escape is None:
                raise UnknownPatternError("expected a character after the last \\, got none")
            parts.append(_escape(escape[0], in_class=in_class))
            at = escape.end()
            continue
        if in_class:
            # [:alpha:] is a class only to RE2.
            parts.append("\\[" if each == "[" else each)
            in_class = each != "]"
        elif each == "[":
            if ecma.startswith(("[]", "[^]"), at):
                raise UnknownPatternError("expected a class of characters, got an empty one")
            in_class = True
            negated = ecma.startswith("[^", at)
            parts.append("[^" if negated else "[")
            at += 1 if negated else 0
        elif each == ".":
            parts.append(f"[^{_LINE_ENDS}]")
        elif ecma.startswith("(?", at) and not ecma.startswith("(?:", at):
            named = re.compile(r"\(\?<([A-Za-z][A-Za-z0-9_]*)>").match(ecma, at)
            if named is None:
                opening = next((group for group in _GROUPS if ecma.startswith(group, at)), None)
                raise UnknownPatternError(
                    f"expected what RE2 has, got {_GROUPS[opening] if opening else ecma[at : at + 3]}"
                )
            parts.append(f"(?P<{named[1]}>")
            at = named.end()
            continue
        else:
            parts.append(each)
        at += 1
    return "".join(parts)


def _escape(escape: str, *, in_class: bool) -> str:
    if escape == "s":
        return _SPACE if in_class else f"[{_SPACE}]"
    if escape == "S" and not in_class:
        return f"[^{_SPACE}]"
    if escape == "b" and in_class:
        return r"\x{8}"
    if escape in ("b", "B") and not in_class:
        return f"\\{escape}"
    if escape == "0":
        return r"\x{0}"
    if escape.startswith(("x", "u")) and len(escape) > 1:
        return f"\\x{{{escape[1:]}}}"
    if escape.startswith("c") and len(escape) == 2:
        return f"\\x{{{ord(escape[1].upper()) - 64:X}}}"
    if escape in _ALIKE:
        return f"\\{escape}"
    if escape.isdigit() or escape == "k":
        raise UnknownPatternError(f"expected what RE2 has, got a reference back (\\{escape})")
    raise UnknownPatternError(f"expected an escape that ECMA-262 and RE2 have, got \\{escape}")


# --- formats of texts --------------------------------------------------------------------------------------------

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_H16 = r"[0-9A-Fa-f]{1,4}"
_LS32 = rf"(?:{_H16}:{_H16}|{_IPV4})"


def _ipv6() -> str:
    """RFC 3986's IPv6address, alternative by alternative: https://www.rfc-editor.org/rfc/rfc3986#section-3.2.2"""
    whole = [rf"(?:{_H16}:){{6}}{_LS32}"]
    for left in range(6):
        # `left` groups at most before the "::", and as many as there is room for after it.
        before = rf"(?:(?:{_H16}:){{0,{left - 1}}}{_H16})?" if left else ""
        after = 5 - left
        whole.append(rf"{before}::" + (rf"(?:{_H16}:){{{after}}}" if after else "") + _LS32)
    whole.append(rf"(?:(?:{_H16}:){{0,5}}{_H16})?::{_H16}")
    whole.append(rf"(?:(?:{_H16}:){{0,6}}{_H16})?::")
    return "(?:" + "|".join(whole) + ")"


_UNRESERVED = r"A-Za-z0-9._~\-"
_SUB = r"!$&'()*+,;="
_ENCODED = r"%[0-9A-Fa-f]{2}"
_PCHAR = rf"(?:[{_UNRESERVED}{_SUB}:@]|{_ENCODED})"
_AUTHORITY = (
    rf"(?:(?:[{_UNRESERVED}{_SUB}:]|{_ENCODED})*@)?"
    rf"(?:\[(?:{_ipv6()}|v[0-9A-Fa-f]+\.[{_UNRESERVED}{_SUB}:]+)\]|(?:[{_UNRESERVED}{_SUB}]|{_ENCODED})*)(?::[0-9]*)?"
)
_PATH = rf"(?://{_AUTHORITY}(?:/{_PCHAR}*)*|/(?:{_PCHAR}+(?:/{_PCHAR}*)*)?|{_PCHAR}+(?:/{_PCHAR}*)*|)"
_TAIL = rf"(?:{_PCHAR}|[/?])*"
_DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?"
_ZONE = r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"

_TEXT_FORMATS = {
    "byte": r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",  # RFC 4648, section 4
    "date": _DAY,  # RFC 3339, full-date
    "date-time": rf"{_DAY}[Tt]{_CLOCK}{_ZONE}",  # RFC 3339, without leap seconds
    # https://html.spec.whatwg.org/multipage/input.html#valid-e-mail-address
    "email": rf"[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_HOST}",
    "hostname": _HOST,  # RFC 1123
    "ipv4": _IPV4,  # RFC 2673, section 3.2
    "ipv6": _ipv6(),
    "time": rf"{_CLOCK}{_ZONE}",  # RFC 3339, full-time, without leap seconds
    "uri": rf"[A-Za-z][A-Za-z0-9+.-]*:{_PATH}(?:\?{_TAIL})?(?:#{_TAIL})?",  # RFC 3986, with its scheme
    "uuid": r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",  # RFC 9562, any version
}
TEXT_FORMATS = tuple(_TEXT_FORMATS)


def of_format(text: str, format: str) -> str:
    """SQL that says whether a text, not null, is of one of `TEXT_FORMATS`."""
    fits = f"regexp_full_match({text}, {literal(_TEXT_FORMATS[format])})"
    if format == "hostname":
        return f"{fits} AND length({text}) <= 253"
    if format in ("date", "date-time"):
        # The day has to be one that there is.
        return f"{fits} AND TRY_CAST(left({text}, 10) AS DATE) IS NOT NULL"
    return fits


# --- formats of times --------------------------------------------------------------------------------------------

_FIELDS = {
    "yyyy": ("year", "[0-9]{4}"),
    "uuuu": ("year", "[0-9]{4}"),
    "MM": ("month", "[0-9]{2}"),
    "M": ("month", "[0-9]{1,2}"),
    "dd": ("day", "[0-9]{2}"),
    "d": ("day", "[0-9]{1,2}"),
    "HH": ("hour", "[0-9]{2}"),
    "H": ("hour", "[0-9]{1,2}"),
    "mm": ("minute", "[0-9]{2}"),
    "ss": ("second", "[0-9]{2}"),
    **{"S" * digits: ("fraction", f"[0-9]{{{digits}}}") for digits in range(1, 7)},
    "X": ("offset", "Z|[+-][0-9]{2}"),
    "XX": ("offset", "Z|[+-][0-9]{4}"),
    "XXX": ("offset", "Z|[+-][0-9]{2}:[0-9]{2}"),
}
TIME_FIELDS = tuple(_FIELDS)
_ORDER = ("year", "month", "day", "hour", "minute", "second", "fraction")


def time_form(format: str, kind: str) -> TimeForm:
    """A format of the JDK's DateTimeFormatter, as the standard states it, for a DATE, TIMESTAMP or TIMESTAMPTZ.

    Raises `UnknownPatternError` for letters that are none of `TIME_FIELDS`, and where the fields make no such value.
    """
    pattern, groups = "", dict[str, int]()
    for quoted, text in _tokens(format):
        if quoted or not text[0].isalpha():
            if not quoted and text[0] in "[]{}#":
                raise UnknownPatternError(f"expected no {text[0]!r} outside of quotes")
            pattern += re.escape(text)
            continue
        field, digits = _FIELDS.get(text, (None, ""))
        if field is None or field in groups:
            problem = f"one of {', '.join(TIME_FIELDS)}" if field is None else f"the {field} once"
            raise UnknownPatternError(f"expected {problem}, got {text!r}")
        groups[field] = len(groups) + 1
        pattern += f"({digits})"
    allowed = {"DATE": 3, "TIMESTAMP": 7, "TIMESTAMPTZ": 7}[kind]
    present = [field for field in _ORDER if field in groups]
    if present != list(_ORDER[: len(present)]) or not 3 <= len(present) <= allowed:
        raise UnknownPatternError(
            f"expected {', '.join(_ORDER[:3])}{' and nothing finer' if allowed == 3 else ', then finer fields'} "
            f"for a {kind}, got {', '.join(present) or 'none'}"
        )
    if "offset" in groups and (kind != "TIMESTAMPTZ" or "hour" not in groups):
        raise UnknownPatternError(f"expected an offset only with the time of a TIMESTAMPTZ, got one in a {kind}")
    at = {field: f"\\{group}" for field, group in groups.items()}
    iso = f"{at['year']}-{at['month']}-{at['day']}"
    if "hour" in at:
        iso += f" {at['hour']}:{at.get('minute', '00')}"
        iso += f":{at.get('second', '00')}"
        iso += f".{at['fraction']}" if "fraction" in at else ""
        iso += at.get("offset", "")
    return TimeForm(pattern=f"^{pattern}$", iso=iso)


def _tokens(format: str) -> list[tuple[bool, str]]:
    """(quoted, text) of each part; two single quotes are one, in and out of quotes."""
    tokens: list[tuple[bool, str]] = []
    for part in re.findall(r"'(?:[^']|'')*'|''|[^']+|'", format):
        if part == "'":
            raise UnknownPatternError("expected the quote to be closed")
        if part.startswith("'"):
            tokens.append((True, part[1:-1].replace("''", "'") or "'"))
        else:
            tokens += [(False, "".join(run)) for _, run in groupby(part)]
    return tokens
