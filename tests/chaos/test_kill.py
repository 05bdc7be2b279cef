"""Kill -9 each of the six services during a job: nothing is lost or doubled, and the twin is equal bit by bit."""

import contextlib
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitascope
from tests.conftest import PROMPT, SERVICES, Stack, wait_for
from vitascope_common import keys
from vitascope_common.redis_clients import connect
from vitascope_common.testing import is_alive

STEPS = 120
SEED = 7


@pytest.fixture(scope="module")
def twin(stack: Stack) -> str:
    """The undisturbed run: sha256 of its final latents."""
    video = stack.client.videos.create(prompt=PROMPT, seed=SEED, num_inference_steps=STEPS)
    assert stack.client.videos.wait(video.id).status == "completed"
    return stack.output(video.id, "generate", "latents")["sha256"]


def redis_url(stack: Stack) -> str:
    return json.loads((stack.data_dir / "stack.json").read_text())["redis_url"]


def follow(stack: Stack, video_id: str, on_event: Callable[[Any], None]) -> list[Any]:
    seen = []
    for event in stack.client.videos.events(video_id):
        seen.append(event)
        on_event(event)
    return seen


def kill_once(stack: Stack, service: str) -> Callable[[Any], None]:
    """Kill the service when the job is in the middle of that service's part."""
    killed: list[int] = []

    def on_event(event: Any) -> None:
        if service == "prompt":  # the worker is about to ask for the conditioning
            in_the_middle = event.type == "started"
        elif service == "postproc":  # it says so itself, after its claim
            in_the_middle = event.type == "postprocessing" and event.data["stage"] in ("encode", "sign")
        else:
            in_the_middle = event.type == "progress" and event.data["step"] >= 25
        if in_the_middle and not killed:
            killed.append(stack.kill(service))

    return on_event


@pytest.mark.parametrize("service", SERVICES)
def test_kill_nine(stack: Stack, twin: str, service: str) -> None:
    before = stack.pid(service)
    video = stack.client.videos.create(prompt=PROMPT, seed=SEED, num_inference_steps=STEPS)
    seen = follow(stack, video.id, kill_once(stack, service))

    assert seen[-1].type == "completed", seen[-1].data
    wait_for(f"{service} to be back", lambda: stack.pid(service) != before)
    assert stack.output(video.id, "generate", "latents")["sha256"] == twin

    attempts = {stage: stack.task(video.id, stage)["attempt"] for stage in ("generate", "finish")}
    assert attempts["generate"] == (2 if service == "gpu-worker" else 1)
    assert attempts["finish"] == (2 if service == "postproc" else 1)
    if service == "gpu-worker":
        assert "resumed" in [event.type for event in seen]
        resumed = next(event for event in seen if event.type == "resumed")
        assert resumed.data["from_step"] >= 10

    # The client saw the whole history, in order, once.
    redis = connect(redis_url(stack))
    history = [entry_id for entry_id, _ in redis.xrange(keys.events(video.id))]
    redis.close()
    assert [event.id for event in seen] == history

    # The video exists once, and it plays from where the database says.
    assert [event.type for event in seen].count("completed") == 1
    (job,) = stack.sql("SELECT manifest_key FROM jobs WHERE job_id = ?", video.id)
    assert job["manifest_key"] == f"videos/{video.id}/{attempts['finish']}/manifest.json"
    content = wait_for("delivery", lambda: download(stack, video.id))
    assert content[4:8] == b"ftyp"


def download(stack: Stack, video_id: str) -> bytes | None:
    """The video; None while delivery is on its way back."""
    with contextlib.suppress(vitascope.APIConnectionError):
        return stack.client.videos.download(video_id)
    return None


def test_kill_redis(stack: Stack, twin: str) -> None:
    killed: list[int] = []

    def on_event(event: Any) -> None:
        if event.type == "progress" and event.data["step"] >= 25 and not killed:
            killed.append(json.loads((stack.data_dir / "stack.json").read_text())["redis_pid"])
            os.kill(killed[0], signal.SIGKILL)

    video = stack.client.videos.create(prompt=PROMPT, seed=SEED, num_inference_steps=STEPS)
    seen = follow(stack, video.id, on_event)
    assert seen[-1].type in ("completed", "snapshot")
    assert stack.client.videos.retrieve(video.id).status == "completed"
    assert stack.output(video.id, "generate", "latents")["sha256"] == twin


def test_kill_up_itself_and_start_again(own_stack: Callable[[], Stack], tmp_path: Path) -> None:
    first = own_stack()
    undisturbed = first.client.videos.create(prompt=PROMPT, seed=SEED, num_inference_steps=60)
    first.client.videos.wait(undisturbed.id)
    video = first.client.videos.create(prompt=PROMPT, seed=SEED, num_inference_steps=60)
    waiting = first.client.videos.create(prompt=PROMPT, seed=SEED, num_inference_steps=12)
    for event in first.client.videos.events(video.id):
        if event.type == "checkpoint":
            break
    pids = [first.pid(service) for service in SERVICES]
    first.process.kill()
    first.process.wait()
    wait_for("the children to die with their parent", lambda: not any(is_alive(pid) for pid in pids), timeout_s=10)

    second = own_stack()
    assert second.api_key == first.api_key
    assert second.client.videos.wait(video.id).status == "completed"
    assert second.client.videos.wait(waiting.id).status == "completed"
    equal = {second.output(one, "generate", "latents")["sha256"] for one in (video.id, undisturbed.id)}
    assert len(equal) == 1
    assert second.task(video.id, "generate")["attempt"] == 2

    # SIGTERM drains within 10 s, and the job that was running goes on with the next start.
    third_job = second.client.videos.create(prompt=PROMPT, seed=SEED, num_inference_steps=200)
    for event in second.client.videos.events(third_job.id):
        if event.type == "progress" and event.data["step"] >= 12:
            break
    pids = [second.pid(service) for service in SERVICES]
    assert second.terminate() < 10.5
    assert not any(is_alive(pid) for pid in pids)
    assert second.task(third_job.id, "generate")["state"] == "ready"
    third = own_stack()
    assert third.client.videos.wait(third_job.id).status == "completed"


def test_a_corrupt_checkpoint_falls_back_to_the_one_before(stack: Stack, twin: str) -> None:
    video = stack.client.videos.create(prompt=PROMPT, seed=SEED, num_inference_steps=STEPS)
    worker: int | None = stack.pid("gpu-worker")
    older = 0
    steps_after: list[int] = []
    for event in stack.client.videos.events(video.id):
        if event.type == "checkpoint" and event.data["step"] >= 30 and worker:
            os.kill(worker, signal.SIGSTOP)  # so that no newer checkpoint comes up meanwhile
            older = flip_newest_checkpoint(stack, video.id)
            os.kill(worker, signal.SIGKILL)
            worker = None
        elif event.type == "resumed":
            steps_after.clear()
        elif event.type == "progress" and event.data["step"]:
            steps_after.append(event.data["step"])
    assert event.type == "completed", event.data
    assert older >= 20
    assert min(steps_after) in (older, older + 1)  # the state it shows first is the one it resumed from
    assert stack.output(video.id, "generate", "latents")["sha256"] == twin


def flip_newest_checkpoint(stack: Stack, video_id: str) -> int:
    """Flip a byte in every copy of the newest recorded checkpoint; returns the step of the one before."""
    newest, older = json.loads(stack.task(video_id, "generate")["checkpoints"])
    digest = newest["artifacts"][0]["sha256"]
    copies = [path for path in stack.data_dir.rglob("*") if path.is_file() and sha256(path) == digest]
    assert copies
    for path in copies:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    return int(older["done"])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_time_is_not_lost_to_a_dead_worker(stack: Stack) -> None:
    """A killed worker costs its lease and a restart, not a visibility timeout."""
    video = stack.client.videos.create(prompt=PROMPT, seed=SEED, num_inference_steps=STEPS)
    killed_at = resumed_at = 0.0
    for event in stack.client.videos.events(video.id):
        if event.type == "checkpoint" and not killed_at:
            stack.kill("gpu-worker")
            killed_at = time.monotonic()
        if event.type == "resumed":
            resumed_at = time.monotonic()
    assert 0 < resumed_at - killed_at < 45
