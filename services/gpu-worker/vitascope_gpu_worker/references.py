"""What a clip is made from besides words: pictures and clips, fetched, compared with their hash, decoded into frames.

Whoever asks decides what waits for a store that is away, and how long decoding may take.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from vitascope_common.errors import InvalidRequestError
from vitascope_common.jobs import Artifact, GenerateParams, Reference, Task
from vitascope_common.objectstore import ObjectStore, check_sha256
from vitascope_common.references import ReferenceRole


@dataclass(frozen=True)
class WantedFrames:
    """A clip in a file, and which of its frames are wanted how: at most so many, covering a size, at a rate."""

    path: Path
    media_type: str
    size_px: tuple[int, int]
    fps: int
    num_frames: int
    check: Callable[[], None]
    """Called while the file is read; what it raises ends the reading."""


class DecodesReferences(Protocol):
    """Decodes pictures and clips into frames of a size."""

    def picture(self, data: bytes, width_px: int, height_px: int) -> Tensor: ...
    def clip(self, wanted: WantedFrames, *, is_end: bool = False) -> Tensor: ...
    def beginning(self, wanted: WantedFrames) -> Generator[Tensor]: ...


class ReferenceReader:
    """Reads the references of tasks."""

    def __init__(self, store: ObjectStore, decoder: DecodesReferences, folder: Path) -> None:
        """`folder`: for files that are being read."""
        self._store = store
        self._decoder = decoder
        self._folder = folder

    def frames(
        self,
        task: Task,
        params: GenerateParams,
        reference: Reference,
        check: Callable[[], None],
        decoding: Callable[[], AbstractContextManager[None]],
    ) -> Tensor:
        """Return the frames of a reference: uint8 (H, W, 3) of a picture, (T, H, W, 3) of a clip.

        What is fetched is decoded inside of a `decoding()`.

        Raises:
            UnavailableError, DeadlineError: the object store is away.
            CorruptObjectError: these are not the bytes that the job was accepted with.
            InvalidRequestError: it cannot be decoded, or is too short.
        """
        artifact = reference.artifact
        if reference.role in (ReferenceRole.FIRST_FRAME, ReferenceRole.LAST_FRAME):
            data = self._store.get_bytes(artifact.key)
            check_sha256(artifact.key, hashlib.sha256(data).hexdigest(), artifact.sha256)
            with decoding():
                return self._decoder.picture(data, params.width_px, params.height_px)
        is_changed = reference.role == ReferenceRole.CHANGE
        with self._fetched(task, artifact) as path, decoding():
            wanted = _wanted(path, artifact, params, params.num_frames, check)
            frames_THWC = self._decoder.clip(wanted, is_end=not is_changed)
        if is_changed and len(frames_THWC) < params.num_frames:
            raise InvalidRequestError(
                f"The clip to change has {len(frames_THWC)} frames; the new one needs {params.num_frames}."
            )
        return frames_THWC

    @contextmanager
    def before(self, task: Task, params: GenerateParams, check: Callable[[], None]) -> Iterator[Iterator[Tensor]]:
        """Yield the frames of the clip that is continued, a few at a time: uint8 (T, H, W, 3).

        Raises: as `frames`; about the clip itself only while they are taken.
        """
        (artifact,) = [one.artifact for one in params.references if one.role == ReferenceRole.CONTINUE]
        with self._fetched(task, artifact) as path:
            wanted = _wanted(path, artifact, params, params.num_frames_before, check)
            with closing(self._decoder.beginning(wanted)) as frames:
                yield frames

    @contextmanager
    def _fetched(self, task: Task, artifact: Artifact) -> Iterator[Path]:
        """Yield a file with these bytes; it is gone afterwards."""
        path = self._folder / f"{task.task_id}.{task.attempt}.reference"
        try:
            self._store.get_file(artifact.key, path, artifact.sha256)
            yield path
        finally:
            path.unlink(missing_ok=True)


def _wanted(
    path: Path, artifact: Artifact, params: GenerateParams, num_frames: int, check: Callable[[], None]
) -> WantedFrames:
    size_px = (params.width_px, params.height_px)
    return WantedFrames(path, artifact.media_type, size_px, params.fps, num_frames, check)
