"""broker-read: a scan of 6 million rows of an Iceberg table through the broker, over httpfs's first read of them.

TPC-H's lineitem at scale 1 as the runner publishes it: one Parquet file of about 150 MB, 16 columns. The base is a
fresh process with DuckDB and httpfs, so that nothing is cached. Ours is a fresh process that has the broker as its only
file system, over a socket, and a worker beside it whose cache is empty. Both have their connection and their extensions
when the time begins; it ends with the answer to a query that aggregates all 16 columns of the pinned snapshot.

broker-read-narrow: the same with a query of 2 of the columns. What a second job costs, which finds the cache full, is
printed.

S3 is for both sides a server of files on loopback that answers ranges. The emulator is of no use here: it reads a whole
object for each range that it is asked for, and httpfs asks for 50 of this file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import duckdb

from benchmarks.harness import REPETITIONS, ROOT, save
from benchmarks.publish_iceberg import extension
from runner.adapters.aws import Aws
from runner.adapters.s3_objects import S3Objects
from runner.engines import scratch
from runner.engines.export import export
from runner.engines.inputs import BrokeredInputs
from runner.engines.wire import Wire
from runner.model.manifest import Pin
from runner.model.messages import Done, EngineResult
from runner.ports import Objects, ServedFile
from runner.sandbox.broker import Broker
from runner.sandbox.input_cache import InputCache
from tests.support.engine_inputs import job_of
from tests.support.folder_lake import FolderLake, folder_lake

GOAL = 1.5
SCALE = 1
BUCKET = "lake"
CACHE_BYTES = 1024**3
_ANY_KEYS = {"access_key_id": "any", "secret_access_key": "any"}
QUERIES = {
    "broker-read": "SELECT count(*), sum(l_orderkey), sum(l_partkey), sum(l_suppkey), sum(l_linenumber), "
    "sum(l_quantity), sum(l_extendedprice), sum(l_discount), sum(l_tax), max(l_returnflag), max(l_linestatus), "
    "max(l_shipdate), max(l_commitdate), max(l_receiptdate), max(l_shipinstruct), max(l_shipmode), max(l_comment) "
    "FROM ",
    "broker-read-narrow": "SELECT sum(l_extendedprice * l_discount) FROM ",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="of DuckDB, on either side")
    parser.add_argument("--reader", help="what one of the processes is to read; not for people")
    given = parser.parse_args()
    if given.reader:
        _Reader(json.loads(given.reader)).run()
        return 0
    with TemporaryDirectory(prefix="stage-runner-bench-") as folder:
        (Path(folder) / "lake").mkdir()
        with folder_lake(Path(folder) / "lake") as lake:
            pin = _publish(lake, Path(folder))
            files = lake.tables.files(pin)
        with _bucket(lake.folder) as endpoint:
            bench = _Bench(endpoint, pin, files, Path(folder), given.threads)
            met = [bench.measure(name) for name in QUERIES]
    return 0 if all(met) else 1


class _Bench:
    def __init__(self, endpoint: str, pin: Pin, files: Sequence[ServedFile], folder: Path, threads: int) -> None:
        self._endpoint = endpoint
        self._pin = pin
        self._files = files
        self._folder = folder
        self._threads = threads

    @cached_property
    def _objects(self) -> Objects:
        aws = Aws(region="us-east-1", endpoint_url=self._endpoint, **_ANY_KEYS)
        return S3Objects(aws.s3(), BUCKET)

    def measure(self, name: str) -> bool:
        """By turns; the first turn warms up, and does not count."""
        times: dict[str, list[float]] = {"base": [], "ours": [], "warm": []}
        for turn in range(REPETITIONS + 1):
            with TemporaryDirectory(dir=self._folder) as place:
                cache = InputCache(Path(place), max_bytes=CACHE_BYTES)
                answers = {
                    "base": self._base(QUERIES[name]),
                    "ours": self._ours(QUERIES[name], cache),
                    "warm": self._ours(QUERIES[name], cache),
                }
                cache.close()
            if len({answer for _, answer in answers.values()}) != 1:
                raise AssertionError(f"expected one answer from all, got {answers}")
            for side, (seconds, _) in answers.items() if turn else ():
                times[side].append(seconds)
        base, ours, warm = (statistics.median(times[side]) for side in ("base", "ours", "warm"))
        about = f"medians ours {ours:.2f} s, base {base:.2f} s; a second read through the broker {warm:.2f} s"
        return save(name, ours / base, goal=GOAL, unit="x of httpfs's first read", about=about).met

    def _base(self, query: str) -> tuple[float, str]:
        with self._reader(query) as reader:
            return self._answer(reader)

    def _ours(self, query: str, cache: InputCache) -> tuple[float, str]:
        ours, theirs = socket.socketpair()
        with ours, theirs, self._reader(query, broker=theirs.fileno()) as reader:
            theirs.close()
            broker = Broker({"lineitem": self._files}, cache, self._objects)
            served = Thread(target=broker.serve, args=(Wire(ours), print))
            served.start()
            answer = self._answer(reader)
            served.join()
        if not broker.reads["lineitem"].bytes:
            raise AssertionError("expected the broker to have noted rows, got none")
        return answer

    @contextmanager
    def _reader(self, query: str, broker: int | None = None) -> Iterator[subprocess.Popen[str]]:
        wanted = {
            "query": query,
            "pin": self._pin.to_json(),
            "threads": self._threads,
            "broker": broker,
            "endpoint": self._endpoint,
        }
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.broker_read", "--reader", json.dumps(wanted)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            pass_fds=() if broker is None else (broker,),
        ) as process:
            yield process

    @staticmethod
    def _answer(reader: subprocess.Popen[str]) -> tuple[float, str]:
        if reader.stdin is None or reader.stdout is None or reader.stdout.readline() != "ready\n":
            raise AssertionError("expected a reader that gets ready, got none")
        reader.stdin.write("go\n")
        reader.stdin.flush()
        seconds, answer = json.loads(reader.stdout.readline())
        return seconds, answer


class _Reader:
    """One of the processes that read."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        self._wanted = wanted
        self._connection = duckdb.connect(config={"threads": wanted["threads"]})

    def run(self) -> None:
        if self._wanted["broker"] is None:
            self._use_httpfs()
            print(json.dumps(self._timed(lambda: None)), flush=True)
            return
        wire = Wire(socket.socket(fileno=self._wanted["broker"]))
        inputs = BrokeredInputs(wire, {})
        scratch.configure(self._connection, inputs)
        print(json.dumps(self._timed(inputs.primed)), flush=True)
        wire.send(Done(result=EngineResult(outputs=(), steps=(), packages={})))

    def _timed(self, begin: Callable[[], None]) -> tuple[float, str]:
        rows = scratch.snapshot_rows(Pin.model_validate_json(self._wanted["pin"]))
        print("ready", flush=True)
        sys.stdin.readline()
        started = time.perf_counter()
        begin()
        answer = self._connection.execute(self._wanted["query"] + rows).fetchall()
        return time.perf_counter() - started, str(answer)

    def _use_httpfs(self) -> None:
        for name in ("httpfs", "avro", "iceberg"):
            self._connection.execute(f"LOAD '{extension(name)}'")
        self._connection.execute(
            f"CREATE SECRET (TYPE s3, KEY_ID 'any', SECRET 'any', REGION 'us-east-1', URL_STYLE 'path', "
            f"USE_SSL false, ENDPOINT '{self._wanted['endpoint'].removeprefix('http://')}')"
        )
        self._connection.execute("SET TimeZone = 'UTC'")


def _publish(lake: FolderLake, folder: Path) -> Pin:
    output = lake.wanted()
    job = job_of(folder, outputs=[output])
    with duckdb.connect(config={"temp_directory": str(folder / "spill")}) as connection:
        connection.execute(f"LOAD '{extension('tpch')}'")
        connection.execute(f"CALL dbgen(sf = {SCALE})")
        lake.commit(export(connection, job, output, "lineitem", claimed_inputs=None), job)
    return lake.tables.pin(lake.table, "lineitem", None)


class _Files(BaseHTTPRequestHandler):
    """S3's GET and HEAD, of files in a folder, with ranges; whoever asks is let in."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: Path

    def do_GET(self) -> None:
        self._send(with_body=True)

    def do_HEAD(self) -> None:
        self._send(with_body=False)

    def _send(self, *, with_body: bool) -> None:
        path = self.folder / self.path.partition("?")[0].removeprefix(f"/{BUCKET}/")
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            first = int(asked[1]) if asked else 0
            last = min(int(asked[2]), size - 1) if asked and asked[2] else size - 1
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{size}"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            if with_body:
                self.connection.sendfile(file, first, last - first + 1)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody wants one."""


@contextmanager
def _bucket(folder: Path) -> Iterator[str]:
    handler = type("_TheseFiles", (_Files,), {"folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
