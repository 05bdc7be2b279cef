"""Processes that train together, each of which knows the others by its environment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from vitascope_common.errors import ConfigurationError


@dataclass(frozen=True)
class Group:
    """This process among those that train together."""

    rank: int
    num_processes: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Say whether this is the process that writes and reports."""
        return self.rank == 0

    def share(self, num_micro_batches: int) -> range:
        """Give this process's part of a step's micro-batches.

        Raises:
            ConfigurationError: they cannot be shared out evenly.
        """
        if num_micro_batches % self.num_processes:
            raise ConfigurationError(
                f"{num_micro_batches} micro-batches cannot be shared out over {self.num_processes} processes: "
                "num_micro_batches must be a multiple."
            )
        count = num_micro_batches // self.num_processes
        return range(self.rank * count, (self.rank + 1) * count)

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.num_processes > 1:
            dist.barrier()

    def gathered(self, value: int) -> list[int]:
        """Give what each process hands in, by rank, once all have."""
        if self.num_processes == 1:
            return [value]
        mine = torch.tensor([value], device=self.device)
        found = [torch.empty_like(mine) for _ in range(self.num_processes)]
        dist.all_gather(found, mine)
        return [int(each) for each in found]


@contextlib.contextmanager
def joined(device: str, num_threads: int, environment: Mapping[str, str]) -> Iterator[Group]:
    """Join the processes that torchrun or `launch` started, or be the only one.

    Raises:
        ConfigurationError: CUDA is asked for and not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("run.device: CUDA is not available here.", param="run.device")
    kind = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    place = torch.device(kind, int(environment.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)
    try:
        if int(environment.get("WORLD_SIZE", "1")) == 1:
            yield Group(0, 1, place)
            return
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        try:
            yield Group(dist.get_rank(), dist.get_world_size(), place)
        finally:
            dist.destroy_process_group()
    finally:
        torch.set_flush_denormal(False)
