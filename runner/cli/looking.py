"""Commands that read: runs, show, logs, spec, lineage."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import typer

from runner import terminal
from runner.app import App
from runner.cli.options import AsJson, RunId, app_of
from runner.model.difference import differences, same_outputs
from runner.model.errors import SpecError
from runner.model.lineage import mermaid, tree
from runner.model.manifest import TERMINAL, Manifest, State
from runner.model.names import manifest_key, openlineage
from runner.model.spec import Stage

commands = typer.Typer()

_DEPTH = 20
_DEEPEST_TREE = 100
"""Each step indents by four columns. Who wants more wants a file: `--format json`."""


@commands.command(short_help="List runs, newest first.")
def runs(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")] = 20,
    pipeline: Annotated[str | None, typer.Option(help="Of this pipeline only.")] = None,
    stage: Annotated[Stage | None, typer.Option(help="Of this stage only.")] = None,
    state: Annotated[State | None, typer.Option(help="In this state only.")] = None,
    dataset: Annotated[str | None, typer.Option(help="That published this dataset, or read it.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Submitted since then: 90m, 24h, 7d, or 2026-11-21T06:00 (UTC).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    app = app_of(context)
    from_then_on = None if since is None else _since(since, app.clock.now())
    rows = app.ledger.runs(
        limit=limit, pipeline=pipeline, stage=stage, state=state, dataset=dataset, since=from_then_on
    )
    if as_json:
        terminal.print_json([asdict(row) for row in rows])
    elif any((pipeline, stage, state, dataset, since)):
        terminal.runs_table(rows, none="no such runs: runner runs lists all of them")
    else:
        terminal.runs_table(rows)


def _since(text: str, now: datetime) -> datetime:
    """A moment as people say it: so many minutes, hours or days ago, or a date with or without a time."""
    ago = re.fullmatch(r"([0-9]{1,6})([mhd])", text)
    try:
        if ago:
            return now - int(ago[1]) * _UNITS[ago[2]]
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as exc:
        raise SpecError(f"--since: expected 90m, 24h, 7d or a date such as 2026-11-21, got {text!r}") from exc


_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


@commands.command(short_help="A run's manifest, or why it failed.")
def show(context: typer.Context, run: RunId, as_json: AsJson = False) -> None:
    """Show a run: its manifest once it is over; why it failed, with the end of its log."""
    app = app_of(context)
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


@commands.command(short_help="A run's log, all attempts.")
def logs(
    context: typer.Context,
    run: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a run's log, all attempts."""
    app = app_of(context)
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


@commands.command(short_help="A run's job spec, as stored.")
def spec(context: typer.Context, run: RunId) -> None:
    """Print a run's job spec as it was stored: `runner spec RUN > spec.json`."""
    app = app_of(context)
    stored = app.ledger.spec(app.client.find(run))
    if stored is not None:
        terminal.print_json(stored)


@commands.command(short_help="Which runs and snapshots a dataset comes from.")
def lineage(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="A dataset, or one of its snapshots: marts.delays@123.")],
    downstream: Annotated[bool, typer.Option("--downstream", help="What was made of it.")] = False,
    upstream: Annotated[bool, typer.Option("--upstream", help="What it was made of [default].")] = False,
    output_format: Annotated[str, typer.Option("--format", help="tree, json or mermaid.")] = "tree",
    depth: Annotated[int, typer.Option(min=1, max=_DEEPEST_TREE, help="How many steps deep a tree is drawn.")] = _DEPTH,
    as_json: AsJson = False,
) -> None:
    """Say which runs, commits and snapshots a dataset's newest snapshot comes from, down to the source."""
    if downstream and upstream:
        raise SpecError("lineage: expected --upstream or --downstream, got both")
    if output_format not in ("tree", "json", "mermaid"):
        raise SpecError(f"--format: expected tree, json or mermaid, got {output_format!r}")
    name, _, snapshot = dataset.partition("@")
    direction: Literal["upstream", "downstream"] = "downstream" if downstream else "upstream"
    form = "json" if as_json else output_format
    print_lineage(app_of(context), name, snapshot or None, direction, form, depth=depth)


def _explain_failure(app: App, manifest: Manifest) -> None:
    if manifest.failure is None:
        return
    terminal.print_failure(manifest.failure, label="failed")
    lines = list(app.client.log(manifest.run_id))
    terminal.say(f"the end of its log ({len(lines)} lines; runner logs {manifest.run_id}):", style="bold")
    for line in lines[-15:]:
        terminal.print_log_line(line)


@commands.command(short_help="How two runs differ, fact by fact.")
def diff(
    context: typer.Context,
    left: RunId,
    right: RunId,
    as_json: AsJson = False,
) -> None:
    """Say how two runs differ in what they ran, on what, and what came of it.

    The exit code is 0 where their outputs are the same, by fingerprint, and 1 where they are not.
    """
    app = app_of(context)
    one, other = _ended(app, left), _ended(app, right)
    found, same = differences(one, other), same_outputs(one, other)
    if as_json:
        terminal.print_json({"same_outputs": same, "differences": [asdict(each) for each in found]})
    else:
        terminal.differences_table(found, terminal.short(one.run_id), terminal.short(other.run_id))
        terminal.say("the outputs are the same" if same else "the outputs are not the same", style="bold")
    if not same:
        raise typer.Exit(1)


def _ended(app: App, run: str) -> Manifest:
    run_id = app.client.find(run)
    manifest = app.client.manifest(run_id)
    if manifest is None:
        raise SpecError(f"run {run_id}: expected one that is over, got one that is still to end")
    return manifest


def print_lineage(
    app: App,
    dataset: str,
    snapshot: str | None,
    direction: Literal["upstream", "downstream"],
    output_format: str,
    *,
    depth: int = _DEPTH,
) -> None:
    at = snapshot or app.ledger.newest(dataset)
    if at is None:
        raise SpecError(
            f"lineage of {dataset}: expected a dataset that a run published, got none",
            hint="runner runs shows what ran",
        )
    found = app.ledger.upstream(dataset, at) if direction == "upstream" else app.ledger.downstream(dataset, at)
    if not (found or app.ledger.upstream(dataset, at)):
        raise SpecError(f"lineage of {dataset}: expected a snapshot that a run made or read, got {at}")
    if output_format == "json":
        datasets = sorted({dataset} | {name for edge in found for name in (edge.output, edge.input) if name})
        names = {name: openlineage(name, app.settings.bucket)._asdict() for name in datasets}
        edges = [asdict(edge) for edge in found]
        terminal.print_json({"dataset": dataset, "snapshot": at, "edges": edges, "openlineage": names})
    elif output_format == "mermaid":
        terminal.say(mermaid(found))
    else:
        terminal.lineage_tree(tree(found, dataset, at, direction=direction, depth=depth))
