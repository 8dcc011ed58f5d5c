"""The manifest: the record survives its JSON, and its parts compare as they should."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings

from runner.model.errors import Category, Failure, InfrastructureError
from runner.model.manifest import (
    TERMINAL,
    AttemptRecord,
    Column,
    FileRecord,
    Fingerprint,
    LogicRecord,
    Manifest,
    Pin,
    Plan,
    Report,
    Software,
    SourceRecord,
    State,
    Step,
)
from runner.model.spec import JobSpec
from runner.model.strict import parse_json
from tests.support.documents import (
    COMMIT,
    DECIDED_AT,
    input_record,
    job_spec,
    job_specs,
    manifest_of,
    output_record,
    run_id,
)

FILE = FileRecord(
    uri="s3://lake/landing/portal/flights/x.csv",
    bytes=100,
    sha256="0" * 64,
    source=SourceRecord(
        url="https://portal.example.org/flights.csv",
        etag='"1"',
        last_modified=None,
        content_type="text/csv",
        fetched_at=DECIDED_AT,
    ),
)


def whole(spec: JobSpec | None = None) -> Manifest:
    """A manifest with something in every place."""
    return manifest_of(
        output_record(
            "marts.delays",
            snapshot="9223372036854775807",
            base="9223372036854775806",
            files=(FILE, FILE),
            columns=(Column(name="carrier", type="string"), Column(name="delay", type="decimal(12,2)")),
            comparison="identical",
            claimed_inputs=("staging.flights",),
        ),
        output_record("failed/marts/delays", snapshot=None, quarantine=True, branch="rerun_" + "0" * 32, rows=None),
        inputs=(input_record("staging.flights", as_="f"),),
        spec=spec,
        state=State.FAILED,
        failure=Failure(category=Category.DATA, message="test x: expected no row that breaks it, got 3", subject="x"),
        plan_id=run_id(7),
        attempts=(
            AttemptRecord(attempt=1, worker="host:1", started_at=DECIDED_AT, outcome="lost", ended_at=DECIDED_AT),
            AttemptRecord(
                attempt=2, worker="host:2", started_at=DECIDED_AT, outcome="failed", log="runs/x/log.2.jsonl"
            ),
        ),
        pins=(Pin(as_="f", dataset="staging.flights", snapshot="1", metadata="s3://lake/x.metadata.json"),),
        report=Report(
            logic=LogicRecord(
                repo="https://git.example.org/logic.git",
                commit=COMMIT,
                path=".",
                tree=COMMIT,
                origin="archive",
                committed_at=DECIDED_AT,
            ),
            software=Software(runner="0.1", python="3.13.0", packages={"duckdb": "1.5.5"}),
            inputs=(input_record("staging.flights", as_="f"), input_record("raw.x", declared=False, observed=None)),
            steps=(Step(name="x", kind="test", status="fail", seconds=0.5, rows=3),),
            counts={"rows_read": 10, "rows_loaded": 7, "rows_quarantined": 3},
        ),
    )


def reread(manifest: Manifest) -> Manifest:
    return parse_json(Manifest, manifest.to_json(), what="manifest")


def test_a_manifest_survives_its_json() -> None:
    manifest = whole()
    assert reread(manifest) == manifest
    assert reread(manifest).to_json() == manifest.to_json()


@settings(deadline=None)
@given(job_specs())
def test_a_manifest_survives_its_json_whatever_spec_it_embeds(spec: JobSpec) -> None:
    manifest = manifest_of(output_record("marts.delays"), spec=spec)
    assert reread(manifest) == manifest
    assert reread(manifest).spec_sha256 == reread(manifest).spec.digest()


def test_a_plan_survives_its_json() -> None:
    manifest = whole()
    plan = Plan(
        plan_id=run_id(1),
        run_id=run_id(2),
        attempt=1,
        outputs=manifest.outputs,
        report=manifest.report,
        failure=manifest.failure,
    )
    assert parse_json(Plan, plan.to_json(), what="plan") == plan


def test_a_snapshot_id_is_text_because_json_readers_round_large_integers() -> None:
    document = json.loads(whole().to_json())
    assert document["outputs"][0]["snapshot"] == "9223372036854775807"
    document["outputs"][0]["snapshot"] = 9223372036854775807
    with pytest.raises(
        InfrastructureError, match=r"^manifest: outputs\[0\]\.snapshot: expected a valid string, got 92"
    ):
        parse_json(Manifest, json.dumps(document), what="manifest", error=InfrastructureError)


@pytest.mark.parametrize("state", [state for state in State if state not in TERMINAL])
def test_a_manifest_is_of_a_terminal_run_only(state: State) -> None:
    document = json.loads(whole().to_json()) | {"state": state.value}
    with pytest.raises(InfrastructureError, match=f"^manifest: state: expected .*succeeded.*, got '{state.value}'$"):
        parse_json(Manifest, json.dumps(document), what="manifest", error=InfrastructureError)


def test_a_manifest_of_another_version_is_not_read_as_this_one() -> None:
    document = json.loads(whole().to_json()) | {"manifest_version": 2}
    with pytest.raises(InfrastructureError, match=r"^manifest: manifest_version: expected 1, got 2$"):
        parse_json(Manifest, json.dumps(document), what="manifest", error=InfrastructureError)


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        whole().state = State.SUCCEEDED  # type: ignore[misc]


def test_an_output_is_as_large_as_its_files() -> None:
    assert whole().outputs[0].bytes == 200
    assert whole().outputs[1].bytes == 0


def test_a_time_without_its_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="timezone"):
        manifest_of(decided_at=datetime(2026, 1, 2))  # noqa: DTZ001


def test_times_keep_their_microseconds() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    assert reread(manifest_of(decided_at=at)).decided_at == at


# ---------------------------------------------------------------- fingerprints


def fingerprint(**given: Any) -> Fingerprint:
    return Fingerprint(**{"rows": 3, "hash": "1", "engine": "duckdb 1.5.5", **given})


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ({}, "identical"),
        ({"hash": "2"}, "different"),
        ({"rows": 4}, "different"),
        ({"engine": "duckdb 2.0.0"}, "not comparable"),
        ({"engine": "duckdb 2.0.0", "rows": 4}, "not comparable"),
    ],
)
def test_two_fingerprints_compare_only_if_one_engine_made_them(other: dict[str, Any], verdict: str) -> None:
    assert fingerprint().compare(fingerprint(**other)) == verdict
    assert fingerprint(**other).compare(fingerprint()) == verdict


def test_a_rerun_keeps_the_effect_of_the_run_that_it_repeats() -> None:
    spec = job_spec(rerun={"of": str(run_id(2)), "effect": str(run_id(1))})
    assert reread(manifest_of(spec=spec)).effect == run_id(1)
