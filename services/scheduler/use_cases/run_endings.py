"""What the Executor tells of runs and grants, and what follows from it for schedules."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.listen import notify
from services.scheduler.runs import GrantChange, RunChange, RunView
from services.scheduler.schedules import Schedule, ScheduleState, StateReason
from services.scheduler.slot_records import SlotKey, SlotReason
from services.scheduler.store import changes as slot_changes
from services.scheduler.store import schedules, slots, streams
from services.scheduler.use_cases.dispatch import give_turn

_GRANT_ENDS = {
    "REVOKED": (StateReason.GRANT_REVOKED, "The grant was revoked."),
    "EXPIRED": (StateReason.GRANT_EXPIRED, "The grant expired."),
}


async def note_run(tx: AsyncConnection, schedule: Schedule, key: SlotKey, run: RunView) -> None:
    """Note a run's state in a slot of a locked schedule; its end gives the next slot its turn."""
    noted = await slots.note_run(tx, key, run.state, finished=run.finished)
    if not (noted and run.finished):
        return
    if (
        run.state == "FAILED"
        and schedule.settings.pause_on_failure
        and schedule.state is ScheduleState.ACTIVE
    ):
        note = f"The run {run.run_id} failed."
        await schedules.set_state(
            tx, schedule.schedule_id, ScheduleState.PAUSED, StateReason.RUN_FAILED, note
        )
    await give_turn(tx, schedule.tenant_id, schedule.schedule_id)


async def apply_run_changes(tx: AsyncConnection, changes: Sequence[RunChange]) -> None:
    """Note a batch of changes. Changes of schedules that are not ours are passed over."""
    wanted = sorted({change.key.schedule_id for change in changes})
    found = {each.schedule_id: each for each in await schedules.lock_all(tx, wanted)}
    for change in changes:
        schedule = found.get(change.key.schedule_id)
        if schedule is None or schedule.tenant_id != change.tenant_id:
            continue
        # The starter may have died, or not yet come to note the run that it started.
        await slots.mark_started(
            tx, change.key, change.run.run_id, change.run.state, SlotReason.DUE
        )
        await note_run(tx, schedule, change.key, change.run)
    if found:
        await notify(tx, slot_changes.SLOTS_CHANNEL)


async def apply_grant_changes(tx: AsyncConnection, changes: Sequence[GrantChange]) -> None:
    """Stop the schedules of grants that ended: no slot of theirs starts any more."""
    for change in changes:
        await streams.note_grant(
            tx,
            change.grant_id,
            change.tenant_id,
            change.state,
            change.expire_time,
            change.change_time,
        )
        if change.state in _GRANT_ENDS:
            await _stop_schedules(tx, change)


async def _stop_schedules(tx: AsyncConnection, change: GrantChange) -> None:
    reason, note = _GRANT_ENDS[change.state]
    ids = sorted(await schedules.of_grant(tx, change.grant_id))
    stopped = await schedules.lock_all(tx, ids)
    for schedule in stopped:
        # The row may have been pointed to another grant before the lock was ours.
        if schedule.settings.run.grant_id == change.grant_id:
            if schedule.state is ScheduleState.ACTIVE:
                await schedules.set_state(
                    tx, schedule.schedule_id, ScheduleState.PAUSED, reason, note
                )
            await slots.cancel_unstarted(
                tx, [schedule.schedule_id], SlotReason.GRANT_UNUSABLE, note
            )
    if stopped:
        await notify(tx, slot_changes.SLOTS_CHANNEL)
