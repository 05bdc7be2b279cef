from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis as AsyncRedis

from vitascope_common import redis_clients
from vitascope_common.database import Database
from vitascope_common.testing import redis_server, sqlite_database
from vitascope_scheduler.adapters.redis_queue import RedisQueue
from vitascope_scheduler.testing import add_tenant


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[AsyncRedis]:
    client = redis_clients.connect_async(redis_url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def queue(redis: AsyncRedis) -> RedisQueue:
    return RedisQueue(redis)


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return sqlite_database(tmp_path / "vitascope.db")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await add_tenant(database)
    yield database
    await database.close()
