"""Pictures that lie at a URL: fetched once by whoever may, from where one may, and what a refusal says."""

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from PIL import Image

from vitascope_gateway import fetching
from vitascope_gateway.pictures import MAX_PICTURE_BYTES


def encoded(colour: str, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 20), colour).save(file, form)
    return file.getvalue()


PICTURE, OTHER = encoded("red"), encoded("blue", "JPEG")


class Handler(BaseHTTPRequestHandler):
    """Answers by path and remembers what it was asked."""

    server: "Pictures"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        if self.path == "/hangs":
            self.server.arrived.release()
            self.server.go_on.wait(30)
        status, headers, body = self.server.answers.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Pictures(ThreadingHTTPServer):
    """A private server of pictures on loopback."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {
            "/a.png": (200, {}, PICTURE),
            "/b.jpg": (200, {"Content-Type": "text/plain"}, OTHER),
            "/hangs": (200, {}, PICTURE),
        }
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.arrived, self.go_on = threading.Semaphore(0), threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A gateway that has heard enough is no error here."""


@pytest.fixture
def server() -> Iterator[Pictures]:
    one = Pictures()
    yield one
    one.go_on.set()
    one.shutdown()
    one.thread.join()
    one.server_close()


def create(inside: Any, tenant: str = "acme", **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", {})
    answer: httpx.Response = inside.request(
        "POST", "/v1/videos", tenant=tenant, json={"prompt": "x", **fields}, headers=headers
    )
    return answer


def stored(inside: Any, video_id: str) -> dict[str, str]:
    """Return the hash of each stored picture, by its role."""
    (job,) = inside.sql("SELECT params FROM jobs WHERE job_id = ?", video_id)
    artifacts = {one["role"]: one["artifact"] for one in json.loads(job["params"])["references"]}
    for one in artifacts.values():
        assert inside.objects.stat(one["key"]).sha256 == one["sha256"]
    return {role: one["sha256"] for role, one in artifacts.items()}


def test_a_picture_at_a_url_is_the_picture_as_a_file(inside: Any, server: Pictures) -> None:
    files = [("input_reference", ("a", PICTURE)), ("last_frame", ("b", OTHER))]
    as_files = inside.request("POST", "/v1/videos", data={"prompt": "x"}, files=files)
    first, last = server.url("/a.png"), server.url("/b.jpg")
    for body in (
        {"json": {"prompt": "x", "input_reference": first, "last_frame": {"image_url": last}}},
        {"files": {"prompt": (None, "x"), "input_reference[image_url]": (None, first), "last_frame": (None, last)}},
    ):
        answer = inside.request("POST", "/v1/videos", **body)
        assert answer.status_code == 202, answer.text
        assert stored(inside, answer.json()["id"]) == stored(inside, as_files.json()["id"])
    assert server.paths == ["/a.png", "/b.jpg"] * 2
    headers = {name.lower(): value for name, value in server.asked[0][1].items()}
    assert headers["accept"].startswith("image/png")
    assert not {"authorization", "cookie"} & headers.keys()


def test_a_redirect_is_followed(inside: Any, server: Pictures) -> None:
    server.answers["/moved"] = (302, {"Location": "/a.png"}, b"")
    assert create(inside, input_reference=server.url("/moved")).status_code == 202


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://127.0.0.2/a.png", "not in the public Internet"),
        ("http://127.0.0.2/a.png", "not in the public Internet"),
        ("https://169.254.169.254/latest/meta-data/", "not in the public Internet"),
        ("https://[::1]/a.png", "not in the public Internet"),
        ("https://[::ffff:10.0.0.1]/a.png", "not in the public Internet"),
        ("https://0x7f.2/a.png", "not in the public Internet"),
        ("http://8.8.8.8/a.png", "not in the public Internet"),
        ("https://user:secret@example.com/a.png", "user name"),
        ("https://example.com:22/a.png", "port"),
        ("https://example.com/" + "a" * 3000, "at most 2048"),
        ("https://", "no host"),
    ],
)
@pytest.mark.parametrize("field", ["input_reference", "last_frame"])
def test_a_url_that_leads_elsewhere_is_refused_with_its_field(
    inside: Any, server: Pictures, field: str, url: str, said: str
) -> None:
    answer = create(inside, **({"input_reference": server.url("/a.png")} | {field: {"image_url": url}}))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "url_refused", field)
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]
    assert error["message"].startswith(f"{field} cannot be fetched. The ")
    assert "secret" not in error["message"]
    assert inside.neighbours.checked == [] or url.startswith(
        "http://"
    )  # what the network is not needed for comes first
    assert list(inside.objects.list()) == []
    assert inside.sql("SELECT * FROM jobs") == []


@pytest.mark.parametrize(
    ("answered", "code", "said"),
    [
        ((404, {}, PICTURE), "url_failed", "status 404"),
        ((204, {}, b""), "url_failed", "status 204"),
        ((200, {"Content-Encoding": "gzip"}, b"x"), "url_failed", "compressed"),
        ((200, {}, bytes(MAX_PICTURE_BYTES + 1)), "url_failed", "more than 10485760 bytes"),
        ((200, {"Content-Length": "1000"}, PICTURE[:50]), "url_failed", "broke off"),
        ((200, {}, b""), "invalid_request", "must be a picture: PNG, JPEG or WebP"),
        ((200, {"Content-Type": "image/png"}, b"<html>"), "invalid_request", "must be a picture"),
        ((200, {}, PICTURE[:60]), "invalid_request", "is damaged"),
        ((302, {"Location": "http://169.254.169.254/latest/"}, b""), "url_refused", "redirects"),
        ((302, {"Location": "file:///etc/passwd"}, b""), "url_refused", "redirects"),
        ((302, {"Location": "/answer"}, b""), "url_failed", "more than 3 times"),
    ],
)
def test_what_is_no_picture_at_a_url_is_said(
    inside: Any, server: Pictures, answered: Any, code: str, said: str
) -> None:
    server.answers["/answer"] = answered
    answer = create(inside, input_reference=server.url("/answer"))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, "input_reference")
    assert said in error["message"]
    assert list(inside.objects.list()) == []


def test_a_slow_server_is_left(inside: Any, server: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FETCH_TIMEOUT_S", 0.3)
    error = create(inside, input_reference=server.url("/hangs")).json()["error"]
    assert (error["code"], error["param"]) == ("url_failed", "input_reference")
    assert "within 0.3 s" in error["message"]


def test_nothing_is_fetched_for_a_request_that_is_refused_anyway(inside: Any, server: Pictures) -> None:
    url = server.url("/a.png")
    assert create(inside, prompt="forbidden", input_reference=url).json()["error"]["code"] == "moderation_blocked"
    assert create(inside, seconds="7", input_reference=url).json()["error"]["param"] == "seconds"
    assert create(inside, last_frame=url).json()["error"]["param"] == "last_frame"
    assert create(inside, service_class="realtime", input_reference=url).status_code == 403
    assert inside.request("POST", "/v1/videos", tenant=None, json={"prompt": "x", "input_reference": url}).is_error
    estimated = inside.request("POST", "/v1/videos/estimate", json={"prompt": "x", "input_reference": url})
    assert estimated.status_code == 200
    assert server.asked == []


def test_a_request_that_comes_again_fetches_nothing(inside: Any, server: Pictures) -> None:
    key = {"Idempotency-Key": "k1"}
    first = create(inside, headers=key, input_reference=server.url("/a.png"))
    del server.answers["/a.png"]
    again = create(inside, headers=key, input_reference=server.url("/a.png"))
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert server.paths == ["/a.png"]
    other = create(inside, headers=key, input_reference=server.url("/b.jpg"))
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reuse")
    inside.sql("UPDATE jobs SET state = 'failed'")
    retried = inside.request("POST", f"/v1/videos/{first.json()['id']}/retry")
    assert retried.status_code == 202
    assert stored(inside, retried.json()["id"]) == stored(inside, first.json()["id"])
    assert server.paths == ["/a.png"]


def test_one_tenants_slow_servers_keep_nobody_else_waiting(inside: Any, server: Pictures) -> None:
    async def scene() -> tuple[list[httpx.Response], httpx.Response, httpx.Response]:
        async def ask(tenant: str, path: str) -> httpx.Response:
            body = {"prompt": "x", "input_reference": server.url(path)}
            answer: httpx.Response = await inside._request("POST", "/v1/videos", tenant, {"json": body})
            return answer

        slow = [asyncio.create_task(ask("acme", "/hangs")) for _ in range(fetching.MAX_FETCHING_OF_TENANT)]
        for _ in slow:
            await asyncio.to_thread(server.arrived.acquire)
        refused, other = await ask("acme", "/a.png"), await ask("other", "/a.png")
        server.go_on.set()
        return await asyncio.gather(*slow), refused, other

    slow, refused, other = inside.runner.run(scene())
    assert [one.status_code for one in slow] == [202] * len(slow)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert (refused.headers["x-should-retry"], refused.headers["retry-after"]) == ("true", "1")
    assert other.status_code == 202
    assert create(inside, input_reference=server.url("/a.png")).status_code == 202


def test_a_gateway_that_nobody_has_told_otherwise_reaches_nothing_private(outside: Any, server: Pictures) -> None:
    for url in (server.url("/a.png"), server.url("/a.png").replace("http", "https")):
        answer = httpx.post(
            f"{outside.gateway.base_url}/v1/videos",
            json={"prompt": "x", "input_reference": url},
            headers=outside.headers,
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "url_refused")
    assert server.asked == []
