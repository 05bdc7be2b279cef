"""The edge: HTTP. One route for media, two for whoever watches over us."""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import parse_qs, quote

import anyio.to_thread
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitascope_common import serving, telemetry, tokens
from vitascope_common.errors import (
    CorruptObjectError,
    ErrorKind,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
    VitascopeError,
    http_status,
)
from vitascope_common.objectstore import ByteStream
from vitascope_common.renditions import RENDITIONS
from vitascope_delivery import metrics
from vitascope_delivery.conditions import (
    ByteRange,
    UnsatisfiableRangeError,
    is_not_modified,
    parse_range,
    range_applies,
)
from vitascope_delivery.service import Delivery, MediaFile, Publication

log = structlog.stdlib.get_logger("vitascope.delivery")

STALL_TIMEOUT_S = 300.0
"""How long a client may take nothing: a player that is paused goes on with a `Range` of its own."""

READY_TIMEOUT_S = 3.0
RETRY_AFTER_S = 2
COMMON_HEADERS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"accept-ranges, content-length, content-range, etag, x-request-id"),
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"x-content-type-options", b"nosniff"),
)
"""Players on any site may play what a link opens; browsers take our word for what it is."""
PREFLIGHT_HEADERS = {
    "access-control-allow-methods": "GET, HEAD, OPTIONS",
    "access-control-allow-headers": "range, if-range, if-none-match",
    "access-control-max-age": "86400",
}
ERROR_TYPES = {
    ErrorKind.DENIED: "permission_error",
    ErrorKind.EXHAUSTED: "rate_limit_error",
    ErrorKind.UNAVAILABLE: "server_error",
    ErrorKind.TIMEOUT: "server_error",
    ErrorKind.INTERNAL: "server_error",
}
"""The `type` of the error envelope; any other kind is the client's: invalid_request_error."""


def make_app(delivery: Delivery, signing_key: SecretStr, now_s: Callable[[], float] = time.time) -> FastAPI:
    """Build the application; `now_s` is the clock that links and videos expire by."""
    app = FastAPI(title="Vitascope delivery", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(_Envelope)

    @app.exception_handler(VitascopeError)
    async def on_error(request: Request, error: VitascopeError) -> Response:
        if error.kind is ErrorKind.INTERNAL:
            log.error("request.failed", path=request.url.path, code=error.code, error=error.message, exc_info=error)
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            refused = InvalidRequestError("Only GET and HEAD are answered here.")
            return error_response(refused, 405, {"allow": "GET, HEAD, OPTIONS"})
        return error_response(NotFoundError("There is nothing at this address."))

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        with anyio.move_on_after(READY_TIMEOUT_S):
            await delivery.check()
            return {"status": "ready"}
        raise UnavailableError("The database or the object store takes too long to answer.")

    @app.options("/videos/{job_id}/{variant}")
    async def preflight(job_id: str, variant: str) -> Response:
        return Response(status_code=204, headers=PREFLIGHT_HEADERS)

    @app.api_route("/videos/{job_id}/{variant}", methods=["GET", "HEAD"])
    async def video(request: Request, job_id: str, variant: str) -> Response:
        query = request.scope["query_string"].decode("latin-1")
        params = tokens.verify_path(request.scope["path"], query, now_s(), signing_key)
        if variant not in RENDITIONS:
            raise NotFoundError(f"There are only {', '.join(RENDITIONS)}.", param="variant")
        now_ms = int(now_s() * 1000)
        job = await delivery.find(job_id, now_ms)
        with telemetry.span("deliver", parent=job.traceparent, job=job.job_id, variant=variant):
            file = await delivery.file(job, variant)
            headers = _headers(file, params.get("filename"), _max_age_s(query, job, now_ms))
            return await _answer(request, delivery, file, variant, headers)

    return app


async def _answer(
    request: Request, delivery: Delivery, file: MediaFile, variant: str, headers: dict[str, str]
) -> Response:
    """Choose between 304, 416, 206 and 200, and open the object where bytes are sent."""
    given = request.headers
    if is_not_modified(given.get("if-none-match"), headers["etag"]):
        return Response(status_code=304, headers={name: headers[name] for name in ("etag", "cache-control")})
    part: ByteRange | None = None
    if request.method == "GET" and range_applies(given.get("if-range"), headers["etag"]):
        try:
            part = parse_range(given.get("range"), file.num_bytes)
        except UnsatisfiableRangeError:
            wrong = InvalidRequestError("The range lies outside the file.", param="range")
            wrong.code = "invalid_range"
            return error_response(wrong, 416, {"content-range": f"bytes */{file.num_bytes}"})
    start, end = (part.start, part.end) if part else (0, file.num_bytes)
    headers["content-length"] = str(end - start)
    if part:
        headers["content-range"] = f"bytes {start}-{end - 1}/{file.num_bytes}"
    status = 206 if part else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=file.media_type)
    stream = await delivery.open(file, start, end)
    return _ObjectResponse(stream, variant, status, headers, file.media_type)


def _headers(file: MediaFile, filename: str | None, max_age_s: int) -> dict[str, str]:
    """Return what every answer about a file says; a signed file name is what "save as" proposes (RFC 6266)."""
    name = filename or file.filename
    plain = "".join(char if char.isascii() and (char.isalnum() or char in " ._-()") else "_" for char in name)
    extended = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return {
        "accept-ranges": "bytes",
        "cache-control": f"private, max-age={max_age_s}, immutable",
        "content-disposition": f'inline; filename="{plain}"{extended}',
        "etag": f'"{file.sha256}"',
    }


def _max_age_s(query: str, job: Publication, now_ms: int) -> int:
    """Return how long a client may keep the file: as long as the (verified) link and the video live."""
    ends_ms = int(parse_qs(query)["expires"][0]) * 1000
    if job.expires_at_ms is not None:
        ends_ms = min(ends_ms, job.expires_at_ms)
    return max(0, (ends_ms - now_ms) // 1000)


class _ObjectResponse(StreamingResponse):
    """Streams an object from a thread; the object is closed however the answer ends."""

    def __init__(self, stream: ByteStream, variant: str, status: int, headers: dict[str, str], media_type: str) -> None:
        self._stream = stream
        self._sent = metrics.BYTES.labels(variant)
        super().__init__(self._chunks(), status, headers, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, serving.in_time(send, STALL_TIMEOUT_S))
        except TimeoutError:
            log.info("stream.stalled", path=scope["path"])
        except VitascopeError as error:
            # The status is out already: all that is left is to end too early, which the client sees by the length.
            metrics.BROKEN.inc()
            log.error("stream.broken", error=error.message, path=scope["path"])
        finally:
            self._stream.close()

    async def _chunks(self) -> AsyncIterator[bytes]:
        num_left = int(self.headers["content-length"])
        while num_left and (chunk := await anyio.to_thread.run_sync(next, self._stream, b"")):
            yield chunk
            num_left -= len(chunk)
            self._sent.inc(len(chunk))
        if num_left:
            raise CorruptObjectError(f"The object ends {num_left} bytes early.")


class _Envelope:
    """Gives every answer a request id and our headers, counts it, and turns what nobody foresaw into a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        is_started = False

        async def send_ours(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                message["headers"] = [
                    *message["headers"],
                    *COMMON_HEADERS,
                    (b"x-request-id", request_id.encode()),
                ]
                method = scope["method"] if scope["method"] in ("GET", "HEAD", "OPTIONS") else "other"
                metrics.REQUESTS.labels(method, str(message["status"])).inc()
            await send(message)

        with structlog.contextvars.bound_contextvars(request=request_id):
            try:
                await self._app(scope, receive, send_ours)
            except Exception:
                if is_started:
                    raise  # the server logs it and closes the connection
                log.exception("request.crashed", path=scope["path"])
                await error_response(InternalError())(scope, receive, send_ours)


def error_response(error: VitascopeError, status: int | None = None, headers: dict[str, str] | None = None) -> Response:
    """Return the envelope that every client of ours knows."""
    body: dict[str, Any] = {
        "error": {
            "message": error.message,
            "type": ERROR_TYPES.get(error.kind, "invalid_request_error"),
            "param": error.param,
            "code": error.code,
        }
    }
    more = {"cache-control": "no-store", **(headers or {})}
    if error.kind is ErrorKind.UNAVAILABLE:
        more["retry-after"] = str(RETRY_AFTER_S)
    return JSONResponse(body, status or http_status(error), more)
