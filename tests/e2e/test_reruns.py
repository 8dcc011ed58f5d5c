"""Reruns from the record: the same again, or how it differs; from the archive where its repository has lost it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.app import App
from runner.model.errors import Category, SpecError
from runner.model.manifest import Manifest, OutputRecord
from runner.model.spec import JobSpec
from tests.support.site import Site

NUMBERS = "SELECT i AS id, i * 2 AS twice, 'n' || i AS name FROM range(4) t(i)"


def query(site: Site, name: str, sql: str = NUMBERS, *, reads: str | None = None) -> JobSpec:
    """A spec for a new commit on main: one query to `marts.<name>`."""
    return site.spec(
        site.commit({f"{name}.sql": sql}),
        "query",
        {"kind": "query", "file": f"{name}.sql"},
        inputs=[{"dataset": reads}] if reads else [],
        outputs=[{"dataset": f"marts.{name}"}],
    )


def again(app: App, first: Manifest, **how: bool) -> Manifest:
    """Its rerun, by a worker of `app`."""
    spec = app.client.submit(app.client.rerun(first.run_id, **how))
    (ended,) = app.worker().work(spec.stage, max_jobs=1, idle_timeout_s=5)
    assert isinstance(ended, Manifest)
    assert ended.run_id == spec.run_id
    assert ended.failure is None
    return ended


def only(manifest: Manifest) -> OutputRecord:
    (output,) = manifest.outputs
    return output


def test_the_same_logic_on_the_same_inputs_is_identical_and_publishes_nothing(site: Site) -> None:
    first = site.end(query(site, "same"))
    before = site.app.tables.load("marts.same").head(None)
    done = site.run("rerun", str(first.run_id))
    assert "marts.same: identical" in done.stdout.splitlines()
    assert site.app.tables.load("marts.same").head(None) == before

    (output,) = site.json("rerun", str(first.run_id))
    assert (output["comparison"], output["different_columns"]) == ("identical", [])
    assert output["repeated_fingerprint"] == output["fingerprint"]
    assert output["branch"].startswith("rerun_")


def test_the_latest_logic_is_told_by_the_columns_and_rows_that_differ(site: Site) -> None:
    first = site.end(query(site, "changed"))
    latest = site.commit({"changed.sql": NUMBERS.replace("i * 2", "i * 3").replace("'n'", "'m'")})
    done = site.run("rerun", str(first.run_id), "--latest-logic")
    assert "marts.changed: different in twice, name; 4 rows then, 4 rows now" in done.stdout.splitlines()
    assert site.rows("marts.changed", "twice, name")[:2] == [(0, "n0"), (2, "n1")]

    published = again(site.app, first, latest_logic=True, publish=True)
    assert (published.spec.logic.commit, published.effect) == (latest, first.run_id)
    assert set(only(published).different_columns) == {"twice", "name"}
    assert site.rows("marts.changed", "twice, name")[:2] == [(0, "m0"), (3, "m1")]

    done = site.run("diff", str(first.run_id), str(published.run_id), "--json", check=False)
    assert done.returncode == 1
    facts = [each["fact"] for each in json.loads(done.stdout)["differences"]]
    assert [fact for fact in facts if "values of" in fact] == [
        "output marts.changed values of name",
        "output marts.changed values of twice",
    ]


def test_without_latest_logic_the_commit_of_then_is_run(site: Site) -> None:
    first = site.end(query(site, "then"))
    site.commit({"then.sql": "SELECT 1 AS one"})
    assert only(again(site.app, first)).comparison == "identical"


def test_the_latest_inputs_are_read_only_if_told_to(site: Site) -> None:
    site.end(query(site, "base", "SELECT i AS id FROM range(3) t(i)"))
    sums = "SELECT sum(id)::BIGINT AS total, count(*)::BIGINT AS n FROM marts.base"
    first = site.end(query(site, "sums", sums, reads="marts.base"))
    site.end(query(site, "base", "SELECT i AS id FROM range(5) t(i)"))

    assert only(again(site.app, first)).comparison == "identical"
    latest = again(site.app, first, latest_inputs=True)
    assert only(latest).comparison == "different"
    assert site.rows("marts.sums") == [(3, 3)]
    assert site.rows("marts.sums", branch=only(latest).branch) == [(10, 5)]


def test_a_rerun_begins_from_the_state_that_the_run_found_even_if_that_was_none(site: Site) -> None:
    def merged(sql: str) -> Manifest:
        return site.end(
            site.spec(
                site.commit({"merged.sql": sql}),
                "query",
                {"kind": "query", "file": "merged.sql"},
                outputs=[{"dataset": "marts.merged", "mode": "merge", "key": ["id"]}],
            )
        )

    first = merged("SELECT 1 AS id, 'first' AS said UNION ALL SELECT 2, 'first'")
    second = merged("SELECT 2 AS id, 'second' AS said UNION ALL SELECT 3, 'second'")
    merged("SELECT 4 AS id, 'third' AS said")
    assert [pin.snapshot for manifest in (first, second) for pin in manifest.pins] == ["none", only(first).snapshot]

    for manifest, rows in ((first, 2), (second, 3)):
        repeated = only(again(site.app, manifest))
        assert (repeated.comparison, repeated.rows) == ("identical", rows)
    latest = only(again(site.app, first, latest_inputs=True))
    assert (latest.comparison, latest.rows) == ("different", 4)
    assert sorted(site.rows("marts.merged")) == [(1, "first"), (2, "second"), (3, "second"), (4, "third")]


@pytest.fixture
def machine(site: Site, tmp_path: Path) -> Iterator[Callable[[str], App]]:
    """Makes another one, with nothing in its cache."""
    made: list[App] = []

    def make(name: str) -> App:
        made.append(App(site.settings.model_copy(update={"home": tmp_path / name})))
        return made[-1]

    yield make
    for app in made:
        app.ledger.close()


def test_a_run_is_repeated_from_the_archive_when_its_repository_has_lost_the_commit_and_when_it_is_gone(
    site: Site, machine: Callable[[str], App]
) -> None:
    def logic(manifest: Manifest) -> tuple[str, str, bool | None]:
        found = manifest.report.logic
        assert found is not None
        return found.commit, found.origin, found.production

    first = site.end(query(site, "lost"))
    lost = first.spec.logic.commit
    assert logic(first) == (lost, "repository", True)
    site.commit({"lost.sql": "SELECT 'other' AS name"})
    site.repository.forget()
    with pytest.raises(subprocess.CalledProcessError):
        site.repository.git("cat-file", "-e", lost)

    second = again(machine("two"), first)
    assert logic(second) == (lost, "archive", None)
    assert only(second).comparison == "identical"

    shutil.rmtree(site.repository.path)
    try:
        third = again(machine("three"), first)
        assert logic(third) == (lost, "archive", None)
        assert only(third).comparison == "identical"
        # That the commit was production's is remembered too.
        published = again(machine("four"), first, publish=True)
        assert logic(published) == (lost, "archive", True)
        assert (only(published).branch, only(published).comparison) == (None, "identical")
        with pytest.raises(SpecError, match="not found"):
            machine("five").client.rerun(first.run_id, latest_logic=True)
    finally:
        del site.__dict__["repository"]  # the next commit makes it anew


def test_a_rerun_that_fails_ends_with_its_failure(site: Site) -> None:
    first = site.end(query(site, "broken"))
    site.commit({"broken.sql": "SELECT nothing"})
    done = site.run("rerun", str(first.run_id), "--latest-logic", "--json", check=False)
    assert (done.returncode, json.loads(done.stdout)) == (1, [])
    assert f"[{Category.LOGIC.value}]" in done.stderr
