"""Attention: who may look at whom, and where tokens are."""

import pytest
import torch

from vitascope_models.attention import Attention, rotations, temporal_mask


def test_full_attention_needs_no_mask() -> None:
    assert temporal_mask("full", 9) is None


def test_causal_attention_looks_back_only() -> None:
    mask = temporal_mask("causal", 4)
    assert mask is not None
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_a_window_sees_its_neighbours_and_the_anchors() -> None:
    mask = temporal_mask("window", 6, window=2, num_anchors=1)
    assert mask is not None
    assert mask.int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 0, 1, 1, 1, 0],
        [1, 0, 0, 1, 1, 1],
        [1, 0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("num_frames", [1, 3, 4])
def test_a_window_wider_than_the_clip_sees_everything(num_frames: int) -> None:
    mask = temporal_mask("window", num_frames, window=4)
    assert mask is not None
    assert bool(mask.all())


@pytest.mark.parametrize(("mode", "window"), [("sideways", 2), ("window", 0)])
def test_an_unknown_mode_and_an_empty_window_are_refused(mode: str, window: int) -> None:
    with pytest.raises(ValueError, match=r"sideways|window"):
        temporal_mask(mode, 4, window=window)


def test_masked_tokens_have_no_effect() -> None:
    attention = Attention(16, 4).eval()
    x = torch.randn(2, 5, 16)
    changed = x.clone()
    changed[:, 3:] = torch.randn(2, 2, 16)
    mask = torch.tensor([True, True, True, False, False])
    assert torch.equal(attention(x, mask)[:, :3], attention(changed, mask)[:, :3])


def test_cross_attention_wants_a_context() -> None:
    with pytest.raises(ValueError, match="context"):
        Attention(16, 4, context_width=8)(torch.randn(1, 3, 16))


def test_rotary_positions_tell_distances_and_nothing_else() -> None:
    attention = Attention(32, 4).eval().requires_grad_(False)
    x, positions = torch.randn(2, 6, 32), torch.arange(6)

    def attended(positions: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = attention(x, rotary=rotations(positions, 4))
        return found

    torch.testing.assert_close(attended(positions + 37), attended(positions), rtol=0, atol=1e-5)
    assert not torch.allclose(attended(2 * positions), attended(positions), atol=1e-4)
    assert not torch.allclose(attention(x), attended(positions), atol=1e-4)


def test_rotations_begin_at_none_and_keep_lengths() -> None:
    cos, sin = rotations(torch.arange(50), 4)
    assert torch.equal(cos[0], torch.ones(4))
    assert torch.allclose(cos.square() + sin.square(), torch.ones(50, 4), atol=1e-6)
    assert bool((cos[1:, -1].diff() < 0).all())  # the slowest pair tells all of these positions apart
