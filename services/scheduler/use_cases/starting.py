"""Starts the run of one slot, once, however often it is asked to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database
from services.runtime.listen import notify
from services.scheduler.overlap import decide
from services.scheduler.runs import (
    Executor,
    ExecutorUnavailableError,
    RunRefusedError,
    RunView,
    StartOrder,
)
from services.scheduler.schedules import Schedule, ScheduleState, StateReason, next_firing
from services.scheduler.slot_records import (
    SlotKey,
    SlotOrigin,
    SlotReason,
    SlotRecord,
    SlotState,
    retry_pause,
)
from services.scheduler.store import changes, schedules, slots
from services.scheduler.use_cases.dispatch import give_turn, owe_cancellations
from services.scheduler.use_cases.run_endings import note_run

# Runs that one decision asks the Executor about; more than these count as still running.
_ASKED_RUNS_MAX = 20
_GRANT_REASONS = {
    "GRANT_REVOKED": StateReason.GRANT_REVOKED,
    "GRANT_EXPIRED": StateReason.GRANT_EXPIRED,
}
_DUE_REASONS = {
    SlotOrigin.SCHEDULE: SlotReason.DUE,
    SlotOrigin.MANUAL: SlotReason.TRIGGERED,
    SlotOrigin.BACKFILL: SlotReason.BACKFILLED,
}
_log = logging.getLogger(__name__)


class Starter:
    """Carries slots to the Executor. Every step may be repeated, and two may work on one slot."""

    def __init__(self, database: Database, executor: Executor, kick: Callable[[], None]) -> None:
        self._database = database
        self._executor = executor
        self._kick = kick

    async def start(self, key: SlotKey) -> None:
        """Start the slot's run if it still waits for that; otherwise do nothing."""
        async with self._database.jobs() as tx:
            slot = await slots.get(tx, key)
        if slot is None or slot.state is not SlotState.PENDING:
            return
        try:
            if not slot.decided and not await self._decided_to_start(slot):
                return
            order = await self._order(key)
            if order is None:
                return
            run = await self._executor.start_run(order)
        except ExecutorUnavailableError as error:
            await self._postpone(slot, str(error))
        except RunRefusedError as refused:
            await self._refuse(slot, refused)
        else:
            await self._started(slot, run)

    async def _decided_to_start(self, slot: SlotRecord) -> bool:
        """Decide about a slot whose view of earlier runs may have been stale."""
        async with self._database.jobs() as tx:
            earlier = await slots.running(tx, slot.key.schedule_id, _ASKED_RUNS_MAX)
        runs = await asyncio.gather(*(self._ask(each) for each in earlier))
        async with self._database.jobs() as tx:
            schedule = await _locked(tx, slot.key)
            for each, run in zip(earlier, runs, strict=True):
                await note_run(tx, schedule, each.key, run)
            starts = await self._decide(tx, schedule, slot)
            await notify(tx, changes.SLOTS_CHANNEL)
        self._kick()
        return starts

    async def _ask(self, slot: SlotRecord) -> RunView:
        assert slot.run_id is not None
        run = await self._executor.get_run(slot.tenant_id, slot.run_id)
        # A run that was deleted has ended: only finished runs can be deleted.
        return run or RunView(slot.run_id, "CANCELLED")

    async def _decide(self, tx: AsyncConnection, schedule: Schedule, slot: SlotRecord) -> bool:
        schedule_id = schedule.schedule_id
        now_kept = await slots.get(tx, slot.key)
        if now_kept is None or now_kept.state is not SlotState.PENDING or now_kept.decided:
            return now_kept is not None and now_kept.state is SlotState.PENDING
        views = await slots.overlap_views(tx, [schedule_id], besides=slot.key)
        decision = decide(slot.overlap_policy, views[schedule_id], slot.reason)
        displaced = [SlotKey(schedule_id, time) for time in decision.displaced]
        await slots.settle(tx, displaced, SlotState.SKIPPED, SlotReason.OVERLAP)
        await slots.settle(tx, [slot.key], decision.state, decision.reason)
        await owe_cancellations(
            tx,
            [(slot.tenant_id, SlotKey(schedule_id, time)) for time in decision.cancel_runs_of],
        )
        await give_turn(tx, slot.tenant_id, schedule_id)
        if decision.state is SlotState.SKIPPED:
            await _give_back_action(tx, schedule, slot)
        return decision.state is SlotState.PENDING

    async def _order(self, key: SlotKey) -> StartOrder | None:
        """Count the attempt and return what to send; None when the slot was taken back."""
        async with self._database.jobs() as tx:
            schedule = await _locked(tx, key)
            if not await slots.count_attempt(tx, key):
                return None
            template = await slots.template_of(tx, key)
        return StartOrder(key, schedule.tenant_id, schedule.creator, template)

    async def _postpone(self, slot: SlotRecord, note: str) -> None:
        async with self._database.jobs() as tx:
            await _locked(tx, slot.key)
            await slots.postpone(tx, slot.key, retry_pause(slot.attempts + 1), note)
            await notify(tx, changes.SLOTS_CHANNEL)

    async def _refuse(self, slot: SlotRecord, refused: RunRefusedError) -> None:
        key = slot.key
        _log.warning("the run of a slot of schedule %s was refused: %s", key.schedule_id, refused)
        pause = _GRANT_REASONS.get(refused.reason, StateReason.START_REFUSED)
        by_grant = refused.reason.startswith(("GRANT_", "GRAPH_NOT_GRANTED"))
        reason = SlotReason.GRANT_UNUSABLE if by_grant else SlotReason.START_REFUSED
        note = f"{refused.reason}: {refused.message}"[:500]
        async with self._database.jobs() as tx:
            schedule = await _locked(tx, key)
            await slots.settle(tx, [key], SlotState.REFUSED, reason, note)
            # Who triggers by hand sees the refusal; the recurrence would repeat it unseen, unless
            # what was refused has been changed since.
            recurs = (
                slot.origin is SlotOrigin.SCHEDULE
                and await slots.template_of(tx, key) == schedule.settings.run
            )
            if schedule.state is ScheduleState.ACTIVE and recurs:
                await schedules.set_state(tx, key.schedule_id, ScheduleState.PAUSED, pause, note)
            await give_turn(tx, schedule.tenant_id, key.schedule_id)
            await notify(tx, changes.SLOTS_CHANNEL)
        self._kick()

    async def _started(self, slot: SlotRecord, run: RunView) -> None:
        async with self._database.jobs() as tx:
            schedule = await _locked(tx, slot.key)
            await slots.mark_started(tx, slot.key, run.run_id, run.state, _DUE_REASONS[slot.origin])
            if run.finished:
                await note_run(tx, schedule, slot.key, run)
            await notify(tx, changes.SLOTS_CHANNEL)
        self._kick()


async def _locked(tx: AsyncConnection, key: SlotKey) -> Schedule:
    schedule = await schedules.get(tx, key.schedule_id, lock=True)
    assert schedule is not None, "a slot's schedule is never deleted from the table"
    return schedule


async def _give_back_action(tx: AsyncConnection, schedule: Schedule, slot: SlotRecord) -> None:
    """Undo what the clock took for a slot that it could not yet decide about.

    Taken first and given back, so that no two such slots start more than is left.
    """
    settings = schedule.settings
    if slot.origin is not SlotOrigin.SCHEDULE or settings.remaining_actions is None:
        return
    if schedule.update_time > slot.create_time:
        # A person may have said since then how many are left.
        return
    await schedules.give_back_action(tx, schedule.schedule_id)
    if schedule.state_reason is not StateReason.ACTIONS_USED_UP:
        return
    following = await asyncio.to_thread(
        next_firing, settings.spec, schedule.jitter_share, schedule.position_time
    )
    if following is not None:
        note = "The slot that had taken the last action was skipped."
        await schedules.set_state(
            tx, schedule.schedule_id, ScheduleState.ACTIVE, StateReason.REQUESTED, note, following
        )
        await notify(tx, changes.DUE_CHANNEL)
