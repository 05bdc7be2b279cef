"""One optimiser for bf16 modules on CPU: fp32 masters, Muon for hidden matrices, AdamW for the rest, and an average.

Every process holds the whole state as a few flat fp32 vectors (P elements), which makes a checkpoint four tensors and a
gradient exchange one all-reduce. Muon's orthogonalisation, the expensive part, is shared out over the processes.
"""

from __future__ import annotations

from collections.abc import Iterable
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


class Optimiser:
    """Update bf16 parameters from their gradients through fp32 masters."""

    def __init__(self, parameters: Iterable[nn.Parameter], matrices: Iterable[nn.Parameter], rates: Rates) -> None:
        """Take all `parameters`; those also among `matrices` are Muon's."""
        muon = {id(matrix) for matrix in matrices} if rates.muon else set()
        unique = {id(parameter): parameter for parameter in parameters}
        self._muon = [parameter for key, parameter in unique.items() if key in muon]
        self._all = self._muon + [parameter for key, parameter in unique.items() if key not in muon]
        self._split = sum(parameter.numel() for parameter in self._muon)
        self.rates = rates
        self.num_steps = 0
        self.elapsed_s = 0.0
        self.master = torch.cat([parameter.detach().float().flatten() for parameter in self._all])
        self.first = torch.zeros_like(self.master)
        self.second = torch.zeros_like(self.master)
        self.average = self.master.clone()

    def state(self) -> dict[str, Tensor]:
        """Give everything a resumed run needs."""
        counters = torch.tensor([float(self.num_steps), self.elapsed_s], dtype=torch.float64)
        return {"counters": counters} | {name: getattr(self, name) for name in _STATE}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from `state()`."""
        self.num_steps, self.elapsed_s = int(state["counters"][0]), float(state["counters"][1])
        for name in _STATE:
            getattr(self, name).copy_(state[name])
        self._write(self.master)

    def step(self, seconds: float, scale: float) -> float:
        """Average gradients over the processes and update; `seconds` passed and `scale` multiplies the rates.

        Returns the gradient's norm. A step whose gradient is not finite changes nothing but the count.
        """
        parts = [
            (parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)).float().flatten()
            for parameter in self._all
        ]
        gradient = torch.cat([*parts, torch.tensor([seconds])])
        num_processes = dist.get_world_size() if dist.is_initialized() else 1
        if num_processes > 1:
            dist.all_reduce(gradient)
            gradient /= num_processes
        self.elapsed_s += float(gradient[-1])
        self.num_steps += 1
        gradient = gradient[:-1]
        norm = float(gradient.norm())
        for parameter in self._all:
            parameter.grad = None
        if norm != norm or norm == float("inf"):
            return norm
        gradient *= min(1.0, self.rates.clip / (norm + 1e-6))
        self._adam(gradient[self._split :], self.rates.adam * scale)
        if self._muon:
            self._orthogonal(gradient[: self._split], self.rates.muon * scale)
        decay = min(self.rates.average, 1.0 - 1.0 / (self.num_steps / 8 + 1))
        self.average.lerp_(self.master, 1.0 - decay)
        self._write(self.master)
        return norm

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
        num_processes = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if dist.is_initialized() else 0
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
    def _write(self, values: Tensor) -> None:
        offset = 0
        for parameter in self._all:
            end = offset + parameter.numel()
            parameter.copy_(values[offset:end].view(parameter.shape))
            offset = end

    def write_average(self) -> None:
        """Put the averaged weights into the modules; training does not continue from there."""
        self._write(self.average)

    def averages(self, named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
        """Give the averaged fp32 weights under their names, leaving the modules alone."""
        names = {id(parameter): name for name, parameter in named}
        found, offset = {}, 0
        for parameter in self._all:
            end = offset + parameter.numel()
            found[names[id(parameter)]] = self.average[offset:end].view(parameter.shape).clone()
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
