"""Watches each call: one span that continues the caller's trace, and its duration as a metric."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from services.runtime.caller import Caller
from services.runtime.logs import log_context
from services.runtime.telemetry import Telemetry, current_trace_id, extract

_TRACE_KEYS = ("traceparent", "tracestate")


class Call:
    """One call under way: its trace id, and what became of it."""

    def __init__(self, method: str, span: trace.Span) -> None:
        self.method = method
        self.trace_id = current_trace_id()
        self.code = "OK"
        self._span = span

    def admitted(self, caller: Caller) -> None:
        """Marks the span with who calls."""
        self._span.set_attribute("cogni.tenant_id", caller.tenant_id)
        self._span.set_attribute("cogni.caller", caller.subject)

    def ended(self, code: str) -> None:
        """Remembers the gRPC code the caller sees."""
        self.code = code

    def close(self) -> None:
        """Writes the outcome to the span."""
        self._span.set_attribute("rpc.response.status_code", self.code)
        if self.code in ("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"):
            self._span.set_status(trace.StatusCode.ERROR)


class Observer:
    """Makes the span and the measurements of every call of a server."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._tracer = telemetry.tracer
        # The histogram's count is the number of calls: no counter of its own.
        self._durations = telemetry.meter.create_histogram(
            "rpc.server.call.duration", unit="s", description="How long RPCs take at this server."
        )

    @contextmanager
    def call(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[Call]:
        """Surrounds one call; the span is current, and logs carry the trace id inside."""
        carrier = {
            key: value
            for key, value in context.invocation_metadata() or ()
            if key in _TRACE_KEYS and isinstance(value, str)
        }
        begin = time.perf_counter()
        with self._tracer.start_as_current_span(
            method.removeprefix("/"),
            context=extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": method.removeprefix("/")},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            call = Call(method, span)
            try:
                with log_context(rpc=method):
                    yield call
            finally:
                call.close()
                self._durations.record(
                    time.perf_counter() - begin,
                    {
                        "rpc.method": method.removeprefix("/"),
                        "rpc.response.status_code": call.code,
                    },
                )
