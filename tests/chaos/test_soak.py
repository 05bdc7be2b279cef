"""Kills in an order and at moments that a seed decides, while a queue of jobs is worked off."""

import os
import random
import signal
from collections.abc import Sequence

import pytest
from tests.chaos.clips import STEPS, make_clip
from tests.chaos.invariants import MAX_REPEATED, assert_done_once, assert_drained, follow, steps_repeated
from tests.chaos.test_kill import pid_of
from tests.chaos.test_redis_loss import wipe

from tests.conftest import Stack, wait_for
from vitascope_client import Event
from vitascope_common.settings import PROCESSES

NUM_JOBS = 24
NUM_FAULTS = 16
FAULTS = (*PROCESSES, "redis", "wipe", "gpu-worker", "postproc")
"""Two of them twice: those that hold the work."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_faults_lose_and_double_nothing(chaos: Stack, twin: str, chaos_random: random.Random) -> None:
    plan = [(chaos_random.choice(FAULTS), chaos_random.randrange(1, STEPS)) for _ in range(NUM_FAULTS)]
    jobs = []
    for number in range(NUM_JOBS):
        is_twin = chaos_random.random() < 0.5
        jobs.append((make_clip(chaos) if is_twin else make_clip(chaos, steps=6, seed=number), is_twin))
    repeated = _disturb(chaos, [video_id for video_id, _ in jobs], plan)
    for video_id, is_twin in jobs:
        assert_done_once(chaos, video_id, twin if is_twin else None)
    assert all(one <= MAX_REPEATED for one in repeated)
    assert_drained(chaos)


def _disturb(stack: Stack, video_ids: Sequence[str], plan: Sequence[tuple[str, int]]) -> list[int]:
    """Follow the jobs one after the other; the next fault is due after so many more events. Returns steps repeated."""
    faults, num_events, repeated = list(plan), 0, []

    def count(event: Event) -> None:
        nonlocal num_events
        num_events += 1
        if faults and num_events >= faults[0][1]:
            fault, _ = faults.pop(0)
            num_events = 0
            _inject(stack, fault)

    for video_id in video_ids:
        repeated += steps_repeated(follow(stack, video_id, count))
    while faults:  # a wipe has taken events that were counted on
        repeated += steps_repeated(follow(stack, make_clip(stack), count))
    return repeated


def _inject(stack: Stack, fault: str) -> None:
    if fault == "wipe":
        wipe(stack)
        return
    pid = pid_of(stack, fault)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # killed a moment ago and not back yet
        wait_for(f"{fault} to be back", lambda: pid_of(stack, fault) != pid)
        os.kill(pid_of(stack, fault), signal.SIGKILL)
