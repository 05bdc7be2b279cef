"""Videos: asked for, followed, waited for, fetched."""

import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal, Unpack, overload

from vitascope_client import _runtime
from vitascope_client._async._http import AsyncHttp
from vitascope_client._async._stream import LISTEN_S, AsyncEventStream, listen
from vitascope_client._errors import TRANSIENT, APIError, APITimeoutError
from vitascope_client._files import WholeFile
from vitascope_client._objects import Estimate, Progress, Video
from vitascope_client._requests import (
    ChangeFields,
    Film,
    Upload,
    Variant,
    VideoFields,
    body_of,
    film_of,
    new_key,
    path_of,
)
from vitascope_client._retries import pause_after_s, poll_after_s

MAX_PAGE = 100


class AsyncVideos:
    """`client.videos`.

    What makes a video is repeated when the answer is lost, and makes one video even so. The same request with the same
    `idempotency_key` makes one video, for 24 hours, from whatever process it is sent. Default: a key of this call.
    """

    def __init__(self, http: AsyncHttp) -> None:
        self._http = http

    async def create(self, *, idempotency_key: str | None = None, **fields: Unpack[VideoFields]) -> Video:
        """Ask for a video; `VideoFields` says what each field means.

        Raises:
            InvalidRequestError: `param` names the field; ModerationBlockedError: the prompt was refused.
            PermissionDeniedError: the plan does not include this service class.
            OSError: the file of a picture cannot be read.
        """
        return await self._made("/v1/videos", await _runtime.async_run(body_of, fields), idempotency_key)

    async def estimate(self, **fields: Unpack[VideoFields]) -> Estimate:
        """Say what `create` with these fields would make, cost and wait for. Nothing is made.

        Raises:
            InvalidRequestError, PermissionDeniedError, OSError: as `create` does.
        """
        body = await _runtime.async_run(body_of, fields)
        estimate, _ = await self._http.json("POST", "/v1/videos/estimate", Estimate.from_json, body=body)
        return estimate

    async def remix(
        self, video_id: str, *, idempotency_key: str | None = None, **fields: Unpack[ChangeFields]
    ) -> Video:
        """Draw over a video by another prompt: what moves where stays, what it looks like changes.

        Raises:
            InvalidRequestError: the model cannot, or a field is wrong: see `code` and `param`.
            NotFoundError: there is no file of that video: see `code`.
            ModerationBlockedError: the prompt was refused.
        """
        body = await _runtime.async_run(body_of, fields)
        return await self._made(f"{path_of(video_id)}/remix", body, idempotency_key)

    async def edit(self, *, video: Film, idempotency_key: str | None = None, **fields: Unpack[ChangeFields]) -> Video:
        """Do what `remix` does to a video or to a file. Raises as it does.

        Args:
            video: A video's id; a path object or bytes are a file.
            idempotency_key: As above.
            fields: The prompt and whatever else shall be different.
        """
        return await self._from_film("/v1/videos/edits", video, fields, idempotency_key)

    async def extend(self, *, video: Film, idempotency_key: str | None = None, **fields: Unpack[VideoFields]) -> Video:
        """Continue a video or a file; the new video is both, one after the other. Raises as `remix` does.

        `seconds` is the length of the clip that is generated. It begins with the last frames of what it continues, so
        the whole is shorter than the sum.
        """
        return await self._from_film("/v1/videos/extensions", video, fields, idempotency_key)

    async def retry(self, video_id: str, *, idempotency_key: str | None = None) -> Video:
        """Make a new video from the request of one that has ended: same seed, same parameters.

        Raises:
            InvalidRequestError: code `not_finished`, or `model_changed`: it would be another video.
        """
        return await self._made(f"{path_of(video_id)}/retry", None, idempotency_key)

    async def _from_film(self, path: str, video: Film, fields: Mapping[str, Any], idempotency_key: str | None) -> Video:
        body = await _runtime.async_run(body_of, fields)
        named, upload = await _runtime.async_run(film_of, video)
        return await self._made(path, body | named, idempotency_key, upload)

    async def _made(
        self,
        path: str,
        body: Mapping[str, object] | None,
        idempotency_key: str | None,
        upload: Upload | None = None,
    ) -> Video:
        """Have a video made, once however often that is sent."""
        key = new_key() if idempotency_key is None else idempotency_key
        video, _ = await self._http.json("POST", path, Video.from_json, body=body, upload=upload, idempotency_key=key)
        return video

    async def retrieve(self, video_id: str) -> Video:
        """Return one video as it is now."""
        video, _ = await self._http.json("GET", path_of(video_id), Video.from_json)
        return video

    async def list(
        self, *, after: str | None = None, limit: int | None = None, order: Literal["asc", "desc"] | None = None
    ) -> AsyncIterator[Video]:
        """Give your videos, newest first unless `order` is asc. Pages are fetched as they are needed.

        Args:
            after: Begin behind the video with this id.
            limit: How many at most; None: all of them.
            order: By creation.
        """
        num_left = limit
        while num_left is None or num_left > 0:
            page = MAX_PAGE if num_left is None else min(num_left, MAX_PAGE)
            query = {"after": after, "limit": page, "order": order}
            (videos, after), _ = await self._http.json("GET", "/v1/videos", _page, query=query)
            for one in videos:
                num_left = None if num_left is None else num_left - 1
                yield one
            if not (videos and after):
                return

    async def delete(self, video_id: str) -> None:
        """Delete a video; one that is still being made is cancelled first."""
        await self._http.json("DELETE", path_of(video_id), lambda data: data["deleted"])

    async def cancel(self, video_id: str) -> Video:
        """Cancel a video that is not finished; a finished one stays as it is."""
        video, _ = await self._http.json("POST", f"{path_of(video_id)}/cancel", Video.from_json)
        return video

    def stream(self, video_id: str, *, last_event_id: str | None = None, give_up_s: float = 120.0) -> AsyncEventStream:
        """Follow a video until it is finished.

        Without `last_event_id` from its first event, else after that one. Reconnects by itself, without gap or
        duplicate; raises when the server stays away for `give_up_s`.
        """
        return AsyncEventStream(self._http, f"{path_of(video_id)}/events", last_event_id, give_up_s)

    async def wait(
        self, video_id: str, *, on_progress: Callable[[Progress], None] | None = None, timeout_s: float = 3600.0
    ) -> Video:
        """Return the video once it is finished, well or not: look at its `status`.

        It follows the events, or polls as often as the server says where these do not arrive.

        Args:
            video_id: Which.
            on_progress: Called with every change, from the first one on; it must not take long.
            timeout_s: How long to wait.

        Raises:
            APITimeoutError: it is not finished after `timeout_s`. It goes on.
            RateLimitError, ServerError: the server wants not to be asked again, or not within two minutes.
        """
        deadline = time.monotonic() + timeout_s
        told: Progress | None = None
        is_listening = True

        def tell(progress: Progress) -> Progress:
            if on_progress is not None and progress != told:
                on_progress(progress)
            return progress

        while True:
            poll_s, video = 1.0, None
            failure: APIError | None = None
            try:
                video, headers = await self._http.json("GET", path_of(video_id), Video.from_json, deadline=deadline)
                poll_s = poll_after_s(headers)
            except TRANSIENT as error:
                asked_s = pause_after_s(error, 0)
                if asked_s is None:
                    raise
                failure, poll_s = error, max(poll_s, asked_s)
            if video is not None and video.is_finished:
                tell(Progress.of(video))
                return video
            if video is not None and is_listening and deadline - time.monotonic() > LISTEN_S:
                is_listening = False  # whatever ends it: polling finds out the rest
                async with aclosing(listen(self._http, f"{path_of(video_id)}/events", deadline)) as events:
                    async for event in events:
                        told = tell((told or Progress()).after(event))
                continue
            if video is not None:
                told = tell(Progress.of(video))
            left_s = deadline - time.monotonic()
            if left_s > 0:
                await _runtime.async_sleep(min(poll_s, left_s))
            if left_s <= 0 or (failure and poll_s > left_s):  # who asked for patience is not asked before that
                raise APITimeoutError(f"Video {video_id} is not finished after {timeout_s:.0f} s.") from failure

    @overload
    async def download(self, video_id: str, path: None = None, *, variant: Variant = "video") -> bytes: ...
    @overload
    async def download(self, video_id: str, path: str | os.PathLike[str], *, variant: Variant = "video") -> Path: ...
    async def download(
        self, video_id: str, path: str | os.PathLike[str] | None = None, *, variant: Variant = "video"
    ) -> bytes | Path:
        """Return the file's bytes, or write them to `path` and return that. The file appears only when it is whole.

        Raises:
            NotFoundError: `code` says why there is no file: video_not_ready, video_failed, video_expired.
            ModerationBlockedError: code `output_blocked`: it was made, and is not given out.
        """
        for attempt in range(self._http.max_retries + 1):
            try:
                return await self._download(video_id, path, variant)
            except TRANSIENT as error:
                wait_s = pause_after_s(error, attempt)
                if attempt == self._http.max_retries or wait_s is None:
                    raise
            await _runtime.async_sleep(wait_s)
        raise AssertionError("unreachable")  # the last attempt returns or raises

    async def _download(self, video_id: str, path: str | os.PathLike[str] | None, variant: Variant) -> bytes | Path:
        source, query = f"{path_of(video_id)}/content", {"variant": variant}
        async with self._http.stream(source, query=query) as answer:
            if path is None:
                return await answer.aread()
            target = Path(path)
            with WholeFile(target) as file:
                async for chunk in answer.aiter_bytes():
                    await _runtime.async_run(file.write, chunk)
            return target


def _page(data: Mapping[str, Any]) -> tuple[list[Video], str | None]:
    """Return the videos of a page, and the id behind which the next one begins; None: there is none."""
    return [Video.from_json(one) for one in data["data"]], data.get("last_id") if data.get("has_more") else None
