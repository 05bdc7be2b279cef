"""Where waiting jobs stand: the line of each pool played through at most once per 2 s, for all who ask meanwhile.

The forecasts and what was told of them live in this process: every replica has its own, and a job that was told here
and is reported to another replica is missing from the metric.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from vitascope_common import ids
from vitascope_scheduler import metrics
from vitascope_scheduler.dispatch import Queue
from vitascope_scheduler.forecast import NO_TIME_S, Forecast, Line, WaitingTask, forecast, with_one_more

FRESH_MS = 2_000
MAX_NAMED = 2_000  # tasks of a pool that learn their place, the next of every flow; those behind hear nothing yet
MAX_TOLD = 10_000
_FORESEEN = "foreseen"


@dataclass(frozen=True)
class QueuePosition:
    """Jobs in front of a waiting job (-1: it does not wait) and seconds until it may be done (-1: unknown)."""

    position: int = -1
    eta_s: float = NO_TIME_S


@dataclass(frozen=True)
class _Line:
    """A pool as it was played through: its waiting tasks by job, and how many jobs are in front of each."""

    at_ms: int
    waiting: Line
    tasks: Mapping[str, Sequence[tuple[str, Forecast]]]
    positions: Mapping[str, int]


class Positions:
    """Answers for every job; remembers what it told until the task is done, for the metric."""

    def __init__(self, queue: Queue, clock: Callable[[], int]) -> None:
        self._queue = queue
        self._clock = clock
        self._lines: dict[str, _Line] = {}
        self._playing = asyncio.Lock()
        self._told_end_ms: OrderedDict[str, float] = OrderedDict()

    async def of(self, pools: Collection[str], job_ids: Sequence[str]) -> list[QueuePosition]:
        """Return the place of each job, in this order. Raises UnavailableError."""
        async with self._playing:  # who comes meanwhile finds the answer
            for pool in sorted(pools):
                await self._play(pool)
            return [self._of(pools, job_id) for job_id in job_ids]

    async def foresee(
        self, pool: str, tenant_id: str, class_name: str, share: tuple[float, int], cost_s: float
    ) -> QueuePosition:
        """Return the place of a job that came now, with one task of this cost. Raises UnavailableError."""
        async with self._playing:
            await self._play(pool)
        task = WaitingTask(_FORESEEN, f"{self._clock():016d}", cost_s)
        line = with_one_more(self._lines[pool].waiting, class_name, tenant_id, share, task)
        found = (await asyncio.to_thread(forecast, line)).get(_FORESEEN)
        return QueuePosition() if found is None else QueuePosition(found.position, found.eta_s)

    def done(self, task_id: str) -> None:
        """Measure how wrong the first ETA was that a task was told; one that was told none is not measured."""
        told_end_ms = self._told_end_ms.pop(task_id, None)
        if told_end_ms is not None:
            late_s = (self._clock() - told_end_ms) / 1000
            metrics.ETA_ERROR_S.labels("late" if late_s > 0 else "early").observe(abs(late_s))

    async def _play(self, pool: str) -> None:
        now_ms, line = self._clock(), self._lines.get(pool)
        if line is not None and 0 <= now_ms - line.at_ms < FRESH_MS:
            return
        tasks: dict[str, list[tuple[str, Forecast]]] = {}
        positions: dict[str, int] = {}
        waiting = await self._queue.line(pool, now_ms, MAX_NAMED)
        foreseen = await asyncio.to_thread(forecast, waiting)
        for num_named, (task_id, found) in enumerate(foreseen.items()):
            num_unnamed = found.position - num_named  # each taken for a job of its own
            job_id = ids.job_id_of(task_id)
            positions.setdefault(job_id, len(positions) + num_unnamed)
            tasks.setdefault(job_id, []).append((task_id, found))
        self._lines[pool] = _Line(now_ms, waiting, tasks, positions)

    def _of(self, pools: Collection[str], job_id: str) -> QueuePosition:
        """Return how many jobs go before the first of its tasks, and when the last of them may be done."""
        answer = QueuePosition()
        for pool in pools:
            line = self._lines[pool]
            age_s = (self._clock() - line.at_ms) / 1000
            position = line.positions.get(job_id, answer.position)
            answer = replace(answer, position=position if answer.position < 0 else min(position, answer.position))
            for task_id, found in line.tasks.get(job_id, ()):
                if found.eta_s >= 0:
                    eta_s = max(0.0, found.eta_s - age_s)
                    answer = replace(answer, eta_s=max(answer.eta_s, eta_s))
                    self._remember(task_id, self._clock() + eta_s * 1000)
        return answer

    def _remember(self, task_id: str, end_ms: float) -> None:
        self._told_end_ms.setdefault(task_id, end_ms)
        if len(self._told_end_ms) > MAX_TOLD:
            self._told_end_ms.popitem(last=False)
