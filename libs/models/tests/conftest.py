"""Small modules and cards that the tests of the model family share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: the tests are small, and idle threads that spin steal the time of others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_card() -> dict[str, Any]:
    """Describe a model that takes milliseconds."""
    return {
        "id": "tiny",
        "architecture": {
            "vae": {"latent_channels": 4, "widths": [16, 12, 8]},
            "text_encoder": {"width": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 12},
            "dit": {"latent_channels": 4, "width": 32, "num_layers": 2, "num_heads": 4, "text_width": 16},
        },
        "attention": {"temporal": "full"},
    }
