"""The command `runner`. Each command reads its arguments, calls one thing, and prints it; no rule lives here."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from runner import __version__, terminal
from runner.cli import cancelling, dead_letters, looking, reconciling, running, services
from runner.config import load_settings
from runner.log import configure
from runner.model.errors import RunnerError
from runner.model.policy import exit_code

cli = typer.Typer(
    help="Runs pipeline stages from job specs, and can say of any table which commit made it from which data.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for commands in (services.commands, running.commands, cancelling.commands, looking.commands, reconciling.commands):
    cli.add_typer(commands)
cli.add_typer(dead_letters.commands, name="dlq", short_help="Messages that wait for a person.")
cli.add_typer(services.ledger_commands, name="ledger", short_help="The record of runs in Postgres.")


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
