"""Train the transformer and the text encoder together, by rectified flow on latents of the procedural world.

Both clip lengths are trained, a batch at a time. Some steps on the captions alone come first, so that the text encoder
already tells attributes apart when the transformer starts to listen.

Shapes: B batch, C latent channels, F latent frames, h and w latent rows and columns, L text tokens.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import torch
import torch.distributed as dist
import typer
from torch import Tensor, nn
from torch.nn import functional

from vitascope_models.dit import DiT
from vitascope_models.text import TextEncoder
from vitascope_models.vae import VAE, from_uint8
from vitascope_trainer.export import ARCHITECTURE
from vitascope_trainer.optimiser import Optimiser, Rates
from vitascope_trainer.states import read_state, write_state
from vitascope_trainer.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    Scene,
    caption_and_gap,
    random_scene,
    render,
    vocabulary,
)

LENGTHS = (33, 17, 33, 33, 17)  # frames of successive batches; the longer clip is the default one
BATCH = {17: 32, 33: 18}  # clips per process: about the same number of tokens
_POOL = 900  # clips kept per length and process
_FIRST = 160  # of them drawn before the first step, the others along the way
_FRESH = 4
_TEXT_STEPS = 120
_NOISE_BIAS = 0.4  # flow times are logit-normal around sigmoid of this: layout and motion are decided near the noise
_SAVE_S = 120.0
_CLASSES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "motion": MOTIONS,
    "background": BACKGROUNDS,
    "size": SIZES[:2],
}


class Student(nn.Module):
    """What is trained: text encoder, transformer, and heads that read the attributes off a caption's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = TextEncoder(vocabulary(), **ARCHITECTURE["text_encoder"])
        self.dit = DiT(**ARCHITECTURE["dit"])
        self.heads = nn.ModuleDict(
            {name: nn.Linear(self.text_encoder.width, len(classes)) for name, classes in _CLASSES.items()}
        )


class Pool:
    """Clips of one length as latents: a growing stock, then a stock whose clips are replaced a few at a time."""

    def __init__(self, vae: VAE, num_frames: int, rng: random.Random) -> None:
        """Draw the first clips."""
        self._vae = vae
        self._rng = rng
        self.num_frames = num_frames
        shape = vae.latent_shape(num_frames, 64, 64)
        self.latents = torch.zeros(_POOL, *shape, dtype=torch.bfloat16)
        self.weights = torch.zeros(_POOL, 1, *shape[1:])
        self.scenes: list[Scene] = []
        while len(self.scenes) < _FIRST:
            self.refresh(min(20, _FIRST - len(self.scenes)))

    def refresh(self, count: int) -> None:
        """Add `count` new clips, or replace as many at random where the pool is full."""
        scenes = [random_scene(self._rng) for _ in range(count)]
        held = len(self.scenes)
        slots = list(range(held, held + count)) if held + count <= _POOL else self._rng.sample(range(held), count)
        self.latents[slots], self.weights[slots] = encoded(self._vae, scenes, self.num_frames, self._rng)
        self.scenes.extend(scenes if slots[0] == held else [])
        for slot, scene in zip(slots, scenes, strict=True):
            self.scenes[slot] = scene


def encoded(vae: VAE, scenes: list[Scene], num_frames: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Draw scenes and encode them: latents (B, C, F, h, w) and loss weights (B, 1, F, h, w)."""
    clips = [render(scene, num_frames, rng) for scene in scenes]
    frames = torch.stack([torch.from_numpy(frames) for frames, _ in clips])
    masks = torch.stack([torch.from_numpy(mask) for _, mask in clips]).float() / 255.0
    with torch.no_grad():
        video = from_uint8(frames).bfloat16()
        latents = vae.encode(video)
    shown = functional.max_pool2d(masks, 8)  # B T h w
    first, rest = shown[:, :1], shown[:, 1:].unflatten(1, (-1, 4)).amax(dim=2)
    weights = 1.0 + 2.0 * torch.cat([first, rest], dim=1)[:, None]
    return latents, weights / weights.mean(dim=(1, 2, 3, 4), keepdim=True)


def _text_loss(student: Student, pooled_BD: Tensor, scenes: list[Scene], gaps: list[str | None]) -> Tensor:
    """Sum the cross entropies of the attributes that the captions say; a gap of None is an empty caption."""
    total = torch.zeros(())
    for name, classes in _CLASSES.items():
        labels = []
        for scene, gap in zip(scenes, gaps, strict=True):
            value = getattr(scene, name)
            is_said = gap is not None and gap != name and value in classes
            labels.append(classes.index(value) if is_said else -100)
        if any(label >= 0 for label in labels):
            logits = student.heads[name](pooled_BD).float()
            total = total + functional.cross_entropy(logits, torch.tensor(labels), ignore_index=-100)
    return total


def _flow_loss(dit: DiT, latents: Tensor, weights: Tensor, t_B: Tensor, text: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    noise = torch.randn_like(latents)
    t = t_B[:, None, None, None, None]
    noisy = (1.0 - t) * latents + t * noise
    tokens_BLD, mask_BL, pooled_BD = text
    velocity = dit(noisy.bfloat16(), t_B, tokens_BLD, mask_BL, pooled_BD).float()
    error: Tensor = velocity - (noise - latents)
    return (weights * error.square()).mean()


def _read(student: Student, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    ids_BL, mask_BL = student.text_encoder.tokenizer.batch(captions)
    longest = int(mask_BL.sum(dim=1).max())
    tokens_BLD, pooled_BD = student.text_encoder(ids_BL[:, :longest], mask_BL[:, :longest])
    return tokens_BLD, mask_BL[:, :longest], pooled_BD


def train_dit(out: Path, minutes: float, rank: int) -> None:
    """Train for `minutes` of wall time in all, earlier runs on the same folder included.

    Needs `vae.safetensors` in `out`; rank 0 writes the averaged `dit.safetensors` every two minutes and at the end.
    """
    torch.manual_seed(200)
    vae = VAE(**ARCHITECTURE["vae"])
    vae.load_state_dict(read_state(out / "vae.safetensors"))
    vae = vae.bfloat16().to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    student = Student().bfloat16()
    blocks = [*student.text_encoder.blocks.named_parameters(), *student.dit.blocks.named_parameters()]
    matrices = [parameter for name, parameter in blocks if name.endswith("weight") and parameter.ndim == 2]
    optimiser = Optimiser(student.parameters(), matrices, Rates(adam=1e-3, muon=2e-3, average=0.998))
    path = out / "dit-state.safetensors"
    if path.exists():
        optimiser.load(read_state(path))
    rng = random.Random(f"dit {rank} {optimiser.num_steps}")
    torch.manual_seed(rank + 10 * optimiser.num_steps)
    pools = {num_frames: Pool(vae, num_frames, rng) for num_frames in BATCH}
    check_rng = random.Random("check")
    check_scenes = [random_scene(check_rng, held_out=True) for _ in range(24)]
    check = encoded(vae, check_scenes, 33, check_rng)
    check_captions = [caption_and_gap(scene, check_rng, plain=True)[0] for scene in check_scenes]
    if rank == 0:
        typer.echo(f"dit pools ready, {sum(p.numel() for p in student.parameters())} parameters")
    began = saved = time.monotonic()
    smooth, held_out, num_clips = 0.0, 0.0, 0
    while (progress := optimiser.elapsed_s / (60 * minutes)) < 1.0:
        is_text = optimiser.num_steps < _TEXT_STEPS
        pool = pools[LENGTHS[optimiser.num_steps % len(LENGTHS)]]
        size = 64 if is_text else BATCH[pool.num_frames]
        chosen = [] if is_text else rng.sample(range(len(pool.scenes)), size)
        scenes = [random_scene(rng) for _ in range(size)] if is_text else [pool.scenes[index] for index in chosen]
        captions, gaps = [], []
        for scene in scenes:
            caption, gap = caption_and_gap(scene, rng)
            is_dropped = not is_text and rng.random() < 0.1
            captions.append("" if is_dropped else caption)
            gaps.append(None if is_dropped else gap)
        text = _read(student, captions)
        loss = 0.1 * _text_loss(student, text[2], scenes, gaps)
        if not is_text:
            pool.refresh(_FRESH)
            t_B = (torch.randn(size) + _NOISE_BIAS).sigmoid()
            flow = _flow_loss(student.dit, pool.latents[chosen].float(), pool.weights[chosen], t_B, text)
            loss = loss + flow
            smooth = float(flow.detach()) if smooth == 0.0 else 0.97 * smooth + 0.03 * float(flow.detach())
            num_clips += size * (dist.get_world_size() if dist.is_initialized() else 1)
        loss.backward()
        warm = min(1.0, (optimiser.num_steps + 1) / 40 if is_text else (optimiser.num_steps + 1 - _TEXT_STEPS) / 80)
        now = time.monotonic()
        seconds, began = now - began, now
        norm = optimiser.step(seconds, warm * (1.0 if progress < 0.5 else 0.01 + 0.99 * 2.0 * (1.0 - progress)))
        if optimiser.num_steps % 100 == 0:
            generator_state = torch.get_rng_state()
            torch.manual_seed(1)
            with torch.no_grad():
                t_B = torch.linspace(0.02, 0.98, len(check_scenes))
                text = _read(student, check_captions)
                held_out = float(_flow_loss(student.dit, check[0].float(), check[1], t_B, text))
            torch.set_rng_state(generator_state)
        if rank == 0 and optimiser.num_steps % 20 == 0:
            typer.echo(
                f"dit step={optimiser.num_steps} elapsed_s={optimiser.elapsed_s:.0f} loss={float(loss.detach()):.4f} "
                f"flow={smooth:.4f} held_out={held_out:.4f} norm={norm:.2f} step_s={seconds:.2f} clips={num_clips}",
            )
        if rank == 0 and time.monotonic() - saved > _SAVE_S:
            saved = time.monotonic()
            _save(out, path, optimiser, student, smooth, held_out)
    if rank == 0:
        _save(out, path, optimiser, student, smooth, held_out)
    if dist.is_initialized():
        dist.barrier()


def _save(out: Path, path: Path, optimiser: Optimiser, student: Student, smooth: float, held_out: float) -> None:
    write_state(path, optimiser.state())
    averages = optimiser.averages(student.named_parameters())
    kept = {name: value for name, value in averages.items() if not name.startswith("heads.")}
    write_state(out / "dit.safetensors", kept)
    report = {
        "num_steps": optimiser.num_steps,
        "elapsed_s": round(optimiser.elapsed_s),
        "flow_loss": round(smooth, 4),
        "held_out_flow_loss": round(held_out, 4),
    }
    (out / "training.json").write_text(json.dumps(report), encoding="utf-8")
