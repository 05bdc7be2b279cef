"""One reader of the event feeds per process, however many clients follow."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Protocol

import structlog

from vitascope_common.errors import UnavailableError
from vitascope_common.events import StoredEvent
from vitascope_gateway import metrics

MAX_WAITING_EVENTS = 512
RECONNECT_S = 0.2

_log = structlog.stdlib.get_logger("vitascope.gateway")


class Feeds(Protocol):
    """The live copies of all events. Both methods raise UnavailableError when Redis is away."""

    async def positions(self, before: Mapping[str, str]) -> dict[str, str]:
        """Return where to read on: the places `before` where they still make sense, else the end of each feed."""
        ...

    async def read_feeds(self, positions: dict[str, str]) -> Sequence[StoredEvent]:
        """Wait for events after `positions`, which are moved on; may return none."""
        ...


class Signal(Enum):
    """What a follower gets between events."""

    CATCH_UP = "catch up"  # the feed was interrupted or is back: read the history
    CLOSE = "close"  # this process ends


class Follower:
    """What one client has yet to be told. Bounded: a client that reads too slowly is dropped, memory is not."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.is_dropped = False
        self._waiting: asyncio.Queue[StoredEvent | Signal] = asyncio.Queue(MAX_WAITING_EVENTS)

    def put(self, item: StoredEvent | Signal) -> None:
        """Hand over an event; when there is no room the follower is lost."""
        try:
            self._waiting.put_nowait(item)
        except asyncio.QueueFull:
            if not self.is_dropped:
                metrics.FOLLOWERS_DROPPED.inc()
            self.is_dropped = True

    async def next(self, timeout_s: float) -> StoredEvent | Signal | None:
        """Return the next item, None after `timeout_s` of silence, CLOSE for one that was dropped."""
        if self.is_dropped:
            return Signal.CLOSE
        try:
            async with asyncio.timeout(timeout_s):
                return await self._waiting.get()
        except TimeoutError:
            return None


class FeedHub:
    """Reads the feeds and hands each event to those who follow its job."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds
        self._followers: dict[str, set[Follower]] = defaultdict(set)
        self._is_closing = False

    @property
    def num_followers(self) -> int:
        """How many streams are open."""
        return sum(len(group) for group in self._followers.values())

    @contextmanager
    def subscribe(self, job_id: str) -> Iterator[Follower]:
        """Follow a job inside the block."""
        follower = Follower(job_id)
        if self._is_closing:
            follower.put(Signal.CLOSE)
        self._followers[job_id].add(follower)
        metrics.FOLLOWERS.inc()
        try:
            yield follower
        finally:
            metrics.FOLLOWERS.dec()
            self._followers[job_id].discard(follower)
            if not self._followers[job_id]:
                del self._followers[job_id]

    async def run(self) -> None:
        """Read until cancelled; Redis may go and come back. Followers are told both times."""
        positions: dict[str, str] = {}
        is_live = False
        while True:
            try:
                positions = await self._feeds.positions(positions)
                is_live = True
                metrics.FEED_LIVE.set(1)
                _log.info("feed.live")
                self._tell_all(Signal.CATCH_UP)
                async for events in self._batches(positions):
                    for event in events:
                        for follower in self._followers.get(event.job_id, ()):
                            follower.put(event)
            except UnavailableError as error:
                if is_live:
                    _log.warning("feed.away", error=error.message)
                    metrics.FEED_LIVE.set(0)
                    self._tell_all(Signal.CATCH_UP)
                is_live = False
                await asyncio.sleep(RECONNECT_S)

    async def _batches(self, positions: dict[str, str]) -> AsyncIterator[Sequence[StoredEvent]]:
        while True:
            yield await self._feeds.read_feeds(positions)

    def close(self) -> None:
        """End every stream; clients resume elsewhere with their Last-Event-ID."""
        self._is_closing = True
        self._tell_all(Signal.CLOSE)

    def _tell_all(self, signal: Signal) -> None:
        for group in self._followers.values():
            for follower in group:
                follower.put(signal)
