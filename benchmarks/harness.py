"""What benchmarks share: medians of interleaved repetitions, and results as one JSON object each."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from runner.embedded.services import Endpoints, down, up

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
REPETITIONS = 10


@dataclass(frozen=True, kw_only=True)
class Result:
    """`value` is a ratio within one run, so that a slow or busy machine does not decide; smaller is better."""

    name: str
    value: float
    goal: float
    met: bool
    unit: str
    commit: str
    machine: str
    date: str


def ratio(name: str, *, ours: Callable[[], object], base: Callable[[], object], goal: float, unit: str) -> Result:
    """The median of `ours` over the median of `base`, run by turns; the first turn warms up and does not count."""
    times: dict[str, list[float]] = {"ours": [], "base": []}
    for turn in range(REPETITIONS + 1):
        for which, call in (("base", base), ("ours", ours)):
            started = time.perf_counter()
            call()
            if turn:
                times[which].append(time.perf_counter() - started)
    medians = {which: statistics.median(each) for which, each in times.items()}
    about = ", ".join(f"{which} {seconds:.2f} s" for which, seconds in medians.items())
    return save(name, medians["ours"] / medians["base"], goal=goal, unit=unit, about=f"medians {about}")


def save(name: str, value: float, *, goal: float, unit: str, about: str) -> Result:
    """Write a result to its file, and say it; `about` is what it was made of."""
    value = round(value, 2)
    result = Result(
        name=name,
        value=value,
        goal=goal,
        met=value <= goal,
        unit=unit,
        commit=_git("rev-parse", "--short=12", "HEAD"),
        machine=f"{platform.machine()}, {_cores()} cores, Python {platform.python_version()}",
        date=datetime.now(UTC).date().isoformat(),
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(asdict(result), indent=2) + "\n", "utf-8")
    print(f"{name}: {value} {unit} (goal {goal}, {'met' if result.met else 'not met'}); {about}")
    return result


@contextmanager
def services(home: Path | None = None) -> Iterator[Endpoints]:
    """Embedded services of the benchmark's own, in `home` if given; gone afterwards."""
    with TemporaryDirectory(prefix="stage-runner-bench-") as folder:
        home = home or Path(folder) / "home"
        try:
            yield up(home, emulator_bin=ROOT / ".venv-emulator/bin/ministack", progress=print)
        finally:
            down(home, purge=True)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
