"""Plans one firing of a schedule: which due slots start, which were missed, what comes next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from services.scheduler.schedules import CatchUpMode, CatchUpPolicy, NextFiring
from services.scheduler.slot_records import SlotReason, SlotState
from services.scheduler.slots import Slots, fire_time
from services.scheduler.specs import Spec

# A slot found this soon after its fire time is on time: polling and a busy moment cost seconds.
LATE_AFTER = timedelta(seconds=10)
# Missed slots of one outage that get a row; older ones stay unrecorded, which bounds the plan.
MISSED_ROWS_MAX = 1000
# On-time slots of one schedule in one plan: twice LATE_AFTER of a schedule that fires each second.
DUE_MAX = 20


@dataclass(frozen=True, slots=True)
class PlannedSlot:
    """A due slot: PENDING when it is to start (if overlap allows), else MISSED or SKIPPED."""

    scheduled_time: datetime
    fire_time: datetime
    state: SlotState
    reason: SlotReason


@dataclass(frozen=True, slots=True)
class Plan:
    """What one firing records, where the position moves, and the next firing (None: the end)."""

    slots: tuple[PlannedSlot, ...]
    position_time: datetime
    following: NextFiring | None


@dataclass(frozen=True, slots=True)
class Pause:
    """The latest pause of a schedule; slots inside it were missed because of it."""

    start_time: datetime | None = None
    end_time: datetime | None = None

    def covers(self, instant: datetime) -> bool:
        """Whether the schedule was paused then."""
        return (
            self.start_time is not None
            and self.start_time <= instant
            and (self.end_time is None or instant < self.end_time)
        )


def plan(
    spec: Spec,
    share: float,
    position: datetime,
    now: datetime,
    policy: CatchUpPolicy,
    pause: Pause,
) -> Plan:
    """Deals with every slot after `position` whose fire time has come, in bounded memory."""
    firing = _Firing(spec, share, now)
    due_end = firing.due_end(position)
    kept = 1 if policy.mode is CatchUpMode.COALESCE else policy.max_count
    # A slot ages from when it fires: one that waited for its share of the jitter is not late.
    oldest = now - policy.window
    recent = firing.last(DUE_MAX + kept, max(position, oldest - spec.jitter), due_end)
    startable = [each for each in recent if each[1] > oldest]
    starts = _starts(startable, now, policy.mode, kept)
    first = starts[0][0] if starts else due_end
    passed = firing.last(MISSED_ROWS_MAX, position, first)
    slots = [
        *(_passed(time, fire, now, policy, pause, coalesced=bool(starts)) for time, fire in passed),
        *(_started(time, fire, now) for time, fire in starts),
    ]
    moved = max(position, slots[-1].scheduled_time) if slots else position
    return Plan(tuple(slots), moved, firing.next_after(max(moved, position)))


_Timed = tuple[datetime, datetime]


def _starts(due: list[_Timed], now: datetime, mode: CatchUpMode, kept: int) -> list[_Timed]:
    on_time = [each for each in due if now - each[1] <= LATE_AFTER]
    late = due[: len(due) - len(on_time)]
    if mode is CatchUpMode.ALL:
        return late[-kept:] + on_time
    if mode is CatchUpMode.COALESCE and not on_time:
        return late[-1:]
    return on_time


def _passed(
    time: datetime,
    fire: datetime,
    now: datetime,
    policy: CatchUpPolicy,
    pause: Pause,
    *,
    coalesced: bool,
) -> PlannedSlot:
    in_window = fire > now - policy.window
    if coalesced and in_window and policy.mode is CatchUpMode.COALESCE:
        return PlannedSlot(time, fire, SlotState.SKIPPED, SlotReason.COALESCED)
    reason = SlotReason.PAUSED if pause.covers(fire) else SlotReason.TOO_LATE
    return PlannedSlot(time, fire, SlotState.MISSED, reason)


def _started(time: datetime, fire: datetime, now: datetime) -> PlannedSlot:
    reason = SlotReason.DUE if now - fire <= LATE_AFTER else SlotReason.CAUGHT_UP
    return PlannedSlot(time, fire, SlotState.PENDING, reason)


class _Firing:
    """The slots of a spec together with their fire times, as seen at one moment."""

    def __init__(self, spec: Spec, share: float, now: datetime) -> None:
        self._spec = spec
        self._share = share
        self._now = now
        self._slots = Slots(spec)

    def due_end(self, position: datetime) -> datetime:
        """The first instant whose slot is not due yet: jitter may hold the latest ones back."""
        end = self._now + timedelta(microseconds=1)
        if not self._spec.jitter:
            return end
        latest = self._slots.before(end)
        while latest is not None and latest.time > position:
            if self._fire_time(latest.time) <= self._now:
                return latest.time + timedelta(microseconds=1)
            end = latest.time
            latest = self._slots.before(end)
        return end

    def last(self, count: int, after: datetime, end: datetime) -> list[_Timed]:
        """The last `count` slots in (after, end), in order, with their fire times."""
        if count <= 0:
            return []
        found = self._slots.last(count, after + timedelta(microseconds=1), end)
        return [(each.time, self._fire_time(each.time)) for each in found]

    def next_after(self, position: datetime) -> NextFiring | None:
        """The firing that follows."""
        found = self._slots.after(position)
        if found is None:
            return None
        return NextFiring(found.time, self._fire_time(found.time))

    def _fire_time(self, time: datetime) -> datetime:
        following = self._slots.after(time) if self._spec.jitter else None
        later = following.time if following else None
        return fire_time(time, later, self._spec, self._share)
