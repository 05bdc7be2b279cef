"""Build modules from averaged weights, and show clips as rows of frames on one sheet.

Shapes: T frames, H rows, W columns. Clips are bytes, (T, H, W, 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from vitascope_models.dit import DiT
from vitascope_models.text import TextEncoder
from vitascope_trainer.config import ModelPart
from vitascope_trainer.sources import Bytes

_CAPTION_PX = 14
_SHOWN_PX = 128  # frames that are kept for a sheet are reduced to no less than that
_SHOWN_FRAMES = 9


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


def thumbnails(clip_THWC: Bytes) -> Bytes:
    """Reduce a clip to what a sheet shows of it: a few frames, a whole number of times smaller."""
    step = max(1, min(clip_THWC.shape[1:3]) // _SHOWN_PX)
    chosen = np.linspace(0, len(clip_THWC) - 1, _SHOWN_FRAMES).round().astype(int)
    frames = clip_THWC[chosen]
    height, width = (side // step * step for side in frames.shape[1:3])
    tiles = frames[:, :height, :width].reshape(len(chosen), height // step, step, width // step, step, 3)
    reduced: Bytes = tiles.mean(axis=(2, 4)).round().astype(np.uint8)
    return reduced


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
