"""A step of the diffusion transformer and a decode of the VAE, over modules of diffusers of the same size.

The shipped weights on the CPU, fp32, by one thread and by two. A step has both sides of guidance (B = 2) and a prompt.
Each pair is measured in alternation in one process: one thread by its CPU time, which others on the machine disturb
little, two by the wall clock. Before that, what holds our weights must give our output.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tests.bench.diffusers_modules import SameDecoder, SameDiT, latte, wan
from tests.bench.figures import Figure
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitascope_common.registry import Registry
from vitascope_models.dit import DiT
from vitascope_models.load import load_dit, load_text_encoder, load_vae
from vitascope_models.text import Conditioning
from vitascope_models.vae import VAE

MODELS_DIR = Path("models")
SIZES = ((96, 33), (128, 25))
"""Side in pixels, and frames."""
NUM_PAIRS = 15
THREADS = (1, 2)
DIT_GOAL = 1.3
VAE_GOAL = 1.5
WORK_GOAL = 1.1
"""More work than this times ours, and the reference would be no fair one."""
TOLERANCE = 1e-4


def run() -> list[Figure]:
    """Measure."""
    torch.set_flush_denormal(True)
    card = Registry(MODELS_DIR).cards()[0]
    folder, described = MODELS_DIR / card.id, card.model_dump()
    vae, dit = load_vae(folder, described), load_dit(folder, described)
    encoder = load_text_encoder(folder, described)
    sides = encoder.encode("a small green star bouncing on a striped background"), encoder.encode("")
    figures: list[Figure] = []
    with torch.inference_mode():
        for side_px, num_frames in SIZES:
            shape = vae.latent_shape(num_frames, side_px, side_px)
            size = f"{side_px}x{side_px}x{num_frames}"
            figures += _dit_figures(dit, shape, sides, size)
            figures += _vae_figures(vae, shape, num_frames, size)
    return figures


def _dit_figures(
    dit: DiT, shape: tuple[int, int, int, int], sides: tuple[Conditioning, Conditioning], size: str
) -> Iterator[Figure]:
    noise = torch.Generator().manual_seed(0)
    latents_BCTHW = torch.randn(1, *shape, generator=noise).expand(2, -1, -1, -1, -1).contiguous()
    t_B = torch.full((2,), 0.7)
    tokens_BLD, mask_BL, pooled_BD = (
        torch.stack([getattr(side, name) for side in sides]) for name in ("tokens_LD", "mask_L", "pooled_D")
    )
    same, whole = SameDiT(dit).eval(), latte(shape[0], shape[1], shape[2], tokens_BLD.shape[-1])

    def step() -> Tensor:
        return dit(latents_BCTHW, t_B, tokens_BLD, mask_BL, pooled_BD)

    def same_step() -> Tensor:
        return same(latents_BCTHW, t_B, tokens_BLD, mask_BL, pooled_BD)

    def latte_step() -> Tensor:  # takes no mask for clips of several frames: what is padding is text to it
        return whole(latents_BCTHW, 1000 * t_B, tokens_BLD, return_dict=False)[0]

    name = f"DiT step {size}"
    _check(name, step(), same_step())
    yield from _work(name, "Latte", dit, step, whole, latte_step)
    yield from _compared(name, {"same maths": same_step, "Latte": latte_step}, step, 1, "steps/s", DIT_GOAL)


def _vae_figures(vae: VAE, shape: tuple[int, int, int, int], num_frames: int, size: str) -> Iterator[Figure]:
    latents_BCTHW = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    same, whole = SameDecoder(vae).eval(), wan(shape[0])

    def decode() -> Tensor:
        return vae.decode(latents_BCTHW)

    def same_decode() -> Tensor:
        return same(latents_BCTHW)

    def wan_decode() -> Tensor:
        return whole.decode(latents_BCTHW, return_dict=False)[0]

    name = f"VAE decode {size}"
    _check(name, decode(), same_decode())
    yield from _work(name, "Wan", vae.decoder, decode, whole.decoder, wan_decode)
    yield from _compared(name, {"same maths": same_decode, "Wan": wan_decode}, decode, num_frames, "frames/s", VAE_GOAL)


def _check(name: str, ours: Tensor, other: Tensor) -> None:
    difference = float((ours - other).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(ours.abs().max())):
        raise RuntimeError(f"{name}: diffusers' modules with our weights give something else, by {difference:.2g}")


def _work(
    name: str, other_name: str, ours: nn.Module, call: Callable[[], Tensor], other: nn.Module, other_call: Callable
) -> Iterator[Figure]:
    shapes = {each().shape for each in (call, other_call)}
    if len(shapes) > 1:
        raise RuntimeError(f"{name}: {other_name} makes something of another shape: {shapes}")
    pairs = [(module, _gflop(each)) for module, each in ((ours, call), (other, other_call))]
    (mine, gflop), (its, other_gflop) = ((_megaparameters(module), work) for module, work in pairs)
    yield Figure(f"{name}: arithmetic of {other_name} / ours", other_gflop, "GFLOP", gflop, WORK_GOAL)
    yield Figure(f"{name}: parameters of {other_name} / ours", its, "M", mine, WORK_GOAL)


def _gflop(call: Callable[[], Tensor]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def _megaparameters(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def _compared(
    name: str,
    others: dict[str, Callable[[], Tensor]],
    ours: Callable[[], Tensor],
    num_units: int,
    unit: str,
    goal: float,
) -> Iterator[Figure]:
    for num_threads in THREADS:
        torch.set_num_threads(num_threads)
        for other_name, other in others.items():
            clock = time.thread_time if num_threads == 1 else time.perf_counter
            pairs = [(_took_s(ours, clock), _took_s(other, clock)) for _ in range(NUM_PAIRS + 2)][2:]
            fast_s, slow_s = (statistics.median(column) for column in zip(*pairs, strict=True))
            threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
            metric = f"{name}, {threads}: ours / {other_name}"
            yield Figure(metric, num_units / fast_s, unit, num_units / slow_s, goal, "higher")


def _took_s(call: Callable[[], Tensor], clock: Callable[[], float]) -> float:
    begun_s = clock()
    call()
    return clock() - begun_s
