"""Train the VAE: weighted L1 + L2 with a little KL, on excerpts of clips.

Being causal and convolutional, it learns on short and small excerpts what it then does at any length and size.

Shapes: B batch, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from vitascope_models.vae import VAE, from_uint8, to_uint8
from vitascope_trainer.config import VaeStage
from vitascope_trainer.latents import Window
from vitascope_trainer.optimiser import Rates
from vitascope_trainer.seeds import noise_generator, seeded
from vitascope_trainer.sheets import contact_sheet
from vitascope_trainer.sources import Bucket, Source

_WHOLE_EVERY = 4  # one step in so many sees whole excerpts; a crop holds about twice the object pixels per FLOP
_NUM_SPOTS = 4
_NUM_HELD_OUT = 8


@dataclass(frozen=True)
class Excerpt:
    """A piece cut out of a clip, in time and in space."""

    frames_THWC: Tensor
    mask_THW: Tensor | None


def excerpt(source: Source, index: int, stage: VaeStage, seed: int) -> Excerpt:
    """Give excerpt i of a source; it is the same whenever it is asked for."""
    rng = seeded("excerpt", seed, index)
    side = rng.choice(stage.sides_px)
    num_frames = rng.choice(stage.lengths)
    clip = source.clip(index, Bucket(num_frames, side, side))
    begin = rng.choice((0, rng.randint(0, num_frames - stage.num_frames)))
    window = slice(begin, begin + stage.num_frames)
    mask = None if clip.mask_THW is None else torch.from_numpy(clip.mask_THW[window].copy())
    return cropped(Excerpt(torch.from_numpy(clip.frames_THWC[window].copy()), mask), stage.side_px, rng)


def cropped(piece: Excerpt, side: int, rng: random.Random) -> Excerpt:
    """Cut a square out of an excerpt: of four random ones, on the latent grid, the one that shows most of an object."""
    height, width = piece.frames_THWC.shape[1:3]
    spots = [(8 * rng.randint(0, (height - side) // 8), 8 * rng.randint(0, (width - side) // 8))]
    if piece.mask_THW is not None:
        spots += [
            (8 * rng.randint(0, (height - side) // 8), 8 * rng.randint(0, (width - side) // 8))
            for _ in range(_NUM_SPOTS - 1)
        ]
        sparse = piece.mask_THW[::4]
        shown = [int(sparse[:, y : y + side, x : x + side].sum()) for y, x in spots]
        spots = [spots[shown.index(max(shown))]]
    y, x = spots[0]
    mask = None if piece.mask_THW is None else piece.mask_THW[:, y : y + side, x : x + side]
    return Excerpt(piece.frames_THWC[:, y : y + side, x : x + side], mask)


def loss_weights(mask_BTHW: Tensor, object_weight: float = 1.0) -> Tensor:
    """Weigh pixels, (B, T, H, W), of a mask in [0, 1]: 1, and 3 more near the object, and 6 more along its edge.

    `object_weight` multiplies what is more than 1.
    """
    wide = functional.max_pool2d(mask_BTHW, 5, 1, 2)
    inner = -functional.max_pool2d(-mask_BTHW, 3, 1, 1)
    edge = functional.max_pool2d(mask_BTHW, 3, 1, 1) - inner
    return 1.0 + object_weight * (3.0 * wide + 6.0 * edge)


class VaeTask:
    """What the stage `vae` trains."""

    name = "vae"

    def __init__(
        self,
        vae: VAE,
        stage: VaeStage,
        source: Source,
        held_out: Source | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Take a VAE, fp32; `held_out` is measured and never trained on."""
        # The loop brings the module to a lower precision; what is not trained stays what it was, bit for bit.
        self._kept: dict[str, Tensor] = {}
        if not stage.train_encoder:
            vae.encoder.requires_grad_(False)
            everything = vae.state_dict().items()
            self._kept = {name: value.clone() for name, value in everything if not name.startswith("decoder.")}
        self.module: nn.Module = vae.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._vae = vae
        self._stage = stage
        self._source = source
        self._held_out = held_out
        self._seed = seed
        self._device = device
        self.dtype = dtype
        self.matrices: Sequence[nn.Parameter] = ()
        self.rates = Rates(adam=stage.learning_rate, beta2=stage.beta2, average=stage.ema)
        self.num_steps = stage.steps
        self.num_micro_batches = stage.num_micro_batches
        self._windows: dict[int, Window[Excerpt]] = {}
        self._checks: list[Excerpt] = []

    def scale(self, step: int) -> float:
        """Give what multiplies the learning rate."""
        return self._stage.scale(step)

    def loss(self, step: int, micro_batch: int) -> tuple[Tensor, int]:
        """Encode, sample, decode and compare."""
        rng = seeded("vae", self._seed, step, micro_batch)
        is_whole = step % _WHOLE_EVERY == 0
        count = self._stage.num_whole if is_whole else self._stage.num_crops
        drawn = [piece for _, piece in self._window(micro_batch).draw(step, count, rng)]
        pieces = drawn if is_whole else [cropped(piece, self._stage.crop_px, rng) for piece in drawn]
        noise = noise_generator(self._device, "vae", self._seed, step, micro_batch)
        return self._distance(pieces, noise)[0], count

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Give the held-out loss and PSNR, in dB, over the same few excerpts each time."""
        checks = self._held_out_excerpts()
        if not checks:
            return {}
        loss, error = self._distance(checks, noise_generator(self._device, "vae check"))
        psnr_db = 10 * (4.0 / error.square().mean(dim=(1, 2, 3, 4)).clamp(min=1e-9)).log10().mean()
        return {"held_out_loss": float(loss), "held_out_psnr_db": float(psnr_db)}

    @torch.no_grad()
    def sheet(self, averages: Mapping[str, Tensor], num_clips: int) -> Image.Image | None:
        """Draw held-out excerpts above what becomes of them."""
        checks = self._held_out_excerpts()[: max(1, num_clips // 2)]
        if not checks:
            return None
        vae = self._averaged(averages)
        frames, captions = [], []
        for number, piece in enumerate(checks):
            video = from_uint8(piece.frames_THWC[None])
            mean, _ = vae.moments(video)
            frames += [piece.frames_THWC.numpy(), to_uint8(vae.reconstruct(mean))[0].numpy()]
            captions += [f"held-out excerpt {number}", "reconstructed"]
        return contact_sheet(frames, captions)

    @torch.no_grad()
    def finished(self, averages: Mapping[str, Tensor]) -> VAE:
        """Build the averaged VAE, fp32, on the CPU, with the mean and spread of its latents over the training data.

        An encoder that was not trained keeps its latents' mean and spread too.
        """
        if self._kept:
            return self._averaged(averages)
        return measured(self._averaged(averages), self._source, self._stage, self._seed)

    def _averaged(self, averages: Mapping[str, Tensor]) -> VAE:
        vae = copy.deepcopy(self._vae).float().cpu().eval()
        vae.load_state_dict({**averages, **self._kept}, strict=False)
        return vae

    def _window(self, micro_batch: int) -> Window[Excerpt]:
        stride = self._stage.num_micro_batches
        if micro_batch not in self._windows:
            self._windows[micro_batch] = Window(
                lambda index: excerpt(self._source, index * stride + micro_batch, self._stage, self._seed),
                self._stage.window_clips,
                self._stage.fresh_clips,
            )
        return self._windows[micro_batch]

    def _held_out_excerpts(self) -> list[Excerpt]:
        if self._held_out is not None and not self._checks:
            self._checks = [excerpt(self._held_out, index, self._stage, self._seed) for index in range(_NUM_HELD_OUT)]
        return self._checks

    def _distance(self, pieces: Sequence[Excerpt], noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """Give the loss and the error, fp32 (B, 3, T, H, W)."""
        video = from_uint8(torch.stack([piece.frames_THWC for piece in pieces]).to(self._device))
        masks = [piece.mask_THW for piece in pieces if piece.mask_THW is not None]
        mean, log_var = (each.float() for each in self._vae.moments(video.to(self.dtype)))
        drawn = torch.randn(mean.shape, generator=noise, device=self._device)
        sample = mean + drawn * (0.5 * log_var).exp()
        error = self._vae.reconstruct(sample.to(self.dtype)).float() - video
        distance = error.abs() + 2.0 * error.square()
        if len(masks) == len(pieces):
            shown = torch.stack(masks).to(self._device).float() / 255.0
            weights = loss_weights(shown, self._stage.object_weight)[:, None]
            distance = weights * distance / weights.mean()
        divergence = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).mean()
        return distance.mean() + self._stage.kl_weight * divergence, error


@torch.no_grad()
def measured(vae: VAE, source: Source, stage: VaeStage, seed: int) -> VAE:
    """Measure mean and spread of each latent channel over fresh excerpts and store them in the VAE."""
    means = []
    for index in range(stage.num_measured):
        # Far down the stream: no training run gets there.
        piece = excerpt(source, (1 << 40) + index, stage, seed)
        mean, _ = vae.moments(from_uint8(piece.frames_THWC[None]))
        means.append(mean.transpose(0, 1).flatten(1))
    flat = torch.cat(means, dim=1)
    vae.latent_mean.copy_(flat.mean(dim=1))
    vae.latent_std.copy_(flat.std(dim=1).clamp(min=1e-4))
    return vae
