"""The worker's denoising loop, with a progress event per step, checkpoints and previews, over the engine's bare steps.

The shipped model at its default size on the CPU, one thread, a real Redis, a folder as object store. Both loops take
the same forty steps from the same noise, in alternation; the worker's takes a checkpoint after every ten. Its file,
hash, fsync and upload are made in the background: those of the first three while the loop goes on, so that the wall
clock has them as far as they slow the steps down; those of the last after it, where in production the clip is decoded.
The CPU seconds have all four. The wall clock means something on an idle machine with two cores only. Previews fall due
once a second; their time is that in the loop and the CPU time of their own thread.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import structlog
import torch
from tests.bench.figures import Figure

from vitascope_common import redis_clients
from vitascope_common.executor import HeldTask, WorkerIdentity
from vitascope_common.ids import new_job_id, task_id
from vitascope_common.jobs import GenerateParams, Task
from vitascope_common.objectstore import open_store
from vitascope_common.registry import Capability, ModelCard, Registry
from vitascope_common.testing import redis_server
from vitascope_gpu_worker import metrics
from vitascope_gpu_worker.adapters import ffmpeg
from vitascope_gpu_worker.adapters.events import EventPublisher
from vitascope_gpu_worker.adapters.references import References
from vitascope_gpu_worker.checkpoint import Checkpoints, Origin
from vitascope_gpu_worker.engine import Run
from vitascope_gpu_worker.models import Models
from vitascope_gpu_worker.previews import Previews
from vitascope_gpu_worker.service import Generate, Workshop
from vitascope_gpu_worker.states import WorkerMachine, WorkerState
from vitascope_models.load import load_text_encoder

MODELS_DIR = Path("models")
NUM_ROUNDS = 7
NUM_STEPS = 40
CHECKPOINT_STEPS = 10
LOOP_GOAL = 1.02
CPU_GOAL = 1.05
BLOCKING_GOAL = 0.005
"""Share of the denoising time that checkpoints may keep the loop waiting."""
PREVIEW_GOAL = 0.01
"""Share of the denoising time that previews may take."""


class _Nobody:
    """Stands where the scheduler's client is: the loop itself never calls it."""

    identity = WorkerIdentity("bench", "gpu-worker", "default")

    def report(self, *_: object, **__: object) -> bool:
        raise NotImplementedError

    def release(self, held: HeldTask) -> None:
        raise NotImplementedError

    def encode(self, model: str, prompt: str, negative_prompt: str) -> object:
        raise NotImplementedError


def run() -> list[Figure]:
    """Measure."""
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    registry = Registry(MODELS_DIR)
    card = registry.cards()[0]
    models = Models(registry, torch.device("cpu"))
    _, engine = models.get(card.id, card.sha256)
    card = card.model_copy(update={"capabilities": (*card.capabilities, Capability.PREVIEWS)})
    params = _params(card)
    conditioning = _conditioning(card)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "redis").mkdir()
        redis = redis_clients.connect(stack.enter_context(redis_server(folder / "redis")))
        stack.callback(redis.close)
        store = open_store((folder / "objects").as_uri())
        checkpoints = Checkpoints(folder / "checkpoints", store, Origin(1, "cpu"), lambda: None)
        stack.callback(checkpoints.close)
        previews = Previews(store)
        stack.callback(previews.close)
        events = EventPublisher(redis)
        stack.callback(events.close)
        machine, nobody = WorkerMachine(), _Nobody()
        work = Generate(
            nobody,
            models,
            nobody,  # type: ignore[arg-type]
            store,
            checkpoints,
            previews,
            events,
            machine,
            References(""),
            lambda *_: None,  # type: ignore[arg-type]
            Workshop(folder, CHECKPOINT_STEPS, ffmpeg.MEDIA_TYPE),
        )

        def bare(run: Run) -> None:
            while not run.is_denoised:
                engine.step(run)

        def whole(run: Run) -> None:
            for state in (WorkerState.LOADING, WorkerState.READY, WorkerState.INITIALIZING, WorkerState.GENERATING):
                machine.to(state)
            work.denoise(HeldTask(_task(params)), run, engine, card)
            machine.end()

        def settle() -> None:
            if not checkpoints.flush(10):
                raise RuntimeError("a checkpoint was not uploaded within ten seconds")
            previews.flush(10)
            events.flush(10)

        def timed(loop: Callable[[Run], None]) -> tuple[float, float, float, float]:
            """Return seconds by the wall clock, of CPU in all threads, of waiting for checkpoints, and of previews."""
            run, blocked_s, preview_s = engine.prepare(params, conditioning), _blocked_s(), _preview_s()
            begun_s, cpu_s = time.perf_counter(), time.process_time()
            loop(run)
            took_s = time.perf_counter() - begun_s
            settle()
            return took_s, time.process_time() - cpu_s, _blocked_s() - blocked_s, _preview_s() - preview_s

        timed(bare)
        timed(whole)
        samples: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
        for _ in range(NUM_ROUNDS):
            samples.append((timed(bare), timed(whole)))
        expected = (1 + NUM_ROUNDS) * NUM_STEPS // CHECKPOINT_STEPS
        num_saved = sum("/checkpoint-" in one.key for one in store.list("work/"))
        if num_saved != expected:
            raise RuntimeError(f"{num_saved} checkpoints were uploaded, not {expected}")
    bare_s, bare_cpu_s, *_ = (statistics.median(column) for column in zip(*(one for one, _ in samples), strict=True))
    whole_s, whole_cpu_s, blocked_s, preview_s = (
        statistics.median(column) for column in zip(*(one for _, one in samples), strict=True)
    )
    return [
        Figure("worker loop with progress, checkpoints and previews / bare loop", whole_s, "s", bare_s, LOOP_GOAL),
        Figure("CPU seconds of the same", whole_cpu_s, "s", bare_cpu_s, CPU_GOAL),
        Figure("time that checkpoints block the loop / bare loop", blocked_s, "s", bare_s, BLOCKING_GOAL),
        Figure("time of previews, in the loop and beside it / bare loop", preview_s, "s", bare_s, PREVIEW_GOAL),
    ]


def _blocked_s() -> float:
    return float(metrics.CHECKPOINT_BLOCKING_SECONDS._sum.get())


def _preview_s() -> float:
    return sum(float(metrics.PREVIEW_SECONDS.labels(where)._sum.get()) for where in ("loop", "background"))


def _params(card: ModelCard) -> GenerateParams:
    defaults = card.defaults
    width_px, height_px = (int(side) for side in defaults.size.split("x"))
    return GenerateParams(
        card.id,
        card.sha256,
        "a red circle",
        "",
        width_px,
        height_px,
        card.num_frames[defaults.seconds],
        defaults.fps,
        NUM_STEPS,
        defaults.guidance_scale,
        defaults.shift,
        defaults.solver,
        1,
        defaults.seconds,
    )


def _conditioning(card: ModelCard) -> dict[str, torch.Tensor]:
    encoder = load_text_encoder(MODELS_DIR / card.id, card.model_dump())
    sides = {"cond": encoder.encode("a red circle"), "uncond": encoder.encode("")}
    names = ("tokens_LD", "mask_L", "pooled_D")
    return {f"{side}_{name}": getattr(found, name) for side, found in sides.items() for name in names}


def _task(params: GenerateParams) -> Task:
    job = new_job_id()
    return Task(task_id(job, "generate", 0), job, "t", "generate", "generate", 0, "gpu-worker", "default", 1, params)
