"""The AWS emulator: MiniStack as a process from an environment of its own, since it pins another botocore than ours."""

from __future__ import annotations

import hashlib
import json
import os
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from runner.embedded.processes import ProcessIdentity, spawn
from runner.model.errors import InfrastructureError

REGION = "us-east-1"
ACCESS_KEY_ID = SECRET_ACCESS_KEY = "test"  # noqa: S105 - no secret
"""The emulator takes any; twelve digits would name an account."""

_ANSWER_WITHIN_S = 5.0


def start(folder: Path, *, program: Path, port: int, log: Path) -> ProcessIdentity:
    """Start the emulator on 127.0.0.1:`port`, with all of its state below `folder`.

    Objects are on disk as soon as they are written. Queues with their messages, and the settings of buckets, are saved
    on SIGTERM only: a kill or a power cut takes them back to the last orderly stop. Raises `InfrastructureError`.
    """
    if not os.access(program, os.X_OK):
        raise InfrastructureError(
            f"emulator: expected MiniStack's program at {program}, got none",
            hint="`make up` installs it there; RUNNER_EMULATOR names it elsewhere",
        )
    for part in ("state", "objects", "tmp"):
        (folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    environment = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONUTF8": "1",
        "BIND_HOST": "127.0.0.1",
        # Not GATEWAY_PORT: queues are stored under URLs that hold its number, and would be lost to another port. With
        # this one they are stored under a constant, and every answer carries the address that the client used.
        "EDGE_PORT": str(port),
        "PERSIST_STATE": "1",
        "STATE_DIR": str(folder / "state"),
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(folder / "objects"),
        "MINISTACK_EDITION": _mark(folder),
        # These two would listen on every address of the machine.
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        # At start and stop it removes what it takes for its own containers. There are none here.
        "DOCKER_HOST": f"unix://{folder / 'no-docker'}",
    }
    return spawn([str(program.absolute())], log=log, env=environment)


def answers(folder: Path, *, port: int) -> bool:
    """True if the emulator that keeps its state in `folder` answers on `port`, and not another one."""
    connection = HTTPConnection("127.0.0.1", port, timeout=_ANSWER_WITHIN_S)
    try:
        connection.request("GET", "/_ministack/health")
        return bool(json.loads(connection.getresponse().read())["edition"] == _mark(folder))
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return False
    finally:
        connection.close()


def _mark(folder: Path) -> str:
    """What its health says it is: the one fact there that we may set."""
    return f"stage-runner {hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
