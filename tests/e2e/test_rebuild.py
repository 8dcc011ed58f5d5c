"""A hundred runs of all kinds and states; the database is dropped; `runner ledger rebuild` brings them back."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, cast

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from runner.adapters.pg_ledger import PgLedger
from runner.embedded.services import Endpoints
from runner.model.errors import Category, Failure
from runner.model.manifest import TERMINAL, Manifest, State
from runner.model.names import quarantine_of, rerun_branch
from runner.model.spec import JobSpec, Stage
from runner.ports import Claimed, Ledger
from runner.worker import Outcome, Worker
from tests.support.documents import PEOPLE_CONTRACT
from tests.support.site import Site

LOGIC = {
    "people.odcs.yaml": PEOPLE_CONTRACT,
    "dbt_project.yml": "name: small\nprofile: small\nversion: 1.0.0\n",
    "models/sources.yml": "sources: [{name: staging, schema: staging, tables: [{name: people}]}]\n",
    "models/adults.sql": "{{ config(materialized='table') }} SELECT * FROM {{ source('staging', 'people') }}",
    "first.sql": "SELECT id, name, id * 2 AS twice FROM staging.people",
    "next.sql": "SELECT id, twice + 1 AS twice FROM before",
    "broken.sql": "SELECT no_such_column FROM before",
}
KNOWN_DIFFERENCES = {
    "runs": {"started_at", "pinned_at", "recorded_at", "cancel_asked_at", "plan"},
    "attempts": {"ended_at"},  # the manifest has when it was decided; the ledger wrote when it heard of that
    "pins": set[str](),
    "outputs": set[str](),
    "edges": set[str](),
}
"""Of ended runs, by table. Nothing else may differ."""


@dataclass
class Made:
    """The runs, by what is to become of them."""

    ended: list[Manifest] = field(default_factory=list)
    queued: list[JobSpec] = field(default_factory=list)
    in_back_off: list[JobSpec] = field(default_factory=list)
    died: list[JobSpec] = field(default_factory=list)
    cut: JobSpec | None = None
    """Its output landed, and its worker died before it was decided."""

    @property
    def to_end(self) -> list[JobSpec]:
        return [*self.queued, *self.in_back_off, *self.died, *([self.cut] if self.cut else [])]


@dataclass
class Sight:
    """All that can be seen of an installation."""

    rows: dict[str, list[dict[str, Any]]]
    tables: dict[str, list[Any]]
    listed: list[Any]
    answers: dict[str, Any]


class _DiesBeforeItDecides:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def decide(self, manifest: Manifest, *, attempt: int) -> None:
        raise KeyboardInterrupt  # no error, so that nothing in the flow takes it for one


@pytest.fixture(scope="module")
def made(site: Site) -> Made:
    found = Made()
    commit = site.commit(LOGIC)

    def end(spec: JobSpec, *, well: bool = True) -> Manifest:
        found.ended.append(site.end(spec))
        assert (found.ended[-1].failure is None) is well, found.ended[-1].failure
        return found.ended[-1]

    def query(before: str, to: str, *, file: str = "next.sql", **given: Any) -> JobSpec:
        alias = "staging.people" if file == "first.sql" else "before"
        return site.spec(
            commit,
            "query",
            {"kind": "query", "file": file},
            inputs=[{"dataset": before, "as": alias}],
            outputs=[{"dataset": to, **given}],
        )

    # 6 extracts and 6 loads, with bad rows in some.
    for day in range(6):
        rows = "".join(f"{number},name {number}\n" for number in range(10 + day)) + ("x,bad\n" if day % 2 else "")
        url = site.serve(f"people{day}.csv", f"id,name\n{rows}")
        work: dict[str, Any] = {"kind": "extract", "sources": [{"name": "people", "url": url}]}
        end(site.spec(commit, "extract", work, outputs=[{"dataset": "landing/people", "from": "people"}]))
        work = {"kind": "load", "contract": "people.odcs.yaml", "format": {"type": "csv"}, "max_bad_fraction": 0.5}
        end(
            site.spec(
                commit,
                "load",
                work,
                inputs=[{"dataset": "landing/people"}],
                outputs=[{"dataset": "staging.people"}],
            )
        )
    # 1 dbt, 31 queries, one after the other and beside each other; 2 exports to files.
    end(
        site.spec(
            commit,
            "transform",
            {"kind": "dbt", "steps": [{"command": "build"}]},
            inputs=[{"dataset": "staging.people"}],
            outputs=[{"dataset": "marts.adults", "from": "main.adults"}],
        )
    )
    for number in range(6):
        end(query("staging.people", "marts.m0", file="first.sql"))
        for step in range(1, 5 if number else 6):
            end(query(f"marts.m{step - 1}", f"marts.m{step}"))
    for number in range(2):
        end(query("marts.m4", f"exports/m{number}", format="csv"))
    # 8 reruns: six beside their tables, two onto them. 15 that fail.
    for repeated in [each for each in found.ended if each.spec.stage is Stage.QUERY][:6]:
        assert end(site.app.client.rerun(repeated.run_id)).outputs[0].comparison == "identical"
    for _ in range(2):
        end(site.app.client.rerun(found.ended[-8].run_id, publish=True))
    for number in range(15):
        end(query("marts.none" if number % 3 else "marts.m4", "marts.failed", file="broken.sql"), well=False)
    # 6 whose first worker died, 5 that somebody cancelled.
    for number in range(6):
        spec = query("marts.m4", f"marts.second{number % 2}")
        die(site, spec)
        end(spec)
    for _ in range(5):
        spec = query("marts.m4", "marts.cancelled")
        site.app.client.submit(spec)
        site.app.ledger.cancel(spec.run_id)
        (outcome,) = take(site, Stage.QUERY, max_jobs=1)
        assert isinstance(outcome, Manifest)
        found.ended.append(outcome)
    # One that landed and was never decided.
    found.cut = query("marts.m4", "marts.cut")
    site.app.client.submit(found.cut)
    ports = replace(site.app.ports, ledger=cast(Ledger, _DiesBeforeItDecides(site.app.ledger)))
    with pytest.raises(KeyboardInterrupt):
        list(Worker(ports, site.app.queue).work(Stage.QUERY, max_jobs=1, idle_timeout_s=5))
    # 12 queued, 5 in back-off, 2 whose worker has died.
    for _ in range(5):
        found.in_back_off.append(query("marts.m4", "marts.later"))
        back_off(site, found.in_back_off[-1])
    for _ in range(2):
        found.died.append(query("marts.m4", "marts.later"))
        site.app.client.submit(found.died[-1])
        die(site, found.died[-1])
    for number in range(12):
        found.queued.append(query("marts.m4", f"marts.later{number % 3}"))
        site.app.client.submit(found.queued[-1])
    return found


def die(site: Site, spec: JobSpec) -> None:
    """A worker takes the run, and is heard of no more."""
    ledger = PgLedger(site.app.ledger_url, lease_s=0)
    assert isinstance(ledger.claim(spec, worker="host:9"), Claimed)
    ledger.close()


def back_off(site: Site, spec: JobSpec) -> None:
    site.app.client.submit(spec)
    claimed = site.app.ledger.claim(spec, worker="host:9")
    assert isinstance(claimed, Claimed)
    pins = [site.app.datasets(each.dataset).pin(each.dataset, each.alias, None) for each in spec.inputs]
    site.app.ledger.pin(spec.run_id, claimed.attempt, pins)
    failure = Failure(category=Category.TRANSIENT, message="S3: expected 200, got 503")
    site.app.ledger.release(spec.run_id, claimed.attempt, outcome="retry", failure=failure, wait_s=3600)


def take(site: Site, stage: Stage, *, max_jobs: int | None = None) -> list[Outcome]:
    """What waits in a queue, until it is empty."""
    return list(site.app.worker().work(stage, max_jobs=max_jobs, idle_timeout_s=2))


def look(site: Site, made: Made) -> Sight:
    names = [output.dataset for manifest in made.ended for output in manifest.outputs if "/" not in output.dataset]
    with psycopg.connect(site.app.ledger_url) as connection:
        rows = {
            table: [
                row[0]
                for row in connection.execute(SQL("SELECT to_jsonb(t) FROM {} t").format(Identifier("ledger", table)))
            ]
            for table in KNOWN_DIFFERENCES
        }
        listed = connection.execute(
            "SELECT table_namespace, table_name, metadata_location, iceberg_type FROM catalog.iceberg_tables ORDER BY 2"
        ).fetchall()
    return Sight(
        rows=rows,
        tables={name: sorted(site.rows(name), key=repr) for name in sorted(set(names))},
        listed=listed,
        answers={
            "upstream": site.json("lineage", "marts.m5"),
            "downstream": site.json("lineage", f"landing/people@{made.ended[0].outputs[0].snapshot}", "--downstream"),
            "failed": site.json("runs", "--state", "failed", "-n", "100"),
            "of a dataset": [each["run_id"] for each in site.json("runs", "--dataset", "marts.m3", "-n", "100")],
            "shown": site.json("show", str(made.ended[20].run_id)),
        },
    )


@dataclass
class Story:
    made: Made
    before: Sight
    told: dict[str, Any]
    after: Sight


@pytest.fixture(scope="module")
def story(site: Site, services: Endpoints, made: Made) -> Story:
    before = look(site, made)
    site.app.ledger.close()
    drop_database(services, site.app.ledger_url)
    done = site.run("ledger", "rebuild", "--yes", "--json")
    return Story(made=made, before=before, told=json.loads(done.stdout), after=look(site, made))


def drop_database(services: Endpoints, url: str) -> None:
    name = Identifier(str(conninfo_to_dict(url)["dbname"]))
    with psycopg.connect(services.ledger_url.get_secret_value(), autocommit=True) as connection:
        connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(name))
        connection.execute(SQL("CREATE DATABASE {}").format(name))


def of_ended(rows: list[dict[str, Any]], made: Made, *, but: set[str]) -> list[str]:
    ended = {str(each.run_id) for each in made.ended}
    kept = ({name: row[name] for name in row if name not in but} for row in rows if row["run_id"] in ended)
    return sorted(json.dumps(each, sort_keys=True) for each in kept)


# ---------------------------------------------------------------- the tests


def test_the_runs_are_of_all_kinds_and_states(made: Made) -> None:
    states = Counter(each.state for each in made.ended)
    assert states == {State.SUCCEEDED: 60, State.FAILED: 15, State.CANCELLED: 5}
    assert len(made.to_end) == 20
    assert {each.spec.stage for each in made.ended} == {Stage.EXTRACT, Stage.LOAD, Stage.TRANSFORM, Stage.QUERY}
    assert sum(len(each.attempts) > 1 for each in made.ended) == 6
    outputs = [output for each in made.ended for output in each.outputs]
    assert sum(output.quarantine and output.rows == 1 for output in outputs) == 3
    assert sum(output.branch is not None for output in outputs) == 6


def test_it_tells_what_it_did_and_what_it_could_not(story: Story) -> None:
    told, cut = story.told, story.made.cut
    assert cut is not None
    assert {name: told[name] for name in ("decided", "queued", "sent", "known", "undecided", "unreadable")} == {
        "decided": 80,
        "queued": 20,
        "sent": 20,
        "known": 0,
        "undecided": [],
        "unreadable": [],
    }
    assert told["complete"] is True
    assert [each["dataset"] for each in told["tables"] if not each["witnessed"]] == ["marts.cut"]
    assert any("plan" in each for each in told["not_restored"])


@pytest.mark.parametrize("table", sorted(KNOWN_DIFFERENCES))
def test_ended_runs_are_as_they_were_but_for_what_is_known_to_be_lost(story: Story, table: str) -> None:
    but = KNOWN_DIFFERENCES[table]
    before = of_ended(story.before.rows[table], story.made, but=but)
    assert before == of_ended(story.after.rows[table], story.made, but=but)
    assert len(before) > 50


def test_the_known_differences_are_small(story: Story) -> None:
    after = {row["run_id"]: row for row in story.after.rows["runs"]}
    for row in story.before.rows["runs"]:
        if row["state"] not in TERMINAL:
            continue
        assert after[row["run_id"]]["recorded_at"] is not None
        gap = datetime.fromisoformat(after[row["run_id"]]["started_at"]) - datetime.fromisoformat(row["started_at"])
        assert abs(gap) < timedelta(seconds=1)


def test_runs_that_are_to_end_are_queued_as_if_nobody_had_tried(story: Story) -> None:
    to_end = {str(each.run_id) for each in story.made.to_end}
    rows = [row for row in story.after.rows["runs"] if row["run_id"] in to_end]
    before = {row["run_id"]: row for row in story.before.rows["runs"]}
    assert len(rows) == 20
    for row in rows:
        assert (row["state"], row["attempt"], row["not_before"], row["plan"]) == ("queued", 0, None, None)
        same = ("spec", "spec_sha256", "effect", "pipeline", "task", "stage", "logical_time", "max_attempts")
        assert {name: row[name] for name in same} == {name: before[row["run_id"]][name] for name in same}
        gap = datetime.fromisoformat(row["submitted_at"]) - datetime.fromisoformat(
            before[row["run_id"]]["submitted_at"]
        )
        assert abs(gap) < timedelta(seconds=5), "S3 tells when the spec was stored, to the second"
    for table in ("attempts", "pins"):
        assert [row for row in story.after.rows[table] if row["run_id"] in to_end] == []


def test_every_table_reads_as_before(story: Story) -> None:
    assert story.after.listed == story.before.listed
    assert story.after.tables == story.before.tables
    assert len(story.after.tables["staging.people"]) == 15
    assert "marts.cut" in {row[1] and f"{row[0]}.{row[1]}" for row in story.after.listed}


def test_every_question_is_answered_as_before(story: Story) -> None:
    before, after = story.before.answers, story.after.answers
    for each in (*before["failed"], *after["failed"]):
        each.pop("started_at")
    assert after == before
    assert len(after["upstream"]["edges"]) == 8
    assert len(after["downstream"]["edges"]) >= 1
    assert len(after["failed"]) == 15


def test_quarantined_rows_and_branches_of_reruns_are_found(story: Story, site: Site) -> None:
    reruns = [each for each in story.made.ended if each.outputs and each.outputs[0].branch]
    assert len(reruns) == 6
    for each in reruns:
        output = each.outputs[0]
        loaded = site.app.tables.load(output.dataset)
        head = loaded.head(rerun_branch(each.run_id))
        assert head is not None
        assert (head.snapshot, head.tag and head.tag.run_id) == (output.snapshot, each.run_id)
    assert site.app.ledger.newest(quarantine_of("staging.people")) is not None


def test_an_old_run_is_repeated_and_is_identical(story: Story, site: Site) -> None:
    old = next(each for each in story.made.ended if each.outputs and each.outputs[0].dataset == "marts.m3")
    # Those that wait in the same queue come first.
    take(site, Stage.QUERY)
    again = site.end(site.app.client.rerun(old.run_id))
    assert (again.state, again.outputs[0].comparison) == (State.SUCCEEDED, "identical")


def test_each_run_that_was_queued_runs_and_what_had_landed_is_not_doubled(story: Story, site: Site) -> None:
    take(site, Stage.QUERY)
    cut = story.made.cut
    assert cut is not None
    for spec in story.made.to_end:
        manifest = site.app.ledger.manifest(spec.run_id)
        assert manifest is not None, spec
        if spec is not cut:
            assert manifest.state is State.SUCCEEDED, manifest.failure
            assert len(manifest.attempts) == 1
            continue
        assert manifest.failure is not None
        assert manifest.failure.category is Category.CONFLICT
        (landed,) = site.app.tables.load("marts.cut").landed(cut.run_id)
        assert [output.snapshot for output in manifest.outputs] == [landed.snapshot]


def test_a_second_rebuild_is_refused_and_told_to_changes_nothing(story: Story, site: Site) -> None:
    take(site, Stage.QUERY)
    refused = site.run("ledger", "rebuild", "--yes", check=False)
    assert refused.returncode == 1
    assert "expected an empty one to rebuild, got one that has runs" in refused.stderr
    assert "--into-existing" in refused.stderr
    before = look(site, story.made)
    done = site.run("ledger", "rebuild", "--yes", "--into-existing")
    after = look(site, story.made)
    assert (after.rows, after.listed) == (before.rows, before.listed)
    assert "ended runs put back" in done.stdout
    assert "What S3 does not keep:" in done.stdout


def test_nobody_is_asked_where_nobody_can_answer(site: Site) -> None:
    done = site.run("ledger", "rebuild", check=False)
    assert done.returncode == 2
    assert "expected a terminal to ask at, or --yes, got neither" in done.stderr
    assert "every worker is stopped" in done.stderr
