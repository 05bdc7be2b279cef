"""A watcher over gRPC against a gateway that is killed under it."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import grpc

from vitascope_common import redis_clients
from vitascope_common.database import Database, migrate
from vitascope_common.events import Event, EventType, append
from vitascope_common.testing import free_port, redis_server
from vitascope_gateway.testing import add_tenant, gateway_process, neighbours
from vitascope_proto.v1 import videos_pb2 as pb
from vitascope_proto.v1.videos_pb2_grpc import VideoServiceStub

MODELS_DIR = Path(__file__).parents[2] / "models"


def test_a_watcher_misses_nothing_when_the_gateway_is_killed_and_comes_back(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'vitascope.db'}"
    migrate(url)

    async def make_key() -> str:
        database = Database(url)
        try:
            return await add_tenant(database, "acme")
        finally:
            await database.close()

    metadata = (("authorization", f"Bearer {asyncio.run(make_key())}"),)
    with (
        redis_server(tmp_path) as redis_url,
        neighbours() as both,
        contextlib.closing(redis_clients.connect(redis_url)) as redis,
    ):
        options: dict[str, Any] = {
            "database_url": url,
            "redis_url": redis_url,
            "object_store_url": (tmp_path / "objects").as_uri(),
            "neighbour_address": both.address,
            "models_dir": MODELS_DIR,
            "delivery_url": "http://127.0.0.1:9",
            "grpc_port": free_port(),
        }
        channel_options = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 100)]
        with (
            grpc.insecure_channel(f"127.0.0.1:{options['grpc_port']}", channel_options) as channel,
            contextlib.ExitStack() as first,
        ):
            stub = VideoServiceStub(channel)
            gateway = first.enter_context(gateway_process(**options))
            video = stub.CreateVideo(pb.CreateVideoRequest(prompt="a red circle"), metadata=metadata, timeout=30)
            appended = [append(redis, Event(video.id, EventType.QUEUED, {}, version=1))]

            def go_on(step: int) -> None:
                appended.append(append(redis, Event(video.id, EventType.PROGRESS, {"step": step}, task="t", attempt=1)))

            def watch(after: str) -> Any:
                request = pb.WatchRequest(video_id=video.id, last_event_id=after)
                return stub.Watch(request, metadata=metadata, timeout=60, wait_for_ready=True)

            events = watch("")
            seen = [next(events).id]
            go_on(1)
            seen.append(next(events).id)
            os.kill(gateway.process.pid, signal.SIGKILL)
            gateway.process.wait()
            assert events.code() is grpc.StatusCode.UNAVAILABLE
            go_on(2)
            with gateway_process(**options):
                events = watch(seen[-1])
                seen.append(next(events).id)
                go_on(3)
                appended.append(append(redis, Event(video.id, EventType.COMPLETED, {}, version=2)))
                seen += [event.id for event in events]
        assert seen == appended
