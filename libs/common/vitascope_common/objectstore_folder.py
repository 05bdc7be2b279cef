"""The object store in one folder.

Object KEY is `root/KEY`. Unfinished files lie under `root/.tmp/`, media type and hash under `root/.meta/FOLDER/.NAME`.
The last is a hint that names the file it describes (size and time); without it the media type is guessed and the hash
is unknown.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from vitascope_common.errors import ConflictError, InvalidRequestError, ObjectNotFoundError, UnavailableError
from vitascope_common.files import atomic_writer, make_folder
from vitascope_common.objectstore import (
    CHUNK_BYTES,
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

STALE_TEMP_S = 24 * 3600


class FolderStore:
    """Objects as files below one folder. Atomic: a crash leaves an object whole or absent."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temp = root / ".tmp"
        self._meta = root / ".meta"
        with self._translated(""):
            make_folder(self._temp)
            self._sweep(time.time() - STALE_TEMP_S)

    def put_file(self, key: str, path: Path, media_type: str) -> ObjectInfo:
        """Copy a file into the store; see ObjectStore."""
        try:
            source = path.open("rb")
        except FileNotFoundError as error:
            raise InvalidRequestError(f"There is no file {path} to store.", param="path") from error
        with source:
            return self._put(key, iter(lambda: source.read(CHUNK_BYTES), b""), media_type)

    def put_bytes(self, key: str, data: bytes, media_type: str) -> ObjectInfo:
        """Store bytes; see ObjectStore."""
        return self._put(key, iter((data,)), media_type)

    def get_bytes(self, key: str) -> bytes:
        """Return an object whole; see ObjectStore."""
        with self._translated(key):
            return self._path(key).read_bytes()

    def get_file(self, key: str, path: Path, sha256: str | None = None) -> None:
        """Copy an object out of the store; see ObjectStore."""
        digest = hashlib.sha256()
        with self._translated(key):
            source = self._path(key).open("rb")
        with local_file(path), source, atomic_writer(path) as target:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
            check_sha256(key, digest.hexdigest(), sha256)

    def open_range(self, key: str, start: int = 0, end: int | None = None) -> ByteStream:
        """Stream part of an object; see ObjectStore."""
        check_range(start, end)
        path = self._path(key)
        with self._translated(key):
            file = path.open("rb")
        num_bytes = os.fstat(file.fileno()).st_size
        if start >= num_bytes and start > 0:
            file.close()
            raise range_error()
        file.seek(start)
        return _FileRange(file, min(num_bytes, num_bytes if end is None else end) - start)

    def stat(self, key: str) -> ObjectInfo:
        """Describe an object; see ObjectStore."""
        with self._translated(key):
            status = self._path(key).stat()
            if not self._path(key).is_file():
                raise FileNotFoundError
        media_type, sha256 = self._read_meta(key, status)
        return _info(key, status, media_type, sha256)

    def exists(self, key: str) -> bool:
        """Tell whether the key holds an object."""
        return self._path(key).is_file()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield objects by prefix; see ObjectStore."""
        check_prefix(prefix)
        folder = prefix.rpartition("/")[0]
        return self._walk(f"{folder}/" if folder else "", prefix)

    def delete(self, key: str) -> None:
        """Remove an object; see ObjectStore."""
        path = self._path(key)
        for file, top in ((self._meta_path(key), self._meta), (path, self._root)):
            with self._translated(key), contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                file.unlink()
            _prune(file.parent, top)

    def delete_prefix(self, prefix: str) -> int:
        """Remove all below a prefix; see ObjectStore."""
        keys = [info.key for info in self.list(check_folder_prefix(prefix))]
        for key in keys:
            self.delete(key)
        return len(keys)

    def check(self) -> None:
        """Write and remove a small file."""
        probe = self._temp / f"check-{os.urandom(8).hex()}"
        with self._translated(""):
            probe.write_bytes(b"ok")
            probe.unlink()

    def _put(self, key: str, chunks: Iterator[bytes], media_type: str) -> ObjectInfo:
        path = self._path(key)
        if not self._temp.is_dir():  # else the folder would be made anew beneath the place where it is to be mounted
            raise UnavailableError("The object store folder is gone.")
        digest = hashlib.sha256()
        is_new = True
        with self._translated(key):
            try:
                with atomic_writer(path, temp_folder=self._temp, exclusive=True) as file:
                    for chunk in chunks:
                        digest.update(chunk)
                        file.write(chunk)
                    file.flush()
                    status = os.fstat(file.fileno())
            except FileExistsError:
                is_new = False
        sha256 = digest.hexdigest()
        if is_new:
            self._write_meta(key, status, media_type, sha256)
            return _info(key, status, media_type, sha256)
        if path.is_dir():
            raise ConflictError(f"Other objects lie below {key}.", param="key", detail={"key": key})
        old = self.stat(key)
        if (old.sha256 or sha256_of(path)) != sha256:
            raise ConflictError(f"Object {key} already holds other content.", param="key", detail={"key": key})
        return old

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if not key or not self._temp.is_dir():  # moved or not mounted: that says nothing about an object
                raise UnavailableError("The object store folder is gone.") from error
            if isinstance(error, NotADirectoryError):
                raise ConflictError(
                    f"Object {key} would lie below another object.", param="key", detail={"key": key}
                ) from error
            raise ObjectNotFoundError(f"There is no object {key}.", detail={"key": key}) from error
        except OSError as error:
            raise UnavailableError(f"The object store folder cannot be used: {error.strerror}.") from error

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(self._root / folder) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return
        entries.sort(key=lambda entry: entry.name + "/" if entry.is_dir() else entry.name)
        for entry in entries:
            key = folder + entry.name
            if entry.is_dir():
                if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                    yield from self._walk(f"{key}/", prefix)
            elif key.startswith(prefix):
                with contextlib.suppress(FileNotFoundError):  # deleted since
                    yield _info(key, entry.stat(), media_type_of(key), None)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _meta_path(self, key: str) -> Path:
        folder, _, name = key.rpartition("/")
        return self._meta / folder / f".{name}"  # no key's folder begins with a dot

    def _write_meta(self, key: str, status: os.stat_result, media_type: str, sha256: str) -> None:
        meta = {
            "num_bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "media_type": media_type,
            "sha256": sha256,
        }
        with self._translated(key), atomic_writer(self._meta_path(key), temp_folder=self._temp, durable=False) as file:
            file.write(json.dumps(meta).encode())

    def _read_meta(self, key: str, status: os.stat_result) -> tuple[str, str | None]:
        try:
            meta = json.loads(self._meta_path(key).read_bytes())
            if (meta["num_bytes"], meta["mtime_ns"]) == (status.st_size, status.st_mtime_ns):
                return str(meta["media_type"]), str(meta["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return media_type_of(key), None

    def _sweep(self, before_s: float) -> None:
        """Remove what a crash left unfinished long ago."""
        for temp in self._temp.iterdir():
            with contextlib.suppress(OSError):
                if temp.stat().st_mtime < before_s:
                    temp.unlink()


class _FileRange:
    def __init__(self, file: BinaryIO, num_bytes: int) -> None:
        self._file = file
        self._left = num_bytes

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = b"" if self._file.closed else self._file.read(min(CHUNK_BYTES, self._left))
        if not chunk:
            self.close()
            raise StopIteration
        self._left -= len(chunk)
        return chunk

    def close(self) -> None:
        self._file.close()


def _info(key: str, status: os.stat_result, media_type: str, sha256: str | None) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, media_type, sha256, datetime.fromtimestamp(status.st_mtime, UTC))


def _prune(folder: Path, top: Path) -> None:
    """Remove folders that have become empty, up to the top."""
    with contextlib.suppress(OSError):
        while folder != top:
            folder.rmdir()
            folder = folder.parent
