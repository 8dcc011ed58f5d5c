"""The suite itself: what it counts, what it says, and that it fails where anything was lost, doubled or broken off."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import cast

import pytest

from tests.faults import suite
from tests.faults.invariants import Violation
from tests.faults.tally import Found, Scenario, Story, last_line, row, total
from tests.faults.yard import Ground

LOST = Violation(invariant="I4", run_id="a", said="gone")
LOST_TOO = Violation(invariant="I8", run_id="a", said="its message is there still")
DOUBLED = Violation(invariant="I6", run_id="b", said="80 rows")
WRONG = Violation(invariant="I3", run_id="c", said="another manifest")


def story(name: str, *violations: Violation, fault: str = "kill -9") -> Story:
    found = Found(injected=2, runs=3, attempts=5, violations=violations)
    return Story(name=name, fault=fault, tell=lambda ground, chance: found)


def breaks_off(ground: Ground, chance: Random) -> Found:
    raise AssertionError("it never came to that step")


def draws(ground: Ground, chance: Random) -> Found:
    return Found(injected=chance.randrange(10**9), runs=1, attempts=1)


def main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scenarios: Sequence[Scenario], *arguments: str
) -> tuple[int, str]:
    @contextmanager
    def nowhere() -> Iterator[Ground]:
        yield cast(Ground, None)

    monkeypatch.setattr(suite, "_ground", nowhere)
    monkeypatch.setattr(suite, "_scenarios", lambda ground: iter(scenarios))
    monkeypatch.setattr("sys.argv", ["suite.py", *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return suite.main(), capsys.readouterr().out


def test_a_run_is_counted_once_however_many_invariants_it_breaks() -> None:
    counted = row("kill -9", [Found(injected=1, runs=3, attempts=4, violations=(LOST, LOST_TOO, DOUBLED, WRONG))])
    assert (counted.lost, counted.doubled, counted.violations) == (1, 1, 4)
    whole = total([counted, row("zombie", [Found(injected=2, runs=1, attempts=2)])])
    assert last_line(whole) == "faults: 3 injected, 4 runs, 1 lost, 1 doubled"


def test_zeros_are_success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = main(monkeypatch, capsys, [story("one"), story("two"), story("three", fault="zombie")])
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["fault", "injected", "runs", "attempts", "lost", "doubled"]
    assert lines[1].split() == ["kill", "-9", "4", "6", "10", "0", "0"]
    assert lines[2].split() == ["zombie", "2", "3", "5", "0", "0"]
    assert lines[-1] == "faults: 6 injected, 9 runs, 0 lost, 0 doubled"


@pytest.mark.parametrize("violation", [LOST, DOUBLED, WRONG], ids=lambda each: each.invariant)
def test_any_broken_invariant_is_told_with_the_seed_and_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], violation: Violation
) -> None:
    code, out = main(monkeypatch, capsys, [story("good"), story("bad", violation)], "--seed", "17")
    assert code == 1
    assert f"bad: {violation}" in out
    assert "--seed 17" in out


def test_a_scenario_that_breaks_off_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = main(monkeypatch, capsys, [story("good"), Story(name="bad", fault="kill -9", tell=breaks_off)])
    assert code == 1
    assert "it never came to that step" in out
    assert out.splitlines()[-1] == "faults: 2 injected, 3 runs, 0 lost, 0 doubled"


def test_nothing_played_is_no_success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = main(monkeypatch, capsys, [story("good")], "--only", "no such scenario")
    assert code == 1


def test_as_json_with_the_same_seed_the_same_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing = [Story(name="draws", fault="soak", tell=draws)]
    documents = [json.loads(main(monkeypatch, capsys, drawing, "--json", "--seed", seed)[1]) for seed in "112"]
    drawn = [document["total"]["injected"] for document in documents]
    assert drawn[0] == drawn[1] != drawn[2]
    assert documents[0]["seed"] == 1
    assert documents[0]["broken"] == []
