"""The event stream of one job: history, then live, without gap or duplicate, over every interruption.

An event's stream id orders it within its job: what is not newer than the last one sent is dropped. What Redis does not
know, SQL does: a `snapshot` (the Video object) stands for events that are lost, and ends the stream of a finished job.

What is told here is encoded elsewhere: `sse.py` for HTTP, `ws.py` for WebSockets.
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from vitascope_common.errors import UnavailableError
from vitascope_common.events import TERMINAL_EVENTS, EventType, StoredEvent, id_order
from vitascope_common.jobs import TERMINAL_JOB, JobState
from vitascope_gateway import objects
from vitascope_gateway.hub import FeedHub, Follower, Signal
from vitascope_gateway.service import JobRecord, QueuePosition
from vitascope_gateway.told import Pause, Told, told, told_completed, told_place, told_snapshot

HEARTBEAT_S = 15.0
TERMINAL_PATIENCE_S = 2.0
"""How long a job that SQL calls finished may owe its last event."""
SEND_TIMEOUT_S = 20.0
"""A client that takes nothing for this long is gone."""
AWAY_S = 3.0
"""How often a client hears from SQL while Redis is away."""
BEGINNING = frozenset({"", "0", "0-0"})
END_ID = "end"
"""The id of a snapshot of a finished job: what Redis has lost can still be resumed after, and then nothing is left."""
WAITING_EVENTS = frozenset({EventType.QUEUED, EventType.PREEMPTED})
"""After these a job stands in a queue, until any other event."""


@dataclass(frozen=True)
class History:
    """A page of what Redis holds of one job after some event."""

    events: Sequence[StoredEvent]
    at: StoredEvent | None  # that event itself; None: no longer held
    has_more: bool  # after this page; then nothing in `events` means that all of it is unknown here


class Histories(Protocol):
    """The history of every job. Raises UnavailableError when Redis is away."""

    async def read(self, job_id: str, after: str) -> History:
        """Return the first page after one event, "" for the beginning: whoever reads on holds no more than that."""
        ...

    async def event(self, job_id: str, event_id: str) -> StoredEvent | None:
        """Return one event if it is still held."""
        ...

    async def newest_id(self, job_id: str) -> str:
        """Return the id of the last event; "" when there is none."""
        ...


class Positions(Protocol):
    """Puts the position of a waiting job into its follower whenever it changes. Both calls are idempotent."""

    def watch(self, follower: Follower) -> None: ...
    def unwatch(self, follower: Follower) -> None: ...


class End(Enum):
    """Why a stream has ended. But for the first, whoever connects again with the last id goes on where it was."""

    FINISHED = "finished"  # or deleted
    RESTARTING = "restarting"  # this process ends
    TOO_SLOW = "too slow"


class JobStream:
    """Follows one job for one client; `end` says why, once `batches` has ended."""

    def __init__(
        self,
        record: JobRecord,
        last_event_id: str,
        *,
        hub: FeedHub,
        histories: Histories,
        positions: Positions,
        reload: Callable[[], Awaitable[JobRecord | None]],
        is_open: Callable[[str], Awaitable[bool]],
        urls: objects.Urls,
    ) -> None:
        self._job_id = record.job_id
        self._state = record.state
        self._is_waiting = _is_waiting(record)
        self._last_id = "" if last_event_id in BEGINNING else last_event_id
        self._last_order = id_order(self._last_id)
        self._hub = hub
        self._histories = histories
        self._positions = positions
        self._reload = reload
        self._is_open = is_open
        self._urls = urls
        self._is_behind = True
        self._is_stuck = False  # behind, and nobody can tell what is missed
        self._is_over = False
        self._take: Callable[[Told], bool] | None = None
        self._told_at_s = time.monotonic()
        self.end = End.FINISHED

    async def batches(self, take: Callable[[Told], bool] | None = None) -> AsyncGenerator[Sequence[Told | Pause]]:
        """Yield what the client is told, all that is there at once; ends after the terminal event.

        An event that comes while nothing else is to be told is offered to `take`, which may write it without the task
        being woken that iterates; False: it is yielded.
        """
        self._take = take
        with self._hub.subscribe(self._job_id) as follower:  # before the history is read: nothing falls in between
            try:
                while not self._is_over:
                    was_behind = self._is_behind
                    batch = await (self._catch_up() if was_behind else self._wait(follower, self._patience_s()))
                    if batch:
                        yield batch
                        self._told_at_s = time.monotonic()
                    if was_behind and self._is_stuck and not self._is_over:
                        batch = await self._wait(follower, AWAY_S)
                        if batch:
                            yield batch
            finally:
                self._positions.unwatch(follower)

    def _patience_s(self) -> float:
        patience_s = TERMINAL_PATIENCE_S if self._state in TERMINAL_JOB else HEARTBEAT_S
        return max(0.0, self._told_at_s + patience_s - time.monotonic())

    async def _wait(self, follower: Follower, timeout_s: float) -> list[Told | Pause]:
        if self._is_waiting:
            self._positions.watch(follower)
        else:
            self._positions.unwatch(follower)
        told_at_s = self._told_at_s
        at_once = None if self._take is None or self._is_behind or self._is_waiting else self._tell_at_once
        items = await follower.next(timeout_s, at_once)
        if not items:
            return [] if self._is_behind or self._told_at_s > told_at_s else await self._check_sql()
        batch: list[Told | Pause] = []
        for item in items:
            if self._is_over:
                break
            if item is Signal.CLOSE:
                self._is_over = True
                self.end = End.TOO_SLOW if follower.is_dropped else End.RESTARTING
            elif item is Signal.CATCH_UP:
                self._is_behind = True
            elif isinstance(item, Told):
                batch += [] if self._is_behind else self._tell([item])
            elif isinstance(item, QueuePosition) and self._is_waiting:  # else it was found before the job started
                batch.append(told_place(self._job_id, item))
        return batch

    async def _catch_up(self) -> list[Told | Pause]:
        """Tell a page of what the client has missed, from Redis if it is there, from SQL if not."""
        try:
            history = await self._histories.read(self._job_id, self._last_id)
            newest_id = await self._histories.newest_id(self._job_id) if self._is_gap(history) else None
        except UnavailableError:
            self._is_stuck = True
            return await self._snapshot("") or [Pause.WAITING]
        if newest_id is not None:
            batch = await self._snapshot(newest_id)
            if batch:
                self._set_last_id(newest_id)  # also when it is "": then all that comes is new
            self._is_behind = self._is_stuck = not batch
            return batch or [Pause.WAITING]
        self._is_behind, self._is_stuck = history.has_more, False
        if history.at is not None:
            self._is_waiting = history.at.type in WAITING_EVENTS
        return self._tell(map(told, history.events))

    def _is_gap(self, history: History) -> bool:
        """Whether events that this client has not seen are no longer held: its last one is gone, or the very first."""
        if not history.events and history.has_more:
            return True
        if self._last_id:
            return history.at is None
        if not history.events:
            return self._state is not JobState.QUEUED  # there have been some
        first = history.events[0]
        return first.type is not EventType.QUEUED or "reason" in first.data  # with a reason it is queued once more

    async def _check_sql(self) -> list[Told | Pause]:
        """After a silence: a job that SQL calls finished will send nothing more."""
        try:
            if await self._is_open(self._job_id):
                return [Pause.HEARTBEAT]
        except UnavailableError:
            return [Pause.HEARTBEAT]
        return await self._snapshot("") or ([] if self._is_over else [Pause.HEARTBEAT])

    async def _snapshot(self, newest_id: str) -> list[Told | Pause]:
        """Tell the whole state; `newest_id` is the last event that it covers. Nothing when the database is away too."""
        try:
            record = await self._reload()
        except UnavailableError:
            return []
        if record is None:  # deleted meanwhile
            self._is_over = True
            return []
        self._state, self._is_over = record.state, record.state in TERMINAL_JOB
        self._is_waiting = _is_waiting(record)
        return [told_snapshot(END_ID if self._is_over else newest_id, record, self._urls)]

    def _tell_at_once(self, one: Told) -> bool:
        """Hand an event over as it comes, if it changes nothing but where we are."""
        if one.type in WAITING_EVENTS or one.type in TERMINAL_EVENTS or self._take is None:
            return False
        if not self._last_id or one.order > self._last_order:
            if not self._take(one):
                return False
            self._last_id, self._last_order, self._told_at_s = one.id, one.order, time.monotonic()
        return True

    def _set_last_id(self, event_id: str) -> None:
        self._last_id, self._last_order = event_id, id_order(event_id)

    def _tell(self, events: Iterable[Told]) -> list[Told | Pause]:
        batch: list[Told | Pause] = []
        for one in events:
            if self._last_id and one.order <= self._last_order:
                continue
            batch.append(told_completed(one, self._urls) if one.type is EventType.COMPLETED else one)
            self._set_last_id(one.id)
            self._is_waiting = one.type in WAITING_EVENTS
            if one.type in TERMINAL_EVENTS:
                self._is_over = True
                break
        return batch


def _is_waiting(record: JobRecord) -> bool:
    return record.state is JobState.QUEUED or (record.state is JobState.RUNNING and record.phase == "queued")
