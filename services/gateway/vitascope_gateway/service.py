"""What the gateway does: create, show, list, cancel and delete videos, and point to their bytes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from pydantic import SecretStr

from vitascope_common import ids, telemetry, tokens
from vitascope_common.errors import (
    InvalidRequestError,
    ModelChangedError,
    ModerationBlockedError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
    VideoExpiredError,
    VideoFailedError,
    VideoNotFinishedError,
    VideoNotReadyError,
    VitascopeError,
)
from vitascope_common.jobs import GENERATE, TERMINAL_JOB, JobState, Reference, params_to_dict
from vitascope_common.objectstore import ObjectStore
from vitascope_common.registry import ModelCard
from vitascope_gateway import metrics
from vitascope_gateway.admission import NewJob, UnknownOutcomeError
from vitascope_gateway.idempotency import AlreadyMadeError, Mark, Repeatable, repeatable
from vitascope_gateway.queue_view import PoolView
from vitascope_gateway.references import JobReferences
from vitascope_gateway.request import VideoRequest, parse_request

SUBMIT_TIMEOUT_S = 1.0
SUFFIX = {"video": "mp4", "thumbnail": "webp"}

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
    class_name: str = "standard"
    priority: int = 0
    deadline_at_ms: int | None = None
    retry_of: str | None = None


@dataclass(frozen=True)
class Created:
    """A new job, or the one that the same request has made before."""

    record: JobRecord
    is_replayed: bool = False


class Store(Protocol):
    """SQL. Every method raises UnavailableError when the database is away."""

    async def caller(self, key_sha256: str) -> Caller | None: ...
    async def admit(self, job: NewJob, sent: Repeatable | None) -> None:
        """Write the job; an UnknownOutcomeError means that it may be written, an AlreadyMadeError that there is one."""
        ...

    async def made(self, sent: Repeatable) -> str | None:
        """Return the job that this request has made already."""
        ...

    async def job(self, tenant_id: str, job_id: str) -> JobRecord | None: ...
    async def page(
        self, tenant_id: str, after: str | None, limit: int, is_ascending: bool
    ) -> tuple[Sequence[JobRecord], bool]: ...
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
        filename = f"{job_id}.{SUFFIX[variant]}"
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
        objects: ObjectStore,
        events: Pings,
        links: MediaLinks,
        default_model: str | None = None,
    ) -> None:
        self._store = store
        self._prompts = prompts
        self._scheduler = scheduler
        self._catalogue = catalogue
        self._references = JobReferences(objects)
        self._events = events
        self._links = links
        self._default_model = default_model
        self._hints: set[asyncio.Task[None]] = set()

    async def create(self, caller: Caller, fields: Mapping[str, Any], mark: Mark | None = None) -> Created:
        """Judge and admit a request; when this returns, the job is promised. One that comes again makes no second job.

        Raises:
            InvalidRequestError: names the field at fault and what is allowed; the key is that of another request.
            NotFoundError: the video that this request has made is deleted.
            PermissionDeniedError: the plan does not include this service class.
            ModerationBlockedError: the safety check refused the prompt.
            UnavailableError: the prompt service, the database or, for pictures, the object store is away, too many
                pictures wait, or the model's card is broken; nothing was promised.
            UnknownOutcomeError: the database went away while it committed; the job may be promised.
        """

        async def create(sent: Repeatable | None) -> JobRecord:
            return await self._create(caller, fields, None, sent)

        return await self._once(caller, mark, "create", fields, create)

    async def retry(self, caller: Caller, job_id: str, mark: Mark | None = None) -> Created:
        """Make a new job with the request of one that has ended: same seed, same parameters, a new safety check.

        Raises:
            NotFoundError: no such job; VideoNotFinishedError: it is under way.
            ModelChangedError: the model's weights or defaults are no longer those of that job.
            ReferenceExpiredError: its pictures are no longer kept.
            As `create`.
        """

        async def create(sent: Repeatable | None) -> JobRecord:
            record = await self.video(caller.tenant_id, job_id)
            if record.state not in TERMINAL_JOB:
                message = "This video is still being made; cancel it first, or wait."
                raise VideoNotFinishedError(message, param="video_id")
            return await self._create(caller, _fields_of(record), record, sent)

        return await self._once(caller, mark, f"retry {job_id}", {}, create)

    async def _once(
        self,
        caller: Caller,
        mark: Mark | None,
        what: str,
        fields: Mapping[str, Any],
        create: Callable[[Repeatable | None], Awaitable[JobRecord]],
    ) -> Created:
        """Find the job that a request has made already, or create it; count what became of it."""
        try:
            sent = None
            if mark is not None:  # in a thread: a picture takes a while to hash
                sent = await asyncio.to_thread(repeatable, mark, caller.tenant_id, caller.api_key_sha256, what, fields)
            made = await self._store.made(sent) if sent is not None and sent.may_be_made else None
            try:
                created = Created(await create(sent)) if made is None else await self._replayed(caller.tenant_id, made)
            except AlreadyMadeError as error:  # meanwhile
                created = await self._replayed(caller.tenant_id, error.job_id)
        except VitascopeError as error:
            metrics.ADMISSIONS.labels(error.code).inc()
            raise
        metrics.ADMISSIONS.labels("replayed" if created.is_replayed else "admitted").inc()
        return created

    async def _replayed(self, tenant_id: str, job_id: str) -> Created:
        record = await self._store.job(tenant_id, job_id)
        if record is None:
            raise NotFoundError("The video that this request has made before was deleted.")
        return Created(record, is_replayed=True)

    async def _create(
        self,
        caller: Caller,
        fields: Mapping[str, Any],
        retried: JobRecord | None,
        sent: Repeatable | None,
    ) -> JobRecord:
        """Create a job; what a retried one was made from is stored once more, under the new one."""
        stored = [] if retried is None else [*map(Reference.from_dict, retried.params.get("references", ()))]
        cards, asked = self._catalogue.cards(), fields.get("model") or self._default_model
        if isinstance(asked, str) and asked not in [card.id for card in cards]:
            self._catalogue.check(asked)
        request = parse_request(fields, cards, self._default_model, [one.role for one in stored])
        class_name = _entitled(caller, request.service_class)
        if retried is not None:
            _check_unchanged(request, retried.params)
        verdict = await self._judge(caller.tenant_id, request)
        job_id = ids.new_job_id()
        try:
            references = [
                *await self._references.keep(job_id, request),
                *[await self._references.keep_again(job_id, one) for one in stored],
            ]
            record = await self._admit(job_id, caller, class_name, request, verdict, references, retried, sent)
        except UnknownOutcomeError:
            raise  # the job may be promised, and then needs them
        except Exception:  # whatever it was: there is no job that needs what was stored for it
            if request.pictures or stored:
                await self._references.forget(job_id)
            raise
        self._hint(job_id)
        return record

    async def _admit(
        self,
        job_id: str,
        caller: Caller,
        class_name: str,
        request: VideoRequest,
        verdict: Verdict,
        references: Sequence[Reference],
        retried: JobRecord | None,
        sent: Repeatable | None,
    ) -> JobRecord:
        params, now_ms = request.params(verdict.prompt, verdict.negative_prompt, references), ids.now_ms()
        with telemetry.span("job.admit", job=job_id, model=request.card.id):
            job = NewJob(
                job_id=job_id,
                tenant_id=caller.tenant_id,
                kind=GENERATE,
                card=request.card,
                prompt=request.prompt,
                params=params,
                safety={
                    "category": verdict.category,
                    "score": verdict.score,
                    "policy_version": verdict.policy_version,
                },
                labels=request.labels,
                traceparent=telemetry.current_traceparent(),
                created_at_ms=now_ms,
                class_name=class_name,
                priority=request.priority,
                deadline_at_ms=None if request.deadline_s is None else now_ms + round(request.deadline_s * 1000),
                retry_of=None if retried is None else retried.job_id,
            )
            await self._store.admit(job, sent)
            _log.info("job.admitted", job=job_id, tenant=caller.tenant_id, model=request.card.id)
        return JobRecord(
            job_id=job_id,
            tenant_id=caller.tenant_id,
            state=JobState.QUEUED,
            phase=JobState.QUEUED.value,
            model=request.card.id,
            prompt=request.prompt,
            params=params_to_dict(params),
            labels=job.labels,
            created_at_ms=job.created_at_ms,
            steps_total=params.num_inference_steps,
            cost_s=job.cost_s,
            class_name=job.class_name,
            priority=job.priority,
            deadline_at_ms=job.deadline_at_ms,
            retry_of=job.retry_of,
        )

    async def _judge(self, tenant_id: str, request: VideoRequest) -> Verdict:
        verdict = await self._prompts.check(tenant_id, request.card.id, request.prompt, request.negative_prompt)
        if not verdict.is_allowed:
            _log.info("prompt.refused", tenant=tenant_id, category=verdict.category, policy=verdict.policy_version)
            raise ModerationBlockedError(verdict.message or None, param="prompt", detail={"category": verdict.category})
        if not verdict.prompt.strip():
            raise InvalidRequestError("prompt holds nothing that can be read as text.", param="prompt")
        return verdict

    def _hint(self, job_id: str) -> None:
        """Tell the scheduler in the background; the reconciler finds the job anyway."""

        async def submit() -> None:
            try:
                await self._scheduler.submit(job_id, SUBMIT_TIMEOUT_S)
            except VitascopeError as error:
                _log.info("job.submit_hint_failed", job=job_id, code=error.code)

        task = asyncio.create_task(submit())
        self._hints.add(task)
        task.add_done_callback(self._hints.discard)

    async def drain(self) -> None:
        """Let the hints under way end."""
        if self._hints:
            await asyncio.wait(set(self._hints), timeout=SUBMIT_TIMEOUT_S)

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
        """
        if variant not in SUFFIX:
            raise InvalidRequestError(f"variant must be one of {', '.join(SUFFIX)}.", param="variant")
        record = await self.video(tenant_id, job_id)
        if record.state in (JobState.FAILED, JobState.CANCELLED):
            reason = record.error_message or f"it was {record.state.value}"
            raise VideoFailedError(f"This video was not made: {reason}", detail={"code": record.error_code})
        if record.state is not JobState.COMPLETED:
            raise VideoNotReadyError(f"The video is not ready yet; its status is {record.phase or record.state.value}.")
        if record.expires_at_ms is not None and record.expires_at_ms <= ids.now_ms():
            raise VideoExpiredError()
        return self._links.link(job_id, variant, record.expires_at_ms)

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


def _entitled(caller: Caller, asked: str | None) -> str:
    """Return the class of a request. Raises PermissionDeniedError unless the caller's plan includes it."""
    if not caller.classes:
        raise PermissionDeniedError("Your plan includes no service class.", param="service_class")
    if asked is not None and asked not in caller.classes:
        allowed = ", ".join(f'"{name}"' for name in caller.classes)
        message = f'Your plan does not include the service class "{asked}"; allowed are: {allowed}.'
        raise PermissionDeniedError(message, param="service_class")
    return asked or caller.classes[0]


def _fields_of(record: JobRecord) -> dict[str, Any]:
    """Return the request that this job came from, with every default as it was resolved then."""
    params = record.params
    names = ("seconds", "seed", "negative_prompt", "num_inference_steps", "guidance_scale", "solver")
    deadline_at_ms, created_at_ms = record.deadline_at_ms, record.created_at_ms
    return {
        **{name: params[name] for name in names},
        "temporal_attention": params.get("temporal_attention"),  # None: the model's
        "prompt": record.prompt,
        "model": record.model,
        "size": f"{params['width_px']}x{params['height_px']}",
        "metadata": record.labels,
        "priority": record.priority,
        "service_class": record.class_name,
        "deadline_s": None if deadline_at_ms is None else (deadline_at_ms - created_at_ms) / 1000,
    }


def _check_unchanged(request: VideoRequest, params: Mapping[str, Any]) -> None:
    """Compare what a repeated request resolves to with what the job before was made from, apart from its pictures."""
    now = params_to_dict(request.params(params["prompt"], params["negative_prompt"]))
    names = sorted((params.keys() | now.keys()) - {"references"})
    changed = [name for name in names if now.get(name) != params.get(name)]
    if changed:
        raise ModelChangedError(
            f"The model {request.card.id} has changed since then ({', '.join(changed)}): the same request would make "
            "another video. Send it as a new one.",
            param="model",
        )


async def _answers(check: Awaitable[None]) -> bool:
    try:
        async with asyncio.timeout(2.0):
            await check
    except (UnavailableError, TimeoutError):
        return False
    return True
