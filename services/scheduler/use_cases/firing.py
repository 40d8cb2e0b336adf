"""Fires due schedules: slots, their fate, and the next slot time in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database
from services.runtime.errors import ServiceError
from services.runtime.listen import notify
from services.scheduler.catchup import Pause, Plan, PlannedSlot, plan
from services.scheduler.overlap import Decision, OverlapView, decide
from services.scheduler.schedules import (
    OverlapPolicy,
    Schedule,
    ScheduleState,
    StateReason,
    next_firing,
)
from services.scheduler.slot_records import (
    SlotDraft,
    SlotKey,
    SlotOrigin,
    SlotReason,
    SlotState,
)
from services.scheduler.store import changes, run_templates, schedules, slots
from services.scheduler.use_cases.dispatch import owe_cancellations, owe_starts
from services.scheduler.zones import tzdata_version

BATCH_SCHEDULES = 200
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Stopped:
    """A schedule that does not go on: it came to its end, or cannot be computed."""

    schedule: Schedule
    state: ScheduleState
    reason: StateReason
    note: str = ""


@dataclass(slots=True)
class _Batch:
    """What one transaction records."""

    drafts: list[SlotDraft] = field(default_factory=list)
    moved: list[schedules.Moved] = field(default_factory=list)
    ended: list[schedules.Ended] = field(default_factory=list)
    stopped: list[_Stopped] = field(default_factory=list)
    cancel: list[tuple[str, SlotKey]] = field(default_factory=list)
    displaced: list[SlotKey] = field(default_factory=list)


class Clock:
    """Turns due schedules into slots. Any number of clocks may run side by side."""

    def __init__(self, database: Database, kick: Callable[[], None]) -> None:
        self._database = database
        self._kick = kick

    async def fire_due(self, limit: int = BATCH_SCHEDULES) -> int:
        """Fire up to `limit` due schedules and return how many there were."""
        async with self._database.jobs() as tx:
            due = await schedules.claim_due(tx, limit)
            if due:
                await self._fire(tx, due)
        if due:
            self._kick()
        return len(due)

    async def next_due_in(self) -> timedelta | None:
        """How long nothing is due; None when nothing will be."""
        async with self._database.jobs() as tx:
            return await schedules.next_due_in(tx)

    async def recompute_outdated(self, limit: int = BATCH_SCHEDULES) -> int:
        """Recompute next slots that another release of the zones gave; return how many."""
        version = tzdata_version()
        async with self._database.jobs() as tx:
            outdated = await schedules.claim_outdated(tx, version, limit)
            batch = _Batch()
            for schedule in outdated:
                with _pausing_broken(schedule, batch):
                    _recompute(schedule, batch)
            await _record_moves(tx, batch)
        return len(outdated)

    async def _fire(self, tx: AsyncConnection, due: list[Schedule]) -> None:
        moment = await schedules.now(tx)
        views = await slots.overlap_views(tx, [each.schedule_id for each in due])
        batch = _Batch()
        plans: list[tuple[Schedule, Plan]] = []
        for schedule in due:
            with _pausing_broken(schedule, batch):
                plans.append((schedule, _plan(schedule, moment)))
        # A backfill may have been faster: such a slot displaces nothing and uses nothing up.
        taken = await slots.existing(
            tx,
            [_key(each, slot.scheduled_time) for each, planned in plans for slot in planned.slots],
        )
        for schedule, planned in plans:
            _fire_one(schedule, batch, views[schedule.schedule_id], planned, taken)
        await slots.settle(tx, batch.displaced, SlotState.SKIPPED, SlotReason.OVERLAP)
        created = await slots.insert(tx, batch.drafts)
        starting = [
            (draft.tenant_id, draft.key)
            for draft in batch.drafts
            if draft.state is SlotState.PENDING and draft.key in created
        ]
        await owe_starts(tx, starting)
        await owe_cancellations(tx, batch.cancel)
        await _record_moves(tx, batch)
        await notify(tx, changes.SLOTS_CHANNEL)


@contextmanager
def _pausing_broken(schedule: Schedule, batch: _Batch) -> Iterator[None]:
    """Pauses a schedule whose spec can no longer be read, so that it holds nobody else back."""
    try:
        yield
    except (ValueError, ServiceError) as error:
        _log.error("schedule %s cannot be computed: %s", schedule.schedule_id, error)
        note = f"The spec can no longer be read: {error}. Update it, then unpause."
        batch.stopped.append(
            _Stopped(schedule, ScheduleState.PAUSED, StateReason.START_REFUSED, note)
        )


async def _record_moves(tx: AsyncConnection, batch: _Batch) -> None:
    await schedules.move_on(tx, batch.moved, tzdata_version())
    for stopped in batch.stopped:
        await schedules.set_state(
            tx, stopped.schedule.schedule_id, stopped.state, stopped.reason, stopped.note
        )
    for ended in batch.ended:
        await schedules.note_end(tx, ended)


def _fire_one(
    schedule: Schedule, batch: _Batch, view: OverlapView, planned: Plan, taken: set[SlotKey]
) -> None:
    left = schedule.settings.remaining_actions
    last = schedule.last_slot_time
    for slot in planned.slots:
        if left == 0:
            break
        if _key(schedule, slot.scheduled_time) in taken:
            last = slot.scheduled_time
            continue
        draft, decision = _draft(schedule, slot, view)
        batch.drafts.append(draft)
        view = view.without(decision.displaced).with_slot(slot.scheduled_time, draft.state)
        batch.displaced += [_key(schedule, time) for time in decision.displaced]
        batch.cancel += [
            (schedule.tenant_id, _key(schedule, time)) for time in decision.cancel_runs_of
        ]
        last = slot.scheduled_time
        if left is not None and draft.state in (SlotState.PENDING, SlotState.BUFFERED):
            left -= 1
    _move(schedule, batch, planned, last, left)


def _recompute(schedule: Schedule, batch: _Batch) -> None:
    settings = schedule.settings
    position = schedule.position_time
    planned = Plan((), position, next_firing(settings.spec, schedule.jitter_share, position))
    _move(schedule, batch, planned, schedule.last_slot_time, settings.remaining_actions)


def _plan(schedule: Schedule, moment: datetime) -> Plan:
    settings = schedule.settings
    policy = settings.catch_up
    if schedule.catch_up_once is not None:
        policy = replace(policy, mode=schedule.catch_up_once)
    pause = Pause(schedule.pause_time, schedule.unpause_time)
    share, position = schedule.jitter_share, schedule.position_time
    return plan(settings.spec, share, position, moment, policy, pause)


def _draft(schedule: Schedule, slot: PlannedSlot, view: OverlapView) -> tuple[SlotDraft, Decision]:
    policy = schedule.settings.overlap_policy
    decision = Decision(slot.state, slot.reason)
    decided = True
    if slot.state is SlotState.PENDING:
        # Runs may have ended unheard: then the starter asks the Executor before it decides.
        decided = policy is OverlapPolicy.ALLOW_ALL or not view.rests_on_runs_alone
        if decided:
            decision = decide(policy, view, slot.reason)
    draft = SlotDraft(
        key=_key(schedule, slot.scheduled_time),
        tenant_id=schedule.tenant_id,
        fire_time=slot.fire_time,
        state=decision.state,
        reason=decision.reason,
        origin=SlotOrigin.SCHEDULE,
        overlap_policy=policy,
        run_digest=run_templates.digest_of(schedule.settings.run),
        decided=decided,
    )
    return draft, decision


def _move(
    schedule: Schedule, batch: _Batch, planned: Plan, last: datetime | None, left: int | None
) -> None:
    position = planned.position_time
    if planned.following is not None and left != 0:
        batch.moved.append(
            schedules.Moved(schedule.schedule_id, position, planned.following, last, left)
        )
        return
    reason = StateReason.ACTIONS_USED_UP if left == 0 else StateReason.NO_SLOT_LEFT
    batch.stopped.append(_Stopped(schedule, ScheduleState.COMPLETED, reason))
    batch.ended.append(schedules.Ended(schedule.schedule_id, position, last, left))


def _key(schedule: Schedule, time: datetime) -> SlotKey:
    return SlotKey(schedule.schedule_id, time)
