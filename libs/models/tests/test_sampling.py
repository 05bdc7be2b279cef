"""The samplers: their order, their schedule, and that they repeat themselves exactly."""

import math

import pytest
import torch
from torch import Tensor

from vitascope_models.dit import DiT
from vitascope_models.sampling import FlowSampler, guided, initial_noise, shifted_sigmas
from vitascope_models.text import Conditioning


def _error(solver: str, num_steps: int) -> float:
    """Solve dx/dt = 2 * t * x from t = 1 to 0, whose solution is known, and give the error at 0."""

    def velocity(x: Tensor, t: float) -> Tensor:
        return x * (2 * t)

    sampler = FlowSampler(num_steps, shift=1.0, solver=solver)
    x = torch.ones(1, dtype=torch.float64)
    for index in range(num_steps):
        x = sampler.step(velocity, x, index)
    return abs(float(x) - math.exp(-1.0))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(solver: str, order: int) -> None:
    measured = math.log2(_error(solver, 32) / _error(solver, 64))
    assert measured == pytest.approx(order, abs=0.1)


def test_the_schedule_runs_from_noise_to_clip_and_is_shifted_towards_noise() -> None:
    plain, shifted = shifted_sigmas(10, 1.0), shifted_sigmas(10, 2.0)
    assert plain.tolist() == pytest.approx([1 - i / 10 for i in range(11)])
    assert shifted[0] == 1.0
    assert shifted[-1] == 0.0
    assert bool((shifted.diff() < 0).all())
    assert float(shifted[5]) == pytest.approx(2 * 0.5 / (1 + 0.5))
    assert torch.equal(FlowSampler(10, 2.0).sigmas, shifted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 1.0, "euler"), "num_steps"), ((5, 0.0, "euler"), "shift"), ((5, 1.0, "ddim"), "unknown solver")],
)
def test_nonsense_is_refused(arguments: tuple[int, float, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowSampler(*arguments)


def test_there_is_no_step_beyond_the_last() -> None:
    with pytest.raises(IndexError):
        FlowSampler(3, 1.0).step(lambda x, t: x, torch.zeros(1), 3)


def test_one_step_solvers_have_no_state_and_take_none() -> None:
    sampler = FlowSampler(3, 1.0, "heun")
    assert sampler.state_dict() == {}
    sampler.load_state_dict({})
    with pytest.raises(ValueError, match="no state"):
        sampler.load_state_dict({"history": torch.zeros(1)})


def test_noise_depends_on_the_seed_alone_and_its_generator_can_be_restored() -> None:
    (first, generator), (again, _), (other, _) = (initial_noise((1, 8, 5, 8, 8), seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    state = generator.get_state()
    next_draw = torch.randn(4, generator=generator)
    generator.set_state(state)
    assert torch.equal(torch.randn(4, generator=generator), next_draw)


@pytest.fixture
def dit() -> DiT:
    dit = DiT(latent_channels=4, width=32, num_layers=2, num_heads=4, text_width=16)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return dit.eval().requires_grad_(False)


def _conditioning(num_tokens: int) -> Conditioning:
    mask = torch.arange(12) < num_tokens
    return Conditioning(torch.randn(12, 16), mask, torch.randn(16))


def test_guidance_extrapolates_from_uncond_through_cond(dit: DiT) -> None:
    cond, uncond = _conditioning(5), _conditioning(1)
    latents = torch.randn(2, 4, 5, 4, 4)
    conditional = guided(dit, cond, uncond, 1.0)(latents, 0.7)
    unconditional = guided(dit, uncond, cond, 1.0)(latents, 0.7)
    assert torch.allclose(guided(dit, cond, uncond, 0.0)(latents, 0.7), unconditional, atol=1e-5)
    expected = unconditional + 2.5 * (conditional - unconditional)
    assert torch.allclose(guided(dit, cond, uncond, 2.5)(latents, 0.7), expected, atol=1e-4)
    assert not torch.allclose(conditional, unconditional, atol=1e-3)


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
def test_sampling_repeats_bit_for_bit_also_when_it_is_interrupted(dit: DiT, solver: str) -> None:
    cond, uncond = _conditioning(5), _conditioning(1)
    noise, _ = initial_noise((1, 4, 3, 4, 4), seed=1)
    velocity = guided(dit, cond, uncond, 2.5)
    once = noise
    for index in range(6):
        once = FlowSampler(6, 2.0, solver).step(velocity, once, index)
    halfway = noise
    for index in range(3):
        halfway = FlowSampler(6, 2.0, solver).step(velocity, halfway, index)
    resumed, fresh_velocity = halfway.clone(), guided(dit, cond, uncond, 2.5)
    for index in range(3, 6):
        resumed = FlowSampler(6, 2.0, solver).step(fresh_velocity, resumed, index)
    assert torch.equal(once, resumed)
