"""Write trained weights as a model folder: fp16 safetensors, the vocabulary, and the card that hashes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from vitascope_models.dit import DiT
from vitascope_models.load import random_weights, write_files
from vitascope_models.text import TextEncoder
from vitascope_models.vae import VAE
from vitascope_trainer.states import read_state
from vitascope_trainer.world import vocabulary

ARCHITECTURE: dict[str, Any] = {
    "vae": {"latent_channels": 8, "widths": [96, 64, 32]},
    "text_encoder": {"width": 192, "num_layers": 3, "num_heads": 6, "max_tokens": 40},
    "dit": {"latent_channels": 8, "width": 256, "num_layers": 6, "num_heads": 8, "text_width": 192},
}
_CARD: dict[str, Any] = {
    "id": "vita-mini-1",
    "kind": "generate",
    "engine": "native",
    "pool": "default",
    "group_size": 1,
    "title": "Vita mini 1",
    "description": (
        "A small text-to-video model that a laptop runs: one flat shape in one of eight colours, ten motions and ten "
        "backgrounds. Shapes: circle, square, triangle, star, ring. It understands these words and their synonyms, and "
        "nothing else."
    ),
    "licence": "Apache-2.0",
    "created": "",
    "architecture": ARCHITECTURE,
    "files": {
        "dit": {"path": "dit.safetensors"},
        "vae": {"path": "vae.safetensors"},
        "text_encoder": {"path": "text_encoder.safetensors"},
        "vocabulary": {"path": "vocabulary.txt"},
    },
    "vocabulary": "vocabulary.txt",
    "sizes": ["64x64"],
    "seconds": ["2", "4"],
    "num_frames": {"2": 17, "4": 33},
    "defaults": {
        "size": "64x64",
        "seconds": "4",
        "fps": 8,
        "num_inference_steps": 24,
        "guidance_scale": 2.5,
        "shift": 2.0,
        "solver": "euler",
    },
    "limits": {"num_inference_steps": [1, 200], "guidance_scale": [1, 20], "prompt_max_chars": 2000},
    "cost": {"fixed_s": 0.2, "per_step_frame_s": 0.002},
    "price": {"usd_micros_per_second": 1000},
    "attention": {"temporal": "full"},
    "parallelism": {"tensor_parallel": [1, 2]},
    "provenance": {
        "training_data": "A procedural world, drawn by vitascope_trainer/world.py; no recorded or scraped media.",
        "recipe": (
            "Causal VAE first, then text encoder and transformer together by rectified flow, from nothing, on two CPU "
            "cores; trainer/README.md has the commands."
        ),
    },
}


def new_modules() -> dict[str, nn.Module]:
    """Build the modules that `ARCHITECTURE` describes, untrained."""
    return {
        "vae": VAE(**ARCHITECTURE["vae"]),
        "text_encoder": TextEncoder(vocabulary(), **ARCHITECTURE["text_encoder"]),
        "dit": DiT(**ARCHITECTURE["dit"]),
    }


def export(run: Path, folder: Path) -> dict[str, Any]:
    """Write the model of a training run into `folder`; what is not trained yet is random. Returns the card."""
    modules = new_modules()
    if not (run / "dit.safetensors").exists():
        card = random_weights(_dated(), folder, seed=0, words=vocabulary())
        card["provenance"] = card["provenance"] | {"recipe": "Random weights: not trained yet."}
        write_card(folder, card)
        return card
    modules["vae"].load_state_dict(read_state(run / "vae.safetensors"))
    averaged = read_state(run / "dit.safetensors")
    for name in ("text_encoder", "dit"):
        modules[name].load_state_dict(_part(averaged, name))
    card = write_files(_dated(), folder, modules, vocabulary())
    log = run / "training.json"
    if log.exists():
        card["provenance"] = card["provenance"] | {"training": json.loads(log.read_text())}
    write_card(folder, card)
    return card


def read_card(folder: Path) -> dict[str, Any]:
    """Read a model folder's card."""
    card: dict[str, Any] = yaml.safe_load((folder / "card.yaml").read_text(encoding="utf-8"))
    return card


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write a model folder's card."""
    text = yaml.safe_dump(dict(card), sort_keys=False, width=120, allow_unicode=True)
    (folder / "card.yaml").write_text(text, encoding="utf-8")


def _dated() -> dict[str, Any]:
    return _CARD | {"created": datetime.now(UTC).date().isoformat()}


def _part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
