"""The recipes: functions that return a whole run's configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from pydantic import JsonValue

from vitascope_common.errors import ConfigurationError
from vitascope_trainer.config import (
    DitStage,
    FolderData,
    Mixture,
    ModelPart,
    Recipe,
    Running,
    TemporalShares,
    TrainingBucket,
    VaeStage,
    WorldData,
)

_VAE_MIXTURE = Mixture(two=0.25, texture=0.15, camera=0.1, later=0.2, later_from=(0.0, 0.6))
_DEFAULTS: Mapping[str, JsonValue] = {
    "seconds": "4",
    "fps": 8,
    "num_inference_steps": 24,
    "guidance_scale": 2.5,
    "solver": "euler",
}
"""Of the cards of models that draw clips, but for the size and the shift that belongs to it."""


def vita_mini_2() -> Recipe:
    """Begin with nothing but drawn clips of 64x64: what vita-mini-3 goes on from."""
    return Recipe(
        name="vita-mini-2",
        data=WorldData(
            vae=_VAE_MIXTURE,
            dit=Mixture(two=0.3, texture=0.08, camera=0.07, later=0.08, later_from=(0.25, 1.0)),
        ),
        model=ModelPart(
            vae={"latent_channels": 12, "widths": [96, 64, 32]},
            text_encoder={"width": 192, "num_layers": 3, "num_heads": 6, "max_tokens": 40, "num_buckets": 8192},
            dit={"latent_channels": 12, "width": 256, "num_layers": 6, "num_heads": 8, "text_width": 192},
        ),
        vae=VaeStage(steps=3000, warmup_steps=60, decay_share=0.7),
        dit=DitStage(
            steps=2300,
            warmup_steps=80,
            decay_share=0.28,
            num_micro_batches=1,
            buckets=(
                TrainingBucket(size="64x64", num_frames=17, weight=5.0, num_clips=23_000),
                TrainingBucket(size="64x64", num_frames=25, weight=3.0, num_clips=12_000),
                TrainingBucket(size="64x64", num_frames=33, weight=1.5, num_clips=3_500),
                TrainingBucket(size="64x64", num_frames=9, weight=1.0, num_clips=3_000),
                TrainingBucket(size="96x64", num_frames=17, weight=1.0, num_clips=3_000),
                TrainingBucket(size="64x96", num_frames=17, weight=1.0, num_clips=3_000),
            ),
        ),
        card={
            "id": "vita-mini-2",
            "kind": "generate",
            "engine": "native",
            "pool": "default",
            "group_size": 1,
            "title": "Vita mini 2",
            "description": (
                "A small video model that a laptop runs: one or two flat shapes in ten colours, with fifteen motions, "
                "textures, relations and a camera, on plain, graded and patterned backgrounds."
            ),
            "licence": "Apache-2.0",
            "capabilities": [
                "text_to_video",
                "image_to_video",
                "keyframes",
                "extension",
                "video_to_video",
                "negative_prompt",
                "previews",
            ],
            "sizes": ["64x64", "96x64", "64x96"],
            "seconds": ["1", "2", "3", "4"],
            "num_frames": {"1": 9, "2": 17, "3": 25, "4": 33},
            "defaults": {**_DEFAULTS, "size": "64x64", "shift": 2.0},
            "limits": {"num_inference_steps": [1, 200], "guidance_scale": [1, 20], "prompt_max_chars": 2000},
            "solvers": ["euler", "heun", "rk4", "ddim"],
            "cost": {"fixed_s": 0.3, "per_step_frame_s": 0.0025},
            "price": {"usd_micros_per_second": 1000},
            "attention": {"temporal": "full", "allowed": ["full", "window"]},
            "parallelism": {"tensor_parallel": [1, 2]},
        },
    )


def vita_mini_3() -> Recipe:
    """Go on from a vita-mini-2 (init_from), decoder first, on larger pictures: what vita-mini-4 goes on from."""
    first = vita_mini_2()
    return first.model_copy(
        update={
            "name": "vita-mini-3",
            "card": {
                **first.card,
                "id": "vita-mini-3",
                "title": "Vita mini 3",
                "sizes": ["96x96", "64x64", "128x128", "96x64", "64x96"],
                "seconds": ["1", "2", "3", "4", "6"],
                "num_frames": {"1": 9, "2": 17, "3": 25, "4": 33, "6": 49},
                "defaults": {**_DEFAULTS, "size": "96x96", "shift": 3.0},
                "cost": {"fixed_s": 0.4, "per_step_frame_s": 0.005},
                "attention": {"temporal": "full", "allowed": ["full"]},
            },
            "data": WorldData(
                vae=_VAE_MIXTURE,
                dit=Mixture(two=0.42, texture=0.1, camera=0.1, later=0.08, later_from=(0.25, 1.0)),
            ),
            "vae": VaeStage(
                steps=4600,
                train_encoder=False,
                sides_px=(64, 96, 128, 128),
                crop_px=48,
                num_crops=12,
                num_micro_batches=1,
                learning_rate=1.2e-3,
                object_weight=0.3,
                warmup_steps=40,
                decay_share=0.8,
            ),
            "dit": DitStage(
                steps=1950,
                warmup_steps=60,
                decay_share=0.6,
                learning_rate=8e-4,
                muon_learning_rate=1.6e-3,
                temporal=TemporalShares(full=0.45, causal=0.35, window=0.2),
                buckets=(
                    TrainingBucket(size="96x96", num_frames=17, weight=5.0, num_clips=13_000),
                    TrainingBucket(size="96x96", num_frames=25, weight=3.0, num_clips=6_000),
                    TrainingBucket(size="96x96", num_frames=33, weight=1.0, num_clips=1_500),
                    TrainingBucket(size="128x128", num_frames=17, weight=0.8, num_clips=2_500),
                    TrainingBucket(size="128x128", num_frames=25, weight=0.6, num_clips=1_500),
                    TrainingBucket(size="64x64", num_frames=17, weight=1.0, num_clips=3_500),
                    TrainingBucket(size="64x64", num_frames=33, weight=0.4, num_clips=1_000),
                    TrainingBucket(size="64x64", num_frames=49, weight=0.3, num_clips=700),
                    TrainingBucket(size="96x96", num_frames=9, weight=0.4, num_clips=1_200),
                    TrainingBucket(size="96x64", num_frames=17, weight=0.4, num_clips=1_200),
                    TrainingBucket(size="64x96", num_frames=17, weight=0.4, num_clips=1_200),
                ),
            ),
        }
    )


def vita_mini_4() -> Recipe:
    """Go on from a vita-mini-3 (init_from) on 128x128 and more patterns: what vita-mini-5 goes on from."""
    before = vita_mini_3()
    return before.model_copy(
        update={
            "name": "vita-mini-4",
            "card": {
                **before.card,
                "id": "vita-mini-4",
                "title": "Vita mini 4",
                "sizes": ["128x128", "96x96", "64x64", "128x96", "96x128", "96x64", "64x96"],
                "defaults": {**_DEFAULTS, "size": "128x128", "shift": 4.0},
            },
            "data": WorldData(
                vae=_VAE_MIXTURE.model_copy(update={"pattern": 0.45}),
                dit=Mixture(two=0.45, texture=0.1, camera=0.12, pattern=0.4, later=0.08, later_from=(0.25, 1.0)),
            ),
            "vae": before.vae.model_copy(
                update={"steps": 2400, "sides_px": (64, 96, 128, 128, 128), "learning_rate": 1e-3, "decay_share": 0.9}
            ),
            "dit": before.dit.model_copy(
                update={
                    "steps": 1600,
                    "learning_rate": 7e-4,
                    "muon_learning_rate": 1.4e-3,
                    "decay_share": 0.8,
                    "ema": 0.998,
                    "buckets": (
                        TrainingBucket(size="128x128", num_frames=17, weight=5.0, num_clips=8_500),
                        TrainingBucket(size="128x128", num_frames=25, weight=2.5, num_clips=3_500),
                        TrainingBucket(size="128x128", num_frames=33, weight=1.5, num_clips=1_600),
                        TrainingBucket(size="96x96", num_frames=17, weight=1.5, num_clips=3_500),
                        TrainingBucket(size="96x96", num_frames=33, weight=0.4, num_clips=800),
                        TrainingBucket(size="64x64", num_frames=17, weight=0.5, num_clips=1_500),
                        TrainingBucket(size="64x64", num_frames=49, weight=0.2, num_clips=500),
                        TrainingBucket(size="128x96", num_frames=17, weight=0.4, num_clips=1_000),
                        TrainingBucket(size="96x128", num_frames=17, weight=0.4, num_clips=1_000),
                    ),
                }
            ),
        }
    )


def vita_mini_5() -> Recipe:
    """Go on from a vita-mini-4 (init_from) on small things and sharp outlines: what vita-mini-6 goes on from."""
    before = vita_mini_4()
    return before.model_copy(
        update={
            "name": "vita-mini-5",
            "seed": 5,
            "card": {**before.card, "id": "vita-mini-5", "title": "Vita mini 5"},
            "data": WorldData(
                vae=_VAE_MIXTURE.model_copy(update={"pattern": 0.5, "small_on_pattern": 0.35}),
                dit=Mixture(
                    two=0.45,
                    texture=0.1,
                    camera=0.12,
                    pattern=0.4,
                    small_on_pattern=0.2,
                    later=0.08,
                    later_from=(0.25, 1.0),
                ),
            ),
            "vae": before.vae.model_copy(update={"steps": 2400, "learning_rate": 8e-4}),
            "dit": before.dit.model_copy(
                update={
                    "steps": 1700,
                    "warmup_steps": 40,
                    "learning_rate": 5e-4,
                    "muon_learning_rate": 1e-3,
                    "decay_share": 0.9,
                    "time_bias": -0.2,
                    "time_spread": 1.3,
                    "object_weight": 4.0,
                    "buckets": (
                        TrainingBucket(size="128x128", num_frames=17, weight=4.5, num_clips=8_000),
                        TrainingBucket(size="128x128", num_frames=25, weight=2.0, num_clips=2_800),
                        TrainingBucket(size="128x128", num_frames=33, weight=3.0, num_clips=3_000),
                        TrainingBucket(size="96x96", num_frames=17, weight=1.3, num_clips=3_000),
                        TrainingBucket(size="96x96", num_frames=33, weight=0.4, num_clips=800),
                        TrainingBucket(size="64x64", num_frames=17, weight=0.5, num_clips=1_300),
                        TrainingBucket(size="64x64", num_frames=49, weight=0.2, num_clips=500),
                        TrainingBucket(size="128x96", num_frames=17, weight=0.4, num_clips=1_000),
                        TrainingBucket(size="96x128", num_frames=17, weight=0.4, num_clips=1_000),
                    ),
                }
            ),
        }
    )


def vita_mini_6() -> Recipe:
    """Go on from a vita-mini-5 (init_from), which knew a bounce twice as high: the model that Vitascope ships."""
    before = vita_mini_5()
    data = before.data
    assert isinstance(data, WorldData)
    return before.model_copy(
        update={
            "name": "vita-mini-6",
            "seed": 6,
            "card": {**before.card, "id": "vita-mini-6", "title": "Vita mini 6"},
            "data": data.model_copy(update={"dit": data.dit.model_copy(update={"small_on_pattern": 0.25})}),
            "vae": before.vae.model_copy(update={"steps": 2000, "learning_rate": 6e-4}),
            "dit": before.dit.model_copy(
                update={"steps": 1500, "learning_rate": 4e-4, "muon_learning_rate": 8e-4, "decay_share": 0.95}
            ),
        }
    )


def tiny() -> Recipe:
    """Take seconds: for tests, and for trying out a change or a folder of videos."""
    return Recipe(
        name="tiny",
        precision="fp32",
        data=WorldData(vae=Mixture(later=0.2), dit=Mixture(later=0.2)),
        model=ModelPart(
            vae={"latent_channels": 4, "widths": [16, 12, 8]},
            text_encoder={"width": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 40, "num_buckets": 64},
            dit={"latent_channels": 4, "width": 32, "num_layers": 2, "num_heads": 4, "text_width": 16},
        ),
        vae=VaeStage(
            steps=24,
            warmup_steps=5,
            lengths=(9,),
            sides_px=(32,),
            num_frames=9,
            side_px=32,
            crop_px=16,
            num_whole=2,
            num_crops=4,
            window_clips=24,
            fresh_clips=1,
            num_measured=2,
        ),
        dit=DitStage(
            steps=40,
            text_steps=10,
            warmup_steps=5,
            text_clips=8,
            tokens_per_batch=48,
            window_clips=8,
            fresh_clips=1,
            num_held_out=4,
            learning_rate=3e-3,
            muon_learning_rate=5e-3,
            buckets=(
                TrainingBucket(size="32x32", num_frames=9, weight=2.0, num_clips=24),
                TrainingBucket(size="48x32", num_frames=5, num_clips=12),
            ),
        ),
        shard_clips=8,
        run=Running(log_steps=5, validate_steps=10, sheet_steps=0, sheet_clips=2),
        card={
            **vita_mini_2().card,
            "id": "tiny",
            "title": "Tiny",
            "description": "Too small to draw anything; proves that the way from training to a clip works.",
            "sizes": ["32x32"],
            "seconds": ["1"],
            "num_frames": {"1": 9},
            "defaults": {
                "size": "32x32",
                "seconds": "1",
                "fps": 8,
                "num_inference_steps": 2,
                "guidance_scale": 2.5,
                "shift": 1.0,
                "solver": "euler",
            },
        },
    )


def own_card(recipe: Recipe, before: Mapping[str, JsonValue]) -> Recipe:
    """Give a recipe whose data are a folder of videos a card that says so, where it still says what it said `before`.

    An id stands for one model, and the recipes' own ids for those trained on drawn clips.
    """
    if not isinstance(recipe.data, FolderData):
        return recipe
    name = recipe.data.folder.resolve().name
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "videos"
    own = {
        "id": f"{before['id']}-{slug}",
        "title": f"{before['title']} on {name}",
        "description": f"Trained on the videos of {name}.",
    }
    changed = {field: value for field, value in own.items() if recipe.card.get(field) == before[field]}
    return recipe.model_copy(update={"card": {**recipe.card, **changed}})


RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "vita-mini-2": vita_mini_2,
    "vita-mini-3": vita_mini_3,
    "vita-mini-4": vita_mini_4,
    "vita-mini-5": vita_mini_5,
    "vita-mini-6": vita_mini_6,
    "tiny": tiny,
}


def recipe_named(name: str) -> Recipe:
    """Give a recipe. Raises: ConfigurationError: names those there are."""
    if name not in RECIPES:
        raise ConfigurationError(f"There is no recipe {name!r}; there are: {', '.join(RECIPES)}.", param="recipe")
    return RECIPES[name]()
