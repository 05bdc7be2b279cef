"""What the server answers with, typed. A field that a newer server adds is in `raw`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class VideoError:
    """Why a video was not made."""

    code: str
    message: str


@dataclass(frozen=True)
class Cost:
    """What a video costs at list price; None: not known, or not yet."""

    currency: str
    estimated: float | None  # when it was accepted
    charged: float | None  # 0 unless it was completed
    refunded: float | None


@dataclass(frozen=True)
class Video:
    """One video job."""

    id: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    phase: str
    progress: int  # percent
    model: str
    prompt: str
    seconds: str
    size: str
    seed: int
    created_at: int  # Unix seconds
    completed_at: int | None
    expires_at: int | None
    error: VideoError | None
    queue_position: int | None
    eta_seconds: float | None
    steps_done: int
    steps_total: int
    attempt: int
    metadata: Mapping[str, str]
    events_url: str
    service_class: str = ""
    priority: int = 0
    deadline_at: int | None = None  # Unix seconds
    retry_of: str | None = None  # the video whose request this one repeats
    remixed_from_video_id: str | None = None  # the video that this one is made from
    stage: str | None = None  # the step of the pipeline that it is in: generate, finish
    estimated_completion_at: int | None = None  # Unix seconds
    cost: Cost | None = None
    gpu_seconds: float = 0.0  # busy seconds of its devices so far
    inference_time_s: float | None = None  # of denoising and decoding, once both are done
    stage_durations: Mapping[str, float] = field(default_factory=dict)  # seconds of what is done
    peak_memory_mb: float | None = None  # MiB
    preview_url: str | None = None  # a WebP of what it is going to look like; opens for an hour without a key
    raw: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether nothing more is going to happen to it."""
        return self.status in ("completed", "failed")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Video":
        """Read the wire object; extensions of ours may be missing."""
        error, cost = data.get("error"), data.get("cost")
        return cls(
            id=data["id"],
            status=data["status"],
            phase=data.get("phase") or data["status"],
            progress=data.get("progress") or 0,
            model=data.get("model") or "",
            prompt=data.get("prompt") or "",
            seconds=str(data.get("seconds") or ""),
            size=data.get("size") or "",
            seed=data.get("seed") or 0,
            created_at=data.get("created_at") or 0,
            completed_at=data.get("completed_at"),
            expires_at=data.get("expires_at"),
            error=VideoError(error.get("code", ""), error.get("message", "")) if error else None,
            queue_position=data.get("queue_position"),
            eta_seconds=data.get("eta_seconds"),
            steps_done=data.get("steps_done") or 0,
            steps_total=data.get("steps_total") or 0,
            attempt=data.get("attempt") or 0,
            metadata=data.get("metadata") or {},
            events_url=data.get("events_url") or "",
            service_class=data.get("service_class") or "",
            priority=data.get("priority") or 0,
            deadline_at=data.get("deadline_at"),
            retry_of=data.get("retry_of"),
            remixed_from_video_id=data.get("remixed_from_video_id"),
            stage=data.get("stage"),
            estimated_completion_at=data.get("estimated_completion_at"),
            cost=_cost(cost) if cost else None,
            gpu_seconds=data.get("gpu_seconds") or 0.0,
            inference_time_s=data.get("inference_time_s"),
            stage_durations=data.get("stage_durations") or {},
            peak_memory_mb=data.get("peak_memory_mb"),
            preview_url=data.get("preview_url"),
            raw=dict(data),
        )


def _cost(data: Mapping[str, Any]) -> Cost:
    known = (data.get(name) for name in ("estimated", "charged", "refunded"))
    return Cost(data.get("currency") or "USD", *known)


@dataclass(frozen=True)
class Model:
    """One model and what it can do."""

    id: str
    title: str
    sizes: tuple[str, ...]
    seconds: tuple[str, ...]
    usd_per_second: float | None = None  # of finished video
    raw: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Model":
        """Read the wire object."""
        sizes, seconds = tuple(data.get("sizes") or ()), tuple(data.get("seconds") or ())
        usd_per_second = (data.get("price") or {}).get("per_second")
        return cls(data["id"], data.get("title") or data["id"], sizes, seconds, usd_per_second, dict(data))


@dataclass(frozen=True)
class Estimate:
    """What a request would make, cost and wait for, if it were sent now."""

    model: str
    seconds: str
    size: str
    service_class: str
    usd: float  # list price of the finished video
    queue_position: int | None  # videos before it; None: not known, as below
    wait_seconds: float | None  # until it begins
    run_seconds: float  # from its first step to the last
    eta_seconds: float | None  # until it is finished
    raw: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Estimate":
        """Read the wire object."""
        return cls(
            model=data["model"],
            seconds=str(data["seconds"]),
            size=data["size"],
            service_class=data.get("service_class") or "",
            usd=data["price"],
            queue_position=data.get("queue_position"),
            wait_seconds=data.get("wait_seconds"),
            run_seconds=data.get("run_seconds") or 0.0,
            eta_seconds=data.get("eta_seconds"),
            raw=dict(data),
        )


@dataclass(frozen=True)
class Event:
    """Something that happened to a video.

    `type` is one of queued, started, progress (step, steps, percent, phase, eta_s or None), checkpoint (step),
    preempted, resumed (from_step), decoding, postprocessing, completed (urls), failed (code, message), cancelled, and
    snapshot: the whole Video in place of events that are no longer kept. While a video waits, further queued events
    without an id say its position (videos before it) and eta_s (seconds until it is expected to be finished, or None).
    """

    id: str  # resumes: stream(…, last_event_id=id); "" for a place in the queue, and a snapshot without history
    type: str
    data: Mapping[str, Any]

    @property
    def is_last(self) -> bool:
        """Whether the video is finished with this event."""
        if self.type == "snapshot":
            return self.data.get("status") in ("completed", "failed")
        return self.type in ("completed", "failed", "cancelled")

    @property
    def video(self) -> Video | None:
        """The Video that a snapshot carries."""
        return Video.from_json(self.data) if self.type == "snapshot" else None


@dataclass(frozen=True)
class Progress:
    """Where a video stands."""

    phase: str = "queued"  # queued, loading, denoising, decoding, postprocessing, completed, failed, cancelled
    percent: float = 0.0
    step: int = 0
    steps: int = 0  # 0: not known yet
    eta_s: float | None = None  # seconds until it is expected to be finished; None: not known
    position: int | None = None  # videos before it while it waits; None: not known

    @classmethod
    def of(cls, video: Video) -> "Progress":
        """Return where this video stands."""
        position = video.queue_position if video.phase == "queued" else None
        eta_s = None if video.is_finished else video.eta_seconds
        return cls(video.phase, video.progress, video.steps_done, video.steps_total, eta_s, position)

    def after(self, event: Event) -> "Progress":
        """Return where it stands after this event."""
        if event.video is not None:
            return Progress.of(event.video)
        data = event.data
        if event.type == "progress":
            phase, step, steps = data.get("phase") or self.phase, data.get("step") or 0, data.get("steps") or 0
            return Progress(phase, data.get("percent") or 0.0, step, steps, data.get("eta_s"))
        if event.type == "completed":
            return replace(self, phase="completed", percent=100.0, step=self.steps, eta_s=None, position=None)
        if event.type in ("queued", "preempted"):
            return replace(self, phase="queued", eta_s=data.get("eta_s"), position=data.get("position"))
        if event.type in ("started", "resumed") and self.phase == "queued":  # the worker may have been faster
            return replace(self, phase="loading", eta_s=None, position=None)
        if event.type in ("decoding", "postprocessing", "failed", "cancelled"):
            return replace(self, phase=event.type, eta_s=None, position=None)
        return self
