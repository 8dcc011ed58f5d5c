"""execute: the engine does the work; what it says and leaves, its data aside, loses the secrets that it was given."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile

from runner.flow.resolve import Resolved
from runner.flow.room import Room
from runner.log import logger
from runner.model.errors import SpecError
from runner.model.messages import EngineResult, Progress
from runner.model.redaction import LONGEST_SECRET, SHORTEST_SECRET, Redaction
from runner.model.spec import JobSpec
from runner.ports import Execution, Ports

_CHUNK_BYTES = 8 * 1024 * 1024
_LEVELS = logging.getLevelNamesMapping()


def secrets_of(spec: JobSpec, ports: Ports) -> Redaction:
    """The secrets that the work refers to, as they are at this attempt.

    Raises `SpecError` where there is none of a name, or one that is no text or too short to be kept out of a log.
    """
    return Redaction({name: _secret(name, ports) for name in spec.secrets})


def _secret(name: str, ports: Ports) -> str:
    text = ports.secrets.get(name)
    if not SHORTEST_SECRET <= len(text.strip()) <= LONGEST_SECRET:
        raise SpecError(
            f"secret {name}: expected {SHORTEST_SECRET} to {LONGEST_SECRET:,} characters, got another number",
            subject=name,
            hint="what is shorter stands in many a text by chance, and cannot be taken out of logs and records",
        )
    if "\0" in text:
        raise SpecError(f"secret {name}: expected text that an environment can hold, got a NUL in it", subject=name)
    return text


def execute(spec: JobSpec, resolved: Resolved, secrets: Redaction, ports: Ports, room: Room) -> Execution:
    """Raises whatever category of error the engine ended with, in its own words: the secrets may be in them."""
    engine = ports.engine(spec.stage)
    execution = engine.execute(resolved.job, served=resolved.served, secrets=secrets.secrets, say=_log)
    for name in execution.result.artifacts:
        _redact(room.artifacts / name, secrets)
    return replace(execution, result=_redacted(execution.result, spec, secrets))


def _redact(path: Path, secrets: Redaction) -> None:
    if not secrets.secrets:
        return
    with path.open("rb") as file, NamedTemporaryFile(dir=path.parent, delete=False) as made:
        made.writelines(secrets.chunks(iter(lambda: file.read(_CHUNK_BYTES), b"")))
    Path(made.name).replace(path)


def _redacted(result: EngineResult, spec: JobSpec, secrets: Redaction) -> EngineResult:
    """What the spec says is known to all; and what is made is found by the names of datasets and files."""
    redacted = secrets.model(result, public=frozenset(_names(spec)))
    return redacted.model_copy(
        update={
            "artifacts": result.artifacts,
            "outputs": tuple(
                after.model_copy(update={"dataset": before.dataset, "files": before.files})
                for before, after in zip(result.outputs, redacted.outputs, strict=True)
            ),
        }
    )


def _names(spec: JobSpec) -> Iterator[str]:
    names = [name for each in spec.inputs for name in (each.alias, each.dataset)]
    for name in names + [each.dataset for each in spec.outputs]:
        yield from (name, name.lower())


def _log(progress: Progress) -> None:
    share = f" ({progress.done:,} of {progress.total:,})" if progress.done is not None and progress.total else ""
    logger.log(_LEVELS[progress.level.upper()], "%s%s", progress.message, share)
