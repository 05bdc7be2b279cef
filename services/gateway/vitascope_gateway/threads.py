"""A few threads for what would keep everybody else's requests waiting."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from vitascope_common.errors import UnavailableError

T = TypeVar("T")


class BoundedThreads:
    """Runs at most `num_threads` calls at once, and lets at most `max_waiting` more wait for one of them."""

    def __init__(self, name: str, num_threads: int, max_waiting: int) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._most = num_threads + max_waiting
        self._lock = threading.Lock()
        self._num_calls = 0

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Return what the call returns. Cancelled, a call that waits is not made; one that runs keeps its thread.

        Raises:
            UnavailableError: too many wait already.
        """
        with self._lock:
            if self._num_calls >= self._most:
                raise UnavailableError("Too much is being read at the moment; repeat your request in a second.")
            self._num_calls += 1
        future = self._pool.submit(call, *args)
        future.add_done_callback(self._done)
        return await asyncio.wrap_future(future)

    def _done(self, _: "Future[Any]") -> None:
        with self._lock:
            self._num_calls -= 1
