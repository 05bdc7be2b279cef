"""Model cards, and the verified weights they name.

A model is a folder `MODELS_DIR/ID/` with `card.yaml` and the files that the card lists by size and SHA-256. The card
says everything that other services need to know about a model; only gpu-worker and prompt ever open its files.
"""

import hashlib
import threading
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from vitascope_common.errors import ConfigurationError, CorruptObjectError, NotFoundError
from vitascope_common.files import atomic_writer

Size = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")]
"""Width x height in pixels."""
Seconds = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}$")]
"""A string, because the public API says it as one."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Architecture(_Part):
    """What libs/models (or diffusers) builds each module from."""

    vae: Mapping[str, JsonValue]
    text_encoder: Mapping[str, JsonValue]
    dit: Mapping[str, JsonValue]


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
        return value


class Defaults(_Part):
    """What a request gets that does not say."""

    size: Size
    seconds: Seconds
    fps: int = Field(gt=0)
    num_inference_steps: int = Field(gt=0)
    guidance_scale: float = Field(ge=0)
    shift: float = Field(gt=0)
    solver: Name


class Limits(_Part):
    """What a request may ask for: [lowest, highest]."""

    num_inference_steps: tuple[Annotated[int, Field(gt=0)], int]
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


class ModelCard(_Part):
    """A model as all services see it."""

    id: Name
    kind: Name
    engine: Name
    title: str
    description: str
    licence: str
    created: int
    """Unix seconds; a card may also say a date."""
    architecture: Architecture
    files: Mapping[Name, ModelFile] = Field(min_length=1)
    vocabulary: str | None = None
    """Path of the word list among the files; None: the text encoder brings its own."""
    sizes: tuple[Size, ...] = Field(min_length=1)
    seconds: tuple[Seconds, ...] = Field(min_length=1)
    defaults: Defaults
    limits: Limits
    num_frames: Mapping[Seconds, Annotated[int, Field(gt=0)]]
    """Frames that the model makes for each length it offers."""
    pool: Name
    group_size: int = Field(ge=1)
    """Devices that work on one task together."""
    cost: Cost
    price: Price
    attention: Mapping[str, JsonValue] = Field(default_factory=dict)
    parallelism: Mapping[str, JsonValue] = Field(default_factory=dict)
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

    @field_validator("provenance", "evaluation", "attention", "parallelism", mode="before")
    @classmethod
    def _dates_as_text(cls, value: Any) -> Any:
        return _plain(value)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        problems = []
        for what, values in (("sizes", self.sizes), ("seconds", self.seconds)):
            if len(set(values)) != len(values):
                problems.append(f"{what} repeats a value")
        if self.defaults.size not in self.sizes:
            problems.append(f"defaults.size {self.defaults.size} is not one of sizes")
        if self.defaults.seconds not in self.seconds:
            problems.append(f"defaults.seconds {self.defaults.seconds} is not one of seconds")
        if set(self.num_frames) != set(self.seconds):
            problems.append("num_frames must name exactly the values of seconds")
        for name, default, (low, high) in (
            ("num_inference_steps", self.defaults.num_inference_steps, self.limits.num_inference_steps),
            ("guidance_scale", self.defaults.guidance_scale, self.limits.guidance_scale),
        ):
            if not low <= default <= high:
                problems.append(f"defaults.{name} {default} is outside limits.{name} [{low}, {high}]")
        if self.vocabulary is not None and self.vocabulary not in {file.path for file in self.files.values()}:
            problems.append(f"vocabulary {self.vocabulary} is not one of files")
        if len({file.path for file in self.files.values()}) != len(self.files):
            problems.append("two files have the same path")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def sha256(self) -> str:
        """The model's identity: it changes with the content of any file, never with the card's words or the paths."""
        lines = sorted(f"{name}={file.sha256}\n" for name, file in self.files.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def estimate_s(self, num_steps: int, num_frames: int) -> float:
        """Return how many seconds a group is expected to take for the given steps and frames."""
        return self.cost.fixed_s + self.cost.per_step_frame_s * num_steps * num_frames


class Registry:
    """The models below one folder. Safe to share between threads; cards are read again when their files change."""

    def __init__(self, models_dir: Path, cache_dir: Path | None = None) -> None:
        """With `cache_dir` (local disk), `fetch` copies the files there once and returns the copies."""
        self._models_dir = models_dir
        self._cache_dir = cache_dir
        self._lock = threading.Lock()
        self._cards: dict[Path, tuple[tuple[int, int], ModelCard]] = {}
        self._verified: set[tuple[Path, int, int, str]] = set()

    def cards(self) -> tuple[ModelCard, ...]:
        """Return every card, by id.

        Raises:
            ConfigurationError: names the card that cannot be used and why.
        """
        paths = sorted(self._models_dir.glob("*/card.yaml"))
        with self._lock:
            return tuple(self._read(path) for path in paths)

    def card(self, model_id: str) -> ModelCard:
        """Return one card. Raises: NotFoundError: names the models there are."""
        cards = {card.id: card for card in self.cards()}
        if model_id not in cards:
            available = ", ".join(cards) or "none"
            raise NotFoundError(
                f"There is no model {model_id[:100]!r}; available: {available}.",
                param="model",
                detail={"available": list(cards)},
            )
        return cards[model_id]

    def fetch(self, card: ModelCard) -> Path:
        """Return the folder that holds the card's files, each verified; the hash of an unchanged file is taken once.

        Raises:
            CorruptObjectError: a file differs from the card; names the file, what was expected and what was found.
            NotFoundError: a file is missing.
        """
        source = self._models_dir / card.id
        with self._lock:
            if self._cache_dir is None:
                for file in card.files.values():
                    self._verify(source / file.path, file)
                return source
            target = self._cache_dir / card.id / card.sha256
            for file in card.files.values():
                self._copy(source / file.path, target / file.path, file)
            return target

    def _read(self, path: Path) -> ModelCard:
        status = path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._cards.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        card = load_card(path)
        if card.id != path.parent.name:
            raise ConfigurationError(f"Model card {path}: id {card.id!r} differs from its folder's name.")
        self._cards[path] = (stamp, card)
        return card

    def _verify(self, path: Path, file: ModelFile) -> None:
        try:
            status = path.stat()
            stamp = (path, status.st_mtime_ns, status.st_size, file.sha256)
            if stamp in self._verified:
                return
            if status.st_size != file.num_bytes:
                raise _corrupt(path, "num_bytes", file.num_bytes, status.st_size)
            with path.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise NotFoundError(f"Model file {path} is missing.", detail={"path": file.path}) from error
        if found != file.sha256:
            raise _corrupt(path, "sha256", file.sha256, found)
        self._verified.add(stamp)

    def _copy(self, source: Path, target: Path, file: ModelFile) -> None:
        try:
            self._verify(target, file)
            return
        except (NotFoundError, CorruptObjectError):
            pass  # not copied yet, or damaged since: the source decides
        try:
            with source.open("rb") as opened, atomic_writer(target) as copy:
                while chunk := opened.read(1 << 20):
                    copy.write(chunk)
        except FileNotFoundError as error:
            raise NotFoundError(f"Model file {source} is missing.", detail={"path": file.path}) from error
        self._verify(target, file)


def load_card(path: Path) -> ModelCard:
    """Read one card. Raises: ConfigurationError: names the file and each thing wrong with it."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return ModelCard.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'card'}: {problem['msg']}" for problem in error.errors()
        )
        raise ConfigurationError(f"Model card {path}: {problems}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Model card {path}: not valid YAML.") from error
    except OSError as error:
        raise ConfigurationError(f"Model card {path}: {error.strerror}.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.isoformat() if isinstance(value, date) else value


def _corrupt(path: Path, what: str, expected: object, found: object) -> CorruptObjectError:
    return CorruptObjectError(
        f"Model file {path} is damaged: {what} is {found}, the card says {expected}.",
        detail={"path": str(path), "what": what, "expected": expected, "found": found},
    )
