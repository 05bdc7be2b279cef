"""The queues of every pool in Redis: one Lua script per atomic transition, see `scripts/`.

Everything here is a cache of SQL and may be lost. All calls raise UnavailableError when Redis is away; all of them may
be repeated.
"""

import functools
import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from vitascope_common import events, keys, redis_clients
from vitascope_common.errors import UnavailableError
from vitascope_common.events import Event
from vitascope_scheduler.adapters import redis_views
from vitascope_scheduler.forecast import Line
from vitascope_scheduler.tasks import TaskRow
from vitascope_scheduler.view import PoolView
from vitascope_scheduler.worker import Dispatched, Nothing, Preempted, Preemption, SlotsOfWorker, Worker

CLASS_WEIGHTS: Mapping[str, float] = {"realtime": 8, "standard": 4, "batch": 1}
DEFAULT_CLASS = "standard"
URGENT_CLASS, PATIENT_CLASS = "realtime", "batch"  # who is made way for, and who makes way
MAX_VIEWED = 1000  # flows of a class, workers and leases that a view shows
MAX_FLOWS = 1000  # that a forecast plays through one by one
MIN_COST_S = 0.001  # a task is never free, else its flow would win every pick

_POOL_SCRIPTS = (
    "enqueue",
    "dispatch",
    "lease",
    "settle",
    "stop",
    "register",
    "heartbeat",
    "set_flow",
    "preempt",
    "drain",
    "view",
    "line",
)


def _script(name: str) -> str:
    return resources.files("vitascope_scheduler").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    try:
        yield
    except redis_clients.ERRORS as error:
        raise UnavailableError(
            f"Redis is not available, try again shortly ({type(error).__name__}: {error})"
        ) from error


class RedisQueue:
    """Fair queues, leases, registrations, inboxes, epochs and event streams."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        prelude = _script("sfq")
        self._scripts: dict[str, AsyncScript] = {
            name: redis.register_script(f"{prelude}\n{_script(name)}") for name in _POOL_SCRIPTS
        }
        self._lead = redis.register_script(_script("lead"))
        self._classes = json.dumps(list(CLASS_WEIGHTS.items()))

    async def _run(self, name: str, pool: str, now_ms: int, *arguments: str | int | float) -> Any:
        async with _translated():
            return await self._scripts[name](keys=_pool_keys(pool), args=[now_ms, self._classes, *arguments])

    async def enqueue(self, row: TaskRow, now_ms: int, traceparent: str) -> Dispatched | str:
        """Let a ready task wait, or come back: "queued", "returned", or "known" when there was nothing to do.

        "unclaimed" is one that comes back because nobody has claimed it in time.
        A task that came back after it was asked to make way answers with the one that got its slot.
        """
        answer = await self._run(
            "enqueue",
            row.pool,
            now_ms,
            row.task_id,
            row.attempt,
            row.tenant_id,
            _class(row),
            repr(row.weight),
            row.cap,
            repr(_cost(row)),
            row.priority,
            row.created_at_ms,
            traceparent,
        )
        return Dispatched(*answer) if isinstance(answer, list) else str(answer)

    async def dispatch(self, pool: str, worker_id: str, now_ms: int, lease_ttl_ms: int) -> Dispatched | Nothing:
        """Give one free slot of a worker to the task whose turn it is, or say why not."""
        found = await self._run("dispatch", pool, now_ms, worker_id, lease_ttl_ms)
        return Dispatched(*found) if isinstance(found, list) else Nothing(found)

    async def lease(self, row: TaskRow, worker_id: str, now_ms: int, lease_ttl_ms: int) -> str:
        """Renew the lease of a claimed task: "renewed", "taken" out of the line, "created" anew, or "stale".

        "yield" is a renewal too: the task is asked to make way, or its worker is drained.
        """
        answer = await self._run(
            "lease",
            row.pool,
            now_ms,
            row.task_id,
            row.attempt,
            worker_id,
            lease_ttl_ms,
            row.tenant_id,
            _class(row),
            repr(row.weight),
            row.cap,
            repr(_cost(row)),
            row.created_at_ms,
            row.claimed_at_ms or now_ms,
            int(row.yieldable),
            row.num_recent_yields,
            repr(_cost_after_yield(row)),
        )
        return str(answer)

    async def settle(self, pool: str, task_id: str, ended: int, actual_s: float, now_ms: int) -> Dispatched | bool:
        """End a task unless a later attempt than number `ended` is known; False: there was nothing to end.

        A task that was asked to make way answers with the one that got its slot.
        """
        answer = await self._run("settle", pool, now_ms, task_id, ended, repr(actual_s))
        return Dispatched(*answer) if isinstance(answer, list) else bool(answer)

    async def stop(self, row: TaskRow, now_ms: int) -> str:
        """Drop a cancelled task, or tell its worker: "gone", "stopping" or "unknown"."""
        return str(await self._run("stop", row.pool, now_ms, row.task_id, row.attempt))

    async def register(self, worker: Worker, now_ms: int, ttl_ms: int) -> None:
        """Enter a worker and its slots."""
        await self._run(
            "register",
            worker.pool,
            now_ms,
            worker.worker_id,
            ttl_ms,
            worker.num_slots,
            worker.device,
            worker.group_size,
            json.dumps(worker.warm_models),
        )

    async def heartbeat(
        self, pool: str, worker_id: str, beat: SlotsOfWorker, now_ms: int, ttl_ms: int
    ) -> list[str] | None:
        """Renew a registration: the tasks that the worker has let go, or None when it must register."""
        models, is_draining = json.dumps(beat.warm_models), int(beat.is_draining)
        found = await self._run("heartbeat", pool, now_ms, worker_id, ttl_ms, models, is_draining, *beat.task_ids)
        return None if found is None else [str(task_id) for task_id in found]

    async def set_flow(self, pool: str, tenant_id: str, weight: float, cap: int, now_ms: int) -> None:
        """Apply a tenant's weight and cap to what already waits."""
        await self._run("set_flow", pool, now_ms, tenant_id, repr(weight), cap)

    async def preempt(self, pool: str, rule: Preemption, now_ms: int, lease_ttl_ms: int) -> Preempted | None:
        """Ask one running task to make way for one that has waited too long; None: nobody has to."""
        found = await self._run(
            "preempt",
            pool,
            now_ms,
            URGENT_CLASS,
            PATIENT_CLASS,
            rule.wait_ms,
            rule.min_run_ms,
            rule.max_yields,
            lease_ttl_ms,
        )
        return None if found is None else Preempted(*found)

    async def set_drains(self, pool: str, worker_ids: Collection[str], now_ms: int) -> list[str]:
        """Give these workers ("": all of them) no more work, and every other one again.

        Returns the tasks that they were handed and have not claimed: their leases are over.
        """
        return [str(task_id) for task_id in await self._run("drain", pool, now_ms, *sorted(set(worker_ids)))]

    async def view(self, pool: str, now_ms: int) -> PoolView:
        """Return what operators see of a pool."""
        return redis_views.pool_view(pool, await self._run("view", pool, now_ms, MAX_VIEWED))

    async def line(self, pool: str, now_ms: int, limit: int) -> Line:
        """Return what a forecast of a pool needs, `limit` waiting tasks by name at most."""
        return redis_views.line(await self._run("line", pool, now_ms, limit, MAX_FLOWS))

    async def idle_workers(self, pool: str, now_ms: int) -> list[str]:
        """Name the workers with a free slot; forget those whose registration has expired."""
        async with _translated():
            await self._redis.zremrangebyscore(keys.idle(pool), "-inf", now_ms)
            return [str(one) for one in await self._redis.zrange(keys.idle(pool), 0, -1)]

    async def shorten_leases(self, pool: str, latest_ms: int) -> None:
        """Let no lease end later than that: what does was given before the clock went back."""
        async with _translated():
            for task_id in await self._redis.zrangebyscore(keys.leases(pool), f"({latest_ms}", "+inf"):
                await self._redis.zadd(keys.leases(pool), {str(task_id): latest_ms}, xx=True, lt=True)

    async def expired_leases(self, pool: str, now_ms: int, limit: int) -> list[str]:
        """Name tasks whose lease has run out."""
        async with _translated():
            found = await self._redis.zrangebyscore(keys.leases(pool), "-inf", now_ms, start=0, num=limit)
            return [str(one) for one in found]

    async def without_lease(self, pool: str, task_ids: Sequence[str]) -> list[str]:
        """Return those of the tasks that have no lease at all."""
        if not task_ids:
            return []
        async with _translated():
            scores = await self._redis.zmscore(keys.leases(pool), list(task_ids))
        return [task_id for task_id, score in zip(task_ids, scores, strict=True) if score is None]

    async def has_lease(self, pool: str, task_id: str, now_ms: int) -> bool:
        """Tell whether a task has a lease that has not run out."""
        async with _translated():
            until_ms = await self._redis.zscore(keys.leases(pool), task_id)
        return until_ms is not None and until_ms > now_ms

    async def unknown(self, pool: str, task_ids: Sequence[str]) -> list[str]:
        """Return those of the tasks that Redis knows nothing of."""
        async with _translated(), self._redis.pipeline(transaction=False) as pipeline:
            for task_id in task_ids:
                pipeline.hexists(keys.queued_task(pool, task_id), "tenant")
            found = await pipeline.execute()
        return [task_id for task_id, is_known in zip(task_ids, found, strict=True) if not is_known]

    async def epoch(self, pool: str) -> str:
        """Return what changes when Redis forgets this pool, restarts or fails over; read it before an enqueue."""
        async with _translated():
            await self._redis.set(keys.epoch(pool), uuid4().hex, nx=True)
            random_id = str(await self._redis.get(keys.epoch(pool)))
            run_id = await redis_clients.run_id(self._redis, keys.epoch(pool))
        return f"{random_id}:{run_id}"

    async def depth(self, pool: str) -> tuple[int, int]:
        """Count the tasks that wait and those in flight."""
        async with _translated():
            found = await self._redis.hmget(keys.classes(pool), ["num_waiting", "num_in_flight"])
        return int(found[0] or 0), int(found[1] or 0)

    async def backlog_s(self, pool: str) -> float:
        """Sum the costs of what waits: GPU-seconds."""
        async with _translated():
            found = [await self._redis.hget(keys.flows(pool, name), "backlog_ms") for name in CLASS_WEIGHTS]
        return sum(int(one or 0) for one in found) / 1000

    async def append_event(self, event: Event) -> None:
        """Append a state event; one that is not newer is dropped there, so this may be repeated."""
        async with _translated():
            await events.append_async(self._redis, event)

    async def forget_events(self, job_id: str) -> None:
        """Forget the history of a job that is over; nothing is appended to it any more."""
        async with _translated():
            await self._redis.delete(keys.events(job_id), keys.event_fence(job_id))

    async def lead(self, duty: str, replica_id: str, ttl_ms: int) -> bool:
        """Hold, or take, the lead of a duty for `ttl_ms`; False while another replica has it."""
        async with _translated():
            return bool(await self._lead(keys=[keys.scheduler_leader(duty)], args=[replica_id, ttl_ms]))


@functools.lru_cache(maxsize=256)
def _pool_keys(pool: str) -> tuple[bytes, ...]:
    """List the keys as `sfq.lua` numbers them; those that end in an empty name are prefixes."""
    found = [keys.classes(pool), keys.class_heads(pool), keys.in_flight(pool), keys.leases(pool), keys.idle(pool)]
    found += [keys.workers(pool), keys.drains(pool), keys.served(pool)]
    found += [keys.queued_task(pool, ""), keys.worker(pool, ""), keys.held(pool, ""), keys.inbox(pool, "")]
    for name in CLASS_WEIGHTS:
        found += [keys.flows(pool, name), keys.flow_heads(pool, name)]
        found += [keys.backlogs(pool, name), keys.flow_queue(pool, name, "")]
    return tuple(one.encode() for one in found)


def _class(row: TaskRow) -> str:
    return row.class_name if row.class_name in CLASS_WEIGHTS else DEFAULT_CLASS


def _cost(row: TaskRow) -> float:
    return max(row.cost_left_s, MIN_COST_S)


def _cost_after_yield(row: TaskRow) -> float:
    """Estimate what a yield would leave: it makes a checkpoint of the progress so far."""
    progress = row.done / row.total if row.total else 0.0
    return min(row.cost_left_s, row.cost_s * max(0.0, 1.0 - progress))
