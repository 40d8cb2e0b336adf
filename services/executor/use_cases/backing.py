"""What the use cases stand on."""

from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry import propagate

from services.runtime.database import Database


@dataclass(frozen=True)
class Backing:
    """The database, and the relay's kick for what a commit owes to others."""

    database: Database
    kick: Callable[[], None]


def current_traceparent() -> str | None:
    """Return the W3C traceparent of the call being served, None without tracing."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent")


def trace_id_of(traceparent: str | None) -> str | None:
    """Return the trace id inside a traceparent."""
    parts = (traceparent or "").split("-")
    return parts[1] if len(parts) == 4 else None
