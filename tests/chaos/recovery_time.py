"""From the kill of a worker to the first new step: `python -m tests.chaos.recovery_time [N]` prints seconds as JSON.

Two workers with the model loaded, leases as shipped; the one that holds the job is killed in the middle of its steps,
and the other goes on.
"""

import contextlib
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.clips import make_clip
from tests.chaos.invariants import POOL
from tests.chaos.workers import Worker, holder_pid

from tests.conftest import Stack
from vitascope_common import keys
from vitascope_common.redis_clients import connect

STEPS = 200
PATIENCE_S = 60.0


def measure(num_kills: int, folder: Path) -> list[float]:
    """Return the seconds from SIGKILL to the first progress event of a new step, one figure per kill."""
    with contextlib.ExitStack() as opened:
        stack = Stack(folder / "data")
        opened.callback(stack.close)
        second: Worker | None = None
        durations_s = []
        for number in range(num_kills):
            if second is None:
                second = Worker(stack, folder / f"worker-{number}")
                opened.callback(second.close)
            _warm_up(stack)
            killed_pid, took_s = _kill_once(stack)
            durations_s.append(took_s)
            if killed_pid == second.pid:
                second.close()
                second = None
    return durations_s


def summary(durations_s: Sequence[float]) -> dict[str, float]:
    """Return n, median and p95 (the value that 95 % do not exceed)."""
    ordered = sorted(durations_s)
    p95_s = ordered[math.ceil(0.95 * len(ordered)) - 1]
    return {"n": len(ordered), "median_s": round(statistics.median(ordered), 2), "p95_s": round(p95_s, 2)}


def _warm_up(stack: Stack) -> None:
    """Let both workers make clips until both have the model loaded."""
    redis = connect(stack.state["redis_url"])
    until_s = time.monotonic() + PATIENCE_S
    try:
        while True:
            for video_id in [make_clip(stack, steps=6, seed=number) for number in range(3)]:
                stack.client.videos.wait(video_id)
            models = [redis.hget(name, "models") or "" for name in redis.scan_iter(keys.worker(POOL, "*"))]
            if len(models) == 2 and all("vita-mini-6" in one for one in models):
                return
            if time.monotonic() > until_s:
                raise TimeoutError(f"the two workers did not become warm: {models}")
    finally:
        redis.close()


def _kill_once(stack: Stack) -> tuple[int, float]:
    """Kill whoever makes the clip; return the process and how long it took until another has made a step of it."""
    video_id = make_clip(stack, STEPS)
    killed_pid, killed_s, took_s = 0, 0.0, 0.0
    from_step: int | None = None
    for event in stack.client.videos.stream(video_id):
        if event.type == "resumed":
            from_step = int(event.data["from_step"])
        if event.type != "progress" or event.data["phase"] != "denoising":
            continue
        if event.data["step"] >= 15 and not killed_pid:
            killed_pid = holder_pid(stack, video_id)
            os.kill(killed_pid, signal.SIGKILL)
            killed_s = time.monotonic()
        elif from_step is not None and event.data["step"] > from_step:
            took_s = time.monotonic() - killed_s
            break
    stack.client.videos.cancel(video_id)
    return killed_pid, took_s


def main() -> None:
    """Measure as often as the command line says, else ten times."""
    num_kills = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory(prefix="vitascope-recovery-") as folder:
        durations_s = measure(num_kills, Path(folder))
    sys.stdout.write(json.dumps({**summary(durations_s), "all_s": [round(one, 2) for one in durations_s]}) + "\n")


if __name__ == "__main__":
    main()
