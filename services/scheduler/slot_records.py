"""A recorded slot: its key, its states, and what starts its run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from services.runtime.ids import derive_id
from services.scheduler.schedules import OverlapPolicy

# A slot whose start is not heard of for this long is dispatched again: the message was lost, or
# the starter died.
REDISPATCH_AFTER = timedelta(seconds=30)
RETRY_FIRST = timedelta(seconds=1)
RETRY_MAX = timedelta(minutes=1)


class SlotState(StrEnum):
    """Where a slot is in its life; PENDING and BUFFERED can still start."""

    PENDING = "PENDING"
    BUFFERED = "BUFFERED"
    STARTED = "STARTED"
    SKIPPED = "SKIPPED"
    MISSED = "MISSED"
    REFUSED = "REFUSED"
    CANCELLED = "CANCELLED"


class SlotReason(StrEnum):
    """Why a slot is in its state."""

    DUE = "DUE"
    CAUGHT_UP = "CAUGHT_UP"
    TRIGGERED = "TRIGGERED"
    BACKFILLED = "BACKFILLED"
    OVERLAP = "OVERLAP"
    BUFFER_FULL = "BUFFER_FULL"
    COALESCED = "COALESCED"
    TOO_LATE = "TOO_LATE"
    PAUSED = "PAUSED"
    GRANT_UNUSABLE = "GRANT_UNUSABLE"
    START_REFUSED = "START_REFUSED"
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    SCHEDULE_DELETED = "SCHEDULE_DELETED"
    BACKFILL_STOPPED = "BACKFILL_STOPPED"
    EXECUTOR_UNAVAILABLE = "EXECUTOR_UNAVAILABLE"
    TURN_CAME = "TURN_CAME"


class SlotOrigin(StrEnum):
    """What made a slot."""

    SCHEDULE = "SCHEDULE"
    MANUAL = "MANUAL"
    BACKFILL = "BACKFILL"


@dataclass(frozen=True, slots=True)
class SlotKey:
    """What a slot is, for ever: its schedule and its nominal time in UTC."""

    schedule_id: str
    scheduled_time: datetime

    @property
    def start_request_id(self) -> str:
        """The request_id of its StartRun: why no slot starts two runs."""
        nominal = self.scheduled_time.astimezone(UTC).isoformat()
        return derive_id("scheduler.slot", self.schedule_id, nominal)


@dataclass(frozen=True, slots=True)
class SlotDraft:
    """A slot about to be recorded.

    `decided` is false when the view of the earlier runs may be stale: the starter then asks the
    Executor before it applies the overlap policy.
    """

    key: SlotKey
    tenant_id: str
    fire_time: datetime
    state: SlotState
    reason: SlotReason
    origin: SlotOrigin
    overlap_policy: OverlapPolicy
    run_digest: bytes
    decided: bool = True
    note: str = ""
    backfill_id: str | None = None


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """A slot as it is kept."""

    key: SlotKey
    tenant_id: str
    fire_time: datetime
    state: SlotState
    reason: SlotReason
    note: str
    origin: SlotOrigin
    overlap_policy: OverlapPolicy
    decided: bool
    run_id: str | None
    run_state: str | None
    run_finished: bool
    backfill_id: str | None
    attempts: int
    create_time: datetime
    start_time: datetime | None
    state_time: datetime


def retry_pause(attempts: int) -> timedelta:
    """How long a start rests after its attempts-th failure (counted from 1)."""
    return min(RETRY_FIRST * (1 << min(attempts - 1, 10)), RETRY_MAX)
