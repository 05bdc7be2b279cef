"""Train the VAE on short clips of the procedural world.

Shapes: B batch, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import typer
from torch import Tensor
from torch.nn import functional

from vitascope_models.vae import VAE, from_uint8
from vitascope_trainer.optimiser import Optimiser, Rates
from vitascope_trainer.states import read_state, write_state
from vitascope_trainer.world import random_scene, render

NUM_FRAMES = 17
_POOL = 700
_FRESH = 4
_CROP = 32
_CLIPS_MEASURED = 96
BATCH = (8, 24)  # whole clips in one of four steps, crops in the others: about the same work


def clip(rng: random.Random) -> tuple[Tensor, Tensor]:
    """Draw 17 frames of either clip length, with two objects in one of five: frames (T, H, W, 3), mask (T, H, W)."""
    num_frames = rng.choice((17, 33))
    second = random_scene(rng) if rng.random() < 0.2 else None
    frames, mask = render(random_scene(rng), num_frames, rng, second=second)
    start = rng.choice((0, rng.randint(0, num_frames - NUM_FRAMES)))
    window = slice(start, start + NUM_FRAMES)
    return torch.from_numpy(frames[window].copy()), torch.from_numpy(mask[window].copy())


def loss_weights(mask_BTHW: Tensor) -> Tensor:
    """Weigh pixels, (B, T, H, W): 1, and 3 more near the object, and 6 more along its edge."""
    wide = functional.max_pool2d(mask_BTHW, 5, 1, 2)
    inner = -functional.max_pool2d(-mask_BTHW, 3, 1, 1)
    edge = functional.max_pool2d(mask_BTHW, 3, 1, 1) - inner
    return 1.0 + 3.0 * wide + 6.0 * edge


def _crops(frames: Tensor, mask: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Cut a 32x32 window out of each clip: of four random ones, the one that shows most of the object."""
    videos, masks = [], []
    for video_THWC, mask_THW in zip(frames, mask, strict=True):
        spots = [(8 * rng.randint(0, 4), 8 * rng.randint(0, 4)) for _ in range(4)]
        shown = [int(mask_THW[::4, y : y + _CROP, x : x + _CROP].sum()) for y, x in spots]
        y, x = spots[int(np.argmax(shown))]
        videos.append(video_THWC[:, y : y + _CROP, x : x + _CROP])
        masks.append(mask_THW[:, y : y + _CROP, x : x + _CROP])
    return torch.stack(videos), torch.stack(masks)


def train_vae(out: Path, minutes: float, rank: int) -> None:
    """Train for `minutes` of wall time in all, earlier runs on the same folder included.

    Rank 0 writes its state every ninety seconds and `vae.safetensors` at the end.
    """
    torch.manual_seed(100)
    vae = VAE().bfloat16().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = Optimiser(vae.parameters(), [], Rates(adam=2e-3, beta2=0.98, average=0.997))
    path = out / "vae-state.safetensors"
    if path.exists():
        optimiser.load(read_state(path))
    rng = random.Random(f"vae {rank} {optimiser.num_steps}")
    torch.manual_seed(rank + 10 * optimiser.num_steps)
    clips = [clip(rng) for _ in range(_POOL)]
    frames, mask = torch.stack([each[0] for each in clips]), torch.stack([each[1] for each in clips])
    began = saved = time.monotonic()
    seconds = 0.0
    while (progress := optimiser.elapsed_s / (60 * minutes)) < 1.0:
        for slot in rng.sample(range(_POOL), _FRESH):
            frames[slot], mask[slot] = clip(rng)
        is_whole = optimiser.num_steps % 4 == 0
        chosen = rng.sample(range(_POOL), BATCH[0] if is_whole else BATCH[1])
        batch, shown = frames[chosen], mask[chosen]
        if not is_whole:
            batch, shown = _crops(batch, shown, rng)
        video = from_uint8(batch)
        weights = loss_weights(shown.float() / 255.0)[:, None]
        mean, log_var = vae.moments(video.bfloat16())
        mean32, log_var32 = mean.float(), log_var.float()
        sample = mean32 + torch.randn_like(mean32) * (0.5 * log_var32).exp()
        error = vae.reconstruct(sample.bfloat16()).float() - video
        distance = (weights * (error.abs() + 2.0 * error.square())).mean() / weights.mean()
        divergence = 0.5 * (mean32.square() + log_var32.exp() - 1.0 - log_var32).mean()
        loss = distance + 1e-3 * divergence
        loss.backward()
        warm = min(1.0, (optimiser.num_steps + 1) / 60)
        now = time.monotonic()
        seconds, began = now - began, now
        optimiser.step(seconds, warm * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * progress))))
        if rank == 0 and (optimiser.num_steps % 20 == 0):
            psnr = 10 * math.log10(4.0 / float(error.detach().square().mean()))
            typer.echo(
                f"vae step={optimiser.num_steps} elapsed_s={optimiser.elapsed_s:.0f} loss={float(loss.detach()):.4f} "
                f"kl={float(divergence.detach()):.3f} psnr_db={psnr:.2f} step_s={seconds:.2f}",
            )
        if rank == 0 and time.monotonic() - saved > 90:
            saved = time.monotonic()
            write_state(path, optimiser.state())
    if rank == 0:
        write_state(path, optimiser.state())
        optimiser.write_average()
        write_state(out / "vae.safetensors", measured(vae.float(), random.Random("statistics")).state_dict())
    if dist.is_initialized():
        dist.barrier()


@torch.no_grad()
def measured(vae: VAE, rng: random.Random) -> VAE:
    """Measure mean and spread of each latent channel over fresh clips and store them in the VAE; prints the PSNR."""
    means, squares = [], []
    for _ in range(_CLIPS_MEASURED // 8):
        pairs = [clip(rng) for _ in range(8)]
        video = from_uint8(torch.stack([pair[0] for pair in pairs]))
        mean, _ = vae.moments(video)
        means.append(mean.transpose(0, 1).flatten(1))
        squares.append((vae.reconstruct(mean).clamp(-1, 1) - video).square().mean(dim=(1, 2, 3, 4)))
    flat = torch.cat(means, dim=1)
    vae.latent_mean.copy_(flat.mean(dim=1))
    vae.latent_std.copy_(flat.std(dim=1))
    typer.echo(f"vae fresh psnr_db={float(10 * (4.0 / torch.cat(squares)).log10().mean()):.2f}")
    typer.echo(f"vae latent mean={vae.latent_mean.tolist()} std={vae.latent_std.tolist()}")
    return vae
