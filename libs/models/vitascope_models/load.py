"""Turn the files that a model card names into modules, and back.

A card's `architecture` holds each module's constructor arguments; its `files` name what lies in the model's folder.
Hashes are not checked here: whoever hands over a folder has verified it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from vitascope_common.errors import InvalidModelError
from vitascope_models.dit import DiT
from vitascope_models.text import TextEncoder
from vitascope_models.vae import VAE

Card = Mapping[str, Any]
Module = TypeVar("Module", bound=nn.Module)

_MODULES = ("vae", "text_encoder", "dit")


def load_vae(folder: Path, card: Card) -> VAE:
    """Build the VAE with its weights, fp32, for inference.

    Raises:
        InvalidModelError: the card or the file does not describe a VAE of ours.
    """
    vae = _build_vae(card)
    _fill(vae, folder, card, "vae")
    return vae


def load_text_encoder(folder: Path, card: Card) -> TextEncoder:
    """Build the text encoder with its vocabulary and weights, fp32, for inference.

    Raises:
        InvalidModelError: the card or a file does not describe a text encoder of ours.
    """
    path = _path(folder, card, "vocabulary")
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModelError(f"The vocabulary of model {_name(card)} cannot be read: {error}") from error
    encoder = _build_text_encoder(card, words)
    _fill(encoder, folder, card, "text_encoder")
    return encoder


def load_dit(folder: Path, card: Card) -> DiT:
    """Build the diffusion transformer with its weights, fp32, for inference; `attention.temporal` picks its mask.

    Raises:
        InvalidModelError: the card or the file does not describe a transformer of ours.
    """
    dit = _build_dit(card)
    _fill(dit, folder, card, "dit")
    return dit


def random_weights(
    card: Card, folder: Path, seed: int, words: Sequence[str] = ("a", "red", "circle")
) -> dict[str, Any]:
    """Write random weights and a vocabulary for a card's architecture, as its `files` name them (or by default names).

    For tests of small configurations. Every tensor differs from zero, so nothing is trivially equal. Returns a copy of
    the card whose `files` and `vocabulary` describe what was written.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules: dict[str, nn.Module] = {
            "vae": _build_vae(card),
            "text_encoder": _build_text_encoder(card, words),
            "dit": _build_dit(card),
        }
        for module in modules.values():
            for parameter in module.parameters():
                parameter.data.add_(0.02 * torch.randn_like(parameter))
    return write_files(card, folder, modules, words)


def write_files(card: Card, folder: Path, modules: Mapping[str, nn.Module], words: Sequence[str]) -> dict[str, Any]:
    """Write modules as fp16 safetensors and the vocabulary, one word per line; returns the card with `files` filled."""
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = copy.deepcopy(dict(card))
    named = described.get("files") or {}
    files: dict[str, Any] = {}
    for name in _MODULES:
        path = (named.get(name) or {}).get("path", f"{name}.safetensors")
        tensors = {key: value.detach().half().contiguous() for key, value in modules[name].state_dict().items()}
        (folder / path).write_bytes(save(tensors))
        files[name] = _described(folder, path)
    path = (named.get("vocabulary") or {}).get("path", "vocabulary.txt")
    (folder / path).write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    files["vocabulary"] = _described(folder, path)
    return described | {"files": files, "vocabulary": path}


def _described(folder: Path, path: str) -> dict[str, Any]:
    content = (folder / path).read_bytes()
    return {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}


def _build_vae(card: Card) -> VAE:
    return _built(VAE, card, "vae", _architecture(card, "vae"))


def _build_text_encoder(card: Card, words: Sequence[str]) -> TextEncoder:
    return _built(TextEncoder, card, "text_encoder", _architecture(card, "text_encoder") | {"vocabulary": list(words)})


def _build_dit(card: Card) -> DiT:
    mode = (card.get("attention") or {}).get("temporal", "full")
    return _built(DiT, card, "dit", {"temporal_attention": mode} | _architecture(card, "dit"))


def _built(kind: type[Module], card: Card, name: str, arguments: dict[str, Any]) -> Module:
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise InvalidModelError(f"The {name} of model {_name(card)} is not one of ours: {error}") from error


def _fill(module: nn.Module, folder: Path, card: Card, name: str) -> None:
    path = _path(folder, card, name)
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InvalidModelError(f"The weights {path.name} of model {_name(card)} cannot be read: {error}") from error
    expected = module.state_dict()
    problems = [f"{key} is missing" for key in expected.keys() - found.keys()]
    problems += [f"{key} is not part of it" for key in found.keys() - expected.keys()]
    problems += [
        f"{key} has shape {list(found[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected.keys() & found.keys()
        if found[key].shape != expected[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        listed = "; ".join(sorted(problems)[:3])
        raise InvalidModelError(f"The weights {path.name} of model {_name(card)} do not fit: {listed}{more}.")
    module.load_state_dict({key: value.float() for key, value in found.items()})
    module.eval().requires_grad_(False)


def _architecture(card: Card, name: str) -> dict[str, Any]:
    arguments = (card.get("architecture") or {}).get(name)
    if not isinstance(arguments, Mapping):
        raise InvalidModelError(f"The card of model {_name(card)} says no architecture for {name}.")
    return dict(arguments)


def _path(folder: Path, card: Card, name: str) -> Path:
    try:
        return folder / str(card["files"][name]["path"])
    except (KeyError, TypeError) as error:
        raise InvalidModelError(f"The card of model {_name(card)} names no file for {name}.") from error


def _name(card: Card) -> str:
    return str(card.get("id", "without an id"))
