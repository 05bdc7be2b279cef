"""Spans, and how a trace crosses from one process to the next.

Between services a trace travels as W3C `traceparent`: in gRPC metadata (grpc_hooks.py) and in a field wherever work is
handed over later, in SQL rows and on streams.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_propagator = TraceContextTextMapPropagator()
_tracer: trace.Tracer | None = None
_NAME = "vitascope"


def use_provider(provider: trace.TracerProvider) -> None:
    """Make spans with this provider from now on, in the whole process."""
    global _tracer
    _tracer = provider.get_tracer(_NAME)


def tracer() -> trace.Tracer:
    """Return the tracer of this process; before telemetry has started, one whose spans go nowhere."""
    return _tracer or trace.get_tracer_provider().get_tracer(_NAME)


def traceparent_of(context: Context | None = None) -> str:
    """Return the `traceparent` of a context's span; "" when it has none."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context)
    return carrier.get("traceparent", "")


def current_traceparent() -> str:
    """Return the `traceparent` of the current span, or "" outside any; store it wherever work is handed over."""
    return traceparent_of()


def context_from(traceparent: str | None) -> Context:
    """Return the context a `traceparent` names; an absent or malformed one gives an empty context (a new trace)."""
    return _propagator.extract({"traceparent": traceparent} if traceparent else {}, context=Context())


@contextmanager
def span(name: str, parent: str | None = None, **attributes: str | bool | int | float | None) -> Iterator[trace.Span]:
    """Run the block inside a span; `parent` is a `traceparent`, None or "" continue the current span.

    Attributes that are None are left out. An exception marks the span and passes on.
    """
    given = {key: value for key, value in attributes.items() if value is not None}
    context = context_from(parent) if parent else None
    with tracer().start_as_current_span(name, context=context, attributes=given) as current:
        yield current


@contextmanager
def continued(traceparent: str) -> Iterator[None]:
    """Run the block as if inside the span that `traceparent` names, which may have ended long ago or elsewhere.

    Long work is hung on a short span that has been exported already: what a killed process had open is never exported,
    and whatever it had finished would hang in the air.
    """
    token = otel_context.attach(context_from(traceparent))
    try:
        yield
    finally:
        otel_context.detach(token)
