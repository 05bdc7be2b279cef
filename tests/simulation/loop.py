"""An asyncio event loop on a simulated clock: when nobody can run, time jumps to the next timer.

Nothing in the simulation waits for the outside world: Redis and SQLite are called synchronously inside one step of the
loop. So asyncio's own order (first in, first out; timers by time) is the only order there is: always the same.
"""

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any

START_MS = 1_700_000_000_000
"""What the simulated wall clock says at the beginning."""


class _Timeless(selectors.BaseSelector):
    """A selector that watches nothing: instead of waiting it moves the clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        return self._keys[fd]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits and nothing will ever happen")
        self.now_s += max(0.0, timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Time begins at 0 and passes only when everybody waits."""

    def __init__(self) -> None:
        self._timeless = _Timeless()
        super().__init__(self._timeless)

    def time(self) -> float:
        return self._timeless.now_s


class Clock:
    """The simulated wall clock in Unix milliseconds, as somebody whose clock is wrong by `skew_ms` reads it."""

    def __init__(self, loop: SimulatedLoop, skew_ms: int = 0) -> None:
        self._loop = loop
        self.skew_ms = skew_ms

    def __call__(self) -> int:
        return START_MS + int(self._loop.time() * 1000) + self.skew_ms
