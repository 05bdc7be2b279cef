"""Where followed jobs stand in their queues: one question for all of them every 2 s, however many clients follow."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from vitascope_common.errors import VitascopeError
from vitascope_gateway.hub import Follower
from vitascope_gateway.service import QueuePosition

POLL_S = 2.0
MAX_JOBS_PER_CALL = 1000
MIN_SHIFT_S = 5.0
MIN_SHIFT = 0.1  # of the time that is left
"""An expected end that moves by no more than the larger of the two is no news: clients count down by themselves."""

_log = structlog.stdlib.get_logger("vitascope.gateway")


class Positions(Protocol):
    """The scheduler, as far as places go. Raises a VitascopeError when it does not say."""

    async def queue_positions(self, job_ids: Sequence[str]) -> Mapping[str, QueuePosition]: ...


@dataclass(frozen=True)
class _Told:
    """What a follower knows: a position, and when on our clock the job may be finished (None: nobody knows)."""

    position: int | None = None
    end_s: float | None = None

    def is_news(self, place: QueuePosition, now_s: float) -> bool:
        """Whether the follower should hear of this place."""
        if place.position != self.position:
            return True
        if place.eta_s is None or self.end_s is None:
            return (place.eta_s is None) != (self.end_s is None)
        return abs(now_s + place.eta_s - self.end_s) > max(MIN_SHIFT_S, MIN_SHIFT * place.eta_s)


class PositionPoller:
    """Tells followers of waiting jobs where these stand, whenever that changes."""

    def __init__(self, scheduler: Positions, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = scheduler
        self._clock_s = clock_s
        self._told: dict[str, dict[Follower, _Told]] = {}
        self._is_watched = asyncio.Event()

    def watch(self, follower: Follower) -> None:
        """Tell this follower from now on. Idempotent."""
        self._told.setdefault(follower.job_id, {}).setdefault(follower, _Told())
        self._is_watched.set()

    def unwatch(self, follower: Follower) -> None:
        """Tell it nothing more. Idempotent."""
        followers = self._told.get(follower.job_id, {})
        followers.pop(follower, None)
        if not followers:
            self._told.pop(follower.job_id, None)
        if not self._told:
            self._is_watched.clear()

    async def run(self) -> None:
        """Ask every 2 s while somebody waits, until cancelled. Without an answer followers hear nothing new."""
        while True:
            await self._is_watched.wait()
            job_ids = list(self._told)
            for start in range(0, len(job_ids), MAX_JOBS_PER_CALL):
                await self._ask(job_ids[start : start + MAX_JOBS_PER_CALL])
            await asyncio.sleep(POLL_S)

    async def _ask(self, job_ids: Sequence[str]) -> None:
        try:
            found = await self._scheduler.queue_positions(job_ids)
        except VitascopeError as error:
            _log.debug("positions.unknown", jobs=len(job_ids), code=error.code)
            return
        now_s = self._clock_s()
        for job_id, place in found.items():
            if place.position is None:
                continue  # it does not wait (any more): its events say what happens
            told = self._told.get(job_id, {})
            for follower, before in told.items():
                if before.is_news(place, now_s):
                    told[follower] = _Told(place.position, None if place.eta_s is None else now_s + place.eta_s)
                    follower.put(place)
