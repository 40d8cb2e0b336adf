"""Decides what a slot does while earlier runs of its schedule are not finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from services.scheduler.schedules import OverlapPolicy
from services.scheduler.slot_records import SlotReason, SlotState

BUFFERED_MAX = 100


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An earlier slot that stands in the way, by its nominal time."""

    scheduled_time: datetime
    state: SlotState


@dataclass(frozen=True, slots=True)
class OverlapView:
    """What a schedule has under way, as far as the Scheduler knows."""

    unfinished: tuple[Unfinished, ...] = ()

    @property
    def active(self) -> tuple[Unfinished, ...]:
        """Slots whose run is about to start or has not ended."""
        return tuple(each for each in self.unfinished if each.state is not SlotState.BUFFERED)

    @property
    def buffered(self) -> tuple[Unfinished, ...]:
        """Slots that wait for their turn, oldest first."""
        return tuple(each for each in self.unfinished if each.state is SlotState.BUFFERED)

    @property
    def rests_on_runs_alone(self) -> bool:
        """Whether only started runs stand in the way: they may have ended unheard.

        A slot that has not started certainly has not ended.
        """
        return bool(self.unfinished) and all(
            each.state is SlotState.STARTED for each in self.unfinished
        )

    def with_slot(self, scheduled_time: datetime, state: SlotState) -> OverlapView:
        """The view after a slot was recorded in a state."""
        if state not in (SlotState.PENDING, SlotState.BUFFERED):
            return self
        return OverlapView((*self.unfinished, Unfinished(scheduled_time, state)))

    def without(self, gone: Sequence[datetime]) -> OverlapView:
        """The view after slots went."""
        return OverlapView(tuple(e for e in self.unfinished if e.scheduled_time not in gone))


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a slot, of the runs it cancels, and of waiting slots it stands for."""

    state: SlotState
    reason: SlotReason
    cancel_runs_of: tuple[datetime, ...] = ()
    displaced: tuple[datetime, ...] = ()


def decide(policy: OverlapPolicy, view: OverlapView, due_reason: SlotReason) -> Decision:
    """What a due slot does. `due_reason` is kept when nothing stands in its way."""
    start = Decision(SlotState.PENDING, due_reason)
    wait = Decision(SlotState.BUFFERED, SlotReason.OVERLAP)
    if not view.unfinished or policy is OverlapPolicy.ALLOW_ALL:
        return start
    match policy:
        case OverlapPolicy.BUFFER_ONE if not view.buffered:
            return wait
        case OverlapPolicy.BUFFER_ALL if len(view.buffered) < BUFFERED_MAX:
            return wait
        case OverlapPolicy.BUFFER_ALL:
            return Decision(SlotState.SKIPPED, SlotReason.BUFFER_FULL)
        case OverlapPolicy.CANCEL_OTHER:
            # Who waits already is displaced: the newest slot is the one that is wanted.
            return Decision(wait.state, wait.reason, _times(view.active), _times(view.buffered))
        case OverlapPolicy.TERMINATE_OTHER:
            return Decision(start.state, start.reason, _times(view.active), _times(view.buffered))
        case _:
            return Decision(SlotState.SKIPPED, SlotReason.OVERLAP)


def next_turn(view: OverlapView) -> datetime | None:
    """The waiting slot whose turn has come, or None while something runs or nothing waits."""
    if view.active or not view.buffered:
        return None
    return min(each.scheduled_time for each in view.buffered)


def _times(slots: tuple[Unfinished, ...]) -> tuple[datetime, ...]:
    return tuple(each.scheduled_time for each in slots)
