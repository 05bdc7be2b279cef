"""gRPC between processes: requests and answers get lost, late and doubled."""

import asyncio
import random
from typing import TYPE_CHECKING, Any

from tests.simulation.process import Process
from tests.simulation.scheduler import Replica

from vitascope_common.errors import DeadlineError, UnavailableError, VitascopeError
from vitascope_common.executor import CALL_TIMEOUT_S, Action

if TYPE_CHECKING:
    from tests.simulation.world import World


class Calls:
    """Carries calls to some scheduler, and looks at what it answers."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._rng = random.Random(f"calls {world.setting.seed}")

    async def call(self, caller: Process, method: str, *arguments: Any) -> Any:
        """Call some scheduler. Raises VitascopeError, as a gRPC client does."""
        fate = await caller.before("rpc", UnavailableError)
        if self._world.injector.loses("rpc"):
            await asyncio.sleep(self._world.injector.lag_s())
            raise UnavailableError("the request was lost")
        if self._world.injector.doubles("rpc"):
            lag_s = self._world.injector.lag_s()
            self._world.loop.call_later(lag_s, self._handle_again, method, arguments)
        answer = self._handle(method, arguments)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                found = await asyncio.shield(answer)
        except TimeoutError:
            raise DeadlineError("the scheduler does not answer") from None
        await caller.after(fate, UnavailableError)
        await caller.gate()
        if caller.cut_off_until_s > self._world.loop.time() or self._world.injector.loses("rpc"):
            raise UnavailableError("the answer was lost")
        return found

    def _handle_again(self, method: str, arguments: tuple[Any, ...]) -> None:
        if not self._world.is_over:
            self._handle(method, arguments)

    def _handle(self, method: str, arguments: tuple[Any, ...]) -> "asyncio.Future[Any]":
        alive = [one for one in self._world.replicas if one.process.is_alive]
        answer: asyncio.Future[Any] = self._world.loop.create_future()
        answer.add_done_callback(lambda future: future.exception())  # a second answer is read by nobody
        if not alive:
            answer.set_exception(UnavailableError("no scheduler is there"))
            return answer
        replica = alive[self._rng.randrange(len(alive))]
        call = replica.process.spawn(self._serve(replica, method, arguments, answer))

        def ended(_: object) -> None:
            if not answer.done():
                answer.set_exception(UnavailableError("it was killed"))

        call.add_done_callback(ended)
        return answer

    async def _serve(
        self, replica: Replica, method: str, arguments: tuple[Any, ...], answer: "asyncio.Future[Any]"
    ) -> None:
        await replica.process.gate()
        since = self._world.sql.num_commits
        try:
            service = replica.operator if method == "set_drain" else replica.scheduler
            found = await getattr(service, method)(*arguments)
        except VitascopeError as error:
            if not answer.done():
                answer.set_exception(error)
            return
        self._check_answer(method, arguments, found, since)
        if not answer.done():
            answer.set_result(found)

    def _check_answer(self, method: str, arguments: tuple[Any, ...], found: Any, since: int) -> None:
        if method == "heartbeat":
            for status, action in found.actions:
                if action in (Action.RUN, Action.YIELD):
                    self._world.sql.answered_run(status.task_id, status.attempt, since)
        elif method == "report":
            report = arguments[0]
            self._world.sql.answered_report(report.task_id, report.attempt, report.outcome.value, found.is_accepted)
        elif method == "claim" and found.task is not None:
            self._world.sql.answered_claim(found.task.task_id, found.task.attempt, arguments[1], since)
