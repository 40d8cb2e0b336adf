"""A pass that re-wraps every stored data key: what it is and when it is over."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class RotationState(StrEnum):
    """How far a pass is; the contract's KeyRotationState."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class RowKey:
    """One credential's place in the pass."""

    tenant_id: str
    connection_id: str
    kind: str


@dataclass(frozen=True, slots=True)
class KeyRotation:
    """One pass over all tenants' credentials; `after` is the last row it has dealt with.

    `begun_in_tenant` is whose log tells of it: the tenant of who asked first; "" when that was a
    release that did not write it down.
    """

    rotation_id: str
    key_id: str
    state: RotationState
    begun_in_tenant: str
    total_rows: int
    rotated_rows: int
    failed_rows: int
    after: RowKey | None
    create_time: datetime
    update_time: datetime
    finish_time: datetime | None
