"""Starts a run of a schedule by hand, outside its recurrence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import not_found, reused_request_id
from services.runtime.jsonvalues import canonical_json
from services.runtime.listen import notify
from services.scheduler.overlap import Decision, decide
from services.scheduler.schedules import OverlapPolicy, Schedule, check_not_deleted
from services.scheduler.slot_records import (
    SlotDraft,
    SlotKey,
    SlotOrigin,
    SlotReason,
    SlotRecord,
    SlotState,
)
from services.scheduler.store import changes, manual_keys, run_templates, schedules, slots
from services.scheduler.use_cases.dispatch import owe_cancellations, owe_starts


class ManualTriggers:
    """What people start by hand."""

    def __init__(self, database: Database, kick: Callable[[], None]) -> None:
        self._database = database
        self._kick = kick

    async def trigger(
        self, caller: Caller, request_id: str, schedule_id: str, policy: OverlapPolicy
    ) -> SlotRecord:
        """Record a slot for now; a repeat of the request answers the same slot."""
        content = {"schedule_id": schedule_id, "overlap_policy": policy.value}
        content_hash = hashlib.sha256(canonical_json(content)).digest()
        async with self._database.tenant(caller.tenant_id) as tx:
            schedule = await schedules.get(tx, schedule_id, lock=True)
            if schedule is None:
                raise not_found("schedule", schedule_id)
            known = await manual_keys.find(tx, request_id)
            if known is not None:
                if known[1] != content_hash:
                    raise reused_request_id(request_id)
                return await _kept(tx, known[0])
            check_not_deleted(schedule)
            key = await self._record(tx, schedule, policy)
            if not await manual_keys.insert(tx, caller.tenant_id, request_id, content_hash, key):
                # The same request_id came for another schedule at the same moment.
                raise reused_request_id(request_id)
            await notify(tx, changes.SLOTS_CHANNEL)
            slot = await _kept(tx, key)
        self._kick()
        return slot

    async def _record(
        self, tx: AsyncConnection, schedule: Schedule, policy: OverlapPolicy
    ) -> SlotKey:
        schedule_id = schedule.schedule_id
        view = (await slots.overlap_views(tx, [schedule_id]))[schedule_id]
        decided = policy is OverlapPolicy.ALLOW_ALL or not view.rests_on_runs_alone
        decision = Decision(SlotState.PENDING, SlotReason.TRIGGERED)
        if decided:
            decision = decide(policy, view, SlotReason.TRIGGERED)
        displaced = [SlotKey(schedule_id, time) for time in decision.displaced]
        await slots.settle(tx, displaced, SlotState.SKIPPED, SlotReason.OVERLAP)
        key = await self._insert(tx, schedule, policy, decision, decided=decided)
        if decision.state is SlotState.PENDING:
            await owe_starts(tx, [(schedule.tenant_id, key)])
        await owe_cancellations(
            tx,
            [(schedule.tenant_id, SlotKey(schedule_id, time)) for time in decision.cancel_runs_of],
        )
        return key

    async def _insert(
        self,
        tx: AsyncConnection,
        schedule: Schedule,
        policy: OverlapPolicy,
        decision: Decision,
        *,
        decided: bool,
    ) -> SlotKey:
        moment = await schedules.now(tx)
        # Nominal times of a spec are whole seconds: a fraction keeps the two kinds apart for ever.
        moment += timedelta(microseconds=0 if moment.microsecond else 1)
        digest = await run_templates.keep(tx, schedule.tenant_id, schedule.settings.run)
        while True:
            key = SlotKey(schedule.schedule_id, moment)
            draft = SlotDraft(
                key=key,
                tenant_id=schedule.tenant_id,
                fire_time=moment,
                state=decision.state,
                reason=decision.reason,
                origin=SlotOrigin.MANUAL,
                overlap_policy=policy,
                run_digest=digest,
                decided=decided,
            )
            if key in await slots.insert(tx, [draft]):
                return key
            # Only a trigger of the same microsecond can be there: the schedule is locked, so the
            # next free one is at most as many steps away as there were triggers in it.
            moment += timedelta(microseconds=1)


async def _kept(tx: AsyncConnection, key: SlotKey) -> SlotRecord:
    slot = await slots.get(tx, key)
    assert slot is not None, "a slot is never deleted"
    return slot
