"""Hints: the scheduler hears at once that a job was promised. What a hint does not reach, the reconciler finds."""

import asyncio
from contextvars import Context, copy_context

import structlog

from vitascope_common.errors import VitascopeError
from vitascope_gateway.service import Scheduler

SUBMIT_TIMEOUT_S = 1.0
PAUSE_S = 0.02
"""Between two calls: under load many jobs share one; a job that comes alone is told of at once."""

_log = structlog.stdlib.get_logger("vitascope.gateway")


class Hints:
    """Tells the scheduler in the background, by one call at a time.

    The scheduler looks at everything that is committed, so the jobs of one call's time share the next one.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._call: asyncio.Task[None] | None = None
        self._next: tuple[str, Context] | None = None  # the newest job since the call began, and whose trace it is in

    def tell(self, job_id: str) -> None:
        """Say that a job is committed."""
        if self._call is None:
            self._begin(job_id, copy_context())
        else:
            self._next = job_id, copy_context()

    async def drain(self) -> None:
        """Let what is under way end."""
        for _ in range(2):  # one call, and the one for those that came meanwhile
            if self._call is not None:
                await asyncio.wait([self._call], timeout=SUBMIT_TIMEOUT_S + 2 * PAUSE_S)

    def _begin(self, job_id: str, context: Context) -> None:
        self._call = asyncio.create_task(self._submit(job_id), context=context)
        self._call.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[None]) -> None:
        following, self._call, self._next = self._next, None, None
        if following is not None:
            self._begin(*following)

    async def _submit(self, job_id: str) -> None:
        try:
            await self._scheduler.submit(job_id, SUBMIT_TIMEOUT_S)
        except VitascopeError as error:
            _log.info("job.submit_hint_failed", job=job_id, code=error.code)
        await asyncio.sleep(PAUSE_S)
