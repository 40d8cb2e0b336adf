"""Events of connections: triggers write them into the outbox; here is what became undeliverable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.connections.tables import undelivered_events
from services.runtime.outbox import Entry, enqueue_many

TOPIC = "connection-event"
KEEP_UNDELIVERED_DAYS = 30
SWEEP_ROWS_MAX = 5000


@dataclass(frozen=True, slots=True)
class Undelivered:
    """An event that was given up."""

    tenant_id: str
    event_id: str
    payload: Mapping[str, Any]
    attempts: int
    last_error: str
    give_up_time: datetime


async def give_up(tx: AsyncConnection, entry: Entry, error: str) -> None:
    """Keep what could not be delivered, for people to see. Needs a jobs transaction."""
    values = {
        "tenant_id": entry.tenant_id,
        "event_id": entry.payload["event_id"],
        "payload": dict(entry.payload),
        "attempts": entry.attempts,
        "last_error": error,
        "enqueue_time": entry.enqueue_time,
    }
    # Given up before by a process that died before it could say so.
    again = upsert(undelivered_events).values(values)
    await tx.execute(
        again.on_conflict_do_update(
            index_elements=["tenant_id", "event_id"],
            set_={"attempts": entry.attempts, "last_error": error},
        )
    )


async def undelivered(tx: AsyncConnection, *, limit: int) -> list[Undelivered]:
    """Up to `limit` events that were given up, the latest first."""
    query = select(
        undelivered_events.c.tenant_id,
        undelivered_events.c.event_id,
        undelivered_events.c.payload,
        undelivered_events.c.attempts,
        undelivered_events.c.last_error,
        undelivered_events.c.give_up_time,
    ).order_by(undelivered_events.c.give_up_time.desc(), undelivered_events.c.event_id)
    rows = await tx.execute(query.limit(limit))
    return [Undelivered(**row) for row in rows.mappings()]


async def send_again(tx: AsyncConnection, *, limit: int) -> int:
    """Owe up to `limit` of them again, under their old ids; how many."""
    chosen = (
        select(undelivered_events.c.tenant_id, undelivered_events.c.event_id)
        .order_by(undelivered_events.c.give_up_time, undelivered_events.c.event_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).cte("chosen")
    rows = await tx.execute(
        delete(undelivered_events)
        .where(
            undelivered_events.c.tenant_id == chosen.c.tenant_id,
            undelivered_events.c.event_id == chosen.c.event_id,
        )
        .returning(undelivered_events.c.tenant_id, undelivered_events.c.payload)
    )
    found = [(row.tenant_id, row.payload) for row in rows]
    await enqueue_many(tx, TOPIC, found)
    return len(found)


async def sweep(tx: AsyncConnection) -> int:
    """Forget a batch of what was given up long ago; how many."""
    day = func.make_interval(0, 0, 0, 1)
    old = (
        select(undelivered_events.c.tenant_id, undelivered_events.c.event_id)
        .where(undelivered_events.c.give_up_time < func.cogni_now() - day * KEEP_UNDELIVERED_DAYS)
        .limit(SWEEP_ROWS_MAX)
    ).cte("old")
    gone = await tx.execute(
        delete(undelivered_events)
        .where(
            undelivered_events.c.tenant_id == old.c.tenant_id,
            undelivered_events.c.event_id == old.c.event_id,
        )
        .returning(undelivered_events.c.event_id)
    )
    return len(gone.all())
