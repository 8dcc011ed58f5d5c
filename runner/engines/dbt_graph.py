"""dbt's own account of its project, read from its manifest: what is made of what, and which tests guard it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.model.lineage import closure
from runner.model.manifest import Step

if TYPE_CHECKING:
    from dbt_artifacts_parser.parsers.manifest.manifest_v12 import ManifestV12


@dataclass(frozen=True)
class Graph:
    """Nodes by their unique_id; `relations` are what nodes and sources are called in the database."""

    relations: Mapping[str, str]
    """unique_id -> `schema.name`."""
    materialized: Mapping[str, str]
    depends_on: Mapping[str, list[str]]
    sources: frozenset[str]
    guards: Mapping[str, frozenset[str]]
    """The nodes that each test of severity error looks at, and each unit test."""

    def node_of(self, relation: str) -> str | None:
        wanted = relation.lower()
        return next((node for node, name in self.relations.items() if name.lower() == wanted), None)

    def claimed(self, node: str) -> list[str]:
        """The sources that a node is made of, as `schema.name`."""
        return sorted(self.relations[each] for each in closure(self.depends_on, node) if each in self.sources)

    def obstacle(self, node: str, steps: Iterable[Step]) -> str | None:
        """What speaks against publishing a node's relation, by each node's last step; None where nothing does.

        A test that was skipped has not passed. A hook that failed may have been to change any relation.
        """
        last = {step.name: step for step in steps if step.kind not in ("compile", "docs")}
        above = closure(self.depends_on, node)
        if node not in last:
            return f"{node} was not run"
        for name, step in last.items():
            speaks = step.kind == "operation" or name in above
            guards = not self.guards.get(name, frozenset()).isdisjoint(above)
            if (speaks and step.status != "success") or (guards and step.status not in ("pass", "warn")):
                return f"{step.kind} {name}: {step.status}"
        return None


def graph_of(manifest: ManifestV12) -> Graph:
    relations: dict[str, str] = {}
    materialized: dict[str, str] = {}
    depends_on: dict[str, list[str]] = {}
    guards: dict[str, frozenset[str]] = {}
    for unique_id, node in manifest.nodes.items():
        config = getattr(node, "config", None)
        depends = getattr(getattr(node, "depends_on", None), "nodes", None)
        depends_on[unique_id] = list(depends or [])
        kind = str(getattr(node, "resource_type", ""))
        if kind in ("model", "seed", "snapshot"):
            relations[unique_id] = f"{node.schema_}.{node.alias}"
            materialized[unique_id] = str(getattr(config, "materialized", None) or "table")
        elif kind == "test" and str(getattr(config, "severity", None)).lower() != "warn":
            guards[unique_id] = frozenset(depends_on[unique_id])
    for unique_id, unit_test in (manifest.unit_tests or {}).items():
        # The model under test alone: what it reads is given by the test itself.
        guards[unique_id] = frozenset((unit_test.depends_on.nodes if unit_test.depends_on else None) or ())
    made = {name.lower(): unique_id for unique_id, name in relations.items()}
    sources: set[str] = set()
    for unique_id, source in manifest.sources.items():
        relations[unique_id] = f"{source.schema_}.{source.identifier}"
        maker = made.get(relations[unique_id].lower())
        # A source that the project's own seed makes is no input: what that seed is made of is.
        if maker is not None:
            depends_on[unique_id] = [maker]
        # One with a location of its own is a file of the commit: SQL can open no other.
        elif not any("external_location" in (each or {}) for each in (source.meta, source.source_meta)):
            sources.add(unique_id)
    return Graph(relations, materialized, depends_on, frozenset(sources), guards)
