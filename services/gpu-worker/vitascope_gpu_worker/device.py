"""The device, for all that touches tensors of one: what torch says when it fails, translated once, and its memory."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed import DistError

from vitascope_gpu_worker.errors import DeviceError, OutOfMemoryError, RankLostError

_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "_STATUS_ALLOC_FAILED")
"""The CPU's allocator, twice; CUDA's; cuBLAS' and cuDNN's."""
_FAILED = ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "NCCL")
"""Libraries below torch, of which most say RuntimeError."""


@contextmanager
def device_errors() -> Iterator[None]:
    """Raise a GroupError for what leaves the process in doubt; anything else passes.

    Work on CUDA is asynchronous: a kernel's error may come from any later call, also from a copy to the CPU.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError() from error
    except RuntimeError as error:
        said = str(error)
        first_line = said.partition("\n")[0][:200]
        if any(sign in said for sign in _NO_MEMORY):
            raise OutOfMemoryError() from error
        if isinstance(error, DistError) or "gloo" in said:
            raise RankLostError(f"A rank of this worker is gone: {first_line}") from error
        if isinstance(error, torch.AcceleratorError) or any(sign in said for sign in _FAILED):
            raise DeviceError(f"The device failed: {first_line}") from error
        raise


def begin_peak_memory() -> None:
    """Forget what this rank's device has needed so far."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mb() -> float:
    """Return how many MiB tensors have taken on this rank's device at most since then.

    Without CUDA: what this process has ever taken. Rank 0's is the highest of a group: it alone decodes.
    """
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 2**20
