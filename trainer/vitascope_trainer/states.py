"""Read and write training states: safetensors files that are replaced whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


def write_state(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to `path` by way of a temporary file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary)
    os.replace(temporary, path)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read what `write_state` wrote."""
    return load_file(path)
