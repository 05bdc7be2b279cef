"""What the models of libs/models are measured against, out of diffusers' modules.

`SameDiT` and `SameDecoder` hold our weights and compute what ours compute, to rounding: diffusers' attention, norms,
rotary positions, feed-forward and causal convolutions, put together as its Latte and its video VAEs are. `latte` and
`wan` are whole models of diffusers, the nearest in kind, in the configuration that takes about as much work.
"""

import itertools

import torch
from tests.bench.figures import NotInstalledError
from torch import Tensor, nn
from torch.nn import functional

try:
    from diffusers import AutoencoderKLWan, LatteTransformer3DModel
    from diffusers.models.attention import FeedForward
    from diffusers.models.attention_processor import Attention, HunyuanAttnProcessor2_0
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
except ModuleNotFoundError as error:
    raise NotInstalledError(
        f"{error.name} is missing, which the comparison with diffusers needs: "
        'pip install -e ".[bench]" -c constraints.txt'
    ) from error

from vitascope_models.attention import Attention as OurAttention
from vitascope_models.dit import Block, DiT, Layout
from vitascope_models.vae import VAE, CausalConv, ChannelNorm, ResBlock, TimeUpsample


class SameDiT(DiT):
    """Our transformer with its blocks out of diffusers' modules; patches, positions and flow time enter as in ours."""

    def __init__(self, ours: DiT) -> None:
        layers: list[Block] = list(ours.blocks)  # type: ignore[arg-type]
        heads, text_width = layers[0].cross.num_heads, layers[0].cross.kv.in_features
        super().__init__(ours.latent_channels, ours.width, len(layers), heads, text_width)
        self.load_state_dict(ours.state_dict())
        self.blocks = nn.ModuleList(_SameBlock(layer) for layer in layers)

    def _layout(self, num_frames: int, rows: int, columns: int, temporal: str, like: Tensor) -> Layout:
        ours = super()._layout(num_frames, rows, columns, temporal, like)
        cos, sin = (each.repeat_interleave(2, dim=-1) for each in ours.spatial)
        time_cos, time_sin = (each.repeat_interleave(2, dim=-1) for each in ours.temporal)
        return Layout((cos, sin), (time_cos, time_sin), ours.mask_TT)


class _SameBlock(nn.Module):
    """diffusers' BasicTransformerBlock with `ada_norm_single`, and a temporal attention where Latte has a block."""

    def __init__(self, ours: Block) -> None:
        super().__init__()
        width = ours.width
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn1 = _same_attention(ours.spatial)
        self.temporal_norm = ours.temporal_norm
        self.temporal = _same_attention(ours.temporal)
        self.norm2 = ours.cross_norm
        self.attn2 = _same_attention(ours.cross)
        self.norm3 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.ff = FeedForward(width, activation_fn="linear-silu")
        _copy(self.ff.net[0].proj, ours.mlp_in)
        _copy(self.ff.net[2], ours.mlp_out)
        self.scale_shift_table = ours.modulation

    def forward(
        self, x_BTND: Tensor, modulation_B6D: Tensor, layout: Layout, tokens_BLD: Tensor, mask_BL: Tensor
    ) -> Tensor:
        batch, num_frames, num_tokens, width = x_BTND.shape
        parts = (self.scale_shift_table[None] + modulation_B6D)[:, :, None, None, :].unbind(dim=1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = parts
        y = self.norm1(x_BTND) * (1 + scale_msa) + shift_msa
        y = self.attn1(y.reshape(-1, num_tokens, width), image_rotary_emb=layout.spatial)
        x_BTND = gate_msa * y.reshape(x_BTND.shape) + x_BTND
        y = self.temporal_norm(x_BTND).permute(0, 2, 1, 3).reshape(-1, num_frames, width)
        y = self.temporal(y, image_rotary_emb=layout.temporal)
        x_BTND = y.reshape(batch, num_tokens, num_frames, width).permute(0, 2, 1, 3) + x_BTND
        bias_B1L = (1 - mask_BL.to(x_BTND.dtype)).unsqueeze(1) * -10000.0
        y = self.attn2(self.norm2(x_BTND).reshape(batch, -1, width), tokens_BLD, bias_B1L)
        x_BTND = y.reshape(x_BTND.shape) + x_BTND
        y = self.norm3(x_BTND) * (1 + scale_mlp) + shift_mlp
        return gate_mlp * self.ff(y) + x_BTND


def _same_attention(ours: OurAttention) -> Attention:
    heads, head = ours.num_heads, len(ours.q_norm)
    width = heads * head
    kv = ours.kv if ours.is_cross else None
    found = Attention(
        query_dim=width,
        cross_attention_dim=None if kv is None else kv.in_features,
        heads=heads,
        dim_head=head,
        qk_norm="rms_norm",
        eps=1e-6,
        bias=True,
        processor=HunyuanAttnProcessor2_0(),
    )
    # diffusers turns neighbouring features, ours those half a head apart.
    pairs = torch.arange(head).unflatten(0, (2, -1)).T.flatten()
    rows = (torch.arange(heads)[:, None] * head + pairs).flatten()
    projections = [ours.qkv] if kv is None else [ours.q, kv]
    weights = list(itertools.chain.from_iterable(each.weight.split(width) for each in projections))
    biases = list(itertools.chain.from_iterable(each.bias.split(width) for each in projections))
    with torch.no_grad():
        for index, to in enumerate((found.to_q, found.to_k, found.to_v)):
            order = rows if index < 2 else torch.arange(width)
            to.weight.copy_(weights[index][order])
            to.bias.copy_(biases[index][order])
        found.norm_q.weight.copy_(ours.q_norm[pairs])
        found.norm_k.weight.copy_(ours.k_norm[pairs])
    _copy(found.to_out[0], ours.out)
    return found


class SameDecoder(nn.Module):
    """Our decoder out of 3D convolutions, as CogVideoX's is; all frames at once."""

    def __init__(self, ours: VAE) -> None:
        super().__init__()
        self.mean_C, self.std_C = ours.latent_mean, ours.latent_std
        self.layers = nn.Sequential(*(_same_layer(layer) for layer in ours.decoder))

    def forward(self, latents_BCTHW: Tensor) -> Tensor:
        mean, std = (each[None, :, None, None, None] for each in (self.mean_C, self.std_C))
        return self.layers(latents_BCTHW * std + mean)


def _same_layer(ours: nn.Module) -> nn.Module:
    match ours:
        case nn.Conv2d():
            return _conv_3d(ours)
        case CausalConv():
            return _SameCausalConv(ours)
        case ChannelNorm():
            return _SameNorm(ours)
        case ResBlock():
            return _SameResBlock(ours)
        case TimeUpsample():
            return _SameTimeUpsample(ours)
        case nn.PixelShuffle():
            return _SamePixelShuffle(ours)
    raise TypeError(f"there is nothing like {type(ours).__name__} among diffusers' modules here")


class _SameCausalConv(nn.Module):
    def __init__(self, ours: CausalConv) -> None:
        super().__init__()
        taps = ours.conv.weight.shape[1] // 3
        self.conv = CogVideoXCausalConv3d(taps, ours.conv.out_channels, kernel_size=(3, 1, 1))
        with torch.no_grad():
            weight_OTI = ours.conv.weight[:, :, 0, 0].unflatten(1, (3, taps))
            self.conv.conv.weight.copy_(weight_OTI.transpose(1, 2)[..., None, None])
            self.conv.conv.bias.copy_(ours.conv.bias)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.conv(x_BCTHW)[0]


class _SameNorm(nn.Module):
    """A layer norm over channels, the way that diffusers' LTX-Video VAE takes it."""

    def __init__(self, ours: ChannelNorm) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(ours.channels, eps=1e-5)
        self.norm.weight, self.norm.bias = ours.scale, ours.shift

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.norm(x_BCTHW.movedim(1, -1)).movedim(-1, 1)


class _SameResBlock(nn.Module):
    def __init__(self, ours: ResBlock) -> None:
        super().__init__()
        self.norm, self.first, self.second = (_same_layer(each) for each in (ours.norm, ours.first, ours.second))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return x_BCTHW + self.second(functional.silu(self.first(functional.silu(self.norm(x_BCTHW)))))


class _SameTimeUpsample(nn.Module):
    """Two frames out of twice the channels, as diffusers' Wan VAE makes them."""

    def __init__(self, ours: TimeUpsample) -> None:
        super().__init__()
        self.time_conv = _conv_3d(ours.conv)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        b, c, t, h, w = x_BCTHW.shape
        x = self.time_conv(x_BCTHW).reshape(b, 2, c, t, h, w)
        return torch.stack((x[:, 0], x[:, 1]), 3).reshape(b, c, t * 2, h, w)[:, :, 1:]


class _SamePixelShuffle(nn.Module):
    def __init__(self, ours: nn.PixelShuffle) -> None:
        super().__init__()
        self.factor = ours.upscale_factor

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return functional.pixel_shuffle(x_BCTHW.transpose(1, 2), self.factor).transpose(1, 2)


def _conv_3d(ours: nn.Conv2d) -> nn.Conv3d:
    side, padding = ours.kernel_size[0], int(ours.padding[0])
    conv = nn.Conv3d(ours.in_channels, ours.out_channels, (1, side, side), padding=(0, padding, padding))
    with torch.no_grad():
        conv.weight.copy_(ours.weight[:, :, None])
        conv.bias.copy_(ours.bias)
    return conv


def _copy(to: nn.Linear, ours: nn.Linear) -> None:
    to.load_state_dict(ours.state_dict())


def latte(latent_channels: int, num_frames: int, side: int, text_width: int) -> LatteTransformer3DModel:
    """Build Latte for one size of latents, 256 wide with 8 heads as ours.

    Four pairs of a spatial and a temporal block, each with an MLP, are about as much as our six blocks with one.
    """
    return LatteTransformer3DModel(
        num_attention_heads=8,
        attention_head_dim=32,
        in_channels=latent_channels,
        num_layers=4,
        cross_attention_dim=256,
        attention_bias=True,
        sample_size=side,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=text_width,
        video_length=num_frames,
    ).eval()


def wan(latent_channels: int) -> AutoencoderKLWan:
    """Build Wan's VAE with our compression, 8x in space of which 2x by patches and 4x in time.

    Its kernels are 3x3x3, so half our channels make as many parameters.
    """
    return AutoencoderKLWan(
        base_dim=16,
        z_dim=latent_channels,
        dim_mult=[1, 2, 3],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
    ).eval()
