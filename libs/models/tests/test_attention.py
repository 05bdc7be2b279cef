"""Attention: who may look at whom."""

import pytest
import torch

from vitascope_models.attention import Attention, temporal_mask


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
