"""What of a dbt project is read before dbt reads it: its YAML, and which packages it names and where they go."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.model.errors import LogicError

_MAX_YAML_BYTES = 1024 * 1024
_MAX_WRITTEN_BYTES = 4 * _MAX_YAML_BYTES
"""With its aliases written out, of which a few lines can stand for gigabytes."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that is a mapping, or empty. Raises `LogicError` for any other, and above 1 MiB.

    All text in it can be stored and sent: no NUL, no half of a surrogate pair.
    """
    import yaml

    if (size := path.stat().st_size) > _MAX_YAML_BYTES:
        raise LogicError(f"{path.name}: expected at most {_MAX_YAML_BYTES:,} bytes, got {size:,}", subject=path.name)
    try:
        document = yaml.safe_load(path.read_bytes())
        _require_writable(document)
    # PyYAML lets the constructors of its tags speak for themselves, each in its own way.
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as exc:
        raise LogicError(f"{path.name}: expected YAML, got {' '.join(str(exc).split())}", subject=path.name) from exc
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise LogicError(f"{path.name}: expected a mapping, got {type(document).__name__}", subject=path.name)
    return document


def _require_writable(document: object) -> None:
    """Raises `ValueError` for what cannot be written out in full: it is compared, shown and hashed as text."""
    if _written_bytes(document, {}) > _MAX_WRITTEN_BYTES:
        raise ValueError(f"more than {_MAX_WRITTEN_BYTES:,} bytes with its aliases written out")


def _written_bytes(node: object, known: dict[int, int]) -> int:
    """About; `known` are the sizes of what was gone through, by identity, as aliases are the same objects again."""
    if not isinstance(node, dict | list | set | tuple):
        text = str(node)
        if "\0" in text:
            raise ValueError("a NUL in a text")
        return 1 + len(text.encode())
    if id(node) not in known:
        known[id(node)] = _MAX_WRITTEN_BYTES  # for what is in itself
        parts = (*node, *node.values()) if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_written_bytes(each, known) for each in parts)
    return known[id(node)]


def install_path(root: Path) -> Path:
    """Where dbt looks for packages. Raises `LogicError` where only Jinja could tell."""
    path = root / "dbt_project.yml"
    named = str((read_yaml(path) if path.is_file() else {}).get("packages-install-path", "dbt_packages"))
    if "{{" in named:
        raise LogicError(
            f"dbt_project.yml: packages-install-path: expected a path without Jinja, got {named!r}",
            subject="dbt_project.yml",
        )
    return root / named


def listed_packages(root: Path, *, clone: Path | None = None) -> list[Mapping[str, Any]]:
    """The entries of packages.yml or dependencies.yml; with a `clone`, those of `local:` packages in it too."""
    found: dict[Path, list[Mapping[str, Any]]] = {}
    waiting = [root]
    while waiting:
        of = waiting.pop()
        if of in found:
            continue
        found[of] = [entry for _, entry in _listed(of)]
        if clone is not None:
            waiting += [_local(root, str(entry["local"]), of, clone) for entry in found[of] if "local" in entry]
    return [entry for entries in found.values() for entry in entries]


def link_packages(root: Path, installed: Path, *, clone: Path, of: Path | None = None) -> None:
    """What `dbt deps` does for `local:` packages and theirs, without fetching any; one that is there already stays.

    Raises `LogicError` where a package is not there.
    """
    for _, package in _listed(of or root):
        if "local" not in package:
            continue
        source = _local(root, str(package["local"]), of or root, clone)
        name = str(read_yaml(source / "dbt_project.yml").get("name"))
        if not _NAME.fullmatch(name):
            raise LogicError(
                f"{source.name}/dbt_project.yml: name: expected letters, digits and underscores, got {name!r}",
                subject="dbt_project.yml",
            )
        link = installed / name
        if not link.exists():
            installed.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source, target_is_directory=True)
            link_packages(root, installed, clone=clone, of=source)


def _local(root: Path, named: str, of: Path, clone: Path) -> Path:
    """The folder of a `local:` package. Paths are the root project's, in a package's own list too, as in dbt."""
    # Not `Path.resolve`, which raises RuntimeError where links go round in a circle.
    folder = Path(os.path.realpath(root / named))
    if not folder.is_relative_to(os.path.realpath(clone)) or not _is_file(folder / "dbt_project.yml"):
        file = next(file for file, entry in _listed(of) if str(entry.get("local")) == named)
        raise LogicError(
            f"{file}: local: expected a folder of the repository with a dbt_project.yml, got {named!r}",
            subject=file,
        )
    return folder


def _is_file(path: Path) -> bool:
    """False for a name that no file system takes, where `Path.is_file` raises."""
    try:
        return path.is_file()
    except OSError:
        return False


def _listed(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in ("packages.yml", "dependencies.yml"):
        path = folder / name
        entries = read_yaml(path).get("packages") if path.is_file() else None
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                yield name, entry
