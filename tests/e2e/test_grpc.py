"""A client that has never seen our proto files makes a video: what the server says of itself is all it knows."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from tests.conftest import PROMPT, Stack

EXAMPLE = Path(__file__).parents[2] / "examples" / "watch_grpc.py"


class Reflected:
    """Calls whatever a server shows, with JSON on both sides."""

    def __init__(self, channel: grpc.Channel, api_key: str) -> None:
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = DescriptorPool(self.database)  # knows nothing, and asks
        self.channel = channel
        self.metadata = (("authorization", f"Bearer {api_key}"),)

    def call(self, path: str, fields: dict[str, Any] | None = None, **metadata: str) -> Any:
        service, _, name = path.rpartition("/")
        method = self.pool.FindServiceByName(service).methods_by_name[name]
        request = ParseDict(fields or {}, GetMessageClass(method.input_type)(), descriptor_pool=self.pool)
        kind = "unary_stream" if method.server_streaming else "unary_unary"
        send = getattr(self.channel, kind)(
            f"/{path}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        given = (*self.metadata, *((key.replace("_", "-"), value) for key, value in metadata.items()))
        answer = send(request, metadata=given, timeout=300)
        return map(self._shown, answer) if method.server_streaming else self._shown(answer)

    def _shown(self, message: Any) -> dict[str, Any]:
        return MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=self.pool)


@pytest.fixture(scope="module")
def reflected(stack: Stack) -> Iterator[Reflected]:
    with grpc.insecure_channel(stack.up["grpc"]) as channel:
        yield Reflected(channel, stack.api_key)


def test_it_says_what_it_serves_and_that_it_does(reflected: Reflected) -> None:
    services = set(reflected.database.get_services())
    assert services >= {"vitascope.v1.VideoService", "grpc.health.v1.Health"}
    assert not any("Scheduler" in name or "Prompt" in name for name in services)
    answer = reflected.call("grpc.health.v1.Health/Check", {"service": "vitascope.v1.VideoService"})
    assert answer == {"status": "SERVING"}


def test_a_video_from_the_first_call_to_its_bytes(stack: Stack, reflected: Reflected) -> None:
    service = "vitascope.v1.VideoService/"
    (model,) = reflected.call(f"{service}ListModels")["models"]
    request = {"prompt": PROMPT, "model": model["id"], "seed": "1", "metadata": {"from": "reflection"}}
    video = reflected.call(f"{service}CreateVideo", request, idempotency_key="reflected-1")
    again = reflected.call(f"{service}CreateVideo", request, idempotency_key="reflected-1")
    assert (video["id"], video["seed"], video["status"]) == (again["id"], "1", "VIDEO_STATUS_QUEUED")

    events = list(reflected.call(f"{service}Watch", {"video_id": video["id"]}))
    kinds = [next(iter(event.keys() - {"id", "video_id"})) for event in events]
    assert (kinds[0], kinds[-1]) == ("queued", "completed")
    steps = [event["progress"]["step"] for event in events if event.get("progress", {}).get("step")]
    assert steps == list(range(1, steps[-1] + 1))
    middle = next(event for event in events if "checkpoint" in event)
    rest = list(reflected.call(f"{service}Watch", {"video_id": video["id"], "last_event_id": middle["id"]}))
    assert rest == [one for one in events[events.index(middle) + 1 :] if "id" in one]
    assert list(reflected.call(f"{service}Watch", {"video_id": video["id"], "last_event_id": events[-1]["id"]})) == []

    shown = reflected.call(f"{service}GetVideo", {"video_id": video["id"]})
    twin = stack.client.videos.retrieve(video["id"])
    assert (shown["status"], shown["progress"]) == ("VIDEO_STATUS_COMPLETED", 100)
    assert (twin.status, twin.metadata) == ("completed", {"from": "reflection"})
    url = reflected.call(f"{service}GetVideoContent", {"video_id": video["id"]})["url"]
    assert httpx.get(url).content == stack.client.videos.download(video["id"])
    assert video["id"] in {one["id"] for one in reflected.call(f"{service}ListVideos")["videos"]}
    reflected.call(f"{service}DeleteVideo", {"video_id": video["id"]})
    with pytest.raises(grpc.RpcError) as gone:
        reflected.call(f"{service}GetVideo", {"video_id": video["id"]})
    assert gone.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.slow
def test_the_example_saves_a_video(stack: Stack, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), stack.up["grpc"], PROMPT]
    environ = {**os.environ, "VITASCOPE_API_KEY": stack.api_key}
    ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "saved video.mp4"
    assert (tmp_path / "video.mp4").read_bytes()[4:8] == b"ftyp"


def test_a_refusal_names_the_field(reflected: Reflected) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        reflected.call("vitascope.v1.VideoService/CreateVideo", {"prompt": "a ball", "seconds": "7"})
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = [one.value for one in rpc_status.from_call(refused.value).details if one.type_url.endswith("BadRequest")]
    (violation,) = error_details_pb2.BadRequest.FromString(found[0]).field_violations
    assert violation.field == "seconds"
    assert '"4"' in violation.description
