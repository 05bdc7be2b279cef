"""Load a model of the registry, and say which clips it is to make for its evaluation."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch

from vitascope_common.errors import ConfigurationError
from vitascope_common.registry_cards import ModelCard, load_card
from vitascope_models.attention import TEMPORAL_MODES
from vitascope_models.load import load_dit, load_text_encoder, load_vae
from vitascope_models.sampling import FlowSampler
from vitascope_trainer.generation import Parts, Settings, generate

_SIZE = re.compile(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")


Progress = Callable[[int], None]
"""Is told how many further clips are done."""
_Task = TypeVar("_Task")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Model(Parts):
    """A model folder, loaded."""

    card: ModelCard


def settings_of(
    card: ModelCard,
    size: str | None = None,
    num_frames: int | None = None,
    num_steps: int | None = None,
    attention: str | None = None,
) -> Settings:
    """Fill in a card's defaults; `size` is WxH in pixels.

    Raises:
        ConfigurationError: names what is not of the form that it should have.
    """
    defaults = card.defaults
    size = size or defaults.size
    if not _SIZE.fullmatch(size):
        raise ConfigurationError(f"A size is WIDTHxHEIGHT in pixels, as in 64x64, not {size!r}.")
    if attention is not None and attention not in TEMPORAL_MODES:
        raise ConfigurationError(f"A temporal attention is one of {', '.join(TEMPORAL_MODES)}, not {attention!r}.")
    width_px, height_px = (int(side) for side in size.split("x"))
    num_frames = num_frames or int(card.num_frames[defaults.seconds])
    settings = Settings.of(defaults, width_px, height_px, num_frames, card.shift_for(size))
    return replace(settings, num_steps=num_steps or settings.num_steps, attention=attention)


def load_model(folder: Path) -> Model:
    """Load a model folder.

    Raises:
        ConfigurationError: the card is none, or not of a model that makes clips.
        InvalidModelError: its files do not hold what the card says.
    """
    card = load_card(folder / "card.yaml")
    if not isinstance(card, ModelCard):
        raise ConfigurationError(f"{folder} is a {card.kind} model; only models that make clips can be judged.")
    values = card.model_dump(mode="json")
    return Model(load_text_encoder(folder, values), load_dit(folder, values), load_vae(folder, values), card)


@lru_cache(maxsize=1)
def loaded(folder: Path) -> Model:
    """Give a model folder, loaded once in a process."""
    return load_model(folder)


def shared_out(
    make: Callable[[_Task], _Made], tasks: Sequence[_Task], processes: int, progress: Progress
) -> list[_Made]:
    """Make a clip, or what is found out about it, of each task, in their order.

    Several processes have one thread each: on a few cores they are faster than one process of several.
    """
    with contextlib.ExitStack() as held:
        made: Iterator[_Made] = map(make, tasks)
        if processes > 1:
            spawn = multiprocessing.get_context("spawn")
            made = held.enter_context(ProcessPoolExecutor(processes, spawn, torch.set_num_threads, (1,))).map(
                make, tasks
            )
        found = []
        for each in made:
            found.append(each)
            progress(1)
    return found


def check(model: Model, settings: Settings) -> None:
    """Refuse clips that the model cannot make or that the probe cannot read.

    Raises:
        ConfigurationError: says what clips there can be.
    """
    width, height, num_frames = settings.width_px, settings.height_px, settings.num_frames
    if width % 16 or height % 16 or min(width, height) < 64 or num_frames % 4 != 1 or num_frames < 5:
        raise ConfigurationError(
            f"Clips of {num_frames} frames of {width}x{height} cannot be judged: there must be 4k+1 frames, 5 or more,"
            " and sides of 16k pixels, 64 or more."
        )
    try:
        model.vae.latent_shape(num_frames, height, width)
        FlowSampler(settings.num_steps, settings.shift, settings.solver)
    except ValueError as error:
        raise ConfigurationError(f"{model.card.id} cannot make such clips: {error}.") from error


def seconds_per_clip(model: Model, prompts: Sequence[str], settings: Settings) -> float:
    """Give the mean time in seconds that one clip by itself takes with all threads, after one that does not count."""
    began = 0.0
    for index, prompt in enumerate((prompts[0], *prompts)):
        if index == 1:
            began = time.perf_counter()
        list(generate(model, [prompt], [index], settings))
    return (time.perf_counter() - began) / len(prompts)
