"""Run the gateway: `python -m vitascope_gateway`."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import structlog
import uvicorn

from vitascope_common import redis_clients, rpc, serving, telemetry
from vitascope_common.database import Database
from vitascope_common.objectstore import open_store
from vitascope_common.registry import Registry
from vitascope_common.url_guard import UrlGuard, UrlPolicy
from vitascope_gateway import idempotency
from vitascope_gateway.adapters.batches import SqlBatches
from vitascope_gateway.adapters.events import RedisEvents
from vitascope_gateway.adapters.files import SqlFiles
from vitascope_gateway.adapters.models import RegistryCatalogue
from vitascope_gateway.adapters.services import PromptClient, SchedulerClient
from vitascope_gateway.adapters.sql import SqlStore
from vitascope_gateway.adapters.webhooks import SqlWebhooks
from vitascope_gateway.api import make_app
from vitascope_gateway.batch_work import BatchWork
from vitascope_gateway.batches import Batches
from vitascope_gateway.connection import Http, WebSocket
from vitascope_gateway.creation import Creation
from vitascope_gateway.files import Files
from vitascope_gateway.follow import Following, FollowTokens
from vitascope_gateway.grpc_api.api import VideoApi
from vitascope_gateway.grpc_api.server import make_server
from vitascope_gateway.hub import FeedHub
from vitascope_gateway.positions import PositionPoller
from vitascope_gateway.previews import Previews
from vitascope_gateway.service import Gateway, MediaLinks
from vitascope_gateway.settings import GatewaySettings
from vitascope_gateway.stream import SEND_TIMEOUT_S
from vitascope_gateway.webhooks import Webhooks

DRAIN_S = 4
MAX_THREADS = 32
"""Of asyncio.to_thread: more than uploads, pictures and batches can have waiting for the object store at once."""

_log = structlog.stdlib.get_logger("vitascope.gateway")


class _Server(uvicorn.Server):
    """uvicorn, with signals left to us: streams must end before it waits for connections. Says when it listens."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if not self.should_exit:
            self._on_started()


async def serve(settings: GatewaySettings, watched: telemetry.Telemetry) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises ConfigurationError when the port is taken."""
    database = Database(settings.database_url, pool_size=10)
    redis_url = settings.redis_url.get_secret_value()
    redis, blocking = redis_clients.connect_async(redis_url), redis_clients.connect_async(redis_url, is_blocking=True)
    prompt, scheduler = rpc.connect(settings.prompt_address), rpc.connect(settings.scheduler_address)
    events = RedisEvents(redis, blocking)
    store = SqlStore(database)
    hub = FeedHub(events)
    scheduler_client = SchedulerClient(scheduler)
    positions = PositionPoller(scheduler_client)
    prompts, catalogue = PromptClient(prompt), RegistryCatalogue(Registry(settings.models_dir))
    guard = UrlGuard(UrlPolicy.allowing(settings.allowed_networks))
    webhooks = Webhooks(SqlWebhooks(database), guard)
    gateway = Gateway(
        store=store,
        prompts=prompts,
        scheduler=scheduler_client,
        catalogue=catalogue,
        events=events,
        links=MediaLinks(settings.delivery_url, settings.signing_key, settings.link_ttl_s),
    )
    objects = open_store(settings.object_store_url, settings.s3_access_key, settings.s3_secret_key)
    creation = Creation(
        gateway,
        store=store,
        prompts=prompts,
        scheduler=scheduler_client,
        catalogue=catalogue,
        objects=objects,
        guard=guard,
        webhooks=webhooks,
        default_model=settings.default_model,
        aliases=settings.model_aliases,
    )
    files, batches = Files(SqlFiles(database), objects, max_bytes=settings.max_files_bytes), SqlBatches(database)
    work = BatchWork(batches, files=files, objects=objects, store=store, gateway=gateway, creation=creation)
    following = Following(gateway, store, hub, events, positions)
    app = make_app(
        gateway,
        creation,
        store,
        following,
        webhooks=webhooks,
        follow_tokens=FollowTokens(settings.signing_key),
        files=files,
        batches=Batches(batches, files),
        previews=Previews(objects),
        public_url=settings.public_url,
    )
    config = uvicorn.Config(
        app,
        http=Http,
        ws=WebSocket,
        ws_ping_interval=None,  # those whom it is handed over to ask themselves
        ws_per_message_deflate=False,  # messages are small, and its windows would be most of a follower's memory
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_S,
    )
    listener = serving.listen(settings.host, settings.port, SEND_TIMEOUT_S)
    address = "{}:{}".format(*listener.getsockname())
    video_api = VideoApi(gateway, creation, store, following)
    calls = make_server(settings.host, settings.grpc_port, video_api, gateway, has_reflection=settings.grpc_reflection)

    def started() -> None:
        watched.mark_ready(True)
        _log.info("gateway.ready", address=address, grpc_port=calls.port)

    server, stopped = _Server(config, started), asyncio.Event()

    def stop() -> None:
        watched.mark_ready(False)
        hub.close()
        server.should_exit = True
        stopped.set()

    async def serve_http() -> None:
        try:
            await server.serve([listener])
        finally:
            stopped.set()

    async def drain_calls() -> None:
        await stopped.wait()
        await asyncio.gather(calls.drain(DRAIN_S), video_api.drain(DRAIN_S))

    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(MAX_THREADS, "any"))
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop)
    reader = asyncio.create_task(hub.run())
    reader.add_done_callback(lambda _: stop())  # without it the streams would be silent: let a supervisor restart us
    poller = asyncio.create_task(positions.run())
    poller.add_done_callback(lambda _: stop())
    sweeper = asyncio.create_task(idempotency.sweep_for_ever(database))
    worker = asyncio.create_task(work.run())
    worker.add_done_callback(lambda _: stop())
    try:
        await calls.start()
        await asyncio.gather(serve_http(), drain_calls())  # both at once: what is under way has this long, not twice
        await creation.drain()
        for duty in (reader, poller, worker):
            if duty.done():
                await duty
    finally:
        for duty in (reader, poller, sweeper, worker):
            duty.cancel()
        await asyncio.gather(reader, poller, sweeper, worker, return_exceptions=True)
        for channel in (prompt, scheduler):
            await channel.close()
        await redis.aclose()
        await blocking.aclose()
        await database.close()


def main() -> int:
    """Serve; return the exit status."""
    return serving.run(GatewaySettings, serve)


if __name__ == "__main__":
    sys.exit(main())
