"""The committed JSON Schemas say what the models say, as far as a schema can."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from jsonschema import Draft202012Validator

from runner.model.pipeline import load_yaml
from runner.model.schemas import documents, file_text, write
from runner.model.spec import Stage
from tests.support.documents import input_record, job_spec, manifest_of, output_record, spec_document, spec_documents

ROOT = Path(__file__).parents[2]
NAMES = ["manifest.json", "pipeline.json", "spec.json"]
VALIDATORS = {name: Draft202012Validator(document) for name, document in documents().items()}
PIPELINES = sorted((ROOT / "dbt" / "pipelines").glob("*.yaml"))


def faults(name: str, document: Mapping[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATORS[name].iter_errors(document)]


def test_there_is_a_schema_for_each_document_that_crosses_the_door() -> None:
    assert sorted(path.name for path in (ROOT / "schemas").iterdir()) == NAMES == sorted(documents())


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_schema_is_the_models(name: str) -> None:
    committed = (ROOT / "schemas" / name).read_text(encoding="utf-8")
    assert committed == file_text(documents()[name]), f"schemas/{name} is not its model's: run `make schemas`"


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_valid_and_says_what_it_is(name: str) -> None:
    document = documents()[name]
    Draft202012Validator.check_schema(document)
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert document["$id"] == name
    assert document["title"].endswith(" of stage-runner")


def test_writing_makes_the_folder_and_every_file(tmp_path: Path) -> None:
    write(tmp_path / "new" / "schemas")
    assert sorted(path.name for path in (tmp_path / "new" / "schemas").iterdir()) == NAMES


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_the_sample_pipeline_file_is_valid_as_it_is_written(path: Path) -> None:
    assert faults("pipeline.json", load_yaml(path.read_bytes(), what=path.name)) == []


def test_a_pipeline_file_with_a_fault_is_not() -> None:
    document = yaml.safe_load(PIPELINES[0].read_bytes())
    document["stages"][0]["work"]["sources"][0]["url"] = "file:///etc/passwd"
    assert faults("pipeline.json", document)
    assert faults("pipeline.json", {**document, "name": "${name}"}), "only stages are filled from params"


@pytest.mark.parametrize("stage", [stage.value for stage in Stage])
def test_an_example_spec_of_each_stage_is_valid(stage: str) -> None:
    assert faults("spec.json", spec_document(stage)) == []
    assert faults("spec.json", json.loads(job_spec(stage).to_json())) == [], "with its defaults written out, too"


@settings(deadline=None)
@given(spec_documents())
def test_whatever_the_model_accepts_the_schema_accepts(document: dict[str, Any]) -> None:
    assert faults("spec.json", document) == []


@pytest.mark.parametrize(
    "change",
    [
        {"color": "red"},
        {"spec_version": 2},
        {"pipeline": "Flights"},
        {"params": {"My Param": "x"}},
        {"labels": {"x": 1}},
        {"logic": {"repo": "https://x", "commit": "main"}},
        {"inputs": [{"dataset": "flights"}]},
        {"inputs": [{"dataset": "a.b", "as_": "c"}]},
        {"outputs": []},
        {"outputs": [{"dataset": "a.b", "mode": "upsert"}]},
        {"work": {"kind": "spark"}},
        {"work": {"kind": "dbt", "steps": []}},
        {"work": {"kind": "dbt", "steps": [{"command": "build"}], "env": {"A B": "x"}}},
        {"max_attempts": 0},
    ],
    ids=str,
)
def test_what_a_schema_can_refuse_it_refuses(change: dict[str, Any]) -> None:
    assert faults("spec.json", {**spec_document(), **change})


def test_a_manifest_is_valid_as_it_is_written() -> None:
    manifest = manifest_of(output_record("marts.delays"), inputs=(input_record("staging.flights", as_="s"),))
    assert faults("manifest.json", json.loads(manifest.to_json())) == []
