"""What of a clip is given before it is drawn: a first picture, a first and a last one, or the end of an earlier clip.

Given frames become clean latents that stay exactly as they are while the rest is denoised around them; the model is
told which those are. A picture in the middle of a clip has no latents of its own, because four video frames share a
latent frame that also depends on the frames before: such a picture is encoded alone and given as a hint.

Shapes: B batch (1), C latent channels, T latent frames, H and W latent rows and columns; E = C + 2 channels of a
condition. Video is uint8: pictures are (rows, columns, 3), clips (frames, rows, columns, 3), 8 pixels per latent cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitascope_common.references import num_continued_frames
from vitascope_models.vae import VAE, from_uint8

_FRAMES_PER_CHUNK = 16


@dataclass(frozen=True)
class Guide:
    """What of a clip is given; all fp32, on the model's device."""

    known_THW: Tensor
    """1 where latents are given and must stay exactly, 0 elsewhere."""
    clean_CTHW: Tensor
    """Normalised latents; 0 where not known."""
    hinted_THW: Tensor
    """1 where a hint is given, 0 elsewhere."""
    hint_CTHW: Tensor
    """Normalised latents of the hint; 0 where there is none."""

    def condition(self) -> Tensor:
        """Give what the model is told, (1, E, T, H, W): where it is known, where there is a hint, and the hint.

        The known latents themselves the model reads from the latents it is given; `pin` puts them there.
        """
        return torch.cat([self.known_THW[None], self.hinted_THW[None], self.hint_CTHW])[None]

    def pin(self, latents_BCTHW: Tensor) -> Tensor:
        """Put the clean latents where they are known and leave the others untouched."""
        return torch.where(self.known_THW > 0, self.clean_CTHW.to(latents_BCTHW.dtype), latents_BCTHW)


def first_frame(vae: VAE, image_HWC: Tensor, shape: Sequence[int]) -> Guide:
    """Begin a clip with a picture (image to video): its latents are the first latent frame.

    `shape` is the clip's latents', (C, T, H, W), as `VAE.latent_shape` gives it.

    Raises:
        ValueError: the picture has another size than the clip.
    """
    return _guide(shape, _encoded(vae, image_HWC[None], shape))


def keyframes(vae: VAE, first_HWC: Tensor, last_HWC: Tensor, shape: Sequence[int]) -> Guide:
    """Begin a clip with one picture and end it about with another: the first is kept exactly, the last is a hint.

    Raises:
        ValueError: a picture has another size than the clip, or the clip is a single latent frame.
    """
    if shape[1] < 2:
        raise ValueError("a first and a last frame need a clip of at least 2 latent frames (5 frames)")
    first, last = (_encoded(vae, each_HWC[None], shape) for each_HWC in (first_HWC, last_HWC))
    return _guide(shape, first, hint_at_the_end=last)


def extension(vae: VAE, clip_THWC: Tensor, shape: Sequence[int]) -> Guide:
    """Continue a clip: its last frames, as many as `num_continued_frames` says, are the first ones of the new clip.

    Raises:
        ValueError: the clip has another size than the new one, or one of the two has no room for continuing.
    """
    num_frames = num_continued_frames(len(clip_THWC), shape[1])
    return _guide(shape, _encoded(vae, clip_THWC[-num_frames:], shape))


def change(vae: VAE, clip_THWC: Tensor, strength: float) -> tuple[Tensor, float]:
    """Change a clip (video to video): give its latents, (1, C, T, H, W), and the flow time to start from.

    Noised to that time (`sampling.noised`) and denoised by `FlowSampler(start=...)`, it keeps what the noise left of
    it (Meng et al. 2022): at strength 0 that is the clip itself, at 1 nothing.

    Raises:
        ValueError: strength outside 0 to 1, or the clip has no latents; see `VAE.latent_shape`.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength must be from 0 to 1, not {strength}")
    return _encoded(vae, clip_THWC, vae.latent_shape(*clip_THWC.shape[:3]))[None], strength


def _encoded(vae: VAE, clip_THWC: Tensor, shape: Sequence[int]) -> Tensor:
    """Encode one clip, (C, T, H, W), without holding all of it as floats."""
    rows, columns = 8 * shape[2], 8 * shape[3]
    if tuple(clip_THWC.shape[1:]) != (rows, columns, 3):
        found = "x".join(map(str, clip_THWC.shape[1:]))
        raise ValueError(f"the frames given are {found} (rows, columns, colours), the clip's are {rows}x{columns}x3")
    device = vae.latent_mean.device
    chunks = (from_uint8(part.to(device)[None]) for part in clip_THWC.split(_FRAMES_PER_CHUNK))
    return torch.cat(list(vae.encode_stream(chunks)), dim=2)[0]


def _guide(shape: Sequence[int], begin_CTHW: Tensor, hint_at_the_end: Tensor | None = None) -> Guide:
    clean_CTHW = begin_CTHW.new_zeros(tuple(shape))
    hint_CTHW = torch.zeros_like(clean_CTHW)
    known_THW, hinted_THW = torch.zeros_like(clean_CTHW[0]), torch.zeros_like(clean_CTHW[0])
    num_known = begin_CTHW.shape[1]
    clean_CTHW[:, :num_known] = begin_CTHW
    known_THW[:num_known] = 1.0
    if hint_at_the_end is not None:
        hint_CTHW[:, -1:] = hint_at_the_end
        hinted_THW[-1] = 1.0
    return Guide(known_THW, clean_CTHW, hinted_THW, hint_CTHW)
