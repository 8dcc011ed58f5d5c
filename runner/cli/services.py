"""Commands for what must be there: demo, up, down, doctor, ledger."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from runner import terminal
from runner.app import App
from runner.cli.looking import print_lineage
from runner.cli.options import AsJson, app_of, settings_of
from runner.cli.running import exit_if_failed, run_to_the_end
from runner.config import process_environment
from runner.embedded.services import Endpoints
from runner.model.errors import SpecError
from runner.model.spec import Stage
from runner.rebuild import NOT_RESTORED

commands = typer.Typer()
ledger_commands = typer.Typer(help="The ledger: the record of runs in Postgres.", no_args_is_help=True)


@commands.command(short_help="The sample pipeline, from nothing to a lineage tree.")
def demo(context: typer.Context) -> None:
    """Run the sample pipeline on the embedded services, from nothing to a lineage tree."""
    from runner.embedded.demo import DATA_PACKAGE, MART, PIPELINE, prepare_demo

    app, endpoints = _up(context)
    repo = prepare_demo(endpoints, sample=Path("dbt"), git_env=process_environment())
    portal = f"{endpoints.portal_url}/{DATA_PACKAGE}"
    terminal.say(f"logic   {repo}, branch main\ndata    {portal}/\n")
    specs = app.client.pipeline_specs(PIPELINE, repo=repo, ref="main", params={"portal": portal})
    ended = run_to_the_end(app, specs)
    terminal.say("\nThe runs, as the ledger has them (runner runs):\n", style="bold")
    terminal.runs_table(app.client.ledger.runs(limit=len(specs), pipeline_run=specs[0].pipeline_run))
    exit_if_failed(ended)
    transform = next(manifest for manifest in ended if manifest.spec.stage is Stage.TRANSFORM)
    terminal.say(f"\nWhere {MART} comes from (runner lineage {MART}):\n", style="bold")
    print_lineage(app, MART, None, "upstream", "tree")
    terminal.say("\nWhat to type next:\n", style="bold")
    short = terminal.short(transform.run_id)
    for command, why in (
        (f"runner show {short}", "its manifest: commit, inputs, outputs"),
        (f"runner rerun {short}", "again, from its record: identical?"),
        (f"runner lineage {MART} --format mermaid", "the graph for a document"),
        ("runner down", "stop; .runner keeps the state"),
    ):
        terminal.say(f"  .venv/bin/{command:<54} {why}")


@commands.command(short_help="Start the embedded services.")
def up(context: typer.Context, as_json: AsJson = False) -> None:
    """Start the embedded services: PostgreSQL, an AWS emulator and a portal, as processes under .runner."""
    _, endpoints = _up(context)
    if as_json:
        terminal.print_json({"aws_endpoint_url": endpoints.aws_endpoint_url, "portal_url": endpoints.portal_url})
    else:
        terminal.say(f"up: AWS emulator {endpoints.aws_endpoint_url}, portal {endpoints.portal_url}, PostgreSQL")


def _up(context: typer.Context) -> tuple[App, Endpoints]:
    from runner.embedded.services import up as start

    settings = settings_of(context)
    if not settings.embedded:
        raise SpecError(
            "RUNNER_LEDGER_URL: expected it unset for the embedded services, got one",
            hint="unset RUNNER_LEDGER_URL and AWS_ENDPOINT_URL, or use the services that they name",
        )
    endpoints = start(settings.home, emulator_bin=settings.emulator, progress=terminal.err.print)
    app = App(settings)
    app.prepare()
    return app, endpoints


@commands.command(short_help="Stop them; their state is kept.")
def down(
    context: typer.Context,
    purge: Annotated[bool, typer.Option(help="Delete their data, too.")] = False,
) -> None:
    """Stop the embedded services. Their state is kept."""
    from runner.embedded.services import down as stop

    stop(settings_of(context).home, purge=purge)
    terminal.say("down" + (", and their data is gone" if purge else "; runner up brings them back as they were"))


@commands.command(short_help="What is missing here, and how to get it.")
def doctor(context: typer.Context, as_json: AsJson = False) -> None:
    """Say what is missing here, and how to get it."""
    from runner.doctor import examine

    findings = list(examine(settings_of(context)))
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


@ledger_commands.command("migrate")
def migrate(context: typer.Context, as_json: AsJson = False) -> None:
    """Bring the ledger's tables up to this release. Safe to run again, and beside workers."""
    ledger = app_of(context).ledger
    applied, newer = ledger.migrate(), ledger.newer_migrations()
    if as_json:
        terminal.print_json({"applied": applied, "newer": newer})
        return
    terminal.say(f"applied {', '.join(applied)}" if applied else "the ledger is up to date")
    if newer:
        terminal.say(f"a later release has applied {', '.join(newer)}: this one works with that", style="yellow")


@ledger_commands.command("rebuild")
def rebuild(
    context: typer.Context,
    into_existing: Annotated[
        bool, typer.Option("--into-existing", help="Add what is missing to a ledger that has runs.")
    ] = False,
    table: Annotated[
        list[str] | None,
        typer.Option(metavar="TABLE=DOCUMENT", help="This metadata document is the table, as you have found out."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Every worker is stopped: do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the ledger anew of what S3 keeps: ended runs, queued runs, and the list of tables.

    The exit code is 1 where something was left that somebody has to look at.
    """
    app = app_of(context)
    chosen = dict(_chosen(each) for each in table or ())
    if not yes:
        _ask_whether_workers_are_stopped(interactive=not as_json)
    with terminal.err.status("") as status:
        done = app.rebuild.run(into_existing=into_existing, chosen=chosen, progress=status.update)
    if as_json:
        terminal.print_json({**asdict(done), "complete": done.complete, "not_restored": NOT_RESTORED})
    else:
        terminal.show_rebuilt(done)
    if not done.complete:
        raise typer.Exit(1)


def _chosen(text: str) -> tuple[str, str]:
    table, _, document = text.partition("=")
    if not document:
        raise SpecError(f"--table: expected TABLE=DOCUMENT, got {text!r}")
    return table, document


def _ask_whether_workers_are_stopped(*, interactive: bool) -> None:
    """A worker that is still at work writes to a ledger that does not know of its run yet."""
    terminal.err.print("Before a rebuild every worker is stopped, and a minute has passed for their last requests.")
    if not (interactive and sys.stdin.isatty()):
        raise SpecError("ledger rebuild: expected a terminal to ask at, or --yes, got neither", hint="--yes says so")
    typer.confirm("Is that so?", abort=True, err=True)
