"""A dbt Python model of hostile intent: all that it tries is refused, and each attempt would succeed without walls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from psycopg.conninfo import conninfo_to_dict

import runner
from runner.model.manifest import State
from tests.security import attempts
from tests.security.attempts import ATTEMPTS
from tests.support.site import Site

HIDDEN = "what only the worker may read"
PROJECT = "name: hostile\nprofile: hostile\nversion: 1.0.0\n"
MODEL = """
{code}

def model(dbt, session):
    dbt.config(materialized="table")
    found = try_all(json.loads({facts!r}))
    rows = ", ".join("(" + repr(name) + ", '" + told.replace("'", "''") + "')" for name, told in found)
    return session.sql("SELECT * FROM (VALUES " + rows + ") found(attempt, outcome)")
"""


@pytest.fixture(scope="module")
def facts(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What an attacker would find out, handed over."""
    return _facts(site, tmp_path_factory.mktemp("worker"), walled="yes", worker=os.getpid())


def _facts(site: Site, folder: Path, *, walled: str, worker: int) -> Mapping[str, str]:
    credentials, common = folder / "credentials", folder / "common"
    credentials.write_text(HIDDEN)
    credentials.chmod(0o600)
    other = site.settings.home / "scratch" / folder.name / "scratch"
    other.mkdir(parents=True)
    (other / "rows.csv").write_text(HIDDEN)
    (other / "rows.csv").chmod(0o600)
    common.mkdir()
    common.chmod(0o777)
    return MappingProxyType(
        {
            "walled": walled,
            "worker": str(worker),
            "file_of_the_worker": str(credentials),
            "file_of_another_run": str(other / "rows.csv"),
            "file_of_a_package": str(Path(runner.__file__)),
            "common_folder": str(common),
            "port": str(conninfo_to_dict(site.env["RUNNER_LEDGER_URL"])["port"]),
        }
    )


@pytest.fixture(scope="module")
def outcomes(site: Site, facts: Mapping[str, str]) -> Mapping[str, str]:
    """What the model itself says of each attempt, as published."""
    code = Path(attempts.__file__).read_text("utf-8").partition('\nif __name__ == "__main__":')[0]
    code = code.replace("from __future__ import annotations\n", "")
    model = MODEL.format(code=code, facts=json.dumps(dict(facts)))
    commit = site.commit({"dbt_project.yml": PROJECT, "models/found.py": model})
    work = {"kind": "dbt", "steps": [{"command": "build"}]}
    outputs = [{"dataset": "attack.found", "from": "main.found"}]
    manifest = site.end(site.spec(commit, "transform", work, outputs=outputs))
    assert manifest.state is State.SUCCEEDED, manifest.failure
    return dict(site.rows("attack.found", "attempt, outcome"))


@pytest.mark.parametrize("name", ATTEMPTS)
def test_job_code_cannot(name: str, outcomes: Mapping[str, str]) -> None:
    assert outcomes[name].startswith("refused: ")


@pytest.mark.parametrize("name", ATTEMPTS)
def test_without_walls_it_could(name: str, bare: Mapping[str, str]) -> None:
    """The control: that an attempt was refused says something only if it works elsewhere."""
    assert bare[name].startswith("got "), bare[name]


@pytest.fixture(scope="module")
def bare(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The same attempts by a process of the worker's user, on another one's of that user."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as victim:
        told = _facts(site, tmp_path_factory.mktemp("bare"), walled="", worker=victim.pid)
        done = subprocess.run(
            [sys.executable, attempts.__file__, json.dumps(dict(told))], capture_output=True, text=True, check=False
        )
        victim.kill()
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_nothing_of_the_attempts_is_left(facts: Mapping[str, str], outcomes: Mapping[str, str]) -> None:
    assert outcomes
    assert Path(facts["file_of_the_worker"]).read_text() == HIDDEN
    assert Path(facts["file_of_another_run"]).read_text() == HIDDEN
    assert list(Path(facts["common_folder"]).iterdir()) == []
