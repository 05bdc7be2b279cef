"""Event streams of a running gateway: resumed without gap or duplicate, over every interruption."""

import contextlib
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from vitascope_common import keys
from vitascope_common.events import Event, EventType, append
from vitascope_gateway.adapters.events import PAGE


def change(outside: Any, statement: str, *values: Any) -> None:
    with contextlib.closing(sqlite3.connect(outside.database_path, timeout=30)) as connection:
        connection.execute(statement, values)
        connection.commit()


def complete(outside: Any, job_id: str) -> None:
    change(outside, "UPDATE jobs SET state = 'completed', finished_at_ms = 1 WHERE job_id = ?", job_id)


@contextlib.contextmanager
def follow(outside: Any, job_id: str, last_event_id: str = "", query: str = "") -> Iterator[Iterator[dict[str, Any]]]:
    headers = {**outside.headers, **({"Last-Event-ID": last_event_id} if last_event_id else {})}
    url = f"{outside.gateway.base_url}/v1/videos/{job_id}/events{query}"
    with httpx.stream("GET", url, headers=headers, timeout=40) as answer:
        assert answer.status_code == 200, answer.read()
        yield events(answer)


def events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {}
    for line in answer.iter_lines():
        field, _, value = line.partition(": ")
        if field in ("id", "event", "data"):
            found[field] = json.loads(value) if field == "data" else value
        elif not line and "event" in found:
            yield found
            found = {}


def history(outside: Any, job_id: str) -> list[str]:
    return [entry_id for entry_id, _ in outside.redis.client.xrange(keys.events(job_id))]


def progress(outside: Any, job_id: str, step: int, attempt: int = 1) -> str | None:
    data = {"step": step, "steps": 24, "percent": 100 * step // 24, "eta_s": 1.0, "phase": "denoising"}
    return append(
        outside.redis.client, Event(job_id, EventType.PROGRESS, data, task=f"{job_id}.generate.0", attempt=attempt)
    )


def state(outside: Any, job_id: str, kind: EventType, version: int, **data: Any) -> str | None:
    return append(outside.redis.client, Event(job_id, kind, data, version=version))


def test_a_stream_tells_everything_from_the_first_event_to_the_last(outside: Any) -> None:
    job_id = outside.create()
    state(outside, job_id, EventType.QUEUED, 1)
    with follow(outside, job_id) as stream:
        assert next(stream)["event"] == "queued"
        state(outside, job_id, EventType.STARTED, 2)
        assert next(stream)["event"] == "started"
        for step in (1, 2, 3):
            progress(outside, job_id, step)
        assert [next(stream)["data"]["step"] for _ in range(3)] == [1, 2, 3]
        state(outside, job_id, EventType.COMPLETED, 3)
        rest = list(stream)
    assert [event["event"] for event in rest] == ["completed"]
    content = f"{outside.gateway.base_url}/v1/videos/{job_id}/content?variant="
    assert rest[0]["data"] == {
        "id": job_id,
        "type": "completed",
        "urls": {
            "video": f"{content}video",
            "thumbnail": f"{content}thumbnail",
            "spritesheet": f"{content}spritesheet",
        },
    }


def test_a_history_of_several_pages_goes_on_after_any_event(outside: Any) -> None:
    job_id = outside.create()
    state(outside, job_id, EventType.QUEUED, 1)
    for step in range(1, 2 * PAGE):
        progress(outside, job_id, step)
    state(outside, job_id, EventType.COMPLETED, 2)
    kept = history(outside, job_id)
    assert len(kept) == 2 * PAGE + 1
    for num_seen in (0, 1, 10, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE - 1, 2 * PAGE):
        with follow(outside, job_id, kept[num_seen - 1] if num_seen else "") as stream:
            assert [event["id"] for event in stream] == kept[num_seen:]


def test_pages_of_events_that_only_a_newer_version_knows_are_passed_by_a_snapshot(outside: Any) -> None:
    job_id = outside.create()
    first = state(outside, job_id, EventType.QUEUED, 1)
    for _ in range(PAGE + 1):
        last = outside.redis.client.xadd(keys.events(job_id), {"type": "of tomorrow", "data": "{}"})
    with follow(outside, job_id, first or "") as stream:
        snapshot = next(stream)
        assert (snapshot["event"], snapshot["id"]) == ("snapshot", last)
        assert progress(outside, job_id, 1) == next(stream)["id"]


def test_the_headers_keep_proxies_from_holding_events_back(outside: Any) -> None:
    url = f"{outside.gateway.base_url}/v1/videos/{outside.create()}/events"
    with httpx.stream("GET", url, headers=outside.headers) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-request-id"]
        assert next(answer.iter_lines()) == "retry: 1000"


def test_a_client_that_comes_and_goes_sees_each_event_once_and_in_order(outside: Any) -> None:
    job_id = outside.create()
    state(outside, job_id, EventType.QUEUED, 1)

    def work() -> None:
        for step in range(1, 301):
            progress(outside, job_id, step)
            time.sleep(0.002)  # the pace of a worker, not a wait
        state(outside, job_id, EventType.COMPLETED, 2)

    worker = threading.Thread(target=work)
    worker.start()
    seen: list[str] = []
    rounds = 0
    is_over = False
    while not is_over:
        rounds += 1
        query = f"?last_event_id={seen[-1]}" if seen and rounds % 2 else ""
        header = seen[-1] if seen and not query else ""
        with follow(outside, job_id, header, query) as stream:
            for count, event in enumerate(stream):
                seen.append(event["id"])
                is_over = event["event"] == "completed"
                if count == 16:
                    break
    worker.join()
    assert rounds > 10
    assert seen == history(outside, job_id)


def test_many_clients_share_one_reader(outside: Any) -> None:
    job_id = outside.create()
    state(outside, job_id, EventType.QUEUED, 1)
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(follow(outside, job_id)) for _ in range(20)]
        for stream in streams:
            next(stream)
        num_connections = len(outside.redis.client.client_list())
        state(outside, job_id, EventType.FAILED, 2, code="poison", message="It crashed.")
        for stream in streams:
            (last,) = stream
            assert (last["event"], last["data"]["code"]) == ("failed", "poison")
    assert num_connections < 20


@pytest.mark.parametrize("last_event_id", ["1-1", "garbage", "-", "9" * 200, "99999999999999999999-1", "\x7f"])
def test_an_id_that_redis_does_not_hold_gets_a_snapshot_and_then_lives_on(outside: Any, last_event_id: str) -> None:
    job_id = outside.create()
    newest = state(outside, job_id, EventType.QUEUED, 1)
    with follow(outside, job_id, last_event_id) as stream:
        snapshot = next(stream)
        assert (snapshot["event"], snapshot["id"]) == ("snapshot", newest)
        assert (snapshot["data"]["id"], snapshot["data"]["status"]) == (job_id, "queued")
        progress(outside, job_id, 1)
        assert next(stream)["data"]["step"] == 1


@pytest.mark.parametrize("beginning", ["0", "0-0"])
def test_zero_means_from_the_beginning(outside: Any, beginning: str) -> None:
    job_id = outside.create()
    first = state(outside, job_id, EventType.QUEUED, 1)
    with follow(outside, job_id, beginning) as stream:
        assert next(stream)["id"] == first


def test_a_finished_job_without_history_is_one_snapshot_and_who_comes_back_hears_that_it_was_all(outside: Any) -> None:
    job_id = outside.create()
    complete(outside, job_id)
    with follow(outside, job_id) as stream:
        (snapshot,) = stream
    assert (snapshot["event"], snapshot["data"]["status"], snapshot["data"]["progress"]) == (
        "snapshot",
        "completed",
        100,
    )
    url = f"{outside.gateway.base_url}/v1/videos/{job_id}/events"
    again = httpx.get(url, headers={**outside.headers, "Last-Event-ID": snapshot["id"]})
    assert (again.status_code, again.content) == (204, b"")
    other = outside.create()
    state(outside, other, EventType.QUEUED, 1)
    with follow(outside, other, snapshot["id"]) as stream:
        assert next(stream)["data"]["status"] == "queued"  # of a video that goes on it is no end


def test_a_finished_job_whose_last_event_is_lost_ends_with_a_snapshot(outside: Any) -> None:
    job_id = outside.create()
    state(outside, job_id, EventType.QUEUED, 1)
    complete(outside, job_id)
    with follow(outside, job_id) as stream:
        assert [event["event"] for event in stream] == ["queued", "snapshot"]


def test_who_has_seen_the_last_event_is_told_not_to_come_back(outside: Any) -> None:
    job_id = outside.create()
    state(outside, job_id, EventType.QUEUED, 1)
    last = state(outside, job_id, EventType.CANCELLED, 2)
    url = f"{outside.gateway.base_url}/v1/videos/{job_id}/events"
    answer = httpx.get(url, headers={**outside.headers, "Last-Event-ID": last or ""})
    assert (answer.status_code, answer.content) == (204, b"")
    with follow(outside, job_id) as stream:
        assert [event["event"] for event in stream] == ["queued", "cancelled"]


def test_a_client_that_goes_is_forgotten_at_once(outside: Any, wait_for: Any) -> None:
    job_id = outside.create()
    state(outside, job_id, EventType.QUEUED, 1)
    before = outside.gateway.metric("vitascope_gateway_followers")
    with follow(outside, job_id) as stream:
        next(stream)
        assert outside.gateway.metric("vitascope_gateway_followers") == before + 1
    wait_for("the follower to be gone", lambda: outside.gateway.metric("vitascope_gateway_followers") == before, 3.0)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_what_a_client_sends_while_it_follows_is_ignored_and_the_end_is_an_end(outside: Any, version: str) -> None:
    job_id = outside.create()
    state(outside, job_id, EventType.QUEUED, 1)
    parts = urlsplit(outside.gateway.base_url)
    head = f"GET /v1/videos/{job_id}/events HTTP/{version}\r\nHost: x\r\nAuthorization: Bearer {outside.key}\r\n\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(2 * head.encode())
        answer = connection.recv(65536)
        while b"event: queued" not in answer:
            answer += connection.recv(65536)
        connection.sendall(b"nonsense" * 10_000)
        state(outside, job_id, EventType.CANCELLED, 2)
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"connection: close\r\n" in answer.lower()
    assert b"event: cancelled" in answer
    assert answer.endswith(b"\n\n\r\n0\r\n\r\n" if version == "1.1" else b"}\n\n")


@pytest.mark.parametrize("preview", [None, "x", {}, {"key": "work/x"}])
def test_a_preview_that_says_no_step_harms_nobody(outside: Any, preview: Any) -> None:
    job_id = outside.create()
    state(outside, job_id, EventType.QUEUED, 1)
    with follow(outside, job_id) as stream:
        next(stream)
        append(outside.redis.client, Event(job_id, EventType.PROGRESS, {"step": 1, "preview": preview}))
        assert next(stream)["data"] == {"step": 1, "id": job_id, "type": "progress"}


def test_a_client_that_never_reads_is_dropped_and_others_are_not(outside: Any, wait_for: Any) -> None:
    job_id = outside.create()
    state(outside, job_id, EventType.QUEUED, 1)
    with follow(outside, job_id) as slow, follow(outside, job_id) as quick:
        next(slow)
        next(quick)
        text = "x" * 30_000
        for _ in range(1500):
            append(outside.redis.client, Event(job_id, EventType.PARTIAL, {"text": text}))
            next(quick)
        assert outside.gateway.metric("vitascope_gateway_followers_dropped_total") >= 1
        state(outside, job_id, EventType.COMPLETED, 2)
        assert [event["event"] for event in quick] == ["completed"]


def test_redis_may_die_and_come_back_under_a_stream(outside: Any) -> None:
    job_id = outside.create()
    state(outside, job_id, EventType.QUEUED, 1)
    with follow(outside, job_id) as stream:
        assert next(stream)["event"] == "queued"
        outside.redis.kill()
        try:
            away = next(stream)
            assert (away["event"], away["data"]["status"], "id" in away) == ("snapshot", "queued", False)
            job = httpx.get(f"{outside.gateway.base_url}/v1/videos/{job_id}", headers=outside.headers)
            assert job.status_code == 200
            ready = httpx.get(f"{outside.gateway.base_url}/readyz")
            assert "redis" in ready.json()["error"]["message"]
            assert outside.create()
        finally:
            outside.redis.start()
        progress(outside, job_id, 1)
        state(outside, job_id, EventType.COMPLETED, 2)
        rest = [event["event"] for event in stream if event["event"] != "snapshot"]
    assert rest == ["progress", "completed"]


def test_redis_may_lose_everything_under_a_stream(outside: Any) -> None:
    job_id = outside.create()
    state(outside, job_id, EventType.QUEUED, 1)
    with follow(outside, job_id) as stream:
        assert next(stream)["event"] == "queued"
        outside.redis.kill()
        try:
            next(stream)
            complete(outside, job_id)
            outside.redis.lose_data()
        finally:
            outside.redis.start()
        rest = list(stream)
    assert (rest[-1]["event"], rest[-1]["data"]["status"]) == ("snapshot", "completed")


def test_a_waiting_job_hears_its_place_and_resumes_from_its_events(outside: Any) -> None:
    job_id = outside.create()
    queued = state(outside, job_id, EventType.QUEUED, 1)
    outside.neighbours.place = 3
    try:
        with follow(outside, job_id) as stream:
            assert next(stream)["id"] == queued
            told = next(stream)
            assert told == {
                "event": "queued",
                "data": {"position": 3, "eta_s": 30.0, "id": job_id, "type": "queued"},
            }
            outside.neighbours.place = 2
            assert next(stream)["data"]["position"] == 2
            state(outside, job_id, EventType.STARTED, 2)
            assert next(stream)["event"] == "started"
            progress(outside, job_id, 1)
            assert next(stream)["event"] == "progress"
        with follow(outside, job_id, queued or "") as stream:
            assert [next(stream)["event"] for _ in range(2)] == ["started", "progress"]
    finally:
        outside.neighbours.place = -1
