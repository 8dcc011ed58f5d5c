"""The long form of the fault suite, which `make faults` runs: every fault at every step, and the table of what came."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from runner.config import load_settings
from runner.embedded.services import down, up
from tests.faults import network, restore, soak, stories
from tests.faults.tally import Found, Row, Scenario, last_line, row, total
from tests.faults.yard import Ground

AT_ONCE = 4
"""Scenarios wait for leases for most of their time."""

_TOLD_EVERY = 50
"""Scenarios, where nobody sees a bar."""

people = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class Played:
    """One scenario, with what it found or how it broke off."""

    scenario: Scenario
    found: Found | None
    error: str | None = None


def main() -> int:
    """0 where no invariant was broken, every scenario came to its end and every fault was injected, else 1."""
    asked = _arguments()
    # Somebody's cancelled run must not leave services behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(2**31)
    began_s = time.monotonic()
    with _ground() as ground:
        chosen = [each for each in _scenarios(ground) if asked.only is None or asked.only in each.name]
        played = _play(chosen, ground, seed)
    rows = [
        row(fault, [each.found for each in played if each.scenario.fault == fault and each.found])
        for fault in dict.fromkeys(each.fault for each in chosen)
        if any(each.scenario.fault == fault for each in played)
    ]
    broken = [each for each in played if each.error or (each.found and each.found.violations)]
    harmless = [each.fault for each in rows if each.injected == 0]
    if asked.json:
        print(json.dumps(_document(rows, broken, seed, time.monotonic() - began_s), indent=2))
    else:
        _print(rows, broken, seed)
    if harmless:
        people.print(f"expected each fault to hurt somebody, got none of: {', '.join(harmless)}")
    return 1 if broken or harmless or not chosen or len(played) < len(chosen) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="play the scenarios with NAME in their names")
    parser.add_argument("--seed", type=int, metavar="N", help="what is random is as it was with this seed")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    return parser.parse_args()


def _scenarios(ground: Ground) -> Iterator[Scenario]:
    yield from stories.everywhere(ground)
    yield from network.scenarios()
    yield from restore.scenarios()
    yield from soak.scenarios()


@contextmanager
def _ground() -> Iterator[Ground]:
    """Services of the suite's own, in a folder that is gone afterwards."""
    emulator = load_settings().emulator.absolute()
    for name in list(os.environ):
        if name.startswith(("AWS_", "RUNNER_")):  # nobody's real account or ledger
            del os.environ[name]
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    home = Path(tempfile.mkdtemp(prefix="stage-runner-faults-"))
    try:
        ground = Ground(up(home, emulator_bin=emulator, progress=people.print, durable=False), home / "ground")
        try:
            yield ground
        finally:
            ground.close()
    finally:
        down(home, purge=True)
        shutil.rmtree(home, ignore_errors=True)


def _play(scenarios: Sequence[Scenario], ground: Ground, seed: int) -> list[Played]:
    """All of them, some at a time."""
    played = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=people) as progress, ThreadPoolExecutor(AT_ONCE) as threads:
        bar = progress.add_task(f"seed {seed}", total=len(scenarios))
        # The longest stand last: begun first, nobody has to wait for them in the end.
        asked = {threads.submit(_play_one, each, ground, seed): each for each in reversed(scenarios)}
        try:
            for done in as_completed(asked):
                each = done.result()
                played.append(each)
                progress.update(bar, advance=1, description=each.scenario.fault)
                if not people.is_terminal and len(played) % _TOLD_EVERY == 0:
                    people.print(f"{len(played)} of {len(scenarios)}")
                for line in _said(each):
                    progress.console.print(line, markup=False)
        except KeyboardInterrupt:
            people.print(f"stopped after {len(played)} of {len(scenarios)}; those under way are waited for")
            threads.shutdown(cancel_futures=True)
    return played


def _play_one(scenario: Scenario, ground: Ground, seed: int) -> Played:
    try:
        chance = Random(f"{seed}/{scenario.name}")  # noqa: S311 - faults are no secrets
        return Played(scenario=scenario, found=scenario.play(ground, chance))
    except Exception:  # noqa: BLE001 - one scenario that breaks off must not end the others; it ends the suite with 1
        return Played(scenario=scenario, found=None, error=traceback.format_exc())


def _said(played: Played) -> list[str]:
    told = [str(each) for each in played.found.violations] if played.found else [str(played.error)]
    return [f"{played.scenario.name}: {each}" for each in told]


def _print(rows: Sequence[Row], broken: Sequence[Played], seed: int) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("fault")
    for name in ("injected", "runs", "attempts", "lost", "doubled"):
        table.add_column(name, justify="right")
    whole = total(rows)
    for each in (*rows, whole):
        numbers = (each.injected, each.runs, each.attempts, each.lost, each.doubled)
        table.add_row(each.fault, *(f"{number:,}" for number in numbers), style="bold" if each is whole else None)
    console = Console()
    console.print(table)
    if broken:
        console.print(f"\n{len(broken)} scenarios did not end as they must, with --seed {seed}:")
        for played in broken:
            for line in _said(played):
                console.print(f"  {line}", markup=False, soft_wrap=True)
        console.print()
    print(last_line(whole))


def _document(rows: Sequence[Row], broken: Sequence[Played], seed: int, took_s: float) -> dict[str, object]:
    return {
        "seed": seed,
        "took_s": round(took_s, 1),
        "faults": [asdict(each) for each in rows],
        "total": asdict(total(rows)),
        "broken": [{"scenario": each.scenario.name, "said": _said(each)} for each in broken],
    }


if __name__ == "__main__":
    sys.exit(main())
