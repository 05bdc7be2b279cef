"""Our Python SDK against a running gateway that is killed under it."""

import asyncio
import contextlib
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from vitascope_client import InvalidRequestError, ModerationBlockedError, NotFoundError, Vitascope
from vitascope_common import redis_clients
from vitascope_common.database import Database, migrate
from vitascope_common.events import Event, EventType, append
from vitascope_common.testing import free_port, redis_server
from vitascope_gateway.testing import add_tenant, gateway_process, neighbours

MODELS_DIR = Path(__file__).parents[2] / "models"


def test_events_survive_a_gateway_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "vitascope.db"
    url = f"sqlite+aiosqlite:///{path}"
    migrate(url)

    async def make_key() -> str:
        database = Database(url)
        try:
            return await add_tenant(database, "acme")
        finally:
            await database.close()

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
            "port": free_port(),
        }
        base_url = f"http://127.0.0.1:{options['port']}"
        with Vitascope(base_url=base_url, api_key=asyncio.run(make_key())) as client, contextlib.ExitStack() as first:
            gateway = first.enter_context(gateway_process(**options))
            video = client.videos.create(prompt="a red circle", seed=3, metadata={"a": "b"})
            assert (video.seed, video.metadata, video.status) == (3, {"a": "b"}, "queued")
            assert client.videos.retrieve(video.id).queue_position == 2
            assert [one.id for one in client.videos.list()] == [video.id]
            assert [model.id for model in client.models()] == ["vita-mini-6"]
            with pytest.raises(ModerationBlockedError):
                client.videos.create(prompt="forbidden")
            with pytest.raises(InvalidRequestError) as wrong:
                client.videos.create(prompt="x", seconds=7)
            assert wrong.value.param == "seconds"
            with pytest.raises(NotFoundError) as early:
                client.videos.download(video.id)
            assert early.value.code == "video_not_ready"

            appended = [append(redis, Event(video.id, EventType.QUEUED, {}, version=1))]

            def go_on(step: int) -> None:
                appended.append(append(redis, Event(video.id, EventType.PROGRESS, {"step": step}, task="t", attempt=1)))

            events = client.videos.stream(video.id)
            seen = [next(events)]
            go_on(1)
            seen.append(next(events))
            os.kill(gateway.process.pid, signal.SIGKILL)
            gateway.process.wait()
            go_on(2)
            with gateway_process(**options):
                seen.append(next(events))
                go_on(3)
                with contextlib.closing(sqlite3.connect(path)) as connection:
                    connection.execute("UPDATE jobs SET state = 'completed', finished_at_ms = 1")
                    connection.commit()
                appended.append(append(redis, Event(video.id, EventType.COMPLETED, {}, version=2)))
                seen += list(events)
                assert client.videos.wait(video.id).status == "completed"
                client.videos.delete(video.id)
                assert both.deleted == [("acme", video.id)]
        assert [event.id for event in seen] == appended
