"""Where followed jobs stand in their queues: one question for all of them every 2 s, however many clients follow."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog

from vitascope_common.errors import VitascopeError
from vitascope_gateway.hub import Follower
from vitascope_gateway.service import QueuePosition

POLL_S = 2.0
MAX_JOBS_PER_CALL = 1000

_log = structlog.stdlib.get_logger("vitascope.gateway")


class Positions(Protocol):
    """The scheduler, as far as places go. Raises a VitascopeError when it does not say."""

    async def queue_positions(self, job_ids: Sequence[str]) -> Mapping[str, QueuePosition]: ...


class PositionPoller:
    """Tells followers of waiting jobs where these stand, whenever that changes."""

    def __init__(self, scheduler: Positions) -> None:
        self._scheduler = scheduler
        self._told: dict[str, dict[Follower, QueuePosition]] = {}
        self._is_watched = asyncio.Event()

    def watch(self, follower: Follower) -> None:
        """Tell this follower from now on. Idempotent."""
        self._told.setdefault(follower.job_id, {}).setdefault(follower, QueuePosition())
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
        for job_id, place in found.items():
            if place.position is None:
                continue  # it does not wait (any more): its events say what happens
            told = self._told.get(job_id, {})
            for follower, before in told.items():
                if place != before:
                    told[follower] = place
                    follower.put(place)
