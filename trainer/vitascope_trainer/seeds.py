"""Randomness by name: what is drawn depends on the seed and on what it is drawn for, never on what was drawn before."""

from __future__ import annotations

import hashlib
import random

import torch


def seeded(*parts: object) -> random.Random:
    """Make a generator of choices; equal parts, as text, give equal choices."""
    return random.Random(" ".join(map(str, parts)))


def noise_generator(device: torch.device, *parts: object) -> torch.Generator:
    """Make a generator of noise on a device; equal parts, as text, give equal noise there."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
