"""Start the media origin: `python -m vitascope_delivery`."""

import signal
import socket
import sys

import structlog
import uvicorn

from vitascope_common import serving, telemetry
from vitascope_common.database import Database
from vitascope_common.http_heads import ImpatientHttp
from vitascope_common.objectstore import open_store
from vitascope_delivery.adapters.publications import SqlPublications
from vitascope_delivery.api import STALL_TIMEOUT_S, make_app
from vitascope_delivery.service import Delivery
from vitascope_delivery.settings import DeliverySettings

log = structlog.stdlib.get_logger("vitascope.delivery")

DRAIN_S = 4
POOL_SIZE = 10


async def serve(settings: DeliverySettings, observed: telemetry.Telemetry) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises ConfigurationError when the port is taken."""
    # uvicorn raises the signal again after its shutdown; what is left to do must still be done.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: None)
    listener = serving.listen(settings.host, settings.port, STALL_TIMEOUT_S)
    store = open_store(settings.object_store_url, settings.s3_access_key, settings.s3_secret_key)
    database = Database(settings.database_url, pool_size=POOL_SIZE)
    app = make_app(Delivery(SqlPublications(database), store), settings.signing_key)
    try:
        await _Server(_config(app), observed).serve([listener])
    finally:
        await database.close()
    log.info("delivery.stopped")


class _Server(uvicorn.Server):
    """uvicorn that says when it is ready and when it drains."""

    def __init__(self, config: uvicorn.Config, observed: telemetry.Telemetry) -> None:
        super().__init__(config)
        self._observed = observed

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = (sockets or self.servers[0].sockets)[0].getsockname()[:2]
        log.info("delivery.started", host=host, port=port, metrics_port=self._observed.metrics_port)
        self._observed.mark_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._observed.mark_ready(False)
        log.info("delivery.draining")
        await super().shutdown(sockets)


def _config(app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=ImpatientHttp,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )


def main() -> int:
    """Serve; return the exit status."""
    return serving.run(DeliverySettings, serve)


if __name__ == "__main__":
    sys.exit(main())
