"""What DuckDB gets in a job: memory, as a share of what the process leaves, and no extension but our own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from runner.engines import query, scratch
from runner.engines.dbt_reasons import FORBIDDEN
from runner.engines.lock import lock
from runner.model.messages import Job, JobOutput
from runner.model.spec import Output, QueryWork, Resources
from tests.support.engine_inputs import LocalInputs, job_of

MIB = 1024 * 1024


def job(folder: Path, memory_mib: int) -> Job:
    made = job_of(
        folder,
        work=QueryWork(kind="query", file="q.sql"),
        outputs=[JobOutput(output=Output(dataset="marts.sorted"))],
    )
    return made.model_copy(update={"resources": Resources(cpu=2048, memory_mib=memory_mib)})


@pytest.mark.parametrize(
    ("memory_mib", "resident_mib", "limit"),
    [
        (4096, 96, "2800MiB"),
        (4096, 596, "2450MiB"),
        (256, 56, "140MiB"),
        # As much as DuckDB needs to work at all, though it may be more than there is: the watch then tells.
        (256, 200, "96MiB"),
        (256, 300, "96MiB"),
    ],
)
def test_duckdb_gets_a_share_of_what_the_process_leaves(
    memory_mib: int, resident_mib: int, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "_resident_mib", lambda: resident_mib)
    assert scratch.settings(job(tmp_path, memory_mib))["memory_limit"] == limit


def test_what_a_process_has_is_measured_when_it_is_asked(tmp_path: Path) -> None:
    def limit_mib() -> int:
        return int(str(scratch.settings(job(tmp_path, 65536))["memory_limit"]).removesuffix("MiB"))

    before = limit_mib()
    held = hashlib.sha256().digest() * (512 * MIB // 32)
    assert len(held) == 512 * MIB
    # Between the two measurements others may let go of some.
    assert before - limit_mib() > 256 * 0.7


def test_the_least_memory_is_enough_to_sort_and_group_what_is_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It spills to the job's scratch."""
    monkeypatch.setattr(scratch, "_resident_mib", lambda: 256)
    small = job(tmp_path, 256)
    sql = (
        "SELECT hash(i) AS h, md5(i::VARCHAR) AS text, count(*) OVER (PARTITION BY i % 1000) AS alike "
        "FROM range(1_500_000) t(i) ORDER BY h"
    )
    Path(small.workspace, "q.sql").write_text(sql)
    (output,) = query.run(small, LocalInputs({})).outputs
    assert output.rows == 1_500_000
    made = pq.read_table(tmp_path / "scratch/out" / output.files[0].path, columns=["alike"])
    assert set(made["alike"].to_pylist()) == {1500}


def test_an_extension_without_a_signature_is_nothing_for_a_locked_connection(tmp_path: Path) -> None:
    """Ours are loaded without a look at their signatures, which `warm` has seen to; nobody else is to gain by it."""
    theirs = tmp_path / "logic" / "theirs.duckdb_extension"
    with scratch.connect(job(tmp_path, 1024), LocalInputs({})) as connection:
        content = scratch._extension("avro").read_bytes()
        # The last bytes are the signature's.
        theirs.write_bytes(content[:-256] + bytes(256))
        lock(connection, (tmp_path / "logic",))
        for statement in (f"LOAD '{theirs}'", f"INSTALL '{theirs}'", "SET allow_unsigned_extensions = true"):
            with pytest.raises(duckdb.Error, match=FORBIDDEN):
                connection.execute(statement)


def test_to_warm_is_to_check_the_signatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = scratch._extension("avro").read_bytes()
    broken = tmp_path / "avro.duckdb_extension"
    broken.write_bytes(content[:-256] + bytes(256))
    monkeypatch.setattr(scratch, "_extension", lambda _: broken)
    with pytest.raises(duckdb.IOException, match="signature"):
        scratch.warm()


def test_what_is_spilled_is_bounded_by_the_jobs_disk(tmp_path: Path) -> None:
    small = job(tmp_path, 256).model_copy(update={"resources": Resources(memory_mib=256, scratch_mib=64)})
    with scratch.connect(small, LocalInputs({})) as connection:
        connection.execute("SET memory_limit = '64MiB'")
        with pytest.raises(duckdb.OutOfMemoryException, match="max_temp_directory_size"):
            connection.execute("CREATE TABLE t AS SELECT hash(range) AS a, hash(range + 1) AS b FROM range(40_000_000)")
