"""The gateway in this process (for what it says) and as a process (for what happens to it)."""

import asyncio
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from vitascope_common import rpc
from vitascope_common.database import Database
from vitascope_common.events import StoredEvent
from vitascope_common.objectstore import ObjectStore, open_store
from vitascope_common.registry import ModelCard, Registry
from vitascope_common.testing import RedisServer, sqlite_database
from vitascope_common.url_guard import UrlGuard, UrlPolicy
from vitascope_gateway.adapters.batches import SqlBatches
from vitascope_gateway.adapters.files import SqlFiles
from vitascope_gateway.adapters.models import RegistryCatalogue
from vitascope_gateway.adapters.services import PromptClient, SchedulerClient
from vitascope_gateway.adapters.sql import SqlStore
from vitascope_gateway.adapters.webhooks import SqlWebhooks
from vitascope_gateway.api import make_app
from vitascope_gateway.batch_work import BatchWork
from vitascope_gateway.batches import Batches
from vitascope_gateway.creation import Creation
from vitascope_gateway.files import Files
from vitascope_gateway.follow import Following, FollowTokens
from vitascope_gateway.grpc_api.api import VideoApi
from vitascope_gateway.hub import FeedHub
from vitascope_gateway.positions import PositionPoller
from vitascope_gateway.previews import Previews
from vitascope_gateway.service import Gateway, MediaLinks
from vitascope_gateway.stream import History
from vitascope_gateway.testing import (
    SIGNING_KEY,
    GatewayProcess,
    Neighbours,
    Surroundings,
    add_tenant,
    neighbours,
    surroundings,
)
from vitascope_gateway.webhooks import Webhooks

CARD = """
id: tiny
kind: generate
engine: native
pool: default
group_size: 1
title: Tiny
description: For tests.
licence: Apache-2.0
created: 2026-01-02
architecture: {vae: {}, text_encoder: {}, dit: {}}
files:
  dit: {path: dit.safetensors, sha256: "0000000000000000000000000000000000000000000000000000000000000000", num_bytes: 1}
sizes: [64x64, 96x64]
seconds: ["2", "4"]
num_frames: {"2": 17, "4": 33}
defaults: {size: 64x64, seconds: "4", fps: 8, num_inference_steps: 24, guidance_scale: 2.5, shift: 2.0, solver: euler}
limits: {num_inference_steps: [1, 200], guidance_scale: [0, 20], prompt_max_chars: 200}
cost: {fixed_s: 1.0, per_step_frame_s: 0.01}
price: {usd_micros_per_second: 1000}
capabilities: [text_to_video, image_to_video, keyframes, extension, video_to_video, negative_prompt]
"""
TEXT_ONLY = re.sub("capabilities: .*", "capabilities: [text_to_video]", CARD).replace("id: tiny", "id: text")


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the card of one model; the gateway never opens its files."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny").mkdir()
    (folder / "tiny" / "card.yaml").write_text(CARD)
    return folder


@pytest.fixture(scope="session")
def card(models_dir: Path) -> ModelCard:
    return Registry(models_dir).card("tiny")


@pytest.fixture(scope="session")
def text_card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    """The card of a model that takes a prompt and nothing else."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text").mkdir()
    (folder / "text" / "card.yaml").write_text(TEXT_ONLY)
    return Registry(folder).card("text")


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return sqlite_database(tmp_path / "vitascope.db")


class NoEvents:
    """Histories of jobs that nothing has happened to."""

    async def read(self, job_id: str, after: str) -> History:
        return History([], None, has_more=False)

    async def event(self, job_id: str, event_id: str) -> StoredEvent | None:
        return None

    async def newest_id(self, job_id: str) -> str:
        return ""

    async def ping(self) -> None:
        return None


@dataclass
class Inside:
    """The application in this process, over real SQL and two real neighbours."""

    runner: asyncio.Runner
    app: Any
    keys: dict[str, str]
    neighbours: Neighbours
    database: Database
    objects: ObjectStore
    guard: UrlGuard
    video_api: VideoApi
    gateway: Gateway
    creation: Creation
    store: SqlStore
    work: BatchWork
    closing: list[Any] = field(default_factory=list)

    def request(self, method: str, path: str, *, tenant: str | None = "acme", **options: Any) -> httpx.Response:
        return self.runner.run(self._request(method, path, tenant, options))

    def sql(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """Read or change the database behind everybody's back."""
        with sqlite3.connect(str(self.database.engine.url.database)) as connection:
            connection.row_factory = sqlite3.Row
            rows = connection.execute(statement, values).fetchall()
        connection.close()
        return rows

    def lose_next_commit(self) -> None:
        """Let the database commit what is written next and lose its answer."""
        engine = self.database.engine.sync_engine

        def lose(connection: sa.Connection) -> None:
            if not connection.get_execution_options().get("vitascope_read_only"):
                sa.event.remove(engine, "commit", lose)
                connection.connection.commit()
                raise ConnectionResetError("lost")

        sa.event.listen(engine, "commit", lose)

    async def _request(self, method: str, path: str, tenant: str | None, options: dict[str, Any]) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if tenant:
            headers.setdefault("Authorization", f"Bearer {self.keys[tenant]}")
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False), base_url="http://gateway.test"
        ) as client:
            return await client.request(method, path, headers=headers, **options)


@pytest.fixture
def inside(database_url: str, models_dir: Path, tmp_path: Path) -> Iterator[Inside]:
    with neighbours() as both, asyncio.Runner() as runner:

        async def build() -> Inside:
            database = Database(database_url)
            channel = rpc.connect(both.address)
            store, scheduler = SqlStore(database), SchedulerClient(channel)
            objects = open_store((tmp_path / "objects").as_uri())
            prompts, catalogue = PromptClient(channel), RegistryCatalogue(Registry(models_dir))
            guard = UrlGuard(UrlPolicy.allowing(["127.0.0.1/32"]))
            webhooks = Webhooks(SqlWebhooks(database), guard)
            gateway = Gateway(
                store=store,
                prompts=prompts,
                scheduler=scheduler,
                catalogue=catalogue,
                events=NoEvents(),
                links=MediaLinks("http://delivery.test", SecretStr(SIGNING_KEY), 3600),
            )
            creation = Creation(
                gateway,
                store=store,
                prompts=prompts,
                scheduler=scheduler,
                catalogue=catalogue,
                objects=objects,
                guard=guard,
                webhooks=webhooks,
            )
            hub = FeedHub(None)  # type: ignore[arg-type]  # nobody follows
            tokens = FollowTokens(SecretStr(SIGNING_KEY))
            positions = PositionPoller(scheduler)
            files, batches = Files(SqlFiles(database), objects, max_bytes=2_000_000), SqlBatches(database)
            work = BatchWork(batches, files=files, objects=objects, store=store, gateway=gateway, creation=creation)
            following = Following(gateway, store, hub, NoEvents(), positions)
            app = make_app(
                gateway,
                creation,
                store,
                following,
                webhooks=webhooks,
                follow_tokens=tokens,
                files=files,
                batches=Batches(batches, files),
                previews=Previews(objects),
            )
            video_api = VideoApi(gateway, creation, store, following)
            keys = {name: await add_tenant(database, name) for name in ("acme", "other")}
            keys["ops"] = await add_tenant(database, "ops", classes="realtime", scopes="other admin")
            closing = [creation.drain, channel.close, database.close]
            return Inside(
                runner, app, keys, both, database, objects, guard, video_api, gateway, creation, store, work, closing
            )

        one = runner.run(build())
        yield one

        async def close() -> None:
            for end in one.closing:
                await end()

        runner.run(close())
        for thread in threading.enumerate():  # of aiosqlite: one that could not connect answers a loop that is closed
            if "_connection_worker_thread" in thread.name:
                thread.join(10)


def wait_for(what: str, condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Return the first truthy answer of `condition`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.01)
    pytest.fail(f"waited {timeout_s:.0f} s for {what}")


@dataclass
class Outside:
    """The gateway as a process, over SQLite, Redis and two neighbours."""

    around: Surroundings
    gateway: GatewayProcess
    key: str
    neighbours: Neighbours
    redis: RedisServer
    database_path: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def create(self) -> str:
        answer = httpx.post(f"{self.gateway.base_url}/v1/videos", json={"prompt": "a circle"}, headers=self.headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


@pytest.fixture(scope="module")
def outside(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    folder = tmp_path_factory.mktemp("outside")
    with surroundings(folder, models_dir=models_dir) as around, around.gateway() as gateway:
        yield Outside(around, gateway, around.key, around.neighbours, around.redis, around.database_path)


@pytest.fixture(name="wait_for")
def _wait_for() -> Callable[..., Any]:
    return wait_for
