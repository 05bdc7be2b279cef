"""The ranks of one torchrun group: what rank 0 tells the others, over gloo, without pickle.

Two groups of connections. One carries the orders: on it the others wait, for hours when there is nothing to do, so it
knows no time limit, but a rank whose process is gone breaks it at once. The other carries the sums of tensor parallel
steps (on CUDA by NCCL) and has a limit.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vitascope_common.errors import ConfigurationError
from vitascope_gpu_worker.errors import RankLostError
from vitascope_gpu_worker.ranks import Message, Order

COLLECTIVE_S = 1800.0
"""How long one rank may be behind another: while it loads weights."""
ORDERS = timedelta(days=365)


class ProcessGroup:
    """This rank's place among the others; see `Ranks`. Belongs to one thread."""

    def __init__(self, device: torch.device) -> None:
        """Meet the other ranks that torchrun has started.

        Raises:
            ConfigurationError: not started by torchrun, or a rank did not come.
        """
        is_cuda = device.type == "cuda"
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if is_cuda else "gloo", timeout=timedelta(seconds=COLLECTIVE_S)
            )
            self.mesh: DeviceMesh = init_device_mesh(device.type, (dist.get_world_size(),))
            self._orders = dist.new_group(backend="gloo", timeout=ORDERS)
        except (RuntimeError, ValueError) as error:
            raise ConfigurationError(f"The ranks of this worker did not meet: {str(error).splitlines()[0]}") from error
        self.rank = dist.get_rank()

    def tell(
        self,
        order: Order,
        number: int = 0,
        values: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Order something of all other ranks (rank 0 only); see `Ranks`."""
        text = json.dumps(values).encode() if values is not None else b""
        data = text + (save_tensors(dict(tensors)) if tensors is not None else b"")
        with _connected():
            dist.broadcast(torch.tensor([order, number, len(text), len(data)]), 0, group=self._orders)
            if data:
                dist.broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0, group=self._orders)

    def hear(self) -> Message:
        """Wait for rank 0's next order (the other ranks); see `Ranks`."""
        header = torch.zeros(4, dtype=torch.int64)
        with _connected():
            dist.broadcast(header, 0, group=self._orders)
            order, number, num_text_bytes, num_bytes = (int(value) for value in header)
            payload = torch.empty(num_bytes, dtype=torch.uint8)
            if num_bytes:
                dist.broadcast(payload, 0, group=self._orders)
        data = payload.numpy().tobytes()
        text, tensors = data[:num_text_bytes], data[num_text_bytes:]
        return Message(Order(order), number, json.loads(text) if text else {}, load_tensors(tensors) if tensors else {})

    def meet(self) -> None:
        """Wait until all ranks are here; see `Ranks`."""
        with _connected():
            dist.barrier()

    def close(self) -> None:
        """Leave the group, in order: all ranks do."""
        dist.destroy_process_group()


@contextmanager
def _connected() -> Iterator[None]:
    """Translate gloo's way of saying that a rank is gone or late."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(f"A rank of this worker is gone: {str(error).splitlines()[0][:200]}") from error
