"""What runs really cost: learned from undisturbed ones, applied at admission, over SQLite and PostgreSQL."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from vitascope_common import ids, tables
from vitascope_common.database import Database
from vitascope_common.executor import Outcome
from vitascope_common.jobs import GENERATE, GenerateParams
from vitascope_common.registry import ModelCard, Registry
from vitascope_gateway import admission
from vitascope_gateway.admission import NewJob
from vitascope_scheduler.costs import ALPHA, MAX_RATIO, MIN_RATIO, NUM_FIRST
from vitascope_scheduler.job_manager import JobManager, Report, TaskStatus
from vitascope_scheduler.testing import TENANT, Sql, admit, artifact, checkpoint, generate_params

MEZZANINE = artifact("mezzanine", "mezzanine")
MODEL = "vita-mini-6"


async def run(manager: JobManager, job_id: str, used_s: float, attempt: int = 1) -> None:
    task_id = ids.task_id(job_id, "generate", 0)
    assert (await manager.claim(task_id, "w")).task
    report = Report(task_id, attempt, Outcome.DONE, (MEZZANINE,), used_s=used_s)
    assert (await manager.report(report)).is_accepted


async def ratio(look: Sql, pool: str = "default", model: str = MODEL) -> tuple[float, int]:
    (row,) = await look.rows(tables.cost_ratios, pool=pool, model=model)
    return float(row["ratio"]), int(row["num_runs"])


async def test_the_average_follows_what_runs_cost(manager: JobManager, database: Database, look: Sql) -> None:
    await run(manager, await admit(database, cost_s=10.0), 20.0)
    assert await ratio(look) == (pytest.approx(2.0), 1)
    await run(manager, await admit(database, cost_s=10.0), 40.0)
    assert await ratio(look) == (pytest.approx(3.0), 2)  # at first a plain mean
    for _ in range(NUM_FIRST - 2):
        await run(manager, await admit(database, cost_s=10.0), 30.0)
    assert await ratio(look) == (pytest.approx(3.0), NUM_FIRST)
    await run(manager, await admit(database, cost_s=10.0), 10.0)
    assert await ratio(look) == (pytest.approx(3.0 + ALPHA * (1.0 - 3.0)), NUM_FIRST + 1)


async def test_a_run_counts_by_its_size(manager: JobManager, database: Database, look: Sql) -> None:
    """What is charged in all is right on average, not what is charged per run."""
    for cost_s, used_s in ((1.0, 4.0), (9.0, 9.0)):
        await run(manager, await admit(database, cost_s=cost_s), used_s)
    assert await ratio(look) == (pytest.approx(13.0 / 10.0), 2)
    for _ in range(NUM_FIRST - 2):
        await run(manager, await admit(database, cost_s=5.0), 6.5)
    await run(manager, await admit(database, cost_s=45.0), 90.0)
    actual_s, estimate_s = (ALPHA * new + (1 - ALPHA) * old for new, old in ((90.0, 6.5), (45.0, 5.0)))
    assert (await ratio(look))[0] == pytest.approx(actual_s / estimate_s)


async def test_a_backlog_that_was_admitted_before_the_correction_teaches_the_same(
    manager: JobManager, database: Database, look: Sql
) -> None:
    """Each observation is about the card, not about the ratio that was applied to it."""
    jobs = [await admit(database, cost_s=10.0) for _ in range(20)]
    corrected = [await admit(database, cost_s=40.0) for _ in range(5)]
    async with database.transaction() as connection:
        tasks = tables.tasks
        applied = sa.update(tasks).where(tasks.c.job_id.in_(corrected)).values(cost_ratio=4.0)
        await connection.execute(applied)
    for job_id in [*jobs, *corrected]:
        await run(manager, job_id, 40.0)
    assert await ratio(look) == (pytest.approx(4.0), 25)


@pytest.mark.parametrize(("used_s", "expected"), [(0.001, MIN_RATIO), (1e6, MAX_RATIO)])
async def test_one_run_cannot_turn_everything_over(
    manager: JobManager, database: Database, look: Sql, used_s: float, expected: float
) -> None:
    await run(manager, await admit(database), used_s)
    assert (await ratio(look))[0] == pytest.approx(expected)


async def test_devices_that_work_together_are_all_counted(manager: JobManager, database: Database, look: Sql) -> None:
    job_id = await admit(database, cost_s=10.0)
    async with database.transaction() as connection:
        await connection.execute(sa.update(tables.tasks).values(group_size=2))
    await run(manager, job_id, 5.0)
    assert await ratio(look) == (pytest.approx(1.0), 1)


class TestNothingIsLearned:
    async def test_from_a_run_that_was_disturbed(self, manager: JobManager, database: Database, look: Sql) -> None:
        job_id = await admit(database)
        task_id = ids.task_id(job_id, "generate", 0)
        await manager.claim(task_id, "w")
        await manager.heartbeat(TaskStatus(task_id, 1, checkpoint=checkpoint(10)))
        await manager.report(Report(task_id, 1, Outcome.YIELDED, used_s=4.0))
        await run(manager, job_id, 6.0, attempt=2)
        assert await look.rows(tables.cost_ratios) == []

    @pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.CANCELLED, Outcome.YIELDED])
    async def test_from_one_that_did_not_end_well(
        self, manager: JobManager, database: Database, look: Sql, outcome: Outcome
    ) -> None:
        task_id = ids.task_id(await admit(database), "generate", 0)
        await manager.claim(task_id, "w")
        await manager.report(Report(task_id, 1, outcome, used_s=4.0))
        assert await look.rows(tables.cost_ratios) == []

    @pytest.mark.parametrize("used_s", [0.0, -1.0])
    async def test_from_a_worker_that_does_not_measure(
        self, manager: JobManager, database: Database, look: Sql, used_s: float
    ) -> None:
        await run(manager, await admit(database), used_s)
        assert await look.rows(tables.cost_ratios) == []

    async def test_from_what_has_no_estimate(self, manager: JobManager, database: Database, look: Sql) -> None:
        await run(manager, await admit(database, cost_s=0.0), 5.0)
        assert await look.rows(tables.cost_ratios) == []

    async def test_twice_from_a_report_that_is_repeated(
        self, manager: JobManager, database: Database, look: Sql
    ) -> None:
        job_id = await admit(database)
        await run(manager, job_id, 20.0)
        again = Report(ids.task_id(job_id, "generate", 0), 1, Outcome.DONE, (MEZZANINE,), used_s=20.0)
        assert (await manager.report(again)).is_accepted
        assert (await ratio(look))[1] == 1


async def test_many_runs_that_end_at_once_are_all_counted(manager: JobManager, database: Database, look: Sql) -> None:
    jobs = [await admit(database, cost_s=10.0) for _ in range(12)]
    await asyncio.gather(*(run(manager, job_id, 20.0) for job_id in jobs))
    assert await ratio(look) == (pytest.approx(2.0), 12)


def new_job(card: ModelCard, params: GenerateParams, **more: Any) -> NewJob:
    return NewJob(
        job_id=ids.new_job_id(),
        tenant_id=TENANT,
        kind=GENERATE,
        card=card,
        prompt="a red circle",
        params=params,
        safety={},
        labels={},
        traceparent="",
        created_at_ms=ids.now_ms(),
        **more,
    )


async def test_admission_corrects_what_the_card_estimates(manager: JobManager, database: Database, look: Sql) -> None:
    card = Registry(Path(__file__).parents[2] / "models").cards()[0]
    params = replace(generate_params(), model=card.id)
    before, after, elsewhere = (new_job(card, params) for _ in range(3))
    await admission.admit(database, before)
    await run(manager, before.job_id, 3 * before.cost_s)
    await admission.admit(database, after)
    first, second = [await look.task(ids.task_id(one.job_id, "generate", 0)) for one in (before, after)]
    assert (first.cost_s, first.cost_ratio) == (pytest.approx(card.estimate_s(30, 17, "64x64")), 1.0)
    assert (second.cost_s, second.cost_ratio) == (pytest.approx(3 * first.cost_s), pytest.approx(3.0))
    await run(manager, after.job_id, 3 * before.cost_s)
    assert await ratio(look, card.pool, card.id) == (pytest.approx(3.0), 2)
    async with database.transaction() as connection:
        await connection.execute(sa.update(tables.cost_ratios).values(pool="another"))
    await admission.admit(database, elsewhere)
    assert (await look.task(ids.task_id(elsewhere.job_id, "generate", 0))).cost_ratio == 1.0
