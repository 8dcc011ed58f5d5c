"""Commands for messages that wait for a person: dlq list, show, redrive."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from runner import terminal
from runner.cli.options import AsJson, app_of
from runner.model.errors import SpecError
from runner.model.spec import Stage
from runner.redrive import Action, Entry, Redriven, Remedy

commands = typer.Typer(help="Dead letters: messages that wait for a person, a queue a stage.", no_args_is_help=True)

_LETTER = "A message's id or a run's; its beginning, or the last 8 characters of a run's."


@commands.command("list", short_help="What waits, and why.")
def list_letters(
    context: typer.Context,
    stage: Annotated[Stage | None, typer.Argument(help="Of this stage only.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters, stage by stage, each with what became of its run. While it looks, nobody else sees them."""
    listed = app_of(context).redrive.listed([stage] if stage else list(Stage), limit=limit)
    if as_json:
        letters = [_letter(entry) for entry in listed.entries]
        terminal.print_json({"letters": letters, "more": listed.more, "hidden": listed.hidden})
    else:
        terminal.letters_table(listed)


@commands.command(short_help="A letter, its run's history, and what redrive would do.")
def show(
    context: typer.Context,
    stage: Annotated[Stage, typer.Argument(help="Whose dead letters.")],
    letter: Annotated[str, typer.Argument(help=_LETTER)],
    as_json: AsJson = False,
) -> None:
    """Show a letter with its body, the history of its run, and what redrive would do. A run may have several."""
    found = app_of(context).redrive.examine(stage, letter)
    if as_json:
        terminal.print_json(
            [
                {
                    **_letter(each.entry),
                    "failure": each.entry.row and each.entry.row.failure,
                    "attempts": each.attempts,
                    "redrive": _remedy(each.remedy),
                }
                for each in found
            ]
        )
        return
    for number, each in enumerate(found):
        if number:
            terminal.say("")
        terminal.show_letter(each)


@commands.command(short_help="Carry on what letters ask for.")
def redrive(
    context: typer.Context,
    stage: Annotated[Stage, typer.Argument(help="Whose dead letters.")],
    letters: Annotated[list[str] | None, typer.Argument(metavar="[LETTER]...", help=_LETTER)] = None,
    every: Annotated[bool, typer.Option("--all", help="Every letter of the stage.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Carry on what letters ask for: a run that is over is submitted anew, one that is not is sent again.

    The exit code is 1 where a letter stays, as it is no job spec or another one than its run's.
    """
    app = app_of(context)
    if every == bool(letters):
        raise SpecError("dlq redrive: expected LETTER or --all, got " + ("both" if every else "neither"))

    def told(redriven: Redriven) -> None:
        if not as_json:
            terminal.redriven_line(redriven, dry_run=dry_run)

    if letters:
        done = app.redrive.redrive(stage, letters, dry_run=dry_run, told=told)
    else:
        done = app.redrive.redrive_all(stage, dry_run=dry_run, told=told)
    if as_json:
        terminal.print_json([_redriven(each, dry_run=dry_run) for each in done])
    elif not done:
        terminal.say("no dead letters", style="dim")
    if any(each.remedy.action is Action.STAY for each in done):
        raise typer.Exit(1)


def _letter(entry: Entry) -> dict[str, Any]:
    row = entry.row
    return {
        "stage": entry.letter.stage,
        "message_id": entry.letter.message_id,
        "sent_at": entry.letter.sent_at,
        "receives": entry.letter.receives,
        "reason": entry.letter.reason,
        "run_id": entry.spec and entry.spec.run_id,
        "pipeline": entry.spec and entry.spec.pipeline,
        "task": entry.spec and entry.spec.task,
        "state": row and row.state,
        "no_spec": entry.no_spec or None,
        "body": entry.letter.body,
    }


def _redriven(redriven: Redriven, *, dry_run: bool) -> dict[str, Any]:
    done = not dry_run and redriven.remedy.action is not Action.STAY
    return {**_letter(redriven.entry), "redrive": _remedy(redriven.remedy), "done": done}


def _remedy(remedy: Remedy) -> dict[str, Any]:
    return {"action": remedy.action, "because": remedy.because, "run_id": remedy.spec and remedy.spec.run_id}
