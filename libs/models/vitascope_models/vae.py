"""The causal 3D VAE: video to latents and back, 4x smaller in time and 8x in space.

Causal means that a frame depends on earlier frames only, so a clip can be encoded while it is still being shot, and
decoded while later latents are still unknown: the first latent frame stands for one video frame, every further one for
four, and the last frame or two seen by each temporal convolution are all there is to remember between them.

There are two ways through the network. Inference (`encode`, `decode` and their streams) goes a latent frame at a time,
so that a clip in chunks is the whole clip, bit for bit, and memory does not grow with it. Training (`moments`,
`reconstruct`) takes all frames at once, which has gradients and gives the same up to rounding.

Shapes: B batch, C channels, T frames, H rows, W columns; N = B * T images. F latent frames, h = H/8, w = W/8.
Inside, features are `x_NCHW` with the batch and the frames folded together (2D convolutions want them so). In memory
the channels come last from end to end, as norms and convolutions want them: no layer has to copy its input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

# The frames that each causal convolution still needs, and which upsamplers have begun; owned by one stream.
Past = dict[nn.Module, Tensor]

_PREVIEW_SCALE = 4


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel alone, so that frames never see each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Normalise over the channels."""
        x_NHWC = x_NCHW.permute(0, 2, 3, 1)
        return functional.layer_norm(x_NHWC, (self.channels,), self.scale, self.shift, 1e-5).permute(0, 3, 1, 2)


class CausalConv(nn.Module):
    """Convolve three successive frames, the last being the present one; before the first frame lies its own copy.

    With stride 2 the clip's first frame stays and each further pair becomes one: 2T - 1 frames become T.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(3 * in_channels, out_channels, kernel_size=1)

    def forward(self, x_NCHW: Tensor, num_clips: int, past: Past | None = None) -> Tensor:
        """Convolve in time; with `past`, continue where the last call stopped (by pairs of frames if stride is 2)."""
        x_BTHWC = x_NCHW.permute(0, 2, 3, 1).unflatten(0, (num_clips, -1))
        before = past.get(self) if past is not None else None
        if before is None:
            before = x_BTHWC[:, :1].expand(-1, 2, -1, -1, -1)
        padded = torch.cat([before, x_BTHWC], dim=1)
        if past is not None:
            past[self] = padded[:, self.stride - 3 :]
        num_windows = padded.shape[1] - 2
        taps = [padded[:, tap : tap + num_windows : self.stride] for tap in range(3)]
        return _pointwise(self.conv, torch.cat(taps, dim=-1).flatten(0, 1)).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, SiLU, a 3x3 or a temporal convolution, added to the input; starts as identity."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = CausalConv(channels, channels) if temporal else nn.Conv2d(channels, channels, 3, padding=1)
        last = self.second.conv if isinstance(self.second, CausalConv) else self.second
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_NCHW: Tensor, num_clips: int, past: Past | None = None) -> Tensor:
        """Refine features, keeping their shape."""
        y: Tensor = functional.silu(self.first(functional.silu(self.norm(x_NCHW))))
        y = self.second(y, num_clips, past) if isinstance(self.second, CausalConv) else self.second(y)
        return x_NCHW + y


class TimeUpsample(nn.Module):
    """Make two frames of each, except of the clip's first, which makes one: T frames become 2T - 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, kernel_size=1)

    def forward(self, x_NCHW: Tensor, num_clips: int, past: Past | None = None) -> Tensor:
        """Double the frame rate; with `past`, only the first call drops a frame."""
        y_NHWC = _pointwise(self.conv, x_NCHW.permute(0, 2, 3, 1))
        pairs = y_NHWC.unflatten(-1, (2, -1)).movedim(-2, 1)  # N 2 H W C
        y_BTHWC: Tensor = pairs.unflatten(0, (num_clips, -1)).flatten(1, 2)
        if past is None or self not in past:
            y_BTHWC = y_BTHWC[:, 1:]
        if past is not None:
            past[self] = y_NHWC.new_empty(0)
        return y_BTHWC.flatten(0, 1).contiguous().permute(0, 3, 1, 2)


class VAE(nn.Module):
    """Turn video in [-1, 1] into latents of zero mean and unit variance per channel, and back.

    `latent_mean` and `latent_std` travel with the weights; before they are measured they are 0 and 1. So do
    `preview_weight` and `preview_bias`; before they are fitted they are 0, and a preview is grey.
    """

    def __init__(self, latent_channels: int = 12, widths: tuple[int, int, int] = (96, 64, 32)) -> None:
        """Build the network; `widths` are the channels at 1/8, 1/4 and 1/2 of the resolution."""
        super().__init__()
        wide, middle, narrow = widths
        self.latent_channels = latent_channels
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))
        self.latent_mean: Tensor
        self.latent_std: Tensor
        num_values = 3 * _PREVIEW_SCALE**2
        self.register_buffer("preview_weight", torch.zeros(num_values, latent_channels))
        self.register_buffer("preview_bias", torch.zeros(num_values))
        self.preview_weight: Tensor
        self.preview_bias: Tensor
        self.encoder = nn.ModuleList(
            [
                nn.PixelUnshuffle(4),
                nn.Conv2d(48, middle, 3, padding=1),
                ResBlock(middle, temporal=False),
                nn.Conv2d(middle, wide, 3, stride=2, padding=1),
                CausalConv(wide, wide, stride=2),
                ResBlock(wide, temporal=True),
                CausalConv(wide, wide, stride=2),
                ResBlock(wide, temporal=True),
                ResBlock(wide, temporal=False),
                ChannelNorm(wide),
                nn.Conv2d(wide, 2 * latent_channels, kernel_size=1),
            ]
        )
        self.decoder = nn.ModuleList(
            [
                nn.Conv2d(latent_channels, wide, 3, padding=1),
                ResBlock(wide, temporal=False),
                ResBlock(wide, temporal=True),
                TimeUpsample(wide),
                ResBlock(wide, temporal=True),
                TimeUpsample(wide),
                ResBlock(wide, temporal=True),
                nn.Conv2d(wide, 4 * middle, kernel_size=1),
                nn.PixelShuffle(2),
                ResBlock(middle, temporal=False),
                nn.Conv2d(middle, 4 * narrow, kernel_size=1),
                nn.PixelShuffle(2),
                ResBlock(narrow, temporal=False),
                ChannelNorm(narrow),
                nn.Conv2d(narrow, 12, 3, padding=1),
                nn.PixelShuffle(2),
            ]
        )

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Give (C, F, h, w) of a clip's latents.

        Raises:
            ValueError: the clip has no latents: frames must be 4k + 1, sides multiples of 8.
        """
        if num_frames < 1 or num_frames % 4 != 1 or height % 8 or width % 8 or height < 8 or width < 8:
            raise ValueError(f"no latents for {num_frames} frames of {width}x{height}: need 4k+1 frames, sides of 8k")
        return self.latent_channels, (num_frames - 1) // 4 + 1, height // 8, width // 8

    def moments(self, video_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and log-variance of the latents, unnormalised, each (B, C, F, h, w); what training needs."""
        self.latent_shape(*video_BCTHW.shape[2:])
        num_clips = video_BCTHW.shape[0]
        x = _run(self.encoder, _fold(video_BCTHW), num_clips, None)
        mean, log_var = _unfold(x, num_clips).chunk(2, dim=1)
        return mean, log_var.clamp(-12.0, 6.0)

    @torch.no_grad()
    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """Give the normalised latents, (B, C, F, h, w), of video in [-1, 1]: the mean, without sampling.

        Raises:
            ValueError: the clip has no latents; see `latent_shape`.
        """
        self.latent_shape(*video_BCTHW.shape[2:])
        return torch.cat(list(self.encode_stream([video_BCTHW])), dim=2)

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode clips that come in chunks (B, 3, any T, H, W): yields (B, C, 1, h, w) as soon as it can be known.

        The same as `encode` of the whole, bit for bit, however the frames are dealt out to the chunks.

        Raises:
            ValueError: sides that are no multiples of 8, or, at the end, frames that are not 4k + 1.
        """
        past: Past = {}
        mean, std = _per_channel(self.latent_mean), _per_channel(self.latent_std)
        num_frames = 0
        for frames_BCTHW in _groups(chunks, first=1, then=4):
            num_frames += frames_BCTHW.shape[2]
            self.latent_shape(num_frames, *frames_BCTHW.shape[3:])
            x = _unfold(_run(self.encoder, _fold(frames_BCTHW), len(frames_BCTHW), past), len(frames_BCTHW))
            yield (x[:, : self.latent_channels] - mean) / std

    def reconstruct(self, latents_BCTHW: Tensor) -> Tensor:
        """Decode unnormalised latents; what training needs."""
        num_clips = latents_BCTHW.shape[0]
        return _unfold(_run(self.decoder, _fold(latents_BCTHW), num_clips, None), num_clips)

    @torch.no_grad()
    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """Decode whole clips to video in about [-1, 1], (B, 3, T, H, W)."""
        return torch.cat(list(self._decoded([latents_BCTHW])), dim=2)

    @torch.no_grad()
    def decode_stream(self, latents: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode one clip (B = 1) a latent frame at a time: yields uint8 frames (1, H, W, 3), then (4, H, W, 3) each.

        The latents come whole, (1, C, F, h, w), or in chunks of any number of frames. Memory does not grow with the
        clip. Equals `to_uint8(decode(...))` bit for bit.

        Raises:
            ValueError: more than one clip.
        """
        for video_BCTHW in self._decoded([latents] if isinstance(latents, Tensor) else latents):
            if len(video_BCTHW) != 1:
                raise ValueError(f"decode_stream takes one clip, not {len(video_BCTHW)}")
            yield to_uint8(video_BCTHW)[0]

    @torch.no_grad()
    def preview(self, latents_BCTHW: Tensor) -> Tensor:
        """Guess at half the size what one clip (B = 1) looks like, a picture per latent frame: uint8 (F, 4h, 4w, 3).

        Each latent cell becomes 4x4 pixels by one linear map, `preview_weight` (48, C) and `preview_bias` (48), whose
        rows go by colour, then row, then column of the 4x4: far cheaper than a denoising step, and rough.

        Raises:
            ValueError: more than one clip.
        """
        if len(latents_BCTHW) != 1:
            raise ValueError(f"preview takes one clip, not {len(latents_BCTHW)}")
        values_FhwP = functional.linear(latents_BCTHW[0].permute(1, 2, 3, 0), self.preview_weight, self.preview_bias)
        pictures_FCHW = functional.pixel_shuffle(values_FhwP.permute(0, 3, 1, 2), _PREVIEW_SCALE)
        return to_uint8(pictures_FCHW.transpose(0, 1)[None])[0]

    def _decoded(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        past: Past = {}
        std, mean = _per_channel(self.latent_std), _per_channel(self.latent_mean)
        for latents_BCTHW in _groups(chunks, first=1, then=1):
            num_clips = len(latents_BCTHW)
            yield _unfold(_run(self.decoder, _fold(latents_BCTHW * std + mean), num_clips, past), num_clips)


def to_uint8(video_BCTHW: Tensor) -> Tensor:
    """Turn video in [-1, 1] into bytes, (B, T, H, W, 3)."""
    levels = (video_BCTHW.float().clamp(-1.0, 1.0) + 1.0) * 127.5
    return levels.round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def from_uint8(frames_BTHWC: Tensor) -> Tensor:
    """Turn bytes, (B, T, H, W, 3), into fp32 video in [-1, 1], (B, 3, T, H, W)."""
    return frames_BTHWC.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def _groups(chunks: Iterable[Tensor], first: int, then: int) -> Iterator[Tensor]:
    """Deal frames (axis 2) that come in chunks out anew: the `first` ones, `then` each; last what is left, if any.

    A group is always a copy in one and the same memory layout: kernels round differently for different ones.
    """
    size, held_BCTHW = first, None
    for chunk_BCTHW in chunks:
        held_BCTHW = chunk_BCTHW if held_BCTHW is None else torch.cat([held_BCTHW, chunk_BCTHW], dim=2)
        while held_BCTHW.shape[2] >= size:
            yield held_BCTHW[:, :, :size].clone(memory_format=torch.contiguous_format)
            held_BCTHW, size = held_BCTHW[:, :, size:], then
    if held_BCTHW is not None and held_BCTHW.shape[2]:
        yield held_BCTHW


def _pointwise(conv: nn.Conv2d, x_NHWC: Tensor) -> Tensor:
    """Apply a 1x1 convolution, to channels that come last and stay last: a matrix product, and no copies."""
    out_NHWC: Tensor = functional.linear(x_NHWC, conv.weight[:, :, 0, 0], conv.bias)
    return out_NHWC


def _run(layers: nn.ModuleList, x_NCHW: Tensor, num_clips: int, past: Past | None) -> Tensor:
    y: Tensor = x_NCHW
    for layer in layers:
        is_temporal = isinstance(layer, CausalConv | ResBlock | TimeUpsample)
        y = layer(y, num_clips, past) if is_temporal else layer(y)
    return y


def _fold(x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _unfold(x_NCHW: Tensor, num_clips: int) -> Tensor:
    x_BTCHW: Tensor = x_NCHW.unflatten(0, (num_clips, -1))
    return x_BTCHW.transpose(1, 2)


def _per_channel(stats_C: Tensor) -> Tensor:
    return stats_C[None, :, None, None, None]
