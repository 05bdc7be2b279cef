"""Run the scheduler: `python -m vitascope_scheduler`."""

import asyncio
import signal
import sys
from contextlib import suppress

import structlog

from vitascope_common import rpc, serving, telemetry
from vitascope_common.database import Database
from vitascope_common.errors import UnavailableError
from vitascope_common.objectstore import open_store
from vitascope_common.redis_clients import connect_async
from vitascope_scheduler.adapters.celery_sender import CelerySender
from vitascope_scheduler.adapters.redis_queue import RedisQueue
from vitascope_scheduler.api import SERVICE_NAME, SchedulerApi
from vitascope_scheduler.dispatch import Dispatcher, Timing
from vitascope_scheduler.job_manager import JobManager
from vitascope_scheduler.operator import Operator
from vitascope_scheduler.reader import Reader
from vitascope_scheduler.reconciler import Reconciler
from vitascope_scheduler.relay import Relay
from vitascope_scheduler.retention import Policy, Retention
from vitascope_scheduler.service import Scheduler
from vitascope_scheduler.settings import SchedulerSettings
from vitascope_scheduler.worker import Preemption

DRAIN_S = 1.5

log = structlog.get_logger()


async def serve(settings: SchedulerSettings, watched: telemetry.Telemetry) -> None:
    """Serve until SIGTERM or SIGINT, then finish the running calls and leave."""
    stopped = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopped.set)

    database = Database(settings.database_url)
    redis = connect_async(settings.redis_url.get_secret_value())
    sender = CelerySender(settings.broker_url.get_secret_value())
    queue = RedisQueue(redis)
    policy = Policy(settings.work_retention_s * 1000, settings.job_retention_s * 1000)
    manager, reader = JobManager(database, job_retention_ms=policy.job_ms), Reader(database)
    store = open_store(settings.object_store_url, settings.s3_access_key, settings.s3_secret_key)
    preemption = Preemption(wait_ms=settings.preempt_after_ms, min_run_ms=settings.preempt_min_run_ms)
    timing = Timing(settings.lease_ttl_ms, settings.heartbeat_ms, settings.tick_ms, preemption=preemption)
    dispatcher = Dispatcher(manager, reader, queue, sender, timing)
    relay = Relay(reader, dispatcher, queue)
    reconciler = Reconciler(manager, reader, dispatcher, relay)
    retention = Retention(manager, reader, store, queue, policy)
    api = SchedulerApi(Scheduler(manager, reader, dispatcher, relay), Operator(manager, reader, dispatcher))
    server = rpc.RpcServer(f"{settings.host}:{settings.port}", [SERVICE_NAME], api.register_in)
    await server.start()
    log.info("scheduler.started", port=server.port, metrics_port=watched.metrics_port)

    async def announce() -> None:
        while True:
            try:
                await database.check()
            except UnavailableError as error:
                log.warning("scheduler.waits", error=error.message)
                await asyncio.sleep(0.2)
            else:
                watched.mark_ready(True)
                return

    runs = (announce(), relay.run("event"), relay.run("ready"), reconciler.run(), retention.run())
    duties = [asyncio.create_task(duty) for duty in runs]
    await stopped.wait()
    log.info("scheduler.draining")
    watched.mark_ready(False)
    await server.drain(DRAIN_S)
    left = set(duties)
    while left:  # again, as a library may lose a cancel
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.5)
    await redis.aclose()
    await database.close()
    with suppress(Exception):  # a broker that is away must not hold up the end
        sender.close()


def main() -> int:
    """Serve; return the exit status."""
    return serving.run(SchedulerSettings, serve)


if __name__ == "__main__":
    sys.exit(main())
