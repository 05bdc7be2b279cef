"""Tell which of the world's backgrounds a clip shows and how the camera moves before it.

Every background and camera is drawn and compared; what a pixel can be wrong by is limited, so that objects, which
differ from every background, hardly matter.

Shapes: T frames, H rows, W columns. Video is in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vitascope_trainer.evaluation.regions import Array
from vitascope_trainer.world.drawing import background_image, camera_path, seen_by_camera
from vitascope_trainer.world.scenes import BACKGROUNDS, CAMERAS, FLAT, GRADIENTS

_LIMIT = 0.2  # no pixel counts as more wrong than that
_NOTHING = 0.12  # no background is right if pixels are wrong by that, on average
_SAMPLED_SIDE = 32
_SAMPLED_FRAMES = 10
_ADVANTAGE = 0.002  # a moving camera must explain the clip better than a fixed one by that


@dataclass(frozen=True)
class Backdrop:
    """What is behind the objects."""

    name: str
    camera: str
    picture_THWC: Array
    """The background as it should be in every frame, in the clip's own brightness; T is 1 where nothing moves."""
    scale_T: Array
    shift_T: Array
    """The camera's magnification and position per frame."""

    @property
    def is_patterned(self) -> bool:
        """Say whether the background has edges of its own."""
        return self.name not in FLAT and self.name not in GRADIENTS


def read_backdrop(video_THWC: Array) -> Backdrop | None:
    """Find background and camera; None where the clip looks like none of them.

    A pan over a gradient cannot be seen and is never read.
    """
    num_frames, height, width = video_THWC.shape[:3]
    step = max(1, min(height, width) // _SAMPLED_SIDE)
    rows, columns = height // step, width // step
    frames = _sampled_frames(num_frames)
    sample = video_THWC[frames, : rows * step, : columns * step]
    sample = sample.reshape(len(frames), rows, step, columns, step, 3).mean(axis=(2, 4))
    sample_CTHW = np.ascontiguousarray(np.moveaxis(sample, -1, 0))
    best, least = ("", ""), np.inf
    for name, camera, picture in _hypotheses(rows, columns, num_frames):
        wrong = np.abs(sample_CTHW - picture).sum(axis=0)
        error = float(np.minimum(wrong, 3 * _LIMIT).mean()) / 3
        error += _ADVANTAGE * (camera != "fixed")
        if error < least:
            best, least = (name, camera), error
    found = backdrop(video_THWC, *best)
    wrong = np.minimum(np.abs(video_THWC - found.picture_THWC).mean(axis=-1), _LIMIT)
    return found if float(wrong.mean()) < _NOTHING else None


def backdrop(video_THWC: Array, name: str, camera: str) -> Backdrop:
    """Draw a background as it should be in a clip, in the clip's own tone."""
    num_frames, height, width = video_THWC.shape[:3]
    u = np.linspace(0.0, 1.0, num_frames, dtype=np.float32)
    picture = _picture(name, camera, height, width, u)
    difference = video_THWC - picture
    near = np.abs(difference).max(axis=-1) < _LIMIT
    if near.any():
        picture = picture + np.median(difference[near][::5], axis=0).astype(np.float32)
    return Backdrop(name, camera, picture, *camera_path(camera, u))


def _sampled_frames(num_frames: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, num_frames - 1, _SAMPLED_FRAMES).astype(np.intp))


def _picture(name: str, camera: str, height: int, width: int, u: Array) -> Array:
    if camera == "fixed":
        return background_image(name, height, width)[None]
    return seen_by_camera(name, height, width, *camera_path(camera, u))


@lru_cache(maxsize=8)
def _hypotheses(height: int, width: int, num_frames: int) -> list[tuple[str, str, Array]]:
    """Give every background under every camera that can be seen, at the sampled frames, (3, T, H, W)."""
    u = np.linspace(0.0, 1.0, num_frames, dtype=np.float32)[_sampled_frames(num_frames)]
    found = []
    for name in BACKGROUNDS:
        for camera in CAMERAS:
            if camera != "fixed" and (name in FLAT or (name in GRADIENTS and camera.startswith("pan"))):
                continue
            picture = _picture(name, camera, height, width, u)
            found.append((name, camera, np.ascontiguousarray(np.moveaxis(picture, -1, 0))))
    return found
