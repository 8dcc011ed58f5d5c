"""The pipeline file: stages of one pipeline, in the order that their datasets give, as analysts write it in YAML."""

from __future__ import annotations

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
from runner.model.spec import Input, JobSpec, Logic, Output, Resources, Stage, Work
from runner.model.strict import MAX_DOCUMENT_BYTES, Strict, parse_document

_PARAMETER = re.compile(r"\$(?:(\$)|\{([a-z_][a-z0-9_]*)\})")


class PipelineStage(Strict):
    """One step: a job spec without what a launch gives it."""

    task: Identifier
    stage: Stage
    work: Work
    inputs: tuple[Input, ...] = ()
    outputs: Annotated[tuple[Output, ...], Field(min_length=1)]
    resources: Resources = Resources()
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    labels: dict[Identifier, str] = {}


class PipelineFile(Strict):
    """`pipelines/<name>.yaml`. Its JSON Schema is `schemas/pipeline.json`."""

    pipeline_version: Literal[1]
    name: Identifier
    description: str = ""
    owner: str = ""
    params: dict[Identifier, str] = {}
    """Defaults; `${name}` in any text of the stages stands for the value, `$$` for a dollar sign."""
    stages: Annotated[tuple[PipelineStage, ...], Field(min_length=1)]

    @field_validator("stages")
    @classmethod
    def _in_order(cls, stages: tuple[PipelineStage, ...]) -> tuple[PipelineStage, ...]:
        return tuple(_ordered(stages))

    def specs(
        self,
        *,
        logic: Logic,
        params: Mapping[str, str],
        logical_time: datetime,
        pipeline_run: UUID,
        run_ids: Iterator[UUID],
    ) -> list[JobSpec]:
        """A job spec for each stage, in an order in which every input is made before it is read."""
        return [
            JobSpec(
                spec_version=1,
                run_id=next(run_ids),
                pipeline=self.name,
                task=stage.task,
                pipeline_run=pipeline_run,
                stage=stage.stage,
                logic=logic,
                work=stage.work,
                inputs=stage.inputs,
                outputs=stage.outputs,
                logical_time=logical_time,
                params=dict(params),
                labels=stage.labels,
                resources=stage.resources,
                max_attempts=stage.max_attempts,
            )
            for stage in self.stages
        ]


def parse_pipeline(raw: bytes, *, what: str, params: Mapping[str, str]) -> tuple[PipelineFile, dict[str, str]]:
    """Parse a pipeline file with `params` in place of its defaults.

    Returns the file and the parameters in force. Raises `SpecError` naming the file, the field, what was expected
    and what came; a parameter that the file does not know is an error, and so is `${…}` without a value.
    """
    document = load_yaml(raw, what=what)
    if not isinstance(document, dict):
        raise SpecError(f"{what}: expected a mapping at the top, got {type(document).__name__}")
    defaults = document.get("params", {})
    known = dict(defaults) if isinstance(defaults, dict) else {}
    for name in params:
        if name not in known:
            expected = f"one of {', '.join(sorted(known))}" if known else "no parameter"
            raise SpecError(f"{what}: params: expected {expected}, got {name!r}", subject="params")
    in_force = {**known, **params}
    document["stages"] = _fill(document.get("stages"), in_force, what)
    pipeline = parse_document(PipelineFile, document, what=what)
    return pipeline, in_force


def load_yaml(raw: bytes, *, what: str) -> Any:
    """Safe YAML without aliases (a few lines of them can stand for gigabytes) and without duplicate keys."""
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise SpecError(f"{what}: expected at most {MAX_DOCUMENT_BYTES:,} bytes, got {len(raw):,}")
    try:
        return yaml.load(raw, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader's subclass
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" at line {mark.line + 1} column {mark.column + 1}" if mark else ""
        problem = getattr(exc, "problem", None) or str(exc).splitlines()[0]
        raise SpecError(f"{what}: expected YAML, got {problem}{where}") from exc
    except RecursionError as exc:
        raise SpecError(f"{what}: expected YAML, got one nested too deeply") from exc


class _PlainLoader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it out
            raise yaml.constructor.ConstructorError(None, None, "an alias, which is not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _fill(node: Any, params: Mapping[str, Any], what: str) -> Any:
    if isinstance(node, dict):
        return {key: _fill(value, params, what) for key, value in node.items()}
    if isinstance(node, list):
        return [_fill(value, params, what) for value in node]
    if not isinstance(node, str):
        return node

    def value_of(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        if match[2] not in params:
            raise SpecError(f"{what}: expected a value in params for ${{{match[2]}}}, got none", subject=match[2])
        return str(params[match[2]])

    return _PARAMETER.sub(value_of, node)


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
