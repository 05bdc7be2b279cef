"""What happens around every gRPC call: the trace is continued, on both sides.

Written here because OpenTelemetry's own gRPC instrumentation (0.66b2) breaks `Health.Watch` and every other streaming
handler that is a coroutine, and never ends the span of a cancelled call.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

import grpc
import grpc.aio
from opentelemetry import context as otel_context
from opentelemetry import trace

from vitascope_common.tracing import context_from, traceparent_of, tracer

TRACEPARENT = "traceparent"
_OUR_FAULT = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""What marks a server's span as failed (OpenTelemetry semantic conventions for gRPC); the rest is the caller's."""
_UNTRACED = "/grpc."
"""Health checks and reflection: polled, and never part of a job."""
_STATUS = {status.value[0]: status for status in grpc.StatusCode}


class AroundInterceptor(grpc.aio.ServerInterceptor, ABC):  # type: ignore[misc]  # untyped in grpc-stubs
    """Run every handler inside an asynchronous context manager.

    Handlers written without async are left alone; grpcio runs them in threads and none of ours are.
    """

    @abstractmethod
    def around(self, method: str, context: Any) -> AbstractAsyncContextManager[None]:
        """Return what surrounds one call; `context` is its ServicerContext."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Wrap the method's handler; unknown methods pass."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        shape = "_".join("stream" if is_stream else "unary" for is_stream in (handler[0], handler[1]))
        method = str(handler_call_details.method)
        behaviour = getattr(handler, shape)
        if inspect.isasyncgenfunction(behaviour):
            return handler._replace(**{shape: self._wrap_generator(method, behaviour)})
        if inspect.iscoroutinefunction(behaviour):
            return handler._replace(**{shape: self._wrap_coroutine(method, behaviour)})
        return handler

    def _wrap_coroutine(self, method: str, behaviour: Callable[..., Awaitable[Any]]) -> Any:
        async def wrapped(request: Any, context: Any) -> Any:
            async with self.around(method, context):
                return await behaviour(request, context)

        return wrapped

    def _wrap_generator(self, method: str, behaviour: Callable[..., AsyncIterator[Any]]) -> Any:
        async def wrapped(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self.around(method, context):
                async for response in behaviour(request, context):
                    yield response

        return wrapped


class TracedServer(AroundInterceptor):
    """Run each handler in a span below the caller's."""

    @asynccontextmanager
    async def around(self, method: str, context: Any) -> AsyncIterator[None]:
        """Start the span, end it with the call's status."""
        if method.startswith(_UNTRACED):
            yield
            return
        metadata = {key: value for key, value in context.invocation_metadata() or () if key == TRACEPARENT}
        span = tracer().start_span(
            method.lstrip("/"),
            context=context_from(metadata.get(TRACEPARENT)),
            kind=trace.SpanKind.SERVER,
            attributes=_attributes(method),
        )
        # Never detached: the context belongs to the task of this one call, and a generator may be closed in another.
        otel_context.attach(trace.set_span_in_context(span))
        status: grpc.StatusCode | None = None
        try:
            yield
            status = _status_of(context)
        except grpc.aio.AbortError:
            status = _status_of(context)
            raise
        except Exception:
            status = grpc.StatusCode.UNKNOWN
            raise
        finally:  # neither of these: cancelled by the caller
            _end(span, status or grpc.StatusCode.CANCELLED, _OUR_FAULT)


class _Details(NamedTuple):
    method: Any
    timeout: Any
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _TracedClient:
    @staticmethod
    def _start(details: Any) -> tuple[trace.Span, str]:
        method = details.method.decode() if isinstance(details.method, bytes) else str(details.method)
        if method.startswith(_UNTRACED):
            return trace.INVALID_SPAN, ""
        span = tracer().start_span(method.lstrip("/"), kind=trace.SpanKind.CLIENT, attributes=_attributes(method))
        return span, traceparent_of(trace.set_span_in_context(span))


class TracedUnaryClient(_TracedClient, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Hand the trace on with a call that has one answer; for aio channels."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Run the call in a span of its own."""
        span, traceparent = self._start(client_call_details)
        status = grpc.StatusCode.CANCELLED
        try:
            call = await continuation(_with_metadata(client_call_details, traceparent), request)
            await call  # so that cancelling us cancels it; whoever awaits it again gets the same answer
            status = grpc.StatusCode.OK
            return call
        except grpc.aio.AioRpcError as error:
            status = error.code()
            raise
        finally:
            _end(span, status)


class TracedStreamClient(_TracedClient, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    """Hand the trace on with a call that answers with a stream; for aio channels. The span ends with the stream."""

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Start the stream in a span of its own."""
        span, traceparent = self._start(client_call_details)
        try:
            call = await continuation(_with_metadata(client_call_details, traceparent), request)
        except BaseException:
            _end(span, grpc.StatusCode.CANCELLED)
            raise
        call.add_done_callback(lambda _: span.end())
        return call


class TracedSyncClient(_TracedClient, grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Hand the trace on with a call that has one answer; for channels without asyncio (`grpc.intercept_channel`)."""

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Run the call in a span of its own."""
        span, traceparent = self._start(client_call_details)
        given = client_call_details
        metadata = [*(given.metadata or ()), (TRACEPARENT, traceparent)] if traceparent else given.metadata
        details = _Details(
            given.method, given.timeout, metadata, given.credentials, given.wait_for_ready, given.compression
        )
        try:
            call = continuation(details, request)
        except BaseException:
            _end(span, grpc.StatusCode.CANCELLED)
            raise
        call.add_done_callback(lambda done: _end(span, done.code()))
        return call


def _with_metadata(details: Any, traceparent: str) -> Any:
    metadata = grpc.aio.Metadata(*tuple(details.metadata or ()))
    if traceparent:
        metadata[TRACEPARENT] = traceparent
    return details._replace(metadata=metadata)


def _attributes(method: str) -> dict[str, str]:
    service, _, name = method.lstrip("/").partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


def _status_of(context: Any) -> grpc.StatusCode:
    code = context.code()
    return code if isinstance(code, grpc.StatusCode) else _STATUS.get(code or 0, grpc.StatusCode.UNKNOWN)


def _end(
    span: trace.Span, status: grpc.StatusCode, failed: frozenset[grpc.StatusCode] = frozenset(grpc.StatusCode)
) -> None:
    span.set_attribute("rpc.grpc.status_code", status.value[0])
    if status is not grpc.StatusCode.OK and status in failed:
        span.set_status(trace.StatusCode.ERROR)
    span.end()
