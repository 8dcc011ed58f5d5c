"""The command `runner`. Each command reads its arguments, calls one thing, and prints it; no rule lives here."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import typer
from rich.table import Table
from rich.text import Text

from runner import __version__, terminal
from runner.app import App
from runner.config import Settings, load_settings, process_environment
from runner.flow.waiting import Waiting
from runner.log import configure
from runner.model.errors import Failure, RunnerError, SpecError
from runner.model.lineage import mermaid, tree
from runner.model.manifest import TERMINAL, Manifest, State
from runner.model.names import manifest_key
from runner.model.policy import exit_code
from runner.model.spec import JobSpec, Stage
from runner.ports import RunRow
from runner.worker import Lost, Outcome

_CONTEXT = {"help_option_names": ["-h", "--help"]}
cli = typer.Typer(
    help="Runs pipeline stages from job specs, and can say of any table which commit made it from which data.",
    no_args_is_help=True,
    context_settings=_CONTEXT,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
ledger_cli = typer.Typer(help="The ledger: the record of runs in Postgres.", no_args_is_help=True)
cli.add_typer(ledger_cli, name="ledger")

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, its beginning, or its last 8 characters.")]
Params = Annotated[list[str] | None, typer.Option("--param", "-p", metavar="NAME=VALUE", help="A pipeline parameter.")]
Repo = Annotated[str | None, typer.Option(help="The logic repository's URL [default: RUNNER_LOGIC_REPO].")]
LogicPath = Annotated[str, typer.Option("--logic-path", help="The folder in the repository that the logic is in.")]


def main() -> None:
    """Exit codes: 0 succeeded, 1 failed for good, 2 bad usage or spec, 75 may be retried."""
    try:
        cli()
    except RunnerError as error:
        terminal.print_failure(error.failure)
        sys.exit(exit_code(error.failure))
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing is wrong with the run.
        sys.stderr.close()
        sys.exit(0)


def _version(wanted: bool) -> None:
    if wanted:
        terminal.say(f"stage-runner {__version__}")
        raise typer.Exit


@cli.callback()
def _options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what the engine says, too.")] = False,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    settings = load_settings()
    configure(settings.log_format, level=logging.DEBUG if verbose else logging.INFO)
    context.obj = settings


def _app(context: typer.Context) -> App:
    return App(_settings(context))


def _settings(context: typer.Context) -> Settings:
    settings: Settings = context.obj
    return settings


# ---------------------------------------------------------------- services


@cli.command()
def demo(context: typer.Context) -> None:
    """Run the sample pipeline on the embedded services, from nothing to a lineage tree."""
    from runner.embedded.demo import DATA_PACKAGE, MART, PIPELINE, prepare_demo

    app = _up(context)
    repo = prepare_demo(_services(app), sample=Path("dbt"), git_env=process_environment())
    portal = f"{_services(app).portal_url}/{DATA_PACKAGE}"
    terminal.say(f"logic   {repo}, branch main\ndata    {portal}/\n")
    specs = app.client.pipeline_specs(PIPELINE, repo=repo, ref="main", params={"portal": portal})
    ended = _run_in_order(app, specs)
    terminal.say("\nThe runs, as the ledger has them (runner runs):\n", style="bold")
    terminal.runs_table(app.client.ledger.runs(limit=len(specs), pipeline_run=specs[0].pipeline_run))
    _fail_if_any(ended)
    transform = next(manifest for manifest in ended if manifest.spec.stage is Stage.TRANSFORM)
    terminal.say(f"\nWhere {MART} comes from (runner lineage {MART}):\n", style="bold")
    _print_lineage(app, MART, None, "upstream", "tree")
    terminal.say("\nWhat to type next:\n", style="bold")
    short = terminal.short(transform.run_id)
    for command, why in (
        (f"runner show {short}", "the run's manifest: commit, inputs, outputs, checks"),
        (f"runner rerun {short}", "the same run again, from its record, and whether it comes out identical"),
        ("runner lineage marts.delays_by_route --format mermaid", "the same graph for a document"),
        ("runner down", "stop the embedded services; .runner keeps their state"),
    ):
        terminal.say(f"  .venv/bin/{command:<56} {why}")


@cli.command()
def up(context: typer.Context, as_json: AsJson = False) -> None:
    """Start the embedded services: PostgreSQL, an AWS emulator and a portal, as processes under .runner."""
    services = _services(_up(context))
    if as_json:
        terminal.print_json({"aws_endpoint_url": services.aws_endpoint_url, "portal_url": services.portal_url})
    else:
        terminal.say(f"up: AWS emulator {services.aws_endpoint_url}, portal {services.portal_url}, PostgreSQL")


def _up(context: typer.Context) -> App:
    from runner.embedded import services

    settings = _settings(context)
    if not settings.embedded:
        raise SpecError(
            "RUNNER_LEDGER_URL: expected it unset for the embedded services, got one",
            hint="unset RUNNER_LEDGER_URL and AWS_ENDPOINT_URL, or use the services that they name",
        )
    services.up(settings.home, emulator_bin=settings.emulator, progress=lambda line: terminal.say(line, style="dim"))
    app = App(settings)
    app.prepare()
    return app


def _services(app: App) -> Any:
    return app.embedded


@cli.command()
def down(
    context: typer.Context,
    purge: Annotated[bool, typer.Option(help="Delete their data, too.")] = False,
) -> None:
    """Stop the embedded services. Their state is kept."""
    from runner.embedded import services

    services.down(_settings(context).home, purge=purge)
    terminal.say("down" + (", and their data is gone" if purge else "; runner up brings them back as they were"))


@cli.command()
def doctor(context: typer.Context, as_json: AsJson = False) -> None:
    """Say what is missing here, and how to get it."""
    from runner.doctor import examine

    findings = list(examine(_settings(context)))
    if as_json:
        terminal.print_json([finding.to_dict() for finding in findings])
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for finding in findings:
            mark = Text("ok", style="green") if finding.ok else Text("missing", style="red")
            fix = "" if finding.ok or not finding.fix else f"→ {finding.fix}"
            table.add_row(mark, finding.check, finding.found, Text(fix, style="bold"))
        terminal.out.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


# ---------------------------------------------------------------- running


@cli.command()
def submit(
    context: typer.Context,
    spec: Annotated[Path | None, typer.Argument(help="A job spec as JSON; - for standard input.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="Take the spec from this pipeline file instead.")] = None,
    task: Annotated[str | None, typer.Option(help="Which of the pipeline's tasks.")] = None,
    ref: Annotated[str, typer.Option(help="Branch, tag or commit of the logic.")] = "main",
    repo: Repo = None,
    logic_path: LogicPath = ".",
    param: Params = None,
    logical_time: Annotated[datetime | None, typer.Option(help="What time the data is for (UTC).")] = None,
    as_json: AsJson = False,
) -> None:
    """Store a job spec, or one task of a pipeline, and queue it. Prints the run id.

    A whole pipeline in its order is `runner run-pipeline`.
    """
    app = _app(context)
    if (spec is None) == (pipeline is None):
        raise SpecError("submit: expected a SPEC file or --pipeline NAME, got " + ("both" if spec else "neither"))
    if spec is not None:
        made = app.client.read_spec(_read(spec), what=str(spec))
    else:
        specs = _pipeline_specs(app, str(pipeline), repo, ref, logic_path, param, logical_time)
        made = _task_of(specs, task)
    app.client.submit(made)
    if as_json:
        terminal.print_json(_spec_row(made))
    else:
        terminal.say(f"{made.run_id}  {made.pipeline}/{made.task} ({made.stage.value}) at {made.logic.commit[:12]}")


@cli.command("run-pipeline")
def run_pipeline(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The pipeline: pipelines/NAME.yaml in the logic repository.")],
    ref: Annotated[str, typer.Option(help="Branch, tag or commit of the logic.")] = "main",
    repo: Repo = None,
    logic_path: LogicPath = ".",
    param: Params = None,
    logical_time: Annotated[datetime | None, typer.Option(help="What time the data is for (UTC).")] = None,
    as_json: AsJson = False,
) -> None:
    """Run all stages of a pipeline here, in order, through their queues."""
    app = _app(context)
    specs = _pipeline_specs(app, name, repo, ref, logic_path, param, logical_time)
    ended = _run_in_order(app, specs, quiet=as_json)
    if as_json:
        terminal.print_json([asdict(row) for row in _rows_of(app, [each.run_id for each in ended])])
    _fail_if_any(ended)


@cli.command()
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
    app = _app(context)
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
    (manifest,) = _run_in_order(app, [spec], quiet=True, show_log=True) or (None,)
    if manifest is None:
        return 75
    _report(manifest)
    return exit_code(manifest.failure)


@cli.command()
def rerun(
    context: typer.Context,
    run: RunId,
    publish: Annotated[bool, typer.Option(help="Publish to the tables, not to a branch beside them.")] = False,
    latest_inputs: Annotated[bool, typer.Option(help="Read the newest snapshots, not the ones it read.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a stored spec again, the same commit on the same snapshots, and say of each output if it came out identical.

    Published tables stay as they are unless --publish is given.
    """
    app = _app(context)
    spec = app.client.rerun(app.client.find(run), publish=publish, latest_inputs=latest_inputs)
    ended = _run_in_order(app, [spec], quiet=as_json)
    if as_json:
        terminal.print_json(ended[0].outputs)
    else:
        for output in ended[0].outputs:
            style = {"identical": "green", "different": "red"}.get(str(output.comparison), "yellow")
            terminal.say(f"{output.dataset}: {output.comparison or 'not made by the run it repeats'}", style=style)
    _fail_if_any(ended)


# ---------------------------------------------------------------- looking


@cli.command()
def runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")] = 20,
    pipeline: Annotated[str | None, typer.Option(help="Of this pipeline only.")] = None,
    stage: Annotated[Stage | None, typer.Option(help="Of this stage only.")] = None,
    state: Annotated[State | None, typer.Option(help="In this state only.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    rows = _app(context).ledger.runs(limit=limit, pipeline=pipeline, stage=stage, state=state)
    if as_json:
        terminal.print_json([asdict(row) for row in rows])
    else:
        terminal.runs_table(rows)


@cli.command()
def show(context: typer.Context, run: RunId, as_json: AsJson = False) -> None:
    """Show a run: its manifest once it is over; why it failed, with the end of its log."""
    app = _app(context)
    run_id = app.client.find(run)
    manifest = app.client.manifest(run_id)
    row = app.ledger.run(run_id)
    if as_json:
        terminal.print_json(manifest or (row and asdict(row)))
        return
    if manifest is None:
        terminal.runs_table([row] if row else [])
        return
    terminal.show_manifest(manifest)
    if manifest.failure:
        _explain_failure(app, manifest)
    terminal.say(f"manifest {app.objects.uri(manifest_key(run_id))}", style="dim")


@cli.command()
def logs(
    context: typer.Context,
    run: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a run's log, all attempts."""
    app = _app(context)
    run_id = app.client.find(run)
    printed = 0
    while True:
        row = app.ledger.run(run_id)
        over = row is None or row.state in TERMINAL
        lines = list(app.client.log(run_id))
        for line in lines[printed:]:
            terminal.print_json(line) if as_json else terminal.print_log_line(line)
        printed = len(lines)
        if over or not follow:
            return
        time.sleep(1.0)


@cli.command()
def spec(context: typer.Context, run: RunId) -> None:
    """Print a run's job spec as it was stored: `runner spec RUN > spec.json`."""
    app = _app(context)
    stored = app.ledger.spec(app.client.find(run))
    if stored is not None:
        terminal.print_json(stored)


@cli.command()
def lineage(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="A dataset, or one of its snapshots: marts.delays@123.")],
    downstream: Annotated[bool, typer.Option("--downstream", help="What was made of it.")] = False,
    upstream: Annotated[bool, typer.Option("--upstream", help="What it was made of [default].")] = False,
    output_format: Annotated[str, typer.Option("--format", help="tree, json or mermaid.")] = "tree",
    as_json: AsJson = False,
) -> None:
    """Say which runs, commits and snapshots a dataset's newest snapshot comes from, down to the source."""
    if downstream and upstream:
        raise SpecError("lineage: expected --upstream or --downstream, got both")
    if output_format not in ("tree", "json", "mermaid"):
        raise SpecError(f"--format: expected tree, json or mermaid, got {output_format!r}")
    name, _, snapshot = dataset.partition("@")
    direction: Literal["upstream", "downstream"] = "downstream" if downstream else "upstream"
    _print_lineage(_app(context), name, snapshot or None, direction, "json" if as_json else output_format)


# ---------------------------------------------------------------- the ledger


@ledger_cli.command("migrate")
def migrate(context: typer.Context, as_json: AsJson = False) -> None:
    """Bring the ledger's tables up to this release. Safe to run again, and beside workers."""
    applied = _app(context).ledger.migrate()
    if as_json:
        terminal.print_json(applied)
    else:
        terminal.say(f"applied {', '.join(applied)}" if applied else "the ledger is up to date")


# ---------------------------------------------------------------- what commands share


def _task_of(specs: list[JobSpec], task: str | None) -> JobSpec:
    for spec in specs:
        if spec.task == task or (task is None and len(specs) == 1):
            return spec
    tasks = ", ".join(spec.task for spec in specs)
    raise SpecError(
        f"--task: expected one of {tasks}, got {task or 'none'}",
        hint=f"runner run-pipeline {specs[0].pipeline} runs all of them, each when its inputs are made",
    )


def _pipeline_specs(
    app: App,
    name: str,
    repo: str | None,
    ref: str,
    path: str,
    params: Iterable[str] | None,
    logical_time: datetime | None,
) -> list[JobSpec]:
    address = repo or app.settings.logic_repo
    if address is None:
        raise SpecError(
            "--repo: expected a logic repository, got none", hint="set RUNNER_LOGIC_REPO, or give --repo URL"
        )
    given: dict[str, str] = {}
    for each in params or ():
        key, equals, value = each.partition("=")
        if not equals:
            raise SpecError(f"--param: expected NAME=VALUE, got {each!r}")
        given[key] = value
    at = logical_time and logical_time.replace(tzinfo=logical_time.tzinfo or UTC)
    return app.client.pipeline_specs(name, repo=address, ref=ref, path=path, params=given, logical_time=at)


def _run_in_order(app: App, specs: list[JobSpec], *, quiet: bool = False, show_log: bool = False) -> list[Manifest]:
    from runner.sequence import run_in_order

    ended = []
    with terminal.progress(not quiet) as status:
        if not show_log:
            _only_warnings()
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


def _only_warnings() -> None:
    """The run's own log has every line; here a line a run is what people want, unless they asked for more."""
    for handler in logging.getLogger("runner").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.level == logging.INFO:
            handler.setLevel(logging.CRITICAL)


def _fail_if_any(ended: list[Manifest]) -> None:
    for manifest in ended:
        if manifest.failure:
            terminal.print_failure(manifest.failure, label=f"{manifest.spec.task} failed")
            terminal.err.print(f"  runner show {terminal.short(manifest.run_id)}")
            raise typer.Exit(exit_code(manifest.failure))


def _explain_failure(app: App, manifest: Manifest) -> None:
    if manifest.failure is None:
        return
    terminal.print_failure(manifest.failure, label="failed")
    lines = list(app.client.log(manifest.run_id))
    terminal.say(f"the end of its log ({len(lines)} lines; runner logs {manifest.run_id}):", style="bold")
    for line in lines[-15:]:
        terminal.print_log_line(line)


def _report(outcome: Outcome) -> None:
    if isinstance(outcome, Manifest) and outcome.failure:
        terminal.print_failure(outcome.failure, label=f"{outcome.spec.task} failed")
    elif isinstance(outcome, Failure):
        terminal.print_failure(outcome, label="refused")


def _code(outcome: Outcome) -> int:
    match outcome:
        case Manifest():
            return exit_code(outcome.failure)
        case Failure():
            return exit_code(outcome)
        case Waiting() | Lost():
            return 75


def _rows_of(app: App, run_ids: list[UUID]) -> list[RunRow]:
    return [row for row in (app.ledger.run(run_id) for run_id in run_ids) if row]


def _spec_row(spec: JobSpec) -> dict[str, str]:
    return {"run_id": str(spec.run_id), "task": spec.task, "stage": spec.stage.value, "commit": spec.logic.commit}


def _print_lineage(
    app: App,
    dataset: str,
    snapshot: str | None,
    direction: Literal["upstream", "downstream"],
    output_format: str,
) -> None:
    at = snapshot or app.ledger.newest(dataset)
    if at is None:
        raise SpecError(
            f"lineage of {dataset}: expected a dataset that a run published, got none",
            hint="runner runs shows what ran",
        )
    found = app.ledger.upstream(dataset, at) if direction == "upstream" else app.ledger.downstream(dataset, at)
    if output_format == "json":
        terminal.print_json({"dataset": dataset, "snapshot": at, "edges": [asdict(edge) for edge in found]})
    elif output_format == "mermaid":
        terminal.say(mermaid(found))
    else:
        terminal.lineage_tree(tree(found, dataset, at, direction=direction))


def _read(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as exc:
        raise SpecError(f"{path}: expected a file to read, got {exc.strerror}") from exc
