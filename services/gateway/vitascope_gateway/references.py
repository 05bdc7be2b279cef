"""What jobs are made from, in the object store: kept before a job is admitted, and forgotten if it is not."""

import asyncio
import tempfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath

import structlog

from vitascope_common.errors import (
    CorruptObjectError,
    DeadlineError,
    InvalidMediaError,
    ObjectNotFoundError,
    ReferenceExpiredError,
    UnavailableError,
    VitascopeError,
)
from vitascope_common.jobs import Artifact, Reference
from vitascope_common.media_probe import CLIP_MEDIA_TYPE, MediaLimits, read_clip
from vitascope_common.objectstore import ObjectStore, sha256_of
from vitascope_common.references import ReferenceRole, reference_key
from vitascope_common.url_guard import UrlGuard
from vitascope_gateway import pictures
from vitascope_gateway.body import MAX_BODY_BYTES
from vitascope_gateway.fetching import PictureFetcher
from vitascope_gateway.places import Places
from vitascope_gateway.request import MAX_EXTENDED_S, PICTURES, SourceClip, VideoRequest
from vitascope_gateway.threads import BoundedThreads

MAX_DECODING, MAX_WAITING, MAX_PICTURES_OF_TENANT = 2, 16, 6
"""Requests whose pictures are decoded at once, and that wait for it; and both, of one tenant. One of 40 megapixels
takes 180 MiB and seconds, as WebP 620 MiB."""
MAX_READING, MAX_WAITING_CLIPS, MAX_CLIPS_OF_TENANT = 2, 6, 3
"""Clips that are read at once, each in a process of its own, and that wait for it, in memory; and both, of one tenant:
a clip may take minutes, and whoever comes next should wait for few of another's."""
MAX_COPYING, MAX_WAITING_COPIES, MAX_COPIES_OF_TENANT = 4, 60, 16
"""Files of videos that are copied for another one at once, and that wait for it; and both, of one tenant."""
CLIP_LIMITS = MediaLimits(
    max_bytes=MAX_BODY_BYTES,
    max_pixels=3840 * 2160,
    max_duration_s=MAX_EXTENDED_S,
    max_frames=60 * MAX_EXTENDED_S,
    cpu_s=60,
    wall_s=120.0,
)

_log = structlog.stdlib.get_logger("vitascope.gateway")


class JobReferences:
    """The references of jobs. Every method raises UnavailableError when the object store is away, but for `forget`."""

    def __init__(self, objects: ObjectStore, guard: UrlGuard) -> None:
        self._objects = objects
        self._fetcher = PictureFetcher(guard)
        decoded = Places("pictures are being decoded", MAX_DECODING + MAX_WAITING, MAX_PICTURES_OF_TENANT)
        read = Places("videos are being read", MAX_READING + MAX_WAITING_CLIPS, MAX_CLIPS_OF_TENANT)
        copied = Places("videos are being copied", MAX_COPYING + MAX_WAITING_COPIES, MAX_COPIES_OF_TENANT)
        self._copiers = BoundedThreads("copies", MAX_COPYING, copied)
        self._decoders = BoundedThreads("pictures", MAX_DECODING, decoded)
        self._readers = BoundedThreads("clips", MAX_READING, read)

    def check(self, request: VideoRequest) -> None:
        """Refuse pictures that nothing will be fetched for, whatever is there. Raises: UrlRefusedError."""
        self._fetcher.check(request.pictures)

    async def keep(self, job_id: str, tenant_id: str, request: VideoRequest) -> list[Reference]:
        """Store the pictures of a request, as its job needs them; those that lie elsewhere are fetched.

        Raises:
            InvalidRequestError: one is no picture that we read, or cannot be fetched.
            QuotaExceededError, UnavailableError: too many wait to be fetched or decoded, of this tenant or of all.
        """
        if not request.pictures:
            return []
        sent = await self._fetcher.all(tenant_id, request.pictures)

        def fit() -> dict[str, bytes]:
            return {name: pictures.fit(name, data, *request.size_px) for name, data in sent.items()}

        fitted = await self._decoders.run(tenant_id, fit)
        references = []
        for name, data in fitted.items():
            role = PICTURES[name]
            key = reference_key(job_id, f"{role}.png")
            await asyncio.to_thread(self._objects.put_bytes, key, data, pictures.MEDIA_TYPE)
            artifact = Artifact(role, "reference", pictures.MEDIA_TYPE, key, sha256(data).hexdigest(), len(data))
            references.append(Reference(role, artifact))
        return references

    async def keep_clip(
        self, job_id: str, tenant_id: str, role: ReferenceRole, data: bytes, request: VideoRequest
    ) -> tuple[Reference, SourceClip]:
        """Store a clip that came with a request at the size and rate of its model, as long as the model can use.

        Raises:
            InvalidMediaError: it is no clip that can be read.
            QuotaExceededError, UnavailableError: too many wait to be read, of this tenant or of all.
        """
        fps, allowed = request.card.defaults.fps, request.card.num_frames.values()
        num_frames = max(allowed) if role == ReferenceRole.CHANGE else MAX_EXTENDED_S * fps
        try:
            size_px = request.size_px
            return await self._readers.run(tenant_id, self._read, job_id, role, data, size_px, fps, num_frames)
        except InvalidMediaError as error:
            raise InvalidMediaError(f"video cannot be used. {error.message}", param="video") from error
        except DeadlineError as error:
            raise UnavailableError("The video could not be read in time; try again.") from error

    def _read(
        self, job_id: str, role: ReferenceRole, data: bytes, size_px: tuple[int, int], fps: int, num_frames: int
    ) -> tuple[Reference, SourceClip]:
        key, (width_px, height_px) = reference_key(job_id, f"{role}.mkv"), size_px
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip"
            clip = read_clip(
                data, path, CLIP_LIMITS, width_px=width_px, height_px=height_px, fps=fps, num_frames=num_frames
            )
            info = self._objects.put_file(key, path, CLIP_MEDIA_TYPE)
            artifact = Artifact(role, "reference", CLIP_MEDIA_TYPE, key, sha256_of(path), info.num_bytes)
        return Reference(role, artifact), SourceClip(clip.num_frames, fps)

    async def keep_again(self, job_id: str, tenant_id: str, reference: Reference) -> Reference:
        """Copy a reference of another job, byte for byte.

        Raises:
            ReferenceExpiredError: it is not there any more.
            QuotaExceededError, UnavailableError: too many are being copied, of this tenant or of all.
        """
        return await self._copiers.run(tenant_id, self._copy, job_id, reference)

    def _copy(self, job_id: str, reference: Reference) -> Reference:
        old = reference.artifact
        key = reference_key(job_id, PurePosixPath(old.key).name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "reference"
            try:
                self._objects.get_file(old.key, path, old.sha256)
            except (ObjectNotFoundError, CorruptObjectError) as error:
                raise ReferenceExpiredError from error
            self._objects.put_file(key, path, old.media_type)
        return replace(reference, artifact=replace(old, key=key))

    async def forget(self, job_id: str) -> None:
        """Delete what was stored for a job that is not to be, if that can be done."""
        try:
            await asyncio.to_thread(self._objects.delete_prefix, reference_key(job_id, ""))
        except VitascopeError as error:
            _log.warning("references.left", job=job_id, code=error.code)
