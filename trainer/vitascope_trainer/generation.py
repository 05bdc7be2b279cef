"""Make clips with weights in memory, several prompts at a time.

Shapes: B batch, T frames, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitascope_common.registry_cards import Defaults
from vitascope_models.conditioning import Guide
from vitascope_models.dit import DiT
from vitascope_models.sampling import FlowSampler, Guidance, guided, initial_noise, noised
from vitascope_models.text import PromptEncoder
from vitascope_models.vae import VAE
from vitascope_trainer.sources import Bytes


@dataclass(frozen=True)
class Parts:
    """What makes clips."""

    text_encoder: PromptEncoder
    dit: DiT
    vae: VAE


@dataclass(frozen=True)
class Settings:
    """How clips are made."""

    width_px: int
    height_px: int
    num_frames: int
    num_steps: int
    guidance: Guidance
    shift: float
    solver: str
    attention: str | None = None
    """Another temporal attention than the model's own."""

    @classmethod
    def of(cls, defaults: Defaults, width_px: int, height_px: int, num_frames: int, shift: float) -> Settings:
        """Take steps, guidance and solver from a card's defaults; `shift` is the schedule's for this size."""
        return cls(
            width_px=width_px,
            height_px=height_px,
            num_frames=num_frames,
            num_steps=defaults.num_inference_steps,
            guidance=Guidance(
                defaults.guidance_scale, defaults.guidance_start, defaults.guidance_end, defaults.guidance_rescale
            ),
            shift=shift,
            solver=defaults.solver,
        )


@dataclass(frozen=True)
class Given:
    """What clips are made from besides their prompts."""

    guide: Guide | None = None
    """Frames to keep, and a hint."""
    clean_1CTHW: Tensor | None = None
    """Latents of a clip to change, noised up to flow time `start`."""
    start: float = 1.0


@torch.no_grad()
def generate(
    parts: Parts,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    batch: int = 8,
    given: Given = Given(),
) -> Iterator[Bytes]:
    """Make a clip, (T, H, W, 3), for each prompt; the noise of a clip depends on its own seed alone."""
    neutral = parts.text_encoder.encode("")
    shape = parts.vae.latent_shape(settings.num_frames, settings.height_px, settings.width_px)
    sampler = FlowSampler(settings.num_steps, settings.shift, settings.solver, given.start)
    for begin in range(0, len(prompts), batch):
        chosen = prompts[begin : begin + batch]
        noise = [initial_noise((1, *shape), seed)[0] for seed in seeds[begin : begin + batch]]
        latents = torch.cat(noise)
        if given.clean_1CTHW is not None:
            latents = noised(given.clean_1CTHW, latents, given.start)
        if given.guide is not None:
            latents = given.guide.pin(latents)
        texts = [parts.text_encoder.encode(text) for text in chosen]
        velocity = guided(parts.dit, texts, neutral, settings.guidance, given.guide, settings.attention)
        for index in range(sampler.num_steps):
            latents = sampler.step(velocity, latents, index)
        for one in latents.split(1):
            yield torch.cat(list(parts.vae.decode_stream(one))).numpy()
