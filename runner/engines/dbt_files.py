"""What of a dbt project is read before dbt reads it: its YAML, and the packages that are folders of the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.model.errors import LogicError


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that is a mapping, or empty. Raises `LogicError` for any other."""
    import yaml

    try:
        document = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as exc:
        raise LogicError(f"{path.name}: expected YAML, got {' '.join(str(exc).split())}", subject=path.name) from exc
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise LogicError(f"{path.name}: expected a mapping, got {type(document).__name__}", subject=path.name)
    return document


def link_packages(root: Path, installed: Path, *, of: Path | None = None) -> None:
    """What `dbt deps` does for `local:` packages and theirs, without fetching any; one that is there already stays.

    Paths are the root project's, in a package's own list too: so dbt reads them. Raises `LogicError` where a package
    is not there.
    """
    for listing in ((of or root) / "packages.yml", (of or root) / "dependencies.yml"):
        for package in (read_yaml(listing).get("packages") if listing.is_file() else None) or ():
            if not isinstance(package, dict) or "local" not in package:
                continue
            source = (root / str(package["local"])).resolve()
            if not (source / "dbt_project.yml").is_file():
                came = package["local"]
                raise LogicError(
                    f"{listing.name}: local: expected a folder with a dbt_project.yml, got {came!r}",
                    subject=listing.name,
                )
            link = installed / str(read_yaml(source / "dbt_project.yml").get("name"))
            if not link.exists():
                installed.mkdir(parents=True, exist_ok=True)
                link.symlink_to(source, target_is_directory=True)
                link_packages(root, installed, of=source)
