"""The span of one tool invocation, by OpenTelemetry's GenAI conventions."""

from opentelemetry import trace

from services.executor.store.invocations import Requested

_tracer = trace.get_tracer("cogni.runner")


def begun(requested: Requested) -> trace.Span:
    """Begin the span; it holds no argument and no outcome."""
    return _tracer.start_span(
        f"execute_tool {requested.tool}",
        attributes={
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": requested.tool,
            "cogni.invocation_id": requested.invocation_id,
            "cogni.run_id": requested.run_id,
        },
    )


def end_failed(span: trace.Span, failure: BaseException) -> None:
    """End the span with the failure's type alone: its text may quote a provider's answer."""
    span.set_attribute("error.type", type(failure).__qualname__)
    span.set_status(trace.StatusCode.ERROR)
    span.end()
