"""The command that finds what fell between the services: reconcile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from runner import terminal
from runner.cli.options import AsJson, app_of
from runner.leftovers import HORIZON
from runner.log import printable
from runner.model.errors import RunnerError
from runner.reconcile import Finding, Part

commands = typer.Typer()

_LONGEST_TABLE = 50
_LONGEST_HORIZON_DAYS = 36500


@commands.command(short_help="Find what was lost on the way, and mend it.")
def reconcile(
    context: typer.Context,
    apply: Annotated[bool, typer.Option("--apply", help="Do it; else it is only said what would be done.")] = False,
    only: Annotated[list[Part] | None, typer.Option(help="This alone; may be given several times.")] = None,
    horizon: Annotated[
        int,
        typer.Option(
            metavar="DAYS",
            max=_LONGEST_HORIZON_DAYS,
            help="Delete files of runs that were over so long ago; 14 or more.",
        ),
    ] = HORIZON.days,
    as_json: AsJson = False,
) -> None:
    """Find runs whose messages are gone, manifests that are owed, dead letters that nobody gave up, and files that
    nothing names; and, with --apply, send, record and delete what is right.

    The exit code is 1 where something could not be mended, and somebody has to look at it.
    """
    reconciliation = app_of(context).reconcile
    found: list[Finding] = []
    away: RunnerError | None = None
    with terminal.err.status("") as status:
        try:
            for finding in reconciliation.run(
                only=only or tuple(Part),
                apply=apply,
                horizon=timedelta(days=horizon),
                progress=lambda text: status.update(Text(printable(text))),
            ):
                found.append(finding)
                status.update(Text(f"{len(found):,} found, {finding.kind.value} {printable(finding.subject)}"))
        except RunnerError as error:
            # What has been done by then is said all the same.
            away = error
    if as_json:
        terminal.print_json({"applied": apply, **_counts(found), "complete": away is None, "findings": _rows(found)})
    else:
        _show(found, apply=apply)
    if away is not None:
        raise away
    if any(each.failure for each in found):
        raise typer.Exit(1)


def _rows(found: Sequence[Finding]) -> list[dict[str, object]]:
    return [asdict(each) for each in found]


def _counts(found: Sequence[Finding]) -> dict[str, int]:
    return {
        "to_do": sum(each.remedy is not None and not each.done and not each.failure for each in found),
        "done": sum(each.done for each in found),
        "failed": sum(each.failure is not None for each in found),
    }


def _show(found: Sequence[Finding], *, apply: bool) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("kind", no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("found", overflow="fold")
    table.add_column("done" if apply else "to do", overflow="fold")
    for each in found[:_LONGEST_TABLE]:
        # As texts: rich would take what stands in brackets for its own markup.
        row = (each.kind.value, printable(each.subject), printable(each.found))
        table.add_row(*map(Text, row), _remedy(each, apply=apply))
    if table.row_count:
        terminal.out.print(table)
    if len(found) > _LONGEST_TABLE:
        terminal.say(f"… and {len(found) - _LONGEST_TABLE:,} more: --json lists all", style="dim")
    counts = _counts(found)
    if apply:
        failed = f", {counts['failed']:,} could not be done" if counts["failed"] else ""
        terminal.say(f"{counts['done']:,} done{failed}" if counts["done"] or failed else "nothing was to be done")
    else:
        terminal.say(f"dry run, nothing was changed: {counts['to_do']:,} to do, by runner reconcile --apply")


def _remedy(finding: Finding, *, apply: bool) -> Text:
    if finding.remedy is None:
        return Text("")
    if finding.failure is not None:
        return Text(printable(finding.failure), style="red")
    return Text(finding.remedy, style="green" if apply else "yellow")
