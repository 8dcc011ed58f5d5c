"""A pipeline's stages in order, here, for those without Airflow: each goes through its queue as it would on AWS."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from runner.client import Client
from runner.model.manifest import Manifest, State
from runner.model.spec import JobSpec
from runner.worker import Worker

POLL_S = 1.0
"""How long one receive waits before the ledger is asked whether another worker has ended the run meanwhile."""


def run_in_order(
    specs: Sequence[JobSpec], client: Client, worker: Worker, *, started: Callable[[JobSpec], None]
) -> Iterator[Manifest]:
    """Submit and carry each spec to its end; stops after the first that does not succeed, or when told to."""
    for spec in specs:
        client.submit(spec)
        started(spec)
        manifest = _carry(spec, client, worker)
        if manifest is None:
            return
        yield manifest
        if manifest.state is not State.SUCCEEDED:
            return


def _carry(spec: JobSpec, client: Client, worker: Worker) -> Manifest | None:
    """Work on the stage's queue until this run is over. Other runs' messages that come first are worked on too.

    None where the worker was told to stop before.
    """
    while not worker.stopping:
        for _ in worker.work(spec.stage, max_jobs=1, idle_timeout_s=POLL_S):
            pass
        manifest = client.manifest(spec.run_id)
        if manifest is not None:
            return manifest
    return None
