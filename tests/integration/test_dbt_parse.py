"""dbt in children of a warm process: they work as fresh processes do, with and without an earlier parse."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runner.engines import dbt_parse, query
from runner.engines.dbt_parse import parse_key
from runner.engines.dbt_project import PARSED
from runner.model.errors import LogicError
from runner.model.manifest import PackageRecord
from runner.model.messages import EngineOutput, EngineResult, JobInput
from runner.model.spec import DbtStep, DbtWork, QueryWork, Resources, SecretRef
from tests.support import dbt_projects
from tests.support.dbt_projects import EVERYTHING, WORK, everything, hand_on, manifest_of, write
from tests.support.engine_inputs import LocalInputs, job_of
from tests.support.folder_lake import folder_lake, path_in
from tests.support.warm_dbt import Answer, Children

SAMPLE = Path(__file__).parents[2] / "dbt"
SKIPPED = "Partial parsing enabled, no changes found, skipping parsing"


@dataclass(frozen=True)
class People:
    """`staging.people`, an Iceberg table with Ada and Grace."""

    input: JobInput
    files: Mapping[str, Path]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    with folder_lake(tmp_path_factory.mktemp("lake")) as lake:
        made = job_of(lake.folder / "made", outputs=[lake.wanted()], work=QueryWork(kind="query", file="q.sql"))
        Path(made.workspace, "q.sql").write_text("SELECT * FROM (VALUES (1, 'Ada'), (2, 'Grace')) t(id, name)")
        lake.commit(query.run(made, LocalInputs({})).outputs[0], made)
        pin = lake.tables.pin(lake.table, "staging.people", None)
        yield People(JobInput(pin=pin), {each.uri: path_in(lake.folder, each.uri) for each in lake.tables.files(pin)})


@pytest.fixture(scope="module")
def warm() -> Iterator[Children]:
    children = Children(warm=True)
    yield children
    children.close()


@pytest.fixture(scope="module")
def cold() -> Iterator[Children]:
    children = Children(warm=False)
    yield children
    children.close()


@dataclass(frozen=True)
class Ran:
    """A run of the project of everything."""

    room: Path
    answer: Answer

    @property
    def result(self) -> EngineResult:
        assert self.answer.result is not None, self.answer
        return self.answer.result

    @property
    def account(self) -> Any:
        """All that a run leaves, but for times and ids."""
        steps = [step.model_copy(update={"seconds": None}) for step in self.result.steps]
        return {
            # Of nodes that wait for none of each other, now the one is first, now the other.
            "steps": sorted(_plain(step.to_json()) for step in steps),
            "outputs": [(each.dataset, each.rows, _columns(each), each.claimed_inputs) for each in self.result.outputs],
            "artifacts": self.result.artifacts,
            "failure": self.result.failure,
            "manifest": manifest_of(self.room),
        }


def _columns(output: EngineOutput) -> dict[str, str]:
    """What is in each, but for a snapshot's own, which are times."""
    return {name: each for name, each in output.fingerprint.columns.items() if not name.startswith("dbt_")}


def _plain(text: str) -> str:
    """Without what dbt counts and measures, and the name that Python gave a file."""
    return re.sub(r"\d+ of (?=\d+)|tmp\w{8}|in \d+\.\d\ds|took \d+\.\d+ s", "", text)


@pytest.fixture(scope="module")
def fresh(cold: Children, people: People, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """What a process comes to that has just started."""
    room = write(tmp_path_factory.mktemp("fresh"), EVERYTHING)
    return Ran(room, cold.run(everything(room, people.input), people.files))


ONLY_COMPILED = WORK.model_copy(update={"steps": (DbtStep(command="compile"),)})


@pytest.fixture(scope="module")
def compiled(cold: Children, people: People, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The same, where nothing is to be built."""
    room = write(tmp_path_factory.mktemp("compiled"), EVERYTHING)
    return Ran(room, cold.run(everything(room, people.input, work=ONLY_COMPILED), people.files))


@pytest.fixture(scope="module")
def parsed(warm: Children, people: People, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the parse of the project of everything leaves."""
    room = write(tmp_path_factory.mktemp("parsed"), EVERYTHING)
    answer = warm.parse(everything(room, people.input))
    assert answer.kept, answer
    return Path(answer.kept)


# ---------------------------------------------------------------- warm


def test_a_warm_process_has_one_thread_and_nothing_open_and_stands_where_it_stood(warm: Children) -> None:
    assert warm.after == warm.before


def test_a_child_runs_a_project_as_a_fresh_process_does(
    warm: Children, people: People, fresh: Ran, tmp_path: Path
) -> None:
    """And without a lock that would want shared memory, or a process beside it: there are none in here."""
    room = write(tmp_path, EVERYTHING)
    ran = Ran(room, warm.run(everything(room, people.input), people.files))
    assert ran.account == fresh.account
    assert sorted(map(_plain, ran.answer.said)) == sorted(map(_plain, fresh.answer.said))
    assert ran.answer.printed == fresh.answer.printed == ""
    assert len(ran.result.outputs) == len(dbt_projects.OUTPUTS)
    assert {step.status for step in ran.result.steps} == {"success", "pass", "warn", "skipped"}


def test_a_project_that_fails_leaves_nothing_for_the_next_child(
    warm: Children, people: People, fresh: Ran, tmp_path: Path
) -> None:
    """The same macros' names with other texts, deprecated words, a model that does not run."""
    broken = write(
        tmp_path / "broken",
        {
            "dbt_project.yml": "name: small\nprofile: small\nversion: 1.0.0\nflags: {warn_error: true}\n",
            "macros/names.sql": "{% macro shout(column) %}nonsense({{ column }}){% endmacro %}"
            "{% macro table_options() %}{{ exceptions.raise_compiler_error('theirs') }}{% endmacro %}",
            "models/adults.sql": "SELECT {{ shout('1') }}",
            "models/models.yml": "models: [{name: adults, tests: [unknown]}]",
        },
    )
    failed = warm.run(dbt_projects.job(broken)).result
    assert failed is not None
    assert [step.status for step in failed.steps] == ["error", "skipped"]
    room = write(tmp_path / "next", EVERYTHING)
    assert Ran(room, warm.run(everything(room, people.input), people.files)).account == fresh.account


# ---------------------------------------------------------------- what parsing came to


def test_parsing_leaves_one_file_which_names_no_folder_of_the_run(parsed: Path) -> None:
    scratch = parsed.parent
    assert sorted(each.name for each in scratch.iterdir()) == ["out", PARSED, "tmp"]
    assert not [*(scratch / "out").iterdir(), *(scratch / "tmp").iterdir()]
    assert str(scratch.parent).encode() not in parsed.read_bytes()


def test_a_run_that_finds_what_parsing_came_to_comes_to_the_same(
    warm: Children, people: People, fresh: Ran, parsed: Path, tmp_path: Path
) -> None:
    room = write(tmp_path, EVERYTHING)
    hand_on(parsed, room)
    ran = Ran(room, warm.run(everything(room, people.input), people.files))
    # Each of the three steps begins with it.
    assert ran.answer.said.count(SKIPPED) == len(WORK.steps)
    assert ran.account == fresh.account


def test_a_run_and_its_rerun_compile_the_same_and_their_records_name_no_folder(
    warm: Children, people: People, parsed: Path, tmp_path: Path
) -> None:
    accounts = []
    for name in ("one", "two"):
        room = write(tmp_path / name, EVERYTHING)
        hand_on(parsed, room)
        ran = Ran(room, warm.run(everything(room, people.input), people.files))
        hashes = {step.name: step.compiled_sha256 for step in ran.result.steps if step.compiled_sha256}
        manifest = (room / "scratch/artifacts/manifest.json").read_text()
        assert str(room) not in manifest
        accounts.append(hashes)
    assert accounts[0] == accounts[1]
    # One of them says where its database is.
    assert "model.small.painted" in accounts[0]


def test_the_sample_project_is_the_same_with_and_without(warm: Children, tmp_path: Path) -> None:
    files = {str(path.relative_to(SAMPLE)): path.read_text("utf-8") for path in SAMPLE.rglob("*") if path.is_file()}
    work = DbtWork(kind="dbt", steps=(DbtStep(command="compile"),))
    without, first, second = (write(tmp_path / name, files) for name in ("without", "first", "second"))
    kept = warm.parse(dbt_projects.job(first, work=work)).kept
    assert kept
    hand_on(Path(kept), second)
    one, two = (Ran(room, warm.run(dbt_projects.job(room, work=work))) for room in (without, second))
    assert one.account == two.account
    assert (one.answer.said.count(SKIPPED), two.answer.said.count(SKIPPED)) == (0, 1)
    assert len(two.result.steps) >= 20


def test_from_the_repositorys_root_too(warm: Children, people: People, tmp_path: Path) -> None:
    work = DbtWork(kind="dbt", steps=(DbtStep(command="build"),), working_directory="repository")
    files = {
        "deep/er/dbt_project.yml": "name: small\nprofile: small\nversion: 1.0.0\n",
        "deep/er/seeds/pets.csv": "id\n7\n",
        "deep/er/models/a.sql": "{{ config(materialized='table') }} "
        "SELECT id, (SELECT colour FROM read_csv('data/colours.csv')) AS colour FROM {{ ref('pets') }}",
        "data/colours.csv": "colour\nred\n",
    }
    first, second = write(tmp_path / "first", files), write(tmp_path / "second", files)
    (second / "logic/at").symlink_to("deep/er")
    kept = warm.parse(dbt_projects.job(first, path="deep/er", work=work)).kept
    assert kept
    hand_on(Path(kept), second)
    ran = Ran(second, warm.run(dbt_projects.job(second, path="at", work=work, outputs={"all.a": "main.a"})))
    assert ran.result.failure is None
    assert [(each.dataset, each.rows) for each in ran.result.outputs] == [("all.a", 1)]
    assert SKIPPED in ran.answer.said


def test_a_project_that_is_a_link_out_of_the_repository_is_refused(warm: Children, tmp_path: Path) -> None:
    room = write(tmp_path / "room", {})
    elsewhere = write(tmp_path / "elsewhere", {"dbt_project.yml": "name: small\nversion: 1.0.0\n"})
    (room / "logic/out").symlink_to(elsewhere / "logic")
    linked = dbt_projects.job(room, path="out")
    assert "expected a folder of the repository" in str(warm.run(linked).failure)
    with pytest.raises(LogicError, match="expected a folder of the repository"):
        parse_key(linked, repo="https://git/logic.git", packages=())


# ---------------------------------------------------------------- the key


PACKAGE = PackageRecord(name="theirs", version="1.0.0", source="https://hub/theirs", sha256="0" * 64)


def _key(
    room: Path,
    *,
    repo: str = "https://git/logic.git",
    packages: tuple[PackageRecord, ...] = (PACKAGE,),
    path: str = "teams/people",
    commit: str = "a" * 40,
    resources: Resources | None = None,
    **work: Any,
) -> str | None:
    keyed = dbt_projects.job(room, path=path, work=WORK.model_copy(update=work))
    stamp = keyed.stamp.model_copy(update={"logic_commit": commit})
    keyed = keyed.model_copy(update={"stamp": stamp, "resources": resources or keyed.resources})
    return parse_key(keyed, repo=repo, packages=packages)


OTHERS: dict[str, dict[str, Any]] = {
    "commit": {"commit": "b" * 40},
    "repository": {"repo": "https://git/other.git"},
    "path": {"path": "teams"},
    "vars": {"vars": {"mark": "!"}},
    "a var more": {"vars": {"mark": "?", "suffix": "x"}},
    "a var's type": {"vars": {"mark": 1}},
    "another var's type": {"vars": {"mark": "1"}},
    "a third var's type": {"vars": {"mark": True}},
    "env": {"env": {"PROFILE": "small", "OWNER": "us"}},
    "target": {"target": "day"},
    "schema": {"schema_": "main"},
    "database": {"database": "warehouse"},
    "working directory": {"working_directory": "repository"},
    "threads": {"resources": Resources(cpu=2048, memory_mib=1024)},
    "no packages": {"packages": ()},
    "a package's bytes": {"packages": (PACKAGE.model_copy(update={"sha256": "1" * 64}),)},
    "a package's version": {"packages": (PACKAGE.model_copy(update={"version": "1.0.1"}),)},
}


def test_a_key_is_of_all_that_parsing_depends_on(tmp_path: Path) -> None:
    for room in ("one", "two"):
        write(tmp_path / room, EVERYTHING)
    keys = {name: _key(tmp_path / "one", **other) for name, other in OTHERS.items()}
    same = _key(tmp_path / "one")
    assert same is not None
    assert len({same, *keys.values()}) == 1 + len(OTHERS)
    # Not where the room is, how much memory there is, what the steps are, or in which order things were named.
    alike: tuple[dict[str, Any], ...] = (
        {"resources": Resources(cpu=1024, memory_mib=4096, timeout_s=7)},
        {"steps": (DbtStep(command="run", full_refresh=True),)},
        {"env": dict(reversed(WORK.env.items()))},
    )
    assert {_key(tmp_path / "two", **each) for each in alike} == {same}


@pytest.mark.parametrize("distribution", ["dbt-core", "dbt-duckdb", "duckdb"])
def test_a_key_is_of_the_versions_that_parse(
    distribution: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = write(tmp_path, EVERYTHING)
    before = _key(room)
    versions = {**dbt_parse._versions(), distribution: "99"}
    monkeypatch.setattr(dbt_parse, "_versions", lambda: versions)
    assert _key(room) != before


def test_a_key_is_of_this_release_and_this_python(tmp_path: Path) -> None:
    assert dbt_parse._versions().keys() >= {"runner", "python", "machine"}


def test_a_query_has_no_key(tmp_path: Path) -> None:
    assert parse_key(job_of(tmp_path), repo="https://git/logic.git", packages=()) is None


def test_a_job_that_is_given_a_secret_has_no_key(tmp_path: Path) -> None:
    room, secret = write(tmp_path, EVERYTHING), SecretRef(secret="token")
    assert _key(room, vars={"mark": secret}) is None
    assert _key(room, env={**WORK.env, "TOKEN": secret}) is None


def test_the_key_is_made_without_dbt_and_without_duckdb() -> None:
    loaded = "import sys; import runner.engines.dbt_parse; print([n for n in ('dbt', 'duckdb') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-I", "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---------------------------------------------------------------- what holds for one run alone

OF_THE_MOMENT: dict[str, tuple[str, str]] = {
    "the time, in a model's config": (
        "models/a.sql",
        "{{ config(alias='a_' ~ run_started_at.strftime('%H%M%S')) }} SELECT 1 AS id",
    ),
    "the time, in its text": ("models/a.sql", "SELECT '{{ run_started_at }}' AS loaded_at"),
    "the time by Python": (
        "models/a.sql",
        "{{ config(enabled=modules.datetime.datetime.now().weekday() >= 0) }} SELECT 1 AS id",
    ),
    "the day": ("models/a.sql", "{{ config(tags=[modules.datetime.date.today() | string]) }} SELECT 1 AS id"),
    "the invocation, in a macro": (
        "macros/generate_alias_name.sql",
        "{% macro generate_alias_name(custom, node) %}{{ node.name }}_{{ invocation_id }}{% endmacro %}",
    ),
    "the invocation, by another way": ("models/a.sql", "{{ config(alias=context['invocation_id']) }} SELECT 1 AS id"),
    "a flag of the step": (
        "models/a.sql",
        "{{ config(materialized='table' if flags.FULL_REFRESH else 'view') }} SELECT 1 AS id",
    ),
    "the invocation, as YAML": (
        "models/a.sql",
        "{{ config(meta={'y': toyaml({'i': invocation_id})}) }} SELECT 1 AS id",
    ),
    "its arguments": ("models/a.sql", "{{ config(meta={'which': invocation_args_dict.which}) }} SELECT 1 AS id"),
    "chance": ("models/a.sql", "{{ config(alias=['x', 'y'] | random) }} SELECT 1 AS id"),
    "words by chance": ("models/a.sql", "{{ config(meta={'words': lipsum(1)}) }} SELECT 1 AS id"),
    "the time, in YAML": ("models/m.yml", 'models: [{name: a, config: {alias: "x{{ run_started_at.year }}"}}]'),
    "the time, in a description": ("models/m.yml", 'models: [{name: a, description: "{{ run_started_at }}"}]'),
    "the time, in a hook": (
        "models/a.sql",
        "{{ config(post_hook='SELECT {{ run_started_at.year }}') }} SELECT 1 AS id",
    ),
    "a folder of the run": ("models/a.sql", "{{ config(meta={'home': env_var('HOME')}) }} SELECT 1 AS id"),
}


@pytest.mark.parametrize("case", OF_THE_MOMENT)
def test_what_a_project_made_of_the_moment_is_not_kept(case: str, warm: Children, tmp_path: Path) -> None:
    name, text = OF_THE_MOMENT[case]
    files = {
        "dbt_project.yml": "name: small\nprofile: small\nversion: 1.0.0\n",
        "models/a.sql": "SELECT 1 AS id",
        name: text,
    }
    room = write(tmp_path, files)
    answer = warm.parse(dbt_projects.job(room))
    assert (answer.kept, answer.failure) == (None, None)
    (said,) = answer.said
    assert "is not kept: the project asked for" in said
    assert answer.printed == ""
    assert not (room / "scratch" / PARSED).exists()
    # The run itself gets its answer.
    assert warm.run(dbt_projects.job(room)).failure is None


@pytest.mark.parametrize(
    "text",
    [
        "SELECT '{{ modules.datetime.date(2026, 1, 2) }}' AS d, '{{ modules.datetime.timedelta(1).days }}' AS n",
        "{% if execute %}{% set t = run_started_at %}{% endif %} SELECT '{{ t }}' AS t",
        "{% if false %}{{ invocation_id }}{{ flags.FULL_REFRESH }}{% endif %} SELECT 1 AS id",
        "SELECT '{{ env_var('NOT_THERE', 'none') }}' AS e",
    ],
)
def test_what_does_not_ask_while_it_is_parsed_is_kept(text: str, warm: Children, tmp_path: Path) -> None:
    files = {"dbt_project.yml": "name: small\nprofile: small\nversion: 1.0.0\n", "models/a.sql": text}
    first, second = write(tmp_path / "first", files), write(tmp_path / "second", files)
    answer = warm.parse(dbt_projects.job(first))
    assert answer.kept, answer.said
    hand_on(Path(answer.kept), second)
    ran = warm.run(dbt_projects.job(second, outputs={"all.a": "main.a"}))
    assert ran.result is not None
    assert (ran.failure, ran.result.failure) == (None, None)
    assert SKIPPED in ran.said


def test_what_asks_when_it_runs_gets_that_runs_answer(warm: Children, tmp_path: Path) -> None:
    """A kept parse holds no text of a model: that is made anew in each run."""
    files = {
        "dbt_project.yml": "name: small\nprofile: small\nversion: 1.0.0\n",
        "models/a.sql": "SELECT '{{ invocation_id if execute else 0 }}' AS id",
    }
    first, *rooms = (write(tmp_path / name, files) for name in ("first", "second", "third"))
    kept = warm.parse(dbt_projects.job(first)).kept
    assert kept
    hashes = set()
    for room in rooms:
        hand_on(Path(kept), room)
        result = warm.run(dbt_projects.job(room)).result
        assert result is not None
        hashes |= {step.compiled_sha256 for step in result.steps}
    assert len(hashes) == len(rooms)


def test_what_dbt_warns_of_while_it_parses_is_told_by_the_parse(warm: Children, tmp_path: Path) -> None:
    files = {
        "dbt_project.yml": "name: small\nprofile: small\nversion: 1.0.0\nmodels: {small: {nowhere: {+tags: [a]}}}\n",
        "models/a.sql": "SELECT 1 AS id",
    }
    first, second = write(tmp_path / "first", files), write(tmp_path / "second", files)
    answer = warm.parse(dbt_projects.job(first))
    assert answer.kept
    assert any("models.small.nowhere" in line for line in answer.said)
    hand_on(Path(answer.kept), second)
    assert warm.run(dbt_projects.job(second)).failure is None


def test_a_project_that_does_not_parse_leaves_no_file_and_the_run_says_why(warm: Children, tmp_path: Path) -> None:
    files = {"dbt_project.yml": "name: small\nprofile: small\nversion: 1.0.0\n", "models/a.sql": "{{ ref('b') }}"}
    room = write(tmp_path, files)
    answer = warm.parse(dbt_projects.job(room))
    assert (answer.kept, answer.failure) == (None, None)
    assert "depends on a node named 'b' which was not found" in answer.said[0]
    assert answer.printed == ""
    assert "depends on a node named 'b' which was not found" in str(warm.run(dbt_projects.job(room)).failure)


def test_a_parse_that_was_killed_is_in_nobodys_way(warm: Children, tmp_path: Path) -> None:
    room = write(
        tmp_path, {"dbt_project.yml": "name: small\nprofile: small\nversion: 1.0.0\n", "models/a.sql": "SELECT 1 AS id"}
    )
    for name in (
        "profiles/profiles.yml",
        "target/partial_parse.msgpack",
        "target/manifest.json",
        "external/x",
        "logs/x",
    ):
        left = room / "scratch" / name
        left.parent.mkdir(exist_ok=True)
        left.write_text("half of it")
    ran = warm.run(dbt_projects.job(room, outputs={"all.a": "main.a"}))
    assert ran.result is not None
    assert [(each.dataset, each.rows) for each in ran.result.outputs] == [("all.a", 1)]


# ---------------------------------------------------------------- a file that cannot be there


def _flipped(kept: bytes, place: float) -> bytes:
    at = int(len(kept) * place)
    return kept[:at] + bytes(each ^ 0xFF for each in kept[at : at + 64]) + kept[at + 64 :]


NOT_OURS = {
    "nothing": b"",
    "half of it": None,
    "no msgpack": b"not msgpack at all" * 100,
    "another kind of thing": b"\xc3",
    "a list that says it is endless": b"\xdd\xff\xff\xff\xff",
    "text that says it is endless": b"\xdb\xff\xff\xff\xff",
    "lists in lists": b"\x91" * 1_000_000,
    "an empty map": b"\x80",
    "its beginning flipped": 0.0,
    "its first third flipped": 0.33,
    "its second third flipped": 0.66,
    "its end flipped": 0.999,
}


@pytest.mark.parametrize("case", NOT_OURS)
def test_a_file_that_is_not_what_parsing_came_to_makes_no_other_result(
    case: str, warm: Children, people: People, compiled: Ran, parsed: Path, tmp_path: Path
) -> None:
    """It never comes to a child; if it did, the child parses anew, or fails by saying so."""
    found, kept = NOT_OURS[case], parsed.read_bytes()
    if isinstance(found, float):
        found = _flipped(kept, found)
    room = write(tmp_path, EVERYTHING)
    (room / "scratch" / PARSED).write_bytes(kept[: len(kept) // 2] if found is None else found)
    ran = Ran(room, warm.run(everything(room, people.input, work=ONLY_COMPILED), people.files))
    assert ran.answer.code == 0
    assert SKIPPED not in ran.answer.said
    if ran.answer.failure is None:
        assert ran.account == compiled.account


def test_what_another_project_came_to_is_not_taken_for_this_ones(
    warm: Children, people: People, compiled: Ran, tmp_path: Path
) -> None:
    other = write(tmp_path / "other", {**EVERYTHING, "teams/people/models/adults.sql": "SELECT 1 AS id, 'x' AS name"})
    kept = warm.parse(everything(other, people.input)).kept
    assert kept
    room = write(tmp_path / "room", EVERYTHING)
    hand_on(Path(kept), room)
    ran = Ran(room, warm.run(everything(room, people.input, work=ONLY_COMPILED), people.files))
    assert SKIPPED not in ran.answer.said
    assert ran.account == compiled.account


def test_what_was_parsed_under_other_vars_is_not_taken(
    warm: Children, people: People, parsed: Path, tmp_path: Path
) -> None:
    room = write(tmp_path, EVERYTHING)
    hand_on(parsed, room)
    work = ONLY_COMPILED.model_copy(update={"vars": {"mark": "!"}})
    ran = warm.run(everything(room, people.input, work=work), people.files)
    assert ran.result is not None
    assert SKIPPED not in ran.said
    assert any("vars" in line and "have changed" in line for line in ran.said)
