"""The engine's child process: no credentials, no sockets of its own, its inputs by the broker and in no other way."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from runner.adapters import sandbox_engine
from runner.model.errors import Category
from runner.model.manifest import State
from runner.model.spec import Resources
from tests.e2e.test_bad_input import ADULTS, PROJECT, SOURCES, dbt, extract, failed, load, query
from tests.support.documents import PEOPLE_CONTRACT
from tests.support.site import Site

_BLOCKED = """
import ctypes, os, struct, sys
# seccomp: socket(AF_INET or AF_INET6, ...) answers EPERM, in this process and all that it starts.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[os.uname().machine]
SOCKET = {"x86_64": 41, "aarch64": 198}[os.uname().machine]
def stmt(code, k, jt=0, jf=0): return struct.pack("HBBI", code, jt, jf, k)
LOAD, JEQ, RET = 0x20, 0x15, 0x06
program = b"".join([
    stmt(LOAD, 4), stmt(JEQ, AUDIT_ARCH, 0, 5),
    stmt(LOAD, 0), stmt(JEQ, SOCKET, 0, 3),
    stmt(LOAD, 16), stmt(JEQ, 2, 2, 0), stmt(JEQ, 10, 1, 0),
    stmt(RET, 0x7FFF0000), stmt(RET, 0x00050000 | 1),
])
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Filter(len(program) // 8, program)), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="seccomp is Linux's")


@pytest.fixture
def sockets_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine child starts under a filter that refuses internet sockets."""
    real = subprocess.Popen

    def start(command: list[str], **given: object) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", _BLOCKED, *command], **given)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(sandbox_engine, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start}))


@linux_only
def test_the_filter_itself_blocks() -> None:
    """A control: without it, the next test would prove nothing."""
    attempt = "import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM)"
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKED, sys.executable, "-c", attempt], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "PermissionError" in done.stderr


@linux_only
@pytest.mark.usefixtures("sockets_blocked")
def test_every_engine_works_with_sockets_blocked_and_no_aws_variable(site: Site) -> None:
    commit = site.commit(
        {
            "contracts/people.odcs.yaml": PEOPLE_CONTRACT,
            "queries/count.sql": "SELECT count(*)::BIGINT AS people FROM staging.people",
            "dbt_project.yml": PROJECT,
            "models/sources.yml": SOURCES,
            "models/adults.sql": ADULTS,
        }
    )
    for spec in (
        extract(site, commit, site.serve("people.csv", "id,name\n1,Ada\n2,Grace\n")),
        load(site, commit),
        dbt(site, commit),
        query(site, commit),
    ):
        assert site.end(spec).state is State.SUCCEEDED
    assert site.rows("marts.adults") == [(1, "Ada"), (2, "Grace")]
    assert site.rows("marts.people_count") == [(2,)]


def test_the_child_has_no_credential_in_its_environment(site: Site) -> None:
    """SQL can read the environment: DuckDB's getenv works in the CLI only, so a dbt macro looks instead."""
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "test"
    model = "{{ config(materialized='table') }} SELECT '{{ env_var('AWS_SECRET_ACCESS_KEY', 'none') }}' AS secret"
    commit = site.commit({"dbt_project.yml": PROJECT, "models/adults.sql": model})
    spec = dbt(site, commit).model_copy(update={"inputs": ()})
    manifest = site.end(spec)
    assert manifest.state is State.SUCCEEDED, manifest.failure
    assert site.rows("marts.adults") == [("none",)]


def test_a_file_of_no_declared_input_is_refused_though_it_is_in_the_lake(site: Site) -> None:
    commit = site.commit({"contracts/people.odcs.yaml": PEOPLE_CONTRACT})
    assert site.end(extract(site, commit, site.serve("people.csv", "id,name\n1,Ada\n"))).failure is None
    landed = site.end(load(site, commit)).outputs[0].files[0].uri
    sneaking = site.commit({"queries/count.sql": f"SELECT * FROM read_parquet('{landed}')"})
    spec = query(site, sneaking).model_copy(update={"inputs": ()})
    failed(site.end(spec), Category.LOGIC, "a file of no declared input")


def test_a_child_that_is_killed_costs_an_attempt_and_is_named(site: Site) -> None:
    """A Python model that kills its own process, as the kernel does when memory runs out."""
    model = (
        "import os, signal\n\n"
        "def model(dbt, session):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return session.table('x')\n"
    )
    commit = site.commit({"dbt_project.yml": PROJECT, "models/adults.py": model})
    manifest = site.end(dbt(site, commit).model_copy(update={"inputs": (), "max_attempts": 1}))
    assert manifest.failure is not None
    assert manifest.failure.category is Category.INFRASTRUCTURE
    assert "SIGKILL" in manifest.failure.message
    assert manifest.outputs == ()


def test_work_that_does_not_end_is_ended(site: Site) -> None:
    commit = site.commit(
        {"queries/count.sql": "SELECT count(*)::BIGINT AS n FROM range(10000000000000) a(i) WHERE i % 7 = 3"}
    )
    resources = Resources(timeout_s=3)
    spec = query(site, commit).model_copy(update={"inputs": (), "resources": resources})
    failed(site.end(spec), Category.LOGIC, "expected the work to end within 3 s")
