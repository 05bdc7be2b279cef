"""What a video is going to look like: who may see it, when, and what else nobody sees that way."""

from typing import Any

import pytest

from vitascope_common import ids
from vitascope_common.objectstore import ObjectInfo

WEBP = "image/webp"


def running(inside: Any, *, phase: str = "denoising", attempt: int = 2) -> dict[str, Any]:
    """Make a job that a worker is at."""
    video = inside.request("POST", "/v1/videos", json={"prompt": "a red circle"}).json()
    inside.sql("UPDATE jobs SET state = 'running', phase = ?, has_previews = 1 WHERE job_id = ?", phase, video["id"])
    inside.sql(
        "UPDATE tasks SET state = 'leased', attempt = ? WHERE job_id = ? AND stage = 'generate'", attempt, video["id"]
    )
    return dict(video)


def put(inside: Any, job_id: str, name: str, data: bytes, attempt: int = 2, stage: str = "generate") -> None:
    inside.objects.put_bytes(f"work/{job_id}/{stage}/0/{attempt}/{name}", data, WEBP)


def preview(inside: Any, job_id: str, **options: Any) -> Any:
    return inside.request("GET", f"/v1/videos/{job_id}/preview", **options)


def test_the_newest_preview_of_the_running_attempt_is_shown(inside: Any) -> None:
    job_id = running(inside)["id"]
    for step in (9, 10, 100):
        put(inside, job_id, f"preview-{step:06d}.webp", b"step %d" % step)
    put(inside, job_id, "preview-000200.webp", b"of the attempt before", attempt=1)
    answer = preview(inside, job_id)
    assert (answer.status_code, answer.content) == (200, b"step 100")
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == (WEBP, "no-store")


def test_nothing_but_previews_is_served(inside: Any) -> None:
    video, other = running(inside), running(inside)
    put(inside, video["id"], "preview-000001.webp", b"it")
    put(inside, video["id"], "preview-999999.webp", bytes(64_001))
    for name in ("preview-000009.webp.bak", "preview-secret.webp", "preview-000009.webp/x", "latents.safetensors"):
        put(inside, video["id"], name, b"something else")
    put(inside, video["id"], "preview-000009.webp", b"another stage's", stage="finish")
    put(inside, other["id"], "preview-000009.webp", b"another job's")
    assert preview(inside, video["id"]).content == b"it"


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        ("running", "decoding"),
        ("running", "queued"),
        ("queued", "queued"),
        ("completed", "completed"),
        ("cancelled", "cancelled"),
        ("failed", "failed"),
    ],
)
def test_there_is_none_before_and_after(inside: Any, state: str, phase: str) -> None:
    video = running(inside)
    put(inside, video["id"], "preview-000001.webp", b"it")
    inside.sql("UPDATE jobs SET state = ?, phase = ?", state, phase)
    answer = preview(inside, video["id"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "video_not_ready")
    assert inside.request("GET", f"/v1/videos/{video['id']}").json()["preview_url"] is None


def test_there_is_none_yet_without_a_file_and_never_of_a_model_that_shows_none(inside: Any) -> None:
    job_id = running(inside)["id"]
    assert preview(inside, job_id).json()["error"]["code"] == "video_not_ready"
    put(inside, job_id, "preview-000001.webp", b"it")
    inside.sql("UPDATE jobs SET has_previews = 0")
    assert preview(inside, job_id).json()["error"]["code"] == "video_not_ready"


def test_who_may_follow_may_see(inside: Any) -> None:
    video, other = running(inside, phase="loading"), running(inside)
    for one in (video, other):
        put(inside, one["id"], "preview-000001.webp", b"it")
    url = inside.request("GET", f"/v1/videos/{video['id']}").json()["preview_url"]
    assert url.startswith(f"http://gateway.test/v1/videos/{video['id']}/preview?token=")
    answer = inside.request("GET", url, tenant=None, headers={"origin": "https://page.test"})
    assert (answer.status_code, answer.content) == (200, b"it")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert inside.request("GET", url.replace(video["id"], other["id"]), tenant=None).status_code == 403
    assert preview(inside, video["id"], tenant=None).status_code == 401
    assert preview(inside, video["id"], tenant="other").status_code == 404
    assert inside.request("GET", url, tenant="other").status_code == 404  # a key that is sent is what counts
    inside.sql("UPDATE jobs SET deleted_at_ms = ?", ids.now_ms())
    assert inside.request("GET", url, tenant=None).json()["error"]["code"] == "not_found"


def test_the_ids_of_no_video_are_none(inside: Any) -> None:
    for job_id in ("video_0", "..", "%2e%2e%2f", "x" * 300):
        assert preview(inside, job_id).status_code == 404


def test_one_that_is_replaced_while_it_is_read_gives_way_to_another(
    inside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = running(inside)["id"]
    for step in (1, 2):
        put(inside, job_id, f"preview-{step:06d}.webp", b"step %d" % step)
    listed: list[ObjectInfo] = list(inside.objects.list(f"work/{job_id}/"))
    inside.objects.delete(listed[-1].key)
    monkeypatch.setattr(inside.objects, "list", lambda prefix: iter(listed))
    assert preview(inside, job_id).content == b"step 1"
