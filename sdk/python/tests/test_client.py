"""The client against recorded answers: httpx's transport is the one seam."""

import base64
import inspect
import json
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

import vitascope_client
from vitascope_client import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AuthenticationError,
    InvalidRequestError,
    ModerationBlockedError,
    NotFoundError,
    RateLimitError,
    ServerError,
    Vitascope,
    VitascopeError,
    _errors,
    _http,
)

ID = "video_" + "0" * 32
VIDEO = {
    "id": ID,
    "object": "video",
    "status": "queued",
    "progress": 0,
    "created_at": 1,
    "model": "tiny",
    "prompt": "a circle",
    "seconds": "4",
    "size": "64x64",
    "error": None,
}


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Remember how long the client would have waited, and do not."""
    waited: list[float] = []
    monkeypatch.setattr(_http.time, "sleep", waited.append)
    return waited


class Server:
    """Answers in turn with what it was given; the last answer stays."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer(request)
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)


def client(*answers: Any, **options: Any) -> tuple[Vitascope, Server]:
    server = Server(*answers)
    return Vitascope(
        base_url="http://gateway.test", api_key="vs_key", transport=httpx.MockTransport(server), **options
    ), server


def failure(status: int, code: str = "x", param: str | None = None, **headers: str) -> httpx.Response:
    body = {"error": {"message": "No.", "type": "t", "param": param, "code": code}}
    return httpx.Response(status, json=body, headers={"x-request-id": "req_1", **headers})


def stream(*events: tuple[str, str, dict[str, Any]], cut: bool = False) -> httpx.Response:
    text = "retry: 1000\n\n: heartbeat\n\n"
    for event_id, name, data in events:
        text += (f"id: {event_id}\n" if event_id else "") + f"event: {name}\ndata: {json.dumps(data)}\n\n"
    body = text.encode()

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(body), 7):  # events rarely arrive in one piece
            yield body[start : start + 7]
        if cut:
            yield b"id: 99-0\nevent: progress\ndata: {"
            raise httpx.ReadError("the connection broke")

    return httpx.Response(200, content=chunks(), headers={"content-type": "text/event-stream"})


def test_the_public_names_are_one_list() -> None:
    public = {name for name in vars(vitascope_client) if not name.startswith("_")}
    public -= {name for name, value in vars(vitascope_client).items() if inspect.ismodule(value)}
    assert public == set(vitascope_client.__all__)
    assert list(vitascope_client.__all__) == sorted(vitascope_client.__all__)


def test_the_tree_at_the_top_of_the_errors_is_true() -> None:
    drawn = re.findall(r"(\w+Error)\b", (_errors.__doc__ or "").partition("A wrong argument")[0])
    classes = {name for name, value in vars(_errors).items() if inspect.isclass(value)}
    assert set(drawn) == classes
    assert classes <= set(vitascope_client.__all__)


def test_the_sample_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (sample,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    progress = {"step": 0, "steps": 24, "percent": 0.0, "phase": "loading", "eta_s": None}  # as a worker tells it
    server = Server(
        httpx.Response(202, json=VIDEO),
        stream(
            ("1-0", "queued", {}),
            ("2-0", "progress", progress),
            ("3-0", "progress", {**progress, "step": 6, "percent": 25.0, "phase": "denoising", "eta_s": 3.21}),
            ("4-0", "completed", {}),
        ),
        {**VIDEO, "status": "completed"},
        httpx.Response(200, content=b"film"),
        httpx.Response(200, content=b"picture"),
    )
    monkeypatch.setattr(vitascope_client, "Vitascope", partial(Vitascope, transport=httpx.MockTransport(server)))
    monkeypatch.chdir(tmp_path)
    exec(sample.replace("vs_…", "vs_key"), {})
    assert capsys.readouterr().out.splitlines() == ["loading 0/24", "denoising 6/24, 3 s left"]
    assert (Path("video.mp4").read_bytes(), Path("video.webp").read_bytes()) == (b"film", b"picture")


@pytest.fixture
def recording_server() -> Iterator[HTTPServer]:
    """Answers everything with no models; `asked` holds what the request lines named."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(self.path)  # type: ignore[attr-defined]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": []}')

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_never_asked_through_a_proxy(
    recording_server: Any, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Vitascope(base_url=f"http://{host}:{recording_server.server_port}", api_key="k", max_retries=0) as one:
        assert one.models() == ()
    assert recording_server.asked == ["/v1/models"]


@pytest.mark.parametrize(
    ("base_url", "is_another"),
    [
        ("http://127.1.2.3:8000", True),
        ("http://127.0.0.1", False),
        ("http://10.1.2.3", False),
        ("http://a.test", False),
    ],
)
def test_loopback_is_what_the_address_says(base_url: str, is_another: bool) -> None:
    usual = {"all://localhost", "all://127.0.0.1", "all://[::1]"}
    assert _http._loopback(base_url) - usual == ({"all://127.1.2.3"} if is_another else set())


def test_other_hosts_are_asked_through_the_proxy_of_the_environment(
    recording_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{recording_server.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Vitascope(base_url="http://gateway.test", api_key="k", max_retries=0) as one:
        assert one.models() == ()
    assert recording_server.asked == ["http://gateway.test/v1/models"]


def test_create_sends_what_was_given_and_nothing_else() -> None:
    one, server = client(httpx.Response(202, json=VIDEO))
    video = one.videos.create(prompt="a circle", seconds=4, seed=0, metadata={"a": "b"})
    assert json.loads(server.requests[0].content) == {
        "prompt": "a circle",
        "seconds": "4",
        "seed": 0,
        "metadata": {"a": "b"},
    }
    assert server.requests[0].headers["authorization"] == "Bearer vs_key"
    assert str(server.requests[0].url) == "http://gateway.test/v1/videos"
    assert (video.id, video.status, video.phase, video.error, video.is_finished) == (
        ID,
        "queued",
        "queued",
        None,
        False,
    )


def test_solver_and_temporal_attention_are_sent_as_they_are() -> None:
    api, server = client(VIDEO)
    api.videos.create(prompt="x", solver="heun", temporal_attention="window")
    sent = json.loads(server.requests[0].content)
    assert sent == {"prompt": "x", "solver": "heun", "temporal_attention": "window"}


def test_how_a_video_waits_is_sent_and_shown() -> None:
    shown = {"service_class": "batch", "priority": -5, "deadline_at": 90, "retry_of": None}
    api, server = client({**VIDEO, **shown})
    video = api.videos.create(prompt="x", deadline_s=89.5, priority=-5, service_class="batch")
    sent = json.loads(server.requests[0].content)
    assert sent == {"prompt": "x", "deadline_s": 89.5, "priority": -5, "service_class": "batch"}
    assert (video.service_class, video.priority, video.deadline_at, video.retry_of) == ("batch", -5, 90, None)


def test_a_retry_names_the_video_it_repeats() -> None:
    api, server = client({**VIDEO, "id": "video_2", "retry_of": ID})
    video = api.videos.retry(ID)
    assert (video.id, video.retry_of) == ("video_2", ID)
    assert (server.requests[0].method, server.requests[0].url.path) == ("POST", f"/v1/videos/{ID}/retry")
    api, server = client(failure(409, "not_finished"))
    with pytest.raises(InvalidRequestError):
        api.videos.retry(ID)
    assert len(server.requests) == 1


def test_operators_see_pools_and_drain_them() -> None:
    api, server = client({"object": "queue", "pools": [{"pool": "default"}]})
    assert api.admin.queue() == ({"pool": "default"},)
    api.admin.queue("default")
    assert [str(one.url) for one in server.requests] == [
        "http://gateway.test/admin/v1/queue",
        "http://gateway.test/admin/v1/queue?pool=default",
    ]
    api, server = client({"num_workers": 2})
    assert api.admin.drain("default") == 2
    assert api.admin.drain("default", "worker-1", is_draining=False) == 2
    assert [json.loads(one.content) for one in server.requests] == [
        {"pool": "default", "worker_id": None, "is_draining": True},
        {"pool": "default", "worker_id": "worker-1", "is_draining": False},
    ]
    api, _ = client(failure(403, "permission_denied"))
    with pytest.raises(vitascope_client.PermissionDeniedError):
        api.admin.queue()


def test_the_address_may_end_in_v1() -> None:
    one = Vitascope(
        base_url="http://gateway.test/v1/", api_key="k", transport=httpx.MockTransport(Server({"data": []}))
    )
    assert one.base_url == "http://gateway.test"
    assert one.models() == ()


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITASCOPE_BASE_URL", raising=False)
    monkeypatch.delenv("VITASCOPE_API_KEY", raising=False)
    with pytest.raises(VitascopeError, match="VITASCOPE_BASE_URL"):
        Vitascope()
    monkeypatch.setenv("VITASCOPE_BASE_URL", "http://here.test")
    with pytest.raises(VitascopeError, match="VITASCOPE_API_KEY"):
        Vitascope()
    monkeypatch.setenv("VITASCOPE_API_KEY", "k")
    with Vitascope() as one:
        assert one.base_url == "http://here.test"
    with pytest.raises(VitascopeError):
        Vitascope(api_key="kö€")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_request", InvalidRequestError),
        (400, "moderation_blocked", ModerationBlockedError),
        (401, "invalid_api_key", AuthenticationError),
        (404, "video_not_ready", NotFoundError),
        (410, "video_expired", NotFoundError),
        (413, "body_too_large", InvalidRequestError),
        (429, "quota_exceeded", RateLimitError),
        (503, "unavailable", ServerError),
    ],
)
def test_an_error_carries_what_the_server_said(
    status: int, code: str, kind: type[vitascope_client.APIStatusError]
) -> None:
    one, _ = client(failure(status, code, "seconds"), max_retries=0)
    with pytest.raises(kind, match="No") as raised:
        one.videos.create(prompt="x")
    error = raised.value
    assert (error.status, error.code, error.param, error.request_id) == (status, code, "seconds", "req_1")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"error": "text"}', b"{}", b""])
def test_an_error_that_is_not_ours_is_still_one(body: bytes) -> None:
    one, _ = client(httpx.Response(502, content=body), max_retries=0)
    with pytest.raises(ServerError, match="502"):
        one.videos.retrieve(ID)


def test_an_answer_that_is_not_json_asks_for_the_address() -> None:
    one, _ = client(httpx.Response(200, content=b"<html>"))
    with pytest.raises(APIError, match="base_url"):
        one.videos.retrieve(ID)


def test_what_may_be_repeated_is(pauses: list[float]) -> None:
    one, server = client(failure(503), httpx.ReadTimeout("slow"), httpx.ConnectError("away"), failure(429), VIDEO)
    assert one.videos.retrieve(ID).id == ID
    assert len(server.requests) == 5
    assert len(pauses) == 4
    assert pauses[3] > pauses[0]
    one, server = client(failure(503), max_retries=2)
    with pytest.raises(ServerError):
        one.videos.delete(ID)
    assert len(server.requests) == 3


def test_the_server_says_when_to_come_back_and_whether(pauses: list[float]) -> None:
    one, _ = client(failure(503, **{"retry-after": "7"}), failure(503, **{"retry-after": "soon"}), VIDEO)
    one.videos.retrieve(ID)
    assert pauses[0] == 7.0
    assert pauses[1] < 1
    one, server = client(failure(429, **{"x-should-retry": "false"}), VIDEO)
    with pytest.raises(RateLimitError):
        one.videos.retrieve(ID)
    assert len(server.requests) == 1


def test_what_creates_a_video_is_repeated_under_the_key_of_its_call() -> None:
    lost = (httpx.ConnectError("away"), httpx.ReadTimeout("slow"), httpx.ReadError("broken"), failure(503))
    keys = []
    for call in (lambda api: api.create(prompt="x"), lambda api: api.create(prompt="x"), lambda api: api.retry(ID)):
        one, server = client(*lost, VIDEO)
        assert call(one.videos).id == ID
        (key,) = {request.headers["idempotency-key"] for request in server.requests}
        assert len(server.requests) == 5
        keys.append(key)
    assert len(set(keys)) == 3
    one, server = client(VIDEO)
    one.videos.create(prompt="x", idempotency_key="order-1")
    assert server.requests[0].headers["idempotency-key"] == "order-1"


@pytest.mark.parametrize("lost", [httpx.ReadTimeout("slow"), httpx.ReadError("broken"), failure(503)])
def test_a_delete_whose_answer_was_lost_and_that_then_finds_nothing_has_succeeded(lost: Any) -> None:
    one, server = client(lost, failure(404, "not_found"))
    one.videos.delete(ID)
    assert len(server.requests) == 2


def test_a_delete_that_was_never_carried_out_and_finds_nothing_has_not() -> None:
    for answers in ((failure(404, "not_found"),), (httpx.ConnectError("away"), failure(404, "not_found"))):
        one, _ = client(*answers)
        with pytest.raises(NotFoundError):
            one.videos.delete(ID)


def test_cancel_may_be_repeated() -> None:
    one, server = client(httpx.ReadError("broken"), failure(503), VIDEO)
    assert one.videos.cancel(ID).id == ID
    assert len(server.requests) == 3
    one, _ = client(httpx.ReadError("broken"), failure(404, "not_found"))
    with pytest.raises(NotFoundError):
        one.videos.cancel(ID)


def test_a_page_says_where_the_next_one_begins() -> None:
    one, server = client({"data": [VIDEO], "last_id": ID, "has_more": True})
    page = one.videos.list(limit=1, order="asc")
    assert ([video.id for video in page], len(page), page.last_id, page.has_more) == ([ID], 1, ID, True)
    assert dict(server.requests[0].url.params) == {"limit": "1", "order": "asc"}


def test_cancel_shows_why_it_failed() -> None:
    error = {"code": "cancelled", "message": "It was cancelled."}
    one, server = client({**VIDEO, "status": "failed", "error": error})
    video = one.videos.cancel(ID)
    assert video.error is not None
    assert (video.error.code, video.is_finished) == ("cancelled", True)
    assert (server.requests[0].method, server.requests[0].url.path) == ("POST", f"/v1/videos/{ID}/cancel")


@pytest.mark.parametrize("video_id", ["", ".", "..", None])
def test_an_id_that_is_none_never_reaches_the_server(video_id: Any) -> None:
    one, server = client(VIDEO)
    with pytest.raises(VitascopeError, match="not the id"):
        one.videos.delete(video_id)
    assert server.requests == []


def test_an_id_cannot_lead_elsewhere() -> None:
    one, server = client(VIDEO)
    one.videos.retrieve("../models?x=1#y")
    assert server.requests[0].url.raw_path == b"/v1/videos/..%2Fmodels%3Fx%3D1%23y"


def test_events_end_with_the_last_one() -> None:
    one, _ = client(
        stream(
            ("1-0", "queued", {"id": ID}), ("2-0", "progress", {"step": 1}), ("3-0", "completed", {}), ("4-0", "x", {})
        )
    )
    events = list(one.videos.stream(ID))
    assert [(event.id, event.type) for event in events] == [
        ("1-0", "queued"),
        ("2-0", "progress"),
        ("3-0", "completed"),
    ]
    assert events[1].data == {"step": 1}


def test_events_resume_after_the_last_one_seen_whatever_breaks() -> None:
    one, server = client(
        httpx.ConnectError("away"),
        stream(("1-0", "queued", {}), ("2-0", "progress", {"step": 1}), cut=True),
        failure(503),
        stream(),
        stream(("3-0", "progress", {"step": 2}), cut=True),
        stream(("4-0", "failed", {"code": "poison", "message": "It crashed."})),
    )
    assert [event.id for event in one.videos.stream(ID)] == ["1-0", "2-0", "3-0", "4-0"]
    resumed = [request.headers.get("last-event-id") for request in server.requests]
    assert resumed == [None, None, "2-0", "2-0", "2-0", "3-0"]


def test_a_place_in_the_queue_does_not_move_where_a_broken_stream_resumes() -> None:
    place = ("", "queued", {"position": 2, "eta_s": 40.0})
    api, server = client(stream(("1-0", "queued", {}), place, cut=True), stream(("2-0", "completed", {})))
    found = list(api.videos.stream(ID))
    assert [(one.type, one.id, one.data.get("position")) for one in found] == [
        ("queued", "1-0", None),
        ("queued", "", 2),
        ("completed", "2-0", None),
    ]
    assert server.requests[1].headers["last-event-id"] == "1-0"


def test_a_snapshot_is_a_video_and_may_be_the_last_event() -> None:
    running = {**VIDEO, "status": "in_progress", "type": "snapshot"}
    one, server = client(
        stream(("", "snapshot", running), ("5-0", "progress", {}), cut=True),
        stream(("", "snapshot", {**running, "status": "completed"})),
    )
    first, _, last = one.videos.stream(ID, last_event_id="1-0")
    assert first.video is not None
    assert (first.video.status, first.is_last, last.is_last) == ("in_progress", False, True)
    assert [request.headers["last-event-id"] for request in server.requests] == ["1-0", "5-0"]


def test_events_of_a_job_whose_end_was_seen_are_none() -> None:
    one, _ = client(httpx.Response(204))
    assert list(one.videos.stream(ID, last_event_id="9-0")) == []


def test_events_of_nothing_are_an_error_at_once() -> None:
    one, server = client(failure(404, "not_found"))
    with pytest.raises(NotFoundError):
        list(one.videos.stream(ID))
    assert len(server.requests) == 1


def test_a_server_that_stays_away_is_given_up() -> None:
    one, _ = client(httpx.ConnectError("away"))
    with pytest.raises(APIConnectionError):
        list(one.videos.stream(ID, give_up_s=0.0))


def test_a_server_that_ends_every_stream_at_once_is_given_up(pauses: list[float]) -> None:
    def empty(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"retry: 1000\n\n")

    one, server = client(empty)
    with pytest.raises(APIConnectionError, match="ended the stream"):
        list(one.videos.stream(ID, give_up_s=0.02))
    assert len(server.requests) > 1
    assert len(pauses) == len(server.requests) - 1


def test_heartbeats_are_a_sign_of_life_and_so_is_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(_http.time, "monotonic", lambda: now_s)

    def beats(_: httpx.Request) -> httpx.Response:
        def chunks() -> Iterator[bytes]:
            nonlocal now_s
            now_s += 100.0
            yield b": heartbeat\n\n"
            raise httpx.ReadError("the connection broke")

        return httpx.Response(200, content=chunks())

    one, _ = client(beats, beats, stream(("1-0", "queued", {}), cut=True), stream(("2-0", "completed", {})))
    seen = []
    for event in one.videos.stream(ID, give_up_s=120.0):
        seen.append(event.type)
        now_s += 500.0  # a caller that takes its time
    assert seen == ["queued", "completed"]


def test_wait_polls_as_often_as_the_server_says(pauses: list[float]) -> None:
    poll = httpx.Response(200, json=VIDEO, headers={"openai-poll-after-ms": "250"})
    one, _ = client(poll, failure(503), VIDEO, {**VIDEO, "status": "completed", "progress": 100}, max_retries=0)
    assert one.videos.wait(ID).progress == 100
    assert pauses == [0.25, 1.0, 1.0]
    one, _ = client(VIDEO)
    with pytest.raises(APITimeoutError, match="not finished"):
        one.videos.wait(ID, timeout_s=0.0)


def redirect(request: httpx.Request) -> httpx.Response:
    return httpx.Response(302, headers={"location": "http://delivery.test/videos/x/video?signature=s"})


def test_download_returns_bytes_or_writes_a_file_and_keeps_the_key_here(tmp_path: Path) -> None:
    for target in (None, tmp_path / "video.mp4"):
        one, server = client(redirect, httpx.Response(200, content=b"film"))
        got = one.videos.download(ID, target, variant="thumbnail") if target else one.videos.download(ID)
        assert (got.read_bytes() if isinstance(got, Path) else got) == b"film"
        assert "authorization" in server.requests[0].headers
        assert "authorization" not in server.requests[1].headers
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


def test_a_download_that_breaks_leaves_no_half_file_and_is_tried_again(tmp_path: Path) -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        def chunks() -> Iterator[bytes]:
            yield b"fi"
            raise httpx.ReadError("the connection broke")

        return httpx.Response(200, content=chunks())

    answers: list[Callable[[httpx.Request], httpx.Response]] = [
        broken,
        broken,
        lambda _: httpx.Response(200, content=b"film"),
    ]
    one, _ = client(*answers)
    assert one.videos.download(ID, tmp_path / "video.mp4").read_bytes() == b"film"
    one, _ = client(broken, max_retries=1)
    with pytest.raises(APIConnectionError):
        one.videos.download(ID, tmp_path / "other.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


def test_a_video_that_is_not_there_says_why() -> None:
    one, _ = client(failure(404, "video_not_ready"))
    with pytest.raises(NotFoundError) as early:
        one.videos.download(ID)
    assert early.value.code == "video_not_ready"


@pytest.mark.parametrize("value", [{"prompt": "\udcff"}, {"prompt": "x", "guidance_scale": float("nan")}])
def test_what_json_cannot_say_is_one_clear_error(value: dict[str, Any]) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(202, json=VIDEO))
    with (
        Vitascope(base_url="http://127.0.0.1:1", api_key="k", transport=transport) as client,
        pytest.raises(VitascopeError, match="cannot be sent"),
    ):
        client.videos.create(**value)


def test_pictures_go_out_as_data_urls_whatever_they_were(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"picture")
    sent = "base64," + base64.b64encode(b"picture").decode()
    for given, url in (
        (path, f"data:image/png;{sent}"),
        (str(path), f"data:image/png;{sent}"),
        (b"picture", f"data:application/octet-stream;{sent}"),
        ("data:image/webp;base64,AAAA", "data:image/webp;base64,AAAA"),
    ):
        one, server = client(VIDEO)
        one.videos.create(prompt="x", input_reference=given, last_frame=given)
        body = json.loads(server.requests[0].content)
        assert (body["input_reference"], body["last_frame"]) == (url, url)
    one, server = client(VIDEO)
    with pytest.raises(FileNotFoundError):
        one.videos.create(prompt="x", input_reference=tmp_path / "dog.png")
    assert server.requests == []
