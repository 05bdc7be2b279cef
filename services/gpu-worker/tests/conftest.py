"""A worker with everything real but its scheduler and its prompt service, which are small gRPC servers of this file."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
import torch
import yaml
from safetensors.torch import save as save_tensors

from vitascope_common import keys, redis_clients, wire
from vitascope_common.executor import Executor, WorkerIdentity
from vitascope_common.ids import new_job_id, new_worker_id, task_id
from vitascope_common.jobs import Artifact, Checkpoint, GenerateParams, Task
from vitascope_common.objectstore import ObjectStore, open_store
from vitascope_common.registry import ModelCard, Registry, load_card
from vitascope_common.testing import redis_server
from vitascope_gpu_worker.adapters import ffmpeg
from vitascope_gpu_worker.adapters.events import EventPublisher
from vitascope_gpu_worker.adapters.prompt import PromptClient
from vitascope_gpu_worker.adapters.references import References
from vitascope_gpu_worker.checkpoint import Checkpoints, Origin
from vitascope_gpu_worker.consumer import Consumer
from vitascope_gpu_worker.models import Models
from vitascope_gpu_worker.previews import Previews
from vitascope_gpu_worker.service import Generate, Workshop
from vitascope_gpu_worker.states import WorkerMachine, WorkerState
from vitascope_models.load import load_text_encoder, random_weights
from vitascope_proto.v1 import prompt_pb2, prompt_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc

DEADLINE_S = 60.0
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CARD: dict[str, Any] = {
    "id": "tiny",
    "kind": "generate",
    "engine": "native",
    "title": "Tiny",
    "description": "Random weights.",
    "licence": "Apache-2.0",
    "created": 0,
    "architecture": {
        "vae": {"latent_channels": 4, "widths": [8, 8, 8]},
        "text_encoder": {"width": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 8},
        "dit": {"latent_channels": 4, "width": 16, "num_layers": 1, "num_heads": 2, "text_width": 16},
    },
    "sizes": ["16x16"],
    "seconds": ["1"],
    "num_frames": {"1": 9},
    "defaults": {
        "size": "16x16",
        "seconds": "1",
        "fps": 8,
        "num_inference_steps": 24,
        "guidance_scale": 2.5,
        "shift": 2.0,
        "solver": "euler",
    },
    "limits": {"num_inference_steps": [1, 10000], "guidance_scale": [0, 20], "prompt_max_chars": 100},
    "pool": "default",
    "group_size": 1,
    "cost": {"fixed_s": 0.1, "per_step_frame_s": 0.001},
    "price": {"usd_micros_per_second": 1},
    "parallelism": {"tensor_parallel": [1, 2]},
    "capabilities": [
        *("text_to_video", "image_to_video", "keyframes", "extension", "video_to_video", "negative_prompt"),
        "previews",
    ],
}


def wait_until(condition: Callable[[], Any], what: str = "it") -> Any:
    """Poll until the condition is true and return its value."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        threading.Event().wait(0.01)
    raise AssertionError(f"{what} did not happen within {DEADLINE_S:.0f} s")


@pytest.fixture(name="wait_until")
def _wait_until() -> Callable[..., Any]:
    return wait_until


@pytest.fixture(scope="session", autouse=True)
def _repeatable() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # As it comes, structlog prints what every frame holds: with tensors that takes seconds.
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    described = random_weights(CARD, folder / "tiny", seed=1)
    (folder / "tiny" / "card.yaml").write_text(yaml.safe_dump(described))
    return folder


@pytest.fixture
def card(models_dir: Path) -> ModelCard:
    return load_card(models_dir / "tiny" / "card.yaml")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


class Scheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Grants, records and wishes; no queue, no clock."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.states: dict[str, str] = {}
        self.reports: list[Any] = []
        self.heartbeats: list[Any] = []
        self.registered: list[Any] = []
        self.actions: dict[str, Any] = {}
        self.is_away = False
        self.lock = threading.Lock()

    def add(self, task: Task) -> Task:
        with self.lock:
            self.tasks[task.task_id], self.states[task.task_id] = task, "ready"
        return task

    def replace_params(self, task: Task, **params: Any) -> None:
        """Pretend that the task was another one all along."""
        with self.lock:
            now = self.tasks[task.task_id]
            self.tasks[task.task_id] = replace(now, params=replace(now.params, **params))  # type: ignore[type-var]

    def lose(self, task_id: str) -> None:
        """Do what the reaper does."""
        with self.lock:
            self.states[task_id] = "ready"

    def report_of(self, task_id: str, attempt: int) -> Any:
        found = [one for one in self.reports if (one.task_id, one.attempt) == (task_id, attempt)]
        return found[-1] if found else None

    def Register(self, request: Any, context: Any) -> Any:
        self.registered.append(request)
        return scheduler_pb2.RegisterResponse(lease_ttl_ms=10_000, heartbeat_ms=200)

    def Claim(self, request: Any, context: Any) -> Any:
        with self.lock:
            task = self.tasks.get(request.task_id)
            if task is None or self.states[request.task_id] != "ready":
                return scheduler_pb2.ClaimResponse(granted=False, reason=self.states.get(request.task_id, "unknown"))
            task = self.tasks[task.task_id] = replace(task, attempt=task.attempt + 1)
            self.states[task.task_id] = "leased"
        return scheduler_pb2.ClaimResponse(granted=True, task=wire.task_to_proto(task))

    def Heartbeat(self, request: Any, context: Any) -> Any:
        if self.is_away:
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        self.heartbeats.append(request)
        actions = []
        for status in request.tasks:
            action = self.actions.get(status.task_id, scheduler_pb2.ACTION_RUN)
            actions.append(scheduler_pb2.TaskAction(task_id=status.task_id, attempt=status.attempt, action=action))
            self._record(status)
        return scheduler_pb2.HeartbeatResponse(actions=actions)

    def Report(self, request: Any, context: Any) -> Any:
        if self.is_away:
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        self._record(request)
        with self.lock:
            task = self.tasks[request.task_id]
            accepted = task.attempt == request.attempt and self.states[task.task_id] == "leased"
            if accepted:
                is_again = request.outcome == scheduler_pb2.OUTCOME_YIELDED or request.is_retryable
                self.states[task.task_id] = "ready" if is_again else "ended"
            self.reports.append(request)
        return scheduler_pb2.ReportResponse(accepted=accepted)

    def _record(self, status: Any) -> None:
        with self.lock:
            task = self.tasks.get(status.task_id)
            if task is None or task.attempt != status.attempt or not status.HasField("checkpoint"):
                return
            checkpoint = wire.checkpoint_from_proto(status.checkpoint)
            if checkpoint not in task.checkpoints:
                self.tasks[task.task_id] = replace(task, checkpoints=(checkpoint, *task.checkpoints)[:2])


class Prompts(prompt_pb2_grpc.PromptServiceServicer):
    """Encodes with the tiny model's own text encoder."""

    def __init__(self, models_dir: Path, store: ObjectStore) -> None:
        card = load_card(models_dir / "tiny" / "card.yaml")
        self._encoder = load_text_encoder(models_dir / "tiny", card.model_dump())
        self._store = store
        self.is_away = False
        self.num_calls = 0

    def Encode(self, request: Any, context: Any) -> Any:
        self.num_calls += 1
        if self.is_away:
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        tensors = {}
        for side, text in (("cond", request.prompt), ("uncond", request.negative_prompt)):
            found = self._encoder.encode(text)
            for name in ("tokens_LD", "mask_L", "pooled_D"):
                tensors[f"{side}_{name}"] = getattr(found, name)
        data = save_tensors(tensors)
        sha256 = hashlib.sha256(data).hexdigest()
        key = f"conditioning/{sha256}.safetensors"
        self._store.put_bytes(key, data, "application/octet-stream")
        artifact = Artifact("conditioning", "conditioning", "application/octet-stream", key, sha256, len(data))
        return prompt_pb2.EncodeResponse(conditioning=wire.artifact_to_proto(artifact))


@contextmanager
def serving(add: Callable[..., None], servicer: Any) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    add(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


class Rig:
    """The world around one worker, and ways to start it: in this process or as a process of its own."""

    def __init__(self, folder: Path, models_dir: Path, redis_url: str, stack: ExitStack) -> None:
        self.folder = folder
        self.models_dir = models_dir
        self.redis_url = redis_url
        self.store = open_store((folder / "objects").as_uri())
        self.scheduler = Scheduler()
        self.prompts = Prompts(models_dir, self.store)
        self.scheduler_address = stack.enter_context(
            serving(scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, self.scheduler)
        )
        self.prompt_address = stack.enter_context(
            serving(prompt_pb2_grpc.add_PromptServiceServicer_to_server, self.prompts)
        )
        self.redis = redis_clients.connect(redis_url)
        self.card = load_card(models_dir / "tiny" / "card.yaml")
        self._stack = stack
        stack.callback(self.redis.close)

    def task(self, **params: Any) -> Task:
        """Promise a clip."""
        job = new_job_id()
        values: dict[str, Any] = {
            "model": "tiny",
            "model_sha256": self.card.sha256,
            "prompt": "a red circle",
            "negative_prompt": "",
            "width_px": 16,
            "height_px": 16,
            "num_frames": 9,
            "fps": 8,
            "num_inference_steps": 24,
            "guidance_scale": 2.5,
            "shift": 2.0,
            "solver": "euler",
            "seed": 7,
            "seconds": "1",
        }
        return self.scheduler.add(
            Task(
                task_id=task_id(job, "generate", 0),
                job_id=job,
                tenant_id="t1",
                kind="generate",
                stage="generate",
                shard=0,
                executor="gpu-worker",
                pool="default",
                attempt=0,
                params=GenerateParams(**(values | params)),
                yieldable=True,
                traceparent=TRACEPARENT,
            )
        )

    def worker(self, **overrides: Any) -> "InProcess":
        return InProcess(self, self._stack, **overrides)

    def process(
        self, *, torchrun: bool = False, num_ranks: int = 1, command: Sequence[str] = (), **env: str
    ) -> "subprocess.Popen[bytes]":
        """Start the real program, or a command that does; killed when the test ends."""
        values = {
            "VITASCOPE_REDIS_URL": self.redis_url,
            "VITASCOPE_OBJECT_STORE_URL": (self.folder / "objects").as_uri(),
            "VITASCOPE_MODELS_DIR": str(self.models_dir),
            "VITASCOPE_PROMPT_ADDRESS": self.prompt_address,
            "VITASCOPE_SCHEDULER_ADDRESS": self.scheduler_address,
            "VITASCOPE_DATA_DIR": str(self.folder / "data"),
            "VITASCOPE_LOG_FORMAT": "json",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        whole = [sys.executable, "-m"]
        if torchrun:
            whole += ["vitascope_gpu_worker.launch", "--nnodes", "1", "--nproc-per-node", str(num_ranks)]
            whole += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "-m"]
        self._num_registered = len(self.scheduler.registered)
        process = subprocess.Popen(command or [*whole, "vitascope_gpu_worker"], env={**os.environ, **values, **env})

        def end() -> None:
            process.kill()
            process.wait()

        self._stack.callback(end)
        return process

    def hand_over(self, task: Task) -> str:
        """Assign a task to the newest process as the dispatch script does; return the worker's id."""
        wait_until(lambda: len(self.scheduler.registered) > self._num_registered, "registration")
        worker_id = str(self.scheduler.registered[-1].worker_id)
        self.send(worker_id, {"command": "assign", "tasks": [{"task_id": task.task_id, "traceparent": TRACEPARENT}]})
        return worker_id

    def send(self, worker_id: str, command: dict[str, Any]) -> None:
        self.redis.xadd(keys.inbox("default", worker_id), {"data": json.dumps(command)})

    def events(self, task: Task) -> list[tuple[str, dict[str, Any]]]:
        entries: Any = self.redis.xrange(keys.events(task.job_id))
        return [(fields["type"], json.loads(fields["data"])) for _, fields in entries]

    def output(self, task: Task, attempt: int, role: str) -> bytes:
        """Return the bytes that an accepted attempt reported."""
        report = self.scheduler.report_of(task.task_id, attempt)
        assert report is not None
        assert report.outcome == scheduler_pb2.OUTCOME_DONE, report
        [artifact] = [one for one in report.outputs if one.role == role]
        return self.store.get_bytes(artifact.key)


class InProcess:
    """The worker as `__main__` builds it, without signals, inbox and metrics port."""

    def __init__(self, rig: Rig, stack: ExitStack, **overrides: Any) -> None:
        folder = rig.folder / "data" / "gpu-worker"
        (folder / "work").mkdir(parents=True, exist_ok=True)
        self.executor = Executor(
            rig.scheduler_address, WorkerIdentity(new_worker_id("gpu-worker"), "gpu-worker", "default")
        )
        self.states: list[WorkerState] = []
        store = overrides.get("store", rig.store)
        origin = Origin(overrides.get("num_threads", 1), "cpu")
        self.checkpoints = Checkpoints(folder / "checkpoints", store, origin, self.executor.poke)
        self.previews = overrides.get("previews") or Previews(store)
        redis = redis_clients.connect(overrides.get("redis_url", rig.redis_url))
        stack.callback(redis.close)
        self.events = EventPublisher(redis)
        self.prompts = PromptClient(rig.prompt_address)
        executable = overrides.get("ffmpeg", ffmpeg.find_ffmpeg())
        self.models = overrides.get("models") or Models(Registry(rig.models_dir), torch.device("cpu"))
        self.machine = WorkerMachine(self.states.append)
        self.work = Generate(
            self.executor,
            self.models,
            self.prompts,
            store,
            self.checkpoints,
            self.previews,
            self.events,
            self.machine,
            References(executable),
            lambda path, width_px, height_px, fps: ffmpeg.Mezzanine(path, width_px, height_px, fps, executable),
            Workshop(folder / "work", overrides.get("checkpoint_steps", 10), ffmpeg.MEDIA_TYPE),
        )
        self.consumer = Consumer(self.executor, self.work)
        for one in (self.executor, self.checkpoints, self.previews, self.events, self.prompts):
            stack.callback(one.close)
        self.executor.start()

    def run(self, task: Task) -> None:
        """Claim and work until the report."""
        held = self.executor.claim(task.task_id)
        assert held is not None
        self.work.run(held)


@pytest.fixture
def rig(tmp_path: Path, models_dir: Path, redis_url: str) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(tmp_path, models_dir, redis_url, stack)


@pytest.fixture
def checkpoint_of() -> Callable[[str, int, bytes], Checkpoint]:
    """Make the record of an uploaded checkpoint."""

    def make(key: str, step: int, data: bytes) -> Checkpoint:
        sha256 = hashlib.sha256(data).hexdigest()
        return Checkpoint(step, "step", (Artifact("checkpoint.rank0", "checkpoint", "x", key, sha256, len(data)),))

    return make


def _interrupted_at(rig: Rig, worker: InProcess, task: Task, step: int) -> None:
    """Run an attempt whose worker stops taking steps (as if killed) after `step`; what was recorded stays."""
    held = worker.executor.claim(task.task_id)
    engine = worker.models.get("tiny", rig.card.sha256)[1]
    taken = engine.step

    class Killed(BaseException):
        pass

    def record():
        assert worker.checkpoints.flush(10)
        worker.executor._beat()

    def step_or_die(run):
        if run.step == step:
            raise Killed
        if run.step and run.step % 10 == 0:  # before the next checkpoint takes its place in the heartbeat
            record()
        taken(run)

    engine.step = step_or_die
    try:
        with pytest.raises(Killed):
            worker.work.denoise(
                held, worker.work._prepare(held, held.task.params, _ready(worker, engine)), engine, rig.card
            )
        record()
        worker.events.flush(10)
    finally:
        del engine.step
        worker.executor.release(held)
        worker.machine.end()
    rig.scheduler.lose(task.task_id)


def _ready(worker: InProcess, engine: Any) -> Any:
    worker.machine.to(WorkerState.LOADING)
    worker.machine.to(WorkerState.READY)
    return engine


@pytest.fixture
def interrupted_at() -> Callable[[Rig, InProcess, Task, int], None]:
    """Run an attempt up to a step."""
    return _interrupted_at
