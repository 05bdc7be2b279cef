"""Webhooks in SQL, over both databases: a job's end is told exactly once, senders share, owners see their own."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa

from vitascope_common import ids, tables, webhooks
from vitascope_common.database import Database
from vitascope_common.errors import ConflictError, InvalidRequestError
from vitascope_common.executor import Outcome
from vitascope_common.tables import webhook_deliveries, webhook_endpoints, webhook_tenants
from vitascope_common.webhooks import SigningSecret
from vitascope_gateway.adapters.webhooks import SqlWebhooks
from vitascope_gateway.webhooks import Endpoint, TooManyEndpointsError
from vitascope_scheduler.job_manager import JobManager, Report
from vitascope_scheduler.testing import TENANT, Sql, add_default_secret, add_endpoint, add_tenant, admit, artifact
from vitascope_scheduler.webhooks.deliveries import Attempted, Deliveries, announce

DEADLINE_MS = 1_800_000_000_000
LEASE_MS = 60_000
URL = "https://hooks.example.com/request?key=1"
ENDS = {
    "completed": ("video.completed", None),
    "failed": ("video.failed", "nan"),
    "cancelled": ("video.failed", "cancelled"),
    "expired": ("video.failed", "expired"),
    "deleted": ("video.failed", "cancelled"),
}


async def end(manager: JobManager, job_id: str, how: str) -> None:
    """Bring a job to an end, and try every other one afterwards."""
    first, last = (ids.task_id(job_id, stage, 0) for stage in ("generate", "finish"))

    async def complete() -> None:
        await manager.claim(first, "w1")
        await manager.report(Report(first, 1, Outcome.DONE, (artifact("mezzanine"),)))
        await manager.claim(last, "p1")
        await manager.report(Report(last, 1, Outcome.DONE, (artifact("manifest"),)))

    async def fail() -> None:
        await manager.claim(first, "w1")
        await manager.report(Report(first, 1, Outcome.FAILED, error_code="nan", error_message="not a number"))

    ways: dict[str, Any] = {
        "completed": complete,
        "failed": fail,
        "cancelled": lambda: manager.cancel(job_id, TENANT),
        "expired": lambda: manager.expire(job_id),
        "deleted": lambda: manager.delete(job_id, TENANT),
    }
    await ways.pop(how)()
    for way in ways.values():
        await way()


@pytest.mark.parametrize("how", ENDS)
async def test_every_end_is_told_to_each_receiver_exactly_once(database: Database, look: Sql, how: str) -> None:
    await add_tenant(database, "other")
    event_type, code = ENDS[how]
    wanted = await add_endpoint(database, "https://a.example.com/x", event_types=[event_type])
    unwanted = {"video.completed", "video.failed"} - {event_type}
    await add_endpoint(database, "https://b.example.com/x", event_types=list(unwanted))
    await add_endpoint(database, "https://c.example.com/x", disabled_at_ms=1)
    await add_endpoint(database, "https://d.example.com/x", tenant_id="other")
    job_id = await admit(database, deadline_at_ms=DEADLINE_MS, webhook_url=URL, traceparent="00-a-b-01")
    await end(JobManager(database, lambda: DEADLINE_MS), job_id, how)

    rows = await look.rows(webhook_deliveries)
    assert {(row["endpoint_id"], row["url"], row["host"]) for row in rows} == {
        (wanted, "https://a.example.com/x", "a.example.com"),
        (None, URL, "hooks.example.com"),
    }
    assert len(rows) == 2
    for row in rows:
        assert (row["tenant_id"], row["job_id"], row["event_type"]) == (TENANT, job_id, event_type)
        assert row["traceparent"] == "00-a-b-01"
        assert (row["state"], row["num_attempts"], row["next_at_ms"]) == ("pending", 0, DEADLINE_MS)
        event = json.loads(row["payload"])
        assert event["id"] == row["event_id"] == webhooks.event_id_of(job_id)
        assert (event["object"], event["type"], event["created_at"]) == ("event", event_type, DEADLINE_MS // 1000)
        assert event["data"]["id"] == job_id
        assert event["data"].get("error", {}).get("code") == code


@pytest.mark.parametrize(
    ("asked", "how", "number"), [("video.completed", "cancelled", 0), ("video.failed", "failed", 1)]
)
async def test_a_request_says_which_ends_it_wants(
    database: Database, look: Sql, manager: JobManager, asked: str, how: str, number: int
) -> None:
    job_id = await admit(database, webhook_url=URL, webhook_events=asked)
    await end(manager, job_id, how)
    assert len(await look.rows(webhook_deliveries)) == number


async def test_nothing_is_told_of_an_end_that_is_rolled_back(
    database: Database, look: Sql, manager: JobManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await admit(database, webhook_url=URL)

    async def announce_and_die(*arguments: Any) -> None:
        await announce(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitascope_scheduler.statements.announce", announce_and_die)
        with pytest.raises(KeyboardInterrupt):
            await manager.cancel(job_id, TENANT)
    assert (await look.job(job_id))["state"] == "queued"
    assert await look.rows(webhook_deliveries) == []
    await manager.cancel(job_id, TENANT)
    assert len(await look.rows(webhook_deliveries)) == 1


async def pending(database: Database, number: int) -> list[str]:
    """Have so many deliveries wait, and be due."""
    await add_default_secret(database)
    for index in range(number):
        job_id = await admit(database, webhook_url=f"https://{index % 3}.example.com/")
        await JobManager(database).cancel(job_id, TENANT)
    return [row["delivery_id"] for row in await Sql(database).rows(webhook_deliveries)]


async def test_senders_share_what_is_due_and_none_is_claimed_twice(database: Database, look: Sql) -> None:
    delivery_ids, rows = await pending(database, 12), Deliveries(database)
    now_ms = ids.now_ms()
    claims = await asyncio.gather(*(rows.claim(delivery_ids, now_ms, LEASE_MS) for _ in range(6)))
    taken = Counter(claimed.delivery_id for one in claims for claimed in one)
    assert taken == dict.fromkeys(delivery_ids, 1)
    assert await rows.due(now_ms, 100, [], []) == []
    assert {row["num_attempts"] for row in await look.rows(webhook_deliveries)} == {1}


async def test_what_a_dead_sender_held_is_due_again_and_its_late_word_counts_for_nothing(
    database: Database, look: Sql
) -> None:
    (delivery_id,), rows = await pending(database, 1), Deliveries(database)
    now_ms = ids.now_ms()
    (dead,) = await rows.claim([delivery_id], now_ms, LEASE_MS)
    assert await rows.due(now_ms + LEASE_MS - 1, 10, [], []) == []
    later_ms = now_ms + LEASE_MS
    (due,) = await rows.due(later_ms, 10, [], [])
    (alive,) = await rows.claim([due.delivery_id], later_ms, LEASE_MS)
    assert (dead.num_attempts, alive.num_attempts) == (1, 2)
    assert (dead.event_id, dead.payload) == (alive.event_id, alive.payload)
    assert not await rows.settle(dead, Attempted(False, None, later_ms, 5, 500, "late"))
    assert await rows.settle(alive, Attempted(True, None, later_ms, 5, 200))
    (row,) = await look.rows(webhook_deliveries)
    assert (row["state"], row["last_status"], row["last_error"], row["claim"]) == ("delivered", 200, None, None)
    assert row["finished_at_ms"] == later_ms


async def test_full_receivers_and_tenants_are_passed_over(database: Database) -> None:
    await pending(database, 6)
    rows, now_ms = Deliveries(database), ids.now_ms()
    assert Counter(one.host for one in await rows.due(now_ms, 100, [], [])) == {
        f"{index}.example.com": 2 for index in range(3)
    }
    left = await rows.due(now_ms, 100, [], [(TENANT, "0.example.com"), ("other", "1.example.com")])
    assert Counter(one.host for one in left) == {"1.example.com": 2, "2.example.com": 2}
    assert await rows.due(now_ms, 100, [TENANT], []) == []
    assert len(await rows.due(now_ms, 4, [], [])) == 4


async def test_gone_disables_the_endpoint_unless_it_has_moved_meanwhile(database: Database, look: Sql) -> None:
    rows = Deliveries(database)
    for moves in (False, True):
        endpoint_id = await add_endpoint(database, "https://gone.example.com/")
        job_id = await admit(database)
        await JobManager(database).cancel(job_id, TENANT)
        (row,) = await look.rows(webhook_deliveries, job_id=job_id)
        (claimed,) = await rows.claim([row["delivery_id"]], ids.now_ms(), LEASE_MS)
        if moves:
            await SqlWebhooks(database).change(TENANT, endpoint_id, {"url": "https://new.example.com/"}, 7)
        gone = Attempted(False, None, 5000, 1, 410, "gone", disables_endpoint=True)
        assert await rows.settle(claimed, gone)
        (endpoint,) = await look.rows(webhook_endpoints, endpoint_id=endpoint_id)
        assert endpoint["disabled_at_ms"] == (None if moves else 5000)
        assert (await look.rows(webhook_deliveries, job_id=job_id))[0]["state"] == "failed"
        await SqlWebhooks(database).remove(TENANT, endpoint_id)


async def test_only_what_was_finished_long_ago_is_forgotten(database: Database, look: Sql) -> None:
    delivery_ids, rows = await pending(database, 3), Deliveries(database)
    old, new, _ = await rows.claim(delivery_ids, ids.now_ms(), LEASE_MS)
    await rows.settle(old, Attempted(True, None, 1000, 1, 200))
    await rows.settle(new, Attempted(False, None, 2000, 1, 500))
    assert await rows.sweep(1001) == 1
    left = {row["delivery_id"] for row in await look.rows(webhook_deliveries)}
    assert left == set(delivery_ids) - {old.delivery_id}
    assert await rows.sweep(10**15) == 1, "what is pending stays"
    backlog = await rows.backlog()
    assert backlog.num_pending == 1
    assert backlog.due_at_ms is not None


def endpoint(number: int = 0, tenant_id: str = TENANT) -> Endpoint:
    return Endpoint(
        endpoint_id=f"we_{number:032x}",
        tenant_id=tenant_id,
        name=f"größe {number}",
        url="https://a.example.com/",
        event_types=("video.failed",),
        signing=SigningSecret(webhooks.new_secret()),
        disabled_at_ms=None,
        created_at_ms=1000 + number // 2,
        updated_at_ms=1000,
    )


async def test_there_are_never_more_endpoints_than_allowed(database: Database, look: Sql) -> None:
    store = SqlWebhooks(database)
    added = await asyncio.gather(*(store.add(endpoint(n), 3) for n in range(8)), return_exceptions=True)
    assert sum(isinstance(one, str) for one in added) == 3
    assert all(isinstance(one, str | TooManyEndpointsError) for one in added)
    found, has_more = await store.endpoints(TENANT, None, 10)
    assert (len(found), has_more) == (3, False)
    removed = await asyncio.gather(*(store.remove(TENANT, found[0].endpoint_id) for _ in range(4)))
    assert sorted(removed) == [False, False, False, True]
    (row,) = await look.rows(webhook_tenants)
    assert row["num_endpoints"] == 2
    await store.add(endpoint(20), 3)
    with pytest.raises(TooManyEndpointsError):
        await store.add(endpoint(21), 3)


async def test_pages_begin_after_the_last_one_and_belong_to_their_tenant(database: Database) -> None:
    store = SqlWebhooks(database)
    for number in range(5):
        await store.add(endpoint(number), 20)
    await store.add(endpoint(9, "other"), 20)
    seen: list[str] = []
    after: str | None = None
    has_more = True
    while has_more:
        page, has_more = await store.endpoints(TENANT, after, 2)
        seen += [one.endpoint_id for one in page]
        after = seen[-1]
    assert seen == [endpoint(number).endpoint_id for number in range(4, -1, -1)]
    with pytest.raises(InvalidRequestError):
        await store.endpoints(TENANT, endpoint(9).endpoint_id, 2)
    assert await store.endpoint(TENANT, endpoint(9).endpoint_id) is None
    assert await store.change(TENANT, endpoint(9).endpoint_id, {"name": "mine"}, 2000) is None
    assert not await store.remove(TENANT, endpoint(9).endpoint_id)
    theirs = await store.endpoint("other", endpoint(9).endpoint_id)
    assert theirs is not None
    assert (theirs.name, theirs.event_types) == ("größe 9", ("video.failed",))


async def test_a_secret_is_rotated_in_one_step(database: Database) -> None:
    store = SqlWebhooks(database)
    first = endpoint()
    await store.add(first, 20)
    kept, _ = await store.rotate(TENANT, first.endpoint_id, "whsec_b", 5000, 2000)
    assert kept is not None
    assert kept.signing == SigningSecret("whsec_b", first.signing.secret, 5000)
    assert kept.signing.live(4999) == ["whsec_b", first.signing.secret]
    assert kept.signing.live(5000) == ["whsec_b"]
    dropped, _ = await store.rotate(TENANT, first.endpoint_id, "whsec_c", None, 3000)
    assert dropped is not None
    assert (dropped.signing, dropped.updated_at_ms) == (SigningSecret("whsec_c"), 3000)

    secrets = await asyncio.gather(*(store.default_secret("other", 1) for _ in range(5)))
    assert len(set(secrets)) == 1, "it is made once"
    rotated, _ = await store.rotate_default("other", "whsec_d", 9000, 2)
    assert rotated == SigningSecret("whsec_d", secrets[0].secret, 9000) == await store.default_secret("other", 3)


async def test_a_replay_is_the_same_event_in_a_delivery_of_its_own(database: Database, look: Sql) -> None:
    store = SqlWebhooks(database)
    endpoint_id = await add_endpoint(database, "https://old.example.com/")
    await JobManager(database).cancel(await admit(database), TENANT)
    (row,) = await look.rows(webhook_deliveries)
    await store.change(TENANT, endpoint_id, {"url": "https://new.example.com/"}, 7)
    assert await store.replay("other", row["delivery_id"], "whd_new", 9000) is None
    replayed = await store.replay(TENANT, row["delivery_id"], "whd_new", 9000)
    assert replayed is not None
    assert (replayed.event_id, replayed.payload, replayed.endpoint_id) == (
        *(row["event_id"], row["payload"]),
        endpoint_id,
    )
    assert (replayed.state, replayed.url, replayed.num_attempts) == ("pending", "https://new.example.com/", 0)
    log, _ = await store.deliveries(TENANT, row["job_id"], endpoint_id, "pending", None, 10)
    assert {one.delivery_id for one in log} == {"whd_new", row["delivery_id"]}
    assert (await store.deliveries("other", None, None, None, None, 10))[0] == []
    assert (await store.deliveries(TENANT, None, None, "failed", None, 10))[0] == []
    await store.remove(TENANT, endpoint_id)
    with pytest.raises(ConflictError, match="deleted"):
        await store.replay(TENANT, row["delivery_id"], "whd_again", 9000)


async def test_what_goes_to_a_deleted_endpoint_has_no_secret_and_is_given_up(database: Database, look: Sql) -> None:
    endpoint_id = await add_endpoint(database, "https://a.example.com/")
    await JobManager(database).cancel(await admit(database), TENANT)
    await SqlWebhooks(database).remove(TENANT, endpoint_id)
    async with database.transaction() as connection:  # an endpoint has no claim to the secret of requests
        values = {"tenant_id": TENANT, "secret": "whsec_default", "created_at_ms": 1}
        await connection.execute(sa.insert(tables.webhook_tenants).values(values))
    (row,) = await look.rows(webhook_deliveries)
    (claimed,) = await Deliveries(database).claim([row["delivery_id"]], ids.now_ms(), LEASE_MS)
    assert claimed.signing is None
