"""From the kill of a worker to the first new step of its clip by another: the whole stack, two warm workers, CPU.

Of this time the lease is ten seconds, less what had passed since the last heartbeat; the rest is reaping, hand-over,
claim, reading the checkpoint and one step.
"""

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.figures import Figure
from tests.bench.service import percentile
from tests.chaos.recovery_time import measure

NUM_KILLS = 6
GOAL_S = 20.0


def run() -> list[Figure]:
    """Measure."""
    with TemporaryDirectory(prefix="vitascope-recovery-") as folder:
        durations_s = measure(NUM_KILLS, Path(folder))
    beside = {"median": statistics.median(durations_s), "kills": float(NUM_KILLS)}
    return [Figure("kill to first new step, p95", percentile(durations_s, 0.95), "s", 1.0, GOAL_S, beside=beside)]
