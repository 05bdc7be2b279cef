"""Logs, metrics and traces of one process.

    telemetry = start("gateway", settings)
    log = structlog.stdlib.get_logger("vitascope.gateway")
    with span("job.admit", job=job_id):
        log.info("job.admitted", job=job_id)
    telemetry.shutdown()

Logs go to stderr: static dotted event names with fields, JSON or console. Every line carries the service and, inside a
span, `trace_id` and `span_id`. Metrics are named `vitascope_…` and served on `/metrics`. Spans are exported over OTLP
when an endpoint is configured; trace ids are made and passed on in any case.
"""

import logging
import os
import sys
import threading
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from wsgiref.simple_server import WSGIServer

import grpc
import grpc.aio
import prometheus_client
import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from vitascope_common.errors import ConfigurationError
from vitascope_common.grpc_hooks import TracedServer, TracedStreamClient, TracedSyncClient, TracedUnaryClient
from vitascope_common.tracing import context_from, continued, current_traceparent, span, use_provider

__all__ = [
    "Telemetry",
    "TelemetrySettings",
    "client_interceptors",
    "context_from",
    "continued",
    "current_traceparent",
    "server_interceptors",
    "span",
    "start",
    "start_logging",
    "sync_client_interceptors",
]

EXPORT_DELAY_MS = 200
"""How long a finished span may wait before it is sent."""
SHUTDOWN_S = 2.0

_READY = prometheus_client.Gauge("vitascope_ready", "1 while the service does its work", ["service"])
_PID = prometheus_client.Gauge("vitascope_pid", "Process id of the process that does the work", ["service"])


class TelemetrySettings(Protocol):
    """What `start` reads; every ServiceSettings has it."""

    @property
    def host(self) -> str: ...
    @property
    def metrics_port(self) -> int: ...
    @property
    def otlp_endpoint(self) -> str | None: ...
    @property
    def log_level(self) -> str: ...
    @property
    def log_format(self) -> str: ...


@dataclass(frozen=True)
class Telemetry:
    """What `start` started; `shutdown` ends it."""

    service: str
    metrics_port: int
    """The port `/metrics` really listens on."""
    tracer_provider: TracerProvider
    _metrics_server: WSGIServer = field(repr=False)

    @property
    def tracer(self) -> trace.Tracer:
        """The tracer of this process."""
        return self.tracer_provider.get_tracer("vitascope")

    def mark_ready(self, is_ready: bool = True) -> None:
        """Say on `/metrics` whether this process does its work, and which process it is (`vitascope_ready`, `_pid`)."""
        _READY.labels(self.service).set(is_ready)
        _PID.labels(self.service).set(os.getpid())

    def shutdown(self) -> None:
        """Send the spans that are left, for at most 2 s, and stop serving metrics. Idempotent."""
        worker = threading.Thread(target=self.tracer_provider.shutdown, name="telemetry-shutdown", daemon=True)
        worker.start()
        self._metrics_server.shutdown()
        self._metrics_server.server_close()
        worker.join(SHUTDOWN_S)


def start(service: str, settings: TelemetrySettings) -> Telemetry:
    """Configure logging, serve metrics and prepare tracing for this process; a later call takes over.

    Raises:
        ConfigurationError: the metrics port is taken.
    """
    start_logging(service, settings.log_level, settings.log_format)
    try:
        server, _ = prometheus_client.start_http_server(settings.metrics_port, addr=settings.host)
    except OSError as error:
        where = f"{settings.host}:{settings.metrics_port}"
        raise ConfigurationError(f"Cannot serve metrics of {service} on {where}: {error.strerror}.") from error
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}), shutdown_on_exit=False)
    if settings.otlp_endpoint:
        exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint, timeout=SHUTDOWN_S)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_DELAY_MS))
    use_provider(provider)
    return Telemetry(service, server.server_port, provider, server)


def start_logging(service: str, level: str = "info", log_format: str = "auto") -> None:
    """Send structlog and the standard library's logging to stderr in one format."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared_processors(),
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    is_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    render: list[Any]
    if is_json:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        # The default formatter prints local variables when rich is installed: keys and prompts among them.
        render = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]

    def add_service(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    handler = _Handler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_shared_processors(),
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, add_service, *render],
        )
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)


class _Handler(logging.StreamHandler[Any]):
    """Writes to whatever `sys.stderr` is at the moment of the call."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _shared_processors() -> list[Any]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace_ids,
    ]


def _add_trace_ids(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def server_interceptors() -> Sequence[grpc.aio.ServerInterceptor]:
    """Return what an aio server needs to continue the caller's trace."""
    return [TracedServer()]


def client_interceptors() -> Sequence[grpc.aio.ClientInterceptor]:
    """Return what an aio channel needs to hand its trace on."""
    return [TracedUnaryClient(), TracedStreamClient()]


def sync_client_interceptors() -> Sequence[grpc.UnaryUnaryClientInterceptor]:
    """Return what `grpc.intercept_channel` needs to hand its trace on."""
    return [TracedSyncClient()]
