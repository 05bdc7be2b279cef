"""What the gateway does with jobs that exist: show, list, cancel and delete them, and point to their bytes."""

import asyncio
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from pydantic import SecretStr

from vitascope_common import ids, tokens
from vitascope_common.errors import (
    InvalidRequestError,
    NotFoundError,
    OutputBlockedError,
    UnavailableError,
    VideoExpiredError,
    VideoFailedError,
    VideoNotReadyError,
    VitascopeError,
)
from vitascope_common.jobs import Artifact, JobState
from vitascope_common.references import num_repeated_frames
from vitascope_common.registry import ModelCard
from vitascope_common.renditions import RENDITIONS
from vitascope_gateway.admission import NewJob
from vitascope_gateway.hook import Hook
from vitascope_gateway.idempotency import Repeatable
from vitascope_gateway.queue_view import PoolView

_log = structlog.stdlib.get_logger("vitascope.gateway")


@dataclass(frozen=True)
class Caller:
    """Whose request this is, and what it may."""

    tenant_id: str
    classes: tuple[str, ...]  # that its plan includes; a request that names none gets the first
    api_key_sha256: str
    scopes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Verdict:
    """What the prompt service says about a prompt; `prompt` and `negative_prompt` are normalised."""

    is_allowed: bool
    prompt: str
    negative_prompt: str
    category: str
    score: float
    policy_version: str
    message: str
    param: str = "prompt"  # the field that was refused, if one was


@dataclass(frozen=True)
class QueuePosition:
    """Where an active job stands; None where it is not known."""

    position: int | None = None
    eta_s: float | None = None


@dataclass(frozen=True)
class JobRecord:
    """One job as SQL has it, with the progress of the task that does the work."""

    job_id: str
    tenant_id: str
    state: JobState
    phase: str
    model: str
    prompt: str
    params: Mapping[str, Any]
    labels: Mapping[str, str]
    created_at_ms: int
    finished_at_ms: int | None = None
    expires_at_ms: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    steps_done: int = 0
    steps_total: int = 0
    attempt: int = 0
    cost_s: float = 0.0
    stage: str | None = None  # of its kind; None: it does not run
    gpu_seconds: float = 0.0
    started_at_ms: int | None = None
    price_usd_micros: int | None = None  # None: admitted before it was kept
    has_previews: bool = False  # its model makes some
    meters: Mapping[str, float] = field(default_factory=dict)  # of the attempts that have ended
    class_name: str = "standard"
    priority: int = 0
    deadline_at_ms: int | None = None
    retry_of: str | None = None
    remixed_from: str | None = None
    hook: Hook | None = None

    @property
    def size(self) -> str:
        """Width and height as clients name them."""
        return f"{self.params['width_px']}x{self.params['height_px']}"

    @property
    def num_frames(self) -> int:
        """Frames of the video, those of a clip that it extends included."""
        num_frames, num_before = int(self.params["num_frames"]), int(self.params.get("num_frames_before", 0))
        return num_before + num_frames - num_repeated_frames(num_before, num_frames)

    @property
    def seconds(self) -> str:
        """The length as its client named it; of an extension all of it, from the first frame to the last."""
        if not self.params.get("num_frames_before"):
            return str(self.params["seconds"])
        return f"{(self.num_frames - 1) / self.params['fps']:.6g}"


class Store(Protocol):
    """SQL. Every method raises UnavailableError when the database is away."""

    async def caller(self, key_sha256: str) -> Caller | None: ...
    async def admit(self, job: NewJob, sent: Repeatable | None) -> None:
        """Write the job; an UnknownOutcomeError means that it may be written, an AlreadyMadeError that there is one."""
        ...

    async def made(self, sent: Repeatable) -> str | None:
        """Return the job that this request has made already."""
        ...

    async def note_refusal(self, sent: Repeatable) -> None:
        """Remember that the first try of a call was refused, so that the next one is known for the same."""
        ...

    async def job(self, tenant_id: str, job_id: str) -> JobRecord | None: ...
    async def open_jobs(self, job_ids: Iterable[str]) -> frozenset[str]: ...
    async def jobs(self, tenant_id: str, job_ids: Sequence[str]) -> Mapping[str, JobRecord]: ...
    async def page(
        self, tenant_id: str, after: str | None, limit: int, is_ascending: bool
    ) -> tuple[Sequence[JobRecord], bool]: ...
    async def published(self, job_id: str) -> Sequence[Artifact]: ...
    async def cost_ratio(self, pool: str, model: str) -> float:
        """Return what runs of a model really cost over what its card estimates."""
        ...

    async def check(self) -> None: ...


class Prompts(Protocol):
    """The prompt service."""

    async def check(self, tenant_id: str, model: str, prompt: str, negative_prompt: str) -> Verdict: ...
    async def is_serving(self) -> bool: ...


class Scheduler(Protocol):
    """The scheduler."""

    async def submit(self, job_id: str, timeout_s: float) -> None: ...
    async def cancel(self, tenant_id: str, job_id: str) -> None: ...
    async def delete(self, tenant_id: str, job_id: str) -> None: ...
    async def queue_position(self, job_id: str) -> QueuePosition: ...
    async def queue_positions(self, job_ids: Sequence[str]) -> Mapping[str, QueuePosition]: ...
    async def forecast(self, pool: str, tenant_id: str, class_name: str, cost_s: float) -> QueuePosition: ...
    async def queue(self, pool: str) -> Sequence[PoolView]: ...
    async def set_drain(self, tenant_id: str, pool: str, worker_id: str, is_draining: bool) -> int: ...
    async def is_serving(self) -> bool: ...


class Catalogue(Protocol):
    """The model cards: all that can be used. `check` raises UnavailableError for one that cannot be."""

    def cards(self) -> Sequence[ModelCard]: ...
    def check(self, model_id: str) -> None: ...


class Pings(Protocol):
    """Redis, as far as readiness goes. `ping` raises UnavailableError when it is away."""

    async def ping(self) -> None: ...


@dataclass(frozen=True)
class MediaLinks:
    """Signs the URLs under which delivery serves a video."""

    delivery_url: str
    signing_key: SecretStr
    ttl_s: int

    def link(self, job_id: str, variant: str, expires_at_ms: int | None) -> str:
        """Return a URL that opens one file until it expires, and never longer than the file is kept."""
        expires_at_s = int(time.time()) + self.ttl_s
        if expires_at_ms is not None:
            expires_at_s = min(expires_at_s, expires_at_ms // 1000)
        path = f"/videos/{job_id}/{variant}"
        filename = f"{job_id}.{RENDITIONS[variant].suffix}"
        return f"{self.delivery_url}{path}?{tokens.sign_path(path, expires_at_s, self.signing_key, filename=filename)}"


class Gateway:
    """The use cases. A job of another tenant does not exist here."""

    def __init__(
        self,
        *,
        store: Store,
        prompts: Prompts,
        scheduler: Scheduler,
        catalogue: Catalogue,
        events: Pings,
        links: MediaLinks,
    ) -> None:
        self._store = store
        self._prompts = prompts
        self._scheduler = scheduler
        self._catalogue = catalogue
        self._events = events
        self._links = links

    async def video(self, tenant_id: str, job_id: str) -> JobRecord:
        """Return one job. Raises: NotFoundError."""
        record = await self._store.job(tenant_id, job_id) if ids.is_job_id(job_id) else None
        if record is None:
            raise NotFoundError("There is no video with this id.", param="video_id")
        return record

    async def queue_position(self, record: JobRecord) -> QueuePosition:
        """Ask where an active job stands; unknown when the scheduler does not answer at once."""
        if record.state not in (JobState.QUEUED, JobState.RUNNING):
            return QueuePosition()
        try:
            return await self._scheduler.queue_position(record.job_id)
        except VitascopeError:
            return QueuePosition()

    async def page(
        self, tenant_id: str, after: str | None, limit: int, is_ascending: bool
    ) -> tuple[Sequence[JobRecord], bool]:
        """Return one page of the tenant's jobs by creation, and whether more follow. Raises: InvalidRequestError."""
        if after is not None and not ids.is_job_id(after):
            raise InvalidRequestError("after must be the id of one of your videos.", param="after")
        return await self._store.page(tenant_id, after, limit, is_ascending)

    async def cancel(self, tenant_id: str, job_id: str) -> JobRecord:
        """Cancel a job that has not ended; one that has stays as it is. Raises: NotFoundError, UnavailableError."""
        await self.video(tenant_id, job_id)
        await self._scheduler.cancel(tenant_id, job_id)
        return await self.video(tenant_id, job_id)

    async def delete(self, tenant_id: str, job_id: str) -> None:
        """Cancel if needed and hide a job. Raises: NotFoundError, UnavailableError."""
        await self.video(tenant_id, job_id)
        await self._scheduler.delete(tenant_id, job_id)

    async def content_link(self, tenant_id: str, job_id: str, variant: str) -> str:
        """Return the URL of a finished file.

        Raises:
            NotFoundError: no such video; VideoNotReadyError, VideoFailedError, VideoExpiredError: why it has no file.
            OutputBlockedError: the safety check withholds it.
        """
        if variant not in RENDITIONS:
            raise InvalidRequestError(f"variant must be one of {', '.join(RENDITIONS)}.", param="variant")
        record = await self.finished(tenant_id, job_id)
        return self._links.link(job_id, variant, record.expires_at_ms)

    async def finished(self, tenant_id: str, job_id: str) -> JobRecord:
        """Return a job whose files are there. Raises: as `content_link`."""
        record = await self.video(tenant_id, job_id)
        if record.state in (JobState.FAILED, JobState.CANCELLED):
            if record.error_code == OutputBlockedError.code:
                raise OutputBlockedError(record.error_message)
            reason = record.error_message or f"it was {record.state.value}"
            raise VideoFailedError(f"This video was not made: {reason}", detail={"code": record.error_code})
        if record.state is not JobState.COMPLETED:
            raise VideoNotReadyError(f"The video is still being made: {record.phase or record.state.value}.")
        if record.expires_at_ms is not None and record.expires_at_ms <= ids.now_ms():
            raise VideoExpiredError()
        return record

    async def queue(self, pool: str) -> Sequence[PoolView]:
        """Return what operators see of one pool, or of all ("").

        Raises:
            NotFoundError: no such pool; UnavailableError: the scheduler is away.
        """
        pools = await self._scheduler.queue(pool)
        if pool and not pools:
            raise NotFoundError("There is no such pool; GET /admin/v1/queue lists what there is.", param="pool")
        return pools

    async def set_drain(self, caller: Caller, pool: str, worker_id: str, is_draining: bool) -> int:
        """Give a worker ("": every one of the pool) no more work, or end that; return how many it concerns now.

        Raises: InvalidRequestError, UnavailableError.
        """
        num_workers = await self._scheduler.set_drain(caller.tenant_id, pool, worker_id, is_draining)
        _log.info("queue.drain_set", pool=pool, worker=worker_id, is_draining=is_draining, tenant=caller.tenant_id)
        return num_workers

    def models(self) -> Sequence[ModelCard]:
        """Return every model card."""
        return self._catalogue.cards()

    def model(self, model_id: str) -> ModelCard:
        """Return one model card. Raises: NotFoundError; UnavailableError: it cannot be used."""
        card = next((card for card in self._catalogue.cards() if card.id == model_id), None)
        if card is None:
            self._catalogue.check(model_id)
            raise NotFoundError("There is no such model; GET /v1/models lists what there is.", param="model")
        return card

    async def missing(self) -> list[str]:
        """Name what does not answer; empty when a request could be served."""
        answers = await asyncio.gather(
            _answers(self._store.check()),
            _answers(self._events.ping()),
            self._prompts.is_serving(),
            self._scheduler.is_serving(),
        )
        names = ("database", "redis", "prompt", "scheduler")
        return [name for name, is_there in zip(names, answers, strict=True) if not is_there]


async def _answers(check: Awaitable[None]) -> bool:
    try:
        async with asyncio.timeout(2.0):
            await check
    except (UnavailableError, TimeoutError):
        return False
    return True
