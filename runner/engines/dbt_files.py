"""What of a dbt project is read before dbt reads it: its YAML, and which packages it names and where they go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.model.errors import LogicError

_MAX_YAML_BYTES = 1024 * 1024


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that is a mapping, or empty. Raises `LogicError` for any other, and above 1 MiB."""
    import yaml

    if (size := path.stat().st_size) > _MAX_YAML_BYTES:
        raise LogicError(f"{path.name}: expected at most {_MAX_YAML_BYTES:,} bytes, got {size:,}", subject=path.name)
    try:
        document = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        raise LogicError(f"{path.name}: expected YAML, got {' '.join(str(exc).split())}", subject=path.name) from exc
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise LogicError(f"{path.name}: expected a mapping, got {type(document).__name__}", subject=path.name)
    return document


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
        link = installed / str(read_yaml(source / "dbt_project.yml").get("name"))
        if not link.exists():
            installed.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source, target_is_directory=True)
            link_packages(root, installed, clone=clone, of=source)


def _local(root: Path, named: str, of: Path, clone: Path) -> Path:
    """The folder of a `local:` package. Paths are the root project's, in a package's own list too, as in dbt."""
    folder = (root / named).resolve()
    if not folder.is_relative_to(clone.resolve()) or not (folder / "dbt_project.yml").is_file():
        file = next(file for file, entry in _listed(of) if str(entry.get("local")) == named)
        raise LogicError(
            f"{file}: local: expected a folder of the repository with a dbt_project.yml, got {named!r}",
            subject=file,
        )
    return folder


def _listed(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in ("packages.yml", "dependencies.yml"):
        path = folder / name
        entries = read_yaml(path).get("packages") if path.is_file() else None
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                yield name, entry
