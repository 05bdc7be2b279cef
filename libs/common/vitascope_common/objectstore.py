"""Where the bytes are: one protocol over a folder and S3.

Objects are written once. Putting the same content under a key again changes nothing; putting other content there
raises ConflictError. Methods block: async services call them in threads.
"""

import contextlib
import hashlib
import mimetypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import SecretStr

from vitascope_common.errors import (
    ConfigurationError,
    CorruptObjectError,
    InvalidRequestError,
    UnavailableError,
)

CHUNK_BYTES = 256 * 1024
MAX_KEY_BYTES = 1024
MAX_SEGMENT_BYTES = 200
"""File systems allow 255 bytes in a name, some of which are ours."""
DEFAULT_MEDIA_TYPE = "application/octet-stream"


@dataclass(frozen=True)
class ObjectInfo:
    """What a store knows about an object. From `list`, the media type is a guess and sha256 is None."""

    key: str
    num_bytes: int
    media_type: str
    sha256: str | None
    modified_at: datetime


class ByteStream(Protocol):
    """Chunks of an object's bytes; `close` frees what is held, also before the end."""

    def __iter__(self) -> Iterator[bytes]: ...
    def __next__(self) -> bytes: ...
    def close(self) -> None: ...


class ObjectStore(Protocol):
    """Bytes under keys.

    Every method raises InvalidRequestError for a bad key, and UnavailableError when the storage is away or full.
    """

    def put_file(self, key: str, path: Path, media_type: str) -> ObjectInfo:
        """Store a file's bytes; idempotent. Raises: ConflictError: the key holds other content."""
        ...

    def put_bytes(self, key: str, data: bytes, media_type: str) -> ObjectInfo:
        """Store bytes; idempotent. Raises: ConflictError: the key holds other content."""
        ...

    def get_bytes(self, key: str) -> bytes:
        """Return a small object whole. Raises: ObjectNotFoundError."""
        ...

    def get_file(self, key: str, path: Path, sha256: str | None = None) -> None:
        """Write an object to a local file, which appears only when complete.

        Raises: ObjectNotFoundError; CorruptObjectError: the bytes do not have this sha256.
        """
        ...

    def open_range(self, key: str, start: int = 0, end: int | None = None) -> ByteStream:
        """Stream the bytes [start, end); None or an end past the object's means all that follow.

        Raises (at once, not at the first chunk): ObjectNotFoundError; InvalidRequestError: nothing lies in the range.
        """
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Describe an object. Raises: ObjectNotFoundError."""
        ...

    def exists(self, key: str) -> bool:
        """Tell whether the key holds an object."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key begins with the prefix (as text), in the order of their keys."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is fine."""
        ...

    def delete_prefix(self, prefix: str) -> int:
        """Remove every object below a prefix, which must end in "/"; return how many."""
        ...

    def check(self) -> None:
        """Make sure that the store can be used. Raises: UnavailableError."""
        ...


def open_store(url: str, access_key: SecretStr | None = None, secret_key: SecretStr | None = None) -> ObjectStore:
    """Open the store a URL names: `file:///folder` or `s3://bucket/prefix?endpoint=…&region=…`.

    Raises:
        ConfigurationError: the URL names no store.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    path = unquote(parts.path)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and path.strip("/") and not options:
        from vitascope_common.objectstore_folder import FolderStore  # both build on what is here

        return FolderStore(Path(path))
    if parts.scheme == "s3" and parts.hostname and options.keys() <= {"endpoint", "region"}:
        from vitascope_common.objectstore_s3 import S3Store  # boto3 takes 0.3 s to import, and a folder needs none

        return S3Store(
            bucket=parts.netloc,
            prefix=path.strip("/"),
            endpoint=options.get("endpoint"),
            region=options.get("region"),
            access_key=access_key,
            secret_key=secret_key,
        )
    raise ConfigurationError(
        "The object store URL must be file:///folder or s3://bucket/prefix?endpoint=…&region=…",
        param="object_store_url",
    )


def check_key(key: str) -> str:
    """Return a key that every store can hold.

    Keys are relative paths of visible names: no empty, "." or ".." segment, none that begins with a dot, no backslash,
    no control characters, at most 1024 bytes in UTF-8.

    Raises:
        InvalidRequestError: the key is none.
    """
    try:
        segments = [segment.encode() for segment in key.split("/")]
    except UnicodeEncodeError:
        segments = [b""]
    is_valid = (
        all(0 < len(segment) <= MAX_SEGMENT_BYTES and not segment.startswith(b".") for segment in segments)
        and sum(map(len, segments)) + len(segments) - 1 <= MAX_KEY_BYTES
        and not any(char == "\\" or ord(char) < 32 or ord(char) == 127 for char in key)
    )
    if not is_valid:
        raise InvalidRequestError("This is no object key.", param="key", detail={"key": key[:200]})
    return key


def check_prefix(prefix: str) -> str:
    """Return the beginning of a key; "" is the beginning of all. Raises: InvalidRequestError."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def check_folder_prefix(prefix: str) -> str:
    """Return a prefix that is safe to delete: "work/j1" would take "work/j10" along. Raises: InvalidRequestError."""
    if not prefix.endswith("/"):
        raise InvalidRequestError('A prefix to delete ends in "/".', param="prefix")
    return check_prefix(prefix)


def media_type_of(key: str) -> str:
    """Guess the media type from the key's ending."""
    ending = os.path.splitext(key)[1].lower()
    known = {
        ".m3u8": "application/vnd.apple.mpegurl",
        ".mpd": "application/dash+xml",
        ".m4s": "video/iso.segment",
        ".safetensors": "application/octet-stream",
        ".vtt": "text/vtt",
        ".webp": "image/webp",
    }
    return known.get(ending) or mimetypes.guess_type(f"x{ending}")[0] or DEFAULT_MEDIA_TYPE


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(key: str, found: str, expected: str | None) -> None:
    """Raise CorruptObjectError unless the hashes agree; None expects nothing."""
    if expected is not None and found != expected:
        raise CorruptObjectError(
            f"Object {key} has sha256 {found}, expected {expected}.",
            detail={"key": key, "expected": expected, "found": found},
        )


def check_range(start: int, end: int | None) -> None:
    """Raise InvalidRequestError for a range that no object could satisfy."""
    if start < 0 or (end is not None and end <= start):
        raise range_error()


def range_error() -> InvalidRequestError:
    """Return the error for a range that holds no byte of the object."""
    return InvalidRequestError("The range lies outside the object.", param="range")


@contextlib.contextmanager
def local_file(path: Path) -> Iterator[None]:
    """Translate what goes wrong while an object is written to a local file."""
    try:
        yield
    except OSError as error:
        raise UnavailableError(f"Cannot write {path}: {error.strerror}.") from error
