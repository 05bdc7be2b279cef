"""LiteLLM: `litellm_py.py`, with OPENAI_BASE_URL and OPENAI_API_KEY."""

import os
import time
from typing import Any

import litellm

RED, GREEN = (f"a small {colour} circle moving right on a white background" for colour in ("red", "green"))
API_BASE = os.environ["OPENAI_BASE_URL"]
TO: dict[str, Any] = {"custom_llm_provider": "openai", "api_base": API_BASE}


def check(what: str, is_so: object) -> None:
    """Say what holds; end the run at once when it does not."""
    if not is_so:
        raise SystemExit(f"litellm: {what}: NO")
    print(f"ok  {what}", flush=True)


def finished(video: Any) -> Any:
    """Ask until a video has ended; the client has no poll of its own."""
    deadline = time.monotonic() + 180
    while video.status in ("queued", "in_progress") and time.monotonic() < deadline:
        time.sleep(0.5)
        video = litellm.video_status(video.id, **TO)
    return video


def main() -> None:
    """Use every video function once."""
    new: dict[str, Any] = {"prompt": RED, "model": "openai/sora-2", "api_base": API_BASE}
    made = litellm.video_generation(**new, seconds="1", size="64x64", extra_body={"seed": 7})
    video = finished(made)
    check("create, poll", (video.status, video.seconds, video.size, video.error) == ("completed", "1", "64x64", None))
    check("progress is an integer", type(video.progress) is int and video.progress == 100)
    check("download video", litellm.video_content(video.id, **TO)[4:8] == b"ftyp")
    check("download thumbnail", litellm.video_content(video.id, variant="thumbnail", **TO)[8:12] == b"WEBP")

    remix = finished(litellm.video_remix(video.id, GREEN, **TO))
    check("remix", (remix.status, bool(remix.remixed_from_video_id)) == ("completed", True))
    check("edit by id", finished(litellm.video_edit(video.id, GREEN, **TO)).status == "completed")
    check("extend by id", finished(litellm.video_extension(video.id, RED, "1", **TO)).status == "completed")
    check("list", litellm.video_list(limit=100, **TO))

    try:
        litellm.video_generation(**new, seconds="7")
    except litellm.BadRequestError as error:
        check("an error says what is allowed", "seconds must be one of" in str(error))
    else:
        raise SystemExit("litellm: seconds 7 was not refused")


if __name__ == "__main__":
    main()
