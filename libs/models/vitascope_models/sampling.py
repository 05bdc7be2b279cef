"""Flow-matching samplers: from noise at flow time 1 along the model's velocity to a clip at flow time 0.

At flow time t a clip is (1 - t) * clean + t * noise, and the velocity is noise - clean (rectified flow, Liu et al.
2022).

Shapes: B batch, C channels, T frames, H rows, W columns, L text tokens, D text width, E condition channels.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vitascope_models.conditioning import Guide
from vitascope_models.text import Conditioning

VelocityFn = Callable[[Tensor, float], Tensor]
"""Latents and a flow time in [0, 1] to the velocity there, of the latents' shape."""

SOLVERS = ("euler", "heun", "rk4", "ddim")


class VelocityModel(Protocol):
    """What sampling needs of a model; `DiT` is one."""

    def __call__(
        self,
        latents_BCTHW: Tensor,
        t_B: Tensor,
        tokens_BLD: Tensor,
        mask_BL: Tensor,
        pooled_BD: Tensor,
        condition_BETHW: Tensor | None = None,
        temporal: str | None = None,
    ) -> Tensor:
        """Give the velocity."""
        ...


def shifted_sigmas(num_steps: int, shift: float, start: float = 1.0) -> Tensor:
    """Give `num_steps + 1` flow times from `start` down to 0, fp64: even ones t moved to s*t / (1 + (s-1)*t).

    A shift above 1 spends more steps near the noise, where a clip's layout is decided (Esser et al. 2024, eq. 23).
    """
    even = torch.linspace(_unshifted(start, shift), 0.0, num_steps + 1, dtype=torch.float64)
    return _shifted(even, shift, start)


def ddim_sigmas(num_steps: int, shift: float, start: float = 1.0) -> Tensor:
    """Give `num_steps + 1` flow times from `start` down to 0, fp64, evenly spaced in the angle of a diffusion.

    A diffusion mixes variance-preservingly, cos(a) * clean + sin(a) * noise; the same mixture up to its scale is the
    flow's at t = sin(a) / (sin(a) + cos(a)). Even angles are the cosine schedule (Nichol & Dhariwal 2021).
    """
    first = _unshifted(start, shift)
    angles = torch.linspace(math.atan2(first, 1.0 - first), 0.0, num_steps + 1, dtype=torch.float64)
    return _shifted(angles.sin() / (angles.sin() + angles.cos()), shift, start)


def size_shift(base_shift: float, num_tokens: int, base_tokens: int) -> float:
    """Give the shift for a clip of `num_tokens` that does to it what `base_shift` does to one of `base_tokens`.

    More tokens show more of what lies under the noise, so they need sqrt(n / n0) times the shift (Esser et al. 2024).
    """
    return base_shift * math.sqrt(num_tokens / base_tokens)


class FlowSampler:
    """A fixed schedule of steps with a one-step solver.

    Euler (order 1), Heun (2) and the classical Runge-Kutta (4) solve the flow as an ordinary differential equation.
    DDIM (Song et al. 2021) takes the same velocity for a diffusion's, on a diffusion's own schedule: without fresh
    noise (`eta` 0) its step is Euler's, at other times; at `eta` 1 it renews the noise as ancestral sampling does.
    """

    def __init__(
        self,
        num_steps: int,
        shift: float,
        solver: str = "euler",
        start: float = 1.0,
        *,
        eta: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Plan the steps, from flow time `start` (below 1: a clip that is changed) to 0.

        `eta`, 0 to 1, is DDIM's share of fresh noise, which depends on `seed` and the step alone.

        Raises:
            ValueError: no steps, a shift that is not positive, an unknown solver, a start or eta outside 0 to 1, or
                fresh noise for a solver that takes none.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, not {num_steps}")
        if not 0.0 < shift < math.inf:
            raise ValueError(f"shift must be positive, not {shift}")
        if solver not in SOLVERS:
            raise ValueError(f"unknown solver {solver!r}: one of {', '.join(SOLVERS)}")
        if not 0.0 <= start <= 1.0:
            raise ValueError(f"start must be a flow time from 0 to 1, not {start}")
        if not 0.0 <= eta <= 1.0 or (eta and solver != "ddim"):
            raise ValueError(f"eta must be from 0 to 1, and 0 for all but ddim, not {eta} for {solver}")
        self.num_steps = num_steps
        self.solver = solver
        self.eta = eta
        self.seed = seed
        self.sigmas = (ddim_sigmas if solver == "ddim" else shifted_sigmas)(num_steps, shift, start)

    def step(self, velocity_fn: VelocityFn, latents_BCTHW: Tensor, index: int) -> Tensor:
        """Take step `index`, from `sigmas[index]` to `sigmas[index + 1]`; depends on nothing but its arguments.

        Where the velocity is 0 latents stay exactly, except under fresh noise (`eta` above 0): pin them after a step.

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
        if self.solver == "ddim":
            return x + h * k1 + self._renewal(x + (1.0 - here) * k1, index)
        if self.solver == "heun":
            return x + (h / 2) * (k1 + velocity_fn(x + h * k1, there))
        middle = here + h / 2
        k2 = velocity_fn(x + (h / 2) * k1, middle)
        k3 = velocity_fn(x + (h / 2) * k2, middle)
        k4 = velocity_fn(x + h * k3, there)
        return x + (h / 6) * (k1 + 2 * k2 + 2 * k3 + k4)

    def _renewal(self, noise_BCTHW: Tensor, index: int) -> Tensor | float:
        """Give what a step adds to exchange a share of the estimated noise for fresh noise (Song et al. 2021, eq. 16).

        With that share r the noise afterwards is sqrt(1 - r^2) * estimated + r * fresh, still of unit variance.
        """
        here, there = float(self.sigmas[index]), float(self.sigmas[index + 1])
        if self.eta == 0.0 or there == 0.0:
            return 0.0
        share = self.eta * math.sqrt((1.0 - _signal(here) / _signal(there)) / (1.0 - _signal(here)))
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {index}".encode()))
        fresh = torch.randn(noise_BCTHW.shape, generator=generator).to(noise_BCTHW)
        return there * ((math.sqrt(1.0 - share**2) - 1.0) * noise_BCTHW + share * fresh)

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


@dataclass(frozen=True)
class Guidance:
    """How strongly, when and how gently a clip is pulled towards its prompt and away from the negative one."""

    scale: float
    """1 = the prompt as it is, without guidance; more exaggerates what tells it from the negative prompt."""
    start: float = 1.0
    """Guidance acts from this flow time..."""
    end: float = 0.0
    """...down to this one, both included (Kynkäänniemi et al. 2024)."""
    rescale: float = 0.0
    """Share, 0 to 1, by which the guided velocity goes back to the spread of the unguided one (Lin et al. 2024)."""

    def __post_init__(self) -> None:
        """Raises: ValueError: a number that is out of its range."""
        if not 0.0 <= self.scale < math.inf:
            raise ValueError(f"guidance scale must be at least 0, not {self.scale}")
        if not 0.0 <= self.end <= self.start <= 1.0:
            raise ValueError(f"guidance must act from a flow time down to another, not from {self.start} to {self.end}")
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"guidance rescale must be from 0 to 1, not {self.rescale}")

    def acts_at(self, t: float) -> bool:
        """Tell whether guidance changes anything at a flow time."""
        return self.scale != 1.0 and self.end <= t <= self.start

    def combine(self, cond_BCTHW: Tensor, uncond_BCTHW: Tensor) -> Tensor:
        """Give uncond + scale * (cond - uncond) (Ho & Salimans 2022), rescaled per clip."""
        guided_BCTHW = uncond_BCTHW + self.scale * (cond_BCTHW - uncond_BCTHW)
        if self.rescale == 0.0:
            return guided_BCTHW
        axes = tuple(range(1, guided_BCTHW.ndim))
        spread, wanted = (each.std(dim=axes, keepdim=True) for each in (guided_BCTHW, cond_BCTHW))
        return guided_BCTHW * (1.0 + self.rescale * (wanted / spread.clamp(min=1e-12) - 1.0))


def guided(
    model: VelocityModel,
    cond: Conditioning | Sequence[Conditioning],
    uncond: Conditioning,
    guidance: Guidance,
    guide: Guide | None = None,
    temporal: str | None = None,
) -> VelocityFn:
    """Make a velocity with classifier-free guidance; `uncond` is the empty prompt's conditioning or a negative one's.

    One `cond` is all clips' of a batch; several are those of its clips, in their order.

    Both sides run as one batch; where guidance does not act, `cond` runs alone. With a `guide` the model sees the clean
    latents where they are known, and the velocity there is 0. `temporal` replaces the model's own temporal attention.
    """
    conds = [cond] if isinstance(cond, Conditioning) else list(cond)
    both = conds + [uncond] * len(conds)
    tokens_BLD = torch.stack([each.tokens_LD for each in both])
    mask_BL = torch.stack([each.mask_L for each in both])
    pooled_BD = torch.stack([each.pooled_D for each in both])
    condition_1ETHW = None if guide is None else guide.condition()

    @torch.no_grad()
    def velocity(latents_BCTHW: Tensor, t: float) -> Tensor:
        batch, num_sides = latents_BCTHW.shape[0], 2 if guidance.acts_at(t) else 1
        if guide is not None:
            latents_BCTHW = guide.pin(latents_BCTHW)
        num_texts, clips_per_text = num_sides * len(conds), batch // len(conds)
        out = model(
            latents_BCTHW.repeat(num_sides, 1, 1, 1, 1),
            torch.full((batch * num_sides,), t, dtype=torch.float32, device=latents_BCTHW.device),
            tokens_BLD[:num_texts].repeat_interleave(clips_per_text, dim=0),
            mask_BL[:num_texts].repeat_interleave(clips_per_text, dim=0),
            pooled_BD[:num_texts].repeat_interleave(clips_per_text, dim=0),
            None if condition_1ETHW is None else condition_1ETHW.expand(batch * num_sides, -1, -1, -1, -1),
            temporal,
        )
        if guide is not None:
            out = out.masked_fill(guide.known_THW > 0, 0.0)
        return guidance.combine(*out.chunk(2)) if num_sides == 2 else out

    return velocity


def clean_estimate(latents: Tensor, velocity: Tensor, t: float) -> Tensor:
    """Give the clean latents that a velocity at flow time `t` points to."""
    return latents - t * velocity


def noised(clean: Tensor, noise: Tensor, t: float) -> Tensor:
    """Give the mixture at flow time `t`: the clean latents at 0, the noise at 1."""
    return (1.0 - t) * clean + t * noise


def initial_noise(shape: Sequence[int], seed: int) -> tuple[Tensor, torch.Generator]:
    """Draw fp32 standard noise on the CPU, the same for the same seed on every machine.

    Returns the generator too: `get_state()` (a uint8 tensor) belongs into a checkpoint, `set_state()` restores it.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator), generator


def _shifted(t: Tensor, shift: float, start: float) -> Tensor:
    sigmas = shift * t / (1.0 + (shift - 1.0) * t)
    sigmas[0] = start  # whatever rounding made of it
    return sigmas


def _unshifted(t: float, shift: float) -> float:
    return t / (t + shift * (1.0 - t))


def _signal(t: float) -> float:
    """Give the share of the clean clip in the variance of a mixture at flow time `t`, alpha-bar of a diffusion."""
    return (1.0 - t) ** 2 / ((1.0 - t) ** 2 + t**2)
