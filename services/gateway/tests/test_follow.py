"""Following without an API key: tokens of one video, and the WebSocket that mirrors its events."""

import asyncio
import contextlib
import json
import socket
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
import httpx
import pytest
import websockets
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from pydantic import SecretStr
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Protocol, Side
from websockets.sync.client import ClientConnection, connect

from vitascope_common import keys, tokens
from vitascope_common.database import Database
from vitascope_common.errors import LinkExpiredError, PermissionDeniedError
from vitascope_common.events import Event, EventType, append
from vitascope_gateway.adapters.sql import SqlStore
from vitascope_gateway.follow import FollowTokens
from vitascope_gateway.testing import SIGNING_KEY, add_tenant

JOB, OTHER = "video_" + "0" * 32, "video_" + "1" * 32
FOLLOW = FollowTokens(SecretStr(SIGNING_KEY), lambda: 1000.5)


def state(outside: Any, job_id: str, kind: EventType, version: int, **data: Any) -> str | None:
    return append(outside.redis.client, Event(job_id, kind, data, version=version))


def created(outside: Any) -> Any:
    answer = httpx.post(f"{outside.gateway.base_url}/v1/videos", json={"prompt": "x"}, headers=outside.headers)
    return answer.json()


def names(lines: Iterator[str]) -> list[str]:
    return [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]


def told(connection: ClientConnection) -> dict[str, Any]:
    return json.loads(connection.recv(timeout=10))


def code_of(connection: ClientConnection) -> tuple[int, str]:
    with contextlib.suppress(websockets.ConnectionClosedError):
        for _ in connection:
            pass
    assert connection.close_code is not None
    return connection.close_code, connection.close_reason or ""


def test_open_jobs_are_those_that_have_neither_ended_nor_been_deleted(inside: Any) -> None:
    ids = [inside.request("POST", "/v1/videos", json={"prompt": "x"}).json()["id"] for _ in range(4)]
    inside.sql("UPDATE jobs SET state = 'running' WHERE job_id = ?", ids[1])
    inside.sql("UPDATE jobs SET state = 'cancelled' WHERE job_id = ?", ids[2])
    inside.sql("UPDATE jobs SET deleted_at_ms = 1 WHERE job_id = ?", ids[3])
    assert inside.runner.run(SqlStore(inside.database).open_jobs([*ids, JOB])) == set(ids[:2])


def test_the_document_says_what_a_token_opens(inside: Any) -> None:
    document = inside.request("GET", "/openapi.json", tenant=None).json()
    by_token = {
        (path, method): [next(iter(one)) for one in operation["security"]]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if {"FollowToken": []} in operation.get("security", [])
    }
    both = ["ApiKey", "FollowToken"]
    assert by_token == {(f"/v1/videos/{{video_id}}/{name}", "get"): both for name in ("events", "preview")}
    scheme = document["components"]["securitySchemes"]["FollowToken"]
    assert (scheme["type"], scheme["in"], scheme["name"]) == ("apiKey", "query", "token")
    events = document["paths"]["/v1/videos/{video_id}/events"]["get"]
    assert "websocket_url" in events["description"]
    assert events["responses"].keys() == {"200", "204", "401", "403", "404", "503"}


@pytest.mark.parametrize("tenant", ["acme", "", "ä.b/c=", "x" * 100])
def test_a_token_opens_its_job_for_an_hour(tenant: str) -> None:
    token = FOLLOW.new(tenant, JOB)
    assert FOLLOW.tenant_of(token, JOB) == tenant
    for now_s, is_open in ((4599.9, True), (4600.0, False)):
        late = FollowTokens(SecretStr(SIGNING_KEY), lambda now_s=now_s: now_s)
        if is_open:
            assert late.tenant_of(token, JOB) == tenant
        else:
            with pytest.raises(LinkExpiredError, match="GET /v1/videos"):
                late.tenant_of(token, JOB)
    rotated = FollowTokens(SecretStr(f"{'n' * 32},{SIGNING_KEY}"), lambda: 1000.5)
    assert rotated.tenant_of(token, JOB) == tenant


def test_a_token_opens_nothing_else() -> None:
    expires, tenant, signature = FOLLOW.new("acme", JOB).split(".")
    with pytest.raises(PermissionDeniedError):
        FOLLOW.tenant_of(f"{expires}.{tenant}.{signature}", OTHER)
    media = parse_qs(tokens.sign_path(f"/v1/videos/{JOB}/events", int(expires), SecretStr(SIGNING_KEY)))
    for forged in (
        f"{int(expires) + 1}.{tenant}.{signature}",
        f"{expires}.b3RoZXI.{signature}",
        f"{expires}.{tenant}.{media['signature'][0]}",
        f"{expires}.{tenant}.{signature}.",
        f"{expires}.{tenant}.é",
        f"{expires}.%.{signature}",
        f"{expires}.{tenant}.",
        "x" * 10_000,
        "..",
        "",
    ):
        with pytest.raises(PermissionDeniedError, match="GET /v1/videos"):
            FOLLOW.tenant_of(forged, JOB)


def test_the_url_of_a_video_is_enough_to_follow_it_and_for_nothing_else(outside: Any) -> None:
    video, other = created(outside), created(outside)
    state(outside, video["id"], EventType.QUEUED, 1)
    state(outside, video["id"], EventType.CANCELLED, 2)
    page = {"Origin": "https://app.example"}
    with httpx.stream("GET", video["events_url"], headers=page) as answer:
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        assert names(answer.iter_lines()) == ["queued", "cancelled"]
    token = urlsplit(video["events_url"]).query
    base = f"{outside.gateway.base_url}/v1/videos"
    refused = httpx.get(f"{base}/{other['id']}/events?{token}", headers=page)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert "GET /v1/videos/{id}" in refused.json()["error"]["message"]
    assert refused.headers["access-control-allow-origin"] == "*"  # a page can read why
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/content")):
        assert httpx.request(method, f"{base}/{video['id']}{path}?{token}").status_code == 401
    assert httpx.get(f"{base}?{token}").status_code == 401
    wrong = httpx.get(video["events_url"], headers={"Authorization": "Bearer vs_wrong"})
    assert wrong.status_code == 401  # a key that is sent is what counts
    assert httpx.delete(f"{base}/{video['id']}", headers=outside.headers).status_code == 200


def test_a_token_outlives_the_key_that_it_was_made_for(outside: Any, wait_for: Any) -> None:
    async def add() -> str:
        database = Database(f"sqlite+aiosqlite:///{outside.database_path}")
        try:
            return await add_tenant(database, "leaver")
        finally:
            await database.close()

    headers = {"Authorization": f"Bearer {asyncio.run(add())}"}
    base = f"{outside.gateway.base_url}/v1/videos"
    video = httpx.post(base, json={"prompt": "x"}, headers=headers).json()
    with contextlib.closing(sqlite3.connect(outside.database_path, timeout=30)) as connection:
        connection.execute("UPDATE api_keys SET revoked_at_ms = 1 WHERE tenant_id = 'leaver'")
        connection.commit()
    wait_for("the key to be refused", lambda: httpx.get(base, headers=headers).status_code == 401)
    state(outside, video["id"], EventType.QUEUED, 1)
    state(outside, video["id"], EventType.CANCELLED, 2)
    with httpx.stream("GET", video["events_url"]) as answer:
        assert names(answer.iter_lines()) == ["queued", "cancelled"]


def test_who_follows_by_a_token_is_never_told_a_newer_one(outside: Any) -> None:
    video = created(outside)  # its history has no beginning: the first that is told is a snapshot
    state(outside, video["id"], EventType.PROGRESS, 1)
    with httpx.stream("GET", video["events_url"]) as answer:
        data = next(json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:"))
    assert data["type"] == "snapshot"
    tokens_told = {urlsplit(data[name]).query for name in ("events_url", "websocket_url")}
    assert tokens_told == {urlsplit(video["events_url"]).query}


def test_a_websocket_tells_what_the_event_stream_tells(outside: Any) -> None:
    video = created(outside)
    job_id = video["id"]
    first = state(outside, job_id, EventType.QUEUED, 1)
    with connect(video["websocket_url"], compression=None) as mirror:
        assert told(mirror) == {"id": first, "type": "queued", "data": {"id": job_id, "type": "queued"}}
        mirror.send("this is ignored")
        started = state(outside, job_id, EventType.STARTED, 2)
        assert told(mirror)["id"] == started
        preview = {"step": 8, "key": f"work/{job_id}/generate/0/1/preview-000008.webp"}
        step = append(outside.redis.client, Event(job_id, EventType.PROGRESS, {"step": 9, "preview": preview}))
        progress = told(mirror)
        assert (progress["id"], progress["data"]["preview"]) == (
            step,
            {"step": 8, "url": f"/v1/videos/{job_id}/preview"},
        )
    with connect(f"{video['websocket_url']}&last_event_id={started}", compression=None) as mirror:
        assert told(mirror)["id"] == step
        last = state(outside, job_id, EventType.COMPLETED, 3)
        completed = told(mirror)
        assert completed["id"] == last
        assert completed["data"]["urls"]["video"].endswith("variant=video")
        assert code_of(mirror)[0] == 1000
    with connect(f"{video['websocket_url']}&last_event_id={last}", compression=None) as mirror:
        assert code_of(mirror) == (1000, "")
    with httpx.stream("GET", video["events_url"]) as answer:
        ids = [line.removeprefix("id: ") for line in answer.iter_lines() if line.startswith("id: ")]
    assert ids == [first, started, step, last]


def test_a_websocket_of_a_finished_video_without_history_tells_it_once(outside: Any) -> None:
    video = created(outside)
    with contextlib.closing(sqlite3.connect(outside.database_path, timeout=30)) as connection:
        connection.execute("UPDATE jobs SET state = 'failed', finished_at_ms = 1 WHERE job_id = ?", (video["id"],))
        connection.commit()
    with connect(video["websocket_url"], compression=None) as mirror:
        snapshot = told(mirror)
        assert (snapshot["type"], snapshot["data"]["status"]) == ("snapshot", "failed")
        assert code_of(mirror)[0] == 1000
    with connect(f"{video['websocket_url']}&last_event_id={snapshot['id']}", compression=None) as mirror:
        assert list(mirror) == []  # closed with 1000


def test_a_websocket_takes_a_key_too_and_says_why_it_closes(outside: Any) -> None:
    video = created(outside)
    base = f"ws{outside.gateway.base_url.removeprefix('http')}/v1/videos"
    state(outside, video["id"], EventType.QUEUED, 1)
    with connect(f"{base}/{video['id']}/ws", additional_headers=outside.headers) as mirror:
        assert told(mirror)["type"] == "queued"
    for url, headers, expected in (
        (f"{base}/{video['id']}/ws", {}, (4401, "invalid_api_key")),
        (f"{base}/{video['id']}/ws?token=1.2.3", {}, (4403, "permission_denied")),
        (f"{base}/{JOB}/ws", outside.headers, (4404, "not_found")),
    ):
        with connect(url, additional_headers=headers) as mirror:
            assert code_of(mirror) == expected
    with connect(video["websocket_url"]) as mirror:
        mirror.send("x" * 100_000)
        assert code_of(mirror)[0] == 1009
    named = {"X-Request-Id": "mine"}
    with connect(video["websocket_url"], additional_headers=named) as mirror:
        assert mirror.response is not None
        assert mirror.response.headers["x-request-id"] == "mine"
    with pytest.raises(websockets.InvalidStatus) as refused:
        connect(f"{base}/nowhere", additional_headers=named)
    answer = refused.value.response
    assert (answer.status_code, answer.headers["x-request-id"]) == (404, "mine")
    assert json.loads(answer.body)["error"]["code"] == "not_found"
    counted = httpx.get(outside.gateway.metrics_url).text
    assert 'method="GET",route="/v1/videos/{video_id}/ws",status="101"' in counted


def sent(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    """Return a frame of a client."""
    return Frame(opcode, data, fin).serialize(mask=True)


GOODBYE = sent(Opcode.CLOSE, Close(1001, "I go").serialize())


def answers(video: Any, *pieces: bytes) -> list[tuple[Opcode, bytes]]:
    """Return what a WebSocket says to these bytes after two events, until its end; a close as its code."""
    parts = urlsplit(video["websocket_url"])
    head = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    head += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    client = Protocol(Side.CLIENT)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head.encode())
        data = b""
        while data.count(b"}}") < 2:
            data += connection.recv(65536)
        status, _, rest = data.partition(b"\r\n\r\n")
        assert b" 101 " in status
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in status  # RFC 6455, 1.3
        client.receive_data(rest)
        for piece in pieces:
            connection.sendall(piece)
        while data := connection.recv(65536):
            client.receive_data(data)
    frames = [one for one in client.events_received() if isinstance(one, Frame)]
    assert [json.loads(one.data)["type"] for one in frames[:2]] == ["queued", "started"]
    return [
        (one.opcode, str(Close.parse(one.data).code).encode() if one.opcode is Opcode.CLOSE else bytes(one.data))
        for one in frames[2:]
    ]


@pytest.fixture
def begun(outside: Any) -> Any:
    video = created(outside)
    state(outside, video["id"], EventType.QUEUED, 1)
    state(outside, video["id"], EventType.STARTED, 2)
    return video


def test_a_websocket_answers_pings_and_a_goodbye_however_they_are_cut_up(begun: Any) -> None:
    text = sent(Opcode.TEXT, b"x" * 1000, fin=False), sent(Opcode.PING, b"2"), sent(Opcode.CONT, b"x" * 24)
    data = sent(Opcode.PING, b"1") + b"".join(text) + sent(Opcode.PONG, b"") + sent(Opcode.BINARY, b"x" * 1024)
    said = [(Opcode.PONG, b"1"), (Opcode.PONG, b"2"), (Opcode.CLOSE, b"1001")]
    assert answers(begun, data + GOODBYE) == said
    assert answers(begun, *((data + GOODBYE)[at : at + 1] for at in range(len(data + GOODBYE)))) == said
    assert answers(begun, GOODBYE + sent(Opcode.PING, b"too late")) == said[-1:]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (Frame(Opcode.TEXT, b"x").serialize(mask=False), b"1002"),
        (b"\xf1" + sent(Opcode.TEXT, b"x")[1:], b"1002"),  # of an extension that nobody has agreed on
        (b"\x83" + sent(Opcode.TEXT, b"x")[1:], b"1002"),  # an opcode that means nothing
        (sent(Opcode.CONT, b"x"), b"1002"),  # the continuation of nothing
        (sent(Opcode.TEXT, b"x", fin=False) * 2, b"1002"),
        (b"\x89\xfe\x00\x7e" + b"mask" + b"x" * 126, b"1002"),  # a ping is shorter
        (sent(Opcode.TEXT, b"x" * 1025), b"1009"),
        (b"\x82\xff\x7f" + b"\xff" * 7 + b"mask", b"1009"),  # it is not even sent
        (sent(Opcode.TEXT, b"x" * 1000, fin=False) + sent(Opcode.CONT, b"x" * 25), b"1009"),
    ],
    ids=("unmasked", "reserved", "opcode", "continuation", "twice begun", "long ping", "long", "endless", "in parts"),
)
def test_a_websocket_that_breaks_the_rules_is_told_so(begun: Any, data: bytes, code: bytes) -> None:
    assert answers(begun, data + sent(Opcode.PING, b"not heard")) == [(Opcode.CLOSE, code)]


def test_a_websocket_that_goes_is_forgotten_at_once(outside: Any, begun: Any, wait_for: Any) -> None:
    before = outside.gateway.metric("vitascope_gateway_followers")
    with connect(begun["websocket_url"]) as mirror:
        assert told(mirror)["type"] == "queued"
        assert outside.gateway.metric("vitascope_gateway_followers") == before + 1
        mirror.socket.shutdown(socket.SHUT_RDWR)  # without a word
        wait_for("it to be forgotten", lambda: outside.gateway.metric("vitascope_gateway_followers") == before)


def test_a_websocket_that_nobody_reads_is_dropped_and_can_go_on(outside: Any) -> None:
    video = created(outside)
    state(outside, video["id"], EventType.QUEUED, 1)
    before = outside.gateway.metric("vitascope_gateway_followers_dropped_total")
    url, text = video["websocket_url"], "x" * 30_000
    with connect(url, compression=None, max_queue=1) as slow, connect(url, compression=None) as quick:
        last = told(quick)["id"]
        while outside.gateway.metric("vitascope_gateway_followers_dropped_total") == before:
            for _ in range(100):
                last = append(outside.redis.client, Event(video["id"], EventType.PARTIAL, {"text": text}))
                assert told(quick)["id"] == last
        seen = []
        with contextlib.suppress(websockets.ConnectionClosedError):
            for message in slow:
                seen.append(json.loads(message)["id"])
        assert slow.close_code == 4408
    with connect(f"{url}&last_event_id={seen[-1]}", compression=None) as again:
        while seen[-1] != last:
            seen.append(told(again)["id"])
    assert seen == [entry_id for entry_id, _ in outside.redis.client.xrange(keys.events(video["id"]))]


class Collector:
    """An OTLP collector that keeps what it is sent, as it is sent."""

    def __init__(self) -> None:
        self.spans = ""

    def Export(self, request: Any, context: Any) -> Any:
        self.spans += str(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    one = Collector()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(one, server)
        address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield one, address
        server.stop(None).wait()


def test_a_token_is_in_no_log_no_span_and_no_metric(
    outside: Any, capfd: pytest.CaptureFixture[str], collector: tuple[Collector, str]
) -> None:
    spans, address = collector
    video = created(outside)
    job_id, query = video["id"], urlsplit(video["events_url"]).query
    state(outside, job_id, EventType.QUEUED, 1)
    variables = {"VITASCOPE_LOG_LEVEL": "debug", "VITASCOPE_OTLP_ENDPOINT": address}
    with outside.around.gateway(port=0, grpc_port=0, variables=variables) as gateway:
        base = f"{gateway.base_url}/v1/videos/{job_id}"
        web = f"ws{base.removeprefix('http')}/ws?{query}"
        with httpx.stream("GET", f"{base}/events?{query}") as answer, connect(web) as mirror:
            assert told(mirror)["type"] == "queued"
            state(outside, job_id, EventType.FAILED, 2, code="internal", message="x")
            assert names(answer.iter_lines()) == ["queued", "failed"]
            assert code_of(mirror)[0] == 1000
        assert httpx.get(f"{base}/events?{query}x").status_code == 403
        assert httpx.post(f"{base}/events?{query}").status_code == 405
        with connect(f"{web}x") as mirror:
            assert code_of(mirror)[0] == 4403
        with pytest.raises(websockets.InvalidStatus):
            connect(f"{web.replace('/ws', '/none')}")
        assert raw(gateway.base_url, f"GET {base}/events?{query} HTTP/1.1\r\n\r\n".encode()).startswith(b"HTTP/1.1 400")
        metrics = httpx.get(gateway.metrics_url).text
        gateway.terminate()
    said = "".join(capfd.readouterr())
    assert "request.answered" in said
    assert "/v1/videos/{video_id}/events" in spans.spans
    secret = query.removeprefix("token=").rsplit(".", 1)[1]
    assert [secret in text for text in (said, spans.spans, metrics)] == [False] * 3


def raw(base_url: str, data: bytes) -> bytes:
    parts = urlsplit(base_url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(data)
        return connection.recv(65536)


def test_a_restart_closes_websockets_so_that_they_come_back(outside: Any) -> None:
    """The last test of this file: it ends the process that the others use."""
    video = created(outside)
    state(outside, video["id"], EventType.QUEUED, 1)
    with connect(video["websocket_url"]) as mirror:
        assert told(mirror)["type"] == "queued"
        assert outside.gateway.terminate() < 5
        assert code_of(mirror)[0] == 1012
    assert outside.gateway.process.returncode == 0
