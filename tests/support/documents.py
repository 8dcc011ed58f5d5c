"""Job specs and manifests as tests need them: one of each stage by hand, and any valid one by Hypothesis."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

from hypothesis import strategies as st

from runner.model.manifest import Fingerprint, InputRecord, Manifest, OutputRecord, Report, State
from runner.model.spec import JobSpec, parse_spec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DECIDED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

_WORK: dict[str, dict[str, Any]] = {
    "extract": {
        "work": {"kind": "extract", "sources": [{"name": "flights", "url": "https://portal.example.org/flights.csv"}]},
        "outputs": [{"dataset": "landing/portal/flights", "from": "flights"}],
    },
    "load": {
        "work": {"kind": "load", "contract": "contracts/flights.odcs.yaml", "format": {"type": "csv"}},
        "inputs": [{"dataset": "landing/portal/flights"}],
        "outputs": [{"dataset": "staging.flights"}],
    },
    "transform": {
        "work": {"kind": "dbt", "steps": [{"command": "build"}]},
        "inputs": [{"dataset": "staging.flights"}],
        "outputs": [{"dataset": "marts.delays", "from": "main.delays"}],
    },
    "query": {
        "work": {"kind": "query", "file": "queries/worst.sql"},
        "inputs": [{"dataset": "marts.delays"}],
        "outputs": [{"dataset": "exports/worst", "format": "csv"}],
    },
}


def spec_document(stage: str = "transform", /, **given: Any) -> dict[str, Any]:
    """A valid job spec of `stage` as JSON has it, with what a test cares about in its place."""
    return {
        "spec_version": 1,
        "run_id": str(uuid4()),
        "pipeline": "flights",
        "task": "task",
        "stage": stage,
        "logic": {"repo": "https://git.example.org/logic.git", "commit": COMMIT},
        "logical_time": "2013-06-01T00:00:00Z",
        **_WORK[stage],
        **given,
    }


def job_spec(stage: str = "transform", /, **given: Any) -> JobSpec:
    return parse_spec(json.dumps(spec_document(stage, **given)))


def output_record(dataset: str, *, snapshot: str | None = "1", **given: Any) -> OutputRecord:
    values: dict[str, Any] = {
        "dataset": dataset,
        "mode": "replace",
        "branch": None,
        "base": None,
        "files": (),
        "rows": 3,
        "columns": None,
        "fingerprint": Fingerprint(rows=3, hash="1", engine="duckdb 1.5.5"),
        "claimed_inputs": (),
        "snapshot": snapshot,
        **given,
    }
    return OutputRecord(**values)


def input_record(dataset: str, *, snapshot: str | None = "1", **given: Any) -> InputRecord:
    values: dict[str, Any] = {"declared": True, "claimed": True, "observed": "rows", **given}
    return InputRecord(dataset=dataset, snapshot=snapshot, **values)


def manifest_of(
    *outputs: OutputRecord, inputs: tuple[InputRecord, ...] = (), spec: JobSpec | None = None, **given: Any
) -> Manifest:
    """A manifest of a run that made `outputs` of `inputs`."""
    spec = spec or job_spec()
    values: dict[str, Any] = {
        "run_id": spec.run_id,
        "effect": spec.effect,
        "state": State.SUCCEEDED,
        "spec": spec,
        "spec_sha256": spec.digest(),
        "attempt": 1,
        "submitted_at": DECIDED_AT,
        "decided_at": DECIDED_AT,
        "attempts": (),
        "outputs": outputs,
        "report": Report(inputs=inputs),
        **given,
    }
    return Manifest(**values)


# ---------------------------------------------------------------- any valid spec

IDENTIFIERS = st.from_regex(r"[a-z_][a-z0-9_]{0,12}", fullmatch=True)
TABLES = st.builds("{}.{}".format, IDENTIFIERS, IDENTIFIERS)
_PARTS = st.lists(IDENTIFIERS.filter(lambda part: part != "_snapshots"), min_size=2, max_size=4)
PREFIXES = _PARTS.filter(lambda parts: parts[0] not in ("runs", "tables", "logic")).map("/".join)
DATASETS = TABLES | PREFIXES
RUN_IDS = st.uuids()
TIMES = st.datetimes(
    timezones=st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)

_TEXT = st.text(max_size=12)
_NAMES = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="."), min_size=1, max_size=8)
_RELATIONS = _NAMES | st.builds("{}.{}".format, _NAMES, _NAMES)
_PATHS = st.lists(IDENTIFIERS, min_size=1, max_size=3).map("/".join)
_SECRETS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,5}(/[A-Za-z0-9_]{1,3})?", fullmatch=True).map(
    lambda name: {"secret": name}
)
_VARS = st.dictionaries(
    _TEXT,
    _TEXT | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | _SECRETS,
    max_size=3,
)
_TEXT_WITHOUT_NUL = _TEXT.filter(lambda text: "\0" not in text)
_FORMATS = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("csv")},
        optional={"delimiter": st.sampled_from(",;|\t"), "nulls": st.lists(_TEXT_WITHOUT_NUL, max_size=3)},
    ),
    st.just({"type": "jsonl"}),
    st.just({"type": "parquet"}),
)
_SELECTORS = _TEXT.filter(lambda text: text != "" and not text.startswith("-"))
_STEPS = st.lists(
    st.fixed_dictionaries(
        {"command": st.sampled_from(["build", "run", "test", "seed", "snapshot", "compile", "docs"])},
        optional={
            "select": st.lists(_SELECTORS, max_size=2),
            "exclude": st.lists(_SELECTORS, max_size=2),
            "allow_empty": st.booleans(),
        },
    ),
    min_size=1,
    max_size=3,
)


def _inputs(datasets: st.SearchStrategy[str], *, least: int = 0, most: int = 3) -> st.SearchStrategy[Any]:
    one = st.fixed_dictionaries(
        {"dataset": datasets},
        optional={"as": st.none() | _RELATIONS, "snapshot": st.none() | st.from_regex("[0-9]{1,19}", fullmatch=True)},
    )
    return st.lists(
        one, min_size=least, max_size=most, unique_by=lambda each: (each.get("as") or each["dataset"]).lower()
    )


def _outputs(datasets: st.SearchStrategy[str], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"dataset": datasets, **fields}, optional={"mode": st.just("replace")})


@st.composite
def _extract(draw: st.DrawFn) -> Mapping[str, Any]:
    names = draw(st.lists(IDENTIFIERS, min_size=1, max_size=3, unique=True))
    datasets = draw(st.lists(PREFIXES, min_size=len(names), max_size=len(names), unique=True))
    sources = [{"name": name, "url": f"https://portal.example.org/{name}.csv"} for name in names]
    outputs = [{"dataset": dataset, "from": name} for dataset, name in zip(datasets, reversed(names), strict=True)]
    return {"work": {"kind": "extract", "sources": sources}, "outputs": outputs}


_STAGES: dict[str, st.SearchStrategy[Mapping[str, Any]]] = {
    "extract": _extract(),
    "load": st.fixed_dictionaries(
        {
            "work": st.fixed_dictionaries(
                {"kind": st.just("load"), "contract": _PATHS, "format": _FORMATS},
                optional={"max_bad_fraction": st.floats(0, 1)},
            ),
            "inputs": _inputs(PREFIXES, least=1, most=1),
            "outputs": st.lists(_outputs(TABLES), min_size=1, max_size=1),
        }
    ),
    "transform": st.fixed_dictionaries(
        {
            "work": st.fixed_dictionaries(
                {"kind": st.just("dbt"), "steps": _STEPS},
                optional={
                    "vars": _VARS,
                    "env": st.dictionaries(
                        st.from_regex("MY_[A-Za-z0-9_]*", fullmatch=True), _TEXT_WITHOUT_NUL | _SECRETS, max_size=2
                    ),
                    "target": IDENTIFIERS,
                    "schema": st.sampled_from(["main", "dev"]),
                    "database": st.sampled_from(["warehouse", "dbt_of_theirs"]),
                },
            ),
            "inputs": _inputs(TABLES),
            "outputs": st.lists(
                _outputs(TABLES, **{"from": st.builds("{}.{}".format, _NAMES, _NAMES)}),
                min_size=1,
                max_size=3,
                unique_by=lambda each: each["dataset"],
            ),
        }
    ),
    "query": st.fixed_dictionaries(
        {
            "work": st.fixed_dictionaries({"kind": st.just("query"), "file": _PATHS}),
            "inputs": _inputs(TABLES),
            "outputs": st.lists(
                _outputs(TABLES) | _outputs(PREFIXES, format=st.sampled_from(["csv", "parquet"])),
                min_size=1,
                max_size=1,
            ),
        }
    ),
}

_OPTIONAL: dict[str, st.SearchStrategy[Any]] = {
    "pipeline_run": st.none() | st.uuids().map(str),
    "params": st.dictionaries(IDENTIFIERS, _TEXT | _SECRETS, max_size=3),
    "labels": st.dictionaries(IDENTIFIERS, _TEXT, max_size=3),
    "resources": st.fixed_dictionaries(
        {},
        optional={
            "cpu": st.integers(128, 65536),
            "memory_mib": st.integers(256, 524288),
            "timeout_s": st.integers(1, 172800),
        },
    ),
    "max_attempts": st.integers(1, 10),
    "rerun": st.none()
    | st.fixed_dictionaries(
        {"of": st.uuids().map(str), "effect": st.uuids().map(str)}, optional={"publish": st.booleans()}
    ),
}


@st.composite
def spec_documents(draw: st.DrawFn) -> dict[str, Any]:
    """Any job spec that is to be accepted, as JSON has it."""
    stage = draw(st.sampled_from(sorted(_STAGES)))
    logic = {
        "repo": draw(st.text(min_size=1, max_size=20)),
        "commit": draw(st.from_regex("[0-9a-f]{40}", fullmatch=True)),
    }
    if draw(st.booleans()):
        logic["path"] = draw(_PATHS)
    return {
        "spec_version": 1,
        "run_id": str(draw(RUN_IDS)),
        "pipeline": draw(IDENTIFIERS),
        "task": draw(IDENTIFIERS),
        "stage": stage,
        "logic": logic,
        "logical_time": draw(TIMES).isoformat(),
        **draw(_STAGES[stage]),
        **draw(st.fixed_dictionaries({}, optional=_OPTIONAL)),
    }


def job_specs() -> st.SearchStrategy[JobSpec]:
    return spec_documents().map(lambda document: parse_spec(json.dumps(document)))


def run_id(number: int) -> UUID:
    """A run id that reads well in a failing test."""
    return UUID(int=number)


PEOPLE_CONTRACT = """
apiVersion: v3.1.0
kind: DataContract
id: people
version: 1.0.0
status: active
schema:
  - name: people
    logicalType: object
    properties:
      - {name: id, logicalType: integer, physicalType: INTEGER, required: true, unique: true}
      - {name: name, logicalType: string, physicalType: VARCHAR}
"""
"""A contract for a table of people, as analysts write it."""
