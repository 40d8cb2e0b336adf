"""A backfill's states, and how fast it may go."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from services.scheduler.schedules import OverlapPolicy
from services.scheduler.specs import Spec

BACKFILL_SLOTS_MAX = 100_000
RUNNING_MAX = 10
STARTS_PER_MINUTE_DEFAULT = 60
# Slots of the span that one step looks at; those that have an outcome are passed over quickly.
SCAN_MAX = 500
# A step that may start nothing yet looks again after this.
WAIT = timedelta(seconds=1)


class BackfillState(StrEnum):
    """Where a backfill is in its life; every state but RUNNING is final."""

    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    CAPPED = "CAPPED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class CostCap:
    """The cost after which nothing further starts."""

    asset: str
    value: Decimal


@dataclass(frozen=True, slots=True)
class BackfillOrder:
    """What somebody asks for."""

    schedule_id: str
    start_time: datetime
    end_time: datetime
    starts_per_minute: int
    max_unfinished: int
    overlap_policy: OverlapPolicy
    cost_cap: CostCap | None


@dataclass(frozen=True, slots=True)
class Backfill:
    """A backfill as it is kept, with what its slots say of it."""

    backfill_id: str
    tenant_id: str
    order: BackfillOrder
    spec: Spec
    run_digest: bytes
    state: BackfillState
    state_note: str
    total_count: int
    done_count: int
    present_count: int
    started_count: int
    failed_count: int
    unfinished_count: int
    cost: Decimal
    position_time: datetime | None
    creator: str
    create_time: datetime
    finish_time: datetime | None


@dataclass(frozen=True, slots=True)
class Pace:
    """How many slots one step may start, and when the next step is due."""

    starts: int
    pause: timedelta


def pace(backfill: Backfill) -> Pace:
    """Whole starts per second, or one start and the pause that it costs."""
    rate = backfill.order.starts_per_minute
    starts = max(1, rate // 60)
    pause = timedelta(minutes=starts / rate)
    if backfill.order.max_unfinished:
        starts = min(starts, backfill.order.max_unfinished - backfill.unfinished_count)
    return Pace(max(0, starts), pause if starts > 0 else WAIT)


def reached_cap(backfill: Backfill) -> bool:
    """Whether its finished runs have cost as much as they may."""
    cap = backfill.order.cost_cap
    return cap is not None and backfill.cost >= cap.value
