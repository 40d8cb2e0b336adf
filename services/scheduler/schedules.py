"""A schedule's settings and states, and which change of state is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from services.runtime.errors import ServiceError, etag_mismatch, failed_precondition
from services.scheduler.slots import Slots, fire_time, jitter_share
from services.scheduler.specs import Spec

CATCH_UP_WINDOW_DEFAULT = timedelta(hours=1)
CATCH_UP_COUNT_DEFAULT = 100
CATCH_UP_COUNT_MAX = 1000


class ScheduleState(StrEnum):
    """Where a schedule is in its life."""

    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    DELETED = "DELETED"


class StateReason(StrEnum):
    """Why a schedule is in its state."""

    CREATED = "CREATED"
    REQUESTED = "REQUESTED"
    GRANT_REVOKED = "GRANT_REVOKED"
    GRANT_EXPIRED = "GRANT_EXPIRED"
    START_REFUSED = "START_REFUSED"
    RUN_FAILED = "RUN_FAILED"
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    NO_SLOT_LEFT = "NO_SLOT_LEFT"
    ACTIONS_USED_UP = "ACTIONS_USED_UP"
    BUDGET_RESTORED = "BUDGET_RESTORED"


class OverlapPolicy(StrEnum):
    """What a slot does while earlier runs are not finished."""

    SKIP = "SKIP"
    BUFFER_ONE = "BUFFER_ONE"
    BUFFER_ALL = "BUFFER_ALL"
    CANCEL_OTHER = "CANCEL_OTHER"
    TERMINATE_OTHER = "TERMINATE_OTHER"
    ALLOW_ALL = "ALLOW_ALL"


class CatchUpMode(StrEnum):
    """What late slots become."""

    SKIP = "SKIP"
    COALESCE = "COALESCE"
    ALL = "ALL"


@dataclass(frozen=True, slots=True)
class CatchUpPolicy:
    """How late slots are dealt with, bounded by age and by number."""

    mode: CatchUpMode = CatchUpMode.COALESCE
    window: timedelta = CATCH_UP_WINDOW_DEFAULT
    max_count: int = CATCH_UP_COUNT_DEFAULT


@dataclass(frozen=True, slots=True)
class RunLimits:
    """Bounds of each run; None leaves the Executor's default."""

    max_attempts: int | None = None
    timeout: timedelta | None = None
    max_steps: int | None = None
    max_cost_asset: str | None = None
    max_cost_value: str | None = None


@dataclass(frozen=True, slots=True)
class RunTemplate:
    """The run that each slot starts. Frozen into a slot by its digest."""

    graph_id: str
    grant_id: str
    input: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    revision: str = ""
    limits: RunLimits = RunLimits()


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person decides about a schedule."""

    display_name: str
    spec: Spec
    run: RunTemplate
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    overlap_policy: OverlapPolicy = OverlapPolicy.SKIP
    catch_up: CatchUpPolicy = CatchUpPolicy()
    remaining_actions: int | None = None
    pause_on_failure: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """Slots by what became of them."""

    started: int = 0
    skipped: int = 0
    missed: int = 0
    failed: int = 0
    buffered: int = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as it is kept.

    `position_time` is the nominal time up to which slots have been dealt with; it never moves
    back, so no clock and no edit can make a slot a second time.
    """

    schedule_id: str
    tenant_id: str
    settings: Settings
    state: ScheduleState
    state_reason: StateReason
    state_note: str
    state_time: datetime
    position_time: datetime
    next_slot_time: datetime | None
    next_fire_time: datetime | None
    last_slot_time: datetime | None
    pause_time: datetime | None
    unpause_time: datetime | None
    catch_up_once: CatchUpMode | None
    tzdata_version: str
    counts: Counts
    creator: str
    create_time: datetime
    update_time: datetime
    revision: int

    @property
    def etag(self) -> str:
        """Changes with every change of settings or state."""
        return f"{self.revision}"

    @property
    def jitter_share(self) -> float:
        """Its fixed share of its jitter."""
        return jitter_share(self.schedule_id)


@dataclass(frozen=True, slots=True)
class NextFiring:
    """The next slot: nominal time, and when it fires."""

    slot_time: datetime
    fire_time: datetime


def next_firing(spec: Spec, share: float, position: datetime) -> NextFiring | None:
    """The first firing after a position, or None when no slot is left."""
    slots = Slots(spec)
    found = slots.after(position)
    if found is None:
        return None
    following = slots.after(found.time) if spec.jitter else None
    later = following.time if following else None
    return NextFiring(found.time, fire_time(found.time, later, spec, share))


def check_etag(schedule: Schedule, etag: str) -> None:
    """Raises ETAG_MISMATCH when an etag is given and is not the current one."""
    if etag and etag != schedule.etag:
        raise etag_mismatch("schedule", schedule.schedule_id)


def check_not_deleted(schedule: Schedule) -> None:
    """Raises SCHEDULE_DELETED."""
    if schedule.state is ScheduleState.DELETED:
        raise failed_precondition(
            "SCHEDULE_DELETED",
            f"The schedule {schedule.schedule_id!r} was deleted; create another one.",
            metadata={"schedule_id": schedule.schedule_id},
        )


def check_has_future(schedule: Schedule) -> None:
    """Raises SCHEDULE_DELETED or SCHEDULE_COMPLETED."""
    check_not_deleted(schedule)
    if schedule.state is ScheduleState.COMPLETED:
        raise failed_precondition(
            "SCHEDULE_COMPLETED",
            f"The schedule {schedule.schedule_id!r} has no slot left; update its spec or its "
            "remaining_actions.",
            metadata={"schedule_id": schedule.schedule_id},
        )


def grant_unusable(grant_id: str, cause: str) -> ServiceError:
    """The refusal of a grant that cannot carry a schedule; `cause` completes "The grant …"."""
    return failed_precondition(
        "GRANT_UNUSABLE",
        f"The grant {grant_id!r} {cause}. Create a grant that allows the graph, and name it.",
        metadata={"grant_id": grant_id, "cause": cause},
    )
