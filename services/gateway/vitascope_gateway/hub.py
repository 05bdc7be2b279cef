"""One reader of the event feeds per process (in a Redis Cluster one per feed), however many clients follow."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import structlog

from vitascope_common import keys
from vitascope_common.errors import UnavailableError
from vitascope_common.events import StoredEvent
from vitascope_gateway import metrics
from vitascope_gateway.service import QueuePosition
from vitascope_gateway.told import Told, told

MAX_WAITING_EVENTS = 512
NUM_AT_ONCE = 500
"""So many followers get an event before anything else has its turn."""
RECONNECT_S = 0.2

_log = structlog.stdlib.get_logger("vitascope.gateway")


@dataclass(frozen=True)
class FeedRead:
    """What one read of the feeds has found."""

    events: Sequence[StoredEvent]
    trimmed: frozenset[str] = frozenset()  # feeds that may have lost entries in front of these


class Feeds(Protocol):
    """The live copies of all events. Reading raises UnavailableError when Redis is away."""

    def parts(self) -> Sequence[frozenset[str]]:
        """Name the feeds, put together as one read can cover them; parts come and go independently."""
        ...

    async def positions(self, part: frozenset[str], before: Mapping[str, str]) -> dict[str, str]:
        """Return where to read on: the places `before` where they still make sense, else the end of each feed."""
        ...

    async def read_feeds(self, positions: dict[str, str]) -> FeedRead:
        """Wait for events after `positions`, which are moved on; may return none."""
        ...


class Signal(Enum):
    """What a follower gets between events."""

    CATCH_UP = "catch up"  # the feed was interrupted, is back or has lost something: read the history
    CLOSE = "close"  # this process ends


Item = Told | QueuePosition | Signal


class Follower:
    """What one client has yet to be told. Bounded: a client that reads too slowly is dropped, memory is not."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.is_dropped = False
        self._waiting: list[Item] = []
        self._wake: asyncio.Future[None] | None = None
        self._at_once: Callable[[Told], bool] | None = None

    def put(self, item: Item) -> None:
        """Hand over an event or a place in the queue; when there is no room the follower is lost."""
        if self._at_once is not None and not self._waiting and isinstance(item, Told) and self._at_once(item):
            return
        if len(self._waiting) < MAX_WAITING_EVENTS:
            self._waiting.append(item)
        elif not self.is_dropped:
            metrics.FOLLOWERS_DROPPED.inc()
            self.is_dropped = True
        self._wake_up()

    async def next(self, timeout_s: float, at_once: Callable[[Told], bool] | None = None) -> Sequence[Item]:
        """Return what waits, up to a signal; nothing after `timeout_s` of silence, CLOSE for one that was dropped.

        While nothing waits, events are offered to `at_once` as they come; what it takes is not returned.
        """
        if not self._waiting:
            loop = asyncio.get_running_loop()
            self._wake, self._at_once = loop.create_future(), at_once
            timer = loop.call_later(timeout_s, self._wake_up)
            try:
                await self._wake
            finally:
                timer.cancel()
                self._wake = self._at_once = None
        if self.is_dropped:
            return (Signal.CLOSE,)
        signals = [place for place, item in enumerate(self._waiting) if isinstance(item, Signal)]
        num_items = signals[0] + 1 if signals else len(self._waiting)
        items, self._waiting = self._waiting[:num_items], self._waiting[num_items:]
        return items

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class FeedHub:
    """Reads the feeds and hands each event to those who follow its job."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds
        self._followers: dict[str, set[Follower]] = defaultdict(set)
        self._live: set[frozenset[str]] = set()
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
        """Read until cancelled; Redis may go and come back, as a whole or in parts. Followers are told both times."""
        parts = self._feeds.parts()
        readers = {asyncio.create_task(self._read(part, len(parts))) for part in parts}
        try:
            ended, _ = await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
            for reader in ended:
                reader.result()  # a fault of ours, that whoever runs this must hear of
        finally:
            while readers:  # again, as a library may lose a cancel
                for reader in readers:
                    reader.cancel()
                _, readers = await asyncio.wait(readers, timeout=RECONNECT_S)

    async def _read(self, part: frozenset[str], num_parts: int) -> None:
        positions: dict[str, str] = {}
        while True:
            try:
                positions = await self._feeds.positions(part, positions)
                self._live.add(part)
                metrics.FEED_LIVE.set(len(self._live) == num_parts)
                _log.info("feed.live", num_feeds=len(part))
                self._tell(Signal.CATCH_UP, part)
                async for read in self._reads(positions):
                    if read.trimmed:
                        _log.warning("feed.trimmed", num_feeds=len(read.trimmed))
                        self._tell(Signal.CATCH_UP, read.trimmed)
                    for event in read.events:
                        await self._hand_on(event)
            except UnavailableError as error:
                if part in self._live:
                    _log.warning("feed.away", num_feeds=len(part), error=error.message)
                    self._live.remove(part)
                    metrics.FEED_LIVE.set(0)
                    self._tell(Signal.CATCH_UP, part)
                await asyncio.sleep(RECONNECT_S)

    async def _hand_on(self, event: StoredEvent) -> None:
        followers = tuple(self._followers.get(event.job_id, ()))
        if not followers:
            return
        one = told(event)
        for place, follower in enumerate(followers, 1):
            follower.put(one)
            if place % NUM_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _reads(self, positions: dict[str, str]) -> AsyncIterator[FeedRead]:
        while True:
            yield await self._feeds.read_feeds(positions)

    def close(self) -> None:
        """End every stream; clients resume elsewhere with their Last-Event-ID."""
        self._is_closing = True
        for group in self._followers.values():
            for follower in group:
                follower.put(Signal.CLOSE)

    def _tell(self, signal: Signal, part: frozenset[str]) -> None:
        for job_id, group in self._followers.items():
            if keys.feed(keys.event_shard(job_id)) in part:
                for follower in group:
                    follower.put(signal)
