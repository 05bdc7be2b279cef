"""Checkpoints: one safetensors file that holds all the remaining steps depend on.

The denoising loop only copies tensors; one thread writes the file (atomically, to local disk), uploads it and tells the
scheduler. A checkpoint counts once the scheduler has recorded it. Local files are named by their SHA-256 and are a
cache: a resume that does not find one fetches it.
"""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from vitascope_common.errors import (
    CorruptObjectError,
    DeadlineError,
    ObjectNotFoundError,
    UnavailableError,
)
from vitascope_common.executor import HeldTask
from vitascope_common.files import TEMP_PREFIX, atomic_write
from vitascope_common.jobs import Artifact, Checkpoint, Params, Task, params_to_dict
from vitascope_common.objectstore import ObjectStore, check_sha256
from vitascope_gpu_worker import metrics
from vitascope_gpu_worker.engine import Snapshot

log = structlog.stdlib.get_logger("vitascope.gpu-worker")

FORMAT = "vitascope.checkpoint/1"
MEDIA_TYPE = "application/vnd.safetensors"
NUM_KEPT = 2
STALE_S = 24 * 3600
UPLOAD_BACKOFF_S = 0.5


@dataclass(frozen=True)
class Origin:
    """Under which conditions steps were taken; what has to be equal for a bit-identical resume."""

    num_threads: int
    device: str
    num_ranks: int = 1
    """Ranks that divide the work of a step: their sums are added in another order than one rank adds."""
    cpu_capability: str = torch.backends.cpu.get_cpu_capability()
    """The instruction set that torch picks its kernels for."""
    torch: str = torch.__version__


def config_sha256(params: Params) -> str:
    """Return the identity of a task's resolved parameters."""
    return hashlib.sha256(json.dumps(params_to_dict(params), sort_keys=True).encode()).hexdigest()


def encode(snapshot: Snapshot, task: Task, model_sha256: str, origin: Origin) -> bytes:
    """Return a checkpoint as the bytes of its file."""
    tensors = snapshot.tensors()
    metadata = {
        "format": FORMAT,
        "task": task.task_id,
        "attempt": str(task.attempt),
        "step": str(snapshot.step),
        "model_sha256": model_sha256,
        "config_sha256": config_sha256(task.params),
        **{name: str(value) for name, value in asdict(origin).items()},
    }
    return save_tensors(tensors, metadata | {"content_sha256": _content_sha256(tensors, metadata)})


def decode(data: bytes, task: Task, model_sha256: str, origin: Origin) -> Snapshot:
    """Read a checkpoint back for the task that wants to continue from it.

    Raises:
        CorruptObjectError: these are not the bytes that were written, or they belong to another task, model or
            configuration; says which.
    """
    try:
        metadata = _metadata(data)
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptObjectError("The checkpoint is not a readable safetensors file.") from error
    content = metadata.pop("content_sha256", "")
    if content != _content_sha256(tensors, metadata):
        raise CorruptObjectError("The checkpoint's content differs from its hash.")
    expected = {
        "format": FORMAT,
        "task": task.task_id,
        "model_sha256": model_sha256,
        "config_sha256": config_sha256(task.params),
    }
    for name, value in expected.items():
        if (found := metadata.get(name)) != value:
            raise CorruptObjectError(f"The checkpoint belongs elsewhere: its {name} is {found}, not {value}.")
    for name, here in asdict(origin).items():
        then = metadata.get(name, "unknown")  # it may be older than the field
        if then != str(here):
            log.warning("checkpoint.not_bit_identical", task=task.task_id, what=name, then=then, now=here)
    return Snapshot.from_tensors(int(metadata["step"]), tensors)


class Checkpoints:
    """Writes, uploads and reads the checkpoints of this worker, with one background thread.

    Several ranks share one: their latents are the same, so rank 0's file is whole.
    """

    def __init__(self, folder: Path, store: ObjectStore, origin: Origin, announce: Callable[[], None]) -> None:
        """Keep files in `folder`; `announce` is called when a checkpoint waits to be recorded."""
        self._folder = folder
        self._store = store
        self._origin = origin
        self._announce = announce
        self._condition = threading.Condition()
        self._pending: _Job | None = None
        self._running: _Job | None = None
        self._is_closing = False
        self._kept: list[Path] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
        except OSError as error:  # a cache: without it checkpoints are uploaded all the same
            log.warning("checkpoint.no_cache", error=error.strerror)
        self._thread = threading.Thread(target=self._work_forever, name="checkpoints", daemon=True)
        self._thread.start()

    def submit(self, held: HeldTask, model_sha256: str, snapshot: Snapshot) -> None:
        """Take a checkpoint in the background; one that still waits is replaced by it."""
        with self._condition:
            self._pending = _Job(held, model_sha256, snapshot, time.monotonic())
            self._condition.notify_all()

    def flush(self, timeout_s: float, is_over: Callable[[], bool] = lambda: False) -> bool:
        """Wait until nothing is pending; False when it took too long or `is_over` said so."""
        deadline = time.monotonic() + timeout_s
        with self._condition:
            while self._pending or self._running:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or is_over():
                    return False
                self._condition.wait(min(left_s, 0.05))
        return True

    def forget(self) -> None:
        """Drop what is pending: the task has ended or was taken away."""
        with self._condition:
            self._pending = None
            if self._running:
                self._running.is_dropped = True
            self._condition.notify_all()

    def discard_local(self) -> None:
        """Remove the local files of a task that needs them no more."""
        with self._condition:
            kept, self._kept = self._kept, []
        for path in kept:
            path.unlink(missing_ok=True)

    def load(self, task: Task, model_sha256: str) -> Snapshot | None:
        """Return the newest recorded checkpoint that is whole and ours; None means to start at step 0.

        Raises:
            UnavailableError: the object store is away; that is no reason to throw steps away.
        """
        for checkpoint in task.checkpoints:
            try:
                snapshot = self._read(checkpoint, task, model_sha256)
            except (CorruptObjectError, ObjectNotFoundError) as error:
                metrics.LOST_CHECKPOINTS.labels(error.code).inc()
                log.warning("checkpoint.unusable", task=task.task_id, step=checkpoint.done, error=error.message)
                continue
            metrics.RESUMES.inc()
            return snapshot
        return None

    def close(self) -> None:
        """Stop the thread; what is pending is dropped."""
        with self._condition:
            self._is_closing = True
        self.forget()
        self._thread.join(timeout=2.0)

    def _read(self, checkpoint: Checkpoint, task: Task, model_sha256: str) -> Snapshot:
        artifact = next((one for one in checkpoint.artifacts if one.role == "checkpoint"), None)
        if artifact is None:
            raise CorruptObjectError("The checkpoint names no file.")
        path = self._path(artifact.sha256)
        try:
            data = path.read_bytes()
            check_sha256(artifact.key, hashlib.sha256(data).hexdigest(), artifact.sha256)
        except (OSError, CorruptObjectError):  # not here, or damaged here: the object store decides
            data = self._store.get_bytes(artifact.key)
            check_sha256(artifact.key, hashlib.sha256(data).hexdigest(), artifact.sha256)
        snapshot = decode(data, task, model_sha256, self._origin)
        if snapshot.step != checkpoint.done:
            raise CorruptObjectError(f"The checkpoint holds step {snapshot.step}, not {checkpoint.done}.")
        self._keep(path)
        return snapshot

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.safetensors"

    def _keep(self, path: Path) -> None:
        """Count a file as the newest and remove all but two."""
        with self._condition:
            self._kept = [*(one for one in self._kept if one != path), path]
            surplus, self._kept = self._kept[:-NUM_KEPT], self._kept[-NUM_KEPT:]
        for old in surplus:
            old.unlink(missing_ok=True)

    def _work_forever(self) -> None:
        while True:
            with self._condition:
                while not self._pending and not self._is_closing:
                    self._condition.wait()
                if self._is_closing:
                    return
                job, self._pending = self._pending, None
                self._running = job
            try:
                if job is not None:
                    self._save(job)
            except Exception as error:  # it costs a checkpoint, never the work, and this thread must not end
                log.error("checkpoint.not_saved", task=job.held.task.task_id if job else "", exc_info=error)
            finally:
                with self._condition:
                    self._running = None
                    self._condition.notify_all()

    def _save(self, job: "_Job") -> None:
        task, step = job.held.task, job.snapshot.step
        data = encode(job.snapshot, task, job.model_sha256, self._origin)
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._path(sha256)
        try:
            atomic_write(path, data)
            self._keep(path)
        except OSError as error:  # the local file is a cache; the uploaded one counts
            log.warning("checkpoint.not_cached", task=task.task_id, step=step, error=error.strerror)
        key = task.work_key(f"checkpoint-{step:06d}-{sha256[:8]}.safetensors")
        if not self._upload(job, key, data):
            return
        artifact = Artifact("checkpoint.rank0", "checkpoint", MEDIA_TYPE, key, sha256, len(data))
        job.held.checkpoint = Checkpoint(step, "step", (artifact,))
        metrics.CHECKPOINT_SECONDS.observe(time.monotonic() - job.submitted_s)
        log.info("checkpoint.uploaded", task=task.task_id, attempt=task.attempt, step=step, num_bytes=len(data))
        self._announce()

    def _upload(self, job: "_Job", key: str, data: bytes) -> bool:
        """Upload, repeated while storage is away; False once a newer checkpoint waits or the task has ended."""
        is_first = True
        while True:
            try:
                self._store.put_bytes(key, data, MEDIA_TYPE)
                return True
            except (UnavailableError, DeadlineError) as error:
                if is_first:
                    log.warning("checkpoint.upload_waits", task=job.held.task.task_id, error=error.message)
                is_first = False
            with self._condition:
                if not (self._pending or job.is_dropped or self._is_closing):
                    self._condition.wait(UPLOAD_BACKOFF_S)
                if self._pending or job.is_dropped or self._is_closing:
                    return False

    def _sweep(self) -> None:
        """Remove what workers of this folder left behind long ago."""
        before_s = time.time() - STALE_S
        for path in self._folder.iterdir():
            if path.suffix == ".safetensors" or path.name.startswith(TEMP_PREFIX):
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < before_s:
                        path.unlink()


@dataclass
class _Job:
    held: HeldTask
    model_sha256: str
    snapshot: Snapshot
    submitted_s: float
    is_dropped: bool = False


def _metadata(data: bytes) -> dict[str, str]:
    """Return the text metadata in the header of a safetensors file (eight bytes of length, then JSON)."""
    num_bytes = int.from_bytes(data[:8], "little")
    if not 0 < num_bytes <= len(data) - 8:
        raise ValueError("no safetensors header")
    return {str(key): str(value) for key, value in json.loads(data[8 : 8 + num_bytes])["__metadata__"].items()}


def _content_sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
