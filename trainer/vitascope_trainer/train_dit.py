"""Train the transformer and the text encoder together, by rectified flow on latents.

Some steps on the captions alone come first where the data have attributes, so that the text encoder already tells them
apart when the transformer starts to listen.

Shapes: B batch, C latent channels, T latent frames, H and W latent rows and columns, L text tokens, D text width;
E = C + 2 channels of a condition: known, hinted, and the hint.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from vitascope_models.dit import DiT
from vitascope_models.sampling import size_shift
from vitascope_models.text import TextEncoder
from vitascope_trainer.config import ConditionShares, DitStage
from vitascope_trainer.latents import Batch, Latents
from vitascope_trainer.optimiser import Rates
from vitascope_trainer.seeds import noise_generator, seeded
from vitascope_trainer.sources import Bucket, Said, Source

_MIN_CLIPS = 4
_MAX_COMPILATIONS = 2000  # every block, for every bucket, with and without a temporal mask
_PATCH_PX = 16  # pixels of a token's side: a patch of 2 x 2 latents of 8 x 8 pixels


class Student(nn.Module):
    """What is trained: text encoder, transformer, and heads that read the attributes off a caption's mean."""

    def __init__(self, text_encoder: TextEncoder, dit: DiT, classes: Mapping[str, tuple[str, ...]]) -> None:
        """Put it together; without classes there are no heads."""
        super().__init__()
        self.text_encoder = text_encoder
        self.dit = dit
        self.classes = classes
        self.heads = nn.ModuleDict(
            {name: nn.Linear(text_encoder.width, len(values)) for name, values in classes.items()}
        )

    def read(self, texts: Sequence[str], num_tokens: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Give tokens (B, L, D), their mask (B, L) and their mean (B, D); None: L is that of the longest text."""
        device = self.text_encoder.position.device
        ids_BLG, mask_BL = (each.to(device) for each in self.text_encoder.tokenizer.batch(texts, num_tokens))
        tokens_BLD, pooled_BD = self.text_encoder(ids_BLG, mask_BL)
        return tokens_BLD, mask_BL, pooled_BD

    def attribute_loss(self, pooled_BD: Tensor, said: Sequence[Said]) -> Tensor:
        """Sum the cross entropies of the attributes that the captions say."""
        total = torch.zeros((), device=pooled_BD.device)
        for name, values in self.classes.items():
            labels = [values.index(each.attributes[name]) if name in each.attributes else -100 for each in said]
            if any(label >= 0 for label in labels):
                target = torch.tensor(labels, device=pooled_BD.device)
                logits = self.heads[name](pooled_BD).float()
                total = total + functional.cross_entropy(logits, target, ignore_index=-100)
        return total


@dataclass(frozen=True)
class Given:
    """What of each clip is given besides the text."""

    known_B1THW: Tensor
    """1 where the latents are the clean ones."""
    condition_BETHW: Tensor


def given(batch: Batch, shares: ConditionShares, rng: random.Random) -> Given:
    """Give each clip nothing, its first frame, its first and last, its last, or a beginning.

    A clip that begins part-way through what its caption says gets a beginning in any case: the caption alone would ask
    for another clip.
    """
    latents = batch.latents_BCTHW
    known = torch.zeros_like(latents[:, :1])
    hinted, hint = torch.zeros_like(known), torch.zeros_like(latents)
    num_frames = latents.shape[2]
    bounds = [shares.prefix, shares.first_frame, shares.keyframes, shares.last_frame]
    for index, is_continuation in enumerate(batch.is_continuation):
        drawn = rng.random()
        kind = next((kind for kind in range(4) if drawn < sum(bounds[: kind + 1])), None)
        if is_continuation or kind == 0:
            known[index, :, : rng.randint(min(2, num_frames - 1), num_frames - 1)] = 1.0
        elif kind in (1, 2):
            known[index, :, 0] = 1.0
        if not is_continuation and kind in (2, 3):
            hinted[index, :, -1] = 1.0
            hint[index, :, -1] = batch.last_BCHW[index]
    return Given(known, torch.cat([known, hinted, hint], dim=1))


def flow_times(count: int, stage: DitStage, generator: torch.Generator) -> Tensor:
    """Draw flow times, (B,) in (0, 1), logit-normal (Esser et al. 2024, section 3.1), on the generator's device."""
    normal_B = torch.randn(count, generator=generator, device=generator.device)
    return (stage.time_spread * normal_B + stage.time_bias).sigmoid()


class DitTask:
    """What the stage `dit` trains."""

    name = "dit"

    def __init__(
        self,
        student: Student,
        stage: DitStage,
        source: Source,
        latents: Latents,
        held_out: Callable[[], Batch | None],
        draw_sheet: Callable[[Mapping[str, Tensor], int], Image.Image | None],
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        has_text_steps: bool,
        compile_blocks: bool = False,
    ) -> None:
        """Take a student, fp32; `held_out` gives clips that are measured and never trained on."""
        self.module: nn.Module = student.to(device)
        self._student = student
        self._stage = stage
        self._source = source
        self._latents = latents
        self._make_held_out = held_out
        self._draw_sheet = draw_sheet
        self._seed = seed
        self._device = device
        self.dtype = dtype
        blocks = [*student.text_encoder.blocks.named_parameters(), *student.dit.blocks.named_parameters()]
        self.matrices: Sequence[nn.Parameter] = [
            each for name, each in blocks if name.endswith("weight") and each.ndim == 2
        ]
        self.rates = Rates(
            adam=stage.learning_rate, muon=stage.muon_learning_rate, beta2=stage.beta2, average=stage.ema
        )
        self.num_steps = stage.steps
        self.num_micro_batches = stage.num_micro_batches
        self._text_steps = stage.text_steps if has_text_steps and source.classes else 0
        self._held_out: Batch | None = None
        # Compiled code is of one shape, so captions of every length come as long as the longest.
        self._num_tokens = student.text_encoder.tokenizer.max_tokens if compile_blocks else None
        if compile_blocks:
            import torch._dynamo as dynamo  # takes seconds

            dynamo.config.recompile_limit = _MAX_COMPILATIONS
            dynamo.config.accumulated_recompile_limit = _MAX_COMPILATIONS
            for block in student.dit.blocks:
                block.compile(dynamic=False)
        self._buckets = [each.bucket for each in stage.buckets]

    def scale(self, step: int) -> float:
        """Give what multiplies the learning rates; they warm up for the captions alone, and again for the clips."""
        return self._stage.scale(step, 0 if step < self._text_steps else self._text_steps)

    def loss(self, step: int, micro_batch: int) -> tuple[Tensor, int]:
        """Give the loss of a micro-batch of captions, or of clips and captions."""
        rng = seeded("dit", self._seed, step, micro_batch)
        if step < self._text_steps:
            first = (step * self.num_micro_batches + micro_batch) * self._stage.text_clips
            indices = range(first, first + self._stage.text_clips)
            said = [self._source.said(index, self._buckets[0], rng) for index in indices]
            _, _, pooled_BD = self._student.read([each.text for each in said])
            return self._stage.attribute_weight * self._student.attribute_loss(pooled_BD, said), len(said)
        # All micro-batches of a step share what decides how long they take.
        together = seeded("dit", self._seed, step)
        bucket = together.choices(self._buckets, [each.weight for each in self._stage.buckets])[0]
        temporal = self._stage.temporal.model_dump()
        mode = together.choices(list(temporal), list(temporal.values()))[0]
        batch = self._latents.draw(bucket, self.num_clips(bucket), step, micro_batch, rng)
        said = [Said("") if rng.random() < self._stage.caption_dropout else each for each in batch.said]
        noise = noise_generator(self._device, "dit", self._seed, step, micro_batch)
        u_B = flow_times(len(said), self._stage, noise)
        text = self._student.read([each.text for each in said], self._num_tokens)
        loss = self._flow_loss(batch, given(batch, self._stage.conditions, rng), u_B, text, noise, mode)
        if self._stage.attribute_weight:
            loss = loss + self._stage.attribute_weight * self._student.attribute_loss(text[2], said)
        return loss, len(said)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Give the flow loss over the same held-out clips at flow times all over (0, 1), with nothing given."""
        if self._held_out is None:
            self._held_out = self._make_held_out()
        batch = self._held_out
        if batch is None:
            return {}
        noise = noise_generator(self._device, "dit check")
        nothing = given(batch, ConditionShares(first_frame=0, keyframes=0, last_frame=0, prefix=0), seeded("nothing"))
        t_B = torch.linspace(0.02, 0.98, len(batch.said), device=self._device)
        text = self._student.read([each.text for each in batch.said])
        with torch.compiler.set_stance("force_eager") if self._num_tokens else contextlib.nullcontext():
            loss = self._flow_loss(batch, nothing, t_B, text, noise, "full", is_shifted=False)
        return {"held_out_loss": float(loss)}

    def sheet(self, averages: Mapping[str, Tensor], num_clips: int) -> Image.Image | None:
        """Generate clips from held-out captions with the averaged weights."""
        return self._draw_sheet(averages, num_clips)

    def num_clips(self, bucket: Bucket) -> int:
        """Give the clips in a micro-batch of a bucket: about the same number of tokens for every bucket."""
        num_tokens = ((bucket.num_frames - 1) // 4 + 1) * tokens_per_frame(bucket)
        return max(_MIN_CLIPS, self._stage.tokens_per_batch // num_tokens)

    def _flow_loss(
        self,
        batch: Batch,
        given_: Given,
        u_B: Tensor,
        text: tuple[Tensor, Tensor, Tensor],
        generator: torch.Generator,
        temporal: str,
        is_shifted: bool = True,
    ) -> Tensor:
        """Weigh and average the squared error of the velocity where the latents are not given (Liu et al. 2022).

        `u_B` are flow times before the shift that larger frames need (Esser et al. 2024, section 5.3.2).
        """
        latents, known = batch.latents_BCTHW.to(self._device), given_.known_B1THW.to(self._device)
        if is_shifted:
            num_tokens = latents.shape[3] * latents.shape[4] // 4
            shift = size_shift(1.0, num_tokens, self._stage.base_tokens)
            u_B = shift * u_B / (1.0 + (shift - 1.0) * u_B)
        noise = torch.randn(latents.shape, generator=generator, device=self._device)
        t = u_B[:, None, None, None, None]
        noisy = torch.where(known > 0, latents, (1.0 - t) * latents + t * noise)
        condition = given_.condition_BETHW.to(self._device, self.dtype)
        tokens_BLD, mask_BL, pooled_BD = text
        velocity = self._student.dit(
            noisy.to(self.dtype), u_B, tokens_BLD, mask_BL, pooled_BD, condition, temporal=temporal
        )
        weights = 1.0 - known
        if batch.objects_BTHW is not None:
            weights = weights * (1.0 + self._stage.object_weight * batch.objects_BTHW[:, None].to(self._device))
        error: Tensor = velocity.float() - (noise - latents)
        return (weights / weights.mean() * error.square()).mean()


def tokens_per_frame(bucket: Bucket) -> int:
    """Give the transformer's tokens for a latent frame."""
    return (bucket.height // _PATCH_PX) * (bucket.width // _PATCH_PX)
