"""Edits and extensions of clips that come with the request: read apart from everything else, kept as jobs need them."""

import asyncio
import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from vitascope_common.media_probe import MediaInfo, MediaLimits, probe
from vitascope_gateway import references

LIMITS = MediaLimits(max_bytes=10**8, max_pixels=10**6, max_duration_s=200, max_frames=10**4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads")


def clip(folder: Path, seconds: float, rate: int = 24, size: str = "160x90") -> bytes:
    path = folder / f"{seconds}-{rate}-{size}.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "lavfi"]
    command += ["-i", f"testsrc2=size={size}:rate={rate}:duration={seconds}", "-c:v", "libx264", "-preset", "ultrafast"]
    subprocess.run([*command, str(path)], check=True, timeout=60)
    return path.read_bytes()


def ask(inside: Any, way: str, data: bytes, headers: dict[str, str] | None = None, **fields: str) -> Any:
    return inside.request(
        "POST",
        f"/v1/videos/{way}",
        data={"prompt": "a blue circle"} | fields,
        files=[("video", ("clip.mp4", data, "video/mp4"))],
        headers=headers or {},
    )


def params_of(inside: Any, video_id: str) -> dict[str, Any]:
    (row,) = inside.sql("SELECT params FROM tasks WHERE job_id = ? AND stage = 'generate'", video_id)
    return dict(json.loads(row["params"]))


def kept(inside: Any, video_id: str, role: str) -> MediaInfo:
    """Return what the one reference of a job holds."""
    (given,) = params_of(inside, video_id)["references"]
    artifact = given["artifact"]
    assert (given["role"], artifact["media_type"]) == (role, "video/x-matroska")
    assert artifact["key"] == f"work/{video_id}/references/{role}.mkv"
    assert inside.objects.stat(artifact["key"]).sha256 == artifact["sha256"]
    return probe(inside.objects.get_bytes(artifact["key"]), LIMITS)


def nothing_is_kept(inside: Any) -> bool:
    return list(inside.objects.list()) == [] and inside.sql("SELECT * FROM jobs") == []


def test_an_edit_of_a_file_takes_as_much_as_the_model_makes(inside: Any, folder: Path) -> None:
    answer = ask(inside, "edits", clip(folder, 5), size="96x64", strength="0.4")
    video = answer.json()
    assert answer.status_code == 202, answer.text
    assert (video["seconds"], video["size"], video["remixed_from_video_id"]) == ("4", "96x64", None)
    found = kept(inside, video["id"], "change")
    assert (found.width_px, found.height_px, found.num_frames, found.fps) == (96, 64, 33, 8.0)
    assert params_of(inside, video["id"])["references"][0]["strength"] == 0.4
    shorter = ask(inside, "edits", clip(folder, 3)).json()
    assert (shorter["seconds"], shorter["num_frames"], shorter["size"]) == ("2", 17, "64x64")


def test_an_extension_of_a_file_is_the_clip_and_its_continuation(inside: Any, folder: Path) -> None:
    answer = ask(inside, "extensions", clip(folder, 5), seconds="2")
    assert answer.status_code == 202, answer.text
    video = answer.json()
    params = params_of(inside, video["id"])
    assert (video["num_frames"], params["num_frames"], params["num_frames_before"]) == (40 - 5 + 17, 17, 40)
    assert kept(inside, video["id"], "continue").num_frames == 40


def test_a_job_from_a_file_can_be_made_again(inside: Any, folder: Path) -> None:
    key, data = {"Idempotency-Key": "k1"}, clip(folder, 3)
    first = ask(inside, "extensions", data, key).json()
    assert ask(inside, "extensions", data, key).json()["id"] == first["id"]
    assert ask(inside, "extensions", clip(folder, 5), key).status_code == 422
    inside.sql("UPDATE jobs SET state = 'failed'")
    retried = inside.request("POST", f"/v1/videos/{first['id']}/retry")
    assert retried.status_code == 202, retried.text
    assert kept(inside, retried.json()["id"], "continue") == kept(inside, first["id"], "continue")


@pytest.mark.parametrize("way", ["edits", "extensions"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"This is no clip.", "is no video; it must be MP4, MOV, WebM or Matroska"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no video"),
        (b"#EXTM3U\n#EXTINF:5,\nfile:///etc/passwd\n", "is no video"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(1000), "damaged"),
    ],
)
def test_a_file_that_is_no_clip_is_refused(inside: Any, way: str, data: bytes, said: str) -> None:
    answer = ask(inside, way, data)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_media", "video")
    assert said in error["message"]
    assert nothing_is_kept(inside)


def test_a_clip_of_a_wrong_length_is_refused(inside: Any, folder: Path) -> None:
    for way, data, param, said, fields in (
        ("edits", clip(folder, 1), "seconds", "The video has 8 frames at 8 per second; 2 seconds of tiny have 17", {}),
        (
            "edits",
            clip(folder, 3),
            "seconds",
            "The video has 24 frames at 8 per second; 4 seconds of tiny have 33",
            {"seconds": "4"},
        ),
        ("extensions", clip(folder, 121, 1, "16x16"), "video", "at most 120 s are allowed", {}),
        ("extensions", clip(folder, 119.5, 2, "16x16"), "video", "more than 120 seconds", {}),
    ):
        error = ask(inside, way, data, **fields).json()["error"]
        assert error["param"] == param
        assert said in error["message"]
    assert nothing_is_kept(inside)


def test_nothing_is_read_for_a_request_that_is_refused_anyway(
    inside: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a child was started"))
    assert ask(inside, "edits", b"no clip", prompt="forbidden").json()["error"]["code"] == "moderation_blocked"
    for fields in ({"size": "1x1"}, {"strength": "2"}, {"seconds": "7"}, {"service_class": "realtime"}):
        assert ask(inside, "edits", b"no clip", **fields).json()["error"]["param"] in fields
    assert nothing_is_kept(inside)


def test_one_tenants_clips_leave_places_for_others(inside: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, read, may_go_on = clip(folder, 3), references.read_clip, threading.Event()

    def read_late(*args: Any, **options: Any) -> Any:
        may_go_on.wait(10)
        return read(*args, **options)

    monkeypatch.setattr(references, "read_clip", read_late)

    async def scene() -> tuple[list[Any], Any]:
        async def ask(tenant: str) -> Any:
            form = {"data": {"prompt": "x"}, "files": [("video", ("clip.mp4", data, "video/mp4"))]}
            return await inside._request("POST", "/v1/videos/edits", tenant, form)

        asked = [asyncio.create_task(ask("acme")) for _ in range(references.MAX_CLIPS_OF_TENANT + 1)]
        (refused,), rest = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        other = asyncio.create_task(ask("other"))
        await asyncio.wait({other}, timeout=0.1)
        may_go_on.set()
        return await asyncio.gather(*rest, other), refused.result()

    others, refused = inside.runner.run(scene())
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert "at most 3 at once" in refused.json()["error"]["message"]
    assert [one.status_code for one in others] == [202] * 4
