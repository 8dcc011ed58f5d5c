"""The lake's bucket, on S3."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from runner.adapters.aws import aws_errors, error_code
from runner.model.errors import DataError, InfrastructureError, TransientError
from runner.ports import StoredObject

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import GetObjectOutputTypeDef, ListObjectsV2OutputTypeDef

_CONDITIONAL_TRIES = 5
_CONDITIONAL_PAUSE_S = 0.2
_LARGEST_PUT_BYTES = 8 * 1024 * 1024
"""A larger file goes up in parts, side by side; for a smaller one the threads for that would cost more than it does."""
_LARGEST_DELETE = 1000
"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html"""


class S3Objects:
    """Implements `Objects`. Needs s3:ListBucket: without it S3 answers 403 for a key that is missing."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def check(self) -> None:
        with self._errors(""):
            self._require_bucket()

    def get(self, key: str, *, at_most: int | None = None) -> bytes | None:
        with self._errors(key):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key)
            except self._client.exceptions.NoSuchKey:
                return None
            if at_most is not None and self._length(key, answer) > at_most:
                answer["Body"].close()
                came = f"{self._length(key, answer):,}"
                raise DataError(f"object {self.uri(key)}: expected at most {at_most:,} bytes, got {came}")
            return answer["Body"].read()

    def get_range(self, key: str, start: int, end: int) -> bytes | None:
        from botocore.exceptions import ClientError

        with self._errors(key):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=key, Range=f"bytes={start}-{end - 1}")
            except self._client.exceptions.NoSuchKey:
                return None
            except ClientError as exc:
                if error_code(exc) != "InvalidRange":
                    raise
                return b""  # it begins after the object's end
            self._length(key, answer)
            return answer["Body"].read()

    def _length(self, key: str, answer: GetObjectOutputTypeDef) -> int:
        """An answer that was cut off before it says its length would read as an empty object."""
        if "ContentLength" not in answer:
            raise TransientError(f"object {self.uri(key)}: expected a whole answer, got one without its length")
        return answer["ContentLength"]

    def put(self, key: str, body: bytes) -> None:
        with self._errors(key):
            self._client.put_object(Bucket=self._bucket, Key=key, Body=body)

    def put_if_absent(self, key: str, body: bytes) -> bool:
        from botocore.exceptions import ClientError

        for _ in range(_CONDITIONAL_TRIES):
            with self._errors(key):
                try:
                    self._client.put_object(Bucket=self._bucket, Key=key, Body=body, IfNoneMatch="*")
                    return True
                except ClientError as exc:
                    # 412: an object is there. 409: another conditional write of this key was under way.
                    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
                    if error_code(exc) not in {"PreconditionFailed", "ConditionalRequestConflict"}:
                        raise
            # botocore retries a request whose answer was lost, and then meets the object that it made itself.
            there = self.get(key)
            if there is not None:
                return there == body
            time.sleep(_CONDITIONAL_PAUSE_S)
        raise TransientError(
            f"object {self.uri(key)}: expected to create it, got {_CONDITIONAL_TRIES} conflicts and no object"
        )

    def list(self, prefix: str) -> list[str]:
        with self._errors(prefix):
            return sorted(entry["Key"] for page in self._pages(prefix) for entry in page.get("Contents", []))

    def folders(self, prefix: str) -> Iterator[str]:
        """The names right below `prefix` that end in a slash, without it, in order; what is in them is not listed."""
        with self._errors(prefix):
            for page in self._pages(prefix, delimiter="/"):
                for entry in page.get("CommonPrefixes", []):
                    yield entry["Prefix"][len(prefix) : -1]

    def entries(self, prefix: str) -> Iterator[StoredObject]:
        """What is below `prefix`, in order of the keys, page by page."""
        with self._errors(prefix):
            for page in self._pages(prefix):
                for entry in page.get("Contents", []):
                    yield StoredObject(key=entry["Key"], bytes=entry["Size"], stored_at=entry["LastModified"])

    def _pages(self, prefix: str, delimiter: str = "") -> Iterator[ListObjectsV2OutputTypeDef]:
        pages = self._client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self._bucket, Prefix=prefix, Delimiter=delimiter):
            page["IsTruncated"]  # every whole answer has it; one that was cut off must not read as an empty list
            yield page

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; one that is gone is no error. In a bucket that keeps versions, those stay."""
        for start in range(0, len(keys), _LARGEST_DELETE):
            batch = keys[start : start + _LARGEST_DELETE]
            with self._errors(batch[0]):
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                )
            for refused in answer.get("Errors", []):
                key, code = refused.get("Key", ""), refused.get("Code", "")
                raise InfrastructureError(
                    f"object {self.uri(key)}: expected S3 to delete it, got {code}: {refused.get('Message', '')}",
                    hint="check what the policy of these credentials allows",
                )

    def stored_at(self, key: str) -> datetime | None:
        """When the object was put, by S3's clock, to the second; None if there is none."""
        from botocore.exceptions import ClientError

        with self._errors(key):
            try:
                return self._client.head_object(Bucket=self._bucket, Key=key)["LastModified"]
            except ClientError as exc:
                if error_code(exc) != "404":
                    raise
                self._require_bucket()
                return None

    def exists(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        with self._errors(key):
            try:
                self._client.head_object(Bucket=self._bucket, Key=key)
            except ClientError as exc:
                if error_code(exc) != "404":
                    raise
                self._require_bucket()
                return False
        return True

    def put_file(self, key: str, path: Path) -> None:
        # S3 checks what comes, or each part of it, against the checksum: bytes that changed on the way are refused.
        with self._errors(key):
            if path.stat().st_size <= _LARGEST_PUT_BYTES:
                body = path.read_bytes()
                self._client.put_object(Bucket=self._bucket, Key=key, Body=body, ChecksumAlgorithm="SHA256")
            else:
                self._client.upload_file(str(path), self._bucket, key, ExtraArgs={"ChecksumAlgorithm": "SHA256"})

    def get_file(self, key: str, path: Path) -> None:
        from botocore.exceptions import ClientError

        try:
            with self._errors(key):
                try:
                    # It downloads to a name beside `path` and renames that when whole.
                    self._client.download_file(self._bucket, key, str(path))
                    return
                except ClientError as exc:
                    if error_code(exc) != "404":
                        raise
                    self._require_bucket()
        except OSError as exc:
            raise InfrastructureError(f"{path}: expected to store object {self.uri(key)}, got {exc}") from exc
        raise FileNotFoundError(self.uri(key))

    def create_bucket(self) -> None:
        """Make the bucket unless it is there, and keep its versions. One of another account is an error."""
        region = self._client.meta.region_name
        with self._errors(""):
            try:
                if region == "us-east-1":  # the one region that may not be named here
                    self._client.create_bucket(Bucket=self._bucket)
                else:
                    self._client.create_bucket(
                        Bucket=self._bucket,
                        CreateBucketConfiguration={"LocationConstraint": region},  # type: ignore[typeddict-item]
                    )
            except self._client.exceptions.BucketAlreadyOwnedByYou:
                pass
            self._client.put_bucket_versioning(Bucket=self._bucket, VersioningConfiguration={"Status": "Enabled"})

    def _require_bucket(self) -> None:
        """S3 answers a HEAD with a bare 404, be it the key or the bucket that is missing: look again."""
        from botocore.exceptions import ClientError

        try:
            self._client.head_bucket(Bucket=self._bucket)
        except ClientError as exc:
            if error_code(exc) == "404":
                raise self._no_bucket() from exc
            raise

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import ClientError

        with aws_errors(self._client, f"object {self.uri(key)}" if key else f"bucket {self._bucket}"):
            try:
                yield
            except (Boto3Error, ClientError) as exc:
                if error_code(exc) == "NoSuchBucket":
                    raise self._no_bucket() from exc
                raise

    def _no_bucket(self) -> InfrastructureError:
        return InfrastructureError(
            f"bucket {self._bucket} does not exist at {self._client.meta.endpoint_url}",
            hint="RUNNER_BUCKET names the bucket; `runner up` makes it in the embedded services",
        )
