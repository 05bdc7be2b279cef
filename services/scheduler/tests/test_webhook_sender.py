"""The sender against real receivers: what it makes of their answers, of their silence, and of its own death."""

import asyncio
import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from vitascope_common import ids, webhooks
from vitascope_common.database import Database
from vitascope_common.tables import webhook_deliveries, webhook_endpoints
from vitascope_common.testing import Received, Receiver, free_port, webhook_receiver
from vitascope_common.url_guard import UrlGuard, UrlPolicy
from vitascope_common.webhooks import SigningSecret
from vitascope_scheduler.job_manager import JobManager
from vitascope_scheduler.testing import (
    TENANT,
    Sql,
    WebhooksProcess,
    add_default_secret,
    add_endpoint,
    admit,
)
from vitascope_scheduler.webhooks import sender as sender_module
from vitascope_scheduler.webhooks.deliveries import Claimed, Deliveries
from vitascope_scheduler.webhooks.sender import MAX_OF_RECEIVER, MAX_OF_TENANT, Sender, Timing, retry_after

HOUR_MS = 3600 * 1000
DEADLINE_S = 20.0


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_ms = ids.now_ms()

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with webhook_receiver() as one:
        yield one


@pytest.fixture
def look(database: Database) -> Sql:
    return Sql(database)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guard() -> UrlGuard:
    return UrlGuard(UrlPolicy.allowing(["127.0.0.0/8"]))


@pytest.fixture
async def sender(database: Database, guard: UrlGuard, clock: Clock) -> AsyncIterator[Sender]:
    """One that always draws the longest wait."""
    one = Sender(Deliveries(database), guard, Timing(), clock, lambda: 1.0)
    yield one
    await one.drain(0)


async def ended(database: Database, url: str | None = None, **options: Any) -> str:
    """Have a job end, of which somebody is to be told; return its id."""
    job_id = await admit(database, webhook_url=url, **options)
    await JobManager(database).cancel(job_id, options.get("tenant_id", TENANT))
    return job_id


async def once(sender: Sender) -> None:
    """Make every attempt that is due, to its end."""
    await sender.start_due()
    await sender.drain(DEADLINE_S)


async def delivery(look: Sql, **where: Any) -> dict[str, Any]:
    (row,) = await look.rows(webhook_deliveries, **where)
    return row


async def until(what: str, condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        answer = condition()
        answer = await answer if asyncio.iscoroutine(answer) else answer
        if answer:
            return answer
        await asyncio.sleep(0.02)
    raise AssertionError(f"waited for {what}")


def unwrap(received: Received, secret: str) -> Any:
    with openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9") as client:
        return client.webhooks.unwrap(received.body, dict(received.headers), secret=secret)


async def test_what_arrives_is_signed_and_delivered(
    database: Database, look: Sql, sender: Sender, clock: Clock, receiver: Receiver
) -> None:
    secret = await add_default_secret(database)
    job_id = await ended(database, receiver.url("/in?key=1"))
    clock.now_ms = ids.now_ms()
    await once(sender)
    (received,) = receiver.received()
    assert received.path == "/in?key=1"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["user-agent"] == webhooks.USER_AGENT
    event = unwrap(received, secret)
    assert (event.type, event.data.id) == ("video.failed", job_id)
    row = await delivery(look)
    assert (row["state"], row["last_status"], row["last_error"], row["num_attempts"]) == ("delivered", 200, None, 1)
    await once(sender)
    assert len(receiver.received()) == 1


async def test_an_old_secret_signs_beside_the_new_one_while_it_lives(
    database: Database, sender: Sender, clock: Clock, receiver: Receiver
) -> None:
    old, new = webhooks.new_secret(), webhooks.new_secret()
    expires_at_ms = ids.now_ms() + 60_000
    rotated = {"secret": new, "old_secret": old, "old_secret_expires_at_ms": expires_at_ms}
    await add_endpoint(database, receiver.url(), **rotated)
    await ended(database)
    clock.now_ms = ids.now_ms()
    await once(sender)
    for secret in (old, new):
        unwrap(receiver.received()[0], secret)
    assert SigningSecret(new, old, expires_at_ms).live(expires_at_ms) == [new]


async def test_a_failure_is_tried_again_later_and_later_until_a_day_has_passed(
    database: Database, look: Sql, sender: Sender, clock: Clock, receiver: Receiver
) -> None:
    await add_default_secret(database)
    receiver.answer("/hook", 500)
    await ended(database, receiver.url())
    created_at_ms = clock.now_ms = (await delivery(look))["created_at_ms"]
    waits_ms = []
    while True:
        await once(sender)
        row = await delivery(look)
        if row["state"] != "pending":
            break
        waits_ms.append(row["next_at_ms"] - clock.now_ms)
        clock.now_ms = row["next_at_ms"] - 1
        await once(sender)
        clock.now_ms += 1
    assert waits_ms[:5] == [10_000, 20_000, 40_000, 80_000, 160_000]
    assert max(waits_ms) == 3 * HOUR_MS
    assert clock.now_ms == created_at_ms + 24 * HOUR_MS, "the last attempt is a day after the event"
    assert (row["state"], row["last_status"], row["last_error"]) == ("failed", 500, "The receiver answered 500.")
    assert row["num_attempts"] == len(receiver.received()) == len(waits_ms) + 1
    assert len({one.headers["webhook-id"] for one in receiver.received()}) == 1
    assert len({one.body for one in receiver.received()}) == 1
    signed_at = [int(one.headers["webhook-timestamp"]) for one in receiver.received()]
    assert signed_at == sorted(set(signed_at)), "each attempt is signed at its own time"


def test_waits_are_jittered_in_full_and_follow_retry_after_within_bounds() -> None:
    timing, now_ms = Timing(), 1_000_000_000
    claimed = Claimed("whd", TENANT, "h", "evt", "job", None, "u", "{}", 4, now_ms, "c", "", None, False)
    assert timing.next_at_ms(now_ms, claimed, 0, 0.0) == now_ms + 1
    assert timing.next_at_ms(now_ms, claimed, 0, 0.5) == now_ms + 40_000
    assert timing.next_at_ms(now_ms, claimed, 60_000, 0.5) == now_ms + 60_000
    assert timing.next_at_ms(now_ms, claimed, 999 * HOUR_MS, 0.5) == now_ms + HOUR_MS
    late_ms = now_ms + 24 * HOUR_MS
    assert timing.next_at_ms(late_ms - 5, claimed, 0, 0.5) == late_ms
    assert timing.next_at_ms(late_ms, claimed, 0, 0.5) is None


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("", 0),
        ("120", 120_000),
        (" 7 ", 7000),
        ("99999999999999999999", HOUR_MS),
        ("-5", 0),
        ("soon", 0),
        ("1.5", 0),
        ("Thu, 01 Jan 1970 00:01:00 GMT", 59_000),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Thu, 99 Jan 1970 00:00:00 GMT", 0),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 0),
        ("٣", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, expected_ms: int) -> None:
    assert retry_after(text, 1000) == expected_ms


async def test_a_receiver_says_when_to_come_back(
    database: Database, look: Sql, sender: Sender, clock: Clock, receiver: Receiver
) -> None:
    await add_default_secret(database)
    receiver.answer("/hook", 429, retry_after="120")
    await ended(database, receiver.url())
    clock.now_ms = ids.now_ms()
    await once(sender)
    row = await delivery(look)
    assert (row["state"], row["last_status"], row["next_at_ms"]) == ("pending", 429, clock.now_ms + 120_000)


async def test_gone_ends_it_and_disables_the_endpoint(
    database: Database, look: Sql, sender: Sender, clock: Clock, receiver: Receiver
) -> None:
    endpoint_id = await add_endpoint(database, receiver.url("/gone"))
    receiver.answer("/gone", 410)
    await ended(database)
    await ended(database)  # on its way already
    clock.now_ms = ids.now_ms()
    await once(sender)
    await once(sender)
    (endpoint,) = await look.rows(webhook_endpoints, endpoint_id=endpoint_id)
    assert endpoint["disabled_at_ms"] == clock.now_ms
    rows = await look.rows(webhook_deliveries)
    assert {row["state"] for row in rows} == {"failed"}
    await ended(database)
    assert len(await look.rows(webhook_deliveries)) == 2, "a disabled endpoint is told nothing"


@pytest.mark.parametrize("location", ["http://169.254.169.254/latest/meta-data/", "/elsewhere"])
async def test_a_redirect_is_not_followed(
    database: Database, look: Sql, sender: Sender, clock: Clock, receiver: Receiver, location: str
) -> None:
    await add_default_secret(database)
    receiver.answer("/hook", 307, location=location)
    await ended(database, receiver.url())
    clock.now_ms = ids.now_ms()
    await once(sender)
    row = await delivery(look)
    assert (row["state"], row["last_status"]) == ("pending", 307)
    assert "not followed" in row["last_error"]
    assert [one.path for one in receiver.received()] == ["/hook"]


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "https://10.0.0.1/x", "ftp://example.com/"])
async def test_a_url_inside_is_not_called(
    database: Database, look: Sql, sender: Sender, clock: Clock, url: str
) -> None:
    await add_default_secret(database)
    await ended(database, url)
    clock.now_ms = ids.now_ms()
    await once(sender)
    row = await delivery(look)
    assert (row["state"], row["last_status"]) == ("pending", None)
    assert "169.254" not in row["last_error"]


async def test_a_receiver_that_answers_too_late_is_tried_again(
    database: Database, look: Sql, guard: UrlGuard, clock: Clock, receiver: Receiver
) -> None:
    await add_default_secret(database)
    receiver.held.add("/slow")
    await ended(database, receiver.url("/slow"))
    sender = Sender(Deliveries(database), guard, Timing(timeout_ms=50), clock, lambda: 1.0)
    clock.now_ms = ids.now_ms()
    await once(sender)
    row = await delivery(look)
    assert (row["state"], row["last_status"], row["next_at_ms"]) == ("pending", None, clock.now_ms + 10_000)
    assert "within 0.05 s" in row["last_error"]


async def test_nobody_waits_for_the_rest_of_an_answer(
    database: Database, look: Sql, sender: Sender, clock: Clock
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}}}")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        await reader.read()  # until the sender has gone
        writer.close()

    await add_default_secret(database)
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await ended(database, f"http://127.0.0.1:{port}/")
        clock.now_ms = ids.now_ms()
        await once(sender)
    assert (await delivery(look))["state"] == "delivered"


async def test_a_receiver_that_is_silent_delays_nobody_else(
    database: Database, look: Sql, guard: UrlGuard, receiver: Receiver
) -> None:
    """A hundred events for one that holds every connection; the last of all is for another, of another tenant."""
    await add_default_secret(database)
    await add_default_secret(database, "other")
    receiver.held.add("/silent")
    job_ids = [await ended(database, receiver.url("/silent")) for _ in range(100)]
    with webhook_receiver() as lively:
        mine = await ended(database, lively.url("/mine"))
        theirs = await ended(database, lively.url("/theirs"), tenant_id="other")
        sender = Sender(Deliveries(database), guard, Timing(poll_ms=10))
        running = asyncio.create_task(sender.run())
        try:
            for job_id in (mine, theirs):
                await until("it", lambda job_id=job_id: look.rows(webhook_deliveries, job_id=job_id, state="delivered"))
            held = await asyncio.to_thread(receiver.wait, MAX_OF_RECEIVER, "/silent")
            assert len(held) == MAX_OF_RECEIVER
        finally:
            receiver.release()
        for job_id in job_ids:
            await until("it", lambda job_id=job_id: look.rows(webhook_deliveries, job_id=job_id, state="delivered"))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert len(receiver.received("/silent")) == 100


@contextlib.asynccontextmanager
async def silent(*hosts: str) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Listen on a port of these hosts, say nothing, and hang up while the event is set."""
    hang_up, port = asyncio.Event(), free_port()

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hang_up.wait()
        writer.close()

    async with await asyncio.start_server(hold, hosts, port):
        yield port, hang_up
        hang_up.set()


async def test_a_receiver_that_did_not_answer_has_one_place_until_it_does(
    database: Database, sender: Sender, clock: Clock
) -> None:
    await add_default_secret(database)
    async with silent("127.0.0.1") as (port, hang_up):
        for _ in range(2 * MAX_OF_RECEIVER):
            await ended(database, f"http://127.0.0.1:{port}/")
        clock.now_ms = ids.now_ms()
        assert await sender.start_due()
        assert len(sender._running) == MAX_OF_RECEIVER
        hang_up.set()
        await sender.drain(DEADLINE_S)
        hang_up.clear()
        assert await sender.start_due()
        assert len(sender._running) == 1
        hang_up.set()
        await sender.drain(DEADLINE_S)


async def test_of_too_many_silent_receivers_the_latest_are_remembered(
    database: Database, guard: UrlGuard, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "MAX_SILENT", 2)
    await add_default_secret(database)
    clock.now_ms = ids.now_ms()
    sender = Sender(Deliveries(database), guard, Timing(), clock, lambda: 1.0)
    hosts = [f"127.0.0.{number + 1}:{free_port()}" for number in range(3)]
    for number in (0, 1, 0, 2):  # so that the second was silent longest ago
        await ended(database, f"http://{hosts[number]}/")
        clock.now_ms = ids.now_ms()
        await once(sender)
    assert [sender._places((TENANT, host)) for host in hosts] == [1, MAX_OF_RECEIVER, 1]


async def test_a_tenant_with_many_dead_receivers_leaves_places_for_others(
    database: Database, sender: Sender, clock: Clock, receiver: Receiver
) -> None:
    await add_default_secret(database)
    await add_default_secret(database, "other")
    hosts = [f"127.0.0.{number + 1}" for number in range(MAX_OF_TENANT + 4)]
    receiver.held.add("/theirs")
    async with silent(*hosts) as (port, hang_up):
        for host in hosts:
            await ended(database, f"http://{host}:{port}/hook")
        await ended(database, receiver.url("/theirs"), tenant_id="other")
        clock.now_ms = ids.now_ms()
        assert await sender.start_due()
        assert Counter(tenant_id for tenant_id, _ in sender._running.values()) == {TENANT: MAX_OF_TENANT, "other": 1}
        await asyncio.to_thread(receiver.wait, 1, "/theirs")
        receiver.release()
        hang_up.set()
        await sender.drain(DEADLINE_S)


async def test_tenants_take_turns_however_long_the_backlog_of_one_is(
    database: Database, sender: Sender, clock: Clock, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "MAX_IN_FLIGHT", 1)
    for tenant_id in (TENANT, "other"):
        await add_default_secret(database, tenant_id)
    for _ in range(4):
        await ended(database, receiver.url("/backlog"))
    await ended(database, receiver.url("/theirs"), tenant_id="other")
    clock.now_ms = ids.now_ms()
    for _ in range(5):
        await once(sender)
    paths = [one.path for one in receiver.received()]
    assert len(paths) == 5
    assert "/theirs" in paths[:2]


async def test_two_senders_share_the_work_without_doubles(
    database: Database, database_url: str, look: Sql, receiver: Receiver, tmp_path: Path
) -> None:
    await add_default_secret(database)
    for number in range(60):
        await ended(database, receiver.url(f"/{number % 6}"))
    folders = [tmp_path / "a", tmp_path / "b"]
    with contextlib.ExitStack() as stack:
        for folder in folders:
            folder.mkdir()
            stack.enter_context(contextlib.closing(WebhooksProcess(database_url, folder))).start()
        await until("all", lambda: _is_count(look, 60))
    assert Counter(one.headers["webhook-id"] for one in receiver.received()).most_common(1)[0][1] == 1
    assert len(receiver.received()) == 60
    assert {row["num_attempts"] for row in await look.rows(webhook_deliveries)} == {1}


async def _is_count(look: Sql, number: int) -> bool:
    return len(await look.rows(webhook_deliveries, state="delivered")) == number


@pytest.mark.parametrize("sender_dies_by", [signal.SIGKILL, signal.SIGTERM])
async def test_a_sender_that_dies_between_post_and_commit_loses_nothing(
    database: Database,
    database_url: str,
    look: Sql,
    receiver: Receiver,
    tmp_path: Path,
    sender_dies_by: signal.Signals,
) -> None:
    secret = await add_default_secret(database)
    receiver.held.add("/hook")
    with contextlib.closing(WebhooksProcess(database_url, tmp_path, lease_ms=4000)) as process:
        process.start()
        await ended(database, receiver.url())
        await asyncio.to_thread(receiver.wait, 1)
        status = await asyncio.to_thread(process.kill, sender_dies_by)
        assert status == (0 if sender_dies_by == signal.SIGTERM else -signal.SIGKILL)
        row = await delivery(look)
        assert (row["state"], row["num_attempts"]) == ("pending", 1), "it was sent, and nobody has written that down"
        receiver.release()
        process.start()
        await until("the delivery", lambda: _is_count(look, 1))
    first, second = receiver.received()
    assert first.headers["webhook-id"] == second.headers["webhook-id"], "the receiver can tell that it is the same"
    assert first.body == second.body
    for received in (first, second):
        unwrap(received, secret)
    assert (await delivery(look))["num_attempts"] == 2


async def test_the_process_counts_says_when_it_is_ready_and_drains(
    database: Database, database_url: str, look: Sql, receiver: Receiver, tmp_path: Path
) -> None:
    await add_default_secret(database)
    receiver.answer("/bad", 500)
    with contextlib.closing(WebhooksProcess(database_url, tmp_path)) as process:
        process.start()
        await ended(database, receiver.url("/good?key=1"))
        await ended(database, receiver.url("/bad"))
        await until("both", lambda: 'attempts_total{outcome="retried"} 1.0' in process.metrics() and _good(process))
        await until("the backlog", lambda: "vitascope_webhooks_pending 1.0" in process.metrics())
        assert "vitascope_webhooks_lag_seconds_count 1.0" in process.metrics()
        assert process.kill(signal.SIGTERM) == 0
        lines = [json.loads(line) for line in process.log.read_text().splitlines()]
    events = {line["event"] for line in lines}
    assert {"webhooks.started", "webhook.delivered", "webhook.retries", "webhooks.draining"} == events
    assert "key=1" not in process.log.read_text()


def _good(process: WebhooksProcess) -> bool:
    return 'attempts_total{outcome="delivered"} 1.0' in process.metrics()
