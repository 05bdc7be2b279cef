"""Several ranks that work as one: rank 0 decides and talks to the outside, the others obey.

Whatever the ranks have to do together, rank 0 announces with one order, at the latest at the next boundary between two
steps. What it does alone (claim, checkpoint, yield, decode, report) is no order: meanwhile the others wait for the next
one. So they have nothing to decide and cannot diverge. Latents are the same on all ranks, which is why rank 0's
checkpoint is whole and its decoder needs nobody.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import structlog
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from vitascope_common.errors import InternalError
from vitascope_common.jobs import GenerateParams, params_to_dict
from vitascope_common.registry import ModelCard
from vitascope_gpu_worker.engine import Engine, Run, Snapshot
from vitascope_gpu_worker.errors import GroupError

log = structlog.stdlib.get_logger("vitascope.gpu-worker")


class Order(IntEnum):
    """What rank 0 wants of all."""

    LOAD = 1  # a model, and meet when it is loaded
    BEGIN = 2  # a clip: parameters and conditioning, references included
    RESTORE = 3  # rank 0's state: latents, sampler, generator
    STEP = 4  # the step of this number
    LEAVE = 5


@dataclass(frozen=True)
class Message:
    """An order and what belongs to it."""

    order: Order
    number: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Ranks(Protocol):
    """The ranks of one group, as one of them sees them. Every method raises RankLostError when one is gone."""

    rank: int
    mesh: DeviceMesh

    def tell(
        self,
        order: Order,
        number: int = 0,
        values: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Order something of all other ranks. Rank 0 only."""
        ...

    def hear(self) -> Message:
        """Wait for rank 0's next order, however long. The other ranks only."""
        ...

    def meet(self) -> None:
        """Wait until all ranks are here."""
        ...


class LoadedModels(Protocol):
    """Models by name and weights."""

    def get(self, model_id: str, model_sha256: str) -> tuple[ModelCard, Engine]: ...


class LedEngine:
    """A model whose steps all ranks take together, as rank 0 sees it; one run at a time.

    Raises RankLostError when a rank is gone, and another GroupError whenever nobody can know how far the others are.
    """

    def __init__(self, engine: Engine, ranks: Ranks) -> None:
        self._engine = engine
        self._ranks = ranks
        self._common_step: int | None = None
        """The step before which all ranks have the same state; None: the others have not seen this run's."""

    def load(self, card: ModelCard) -> None:
        """Let the other ranks load the model that this one has loaded."""
        self._ranks.tell(Order.LOAD, values={"model": card.id, "sha256": card.sha256})
        self._ranks.meet()

    def prepare(self, params: GenerateParams, conditioning: Mapping[str, Tensor]) -> Run:
        """Begin a clip; see `Engine`."""
        run = self._engine.prepare(params, conditioning)  # refuses before anybody is told
        self._ranks.tell(Order.BEGIN, values=params_to_dict(params), tensors=conditioning)
        self._common_step = None
        return run

    def step(self, run: Run) -> None:
        """Take the next step, together; see `Engine`."""
        if self._common_step != run.step:
            snapshot = run.snapshot()
            self._ranks.tell(Order.RESTORE, snapshot.step, tensors=snapshot.tensors())
        self._common_step = None
        self._ranks.tell(Order.STEP, run.step)
        try:
            self._engine.step(run)
        except GroupError:
            raise
        except Exception as error:  # the others may have taken the step, or wait in it
            log.error("rank.step_failed", step=run.step, exc_info=error)
            raise GroupError() from error
        self._common_step = run.step

    def preview(self, run: Run) -> Tensor | None:
        """Return what the steps are heading for; see `Engine`. Rank 0's alone."""
        return self._engine.preview(run)

    def decode(self, run: Run) -> Iterator[Tensor]:
        """Yield the frames; see `Engine`. Rank 0's alone."""
        return self._engine.decode(run)


def follow(ranks: Ranks, models: LoadedModels) -> None:
    """Do what rank 0 orders, until it says to leave.

    Raises:
        RankLostError: rank 0 or another is gone, also in the middle of a step. This, and any other error, ends the
            process: the group starts anew.
    """
    engine: Engine | None = None
    run: Run | None = None
    while True:
        message = ranks.hear()
        if message.order is Order.LEAVE:
            return
        if message.order is Order.LOAD:
            run = None
            _, engine = models.get(message.values["model"], message.values["sha256"])
            ranks.meet()
        elif message.order is Order.BEGIN and engine is not None:
            run = engine.prepare(GenerateParams.from_dict(message.values), message.tensors)
        elif message.order is Order.RESTORE and run is not None:
            run.restore(Snapshot.from_tensors(message.number, message.tensors))
        elif message.order is Order.STEP and engine is not None and run is not None and run.step == message.number:
            engine.step(run)
        else:
            raise InternalError(f"Rank {ranks.rank} was ordered to {message.order.name} {message.number} out of turn.")
