"""How videos come about: whatever they are made from, one path leads from a request to the job that is promised."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import structlog

from vitascope_common import ids, telemetry
from vitascope_common.errors import (
    ErrorKind,
    InvalidRequestError,
    ModelChangedError,
    ModerationBlockedError,
    NotFoundError,
    OutputBlockedError,
    PermissionDeniedError,
    VideoExpiredError,
    VideoFailedError,
    VideoNotFinishedError,
    VitascopeError,
)
from vitascope_common.jobs import GENERATE, TERMINAL_JOB, JobState, Reference, params_to_dict
from vitascope_common.objectstore import ObjectStore
from vitascope_common.references import ReferenceRole
from vitascope_common.url_guard import UrlGuard
from vitascope_gateway import metrics
from vitascope_gateway.admission import BatchLine, NewJob, UnknownOutcomeError
from vitascope_gateway.hints import Hints
from vitascope_gateway.idempotency import AlreadyMadeError, Mark, Repeatable, repeatable
from vitascope_gateway.references import JobReferences
from vitascope_gateway.request import DEADLINE_S, Offer, SourceClip, VideoRequest, parse_request, read_video
from vitascope_gateway.service import (
    Caller,
    Catalogue,
    Gateway,
    JobRecord,
    Prompts,
    QueuePosition,
    Scheduler,
    Store,
    Verdict,
)
from vitascope_gateway.webhooks import Webhooks

NOTE_TIMEOUT_S = 1.0
"""Within which a refusal is noted: what is refused because the database is slow should not wait for it once more."""

_log = structlog.stdlib.get_logger("vitascope.gateway")


@dataclass(frozen=True)
class Created:
    """A new job, or the one that the same request has made before."""

    record: JobRecord
    is_replayed: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a request would make, cost and wait for."""

    request: VideoRequest
    class_name: str
    run_s: float  # from its first step to the last
    place: QueuePosition

    @property
    def usd_micros(self) -> int:
        """The list price."""
        return self.request.card.price_usd_micros(self.request.seconds)


@dataclass(frozen=True)
class Upload:
    """A clip that came with a request."""

    role: ReferenceRole
    data: bytes
    clip: SourceClip | None = None  # once it is read


@dataclass(frozen=True)
class Draft:
    """A job that is about to be: what was asked for, by whom, and what is known besides the fields."""

    caller: Caller
    fields: Mapping[str, Any]
    stored: Sequence[Reference] = ()  # what another job has left; kept once more, under the new one
    retried: JobRecord | None = None
    source: JobRecord | None = None  # whose video is changed or continued
    upload: Upload | None = None  # what is changed or continued instead
    line: BatchLine | None = None

    @property
    def remixed_from(self) -> str | None:
        """The video that the new one is made from, as its object says."""
        return self.source.job_id if self.source else self.retried.remixed_from if self.retried else None


class Creation:
    """Makes jobs. A job of another tenant does not exist here."""

    def __init__(
        self,
        gateway: Gateway,
        *,
        store: Store,
        prompts: Prompts,
        scheduler: Scheduler,
        catalogue: Catalogue,
        objects: ObjectStore,
        guard: UrlGuard,
        webhooks: Webhooks,
        default_model: str | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._prompts = prompts
        self._scheduler = scheduler
        self._catalogue = catalogue
        self._references = JobReferences(objects, guard)
        self._webhooks = webhooks
        self._default_model = default_model
        self._aliases = aliases or {}
        self._hints = Hints(scheduler)

    async def create(self, caller: Caller, fields: Mapping[str, Any], mark: Mark | None = None) -> Created:
        """Judge and admit a request; when this returns, the job is promised. One that comes again makes no second job.

        Raises:
            InvalidRequestError: names the field at fault and what is allowed; the key is that of another request.
            NotFoundError: the video that this request has made is deleted.
            PermissionDeniedError: the plan does not include this service class.
            ModerationBlockedError: the safety check refused the prompt.
            UrlRefusedError, UrlFailedError: a picture lies where nothing is fetched from, or cannot be fetched.
            QuotaExceededError: as many pictures or clips of this tenant wait as may.
            UnavailableError: the prompt service, the database or, for pictures, the object store is away, too many
                pictures wait, or the model's card is broken; nothing was promised.
            UnknownOutcomeError: the database went away while it committed; the job may be promised.
        """

        async def draft() -> Draft:
            return Draft(caller, fields)

        return await self._once(caller, mark, "create", fields, draft)

    async def create_for(self, line: BatchLine, caller: Caller, fields: Mapping[str, Any]) -> Created:
        """Judge and admit the request of a line of a batch: its job is over when the batch has to be.

        Raises:
            LineTakenError: the line waits for no job.
            As `create`.
        """

        async def draft() -> Draft:
            return Draft(caller, fields, line=line)

        return await self._once(caller, None, "create", fields, draft)

    def check(self, caller: Caller, fields: Mapping[str, Any]) -> None:
        """Say whether `create` would get as far as the prompt's verdict. Raises: as there."""
        request = self._parse(Draft(caller, fields))
        _entitled(caller, request.service_class)
        self._webhooks.check_hook(request.hook)
        self._references.check(request)

    async def retry(self, caller: Caller, job_id: str, mark: Mark | None = None) -> Created:
        """Make a new job with the request of one that has ended: same seed, same parameters, a new safety check.

        Raises:
            NotFoundError: no such job; VideoNotFinishedError: it is under way.
            ModelChangedError: the model's weights or defaults are no longer those of that job.
            ReferenceExpiredError: its pictures are no longer kept.
            As `create`.
        """

        async def draft() -> Draft:
            record = await self._gateway.video(caller.tenant_id, job_id)
            if record.state not in TERMINAL_JOB:
                message = "This video is still being made; cancel it first, or wait."
                raise VideoNotFinishedError(message, param="video_id")
            stored = [*map(Reference.from_dict, record.params.get("references", ()))]
            return Draft(caller, _fields_of(record), stored, retried=record)

        return await self._once(caller, mark, f"retry {job_id}", {}, draft)

    async def remix(self, caller: Caller, job_id: str, fields: Mapping[str, Any], mark: Mark | None = None) -> Created:
        """Draw over one of the caller's videos by another prompt; what is not asked for is as it was there.

        Raises:
            VideoNotReadyError, VideoFailedError, VideoExpiredError: that one has no file.
            UnsupportedError: the model cannot change videos.
            As `create`.
        """

        async def draft() -> Draft:
            return await self._from_video(caller, fields, ReferenceRole.CHANGE, job_id, "video_id")

        return await self._once(caller, mark, f"remix {job_id}", fields, draft)

    async def edit(self, caller: Caller, fields: Mapping[str, Any], mark: Mark | None = None) -> Created:
        """Draw over the clip that the field `video` names by another prompt: a video, or a file.

        Raises:
            InvalidMediaError: the file is no clip that can be read.
            As `remix`.
        """

        async def draft() -> Draft:
            return await self._from_field(caller, fields, ReferenceRole.CHANGE)

        return await self._once(caller, mark, "edit", fields, draft)

    async def extend(self, caller: Caller, fields: Mapping[str, Any], mark: Mark | None = None) -> Created:
        """Continue the clip that the field `video` names; the new video is both, one after the other.

        Raises:
            UnsupportedError: the model cannot continue videos.
            As `edit`.
        """

        async def draft() -> Draft:
            return await self._from_field(caller, fields, ReferenceRole.CONTINUE)

        return await self._once(caller, mark, "extend", fields, draft)

    async def estimate(self, caller: Caller, fields: Mapping[str, Any]) -> Estimate:
        """Say what a request would make, cost and wait for; nothing is promised, judged or stored.

        Raises:
            InvalidRequestError, PermissionDeniedError: as `create`.
            UnavailableError: the database is away, or the model's card is broken.
        """
        request = self._parse(Draft(caller, fields))
        class_name = _entitled(caller, request.service_class)
        self._webhooks.check_hook(request.hook)
        self._references.check(request)
        card, num_steps = request.card, request.num_inference_steps
        ratio = await self._store.cost_ratio(card.pool, card.id)
        run_s = card.estimate_s(num_steps, card.num_frames[request.seconds], request.size) * ratio
        try:
            place = await self._scheduler.forecast(card.pool, caller.tenant_id, class_name, run_s * card.group_size)
        except VitascopeError:  # the price is known all the same
            place = QueuePosition()
        return Estimate(request, class_name, run_s, place)

    async def drain(self) -> None:
        """Let the hints under way end."""
        await self._hints.drain()

    async def _once(
        self,
        caller: Caller,
        mark: Mark | None,
        what: str,
        fields: Mapping[str, Any],
        draft: Callable[[], Awaitable[Draft]],
    ) -> Created:
        """Find the job that a request has made already, or create it; count what became of it."""
        sent = None
        try:
            sent = await repeatable(mark, caller.tenant_id, caller.api_key_sha256, what, fields)
            made = await self._store.made(sent) if sent is not None and sent.may_be_made else None
            try:
                if made is None:
                    created = Created(await self._create(await draft(), sent))
                else:
                    created = await self._replayed(caller.tenant_id, made)
            except AlreadyMadeError as error:  # meanwhile
                created = await self._replayed(caller.tenant_id, error.job_id)
        except VitascopeError as error:
            metrics.ADMISSIONS.labels(error.code).inc()
            if sent is not None and sent.is_first_try and _may_try_again(error):
                with suppress(VitascopeError, TimeoutError):  # its next try may then be taken for an earlier call's
                    async with asyncio.timeout(NOTE_TIMEOUT_S):
                        await self._store.note_refusal(sent)
            raise
        metrics.ADMISSIONS.labels("replayed" if created.is_replayed else "admitted").inc()
        return created

    async def _replayed(self, tenant_id: str, job_id: str) -> Created:
        record = await self._store.job(tenant_id, job_id)
        if record is None:
            raise NotFoundError("The video that this request has made before was deleted.")
        return Created(record, is_replayed=True)

    async def _from_field(self, caller: Caller, fields: Mapping[str, Any], role: ReferenceRole) -> Draft:
        rest = {name: value for name, value in fields.items() if name != "video"}
        video = read_video(fields.get("video"))
        if isinstance(video, bytes):
            return Draft(caller, rest, upload=Upload(role, video))
        return await self._from_video(caller, rest, role, video, "video")

    async def _from_video(
        self, caller: Caller, fields: Mapping[str, Any], role: ReferenceRole, job_id: str, param: str
    ) -> Draft:
        """Return the draft of what is made from a video of the caller's; `param` is where the request names it."""
        try:
            source = await self._gateway.finished(caller.tenant_id, job_id)
        except OutputBlockedError as error:  # a status of its own is for who asks for the video itself
            raise VideoFailedError(error.message, param=param) from error
        except NotFoundError as error:
            error.param = param
            raise
        files = {one.role: one for one in await self._store.published(job_id)}
        if "video" not in files:
            raise VideoExpiredError(param=param)
        given = {name: value for name, value in fields.items() if value is not None}
        is_same_model = "model" not in given or self._offer().resolve(given["model"]) == source.model
        as_it_was = _as_it_was(source, given, is_same_model)
        stored = Reference(role, replace(files["video"], name=role, role="reference"))
        return Draft(caller, as_it_was | given, [stored], source=source)

    async def _create(self, draft: Draft, sent: Repeatable | None) -> JobRecord:
        """Check, judge, store and admit."""
        request = self._parse(draft)
        class_name = _entitled(draft.caller, request.service_class)
        self._webhooks.check_hook(request.hook)
        if draft.retried is not None:
            request = replace(request, num_frames_before=draft.retried.params.get("num_frames_before", 0))
            _check_unchanged(request, draft.retried.params)
        self._references.check(request)
        verdict = await self._judge(draft.caller.tenant_id, request)
        job_id = ids.new_job_id()
        try:
            references = await self._references.keep(job_id, draft.caller.tenant_id, request)
            if draft.upload is not None:
                role, data = draft.upload.role, draft.upload.data
                kept, clip = await self._references.keep_clip(job_id, draft.caller.tenant_id, role, data, request)
                request = self._parse(replace(draft, upload=replace(draft.upload, clip=clip)))
                references.append(replace(kept, strength=request.strength))
            for one in draft.stored:
                strength = request.strength if one.role == ReferenceRole.CHANGE else 0.0
                references.append(
                    replace(await self._references.keep_again(job_id, draft.caller.tenant_id, one), strength=strength)
                )
            job = _new_job(job_id, draft, class_name, request, verdict, references)
            with telemetry.span("job.admit", job=job_id, model=request.card.id):
                await self._store.admit(replace(job, traceparent=telemetry.current_traceparent()), sent)
                _log.info("job.admitted", job=job_id, tenant=draft.caller.tenant_id, model=request.card.id)
        except UnknownOutcomeError:
            raise  # the job may be promised, and then needs them
        except Exception:  # whatever it was: there is no job that needs what was stored for it
            if request.pictures or draft.stored or draft.upload:
                await self._references.forget(job_id)
            raise
        self._hints.tell(job_id)
        return _record_of(job)

    def _offer(self) -> Offer:
        return Offer(self._catalogue.cards(), self._default_model, self._aliases)

    def _parse(self, draft: Draft) -> VideoRequest:
        offer = self._offer()
        asked = offer.resolve(draft.fields.get("model"))
        if asked is not None and asked not in [card.id for card in offer.cards]:
            self._catalogue.check(asked)
        source = None if draft.source is None else SourceClip(draft.source.num_frames, draft.source.params["fps"])
        roles = [one.role for one in draft.stored]
        if draft.upload is not None:
            source, roles = draft.upload.clip, [*roles, draft.upload.role]
        return parse_request(draft.fields, offer, roles, source)

    async def _judge(self, tenant_id: str, request: VideoRequest) -> Verdict:
        verdict = await self._prompts.check(tenant_id, request.card.id, request.prompt, request.negative_prompt)
        if not verdict.is_allowed:
            _log.info("prompt.refused", tenant=tenant_id, category=verdict.category, policy=verdict.policy_version)
            detail = {"category": verdict.category}
            raise ModerationBlockedError(verdict.message or None, param=verdict.param, detail=detail)
        if not verdict.prompt.strip():
            raise InvalidRequestError("prompt holds nothing that can be read as text.", param="prompt")
        return verdict


def _may_try_again(error: VitascopeError) -> bool:
    """Whether nothing was made, and stock clients are told to try again."""
    return error.kind in (ErrorKind.EXHAUSTED, ErrorKind.UNAVAILABLE) and not isinstance(error, UnknownOutcomeError)


def _new_job(
    job_id: str,
    draft: Draft,
    class_name: str,
    request: VideoRequest,
    verdict: Verdict,
    references: Sequence[Reference],
) -> NewJob:
    now_ms = ids.now_ms()
    return NewJob(
        job_id=job_id,
        tenant_id=draft.caller.tenant_id,
        kind=GENERATE,
        card=request.card,
        prompt=request.prompt,
        params=request.params(verdict.prompt, verdict.negative_prompt, references),
        safety={"category": verdict.category, "score": verdict.score, "policy_version": verdict.policy_version},
        labels=request.labels,
        created_at_ms=now_ms,
        class_name=class_name,
        priority=request.priority,
        deadline_at_ms=_deadline_ms(draft, request, now_ms),
        retry_of=None if draft.retried is None else draft.retried.job_id,
        remixed_from=draft.remixed_from,
        hook=request.hook,
        line=draft.line,
    )


def _deadline_ms(draft: Draft, request: VideoRequest, now_ms: int) -> int | None:
    """Return the earlier one of what the request and its batch say; None: neither does."""
    own = [] if request.deadline_s is None else [now_ms + round(request.deadline_s * 1000)]
    return min([*own, *([] if draft.line is None else [draft.line.deadline_at_ms])], default=None)


def _record_of(job: NewJob) -> JobRecord:
    """Return what SQL has now, without asking it."""
    first = job.kind.stages[0]
    return JobRecord(
        job_id=job.job_id,
        tenant_id=job.tenant_id,
        state=JobState.QUEUED,
        phase=JobState.QUEUED.value,
        model=job.card.id,
        prompt=job.prompt,
        params=params_to_dict(job.params_of(first)),
        labels=job.labels,
        created_at_ms=job.created_at_ms,
        steps_total=job.total_of(first),
        cost_s=job.cost_s,
        price_usd_micros=job.price_usd_micros,
        has_previews=job.has_previews,
        class_name=job.class_name,
        priority=job.priority,
        deadline_at_ms=job.deadline_at_ms,
        retry_of=job.retry_of,
        remixed_from=job.remixed_from,
        hook=job.hook,
    )


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
    strengths = [one["strength"] for one in params.get("references", ()) if one["role"] == ReferenceRole.CHANGE]
    deadline_at_ms, created_at_ms = record.deadline_at_ms, record.created_at_ms
    return {
        **{name: params[name] for name in names},
        **({} if record.hook is None else record.hook.fields()),
        "temporal_attention": params.get("temporal_attention"),  # None: the model's
        "prompt": record.prompt,
        "model": record.model,
        "size": record.size,
        "strength": strengths[0] if strengths else None,
        "metadata": record.labels,
        "priority": record.priority,
        "service_class": record.class_name,
        # Of a line of a batch, when the batch has to be over, which may have been at once.
        "deadline_s": None if deadline_at_ms is None else max(DEADLINE_S[0], (deadline_at_ms - created_at_ms) / 1000),
    }


def _as_it_was(source: JobRecord, given: Mapping[str, Any], is_same_model: bool) -> dict[str, Any]:
    """Return what a request for a change or a continuation need not say: how its video was made, but for the seed.

    With another model only the size is the same, since that is what the clip has.
    """
    size = {} if given.keys() & {"width", "height"} else {"size": source.size}
    if not is_same_model:
        return size
    fields, names = _fields_of(source), ("model", "negative_prompt", "num_inference_steps", "guidance_scale", "solver")
    return size | {name: fields[name] for name in (*names, "temporal_attention") if fields[name] is not None}


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
