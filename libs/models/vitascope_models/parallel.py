"""Tensor parallelism: the transformer's blocks divided among ranks, so that together they take the steps of one.

Each rank holds some heads of every attention and the same share of every MLP's inner width (Shoeybi et al. 2019). A
block then sums over the ranks four times: after each attention and after the MLP. All else (patches, positions, flow
time, norms) is small, is kept whole and is computed by every rank alike, so every rank has the whole velocity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from vitascope_models.attention import Attention
from vitascope_models.dit import DiT


def tensor_parallel_plan(dit: DiT) -> dict[str, ParallelStyle]:
    """Say how each layer of the transformer is divided; layers that are not named are kept whole.

    A layer that widens is divided by its outputs (for attention: by heads), the one that follows it by its inputs.
    """
    plan: dict[str, ParallelStyle] = {}
    for index in range(len(dit.blocks)):
        for widens, narrows in (
            ("spatial.qkv", "spatial.out"),
            ("temporal.qkv", "temporal.out"),
            ("cross.q", "cross.out"),
            ("mlp_in", "mlp_out"),
        ):
            plan[f"blocks.{index}.{widens}"] = ColwiseParallel()
            plan[f"blocks.{index}.{narrows}"] = RowwiseParallel()
        plan[f"blocks.{index}.cross.kv"] = ColwiseParallel()
    return plan


def check_divisible(dit: DiT, num_ranks: int) -> None:
    """Refuse a number of ranks that the heads cannot be dealt out to evenly.

    The inner width of an MLP is a multiple of the width, and that of the heads: what divides the heads divides it too.

    Raises:
        ValueError: names both numbers.
    """
    for name, module in dit.named_modules():
        if isinstance(module, Attention) and module.num_heads % num_ranks:
            raise ValueError(f"{module.num_heads} heads of {name} cannot be divided among {num_ranks} ranks")


def shard_dit(dit: DiT, mesh: DeviceMesh) -> DiT:
    """Divide a transformer among the ranks of a mesh of one dimension, in place; each keeps its share alone.

    Every rank calls this with the same weights; nothing is sent. Forward passes then have to be taken by all ranks
    together, with the same inputs, and give all of them the same velocity.

    Raises:
        ValueError: the heads cannot be divided among so many.
    """
    num_ranks = mesh.size()
    check_divisible(dit, num_ranks)
    for module in dit.modules():
        if isinstance(module, Attention):
            fused, num_parts = (module.kv, 2) if module.is_cross else (module.qkv, 3)
            _deal(fused, num_parts, num_ranks)
    parallelize_module(dit, mesh, tensor_parallel_plan(dit), src_data_rank=None)
    return dit


def _deal(linear: nn.Linear, num_parts: int, num_ranks: int) -> None:
    """Reorder a fused projection's outputs, so that the share of a rank holds the same heads of each of its parts."""

    def dealt(tensor: Tensor) -> Tensor:
        parts: Tensor = tensor.unflatten(0, (num_parts, num_ranks, -1))
        return parts.transpose(0, 1).flatten(0, 2).contiguous()

    with torch.no_grad():
        linear.weight.copy_(dealt(linear.weight))
        linear.bias.copy_(dealt(linear.bias))
