"""Carries a trace through a message: from who caused it to the actor that works on it."""

import threading
from collections.abc import Mapping
from contextvars import Token
from typing import Any

from dramatiq import Broker, MessageProxy, Middleware
from opentelemetry import context, propagate, trace

OPTION = "trace_context"


def outgoing_trace(carrier: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what to put into a message's options: the given carrier, or the current trace."""
    if carrier is not None:
        return dict(carrier)
    injected: dict[str, str] = {}
    propagate.inject(injected)
    return injected


class MessageTrace(Middleware):
    """Runs each actor inside a span that continues the trace in its message."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("cogni.runtime")
        # A worker's thread works on one message at a time.
        self._working = threading.local()

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Open the span."""
        parent = propagate.extract(message.options.get(OPTION) or {})
        span = self._tracer.start_span(
            f"process {message.queue_name}",
            context=parent,
            kind=trace.SpanKind.CONSUMER,
            attributes={
                "messaging.system": "dramatiq",
                "messaging.destination.name": message.queue_name,
                "messaging.message.id": message.message_id,
                "cogni.actor": message.actor_name,
            },
        )
        token = context.attach(trace.set_span_in_context(span, parent))
        self._working.span, self._working.token = span, token

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: object = None,
        exception: BaseException | None = None,
    ) -> None:
        """Close the span; of a failure it says the type, since the text may hold a secret."""
        span: trace.Span | None = getattr(self._working, "span", None)
        if span is None:
            return
        token: Token[Any] = self._working.token
        del self._working.span, self._working.token
        context.detach(token)
        if exception is not None:
            span.set_status(trace.StatusCode.ERROR, type(exception).__name__)
        span.end()

    after_skip_message = after_process_message
