"""Traces go on across calls and messages, and a collector gets them only when there is one."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr

from services.runtime.settings import TelemetrySettings
from services.runtime.telemetry import (
    continued,
    current_trace_id,
    extract,
    inject,
    start_telemetry,
)

CANARY = "canary-77d0"


def test_every_piece_of_work_has_a_trace_id_without_any_collector() -> None:
    tracer = start_telemetry(TelemetrySettings(), "test").tracer

    assert current_trace_id() == ""
    with continued(tracer, "work", {}) as span:
        assert len(current_trace_id()) == 32
        assert not span.is_recording()


def test_without_a_collector_the_sampling_decision_of_others_goes_on() -> None:
    tracer = start_telemetry(TelemetrySettings(), "test").tracer
    carrier = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "vendor=1"}

    with continued(tracer, "work", carrier):
        onward = inject()

    assert onward["traceparent"].startswith(f"00-{'a' * 32}-")
    assert onward["traceparent"].endswith("-01")
    assert "b" * 16 not in onward["traceparent"]
    assert onward["tracestate"] == "vendor=1"


def test_without_a_collector_the_sdk_is_not_even_imported() -> None:
    program = (
        "import sys, services.runtime.command as command\n"
        "from services.runtime.settings import TelemetrySettings\n"
        "from services.runtime.telemetry import start_telemetry\n"
        "start_telemetry(TelemetrySettings(), 'test').install()\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.sdk')]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_trace_goes_on_behind_an_outbox_row_or_a_message() -> None:
    tracer = start_telemetry(TelemetrySettings(), "test").tracer
    with continued(tracer, "request", {}):
        carrier, before = inject(), current_trace_id()

    with continued(tracer, "message", carrier):
        after = current_trace_id()

    assert list(carrier) == ["traceparent"]
    assert before == after


@pytest.mark.parametrize("carrier", [{}, {"traceparent": "x"}, {"traceparent": "00-0-0-0"}])
def test_a_malformed_trace_context_begins_a_new_trace(carrier: dict[str, str]) -> None:
    tracer = start_telemetry(TelemetrySettings(), "test").tracer

    assert extract(carrier) == {}
    with continued(tracer, "work", carrier):
        assert len(current_trace_id()) == 32


def test_a_failed_span_says_the_type_of_the_error_and_not_its_text() -> None:
    exporter = InMemorySpanExporter()
    telemetry = start_telemetry(TelemetrySettings(), "test", SimpleSpanProcessor(exporter))

    with pytest.raises(ValueError, match=CANARY), continued(telemetry.tracer, "work", {}):
        raise ValueError(CANARY)

    [span] = exporter.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["error.type"] == "ValueError"
    assert CANARY not in span.to_json()
    assert span.resource.attributes["service.name"] == "test"


class Collector:
    """An OTLP/HTTP collector of one test."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                collector.requests.append((self.path, self.headers["authorization"]))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/api/otel"


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    thread = threading.Thread(target=running.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.server.shutdown()
    thread.join()
    running.server.server_close()


def test_a_collector_gets_spans_and_metrics_over_http_with_its_headers(
    collector: Collector,
) -> None:
    settings = TelemetrySettings(
        otlp_endpoint=collector.url, otlp_headers=SecretStr("Authorization: Basic abc\n\n")
    )
    telemetry = start_telemetry(settings, "test")
    telemetry.gauge("cogni.test", "A number.", lambda: [(3.0, {"kind": "a"})])

    with continued(telemetry.tracer, "work", {}):
        pass
    telemetry.shutdown()

    assert set(collector.requests) == {
        ("/api/otel/v1/traces", "Basic abc"),
        ("/api/otel/v1/metrics", "Basic abc"),
    }


def test_a_collector_that_hangs_does_not_hold_up_the_end_of_a_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.runtime.telemetry.SHUTDOWN_SECONDS_MAX", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = TelemetrySettings(
            otlp_endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", otlp_metrics=False
        )
        telemetry = start_telemetry(settings, "test")
        with continued(telemetry.tracer, "work", {}):
            pass
        began = time.monotonic()

        telemetry.shutdown()

        # The SDK alone waits for five seconds at least.
        assert time.monotonic() - began < 4


def test_metrics_can_be_kept_from_collectors_that_take_only_traces(collector: Collector) -> None:
    settings = TelemetrySettings(otlp_endpoint=collector.url, otlp_metrics=False)
    telemetry = start_telemetry(settings, "test")

    with continued(telemetry.tracer, "work", {}):
        pass
    telemetry.shutdown()

    assert {path for path, _ in collector.requests} == {"/api/otel/v1/traces"}
