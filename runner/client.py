"""What the command line and orchestrators do with runs: submit, rerun and cancel them, find and read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol
from uuid import UUID

from runner.model.errors import ConflictError, LogicError, RunnerError, SpecError
from runner.model.manifest import Manifest
from runner.model.names import dev_of, is_dev, log_key, spec_key
from runner.model.pipeline import PipelineFile, parse_pipeline
from runner.model.spec import JobSpec, Logic, Rerun, TextOrSecret, parse_spec
from runner.model.strict import MAX_DOCUMENT_BYTES, load_json, parse_document
from runner.ports import Clock, Ledger, LogicSource, Objects, Queue


class SearchableLedger(Ledger, Protocol):
    def find_run(self, text: str) -> list[UUID]: ...


class WorkingTrees(Protocol):
    def commit(self, folder: Path) -> Logic:
        """A commit of what is there, where workers find it; `path` is the folder's in its repository."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What one launch of a pipeline runs."""

    specs: list[JobSpec]
    """In an order in which each finds its inputs made."""
    development: str | None
    """Why the outputs go to `dev_` datasets; None where they go where the pipeline file says."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """`new_run_id` draws ids in order of time (UUIDv7), so that runs sort as they were made."""

    ledger: SearchableLedger
    objects: Objects
    queue: Queue
    logic: LogicSource
    working_trees: WorkingTrees
    clock: Clock
    new_run_id: Callable[[], UUID]
    production_ref: str
    """The branch of a logic repository whose commits may publish to other than `dev_` datasets."""

    # ------------------------------------------------------------ submitting

    def submit(self, spec: JobSpec) -> JobSpec:
        """Store the spec, then queue it. Sending it twice is safe: one run_id is one run."""
        self.ledger.submit(spec)
        # A ledger can be lost; the request is kept beside the record, so that queued runs can be restored.
        self.objects.put_if_absent(spec_key(spec.run_id), spec.to_json().encode())
        self.queue.send(spec.stage, spec.to_json())
        # The run is queued: that nobody noted it must not make the caller submit another one.
        with suppress(RunnerError):
            self.ledger.sent([spec.run_id])
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

    def require_production(self, spec: JobSpec) -> None:
        """Raise `SpecError` for what the worker would refuse: outputs that only production's commits may have."""
        guarded = [output.dataset for output in spec.outputs if not is_dev(output.dataset)]
        if guarded and not spec.publishes_to_branch and not self._is_production(spec.logic):
            raise SpecError(
                f"outputs: expected dev_ datasets only, as {self._not_contained(spec.logic)}, got {guarded[0]!r}",
                subject="outputs",
                hint=f"name it {dev_of(guarded[0])!r}, or merge the commit into {self.production_ref} first",
            )

    # ------------------------------------------------------------ pipelines

    def logic_at(self, *, repo: str, ref: str, path: str = ".") -> Logic:
        """The logic in a folder of a repository as it stands at `ref`, which is resolved to a commit once, here."""
        return parse_document(Logic, {"repo": repo, "commit": self._commit(repo, ref), "path": path}, what="logic")

    def logic_in(self, working_tree: Path, *, path: str = ".") -> Logic:
        """The logic in a folder of a working tree as it is now, committed or not."""
        try:
            made = self.working_trees.commit(working_tree)
        except LogicError as error:
            raise SpecError(error.message, hint=error.hint, subject=error.subject) from error
        below = str(PurePosixPath(made.path, path))
        return parse_document(Logic, made.model_dump(mode="json") | {"path": below}, what="logic")

    def launch(
        self,
        name: str,
        logic: Logic,
        *,
        params: Mapping[str, str],
        logical_time: datetime | None = None,
        development: str | None = None,
    ) -> Launch:
        """A spec for each stage of a pipeline, as its file stands in `logic`.

        Where production's branch does not contain the commit, or `development` says why not, all outputs go to
        `dev_` datasets, and so do the inputs that the pipeline itself makes. Other inputs are the published ones.
        """
        pipeline, in_force = self._pipeline(name, logic, params)
        specs = pipeline.specs(
            # Whether it is dirty is the last thing to be said: a dirty spec has no other outputs than dev_ ones.
            logic=logic.model_copy(update={"dirty": False}),
            params=in_force,
            logical_time=logical_time or self.clock.now(),
            pipeline_run=self.new_run_id(),
            run_ids=iter(self.new_run_id, None),
        )
        if development is None and not self._is_production(logic):
            development = self._not_contained(logic)
        if development is not None:
            specs = _for_development(specs, logic)
        return Launch(specs=specs, development=development)

    def _pipeline(
        self, name: str, logic: Logic, params: Mapping[str, str]
    ) -> tuple[PipelineFile, dict[str, TextOrSecret]]:
        file = f"{logic.path}/pipelines/{name}.yaml".removeprefix("./")
        try:
            raw = self.logic.read_file(logic.repo, logic.commit, file)
        except LogicError as error:
            raise SpecError(error.message, hint=error.hint, subject=file) from error
        pipeline, in_force = parse_pipeline(raw, what=f"{file} at {logic.commit[:12]}", params=params)
        if pipeline.name != name:
            raise SpecError(f"{file}: name: expected {name!r}, as the file is called, got {pipeline.name!r}")
        return pipeline, in_force

    def _is_production(self, logic: Logic) -> bool:
        try:
            return self.logic.reached(logic.repo, logic.commit, self.production_ref)
        except LogicError as error:
            raise SpecError(error.message, hint=error.hint, subject="logic.commit") from error

    def _not_contained(self, logic: Logic) -> str:
        return f"{self.production_ref} does not contain {logic.commit[:12]}"

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
        """The specs of `launch`, for a pipeline that is named by repository and ref."""
        logic = self.logic_at(repo=repo, ref=ref, path=path)
        return self.launch(name, logic, params=params, logical_time=logical_time).specs

    # ------------------------------------------------------------ again, and not at all

    def rerun(
        self, run_id: UUID, *, publish: bool = False, latest_inputs: bool = False, latest_logic: bool = False
    ) -> JobSpec:
        """The stored spec again: the same commit, and the snapshots that the run read, unless told otherwise.

        `latest_logic` is production's branch as it stands now; `latest_inputs` goes for restored state as well.
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

        def snapshot(alias: str, given: str | None) -> str | None:
            return None if latest_inputs else pinned.get(alias, given)

        logic = spec.logic
        if latest_logic:
            commit = self._commit(logic.repo, self.production_ref)
            logic = logic.model_copy(update={"commit": commit, "dirty": False})
        again = spec.model_copy(
            update={
                "run_id": self.new_run_id(),
                "logic": logic,
                "inputs": tuple(
                    each.model_copy(update={"snapshot": snapshot(each.alias, each.snapshot)}) for each in spec.inputs
                ),
                "outputs": tuple(
                    each.model_copy(update={"snapshot": snapshot(each.state_alias, each.snapshot)})
                    if each.begins_from_state
                    else each
                    for each in spec.outputs
                ),
                "pipeline_run": None,
                "rerun": Rerun(of=run_id, effect=spec.effect, publish=publish),
            }
        )
        return parse_spec(again.to_json(), what=f"rerun of {run_id}")

    def cancel(self, run_id: UUID) -> Literal["asked", "too late", "over"]:
        """Ask that a run be cancelled: `too late` where it publishes already, `over` where it has ended."""
        return self.ledger.cancel(run_id)

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


def _for_development(specs: Sequence[JobSpec], logic: Logic) -> list[JobSpec]:
    made = {output.dataset for spec in specs for output in spec.outputs}
    clash = next((dataset for dataset in sorted(made) if not is_dev(dataset) and dev_of(dataset) in made), None)
    if clash is not None:
        raise SpecError(f"outputs: expected one writer of {dev_of(clash)!r}, got {clash!r} under that name as well")
    return [_one_for_development(spec, logic, made) for spec in specs]


def _one_for_development(spec: JobSpec, logic: Logic, made: set[str]) -> JobSpec:
    """Its inputs keep their aliases, by which the logic knows them."""
    inputs = [
        each.model_copy(update={"dataset": dev_of(each.dataset), "as_": each.alias}) if each.dataset in made else each
        for each in spec.inputs
    ]
    outputs = [each.model_copy(update={"dataset": dev_of(each.dataset)}) for each in spec.outputs]
    renamed = spec.model_copy(update={"logic": logic, "inputs": tuple(inputs), "outputs": tuple(outputs)})
    return parse_spec(renamed.to_json(), what=f"pipeline {spec.pipeline}, task {spec.task}, for development")


def _log_line(line: bytes, attempt: int) -> dict[str, Any]:
    """A line of a log as it was written; one that was cut (its worker died) is shown as it is."""
    try:
        parsed = load_json(line, what="log line")
    except SpecError:
        parsed = None
    return parsed if isinstance(parsed, dict) else {"attempt": attempt, "message": line.decode(errors="replace")}


def _is_id_like(text: str) -> bool:
    return 4 <= len(text) <= 36 and all(char in "0123456789abcdefABCDEF-" for char in text)
