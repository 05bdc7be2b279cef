"""The VAE: shapes, causality, streams that give the whole bit for bit, and previews."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from vitascope_models.vae import VAE, from_uint8, to_uint8


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
    with pytest.raises(ValueError, match="no latents"):
        vae.encode(torch.zeros(1, 3, num_frames, height, width))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (24, 40)])
@pytest.mark.parametrize("sizes", [[17], [1] * 17, [4, 4, 4, 4, 1], [3, 5, 9], [2, 0, 15], [1, 16]])
def test_encoding_in_chunks_is_encoding_the_whole_bit_for_bit(
    vae: VAE, sizes: list[int], height: int, width: int
) -> None:
    frames = torch.randint(0, 256, (2, 17, height, width, 3), dtype=torch.uint8)
    whole = vae.encode(from_uint8(frames))
    parts = list(vae.encode_stream(from_uint8(chunk.clone()) for chunk in frames.split(sizes, dim=1)))
    assert [part.shape[2] for part in parts] == [1] * 5
    assert torch.equal(torch.cat(parts, dim=2), whole)
    assert torch.equal(vae.encode(from_uint8(frames).contiguous()), whole)  # nor does the memory layout matter


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (3, 5)])
@pytest.mark.parametrize("sizes", [[5], [1] * 5, [2, 3], [4, 0, 1]])
def test_decoding_in_chunks_is_decoding_the_whole_bit_for_bit(
    vae: VAE, sizes: list[int], height: int, width: int
) -> None:
    latents = torch.randn(1, 4, 5, height, width)
    whole = to_uint8(vae.decode(latents))[0]
    parts = list(vae.decode_stream(chunk.clone() for chunk in latents.split(sizes, dim=2)))
    assert [len(part) for part in parts] == [1, 4, 4, 4, 4]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(torch.cat(list(vae.decode_stream(latents))), whole)


def test_latents_come_as_soon_as_their_frames_are_there(vae: VAE) -> None:
    num_seen = 0

    def camera() -> Iterator[Tensor]:
        nonlocal num_seen
        for _ in range(9):
            num_seen += 1
            yield torch.rand(1, 3, 1, 16, 16)

    assert [num_seen for _ in vae.encode_stream(camera())] == [1, 5, 9]


def test_a_stream_that_ends_within_a_group_is_refused(vae: VAE) -> None:
    stream = vae.encode_stream([torch.rand(1, 3, 7, 16, 16)])
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(ValueError, match="no latents for 7 frames"):
        next(stream)


def test_all_frames_at_once_give_the_same_up_to_rounding(vae: VAE) -> None:
    video = torch.rand(2, 3, 17, 32, 16) * 2 - 1
    mean, log_var = vae.moments(video)
    scale, shift = (each[None, :, None, None, None] for each in (vae.latent_std, vae.latent_mean))
    latents = vae.encode(video)
    torch.testing.assert_close((mean - shift) / scale, latents, rtol=0, atol=1e-4)
    assert log_var.shape == mean.shape
    torch.testing.assert_close(vae.reconstruct(mean), vae.decode(latents), rtol=0, atol=1e-4)


def test_training_has_gradients_and_inference_has_none(vae: VAE) -> None:
    vae.requires_grad_(True)
    video = torch.rand(1, 3, 5, 16, 16)
    assert vae.reconstruct(vae.moments(video)[0]).requires_grad
    assert not vae.decode(vae.encode(video)).requires_grad


def test_streaming_never_holds_more_than_four_frames(vae: VAE) -> None:
    sizes: list[int] = []

    def note(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        sizes.append(len(arguments[0]))

    for layer in (*vae.encoder, *vae.decoder):
        layer.register_forward_pre_hook(note)
    latents = torch.cat(list(vae.encode_stream([torch.rand(1, 3, 45, 16, 16)])), dim=2)
    assert max(sizes) == 4
    for _ in vae.decode_stream(latents):
        pass
    assert max(sizes) == 4


def test_streaming_takes_one_clip(vae: VAE) -> None:
    with pytest.raises(ValueError, match="one clip"):
        next(vae.decode_stream(torch.randn(2, 4, 3, 4, 4)))


@pytest.mark.parametrize("is_streamed", [True, False])
def test_the_future_does_not_reach_the_past(vae: VAE, is_streamed: bool) -> None:
    def encoded(video: Tensor) -> Tensor:
        return vae.encode(video) if is_streamed else vae.moments(video)[0]

    def decoded(latents: Tensor) -> Tensor:
        return vae.decode(latents) if is_streamed else vae.reconstruct(latents)

    video = torch.rand(1, 3, 17, 16, 16) * 2 - 1
    before = encoded(video)
    for first_changed in range(1, 17):
        changed = video.clone()
        changed[:, :, first_changed:] *= -1
        after = encoded(changed)
        num_same = (first_changed - 1) // 4 + 1  # the latents of all frames before the changed ones
        assert torch.equal(before[:, :, :num_same], after[:, :, :num_same])
        assert not torch.equal(before[:, :, num_same:], after[:, :, num_same:])
    for first_changed in range(1, 5):
        other = before.clone()
        other[:, :, first_changed:] += 1.0
        num_same = 4 * (first_changed - 1) + 1
        assert torch.equal(decoded(before)[:, :, :num_same], decoded(other)[:, :, :num_same])
        assert not torch.equal(decoded(before)[:, :, num_same:], decoded(other)[:, :, num_same:])


def test_frames_survive_the_way_to_floats_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 1, 16, 16, 3)
    assert torch.equal(to_uint8(from_uint8(frames)), frames)


def test_a_preview_is_grey_before_it_is_fitted(vae: VAE) -> None:
    preview = vae.preview(torch.randn(1, 4, 3, 2, 5))
    assert preview.shape == (3, 8, 20, 3)
    assert preview.dtype == torch.uint8
    assert bool(((preview == 127) | (preview == 128)).all())


def test_a_preview_shows_each_cell_as_a_tile_by_a_linear_map(vae: VAE) -> None:
    vae.preview_weight.normal_(std=0.2)
    vae.preview_bias.normal_(std=0.2)
    latents = torch.randn(1, 4, 3, 2, 5)
    values = vae.preview_weight @ latents[0, :, 1, 1, 3] + vae.preview_bias
    expected = to_uint8(values.view(1, 3, 1, 4, 4))[0, 0]  # colour, row, column of the tile
    assert torch.equal(vae.preview(latents)[1, 4:8, 12:16], expected)
    with pytest.raises(ValueError, match="one clip"):
        vae.preview(torch.randn(2, 4, 3, 2, 5))
