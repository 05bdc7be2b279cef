"""Run a training stage in several one-thread processes that exchange gradients over gloo.

Two one-thread processes use two contended cores better than one process with two threads, which stalls whenever either
core is taken away.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

Stage = Callable[[Path, float, int], None]  # (out, minutes, rank)


def run(stage: Stage, out: Path, minutes: float, num_processes: int) -> None:
    """Run `stage` once per rank and wait for all of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_enter, args=(stage, out, minutes, num_processes, port), nprocs=num_processes)


def _enter(rank: int, stage: Stage, out: Path, minutes: float, num_processes: int, port: int) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if num_processes > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_processes)
    try:
        stage(out, minutes, rank)
    finally:
        if num_processes > 1:
            dist.destroy_process_group()
