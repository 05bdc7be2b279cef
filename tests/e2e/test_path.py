"""One job through all six services, as a client sees it."""

import io
import json
from pathlib import Path

import av
import c2pa
import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.conftest import PROMPT, SERVICES, Collector, Stack, wait_for
from vitascope_common.settings import PROCESSES


def test_up_says_where_everything_is(stack: Stack) -> None:
    assert set(stack.up) == {"base_url", "grpc", "api_key", "data_dir", "pids"}
    assert set(stack.up["pids"]) == set(PROCESSES)
    key_file = stack.data_dir / "api_key"
    assert key_file.read_text().strip() == stack.api_key
    assert key_file.stat().st_mode & 0o777 == 0o600
    stored = json.dumps(stack.sql("SELECT * FROM api_keys"))
    assert stack.api_key not in stored


@pytest.fixture(scope="module")
def finished(stack: Stack) -> str:
    video = stack.client.videos.create(prompt=PROMPT, seed=1)
    events = list(stack.client.videos.stream(video.id))
    assert events[-1].type == "completed"
    return video.id


def test_a_job_reports_every_step_and_every_checkpoint(stack: Stack, finished: str) -> None:
    events = list(stack.client.videos.stream(finished, last_event_id="0-0"))
    types = [event.type for event in events]
    assert types[0] == "queued"
    assert types[-1] == "completed"
    assert [one for one in types if one in ("started", "decoding", "postprocessing")][:2] == ["started", "decoding"]
    steps = [event.data["step"] for event in events if event.type == "progress" and event.data["step"]]
    assert steps == list(range(1, steps[-1] + 1))
    assert [event.data["step"] for event in events if event.type == "checkpoint"][:2] == [10, 20]


def test_the_video_is_what_was_asked_for(stack: Stack, finished: str, tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    stack.client.videos.download(finished, target)
    video = stack.client.videos.retrieve(finished)
    assert (video.status, video.progress, video.seconds, video.size) == ("completed", 100, "4", "128x128")
    phases = ("queue", "load", "encode", "denoise", "decode", "upload", "postprocess")
    assert tuple(video.stage_durations) == phases
    assert video.inference_time_s == pytest.approx(
        video.stage_durations["denoise"] + video.stage_durations["decode"], abs=0.01
    )
    assert video.gpu_seconds >= video.inference_time_s > 0
    assert video.peak_memory_mb > 50
    assert (video.cost.estimated, video.cost.refunded) == (video.cost.charged, 0)
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 33
    assert frames[0].shape == (128, 128, 3)
    redness = np.array([frame[..., 0].astype(int) - frame[..., 1:].max(axis=2) for frame in frames]).clip(0)
    columns = (redness.sum(axis=1) @ np.arange(128)) / redness.sum(axis=(1, 2)).clip(1)
    assert redness[16].max() > 100, "nothing red in the middle of the clip"
    assert columns[28] > columns[4] + 10, f"it does not move right: {columns.round()}"
    thumbnail = Image.open(io.BytesIO(stack.client.videos.download(finished, variant="thumbnail")))
    assert thumbnail.format == "WEBP"


def test_the_video_is_signed_and_a_changed_byte_shows(stack: Stack, finished: str) -> None:
    data = stack.client.videos.download(finished)
    roots = "\n".join(path.read_text() for path in (stack.data_dir / "certificates").glob("root*.pem"))
    context = c2pa.Context(settings=c2pa.Settings.from_dict({"trust": {"user_anchors": roots}}))
    reader = c2pa.Reader("video/mp4", io.BytesIO(data), context=context)
    assert reader.get_validation_state() == "Trusted"
    manifest = json.dumps(json.loads(reader.json()))
    assert "c2pa.created" in manifest
    assert "trainedAlgorithmicMedia" in manifest
    assert finished in manifest
    assert "vita-mini-6" in manifest
    assert PROMPT not in manifest
    tampered = bytearray(data)
    tampered[-100] ^= 1
    assert c2pa.Reader("video/mp4", io.BytesIO(tampered), context=context).get_validation_state() == "Invalid"


def test_content_redirects_to_delivery_which_serves_ranges(stack: Stack, finished: str) -> None:
    answer = stack.get(f"/v1/videos/{finished}/content", follow_redirects=False)
    assert answer.status_code == 302
    url = answer.headers["location"]
    whole = httpx.get(url)
    part = httpx.get(url, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    another = finished[:-1] + ("1" if finished.endswith("0") else "0")
    assert httpx.get(url.replace(finished, another)).status_code in (401, 403)


@pytest.mark.slow
def test_the_same_seed_makes_the_same_video(stack: Stack, finished: str) -> None:
    twin = stack.client.videos.create(prompt=PROMPT, seed=1)
    stack.client.videos.wait(twin.id)
    assert (
        stack.output(twin.id, "generate", "latents")["sha256"]
        == stack.output(finished, "generate", "latents")["sha256"]
    )


@pytest.mark.filterwarnings("ignore:.*Sora API.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:openai")
def test_the_stock_openai_client_works(stack: Stack) -> None:
    with openai.OpenAI(base_url=f"{stack.base_url}/v1", api_key=stack.api_key) as client:
        video = client.videos.create_and_poll(
            prompt="a blue square moving up on a white background", model="vita-mini-6", seconds="4"
        )
        assert video.status == "completed"
        assert client.videos.download_content(video.id).read()[4:8] == b"ftyp"
        assert client.videos.download_content(video.id, variant="thumbnail").read()[8:12] == b"WEBP"
        assert video.id in {one.id for one in client.videos.list()}
        assert client.videos.delete(video.id).deleted
        assert video.id not in {one.id for one in client.videos.list()}
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(video.id)
        with pytest.raises(openai.BadRequestError) as refused:
            client.videos.create(prompt="a naked child", model="vita-mini-6")
        assert refused.value.code == "moderation_blocked"
        with pytest.raises(openai.BadRequestError) as wrong:
            client.videos.create(prompt="a ball", seconds="7")  # type: ignore[arg-type]
        assert wrong.value.param == "seconds"


def test_a_running_job_can_be_cancelled_and_the_worker_goes_on(stack: Stack) -> None:
    video = stack.client.videos.create(prompt=PROMPT, num_inference_steps=200)
    events = stack.client.videos.stream(video.id)
    preview = next(event.data["preview"] for event in events if event.type == "progress" and "preview" in event.data)
    shown = stack.client.videos.retrieve(video.id)
    assert shown.stage == "generate"
    for answer in (stack.get(preview["url"]), httpx.get(shown.preview_url)):
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
        assert Image.open(io.BytesIO(answer.content)).n_frames > 1
    cancelled = stack.client.videos.cancel(video.id)
    assert (cancelled.status, cancelled.error.code) == ("failed", "cancelled")
    assert [event.type for event in events][-1] == "cancelled"
    for path in (f"/v1/videos/{video.id}/content", preview["url"]):
        assert stack.get(path).status_code == 404
    after = stack.client.videos.create(prompt=PROMPT, seed=3)
    assert stack.client.videos.wait(after.id).status == "completed"


@pytest.mark.slow
def test_one_trace_runs_through_all_six_services(stack: Stack, collector: Collector) -> None:
    video = stack.client.videos.create(prompt=PROMPT, num_inference_steps=200)
    for event in stack.client.videos.stream(video.id):
        if event.type == "checkpoint":
            break
    stack.kill("gpu-worker")  # the trace survives it
    assert stack.client.videos.wait(video.id).status == "completed"
    stack.client.videos.download(video.id)
    (job,) = stack.sql("SELECT traceparent FROM jobs WHERE job_id = ?", video.id)
    trace_id = job["traceparent"].split("-")[1]

    def is_whole() -> bool:  # each process sends its spans every few seconds, and a parent ends after its children
        spans = collector.trace(trace_id)
        known = {span["span_id"] for span in spans}
        parents = {span["parent"] for span in spans if span["parent"]}
        return {span["service"] for span in spans} >= set(SERVICES) and known >= parents

    wait_for("the spans of all six services and their parents", is_whole, timeout_s=30)
    roots = [span for span in collector.trace(trace_id) if not span["parent"]]
    assert len(roots) == 1, roots
