import asyncio
import contextlib
import json

import grpc
import grpc.aio
import pytest
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from vitascope_common import telemetry
from vitascope_common.errors import (
    DeadlineError,
    ErrorKind,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    StaleAttemptError,
    UnauthenticatedError,
    UnavailableError,
    VitascopeError,
    error_from,
)
from vitascope_common.grpc_errors import STATUS, ErrorInterceptor, from_rpc_error, to_status


class Service:
    """Raises what it is told to; streams one answer first."""

    def __init__(self):
        self.error = None
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def unary(self, request, context):
        self.entered.set()
        if request == b"wait":
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        if request == b"abort":
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "by hand")
        if self.error:
            raise self.error
        return request

    async def stream(self, request, context):
        yield b"first"
        if self.error:
            raise self.error
        yield request

    async def written(self, request, context):
        await context.write(b"first")
        if self.error:
            raise self.error

    async def collect(self, requests, context):
        return b"".join([request async for request in requests])

    def handlers(self):
        return grpc.method_handlers_generic_handler(
            "test.Test",
            {
                "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
                "Stream": grpc.unary_stream_rpc_method_handler(self.stream),
                "Written": grpc.unary_stream_rpc_method_handler(self.written),
                "Collect": grpc.stream_unary_rpc_method_handler(self.collect),
            },
        )


@contextlib.asynccontextmanager
async def serving():
    service = Service()
    server = grpc.aio.server(interceptors=[*telemetry.server_interceptors(), ErrorInterceptor()])
    server.add_generic_rpc_handlers((service.handlers(),))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", interceptors=telemetry.client_interceptors()
        ) as channel:
            yield service, channel
    finally:
        await server.stop(None)


async def outcome(call):
    """What the caller gets: answers, and the error translated."""
    answers = []
    try:
        if hasattr(call, "__aiter__"):
            async for answer in call:
                answers.append(answer)
        else:
            answers.append(await call)
    except grpc.RpcError as error:
        return answers, from_rpc_error(error)
    return answers, None


ALL = [error_from(f"code_{kind}", kind, f"a message for {kind}") for kind in ErrorKind]
TYPICAL = [
    StaleAttemptError(),
    UnauthenticatedError(),
    NotFoundError("Grüße, 世界\nand a second line", param="model"),
    InvalidRequestError("x" * 10_000, param="größe"),
]


@pytest.mark.parametrize("error", [*ALL, *TYPICAL], ids=lambda error: error.code)
@pytest.mark.parametrize("method", ["Unary", "Stream", "Written"])
async def test_an_error_arrives_as_it_was_raised(error, method):
    async with serving() as (service, channel):
        service.error = error
        stub = channel.unary_unary if method == "Unary" else channel.unary_stream
        answers, found = await outcome(stub(f"/test.Test/{method}")(b"hello"))
    assert answers == ([] if method == "Unary" else [b"first"])
    assert (type(found), found.code, found.kind, found.param) == (type(error), error.code, error.kind, error.param)
    assert error.message.startswith(found.message)
    assert found.message[:100] == error.message[:100]


async def test_without_an_error_answers_pass():
    async with serving() as (_, channel):
        assert await outcome(channel.unary_unary("/test.Test/Unary")(b"hi")) == ([b"hi"], None)
        assert await outcome(channel.unary_stream("/test.Test/Stream")(b"hi")) == ([b"first", b"hi"], None)
        assert await outcome(channel.unary_stream("/test.Test/Written")(b"hi")) == ([b"first"], None)
        assert await outcome(channel.stream_unary("/test.Test/Collect")(iter([b"a", b"b"]))) == ([b"ab"], None)


async def test_a_crash_is_logged_here_and_says_nothing_there():
    async with serving() as (service, channel):
        service.error = ValueError("the password is hunter2")
        with structlog.testing.capture_logs() as logs:
            _, found = await outcome(channel.unary_unary("/test.Test/Unary")(b"hello"))
    assert type(found) is InternalError
    assert "hunter2" not in found.message
    (line,) = [line for line in logs if line["event"] == "rpc.crashed"]
    assert (line["method"], line["exc_info"]) == ("/test.Test/Unary", service.error)


async def test_a_handler_may_abort_by_itself():
    async with serving() as (_, channel):
        _, found = await outcome(channel.unary_unary("/test.Test/Unary")(b"abort"))
    assert (found.kind, found.message) == (ErrorKind.INVALID, "by hand")


async def test_cancelling_the_caller_cancels_the_handler():
    async with serving() as (service, channel):
        call = asyncio.ensure_future(outcome(channel.unary_unary("/test.Test/Unary")(b"wait")))
        await service.entered.wait()
        call.cancel()
        await asyncio.wait_for(service.cancelled.wait(), 5)


async def test_a_deadline_is_a_timeout():
    async with serving() as (_, channel):
        _, found = await outcome(channel.unary_unary("/test.Test/Unary")(b"wait", timeout=0.05))
    assert type(found) is DeadlineError


async def test_nobody_there_is_unavailable_and_names_no_address():
    async with grpc.aio.insecure_channel(
        "127.0.0.1:1", interceptors=telemetry.client_interceptors(), options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        _, found = await outcome(channel.unary_unary("/test.Test/Unary")(b"hello"))
    assert type(found) is UnavailableError
    assert "127.0.0.1" not in found.message


async def test_an_unknown_method_is_internal():
    async with serving() as (_, channel):
        _, found = await outcome(channel.unary_unary("/test.Test/Nothing")(b"hello"))
    assert found.kind is ErrorKind.INTERNAL


async def test_health_can_be_watched():
    async with serving() as (_, channel):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        first = await watch.read()
        watch.cancel()
    assert first.status == health_pb2.HealthCheckResponse.SERVING


def test_statuses_are_distinct_and_complete():
    assert set(STATUS) == set(ErrorKind)
    assert len(set(STATUS.values())) == len(STATUS)


def test_metadata_is_ascii_whatever_the_error_holds():
    status = to_status(VitascopeError(param="größe\n"))
    assert all(value.isascii() and value.isprintable() for _, value in status.trailing_metadata)


class Collector:
    """An OTLP collector that keeps what it is sent."""

    def __init__(self, server):
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

        self._answer = trace_service_pb2.ExportTraceServiceResponse()
        self.spans = {}
        self.services = set()
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, server)

    def Export(self, request, context):
        for resource in request.resource_spans:
            self.services |= {
                item.value.string_value for item in resource.resource.attributes if item.key == "service.name"
            }
            for scope in resource.scope_spans:
                self.spans |= {(span.name, span.kind): span for span in scope.spans}
        return self._answer


class Settings:
    host = "127.0.0.1"
    metrics_port = 0
    otlp_endpoint = None
    log_level = "info"
    log_format = "json"


@pytest.fixture
def collector():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        collector = Collector(server)
        collector.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield collector
        server.stop(None).wait()


CLIENT, SERVER = 3, 2


async def test_one_trace_spans_both_sides_of_every_call(collector, capsys):
    settings = Settings()
    settings.otlp_endpoint = collector.address
    running = telemetry.start("gateway", settings)
    async with serving() as (service, channel):
        with telemetry.span("test.request", job="job-1", nothing=None) as span:
            await outcome(channel.unary_unary("/test.Test/Unary")(b"hello"))
            await outcome(channel.unary_stream("/test.Test/Stream")(b"hello"))
            service.error = NotFoundError()
            await outcome(channel.unary_stream("/test.Test/Written")(b"hello"))
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            waiting = asyncio.ensure_future(outcome(channel.unary_unary("/test.Test/Unary")(b"hello")))
            service.error = RuntimeError("boom")
            await waiting
    await asyncio.to_thread(running.shutdown)
    trace_id = span.get_span_context().trace_id.to_bytes(16, "big")
    assert collector.services == {"gateway"}
    spans = collector.spans
    assert {found.trace_id for found in spans.values()} == {trace_id}
    assert not any(name.startswith("grpc.health") for name, _ in spans)
    for method in ("Unary", "Stream", "Written"):
        client, server = spans[f"test.Test/{method}", CLIENT], spans[f"test.Test/{method}", SERVER]
        assert server.parent_span_id == client.span_id
        assert client.parent_span_id == span.get_span_context().span_id.to_bytes(8, "big")
    assert spans["test.Test/Written", SERVER].status.code == 0  # not found is the caller's doing
    assert spans["test.Test/Unary", SERVER].status.code == 2  # a crash is ours
    assert [item.key for item in spans["test.request", 1].attributes] == ["job"]
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (crash,) = [line for line in lines if line["event"] == "rpc.crashed"]
    assert crash["trace_id"] == trace_id.hex()
    assert "boom" in crash["exception"]


async def test_a_cancelled_call_ends_its_spans(collector):
    settings = Settings()
    settings.otlp_endpoint = collector.address
    running = telemetry.start("gateway", settings)
    async with serving() as (service, channel):
        call = asyncio.ensure_future(outcome(channel.unary_unary("/test.Test/Unary")(b"wait")))
        await service.entered.wait()
        call.cancel()
        await asyncio.wait_for(service.cancelled.wait(), 5)
    await asyncio.to_thread(running.shutdown)
    assert set(collector.spans) == {("test.Test/Unary", CLIENT), ("test.Test/Unary", SERVER)}


async def test_a_client_without_asyncio_hands_the_trace_on(collector):
    settings = Settings()
    settings.otlp_endpoint = collector.address
    running = telemetry.start("postproc", settings)
    service = Service()
    server = grpc.aio.server(interceptors=[*telemetry.server_interceptors(), ErrorInterceptor()])
    server.add_generic_rpc_handlers((service.handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    def call():
        with grpc.insecure_channel(f"127.0.0.1:{port}") as plain, telemetry.span("test.request"):
            channel = grpc.intercept_channel(plain, *telemetry.sync_client_interceptors())
            answer = channel.unary_unary("/test.Test/Unary")(b"hello", timeout=5)
            service.error = StaleAttemptError()
            try:
                channel.unary_unary("/test.Test/Unary")(b"hello", timeout=5)
            except grpc.RpcError as error:
                return answer, from_rpc_error(error)

    answer, error = await asyncio.to_thread(call)
    await server.stop(None)
    await asyncio.to_thread(running.shutdown)
    assert answer == b"hello"
    assert type(error) is StaleAttemptError
    client, handler = collector.spans["test.Test/Unary", CLIENT], collector.spans["test.Test/Unary", SERVER]
    assert (handler.trace_id, handler.parent_span_id) == (client.trace_id, client.span_id)
