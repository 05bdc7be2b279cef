"""Small modules and cards that the tests of the model family share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from vitascope_models.dit import DiT
from vitascope_models.text import Conditioning
from vitascope_models.vae import VAE


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


@pytest.fixture
def vae() -> VAE:
    """Build a VAE whose weights and statistics all differ from zero."""
    vae = VAE(latent_channels=4, widths=(16, 12, 8))
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        vae.latent_mean.copy_(torch.randn(4))
        vae.latent_std.copy_(torch.rand(4) + 0.5)
    return vae.eval().requires_grad_(False)


@pytest.fixture
def dit() -> DiT:
    """Build a transformer whose weights all differ from zero."""
    dit = DiT(latent_channels=4, width=32, num_layers=2, num_heads=4, text_width=16)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return dit.eval().requires_grad_(False)


@pytest.fixture
def prompts() -> tuple[Conditioning, Conditioning]:
    """Give what a prompt and a negative one could mean."""
    cond, uncond = (
        Conditioning(torch.randn(12, 16), torch.arange(12) < num_tokens, torch.randn(16)) for num_tokens in (5, 1)
    )
    return cond, uncond
