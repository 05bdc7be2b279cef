"""What finished jobs leave behind is removed by policy, bytes first: over SQLite and PostgreSQL, Redis and a folder."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis

from vitascope_common import ids, keys, redis_clients, tables
from vitascope_common.database import Database
from vitascope_common.errors import UnavailableError
from vitascope_common.events import Event, EventType
from vitascope_common.executor import Outcome
from vitascope_common.objectstore_folder import FolderStore
from vitascope_common.references import reference_key
from vitascope_common.testing import redis_server
from vitascope_scheduler import retention
from vitascope_scheduler.adapters.redis_queue import RedisQueue
from vitascope_scheduler.job_manager import JobManager, Report
from vitascope_scheduler.reader import Reader
from vitascope_scheduler.retention import Policy, Retention
from vitascope_scheduler.testing import TENANT, Sql, admit, artifact

NOW_MS = 1_800_000_000_000
POLICY = Policy(work_ms=1_000, job_ms=10_000)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


class Room:
    """Retention beside jobs that have ended, on a clock of its own."""

    def __init__(self, database: Database, redis: Redis, folder: Path, policy: Policy = POLICY) -> None:
        self.database, self.redis, self.look = database, redis, Sql(database)
        self.now_ms = NOW_MS
        self.queue, self.reader = RedisQueue(redis), Reader(database)
        self.store: Any = FolderStore(folder)
        self.manager = JobManager(database, lambda: self.now_ms, job_retention_ms=policy.job_ms)
        self.policy = policy

    @property
    def retention(self) -> Retention:
        return Retention(self.manager, self.reader, self.store, self.queue, self.policy, lambda: self.now_ms)

    async def job(self, *outcomes: Outcome) -> str:
        """Admit a job and end its stages; it leaves files, two attempts at publishing among them, and a history."""
        job_id = await admit(self.database, now_ms=self.now_ms)
        for stage, outcome in zip(("generate", "finish"), outcomes, strict=False):
            task_id = ids.task_id(job_id, stage, 0)
            assert (await self.manager.claim(task_id, "w")).task
            manifest = replace(artifact("manifest"), key=f"videos/{job_id}/2/manifest.json")
            await self.manager.report(Report(task_id, 1, outcome, (manifest,), used_s=1.0))
        for name in ("1/video.mp4", "2/video.mp4", "2/manifest.json", "2/hls/1.m4s"):
            self.store.put_bytes(f"videos/{job_id}/{name}", b"x", "video/mp4")
        self.store.put_bytes(f"work/{job_id}/generate/0/1/latents", b"x", "video/mp4")
        self.store.put_bytes(reference_key(job_id, "first_frame.png"), b"x", "image/png")
        await self.queue.append_event(Event(job_id, EventType.QUEUED, {}, version=1))
        return job_id

    def files(self, job_id: str) -> list[str]:
        keys_ = [one.key.split("/") for one in self.store.list()]
        return ["/".join(key[:1] + key[2:]) for key in keys_ if key[1] == job_id]

    async def num_keys(self, job_id: str) -> int:
        return int(await self.redis.exists(keys.events(job_id), keys.event_fence(job_id)))

    async def exists(self, job_id: str) -> bool:
        counts = [len(await self.look.rows(table, job_id=job_id)) for table in (tables.jobs, tables.tasks)]
        assert counts in ([1, 2], [0, 0])
        return counts == [1, 2]


@pytest.fixture
async def room(database: Database, redis_url: str, tmp_path: Path) -> AsyncIterator[Room]:
    redis = redis_clients.connect_async(redis_url)
    await redis.flushall()
    yield Room(database, redis, tmp_path / "objects")
    await redis.aclose()


DONE = (Outcome.DONE, Outcome.DONE)
PUBLISHED = ["videos/2/hls/1.m4s", "videos/2/manifest.json", "videos/2/video.mp4"]
EVERYTHING = ["videos/1/video.mp4", *PUBLISHED, "work/generate/0/1/latents", "work/references/first_frame.png"]


async def test_work_files_go_first_and_the_job_later(room: Room) -> None:
    job_id = await room.job(*DONE)
    await room.retention.round()
    assert room.files(job_id) == EVERYTHING
    room.now_ms += POLICY.work_ms
    await room.retention.round()
    assert room.files(job_id) == PUBLISHED
    assert (await room.look.job(job_id))["swept_at_ms"] == room.now_ms
    room.now_ms = NOW_MS + POLICY.job_ms - 1
    await room.retention.round()
    assert room.files(job_id) == PUBLISHED
    assert await room.num_keys(job_id) == 2
    room.now_ms += 1
    await room.retention.round()
    assert room.files(job_id) == []
    assert await room.num_keys(job_id) == 0
    assert not await room.exists(job_id)
    assert await room.look.rows(tables.outbox, job_id=job_id) == []
    assert await room.look.ledger(ids.task_id(job_id, "generate", 0)) == [(1, "done", 1.0)]


@pytest.mark.parametrize("outcomes", [(), (Outcome.DONE,), (Outcome.YIELDED,)], ids=["queued", "half", "yielded"])
async def test_what_is_not_over_is_never_touched(room: Room, outcomes: tuple[Outcome, ...]) -> None:
    job_id = await room.job(*outcomes)
    room.now_ms += 100 * POLICY.job_ms
    await room.retention.round()
    assert room.files(job_id) == EVERYTHING
    assert await room.exists(job_id)
    assert not await room.manager.purge(job_id)
    await room.manager.mark_swept(job_id)
    assert (await room.look.job(job_id))["swept_at_ms"] is None


async def test_videos_that_were_never_published_go_with_the_work(room: Room) -> None:
    failed = await room.job(Outcome.FAILED)
    cancelled = await room.job(Outcome.DONE)
    await room.manager.cancel(cancelled, TENANT)
    room.now_ms += POLICY.work_ms
    await room.retention.round()
    for job_id in (failed, cancelled):
        assert room.files(job_id) == []
        assert (await room.look.job(job_id))["error_code"]  # the tenant still sees why
    room.now_ms += POLICY.job_ms
    await room.retention.round()
    assert not await room.exists(failed)
    assert not await room.exists(cancelled)


async def test_what_its_tenant_deleted_leaves_no_prompt_behind(room: Room) -> None:
    job_id = await room.job(*DONE)
    room.now_ms += 5
    await room.manager.delete(job_id, TENANT)
    room.now_ms = NOW_MS + POLICY.work_ms
    await room.retention.round()
    assert await room.exists(job_id)
    room.now_ms += 5
    await room.retention.round()
    assert not await room.exists(job_id)
    assert room.files(job_id) == []


async def test_nothing_ends_where_jobs_are_kept_for_ever(room: Room) -> None:
    room.policy = Policy(work_ms=1_000, job_ms=0)
    kept, deleted = await room.job(*DONE), await room.job(*DONE)
    await room.manager.delete(deleted, TENANT)
    room.now_ms += 10**12
    await room.retention.round()
    assert await room.exists(kept)
    assert room.files(kept) == PUBLISHED
    assert not await room.exists(deleted)


async def test_what_was_promised_stands_when_the_policy_changes(room: Room) -> None:
    job_id = await room.job(*DONE)
    expires_at_ms = (await room.look.job(job_id))["expires_at_ms"]
    room.policy = Policy(work_ms=10, job_ms=20)
    room.now_ms = expires_at_ms - 1
    await room.retention.round()
    assert await room.exists(job_id)
    room.now_ms += 1
    await room.retention.round()
    assert not await room.exists(job_id)


async def test_what_was_kept_for_a_job_that_never_was_goes_in_the_end(room: Room) -> None:
    """As a gateway leaves it that died between keeping a reference and admitting the job."""
    admitted, lost = await room.job(), ids.new_job_id()
    key = reference_key(lost, "change.mkv")
    room.store.put_bytes(key, b"x", "video/x-matroska")
    room.store.put_bytes("work/other/file", b"x", "video/mp4")
    room.now_ms = ids.job_made_at_ms(lost) + retention.LOST_MS - 3600 * 1000
    sweeper = room.retention
    room.now_ms += 3600 * 1000
    await sweeper.round()
    assert room.store.exists(key), "it is not old enough"
    room.now_ms += 1
    await sweeper.round()
    assert room.store.exists(key), "it looks once an hour"
    room.now_ms += 3600 * 1000
    await sweeper.round()
    assert not room.store.exists(key)
    assert room.store.exists("work/other/file")
    assert room.files(admitted) == EVERYTHING


async def test_what_a_database_knows_nothing_of_at_all_is_kept(room: Room) -> None:
    """It may be one that is not restored yet."""
    key = reference_key(ids.new_job_id(), "change.mkv")
    room.store.put_bytes(key, b"x", "video/x-matroska")
    sweeper = room.retention
    room.now_ms += 2 * retention.LOST_MS
    await sweeper.round()
    assert room.store.exists(key)


class DiesAtError(Exception):
    """Stands for the death of the process."""


@pytest.mark.parametrize("step", ["videos", "work", "history", "row", "told"])
async def test_a_death_at_any_line_is_made_good_by_the_next_round(
    room: Room, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    job_id = await room.job(*DONE)
    room.now_ms += POLICY.job_ms
    delete_prefix, purge = room.store.delete_prefix, room.manager.purge

    def die_at_prefix(prefix: str) -> int:
        if prefix.startswith(step):
            raise DiesAtError
        return int(delete_prefix(prefix))

    async def die(_: str) -> bool:
        if step == "told":
            await purge(job_id)
        raise DiesAtError

    with monkeypatch.context() as patch:
        patch.setattr(room.store, "delete_prefix", die_at_prefix)
        if step == "history":
            patch.setattr(room.queue, "forget_events", die)
        if step in ("row", "told"):
            patch.setattr(room.manager, "purge", die)
        with pytest.raises(DiesAtError):
            await room.retention.round()
    assert await room.exists(job_id) == (step != "told")  # its row goes last: nothing is left that nobody knows of
    await room.retention.round()
    assert not await room.exists(job_id)
    assert room.files(job_id) == []
    assert await room.num_keys(job_id) == 0


async def test_a_job_whose_files_cannot_be_removed_holds_up_no_other(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [await room.job(*DONE) for _ in range(5)]
    room.now_ms += POLICY.job_ms
    delete_prefix = room.store.delete_prefix

    def refuse(prefix: str) -> int:
        if jobs[1] in prefix:
            raise UnavailableError("The store is away.")
        return int(delete_prefix(prefix))

    monkeypatch.setattr(room.store, "delete_prefix", refuse)
    monkeypatch.setattr(retention, "PAGE", 2)
    await room.retention.round()
    assert [await room.exists(job_id) for job_id in jobs] == [False, True, False, False, False]
    monkeypatch.undo()
    await room.retention.round()
    assert not await room.exists(jobs[1])


async def test_two_replicas_at_once_do_no_harm(room: Room) -> None:
    jobs = [await room.job(*DONE) for _ in range(4)]
    room.now_ms += POLICY.job_ms
    await asyncio.gather(*(room.retention.round() for _ in range(3)))
    assert [await room.exists(job_id) for job_id in jobs] == [False] * 4
    assert await room.look.rows(tables.jobs) == []


async def test_one_replica_at_a_time(room: Room) -> None:
    job_id = await room.job(*DONE)
    room.now_ms += POLICY.job_ms
    assert await room.queue.lead("retention", "another", 60_000)
    second = room.retention
    assert not await second.take_turn()
    assert await room.exists(job_id)
    await room.redis.delete(keys.scheduler_leader("retention"))  # its lead has run out
    assert await second.take_turn()
    assert not await room.exists(job_id)


async def test_a_report_for_a_job_that_is_gone_is_not_accepted(room: Room) -> None:
    job_id = await room.job(*DONE)
    room.now_ms += POLICY.job_ms
    await room.retention.round()
    task_id = ids.task_id(job_id, "generate", 0)
    assert not (await room.manager.report(Report(task_id, 1, Outcome.DONE))).is_accepted
    assert (await room.manager.claim(task_id, "w")).reason == "unknown"


async def test_a_job_that_is_repeated_is_gone_without_the_new_one(room: Room) -> None:
    old = await room.job(Outcome.FAILED)
    room.now_ms += POLICY.job_ms
    new = await admit(room.database, now_ms=room.now_ms)
    async with room.database.transaction() as connection:
        jobs = tables.jobs
        await connection.execute(sa.update(jobs).where(jobs.c.job_id == new).values(retry_of=old))
    await room.retention.round()
    assert not await room.exists(old)
    assert (await room.look.job(new))["retry_of"] == old
