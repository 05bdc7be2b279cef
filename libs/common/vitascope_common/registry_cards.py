"""Model cards: what a model is, which files it consists of, what it can do and what a request may choose.

`kind` says what a model is for, and with it which of the classes below its card is:

    kind            class             what it is
    generate        ModelCard         makes clips; jobs of the kind "generate" (common/jobs.py) run on it
    classifier      ClassifierCard    says what a clip shows; no job names it

Closed sets (kinds, capabilities, attention modes, parallelism) only grow: a card with a word that is not known here
asks for something that this installation cannot do, so it is refused when it is read and not when a job runs.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from vitascope_common.errors import ConfigurationError

CARD_FILE = "card.yaml"
MAX_CARD_BYTES = 256 << 10
MAX_CARD_DEPTH = 32
MAX_CARD_EVENTS = 20_000
"""Of the YAML parser: one per value and key, two per list and mapping. So many take it about a second."""

Size = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")]
"""Width x height in pixels."""
Seconds = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}$")]
"""A string, because the public API says it as one."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Positive = Annotated[int, Field(gt=0)]
FlowTime = Annotated[float, Field(ge=0, le=1)]
"""1 is noise, 0 is the clip."""
TemporalAttention = Literal["full", "causal", "window"]


class Capability(StrEnum):
    """What a generating model can do; requests that need another one are refused."""

    TEXT_TO_VIDEO = "text_to_video"
    IMAGE_TO_VIDEO = "image_to_video"  # a first frame is given
    KEYFRAMES = "keyframes"  # first and last frame are given
    EXTENSION = "extension"  # a clip to continue is given
    VIDEO_TO_VIDEO = "video_to_video"  # a clip to change is given
    NEGATIVE_PROMPT = "negative_prompt"
    PREVIEWS = "previews"  # pictures of the clip while it is being made


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Architecture(_Part):
    """What libs/models (or diffusers) builds each module from."""

    vae: Mapping[str, JsonValue]
    text_encoder: Mapping[str, JsonValue]
    dit: Mapping[str, JsonValue]

    @field_validator("text_encoder")
    @classmethod
    def _type_is_a_word(cls, value: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        if not isinstance(value.get("type", ""), str):
            raise ValueError("type must be a word")
        return value

    @property
    def text_encoder_type(self) -> str:
        """Which text encoder the model wants: `text_encoder.type`; cards that do not say want our own, `ngram`."""
        return str(self.text_encoder.get("type", "ngram"))


class ModelFile(_Part):
    """One file, relative to the card."""

    path: str
    sha256: Sha256
    num_bytes: int = Field(ge=0)

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in value or "\0" in value:
            raise ValueError("must be a path inside the model's folder")
        if path.parts[0] == CARD_FILE:
            raise ValueError("must not be the card's own")
        return value


class Defaults(_Part):
    """What a request gets that does not say."""

    size: Size
    seconds: Seconds
    fps: int = Field(gt=0)
    num_inference_steps: int = Field(gt=0)
    guidance_scale: float = Field(ge=0)
    guidance_start: FlowTime = 1.0
    """Guidance acts from this flow time down to `guidance_end` (Kynkäänniemi et al. 2024)."""
    guidance_end: FlowTime = 0.0
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    """How much of the guided prediction's excess contrast is taken back (Lin et al. 2023)."""
    shift: float = Field(gt=0)
    """Of the default size; other sizes have their own, see `ModelCard.shift_for`."""
    solver: Name

    @model_validator(mode="after")
    def _interval_is_ordered(self) -> Self:
        if self.guidance_end > self.guidance_start:
            raise ValueError("guidance_end exceeds guidance_start: flow time runs down, from 1 to 0")
        return self


class Limits(_Part):
    """What a request may ask for: [lowest, highest]."""

    num_inference_steps: tuple[Positive, int]
    guidance_scale: tuple[Annotated[float, Field(ge=0)], float]
    prompt_max_chars: int = Field(gt=0)

    @model_validator(mode="after")
    def _are_ordered(self) -> Self:
        for name, (low, high) in (
            ("num_inference_steps", self.num_inference_steps),
            ("guidance_scale", self.guidance_scale),
        ):
            if low > high:
                raise ValueError(f"{name}: the lowest exceeds the highest")
        return self


class Cost(_Part):
    """Coefficients of the estimate, measured on the reference device."""

    fixed_s: float = Field(ge=0)
    per_step_frame_s: float = Field(gt=0)


class Price(_Part):
    """What a second of finished video costs, in millionths of a US dollar."""

    usd_micros_per_second: int = Field(ge=0)


class Attention(_Part):
    """How frames see each other."""

    temporal: TemporalAttention = "full"
    """Unless something else is chosen."""
    allowed: tuple[TemporalAttention, ...] = ()
    """What may be chosen; empty: only `temporal`."""
    window: Positive | None = None
    """How far a frame sees to either side in `window`, itself counted, in latent frames; None: the engine's own."""
    num_anchors: Annotated[int, Field(ge=0)] | None = None
    """First latent frames that every frame sees in `window`; None: the engine's own."""

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        if self.allowed and self.temporal not in self.allowed:
            raise ValueError(f"temporal {self.temporal} is not one of allowed")
        return self

    def allows(self, mode: str) -> bool:
        """Tell whether the model was found good enough with this temporal attention."""
        return mode in (self.allowed or (self.temporal,))


class Preprocessing(_Part):
    """What a clip becomes before a classifier sees it, in this order."""

    num_frames: int = Field(gt=0)
    """That many frames, evenly spaced."""
    size: Size
    """Resized to this."""
    mean: tuple[float, float, float]
    """Of red, green and blue, scaled to 0..1; subtracted."""
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    """Divided by."""


class Card(_Part):
    """What every model says of itself."""

    id: Name
    engine: Name
    """Which code runs it."""
    title: str
    description: str
    licence: str
    created: int
    """Unix seconds; a card may also say a date."""
    files: Mapping[Name, ModelFile] = Field(min_length=1)
    provenance: Mapping[str, JsonValue] = Field(default_factory=dict)
    evaluation: Mapping[str, JsonValue] = Field(default_factory=dict)

    @field_validator("created", mode="before")
    @classmethod
    def _from_date(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())
        if isinstance(value, date):
            return int(datetime.combine(value, time(), UTC).timestamp())
        return value

    @field_validator("provenance", "evaluation", mode="before")
    @classmethod
    def _dates_as_text(cls, value: Any) -> Any:
        return _plain(value)

    @model_validator(mode="after")
    def _names_each_file_once(self) -> Self:
        paths = {PurePosixPath(file.path) for file in self.files.values()}
        if len(paths) != len(self.files):
            raise ValueError("two files have the same path")
        for path in sorted(paths):
            if not paths.isdisjoint(path.parents):
                raise ValueError(f"file {path} lies below another file")
        return self

    @property
    def sha256(self) -> str:
        """The model's identity: the content of every file, and what the card says of how they are run.

        That is `engine`, `architecture` and `attention`, whose defaults count as unsaid. Paths and words do not count.
        """
        lines = sorted(f"{name}={file.sha256}\n" for name, file in self.files.items())
        run_as = self.model_dump(mode="json", include={"engine", "architecture", "attention"}, exclude_defaults=True)
        lines.append(json.dumps(run_as, sort_keys=True, separators=(",", ":")))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        """What its files take on disk."""
        return sum(file.num_bytes for file in self.files.values())


class ModelCard(Card):
    """A model that makes clips, as all services see it."""

    kind: Literal["generate"]
    """The kind of job that runs on it."""
    architecture: Architecture
    capabilities: tuple[Capability, ...] = Field(
        default=(Capability.TEXT_TO_VIDEO, Capability.NEGATIVE_PROMPT), min_length=1
    )
    sizes: tuple[Size, ...] = Field(min_length=1)
    seconds: tuple[Seconds, ...] = Field(min_length=1)
    defaults: Defaults
    limits: Limits
    num_frames: Mapping[Seconds, Positive]
    """Frames that the model makes for each length it offers."""
    pool: Name
    group_size: int = Field(ge=1)
    """Devices that work on one task together."""
    cost: Cost
    price: Price
    solvers: tuple[Name, ...] = Field(default=("euler", "heun", "rk4"), min_length=1)
    """Which of the engine's solvers may be asked for."""
    attention: Attention = Attention()
    parallelism: Mapping[Literal["tensor_parallel"], Annotated[list[Positive], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """How many ranks may share the model, for each way of dividing it; what is not named runs on one."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        problems = []
        for what, values in (
            ("capabilities", self.capabilities),
            ("sizes", self.sizes),
            ("seconds", self.seconds),
            ("solvers", self.solvers),
        ):
            if len(set(values)) != len(values):
                problems.append(f"{what} repeats a value")
        for name, chosen, what, values in (
            ("size", self.defaults.size, "sizes", self.sizes),
            ("seconds", self.defaults.seconds, "seconds", self.seconds),
            ("solver", self.defaults.solver, "solvers", self.solvers),
        ):
            if chosen not in values:
                problems.append(f"defaults.{name} {chosen} is not one of {what}")
        if set(self.num_frames) != set(self.seconds):
            problems.append("num_frames must name exactly the values of seconds")
        for name, number, (low, high) in (
            ("num_inference_steps", self.defaults.num_inference_steps, self.limits.num_inference_steps),
            ("guidance_scale", self.defaults.guidance_scale, self.limits.guidance_scale),
        ):
            if not low <= number <= high:
                problems.append(f"defaults.{name} {number} is outside limits.{name} [{low}, {high}]")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def estimate_s(self, num_steps: int, num_frames: int, size: str | None = None) -> float:
        """Return how many seconds a group is expected to take for steps and frames; None means the default size."""
        return self.cost.fixed_s + self.cost.per_step_frame_s * num_steps * num_frames * self._relative_area(size)

    def price_usd_micros(self, seconds: str) -> int:
        """Return the list price of a video of so many seconds, in millionths of a US dollar."""
        return round(self.price.usd_micros_per_second * float(seconds))

    def shift_for(self, size: str) -> float:
        """Return the schedule's shift for a size: sqrt(n / n0) times the default one's (Esser et al. 2024).

        More pixels show more of what lies under the noise, so more of the steps belong where there is much of it.
        """
        return self.defaults.shift * math.sqrt(self._relative_area(size))

    def _relative_area(self, size: str | None) -> float:
        return _area(size) / _area(self.defaults.size) if size else 1.0


class ClassifierCard(Card):
    """A model that says what a clip shows."""

    kind: Literal["classifier"]
    architecture: Mapping[Name, Mapping[str, JsonValue]]
    """What each of its modules is built from."""
    preprocessing: Preprocessing
    classes: Mapping[Name, Annotated[tuple[str, ...], Field(min_length=2)]] = Field(min_length=1)
    """The answers to each question, in the order of its outputs: `shape: [circle, square, …]`."""


AnyCard = ModelCard | ClassifierCard
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Every wheel of PyYAML has the one in C, which takes a tenth of the time."""
CLASSES: Mapping[str, type[ModelCard] | type[ClassifierCard]] = {"generate": ModelCard, "classifier": ClassifierCard}
"""The class of card for each kind."""


def load_card(path: Path) -> AnyCard:
    """Read one card.

    Raises:
        ConfigurationError: names the file and each thing wrong with it.
    """
    try:
        text = read_card(path)
    except OSError as error:
        raise ConfigurationError(f"Model card {path}: {error.strerror}.") from error
    return parse_card(text, str(path))


def read_card(path: Path) -> bytes:
    """Return a card's text, and of one that is too long only so much that `parse_card` refuses it. Raises: OSError."""
    with path.open("rb") as file:
        return file.read(MAX_CARD_BYTES + 1)


def parse_card(text: bytes, where: str) -> AnyCard:
    """Return the card that a YAML text says. Raises: ConfigurationError: names `where` and each thing wrong with it."""
    if len(text) > MAX_CARD_BYTES:
        raise ConfigurationError(f"Model card {where}: has more than the {MAX_CARD_BYTES} bytes that are allowed.")
    try:
        decoded = text.decode()
        _check_is_plain(decoded)
        values = yaml.load(decoded, LOADER)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigurationError(f"Model card {where}: not valid YAML{line}: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"Model card {where}: not valid YAML.") from error
    except ValueError as error:  # not UTF-8, a date that is none, not plain
        raise ConfigurationError(f"Model card {where}: cannot be used: {error}.") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"Model card {where}: names no fields.")
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ConfigurationError(f"Model card {where}: kind: must be one of {', '.join(CLASSES)}.")
    try:
        return CLASSES[kind].model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'card'}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors()
        )
        raise ConfigurationError(f"Model card {where}: {problems}") from error


def _check_is_plain(text: str) -> None:
    """Refuse what no card needs and what could make reading one endless. Raises: ValueError; yaml.YAMLError."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, LOADER)):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("a card has no aliases")
        if getattr(event, "tag", None) is not None:
            raise ValueError("a card has no tags")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_CARD_DEPTH:
            raise ValueError(f"more than {MAX_CARD_DEPTH} levels")
        if number == MAX_CARD_EVENTS:
            raise ValueError("too many values")


def _area(size: str) -> int:
    width_px, height_px = size.split("x")
    return int(width_px) * int(height_px)


def _plain(value: Any) -> Any:
    """Return JSON: YAML reads dates as dates."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.isoformat() if isinstance(value, date) else value
