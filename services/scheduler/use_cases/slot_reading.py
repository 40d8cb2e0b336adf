"""Lists slots and streams their changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.runtime.caller import Caller
from services.runtime.cursor import (
    BEGINNING,
    Position,
    decode_cursor,
    encode_cursor,
    horizon,
)
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.errors import not_found
from services.runtime.listen import Listener
from services.scheduler.slot_records import SlotOrigin, SlotRecord, SlotState
from services.scheduler.store import changes, schedules, slots

_STREAM = "slots"
HEARTBEAT = timedelta(seconds=15)
POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Some changes, or none as a sign of life; `resume` is true in a drained stream's last one."""

    changes: tuple[changes.SlotChange, ...]
    cursor: str
    resume: bool = False


class SlotReading:
    """What people read of slots."""

    def __init__(self, database: Database, listener: Listener, drain: Drain) -> None:
        self._database = database
        self._listener = listener
        self._drain = drain

    async def list_page(
        self,
        caller: Caller,
        schedule_id: str,
        *,
        states: Sequence[SlotState],
        origins: Sequence[SlotOrigin],
        start_time: datetime | None,
        end_time: datetime | None,
        before: datetime | None,
        limit: int,
    ) -> list[SlotRecord]:
        """Slots of a schedule, latest first; raises NOT_FOUND for an unknown schedule."""
        async with self._database.tenant(caller.tenant_id) as tx:
            if await schedules.get(tx, schedule_id) is None:
                raise not_found("schedule", schedule_id)
            return await slots.list_page(
                tx,
                schedule_id,
                states=states,
                origins=origins,
                start_time=start_time,
                end_time=end_time,
                before=before,
                limit=limit,
            )

    async def watch(
        self, caller: Caller, schedule_ids: Sequence[str], cursor: str, *, from_now: bool
    ) -> AsyncIterator[ChangeBatch]:
        """Changes after a cursor as they commit, until the server drains."""
        tenant_id = caller.tenant_id
        position = decode_cursor(cursor, stream=_STREAM, tenant_id=tenant_id)
        if position is None:
            position = await self._beginning(tenant_id, from_now=from_now)
        # The first message comes at once, if only to hand out a cursor to begin with.
        quiet_since = -HEARTBEAT
        wakeups = self._listener.wakeups(changes.SLOTS_CHANNEL, poll_seconds=POLL_SECONDS)
        async with aclosing(wakeups) as woken:
            async for _ in woken:
                while True:
                    found, position = await self._read(tenant_id, schedule_ids, position)
                    draining = self._drain.draining.is_set()
                    if found or draining or self._time() - quiet_since >= HEARTBEAT:
                        quiet_since = self._time()
                        place = encode_cursor(position, stream=_STREAM, tenant_id=tenant_id)
                        yield ChangeBatch(tuple(found), place, resume=draining)
                    if draining:
                        return
                    if len(found) < changes.BATCH_MAX:
                        break

    async def _beginning(self, tenant_id: str, *, from_now: bool) -> Position:
        if not from_now:
            return BEGINNING
        async with self._database.tenant(tenant_id) as tx:
            return await horizon(tx)

    async def _read(
        self, tenant_id: str, schedule_ids: Sequence[str], position: Position
    ) -> tuple[list[changes.SlotChange], Position]:
        async with self._database.tenant(tenant_id) as tx:
            return await changes.read(tx, schedule_ids, position)

    @staticmethod
    def _time() -> timedelta:
        return timedelta(seconds=asyncio.get_running_loop().time())
