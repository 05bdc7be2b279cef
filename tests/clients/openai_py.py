"""openai for Python, any version from 2.6: `openai_py.py`, with OPENAI_BASE_URL and OPENAI_API_KEY."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import openai

warnings.simplefilter("ignore", DeprecationWarning)
RED, GREEN = (f"a small {colour} circle moving right on a white background" for colour in ("red", "green"))


def check(what: str, is_so: object) -> None:
    """Say what holds; end the run at once when it does not."""
    if not is_so:
        raise SystemExit(f"openai {openai.__version__}: {what}: NO")
    print(f"ok  {what}", flush=True)


def refusal(call: Any, *args: Any, **fields: Any) -> openai.APIStatusError:
    """Return the error that a call raises."""
    try:
        call(*args, **fields)
    except openai.APIStatusError as error:
        return error
    raise SystemExit(f"openai {openai.__version__}: {fields} was not refused")


def make_from(client: Any, path: str, **fields: Any) -> Any:
    """Edit or extend a video by its id: with the method where the client has one, with `post` where it has none."""
    method = getattr(client.videos, {"edits": "edit", "extensions": "extend"}[path], None)
    if method is None:
        return client.post(f"/videos/{path}", body=fields, cast_to=openai.types.Video)
    video = fields.pop("video")  # as its own types ask for it, {"id": …}, the client refuses to send it as a form
    return method(video=openai.omit, extra_body={"video": video}, **fields)


def main() -> None:
    """Use every method of `client.videos` once."""
    client: Any = openai.OpenAI()
    video = client.videos.create_and_poll(prompt=RED, model="sora-2", seconds="1", size="64x64", extra_body={"seed": 7})
    check("create, poll", (video.status, video.progress, video.seconds, video.size) == ("completed", 100, "1", "64x64"))
    check("retrieve", client.videos.retrieve(video.id).id == video.id)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        client.videos.download_content(video.id).write_to_file(path)
        check("download video", path.read_bytes()[4:8] == b"ftyp")
    thumbnail = client.videos.download_content(video.id, variant="thumbnail").read()
    check("download thumbnail", thumbnail[8:12] == b"WEBP")
    check(
        "download spritesheet",
        client.videos.download_content(video.id, variant="spritesheet").read()[:2] == b"\xff\xd8",
    )

    remix = client.videos.remix(video.id, prompt=GREEN)
    edit = make_from(client, "edits", prompt=GREEN, video={"id": video.id})
    longer = make_from(client, "extensions", prompt=RED, seconds="1", video={"id": video.id})
    for name, one in (("remix", remix), ("edit by id", edit), ("extend by id", longer)):
        done = client.videos.poll(one.id)
        check(name, (done.status, done.remixed_from_video_id) == ("completed", video.id))
    if hasattr(client.videos, "edit"):
        clip = client.videos.download_content(video.id).read()
        edit = client.videos.edit(prompt=GREEN, video=("clip.mp4", clip, "video/mp4"), extra_body={"seconds": "1"})
        check("edit a file", client.videos.poll(edit.id).status == "completed")
        error = refusal(client.videos.create_character, name="x", video=("clip.mp4", clip, "video/mp4"))
        check("characters are unsupported", error.code == "unsupported")

    listed = [one.id for one in client.videos.list(limit=2)]
    check(
        "list, page by page",
        {video.id, remix.id, edit.id, longer.id} <= set(listed) and len(listed) == len(set(listed)),
    )
    check("models", any(one.id == video.model for one in client.models.list()))

    error = refusal(client.videos.create, prompt=RED, seconds="7")
    check(
        "an error names its field", (error.status_code, error.param, error.code) == (400, "seconds", "invalid_request")
    )
    check("an error has a request id", error.request_id)
    deleted = client.videos.delete(video.id)
    check("delete", (deleted.id, deleted.deleted, deleted.object) == (video.id, True, "video.deleted"))
    check("a deleted video is gone", refusal(client.videos.retrieve, video.id).code == "not_found")


if __name__ == "__main__":
    main()
