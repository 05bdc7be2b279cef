"""Redis forgets everything, or its last second, or is another one: SQL knows, and nothing is lost or done twice."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.chaos.clips import make_clip
from tests.chaos.invariants import assert_done_once, assert_drained, assert_no_event_twice, follow

from tests.conftest import SHORT_LEASES, Stack, wait_for
from vitascope_client import Event
from vitascope_common import keys
from vitascope_common.redis_clients import connect
from vitascope_common.testing import SentinelServers, redis_sentinel


@dataclass(frozen=True)
class FailingOver:
    """A stack on a master with a replica, under Sentinel."""

    stack: Stack
    servers: SentinelServers
    twin: str


@pytest.fixture
def failing_over(tmp_path: Path, twin: str) -> Iterator[FailingOver]:
    with redis_sentinel(tmp_path / "redis") as servers:
        one = Stack(tmp_path / "data", settings={**SHORT_LEASES, "VITASCOPE_REDIS_URL": servers.url})
        try:
            yield FailingOver(one, servers, twin)
        finally:
            one.close()


def wipe(stack: Stack) -> None:
    """Queues, leases, inboxes, events and the broker: all gone."""
    redis = connect(stack.state["redis_url"])
    redis.flushall()
    redis.close()


@pytest.mark.parametrize("num_jobs", [10, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_a_wipe_with_many_jobs(chaos: Stack, twin: str, num_jobs: int) -> None:
    first = make_clip(chaos)
    others = [make_clip(chaos, steps=2, seed=number) for number in range(num_jobs - 1)]
    wiped = 0

    def disturb(event: Event) -> None:
        nonlocal wiped
        is_due = event.type == "progress" and event.data["step"] in (15, 30)
        if is_due or event.type == "postprocessing":
            wipe(chaos)
            wiped += 1

    seen = follow(chaos, first, disturb)
    assert wiped >= 2
    assert seen[-1].type in ("completed", "snapshot")
    assert_no_event_twice(seen)
    assert_done_once(chaos, first, twin)
    wait_for("half of them", lambda: num_finished(chaos, others) >= len(others) // 2, timeout_s=5 * num_jobs)
    wipe(chaos)
    wait_for("all of them", lambda: num_finished(chaos, others) == len(others), timeout_s=5 * num_jobs)
    for video_id in others:
        assert_done_once(chaos, video_id)
    assert_drained(chaos)


def num_finished(stack: Stack, video_ids: list[str]) -> int:
    rows = stack.sql("SELECT job_id FROM jobs WHERE state = 'completed'")
    return len({row["job_id"] for row in rows} & set(video_ids))


@contextlib.contextmanager
def unattended(stack: Stack) -> Iterator[None]:
    """Keep `up` from starting again what is killed in the block."""
    os.kill(stack.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(stack.process.pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["queued", "denoising", "postprocessing"])
def test_a_restart_without_the_last_seconds(chaos: Stack, twin: str, phase: str) -> None:
    """Redis comes back with what its log held before the job was handed out, or some steps ago."""
    log, kept = chaos.data_dir / "redis" / "appendonly.aof", chaos.data_dir / "appendonly.aof.kept"
    before = chaos.state["redis_pid"]
    if phase == "queued":
        shutil.copy(log, kept)
    in_front = make_clip(chaos, steps=10, seed=1)
    video_id = make_clip(chaos)
    is_lost = False

    def disturb(event: Event) -> None:
        nonlocal is_lost
        if event.type == "progress" and event.data["step"] == 5 and not kept.exists():
            shutil.copy(log, kept)
        is_due = {
            "queued": event.type == "queued",
            "denoising": event.type == "progress" and event.data["step"] >= 25,
            "postprocessing": event.type == "postprocessing",
        }[phase]
        if is_due and not is_lost:
            with unattended(chaos):
                os.kill(before, signal.SIGKILL)
                shutil.copy(kept, log)
            is_lost = True

    try:
        seen = follow(chaos, video_id, disturb)
    finally:
        kept.unlink(missing_ok=True)
    assert is_lost
    assert seen[-1].type in ("completed", "snapshot")
    assert_no_event_twice(seen)
    wait_for("Redis to be back", lambda: chaos.state["redis_pid"] != before)
    follow(chaos, in_front)
    assert_done_once(chaos, video_id, twin)
    assert_done_once(chaos, in_front)
    assert_drained(chaos)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("phase", ["queued", "denoising", "postprocessing"])
def test_a_failover_to_a_replica_that_lacks_the_last_second(failing_over: FailingOver, phase: str) -> None:
    stack, twin = failing_over.stack, failing_over.twin
    is_cut_off = phase == "queued"
    if is_cut_off:
        failing_over.servers.hold_back_replica()
    video_id = make_clip(stack)
    is_over = False

    def disturb(event: Event) -> None:
        nonlocal is_cut_off, is_over
        step = event.data.get("step", 0) if event.type == "progress" else 0
        cut_off, over = {
            "queued": (False, event.type == "queued"),
            "denoising": (step >= 12, step >= 20),
            "postprocessing": (step >= 36, event.type == "postprocessing"),
        }[phase]
        if cut_off and not is_cut_off:
            failing_over.servers.hold_back_replica()
            is_cut_off = True
        elif over and is_cut_off and not is_over:
            failing_over.servers.fail_over()
            is_over = True

    seen = follow(stack, video_id, disturb)
    assert is_over
    assert seen[-1].type in ("completed", "snapshot")
    assert_no_event_twice(seen)
    assert_done_once(stack, video_id, twin)
    assert_drained(stack)


def test_a_history_that_is_gone_is_one_snapshot(chaos: Stack) -> None:
    video_id = make_clip(chaos, steps=2)
    seen = follow(chaos, video_id)
    redis = connect(chaos.state["redis_url"])
    redis.delete(keys.events(video_id), keys.event_fence(video_id))
    redis.close()
    (again,) = list(chaos.client.videos.stream(video_id, last_event_id=seen[0].id))
    assert again.type == "snapshot"
    assert again.data["status"] == "completed"
