"""One optimiser for modules in bf16 or fp32: fp32 masters, Muon for hidden matrices, AdamW for the rest, an average.

Every process holds the whole state as a few flat fp32 vectors (P elements), which makes a checkpoint four tensors and a
gradient exchange one all-reduce. Muon's orthogonalisation, the expensive part, is shared out over the processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

_STATE = ("master", "first", "second", "average")


@dataclass(frozen=True)
class Rates:
    """Learning rates and decays; `muon` 0 leaves everything to AdamW."""

    adam: float
    muon: float = 0.0
    weight_decay: float = 0.01
    beta2: float = 0.98
    clip: float = 1.0
    average: float = 0.998


@dataclass(frozen=True)
class Update:
    """What a step did: the norm of its gradient before clipping, and the sums of `shared` over the processes."""

    gradient_norm: float
    shared: tuple[float, ...]

    @property
    def is_skipped(self) -> bool:
        """Say whether the gradient was not finite, so that nothing was changed."""
        return not math.isfinite(self.gradient_norm)


class Optimiser:
    """Update parameters from their gradients through fp32 masters."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        matrices: Iterable[nn.Parameter],
        rates: Rates,
    ) -> None:
        """Take all `parameters`; those also among `matrices` are Muon's.

        The masters are made of the values found now: bring the modules to a lower precision after this, not before.
        """
        muon = {id(matrix) for matrix in matrices} if rates.muon else set()
        unique = {id(parameter): parameter for parameter in parameters}
        self._muon = [parameter for key, parameter in unique.items() if key in muon]
        self._all = self._muon + [parameter for key, parameter in unique.items() if key not in muon]
        self._split = sum(parameter.numel() for parameter in self._muon)
        self.rates = rates
        self.num_steps = 0
        self.master = torch.cat([parameter.detach().float().flatten() for parameter in self._all])
        self.first = torch.zeros_like(self.master)
        self.second = torch.zeros_like(self.master)
        self.average = self.master.clone()
        self._gradient = torch.zeros_like(self.master)

    def state(self) -> dict[str, Tensor]:
        """Give everything a resumed run needs."""
        return {"num_steps": torch.tensor(self.num_steps)} | {name: getattr(self, name) for name in _STATE}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from `state()`."""
        self.num_steps = int(state["num_steps"])
        for name in _STATE:
            getattr(self, name).copy_(state[name])
        self.write_master()

    def accumulate(self) -> None:
        """Take the parameters' gradients, add them up in fp32, and clear them."""
        offset = 0
        for parameter in self._all:
            end = offset + parameter.numel()
            if parameter.grad is not None:
                self._gradient[offset:end] += parameter.grad.flatten()
                parameter.grad = None
            offset = end

    def step(self, scale: float, shared: Sequence[float] = ()) -> Update:
        """Add up what all processes accumulated and update; `scale` multiplies the rates.

        `shared` are figures to be added up along the way. A step whose gradient is not finite changes nothing but the
        count.
        """
        figures = torch.tensor(shared, dtype=torch.float32, device=self.master.device)
        gradient = torch.cat([self._gradient, figures])
        self._gradient.zero_()
        if _num_processes() > 1:
            dist.all_reduce(gradient)
        gradient, sums = gradient.tensor_split([len(self.master)])
        self.num_steps += 1
        update = Update(float(gradient.norm()), tuple(sums.tolist()))
        if update.is_skipped:
            return update
        gradient *= min(1.0, self.rates.clip / (update.gradient_norm + 1e-6))
        self._adam(gradient[self._split :], self.rates.adam * scale)
        if self._muon:
            self._orthogonal(gradient[: self._split], self.rates.muon * scale)
        decay = min(self.rates.average, 1.0 - 1.0 / (self.num_steps / 8 + 1))
        self.average.lerp_(self.master, 1.0 - decay)
        self.write_master()
        return update

    def _adam(self, gradient: Tensor, rate: float) -> None:
        first, second = self.first[self._split :], self.second[self._split :]
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 1.0 - self.rates.beta2)
        bias = (1.0 - self.rates.beta2**self.num_steps) ** 0.5 / (1.0 - 0.9**self.num_steps)
        master = self.master[self._split :]
        master.mul_(1.0 - rate * self.rates.weight_decay)
        master.addcdiv_(first, second.sqrt().add_(1e-8), value=-rate * bias)

    def _orthogonal(self, gradient: Tensor, rate: float) -> None:
        """Muon (Jordan et al. 2024) with the update's size matched to AdamW's: 0.2 * sqrt(longer side)."""
        momentum = self.first[: self._split]
        momentum.mul_(0.95).add_(gradient, alpha=0.05)
        direction = gradient.mul(0.05).add_(momentum, alpha=0.95)
        num_processes = _num_processes()
        rank = dist.get_rank() if num_processes > 1 else 0
        update = torch.zeros_like(direction)
        offset = 0
        for index, parameter in enumerate(self._muon):
            end = offset + parameter.numel()
            if index % num_processes == rank:
                matrix = orthogonalised(direction[offset:end].view(parameter.shape))
                update[offset:end] = (matrix.float() * (0.2 * max(parameter.shape) ** 0.5)).flatten()
            offset = end
        if num_processes > 1:
            dist.all_reduce(update)
        master = self.master[: self._split]
        master.mul_(1.0 - rate * self.rates.weight_decay).sub_(update, alpha=rate)

    @torch.no_grad()
    def write_master(self) -> None:
        """Put the masters into the modules, in the modules' precision."""
        offset = 0
        for parameter in self._all:
            end = offset + parameter.numel()
            parameter.copy_(self.master[offset:end].view(parameter.shape))
            offset = end

    def averages(self, named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
        """Give the averaged fp32 weights under their names, on the CPU, leaving the modules alone."""
        names = {id(parameter): name for name, parameter in named}
        found, offset = {}, 0
        for parameter in self._all:
            end = offset + parameter.numel()
            found[names[id(parameter)]] = self.average[offset:end].view(parameter.shape).to("cpu", copy=True)
            offset = end
        return found


def orthogonalised(matrix: Tensor, num_iterations: int = 5) -> Tensor:
    """Bring a matrix's singular values near 1 by the quintic Newton-Schulz iteration, in bf16."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = (matrix.T if is_tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(num_iterations):
        square = x @ x.T
        polynomial: Tensor = -4.7750 * square + 2.0315 * square @ square
        x = 3.4445 * x + polynomial @ x
    return x.T if is_tall else x


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
