"""Takes backfills, tells of them, and carries them forward step by step."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import islice

from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import (
    ServiceError,
    Violation,
    failed_precondition,
    invalid,
    limit,
    not_found,
    reused_request_id,
)
from services.runtime.ids import new_id
from services.runtime.jsonvalues import canonical_json
from services.runtime.listen import notify
from services.scheduler.backfills import (
    BACKFILL_SLOTS_MAX,
    RUNNING_MAX,
    SCAN_MAX,
    Backfill,
    BackfillOrder,
    BackfillState,
    pace,
    reached_cap,
)
from services.scheduler.overlap import BUFFERED_MAX, Decision, OverlapView, decide
from services.scheduler.runs import Executor, ExecutorUnavailableError, RunRefusedError
from services.scheduler.schedules import (
    OverlapPolicy,
    Schedule,
    ScheduleState,
    check_not_deleted,
)
from services.scheduler.slot_records import (
    SlotDraft,
    SlotKey,
    SlotOrigin,
    SlotReason,
    SlotState,
)
from services.scheduler.slots import Slots
from services.scheduler.specs import Spec
from services.scheduler.store import backfills, changes, run_templates, schedules, slots, streams
from services.scheduler.use_cases.dispatch import owe_cancellations, owe_starts

STEPS_AT_ONCE = 20
_COSTS_AT_ONCE = 20
_MOMENT = timedelta(microseconds=1)
_log = logging.getLogger(__name__)


class Backfills:
    """What people ask of backfills."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def start(self, caller: Caller, request_id: str, order: BackfillOrder) -> Backfill:
        """Keep a backfill, which begins at once; a repeat of the request answers the same one."""
        content_hash = _hash(order)
        if (known := await self._repeated(caller, request_id, content_hash)) is not None:
            return known
        async with self._database.tenant(caller.tenant_id) as tx:
            schedule = await _existing_schedule(tx, order.schedule_id)
            moment = await schedules.now(tx)
        check_not_deleted(schedule)
        if order.end_time > moment:
            raise invalid(Violation("end_time", "must not be in the future"))
        times = await asyncio.to_thread(_times, schedule.settings.spec, order)
        async with self._database.tenant(caller.tenant_id) as tx:
            created = await self._keep(tx, caller, request_id, content_hash, order, schedule, times)
        known = created or await self._repeated(caller, request_id, content_hash)
        assert known is not None, "the request_id was used, so its backfill is there"
        return known

    async def get(self, caller: Caller, backfill_id: str) -> Backfill:
        """The backfill; raises NOT_FOUND."""
        async with self._database.tenant(caller.tenant_id) as tx:
            return await _existing(tx, backfill_id)

    async def cancel(self, caller: Caller, backfill_id: str) -> Backfill:
        """Stop a backfill; one that has ended stays as it is."""
        async with self._database.tenant(caller.tenant_id) as tx:
            found = await _existing(tx, backfill_id)
            # The schedule first, as everywhere, so that nobody waits in a circle.
            await schedules.get(tx, found.order.schedule_id, lock=True)
            found = await _existing(tx, backfill_id, lock=True)
            if found.state is BackfillState.RUNNING:
                await backfills.end(tx, backfill_id, BackfillState.CANCELLED)
                await backfills.cancel_waiting(tx, backfill_id)
                await notify(tx, changes.SLOTS_CHANNEL)
            return await _existing(tx, backfill_id)

    async def _keep(
        self,
        tx: AsyncConnection,
        caller: Caller,
        request_id: str,
        content_hash: bytes,
        order: BackfillOrder,
        schedule: Schedule,
        times: list[datetime],
    ) -> Backfill | None:
        if await backfills.count_running(tx) >= RUNNING_MAX:
            raise limit(caller.tenant_id, f"A tenant runs at most {RUNNING_MAX} backfills.")
        known = await backfills.present(tx, schedule.schedule_id, times)
        if all(not known.get(time, True) for time in times):
            raise _empty(order)
        backfill_id = new_id()
        created = await backfills.insert(
            tx,
            backfill_id=backfill_id,
            tenant_id=caller.tenant_id,
            request_id=request_id,
            content_hash=content_hash,
            order=order,
            spec=schedule.settings.spec,
            run_digest=await run_templates.keep(tx, caller.tenant_id, schedule.settings.run),
            total_count=len(times),
            creator=caller.owner,
        )
        return await _existing(tx, backfill_id) if created else None

    async def _repeated(
        self, caller: Caller, request_id: str, content_hash: bytes
    ) -> Backfill | None:
        async with self._database.tenant(caller.tenant_id) as tx:
            found = await backfills.find_request(tx, request_id)
            if found is None:
                return None
            if found[1] != content_hash:
                raise reused_request_id(request_id)
            return await _existing(tx, found[0])


class BackfillStepper:
    """Carries running backfills forward. Any number of processes may do it side by side."""

    def __init__(self, database: Database, executor: Executor, kick: Callable[[], None]) -> None:
        self._database = database
        self._executor = executor
        self._kick = kick

    async def step_due(self) -> int:
        """Take the steps that are due and return how many there were."""
        async with self._database.jobs() as tx:
            due = await backfills.due(tx, STEPS_AT_ONCE)
        for backfill_id, schedule_id in due:
            try:
                await self._note_costs(backfill_id)
                async with self._database.jobs() as tx:
                    await self._step(tx, backfill_id, schedule_id)
            except ValueError as error:
                await self._fail(backfill_id, error)
        if due:
            self._kick()
        return len(due)

    async def _fail(self, backfill_id: str, error: ValueError) -> None:
        """End a backfill whose spec can no longer be read, so that it holds no other back."""
        _log.error("backfill %s cannot be computed: %s", backfill_id, error)
        async with self._database.jobs() as tx:
            note = f"The spec can no longer be read: {error}."
            await backfills.end(tx, backfill_id, BackfillState.FAILED, note)
            await backfills.cancel_waiting(tx, backfill_id)
            await notify(tx, changes.SLOTS_CHANNEL)

    async def _note_costs(self, backfill_id: str) -> None:
        """Ask what finished runs have cost, if that bounds the backfill."""
        async with self._database.jobs() as tx:
            found = await _existing(tx, backfill_id)
            cap = found.order.cost_cap
            unknown = await backfills.uncosted(tx, backfill_id, _COSTS_AT_ONCE) if cap else []
        for key, tenant_id, run_id in unknown:
            assert cap is not None
            try:
                run = await self._executor.get_run(tenant_id, run_id)
            except (ExecutorUnavailableError, RunRefusedError):
                # Asked again at the next step; nothing further starts meanwhile, see _step.
                return
            cost = run.costs.get(cap.asset, Decimal(0)) if run else Decimal(0)
            async with self._database.jobs() as tx:
                await backfills.note_cost(tx, key, cost)

    async def _step(self, tx: AsyncConnection, backfill_id: str, schedule_id: str) -> None:
        schedule = await schedules.get(tx, schedule_id, lock=True)
        found = await _existing(tx, backfill_id, lock=True)
        assert schedule is not None
        if not await backfills.is_due(tx, backfill_id):
            return
        stop = await self._reason_to_stop(tx, schedule, found)
        if stop is not None:
            await backfills.end(tx, backfill_id, *stop)
            await backfills.cancel_waiting(tx, backfill_id)
        elif found.order.cost_cap and await backfills.uncosted(tx, backfill_id, 1):
            # What finished runs cost decides whether another may start.
            await backfills.advance(
                tx, backfill_id, done=0, present=0, position=None, pause=timedelta(seconds=1)
            )
        else:
            await self._go_on(tx, schedule, found)
        await notify(tx, changes.SLOTS_CHANNEL)

    async def _reason_to_stop(
        self, tx: AsyncConnection, schedule: Schedule, found: Backfill
    ) -> tuple[BackfillState, str] | None:
        if schedule.state is ScheduleState.DELETED:
            return BackfillState.FAILED, "The schedule was deleted."
        # Its runs are frozen: the schedule may be under another grant by now.
        frozen = await run_templates.get(tx, found.tenant_id, found.run_digest)
        ended = await streams.ended_grant(tx, frozen.grant_id)
        if ended is not None:
            return BackfillState.FAILED, f"The grant is {ended}."
        if reached_cap(found):
            return BackfillState.CAPPED, f"Its runs have cost {found.cost:f}."
        return None

    async def _go_on(self, tx: AsyncConnection, schedule: Schedule, found: Backfill) -> None:
        schedule_id, order = schedule.schedule_id, found.order
        view = (await slots.overlap_views(tx, [schedule_id]))[schedule_id]
        going = pace(found)
        starts = going.starts
        if order.overlap_policy is OverlapPolicy.BUFFER_ALL:
            starts = min(starts, BUFFERED_MAX - len(view.buffered))
        first = found.position_time + _MOMENT if found.position_time else order.start_time
        times = _scan(found.spec, first, order.end_time)
        known = await backfills.present(tx, schedule_id, times)
        done, present, position = 0, 0, found.position_time
        for time in times:
            if time in known and not known[time]:
                present += 1
            elif starts <= 0:
                break
            else:
                view = await _fill(tx, schedule, found, time, view, missed=time in known)
                starts -= 1
            done, position = done + 1, time
        await backfills.advance(
            tx,
            found.backfill_id,
            done=done,
            present=present,
            position=position,
            pause=going.pause if starts <= 0 else timedelta(0),
        )
        if done == len(times) and len(times) < SCAN_MAX:
            await backfills.end(tx, found.backfill_id, BackfillState.COMPLETED)


async def _fill(
    tx: AsyncConnection,
    schedule: Schedule,
    found: Backfill,
    time: datetime,
    view: OverlapView,
    *,
    missed: bool,
) -> OverlapView:
    """Let one absent or MISSED slot start, and return the view after it."""
    policy = found.order.overlap_policy
    decided = policy is OverlapPolicy.ALLOW_ALL or not view.rests_on_runs_alone
    decision = Decision(SlotState.PENDING, SlotReason.BACKFILLED)
    if decided:
        decision = decide(policy, view, SlotReason.BACKFILLED)
    draft = SlotDraft(
        key=SlotKey(schedule.schedule_id, time),
        tenant_id=schedule.tenant_id,
        fire_time=time,
        state=decision.state,
        reason=decision.reason,
        origin=SlotOrigin.BACKFILL,
        overlap_policy=policy,
        run_digest=found.run_digest,
        decided=decided,
        backfill_id=found.backfill_id,
    )
    displaced = [SlotKey(schedule.schedule_id, each) for each in decision.displaced]
    await slots.settle(tx, displaced, SlotState.SKIPPED, SlotReason.OVERLAP)
    filled = await backfills.revive(tx, draft) if missed else bool(await slots.insert(tx, [draft]))
    if filled and draft.state is SlotState.PENDING:
        await owe_starts(tx, [(schedule.tenant_id, draft.key)])
    await owe_cancellations(
        tx,
        [
            (schedule.tenant_id, SlotKey(schedule.schedule_id, each))
            for each in decision.cancel_runs_of
        ],
    )
    return view.without(decision.displaced).with_slot(time, draft.state)


def _scan(spec: Spec, first: datetime, end: datetime) -> list[datetime]:
    return [found.time for found in islice(Slots(spec).between(first, end), SCAN_MAX)]


def _times(spec: Spec, order: BackfillOrder) -> list[datetime]:
    # A backfill reaches back beyond the schedule's creation, and its start_time bounds it still.
    found = Slots(spec).between(order.start_time, order.end_time)
    times = [each.time for each in islice(found, BACKFILL_SLOTS_MAX + 1)]
    if len(times) > BACKFILL_SLOTS_MAX:
        raise limit(order.schedule_id, f"A backfill spans at most {BACKFILL_SLOTS_MAX} slots.")
    if not times:
        raise _empty(order)
    return times


def _empty(order: BackfillOrder) -> ServiceError:
    return failed_precondition(
        "BACKFILL_EMPTY",
        "The span holds no slot that could start: there is none, or all have an outcome. To run "
        "one again, replay its run.",
        metadata={"schedule_id": order.schedule_id},
    )


def _hash(order: BackfillOrder) -> bytes:
    cap = order.cost_cap
    content = {
        "schedule_id": order.schedule_id,
        "start_time": order.start_time.isoformat(),
        "end_time": order.end_time.isoformat(),
        "starts_per_minute": order.starts_per_minute,
        "max_unfinished": order.max_unfinished,
        "overlap_policy": order.overlap_policy.value,
        "cost_cap": [cap.asset, cap.value] if cap else None,
    }
    return hashlib.sha256(canonical_json(content)).digest()


async def _existing(tx: AsyncConnection, backfill_id: str, *, lock: bool = False) -> Backfill:
    found = await backfills.get(tx, backfill_id, lock=lock)
    if found is None:
        raise not_found("backfill", backfill_id)
    return found


async def _existing_schedule(tx: AsyncConnection, schedule_id: str) -> Schedule:
    schedule = await schedules.get(tx, schedule_id)
    if schedule is None:
        raise not_found("schedule", schedule_id)
    return schedule
