"""What the command line and orchestrators do with runs: submit them, run them again, find and read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from runner.model.errors import ConflictError, LogicError, SpecError
from runner.model.manifest import Manifest
from runner.model.names import log_key, spec_key
from runner.model.pipeline import PipelineFile, parse_pipeline
from runner.model.spec import Input, JobSpec, Logic, Rerun, parse_spec
from runner.model.strict import MAX_DOCUMENT_BYTES, load_json, parse_document
from runner.ports import Clock, Ledger, LogicSource, Objects, Queue


class SearchableLedger(Ledger, Protocol):
    def find_run(self, text: str) -> list[UUID]: ...


@dataclass(frozen=True, kw_only=True)
class Client:
    """`new_run_id` draws ids in order of time (UUIDv7), so that runs sort as they were made."""

    ledger: SearchableLedger
    objects: Objects
    queue: Queue
    logic: LogicSource
    clock: Clock
    new_run_id: Callable[[], UUID]

    # ------------------------------------------------------------ submitting

    def submit(self, spec: JobSpec) -> JobSpec:
        """Store the spec, then queue it. Sending it twice is safe: one run_id is one run."""
        self.ledger.submit(spec)
        # A ledger can be lost; the request is kept beside the record, so that queued runs can be restored.
        self.objects.put_if_absent(spec_key(spec.run_id), spec.to_json().encode())
        self.queue.send(spec.stage, spec.to_json())
        return spec

    def read_spec(self, raw: bytes, *, what: str) -> JobSpec:
        """A spec as a person writes it: `run_id` and `logical_time` may be left out, `commit` may be a branch or tag.

        Raises `SpecError` naming the field, what was expected and what came.
        """
        if len(raw) > MAX_DOCUMENT_BYTES:
            raise SpecError(f"{what}: expected at most {MAX_DOCUMENT_BYTES:,} bytes, got {len(raw):,}")
        document = load_json(raw, what=what)
        if isinstance(document, dict):
            document.setdefault("run_id", str(self.new_run_id()))
            document.setdefault("logical_time", self.clock.now().isoformat())
            self._resolve_commit(document.get("logic"))
        return parse_spec(json.dumps(document, ensure_ascii=False), what=what)

    def _resolve_commit(self, logic: Any) -> None:
        if not isinstance(logic, dict):
            return
        repo, ref = logic.get("repo"), logic.pop("ref", None) or logic.get("commit")
        if isinstance(repo, str) and isinstance(ref, str):
            logic["commit"] = self._commit(repo, ref)

    def _commit(self, repo: str, ref: str) -> str:
        """What is refused here is the request, before any run: so a `SpecError`."""
        try:
            return self.logic.resolve_ref(repo, ref)
        except LogicError as error:
            raise SpecError(error.message, hint=error.hint, subject="logic.commit") from error

    def pipeline(
        self, name: str, *, repo: str, ref: str, path: str, params: Mapping[str, str]
    ) -> tuple[PipelineFile, Logic, dict[str, str]]:
        """The pipeline file as it stands at `ref`, which is resolved to a commit once, here."""
        commit = self._commit(repo, ref)
        logic = parse_document(Logic, {"repo": repo, "commit": commit, "path": path}, what="logic")
        file = f"{path}/pipelines/{name}.yaml".removeprefix("./")
        try:
            raw = self.logic.read_file(repo, logic.commit, file)
        except LogicError as error:
            raise SpecError(error.message, hint=error.hint, subject=file) from error
        pipeline, in_force = parse_pipeline(raw, what=f"{file} at {logic.commit[:12]}", params=params)
        if pipeline.name != name:
            raise SpecError(f"{file}: name: expected {name!r}, as the file is called, got {pipeline.name!r}")
        return pipeline, logic, in_force

    def pipeline_specs(
        self,
        name: str,
        *,
        repo: str,
        ref: str,
        path: str = ".",
        params: Mapping[str, str],
        logical_time: datetime | None = None,
    ) -> list[JobSpec]:
        """A spec for each stage of the pipeline, in an order in which each finds its inputs made."""
        pipeline, logic, in_force = self.pipeline(name, repo=repo, ref=ref, path=path, params=params)
        return pipeline.specs(
            logic=logic,
            params=in_force,
            logical_time=logical_time or self.clock.now(),
            pipeline_run=self.new_run_id(),
            run_ids=iter(self.new_run_id, None),
        )

    def rerun(self, run_id: UUID, *, publish: bool, latest_inputs: bool) -> JobSpec:
        """The stored spec again: the same commit, and the snapshots that the run read, unless told otherwise.

        Raises `ConflictError` where the run is not over: what it read is not known before.
        """
        manifest = self.manifest(run_id)
        if manifest is None:
            raise ConflictError(
                f"run {run_id}: expected one that is over, got one that is still to end",
                hint=f"runner show {run_id}",
            )
        spec = manifest.spec
        pinned = {pin.as_: pin.snapshot for pin in manifest.pins}
        inputs = tuple(
            Input(
                dataset=each.dataset,
                as_=each.as_,
                snapshot=None if latest_inputs else pinned.get(each.alias, each.snapshot),
            )
            for each in spec.inputs
        )
        again = spec.model_copy(
            update={
                "run_id": self.new_run_id(),
                "inputs": inputs,
                "pipeline_run": None,
                "rerun": Rerun(of=run_id, effect=spec.effect, publish=publish),
            }
        )
        return parse_spec(again.to_json(), what=f"rerun of {run_id}")

    # ------------------------------------------------------------ reading

    def find(self, text: str) -> UUID:
        """The run that a person means by an id or its beginning. Raises `SpecError` where it is none or several."""
        found = self.ledger.find_run(text.lower()) if _is_id_like(text) else []
        if len(found) == 1:
            return found[0]
        came = "none" if not found else "several"
        raise SpecError(f"run {text!r}: expected one run of that id, got {came}", hint="runner runs lists them")

    def manifest(self, run_id: UUID) -> Manifest | None:
        return self.ledger.manifest(run_id)

    def log(self, run_id: UUID) -> Iterator[dict[str, Any]]:
        """The lines of a run's log, attempt after attempt, as far as they have been kept."""
        row = self.ledger.run(run_id)
        for attempt in range(1, (row.attempt if row else 0) + 1):
            body = self.objects.get(log_key(run_id, attempt)) or b""
            for line in body.splitlines():
                yield _log_line(line, attempt)


def _log_line(line: bytes, attempt: int) -> dict[str, Any]:
    """A line of a log as it was written; one that was cut (its worker died) is shown as it is."""
    try:
        parsed = load_json(line, what="log line")
    except SpecError:
        parsed = None
    return parsed if isinstance(parsed, dict) else {"attempt": attempt, "message": line.decode(errors="replace")}


def _is_id_like(text: str) -> bool:
    return 4 <= len(text) <= 36 and all(char in "0123456789abcdefABCDEF-" for char in text)
