"""Attention and the masks that decide which frames a frame may look at.

Shapes: B batch, H heads, Q queries, K keys, D width, E width of a head; T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

TEMPORAL_MODES = ("full", "causal", "window")


def temporal_mask(mode: str, num_frames: int, window: int = 4, num_anchors: int = 1) -> Tensor | None:
    """Say which frames (columns) each frame (row) may attend to, bool (T, T), or None where all may see all.

    `full` sees everything, `causal` the past and itself, `window` its neighbours fewer than `window` frames away on
    either side and, however far, the first `num_anchors` frames, which keep a long clip the same clip.

    Raises:
        ValueError: unknown mode, or a window that does not hold the frame itself.
    """
    if mode == "full":
        return None
    row, column = torch.arange(num_frames)[:, None], torch.arange(num_frames)[None, :]
    if mode == "causal":
        return column <= row
    if mode == "window":
        if window < 1 or num_anchors < 0:
            raise ValueError(f"window must be at least 1 and anchors at least 0, not {window} and {num_anchors}")
        return ((row - column).abs() < window) | (column < num_anchors)
    raise ValueError(f"unknown temporal attention {mode!r}: one of {', '.join(TEMPORAL_MODES)}")


def rotations(positions_N: Tensor, num_pairs: int, base: float = 100.0) -> tuple[Tensor, Tensor]:
    """Give cosine and sine, each fp32 (N, num_pairs), of rotary positions (Su et al. 2021) counted in tokens.

    A `base` of 100 turns the slowest pair once in some 600 tokens, far beyond any side or length that occurs.
    """
    exponents = torch.arange(num_pairs, device=positions_N.device) / num_pairs
    angles = positions_N.float()[:, None] / base**exponents
    return angles.cos(), angles.sin()


def rotated(x_BHNE: Tensor, cos_NF: Tensor, sin_NF: Tensor) -> Tensor:
    """Turn each pair of features (i, i + E/2) of queries or keys by its position's angle; F = E/2."""
    one, other = x_BHNE.chunk(2, dim=-1)
    return torch.cat([one * cos_NF - other * sin_NF, other * cos_NF + one * sin_NF], dim=-1)


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys, to itself or to a context."""

    def __init__(self, width: int, num_heads: int, context_width: int | None = None) -> None:
        """Build it; `context_width` None means self-attention.

        Raises:
            ValueError: the heads cannot share the width out.
        """
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"{num_heads} heads cannot share a width of {width}")
        self.num_heads = num_heads
        self.is_cross = context_width is not None
        head = width // num_heads
        if self.is_cross:
            self.q = nn.Linear(width, width)
            self.kv = nn.Linear(context_width or width, 2 * width)
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.Parameter(torch.ones(head))
        self.k_norm = nn.Parameter(torch.ones(head))
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x_BQD: Tensor,
        mask: Tensor | None = None,
        context_BKD: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend; `mask` is bool, True where a query may look, and broadcasts to (B, H, Q, K).

        `rotary`, as `rotations` gives it for E/2 pairs, tells a self-attention where its tokens are.
        """
        if self.is_cross:
            if context_BKD is None:
                raise ValueError("cross attention needs a context")
            q = self.q(x_BQD)
            k, v = self.kv(context_BKD).chunk(2, dim=-1)
        else:
            q, k, v = self.qkv(x_BQD).chunk(3, dim=-1)
        head = len(self.q_norm)  # a rank of several holds fewer heads than `num_heads`, never narrower ones
        q_BHQE, k_BHKE, v_BHKE = (part.unflatten(-1, (-1, head)).transpose(1, 2) for part in (q, k, v))
        q_BHQE = functional.rms_norm(q_BHQE, (head,), self.q_norm, 1e-6) * head**-0.5
        k_BHKE = functional.rms_norm(k_BHKE, (head,), self.k_norm, 1e-6)
        if rotary is not None:
            q_BHQE, k_BHKE = rotated(q_BHQE, *rotary), rotated(k_BHKE, *rotary)
        # At 5 to 64 tokens two plain matrix products beat the fused kernel on a CPU, forward and backward.
        scores_BHQK = q_BHQE @ k_BHKE.transpose(-1, -2)
        if mask is not None:
            scores_BHQK = scores_BHQK.masked_fill(~mask, -1e4)
        mixed_BHQE = scores_BHQK.softmax(dim=-1) @ v_BHKE
        out: Tensor = self.out(mixed_BHQE.transpose(1, 2).flatten(2))
        return out
