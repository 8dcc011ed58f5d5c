"""`runner dlq`, as an operator meets it after an outage: what waits and why, carried on when the cause is mended."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from runner.embedded.portal import Portal
from runner.model.manifest import Manifest, State
from runner.model.names import manifest_key
from runner.model.policy import POLICY
from runner.model.spec import JobSpec, Stage
from runner.model.strict import parse_json
from runner.ports import DeadLetter
from runner.redrive import Redrive, redriven_run_id
from runner.worker import Outcome
from tests.support.site import Site

SQL = "SELECT i AS id, i * 10 AS ten FROM range(3) t(i)"
ROWS = [(0, 0), (1, 10), (2, 20)]


@pytest.fixture
def closed_port() -> int:
    """A port that nobody listens on, until a test does."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def logic_is_back(site: Site, port: int) -> Iterator[None]:
    """The host of the logic repository answers again."""
    portal = Portal(site.folder / "data", site.folder / "git", port=port)
    portal.start()
    try:
        yield
    finally:
        portal.stop()


def query(site: Site, name: str, port: int, **given: Any) -> JobSpec:
    """A run with one try, whose logic lies at a host that is away."""
    work = {"kind": "query", "file": "rows.sql"}
    outputs = [{"dataset": f"marts.{name}", "mode": "append"}]
    spec = site.spec(site.commit({"rows.sql": SQL}), "query", work, outputs=outputs, max_attempts=1, **given)
    away = spec.logic.model_copy(update={"repo": f"http://127.0.0.1:{port}/git/logic.git"})
    return spec.model_copy(update={"logic": away})


def dies(site: Site, spec: JobSpec) -> JobSpec:
    """Its worker meets the outage, and its tries are used up."""
    manifest = site.end(spec)
    assert manifest.failure is not None
    assert POLICY[manifest.failure.category].retry, manifest.failure
    return spec


def work_off(site: Site) -> list[Outcome]:
    return list(site.app.worker().work(Stage.QUERY, max_jobs=None, idle_timeout_s=1))


def letters(site: Site) -> list[str]:
    """The message ids of those that wait, which nobody may hide."""
    listed = site.app.redrive.listed([Stage.QUERY], limit=100)
    assert (listed.more, listed.hidden) == (False, 0)
    return [entry.letter.message_id for entry in listed.entries]


@pytest.fixture(autouse=True)
def _nothing_waits_before_or_after(site: Site) -> Iterator[None]:
    yield
    left = site.app.redrive.letters
    for letter in left.look(Stage.QUERY, limit=100):
        left.remove(letter)
    assert left.depth(Stage.QUERY) == 0, "a letter was left hidden"


def test_a_body_that_is_no_spec_is_listed_and_shown_with_its_reason_and_stays(site: Site) -> None:
    site.app.queue.send(Stage.QUERY, "not [red]a spec[/red]")
    assert site.run("work", "query", "--max-jobs", "1", check=False).returncode == 2

    (listed,) = site.json("dlq", "list", "query")["letters"]
    assert (listed["stage"], listed["run_id"], listed["state"]) == ("query", None, None)
    assert listed["body"] == "not [red]a spec[/red]"
    assert "expected JSON, got" in listed["reason"]
    table = site.run("dlq", "list").stdout
    assert listed["message_id"][:8] in table
    assert "no spec" in table
    assert "expected JSON, got" in table

    shown = site.run("dlq", "show", "query", listed["message_id"][:8]).stdout
    assert "not [red]a spec[/red]" in shown.splitlines()
    assert f"stays: letter {listed['message_id']}: expected JSON, got" in shown

    done = site.run("dlq", "redrive", "query", "--all", check=False)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{listed['message_id'][:8]}  stays: letter {listed['message_id']}: expected JSON")
    assert letters(site) == [listed["message_id"]]


def test_a_run_that_an_outage_ended_is_redriven_once_and_publishes_its_rows(site: Site, closed_port: int) -> None:
    dead = dies(site, query(site, "redriven", closed_port))
    again = redriven_run_id(dead.run_id)
    (shown,) = site.json("dlq", "show", "query", str(dead.run_id))
    assert (shown["run_id"], shown["state"], shown["task"]) == (str(dead.run_id), "failed", "task")
    assert str(closed_port) in shown["reason"]
    assert shown["reason"] == f"{shown['failure']['category']}: {shown['failure']['message']}"
    assert [(each["attempt"], each["outcome"]) for each in shown["attempts"]] == [(1, "failed")]
    words = site.run("dlq", "show", "query", str(dead.run_id)[-8:]).stdout
    assert f"would be submitted as run {again}: run {dead.run_id} failed" in words
    assert f"[{shown['failure']['category']}] {shown['failure']['message']}" in words

    (would,) = site.json("dlq", "redrive", "query", "--all", "--dry-run")
    assert (would["redrive"]["action"], would["redrive"]["run_id"], would["done"]) == ("submit", str(again), False)
    assert letters(site) == [shown["message_id"]]

    done = site.run("dlq", "redrive", "query", str(dead.run_id)[-8:])
    assert done.stdout == f"{shown['message_id'][:8]}  submitted as run {again}: run {dead.run_id} failed\n"
    assert letters(site) == []
    assert site.run("dlq", "redrive", "query", "--all").stdout == "no dead letters\n"
    with logic_is_back(site, closed_port):
        site.run("work", "query", "--idle-timeout", "1")

    assert site.rows("marts.redriven", "id, ten") == ROWS
    manifest = site.app.client.manifest(again)
    assert manifest is not None
    assert manifest.state is State.SUCCEEDED
    assert manifest.spec.rerun is not None
    assert (manifest.spec.rerun.of, manifest.spec.rerun.publish) == (dead.run_id, True)
    row = site.app.ledger.run(dead.run_id)
    assert row is not None
    assert row.state is State.FAILED, "it stays what it was"


def test_a_letter_that_comes_twice_is_one_run(site: Site, closed_port: int) -> None:
    dead = dies(site, query(site, "twice", closed_port))
    site.app.queue.send(Stage.QUERY, dead.to_json())
    work_off(site)
    assert len(letters(site)) == 2

    site.run("dlq", "redrive", "query", "--all")
    with logic_is_back(site, closed_port):
        work_off(site)
    site.app.queue.send(Stage.QUERY, dead.to_json())
    work_off(site)
    (late,) = site.json("dlq", "redrive", "query", "--all")

    assert (late["redrive"]["action"], late["done"]) == ("remove", True)
    assert late["redrive"]["because"].endswith(f"by run {redriven_run_id(dead.run_id)}, which succeeded")
    assert site.rows("marts.twice", "id, ten") == ROWS
    runs = site.app.ledger.runs(limit=9, dataset="marts.twice", state=State.SUCCEEDED)
    assert [row.run_id for row in runs] == [redriven_run_id(dead.run_id)]


class _Dies:
    """A process that is killed after it has submitted, and before it removes the letter."""

    def __init__(self, redrive: Redrive) -> None:
        self._letters = redrive.letters

    def __getattr__(self, name: str) -> Any:
        return getattr(self._letters, name)

    def remove(self, letter: DeadLetter) -> None:
        raise KeyboardInterrupt


def test_killed_between_submit_and_delete_it_is_one_run(site: Site, closed_port: int) -> None:
    dead = dies(site, query(site, "killed", closed_port))
    whole = site.app.redrive
    dying: Any = _Dies(whole)
    redrive = Redrive(letters=dying, ledger=whole.ledger, queue=whole.queue, runs=whole.runs)
    with pytest.raises(KeyboardInterrupt):
        redrive.redrive_all(Stage.QUERY, dry_run=False, told=lambda _: None)
    assert len(letters(site)) == 1

    site.run("dlq", "redrive", "query", "--all")
    with logic_is_back(site, closed_port):
        work_off(site)

    assert site.rows("marts.killed", "id, ten") == ROWS
    again = redriven_run_id(dead.run_id)
    recorded = site.app.objects.get(manifest_key(again))
    assert recorded is not None
    manifest = parse_json(Manifest, recorded, what="manifest")
    assert len(manifest.attempts) == 1, "its second message found it decided"


def test_a_run_that_is_not_over_is_sent_again_and_is_itself(site: Site, closed_port: int) -> None:
    with logic_is_back(site, closed_port):
        spec = site.app.client.submit(query(site, "undecided", closed_port))
        delivery = site.app.queue.receive(Stage.QUERY, wait_s=5)
        assert delivery is not None
        site.app.queue.bury(delivery, reason="somebody buried it")

        done = site.run("dlq", "redrive", "query", "--all")
        assert f"sent to query again: run {spec.run_id} is queued" in done.stdout
        work_off(site)

    assert site.rows("marts.undecided", "id, ten") == ROWS
    manifest = site.app.client.manifest(spec.run_id)
    assert manifest is not None
    assert manifest.state is State.SUCCEEDED


def test_bad_usage_is_told_and_does_nothing(site: Site) -> None:
    for arguments, words in (
        (("redrive", "query"), "expected LETTER or --all, got neither"),
        (("redrive", "query", "01a1fead"), "letter '01a1fead' of query: expected one that is called so, got none"),
        (("show", "query", str(uuid4())), "expected one that is called so, got none"),
        (("show", "nothing", "01a1fead"), "'nothing' is not one of"),
    ):
        done = site.run("dlq", *arguments, check=False)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stdout == ""


def test_a_stage_without_a_queue_is_named_with_what_to_do(site: Site) -> None:
    for arguments in (("list",), ("redrive", "query", "--all")):
        done = site.run("dlq", *arguments, check=False, RUNNER_QUEUE_PREFIX="nothing-")
        assert done.returncode == 75
        assert "-dlq does not exist" in done.stderr
        assert "runner up" in done.stderr


def test_the_list_says_when_there_are_more(site: Site) -> None:
    for number in range(12):
        site.app.queue.send(Stage.QUERY, f"no spec {number}")
    work_off(site)

    assert "… and more than these 11: --limit" in site.run("dlq", "list", "query", "--limit", "11").stdout
    whole = site.json("dlq", "list", "--limit", "12")
    assert (len(whole["letters"]), whole["more"], whole["hidden"]) == (12, False, 0)
    assert sorted(each["body"] for each in whole["letters"]) == sorted(f"no spec {number}" for number in range(12))


def test_what_somebody_looks_at_is_said_to_be_hidden(site: Site) -> None:
    site.app.queue.send(Stage.QUERY, "no spec")
    work_off(site)
    held = site.app.redrive.letters.look(Stage.QUERY, limit=1)
    assert len(held) == 1

    assert site.run("dlq", "list").stdout == "about 1 more are hidden, as somebody looks at them: wait a minute\n"

    for letter in held:
        site.app.redrive.letters.put_back(letter)
    assert len(letters(site)) == 1


def test_without_a_ledger_the_letters_stay_to_be_seen(site: Site, closed_port: int) -> None:
    dies(site, query(site, "kept", closed_port))
    url = f"postgresql://nobody:secret@127.0.0.1:{closed_port}/ledger"
    for arguments in (("list",), ("redrive", "query", "--all")):
        done = site.run("dlq", *arguments, check=False, RUNNER_LEDGER_URL=url)
        assert done.returncode == 75
        assert "secret" not in done.stderr
        assert len(letters(site)) == 1
