"""What the shipped code holds in its hands: a Redis client and a Database, both with faults between any two effects."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any
from unittest.mock import patch

import aiosqlite.core
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.simulation.process import Process

from vitascope_common.database import Database
from vitascope_common.errors import UnavailableError

_committer: ContextVar[Process | None] = ContextVar("committer", default=None)


class SimulatedRedis(Redis):
    """redis-py's client; each command, and each pipeline, is one effect of its process."""

    def __init__(self, process: Process) -> None:
        super().__init__(decode_responses=True, protocol=2)
        self._process = process

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return (await self._run([(args, options)]))[0]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "_SimulatedPipeline":
        return _SimulatedPipeline(self, transaction)

    async def _run(self, commands: list[tuple[Any, Any]]) -> list[Any]:
        process = self._process
        sent = [tuple(args) for args, _ in commands]
        answers = await process.effect("redis", lambda: process.world.ask_redis(process, sent), RedisConnectionError)
        found = []
        for (args, options), answer in zip(commands, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            options.pop("keys", None)
            callback = self.response_callbacks.get(args[0])
            found.append(callback(answer, **options) if callback else answer)
        return found


class _SimulatedPipeline(Pipeline):
    """Commands that are sent together."""

    def __init__(self, redis: SimulatedRedis, transaction: bool) -> None:
        super().__init__(redis.connection_pool, redis.response_callbacks, transaction, None)
        self._redis = redis

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = [(args, options) for args, options in self.command_stack]
        self.command_stack = []
        return await self._redis._run(commands)


class SimulatedDatabase(Database):
    """The shipped Database over one engine that all processes share; a transaction is one effect of its process."""

    def __init__(self, shared: Database, process: Process) -> None:
        self.engine = shared.engine
        self._process = process

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        process = self._process
        fate = await process.before("sql", _away)
        token = _committer.set(process)
        try:
            async with super().transaction() as connection:
                yield connection
                if fate.crashes_inside:
                    process.crash()
        finally:
            _committer.reset(token)
        await process.after(fate, _away)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        fate = await self._process.before("sql", _away)
        async with super().read() as connection:
            yield connection
        await self._process.after(fate, _away)


def _away(message: str) -> Exception:
    return UnavailableError(f"The database is not available: {message}.")


class _Inline:
    """aiosqlite's queue of work for its thread, done at once instead; a commit is looked at before anything follows.

    After it, SQLAlchemy gives its connection back in a task of its own, in which a paused process may be caught.
    """

    def put_nowait(self, item: tuple[Any, Callable[[], Any]]) -> None:
        future, function = item
        process = _committer.get()
        is_commit = isinstance(function, partial) and getattr(function.func, "__name__", "") == "commit"
        try:
            result = function()
            if process is not None and is_commit:
                process.world.committed(process)
        except BaseException as error:
            if future is not None:
                future.set_exception(error)
        else:
            if future is not None:
                future.set_result(result)


class _NoThread:
    daemon = True

    def __init__(self, **_options: Any) -> None:
        pass

    def start(self) -> None:
        pass


@contextmanager
def inline_sqlite() -> Iterator[None]:
    """Have aiosqlite work in the calling thread: no step of a transaction lets anybody else run."""
    with patch.object(aiosqlite.core, "SimpleQueue", _Inline), patch.object(aiosqlite.core, "Thread", _NoThread):
        yield
