"""Turn the files that a model card names into modules, and back.

A card's `architecture` holds each module's constructor arguments, and for the text encoder also its `type` ("ngram",
which is ours, where none is given). `attention` says who sees whom across time; `files` name what lies in the folder.
Hashes are not checked here: whoever hands over a folder has verified it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from vitascope_common.errors import InvalidModelError
from vitascope_common.files import atomic_write
from vitascope_models.dit import DiT
from vitascope_models.text import PromptEncoder, TextEncoder
from vitascope_models.vae import VAE

Card = Mapping[str, Any]
Module = TypeVar("Module", bound=nn.Module)

_MODULES = ("vae", "text_encoder", "dit")
_DIT_ATTENTION = {"temporal": "temporal_attention", "window": "window", "num_anchors": "num_anchors"}


def load_vae(folder: Path, card: Card) -> VAE:
    """Build the VAE with its weights, fp32, for inference.

    Raises:
        InvalidModelError: the card or the file does not describe a VAE of ours.
    """
    vae = _build_vae(card)
    _fill(vae, folder, card, "vae")
    return vae


def load_text_encoder(folder: Path, card: Card) -> PromptEncoder:
    """Build the text encoder that the card names, with its weights, fp32, for inference.

    Raises:
        InvalidModelError: the card or a file does not describe a text encoder that we know.
    """
    kind = _architecture(card, "text_encoder").get("type", _OURS)
    load = TEXT_ENCODERS.get(kind) if isinstance(kind, str) else None
    if load is None:
        known = ", ".join(sorted(TEXT_ENCODERS))
        raise InvalidModelError(f"Model {_name(card)} wants a text encoder of type {kind!r}; there are: {known}.")
    return load(folder, card)


def _load_ngram(folder: Path, card: Card) -> TextEncoder:
    encoder = _build_text_encoder(card)
    _fill(encoder, folder, card, "text_encoder")
    return encoder


_OURS = "ngram"

TEXT_ENCODERS: Mapping[str, Callable[[Path, Card], PromptEncoder]] = {_OURS: _load_ngram}
"""How each type of text encoder comes from a model's folder and card."""


def load_dit(folder: Path, card: Card) -> DiT:
    """Build the diffusion transformer with its weights, fp32, for inference.

    The card's `attention` picks who sees whom across time: `temporal`, and for a window `window` and `num_anchors`,
    which count latent frames.

    Raises:
        InvalidModelError: the card or the file does not describe a transformer of ours.
    """
    dit = _build_dit(card)
    _fill(dit, folder, card, "dit")
    return dit


def random_weights(card: Card, folder: Path, seed: int) -> dict[str, Any]:
    """Write random weights for a card's architecture, as its `files` name them (or by default names).

    For tests of small configurations. Every weight differs from zero, so nothing is trivially equal. Returns a copy of
    the card whose `files` describe what was written.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae, text_encoder, dit = _build_vae(card), _build_text_encoder(card), _build_dit(card)
        modules: dict[str, nn.Module] = {"vae": vae, "text_encoder": text_encoder, "dit": dit}
        with torch.no_grad():
            for module in modules.values():
                for parameter in module.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
            text_encoder.ngram.weight[0] = 0.0
            vae.preview_weight.normal_(std=0.3)
        return write_files(card, folder, modules)


def write_files(card: Card, folder: Path, modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Write modules as fp16 safetensors, each whole or not at all; returns the card with `files` filled."""
    described: dict[str, Any] = copy.deepcopy(dict(card))
    named = described.get("files") or {}
    files: dict[str, Any] = {}
    for name in _MODULES:
        path = (named.get(name) or {}).get("path", f"{name}.safetensors")
        tensors = {key: value.detach().half().contiguous() for key, value in modules[name].state_dict().items()}
        content = save(tensors)
        atomic_write(folder / path, content)
        files[name] = {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
    return described | {"files": files}


def _build_vae(card: Card) -> VAE:
    return _built(VAE, card, "vae", _architecture(card, "vae"))


def _build_text_encoder(card: Card) -> TextEncoder:
    arguments = _architecture(card, "text_encoder")
    arguments.pop("type", None)
    return _built(TextEncoder, card, "text_encoder", arguments)


def _build_dit(card: Card) -> DiT:
    told = card.get("attention") or {}
    if not isinstance(told, Mapping):
        raise InvalidModelError(f"The attention of model {_name(card)} must be names and values, not {told!r}.")
    attention = {_DIT_ATTENTION[name]: told[name] for name in _DIT_ATTENTION if told.get(name) is not None}
    return _built(DiT, card, "dit", attention | _architecture(card, "dit"))


def _built(kind: type[Module], card: Card, name: str, arguments: dict[str, Any]) -> Module:
    try:
        return kind(**arguments)
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:  # torch raises any of them
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
    modules = card.get("architecture")
    arguments = modules.get(name) if isinstance(modules, Mapping) else None
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
