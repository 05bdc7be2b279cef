"""The job manager over SQLite and PostgreSQL: every transition, twice, late, and against each other."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from vitascope_common import ids, tables
from vitascope_common.database import Database
from vitascope_common.errors import NotFoundError, UnavailableError
from vitascope_common.executor import Action, Outcome
from vitascope_common.jobs import JobState, Progress, TaskState
from vitascope_scheduler.attempts import MAX_OUTAGES
from vitascope_scheduler.job_manager import MAX_FAILURES, Ended, JobManager, Report, TaskStatus
from vitascope_scheduler.reader import Reader
from vitascope_scheduler.testing import NUM_STEPS, TENANT, Sql, admit, artifact, checkpoint

MANIFEST = artifact("manifest", "manifest")
MEZZANINE = artifact("mezzanine", "mezzanine")


@pytest.fixture
async def job_id(database: Database) -> str:
    return await admit(database)


@pytest.fixture
def first(job_id: str) -> str:
    return ids.task_id(job_id, "generate", 0)


@pytest.fixture
def last(job_id: str) -> str:
    return ids.task_id(job_id, "finish", 0)


async def run_first(manager: JobManager, first: str) -> Ended:
    claim = await manager.claim(first, "w1")
    assert claim.task is not None
    return await manager.report(
        Report(first, claim.task.attempt, Outcome.DONE, (MEZZANINE,), used_s=4.0, meters={"decode_s": 1.5})
    )


class TestClaim:
    async def test_the_first_claim_starts_the_job(
        self, manager: JobManager, look: Sql, job_id: str, first: str
    ) -> None:
        claim = await manager.claim(first, "w1")
        assert claim.task is not None
        assert (claim.task.attempt, claim.task.stage, claim.task.checkpoints) == (1, "generate", ())
        assert claim.task.params.model == "vita-mini-6"
        job = await look.job(job_id)
        assert (job["state"], job["version"], job["phase"]) == ("running", 2, "loading")
        assert job["started_at_ms"]
        assert [event[:2] for event in await look.events(job_id)] == [("queued", 1), ("started", 2)]

    async def test_only_one_wins(self, manager: JobManager, look: Sql, job_id: str, first: str) -> None:
        claims = await asyncio.gather(*(manager.claim(first, f"w{i}") for i in range(8)))
        assert sum(claim.task is not None for claim in claims) == 1
        assert {claim.reason for claim in claims if claim.task is None} == {"leased"}
        assert (await look.task(first)).attempt == 1
        assert len(await look.events(job_id)) == 2

    async def test_the_holder_asks_again_and_gets_the_same_attempt(
        self, manager: JobManager, look: Sql, job_id: str, first: str
    ) -> None:
        """The answer to its claim was lost on the way."""
        claims = [await manager.claim(first, "w1") for _ in range(3)]
        assert claims[0].task is not None
        assert [claim.task for claim in claims] == [claims[0].task] * 3
        assert (await manager.claim(first, "w2")).reason == "leased"
        assert (await look.task(first)).attempt == 1
        assert [event[0] for event in await look.events(job_id)] == ["queued", "started"]
        await manager.report(Report(first, 1, Outcome.DONE, (MEZZANINE,)))
        assert (await manager.claim(first, "w1")).reason == "done"

    async def test_a_task_says_what_it_needs_of_its_worker(
        self, manager: JobManager, database: Database, first: str
    ) -> None:
        affinity = {"model": "vita-mini-6", "adapters": ["a", "b"]}
        async with database.transaction() as connection:
            await connection.execute(sa.update(tables.tasks).values(affinity=affinity, group_size=2))
        claim = await manager.claim(first, "w1")
        assert claim.task is not None
        assert (claim.task.affinity, claim.task.group_size) == ({"model": "vita-mini-6", "adapters": "a,b"}, 2)

    async def test_refusals_say_why(self, manager: JobManager, job_id: str, first: str, last: str) -> None:
        assert (await manager.claim("video_0.generate.0", "w1")).reason == "unknown"
        assert (await manager.claim(last, "w1")).reason == "waiting"
        await manager.cancel(job_id, TENANT)
        assert (await manager.claim(first, "w1")).reason == "cancelled"

    async def test_parameters_of_another_build_fail_the_job(
        self, manager: JobManager, database: Database, look: Sql, job_id: str, first: str
    ) -> None:
        async with database.transaction() as connection:
            await connection.execute(sa.update(tables.tasks).values(params={"new": 1}))
        claim = await manager.claim(first, "w1")
        assert (claim.task, claim.reason) == (None, "failed")
        assert (await look.job(job_id))["error_code"] == "internal"


class TestTheWholeWay:
    async def test_a_job_completes_exactly_once(
        self, manager: JobManager, look: Sql, job_id: str, first: str, last: str
    ) -> None:
        ended = await run_first(manager, first)
        assert (ended.is_accepted, ended.state) == (True, "done")
        assert await look.states(job_id) == {"generate": "done", "finish": "ready"}
        finish = await look.task(last)
        assert [one["role"] for one in finish.inputs] == ["mezzanine"]
        claim = await manager.claim(last, "p1")
        assert claim.task is not None
        assert claim.task.inputs == (MEZZANINE,)
        report = Report(last, 1, Outcome.DONE, (MANIFEST,), used_s=2.0)
        answers = await asyncio.gather(*(manager.report(report) for _ in range(4)))
        assert all(answer.is_accepted and answer.state == "done" for answer in answers)
        job = await look.job(job_id)
        assert (job["state"], job["manifest_key"]) == ("completed", MANIFEST.key)
        assert job["manifest_sha256"] == MANIFEST.sha256
        assert [event[:2] for event in await look.events(job_id)] == [
            ("queued", 1),
            ("started", 2),
            ("postprocessing", 3),
            ("completed", 4),
        ]
        assert job["version"] == 4
        assert await look.ready(job_id) == [first, last]
        assert await look.ledger(first) == [(1, "done", 4.0)]
        assert await look.ledger(last) == [(1, "done", 2.0)]

    async def test_what_the_attempts_measured_adds_up_for_the_job(
        self, manager: JobManager, look: Sql, job_id: str, first: str, last: str
    ) -> None:
        await manager.claim(first, "w1")
        once = {"denoise_s": 2.0, "peak_memory_mb": 100.0, "decode_s": float("nan"), "ours": 7.0}
        for _ in range(2):
            await manager.report(Report(first, 1, Outcome.YIELDED, meters=once))
        assert (await look.job(job_id))["meters"] == {"denoise_s": 2.0, "peak_memory_mb": 100.0}
        await manager.claim(first, "w2")
        await manager.report(Report(first, 1, Outcome.DONE, meters=once))  # too late
        again = {"denoise_s": 3.0, "decode_s": 1.5, "peak_memory_mb": 80.0}
        await manager.report(Report(first, 2, Outcome.DONE, (MEZZANINE,), meters=again))
        await manager.claim(last, "p1")
        await manager.report(Report(last, 1, Outcome.DONE, (MANIFEST,), meters={"postprocess_s": 0.5}))
        whole = {"denoise_s": 5.0, "decode_s": 1.5, "peak_memory_mb": 100.0, "postprocess_s": 0.5}
        assert (await look.job(job_id))["meters"] == whole
        assert (await look.rows(tables.ledger, task_id=first, attempt=1))[0]["meters"]["ours"] == 7.0

    async def test_without_a_manifest_nothing_is_published(
        self, manager: JobManager, look: Sql, job_id: str, first: str, last: str
    ) -> None:
        await run_first(manager, first)
        await manager.claim(last, "p1")
        report = Report(last, 1, Outcome.DONE, (artifact("video"),))
        assert (await manager.report(report)).state == "failed"
        assert (await manager.report(report)).is_accepted  # repeated, the same answer
        job = await look.job(job_id)
        assert (job["state"], job["error_code"], job["manifest_key"]) == ("failed", "internal", None)


class TestReports:
    @pytest.mark.parametrize("outcome", list(Outcome))
    async def test_the_same_report_twice_is_one(
        self, manager: JobManager, look: Sql, job_id: str, first: str, outcome: Outcome
    ) -> None:
        await manager.claim(first, "w1")
        report = Report(first, 1, outcome, (MEZZANINE,), "oom", "out of memory", is_retryable=True, used_s=1.0)
        answers = [await manager.report(report) for _ in range(3)]
        assert [answer.is_accepted for answer in answers] == [True] * 3
        assert len({answer.state for answer in answers}) == 1
        assert len(await look.ledger(first)) == 1
        versions = [event[1] for event in await look.events(job_id)]
        assert versions == sorted(set(versions))

    async def test_another_story_about_the_same_attempt_is_refused(
        self, manager: JobManager, look: Sql, job_id: str, first: str
    ) -> None:
        await run_first(manager, first)
        assert not (await manager.report(Report(first, 1, Outcome.FAILED, error_code="late"))).is_accepted
        assert (await look.job(job_id))["state"] == "running"

    @pytest.mark.parametrize("outcome", list(Outcome))
    async def test_a_stale_attempt_changes_nothing(
        self, manager: JobManager, look: Sql, job_id: str, first: str, outcome: Outcome
    ) -> None:
        claim = await manager.claim(first, "w1")
        assert claim.row is not None
        assert (await manager.lose(claim.row, ids.now_ms())).is_accepted
        await manager.claim(first, "w2")
        before = await look.task(first), await look.job(job_id), await look.ledger(first)
        for attempt in (0, 1, 3):
            ended = await manager.report(Report(first, attempt, outcome, (MEZZANINE,), checkpoint=checkpoint(20)))
            assert not ended.is_accepted
            action, _ = await manager.heartbeat(TaskStatus(first, attempt, checkpoint=checkpoint(20)))
            assert action is Action.STALE
        assert (await look.task(first), await look.job(job_id), await look.ledger(first)) == before

    async def test_an_unknown_task_is_not_accepted(self, manager: JobManager) -> None:
        assert not (await manager.report(Report("video_0.generate.0", 1, Outcome.DONE))).is_accepted

    async def test_a_report_before_any_claim_is_not_accepted(self, manager: JobManager, first: str) -> None:
        assert not (await manager.report(Report(first, 0, Outcome.DONE))).is_accepted


class TestFailures:
    async def test_a_final_failure_ends_the_job(self, manager: JobManager, look: Sql, job_id: str, first: str) -> None:
        await manager.claim(first, "w1")
        report = Report(first, 1, Outcome.FAILED, error_code="nan", error_message="The latents are not finite.")
        assert (await manager.report(report)).state == "failed"
        job = await look.job(job_id)
        assert (job["state"], job["error_code"]) == ("failed", "nan")
        assert job["error_message"] == "The latents are not finite."
        assert await look.states(job_id) == {"generate": "failed", "finish": "cancelled"}
        assert (await look.events(job_id))[-1][2] == {"code": "nan", "message": "The latents are not finite."}

    async def test_three_in_a_row_are_poison(self, manager: JobManager, look: Sql, job_id: str, first: str) -> None:
        states = []
        for attempt in range(1, MAX_FAILURES + 1):
            assert (await manager.claim(first, "w1")).task is not None
            report = Report(first, attempt, Outcome.FAILED, (), "oom", "out of memory", is_retryable=True)
            states.append((await manager.report(report)).state)
        assert states == ["ready", "ready", "failed"]
        job = await look.job(job_id)
        assert (job["state"], job["error_code"]) == ("failed", "poison")
        assert "oom: out of memory" in job["error_message"]
        assert [outcome for _, outcome, _ in await look.ledger(first)] == ["failed"] * 3

    @pytest.mark.parametrize("code", ["unavailable", "deadline_exceeded"])
    async def test_an_outage_is_nobodys_failure(
        self, database: Database, look: Sql, job_id: str, first: str, code: str
    ) -> None:
        now_ms = ids.now_ms()
        manager = JobManager(database, lambda: now_ms)
        for attempt in range(1, 3 * MAX_FAILURES):
            assert (await manager.claim(first, "w1")).task is not None
            now_ms += 24_000  # it waited for what was away
            report = Report(first, attempt, Outcome.FAILED, (), code, "The store is away.", is_retryable=True)
            assert (await manager.report(report)).state == "ready"
        assert (await look.task(first)).num_failures == 0
        assert (await look.job(job_id))["state"] == "running"

    async def test_outages_without_an_end_are_the_end(
        self, database: Database, look: Sql, job_id: str, first: str
    ) -> None:
        now_ms = ids.now_ms()
        manager = JobManager(database, lambda: now_ms)
        states = []
        for attempt in range(1, MAX_OUTAGES + 3):
            assert (await manager.claim(first, "w1")).task is not None
            if attempt == 2:
                await manager.heartbeat(TaskStatus(first, attempt, checkpoint=checkpoint(5)))
            now_ms += 24_000
            away = Report(first, attempt, Outcome.FAILED, (), "unavailable", "The store is away.", is_retryable=True)
            states.append((await manager.report(away)).state)
            if states[-1] == "failed":
                break
        assert states == ["ready"] * MAX_OUTAGES + ["failed"], "the checkpoint began a new count"
        job = await look.job(job_id)
        assert (job["state"], job["error_code"]) == ("failed", "unavailable")
        assert "The store is away." in job["error_message"]

    @pytest.mark.parametrize("code", ["unavailable", "out_of_memory", "encoder_failed"])
    async def test_what_fails_at_once_counts_whatever_it_is_called(
        self, manager: JobManager, look: Sql, job_id: str, first: str, code: str
    ) -> None:
        for attempt in range(1, MAX_FAILURES + 1):
            await manager.claim(first, "w1")
            await manager.report(Report(first, attempt, Outcome.FAILED, (), code, "no", is_retryable=True))
        assert (await look.job(job_id))["error_code"] == "poison"

    async def test_a_newer_checkpoint_begins_a_new_count(
        self, manager: JobManager, look: Sql, job_id: str, first: str
    ) -> None:
        for attempt in range(1, 6):
            await manager.claim(first, "w1")
            await manager.heartbeat(TaskStatus(first, attempt, checkpoint=checkpoint(attempt * 5)))
            await manager.report(Report(first, attempt, Outcome.FAILED, is_retryable=True))
        assert (await look.job(job_id))["state"] == "running"
        assert (await look.task(first)).num_failures == 1

    async def test_lost_leases_count_and_hand_out_again(
        self, manager: JobManager, look: Sql, job_id: str, first: str
    ) -> None:
        for attempt in range(1, MAX_FAILURES + 1):
            claim = await manager.claim(first, "w1")
            assert claim.row is not None
            await manager.heartbeat(TaskStatus(first, attempt, used_s=2.5))
            assert (await manager.lose(claim.row, ids.now_ms())).is_accepted
            assert not (await manager.lose(claim.row, ids.now_ms())).is_accepted
        assert (await look.job(job_id))["error_code"] == "poison"
        assert await look.ledger(first) == [(n, "lost", 2.5) for n in (1, 2, 3)]
        assert await look.ready(job_id) == [first] * 3

    async def test_a_fresh_claim_cannot_be_lost(self, manager: JobManager, look: Sql, first: str) -> None:
        claim = await manager.claim(first, "w1")
        assert claim.row is not None
        assert not (await manager.lose(claim.row, ids.now_ms() - 10_000)).is_accepted
        assert (await look.task(first)).is_leased


class TestWhatIsPaid:
    @pytest.mark.parametrize("ends", ["cancel", "expire"])
    async def test_an_attempt_that_ends_under_its_worker_pays_what_it_reports(
        self, database: Database, look: Sql, ends: str
    ) -> None:
        now_ms = ids.now_ms()
        manager = JobManager(database, lambda: now_ms)
        job_id = await admit(database, deadline_at_ms=now_ms + 1)
        first = ids.task_id(job_id, "generate", 0)
        assert (await manager.claim(first, "w1", 2)).task
        now_ms += 10
        await (manager.cancel(job_id, TENANT) if ends == "cancel" else manager.expire(job_id))
        assert await look.ledger(first) == [(1, "cancelled", 0.0)]
        for used_s in (4.0, 3.0, 4.0):
            ended = await manager.report(Report(first, 1, Outcome.CANCELLED, used_s=used_s))
            assert (ended.is_accepted, ended.state) == (True, "cancelled")
            assert ended.row is not None
            assert ended.row.actual_s == 8.0
        assert await look.ledger(first) == [(1, "cancelled", 8.0)]

    async def test_what_waits_when_it_is_cancelled_owes_nothing_more(
        self, manager: JobManager, look: Sql, job_id: str, first: str
    ) -> None:
        await manager.claim(first, "w1")
        stopped = Report(first, 1, Outcome.CANCELLED, used_s=4.0)
        assert (await manager.report(stopped)).state == "ready"
        await manager.cancel(job_id, TENANT)
        assert (await manager.report(replace(stopped, used_s=5.0))).is_accepted
        assert await look.ledger(first) == [(1, "cancelled", 4.0)]
        assert (await look.task(first)).used_s == 0.0

    async def test_every_rank_counts_and_the_card_where_nobody_says(
        self, manager: JobManager, look: Sql, first: str
    ) -> None:
        for attempt, ranks in ((1, 2), (2, 0), (3, 1)):
            claim = await manager.claim(first, f"w{attempt}", ranks)
            assert claim.task is not None
            assert claim.task.group_size == (ranks or 2)
            await manager.report(Report(first, attempt, Outcome.YIELDED, used_s=3.0))
        assert await look.ledger(first) == [(1, "yielded", 6.0), (2, "yielded", 6.0), (3, "yielded", 3.0)]

    async def test_calls_that_overtake_each_other_take_nothing_back(
        self, manager: JobManager, look: Sql, first: str
    ) -> None:
        await manager.claim(first, "w1")
        for used_s, known_s in ((2.0, 2.0), (1.0, 2.0), (3.0, 3.0)):
            await manager.heartbeat(TaskStatus(first, 1, used_s=used_s))
            assert (await look.task(first)).used_s == known_s
        await manager.report(Report(first, 1, Outcome.YIELDED, used_s=2.5))
        assert await look.ledger(first) == [(1, "yielded", 3.0)]


class TestYields:
    async def test_a_yield_costs_no_failure_and_resumes(
        self, manager: JobManager, look: Sql, job_id: str, first: str
    ) -> None:
        for attempt in range(1, 6):
            claim = await manager.claim(first, f"w{attempt}")
            assert claim.task is not None
            report = Report(first, attempt, Outcome.YIELDED, used_s=1.0, checkpoint=checkpoint(10))
            assert (await manager.report(report)).state == "ready"
        row = await look.task(first)
        assert (row.num_failures, row.newest_done, row.worker_id, row.epoch) == (0, 10, None, None)
        claim = await manager.claim(first, "w9")
        assert claim.task is not None
        assert [one.done for one in claim.task.checkpoints] == [10]
        kinds = [event[0] for event in await look.events(job_id)]
        assert kinds[:5] == ["queued", "started", "checkpoint", "preempted", "resumed"]
        assert kinds.count("checkpoint") == 1
        assert (await look.events(job_id))[-1] == ("resumed", len(kinds), {"from_step": 10})
        assert (await look.job(job_id))["state"] == "running"

    async def test_it_is_known_how_often_a_task_gave_way_in_its_last_hour_of_running(
        self, manager: JobManager, look: Sql, first: str
    ) -> None:
        found = []
        for attempt, used_s in enumerate([100.0, 200.0, 3500.0, 50.0], start=1):
            await manager.claim(first, "w1")
            await manager.report(Report(first, attempt, Outcome.YIELDED, used_s=used_s))
            row = await look.task(first)
            found.append((row.ran_s, row.yielded_at_s, row.num_recent_yields))
        assert found == [
            (100.0, [100.0], 1),
            (300.0, [100.0, 300.0], 2),
            (3800.0, [100.0, 300.0, 3800.0], 2),
            (3850.0, [100.0, 300.0, 3800.0, 3850.0], 3),
        ]
        await manager.claim(first, "w1")
        await manager.heartbeat(TaskStatus(first, 5, used_s=60.0))
        assert (await look.task(first)).num_recent_yields == 2  # hours of waiting do not count, minutes of running do

    async def test_every_attempt_that_ended_has_run(self, manager: JobManager, look: Sql, first: str) -> None:
        claim = await manager.claim(first, "w1")
        assert claim.row is not None
        await manager.heartbeat(TaskStatus(first, 1, used_s=7.0))
        await manager.lose(claim.row, ids.now_ms())
        await manager.claim(first, "w1")
        await manager.report(Report(first, 2, Outcome.FAILED, is_retryable=True, used_s=5.0))
        row = await look.task(first)
        assert (row.ran_s, row.used_s, row.yielded_at_s, row.num_recent_yields) == (12.0, 0.0, [], 0)

    async def test_only_the_last_few_yields_are_kept(self, manager: JobManager, look: Sql, first: str) -> None:
        for attempt in range(1, 21):
            await manager.claim(first, "w1")
            await manager.report(Report(first, attempt, Outcome.YIELDED, used_s=1.0))
        row = await look.task(first)
        assert row.yielded_at_s == [13.0, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0, 20.0]


class TestCheckpoints:
    async def test_the_two_newest_are_kept(self, manager: JobManager, look: Sql, job_id: str, first: str) -> None:
        await manager.claim(first, "w1")
        for done in (10, 20, 20, 10, 30):
            action, _ = await manager.heartbeat(TaskStatus(first, 1, checkpoint=checkpoint(done)))
            assert action is Action.RUN
        row = await look.task(first)
        assert [one["done"] for one in row.checkpoints] == [30, 20]
        assert {one["attempt"] for one in row.checkpoints} == {1}
        steps = [event[2] for event in await look.events(job_id) if event[0] == "checkpoint"]
        assert steps == [{"step": 10}, {"step": 20}, {"step": 30}]
        assert row.cost_left_s == pytest.approx(row.cost_s * (1 - 30 / NUM_STEPS))

    async def test_what_is_made_again_replaces_what_could_not_be_read(
        self, manager: JobManager, look: Sql, job_id: str, first: str
    ) -> None:
        await manager.claim(first, "w1")
        for done in (10, 20):
            await manager.heartbeat(TaskStatus(first, 1, checkpoint=checkpoint(done)))
        await manager.report(Report(first, 1, Outcome.FAILED, is_retryable=True))
        await manager.claim(first, "w2")
        await manager.heartbeat(TaskStatus(first, 2, checkpoint=checkpoint(10)))  # where it begins: it changes nothing
        assert [one["done"] for one in (await look.task(first)).checkpoints] == [20, 10]
        for done in (20, 20):
            again = replace(checkpoint(done), artifacts=(artifact(f"again-{done}"),))
            await manager.heartbeat(TaskStatus(first, 2, checkpoint=again))
        row = await look.task(first)
        assert [(one["done"], one["attempt"]) for one in row.checkpoints] == [(20, 2), (10, 1)]
        assert row.checkpoints[0]["artifacts"][0]["name"] == "again-20"
        assert row.num_failures == 1  # no step further than before
        steps = [event[2]["step"] for event in await look.events(job_id) if event[0] == "checkpoint"]
        assert steps == [10, 20, 20]

    async def test_only_a_step_beyond_all_others_begins_a_new_count(
        self, manager: JobManager, look: Sql, first: str
    ) -> None:
        await manager.claim(first, "w1")
        await manager.heartbeat(TaskStatus(first, 1, checkpoint=checkpoint(20)))
        await manager.report(Report(first, 1, Outcome.FAILED, is_retryable=True))
        await manager.claim(first, "w2")
        counts = {}
        for done in (5, 10, 20, 21):
            again = replace(checkpoint(done), artifacts=(artifact(f"again-{done}"),))
            await manager.heartbeat(TaskStatus(first, 2, checkpoint=again))
            row = await look.task(first)
            counts[row.newest_done] = row.num_failures
        assert counts == {5: 1, 10: 1, 20: 1, 21: 0}
        claim = await manager.claim(first, "w2")
        assert claim.task is not None
        assert [one.done for one in claim.task.checkpoints] == [21, 20]

    async def test_heartbeats_at_once_never_lose_the_newest(self, manager: JobManager, look: Sql, first: str) -> None:
        await manager.claim(first, "w1")
        await asyncio.gather(
            *(manager.heartbeat(TaskStatus(first, 1, checkpoint=checkpoint(done))) for done in range(1, 11))
        )
        assert (await look.task(first)).newest_done == 10

    async def test_progress_reaches_task_and_job(self, manager: JobManager, look: Sql, job_id: str, first: str) -> None:
        await manager.claim(first, "w1")
        await manager.heartbeat(TaskStatus(first, 1, Progress(12, 30, "step", "denoising"), used_s=3.5))
        job, row = await look.job(job_id), await look.task(first)
        assert (job["done"], job["total"], job["unit"], job["phase"]) == (12, 30, "step", "denoising")
        assert (row.done, row.total, row.used_s) == (12, 30, 3.5)
        assert job["version"] == 2  # progress is no state event


class TestCancel:
    async def test_it_ends_every_open_task(self, manager: JobManager, look: Sql, job_id: str, first: str) -> None:
        await manager.claim(first, "w1")
        await manager.heartbeat(TaskStatus(first, 1, used_s=3.0))
        state, cancelled = await manager.cancel(job_id, TENANT)
        assert state == "cancelled"
        assert {row.task_id: row.worker_id for row in cancelled}[first] == "w1"
        assert set((await look.states(job_id)).values()) == {"cancelled"}
        assert await look.ledger(first) == [(1, "cancelled", 3.0)]
        assert (await manager.heartbeat(TaskStatus(first, 1)))[0] is Action.STOP
        assert (await manager.report(Report(first, 1, Outcome.CANCELLED))).is_accepted
        assert not (await manager.report(Report(first, 1, Outcome.DONE, (MEZZANINE,)))).is_accepted
        assert (await look.job(job_id))["error_code"] == "cancelled"

    async def test_it_is_idempotent_and_keeps_to_its_tenant(self, manager: JobManager, look: Sql, job_id: str) -> None:
        with pytest.raises(NotFoundError):
            await manager.cancel(job_id, "tenant-b")
        with pytest.raises(NotFoundError):
            await manager.cancel(ids.new_job_id(), TENANT)
        assert (await look.job(job_id))["state"] == "queued"
        state, cancelled = await manager.cancel(job_id, TENANT)
        assert (state, len(cancelled)) == ("cancelled", 2)
        assert await manager.cancel(job_id, TENANT) == ("cancelled", [])
        assert [event[0] for event in await look.events(job_id)] == ["queued", "cancelled"]

    async def test_a_finished_job_stays_finished(
        self, manager: JobManager, look: Sql, job_id: str, first: str, last: str
    ) -> None:
        await run_first(manager, first)
        await manager.claim(last, "p1")
        await manager.report(Report(last, 1, Outcome.DONE, (MANIFEST,)))
        assert await manager.cancel(job_id, TENANT) == ("completed", [])

    @pytest.mark.parametrize("round_", range(6))
    async def test_cancel_against_publish_has_one_winner(
        self, manager: JobManager, look: Sql, job_id: str, first: str, last: str, round_: int
    ) -> None:
        await run_first(manager, first)
        await manager.claim(last, "p1")
        report = manager.report(Report(last, 1, Outcome.DONE, (MANIFEST,)))
        cancel = manager.cancel(job_id, TENANT)
        calls: list[Any] = [report, cancel] if round_ % 2 else [cancel, report]
        await asyncio.gather(*calls)
        job = await look.job(job_id)
        events = [event[0] for event in await look.events(job_id)]
        outcome = {"completed": "done", "cancelled": "cancelled"}[job["state"]]
        assert (await look.ledger(last))[0][1] == outcome
        assert len(await look.ledger(last)) == 1
        assert sum(kind in ("completed", "cancelled") for kind in events) == 1
        assert bool(job["manifest_key"]) == (job["state"] == "completed")
        assert events[-1] == job["state"]

    async def test_delete_cancels_and_hides(self, manager: JobManager, look: Sql, job_id: str, first: str) -> None:
        await manager.claim(first, "w1")
        assert len(await manager.delete(job_id, TENANT)) == 2
        job = await look.job(job_id)
        assert job["state"] == "cancelled"
        assert job["deleted_at_ms"]
        assert await manager.delete(job_id, TENANT) == []
        assert (await look.job(job_id))["deleted_at_ms"] == job["deleted_at_ms"]
        with pytest.raises(NotFoundError):
            await manager.delete(job_id, "tenant-b")


class TestHandingOut:
    async def test_only_a_ready_task_is_marked(self, manager: JobManager, look: Sql, first: str) -> None:
        row = await look.task(first)
        assert await manager.mark_enqueued(row, "epoch-1")
        assert (await look.task(first)).epoch == "epoch-1"
        assert not await manager.mark_enqueued(replace(row, attempt=7), "epoch-2")
        await manager.claim(first, "w1")
        assert not await manager.mark_enqueued(row, "epoch-2")

    async def test_the_reader_finds_what_an_epoch_was_never_given(
        self, manager: JobManager, database: Database, look: Sql
    ) -> None:
        reader = Reader(database)
        tasks = [ids.task_id(await admit(database, pool="p"), "generate", 0) for _ in range(5)]
        await manager.mark_enqueued(await look.task(tasks[0]), "now")
        await manager.mark_enqueued(await look.task(tasks[1]), "before")
        found, after = [], (0, "")
        while page := await reader.not_handed_out("p", "now", 0, after, 2):
            found += [row.task_id for row in page]
            after = (page[-1].created_at_ms, page[-1].task_id)
        assert sorted(found) == sorted(tasks[1:])
        assert await reader.pools() == {"p"}

    async def test_what_celery_was_sent_long_ago_is_overdue(
        self, manager: JobManager, database: Database, look: Sql, first: str, last: str
    ) -> None:
        await run_first(manager, first)
        await manager.mark_enqueued(await look.task(last), "now")
        reader = Reader(database)
        assert await reader.not_handed_out("postproc", "now", ids.now_ms() - 60_000, (0, ""), 10) == []
        overdue = await reader.not_handed_out("postproc", "now", ids.now_ms() + 1, (0, ""), 10)
        assert [row.task_id for row in overdue] == [last]


async def test_a_postgresql_that_hangs_is_unavailable(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitascope_common.database.COMMAND_TIMEOUT_S", 0.3)
    database = Database(postgres_url)
    async with asyncio.timeout(10):
        with pytest.raises(UnavailableError):
            async with database.transaction() as connection:
                await connection.execute(sa.select(sa.func.pg_sleep(60)))
        await database.check()  # the next one has a connection of its own
    await database.close()


async def test_many_jobs_at_once_do_not_trip_over_each_other(manager: JobManager, database: Database) -> None:
    jobs = [await admit(database) for _ in range(6)]

    async def whole_way(job_id: str) -> None:
        for stage, outputs in (("generate", (MEZZANINE,)), ("finish", (MANIFEST,))):
            task_id = ids.task_id(job_id, stage, 0)
            assert (await manager.claim(task_id, "w")).task is not None
            await manager.heartbeat(TaskStatus(task_id, 1, Progress(1, 2, "step", "denoising")))
            assert (await manager.report(Report(task_id, 1, Outcome.DONE, outputs))).is_accepted

    await asyncio.gather(*(whole_way(job_id) for job_id in jobs))
    async with database.read() as connection:
        states = (await connection.execute(sa.select(tables.jobs.c.state))).scalars().all()
    assert set(states) == {JobState.COMPLETED}
    async with database.read() as connection:
        states = (await connection.execute(sa.select(tables.tasks.c.state))).scalars().all()
    assert set(states) == {TaskState.DONE}
