"""The shape classifier: a small convolutional network that has seen crops of rendered clips and nothing else.

The weights beside this file come from `python -m vitascope_trainer.evaluation.classifier shape_classifier.safetensors`.

Shapes: N crops, S rows and columns.
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from vitascope_trainer.evaluation.backgrounds import backdrop
from vitascope_trainer.evaluation.crops import chosen_frames, crop
from vitascope_trainer.evaluation.objects import find_parts
from vitascope_trainer.evaluation.regions import Array
from vitascope_trainer.world.drawing import render
from vitascope_trainer.world.scenes import SHAPES, Mix, Scene, random_scene

Bytes = NDArray[np.uint8]

WEIGHTS = Path(__file__).with_name("shape_classifier.safetensors")

_SIZES = ((64, 64), (64, 64), (96, 96), (128, 128), (64, 96))
_FRAMES_PER_CLIP = 4


class ShapeClassifier(nn.Module):
    """Tell the six shapes apart in crops, (N, 2, S, S), whatever their turn."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 16, 64),
            nn.ReLU(),
            nn.Linear(64, len(SHAPES)),
        )

    def forward(self, crops_N2SS: Tensor) -> Tensor:
        """Give the logits of the shapes, (N, 6)."""
        logits: Tensor = self.layers(crops_N2SS)
        return logits


@lru_cache(maxsize=1)
def shipped() -> ShapeClassifier:
    """Load the weights that come with the package."""
    return load(WEIGHTS)


def load(path: Path) -> ShapeClassifier:
    """Load weights that `save` wrote."""
    model = ShapeClassifier()
    model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    model.eval()
    return model


@torch.no_grad()
def shape_logits(crops_N2SS: Array) -> Array:
    """Give the logarithms of the shapes' probabilities per crop, (N, 6)."""
    logits = shipped()(torch.from_numpy(np.ascontiguousarray(crops_N2SS)))
    out: Array = functional.log_softmax(logits, dim=-1).numpy()
    return out


def degraded(frames_THWC: Bytes, blur_px: float, noise: float, seed: int) -> Bytes:
    """Blur and disturb a clip about as a VAE does; `noise` is a standard deviation in levels of 255."""
    rng = np.random.default_rng(seed)
    video = frames_THWC.astype(np.float32)
    if blur_px > 0:
        reach = int(np.ceil(2.5 * blur_px))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / blur_px) ** 2)
        kernel /= kernel.sum()
        for axis in (1, 2):
            margin = [(0, 0)] * 4
            margin[axis] = (reach, reach)
            padded = np.pad(video, margin, mode="edge")
            count = video.shape[axis]
            taps = [w * padded.take(range(k, k + count), axis) for k, w in enumerate(kernel)]
            video = np.sum(taps, axis=0, dtype=np.float32)
    if noise > 0:  # coarse and fine, as decoders leave it
        coarse = rng.standard_normal((video.shape[0], -(-video.shape[1] // 4), -(-video.shape[2] // 4), 3))
        coarse = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, : video.shape[1], : video.shape[2]]
        video += (noise * (0.7 * coarse + 0.7 * rng.standard_normal(video.shape))).astype(np.float32)
    out: Bytes = np.clip(video + 0.5, 0, 255).astype(np.uint8)
    return out


def training_crops(num_clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Render clips of the training side of the split and cut their objects out, as the probe does.

    Gives crops, fp32 (N, 2, S, S), and the shapes' numbers, int64 (N,). Objects that the probe does not find, or
    finds in another colour, are left out.
    """
    rng = random.Random(seed)
    crops: list[Array] = []
    labels: list[int] = []
    for index in range(num_clips):
        scene = random_scene(rng, held_out=False, mix=Mix(two=0.45, texture=0.12, camera=0.0))
        height, width = rng.choice(_SIZES)
        frames, _ = render(scene, _FRAMES_PER_CLIP, height, width, rng)
        if rng.random() < 0.6:
            frames = degraded(frames, rng.uniform(0.2, 1.3) * height / 64, rng.uniform(0, 8), index)
        for each, shape in _labelled_crops(frames, scene, rng):
            crops.append(each)
            labels.append(SHAPES.index(shape))
    return torch.from_numpy(np.stack(crops)), torch.tensor(labels)


def _labelled_crops(frames_THWC: Bytes, scene: Scene, rng: random.Random) -> list[tuple[Array, str]]:
    video = frames_THWC.astype(np.float32) / 255.0
    behind = backdrop(video, scene.background, "fixed")
    parts = find_parts(video, behind)
    if len(parts) != len(scene.things):
        return []
    found = []
    for part in parts:
        shapes = {thing.shape for thing in scene.things if thing.colour == part.colour}
        if len(shapes) == 1:
            frames = chosen_frames(part, _FRAMES_PER_CLIP)
            found += [(crop(part, t), next(iter(shapes))) for t in frames]
    return found


def train(num_clips: int = 1500, num_steps: int = 1500, batch: int = 96, seed: int = 7) -> ShapeClassifier:
    """Train the classifier from nothing; about two minutes on one core, and the same weights for the same seed."""
    torch.manual_seed(seed)
    crops, labels = training_crops(num_clips, seed)
    model = ShapeClassifier()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=num_steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        chosen = torch.randint(len(crops), (batch,), generator=generator)
        x = _augmented(crops[chosen], generator)
        loss = functional.cross_entropy(model(x), labels[chosen], label_smoothing=0.02)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    return model


def _augmented(crops_N2SS: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, scale and turn a little, mirror half of them, and add noise."""
    count = len(crops_N2SS)
    turn, zoom, dx, dy = (torch.rand(4, count, generator=generator) * 2 - 1).unbind()
    angle, scale = 0.12 * turn, 1.0 + 0.08 * zoom
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack([mirror * cos, -sin, 0.06 * dx], dim=-1), torch.stack([mirror * sin, cos, 0.06 * dy], dim=-1)]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(crops_N2SS.shape), align_corners=False)
    moved = functional.grid_sample(crops_N2SS, grid, align_corners=False)
    return moved + 0.04 * torch.randn(moved.shape, generator=generator)


def save(model: ShapeClassifier, path: Path) -> None:
    """Write the weights as fp16 safetensors."""
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, path)


app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path, typer.Argument(help="The file to write, safetensors.", dir_okay=False)],
    clips: Annotated[int, typer.Option(help="Clips to cut crops from.", min=8)] = 1500,
    steps: Annotated[int, typer.Option(help="Steps of training.", min=2)] = 1500,
) -> None:
    """Train the shape classifier from nothing and write its weights."""
    save(train(clips, steps), out)


if __name__ == "__main__":
    app()
