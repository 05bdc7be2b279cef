"""The VAE: shapes, causality, and decoding that streams."""

import pytest
import torch
from torch import Tensor, nn

from vitascope_models.vae import VAE, from_uint8, to_uint8


@pytest.fixture
def vae() -> VAE:
    vae = VAE(latent_channels=4, widths=(16, 12, 8))
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        vae.latent_mean.copy_(torch.randn(4))
        vae.latent_std.copy_(torch.rand(4) + 0.5)
    return vae.eval().requires_grad_(False)


@pytest.mark.parametrize(("num_frames", "num_latents"), [(1, 1), (17, 5), (33, 9)])
def test_shapes(vae: VAE, num_frames: int, num_latents: int) -> None:
    video = torch.rand(2, 3, num_frames, 32, 16) * 2 - 1
    latents = vae.encode(video)
    assert latents.shape[1:] == vae.latent_shape(num_frames, 32, 16) == (4, num_latents, 4, 2)
    assert vae.decode(latents).shape == video.shape


@pytest.mark.parametrize(("num_frames", "height", "width"), [(16, 64, 64), (0, 64, 64), (17, 60, 64), (17, 64, 0)])
def test_what_has_no_latents_is_refused(vae: VAE, num_frames: int, height: int, width: int) -> None:
    with pytest.raises(ValueError, match="no latents"):
        vae.latent_shape(num_frames, height, width)


@pytest.mark.parametrize("num_latents", [1, 2, 5, 9])
def test_streaming_equals_decoding_at_once(vae: VAE, num_latents: int) -> None:
    latents = torch.randn(1, 4, num_latents, 4, 4)
    whole = to_uint8(vae.decode(latents))[0]
    chunks = list(vae.decode_stream(latents))
    assert [len(chunk) for chunk in chunks] == [1] + [4] * (num_latents - 1)
    # The same sums in batches of another size: floats may differ in the last bits, so bytes by one at most.
    assert (torch.cat(chunks).int() - whole.int()).abs().max() <= 1


def test_streaming_is_bit_identical_to_itself(vae: VAE) -> None:
    latents = torch.randn(1, 4, 5, 4, 4)
    assert torch.equal(torch.cat(list(vae.decode_stream(latents))), torch.cat(list(vae.decode_stream(latents))))


def test_streaming_never_holds_more_than_four_frames(vae: VAE) -> None:
    sizes: list[int] = []

    def note(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        sizes.append(len(arguments[0]))

    for layer in vae.decoder:
        layer.register_forward_pre_hook(note)
    for _ in vae.decode_stream(torch.randn(1, 4, 12, 4, 4)):
        pass
    assert max(sizes) == 4


def test_streaming_takes_one_clip(vae: VAE) -> None:
    with pytest.raises(ValueError, match="one clip"):
        next(vae.decode_stream(torch.randn(2, 4, 3, 4, 4)))


def test_the_future_does_not_reach_the_past(vae: VAE) -> None:
    video = torch.rand(1, 3, 17, 16, 16) * 2 - 1
    changed = video.clone()
    changed[:, :, 9:] = -changed[:, :, 9:]  # from the fourth latent frame on
    before, after = vae.encode(video), vae.encode(changed)
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.equal(before[:, :, 3:], after[:, :, 3:])
    other = before.clone()
    other[:, :, 3:] += 1.0
    assert torch.equal(vae.decode(before)[:, :, :9], vae.decode(other)[:, :, :9])
    assert not torch.equal(vae.decode(before)[:, :, 9:], vae.decode(other)[:, :, 9:])


def test_frames_survive_the_way_to_floats_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 1, 16, 16, 3)
    assert torch.equal(to_uint8(from_uint8(frames)), frames)
