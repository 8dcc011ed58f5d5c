"""An open-data portal on loopback: files as a public one serves them, and git repositories over smart HTTP.

Runs as `python -m runner.embedded.portal`, or within a test as `Portal`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, parse_headers
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from runner.log import printable

_CONTENT_TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".md": "text/markdown; charset=utf-8",
    ".ndjson": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
    ".txt": "text/plain; charset=utf-8",
    ".zip": "application/zip",
}
"""Its own list: the standard library's depends on files of the machine."""
_GIT = re.compile(r"/git/(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*\.git)(?P<call>/info/refs|/git-(?:upload|receive)-pack)")
_GIT_SETTINGS = {
    "gc.auto": "0",
    "http.receivepack": "true",
    "receive.autogc": "false",
    # git refuses repositories of another user, as root's are to the demo's or the other way round. Only the portal's
    # own folder is served, so whoever filled it is trusted.
    "safe.directory": "*",
}
_PID_PATH = "/-/pid"
_BLOCK_BYTES = 64 * 1024
_IDLE_S = 60
_SETTLED_S = 2.0
"""A file younger than this may change again without its time stamp showing it."""


class Portal:
    """Serves files below `root` at /, and repositories `<git_root>/<name>.git` at /git/<name>.git, to read and to push.

    On 127.0.0.1 only, where every user of the machine may read and push. `port` 0 takes a free one.
    """

    def __init__(self, root: Path, git_root: Path, *, port: int = 0, log: IO[str] | None = None) -> None:
        from runner.config import process_environment  # not at the top: who only asks `answers` does without it

        self._server = _Server(port, root.resolve(), git_root.resolve(), process_environment(), log)
        self._thread = threading.Thread(target=self.serve, name="portal", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> str:
        """Serve from a thread until `stop`; returns the base URL."""
        self._thread.start()
        return self.url

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()

    def serve(self) -> None:
        """Serve from the calling thread."""
        with self._server:
            self._server.serve_forever(poll_interval=0.1)


def answers(port: int, *, pid: int) -> bool:
    """True if the portal of process `pid` answers on `port`."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", _PID_PATH)
        return connection.getresponse().read() == str(pid).encode()
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, port: int, root: Path, git_root: Path, git_environment: Mapping[str, str], log: IO[str] | None
    ) -> None:
        self.root = root
        self.git_root = git_root
        self.git_environment = git_environment
        self.log = log
        self.digests: dict[Path, tuple[tuple[int, ...], str]] = {}
        super().__init__(("127.0.0.1", port), _Request)

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for the address's name, which takes seconds on some machines.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):  # a client that went away is no fault
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # typeshed names the socket's types


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "stage-runner-portal"
    sys_version = ""
    disable_nagle_algorithm = True
    timeout = _IDLE_S
    server: _Server

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == _PID_PATH:
            self._answer_pid()
        elif repository := _GIT.fullmatch(path):
            self._answer_git(repository["name"], repository["call"])
        else:
            self._answer_file(path)

    def do_HEAD(self) -> None:
        self._answer_file(urlsplit(self.path).path)

    def do_POST(self) -> None:
        repository = _GIT.fullmatch(urlsplit(self.path).path)
        if repository and repository["call"] != "/info/refs":
            self._answer_git(repository["name"], repository["call"])
        else:
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    def log_message(self, format: str, *args: object) -> None:
        if self.server.log is not None:
            self.server.log.write(f"{self.log_date_time_string()} {printable(format % args)}\n")
            self.server.log.flush()

    def _answer_pid(self) -> None:
        body = str(os.getpid()).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    # ---------------------------------------------------------------- files

    def _answer_file(self, url_path: str) -> None:
        path = _below(self.server.root, unquote(url_path))
        try:
            file = path.open("rb") if path else None
        except OSError:
            file = None
        if path is None or file is None:
            self.send_error(HTTPStatus.NOT_FOUND, explain="There is no such file here.")
            return
        with file:
            facts = os.fstat(file.fileno())
            etag = f'"{self._digest(path, file, facts)}"'
            fresh = _names(self.headers.get_all("If-None-Match", []), etag)
            self.send_response(HTTPStatus.NOT_MODIFIED if fresh else HTTPStatus.OK)
            self.send_header("ETag", etag)
            self.send_header("Last-Modified", formatdate(facts.st_mtime, usegmt=True))
            self.send_header("Cache-Control", "no-cache")
            if not fresh:
                self.send_header("Content-Type", _CONTENT_TYPES.get(path.suffix.lower(), "application/octet-stream"))
                self.send_header("Content-Length", str(facts.st_size))
            self.end_headers()
            if not fresh and self.command == "GET":
                self._send_file(file, facts.st_size)

    def _send_file(self, file: BufferedReader, size: int) -> None:
        file.seek(0)
        while size and (block := file.read(min(size, _BLOCK_BYTES))):
            self.wfile.write(block)
            size -= len(block)
        if size:
            self.close_connection = True  # cut short while we read it: the client must not wait for the rest

    def _digest(self, path: Path, file: BufferedReader, facts: os.stat_result) -> str:
        """SHA-256 of the content: equal tags mean equal bytes, which no time stamp promises."""
        version = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        known = self.server.digests.get(path)
        if known and known[0] == version:
            return known[1]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - max(facts.st_mtime, facts.st_ctime) > _SETTLED_S:
            self.server.digests[path] = (version, digest)
        return digest

    # ---------------------------------------------------------------- git

    def _answer_git(self, name: str, call: str) -> None:
        self.close_connection = True  # the answer's end is the connection's: git does not say its length beforehand
        repository = _below(self.server.git_root, name)
        if repository is None or not repository.is_dir():
            self.send_error(HTTPStatus.NOT_FOUND, explain="There is no such repository here.")
            return
        git = subprocess.Popen(
            ["git", "http-backend"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.server.log or subprocess.DEVNULL,
            env=self._git_environment(name, call),
        )
        with git:
            assert git.stdin is not None and git.stdout is not None  # noqa: S101, PT018 - both are pipes
            # A thread of its own: git answers while it still reads, and each pipe holds only so much.
            feeder = threading.Thread(target=self._feed, args=(git.stdin,), daemon=True)
            feeder.start()
            self._send_git_answer(git.stdout)
            feeder.join()

    def _git_environment(self, name: str, call: str) -> dict[str, str]:
        """RFC 3875, as far as git-http-backend(1) reads it, and no configuration but ours."""
        environment = {
            **self.server.git_environment,
            "GATEWAY_INTERFACE": "CGI/1.1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": f"/{name}{call}",
            "QUERY_STRING": urlsplit(self.path).query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": self.client_address[0],
            "GIT_PROJECT_ROOT": str(self.server.git_root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_COUNT": str(len(_GIT_SETTINGS)),
        }
        for index, (key, value) in enumerate(_GIT_SETTINGS.items()):
            environment |= {f"GIT_CONFIG_KEY_{index}": key, f"GIT_CONFIG_VALUE_{index}": value}
        return environment

    def _feed(self, git_input: IO[bytes]) -> None:
        # Git or the client may give up in the middle: the other one gets to know it by the end of its stream.
        with contextlib.suppress(OSError, ValueError), git_input:
            git_input.writelines(self._body())

    def _body(self) -> Iterator[bytes]:
        """The request's body as it was sent, still compressed if it was: git http-backend inflates it."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            yield from self._read(int(self.headers.get("Content-Length", 0)))
            return
        while size := int(self.rfile.readline(_BLOCK_BYTES).split(b";")[0], 16):
            yield from self._read(size)
            self.rfile.readline(_BLOCK_BYTES)
        while self.rfile.readline(_BLOCK_BYTES).strip():
            pass

    def _read(self, size: int) -> Iterator[bytes]:
        while size:
            block = self.rfile.read(min(size, _BLOCK_BYTES))
            if not block:
                raise ConnectionAbortedError("the client left in the middle of its request")
            size -= len(block)
            yield block

    def _send_git_answer(self, answer: IO[bytes]) -> None:
        fields = parse_headers(answer)
        if not fields:
            self.send_error(HTTPStatus.BAD_GATEWAY, explain="git http-backend ended without an answer.")
            return
        self.send_response(int(fields.get("Status", "200").split()[0]))
        for name, value in fields.items():
            if name.lower() != "status":
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        shutil.copyfileobj(answer, self.wfile, _BLOCK_BYTES)


def _below(root: Path, path: str) -> Path | None:
    """The file that `path` names below `root`; None if it is hidden, or climbs out by dots or by a link."""
    parts = [part for part in path.split("/") if part]
    if "\0" in path or any(part.startswith(".") for part in parts):
        return None
    found = root.joinpath(*parts).resolve()
    return found if found.is_relative_to(root) else None


def _names(if_none_match: list[str], etag: str) -> bool:
    """RFC 9110, 13.1.2: a list of tags, compared weakly, or `*` for any."""
    tags = [tag.strip().removeprefix("W/") for line in if_none_match for tag in line.split(",")]
    return etag in tags or "*" in tags


def main() -> None:
    options = argparse.ArgumentParser(prog="runner.embedded.portal", description=__doc__)
    options.add_argument("--root", type=Path, required=True, help="files to serve at /")
    options.add_argument("--git", type=Path, required=True, help="bare repositories to serve at /git/<name>.git")
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--log", type=Path, help="a file that gets a line for each request")
    given = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(given.log.open("a", encoding="utf-8")) if given.log else None
        Portal(given.root, given.git, port=given.port, log=log).serve()


if __name__ == "__main__":
    main()
