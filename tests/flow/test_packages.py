"""The flow's part in packages: whose project is looked at, what of it is recorded, and what a refusal comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.model.errors import Category, LogicError
from runner.model.manifest import PackageRecord, State
from tests.support.flow_world import World, load, transform

TOOLS = PackageRecord(name="tools", version="1.0.0", source="https://hub.example.org/acme/tools", sha256="0" * 64)


def test_what_was_fetched_is_in_the_manifest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(project: Path, *, clone: Path, scratch: Path) -> tuple[PackageRecord, ...]:
        assert (project / "dbt_project.yml").is_file(), "the commit is checked out before"
        assert project.is_relative_to(clone)
        assert not scratch.is_relative_to(clone), "what is unpacked does not lie among the logic's files"
        return (TOOLS,)

    monkeypatch.setattr(world.packages, "install", install)
    manifest = world.run(transform())
    assert manifest.report.logic is not None
    assert manifest.report.logic.packages == (TOOLS,)


def test_only_dbt_has_packages(world: World) -> None:
    assert world.run(load()).state is State.SUCCEEDED
    assert world.packages.asked == []
    world.run(transform())
    assert len(world.packages.asked) == 1


def test_packages_that_cannot_be_had_end_the_run_and_nothing_is_executed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(project: Path, *, clone: Path, scratch: Path) -> tuple[PackageRecord, ...]:
        raise LogicError("package-lock.yml: expected it, got none", subject="package-lock.yml")

    monkeypatch.setattr(world.packages, "install", install)
    manifest = world.run(transform())
    assert manifest.failure is not None
    assert manifest.failure.category is Category.LOGIC
    assert world.engine.jobs == []
