"""Creates, reads, changes, pauses and deletes schedules."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import (
    ErrorKind,
    ServiceError,
    limit,
    not_found,
    reused_request_id,
    unavailable,
)
from services.runtime.ids import new_id
from services.runtime.jsonvalues import canonical_json
from services.runtime.listen import notify
from services.scheduler.runs import Executor, ExecutorUnavailableError, RunRefusedError
from services.scheduler.schedules import (
    CatchUpMode,
    NextFiring,
    RunTemplate,
    Schedule,
    ScheduleState,
    Settings,
    StateReason,
    check_etag,
    check_has_future,
    check_not_deleted,
    grant_unusable,
    next_firing,
)
from services.scheduler.slot_records import SlotReason
from services.scheduler.slots import jitter_share
from services.scheduler.specs import Spec
from services.scheduler.store import changes, schedules, slots, streams
from services.scheduler.store.rows import settings_plain
from services.scheduler.zones import tzdata_version

SCHEDULES_MAX = 100_000


class Schedules:
    """What people do to schedules."""

    def __init__(self, database: Database, executor: Executor) -> None:
        self._database = database
        self._executor = executor

    async def create(
        self, caller: Caller, request_id: str, settings: Settings, *, paused: bool
    ) -> Schedule:
        """Keep a schedule; a repeat of the request answers the schedule as it is now."""
        content_hash = _hash({"settings": settings_plain(settings), "paused": paused})
        if (known := await self._repeated(caller, request_id, content_hash)) is not None:
            return known
        schedule_id = new_id()
        await self._check_grant(caller.tenant_id, settings.run, caller.owner)
        async with self._database.tenant(caller.tenant_id) as tx:
            moment = await schedules.now(tx)
        # Between transactions: a spec full of exclusions takes longer than one may idle.
        following = await _following(settings.spec, jitter_share(schedule_id), moment)
        async with self._database.tenant(caller.tenant_id) as tx:
            if await schedules.count_kept(tx, SCHEDULES_MAX) >= SCHEDULES_MAX:
                raise limit(caller.tenant_id, f"A tenant has at most {SCHEDULES_MAX} schedules.")
            await _check_not_ended(tx, settings.run)
            created = await schedules.insert(
                tx,
                schedule_id=schedule_id,
                tenant_id=caller.tenant_id,
                request_id=request_id,
                content_hash=content_hash,
                settings=settings,
                paused=paused,
                following=following,
                tzdata_version=tzdata_version(),
                creator=caller.owner,
                moment=moment,
            )
            await notify(tx, changes.DUE_CHANNEL)
            schedule = await schedules.get(tx, schedule_id)
        if created and schedule is not None:
            return schedule
        # Another call with this request_id was first.
        known = await self._repeated(caller, request_id, content_hash)
        assert known is not None
        return known

    async def get(self, caller: Caller, schedule_id: str) -> Schedule:
        """The schedule; raises NOT_FOUND."""
        async with self._database.tenant(caller.tenant_id) as tx:
            return await _existing(tx, schedule_id)

    async def list_page(
        self,
        caller: Caller,
        *,
        states: tuple[ScheduleState, ...],
        graph_id: str,
        grant_id: str,
        labels: dict[str, str],
        before: str | None,
        limit: int,
    ) -> list[Schedule]:
        """Schedules, newest first; of all states but DELETED unless states are given."""
        kept = tuple(state for state in ScheduleState if state is not ScheduleState.DELETED)
        async with self._database.tenant(caller.tenant_id) as tx:
            return await schedules.list_page(
                tx,
                states=states or kept,
                graph_id=graph_id or None,
                grant_id=grant_id or None,
                labels=labels,
                before=before,
                limit=limit,
            )

    async def update(
        self,
        caller: Caller,
        schedule_id: str,
        etag: str,
        change: Callable[[Settings], Settings],
    ) -> Schedule:
        """Apply a change of settings. A new spec counts from now on."""
        before = await self.get(caller, schedule_id)
        check_not_deleted(before)
        check_etag(before, etag)
        new = change(before.settings)
        if new.run != before.settings.run:
            await self._check_grant(caller.tenant_id, new.run, before.creator)
        async with self._database.tenant(caller.tenant_id) as tx:
            locked = await _locked(tx, schedule_id)
            check_not_deleted(locked)
            check_etag(locked, etag)
            new = change(locked.settings)
            if new.run != locked.settings.run:
                await _check_not_ended(tx, new.run)
            await self._apply(tx, locked, new)
            await notify(tx, changes.DUE_CHANNEL)
            return await _existing(tx, schedule_id)

    async def delete(self, caller: Caller, schedule_id: str, etag: str) -> Schedule:
        """Delete a schedule; what has not begun to start is cancelled."""
        async with self._database.tenant(caller.tenant_id) as tx:
            locked = await _locked(tx, schedule_id)
            if locked.state is ScheduleState.DELETED:
                return locked
            check_etag(locked, etag)
            await schedules.set_state(tx, schedule_id, ScheduleState.DELETED, StateReason.REQUESTED)
            await slots.cancel_unstarted(tx, [schedule_id], SlotReason.SCHEDULE_DELETED)
            await notify(tx, changes.SLOTS_CHANNEL)
            return await _existing(tx, schedule_id)

    async def pause(self, caller: Caller, schedule_id: str, note: str) -> Schedule:
        """Stop a schedule from firing; a paused one gets the new note."""
        async with self._database.tenant(caller.tenant_id) as tx:
            locked = await _locked(tx, schedule_id)
            check_has_future(locked)
            await schedules.set_state(
                tx, schedule_id, ScheduleState.PAUSED, StateReason.REQUESTED, note
            )
            return await _existing(tx, schedule_id)

    async def unpause(
        self, caller: Caller, schedule_id: str, note: str, catch_up_once: CatchUpMode | None
    ) -> Schedule:
        """Let a schedule fire again, from where it was paused, as its catch-up policy says."""
        before = await self.get(caller, schedule_id)
        check_has_future(before)
        if before.state is ScheduleState.ACTIVE:
            return before
        await self._check_grant(caller.tenant_id, before.settings.run, before.creator)
        async with self._database.tenant(caller.tenant_id) as tx:
            locked = await _locked(tx, schedule_id)
            check_has_future(locked)
            if locked.state is ScheduleState.ACTIVE:
                return locked
            await _check_not_ended(tx, locked.settings.run)
            spec, position = locked.settings.spec, locked.position_time
            following = await asyncio.to_thread(next_firing, spec, locked.jitter_share, position)
            state, reason = ScheduleState.ACTIVE, StateReason.REQUESTED
            if following is None:
                state, reason = ScheduleState.COMPLETED, StateReason.NO_SLOT_LEFT
            await schedules.set_state(
                tx, schedule_id, state, reason, note, following, catch_up_once
            )
            await notify(tx, changes.DUE_CHANNEL)
            return await _existing(tx, schedule_id)

    async def _repeated(
        self, caller: Caller, request_id: str, content_hash: bytes
    ) -> Schedule | None:
        async with self._database.tenant(caller.tenant_id) as tx:
            found = await schedules.find_request(tx, request_id)
            if found is None:
                return None
            if found[1] != content_hash:
                raise reused_request_id(request_id)
            return await _existing(tx, found[0])

    async def _check_grant(self, tenant_id: str, run: RunTemplate, subject: str) -> None:
        try:
            grant = await self._executor.get_grant(tenant_id, run.grant_id)
        except ExecutorUnavailableError as error:
            raise unavailable(
                "The Executor, which knows the grant, cannot be asked now; retry."
            ) from error
        except RunRefusedError as refused:
            raise grant_unusable(run.grant_id, f"was not shown: {refused.message}") from refused
        if grant is None:
            raise grant_unusable(run.grant_id, "does not exist in your tenant")
        cause = grant.cannot_carry(run.graph_id, subject)
        if cause is not None:
            raise grant_unusable(run.grant_id, cause)

    async def _apply(self, tx: AsyncConnection, locked: Schedule, new: Settings) -> None:
        schedule_id, share = locked.schedule_id, locked.jitter_share
        await schedules.update_settings(tx, locked, new)
        respecced = new.spec != locked.settings.spec
        revived = locked.state is ScheduleState.COMPLETED and (
            respecced or new.remaining_actions != locked.settings.remaining_actions
        )
        if not (respecced or revived):
            return
        moment = max(await schedules.now(tx), locked.position_time)
        following = await _following(new.spec, share, moment)
        if revived:
            await schedules.set_state(
                tx, schedule_id, ScheduleState.ACTIVE, StateReason.REQUESTED, "", following
            )
        active = revived or locked.state is ScheduleState.ACTIVE
        await schedules.reschedule(
            tx, schedule_id, moment, following if active else None, tzdata_version()
        )


async def _following(spec: Spec, share: float, moment: datetime) -> NextFiring:
    # In a thread: a spec full of exclusions may take a second to search.
    following = await asyncio.to_thread(next_firing, spec, share, moment)
    if following is None:
        raise ServiceError(
            ErrorKind.INVALID_ARGUMENT,
            "SCHEDULE_NEVER_FIRES",
            "The spec has no slot left in the next hundred years; look at its days, its end and "
            "its exclusions with PreviewSchedule.",
        )
    return following


async def _check_not_ended(tx: AsyncConnection, run: RunTemplate) -> None:
    # In the transaction that keeps the schedule: a revocation followed meanwhile would not find it.
    ended = await streams.ended_grant(tx, run.grant_id)
    if ended is not None:
        raise grant_unusable(run.grant_id, f"is {ended}")


async def _existing(tx: AsyncConnection, schedule_id: str) -> Schedule:
    schedule = await schedules.get(tx, schedule_id)
    if schedule is None:
        raise not_found("schedule", schedule_id)
    return schedule


async def _locked(tx: AsyncConnection, schedule_id: str) -> Schedule:
    schedule = await schedules.get(tx, schedule_id, lock=True)
    if schedule is None:
        raise not_found("schedule", schedule_id)
    return schedule


def _hash(content: dict[str, object]) -> bytes:
    return hashlib.sha256(canonical_json(content)).digest()
