"""Somebody sets the clock while jobs run: no lease is lost by it, and a dead worker is still found."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.chaos.clips import make_clip
from tests.chaos.invariants import assert_done_once, assert_drained, assert_whole_history, follow

from tests.conftest import SHORT_LEASES, Stack, wait_for
from vitascope_client import Event

HOUR_S = 3600
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def clock_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clock")


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory, clock_dir: Path) -> Iterator[Stack]:
    """A stack whose services read the clock that `move` sets."""
    path = os.pathsep.join((str(Path(__file__).parent / "moved_clock"), os.environ.get("PYTHONPATH", "")))
    settings = {**SHORT_LEASES, "PYTHONPATH": path.rstrip(os.pathsep), "MOVED_CLOCK_DIR": str(clock_dir)}
    one = Stack(tmp_path_factory.mktemp("moving") / "data", settings=settings)
    yield one
    one.close()


@pytest.fixture
def move(clock_dir: Path) -> Iterator[Callable[[float], None]]:
    def to(offset_s: float) -> None:
        new = clock_dir / "new"
        new.write_text(str(offset_s))
        new.rename(clock_dir / "vitascope_scheduler")

    yield to
    to(0)


def followed(stack: Stack, video_id: str, on_event: Callable[[Event], None]) -> None:
    seen = follow(stack, video_id, on_event)
    assert seen[-1].type == "completed"
    assert_whole_history(stack, video_id, seen)


@pytest.mark.parametrize("hours", [1, -1])
def test_a_jump_costs_no_lease(moving: Stack, move: Callable[[float], None], hours: int) -> None:
    video_id, waiting = make_clip(moving), make_clip(moving, steps=4)

    def jump(event: Event) -> None:
        if event.type == "progress" and event.data["step"] == 15:
            move(hours * HOUR_S)

    followed(moving, video_id, jump)
    followed(moving, waiting, lambda event: None)
    for one in (video_id, waiting):
        assert_done_once(moving, one)
        assert moving.task(one, "generate")["attempt"] == 1
    assert_drained(moving)


@pytest.mark.parametrize("hours", [1, -1])
def test_a_worker_that_dies_at_the_jump_is_found(moving: Stack, move: Callable[[float], None], hours: int) -> None:
    before, video_id = moving.pid("gpu-worker"), make_clip(moving)
    is_done = False

    def jump(event: Event) -> None:
        nonlocal is_done
        if event.type == "progress" and event.data["step"] >= 15 and not is_done:
            moving.kill("gpu-worker")
            move(hours * HOUR_S)
            is_done = True

    followed(moving, video_id, jump)
    wait_for("the worker to be back", lambda: moving.pid("gpu-worker") != before)
    assert_done_once(moving, video_id)
    assert moving.task(video_id, "generate")["attempt"] == 2
    assert_drained(moving)


@pytest.mark.parametrize("hours", [1, -1])
def test_a_worker_that_dies_after_the_jump_is_found(moving: Stack, move: Callable[[float], None], hours: int) -> None:
    before, video_id = moving.pid("gpu-worker"), make_clip(moving)
    is_done = False

    def jump(event: Event) -> None:
        nonlocal is_done
        if event.type == "progress" and event.data["step"] == 5 and not is_done:
            move(hours * HOUR_S)
        if event.type == "progress" and event.data["step"] >= 25 and not is_done:
            moving.kill("gpu-worker")
            is_done = True

    followed(moving, video_id, jump)
    wait_for("the worker to be back", lambda: moving.pid("gpu-worker") != before)
    assert_done_once(moving, video_id)
    assert moving.task(video_id, "generate")["attempt"] == 2
    assert_drained(moving)
