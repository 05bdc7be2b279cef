"""A watcher over gRPC against a gateway that is killed under it."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import grpc

from vitascope_common.events import Event, EventType, append
from vitascope_gateway.testing import surroundings
from vitascope_proto.v1 import videos_pb2 as pb
from vitascope_proto.v1.videos_pb2_grpc import VideoServiceStub


def test_a_watcher_misses_nothing_when_the_gateway_is_killed_and_comes_back(tmp_path: Path) -> None:
    with surroundings(tmp_path) as around, contextlib.ExitStack() as first:
        redis, metadata = around.redis.client, (("authorization", f"Bearer {around.key}"),)
        gateway = first.enter_context(around.gateway())
        channel_options = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 100)]
        with grpc.insecure_channel(gateway.grpc_address, channel_options) as channel:
            stub = VideoServiceStub(channel)
            video = stub.CreateVideo(pb.CreateVideoRequest(prompt="a red circle"), metadata=metadata, timeout=30)
            appended = [append(redis, Event(video.id, EventType.QUEUED, {}, version=1))]

            def go_on(step: int) -> None:
                appended.append(append(redis, Event(video.id, EventType.PROGRESS, {"step": step}, task="t", attempt=1)))

            def watch(after: str) -> Any:
                request = pb.WatchRequest(video_id=video.id, last_event_id=after)
                return stub.Watch(request, metadata=metadata, timeout=60, wait_for_ready=True)

            events = watch("")
            seen = [next(events).id]
            go_on(1)
            seen.append(next(events).id)
            os.kill(gateway.process.pid, signal.SIGKILL)
            gateway.process.wait()
            assert events.code() is grpc.StatusCode.UNAVAILABLE
            go_on(2)
            with around.gateway():
                events = watch(seen[-1])
                seen.append(next(events).id)
                go_on(3)
                appended.append(append(redis, Event(video.id, EventType.COMPLETED, {}, version=2)))
                seen += [event.id for event in events]
        assert seen == appended
