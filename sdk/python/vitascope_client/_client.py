"""The client."""

import base64
import mimetypes
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, overload
from urllib.parse import quote

import httpx

from vitascope_client import _events
from vitascope_client._admin import Admin
from vitascope_client._errors import APIConnectionError, APITimeoutError, RateLimitError, ServerError, VitascopeError
from vitascope_client._http import Http, pause
from vitascope_client._objects import Event, Model, Video, VideoPage

Variant = Literal["video", "thumbnail"]
Picture = str | os.PathLike[str] | bytes
"""A file's path, its bytes, or a data URL."""


class Vitascope:
    """A client of one server. Use it as a context manager, or close it."""

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connect lazily.

        Args:
            base_url: Address of the gateway, with or without `/v1`; default VITASCOPE_BASE_URL.
            api_key: Default VITASCOPE_API_KEY.
            timeout_s: How long one answer may take.
            max_retries: How often a call that may be repeated is.
            transport: Replaces the network, for tests and proxies.
        """
        base_url = base_url or os.environ.get("VITASCOPE_BASE_URL")
        api_key = api_key or os.environ.get("VITASCOPE_API_KEY")
        if not base_url:
            raise VitascopeError("Pass base_url or set VITASCOPE_BASE_URL, for instance http://127.0.0.1:8000.")
        if not api_key:
            raise VitascopeError("Pass api_key or set VITASCOPE_API_KEY.")
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        try:
            self._http = Http(self.base_url, api_key, timeout_s=timeout_s, max_retries=max_retries, transport=transport)
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise VitascopeError(f"base_url or api_key cannot be used: {error}") from error
        self.videos = Videos(self._http)
        self.admin = Admin(self._http)

    def models(self) -> tuple[Model, ...]:
        """List the models of the server."""
        data, _ = self._http.json("GET", "/v1/models")
        return tuple(Model.from_json(model) for model in data["data"])

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Videos:
    """`client.videos`."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def create(
        self,
        *,
        prompt: str,
        input_reference: Picture | None = None,
        last_frame: Picture | None = None,
        model: str | None = None,
        seconds: str | int | None = None,
        size: str | None = None,
        seed: int | None = None,
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        solver: str | None = None,
        temporal_attention: str | None = None,
        metadata: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
        priority: int | None = None,
        service_class: str | None = None,
        idempotency_key: str | None = None,
    ) -> Video:
        """Ask for a video. None leaves a value to the model's default, the seed to chance.

        It is repeated when the answer is lost, and makes one video even so.

        Args:
            input_reference: The picture that the video begins with (PNG, JPEG or WebP, at most 10 MiB): the path of a
                file, bytes, or a data URL. It is scaled to cover the video, and its middle is taken.
            last_frame: The same for the picture that it ends with; needs `input_reference`.
            solver: How steps are taken; one that the model allows, `models()` lists them in `raw`.
            temporal_attention: How frames see each other: full, causal or window, listed there too.
            deadline_s: Seconds until it fails with the code `expired` unless it is finished.
            priority: Order among your own waiting videos, -100 to 100: lower is sooner.
            service_class: realtime, standard or batch, whichever your plan includes.
            idempotency_key: The same request with the same key makes one video, for 24 hours, from whatever process it
                is sent; default: a key of this call.

        Raises:
            InvalidRequestError: `param` names the field; ModerationBlockedError: the prompt was refused.
            PermissionDeniedError: the plan does not include this service class.
            OSError: the file of a picture cannot be read.
        """
        fields = {
            "prompt": prompt,
            "input_reference": None if input_reference is None else _data_url(input_reference),
            "last_frame": None if last_frame is None else _data_url(last_frame),
            "model": model,
            "seconds": None if seconds is None else str(seconds),
            "size": size,
            "seed": seed,
            "negative_prompt": negative_prompt,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "solver": solver,
            "temporal_attention": temporal_attention,
            "metadata": None if metadata is None else dict(metadata),
            "deadline_s": deadline_s,
            "priority": priority,
            "service_class": service_class,
        }
        body = {name: value for name, value in fields.items() if value is not None}
        return self._made("/v1/videos", body, idempotency_key)

    def retrieve(self, video_id: str) -> Video:
        """Return one video as it is now."""
        return Video.from_json(self._http.json("GET", _path(video_id))[0])

    def list(
        self, *, after: str | None = None, limit: int | None = None, order: Literal["asc", "desc"] | None = None
    ) -> VideoPage:
        """Return one page; the next one is `list(after=page.last_id)` while `page.has_more`."""
        data, _ = self._http.json("GET", "/v1/videos", query={"after": after, "limit": limit, "order": order})
        videos = tuple(Video.from_json(one) for one in data["data"])
        return VideoPage(videos, data.get("last_id"), bool(data.get("has_more")))

    def delete(self, video_id: str) -> None:
        """Delete a video; one that is still being made is cancelled first."""
        self._http.json("DELETE", _path(video_id))

    def cancel(self, video_id: str) -> Video:
        """Cancel a video that is not finished; a finished one stays as it is."""
        return Video.from_json(self._http.json("POST", f"{_path(video_id)}/cancel")[0])

    def retry(self, video_id: str, *, idempotency_key: str | None = None) -> Video:
        """Make a new video from the request of one that has ended: same seed, same parameters.

        `idempotency_key` is that of `create`.

        Raises:
            InvalidRequestError: code `not_finished`, or `model_changed`: it would be another video.
        """
        return self._made(f"{_path(video_id)}/retry", None, idempotency_key)

    def _made(self, path: str, body: Mapping[str, object] | None, idempotency_key: str | None) -> Video:
        """Have a video made, once however often that is sent."""
        key = uuid.uuid4().hex if idempotency_key is None else idempotency_key
        return Video.from_json(self._http.json("POST", path, body=body, idempotency_key=key)[0])

    def stream(self, video_id: str, *, last_event_id: str | None = None, give_up_s: float = 120.0) -> Iterator[Event]:
        """Follow a video until it is finished.

        Without `last_event_id` from its first event, else after that one. Reconnects by itself, without gap or
        duplicate; raises when the server stays away for `give_up_s`.
        """
        return _events.follow(self._http, f"{_path(video_id)}/events", last_event_id, give_up_s)

    def wait(self, video_id: str, *, timeout_s: float = 3600.0) -> Video:
        """Return the video once it is finished, well or not: look at its `status`.

        Raises:
            APITimeoutError: it is not finished after `timeout_s`. It goes on.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            poll_s = 1.0
            try:
                data, headers = self._http.json("GET", _path(video_id))
                video = Video.from_json(data)
                if video.is_finished:
                    return video
                poll_s = int(headers.get("openai-poll-after-ms", 1000)) / 1000
            except (APIConnectionError, ServerError, RateLimitError):
                if time.monotonic() >= deadline:
                    raise
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise APITimeoutError(f"Video {video_id} is not finished after {timeout_s:.0f} s.")
            time.sleep(min(poll_s, left_s))

    @overload
    def download(self, video_id: str, path: None = None, *, variant: Variant = "video") -> bytes: ...
    @overload
    def download(self, video_id: str, path: str | os.PathLike[str], *, variant: Variant = "video") -> Path: ...
    def download(
        self, video_id: str, path: str | os.PathLike[str] | None = None, *, variant: Variant = "video"
    ) -> bytes | Path:
        """Return the file's bytes, or write them to `path` and return that. The file appears only when it is whole.

        Raises:
            NotFoundError: `code` says why there is no file: video_not_ready, video_failed, video_expired.
        """
        for attempt in range(self._http.max_retries + 1):
            try:
                return self._download(video_id, path, variant)
            except (APIConnectionError, ServerError):
                if attempt == self._http.max_retries:
                    raise
            pause(attempt)
        raise AssertionError("unreachable")  # the last attempt returns or raises

    def _download(self, video_id: str, path: str | os.PathLike[str] | None, variant: Variant) -> bytes | Path:
        source, query = f"{_path(video_id)}/content", {"variant": variant}
        if path is None:
            with self._http.stream(source, query=query) as answer:
                return answer.read()
        target = Path(path)
        part = target.with_name(f"{target.name}.part")
        try:
            with self._http.stream(source, query=query) as answer, part.open("wb") as file:
                for chunk in answer.iter_bytes():
                    file.write(chunk)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target


def _data_url(picture: Picture) -> str:
    if isinstance(picture, str) and picture.startswith(("data:", "http://", "https://")):
        return picture  # the server says what it thinks of a URL
    if isinstance(picture, bytes):
        data, media_type = picture, None
    else:
        data, media_type = Path(picture).read_bytes(), mimetypes.guess_type(picture)[0]
    return f"data:{media_type or 'application/octet-stream'};base64,{base64.b64encode(data).decode()}"


def _path(video_id: str) -> str:
    if not isinstance(video_id, str) or not video_id or video_id in (".", ".."):
        raise VitascopeError(f"{video_id!r} is not the id of a video.")
    return f"/v1/videos/{quote(video_id, safe='')}"
