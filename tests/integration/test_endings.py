"""Cancel, deadline, failure and completion against each other: one of them wins, over SQLite and PostgreSQL."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from vitascope_common import ids, tables
from vitascope_common.database import Database
from vitascope_common.executor import Action, Outcome
from vitascope_common.jobs import ACTIVE_JOB, OPEN_TASK
from vitascope_scheduler.job_manager import JobManager, Report, TaskStatus
from vitascope_scheduler.reader import Reader
from vitascope_scheduler.testing import TENANT, Sql, admit, artifact

MANIFEST = artifact("manifest", "manifest")
MEZZANINE = artifact("mezzanine", "mezzanine")
TERMINAL_EVENTS = {"completed", "failed", "cancelled"}
DEADLINE_MS = 1_800_000_000_000


class Stage:
    """Brings a new job to where a test wants it."""

    def __init__(self, manager: JobManager, database: Database) -> None:
        self.manager, self.database = manager, database
        self.job_id = ""

    @property
    def first(self) -> str:
        return ids.task_id(self.job_id, "generate", 0)

    @property
    def last(self) -> str:
        return ids.task_id(self.job_id, "finish", 0)

    async def queued(self) -> None:
        self.job_id = await admit(self.database, deadline_at_ms=DEADLINE_MS)

    async def running(self) -> None:
        await self.queued()
        assert (await self.manager.claim(self.first, "w1")).task
        await self.manager.heartbeat(TaskStatus(self.first, 1, used_s=3.0))

    async def put_back(self) -> None:
        await self.running()
        await self.manager.report(Report(self.first, 1, Outcome.YIELDED, used_s=3.0))

    async def postprocessing(self) -> None:
        await self.running()
        await self.manager.report(Report(self.first, 1, Outcome.DONE, (MEZZANINE,), used_s=3.0))

    async def publishing(self) -> None:
        await self.postprocessing()
        assert (await self.manager.claim(self.last, "p1")).task

    async def completed(self) -> None:
        await self.publishing()
        assert (await self.publish()).is_accepted

    async def failed(self) -> None:
        await self.running()
        await self.manager.report(Report(self.first, 1, Outcome.FAILED, error_code="nan"))

    async def cancelled(self) -> None:
        await self.running()
        await self.manager.cancel(self.job_id, TENANT)

    async def publish(self) -> Any:
        return await self.manager.report(Report(self.last, 1, Outcome.DONE, (MANIFEST,)))


ACTIVE = ("queued", "running", "put_back", "postprocessing", "publishing")
OVER = ("completed", "failed", "cancelled")


@pytest.fixture
def stage(database: Database) -> Stage:
    return Stage(JobManager(database, lambda: DEADLINE_MS), database)


async def check_over(look: Sql, job_id: str) -> dict[str, Any]:
    """One terminal state, one terminal event, no open task, and every attempt in the ledger once."""
    job = await look.job(job_id)
    assert job["state"] not in ACTIVE_JOB
    kinds = [event[0] for event in await look.events(job_id)]
    assert [kind for kind in kinds if kind in TERMINAL_EVENTS] == [job["state"]]
    assert kinds[-1] == job["state"]
    versions = [event[1] for event in await look.events(job_id)]
    assert versions == list(range(1, job["version"] + 1))
    rows = await look.rows(tables.tasks, job_id=job_id)
    assert not {row["state"] for row in rows} & OPEN_TASK
    for row in rows:
        assert [attempt for attempt, _, _ in await look.ledger(row["task_id"])] == list(range(1, row["attempt"] + 1))
    assert bool(job["manifest_key"]) == (job["state"] == "completed")
    return job


@pytest.mark.parametrize("end", ["cancel", "expire", "delete"])
@pytest.mark.parametrize("state", ACTIVE)
async def test_a_job_can_be_ended_in_every_state(stage: Stage, look: Sql, state: str, end: str) -> None:
    await getattr(stage, state)()
    job_id = stage.job_id
    if end == "expire":
        ended = await stage.manager.expire(job_id)
    elif end == "cancel":
        ended = (await stage.manager.cancel(job_id, TENANT))[1]
    else:
        ended = await stage.manager.delete(job_id, TENANT)
    open_tasks = {stage.first, stage.last} - ({stage.first} if state in ("postprocessing", "publishing") else set())
    assert {row.task_id for row in ended} == open_tasks
    job = await check_over(look, job_id)
    assert (job["state"], job["error_code"]) == (("failed", "expired") if end == "expire" else ("cancelled",) * 2)
    assert bool(job["deleted_at_ms"]) == (end == "delete")
    for task_id in (stage.first, stage.last):  # whoever still works on it is stopped, and heard no more
        row = await look.task(task_id)
        before = await look.job(job_id), await look.ledger(task_id)
        done = Report(task_id, row.attempt, Outcome.DONE, (MANIFEST,))
        accepted = (await stage.manager.report(done)).is_accepted
        assert accepted == (task_id == stage.first and stage.first not in open_tasks)  # it was done before: said again
        if row.state == "cancelled" and row.attempt:
            assert (await stage.manager.heartbeat(TaskStatus(task_id, row.attempt)))[0] is Action.STOP
        assert (await stage.manager.claim(task_id, "w9")).reason in ("cancelled", "done")
        assert (await look.job(job_id), await look.ledger(task_id)) == before


@pytest.mark.parametrize("state", OVER)
async def test_what_is_over_stays_as_it_is(stage: Stage, look: Sql, state: str) -> None:
    await getattr(stage, state)()
    before = await check_over(look, stage.job_id)
    assert await stage.manager.cancel(stage.job_id, TENANT) == (state, [])
    assert await stage.manager.expire(stage.job_id) == []
    assert await look.job(stage.job_id) == before


async def test_what_ran_is_paid_when_the_deadline_ends_it(stage: Stage, look: Sql) -> None:
    await stage.running()
    await stage.manager.expire(stage.job_id)
    assert await look.ledger(stage.first) == [(1, "cancelled", 3.0)]
    kind, _, data = (await look.events(stage.job_id))[-1]
    assert (kind, data["code"]) == ("failed", "expired")
    assert data["message"] == "The job was not finished by its deadline, 2027-01-15T08:00:00+00:00."


async def test_only_the_deadline_ends_a_job(database: Database, look: Sql) -> None:
    soon = JobManager(database, lambda: DEADLINE_MS - 1)
    reader = Reader(database)
    with_deadline = await admit(database, deadline_at_ms=DEADLINE_MS)
    without = await admit(database)
    assert await soon.expire(with_deadline) == await soon.expire(without) == []
    assert await soon.expire(ids.new_job_id()) == []
    assert await reader.past_deadline(DEADLINE_MS - 1, 10) == []
    assert await reader.past_deadline(DEADLINE_MS, 10) == [with_deadline]
    later = JobManager(database, lambda: DEADLINE_MS)
    assert len(await later.expire(with_deadline)) == 2
    assert await reader.past_deadline(DEADLINE_MS, 10) == []
    assert (await look.job(without))["state"] == "queued"


@pytest.mark.parametrize("round_", range(3))
async def test_twenty_cancels_against_completion_have_one_winner(stage: Stage, look: Sql, round_: int) -> None:
    await stage.publishing()
    calls: list[Awaitable[Any]] = [stage.manager.cancel(stage.job_id, TENANT) for _ in range(20)]
    calls.insert(round_ * 10, stage.publish())
    answers = await asyncio.gather(*calls)
    job = await check_over(look, stage.job_id)
    report = answers.pop(round_ * 10)
    assert report.is_accepted == (job["state"] == "completed")
    assert {state for state, _ in answers} == {job["state"]}
    assert sum(bool(ended) for _, ended in answers) == (job["state"] == "cancelled")


@pytest.mark.parametrize("other", ["publish", "cancel", "lose", "fail"])
async def test_the_deadline_against_all_others_has_one_winner(stage: Stage, look: Sql, other: str) -> None:
    await stage.publishing()
    claimed = await look.task(stage.last)
    others: dict[str, Callable[[], Awaitable[Any]]] = {
        "publish": stage.publish,
        "cancel": lambda: stage.manager.cancel(stage.job_id, TENANT),
        "lose": lambda: stage.manager.lose(claimed, DEADLINE_MS),
        "fail": lambda: stage.manager.report(Report(stage.last, 1, Outcome.FAILED, error_code="full")),
    }
    expiries = [stage.manager.expire(stage.job_id) for _ in range(4)]
    answers = await asyncio.gather(expiries[0], others[other](), *expiries[1:])
    job = await check_over(look, stage.job_id)
    is_expired = job["error_code"] == "expired"
    assert sum(bool(ended) for ended in (answers[0], *answers[2:])) == is_expired
    if other == "lose":  # the job goes on after it, so the deadline ends it either way
        assert is_expired


async def test_completion_says_until_when_a_video_is_kept(database: Database, look: Sql) -> None:
    stage = Stage(JobManager(database, lambda: DEADLINE_MS, job_retention_ms=5_000), database)
    await stage.completed()
    assert (await look.job(stage.job_id))["expires_at_ms"] == DEADLINE_MS + 5_000
    for_ever = Stage(JobManager(database, lambda: DEADLINE_MS), database)
    await for_ever.completed()
    assert (await look.job(for_ever.job_id))["expires_at_ms"] is None


async def test_the_clock_of_a_job_that_nobody_claims_runs_out(database: Database, look: Sql) -> None:
    """One conditional UPDATE per job: two replicas that find the same page end each job once."""
    jobs = [await admit(database, deadline_at_ms=DEADLINE_MS) for _ in range(5)]
    replicas = [JobManager(database, lambda: DEADLINE_MS) for _ in range(2)]
    answers = await asyncio.gather(*(one.expire(job_id) for one in replicas for job_id in jobs))
    assert sorted(len(ended) for ended in answers) == [0] * 5 + [2] * 5
    async with database.read() as connection:
        codes = (await connection.execute(sa.select(tables.jobs.c.error_code))).scalars().all()
    assert codes == ["expired"] * 5
