"""The sending end of Celery: one message per ready task, nothing kept in the broker that SQL does not know."""

import asyncio

from celery import Celery
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError

from vitascope_common.errors import UnavailableError

TASK_NAME = "vitascope.postproc.run"
TIMEOUT_S = 2.0


class CelerySender:
    """Sends tasks to the queue of their pool. A message may get lost or doubled: a claim decides."""

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("vitascope", broker=broker_url, backend=None, set_as_current=False)
        self._app.conf.update(
            accept_content=["json"],
            broker_connection_timeout=TIMEOUT_S,
            broker_connection_retry=False,
            broker_pool_limit=1,
            broker_transport_options={
                "socket_timeout": TIMEOUT_S,
                "socket_connect_timeout": TIMEOUT_S,
                "retry_on_timeout": False,
                "max_retries": 0,
            },
            task_ignore_result=True,
            task_publish_retry=False,
            task_serializer="json",
        )

    async def send(self, task_id: str, pool: str, traceparent: str) -> None:
        """Put one message into the queue of a pool, off the event loop. Raises UnavailableError."""
        try:
            await asyncio.to_thread(self._send, task_id, pool, traceparent)
        except (KombuError, OperationalError, RedisError, OSError) as error:
            raise UnavailableError(f"the broker is not available ({type(error).__name__}: {error})") from error

    def _send(self, task_id: str, pool: str, traceparent: str) -> None:
        self._app.send_task(
            TASK_NAME,
            args=[task_id],
            queue=pool,
            headers={"traceparent": traceparent} if traceparent else {},
            ignore_result=True,
            retry=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._app.close()
