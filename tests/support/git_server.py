"""Real git over real HTTP on loopback: `git http-backend` behind a small server that can be made to fail."""

from __future__ import annotations

import base64
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self

GIT_ENV = {
    "PATH": os.environ.get("PATH", os.defpath),
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "LC_ALL": "C",
}
File = bytes | tuple[str, bytes]
"""A file's content; with its mode if that is not 100644."""


class Repository:
    """A bare repository whose commits are made without a working copy, so that every byte is as given."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.git("init", "--quiet", "--bare", "--initial-branch=main")

    def git(self, *arguments: str, stdin: bytes = b"") -> str:
        command = ["git", f"--git-dir={self.path}", *arguments]
        done = subprocess.run(command, input=stdin, env=GIT_ENV, check=True, capture_output=True)
        return done.stdout.decode().strip()

    def commit(
        self,
        files: Mapping[str, File],
        *,
        branch: str = "main",
        parent: str | None = None,
        committed_at_s: int = 1_700_000_000,
    ) -> str:
        """A commit of these files, on which the branch is set down (force-pushed, in effect); returns it."""
        stream = [
            f"reset refs/heads/{branch}\ncommit refs/heads/{branch}\n".encode(),
            f"committer Ada <ada@example.org> {committed_at_s} +0530\ndata 4\nwork\n".encode(),
        ]
        if parent:
            stream.append(f"from {parent}\ndeleteall\n".encode())
        for path, file in files.items():
            mode, content = ("100644", file) if isinstance(file, bytes) else file
            if mode == "160000":
                stream.append(b"M 160000 %s %s\n" % (content, path.encode()))
            else:
                stream.append(f"M {mode} inline {path}\ndata {len(content)}\n".encode() + content + b"\n")
        self.git("fast-import", "--quiet", "--force", stdin=b"".join(stream))
        return self.git("rev-parse", f"refs/heads/{branch}")

    def commit_tree(self, *lines: bytes) -> str:
        """A commit of a tree with these raw lines (`mode name NUL oid`), however crooked; on no branch yet."""
        tree = self.git("hash-object", "-t", "tree", "-w", "--stdin", "--literally", stdin=b"".join(lines))
        committer = b"author Eve <eve@example.org> 1 +0000\ncommitter Eve <eve@example.org> 1 +0000\n"
        commit = b"tree " + tree.encode() + b"\n" + committer + b"\ncrooked\n"
        return self.git("hash-object", "-t", "commit", "-w", "--stdin", stdin=commit)

    def blob(self, content: bytes) -> bytes:
        return bytes.fromhex(self.git("hash-object", "-w", "--stdin", stdin=content))

    def forget(self) -> None:
        """Drop every object that no branch or tag reaches."""
        self.git("reflog", "expire", "--expire=now", "--all")
        self.git("gc", "--quiet", "--prune=now")


class FolderArchive:
    """The archive as a folder, so that several processes can share it and a test can tamper with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def exists(self, key: str) -> bool:
        return (self.folder / key).exists()

    def put_if_absent(self, key: str, body: bytes) -> bool:
        target = self.folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.write_bytes(body)
        return target.read_bytes() == body

    def put_file(self, key: str, path: Path) -> None:
        target = self.folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)

    def get_file(self, key: str, path: Path) -> None:
        shutil.copyfile(self.folder / key, path)


class Cut:
    """Stops the answer to a fetch in the middle of its pack; at `release` the connection is closed."""

    def __init__(self) -> None:
        self.reached = Event()
        self.release = Event()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that hangs up in the middle is what some tests are about."""


class GitServer:
    """Serves the bare repositories `<root>/<name>.git` as `http://127.0.0.1:<port>/<name>.git`, or by https."""

    def __init__(self, root: Path, *, tls: ssl.SSLContext | None = None) -> None:
        self.root = root
        self.fetches = 0
        self.asked: list[tuple[str, str | None]] = []
        """Path and Authorization header of every request."""
        self.status: int | None = None
        """If set, every request is answered with it."""
        self.redirect: str | None = None
        """If set, every request is answered with a redirect to this and the request's own path."""
        self.password: str | None = None
        """If set, every request needs it."""
        self.instead: Callable[[BaseHTTPRequestHandler], None] | None = None
        """If set, it answers every request (that brings the password)."""
        self.cut: Cut | None = None
        self._scheme = "https" if tls else "http"
        server = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._answer(self)

            def do_POST(self) -> None:
                server._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: pytest shows what a test prints."""

        self._http = _Server(("127.0.0.1", 0), Answer)
        if tls:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self._thread = Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """No connection is taken from here on."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()

    def repository(self, name: str = "logic") -> Repository:
        return Repository(self.root / f"{name}.git")

    def url(self, name: str = "logic") -> str:
        return f"{self._scheme}://{self.address}/{name}.git"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._http.server_port}"

    def passwords(self) -> list[str]:
        """The user and password of each request that brought them."""
        said = [header for _, header in self.asked if header]
        return [base64.b64decode(header.removeprefix("Basic ")).decode() for header in said]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        authorization = request.headers.get("Authorization")
        self.asked.append((request.path, authorization))
        if self.redirect is not None:
            request.send_response(302)
            request.send_header("Location", self.redirect + request.path)
            request.end_headers()
            return
        if self.status is not None:
            request.send_error(self.status)
            return
        if self.password is not None and not (authorization and self.passwords()[-1].endswith(f":{self.password}")):
            request.send_response(401)
            request.send_header("WWW-Authenticate", 'Basic realm="git"')
            request.end_headers()
            return
        if self.instead is not None:
            self.instead(request)
            return
        self.fetches += b"command=fetch" in body
        head, _, content = self._backend(request, body).partition(b"\r\n\r\n")
        headers = [line.split(": ", 1) for line in head.decode().splitlines()]
        status = next((int(value[:3]) for name, value in headers if name == "Status"), 200)
        request.send_response(status)
        for name, value in headers:
            request.send_header(name, value)
        if not self.cut:
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if self.cut and b"PACK" in content:
            request.wfile.write(content[: len(content) // 2])
            request.wfile.flush()
            self.cut.reached.set()
            self.cut.release.wait()
            return
        request.wfile.write(content)

    def _backend(self, request: BaseHTTPRequestHandler, body: bytes) -> bytes:
        path, _, query = request.path.partition("?")
        env = GIT_ENV | {
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "REQUEST_METHOD": request.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "REMOTE_ADDR": "127.0.0.1",
        }
        # Unchecked: when it has refused a commit, and said so in its answer, it exits with 1.
        done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True)
        return done.stdout
