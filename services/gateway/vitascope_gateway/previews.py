"""Previews: what a video that is being made is going to look like, as its worker leaves it in the object store."""

import re

from vitascope_common.errors import ObjectNotFoundError, VideoNotReadyError
from vitascope_common.jobs import GENERATE
from vitascope_common.objectstore import ObjectInfo, ObjectStore
from vitascope_gateway.places import Places
from vitascope_gateway.service import JobRecord
from vitascope_gateway.threads import BoundedThreads

MEDIA_TYPE = "image/webp"
MAX_BYTES = 64_000
MAX_LISTED = 16
"""A worker keeps three."""
SHOWN_PHASES = frozenset({"loading", "denoising"})
"""SQL hears of a phase with the next heartbeat, a follower at once of the first preview: often it is loading still."""
NUM_THREADS = 2
MAX_AT_ONCE, MAX_OF_TENANT = 66, 16
"""Of all that is read or waits for it."""

_FIRST = GENERATE.stages[0].name
_NAME = re.compile(r"preview-[0-9]{6,9}\.webp", re.ASCII)


def preview_path(job_id: str) -> str:
    """Return where the API answers with the newest preview."""
    return f"/v1/videos/{job_id}/preview"


def are_shown(record: JobRecord) -> bool:
    """Decide whether whoever may follow a video may see its previews now: nothing else decides that."""
    return record.has_previews and record.stage == _FIRST and record.phase in SHOWN_PHASES


class Previews:
    """Reads the newest preview of a job."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._threads = BoundedThreads(
            "previews", NUM_THREADS, Places("previews are being read", MAX_AT_ONCE, MAX_OF_TENANT)
        )

    async def newest(self, record: JobRecord) -> bytes:
        """Return the newest WebP of the running attempt.

        Raises:
            VideoNotReadyError: there is none yet, none any more, or none that may be seen.
            QuotaExceededError, UnavailableError: too many are being read, of this tenant or of all.
            UnavailableError: the object store is away.
        """
        found = await self._threads.run(record.tenant_id, self._read, record) if are_shown(record) else None
        if found is None:
            raise VideoNotReadyError(
                "There is no preview of this video now; a progress event says when there is one.", param="video_id"
            )
        return found

    def _read(self, record: JobRecord) -> bytes | None:
        folder = f"work/{record.job_id}/{_FIRST}/0/{record.attempt}/"
        listed: list[ObjectInfo] = []
        for one in self._objects.list(f"{folder}preview-"):
            if _NAME.fullmatch(one.key.removeprefix(folder)) and one.num_bytes <= MAX_BYTES:
                listed = [*listed, one][-MAX_LISTED:]
        for one in reversed(listed):
            try:
                stream = self._objects.open_range(one.key, 0, MAX_BYTES)
            except ObjectNotFoundError:  # replaced meanwhile
                continue
            try:
                return b"".join(stream)
            finally:
                stream.close()
        return None
