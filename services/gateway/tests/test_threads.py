"""What takes long is done beside the requests, by few at a time."""

import asyncio
import threading

import pytest

from vitascope_common.errors import UnavailableError
from vitascope_gateway.threads import BoundedThreads


def test_few_run_few_wait_and_the_rest_is_told_to_come_back() -> None:
    async def scene() -> None:
        threads, may_end = BoundedThreads("test", num_threads=1, max_waiting=1), threading.Event()
        calls = [asyncio.create_task(threads.run(may_end.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError):
            await threads.run(may_end.wait)
        may_end.set()
        assert await asyncio.gather(*calls) == [True, True]
        assert await threads.run(may_end.wait)

    asyncio.run(scene())


def test_a_call_that_nobody_waits_for_any_more_keeps_its_thread_until_it_ends() -> None:
    async def scene() -> None:
        threads = BoundedThreads("test", num_threads=1, max_waiting=0)
        has_begun, may_end = threading.Event(), threading.Event()

        def call() -> None:
            has_begun.set()
            may_end.wait()

        first = asyncio.create_task(threads.run(call))
        await asyncio.to_thread(has_begun.wait)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        try:
            with pytest.raises(UnavailableError):
                await threads.run(call)
        finally:
            may_end.set()

    asyncio.run(scene())
