"""Run the webhook sender: `python -m vitascope_scheduler.webhooks`."""

import asyncio
import signal
import sys

import structlog

from vitascope_common import serving, telemetry
from vitascope_common.database import Database
from vitascope_common.errors import UnavailableError
from vitascope_common.url_guard import UrlGuard, UrlPolicy
from vitascope_scheduler.webhooks.deliveries import Deliveries
from vitascope_scheduler.webhooks.sender import Sender, Timing, repeat
from vitascope_scheduler.webhooks.settings import WebhooksSettings

DRAIN_S = 1.5
WATCH_S = 2.0
SWEEP_S = 600.0

log = structlog.get_logger()


async def serve(settings: WebhooksSettings, watched: telemetry.Telemetry) -> None:
    """Send until SIGTERM or SIGINT, then let the attempts under way end, for a moment."""
    stopped = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopped.set)

    database = Database(settings.database_url)
    timing = Timing(
        poll_ms=settings.poll_ms,
        lease_ms=settings.lease_ms,
        timeout_ms=min(Timing.timeout_ms, settings.lease_ms // 2),
        retry_ms=settings.retry_ms,
        retention_ms=settings.retention_s * 1000,
    )
    guard = UrlGuard(UrlPolicy.allowing(settings.allowed_networks))
    sender = Sender(Deliveries(database), guard, timing)
    log.info("webhooks.started", metrics_port=watched.metrics_port)

    async def announce() -> None:
        while True:
            try:
                await database.check()
            except UnavailableError as error:
                log.warning("webhooks.waits", error=error.message)
                await asyncio.sleep(0.2)
            else:
                watched.mark_ready(True)
                return

    runs = (announce(), sender.run(), repeat(sender.watch, WATCH_S), repeat(sender.sweep, SWEEP_S))
    duties = [asyncio.create_task(duty) for duty in runs]
    await stopped.wait()
    log.info("webhooks.draining")
    watched.mark_ready(False)
    left = set(duties)
    while left:  # again, as a library may lose a cancel
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.5)
    await sender.drain(DRAIN_S)
    await database.close()


def main() -> int:
    """Send; return the exit status."""
    return serving.run(WebhooksSettings, serve)


if __name__ == "__main__":
    sys.exit(main())
