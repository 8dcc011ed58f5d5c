"""What stands between a worker and its services, and hurts what passes: microburst, and doors of our own.

Microburst speaks S3, SQS and Postgres, and answers as they do when they are ill. What it cannot do stands here: lose
the answer to one chosen request or to a COMMIT after its effect, and be shut for a while. Its HTTP mode also drops the
length from the answer to a HEAD, so a door sends those past it, and a connection has one request, so that its TCP mode,
which judges connections, judges requests.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread, Timer
from typing import Any, Literal

from psycopg.conninfo import conninfo_to_dict

from tests.faults.invariants import Place

Rule = Mapping[str, Any]
"""One of microburst's rules: which requests, and what happens to them."""
Protocol = Literal["http", "tcp", "postgres"]

_UP_WITHIN_S = 60.0
_POLL_S = 0.05
_CHUNK = 65536
_LONGEST_HEAD = 65536
_HOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


# ---------------------------------------------------------------- microburst


@dataclass(frozen=True)
class Microburst:
    """A microburst process, and its control over HTTP."""

    port: int
    control_port: int

    def set(self, *rules: Rule) -> None:
        """These and no others from now on."""
        self._ask("rules", "POST", list(rules))

    @property
    def fired(self) -> int:
        """How often a rule has really hit something."""
        return int(self._ask("stats")["requests"]["faulted"])

    def _ask(self, path: str, method: str = "GET", body: object = None) -> Any:
        request = urllib.request.Request(
            f"http://{_HOST}:{self.control_port}/_microburst/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_UP_WITHIN_S) as answer:
            return json.load(answer)

    def is_up(self) -> bool:
        try:
            self._ask("health")
        except (OSError, urllib.error.URLError):
            return False
        return True


@contextmanager
def microburst(protocol: Protocol, upstream: str, *, log: Path) -> Iterator[Microburst]:
    """One between its port and `upstream` (`host:port`), with no rule yet."""
    port = free_port()
    control_port = port if protocol == "http" else free_port()
    command = [sys.executable, "-P", "-m", "microburst", "--protocol", protocol, "--host", _HOST]
    command += ["--upstream", f"http://{upstream}" if protocol == "http" else upstream]
    command += ["--port", str(port), "--control-port", str(control_port)]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        made = Microburst(port, control_port)
        give_up_at_s = time.monotonic() + _UP_WITHIN_S
        while not made.is_up():
            if process.poll() is not None or time.monotonic() > give_up_at_s:
                raise AssertionError(f"microburst: expected it up on {port}, got\n{log.read_text(errors='replace')}")
            time.sleep(_POLL_S)
        yield made
    finally:
        process.kill()
        process.wait()


# ---------------------------------------------------------------- doors


class Door(ABC):
    """Takes connections on a port of its own; what happens to each is for the kinds of door to say."""

    def __init__(self) -> None:
        self._listener = socket.create_server((_HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = Lock()
        self._shut = False
        self._away_at, self._away_s = -1, 0.0
        self._comes_back: Timer | None = None
        self._loses: Callable[[int, str], bool] = lambda number, name: False
        self.passed = 0
        """Requests so far."""
        self.cuts = 0
        """What was hurt where it was wanted: answers that were lost, and a server that went away."""
        self._thread = Thread(target=self._take, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        if self._comes_back:
            self._comes_back.cancel()
            self._comes_back.join()
        self.reset_all()

    def reset_all(self) -> None:
        """Cut every connection that there is."""
        with self._lock:
            cut = list(self._open)
        for each in cut:
            _reset(each)

    def lose_answers(self, which: Callable[[int, str], bool]) -> None:
        """Requests that `which` says yes to, by number and name, have their effect, and no answer."""
        self._loses = which

    def go_away(self, at: int, *, for_s: float) -> None:
        """As a server that is gone: at the request of that number cut what there is, then refuse what comes."""
        self._away_at, self._away_s = at, for_s

    def _pass(self) -> int:
        """The number of a request that wants to pass, from 0 on."""
        with self._lock:
            number = self.passed
            self.passed += 1
        if number == self._away_at:
            self._shut = True
            self._note_cut()
            self.reset_all()
            self._comes_back = Timer(self._away_s, self._open_again)
            self._comes_back.start()
        return number

    def _note_cut(self) -> None:
        with self._lock:
            self.cuts += 1

    def _open_again(self) -> None:
        self._shut = False

    def _take(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._shut:
                _reset(client)
                continue
            Thread(target=self._serve_and_forget, args=(client,), daemon=True).start()

    def _serve_and_forget(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        try:
            self.serve(client)
        except OSError:
            _reset(client)  # what happens to one side happens to the other
        finally:
            with self._lock:
                self._open.discard(client)
            _end(client)

    @abstractmethod
    def serve(self, client: socket.socket) -> None:
        """Until the connection is over."""


def _reset(connection: socket.socket) -> None:
    """End it as a network does, not as a program: what was not read yet is lost."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
    connection.close()


def _end(connection: socket.socket) -> None:
    """Close it, also for a thread of ours that still waits for it to say something."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def _connected(at: tuple[str, int]) -> Iterator[socket.socket]:
    connection = socket.create_connection(at)
    try:
        yield connection
    finally:
        _end(connection)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(_CHUNK):
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)


_INTERIM = re.compile(rb"HTTP/1\.1 100 [^\r]*\r\n\r\n")


class HttpDoor(Door):
    """For S3 and SQS, one request a connection. A request is called `AmazonSQS.SendMessage`, or `PUT /bucket/key?…`."""

    def __init__(self, emulator: tuple[str, int]) -> None:
        self._emulator = emulator
        self._through: int | None = None
        self._past_head = False
        super().__init__()

    def send_through(self, proxy: Microburst, *, past_head: bool) -> None:
        """All that comes goes through it; with `past_head` but for HEAD."""
        self._through, self._past_head = proxy.port, past_head

    def serve(self, client: socket.socket) -> None:
        head, rest = _head_of(client)
        if not head:
            return
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = [line for line in lines[1:] if not line.lower().startswith("connection:")]
        target = next(
            (line.split(":", 1)[1].strip() for line in headers if line.lower().startswith("x-amz-target:")), ""
        )
        name = target or f"{method} {path}"
        at = (_HOST, self._through) if self._through and not (self._past_head and method == "HEAD") else self._emulator
        lose = self._loses(self._pass(), name)
        asked = "\r\n".join([lines[0], "Connection: close", *headers]).encode("latin-1") + b"\r\n\r\n" + rest
        with _connected(at) as server:
            server.sendall(asked)
            Thread(target=_pump, args=(client, server), daemon=True).start()
            if not lose:
                while chunk := server.recv(_CHUNK):
                    client.sendall(chunk)
                return
            answer = b""
            while chunk := server.recv(_CHUNK):
                answer += chunk
                if interim := _INTERIM.match(
                    answer
                ):  # without it the client would never send what is to have an effect
                    client.sendall(interim[0])
                    answer = answer[interim.end() :]
        self._note_cut()
        _reset(client)


def _head_of(client: socket.socket) -> tuple[bytes, bytes]:
    """The request's line and headers, and what of its body came with them; nothing where the client went away."""
    read = b""
    while b"\r\n\r\n" not in read:
        chunk = client.recv(_CHUNK)
        if not chunk or len(read) > _LONGEST_HEAD:
            return b"", b""
        read += chunk
    head, _, rest = read.partition(b"\r\n\r\n")
    return head, rest


_COMMIT = b"COMMIT\0"


class PostgresDoor(Door):
    """For ledger and catalog. Of what passes, COMMITs are its requests: the moments when something is written."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        super().__init__()

    def serve(self, client: socket.socket) -> None:
        with _connected(self.server) as server:
            back = _Back(server, client)
            Thread(target=back.pump, daemon=True).start()
            while chunk := client.recv(_CHUNK):
                if _COMMIT in chunk and self._loses(self._pass(), "COMMIT"):
                    back.swallow()
                    server.sendall(chunk)
                    back.wait()
                    self._note_cut()
                    _reset(client)
                    return
                server.sendall(chunk)


class _Back:
    """What a server answers on its way back; from a moment on it is swallowed, and that it has come is told."""

    def __init__(self, server: socket.socket, client: socket.socket) -> None:
        self._server = server
        self._client = client
        self._swallows = False
        self._came = Event()

    def swallow(self) -> None:
        self._swallows = True

    def wait(self) -> None:
        """Until something has come since `swallow`, or the server is gone."""
        self._came.wait(_UP_WITHIN_S)

    def pump(self) -> None:
        try:
            while chunk := self._server.recv(_CHUNK):
                if self._swallows:
                    break
                self._client.sendall(chunk)
            else:
                self._client.shutdown(socket.SHUT_WR)
        except OSError:
            _reset(self._client)
        finally:
            self._came.set()


# ---------------------------------------------------------------- a worker's way to its services


@dataclass
class Way:
    """The doors that a worker's environment names in the place of its services."""

    http: HttpDoor
    postgres: PostgresDoor
    env: dict[str, str]
    emulator: str
    server: str
    _log: Path
    _stack: ExitStack
    _bursts: list[Microburst] = field(default_factory=list)

    @property
    def injected(self) -> int:
        """What has really been hurt."""
        return self.http.cuts + self.postgres.cuts + sum(each.fired for each in self._bursts)

    def hurt_requests(self, *rules: Rule) -> Microburst:
        """By microburst's HTTP mode: as S3 and SQS answer when they are ill. Rules hold from the first request on."""
        made = self._stack.enter_context(microburst("http", self.emulator, log=self._log))
        self._warm(made)
        made.set(*rules)
        self._bursts.append(made)
        self.http.send_through(made, past_head=True)
        return made

    def hurt_connections(self, *rules: Rule) -> Microburst:
        """By its TCP mode: HEAD and Iceberg's requests too. `payload` matches a request's line and headers."""
        made = self._stack.enter_context(microburst("tcp", self.emulator, log=self._log))
        made.set(*rules)
        self._bursts.append(made)
        self.http.send_through(made, past_head=False)
        return made

    def hurt_statements(self, *rules: Rule) -> Microburst:
        """By its Postgres mode: as the server answers when it is ill."""
        made = self._stack.enter_context(microburst("postgres", self.server, log=self._log))
        made.set(*rules)
        self._bursts.append(made)
        self.postgres.server = (_HOST, made.port)
        return made

    def _warm(self, made: Microburst) -> None:
        """Its first request of each service reads botocore's models, which takes longer than a lease."""
        for service in ("s3", "sqs"):
            credential = f"AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/{service}/aws4_request"
            request = urllib.request.Request(
                f"http://{_HOST}:{made.port}/",
                headers={"Authorization": f"{credential}, SignedHeaders=host, Signature=0"},
            )
            with suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=_UP_WITHIN_S) as answer:
                answer.read()


@contextmanager
def way(place: Place, *, log: Path) -> Iterator[Way]:
    """Doors to a place's services; nothing is hurt yet."""
    emulator = place.endpoint_url.removeprefix("http://").rstrip("/")
    at = {name: str(value) for name, value in conninfo_to_dict(place.ledger_url).items()}
    with ExitStack() as stack:
        http, postgres = HttpDoor(_address(emulator)), PostgresDoor((at["host"], int(at["port"])))
        stack.callback(http.close)
        stack.callback(postgres.close)
        env = {
            "AWS_ENDPOINT_URL": f"http://{_HOST}:{http.port}",
            "RUNNER_LEDGER_URL": f"postgresql://{at['user']}:{at['password']}@{_HOST}:{postgres.port}/{at['dbname']}",
        }
        yield Way(http, postgres, env, emulator, f"{at['host']}:{at['port']}", log, stack)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
