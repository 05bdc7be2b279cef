"""The worker's inbox: the stream of commands that the scheduler writes for it."""

import json
import threading
from collections.abc import Callable
from typing import Any

import structlog
from redis import Redis

from vitascope_common import keys, redis_clients
from vitascope_common.events import id_order
from vitascope_gpu_worker.consumer import Assignment, Command

log = structlog.stdlib.get_logger("vitascope.gpu-worker")

BLOCK_MS = 2000
BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)


class InboxReader:
    """Reads the inbox in a thread of its own and hands on what it says; `redis` must be a blocking client."""

    def __init__(
        self,
        redis: Redis,
        pool: str,
        worker_id: str,
        on_assign: Callable[[Assignment], None],
        on_command: Callable[[Command], None],
    ) -> None:
        self._redis: Any = redis
        self._key = keys.inbox(pool, worker_id)
        self._on_assign = on_assign
        self._on_command = on_command
        self._is_stopping = threading.Event()
        self._last_id = "0"
        self._thread = threading.Thread(target=self._read_forever, name="inbox", daemon=True)

    def start(self) -> None:
        """Begin to read, from the first entry."""
        self._thread.start()

    def stop(self) -> None:
        """Hand on nothing more. The thread ends with its present read; it holds nothing."""
        self._is_stopping.set()

    def _read_forever(self) -> None:
        num_failures = 0
        while not self._is_stopping.is_set():
            try:
                if num_failures:
                    self._check_position()
                self._read()
            except redis_clients.ERRORS as error:
                if not num_failures:
                    log.warning("inbox.away", error=type(error).__name__)
                self._is_stopping.wait(BACKOFF_S[min(num_failures, len(BACKOFF_S) - 1)])
                num_failures += 1
            except Exception as error:  # this thread must not end: a deaf worker would keep its slot for ever
                log.error("inbox.crashed", exc_info=error)
                num_failures += 1
                self._is_stopping.wait(BACKOFF_S[-1])
            else:
                if num_failures:
                    log.info("inbox.back")
                num_failures = 0

    def _read(self) -> None:
        for _, entries in self._redis.xread({self._key: self._last_id}, block=BLOCK_MS) or ():
            for entry_id, fields in entries:
                self._last_id = entry_id
                if not self._is_stopping.is_set():
                    self._hand_on(entry_id, fields)

    def _check_position(self) -> None:
        """Start over when the server has lost data: its newest entry may be older than what we have read."""
        newest = self._redis.xrevrange(self._key, count=1)
        if newest and id_order(newest[0][0]) < id_order(self._last_id):
            self._last_id = "0"

    def _hand_on(self, entry_id: str, fields: dict[str, str]) -> None:
        try:
            entry = json.loads(fields["data"])
            command = entry["command"]
            if command == "assign":
                for task in entry["tasks"]:
                    self._on_assign(Assignment(str(task["task_id"]), str(task.get("traceparent") or "")))
            else:
                self._on_command(Command(str(command), str(entry["task_id"]), int(entry["attempt"])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # one bad entry must not end the reading
            log.error("inbox.bad_entry", entry=entry_id, error=repr(error))
