"""Hints: each job is told of by a call that begins after it was committed, and calls do not pile up."""

import asyncio

from vitascope_common.errors import UnavailableError
from vitascope_gateway.adapters.services import SchedulerClient
from vitascope_gateway.hints import Hints


class Slow(SchedulerClient):
    """A scheduler whose calls last until they are let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.let_go = asyncio.Event()
        self.is_away = False

    async def submit(self, job_id: str, timeout_s: float) -> None:
        self.begun.append(job_id)
        await self.let_go.wait()
        if self.is_away:
            raise UnavailableError


async def test_what_comes_during_a_call_shares_the_next_one():
    scheduler = Slow()
    hints = Hints(scheduler)
    for job_id in ("a", "b", "c"):
        hints.tell(job_id)
        await asyncio.sleep(0)
    assert scheduler.begun == ["a"]
    scheduler.let_go.set()
    await hints.drain()
    assert scheduler.begun == ["a", "c"]  # a call after the commit of b and c
    hints.tell("d")
    await hints.drain()
    assert scheduler.begun == ["a", "c", "d"]


async def test_a_call_that_fails_keeps_no_later_hint_back():
    scheduler = Slow()
    scheduler.is_away = True
    scheduler.let_go.set()
    hints = Hints(scheduler)
    for job_id in ("a", "b"):
        hints.tell(job_id)
        await hints.drain()
    assert scheduler.begun == ["a", "b"]
