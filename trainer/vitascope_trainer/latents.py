"""Clips as latents: encoded once into a cache of shards, or on the fly.

A clip is encoded by itself, never in a batch, so that what the cache holds equals what encoding it anew gives, bit for
bit.

Shapes: B batch, C latent channels, T latent frames, H and W latent rows and columns.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from vitascope_common.errors import ConfigurationError
from vitascope_models.vae import VAE, from_uint8
from vitascope_trainer.checkpoints import read_state, write_state
from vitascope_trainer.processes import Group
from vitascope_trainer.sources import Bucket, Clip, Said, Source

Item = TypeVar("Item")


@dataclass(frozen=True)
class Encoded:
    """A clip's latents."""

    latents_CTHW: Tensor
    """fp16, normalised."""
    last_CHW: Tensor
    """fp16: the last frame encoded by itself, the hint of a keyframe."""
    objects_THW: Tensor | None
    """uint8, 0 to 255: how much of an object lies in the cell; None where nobody knows."""
    is_continuation: bool


@dataclass(frozen=True)
class Batch:
    """Clips of one bucket with their captions; fp32."""

    latents_BCTHW: Tensor
    last_BCHW: Tensor
    objects_BTHW: Tensor | None
    """0 to 1."""
    is_continuation: Sequence[bool]
    said: Sequence[Said]


class Latents(Protocol):
    """Where the transformer's clips come from."""

    def draw(self, bucket: Bucket, count: int, step: int, micro_batch: int, rng: random.Random) -> Batch:
        """Draw clips for a step's micro-batch."""
        ...


class Encoder:
    """A frozen VAE that turns clips into latents."""

    def __init__(self, vae: VAE, device: torch.device, dtype: torch.dtype) -> None:
        """Take the VAE, fp32, and bring it to where and how it computes."""
        self._mean, self._std = (
            each.float().to(device)[:, None, None, None] for each in (vae.latent_mean, vae.latent_std)
        )
        vae = vae.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._vae: VAE = vae.requires_grad_(False)
        self._device = device
        self._dtype = dtype

    @torch.no_grad()
    def encode(self, clip: Clip) -> Encoded:
        """Encode a clip, and its last frame by itself."""
        video_BCTHW = from_uint8(torch.from_numpy(clip.frames_THWC)[None].to(self._device)).to(self._dtype)
        return Encoded(
            self._latents(video_BCTHW),
            self._latents(video_BCTHW[:, :, -1:])[:, 0],
            None if clip.mask_THW is None else object_cells(torch.from_numpy(clip.mask_THW)),
            clip.is_continuation,
        )

    def _latents(self, video_BCTHW: Tensor) -> Tensor:
        mean, _ = self._vae.moments(video_BCTHW)
        return ((mean[0].float() - self._mean) / self._std).half().cpu()


def object_cells(mask_THW: Tensor) -> Tensor:
    """Bring a mask, uint8, to the latent grid: the most that a cell's pixels show in any of its frames."""
    shown = functional.max_pool2d(mask_THW[None].float(), 8)[0]
    first, rest = shown[:1], shown[1:].unflatten(0, (-1, 4)).amax(dim=1)
    return torch.cat([first, rest]).to(torch.uint8)


class Window(Generic[Item]):
    """The newest items of an endless stream, each made when first asked for.

    At step s they are the items from `fresh * s` on, `size` of them: what can be drawn depends on the step alone, so a
    run that was interrupted draws what it would have drawn.
    """

    def __init__(self, make: Callable[[int], Item], size: int, fresh: int) -> None:
        self._make = make
        self._size = size
        self._fresh = fresh
        self._items: dict[int, Item] = {}

    def draw(self, step: int, count: int, rng: random.Random) -> list[tuple[int, Item]]:
        """Draw `count` different items, each with its index in the stream."""
        first = step * self._fresh
        for index in [index for index in self._items if index < first]:
            del self._items[index]
        chosen = rng.sample(range(first, first + self._size), count)
        for index in chosen:
            if index not in self._items:
                self._items[index] = self._make(index)
        return [(index, self._items[index]) for index in chosen]


class FreshLatents:
    """Encodes while training, from a window of the newest clips per bucket and micro-batch."""

    def __init__(self, source: Source, encoder: Encoder, size: int, fresh: int, num_micro_batches: int) -> None:
        """Give each micro-batch its own part of the source, so that any sharing out draws the same."""
        self._source = source
        self._encoder = encoder
        self._size, self._fresh, self._stride = size, fresh, num_micro_batches
        self._windows: dict[tuple[Bucket, int], Window[Encoded]] = {}

    def draw(self, bucket: Bucket, count: int, step: int, micro_batch: int, rng: random.Random) -> Batch:
        """Draw clips, encoding those that are new."""

        def place(index: int) -> int:
            return index * self._stride + micro_batch

        window = self._windows.get((bucket, micro_batch))
        if window is None:
            window = Window(
                lambda index: self._encoder.encode(self._source.clip(place(index), bucket)),
                max(self._size, count),
                self._fresh,
            )
            self._windows[bucket, micro_batch] = window
        drawn = window.draw(step, count, rng)
        said = [self._source.said(place(index), bucket, rng) for index, _ in drawn]
        return batched([item for _, item in drawn], said)


@dataclass(frozen=True)
class CacheLayout:
    """Where the shards of a bucket lie; the folder's name says what they were made of."""

    folder: Path
    num_clips: int
    shard_clips: int

    def shards(self) -> list[tuple[Path, range]]:
        """Give each shard's path and the clips in it."""
        starts = range(0, self.num_clips, self.shard_clips)
        return [
            (self.folder / f"{start:07d}.safetensors", range(start, min(start + self.shard_clips, self.num_clips)))
            for start in starts
        ]


def cache_layout(
    root: Path, encoder_sha256: str, precision: str, source: Source, bucket: Bucket, num_clips: int, shard_clips: int
) -> CacheLayout:
    """Lay out a bucket's cache: another encoder, source, precision or shard size has another folder."""
    parts = f"{encoder_sha256} {precision} {source.fingerprint(bucket)} {shard_clips}"
    key = hashlib.sha256(parts.encode()).hexdigest()[:16]
    return CacheLayout(root / f"{bucket}-{key}", num_clips, shard_clips)


def encode_cache(
    layout: CacheLayout, source: Source, bucket: Bucket, encoder: Encoder, group: Group, report: Callable[[int], None]
) -> None:
    """Encode the shards that are not there yet, those of this process; `report` is told of each clip done or found."""
    for number, (path, clips) in enumerate(layout.shards()):
        if number % group.num_processes != group.rank:
            continue
        if _num_clips(path) >= len(clips):
            report(len(clips))
            continue
        items = []
        for index in clips:
            items.append(encoder.encode(source.clip(index, bucket)))
            report(1)
        write_state(path, _stacked(items))


def _num_clips(path: Path) -> int:
    return len(read_state(path)["latents"]) if path.exists() else 0


def _stacked(items: Sequence[Encoded]) -> dict[str, Tensor]:
    tensors = {
        "latents": torch.stack([item.latents_CTHW for item in items]),
        "last": torch.stack([item.last_CHW for item in items]),
        "continues": torch.tensor([item.is_continuation for item in items], dtype=torch.uint8),
    }
    objects = [item.objects_THW for item in items if item.objects_THW is not None]
    return tensors | ({"objects": torch.stack(objects)} if objects else {})


class CachedLatents:
    """Reads the shards that `encode_cache` wrote."""

    def __init__(self, source: Source, layouts: dict[Bucket, CacheLayout]) -> None:
        """Open the cache; the files are mapped into memory and read when needed.

        Raises:
            ConfigurationError: shards are missing, or hold fewer clips than the layout says.
        """
        self._source = source
        self._shards: dict[Bucket, list[dict[str, Tensor]]] = {}
        self._layouts = layouts
        for bucket, layout in layouts.items():
            missing = [path for path, clips in layout.shards() if _num_clips(path) < len(clips)]
            if missing:
                raise ConfigurationError(
                    f"The latents cache lacks {len(missing)} of {len(layout.shards())} files of {bucket}, or clips in "
                    f"them, such as {missing[0]}: run the stage latents first."
                )
            self._shards[bucket] = [read_state(path) for path, _ in layout.shards()]

    def item(self, bucket: Bucket, index: int) -> Encoded:
        """Give a clip of the cache."""
        number, row = divmod(index, self._layouts[bucket].shard_clips)
        shard = self._shards[bucket][number]
        objects = shard["objects"][row] if "objects" in shard else None
        return Encoded(shard["latents"][row], shard["last"][row], objects, bool(shard["continues"][row]))

    def draw(self, bucket: Bucket, count: int, step: int, micro_batch: int, rng: random.Random) -> Batch:
        """Draw clips out of all of the bucket."""
        chosen = rng.choices(range(self._layouts[bucket].num_clips), k=count)
        said = [self._source.said(index, bucket, rng) for index in chosen]
        return batched([self.item(bucket, index) for index in chosen], said)


def batched(items: Sequence[Encoded], said: Sequence[Said]) -> Batch:
    """Put clips of one bucket together."""
    objects = [item.objects_THW.float() / 255.0 for item in items if item.objects_THW is not None]
    return Batch(
        torch.stack([item.latents_CTHW for item in items]).float(),
        torch.stack([item.last_CHW for item in items]).float(),
        torch.stack(objects) if len(objects) == len(items) else None,
        [item.is_continuation for item in items],
        said,
    )


def held_out_batch(source: Source, bucket: Bucket, encoder: Encoder, count: int) -> Batch:
    """Encode the first `count` clips of a source, under captions that are always the same."""
    items = [encoder.encode(source.clip(index, bucket)) for index in range(count)]
    return batched(items, [source.said(index, bucket, None) for index in range(count)])
