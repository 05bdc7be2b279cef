"""Jobs as the gateway admits them, for tests that need one without the gateway."""

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from vitascope_common import ids, tables
from vitascope_common.database import Database
from vitascope_common.jobs import GENERATE, Artifact, Checkpoint, FinishParams, GenerateParams, TaskState
from vitascope_scheduler.statements import put_outbox
from vitascope_scheduler.tasks import TaskRow

TENANT = "tenant-a"
NUM_STEPS = 30


def generate_params() -> GenerateParams:
    """Return parameters that mean nothing in particular."""
    return GenerateParams(
        model="vita-mini-1",
        model_sha256="0" * 64,
        prompt="a red ball rolls left",
        negative_prompt="",
        width_px=64,
        height_px=64,
        num_frames=17,
        fps=8,
        num_inference_steps=NUM_STEPS,
        guidance_scale=4.0,
        shift=1.0,
        solver="euler",
        seed=7,
        seconds="4",
    )


def finish_params() -> FinishParams:
    """Return parameters of the second stage."""
    return FinishParams("vita-mini-1", "0" * 64, width_px=64, height_px=64, num_frames=17, fps=8)


def artifact(name: str, role: str = "") -> Artifact:
    """Return an artifact that points at nothing."""
    return Artifact(name, role or name, "application/octet-stream", f"work/{name}", "1" * 64, 10)


def checkpoint(done: int) -> Checkpoint:
    """Return a checkpoint after `done` steps."""
    return Checkpoint(done, "step", (artifact(f"checkpoint-{done}", "checkpoint"),))


async def add_tenant(database: Database, tenant_id: str = TENANT, weight: float = 1.0, cap: int = 0) -> None:
    """Insert a tenant."""
    values = {"tenant_id": tenant_id, "name": tenant_id, "weight": weight, "max_in_flight": cap}
    async with database.transaction() as connection:
        await connection.execute(sa.insert(tables.tenants).values(**values, created_at_ms=ids.now_ms()))


async def admit(
    database: Database, *, tenant_id: str = TENANT, pool: str = "default", cost_s: float = 10.0, traceparent: str = ""
) -> str:
    """Write one job, its tasks and its outbox rows in one transaction; return the job's id."""
    job_id, now_ms = ids.new_job_id(), ids.now_ms()
    params = {"generate": asdict(generate_params()), "finish": asdict(finish_params())}
    common: dict[str, Any] = {"job_id": job_id, "tenant_id": tenant_id, "kind": "generate", "created_at_ms": now_ms}
    common["traceparent"] = traceparent
    job = {"model": "vita-mini-1", "state": "queued", "phase": "queued", "prompt": "A red ball", "safety": {}}
    async with database.transaction() as connection:
        await connection.execute(
            sa.insert(tables.jobs).values(**common, **job, params=params["generate"], labels={}, version=1)
        )
        for stage in GENERATE.stages:
            await connection.execute(
                sa.insert(tables.tasks).values(
                    **common,
                    task_id=ids.task_id(job_id, stage.name, 0),
                    stage=stage.name,
                    executor=stage.executor,
                    pool=stage.pool or pool,
                    state=TaskState.WAITING if stage.needs else TaskState.READY,
                    needs=stage.needs or "",
                    num_needed=GENERATE.num_needed(stage),
                    publishes=stage.publishes,
                    params=params[stage.name],
                    inputs=[],
                    outputs=[],
                    checkpoints=[],
                    cost_s=cost_s,
                    yieldable=stage.yieldable,
                    affinity={},
                )
            )
        first = GENERATE.stages[0].name
        payloads: dict[str, dict[str, Any]] = {
            "event": {"type": "queued", "data": {}, "version": 1},
            "ready": {"task_id": ids.task_id(job_id, first, 0)},
        }
        for topic, payload in payloads.items():
            await put_outbox(connection, topic, job_id, tenant_id, traceparent, payload, now_ms)
    return job_id


def task_row(task_id: str, **changes: Any) -> TaskRow:
    """Return the row of a ready task that needs no database."""
    values: dict[str, Any] = {
        "task_id": task_id,
        "job_id": ids.job_id_of(task_id),
        "tenant_id": TENANT,
        "kind": "generate",
        "stage": "generate",
        "shard": 0,
        "executor": "gpu-worker",
        "pool": "default",
        "class_name": "standard",
        "priority": 0,
        "state": TaskState.READY,
        "attempt": 0,
        "num_failures": 0,
        "params": asdict(generate_params()),
        "inputs": [],
        "checkpoints": [],
        "done": 0,
        "total": 0,
        "unit": "step",
        "cost_s": 10.0,
        "used_s": 0.0,
        "group_size": 1,
        "yieldable": True,
        "affinity": {},
        "traceparent": "",
        "created_at_ms": 1_700_000_000_000,
    }
    return TaskRow.from_mapping(values | changes)
