"""Bugs planted into the shipped code, to show that the simulation finds them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vitascope_common import tables
from vitascope_scheduler import statements
from vitascope_scheduler.adapters import redis_queue
from vitascope_scheduler.reader import Position, Reader
from vitascope_scheduler.tasks import TaskRow


def _attempt() -> Iterator[Any]:
    """Attempts are not compared: whoever says something of a task is believed."""

    async def update_attempt(connection: AsyncConnection, task_id: str, attempt: int, **changes: Any) -> TaskRow | None:
        tasks = tables.tasks
        await connection.execute(sa.update(tasks).where(tasks.c.task_id == task_id).values(**changes))
        return await statements.read_task(connection, task_id)

    yield patch.object(statements, "update_attempt", update_attempt)


def _sent_is_done() -> Iterator[Any]:
    """What was handed out once is never handed out again."""
    shipped = Reader._ready

    async def _ready(
        self: Reader, pool: str, after: Position, limit: int, condition: sa.ColumnElement[bool]
    ) -> list[TaskRow]:
        return await shipped(self, pool, after, limit, sa.and_(condition, tables.tasks.c.enqueued_at_ms.is_(None)))

    yield patch.object(Reader, "_ready", _ready)


def _settle_twice() -> Iterator[Any]:
    """A task that ends is settled two times."""
    shipped = redis_queue._script

    def _script(name: str) -> str:
        text = shipped(name)
        land = "land(t, t.charged - paid)"
        if name == "settle" and land not in text:
            raise RuntimeError("settle.lua has changed: plant this bug anew")
        return text.replace(land, f"{land} refund(t, t.charged - paid)") if name == "settle" else text

    yield patch.object(redis_queue, "_script", _script)


def _charge_twice() -> Iterator[Any]:
    """A task that comes back refunds nothing: what was lost is paid again."""
    shipped = redis_queue._script

    def _script(name: str) -> str:
        return shipped(name).replace("land(t, math.min(t.charged, cost))", "land(t, 0)")

    yield patch.object(redis_queue, "_script", _script)


PLANTED: Mapping[str, Callable[[], Iterator[Any]]] = {
    "attempt": _attempt,
    "sent-is-done": _sent_is_done,
    "settle-twice": _settle_twice,
    "lost-is-charged": _charge_twice,
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Plant a bug for the length of a block."""
    with ExitStack() as stack:
        for one in PLANTED[name]():
            stack.enter_context(one)
        yield
