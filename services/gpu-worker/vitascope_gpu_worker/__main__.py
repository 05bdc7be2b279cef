"""Start the worker: the ranks of one torchrun group, of which rank 0 alone talks to the outside.

python -m vitascope_gpu_worker.launch --nnodes 1 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0 \
    --local-addr 127.0.0.1 -m vitascope_gpu_worker
"""

import os
import sys

from vitascope_common.process import die_with_parent, is_adopted

if __name__ == "__main__":  # before torch, whose import takes seconds in which torchrun may die
    die_with_parent()
    # torchrun tells a rank nothing about itself, but it marks the environment and is known by its command line.
    if "TORCHELASTIC_RUN_ID" in os.environ and is_adopted(
        "vitascope_gpu_worker.launch", "torch.distributed.run", "torchrun"
    ):
        sys.exit("gpu-worker: the torchrun that started this rank is gone.")

# Before torch: deterministic matrix products on CUDA need a fixed workspace.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import fcntl
import gc
import shutil
import signal
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import structlog
import torch

from vitascope_common import redis_clients, telemetry
from vitascope_common.errors import ConfigurationError
from vitascope_common.executor import Executor, WorkerIdentity
from vitascope_common.ids import new_worker_id
from vitascope_common.objectstore import open_store
from vitascope_common.registry import Registry
from vitascope_gpu_worker.adapters import ffmpeg
from vitascope_gpu_worker.adapters.events import EventPublisher
from vitascope_gpu_worker.adapters.inbox import InboxReader
from vitascope_gpu_worker.adapters.process_group import ProcessGroup
from vitascope_gpu_worker.adapters.prompt import PromptClient
from vitascope_gpu_worker.adapters.references import References
from vitascope_gpu_worker.checkpoint import Checkpoints, Origin
from vitascope_gpu_worker.consumer import Consumer
from vitascope_gpu_worker.errors import GroupError
from vitascope_gpu_worker.models import Models, check_world_size
from vitascope_gpu_worker.previews import Previews
from vitascope_gpu_worker.ranks import Order, follow
from vitascope_gpu_worker.service import Generate, Workshop
from vitascope_gpu_worker.settings import GpuWorkerSettings
from vitascope_gpu_worker.states import WorkerMachine

log = structlog.stdlib.get_logger("vitascope.gpu-worker")

GIVE_UP_AFTER_S = 6.0
EXIT_AFTER_S = 7.5
"""After SIGTERM: when to stop waiting for the scheduler, and when to leave whatever a step still does to its lease."""
HUNG_POLL_S = 1.0
STALE_S = 24 * 3600
TEMPORARY = "vitascope-gpu-worker-"


def main() -> int:
    """Run until SIGTERM; 2 when the configuration cannot be used, 1 when all ranks have to be started again."""
    try:
        settings = GpuWorkerSettings.load()
        num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if settings.num_ranks not in (1, num_ranks):
            raise ConfigurationError(
                f"{settings.env_name('num_ranks')} is {settings.num_ranks}, but it was started with {num_ranks}: "
                "torchrun starts as many as --nproc-per-node says."
            )
        registry = Registry(settings.models_dir)
        check_world_size(registry, settings.pool, num_ranks)
        if num_ranks == 1:
            with ExitStack() as stack:
                return serve(settings, registry, _device(settings.num_threads), None, stack)
        return _serve_as_one_of_many(settings, registry)
    except ConfigurationError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2


def _serve_as_one_of_many(settings: GpuWorkerSettings, registry: Registry) -> int:
    """Lead as rank 0 or follow as another. When one fails all of them leave, and whoever started torchrun does again.

    Raises:
        ConfigurationError: something that it needs cannot be used.
    """
    telemetry.start_logging(settings.service, settings.log_level, settings.log_format)
    device = _device(settings.num_threads)
    # All ranks are on this machine: whatever its name resolves to, they need not listen outside.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform.startswith("linux") else "lo0")
    group = ProcessGroup(device)
    structlog.contextvars.bind_contextvars(rank=group.rank)
    if group.rank:  # torchrun tells every rank to end; but rank 0 needs the others until it says so itself
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        group.meet()
        if group.rank:
            follow(group, Models(registry, device, group))
        else:
            with ExitStack() as stack:
                status = serve(settings, registry, device, group, stack)
            if status:  # the others may be in the middle of a step: they notice that this process is gone
                return status
            group.tell(Order.LEAVE)
    except GroupError as error:
        log.error("rank.lost", code=error.code, error=error.message)
        return 1
    group.close()
    return 0


def serve(
    settings: GpuWorkerSettings,
    registry: Registry,
    device: torch.device,
    group: ProcessGroup | None,
    stack: ExitStack,
) -> int:
    """Build the worker and work, at the head of `group`; 0 when drained, 1 when it is broken.

    Raises:
        ConfigurationError: something that it needs cannot be used.
    """
    running = telemetry.start(settings.service, settings)
    stack.callback(running.shutdown)
    folder = _folder(settings, stack)
    store = open_store(settings.object_store_url, settings.s3_access_key, settings.s3_secret_key)
    ffmpeg_path = ffmpeg.find_ffmpeg()
    redis_url = settings.redis_url.get_secret_value()

    name = f"cuda:{torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"
    num_ranks = group.mesh.size() if group else 1
    identity = WorkerIdentity(new_worker_id(settings.service), settings.service, settings.pool, name, num_ranks)
    executor = Executor(settings.scheduler_address, identity)
    stack.callback(executor.close)
    checkpoints = Checkpoints(
        folder / "checkpoints", store, Origin(settings.num_threads, name, num_ranks), executor.poke
    )
    stack.callback(checkpoints.close)
    previews = Previews(store)
    stack.callback(previews.close)
    events = EventPublisher(redis_clients.connect(redis_url))
    stack.callback(events.close)
    prompts = PromptClient(settings.prompt_address)
    stack.callback(prompts.close)
    work = Generate(
        executor,
        Models(registry, device, group),
        prompts,
        store,
        checkpoints,
        previews,
        events,
        WorkerMachine(lambda state: setattr(executor, "worker_state", state.value)),
        References(ffmpeg_path),
        lambda path, width_px, height_px, fps: ffmpeg.Mezzanine(path, width_px, height_px, fps, ffmpeg_path),
        Workshop(folder / "work", settings.checkpoint_steps, ffmpeg.MEDIA_TYPE),
    )
    consumer = Consumer(executor, work)
    inbox = InboxReader(
        redis_clients.connect(redis_url, is_blocking=True),
        settings.pool,
        identity.worker_id,
        consumer.assign,
        consumer.command,
    )

    is_drained = threading.Event()

    def drain(signum: int, _: object) -> None:
        for again in (signal.SIGTERM, signal.SIGINT):  # torchrun and the terminal may both say it
            signal.signal(again, signal.SIG_IGN)
        inbox.stop()
        consumer.drain()
        threading.Thread(target=_leave_in_time, args=(executor, is_drained), name="drain", daemon=True).start()

    signal.signal(signal.SIGTERM, drain)
    signal.signal(signal.SIGINT, drain)
    threading.Thread(target=_leave_when_hung, args=(work,), name="watchdog", daemon=True).start()
    executor.start()
    inbox.start()
    running.mark_ready(True)
    log.info("worker.started", worker=identity.worker_id, pool=settings.pool, device=name, num_ranks=num_ranks)
    consumer.run()
    inbox.stop()
    executor.is_draining = True  # what was handed to it meanwhile goes back at once
    is_drained.set()
    running.mark_ready(False)
    if work.is_broken:
        log.error("worker.broken", worker=identity.worker_id)
        return 1
    log.info("worker.drained", worker=identity.worker_id)
    return 0


def _device(num_threads: int) -> torch.device:
    """Make results repeatable and pick the device of this rank."""
    torch.set_num_threads(num_threads)
    torch.set_num_interop_threads(1)
    torch.use_deterministic_algorithms(True)
    # A debugging aid that costs a write per allocation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def _folder(settings: GpuWorkerSettings, stack: ExitStack) -> Path:
    """Return the local scratch space, free of what a killed worker left behind long ago."""
    if settings.data_dir is None:
        _sweep_temporary()
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=TEMPORARY)))
        with suppress(OSError):  # a file system without locks: nobody sweeps what he cannot lock
            _lock(root, stack)
    else:
        root = settings.data_dir / settings.service
    work = root / "work"
    try:
        work.mkdir(parents=True, exist_ok=True)
        for path in work.iterdir():
            if path.stat().st_mtime < time.time() - STALE_S:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"The data folder {root} cannot be used: {error.strerror}.") from error
    return root


def _sweep_temporary() -> None:
    """Remove the temporary folders of workers that could not do it themselves; a living worker holds a lock on its."""
    for path in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with suppress(OSError), ExitStack() as stack:  # another user's, locked, or gone meanwhile
            if path.lstat().st_mtime < time.time() - STALE_S:
                _lock(path, stack)
                shutil.rmtree(path, ignore_errors=True)


def _lock(folder: Path, stack: ExitStack) -> None:
    """Hold a lock on a folder as long as `stack`, or this process, lives. Raises: OSError: another has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    stack.callback(os.close, descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _leave_in_time(executor: Executor, is_drained: threading.Event) -> None:
    """Not in the signal handler itself, which may interrupt whoever holds a lock that this needs."""
    begun_s = time.monotonic()
    executor.is_draining = True
    executor.poke()
    time.sleep(GIVE_UP_AFTER_S)
    executor.give_up()
    time.sleep(max(0.0, EXIT_AFTER_S - (time.monotonic() - begun_s)))
    if is_drained.is_set():  # only the closing of connections takes so long
        os._exit(0)
    log.warning("worker.left_work_to_its_lease")
    os._exit(1)


def _leave_when_hung(work: Generate) -> None:
    """End the process when its device does: heartbeats would keep the lease of a task that nobody computes."""
    waiting = threading.Event()
    while (hung := work.hung) is None:
        waiting.wait(HUNG_POLL_S)
    log.critical("worker.hung", what=hung.what, step=hung.step, limit_s=round(hung.limit_s, 1))
    os._exit(1)


if __name__ == "__main__":
    status = main()
    gc.freeze()  # what is left is not collected once more: with torch that takes a second of the ten that a stop has
    sys.exit(status)
