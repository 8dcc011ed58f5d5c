"""lease: the tables that a run is to publish are taken for it, until it is decided."""

from __future__ import annotations

from runner.flow.waiting import Waiting
from runner.log import logger
from runner.model.names import is_table
from runner.model.spec import JobSpec
from runner.ports import Claimed, Ports

_LONGEST_WAIT_S = 30.0


def lease(spec: JobSpec, claimed: Claimed, ports: Ports) -> Waiting | None:
    """None once the tables are the run's; else the run is given back, which costs no try, and comes again.

    A run that begins from a table's state needs that table alone, or each of two would publish without the other's
    rows. Others share theirs: what they write is put together when it is committed.
    """
    outputs = [] if spec.publishes_to_branch else [each for each in spec.outputs if is_table(each.dataset)]
    if not outputs:
        return None
    in_the_way = ports.ledger.lease(
        spec.run_id,
        claimed.attempt,
        shared=[each.dataset for each in outputs if not each.begins_from_state],
        exclusive=[each.dataset for each in outputs if each.begins_from_state],
    )
    if in_the_way is None:
        return None
    wait_s = min(2.0 ** min(claimed.attempt, 10), _LONGEST_WAIT_S)
    logger.info("run %s has a table that this one is to write: waiting %.0f s", in_the_way, wait_s)
    ports.ledger.release(spec.run_id, claimed.attempt, outcome="handed back", failure=None, wait_s=wait_s)
    return Waiting(seconds=wait_s, failure=None)
