"""What the lake's bucket does, told of the twin and of S3 alike; then what is S3's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from runner.adapters.aws import Aws, _time
from runner.adapters.s3_objects import S3Objects
from runner.model.errors import DataError, InfrastructureError, TransientError
from runner.ports import Objects
from tests.support.twins import MemoryObjects

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client


@pytest.fixture(params=["memory", "s3"])
def objects(request: pytest.FixtureRequest) -> Objects:
    if request.param == "memory":
        return MemoryObjects()
    return S3Objects(request.getfixturevalue("s3_client"), request.getfixturevalue("bucket"))


def test_an_object_that_is_not_there_is_none(objects: Objects) -> None:
    assert objects.get("a/b") is None
    assert not objects.exists("a/b")


@pytest.mark.parametrize("body", [b"", b"{}", bytes(range(256)), "Zürich".encode()])
def test_an_object_is_what_was_put(objects: Objects, body: bytes) -> None:
    objects.put("a/b", body)

    assert objects.get("a/b") == body
    assert objects.exists("a/b")


@pytest.mark.parametrize("key", ["ingested_on=2026-01-01/a.csv", "a b/c+d&e.csv", "ü/東京.json", "a:b,c(d)~'e"])
def test_keys_may_hold_what_files_are_named(objects: Objects, key: str) -> None:
    objects.put(key, b"x")

    assert objects.get(key) == b"x"
    assert objects.exists(key)
    assert objects.list("") == [key]


def test_put_overwrites(objects: Objects) -> None:
    objects.put("a", b"1")
    objects.put("a", b"2")

    assert objects.get("a") == b"2"


def test_a_key_that_another_begins_with_does_not_exist(objects: Objects) -> None:
    objects.put("a/b/c", b"1")

    assert not objects.exists("a/b")
    assert objects.get("a/b") is None


def test_put_if_absent_creates_what_is_not_there(objects: Objects) -> None:
    assert objects.put_if_absent("a", b"1")
    assert objects.get("a") == b"1"


def test_put_if_absent_leaves_what_is_there(objects: Objects) -> None:
    objects.put("a", b"1")

    assert not objects.put_if_absent("a", b"2")
    assert objects.get("a") == b"1"


def test_put_if_absent_takes_its_own_bytes_for_its_own_write(objects: Objects) -> None:
    # The answer to the first try can be lost on the way; the second then finds what the first one made.
    assert objects.put_if_absent("a", b"1")
    assert objects.put_if_absent("a", b"1")


def test_of_many_that_create_an_object_at_once_one_does(objects: Objects) -> None:
    bodies = [str(number).encode() for number in range(8)]
    with ThreadPoolExecutor(max_workers=8) as threads:
        created = list(threads.map(lambda body: objects.put_if_absent("a", body), bodies))

    assert [body for body, did in zip(bodies, created, strict=True) if did] == [objects.get("a")]


def test_a_list_is_sorted_and_keeps_to_its_prefix(objects: Objects) -> None:
    for key in ("b/2", "a/1", "b/10", "bb/1", "b/1"):
        objects.put(key, b"")

    assert objects.list("b/") == ["b/1", "b/10", "b/2"]
    assert objects.list("c/") == []


@pytest.mark.parametrize("size", [0, 1, 9 * 2**20])  # the last one goes up in parts
def test_a_file_comes_back_as_it_went(objects: Objects, tmp_path: Path, size: int) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(b"0123456789abcdef" * (size // 16) + b"x" * (size % 16))

    objects.put_file("a/file.parquet", there)
    objects.get_file("a/file.parquet", back)

    assert back.read_bytes() == there.read_bytes()
    assert sorted(tmp_path.iterdir()) == [back, there]


def test_a_file_that_is_not_there_leaves_nothing_behind(objects: Objects, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a/file"):
        objects.get_file("a/file", tmp_path / "back")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("start", "end", "expected"), [(0, 1, b"0"), (3, 7, b"3456"), (0, 10, b"0123456789"), (8, 99, b"89"), (10, 11, b"")]
)
def test_a_range_of_an_object_ends_where_the_object_does(
    objects: Objects, start: int, end: int, expected: bytes
) -> None:
    objects.put("a", b"0123456789")

    assert objects.get_range("a", start, end) == expected


def test_a_range_of_nothing_is_none(objects: Objects) -> None:
    assert objects.get_range("a", 0, 1) is None


def test_an_object_that_is_larger_than_was_asked_for_is_not_taken(objects: Objects) -> None:
    objects.put("a", b"0123456789")

    assert objects.get("a", at_most=10) == b"0123456789"
    with pytest.raises(DataError, match="expected at most 9 bytes, got 10"):
        objects.get("a", at_most=9)


def test_a_uri_names_bucket_and_key(objects: Objects) -> None:
    uri = objects.uri("a/b c.csv")

    assert uri.startswith("s3://")
    assert uri.endswith("/a/b c.csv")


# ---------------------------------------------------------------- S3 alone

USES: dict[str, Callable[[S3Objects, Path], object]] = {
    "get": lambda objects, path: objects.get("a"),
    "get_range": lambda objects, path: objects.get_range("a", 0, 1),
    "put": lambda objects, path: objects.put("a", b""),
    "put_if_absent": lambda objects, path: objects.put_if_absent("a", b""),
    "list": lambda objects, path: objects.list(""),
    "exists": lambda objects, path: objects.exists("a"),
    "put_file": lambda objects, path: objects.put_file("a", path),
    "get_file": lambda objects, path: objects.get_file("a", path.with_name("back")),
}


@pytest.mark.parametrize("use", USES)
def test_a_missing_bucket_is_named_by_whatever_meets_it(s3_client: S3Client, tmp_path: Path, use: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")

    with pytest.raises(InfrastructureError, match="bucket no-such-bucket does not exist at http") as error:
        USES[use](S3Objects(s3_client, "no-such-bucket"), path)

    assert "RUNNER_BUCKET" in (error.value.hint or "")


def test_a_large_file_for_a_missing_bucket_names_it_too(s3_client: S3Client, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\0" * (9 * 2**20))

    with pytest.raises(InfrastructureError, match="bucket no-such-bucket does not exist"):
        S3Objects(s3_client, "no-such-bucket").put_file("a", path)


def test_a_bucket_can_be_made_again_and_keeps_its_versions(s3_client: S3Client, bucket: str) -> None:
    objects = S3Objects(s3_client, bucket)
    objects.put("a", b"1")

    objects.create_bucket()

    assert objects.get("a") == b"1"
    assert s3_client.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"


def test_a_file_that_cannot_be_stored_names_the_place(s3_client: S3Client, bucket: str, tmp_path: Path) -> None:
    objects = S3Objects(s3_client, bucket)
    objects.put("a", b"1")

    with pytest.raises(InfrastructureError, match="no-such-folder"):
        objects.get_file("a", tmp_path / "no-such-folder" / "a")


@pytest.fixture
def nobody_listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Client]:
    """A client whose endpoint refuses: what is asked of it must come from a stub."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    client = Aws(region="us-east-1", endpoint_url="http://127.0.0.1:9", access_key_id="a", secret_access_key="b").s3()
    yield client
    client.close()


@pytest.mark.parametrize("size", [0, 3, 8 * 2**20])
def test_a_file_goes_up_in_one_request_that_s3_checks(nobody_listening: S3Client, tmp_path: Path, size: int) -> None:
    from botocore.stub import Stubber

    path = tmp_path / "file"
    path.write_bytes(b"\1" * size)
    asked = {"Bucket": "lake", "Key": "a", "Body": b"\1" * size, "ChecksumAlgorithm": "SHA256"}
    with Stubber(nobody_listening) as s3:
        s3.add_response("put_object", {}, asked)

        S3Objects(nobody_listening, "lake").put_file("a", path)
        s3.assert_no_pending_responses()


class Written(BaseHTTPRequestHandler):
    """Notes the headers of what is put."""

    seen: ClassVar[list[dict[str, str]]] = []

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


def test_a_body_is_sent_without_asking_first_and_says_whose_it_is() -> None:
    with HTTPServer(("127.0.0.1", 0), Written) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        client = Aws(region="us-east-1", endpoint_url=url, access_key_id="a", secret_access_key="b").s3()

        S3Objects(client, "lake").put("a", b"123")
        client.close()

    (headers,) = Written.seen
    assert "expect" not in headers
    assert headers["user-agent"].startswith("stage-runner/")


@pytest.mark.parametrize(
    "written",
    [
        "2026-11-21T22:04:45.123Z",
        "2026-11-21T22:04:45Z",
        "2026-11-21T23:04:45+01:00",
        "Sat, 21 Nov 2026 22:04:45 GMT",
        "1795298685",
        1795298685.5,
    ],
)
def test_a_time_is_read_as_botocore_would(written: Any) -> None:
    from botocore.utils import parse_timestamp

    assert _time(written) == parse_timestamp(written)
    assert _time(written).utcoffset() is not None


@pytest.mark.parametrize("written", ["yesterday", "2026-", "Sat, GMT"])
def test_what_is_no_time_is_a_value_error(written: str) -> None:
    with pytest.raises(ValueError, match=written):
        _time(written)


def test_a_conflict_with_another_writer_is_tried_again(nobody_listening: S3Client) -> None:
    from botocore.stub import Stubber

    with Stubber(nobody_listening) as s3:
        s3.add_client_error("put_object", "ConditionalRequestConflict", http_status_code=409)
        s3.add_client_error("get_object", "NoSuchKey", http_status_code=404)
        s3.add_response("put_object", {})

        assert S3Objects(nobody_listening, "lake").put_if_absent("a", b"1")
        s3.assert_no_pending_responses()


def test_conflicts_without_end_are_transient(nobody_listening: S3Client) -> None:
    from botocore.stub import Stubber

    with Stubber(nobody_listening) as s3:
        for _ in range(5):
            s3.add_client_error("put_object", "ConditionalRequestConflict", http_status_code=409)
            s3.add_client_error("get_object", "NoSuchKey", http_status_code=404)

        with pytest.raises(TransientError, match="s3://lake/a"):
            S3Objects(nobody_listening, "lake").put_if_absent("a", b"1")


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("SlowDown", 503, TransientError),
        ("InternalError", 500, TransientError),
        ("RequestTimeout", 400, TransientError),
        ("AccessDenied", 403, InfrastructureError),
        ("InvalidAccessKeyId", 403, InfrastructureError),
        ("InvalidBucketName", 400, InfrastructureError),
    ],
)
def test_what_s3_answers_becomes_an_error_that_names_the_object(
    nobody_listening: S3Client, code: str, status: int, error: type[Exception]
) -> None:
    from botocore.stub import Stubber

    with Stubber(nobody_listening) as s3:
        s3.add_client_error("get_object", code, http_status_code=status)

        with pytest.raises(error, match="object s3://lake/a: .*S3 at http://127.0.0.1:9.*" + code):
            S3Objects(nobody_listening, "lake").get("a")


class CutOff(BaseHTTPRequestHandler):
    """Promises more bytes than it sends."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"123")

    def log_message(self, format: str, *args: object) -> None: ...


def test_an_answer_that_is_cut_off_is_transient() -> None:
    with HTTPServer(("127.0.0.1", 0), CutOff) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        client = Aws(region="us-east-1", endpoint_url=url, access_key_id="a", secret_access_key="b").s3()

        with pytest.raises(TransientError, match=f"object s3://lake/a: .*{url}"):
            S3Objects(client, "lake").get("a")
        client.close()


def test_missing_credentials_are_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.session import Session

    monkeypatch.setattr(Session, "get_credentials", lambda self: None)
    client = Aws(region="us-east-1", endpoint_url="http://127.0.0.1:9").s3()

    with pytest.raises(InfrastructureError, match="credentials"):
        S3Objects(client, "lake").get("a")
    client.close()


@pytest.mark.parametrize("use", USES)
def test_a_service_that_is_away_is_named_with_its_address(nobody_listening: S3Client, tmp_path: Path, use: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")

    with pytest.raises(InfrastructureError, match=r"S3 at http://127\.0\.0\.1:9") as error:
        USES[use](S3Objects(nobody_listening, "lake"), path)

    assert "\n" not in error.value.message
    assert "runner up" in (error.value.hint or "")


def test_an_endpoint_that_is_no_address_is_named() -> None:
    with pytest.raises(InfrastructureError, match=r"S3: expected a usable AWS configuration, got .*nonsense"):
        Aws(region="us-east-1", endpoint_url="nonsense").s3()
