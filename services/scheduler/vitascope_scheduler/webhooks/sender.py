"""The sender: claims deliveries whose time has come, posts them, and decides what follows from the answer.

Receivers are strangers. One that is slow, dead or many-headed holds a few places of its own and nobody else's: places
are counted by tenant and host, and a receiver that did not answer last time has one. Tenants take turns: nobody waits
until another's backlog is worked off, however old and long that is.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Protocol

import structlog

from vitascope_common import ids, telemetry, webhooks
from vitascope_common.errors import UnavailableError, UrlFailedError, UrlRefusedError
from vitascope_common.url_guard import UrlGuard
from vitascope_scheduler.webhooks import metrics
from vitascope_scheduler.webhooks.deliveries import SWEEP_ROWS, Attempted, Backlog, Claimed, Due, Lane

MAX_IN_FLIGHT = 128
MAX_OF_TENANT = 16
"""An eighth of all: it takes eight tenants whose receivers are slow to keep a ninth waiting."""
MAX_OF_RECEIVER = 4
MAX_SILENT = 10_000
MAX_SERVED = 1000
PAGE = 64
MAX_RETRY_AFTER_MS = 3600 * 1000
GONE = 410

log = structlog.get_logger()


class Rows(Protocol):
    """The deliveries in SQL; see `deliveries.Deliveries`. Every method raises UnavailableError."""

    async def due(
        self, now_ms: int, limit: int, full_tenants: Collection[str], full_lanes: Collection[Lane]
    ) -> list[Due]: ...
    async def claim(self, delivery_ids: Sequence[str], now_ms: int, lease_ms: int) -> list[Claimed]: ...
    async def settle(self, claimed: Claimed, attempted: Attempted) -> bool: ...
    async def backlog(self) -> Backlog: ...
    async def sweep(self, finished_before_ms: int) -> int: ...


@dataclass(frozen=True)
class Timing:
    """When what is tried, and for how long."""

    poll_ms: int = 500
    lease_ms: int = 60_000  # of an attempt: longer than it can take
    timeout_ms: int = 15_000  # of the whole exchange with a receiver
    retry_ms: int = 10_000  # the first wait is at most this, and each doubles it
    max_retry_ms: int = 3 * 3600 * 1000
    give_up_ms: int = 24 * 3600 * 1000  # after the event; the last attempt is then
    retention_ms: int = 7 * 24 * 3600 * 1000  # of what is finished

    def next_at_ms(self, now_ms: int, claimed: Claimed, retry_after_ms: int, draw: float) -> int | None:
        """Return when to try again; None: not any more. Full jitter: `draw` (0 to 1) of a wait that doubles."""
        last_at_ms = claimed.created_at_ms + self.give_up_ms
        if now_ms >= last_at_ms:
            return None
        longest_ms = min(self.retry_ms << min(claimed.num_attempts - 1, 30), self.max_retry_ms)
        wait_ms = max(round(draw * longest_ms), min(retry_after_ms, MAX_RETRY_AFTER_MS), 1)
        return min(now_ms + wait_ms, last_at_ms)


class Sender:
    """Makes attempts until it is told to stop."""

    def __init__(
        self,
        rows: Rows,
        guard: UrlGuard,
        timing: Timing | None = None,
        clock: Callable[[], int] = ids.now_ms,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._rows = rows
        self._guard = guard
        self._timing = timing or Timing()
        self._clock = clock
        self._draw = draw
        self._running: dict[asyncio.Task[None], Lane] = {}
        self._silent: dict[Lane, None] = {}  # receivers that did not answer last time, the latest last
        self._served: set[str] = set()  # tenants that have had this turn
        self._freed = asyncio.Event()

    async def run(self) -> None:
        """Send for ever. Whatever goes wrong costs one round."""
        while True:
            self._freed.clear()
            try:
                is_full = await self.start_due()
            except UnavailableError as error:
                is_full = False
                log.warning("webhooks.unavailable", error=error.message)
            except Exception:  # a fault of ours must not end it; it is logged and tried again
                is_full = False
                log.exception("webhooks.crashed")
            if not is_full:
                await asyncio.sleep(self._timing.poll_ms / 1000)
                continue
            with suppress(TimeoutError):  # what waits for a place may be due already
                async with asyncio.timeout(self._timing.poll_ms / 1000):
                    await self._freed.wait()

    async def start_due(self) -> bool:
        """Begin an attempt of everything that is due and finds a place. True: something else may be due as well."""
        while len(self._running) < MAX_IN_FLIGHT:
            in_lane, in_tenant = self._in_flight()
            full_lanes = [lane for lane, number in in_lane.items() if number >= self._places(lane)]
            full_tenants = [tenant for tenant, number in in_tenant.items() if number >= MAX_OF_TENANT]
            due = await self._rows.due(self._clock(), PAGE, self._served.union(full_tenants), full_lanes)
            chosen: list[str] = []
            for one in due:
                has_place = in_lane[one.lane] < self._places(one.lane) and in_tenant[one.tenant_id] < MAX_OF_TENANT
                if has_place and len(self._running) + len(chosen) < MAX_IN_FLIGHT:
                    chosen.append(one.delivery_id)
                    in_lane[one.lane] += 1
                    in_tenant[one.tenant_id] += 1
                    self._served.add(one.tenant_id)
            if not chosen:
                if not self._served:
                    return bool(full_lanes or full_tenants)
                self._served.clear()  # the next turn
                continue
            if len(self._served) > MAX_SERVED:
                self._served.clear()
            for claimed in await self._rows.claim(chosen, self._clock(), self._timing.lease_ms):
                self._start(claimed)
        return True

    async def drain(self, timeout_s: float) -> None:
        """Let attempts under way end; what is left is another sender's when its lease ends."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=timeout_s)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def watch(self) -> None:
        """Say on `/metrics` what is still to be delivered."""
        backlog, now_ms = await self._rows.backlog(), self._clock()
        metrics.PENDING.set(backlog.num_pending)
        metrics.OLDEST_S.set(_age_s(backlog.oldest_at_ms, now_ms))
        metrics.OVERDUE_S.set(_age_s(backlog.due_at_ms, now_ms))

    async def sweep(self) -> None:
        """Forget what was finished long ago, a few rows at a time."""
        while await self._rows.sweep(self._clock() - self._timing.retention_ms) == SWEEP_ROWS:
            pass

    def _in_flight(self) -> tuple[Counter[Lane], Counter[str]]:
        in_lane = Counter(self._running.values())
        in_tenant: Counter[str] = Counter()
        for (tenant_id, _), number in in_lane.items():
            in_tenant[tenant_id] += number
        return in_lane, in_tenant

    def _places(self, lane: Lane) -> int:
        return 1 if lane in self._silent else MAX_OF_RECEIVER

    def _remember_silent(self, lane: Lane) -> None:
        """Note who did not answer, and forget who was silent longest ago when there are too many."""
        self._silent.pop(lane, None)
        self._silent[lane] = None
        if len(self._silent) > MAX_SILENT:
            del self._silent[next(iter(self._silent))]

    def _start(self, claimed: Claimed) -> None:
        task = asyncio.create_task(self._attempt(claimed))
        self._running[task] = claimed.lane
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._freed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("webhook.crashed", exc_info=error)

    async def _attempt(self, claimed: Claimed) -> None:
        try:
            with telemetry.span("webhook.attempt", parent=claimed.traceparent, job=claimed.job_id):
                attempted = await self._post(claimed)
        except Exception:  # a fault of ours: it is logged, and tried again no longer than any other
            log.exception("webhook.crashed", delivery=claimed.delivery_id)
            attempted = self._retried(claimed, self._clock(), error="The sender failed.")
        metrics.ATTEMPTS.labels(_outcome(attempted)).inc()
        facts = {
            "delivery": claimed.delivery_id,
            "event_id": claimed.event_id,
            "job": claimed.job_id,
            "tenant": claimed.tenant_id,
            "host": webhooks.host_of(claimed.url),
            "attempt": claimed.num_attempts,
            "status": attempted.status,
        }
        try:
            is_settled = await self._rows.settle(claimed, attempted)
        except UnavailableError as error:  # it is sent once more when the lease ends: twice rather than never
            log.warning("webhook.not_settled", error=error.message, **facts)
            return
        if not is_settled:
            log.warning("webhook.lease_lost", **facts)
        elif attempted.is_delivered:
            metrics.LAG_S.observe(_age_s(claimed.created_at_ms, attempted.at_ms))
            log.info("webhook.delivered", **facts)
        elif attempted.next_at_ms is None:
            log.warning("webhook.failed", error=attempted.error, **facts)
        else:
            wait_s = (attempted.next_at_ms - attempted.at_ms) / 1000
            log.info("webhook.retries", error=attempted.error, wait_s=wait_s, **facts)

    async def _post(self, claimed: Claimed) -> Attempted:
        """Make one attempt."""
        began_ms = self._clock()
        if claimed.signing is None or claimed.is_disabled:
            what = "The endpoint is deleted." if claimed.signing is None else "The endpoint is disabled."
            return Attempted(False, None, began_ms, None, error=what)
        signing = claimed.signing.live(began_ms)
        try:
            answer = await self._guard.request(
                "POST",
                claimed.url,
                headers=webhooks.headers(claimed.event_id, claimed.payload, signing, began_ms),
                content=claimed.payload.encode(),
                max_bytes=0,
                is_cut=True,  # what it says beside its status is nobody's business
                timeout_s=self._timing.timeout_ms / 1000,
            )
        except (UrlRefusedError, UrlFailedError) as error:
            self._remember_silent(claimed.lane)
            return self._retried(claimed, began_ms, error=error.message)
        self._silent.pop(claimed.lane, None)
        now_ms = self._clock()
        metrics.ATTEMPT_S.observe((now_ms - began_ms) / 1000)
        if 200 <= answer.status < 300:
            return Attempted(True, None, now_ms, now_ms - began_ms, answer.status)
        if answer.status == GONE:
            what = "The receiver says that it is gone (410)."
            if claimed.endpoint_id is not None:
                what += " The endpoint is disabled until it is updated."
            return Attempted(False, None, now_ms, now_ms - began_ms, GONE, what, disables_endpoint=True)
        what = f"The receiver answered {answer.status}."
        if 300 <= answer.status < 400:
            what += " Redirects are not followed."
        retry_after_ms = retry_after(answer.headers.get("retry-after", ""), now_ms)
        return self._retried(claimed, began_ms, answer.status, what, retry_after_ms)

    def _retried(
        self, claimed: Claimed, began_ms: int, status: int | None = None, error: str = "", retry_after_ms: int = 0
    ) -> Attempted:
        now_ms = self._clock()
        next_at_ms = self._timing.next_at_ms(now_ms, claimed, retry_after_ms, self._draw())
        return Attempted(False, next_at_ms, now_ms, now_ms - began_ms, status, error)


async def repeat(duty: Callable[[], Awaitable[None]], period_s: float) -> None:
    """Do something for ever. Whatever goes wrong costs one round."""
    while True:
        try:
            await duty()
        except UnavailableError as error:
            log.warning("webhooks.unavailable", error=error.message)
        except Exception:  # a fault of ours must not end it; it is logged and tried again
            log.exception("webhooks.crashed")
        await asyncio.sleep(period_s)


def retry_after(text: str, now_ms: int) -> int:
    """Return how many milliseconds the header Retry-After asks for; 0: it says nothing that can be read."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return min(int(text[:9]) * 1000, MAX_RETRY_AFTER_MS)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # a year of twenty digits
        return 0
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0, round(at.timestamp() * 1000) - now_ms)


def _age_s(at_ms: int | None, now_ms: int) -> float:
    return 0.0 if at_ms is None else max(0.0, (now_ms - at_ms) / 1000)


def _outcome(attempted: Attempted) -> str:
    if attempted.is_delivered:
        return "delivered"
    return "failed" if attempted.next_at_ms is None else "retried"
