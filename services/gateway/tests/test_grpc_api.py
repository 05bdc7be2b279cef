"""VideoService says what REST says: the same jobs, the same refusals, the same request sent twice."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict
from hashlib import sha256
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from PIL import Image

from vitascope_common.jobs import Artifact
from vitascope_gateway import hook
from vitascope_gateway import request as request_room
from vitascope_gateway.body import MAX_BODY_BYTES
from vitascope_gateway.grpc_api import edge as edge_module
from vitascope_gateway.grpc_api.server import make_server
from vitascope_gateway.grpc_api.wire import has_many_fields
from vitascope_gateway.objects import Video
from vitascope_gateway.places import Places
from vitascope_proto.v1 import videos_pb2 as pb
from vitascope_proto.v1.videos_pb2_grpc import VideoServiceStub

ABSENT = "video_" + "0" * 32
SERVICE = "/vitascope.v1.VideoService/"


class Answer(NamedTuple):
    """What a call came to: a message, or an error."""

    message: Any
    status: grpc.StatusCode
    text: str
    code: str
    param: str | None
    trailing: dict[str, str]
    details: list[Any]


class Calls:
    """A gRPC client in the loop of the server."""

    def __init__(self, inside: Any, address: str, channel: grpc.aio.Channel) -> None:
        self.inside = inside
        self.address = address
        self.channel = channel
        self.stub = VideoServiceStub(channel)

    def __call__(self, name: str, request: Any, *, tenant: str | None = "acme", **metadata: str) -> Answer:
        answer: Answer = self.inside.runner.run(self.call(getattr(self.stub, name), request, tenant, metadata))
        return answer

    async def call(self, method: Any, request: Any, tenant: str | None, metadata: dict[str, str]) -> Answer:
        given = {name.replace("_", "-"): value for name, value in metadata.items()}
        if tenant:
            given.setdefault("authorization", f"Bearer {self.inside.keys[tenant]}")
        call = method(request, metadata=tuple(given.items()), timeout=20)
        try:
            message = await call
        except grpc.aio.AioRpcError as error:
            found = _details(error)
            info = found.get("ErrorInfo")
            facts = dict(info.metadata) if info else {}
            trailing = dict(error.trailing_metadata() or ())
            return Answer(
                None,
                error.code(),
                error.details() or "",
                facts.get("code", ""),
                facts.get("param") or None,
                trailing,
                list(found.values()),
            )
        return Answer(message, await call.code(), "", "", None, dict(await call.trailing_metadata()), [])


def _details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    status = rpc_status.from_call(error)
    found: dict[str, Any] = {}
    for packed in status.details if status else ():
        kind = packed.type_url.rpartition(".")[2]
        one = getattr(error_details_pb2, kind)()
        assert packed.Unpack(one)
        found[kind] = one
    return found


@pytest.fixture
def calls(inside: Any) -> Iterator[Calls]:
    async def start() -> tuple[Any, grpc.aio.Channel]:
        server = make_server("127.0.0.1", 0, inside.video_api, inside.gateway, has_reflection=False)
        await server.start()
        options = [("grpc.max_send_message_length", -1)]
        return server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options)

    server, channel = inside.runner.run(start())
    yield Calls(inside, f"127.0.0.1:{server.port}", channel)

    async def stop() -> None:
        await channel.close()
        await server.drain(0)
        await inside.video_api.drain(5)

    inside.runner.run(stop())


def create(prompt: str = "a red circle", **fields: Any) -> pb.CreateVideoRequest:
    return pb.CreateVideoRequest(prompt=prompt, **fields)


def made(answer: Answer) -> str:
    assert answer.status is grpc.StatusCode.OK, answer
    assert "idempotent-replayed" not in answer.trailing
    return str(answer.message.id)


def picture() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    return data.getvalue()


def test_both_apis_show_the_same_video(inside: Any, calls: Calls) -> None:
    request = create(
        seconds="2",
        size="96x64",
        seed=2**32 - 1,
        num_inference_steps=30,
        guidance_scale=1.5,
        negative_prompt="blue",
        metadata={"project": "demo"},
        priority=-3,
        service_class="batch",
        deadline_s=3600,
    )
    created = calls("CreateVideo", request)
    shown = inside.request("GET", f"/v1/videos/{created.message.id}").json()
    got = calls("GetVideo", pb.GetVideoRequest(video_id=created.message.id)).message
    for name in pb.Video.DESCRIPTOR.fields_by_name:
        if name not in ("status", "error", "cost", "estimated_completion_at"):
            is_map = name in ("metadata", "stage_durations")
            value = getattr(got, name) if is_map or _is_set(got, name) else None
            assert (dict(value) if is_map else value) == shown[name], name
    assert got.estimated_completion_at == pytest.approx(shown["estimated_completion_at"], abs=2)
    assert (got.cost.currency, got.cost.estimated) == ("USD", shown["cost"]["estimated"])
    assert not got.cost.HasField("charged")
    assert (got.status, shown["status"], got.HasField("error")) == (pb.VIDEO_STATUS_QUEUED, "queued", False)
    assert (got.seed, got.queue_position, got.eta_seconds, got.metadata["project"]) == (2**32 - 1, 2, 30.0, "demo")
    assert got.deadline_at - got.created_at == 3600
    (row, _) = inside.sql("SELECT * FROM tasks")
    assert (row["tenant_id"], row["class_name"], row["priority"]) == ("acme", "batch", -3)


def _is_set(message: Any, name: str) -> bool:
    field = message.DESCRIPTOR.fields_by_name[name]
    return not field.has_presence or message.HasField(name)


def test_a_video_has_the_fields_that_rest_shows(calls: Calls) -> None:
    """A new field of the REST object comes with its twin; URLs are REST's own."""
    of_rest = set(Video.model_fields) - {"object", "events_url", "websocket_url"}
    assert set(pb.Video.DESCRIPTOR.fields_by_name) == of_rest


def test_a_request_has_the_fields_that_rest_takes() -> None:
    assert set(pb.CreateVideoRequest.DESCRIPTOR.fields_by_name) == {*request_room.FIELDS, *hook.FIELDS}


def test_a_request_made_by_one_api_is_seen_by_the_other(inside: Any, calls: Calls) -> None:
    one = inside.request("POST", "/v1/videos", json={"prompt": "a"}).json()["id"]
    two = made(calls("CreateVideo", create("b")))
    assert {video.id for video in calls("ListVideos", pb.ListVideosRequest()).message.videos} == {one, two}
    assert {video["id"] for video in inside.request("GET", "/v1/videos").json()["data"]} == {one, two}
    assert calls("CancelVideo", pb.CancelVideoRequest(video_id=one)).message.id == one
    assert calls("DeleteVideo", pb.DeleteVideoRequest(video_id=two)).message.id == two
    assert inside.neighbours.cancelled == [("acme", one)]
    assert inside.neighbours.deleted == [("acme", two)]


def test_pages_of_both_apis_are_the_same(inside: Any, calls: Calls) -> None:
    for number in range(5):
        made(calls("CreateVideo", create(str(number))))
    inside.sql("UPDATE jobs SET created_at_ms = 1000 + prompt * 1000")
    for order, name in ((pb.ORDER_UNSPECIFIED, "desc"), (pb.ORDER_ASC, "asc"), (pb.ORDER_DESC, "desc")):
        after: str | None = None
        pages = []
        while True:
            request = pb.ListVideosRequest(limit=2, order=order, **({"after": after} if after else {}))
            page = calls("ListVideos", request).message
            query = f"?limit=2&order={name}" + (f"&after={after}" if after else "")
            twin = inside.request("GET", f"/v1/videos{query}").json()
            assert ([one.id for one in page.videos], page.has_more) == (
                [one["id"] for one in twin["data"]],
                twin["has_more"],
            )
            pages.append([one.prompt for one in page.videos])
            if not page.has_more:
                break
            after = page.videos[-1].id
        numbers = [*"01234"] if name == "asc" else [*"43210"]
        assert pages == [numbers[:2], numbers[2:4], numbers[4:]]


BAD: dict[str, tuple[Any, dict[str, Any]]] = {
    "no prompt": (pb.CreateVideoRequest(seed=1), {"seed": 1}),
    "blank prompt": (create("  "), {"prompt": "  "}),
    "long prompt": (create("x" * 201), {"prompt": "x" * 201}),
    "NUL in the prompt": (create("a\0b"), {"prompt": "a\0b"}),
    "refused prompt": (create("forbidden"), {"prompt": "forbidden"}),
    "model": (create(model="nope"), {"prompt": "a red circle", "model": "nope"}),
    "no model": (create(model=""), {"prompt": "a red circle", "model": ""}),
    "seconds": (create(seconds="7"), {"prompt": "a red circle", "seconds": "7"}),
    "size": (create(size="1x1"), {"prompt": "a red circle", "size": "1x1"}),
    "width alone": (create(width=96), {"prompt": "a red circle", "width": 96}),
    "width": (create(width=1, height=1), {"prompt": "a red circle", "width": 1, "height": 1}),
    "seed below": (create(seed=-1), {"prompt": "a red circle", "seed": -1}),
    "seed above": (create(seed=2**32), {"prompt": "a red circle", "seed": 2**32}),
    "steps": (create(num_inference_steps=0), {"prompt": "a red circle", "num_inference_steps": 0}),
    "guidance": (create(guidance_scale=20.5), {"prompt": "a red circle", "guidance_scale": 20.5}),
    "solver": (create(solver="x"), {"prompt": "a red circle", "solver": "x"}),
    "attention": (create(temporal_attention="x"), {"prompt": "a red circle", "temporal_attention": "x"}),
    "fps": (create(fps=9), {"prompt": "a red circle", "fps": 9}),
    "frames": (create(num_frames=9), {"prompt": "a red circle", "num_frames": 9}),
    "labels": (
        create(metadata={str(number): "" for number in range(17)}),
        {"prompt": "a red circle", "metadata": {str(number): "" for number in range(17)}},
    ),
    "long label": (create(metadata={"a": "x" * 513}), {"prompt": "a red circle", "metadata": {"a": "x" * 513}}),
    "deadline": (create(deadline_s=0.5), {"prompt": "a red circle", "deadline_s": 0.5}),
    "priority": (create(priority=101), {"prompt": "a red circle", "priority": 101}),
    "class": (create(service_class="x"), {"prompt": "a red circle", "service_class": "x"}),
    "plan": (create(service_class="realtime"), {"prompt": "a red circle", "service_class": "realtime"}),
    "picture": (
        create(input_reference=pb.Picture(url="data:image/png;base64,AAAA")),
        {"prompt": "a red circle", "input_reference": "data:image/png;base64,AAAA"},
    ),
    "picture inside": (
        create(input_reference=pb.Picture(url="https://127.0.0.1/x.png")),
        {"prompt": "a red circle", "input_reference": "https://127.0.0.1/x.png"},
    ),
    "webhook": (create(webhook_url="x"), {"prompt": "a red circle", "webhook_url": "x"}),
    "webhook events": (
        create(webhook_url="https://x.test/hook", webhook_events=["x"]),
        {"prompt": "a red circle", "webhook_url": "https://x.test/hook", "webhook_events": ["x"]},
    ),
    "events of no webhook": (
        create(webhook_events=["video.completed"]),
        {"prompt": "a red circle", "webhook_events": ["video.completed"]},
    ),
    "empty picture": (create(input_reference=pb.Picture()), {"prompt": "a red circle", "input_reference": ""}),
    "last frame alone": (
        create(last_frame=pb.Picture(url="data:image/png;base64,AAAA")),
        {"prompt": "a red circle", "last_frame": "data:image/png;base64,AAAA"},
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_both_apis_refuse_with_the_same_words(inside: Any, calls: Calls, case: str) -> None:
    message, body = BAD[case]
    answer, twin = calls("CreateVideo", message), inside.request("POST", "/v1/videos", json=body)
    error = twin.json()["error"]
    assert (answer.code, answer.param, answer.text) == (error["code"], error["param"], error["message"])
    expected = {400: grpc.StatusCode.INVALID_ARGUMENT, 403: grpc.StatusCode.PERMISSION_DENIED}
    assert answer.status is expected[twin.status_code]
    if twin.status_code == 400:
        (violation,) = answer.details[-1].field_violations
        assert (violation.field, violation.description) == (error["param"], error["message"])
    assert inside.sql("SELECT * FROM jobs") == []


def publish(inside: Any, video_id: str) -> None:
    """Do what post-processing and the job manager do."""
    data, key = b"what a published video is made of", f"videos/{video_id}/1/video.mp4"
    inside.objects.put_bytes(key, data, "video/mp4")
    outputs = json.dumps([asdict(Artifact("video", "video", "video/mp4", key, sha256(data).hexdigest(), len(data)))])
    inside.sql("UPDATE tasks SET outputs = ? WHERE job_id = ? AND stage = 'finish'", outputs, video_id)
    inside.sql("UPDATE jobs SET state = 'completed', finished_at_ms = 5000 WHERE job_id = ?", video_id)


def test_a_video_is_made_from_another_as_over_rest(inside: Any, calls: Calls) -> None:
    old = made(calls("CreateVideo", create(seconds="2", size="96x64")))
    publish(inside, old)
    clip, changes = pb.Clip(id=old), create("a blue circle", seed=3)
    ways = {
        f"{old}/remix": ("RemixVideo", pb.RemixVideoRequest(video_id=old, request=changes, strength=0.5), {}),
        "edits": ("EditVideo", pb.EditVideoRequest(video=clip, request=changes, strength=0.5), {"id": old}),
        "extensions": ("ExtendVideo", pb.ExtendVideoRequest(video=clip, request=changes), {"id": old}),
    }
    for path, (name, request, video) in ways.items():
        answer = calls(name, request, idempotency_key=name)
        assert (answer.message.remixed_from_video_id, answer.message.size) == (old, "96x64")
        body: dict[str, Any] = {"prompt": "a blue circle", "seed": 3}
        body |= {"video": video} if video else {}
        body |= {} if path == "extensions" else {"strength": 0.5}
        twin = inside.request("POST", f"/v1/videos/{path}", json=body, headers={"Idempotency-Key": name})
        assert (twin.status_code, twin.json()["id"]) == (200, made(answer)), name


@pytest.mark.parametrize("name", ["EditVideo", "ExtendVideo"])
@pytest.mark.parametrize("video", [None, "", "x", ABSENT, b"a file"])
def test_a_clip_that_cannot_be_had_is_told_as_over_rest(
    inside: Any, calls: Calls, name: str, video: str | bytes | None
) -> None:
    kind = pb.EditVideoRequest if name == "EditVideo" else pb.ExtendVideoRequest
    clip = None if video is None else pb.Clip(data=video) if isinstance(video, bytes) else pb.Clip(id=video)
    path = "/v1/videos/edits" if name == "EditVideo" else "/v1/videos/extensions"
    answer = calls(name, kind(video=clip, request=create()))
    if isinstance(video, bytes):
        files: Any = [("prompt", (None, "a red circle")), ("video", ("a.mp4", video))]
        twin = inside.request("POST", path, files=files)
    else:
        body = {"prompt": "a red circle"} | ({} if video is None else {"video": {"id": video}})
        twin = inside.request("POST", path, json=body)
    error = twin.json()["error"]
    assert (answer.code, answer.param, answer.text) == (error["code"], error["param"], error["message"])


def test_an_estimate_is_that_of_rest(inside: Any, calls: Calls) -> None:
    answer = calls("EstimateVideo", pb.EstimateVideoRequest(request=create(seconds="2"))).message
    twin = inside.request("POST", "/v1/videos/estimate", json={"prompt": "a red circle", "seconds": "2"}).json()
    del twin["object"]
    assert {name: getattr(answer, name) if _is_set(answer, name) else None for name in twin} == twin
    refused = calls("EstimateVideo", pb.EstimateVideoRequest(request=create(seconds="7")))
    assert (refused.code, refused.param) == ("invalid_request", "seconds")
    assert inside.sql("SELECT * FROM jobs") == []


@pytest.mark.parametrize(
    ("name", "request_", "path"),
    [
        ("GetVideo", pb.GetVideoRequest(video_id=ABSENT), f"GET /v1/videos/{ABSENT}"),
        ("GetVideo", pb.GetVideoRequest(video_id="a/../b"), "GET /v1/videos/x"),
        ("DeleteVideo", pb.DeleteVideoRequest(video_id=ABSENT), f"DELETE /v1/videos/{ABSENT}"),
        ("CancelVideo", pb.CancelVideoRequest(video_id=ABSENT), f"POST /v1/videos/{ABSENT}/cancel"),
        ("RetryVideo", pb.RetryVideoRequest(video_id=ABSENT), f"POST /v1/videos/{ABSENT}/retry"),
        ("GetVideoContent", pb.GetVideoContentRequest(video_id=ABSENT), f"GET /v1/videos/{ABSENT}/content"),
        (
            "GetVideoContent",
            pb.GetVideoContentRequest(video_id=ABSENT, variant="x"),
            f"GET /v1/videos/{ABSENT}/content?variant=x",
        ),
        ("ListVideos", pb.ListVideosRequest(limit=0), "GET /v1/videos?limit=0"),
        ("ListVideos", pb.ListVideosRequest(limit=101), "GET /v1/videos?limit=101"),
        ("ListVideos", pb.ListVideosRequest(after="x"), "GET /v1/videos?after=x"),
        ("ListVideos", pb.ListVideosRequest(order=7), "GET /v1/videos?order=x"),
    ],
)
def test_what_is_not_there_or_not_allowed_is_told_as_over_rest(
    inside: Any, calls: Calls, name: str, request_: Any, path: str
) -> None:
    answer, twin = calls(name, request_), inside.request(*path.split(" "))
    error = twin.json()["error"]
    assert (answer.code, answer.param) == (error["code"], error["param"])
    expected = {400: grpc.StatusCode.INVALID_ARGUMENT, 404: grpc.StatusCode.NOT_FOUND}
    assert answer.status is expected[twin.status_code]


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer ", "Bearer vs_nobody", "Basic {key}", "{key}"])
def test_nobody_without_a_key(inside: Any, calls: Calls, authorization: str) -> None:
    given = authorization.format(key=inside.keys["acme"])
    answer = calls("CreateVideo", create(), tenant=None, **({"authorization": given} if given else {}))
    twin = inside.request("GET", "/v1/videos", tenant=None, headers={"Authorization": given})
    error = twin.json()["error"]
    assert (answer.status, answer.code) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_api_key")
    assert (answer.code, answer.text) == (error["code"], error["message"])


def test_who_is_unknown_is_told_before_the_message_is_read(inside: Any, calls: Calls) -> None:
    """Else anybody could fill our memory."""

    async def never_sends() -> grpc.StatusCode:
        method = calls.channel.stream_unary(f"{SERVICE}CreateVideo")
        call = method(metadata=(("authorization", "Bearer vs_nobody"),), timeout=20)
        return await call.code()

    assert inside.runner.run(never_sends()) is grpc.StatusCode.UNAUTHENTICATED


def test_a_message_that_does_not_come_is_not_waited_for(
    inside: Any, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_module, "BODY_TIMEOUT_S", 0.05)

    async def never_sends() -> Answer:
        method = calls.channel.stream_unary(f"{SERVICE}CreateVideo")
        return await calls.call(lambda _, **given: method(**given), None, "acme", {})

    answer = inside.runner.run(never_sends())
    assert (answer.status, answer.code) == (grpc.StatusCode.INVALID_ARGUMENT, "body_too_slow")
    made(calls("CreateVideo", create()))


def test_messages_that_trickle_have_a_limit_together(
    inside: Any, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_module, "PROMPT_S", 0.05)
    monkeypatch.setattr(edge_module, "ARRIVING", Places("bytes are arriving", 3 * MAX_BODY_BYTES, 2 * MAX_BODY_BYTES))
    gone, may_send = [], asyncio.Event()

    async def message() -> AsyncIterator[pb.CreateVideoRequest]:
        await may_send.wait()
        yield create()

    async def trickle() -> list[Answer]:
        method = calls.channel.stream_unary(
            f"{SERVICE}CreateVideo", pb.CreateVideoRequest.SerializeToString, pb.Video.FromString
        )
        asked = []
        for tenant in ("acme", "acme", "acme", "other", "other"):
            asked.append(
                asyncio.create_task(calls.call(lambda _, **given: method(message(), **given), None, tenant, {}))
            )
            await asyncio.sleep(0.2)
        gone.extend(one.done() for one in asked)
        may_send.set()
        return await asyncio.gather(*asked)

    answers = inside.runner.run(trickle())
    assert gone == [False, False, True, False, True]
    assert [answer.code for answer in answers] == ["", "", "quota_exceeded", "", "unavailable"]
    made(calls("CreateVideo", create()))


def test_a_call_without_a_message_is_refused(inside: Any, calls: Calls) -> None:
    async def sends_nothing() -> Answer:
        method = calls.channel.stream_unary(f"{SERVICE}CreateVideo")
        return await calls.call(lambda _, **given: method(iter(()), **given), None, "acme", {})

    answer = inside.runner.run(sends_nothing())
    assert (answer.status, answer.code) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")


@pytest.mark.parametrize(
    "metadata",
    [
        [("idempotency-key", "a"), ("idempotency-key", "b")],
        [("idempotency-key", "k" * 256)],
    ],
)
def test_keys_that_are_none_are_told(inside: Any, calls: Calls, metadata: list[tuple[str, str]]) -> None:
    async def send() -> Answer:
        def method(request: Any, **given: Any) -> Any:
            return calls.stub.CreateVideo(request, **{**given, "metadata": (*given["metadata"], *metadata)})

        return await calls.call(method, create(), "acme", {})

    answer = inside.runner.run(send())
    assert (answer.status, answer.param) == (grpc.StatusCode.INVALID_ARGUMENT, "idempotency-key")
    assert inside.sql("SELECT * FROM jobs") == []


@pytest.mark.parametrize(
    "metadata",
    [
        {"grpc-previous-rpc-attempts": "99999"},
        {"x-stainless-retry-count": "x"},
        {"traceparent": "garbage"},
        {"x-request-id": "x" * 500},
        {"authorization-bin": b"\xff\x00"},
        {"some-bin": b"\xff\x00"},
    ],
    ids=str,
)
def test_metadata_that_says_nothing_does_no_harm(inside: Any, calls: Calls, metadata: dict[str, Any]) -> None:
    made(calls("CreateVideo", create(), **metadata))


def test_more_metadata_than_anybody_needs_is_refused(inside: Any, calls: Calls) -> None:
    answer = calls("CreateVideo", create(), some="x" * 100_000)
    assert answer.status is grpc.StatusCode.RESOURCE_EXHAUSTED
    made(calls("CreateVideo", create()))


def test_an_unknown_method_is_unimplemented(inside: Any, calls: Calls) -> None:
    assert raw(calls, b"", "Nothing").status is grpc.StatusCode.UNIMPLEMENTED


def test_a_video_of_another_tenant_does_not_exist(inside: Any, calls: Calls) -> None:
    video_id = made(calls("CreateVideo", create()))
    requests: dict[str, Callable[..., Any]] = {
        "GetVideo": pb.GetVideoRequest,
        "DeleteVideo": pb.DeleteVideoRequest,
        "CancelVideo": pb.CancelVideoRequest,
        "RetryVideo": pb.RetryVideoRequest,
        "RemixVideo": lambda video_id: pb.RemixVideoRequest(video_id=video_id, request=create()),
        "EditVideo": lambda video_id: pb.EditVideoRequest(video=pb.Clip(id=video_id), request=create()),
        "ExtendVideo": lambda video_id: pb.ExtendVideoRequest(video=pb.Clip(id=video_id), request=create()),
        "GetVideoContent": pb.GetVideoContentRequest,
    }
    for name, kind in requests.items():
        assert calls(name, kind(video_id=video_id), tenant="other").status is grpc.StatusCode.NOT_FOUND, name
    assert inside.runner.run(_watched(calls, video_id, "other")) is grpc.StatusCode.NOT_FOUND
    assert list(calls("ListVideos", pb.ListVideosRequest(), tenant="other").message.videos) == []
    assert calls("ListVideos", pb.ListVideosRequest(after=video_id), tenant="other").param == "after"
    assert (inside.neighbours.deleted, inside.neighbours.cancelled) == ([], [])


async def _watched(calls: Calls, video_id: str, tenant: str) -> grpc.StatusCode:
    metadata = (("authorization", f"Bearer {calls.inside.keys[tenant]}"),)
    call = calls.stub.Watch(pb.WatchRequest(video_id=video_id), metadata=metadata, timeout=20)
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_a_key_makes_one_video_whichever_api_it_is_sent_to(inside: Any, calls: Calls) -> None:
    body = {"prompt": "a red circle", "seed": 7, "guidance_scale": 2.5, "metadata": {"b": "2", "a": "1"}}
    request = create(seed=7, guidance_scale=2.5, metadata={"a": "1", "b": "2"})
    first = inside.request("POST", "/v1/videos", json=body, headers={"Idempotency-Key": "k"}).json()["id"]
    again = calls("CreateVideo", request, idempotency_key="k")
    assert (again.message.id, again.trailing["idempotent-replayed"]) == (first, "true")
    second = made(calls("CreateVideo", request, idempotency_key="other"))
    twin = inside.request("POST", "/v1/videos", json=body, headers={"Idempotency-Key": "other"})
    assert (twin.status_code, twin.json()["id"]) == (200, second)
    assert len(inside.sql("SELECT * FROM jobs")) == 2
    refused = calls("CreateVideo", create("another"), idempotency_key="k")
    assert (refused.status, refused.code) == (grpc.StatusCode.INVALID_ARGUMENT, "idempotency_key_reuse")
    assert calls("CreateVideo", request, idempotency_key=" ").param == "idempotency-key"
    assert made(calls("CreateVideo", request, idempotency_key="k", tenant="other")) not in (first, second)


def test_a_picture_makes_the_same_request_as_a_file_of_a_form(inside: Any, calls: Calls) -> None:
    files = [("prompt", (None, "x")), ("input_reference", ("a.png", picture()))]
    answer = inside.request("POST", "/v1/videos", files=files, headers={"Idempotency-Key": "k"})
    request = create("x", input_reference=pb.Picture(data=picture()))
    again = calls("CreateVideo", request, idempotency_key="k")
    assert (again.message.id, "idempotent-replayed" in again.trailing) == (answer.json()["id"], True)


def test_a_key_covers_a_retry(inside: Any, calls: Calls) -> None:
    first = made(calls("CreateVideo", create(seed=9)))
    refused = calls("RetryVideo", pb.RetryVideoRequest(video_id=first))
    assert (refused.status, refused.code) == (grpc.StatusCode.FAILED_PRECONDITION, "not_finished")
    inside.sql("UPDATE jobs SET state = 'failed', finished_at_ms = 1000")
    second = calls("RetryVideo", pb.RetryVideoRequest(video_id=first), idempotency_key="r")
    assert (second.message.retry_of, second.message.seed) == (first, 9)
    again = inside.request("POST", f"/v1/videos/{first}/retry", headers={"Idempotency-Key": "r"})
    assert (again.status_code, again.json()["id"]) == (200, made(second))


def test_a_client_that_repeats_by_itself_makes_no_second_video(inside: Any, calls: Calls) -> None:
    """The retry policy of a channel: the first answer is lost with the connection to the database."""
    policy = {
        "maxAttempts": 3,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    service = {"methodConfig": [{"name": [{"service": "vitascope.v1.VideoService"}], "retryPolicy": policy}]}

    async def repeat() -> Answer:
        async with grpc.aio.insecure_channel(calls.address, [("grpc.service_config", json.dumps(service))]) as channel:
            return await calls.call(VideoServiceStub(channel).CreateVideo, create(), "acme", {})

    calls("ListModels", pb.ListModelsRequest())  # the API key is known now
    inside.lose_next_commit()
    answer = inside.runner.run(repeat())
    assert (answer.status, answer.trailing["idempotent-replayed"]) == (grpc.StatusCode.OK, "true")
    assert [row["job_id"] for row in inside.sql("SELECT * FROM jobs")] == [answer.message.id]
    assert made(calls("CreateVideo", create())) != answer.message.id  # asked for on purpose


def test_a_call_whose_outcome_is_unknown_is_repeatable_by_its_key_alone(inside: Any, calls: Calls) -> None:
    calls("ListModels", pb.ListModelsRequest())  # the API key is known now
    inside.lose_next_commit()
    unnamed = calls("CreateVideo", create())
    assert (unnamed.status, unnamed.code) == (grpc.StatusCode.UNAVAILABLE, "unavailable")
    assert "may have been accepted" in unnamed.text
    assert not [one for one in unnamed.details if isinstance(one, error_details_pb2.RetryInfo)]
    assert len(inside.sql("SELECT * FROM jobs")) == 1, "it was"
    inside.lose_next_commit()
    named = calls("CreateVideo", create(), idempotency_key="k")
    assert "repeat the request with the same Idempotency-Key" in named.text
    assert [one for one in named.details if isinstance(one, error_details_pb2.RetryInfo)]
    again = calls("CreateVideo", create(), idempotency_key="k")
    assert (again.status, again.trailing["idempotent-replayed"]) == (grpc.StatusCode.OK, "true")
    assert len(inside.sql("SELECT * FROM jobs")) == 2


def test_what_is_away_may_be_asked_again(inside: Any, calls: Calls) -> None:
    inside.neighbours.failure = grpc.StatusCode.UNAVAILABLE
    answer = calls("CreateVideo", create())
    assert (answer.status, answer.code) == (grpc.StatusCode.UNAVAILABLE, "unavailable")
    assert answer.details[-1].retry_delay.seconds == 1
    inside.neighbours.failure = None
    made(calls("CreateVideo", create()))


def test_ids_of_requests_come_back(inside: Any, calls: Calls) -> None:
    assert calls("ListModels", pb.ListModelsRequest(), x_request_id="mine-1").trailing["x-request-id"] == "mine-1"
    answer = calls("GetVideo", pb.GetVideoRequest(video_id="x"), x_request_id="b a d")
    assert answer.trailing["x-request-id"].startswith("req_")
    assert answer.details[1].request_id == answer.trailing["x-request-id"]


def test_the_trace_of_the_caller_reaches_the_job(inside: Any, calls: Calls) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    made(calls("CreateVideo", create(), traceparent=f"00-{trace_id}-b7ad6b7169203331-01"))
    (row,) = inside.sql("SELECT traceparent FROM jobs")
    assert row["traceparent"].split("-")[1] == trace_id


def test_a_fault_of_ours_says_nothing_about_us(inside: Any, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(inside.gateway, "video", crash)
    answer = calls("GetVideo", pb.GetVideoRequest(video_id=ABSENT))
    assert (answer.status, answer.code) == (grpc.StatusCode.INTERNAL, "internal")
    assert "secret" not in repr(answer)


def test_models_are_told(inside: Any, calls: Calls) -> None:
    (model,) = calls("ListModels", pb.ListModelsRequest()).message.models
    (twin,) = inside.request("GET", "/v1/models").json()["data"]
    for name in ("id", "created", "title", "licence", "fps"):
        assert getattr(model, name) == twin[name]
    for name in ("sizes", "seconds", "capabilities", "solvers", "temporal_attention"):
        assert list(getattr(model, name)) == twin[name]
    assert {name: getattr(model.defaults, name) for name in twin["defaults"]} == twin["defaults"]
    assert (model.price.currency, model.price.per_second) == ("USD", twin["price"]["per_second"])
    assert (model.limits.max_num_inference_steps, model.limits.prompt_max_chars) == (200, 200)


def test_content_is_a_signed_url(inside: Any, calls: Calls) -> None:
    video_id = made(calls("CreateVideo", create()))
    waiting = calls("GetVideoContent", pb.GetVideoContentRequest(video_id=video_id))
    assert (waiting.status, waiting.code) == (grpc.StatusCode.NOT_FOUND, "video_not_ready")
    inside.sql("UPDATE jobs SET state = 'completed', finished_at_ms = 1000")
    for variant in ("video", "thumbnail", "spritesheet"):
        url = calls("GetVideoContent", pb.GetVideoContentRequest(video_id=video_id, variant=variant)).message.url
        assert url.startswith(f"http://delivery.test/videos/{video_id}/{variant}?expires=")
    assert calls("GetVideo", pb.GetVideoRequest(video_id=video_id)).message.status == pb.VIDEO_STATUS_COMPLETED


def test_why_a_video_failed_is_told(inside: Any, calls: Calls) -> None:
    video_id = made(calls("CreateVideo", create()))
    inside.sql("UPDATE jobs SET state = 'cancelled', finished_at_ms = 1000")
    video = calls("GetVideo", pb.GetVideoRequest(video_id=video_id)).message
    assert (video.status, video.error.code) == (pb.VIDEO_STATUS_FAILED, "cancelled")
    assert not video.HasField("completed_at")


def raw(calls: Calls, data: bytes, name: str = "CreateVideo") -> Answer:
    async def send() -> Answer:
        return await calls.call(calls.channel.unary_unary(SERVICE + name), data, "acme", {})

    answer: Answer = calls.inside.runner.run(send())
    return answer


GROUP = b"\x7b\x7c"
"""A field of a kind that nobody uses any more, and its end."""


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 40,
        b"nonsense",
        b"\x0a\x05abc",
        b"\x0a\x02\xff\xfe",
        b"\x7b" * 40,
        b"\x0f",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x6a\x00" * 1001,
        b"\x78\x01" * 1001,
        GROUP + b"\x6a\x02\x0a\x00" * 1001,
        b"\x6a\x00" * (MAX_BODY_BYTES // 2 - 64),
    ],
    ids=lambda data: f"{data[:6].hex()} x {len(data)}",
)
def test_bytes_that_are_no_message_are_refused(inside: Any, calls: Calls, data: bytes) -> None:
    answer = raw(calls, data)
    assert (answer.status, answer.code) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"), answer
    assert inside.sql("SELECT * FROM jobs") == []


def test_a_request_with_everything_in_it_has_few_fields() -> None:
    labels = {str(number): "x" * 500 for number in range(16)}
    both = {name: pb.Picture(data=b"\x6a\x00" * 10**6) for name in ("input_reference", "last_frame")}
    everything = create("x", seed=1, deadline_s=1.5, metadata=labels, **both)
    inner = pb.RemixVideoRequest(video_id="x", request=everything)
    for message in (everything, inner):
        assert not has_many_fields(message.SerializeToString(), type(message))


def _nested(data: bytes) -> bytes:
    """Put raw fields into a picture: a field of bytes looks the same on the wire."""
    return pb.CreateVideoRequest(prompt="x").SerializeToString() + b"\x8a\x01\xd2\x0f" + data  # field 17, 2002 bytes


@pytest.mark.parametrize("data", [b"\x12\x00", b"\x78\x01"], ids=["url", "unknown"])
def test_fields_inside_of_fields_count_too(calls: Calls, data: bytes) -> None:
    message = pb.RemixVideoRequest(request=create(metadata={str(number): "" for number in range(1001)}))
    for sent, name in ((message.SerializeToString(), "RemixVideo"), (_nested(data * 1001), "CreateVideo")):
        answer = raw(calls, sent, name)
        assert (answer.status, "1000 fields" in answer.text) == (grpc.StatusCode.INVALID_ARGUMENT, True)


def test_a_message_may_be_as_large_as_a_body_and_no_larger(inside: Any, calls: Calls) -> None:
    largest = pb.Picture(data=b"\0" * (MAX_BODY_BYTES - 64))
    answer = calls("CreateVideo", create("x", input_reference=largest))
    assert (answer.code, answer.param) == ("invalid_request", "input_reference")
    answer = calls("CreateVideo", create("x", input_reference=pb.Picture(data=b"\0" * MAX_BODY_BYTES)))
    assert answer.status is grpc.StatusCode.RESOURCE_EXHAUSTED
    made(calls("CreateVideo", create()))


def test_a_client_that_gives_up_has_its_request_carried_out(
    inside: Any, calls: Calls, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[..., Any]
) -> None:
    """As over HTTP: what is half done would be worse, and the job may be promised already."""
    is_begun, may_go_on = asyncio.Event(), asyncio.Event()
    create_ = inside.creation.create

    async def slowly(*given: Any) -> Any:
        is_begun.set()
        await may_go_on.wait()
        return await create_(*given)

    monkeypatch.setattr(inside.creation, "create", slowly)

    async def give_up() -> None:
        metadata = (("authorization", f"Bearer {inside.keys['acme']}"),)
        call = calls.stub.CreateVideo(create(), metadata=metadata)
        waiting = asyncio.ensure_future(call)
        await is_begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        may_go_on.set()
        await inside.video_api.drain(10)

    inside.runner.run(give_up())
    assert len(inside.sql("SELECT * FROM jobs")) == 1


def test_health_is_readiness(inside: Any, calls: Calls) -> None:
    stub = health_pb2_grpc.HealthStub(calls.channel)

    def health(service: str = "") -> Any:
        async def check() -> Any:
            return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)).status

        return inside.runner.run(check())

    good, bad = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert (health(), health("vitascope.v1.VideoService")) == (good, good)

    inside.neighbours.serve(False)
    assert (inside.request("GET", "/readyz").status_code, health(), health("vitascope.v1.VideoService")) == (
        503,
        bad,
        bad,
    )
    inside.neighbours.serve(True)
    assert health() == good


def test_without_the_setting_nobody_is_told_what_there_is(inside: Any, calls: Calls) -> None:
    async def ask() -> grpc.StatusCode:
        stub = reflection_pb2_grpc.ServerReflectionStub(calls.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        return await call.code()

    assert inside.runner.run(ask()) is grpc.StatusCode.UNIMPLEMENTED
