"""The clients against recorded answers: httpx's transport is the one seam."""

import base64
import inspect
import json
import re
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import vitascope_client
from vitascope_client import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AsyncVitascope,
    AuthenticationError,
    Event,
    InvalidRequestError,
    ModerationBlockedError,
    NotFoundError,
    Progress,
    RateLimitError,
    ServerError,
    Vitascope,
    VitascopeError,
    _answers,
    _errors,
    _runtime,
)
from vitascope_client._async import _http as _async_http
from vitascope_client._async import _stream as _async_stream
from vitascope_client._async import _videos as _async_videos
from vitascope_client._sync import _http as _sync_http
from vitascope_client._sync import _stream as _sync_stream
from vitascope_client._sync import _videos as _sync_videos

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


def failure(status: int, code: str = "x", param: str | None = None, **headers: str) -> httpx.Response:
    body = {"error": {"message": "No.", "type": "t", "param": param, "code": code}}
    return httpx.Response(status, json=body, headers={"x-request-id": "req_1", **headers})


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that arrives in pieces, for either client."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk


EVENTS = {"content-type": "text/event-stream; charset=utf-8"}


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

    return httpx.Response(200, stream=Chunks(chunks()), headers=EVENTS)


def set_clock(monkeypatch: pytest.MonkeyPatch, monotonic: Callable[[], float]) -> None:
    """Let the clients read another clock."""
    for module in (_async_http, _async_stream, _async_videos, _sync_http, _sync_stream, _sync_videos):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic))


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


@pytest.fixture(scope="module")
def samples() -> list[str]:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", readme, re.DOTALL)


def test_the_table_of_the_readme_names_what_there_is() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    table = re.findall(r"^\|.*\|$", readme, re.MULTILINE)
    named = set(re.findall(r"`([\w.]+)\(", "\n".join(table)))
    offered = {name for name in vars(vitascope_client.Videos) if not name.startswith("_")}
    assert named == {*offered, "client.models"}
    assert hasattr(Vitascope, "models")


def answering(kind: type, answer: Callable[[httpx.Request], httpx.Response]) -> Any:
    return partial(kind, transport=httpx.MockTransport(answer))


def test_the_sample_of_the_readme_runs(
    samples: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = {"step": 0, "steps": 0, "percent": 0.0, "phase": "loading", "eta_s": None}  # as a worker tells it
    answers = iter(
        [
            httpx.Response(202, json=VIDEO),
            httpx.Response(200, json=VIDEO),
            stream(
                ("1-0", "queued", {}),
                ("2-0", "progress", progress),
                ("3-0", "progress", {**progress, "percent": 25.0, "phase": "denoising"}),
                ("4-0", "completed", {}),
            ),
            httpx.Response(200, json={**VIDEO, "status": "completed", "phase": "completed", "progress": 100}),
            httpx.Response(200, content=b"film"),
            httpx.Response(200, content=b"picture"),
        ]
    )
    monkeypatch.setattr(vitascope_client, "Vitascope", answering(Vitascope, lambda _: next(answers)))
    monkeypatch.chdir(tmp_path)
    exec(samples[0].replace("vs_…", "vs_key"), {})
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["queued 0 %", "loading 0 %", "denoising 25 %", "completed 100 %"]
    assert (Path("video.mp4").read_bytes(), Path("video.webp").read_bytes()) == (b"film", b"picture")


def test_the_asynchronous_sample_of_the_readme_runs(
    samples: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, json={**VIDEO, "id": json.loads(request.content)["prompt"].replace(" ", "_")})
        if request.url.path.endswith("/events"):
            return stream(("1-0", "progress", {"percent": 50}), ("2-0", "completed", {}))
        return httpx.Response(200, content=request.url.path.encode())

    monkeypatch.setattr(vitascope_client, "AsyncVitascope", answering(AsyncVitascope, answer))
    monkeypatch.chdir(tmp_path)
    exec(samples[1].replace("vs_…", "vs_key"), {})
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "a blue ring completed ",
        "a blue ring progress 50",
        "a red ball completed ",
        "a red ball progress 50",
    ]
    assert Path("a red ball.mp4").read_bytes() == b"/v1/videos/a_red_ball/content"


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
    client: Any, recording_server: Any, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with client.open(base_url=f"http://{host}:{recording_server.server_port}", api_key="k", max_retries=0) as one:
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
    assert _answers.loopback(base_url) - usual == ({"all://127.1.2.3"} if is_another else set())


def test_other_hosts_are_asked_through_the_proxy_of_the_environment(
    client: Any, recording_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{recording_server.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with client.open(base_url="http://gateway.test", api_key="k", max_retries=0) as one:
        assert one.models() == ()
    assert recording_server.asked == ["http://gateway.test/v1/models"]


def test_create_sends_what_was_given_and_nothing_else(client: Any) -> None:
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


def test_solver_and_temporal_attention_are_sent_as_they_are(client: Any) -> None:
    api, server = client(VIDEO)
    api.videos.create(prompt="x", solver="heun", temporal_attention="window")
    sent = json.loads(server.requests[0].content)
    assert sent == {"prompt": "x", "solver": "heun", "temporal_attention": "window"}


def test_who_is_told_of_the_end_is_sent(client: Any) -> None:
    api, server = client(VIDEO)
    api.videos.create(prompt="x", webhook_url="https://me.test/hook", webhook_events=("video.failed",))
    sent = {"prompt": "x", "webhook_url": "https://me.test/hook", "webhook_events": ["video.failed"]}
    assert json.loads(server.requests[0].content) == sent


def test_every_way_to_say_the_size_and_the_length_is_sent(client: Any) -> None:
    said = {"prompt": "x", "width": 64, "height": 32, "num_frames": 9, "fps": 8}
    api, server = client(VIDEO)
    api.videos.create(**said)
    assert json.loads(server.requests[0].content) == said
    assert set(said) <= set(vitascope_client.VideoFields.__annotations__)


def test_what_is_printed_opens_nothing(client: Any) -> None:
    urls = {f"{name}_url": f"http://gateway.test/{name}?token=secret" for name in ("events", "websocket", "preview")}
    api, _ = client({**VIDEO, **urls})
    video = api.videos.retrieve(ID)
    assert video.events_url == urls["events_url"]
    assert ID in repr(video)
    snapshot = Event("", "snapshot", video.raw)
    assert "secret" not in repr(video) + repr(snapshot)
    shown = "Event(id='1-0', type='progress', data={'step': 1})"
    assert repr(Event("1-0", "progress", {"step": 1})) == shown


def test_how_a_video_waits_is_sent_and_shown(client: Any) -> None:
    shown = {"service_class": "batch", "priority": -5, "deadline_at": 90, "retry_of": None}
    api, server = client({**VIDEO, **shown})
    video = api.videos.create(prompt="x", deadline_s=89.5, priority=-5, service_class="batch")
    sent = json.loads(server.requests[0].content)
    assert sent == {"prompt": "x", "deadline_s": 89.5, "priority": -5, "service_class": "batch"}
    assert (video.service_class, video.priority, video.deadline_at, video.retry_of) == ("batch", -5, 90, None)


def test_a_retry_names_the_video_it_repeats(client: Any) -> None:
    api, server = client({**VIDEO, "id": "video_2", "retry_of": ID})
    video = api.videos.retry(ID)
    assert (video.id, video.retry_of) == ("video_2", ID)
    assert (server.requests[0].method, server.requests[0].url.path) == ("POST", f"/v1/videos/{ID}/retry")
    api, server = client(failure(409, "not_finished"))
    with pytest.raises(InvalidRequestError):
        api.videos.retry(ID)
    assert len(server.requests) == 1


def test_operators_see_pools_and_drain_them(client: Any) -> None:
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


def test_the_address_may_end_in_v1(client: Any) -> None:
    one, _ = client({"data": []}, base_url="http://gateway.test/v1/")
    assert one.base_url == "http://gateway.test"
    assert one.models() == ()


def test_address_and_key_come_from_the_environment(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITASCOPE_BASE_URL", raising=False)
    monkeypatch.delenv("VITASCOPE_API_KEY", raising=False)
    with pytest.raises(VitascopeError, match="VITASCOPE_BASE_URL"):
        client.open()
    monkeypatch.setenv("VITASCOPE_BASE_URL", "http://here.test")
    with pytest.raises(VitascopeError, match="VITASCOPE_API_KEY"):
        client.open()
    monkeypatch.setenv("VITASCOPE_API_KEY", "k")
    assert client.open().base_url == "http://here.test"
    with pytest.raises(VitascopeError):
        client.open(api_key="kö€")


@pytest.mark.parametrize("is_of_the_environment", [False, True], ids=["given", "of the environment"])
def test_a_key_is_read_as_files_end_and_never_shown(
    client: Any, monkeypatch: pytest.MonkeyPatch, is_of_the_environment: bool
) -> None:
    def open_with(key: str) -> tuple[Any, Any]:
        monkeypatch.setenv("VITASCOPE_API_KEY", key)
        return client({"data": []}, api_key=None if is_of_the_environment else key)  # type: ignore[no-any-return]

    for space in ("\n", "\r\n", " ", "\t"):
        one, server = open_with(f"{space}vs_key{space}")
        one.models()
        assert server.requests[0].headers["authorization"] == "Bearer vs_key"
    for bad in (
        "vs_sec ret",
        "vs_sec\nret",
        "vs_sec\rret",
        "vs_sec\x7fret",
        "vs_sec\x1bret",
        "vs_secrét",
        "vs_sec€ret",
    ):
        with pytest.raises(VitascopeError, match="printable ASCII") as raised:
            open_with(bad)
        shown = "".join(traceback.format_exception_only(raised.value))
        assert "sec" not in shown
        assert (raised.value.__cause__, raised.value.__context__) == (None, None)
    for none in ("\n", " "):
        with pytest.raises(VitascopeError, match="VITASCOPE_API_KEY"):
            open_with(none)


@pytest.mark.parametrize("value", ["a\nb", "a ", "€"])
def test_what_no_header_can_hold_is_not_sent_and_not_tried_again(
    client: Any, recording_server: Any, pauses: list[float], value: str
) -> None:
    with client.open(base_url=f"http://127.0.0.1:{recording_server.server_port}", api_key="k") as one:
        for call in (
            lambda: one.videos.create(prompt="x", idempotency_key=value),
            lambda: next(iter(one.videos.stream(ID, last_event_id=value))),
        ):
            with pytest.raises(VitascopeError, match=r"cannot be sent|no header can") as raised:
                call()
            assert not isinstance(raised.value, APIError)
            assert repr(value.encode())[1:] not in "".join(traceback.format_exception(raised.value))
    assert (recording_server.asked, pauses) == ([], [])


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
    client: Any, status: int, code: str, kind: type[vitascope_client.APIStatusError]
) -> None:
    one, _ = client(failure(status, code, "seconds"), max_retries=0)
    with pytest.raises(kind, match="No") as raised:
        one.videos.create(prompt="x")
    error = raised.value
    assert (error.status, error.code, error.param, error.request_id) == (status, code, "seconds", "req_1")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"error": "text"}', b"{}", b""])
def test_an_error_that_is_not_ours_is_still_one(client: Any, body: bytes) -> None:
    one, _ = client(httpx.Response(502, content=body), max_retries=0)
    with pytest.raises(ServerError, match="502"):
        one.videos.retrieve(ID)


def test_an_answer_that_is_not_json_asks_for_the_address(client: Any) -> None:
    one, _ = client(httpx.Response(200, content=b"<html>"))
    with pytest.raises(APIError, match="base_url"):
        one.videos.retrieve(ID)


@pytest.mark.parametrize("body", [{"ok": True}, {"id": ID}, {"data": [{"ok": True}]}, {"data": None}, [], "no", None])
def test_json_of_another_server_asks_for_the_address(client: Any, body: Any) -> None:
    for call in (
        lambda one: one.videos.create(prompt="x"),
        lambda one: one.videos.estimate(prompt="x"),
        lambda one: one.videos.retrieve(ID),
        lambda one: one.videos.wait(ID),
        lambda one: one.videos.delete(ID),
        lambda one: next(iter(one.videos.list())),
        lambda one: one.models(),
        lambda one: one.admin.drain("default"),
    ):
        one, server = client(httpx.Response(200, json=body))
        with pytest.raises(APIError, match=r"http://gateway\.test did not answer as Vitascope does; is base_url right"):
            call(one)
        assert len(server.requests) == 1


def test_what_may_be_repeated_is(client: Any, pauses: list[float]) -> None:
    one, server = client(failure(503), httpx.ReadTimeout("slow"), httpx.ConnectError("away"), failure(429), VIDEO)
    assert one.videos.retrieve(ID).id == ID
    assert len(server.requests) == 5
    assert len(pauses) == 4
    assert pauses[3] > pauses[0]
    one, server = client(failure(503), max_retries=2)
    with pytest.raises(ServerError):
        one.videos.delete(ID)
    assert len(server.requests) == 3


def test_the_server_says_when_to_come_back_and_whether(client: Any, pauses: list[float]) -> None:
    answers = [
        failure(503, **{"retry-after": "7"}),
        failure(503, **{"retry-after": "soon"}),
        failure(429, **{"retry-after-ms": "9500", "retry-after": "60"}),
        failure(429, **{"retry-after": format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)}),
    ]
    one, _ = client(*answers, VIDEO)
    one.videos.retrieve(ID)
    assert (pauses[0], pauses[2]) == (7.0, 9.5)
    assert pauses[1] < 1
    assert 40 < pauses[3] <= 50
    one, server = client(failure(429, **{"x-should-retry": "false"}), VIDEO)
    with pytest.raises(RateLimitError):
        one.videos.retrieve(ID)
    assert len(server.requests) == 1
    one, server = client(failure(409, **{"x-should-retry": "true"}), VIDEO)
    one.videos.retrieve(ID)
    assert len(server.requests) == 2


def test_a_date_that_no_calendar_has_is_not_obeyed(client: Any, pauses: list[float]) -> None:
    one, _ = client(failure(503, **{"retry-after": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}), VIDEO)
    one.videos.retrieve(ID)
    assert len(pauses) == 1
    assert pauses[0] < 1


def test_nobody_is_kept_waiting_for_more_than_two_minutes(client: Any, pauses: list[float]) -> None:
    for call in (
        lambda videos: videos.create(prompt="x"),
        lambda videos: next(iter(videos.stream(ID))),
        lambda videos: videos.download(ID),
    ):
        one, server = client(failure(429, "quota_exceeded", **{"retry-after": "3600"}))
        with pytest.raises(RateLimitError) as raised:
            call(one.videos)
        assert raised.value.retry_after_s == 3600.0
        assert len(server.requests) == 1
    assert pauses == []


def test_streams_and_downloads_stop_when_the_server_says(client: Any) -> None:
    for call in (lambda videos: next(iter(videos.stream(ID))), lambda videos: videos.download(ID)):
        one, server = client(failure(503, **{"x-should-retry": "false"}))
        with pytest.raises(ServerError):
            call(one.videos)
        assert len(server.requests) == 1


def test_streams_and_downloads_come_back_when_the_server_says(client: Any, pauses: list[float]) -> None:
    one, _ = client(failure(503, **{"retry-after": "9"}), stream(("1-0", "completed", {})))
    assert [event.id for event in one.videos.stream(ID)] == ["1-0"]
    one, _ = client(failure(429, **{"retry-after": "11"}), httpx.Response(200, content=b"film"))
    assert one.videos.download(ID) == b"film"
    assert pauses == [9.0, 11.0]


def test_a_server_that_redirects_for_ever_is_an_error_of_ours(client: Any) -> None:
    one, _ = client(lambda request: httpx.Response(302, headers={"location": str(request.url)}))
    for call in (one.videos.retrieve, one.videos.download):
        with pytest.raises(APIError, match="cannot be read"):
            call(ID)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "origin"),
    [
        ("https://user:secret@moved.test:8443/secret?token=secret", "https://moved.test:8443"),
        ("/secret/", "http://gateway.test"),
    ],
)
def test_nothing_but_reading_is_redirected(
    client: Any, pauses: list[float], status: int, location: str, origin: str
) -> None:
    for method, call in (
        ("POST", lambda one: one.videos.create(prompt="x")),
        ("POST", lambda one: one.videos.edit(video=b"film", prompt="x")),
        ("POST", lambda one: one.videos.cancel(ID)),
        ("POST", lambda one: one.admin.drain("default")),
        ("DELETE", lambda one: one.videos.delete(ID)),
    ):
        one, server = client(httpx.Response(status, headers={"location": location}), VIDEO)
        with pytest.raises(APIError, match=f"redirects this {method} to {origin}; is base_url right") as raised:
            call(one)
        assert "secret" not in str(raised.value)
        assert not isinstance(raised.value, _errors.TRANSIENT)
        assert len(server.requests) == 1
        one, server = client(httpx.Response(status, headers={"location": location}), VIDEO)
        assert one.videos.retrieve(ID).id == ID
        assert server.requests[1].headers.get("authorization") == (None if "moved" in origin else "Bearer vs_key")
    assert pauses == []


def test_a_redirect_that_leads_nowhere_is_an_error(client: Any) -> None:
    for call in (lambda one: one.delete(ID), lambda one: one.download(ID), lambda one: next(iter(one.stream(ID)))):
        one, server = client(httpx.Response(304))
        with pytest.raises(InvalidRequestError, match="304"):
            call(one.videos)
        assert len(server.requests) == 1


def test_videos_are_made_from_videos(client: Any, tmp_path: Path) -> None:
    made = {**VIDEO, "id": "video_2", "remixed_from_video_id": ID}
    one, server = client(made)
    assert one.videos.remix(ID, prompt="at night", strength=0.5).remixed_from_video_id == ID
    one.videos.edit(video=ID, prompt="at night")
    one.videos.extend(video=ID, prompt="and on", seconds=4)
    sent = [(request.url.path, json.loads(request.content)) for request in server.requests]
    assert sent == [
        (f"/v1/videos/{ID}/remix", {"prompt": "at night", "strength": 0.5}),
        ("/v1/videos/edits", {"prompt": "at night", "video": {"id": ID}}),
        ("/v1/videos/extensions", {"prompt": "and on", "seconds": "4", "video": {"id": ID}}),
    ]
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 3

    path = tmp_path / "cat.webm"
    path.write_bytes(b"film")
    for video, filename, media_type in ((path, "cat.webm", "video/webm"), (b"film", "video.mp4", "video/mp4")):
        one, server = client(failure(503), VIDEO)
        one.videos.edit(video=video, prompt="at night", seed=0, metadata={"a": "b"}, webhook_events=["x"])
        again, first = server.requests[1], server.requests[0]
        assert again.headers["content-type"].startswith("multipart/form-data; boundary=")
        assert first.headers["idempotency-key"] == again.headers["idempotency-key"]
        text = again.content.decode()
        assert f'name="video"; filename="{filename}"\r\nContent-Type: {media_type}\r\n\r\nfilm\r\n' in text
        for field in (
            'prompt"\r\n\r\nat night',
            'seed"\r\n\r\n0',
            'metadata[a]"\r\n\r\nb',
            'webhook_events"\r\n\r\n["x"]',
        ):
            assert f'name="{field}\r\n' in text
    one, server = client(failure(400, "unsupported", "model"))
    with pytest.raises(InvalidRequestError):
        one.videos.extend(video=ID, prompt="x", seconds="4")


def test_an_estimate_asks_with_the_fields_of_create_and_makes_nothing(client: Any) -> None:
    said = {"model": "tiny", "seconds": "4", "size": "64x64", "price": 0.2, "wait_seconds": None, "run_seconds": 8.5}
    one, server = client(said)
    estimate = one.videos.estimate(prompt="x", seconds=4, size=None)
    assert (estimate.usd, estimate.wait_seconds, estimate.run_seconds, estimate.raw) == (0.2, None, 8.5, said)
    (request,) = server.requests
    assert (request.method, request.url.path) == ("POST", "/v1/videos/estimate")
    assert json.loads(request.content) == {"prompt": "x", "seconds": "4"}
    assert "idempotency-key" not in request.headers


def test_what_creates_a_video_is_repeated_under_the_key_of_its_call(client: Any) -> None:
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


@pytest.mark.parametrize("lost", [httpx.ReadTimeout("slow"), httpx.ReadError("broken"), lambda _: failure(503)])
def test_a_delete_whose_answer_was_lost_and_that_then_finds_nothing_has_succeeded(client: Any, lost: Any) -> None:
    one, server = client(lost, failure(404, "not_found"))
    one.videos.delete(ID)
    assert len(server.requests) == 2


def test_a_delete_that_was_never_carried_out_and_finds_nothing_has_not(client: Any) -> None:
    for answers in ((failure(404, "not_found"),), (httpx.ConnectError("away"), failure(404, "not_found"))):
        one, _ = client(*answers)
        with pytest.raises(NotFoundError):
            one.videos.delete(ID)


def test_cancel_may_be_repeated(client: Any) -> None:
    one, server = client(httpx.ReadError("broken"), failure(503), VIDEO)
    assert one.videos.cancel(ID).id == ID
    assert len(server.requests) == 3
    one, _ = client(httpx.ReadError("broken"), failure(404, "not_found"))
    with pytest.raises(NotFoundError):
        one.videos.cancel(ID)


def test_a_list_fetches_pages_as_they_are_needed(client: Any) -> None:
    def page(*ids: str, has_more: bool = True) -> dict[str, Any]:
        return {"data": [{**VIDEO, "id": one} for one in ids], "last_id": ids[-1], "has_more": has_more}

    api, server = client(page("a", "b"), page("c", has_more=False))
    videos = api.videos.list(order="asc", after="0")
    assert [next(videos).id, next(videos).id] == ["a", "b"]
    assert len(server.requests) == 1
    assert [one.id for one in videos] == ["c"]
    asked = [dict(request.url.params) for request in server.requests]
    assert asked == [{"after": "0", "limit": "100", "order": "asc"}, {"after": "b", "limit": "100", "order": "asc"}]


def test_a_list_ends_at_its_limit_and_with_a_server_that_promises_more_but_has_nothing(client: Any) -> None:
    def endless(request: httpx.Request) -> dict[str, Any]:
        return {"data": [VIDEO] * int(request.url.params["limit"]), "last_id": ID, "has_more": True}

    api, server = client(lambda request: httpx.Response(200, json=endless(request)))
    assert len(list(api.videos.list(limit=150))) == 150
    assert [request.url.params["limit"] for request in server.requests] == ["100", "50"]
    api, server = client({"data": [], "last_id": ID, "has_more": True})
    assert list(api.videos.list()) == []
    assert len(server.requests) == 1


def test_cancel_shows_why_it_failed(client: Any) -> None:
    error = {"code": "cancelled", "message": "It was cancelled."}
    one, server = client({**VIDEO, "status": "failed", "error": error})
    video = one.videos.cancel(ID)
    assert video.error is not None
    assert (video.error.code, video.is_finished) == ("cancelled", True)
    assert (server.requests[0].method, server.requests[0].url.path) == ("POST", f"/v1/videos/{ID}/cancel")


@pytest.mark.parametrize("video_id", ["", ".", "..", None])
def test_an_id_that_is_none_never_reaches_the_server(client: Any, video_id: Any) -> None:
    one, server = client(VIDEO)
    with pytest.raises(VitascopeError, match="not the id"):
        one.videos.delete(video_id)
    assert server.requests == []


def test_an_id_cannot_lead_elsewhere(client: Any) -> None:
    one, server = client(VIDEO)
    one.videos.retrieve("../models?x=1#y")
    assert server.requests[0].url.raw_path == b"/v1/videos/..%2Fmodels%3Fx%3D1%23y"


def test_events_end_with_the_last_one(client: Any) -> None:
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


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_line_of_events_ends_where_the_standard_says_and_nowhere_else(client: Any, end: str) -> None:
    lines = ["id: 1-0", "event:snapshot", 'data: {"prompt": "a\u2028b\x85c",', 'data:"id": "é"}', "", ":", "id", "data"]
    lines += ["event: completed", "data: {}", "", ""]
    body = end.join(lines).encode()
    pieces = Chunks(body[place : place + 1] for place in range(len(body)))
    one, _ = client(lambda _: httpx.Response(200, stream=pieces, headers=EVENTS))
    events = one.videos.stream(ID)
    assert next(events) == Event("1-0", "snapshot", {"prompt": "a\u2028b\x85c", "id": "é"})


def test_an_event_that_is_not_json_is_an_error(client: Any) -> None:
    one, server = client(httpx.Response(200, content=b"data: {\n\n", headers=EVENTS))
    with pytest.raises(APIError, match="cannot be read"):
        list(one.videos.stream(ID))
    assert len(server.requests) == 1


def test_events_resume_after_the_last_one_seen_whatever_breaks(client: Any) -> None:
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


def test_a_place_in_the_queue_does_not_move_where_a_broken_stream_resumes(client: Any) -> None:
    place = ("", "queued", {"position": 2, "eta_s": 40.0})
    api, server = client(stream(("1-0", "queued", {}), place, cut=True), stream(("2-0", "completed", {})))
    found = list(api.videos.stream(ID))
    assert [(one.type, one.id, one.data.get("position")) for one in found] == [
        ("queued", "1-0", None),
        ("queued", "", 2),
        ("completed", "2-0", None),
    ]
    assert server.requests[1].headers["last-event-id"] == "1-0"


def test_a_snapshot_is_a_video_and_may_be_the_last_event(client: Any) -> None:
    running = {**VIDEO, "status": "in_progress", "type": "snapshot"}
    one, server = client(
        stream(("", "snapshot", running), ("5-0", "progress", {}), cut=True),
        stream(("", "snapshot", {**running, "status": "completed"})),
    )
    first, _, last = one.videos.stream(ID, last_event_id="1-0")
    assert first.video is not None
    assert (first.video.status, first.is_last, last.is_last) == ("in_progress", False, True)
    assert [request.headers["last-event-id"] for request in server.requests] == ["1-0", "5-0"]


def test_events_of_a_job_whose_end_was_seen_are_none(client: Any) -> None:
    one, _ = client(httpx.Response(204))
    assert list(one.videos.stream(ID, last_event_id="9-0")) == []


def test_events_of_nothing_are_an_error_at_once(client: Any) -> None:
    one, server = client(failure(404, "not_found"))
    with pytest.raises(NotFoundError):
        list(one.videos.stream(ID))
    assert len(server.requests) == 1


def test_a_server_that_stays_away_is_given_up(client: Any) -> None:
    one, _ = client(httpx.ConnectError("away"))
    with pytest.raises(APIConnectionError):
        list(one.videos.stream(ID, give_up_s=0.0))


def test_a_server_that_ends_every_stream_at_once_is_given_up(client: Any, pauses: list[float]) -> None:
    def empty(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"retry: 1000\n\n", headers=EVENTS)

    one, server = client(empty)
    with pytest.raises(APIConnectionError, match="ended the stream"):
        list(one.videos.stream(ID, give_up_s=0.02))
    assert len(server.requests) > 1
    assert len(pauses) == len(server.requests) - 1


def test_heartbeats_are_a_sign_of_life_and_so_is_the_caller(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    set_clock(monkeypatch, lambda: now_s)

    def beats(_: httpx.Request) -> httpx.Response:
        def chunks() -> Iterator[bytes]:
            nonlocal now_s
            now_s += 100.0
            yield b": heartbeat\n\n"
            raise httpx.ReadError("the connection broke")

        return httpx.Response(200, stream=Chunks(chunks()), headers=EVENTS)

    one, _ = client(beats, beats, stream(("1-0", "queued", {}), cut=True), stream(("2-0", "completed", {})))
    seen = []
    for event in one.videos.stream(ID, give_up_s=120.0):
        seen.append(event.type)
        now_s += 500.0  # a caller that takes its time
    assert seen == ["queued", "completed"]


POLLED = {"openai-poll-after-ms": "250"}
DONE = {**VIDEO, "status": "completed", "phase": "completed", "progress": 100, "steps_done": 2, "steps_total": 2}
FOUND = [
    Progress("queued", eta_s=9.5, position=1),
    Progress("denoising", 50.0, 1, 2, 3.0),
    Progress("decoding", 50.0, 1, 2),
    Progress("completed", 100.0, 2, 2),
]


def test_wait_tells_the_progress_as_it_comes(client: Any, pauses: list[float]) -> None:
    story = stream(
        ("1-0", "queued", {}),
        ("", "queued", {"position": 1, "eta_s": 9.5}),
        ("2-0", "progress", {"step": 1, "steps": 2, "percent": 50.0, "phase": "denoising", "eta_s": 3.0}),
        ("3-0", "checkpoint", {"step": 1}),
        ("4-0", "decoding", {}),
        ("5-0", "completed", {}),
    )
    one, server = client(VIDEO, story, DONE)
    told: list[Progress] = []
    assert one.videos.wait(ID, on_progress=told.append).is_finished
    assert told == [Progress("queued"), *FOUND]
    assert [request.url.path.rpartition("/")[2] for request in server.requests] == [ID, "events", ID]
    assert pauses == []


def test_wait_goes_on_over_a_stream_that_breaks_and_tells_nothing_twice(client: Any) -> None:
    half = {"step": 1, "steps": 2, "percent": 50.0, "phase": "denoising"}
    first = stream(("1-0", "progress", half), cut=True)
    one, server = client(VIDEO, first, stream(("2-0", "completed", {})), DONE)
    told: list[Progress] = []
    one.videos.wait(ID, on_progress=told.append)
    assert [now.phase for now in told] == ["denoising", "completed"]
    assert server.requests[2].headers["last-event-id"] == "1-0"


@pytest.mark.parametrize(
    "no_stream",
    [lambda _: failure(404), lambda _: httpx.Response(200, content=b"<html>"), lambda _: failure(401)],
    ids=["no such route", "another page", "refused"],
)
def test_wait_polls_as_often_as_the_server_says_where_no_events_arrive(
    client: Any, pauses: list[float], no_stream: Any
) -> None:
    def poll(_: httpx.Request) -> httpx.Response:
        half = {"status": "in_progress", "phase": "denoising", "progress": 50, "steps_done": 1, "steps_total": 2}
        return httpx.Response(200, json={**VIDEO, **half}, headers=POLLED)

    one, server = client(VIDEO, no_stream, poll, lambda _: failure(503), poll, DONE, max_retries=0)
    told: list[Progress] = []
    assert one.videos.wait(ID, on_progress=told.append).progress == 100
    assert pauses == [0.25, 1.0, 0.25]
    assert told == [Progress("denoising", 50, 1, 2), Progress("completed", 100, 2, 2)]
    assert sum(request.url.path.endswith("/events") for request in server.requests) == 1


def test_wait_gives_up_the_stream_of_a_server_that_stays_away_and_polls(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0

    def away(_: httpx.Request) -> httpx.Response:
        nonlocal now_s
        now_s += 6.0
        raise httpx.ConnectError("away")

    set_clock(monkeypatch, lambda: now_s)
    one, server = client(VIDEO, away, away, away, DONE)
    assert one.videos.wait(ID, timeout_s=60.0).is_finished
    assert [request.url.path.rpartition("/")[2] for request in server.requests] == [ID, *["events"] * 3, ID]


def quiet(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    """Return what says one event, then nothing for 12 s, and ends with this error."""
    now_s = 0.0

    def answer(_: httpx.Request) -> httpx.Response:
        def chunks() -> Iterator[bytes]:
            nonlocal now_s
            yield b"id: 1-0\nevent: queued\ndata: {}\n\n"
            now_s += 12.0
            raise error

        return httpx.Response(200, stream=Chunks(chunks()), headers=EVENTS)

    set_clock(monkeypatch, lambda: now_s)
    return answer


def test_wait_reconnects_to_a_server_that_breaks_off_after_a_quiet_while(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = quiet(monkeypatch, httpx.ReadError("the connection broke"))
    one, server = client(VIDEO, cut, httpx.ConnectError("it restarts"), stream(("2-0", "completed", {})), DONE)
    assert one.videos.wait(ID).is_finished
    assert [request.url.path.rpartition("/")[2] for request in server.requests] == [ID, *["events"] * 3, ID]
    assert server.requests[3].headers["last-event-id"] == "1-0"


def test_wait_polls_where_a_stream_is_silent_and_does_not_listen_past_its_time(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, server = client(VIDEO, quiet(monkeypatch, httpx.ReadTimeout("silence")), DONE)
    assert one.videos.wait(ID).is_finished
    assert len(server.requests) == 3
    one, server = client(VIDEO, quiet(monkeypatch, httpx.ReadError("the connection broke")), DONE)
    assert one.videos.wait(ID, timeout_s=40.0).is_finished
    assert len(server.requests) == 3


def test_wait_asks_again_when_the_server_says_and_not_if_it_does_not_want_it(client: Any, pauses: list[float]) -> None:
    one, server = client(lambda _: failure(429, **{"retry-after": "7"}), DONE, max_retries=0)
    assert one.videos.wait(ID).is_finished
    assert [request.url.path.rpartition("/")[2] for request in server.requests] == [ID, ID]
    assert pauses == [7.0]
    for headers in ({"retry-after": "3600"}, {"x-should-retry": "false"}):
        one, server = client(failure(429, "quota_exceeded", **headers))
        with pytest.raises(RateLimitError):
            one.videos.wait(ID)
        assert len(server.requests) == 1


def test_wait_ends_in_time(client: Any, monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    one, server = client(lambda _: httpx.Response(200, json=VIDEO, headers=POLLED))
    with pytest.raises(APITimeoutError, match="not finished"):
        one.videos.wait(ID, timeout_s=0.0)
    assert len(server.requests) == 1

    now_s = 0.0

    def beats(_: httpx.Request) -> httpx.Response:
        def chunks() -> Iterator[bytes]:
            nonlocal now_s
            while True:
                now_s += 15.0
                yield b": heartbeat\n\n"

        return httpx.Response(200, stream=Chunks(chunks()), headers=EVENTS)

    def poll(_: httpx.Request) -> httpx.Response:
        nonlocal now_s
        now_s += 10.0
        return httpx.Response(200, json=VIDEO, headers=POLLED)

    set_clock(monkeypatch, lambda: now_s)
    one, _ = client(VIDEO, beats, poll)
    with pytest.raises(APITimeoutError):
        one.videos.wait(ID, timeout_s=100.0)
    assert now_s == 105.0  # four heartbeats and a fifth, then three polls


class Clock:
    """Time that passes while the client waits for the server, and between its requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        set_clock(monkeypatch, lambda: self.now_s)
        monkeypatch.setattr(_runtime, "sleep", self.pass_)
        monkeypatch.setattr(_runtime, "async_sleep", self._async_pass)

    def pass_(self, seconds: float) -> None:
        self.now_s += seconds

    async def _async_pass(self, seconds: float) -> None:
        self.now_s += seconds

    def silent(self, request: httpx.Request) -> httpx.Response:
        """Answer nothing for as long as the client listens."""
        self.now_s += request.extensions["timeout"]["read"]
        raise httpx.ReadTimeout("silence")

    def silent_connect(self, request: httpx.Request) -> httpx.Response:
        self.now_s += request.extensions["timeout"]["connect"]
        raise httpx.ConnectTimeout("silence")

    def late_stream(self, request: httpx.Request) -> httpx.Response:
        if request.extensions["timeout"]["read"] < 20.0:
            return self.silent(request)
        self.now_s += 20.0
        return self.silent_stream(request)

    def silent_stream(self, request: httpx.Request) -> httpx.Response:
        def chunks() -> Iterator[bytes]:
            self.now_s += request.extensions["timeout"]["read"]
            raise httpx.ReadTimeout("silence")
            yield b""

        return httpx.Response(200, stream=Chunks(chunks()), headers=EVENTS)


@pytest.mark.parametrize("timeout_s", [0.5, 40.0, 200.0])
@pytest.mark.parametrize(
    "refusal",
    [
        lambda clock: clock.silent,
        lambda clock: clock.silent_connect,
        lambda _: lambda _: failure(503, **{"retry-after": "100"}),
        lambda _: lambda _: failure(429, **{"retry-after": "100"}),
    ],
    ids=["silent", "not reached", "503 for 100 s", "429 for 100 s"],
)
@pytest.mark.parametrize("when", ["from the start", "once it was seen", "after a silent stream", "after a late one"])
def test_wait_ends_in_time_whatever_the_server_does(
    client: Any, monkeypatch: pytest.MonkeyPatch, timeout_s: float, refusal: Any, when: str
) -> None:
    clock = Clock(monkeypatch)
    first = {
        "from the start": [],
        "once it was seen": [VIDEO],
        "after a silent stream": [VIDEO, clock.silent_stream],
        "after a late one": [VIDEO, clock.late_stream],
    }
    one, server = client(*first[when], refusal(clock))
    with pytest.raises(APITimeoutError, match="not finished after"):
        one.videos.wait(ID, timeout_s=timeout_s)
    assert timeout_s <= clock.now_s <= timeout_s + 0.26
    assert max(request.extensions["timeout"]["read"] for request in server.requests) <= min(max(timeout_s, 0.25), 60.0)


def test_wait_looks_a_last_time_when_its_time_is_up_unless_the_server_wants_patience(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    poll = httpx.Response(200, json=VIDEO, headers={"openai-poll-after-ms": "5000"})
    one, _ = client(poll, DONE)
    assert one.videos.wait(ID, timeout_s=2.0).is_finished
    assert clock.now_s == 2.0
    one, server = client(failure(503, **{"retry-after": "5"}), DONE)
    with pytest.raises(APITimeoutError) as raised:
        one.videos.wait(ID, timeout_s=2.0)
    assert isinstance(raised.value.__cause__, ServerError)
    assert (clock.now_s, len(server.requests)) == (4.0, 1)


def test_what_the_progress_callback_raises_reaches_the_caller(client: Any) -> None:
    def stop(_: Progress) -> None:
        raise APIError("enough")

    one, _ = client(VIDEO, stream(("1-0", "queued", {})), DONE)
    with pytest.raises(APIError, match="enough"):
        one.videos.wait(ID, on_progress=stop)


def test_a_snapshot_says_where_a_video_stands() -> None:
    waiting = {**VIDEO, "phase": "queued", "queue_position": 3, "eta_seconds": 8.0}
    assert Progress().after(Event("", "snapshot", waiting)) == Progress("queued", eta_s=8.0, position=3)
    assert Progress().after(Event("", "snapshot", DONE)) == Progress("completed", 100, 2, 2)
    assert Progress("denoising", 50.0, 1, 2).after(Event("", "preempted", {})) == Progress("queued", 50.0, 1, 2)
    assert Progress("queued", position=1).after(Event("", "started", {})) == Progress("loading")
    assert Progress("denoising", steps=2).after(Event("", "started", {})) == Progress("denoising", steps=2)
    assert Progress("denoising", 50.0, 1, 2, 3.0).after(Event("", "new", {})) == Progress("denoising", 50.0, 1, 2, 3.0)


def redirect(request: httpx.Request) -> httpx.Response:
    return httpx.Response(302, headers={"location": "http://delivery.test/videos/x/video?signature=s"})


def test_download_returns_bytes_or_writes_a_file_and_keeps_the_key_here(client: Any, tmp_path: Path) -> None:
    for target in (None, tmp_path / "video.mp4"):
        one, server = client(redirect, httpx.Response(200, content=b"film"))
        got = one.videos.download(ID, target, variant="thumbnail") if target else one.videos.download(ID)
        assert (got.read_bytes() if isinstance(got, Path) else got) == b"film"
        assert "authorization" in server.requests[0].headers
        assert "authorization" not in server.requests[1].headers
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


def test_a_download_that_breaks_leaves_no_half_file_and_is_tried_again(client: Any, tmp_path: Path) -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        def chunks() -> Iterator[bytes]:
            yield b"fi"
            raise httpx.ReadError("the connection broke")

        return httpx.Response(200, stream=Chunks(chunks()))

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


def test_a_video_that_is_not_there_says_why(client: Any) -> None:
    one, _ = client(failure(404, "video_not_ready"))
    with pytest.raises(NotFoundError) as early:
        one.videos.download(ID)
    assert early.value.code == "video_not_ready"


@pytest.mark.parametrize("value", [{"prompt": "\udcff"}, {"prompt": "x", "guidance_scale": float("nan")}])
def test_what_json_cannot_say_is_one_clear_error(client: Any, value: dict[str, Any]) -> None:
    one, _ = client(VIDEO)
    with pytest.raises(VitascopeError, match="cannot be sent"):
        one.videos.create(**value)


def test_pictures_go_out_as_data_urls_whatever_they_were(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"picture")
    sent = "base64," + base64.b64encode(b"picture").decode()
    for given, url in (
        (path, f"data:image/png;{sent}"),
        (str(path), f"data:image/png;{sent}"),
        (b"picture", f"data:application/octet-stream;{sent}"),
        ("data:image/webp;base64,AAAA", "data:image/webp;base64,AAAA"),
        ("https://pictures.test/cat.png", "https://pictures.test/cat.png"),
    ):
        one, server = client(VIDEO)
        one.videos.create(prompt="x", input_reference=given, last_frame=given)
        body = json.loads(server.requests[0].content)
        assert (body["input_reference"], body["last_frame"]) == (url, url)
    one, server = client(VIDEO)
    with pytest.raises(FileNotFoundError):
        one.videos.create(prompt="x", input_reference=tmp_path / "dog.png")
    assert server.requests == []
