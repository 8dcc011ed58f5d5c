"""The documents are true: what they list is what the code has, and their examples are what the code accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID
from xml.etree import ElementTree as ET

import pytest

from runner.adapters.git_objects import archive_key, production_key
from runner.config import Settings
from runner.model import names
from runner.model.errors import Category, Failure, SpecError
from runner.model.hosts import HostRules
from runner.model.manifest import Manifest
from runner.model.pipeline import parse_pipeline
from runner.model.policy import POLICY, exit_code
from runner.model.redaction import LONGEST_SECRET, SHORTEST_SECRET
from runner.model.spec import (
    CsvFormat,
    DbtStep,
    DbtWork,
    ExtractWork,
    JobSpec,
    JsonFormat,
    JsonLinesFormat,
    LoadWork,
    ParquetFormat,
    QueryWork,
    SecretRef,
    Source,
    Stage,
    parse_spec,
)
from runner.model.strict import Strict, parse_json

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
RUN, EFFECT, PLAN = UUID(int=7), UUID(int=8), UUID(int=9)


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def section(name: str, heading: str) -> str:
    """What stands below a heading, up to the next one of any level."""
    return page(name).partition(f"\n{heading}\n")[2].partition("\n#")[0]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of a page's tables, without head and rule; backticks taken off."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        for line in table.splitlines()[2:]:
            yield [cell.strip().strip("`") for cell in line.strip("|").split(" | ")]


def example(name: str, mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)\n```", page(name), re.DOTALL)
    assert found, f"{name} has no example {mark!r}"
    return found[1]


# ---------------------------------------------------------------- settings


def settings() -> dict[str, object]:
    """By variable: each setting's default."""
    return {
        str(field.validation_alias or f"RUNNER_{name.upper()}"): field.default
        for name, field in Settings.model_fields.items()
    }


def test_each_setting_is_on_the_page_and_no_other() -> None:
    assert [row[0] for row in rows(section("configuration.md", "## Settings"))] == list(settings())


def test_no_page_names_a_variable_that_is_no_setting() -> None:
    named = {name for each in PAGES for name in re.findall(r"\bRUNNER_[A-Z_]+", each.read_text("utf-8"))}
    # What begins with RUNNER_TEST_ is the tests' own and steers nothing of the product.
    assert {name for name in named if not name.startswith("RUNNER_TEST_")} <= set(settings())


def test_each_default_is_the_one_in_force() -> None:
    for variable, default, *_ in rows(section("configuration.md", "## Settings")):
        value = settings()[variable]
        listed = ", ".join(value) or "none" if isinstance(value, tuple) else str(value)
        assert default == ("not set" if value is None else listed), variable


@pytest.mark.parametrize("row", list(rows(section("configuration.md", "## Hosts that extract may talk to"))), ids=str)
def test_each_example_of_a_host_is_judged_as_it_says(row: list[str]) -> None:
    entries, address, resolved, verdict = row
    url = urlsplit(address)
    host, port = url.hostname or "", url.port or {"http": 80, "https": 443}[url.scheme]
    rules = HostRules.parse(entry.strip() for entry in entries.split(","))
    allowed = True
    try:
        rules.require_host(host, port, what="source", subject="source")
        rules.require_address(resolved, host, port, what="source", subject="source")
    except SpecError:
        allowed = False
    assert allowed is (verdict == "allowed")
    assert allowed or verdict.startswith("refused: ")


# ---------------------------------------------------------------- errors


def test_each_category_is_in_the_table_with_its_rule() -> None:
    told = {row[0]: row[1:4] for row in rows(section("errors.md", "## Categories"))}
    assert told == {
        category.value: [
            "yes" if POLICY[category].retry else "no",
            "yes" if POLICY[category].alert else "no",
            str(exit_code(Failure(category=category, message="x"))),
        ]
        for category in Category
    }


@pytest.mark.parametrize("category", list(Category))
def test_each_category_has_messages_and_what_to_do(category: Category) -> None:
    told = section("errors.md", f"### `{category.value}`")
    assert "```text\n" in told
    assert told.rpartition("```")[2].strip(), "and what to do"


def test_the_exit_codes_are_the_policys() -> None:
    told = {int(row[0]) for row in rows(section("errors.md", "## Exit codes"))}
    assert told == {exit_code(None), *(exit_code(Failure(category=each, message="x")) for each in Category)}


# ---------------------------------------------------------------- spec, pipeline, manifest


def stored_spec() -> JobSpec:
    return parse_spec(example("spec-and-manifest.md", "spec: stored"))


def test_the_stored_spec_is_one_with_all_its_defaults_written_out() -> None:
    text = example("spec-and-manifest.md", "spec: stored")
    assert json.loads(text) == json.loads(stored_spec().to_json())


def test_the_written_spec_becomes_the_stored_one_by_what_submit_fills_in() -> None:
    stored = stored_spec()
    written = json.loads(example("spec-and-manifest.md", "spec: written"))
    written |= {"run_id": str(stored.run_id), "logical_time": stored.logical_time.isoformat()}
    written["logic"]["commit"] = stored.logic.commit
    assert parse_spec(json.dumps(written)) == stored


def test_each_field_of_a_spec_is_in_the_table() -> None:
    told = " ".join(row[0] for row in rows(section("spec-and-manifest.md", "## The job spec")))
    document = json.loads(stored_spec().to_json())
    fields = set(document) | set(document["outputs"][0]) | set(document["resources"]) | set(document["logic"])
    assert fields - set(re.findall(r"[a-z_]+", told)) == set()


@pytest.mark.parametrize(
    "model",
    [ExtractWork, Source, LoadWork, CsvFormat, JsonFormat, JsonLinesFormat, ParquetFormat, DbtWork, DbtStep, QueryWork],
)
def test_each_field_of_each_kind_of_work_is_in_a_table(model: type[Strict]) -> None:
    told = " ".join(row[0] for row in rows(section("spec-and-manifest.md", "## Work")))
    fields = {field.alias or name for name, field in model.model_fields.items()} - {"kind"}
    assert fields - set(re.findall(r"[a-z_]+", told)) == set()


def test_the_pipeline_file_is_one_and_begins_like_the_sample() -> None:
    text = example("spec-and-manifest.md", "pipeline: shortened")
    pipeline, params = parse_pipeline(text.encode(), what="example", params={})
    assert [stage.task for stage in pipeline.stages] == ["extract", "load_flights"]
    assert params == pipeline.params
    lines = (ROOT / "dbt/pipelines/flights.yaml").read_text("utf-8").splitlines()
    assert set(text.splitlines()) <= set(lines)


def test_the_pipeline_with_secrets_is_one_and_the_limits_are_the_codes() -> None:
    pipeline, params = parse_pipeline(
        example("spec-and-manifest.md", "pipeline: secret").encode(), what="example", params={}
    )
    (stage,) = pipeline.stages
    assert isinstance(stage.work, DbtWork)
    assert stage.work.env == {"API_TOKEN": params["token"], "MODE": "full"}
    assert stage.work.vars == {"signing_key": SecretRef(secret="prices/signing-key")}
    told = section("spec-and-manifest.md", "## Secrets")
    assert f"has not {SHORTEST_SECRET} to {LONGEST_SECRET:,} characters ends the run as `spec`" in told


def test_the_manifest_is_one_and_its_spec_has_the_hash_that_it_states() -> None:
    manifest = parse_json(Manifest, example("spec-and-manifest.md", "manifest: shortened"), what="example")
    assert manifest.spec.digest() == manifest.spec_sha256


# ---------------------------------------------------------------- concepts


def test_each_stage_is_named() -> None:
    words = section("concepts.md", "## The words")
    assert [stage.value for stage in Stage if f"`{stage.value}`" not in words] == []


def test_the_keys_are_those_that_the_code_makes() -> None:
    at = datetime(2026, 11, 21, tzinfo=UTC)
    made = {
        names.spec_key(RUN),
        names.manifest_key(RUN),
        names.artifacts_prefix(RUN, PLAN) + "…",
        names.log_key(RUN, 3).replace(".3.", ".<attempt>."),
        names.table_prefix("namespace.table") + "metadata/…",
        *(
            names.data_prefix(dataset, effect=EFFECT, run_id=RUN, attempt=3, plan_id=PLAN, written_at=at) + "…"
            for dataset in ("namespace.table", "layer/name")
        ),
        names.snapshots_prefix("layer/name") + "<version, 8 digits>.json",
        names.snapshots_prefix("layer/name") + names.rerun_branch(RUN).replace(RUN.hex, "<run id>") + ".json",
        *(
            re.sub(r"[0-9a-f]{16}", "<hash of the repository's address>", key)
            for key in (archive_key("https://x", "<commit>"), production_key("https://x", "<commit>", "<ref>"))
        ),
        names.package_archive_key("<sha256>"),
        names.hub_package_key("<namespace>/<name>", "<version>"),
        re.sub(r"[0-9a-f]{64}", "<sha256 of the address>", names.tarball_package_key("https://x")),
    }
    shown = {"namespace/table": "<namespace>/<table>", "layer/name": "<layer>/<name>", str(RUN): "<run_id>"}
    shown |= {str(EFFECT): "<effect>", str(PLAN): "<plan_id>"}
    shown |= {"/3/": "/<attempt>/", "2026-11-21": "<date>"}
    for plain, named in shown.items():
        made = {key.replace(plain, named) for key in made}
    assert {row[0] for row in rows(section("concepts.md", "## What is in the bucket"))} == made


# ---------------------------------------------------------------- all pages


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_each_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text("utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings]
            assert anchor in slugs, target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_each_file_of_the_code_that_is_named_is_there(path: Path) -> None:
    named = re.findall(r"`((?:runner|tests|benchmarks|schemas|dbt)/[\w./-]*)`", path.read_text("utf-8"))
    assert [each for each in named if not (ROOT / each).exists()] == []


def test_each_decision_is_in_the_index() -> None:
    index = page("README.md")
    decisions = sorted((DOCS / "decisions").glob("*.md"))
    assert [each.name for each in decisions if f"(decisions/{each.name})" not in index] == []
    for number, each in enumerate(decisions, 1):
        text = each.read_text("utf-8")
        assert text.startswith(f"# {number:03} ")
        assert all(f"**{part}.**" in text for part in ("Context", "Choice", "What it costs"))


def test_the_picture_stands_by_itself() -> None:
    """No external reference: GitHub shows none, and a reader may have no network."""
    picture = (DOCS / "flow.svg").read_text("utf-8")
    ET.fromstring(picture)  # noqa: S314 - a file of ours
    assert set(re.findall(r"https?://[^\s\"']+", picture)) == {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"url\(([^)]*)\)", picture)) <= {"#to"}
