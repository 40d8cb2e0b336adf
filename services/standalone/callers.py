"""What a caller of the embedded stack may do."""

from typing import Final

ALL_SCOPES: Final = (
    "runs:read",
    "runs:write",
    "grants:read",
    "grants:write",
    "audit:read",
    "schedules:read",
    "schedules:write",
    "triggers:read",
    "triggers:write",
    "connections:read",
    "connections:write",
    "connections:admin",
    "ledger:read",
    "ledger:write",
    "ledger:admin",
)
