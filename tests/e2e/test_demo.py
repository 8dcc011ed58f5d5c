"""The main job as a newcomer runs it: `runner demo` on real flights, from nothing; then what it promises is checked."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runner.embedded.demo import DATA_PACKAGE
from runner.embedded.services import down
from tests.support.git_server import GIT_ENV
from tests.support.site import RUNNER

FLIGHTS = 336_776
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Demo:
    folder: Path
    env: dict[str, str]
    printed: str

    def run(self, *arguments: str) -> str:
        done = subprocess.run([RUNNER, *arguments], cwd=self.folder, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))

    def manifests(self) -> dict[str, Any]:
        """By task, of the demo's own runs."""
        rows = [row for row in self.json("runs", "--limit", "100") if row["pipeline_run"]]
        return {row["task"]: self.json("show", row["run_id"]) for row in rows}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "dbt").symlink_to(ROOT / "dbt")
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "RUNNER_EMULATOR": str(ROOT / ".venv-emulator" / "bin" / "ministack"),
    }
    done = subprocess.run([RUNNER, "demo"], cwd=folder, env=env, capture_output=True, text=True)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield Demo(folder, env, done.stdout)
    finally:
        down(folder / ".runner", purge=True)


def test_it_ends_with_runs_a_lineage_tree_and_what_to_type_next(demo: Demo) -> None:
    assert "flights/marts" in demo.printed
    assert "marts.delays_by_hour" in demo.printed
    assert "landing/nycflights13/weather" in demo.printed
    assert "What to type next" in demo.printed


def test_runs_of_each_stage_succeeded(demo: Demo) -> None:
    rows = demo.json("runs")
    assert {row["stage"] for row in rows} == {"extract", "load", "transform", "query"}
    assert {row["state"] for row in rows} == {"succeeded"}
    assert len(rows) == 8


def test_every_flight_is_staged_or_in_quarantine(demo: Demo) -> None:
    manifests = demo.manifests()
    counts = manifests["load_flights"]["report"]["counts"]
    assert counts["rows_read"] == FLIGHTS
    assert counts["rows_loaded"] == FLIGHTS - counts["rows_quarantined"]
    by_dataset = {output["dataset"]: output["rows"] for output in manifests["load_flights"]["outputs"]}
    assert by_dataset["staging.flights"] == FLIGHTS - by_dataset["failed/staging/flights"]
    for task in ("load_weather", "load_planes", "load_airports", "load_airlines"):
        counts = manifests[task]["report"]["counts"]
        assert counts["rows_read"] == counts["rows_loaded"] + counts["rows_quarantined"]
        table = task.removeprefix("load_")
        with (demo.folder / ".runner" / "portal" / "data" / DATA_PACKAGE / f"{table}.csv").open(newline="") as file:
            assert counts["rows_read"] == sum(1 for _ in csv.reader(file)) - 1


def test_the_manifest_says_what_ran_on_what(demo: Demo) -> None:
    manifest = demo.manifests()["marts"]
    assert manifest["spec"]["logic"]["commit"] == manifest["report"]["logic"]["commit"]
    assert len(manifest["report"]["logic"]["tree"]) == 40
    assert {pin["dataset"] for pin in manifest["pins"]} == {
        f"staging.{table}" for table in ("flights", "weather", "planes", "airports", "airlines")
    }
    assert all(
        each["declared"] and each["claimed"] and each["observed"] == "rows" for each in manifest["report"]["inputs"]
    )
    by_hour = next(each for each in manifest["outputs"] if each["dataset"] == "marts.delays_by_hour")
    assert set(by_hour["claimed_inputs"]) == {"staging.flights", "staging.weather"}
    models = [step for step in manifest["report"]["steps"] if step["kind"] == "model"]
    assert all(len(step["compiled_sha256"]) == 64 for step in models)


def test_the_log_and_the_spec_of_a_run_can_be_read(demo: Demo) -> None:
    run_id = demo.manifests()["marts"]["run_id"]
    assert "dbt build" in demo.run("logs", run_id)
    assert json.loads(demo.run("spec", run_id))["run_id"] == run_id


def test_lineage_leads_from_a_mart_to_the_portals_files(demo: Demo) -> None:
    edges = demo.json("lineage", "marts.delays_by_hour")["edges"]
    assert {edge["input"] for edge in edges if edge["output"] == "marts.delays_by_hour"} == {
        "staging.flights",
        "staging.weather",
    }
    urls = {edge["input"] for edge in edges if edge["output"].startswith("landing/")}
    assert {url.rsplit("/", 1)[1] for url in urls} == {"flights.csv", "weather.csv"}
    downstream = demo.json("lineage", "marts.delays_by_route", "--downstream")["edges"]
    assert {edge["output"] for edge in downstream} == {"exports/worst_routes"}


def test_a_rerun_is_identical_though_logic_and_data_have_moved_on(demo: Demo) -> None:
    """And what is published stays what the newer pipeline run made of it."""
    old = demo.manifests()["marts"]
    repo = old["spec"]["logic"]["repo"]
    _delay_every_flight(demo)
    _change_the_logic(demo, repo)
    portal = repo.split("/git/")[0]
    ran = demo.json("run-pipeline", "flights", "--repo", repo, "--param", f"portal={portal}/{DATA_PACKAGE}")
    assert [row["state"] for row in ran] == ["succeeded"] * 8
    newest = next(row for row in ran if row["task"] == "marts")
    assert newest["commit"] != old["spec"]["logic"]["commit"]
    published = _heads(demo, "marts.delays_by_carrier", "marts.delays_by_hour")
    fingerprints = {each["dataset"]: each["fingerprint"]["hash"] for each in old["outputs"]}
    changed = {each["dataset"]: each["fingerprint"]["hash"] for each in demo.json("show", newest["run_id"])["outputs"]}
    assert changed["marts.delays_by_carrier"] != fingerprints["marts.delays_by_carrier"]

    again = demo.json("rerun", old["run_id"])

    assert {each["dataset"]: each["comparison"] for each in again} == dict.fromkeys(fingerprints, "identical")
    assert {each["dataset"]: each["fingerprint"]["hash"] for each in again} == fingerprints
    assert all(each["branch"] for each in again)
    assert _heads(demo, "marts.delays_by_carrier", "marts.delays_by_hour") == published
    _diff_tells_the_old_run_from_the_new(demo, old["run_id"], newest["run_id"])


def _diff_tells_the_old_run_from_the_new(demo: Demo, old: str, new: str) -> None:
    command: list[str | Path] = [RUNNER, "diff", old, new, "--json"]
    done = subprocess.run(command, cwd=demo.folder, env=demo.env, capture_output=True, text=True)
    assert done.returncode == 1
    facts = {each["fact"] for each in json.loads(done.stdout)["differences"]}
    assert {"logic commit", "input staging.flights", "output marts.delays_by_carrier fingerprint"} <= facts
    assert "package duckdb" not in facts


def _delay_every_flight(demo: Demo) -> None:
    """The portal corrects its data: the first 1,000 flights arrive an hour later."""
    path = demo.folder / ".runner" / "portal" / "data" / DATA_PACKAGE / "flights.csv"
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    delay = rows[0].index("arr_delay")
    for row in rows[1:1001]:
        if row[delay] not in ("", "NA"):
            row[delay] = str(int(row[delay]) + 60)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _change_the_logic(demo: Demo, repo: str) -> None:
    """An analyst renames nothing and breaks nothing: a comment in a mart is a commit of its own."""
    clone = demo.folder / "analyst"
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    for command in (
        ("clone", "--quiet", repo, str(clone)),
        ("-C", str(clone), "checkout", "--quiet", "main"),
    ):
        subprocess.run(["git", *command], env=GIT_ENV, check=True, capture_output=True)
    mart = clone / "models" / "marts" / "delays_by_carrier.sql"
    mart.write_text(mart.read_text() + "\n-- reviewed\n")
    for command in (("commit", "--quiet", "--all", "--message", "Review"), ("push", "--quiet", "origin", "main")):
        subprocess.run(["git", "-C", str(clone), *identity, *command], env=GIT_ENV, check=True, capture_output=True)


def _heads(demo: Demo, *tables: str) -> dict[str, str]:
    """The snapshot that each table's newest publishing run made, as the lineage command starts from."""
    return {table: demo.json("lineage", table)["snapshot"] for table in tables}
