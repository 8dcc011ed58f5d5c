"""The parsers of what comes from outside, each as a function of bytes that gives a result, or an error to be shown."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, get_args
from urllib.parse import urlsplit
from uuid import UUID

import duckdb
from pydantic import ValidationError

from runner import terminal
from runner.adapters.dbt_packages import DbtPackages
from runner.adapters.git_objects import check_address
from runner.engines.contracts.contract import DRIFT, Contract, parse_contract
from runner.engines.contracts.drift import Layout
from runner.engines.contracts.rules import raw, text, value
from runner.engines.dbt_files import link_packages, read_yaml
from runner.engines.files.decoding import Utf8Stream
from runner.engines.files.json_document import read_json
from runner.engines.files.records import Batch, JsonRows, Lines, batches_of, read_csv, read_json_lines
from runner.engines.wire import Wire
from runner.model.errors import DataError, Failure, LogicError, RunnerError
from runner.model.hosts import HostRules
from runner.model.manifest import Manifest, PackageRecord
from runner.model.messages import FROM_ENGINE, FROM_ZYGOTE, TO_ENGINE, TO_ZYGOTE, Done, EngineResult
from runner.model.names import ColumnName, Commit, DatasetName, Identifier, RelationName, RelativePath
from runner.model.pipeline import parse_pipeline
from runner.model.spec import Compression, Encoding, JobSpec, Logic, Source, Stage, parse_spec
from runner.model.strict import Strict, load_json, parse_json
from runner.model.table_documents import parse_document
from runner.model.text import MAX_TOLD_CHARS
from runner.ports import Checkout, DeadLetter
from runner.redrive import Redrive
from tests.fuzz import seeds
from tests.fuzz.mutations import Form, mutated
from tests.support.documents import COMMIT
from tests.support.packages import lock
from tests.support.twins import MemoryLedger, MemoryObjects, MemoryQueue, TestClock

SECRET = "tea-at-four-with-the-keeper"
"""Whoever runs a target has it in the environment; no message may tell it."""
ENDS_S = 60.0
"""Of processor time, for one input. None takes a second."""

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""All but the line's end."""
_WHEN = datetime(2026, 1, 1, tzinfo=UTC)


class Finding(AssertionError):
    """A parser did what none may do."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """`read` parses, and checks what came of it where that can be checked."""

    name: str
    read: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    form: Form
    refuses: tuple[type[Exception], ...] = (RunnerError,)
    """What it may raise: what its docstring says."""
    longest: int = 8192
    """Bytes of an input that is worth trying: what is longer takes longer and says no more."""
    head: int = 0
    """Bytes before the document, which say how it is to be read."""
    share: int = 1
    """Of the time of the long form: more where each input takes long."""

    def mutated(self, document: bytes, random: Random) -> bytes:
        """A hostile input, made of one that may be good. The same for the same `random`."""
        head = document[: self.head]
        if self.head and random.random() < 0.5:
            head = random.randbytes(self.head)
        return head + mutated(document[self.head :], self.form, random)

    def hold(self, data: bytes) -> Exception | None:
        """What the parser said of `data`, None where it took it. Raises `Finding`."""
        try:
            self.read(data)
        except self.refuses as error:
            if isinstance(error, RunnerError):
                self._hold_to_form(error)
            return error
        except Exception as exc:  # whatever it is: that is what is looked for
            raise Finding(f"{self.name}: expected a typed error, got {type(exc).__name__}: {str(exc)[:300]}") from exc
        return None

    def hold_quietly(self, data: bytes) -> None:
        """As libFuzzer calls it, which takes what is returned for its own."""
        self.hold(data)

    def _hold_to_form(self, error: RunnerError) -> None:
        for told in (error.message, str(error), error.hint or "", error.subject or ""):
            if len(told) > MAX_TOLD_CHARS:
                raise Finding(f"{self.name}: expected at most {MAX_TOLD_CHARS:,} characters, got {len(told):,}")
            if _CONTROL.search(told):
                raise Finding(f"{self.name}: expected a printable message, got {told!r}")
            if SECRET in told:
                raise Finding(f"{self.name}: expected nothing of the environment, got {told!r}")
        if not error.message or Failure.model_validate_json(error.failure.model_dump_json()) != error.failure:
            raise Finding(f"{self.name}: expected a failure that can be stored, got {error.failure!r}")


@contextlib.contextmanager
def ended(*, within_s: float = ENDS_S) -> Iterator[None]:
    """Within: a parser that hangs raises, and holds up nobody else. For the main thread."""

    def late(number: int, frame: object) -> None:
        raise Finding(f"expected an end within {within_s:g} s of processor time, got none")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, within_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def screen() -> Iterator[io.StringIO]:
    """Within: what a terminal would show comes here."""
    shown = io.StringIO()
    before = terminal.out, terminal.err
    terminal.out = terminal.err = terminal.PlainConsole(file=shown, width=120)
    try:
        with contextlib.redirect_stdout(shown):
            yield shown
    finally:
        terminal.out, terminal.err = before


def require_harmless(shown: str) -> None:
    """Raises where something in it would steer a terminal."""
    found = _CONTROL.search(shown)
    if found:
        raise Finding(f"expected no control character on a terminal, got {shown[max(0, found.start() - 40) :][:80]!r}")
    shown.encode()  # half a surrogate pair cannot be written


# ---------------------------------------------------------------- requests


def _spec(data: bytes) -> None:
    spec = parse_spec(data)
    assert parse_spec(spec.to_json()) == spec
    assert parse_spec(spec.to_json()).to_json() == spec.to_json()


def _ids() -> Iterator[UUID]:
    return map(UUID, (f"{number:032x}" for number in range(1, 1_000_000)))


def _launched(raw: bytes, params: Mapping[str, str]) -> None:
    pipeline, in_force = parse_pipeline(raw, what="pipelines/x.yaml at 0123456789ab", params=params)
    specs = pipeline.specs(
        logic=Logic(repo="https://git.example.org/logic.git", commit=COMMIT),
        params=in_force,
        logical_time=_WHEN,
        pipeline_run=UUID(int=9),
        run_ids=_ids(),
    )
    assert len(specs) == len(pipeline.stages)


def _pipeline(data: bytes) -> None:
    _launched(data, {})


def _params(data: bytes) -> None:
    """A JSON object: a file's text, and the parameters that somebody gives."""
    given = _object(data)
    params = given.get("params")
    params = {str(key): str(each) for key, each in params.items()} if isinstance(params, dict) else {}
    _launched(_bytes(given.get("file")), params)


def _object(data: bytes) -> dict[str, Any]:
    """How several texts come in one input; what is none stands for nothing."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _bytes(text: object) -> bytes:
    return (text if isinstance(text, str) else json.dumps(text)).encode("utf-8", "surrogatepass")


# ---------------------------------------------------------------- dead letters


@dataclass
class _Letters:
    """`DeadLetters` with one letter, which nobody takes away."""

    letter: DeadLetter

    def look(self, stage: Stage, *, limit: int) -> Sequence[DeadLetter]:
        return [self.letter]

    def put_back(self, letter: DeadLetter) -> None:
        pass

    def remove(self, letter: DeadLetter) -> None:
        raise AssertionError("nothing was redriven")

    def depth(self, stage: Stage) -> int:
        return 1


class _NoRuns:
    def rerun(self, run_id: UUID, *, publish: bool = False) -> JobSpec:
        raise AssertionError("nothing was redriven")

    def submit(self, spec: JobSpec) -> JobSpec:
        raise AssertionError("nothing was redriven")


def _letter(data: bytes) -> None:
    body = data.decode(errors="surrogateescape")
    letter = DeadLetter(
        stage=Stage.QUERY,
        body=body,
        receipt="receipt",
        message_id="letter-1",
        reason=body[:512] or None,
        sent_at=_WHEN,
    )
    clock = TestClock()
    redrive = Redrive(letters=_Letters(letter), ledger=MemoryLedger(clock), queue=MemoryQueue(clock), runs=_NoRuns())
    with screen() as shown:
        terminal.letters_table(redrive.listed([Stage.QUERY], limit=10))
        terminal.show_letter(*redrive.examine(Stage.QUERY, "letter-1"))
        terminal.print_json(letter.body)
    require_harmless(shown.getvalue())


# ---------------------------------------------------------------- contracts


def _contract(data: bytes) -> None:
    """A contract that is taken is one whose rules DuckDB can judge a row by."""
    contract = parse_contract(data, what="contracts/x.odcs.yaml")
    columns = [
        f"{each} AS {name(index)}"
        for index, column in enumerate(contract.columns)
        for name, each in ((raw, "'1'"), (text, "'1'"), (value, f"TRY_CAST('1' AS {column.type})"))
    ]
    with duckdb.connect(config={"threads": 1, "enable_external_access": "false"}) as connection:
        connection.execute(f"CREATE TABLE x AS SELECT {', '.join(columns)}")
        for rule in contract.row_rules:
            # What the contract's own SQL does on a row is found when there are rows.
            with contextlib.suppress(*((duckdb.Error,) if rule.is_sql else ())):
                connection.execute(f"SELECT {rule.broken} FROM x").fetchall()
        for index, column in enumerate(contract.columns):
            if column.type == "VARCHAR":
                continue  # a text is as exact as it came
            cast = column.cast(text(index))
            connection.execute(f"SELECT {cast}, {column.is_exact(text(index), cast)} FROM x").fetchall()


# ---------------------------------------------------------------- messages


def _message(data: bytes) -> None:
    """What each of the four sides makes of a frame; the worker is the one that a job's own code can talk to."""
    taken = 0
    for side in (FROM_ENGINE, FROM_ZYGOTE, TO_ENGINE, TO_ZYGOTE):
        with contextlib.suppress(ValidationError):
            message: Strict = side.validate_json(data)
            taken += 1
            # It is recorded: in JSON that others read too, and in a database whose texts hold no NUL.
            load_json(message.to_json(), what="message")
            assert side.validate_json(message.to_json()) == message
            if isinstance(message, Done):
                _hold_storable(message.result)
    if not taken:
        raise LogicError("engine: expected one of its messages, got none")


def _hold_storable(result: EngineResult) -> None:
    for output in result.outputs:
        assert output.rows is None or 0 <= output.rows < 2**63
        assert "\0" not in "".join(output.claimed_inputs or ())
        assert all(file.sha256 is None or len(file.sha256) == 64 for file in output.files)


def _frame(data: bytes) -> None:
    """A stream of frames, as many as there are."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)  # else one that waits for what cannot come would hang
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        wire = Wire(ours)
        while True:
            body, descriptors = wire.receive(most_bytes=1 << 20)
            assert len(body) <= len(data)
            assert not descriptors


# ---------------------------------------------------------------- the record


def _manifest(data: bytes) -> None:
    manifest = parse_json(Manifest, data, what="manifest")
    stored = manifest.to_json()
    assert parse_json(Manifest, stored, what="manifest").to_json() == stored
    with screen() as shown:
        terminal.show_manifest(manifest)
        terminal.run_line(manifest)
        terminal.print_json(manifest)
        if manifest.failure:
            terminal.print_failure(manifest.failure)
    require_harmless(shown.getvalue())


def _log_line(data: bytes) -> None:
    line = load_json(data, what="log line")
    with screen() as shown:
        terminal.print_json(line)
        if isinstance(line, dict):
            terminal.print_log_line(line)
    require_harmless(shown.getvalue())


def _table_document(data: bytes) -> None:
    document = parse_document("s3://lake/tables/x/metadata/00001-a.metadata.json", data)
    assert len(document.snapshots) <= len(data) or data.startswith(b"\x1f\x8b")


# ---------------------------------------------------------------- names, hosts, addresses


class _Names(Strict):
    identifier: Identifier | None = None
    dataset: DatasetName | None = None
    commit: Commit | None = None
    path: RelativePath | None = None
    relation: RelationName | None = None
    column: ColumnName | None = None


def _name(data: bytes) -> None:
    names = parse_json(_Names, data, what="names")
    if names.path is not None:
        assert os.path.normpath(f"/logic/{names.path}").startswith("/logic")
        assert not Path("/logic", names.path, "x").exists()  # no error of the file system's, however long it is
    if names.dataset is not None:
        assert re.fullmatch(r"[a-z0-9_]+([./][a-z0-9_]+)+", names.dataset)
    require_harmless("".join(each or "" for each in (names.path, names.relation, names.column)))


def _host(data: bytes) -> None:
    """A JSON object: the entries that are configured, and what a URL names."""
    given = _object(data)
    listed = given.get("entries")
    rules = HostRules.parse(map(str, listed if isinstance(listed, list) else ()))
    port = given.get("port")
    host = str(given.get("host"))
    rules.require_host(host, port if isinstance(port, int) else 443, what="source x", subject="x")
    assert host.isprintable()
    assert not set(host) & set("/@?# ")


def _address(data: bytes) -> None:
    address = data.decode(errors="surrogateescape")
    check_address(address)
    assert not address.startswith("-")
    assert address.isprintable()
    assert "::" not in address.partition("/")[0]
    assert "@" not in urlsplit(address).netloc


# ---------------------------------------------------------------- dbt's files


def _dbt_yaml(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "dbt_project.yml")
        path.write_bytes(data)
        document = read_yaml(path)
    written = str(document)
    assert len(written) < 32 * 1024 * 1024
    written.encode()


def _dbt_packages(data: bytes) -> None:
    """A JSON object: the texts of the project's files, and an archive that a host serves."""
    given = _object(data)
    _installed({name: _bytes(given[name]) for name in _PROJECT_FILES if name in given}, archived=None)


def _dbt_archive(data: bytes) -> None:
    """A JSON object: members of an archive by their names. What is none is an archive as it is."""
    entry = {"tarball": "https://host.example.org/tools.tar.gz", "name": "tools"}
    files = {
        "dbt_project.yml": b"name: small\n",
        "packages.yml": json.dumps({"packages": [entry]}).encode(),
        "package-lock.yml": lock([entry], [entry]).encode(),
    }
    _installed(files, archived=_tar(_object(data)) or data)


def _tar(members: Mapping[str, Any]) -> bytes:
    """Each member is [kind, content or where a link leads]; as tar calls kinds: 0 a file, 2 a symlink, 5 a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogatepass") as tar:
        for name, stated in members.items():
            kind, *more = stated if isinstance(stated, list) and stated else ["0"]
            member = tarfile.TarInfo(name)
            member.type = str(kind)[:1].encode(errors="replace") or tarfile.REGTYPE
            content = _bytes(more[0]) if more else b""
            member.linkname = content.decode(errors="replace")
            member.size = len(content) if member.type == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue() if members else b""


_PROJECT_FILES = ("dbt_project.yml", "packages.yml", "dependencies.yml", "package-lock.yml", "sub/dbt_project.yml")


def _installed(files: Mapping[str, bytes], *, archived: bytes | None) -> tuple[PackageRecord, ...]:
    with tempfile.TemporaryDirectory() as folder:
        clone, outside = Path(folder, "clone"), Path(folder, "outside")
        for name, content in files.items():
            Path(clone, name).parent.mkdir(parents=True, exist_ok=True)
            Path(clone, name).write_bytes(content)
        clone.mkdir(exist_ok=True)
        outside.mkdir()

        def fetch(source: Source, to: Path) -> Path:
            if archived is None:
                raise DataError(f"source {source.name}: expected 200, got 404")
            (to / "archive").write_bytes(archived)
            return to / "archive"

        packages = DbtPackages(
            MemoryObjects(),
            _NoLogic(),
            hub="https://hub.example.org",
            allowed=HostRules.parse(["*.example.org"]),
            fetch=fetch,
        )
        try:
            made = packages.install(clone, clone=clone, scratch=Path(folder, "scratch"))
            link_packages(clone, clone / "dbt_packages", clone=clone)
        finally:
            # Whatever a name or a link says, nothing comes to lie beside what is written to.
            assert {each.name for each in Path(folder).iterdir()} <= {"clone", "outside", "scratch"}
            assert not list(outside.iterdir())
    return made


class _NoLogic:
    """`LogicSource` of a host that has no repository."""

    def checkout(self, repo: str, commit: str, workspace: Path) -> Checkout:
        raise self._none(repo)

    def resolve_ref(self, repo: str, ref: str) -> str:
        raise self._none(repo)

    def read_file(self, repo: str, commit: str, path: str) -> bytes:
        raise self._none(repo)

    def reached(self, repo: str, commit: str, ref: str) -> bool:
        raise self._none(repo)

    def _none(self, repo: str) -> LogicError:
        return LogicError(f"{repo}: expected a repository, got none")


# ---------------------------------------------------------------- data files

_COMPRESSIONS = get_args(Compression)
_ENCODINGS = get_args(Encoding)
_DELIMITERS = (",", ";", "\t", "·", "\0", " ", "\x1f", "a")


@cache
def _trips() -> Contract:
    columns = (seeds.column("id", "INTEGER", "integer", required=True), seeds.column("city"))
    return parse_contract(seeds.contract_of(*columns), what="contracts/trips.odcs.yaml")


def _records(data: bytes, read: Callable[[Utf8Stream, bytes, Layout], Iterator[Batch]]) -> None:
    """The first four bytes say how a file is read: drift, compression, encoding and what is its format's own."""
    how, content = data[:4].ljust(4, b"\0"), data[4:]
    layout = Layout(replace(_trips(), drift=DRIFT[how[0] % len(DRIFT)]), "contracts/trips.odcs.yaml")
    compression = _COMPRESSIONS[how[1] % len(_COMPRESSIONS)]
    stream = Utf8Stream(io.BytesIO(content), "s3://lake/a", compression, _encoding(how))
    for batch in read(stream, how, layout):
        batch.rows.validate(full=True)
        assert batch.rows.num_columns == 4 + batch.width
    json.dumps([step.model_dump() for step in layout.steps()])


def _encoding(how: bytes) -> Encoding:
    found: Encoding = _ENCODINGS[how[2] % len(_ENCODINGS)]
    return found


def _csv(data: bytes) -> None:
    def read(stream: Utf8Stream, how: bytes, layout: Layout) -> Iterator[Batch]:
        delimiter = _DELIMITERS[how[3] % len(_DELIMITERS)]
        lines = Lines(stream, _encoding(how))
        return read_csv(lines, layout, delimiter=delimiter, name="s3://lake/a", header=how[3] < 128)

    _records(data, read)


def _json_rows(layout: Layout) -> JsonRows:
    return JsonRows(layout, [each.type_rule for each in _trips().columns], "s3://lake/a")


def _json_lines(data: bytes) -> None:
    def read(stream: Utf8Stream, how: bytes, layout: Layout) -> Iterator[Batch]:
        return batches_of(read_json_lines(Lines(stream, _encoding(how)), _json_rows(layout)), layout)

    _records(data, read)


def _json_document(data: bytes) -> None:
    def read(stream: Utf8Stream, how: bytes, layout: Layout) -> Iterator[Batch]:
        keys = ((), ("rows",), ("data", "rows"))[how[3] % 3]
        return batches_of(read_json(stream, _json_rows(layout), keys, "s3://lake/a"), layout)

    _records(data, read)


# ---------------------------------------------------------------- all of them

_ALL = (
    Target(name="spec", read=_spec, seeds=seeds.SPECS, form="json"),
    Target(name="pipeline", read=_pipeline, seeds=seeds.PIPELINES, form="yaml", share=3),
    Target(name="params", read=_params, seeds=seeds.LAUNCHES, form="json"),
    Target(name="contract", read=_contract, seeds=seeds.CONTRACTS, form="yaml", share=6),
    Target(name="letter", read=_letter, seeds=seeds.SPECS, form="json"),
    Target(name="message", read=_message, seeds=seeds.MESSAGES, form="json"),
    Target(name="frame", read=_frame, seeds=seeds.FRAMES, form="bytes", refuses=(EOFError,)),
    Target(name="manifest", read=_manifest, seeds=seeds.MANIFESTS, form="json"),
    Target(name="log line", read=_log_line, seeds=seeds.LOG_LINES, form="json"),
    Target(name="table document", read=_table_document, seeds=seeds.TABLES, form="json"),
    Target(name="name", read=_name, seeds=seeds.NAMES, form="json"),
    Target(name="host", read=_host, seeds=seeds.HOSTS, form="json"),
    Target(name="address", read=_address, seeds=seeds.ADDRESSES, form="bytes", longest=512),
    Target(name="dbt yaml", read=_dbt_yaml, seeds=seeds.DBT_PROJECTS, form="yaml", share=2),
    Target(name="dbt packages", read=_dbt_packages, seeds=seeds.DBT_PACKAGES, form="json"),
    Target(name="dbt archive", read=_dbt_archive, seeds=seeds.ARCHIVES, form="json", share=2),
    Target(name="csv", read=_csv, seeds=seeds.CSV_FILES, form="bytes", head=4),
    Target(name="json lines", read=_json_lines, seeds=seeds.JSON_LINES_FILES, form="lines of json", head=4),
    Target(name="json document", read=_json_document, seeds=seeds.JSON_FILES, form="json", head=4),
)
TARGETS: Mapping[str, Target] = {each.name: each for each in _ALL}


def _broken(data: bytes) -> None:
    """Refuses what is no JSON, as it should, and falls over an empty array."""
    document = load_json(data, what="document")
    if isinstance(document, list):
        document[0]


CONTROL = Target(name="control", read=_broken, seeds=(b'{"a": 1}', b"[[], 1]"), form="json")
"""A parser that has a fault, to see that faults are seen."""
