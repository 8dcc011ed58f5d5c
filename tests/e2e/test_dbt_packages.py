"""dbt packages end to end: the worker fetches what the lock names, and dbt runs with it in a child without a network.

The site's portal is the hub, the host of archives and the git server, as one address that the configuration allows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from runner.model.errors import Category
from runner.model.manifest import Manifest, PackageRecord
from tests.support.git_server import Repository
from tests.support.packages import archive, hub_index, lock, package
from tests.support.site import Site

PROJECT = "name: small\nprofile: small\nversion: 1.0.0\n"
TOOLS = archive(package("tools", "{% macro twice(x) %}2 * {{ x }}{% endmacro %}"))


def project(
    listed: Sequence[Mapping[str, Any]], locked: Sequence[Mapping[str, Any]] | None, sql: str
) -> dict[str, str | bytes]:
    files: dict[str, str | bytes] = {"dbt_project.yml": PROJECT, "models/made.sql": sql}
    files["packages.yml"] = yaml.safe_dump({"packages": list(listed)})
    if locked is not None:
        files["package-lock.yml"] = lock(listed, locked)
    return files


def run(site: Site, files: Mapping[str, str | bytes], table: str) -> Manifest:
    spec = site.spec(
        site.commit(files),
        "transform",
        {"kind": "dbt", "steps": [{"command": "build"}]},
        outputs=[{"dataset": table, "from": "main.made"}],
    )
    return site.end(spec)


def serve(site: Site, name: str, content: bytes) -> None:
    """A package `acme/<name>` of version 1.0.0 on the hub."""
    url = site.serve(f"archives/{name}.tar.gz", content)
    site.serve(f"api/v1/acme/{name}.json", hub_index(name, v1_0_0=url))


def packages_of(manifest: Manifest) -> tuple[PackageRecord, ...]:
    assert manifest.report.logic is not None
    return manifest.report.logic.packages


def test_a_project_with_every_kind_of_package_runs_and_its_manifest_tells_them(site: Site) -> None:
    """dbt has no complaint: it finds as many packages as are listed, each where it looks for it."""
    serve(site, "tools", TOOLS)
    packed = archive(package("packed", "{% macro seven() %}7{% endmacro %}"))
    url = site.serve("archives/packed.tar.gz", packed)
    other = Repository(site.folder / "git" / "other.git")
    commit = other.commit(
        {
            f"in/{path}": str(text).encode()
            for path, text in package("gitted", "{% macro ten() %}10{% endmacro %}").items()
        }
    )
    git = f"{site.portal.url}/git/other.git"
    listed: list[dict[str, Any]] = [
        {"package": "acme/tools", "version": [">=1.0.0", "<2.0.0"]},
        {"tarball": url, "name": "packed"},
        {"git": git, "revision": "main", "subdirectory": "in"},
        {"local": "shared"},
    ]
    locked: list[dict[str, Any]] = [
        {"package": "acme/tools", "version": "1.0.0", "name": "tools"},
        {"tarball": url, "name": "packed"},
        {"git": git, "revision": commit, "subdirectory": "in", "name": "gitted"},
        {"local": "shared", "name": "shared"},
    ]
    files = project(
        listed,
        locked,
        "SELECT {{ tools.twice(packed.seven()) }} AS a, {{ gitted.ten() }} AS b, {{ shared.five() }} AS c",
    )
    files |= {f"shared/{path}": text for path, text in package("shared", "{% macro five() %}5{% endmacro %}").items()}
    manifest = run(site, files, "packages.every")
    assert manifest.failure is None, manifest.failure
    assert site.rows("packages.every") == [(14, 10, 5)]
    assert packages_of(manifest) == (
        PackageRecord(
            name="tools",
            version="1.0.0",
            source=f"{site.portal.url}/acme/tools",
            sha256=hashlib.sha256(TOOLS).hexdigest(),
        ),
        PackageRecord(name="packed", version="tarball", source=url, sha256=hashlib.sha256(packed).hexdigest()),
        PackageRecord(name="gitted", version=commit, source=f"{git}#in", sha256=None),
    )


def test_a_rerun_gets_the_same_package_though_the_hub_has_changed_it(site: Site) -> None:
    serve(site, "kept", archive(package("kept", "{% macro n() %}1{% endmacro %}")))
    entry = {"package": "acme/kept", "version": "1.0.0"}
    files = project([entry], [entry], "SELECT {{ kept.n() }} AS n")
    first = run(site, files, "packages.kept")
    assert site.rows("packages.kept") == [(1,)]
    serve(site, "kept", archive(package("kept", "{% macro n() %}2{% endmacro %}")))
    again = site.end(site.app.client.rerun(first.run_id))
    assert again.outputs[0].comparison == "identical"
    assert packages_of(again) == packages_of(first)


def test_packages_without_a_lock_end_the_run_before_anything_is_executed(site: Site) -> None:
    manifest = run(
        site, project([{"package": "acme/tools", "version": "1.0.0"}], None, "SELECT 1 AS n"), "packages.none"
    )
    assert manifest.failure is not None
    assert manifest.failure.category is Category.LOGIC
    assert manifest.failure.subject == "package-lock.yml"
    assert "expected it beside the list of acme/tools, got none" in manifest.failure.message
    assert "`dbt deps`" in str(manifest.failure.hint)
    assert manifest.report.steps == ()


def test_a_host_that_is_not_allowed_is_named_with_the_setting(site: Site) -> None:
    url = "https://downloads.example.org/tools.tar.gz"
    site.serve("api/v1/acme/far.json", hub_index("far", v1_0_0=url))
    entry = {"package": "acme/far", "version": "1.0.0"}
    manifest = run(site, project([entry], [entry], "SELECT 1 AS n"), "packages.far")
    assert manifest.failure is not None
    assert manifest.failure.category is Category.LOGIC
    assert "RUNNER_PACKAGE_HOSTS" in manifest.failure.message
    assert "downloads.example.org" in manifest.failure.message


def test_a_vendored_package_needs_neither_lock_nor_hub(site: Site) -> None:
    files = project([{"package": "acme/vendored", "version": "1.0.0"}], None, "SELECT {{ vendored.n() }} AS n")
    files |= {
        f"dbt_packages/vendored/{path}": text
        for path, text in package("vendored", "{% macro n() %}4{% endmacro %}").items()
    }
    manifest = run(site, files, "packages.vendored")
    assert manifest.failure is None, manifest.failure
    assert site.rows("packages.vendored") == [(4,)]
    assert packages_of(manifest) == ()
