"""A scheduler double over real gRPC, real mezzanines, and what else the tests of postproc stand on."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import imageio_ffmpeg
import pytest

from vitascope_common import ids, redis_clients, wire
from vitascope_common.executor import Executor, WorkerIdentity
from vitascope_common.jobs import Artifact, FinishParams, Task
from vitascope_common.objectstore import sha256_of
from vitascope_common.objectstore_folder import FolderStore
from vitascope_common.testing import redis_server
from vitascope_postproc import certificates
from vitascope_postproc.adapters.events import StageEvents
from vitascope_postproc.adapters.ffmpeg import FfmpegEncoder
from vitascope_postproc.adapters.media import MediaInspector
from vitascope_postproc.adapters.provenance import C2paSigner
from vitascope_postproc.scratch import Scratch
from vitascope_postproc.service import Postproc
from vitascope_proto.v1 import scheduler_pb2, scheduler_pb2_grpc

DEADLINE_S = 30.0


class SchedulerDouble(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Fences tasks as the real one does and records every call; `action` is what heartbeats answer."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.states: dict[str, str] = {}
        self.claims: list[tuple[str, bool]] = []
        self.heartbeats: list[Any] = []
        self.reports: list[Any] = []
        self.action = scheduler_pb2.ACTION_RUN
        self.is_away = False
        self._changed = threading.Condition()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait()

    def offer(self, task: Task) -> None:
        """Make a task ready; again for one that was lost."""
        with self._changed:
            self.tasks.setdefault(task.task_id, task)
            self.states[task.task_id] = "ready"

    def wait_for(self, condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, deadline_s), "nothing happened in time"

    def Claim(self, request: Any, context: Any) -> Any:
        with self._changed:
            if self.is_away:
                context.abort(grpc.StatusCode.UNAVAILABLE, "away")
            state = self.states.get(request.task_id, "unknown")
            self.claims.append((request.task_id, state == "ready"))
            self._changed.notify_all()
            if state != "ready":
                return scheduler_pb2.ClaimResponse(granted=False, reason=state)
            task = self.tasks[request.task_id]
            task = self.tasks[request.task_id] = replace(task, attempt=task.attempt + 1)
            self.states[request.task_id] = "leased"
            return scheduler_pb2.ClaimResponse(granted=True, task=wire.task_to_proto(task), heartbeat_ms=2000)

    def Heartbeat(self, request: Any, context: Any) -> Any:
        with self._changed:
            self.heartbeats.append(request)
            self._changed.notify_all()
            actions = [
                scheduler_pb2.TaskAction(task_id=one.task_id, attempt=one.attempt, action=self.action)
                for one in request.tasks
            ]
            return scheduler_pb2.HeartbeatResponse(actions=actions)

    def Report(self, request: Any, context: Any) -> Any:
        with self._changed:
            self.reports.append(request)
            is_current = self.tasks[request.task_id].attempt == request.attempt
            if is_current:
                self.states[request.task_id] = "done"
            self._changed.notify_all()
            return scheduler_pb2.ReportResponse(accepted=is_current, state=self.states[request.task_id])


@pytest.fixture
def scheduler() -> Iterator[SchedulerDouble]:
    double = SchedulerDouble()
    yield double
    double.close()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "objects")


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> certificates.Credentials:
    return certificates.ensure(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def signer(credentials: certificates.Credentials) -> C2paSigner:
    return C2paSigner(credentials, "1.2.3")


def make_mezzanine(
    path: Path, width_px: int, height_px: int, num_frames: int, fps: int, what: str = "testsrc2"
) -> Path:
    """Write what the gpu-worker writes: FFV1 in Matroska, rgb."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "lavfi"]
    command += ["-i", f"{what}{'=' if '=' not in what else ':'}size={width_px}x{height_px}:rate={fps}"]
    command += ["-frames:v", str(num_frames), "-c:v", "ffv1", "-level", "3", "-slicecrc", "1", "-pix_fmt", "bgr0"]
    subprocess.run([*command, str(path)], check=True)
    return path


TaskMaker = Callable[..., Task]


@pytest.fixture
def make_task(store: FolderStore, tmp_path: Path) -> TaskMaker:
    """Store a mezzanine and return the task that finishes it; `damage` changes the file before it is stored."""

    def make(
        width_px: int = 64,
        height_px: int = 48,
        num_frames: int = 16,
        fps: int = 8,
        *,
        what: str = "testsrc2",
        damage: Callable[[bytearray], None] | None = None,
        **params: Any,
    ) -> Task:
        job_id = ids.new_job_id()
        path = make_mezzanine(tmp_path / f"{job_id}.mkv", width_px, height_px, num_frames, fps, what)
        if damage is not None:
            data = bytearray(path.read_bytes())
            damage(data)
            path.write_bytes(data)
        key = f"work/{job_id}/generate/0/1/mezzanine.mkv"
        info = store.put_file(key, path, "video/x-matroska")
        sizes = {"width_px": width_px, "height_px": height_px, "num_frames": num_frames, "fps": fps}
        return Task(
            task_id=ids.task_id(job_id, "finish", 0),
            job_id=job_id,
            tenant_id="t1",
            kind="generate",
            stage="finish",
            shard=0,
            executor="postproc",
            pool="postproc",
            attempt=0,
            params=FinishParams(**{"model": "tiny", "prompt_sha256": "ab" * 32, **sizes, **params}),
            inputs=(
                Artifact("latents", "latents", "application/octet-stream", "work/x", "0" * 64, 1),
                Artifact("mezzanine", "mezzanine", "video/x-matroska", key, sha256_of(path), info.num_bytes),
            ),
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )

    return make


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "scratch")


@pytest.fixture
def executor(scheduler: SchedulerDouble) -> Iterator[Executor]:
    executor = Executor(scheduler.address, WorkerIdentity("w1", "postproc", "postproc", num_slots=0))
    executor.start()
    yield executor
    executor.close()


@pytest.fixture
def postproc(
    executor: Executor, store: FolderStore, signer: C2paSigner, scratch: Scratch, redis_url: str
) -> Iterator[Postproc]:
    redis = redis_clients.connect(redis_url)
    yield Postproc(executor, store, FfmpegEncoder(), MediaInspector(), signer, StageEvents(redis), scratch)
    redis.close()


def wait_until(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Return what `condition` returns once it is true."""
    until_s = time.monotonic() + deadline_s
    while time.monotonic() < until_s:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("nothing happened in time")
