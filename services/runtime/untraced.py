"""Spans that have ids and record nothing, for processes without a collector."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    TraceFlags,
    Tracer,
    TracerProvider,
)
from opentelemetry.util import types

_SPAN_ID_BITS, _TRACE_ID_BITS = 64, 128
_NO_FLAGS = TraceFlags.get_default()


class IdTracerProvider(TracerProvider):
    """Makes tracers without the OpenTelemetry SDK, whose import costs each process 110 ms."""

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: types.Attributes | None = None,
    ) -> Tracer:
        """The same kind of tracer for everybody."""
        return IdTracer()


class IdTracer(Tracer):
    """Continues the trace of its parent, or begins one; errors and runs get their trace id.

    The parent's flags and state go on unchanged, so that a process without a collector does not
    cut the trace between two that have one.
    """

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: types.Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> Span:
        """A span that only carries ids."""
        parent = trace.get_current_span(context).get_span_context()
        if parent.is_valid:
            trace_id, flags = parent.trace_id, parent.trace_flags
        else:
            trace_id, flags = _new_id(_TRACE_ID_BITS), _NO_FLAGS
        span_id = _new_id(_SPAN_ID_BITS)
        return NonRecordingSpan(SpanContext(trace_id, span_id, False, flags, parent.trace_state))

    @contextmanager
    def start_as_current_span(  # type: ignore[override]  # the API's own decorator is private
        self,
        name: str,
        context: Context | None = None,
        *arguments: Any,
        end_on_exit: bool = True,
        **options: Any,
    ) -> Iterator[Span]:
        """The span is current inside the block."""
        with trace.use_span(self.start_span(name, context), record_exception=False) as span:
            yield span


def _new_id(bits: int) -> int:
    # An id of zero means "no trace" in W3C Trace Context. Ids are no secrets.
    return random.getrandbits(bits) or 1
