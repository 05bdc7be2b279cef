"""A worker that was away past its lease: refused at every effect, and it stops within a step."""

import os
import signal
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tests.chaos.clips import make_clip
from tests.chaos.invariants import (
    POOL,
    assert_done_once,
    assert_drained,
    assert_whole_history,
    checkpoints,
    follow,
)
from tests.chaos.workers import Worker, holder_pid, num_steps

from tests.conftest import Stack, wait_for
from vitascope_client import Event
from vitascope_common import events
from vitascope_common.events import EventType
from vitascope_common.redis_clients import connect
from vitascope_proto.v1 import jobs_pb2, scheduler_pb2, scheduler_pb2_grpc

STEPS = 60


@pytest.mark.slow
def test_a_zombie_is_refused_and_stops(chaos: Stack, second: Worker) -> None:
    undisturbed = make_clip(chaos, STEPS)
    follow(chaos, undisturbed)
    twin = chaos.output(undisturbed, "generate", "latents")["sha256"]
    metrics: dict[int, Callable[[], str]] = {
        chaos.pid("gpu-worker"): lambda: chaos.metrics("gpu-worker"),
        second.pid: lambda: second.metrics,
    }
    steps_before = {pid: num_steps(read()) for pid, read in metrics.items()}

    video_id = make_clip(chaos, STEPS)
    zombie, is_back = 0, False

    def disturb(event: Event) -> None:
        nonlocal zombie, is_back
        if event.type == "checkpoint" and event.data["step"] == 20 and not zombie:
            zombie = holder_pid(chaos, video_id)
            os.kill(zombie, signal.SIGSTOP)
        elif event.type == "checkpoint" and event.data["step"] == 30 and zombie:
            os.kill(zombie, signal.SIGCONT)  # the next attempt is in the middle of its steps
            is_back = True

    try:
        seen = follow(chaos, video_id, disturb)
    finally:
        if zombie:
            os.kill(zombie, signal.SIGCONT)
    assert seen[-1].type == "completed"
    assert is_back

    # The step that it was frozen in, those (of some 50 ms) until the scheduler has answered over a connection that may
    # have to be made anew, and the one it stops within: far fewer than were left.
    drops = lambda: chaos.service_log("gpu-worker") + second.log  # noqa: E731
    wait_for("the zombie to drop its work", lambda: f"{video_id}.generate.0" in _dropped(drops()))
    resumed_at = [event.type for event in seen].index("resumed")
    said = max(event.data["step"] for event in seen[:resumed_at] if event.type == "progress")
    taken = num_steps(metrics[zombie]()) - steps_before[zombie]
    assert said >= 20
    assert taken <= said + 12

    # Checkpoints, events, reports and ledger are those of the second attempt alone.
    assert_done_once(chaos, video_id, twin)
    assert [row["outcome"] for row in _ledger(chaos, video_id, "generate")] == ["lost", "done"]
    assert chaos.task(video_id, "generate")["attempt"] == 2
    assert all(one["attempt"] == 2 for one in checkpoints(chaos, video_id))
    after = [event for event in seen[resumed_at:] if event.type == "progress"]
    steps = [event.data["step"] for event in after if event.data["phase"] == "denoising"]
    assert steps == list(range(steps[0], STEPS + 1))
    assert_whole_history(chaos, video_id, seen)
    assert_drained(chaos)
    _assert_refused(chaos, video_id)


def _dropped(log: str) -> str:
    return "\n".join(line for line in log.splitlines() if "task.dropped" in line)


def _ledger(stack: Stack, video_id: str, stage: str) -> list[dict[str, Any]]:
    return stack.sql("SELECT * FROM ledger WHERE task_id = ? ORDER BY attempt", f"{video_id}.{stage}.0")


def _assert_refused(stack: Stack, video_id: str) -> None:
    """Say as the first attempt, word by word, what a zombie could say."""
    before = (stack.task(video_id, "generate"), _ledger(stack, video_id, "generate"))
    task_id = f"{video_id}.generate.0"
    checkpoint = jobs_pb2.Checkpoint(done=50, unit="step")
    checkpoint.artifacts.add(name="checkpoint.rank0", role="checkpoint", key="work/stolen", sha256="0" * 64)
    status = scheduler_pb2.TaskStatus(task_id=task_id, attempt=1, used_s=1000.0, checkpoint=checkpoint)
    with grpc.insecure_channel(f"127.0.0.1:{stack.port('scheduler')}") as channel:
        scheduler: Any = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        beat = scheduler_pb2.HeartbeatRequest(worker_id="zombie", executor="gpu-worker", pool=POOL, tasks=[status])
        (answer,) = scheduler.Heartbeat(beat, timeout=5).actions
        assert answer.action == scheduler_pb2.ACTION_STALE
        for outcome in (scheduler_pb2.OUTCOME_DONE, scheduler_pb2.OUTCOME_YIELDED, scheduler_pb2.OUTCOME_FAILED):
            report = scheduler_pb2.ReportRequest(
                worker_id="zombie", task_id=task_id, attempt=1, outcome=outcome, used_s=1000.0, checkpoint=checkpoint
            )
            assert not scheduler.Report(report, timeout=5).accepted
        claim = scheduler_pb2.ClaimRequest(task_id=task_id, worker_id="zombie")
        assert not scheduler.Claim(claim, timeout=5).granted
    redis = connect(stack.state["redis_url"])
    event = events.Event(video_id, EventType.PROGRESS, {"step": 1}, task=task_id, attempt=1)
    assert events.append(redis, event) is None
    redis.close()
    assert (stack.task(video_id, "generate"), _ledger(stack, video_id, "generate")) == before
