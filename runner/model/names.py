"""Names: of datasets, of columns, and of every key that the product writes in the lake's bucket."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from typing import Annotated, NamedTuple
from uuid import UUID

from pydantic import AfterValidator, WithJsonSchema

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,127}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_RESERVED_LAYERS = {"runs", "tables", "logic", "packages"}
"""Top-level folders of the bucket that are the product's own: no prefix dataset may lie in them."""
_SNAPSHOTS = "_snapshots"
"""The folder of a prefix dataset that lists its versions: no other dataset may lie in it."""
_MAX_PATH_CHARS = 1000
_MAX_PART_BYTES = 255
"""Linux opens no file whose name is longer (limits.h, NAME_MAX)."""


def _identifier(value: str) -> str:
    if not _IDENTIFIER.fullmatch(value):
        raise ValueError(f"expected an identifier ({_IDENTIFIER.pattern}), got {value!r}")
    return value


def _dataset(value: str) -> str:
    parts = value.split("/") if "/" in value else value.split(".")
    well_formed = len(parts) >= 2 and all(_IDENTIFIER.fullmatch(part) for part in parts)
    if not well_formed or ("/" not in value and len(parts) != 2):
        raise ValueError(f"expected a table `namespace.table` or a prefix `layer/name`, got {value!r}")
    if "/" in value and parts[0] in _RESERVED_LAYERS:
        raise ValueError(f"expected a layer other than {', '.join(sorted(_RESERVED_LAYERS))}, got {value!r}")
    if "/" in value and _SNAPSHOTS in parts:
        raise ValueError(f"expected a prefix without {_SNAPSHOTS}, got {value!r}")
    return value


def _commit(value: str) -> str:
    if not _COMMIT.fullmatch(value):
        raise ValueError(f"expected a commit of 40 hex digits, got {value!r}")
    return value


def _relative_path(value: str) -> str:
    parts = value.split("/")
    if not value or value.startswith("/") or ".." in parts or "\\" in value or not value.isprintable():
        raise ValueError(f"expected a path inside the logic repository, got {value!r}")
    if len(value) > _MAX_PATH_CHARS or any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        raise ValueError(
            f"expected a path of at most {_MAX_PATH_CHARS:,} characters, of at most {_MAX_PART_BYTES} bytes between "
            f"slashes, got {value[:40]!r}..., {len(value):,} long"
        )
    return value


def _relation(value: str) -> str:
    parts = value.split(".")
    if not value.isprintable() or len(parts) > 2 or not all(parts):
        raise ValueError(f"expected `name` or `schema.relation`, got {value!r}")
    return value


def _column(value: str) -> str:
    if not value or not value.isprintable() or len(value) > 255:
        raise ValueError(f"expected a column's name, got {value!r}")
    return value


def _form(pattern: str) -> WithJsonSchema:
    """What of a rule a JSON Schema can say; the validators decide, and say what was expected."""
    return WithJsonSchema({"type": "string", "pattern": f"^({pattern})$"})


Identifier = Annotated[str, AfterValidator(_identifier), _form(_IDENTIFIER.pattern)]
DatasetName = Annotated[
    str,
    AfterValidator(_dataset),
    _form(rf"{_IDENTIFIER.pattern}(\.{_IDENTIFIER.pattern}|(/{_IDENTIFIER.pattern})+)"),
]
Commit = Annotated[str, AfterValidator(_commit), _form(_COMMIT.pattern)]
RelativePath = Annotated[str, AfterValidator(_relative_path)]
RelationName = Annotated[str, AfterValidator(_relation)]
ColumnName = Annotated[str, AfterValidator(_column)]


def is_table(dataset: str) -> bool:
    """A table `namespace.table`; everything else is a prefix of files, `layer/name`."""
    return "/" not in dataset


class OpenLineageName(NamedTuple):
    """A dataset as OpenLineage names it: https://openlineage.io/docs/spec/naming."""

    namespace: str
    name: str


def openlineage(dataset: str, bucket: str) -> OpenLineageName:
    """S3 datasets are namespace `s3://<bucket>` and the key's path; a URL is its scheme and host, and its path."""
    if "://" in dataset:
        scheme, _, rest = dataset.partition("://")
        host, _, path = rest.partition("/")
        return OpenLineageName(f"{scheme}://{host}", path or "/")
    path = table_prefix(dataset).rstrip("/") if is_table(dataset) else dataset
    return OpenLineageName(f"s3://{bucket}", path)


def dev_of(dataset: str) -> str:
    """Where logic that production does not reach publishes: `marts.delays` -> `dev_marts.delays`."""
    return dataset if is_dev(dataset) else f"dev_{dataset}"


def is_dev(dataset: str) -> bool:
    return dataset.startswith("dev_")


def quarantine_of(table: str) -> str:
    """The prefix dataset that takes a table's bad rows: `staging.flights` -> `failed/staging/flights`."""
    return "failed/" + table.replace(".", "/")


def rerun_branch(run_id: UUID) -> str:
    """The Iceberg branch, or the side name of a prefix's snapshot, that a rerun publishes to."""
    return f"rerun_{run_id.hex}"


def table_prefix(table: str) -> str:
    return f"tables/{table.replace('.', '/')}/"


def data_prefix(dataset: str, *, effect: UUID, run_id: UUID, attempt: int, plan_id: UUID, written_at: datetime) -> str:
    """Where one attempt's files of one output go. No two plans share a prefix, so files are never overwritten.

    A ledger that comes back from a backup gives attempt numbers out again: only the plan's id is never drawn twice.
    The effect comes first, so that a rerun finds the files that it replaces long after their snapshots have expired.
    """
    if is_table(dataset):
        return f"{effect_prefix(dataset, effect)}{run_id}/{attempt}/{plan_id}/"
    return f"{dataset}/ingested_on={written_at:%Y-%m-%d}/{run_id}/{attempt}/{plan_id}/"


def effect_prefix(table: str, effect: UUID) -> str:
    """Where the files are that a run and all its reruns have written to a table."""
    return f"{table_prefix(table)}data/{effect}/"


def snapshots_prefix(dataset: str) -> str:
    return f"{dataset}/{_SNAPSHOTS}/"


def run_prefix(run_id: UUID) -> str:
    return f"runs/{run_id}/"


def manifest_key(run_id: UUID) -> str:
    return f"{run_prefix(run_id)}manifest.json"


def spec_key(run_id: UUID) -> str:
    return f"{run_prefix(run_id)}spec.json"


def artifacts_prefix(run_id: UUID, plan_id: UUID) -> str:
    return f"{run_prefix(run_id)}artifacts/{plan_id}/"


def log_key(run_id: UUID, attempt: int) -> str:
    return f"{run_prefix(run_id)}log.{attempt}.jsonl"


def package_archive_key(sha256: str) -> str:
    return f"packages/{sha256}.tar.gz"


def hub_package_key(package: str, version: str) -> str:
    """What says which archive a version of a hub's package (`namespace/name`) is, once and for all."""
    return f"packages/hub/{package}/{version}.json"


def tarball_package_key(url: str) -> str:
    """The same for a package that is named by an address."""
    return f"packages/tarball/{hashlib.sha256(url.encode()).hexdigest()}.json"
