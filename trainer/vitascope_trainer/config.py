"""A recipe: everything that decides what a training run makes, as one frozen value, checked when it is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from vitascope_common.errors import ConfigurationError
from vitascope_trainer.sources import Bucket
from vitascope_trainer.world.scenes import Mix

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Mixture(_Part):
    """How often the world shows what goes beyond one plain object that begins its motion with the clip."""

    two: Share = 0.3
    texture: Share = 0.08
    camera: Share = 0.07
    pattern: Share = 0.28
    """Of stripes, checkerboards and dots among the backgrounds."""
    small_on_pattern: Share = 0.0
    """Of clips of one small object that moves over a pattern: the hardest to draw with a sharp outline."""
    later: Share = 0.0
    """Share of the clips that begin part-way through their motion."""
    later_from: tuple[float, float] = (0.25, 1.0)
    """Where they begin, as shares of the motion."""

    @model_validator(mode="after")
    def _is_a_share(self) -> Self:
        if self.two + self.small_on_pattern > 1:
            raise ValueError("two and small_on_pattern add up to more than 1")
        return self

    @property
    def mix(self) -> Mix:
        """Give the part of it that decides scenes."""
        return Mix(self.two, self.texture, self.camera, self.pattern, self.small_on_pattern)


class WorldData(_Part):
    """Clips drawn by the procedural world, without end."""

    kind: Literal["world"] = "world"
    vae: Mixture = Mixture()
    dit: Mixture = Mixture()


class FolderData(_Part):
    """A folder of video files with captions beside them."""

    kind: Literal["folder"] = "folder"
    folder: Path
    fps: Annotated[int, Field(ge=1, le=120)] = 8
    """Frames per second that the clips are brought to."""
    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the videos that is never trained on and only measured."""


class ModelPart(_Part):
    """The constructor arguments of each module, as a model card holds them."""

    vae: dict[str, JsonValue]
    text_encoder: dict[str, JsonValue]
    dit: dict[str, JsonValue]


class Schedule(_Part):
    """The learning rate by step: linear warm-up, constant, linear decay to a hundredth over the last part."""

    steps: Annotated[int, Field(ge=0)]
    warmup_steps: Annotated[int, Field(ge=0)] = 60
    decay_share: Share = 0.5
    """Share of the steps, the last ones, over which the rate decays."""

    def scale(self, step: int, first: int = 0) -> float:
        """Give what multiplies the learning rates at `step`; the warm-up begins anew at `first`."""
        warm = min(1.0, (step + 1 - first) / self.warmup_steps) if self.warmup_steps else 1.0
        decay_steps = self.decay_share * self.steps
        left = (self.steps - step) / decay_steps if decay_steps else 1.0
        return warm * max(0.01, min(1.0, left))


class VaeStage(Schedule):
    """How the VAE is trained: on excerpts of clips, whole ones in one of four steps and small crops in the others."""

    lengths: Annotated[tuple[int, ...], Field(min_length=1)] = (17, 17, 25, 33, 49)
    """Frames of the clips that are drawn, one of them at random."""
    sides_px: Annotated[tuple[int, ...], Field(min_length=1)] = (64, 64, 96, 128)
    """Height and width of the clips that are drawn."""
    num_frames: Count = 17
    """Frames of an excerpt."""
    side_px: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """Height and width of an excerpt."""
    crop_px: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    num_whole: Count = 8
    """Excerpts in a micro-batch of whole ones."""
    num_crops: Count = 24
    """Excerpts in a micro-batch of crops."""
    num_micro_batches: Count = 2
    """Micro-batches in a step, shared out over the processes."""
    window_clips: Count = 700
    """How many of the newest excerpts a micro-batch draws from."""
    fresh_clips: Count = 4
    """How many new ones come with every step."""
    num_measured: Count = 160
    """Excerpts over which the latents' mean and spread are taken at the end."""
    learning_rate: Rate = 2e-3
    beta2: Share = 0.98
    ema: Share = 0.997
    kl_weight: Annotated[float, Field(ge=0)] = 1e-3
    object_weight: Annotated[float, Field(ge=0)] = 1.0
    """How much more the pixels of objects and of their edges weigh: 3 and 6 times this, besides 1 for every pixel."""
    train_encoder: bool = True
    """False trains the decoder alone, on the encoder of `init_from`: what learnt its latents stays valid."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.num_frames % 4 != 1 or min(self.lengths) < self.num_frames:
            raise ValueError("num_frames must be 4k + 1 and no more than any of lengths")
        if self.side_px > min(self.sides_px) or self.crop_px > self.side_px:
            raise ValueError("crop_px must not exceed side_px, nor side_px any of sides_px")
        if max(self.num_whole, self.num_crops) > self.window_clips:
            raise ValueError("window_clips must be at least num_whole and num_crops")
        return self


class TrainingBucket(_Part):
    """One size and length of clips, and how much of it is trained."""

    size: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}x[1-9][0-9]{0,3}$")]
    """Width x height in pixels, multiples of 16."""
    num_frames: Annotated[int, Field(ge=5)]
    weight: Rate = 1.0
    """How often a step takes this bucket, relative to the others."""
    num_clips: Count = 4000
    """Clips that the latents cache holds."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        width, height = (int(side) for side in self.size.split("x"))
        if width % 16 or height % 16 or self.num_frames % 4 != 1:
            raise ValueError("sides must be multiples of 16 and num_frames 4k + 1")
        return self

    @property
    def bucket(self) -> Bucket:
        """Give it as the sources want it."""
        width, height = (int(side) for side in self.size.split("x"))
        return Bucket(self.num_frames, height, width)


class ConditionShares(_Part):
    """Shares of the clips of which something is given besides the text; what is left gets nothing."""

    first_frame: Share = 0.12
    keyframes: Share = 0.08
    """The first frame and, as a hint, the last."""
    last_frame: Share = 0.02
    prefix: Share = 0.08
    """A beginning of random length; clips that begin part-way through a motion always get one."""

    @model_validator(mode="after")
    def _is_a_share(self) -> Self:
        if self.first_frame + self.keyframes + self.last_frame + self.prefix > 1:
            raise ValueError("the shares add up to more than 1")
        return self


class TemporalShares(_Part):
    """How often each kind of temporal attention is trained, relative to the others."""

    full: Annotated[float, Field(ge=0)] = 0.6
    causal: Annotated[float, Field(ge=0)] = 0.2
    window: Annotated[float, Field(ge=0)] = 0.2

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if self.full + self.causal + self.window <= 0:
            raise ValueError("at least one must be above 0")
        return self


class DitStage(Schedule):
    """How text encoder and transformer are trained, together, by rectified flow on latents."""

    buckets: Annotated[tuple[TrainingBucket, ...], Field(min_length=1)]
    latents: Literal["cached", "fresh"] = "cached"
    """From the cache that the stage `latents` makes, or encoded while training (a GPU has time for that)."""
    window_clips: Count = 900
    """Fresh latents: how many of the newest clips a micro-batch draws from."""
    fresh_clips: Count = 8
    """Fresh latents: how many new clips come with every step."""
    text_steps: Annotated[int, Field(ge=0)] = 150
    """First steps, on captions alone, where the data have attributes to read off; left out after `init_from`."""
    text_clips: Count = 96
    num_micro_batches: Count = 2
    """Micro-batches in a step, shared out over the processes."""
    tokens_per_batch: Count = 5120
    """Clips in a micro-batch, counted in tokens of the transformer; never fewer than four clips."""
    learning_rate: Rate = 1e-3
    muon_learning_rate: Annotated[float, Field(ge=0)] = 2e-3
    """Of the hidden matrices; 0 leaves them to AdamW."""
    beta2: Share = 0.98
    ema: Share = 0.999
    caption_dropout: Share = 0.1
    time_bias: float = 0.4
    """Flow times are logit-normal around the sigmoid of this: what is where is decided near the noise."""
    time_spread: Rate = 1.0
    """Their standard deviation before the sigmoid: wider also trains far from the noise, where outlines get sharp."""
    base_tokens: Count = 16
    """Tokens of a latent frame at which flow times are not shifted; larger ones train nearer the noise."""
    object_weight: Annotated[float, Field(ge=0)] = 2.5
    """Extra weight of the loss where an object is."""
    attribute_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the heads that read attributes off the text."""
    conditions: ConditionShares = ConditionShares()
    temporal: TemporalShares = TemporalShares()
    num_held_out: Annotated[int, Field(ge=0)] = 24
    """Clips never trained on over which the held-out loss is taken."""

    @property
    def first_bucket(self) -> Bucket:
        """Give the bucket of the clips that are measured, described on sheets, and fitted to."""
        return self.buckets[0].bucket


class Running(_Part):
    """What changes how a run goes and not what it makes; free to differ when it is resumed."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: Count = 1
    """CPU threads of a process; several processes of one thread beat one process of several."""
    compile_blocks: bool = False
    """Compile the transformer's blocks: minutes at the start and for each new shape, then faster steps with the same
    mathematics and other rounding. Needs a C++ compiler."""
    log_steps: Count = 20
    validate_steps: Annotated[int, Field(ge=0)] = 200
    """Steps between measurements of the held-out loss; 0: never."""
    sheet_steps: Annotated[int, Field(ge=0)] = 2000
    """Steps between contact sheets; 0: never."""
    sheet_clips: Count = 8
    checkpoint_steps: Count = 500
    checkpoint_s: Rate = 120.0
    """A checkpoint is written after so many steps or seconds, whichever comes first."""


class Recipe(_Part):
    """A whole run."""

    name: str
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of weights and activations; the masters, the loss and the averages are fp32 in either case."""
    init_from: Path | None = None
    """A model folder whose weights to start from, instead of from nothing."""
    data: Annotated[WorldData | FolderData, Field(discriminator="kind")] = WorldData()
    model: ModelPart
    vae: VaeStage
    dit: DitStage
    shard_clips: Count = 64
    """Clips in a file of the latents cache: what an interrupted encoding repeats at most."""
    run: Running = Running()
    card: dict[str, JsonValue]
    """The exported card, but for what export says itself: architecture, files, date and provenance."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        channels = {self.model.vae.get("latent_channels"), self.model.dit.get("latent_channels")}
        if len(channels) != 1 or None in channels:
            raise ValueError("model.vae.latent_channels and model.dit.latent_channels must both be said and be equal")
        if self.model.text_encoder.get("width") != self.model.dit.get("text_width"):
            raise ValueError("model.text_encoder.width and model.dit.text_width must be equal")
        sizes = [bucket.bucket for bucket in self.dit.buckets]
        if len(set(sizes)) != len(sizes):
            raise ValueError("dit.buckets names a size and length twice")
        return self

    def check_vae(self) -> None:
        """Make sure that the stage vae has something to begin with. Raises: ConfigurationError."""
        if self.init_from is None and self.vae.steps == 0:
            raise ConfigurationError("vae.steps: 0 leaves the VAE as in init_from, which is not said.")
        if self.init_from is None and not self.vae.train_encoder:
            raise ConfigurationError("vae.train_encoder: false keeps the encoder of init_from, which is not said.")


def overridden(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """Apply assignments such as `dit.steps=500` or `dit.buckets.0.size=64x64`; values are read as YAML.

    `data.kind=folder` begins a new `data`, whose other fields follow.

    Raises:
        ConfigurationError: names the field and what is wrong with it.
    """
    values = recipe.model_dump(mode="json")
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        if not sign:
            raise ConfigurationError(f"{assignment!r} is no assignment: write name=value.", param=name)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{name}: {text!r} cannot be read as a value.", param=name) from error
        if name == "data.kind" and value != values["data"].get("kind"):
            values["data"] = {"kind": value}
        else:
            _assign(values, name, value)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(_problems(error)) from error


def _assign(values: dict[str, Any], name: str, value: Any) -> None:
    target: Any = values
    *folders, last = name.split(".")
    for part in folders:
        if isinstance(target, list) and part.isdigit() and int(part) < len(target):
            target = target[int(part)]
        elif isinstance(target, dict) and part in target:
            target = target[part]
        else:
            raise ConfigurationError(f"{name}: there is no field {part}.", param=name)
    if isinstance(target, list) and last.isdigit() and int(last) < len(target):
        target[int(last)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise ConfigurationError(f"{name}: there is no field {last}.", param=name)


def _problems(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        # A discriminated union puts the chosen kind into the location; nobody writes it.
        location = [str(part) for part in problem["loc"]]
        if len(location) > 1 and location[0] == "data":
            location.pop(1)
        message = "there is no such field" if problem["type"] == "extra_forbidden" else problem["msg"]
        lines.append(f"{'.'.join(location) or 'recipe'}: {message.removeprefix('Value error, ')}")
    return "; ".join(lines) + "."


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List what differs between two configurations, as `name: one -> other`."""
    before, after = _flat(one), _flat(other)
    missing = "(not there)"
    return [
        f"{name}: {before.get(name, missing)} -> {after.get(name, missing)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name, missing) != after.get(name, missing)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return {prefix: value}
    return {name: leaf for key, inner in items for name, leaf in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}
