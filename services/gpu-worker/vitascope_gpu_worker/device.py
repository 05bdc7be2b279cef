"""What torch says when a device or a rank fails, translated once: for all that touches tensors of a device."""

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
