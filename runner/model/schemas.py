"""The JSON Schemas of what crosses the door, for editors and for those who write specs: `schemas/*.json`.

They say what a schema can say; rules over several fields are the models' alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from runner.model.manifest import Manifest
from runner.model.pipeline import PipelineFile
from runner.model.spec import JobSpec
from runner.model.strict import Strict


def documents() -> dict[str, dict[str, Any]]:
    """Each schema by its file's name."""
    pipeline = _schema("pipeline.json", PipelineFile, "Pipeline file of stage-runner")
    return {
        "spec.json": _schema("spec.json", JobSpec, "Job spec of stage-runner"),
        "manifest.json": _schema("manifest.json", Manifest, "Run manifest of stage-runner"),
        # All but the top of the file is what parameters are filled into.
        "pipeline.json": {**pipeline, "$defs": _or_parameter(pipeline["$defs"])},
    }


def write(folder: Path) -> None:
    """Write each schema to its file in `folder`, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in documents().items():
        (folder / name).write_text(file_text(document), encoding="utf-8")


def file_text(document: dict[str, Any]) -> str:
    """A schema as its file has it: a key a line, so that a change shows as one."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


class _Generator(GenerateJsonSchema):
    def dict_schema(self, schema: Any) -> JsonSchemaValue:
        """pydantic states the form of a mapping's keys, and leaves keys of another form open."""
        stated = super().dict_schema(schema)
        return {**stated, "additionalProperties": False} if "patternProperties" in stated else stated

    def field_title_should_be_set(self, schema: Any) -> bool:
        """A field's name says what its title would."""
        return False


def _schema(name: str, model: type[Strict], title: str) -> dict[str, Any]:
    schema = model.model_json_schema(by_alias=True, schema_generator=_Generator)
    head = {"$schema": _Generator.schema_dialect, "$id": name, "title": title}
    return head | {key: value for key, value in schema.items() if key not in head}


def _or_parameter(node: Any) -> Any:
    """The schema of a file as it is written: where a text has a form, it may be made of `${parameter}` too."""
    if isinstance(node, list):
        return [_or_parameter(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        key: rf"{value}|\$\{{" if key == "pattern" and isinstance(value, str) else _or_parameter(value)
        for key, value in node.items()
    }


if __name__ == "__main__":
    write(Path(sys.argv[1]))
