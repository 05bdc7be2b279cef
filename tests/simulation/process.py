"""A simulated process: coroutines that live and die together, and whose every effect may go wrong."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from tests.simulation.faults import Fate
from tests.simulation.loop import Clock

from vitascope_common.errors import VitascopeError

if TYPE_CHECKING:
    from tests.simulation.world import World

T = TypeVar("T")
Away = Callable[[str], Exception]


class Process:
    """Something that can be killed or paused between any two effects."""

    def __init__(self, world: "World", name: str, skew_ms: int = 0) -> None:
        self.world = world
        self.name = name
        self.clock = Clock(world.loop, skew_ms)
        self.is_alive = True
        self.paused_until_s = 0.0
        self.cut_off_until_s = 0.0  # reaches nobody: no Redis, no scheduler
        self.on_crash: Callable[[], None] = lambda: None
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run something in this process."""
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        if not self.is_alive:
            task.cancel()
        return task

    def kill(self) -> None:
        """End it as SIGKILL does; no coroutine of it has another effect."""
        if self.is_alive:
            self.is_alive = False
            self.world.say(self.name, "killed")
            for task in self._tasks:
                task.cancel()

    def crash(self) -> None:
        """Die here and now; whoever looks after this process starts another one. Raises CancelledError."""
        self.kill()
        self.on_crash()
        raise asyncio.CancelledError

    async def gate(self) -> None:
        """Wait while this process is paused. Raises CancelledError when it is dead."""
        while self.is_alive and self.paused_until_s > self.world.loop.time():  # noqa: ASYNC110
            await asyncio.sleep(self.paused_until_s - self.world.loop.time())
        if not self.is_alive:
            raise asyncio.CancelledError

    async def before(self, kind: str, away: Away) -> Fate:
        """Let happen what happens before an effect."""
        fate = self.world.injector.fate(kind)
        if fate.delay_before_s:
            await asyncio.sleep(fate.delay_before_s)
        await self.gate()
        if fate.crashes_before:
            self.world.say(self.name, kind, "crashes before")
            self.crash()
        if self.world.is_away(kind, self) or fate.fails_before:
            self.world.say(self.name, kind, "fails")
            raise away("no connection")
        return fate

    async def after(self, fate: Fate, away: Away) -> None:
        """Let happen what happens after an effect."""
        if fate.crashes_after:
            self.world.say(self.name, "crashes after")
            self.crash()
        if fate.delay_after_s:
            await asyncio.sleep(fate.delay_after_s)
            await self.gate()
        if fate.fails_after:
            self.world.say(self.name, "loses the answer")
            raise away("the answer was lost")

    async def effect(self, kind: str, run: Callable[[], T], away: Away) -> T:
        """Do something to the world outside."""
        fate = self.world.injector.fate(kind)
        if fate.is_late:
            await self.gate()
            return await self._later(fate.delay_before_s, kind, run, away)
        if fate.delay_before_s:
            await asyncio.sleep(fate.delay_before_s)
        await self.gate()
        if fate.crashes_before:
            self.crash()
        if fate.fails_before or self.world.is_away(kind, self):
            self.world.say(self.name, kind, "fails")
            raise away("no connection")
        answer = run()
        if fate.crashes_inside or fate.crashes_after:
            self.crash()
        if fate.delay_after_s or fate.fails_after:
            await self.after(fate, away)
        return answer

    async def _later(self, delay_s: float, kind: str, run: Callable[[], T], away: Away) -> T:
        """The request is on its way: it arrives even if this process does not live to see it."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def arrive() -> None:
            if self.world.is_over:
                return
            try:
                if self.world.is_away(kind, self):
                    raise away("no connection")
                found = run()
            except Exception as error:
                if not answer.done():
                    answer.set_exception(error)
                    answer.exception()
            else:
                if not answer.done():
                    answer.set_result(found)

        asyncio.get_running_loop().call_later(delay_s, arrive)
        return await answer

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, VitascopeError):
            self.world.violate("no unexpected error", f"{self.name}: {error!r}", error)
