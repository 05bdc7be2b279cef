"""Previews: now and then a small moving picture of what the steps are heading for.

The denoising loop gives a few small frames; one thread makes a WebP of them, stores it under the attempt and keeps the
newest three there. It is not the thread of the checkpoints: a preview that is slow to upload must keep none of them
waiting. Whatever goes wrong costs a preview, never the work.
"""

import io
import threading
import time
from dataclasses import dataclass
from typing import Any

import structlog
from PIL import Image
from torch import Tensor

from vitascope_common.errors import VitascopeError
from vitascope_common.jobs import Task
from vitascope_common.objectstore import ObjectStore
from vitascope_gpu_worker import metrics

log = structlog.stdlib.get_logger("vitascope.gpu-worker")

MEDIA_TYPE = "image/webp"
EVERY_S = 1.0
MAX_SHARE = 0.01
"""Of the time: the next preview waits until the last one, background included, has cost no more than this."""
NUM_KEPT = 3
MAX_BYTES = 64_000
ATTEMPTS = ((60, 1, 256), (30, 1, 256), (30, 2, 256), (15, 4, 192), (15, 8, 96))
"""Quality, every how many frames and their longer side in pixels, until it is small enough; noise is the worst."""


class Previews:
    """Makes, stores and replaces the previews of this worker's attempts. All but the thread is the loop's."""

    def __init__(self, store: ObjectStore, every_s: float = EVERY_S, max_share: float = MAX_SHARE) -> None:
        """Make one every `every_s` seconds at most, and for `max_share` of the time at most."""
        self._store = store
        self._every_s = every_s
        self._max_share = max_share
        self._condition = threading.Condition()
        self._waiting: _Frames | None = None
        self._is_busy = False
        self._is_closing = False
        self._due_s = 0.0
        self._attempt: tuple[str, int] = ("", 0)
        self._kept: list[str] = []
        self._news: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._work_forever, name="previews", daemon=True)
        self._thread.start()

    def begin(self, task: Task) -> None:
        """Forget the attempt before; the first preview is due after the usual time."""
        with self._condition:
            self._attempt = (task.task_id, task.attempt)
            self._waiting, self._news, self._kept = None, None, []
            self._due_s = time.monotonic() + self._every_s

    @property
    def is_due(self) -> bool:
        """Tell whether another one may be made."""
        return not (self._waiting or self._is_busy) and time.monotonic() >= self._due_s

    def submit(self, task: Task, step: int, frames_THWC: Tensor, duration_s: float, took_s: float) -> None:
        """Make a preview in the background of frames, uint8, that last so long; making them kept the loop `took_s`."""
        metrics.PREVIEW_SECONDS.labels("loop").observe(took_s)
        with self._condition:
            self._waiting = _Frames(task, step, frames_THWC, duration_s, took_s)
            self._due_s = time.monotonic() + max(self._every_s, took_s / self._max_share)
            self._condition.notify_all()

    def news(self, task: Task) -> dict[str, Any] | None:
        """Return step and object key of the newest preview of an attempt, once; None: nothing new."""
        with self._condition:
            if (task.task_id, task.attempt) != self._attempt:
                return None
            news, self._news = self._news, None
            return news

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is under way; False when it took too long."""
        with self._condition:
            return self._condition.wait_for(lambda: not (self._waiting or self._is_busy), timeout_s)

    def close(self) -> None:
        """Stop the thread; what waits is dropped."""
        with self._condition:
            self._is_closing, self._waiting = True, None
            self._condition.notify_all()
        self._thread.join(timeout=2.0)

    def _work_forever(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._is_closing)
                if self._is_closing or self._waiting is None:
                    return
                frames, self._waiting, self._is_busy = self._waiting, None, True
            begun_s = time.thread_time()
            try:
                self._keep(frames)
            except VitascopeError as error:
                log.info("preview.not_stored", task=frames.task.task_id, step=frames.step, code=error.code)
            except Exception as error:  # it costs a preview, never the work, and this thread must not end
                log.error("preview.not_made", task=frames.task.task_id, step=frames.step, exc_info=error)
            finally:
                took_s = time.thread_time() - begun_s
                metrics.PREVIEW_SECONDS.labels("background").observe(took_s)
                with self._condition:
                    self._is_busy = False
                    cost_s = frames.took_s + took_s
                    self._due_s = max(self._due_s, time.monotonic() + cost_s / self._max_share)
                    self._condition.notify_all()

    def _keep(self, frames: "_Frames") -> None:
        data = encode(frames.frames_THWC, frames.duration_s)
        if data is None:
            return
        key = frames.task.work_key(f"preview-{frames.step:06d}.webp")
        self._store.put_bytes(key, data, MEDIA_TYPE)
        with self._condition:
            if (frames.task.task_id, frames.task.attempt) != self._attempt:
                return  # the work went on without it; retention removes what is left
            self._news = {"step": frames.step, "key": key}
            self._kept.append(key)
            surplus, self._kept = self._kept[:-NUM_KEPT], self._kept[-NUM_KEPT:]
        for old in surplus:
            self._store.delete(old)


@dataclass(frozen=True)
class _Frames:
    task: Task
    step: int
    frames_THWC: Tensor
    duration_s: float
    took_s: float  # of the loop


def encode(frames_THWC: Tensor, duration_s: float) -> bytes | None:
    """Return frames, uint8, as an animated WebP of at most 64 kB that lasts so long; None: they do not fit."""
    for quality, every, side_px in ATTEMPTS:
        shown = [Image.fromarray(frame_HWC) for frame_HWC in frames_THWC[::every].numpy()]
        for picture in shown:
            picture.thumbnail((side_px, side_px))
        file = io.BytesIO()
        shown[0].save(
            file,
            "WEBP",
            save_all=True,
            append_images=shown[1:],
            duration=round(1000 * duration_s / len(shown)),
            loop=0,
            quality=quality,
            method=0,
        )
        if file.tell() <= MAX_BYTES:
            return file.getvalue()
    return None
