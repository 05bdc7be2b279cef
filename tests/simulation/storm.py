"""The large things that go wrong: Redis forgets, something is away, processes are killed, paused or cut off."""

import asyncio
import random
from typing import TYPE_CHECKING

from tests.simulation.executors import GpuWorker
from tests.simulation.faults import Blow
from tests.simulation.redis_server import Snapshot

if TYPE_CHECKING:
    from tests.simulation.world import World


class Storm:
    """Strikes each blow at its time."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.redis_away_until_s = self.sql_away_until_s = 0.0

    def start(self) -> None:
        """Let the blows fall that the seed has drawn."""
        for blow in self._world.setting.blows:
            self._world.nature.spawn(self._strike(blow))

    def end(self) -> None:
        """Let everything be reachable again."""
        self.redis_away_until_s = self.sql_away_until_s = 0.0
        world = self._world
        for process in (*(one.process for one in world.replicas), *(one.process for one in world.executors)):
            process.paused_until_s = min(process.paused_until_s, world.loop.time() + 5)
            process.cut_off_until_s = 0.0

    async def _strike(self, blow: Blow) -> None:
        tail_s = random.Random(f"{self._world.setting.seed} {blow.number}").choice((0.05, 0.5, 1.0, 3.0, 8.0))
        tail_s = min(tail_s, blow.at_s)
        snapshot: Snapshot | None = None
        await asyncio.sleep(blow.at_s - tail_s)
        if blow.what in ("restore", "rewind"):
            snapshot = self._world.server.snapshot()
            self._world.say("snapshot")
        await asyncio.sleep(tail_s)
        if self._world.injector.is_over:
            return
        until_s = self._world.loop.time() + blow.length_s
        self._world.sql.seen[f"blow {blow.what}"] += 1
        self._world.say("blow", blow.what, f"{blow.length_s} s")
        if blow.what == "wipe":
            self._world.server.wipe()
            self._lost()
        elif snapshot is not None:
            self._world.server.restore(snapshot)
            self._lost()
            if blow.what == "rewind":  # nobody can see it: no new epoch
                return
            self._world.server.restart()
            self.redis_away_until_s = self._world.loop.time() + min(blow.length_s, 3.0)
        elif blow.what == "restart":
            self._world.server.restart()
            self.redis_away_until_s = self._world.loop.time() + min(blow.length_s, 3.0)
        elif blow.what == "redis_away":
            self.redis_away_until_s = until_s
        elif blow.what == "sql_away":
            self.sql_away_until_s = until_s
        elif blow.what == "broker_wipe":
            self._world.broker.messages.clear()
        elif blow.what in ("cancel", "delete"):
            await self._world.requests.end_job(blow)
        elif blow.what == "drain":
            await self._world.requests.drain(blow)
        else:
            self._hit(blow, until_s)

    def _hit(self, blow: Blow, until_s: float) -> None:
        verb, _, what = blow.what.rpartition("_")
        busy = [one.process for one in self._world.executors if one.held]
        victims = [one.process for one in (self._world.replicas if what == "replica" else self._world.executors)]
        if what == "worker" and busy:
            victims = busy
        if not victims:
            return
        victim = victims[blow.number % len(victims)]
        self._world.say(victim.name, verb, f"until {until_s:.1f}")
        if verb == "kill":
            victim.kill()
            victim.on_crash()
        elif verb == "stop":
            leaving = next(one for one in self._world.executors if one.process is victim)
            if isinstance(leaving, GpuWorker) and not leaving.is_draining:
                victim.spawn(leaving.leave())
        elif verb == "pause":
            victim.paused_until_s = until_s
        else:
            victim.cut_off_until_s = until_s

    def _lost(self) -> None:
        self._world.redis.lost(sorted({*self._world.setting.pools, "postproc"}))
        self._world.events.lost()
