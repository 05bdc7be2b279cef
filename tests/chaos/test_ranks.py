"""Kill a rank that decides nothing: `vitascope up` starts the whole group again, and the clip is its twin's."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chaos.clips import make_clip
from tests.chaos.invariants import (
    MAX_REPEATED,
    assert_done_once,
    assert_drained,
    assert_whole_history,
    follow,
    steps_repeated,
)

from tests.conftest import SHORT_LEASES, Stack, wait_for
from vitascope_client import Event

TWO_RANKS = {"VITASCOPE_GPU_WORKER_NUM_RANKS": "2"}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Stack]:
    one = Stack(tmp_path / "data", settings=SHORT_LEASES | TWO_RANKS)
    yield one
    one.close()


def ranks_of(stack: Stack) -> dict[int, int]:
    """Return the process of each rank: what has the same parent, torchrun, as the one that does the work."""
    parent = Path(f"/proc/{stack.pid('gpu-worker')}/stat").read_text().rpartition(")")[2].split()[1]
    found = {}
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in children.read_text().split():
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            found |= {int(one.removeprefix(b"RANK=")): int(pid) for one in environ if one.startswith(b"RANK=")}
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)  # torch is imported by two groups of two
def test_a_killed_rank_1_restarts_the_group(pair: Stack) -> None:
    undisturbed = make_clip(pair)
    assert follow(pair, undisturbed)[-1].type == "completed"
    twin = str(pair.output(undisturbed, "generate", "latents")["sha256"])
    before = ranks_of(pair)
    assert before.keys() == {0, 1}
    assert before[0] == pair.pid("gpu-worker")
    video_id, killed = make_clip(pair), False

    def kill_once(event: Event) -> None:
        nonlocal killed
        if not killed and event.type == "progress" and event.data["step"] >= 12:
            os.kill(before[1], signal.SIGKILL)
            killed = True

    seen = follow(pair, video_id, kill_once)
    assert seen[-1].type == "completed", seen[-1].data
    wait_for("rank 0 to be another", lambda: pair.pid("gpu-worker") != before[0])
    after = ranks_of(pair)
    assert after.keys() == {0, 1}
    assert not set(after.values()) & set(before.values())
    assert pair.task(video_id, "generate")["attempt"] == 2
    assert_done_once(pair, video_id, twin)
    assert_whole_history(pair, video_id, seen)
    (repeated,) = steps_repeated(seen)
    assert repeated <= MAX_REPEATED
    assert_drained(pair)
