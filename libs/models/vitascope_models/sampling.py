"""Flow-matching samplers: from noise at flow time 1 along the model's velocity to a clip at flow time 0.

Shapes: B batch, C channels, T frames, H rows, W columns, L text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vitascope_models.text import Conditioning

VelocityFn = Callable[[Tensor, float], Tensor]
"""Latents and a flow time in [0, 1] to the velocity there, of the latents' shape."""

SOLVERS = ("euler", "heun", "rk4")


class VelocityModel(Protocol):
    """What sampling needs of a model; `DiT` is one."""

    def __call__(
        self, latents_BCTHW: Tensor, t_B: Tensor, tokens_BLD: Tensor, mask_BL: Tensor, pooled_BD: Tensor
    ) -> Tensor:
        """Give the velocity."""
        ...


def shifted_sigmas(num_steps: int, shift: float) -> Tensor:
    """Give `num_steps + 1` flow times from 1 down to 0, fp64: even ones t moved to s*t / (1 + (s-1)*t).

    A shift above 1 spends more steps near the noise, where a clip's layout is decided (Esser et al. 2024, eq. 23).
    """
    even = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)
    return shift * even / (1.0 + (shift - 1.0) * even)


class FlowSampler:
    """A fixed schedule of steps with a one-step solver: Euler (order 1), Heun (2) or the classical Runge-Kutta (4)."""

    def __init__(self, num_steps: int, shift: float, solver: str = "euler") -> None:
        """Plan the steps.

        Raises:
            ValueError: no steps, a shift that is not positive, or an unknown solver.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, not {num_steps}")
        if not shift > 0:
            raise ValueError(f"shift must be positive, not {shift}")
        if solver not in SOLVERS:
            raise ValueError(f"unknown solver {solver!r}: one of {', '.join(SOLVERS)}")
        self.num_steps = num_steps
        self.solver = solver
        self.sigmas = shifted_sigmas(num_steps, shift)

    def step(self, velocity_fn: VelocityFn, latents_BCTHW: Tensor, index: int) -> Tensor:
        """Take step `index`, from `sigmas[index]` to `sigmas[index + 1]`; depends on nothing but its arguments.

        Raises:
            IndexError: there is no such step.
        """
        if not 0 <= index < self.num_steps:
            raise IndexError(f"step {index} of {self.num_steps}")
        x, here, there = latents_BCTHW, float(self.sigmas[index]), float(self.sigmas[index + 1])
        h = there - here
        k1 = velocity_fn(x, here)
        if self.solver == "euler":
            return x + h * k1
        if self.solver == "heun":
            return x + (h / 2) * (k1 + velocity_fn(x + h * k1, there))
        middle = here + h / 2
        k2 = velocity_fn(x + (h / 2) * k1, middle)
        k3 = velocity_fn(x + (h / 2) * k2, middle)
        k4 = velocity_fn(x + h * k3, there)
        return x + (h / 6) * (k1 + 2 * k2 + 2 * k3 + k4)

    def state_dict(self) -> dict[str, Tensor]:
        """Give what a checkpoint must hold besides latents and step; one-step solvers remember nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict()`.

        Raises:
            ValueError: the state belongs to another solver.
        """
        if state:
            raise ValueError(f"the {self.solver} solver has no state, but was given {', '.join(sorted(state))}")


def guided(model: VelocityModel, cond: Conditioning, uncond: Conditioning, guidance_scale: float) -> VelocityFn:
    """Make a velocity with classifier-free guidance: uncond + scale * (cond - uncond) (Ho & Salimans 2022).

    Both conditionings run as one batch; at scale 1 the unconditional one is not run at all.
    """
    both = [cond] if guidance_scale == 1.0 else [cond, uncond]
    tokens_SLD = torch.stack([each.tokens_LD for each in both])
    mask_SL = torch.stack([each.mask_L for each in both])
    pooled_SD = torch.stack([each.pooled_D for each in both])

    @torch.no_grad()
    def velocity(latents_BCTHW: Tensor, t: float) -> Tensor:
        batch, num_sides = latents_BCTHW.shape[0], len(both)
        t_B = torch.full((batch * num_sides,), t, dtype=torch.float32, device=latents_BCTHW.device)
        out = model(
            latents_BCTHW.repeat(num_sides, 1, 1, 1, 1),
            t_B,
            tokens_SLD.repeat_interleave(batch, dim=0),
            mask_SL.repeat_interleave(batch, dim=0),
            pooled_SD.repeat_interleave(batch, dim=0),
        )
        if num_sides == 1:
            return out
        with_text, without = out.chunk(2)
        return without + guidance_scale * (with_text - without)

    return velocity


def initial_noise(shape: Sequence[int], seed: int) -> tuple[Tensor, torch.Generator]:
    """Draw fp32 standard noise on the CPU, the same for the same seed on every machine.

    Returns the generator too: `get_state()` (a uint8 tensor) belongs into a checkpoint, `set_state()` restores it.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator), generator
