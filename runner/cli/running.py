"""Commands that make runs and carry them: submit, run-pipeline, work, rerun."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from runner import terminal
from runner.app import App
from runner.cli.options import AsJson, LogicalTime, LogicPath, Params, Ref, Repo, RunId, WorkingTree, app_of
from runner.flow.waiting import Waiting
from runner.model.errors import Failure, SpecError
from runner.model.manifest import Manifest, OutputRecord, State
from runner.model.policy import exit_code
from runner.model.spec import JobSpec, Logic, Stage
from runner.ports import RunRow
from runner.worker import Lost, Outcome

commands = typer.Typer()


@commands.command(short_help="Store a job spec and queue it.")
def submit(
    context: typer.Context,
    spec: Annotated[Path | None, typer.Argument(help="A job spec as JSON; - for standard input.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="Take the spec from this pipeline file instead.")] = None,
    task: Annotated[str | None, typer.Option(help="Which of the pipeline's tasks.")] = None,
    ref: Ref = None,
    working_tree: WorkingTree = False,
    repo: Repo = None,
    logic_path: LogicPath = ".",
    param: Params = None,
    logical_time: LogicalTime = None,
    as_json: AsJson = False,
) -> None:
    """Store a job spec, or one task of a pipeline, and queue it. Prints the run id.

    A whole pipeline in its order is `runner run-pipeline`. Logic that RUNNER_PRODUCTION_REF does not contain, and a
    working tree, publish to dev_ datasets only.
    """
    app = app_of(context)
    if (spec is None) == (pipeline is None):
        raise SpecError("submit: expected a SPEC file or --pipeline NAME, got " + ("both" if spec else "neither"))
    if spec is not None:
        if working_tree:
            raise SpecError("--working-tree: expected it with --pipeline NAME, got it with a SPEC")
        made = app.client.read_spec(_read(spec), what=str(spec))
        app.client.require_production(made)
    else:
        logic = _LogicAsked(ref=ref, repo=repo, working_tree=working_tree, path=logic_path)
        made = _task_of(_pipeline_specs(app, str(pipeline), logic, param, logical_time), task)
    app.client.submit(made)
    if as_json:
        terminal.print_json(_spec_row(made))
    else:
        terminal.say(f"{made.run_id}  {made.pipeline}/{made.task} ({made.stage.value}) at {made.logic.commit[:12]}")


@commands.command("run-pipeline", short_help="Run a pipeline's stages here, in order.")
def run_pipeline(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The pipeline: pipelines/NAME.yaml in the logic repository.")],
    ref: Ref = None,
    working_tree: WorkingTree = False,
    repo: Repo = None,
    logic_path: LogicPath = ".",
    param: Params = None,
    logical_time: LogicalTime = None,
    as_json: AsJson = False,
) -> None:
    """Run all stages of a pipeline here, in order, through their queues.

    Logic that RUNNER_PRODUCTION_REF does not contain, and a working tree, publish to dev_ datasets only.
    """
    app = app_of(context)
    logic = _LogicAsked(ref=ref, repo=repo, working_tree=working_tree, path=logic_path)
    specs = _pipeline_specs(app, name, logic, param, logical_time)
    ended = run_to_the_end(app, specs, quiet=as_json)
    if as_json:
        terminal.print_json([asdict(row) for row in _rows_of(app, [each.run_id for each in ended])])
    exit_if_failed(ended)


@commands.command(short_help="Take jobs of one stage: the images' entry point.")
def work(
    context: typer.Context,
    stage: Annotated[Stage, typer.Argument(help="Which stage's queue to work on.")],
    max_jobs: Annotated[int | None, typer.Option(min=1, help="Stop after so many jobs.")] = None,
    idle_timeout: Annotated[float | None, typer.Option(min=0, help="Stop after so many seconds without a job.")] = None,
    spec: Annotated[Path | None, typer.Option(help="Run this spec now, instead of taking jobs from the queue.")] = None,
) -> None:
    """Take jobs of one stage and run them: the entry point of a stage's image.

    With one job (--spec, or --max-jobs 1) the exit code is the job's; else 0 if all succeeded, 1 if one failed.
    """
    app = app_of(context)
    if spec is not None:
        raise typer.Exit(_run_one(app, stage, app.client.read_spec(_read(spec), what=str(spec))))
    worker = app.worker()
    ended = []
    with worker.stops_on_sigterm():
        for outcome in worker.work(stage, max_jobs=max_jobs, idle_timeout_s=idle_timeout):
            _report(outcome)
            ended.append(_code(outcome))
    if len(ended) == 1 or 75 in ended:
        raise typer.Exit(75 if 75 in ended else ended[0])
    raise typer.Exit(1 if any(ended) else 0)


def _run_one(app: App, stage: Stage, spec: JobSpec) -> int:
    """A spec at hand takes the same way as one from the queue; the queue just has no say in when."""
    if spec.stage is not stage:
        raise SpecError(f"stage: expected a spec for {stage.value}, got one for {spec.stage.value}", subject="stage")
    (manifest,) = run_to_the_end(app, [spec], quiet=True, show_log=True) or (None,)
    if manifest is None:
        return 75
    _report(manifest)
    return exit_code(manifest.failure, manifest.state)


@commands.command(short_help="Run a stored spec again, and compare.")
def rerun(
    context: typer.Context,
    run: RunId,
    publish: Annotated[bool, typer.Option(help="Publish to the tables, not to a branch beside them.")] = False,
    latest_logic: Annotated[
        bool, typer.Option("--latest-logic", help="Run RUNNER_PRODUCTION_REF as it is now, not the commit it ran.")
    ] = False,
    latest_inputs: Annotated[
        bool, typer.Option("--latest-inputs", help="Read the newest snapshots, not the ones it read.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a stored spec again, the same commit on the same snapshots, and say of each output if it came out identical.

    Published tables stay as they are unless --publish is given.
    """
    app = app_of(context)
    run_id = app.client.find(run)
    spec = app.client.rerun(run_id, publish=publish, latest_logic=latest_logic, latest_inputs=latest_inputs)
    (manifest,) = run_to_the_end(app, [spec], quiet=as_json)
    repeated = app.client.manifest(run_id)
    before = {each.dataset: each for each in repeated.outputs} if repeated else {}
    if as_json:
        terminal.print_json([_beside(each, before.get(each.dataset)) for each in manifest.outputs])
    else:
        for output in manifest.outputs:
            terminal.comparison_line(output, before.get(output.dataset))
    exit_if_failed([manifest])


def _beside(output: OutputRecord, before: OutputRecord | None) -> dict[str, Any]:
    """An output of a rerun as JSON, with the fingerprint that it was compared with."""
    repeated = before.fingerprint.model_dump(mode="json") if before else None
    return output.model_dump(mode="json", by_alias=True) | {"repeated_fingerprint": repeated}


def _task_of(specs: list[JobSpec], task: str | None) -> JobSpec:
    for spec in specs:
        if spec.task == task or (task is None and len(specs) == 1):
            return spec
    tasks = ", ".join(spec.task for spec in specs)
    raise SpecError(
        f"--task: expected one of {tasks}, got {task or 'none'}",
        hint=f"runner run-pipeline {specs[0].pipeline} runs all of them, each when its inputs are made",
    )


@dataclass(frozen=True, kw_only=True)
class _LogicAsked:
    """What the options say of the logic."""

    ref: str | None
    repo: str | None
    working_tree: bool
    path: str


def _pipeline_specs(
    app: App, name: str, asked: _LogicAsked, params: Iterable[str] | None, logical_time: datetime | None
) -> list[JobSpec]:
    given: dict[str, str] = {}
    for each in params or ():
        key, equals, value = each.partition("=")
        if not equals:
            raise SpecError(f"--param: expected NAME=VALUE, got {each!r}")
        given[key] = value
    at = logical_time and logical_time.replace(tzinfo=logical_time.tzinfo or UTC)
    logic, development = _logic(app, asked)
    launch = app.client.launch(name, logic, params=given, logical_time=at, development=development)
    if launch.development:
        terminal.warn(f"{launch.development}: outputs go to dev_ datasets")
    return launch.specs


def _logic(app: App, asked: _LogicAsked) -> tuple[Logic, str | None]:
    """The logic, and why it is for development if that is known already."""
    if asked.working_tree:
        if asked.ref is not None:
            raise SpecError(f"--working-tree: expected it without --ref, got --ref {asked.ref}")
        folder = Path(asked.repo or ".")
        logic = app.client.logic_in(folder, path=asked.path)
        changed = "with changes that are not committed" if logic.dirty else "with nothing changed"
        return logic, f"working tree {folder.absolute()} is {logic.commit[:12]}, {changed}"
    address = asked.repo or app.settings.logic_repo
    if address is None:
        raise SpecError(
            "--repo: expected a logic repository, got none", hint="set RUNNER_LOGIC_REPO, or give --repo URL"
        )
    return app.client.logic_at(repo=address, ref=asked.ref or app.settings.production_ref, path=asked.path), None


def run_to_the_end(app: App, specs: list[JobSpec], *, quiet: bool = False, show_log: bool = False) -> list[Manifest]:
    from runner.sequence import run_in_order

    ended = []
    with terminal.progress(not quiet) as status:
        if not show_log:
            hide_log()
        worker = app.worker()
        started: Callable[[JobSpec], None] = (
            (lambda spec: status.update(f"{spec.task} …")) if status else (lambda _: None)
        )
        with worker.stops_on_sigterm():
            for manifest in run_in_order(specs, app.client, worker, started=started):
                ended.append(manifest)
                if not quiet:
                    terminal.run_line(manifest)
    if worker.stopping:
        terminal.err.print("stopped: what was at work is back in its queue; runner runs shows it")
        raise typer.Exit(75)
    return ended


def hide_log() -> None:
    """The run's own log has every line; here a line a run is what people want, unless they asked for more."""
    for handler in logging.getLogger("runner").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.level == logging.INFO:
            handler.setLevel(logging.CRITICAL)


def exit_if_failed(ended: list[Manifest]) -> None:
    for manifest in ended:
        if manifest.failure:
            terminal.print_failure(manifest.failure, label=f"{manifest.spec.task} failed")
        if manifest.state is not State.SUCCEEDED:
            terminal.err.print(f"  runner show {terminal.short(manifest.run_id)}")
            raise typer.Exit(exit_code(manifest.failure, manifest.state))


def _report(outcome: Outcome) -> None:
    if isinstance(outcome, Manifest) and outcome.failure:
        terminal.print_failure(outcome.failure, label=f"{outcome.spec.task} failed")
    elif isinstance(outcome, Failure):
        terminal.print_failure(outcome, label="refused")


def _code(outcome: Outcome) -> int:
    match outcome:
        case Manifest():
            return exit_code(outcome.failure, outcome.state)
        case Failure():
            return exit_code(outcome)
        case Waiting() | Lost():
            return 75


def _rows_of(app: App, run_ids: list[UUID]) -> list[RunRow]:
    return [row for row in (app.ledger.run(run_id) for run_id in run_ids) if row]


def _spec_row(spec: JobSpec) -> dict[str, Any]:
    return {
        "run_id": str(spec.run_id),
        "task": spec.task,
        "stage": spec.stage.value,
        "commit": spec.logic.commit,
        "dirty": spec.logic.dirty,
        "outputs": [output.dataset for output in spec.outputs],
    }


def _read(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as exc:
        raise SpecError(f"{path}: expected a file to read, got {exc.strerror}") from exc
