"""Errors between services: VitascopeError <-> gRPC status, in one table.

The status carries the message; code and param travel as the trailing metadata `vitascope-code` and `vitascope-param`,
percent-encoded because metadata is ASCII.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import grpc
import grpc.aio
import structlog

from vitascope_common.errors import (
    DeadlineError,
    ErrorKind,
    InternalError,
    UnavailableError,
    VitascopeError,
    error_from,
)
from vitascope_common.grpc_hooks import AroundInterceptor

CODE_KEY = "vitascope-code"
PARAM_KEY = "vitascope-param"
MAX_MESSAGE_CHARS = 500
"""Headers are limited to 8 KiB and one character can take 12 bytes there; a cut message beats a lost status."""

_log = structlog.stdlib.get_logger("vitascope.grpc")

STATUS: Mapping[ErrorKind, grpc.StatusCode] = MappingProxyType(
    {
        ErrorKind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
        ErrorKind.DENIED: grpc.StatusCode.PERMISSION_DENIED,
        ErrorKind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
        ErrorKind.CONFLICT: grpc.StatusCode.ABORTED,
        ErrorKind.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
        ErrorKind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
        ErrorKind.TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
        ErrorKind.CANCELLED: grpc.StatusCode.CANCELLED,
        ErrorKind.INTERNAL: grpc.StatusCode.INTERNAL,
    }
)
_KIND: Mapping[grpc.StatusCode, ErrorKind] = MappingProxyType(
    {
        **{status: kind for kind, status in STATUS.items()},
        grpc.StatusCode.UNAUTHENTICATED: ErrorKind.DENIED,
        grpc.StatusCode.ALREADY_EXISTS: ErrorKind.CONFLICT,
        grpc.StatusCode.FAILED_PRECONDITION: ErrorKind.CONFLICT,
        grpc.StatusCode.OUT_OF_RANGE: ErrorKind.INVALID,
    }
)


class RpcStatus(NamedTuple):
    """What `context.abort` takes."""

    code: grpc.StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, str], ...]


def to_status(error: VitascopeError) -> RpcStatus:
    """Return the gRPC status that carries an error to another service."""
    status = STATUS[error.kind]
    if error.code == "invalid_api_key":
        status = grpc.StatusCode.UNAUTHENTICATED
    metadata = [(CODE_KEY, quote(error.code, safe=""))]
    if error.param is not None:
        metadata.append((PARAM_KEY, quote(error.param, safe="")))
    return RpcStatus(status, error.message[:MAX_MESSAGE_CHARS], tuple(metadata))


def from_rpc_error(rpc_error: grpc.RpcError) -> VitascopeError:
    """Return the error that the other service raised; without our metadata, what the transport's own failure means.

    A status that gRPC itself produced keeps its details out of `message`, since they hold addresses and internals.
    """
    status: grpc.StatusCode = rpc_error.code() if hasattr(rpc_error, "code") else grpc.StatusCode.UNKNOWN
    text: str = (rpc_error.details() if hasattr(rpc_error, "details") else None) or ""
    trailing = dict(_pairs(rpc_error.trailing_metadata() if hasattr(rpc_error, "trailing_metadata") else None))
    kind = _KIND.get(status, ErrorKind.INTERNAL)
    code = trailing.get(CODE_KEY)
    if code is not None:
        param = trailing.get(PARAM_KEY)
        return error_from(unquote(code), kind, text, None if param is None else unquote(param))
    detail = {"grpc_status": status.name}
    if kind is ErrorKind.UNAVAILABLE:
        return UnavailableError(detail=detail)
    if kind is ErrorKind.TIMEOUT:
        return DeadlineError(detail=detail)
    if kind is ErrorKind.INTERNAL:
        return InternalError(detail=detail)
    return error_from("", kind, text, detail=detail)


def _pairs(metadata: Any) -> list[tuple[str, str]]:
    return [(str(key), str(value)) for key, value in (metadata or ())]


class ErrorInterceptor(AroundInterceptor):
    """Turn what a handler raises into a status: ours as they are, others as INTERNAL, logged and without their text."""

    @asynccontextmanager
    async def around(self, method: str, context: Any) -> AsyncIterator[None]:
        """Abort the call with the error's status."""
        try:
            yield
        except grpc.aio.AbortError:
            raise
        except VitascopeError as error:
            if error.kind is ErrorKind.INTERNAL:
                _log.error("rpc.failed", method=method, code=error.code, exc_info=error)
            await context.abort(*to_status(error))
        except Exception as error:
            _log.error("rpc.crashed", method=method, exc_info=error)
            await context.abort(*to_status(InternalError()))
