"""What the worker needs of a model family. Checkpoint, progress, pre-emption and cancel are written once, around this.

Shapes: B batch (1), C latent channels, T latent frames, H and W latent rows and columns; video frames are T, H, W, 3.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from vitascope_common.jobs import GenerateParams
from vitascope_common.registry import ModelCard
from vitascope_gpu_worker.device import device_errors
from vitascope_gpu_worker.errors import InvalidLatentsError

_SAMPLER = "sampler."
REFERENCE = "reference."
"""What a clip is made from, among its conditioning: `reference.ROLE`, uint8 frames of the clip's size."""


class Sampler(Protocol):
    """What remembers something between steps."""

    def state_dict(self) -> Mapping[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Snapshot:
    """All that the remaining steps depend on, on the CPU: what a checkpoint holds."""

    step: int
    """Steps taken."""
    latents_BCTHW: Tensor
    sampler: Mapping[str, Tensor]
    rng: Tensor
    """State of the generator that drew the noise, uint8."""

    def tensors(self) -> dict[str, Tensor]:
        """Return everything but the step, by name, as files and messages hold it."""
        sampler = {f"{_SAMPLER}{name}": value for name, value in self.sampler.items()}
        return {"latents": self.latents_BCTHW, "rng": self.rng, **sampler}

    @classmethod
    def from_tensors(cls, step: int, tensors: Mapping[str, Tensor]) -> "Snapshot":
        """Rebuild what `tensors` returned."""
        sampler = {name.removeprefix(_SAMPLER): one for name, one in tensors.items() if name.startswith(_SAMPLER)}
        return cls(step, tensors["latents"], sampler, tensors["rng"])


@dataclass
class Run:
    """One clip under way."""

    params: GenerateParams
    latents_BCTHW: Tensor
    sampler: Sampler
    generator: torch.Generator
    """The only source of randomness of this run."""
    context: Any
    """What the engine needs for its steps."""
    step: int = 0
    """Steps taken."""

    @property
    def is_denoised(self) -> bool:
        """Tell whether no step is left."""
        return self.step >= self.params.num_inference_steps

    def snapshot(self) -> Snapshot:
        """Copy what a resume needs.

        Raises:
            InvalidLatentsError: NaN or infinity, which no checkpoint may hold.
            GroupError: the device failed.
        """
        with device_errors():
            if not bool(torch.isfinite(self.latents_BCTHW).all()):
                raise InvalidLatentsError()
            return Snapshot(
                self.step,
                _copy(self.latents_BCTHW),
                {name: _copy(value) for name, value in self.sampler.state_dict().items()},
                self.generator.get_state(),
            )

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of the same parameters, bit-identically. Raises: GroupError: the device failed."""
        with device_errors():
            self.latents_BCTHW = snapshot.latents_BCTHW.to(self.latents_BCTHW.device)
            self.sampler.load_state_dict(snapshot.sampler)
            self.generator.set_state(snapshot.rng)
        self.step = snapshot.step


class Engine(Protocol):
    """A loaded model. It keeps nothing of a run; the run keeps nothing of the worker."""

    def prepare(self, params: GenerateParams, conditioning: Mapping[str, Tensor]) -> Run:
        """Begin a clip at step 0 from its seed's noise.

        `conditioning` holds what the prompt service made of the prompts, and for each reference of the parameters
        `REFERENCE` + role: a picture, uint8 (H, W, 3), or a clip, uint8 (T, H, W, 3).

        Raises:
            InvalidRequestError: the model cannot do this.
            GroupError: no memory, or the device failed.
        """
        ...

    def step(self, run: Run) -> None:
        """Take the next step. Raises: GroupError: no memory, a failed device, a lost rank; the process must end."""
        ...

    def preview(self, run: Run) -> Tensor | None:
        """Return what the steps are heading for, small and rough: uint8 (T, H, W, 3) on the CPU.

        None before the first step of this process. Takes no longer than a small part of a step.
        """
        ...

    def decode(self, run: Run) -> Iterator[Tensor]:
        """Yield the frames, uint8 (T, H, W, 3) on the CPU, a few at a time. Raises: GroupError."""
        ...


class LoadEngine(Protocol):
    """Build an engine from a card and the folder of its verified files; divided among the ranks of a mesh."""

    def __call__(self, card: ModelCard, folder: Path, device: torch.device, mesh: DeviceMesh | None) -> Engine: ...


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
