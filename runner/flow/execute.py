"""execute: the engine does the work; what it says on the way goes to the run's log."""

from __future__ import annotations

import logging

from runner.flow.resolve import Resolved
from runner.log import logger
from runner.model.messages import Progress
from runner.model.spec import JobSpec
from runner.ports import Execution, Ports

_LEVELS = logging.getLevelNamesMapping()


def execute(spec: JobSpec, resolved: Resolved, ports: Ports) -> Execution:
    """Raises whatever category of error the engine ended with."""
    return ports.engine(spec.stage).execute(resolved.job, served=resolved.served, say=_log)


def _log(progress: Progress) -> None:
    share = f" ({progress.done:,} of {progress.total:,})" if progress.done is not None and progress.total else ""
    logger.log(_LEVELS[progress.level.upper()], "%s%s", progress.message, share)
