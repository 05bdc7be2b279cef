"""What a request says: the fields of a video, pictures and videos in it, and the path of one."""

import base64
import json
import mimetypes
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Required, TypedDict
from urllib.parse import quote

from vitascope_client._errors import VitascopeError

Variant = Literal["video", "thumbnail", "spritesheet"]
Picture = str | os.PathLike[str] | bytes
"""A file's path, its bytes, a data URL, or an https URL that the server fetches."""
Film = str | os.PathLike[str] | bytes
"""A text is the id of a video; a path object or bytes are a file."""


class VideoFields(TypedDict, total=False):
    """What is asked for. What is left out or None is the model's default; the seed, chance."""

    prompt: Required[str]
    input_reference: Picture | None
    """The picture that the video begins with (PNG, JPEG or WebP, at most 10 MiB). It is scaled to cover the video, and
    its middle is taken."""
    last_frame: Picture | None
    """The same for the picture that it ends with; needs `input_reference`."""
    model: str | None
    seconds: str | int | None
    size: str | None
    width: int | None
    """With `height` the same as `size`; `num_frames` is another way to say `seconds`."""
    height: int | None
    num_frames: int | None
    fps: int | None
    """The model's own value only."""
    seed: int | None
    negative_prompt: str | None
    num_inference_steps: int | None
    guidance_scale: float | None
    solver: str | None
    """How steps are taken; one that the model allows, `client.models()` lists them in `raw`."""
    temporal_attention: str | None
    """How frames see each other: full, causal or window, listed there too."""
    metadata: Mapping[str, str] | None
    deadline_s: float | None
    """Seconds until it fails with the code `expired` unless it is finished."""
    priority: int | None
    """Order among your own waiting videos, -100 to 100: lower is sooner."""
    service_class: str | None
    """realtime, standard or batch, whichever your plan includes."""
    webhook_url: str | None
    """Told of its end; `verify_webhook` reads what arrives there."""
    webhook_events: Sequence[str] | None
    """Which ends: video.completed, video.failed; default: both."""


class ChangeFields(VideoFields, total=False):
    """What is asked for of a video that changes another one; model, size and seconds are that one's unless given."""

    strength: float | None
    """How much is drawn anew, from 0 to 1."""


@dataclass(frozen=True)
class Upload:
    """A file that goes along with a form."""

    field: str
    filename: str
    data: bytes

    @property
    def part(self) -> dict[str, tuple[str, bytes, str]]:
        """Return it as httpx takes it."""
        return {self.field: (self.filename, self.data, mimetypes.guess_type(self.filename)[0] or _ANY_TYPE)}


_ANY_TYPE = "application/octet-stream"


def form_of(body: Mapping[str, Any]) -> dict[str, str]:
    """Return a body as the fields of a form; the parts of an object have brackets, a list is JSON."""
    form: dict[str, str] = {}
    for name, value in body.items():
        parts = {f"{name}[{key}]": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        form |= {key: part if isinstance(part, str) else json.dumps(part) for key, part in parts.items()}
    return form


def body_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of a request for a video. Reads files.

    Raises:
        OSError: the file of a picture cannot be read.
    """
    body = {name: value for name, value in fields.items() if value is not None}
    for name in ("input_reference", "last_frame"):
        if name in body:
            body[name] = _url_of(body[name])
    if "seconds" in body:
        body["seconds"] = str(body["seconds"])
    if "metadata" in body:
        body["metadata"] = dict(body["metadata"])
    if "webhook_events" in body:
        body["webhook_events"] = list(body["webhook_events"])
    return body


def film_of(video: Film) -> tuple[dict[str, Any], Upload | None]:
    """Return the field `video` of a request, or the file that takes its place. Reads files.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(video, str):
        return {"video": {"id": video}}, None
    if isinstance(video, bytes):
        return {}, Upload("video", "video.mp4", video)
    path = Path(video)
    return {}, Upload("video", path.name, path.read_bytes())


def path_of(video_id: str) -> str:
    """Return the path of a video, whatever its id contains."""
    if not isinstance(video_id, str) or not video_id or video_id in (".", ".."):
        raise VitascopeError(f"{video_id!r} is not the id of a video.")
    return f"/v1/videos/{quote(video_id, safe='')}"


def new_key() -> str:
    """Return an Idempotency-Key that nobody has used."""
    return uuid.uuid4().hex


def _url_of(picture: Picture) -> str:
    if isinstance(picture, str) and picture.startswith(("data:", "http://", "https://")):
        return picture  # the server says what it thinks of a URL
    if isinstance(picture, bytes):
        data, media_type = picture, None
    else:
        data, media_type = Path(picture).read_bytes(), mimetypes.guess_type(picture)[0]
    return f"data:{media_type or _ANY_TYPE};base64,{base64.b64encode(data).decode()}"
