"""Twenty cancels at once, at every moment of a job: one end, and nothing goes on after it."""

import os
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from tests.chaos.clips import make_clip
from tests.chaos.invariants import TERMINAL, assert_done_once, assert_drained, assert_whole_history, follow
from tests.chaos.workers import num_steps

import vitascope_client
from tests.conftest import Stack
from vitascope_client import Event

NUM_CANCELS = 20


def cancel_in_parallel(stack: Stack, video_id: str, spread_s: float = 0.0) -> list[dict[str, Any]]:
    """Cancel from twenty connections, all at once or spread over a time; return the answers."""
    never = threading.Event()

    def cancel(number: int) -> dict[str, Any]:
        never.wait(spread_s * number / NUM_CANCELS)
        with httpx.Client(headers={"Authorization": f"Bearer {stack.api_key}"}, timeout=30) as client:
            answer = client.post(f"{stack.base_url}/v1/videos/{video_id}/cancel")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    with ThreadPoolExecutor(NUM_CANCELS) as pool:
        return list(pool.map(cancel, range(NUM_CANCELS)))


def assert_one_end(stack: Stack, video_id: str, seen: list[Event], answers: list[dict[str, Any]]) -> str:
    """Everybody was told the same end, and it stays; returns it."""
    (job,) = stack.sql("SELECT state FROM jobs WHERE job_id = ?", video_id)
    assert job["state"] in ("completed", "cancelled")
    assert [event.type for event in seen if event.type in TERMINAL] == [job["state"]]
    expected = {"completed": ("completed", None), "cancelled": ("failed", "cancelled")}[job["state"]]
    assert {(one["status"], (one.get("error") or {}).get("code")) for one in answers} == {expected}
    assert_whole_history(stack, video_id, seen)
    if job["state"] == "completed":
        assert_done_once(stack, video_id)
    else:
        with pytest.raises(vitascope_client.APIStatusError) as refused:
            stack.client.videos.download(video_id)
        assert refused.value.code == "video_failed"
        ledger = stack.sql("SELECT task_id, attempt FROM ledger WHERE job_id = ?", video_id)
        assert all(count == 1 for count in Counter((row["task_id"], row["attempt"]) for row in ledger).values())
        states = {row["state"] for row in stack.sql("SELECT state FROM tasks WHERE job_id = ?", video_id)}
        assert states <= {"done", "cancelled"}
        assert "cancelled" in states
    return str(job["state"])


def test_a_queued_job_ends_at_once(chaos: Stack) -> None:
    in_front = make_clip(chaos, steps=30)
    video_id = make_clip(chaos)
    answers = cancel_in_parallel(chaos, video_id)
    assert assert_one_end(chaos, video_id, follow(chaos, video_id), answers) == "cancelled"
    assert chaos.client.videos.retrieve(in_front).status in ("queued", "in_progress"), "it did not wait for its turn"
    assert chaos.task(video_id, "generate")["attempt"] == 0
    follow(chaos, in_front)
    assert_done_once(chaos, in_front)
    assert_drained(chaos)


def test_a_running_job_stops_within_two_steps(chaos: Stack) -> None:
    """The worker is frozen while the job is cancelled, so that the client has seen all steps it took before that."""
    follow(chaos, make_clip(chaos, steps=1))  # the model is loaded, and the metrics stand still
    before = num_steps(chaos.metrics("gpu-worker"))
    video_id = make_clip(chaos, steps=200)
    worker = chaos.pid("gpu-worker")
    answers: list[dict[str, Any]] = []

    def cancel(event: Event) -> None:
        if event.type == "progress" and event.data["step"] == 12:
            os.kill(worker, signal.SIGSTOP)
            answers.append(chaos.client.videos.cancel(video_id).raw)  # type: ignore[arg-type]

    try:
        seen = follow(chaos, video_id, cancel)
    finally:
        os.kill(worker, signal.SIGCONT)
    answers.extend(cancel_in_parallel(chaos, video_id))
    assert assert_one_end(chaos, video_id, seen, answers) == "cancelled"
    assert seen[-1].type == "cancelled"
    assert_drained(chaos)
    follow(chaos, make_clip(chaos, steps=1))  # the worker takes one at a time: the cancelled one is over
    taken_before = max(event.data["step"] for event in seen if event.type == "progress")
    taken = num_steps(chaos.metrics("gpu-worker")) - before - 1
    assert taken <= taken_before + 3, "the step that was under way, and two"


MOMENTS = ("decoding", "postprocessing", "encode", "sign", "upload")


RACES = [
    pytest.param(
        moment,
        again,
        marks=() if (moment, again) == ("upload", 1) else pytest.mark.slow,
        id=f"{moment}-{again}",
    )
    for moment in MOMENTS
    for again in range(6)
]


@pytest.mark.parametrize(("moment", "again"), RACES)
def test_cancels_race_completion(chaos: Stack, moment: str, again: int) -> None:
    """They begin at a moment near the end and go on past it; whoever commits first has won."""
    video_id = make_clip(chaos, steps=2, seed=again)
    answers: list[dict[str, Any]] = []

    def cancel(event: Event) -> None:
        if not answers and moment in (event.type, event.data.get("stage")):
            answers.extend(cancel_in_parallel(chaos, video_id, spread_s=0.1 * again))

    seen = follow(chaos, video_id, cancel)
    assert len(answers) == NUM_CANCELS
    # With a spread, those that were told of the job's last moments saw it run on; none saw two ends.
    assert assert_one_end(chaos, video_id, seen, answers) in ("completed", "cancelled")
    assert_drained(chaos)
