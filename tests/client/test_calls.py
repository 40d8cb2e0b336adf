"""What goes with every call: the caller's token and trace."""

from __future__ import annotations

from opentelemetry.sdk.trace import TracerProvider

from cogni.client.channel import call_metadata
from cogni.client.settings import ClientSettings


def test_the_token_is_asked_for_at_each_call() -> None:
    tokens = iter(["first", "second"])
    settings = ClientSettings(token=lambda: next(tokens))

    sent = [dict(call_metadata(settings))["authorization"] for _ in range(2)]

    assert sent == ["Bearer first", "Bearer second"]


def test_the_callers_trace_goes_along() -> None:
    tracer = TracerProvider().get_tracer("tests")

    with tracer.start_as_current_span("mine") as span:
        sent = dict(call_metadata(ClientSettings()))

    assert format(span.get_span_context().trace_id, "032x") in sent["traceparent"]


def test_without_token_and_trace_nothing_is_added() -> None:
    assert call_metadata(ClientSettings()) == ()
