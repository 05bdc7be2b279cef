"""What jobs are made from, in the object store: kept before a job is admitted, and forgotten if it is not."""

import asyncio
import tempfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath

import structlog

from vitascope_common.errors import CorruptObjectError, ObjectNotFoundError, ReferenceExpiredError, VitascopeError
from vitascope_common.jobs import Artifact, Reference
from vitascope_common.objectstore import ObjectStore
from vitascope_common.references import reference_key
from vitascope_common.url_guard import UrlGuard
from vitascope_gateway import pictures
from vitascope_gateway.fetching import PictureFetcher
from vitascope_gateway.request import PICTURES, VideoRequest
from vitascope_gateway.threads import BoundedThreads

MAX_DECODING, MAX_WAITING = 2, 16
"""Requests whose pictures are decoded at once, and that wait for it. One of 40 megapixels takes 180 MiB and seconds, as
WebP 620 MiB."""

_log = structlog.stdlib.get_logger("vitascope.gateway")


class JobReferences:
    """The references of jobs. Every method raises UnavailableError when the object store is away, but for `forget`."""

    def __init__(self, objects: ObjectStore, guard: UrlGuard) -> None:
        self._objects = objects
        self._fetcher = PictureFetcher(guard)
        self._decoders = BoundedThreads("pictures", MAX_DECODING, MAX_WAITING)

    def check(self, request: VideoRequest) -> None:
        """Refuse pictures that nothing will be fetched for, whatever is there. Raises: UrlRefusedError."""
        self._fetcher.check(request.pictures)

    async def keep(self, job_id: str, tenant_id: str, request: VideoRequest) -> list[Reference]:
        """Store the pictures of a request, as its job needs them; those that lie elsewhere are fetched.

        Raises:
            InvalidRequestError: one is no picture that we read, or cannot be fetched.
            UnavailableError: too many wait to be fetched or decoded.
        """
        if not request.pictures:
            return []
        sent = await self._fetcher.all(tenant_id, request.pictures)

        def fit() -> dict[str, bytes]:
            return {name: pictures.fit(name, data, *request.size_px) for name, data in sent.items()}

        fitted = await self._decoders.run(fit)
        references = []
        for name, data in fitted.items():
            role = PICTURES[name]
            key = reference_key(job_id, f"{role}.png")
            await asyncio.to_thread(self._objects.put_bytes, key, data, pictures.MEDIA_TYPE)
            artifact = Artifact(role, "reference", pictures.MEDIA_TYPE, key, sha256(data).hexdigest(), len(data))
            references.append(Reference(role, artifact))
        return references

    async def keep_again(self, job_id: str, reference: Reference) -> Reference:
        """Copy a reference of another job, byte for byte. Raises: ReferenceExpiredError."""
        return await asyncio.to_thread(self._copy, job_id, reference)

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
