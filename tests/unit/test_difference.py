"""How two runs differ: every fact that is not the same, and nothing else."""

from __future__ import annotations

from runner.model.difference import Difference, differences, same_outputs
from runner.model.errors import Category, Failure
from runner.model.manifest import Column, Fingerprint, Manifest, Pin, State
from tests.support.documents import job_spec, manifest_of, output_record


def fingerprint(digest: str, engine: str = "duckdb 1.5.5", **columns: str) -> Fingerprint:
    return Fingerprint(rows=3, hash=digest, engine=engine, columns=columns)


def of(*fingerprints: Fingerprint) -> dict[str, tuple[str | None, str | None]]:
    """The facts that differ between two runs that made the same tables with these fingerprints."""
    spec = job_spec()
    left, right = (manifest_of(output_record("marts.delays", fingerprint=each), spec=spec) for each in fingerprints)
    return {each.fact: (each.left, each.right) for each in differences(left, right)}


def test_a_run_does_not_differ_from_itself() -> None:
    run = manifest_of(output_record("marts.delays", fingerprint=fingerprint("a"), rows=3))
    assert differences(run, run) == []
    assert same_outputs(run, run)


def test_another_commit_is_a_difference_though_the_outputs_are_the_same() -> None:
    logic = {"repo": "https://git.example.org/logic.git"}
    runs = [
        manifest_of(
            output_record("marts.delays", fingerprint=fingerprint("a")),
            spec=job_spec(run_id=f"{number:032x}", logic={**logic, "commit": f"{number:040x}"}),
        )
        for number in (1, 2)
    ]
    assert differences(*runs) == [Difference(fact="logic commit", left=f"{1:040x}", right=f"{2:040x}")]
    assert same_outputs(*runs)


def test_inputs_rows_columns_and_fingerprints_are_told_one_by_one() -> None:
    spec = job_spec()

    def run(snapshot: str, rows: int, kind: str, digest: str) -> Manifest:
        output = output_record(
            "marts.delays", rows=rows, fingerprint=fingerprint(digest), columns=(Column(name="late", type=kind),)
        )
        pins = (Pin(as_="f", dataset="staging.flights", snapshot=snapshot, metadata="s3://lake/m.json"),)
        return manifest_of(output, spec=spec, pins=pins)

    left, right = run("1", 1000, "int", "a" * 64), run("2", 1001, "long", "b" * 64)
    found = {each.fact: (each.left, each.right) for each in differences(left, right)}
    assert found == {
        "input f": ("staging.flights@1", "staging.flights@2"),
        "output marts.delays rows": ("1,000", "1,001"),
        "output marts.delays column late": ("int", "long"),
        "output marts.delays fingerprint": (f"{'a' * 16} by duckdb 1.5.5", f"{'b' * 16} by duckdb 1.5.5"),
    }
    assert not same_outputs(left, right)


def test_what_only_one_of_them_has_is_none_in_the_other() -> None:
    spec = job_spec()
    failure = Failure(category=Category.DATA, message="too few")
    left = manifest_of(output_record("marts.delays", fingerprint=fingerprint("a")), spec=spec)
    right = manifest_of(spec=spec, state=State.FAILED, failure=failure)
    found = {each.fact: (each.left, each.right) for each in differences(left, right)}
    assert found["failure"] == (None, "data: too few")
    assert found["output marts.delays fingerprint"][1] is None
    assert not same_outputs(left, right)


def test_fingerprints_of_two_engines_are_not_the_same() -> None:
    spec = job_spec()
    left, right = (
        manifest_of(output_record("marts.delays", fingerprint=fingerprint("a", engine)), spec=spec)
        for engine in ("duckdb 1.5.5", "duckdb 1.6.0")
    )
    assert not same_outputs(left, right)


def test_columns_that_hold_other_values_are_named() -> None:
    then = fingerprint("a", carrier="1" * 16, late="2" * 16, gone="3" * 16)
    now = fingerprint("b", carrier="1" * 16, late="4" * 16, new="5" * 16)
    assert of(then, now) == {
        "output marts.delays fingerprint": ("a by duckdb 1.5.5", "b by duckdb 1.5.5"),
        "output marts.delays values of late": ("2" * 16, "4" * 16),
    }


def test_columns_are_not_held_against_each_other_where_engines_differ_or_one_has_none_on_record() -> None:
    then = fingerprint("a", late="1")
    for now in (fingerprint("b", "duckdb 1.6.0", late="2"), fingerprint("b")):
        assert [fact for fact in of(then, now) if "values of" in fact] == []


def test_that_one_was_made_of_a_dirty_working_tree_is_a_difference() -> None:
    logic = {"repo": "https://git.example.org/logic.git", "commit": f"{1:040x}"}
    outputs = [{"dataset": "dev_marts.delays", "from": "main.delays"}]
    clean, dirty = (
        manifest_of(spec=job_spec(run_id=f"{number:032x}", logic={**logic, "dirty": bool(number)}, outputs=outputs))
        for number in (0, 1)
    )
    assert differences(clean, dirty) == [Difference(fact="logic dirty", left="no", right="yes")]
