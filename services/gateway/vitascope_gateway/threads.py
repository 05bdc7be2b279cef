"""A few threads for what would keep everybody else's requests waiting."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from vitascope_gateway.places import Places

T = TypeVar("T")


class BoundedThreads:
    """Runs at most `num_threads` calls at once, first come, first served; there are `places` to run and to wait."""

    def __init__(self, name: str, num_threads: int, places: Places) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._places = places

    async def run(self, tenant_id: str, call: Callable[..., T], *args: Any) -> T:
        """Return what the call returns. Cancelled, a call that waits is not made; one that runs keeps its thread.

        Raises:
            QuotaExceededError, UnavailableError: too many run and wait already, of this tenant or of all.
        """
        self._places.take(tenant_id)
        future = self._pool.submit(call, *args)
        future.add_done_callback(lambda _: self._places.leave(tenant_id))
        return await asyncio.wrap_future(future)
