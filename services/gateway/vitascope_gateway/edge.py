"""What every request and answer has in common: request ids, spans, metrics, and the one shape of an error."""

import re
import secrets
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitascope_common import telemetry
from vitascope_common.errors import (
    ErrorKind,
    InternalError,
    NotFoundError,
    QuotaExceededError,
    VitascopeError,
    http_status,
)
from vitascope_gateway import metrics
from vitascope_gateway.admission import UnknownOutcomeError

ERROR_TYPE: Mapping[ErrorKind, str] = {
    ErrorKind.INVALID: "invalid_request_error",
    ErrorKind.DENIED: "authentication_error",
    ErrorKind.NOT_FOUND: "invalid_request_error",
    ErrorKind.CONFLICT: "invalid_request_error",
    ErrorKind.EXHAUSTED: "rate_limit_error",
    ErrorKind.UNAVAILABLE: "server_error",
    ErrorKind.TIMEOUT: "server_error",
    ErrorKind.CANCELLED: "invalid_request_error",
    ErrorKind.INTERNAL: "server_error",
}
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
RETRY_AFTER_S = 1
NOTHING_HERE = "There is nothing at this address; /docs lists what there is."
STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
SWITCHED = 101
"""What a handshake of a WebSocket is answered with that is accepted."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_log = structlog.stdlib.get_logger("vitascope.gateway")


def error_response(error: VitascopeError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the envelope that clients of this wire format read."""
    status, body = error_body(error)
    extra = dict(headers or {})
    if status == 401:
        extra["WWW-Authenticate"] = 'Bearer realm="vitascope"'
    if isinstance(error, UnknownOutcomeError) and not error.has_next_try:
        extra["x-should-retry"] = "false"  # the clients of this format would repeat a 503 by themselves
    elif isinstance(error, QuotaExceededError) and not error.is_passing:
        extra["x-should-retry"] = "false"  # and a 429
    elif status in (429, 503):
        extra |= {"Retry-After": str(RETRY_AFTER_S), "x-should-retry": "true"}
    elif status == 409:
        extra["x-should-retry"] = "false"  # nor would it help to repeat this one, which they do too
    if status in (408, 413):
        extra["Connection"] = "close"  # the rest of the body is not going to be read
    return JSONResponse({"error": body}, status, extra)


def error_body(error: VitascopeError) -> tuple[int, dict[str, str | None]]:
    """Return the status of an answer, and what its envelope holds."""
    status = getattr(error, "status", None) or http_status(error)
    type_ = "permission_error" if status in (403, 451) else ERROR_TYPE[error.kind]
    return status, {"message": error.message, "type": type_, "param": error.param, "code": error.code}


def install_error_handlers(app: FastAPI) -> None:
    """Make every error that a route raises, of the framework and of ours, leave in the envelope."""

    async def ours(_: Request, error: Exception) -> Response:
        return error_response(error if isinstance(error, VitascopeError) else InternalError())

    async def invalid_parameter(_: Request, error: Exception) -> Response:
        problem = error.errors()[0] if isinstance(error, RequestValidationError) else {}
        param = str(problem.get("loc", ("", "request"))[-1])
        body = {
            "message": f"{param}: {problem.get('msg', 'is not valid')}.",
            "type": "invalid_request_error",
            "param": param,
            "code": "invalid_request",
        }
        return JSONResponse({"error": body}, 400)

    async def of_http(_: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return error_response(InternalError())
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        message = {404: NOTHING_HERE, 405: "This method is not allowed here."}.get(error.status_code, str(error.detail))
        body = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        return JSONResponse({"error": body}, error.status_code, error.headers)

    app.add_exception_handler(VitascopeError, ours)
    app.add_exception_handler(RequestValidationError, invalid_parameter)
    app.add_exception_handler(HTTPException, of_http)


class EdgeMiddleware:
    """Gives each request an id and a span, and counts it; outside of everything that answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one WebSocket: of that the handshake counts, and it has no span."""
        is_http = scope["type"] == "http"
        request_id = request_id_of(_header(scope, b"x-request-id"))
        method = "GET" if not is_http else scope["method"] if scope["method"] in METHODS else "OTHER"
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] in STARTS:
                status = message.get("status", SWITCHED)
                headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                message = {**message, "headers": headers}
                route = _route(scope)
                metrics.REQUEST_SECONDS.labels(method, route).observe(time.perf_counter() - started)
                metrics.REQUESTS.labels(method, route, str(status)).inc()
                _log.debug("request.answered", method=method, route=route, status=status)
            elif message["type"] == "websocket.close" and status == 0:  # the framework's: no route is for WebSockets
                await error_response(NotFoundError(NOTHING_HERE))(scope, receive, send_with_id)
                return
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            if not is_http:
                await self._app(scope, receive, send_with_id)
                return
            parent = _header(scope, b"traceparent")
            with telemetry.span(f"http {method}", parent=parent, **{"http.request.method": method}) as span:
                await self._app(scope, receive, send_with_id)
                span.update_name(f"{method} {_route(scope)}")
                span.set_attribute("http.response.status_code", status)


class CrashMiddleware:
    """Answers what nobody foresaw with a plain 500; inside of what adds headers to answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a WebSocket that breaks off says enough."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_answered = False

        async def watched(message: Message) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            _log.error("request.crashed", method=scope["method"], route=_route(scope), exc_info=error)
            if not is_answered:
                await error_response(InternalError())(scope, receive, send)


def request_id_of(given: str) -> str:
    """Return the id of a request: the client's own if it is one."""
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def _route(scope: MutableMapping[str, Any]) -> str:
    """Return the template, never the path: labels must not grow with what clients type."""
    return getattr(scope.get("route"), "path", None) or "unmatched"


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in reversed(scope["headers"]) if key == name), "")
