"""Logic at work, on main or not, committed or not: it runs on real data, and all but main's publishes to dev_ only."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.app import App
from runner.model.errors import Category
from runner.model.manifest import Manifest
from runner.model.spec import Stage
from tests.support.git_server import GIT_ENV
from tests.support.site import RUNNER, Site

PIPELINE = """
pipeline_version: 1
name: numbers
stages:
  - task: base
    stage: query
    work: {kind: query, file: base.sql}
    outputs: [{dataset: staging.numbers}]
  - task: sums
    stage: query
    work: {kind: query, file: sums.sql}
    inputs: [{dataset: staging.numbers}, {dataset: staging.others}]
    outputs: [{dataset: marts.sums}]
"""
SUMS = "SELECT sum(n.id)::BIGINT AS total, (SELECT count(*) FROM staging.others) AS others FROM staging.numbers n"
LOGIC = {"pipelines/numbers.yaml": PIPELINE, "base.sql": "SELECT 1 AS id UNION ALL SELECT 2", "sums.sql": SUMS}


@pytest.fixture(scope="module")
def main_commit(site: Site) -> str:
    """Production's logic, and what it published: totals of 3, and one row of what another pipeline makes."""
    others = site.spec(
        site.commit(LOGIC | {"others.sql": "SELECT 1 AS x"}),
        "query",
        {"kind": "query", "file": "others.sql"},
        outputs=[{"dataset": "staging.others"}],
    )
    assert site.end(others).failure is None
    site.run("run-pipeline", "numbers", "--repo", site.repo_url)
    assert site.rows("marts.sums") == [(3, 1)]
    return others.logic.commit


@pytest.fixture
def clone(site: Site, main_commit: str, tmp_path: Path) -> Path:
    """An analyst's, with a change that is not committed, a new file, and one that git ignores."""
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", site.repo_url, str(folder)], env=GIT_ENV, check=True)
    (folder / "base.sql").write_text("SELECT * FROM (VALUES (10), (20)) t(id)")
    (folder / ".gitignore").write_text("*.duckdb\n")
    (folder / "scratch.duckdb").write_bytes(bytes(1000))
    return folder


@pytest.fixture
def another_machine(site: Site, tmp_path: Path) -> Iterator[App]:
    app = App(site.settings.model_copy(update={"home": tmp_path / "elsewhere"}))
    yield app
    app.ledger.close()


def newest(site: Site, count: int = 1) -> list[Manifest]:
    """Oldest of them first."""
    found = [site.app.client.manifest(row.run_id) for row in reversed(site.app.ledger.runs(limit=count))]
    return [manifest for manifest in found if manifest is not None]


def test_a_branch_that_main_does_not_contain_goes_to_dev_datasets(site: Site, main_commit: str) -> None:
    ahead = site.repository.commit(
        {path: text.replace("SELECT 2", "SELECT 5").encode() for path, text in LOGIC.items()},
        branch="work",
        parent=main_commit,
    )
    done = site.run("run-pipeline", "numbers", "--repo", site.repo_url, "--ref", "work")
    assert f"main does not contain {ahead[:12]}: outputs go to dev_ datasets" in done.stderr.splitlines()
    assert site.rows("dev_staging.numbers") == [(1,), (5,)]
    assert site.rows("dev_marts.sums") == [(6, 1)], "its own numbers, and production's others"
    assert site.rows("marts.sums") == [(3, 1)]


def test_a_spec_that_would_publish_what_main_does_not_contain_is_refused_here_and_by_the_worker(
    site: Site, main_commit: str
) -> None:
    unmerged = site.repository.commit({"base.sql": b"SELECT 7 AS id"}, branch="unmerged", parent=main_commit)
    work = {"kind": "query", "file": "base.sql"}
    spec = site.spec(unmerged, "query", work, outputs=[{"dataset": "staging.numbers"}])
    (site.folder / "spec.json").write_text(spec.to_json())
    done = site.run("submit", "spec.json", check=False)
    assert done.returncode == 2
    assert f"as main does not contain {unmerged[:12]}, got 'staging.numbers'" in done.stderr
    assert "dev_staging.numbers" in done.stderr

    refused = site.end(spec)
    assert refused.failure is not None
    assert refused.failure.category is Category.SPEC
    assert site.rows("staging.numbers") == [(1,), (2,)]


def test_a_working_tree_runs_as_it_is_and_its_record_says_that_it_was_not_committed(
    site: Site, clone: Path, another_machine: App
) -> None:
    done = subprocess.run(
        [RUNNER, "run-pipeline", "numbers", "--working-tree", "--json"],
        env=site.env,
        cwd=clone,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [row["state"] for row in json.loads(done.stdout)] == ["succeeded", "succeeded"]
    base, sums = newest(site, 2)
    commit = base.spec.logic.commit
    warning = f"working tree {clone} is {commit[:12]}, with changes that are not committed: outputs go to dev_ datasets"
    assert warning in done.stderr.splitlines()
    for manifest in (base, sums):
        assert manifest.spec.logic.repo == site.repo_url
        assert manifest.report.logic is not None
        assert manifest.report.logic.dirty
        assert (manifest.report.logic.commit, manifest.report.logic.origin) == (commit, "archive")
    assert site.rows("dev_marts.sums") == [(30, 1)]
    assert site.rows("marts.sums") == [(3, 1)]
    assert "dirty" in site.run("show", str(sums.run_id)).stdout

    again = another_machine.client.submit(another_machine.client.rerun(sums.run_id))
    (ended,) = another_machine.worker().work(again.stage, max_jobs=1, idle_timeout_s=5)
    assert isinstance(ended, Manifest)
    assert ended.report.logic is not None
    assert ended.report.logic.dirty
    assert [output.comparison for output in ended.outputs] == ["identical"]


def test_one_task_of_a_working_tree_is_queued_for_any_worker(site: Site, clone: Path, another_machine: App) -> None:
    row = site.json("submit", "--pipeline", "numbers", "--task", "base", "--working-tree", "--repo", str(clone))
    assert (row["dirty"], row["outputs"]) == (True, ["dev_staging.numbers"])
    (ended,) = another_machine.worker().work(Stage.QUERY, max_jobs=1, idle_timeout_s=5)
    assert isinstance(ended, Manifest)
    assert (str(ended.run_id), ended.failure) == (row["run_id"], None)
    assert site.rows("dev_staging.numbers") == [(10,), (20,)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--working-tree", "--ref", "main"], "--working-tree: expected it without --ref, got --ref main"),
        (["--working-tree"], "expected a folder of a git repository with files checked out"),
        (["--working-tree", "--repo", "https://git.example.org/logic.git"], "expected a folder of a git repository"),
        ([], "--repo: expected a logic repository, got none"),
    ],
)
def test_what_cannot_be_run_is_bad_usage(site: Site, arguments: list[str], message: str) -> None:
    done = site.run("submit", "--pipeline", "numbers", *arguments, check=False)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_production_ref_that_is_missing_is_named_with_its_setting(site: Site, main_commit: str) -> None:
    done = site.run(
        "submit",
        "--pipeline",
        "numbers",
        "--repo",
        site.repo_url,
        "--ref",
        main_commit,
        check=False,
        RUNNER_PRODUCTION_REF="live",
    )
    assert done.returncode == 2
    assert "expected a branch or tag 'live', got none" in done.stderr
    assert "RUNNER_PRODUCTION_REF" in done.stderr
