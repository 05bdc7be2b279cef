"""The scheduler's processes and the broker between them and postproc."""

import asyncio
from typing import TYPE_CHECKING

from tests.simulation.adapters import SimulatedDatabase, SimulatedRedis
from tests.simulation.process import Process

from vitascope_common.errors import UnavailableError
from vitascope_scheduler.adapters.redis_queue import RedisQueue
from vitascope_scheduler.dispatch import Dispatcher, Timing
from vitascope_scheduler.job_manager import JobManager
from vitascope_scheduler.operator import Operator
from vitascope_scheduler.reader import Reader
from vitascope_scheduler.reconciler import Reconciler
from vitascope_scheduler.relay import Relay
from vitascope_scheduler.service import Scheduler
from vitascope_scheduler.worker import Preemption

if TYPE_CHECKING:
    from tests.simulation.world import World

TIMING = Timing(tick_ms=2_000, resend_ms=15_000, preemption=Preemption(min_run_ms=1_500))
"""Ticks are half as many as shipped, for speed; the other two are shorter, so that they happen at all."""


class Broker:
    """Celery's broker: messages get lost, doubled and overtaken."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.messages: list[str] = []
        self._arrived = asyncio.Event()

    def put(self, task_id: str) -> None:
        self.messages.append(task_id)
        self._arrived.set()

    async def receive(self, process: Process) -> str:
        """Take a message out; it is acknowledged by that."""
        while True:
            await process.gate()
            if self.messages:
                is_mixed = self._world.injector.happens(0.1)
                index = self._world.injector.choose(len(self.messages)) if is_mixed else 0
                return self.messages.pop(index)
            self._arrived.clear()
            await self._arrived.wait()


class Sender:
    """What the scheduler sends messages with."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def send(self, task_id: str, pool: str, traceparent: str) -> None:
        await self._process.effect("broker", lambda: self._send(task_id), UnavailableError)

    def _send(self, task_id: str) -> None:
        world = self._process.world
        world.say(self._process.name, "broker", f"send {task_id}")
        if world.injector.loses("broker"):
            return
        for _ in range(2 if world.injector.doubles("broker") else 1):
            world.loop.call_later(world.injector.lag_s(), world.broker.put, task_id)


class Replica:
    """One scheduler process, put together as its `__main__` does."""

    def __init__(self, world: "World", name: str, skew_ms: int) -> None:
        self.process = process = Process(world, name, skew_ms)
        database = SimulatedDatabase(world.database, process)
        self.queue = RedisQueue(SimulatedRedis(process))
        manager, reader = JobManager(database, process.clock, job_retention_ms=1), Reader(database)
        self.dispatcher = Dispatcher(manager, reader, self.queue, Sender(process), TIMING, process.clock)
        self.relay = Relay(reader, self.dispatcher, self.queue, process.clock)
        self.reconciler = Reconciler(manager, reader, self.dispatcher, self.relay)
        self.scheduler = Scheduler(manager, reader, self.dispatcher, self.relay)
        self.operator = Operator(manager, reader, self.dispatcher)

    def start(self) -> None:
        for duty in (self.relay.run("event"), self.relay.run("ready"), self.reconciler.run()):
            self.process.spawn(duty)
