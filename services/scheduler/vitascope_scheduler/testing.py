"""For tests: jobs as the gateway admits them, a look into the database, scheduler and webhook sender as processes."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from vitascope_common import ids, tables, webhooks
from vitascope_common.database import Database
from vitascope_common.jobs import (
    GENERATE,
    MAX_READY_SHARDS,
    Artifact,
    Checkpoint,
    FinishParams,
    GenerateParams,
    Kind,
    Stage,
    TaskState,
)
from vitascope_common.testing import free_port
from vitascope_scheduler.reader import Reader
from vitascope_scheduler.statements import put_outbox
from vitascope_scheduler.tasks import TaskRow

TENANT = "tenant-a"
NUM_STEPS = 30
START_S = 20.0


def generate_params() -> GenerateParams:
    """Return parameters that mean nothing in particular."""
    return GenerateParams(
        model="vita-mini-6",
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
    return FinishParams("vita-mini-6", "0" * 64, width_px=64, height_px=64, num_frames=17, fps=8)


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


async def add_endpoint(
    database: Database,
    url: str,
    *,
    tenant_id: str = TENANT,
    event_types: Sequence[str] = webhooks.EVENT_TYPES,
    **columns: Any,
) -> str:
    """Write a webhook endpoint as the gateway does; return its id."""
    now_ms = ids.now_ms()
    row: dict[str, Any] = {
        "endpoint_id": f"we_{now_ms:012x}{os.urandom(10).hex()}",
        "tenant_id": tenant_id,
        "name": "test",
        "url": url,
        "event_types": list(event_types),
        "secret": webhooks.new_secret(),
        "created_at_ms": now_ms,
        "updated_at_ms": now_ms,
        **columns,
    }
    async with database.transaction() as connection:
        await connection.execute(sa.insert(tables.webhook_endpoints).values(row))
    return str(row["endpoint_id"])


async def add_default_secret(database: Database, tenant_id: str = TENANT) -> str:
    """Write the secret that signs for URLs which requests name, as the gateway does; return it."""
    secret = webhooks.new_secret()
    row = {"tenant_id": tenant_id, "secret": secret, "created_at_ms": ids.now_ms()}
    async with database.transaction() as connection:
        await connection.execute(sa.insert(tables.webhook_tenants).values(row))
    return secret


async def admit(
    database: Database,
    *,
    kind: Kind = GENERATE,
    tenant_id: str = TENANT,
    pool: str = "default",
    cost_s: float = 10.0,
    traceparent: str = "",
    class_name: str = "standard",
    priority: int = 0,
    deadline_at_ms: int | None = None,
    now_ms: int | None = None,
    webhook_url: str | None = None,
    webhook_events: str = "",
) -> str:
    """Write one job, its tasks and its outbox rows in one transaction; return the job's id."""
    job_id, now_ms = ids.new_job_id(), ids.now_ms() if now_ms is None else now_ms
    common: dict[str, Any] = {"job_id": job_id, "tenant_id": tenant_id, "kind": kind.name, "created_at_ms": now_ms}
    common |= {"traceparent": traceparent, "class_name": class_name}
    job: dict[str, Any] = {
        "model": "vita-mini-6",
        "state": "queued",
        "phase": "queued",
        "prompt": "A red ball",
        "safety": {},
        "labels": {},
    }
    job |= {"params": asdict(generate_params()), "version": 1, "deadline_at_ms": deadline_at_ms}
    job |= {"webhook_url": webhook_url, "webhook_events": webhook_events}
    rows = [
        {
            **common,
            "task_id": ids.task_id(job_id, stage.name, shard),
            "stage": stage.name,
            "shard": shard,
            "executor": stage.executor,
            "pool": stage.pool or pool,
            "priority": priority,
            "state": TaskState.WAITING,
            "needs": stage.needs or "",
            "needs_same_shard": stage.needs_same_shard,
            "num_needed": kind.num_needed(stage),
            "publishes": stage.publishes,
            "params": _params(kind, stage),
            "inputs": [],
            "outputs": [],
            "checkpoints": [],
            "cost_s": cost_s,
            "yieldable": stage.yieldable,
            "affinity": {"model": "vita-mini-6"},
        }
        for stage in kind.stages
        for shard in range(stage.num_shards)
    ]
    outbox: list[tuple[str, dict[str, Any]]] = [("event", {"type": "queued", "data": {}, "version": 1})]
    for row in [row for row in rows if not row["needs"]][:MAX_READY_SHARDS]:
        row["state"] = TaskState.READY
        outbox.append(("ready", {"task_id": row["task_id"]}))
    async with database.transaction() as connection:
        await connection.execute(sa.insert(tables.jobs).values(**common, **job))
        await connection.execute(sa.insert(tables.tasks), rows)
        for topic, payload in outbox:
            await put_outbox(connection, topic, job_id, tenant_id, traceparent, payload, now_ms)
    return job_id


def _params(kind: Kind, stage: Stage) -> dict[str, Any]:
    if kind is not GENERATE:
        return {"stage": stage.name}
    return asdict(generate_params() if stage.name == "generate" else finish_params())


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
        "needs": "",
        "needs_same_shard": False,
        "num_needed": 0,
        "publishes": False,
        "num_failures": 0,
        "params": asdict(generate_params()),
        "inputs": [],
        "checkpoints": [],
        "done": 0,
        "total": 0,
        "unit": "step",
        "cost_s": 10.0,
        "cost_ratio": 1.0,
        "used_s": 0.0,
        "ran_s": 0.0,
        "yielded_at_s": [],
        "group_size": 1,
        "yieldable": True,
        "affinity": {},
        "traceparent": "",
        "created_at_ms": 1_700_000_000_000,
    }
    return TaskRow.from_mapping(values | changes)


class Sql:
    """What tests look at in the database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def rows(self, table: sa.Table, **where: Any) -> list[dict[str, Any]]:
        """Read the rows of a table whose columns have these values."""
        statement = sa.select(table).where(*(table.c[name] == value for name, value in where.items()))
        async with self.database.read() as connection:
            return [dict(row) for row in (await connection.execute(statement)).mappings()]

    async def job(self, job_id: str) -> dict[str, Any]:
        """Read one job."""
        (row,) = await self.rows(tables.jobs, job_id=job_id)
        return row

    async def task(self, task_id: str) -> TaskRow:
        """Read one task as the scheduler does."""
        return (await Reader(self.database).tasks([task_id]))[task_id]

    async def states(self, job_id: str) -> dict[str, str]:
        """Return stage -> state of a job whose stages have one shard each."""
        return {row["stage"]: row["state"] for row in await self.rows(tables.tasks, job_id=job_id)}

    async def shards(self, job_id: str, stage: str) -> list[str]:
        """Return the states of all shards of a stage, in order."""
        rows = await self.rows(tables.tasks, job_id=job_id, stage=stage)
        return [row["state"] for row in sorted(rows, key=lambda row: int(row["shard"]))]

    async def events(self, job_id: str) -> list[tuple[str, int, dict[str, Any]]]:
        """Return type, version and data of the state events that are still to be told, in order."""
        rows = await self.rows(tables.outbox, job_id=job_id, topic="event")
        rows.sort(key=lambda row: row["outbox_id"])
        return [(row["payload"]["type"], row["payload"]["version"], row["payload"]["data"]) for row in rows]

    async def ready(self, job_id: str) -> list[str]:
        """Return the tasks that are still to be handed out, in order."""
        rows = await self.rows(tables.outbox, job_id=job_id, topic="ready")
        rows.sort(key=lambda row: row["outbox_id"])
        return [row["payload"]["task_id"] for row in rows]

    async def ledger(self, task_id: str) -> list[tuple[int, str, float]]:
        """Return attempt, outcome and used seconds of every attempt that ended."""
        rows = await self.rows(tables.ledger, task_id=task_id)
        return sorted((row["attempt"], row["outcome"], row["used_s"]) for row in rows)


class SchedulerProcess:
    """`python -m vitascope_scheduler` on one address with short periods, started as often as a test likes."""

    module, service = "vitascope_scheduler", "scheduler"

    def __init__(self, database_url: str, redis_url: str, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.metrics_port = free_port()
        self.log = folder / "scheduler.log"
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "VITASCOPE_DATABASE_URL": database_url,
            "VITASCOPE_REDIS_URL": redis_url,
            "VITASCOPE_BROKER_URL": redis_url,
            "VITASCOPE_OBJECT_STORE_URL": f"file://{folder}/objects",
            "VITASCOPE_SCHEDULER_PORT": self.address.rpartition(":")[2],
            "VITASCOPE_SCHEDULER_METRICS_PORT": str(self.metrics_port),
            "VITASCOPE_SCHEDULER_LEASE_TTL_MS": "1500",
            "VITASCOPE_SCHEDULER_HEARTBEAT_MS": "100",
            "VITASCOPE_SCHEDULER_TICK_MS": "50",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        command = [sys.executable, "-m", self.module]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stderr=log)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(OSError):
                if f'vitascope_ready{{service="{self.service}"}} 1.0' in self.metrics():
                    return
            time.sleep(0.02)
        raise AssertionError(f"{self.module} did not start:\n{self.log.read_text()[-4000:]}")

    def metrics(self) -> str:
        """Return what it says on `/metrics`. Raises OSError while it is not there."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=2) as answer:
            return str(answer.read(), "utf-8")

    def kill(self, signum: int = signal.SIGKILL) -> int:
        """End it; return its exit status."""
        assert self.process is not None
        self.process.send_signal(signum)
        return self.process.wait(START_S)

    def close(self) -> None:
        """Kill it if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.kill()


class WebhooksProcess(SchedulerProcess):
    """`python -m vitascope_scheduler.webhooks`, which may send to this machine."""

    module, service = "vitascope_scheduler.webhooks", "webhooks"

    def __init__(self, database_url: str, folder: Path, *, lease_ms: int = 60_000, retry_ms: int = 10_000) -> None:
        self.metrics_port = free_port()
        self.log = folder / "webhooks.log"
        self.process = None
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "VITASCOPE_DATABASE_URL": database_url,
            "VITASCOPE_LOG_FORMAT": "json",
            "VITASCOPE_URL_ALLOWED_NETWORKS": "127.0.0.0/8",
            "VITASCOPE_WEBHOOKS_METRICS_PORT": str(self.metrics_port),
            "VITASCOPE_WEBHOOKS_POLL_MS": "20",
            "VITASCOPE_WEBHOOKS_LEASE_MS": str(lease_ms),
            "VITASCOPE_WEBHOOKS_RETRY_MS": str(retry_ms),
        }
