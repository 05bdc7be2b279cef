"""Progress to Redis, from a thread of its own: a slow or absent Redis never keeps a step waiting."""

import threading
from collections import deque

import structlog
from redis import Redis

from vitascope_common import events, redis_clients
from vitascope_common.events import Event

log = structlog.stdlib.get_logger("vitascope.gpu-worker")

MAX_WAITING = 256
RETRY_S = 0.5


class EventPublisher:
    """Appends events in order. While Redis is away only the newest survives: progress is cumulative."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: deque[Event] = deque(maxlen=MAX_WAITING)
        self._condition = threading.Condition()
        self._is_writing = False
        self._is_away = False
        self._is_closing = False
        self._thread = threading.Thread(target=self._write_forever, name="events", daemon=True)
        self._thread.start()

    def publish(self, event: Event) -> None:
        """Append an event soon; never blocks, never fails."""
        with self._condition:
            self._waiting.append(event)
            self._condition.notify_all()

    def flush(self, timeout_s: float) -> None:
        """Wait until all is written, at most so long, and not at all while Redis is away."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_away or not (self._waiting or self._is_writing), timeout_s)

    def close(self) -> None:
        """Stop the thread; what waits is dropped."""
        with self._condition:
            self._is_closing = True
            self._waiting.clear()
            self._condition.notify_all()
        self._thread.join(timeout=2.0)

    def _write_forever(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._is_closing)
                if self._is_closing:
                    return
                event = self._waiting.popleft()
                self._is_writing = True
            try:
                events.append(self._redis, event)
            except redis_clients.ERRORS as error:
                self._ended(error)
            else:
                self._ended(None)

    def _ended(self, error: Exception | None) -> None:
        with self._condition:
            self._is_writing = False
            if error is None and self._is_away:
                log.info("events.back")
            if error is not None and not self._is_away:
                log.warning("events.away", error=type(error).__name__)
            self._is_away = error is not None
            self._condition.notify_all()
            if self._is_away:
                while len(self._waiting) > 1:
                    self._waiting.popleft()
                self._condition.wait_for(lambda: self._is_closing, RETRY_S)
