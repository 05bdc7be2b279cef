"""What a player, a browser and an attacker get from a running delivery process."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from hashlib import sha256
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from vitascope_common import ids, tokens
from vitascope_common.database import Database
from vitascope_delivery import api
from vitascope_delivery.adapters.publications import SqlPublications
from vitascope_delivery.service import Delivery

SIGNING_KEY = "test-signing-key-" + "x" * 32


def error_of(answer: httpx.Response) -> dict:
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["cache-control"] == "no-store"
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def test_a_link_opens_the_video(client, job, sign):
    answer = client.get(sign(job.job_id))
    assert (answer.status_code, answer.content) == (200, job.video)
    headers = answer.headers
    assert headers["content-type"] == "video/mp4"
    assert headers["content-length"] == str(len(job.video))
    assert headers["accept-ranges"] == "bytes"
    assert headers["etag"] == f'"{sha256(job.video).hexdigest()}"'
    assert headers["content-disposition"] == f'inline; filename="{job.job_id}.mp4"'
    assert headers["access-control-allow-origin"] == "*"
    assert headers["x-content-type-options"] == "nosniff"
    max_age = int(headers["cache-control"].removeprefix("private, max-age=").removesuffix(", immutable"))
    assert 590 <= max_age <= 600


def test_a_link_opens_the_thumbnail(client, job, sign):
    answer = client.get(sign(job.job_id, "thumbnail"))
    assert (answer.status_code, answer.content) == (200, job.thumbnail)
    assert answer.headers["content-type"] == "image/webp"


def test_head_says_everything_and_sends_nothing(client, job, sign):
    url = sign(job.job_id)
    get, head = client.get(url), client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    own = {"date", "x-request-id", "cache-control"}
    assert {k: v for k, v in head.headers.items() if k not in own} == {
        k: v for k, v in get.headers.items() if k not in own
    }
    assert client.head(url, headers={"range": "bytes=0-1"}).status_code == 200  # only GET has ranges


@pytest.mark.parametrize(
    ("header", "start", "end"), [("bytes=0-99", 0, 100), ("bytes=5000-", 5000, None), ("bytes=-3", -3, None)]
)
def test_a_range(client, job, sign, header, start, end):
    answer = client.get(sign(job.job_id), headers={"range": header})
    assert (answer.status_code, answer.content) == (206, job.video[start:end])
    total = len(job.video)
    first = start % total
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{total}"
    assert answer.headers["content-length"] == str(len(answer.content))


def test_a_range_behind_the_end(client, job, sign):
    answer = client.get(sign(job.job_id), headers={"range": f"bytes={len(job.video)}-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(job.video)}"
    assert error_of(answer)["code"] == "invalid_range"


def test_several_ranges_get_the_whole(client, job, sign):
    answer = client.get(sign(job.job_id), headers={"range": "bytes=0-1,5-6"})
    assert (answer.status_code, answer.content) == (200, job.video)


RANGE = st.one_of(
    st.tuples(st.integers(0, 12_000), st.integers(0, 12_000)).map(lambda pair: f"bytes={pair[0]}-{pair[1]}"),
    st.integers(0, 12_000).map(lambda start: f"bytes={start}-"),
    st.integers(0, 12_000).map(lambda length: f"bytes=-{length}"),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip),
    st.from_regex(r"bytes=[0-9]{0,4}-[0-9]{0,4}(,[0-9]{0,4}-[0-9]{0,4})?", fullmatch=True),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=RANGE)
def test_any_range_gives_its_slice_the_whole_or_416(client, job, sign, header):
    answer = client.get(sign(job.job_id), headers={"range": header})
    if answer.status_code == 206:
        first, last = answer.headers["content-range"].removeprefix("bytes ").partition("/")[0].split("-")
        assert answer.content == job.video[int(first) : int(last) + 1]
        asked_first, asked_last = header.partition("=")[2].strip().split("-")
        if asked_first:
            expected = job.video[int(asked_first) : int(asked_last) + 1 if asked_last else None]
        else:
            expected = job.video[-int(asked_last) :]
        assert answer.content == expected
    elif answer.status_code == 416:
        assert answer.headers["content-range"] == f"bytes */{len(job.video)}"
    else:
        assert (answer.status_code, answer.content) == (200, job.video)


def test_conditional_requests(client, job, sign):
    url = sign(job.job_id)
    etag = client.head(url).headers["etag"]
    for value in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        answer = client.get(url, headers={"if-none-match": value})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert client.get(url, headers={"if-none-match": '"x"'}).status_code == 200
    part = {"range": "bytes=0-9"}
    assert client.get(url, headers={**part, "if-range": etag}).status_code == 206
    for value in ('"x"', f"W/{etag}", "Sat, 29 Oct 1994 19:43:31 GMT"):
        answer = client.get(url, headers={**part, "if-range": value})
        assert (answer.status_code, answer.content) == (200, job.video)


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("my clip.mp4", 'inline; filename="my clip.mp4"'),
        (
            'a"b\r\nset-cookie: x',
            "inline; filename=\"a_b__set-cookie_ x\"; filename*=UTF-8''a%22b%0D%0Aset-cookie%3A%20x",
        ),
        ("été.mp4", "inline; filename=\"_t_.mp4\"; filename*=UTF-8''%C3%A9t%C3%A9.mp4"),
    ],
)
def test_a_signed_file_name_is_proposed(client, job, sign, filename, expected):
    answer = client.get(sign(job.job_id, filename=filename))
    assert answer.headers["content-disposition"] == expected
    assert "set-cookie" not in answer.headers


def test_links_that_were_changed_are_refused(client, job, stack, sign):
    other = stack.publish()
    good = sign(job.job_id)
    path, _, query = good.partition("?")
    expires_at_s = int(time.time() + 600)
    foreign = tokens.sign_path(path, expires_at_s, SecretStr("y" * 40))
    bad = [
        path,
        f"{path}?",
        f"{path}?{query[:-1]}",
        f"{path}?{query}&filename=x",
        f"{path}?{query}&download=1",
        f"{path}?{query.replace('expires=', 'expires=9')}",
        f"/videos/{job.job_id}/thumbnail?{query}",
        f"/videos/{other.job_id}/video?{query}",
        f"{path}?{foreign}",
        f"{path}?{query}&{query}",
        f"{path}?{'a' * 10_000}",
        f"{path}?%ff%fe",
        f"{path}?signature=&expires=",
        f"{path}?{query}&variant=thumbnail",
    ]
    for url in bad:
        answer = client.get(url)
        assert answer.status_code == 403, url
        assert error_of(answer)["code"] == "permission_denied"
    assert client.get(good).status_code == 200


def test_a_link_that_is_too_old_says_so(client, job, sign):
    answer = client.get(sign(job.job_id, expires_in_s=-1))
    assert (answer.status_code, error_of(answer)["code"]) == (403, "link_expired")


def test_only_what_sql_names_is_served(client, stack, sign):
    def ask(job_id: str, variant: str = "video") -> tuple[int, str]:
        answer = client.get(sign(job_id, variant))
        return answer.status_code, error_of(answer)["code"]

    job = stack.publish()
    assert ask(ids.new_job_id()) == (404, "not_found")
    assert ask(job.job_id, "manifest") == (404, "not_found")
    for state in ("queued", "running"):
        stack.update_job(job.job_id, state=state)
        assert ask(job.job_id) == (404, "video_not_ready")
    for state in ("failed", "cancelled"):
        stack.update_job(job.job_id, state=state)
        assert ask(job.job_id) == (404, "not_found")
    stack.update_job(job.job_id, state="completed")
    assert client.get(sign(job.job_id)).status_code == 200
    stack.update_job(job.job_id, expires_at_ms=ids.now_ms() - 1)
    assert ask(job.job_id) == (404, "video_expired")
    stack.update_job(job.job_id, expires_at_ms=ids.now_ms() + 30_000)
    assert "max-age=2" in client.get(sign(job.job_id)).headers["cache-control"]
    stack.update_job(job.job_id, deleted_at_ms=ids.now_ms())
    assert ask(job.job_id) == (404, "not_found")  # at once, though the manifest is cached
    stack.update_job(job.job_id, deleted_at_ms=None, manifest_key=None, manifest_sha256=None)
    assert ask(job.job_id) == (404, "not_found")


def test_path_tricks_lead_nowhere(client, stack, job, sign):
    stack.store.put_bytes("work/secret", b"secret", "text/plain")
    for job_id in (
        "../../work",
        "..%2f..%2fwork%2fsecret",
        "%2e%2e",
        "video_" + "0" * 31 + "/",
        "%00",
        "video_\u00e9",
        ".",
    ):
        for variant in ("video", "..", "secret", "video/../manifest.json", "%2e%2e%2fmanifest"):
            answer = client.get(f"/videos/{job_id}/{variant}?expires=1&signature=x")
            assert answer.status_code in (403, 404)
            assert b"secret" not in answer.content
    for path in ("/", "/videos", f"/videos/{job.job_id}", f"/videos/{job.job_id}/video/", "/objects/work/secret"):
        assert error_of(client.get(path))["code"] == "not_found"
    for name in ("../../x", "a/../b", "..", "%00", ""):
        answer = client.get(sign(name))
        assert answer.status_code in (403, 404)


def test_other_methods_are_refused(client, job, sign):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = client.request(method, sign(job.job_id))
        assert answer.status_code == 405
        assert error_of(answer)["code"] == "invalid_request"
        assert "GET" in answer.headers["allow"]


def test_players_may_ask_first(client, job):
    headers = {"origin": "https://player.example", "access-control-request-headers": "range"}
    answer = client.options(f"/videos/{job.job_id}/video", headers=headers)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "range" in answer.headers["access-control-allow-headers"]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    target=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60),
    name=st.sampled_from(["range", "if-range", "if-none-match", "origin", "x-request-id", "content-length", "expect"]),
    value=st.binary(max_size=40),
)
def test_nothing_that_a_client_sends_causes_a_5xx(stack, job, sign, target, name, value):
    host = urlsplit(stack.base_url)
    value = bytes(byte for byte in value if byte not in b"\r\n\0")
    for path in (f"/videos/{target}", sign(job.job_id)):
        with socket.create_connection((host.hostname, host.port), timeout=10) as connection:
            head = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n".encode()
            connection.sendall(head + name.encode() + b": " + value + b"\r\n\r\n")
            if name != "content-length":
                status = connection.recv(4096)[:12]
                assert status.startswith(b"HTTP/1.1 ")
                assert status[9:10] in b"234"


def publish_strange_manifest(stack, job_id: str, manifest: dict | bytes) -> None:
    stack.publish_manifest(job_id, manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode())


def test_a_manifest_that_is_not_the_published_one_serves_nothing(client, stack, sign):
    victim = stack.publish()
    stolen = {"key": f"videos/{victim.job_id}/1/video.mp4", "media_type": "text/html", "sha256": "0", "num_bytes": 3}
    for make in (
        lambda job_id: {"schema": "vitascope.manifest/1", "job_id": job_id, "files": {"video": stolen}},
        lambda job_id: {"schema": "vitascope.manifest/1", "job_id": victim.job_id, "files": {}},
        lambda job_id: {"schema": "vitascope.manifest/9", "job_id": job_id, "files": {}},
        lambda job_id: {"schema": "vitascope.manifest/1", "job_id": job_id, "files": []},
        lambda job_id: b"\xff not json",
        lambda job_id: b"[]",
    ):
        job_id = ids.new_job_id()
        publish_strange_manifest(stack, job_id, make(job_id))
        answer = client.get(sign(job_id))
        assert (answer.status_code, error_of(answer)["code"]) == (500, "corrupt_object")
    job = stack.publish(manifest_sha256="0" * 64)
    assert error_of(client.get(sign(job.job_id)))["code"] == "corrupt_object"


def test_a_job_without_a_thumbnail(client, stack, sign):
    job_id = ids.new_job_id()
    publish_strange_manifest(stack, job_id, {"schema": "vitascope.manifest/1", "job_id": job_id, "files": {}})
    assert error_of(client.get(sign(job_id, "thumbnail")))["code"] == "not_found"


def test_a_missing_object_is_not_found(client, stack, sign):
    job = stack.publish()
    stack.store.delete(f"videos/{job.job_id}/1/video.mp4")
    answer = client.get(sign(job.job_id))
    assert (answer.status_code, error_of(answer)["code"]) == (404, "object_not_found")


def test_an_object_that_is_too_short_ends_the_connection(client, stack, sign):
    job = stack.publish()
    (stack.folder / "objects" / f"videos/{job.job_id}/1/video.mp4").write_bytes(b"short")
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(sign(job.job_id))
    assert client.get("/healthz").status_code == 200


async def test_a_client_that_takes_nothing_is_left_and_the_file_closed(stack, job, sign, monkeypatch):
    monkeypatch.setattr(api, "STALL_TIMEOUT_S", 0.05)
    opened, open_range = [], stack.store.open_range
    monkeypatch.setattr(stack.store, "open_range", lambda *args: opened.append(open_range(*args)) or opened[-1])
    database, sent = Database(stack.database_url), []

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # its connection takes no more

    path, _, query = sign(job.job_id).partition("?")
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": []}
    app = api.make_app(Delivery(SqlPublications(database), stack.store), SecretStr(SIGNING_KEY))
    await asyncio.wait_for(app(scope, receive, send), 10)
    assert sent == ["http.response.start", "http.response.body"]
    assert next(opened[0], None) is None  # closed
    await database.close()


def test_health_and_metrics(client, stack, job, sign):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    before = stack.metrics()
    client.get(sign(job.job_id), headers={"range": "bytes=0-99"})
    after = stack.metrics()
    assert after['vitascope_ready{service="delivery"}'] == 1
    assert after['vitascope_pid{service="delivery"}'] == stack.process.pid
    key = 'vitascope_delivery_bytes_total{variant="video"}'
    assert after[key] - before.get(key, 0) == 100
    key = 'vitascope_delivery_requests_total{method="GET",status="206"}'
    assert after[key] - before.get(key, 0) == 1


def test_without_a_database_it_says_503(own_stack, sign):
    job = own_stack.publish()
    database = own_stack.folder / "vitascope.db"
    for file in own_stack.folder.glob("vitascope.db*"):
        file.unlink()
    database.mkdir()
    with httpx.Client(base_url=own_stack.base_url) as client:
        for url in (sign(job.job_id), "/readyz"):
            answer = client.get(url)
            assert (answer.status_code, error_of(answer)["code"]) == (503, "unavailable")
            assert answer.headers["retry-after"]
        assert client.get("/healthz").status_code == 200


def test_sigterm_lets_a_download_end(own_stack, sign):
    job = own_stack.publish(bytes(16 * 1024 * 1024))
    with httpx.Client(base_url=own_stack.base_url) as client, client.stream("GET", sign(job.job_id)) as answer:
        chunks = answer.iter_bytes()
        received = len(next(chunks))
        own_stack.process.send_signal(signal.SIGTERM)
        received += sum(map(len, chunks))
    assert received == len(job.video)
    assert own_stack.process.wait(6) == 0
    assert "delivery.stopped" in own_stack.log.read_text()


def test_sigterm_does_not_wait_for_a_client_that_sleeps(own_stack, sign):
    job = own_stack.publish(bytes(64 * 1024 * 1024))
    with httpx.Client(base_url=own_stack.base_url) as client, client.stream("GET", sign(job.job_id)) as answer:
        next(answer.iter_bytes())
        own_stack.process.send_signal(signal.SIGTERM)
        assert own_stack.process.wait(6) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"VITASCOPE_SIGNING_KEY": "short"}, "VITASCOPE_SIGNING_KEY"),
        ({"VITASCOPE_DELIVERY_PROT": "1"}, "VITASCOPE_DELIVERY_PORT"),
        ({"VITASCOPE_OBJECT_STORE_URL": "ftp://x"}, "object store URL"),
        ({"VITASCOPE_HOST": "192.0.2.1"}, "192.0.2.1"),
    ],
)
def test_a_start_that_cannot_work_says_why(stack, more, message):
    done = subprocess.run(
        [sys.executable, "-m", "vitascope_delivery"], env=stack.env(**more), capture_output=True, timeout=30
    )
    assert done.returncode == 2
    text = done.stderr.decode()
    assert message in text
    assert "Traceback" not in text


def test_no_secret_is_logged(stack, client, job, sign):
    client.get(sign(job.job_id))
    log = stack.log.read_text()
    assert "secret prompt" not in log
    assert "signature" not in log
