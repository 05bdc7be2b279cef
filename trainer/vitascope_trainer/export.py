"""Write trained weights as a model folder: fp16 safetensors, and the card that hashes and describes them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from vitascope_common.errors import ConfigurationError
from vitascope_common.files import TEMP_PREFIX, atomic_write, make_folder, sync_folder
from vitascope_common.registry_cards import CARD_FILE, Defaults, parse_card
from vitascope_models.load import write_files
from vitascope_models.vae import VAE, from_uint8
from vitascope_trainer.checkpoints import disk_error
from vitascope_trainer.config import Recipe
from vitascope_trainer.sheets import modules_of
from vitascope_trainer.sources import Bucket, Source

_TRAINING_DATA = {
    "world": "Clips drawn by a program, vitascope_trainer/world; no recorded or scraped media.",
    "folder": "A folder of videos with captions.",
}
_NUM_PREVIEW_CLIPS = 32
_PREVIEW_SHRINK = 2  # a preview has half the size


def export(
    recipe: Recipe,
    vae: VAE,
    averages: Mapping[str, Tensor],
    source: Source,
    accounts: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> dict[str, Any]:
    """Write the model that a run made into `folder` and return its card, which the registry has accepted.

    `source` gives the clips over which the VAE's preview is fitted. `accounts` say how the stages `vae` and `dit` went:
    the provenance names what they were trained with, whatever `recipe` says by now. A model that lies in `folder` stays
    until all of the new one is written.

    Raises:
        ConfigurationError: the recipe's card is not one that the registry takes; names each thing wrong with it.
        UnavailableError: the disk is full.
    """
    text_encoder, dit = modules_of(averages, recipe.model)
    fit_preview(vae, source, recipe.dit.first_bucket)
    kinds = dict.fromkeys(account["settings"]["data"]["kind"] for account in accounts.values())
    card: dict[str, Any] = {
        **recipe.card,
        "created": datetime.now(UTC).date().isoformat(),
        "architecture": recipe.model.model_dump(mode="json"),
        "provenance": {
            "training_data": " ".join(_TRAINING_DATA[kind] for kind in kinds),
            "recipe": {"name": recipe.name} | {stage: _trained_with(stage, each) for stage, each in accounts.items()},
            "training": {
                stage: {name: value for name, value in account.items() if name != "settings"}
                for stage, account in accounts.items()
            },
        },
    }
    try:
        make_folder(folder)
        with tempfile.TemporaryDirectory(prefix=TEMP_PREFIX, dir=folder.parent) as temp:
            card = write_files(card, Path(temp), {"vae": vae, "text_encoder": text_encoder, "dit": dit})
            text = _checked_text(card, folder)
            for file in card["files"].values():
                os.replace(Path(temp) / file["path"], folder / file["path"])
        sync_folder(folder)
        atomic_write(folder / CARD_FILE, text)
    except OSError as error:
        raise disk_error(folder, error) from error
    return card


def _trained_with(stage: str, account: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a stage was trained with, but for the model, which the card's architecture names."""
    settings = account["settings"]
    others = {name: value for name, value in settings.items() if name not in ("model", stage)}
    return {**others, **settings[stage], "steps": account["steps"]}


def read_card(folder: Path) -> dict[str, Any]:
    """Read a model folder's card."""
    card: dict[str, Any] = yaml.safe_load((folder / CARD_FILE).read_text(encoding="utf-8"))
    return card


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Replace a model folder's card.

    Raises:
        ConfigurationError: the registry would not take it; names each thing wrong with it.
    """
    atomic_write(folder / CARD_FILE, _checked_text(card, folder))


def _checked_text(card: Mapping[str, Any], folder: Path) -> bytes:
    text = yaml.safe_dump(dict(card), sort_keys=False, width=120, allow_unicode=True).encode()
    parse_card(text, str(folder / CARD_FILE))
    return text


def card_defaults(recipe: Recipe) -> tuple[Defaults, Bucket]:
    """Give what the recipe's card says a request gets that does not say, and the size and length of such a clip.

    Raises:
        ConfigurationError: it does not say, or not so that the registry would take it.
    """
    try:
        defaults = Defaults.model_validate(recipe.card.get("defaults"))
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, ("card", "defaults", *problem["loc"])))
        raise ConfigurationError(f"{name}: {problem['msg']}.", param=name) from error
    lengths = recipe.card.get("num_frames")
    num_frames = lengths.get(defaults.seconds) if isinstance(lengths, dict) else None
    if not isinstance(num_frames, int):
        raise ConfigurationError(f"card.num_frames: does not say how many frames {defaults.seconds} s are.")
    width, height = (int(side) for side in defaults.size.split("x"))
    return defaults, Bucket(num_frames, height, width)


@torch.no_grad()
def fit_preview(vae: VAE, source: Source, bucket: Bucket, num_clips: int = _NUM_PREVIEW_CLIPS) -> None:
    """Fit the VAE's preview by least squares: from each latent frame to the last of the frames that it stands for."""
    features, targets = [], []
    for index in range(num_clips):
        video_BCTHW = from_uint8(torch.from_numpy(source.clip(index, bucket).frames_THWC)[None])
        latents_BCTHW = vae.encode(video_BCTHW)
        shown_TCHW = video_BCTHW[0, :, ::4].transpose(0, 1)
        small_TCHW = torch.nn.functional.avg_pool2d(shown_TCHW, _PREVIEW_SHRINK)
        scale = small_TCHW.shape[-1] // latents_BCTHW.shape[-1]
        cells_TPHW = torch.nn.functional.pixel_unshuffle(small_TCHW, scale)
        features.append(latents_BCTHW[0].flatten(1).T)
        targets.append(cells_TPHW.transpose(0, 1).flatten(1).T)
    known = torch.cat(features).double()
    known = torch.cat([known, torch.ones(len(known), 1, dtype=torch.float64)], dim=1)
    wanted = torch.cat(targets).double()
    # A little ridge, for channels that training has left without use.
    ridge = 1e-6 * len(known) * torch.eye(known.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(known.T @ known + ridge, known.T @ wanted).float()
    vae.preview_weight.copy_(solution[:-1].T)
    vae.preview_bias.copy_(solution[-1])
