"""The public REST API: routes, authentication and documentation. The wire format is that of OpenAI's /v1/videos."""

import re
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, Query, Request, WebSocket
from fastapi.requests import HTTPConnection
from fastapi.security import APIKeyQuery, HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response

from vitascope_common.errors import UnavailableError, UnsupportedError
from vitascope_gateway import objects, ws
from vitascope_gateway.admin import make_admin_router
from vitascope_gateway.batch_api import make_batch_router
from vitascope_gateway.batches import Batches
from vitascope_gateway.body import read_fields
from vitascope_gateway.callers import caller_of
from vitascope_gateway.cors import open_to_pages
from vitascope_gateway.creation import Created, Creation
from vitascope_gateway.edge import CrashMiddleware, EdgeMiddleware, error_response, install_error_handlers
from vitascope_gateway.files import Files
from vitascope_gateway.follow import Access, Following, FollowTokens
from vitascope_gateway.idempotency import REPLAYED_ANSWER, Mark, mark_of, replayed
from vitascope_gateway.objects import (
    ErrorEnvelope,
    Model,
    ModelList,
    Urls,
    Video,
    VideoDeleted,
    VideoEstimate,
    VideoList,
)
from vitascope_gateway.openapi import CREATE_BODY, EDIT_BODY, EXTENSION_BODY, REMIX_BODY, install_openapi
from vitascope_gateway.previews import MEDIA_TYPE, Previews
from vitascope_gateway.service import Caller, Gateway, JobRecord, Store
from vitascope_gateway.sse import EventStreamResponse
from vitascope_gateway.stream import JobStream
from vitascope_gateway.webhooks import Webhooks
from vitascope_gateway.webhooks_api import make_webhooks_router

_REPLAYED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Video,
        "description": "This request has made this video before; there is no second one.",
        **REPLAYED_ANSWER,
    }
}
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?", re.ASCII)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    what = {
        400: "The request is invalid; `param` names the field.",
        401: "The API key is missing or not valid.",
        403: "The key or the plan does not include this.",
        404: "Not found, or not yours.",
        408: "The body came too slowly.",
        409: "It contradicts what is now; `code` says how: not_finished, model_changed, reference_expired, conflict.",
        413: "The body is too large.",
        415: "The body is neither JSON nor multipart.",
        451: "The safety check withholds the finished video.",
        422: "The Idempotency-Key was used with another request.",
        429: "As much of this as you may have at once is under way.",
        503: "Something needed is away. With an Idempotency-Key repeating is safe, else as the message says.",
    }
    # By its name and not as a model: FastAPI would build a validator for each of them.
    body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorEnvelope.__name__}"}}}
    return {status: {"content": body, "description": what[status]} for status in statuses}


_MADE = _REPLAYED | _errors(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503)
"""What those answer that make a video from a video."""


def make_app(
    gateway: Gateway,
    creation: Creation,
    store: Store,
    following: Following,
    *,
    webhooks: Webhooks,
    follow_tokens: FollowTokens,
    files: Files,
    batches: Batches,
    previews: Previews,
    public_url: str | None = None,
) -> FastAPI:
    """Build the application."""
    app = FastAPIOffline(  # /docs and /redoc without a CDN: a cluster may have no way out
        title="Vitascope",
        version="1",
        description="Prompt in, signed video out. The format of OpenAI's /v1/videos, with events and cancel.",
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,  # get_video: what a generated client calls it
    )
    app.add_middleware(CrashMiddleware)
    open_to_pages(app)
    app.add_middleware(EdgeMiddleware)  # the outermost: whatever answers, it has an id and is counted
    install_error_handlers(app)
    follow_token = APIKeyQuery(
        name="token", auto_error=False, scheme_name="FollowToken", description="As `events_url` has it; for one video."
    )
    bearer = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="`Authorization: Bearer vs_…`")

    async def known_caller(connection: HTTPConnection) -> Caller:
        return await caller_of(store, connection.headers.get("authorization", ""))

    async def caller(request: Request, _: Annotated[Any, Depends(bearer)]) -> Caller:
        """Return whose request this is, and what it may."""
        return await known_caller(request)

    async def tenant(known: Annotated[Caller, Depends(caller)]) -> str:
        """Return whose request this is."""
        return known.tenant_id

    def urls(connection: HTTPConnection, token: str | None = None) -> Urls:
        """Return the URLs as this client reaches us, with new tokens or this one."""

        def token_of(record: JobRecord) -> str:
            return token or follow_tokens.new(record.tenant_id, record.job_id)

        if public_url is not None:
            return Urls(public_url, token_of)
        host = connection.headers.get("host", "")
        scheme = "https" if connection.scope["scheme"] in ("https", "wss") else "http"
        return Urls(
            f"{scheme}://{host}" if _HOST.fullmatch(host) else "", token_of
        )  # a Host that is none is not repeated

    async def access(connection: HTTPConnection, video_id: str) -> Access:
        """Return what this connection may follow, by its API key if it sends one, else by its token."""
        token = connection.query_params.get("token")
        if token is None or "authorization" in connection.headers:
            return Access((await known_caller(connection)).tenant_id, urls(connection))
        return Access(follow_tokens.tenant_of(token, video_id), urls(connection, token))

    async def links(request: Request) -> Urls:
        """Return the URLs that an answer names."""
        return urls(request)

    async def mark(
        request: Request,
        _: Annotated[
            str | None,
            Header(
                alias="Idempotency-Key",
                json_schema_extra={"minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
                description="Any text of up to 255 ASCII characters. The same request with the same key is done "
                "once, for 24 hours: the answer is what it has made as it is now, with the header "
                "`idempotent-replayed`.",
            ),
        ] = None,
    ) -> Mark | None:
        """Return how this request is recognised when it comes again."""
        return mark_of(request.headers)

    Known = Annotated[Caller, Depends(caller)]
    Marked = Annotated[Mark | None, Depends(mark)]
    Tenant = Annotated[str, Depends(tenant)]
    Links = Annotated[Urls, Depends(links)]

    @app.post(
        "/v1/videos",
        status_code=202,
        response_model=Video,
        responses=_REPLAYED | _errors(400, 401, 403, 404, 408, 413, 415, 422, 429, 503),
        openapi_extra=CREATE_BODY,
        tags=["videos"],
    )
    async def create_video(request: Request, known: Known, links: Links, sent: Marked) -> Response:
        """Create a video. It is promised once this answers 202."""
        return _created(await creation.create(known, await read_fields(request, known.tenant_id), sent), links)

    @app.post(
        "/v1/videos/{video_id}/remix",
        status_code=202,
        response_model=Video,
        responses=_MADE,
        openapi_extra=REMIX_BODY,
        tags=["videos"],
    )
    async def remix_video(request: Request, video_id: str, known: Known, links: Links, sent: Marked) -> Response:
        """Draw over one of your videos by another prompt: what moves where stays, what it looks like changes.

        Whatever is not given is as it was there, but for the seed; the length is that of the video. The model must be
        able to `video_to_video`.
        """
        return _created(await creation.remix(known, video_id, await read_fields(request, known.tenant_id), sent), links)

    @app.post(
        "/v1/videos/edits",
        status_code=202,
        response_model=Video,
        responses=_MADE,
        openapi_extra=EDIT_BODY,
        tags=["videos"],
    )
    async def edit_video(request: Request, known: Known, links: Links, sent: Marked) -> Response:
        """Draw over a video by another prompt, as remix does; `video` names it."""
        return _created(await creation.edit(known, await read_fields(request, known.tenant_id), sent), links)

    @app.post(
        "/v1/videos/extensions",
        status_code=202,
        response_model=Video,
        responses=_MADE,
        openapi_extra=EXTENSION_BODY,
        tags=["videos"],
    )
    async def extend_video(request: Request, known: Known, links: Links, sent: Marked) -> Response:
        """Continue a video; the new one is both, one after the other.

        The clip that is generated has `seconds`; it begins with the last frames of the video that it continues, at
        most half of it, so the whole is shorter than the sum. The model must be capable of `extension`.
        """
        return _created(await creation.extend(known, await read_fields(request, known.tenant_id), sent), links)

    @app.post("/v1/videos/characters", responses=_errors(400, 401, 503), status_code=400, tags=["videos"])
    async def create_character(tenant_id: Tenant) -> Response:
        """Not supported: no model here keeps characters. Always a 400 with the code `unsupported`."""
        raise UnsupportedError("Characters are not supported: no model here keeps them; begin with input_reference.")

    @app.get("/v1/videos/characters/{character_id}", responses=_errors(400, 401, 503), status_code=400, tags=["videos"])
    async def get_character(character_id: str, tenant_id: Tenant) -> Response:
        """Not supported, as above."""
        raise UnsupportedError("Characters are not supported: no model here keeps them.")

    @app.get("/v1/videos/models", response_model=ModelList, responses=_errors(401, 503), tags=["models"])
    async def list_video_models(tenant_id: Tenant) -> Response:
        """List the models that make videos: what each can do, its sizes and lengths, and what a second costs."""
        return JSONResponse(_models(gateway))

    @app.post(
        "/v1/videos/estimate",
        response_model=VideoEstimate,
        responses=_errors(400, 401, 403, 408, 413, 415, 429, 503),
        openapi_extra=CREATE_BODY,
        tags=["videos"],
    )
    async def estimate_video(request: Request, known: Known) -> Response:
        """Say what a request would make, cost and wait for, if it were sent now. Nothing runs, nothing is kept."""
        found = await creation.estimate(known, await read_fields(request, known.tenant_id))
        return JSONResponse(objects.estimate(found).model_dump())

    def refuse(name: str, allowed: str, *methods: str) -> None:
        """Keep a word that is a route from being taken for the id of a video."""

        async def not_allowed() -> Response:
            raise HTTPException(405, headers={"Allow": allowed})

        app.add_api_route(f"/v1/videos/{name}", not_allowed, methods=list(methods), include_in_schema=False)

    for name in ("edits", "extensions", "estimate", "characters"):
        refuse(name, "POST", "GET", "DELETE")
    refuse("models", "GET", "DELETE")

    @app.get("/v1/videos", response_model=VideoList, responses=_errors(400, 401, 503), tags=["videos"])
    async def list_videos(
        tenant_id: Tenant,
        links: Links,
        after: Annotated[str | None, Query(description="Id of the last video of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Annotated[Literal["asc", "desc"], Query(description="By creation.")] = "desc",
    ) -> Response:
        """List your videos."""
        records, has_more = await gateway.page(tenant_id, after, limit, order == "asc")
        return JSONResponse(objects.video_list(records, has_more, links).model_dump())

    @app.get("/v1/videos/{video_id}", response_model=Video, responses=_errors(401, 404, 503), tags=["videos"])
    async def get_video(video_id: str, tenant_id: Tenant, links: Links) -> Response:
        """Show one video. The header `openai-poll-after-ms` says when to ask again."""
        record = await gateway.video(tenant_id, video_id)
        position = await gateway.queue_position(record)
        eta_s = position.eta_s if position.eta_s is not None else _remaining_s(record)
        headers = {"openai-poll-after-ms": str(int(min(max(eta_s * 1000 / 20, 500), 5000)))}
        return JSONResponse(objects.video(record, links, position).model_dump(), headers=headers)

    @app.delete("/v1/videos/{video_id}", response_model=VideoDeleted, responses=_errors(401, 404, 503), tags=["videos"])
    async def delete_video(video_id: str, tenant_id: Tenant) -> Response:
        """Delete a video; one that is still being made is cancelled first."""
        await gateway.delete(tenant_id, video_id)
        return JSONResponse(VideoDeleted(id=video_id).model_dump())

    @app.post("/v1/videos/{video_id}/cancel", response_model=Video, responses=_errors(401, 404, 503), tags=["videos"])
    async def cancel_video(video_id: str, tenant_id: Tenant, links: Links) -> Response:
        """Cancel a video that is not finished; a finished one stays as it is."""
        return JSONResponse(objects.video(await gateway.cancel(tenant_id, video_id), links).model_dump())

    @app.post(
        "/v1/videos/{video_id}/retry",
        status_code=202,
        response_model=Video,
        responses=_REPLAYED | _errors(400, 401, 403, 404, 409, 422, 429, 503),
        tags=["videos"],
    )
    async def retry_video(video_id: str, known: Known, links: Links, sent: Marked) -> Response:
        """Make a new video from the request of one that has ended, well or not: same seed, same parameters.

        The answer is the new video; its `retry_of` names the old one. The prompt is checked again.
        """
        return _created(await creation.retry(known, video_id, sent), links)

    @app.get(
        "/v1/videos/{video_id}/content",
        status_code=302,
        response_class=RedirectResponse,
        responses=_errors(400, 401, 404, 451, 503),
        tags=["videos"],
    )
    async def get_content(
        video_id: str,
        tenant_id: Tenant,
        variant: Annotated[Literal["video", "thumbnail", "spritesheet"], Query()] = "video",
    ) -> Response:
        """Go to the file itself: a signed URL that expires."""
        link = await gateway.content_link(tenant_id, video_id, variant)
        return RedirectResponse(link, 302, {"Cache-Control": "no-store"})

    app.head("/v1/videos/{video_id}/content", include_in_schema=False)(get_content)

    @app.get(
        "/v1/videos/{video_id}/preview",
        responses={
            200: {
                "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
                "description": "A moving picture of at most 64 kB.",
                "headers": {"Cache-Control": {"schema": {"type": "string", "enum": ["no-store"]}}},
            },
            **_errors(401, 403, 404, 429, 503),
        },
        response_class=Response,
        tags=["videos"],
    )
    async def get_preview(
        request: Request,
        video_id: str,
        _: Annotated[Any, Depends(bearer)],
        token: Annotated[str | None, Depends(follow_token)],
    ) -> Response:
        """Show what a video that is being made is going to look like: the newest preview.

        `preview_url` of a video has a token in place of an API key, as `events_url` has. A `progress` event with
        `preview` says that there is a newer one. Before the first one, and once denoising is over, this is a 404
        `video_not_ready`.
        """
        allowed = await access(request, video_id)
        found = await previews.newest(await gateway.video(allowed.tenant_id, video_id))
        return Response(found, media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})

    @app.get(
        "/v1/videos/{video_id}/events",
        responses={
            200: {"content": {"text/event-stream": {}}, "description": "Events, until the video is finished."},
            204: {"description": "The event in Last-Event-ID was the last one."},
            **_errors(401, 403, 404, 503),
        },
        response_class=Response,
        tags=["videos"],
    )
    async def follow_video(
        request: Request,
        video_id: str,
        _: Annotated[Any, Depends(bearer)],
        __: Annotated[Any, Depends(follow_token)],
        last_event_id: Annotated[str, Query(description="Where to resume; the header Last-Event-ID wins.")] = "",
    ) -> Response:
        """Follow a video as server-sent events. `Last-Event-ID` resumes without gap or duplicate.

        `events_url` of a video has a token in place of an API key, since a browser's EventSource sends no headers. It
        opens the events of that video for an hour. `websocket_url` opens the same events as a WebSocket: one text
        message `{"id", "type", "data"}` each, `?last_event_id=` resumes. It is closed with 1000 when the video is
        finished, 4401, 4403 or 4404 for what is 401, 403 or 404 here, and 1012 (restart), 1013 (something is away) or
        4408 (read too slowly) when connecting again with the last id goes on.

        While the video waits, `queued` events say where it stands: `position`, the jobs in front of it, and `eta_s`,
        the seconds until it is expected to be finished, or null. One comes when the position changes, or when the
        expected end moves by more than 5 s and a tenth of the time that is left. They have no `id`, since they are
        not kept: `Last-Event-ID` stays that of the last event before them, and whoever resumes gets a fresh one.
        """
        last_id = request.headers.get("last-event-id", last_event_id)
        stream = await following.open(await access(request, video_id), video_id, last_id)
        if stream is None:
            return Response(status_code=204)  # a browser's EventSource then stops to reconnect
        return EventStreamResponse(stream)

    @app.websocket("/v1/videos/{video_id}/ws")
    async def mirror_video(socket: WebSocket, video_id: str) -> None:
        async def open_stream() -> JobStream | None:
            last_id = socket.headers.get("last-event-id", socket.query_params.get("last_event_id", ""))
            return await following.open(await access(socket, video_id), video_id, last_id)

        await ws.mirror(socket, open_stream)

    @app.get("/v1/models", response_model=ModelList, responses=_errors(401, 503), tags=["models"])
    async def list_models(tenant_id: Tenant) -> Response:
        """List the models and what each can do."""
        return JSONResponse(_models(gateway))

    @app.get("/v1/models/{model_id}", response_model=Model, responses=_errors(401, 404, 503), tags=["models"])
    async def get_model(model_id: str, tenant_id: Tenant) -> Response:
        """Show one model."""
        return JSONResponse(objects.model(gateway.model(model_id)).model_dump())

    app.include_router(make_webhooks_router(webhooks, caller, mark, _errors))
    app.include_router(make_batch_router(files, batches, caller, mark, lambda request: urls(request).base, _errors))
    app.include_router(make_admin_router(gateway, caller, _errors))

    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """Tell that this process runs."""
        return {"status": "ok"}

    @app.get("/readyz", responses=_errors(503), tags=["health"])
    async def readyz() -> Response:
        """Tell whether a request could be served, and if not, what is missing."""
        missing = await gateway.missing()
        if missing:
            return error_response(UnavailableError(f"Not ready; these do not answer: {', '.join(missing)}."))
        return JSONResponse({"status": "ok"})

    install_openapi(app)
    return app


def _models(gateway: Gateway) -> dict[str, Any]:
    return ModelList(data=[objects.model(card) for card in gateway.models()]).model_dump()


def _created(created: Created, links: Urls) -> Response:
    """Answer with a video and where it is: 202 a new one, 200 the one that this request has made before."""
    body, headers = objects.video(created.record, links).model_dump(), {"Location": links.video(created.record.job_id)}
    if created.is_replayed:
        return JSONResponse(body, 200, headers | replayed(True))
    return JSONResponse(body, 202, headers)


def _remaining_s(record: JobRecord) -> float:
    """Guess from the card's estimate and the steps that are left."""
    left = 1 - record.steps_done / record.steps_total if record.steps_total else 1.0
    return record.cost_s * left
