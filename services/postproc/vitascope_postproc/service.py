"""The use case of postproc: claim one task, turn its mezzanine into published files, report.

Everything is written under the attempt, so a killed or doubled execution leaves nothing that anyone looks at: what
counts is the one Report that the scheduler accepts.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from vitascope_common import ids, meters, telemetry
from vitascope_common.errors import (
    ConfigurationError,
    CorruptMezzanineError,
    CorruptObjectError,
    ErrorKind,
    InternalError,
    InvalidRequestError,
    UnavailableError,
    VitascopeError,
)
from vitascope_common.executor import Action, Executor, HeldTask, Outcome
from vitascope_common.jobs import Artifact, FinishParams, Progress, Task
from vitascope_common.objectstore import ObjectInfo, ObjectStore
from vitascope_common.renditions import RENDITIONS
from vitascope_postproc import metrics
from vitascope_postproc.scratch import Scratch

log = structlog.stdlib.get_logger("vitascope.postproc")

MANIFEST_SCHEMA = "vitascope.manifest/1"
PHASE = "postprocessing"
TRUSTED = "Trusted"
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0)
"""How long an attempt waits for a scheduler or an object store that is away, 24 s in all."""
PAUSE_S = 0.05

T = TypeVar("T")


@dataclass(frozen=True)
class EncodePlan:
    """What one pass of the encoder reads and writes."""

    source: Path
    video: Path
    thumbnail: Path
    spritesheet: Path
    width_px: int
    height_px: int
    num_frames: int
    fps: int


@dataclass(frozen=True)
class MediaFacts:
    """What a media file really holds; `duration_s` 0 means unknown."""

    codec: str
    width_px: int
    height_px: int
    num_frames: int
    duration_s: float


@dataclass(frozen=True)
class Statement:
    """What is signed into a video about its making."""

    model: str
    job_id: str
    prompt_sha256: str
    title: str


class Encoder(Protocol):
    """Makes video, thumbnail and spritesheet in one pass."""

    def encode(self, plan: EncodePlan, on_frame: Callable[[int], None]) -> None:
        """Write both files; what `on_frame` raises ends the work. Raises VitascopeError."""
        ...


class Inspector(Protocol):
    """Looks into media files."""

    def inspect(self, path: Path) -> MediaFacts:
        """Decode a file of our own whole. Raises CorruptObjectError: it cannot be decoded."""
        ...

    def look_at_source(self, plan: EncodePlan, check: Callable[[], None], *, is_whole: bool) -> MediaFacts:
        """Decode the first and the last frame of a mezzanine, or with `is_whole` all, in a process that can do no harm.

        What `check` raises ends the work.
        Raises CorruptObjectError: it cannot be decoded, or is far from what was ordered; DeadlineError and
        UnavailableError: the machine is too busy.
        """
        ...


class Signer(Protocol):
    """Signs provenance into videos."""

    def sign(self, source: Path, target: Path, statement: Statement) -> None:
        """Write a signed copy. Raises InternalError."""
        ...

    def validation_state(self, path: Path) -> str:
        """Return "Trusted" for an intact video of ours."""
        ...


class Events(Protocol):
    """Tells people which stage a job has reached."""

    def say(self, task: Task, stage: str) -> None:
        """Say it; never raises."""
        ...


class _Dropped(Exception):
    """The scheduler wants this attempt no more."""


class _Drained(Exception):
    """This process must end before the work does."""


class Postproc:
    """Runs one task at a time; `drain` is called from a signal's thread, all else from the worker's."""

    def __init__(
        self,
        executor: Executor,
        store: ObjectStore,
        encoder: Encoder,
        inspector: Inspector,
        signer: Signer,
        events: Events,
        scratch: Scratch,
    ) -> None:
        self._executor = executor
        self._store = store
        self._encoder = encoder
        self._inspector = inspector
        self._signer = signer
        self._events = events
        self._scratch = scratch
        self._drain_at_s: float | None = None

    def drain(self, grace_s: float) -> None:
        """Let the running task go on for `grace_s` seconds; then it is given back."""
        self._drain_at_s = time.monotonic() + grace_s

    def run(self, task_id: str, traceparent: str = "") -> None:
        """Execute one task if it can be claimed. Never raises; may be called for the same task any number of times."""
        try:
            with telemetry.span("postprocess.attempt", parent=traceparent, task=task_id):
                held = self._patiently("claim", lambda: self._executor.claim(task_id), self._check_drain)
                attempt = telemetry.current_traceparent()
        except (_Drained, VitascopeError) as error:
            # Not claimed, not lost: the scheduler sends again what stays ready.
            log.warning("task.not_claimed", task=task_id, error=str(error))
            return
        if held is None:
            metrics.TASKS.labels("refused").inc()
            return
        task = held.task
        with (
            structlog.contextvars.bound_contextvars(job=task.job_id, task=task.task_id, attempt=task.attempt),
            telemetry.continued(attempt),
        ):
            outcome = self._execute(held)
            metrics.TASKS.labels(outcome).inc()

    def _execute(self, held: HeldTask) -> str:
        """Work and report; return the outcome for the metrics."""
        try:
            with _measured(held):
                outputs = self._finish(held, _Watch(self, held))
        except _Dropped:
            if held.action is Action.STALE:
                self._executor.release(held)
                return "stale"
            return self._report(held, Outcome.CANCELLED)
        except _Drained:
            return self._report(held, Outcome.YIELDED)
        except VitascopeError as error:
            log.warning("task.failed", code=error.code, error=error.message)
            return self._report(held, Outcome.FAILED, error=error)
        except OSError as error:
            log.warning("task.failed", error=str(error))
            return self._report(
                held, Outcome.FAILED, error=UnavailableError(f"Local storage failed: {error.strerror}.")
            )
        except Exception:
            log.exception("task.crashed")
            return self._report(held, Outcome.FAILED, error=InternalError())
        return self._report(held, Outcome.DONE, outputs=outputs)

    def _report(
        self,
        held: HeldTask,
        outcome: Outcome,
        *,
        outputs: tuple[Artifact, ...] = (),
        error: VitascopeError | None = None,
    ) -> str:
        can_retry = error is not None and _is_retryable(error)
        try:
            is_accepted = self._executor.report(held, outcome, outputs=outputs, error=error, is_retryable=can_retry)
        except Exception:  # a report that cannot even be written: the lease runs out and another attempt follows
            log.exception("task.report_failed")
            self._executor.release(held)
            return "failed"
        return outcome.value if is_accepted else "stale"

    def _finish(self, held: HeldTask, watch: "_Watch") -> tuple[Artifact, ...]:
        task = held.task
        params, mezzanine = _read_task(task)
        held.progress = Progress(0, params.num_frames, "frame", PHASE)
        with self._scratch.folder() as folder:
            source = folder / "mezzanine.mkv"
            self._patiently("fetch", lambda: self._store.get_file(mezzanine.key, source, mezzanine.sha256), watch.check)
            plan = EncodePlan(
                source,
                folder / "video.mp4",
                folder / "thumbnail.webp",
                folder / "spritesheet.jpg",
                params.width_px,
                params.height_px,
                params.num_frames,
                params.fps,
            )
            self._check_mezzanine(plan, watch)
            self._events.say(task, "encode")
            facts = self._encode(plan, watch)
            self._events.say(task, "sign")
            signed = folder / "signed.mp4"
            statement = Statement(params.model, task.job_id, params.prompt_sha256, f"{task.job_id}.mp4")
            state = self._sign(plan.video, signed, statement)
            watch.check()
            self._events.say(task, "upload")
            return self._upload(task, replace(plan, video=signed), facts, state, watch)

    def _encode(self, plan: EncodePlan, watch: "_Watch") -> MediaFacts:
        began_s = time.monotonic()
        with telemetry.span("postprocess.encode"):
            try:
                self._encoder.encode(plan, watch.frames)
                facts = _check_video(self._inspector.inspect(plan.video), plan)
                _check_picture(self._inspector.inspect(plan.thumbnail), "webp")
                _check_picture(self._inspector.inspect(plan.spritesheet), "mjpeg")
            except VitascopeError:
                self._check_mezzanine(plan, watch, is_whole=True)
                raise
        metrics.ENCODE_SECONDS.observe(time.monotonic() - began_s)
        watch.frames(plan.num_frames)
        return facts

    def _check_mezzanine(self, plan: EncodePlan, watch: "_Watch", *, is_whole: bool = False) -> None:
        """Raise CorruptMezzanineError unless the input is what was ordered. Its hash was right."""
        try:
            with telemetry.span("postprocess.probe"):
                found = self._inspector.look_at_source(plan, watch.check, is_whole=is_whole)
        except CorruptObjectError as error:
            raise CorruptMezzanineError(f"The generated video cannot be decoded: {error.message}") from error
        expected = (plan.width_px, plan.height_px, plan.num_frames)
        if (found.width_px, found.height_px, found.num_frames) != expected:
            raise CorruptMezzanineError(
                f"The generated video has {found.num_frames} frames of {found.width_px}x{found.height_px}, "
                f"not {plan.num_frames} of {plan.width_px}x{plan.height_px}."
            )

    def _sign(self, source: Path, target: Path, statement: Statement) -> str:
        began_s = time.monotonic()
        with telemetry.span("postprocess.sign"):
            self._signer.sign(source, target, statement)
            state = self._signer.validation_state(target)
        if state != TRUSTED:
            raise InternalError(f"The signed video does not verify: its state is {state or 'unsigned'}, not {TRUSTED}.")
        metrics.SIGN_SECONDS.observe(time.monotonic() - began_s)
        return state

    def _upload(
        self, task: Task, plan: EncodePlan, facts: MediaFacts, state: str, watch: "_Watch"
    ) -> tuple[Artifact, ...]:
        def put(name: str, media_type: str, what: Path | bytes) -> Artifact:
            key = task.video_key(name)

            def write() -> ObjectInfo:
                if isinstance(what, bytes):
                    return self._store.put_bytes(key, what, media_type)
                return self._store.put_file(key, what, media_type)

            info = self._patiently("upload", write, watch.check)
            role = name.partition(".")[0]
            return Artifact(role, role, media_type, key, info.sha256 or "", info.num_bytes)

        with telemetry.span("postprocess.upload"):
            paths = {"video": plan.video, "thumbnail": plan.thumbnail, "spritesheet": plan.spritesheet}
            files = tuple(
                put(f"{name}.{RENDITIONS[name].suffix}", RENDITIONS[name].media_type, path)
                for name, path in paths.items()
            )
            manifest = make_manifest(task, facts, files, state)
            return put("manifest.json", "application/json", manifest), *files

    def _patiently(self, what: str, call: Callable[[], T], check: Callable[[], None]) -> T:
        """Call something remote again while it is away; `check` ends the wait by raising."""
        for backoff_s in BACKOFF_S:
            check()
            try:
                return call()
            except VitascopeError as error:
                if error.kind not in (ErrorKind.UNAVAILABLE, ErrorKind.TIMEOUT):
                    raise
                log.warning("remote.away", during=what, error=error.message)
            until_s = time.monotonic() + backoff_s
            while time.monotonic() < until_s:
                check()
                time.sleep(PAUSE_S)
        check()
        return call()

    def _check_drain(self) -> None:
        if self._drain_at_s is not None and time.monotonic() >= self._drain_at_s:
            raise _Drained("the worker is shutting down")


class _Watch:
    """Keeps what heartbeats say true, and ends work that nobody wants."""

    def __init__(self, service: Postproc, held: HeldTask) -> None:
        self._service = service
        self._held = held
        self._began_s = time.monotonic()

    def check(self) -> None:
        """Raise when the work is to stop."""
        self._held.used_s = time.monotonic() - self._began_s
        if self._held.is_over:
            raise _Dropped(self._held.action.value)
        self._service._check_drain()

    def frames(self, num_frames: int) -> None:
        """Note how many frames are written, and check."""
        before = self._held.progress
        self._held.progress = Progress(min(num_frames, before.total), before.total, before.unit, before.phase)
        self.check()


def make_manifest(task: Task, facts: MediaFacts, files: tuple[Artifact, ...], validation_state: str) -> bytes:
    """Return manifest.json: what delivery may serve of this job."""
    params, _ = _read_task(task)
    manifest: dict[str, Any] = {
        "schema": MANIFEST_SCHEMA,
        "job_id": task.job_id,
        "model": params.model,
        "created_at_ms": ids.now_ms(),
        "width_px": facts.width_px,
        "height_px": facts.height_px,
        "num_frames": facts.num_frames,
        "fps": params.fps,
        "duration_s": facts.num_frames / params.fps,
        "files": {
            file.name: {
                "key": file.key,
                "media_type": file.media_type,
                "sha256": file.sha256,
                "num_bytes": file.num_bytes,
            }
            for file in files
        },
        "provenance": {"format": "c2pa", "validation_state": validation_state},
    }
    return json.dumps(manifest, indent=2).encode()


@contextmanager
def _measured(held: HeldTask) -> Iterator[None]:
    """Meter how long the block takes, however it ends."""
    began_s = time.monotonic()
    try:
        yield
    finally:
        held.meters = {meters.POSTPROCESS_S: time.monotonic() - began_s}


def _read_task(task: Task) -> tuple[FinishParams, Artifact]:
    """Return parameters and mezzanine. Raises InvalidRequestError: no such task was ever meant for postproc."""
    mezzanine = next((one for one in task.inputs if one.role == "mezzanine"), None)
    if not isinstance(task.params, FinishParams) or mezzanine is None:
        raise InvalidRequestError(f"Task {task.task_id} has nothing to post-process.", param="inputs")
    params = task.params
    if min(params.fps, params.num_frames, params.width_px, params.height_px) < 1:
        raise InvalidRequestError(f"Task {task.task_id} describes no video.", param="params")
    return params, mezzanine


def _check_video(found: MediaFacts, plan: EncodePlan) -> MediaFacts:
    expected = (
        "h264",
        plan.width_px + plan.width_px % 2,
        plan.height_px + plan.height_px % 2,
        plan.num_frames,
    )
    if (found.codec, found.width_px, found.height_px, found.num_frames) != expected:
        raise InternalError(f"The encoder wrote {found}, expected {expected}.")
    if abs(found.duration_s - plan.num_frames / plan.fps) > 0.5 / plan.fps:
        raise InternalError(f"The encoded video lasts {found.duration_s:.3f} s.")
    return found


def _check_picture(found: MediaFacts, codec: str) -> None:
    if found.codec != codec or found.num_frames != 1:
        raise InternalError(f"The encoder wrote {found}, expected one picture ({codec}).")


def _is_retryable(error: VitascopeError) -> bool:
    """Tell whether another attempt may do better."""
    return not isinstance(error, CorruptMezzanineError | InvalidRequestError | ConfigurationError)
