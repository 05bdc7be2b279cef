"""Generate clips with weights in memory, and show clips as rows of frames on one sheet.

Shapes: T frames, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vitascope_common.registry_cards import Defaults
from vitascope_models.dit import DiT
from vitascope_models.sampling import FlowSampler, Guidance, guided, initial_noise
from vitascope_models.text import TextEncoder
from vitascope_models.vae import VAE
from vitascope_trainer.config import ModelPart
from vitascope_trainer.sources import Bucket, Bytes

_CAPTION_PX = 14


@torch.no_grad()
def generate(
    vae: VAE,
    text_encoder: TextEncoder,
    dit: DiT,
    prompt: str,
    bucket: Bucket,
    defaults: Defaults,
    seed: int,
) -> Bytes:
    """Make a clip, (T, H, W, 3), by a card's defaults: steps, solver, shift and guidance."""
    shape = vae.latent_shape(bucket.num_frames, bucket.height, bucket.width)
    latents, _ = initial_noise((1, *shape), seed)
    sampler = FlowSampler(defaults.num_inference_steps, defaults.shift, defaults.solver)
    guidance = Guidance(
        defaults.guidance_scale, defaults.guidance_start, defaults.guidance_end, defaults.guidance_rescale
    )
    velocity = guided(dit, text_encoder.encode(prompt), text_encoder.encode(""), guidance)
    for index in range(sampler.num_steps):
        latents = sampler.step(velocity, latents, index)
    return np.concatenate([frames.numpy() for frames in vae.decode_stream(latents)])


def modules_of(averages: Mapping[str, Tensor], model: ModelPart) -> tuple[TextEncoder, DiT]:
    """Build text encoder and transformer, fp32, from averaged weights under `text_encoder.` and `dit.`."""
    text_encoder = TextEncoder(**model.text_encoder)  # type: ignore[arg-type]
    dit = DiT(**model.dit)  # type: ignore[arg-type]
    for name, module in (("text_encoder", text_encoder), ("dit", dit)):
        prefix = f"{name}."
        module.load_state_dict(
            {key.removeprefix(prefix): value for key, value in averages.items() if key.startswith(prefix)}
        )
        module.eval().requires_grad_(False)
    return text_encoder, dit


def contact_sheet(clips: Sequence[Bytes], captions: Sequence[str], num_columns: int = 9) -> Image.Image:
    """Draw a row of frames per clip, evenly over its length, under its caption; the clips are of one size."""
    height, width = clips[0].shape[1:3]
    sheet = Image.new("RGB", (num_columns * (width + 2), len(clips) * (height + _CAPTION_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        top = row * (height + _CAPTION_PX)
        draw.text((2, top + 1), caption, fill="black")
        for column, index in enumerate(np.linspace(0, len(clip) - 1, num_columns).astype(int)):
            sheet.paste(Image.fromarray(clip[index]), (column * (width + 2), top + _CAPTION_PX))
    return sheet
