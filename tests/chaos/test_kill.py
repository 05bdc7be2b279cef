"""Kill -9 each process in each phase of a job: nothing is lost or doubled, and the twin is equal bit by bit."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tests.chaos.clips import make_clip
from tests.chaos.invariants import (
    MAX_REPEATED,
    assert_done_once,
    assert_drained,
    assert_no_event_twice,
    assert_whole_history,
    follow,
    steps_repeated,
)

from tests.conftest import Stack, wait_for
from vitascope_client import Event
from vitascope_common.settings import PROCESSES
from vitascope_common.testing import is_alive

PHASES: Mapping[str, Callable[[Event], bool]] = {
    "queued": lambda event: event.type == "queued",
    "loading": lambda event: event.type == "started",
    "before a checkpoint": lambda event: event.type == "progress" and 3 <= event.data["step"] < 10,
    "after a checkpoint": lambda event: event.type == "progress" and event.data["step"] >= 25,
    "decoding": lambda event: event.type == "decoding",
    "postprocessing": lambda event: event.type == "postprocessing" and event.data["stage"] in ("encode", "sign"),
    "completed": lambda event: event.type == "completed",
}
IN_THE_MIDDLE = {
    "scheduler": "after a checkpoint",
    "gpu-worker": "after a checkpoint",
    "redis": "after a checkpoint",
}
"""What a job cannot go on without, where it would hurt; all other kills belong to the heavy suite."""


def every_kill() -> list[object]:
    return [
        pytest.param(
            who, phase, marks=() if IN_THE_MIDDLE.get(who) == phase else pytest.mark.slow, id=f"{who}, {phase}"
        )
        for who in (*PROCESSES, "redis")
        for phase in PHASES
    ]


def pid_of(stack: Stack, who: str) -> int:
    return int(stack.state["redis_pid"]) if who == "redis" else stack.pid(who)


@pytest.mark.parametrize(("who", "phase"), every_kill())
def test_kill_nine(chaos: Stack, twin: str, who: str, phase: str) -> None:
    before, killed = pid_of(chaos, who), False
    in_front = make_clip(chaos, steps=10, seed=1) if phase == "queued" else None
    video_id = make_clip(chaos)

    def kill_once(event: Event) -> None:
        nonlocal killed
        if not killed and PHASES[phase](event):
            os.kill(before, signal.SIGKILL)
            killed = True

    seen = follow(chaos, video_id, kill_once)
    assert killed
    wait_for(f"{who} to be back", lambda: pid_of(chaos, who) != before)
    assert_done_once(chaos, video_id, twin)
    if in_front:
        follow(chaos, in_front)
        assert_done_once(chaos, in_front)
    if who == "redis":  # while it was away nothing could be told; SQL said the rest
        assert seen[-1].type in ("completed", "snapshot")
        assert_no_event_twice(seen)
    else:
        assert seen[-1].type == "completed", seen[-1].data
        assert_whole_history(chaos, video_id, seen)
    assert all(repeated <= MAX_REPEATED for repeated in steps_repeated(seen))
    if who == "gpu-worker" and phase == "after a checkpoint":
        resumed = next(event for event in seen if event.type == "resumed")
        assert resumed.data["from_step"] >= 10
    assert_drained(chaos)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kill_up_itself_and_start_again(own_stack: Callable[[], Stack], tmp_path: Path) -> None:
    first = own_stack()
    undisturbed = make_clip(first)
    first.client.videos.wait(undisturbed)
    video = make_clip(first)
    waiting = make_clip(first, steps=4)
    for event in first.client.videos.stream(video):
        if event.type == "checkpoint":
            break
    pids = [first.pid(service) for service in PROCESSES]
    first.process.kill()
    first.process.wait()
    wait_for("the children to die with their parent", lambda: not any(is_alive(pid) for pid in pids), timeout_s=10)

    second = own_stack()
    assert second.api_key == first.api_key
    assert second.client.videos.wait(video).status == "completed"
    assert second.client.videos.wait(waiting).status == "completed"
    equal = {second.output(one, "generate", "latents")["sha256"] for one in (video, undisturbed)}
    assert len(equal) == 1
    assert second.task(video, "generate")["attempt"] == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sigterm_drains_and_the_next_start_goes_on(own_stack: Callable[[], Stack]) -> None:
    first = own_stack()
    video_id = make_clip(first, steps=100)
    for event in first.client.videos.stream(video_id):
        if event.type == "progress" and event.data["step"] >= 12:
            break
    pids = [first.pid(service) for service in PROCESSES]
    assert first.terminate() < 10.5
    assert not any(is_alive(pid) for pid in pids)
    assert first.task(video_id, "generate")["state"] == "ready"
    second = own_stack()
    seen = follow(second, video_id)
    assert_done_once(second, video_id)
    assert steps_repeated(seen) == [0]
    assert_drained(second)
