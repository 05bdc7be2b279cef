"""One simulated world: replicas of the scheduler, executors, clients, a broker, and what goes wrong."""

import asyncio
import random
import sqlite3
from collections.abc import Callable
from typing import Any

from tests.simulation.calls import Calls
from tests.simulation.event_rules import EventRules
from tests.simulation.executors import STEPS_OF_FINISH, Executor, GpuWorker, Postproc
from tests.simulation.faults import Injector, Setting
from tests.simulation.loop import Clock, SimulatedLoop
from tests.simulation.process import Process
from tests.simulation.redis_rules import DUMP, RedisRules
from tests.simulation.redis_server import Server
from tests.simulation.requests import Requests
from tests.simulation.scheduler import Broker, Replica
from tests.simulation.sql_rules import SqlRules
from tests.simulation.storm import Storm

from vitascope_common import keys
from vitascope_common.database import Database
from vitascope_common.jobs import TERMINAL_JOB, GenerateParams, JsonParams, Task

QUIET_S = 400.0
"""How long everything may take to end once nothing goes wrong any more."""
CHANGES_NOTHING: dict[str, frozenset[Any]] = {
    "dispatch": frozenset({0, 1}),
    "enqueue": frozenset({"known"}),
    "lease": frozenset({"renewed", "stale"}),
    "settle": frozenset({0}),
    "stop": frozenset({"unknown"}),
    "preempt": frozenset({None}),
}
"""Scripts and the answers with which they have moved no task, slot or tag."""
SEEN_ELSEWHERE = frozenset({"append_event", "lead", "line", "view"})
"""Scripts that touch no queue."""


class ViolationError(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, details: str) -> None:
        super().__init__(f"{invariant}: {details}")
        self.invariant, self.details = invariant, details


class World:
    """Everything there is, for one seed."""

    def __init__(
        self, setting: Setting, loop: SimulatedLoop, server: Server, database: Database, connection: sqlite3.Connection
    ) -> None:
        self.setting, self.loop, self.server, self.database = setting, loop, server, database
        self.clock = Clock(loop)
        self.rng = random.Random(f"world {setting.seed}")
        self.injector = Injector(setting)
        self.broker = Broker(self)
        self.log: list[tuple[Any, ...]] = []
        self.on_say: Callable[[str], None] | None = None
        self.violation: ViolationError | None = None
        self.is_over = self.is_traced = False
        self.num_effects = 0
        self.num_compared = 0
        self.replicas: list[Replica] = []
        self.executors: list[Executor] = []
        self.connection = connection
        self.sql = SqlRules(connection, self.violate, self.say)
        self.redis = RedisRules(self._dump, self.violate)
        self.events = EventRules(self.violate)
        self.nature = Process(self, "nature")
        self.calls, self.requests, self.storm = Calls(self), Requests(self), Storm(self)
        self._num_started = 0
        self._stopped = asyncio.Event()
        server.begin(loop.time, self._on_xadd)
        (self._dump_sha,) = server.ask_unseen(("SCRIPT", "LOAD", DUMP))

    # ---- what everybody may ask

    def say(self, *words: Any) -> None:
        """Write a line of the event log."""
        if self.is_over:
            return
        line = (self.loop.time(), *words)
        self.log.append(line)
        if self.on_say is not None:
            self.on_say(format_line(line))

    def violate(self, invariant: str, details: str, cause: BaseException | None = None) -> None:
        """An invariant does not hold: the simulation ends. The first one counts."""
        if self.violation is None:
            self.violation = ViolationError(invariant, details)
            self.violation.__cause__ = cause
            self.say("VIOLATION", invariant, details)
            self._stopped.set()

    def is_away(self, kind: str, process: Process) -> bool:
        """Tell whether something cannot be reached."""
        now_s = self.loop.time()
        if kind == "redis":
            return self.storm.redis_away_until_s > now_s or process.cut_off_until_s > now_s
        if kind == "sql":
            return self.storm.sql_away_until_s > now_s
        return process.cut_off_until_s > now_s

    def committed(self, process: Process) -> None:
        """A transaction is committed."""
        self.num_effects += 1
        self.sql.committed(process.name)

    def steps_of(self, task: Task) -> tuple[int, float]:
        """Return how many steps a task has and how long one takes."""
        if isinstance(task.params, GenerateParams):
            return task.params.num_inference_steps, task.params.num_frames * 0.01
        if isinstance(task.params, JsonParams):
            return task.params.values["steps"], 0.3
        return STEPS_OF_FINISH, 0.4

    def begins(self, executor: Executor, task: Task) -> None:
        """An executor has won a task."""
        if len(executor.held) > max(1, executor.num_slots):
            self.violate("no worker runs more than its slots", f"{executor.worker_id}: {sorted(executor.held)}")

    def computed(self, task: Task, worker_id: str, used_s: float) -> None:
        """An attempt has run for so long in all."""
        key = (task.task_id, task.attempt)
        self.sql.computed_s[key] = max(used_s, self.sql.computed_s.get(key, 0.0))

    # ---- Redis

    def ask_redis(self, process: Process, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Run commands of a process, and look at what they did."""
        answers = []
        for command in commands:
            self.num_effects += 1
            name = self.server.script_name(command)
            names = [str(one) for one in command[3 : 3 + int(command[2])]] if name else []
            pool = names[0].partition("{")[2].partition("}")[0] if name and name not in SEEN_ELSEWHERE else ""
            answer, *dumps = self.server.ask(command, *([self._look(pool)] if pool else ()))
            answers.append(answer)
            if self.is_traced:
                self.say(process.name, "redis", name or command[0], *command[1 + 2 * bool(name) :])
            if isinstance(answer, Exception) or not name:
                continue
            arguments = [str(one) for one in command[3 + len(names) :]]
            if name == "append_event":
                self._appended(process, arguments, answer)
            elif pool:
                self._ran(process, name, pool, arguments, answer, dumps[0])
        return answers

    def _appended(self, process: Process, arguments: list[str], answer: Any) -> None:
        job_id, event_type, _, version, _, attempt, *_ = arguments
        self.say(process.name, "append_event", job_id, event_type, version, attempt, "new" if answer else "old")
        if answer:
            self.events.appended(job_id, event_type, version)

    def _ran(self, process: Process, name: str, pool: str, arguments: list[str], answer: Any, dump: Any) -> None:
        nothing = CHANGES_NOTHING.get(name, frozenset())
        is_nothing = answer == [] if name == "drain" else not isinstance(answer, list) and answer in nothing
        if not is_nothing or name == "enqueue":
            self.say(process.name, name, pool, *arguments[2:5], "=>", _short(answer))
        if not is_nothing:
            self.sql.seen[f"{name} {answer if isinstance(answer, str) else ''}".strip()] += 1
            self.redis.ran(pool, name, answer, dump)

    def _look(self, pool: str) -> tuple[Any, ...]:
        return ("EVALSHA", self._dump_sha, 0, pool)

    def _dump(self, pool: str) -> str:
        (text,) = self.server.ask_unseen(self._look(pool))
        if isinstance(text, Exception):
            raise text
        return str(text)

    def _on_xadd(self, key: str) -> None:
        for one in self.executors:
            if isinstance(one, GpuWorker) and one.inbox_key == key:
                one.mail.set()

    # ---- who is there

    def _start_replica(self, number: int) -> None:
        if self.is_over:
            return
        skew_ms = self.setting.skew_ms * (number % 2)
        replica = Replica(self, f"scheduler-{number}", skew_ms)
        replica.process.on_crash = lambda: self._replace_replica(replica, number)
        self.replicas.append(replica)
        self.say(replica.process.name, "starts")
        replica.start()

    def _replace_replica(self, replica: Replica, number: int) -> None:
        self.replicas.remove(replica)
        self.loop.call_later(self.rng.uniform(0.1, 6), self._start_replica, number)

    def _start_executor(self, number: int, is_postproc: bool) -> None:
        if self.is_over:
            return
        self._num_started += 1
        pools = self.setting.pools
        executor: Executor
        if is_postproc:
            executor = Postproc(self, f"postproc-{number}.{self._num_started}")
        else:
            name, pool = f"worker-{number}.{self._num_started}", pools[number % len(pools)]
            executor = GpuWorker(self, name, pool, self.setting.num_slots)
        executor.process.on_crash = lambda: self._replace_executor(executor, number, is_postproc)
        self.executors.append(executor)
        self.say(executor.worker_id, "starts")
        executor.start()

    def _replace_executor(self, executor: Executor, number: int, is_postproc: bool) -> None:
        self.executors.remove(executor)
        self.loop.call_later(self.rng.uniform(0.5, 8), self._start_executor, number, is_postproc)

    # ---- a life

    async def live(self) -> None:
        """Begin, suffer, recover and end. Raises ViolationError."""
        setting = self.setting
        self.sql.committed("begin")
        for number in range(setting.num_replicas):
            self._start_replica(number)
        for number in range(max(setting.num_workers, len(setting.pools))):
            self._start_executor(number, is_postproc=False)
        for number in range(setting.num_postproc):
            self._start_executor(number, is_postproc=True)
        self.requests.start()
        self.storm.start()
        stop = asyncio.create_task(self._stopped.wait())
        main = asyncio.create_task(self._run())
        await asyncio.wait((stop, main), return_when=asyncio.FIRST_COMPLETED)
        self.is_over = True
        for process in (self.nature, *(one.process for one in self.replicas), *(one.process for one in self.executors)):
            process.is_alive = False
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if main.done() and not main.cancelled() and main.exception() is not None:
            raise main.exception() or AssertionError
        if self.violation is not None:
            raise self.violation

    async def _run(self) -> None:
        while self.loop.time() < self.setting.fault_end_s and not self._has_nothing_to_do():  # noqa: ASYNC110
            await asyncio.sleep(1.0)
        self.injector.is_over = True
        self.storm.end()
        self.say("quiet")
        until_s = self.loop.time() + QUIET_S
        while unfinished := self._unfinished():
            if self.loop.time() > until_s:
                self.violate("everything ends once nothing goes wrong", "; ".join(unfinished))
                return
            await asyncio.sleep(1.0)
        self.say("drained")
        self.sql.check_end()
        self.events.check_end(self.sql.jobs, self._num_stored)
        self.num_compared = self.redis.check_end(self.sql)

    def _num_stored(self, job_id: str) -> int:
        return int(self.server.ask_unseen(("XLEN", keys.events(job_id)))[0])

    def _has_nothing_to_do(self) -> bool:
        is_all_here = self.requests.num_submitted == self.setting.num_jobs
        return is_all_here and all(row["state"] in TERMINAL_JOB for row in self.sql.jobs.values())

    def _unfinished(self) -> list[str]:
        found = [
            f"{job_id} is {row['state']}" for job_id, row in self.sql.jobs.items() if row["state"] not in TERMINAL_JOB
        ]
        if found:
            return found
        if num_outbox := self.sql.num_outbox():
            return [f"{num_outbox} rows are in the outbox"]
        for pool in (*self.setting.pools, "postproc"):
            self.redis.ran(pool, "end", None, self._dump(pool))
            view = self.redis.views[pool]
            if not view.is_empty:
                found.append(f"pool {pool} still holds {sorted(view.tasks)}, leases {sorted(view.leases)}")
            for one in self.executors:
                slots = view.workers.get(one.worker_id, {})
                if one.pool == pool and one.num_slots and (not slots or one.worker_id not in view.idle):
                    found.append(f"{one.worker_id} of pool {pool} is not idle: {slots}")
        found += [f"{one.worker_id} holds {sorted(one.held)}" for one in self.executors if one.held]
        return found


def _short(answer: Any) -> str:
    return " ".join(str(one) for one in answer[:2]) if isinstance(answer, list) else str(answer)


def format_line(line: tuple[Any, ...]) -> str:
    """Return a line of the event log as text; job ids are cut to what tells them apart."""
    at_s, *words = line
    text = " ".join(str(word) for word in words if word != "")
    return f"{at_s:9.3f} {shorten(text)}"


def shorten(text: str) -> str:
    """Cut job ids to their last two digits."""
    parts = text.split("video_")
    return parts[0] + "".join(f"job-{part[30:32]}{part[32:]}" for part in parts[1:])
