"""Job code that takes all it can get: each kind of bomb ends its own run, with a reason, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.model.errors import Category
from runner.model.manifest import Manifest, State
from runner.model.names import log_key
from runner.model.spec import Resources
from tests.support.site import Site

PROJECT = "name: bomb\nprofile: bomb\nversion: 1.0.0\n"
HEAD = "import os, sys, threading\n\ndef model(dbt, session):\n    dbt.config(materialized='table')\n"
TAIL = "    return session.sql('SELECT 1 AS one')\n"


def run(site: Site, code: str, **resources: int) -> Manifest:
    """A run of one Python model with this body."""
    lines = "".join(f"    {line}\n" for line in code.strip().splitlines())
    commit = site.commit({"dbt_project.yml": PROJECT, "models/bomb.py": HEAD + lines + TAIL})
    work = {"kind": "dbt", "steps": [{"command": "build"}]}
    spec = site.spec(commit, "transform", work, outputs=[{"dataset": "attack.bomb", "from": "main.bomb"}])
    return site.end(spec.model_copy(update={"resources": Resources(**resources)}))


def failed(manifest: Manifest, *words: str) -> None:
    assert manifest.state is State.FAILED
    assert manifest.failure is not None
    assert manifest.failure.category is Category.LOGIC, manifest.failure
    for word in words:
        assert re.search(word, manifest.failure.message), manifest.failure
    assert manifest.outputs == ()


@pytest.fixture(autouse=True)
def _nothing_stays_behind(site: Site) -> Iterator[None]:
    """After each, the worker that carried the bomb carries an honest job, and its disk is as before."""
    yield
    assert run(site, "pass").state is State.SUCCEEDED
    assert list((site.settings.home / "scratch").glob("*/scratch")) == []


def test_memory_is_taken_up_to_the_jobs_own(site: Site) -> None:
    bomb = "taken = []\nwhile True:\n    taken.append(bytearray(16 * 1024 * 1024))"
    failed(run(site, bomb, memory_mib=512), "memory")


def test_memory_is_taken_in_tiny_pieces(site: Site) -> None:
    bomb = "taken = []\nwhile True:\n    taken.append(str(len(taken)) * 10)"
    failed(run(site, bomb, memory_mib=512), "memory")


def test_a_file_grows_without_end(site: Site) -> None:
    bomb = "with open(os.environ['HOME'] + '/big', 'wb') as file:\n    while True:\n        file.write(bytes(1 << 20))"
    # By the kernel, or by the worker if it looks in time: the file and the disk have the same bound.
    failed(run(site, bomb, scratch_mib=128), r"File too large|at most 128 MiB of scratch")


def test_a_file_that_is_larger_than_the_disk_but_holds_nothing(site: Site) -> None:
    bomb = "with open(os.environ['HOME'] + '/big', 'wb') as file:\n    file.truncate(1 << 40)"
    failed(run(site, bomb, scratch_mib=128), "File too large")


def test_files_multiply_without_end(site: Site) -> None:
    bomb = (
        "number = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    with open(f\"{os.environ['HOME']}/{number}\", 'wb') as file:\n"
        "        file.write(bytes(1 << 20))\n"
    )
    failed(run(site, bomb, scratch_mib=128), "at most 128 MiB of scratch")


def test_empty_folders_in_folders_without_end(site: Site) -> None:
    bomb = "os.chdir(os.environ['HOME'])\nwhile True:\n    os.mkdir('folder' * 20)\n    os.chdir('folder' * 20)"
    failed(run(site, bomb, scratch_mib=128), "at most 128 MiB of scratch")


def test_processes_are_not_to_be_had(site: Site) -> None:
    failed(run(site, "while True:\n    os.fork()"), "Operation not permitted")


def test_threads_without_end(site: Site) -> None:
    bomb = "while True:\n    threading.Thread(target=threading.Event().wait, daemon=True).start()"
    failed(run(site, bomb, memory_mib=1024), r"can't start new thread|got none left")


def test_time_is_up_whatever_it_does(site: Site) -> None:
    bomb = "import signal\nfor each in range(1, 65):\n    try:\n        signal.signal(each, signal.SIG_IGN)\n"
    bomb += "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass"
    failed(run(site, bomb, timeout_s=4), "expected the work to end within 4 s")


def test_files_are_opened_without_end(site: Site) -> None:
    failed(run(site, "held = []\nwhile True:\n    held.append(open(os.devnull))"), "Too many open files")


def test_words_without_end_fill_no_log(site: Site) -> None:
    manifest = run(site, "for _ in range(40):\n    sys.stdout.write('x' * (1 << 20) + chr(10))")
    assert manifest.state is State.SUCCEEDED, manifest.failure
    log = site.app.objects.get(log_key(manifest.run_id, manifest.attempt))
    assert log is not None
    assert b"the rest is left out" in log
    assert len(log) < 20 * 1024 * 1024


def test_locked_folders_are_removed_all_the_same(site: Site) -> None:
    locked = Path("locked")
    manifest = run(site, f"os.makedirs('{locked}/inside')\nos.chmod('{locked}', 0)")
    assert manifest.state is State.SUCCEEDED, manifest.failure
