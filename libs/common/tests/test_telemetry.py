import io
import json
import logging
import socket
import time
import urllib.request

import prometheus_client
import pytest
import structlog

from vitascope_common import telemetry
from vitascope_common.errors import ConfigurationError
from vitascope_common.telemetry import context_from, current_traceparent, span

log = structlog.stdlib.get_logger("vitascope.test")


class Settings:
    host = "127.0.0.1"
    metrics_port = 0
    otlp_endpoint = None
    log_level = "info"
    log_format = "auto"

    def __init__(self, **values):
        vars(self).update(values)


@pytest.fixture(scope="module", autouse=True)
def running():
    one = telemetry.start("gateway", Settings())
    yield one
    one.shutdown()


def start(service="gateway", log_level="info", log_format="auto"):
    """Configure logging for one test, on the stderr that it captures."""
    telemetry.start_logging(service, log_level, log_format)


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_log_line_is_json_with_service_and_trace(capsys):
    start("gpu-worker")
    with span("test.work"):
        log.info("job.started", job="job-1")
        traceparent = current_traceparent()
    log.warning("job.lost")
    inside, outside = lines(capsys)
    assert (inside["event"], inside["job"], inside["level"]) == ("job.started", "job-1", "info")
    assert (inside["service"], inside["logger"]) == ("gpu-worker", "vitascope.test")
    assert traceparent.startswith(f"00-{inside['trace_id']}-{inside['span_id']}-")
    assert inside["timestamp"].endswith("Z")
    assert "trace_id" not in outside


def test_the_standard_library_logs_the_same_way(capsys):
    start()
    with span("test.work"):
        logging.getLogger("sqlalchemy.pool").warning("pool %s is full", "a")
    (line,) = lines(capsys)
    assert (line["event"], line["service"], line["level"]) == ("pool a is full", "gateway", "warning")
    assert "trace_id" in line


def test_bound_context_is_on_every_line(capsys):
    start()
    with structlog.contextvars.bound_contextvars(tenant="t-1"):
        log.info("job.started")
        logging.getLogger("x").warning("hello")
    assert [line["tenant"] for line in lines(capsys)] == ["t-1", "t-1"]


def test_the_level_holds_for_both(capsys):
    start(log_level="warning")
    log.info("job.started")
    logging.getLogger("x").info("hello")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_exception_is_logged_without_local_variables(capsys, log_format):
    start(log_format=log_format)
    secret = "hunter2".upper()
    try:
        int(secret.lower()[:0] or "x")
    except ValueError:
        log.exception("job.crashed")
    text = capsys.readouterr().err
    assert "ValueError: invalid literal" in text
    assert secret not in text


def test_on_a_terminal_it_is_written_for_people(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    start()
    log.info("job.started", job="job-1")
    text = terminal.getvalue()
    assert "job.started" in text
    assert not text.startswith("{")


def test_what_json_cannot_say_is_said_as_text(capsys):
    start()
    log.info("job.started", value=object)
    assert lines(capsys)[0]["value"] == "<class 'object'>"


def test_starting_again_takes_over(capsys):
    start("gateway")
    log.info("one")
    start("scheduler")
    log.info("two")
    assert [(line["event"], line["service"]) for line in lines(capsys)] == [("one", "gateway"), ("two", "scheduler")]


def test_metrics_are_served(running):
    counter = prometheus_client.Counter("vitascope_test_things", "Things.", registry=prometheus_client.REGISTRY)
    try:
        counter.inc(3)
        with urllib.request.urlopen(f"http://127.0.0.1:{running.metrics_port}/metrics", timeout=5) as answer:
            assert b"vitascope_test_things_total 3.0" in answer.read()
    finally:
        prometheus_client.REGISTRY.unregister(counter)


def test_a_taken_metrics_port_stops_the_start():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=str(port)):
            telemetry.start("gateway", Settings(metrics_port=port))


def test_a_span_continues_the_trace_it_is_given():
    with span("test.first"):
        handed_over = current_traceparent()
    with span("test.other"), span("test.second", parent=handed_over):
        assert current_traceparent()[:36] == handed_over[:36]
    with span("test.other") as other, span("test.inner", parent=""):
        assert current_traceparent()[3:35] == f"{other.get_span_context().trace_id:032x}"
    assert current_traceparent() == ""


@pytest.mark.parametrize("traceparent", [None, "", "garbage", "00-0-0-0", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_malformed_traceparent_begins_a_new_trace(traceparent):
    assert not context_from(traceparent)
    with span("test.work", parent=traceparent):
        assert current_traceparent().startswith("00-")


def test_an_exception_passes_through_a_span():
    with pytest.raises(KeyError), span("test.work"):
        raise KeyError("x")


def test_shutdown_is_short_when_the_collector_is_away_and_may_be_repeated():
    running = telemetry.start("gateway", Settings(otlp_endpoint="http://127.0.0.1:1"))
    with span("test.work"):
        pass
    began = time.monotonic()
    running.shutdown()
    running.shutdown()
    assert time.monotonic() - began < 4
