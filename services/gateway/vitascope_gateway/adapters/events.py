"""Redis: the history of each job and the live feeds."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import structlog
from redis.asyncio import Redis

from vitascope_common import keys, redis_clients
from vitascope_common.errors import UnavailableError
from vitascope_common.events import StoredEvent, from_feed, from_history, id_order
from vitascope_gateway.hub import FeedRead
from vitascope_gateway.stream import History

BLOCK_MS = 5000
BATCH = 500
"""Entries that are read at once of each feed; far fewer than a feed keeps."""
PAGE = 64
"""Events of a history that are read at once, for each follower that catches up: one that does not read holds them."""

_STREAM_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}", re.ASCII)

_log = structlog.stdlib.get_logger("vitascope.gateway")


class RedisEvents:
    """Implements stream.Histories and hub.Feeds; `blocking` has connections of its own for the feeds."""

    def __init__(self, redis: Redis, blocking: Redis) -> None:
        self._redis = redis
        self._blocking = blocking

    async def ping(self) -> None:
        """Raise UnavailableError unless Redis answers."""
        async with _translated():
            await self._redis.ping()

    async def read(self, job_id: str, after: str) -> History:
        """Return the page after one event, and that event if it is still held."""
        if after and not _STREAM_ID.fullmatch(after):
            return History([], None, has_more=False)
        count = PAGE + 1 if after else PAGE  # both in one read: nothing is trimmed in between
        async with _translated():
            entries: Any = await self._redis.xrange(keys.events(job_id), min=after or "-", count=count)
        found, has_more = _events(job_id, entries), len(entries) == count
        if not after:
            return History(found, None, has_more)
        if found and found[0].id == after:
            return History(found[1:], found[0], has_more)
        return History([], None, has_more=False)

    async def event(self, job_id: str, event_id: str) -> StoredEvent | None:
        """Return one event if it is still held."""
        if not _STREAM_ID.fullmatch(event_id):
            return None
        async with _translated():
            entries: Any = await self._redis.xrange(keys.events(job_id), min=event_id, max=event_id)
        return next((one for one in _events(job_id, entries) if one.id == event_id), None)

    async def newest_id(self, job_id: str) -> str:
        """Return the id of a job's last event; "" when there is none."""
        async with _translated():
            newest: Any = await self._redis.xrevrange(keys.events(job_id), count=1)
        return newest[0][0] if newest else ""

    def parts(self) -> Sequence[frozenset[str]]:
        """Put all feeds into one read; in a Cluster, where a read must keep to one hash slot, each into its own."""
        feeds = [keys.feed(shard) for shard in range(keys.NUM_EVENT_SHARDS)]
        if redis_clients.is_cluster(self._blocking):
            return [frozenset({feed}) for feed in feeds]
        return [frozenset(feeds)]

    async def positions(self, part: frozenset[str], before: Mapping[str, str]) -> dict[str, str]:
        """Return the end of each feed, or the place before where the feed still reaches beyond it."""
        positions = {}
        async with _translated():
            for feed in sorted(part):
                newest: Any = await self._blocking.xrevrange(feed, count=1)
                end = newest[0][0] if newest else "0-0"
                start = before.get(feed, end)
                positions[feed] = start if id_order(start) <= id_order(end) else "0-0"
        return positions

    async def read_feeds(self, positions: dict[str, str]) -> FeedRead:
        """Wait up to 5 s for events after `positions`, which are moved on.

        Whoever lags so far behind that a feed is trimmed before it is read gets a full batch: only then is that asked.
        """
        found: list[StoredEvent] = []
        trimmed: set[str] = set()
        async with _translated():
            answer: Any = await self._blocking.xread(cast(Any, positions), count=BATCH, block=BLOCK_MS)
        for feed, entries in answer.items() if isinstance(answer, dict) else answer or ():
            if len(entries) == BATCH and await self._is_trimmed(feed, positions[feed]):
                trimmed.add(feed)
            for entry_id, fields in entries:
                positions[feed] = entry_id
                try:
                    found.append(from_feed(fields))
                except (KeyError, ValueError):  # of a newer version than this process
                    _log.warning("feed.unknown_event", feed=feed, entry=entry_id)
        return FeedRead(found, frozenset(trimmed))

    async def _is_trimmed(self, feed: str, position: str) -> bool:
        """Whether something after a position may be gone: nothing is while that itself, or an older one, is held."""
        async with _translated():
            oldest: Any = await self._blocking.xrange(feed, count=1)
        return not oldest or id_order(oldest[0][0]) > id_order(position)


def _events(job_id: str, entries: Any) -> list[StoredEvent]:
    found = []
    for entry_id, fields in entries:
        try:
            found.append(from_history(job_id, entry_id, fields))
        except (KeyError, ValueError):  # of a newer version than this process
            _log.warning("history.unknown_event", job=job_id, entry=entry_id)
    return found


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    try:
        yield
    except redis_clients.ERRORS as error:
        raise UnavailableError("Redis is not available at the moment.") from error
