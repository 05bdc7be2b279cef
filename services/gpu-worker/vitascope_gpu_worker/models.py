"""The models of this worker: one is loaded and stays so until a task needs another."""

import gc
from collections.abc import Mapping, Sequence

import structlog
import torch

from vitascope_common.errors import ConfigurationError, InvalidModelError
from vitascope_common.registry import ModelCard, Registry
from vitascope_gpu_worker.device import device_errors
from vitascope_gpu_worker.engine import Engine, LoadEngine
from vitascope_gpu_worker.engines import native
from vitascope_gpu_worker.ranks import LedEngine, Ranks

log = structlog.stdlib.get_logger("vitascope.gpu-worker")

ENGINES: Mapping[str, LoadEngine] = {"native": native.load}


class Models:
    """Loads what a task names, verified, and keeps the last one; with `ranks`, this rank's share of it."""

    def __init__(self, registry: Registry, device: torch.device, ranks: Ranks | None = None) -> None:
        self._registry = registry
        self._device = device
        self._ranks = ranks
        self._loaded: tuple[ModelCard, Engine] | None = None

    @property
    def warm(self) -> tuple[str, ...]:
        """Name the models that are loaded."""
        return (self._loaded[0].id,) if self._loaded else ()

    def get(self, model_id: str, model_sha256: str) -> tuple[ModelCard, Engine]:
        """Return exactly this model, loaded.

        Raises:
            CorruptObjectError: a file differs from the card; nothing of it is served.
            NotFoundError: no such model, or a file is missing.
            InvalidModelError: it is not the one that the task was accepted for, it cannot be divided among so many
                ranks, or no engine runs it.
        """
        card = self._registry.card(model_id)
        if card.sha256 != model_sha256:
            raise InvalidModelError(
                f"Model {model_id} has changed since this job was accepted: it is {card.sha256[:12]} now, "
                f"the job needs {model_sha256[:12]}."
            )
        mesh = self._ranks.mesh if self._ranks else None
        num_ranks = mesh.size() if mesh is not None else 1
        if num_ranks not in _num_ranks_allowed(card):
            raise InvalidModelError(
                f"Model {model_id} allows {list(_num_ranks_allowed(card))} ranks; this worker consists of {num_ranks}."
            )
        if self._loaded and self._loaded[0].sha256 == card.sha256 and self._loaded[0].id == card.id:
            return card, self._loaded[1]
        load = ENGINES.get(card.engine)
        if load is None:
            raise InvalidModelError(
                f"Model {model_id} needs the engine {card.engine!r}; there are: {', '.join(ENGINES)}."
            )
        folder = self._registry.fetch(card)
        self._unload()
        engine = load(card, folder, self._device, mesh)
        if self._ranks and self._ranks.rank == 0:
            led = LedEngine(engine, self._ranks)
            led.load(card)
            engine = led
        self._loaded = (card, engine)
        log.info("model.loaded", model=card.id, sha256=card.sha256, device=str(self._device))
        return self._loaded

    def _unload(self) -> None:
        """Give the memory back."""
        if self._loaded is None:
            return
        self._loaded = None
        gc.collect()
        if self._device.type == "cuda":
            with device_errors():
                torch.cuda.empty_cache()


def check_world_size(registry: Registry, pool: str, world_size: int) -> None:
    """Refuse a number of ranks that a model of this pool does not list.

    Raises:
        ConfigurationError: names the models and what they allow.
    """
    problems = []
    for card in registry.cards():
        if card.pool == pool and world_size not in _num_ranks_allowed(card):
            problems.append(f"model {card.id} allows {list(_num_ranks_allowed(card))}")
    if problems:
        raise ConfigurationError(
            f"gpu-worker was started with {world_size} ranks in pool {pool!r}, but {'; '.join(problems)}. "
            "Start torchrun with another --nproc-per-node."
        )


def _num_ranks_allowed(card: ModelCard) -> Sequence[int]:
    return card.parallelism.get("tensor_parallel", [1])
