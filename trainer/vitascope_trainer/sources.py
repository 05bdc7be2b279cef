"""Where clips and captions come from: one protocol, and the procedural world behind it (`folder.py` has the other).

Shapes: T frames, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vitascope_trainer.attributes import CLASSES, attributes_of
from vitascope_trainer.seeds import seeded
from vitascope_trainer.world.captions import caption, plain_caption
from vitascope_trainer.world.drawing import render
from vitascope_trainer.world.scenes import Mix, Scene, random_scene

Bytes = NDArray[np.uint8]

_NUM_SCENES, _NUM_CLIPS = 256, 8  # that a fingerprint covers


@dataclass(frozen=True)
class Bucket:
    """The size and length of clips that are trained together."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Clip:
    """A piece of video."""

    frames_THWC: Bytes
    mask_THW: Bytes | None = None
    """Where the objects are, 0 to 255; None where nobody knows."""
    is_continuation: bool = False
    """Whether it begins part-way through what its caption says, so that it cannot be made from the caption alone."""


@dataclass(frozen=True)
class Said:
    """A caption, and the attributes that it says, by the names of `Source.classes`."""

    text: str
    attributes: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """An endless supply of captioned clips: clip i of a bucket is the same whenever it is asked for."""

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The attributes that captions say, each with its possible values; empty if nobody knows."""
        ...

    def clip(self, index: int, bucket: Bucket) -> Clip:
        """Give a clip of exactly the bucket's size and length."""
        ...

    def said(self, index: int, bucket: Bucket, rng: random.Random | None) -> Said:
        """Describe a clip, each time in other words where `rng` is given, and always the same way without."""
        ...

    def fingerprint(self, bucket: Bucket) -> str:
        """Name the clips of a bucket: equal for equal clips."""
        ...


@dataclass(frozen=True)
class WorldSource:
    """Draws clips. With `held_out` it draws those combinations, and only those, that training never sees."""

    seed: int
    mix: Mix
    later: float = 0.0
    later_from: tuple[float, float] = (0.25, 1.0)
    held_out: bool = False

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """Every attribute is known."""
        return CLASSES

    def clip(self, index: int, bucket: Bucket) -> Clip:
        """Draw a clip."""
        scene, rng = self._scene(index, bucket)
        begin = rng.uniform(*self.later_from) if rng.random() < self.later else 0.0
        frames, mask = render(scene, bucket.num_frames, bucket.height, bucket.width, rng, begin)
        return Clip(frames, mask, begin > 0)

    def said(self, index: int, bucket: Bucket, rng: random.Random | None) -> Said:
        """Describe a clip."""
        scene, _ = self._scene(index, bucket)
        if rng is None:
            return Said(plain_caption(scene), attributes_of(scene, frozenset()))
        words = caption(scene, rng)
        return Said(words.text, attributes_of(scene, words.missing))

    def fingerprint(self, bucket: Bucket) -> str:
        """Hash what decides the clips, many scenes and some clips, so that other ways to choose or draw have others."""
        digest = hashlib.sha256(f"{self!r} {bucket}".encode())
        digest.update(repr([self._scene(index, bucket)[0] for index in range(_NUM_SCENES)]).encode())
        for index in range(_NUM_CLIPS):
            digest.update(self.clip(index, bucket).frames_THWC.tobytes())
        return digest.hexdigest()

    def _scene(self, index: int, bucket: Bucket) -> tuple[Scene, random.Random]:
        rng = seeded("world", self.seed, self.held_out, bucket, index)
        return random_scene(rng, held_out=self.held_out, mix=self.mix), rng
