"""Webhooks: who is told of changes of connections, what they are told, and how it is signed.

The format is that of Standard Webhooks (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from standardwebhooks import Webhook

SECRETS_MAX = 4
#: An event that nobody took for so long is given up.
AGE_MAX = timedelta(hours=24)
ANY_TENANT = "*"
_SECRET_PREFIX = "whsec_"  # noqa: S105 - every secret begins so
_SECRET_BYTES_MIN, _SECRET_BYTES_MAX = 24, 64
SHAPE = '{"acme": {"url": "https://…", "secrets": ["whsec_<base64 of 24 to 64 bytes>"]}}'


class WebhookError(ValueError):
    """Endpoints that cannot be used; the text says what to change and shows no secret."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a tenant's events go. Several secrets sign at once while one replaces another."""

    url: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Event:
    """One change as it is told: the same id and body each time it is sent."""

    event_id: str
    body: bytes

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Event:
        """The event that was written with the change."""
        told = {name: payload[name] for name in ("type", "timestamp", "data")}
        body = json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
        return cls(payload["event_id"], body)


def signed_headers(endpoint: Endpoint, event: Event, now: datetime) -> dict[str, str]:
    """The headers by which a receiver knows that it was us, and when; `now` in UTC."""
    text = event.body.decode()
    signatures = [Webhook(each).sign(event.event_id, now, text) for each in endpoint.secrets]
    return {
        "content-type": "application/json",
        "webhook-id": event.event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def endpoint_of(endpoints: Mapping[str, Endpoint], tenant_id: str) -> Endpoint | None:
    """The tenant's endpoint, or the one for tenants without one of their own."""
    return endpoints.get(tenant_id) or endpoints.get(ANY_TENANT)


def parse_endpoints(content: Any) -> dict[str, Endpoint]:
    """Read what the operator's JSON holds. Raises WebhookError."""
    if not isinstance(content, dict):
        raise WebhookError(f"must look like {SHAPE}")
    return {str(tenant_id): _endpoint(tenant_id, entry) for tenant_id, entry in content.items()}


def _endpoint(tenant_id: str, entry: Any) -> Endpoint:
    if not isinstance(entry, dict) or set(entry) != {"url", "secrets"}:
        raise WebhookError(f"must look like {SHAPE}")
    url, secrets = entry["url"], entry["secrets"]
    if not isinstance(url, str) or not isinstance(secrets, list):
        raise WebhookError(f"must look like {SHAPE}")
    if not 1 <= len(secrets) <= SECRETS_MAX:
        raise WebhookError(f"{tenant_id!r} needs 1 to {SECRETS_MAX} secrets")
    if not all(_is_secret(each) for each in secrets):
        raise WebhookError(
            f"each secret of {tenant_id!r} must be {_SECRET_PREFIX} and then the base64 of "
            f"{_SECRET_BYTES_MIN} to {_SECRET_BYTES_MAX} random bytes"
        )
    return Endpoint(url, tuple(secrets))


def _is_secret(value: Any) -> bool:
    if not isinstance(value, str) or not value.startswith(_SECRET_PREFIX):
        return False
    try:
        key = base64.b64decode(value.removeprefix(_SECRET_PREFIX), validate=True)
    except ValueError:
        return False
    return _SECRET_BYTES_MIN <= len(key) <= _SECRET_BYTES_MAX
