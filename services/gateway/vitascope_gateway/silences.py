"""Whether followed jobs that have been silent are over: one question to SQL for all that are asked about at a time."""

import asyncio
from collections.abc import Iterable
from typing import Protocol

from vitascope_common.errors import UnavailableError

GATHER_S = 0.05
MAX_JOBS_PER_CALL = 500


class Jobs(Protocol):
    """SQL, as far as silences go. Raises UnavailableError when the database is away."""

    async def open_jobs(self, job_ids: Iterable[str]) -> frozenset[str]:
        """Return those of these jobs that have neither ended nor been deleted."""
        ...


class Silences:
    """Asks about many jobs at once: thousands of followers have their heartbeats, each with a look into SQL."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._asked: set[str] = set()
        self._answer: asyncio.Task[frozenset[str] | None] | None = None

    async def is_open(self, job_id: str) -> bool:
        """Return whether a job can still say something. Raises: UnavailableError."""
        if self._answer is None:
            self._answer = asyncio.create_task(self._ask())
        self._asked.add(job_id)
        answer = await asyncio.shield(self._answer)  # others wait for it too
        if answer is None:
            raise UnavailableError
        return job_id in answer

    async def _ask(self) -> frozenset[str] | None:
        await asyncio.sleep(GATHER_S)
        job_ids, self._asked, self._answer = list(self._asked), set(), None
        found: frozenset[str] = frozenset()
        try:
            for start in range(0, len(job_ids), MAX_JOBS_PER_CALL):
                found |= await self._jobs.open_jobs(job_ids[start : start + MAX_JOBS_PER_CALL])
        except UnavailableError:
            return None
        return found
