"""What every public call and answer has in common: ids, metrics, the caller, one message, the shape of an error."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
import grpc.aio
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from starlette.datastructures import Headers

from vitascope_common.errors import ErrorKind, InternalError, InvalidRequestError, VitascopeError
from vitascope_common.grpc_errors import RpcStatus, to_status
from vitascope_common.grpc_hooks import AroundInterceptor
from vitascope_gateway import metrics
from vitascope_gateway.admission import UnknownOutcomeError
from vitascope_gateway.body import ARRIVING, BODY_TIMEOUT_S, MAX_BODY_BYTES, EdgeError
from vitascope_gateway.callers import caller_of
from vitascope_gateway.edge import RETRY_AFTER_S, request_id_of
from vitascope_gateway.grpc_api.wire import MAX_FIELDS, has_many_fields
from vitascope_gateway.service import Caller, Store

REQUEST_ID = "x-request-id"
DETAILS = "grpc-status-details-bin"
"""Where gRPC carries a google.rpc.Status."""
DOMAIN = "vitascope"
MAX_MESSAGE_BYTES = 1000
"""Of an error's text, which travels twice: both have to fit into the 8 KiB that clients take as headers."""
PROMPT_S = 0.5
"""In which a message arrives that holds nobody up."""
PUBLIC_STATUS = {ErrorKind.CONFLICT: grpc.StatusCode.FAILED_PRECONDITION}
"""Where strangers are told otherwise than our services: some clients repeat what is ABORTED, and it would not help."""

M = TypeVar("M", bound=Message)
Answer = Callable[[Caller, M, Any], Awaitable[Message]]
Follow = Callable[[Caller, M, Any], Awaitable[None]]
_log = structlog.stdlib.get_logger("vitascope.gateway")


class PublicEdge(AroundInterceptor):
    """Gives each call an id, counts it, and answers errors by the public table; what nobody foresaw is INTERNAL."""

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"

    @asynccontextmanager
    async def around(self, method: str, context: Any) -> AsyncIterator[None]:
        """Serve one call; health and reflection are left alone."""
        if not method.startswith(self._prefix):
            yield
            return
        request_id, route = request_id_of(headers_of(context).get(REQUEST_ID, "")), method.lstrip("/")
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        status = grpc.StatusCode.CANCELLED
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                yield
                status = grpc.StatusCode.OK
            except Exception as raised:
                error = raised if isinstance(raised, VitascopeError) else InternalError()
                if error.kind is ErrorKind.INTERNAL:
                    _log.error("request.crashed", method="gRPC", route=route, exc_info=raised)
                answer = public_status(error, request_id)
                status = answer.code
                await context.abort(*answer)
            finally:  # neither of these: the client has gone
                metrics.REQUESTS.labels("gRPC", route, status.name).inc()
                _log.debug("request.answered", method="gRPC", route=route, status=status.name)


def public_status(error: VitascopeError, request_id: str) -> RpcStatus:
    """Return the status of an error, with its details as google.rpc has them."""
    code, message, metadata = to_status(error)
    code = PUBLIC_STATUS.get(error.kind, code)
    message = message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore")
    facts = {"code": error.code, "param": error.param or ""}
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.code.upper(), domain=DOMAIN, metadata=facts),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if error.kind is ErrorKind.INVALID and error.param is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.param, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    is_for_later = error.kind in (ErrorKind.UNAVAILABLE, ErrorKind.EXHAUSTED)
    if is_for_later and not (isinstance(error, UnknownOutcomeError) and not error.is_repeatable):
        details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_S)))
    status = status_pb2.Status(code=code.value[0], message=message, details=[_packed(one) for one in details])
    return RpcStatus(code, message, (*metadata, (REQUEST_ID, request_id), (DETAILS, status.SerializeToString())))


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def headers_of(context: Any) -> Headers:
    """Return the metadata of a call as what it is: HTTP headers."""
    pairs = context.invocation_metadata() or ()
    return Headers(raw=[(key.encode(), value if isinstance(value, bytes) else value.encode()) for key, value in pairs])


def unary(store: Store, route: str, kind: type[M], answer: Answer[M]) -> grpc.RpcMethodHandler:
    """Handle a call with one answer. The caller is known before a byte of the message is read, as over HTTP."""

    async def handle(_: Any, context: Any) -> Message:
        with metrics.REQUEST_SECONDS.labels("gRPC", route).time():
            caller = await _caller(store, context)
            return await answer(caller, await _read(kind, caller.tenant_id, context), context)

    return grpc.stream_unary_rpc_method_handler(handle, None, _written)


def stream(store: Store, kind: type[M], follow: Follow[M]) -> grpc.RpcMethodHandler:
    """Handle a call that is answered by a stream of messages, which `follow` writes as bytes."""

    async def handle(_: Any, context: Any) -> None:
        caller = await _caller(store, context)
        await follow(caller, await _read(kind, caller.tenant_id, context), context)

    return grpc.stream_stream_rpc_method_handler(handle, None, None)


async def _caller(store: Store, context: Any) -> Caller:
    return await caller_of(store, headers_of(context).get("authorization", ""))


async def _read(kind: type[M], tenant_id: str, context: Any) -> M:
    """Read the message of a call.

    Raises:
        InvalidRequestError: there is none, or it cannot be read, or it is too slow.
        QuotaExceededError, UnavailableError: too much arrives, of this tenant or of all.
    """
    raw = await _arrived(tenant_id, context)
    if raw is grpc.aio.EOF:
        raise InvalidRequestError("The call has no message.")
    if has_many_fields(raw, kind):
        raise InvalidRequestError(f"The message has more than {MAX_FIELDS} fields; no request needs so many.")
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise InvalidRequestError(f"The message is no {kind.DESCRIPTOR.full_name} of protobuf.") from None


async def _arrived(tenant_id: str, context: Any) -> Any:
    """Return the bytes of a message. While they do not come at once, they count as all that they may become."""
    reading = asyncio.ensure_future(context.read())
    try:
        await asyncio.wait({reading}, timeout=PROMPT_S)
        if not reading.done():
            with ARRIVING.held(tenant_id, MAX_BODY_BYTES):
                await asyncio.wait({reading}, timeout=BODY_TIMEOUT_S)
        if not reading.done():
            message = f"The message did not arrive within {BODY_TIMEOUT_S:.0f} s."
            raise EdgeError(408, "body_too_slow", message)
        return reading.result()
    finally:
        reading.cancel()


def _written(message: Message) -> bytes:
    return message.SerializeToString()
