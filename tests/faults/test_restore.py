"""The runbook of docs/operations.md brings an installation back whose ledger is an old backup's. The long form has all
steps at which a run can be under way then.
"""

from __future__ import annotations

import json
import re
from random import Random

from runner.model.spec import Stage
from tests.faults.invariants import Expected
from tests.faults.restore import (
    BACKUP,
    COMMANDS,
    RUNBOOK,
    SECTION,
    forget,
    forgotten,
    restore,
    run,
    scenarios,
    stop_workers,
    wait_out_leases,
)
from tests.faults.yard import ROWS, Ground


def test_nothing_is_lost_and_nothing_is_doubled(ground: Ground) -> None:
    found = forgotten("after-catalog.write_metadata", ground, Random(1))  # noqa: S311 - faults are no secrets
    assert [str(each) for each in found.violations] == []
    assert found.runs == 4


def test_what_the_ledger_has_forgotten_is_told_of_each_run(ground: Ground) -> None:
    """One had landed and was not recorded: its rows are there once, and it says that another plan's are not."""
    with ground.yard(*Stage) as yard:
        spec = forget(yard, "after-ledger.decide", {"state": "failed"})
        said = restore(yard)
        assert "applied" not in said["runner ledger migrate"]
        rebuilt = said["runner ledger rebuild --into-existing --yes"]
        assert re.search(r"^ended runs put back +1$", rebuilt, re.MULTILINE)
        assert re.search(r"^sent to their queues +2$", rebuilt, re.MULTILINE)
        assert said["runner reconcile --apply"].endswith("nothing was to be done\n")
        yard.heir(Stage.QUERY)
        assert yard.settle(), yard.told()
        yard.tables["marts.drawn"] = 4 * ROWS
        assert yard.found(restored=True).violations == ()
        shown = json.loads(run(yard, f"runner show {spec.run_id} --json"))
        assert (shown["state"], shown["failure"]["category"]) == ("failed", "conflict")
        assert [output["dataset"] for output in shown["outputs"]] == ["marts.drawn"]


def test_a_worker_that_is_at_work_gives_back_what_it_has(ground: Ground) -> None:
    """It is stopped first, and costs its run no try."""
    with ground.yard(Stage.QUERY) as yard:
        spec = yard.submit(yard.query(), Expected(rows={"marts.drawn": ROWS}))
        worker = yard.heir(Stage.QUERY)
        while "before-engine.execute" not in worker.moments:
            assert not worker.ended, worker.told()
        stop_workers(yard)
        wait_out_leases(yard)
        outcomes = [row["outcome"] for row in yard.rows_of("SELECT outcome FROM ledger.attempts")]
        assert outcomes in (["handed back"], ["succeeded"])
        yard.heir(Stage.QUERY)
        assert yard.settle(), yard.told()
        assert yard.run_row(spec.run_id)["state"] == "succeeded"
        assert yard.found().violations == ()


def test_the_runbook_has_these_commands_and_no_others() -> None:
    text = RUNBOOK.read_text()
    section = text[text.index(SECTION) :].removeprefix(SECTION).partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    typed = [line.strip() for block in blocks for line in block.strip().splitlines()]
    assert typed == [BACKUP, *COMMANDS]


def test_the_long_form_ends_a_run_at_every_kind_of_step() -> None:
    names = [each.name for each in scenarios()]
    assert len(set(names)) == len(names) >= 12
