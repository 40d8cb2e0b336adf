"""What every channel to Cogni is made with: retries that are safe, keepalive, size limits."""

from __future__ import annotations

import json
from collections.abc import Iterable

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from cogni.client.settings import ClientSettings

try:
    from opentelemetry import propagate
except ImportError:
    # Tracing is the caller's choice: without OpenTelemetry a call starts a trace at the server.
    propagate = None  # type: ignore[assignment]

# RPCs that change nothing begin with one of these verbs.
READING_VERBS = ("Get", "List", "Preview", "Simulate", "Explain")

RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    # Only what says that nothing was done, or that the server is going away.
    "retryableStatusCodes": ["UNAVAILABLE"],
}
KEEPALIVE_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000
MESSAGE_BYTES_MAX = 16 * 1024 * 1024


def is_retry_safe(method: MethodDescriptor) -> bool:
    """Whether repeating a call whose answer was lost can do no harm.

    True for RPCs that only read and for those whose request carries a request_id.
    """
    if method.server_streaming:
        return False
    return method.name.startswith(READING_VERBS) or "request_id" in method.input_type.fields_by_name


def service_config(services: Iterable[ServiceDescriptor]) -> str:
    """The gRPC service config that retries the retry-safe methods of these services."""
    names = [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if is_retry_safe(method)
    ]
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": RETRY_POLICY}]})


def options(services: Iterable[ServiceDescriptor]) -> list[tuple[str, str | int]]:
    return [
        ("grpc.service_config", service_config(services)),
        ("grpc.enable_retries", 1),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        # The second is for a server that takes the ping and does not answer, as a stopped one does;
        # gRPC would give it a minute.
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.primary_user_agent", "cogni-python"),
    ]


def tls_credentials(settings: ClientSettings) -> grpc.ChannelCredentials | None:
    """None when the settings ask for a plain connection."""
    if not settings.tls:
        return None
    return grpc.ssl_channel_credentials(
        settings.ca_certificate, settings.private_key, settings.certificate
    )


def call_metadata(settings: ClientSettings) -> tuple[tuple[str, str], ...]:
    """The caller's token, and the W3C trace context of the caller's current span, if any."""
    carrier: dict[str, str] = {}
    if propagate is not None:
        propagate.inject(carrier)
    if settings.token is not None:
        carrier["authorization"] = f"Bearer {settings.token()}"
    return tuple(carrier.items())
