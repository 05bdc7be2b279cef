"""The object store over S3 and what speaks its protocol.

An object is written with `If-None-Match: *`, so that of two writers one wins. Servers that refuse the header (OpenStack
Swift among them) get a look before the write instead; there, two writers of different content at the same moment would
leave the later one's. Our keys contain the attempt, so two such writers do not exist.

The SHA-256 travels as the object's metadata `sha256`. Objects are removed one by one: the bulk call is what S3-alike
servers most often lack. The credentials need ListBucket as well: without it, S3 answers 403 where nothing is.
"""

import base64
import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import boto3
import botocore.exceptions
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from pydantic import SecretStr
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

from vitascope_common.errors import (
    ConfigurationError,
    ConflictError,
    InvalidRequestError,
    ObjectNotFoundError,
    UnavailableError,
)
from vitascope_common.files import atomic_writer
from vitascope_common.objectstore import (
    CHUNK_BYTES,
    DEFAULT_MEDIA_TYPE,
    ByteStream,
    ObjectInfo,
    check_folder_prefix,
    check_key,
    check_prefix,
    check_range,
    check_sha256,
    local_file,
    media_type_of,
    range_error,
    sha256_of,
)

CONNECT_TIMEOUT_S = 3
READ_TIMEOUT_S = 30
NUM_ATTEMPTS = 4
MULTIPART_BYTES = 64 * 1024 * 1024
"""Larger files go up in parts of this size."""
MAX_PARTS = 10_000
PAGE_KEYS = 1000

_MISSING = frozenset({"NoSuchKey", "NotFound", "404"})
_EXISTS = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict"})
_NO_CONDITION = frozenset({"NotImplemented", "501"})
_NO_RANGE = frozenset({"InvalidRange", "416"})


class S3Store:
    """Objects in one bucket, below an optional prefix. Thread-safe."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        region: str | None = None,
        access_key: SecretStr | None = None,
        secret_key: SecretStr | None = None,
    ) -> None:
        if (access_key is None) != (secret_key is None):
            raise ConfigurationError("The S3 access key and secret key go together.", param="s3_access_key")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._has_condition = True
        # S3-alikes want the bucket in the path and often do not know the checksums that AWS wants by default.
        alike: dict[str, Any] = {
            "s3": {"addressing_style": "path"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        try:
            self._client: Any = boto3.client(
                "s3",
                endpoint_url=endpoint,
                region_name=region or ("us-east-1" if endpoint else None),
                aws_access_key_id=access_key and access_key.get_secret_value(),
                aws_secret_access_key=secret_key and secret_key.get_secret_value(),
                config=Config(
                    connect_timeout=CONNECT_TIMEOUT_S,
                    read_timeout=READ_TIMEOUT_S,
                    retries={"mode": "standard", "total_max_attempts": NUM_ATTEMPTS},
                    max_pool_connections=32,
                    **(alike if endpoint else {}),
                ),
            )
        except (ValueError, botocore.exceptions.BotoCoreError) as error:
            raise ConfigurationError(f"The S3 store cannot be opened: {error}", param="object_store_url") from error

    def put_file(self, key: str, path: Path, media_type: str) -> ObjectInfo:
        """Upload a file; see ObjectStore."""
        check_key(key)
        try:
            sha256, num_bytes = sha256_of(path), path.stat().st_size
            source = path.open("rb")
        except FileNotFoundError as error:
            raise InvalidRequestError(f"There is no file {path} to store.", param="path") from error
        with source:
            return self._put(key, source, num_bytes, sha256, media_type)

    def put_bytes(self, key: str, data: bytes, media_type: str) -> ObjectInfo:
        """Upload bytes; see ObjectStore."""
        return self._put(check_key(key), data, len(data), hashlib.sha256(data).hexdigest(), media_type)

    def get_bytes(self, key: str) -> bytes:
        """Return an object whole; see ObjectStore."""
        with _translated(key):
            data: bytes = self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"].read()
            return data

    def get_file(self, key: str, path: Path, sha256: str | None = None) -> None:
        """Download an object in parallel ranges; see ObjectStore."""
        full_key = self._key(key)
        with local_file(path), atomic_writer(path) as target:
            with _translated(key):
                self._client.download_fileobj(self._bucket, full_key, target, Config=TransferConfig(max_concurrency=4))
            if sha256 is not None:
                target.flush()
                check_sha256(key, sha256_of(Path(target.name)), sha256)

    def open_range(self, key: str, start: int = 0, end: int | None = None) -> ByteStream:
        """Stream part of an object; see ObjectStore."""
        check_range(start, end)
        full_key = self._key(key)
        with _translated(key):
            if start == 0 and end is None:
                return _Body(key, self._client.get_object(Bucket=self._bucket, Key=full_key)["Body"])
            last = "" if end is None else end - 1
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=full_key, Range=f"bytes={start}-{last}")
            except botocore.exceptions.ClientError as error:
                if _code(error) not in _NO_RANGE or start > 0:
                    raise
                answer = self._client.get_object(Bucket=self._bucket, Key=full_key)  # an empty object has no ranges
            return _Body(key, answer["Body"])

    def stat(self, key: str) -> ObjectInfo:
        """Describe an object; see ObjectStore."""
        with _translated(key):
            head = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
        return ObjectInfo(
            key=key,
            num_bytes=head["ContentLength"],
            media_type=head.get("ContentType") or DEFAULT_MEDIA_TYPE,
            sha256=head.get("Metadata", {}).get("sha256"),
            modified_at=head["LastModified"],
        )

    def exists(self, key: str) -> bool:
        """Tell whether the key holds an object."""
        try:
            self.stat(key)
        except ObjectNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield objects by prefix, page by page; see ObjectStore."""
        full_prefix = self._prefix + check_prefix(prefix)
        return self._list(full_prefix)

    def delete(self, key: str) -> None:
        """Remove an object; see ObjectStore."""
        full_key = self._key(key)
        with contextlib.suppress(ObjectNotFoundError), _translated(key):
            self._client.delete_object(Bucket=self._bucket, Key=full_key)

    def delete_prefix(self, prefix: str) -> int:
        """Remove all below a prefix; see ObjectStore."""
        keys = [info.key for info in self.list(check_folder_prefix(prefix))]
        for key in keys:
            self.delete(key)
        return len(keys)

    def check(self) -> None:
        """Ask for the bucket."""
        try:
            with _translated(self._bucket):
                self._client.head_bucket(Bucket=self._bucket)
        except ObjectNotFoundError as error:
            raise UnavailableError(f"There is no bucket {self._bucket}.") from error

    def _list(self, full_prefix: str) -> Iterator[ObjectInfo]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=full_prefix, PaginationConfig={"PageSize": PAGE_KEYS}
        )
        with _translated(full_prefix):
            for page in pages:
                for found in page.get("Contents", ()):
                    key = found["Key"].removeprefix(self._prefix)
                    yield ObjectInfo(key, found["Size"], media_type_of(key), None, found["LastModified"])

    def _put(self, key: str, body: bytes | BinaryIO, num_bytes: int, sha256: str, media_type: str) -> ObjectInfo:
        with contextlib.suppress(ObjectNotFoundError):
            return self._same(key, num_bytes, sha256)
        with _translated(key):
            try:
                self._write(key, body, num_bytes, sha256, media_type)
            except botocore.exceptions.ClientError as error:
                if _code(error) in _NO_CONDITION and self._has_condition:
                    self._has_condition = False
                    if not isinstance(body, bytes):
                        body.seek(0)
                    self._write(key, body, num_bytes, sha256, media_type)
                elif _code(error) in _EXISTS:
                    return self._same(key, num_bytes, sha256)
                else:
                    raise
        return self.stat(key)

    def _write(self, key: str, body: bytes | BinaryIO, num_bytes: int, sha256: str, media_type: str) -> None:
        condition: Any = {"IfNoneMatch": "*"} if self._has_condition else {}
        target: Any = {"Bucket": self._bucket, "Key": self._key(key)}
        about: Any = {"ContentType": media_type, "Metadata": {"sha256": sha256}}
        if isinstance(body, bytes) or num_bytes <= MULTIPART_BYTES:
            self._client.put_object(**target, **about, **condition, Body=body)
            return
        part_bytes = max(MULTIPART_BYTES, -(-num_bytes // MAX_PARTS))
        target["UploadId"] = self._client.create_multipart_upload(**target, **about)["UploadId"]
        try:
            parts: list[Any] = []
            while chunk := body.read(part_bytes):
                number = len(parts) + 1
                digest = base64.b64encode(hashlib.md5(chunk, usedforsecurity=False).digest()).decode()
                etag = self._client.upload_part(**target, PartNumber=number, Body=chunk, ContentMD5=digest)["ETag"]
                parts.append({"PartNumber": number, "ETag": etag})
            self._client.complete_multipart_upload(**target, **condition, MultipartUpload={"Parts": parts})
        except BaseException:
            with contextlib.suppress(botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError):
                self._client.abort_multipart_upload(**target)
            raise

    def _same(self, key: str, num_bytes: int, sha256: str) -> ObjectInfo:
        """Return the object that is there if it has this content. Raises: ConflictError."""
        old = self.stat(key)
        if old.num_bytes == num_bytes:
            found = old.sha256
            if found is None:
                digest = hashlib.sha256()
                for chunk in self.open_range(key):
                    digest.update(chunk)
                found = digest.hexdigest()
            if found == sha256:
                return old
        raise ConflictError(f"Object {key} already holds other content.", param="key", detail={"key": key})

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)


class _Body:
    """A response being read; failures on the way are translated like all others."""

    def __init__(self, key: str, body: Any) -> None:
        self._key = key
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with _translated(self._key):
            chunk: bytes = self._body.read(CHUNK_BYTES)
        if not chunk:
            self.close()
            raise StopIteration
        return chunk

    def close(self) -> None:
        self._body.close()


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except botocore.exceptions.ClientError as error:
        code = _code(error)
        if code in _MISSING:
            raise ObjectNotFoundError(f"There is no object {key}.", detail={"key": key}) from error
        if code in _NO_RANGE:
            raise range_error() from error
        raise UnavailableError(f"The object store refused the request: {code}.", detail={"s3_code": code}) from error
    except (botocore.exceptions.BotoCoreError, Boto3Error, RetriesExceededError, S3DownloadFailedError) as error:
        raise UnavailableError(f"The object store does not answer: {type(error).__name__}.") from error
