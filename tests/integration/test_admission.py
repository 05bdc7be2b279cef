"""The promise: job, tasks and outbox exist together or not at all, over both databases."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from vitascope_common import ids
from vitascope_common.database import Database
from vitascope_common.errors import UnavailableError
from vitascope_common.jobs import GENERATE, JsonParams, Kind, Stage
from vitascope_common.registry import ModelCard, Registry
from vitascope_common.tables import METADATA, jobs, outbox, tasks, webhook_tenants
from vitascope_common.tokens import api_key_hash
from vitascope_gateway.adapters.sql import SqlStore
from vitascope_gateway.admission import NewJob, admit
from vitascope_gateway.idempotency import Repeatable
from vitascope_gateway.request import Offer, parse_request
from vitascope_gateway.testing import add_tenant

MODELS_DIR = Path(__file__).parents[2] / "models"


@pytest.fixture
def runner(database_url: str) -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as one:
        yield one


@pytest.fixture
def database(runner: asyncio.Runner, database_url: str) -> Iterator[Database]:
    one = Database(database_url)

    async def empty() -> None:
        async with one.transaction() as connection:
            for table in reversed(METADATA.sorted_tables):
                await connection.execute(sa.delete(table))

    runner.run(empty())
    yield one
    runner.run(one.close())


@pytest.fixture(scope="module")
def card() -> ModelCard:
    return Registry(MODELS_DIR).cards()[0]


def new_job(card: ModelCard, tenant_id: str = "acme", **fields: Any) -> NewJob:
    request = parse_request({"prompt": "a  red\u2028circle 🔴", **fields}, Offer([card]))
    return NewJob(
        job_id=ids.new_job_id(),
        tenant_id=tenant_id,
        kind=GENERATE,
        card=card,
        prompt=request.prompt,
        params=request.params("a red circle", ""),
        safety={"category": "", "score": 0.0, "policy_version": "1"},
        labels={"größe": "\x7f\x01"},
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        created_at_ms=ids.now_ms(),
        hook=request.hook,
    )


def replace_group_size(card: ModelCard, group_size: int) -> ModelCard:
    return card.model_copy(update={"group_size": group_size})


async def rows(database: Database, table: sa.Table) -> list[dict[str, Any]]:
    async with database.read() as connection:
        found = await connection.execute(sa.select(table).order_by(*table.primary_key.columns))
        return [dict(row) for row in found.mappings()]


def test_a_job_is_written_whole(runner: asyncio.Runner, database: Database, card: ModelCard) -> None:
    job = new_job(card, seed=2**32 - 1)
    runner.run(admit(database, job))

    (row,) = runner.run(rows(database, jobs))
    assert (row["job_id"], row["tenant_id"], row["state"], row["version"]) == (job.job_id, "acme", "queued", 1)
    assert (row["prompt"], row["labels"]) == ("a  red\u2028circle 🔴", {"größe": "\x7f\x01"})
    assert (row["params"]["prompt"], row["params"]["seed"]) == ("a red circle", 2**32 - 1)
    assert row["started_at_ms"] is row["finished_at_ms"] is row["deleted_at_ms"] is row["manifest_key"] is None

    finish, generate = runner.run(rows(database, tasks))
    assert generate["task_id"] == ids.task_id(job.job_id, "generate", 0)
    assert (generate["state"], generate["num_needed"], generate["pool"]) == ("ready", 0, card.pool)
    assert (generate["attempt"], generate["epoch"], generate["executor"]) == (0, None, "gpu-worker")
    assert (generate["yieldable"], generate["total"], generate["unit"]) == (True, 24, "step")
    assert generate["cost_s"] == pytest.approx(card.estimate_s(24, 33) * card.group_size)
    assert generate["params"] == row["params"]
    assert (finish["state"], finish["num_needed"], finish["pool"]) == ("waiting", 1, "postproc")
    assert (finish["executor"], finish["yieldable"]) == ("postproc", False)
    assert "a red circle" not in json.dumps(finish["params"])

    event, ready = runner.run(rows(database, outbox))
    assert (event["topic"], event["payload"]) == ("event", {"type": "queued", "data": {}, "version": 1})
    assert (ready["topic"], ready["payload"]) == ("ready", {"task_id": generate["task_id"]})
    everything = [row, generate, finish, event, ready]
    assert {one["tenant_id"] for one in everything} == {"acme"}
    assert {one["traceparent"] for one in everything} == {job.traceparent}
    assert {one["created_at_ms"] for one in everything} == {job.created_at_ms}


def test_class_priority_deadline_and_origin_are_kept(
    runner: asyncio.Runner, database: Database, card: ModelCard
) -> None:
    job = new_job(card)
    asked = replace(job, class_name="batch", priority=-3, deadline_at_ms=job.created_at_ms + 5_000, retry_of="video_0")
    runner.run(admit(database, asked))
    (row,) = runner.run(rows(database, jobs))
    assert (row["class_name"], row["deadline_at_ms"], row["retry_of"]) == ("batch", asked.deadline_at_ms, "video_0")
    assert {(one["class_name"], one["priority"]) for one in runner.run(rows(database, tasks))} == {("batch", -3)}


def test_a_kind_is_data(runner: asyncio.Runner, database: Database, card: ModelCard) -> None:
    kind = Kind(
        "search",
        (
            Stage("try", executor="trial", pool=None, needs=None, yieldable=True, unit="trial", num_shards=6),
            Stage(
                "score",
                executor="cpu",
                pool="cpu",
                needs="try",
                yieldable=False,
                unit="trial",
                num_shards=6,
                needs_same_shard=True,
            ),
            Stage("best", executor="cpu", pool="cpu", needs="score", yieldable=False, unit="trial", publishes=True),
        ),
    )
    params = {"try": JsonParams({"budget": 3}), "score": JsonParams({}), "best": JsonParams({"keep": 1})}
    costs_s = {"try": 7.0, "score": 1.0}
    job = replace(new_job(card), kind=kind, params=params, costs_s=costs_s, card=replace_group_size(card, 2))
    runner.run(admit(database, job))
    found = {(one["stage"], one["shard"]): one for one in runner.run(rows(database, tasks))}
    assert len(found) == 13
    assert [found["try", shard]["state"] for shard in range(6)] == ["ready"] * 4 + ["waiting"] * 2
    ready = [one["payload"]["task_id"] for one in runner.run(rows(database, outbox)) if one["topic"] == "ready"]
    assert ready == [ids.task_id(job.job_id, "try", shard) for shard in range(4)]
    assert {(one["needs"], one["num_needed"]) for (name, _), one in found.items() if name == "score"} == {("try", 1)}
    best = found["best", 0]
    assert (best["needs"], best["num_needed"], best["needs_same_shard"], best["publishes"]) == ("score", 6, False, True)
    assert (found["try", 0]["cost_s"], found["try", 0]["group_size"], found["try", 0]["pool"]) == (14.0, 2, card.pool)
    assert (found["score", 0]["cost_s"], found["score", 0]["group_size"], best["cost_s"]) == (1.0, 1, 0.0)
    assert (found["try", 5]["params"], best["params"]) == ({"budget": 3}, {"keep": 1})


@pytest.mark.parametrize("table", ["tasks", "outbox"])
def test_a_failure_in_the_middle_leaves_nothing(
    runner: asyncio.Runner, database: Database, card: ModelCard, table: str
) -> None:
    async def rename(old: str, new: str) -> None:
        async with database.transaction() as connection:
            await connection.execute(sa.text(f"ALTER TABLE {old} RENAME TO {new}"))

    runner.run(rename(table, "hidden"))
    try:
        with pytest.raises((UnavailableError, sa.exc.ProgrammingError)):
            runner.run(admit(database, new_job(card)))
    finally:
        runner.run(rename("hidden", table))
    for one in (jobs, tasks, outbox):
        assert runner.run(rows(database, one)) == []


def test_the_same_job_is_never_admitted_twice(runner: asyncio.Runner, database: Database, card: ModelCard) -> None:
    job = new_job(card)
    runner.run(admit(database, job))
    with pytest.raises(sa.exc.IntegrityError):
        runner.run(admit(database, job))
    assert len(runner.run(rows(database, jobs))) == 1
    assert len(runner.run(rows(database, outbox))) == 2


def test_many_at_once_are_all_written(runner: asyncio.Runner, database: Database, card: ModelCard) -> None:
    admitted = [new_job(card, tenant_id=f"tenant{number % 3}") for number in range(30)]

    async def all_at_once() -> None:
        await asyncio.gather(*(admit(database, job) for job in admitted))

    runner.run(all_at_once())
    assert {row["job_id"] for row in runner.run(rows(database, jobs))} == {job.job_id for job in admitted}
    by_job: dict[str, list[str]] = {}
    for row in runner.run(rows(database, outbox)):
        by_job.setdefault(row["job_id"], []).append(row["topic"])
    assert set(map(tuple, by_job.values())) == {("event", "ready")}


def test_the_first_request_that_names_a_webhook_makes_the_one_secret_that_signs_for_all(
    runner: asyncio.Runner, database: Database, card: ModelCard
) -> None:
    hook = {"webhook_url": "https://hooks.example.com/?key=1", "webhook_events": ["video.failed"]}
    told, untold = [new_job(card, **hook) for _ in range(6)], new_job(card, "quiet")

    async def all_at_once() -> None:
        await asyncio.gather(*(admit(database, job) for job in [*told, untold]))

    runner.run(all_at_once())
    (tenant,) = runner.run(rows(database, webhook_tenants))
    assert (tenant["tenant_id"], tenant["num_endpoints"]) == ("acme", 0)
    stored = {row["job_id"]: (row["webhook_url"], row["webhook_events"]) for row in runner.run(rows(database, jobs))}
    assert stored == {job.job_id: (hook["webhook_url"], "video.failed") for job in told} | {untold.job_id: (None, "")}


@pytest.mark.parametrize("is_named", [True, False])
def test_of_many_that_are_one_request_one_is_written(
    runner: asyncio.Runner, database: Database, card: ModelCard, is_named: bool
) -> None:
    now = ids.now_ms()
    sent = [Repeatable("acme", "k", is_named, "0", 0 if is_named else number, now) for number in range(12)]

    async def all_at_once() -> list[Any]:
        order = range(11, -1, -1) if is_named else range(12)
        admissions = [admit(database, new_job(card), sent[number]) for number in order]
        return await asyncio.gather(*admissions, return_exceptions=True)

    results = runner.run(all_at_once())
    (job,) = runner.run(rows(database, jobs))
    assert [result for result in results if result is None] == [None]
    assert {getattr(result, "job_id", None) for result in results} == {None, job["job_id"]}
    assert len(runner.run(rows(database, outbox))) == 2
    assert (
        runner.run(SqlStore(database).made(sent[-1] if is_named else replace(sent[0], num_retries=50))) == job["job_id"]
    )


def test_what_is_admitted_is_shown_to_its_tenant_page_by_page(
    runner: asyncio.Runner, database: Database, card: ModelCard
) -> None:
    store = SqlStore(database)
    admitted = [new_job(card) for _ in range(4)]
    for job in admitted:
        runner.run(store.admit(job))
    record = runner.run(store.job("acme", admitted[0].job_id))
    assert record is not None
    assert (record.steps_total, record.attempt, record.labels) == (24, 0, {"größe": "\x7f\x01"})
    assert runner.run(store.job("other", admitted[0].job_id)) is None
    first, has_more = runner.run(store.page("acme", None, 3, False))
    rest, ends = runner.run(store.page("acme", first[-1].job_id, 3, False))
    assert (len(first), has_more, len(rest), ends) == (3, True, 1, False)
    newest_first = sorted(admitted, key=lambda job: (job.created_at_ms, job.job_id), reverse=True)
    assert [one.job_id for one in [*first, *rest]] == [job.job_id for job in newest_first]


def test_a_key_opens_for_its_tenant_alone(runner: asyncio.Runner, database: Database) -> None:
    store = SqlStore(database)
    keys = [runner.run(add_tenant(database, name)) for name in ("acme", "other")]
    callers = [runner.run(store.caller(api_key_hash(key))) for key in keys]
    assert [caller and caller.tenant_id for caller in callers] == ["acme", "other"]
    assert runner.run(store.caller(api_key_hash(keys[0] + "x"))) is None


def test_a_database_that_is_away_is_said_to_be_and_nothing_else(card: ModelCard) -> None:
    async def admit_nowhere() -> str:
        database = Database("postgresql+asyncpg://secret:word@127.0.0.1:1/x")
        try:
            with pytest.raises(UnavailableError) as away:
                await SqlStore(database).admit(new_job(card))
        finally:
            await database.close()
        return away.value.message

    message = asyncio.run(admit_nowhere())
    assert "127.0.0.1" not in message
    assert "word" not in message
