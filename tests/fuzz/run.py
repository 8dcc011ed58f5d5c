"""The long form of fuzzing, which `make fuzz` runs: atheris on each parser, and the table of what came."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

HANGS_S = 60
"""For one input. None takes a second; a machine may be busy."""
MEMORY_MIB = 3072
"""Of a process: what is imported takes a fifth of it."""
_STARTS_S = 120
"""What a process may take besides its time: imports are traced, so they are slow."""
_SHOWN_BYTES = 2000
_SHARE_BY_BYTES = 0.3
"""Of all tries, those that libFuzzer makes of bytes; the others are changed in their tree."""

_BEGAN_S = time.monotonic()

people = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class Fuzzed:
    """What came of one target."""

    target: str
    executions: int
    seconds: float
    inputs: tuple[Path, ...]
    """Those that led to something other than a result or a typed error, each in a file."""
    reason: str
    """The last that the process said, where it did not end well."""


def main() -> int:
    """0 where every target came to its end and found nothing, 1 where not, 2 where it cannot be run."""
    asked = _arguments()
    if asked.fuzz is not None:
        _fuzz(asked.fuzz, asked.seconds, asked.keep, asked.seed)
    if asked.input is not None:
        return _try(asked.only, asked.input)
    if find_spec("atheris") is None:
        _tell("fuzz: expected atheris, got none: it has wheels for Linux on x86-64 and CPython 3.11 to 3.13")
        return 2
    from tests.fuzz.targets import CONTROL, SECRET, TARGETS

    chosen = [each for each in (*TARGETS.values(), CONTROL) if each.name == asked.only]
    if asked.only is None:
        # The longest first, so that no processor waits for it at the end.
        chosen = sorted(TARGETS.values(), key=lambda each: -each.share)
    if not chosen:
        _tell(f"--only: expected one of {', '.join(TARGETS)}, got {asked.only!r}")
        return 2
    at_once = min(asked.jobs or os.cpu_count() or 1, len(chosen))
    share_s = asked.seconds * at_once / sum(each.share for each in chosen)
    _tell(f"{len(chosen)} targets, {at_once} at once; seed {asked.seed}")
    with ThreadPoolExecutor(at_once) as pool:
        env = {**os.environ, "SECRET_OF_THE_ENVIRONMENT": SECRET}
        fuzzed = list(
            pool.map(
                lambda each: _in_a_process(each.name, round(share_s * each.share), asked.keep, asked.seed, env), chosen
            )
        )
    _print(fuzzed)
    return 1 if any(each.inputs or each.reason for each in fuzzed) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=300, metavar="S", help="for all targets together [300]")
    parser.add_argument("--only", metavar="TARGET", help="this one alone")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes at once [as many as there are processors]")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()) % 2**31, metavar="N", help="what is drawn is as then"
    )
    parser.add_argument("--input", type=Path, metavar="FILE", help="what --only says to this file, and no more")
    parser.add_argument("--keep", type=Path, default=Path(".cache/fuzz"), metavar="FOLDER", help="what was found")
    parser.add_argument("--fuzz", metavar="TARGET", help=argparse.SUPPRESS)
    return parser.parse_args()


# ---------------------------------------------------------------- in a process of its own


def _fuzz(name: str, seconds: int, keep: Path, seed: int) -> None:
    """Never returns: libFuzzer ends the process."""
    # By its name, as it is not everywhere: mypy would miss it.
    atheris: Any = import_module("atheris")
    # Not yaml's, whose parser is ten times slower so, and has no secrets from what is made in its tree.
    with atheris.instrument_imports(include=["runner"]):
        from tests.fuzz.targets import CONTROL, TARGETS
    target = CONTROL if name == CONTROL.name else TARGETS[name]
    corpus = keep / "corpus" / _slug(name)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(each)

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        random = Random(seed)  # noqa: S311 - to be drawn again
        if random.random() < _SHARE_BY_BYTES:
            mutated: bytes = atheris.Mutate(data, longest)
            return mutated
        return target.mutated(data, random)[:longest]

    left_s = max(1, int(seconds - (time.monotonic() - _BEGAN_S)))
    options = [
        f"-max_total_time={left_s}", f"-seed={seed}", f"-timeout={HANGS_S}", f"-rss_limit_mb={MEMORY_MIB}",
        f"-max_len={target.longest}", f"-artifact_prefix={keep / 'found' / _slug(name)}-", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.hold_quietly, custom_mutator=mutate)
    atheris.Fuzz()


def _slug(name: str) -> str:
    return name.replace(" ", "-")


# ---------------------------------------------------------------- and from outside


def _in_a_process(name: str, seconds: int, keep: Path, seed: int, env: dict[str, str]) -> Fuzzed:
    found = keep / "found"
    found.mkdir(parents=True, exist_ok=True)
    before = set(found.iterdir())
    command = [sys.executable, __file__, "--fuzz", name, "--seconds", str(seconds), "--seed", str(seed)]
    began_s = time.monotonic()
    with subprocess.Popen(
        [*command, "--keep", str(keep)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
    ) as process:
        # libFuzzer looks at its clock between two inputs, and at a hang by itself.
        late = threading.Timer(seconds + HANGS_S + _STARTS_S, process.kill)
        late.start()
        said = process.communicate()[0].decode(errors="replace")
        late.cancel()
    stated = re.search(r"stat::number_of_executed_units:\s*(\d+)", said)
    mine = sorted(path for path in set(found.iterdir()) - before if path.name.startswith(f"{_slug(name)}-"))
    return Fuzzed(
        target=name,
        executions=int(stated[1]) if stated else 0,
        seconds=time.monotonic() - began_s,
        inputs=tuple(path for path in mine if not path.name.startswith(f"{_slug(name)}-slow-unit-")),
        reason="" if process.returncode == 0 else _reason(said, process.returncode),
    )


def _reason(said: str, code: int) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    told = [
        line for line in lines if re.match(r"\S*(Finding|Error|Exception)\b.*:", line) or "ERROR: libFuzzer" in line
    ]
    return "\n".join(dict.fromkeys(told[-3:] or lines[-5:])) or f"it ended with code {code}"


def _print(fuzzed: Sequence[Fuzzed]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("target")
    for name in ("executions", "seconds", "crashes"):
        table.add_column(name, justify="right")
    for each in fuzzed:
        crashes = max(len(each.inputs), 1 if each.reason else 0)
        style = "red" if crashes else ""
        table.add_row(each.target, f"{each.executions:,}", f"{each.seconds:.0f}", Text(str(crashes), style=style))
    table.add_row(
        "all",
        f"{sum(each.executions for each in fuzzed):,}",
        "",
        str(sum(max(len(each.inputs), 1 if each.reason else 0) for each in fuzzed)),
    )
    Console().print(table)
    for each in fuzzed:
        if each.reason:
            _tell(f"\n{each.target}: {each.reason}")
        for path in each.inputs:
            content = path.read_bytes()
            cut = f" … and {len(content) - _SHOWN_BYTES:,} more bytes" if len(content) > _SHOWN_BYTES else ""
            _tell(f"{path}: {content[:_SHOWN_BYTES]!r}{cut}")


def _try(name: str | None, path: Path) -> int:
    """One input again: what the parser says of it. Raises what was found."""
    from tests.fuzz.targets import CONTROL, TARGETS

    target = CONTROL if name == CONTROL.name else TARGETS.get(name or "")
    if target is None:
        _tell(f"--input: expected --only with one of {', '.join(TARGETS)}, got {name!r}")
        return 2
    said = target.hold(path.read_bytes())
    _tell("taken" if said is None else f"{type(said).__name__}: {said}")
    return 0


def _tell(line: str) -> None:
    people.print(Text(line), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
