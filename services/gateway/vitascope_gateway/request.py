"""The fields of a request -> what is to be made. Everything that is wrong with them is said here, field by field."""

import difflib
import math
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitascope_common.errors import InvalidModelError, InvalidRequestError, UnsupportedError
from vitascope_common.ids import is_job_id
from vitascope_common.jobs import GenerateParams, Reference
from vitascope_common.references import NEEDED, ReferenceRole, num_repeated_frames
from vitascope_common.registry import Capability, ModelCard
from vitascope_gateway import hook, pictures
from vitascope_gateway.forms import object_of
from vitascope_gateway.hook import Hook

FIELDS = (
    "prompt",
    "model",
    "seconds",
    "size",
    "width",
    "height",
    "seed",
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "solver",
    "temporal_attention",
    "fps",
    "num_frames",
    "metadata",
    "deadline_s",
    "priority",
    "service_class",
    "input_reference",
    "last_frame",
    *hook.FIELDS,
)
CHANGE_FIELDS = ("strength",)
"""Of an edit or a remix, besides."""
IGNORED_FIELDS = frozenset({"quality", "user", "response_format"})
"""What clients of this wire format send to other servers and nothing here depends on."""

PICTURES: Mapping[str, ReferenceRole] = {
    "input_reference": ReferenceRole.FIRST_FRAME,
    "last_frame": ReferenceRole.LAST_FRAME,
}
"""The fields that hold a picture, and what it is to the clip."""

FILES = frozenset({*PICTURES, "video"})
"""The fields of a form that may be files."""

DEFAULT_MODEL = "default"
"""What an alias stands for that is to mean the model of a request that names none."""
CLIP_ROLES = (ReferenceRole.CHANGE, ReferenceRole.CONTINUE)
DEFAULT_STRENGTH = 0.75
"""Of a change: enough for another colour to take hold, and little enough that the motion stays."""
MAX_EXTENDED_S = 120
MAX_SEED = 2**32 - 1
MAX_LABELS, MAX_LABEL_KEY_CHARS, MAX_LABEL_CHARS = 16, 64, 512
MAX_LABELS_JSON_CHARS = 128 * 1024
"""Of all of them as JSON text, every character escaped."""
DEADLINE_S = (1, 30 * 24 * 3600)
PRIORITY = (-100, 100)
SERVICE_CLASSES = ("realtime", "standard", "batch")

_INTEGER = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", re.ASCII)


@dataclass(frozen=True)
class Offer:
    """The models that a request may name."""

    cards: Sequence[ModelCard]
    default_model: str | None = None  # None: the only one there is; with several, a request must say
    aliases: Mapping[str, str] = field(default_factory=dict)  # other names, to the ids of models or DEFAULT_MODEL

    def resolve(self, value: Any) -> str | None:
        """Return the id that a request means; None: nothing says. Raises: InvalidModelError: no name at all."""
        by_id = [card.id for card in self.cards]
        if isinstance(value, str) and value not in by_id:
            value = self.aliases.get(value, value)
            value = None if value == DEFAULT_MODEL and value not in by_id else value
        if value is None:
            value = self.default_model or (by_id[0] if len(by_id) == 1 else None)
        if value is not None and not isinstance(value, str):
            raise self._none_of(value)
        return value

    def card(self, value: Any) -> ModelCard:
        """Return the card of the model that a request means. Raises: InvalidModelError: there is none."""
        name = self.resolve(value)
        if name is None:
            raise InvalidModelError(f"model is required; available: {self._names}.", param="model")
        found = next((card for card in self.cards if card.id == name), None)
        if found is None:
            raise self._none_of(name)
        return found

    @property
    def _names(self) -> str:
        return ", ".join(card.id for card in self.cards) or "none"

    def _none_of(self, value: Any) -> InvalidModelError:
        what = f"There is no model {show(value)}" if isinstance(value, str) else "model must be the id of a model"
        return InvalidModelError(f"{what}; available: {self._names}.", param="model")


@dataclass(frozen=True)
class SourceClip:
    """What is known of the clip that a new one changes or continues."""

    num_frames: int
    fps: int


@dataclass(frozen=True)
class VideoRequest:
    """A valid request; every default is resolved."""

    card: ModelCard
    prompt: str
    negative_prompt: str
    seconds: str
    size: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    solver: str
    temporal_attention: str
    labels: Mapping[str, str]
    pictures: Mapping[str, bytes | str] = field(default_factory=dict)
    """As they were sent, by field: bytes, or the URL where they lie. Nobody has fetched or decoded them yet."""
    deadline_s: float | None = None
    priority: int = 0
    service_class: str | None = None  # None: the tenant's first
    strength: float = 0.0  # of a change
    num_frames_before: int = 0  # of an extension
    hook: Hook | None = None

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        width, _, height = self.size.partition("x")
        return int(width), int(height)

    def params(self, prompt: str, negative_prompt: str, references: Sequence[Reference] = ()) -> GenerateParams:
        """Return what the stage "generate" needs, with the normalised prompts and the stored pictures."""
        width_px, height_px = self.size_px
        is_cards = self.temporal_attention == self.card.attention.temporal
        return GenerateParams(
            model=self.card.id,
            model_sha256=self.card.sha256,
            prompt=prompt,
            negative_prompt=negative_prompt,
            width_px=width_px,
            height_px=height_px,
            num_frames=self.card.num_frames[self.seconds],
            fps=self.card.defaults.fps,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            shift=self.card.shift_for(f"{width_px}x{height_px}"),
            solver=self.solver,
            seed=self.seed,
            seconds=self.seconds,
            references=tuple(references),
            guidance_start=self.card.defaults.guidance_start,
            guidance_end=self.card.defaults.guidance_end,
            guidance_rescale=self.card.defaults.guidance_rescale,
            temporal_attention="" if is_cards else self.temporal_attention,
            num_frames_before=self.num_frames_before,
        )


def parse_request(
    fields: Mapping[str, Any],
    offer: Offer,
    stored_roles: Collection[str] = (),
    source: SourceClip | None = None,
) -> VideoRequest:
    """Check every field. None (JSON null) means that the field was not given.

    `stored_roles` are those of references that come without a field; `source` is the clip among them, if it is new.

    Raises:
        InvalidRequestError: with `param`, and what is allowed in the message.
    """
    is_change = ReferenceRole.CHANGE in stored_roles
    if fields.get("characters") is not None:
        raise UnsupportedError(
            "characters are not supported: no model here keeps them; begin with input_reference.", param="characters"
        )
    given = {name: value for name, value in fields.items() if value is not None and name not in IGNORED_FIELDS}
    for name in given:
        if name not in FIELDS and not (name in CHANGE_FIELDS and is_change):
            raise _unknown(name, [*FIELDS, *(CHANGE_FIELDS if is_change else ())])
    card = offer.card(given.get("model"))
    defaults, limits = card.defaults, card.limits
    seconds = _seconds(given, card, source if is_change else None)
    _only("fps", given.get("fps"), defaults.fps, f"{card.id} makes")
    if "prompt" not in given:
        raise _invalid("prompt", "prompt is required.")
    prompt = _text("prompt", given["prompt"], limits.prompt_max_chars)
    if not prompt.strip():
        raise _invalid("prompt", "prompt must not be empty.")
    _check_roles(stored_roles, card)
    found = _pictures(given, card, stored_roles)
    return VideoRequest(
        card=card,
        prompt=prompt,
        negative_prompt=_negative_prompt(given.get("negative_prompt", ""), card),
        seconds=seconds,
        size=_size(given, card),
        seed=_integer("seed", given["seed"], 0, MAX_SEED) if "seed" in given else secrets.randbelow(MAX_SEED + 1),
        num_inference_steps=_integer(
            "num_inference_steps",
            given.get("num_inference_steps", defaults.num_inference_steps),
            *limits.num_inference_steps,
        ),
        guidance_scale=_number(
            "guidance_scale", given.get("guidance_scale", defaults.guidance_scale), *limits.guidance_scale
        ),
        solver=_choice("solver", given.get("solver", defaults.solver), card.solvers, card),
        temporal_attention=_choice(
            "temporal_attention",
            given.get("temporal_attention", card.attention.temporal),
            card.attention.allowed or (card.attention.temporal,),
            card,
        ),
        labels=read_labels(given.get("metadata", {})),
        pictures=found,
        deadline_s=_number("deadline_s", given["deadline_s"], *DEADLINE_S) if "deadline_s" in given else None,
        priority=_integer("priority", given.get("priority", 0), *PRIORITY),
        service_class=_service_class(given.get("service_class")),
        strength=_number("strength", given.get("strength", DEFAULT_STRENGTH), 0, 1) if is_change else 0.0,
        num_frames_before=_num_frames_before(source, card, seconds) if source and not is_change else 0,
        hook=hook.read_hook(given),
    )


def read_video(value: Any) -> str | bytes:
    """Return what the field `video` names: the id of a video, or a file. Raises: InvalidRequestError."""
    value = object_of(value)
    if isinstance(value, Mapping) and set(value) == {"id"}:
        value = value["id"]
    if isinstance(value, bytes) or (isinstance(value, str) and is_job_id(value)):
        return value
    if value is None:
        raise _invalid("video", 'video is required: {"id": "video_…"} of one of your videos, or a file.')
    raise _invalid("video", f'video must be a file or {{"id": "video_…"}}; got {show(value)}.')


def read_labels(value: Any) -> dict[str, str]:
    """Return the labels of a request: an object, or its JSON text. Raises: InvalidRequestError."""
    if isinstance(value, str):
        value = object_of(_text("metadata", value, MAX_LABELS_JSON_CHARS))
    if not isinstance(value, dict):
        raise _invalid("metadata", 'metadata must be an object of strings, such as {"project": "demo"}.')
    if len(value) > MAX_LABELS:
        raise _invalid("metadata", f"metadata has {len(value)} entries; at most {MAX_LABELS} are allowed.")
    for key, text in value.items():
        _text("metadata", key, MAX_LABEL_KEY_CHARS)
        _text("metadata", text, MAX_LABEL_CHARS)
    return dict(value)


def show(value: Any) -> str:
    """Return what a client sent in a form that is short and safe to repeat to it."""
    if isinstance(value, str):
        return ascii(value if len(value) <= 60 else value[:57] + "...")
    if type(value) is int and abs(value) >= 10**40:
        return "a huge number"
    if type(value) in (int, float):
        return str(value)
    return {bool: "a boolean", dict: "an object", list: "a list"}.get(type(value), "something else")


def _invalid(param: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param=param)


def _unknown(name: str, known: Sequence[str]) -> InvalidRequestError:
    shown = ascii(name[:60])[1:-1]
    close = difflib.get_close_matches(name[:60], known, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}."
    return _invalid(shown, f"Unknown field {shown}{hint}")


def _seconds(given: Mapping[str, Any], card: ModelCard, changed: SourceClip | None) -> str:
    """Return the length: as it says or as num_frames says; else all of what is changed, or the model's."""
    text, num_frames = given.get("seconds"), given.get("num_frames")
    if text is None and num_frames is not None:
        number = int(num_frames) if isinstance(num_frames, str) and _INTEGER.fullmatch(num_frames) else num_frames
        text = next((name for name in card.seconds if card.num_frames[name] == number), None)
        if text is None or type(number) is not int:
            allowed = ", ".join(str(card.num_frames[name]) for name in card.seconds)
            raise _invalid("num_frames", f"num_frames must be one of {allowed} for {card.id}; got {show(num_frames)}.")
    if text is None and changed is not None:
        fitting = [name for name in card.seconds if card.num_frames[name] <= changed.num_frames]
        text = max(fitting or [card.seconds[0]], key=lambda name: card.num_frames[name])
    text = card.defaults.seconds if text is None else text
    text = str(text) if type(text) is int and 0 <= text < 10**6 else text
    if not isinstance(text, str) or text not in card.seconds:
        raise _invalid("seconds", f"seconds must be one of {_list(card.seconds)}; got {show(text)}.")
    _only("num_frames", num_frames, card.num_frames[text], f"{text} seconds of {card.id} have")
    if changed is not None and changed.num_frames < card.num_frames[text]:
        raise _invalid(
            "seconds",
            f"The video has {changed.num_frames} frames at {card.defaults.fps} per second; {text} seconds of {card.id} "
            f"have {card.num_frames[text]}.",
        )
    return text


def _num_frames_before(source: SourceClip, card: ModelCard, seconds: str) -> int:
    """Return how many frames come before the continuation: all of the clip."""
    fps, num_frames = card.defaults.fps, card.num_frames[seconds]
    if source.fps != fps:
        raise _invalid("model", f"{card.id} makes {fps} frames per second; the video to extend has {source.fps}.")
    num_repeated = num_repeated_frames(source.num_frames, num_frames)
    if source.num_frames + num_frames - num_repeated > MAX_EXTENDED_S * fps:
        raise _invalid("video", f"The extended video would have more than {MAX_EXTENDED_S} seconds.")
    return source.num_frames


def _size(given: Mapping[str, Any], card: ModelCard) -> str:
    value = given.get("size")
    if "width" in given or "height" in given:
        sides = [given.get(name) for name in ("width", "height")]
        for name, side in zip(("width", "height"), sides, strict=True):
            if not (type(side) is int or (isinstance(side, str) and _INTEGER.fullmatch(side))):
                got = "is required beside the other side" if side is None else f"not {show(side)}"
                raise _invalid(name, f"{name} must be a number of pixels; {got}.")
        size = "x".join(str(int(side)) for side in sides if side is not None)
        if value is not None and value != size:
            raise _invalid("size", f"size says {show(value)}, width and height say {size}.")
        value = size
    value = card.defaults.size if value is None else value
    if not isinstance(value, str) or value not in card.sizes:
        raise _invalid(_size_param(given, card), f"size must be one of {_list(card.sizes)}; got {show(value)}.")
    return value


def _size_param(given: Mapping[str, Any], card: ModelCard) -> str:
    """Return which of the fields that were sent names a size that there is not."""
    if "size" in given or "width" not in given:
        return "size"
    has_width = any(size.startswith(f"{int(given['width'])}x") for size in card.sizes)
    return "height" if has_width else "width"


def _negative_prompt(value: Any, card: ModelCard) -> str:
    text = _text("negative_prompt", value, card.limits.prompt_max_chars)
    if text and Capability.NEGATIVE_PROMPT not in card.capabilities:
        raise _invalid("negative_prompt", f"negative_prompt is not supported by the model {card.id}.")
    return text


def _pictures(given: Mapping[str, Any], card: ModelCard, stored_roles: Collection[str]) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for name, role in PICTURES.items():
        if name not in given:
            continue
        if any(one in CLIP_ROLES for one in stored_roles):
            raise _invalid(name, f"{name} does not go together with a video to change or to extend.")
        if NEEDED[role] not in card.capabilities:
            raise UnsupportedError(
                f"{name} is not supported by the model {card.id}: it cannot do {NEEDED[role]}.", param=name
            )
        found[name] = pictures.read(name, given[name])
    if "last_frame" in found and "input_reference" not in found:
        raise _invalid("last_frame", "last_frame needs input_reference: the picture that the clip begins with.")
    if not found and not stored_roles and Capability.TEXT_TO_VIDEO not in card.capabilities:
        raise _lacks(card, "makes no video from text alone")
    return found


def _check_roles(roles: Collection[str], card: ModelCard) -> None:
    """Refuse a clip that is made from what the model takes nothing of."""
    cannot = {"change": "cannot change a video", "continue": "cannot extend a video"}
    for role in roles:
        if NEEDED.get(role) not in card.capabilities:
            raise _lacks(card, cannot.get(role, f"takes no {role}"))


def _lacks(card: ModelCard, what: str) -> UnsupportedError:
    able = ", ".join(card.capabilities)
    return UnsupportedError(f"The model {card.id} {what}; it can do: {able}.", param="model")


def _choice(name: str, value: Any, allowed: Sequence[str], card: ModelCard) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise _invalid(name, f"{name} must be one of {_list(allowed)} for the model {card.id}; got {show(value)}.")
    return value


def _service_class(value: Any) -> str | None:
    if value is not None and value not in SERVICE_CLASSES:
        raise _invalid("service_class", f"service_class must be one of {_list(SERVICE_CLASSES)}; got {show(value)}.")
    return None if value is None else str(value)


def _list(values: Sequence[str]) -> str:
    return ", ".join(f'"{value}"' for value in values)


def _only(name: str, value: Any, allowed: int, why: str) -> None:
    if value is not None and not (type(value) is int and value == allowed) and value != str(allowed):
        raise _invalid(name, f"{name} must be one of {allowed} ({why} exactly that); got {show(value)}.")


def _text(name: str, value: Any, max_chars: int) -> str:
    if not isinstance(value, str):
        raise _invalid(name, f"{name} must be a string; got {show(value)}.")
    if len(value) > max_chars:
        raise _invalid(name, f"{name} has {len(value)} characters; at most {max_chars} are allowed.")
    if "\0" in value:
        raise _invalid(name, f"{name} must not contain NUL characters.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _invalid(name, f"{name} is not valid Unicode: a lone surrogate at character {error.start}.") from None
    return value


def _integer(name: str, value: Any, low: int, high: int) -> int:
    number = int(value) if isinstance(value, str) and _INTEGER.fullmatch(value) else value
    if type(number) is not int or not low <= number <= high:
        raise _invalid(name, f"{name} must be a whole number from {low} to {high}; got {show(value)}.")
    return number


def _number(name: str, value: Any, low: float, high: float) -> float:
    number = float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
    is_number = type(number) is int or (type(number) is float and math.isfinite(number))
    if not is_number or not low <= number <= high:
        raise _invalid(name, f"{name} must be a number from {low:.10g} to {high:.10g}; got {show(value)}.")
    return float(number)
