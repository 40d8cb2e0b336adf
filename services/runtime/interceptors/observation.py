"""Watches each call: one span that continues the caller's trace, and its duration as a metric."""

from __future__ import annotations

import time
from contextvars import Token
from typing import TypeAlias

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram
from opentelemetry.trace import SpanKind

from services.runtime.caller import Caller
from services.runtime.logs import log_context
from services.runtime.telemetry import Telemetry, current_trace_id, extract

#: A call's metadata as gRPC gives it. Asked for once per call: each answer is made anew.
Metadata: TypeAlias = "tuple[tuple[str, str | bytes], ...]"

_TRACE_KEYS = ("traceparent", "tracestate")


class Observer:
    """Makes the span and the measurements of every call of a server."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.tracer = telemetry.tracer
        # The histogram's count is the number of calls: no counter of its own.
        self.durations: Histogram = telemetry.meter.create_histogram(
            "rpc.server.call.duration", unit="s", description="How long RPCs take at this server."
        )

    def call(self, method: str, metadata: Metadata) -> Call:
        """Surrounds one call; the span is current, and logs carry the trace id inside."""
        return Call(self, method, metadata)


class Call:
    """One call under way: its trace id, and what became of it.

    A class with slots, over contextlib's generators: 15 µs of each call against 40.
    """

    __slots__ = (
        *("_begin", "_logs", "_metadata", "_name", "_observer", "_span", "_token"),
        *("code", "method"),
    )

    def __init__(self, observer: Observer, method: str, metadata: Metadata) -> None:
        self.method = method
        self._name = method.removeprefix("/")
        self.code = "OK"
        self._observer = observer
        self._metadata = metadata
        self._logs = log_context(rpc=method)

    def __enter__(self) -> Call:
        self._begin = time.perf_counter()
        carrier = {
            key: value
            for key, value in self._metadata
            if key in _TRACE_KEYS and isinstance(value, str)
        }
        context = extract(carrier)
        self._span = self._observer.tracer.start_span(
            self._name,
            context=context,
            kind=SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": self._name},
        )
        self._token: Token[Context] = otel_context.attach(
            trace.set_span_in_context(self._span, context)
        )
        self._logs.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._logs.__exit__()
        otel_context.detach(self._token)
        self._span.set_attribute("rpc.response.status_code", self.code)
        if self.code in ("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"):
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()
        self._observer.durations.record(
            time.perf_counter() - self._begin,
            {"rpc.method": self._name, "rpc.response.status_code": self.code},
        )

    @property
    def trace_id(self) -> str:
        """The W3C trace id, for the error that a caller sees."""
        return current_trace_id()

    def admitted(self, caller: Caller) -> None:
        """Marks the span with who calls."""
        self._span.set_attribute("cogni.tenant_id", caller.tenant_id)
        self._span.set_attribute("cogni.caller", caller.subject)

    def ended(self, code: str) -> None:
        """Remembers the gRPC code the caller sees."""
        self.code = code
