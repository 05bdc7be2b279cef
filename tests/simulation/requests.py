"""What clients and operators ask for."""

import asyncio
import random
from typing import TYPE_CHECKING, Any

from tests.simulation.adapters import SimulatedDatabase
from tests.simulation.faults import Blow
from tests.simulation.process import Process

from vitascope_common.errors import NotFoundError, UnavailableError, VitascopeError
from vitascope_common.jobs import GENERATE, TERMINAL_JOB, GenerateParams, JsonParams, Kind, Stage
from vitascope_common.registry import ModelCard
from vitascope_common.registry_cards import Cost, Defaults, Price
from vitascope_gateway.admission import NewJob, admit

if TYPE_CHECKING:
    from tests.simulation.world import World


class Requests:
    """Submits, cancels, deletes and drains; each request comes through a gateway of its own."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._rng = random.Random(f"requests {world.setting.seed}")
        self._job_ids: list[tuple[str, str]] = []
        self.num_submitted = 0

    def start(self) -> None:
        """Let every job come at its time."""
        setting = self._world.setting
        for number in range(setting.num_jobs):
            self._world.nature.spawn(self.submit(number, self._rng.uniform(0, setting.fault_end_s * 0.5)))

    async def submit(self, number: int, at_s: float) -> None:
        rng, setting, world = self._rng, self._world.setting, self._world
        tenant_id = rng.choice(setting.tenants)[0]
        token = f"{rng.getrandbits(72):018x}{number:02x}"
        class_name = (
            rng.choice(("realtime", "standard", "batch", "batch", "batch")) if setting.has_classes else "standard"
        )
        deadline_s = rng.uniform(3, 25) if rng.random() < setting.hurried else None
        card = _card(setting.pools[rng.randrange(len(setting.pools))])
        priority, num_steps = rng.choice((0, 0, 1)), rng.randint(6, 24)
        what: dict[str, Any] = {"kind": GENERATE, "params": _params(num_steps, rng.choice((20, 50)))}
        if rng.random() < setting.sharded:
            what = _sharded(rng.randint(2, 6), num_steps // 3)
        await asyncio.sleep(at_s)
        now_ms = world.clock()
        job = NewJob(
            job_id=(job_id := f"video_{now_ms:012x}{token}"),
            tenant_id=tenant_id,
            card=card,
            prompt="a ball",
            safety={},
            labels={},
            traceparent="",
            created_at_ms=now_ms,
            class_name=class_name,
            priority=priority,
            deadline_at_ms=None if deadline_s is None else now_ms + int(deadline_s * 1000),
            **what,
        )
        self._job_ids.append((job_id, tenant_id))
        self.num_submitted += 1
        gateway = Process(world, f"gateway-{number}")
        gateway.spawn(self._admit(gateway, job))

    async def _admit(self, gateway: Process, job: NewJob) -> None:
        world = self._world
        for _ in range(3):
            try:
                await admit(SimulatedDatabase(world.database, gateway), job)
            except UnavailableError:
                await asyncio.sleep(0.5)
                if job.job_id in world.sql.jobs:
                    return  # the client does not know; it is there all the same
                continue
            world.sql.acknowledged.add(job.job_id)
            await self._ask("submit", job.job_id)
            return

    async def _ask(self, method: str, *arguments: Any) -> None:
        client = Process(self._world, "client")
        try:
            answer = await self._world.calls.call(client, method, *arguments)
        except NotFoundError:
            if arguments[0] in self._world.sql.acknowledged:
                self._world.violate("an acknowledged job is never lost", f"{method} {arguments}")
        except VitascopeError:
            return
        else:
            if method == "cancel" and answer not in TERMINAL_JOB:
                self._world.violate("a cancelled job is over", f"{arguments[0]}: {answer}")

    async def drain(self, blow: Blow) -> None:
        pool = self._world.setting.pools[blow.number % len(self._world.setting.pools)]
        workers = sorted(one.worker_id for one in self._world.executors if one.pool == pool)
        worker_id = workers[blow.number % len(workers)] if workers and blow.number % 2 else ""
        await self._ask("set_drain", pool, worker_id, True, "operator")
        await asyncio.sleep(blow.length_s)
        while self._world.connection.execute("SELECT count(*) FROM drains").fetchone()[0]:
            await self._ask("set_drain", pool, worker_id, False, "operator")
            await asyncio.sleep(0.5)

    async def end_job(self, blow: Blow) -> None:
        if not self._job_ids:
            return
        job_id, tenant_id = self._job_ids[blow.number % len(self._job_ids)]
        num_times = 5 if blow.number % 3 == 0 else 1
        await asyncio.gather(*(self._ask(blow.what, job_id, tenant_id) for _ in range(num_times)))


def _sharded(num_shards: int, num_steps: int) -> dict[str, Any]:
    """Return a kind whose clip is cut into shards, each of them done in two steps, and joined at the end."""
    kind = Kind(
        "shards",
        (
            Stage("cut", "gpu-worker", None, None, True, "step", num_shards),
            Stage("refine", "gpu-worker", None, "cut", True, "step", num_shards, needs_same_shard=True),
            Stage("join", "postproc", "postproc", "refine", False, "frame", publishes=True),
        ),
    )
    params = {name: JsonParams({"steps": n}) for name, n in (("cut", num_steps), ("refine", 2), ("join", 2))}
    return {"kind": kind, "params": params, "costs_s": {"cut": num_steps * 0.3, "refine": 0.6}}


def _card(pool: str) -> ModelCard:
    return ModelCard.model_construct(
        id="vita-mini-6",
        pool=pool,
        group_size=1,
        cost=Cost(fixed_s=0, per_step_frame_s=0.01),
        defaults=Defaults.model_construct(size="64x64"),
        price=Price(usd_micros_per_second=0),
        capabilities=(),
    )


def _params(num_steps: int, num_frames: int) -> GenerateParams:
    return GenerateParams(
        model="vita-mini-6",
        model_sha256="0" * 64,
        prompt="a ball",
        negative_prompt="",
        width_px=64,
        height_px=64,
        num_frames=num_frames,
        fps=8,
        num_inference_steps=num_steps,
        guidance_scale=4.0,
        shift=1.0,
        solver="euler",
        seed=7,
        seconds="4",
    )
