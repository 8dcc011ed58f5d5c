"""What people see: tables, trees and failures, by rich. Machines get `--json` and none of this."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import IO, Any
from uuid import UUID

from pydantic import BaseModel
from rich.console import Console, ConsoleOptions, RenderableType
from rich.filesize import decimal
from rich.segment import Segment
from rich.status import Status
from rich.table import Table
from rich.text import Text

from runner.log import logger, printable
from runner.model.difference import Difference
from runner.model.errors import Failure
from runner.model.lineage import LineageNode, LineageTree
from runner.model.manifest import Manifest, OutputRecord, State
from runner.model.text import printable_json
from runner.ports import SHORT_ID_CHARACTERS, RunRow
from runner.rebuild import NOT_RESTORED, Rebuilt
from runner.redrive import Action, Entry, Examined, Listed, Redriven, Remedy

_PIPE_WIDTH = 160
"""Columns where nobody's terminal says: files and pipes, which should not get a terminal's line breaks."""


class PlainConsole(Console):
    """Shows text as it is: nothing in it is markup or the name of an emoji, no control character gets through.

    Names come from people who may mean harm, and not every place that shows one remembers it.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None, file: IO[str] | None = None) -> None:
        super().__init__(stderr=stderr, width=width, file=file, highlight=False, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # A segment with `control` is rich's own: where a spinner is drawn.
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def _console(*, stderr: bool = False) -> Console:
    console = PlainConsole(stderr=stderr)
    return console if console.is_terminal else PlainConsole(stderr=stderr, width=_PIPE_WIDTH)


out = _console()
err = _console(stderr=True)

_COLOUR = {
    State.SUCCEEDED: "green",
    State.FAILED: "red",
    State.CANCELLED: "yellow",
    State.RUNNING: "cyan",
    State.QUEUED: "dim",
}


def short(run_id: UUID) -> str:
    """The end of a run id, as people are shown it and may type it: its beginning is the time, shared by neighbours."""
    return str(run_id)[-SHORT_ID_CHARACTERS:]


def print_json(value: Any) -> None:
    """One JSON document on standard output, and nothing else there."""
    document = json.dumps(value, indent=2, ensure_ascii=False, default=_jsonable)
    print(printable_json(document))  # noqa: T201 - machine output


def _jsonable(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    return value.isoformat() if isinstance(value, datetime) else str(value)


def say(message: str, *, style: str = "") -> None:
    out.print(Text(printable(message), style=style), soft_wrap=True)


def warn(message: str) -> None:
    """On standard error, so that what comes on standard output stays one document."""
    err.print(Text(printable(message), style="yellow"), soft_wrap=True)


def print_failure(failure: Failure, *, label: str = "error") -> None:
    """Category, message, what failed, and what to do next; on standard error."""
    err.print(
        Text.assemble((f"{label} ", "bold red"), (f"[{failure.category.value}] ", "red"), printable(failure.message)),
        soft_wrap=True,
    )
    if failure.hint:
        err.print(Text.assemble(("  → ", "dim"), printable(failure.hint)), soft_wrap=True)


@contextmanager
def progress(enabled: bool) -> Iterator[Status | None]:
    """On a terminal: one line that says what the job at hand is doing, fed by its log."""
    if not (enabled and out.is_terminal):
        yield None
        return
    with out.status("", spinner="dots") as status:
        handler = _Status(status)
        logger.addHandler(handler)
        try:
            yield status
        finally:
            logger.removeHandler(handler)


class _Status(logging.Handler):
    def __init__(self, status: Status) -> None:
        super().__init__(logging.INFO)
        self._status = status

    def emit(self, record: logging.LogRecord) -> None:
        self._status.update(Text(printable(record.getMessage())[: max(20, out.width - 4)], style="dim"))


# ---------------------------------------------------------------- runs


def runs_table(
    rows: Iterable[RunRow], *, none: str = "no runs yet: runner demo makes some, runner submit queues one"
) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "task", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("rows", "took"):
        table.add_column(name, no_wrap=True, justify="right")
    for name in ("commit", "submitted (UTC)"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(
            short(row.run_id),
            f"{row.pipeline}/{row.task}",
            Text(row.state.value, style=_COLOUR[row.state]),
            "" if row.rows is None else f"{row.rows:,}",
            _took(row.started_at, row.decided_at),
            row.commit[:8],
            f"{row.submitted_at:%Y-%m-%d %H:%M:%S}",
        )
    if table.row_count:
        out.print(table)
    else:
        say(none, style="dim")


def run_line(manifest: Manifest) -> None:
    """One line for a run that has just ended."""
    mark, style = ("✓", "green") if manifest.state is State.SUCCEEDED else ("✗", "red")
    started = manifest.attempts[0].started_at if manifest.attempts else None
    text = Text.assemble(
        (f"  {mark} ", style),
        (f"{manifest.spec.task:<16}", "bold"),
        (f"{manifest.spec.stage.value:<11}", "dim"),
        f"{_took(started, manifest.decided_at):>7}  ",
        printable(_outcome(manifest)),
    )
    out.print(text, soft_wrap=True)


def _outcome(manifest: Manifest) -> str:
    if manifest.failure:
        return manifest.failure.message
    counts = manifest.report.counts
    if "rows_read" in counts:
        kept = f"{counts['rows_read']:,} rows = {counts['rows_loaded']:,} loaded"
        return f"{kept} + {counts['rows_quarantined']:,} in quarantine"
    if manifest.spec.rerun:
        found = Counter(output.comparison or "not compared" for output in manifest.outputs)
        return ", ".join(f"{count} of {found.total()} outputs {comparison}" for comparison, count in found.items())
    return ", ".join(_output_words(output) for output in manifest.outputs)


_COLUMNS_NAMED = 5
"""Of those that differ; --json has them all."""


def comparison_line(output: OutputRecord, before: OutputRecord | None) -> None:
    """One line for an output of a rerun, `before` being what the run that it repeats had made of it."""
    style = {"identical": "green", "different": "red"}.get(str(output.comparison), "yellow")
    say(f"{output.dataset}: {_comparison(output, before)}", style=style)


def _comparison(output: OutputRecord, before: OutputRecord | None) -> str:
    if output.comparison is None or before is None:
        return "not made by the run it repeats"
    if output.comparison == "not comparable":
        return f"not comparable: by {before.fingerprint.engine} then, by {output.fingerprint.engine} now"
    if output.comparison == "identical":
        return "identical"
    # An older release took fingerprints of whole rows only.
    names = _as_the_table_has_them(output) if before.fingerprint.columns else None
    more = len(names or ()) - _COLUMNS_NAMED
    columns = f" in {', '.join(names[:_COLUMNS_NAMED])}" if names else ""
    columns += f" and {more} more columns" if more > 0 else ""
    columns += " only in which values stand together" if names == () else ""
    if output.rows is None or output.repeated_rows is None:  # files as they came
        return f"different{columns}"
    then, now = (f"{rows:,} row{'' if rows == 1 else 's'}" for rows in (output.repeated_rows, output.rows))
    return f"different{columns}; {then} then, {now} now"


def _as_the_table_has_them(output: OutputRecord) -> tuple[str, ...]:
    place = {column.name: number for number, column in enumerate(output.columns or ())}
    return tuple(sorted(output.different_columns, key=lambda name: place.get(name, len(place))))


def _output_words(output: OutputRecord) -> str:
    name = output.dataset.rsplit("/", 1)[-1].rsplit(".", 1)[-1]
    size = decimal(output.bytes) if output.rows is None else f"{output.rows:,} rows"
    return f"{name} {size}"


def show_manifest(manifest: Manifest) -> None:
    spec, report = manifest.spec, manifest.report
    facts = Table.grid(padding=(0, 2))
    facts.add_row("run", str(manifest.run_id))
    facts.add_row("state", Text(manifest.state.value, style=_COLOUR[manifest.state]))
    facts.add_row(
        "pipeline", f"{spec.pipeline} / {spec.task} ({spec.stage.value}), for {spec.logical_time.isoformat()}"
    )
    facts.add_row("logic", Text(f"{spec.logic.repo} at {spec.logic.commit}"))
    if spec.logic.dirty:
        facts.add_row("", Text("dirty: made of a working tree with changes that were not committed", style="yellow"))
    if report.logic:
        facts.add_row("", f"tree {report.logic.tree}, from the {report.logic.origin}")
    if report.software:
        packages = ", ".join(f"{name} {version}" for name, version in sorted(report.software.packages.items()))
        facts.add_row("ran on", f"stage-runner {report.software.runner}, Python {report.software.python}, {packages}")
        if report.software.walls:
            facts.add_row("ran behind", str(report.software.walls))
    if spec.rerun:
        facts.add_row("repeats", str(spec.rerun.of))
    facts.add_row("attempts", ", ".join(f"{each.attempt} {each.outcome}" for each in manifest.attempts))
    for name, count in report.counts.items():
        facts.add_row(name, f"{count:,}")
    out.print(facts)
    _inputs(manifest)
    _outputs(manifest)
    _steps(manifest)


def _inputs(manifest: Manifest) -> None:
    if not manifest.report.inputs:
        return
    table = Table(box=None, pad_edge=False, header_style="bold", title="inputs", title_justify="left")
    for name in ("dataset", "snapshot", "declared", "claimed", "observed"):
        table.add_column(name, overflow="fold")
    for record in manifest.report.inputs:
        table.add_row(
            record.dataset,
            (record.snapshot or "")[:20],
            "yes" if record.declared else Text("no", style="yellow"),
            "unknown" if record.claimed is None else "yes" if record.claimed else Text("no", style="yellow"),
            record.observed or "not watched",
        )
    out.print(table)


def _outputs(manifest: Manifest) -> None:
    if not manifest.outputs:
        return
    table = Table(box=None, pad_edge=False, header_style="bold", title="outputs", title_justify="left")
    for name in ("dataset", "snapshot", "rows", "fingerprint"):
        table.add_column(name, overflow="fold", justify="right" if name == "rows" else "left")
    if manifest.spec.rerun:
        table.add_column("beside the run it repeats")
    for output in manifest.outputs:
        row = [
            output.dataset + (f" @{output.branch[:14]}…" if output.branch else ""),
            output.snapshot or "",
            "" if output.rows is None else f"{output.rows:,}",
            output.fingerprint.hash[:16],
        ]
        table.add_row(*row, *([output.comparison or "not made by it"] if manifest.spec.rerun else []))
    out.print(table)


def _steps(manifest: Manifest) -> None:
    steps = [step for step in manifest.report.steps if step.status not in ("pass", "success")]
    passed = len(manifest.report.steps) - len(steps)
    if manifest.report.steps:
        say(f"steps: {passed} passed" + (f", {len(steps)} not" if steps else ""), style="bold")
    for step in steps:
        rows = f" {step.rows:,} rows" if step.rows is not None else ""
        say(f"  {step.status:<8}{step.kind} {step.name}{rows} {step.message or ''}", style="yellow")


def differences_table(found: Iterable[Difference], left: str, right: str) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("fact", left, right):
        table.add_column(name, overflow="fold")
    for each in found:
        table.add_row(Text(each.fact), *(Text(printable(told or "—")) for told in (each.left, each.right)))
    if table.row_count:
        out.print(table)


def print_log_line(line: dict[str, Any]) -> None:
    style = {"warning": "yellow", "error": "red", "debug": "dim"}.get(str(line.get("level")), "")
    at = str(line.get("at", ""))[11:19]
    out.print(
        Text.assemble(
            (f"{at} ", "dim"), (f"{line.get('attempt', '')!s:>2} ", "dim"), (printable(str(line.get("message"))), style)
        )
    )
    if "traceback" in line:
        say(str(line["traceback"]), style="dim")


# ---------------------------------------------------------------- dead letters

_SHORT_MESSAGE_ID = 8
_LONGEST_BODY = 4000
_NO_REASON = "none given"


def letters_table(listed: Listed) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("letter", "stage", "sent (UTC)", "run", "task", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("reason", overflow="fold")
    for entry in listed.entries:
        letter = entry.letter
        reason = Text(printable(letter.reason)) if letter.reason else Text(_NO_REASON, style="dim")
        table.add_row(
            letter.message_id[:_SHORT_MESSAGE_ID],
            letter.stage.value,
            f"{letter.sent_at:%Y-%m-%d %H:%M:%S}",
            short(entry.spec.run_id) if entry.spec else Text("no spec", style="yellow"),
            _task(entry),
            _letter_state(entry),
            reason,  # as a Text: brackets in it are no markup
        )
    if table.row_count:
        out.print(table)
    elif not listed.hidden:
        say("no dead letters", style="dim")
    if listed.more:
        say(f"… and more than these {len(listed.entries):,}: --limit", style="dim")
    if listed.hidden:
        say(f"about {listed.hidden:,} more are hidden, as somebody looks at them: wait a minute", style="dim")


def _task(entry: Entry) -> str:
    return f"{entry.spec.pipeline}/{entry.spec.task}" if entry.spec else ""


def _letter_state(entry: Entry) -> Text:
    if entry.row is None:
        return Text("unknown" if entry.spec else "", style="yellow")
    return Text(entry.row.state.value, style=_COLOUR[entry.row.state])


def show_letter(examined: Examined) -> None:
    entry, letter = examined.entry, examined.entry.letter
    facts = Table.grid(padding=(0, 2))
    facts.add_row("letter", letter.message_id)
    facts.add_row("stage", letter.stage.value)
    facts.add_row("sent", f"{letter.sent_at:%Y-%m-%d %H:%M:%S} UTC, received {letter.receives:,} times")
    facts.add_row("reason", Text(printable(letter.reason or _NO_REASON)))
    facts.add_row("run", f"{entry.spec.run_id}  {_task(entry)}" if entry.spec else Text("no spec", style="yellow"))
    if entry.spec:
        facts.add_row("state", _letter_state(entry))
    out.print(facts)
    _attempts(examined)
    if entry.row and entry.row.failure:
        failure = entry.row.failure
        say(f"failed [{failure.category.value}] {failure.message}", style="red")
        if failure.hint:
            say(f"  → {failure.hint}")
    say("body", style="bold")
    more = len(letter.body) - _LONGEST_BODY
    say(letter.body[:_LONGEST_BODY] + (f" … and {more:,} more characters: --json has all" if more > 0 else ""))
    say("redrive", style="bold")
    say(f"  {_remedy(entry, examined.remedy, dry_run=True)}")


def _attempts(examined: Examined) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", title="attempts", title_justify="left")
    for name in ("attempt", "outcome", "worker", "started (UTC)", "took"):
        table.add_column(name, no_wrap=True)
    table.add_column("failure", overflow="fold")
    for each in examined.attempts:
        table.add_row(
            str(each.attempt),
            each.outcome,
            Text(printable(each.worker)),
            f"{each.started_at:%Y-%m-%d %H:%M:%S}",
            _took(each.started_at, each.ended_at),
            Text(f"[{each.failure.category.value}] {printable(each.failure.message)}" if each.failure else ""),
        )
    if table.row_count:
        out.print(table)


def redriven_line(redriven: Redriven, *, dry_run: bool) -> None:
    stays = redriven.remedy.action is Action.STAY
    words = _remedy(redriven.entry, redriven.remedy, dry_run=dry_run)
    say(f"{redriven.entry.letter.message_id[:_SHORT_MESSAGE_ID]}  {words}", style="yellow" if stays else "")


def _remedy(entry: Entry, remedy: Remedy, *, dry_run: bool) -> str:
    would = "would be " if dry_run else ""
    if remedy.action is Action.SUBMIT and remedy.spec is not None:
        return f"{would}submitted as run {remedy.spec.run_id}: {remedy.because}"
    if remedy.action is Action.SEND and entry.spec is not None:
        return f"{would}sent to {entry.spec.stage.value} again: {remedy.because}"
    return f"{would}removed: {remedy.because}" if remedy.action is Action.REMOVE else f"stays: {remedy.because}"


# ---------------------------------------------------------------- rebuild

_LONGEST_LIST = 20


def show_rebuilt(done: Rebuilt) -> None:
    facts = Table.grid(padding=(0, 2))
    facts.add_row("ended runs put back", f"{done.decided:,}")
    facts.add_row("runs put back that are to end still", f"{done.queued:,}")
    facts.add_row("sent to their queues", f"{done.sent:,}")
    facts.add_row("runs that were there", f"{done.known:,}")
    facts.add_row("tables entered", f"{len(done.tables):,}")
    out.print(facts)
    unwitnessed = [f"{each.dataset}: {each.document}" for each in done.tables if not each.witnessed]
    _list("Entered though no run's record names what they hold last:", unwitnessed)
    undecided = [
        "\n    ".join([f"{each.dataset}: {each.reason}", *(f"--table {each.dataset}={uri}" for uri in each.candidates)])
        for each in done.undecided
    ]
    _list(
        "Tables left out: say which document is the table, and rebuild --into-existing before a worker starts:",
        undecided,
    )
    _list("Not put back:", done.unreadable)
    _list("What S3 does not keep:", NOT_RESTORED)


def _list(title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    say(title, style="bold")
    for line in lines[:_LONGEST_LIST]:
        say(f"  {line}")
    if len(lines) > _LONGEST_LIST:
        say(f"  … and {len(lines) - _LONGEST_LIST:,} more: --json lists all", style="dim")


# ---------------------------------------------------------------- lineage


def lineage_tree(lineage: LineageTree) -> None:
    """A line a snapshot. What is made of the same as one that is drawn elsewhere says where that is."""
    drawn: set[tuple[str, str | None]] = set()
    for guide, node in _lines(lineage.root):
        key = (node.dataset, node.snapshot)
        label = _node_label(node)
        if node.below == "elsewhere":
            label.append(f"  … as {'above' if key in drawn else 'below'}", style="dim")
        else:
            drawn.add(key)
        if node.below == "deeper":
            label.append("  …", style="dim")
        out.print(Text(guide, style="dim") + label, soft_wrap=True)
    if lineage.hidden:
        say(f"… and {lineage.hidden:,} more, which are farther away: --depth, or --format json for all", style="dim")


def _lines(node: LineageNode, guide: str = "", below: str = "") -> Iterator[tuple[str, LineageNode]]:
    """Each node with the lines that lead to it; no deeper than `--depth` goes, which Python can recurse."""
    yield guide, node
    for child in node.children:
        last = child is node.children[-1]
        yield from _lines(child, below + ("└── " if last else "├── "), below + ("    " if last else "│   "))


def _node_label(node: LineageNode) -> Text:
    text = Text(printable(node.dataset), style="bold")
    if node.snapshot:
        text.append(f" @{node.snapshot[:19]}", style="cyan")
    edge = node.made_by
    if edge:
        rows = f"{edge.rows:,} rows, " if edge.rows is not None else ""
        text.append(f"  {rows}run {short(edge.run_id)} at commit {edge.commit[:8]}", style="dim")
        if edge.claimed is None:
            text.append("  made of: unknown, its declared inputs are listed", style="yellow")
    return text


def _took(start: datetime | None, end: datetime | None) -> str:
    return f"{(end - start).total_seconds():.1f} s" if start and end else ""
