"""The gateway as a process: what it takes to start, how it ends, what it does with raw bytes."""

import contextlib
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from vitascope_common.events import Event, EventType, append
from vitascope_gateway.body import MAX_BODY_BYTES


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VITASCOPE_")}
    return subprocess.run(
        [sys.executable, "-m", "vitascope_gateway"],
        env={**environ, **variables},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_wrong_configuration_ends_with_status_2_and_says_what_is_missing() -> None:
    ended = run(VITASCOPE_GATEWAY_PROT="8000", VITASCOPE_SIGNING_KEY="short")
    assert ended.returncode == 2
    assert "VITASCOPE_DATABASE_URL: is not set" in ended.stderr
    assert "did you mean VITASCOPE_GATEWAY_PORT" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", ["PORT", "GRPC_PORT"])
def test_a_port_that_is_taken_is_named(outside: Any, models_dir: Any, name: str) -> None:
    taken = outside.gateway.base_url if name == "PORT" else f"grpc://{outside.gateway.grpc_address}"
    port = urlsplit(taken).port
    ports = {"VITASCOPE_GATEWAY_PORT": "0", "VITASCOPE_GATEWAY_GRPC_PORT": "0", f"VITASCOPE_GATEWAY_{name}": str(port)}
    ended = run(
        VITASCOPE_DATABASE_URL=f"sqlite+aiosqlite:///{outside.database_path}",
        VITASCOPE_REDIS_URL=outside.redis.url,
        VITASCOPE_OBJECT_STORE_URL="file:///nowhere/objects",
        VITASCOPE_MODELS_DIR=str(models_dir),
        VITASCOPE_SIGNING_KEY="x" * 32,
        **ports,
    )
    assert ended.returncode == 2
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def raw(outside: Any, data: bytes, *, breaks_off: bool = False) -> bytes:
    parts = urlsplit(outside.gateway.base_url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(data)
        if breaks_off:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /v1/videos/\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET //[ HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n",
        b"GET http://[/v1/videos HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n",
        b"GET /%zz?%zz=%ff&limit=%00 HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
        b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\nConnection: close\r\n\r\n",
        b"GET /docs HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: \xff\r\nConnection: close\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n",
    ],
)
def test_raw_bytes_never_cause_a_5xx(outside: Any, data: bytes) -> None:
    answer = raw(outside, data)
    assert not answer.startswith(b"HTTP/1.1 5"), answer[:300]
    assert httpx.get(f"{outside.gateway.base_url}/healthz").status_code == 200


PROMPT = b'{"prompt": "x"}'
CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("framing", "body", "statuses"),
    [
        ("Content-Length: 15", PROMPT, (b"202",)),
        (CHUNKED, b"f\r\n" + PROMPT + b"\r\n0\r\n\r\n", (b"202",)),
        (f"Content-Length: 3\r\n{CHUNKED}", b"f\r\n" + PROMPT + b"\r\n0\r\n\r\n", (b"202", b"400")),
        ("Content-Length: 15\r\nContent-Length: 14", PROMPT, (b"400",)),
        ("Content-Length: +15", PROMPT, (b"400",)),
        ("Transfer-Encoding: gzip, chunked", b"f\r\n" + PROMPT + b"\r\n0\r\n\r\n", (b"400", b"501")),
        (CHUNKED, b"zz\r\n" + PROMPT, (b"400",)),
        (CHUNKED, b"-f\r\n" + PROMPT, (b"400",)),
        (CHUNKED, b"e\r\n" + PROMPT + b"\r\n0\r\n\r\n", (b"400",)),
    ],
)
def test_a_body_is_framed_in_one_way_or_refused(
    outside: Any, framing: str, body: bytes, statuses: tuple[bytes, ...]
) -> None:
    head = f"POST /v1/videos HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {outside.key}\r\nConnection: close\r\n"
    answer = raw(outside, f"{head}Content-Type: application/json\r\n{framing}\r\n\r\n".encode() + body)
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert answer[9:12] in statuses, answer


def test_a_large_body_is_refused_unread_and_the_client_hears_it(outside: Any) -> None:
    answer = httpx.post(
        f"{outside.gateway.base_url}/v1/videos",
        content=b"x" * (MAX_BODY_BYTES + 6 * 1024 * 1024),
        headers={**outside.headers, "content-type": "application/json"},
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    head = f"POST /v1/videos HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {outside.key}\r\nExpect: 100-continue\r\n"
    answer_ = raw(
        outside, f"{head}Content-Type: application/json\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode()
    )
    assert answer_.startswith(b"HTTP/1.1 413")


def test_a_body_that_breaks_off_harms_nobody(outside: Any) -> None:
    head = f"POST /v1/videos HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {outside.key}\r\n"
    raw(
        outside,
        f'{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"prompt"'.encode(),
        breaks_off=True,
    )
    assert httpx.get(f"{outside.gateway.base_url}/healthz").status_code == 200


@pytest.mark.parametrize("body", [b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"{" * (MAX_BODY_BYTES + 1)])
def test_a_body_that_nobody_reads_is_not_taken_for_the_next_request(outside: Any, body: bytes) -> None:
    head = f"POST /v1/videos/video_{0:032x}/cancel HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {outside.key}\r\n"
    following = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    assert statuses(raw(outside, whole + following)) == [404, 200]
    chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    assert statuses(raw(outside, chunked + following)) == [404, 200]
    broken = f"{head}Transfer-Encoding: chunked\r\n\r\nnonsense\r\n".encode()
    assert statuses(raw(outside, broken + following)) in ([400], [404])


def statuses(answers: bytes) -> list[int]:
    return [int(one) for one in re.findall(rb"HTTP/1.1 (\d{3})", answers)]


def test_the_trace_of_the_caller_reaches_the_job(outside: Any) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    found = []
    for traceparent in (f"00-{trace_id}-b7ad6b7169203331-01", "garbage"):
        headers = {**outside.headers, "traceparent": traceparent}
        url = f"{outside.gateway.base_url}/v1/videos"
        job_id = httpx.post(url, json={"prompt": "x"}, headers=headers).json()["id"]
        with contextlib.closing(sqlite3.connect(outside.database_path)) as connection:
            query = "SELECT traceparent FROM jobs WHERE job_id = ?"
            found.append(connection.execute(query, (job_id,)).fetchone()[0].split("-"))
            query = "SELECT count(DISTINCT traceparent) FROM (SELECT traceparent FROM jobs WHERE job_id = :id UNION ALL"
            query += " SELECT traceparent FROM tasks WHERE job_id = :id UNION ALL"
            query += " SELECT traceparent FROM outbox WHERE job_id = :id)"
            assert connection.execute(query, {"id": job_id}).fetchone() == (1,)
    assert found[0][1] == trace_id
    assert found[0][2] != "b7ad6b7169203331"
    assert found[1][1] not in ("", trace_id)


def test_metrics_count_by_route_never_by_path(outside: Any) -> None:
    httpx.get(f"{outside.gateway.base_url}/v1/videos/{'z' * 40}", headers=outside.headers)
    httpx.get(f"{outside.gateway.base_url}/{'z' * 40}")
    text = httpx.get(outside.gateway.metrics_url).text
    assert 'route="/v1/videos/{video_id}",status="404"' in text
    assert 'route="unmatched",status="404"' in text
    assert "zzz" not in text
    assert 'vitascope_ready{service="gateway"} 1.0' in text
    assert f'vitascope_pid{{service="gateway"}} {float(outside.gateway.process.pid)}' in text


def test_sigterm_ends_streams_cleanly_and_the_process_within_five_seconds(outside: Any) -> None:
    """The last test of this file: it ends the process that the others use."""
    job_id = outside.create()
    append(outside.redis.client, Event(job_id, EventType.QUEUED, {}, version=1))
    lines: list[str] = []
    is_reading = threading.Event()

    def read() -> None:
        url = f"{outside.gateway.base_url}/v1/videos/{job_id}/events"
        with httpx.stream("GET", url, headers=outside.headers, timeout=30) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if line.startswith("data:"):
                    is_reading.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert is_reading.wait(10)
    assert outside.gateway.terminate() < 5
    reader.join(5)
    assert not reader.is_alive()
    assert outside.gateway.process.returncode == 0
    assert json.loads(next(line for line in lines if line.startswith("data:"))[5:])["type"] == "queued"
