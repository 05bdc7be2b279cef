"""The diffusion transformer: latents, flow time and text in, velocity out.

Each block looks across the picture (spatial attention), across the clip (temporal attention), at the text (cross
attention), and then thinks per token (MLP). Flow time enters through AdaLN: it scales, shifts and gates the spatial
attention and the MLP (Peebles & Xie 2022; the one projection shared by all blocks is AdaLN-single, Chen et al. 2023).

Positions are told twice: rotary ones in both attentions count tokens, so that neighbours are neighbours at every size;
an embedding at the input says where in the picture and when in the clip, as shares of the whole.

Shapes: B batch, C latent channels, T latent frames, H and W latent rows and columns; after patching into 1x2x2 patches,
N = H/2 * W/2 tokens per frame of width D. L text tokens. E = C + 2 channels of a condition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitascope_models.attention import Attention, rotations, temporal_mask

_PATCH = 2
_OCTAVES = 5
_TIME_FEATURES = 128


def waves(positions: Tensor, num_octaves: int = _OCTAVES) -> Tensor:
    """Give sine and cosine of positions in [0, 1] at octaves of half a turn, appended as a last axis of 2 * octaves."""
    angles = positions[..., None] * (math.pi * 2.0 ** torch.arange(num_octaves, device=positions.device))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Positions(nn.Module):
    """Tell a token where it is: place in the picture, share of the clip that has passed, and how large and long all is.

    All are relative, so one model draws a motion over the whole clip whatever its length.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.space_in = nn.Linear(8 * _OCTAVES, width)
        self.space_out = nn.Linear(width, width)
        self.time_in = nn.Linear(4 * _OCTAVES, width)
        self.time_out = nn.Linear(width, width)

    def forward(self, num_frames: int, num_rows: int, num_columns: int) -> Tensor:
        """Give the embedding, (T, N, D)."""
        weight = self.space_in.weight
        y, x = ((torch.arange(count, device=weight.device) + 0.5) / count for count in (num_rows, num_columns))
        y_N, x_N = (grid.flatten() for grid in torch.meshgrid(y, x, indexing="ij"))
        sides = (torch.full_like(y_N, math.log2(count) / 8) for count in (num_rows, num_columns))
        space = torch.cat([waves(each) for each in (y_N, x_N, *sides)], dim=-1).to(weight.dtype)
        u_T = torch.arange(num_frames, device=weight.device) / max(num_frames - 1, 1)
        length = torch.full_like(u_T, math.log2(num_frames) / 8)
        time = torch.cat([waves(u_T), waves(length)], dim=-1).to(weight.dtype)
        space_ND: Tensor = self.space_out(functional.silu(self.space_in(space)))
        time_TD: Tensor = self.time_out(functional.silu(self.time_in(time)))
        return space_ND[None, :, :] + time_TD[:, None, :]


@dataclass(frozen=True)
class Layout:
    """Where tokens are, for the attentions of all blocks: rotary angles per picture and per clip, and who sees whom."""

    spatial: tuple[Tensor, Tensor]
    temporal: tuple[Tensor, Tensor]
    mask_TT: Tensor | None


class Block(nn.Module):
    """Spatial attention, temporal attention, cross attention and an MLP, each added to its input."""

    def __init__(self, width: int, num_heads: int, text_width: int) -> None:
        super().__init__()
        self.width = width
        self.spatial = Attention(width, num_heads)
        self.temporal_norm = nn.LayerNorm(width)
        self.temporal = Attention(width, num_heads)
        self.cross_norm = nn.LayerNorm(width)
        self.cross = Attention(width, num_heads, context_width=text_width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        modulation = torch.zeros(6, width)
        modulation[2] = modulation[5] = 1.0  # the gates
        self.modulation = nn.Parameter(modulation)
        for module in (self.spatial.out, self.temporal.out, self.cross.out, self.mlp_out):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)

    def forward(
        self, x_BTND: Tensor, modulation_B6D: Tensor, layout: Layout, tokens_BLD: Tensor, mask_BL: Tensor
    ) -> Tensor:
        """Refine the tokens."""
        batch, num_frames, num_tokens, _ = x_BTND.shape
        parts = (modulation_B6D + self.modulation)[:, :, None, None, :].unbind(dim=1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        y: Tensor = _plain_norm(x_BTND) * (1.0 + scale_a) + shift_a
        y = self.spatial(y.flatten(0, 1), rotary=layout.spatial).unflatten(0, (batch, num_frames))
        x_BTND = x_BTND + gate_a * y
        y = self.temporal_norm(x_BTND).transpose(1, 2).flatten(0, 1)
        y = self.temporal(y, layout.mask_TT, rotary=layout.temporal)
        x_BTND = x_BTND + y.unflatten(0, (batch, num_tokens)).transpose(1, 2)
        y = self.cross(self.cross_norm(x_BTND).flatten(1, 2), mask_BL[:, None, None, :], tokens_BLD)
        x_BTND = x_BTND + y.unflatten(1, (num_frames, num_tokens))
        y = _plain_norm(x_BTND) * (1.0 + scale_m) + shift_m
        y = self.mlp_out(functional.silu(self.mlp_in(y)))
        return x_BTND + gate_m * y


class DiT(nn.Module):
    """Predict the velocity of a rectified flow: noise minus clean latents (Liu et al. 2022)."""

    def __init__(
        self,
        latent_channels: int = 12,
        width: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        text_width: int = 192,
        temporal_attention: str = "full",
        window: int = 4,
        num_anchors: int = 1,
    ) -> None:
        """Build the network; `window` and `num_anchors` count latent frames and matter to `window` attention only."""
        super().__init__()
        if num_heads < 1 or width % num_heads or (width // num_heads) % 4:
            raise ValueError(f"a head's width must be a multiple of 4: {width} wide with {num_heads} heads is not")
        self.latent_channels = latent_channels
        self.width = width
        self.head_width = width // num_heads
        self.temporal_attention = temporal_attention
        self.window = window
        self.num_anchors = num_anchors
        temporal_mask(temporal_attention, 2, window, num_anchors)  # refuses what it does not know
        patch = latent_channels * _PATCH * _PATCH
        self.patch_in = nn.Linear(patch, width)
        self.condition_in = nn.Linear(patch + 2 * _PATCH * _PATCH, width, bias=False)
        self.positions = Positions(width)
        self.time_in = nn.Linear(_TIME_FEATURES, width)
        self.time_out = nn.Linear(width, width)
        self.pooled_in = nn.Linear(text_width, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, num_heads, text_width) for _ in range(num_layers))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, patch)
        nn.init.zeros_(self.condition_in.weight)
        for module in (self.modulation, self.final_modulation, self.patch_out):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(
        self,
        latents_BCTHW: Tensor,
        t_B: Tensor,
        tokens_BLD: Tensor,
        mask_BL: Tensor,
        pooled_BD: Tensor,
        condition_BETHW: Tensor | None = None,
        temporal: str | None = None,
    ) -> Tensor:
        """Give the velocity, (B, C, T, H, W), at flow time `t_B` in [0, 1], where 1 is pure noise.

        H and W are even; any number of frames. Everything but the mask has the weights' dtype (`t_B` may stay fp32).
        A condition has a channel that is 1 where the latents given are the clean ones, one that is 1 where a hint
        is given, and C channels with the hint. `temporal` replaces the model's own kind of temporal attention.

        Raises:
            ValueError: an odd side, or an unknown kind of temporal attention.
        """
        num_frames, height, width = latents_BCTHW.shape[2:]
        if height % _PATCH or width % _PATCH:
            raise ValueError(f"latents must have even sides, not {height}x{width}")
        rows, columns = height // _PATCH, width // _PATCH
        x_BTND = self.patch_in(_patches(latents_BCTHW)) + self.positions(num_frames, rows, columns)
        if condition_BETHW is not None:
            x_BTND = x_BTND + self.condition_in(_patches(condition_BETHW))
        time = flow_time_features(t_B).to(x_BTND.dtype)
        c_BD = self.time_out(functional.silu(self.time_in(time))) + self.pooled_in(pooled_BD)
        c_BD = functional.silu(c_BD)
        modulation_B6D = self.modulation(c_BD).unflatten(-1, (6, self.width))
        layout = self._layout(num_frames, rows, columns, temporal or self.temporal_attention, x_BTND)
        for block in self.blocks:
            x_BTND = block(x_BTND, modulation_B6D, layout, tokens_BLD, mask_BL)
        shift, scale = self.final_modulation(c_BD)[:, None, None, :].chunk(2, dim=-1)
        out: Tensor = self.patch_out(_plain_norm(x_BTND) * (1.0 + scale) + shift)
        out = out.unflatten(2, (rows, columns)).unflatten(4, (self.latent_channels, _PATCH, _PATCH))
        return out.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)

    def _layout(self, num_frames: int, rows: int, columns: int, temporal: str, like: Tensor) -> Layout:
        mask_TT = temporal_mask(temporal, num_frames, self.window, self.num_anchors)
        y_N, x_N = (grid.flatten() for grid in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
        num_pairs = self.head_width // 2
        down, across = (rotations(each_N, num_pairs // 2) for each_N in (y_N, x_N))
        spatial = [torch.cat(pair, dim=-1).to(like) for pair in zip(down, across, strict=True)]
        over_time = [each.to(like) for each in rotations(torch.arange(num_frames), num_pairs)]
        return Layout(
            (spatial[0], spatial[1]),
            (over_time[0], over_time[1]),
            mask_TT if mask_TT is None else mask_TT.to(like.device),
        )


def _patches(x_BCTHW: Tensor) -> Tensor:
    """Cut pictures into 2x2 patches, (B, T, N, C*4)."""
    rows, columns = (side // _PATCH for side in x_BCTHW.shape[3:])
    patches: Tensor = x_BCTHW.unflatten(4, (columns, _PATCH)).unflatten(3, (rows, _PATCH))  # B C T rows p columns p
    return patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(2, 3)


def flow_time_features(t_B: Tensor) -> Tensor:
    """Give fp32 sines and cosines of a flow time in [0, 1], (B, 128), at 64 frequencies from 1 to 1000."""
    half = _TIME_FEATURES // 2
    frequencies = torch.exp(math.log(1000.0) * torch.arange(half, device=t_B.device) / (half - 1))
    angles = t_B.float()[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _plain_norm(x_BTND: Tensor) -> Tensor:
    return functional.layer_norm(x_BTND, (x_BTND.shape[-1],), None, None, 1e-6)
