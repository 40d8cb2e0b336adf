"""Traces and metrics: W3C ids for every call and run, exported by OTLP/HTTP only when asked to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Meter, NoOpMeterProvider, Observation
from opentelemetry.trace import Span, SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from services.runtime.settings import TelemetrySettings
from services.runtime.untraced import IdTracerProvider

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor

_SCOPE = "cogni"
_PROPAGATOR = TraceContextTextMapPropagator()
#: An exporter that cannot reach its collector must not hold up the end of a process for longer.
_EXPORT_TIMEOUT_SECONDS = 5
#: Spans and metrics that a slow collector has not taken by then are lost.
SHUTDOWN_SECONDS_MAX = 5.0
_METRICS_INTERVAL_MS = 30_000


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What one process measures with. Without a collector spans have ids and record nothing."""

    tracer: Tracer
    meter: Meter
    _provider: trace.TracerProvider
    _shutdown: Callable[[], None]

    def install(self) -> None:
        """Makes this what libraries find by `trace.get_tracer`; once, in a process's main."""
        trace.set_tracer_provider(self._provider)

    def gauge(
        self,
        name: str,
        description: str,
        read: Callable[[], Iterable[tuple[float, Mapping[str, AttributeValue]]]],
    ) -> None:
        """Reports the (value, attributes) pairs of `read` whenever metrics are collected."""

        def observe(options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value, attributes) for value, attributes in read()]

        self.meter.create_observable_gauge(name, [observe], description=description)

    def shutdown(self) -> None:
        """Sends what is still held; blocks for some seconds at most."""
        self._shutdown()


def start_telemetry(
    settings: TelemetrySettings, service: str, processor: SpanProcessor | None = None
) -> Telemetry:
    """Begins measuring for the process named `service` (service.name in OpenTelemetry).

    `processor` receives the spans instead of the collector of the settings.
    """
    if processor is None and settings.otlp_endpoint is None:
        off = IdTracerProvider()
        return Telemetry(off.get_tracer(_SCOPE), _no_meter(), off, lambda: None)
    # Imported here: without a collector no process pays for the SDK's imports.
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    resource = Resource.create({"service.name": service, "service.namespace": "cogni"})
    # A span costs about 22 µs and its export; without a collector 7 µs.
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracers.add_span_processor(processor or _span_exporter(settings))
    if settings.otlp_endpoint is None or not settings.otlp_metrics:
        return Telemetry(
            tracers.get_tracer(_SCOPE), _no_meter(), tracers, lambda: _bounded(tracers.shutdown)
        )
    meters = _meter_provider(settings, resource)

    def shutdown() -> None:
        tracers.shutdown()
        meters.shutdown(timeout_millis=_EXPORT_TIMEOUT_SECONDS * 1000)

    return Telemetry(
        tracers.get_tracer(_SCOPE), meters.get_meter(_SCOPE), tracers, lambda: _bounded(shutdown)
    )


def _bounded(shutdown: Callable[[], None]) -> None:
    # The SDK waits for what an exporter retries: 14 s with a collector that refuses, 30 with one
    # that hangs, and a process that ends so slowly is killed. The thread dies with the process.
    ending = threading.Thread(target=shutdown, name="telemetry-shutdown", daemon=True)
    ending.start()
    ending.join(SHUTDOWN_SECONDS_MAX)


def _no_meter() -> Meter:
    return NoOpMeterProvider().get_meter(_SCOPE)


def _span_exporter(settings: TelemetrySettings) -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(
        OTLPSpanExporter(
            endpoint=f"{_endpoint(settings)}/v1/traces",
            headers=_headers(settings),
            timeout=_EXPORT_TIMEOUT_SECONDS,
        )
    )


def _meter_provider(settings: TelemetrySettings, resource: Resource) -> MeterProvider:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    exporter = OTLPMetricExporter(
        endpoint=f"{_endpoint(settings)}/v1/metrics",
        headers=_headers(settings),
        timeout=_EXPORT_TIMEOUT_SECONDS,
    )
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=_METRICS_INTERVAL_MS)
    return MeterProvider([reader], resource=resource, shutdown_on_exit=False)


def _endpoint(settings: TelemetrySettings) -> str:
    return (settings.otlp_endpoint or "").rstrip("/")


def _headers(settings: TelemetrySettings) -> dict[str, str]:
    if settings.otlp_headers is None:
        return {}
    lines = settings.otlp_headers.get_secret_value().splitlines()
    pairs = (line.partition(":") for line in lines if line.strip())
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def current_trace_id() -> str:
    """The W3C trace id of the work under way, 32 hex digits, or "" outside any span."""
    found = trace.get_current_span().get_span_context()
    return trace.format_trace_id(found.trace_id) if found.is_valid else ""


def inject() -> dict[str, str]:
    """The current trace context as a small dict, for outbox rows and broker messages."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier


def extract(carrier: Mapping[str, str]) -> otel_context.Context:
    """The trace context of a dict made by `inject`; malformed or empty dicts begin a new trace."""
    beginning = otel_context.Context()
    return _PROPAGATOR.extract(carrier, context=beginning) if carrier else beginning


@contextmanager
def continued(
    tracer: Tracer,
    name: str,
    carrier: Mapping[str, str],
    *,
    kind: SpanKind = SpanKind.CONSUMER,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> Iterator[Span]:
    """A span that continues the trace of `carrier`; exceptions are recorded by their type only.

    Exception texts stay out of spans: they may quote what a tool or a provider sent.
    """
    with tracer.start_as_current_span(
        name,
        context=extract(carrier),
        kind=kind,
        attributes=dict(attributes or {}),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except Exception as error:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(trace.StatusCode.ERROR)
            raise
