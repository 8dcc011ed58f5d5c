"""Names of datasets, and of every key in the bucket: what may be one, and that no two things share one."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from runner.model.names import (
    Commit,
    DatasetName,
    Identifier,
    RelationName,
    RelativePath,
    data_prefix,
    dev_of,
    effect_prefix,
    is_dev,
    is_table,
    log_key,
    manifest_key,
    openlineage,
    quarantine_of,
    rerun_branch,
    run_prefix,
    snapshots_prefix,
    spec_key,
    table_prefix,
)
from tests.support.documents import DATASETS, PREFIXES, RUN_IDS, TABLES, run_id

PATIENT = settings(deadline=None)
WRITTEN_AT = datetime(2026, 1, 2, 23, 59, tzinfo=UTC)
KINDS: dict[str, TypeAdapter[str]] = {
    "identifier": TypeAdapter(Identifier),
    "dataset": TypeAdapter(DatasetName),
    "commit": TypeAdapter(Commit),
    "path": TypeAdapter(RelativePath),
    "relation": TypeAdapter(RelationName),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("identifier", "a"),
        ("identifier", "_a1"),
        ("identifier", "a" * 128),
        ("dataset", "staging.flights"),
        ("dataset", "landing/portal/flights"),
        ("dataset", "exports/runs"),
        ("dataset", "runs.tables"),
        ("commit", "0" * 40),
        ("path", "."),
        ("path", "models/staging/.hidden"),
        ("path", "models/..sql"),
        ("path", "Modèles/ventes.sql"),
        ("relation", "delays"),
        ("relation", "main.Delays By Hour"),
    ],
)
def test_a_name_is_accepted(kind: str, name: str) -> None:
    assert KINDS[kind].validate_python(name) == name


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *[("identifier", name) for name in ("", "A", "1a", "a-b", "a b", "a.b", "é", "a\n", "a" * 129)],
        *[("dataset", name) for name in ("", "a", ".", "/", "a.", ".b", "a.b.c", "A.b", "a b.c", "a.b\n")],
        *[("dataset", name) for name in ("a/", "/a/b", "a//b", "a/b.c", "a.b/c", "../a/b", "a/..", "a/B")],
        *[("dataset", name) for name in ("runs/a", "tables/a/b", "logic/a", "landing/a/_snapshots", "_snapshots/a")],
        *[("commit", name) for name in ("", "main", "HEAD", "0" * 39, "0" * 41, "A" * 40, "g" * 40, "0" * 40 + "\n")],
        *[
            ("path", name)
            for name in ("", "/", "/a", "..", "a/..", "../a", "a/../b", "a\\b", "a\nb", "a\0", "a\x1b[0m")
        ],
        *[("relation", name) for name in ("", ".", "a.", ".a", "a.b.c", "a\nb")],
    ],
)
def test_a_name_is_refused_with_what_came(kind: str, name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        KINDS[kind].validate_python(name)
    message = str(caught.value.errors()[0]["ctx"]["error"])
    assert message.startswith("expected ")
    assert message.endswith(f", got {name!r}")


def test_a_table_has_a_dot_and_a_prefix_has_slashes() -> None:
    assert is_table("staging.flights")
    assert not is_table("landing/portal/flights")


@PATIENT
@given(DATASETS)
def test_what_is_a_dataset_is_a_table_or_a_prefix(dataset: str) -> None:
    assert KINDS["dataset"].validate_python(dataset) == dataset
    assert is_table(dataset) is ("/" not in dataset)


@PATIENT
@given(st.text(max_size=30))
def test_whatever_is_accepted_as_a_path_stays_inside(text: str) -> None:
    try:
        path = KINDS["path"].validate_python(text)
    except ValidationError:
        return
    assert ".." not in path.split("/")
    assert not path.startswith("/")


# ---------------------------------------------------------------- keys in the bucket


def test_the_quarantine_of_a_table_is_a_prefix_of_its_own() -> None:
    assert quarantine_of("staging.flights") == "failed/staging/flights"


@PATIENT
@given(TABLES, TABLES)
def test_no_two_tables_share_a_quarantine_or_a_folder(one: str, other: str) -> None:
    assert KINDS["dataset"].validate_python(quarantine_of(one)) == quarantine_of(one)
    assert (quarantine_of(one) == quarantine_of(other)) is (one == other)
    assert table_prefix(other).startswith(table_prefix(one)) is (one == other)


def test_a_rerun_has_a_branch_named_after_itself() -> None:
    assert rerun_branch(run_id(255)) == "rerun_000000000000000000000000000000ff"


@PATIENT
@given(RUN_IDS, RUN_IDS)
def test_no_two_reruns_share_a_branch(one: UUID, other: UUID) -> None:
    assert (rerun_branch(one) == rerun_branch(other)) is (one == other)


def folder(
    dataset: str, run: UUID, attempt: int = 1, plan: UUID | None = None, *, effect: UUID | None = None,
    at: datetime = WRITTEN_AT,
) -> str:  # fmt: skip
    """Where a plan's files go; by default of a run that repeats none."""
    return data_prefix(
        dataset, effect=effect or run, run_id=run, attempt=attempt, plan_id=plan or run_id(99), written_at=at
    )


def test_a_plans_files_have_a_folder_that_says_whose_they_are() -> None:
    one, nine, plan = run_id(1), run_id(9), run_id(5)
    table = folder("staging.flights", one, 2, plan, effect=nine)
    assert table == f"tables/staging/flights/data/{nine}/{one}/2/{plan}/"
    assert folder("landing/a", one, 2, plan) == f"landing/a/ingested_on=2026-01-02/{one}/2/{plan}/"


def test_what_an_effect_has_written_to_a_table_lies_together() -> None:
    effect, rerun = run_id(1), run_id(2)
    below = effect_prefix("staging.flights", effect)
    assert folder("staging.flights", effect).startswith(below)
    assert folder("staging.flights", rerun, effect=effect).startswith(below)
    assert not folder("staging.flights", rerun).startswith(below)


MOMENTS = st.datetimes(timezones=st.just(UTC))


@settings(deadline=None, max_examples=300)
@given(DATASETS, DATASETS, RUN_IDS, RUN_IDS, MOMENTS, MOMENTS, st.data())
def test_no_two_plans_share_a_folder_nor_have_one_inside_the_others(
    dataset: str, another: str, run: UUID, another_run: UUID, at: datetime, later: datetime, data: st.DataObject
) -> None:
    one = (dataset, run, data.draw(st.integers(1, 200)), data.draw(RUN_IDS))
    other = (
        data.draw(st.sampled_from([dataset, another])),
        data.draw(st.sampled_from([run, another_run])),
        data.draw(st.integers(1, 200)),
        data.draw(st.one_of(st.just(one[3]), RUN_IDS)),
    )
    assume(one != other)
    effects = st.sampled_from([run, another_run])
    mine = folder(*one, effect=data.draw(effects), at=at)
    theirs = folder(*other, effect=data.draw(effects), at=data.draw(st.sampled_from([at, later])))
    assert not theirs.startswith(mine)
    assert not mine.startswith(theirs)


@PATIENT
@given(PREFIXES, PREFIXES, RUN_IDS, MOMENTS)
def test_no_datasets_files_lie_among_anothers_versions(one: str, other: str, run: UUID, at: datetime) -> None:
    assert not folder(other, run, at=at).startswith(snapshots_prefix(one))
    assert snapshots_prefix(other).startswith(snapshots_prefix(one)) is (one == other)


@PATIENT
@given(DATASETS, RUN_IDS)
def test_no_datasets_files_lie_among_the_products_own(dataset: str, run: UUID) -> None:
    prefix = folder(dataset, run)
    assert not prefix.startswith(("runs/", "logic/"))
    assert prefix.startswith("tables/") is is_table(dataset)


@PATIENT
@given(DATASETS)
def test_a_dev_dataset_is_one_beside_the_published_and_stays_what_it_is(dataset: str) -> None:
    dev = dev_of(dataset)
    assert TypeAdapter(DatasetName).validate_python(dev) == dev
    assert is_dev(dev)
    assert is_table(dev) is is_table(dataset)
    assert dev_of(dev) == dev
    assert (dev == dataset) is is_dev(dataset)


def test_a_runs_documents_lie_together() -> None:
    prefix = run_prefix(run_id(1))
    keys = {manifest_key(run_id(1)), spec_key(run_id(1)), log_key(run_id(1), 1), log_key(run_id(1), 2)}
    assert len(keys) == 4
    assert all(key.startswith(prefix) for key in keys)


# ---------------------------------------------------------------- OpenLineage


@pytest.mark.parametrize(
    ("dataset", "namespace", "name"),
    [
        ("staging.flights", "s3://lake", "tables/staging/flights"),
        ("landing/portal/flights", "s3://lake", "landing/portal/flights"),
        ("https://portal.example.org/data/flights.csv?x=1", "https://portal.example.org", "data/flights.csv?x=1"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080", "/"),
    ],
)
def test_a_dataset_has_the_name_that_openlineage_gives_it(dataset: str, namespace: str, name: str) -> None:
    assert openlineage(dataset, "lake") == (namespace, name)
