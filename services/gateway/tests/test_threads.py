"""What takes long is done beside the requests, by few at a time, and not for one tenant alone."""

import asyncio
import threading

import pytest

from vitascope_common.errors import QuotaExceededError, UnavailableError
from vitascope_gateway.places import Places
from vitascope_gateway.threads import BoundedThreads


def test_few_run_few_wait_and_the_rest_is_told_to_come_back() -> None:
    async def scene() -> None:
        threads, may_end = BoundedThreads("test", 1, Places("tests run", 3, 2)), threading.Event()
        calls = [asyncio.create_task(threads.run("acme", may_end.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QuotaExceededError, match="Too many of your tests run at the moment, at most 2 at once"):
            await threads.run("acme", may_end.wait)
        calls.append(asyncio.create_task(threads.run("other", may_end.wait)))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="Too many tests run at the moment"):
            await threads.run("other", may_end.wait)
        may_end.set()
        assert await asyncio.gather(*calls) == [True] * 3
        assert await threads.run("acme", may_end.wait)

    asyncio.run(scene())


def test_a_call_that_nobody_waits_for_any_more_keeps_its_thread_until_it_ends() -> None:
    async def scene() -> None:
        threads = BoundedThreads("test", 1, Places("tests run", 1, 1))
        has_begun, may_end = threading.Event(), threading.Event()

        def call() -> None:
            has_begun.set()
            may_end.wait()

        first = asyncio.create_task(threads.run("acme", call))
        await asyncio.to_thread(has_begun.wait)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        try:
            with pytest.raises(QuotaExceededError):
                await threads.run("acme", call)
        finally:
            may_end.set()

    asyncio.run(scene())
