"""Outbox relay: tells what SQL has committed, in order, at least once.

A row is deleted after it was told, so a death in between tells it twice; whoever hears it ignores the second time.
What fails for one job or pool holds up no other. Topics do not wait for each other, and within "ready" Celery's rows
do not hold up those of the queues.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol
from uuid import uuid4

import structlog

from vitascope_common import ids
from vitascope_common.errors import UnavailableError
from vitascope_common.events import Event, EventType
from vitascope_scheduler import metrics
from vitascope_scheduler.dispatch import Dispatcher
from vitascope_scheduler.reader import OutboxRow, Reader

POLL_S = 0.2
BACKOFF_S = (0.2, 0.5, 1.0, 2.0)
PAGE = 100
LEAD_TTL_MS = 1_000

log = structlog.get_logger()


class Events(Protocol):
    """Where state events go, and who leads. Raises UnavailableError."""

    async def append_event(self, event: Event) -> None: ...
    async def lead(self, duty: str, replica_id: str, ttl_ms: int) -> bool: ...


class Relay:
    """One loop per topic, woken by commits of this process, polling for those of others."""

    def __init__(
        self, reader: Reader, dispatcher: Dispatcher, events: Events, clock: Callable[[], int] = ids.now_ms
    ) -> None:
        self._reader = reader
        self._dispatcher = dispatcher
        self._events = events
        self._clock = clock
        self._replica_id = uuid4().hex
        self._topics = {"event": self._tell_events, "ready": self._tell_ready}
        self._wakes = {topic: asyncio.Event() for topic in self._topics}

    def wake(self) -> None:
        """Look at the outbox now: something was committed."""
        for event in self._wakes.values():
            event.set()

    async def run(self, topic: str) -> None:
        """Tell one topic for ever."""
        wake, num_failures = self._wakes[topic], 0
        while True:
            try:
                is_clean = await self.tell(topic)
            except UnavailableError as error:
                is_clean = False
                log.warning("relay.unavailable", topic=topic, error=error.message)
            except Exception:  # a fault of ours must not end the relay; it is logged and tried again
                is_clean = False
                log.exception("relay.crashed", topic=topic)
            if is_clean:
                num_failures = 0
                wait_s = POLL_S
            else:
                metrics.FAILURES.labels(f"relay.{topic}").inc()
                wait_s = BACKOFF_S[min(num_failures, len(BACKOFF_S) - 1)]
                num_failures += 1
                wake.clear()  # nothing gained by asking sooner
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):  # wait_for loses a cancel that comes together with the wake
                    await wake.wait()
            wake.clear()

    async def tell(self, topic: str) -> bool:
        """Tell everything that is in the outbox now. False: something is left because its receiver is away."""
        rows = await self._reader.outbox(topic, 0, PAGE)
        lag_ms = self._clock() - rows[0].created_at_ms if rows else 0
        metrics.OUTBOX_LAG_S.labels(topic).set(max(0, lag_ms) / 1000)
        if not rows or not await self._is_leader(topic):
            return True
        is_clean = True
        stuck: set[str] = set()
        while rows:
            told = await self._topics[topic](rows, stuck)
            await self._reader.forget(told)
            metrics.RELAYED.labels(topic).inc(len(told))
            left = [row for row in rows if row.outbox_id not in set(told)]
            is_clean = is_clean and not left
            if topic == "event" and any(row.job_id not in stuck for row in left):
                return False  # their receiver is away
            if len(rows) < PAGE:
                break
            rows = await self._reader.outbox(topic, rows[-1].outbox_id, PAGE)
            if rows and not await self._is_leader(topic):
                break
        return is_clean

    async def _is_leader(self, topic: str) -> bool:
        """Only one replica tells, so that events stay in order and Celery hears of a task once, as a rule."""
        return await self._events.lead(f"relay.{topic}", self._replica_id, LEAD_TTL_MS)

    async def _tell_events(self, rows: list[OutboxRow], stuck: set[str]) -> list[int]:
        """Tell events in order; a job of which one cannot be told joins the `stuck` and waits with all later ones."""
        told: list[int] = []
        for row in rows:
            if row.job_id in stuck:
                continue
            try:
                event = _event(row)
            except (KeyError, ValueError, TypeError):
                log.exception("relay.row_unreadable", outbox_id=row.outbox_id, job=row.job_id)
                told.append(row.outbox_id)
                continue
            try:
                await self._events.append_event(event)
            except UnavailableError as error:
                log.warning("relay.unavailable", topic="event", job=row.job_id, error=error.message)
                if not await self._answers("event"):
                    break
                stuck.add(row.job_id)  # of this job alone, for all we know: the others are told
                continue
            except Exception:  # likewise
                log.exception("relay.event_failed", outbox_id=row.outbox_id, job=row.job_id)
                stuck.add(row.job_id)
                continue
            told.append(row.outbox_id)
        return told

    async def _tell_ready(self, rows: list[OutboxRow], _stuck: set[str]) -> list[int]:
        epochs: dict[str, str] = {}
        away: set[str] = set()  # pools that cannot be told in this round
        told: list[int] = []
        wanted = {row.outbox_id: str(row.payload.get("task_id", "")) for row in rows}
        tasks = await self._reader.tasks(sorted({*wanted.values()}))
        for outbox_id, task_id in wanted.items():
            task = tasks.get(task_id)
            if task is None or task.state != "ready":
                told.append(outbox_id)  # claimed, cancelled or told before
                continue
            if task.pool in away:
                continue
            try:
                if task.pool not in epochs:
                    epochs[task.pool] = await self._dispatcher.queue.epoch(task.pool)
                await self._dispatcher.hand_out(task, epochs[task.pool])
            except UnavailableError as error:
                log.warning("relay.unavailable", topic="ready", pool=task.pool, error=error.message)
                if task.is_for_celery or not await self._answers("ready"):
                    away.add(task.pool)
                continue
            except Exception:  # of this task alone, for all we know: the others are told
                log.exception("relay.task_failed", task=task_id, pool=task.pool)
                continue
            told.append(outbox_id)
        for pool in sorted({task.pool for task in tasks.values() if not task.is_for_celery}):
            if pool not in away:
                await self._fill(pool)
        return told

    async def _fill(self, pool: str) -> None:
        """Give free slots away; what was told stays told when that fails, and the tick does it too."""
        try:
            await self._dispatcher.fill(pool)
        except UnavailableError as error:
            log.warning("relay.unavailable", topic="ready", pool=pool, error=error.message)
        except Exception:  # what waits in this pool is given out by the next tick; the other pools are filled now
            metrics.FAILURES.labels("relay.ready").inc()
            log.exception("relay.fill_failed", pool=pool)

    async def _answers(self, topic: str) -> bool:
        """Tell whether Redis is there at all: then what failed is a fault with what it was told."""
        try:
            return await self._is_leader(topic)
        except UnavailableError:
            return False


def _event(row: OutboxRow) -> Event:
    payload = row.payload
    return Event(
        row.job_id,
        EventType(payload["type"]),
        dict(payload.get("data") or {}),
        version=int(payload["version"]),
        task=str(payload.get("task") or ""),
        attempt=int(payload.get("attempt") or 0),
        closes=bool(payload.get("closes", False)),
    )
