"""What a job does with its secrets stays in it: nothing that left it holds one, however hard its logic shows them."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, quote_plus
from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from runner.flow.waiting import Waiting
from runner.model.errors import Category, InfrastructureError, LogicError, TransientError
from runner.model.manifest import Manifest, State, Step
from runner.model.names import log_key
from runner.model.redaction import Redaction
from runner.model.spec import JobSpec, Stage
from tests.support.documents import job_spec
from tests.support.flow_world import Turn, World
from tests.support.site import Site

TOKEN = "p'ss\"w/rd+Q8 %s<&>é\\end-of-it-7Z"
"""For the environment: it looks otherwise in each encoding."""
KEY = "AKIAIOSFODNN7EXAMPLEKEY"
"""For dbt's vars: of letters, so that it can be a part of names."""

PROJECT = {
    "dbt_project.yml": 'name: small\nprofile: small\nversion: 1.0.0\non-run-start: ["{{ tell() }}"]\n',
    "macros/tell.sql": """
{% macro tell() %}
  {{ log("the token is " ~ env_var("TOKEN"), info=true) }}
  {{ print("printed: " ~ env_var("TOKEN") ~ " and " ~ var("key")) }}
  {{ log(tojson({"token": env_var("TOKEN")}), info=true) }}
  {{ exceptions.warn("careful with " ~ env_var("TOKEN")) }}
  SELECT '{{ env_var("TOKEN") | replace("'", "''") }}'
{% endmacro %}
""",
    "models/told/told.sql": """
{{ config(materialized="table", meta={"token": env_var("TOKEN")}) }}
-- {{ env_var("TOKEN") }}
SELECT length('{{ env_var("TOKEN") | replace("'", "''") }}') AS n, length('{{ var("key") }}') AS m, 'word' AS word
""",
    "models/told/encoded.py": """
import base64, html, json, os, shlex, sys, urllib.parse

def model(dbt, session):
    dbt.config(materialized="table")
    token = os.environ["TOKEN"]
    print(json.dumps(dict(os.environ)))
    for length in range(16 * 1024 - len(token.encode()) - 1, 16 * 1024 + 1, 5):
        print("." * length + token)  # longer than a line of a log is
    print(repr(os.environ), ascii(token), token.encode())
    print(urllib.parse.quote(token), urllib.parse.quote_plus(token), urllib.parse.urlencode({"token": token}))
    print(html.escape(token), shlex.quote(token), token.encode().hex(), token.encode().hex().upper())
    for before in ("", "a", "ab"):
        print("Authorization: Basic", base64.b64encode(f"{before}:{token}".encode()).decode())
        print("jwt:", base64.urlsafe_b64encode(json.dumps({before: token}).encode()).decode(), file=sys.stderr)
    return session.sql("SELECT 1 AS one")
""",
    "models/told/models.yml": """
models:
  - name: told
    description: "{{ env_var('TOKEN') }} {{ var('key') }}"
    config: {tags: ["{{ var('key') }}"]}
    columns:
      - name: word
        data_tests:
          - accepted_values: {arguments: {values: ["{{ var('key') }}"]}, config: {severity: warn}}
""",
    "models/fails/no_number.sql": """
{{ config(materialized="table") }} SELECT '{{ env_var("TOKEN") | replace("'", "''") }}'::INTEGER AS n
""",
    "models/fails/far_right.sql": """
{{ config(materialized="table") }} SELECT 1 FROMM x WHERE the_key_that_opens_all_of_it = '{{ var("key") }}'
""",
    "models/fails/raises.py": """
import os

def model(dbt, session):
    token = os.environ["TOKEN"]
    if token:
        raise PermissionError(f"no entry with {token}, and that is all there is to say")
    return session.sql("SELECT 1 AS one")
""",
    "models/dies/dies.py": """
import os

def model(dbt, session):
    print("these were my last words:", os.environ["TOKEN"], flush=True)
    os._exit(3)
    return session.sql("SELECT 1 AS one")
""",
}


@dataclass(frozen=True)
class Launched:
    """A job that was run by `runner work`, and what that printed."""

    spec: JobSpec
    manifest: Manifest
    printed: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def commit(site: Site) -> str:
    return site.commit(PROJECT)


@pytest.fixture(scope="module")
def secrets(site: Site) -> Mapping[str, str]:
    """Names of the two in the store."""
    client, folder = site.app.aws.secretsmanager(), f"t{uuid4().hex[:10]}"
    names = {"TOKEN": f"{folder}/token", "key": f"{folder}/key"}
    for name, text in zip(names.values(), (TOKEN, KEY), strict=True):
        client.create_secret(Name=site.settings.secret_prefix + name, SecretString=text)
    return MappingProxyType(names)


def spec_of(site: Site, commit: str, secrets: Mapping[str, str], folder: str, relation: str, **given: Any) -> JobSpec:
    work = {
        "kind": "dbt",
        "steps": [{"command": "build", "select": [f"path:models/{folder}"]}],
        "env": {"TOKEN": {"secret": secrets["TOKEN"]}},
        "vars": {"key": {"secret": secrets["key"]}},
    }
    outputs = [{"dataset": f"told.{folder}", "from": f"main.{relation}"}]
    return site.spec(commit, "transform", work, outputs=outputs, **given)


def launch(site: Site, spec: JobSpec) -> Launched:
    site.app.client.submit(spec)
    printed = site.run("work", "transform", "--max-jobs", "1", "--idle-timeout", "5", check=False)
    manifest = site.app.client.manifest(spec.run_id)
    assert manifest is not None, printed.stderr
    return Launched(spec, manifest, printed)


@pytest.fixture(scope="module")
def told(site: Site, commit: str, secrets: Mapping[str, str]) -> Launched:
    return launch(site, spec_of(site, commit, secrets, "told", "told"))


@pytest.fixture(scope="module")
def failed(site: Site, commit: str, secrets: Mapping[str, str]) -> Launched:
    return launch(site, spec_of(site, commit, secrets, "fails", "no_number", publish="passing"))


@pytest.fixture(scope="module")
def dead(site: Site, commit: str, secrets: Mapping[str, str]) -> Launched:
    return launch(site, spec_of(site, commit, secrets, "dies", "dies", max_attempts=1))


# ---------------------------------------------------------------- where something may be found


def everything(site: Site) -> Iterator[tuple[str, bytes]]:
    """All that is kept of the site: its bucket, its database, its dead letters, its folder on disk."""
    for key in site.app.objects.list(""):
        yield f"s3 {key}", site.app.objects.get(key) or b""
    yield from rows_of(site.env["RUNNER_LEDGER_URL"])
    for stage in Stage:
        for letter in site.app.letters.look(stage, limit=10):
            yield f"dead letter {letter.message_id}", f"{letter.body}\n{letter.reason}".encode()
            site.app.letters.put_back(letter)
    for path in sorted(site.settings.home.rglob("*")):
        if path.is_file():
            yield f"disk {path}", path.read_bytes()


def rows_of(ledger_url: str) -> Iterator[tuple[str, bytes]]:
    with psycopg.connect(ledger_url) as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        for schema, table in tables:
            rows = connection.execute(SQL("SELECT t::text FROM {} t").format(Identifier(schema, table))).fetchall()
            yield f"ledger {schema}.{table}", "\n".join(row[0] for row in rows).encode()


def traces(secret: str) -> dict[str, bytes]:
    """How a secret is looked for, by code of the test's own; of base64 what it has in common wherever it begins."""
    raw = secret.encode()
    written = {
        "as it is": secret,
        "JSON": json.dumps(secret)[1:-1],
        "JSON in Unicode": json.dumps(secret, ensure_ascii=False)[1:-1],
        "JSON in JSON": json.dumps(json.dumps(secret))[3:-3],
        "SQL": secret.replace("'", "''"),
        "SQL in JSON": json.dumps(secret.replace("'", "''"))[1:-1],
        "Python": repr(secret)[1:-1],
        "a URL": quote(secret),
        "a form": quote_plus(secret),
        "hex": raw.hex(),
        "upper hex": raw.hex().upper(),
        # Of any encoding that leaves letters alone.
        "its end": secret[-12:],
        "its beginning": secret[:9] if secret == KEY else secret[:4],
    }
    for offset in range(3):
        digits = base64.b64encode(b"\0" * offset + raw).decode()
        written[f"base64 from byte {offset}"] = digits[4:][: len(digits) - 8]
    return {name: text.encode() for name, text in written.items()}


def found(places: Iterator[tuple[str, bytes]]) -> list[str]:
    """What of the secrets stands in these places, as they are and with their JSON read."""
    looked = [(place, content + read(content)) for place, content in places]
    assert looked
    return [
        f"{place}: {name} of {secret[:4]}…"
        for place, content in looked
        for secret in (TOKEN, KEY)
        for name, trace in traces(secret).items()
        if trace in content
    ]


def read(content: bytes) -> bytes:
    """The texts of a JSON document, or of each line that is one."""
    found: list[str] = []
    for document in (content, *content.splitlines()):
        with suppress(ValueError):
            found += texts(json.loads(document))
    return "\n".join(["", *found]).encode(errors="surrogatepass")


def texts(node: Any) -> Iterator[str]:
    match node:
        case str():
            yield node
        case dict():
            for key, value in node.items():
                yield from (key, *texts(value))
        case list():
            for value in node:
                yield from texts(value)


# ---------------------------------------------------------------- nothing is found


def test_a_job_gets_its_secrets_and_its_record_has_their_names_alone(
    site: Site, told: Launched, secrets: Mapping[str, str]
) -> None:
    assert told.manifest.state is State.SUCCEEDED, told.manifest.failure
    assert site.rows("told.told", "n, m") == [(len(TOKEN), len(KEY))]
    work = json.loads(told.manifest.spec.to_json())["work"]
    assert (work["env"], work["vars"]) == ({"TOKEN": {"secret": secrets["TOKEN"]}}, {"key": {"secret": secrets["key"]}})
    assert told.manifest.spec.digest() == told.manifest.spec_sha256 == told.spec.digest()


def test_a_job_that_shows_its_secrets_in_every_way_leaves_none_behind(site: Site, told: Launched) -> None:
    assert found(everything(site)) == []
    said = [("standard error", told.printed.stderr.encode()), ("standard output", told.printed.stdout.encode())]
    assert found(iter(said)) == []
    log = "\n".join(str(line["message"]) for line in site.app.client.log(told.spec.run_id))
    mark = f"[secret {told.spec.secrets[1]}]"
    # What the hook printed, what dbt warned of, and each line of the Python model.
    assert log.count(mark) > 12
    for way in (f"printed: {mark}", f"careful with {mark}", f'"TOKEN": "{mark}"', f"token={mark}"):
        assert way in log
    assert [line for line in log.splitlines() if line.startswith("Authorization: Basic") and mark not in line] == []


def test_what_dbt_wrote_is_kept_and_readable_without_them(site: Site, told: Launched) -> None:
    kept = {file.uri.rpartition("/")[2]: file for file in told.manifest.report.artifacts}
    assert {"manifest.json", "run_results.1.json"} <= kept.keys()
    bodies = {
        name: site.app.objects.get(file.uri.removeprefix(site.app.objects.uri(""))) for name, file in kept.items()
    }
    manifest = json.loads(bodies["manifest.json"] or b"")
    node = manifest["nodes"]["model.small.told"]
    token, key = (f"[secret {name}]" for name in (told.spec.secrets[1], told.spec.secrets[0]))
    assert node["config"]["meta"] == {"token": token}
    assert f"length('{token}')" in node["compiled_code"]
    assert key in node["config"]["tags"]
    (step,) = [step for step in told.manifest.report.steps if step.name == "model.small.told"]
    assert step.compiled_sha256 == sha256(node["compiled_code"].encode()).hexdigest(), "a hash of what nobody may know"
    results = json.loads(bodies["run_results.1.json"] or b"")
    assert results["args"]["vars"] == {"key": key}


def test_a_job_that_fails_over_its_secrets_tells_why_without_them(site: Site, failed: Launched) -> None:
    assert failed.manifest.state is State.FAILED
    messages = {step.name: step.message or "" for step in failed.manifest.report.steps if step.status == "error"}
    token, key = (f"[secret {name}]" for name in (failed.spec.secrets[1], failed.spec.secrets[0]))
    assert f"Could not convert string '{token}' to INT32" in messages["model.small.no_number"]
    assert key in messages["model.small.far_right"]
    assert f"no entry with {token}" in messages["model.small.raises"]
    assert found(everything(site)) == []
    assert found(iter([("printed", (failed.printed.stderr + failed.printed.stdout).encode())])) == []


def test_the_last_words_of_a_job_that_died_reach_the_dead_letters_without_them(site: Site, dead: Launched) -> None:
    assert dead.manifest.failure is not None
    assert dead.manifest.failure.category is Category.INFRASTRUCTURE
    last_words = f"these were my last words: [secret {dead.spec.secrets[1]}]"
    assert last_words in dead.manifest.failure.message
    assert last_words in str(site.app.ledger.attempts(dead.spec.run_id)[0].failure)
    (letter,) = site.app.letters.look(Stage.TRANSFORM, limit=10)
    site.app.letters.put_back(letter)
    assert last_words in str(letter.reason)
    assert found(everything(site)) == []
    assert found(iter([("printed", (dead.printed.stderr + dead.printed.stdout).encode())])) == []


def test_without_the_redaction_they_are_found_everywhere(
    site: Site, commit: str, secrets: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the worker's redaction, that is; the child has taken them out of what it cuts already."""
    monkeypatch.setattr(Redaction, "_spans", lambda redaction, data: [])
    manifest = site.end(spec_of(site, commit, secrets, "told", "told"))
    assert manifest.state is State.SUCCEEDED, manifest.failure
    run = str(manifest.run_id)
    of_the_run = (each for each in everything(site) if run in each[0] or run.encode() in each[1])
    leaks = found(of_the_run)
    places = {leak.partition(": ")[0].rpartition("/")[2] for leak in leaks}
    assert {"log.1.jsonl", "manifest.json", "run_results.1.json"} <= places
    for name in traces(TOKEN):
        assert [leak for leak in leaks if f": {name} of {TOKEN[:4]}" in leak], name


# ---------------------------------------------------------------- in the flow


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.secrets.put("api/token", TOKEN)
    return made


def transform(name: str = "api/token", **given: Any) -> JobSpec:
    work = {"kind": "dbt", "steps": [{"command": "build"}], "env": {"TOKEN": {"secret": name}}, "vars": {"b": "x"}}
    return job_spec(work=work, **given)


def log_of(world: World, spec: JobSpec) -> str:
    return (world.objects.get(log_key(spec.run_id, 1)) or b"").decode()


def test_the_engine_gets_the_texts_of_what_its_work_refers_to_and_no_others(world: World) -> None:
    world.secrets.put("other", "of another team")
    spec = transform(params={"other": {"secret": "other"}})
    assert world.run(spec).state is State.SUCCEEDED
    assert world.engine.secrets == {"api/token": TOKEN}
    assert world.engine.jobs[0].work == spec.work
    assert world.run(job_spec("query")).state is State.SUCCEEDED
    assert world.engine.secrets == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "secret 'api/token': expected one of that name, got none"),
        ("", "secret api/token: expected 8 to 16,384 characters, got another number"),
        ("1234567", "secret api/token: expected 8 to 16,384 characters, got another number"),
        ("x" * 16_385, "secret api/token: expected 8 to 16,384 characters, got another number"),
        ("  1234567 \n", "secret api/token: expected 8 to 16,384 characters, got another number"),
        ("12345678\0", "secret api/token: expected text that an environment can hold, got a NUL in it"),
    ],
)
def test_a_secret_that_cannot_be_used_ends_the_run_before_anything_is_executed(
    tmp_path: Path, text: str | None, message: str
) -> None:
    world = World(tmp_path)
    if text is not None:
        world.secrets.put("api/token", text)
    failure = world.run(transform()).failure
    assert failure is not None
    assert (failure.category, failure.message, failure.subject) == (Category.SPEC, message, "api/token")
    assert world.engine.jobs == []


def test_secrets_that_are_away_give_the_run_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(name: str) -> str:
        raise InfrastructureError(f"secret {name}: expected an answer, got none")

    spec = world.submit(transform())
    with monkeypatch.context() as until_then:
        until_then.setattr(world.secrets, "get", away)
        assert isinstance(world.deliver(Stage.TRANSFORM), Waiting)
    assert world.engine.jobs == []
    world.work_off(Stage.TRANSFORM)
    assert world.manifest(spec).state is State.SUCCEEDED


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LogicError(f"no column {TOKEN}", hint=f"give {TOKEN}", subject=TOKEN), "no column {}"),
        (RuntimeError(f"a fault with {TOKEN!r}"), "unexpected RuntimeError: a fault with '{}'"),
    ],
)
def test_an_error_is_told_without_the_secrets_whatever_it_is(world: World, error: Exception, said: str) -> None:
    world.engine.script = [Turn(raises=error)]
    spec = transform(max_attempts=1)
    failure = world.run(spec).failure
    assert failure is not None
    assert failure.message == said.format("[secret api/token]")
    assert "[secret api/token]" in log_of(world, spec)
    assert found(of(world, spec)) == []


def test_what_an_attempt_failed_of_is_told_without_the_secrets_though_it_is_tried_again(world: World) -> None:
    world.engine.script = [Turn(raises=TransientError(f"lost {TOKEN}"))]
    spec = transform()
    assert world.run(spec).state is State.SUCCEEDED
    (first, _) = world.ledger.attempts(spec.run_id)
    assert first.failure is not None
    assert first.failure.message == "lost [secret api/token]"
    assert found(of(world, spec)) == []


def test_what_the_engine_tells_of_its_work_is_kept_without_the_secrets(world: World) -> None:
    step = Step(name=f"test.{TOKEN}", kind="test", status="warn", message=f"got {json.dumps(TOKEN)}")
    world.engine.script = [Turn(steps=(step,), counts={TOKEN: 3}, claims=("staging.flights", TOKEN))]
    spec = transform()
    report = world.run(spec).report
    assert [(each.name, each.message) for each in report.steps] == [
        ("test.[secret api/token]", 'got "[secret api/token]"')
    ]
    assert report.counts == {"[secret api/token]": 3}
    assert found(of(world, spec)) == []


def test_without_the_redaction_they_are_in_the_record_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Redaction, "_spans", lambda redaction, data: [])
    world.engine.script = [Turn(raises=TransientError(f"lost {TOKEN}")), Turn(raises=LogicError(f"no column {TOKEN}"))]
    spec = transform()
    world.run(spec)
    places = {leak.partition(": ")[0].rpartition("/")[2] for leak in found(of(world, spec))}
    assert places == {"log.1.jsonl", "log.2.jsonl", "manifest.json", "manifest", "attempts"}


def test_a_dataset_that_is_called_like_a_secret_is_found_and_published(world: World) -> None:
    world.secrets.put("db", "delays_of")
    world.publish("staging.delays_of_flights")
    world.engine.script = [Turn(claims=("STAGING.delays_of_flights".lower(),))]
    spec = transform(
        "db",
        inputs=[{"dataset": "staging.delays_of_flights"}],
        outputs=[{"dataset": "marts.delays_of_x", "from": "main.delays_of_x"}],
    )
    manifest = world.run(spec)
    assert manifest.failure is None
    (output,) = manifest.outputs
    assert (output.dataset, output.claimed_inputs) == ("marts.delays_of_x", ("staging.delays_of_flights",))
    assert [each.claimed for each in manifest.report.inputs] == [True]


def of(world: World, spec: JobSpec) -> Iterator[tuple[str, bytes]]:
    """All that is kept of a run."""
    for key in world.objects.list(""):
        yield key, world.objects.get(key) or b""
    yield "manifest", world.manifest(spec).to_json().encode()
    yield "attempts", repr(world.ledger.attempts(spec.run_id)).encode()
