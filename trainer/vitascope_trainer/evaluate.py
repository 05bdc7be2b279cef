"""Measure an exported model on held-out prompts, by the probe, together with the two controls that the probe must fail.

Shapes: T frames, H rows, W columns.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vitascope_models.dit import DiT
from vitascope_models.load import load_dit, load_text_encoder, load_vae
from vitascope_models.sampling import FlowSampler, guided, initial_noise
from vitascope_models.text import TextEncoder
from vitascope_models.vae import VAE
from vitascope_trainer.export import read_card, write_card
from vitascope_trainer.probe import read, scores
from vitascope_trainer.world import held_out_prompts


@dataclass(frozen=True)
class Model:
    """A model folder, loaded."""

    card: dict[str, Any]
    text_encoder: TextEncoder
    dit: DiT
    vae: VAE


def load_model(folder: Path) -> Model:
    """Load a model folder."""
    card = read_card(folder)
    return Model(card, load_text_encoder(folder, card), load_dit(folder, card), load_vae(folder, card))


def generate(
    model: Model,
    prompt: str,
    seed: int,
    seconds: str | None = None,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    solver: str | None = None,
) -> NDArray[np.uint8]:
    """Make a clip, (T, H, W, 3) bytes, by the card's defaults where nothing else is said."""
    defaults = model.card["defaults"]
    width, height = (int(side) for side in defaults["size"].split("x"))
    num_frames = int(model.card["num_frames"][seconds or defaults["seconds"]])
    sampler = FlowSampler(num_steps or defaults["num_inference_steps"], defaults["shift"], solver or defaults["solver"])
    latents, _ = initial_noise((1, *model.vae.latent_shape(num_frames, height, width)), seed)
    velocity = guided(
        model.dit,
        model.text_encoder.encode(prompt),
        model.text_encoder.encode(""),
        defaults["guidance_scale"] if guidance_scale is None else guidance_scale,
    )
    for index in range(sampler.num_steps):
        latents = sampler.step(velocity, latents, index)
    return torch.cat(list(model.vae.decode_stream(latents))).numpy()


def evaluate(
    folder: Path, count: int, seconds: Sequence[str], num_steps: int | None, sheet: Path | None, record: bool
) -> dict[str, dict[str, float]]:
    """Score held-out prompts per clip length, with the controls; may draw a sheet and write the scores to the card."""
    model = load_model(folder)
    prompts = held_out_prompts(count)
    scenes = [scene for _, scene in prompts]
    table: dict[str, dict[str, float]] = {}
    clips: list[NDArray[np.uint8]] = []
    for length in seconds:
        began = time.perf_counter()
        clips = [generate(model, prompt, 1000 + i, length, num_steps) for i, (prompt, _) in enumerate(prompts)]
        table[f"{length} s: seconds per clip"] = {"s": (time.perf_counter() - began) / count}
        readings = [read(clip) for clip in clips]
        table[f"{length} s"] = scores(readings, scenes)
        table[f"{length} s: labels rotated by one"] = scores(readings, scenes[1:] + scenes[:1])
        empty = [generate(model, "", 1000 + i, length, num_steps, guidance_scale=1.0) for i in range(count)]
        table[f"{length} s: empty prompt"] = scores([read(clip) for clip in empty], scenes)
        if sheet is not None:
            name = sheet.with_name(f"{sheet.stem}-{length}s{sheet.suffix}")
            contact_sheet(clips[:16], [prompt for prompt, _ in prompts[:16]]).save(name)
    if record:
        default = model.card["defaults"]["seconds"]
        measured = {name: round(value, 3) for name, value in table[f"{default} s"].items()}
        others = {
            f"seconds_{length}": {name: round(value, 3) for name, value in table[f"{length} s"].items()}
            for length in seconds
            if length != default
        }
        steps = num_steps or model.card["defaults"]["num_inference_steps"]
        write_card(folder, model.card | {"evaluation": measured | {"num_prompts": count, "steps": steps} | others})
    return table


def contact_sheet(clips: Sequence[NDArray[np.uint8]], captions: Sequence[str], num_columns: int = 9) -> Image.Image:
    """Draw a row of frames per clip, evenly over its length, under its caption."""
    side, gap = clips[0].shape[1], 14
    sheet = Image.new("RGB", (num_columns * (side + 2), len(clips) * (side + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        draw.text((2, row * (side + gap) + 1), caption, fill="black")
        for column, index in enumerate(np.linspace(0, len(clip) - 1, num_columns).astype(int)):
            sheet.paste(Image.fromarray(clip[index]), (column * (side + 2), row * (side + gap) + gap))
    return sheet
