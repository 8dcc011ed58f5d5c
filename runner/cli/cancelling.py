"""The command that ends a run before its time: cancel."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Annotated

import typer

from runner import terminal
from runner.cli.options import AsJson, RunId, app_of
from runner.cli.running import hide_log
from runner.flow.job import run_job
from runner.flow.waiting import Waiting
from runner.model.manifest import Manifest, State
from runner.model.spec import JobSpec
from runner.ports import LostLease, Ports

commands = typer.Typer()

_LEASES_OF_PATIENCE = 2
"""A worker hears of it at its next heartbeat; one that died is given up after a lease."""
_POLL_S = 1.0


@commands.command(short_help="End a run that does not publish yet.")
def cancel(
    context: typer.Context,
    run: RunId,
    wait: Annotated[bool, typer.Option(help="Wait until the worker that has it has ended it.")] = True,
    as_json: AsJson = False,
) -> None:
    """End a run before it publishes anything.

    The exit code is 0 where it is cancelled (or, with --no-wait, asked to be), and 1 where that came too late.
    """
    app = app_of(context)
    run_id = app.client.find(run)
    answer = app.client.cancel(run_id)
    manifest = app.client.manifest(run_id)
    spec = app.ledger.spec(run_id)
    if answer == "asked" and manifest is None and spec is not None:
        hide_log()
        with terminal.progress(not as_json) as status:
            if status:
                status.update("waiting for its worker …")
            patience_s = _LEASES_OF_PATIENCE * app.settings.lease_s if wait else 0.0
            manifest = end_cancelled(spec, app.ports, patience_s=patience_s)
    row = app.ledger.run(run_id)
    state = manifest.state if manifest else row.state if row else None
    if as_json:
        terminal.print_json({"run_id": str(run_id), "answer": answer, "state": state})
    else:
        terminal.say(f"{run_id}  {_words(answer, manifest)}")
    if state is State.CANCELLED or (answer == "asked" and manifest is None and not wait):
        return
    raise typer.Exit(75 if answer == "asked" and manifest is None else 1)


def end_cancelled(spec: JobSpec, ports: Ports, *, patience_s: float) -> Manifest | None:
    """Decide a run that somebody asked to cancel, where nobody is at work on it; else wait for whoever is.

    None where it has not ended within `patience_s`. The message that is left in its queue finds the run decided.
    """
    give_up_at_s = time.monotonic() + patience_s
    while True:
        manifest = ports.ledger.manifest(spec.run_id)
        if manifest is not None:
            return manifest
        # Asked each time: a run that nobody wants cancelled would be executed here.
        ended = _claim(spec, ports) if ports.ledger.cancel_wanted(spec.run_id) else None
        if isinstance(ended, Manifest):
            return ended
        left_s = give_up_at_s - time.monotonic()
        if left_s <= 0:
            return None
        time.sleep(min(_POLL_S, left_s))


def _claim(spec: JobSpec, ports: Ports) -> Manifest | Waiting | None:
    try:
        return run_job(spec, ports, keep=lambda *_: nullcontext())
    except LostLease:
        return None


def _words(answer: str, manifest: Manifest | None) -> str:
    if manifest is None:
        wanted = "asked to be cancelled: the worker that has it ends it within a minute"
        return "too late to cancel: it publishes already" if answer == "too late" else wanted
    if manifest.state is State.CANCELLED:
        landed = len(manifest.outputs)
        return "cancelled" + (f", with {landed} outputs landed before" if landed else ", nothing was published")
    return f"not cancelled: it is over, {manifest.state.value}"
