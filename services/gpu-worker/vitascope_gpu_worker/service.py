"""Generate one clip: load, condition, denoise, decode, upload, report. Everything that can interrupt it is here, once.

A stop or a stale attempt drops the work at the next step; only the stop is reported. A yield checkpoints, uploads and
reports. SIGTERM is a yield of whatever runs. Storage or a service that is away is waited for while heartbeats go on;
Redis is never waited for. What leaves the process in doubt (no memory, a failed device, a lost rank) is reported, and
is the last thing it does.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from vitascope_common import meters
from vitascope_common.errors import (
    CorruptObjectError,
    DeadlineError,
    InternalError,
    InvalidRequestError,
    UnavailableError,
    VitascopeError,
)
from vitascope_common.events import Event, EventType
from vitascope_common.executor import Action, HeldTask, Outcome, WorkerIdentity
from vitascope_common.jobs import Artifact, GenerateParams, Progress, Reference
from vitascope_common.objectstore import ObjectStore, check_sha256, sha256_of
from vitascope_common.references import NEEDED
from vitascope_common.registry import Capability, ModelCard
from vitascope_common.telemetry import span
from vitascope_gpu_worker import metrics
from vitascope_gpu_worker.checkpoint import Checkpoints
from vitascope_gpu_worker.device import begin_peak_memory, peak_memory_mb
from vitascope_gpu_worker.engine import REFERENCE, Engine, Run
from vitascope_gpu_worker.errors import GroupError, InvalidFramesError, InvalidLatentsError
from vitascope_gpu_worker.previews import Previews
from vitascope_gpu_worker.references import DecodesReferences, ReferenceReader
from vitascope_gpu_worker.states import WorkerMachine, WorkerState

log = structlog.stdlib.get_logger("vitascope.gpu-worker")

WAIT_S = 60.0
"""How long an attempt waits for storage or a service before it fails and another may try."""
BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0)
LAST_UPLOAD_S = 4.0
"""How long a SIGTERM or an error leaves for the last checkpoint's upload."""
EVENTS_S = 1.0
CHECKPOINT_AFTER_S = 30.0
"""When steps are long, a checkpoint is due after this time, however few they were."""
PAUSE_S = 0.02
HUNG_S = 60.0
HUNG_PACES = 20
"""A step that takes longer than `HUNG_S`, and than so many others, does not come back."""
HUNG_OTHERWISE_S = 600.0
"""The same for what has no pace to know: the beginning of a clip, a first step, a few decoded frames."""
HUNG_LOADING_S = 900.0
"""The same for a model's files, to be read and verified by all ranks, the first one alone."""

_NOT_RETRYABLE = (InvalidLatentsError, InvalidFramesError, InvalidRequestError)

T = TypeVar("T")


class Reports(Protocol):
    """The part of the executor that tells the scheduler how it went."""

    identity: WorkerIdentity

    def report(
        self,
        held: HeldTask,
        outcome: Outcome,
        *,
        outputs: "list[Artifact]" = ...,
        error: VitascopeError | None = None,
        is_retryable: bool = False,
    ) -> bool: ...
    def release(self, held: HeldTask) -> None: ...


class LoadedModels(Protocol):
    """Models by name and weights."""

    @property
    def warm(self) -> tuple[str, ...]: ...
    def get(self, model_id: str, model_sha256: str) -> tuple[ModelCard, Engine]: ...


class Encodes(Protocol):
    """The prompt service."""

    def encode(self, model: str, prompt: str, negative_prompt: str) -> Artifact: ...


class Publishes(Protocol):
    """Progress for people; never blocks."""

    def publish(self, event: Event) -> None: ...
    def flush(self, timeout_s: float) -> None: ...


class WritesFrames(Protocol):
    """A lossless video file under construction."""

    def __enter__(self) -> "WritesFrames": ...
    def __exit__(self, *args: Any) -> None: ...
    def write(self, frames_THWC: Tensor, check: Callable[[], None]) -> None: ...
    def finish(self, num_frames: int, check: Callable[[], None]) -> None: ...


OpenMezzanine = Callable[[Path, int, int, int], WritesFrames]
"""Path, width, height, frames per second."""


class _Dropped(Exception):
    """The work was taken away: touch nothing more."""


class _Yielded(Exception):
    """The slot is wanted: what there is, is saved."""


@dataclass(frozen=True)
class Wait:
    """What the device is doing, and until when it may."""

    what: str
    step: int
    """Steps taken before it."""
    limit_s: float
    due_s: float
    """On the monotonic clock."""


@dataclass(frozen=True)
class Workshop:
    """Where a clip is made."""

    folder: Path
    checkpoint_steps: int
    mezzanine_type: str


class Generate:
    """The use case of this service. `run` belongs to one thread; `drain` may come from a signal handler."""

    def __init__(
        self,
        reports: Reports,
        models: LoadedModels,
        prompts: Encodes,
        store: ObjectStore,
        checkpoints: Checkpoints,
        previews: Previews,
        events: Publishes,
        machine: WorkerMachine,
        references: DecodesReferences,
        open_mezzanine: OpenMezzanine,
        workshop: Workshop,
    ) -> None:
        self._reports = reports
        self._models = models
        self._prompts = prompts
        self._store = store
        self._checkpoints = checkpoints
        self._previews = previews
        self._events = events
        self._machine = machine
        self._references = ReferenceReader(store, references, workshop.folder)
        self._open_mezzanine = open_mezzanine
        self._workshop = workshop
        self._is_draining = False
        self._begun_s = 0.0
        self._wait: Wait | None = None
        self._pace_of: tuple[str | int, ...] = ()
        self._pace_s = 0.0
        """What a step takes: of the loaded model, at the size of the last clip. 0: not known yet."""
        self.is_broken = False
        """This process must take no other task: it has to start anew."""

    def drain(self) -> None:
        """Give back what runs at the next step or frame, and whatever comes after it."""
        self._is_draining = True

    @property
    def hung(self) -> Wait | None:
        """Return what the device has kept this waiting with for far too long, None as a rule. For any thread."""
        wait = self._wait
        return wait if wait and time.monotonic() > wait.due_s else None

    def run(self, held: HeldTask) -> None:
        """Do the work of one attempt and report its end. Raises nothing: a task never ends this process."""
        task = held.task
        self._begun_s = time.monotonic()
        try:
            begin_peak_memory()
            outputs = self._generate(held)
            self._machine.to(WorkerState.COMPLETE)
            self._events.flush(EVENTS_S)
            self._reports.report(held, Outcome.DONE, outputs=outputs)
            self._checkpoints.discard_local()
        except _Dropped:
            log.info("task.dropped", task=task.task_id, attempt=task.attempt, why=held.action.value)
            if held.action is Action.STALE:  # somebody else's by now; nothing we say counts
                self._reports.release(held)
            else:
                held.used_s = time.monotonic() - self._begun_s
                self._reports.report(held, Outcome.CANCELLED)
        except _Yielded:
            log.info("task.yielded", task=task.task_id, attempt=task.attempt, step=held.progress.done)
            self._events.flush(EVENTS_S)
            self._reports.report(held, Outcome.YIELDED)
        except VitascopeError as error:
            self._fail(held, error)
        except Exception as error:  # a fault of ours: this attempt ends, the worker lives
            log.error("task.crashed", task=task.task_id, exc_info=error)
            self._fail(held, InternalError())
        finally:
            self._checkpoints.forget()
            self._machine.end()

    def _fail(self, held: HeldTask, error: VitascopeError) -> None:
        self._machine.fail()
        self.is_broken = isinstance(error, GroupError)
        is_retryable = not isinstance(error, _NOT_RETRYABLE)
        if is_retryable:
            self._checkpoints.flush(LAST_UPLOAD_S)  # the next attempt begins where this one stopped
        log.error(
            "task.failed", task=held.task.task_id, code=error.code, error=error.message, is_retryable=is_retryable
        )
        held.used_s = time.monotonic() - self._begun_s
        self._reports.report(held, Outcome.FAILED, error=error, is_retryable=is_retryable)

    def _generate(self, held: HeldTask) -> list[Artifact]:
        params = held.task.params
        if not isinstance(params, GenerateParams):
            raise InternalError(f"Task {held.task.task_id} of stage {held.task.stage} is not work for a gpu-worker.")
        with self._measured(held, meters.LOAD_S):
            card, engine = self._load(held, params)
        _check_capabilities(card, params)
        with self._measured(held, meters.ENCODE_S):
            run = self._prepare(held, params, engine)
        first_step, steps = run.step, params.num_inference_steps
        with span("denoise", first_step=first_step, steps=steps), self._measured(held, meters.DENOISE_S):
            self.denoise(held, run, engine, card)
        path = self._workshop.folder / f"{held.task.task_id}.{held.task.attempt}.mkv"
        try:
            with span("decode", frames=params.num_frames), self._measured(held, meters.DECODE_S):
                self._decode(held, run, engine, path)
            self._machine.to(WorkerState.AUDIO_SYNC)  # no audio was asked for
            self._machine.to(WorkerState.SAFETY_CHECK)  # judged in postproc, on what is published
            self._machine.to(WorkerState.UPLOADING)
            with span("upload"), self._measured(held, meters.UPLOAD_S):
                return self._upload(held, run, path)
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _measured(self, held: HeldTask, name: str) -> Iterator[None]:
        """Meter how long the block takes, also when it is left early, and the memory that was needed until then."""
        begun_s = time.monotonic()
        try:
            yield
        finally:
            took_s = time.monotonic() - begun_s
            held.meters = {**held.meters, name: took_s, meters.PEAK_MEMORY_MB: peak_memory_mb()}

    def _load(self, held: HeldTask, params: GenerateParams) -> tuple[ModelCard, Engine]:
        self._machine.to(WorkerState.LOADING)
        self._show(held, "loading", held.task.checkpoints[0].done if held.task.checkpoints else 0, params)
        with span("load", model=params.model), self._within(HUNG_LOADING_S, "load"):
            loaded = self._models.get(params.model, params.model_sha256)
        if self._reports.identity.warm_models != self._models.warm:
            self._reports.identity = replace(self._reports.identity, warm_models=self._models.warm)
        self._machine.to(WorkerState.READY)
        return loaded

    def _prepare(self, held: HeldTask, params: GenerateParams, engine: Engine) -> Run:
        """Return the run at step 0 or at the newest usable checkpoint."""
        self._machine.to(WorkerState.INITIALIZING)
        with span("conditioning", model=params.model):
            conditioning = dict(self._patiently(held, "conditioning", lambda: self._conditioning(params)))
        for one in params.references:
            with span("reference", role=one.role):
                read = partial(self._reference, held, params, one)
                conditioning[REFERENCE + one.role] = self._patiently(held, "reference", read)
        with self._within(HUNG_OTHERWISE_S, "prepare"):
            run = engine.prepare(params, conditioning)
        if held.task.checkpoints:
            self._machine.to(WorkerState.RECOVERING)
            snapshot = self._patiently(
                held, "checkpoint", lambda: self._checkpoints.load(held.task, params.model_sha256)
            )
            if snapshot is not None:
                with self._within(HUNG_OTHERWISE_S, "restore", snapshot.step):
                    run.restore(snapshot)
            log.info("task.resumed", task=held.task.task_id, attempt=held.task.attempt, step=run.step)
        self._machine.to(WorkerState.GENERATING)
        # The event `resumed` was written at the claim and hopes for the newest checkpoint: this one knows.
        self._show(held, "denoising", run.step, params, from_step=run.step)
        return run

    def _conditioning(self, params: GenerateParams) -> Mapping[str, Tensor]:
        artifact = self._prompts.encode(params.model, params.prompt, params.negative_prompt)
        data = self._store.get_bytes(artifact.key)
        check_sha256(artifact.key, _sha256(data), artifact.sha256)
        try:
            tensors: dict[str, Tensor] = load_tensors(data)
        except SafetensorError as error:
            raise CorruptObjectError(f"Object {artifact.key} is not a readable safetensors file.") from error
        return tensors

    def _reference(self, held: HeldTask, params: GenerateParams, reference: Reference) -> Tensor:
        decoding = partial(self._within, HUNG_OTHERWISE_S, "reference")
        return self._references.frames(held.task, params, reference, partial(self._check_early, held), decoding)

    def denoise(self, held: HeldTask, run: Run, engine: Engine, card: ModelCard) -> None:
        """Take the steps that are left, with progress after each and checkpoints as they fall due.

        Raises:
            InvalidLatentsError: NaN or infinity.
        """
        params, step_seconds, steps = run.params, metrics.STEP_SECONDS.labels(card.id), metrics.STEPS.labels(card.id)
        saved_step, saved_s = run.step, time.monotonic()
        pace_of = (card.id, card.sha256, params.width_px, params.height_px, params.num_frames)
        if pace_of != self._pace_of:
            self._pace_of, self._pace_s = pace_of, 0.0
        promised_s = card.estimate_s(1, params.num_frames, f"{params.width_px}x{params.height_px}")
        has_previews = Capability.PREVIEWS in card.capabilities
        self._previews.begin(held.task)
        while not run.is_denoised:
            if self._is_wanted_back(held):
                if run.step > saved_step:
                    self._checkpoint(held, run)
                self._yield(held)
            begun_s = time.perf_counter()
            patience_s = HUNG_S if self._pace_s else HUNG_OTHERWISE_S
            with self._within(max(patience_s, HUNG_PACES * max(promised_s, self._pace_s)), "step", run.step):
                engine.step(run)
            took_s = time.perf_counter() - begun_s
            step_seconds.observe(took_s)
            steps.inc()
            self._pace_s = 0.8 * self._pace_s + 0.2 * took_s if self._pace_s else took_s
            left = params.num_inference_steps - run.step
            self._show(held, "denoising", run.step, params, eta_s=left * self._pace_s + card.cost.fixed_s)
            if has_previews and not run.is_denoised and self._previews.is_due:
                has_previews = self._preview(held, run, engine)
            is_due = run.step - saved_step >= self._workshop.checkpoint_steps
            if is_due or run.is_denoised or time.monotonic() - saved_s >= CHECKPOINT_AFTER_S:
                self._checkpoint(held, run)
                saved_step, saved_s = run.step, time.monotonic()

    def _preview(self, held: HeldTask, run: Run, engine: Engine) -> bool:
        """Show what the steps are heading for; False: not with this clip."""
        params, begun_s = run.params, time.perf_counter()
        try:
            with self._within(HUNG_OTHERWISE_S, "preview", run.step):
                frames_THWC = engine.preview(run)
        except Exception as error:  # nobody has asked for it; a device that failed says so again at the next step
            log.warning("preview.failed", task=held.task.task_id, step=run.step, exc_info=error)
            return False
        if frames_THWC is not None:
            took_s = time.perf_counter() - begun_s
            self._previews.submit(held.task, run.step, frames_THWC, params.num_frames / params.fps, took_s)
        return True

    def _checkpoint(self, held: HeldTask, run: Run) -> None:
        """Copy the state and let the background do the rest."""
        self._machine.to(WorkerState.CHECKPOINTING)
        with metrics.CHECKPOINT_BLOCKING_SECONDS.time():
            with self._within(HUNG_OTHERWISE_S, "snapshot", run.step):
                snapshot = run.snapshot()
            self._checkpoints.submit(held, run.params.model_sha256, snapshot)
        self._machine.to(WorkerState.GENERATING)

    def _decode(self, held: HeldTask, run: Run, engine: Engine, path: Path) -> None:
        """Decode into the mezzanine, a few frames at a time."""
        params = run.params
        self._machine.to(WorkerState.DECODING)
        self._show(held, "decoding", run.step, params)
        mezzanine = self._open_mezzanine(path, params.width_px, params.height_px, params.fps)

        def check() -> None:
            self._check_late(held)

        with metrics.DECODE_SECONDS.labels(params.model).time(), mezzanine:
            if params.num_frames_before:
                self._write_before(held, params, mezzanine, check)
            num_repeated = params.num_repeated_frames
            for frames_THWC in self._in_time(engine.decode(run), run.step):
                check()
                mezzanine.write(frames_THWC[num_repeated:], check)
                num_repeated = max(0, num_repeated - len(frames_THWC))
            mezzanine.finish(params.num_frames_in_all, check)

    def _write_before(
        self, held: HeldTask, params: GenerateParams, mezzanine: WritesFrames, check: Callable[[], None]
    ) -> None:
        """Let the clip that is continued come first, as it is."""
        given = partial(self._references.before, held.task, params, check)
        with ExitStack() as stack:
            frames = self._patiently(held, "reference", lambda: stack.enter_context(given()), self._check_late)
            for frames_THWC in self._in_time(frames, params.num_inference_steps):
                mezzanine.write(frames_THWC, check)

    @contextmanager
    def _within(self, limit_s: float, what: str, step: int = 0) -> Iterator[None]:
        """Be hung when the block takes longer."""
        self._wait = Wait(what, step, limit_s, time.monotonic() + limit_s)
        try:
            yield
        finally:
            self._wait = None

    def _in_time(self, frames: Iterable[Tensor], step: int) -> Iterator[Tensor]:
        """Yield the same, and be hung while the next ones take too long."""
        waiting = iter(frames)
        while True:
            with self._within(HUNG_OTHERWISE_S, "decode", step):
                frames_THWC = next(waiting, None)
            if frames_THWC is None:
                return
            yield frames_THWC

    def _upload(self, held: HeldTask, run: Run, path: Path) -> list[Artifact]:
        task, latents_type = held.task, "application/vnd.safetensors"
        latents = save_tensors({"latents": run.snapshot().latents_BCTHW})
        latents_key, mezzanine_key = task.work_key("latents.safetensors"), task.work_key("mezzanine.mkv")
        for put in (
            lambda: self._store.put_bytes(latents_key, latents, latents_type),
            lambda: self._store.put_file(mezzanine_key, path, self._workshop.mezzanine_type),
        ):
            self._patiently(held, "upload", put, self._check_late)
        held.used_s = time.monotonic() - self._begun_s
        return [
            Artifact(
                "mezzanine",
                "mezzanine",
                self._workshop.mezzanine_type,
                mezzanine_key,
                sha256_of(path),
                path.stat().st_size,
            ),
            Artifact("latents", "latents", latents_type, latents_key, _sha256(latents), len(latents)),
        ]

    def _show(
        self,
        held: HeldTask,
        phase: str,
        step: int,
        params: GenerateParams,
        eta_s: float | None = None,
        **more: float,
    ) -> None:
        """Tell the scheduler (with the next heartbeat) and the people who watch."""
        task, steps = held.task, params.num_inference_steps
        held.used_s = time.monotonic() - self._begun_s
        held.progress = Progress(step, steps, "step", phase)
        data: dict[str, Any] = {"step": step, "steps": steps, "percent": round(100 * step / steps, 1), "phase": phase}
        data |= {"eta_s": None if eta_s is None else round(eta_s, 2), **more}
        if phase == "denoising" and (preview := self._previews.news(task)) is not None:
            data["preview"] = preview
        kind = EventType.DECODING if phase == "decoding" else EventType.PROGRESS
        self._events.publish(Event(task.job_id, kind, data, task=task.task_id, attempt=task.attempt))

    def _is_wanted_back(self, held: HeldTask) -> bool:
        """Tell whether to yield. Raises: _Dropped: there is nobody left to yield to."""
        if held.is_over:
            raise _Dropped
        return self._is_draining or held.action is Action.YIELD

    def _check_early(self, held: HeldTask) -> None:
        """Give the slot back when it is wanted, before there is anything to save. Raises: _Dropped, _Yielded."""
        held.used_s = time.monotonic() - self._begun_s
        if self._is_wanted_back(held):
            raise _Yielded

    def _check_late(self, held: HeldTask) -> None:
        """Give the slot back, after the last step: not to a yield, because to finish is sooner than to decode again.

        Raises: _Dropped, _Yielded.
        """
        held.used_s = time.monotonic() - self._begun_s
        if held.is_over:
            raise _Dropped
        if self._is_draining:
            self._yield(held)

    def _yield(self, held: HeldTask) -> None:
        """Wait for the last upload, then give the slot back. What could not be uploaded in time is done again."""
        limit_s = LAST_UPLOAD_S if self._is_draining else WAIT_S
        if not self._checkpoints.flush(limit_s, lambda: held.is_over):
            if held.is_over:
                raise _Dropped
            log.warning("task.yields_without_last_checkpoint", task=held.task.task_id)
        raise _Yielded

    def _patiently(
        self, held: HeldTask, what: str, call: Callable[[], T], check: Callable[[HeldTask], None] | None = None
    ) -> T:
        """Call, and again while something is away, for `WAIT_S` in all; `check` (`_check_early`) may end it.

        Time that is spent waiting is no time used: no tenant pays for an outage.

        Raises:
            UnavailableError: it stayed away; another attempt may succeed.
        """
        check = check or self._check_early
        begun_s, num_failures = time.monotonic(), 0
        while True:
            check(held)
            tried_s = time.monotonic()
            try:
                return call()
            except (UnavailableError, DeadlineError) as error:
                self._begun_s += time.monotonic() - tried_s
                if time.monotonic() - begun_s >= WAIT_S:
                    raise
                if not num_failures:
                    log.warning("task.waits", task=held.task.task_id, what=what, code=error.code, error=error.message)
            until_s = time.monotonic() + BACKOFF_S[min(num_failures, len(BACKOFF_S) - 1)]
            while (now_s := time.monotonic()) < until_s:
                check(held)
                time.sleep(PAUSE_S)
                self._begun_s += time.monotonic() - now_s
            num_failures += 1


def _check_capabilities(card: ModelCard, params: GenerateParams) -> None:
    """Refuse what the model cannot be made from. Raises: InvalidRequestError: names what it lacks."""
    for one in params.references:
        needed = NEEDED.get(one.role)
        if needed not in card.capabilities:
            raise InvalidRequestError(
                f"Model {card.id} takes no {one.role[:40]}: it lacks the capability {needed or 'for that'}."
            )
    if not params.references and Capability.TEXT_TO_VIDEO not in card.capabilities:
        raise InvalidRequestError(
            f"Model {card.id} makes no clip of text alone: it lacks the capability text_to_video."
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
