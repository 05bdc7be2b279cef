"""The edge: one Celery task, `vitascope.postproc.run`.

Celery hands over task ids and keeps nothing: a message is gone from the broker when it is received, so neither a crash
nor the broker's visibility timeout ever repeats it. Attempts, leases and repetition are the scheduler's.
"""

import logging
import signal
import threading
import warnings
from collections.abc import Callable
from typing import Any

import structlog
from celery import Celery, signals
from celery.apps.worker import Worker
from celery.platforms import SecurityWarning
from celery.worker import state
from celery.worker.request import Request
from kombu.messaging import Consumer as MessageConsumer

log = structlog.stdlib.get_logger("vitascope.postproc")

TASK_NAME = "vitascope.postproc.run"

BROKER_OPTIONS = {
    "visibility_timeout": 3600,  # of acknowledgements, which we do not use
    "socket_timeout": 10.0,  # longer than the blocking read of a second
    "socket_connect_timeout": 2.0,
    "socket_keepalive": True,
    "retry_on_timeout": False,
    "health_check_interval": 10,
}


def make_app(broker_url: str, pool: str) -> Celery:
    """Configure Celery for one queue; senders need no more than the task's name, the queue and these options."""
    app = Celery("vitascope.postproc", broker=broker_url)
    app.conf.update(
        broker_transport_options=BROKER_OPTIONS,
        broker_connection_timeout=2.0,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_default_queue=pool,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        task_ignore_result=True,
        result_backend=None,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=True,  # of late-acknowledged ones: we have none
    )
    return app


class _TakenOnReceipt(MessageConsumer):
    """Tells the broker that a message which is handed out is done.

    Celery's own early acknowledgement is late here: the solo pool runs the task first. It can also fail with the
    connection, and an unacknowledged message would use up the prefetch of 1 for ever.
    """

    no_ack = True


class _TakenRequest(Request):  # type: ignore[misc]
    """A task whose message is gone already: there is nothing to acknowledge."""

    def acknowledge(self) -> None:
        self.acknowledged = True


class Consumer:
    """Runs the Celery worker in this process and thread, one task at a time."""

    def __init__(self, app: Celery, pool: str, run: Callable[[str, str], None]) -> None:
        self._app = app
        self._pool = pool
        app.amqp.Consumer = _TakenOnReceipt
        app.task(_edge(run), name=TASK_NAME, bind=True, Request=_TakenRequest)

    def serve(self, on_ready: Callable[[], None], on_drain: Callable[[], None]) -> int:
        """Work until SIGTERM or SIGINT; return the exit status. `on_drain` runs in a thread of its own."""
        for name in ("celery", "kombu"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # It warns root about pickle; only JSON is accepted here.
        warnings.filterwarnings("ignore", category=SecurityWarning)

        def say_ready(**_: Any) -> None:
            on_ready()

        signals.worker_ready.connect(say_ready, weak=False)
        worker = _Worker(
            app=self._app,
            pool_cls="solo",
            concurrency=1,
            queues=[self._pool],
            quiet=True,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            on_drain=on_drain,
        )
        worker.start()
        return int(worker.exitcode or 0)


def _edge(run: Callable[[str, str], None]) -> Callable[[Any, str], None]:
    def handle(self: Any, task_id: str) -> None:
        if not isinstance(task_id, str):
            log.error("message.invalid", message_id=str(self.request.id))
            return
        headers = self.request.headers or {}
        run(task_id, str(headers.get("traceparent") or ""))

    return handle


class _Worker(Worker):  # type: ignore[misc]
    """Celery's worker without its own logging, banner, process title and signal handlers."""

    def on_before_init(self, *, on_drain: Callable[[], None], **kwargs: Any) -> None:
        self._on_drain = on_drain
        super().on_before_init(**kwargs)

    def setup_logging(self, colorize: bool | None = None) -> bool:
        return True

    def set_process_status(self, info: str) -> None:
        return

    def install_platform_tweaks(self, worker: Any) -> None:
        def stop(_signum: int, _frame: object) -> None:
            if state.should_stop is None:
                state.should_stop = 0  # the loop ends after the running task
                threading.Thread(target=self._on_drain, name="drain", daemon=True).start()

        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, stop)
