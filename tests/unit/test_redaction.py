"""Secrets leave no trace in what leaves a job: not as they are, not encoded, not cut, not at the end of a chunk."""

from __future__ import annotations

import ast
import base64
import html
import json
import random
import re
import shlex
import string
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus, unquote, unquote_plus, urlencode
from xml.sax import saxutils

import duckdb
import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from runner.model import redaction
from runner.model.errors import Category, Failure
from runner.model.manifest import Fingerprint, Step
from runner.model.messages import EngineOutput, EngineResult
from runner.model.redaction import SHORTEST_SECRET, Redaction
from runner.model.text import printable

MARK = "[secret api/token]"
TOKEN = "wJalrXUtnFEMI/K7MDENG+bPxRfi CY'EX\"AMPLE\\KEY=é"
PLAIN = "hunter2hunter2"
FAST = settings(deadline=None, max_examples=150)

NASTY = "'\"\\/%&<>+ =$`!?#:;.,*~é€\u00a0😀\n\r\t\x01\x7fab1_-"
SECRETS = st.text(NASTY, min_size=SHORTEST_SECRET, max_size=24) | st.text(
    st.characters(exclude_categories=("Cs", "Cn")), min_size=SHORTEST_SECRET, max_size=40
)
TEXTS = st.text(NASTY, max_size=20) | st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=20)


def redacted(secret: str, text: str) -> str:
    return Redaction({"api/token": secret}).text(text)


def pieces(text: str) -> list[str]:
    """What is left of a text; that the mark itself holds the letters of a secret says nothing."""
    return text.split(MARK)


# ---------------------------------------------------------------- encodings


def _bytes_repr(text: str) -> str:
    return repr(text.encode())[2:-1]


def _lower_escapes(encode: Callable[[str], str]) -> Callable[[str], str]:
    def lower(text: str) -> str:
        parts = encode(text).split("%")
        return "%".join([parts[0], *(part[:2].lower() + part[2:] for part in parts[1:])])

    return lower


ENCODINGS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "JSON": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "JSON in ASCII": lambda text: json.dumps(text)[1:-1],
    "JSON in ASCII, upper": lambda text: "".join(
        re.sub("[0-9a-f]{4}", lambda digits: digits[0].upper(), json.dumps(char)[1:-1]) for char in text
    ),
    "JSON with slashes escaped": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "SQL": lambda text: text.replace("'", "''"),
    "an SQL identifier": lambda text: text.replace('"', '""'),
    "a URL's path": quote,
    "a URL's part": lambda text: quote(text, safe=""),
    "a form": quote_plus,
    "a query": lambda text: urlencode({"k": text}).removeprefix("k="),
    "a URL's part, lower": _lower_escapes(lambda text: quote(text, safe="")),
    "a form, lower": _lower_escapes(quote_plus),
    "encodeURIComponent": lambda text: quote(text, safe="!'()*"),
    "HTML": html.escape,
    "HTML's text": lambda text: html.escape(text, quote=False),
    "XML": lambda text: saxutils.escape(text, {'"': "&quot;", "'": "&apos;"}),
    "Jinja's HTML": lambda text: html.escape(text, quote=False).replace('"', "&#34;").replace("'", "&#39;"),
    "YAML": lambda text: yaml.safe_dump(text, default_style='"', width=10**9).strip()[1:-1],
    "YAML in Unicode": lambda text: yaml.safe_dump(text, default_style='"', width=10**9, allow_unicode=True).strip()[
        1:-1
    ],
    "Python": lambda text: repr(text)[1:-1],
    "Python in ASCII": lambda text: ascii(text)[1:-1],
    "Python's bytes": _bytes_repr,
    "a shell's word": lambda text: "'" + text.replace("'", "'\"'\"'") + "'",
    "a terminal's text": printable,
    "hex": lambda text: text.encode().hex(),
    "upper hex": lambda text: text.encode().hex().upper(),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "base64 in lines": lambda text: base64.encodebytes(text.encode()).decode().strip(),
    "base64 in a URL": lambda text: quote(base64.b64encode(text.encode()).decode(), safe=""),
    "base64 of JSON": lambda text: base64.b64encode(json.dumps(text)[1:-1].encode()).decode(),
    "SQL in JSON": lambda text: json.dumps(text.replace("'", "''"))[1:-1],
    "JSON in JSON": lambda text: json.dumps(json.dumps(text))[3:-3],
    "Python in JSON": lambda text: json.dumps(repr(text)[1:-1])[1:-1],
    "a URL in HTML": lambda text: html.escape(quote(text, safe="!'()*")),
}


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_an_encoding_of_a_secret_is_replaced_by_its_name(encoding: str) -> None:
    encoded = ENCODINGS[encoding](TOKEN)
    left = redacted(TOKEN, f"before:{encoded}:after")
    assert re.fullmatch(r"before:[\"'\\]*" + re.escape(MARK) + r"[=\"'\\%3D]*:after", left), left


@FAST
@given(SECRETS, st.sampled_from(sorted(ENCODINGS)), TEXTS, TEXTS)
@example(PLAIN, "as it is", "aaa", PLAIN[:-1])
@example("aaaaaaaa", "as it is", "a", "a")
@example("\\\\\\\\\\\\\\\\", "JSON", "\\", "\\")
@example("''''''''", "SQL", "'", "'")
@example("%25%25%25", "a URL's part", "%", "25")
@example("        a", "a terminal's text", " ", " ")
@example('{"a": 1}', "JSON", "", "")
def test_no_encoding_of_any_secret_stays_in_any_text(secret: str, encoding: str, before: str, after: str) -> None:
    assume(secret.strip())
    encoded = ENCODINGS[encoding](secret)
    left = redacted(secret, before + encoded + after)
    assert all(encoded not in piece for piece in pieces(left))
    if encoding == "as it is":
        assert all(secret not in piece for piece in pieces(left))


def _base64_texts(encoded: str) -> Iterator[bytes]:
    """What a piece of base64 may stand for, wherever it was cut."""
    digits = encoded.replace("-", "+").replace("_", "/").rstrip("=")
    for start in range(4):
        whole = digits[start:][: len(digits[start:]) // 4 * 4]
        yield base64.b64decode(whole)


CONTAINERS: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "JSON": (json.dumps, json.loads),
    "JSON in Unicode": (lambda text: json.dumps(text, ensure_ascii=False), json.loads),
    "JSON in JSON": (lambda text: json.dumps(json.dumps(text)), lambda text: str(json.loads(json.loads(text)))),
    "Python": (repr, ast.literal_eval),
    "Python in ASCII": (ascii, ast.literal_eval),
    "YAML": (lambda text: yaml.safe_dump(text, default_style='"', width=10**9), yaml.safe_load),
    "HTML": (html.escape, html.unescape),
    "a URL": (lambda text: quote(text, safe=""), unquote),
    "a form": (quote_plus, unquote_plus),
    "SQL": (lambda text: text.replace("'", "''"), lambda text: text.replace("''", "'")),
}


@FAST
@given(SECRETS, st.sampled_from(sorted(CONTAINERS)), TEXTS, TEXTS)
def test_a_text_that_holds_a_secret_is_still_one_when_it_was_encoded_as_a_whole(
    secret: str, container: str, before: str, after: str
) -> None:
    assume(secret.strip())
    encode, decode = CONTAINERS[container]
    # Between letters: where an escape, or the whole text's quote, is a part of the secret too, it goes with it.
    whole = f"{before}G{secret}G{after}G"
    assume(decode(encode(whole)) == whole)  # YAML, for one, does not give back each character that is none
    decoded = decode(redacted(secret, encode(whole)))
    assert all(secret not in piece for piece in pieces(decoded))
    if MARK not in whole:
        assert MARK in decoded


@FAST
@given(SECRETS, st.binary(max_size=10), st.binary(max_size=10), st.booleans())
def test_base64_of_a_longer_text_holds_nothing_of_the_secret(
    secret: str, before: bytes, after: bytes, of_urls: bool
) -> None:
    encode = base64.urlsafe_b64encode if of_urls else base64.b64encode
    left = redacted(secret, encode(before + secret.encode() + after).decode())
    assert MARK in left
    assert all(secret.encode() not in text for piece in pieces(left) for text in _base64_texts(piece))


@pytest.mark.parametrize("offset", range(6))
def test_no_bit_of_the_secret_stays_in_base64(offset: int) -> None:
    """Two secrets that differ in every bit leave the same text behind."""
    flipped = "".join(chr(127 - ord(char)) for char in PLAIN)
    for after in (b"", b"x", b"xy", b"xyz"):
        left = [
            redacted(secret, base64.b64encode(b"." * offset + secret.encode() + after).decode())
            for secret in (PLAIN, flipped)
        ]
        assert left[0].rstrip("=") == left[1].rstrip("=")


def test_the_password_in_an_authorization_header_is_replaced() -> None:
    for user in ("a", "ab", "abc"):
        header = base64.b64encode(f"{user}:{PLAIN}".encode()).decode()
        assert MARK in redacted(PLAIN, f"Authorization: Basic {header}")


# ---------------------------------------------------------------- what a secret is made of


PEM = "-----BEGIN PRIVATE KEY-----\n" + "\n".join(64 * letter for letter in "ABCDEF") + "\n-----END PRIVATE KEY-----\n"


def test_each_long_line_of_a_key_is_the_secret_and_its_frame_is_not() -> None:
    lines = PEM.splitlines()
    assert redacted(PEM, f"key: {PEM}.") == f"key: {MARK}."
    for line in lines[1:-1]:
        assert redacted(PEM, f"| {line}") == f"| {MARK}"
    assert redacted(PEM, lines[0]) == lines[0]
    assert MARK in redacted(PEM, base64.b64encode(PEM.encode()).decode())


def test_each_long_text_in_a_secret_of_json_is_the_secret() -> None:
    secret = json.dumps({"username": "ada", "password": "p'ss\"word", "hosts": ["db.example.org"], "port": 5432})
    assert redacted(secret, secret) == MARK
    assert redacted(secret, "password=p'ss\"word at db.example.org:5432 for ada") == (
        f"password={MARK} at {MARK}:5432 for ada"
    )
    assert redacted(secret, json.dumps({"env": secret})) == json.dumps({"env": MARK})


def test_a_secret_without_its_spaces_is_the_secret() -> None:
    assert redacted(f" {PLAIN}\n", f"token={PLAIN};") == f"token={MARK};"
    assert redacted("correct horse\tbattery", "a correct horse battery") == f"a {MARK}"


def test_of_two_secrets_the_one_that_is_there_gives_its_name() -> None:
    both = Redaction({"long": "hunter2hunter2", "short": "hunter2h"})
    assert both.text("hunter2hunter2 hunter2h") == "[secret long] [secret short]"
    assert Redaction({"a": "xxabcdefgh", "b": "abcdefghyy"}).text("-xxabcdefghyy-") == "-[secret a]-"


def test_a_secret_that_nothing_has_in_common_with_changes_nothing() -> None:
    text = "12:00:01 dbt build: 4 of 4 models … ok ... done"
    assert redacted(TOKEN, text) is not None
    assert redacted(TOKEN, text) == text
    assert Redaction({}).text(TOKEN) == TOKEN
    assert Redaction({"empty": ""}).text(TOKEN) == TOKEN


def test_what_is_no_unicode_comes_out_as_it_went_in() -> None:
    assert redacted(PLAIN, f"\udcff{PLAIN}\ud800") == f"\udcff{MARK}\ud800"
    assert Redaction({"api/token": PLAIN}).data(b"\xff" + PLAIN.encode() + b"\xfe") == b"\xff" + MARK.encode() + b"\xfe"


def test_json_stays_json_where_a_secret_begins_like_an_escape() -> None:
    document = json.dumps({"a": "\nopassword1", "b": 'x"\\', "c": "\\nopassword1"})
    left = json.loads(redacted("nopassword1", document))
    assert set(left) == {"a", "b", "c"}
    assert left["b"] == 'x"\\'


@pytest.mark.parametrize("name", ["a", "A/b_c.d-e", "x" * 200])
def test_the_mark_may_stand_in_any_document(name: str) -> None:
    left = Redaction({name: PLAIN}).text(json.dumps({PLAIN: [PLAIN]}))
    assert json.loads(left) == {f"[secret {name}]": [f"[secret {name}]"]}
    assert yaml.safe_load(Redaction({name: PLAIN}).text(f'a: "{PLAIN}"')) == {"a": f"[secret {name}]"}


# ---------------------------------------------------------------- cut


@pytest.mark.parametrize("dots", ["...", "…", " … ", " ... "])
def test_a_part_of_a_secret_beside_an_ellipsis_is_the_secret_with_its_dots(dots: str) -> None:
    for length in range(4, len(TOKEN)):
        assert redacted(TOKEN, f"= {TOKEN[:length]}{dots}x").rstrip("x").strip() == f"= {MARK}"
        assert redacted(TOKEN, f"x{dots}{TOKEN[-length:]} =").lstrip("x").strip() == f"{MARK} ="
    assert redacted(TOKEN, "and so on...") == "and so on..."


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 FROMM x WHERE token = '{secret}'",
        "SELECT '{secret}'::INTEGER, 'and then some more, so that the line is too long to be shown as a whole here'",
        "SELECT 'a long beginning of a line that is not going to be shown', '{secret}', nothing, 'a long end of it'",
        "SELECT 'not shown, as it is far off', '{secret}', 'something between them, neither short nor long', nothing",
    ],
)
@pytest.mark.parametrize("length", range(9, 90, 3))
def test_what_duckdb_shows_of_a_line_holds_no_part_of_a_secret(sql: str, length: int) -> None:
    chance = random.Random(length)  # noqa: S311 - to be the same each time
    secret = "".join(chance.choice(string.ascii_letters + string.digits) for _ in range(length))
    with pytest.raises(duckdb.Error) as refused:
        duckdb.connect().execute(sql.format(secret=secret)).fetchall()
    left = redacted(secret, str(refused.value))
    assert not [secret[at : at + 4] for at in range(length - 3) if secret[at : at + 4] in left]


# ---------------------------------------------------------------- models


def test_a_model_loses_its_secrets_in_texts_and_keys_and_keeps_all_else() -> None:
    result = EngineResult(
        outputs=(
            EngineOutput(
                dataset="marts.x",
                files=(),
                rows=3,
                columns=None,
                fingerprint=Fingerprint(rows=3, hash="1", engine="duckdb", columns={PLAIN: "1", "id": "2"}),
                claimed_inputs=("staging.x", PLAIN),
            ),
        ),
        steps=(
            Step(name="model.a.b", kind="model", status="error", seconds=1.5, message=f"no such column {PLAIN}"),
            Step(name=f"test.{PLAIN}", kind="test", status="pass"),
        ),
        counts={"rows_read": 3, PLAIN: 4},
        packages={"duckdb": "1.5.5"},
        failure=Failure(category=Category.DATA, message=f"got '{PLAIN}'", subject=PLAIN),
    )
    left = Redaction({"api/token": PLAIN}).model(result)
    assert PLAIN not in left.to_json()
    assert [step.message for step in left.steps] == [f"no such column {MARK}", None]
    assert [step.seconds for step in left.steps] == [1.5, None]
    assert left.counts == {"rows_read": 3, MARK: 4}
    assert left.outputs[0].fingerprint.columns == {MARK: "1", "id": "2"}
    assert left.failure == Failure(category=Category.DATA, message=f"got '{MARK}'", subject=MARK)


def test_a_model_without_secrets_is_the_same_object() -> None:
    failure = Failure(category=Category.DATA, message="rows: expected 3, got 2")
    assert Redaction({"api/token": PLAIN}).model(failure) is failure
    assert Redaction({}).model(failure) is failure


def test_a_text_that_is_public_stays_but_only_alone() -> None:
    failure = Failure(category=Category.DATA, message="staging.postgres_a: expected rows", subject="staging.postgres_a")
    left = Redaction({"db": "postgres"}).model(failure, public={"staging.postgres_a"})
    assert (left.subject, left.message) == ("staging.postgres_a", "staging.[secret db]_a: expected rows")


# ---------------------------------------------------------------- chunks


def in_chunks(secrets: Redaction, data: bytes, size: int) -> bytes:
    return b"".join(secrets.chunks(data[at : at + size] for at in range(0, len(data), size)))


@pytest.mark.parametrize("size", [1, 16, 17, 100])
def test_no_secret_slips_through_between_two_chunks(size: int) -> None:
    secrets = Redaction({"api/token": TOKEN, "b": PLAIN})
    chance = random.Random(size)  # noqa: S311 - to be the same each time
    forms = [ENCODINGS[name](TOKEN) for name in sorted(ENCODINGS)] + [PLAIN, f"{PLAIN[:7]}...", f"…{PLAIN[-7:]}"]
    for _ in range(8 if size > 1 else 1):
        text = "".join(
            chance.choice(forms) if chance.random() < 0.3 else "\\" * chance.randrange(3) + "x" * chance.randrange(40)
            for _ in range(60)
        )
        assert in_chunks(secrets, text.encode(), size).decode() == secrets.text(text)


@pytest.mark.parametrize("size", [16, 100])
def test_of_nothing_but_secrets_nothing_is_left(size: int) -> None:
    for secret in ("aaaaaaaa", "abababababab", "xyzxyzxyzxyz"):
        left = in_chunks(Redaction({"api/token": secret}), secret.encode() * 200, size).decode()
        assert not [piece for piece in pieces(left) if secret in piece]


def test_a_manifest_of_many_chunks_is_one_still() -> None:
    nodes = {f"model.a.m{number}": {"sql": f"select '{PLAIN}'", "n": number} for number in range(50_000)}
    document = json.dumps({"nodes": nodes}).encode()
    left = json.loads(in_chunks(Redaction({"api/token": PLAIN}), document, 1_000_003))["nodes"]
    assert left == {name: {"sql": f"select '{MARK}'", "n": node["n"]} for name, node in nodes.items()}


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00", b"\\" * 5000])
def test_what_has_no_secrets_stays_as_it_is(content: bytes) -> None:
    assert in_chunks(Redaction({"api/token": TOKEN}), content, 1000) == content
    assert in_chunks(Redaction({}), content, 1000) == content


# ---------------------------------------------------------------- cost


def test_a_large_and_intricate_secret_is_no_bomb() -> None:
    for secret in (
        "\\" * 5000,
        "'\"" * 2000,
        "%25" * 2000,
        "&amp;" * 1000,
        json.dumps({str(number): f"{number:09d}'" for number in range(300)}),
        "\n".join(f"line {number:04} of it" for number in range(300)),
    ):
        left = redacted(secret, f"{secret} and {secret[:-1]}")
        assert left.startswith(MARK)


@pytest.mark.parametrize("piece", ["hunt...", "hunter2h …", ".", "hunter2hunter", "\\", "h...nter2h", "ter2... hunt"])
def test_a_text_that_is_made_of_pieces_of_a_secret_is_no_bomb(piece: str) -> None:
    data = piece.encode() * (1024 * 1024 // len(piece))
    left = in_chunks(Redaction({"api/token": PLAIN}), data, 300_000)
    assert b"hunter2hunter2" not in left
    assert len(left) < 3 * len(data)


def test_what_takes_too_long_to_look_through_is_taken_for_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_MOST_CHECKS", 1000)
    secrets = Redaction({"api/token": PLAIN})
    assert secrets.text("hunter2..." * 10_000) == MARK
    assert secrets.text("a word") == "a word"
    chunks = [b"hunter2..." * 1000] * 3 + [b"hunter2hunt", b"er2 is over"]
    assert b"".join(secrets.chunks(chunks)).decode() == f"{MARK}{MARK}{MARK}{MARK} is over"


def test_the_shell_quotes_as_python_does() -> None:
    assert shlex.quote(TOKEN)[1:-1] == ENCODINGS["a shell's word"](TOKEN)[1:-1]
