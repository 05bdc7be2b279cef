"""The samplers: their order, their schedule, and that they repeat themselves exactly; guidance and its identities."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vitascope_models.dit import DiT
from vitascope_models.sampling import (
    SOLVERS,
    FlowSampler,
    Guidance,
    VelocityFn,
    clean_estimate,
    ddim_sigmas,
    guided,
    initial_noise,
    noised,
    shifted_sigmas,
    size_shift,
)
from vitascope_models.text import Conditioning

Prompts = tuple[Conditioning, Conditioning]


def _sampled(sampler: FlowSampler, velocity: VelocityFn, latents: Tensor) -> Tensor:
    for index in range(sampler.num_steps):
        latents = sampler.step(velocity, latents, index)
    return latents


def _error(solver: str, num_steps: int) -> float:
    """Solve dx/dt = 2 * t * x from t = 1 to 0, whose solution is known, and give the error at 0."""
    sampler = FlowSampler(num_steps, shift=1.0, solver=solver)
    x = _sampled(sampler, lambda x, t: x * (2 * t), torch.ones(1, dtype=torch.float64))
    return abs(float(x) - math.exp(-1.0))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("rk4", 4), ("ddim", 1)])
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


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 2.3])
@pytest.mark.parametrize("start", [1.0, 0.6, 0.0])
def test_every_schedule_begins_where_it_is_told_and_ends_at_the_clip(solver: str, shift: float, start: float) -> None:
    sigmas = FlowSampler(7, shift, solver, start).sigmas
    assert (float(sigmas[0]), float(sigmas[-1]), len(sigmas)) == (start, 0.0, 8)
    assert bool((sigmas.diff() < 0).all()) or start == 0.0


def test_a_late_start_spaces_its_steps_as_a_whole_schedule_does() -> None:
    whole = shifted_sigmas(10, 3.0)
    assert torch.allclose(shifted_sigmas(6, 3.0, start=float(whole[4])), whole[4:], atol=1e-12)
    turned = ddim_sigmas(10, 3.0)
    assert torch.allclose(ddim_sigmas(6, 3.0, start=float(turned[4])), turned[4:], atol=1e-12)


def test_the_shift_grows_with_the_square_root_of_the_tokens() -> None:
    assert size_shift(2.0, 320, 320) == 2.0
    assert size_shift(2.0, 1280, 320) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1.0, "euler"), "num_steps"),
        ((5, 0.0, "euler"), "shift"),
        ((5, math.nan, "euler"), "shift"),
        ((5, 1.0, "leap"), "unknown solver"),
        ((5, 1.0, "euler", 1.1), "start"),
    ],
)
def test_nonsense_is_refused(arguments: tuple[int, float, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowSampler(*arguments)


@pytest.mark.parametrize(("solver", "eta"), [("euler", 0.5), ("ddim", 1.5), ("ddim", -0.1)])
def test_fresh_noise_is_a_share_and_ddims_alone(solver: str, eta: float) -> None:
    with pytest.raises(ValueError, match="eta"):
        FlowSampler(5, 1.0, solver, eta=eta)


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


def test_the_clean_estimate_undoes_the_noise_of_a_right_velocity() -> None:
    clean, noise = torch.randn(2, 4, 3, 4, 4), torch.randn(2, 4, 3, 4, 4)
    latents = noised(clean, noise, 0.7)
    torch.testing.assert_close(clean_estimate(latents, noise - clean, 0.7), clean, rtol=0, atol=1e-6)
    assert torch.equal(noised(clean, noise, 0.0), clean)
    assert torch.equal(noised(clean, noise, 1.0), noise)


# DDIM


def _as_published(sampler: FlowSampler, velocity: VelocityFn, latents: Tensor, index: int) -> Tensor:
    """Take a DDIM step without fresh noise as Song et al. 2021 write it (eq. 12), variance-preservingly."""
    here, there = float(sampler.sigmas[index]), float(sampler.sigmas[index + 1])
    scale_here, scale_there = (math.hypot(1 - t, t) for t in (here, there))
    alpha_here, alpha_there = ((1 - t) / scale for t, scale in ((here, scale_here), (there, scale_there)))
    diffused = latents / scale_here
    noise = latents + (1 - here) * velocity(latents, here)  # the model's epsilon
    if alpha_here > 0.0:
        clean = (diffused - math.sqrt(1 - alpha_here**2) * noise) / alpha_here
    else:
        clean = clean_estimate(latents, velocity(latents, here), here)
    return scale_there * (alpha_there * clean + math.sqrt(1 - alpha_there**2) * noise)


def test_a_ddim_step_without_fresh_noise_is_the_published_one_and_eulers() -> None:
    def velocity(x: Tensor, t: float) -> Tensor:
        return torch.sin(3 * x) * (1 + t)

    latents = torch.randn(1, 4, 3, 4, 4, dtype=torch.float64)
    sampler = FlowSampler(8, 2.0, "ddim")
    euler = FlowSampler(8, 2.0, "euler")
    euler.sigmas = sampler.sigmas
    for index in range(8):
        after = sampler.step(velocity, latents, index)
        assert torch.equal(after, euler.step(velocity, latents, index))
        torch.testing.assert_close(after, _as_published(sampler, velocity, latents, index), rtol=0, atol=1e-9)
        latents = after


def test_ddims_times_are_even_angles_of_a_diffusion() -> None:
    sigmas = ddim_sigmas(6, shift=1.0)
    angles = torch.atan2(sigmas, 1 - sigmas)
    assert torch.allclose(angles.diff(), torch.full((6,), -math.pi / 12, dtype=torch.float64))
    assert not torch.allclose(sigmas, shifted_sigmas(6, shift=1.0), atol=0.01)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_draws_from_the_distribution_it_is_given_however_much_noise_is_fresh(eta: float) -> None:
    spread = 0.5

    def velocity(x: Tensor, t: float) -> Tensor:
        """Give the exact velocity of independent normal clean latents of this spread."""
        variance = (1 - t) ** 2 * spread**2 + t**2
        return x * (t - (1 - t) * spread**2) / variance

    noise, _ = initial_noise((1, 4, 4, 32, 32), seed=1)
    drawn = _sampled(FlowSampler(200, 1.0, "ddim", eta=eta, seed=1), velocity, noise)
    assert float(drawn.std()) == pytest.approx(spread, rel=0.03)
    kept = float(torch.corrcoef(torch.stack([drawn.flatten(), noise.flatten()]))[0, 1])
    assert kept == pytest.approx(1.0) if eta == 0.0 else kept < 0.9  # fresh noise makes it forget the first


def test_fresh_noise_depends_on_the_seed_and_the_step_alone() -> None:
    latents, velocity = torch.randn(1, 4, 3, 4, 4), torch.zeros_like

    def steps(seed: int) -> list[Tensor]:
        sampler = FlowSampler(4, 1.0, "ddim", eta=1.0, seed=seed)
        return [sampler.step(lambda x, t: velocity(x), latents, index) for index in (2, 1, 2)]

    first, other_step, again = steps(7)
    assert torch.equal(first, again)
    assert not torch.equal(first, other_step)
    assert not torch.equal(first, steps(8)[0])


# Guidance


def test_guidance_extrapolates_from_uncond_through_cond(dit: DiT, prompts: Prompts) -> None:
    cond, uncond = prompts
    latents = torch.randn(2, 4, 5, 4, 4)
    conditional = guided(dit, cond, uncond, Guidance(1.0))(latents, 0.7)
    unconditional = guided(dit, uncond, cond, Guidance(1.0))(latents, 0.7)
    assert torch.allclose(guided(dit, cond, uncond, Guidance(0.0))(latents, 0.7), unconditional, atol=1e-5)
    expected = unconditional + 2.5 * (conditional - unconditional)
    assert torch.allclose(guided(dit, cond, uncond, Guidance(2.5))(latents, 0.7), expected, atol=1e-4)
    assert not torch.allclose(conditional, unconditional, atol=1e-3)


def test_a_negative_prompt_is_led_away_from(dit: DiT, prompts: Prompts) -> None:
    cond, empty = prompts
    negative = Conditioning(torch.randn(12, 16), torch.arange(12) < 3, torch.randn(16))
    latents = torch.randn(1, 4, 3, 4, 4)
    plain, away = (guided(dit, cond, each, Guidance(3.0))(latents, 0.5) for each in (empty, negative))
    of_negative = guided(dit, negative, empty, Guidance(1.0))(latents, 0.5)
    of_cond = guided(dit, cond, empty, Guidance(1.0))(latents, 0.5)
    assert torch.allclose(away, of_cond + 2.0 * (of_cond - of_negative), atol=1e-4)
    assert not torch.allclose(away, plain, atol=1e-3)


@pytest.mark.parametrize(
    ("guidance", "t", "num_sides"),
    [
        (Guidance(1.0), 0.5, 1),
        (Guidance(3.0), 1.0, 2),
        (Guidance(3.0), 0.0, 2),
        (Guidance(3.0, start=0.8, end=0.2), 0.9, 1),
        (Guidance(3.0, start=0.8, end=0.2), 0.8, 2),
        (Guidance(3.0, start=0.8, end=0.2), 0.2, 2),
        (Guidance(3.0, start=0.8, end=0.2), 0.1, 1),
        (Guidance(3.0, start=0.0, end=0.0, rescale=0.7), 0.5, 1),
    ],
)
def test_outside_its_interval_guidance_changes_nothing_and_costs_nothing(
    dit: DiT, prompts: Prompts, guidance: Guidance, t: float, num_sides: int
) -> None:
    batches: list[int] = []
    dit.register_forward_pre_hook(lambda _module, arguments: batches.append(len(arguments[0])))
    latents = torch.randn(1, 4, 3, 4, 4)
    found = guided(dit, *prompts, guidance)(latents, t)
    assert batches == [num_sides]
    conditional = guided(dit, *prompts, Guidance(1.0))(latents, t)
    assert torch.equal(found, conditional) is (num_sides == 1)


def test_clips_of_a_batch_may_have_a_prompt_each(dit: DiT, prompts: Prompts) -> None:
    cond, uncond = prompts
    latents = torch.randn(2, 4, 3, 4, 4)
    together = guided(dit, [cond, uncond], uncond, Guidance(2.5))(latents, 0.6)
    alone = [guided(dit, each, uncond, Guidance(2.5))(latents[i : i + 1], 0.6) for i, each in enumerate(prompts)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(together, guided(dit, cond, uncond, Guidance(2.5))(latents, 0.6), atol=1e-3)


def test_rescaling_goes_from_plain_guidance_to_the_spread_of_the_unguided_velocity() -> None:
    cond, uncond = torch.randn(3, 4, 5, 4, 4), torch.randn(3, 4, 5, 4, 4)
    plain = uncond + 6.0 * (cond - uncond)
    assert torch.equal(Guidance(6.0, rescale=0.0).combine(cond, uncond), plain)
    whole = Guidance(6.0, rescale=1.0).combine(cond, uncond)
    assert torch.allclose(whole.std(dim=(1, 2, 3, 4)), cond.std(dim=(1, 2, 3, 4)), rtol=1e-5)
    half = Guidance(6.0, rescale=0.5).combine(cond, uncond)
    assert torch.allclose(half, (plain + whole) / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guidance(-1.0), "scale"),
        (lambda: Guidance(math.nan), "scale"),
        (lambda: Guidance(2.0, start=0.2, end=0.8), "from 0.2 to 0.8"),
        (lambda: Guidance(2.0, start=1.2), "flow time"),
        (lambda: Guidance(2.0, rescale=1.1), "rescale"),
    ],
)
def test_guidance_out_of_range_is_refused(make: Callable[[], Guidance], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("temporal", ["full", "causal", "window"])
def test_the_temporal_attention_is_chosen_at_run_time(dit: DiT, prompts: Prompts, temporal: str) -> None:
    latents = torch.randn(1, 4, 9, 4, 4)
    changed = latents.clone()
    changed[:, :, 6:] += 1.0
    velocity = guided(dit, *prompts, Guidance(2.0), temporal=temporal)
    sees_the_future = not torch.equal(velocity(latents, 0.5)[:, :, :6], velocity(changed, 0.5)[:, :, :6])
    assert sees_the_future is (temporal != "causal")


@pytest.mark.parametrize(("solver", "eta"), [("euler", 0.0), ("heun", 0.0), ("rk4", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
def test_sampling_repeats_bit_for_bit_also_when_it_is_interrupted(
    dit: DiT, prompts: Prompts, solver: str, eta: float
) -> None:
    noise, _ = initial_noise((1, 4, 3, 4, 4), seed=1)

    def steps(latents: Tensor, begin: int, end: int) -> Tensor:
        sampler = FlowSampler(6, 2.0, solver, eta=eta, seed=1)
        velocity = guided(dit, *prompts, Guidance(2.5, start=0.9, end=0.3, rescale=0.5))
        for index in range(begin, end):
            latents = sampler.step(velocity, latents, index)
        return latents

    assert torch.equal(steps(noise, 0, 6), steps(steps(noise, 0, 3).clone(), 3, 6))
