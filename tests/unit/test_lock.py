"""The lock on analysts' SQL, tried on DuckDB: what it lets through and what it does not, whoever made a view."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from runner.engines.lock import FREE_OPTIONS, free_options, lock, set_free_options


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Locked on `allowed`, over a database in which somebody had left views that read files."""
    for name in ("allowed", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.csv").write_text("a\n1\n")
    path = str(tmp_path / "scratch.duckdb")
    with duckdb.connect(path) as unlocked:
        for name in ("allowed", "other"):
            unlocked.execute(f"CREATE VIEW of_{name} AS SELECT * FROM read_csv('{tmp_path / name / 'x.csv'}')")
    locked = duckdb.connect(path)
    lock(locked, [tmp_path / "allowed"])
    yield locked
    locked.close()


def test_a_view_over_a_file_of_an_allowed_folder_is_read(connection: duckdb.DuckDBPyConnection) -> None:
    assert connection.execute("FROM of_allowed").fetchall() == [(1,)]


def test_a_view_that_was_made_without_the_lock_reads_no_other_file(connection: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.PermissionException, match="disabled by configuration"):
        connection.execute("FROM of_other")


@pytest.mark.parametrize(
    "statement",
    [
        "FROM read_text('{other}/x.csv')",
        "FROM read_csv('{allowed}/../other/x.csv')",
        "FROM '{other}/x.csv'",
        "FROM glob('{other}/*')",
        "COPY (SELECT 1) TO '{other}/out.csv'",
        "ATTACH '{other}/another.duckdb'",
        "EXPORT DATABASE '{other}/all'",
        "INSTALL httpfs",
        "CREATE PERSISTENT SECRET s (TYPE s3, KEY_ID 'x', SECRET 'y')",
        "SET threads = 64",
        "SET memory_limit = '1TB'",
        "SET TimeZone = 'Europe/Paris'",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "SET allowed_configs = ['threads']",
        "SET lock_configuration = false",
        "RESET lock_configuration",
        "SET temp_directory = '{other}'",
        "SET log_query_path = '{other}/log'",
        "PRAGMA profiling_output = '{other}/profile'",
    ],
)
def test_what_it_does_not_let_through(connection: duckdb.DuckDBPyConnection, tmp_path: Path, statement: str) -> None:
    with pytest.raises(duckdb.Error, match=r"disabled by configuration|configuration has been locked"):
        connection.execute(statement.format(allowed=tmp_path / "allowed", other=tmp_path / "other"))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["x.csv"]


@pytest.mark.parametrize("option", FREE_OPTIONS)
def test_a_free_option_is_one_that_duckdb_has_and_can_be_set(
    connection: duckdb.DuckDBPyConnection, option: str
) -> None:
    connection.execute(f"SET {option} = '{free_options(connection)[option]}'")


def test_what_was_set_on_one_connection_is_set_on_another() -> None:
    with duckdb.connect() as one, duckdb.connect() as other:
        one.execute("SET default_null_order = 'nulls_first'")
        one.execute("SET preserve_insertion_order = false")
        set_free_options(other, free_options(one))
        lock(other, [])
        assert free_options(other) == free_options(one)
        assert other.execute("SELECT x FROM (VALUES (1), (NULL)) t(x) ORDER BY x LIMIT 1").fetchall() == [(None,)]
