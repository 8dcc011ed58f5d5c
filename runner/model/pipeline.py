"""The pipeline file: stages of one pipeline, in the order that their datasets give, as analysts write it in YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal
from uuid import UUID

import yaml
from pydantic import Field, field_validator

from runner.model.errors import SpecError
from runner.model.names import Identifier
from runner.model.spec import (
    Input,
    JobSpec,
    Logic,
    Output,
    Resources,
    SecretRef,
    Stage,
    TextOrSecret,
    Work,
    parse_spec,
)
from runner.model.strict import MAX_DOCUMENT_BYTES, Strict, parse_document, shown

_PARAMETER = re.compile(r"\$(?:(\$)|\{([^{}]*)\})")
_MAX_FILLED_CHARACTERS = 1024 * 1024
"""What values may add to a file: a short one that names a long value often enough stands for gigabytes."""


class PipelineStage(Strict):
    """One step: a job spec without what a launch gives it."""

    task: Identifier
    stage: Stage
    work: Work
    inputs: tuple[Input, ...] = ()
    outputs: Annotated[tuple[Output, ...], Field(min_length=1)]
    resources: Resources = Resources()
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    publish: Literal["all", "passing"] = "all"
    labels: dict[Identifier, str] = {}


class PipelineFile(Strict):
    """`pipelines/<name>.yaml`. Its JSON Schema is `schemas/pipeline.json`."""

    pipeline_version: Literal[1]
    name: Identifier
    description: str = ""
    owner: str = ""
    params: dict[Identifier, TextOrSecret] = {}
    """Defaults; `${name}` in any text of the stages stands for the value, `$$` for a dollar sign.

    One that is a secret may stand only as the whole of a value of `work.env` or `work.vars`.
    """
    stages: Annotated[tuple[PipelineStage, ...], Field(min_length=1)]

    @field_validator("stages")
    @classmethod
    def _in_order(cls, stages: tuple[PipelineStage, ...]) -> tuple[PipelineStage, ...]:
        return tuple(_ordered(stages))

    def specs(
        self,
        *,
        logic: Logic,
        params: Mapping[str, TextOrSecret],
        logical_time: datetime,
        pipeline_run: UUID,
        run_ids: Iterator[UUID],
    ) -> list[JobSpec]:
        """A job spec for each stage, in an order in which every input is made before it is read.

        Raises `SpecError` naming the task and the field: a stage can be well-formed and its spec refused.
        """
        launch = {
            "spec_version": 1,
            "pipeline": self.name,
            "pipeline_run": str(pipeline_run),
            "logic": logic.model_dump(mode="json", by_alias=True),
            "logical_time": logical_time.isoformat(),
            "params": {
                name: value.model_dump() if isinstance(value, SecretRef) else value for name, value in params.items()
            },
        }
        specs = []
        for stage in self.stages:
            document = launch | stage.model_dump(mode="json", by_alias=True) | {"run_id": str(next(run_ids))}
            raw = json.dumps(document, ensure_ascii=False)
            specs.append(parse_spec(raw, what=f"pipeline {self.name}, task {stage.task}"))
        return specs


def parse_pipeline(raw: bytes, *, what: str, params: Mapping[str, str]) -> tuple[PipelineFile, dict[str, TextOrSecret]]:
    """Parse a pipeline file with `params` in place of its defaults.

    Returns the file and the parameters in force. Raises `SpecError` naming the file, the field, what was expected
    and what came; a parameter that the file does not know is an error, so is `${…}` without a value, and so is text
    for a parameter that is a secret.
    """
    document = load_yaml(raw, what=what)
    if not isinstance(document, dict):
        raise SpecError(f"{what}: expected a mapping at the top, got {type(document).__name__}")
    defaults = document.get("params", {})
    known = dict(defaults) if isinstance(defaults, dict) else {}
    for name in params:
        if name not in known:
            expected = f"one of {shown(', '.join(sorted(known)))}" if known else "no parameter"
            raise SpecError(f"{what}: params: expected {expected}, got {name!r}", subject="params")
        if isinstance(known[name], dict):
            # Not even to name another one: who types the secret itself would see it stored, here as its name.
            raise SpecError(
                f"{what}: params.{name}: expected the file's own value, as that is a secret, got a text",
                subject=f"params.{name}",
                hint="a spec is kept, and shown to whoever asks: name another secret in the file, or a plain text",
            )
    in_force = {**known, **params}
    if "stages" in document:
        document["stages"] = _filled(document["stages"], in_force, what)
    pipeline = parse_document(PipelineFile, document, what=what)
    return pipeline, {**pipeline.params, **params}


def load_yaml(raw: bytes, *, what: str) -> Any:
    """YAML that says what JSON can say: keys are text and given once, a date is text.

    No aliases, a few lines of which can stand for gigabytes, and no tags. Raises `SpecError` naming line and column.
    """
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise SpecError(f"{what}: expected at most {MAX_DOCUMENT_BYTES:,} bytes, got {len(raw):,}")
    try:
        return yaml.load(raw, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader's subclass
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" at line {mark.line + 1} column {mark.column + 1}" if mark else ""
        problem = getattr(exc, "problem", None) or str(exc).splitlines()[0]
        raise SpecError(f"{what}: expected YAML, got {problem[:200]}{where}") from exc
    except (ValueError, OverflowError) as exc:  # PyYAML lets chr() speak for an escape, and int() for a directive
        raise SpecError(f"{what}: expected YAML, got {str(exc)[:200]}") from exc
    except RecursionError as exc:
        raise SpecError(f"{what}: expected YAML, got one nested too deeply") from exc


class _PlainLoader(yaml.SafeLoader):
    yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it out
        if isinstance(event, yaml.AliasEvent):
            raise _refused("an alias, which is not allowed", event)
        if event.tag is not None:
            raise _refused(f"the tag {event.tag!r}, which is not allowed", event)
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            made = super().construct_object(node, deep)
            if isinstance(made, int):
                str(made)  # Python reads any number of hex digits, and writes 4,300 decimal ones at most
            elif isinstance(made, str) and not made.isascii():
                # JSON may escape a character as two halves, which belong together.
                made = made.encode("utf-16", "surrogatepass").decode("utf-16")
            return made
        except UnicodeDecodeError as exc:
            raise _refused("half a surrogate pair", node) from exc
        except (ValueError, OverflowError) as exc:  # PyYAML lets int() and float() speak for themselves
            raise _refused(f"{node.value[:40]!r}, which is not the number it looks like", node) from exc

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refused(f"the key {key!r}, which is not text", key_node)
            if key in seen:
                raise _refused(f"the key {key!r} twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _refused(what: str, where: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, where.start_mark)


def _filled(document: Any, params: Mapping[str, Any], what: str) -> Any:
    room = _MAX_FILLED_CHARACTERS

    def value_of(match: re.Match[str], place: tuple[str | int, ...]) -> str:
        nonlocal room
        if match[1]:
            return "$"
        if match[2] not in params:
            raise SpecError(f"{what}: expected a value in params for {match[0][:80]!r}, got none", subject="params")
        if isinstance(params[match[2]], dict):
            field = "stages" + "".join(f"[{part}]" if isinstance(part, int) else f".{shown(part)}" for part in place)
            raise SpecError(
                f"{what}: {field}: expected a text without secrets, got {match[0]!r}",
                subject=field,
                hint="a secret is the whole of a value in work.env or work.vars of dbt, and stands nowhere else",
            )
        value = str(params[match[2]])
        room -= len(value)
        if room < 0:
            raise SpecError(
                f"{what}: expected at most {_MAX_FILLED_CHARACTERS:,} characters from params, got more",
                subject="params",
            )
        return value

    def filled(node: Any, place: tuple[str | int, ...]) -> Any:
        if isinstance(node, dict):
            return {key: filled(value, (*place, key)) for key, value in node.items()}
        if isinstance(node, list):
            return [filled(value, (*place, index)) for index, value in enumerate(node)]
        if not isinstance(node, str):
            return node
        alone = _PARAMETER.fullmatch(node)
        if alone and isinstance(params.get(alone[2]), dict) and _takes_secrets(place):
            return params[alone[2]]
        return _PARAMETER.sub(lambda match: value_of(match, place), node)

    return filled(document, ())


def _takes_secrets(place: tuple[str | int, ...]) -> bool:
    """Whether it is a value of a stage's `work.env` or `work.vars`."""
    return len(place) == 4 and place[1] == "work" and place[2] in ("env", "vars")


def _ordered(stages: tuple[PipelineStage, ...]) -> Iterator[PipelineStage]:
    """Writers before readers; otherwise as the file has them."""
    tasks = [stage.task for stage in stages]
    by_task = dict(zip(tasks, stages, strict=True))
    if len(by_task) != len(stages):
        twice = next(task for task in tasks if tasks.count(task) > 1)
        raise ValueError(f"expected each task once, got {twice!r} {tasks.count(twice)} times")
    writer: dict[str, str] = {}
    for stage in stages:
        for output in stage.outputs:
            if output.dataset in writer:
                raise ValueError(
                    f"expected one writer of {output.dataset}, got {writer[output.dataset]!r} and {stage.task!r}"
                )
            writer[output.dataset] = stage.task
    waits_for = {
        stage.task: {writer[each.dataset] for each in stage.inputs if each.dataset in writer} for stage in stages
    }
    try:
        order = list(TopologicalSorter(waits_for).static_order())
    except CycleError as exc:
        raise ValueError(f"expected no cycle of datasets, got {' -> '.join(exc.args[1])}") from exc
    placed: set[str] = set()
    remaining = list(tasks)
    while len(placed) < len(order):
        ready = next(task for task in remaining if waits_for[task] <= placed)
        remaining.remove(ready)
        placed.add(ready)
        yield by_task[ready]
