"""The objects of the public API, exactly as they go over the wire. Strict clients read them: `seconds` is a string,
`progress` an integer, `error` an object or null."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from vitascope_common import meters
from vitascope_common.jobs import ACTIVE_JOB, GENERATE, JobState
from vitascope_common.registry import ModelCard
from vitascope_gateway import previews
from vitascope_gateway.creation import Estimate
from vitascope_gateway.service import JobRecord, QueuePosition

STATUS: Mapping[JobState, Literal["queued", "in_progress", "completed", "failed"]] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "failed",  # with error.code "cancelled": a fifth status would hang clients that poll
}


class VideoError(BaseModel):
    """Why a video was not made."""

    code: str
    message: str


class Cost(BaseModel):
    """What a video costs at list price."""

    currency: Literal["USD"] = "USD"
    estimated: float | None = Field(description="When it was accepted; null for videos of long ago.")
    charged: float | None = Field(description="0 unless it was completed; null as long as it is under way.")
    refunded: float | None = Field(
        description="What of `estimated` is not charged; null as long as it is under way, and for videos of long ago."
    )


class Video(BaseModel):
    """One video job."""

    id: str
    object: Literal["video"] = "video"
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100, description="Percent.")
    created_at: int = Field(description="Unix seconds.")
    completed_at: int | None
    expires_at: int | None = Field(description="When its files are deleted, Unix seconds.")
    model: str
    prompt: str
    seconds: str = Field(description="Of an extension: of all of it.")
    size: str
    remixed_from_video_id: str | None = Field(description="The video that this one changes or continues.")
    error: VideoError | None
    phase: str = Field(description="What happens right now: queued, denoising, decoding, postprocessing, cancelled, …")
    queue_position: int | None = Field(description="Jobs in front of it; null when unknown.")
    eta_seconds: float | None = Field(description="Expected seconds until it is finished; null when unknown.")
    estimated_completion_at: int | None = Field(description="The same as a time, Unix seconds; null when unknown.")
    stage: str | None = Field(description="The step of the pipeline that it is in: generate, finish; else null.")
    steps_done: int
    steps_total: int
    attempt: int = Field(description="How often the work was begun.")
    seed: int
    fps: int
    num_frames: int
    metadata: dict[str, str]
    service_class: str = Field(description="Which share of the machines it waits for: realtime, standard, batch.")
    priority: int = Field(description="Order among your own waiting videos of one class: lower is sooner.")
    deadline_at: int | None = Field(description="When it fails with the code `expired` unless finished, Unix seconds.")
    retry_of: str | None = Field(description="The video whose request this one repeats.")
    cost: Cost
    gpu_seconds: float = Field(ge=0, description="Busy seconds of its devices so far, all of them and all attempts.")
    inference_time_s: float | None = Field(description="Seconds of denoising and decoding; null until both are done.")
    stage_durations: dict[str, float] = Field(
        description="Seconds of what is done: queue, load, encode, denoise, decode, upload, postprocess; of all "
        "attempts together."
    )
    peak_memory_mb: float | None = Field(description="Memory of its device at most, MiB; null until it is known.")
    preview_url: str | None = Field(
        description="What it is going to look like, a small WebP; opens for an hour without a key. A secret. Null "
        "unless it is being denoised by a model that shows it."
    )
    events_url: str = Field(description="Server-sent events of this job; opens for an hour without a key. A secret.")
    websocket_url: str = Field(description="The same events as a WebSocket; opens for an hour without a key. A secret.")


class VideoList(BaseModel):
    """One page of videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """The answer to DELETE."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Price(BaseModel):
    """What finished video costs."""

    currency: Literal["USD"] = "USD"
    per_second: float = Field(ge=0)


class VideoEstimate(BaseModel):
    """What a request would make, cost and wait for, if it were sent now."""

    object: Literal["video.estimate"] = "video.estimate"
    model: str
    seconds: str
    size: str
    num_frames: int
    fps: int
    num_inference_steps: int
    service_class: str
    currency: Literal["USD"] = "USD"
    price: float = Field(ge=0, description="List price of the finished video.")
    queue_position: int | None = Field(description="Jobs in front of it; null when unknown.")
    wait_seconds: float | None = Field(description="Expected seconds until it begins; null when unknown.")
    run_seconds: float = Field(description="Expected seconds from its first step to the last.")
    eta_seconds: float | None = Field(description="Expected seconds until it is finished; null when unknown.")


class Model(BaseModel):
    """One model and what it can do."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vitascope"
    title: str
    description: str
    licence: str
    sizes: list[str]
    seconds: list[str]
    capabilities: list[str] = Field(description="text_to_video, image_to_video, keyframes, negative_prompt, …")
    solvers: list[str]
    temporal_attention: list[str] = Field(description="Which a request may ask for.")
    fps: int
    defaults: dict[str, str | int | float]
    limits: dict[str, Any]
    price: Price


class ModelList(BaseModel):
    """Every model."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """Every answer that is not a success."""

    error: ErrorBody


class Urls:
    """The URLs that answers name; `token` gives what opens the events of a job without a key, None: nothing does."""

    def __init__(self, base: str, token: Callable[[JobRecord], str] | None = None) -> None:
        self.base = base  # without a path
        self._base = f"{base}/v1/videos"
        self._token = token

    def video(self, job_id: str) -> str:
        """URL of the Video object."""
        return f"{self._base}/{job_id}"

    def events(self, record: JobRecord) -> tuple[str, str]:
        """URLs of its event stream and of its WebSocket."""
        query = "" if self._token is None else f"?token={self._token(record)}"
        path = f"{self._base}/{record.job_id}"
        websocket = path.replace("http", "ws", 1) if path.startswith("http") else path
        return f"{path}/events{query}", f"{websocket}/ws{query}"

    def preview(self, record: JobRecord) -> str:
        """URL of its newest preview."""
        query = "" if self._token is None else f"?token={self._token(record)}"
        return f"{self.base}{previews.preview_path(record.job_id)}{query}"

    def content(self, job_id: str, variant: str) -> str:
        """URL of one of its files."""
        return f"{self._base}/{job_id}/content?variant={variant}"


def video(record: JobRecord, urls: Urls, position: QueuePosition | None = None) -> Video:
    """Show a job to its tenant."""
    is_completed = record.state is JobState.COMPLETED
    position = position or QueuePosition()
    events_url, websocket_url = urls.events(record)
    return Video(
        id=record.job_id,
        status=STATUS[record.state],
        progress=_progress(record),
        created_at=record.created_at_ms // 1000,
        completed_at=_seconds(record.finished_at_ms) if is_completed else None,
        expires_at=_seconds(record.expires_at_ms),
        model=record.model,
        prompt=record.prompt,
        seconds=record.seconds,
        size=record.size,
        remixed_from_video_id=record.remixed_from,
        error=_error(record),
        phase=record.phase if record.state is JobState.RUNNING and record.phase else record.state.value,
        queue_position=position.position,
        eta_seconds=position.eta_s,
        estimated_completion_at=None if position.eta_s is None else round(time.time() + position.eta_s),
        stage=record.stage,
        steps_done=record.steps_total if is_completed else record.steps_done,
        steps_total=record.steps_total,
        attempt=record.attempt,
        seed=record.params["seed"],
        fps=record.params["fps"],
        num_frames=record.num_frames,
        metadata=dict(record.labels),
        service_class=record.class_name,
        priority=record.priority,
        deadline_at=_seconds(record.deadline_at_ms),
        retry_of=record.retry_of,
        cost=_cost(record),
        gpu_seconds=round(record.gpu_seconds, 3),
        inference_time_s=_inference_s(record),
        stage_durations=_durations(record),
        peak_memory_mb=_rounded(record.meters.get(meters.PEAK_MEMORY_MB)),
        preview_url=urls.preview(record) if previews.are_shown(record) else None,
        events_url=events_url,
        websocket_url=websocket_url,
    )


def video_list(records: Sequence[JobRecord], has_more: bool, urls: Urls) -> VideoList:
    """Show one page."""
    return VideoList(
        data=[video(record, urls) for record in records],
        first_id=records[0].job_id if records else None,
        last_id=records[-1].job_id if records else None,
        has_more=has_more,
    )


def model(card: ModelCard) -> Model:
    """Show a model card."""
    defaults = card.defaults
    return Model(
        id=card.id,
        created=card.created,
        title=card.title,
        description=card.description,
        licence=card.licence,
        sizes=list(card.sizes),
        seconds=list(card.seconds),
        capabilities=list(card.capabilities),
        solvers=list(card.solvers),
        temporal_attention=list(card.attention.allowed or (card.attention.temporal,)),
        fps=defaults.fps,
        defaults={
            "size": defaults.size,
            "seconds": defaults.seconds,
            "num_inference_steps": defaults.num_inference_steps,
            "guidance_scale": defaults.guidance_scale,
            "solver": defaults.solver,
            "temporal_attention": card.attention.temporal,
        },
        limits={
            "num_inference_steps": list(card.limits.num_inference_steps),
            "guidance_scale": list(card.limits.guidance_scale),
            "prompt_max_chars": card.limits.prompt_max_chars,
        },
        price=Price(per_second=card.price.usd_micros_per_second / 1e6),
    )


def estimate(found: Estimate) -> VideoEstimate:
    """Show what a request would make."""
    request, place = found.request, found.place
    card = request.card
    return VideoEstimate(
        model=card.id,
        seconds=request.seconds,
        size=request.size,
        num_frames=card.num_frames[request.seconds],
        fps=card.defaults.fps,
        num_inference_steps=request.num_inference_steps,
        service_class=found.class_name,
        price=found.usd_micros / 1e6,
        queue_position=place.position,
        wait_seconds=None if place.eta_s is None else round(max(0.0, place.eta_s - found.run_s), 1),
        run_seconds=round(found.run_s, 1),
        eta_seconds=place.eta_s,
    )


def _progress(record: JobRecord) -> int:
    """Percent of the steps; 100 only when the video exists."""
    if record.state is JobState.COMPLETED:
        return 100
    return min(99, 100 * record.steps_done // record.steps_total) if record.steps_total > 0 else 0


def _error(record: JobRecord) -> VideoError | None:
    if record.state is JobState.CANCELLED:
        return VideoError(code=record.error_code or "cancelled", message=record.error_message or "It was cancelled.")
    if record.state is JobState.FAILED:
        return VideoError(code=record.error_code or "internal", message=record.error_message or "It failed.")
    return None


def _cost(record: JobRecord) -> Cost:
    """A video that was not made costs nothing."""
    price = None if record.price_usd_micros is None else record.price_usd_micros / 1e6
    if record.state in ACTIVE_JOB:
        return Cost(estimated=price, charged=None, refunded=None)
    if record.state is JobState.COMPLETED:
        return Cost(estimated=price, charged=price, refunded=0.0)
    return Cost(estimated=price, charged=0.0, refunded=price)


def _inference_s(record: JobRecord) -> float | None:
    """Seconds from the first step to the last frame, attempts together; None until there is a clip."""
    if record.stage == GENERATE.stages[0].name or meters.DECODE_S not in record.meters:
        return None
    return _rounded(record.meters.get(meters.DENOISE_S, 0.0) + record.meters[meters.DECODE_S])


def _durations(record: JobRecord) -> dict[str, float]:
    begun = {} if record.started_at_ms is None else {"queue": (record.started_at_ms - record.created_at_ms) / 1000}
    measured = {name.removesuffix("_s"): record.meters[name] for name in meters.DURATIONS if name in record.meters}
    return {name: round(max(0.0, took_s), 3) for name, took_s in (begun | measured).items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _seconds(milliseconds: int | None) -> int | None:
    return None if milliseconds is None else milliseconds // 1000
