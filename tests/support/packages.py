"""dbt packages for tests: archives as a hub's downloads are, and the port's twin for projects that need none."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from runner.adapters.dbt_packages import sha1_hash
from runner.model.manifest import PackageRecord


class NoPackages:
    """`Packages` for a world whose projects name none; what it was asked to look at is kept."""

    def __init__(self) -> None:
        self.asked: list[Path] = []

    def install(self, project: Path, *, clone: Path, scratch: Path) -> tuple[PackageRecord, ...]:
        self.asked.append(project)
        return ()


def archive(files: Mapping[str, str | bytes], *others: tarfile.TarInfo, folder: str = "pkg-1.0.0") -> bytes:
    """A gzipped tar of one folder, as a code host serves a tag; `others` are members as they are given."""
    out = io.BytesIO()
    # The same bytes for the same files: without a time in gzip's header.
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT, compresslevel=1) as tar:
        for path, content in files.items():
            body = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(f"{folder}/{path}" if folder else path)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
        for member in others:
            tar.addfile(member)
    raw = bytearray(out.getvalue())
    raw[4:8] = bytes(4)
    return bytes(raw)


def package(name: str, macros: str = "") -> dict[str, str | bytes]:
    """A project that holds these macros."""
    return {"dbt_project.yml": f"name: {name}\nversion: 1.0.0\n", "macros/all.sql": macros}


def hub_index(name: str, **versions: str) -> str:
    """A hub's page of a package: where each version's archive is (`v1_0_0` is 1.0.0)."""
    told = {
        version.removeprefix("v").replace("_", "."): {"name": name, "packages": [], "downloads": {"tarball": url}}
        for version, url in versions.items()
    }
    return json.dumps({"name": name, "namespace": "acme", "versions": told})


def lock(listed: Sequence[Mapping[str, Any]], locked: Sequence[Mapping[str, Any]]) -> str:
    """package-lock.yml for what packages.yml lists."""
    return yaml.safe_dump({"packages": list(locked), "sha1_hash": sha1_hash(list(listed))})
