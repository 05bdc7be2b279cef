"""Given pictures and clips: what is known stays exactly, what is hinted does not, and a clip can be changed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vitascope_common.references import num_continued_frames
from vitascope_models.conditioning import Guide, change, extension, first_frame, keyframes
from vitascope_models.dit import DiT
from vitascope_models.sampling import SOLVERS, FlowSampler, Guidance, guided, initial_noise, noised
from vitascope_models.text import Conditioning
from vitascope_models.vae import VAE, from_uint8

Prompts = tuple[Conditioning, Conditioning]

SHAPE = (4, 5, 4, 2)  # a clip of 17 frames, 32 rows and 16 columns


def _frames(num_frames: int) -> Tensor:
    return torch.randint(0, 256, (num_frames, 32, 16, 3), dtype=torch.uint8)


def _first_frame(vae: VAE) -> Guide:
    return first_frame(vae, _frames(1)[0], SHAPE)


def _keyframes(vae: VAE) -> Guide:
    first, last = _frames(2)
    return keyframes(vae, first, last, SHAPE)


def _extension(vae: VAE) -> Guide:
    return extension(vae, _frames(11), SHAPE)


ROLES: dict[str, tuple[Callable[[VAE], Guide], int]] = {  # and how many latent frames are known
    "first_frame": (_first_frame, 1),
    "keyframes": (_keyframes, 1),
    "extension": (_extension, 2),
}


def _encoded(vae: VAE, clip_THWC: Tensor) -> Tensor:
    return vae.encode(from_uint8(clip_THWC[None]))[0]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_known_latents_stay_exactly_and_the_others_do_not(
    vae: VAE, dit: DiT, prompts: Prompts, solver: str, role: str
) -> None:
    make, num_known = ROLES[role]
    guide = make(vae)
    noise, _ = initial_noise((1, *SHAPE), seed=1)
    velocity = guided(dit, *prompts, Guidance(2.5, rescale=0.5), guide)
    sampler, latents = FlowSampler(4, 2.0, solver), guide.pin(noise)
    for index in range(4):
        latents = sampler.step(velocity, latents, index)
        assert torch.equal(latents[0, :, :num_known], guide.clean_CTHW[:, :num_known])
    assert bool((latents[0, :, num_known:] != noise[0, :, num_known:]).all())


def test_fresh_noise_needs_a_pin_after_the_step(vae: VAE, dit: DiT, prompts: Prompts) -> None:
    guide = _first_frame(vae)
    noise, _ = initial_noise((1, *SHAPE), seed=1)
    sampler = FlowSampler(4, 2.0, "ddim", eta=1.0)
    stepped = sampler.step(guided(dit, *prompts, Guidance(1.0), guide), guide.pin(noise), 0)
    assert torch.equal(guide.pin(stepped)[0, :, 0], guide.clean_CTHW[:, 0])
    assert torch.equal(guide.pin(stepped)[0, :, 1:], stepped[0, :, 1:])


def test_a_first_picture_is_the_first_latent_frame(vae: VAE) -> None:
    picture = _frames(1)
    guide = first_frame(vae, picture[0], SHAPE)
    assert torch.equal(guide.clean_CTHW[:, :1], _encoded(vae, picture))
    assert guide.known_THW.flatten(1).tolist() == [[1.0] * 8] + [[0.0] * 8] * 4
    assert not guide.hinted_THW.any()


def test_a_last_picture_is_a_hint_encoded_alone_and_pins_nothing(vae: VAE, dit: DiT, prompts: Prompts) -> None:
    first, last = _frames(2)
    guide, without = keyframes(vae, first, last, SHAPE), first_frame(vae, first, SHAPE)
    assert torch.equal(guide.hint_CTHW[:, -1:], _encoded(vae, last[None]))
    assert not guide.hint_CTHW[:, :-1].any()
    assert guide.hinted_THW.flatten(1).tolist() == [[0.0] * 8] * 4 + [[1.0] * 8]
    latents = torch.randn(1, *SHAPE)
    assert torch.equal(guide.pin(latents), without.pin(latents))
    found, plain = (guided(dit, *prompts, Guidance(1.0), each)(latents, 0.5) for each in (guide, without))
    assert not torch.allclose(found[:, :, 1:], plain[:, :, 1:], atol=1e-4)  # but it is seen


def test_the_model_is_told_what_is_known_and_hinted(vae: VAE) -> None:
    guide = _keyframes(vae)
    condition = guide.condition()
    assert condition.shape == (1, 6, *SHAPE[1:])
    assert torch.equal(condition[0, 0], guide.known_THW)
    assert torch.equal(condition[0, 1], guide.hinted_THW)
    assert torch.equal(condition[0, 2:], guide.hint_CTHW)


def test_the_model_sees_the_clean_latents_whatever_it_is_given_there(vae: VAE, dit: DiT, prompts: Prompts) -> None:
    guide = _extension(vae)
    velocity = guided(dit, *prompts, Guidance(2.0), guide)
    latents = torch.randn(2, *SHAPE)
    found = velocity(latents, 0.5)
    assert torch.equal(found, velocity(guide.pin(latents), 0.5))
    assert not found[:, :, :2].any()
    other = Guide(guide.known_THW, guide.clean_CTHW + guide.known_THW, guide.hinted_THW, guide.hint_CTHW)
    assert not torch.allclose(guided(dit, *prompts, Guidance(2.0), other)(latents, 0.5), found, atol=1e-4)


def test_an_extension_begins_with_the_last_frames_of_the_clip(vae: VAE) -> None:
    clip = _frames(11)
    guide = extension(vae, clip, SHAPE)
    assert torch.equal(guide.clean_CTHW[:, :2], _encoded(vae, clip[-5:]))
    assert guide.known_THW.flatten(1)[:, 0].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    earlier = clip.clone()
    earlier[:-5] = 0
    assert torch.equal(extension(vae, earlier, SHAPE).clean_CTHW, guide.clean_CTHW)


@pytest.mark.parametrize(
    ("num_clip_frames", "num_latent_frames", "expected"),
    [(1, 5, 1), (4, 5, 1), (5, 5, 5), (100, 5, 5), (100, 7, 9), (100, 2, 1), (8, 13, 5)],
)
def test_a_continued_clip_shares_what_there_is_and_half_at_most(
    num_clip_frames: int, num_latent_frames: int, expected: int
) -> None:
    assert num_continued_frames(num_clip_frames, num_latent_frames) == expected


@pytest.mark.parametrize(("num_clip_frames", "num_latent_frames"), [(0, 5), (9, 1)])
def test_what_cannot_be_continued_is_refused(num_clip_frames: int, num_latent_frames: int) -> None:
    with pytest.raises(ValueError, match="cannot continue"):
        num_continued_frames(num_clip_frames, num_latent_frames)


@pytest.mark.parametrize(
    "make",
    [
        lambda vae, clip: first_frame(vae, clip[0], SHAPE),
        lambda vae, clip: keyframes(vae, clip[0], clip[1], SHAPE),
        lambda vae, clip: extension(vae, clip, SHAPE),
    ],
)
def test_frames_of_another_size_are_refused(vae: VAE, make: Callable[[VAE, Tensor], Guide]) -> None:
    with pytest.raises(ValueError, match=r"16x16x3 .* 32x16x3"):
        make(vae, torch.zeros(5, 16, 16, 3, dtype=torch.uint8))


def test_two_pictures_need_two_latent_frames(vae: VAE) -> None:
    first, last = _frames(2)
    with pytest.raises(ValueError, match="at least 2 latent frames"):
        keyframes(vae, first, last, (4, 1, 4, 2))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_change_of_strength_0_is_the_clip_and_of_1_ignores_it(
    vae: VAE, dit: DiT, prompts: Prompts, solver: str
) -> None:
    noise, _ = initial_noise((1, *SHAPE), seed=1)

    def changed(clip: Tensor, strength: float) -> Tensor:
        clean, start = change(vae, clip, strength)
        sampler, latents = FlowSampler(3, 2.0, solver, start), noised(clean, noise, start)
        for index in range(3):
            latents = sampler.step(guided(dit, *prompts, Guidance(2.0)), latents, index)
        return latents

    one, other = _frames(17), _frames(17)
    assert torch.equal(changed(one, 0.0)[0], _encoded(vae, one))
    assert torch.equal(changed(one, 1.0), changed(other, 1.0))
    assert not torch.allclose(changed(one, 0.5), changed(other, 0.5), atol=1e-2)
    distances = [float((changed(one, strength) - changed(one, 0.0)).abs().mean()) for strength in (0.2, 0.5, 0.9)]
    assert distances == sorted(distances)


def test_a_change_that_cannot_be_is_refused(vae: VAE) -> None:
    with pytest.raises(ValueError, match="strength"):
        change(vae, _frames(17), 1.5)
    with pytest.raises(ValueError, match="no latents for 16 frames"):
        change(vae, _frames(16), 0.5)


def test_all_of_it_runs_in_inference_mode(vae: VAE, dit: DiT, prompts: Prompts) -> None:
    picture = _frames(1)[0]
    noise, _ = initial_noise((1, *SHAPE), seed=1)

    def drawn() -> Tensor:
        guide = first_frame(vae, picture, SHAPE)
        velocity, sampler = guided(dit, *prompts, Guidance(2.0), guide), FlowSampler(2, 2.0, "heun")
        latents = guide.pin(noise)
        for index in range(2):
            latents = guide.pin(sampler.step(velocity, latents, index))
        assert vae.preview(latents).shape == (5, 16, 8, 3)
        return torch.cat(list(vae.decode_stream(latents)))

    with torch.inference_mode():
        found = drawn()
    assert torch.equal(found, drawn())
    assert found.shape == (17, 32, 16, 3)
