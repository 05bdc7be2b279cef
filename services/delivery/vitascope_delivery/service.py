"""The use case of delivery: which bytes does a link open?

SQL is asked every time, so a deleted video is gone at once; a manifest is immutable and cached by its hash. Object keys
come from the manifest that SQL names, never from a URL.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import anyio.to_thread
import structlog

from vitascope_common import ids
from vitascope_common.errors import CorruptObjectError, NotFoundError, VideoExpiredError, VideoNotReadyError
from vitascope_common.jobs import ACTIVE_JOB, JobState
from vitascope_common.objectstore import ByteStream, ObjectStore
from vitascope_common.renditions import RENDITIONS

log = structlog.stdlib.get_logger("vitascope.delivery")

MANIFEST_SCHEMA = "vitascope.manifest/1"
MAX_CACHED_MANIFESTS = 1024


@dataclass(frozen=True)
class Publication:
    """What SQL says about a job that may be published."""

    job_id: str
    state: JobState
    is_deleted: bool
    expires_at_ms: int | None
    manifest_key: str | None
    manifest_sha256: str | None
    traceparent: str


@dataclass(frozen=True)
class MediaFile:
    """One file of a manifest."""

    key: str
    media_type: str
    sha256: str
    num_bytes: int
    filename: str


class Publications(Protocol):
    """Where jobs are looked up."""

    async def find(self, job_id: str) -> Publication | None:
        """Return a job, deleted ones included. Raises UnavailableError."""
        ...

    async def check(self) -> None:
        """Raise UnavailableError unless jobs can be looked up."""
        ...


class Delivery:
    """Finds and opens published files."""

    def __init__(self, publications: Publications, store: ObjectStore) -> None:
        self._publications = publications
        self._store = store
        self._manifests: OrderedDict[str, Mapping[str, MediaFile]] = OrderedDict()

    async def find(self, job_id: str, now_ms: int) -> Publication:
        """Return a job whose files may be served.

        Raises: NotFoundError, VideoNotReadyError, VideoExpiredError; UnavailableError: SQL is away.
        """
        found = await self._publications.find(job_id) if ids.is_job_id(job_id) else None
        if found is None or found.is_deleted:
            raise NotFoundError("There is no such video.")
        if found.state in ACTIVE_JOB:
            raise VideoNotReadyError
        if found.state is not JobState.COMPLETED or not found.manifest_key or not found.manifest_sha256:
            raise NotFoundError("This job has produced no video.")
        if found.expires_at_ms is not None and found.expires_at_ms <= now_ms:
            raise VideoExpiredError
        return found

    async def file(self, job: Publication, variant: str) -> MediaFile:
        """Return the file of a variant.

        Raises: NotFoundError; CorruptObjectError: the manifest is not the one that was published; UnavailableError.
        """
        cache_key = f"{job.job_id}/{job.manifest_sha256}"
        files = self._manifests.get(cache_key)
        if files is None:
            data = await anyio.to_thread.run_sync(self._store.get_bytes, job.manifest_key or "")
            files = read_manifest(data, job)
            self._manifests[cache_key] = files
            while len(self._manifests) > MAX_CACHED_MANIFESTS:
                self._manifests.popitem(last=False)
        else:
            self._manifests.move_to_end(cache_key)
        if variant not in files:
            raise NotFoundError(f"This video has no {variant}.", param="variant")
        return files[variant]

    async def open(self, file: MediaFile, start: int, end: int) -> ByteStream:
        """Open the bytes [start, end) of a file. Raises: ObjectNotFoundError, UnavailableError."""
        return await anyio.to_thread.run_sync(self._store.open_range, file.key, start, end)

    async def check(self) -> None:
        """Raise UnavailableError unless SQL and the object store answer."""
        await self._publications.check()
        await anyio.to_thread.run_sync(self._store.check, abandon_on_cancel=True)


def read_manifest(data: bytes, job: Publication) -> Mapping[str, MediaFile]:
    """Return the files by variant; keys outside the job's own folder are refused. Raises: CorruptObjectError."""
    if hashlib.sha256(data).hexdigest() != job.manifest_sha256:
        raise CorruptObjectError(f"The manifest of {job.job_id} is not the one that was published.")
    try:
        manifest: dict[str, Any] = json.loads(data)
        if manifest["schema"] != MANIFEST_SCHEMA or manifest["job_id"] != job.job_id:
            raise ValueError("it is another's, or of another version")
        files = {
            variant: MediaFile(
                str(file["key"]),
                RENDITIONS[variant].media_type,
                str(file["sha256"]),
                int(file["num_bytes"]),
                f"{job.job_id}.{RENDITIONS[variant].suffix}",
            )
            for variant, file in manifest["files"].items()
            if variant in RENDITIONS  # nothing else is ever sent with our name on it
        }
        if not all(file.key.startswith(f"videos/{job.job_id}/") for file in files.values()):
            raise ValueError("it names files that are not the job's")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptObjectError(f"The manifest of {job.job_id} cannot be read: {error}") from error
    return files
