"""SQLite as we open it: durable, one writer at a time, readers never in the way."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from vitascope_common.database import Database, migrate
from vitascope_common.errors import UnavailableError
from vitascope_common.tables import tenants


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"
    await asyncio.to_thread(migrate, url)
    opened = Database(url)
    yield opened
    await opened.close()


def tenant(name: str) -> sa.Insert:
    return sa.insert(tenants).values(tenant_id=name, name=name, created_at_ms=0)


async def test_a_raise_rolls_everything_back(database: Database) -> None:
    async def write_and_raise() -> None:
        async with database.transaction() as connection:
            await connection.execute(tenant("a"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await write_and_raise()
    async with database.read() as connection:
        assert (await connection.execute(sa.select(tenants))).all() == []


async def test_writers_queue_up_and_none_fails(database: Database) -> None:
    async def write(number: int) -> None:
        async with database.transaction() as connection:
            seen = (await connection.execute(sa.select(sa.func.count()).select_from(tenants))).scalar_one()
            await connection.execute(tenant(f"{seen}"))  # a lost update would collide

    await asyncio.gather(*(write(number) for number in range(20)))
    async with database.read() as connection:
        assert (await connection.execute(sa.select(sa.func.count()).select_from(tenants))).scalar_one() == 20


async def test_a_reader_does_not_wait_for_a_writer(database: Database) -> None:
    async with database.transaction() as writer:
        await writer.execute(tenant("a"))
        async with asyncio.timeout(2), database.read() as reader:
            assert (await reader.execute(sa.select(tenants))).all() == []


async def test_the_file_is_durable(database: Database) -> None:
    async with database.read() as connection:
        assert (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar_one() == "wal"
        assert (await connection.exec_driver_sql("PRAGMA synchronous")).scalar_one() == 2
        assert (await connection.exec_driver_sql("PRAGMA foreign_keys")).scalar_one() == 1


async def test_migrating_again_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"
    await asyncio.to_thread(migrate, url)
    await asyncio.to_thread(migrate, url)


async def test_a_postgresql_that_never_answers_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitascope_common.database.CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, nobody reads
        port = silent.getsockname()[1]
        database = Database(f"postgresql+asyncpg://someone:x@127.0.0.1:{port}/vitascope")
        async with asyncio.timeout(10):
            with pytest.raises(UnavailableError):
                await database.check()
        await database.close()


async def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'missing' / 'test.db'}")
    with pytest.raises(UnavailableError, match="database"):
        await database.check()
    await database.close()
    for thread in set(threading.enumerate()) - before:
        if "_connection_worker_thread" in thread.name:  # the driver does not wait for a connection that never was
            await asyncio.to_thread(thread.join, 10)
