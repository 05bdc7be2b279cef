"""Samples per second of the transformer's training, from cached latents and from clips drawn and encoded on the fly.

The recipe that makes the shipped model, its commonest bucket and four clips a step, one process of one thread. Both
ways take the same steps in alternation; the fresh one draws and encodes as many new clips in a step as it trains on.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from tests.bench.figures import Figure

from vitascope_models.dit import DiT
from vitascope_models.text import TextEncoder
from vitascope_models.vae import VAE
from vitascope_trainer.config import Recipe, WorldData, overridden
from vitascope_trainer.latents import CachedLatents, Encoder, FreshLatents, Latents, cache_layout, encode_cache
from vitascope_trainer.optimiser import Optimiser
from vitascope_trainer.processes import Group
from vitascope_trainer.recipes import vita_mini_6
from vitascope_trainer.sources import WorldSource
from vitascope_trainer.train_dit import DitTask, Student

NUM_STEPS = 5
NUM_CLIPS = 32
GOAL = 1.1
"""Less, and the cache is not worth its disk."""
CPU = torch.device("cpu")


def run() -> list[Figure]:
    """Measure."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    recipe = overridden(vita_mini_6(), ["dit.text_steps=0", "dit.num_micro_batches=1", "dit.tokens_per_batch=1280"])
    bucket = recipe.dit.buckets[0].bucket
    assert isinstance(recipe.data, WorldData)
    source = WorldSource(0, recipe.data.dit.mix)
    encoder = Encoder(VAE(**recipe.model.vae), CPU, torch.bfloat16)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        layout = cache_layout(Path(folder), "bench", recipe.precision, source, bucket, NUM_CLIPS, NUM_CLIPS)
        encode_cache(layout, source, bucket, encoder, Group(0, 1, CPU), lambda _: None)
        cached = _Trainer(recipe, source, CachedLatents(source, {bucket: layout}))
        fresh = _Trainer(recipe, source, FreshLatents(source, encoder, 1, cached.num_clips, 1))
        rates: list[tuple[float, float]] = []
        for step in range(NUM_STEPS + 1):
            rates.append((cached.clips_per_s(step), fresh.clips_per_s(step)))
    fast, slow = (statistics.median(column) for column in zip(*rates[1:], strict=True))
    return [Figure("training from cached latents / encoding while training", fast, "clips/s", slow, GOAL, "higher")]


class _Trainer:
    """The training loop's inner part, without checkpoints and reports."""

    def __init__(self, recipe: Recipe, source: WorldSource, latents: Latents) -> None:
        torch.manual_seed(0)
        model = recipe.model
        student = Student(TextEncoder(**model.text_encoder), DiT(**model.dit), source.classes)  # type: ignore[arg-type]
        stage = recipe.dit.model_copy(update={"buckets": recipe.dit.buckets[:1]})
        self._task = DitTask(
            student, stage, source, latents, lambda: None, lambda *_: None, 0, CPU, torch.bfloat16, has_text_steps=False
        )
        self._optimiser = Optimiser(student.parameters(), self._task.matrices, self._task.rates)
        student.to(torch.bfloat16)
        self.num_clips = self._task.num_clips(stage.buckets[0].bucket)

    def clips_per_s(self, step: int) -> float:
        begun_s = time.perf_counter()
        loss, count = self._task.loss(step, 0)
        loss.backward()
        self._optimiser.accumulate()
        self._optimiser.step(1.0)
        return count / (time.perf_counter() - begun_s)
