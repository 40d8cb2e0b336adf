"""Reasons in sentences why a schedule did, or did not, fire at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from services.scheduler.schedules import Schedule, ScheduleState
from services.scheduler.slot_records import SlotReason, SlotRecord, SlotState
from services.scheduler.slots import Occurrence, Slots
from services.scheduler.wall import DstEffect


class Verdict(StrEnum):
    """What became of a time."""

    RECORDED = "RECORDED"
    PLANNED = "PLANNED"
    NOT_RECORDED = "NOT_RECORDED"
    NOT_A_SLOT = "NOT_A_SLOT"
    EXCLUDED = "EXCLUDED"
    OUTSIDE_BOUNDS = "OUTSIDE_BOUNDS"


@dataclass(frozen=True, slots=True)
class Explanation:
    """A verdict, its reasoning in order, and the slots around the time."""

    verdict: Verdict
    slot: SlotRecord | None
    steps: tuple[str, ...]
    previous: Occurrence | None
    following: Occurrence | None

    @property
    def record_delay(self) -> timedelta | None:
        """How late the slot was recorded."""
        return self.slot.create_time - self.slot.fire_time if self.slot else None

    @property
    def start_delay(self) -> timedelta | None:
        """How late its run was accepted."""
        if self.slot is None or self.slot.start_time is None:
            return None
        return self.slot.start_time - self.slot.fire_time


_REASONS = {
    SlotReason.DUE: "It was due and found in time.",
    SlotReason.CAUGHT_UP: "It was found late and caught up with, as the catch-up policy says.",
    SlotReason.TRIGGERED: "Somebody triggered it by hand.",
    SlotReason.BACKFILLED: "A backfill asked for it.",
    SlotReason.OVERLAP: "An earlier run of the schedule was not finished.",
    SlotReason.BUFFER_FULL: "As many slots as may wait were waiting already.",
    SlotReason.COALESCED: "A later slot that was also due stood for it.",
    SlotReason.TOO_LATE: "It was found too late for the catch-up policy.",
    SlotReason.PAUSED: "The schedule was paused when it was due.",
    SlotReason.GRANT_UNUSABLE: "Its grant could not carry the run.",
    SlotReason.START_REFUSED: "The Executor refused its run for good.",
    SlotReason.BUDGET_EXHAUSTED: "The budget of the billing account was exhausted.",
    SlotReason.SCHEDULE_DELETED: "The schedule was deleted before it started.",
    SlotReason.BACKFILL_STOPPED: "Its backfill was stopped before it started.",
    SlotReason.EXECUTOR_UNAVAILABLE: "The Executor cannot be reached; its start is being retried.",
    SlotReason.TURN_CAME: "It waited for an earlier run, which has ended.",
}
_EFFECTS = {
    DstEffect.SHIFTED: "Its wall time was skipped by a clock change; it moved by the gap's length.",
    DstEffect.MOVED_TO_GAP_END: "Its wall time was skipped by a clock change; it moved to the "
    "gap's end.",
    DstEffect.FIRST_OF_TWO: "Its wall time happened twice that day; this is the first.",
    DstEffect.SECOND_OF_TWO: "Its wall time happened twice that day; this is the second.",
}


def explain(
    schedule: Schedule, time: datetime, slot: SlotRecord | None, now: datetime
) -> Explanation:
    """Why there is, or is not, a slot at `time`."""
    engine = Slots(schedule.settings.spec)
    found = engine.after(time, inclusive=True)
    here = found if found is not None and found.time == time else None
    steps = [
        (
            f"In {schedule.settings.spec.time_zone} the time is "
            f"{time.astimezone(engine.zone).isoformat()}."
        )
    ]
    if slot is not None:
        verdict = Verdict.RECORDED
        steps += [*_effect(here), *_recorded(slot)]
    elif here is not None:
        verdict = Verdict.PLANNED if time > now else Verdict.NOT_RECORDED
        steps += [*_effect(here), *_unrecorded(schedule, time, now)]
    else:
        verdict = _absent(schedule, engine, time)
        steps.append(_ABSENT[verdict])
    return Explanation(verdict, slot, tuple(steps), engine.before(time), engine.after(time))


_ABSENT = {
    Verdict.NOT_A_SLOT: "The recurrence has no time there.",
    Verdict.EXCLUDED: "The recurrence has a time there, and an exclusion removes it.",
    Verdict.OUTSIDE_BOUNDS: "The recurrence has a time there, outside start_time and end_time.",
}


def _absent(schedule: Schedule, engine: Slots, time: datetime) -> Verdict:
    if not engine.recurs_at(time):
        return Verdict.NOT_A_SLOT
    return Verdict.EXCLUDED if engine.excludes(time) else Verdict.OUTSIDE_BOUNDS


def _effect(found: Occurrence | None) -> Iterator[str]:
    if found is not None and found.effect in _EFFECTS:
        yield _EFFECTS[found.effect]


def _recorded(slot: SlotRecord) -> Iterator[str]:
    yield (
        f"It was due at {slot.fire_time.isoformat()} and recorded "
        f"{_seconds(slot.create_time - slot.fire_time)} later."
    )
    yield _REASONS[slot.reason]
    if slot.note:
        yield slot.note
    if slot.start_time is not None:
        yield (
            f"Its run {slot.run_id} was accepted {_seconds(slot.start_time - slot.fire_time)} "
            f"after it was due, at attempt {slot.attempts}."
        )
    elif slot.state is SlotState.PENDING:
        yield f"Its start has been attempted {slot.attempts} times so far."


def _unrecorded(schedule: Schedule, time: datetime, now: datetime) -> Iterator[str]:
    if time <= schedule.create_time:
        yield "It was before the schedule was created."
    elif schedule.state is not ScheduleState.ACTIVE:
        yield f"The schedule is {schedule.state} since {schedule.state_time.isoformat()}."
        if schedule.state_note:
            yield schedule.state_note
    elif time > now:
        yield "It is in the future."
    elif time > schedule.position_time:
        yield "It is being fired, or waits for its share of the jitter."
    else:
        yield (
            "No slot was recorded: the spec was another one then, or the slot was one of more "
            "than 1000 that a pause or an outage missed."
        )


def _seconds(length: timedelta) -> str:
    return f"{length.total_seconds():.3f} s"
