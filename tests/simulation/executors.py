"""Executors: a model of gpu-worker and of postproc, with the habits of vitascope_common.executor and their consumers.

They compute nothing. A step takes simulated time, a checkpoint is a name that tells who made it in which attempt.
"""

import asyncio
import json
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from tests.simulation.adapters import SimulatedRedis
from tests.simulation.process import Process

from vitascope_common import keys
from vitascope_common.errors import DeadlineError, UnavailableError, VitascopeError
from vitascope_common.events import id_order
from vitascope_common.executor import REPORT_BACKOFF_S, Action, Outcome
from vitascope_common.jobs import Artifact, Checkpoint, Progress, Task
from vitascope_scheduler.job_manager import Report, TaskStatus
from vitascope_scheduler.service import Beat
from vitascope_scheduler.worker import Worker

if TYPE_CHECKING:
    from tests.simulation.world import World

CLAIM_BACKOFF_S = (0.2, 0.5, 1.0, 2.0)
HEARTBEAT_S = 2.0
STEPS_OF_FINISH = 3
DRAIN_S = 8.0


@dataclass
class Held:
    """A task in the hands of an executor."""

    task: Task
    progress: Progress = field(default_factory=Progress)
    used_s: float = 0.0
    checkpoint: Checkpoint | None = None
    action: Action = Action.RUN

    @property
    def is_over(self) -> bool:
        return self.action in (Action.STOP, Action.STALE)


def artifact(task: Task, worker_id: str, name: str, role: str) -> Artifact:
    """Name an object so that everybody sees whose it is: its name is the worker, its key the attempt."""
    key = task.video_key(name) if role == "manifest" else task.work_key(name)
    return Artifact(worker_id, role, "application/octet-stream", key, "1" * 64, 10)


class Executor:
    """Claim, heartbeat, report: what both kinds share."""

    executor = "gpu-worker"

    def __init__(self, world: "World", worker_id: str, pool: str, num_slots: int) -> None:
        self.world = world
        self.worker_id, self.pool, self.num_slots = worker_id, pool, num_slots
        self.process = Process(world, worker_id)
        self.rng = random.Random(f"{world.setting.seed} {worker_id}")
        self.held: dict[str, Held] = {}
        self.is_draining = False
        self._claiming: set[str] = set()
        self._is_registered = False
        self._poke = asyncio.Event()

    def start(self) -> None:
        self.process.spawn(self._beat_forever())

    async def call(self, method: str, *arguments: Any) -> Any:
        """Ask some scheduler. Raises VitascopeError."""
        return await self.world.calls.call(self.process, method, *arguments)

    async def claim(self, task_id: str) -> Held | None:
        """Try to win a task, as Executor.claim does."""
        if task_id in self.held or task_id in self._claiming:
            return None
        self._claiming.add(task_id)
        try:
            claim = await self.call("claim", task_id, self.worker_id)
            if claim.task is None:
                return None
            self.held[task_id] = Held(claim.task)
            self.world.begins(self, claim.task)
            return self.held[task_id]
        finally:
            self._claiming.discard(task_id)

    async def claim_patiently(self, task_id: str) -> Held | None:
        """Repeat a claim that is not answered, for as long as the hand-over is worth it."""
        for backoff_s in (*CLAIM_BACKOFF_S, None):
            try:
                return await self.claim(task_id)
            except VitascopeError as error:
                if backoff_s is None or not isinstance(error, UnavailableError | DeadlineError):
                    return None
                await asyncio.sleep(backoff_s)
        return None

    async def report(self, held: Held, outcome: Outcome, outputs: tuple[Artifact, ...] = (), code: str = "") -> bool:
        """Report until it is answered; False: the attempt was stale."""
        report = Report(
            held.task.task_id,
            held.task.attempt,
            outcome,
            outputs,
            code,
            code and "it broke",
            code not in ("", "invalid_request"),
            held.used_s,
            {},
            None if outcome is Outcome.DONE else held.checkpoint,
        )
        num_tries = 0
        while True:
            try:
                ended = await self.call("report", report)
            except VitascopeError:
                await asyncio.sleep(REPORT_BACKOFF_S[min(num_tries, len(REPORT_BACKOFF_S) - 1)])
                num_tries += 1
                continue
            self.release(held)
            return bool(ended.is_accepted)

    def release(self, held: Held) -> None:
        if self.held.get(held.task.task_id) is held:
            del self.held[held.task.task_id]
        self.poke()

    def poke(self) -> None:
        self._poke.set()

    async def pass_time(self, held: Held, seconds: float) -> None:
        """Compute for a while."""
        await asyncio.sleep(seconds)
        await self.process.gate()
        held.used_s += seconds
        self.world.computed(held.task, self.worker_id, held.used_s)

    async def _beat_forever(self) -> None:
        while True:
            wait_s = HEARTBEAT_S
            try:
                if self.num_slots and not self._is_registered:
                    worker = Worker(self.worker_id, self.executor, self.pool, "cpu", 1, self.num_slots, ())
                    await self.call("register", worker)
                    self._is_registered = True
                await self._beat()
            except VitascopeError:
                wait_s = 1.0
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._poke.wait()
            self._poke.clear()

    async def _beat(self) -> None:
        held = list(self.held.values())
        if not self.num_slots and not held:
            return
        statuses = tuple(
            TaskStatus(one.task.task_id, one.task.attempt, one.progress, one.used_s, one.checkpoint) for one in held
        )
        beat = Beat(self.worker_id, self.executor, self.pool, (), statuses, self.is_draining)
        answer = await self.call("heartbeat", beat)
        if answer.must_register:
            self._is_registered = False
            self.poke()
        by_attempt = {(one.task.task_id, one.task.attempt): one for one in held}
        for status, action in answer.actions:
            one = by_attempt.get((status.task_id, status.attempt))
            if one is not None and not one.is_over:
                one.action = action


class GpuWorker(Executor):
    """Takes steps, keeps checkpoints, obeys yield and stop."""

    def __init__(self, world: "World", worker_id: str, pool: str, num_slots: int) -> None:
        super().__init__(world, worker_id, pool, num_slots)
        self.redis: Any = SimulatedRedis(self.process)
        self.inbox_key = keys.inbox(pool, worker_id)
        self.mail = asyncio.Event()
        self._last_id = "0"
        self._assigned: asyncio.Queue[str] = asyncio.Queue()
        self._early: dict[str, tuple[int, Action]] = {}

    def start(self) -> None:
        super().start()
        self.process.spawn(self._read_forever())
        for _ in range(self.num_slots):
            self.process.spawn(self._consume())

    async def _read_forever(self) -> None:
        has_failed = False
        while True:
            try:
                if has_failed:
                    newest = await self.redis.xrevrange(self.inbox_key, count=1)
                    if newest and id_order(newest[0][0]) < id_order(self._last_id):
                        self._last_id = "0"
                entries = await self.redis.xrange(self.inbox_key, min=f"({self._last_id}")
                has_failed = False
            except RedisError:
                has_failed = True
                await asyncio.sleep(0.5)
                continue
            for entry_id, fields in entries:
                self._last_id = entry_id
                self._hand_on(json.loads(fields["data"]))
            with suppress(TimeoutError):
                async with asyncio.timeout(10.0):
                    await self.mail.wait()
            self.mail.clear()

    def _hand_on(self, entry: dict[str, Any]) -> None:
        if entry["command"] == "assign":
            for task in entry["tasks"]:
                self._assigned.put_nowait(task["task_id"])
                if self.world.injector.happens(self.world.setting.redelivers):
                    lag_s = self.world.injector.lag_s()
                    self.world.loop.call_later(lag_s, self._assigned.put_nowait, task["task_id"])
            return
        action = {"yield": Action.YIELD, "run": Action.RUN, "stop": Action.STOP}[entry["command"]]
        held = self.held.get(entry["task_id"])
        if held is None:
            self._early[entry["task_id"]] = (int(entry["attempt"]), action)
        elif held.task.attempt == int(entry["attempt"]) and not held.is_over:
            held.action = action

    async def _consume(self) -> None:
        while True:
            task_id = await self._assigned.get()
            held = None if self.is_draining else await self.claim_patiently(task_id)
            if held is None:
                continue
            attempt, action = self._early.pop(task_id, (0, Action.RUN))
            if attempt == held.task.attempt and not held.is_over:
                held.action = action
            await self._run(held)

    async def _run(self, held: Held) -> None:
        task, world = held.task, self.world
        total, step_s = world.steps_of(task)
        step = task.checkpoints[0].done if task.checkpoints else 0
        saved = step
        breaks_at = self.rng.randint(step, total) if world.injector.happens(world.setting.failing) else -1
        held.progress = Progress(step, total, "step", "denoising")
        while step < total:
            if held.is_over:
                return await self._drop(held)
            if held.action is Action.YIELD or self.is_draining:
                if step > saved:
                    await self._save(held, step)
                await self.report(held, Outcome.YIELDED)
                return None
            if step == breaks_at:
                code = self.rng.choice(("internal", "internal", "unavailable", "invalid_request"))
                await self.report(held, Outcome.FAILED, code=code)
                return None
            await self.pass_time(held, step_s)
            step += 1
            held.progress = Progress(step, total, "step", "denoising")
            if step - saved >= world.setting.checkpoint_steps or step == total:
                self.process.spawn(self._save(held, step))
                saved = step
        if held.is_over:
            return await self._drop(held)
        await asyncio.sleep(0.1)  # decode and upload
        await self.process.gate()
        await self.report(held, Outcome.DONE, (artifact(task, self.worker_id, "mezzanine.mkv", "mezzanine"),))
        return None

    async def leave(self) -> None:
        """Obey SIGTERM: give everything back, say so, and end."""
        self.is_draining = True
        self.poke()
        until_s = self.world.loop.time() + DRAIN_S
        while self.held and self.world.loop.time() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        with suppress(VitascopeError):
            await self._beat()
        self.process.crash()

    async def _drop(self, held: Held) -> None:
        if held.action is Action.STALE:
            self.release(held)
        else:
            await self.report(held, Outcome.CANCELLED)

    async def _save(self, held: Held, step: int) -> None:
        """Upload a checkpoint in the background; the next heartbeat tells of it."""
        await asyncio.sleep(self.rng.choice((0.0, 0.05, 1.0)))
        await self.process.gate()
        one = artifact(held.task, self.worker_id, f"checkpoint-{step}.safetensors", "checkpoint")
        if held.checkpoint is None or held.checkpoint.done < step:
            held.checkpoint = Checkpoint(step, "step", (one,))
            self.poke()


class Postproc(Executor):
    """Takes messages from the broker; acknowledged on receipt, so one that dies with it is gone."""

    executor = "postproc"

    def __init__(self, world: "World", worker_id: str) -> None:
        super().__init__(world, worker_id, "postproc", 0)

    def start(self) -> None:
        super().start()
        self.process.spawn(self._consume())

    async def _consume(self) -> None:
        while True:
            task_id = await self.world.broker.receive(self.process)
            held = await self.claim_patiently(task_id)
            if held is not None:
                await self._run(held)

    async def _run(self, held: Held) -> None:
        breaks = self.world.injector.happens(self.world.setting.failing)
        for step in range(STEPS_OF_FINISH):
            if held.is_over:
                if held.action is Action.STALE:
                    self.release(held)
                else:
                    await self.report(held, Outcome.CANCELLED)
                return
            held.progress = Progress(step, STEPS_OF_FINISH, "frame", "postprocessing")
            await self.pass_time(held, 0.4)
        if breaks:
            await self.report(held, Outcome.FAILED, code="internal")
            return
        await self.report(held, Outcome.DONE, (artifact(held.task, self.worker_id, "manifest.json", "manifest"),))
